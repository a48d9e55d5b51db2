// Package assertion runs assertion files: a schema, tuples, and what must hold
// of them. It needs no server; each file gets a graph of its own in memory, and
// the questions go to the same engine that answers them in a cluster.
//
// The files are YAML in the format that SpiceDB's validation files have, with
// one more key, tuplesFile:
//
//	schemaFile: schema.pemba        # or schema: with the text
//	tuplesFile: tuples.txt          # or relationships: with the text, or both
//	assertions:
//	  assertTrue:
//	    - "document:readme#view@user:anne"
//	    - 'document:readme#view@user:bob with {"day": "monday"}'
//	  assertCaveated:
//	    - "document:readme#view@user:bob"
//	  assertFalse:
//	    - "document:readme#view@user:carl"
//	validation:                     # the complete list of who has it, and by which tuples
//	  document:readme#view:
//	    - "[user:anne] is <document:readme#viewer>"
//	    - "[user:bob[...]] is <document:readme#viewer>/<group:eng#member>"
//	    - "[user:* - {user:carl}] is <document:readme#reader>"
//
// A Failure carries the file and line of what failed, so that editors can jump
// there. Load reports what cannot be read at all; Run what does not hold.
package assertion
