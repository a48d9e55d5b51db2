// Package enginetest is the script console of the engine: it runs commands
// written in the datadriven form against a real engine over a real graph in
// memory. The scripts in engine/testdata are the manual of what the engine
// does; each begins with a sentence, gives a command, and shows the reply.
//
//	# A viewer of the folder may view the document, through the arrow.
//	schema
//	definition person {}
//	definition folder { relation viewer: person }
//	definition document {
//	    relation parent: folder
//	    permission view = parent->viewer
//	}
//	----
//	revision 2
//
//	write
//	document:readme#parent@folder:eng
//	folder:eng#viewer@person:anne
//	----
//	revision 3: 2 changed
//
//	check
//	document:readme#view@person:anne
//	----
//	allowed
//
// # Commands
//
// A command may have arguments (at=3) and lines of input:
//
//	schema                          writes the input as schema
//	write [create]                  touches (or creates) the tuples, one a line;
//	                                "delete TUPLE" deletes one, "if FILTER" and
//	                                "unless FILTER" are preconditions
//	delete FILTER [limit=N] [partial]
//	check [trace]                   asks each line object#name@subject
//	expand                          each line object#name
//	lookup-resources [limit=N] [after=N]   each line type#name@subject
//	lookup-subjects [limit=N] [after=N]    each line object#name@type[#relation]
//	read                            each line FILTER
//	changes                         the change log
//	clock SECONDS                   moves the clock on
//	collect                         ends tuples whose lifetime is over
//	restart                         closes and opens the graph
//	reset                           begins anew with an empty graph
//
// All questions take at=REVISION and steps=N (a budget). Among their lines,
// "context {…}" gives values for caveats, and "add TUPLE" and "remove TUPLE" an
// overlay, for the lines below. A FILTER is pairs: object_type=document
// subject_id=anne.
//
// Time in scripts begins at 2026-01-01T00:00:00Z and moves by the clock command
// alone.
package enginetest
