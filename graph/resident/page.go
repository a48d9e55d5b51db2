package resident

import (
	"math/bits"
	"slices"
	"sync/atomic"
	"unsafe"
)

// A page holds the lists of pageEnds near ends whose numbers follow each other, of one
// type and direction: for each end a row of entries, one for each kind of which it has
// edges. So all that a check asks of one object stands side by side, and what is read
// from the disk in the order of numbers is written to memory in the same order.
//
// Readers take no lock. What they may see while the one writer is at work is a row or a
// block that is half changed, or one that is something else by now; both only if an end
// of the page is being changed, which they find out by the stamp afterwards (Graph.Find).
// What fills a page without changing the graph (Graph.Fill) moves nothing, and gives
// nothing back, that a reader may be looking at. A page that needs more room is replaced
// by another one; who still looks at the old one finds there what was true.
type page struct {
	// stamp is the revision that last changed an end of the page, or a later one. It is
	// raised before anything is changed.
	stamp atomic.Uint64
	// complete says that what is not in the page has no edges; else nothing is known of
	// it.
	complete atomic.Bool
	// wanted is set by who looks at the page, and cleared by who looks for one to
	// give up.
	wanted atomic.Bool

	// rows are the rows of the ends: of the first ones, as many as were needed.
	// Invariant: len(rows) <= pageEnds.
	rows []uint64
	// arena has the entries of rows, and blocks of elements.
	arena []uint64
	// trees are the long lists. A place is nil when it may be used again.
	trees atomic.Pointer[[]*tree]

	// The rest is the writer's. end is how much of the arena was ever given out;
	// free are, by class, 1 more than the offset of the last part that was given back, in
	// which stands that of the one before; nil while there are none.
	end       uint32
	free      *[len(classes)]uint32
	treeBytes int64 // what the trees take
	// living are the entries whose lists have elements or are not known, gone the others.
	living, gone uint32
}

// How many ends a page has.
const (
	pageBits = 6
	pageEnds = 1 << pageBits
)

// pageBytes is about what a page takes beside its slices.
const pageBytes = int64(unsafe.Sizeof(page{}))

// newPage makes an empty page with rows for the first ends and room for so many words.
func newPage(ends int, words uint32, stamp uint64, complete bool) *page {
	p := &page{}
	if ends > 0 {
		p.rows = make([]uint64, ends)
	}
	if words > 0 {
		p.arena = make([]uint64, words)
	}
	p.stamp.Store(stamp)
	p.complete.Store(complete)
	return p
}

func (p *page) bytes() int64 {
	bytes := pageBytes + int64(8*len(p.rows)) + int64(8*len(p.arena)) + p.treeBytes
	if p.free != nil {
		bytes += int64(unsafe.Sizeof(*p.free))
	}
	return bytes
}

// A row is where the entries of an end stand: 32 bits of offset, 16 of count, and 8 of
// class. 0 has none.
type row uint64

func makeRow(class, count, offset uint32) row {
	return row(offset)<<32 | row(count)<<8 | row(class)
}

func (r row) class() uint32  { return uint32(r) & 0xff }
func (r row) count() uint32  { return uint32(r) >> 8 & 0xffff }
func (r row) offset() uint32 { return uint32(r >> 32) }

// An entry is a kind, in the first 16 bits, and the list of its edges. The entries of a
// row ascend.
type entry uint64

func makeEntry(kind Kind, l list) entry { return entry(kind)<<listBits | entry(l) }

func (e entry) kind() Kind { return Kind(e >> listBits) }
func (e entry) list() list { return list(e & (1<<listBits - 1)) }

// row returns the row of an end.
func (p *page) row(i uint32) row {
	if int(i) < len(p.rows) {
		return row(atomic.LoadUint64(&p.rows[i]))
	}
	return 0
}

// entries returns the entries of a row; none, if it is something else by now.
func (p *page) entries(r row) []uint64 {
	from, to := uint64(r.offset()), uint64(r.offset())+uint64(r.count())
	if to > uint64(len(p.arena)) {
		return nil
	}
	return p.arena[from:to]
}

// rowScanned is how many entries are looked at one after the other.
const rowScanned = 8

// find returns the list of a kind of an end, and where its entry stands or would stand
// among those of the row.
func (p *page) find(i uint32, kind Kind) (l list, at int, found bool) {
	entries := p.entries(p.row(i))
	if len(entries) > rowScanned {
		lo, hi := 0, len(entries)
		for lo < hi {
			mid := int(uint(lo+hi) >> 1)
			if entry(atomic.LoadUint64(&entries[mid])).kind() < kind {
				lo = mid + 1
			} else {
				hi = mid
			}
		}
		at = lo
	}
	for ; at < len(entries); at++ {
		switch e := entry(atomic.LoadUint64(&entries[at])); {
		case e.kind() == kind:
			return e.list(), at, true
		case e.kind() > kind:
			return none, at, false
		}
	}
	return none, at, false
}

// blockOf returns the elements of a list in the arena; none, if it is something else by now.
func (p *page) blockOf(l list) block {
	_, count, offset := l.block()
	from, to := uint64(offset), uint64(offset)+uint64(blockWords(int(count)))
	if to > uint64(len(p.arena)) {
		return block{}
	}
	return block{p.arena[from:to], int(count)}
}

// treeOf returns the root of a long list; nil if it is being changed.
func (p *page) treeOf(l list) *node {
	if trees := p.trees.Load(); trees != nil && l.tree() < len(*trees) && (*trees)[l.tree()] != nil {
		return (*trees)[l.tree()].root.Load()
	}
	return nil
}

// element looks for a number in a list.
func (p *page) element(l list, number uint32) (Element, bool) {
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
		b := p.blockOf(l)
		if i := b.search(number); i < b.count {
			e := b.at(i)
			return e, e.Number() == number
		}
		return 0, false
	}
	if l.isTree() {
		if root := p.treeOf(l); root != nil {
			return root.find(number)
		}
	}
	return 0, false
}

// appendFrom appends up to limit elements of a list, from a number on.
func (p *page) appendFrom(dst []Element, l list, from uint32, limit int) []Element {
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
		b := p.blockOf(l)
		i := 0
		if from > 0 {
			i = b.search(from)
		}
		for end := min(i+limit, b.count); i < end; i++ {
			dst = append(dst, b.at(i))
		}
	default:
		if l.isTree() {
			if root := p.treeOf(l); root != nil {
				return root.appendFrom(dst, from, limit)
			}
		}
	}
	return dst
}

// elements appends a whole list.
func (p *page) elements(dst []Element, l list) []Element {
	return p.appendFrom(dst, l, 0, NumberMax+1)
}

// has says that so many words are left of the arena.
func (p *page) has(words uint32) bool { return uint64(p.end)+uint64(words) <= uint64(len(p.arena)) }

// allocate takes a part of a class from the arena, which has room for it.
func (p *page) allocate(class uint32) (offset uint32) {
	if p.free != nil && p.free[class] != 0 {
		offset = p.free[class] - 1
		p.free[class] = uint32(p.arena[offset])
		return offset
	}
	offset = p.end
	p.end += classes[class]
	return offset
}

// release gives a part of the arena back. The page's stamp was raised: who looks at it
// finds out.
func (p *page) release(class, offset uint32) {
	if p.free == nil {
		p.free = new([len(classes)]uint32)
	}
	atomic.StoreUint64(&p.arena[offset], uint64(p.free[class]))
	p.free[class] = offset + 1
}

// listWords is how many words at most the arena must have for a list of elements.
func listWords(elements []Element) uint32 {
	n := len(elements)
	if n < 2 || n == 2 && fitTwo(elements[0], elements[1]) || n > blockMax {
		return 0
	}
	return classes[classOf(blockWords(n))]
}

// make makes a list of elements, which are ascending. The arena has room for it.
func (p *page) make(g *grower, elements []Element) list {
	switch n := len(elements); {
	case n == 0:
		return none
	case n == 1:
		return listOne(elements[0])
	case n == 2 && fitTwo(elements[0], elements[1]):
		return listTwo(elements[0], elements[1])
	case n <= blockMax:
		class := classOf(blockWords(n))
		l := listBlock(class, uint32(n), p.allocate(class))
		b := p.blockOf(l)
		for i, e := range elements {
			b.put(i, e)
		}
		return l
	}
	t := &tree{}
	before := g.bytes
	t.next = g.build(elements)
	t.bytes = g.bytes - before
	p.treeBytes += t.bytes
	g.touch(t)
	return p.place(t)
}

// place gives a tree a number in the page.
func (p *page) place(t *tree) list {
	var trees []*tree
	if old := p.trees.Load(); old != nil {
		trees = slices.Clone(*old)
	}
	i := slices.Index(trees, nil)
	if i < 0 {
		i = len(trees)
		trees = append(trees, t)
	} else {
		trees[i] = t
	}
	p.trees.Store(&trees)
	return listTree(i)
}

// drop forgets a tree.
func (p *page) drop(l list) {
	trees := slices.Clone(*p.trees.Load())
	trees[l.tree()] = nil
	p.trees.Store(&trees)
}

// rowWords is how many words at most the arena must have for one entry more of an end.
func (p *page) rowWords(i uint32) uint32 { return classes[classOf(p.row(i).count()+1)] }

// set gives an entry of an end, which stands at its place or is to stand there, a list.
// The arena has room for it, and the page has a row for the end. What the row took before
// is given back only if the page was stamped.
func (p *page) set(i uint32, kind Kind, l list, stamped bool) {
	_, at, found := p.find(i, kind)
	r := p.row(i)
	if found {
		place := &p.entries(r)[at]
		p.counted(entry(*place).list(), -1)
		p.counted(l, 1)
		atomic.StoreUint64(place, uint64(makeEntry(kind, l)))
		return
	}
	p.counted(l, 1)
	count := r.count()
	if r == 0 || count == classes[r.class()] || !stamped && at < int(count) {
		// Readers go on with the old entries, or find the new ones.
		class := classOf(count + 1)
		made := makeRow(class, count+1, p.allocate(class))
		to := p.entries(made)
		for j, e := range p.entries(r) {
			if j >= at {
				j++
			}
			atomic.StoreUint64(&to[j], e)
		}
		atomic.StoreUint64(&to[at], uint64(makeEntry(kind, l)))
		atomic.StoreUint64(&p.rows[i], uint64(made))
		if r != 0 && stamped {
			p.release(r.class(), r.offset())
		}
		return
	}
	made := makeRow(r.class(), count+1, r.offset())
	to := p.entries(made)
	for j := int(count); j > at; j-- {
		atomic.StoreUint64(&to[j], to[j-1])
	}
	atomic.StoreUint64(&to[at], uint64(makeEntry(kind, l)))
	atomic.StoreUint64(&p.rows[i], uint64(made))
}

// counted counts an entry in, or out.
func (p *page) counted(l list, by int32) {
	if l == none {
		p.gone += uint32(by)
	} else {
		p.living += uint32(by)
	}
}

// change puts an element into the list of an end, in place of one of its number, or takes
// it out, where the list stands. It reports false if the list needs another form. The page
// was stamped.
func (p *page) change(g *grower, i uint32, kind Kind, l list, e Element, present bool) bool {
	switch {
	case l == cold:
		return true
	case l.isTree():
		p.changeTree(g, i, kind, l, e, present)
		return true
	case l.tag() != tagBlock:
		return false
	}
	class, count, offset := l.block()
	b := block{p.arena[offset : offset+classes[class]], int(2 * classes[class])}
	at := block{b.words, int(count)}.search(e.Number())
	found := at < int(count) && b.at(at).Number() == e.Number()
	switch {
	case present && found:
		b.put(at, e)
	case present:
		if int(count) == min(b.count, blockMax) {
			return false
		}
		for j := int(count); j > at; j-- {
			b.put(j, b.at(j-1))
		}
		b.put(at, e)
		p.set(i, kind, listBlock(class, count+1, offset), true)
	case found:
		if class > 0 && blockWords(int(count-1)) <= classes[class-1]*3/4 || count <= 3 {
			return false
		}
		for j := at; j < int(count)-1; j++ {
			b.put(j, b.at(j+1))
		}
		p.set(i, kind, listBlock(class, count-1, offset), true)
	}
	return true
}

func (p *page) changeTree(g *grower, i uint32, kind Kind, l list, e Element, present bool) {
	t := (*p.trees.Load())[l.tree()]
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
	p.treeBytes += g.bytes - before
	if t.next != nil {
		return
	}
	p.set(i, kind, none, true)
	p.drop(l)
}

// discard gives back what a list takes that is an entry's no more. The page was stamped.
func (p *page) discard(l list) {
	switch {
	case l.tag() == tagBlock:
		class, _, offset := l.block()
		p.release(class, offset)
	case l.isTree():
		p.treeBytes -= (*p.trees.Load())[l.tree()].bytes
		p.drop(l)
	}
}

// living says that an entry says more than that there is none: an empty list needs no entry
// where everything is known.
func (e entry) living(complete bool) bool { return !complete || e.list() != none }

// words is how many words the row takes when it is written anew, with its blocks; count is
// how many entries it has then.
func (p *page) words(r row, complete bool) (words, count uint32) {
	for _, x := range p.entries(r) {
		e := entry(x)
		if !e.living(complete) {
			continue
		}
		count++
		if l := e.list(); l.tag() == tagBlock {
			_, elements, _ := l.block()
			words += classes[classOf(blockWords(int(elements)))]
		}
	}
	if count > 0 {
		words += classes[classOf(count)]
	}
	return words, count
}

// rebuild makes a page with what this one holds, which is not changed from here on: with
// rows for so many ends and room for so many words more.
func (p *page) rebuild(g *grower, ends int, more uint32) *page {
	complete := p.complete.Load()
	sum := more
	for _, r := range p.rows {
		words, _ := p.words(row(r), complete)
		sum += words
	}
	to := newPage(max(ends, len(p.rows)), sum, p.stamp.Load(), complete)
	to.wanted.Store(p.wanted.Load())
	to.treeBytes = p.treeBytes
	if old := p.trees.Load(); old != nil {
		// Who still looks at this page goes on with the roots of now.
		trees := make([]*tree, len(*old))
		for i, t := range *old {
			if t != nil {
				trees[i] = t.move(g)
			}
		}
		to.trees.Store(&trees)
	}
	for i, r := range p.rows {
		_, count := p.words(row(r), complete)
		if count == 0 {
			continue
		}
		class := classOf(count)
		made := makeRow(class, count, to.allocate(class))
		entries := to.entries(made)
		for _, x := range p.entries(row(r)) {
			e := entry(x)
			if !e.living(complete) {
				continue
			}
			l := e.list()
			if l.tag() == tagBlock {
				g.room = p.elements(g.room[:0], l)
				l = to.make(g, g.room)
			}
			to.counted(l, 1)
			entries[0] = uint64(makeEntry(e.kind(), l))
			entries = entries[1:]
		}
		to.rows[i] = uint64(made)
	}
	return to
}

// How many words a page that grows gets beyond what it needs: slackMin at least, and a part
// of those that it has; one that is being filled in more, since that goes on.
func slack(words int, filling bool) uint32 {
	const slackMin, slackFilling = 4, 32
	if filling {
		return uint32(words) + slackFilling
	}
	return uint32(words)/4 + slackMin
}

// endsFor is how many ends a page must have a row for, to have one for the end.
func endsFor(i uint32) int { return min(pageEnds, max(4, 1<<bits.Len32(i))) }
