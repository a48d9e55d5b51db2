package graph

import (
	"bytes"

	"github.com/cockroachdb/pebble/v2"
)

// A walk goes through the tuples of a snapshot that lie in a range of one
// direction, in order: the current ones, those of the history that the revision
// still has, and those of the overlay, merged. It yields living tuples only. One
// walk at a time may go through a snapshot.
type walk struct {
	s *Snapshot
	d direction

	current source
	history source // nothing when the snapshot is of the newest revision
	overlay []*overlayEntry

	// What next found: an entry of the overlay, or a stored value.
	rest  rest
	entry *overlayEntry
	value edgeValue // good until the next call
	ended Revision  // zero unless found in the history

	err error
}

// A source is one side of a walk: the iterator stands on the tuple that head,
// value and ended describe, if ok, and that tuple was not yielded yet.
type source struct {
	it    *pebble.Iterator
	ok    bool
	head  rest
	value edgeValue
	ended Revision
	taken bool // the head was yielded; step before looking again
}

// walk begins a walk from lo on and below hi.
func (s *Snapshot) walk(d direction, lo, hi rest) (*walk, error) {
	w := &walk{s: s, d: d}
	if s.overlay != nil {
		w.overlay = s.overlay.between(d, &lo, &hi)
	}
	if err := s.open(&s.current); err != nil {
		return nil, err
	}
	w.current.it = s.current
	w.begin(&w.current, d.current(), &lo, &hi)
	if !s.newest {
		if err := s.open(&s.history); err != nil {
			return nil, err
		}
		w.history.it = s.history
		w.begin(&w.history, d.history(), &lo, &hi)
	}
	return w, w.err
}

func (w *walk) begin(src *source, space keyspace, lo, hi *rest) {
	src.it.SetBounds(appendEdgeKey(nil, space, w.s.store, lo), appendEdgeKey(nil, space, w.s.store, hi))
	w.settle(src, src.it.First())
}

// settle moves on to the next tuple that the revision has.
func (w *walk) settle(src *source, ok bool) {
	src.ok, src.taken = false, false
	for ; ok; ok = src.it.Next() {
		err := w.s.look()
		if err != nil {
			w.err = err
			return
		}
		if src.head, src.ended, err = parseEdgeKey(src.it.Key()); err == nil {
			var value []byte
			if value, err = src.it.ValueAndErr(); err == nil {
				err = src.value.decode(value, w.d)
			}
		}
		if err != nil {
			w.err = err
			return
		}
		if src.value.created <= w.s.revision && (src.ended == 0 || src.ended > w.s.revision) {
			src.ok = true
			return
		}
	}
	if w.err == nil {
		w.err = w.s.failed("walk through tuples", src.it)
	}
}

// look returns the source's next tuple, or nil.
func (w *walk) look(src *source) *rest {
	if src.taken {
		w.settle(src, src.it.Next())
	}
	if !src.ok {
		return nil
	}
	return &src.head
}

// next moves to the next living tuple and reports whether there is one; err says
// whether the walk ended by a failure.
func (w *walk) next() bool {
	for w.err == nil {
		src := &w.current
		head := w.look(src)
		if old := w.look(&w.history); old != nil && (head == nil || old.compare(head) < 0) {
			src, head = &w.history, old
		}
		if w.err != nil {
			return false
		}
		if len(w.overlay) > 0 {
			e := w.overlay[0]
			side := &e.sides[w.d]
			order := -1
			if head != nil {
				order = side.compare(head)
			}
			if order <= 0 {
				w.overlay = w.overlay[1:]
				if order == 0 {
					src.taken = true // The entry hides it.
				}
				if !e.living(w.s.instant) {
					continue
				}
				w.entry, w.rest, w.ended = e, *side, 0
				return true
			}
		}
		if head == nil {
			return false
		}
		src.taken = true
		if !src.value.living(w.s.instant) {
			continue
		}
		w.entry, w.rest, w.value, w.ended = nil, src.head, src.value, src.ended
		return true
	}
	return false
}

// edge returns what next found, as seen from its near end.
func (w *walk) edge() (Edge, error) {
	if w.entry != nil {
		return w.entry.edge(w.d), nil
	}
	e := Edge{Shape: getShape(w.rest[8:]), Number: getNumber(w.rest[11:]), Caveat: w.value.caveat}
	if w.value.hasContext {
		if err := w.whole(); err != nil {
			return Edge{}, err
		}
		e.Context = bytes.Clone(w.value.context)
	}
	return e, nil
}

// whole makes value that of the forward record.
func (w *walk) whole() error {
	if w.d == forward || (!w.value.hasContext && !w.value.hasSources) {
		return nil
	}
	return w.s.fetchForward(&w.value, w.rest.edge(w.d), w.ended)
}
