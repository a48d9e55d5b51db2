package resident

import (
	"slices"
	"sync/atomic"
)

// A segment holds the lists of the near ends whose hashes begin alike: an open
// addressed table of keys and lists, and an arena with their blocks. It is small, so
// that to make it larger, or two of it, takes microseconds.
//
// Readers take no lock. What they may see while the one writer is at work is a list
// that is half changed, or a block that is another list's by now; both only if the key
// that they look for is being changed, which they find out afterwards (Graph.Find).
// A slot, once it has a key, keeps it as long as the segment lives: so to change one
// key never moves another.
type segment struct {
	// slots holds keys at even places and their lists behind them; 0 is no key.
	// Invariant: at most loadMax of the slots have a key.
	slots []uint64
	used  int
	// depth is how many leading bits of the hash all keys share.
	depth uint
	// complete says that a key without a slot has no edges; else nothing is known of
	// it.
	complete atomic.Bool
	// wanted is set by who looks at the segment, and cleared by who looks for one to
	// give up.
	wanted atomic.Bool

	arena atomic.Pointer[block]
	// end is how much of the arena was ever given out; free are the offsets of the
	// blocks that were given back, by class.
	end  uint32
	free [len(classes)][]uint32
	// trees are the long lists. A place is nil when it may be used again.
	trees atomic.Pointer[[]*tree]
	// treeBytes is what they take.
	treeBytes int64
}

const (
	slotsMin = 8
	// slotsMax is how large a segment grows before it becomes two.
	slotsMax = 1 << 11
	arenaMin = 32
)

func newSegment(slots int, depth uint, complete bool) *segment {
	s := &segment{slots: make([]uint64, 2*slots), depth: depth}
	s.complete.Store(complete)
	s.arena.Store(new(block))
	s.trees.Store(new([]*tree))
	return s
}

// full says that no further key fits.
func (s *segment) full() bool { return s.used+1 > len(s.slots)/2*7/8 }

// segmentBytes is about what a segment takes beside its slices.
const segmentBytes = 512

func (s *segment) bytes() int64 {
	return segmentBytes + int64(8*len(s.slots)) + int64(4*len(*s.arena.Load())) + s.treeBytes
}

// find returns the place of a key's list.
func (s *segment) find(key, hash uint64) (place int, found bool) {
	slots := s.slots
	mask := len(slots) - 1
	for i := int(hash<<1) & mask; ; i = (i + 2) & mask {
		switch atomic.LoadUint64(&slots[i]) {
		case key:
			return i + 1, true
		case 0:
			return i, false
		}
	}
}

func (s *segment) list(place int) list { return list(atomic.LoadUint64(&s.slots[place])) }

func (s *segment) setList(place int, l list) { atomic.StoreUint64(&s.slots[place], uint64(l)) }

// add gives a key that find did not find a slot. The segment is not full.
func (s *segment) add(key, hash uint64, l list) {
	i, _ := s.find(key, hash)
	s.setList(i+1, l)
	atomic.StoreUint64(&s.slots[i], key)
	s.used++
}

// blockOf returns the elements of a list in the arena; what there is of it, if the
// list is being changed.
func (s *segment) blockOf(l list) block {
	_, count, offset := l.block()
	arena := *s.arena.Load()
	if uint64(offset)+uint64(count) > uint64(len(arena)) {
		return nil
	}
	return arena[offset : offset+count]
}

// treeOf returns the root of a long list; nil if it is being changed.
func (s *segment) treeOf(l list) *node {
	trees := *s.trees.Load()
	if i := l.tree(); i < len(trees) && trees[i] != nil {
		return trees[i].root.Load()
	}
	return nil
}

// element looks for a number in a list.
func (s *segment) element(l list, number uint32) (Element, bool) {
	switch l.tag() {
	case tagOne:
		e := l.one()
		return e, e.Number() == number
	case tagTwo:
		a, b := l.two()
		if a.Number() == number {
			return a, true
		}
		return b, b.Number() == number
	case tagBlock:
		b := s.blockOf(l)
		if i := b.search(number); i < len(b) {
			e := b.at(i)
			return e, e.Number() == number
		}
		return 0, false
	}
	if l.isTree() {
		if root := s.treeOf(l); root != nil {
			return root.find(number)
		}
	}
	return 0, false
}

// appendFrom appends up to limit elements of a list, from a number on.
func (s *segment) appendFrom(dst []Element, l list, from uint32, limit int) []Element {
	some := func(e Element) {
		if e.Number() >= from && limit > 0 {
			dst = append(dst, e)
			limit--
		}
	}
	switch l.tag() {
	case tagOne:
		some(l.one())
	case tagTwo:
		a, b := l.two()
		some(a)
		some(b)
	case tagBlock:
		b := s.blockOf(l)
		i := 0
		if from > 0 {
			i = b.search(from)
		}
		for end := min(i+limit, len(b)); i < end; i++ {
			dst = append(dst, b.at(i))
		}
	default:
		if l.isTree() {
			if root := s.treeOf(l); root != nil {
				return root.appendFrom(dst, from, limit)
			}
		}
	}
	return dst
}

// allocate takes a block of a class from the arena.
func (s *segment) allocate(class uint32) (offset uint32) {
	if free := s.free[class]; len(free) > 0 {
		s.free[class] = free[:len(free)-1]
		return free[len(free)-1]
	}
	arena := *s.arena.Load()
	offset = s.end
	s.end += classes[class]
	if need := int(s.end); need > len(arena) {
		// Readers go on with the old one, in which nothing is changed from here on.
		grown := make(block, max(arenaMin, need, len(arena)+len(arena)/2))
		copy(grown, arena)
		s.arena.Store(&grown)
	}
	return offset
}

func (s *segment) release(l list) {
	class, _, offset := l.block()
	s.free[class] = append(s.free[class], offset)
}

// store makes a list of elements, which are ascending; the places of the old list are
// not given back.
func (s *segment) store(g *grower, elements []Element) list {
	switch {
	case len(elements) == 0:
		return none
	case len(elements) == 1:
		return listOne(elements[0])
	case len(elements) == 2 && !elements[0].Qualified() && !elements[1].Qualified():
		return listTwo(elements[0], elements[1])
	case len(elements) <= blockMax:
		class := classOf(len(elements))
		offset := s.allocate(class)
		l := listBlock(class, uint32(len(elements)), offset)
		b := s.blockOf(l)
		for i, e := range elements {
			b.put(i, e)
		}
		return l
	}
	t := &tree{}
	before := g.bytes
	t.next = g.build(elements)
	t.bytes = g.bytes - before
	s.treeBytes += t.bytes
	g.touch(t)
	return s.place(t)
}

// place gives a tree a number in the segment.
func (s *segment) place(t *tree) list {
	trees := slices.Clone(*s.trees.Load())
	i := slices.Index(trees, nil)
	if i < 0 {
		i = len(trees)
		trees = append(trees, t)
	} else {
		trees[i] = t
	}
	s.trees.Store(&trees)
	return listTree(i)
}

// drop forgets a tree.
func (s *segment) drop(l list) {
	trees := slices.Clone(*s.trees.Load())
	trees[l.tree()] = nil
	s.trees.Store(&trees)
}

// elements appends a whole list.
func (s *segment) elements(dst []Element, l list) []Element {
	return s.appendFrom(dst, l, 0, NumberMax+1)
}

// change puts an element into the list at place, in place of one of its number, or
// takes it out.
func (s *segment) change(g *grower, place int, e Element, present bool) {
	l := s.list(place)
	if l == cold {
		return
	}
	if l.isTree() {
		s.changeTree(g, place, e, present)
		return
	}
	if l.tag() == tagBlock && s.changeBlock(place, l, e, present) {
		return
	}
	// It becomes a list of another form.
	var room [blockMax + 1]Element
	elements := s.elements(room[:0], l)
	i, found := slices.BinarySearchFunc(elements, e, func(a, b Element) int { return int(a.Number()) - int(b.Number()) })
	switch {
	case present && found:
		elements[i] = e
	case present:
		elements = slices.Insert(elements, i, e)
	case found:
		elements = slices.Delete(elements, i, i+1)
	default:
		return
	}
	made := s.store(g, elements)
	s.setList(place, made)
	if l.tag() == tagBlock {
		s.release(l)
	}
}

// giveUp makes the list at place one of which nothing is known.
func (s *segment) giveUp(place int) {
	l := s.list(place)
	s.setList(place, cold)
	switch {
	case l.tag() == tagBlock:
		s.release(l)
	case l.isTree():
		s.treeBytes -= (*s.trees.Load())[l.tree()].bytes
		s.drop(l)
	}
}

// changeBlock changes a block where it stands, and reports false if the list needs
// another form.
func (s *segment) changeBlock(place int, l list, e Element, present bool) bool {
	class, count, offset := l.block()
	b := (*s.arena.Load())[offset : offset+classes[class]]
	i := b[:count].search(e.Number())
	found := i < int(count) && b.at(i).Number() == e.Number()
	switch {
	case present && found:
		b.put(i, e)
	case present:
		if count == classes[class] {
			return false
		}
		for j := int(count); j > i; j-- {
			b.put(j, b.at(j-1))
		}
		b.put(i, e)
		s.setList(place, listBlock(class, count+1, offset))
	case found:
		if class > 0 && count-1 <= classes[class-1]*3/4 || count <= 3 {
			return false
		}
		for j := i; j < int(count)-1; j++ {
			b.put(j, b.at(j+1))
		}
		s.setList(place, listBlock(class, count-1, offset))
	}
	return true
}

func (s *segment) changeTree(g *grower, place int, e Element, present bool) {
	l := s.list(place)
	t := (*s.trees.Load())[l.tree()]
	if t.next == nil {
		t.next = t.root.Load()
		g.touch(t)
	}
	before := g.bytes
	if present {
		t.next = g.insert(t.next, e)
	} else {
		t.next = g.remove(t.next, e.Number())
	}
	t.bytes += g.bytes - before
	s.treeBytes += g.bytes - before
	if t.next != nil {
		return
	}
	s.setList(place, none)
	s.drop(l)
}

// rebuild makes one segment of the same bits with a larger or smaller table, or two of
// one bit more, with what this one holds, which is not changed from here on. Lists that are empty need no slot where
// everything is known.
func (s *segment) rebuild(g *grower, hashOf func(uint64) uint64) []*segment {
	complete := s.complete.Load()
	living := 0
	for i := 0; i < len(s.slots); i += 2 {
		if s.slots[i] != 0 && list(s.slots[i+1]) != none {
			living++
		}
	}
	size := slotsMin
	for size*5/8 < living+1 {
		size *= 2
	}
	var parts []*segment
	if size <= slotsMax {
		parts = []*segment{newSegment(size, s.depth, complete)}
	} else {
		parts = []*segment{newSegment(slotsMax, s.depth+1, complete), newSegment(slotsMax, s.depth+1, complete)}
	}
	trees := make([][]*tree, len(parts))
	var room [blockMax]Element
	for i := 0; i < len(s.slots); i += 2 {
		key, l := s.slots[i], list(s.slots[i+1])
		if key == 0 || l == none {
			continue
		}
		hash := hashOf(key)
		part := 0
		if len(parts) == 2 {
			part = int(hash >> (64 - parts[0].depth) & 1)
		}
		to := parts[part]
		switch {
		case l.isTree():
			t := (*s.trees.Load())[l.tree()]
			to.treeBytes += t.bytes
			l = listTree(len(trees[part]))
			trees[part] = append(trees[part], t)
		case l.tag() == tagBlock:
			l = to.store(g, s.elements(room[:0], l))
		}
		to.add(key, hash, l)
	}
	for i, p := range parts {
		p.trees.Store(&trees[i])
		p.wanted.Store(s.wanted.Load())
	}
	return parts
}
