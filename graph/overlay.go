package graph

import (
	"fmt"
	"slices"
	"sort"
)

// An Overlay is a small set of tuples laid over a snapshot: contextual tuples, a
// preview, the attach tuples of a new object.
type Overlay struct {
	// Added are seen as if stored; one whose edge is stored replaces it. No two
	// are of the same edge. Their Created is ignored and reads as zero.
	Added []Tuple
	// Removed are not seen, whatever their caveat and lifetime; one that is
	// Added too is seen as added.
	Removed []Tuple
}

// An overlay is an Overlay in numbers.
//
// Invariant: forward and reverse hold the same entries, each strictly ascending
// in its direction.
type overlay struct {
	forward []*overlayEntry
	reverse []*overlayEntry
}

type overlayEntry struct {
	key     edgeKey
	sides   [2]rest // by direction
	removed bool
	caveat  CaveatNumber
	tuple   Tuple
}

func (e *overlayEntry) living(at Instant) bool {
	return !e.removed && living(e.tuple.ValidFrom, e.tuple.ValidUntil, at)
}

// edge returns the entry as seen from its near end.
func (e *overlayEntry) edge(d direction) Edge {
	edge := Edge{Shape: e.key.subject, Number: e.key.number, Caveat: e.caveat, Context: e.tuple.Context}
	if d == reverse {
		edge.Shape, edge.Number = e.key.relation, e.key.object
	}
	return edge
}

func (o *overlay) side(d direction) []*overlayEntry {
	if d == forward {
		return o.forward
	}
	return o.reverse
}

// find returns the entry of an edge, or nil.
func (o *overlay) find(k edgeKey) *overlayEntry {
	r := k.forward()
	i := sort.Search(len(o.forward), func(i int) bool { return o.forward[i].sides[forward].compare(&r) >= 0 })
	if i < len(o.forward) && o.forward[i].key == k {
		return o.forward[i]
	}
	return nil
}

// between returns the entries from lo on and below hi.
func (o *overlay) between(d direction, lo, hi *rest) []*overlayEntry {
	side := o.side(d)
	i := sort.Search(len(side), func(i int) bool { return side[i].sides[d].compare(lo) >= 0 })
	j := sort.Search(len(side), func(i int) bool { return side[i].sides[d].compare(hi) >= 0 })
	return side[i:max(i, j)]
}

// SetOverlay lays tuples over the snapshot; all reads but GetStored and Expired
// then see them. It replaces an overlay set before. Objects that no stored tuple
// names get numbers of this snapshot, in the order of Added and then Removed; so
// a position of Read stays good in another snapshot that first gets the same
// overlay. The types, relations and caveats must be known to the store. It is
// meant for few tuples: a hundred cost some hundred microseconds.
func (s *Snapshot) SetOverlay(o Overlay) error {
	next := &overlay{}
	entries := map[edgeKey]*overlayEntry{}
	add := func(t Tuple, removed bool) error {
		e := &overlayEntry{removed: removed, tuple: t}
		e.tuple.Created = 0
		if err := s.overlayEntry(e); err != nil {
			return fmt.Errorf("lay %s over the snapshot: %w", t, err)
		}
		if old := entries[e.key]; old != nil {
			if removed {
				return nil
			}
			return fmt.Errorf("lay %s over the snapshot: %w", t,
				invalid("overlay", "", "has the edge twice", "one tuple for each edge"))
		}
		entries[e.key] = e
		next.forward = append(next.forward, e)
		return nil
	}
	for _, t := range o.Added {
		if err := add(t, false); err != nil {
			return err
		}
	}
	for _, t := range o.Removed {
		if err := add(t, true); err != nil {
			return err
		}
	}
	if len(next.forward) == 0 {
		s.overlay = nil
		return nil
	}
	next.reverse = slices.Clone(next.forward)
	for _, d := range []direction{forward, reverse} {
		slices.SortFunc(next.side(d), func(a, b *overlayEntry) int { return a.sides[d].compare(&b.sides[d]) })
	}
	s.overlay = next
	return nil
}

// overlayEntry fills in the numbers of an entry's tuple.
func (s *Snapshot) overlayEntry(e *overlayEntry) error {
	t := &e.tuple
	if err := t.Validate(); err != nil {
		return err
	}
	var err error
	if e.key.relation = s.Shape(t.Object.Type, t.Relation); e.key.relation == 0 {
		return invalid("relation", ShapeName{t.Object.Type, t.Relation}.String(), "is unknown to the store", "")
	}
	if e.key.subject = s.Shape(t.Subject.Type, t.Subject.Relation); e.key.subject == 0 {
		return invalid("subject type", ShapeName{t.Subject.Type, t.Subject.Relation}.String(), "is unknown to the store", "")
	}
	if t.Caveat != "" && !e.removed {
		if e.caveat = s.Caveat(t.Caveat); e.caveat == 0 {
			return invalid("caveat", t.Caveat, "is unknown to the store", "")
		}
	}
	if e.key.object, err = s.Number(t.Object.Type, t.Object.ID); err != nil {
		return err
	}
	if e.key.number, err = s.Number(t.Subject.Type, t.Subject.ID); err != nil {
		return err
	}
	e.sides = [2]rest{forward: e.key.forward(), reverse: e.key.reverse()}
	return nil
}
