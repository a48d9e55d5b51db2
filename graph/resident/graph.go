package resident

import (
	"fmt"
	"math/bits"
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

// kindMax bounds the numbers of kinds: what a key has room for.
const kindMax = 1<<30 - 1

// An End is one end of edges of a kind, whose list is asked for: the object's number
// Forward, the subject's number Reverse.
type End struct {
	Direction Direction
	Kind      Kind
	Number    uint32
}

// key is the end in one word, which is never 0.
func (e End) key() uint64 {
	return 1<<63 | uint64(e.Direction)<<62 | uint64(e.Kind)<<31 | uint64(e.Number)
}

func endOf(key uint64) End {
	return End{Direction: Direction(key >> 62 & 1), Kind: Kind(key >> 31 & kindMax), Number: uint32(key & NumberMax)}
}

// hash mixes a key. The leading bits find the segment, the last ones the slot, those
// between the stamp.
func hash(key uint64) uint64 {
	high, low := bits.Mul64(key^0x9e3779b97f4a7c15, 0xd6e8feb86659fd93)
	return (high ^ low) * 0xff51afd7ed558ccd
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
// # One revision, without locks
//
// A reader asks at the revision of its snapshot and takes no lock: not against other
// readers, and not against the writer, who changes lists where they stand. What keeps
// its answers those of one revision are the stamps: for each of some thousands of groups
// of ends, by their hashes, the revision that last changed an end of the group. The
// writer raises the stamp before it touches a list of the revision to come, and a reader
// looks at the stamp after it has read. If the stamp is at or below the reader's
// revision, nothing that it read was changed since that revision, and what it read is
// what its revision holds. If the stamp is higher, it knows nothing (Unknown), and its
// caller reads Pebble, whose snapshot stands still. So a reader never waits, and an
// answer is either of the asked revision or none; a check that takes microseconds meets
// a stamp above its own revision seldom, and a question that goes on for seconds reads
// from Pebble what was changed since it began, and that alone.
//
// For this to hold, the writer changes the graph before anybody can have a snapshot of
// the revision: Change, then Pebble's commit, then the revision is published. And
// whatever else moves lists about (segments that grow, arenas, trees) must leave what a
// reader may still hold as it is: see segment and tree. Readers and the writer meet in
// atomic loads and stores only.
//
// # What is resident
//
// A graph begins empty and knows nothing. A loader reads the store through and fills in
// list by list, at the revision of its snapshot, which is refused for an end that was
// changed since (Fill); ends that are changed before they are filled are noted, and read
// again (Missed). Once there are none left, Complete says that an end without a list has
// no edges. If there is no room for all, a graph stays incomplete, and lists are filled
// in as they are asked for; Shed makes room again.
//
// All methods that change a graph take its lock; they are quick.
type Graph struct {
	// stamps are the revisions that last changed an end of each group, or later ones.
	// Their number is a power of two, and grows with the graph.
	stamps atomic.Pointer[[]atomic.Uint64]
	// floor is the first revision of which the stamps tell.
	floor uint64
	// numbered says that every pair that has edges is in kinds.
	numbered atomic.Bool

	kinds     atomic.Pointer[kinds]
	directory atomic.Pointer[directory[segment]]

	// bytes is what the segments take; the same is in total, which several graphs share.
	bytes atomic.Int64
	total *atomic.Int64
	// partial says that lists which are asked for should be filled in: not all are.
	partial atomic.Bool

	mu     sync.Mutex
	grower grower
	// loading says that ends which are changed before they are filled go to missed.
	loading bool
	// ended says that there are no more edges: RemoveAll.
	ended  bool
	missed map[uint64]struct{}
	// hand is where Shed looks next.
	hand int
}

// How many stamps there are. A change sends to Pebble the readers of its group that
// began before it.
const (
	stampsMin        = 1 << 6
	stampsMax        = 1 << 16
	stampsPerSegment = 1 << 5
)

// kinds numbers the pairs of relation and subject's shape. It is never changed.
type kinds struct {
	byRelation [][]kindEntry // by the relation's shape
	count      int
}

type kindEntry struct {
	subject uint32
	kind    Kind
}

// New returns a graph that knows nothing, for readers of the revision floor and later
// ones. Every change of a revision beyond floor must be told to it. What it takes is
// also added to total.
func New(floor uint64, total *atomic.Int64) *Graph {
	g := &Graph{floor: floor, missed: map[uint64]struct{}{}, loading: true, total: total}
	stamps := make([]atomic.Uint64, stampsMin)
	g.stamps.Store(&stamps)
	g.kinds.Store(&kinds{})
	s := newSegment(slotsMin, 0, false)
	g.directory.Store(newDirectory(s))
	g.took(g.overhead() + s.bytes())
	g.grower.batch = 1
	return g
}

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

func (g *Graph) overhead() int64 { return int64(8 * len(*g.stamps.Load())) }

// makeStamps replaces the stamps by as many as are asked for, a power of two. They say
// what those before said, of more groups. The reader who still has the old ones has read
// its list before now.
func (g *Graph) makeStamps(n int) {
	old := *g.stamps.Load()
	stamps := make([]atomic.Uint64, n)
	for i := range stamps {
		stamps[i].Store(old[i&(len(old)-1)].Load())
	}
	g.stamps.Store(&stamps)
}

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
func (g *Graph) number(relation, subject uint32) Kind {
	if kind := g.Kind(relation, subject); kind != NoKind {
		return kind
	}
	old := g.kinds.Load()
	if old.count == kindMax {
		return NoKind
	}
	k := &kinds{byRelation: slices.Clone(old.byRelation), count: old.count + 1}
	for len(k.byRelation) <= int(relation) {
		k.byRelation = append(k.byRelation, nil)
	}
	kind := Kind(k.count)
	k.byRelation[relation] = append(slices.Clip(k.byRelation[relation]), kindEntry{subject, kind})
	g.kinds.Store(k)
	return kind
}

func (g *Graph) stamp(hash uint64) *atomic.Uint64 {
	stamps := *g.stamps.Load()
	return &stamps[int(hash>>24)&(len(stamps)-1)]
}

// Find looks up one edge at a revision.
func (g *Graph) Find(revision uint64, end End, far uint32) Answer {
	if revision < g.floor {
		return Unknown
	}
	key := end.key()
	h := hash(key)
	s := g.directory.Load().segment(h)
	if !s.wanted.Load() {
		s.wanted.Store(true)
	}
	complete := s.complete.Load() // before the look: what is filled in behind it was not missing
	answer := Unknown
	if place, found := s.find(key, h); found {
		l := s.list(place)
		if e, found := s.element(l, far); found {
			answer = Plain
			if e.Qualified() {
				answer = Qualified
			}
		} else if l != cold {
			answer = Absent
		}
	} else if complete {
		answer = Absent
	}
	if g.stamp(h).Load() > revision {
		return Unknown
	}
	return answer
}

// List appends up to limit far ends of an end at a revision, from a number on, in
// ascending order. It reports false, and appends nothing, if it cannot tell.
func (g *Graph) List(dst []Element, revision uint64, end End, from uint32, limit int) ([]Element, bool) {
	if revision < g.floor {
		return dst, false
	}
	key := end.key()
	h := hash(key)
	s := g.directory.Load().segment(h)
	if !s.wanted.Load() {
		s.wanted.Store(true)
	}
	before := len(dst)
	complete, known := s.complete.Load(), false // as in Find
	limit = min(limit, NumberMax+1)
	if place, found := s.find(key, h); found {
		l := s.list(place)
		dst = s.appendFrom(dst, l, from, limit)
		known = l != cold
	} else {
		known = complete
	}
	if !known || g.stamp(h).Load() > revision {
		return dst[:before], false
	}
	return dst, true
}

// A Changer is a batch of changes of one revision.
type Changer struct {
	g        *Graph
	revision uint64
}

// Begin begins the changes of a revision that nobody has a snapshot of yet, with the
// graph's lock, which Changer.End gives back. Revisions ascend; one may come in several
// batches.
func (g *Graph) Begin(revision uint64) Changer {
	g.mu.Lock()
	return Changer{g, revision}
}

// RemoveAll says that the revision ends all edges for ever: from then on the graph knows
// nothing. Else it might be filled in, for readers of before, with what there is now.
func (c Changer) RemoveAll() {
	c.g.ended = true
	stamps := *c.g.stamps.Load()
	for i := range stamps {
		stamps[i].Store(c.revision)
	}
	empty := newSegment(slotsMin, 0, false)
	c.g.directory.Store(newDirectory(empty))
	c.g.numbered.Store(false)
	c.g.missed = map[uint64]struct{}{}
	c.g.took(c.g.overhead() + empty.bytes() - c.g.bytes.Load())
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
	kind := c.g.number(relation, subject)
	if kind == NoKind {
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
	key := end.key()
	h := hash(key)
	if stamp := g.stamp(h); stamp.Load() < revision {
		stamp.Store(revision)
	}
	s := g.directory.Load().segment(h)
	before := s.bytes()
	place, found := s.find(key, h)
	switch {
	case !found && !s.complete.Load():
		g.miss(key)
		return
	case far > NumberMax:
		// The list cannot be kept.
		if !found {
			g.add(key, h, cold)
			return
		}
		s.giveUp(place)
	case found:
		s.change(&g.grower, place, MakeElement(uint32(far), qualified), present)
	case present:
		g.add(key, h, listOne(MakeElement(uint32(far), qualified)))
		return
	}
	g.took(s.bytes() - before)
}

// miss notes an end that was changed before it was filled in.
func (g *Graph) miss(key uint64) {
	if !g.loading {
		return
	}
	if len(g.missed) == missedMax {
		g.stopLoading()
		return
	}
	before := len(g.missed)
	g.missed[key] = struct{}{}
	g.took(missedBytes * int64(len(g.missed)-before))
}

// missedMax bounds the ends that wait to be filled in again: who changes more than that
// while a store is read changes most of it. missedBytes is about what one takes.
const (
	missedMax   = 1 << 20
	missedBytes = 40
)

// add gives an end a list that has no slot.
func (g *Graph) add(key, h uint64, l list) *segment {
	s := g.directory.Load().segment(h)
	for s.full() {
		g.grow(s, h)
		s = g.directory.Load().segment(h)
	}
	s.add(key, h, l)
	return s
}

// grow replaces a segment, which the hash belongs to, by one or two with more room.
func (g *Graph) grow(s *segment, h uint64) {
	parts := s.rebuild(&g.grower, hash)
	delta := -s.bytes()
	for _, part := range parts {
		delta += part.bytes()
	}
	d := g.directory.Load().replace(h, s.depth, parts...)
	g.directory.Store(d)
	if n := len(*g.stamps.Load()); n < stampsMax && n < stampsPerSegment*len(d.segments) {
		g.makeStamps(2 * n)
		delta += int64(8 * n)
	}
	g.took(delta)
}

// A Far is a far end as it is stored.
type Far struct {
	Number    uint64
	Qualified bool
}

// Fill gives an end its list, as it was at a revision: all of it, ascending. It reports
// whether the graph has the list now; not, if the end was changed since, or is no end
// that can be kept.
func (g *Graph) Fill(revision uint64, relation, subject uint32, direction Direction, number uint64, far []Far) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended {
		return false
	}
	kind := g.number(relation, subject) // in any case, or the pair would be taken for one without edges
	if kind == NoKind || number > NumberMax {
		return false
	}
	key := End{direction, kind, uint32(number)}.key()
	h := hash(key)
	s := g.directory.Load().segment(h)
	if _, found := s.find(key, h); found {
		return true
	}
	if g.stamp(h).Load() > revision {
		g.miss(key)
		return false
	}
	elements := make([]Element, 0, len(far))
	l := none
	for _, f := range far {
		if f.Number > NumberMax {
			elements, l = elements[:0], cold
			break
		}
		elements = append(elements, MakeElement(uint32(f.Number), f.Qualified))
	}
	s = g.add(key, h, cold)
	before := s.bytes()
	if l != cold {
		l = s.store(&g.grower, elements)
	}
	g.grower.publish()
	place, _ := s.find(key, h)
	s.setList(place, l)
	g.took(s.bytes() - before)
	return true
}

// Missed takes the ends that were changed before they could be filled in: to be read
// again, at a later revision.
func (g *Graph) Missed() []MissedEnd {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.missed) == 0 {
		return nil
	}
	names := make([][2]uint32, g.kinds.Load().count+1)
	for relation, entries := range g.kinds.Load().byRelation {
		for _, e := range entries {
			names[e.kind] = [2]uint32{uint32(relation), e.subject}
		}
	}
	ends := make([]MissedEnd, 0, len(g.missed))
	for key := range g.missed {
		end := endOf(key)
		ends = append(ends, MissedEnd{names[end.Kind][0], names[end.Kind][1], end.Direction, uint64(end.Number)})
	}
	g.took(-missedBytes * int64(len(g.missed)))
	g.missed = map[uint64]struct{}{} // A map that is cleared keeps its room.
	return ends
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
	if !g.loading || g.ended {
		return true
	}
	g.loading = false
	g.numbered.Store(true)
	d := g.directory.Load()
	for i := range d.segments {
		d.segments[i].Load().complete.Store(true)
	}
	return true
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
	g.missed = map[uint64]struct{}{}
}

// Shed gives up lists that were not asked for lately, until the graph takes at most so
// many bytes. A graph that is still being filled in is not completed then.
func (g *Graph) Shed(bytes int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := g.directory.Load()
	for looked := 0; g.bytes.Load() > bytes && looked < 2*len(d.segments); {
		i := g.hand & (len(d.segments) - 1)
		s := d.segments[i].Load()
		span := 1 << (64 - d.shift - s.depth)
		g.hand = i&^(span-1) + span
		first := looked < len(d.segments)
		looked += span
		if s.used == 0 || s.wanted.Swap(false) && first {
			continue
		}
		if g.loading {
			g.stopLoading() // Else Complete would take what goes for what is not there.
		}
		empty := newSegment(slotsMin, s.depth, false)
		d.replace(uint64(i)<<d.shift, s.depth, empty)
		g.partial.Store(true)
		g.took(empty.bytes() - s.bytes())
	}
}

// Each calls f with every list that the graph has, in no order: for those who compare
// it with what is stored. Of a list that is not known the graph only knows that it cannot
// tell. complete says whether an end without a list has no edges.
func (g *Graph) Each(f func(relation, subject uint32, direction Direction, number uint64, far []Element, known bool) error) (complete bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	names := make([][2]uint32, g.kinds.Load().count+1)
	for relation, entries := range g.kinds.Load().byRelation {
		for _, e := range entries {
			names[e.kind] = [2]uint32{uint32(relation), e.subject}
		}
	}
	complete = true
	d := g.directory.Load()
	for s := range d.all() {
		complete = complete && s.complete.Load()
		for j := 0; j < len(s.slots); j += 2 {
			key, l := s.slots[j], list(s.slots[j+1])
			if key == 0 {
				continue
			}
			end := endOf(key)
			n := names[end.Kind]
			if err := f(n[0], n[1], end.Direction, uint64(end.Number), s.elements(nil, l), l != cold); err != nil {
				return complete, fmt.Errorf("the resident list of %d to %d, direction %d, number %d: %w", n[0], n[1], end.Direction, end.Number, err)
			}
		}
	}
	return complete, nil
}
