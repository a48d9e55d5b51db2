// Package schema is the language in which administrators say how permissions
// follow from stored tuples. It parses the language, checks it, and compiles it
// to the form that the engine evaluates.
//
// # Nouns
//
// A [File] is the syntax tree of a text, with positions and comments. A [Schema]
// is what it compiles to: definitions, each a type of object with its relations
// (what tuples store) and permissions (what follows), and caveats (conditions on
// tuples). A [Rewrite] is the tree that a permission compiles to, of eight kinds
// and no more. A [Caveat] is a compiled CEL expression.
//
//	text --Parse--> File --Compile--> Schema
//	                 |  \--Format--> text          |  \--Print--> text
//	                 \-----Lint----> warnings      \------Diff--> changes
//
// The language is a superset of the SpiceDB schema language; docs/schema.md is
// its manual.
//
// # Invariants
//
//   - Compile is a function of the text. It runs on every node in the order of the
//     log and must judge alike everywhere: nothing in it depends on the order of a
//     map, on time or on the machine.
//   - Every name in a Schema resolves. An evaluator that finds a Computed, the
//     Relation of an Arrow, a type or a caveat missing has found a bug. Only the
//     Name of an Arrow may be missing, on some of the types it reaches or on all.
//   - A name does not reach itself through Computed alone, so the walk over one
//     object ends without looking at tuples.
//   - Compile(Parse(Print(s))) equals s, Compile(Parse(Format(f))) equals
//     Compile(f), and Format and Print of their own output change nothing.
//   - An error is certain: a type error in a text with syntax errors stays one
//     however these are repaired. What depends on a statement that could not be
//     read is not judged.
//   - No text takes the process down or holds it up: sizes, nesting and expansion
//     are bounded, and what exceeds a bound is an [Error] that says so. A caveat may
//     be as costly as its author likes; what is bounded is one evaluation of it.
//
// # Example
//
//	file, err := schema.Parse("org.pemba", text)
//	if err != nil {
//		return err // of type schema.Errors: all mistakes, with line and column
//	}
//	s, err := schema.Compile(file)
//	if err != nil {
//		return err
//	}
//	view := s.Definition("document").Permission("view")
//	fmt.Println(schema.RewriteString(view.Rewrite)) // viewer + parent->view
package schema
