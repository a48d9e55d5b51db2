package graph

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"
)

// How a filter is served. The first row that fits is taken; * means any filter
// of the other fields, which narrow the ranges or are compared tuple by tuple.
//
//	object id | subject id | id prefix | relation side | subject side | plan
//	set       | *          | -         | *             | *            | forward: a range for each relation of the
//	          |            |           |               |              | object, or for each of it and each subject
//	          |            |           |               |              | shape, or single edges when the subject's
//	          |            |           |               |              | id is set too
//	          | set        | *         | *             | *            | reverse: a range for each shape of the
//	          |            |           |               |              | subject, or for each of it and each relation
//	          |            | set       | *             | *            | names: the objects by id, and for each the
//	          |            |           |               |              | ranges of the first row
//	          |            |           | set           |              | forward: a range for each relation
//	          |            |           |               | set          | reverse: a range for each subject shape
//	          |            |           | set           | set          | that of the two above which has fewer tuples
//	          |            |           |               |              | to look at, by the counters
//	          |            |           |               |              | forward: all there is
//
// The relation side is set when the object's type or the relation is, the
// subject side when the subject's type or relation is. An id without a type
// stands for that id in every type. ReadSorted takes names wherever no object id
// is set.
type plan byte

const (
	planForward plan = 'f'
	planReverse plan = 'r'
	planNames   plan = 'n'
)

// A span is a range of rests, from lo on and below hi.
type span struct{ lo, hi rest }

func (s *span) contains(r *rest) bool { return s.lo.compare(r) <= 0 && r.compare(&s.hi) < 0 }

// A reader is one call of Read under way.
type reader struct {
	s     *Snapshot
	f     *Filter
	names *namer
	plan  plan
	// sorted asks for the order of ReadSorted.
	sorted bool

	// relations and subjects are the shapes that the filter allows, ascending.
	relations []Shape
	subjects  []Shape
	// objects and subjectNumbers are the numbers of the filter's ids, by type; a
	// type is missing where the id is unknown.
	objects        map[string]Number
	subjectNumbers map[string]Number

	// counting asks how many tuples there are instead of which, into counted.
	counting bool
	counted  uint64

	limit  int
	tuples []Tuple
	bytes  int    // about how much they take
	last   rest   // of the last tuple
	lastID string // of its object; planNames only
	object string // whose ranges are walked; planNames only
	more   bool   // whether there is one beyond the limit
}

// readBytesMax bounds the tuples of one Read besides limit: their contexts may be
// large, and whoever reads page by page may hold one for long.
const readBytesMax = 64 << 10

// Read returns up to limit living tuples that match the filter, fewer when they take
// more than 64 KiB, and the position to read on from: pass it as after with the same filter, in any snapshot of the
// same revision and overlay. It is nil at the end, and only then. A position that
// no such Read returned gives ErrInvalidPosition. The order is that of numbers,
// or of ids for a prefix; for one filter it is the same on every DB that has
// come as far, and a position continues the order in which it was made.
//
// A filter whose fields an index covers costs what it returns; one that narrows
// both sides, but names no id, looks at every tuple of the smaller side. Guard
// bounds that.
func (s *Snapshot) Read(f Filter, after []byte, limit int) (tuples []Tuple, next []byte, err error) {
	return s.read(f, after, limit, false)
}

// ReadSorted is Read in an order that people and other databases know: by the
// name of the object's type, the object's id and the relation's name. It looks at
// every object of the types that the filter allows, one by one, and so costs
// several times what Read does where that reads a range. A position belongs to
// one of the two.
func (s *Snapshot) ReadSorted(f Filter, after []byte, limit int) (tuples []Tuple, next []byte, err error) {
	return s.read(f, after, limit, true)
}

func (s *Snapshot) read(f Filter, after []byte, limit int, sorted bool) (tuples []Tuple, next []byte, err error) {
	if err := f.Validate(); err != nil {
		return nil, nil, fmt.Errorf("read tuples: %w", err)
	}
	if limit < 1 {
		return nil, nil, fmt.Errorf("read tuples: %w", invalid("limit", fmt.Sprint(limit), "is too small", "at least 1"))
	}
	r := &reader{s: s, f: &f, names: newNamer(s), limit: limit, sorted: sorted}
	if err := r.run(after); err != nil {
		return nil, nil, fmt.Errorf("read tuples: %w", err)
	}
	if r.more {
		next = append([]byte{byte(r.plan)}, r.last[:]...)
		next = append(next, r.lastID...)
	}
	return r.tuples, next, nil
}

func (r *reader) run(after []byte) error {
	if err := r.resolve(); err != nil {
		return err
	}
	if r.sorted {
		slices.SortFunc(r.relations, func(a, b Shape) int {
			x, y := r.s.catalog.name(a), r.s.catalog.name(b)
			return cmp.Or(cmp.Compare(x.Type, y.Type), cmp.Compare(x.Relation, y.Relation))
		})
	}
	plans := r.plans()
	r.plan = plans[0]
	if len(after) == 0 {
		if len(plans) > 1 {
			subjects, none := r.fewer()
			if none {
				return nil
			}
			if subjects {
				r.plan = plans[1]
			}
		}
		return r.start(nil)
	}
	if len(after) < 1+restLen || !slices.Contains(plans, plan(after[0])) ||
		(len(after) > 1+restLen) != (plan(after[0]) == planNames) {
		return ErrInvalidPosition
	}
	r.plan = plan(after[0])
	var at rest
	copy(at[:], after[1:])
	r.lastID = string(after[1+restLen:])
	return r.start(&at)
}

// resolve turns the filter's names into numbers.
func (r *reader) resolve() error {
	for i, name := range r.s.catalog.shapes {
		if name.Relation != "" && r.relationMatches(name) {
			r.relations = append(r.relations, Shape(i+1))
		}
		if r.subjectMatches(name) {
			r.subjects = append(r.subjects, Shape(i+1))
		}
	}
	var err error
	if r.f.ObjectID != "" {
		if r.objects, err = r.numbers(r.relations, r.f.ObjectID); err != nil {
			return err
		}
	}
	if r.f.SubjectID != "" {
		if r.subjectNumbers, err = r.numbers(r.subjects, r.f.SubjectID); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) relationMatches(name ShapeName) bool {
	return (r.f.ObjectType == "" || r.f.ObjectType == name.Type) && (r.f.Relation == "" || r.f.Relation == name.Relation)
}

func (r *reader) subjectMatches(name ShapeName) bool {
	return (r.f.SubjectType == "" || r.f.SubjectType == name.Type) &&
		(r.f.SubjectRelation == nil || *r.f.SubjectRelation == name.Relation)
}

// numbers looks an id up in the types of shapes.
func (r *reader) numbers(shapes []Shape, id string) (map[string]Number, error) {
	numbers := map[string]Number{}
	tried := map[string]bool{}
	for _, shape := range shapes {
		typ, _ := r.s.ShapeName(shape)
		if tried[typ] {
			continue
		}
		tried[typ] = true
		n, ok, err := r.s.lookup(typ, id)
		if err != nil {
			return nil, err
		}
		if ok {
			numbers[typ] = n
		}
	}
	return numbers, nil
}

func (r *reader) relationSide() bool { return r.f.ObjectType != "" || r.f.Relation != "" }

func (r *reader) subjectSide() bool { return r.f.SubjectType != "" || r.f.SubjectRelation != nil }

// plans returns the plans that may serve the filter, the usual one first.
func (r *reader) plans() []plan {
	switch {
	case r.f.ObjectID != "":
		return []plan{planForward}
	case r.sorted:
		return []plan{planNames}
	case r.f.SubjectID != "":
		return []plan{planReverse}
	case r.f.ObjectIDPrefix != "":
		return []plan{planNames}
	case r.relationSide() && r.subjectSide():
		return []plan{planForward, planReverse}
	case r.subjectSide():
		return []plan{planReverse}
	}
	return []plan{planForward}
}

// fewer reports whether the subject's side has fewer tuples than the relation's,
// and whether it is certain that no tuple is of both sides.
func (r *reader) fewer() (subjects, none bool) {
	r.s.db.mu.Lock()
	defer r.s.db.mu.Unlock()
	st := r.s.db.stores[r.s.store]
	if st == nil {
		return false, false
	}
	var byRelation, bySubject, byBoth uint64
	for k, n := range st.counters {
		relation, subject := r.relationMatches(st.catalog.name(k.relation)), r.subjectMatches(st.catalog.name(k.subject))
		if relation {
			byRelation += n
		}
		if subject {
			bySubject += n
		}
		if relation && subject {
			byBoth += n
		}
	}
	// The counters are of the newest state: they say nothing of an older one, of
	// an overlay, or of a view that a commit has just left behind.
	current := r.s.newest && r.s.overlay == nil && r.s.view.applied.Revision == r.s.db.Applied().Revision
	return bySubject < byRelation, current && byBoth == 0
}

// start reads from behind a position on.
func (r *reader) start(after *rest) error {
	if r.plan == planNames {
		return r.readNames(after)
	}
	var spans []span
	if r.plan == planForward {
		spans = r.forwardSpans()
	} else {
		spans = r.reverseSpans()
	}
	return r.readSpans(spans, after)
}

// forwardSpans returns the ranges of planForward, ascending and apart.
func (r *reader) forwardSpans() []span {
	if r.f.ObjectID == "" {
		if !r.relationSide() {
			var all span
			copy(all.hi[:], bytes.Repeat([]byte{0xff}, restLen))
			return []span{all}
		}
		spans := make([]span, len(r.relations))
		for i, relation := range r.relations {
			spans[i] = nearSpan(relation, 0, false)
		}
		return spans
	}
	var spans []span
	for _, relation := range r.relations {
		typ, _ := r.s.ShapeName(relation)
		if object, ok := r.objects[typ]; ok {
			spans = r.objectSpans(spans, relation, object)
		}
	}
	return spans
}

// objectSpans appends the ranges of one relation of one object.
func (r *reader) objectSpans(spans []span, relation Shape, object Number) []span {
	if !r.subjectSide() && r.f.SubjectID == "" {
		return append(spans, nearSpan(relation, object, true))
	}
	for _, subject := range r.subjects {
		if r.f.SubjectID == "" {
			spans = append(spans, farSpan(relation, object, subject))
			continue
		}
		typ, _ := r.s.ShapeName(subject)
		if number, ok := r.subjectNumbers[typ]; ok {
			edge := edgeKey{relation, object, subject, number}.forward()
			spans = append(spans, span{edge, edge.successor()})
		}
	}
	return spans
}

// reverseSpans returns the ranges of planReverse, ascending and apart.
func (r *reader) reverseSpans() []span {
	var spans []span
	for _, subject := range r.subjects {
		if r.f.SubjectID == "" {
			spans = append(spans, nearSpan(subject, 0, false))
			continue
		}
		typ, _ := r.s.ShapeName(subject)
		number, ok := r.subjectNumbers[typ]
		if !ok {
			continue
		}
		if !r.relationSide() {
			spans = append(spans, nearSpan(subject, number, true))
			continue
		}
		for _, relation := range r.relations {
			spans = append(spans, farSpan(subject, number, relation))
		}
	}
	return spans
}

// nearSpan returns the range of a near end: of a shape, or of a shape and number.
func nearSpan(shape Shape, n Number, exact bool) (s span) {
	putShape(s.lo[:], shape)
	if !exact {
		putShape(s.hi[:], shape+1)
		return s
	}
	putNumber(s.lo[3:], n)
	putShape(s.hi[:], shape)
	putNumber(s.hi[3:], n+1)
	return s
}

// farSpan returns the range of a near end and the shape of the far end.
func farSpan(shape Shape, n Number, far Shape) (s span) {
	s = nearSpan(shape, n, true)
	s.hi = s.lo
	putShape(s.lo[8:], far)
	putShape(s.hi[8:], far+1)
	return s
}

func (r *reader) readSpans(spans []span, after *rest) error {
	if after != nil {
		i := slices.IndexFunc(spans, func(s span) bool { return s.contains(after) })
		if i < 0 {
			return ErrInvalidPosition
		}
		spans = slices.Clone(spans[i:])
		spans[0].lo = after.successor()
	}
	for _, s := range spans {
		if done, err := r.readSpan(s); done || err != nil {
			return err
		}
	}
	return nil
}

// readSpan reads one range and reports whether the limit is reached.
func (r *reader) readSpan(s span) (done bool, err error) {
	d := forward
	if r.plan == planReverse {
		d = reverse
	}
	w, err := r.s.walk(d, s.lo, s.hi)
	if err != nil {
		return false, err
	}
	for w.next() {
		k := w.rest.edge(d)
		ok, err := r.matches(k)
		if err != nil {
			return false, err
		}
		if !ok {
			continue
		}
		if r.counting {
			r.counted++
			continue
		}
		if len(r.tuples) == r.limit || r.bytes >= readBytesMax {
			r.more = true
			return true, nil
		}
		var t Tuple
		if w.entry != nil {
			t = w.entry.tuple
		} else {
			if err := w.whole(); err != nil {
				return false, err
			}
			if t, err = r.names.tuple(k, &w.value); err != nil {
				return false, err
			}
		}
		r.tuples = append(r.tuples, t)
		r.bytes += len(t.Object.ID) + len(t.Subject.ID) + len(t.Context)
		r.last, r.lastID = w.rest, r.object
	}
	return false, w.err
}

// matches compares what the range does not hold already.
func (r *reader) matches(k edgeKey) (bool, error) {
	relation, subject := r.s.catalog.name(k.relation), r.s.catalog.name(k.subject)
	if relation.Relation == "" || subject.Type == "" {
		return false, corruptf("edge %v has a shape without a name", k)
	}
	if !r.relationMatches(relation) || !r.subjectMatches(subject) {
		return false, nil
	}
	if r.plan == planReverse && r.f.ObjectIDPrefix != "" {
		id, err := r.names.id(relation.Type, k.object)
		return strings.HasPrefix(id, r.f.ObjectIDPrefix), err
	}
	return true, nil
}

// readNames reads the objects whose ids have the filter's prefix, by type and
// then by id.
func (r *reader) readNames(after *rest) error {
	types := map[Shape][]Shape{}
	var order []Shape
	for _, relation := range r.relations {
		typ := r.s.catalog.plain(relation)
		if types[typ] == nil {
			order = append(order, typ)
		}
		types[typ] = append(types[typ], relation)
	}
	if !r.sorted {
		slices.Sort(order)
	}
	from := r.f.ObjectIDPrefix
	if after != nil {
		typ := r.s.catalog.plain(getShape(after[:]))
		i := slices.Index(order, typ)
		if i < 0 || !strings.HasPrefix(r.lastID, from) || len(r.lastID) > MaxIDLength {
			return ErrInvalidPosition
		}
		n, ok, err := r.s.lookup(r.s.catalog.name(typ).Type, r.lastID)
		if err != nil {
			return err
		}
		if !ok || n != getNumber(after[3:]) {
			return ErrInvalidPosition
		}
		order, from = order[i:], r.lastID
	}
	for _, typ := range order {
		if done, err := r.readType(typ, types[typ], from, after); done || err != nil {
			return err
		}
		from, after = r.f.ObjectIDPrefix, nil
	}
	return nil
}

// readType reads the objects of one type whose ids have the prefix and are at
// least from; after is a position within the first one.
func (r *reader) readType(typ Shape, relations []Shape, from string, after *rest) (done bool, err error) {
	it, err := r.s.view.pebble.NewIter(&pebble.IterOptions{
		LowerBound: appendNumberKey(nil, r.s.store, typ, from),
		UpperBound: prefixEnd(appendNumberKey(nil, r.s.store, typ, r.f.ObjectIDPrefix)),
	})
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	// Objects that only the overlay names come in between.
	name := r.s.catalog.name(typ).Type
	var unknown []string
	for _, o := range r.s.ephemeral.names {
		if o.Type == name && strings.HasPrefix(o.ID, r.f.ObjectIDPrefix) && o.ID >= from {
			unknown = append(unknown, o.ID)
		}
	}
	slices.Sort(unknown)
	stored := it.First()
	for stored || len(unknown) > 0 {
		// Also names without tuples take time: those that had some, and those of
		// imports that were never committed.
		if err := r.s.look(); err != nil {
			return false, err
		}
		var id string
		var n Number
		if stored {
			id = string(it.Key()[storeEnd+3:])
		}
		if stored && (len(unknown) == 0 || id < unknown[0]) {
			if n, err = decodeNumber(it.Value()); err != nil {
				return false, err
			}
			stored = it.Next()
		} else {
			id, unknown = unknown[0], unknown[1:]
			n = r.s.ephemeral.numbers[Object{Type: name, ID: id}]
		}
		var spans []span
		for _, relation := range relations {
			spans = r.objectSpans(spans, relation, n)
		}
		r.object = id
		if err := r.readSpans(spans, after); r.more || err != nil {
			return r.more, err
		}
		after = nil
	}
	return false, it.Error()
}
