package engine

import "math/bits"

// An index finds the cell of a key: a hash table with open addressing that is
// emptied in one step, so that a question begins on clean memory without
// touching all of it.
type index struct {
	slots []slot
	// mask is len(slots) - 1; len(slots) is a power of two.
	mask uint64
	// used counts the slots of the current round. Invariant: used <= len(slots) / 2.
	used  int
	round uint32
}

type slot struct {
	key   uint64
	cell  int32
	round uint32 // the slot is empty unless this is the index's round
}

const indexSlotsMin = 256

// reset empties the index.
func (x *index) reset() {
	x.round++
	if x.round == 0 || len(x.slots) == 0 {
		// The round has come around (or this is the first): old marks would
		// look like new ones.
		x.slots = make([]slot, indexSlotsMin)
		x.mask = indexSlotsMin - 1
		x.round = 1
	}
	x.used = 0
}

func (x *index) hash(key uint64) uint64 {
	high, low := bits.Mul64(key^0x9e3779b97f4a7c15, 0xd6e8feb86659fd93)
	return high ^ low
}

func (x *index) find(key uint64) (cell int32, found bool) {
	for i := x.hash(key) & x.mask; ; i = (i + 1) & x.mask {
		s := &x.slots[i]
		if s.round != x.round {
			return 0, false
		}
		if s.key == key {
			return s.cell, true
		}
	}
}

// replace gives a key that find found another cell.
func (x *index) replace(key uint64, cell int32) {
	for i := x.hash(key) & x.mask; ; i = (i + 1) & x.mask {
		if s := &x.slots[i]; s.round == x.round && s.key == key {
			s.cell = cell
			return
		}
	}
}

// insert adds a key that find did not find.
func (x *index) insert(key uint64, cell int32) {
	if x.used >= len(x.slots)/2 {
		old, round := x.slots, x.round
		x.slots = make([]slot, 2*len(old))
		x.mask = uint64(len(x.slots) - 1)
		x.round = 1
		for _, s := range old {
			if s.round == round {
				x.place(s.key, s.cell)
			}
		}
	}
	x.place(key, cell)
	x.used++
}

func (x *index) place(key uint64, cell int32) {
	i := x.hash(key) & x.mask
	for x.slots[i].round == x.round {
		i = (i + 1) & x.mask
	}
	x.slots[i] = slot{key: key, cell: cell, round: x.round}
}
