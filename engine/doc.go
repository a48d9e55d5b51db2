// Package engine is the deterministic core of Pemba: it answers questions about
// a graph held still, and judges mutations of it. It has no clock, no network
// and no randomness.
//
// A schema turns every relation and permission into a rewrite: a tree of unions,
// intersections and exclusions over stored tuples, other names of the same
// object, and arrows to names of other objects. With the tuples of a store,
// "subject s has name n on object o" is an equation whose right side mentions
// other such sentences, and a Check asks for its value:
//
//	document:readme#view = document:readme#viewer or folder:eng#view
//	folder:eng#view      = folder:eng#viewer or folder:all#view
//
// The values are denied, conditional and allowed: a tuple may carry a caveat,
// whose parameters may be missing. Where data has cycles the value is that of
// the well-founded model (type walk explains how it is found, type value what
// is computed with). What nests, such as groups in groups, is answered from the
// subject's end (type nesting), and what takes nothing away, such as rights that come from
// folders above, is searched and not evaluated (type climb).
//
// # Nouns
//
// An Engine belongs to a graph.DB. A Snapshot is a store at a revision and an
// instant; Check, CheckBulk, Expand, LookupResources and LookupSubjects are asked
// of it, all by one evaluator, and their answers agree: a lookup returns exactly
// what checks would allow. Apply judges a graph.Mutation and commits it.
//
// What cannot be answered or applied as asked is a *Refusal with a Reason; any
// other error is a fault of the node or the end of the caller's context.
//
// # Invariants
//
//   - An answer depends on the snapshot and the question alone, not on caches, on
//     the node, or on the order in which tuples arrived.
//   - Every tuple stored fits the schema of its revision: Apply lets in no tuple
//     that does not fit, and no schema that stored tuples do not fit.
//   - Apply decides the same on every node: it reads only the graph as of the
//     last commit, the entry's stamp and the mutation.
//   - A question never outgrows its budget by more than one chunk of edges. What
//     Apply evaluates has no budget.
//
// # Example
//
//	s, err := e.Snapshot(graph.DefaultStore, 0, now, graph.Overlay{})
//	if err != nil {
//		return err
//	}
//	defer s.Close()
//	answer, err := s.Check(ctx, engine.Check{
//		Object:  graph.Object{Type: "document", ID: "readme"},
//		Name:    "view",
//		Subject: graph.Subject{Object: graph.Object{Type: "person", ID: "anne"}},
//	})
package engine
