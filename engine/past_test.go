package engine_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/engine/enginetest"
	"github.com/pembadb/pemba/graph"
)

// A tenant is a store as its model remembers it.
type tenant struct {
	store   graph.StoreID
	w       *enginetest.World // with the newest schema; nil before the first
	model   map[string]graph.Tuple
	moments []moment
}

// at returns the last moment that satisfies a condition which holds for the
// older ones.
func (n *tenant) at(until func(moment) bool) (last moment) {
	for _, m := range n.moments {
		if until(m) {
			last = m
		}
	}
	return last
}

// TestTwinPast plays random histories in several stores with the same names, with
// changes of the schema between, and asks as of every revision and of many
// instants, before and after pruning and removing: what is kept is what the twin
// says, and what is not says so.
func TestTwinPast(t *testing.T) {
	r := seeded(t)
	m := &mix{}
	for range 4 {
		m.worlds++
		pastWorld(t, enginetest.NewWorld(r), m)
		if t.Failed() {
			break
		}
	}
	t.Log(m)
}

func pastWorld(t *testing.T, w *enginetest.World, m *mix) {
	e, err := enginetest.New(engine.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}()
	inMemory(t, e, m.worlds)
	fail := func(format string, args ...any) {
		t.Errorf(format, args...)
		t.Logf("schema:\n%s", w.Text)
	}
	write := func(m *graph.Mutation) engine.Result {
		t.Helper()
		result, err := e.Write(m)
		if err != nil {
			t.Fatal(err)
		}
		return result
	}
	create := func(name string) *tenant {
		made := write(&graph.Mutation{StoreChange: &graph.StoreChange{Operation: graph.CreateStore, Name: name}})
		return &tenant{store: made.Store, model: map[string]graph.Tuple{}}
	}
	step := func(n *tenant) bool {
		e.Store = n.store
		at := moment{revision: e.Engine.DB().Applied().Revision + 1, instant: e.Now}
		switch {
		case n.w == nil:
			n.w = w
		case w.OneIn(4):
			n.w = n.w.OtherPermissions()
		default:
			if !change(e, n.w, n.model, fail) {
				return false
			}
			at.w, at.tuples = n.w, sorted(n.model)
			n.moments = append(n.moments, at)
			return true
		}
		if err := e.Schema(n.w.Text); err != nil {
			fail("schema: %v\n%s", err, n.w.Text)
			return false
		}
		at.w, at.tuples = n.w, sorted(n.model)
		n.moments = append(n.moments, at)
		return true
	}
	tenants := []*tenant{{store: graph.DefaultStore, model: map[string]graph.Tuple{}}, create("other")}
	var passing *tenant
	for range 16 {
		n := enginetest.Choose(w, tenants)
		if w.OneIn(3) {
			if passing == nil {
				passing = create("passing")
			}
			n = passing
		}
		if !step(n) {
			return
		}
		if passing != nil && w.OneIn(5) {
			e.Store = passing.store
			write(&graph.Mutation{StoreChange: &graph.StoreChange{Operation: graph.DropStore}})
			if _, err := e.Snapshot(); !errors.Is(err, graph.ErrUnknownStore) {
				t.Fatalf("a dropped store gives %v", err)
			}
			passing = nil
		}
		if w.OneIn(6) {
			if err := e.Restart(); err != nil {
				t.Fatal(err)
			}
		}
		e.Now += graph.Instant(w.IntN(100)) * 1_000_000
	}
	if passing != nil {
		tenants = append(tenants, passing)
	}
	askTenants := func() {
		t.Helper()
		for _, n := range tenants {
			askPast(t, e, n, m, fail)
		}
		if err := e.Engine.DB().CheckInvariants(); err != nil {
			t.Fatal(err)
		}
	}
	askTenants()
	for _, n := range tenants {
		e.Store = n.store
		history, log := graph.Retention(50+w.IntN(400))*1_000_000, graph.Retention(50+w.IntN(400))*1_000_000
		write(&graph.Mutation{StoreChange: &graph.StoreChange{Operation: graph.SetStore, History: &history, Log: &log}})
		write(&graph.Mutation{Prune: &graph.Prune{}})
	}
	if !t.Failed() {
		askTenants()
	}
	for _, n := range tenants {
		for more := true; more; {
			if more, err = e.Engine.DB().Remove(n.store, 5); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := e.Restart(); err != nil {
		t.Fatal(err)
	}
	if !t.Failed() {
		askTenants()
	}
}

// askPast asks a tenant at every revision, and as of many instants.
func askPast(t *testing.T, e *enginetest.Env, n *tenant, m *mix, fail func(string, ...any)) {
	t.Helper()
	db := e.Engine.DB()
	e.Store = n.store
	info, known := db.StoreInfo(n.store)
	if !known {
		t.Fatalf("store %d is unknown", n.store)
	}
	gone := func(err error) {
		t.Helper()
		var gone *graph.RevisionGoneError
		if !errors.As(err, &gone) || gone.Oldest != info.OldestHistory || gone.OldestAt != info.OldestHistoryAt {
			t.Fatalf("store %d of %+v: %v", n.store, info, err)
		}
	}
	for rev := graph.Revision(1); rev <= db.Applied().Revision; rev++ {
		if rev < info.OldestHistory {
			_, err := e.Engine.Snapshot(n.store, rev, e.Now, graph.Overlay{})
			gone(err)
			continue
		}
		about := n.at(func(m moment) bool { return m.revision <= rev })
		about.revision, about.instant, about.brief = rev, e.Now, rev%5 != 0
		if !askMoment(t, e, m, about, fail) {
			return
		}
	}
	begin := graph.InstantOf(enginetest.Start) - 1
	for range 10 {
		at := begin + graph.Instant(n.random(int64(e.Now-begin)+2))
		rev, instant, err := e.AsOf(at)
		if info.OldestHistory != 0 && at < info.OldestHistoryAt {
			gone(err)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		about := n.at(func(m moment) bool { return m.instant <= at })
		about.revision, about.instant, about.brief = rev, instant, at%3 != 0
		if !askMoment(t, e, m, about, fail) {
			return
		}
	}
}

func (n *tenant) random(below int64) int64 {
	if n.w == nil {
		return below - 1
	}
	return n.w.Int64N(below)
}

func askMoment(t *testing.T, e *enginetest.Env, m *mix, about moment, fail func(string, ...any)) bool {
	t.Helper()
	if about.w != nil {
		return askAll(e, about.w, m, about, true, fail)
	}
	s, err := e.Engine.Snapshot(e.Store, about.revision, about.instant, graph.Overlay{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var refusal *engine.Refusal
	if _, _, err := s.Schema(); !errors.As(err, &refusal) || refusal.Reason != engine.NoSchema {
		t.Fatalf("at %d, before its first schema, store %d gives %v", about.revision, e.Store, err)
	}
	if n, err := s.Graph().Count(graph.Filter{}); err != nil || n != 0 {
		t.Fatalf("at %d, before its first tuple, store %d has %d (%v)", about.revision, e.Store, n, err)
	}
	return true
}

// TestStoresJudged holds that every judgement of stores is a result, the same
// whatever the node remembers, and that nothing is changed by a refusal.
func TestStoresJudged(t *testing.T) {
	e, err := enginetest.New(engine.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}()
	short := graph.Retention(1)
	tuple, err := graph.ParseTuple("doc:a#viewer@user:x")
	if err != nil {
		t.Fatal(err)
	}
	change := func(c graph.StoreChange) *graph.StoreChange { return &c }
	for _, c := range []struct {
		mutation graph.Mutation
		want     engine.Reason
	}{
		{graph.Mutation{StoreChange: change(graph.StoreChange{Operation: graph.CreateStore, Name: "default"})}, engine.StoreExists},
		{graph.Mutation{StoreChange: change(graph.StoreChange{Operation: graph.CreateStore, Name: "a b"})}, engine.Malformed},
		{graph.Mutation{Store: 1, StoreChange: change(graph.StoreChange{Operation: graph.CreateStore, Name: "b"})}, engine.Malformed},
		{graph.Mutation{Store: 1, StoreChange: change(graph.StoreChange{Operation: graph.DropStore})}, engine.StoreProtected},
		{graph.Mutation{Store: 1, StoreChange: change(graph.StoreChange{Operation: graph.SetStore, History: &short})}, engine.Malformed},
		{graph.Mutation{Store: 1, StoreChange: change(graph.StoreChange{})}, engine.Malformed},
		{
			graph.Mutation{
				Store: 1, StoreChange: change(graph.StoreChange{Operation: graph.DropStore}),
				Updates: []graph.Update{{Operation: graph.Touch, Tuple: tuple}},
			}, engine.Malformed,
		},
		{graph.Mutation{Store: 9, StoreChange: change(graph.StoreChange{Operation: graph.SetStore})}, engine.UnknownStore},
		{graph.Mutation{Store: 9, StoreChange: change(graph.StoreChange{Operation: graph.DropStore})}, engine.UnknownStore},
		{graph.Mutation{Store: 9, Prune: &graph.Prune{}}, engine.UnknownStore},
		{graph.Mutation{Store: 9, Collect: &graph.Collect{Limit: 1}}, engine.UnknownStore},
		{graph.Mutation{Store: 9, Schema: &graph.WriteSchema{Text: "definition user {}"}}, engine.UnknownStore},
		{graph.Mutation{Store: 9, Updates: []graph.Update{{Operation: graph.Touch, Tuple: tuple}}}, engine.UnknownStore},
		{graph.Mutation{Store: 9, Delete: &graph.DeleteMatching{Limit: 1}}, engine.UnknownStore},
	} {
		before := fmt.Sprintf("%+v", e.Engine.DB().Stores())
		result, err := e.Apply(&c.mutation)
		if err != nil || result.Refusal == nil || result.Refusal.Reason != c.want || result.Store != 0 {
			t.Errorf("%+v: %+v (%v), expected %s", c.mutation, result, err, c.want)
		}
		if c.want == engine.UnknownStore && !errors.Is(result.Refusal, graph.ErrUnknownStore) {
			t.Errorf("%+v: %v does not say that the store is unknown", c.mutation, result.Refusal)
		}
		if after := fmt.Sprintf("%+v", e.Engine.DB().Stores()); after != before {
			t.Errorf("%+v made %s of %s", c.mutation, after, before)
		}
	}
}

// TestProgramsOfDroppedStores holds that an engine forgets the programs of stores
// that are dropped, also when a question that began before ends after.
func TestProgramsOfDroppedStores(t *testing.T) {
	e, err := enginetest.New(engine.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}()
	ask := func(s *engine.Snapshot) {
		t.Helper()
		if _, _, err := s.Schema(); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Schema("definition user {}"); err != nil {
		t.Fatal(err)
	}
	s, err := e.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	ask(s)
	s.Close()
	kept := maps.Clone(engine.Programs(e.Engine))
	for i := range 20 {
		made, err := e.Write(&graph.Mutation{StoreChange: &graph.StoreChange{Operation: graph.CreateStore, Name: "tenant"}})
		if err != nil {
			t.Fatal(err)
		}
		e.Store = made.Store
		if err := e.Schema(fmt.Sprintf("definition user%d {}", i)); err != nil {
			t.Fatal(err)
		}
		early, err := e.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		late, err := e.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		ask(early)
		if _, err := e.Write(&graph.Mutation{StoreChange: &graph.StoreChange{Operation: graph.DropStore}}); err != nil {
			t.Fatal(err)
		}
		ask(late)
		early.Close()
		late.Close()
		if got := engine.Programs(e.Engine); !maps.Equal(got, kept) {
			t.Fatalf("programs are kept of the stores %v", slices.Sorted(maps.Keys(got)))
		}
	}
}
