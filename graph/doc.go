// Package graph stores tuples and reads them back as of a revision.
//
// # Nouns
//
// A Tuple is a stored edge object#relation@subject, with an optional caveat and
// lifetime. A DB keeps the tuples of every store in one directory, in Pebble. A
// Commit is everything that one Revision changes; it is the only way to write,
// and what it did stands in the change log. What became of a request can be
// remembered with it, so that a request which comes twice is made once. A Snapshot
// is one store held still at a revision, with lifetimes judged at an Instant; it is
// the only way to read tuples. A Mutation is a request for change as it stands in
// the Raft log; this package encodes it, but does not judge it: the engine turns it
// into a Commit.
//
// # Numbers
//
// Names are long and repeat, so a store gives each a number when it first meets
// it: a Shape for a type with or without a relation, a Number for an object among
// those of its type, a CaveatNumber for a caveat. The evaluator works in numbers
// (Find, Subjects, Objects), everything else in names (Get, Read). A snapshot
// gives numbers of its own, from EphemeralNumber up, to names that no stored
// tuple has, so that a question about a new object is a question like any other.
//
// # Invariants
//
// CheckInvariants holds those that can be read off the disk; tests run it.
//
//   - Commits come in ascending order of revision, and the applied revision is
//     part of the batch that a Commit writes: after any crash, a DB is exactly
//     what it was at its applied revision.
//   - Given the same commits, two DBs hold the same bytes, but for what each has
//     removed already of what was pruned: numbers are given out in the order of
//     the changes and never again, those of stores too.
//   - The checksum in Applied is of all that was committed, so that DBs which hold
//     the same can be told from those which do not.
//   - Each tuple stands in two records, by object and by subject, that agree.
//   - Current and ended tuples are apart, so that reading the newest state pays
//     nothing for history. A tuple is seen at revision r if created <= r and, once
//     it ended, r < ended.
//   - What a snapshot shows never changes, whatever is committed, pruned, dropped
//     or removed meanwhile.
//   - What is below a store's floors cannot be read, whether or not this node has
//     removed it. What is at or above them is as it was.
//
// # Durability
//
// Pebble runs without a write-ahead log of its own, for the Raft log is one: a
// Commit is durable after the next Flush, and until then the log must keep its
// entry. Durable says how far the log may be cut.
//
// # Cost
//
// A lookup in the newest state is some accesses to memory where package resident has
// it, which is everything while there is room. Else it costs some microseconds when the
// block is in the cache, and allocates nothing; an absent object or subject is mostly known from a filter without
// reading a block. The first snapshot after a Commit costs some microseconds, the
// others a fraction of one. A plain tuple takes about 30 bytes on disk, both
// directions and names included, and half as much again in the change log.
//
// The bytes are drawn in docs/format.md; codec.go is the only code that writes
// them.
package graph
