package resident

import (
	"encoding/binary"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
)

// Names keeps the numbers of objects' ids in memory. A name never changes its number and
// is never taken back, so that a reader needs no revision: what it finds too early has
// no edges at its revision yet. Readers take no lock.
type Names struct {
	seed      maphash.Seed
	directory atomic.Pointer[directory[nameSegment]]
	// complete says that a name which is not there has no number.
	complete atomic.Bool
	// numbers finds the hash of the name that has a number, by type.
	numbers atomic.Pointer[[]*numberTable]
	bytes   atomic.Int64
	total   *atomic.Int64 // guarded by mu

	mu        sync.Mutex
	forgotten bool // guarded by mu
}

// A nameSegment holds names whose hashes begin alike: an open addressed table of places
// in an arena, to which names are only ever added.
type nameSegment struct {
	// slots hold 32 bits of the hash, and 1 more than the place in the arena; 0 for none.
	// Invariant: used <= 7/8 of the slots.
	slots []uint64
	used  int
	depth uint
	// arena holds, for each name, its number, its type, the length of the id and the
	// id. What was published is never written to again.
	arena atomic.Pointer[[]byte]
}

// A numberTable holds the hashes of the names of one type, by their numbers, which are
// given out without gaps; 0 for none. It grows by chunks, which stay where they are.
type numberTable struct {
	chunks atomic.Pointer[[]*[numbersChunk]uint64]
}

const numbersChunk = 512

func (t *numberTable) get(number uint64) uint64 {
	chunks := *t.chunks.Load()
	if i := number / numbersChunk; i < uint64(len(chunks)) && chunks[i] != nil {
		return atomic.LoadUint64(&chunks[i][number%numbersChunk])
	}
	return 0
}

// put returns how many bytes more the table takes.
func (t *numberTable) put(number, hash uint64) (bytes int64) {
	chunks := *t.chunks.Load()
	i := number / numbersChunk
	if i >= uint64(len(chunks)) {
		grown := make([]*[numbersChunk]uint64, max(int(i)+1, len(chunks)+len(chunks)/4))
		copy(grown, chunks)
		bytes = int64(8 * (len(grown) - len(chunks)))
		chunks = grown
	} else if chunks[i] == nil {
		chunks = slices.Clone(chunks)
	}
	if chunks[i] == nil {
		chunks[i] = new([numbersChunk]uint64)
		bytes += 8 * numbersChunk
	}
	t.chunks.Store(&chunks)
	atomic.StoreUint64(&chunks[i][number%numbersChunk], hash)
	return bytes
}

const (
	slotsMin = 8
	// slotsMax is how large a segment grows before it becomes two.
	slotsMax = 1 << 11

	nameSegmentBytes = 96
	nameHeadMax      = 3*binary.MaxVarintLen64 + 1
)

func newNameSegment(slots int, depth uint, arena int) *nameSegment {
	s := &nameSegment{slots: make([]uint64, slots), depth: depth}
	names := make([]byte, 0, arena)
	s.arena.Store(&names)
	return s
}

func (s *nameSegment) bytes() int64 {
	return nameSegmentBytes + int64(8*len(s.slots)) + int64(cap(*s.arena.Load()))
}

// NewNames returns names that know nothing. What they take is added to total.
func NewNames(total *atomic.Int64) *Names {
	n := &Names{seed: maphash.MakeSeed(), total: total}
	s := newNameSegment(slotsMin, 0, 0)
	n.directory.Store(newDirectory(s))
	n.numbers.Store(new([]*numberTable))
	n.took(s.bytes())
	return n
}

func (n *Names) took(bytes int64) {
	n.bytes.Add(bytes)
	n.total.Add(bytes)
}

// Bytes is about what the names take.
func (n *Names) Bytes() int64 { return n.bytes.Load() }

// Forget ends the names' part in the total. Readers may still ask them; what is not
// complete never will be.
func (n *Names) Forget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.forgotten {
		return
	}
	n.forgotten = true
	n.total.Add(-n.bytes.Load())
	n.total = new(atomic.Int64)
}

// Complete says that all names were added: from then on one that is not there has no
// number.
func (n *Names) Complete() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.complete.Store(!n.forgotten)
}

func (n *Names) hash(typ uint32, id string) uint64 {
	return (maphash.String(n.seed, id)^uint64(typ))*0x9e3779b97f4a7c15 | 1<<20 // never 0
}

// tag is the part of a hash that stands in a slot: bits that tell apart what the place
// of the slot does not.
func tag(hash uint64) uint64 { return hash << 16 & 0xffffffff_00000000 }

// Find returns the number of a name. known is false if the names cannot tell; without a
// number, there is none.
func (n *Names) Find(typ uint32, id string) (number uint64, found, known bool) {
	complete := n.complete.Load() // first: a name that is added later is of later revisions
	h := n.hash(typ, id)
	number, found = n.directory.Load().segment(h).find(h, typ, id)
	return number, found, found || complete
}

func (s *nameSegment) find(h uint64, typ uint32, id string) (number uint64, found bool) {
	mask := len(s.slots) - 1
	for i := int(h) & mask; ; i = (i + 1) & mask {
		slot := atomic.LoadUint64(&s.slots[i])
		if slot == 0 {
			return 0, false
		}
		if slot&^0xffffffff != tag(h) {
			continue
		}
		arena := *s.arena.Load()
		if number, t, name := nameAt(arena[uint32(slot)-1:]); t == typ && string(name) == id {
			return number, true
		}
	}
}

// ID returns the id that a number of a type was given to; ok is false if that is not
// known.
func (n *Names) ID(typ uint32, number uint64) (id string, ok bool) {
	tables := *n.numbers.Load()
	if int(typ) >= len(tables) || tables[typ] == nil {
		return "", false
	}
	h := tables[typ].get(number)
	if h == 0 {
		return "", false
	}
	s := n.directory.Load().segment(h)
	mask := len(s.slots) - 1
	for i := int(h) & mask; ; i = (i + 1) & mask {
		slot := atomic.LoadUint64(&s.slots[i])
		if slot == 0 {
			return "", false
		}
		if slot&^0xffffffff != tag(h) {
			continue
		}
		arena := *s.arena.Load()
		if x, t, name := nameAt(arena[uint32(slot)-1:]); t == typ && x == number {
			return string(name), true
		}
	}
}

// setNumber notes the hash of the name that has a number. A number beyond NumberMax is
// not noted: the table would be as long as the number is high.
func (n *Names) setNumber(typ uint32, number, h uint64) {
	if number > NumberMax {
		return
	}
	tables := *n.numbers.Load()
	if int(typ) >= len(tables) || tables[typ] == nil {
		grown := make([]*numberTable, max(len(tables), int(typ)+1))
		copy(grown, tables)
		grown[typ] = &numberTable{}
		grown[typ].chunks.Store(new([]*[numbersChunk]uint64))
		n.numbers.Store(&grown)
		n.took(int64(8 * (len(grown) - len(tables))))
		tables = grown
	}
	n.took(tables[typ].put(number, h))
}

// nameAt reads the name at the beginning of a part of an arena.
func nameAt(b []byte) (number uint64, typ uint32, id []byte) {
	number, i := binary.Uvarint(b)
	t, j := binary.Uvarint(b[i:])
	length, k := binary.Uvarint(b[i+j:])
	id = b[i+j+k:]
	return number, uint32(t), id[:length]
}

// Add gives a name its number, where numbers come about in their order. A name that is
// there already must have the same.
func (n *Names) Add(typ uint32, id string, number uint64) { n.add(typ, id, number, true) }

// Keep is Add for a name among many that are not kept. ID does not know it: the table
// of numbers is for those that come without gaps.
func (n *Names) Keep(typ uint32, id string, number uint64) { n.add(typ, id, number, false) }

func (n *Names) add(typ uint32, id string, number uint64, numbered bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.hash(typ, id)
	s := n.directory.Load().segment(h)
	if _, found := s.find(h, typ, id); found {
		if numbered {
			n.setNumber(typ, number, h) // It may have been kept without.
		}
		return
	}
	for s.used+1 > len(s.slots)*7/8 {
		parts := s.rebuild(n)
		delta := -s.bytes()
		for _, p := range parts {
			delta += p.bytes()
		}
		n.directory.Store(n.directory.Load().replace(h, s.depth, parts...))
		n.took(delta)
		s = n.directory.Load().segment(h)
	}
	before := s.bytes()
	s.add(h, typ, id, number)
	n.took(s.bytes() - before)
	if numbered {
		n.setNumber(typ, number, h)
	}
}

// add adds a name that is not there. The segment is not full.
func (s *nameSegment) add(h uint64, typ uint32, id string, number uint64) {
	arena := *s.arena.Load()
	if need := len(arena) + nameHeadMax + len(id); need > cap(arena) {
		arena = append(make([]byte, 0, max(need, len(arena)+len(arena)/4)), arena...)
	}
	at := len(arena)
	arena = binary.AppendUvarint(arena, number)
	arena = binary.AppendUvarint(arena, uint64(typ))
	arena = binary.AppendUvarint(arena, uint64(len(id)))
	arena = append(arena, id...)
	s.arena.Store(&arena)
	mask := len(s.slots) - 1
	i := int(h) & mask
	for s.slots[i] != 0 {
		i = (i + 1) & mask
	}
	atomic.StoreUint64(&s.slots[i], tag(h)|uint64(at+1))
	s.used++
}

// rebuild makes a segment with more room, or two of one bit more, with what this one
// holds.
func (s *nameSegment) rebuild(n *Names) []*nameSegment {
	arena := *s.arena.Load()
	var parts []*nameSegment
	if size := 2 * len(s.slots); size <= slotsMax {
		parts = []*nameSegment{newNameSegment(size, s.depth, 2*len(arena))}
	} else {
		half := len(arena)*9/16 + nameHeadMax
		parts = []*nameSegment{newNameSegment(slotsMax, s.depth+1, half), newNameSegment(slotsMax, s.depth+1, half)}
	}
	for _, slot := range s.slots {
		if slot == 0 {
			continue
		}
		number, typ, id := nameAt(arena[uint32(slot)-1:])
		h := n.hash(typ, string(id))
		to := parts[0]
		if len(parts) == 2 {
			to = parts[h>>(64-to.depth)&1]
		}
		to.add(h, typ, string(id), number)
	}
	return parts
}
