package graph

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// An edgeName is an edge by its names.
type edgeName struct {
	object   Object
	relation string
	subject  Subject
}

func edgeOf(t *Tuple) edgeName { return edgeName{t.Object, t.Relation, t.Subject} }

// A version is one tuple of the model, from its Created on and before ended.
type version struct {
	tuple Tuple
	ended Revision // zero while current
}

// A model is the graph of a store by definition: every tuple that ever was, in a
// list.
type model struct {
	store    StoreID
	versions []version
	log      []LoggedRevision
	schemas  []SchemaVersion
	sequence uint64
	applied  Revision
	stamp    Instant
	settings StoreSettings
	floors   []floors // from a revision on, ascending; the first is zero
	counters []namedCounters
	// requests are what became of those that commits of the store remembered.
	requests []modelRequest
}

type modelRequest struct {
	id      string
	outcome RequestOutcome
}

// floors are what a store has forgotten from a revision on.
type floors struct {
	from         Revision
	history, log floor
}

// namedCounters are the filters that a store has from a revision on, by name.
type namedCounters struct {
	from    Revision
	filters map[string]Filter
}

// countersAt returns the named counters as of a revision, by name.
func (m *model) countersAt(rev Revision) (filters map[string]Filter) {
	for _, next := range m.counters {
		if next.from <= rev {
			filters = next.filters
		}
	}
	return filters
}

// changeCounter registers or unregisters a named counter.
func (m *model) changeCounter(c *CounterChange) {
	filters := map[string]Filter{}
	maps.Copy(filters, m.countersAt(m.applied))
	if c.Operation == RegisterCounter {
		filters[c.Name] = c.Filter
	} else {
		delete(filters, c.Name)
	}
	m.counters = append(m.counters, namedCounters{m.applied, filters})
}

func newModel() *model {
	return &model{
		store: DefaultStore, sequence: 1, floors: make([]floors, 1),
		settings: StoreSettings{History: DefaultRetention, Log: DefaultRetention},
	}
}

// floorsAt returns the floors as of a revision.
func (m *model) floorsAt(rev Revision) (f floors) {
	for _, next := range m.floors {
		if next.from <= rev {
			f = next
		}
	}
	return f
}

// prune raises the floors as of the newest stamp.
func (m *model) prune() {
	f := m.floors[len(m.floors)-1]
	f.from = m.applied
	raise := func(kept Retention, old floor) floor {
		for _, r := range m.log {
			if r.Stamp <= m.stamp-Instant(kept) {
				old = floor{max(old.revision, r.Revision), max(old.stamp, r.Stamp)}
			}
		}
		return old
	}
	f.history, f.log = raise(m.settings.History, f.history), raise(m.settings.Log, f.log)
	m.floors = append(m.floors, f)
}

// current returns the stored tuple of an edge.
func (m *model) current(e edgeName) *version {
	for i := range m.versions {
		if v := &m.versions[i]; v.ended == 0 && edgeOf(&v.tuple) == e {
			return v
		}
	}
	return nil
}

// at returns what a snapshot must show, by edge.
func (m *model) at(rev Revision, instant Instant, o Overlay) map[edgeName]Tuple {
	tuples := map[edgeName]Tuple{}
	for _, v := range m.versions {
		if v.tuple.Created <= rev && (v.ended == 0 || rev < v.ended) {
			tuples[edgeOf(&v.tuple)] = v.tuple
		}
	}
	for i := range o.Removed {
		delete(tuples, edgeOf(&o.Removed[i]))
	}
	for _, t := range o.Added {
		t.Created = 0
		tuples[edgeOf(&t)] = t
	}
	for e, t := range tuples {
		if instant < t.ValidFrom || (t.ValidUntil != 0 && instant >= t.ValidUntil) {
			delete(tuples, e)
		}
	}
	return tuples
}

// commit does to the model what c does to a DB.
func (m *model) commit(c Commit) {
	m.applied, m.stamp = c.Revision, c.Stamp
	if r := c.Request; r != nil {
		m.requests = append(m.requests, modelRequest{string(r.ID), RequestOutcome{
			Revision: c.Revision, Instant: c.Stamp, Changed: r.Changed, Partial: r.Partial, Stage: r.Stage,
		}})
	}
	if c.Prune != nil {
		m.prune()
	}
	if c.StoreChange != nil {
		m.settings.set(c.StoreChange)
	}
	if c.CounterChange != nil {
		m.changeCounter(c.CounterChange)
	}
	if len(c.Changes) == 0 && c.Schema == nil {
		return
	}
	r := LoggedRevision{
		Revision: c.Revision, Stamp: c.Stamp, RecordedActor: c.RecordedActor, Metadata: c.Metadata,
		SchemaChanged: c.Schema != nil, Count: len(c.Changes), Sequence: m.sequence,
	}
	m.sequence += uint64(len(c.Changes))
	if c.Schema != nil {
		m.schemas = append(m.schemas, SchemaVersion{c.Revision, c.Stamp, c.Schema.Text})
	}
	for _, change := range c.Changes {
		logged := LoggedChange{change.Kind, change.Tuple}
		if change.Before != nil {
			v := m.current(edgeOf(change.Before))
			v.ended = c.Revision
			logged.Tuple.Created = v.tuple.Created
		}
		if change.Kind == Created || change.Kind == Replaced {
			logged.Tuple.Created = c.Revision
			m.versions = append(m.versions, version{tuple: logged.Tuple})
		}
		r.Changes = append(r.Changes, logged)
	}
	m.log = append(m.log, r)
}

// A generator makes random commits over a small world, so that edges meet.
type generator struct {
	*rand.Rand
	shapes []ShapeName
}

var modelIDs = []string{"a", "ab", "abc", "b", "a b", "ä#1", `"`, "abd"}

func newGenerator(seed uint64) *generator {
	return &generator{
		Rand: rand.New(rand.NewPCG(seed, 7)),
		shapes: []ShapeName{
			{"doc", "viewer"},
			{"doc", "owner"},
			{"group", "member"},
			{"group", "owner"},
			{"user", ""},
			{"group", ""},
		},
	}
}

// unit is the step of time in the model: a few of them are the shortest retention.
const unit Instant = 300_000

func pick[T any](g *generator, from []T) T { return from[g.IntN(len(from))] }

func (g *generator) edge() edgeName {
	relation := pick(g, g.shapes[:4])
	e := edgeName{object: Object{relation.Type, pick(g, modelIDs)}, relation: relation.Relation}
	switch g.IntN(6) {
	case 0:
		e.subject = Subject{Object: Object{"group", pick(g, modelIDs)}, Relation: "member"}
	case 1:
		e.subject = Subject{Object: Object{"user", Wildcard}}
	case 2:
		e.subject = Subject{Object: Object{"group", pick(g, modelIDs)}}
	default:
		e.subject = Subject{Object: Object{"user", pick(g, modelIDs)}}
	}
	return e
}

func (g *generator) tuple(e edgeName) Tuple {
	t := Tuple{Object: e.object, Relation: e.relation, Subject: e.subject}
	if g.IntN(3) == 0 {
		t.Caveat = pick(g, []string{"tenant", "hours"})
		if g.IntN(2) == 0 {
			t.Context = []byte(fmt.Sprintf(`{"n":%d}`, g.IntN(5)))
		}
	}
	if g.IntN(4) == 0 {
		t.ValidFrom = Instant(1+g.IntN(100)) * unit
	}
	if g.IntN(4) == 0 {
		t.ValidUntil = t.ValidFrom + Instant(1+g.IntN(100))*unit
	}
	if g.IntN(5) == 0 {
		t.Sources = pick(g, [][]string{{"hr"}, {"crm", "hr"}})
	}
	return t
}

// begin commits a schema, so that overlays may name every shape.
func (g *generator) begin(t *testing.T, m *model, db *DB) {
	t.Helper()
	c := Commit{
		Revision: max(m.applied+1, 3), Term: 1, Stamp: max(m.stamp, 1), Store: m.store,
		Schema: &SchemaCommit{Text: "first", Shapes: g.shapes, Caveats: []string{"tenant", "hours"}},
	}
	mustCommit(t, db, c)
	m.commit(c)
}

// commit makes the commit that follows what the model holds. Some are remembered
// as those of a request; all of it takes less time than they are remembered for.
func (g *generator) commit(m *model) Commit {
	c := g.change(m)
	if g.IntN(3) == 0 {
		c.Request = &RequestCommit{ID: fmt.Appendf(nil, "%d of %d", c.Revision, m.store), Changed: g.IntN(300), Partial: g.IntN(2) == 0}
		if g.IntN(4) == 0 {
			c.Request.Stage = StageInfo{ID: StageID{1}, Chunks: 1, Tuples: 300, Touched: c.Stamp, Schema: 3}
		}
	}
	return c
}

func (g *generator) change(m *model) Commit {
	c := Commit{
		Revision: m.applied + 1 + Revision(g.IntN(3)), Term: 1, Stamp: m.stamp + Instant(g.IntN(4))*unit, Store: m.store,
	}
	switch g.IntN(12) {
	case 0:
		c.Store = 0
		return c
	case 1:
		c.Schema = &SchemaCommit{Text: fmt.Sprintf("schema %d", c.Revision), Shapes: g.shapes, Caveats: []string{"hours"}}
	case 2:
		c.Prune = &Prune{}
		return c
	case 3:
		retention := func() *Retention {
			r := pick(g, []Retention{MinRetention, 3 * MinRetention, 10 * MinRetention, Forever})
			return pick(g, []*Retention{nil, &r})
		}
		c.StoreChange = &StoreChange{Operation: SetStore, History: retention(), Log: retention()}
		return c
	case 4:
		c.CounterChange = &CounterChange{Operation: RegisterCounter, Name: pick(g, []string{"abc", "abcd", "by_1"}), Filter: g.filter()}
		if _, registered := m.countersAt(m.applied)[c.CounterChange.Name]; registered {
			c.CounterChange.Operation, c.CounterChange.Filter = UnregisterCounter, Filter{}
		}
		return c
	}
	if g.IntN(2) == 0 {
		c.RecordedActor, c.Metadata = "user:ann", []byte(`{"why":"test"}`)
	}
	seen := map[edgeName]bool{}
	for range g.IntN(9) {
		e := g.edge()
		if seen[e] {
			continue
		}
		seen[e] = true
		t := g.tuple(e)
		v := m.current(e)
		if v == nil {
			c.Changes = append(c.Changes, Change{Kind: Created, Tuple: t})
			continue
		}
		old := v.tuple
		switch g.IntN(4) {
		case 0:
			c.Changes = append(c.Changes, Change{Kind: Replaced, Tuple: t, Before: &old})
		case 1:
			c.Changes = append(c.Changes, Change{Kind: Deleted, Tuple: old, Before: &old})
		case 2:
			c.Changes = append(c.Changes, Change{Kind: Expired, Tuple: old, Before: &old})
		case 3:
			c.Changes = append(c.Changes,
				Change{Kind: Expired, Tuple: old, Before: &old}, Change{Kind: Created, Tuple: t})
		}
	}
	return c
}

func (g *generator) overlay() Overlay {
	var o Overlay
	seen := map[edgeName]bool{}
	for range g.IntN(8) {
		e := g.edge()
		if g.IntN(3) == 0 {
			e.object.ID = pick(g, []string{"new", "abx"})
		}
		if g.IntN(3) == 0 && e.subject.ID != Wildcard {
			e.subject.ID = pick(g, []string{"new", "abx"})
		}
		if g.IntN(3) == 0 {
			o.Removed = append(o.Removed, g.tuple(e))
		} else if !seen[e] {
			seen[e] = true
			o.Added = append(o.Added, g.tuple(e))
		}
	}
	return o
}

func (g *generator) filter() Filter {
	var f Filter
	maybe := func(s string) string {
		if g.IntN(3) > 0 {
			return ""
		}
		return s
	}
	e := g.edge()
	f.ObjectType = maybe(e.object.Type)
	switch g.IntN(4) {
	case 0:
		f.ObjectID = pick(g, append(modelIDs, "new", "none"))
	case 1:
		f.ObjectIDPrefix = pick(g, []string{"a", "ab", "b", "x", "n"})
	}
	f.Relation = maybe(e.relation)
	f.SubjectType = maybe(e.subject.Type)
	f.SubjectID = maybe(pick(g, append(modelIDs, "new", Wildcard)))
	if g.IntN(3) == 0 {
		relation := pick(g, []string{"", "member", "none"})
		if f.SubjectID != Wildcard || relation == "" {
			f.SubjectRelation = &relation
		}
	}
	return f
}

// stepRecords is so small that removing takes several steps.
const stepRecords = 5

func openTest(t testing.TB, fs vfs.FS) *DB {
	t.Helper()
	db, err := Open(Config{Dir: "graph", FS: fs, MemTableBytes: 64 << 10, CacheBytes: 1 << 20, OnFatal: func(err error) { t.Errorf("fatal: %v", err) }})
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// mustCommit makes a commit, the first one also that of the cluster and of its
// default store.
func mustCommit(t testing.TB, db *DB, c Commit) {
	t.Helper()
	if db.ClusterID() == [16]byte{} && c.Store != 0 {
		c.Init = &Init{ClusterID: [16]byte{1}}
	}
	receipt, err := db.Commit(c)
	if err != nil {
		t.Fatal(err)
	}
	if receipt.Count != len(c.Changes) || (receipt.Sequence == 0) != (len(c.Changes) == 0) {
		t.Fatalf("receipt %+v for %d changes", receipt, len(c.Changes))
	}
}

// TestModel compares a DB with the model after random commits, at every
// revision, with and without overlays, across restarts.
func TestModel(t *testing.T) {
	seeds := []uint64{1, 2, 3, uint64(time.Now().UnixNano())}
	if testing.Short() || slow {
		seeds = seeds[3:]
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { testModel(t, seed) })
	}
}

func testModel(t *testing.T, seed uint64) {
	t.Logf("seed %d", seed)
	g, m, fs := newGenerator(seed), newModel(), vfs.NewMem()
	db := openTest(t, fs)
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	g.begin(t, m, db)
	commits, step := 60, Revision(1)
	if slow {
		commits, step = 20, 5
	}
	for i := range commits {
		c := g.commit(m)
		mustCommit(t, db, c)
		m.commit(c)
		switch g.IntN(15) {
		case 0:
			if _, err := db.Flush(); err != nil {
				t.Fatal(err)
			}
		case 1:
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			db = openTest(t, fs)
		}
		if i%4 == 0 {
			compare(t, g, m, db, m.applied)
		}
	}
	compareAll := func(last Revision) {
		t.Helper()
		for rev := Revision(1); rev <= last; rev += step {
			compare(t, g, m, db, rev)
		}
		compareLog(t, g, m, db)
		if err := db.CheckInvariants(); err != nil {
			t.Fatal(err)
		}
	}
	compareAll(m.applied)
	for _, second := range []Retention{8 * MinRetention, MinRetention} {
		for _, c := range []Commit{
			{StoreChange: &StoreChange{Operation: SetStore, History: &second, Log: pick(g, []*Retention{nil, &second})}},
			{Prune: &Prune{}},
		} {
			c.Revision, c.Term, c.Stamp, c.Store = m.applied+1, 1, m.stamp, m.store
			mustCommit(t, db, c)
			m.commit(c)
		}
		floor := m.floorsAt(m.applied).history.revision
		compareAll(floor + 2)
		if _, err := db.Remove(m.store, stepRecords); err != nil {
			t.Fatal(err)
		}
		compareAll(floor + 2)
		mustRemove(t, db, m.store)
		compareAll(m.applied)
	}
}

// mustRemove removes all there is to remove.
func mustRemove(t testing.TB, db *DB, id StoreID) {
	t.Helper()
	for more := true; more; {
		var err error
		if more, err = db.Remove(id, stepRecords); err != nil {
			t.Fatal(err)
		}
	}
}

// compareInfo compares what the DB says of the store.
func compareInfo(t *testing.T, m *model, db *DB, rev Revision) {
	t.Helper()
	f := m.floorsAt(rev)
	info, ok := db.StoreInfo(m.store)
	if !ok || info.OldestHistory != f.history.revision || info.OldestHistoryAt != f.history.stamp ||
		info.OldestLog != f.log.revision || info.OldestLogAt != f.log.stamp {
		t.Fatalf("store %d at %d is %+v, not %+v", m.store, rev, info, f)
	}
	var want []SchemaVersion
	for _, v := range m.schemas {
		if v.Revision <= f.history.revision {
			want = nil
		}
		if v.Revision <= rev {
			want = append([]SchemaVersion{v}, want...)
		}
	}
	for _, before := range append([]SchemaVersion{{}}, want...) {
		for len(want) > 0 && before.Revision != 0 && want[0].Revision >= before.Revision {
			want = want[1:]
		}
		got, err := db.SchemaVersions(m.store, before.Revision, 3)
		if err != nil || !slices.Equal(got, want[:min(3, len(want))]) {
			t.Fatalf("schemas of store %d before %d: %v (%v), not %v", m.store, before.Revision, got, err, want)
		}
	}
}

// mustBeGone holds that an error is that of a floor.
func mustBeGone(t *testing.T, err error, want RevisionGoneError) {
	t.Helper()
	var gone *RevisionGoneError
	if !errors.As(err, &gone) || !errors.Is(err, ErrRevisionGone) || *gone != want {
		t.Fatalf("error %v is not %+v", err, want)
	}
}

// compare asks one snapshot everything and compares with the model.
func compare(t *testing.T, g *generator, m *model, db *DB, rev Revision) {
	t.Helper()
	instant := m.stamp + Instant(g.IntN(200))*unit
	s, err := db.Snapshot(m.store, rev, instant)
	if f := m.floorsAt(db.Applied().Revision).history; rev < f.revision {
		mustBeGone(t, err, RevisionGoneError{Revision: rev, Oldest: f.revision, OldestAt: f.stamp})
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Revision() != rev || s.Instant() != instant || s.Store() != m.store {
		t.Fatalf("snapshot of store %d at %d, %d", s.Store(), s.Revision(), s.Instant())
	}
	var wantSchema SchemaVersion
	for _, v := range m.schemas {
		if v.Revision <= rev {
			wantSchema = v
		}
	}
	if got, err := s.Schema(); err != nil || got != wantSchema {
		t.Fatalf("schema at %d is %v, not %v (%v)", rev, got, wantSchema, err)
	}
	var stamp Instant
	for _, r := range m.log {
		if r.Revision <= rev {
			stamp = r.Stamp
		}
	}
	if last, err := db.Snapshot(m.store, rev, 0); err != nil || last.Instant() != stamp {
		t.Fatalf("the last stamp at %d is not %d: %v", rev, stamp, err)
	} else {
		last.Close()
	}
	var o Overlay
	if g.IntN(2) == 0 && s.Shape("group", "owner") != 0 && s.Caveat("tenant") != 0 {
		o = g.overlay()
		if err := s.SetOverlay(o); err != nil {
			t.Fatal(err)
		}
	}
	want := m.at(rev, instant, o)
	compareEdges(t, g, s, want)
	for range 12 {
		compareRead(t, g, s, g.filter(), want)
	}
	compareRead(t, g, s, Filter{}, want)
	compareCounters(t, g, m, s, want)
	compareRequests(t, g, m, db)
}

// compareRequests asks for a request of each age.
func compareRequests(t *testing.T, g *generator, m *model, db *DB) {
	t.Helper()
	for i := len(m.requests) - 1; i >= 0; i -= 1 + g.IntN(8) {
		want, applied := m.requests[i], db.Applied().Revision
		got, ok, err := db.Request([]byte(want.id), m.stamp)
		if err != nil || ok != (want.outcome.Revision <= applied) || (ok && got != want.outcome) {
			t.Fatalf("at %d the request %s came to %+v, %t (%v), not %+v", applied, want.id, got, ok, err, want.outcome)
		}
		if _, ok, err := db.Request([]byte(want.id), want.outcome.Instant+RequestLifetime); ok || err != nil {
			t.Fatalf("the request %s is remembered for ever (%v)", want.id, err)
		}
	}
}

// compareCounters compares the named counters, which are those of the newest state
// whatever the snapshot's revision is, and what matches one of them.
func compareCounters(t *testing.T, g *generator, m *model, s *Snapshot, all map[edgeName]Tuple) {
	t.Helper()
	filters := m.countersAt(s.db.Applied().Revision)
	var want []NamedCounter
	for _, name := range slices.Sorted(maps.Keys(filters)) {
		want = append(want, NamedCounter{name, filters[name]})
	}
	if got, err := s.NamedCounters(); err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("the counters of store %d at %d are %+v (%v), not %+v", m.store, m.applied, got, err, want)
	}
	if n, err := s.CountNamedCounters(); err != nil || n != len(want) {
		t.Fatalf("store %d has %d counters (%v), not %d", m.store, n, err, len(want))
	}
	for _, name := range []string{"abc", "abcd", "by_1", "ab", ""} {
		filter, registered := filters[name]
		got, ok, err := s.NamedCounter(name)
		if err != nil || ok != registered || (ok && !reflect.DeepEqual(got, NamedCounter{name, filter})) {
			t.Fatalf("the counter %s of store %d is %+v, %t (%v), not %+v", name, m.store, got, ok, err, filter)
		}
	}
	if len(want) > 0 {
		compareRead(t, g, s, pick(g, want).Filter, all)
	}
}

func compareEdges(t *testing.T, g *generator, s *Snapshot, want map[edgeName]Tuple) {
	t.Helper()
	subjects, objects := map[string][]Edge{}, map[string][]Edge{}
	number := func(o Object) Number {
		n, err := s.Number(o.Type, o.ID)
		if err != nil {
			t.Fatal(err)
		}
		id, err := s.ID(o.Type, n)
		if err != nil || id != o.ID {
			t.Fatalf("%s has number %d, which is %q (%v)", o, n, id, err)
		}
		return n
	}
	numbers := func(e edgeName) edgeKey {
		return edgeKey{
			s.Shape(e.object.Type, e.relation), number(e.object),
			s.Shape(e.subject.Type, e.subject.Relation), number(e.subject.Object),
		}
	}
	for e, tuple := range want {
		k := numbers(e)
		caveat := s.Caveat(tuple.Caveat)
		if s.CaveatName(caveat) != tuple.Caveat {
			t.Fatalf("caveat %q has number %d", tuple.Caveat, caveat)
		}
		near := fmt.Sprint(k.relation, k.object, k.subject)
		subjects[near] = append(subjects[near], Edge{k.subject, k.number, caveat, tuple.Context})
		near = fmt.Sprint(k.subject, k.number, k.relation)
		objects[near] = append(objects[near], Edge{k.relation, k.object, caveat, tuple.Context})
	}
	ascending := func(a, b Edge) int { return int(int64(a.Number) - int64(b.Number)) }
	page := 1 + g.IntN(4)
	for range 40 {
		e := g.edge()
		k := numbers(e)
		tuple, ok := want[e]
		got, found, err := s.Find(k.relation, k.object, k.subject, k.number)
		if err != nil || found != ok {
			t.Fatalf("find %v at %d: %t (%v), not %t", e, s.revision, found, err, ok)
		}
		if ok && !sameEdge(got, Edge{k.subject, k.number, s.Caveat(tuple.Caveat), tuple.Context}) {
			t.Fatalf("find %v: %v, not %v", e, got, tuple)
		}
		whole, found, err := s.Get(e.object, e.relation, e.subject)
		if err != nil || found != ok || !reflect.DeepEqual(whole, tuple) {
			t.Fatalf("get %v at %d: %v %t (%v), not %v", e, s.revision, whole, found, err, tuple)
		}
		list := func(what string, want []Edge, next func([]Edge, Number) ([]Edge, error)) {
			t.Helper()
			slices.SortFunc(want, ascending)
			var all []Edge
			for from := Number(0); ; {
				before := len(all)
				var err error
				if all, err = next(all, from); err != nil {
					t.Fatal(err)
				}
				if len(all)-before < page {
					break
				}
				from = all[len(all)-1].Number + 1
			}
			if !slices.EqualFunc(all, want, sameEdge) {
				t.Fatalf("%s of %v at %d: %v, not %v", what, e, s.revision, all, want)
			}
		}
		list("subjects", subjects[fmt.Sprint(k.relation, k.object, k.subject)], func(all []Edge, from Number) ([]Edge, error) {
			return s.Subjects(all, k.relation, k.object, k.subject, from, page)
		})
		list("objects", objects[fmt.Sprint(k.subject, k.number, k.relation)], func(all []Edge, from Number) ([]Edge, error) {
			return s.Objects(all, k.subject, k.number, k.relation, from, page)
		})
	}
}

func sameEdge(a, b Edge) bool {
	return a.Shape == b.Shape && a.Number == b.Number && a.Caveat == b.Caveat && bytes.Equal(a.Context, b.Context)
}

func compareRead(t *testing.T, g *generator, s *Snapshot, f Filter, all map[edgeName]Tuple) {
	t.Helper()
	want := map[edgeName]Tuple{}
	for e, tuple := range all {
		if f.Matches(&tuple) {
			want[e] = tuple
		}
	}
	comparePages(t, g, s, f, s.Read, want)
	var sorted []Tuple
	if g.IntN(4) == 0 {
		sorted = comparePages(t, g, s, f, s.ReadSorted, want)
	}
	if !slices.IsSortedFunc(sorted, func(a, b Tuple) int {
		return cmp.Or(cmp.Compare(a.Object.Type, b.Object.Type), cmp.Compare(a.Object.ID, b.Object.ID), cmp.Compare(a.Relation, b.Relation))
	}) {
		t.Fatalf("read sorted %+v at %d: %v", f, s.revision, sorted)
	}
	if n, err := s.Count(f); err != nil || n != uint64(len(want)) {
		t.Fatalf("count %+v at %d: %d (%v), not %d", f, s.revision, n, err, len(want))
	}
}

// comparePages compares what a read returns, in pages and at once, and returns it
// in its order.
func comparePages(t *testing.T, g *generator, s *Snapshot, f Filter, read func(Filter, []byte, int) ([]Tuple, []byte, error), want map[edgeName]Tuple) []Tuple {
	t.Helper()
	got := map[edgeName]Tuple{}
	var order []string
	limit := 1 + g.IntN(5)
	var after []byte
	for {
		tuples, next, err := read(f, after, limit)
		if err != nil {
			t.Fatalf("read %+v: %v", f, err)
		}
		if len(tuples) > limit || (next != nil && len(tuples) < limit) {
			t.Fatalf("read %+v: %d tuples for limit %d, next %x", f, len(tuples), limit, next)
		}
		for _, tuple := range tuples {
			got[edgeOf(&tuple)] = tuple
			order = append(order, tuple.String())
		}
		if next == nil {
			break
		}
		after = next
	}
	if len(order) != len(got) || !reflect.DeepEqual(got, want) {
		t.Fatalf("read %+v at %d:\n%v\nnot\n%v", f, s.revision, got, want)
	}
	tuples, next, err := read(f, nil, 1000)
	if err != nil || next != nil {
		t.Fatalf("read %+v: %x, %v", f, next, err)
	}
	var whole []string
	for _, tuple := range tuples {
		whole = append(whole, tuple.String())
	}
	if !slices.Equal(whole, order) {
		t.Fatalf("read %+v in pages of %d has the order\n%s\nnot\n%s", f, limit, strings.Join(order, "\n"), strings.Join(whole, "\n"))
	}
	return tuples
}

// compareLog reads the whole change log in random pages.
func compareLog(t *testing.T, g *generator, m *model, db *DB) {
	t.Helper()
	compareInfo(t, m, db, m.applied)
	f := m.floorsAt(m.applied)
	want := slices.DeleteFunc(slices.Clone(m.log), func(r LoggedRevision) bool { return r.Revision < f.log.revision })
	for rev := range f.log.revision {
		_, err := db.Changes(m.store, Position{Revision: rev, Offset: 1}, 1)
		mustBeGone(t, err, RevisionGoneError{Revision: rev, Oldest: f.log.revision, OldestAt: f.log.stamp, Log: true})
	}
	var got []LoggedRevision
	for from := (Position{Revision: f.log.revision}); ; {
		part, err := db.Changes(m.store, from, 1+g.IntN(7))
		if err != nil {
			t.Fatal(err)
		}
		if len(part) == 0 {
			break
		}
		for _, r := range part {
			from = r.End()
			if n := len(got); n > 0 && got[n-1].Revision == r.Revision {
				last := &got[n-1]
				if r.Offset != last.Offset+uint32(len(last.Changes)) || r.Sequence != last.Sequence+uint64(len(last.Changes)) || r.SchemaChanged {
					t.Fatalf("part %+v follows %+v", r, last)
				}
				last.Changes = append(last.Changes, r.Changes...)
				continue
			}
			got = append(got, r)
		}
	}
	if !slices.EqualFunc(got, want, func(a, b LoggedRevision) bool { return reflect.DeepEqual(a, b) }) {
		t.Fatalf("the change log is\n%+v\nnot\n%+v", got, want)
	}
	for range 50 {
		at := Instant(g.Int64N(int64(m.stamp) + 3))
		var want Revision
		for _, r := range m.log {
			if r.Stamp <= at {
				want = r.Revision
			}
		}
		rev, err := db.RevisionAt(m.store, at)
		if f.history.revision != 0 && at < f.history.stamp {
			mustBeGone(t, err, RevisionGoneError{At: at, Oldest: f.history.revision, OldestAt: f.history.stamp})
			continue
		}
		if err != nil || rev != want {
			t.Fatalf("revision at %d is %d (%v), not %d", at, rev, err, want)
		}
	}
}

// TestCrash crashes at random moments and asks that what is left is exactly what
// was there at the applied revision.
func TestCrash(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	g := newGenerator(seed)
	rounds := 6
	if testing.Short() || slow {
		rounds = 1
	}
	for round := range rounds {
		fs := vfs.NewCrashableMem()
		m := newModel()
		db := openTest(t, fs)
		g.begin(t, m, db)
		if _, err := db.Flush(); err != nil {
			t.Fatal(err)
		}
		for range 40 + g.IntN(40) {
			c := g.commit(m)
			// Large records fill the memtable, so that Pebble flushes by itself.
			c.Metadata = []byte(fmt.Sprintf(`{"pad":%q}`, strings.Repeat("x", g.IntN(4000))))
			mustCommit(t, db, c)
			m.commit(c)
			if g.IntN(20) == 0 {
				if _, err := db.Flush(); err != nil {
					t.Fatal(err)
				}
			}
			if g.IntN(4) == 0 {
				if _, err := db.Remove(m.store, stepRecords); err != nil {
					t.Fatal(err)
				}
			}
			if g.IntN(8) != 0 {
				continue
			}
			clone := fs.CrashClone(vfs.CrashCloneCfg{
				UnsyncedDataPercent: pick(g, []int{0, 50, 100}), RNG: rand.New(rand.NewPCG(seed, uint64(c.Revision))),
			})
			durable := db.Durable().Revision
			back := openTest(t, clone)
			applied := back.Applied()
			if applied.Revision < durable || applied.Revision > m.applied {
				t.Fatalf("round %d: after a crash %d is applied; durable was %d, newest %d", round, applied.Revision, durable, m.applied)
			}
			if err := back.CheckInvariants(); err != nil {
				t.Fatal(err)
			}
			compareInfo(t, m, back, applied.Revision)
			compare(t, g, m, back, applied.Revision)
			mustRemove(t, back, m.store)
			if err := back.CheckInvariants(); err != nil {
				t.Fatal(err)
			}
			for rev := m.floorsAt(applied.Revision).history.revision; rev <= applied.Revision; rev += 5 {
				compare(t, g, m, back, max(rev, 1))
			}
			_, err := back.Commit(Commit{Revision: applied.Revision, Term: 1, Stamp: applied.Stamp})
			if !errors.Is(err, ErrAlreadyApplied) {
				t.Fatalf("commit again: %v", err)
			}
			if err := back.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
