package engine

import (
	"cmp"
	"context"
	"iter"
	"math"
	"slices"

	"github.com/RoaringBitmap/roaring/v2"

	"github.com/pembadb/pemba/graph"
)

// LookupSubjects yields the subjects of one shape that have a name on an
// object, in order of their numbers, the wildcard first. What it yields is
// exactly what Check would say: a subject is allowed (or conditional) if it is
// yielded so, or if the wildcard is and does not exclude it. The order and the
// positions are the same on every node. An error of yield ends the lookup and
// is returned.
func (s *Snapshot) LookupSubjects(ctx context.Context, q LookupSubjects, yield func(FoundSubject) error) error {
	return s.subjects(ctx, q, func(w *walk, set *subjectSet) error { return w.yieldSubjects(q, set, yield) })
}

// CountSubjects returns how many subjects LookupSubjects yields for the same
// question, whatever its After and Limit are, the wildcard not among them, and
// what holds for the wildcard; nil when it is not yielded. It evaluates as much,
// but reads no names.
func (s *Snapshot) CountSubjects(ctx context.Context, q LookupSubjects) (counts Counts, wildcard *Verdict, err error) {
	err = s.subjects(ctx, q, func(w *walk, set *subjectSet) error {
		if set.rest.failed() {
			return w.fault
		}
		if v := set.rest.verdict(); v.Decision != Denied {
			wildcard = &v
		}
		counts.Allowed += set.plainCount()
		for _, m := range set.members {
			if m.value.failed() {
				return w.fault
			}
			if m.named.verdict().Decision != Denied {
				counts.add(m.value.verdict().Decision)
			}
		}
		return nil
	})
	if err != nil {
		return Counts{}, nil, err
	}
	return counts, wildcard, nil
}

// subjects evaluates the question and hands what it comes to, which is good
// until then returns.
func (s *Snapshot) subjects(ctx context.Context, q LookupSubjects, then func(*walk, *subjectSet) error) error {
	p, err := s.program()
	if err != nil {
		return err
	}
	n, err := p.lookup("object.type", "permission", q.Object.Type, q.Name)
	if err != nil {
		return err
	}
	t := p.types[q.SubjectType]
	if t == nil {
		return p.unknownType("subject_type", q.SubjectType)
	}
	target := subjectShape{shape: t.shape, plain: true}
	if q.SubjectRelation != "" {
		userset, err := p.lookup("subject_type", "subject_relation", q.SubjectType, q.SubjectRelation)
		if err != nil {
			return err
		}
		target = subjectShape{shape: userset.shape}
	}
	object, err := s.graph.Number(q.Object.Type, q.Object.ID)
	if err != nil {
		return err
	}
	if object == graph.WildcardNumber {
		return refuse(WildcardSubject, "object.id", "a wildcard is no object to ask about; name one")
	}
	w := new(walk)
	w.begin(s.question(ctx, q.Budget))
	defer w.done()
	w.context = q.Context
	w.sets = &subjectSets{w: w, target: target}
	v, err := w.evaluate(n, object)
	if err != nil {
		return err
	}
	return then(w, v.set())
}

// A subjectShape is the shape of the subjects that a lookup collects.
type subjectShape struct {
	shape graph.Shape
	plain bool
}

// A subjectSet is a value for every subject of one shape: for those in plain and members
// each its own, for all others what the wildcard gives.
//
// Nearly all subjects are allowed because tuples name them, and nothing more is to be said
// of them. They are bits of a compressed set, which operations on sets join or cut by
// thousands.
type subjectSet struct {
	// rest is the value of every subject that is in neither. Always denied when usersets
	// are collected, which no wildcard covers.
	rest value
	// plain are those who are plainMember; nil for none.
	// Invariant: none unless rest is denied, and none that is in members.
	plain   *roaring.Bitmap
	members map[graph.Number]member
}

// A member is the value of one subject of a set, exactly what a check for it
// alone computes. Beside it stands how the subject came to it, because the
// answer lists who a path of tuples names and shows the wildcard with those it
// does not cover. In truth, value = named or covered.
type member struct {
	value value
	// named is the value by paths that name the subject itself.
	named value
	// covered is the value by the wildcard. It differs from the set's rest only
	// where an exclusion or the other side of an intersection named the subject.
	covered value
	// cut says that an exclusion took something from covered.
	cut bool
}

// plainMember is one whom tuples name, and no caveat, wildcard or exclusion.
var plainMember = member{value: allowed, named: allowed}

// isPlain says that a member is plainMember.
func (m *member) isPlain() bool {
	return m.value.isAllowed() && m.named.isAllowed() && m.covered.isDenied() && !m.cut
}

// isNothing says that a member is what all others are, where rest is denied.
func (m *member) isNothing() bool {
	return m.value.isDenied() && m.named.isDenied() && m.covered.isDenied() && !m.cut
}

var (
	emptySet = &subjectSet{}

	// nobody is emptySet as a value.
	nobody          = emptySet.value()
	undefinedForAll = (&subjectSet{rest: undefined}).value()
)

// value is the set as what a walk of sets computes with.
func (s *subjectSet) value() value { return value{more: &more{subjects: s}} }

// set is the set that value made a value of.
func (v value) set() *subjectSet {
	if v.more == nil {
		return emptySet
	}
	return v.more.subjects
}

func (s *subjectSet) member(number graph.Number) member {
	if s.isPlain(number) {
		return plainMember
	}
	if m, ok := s.members[number]; ok {
		return m
	}
	return member{value: s.rest, covered: s.rest}
}

func (s *subjectSet) isPlain(number graph.Number) bool {
	return s.plain != nil && number <= math.MaxUint32 && s.plain.Contains(uint32(number))
}

// plainCount is how many members are plain.
func (s *subjectSet) plainCount() int {
	if s.plain == nil {
		return 0
	}
	return int(s.plain.GetCardinality())
}

// put gives a subject a value of its own. Nobody else has the set yet.
func (s *subjectSet) put(number graph.Number, m member) {
	if s.rest.isDenied() && number <= math.MaxUint32 {
		if m.isPlain() {
			if s.plain == nil {
				s.plain = roaring.New()
			}
			s.plain.Add(uint32(number))
			delete(s.members, number)
			return
		}
		if s.plain != nil {
			s.plain.Remove(uint32(number))
		}
		if m.isNothing() {
			delete(s.members, number)
			return
		}
	}
	if s.members == nil {
		s.members = map[graph.Number]member{}
	}
	s.members[number] = m
}

// each goes through all that have a value of their own, in no order.
func (s *subjectSet) each() iter.Seq2[graph.Number, member] {
	return func(yield func(graph.Number, member) bool) {
		if s.plain != nil {
			for i := s.plain.Iterator(); i.HasNext(); {
				if !yield(graph.Number(i.Next()), plainMember) {
					return
				}
			}
		}
		for number, m := range s.members {
			if !yield(number, m) {
				return
			}
		}
	}
}

// sorted is each from a number on, in order of number.
func (s *subjectSet) sorted(from graph.Number) iter.Seq2[graph.Number, member] {
	return func(yield func(graph.Number, member) bool) {
		named := make([]graph.Number, 0, len(s.members))
		for number := range s.members {
			if number >= from {
				named = append(named, number)
			}
		}
		slices.Sort(named)
		if s.plain != nil && from <= math.MaxUint32 {
			i := s.plain.Iterator()
			for i.AdvanceIfNeeded(uint32(from)); i.HasNext(); {
				number := graph.Number(i.Next())
				for len(named) > 0 && named[0] < number {
					if !yield(named[0], s.members[named[0]]) {
						return
					}
					named = named[1:]
				}
				if !yield(number, plainMember) {
					return
				}
			}
		}
		for _, number := range named {
			if !yield(number, s.members[number]) {
				return
			}
		}
	}
}

// subjectSets collect a value for every subject of a shape. All
// operations work subject by subject, so that each of them gets what a check
// for it alone would compute. Sets are not changed once made.
type subjectSets struct {
	w      *walk
	target subjectShape
}

// memberBytes is the estimate of what a member of a set takes, and plainBytes that of one
// that is plain.
const (
	memberBytes = 224
	plainBytes  = 8
)

// combine makes a set subject by subject.
func (a *subjectSets) combine(s, t *subjectSet, rest value, f func(m, n member) member) *subjectSet {
	set := &subjectSet{rest: rest, members: make(map[graph.Number]member, max(len(s.members), len(t.members)))}
	for number, m := range s.each() {
		set.put(number, f(m, t.member(number)))
	}
	for number, n := range t.each() {
		if _, done := s.members[number]; !done && !s.isPlain(number) {
			set.put(number, f(s.member(number), n))
		}
	}
	a.w.grown(set)
	return set
}

// combinePlain is combine where neither set has a wildcard and plain is what comes of those
// who are plain, or nothing, in both. It is the new set's.
func (a *subjectSets) combinePlain(s, t *subjectSet, plain *roaring.Bitmap, f func(m, n member) member) *subjectSet {
	set := &subjectSet{plain: plain}
	for number, m := range s.members {
		set.put(number, f(m, t.member(number)))
	}
	for number, n := range t.members {
		if _, done := s.members[number]; !done {
			set.put(number, f(s.member(number), n))
		}
	}
	a.w.grown(set)
	return set
}

// bitmap is the plain members, for an operation that leaves them as they are.
func (s *subjectSet) bitmap() *roaring.Bitmap {
	if s.plain == nil {
		return noneOfThem
	}
	return s.plain
}

// noneOfThem is never changed.
var noneOfThem = roaring.New()

// Members of a set that are combined in the time of one step, one by one and as bits.
const (
	membersPerStep = 8
	plainPerStep   = 512
)

// grown accounts for work on a set. The walk finds out at its next step whether
// that was too much.
func (q *question) grown(set *subjectSet) {
	plain := set.plainCount()
	q.steps += len(set.members)/membersPerStep + plain/plainPerStep
	q.memory += set.bytes()
}

// bytes is the estimate of what the members take.
func (s *subjectSet) bytes() int64 {
	return int64(len(s.members))*memberBytes + int64(s.plainCount())*plainBytes
}

func (a *subjectSets) or(s, t *subjectSet) *subjectSet {
	switch {
	case t == emptySet:
		return s
	case s == emptySet:
		return t
	case s.rest.isDenied() && t.rest.isDenied():
		return a.combinePlain(s, t, roaring.Or(s.bitmap(), t.bitmap()), member.or)
	}
	return a.combine(s, t, s.rest.or(t.rest), member.or)
}

func (m member) or(n member) member {
	return member{
		value: m.value.or(n.value),
		named: m.named.or(n.named), covered: m.covered.or(n.covered), cut: m.cut || n.cut,
	}
}

// add merges t into an owned set: it costs what t has, not what was gathered so
// far, unless t holds a wildcard.
func (a *subjectSets) add(s *subjectSet, owned bool, t *subjectSet) (*subjectSet, bool) {
	switch {
	case t == emptySet:
		return s, owned
	case s == emptySet:
		return t, false
	case !owned || !t.rest.isDenied():
		return a.or(s, t), true
	case s.rest.isDenied() && t.plainCount() >= len(s.members):
		// As bits; those of whom s says more are put in their place again.
		if s.plain == nil {
			s.plain = roaring.New()
		}
		s.plain.Or(t.bitmap())
		for number, m := range s.members {
			if t.isPlain(number) {
				s.put(number, m.or(plainMember))
			}
		}
		for number, n := range t.members {
			s.put(number, s.member(number).or(n))
		}
		a.w.grown(t)
		return s, true
	}
	for number, n := range t.each() {
		s.put(number, s.member(number).or(n))
	}
	a.w.grown(t)
	return s, true
}

func (a *subjectSets) and(s, t *subjectSet) *subjectSet {
	if s == emptySet || t == emptySet {
		return emptySet
	}
	both := func(m, n member) member {
		return member{
			value:   m.value.and(n.value),
			named:   m.named.and(n.value).or(m.value.and(n.named)),
			covered: m.covered.and(n.covered),
			cut:     m.cut || n.cut,
		}
	}
	if s.rest.isDenied() && t.rest.isDenied() {
		return a.combinePlain(s, t, roaring.And(s.bitmap(), t.bitmap()), both)
	}
	return a.combine(s, t, s.rest.and(t.rest), both)
}

func (a *subjectSets) except(s, t *subjectSet) *subjectSet {
	if s == emptySet || t == emptySet {
		return s
	}
	spared := func(m, n member) member {
		gone := n.value
		x := member{
			value:   m.value.except(gone),
			named:   m.named.except(gone),
			covered: m.covered.except(gone),
			cut:     m.cut || !gone.isDenied(),
		}
		// Where the wildcard itself is taken away, the subjects that were
		// spared have only their name left to stand in the answer.
		if t.rest.highTruth() != no {
			low, high := x.named.low().or(x.covered.low()), x.named.high()
			if t.rest.lowTruth() != no {
				high = high.or(x.covered.high())
			}
			x.named = valueBetween(low, high, x.named.failed())
		}
		return x
	}
	if s.rest.isDenied() && t.rest.isDenied() {
		set := a.combinePlain(s, t, roaring.AndNot(s.bitmap(), t.bitmap()), spared)
		// That something was taken from them must not be forgotten.
		gone := &subjectSet{members: map[graph.Number]member{}}
		for i := roaring.And(s.bitmap(), t.bitmap()).Iterator(); i.HasNext(); {
			gone.members[graph.Number(i.Next())] = spared(plainMember, plainMember)
		}
		a.w.grown(gone)
		for number, m := range gone.members {
			set.put(number, m)
		}
		return set
	}
	return a.combine(s, t, s.rest.except(t.rest), spared)
}

func (a *subjectSets) guard(c value, s *subjectSet) *subjectSet {
	if c.isAllowed() {
		return s
	}
	return a.combine(s, emptySet, c.and(s.rest), func(m, _ member) member {
		return member{value: c.and(m.value), named: c.and(m.named), covered: c.and(m.covered), cut: m.cut}
	})
}

func (s *subjectSet) all(f func(value) bool) bool {
	if !f(s.rest) {
		return false
	}
	every := func(m member) bool { return f(m.value) && f(m.named) && f(m.covered) }
	if s.plain != nil && !s.plain.IsEmpty() && !every(plainMember) {
		return false
	}
	for _, m := range s.members {
		if !every(m) {
			return false
		}
	}
	return true
}

func (s *subjectSet) equal(t *subjectSet) bool {
	if !s.rest.equal(t.rest) {
		return false
	}
	same := func(m, n member) bool {
		return m.value.equal(n.value) && m.named.equal(n.named) && m.covered.equal(n.covered) && m.cut == n.cut
	}
	for i := roaring.Xor(s.bitmap(), t.bitmap()).Iterator(); i.HasNext(); {
		if number := graph.Number(i.Next()); !same(s.member(number), t.member(number)) {
			return false
		}
	}
	for number, m := range s.members {
		if !same(m, t.member(number)) {
			return false
		}
	}
	for number, n := range t.members {
		if !same(s.member(number), n) {
			return false
		}
	}
	return true
}

func (a *subjectSets) splice(low, high *subjectSet) *subjectSet {
	return a.combine(low, high, splice(low.rest, high.rest), func(m, n member) member {
		return member{
			value:   splice(m.value, n.value),
			named:   splice(m.named, n.named),
			covered: splice(m.covered, n.covered),
		}
	})
}

func (a *subjectSets) bare(s *subjectSet) *subjectSet {
	return a.combine(s, emptySet, s.rest.bare(), func(m, _ member) member {
		return member{value: m.value.bare(), named: m.named.bare(), covered: m.covered.bare()}
	})
}

func (a *subjectSets) reflexive(n *name, object graph.Number) *subjectSet {
	if a.target.plain || n.shape != a.target.shape {
		return emptySet
	}
	return onlyOne(object)
}

// onlyOne is the set of one subject.
func onlyOne(number graph.Number) *subjectSet {
	set := &subjectSet{}
	set.put(number, plainMember)
	return set
}

func (a *subjectSets) self(typ *objectType, object graph.Number) *subjectSet {
	if !a.target.plain || typ.shape != a.target.shape {
		return emptySet
	}
	return onlyOne(object)
}

func (a *subjectSets) direct(n *name, object graph.Number) (*subjectSet, error) {
	for i := range n.stored {
		s := &n.stored[i]
		if s.shape != a.target.shape {
			continue
		}
		set := &subjectSet{}
		if s.wildcard && a.target.plain {
			e, found, err := a.w.graph.Find(n.shape, object, s.shape, graph.WildcardNumber)
			if err != nil {
				return emptySet, err
			}
			if found {
				if set.rest, err = a.w.condition(&e); err != nil {
					return emptySet, err
				}
			}
		}
		if s.concrete {
			err := a.w.each(n, object, s.shape, func(e *graph.Edge) (bool, error) {
				v, err := a.w.condition(e)
				if err != nil || v.isDenied() {
					return true, err
				}
				m := member{value: v.or(set.rest), named: v, covered: set.rest}
				set.put(e.Number, m)
				if m.isPlain() {
					return true, a.w.hold(plainBytes)
				}
				return true, a.w.hold(memberBytes)
			})
			if err != nil {
				return emptySet, err
			}
		}
		return set, nil
	}
	return emptySet, nil
}

// yield gives the results of a finished walk.
func (w *walk) yieldSubjects(q LookupSubjects, set *subjectSet, yield func(FoundSubject) error) error {
	hangs := func(v value) error {
		if v.failed() {
			return w.fault
		}
		return nil
	}
	given := 0
	// asked says whether a position is within the page.
	asked := func(p Position) bool { return p > q.After && (q.Limit == 0 || given < q.Limit) }
	give := func(f FoundSubject) error {
		given++
		return yield(f)
	}
	subject := func(number graph.Number) (graph.Subject, error) {
		id, err := w.graph.ID(q.SubjectType, number)
		return graph.Subject{Object: graph.Object{Type: q.SubjectType, ID: id}, Relation: q.SubjectRelation}, err
	}

	if err := hangs(set.rest); err != nil {
		return err
	}
	first := Position(graph.WildcardNumber) + 1
	if v := set.rest.verdict(); v.Decision != Denied && asked(first) {
		found := FoundSubject{
			Subject:  graph.Subject{Object: graph.Object{Type: q.SubjectType, ID: graph.Wildcard}},
			Position: first, Verdict: v,
		}
		for number, m := range set.sorted(0) {
			out := m.excluded()
			if out.Decision == Denied {
				continue
			}
			s, err := subject(number)
			if err != nil {
				return err
			}
			found.Excluded = append(found.Excluded, ExcludedSubject{Subject: s, Verdict: out})
		}
		slices.SortFunc(found.Excluded, func(a, b ExcludedSubject) int { return cmp.Compare(a.Subject.ID, b.Subject.ID) })
		if err := give(found); err != nil {
			return err
		}
	}
	for number, m := range set.sorted(graph.Number(max(q.After, 1) - 1)) {
		position := Position(number) + 1
		if q.Limit > 0 && given == q.Limit {
			return nil
		}
		if !asked(position) {
			continue
		}
		if err := hangs(m.value); err != nil {
			return err
		}
		if m.named.verdict().Decision == Denied {
			continue
		}
		s, err := subject(number)
		if err != nil {
			return err
		}
		if err := give(FoundSubject{Subject: s, Position: position, Verdict: m.value.verdict()}); err != nil {
			return err
		}
	}
	return nil
}

// excluded says how surely a wildcard in the answer does not hold for the
// member: not at all where what is left of it is as good as whole.
func (m member) excluded() Verdict {
	covered := m.covered.verdict()
	switch {
	case !m.cut || covered.Decision == Allowed || m.value.verdict().Decision == Allowed:
		return Verdict{Decision: Denied}
	case covered.Decision == Denied:
		return Verdict{Decision: Allowed}
	}
	return Verdict{Decision: Conditional, Missing: covered.Missing}
}
