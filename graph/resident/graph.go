package resident

import (
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
)

// A Direction says of which end of an edge a list is.
type Direction uint8

// The directions.
const (
	// Forward lists the subjects of an object.
	Forward Direction = iota
	// Reverse lists the objects of a subject.
	Reverse
)

// A Kind is a relation together with the shape of its subjects: all edges of a kind
// lead from one type to another. Kinds are numbered by Graph.Kind.
type Kind uint32

// NoKind stands for a pair that was not numbered.
const NoKind Kind = 0

// kindMax bounds the numbers of kinds: what an entry, and the count of a row, have room for.
const kindMax = 1<<16 - 2

// An End is one end of edges of a kind, whose list is asked for: the object's number
// Forward, the subject's number Reverse.
type End struct {
	Direction Direction
	Kind      Kind
	Number    uint32
}

// An Answer is what a Graph knows of one edge.
type Answer uint8

// The answers.
const (
	// Unknown: the graph cannot tell for the revision that is asked for; read it where
	// all is kept.
	Unknown Answer = iota
	// Absent: there is no such edge.
	Absent
	// Plain: there is one, and it carries nothing.
	Plain
	// Qualified: there is one, which carries a caveat or a lifetime. Read it where all
	// is kept.
	Qualified
)

// A Graph is the adjacency of the current tuples of one store, in memory: for each
// object and each subject the list of the other ends.
//
// # Where an edge is
//
// Numbers are given out without gaps, type by type, so nothing is hashed: for each type
// and direction there is a table of pages, and a page has the lists of 64 ends. What a
// check asks of one object, relation after relation, stands in two or three lines of the
// processor's cache, and what it does not have is seen there as well.
//
// # One revision, without locks
//
// A reader asks at the revision of its snapshot and takes no lock: not against other
// readers, and not against the writer, who changes lists where they stand. What keeps
// its answers those of one revision are the stamps: for each page the revision that last
// changed an end of it. The writer raises the stamp before it touches a list of the
// revision to come, and a reader looks at the stamp after it has read. If the stamp is at
// or below the reader's revision, nothing that it read was changed since that revision,
// and what it read is what its revision holds. If the stamp is higher, it knows nothing
// (Unknown), and its caller reads Pebble, whose snapshot stands still. So a reader never
// waits, and an answer is either of the asked revision or none; a check that takes
// microseconds meets a stamp above its own revision seldom, and a question that goes on
// for seconds reads from Pebble what was changed since it began, and that alone.
//
// For this to hold, the writer changes the graph before anybody can have a snapshot of
// the revision: Changer.End, then Pebble's commit, then the revision is published. And
// whatever else moves lists about (pages that are replaced, trees) must leave what a
// reader may still hold as it is: see page and tree. Readers and the writer meet in
// atomic loads and stores only.
//
// # What is resident
//
// A graph begins empty and knows nothing. A loader reads the store through and fills in
// list by list, at the revision of its snapshot, which is refused for an end whose page
// was changed since (Fill); what is changed before it is filled is noted, and read
// again (Missed). Once there is none left, Complete says that an end without a list has
// no edges. If there is no room for all, a graph stays incomplete, and lists are filled
// in as they are asked for; Shed makes room again.
//
// All methods that change a graph take its lock; they are quick.
type Graph struct {
	// floor is the first revision of which the stamps tell.
	floor uint64
	// complete says that a page which is not there has no edges: one that was given up is
	// there as givenUp. It becomes true at most once.
	complete atomic.Bool
	// ended says that there are no more edges, and that nothing is known of those there
	// were: RemoveAll.
	ended atomic.Bool
	// numbered says that every pair that has edges is in kinds.
	numbered atomic.Bool

	kinds atomic.Pointer[kinds]

	// bytes is what the graph takes; the same is in total, which several graphs share.
	bytes atomic.Int64
	total *atomic.Int64
	// partial says that lists which are asked for should be filled in: not all are.
	partial atomic.Bool

	mu     sync.Mutex
	grower grower
	// tables are those of the kinds, by their type and direction, and in the order in
	// which they were made.
	tables map[tableKey]*table
	order  []*table
	// loading says that ends which are changed before they are filled go to missed.
	loading bool
	missed  map[End]struct{}
	// elements is room for what Fill fills in, and for a list that takes another form.
	elements []Element
	// unstamped is the last revision that changed a page which was not there, for which
	// none was made, or which was given up.
	unstamped uint64
	// hand is where Shed looks next, among all pages of all tables.
	hand int
}

// A table finds the pages of one type and direction by the numbers of ends.
type table struct {
	// pages grow as numbers do. A page that is not there is nil.
	pages atomic.Pointer[[]atomic.Pointer[page]]
	// emptied is the last revision that took the last edge out of a page, which is not
	// there any more.
	emptied atomic.Uint64
}

type tableKey struct {
	direction Direction
	typ       uint32
}

// find returns the page of a number; nil if there is none.
func (t *table) find(number uint32) *page {
	if pages := *t.pages.Load(); uint64(number>>pageBits) < uint64(len(pages)) {
		return pages[number>>pageBits].Load()
	}
	return nil
}

// kinds numbers the pairs of relation and subject's shape. It is never changed.
type kinds struct {
	byRelation [][]kindEntry // by the relation's shape
	// sides are, by kind, the tables of its objects and of its subjects, in the order of
	// the directions.
	sides [][2]*table
}

type kindEntry struct {
	subject uint32
	kind    Kind
}

// TypeOf returns the type of a relation's objects, or of subjects of a shape, as a shape.
// It is asked with the graph's lock, for both of each pair that the graph did not know.
type TypeOf func(shape uint32) uint32

// New returns a graph that knows nothing, for readers of the revision floor and later
// ones. Every change of a revision beyond floor must be told to it. What it takes is
// also added to total.
func New(floor uint64, total *atomic.Int64) *Graph {
	g := &Graph{floor: floor, missed: map[End]struct{}{}, loading: true, total: total, tables: map[tableKey]*table{}}
	g.kinds.Store(&kinds{sides: make([][2]*table, 1)})
	g.took(overhead)
	g.grower.batch = 1
	return g
}

// overhead is about what a graph takes that has no edges.
const overhead = 1 << 10

// Bytes is about what the graph takes.
func (g *Graph) Bytes() int64 { return g.bytes.Load() }

func (g *Graph) took(bytes int64) {
	g.bytes.Add(bytes)
	g.total.Add(bytes)
}

// Forget ends the graph's part in the total. Readers may still ask it.
func (g *Graph) Forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.total.Add(-g.bytes.Load())
	g.total = new(atomic.Int64)
}

// Partial reports whether lists that the graph does not know should be filled in when
// they are asked for.
func (g *Graph) Partial() bool { return g.partial.Load() }

// Numbered reports whether a pair of NoKind has no edges, at any revision that readers
// may ask at. Else nothing is known of such a pair.
func (g *Graph) Numbered() bool { return g.numbered.Load() }

// Kind returns the number of a relation's edges to subjects of a shape, or NoKind.
func (g *Graph) Kind(relation, subject uint32) Kind {
	k := g.kinds.Load()
	if int(relation) >= len(k.byRelation) {
		return NoKind
	}
	for _, e := range k.byRelation[relation] {
		if e.subject == subject {
			return e.kind
		}
	}
	return NoKind
}

// number is Kind that gives a number. The lock is held.
func (g *Graph) number(relation, subject uint32, typeOf TypeOf) Kind {
	if kind := g.Kind(relation, subject); kind != NoKind {
		return kind
	}
	old := g.kinds.Load()
	kind := Kind(len(old.sides))
	if kind > kindMax {
		g.numbered.Store(false)
		return NoKind
	}
	k := &kinds{
		byRelation: slices.Clone(old.byRelation),
		// Behind what old has; nobody else appends to it.
		sides: append(old.sides, [2]*table{
			g.table(Forward, typeOf(relation)), g.table(Reverse, typeOf(subject)),
		}),
	}
	for len(k.byRelation) <= int(relation) {
		k.byRelation = append(k.byRelation, nil)
	}
	k.byRelation[relation] = append(k.byRelation[relation], kindEntry{subject, kind})
	g.kinds.Store(k)
	return kind
}

// table returns the table of a direction and type.
func (g *Graph) table(d Direction, typ uint32) *table {
	key := tableKey{d, typ}
	t := g.tables[key]
	if t == nil {
		t = &table{}
		t.pages.Store(new([]atomic.Pointer[page]))
		g.tables[key] = t
		g.order = append(g.order, t)
	}
	return t
}

// givenUp stands where a page was given up: of its ends nothing is known. It has nothing.
var givenUp = newPage(0, 0, 0, false)

// look finds the page of an end at a revision; nil if there is none. known says that what
// is not there has no edges, which must be asked before the look, for what is filled in
// behind it was not missing.
func (g *Graph) look(revision uint64, end End) (p *page, known bool) {
	k := g.kinds.Load()
	if revision < g.floor || end.Kind == NoKind || uint64(end.Kind) >= uint64(len(k.sides)) {
		return nil, false
	}
	known = g.complete.Load()
	t := k.sides[end.Kind][end.Direction]
	if p = t.find(end.Number); p == nil {
		return nil, known && t.emptied.Load() <= revision
	}
	if p == givenUp {
		return nil, false
	}
	if !p.wanted.Load() {
		p.wanted.Store(true)
	}
	return p, p.complete.Load()
}

// Find looks up one edge at a revision.
func (g *Graph) Find(revision uint64, end End, far uint32) Answer {
	answer := Unknown
	p, known := g.look(revision, end)
	if known {
		answer = Absent
	}
	if p != nil {
		if l, _, found := p.find(end.Number%pageEnds, end.Kind); found {
			switch e, found := p.element(l, far); {
			case found && e.Qualified():
				answer = Qualified
			case found:
				answer = Plain
			case l == cold:
				answer = Unknown
			default:
				answer = Absent
			}
		}
		if p.stamp.Load() > revision {
			return Unknown
		}
	}
	if g.ended.Load() {
		return Unknown
	}
	return answer
}

// List appends up to limit far ends of an end at a revision, from a number on, in
// ascending order. It reports false, and appends nothing, if it cannot tell.
func (g *Graph) List(dst []Element, revision uint64, end End, from uint32, limit int) ([]Element, bool) {
	before := len(dst)
	limit = min(limit, NumberMax+1)
	p, known := g.look(revision, end)
	if p != nil {
		if l, _, found := p.find(end.Number%pageEnds, end.Kind); found {
			dst = p.appendFrom(dst, l, from, limit)
			known = l != cold
		}
		known = known && p.stamp.Load() <= revision
	}
	if !known || g.ended.Load() {
		return dst[:before], false
	}
	return dst, true
}

// A Changer is a batch of changes of one revision.
type Changer struct {
	g        *Graph
	revision uint64
	typeOf   TypeOf
}

// Begin begins the changes of a revision that nobody has a snapshot of yet, with the
// graph's lock, which Changer.End gives back. Revisions ascend; one may come in several
// batches.
func (g *Graph) Begin(revision uint64, typeOf TypeOf) Changer {
	g.mu.Lock()
	return Changer{g, revision, typeOf}
}

// RemoveAll says that the revision ends all edges for ever: from then on the graph knows
// nothing. Else it might be filled in, for readers of before, with what there is now.
func (c Changer) RemoveAll() {
	g := c.g
	g.ended.Store(true)
	g.numbered.Store(false)
	for _, t := range g.order {
		t.pages.Store(new([]atomic.Pointer[page]))
	}
	g.missed = map[End]struct{}{}
	g.took(overhead - g.bytes.Load())
}

// End makes the changes complete: from then on the revision may be read.
func (c Changer) End() {
	c.g.grower.publish()
	c.g.mu.Unlock()
}

// Set says that an edge is there, whether it was before or not. Numbers may be any:
// what has none that fits is not kept, and asked for in vain.
func (c Changer) Set(relation, subject uint32, object, number uint64, qualified bool) {
	c.change(relation, subject, object, number, qualified, true)
}

// Remove says that an edge is no more.
func (c Changer) Remove(relation, subject uint32, object, number uint64) {
	c.change(relation, subject, object, number, false, false)
}

func (c Changer) change(relation, subject uint32, object, number uint64, qualified, present bool) {
	kind := c.g.number(relation, subject, c.typeOf)
	if kind == NoKind || c.g.ended.Load() {
		return
	}
	if object <= NumberMax {
		c.g.change(c.revision, End{Forward, kind, uint32(object)}, number, qualified, present)
	}
	if number <= NumberMax {
		c.g.change(c.revision, End{Reverse, kind, uint32(number)}, object, qualified, present)
	}
}

func (g *Graph) change(revision uint64, end End, far uint64, qualified, present bool) {
	t, i := g.kinds.Load().sides[end.Kind][end.Direction], end.Number%pageEnds
	p := t.find(end.Number)
	complete := g.complete.Load()
	switch {
	case p == givenUp, p == nil && !complete && !g.loading:
		g.unstamped = revision
		return
	case p == nil && complete && !present:
		return // There is nothing to take away.
	case p == nil:
		p = g.newPage(t, end.Number, revision, complete)
	}
	if p.stamp.Load() < revision {
		p.stamp.Store(revision)
	}
	l, _, found := p.find(i, end.Kind)
	switch {
	case !found && !p.complete.Load():
		g.miss(end)
		return
	case !found && !present:
		return
	case !found:
		l = none
	case l == cold:
		return
	}
	before := p.bytes()
	e := MakeElement(uint32(far), qualified)
	if far <= NumberMax && p.change(&g.grower, i, end.Kind, l, e, present) {
		g.took(p.bytes() - before)
		g.tidy(t, end.Number, p)
		return
	}
	// It becomes a list of another form.
	elements := p.elements(g.elements[:0], l)
	defer func() { g.elements = elements[:0] }() // At most one more than a block has.
	if far <= NumberMax {
		at, there := slices.BinarySearchFunc(elements, e, func(a, b Element) int { return int(a.Number()) - int(b.Number()) })
		switch {
		case present && there:
			elements[at] = e
		case present:
			elements = slices.Insert(elements, at, e)
		case there:
			elements = slices.Delete(elements, at, at+1)
		default:
			return
		}
	}
	need := uint32(0) // where it cannot be kept
	if far <= NumberMax {
		need = listWords(elements)
	}
	// The page that comes instead may have a tighter row, and no entry for an empty list.
	if !found && !p.has(need+p.rowWords(i)) || !p.has(need) || int(i) >= len(p.rows) {
		p = g.rebuild(t, end.Number, need+p.rowWords(i), false)
		before = p.bytes()
		l, _, found = p.find(i, end.Kind) // An empty list may have gone.
	}
	made := cold // where it cannot be kept
	if far <= NumberMax {
		made = p.make(&g.grower, elements)
	}
	p.set(i, end.Kind, made, true)
	if found {
		p.discard(l)
	}
	g.took(p.bytes() - before)
	g.tidy(t, end.Number, p)
}

// tidy gives up what a page has of ends without edges, where those are most of it. Else
// the memory of objects that came and went would grow with all there ever were.
func (g *Graph) tidy(t *table, number uint32, p *page) {
	switch {
	case p.gone == 0 || !p.complete.Load():
	case p.living == 0:
		g.drop(t, &(*t.pages.Load())[number>>pageBits], p)
	case p.gone > p.living+goneMax:
		g.rebuild(t, number, 0, false)
	}
}

// goneMax is how many entries that say nothing a page keeps beyond those that do.
const goneMax = 16

// drop takes out a page in which nothing is any more, and everything was known.
func (g *Graph) drop(t *table, place *atomic.Pointer[page], p *page) {
	// First: who is of a revision before must not take it for what never was.
	t.emptied.Store(max(t.emptied.Load(), p.stamp.Load()))
	place.Store(nil)
	g.took(-p.bytes())
}

// newPage makes the page of a number, in which nothing is.
func (g *Graph) newPage(t *table, number uint32, stamp uint64, complete bool) *page {
	pages := *t.pages.Load()
	at := int(number >> pageBits)
	if at >= len(pages) {
		// Who has the old table finds the pages of before.
		grown := make([]atomic.Pointer[page], max(at+1, len(pages)+len(pages)/4))
		for i := range pages {
			grown[i].Store(pages[i].Load())
		}
		g.took(int64(8 * (len(grown) - len(pages))))
		pages = grown
		t.pages.Store(&pages)
	}
	p := newPage(0, 0, stamp, complete)
	pages[at].Store(p)
	g.took(p.bytes())
	return p
}

// rebuild replaces the page of a number by one that has so many words more, and a row for
// the number.
func (g *Graph) rebuild(t *table, number, more uint32, filling bool) *page {
	place := &(*t.pages.Load())[number>>pageBits]
	old := place.Load()
	p := old.rebuild(&g.grower, endsFor(number%pageEnds), more+slack(len(old.arena), filling))
	place.Store(p)
	g.took(p.bytes() - old.bytes())
	return p
}

// miss notes an end that was changed before it was filled in.
func (g *Graph) miss(end End) {
	if !g.loading {
		return
	}
	if len(g.missed) == missedMax {
		g.stopLoading()
		return
	}
	before := len(g.missed)
	g.missed[end] = struct{}{}
	g.took(missedBytes * int64(len(g.missed)-before))
}

// missedMax bounds the ends that wait to be filled in again: who changes more than that
// while a store is read changes most of it. missedBytes is about what one takes.
const (
	missedMax   = 1 << 20
	missedBytes = 40
)

// A Far is a far end as it is stored.
type Far struct {
	Number    uint64
	Qualified bool
}

// Fill gives an end its list, as it was at a revision: all of it, ascending. It reports
// whether the graph has the list now; not, if one of the 64 ends of the page was changed
// since (then it is one of Missed, while everything is filled in), or it is no end that
// can be kept.
func (g *Graph) Fill(revision uint64, relation, subject uint32, typeOf TypeOf, direction Direction, number uint64, far []Far) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended.Load() {
		return false
	}
	kind := g.number(relation, subject, typeOf) // in any case, or the pair would be taken for one without edges
	if kind == NoKind || number > NumberMax {
		return false
	}
	end := End{direction, kind, uint32(number)}
	t, i := g.kinds.Load().sides[kind][direction], end.Number%pageEnds
	p := t.find(end.Number)
	if p == nil || p == givenUp {
		if p == nil && g.complete.Load() {
			return true
		}
		stamp := max(g.unstamped, t.emptied.Load())
		if stamp > revision {
			return false
		}
		p = g.newPage(t, end.Number, stamp, false)
		p.wanted.Store(!g.loading) // Else it was asked for.
	}
	if _, _, found := p.find(i, kind); found || p.complete.Load() {
		return true
	}
	if p.stamp.Load() > revision {
		g.miss(end)
		return false
	}
	g.elements = g.elements[:0]
	known := true
	for _, f := range far {
		if known = f.Number <= NumberMax; !known {
			break
		}
		g.elements = append(g.elements, MakeElement(uint32(f.Number), f.Qualified))
	}
	if need := p.rowWords(i) + listWords(g.elements); !p.has(need) || int(i) >= len(p.rows) {
		p = g.rebuild(t, end.Number, need, g.loading)
	}
	before := p.bytes()
	l := cold
	if known {
		l = p.make(&g.grower, g.elements)
	}
	g.grower.publish()
	p.set(i, kind, l, false)
	g.took(p.bytes() - before)
	if cap(g.elements) > elementsKept {
		g.elements = nil
	}
	return true
}

// elementsKept is the largest list whose room is kept for the next.
const elementsKept = 1 << 12

// Missed takes the ends that were changed before they could be filled in: to be read
// again, at a later revision.
func (g *Graph) Missed() []MissedEnd {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.missed) == 0 {
		return nil
	}
	pairs := g.pairs()
	ends := make([]MissedEnd, 0, len(g.missed))
	for end := range g.missed {
		pair := pairs[end.Kind]
		ends = append(ends, MissedEnd{pair[0], pair[1], end.Direction, uint64(end.Number)})
	}
	g.took(-missedBytes * int64(len(g.missed)))
	g.missed = map[End]struct{}{} // A map that is cleared keeps its room.
	return ends
}

// pairs returns the relation and the subject's shape of every kind.
func (g *Graph) pairs() [][2]uint32 {
	k := g.kinds.Load()
	pairs := make([][2]uint32, len(k.sides))
	for relation, entries := range k.byRelation {
		for _, e := range entries {
			pairs[e.kind] = [2]uint32{uint32(relation), e.subject}
		}
	}
	return pairs
}

// A MissedEnd is an end of edges of a relation to subjects of a shape.
type MissedEnd struct {
	Relation, Subject uint32
	Direction         Direction
	Number            uint64
}

// Complete says that everything there is was filled in, and that nothing was missed
// meanwhile: it reports false if something was. From then on an end without a list has
// no edges. Behind StopLoading it does nothing.
func (g *Graph) Complete() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.missed) > 0 {
		return false
	}
	if !g.loading || g.ended.Load() {
		return true
	}
	g.loading = false
	g.numbered.Store(len(g.kinds.Load().sides) <= kindMax)
	for p := range g.all() {
		p.complete.Store(true)
	}
	g.complete.Store(true)
	return true
}

// Pack gives back what pages have that they do not need, a few at a time: who fills a graph
// in leaves much behind. It may run beside all other methods.
func (g *Graph) Pack() {
	for table, at := 0, 0; ; {
		g.mu.Lock()
		for few := 0; few < packedFew && table < len(g.order); few++ {
			t := g.order[table]
			pages := *t.pages.Load()
			if at >= len(pages) { // RemoveAll leaves none.
				table, at = table+1, 0
				continue
			}
			switch old := pages[at].Load(); {
			case old == nil || old == givenUp:
			case old.living == 0 && old.complete.Load():
				g.drop(t, &pages[at], old)
			default:
				p := old.rebuild(&g.grower, 0, 0)
				pages[at].Store(p)
				g.took(p.bytes() - old.bytes())
			}
			at++
		}
		done := table == len(g.order)
		g.grower.publish()
		g.mu.Unlock()
		if done {
			return
		}
	}
}

// packedFew is how many pages Pack has the lock for at a time.
const packedFew = 32

// all goes through the pages, and where they stand.
func (g *Graph) all() iter.Seq2[*page, *atomic.Pointer[page]] {
	return func(yield func(*page, *atomic.Pointer[page]) bool) {
		for _, t := range g.order {
			pages := *t.pages.Load()
			for i := range pages {
				if p := pages[i].Load(); p != nil && p != givenUp && !yield(p, &pages[i]) {
					return
				}
			}
		}
	}
}

// StopLoading says that not everything will be filled in: there is no room.
func (g *Graph) StopLoading() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stopLoading()
}

func (g *Graph) stopLoading() {
	g.loading = false
	g.partial.Store(true)
	g.took(-missedBytes * int64(len(g.missed)))
	g.missed = map[End]struct{}{}
}

// Shed gives up lists that were not asked for lately, until the graph takes at most so
// many bytes. A graph that is still being filled in is not completed then.
func (g *Graph) Shed(bytes int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	count := 0
	for _, t := range g.order {
		count += len(*t.pages.Load())
	}
	for looked := 0; g.bytes.Load() > bytes && looked < 2*count; {
		first := g.hand
		for _, t := range g.order {
			pages := *t.pages.Load()
			if first >= len(pages) {
				first -= len(pages)
				continue
			}
			for i := first; i < len(pages) && g.bytes.Load() > bytes && looked < 2*count; i++ {
				g.hand++
				looked++
				if p := pages[i].Load(); p != nil && p != givenUp && (!p.wanted.Swap(false) || looked > count) {
					g.giveUp(p, &pages[i])
				}
			}
			first = 0
		}
		if g.hand >= count {
			g.hand = 0
		}
	}
}

// giveUp forgets a page.
func (g *Graph) giveUp(p *page, place *atomic.Pointer[page]) {
	if g.loading {
		g.stopLoading() // Else Complete would take what goes for what is not there.
	}
	g.partial.Store(true)
	g.unstamped = max(g.unstamped, p.stamp.Load())
	if g.complete.Load() {
		place.Store(givenUp) // What never was is still known.
	} else {
		place.Store(nil)
	}
	g.took(-p.bytes())
}

// Each calls f with every list that the graph has, in no order: for those who compare
// it with what is stored. Of a list that is not known the graph only knows that it cannot
// tell. complete says whether an end without a list has no edges.
func (g *Graph) Each(f func(relation, subject uint32, direction Direction, number uint64, far []Element, known bool) error) (complete bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	pairs := g.pairs()
	complete = g.complete.Load()
	for key, t := range g.tables {
		pages := *t.pages.Load()
		for at := range pages {
			p := pages[at].Load()
			if p == nil {
				continue
			}
			if p == givenUp {
				complete = false
				continue
			}
			complete = complete && p.complete.Load()
			for i := range p.rows {
				for _, x := range p.entries(row(p.rows[i])) {
					e := entry(x)
					pair, number := pairs[e.kind()], uint64(at<<pageBits+i)
					if err := f(pair[0], pair[1], key.direction, number, p.elements(nil, e.list()), e.list() != cold); err != nil {
						return complete, fmt.Errorf("the resident list of %d to %d, direction %d, number %d: %w", pair[0], pair[1], key.direction, number, err)
					}
				}
			}
		}
	}
	return complete, nil
}
