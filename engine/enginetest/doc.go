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
//	write [create] [actor=A] [request=ID]
//	                                touches (or creates) the tuples, one a line;
//	                                "delete TUPLE" deletes one, "if FILTER" and
//	                                "unless FILTER" are preconditions
//	delete FILTER [limit=N] [partial]
//	check [trace]                   asks each line object#name@subject
//	stage NAME [chunk=N] [create] [request=ID]
//	                                adds the tuples, one a line, to a staged change
//	commit-stage NAME chunks=N [actor=A] [request=ID]
//	drop-stage NAME
//	collect-stages                  drops those that nobody went on with for a day
//	stages                          what is staged
//	expand                          each line object#name
//	lookup-resources [limit=N] [after=N]   each line type#name@subject
//	lookup-subjects [limit=N] [after=N]    each line object#name@type[#relation]
//	count-resources                 as lookup-resources, but how many
//	count-subjects                  as lookup-subjects, but how many
//	read                            each line FILTER
//	count                           each line FILTER
//	changes                         the change log
//	clock SECONDS                   moves the clock on
//	collect                         ends tuples whose lifetime is over
//	stores                          the stores, by name
//	create-store NAME [history=SECONDS] [log=SECONDS] [tuples_max=N]
//	set-store                       takes the settings of create-store
//	drop-store                      drops the store in use
//	use NAME                        is the store of all commands that follow
//	schemas                         the schemas kept, the newest first
//	prune                           forgets what is older than the retention
//	remove                          removes what was pruned from the disk
//	restart                         closes and opens the graph
//	reset                           begins anew with an empty graph
//
// All questions take at=REVISION or as_of=TIME (RFC 3339), and steps=N (a budget).
// Retentions are in seconds, or "forever". Among their lines,
// "context {…}" gives values for caveats, and "add TUPLE" and "remove TUPLE" an
// overlay, for the lines below. A FILTER is pairs: object_type=document
// subject_id=anne.
//
// Time in scripts begins at 2026-01-01T00:00:00Z and moves by the clock command
// alone.
//
// # Worlds
//
// Beside the console stands World, the random schemas, tuples and contexts that the
// twin tests of the engine and of the wire ask about.
package enginetest
