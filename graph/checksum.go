package graph

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
)

// The checksum tells whether two nodes that applied the same entries hold the
// same. It is a chain: each commit hashes what it is about to write, the bytes of
// its batch in their order, together with the value before it. So whatever makes
// a batch must follow from the entries alone, the order of its operations too:
// nothing that is written may come out of a map as it happens to lie there.
//
// Not in it are the applied record, in which it stands itself, and what a node
// does by itself: what Remove removes and what Open rewrites of older formats. Nor
// may it see how a staged change was cut into batches, for a crash may cut it
// otherwise: there the operations of each edge are hashed on their own, in the
// order of edges, and the marker takes along what that has come to.

// batchHeaderLen is what comes before the first operation of a Pebble batch. Its
// operations are those of Pebble's log format, which no version of it may change.
const batchHeaderLen = 12

// check brings the checksum to the revision that is about to be applied. Staged is
// what the edges of a staged change came to, zero for none, and content all other
// operations of the revision.
func (a *Applied) check(staged uint64, content []byte) {
	if a.ChecksumSince == 0 {
		return
	}
	var head [5 * 8]byte
	for i, v := range [...]uint64{a.Checksum, uint64(a.Revision), a.Term, uint64(a.Stamp), staged} {
		binary.BigEndian.PutUint64(head[8*i:], v)
	}
	a.Checksum = chain(head[:], content)
}

// chainEdge hashes the operations of one edge of a staged change with what those
// before it came to.
func chainEdge(before uint64, operations []byte) uint64 {
	var head [8]byte
	binary.BigEndian.PutUint64(head[:], before)
	return chain(head[:], operations)
}

func chain(head, content []byte) uint64 {
	var d xxhash.Digest
	d.Reset()
	_, _ = d.Write(head) // A hash never fails.
	_, _ = d.Write(content)
	return d.Sum64()
}
