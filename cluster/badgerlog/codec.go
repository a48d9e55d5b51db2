package badgerlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/hashicorp/raft"
)

// What stands in Badger.
//
//	key            value
//	'e' index      an entry; the index is eight bytes, big-endian
//	'r'            the record
//	's'            the stable values
//
// Each value begins with the format's number and its xxhash64. (Badger's own
// checksums are CRC32C, so the two have no weakness in common.)
const (
	keyEntryPrefix = 'e'
	keyBytes       = 9 // Of an entry's key.

	formatEntry  = 1
	formatRecord = 1
	formatStable = 1

	sumOffset = 1
	sumEnd    = sumOffset + 8
)

var (
	keyRecord = []byte{'r'}
	keyStable = []byte{'s'}
)

// appendEntryKey appends the key of the entry at index.
func appendEntryKey(b []byte, index uint64) []byte {
	return binary.BigEndian.AppendUint64(append(b, keyEntryPrefix), index)
}

// entryHeaderBytes is what stands before extensions and data: format, sum, the
// sum of the entry before, type, term, seconds, nanoseconds, length of the
// extensions.
const entryHeaderBytes = sumEnd + 8 + 1 + 8 + 8 + 4 + 4

func entryBytes(e *raft.Log) int { return entryHeaderBytes + len(e.Extensions) + len(e.Data) }

// appendEntry appends the value of an entry whose predecessor has the sum prev,
// and returns the entry's own sum.
func appendEntry(b []byte, e *raft.Log, prev uint64) (value []byte, sum uint64) {
	start := len(b)
	b = append(b, formatEntry)
	b = append(b, make([]byte, 8)...) // The sum's place.
	b = binary.BigEndian.AppendUint64(b, prev)
	b = append(b, byte(e.Type))
	b = binary.BigEndian.AppendUint64(b, e.Term)
	b = binary.BigEndian.AppendUint64(b, uint64(e.AppendedAt.Unix()))
	b = binary.BigEndian.AppendUint32(b, uint32(e.AppendedAt.Nanosecond()))
	b = binary.BigEndian.AppendUint32(b, uint32(len(e.Extensions)))
	b = append(b, e.Extensions...)
	b = append(b, e.Data...)
	sum = entrySum(e.Index, b[start:])
	binary.BigEndian.PutUint64(b[start+sumOffset:], sum)
	return b, sum
}

// entrySum is over the index and all of the value but the sum's own place.
func entrySum(index uint64, value []byte) uint64 {
	var head [9]byte
	binary.BigEndian.PutUint64(head[:], index)
	head[8] = value[0]
	var d xxhash.Digest
	d.Reset()
	_, _ = d.Write(head[:])        // A Digest's Write never fails.
	_, _ = d.Write(value[sumEnd:]) // Nor here.
	return d.Sum64()
}

// link is what the chain of entries is made of.
type link struct {
	sum, prev uint64
	term      uint64
}

// checkEntry verifies the value of the entry at index without copying it.
func checkEntry(index uint64, value []byte) (link, error) {
	if len(value) < entryHeaderBytes {
		return link{}, fmt.Errorf("its value has %d bytes, at least %d were written", len(value), entryHeaderBytes)
	}
	if value[0] != formatEntry {
		return link{}, fmt.Errorf("its format is %d, and %d is known", value[0], formatEntry)
	}
	sum := binary.BigEndian.Uint64(value[sumOffset:])
	if found := entrySum(index, value); found != sum {
		return link{}, fmt.Errorf("its checksum is %016x, and %016x was written", found, sum)
	}
	if n := extensionsBytes(value); uint64(n) > uint64(len(value)-entryHeaderBytes) {
		return link{}, fmt.Errorf("it claims %d bytes of extensions in a value of %d", n, len(value))
	}
	return link{sum: sum, prev: binary.BigEndian.Uint64(value[sumEnd:]), term: binary.BigEndian.Uint64(value[sumEnd+9:])}, nil
}

func extensionsBytes(value []byte) uint32 {
	return binary.BigEndian.Uint32(value[entryHeaderBytes-4:])
}

// decodeEntry verifies the value of the entry at index and copies it to out,
// all fields of which it sets. Empty data and extensions become nil.
func decodeEntry(index uint64, value []byte, out *raft.Log) (link, error) {
	l, err := checkEntry(index, value)
	if err != nil {
		return link{}, err
	}
	at := sumEnd + 8
	seconds := int64(binary.BigEndian.Uint64(value[at+9:]))
	nanoseconds := int64(binary.BigEndian.Uint32(value[at+17:]))
	*out = raft.Log{
		Index:      index,
		Term:       l.term,
		Type:       raft.LogType(value[at]),
		AppendedAt: time.Unix(seconds, nanoseconds).UTC(),
	}
	n := int(extensionsBytes(value))
	if body := slices.Clone(value[entryHeaderBytes:]); len(body) > 0 {
		if n > 0 {
			out.Extensions = body[:n:n]
		}
		if n < len(body) {
			out.Data = body[n:]
		}
	}
	return l, nil
}

// record is what each transaction writes anew: the truth about the log.
//
// Invariants:
//
//	first == 0 exactly if last == 0: the log is empty.
//	first <= last
//	low <= first and last <= high, where the log is not empty.
//	next == 0 unless the log is empty.
type record struct {
	seq  uint64 // Number of this transaction; 1 is the first.
	next uint64 // Index that an empty log must begin with; 0 means any.

	first, last uint64 // The entries of the log.
	lastTerm    uint64 // Term of the entry at last.
	tip         uint64 // Sum of the entry at last; 0 if empty.

	low, high uint64 // Where entry keys may exist in Badger; 0, 0 if nowhere.

	commit    uint64 // Highest answer of Config.CommitIndex since the last wipe.
	stableSum uint64 // Sum of the stable values; 0 if there are none.
}

const recordBytes = sumEnd + 10*8

func (r *record) fields() [10]*uint64 {
	return [...]*uint64{
		&r.seq, &r.next, &r.first, &r.last, &r.lastTerm,
		&r.tip, &r.low, &r.high, &r.commit, &r.stableSum,
	}
}

func (r *record) encode() []byte {
	b := make([]byte, sumEnd, recordBytes)
	b[0] = formatRecord
	for _, f := range r.fields() {
		b = binary.BigEndian.AppendUint64(b, *f)
	}
	binary.BigEndian.PutUint64(b[sumOffset:], xxhash.Sum64(b[sumEnd:]))
	return b
}

func decodeRecord(value []byte) (record, error) {
	if len(value) != recordBytes || value[0] != formatRecord {
		return record{}, errors.New("its record has an unknown format")
	}
	if xxhash.Sum64(value[sumEnd:]) != binary.BigEndian.Uint64(value[sumOffset:]) {
		return record{}, errors.New("the checksum of its record is wrong")
	}
	var r record
	for i, f := range r.fields() {
		*f = binary.BigEndian.Uint64(value[sumEnd+8*i:])
	}
	return r, r.check()
}

// check verifies the invariants of a record.
func (r *record) check() error {
	empty := r.first == 0
	switch {
	case r.seq == 0,
		empty != (r.last == 0),
		r.first > r.last,
		r.low > r.high,
		(r.low == 0) != (r.high == 0),
		!empty && (r.low > r.first || r.high < r.last || r.next != 0):
		return fmt.Errorf("its record contradicts itself: %+v", *r)
	}
	return nil
}

// encodeStable returns the stable values as one value, and its sum.
func encodeStable(values map[string][]byte) (value []byte, sum uint64) {
	b := make([]byte, sumEnd)
	b[0] = formatStable
	for _, key := range slices.Sorted(maps.Keys(values)) {
		b = binary.AppendUvarint(b, uint64(len(key)))
		b = append(b, key...)
		b = binary.AppendUvarint(b, uint64(len(values[key])))
		b = append(b, values[key]...)
	}
	sum = xxhash.Sum64(b[sumEnd:])
	binary.BigEndian.PutUint64(b[sumOffset:], sum)
	return b, sum
}

func decodeStable(value []byte) (values map[string][]byte, sum uint64, err error) {
	if len(value) < sumEnd || value[0] != formatStable {
		return nil, 0, errors.New("its stable values have an unknown format")
	}
	sum = binary.BigEndian.Uint64(value[sumOffset:])
	if xxhash.Sum64(value[sumEnd:]) != sum {
		return nil, 0, errors.New("the checksum of its stable values is wrong")
	}
	rest := value[sumEnd:]
	take := func() []byte {
		n, width := binary.Uvarint(rest)
		if width <= 0 || n > uint64(len(rest)-width) {
			err = errors.New("its stable values are cut short")
			rest = nil
			return nil
		}
		part := rest[width : width+int(n)]
		rest = rest[width+int(n):]
		return part
	}
	values = map[string][]byte{}
	for len(rest) > 0 {
		key := take()
		if err == nil && len(rest) == 0 {
			err = errors.New("its stable values are cut short")
		}
		value := take()
		if err != nil {
			return nil, 0, err
		}
		values[string(key)] = slices.Clone(value)
	}
	return values, sum, nil
}
