package engine_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/engine/enginetest"
	"github.com/pembadb/pemba/graph"
)

const requestSchema = `use expiration
definition person {}
definition document { relation viewer: person | person with expiration }`

// stateOf is what can be asked of a graph as a whole.
func stateOf(t *testing.T, e *engine.Engine) string {
	t.Helper()
	text := fmt.Sprintf("%x %v\n", e.DB().ClusterID(), e.DB().Ancestors())
	for _, store := range e.DB().Stores() {
		changes, err := e.DB().Changes(store.ID, graph.Position{}, 10_000)
		if err != nil {
			t.Fatal(err)
		}
		stages, err := e.DB().Stages(store.ID)
		if err != nil {
			t.Fatal(err)
		}
		s, err := e.DB().Snapshot(store.ID, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		counters, err := s.NamedCounters()
		s.Close()
		if err != nil {
			t.Fatal(err)
		}
		text += fmt.Sprintf("%+v\n%v\n%v\n%v\n", store, changes, stages, counters)
	}
	return text
}

// TestRepeatedRequests asks each kind of mutation twice under one id, with a
// restart between: the second changes nothing and comes to the same.
func TestRepeatedRequests(t *testing.T) {
	e := newEnv(t, requestSchema)
	touch := func(o graph.Operation, ids ...string) (updates []graph.Update) {
		for _, id := range ids {
			tuple, err := graph.ParseTuple(id)
			if err != nil {
				t.Fatal(err)
			}
			updates = append(updates, graph.Update{Operation: o, Tuple: tuple})
		}
		return updates
	}
	id, filter := graph.StageID{1}, graph.Filter{ObjectType: "document"}
	hour := graph.Retention(3600e6)
	for i, c := range []struct {
		m    graph.Mutation
		want engine.Result // Changed, Partial and Store.
	}{
		{graph.Mutation{Store: 1, Updates: touch(graph.Create, "document:a#viewer@person:anne", "document:b#viewer@person:anne", "document:c#viewer@person:anne")}, engine.Result{Changed: 3}},
		{graph.Mutation{Store: 1, Delete: &graph.DeleteMatching{Filter: filter, Limit: 1, AllowPartial: true}}, engine.Result{Changed: 1, Partial: true}},
		{graph.Mutation{Store: 1, Updates: touch(graph.Create, "document:x#viewer@person:anne[expiration:2026-01-01T00:00:01Z]")}, engine.Result{Changed: 1}},
		{graph.Mutation{Store: 1, Collect: &graph.Collect{Limit: 9}}, engine.Result{Changed: 1}},
		{graph.Mutation{Store: 1, Schema: &graph.WriteSchema{Text: requestSchema + "\n"}}, engine.Result{}},
		{graph.Mutation{StoreChange: &graph.StoreChange{Operation: graph.CreateStore, Name: "other"}}, engine.Result{Store: 2}},
		{graph.Mutation{Store: 2, StoreChange: &graph.StoreChange{Operation: graph.SetStore, History: &hour}}, engine.Result{}},
		{graph.Mutation{Store: 2, Prune: &graph.Prune{}}, engine.Result{}},
		{graph.Mutation{Store: 2, StoreChange: &graph.StoreChange{Operation: graph.DropStore}}, engine.Result{}},
		{graph.Mutation{Store: 1, Stage: &graph.Stage{Operation: graph.StageUpdates, ID: id}, Updates: touch(graph.Touch, "document:s#viewer@person:anne")}, engine.Result{}},
		{graph.Mutation{Store: 1, Stage: &graph.Stage{Operation: graph.StageUpdates, ID: id, Chunk: 1}, Updates: touch(graph.Touch, "document:t#viewer@person:anne")}, engine.Result{}},
		{graph.Mutation{Store: 1, Stage: &graph.Stage{Operation: graph.StageCommit, ID: id, Chunk: 2}}, engine.Result{Changed: 2}},
		{graph.Mutation{Store: 1, Stage: &graph.Stage{Operation: graph.StageUpdates, ID: graph.StageID{2}}, Updates: touch(graph.Touch, "document:u#viewer@person:anne")}, engine.Result{}},
		{graph.Mutation{Store: 1, Stage: &graph.Stage{Operation: graph.StageDrop, ID: graph.StageID{2}}}, engine.Result{}},
		{graph.Mutation{Store: 1, Stage: &graph.Stage{Operation: graph.StageCollect}}, engine.Result{}},
		{graph.Mutation{Store: 1, CounterChange: &graph.CounterChange{Operation: graph.RegisterCounter, Name: "all", Filter: filter}}, engine.Result{}},
		{graph.Mutation{StartChecksum: &graph.StartChecksum{}}, engine.Result{}},
		{graph.Mutation{Settle: &graph.Settle{}}, engine.Result{}},
		{graph.Mutation{Renew: &graph.Renew{ClusterID: [16]byte{2}}}, engine.Result{}},
	} {
		e.Now += 1_000_000
		c.m.RequestID = fmt.Appendf(nil, "request %d", i)
		first, err := e.Apply(&c.m)
		if err != nil || first.Refusal != nil {
			t.Fatalf("mutation %d: %v, %v", i, err, first.Refusal)
		}
		if first.Changed != c.want.Changed || first.Partial != c.want.Partial || first.Store != c.want.Store || first.Repeated ||
			(c.m.Stage != nil && c.m.Stage.ID != graph.StageID{} && first.Stage.ID != c.m.Stage.ID) {
			t.Fatalf("mutation %d came to %+v, not %+v", i, first, c.want)
		}
		state, applied := stateOf(t, e.Engine), e.Engine.DB().Applied()
		want := first
		want.Repeated = true
		e.Now += 1_000_000
		for range 2 {
			if got, err := e.Apply(&c.m); err != nil || got != want {
				t.Errorf("mutation %d repeated came to %+v (%v), not %+v", i, got, err, want)
			}
			if err := e.Restart(); err != nil {
				t.Fatal(err)
			}
		}
		if after := stateOf(t, e.Engine); after != state {
			t.Errorf("mutation %d repeated made\n%s of\n%s", i, after, state)
		}
		if now := e.Engine.DB().Applied(); now.Revision != applied.Revision+2 || now.Stamp != e.Now {
			t.Errorf("mutation %d repeated: applied is %+v", i, now)
		}
	}
	if err := e.Engine.DB().CheckInvariants(); err != nil {
		t.Error(err)
	}
	// Of the first ones most are over, and all are forgotten in time.
	for i := range 30 {
		e.Now += graph.RequestLifetime
		m := &graph.Mutation{Store: 1, Prune: &graph.Prune{}, RequestID: []byte{byte(i)}}
		if got, err := e.Apply(m); err != nil || got.Repeated || got.Refusal != nil {
			t.Errorf("a new request came to %+v (%v)", got, err)
		}
	}
	if got, err := e.Apply(&graph.Mutation{Store: 1, Prune: &graph.Prune{}, RequestID: []byte("request 0")}); err != nil || got.Repeated {
		t.Errorf("an old request came to %+v (%v)", got, err)
	}
}

// TestRequestRefusals holds that an id which is too long is refused before all else.
func TestRequestRefusals(t *testing.T) {
	e := newEnv(t, requestSchema)
	long := bytes.Repeat([]byte{'x'}, graph.MaxRequestIDLength+1)
	tuple, err := graph.ParseTuple("document:a#viewer@person:anne")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*graph.Mutation{
		{Updates: []graph.Update{{Operation: graph.Touch, Tuple: tuple}}},
		{Prune: &graph.Prune{}},
		{Init: &graph.Init{ClusterID: [16]byte{9}}},
	} {
		m.RequestID = long
		_, err := e.Write(m)
		wantRefusal(t, "a long id", err, engine.Malformed)
	}
}

// newGraph opens a graph without an Init, and returns what applies the next mutation to
// it and returns its refusal, or nil.
func newGraph(t *testing.T) (*graph.DB, func(*graph.Mutation) error) {
	t.Helper()
	db, err := graph.Open(graph.Config{Dir: "state", FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	e, revision := engine.New(db, engine.Config{}), graph.Revision(0)
	return db, func(m *graph.Mutation) error {
		t.Helper()
		revision++
		result, err := e.Apply(revision, 1, graph.Instant(revision), m)
		if err != nil {
			t.Fatal(err)
		}
		if a := db.Applied(); a.Revision != revision {
			t.Fatalf("applied is %+v, not revision %d", a, revision)
		}
		if result.Refusal != nil {
			return result.Refusal
		}
		return nil
	}
}

// TestRenew holds which ids a cluster may get.
func TestRenew(t *testing.T) {
	db, apply := newGraph(t)
	renew := func(id byte) error { return apply(&graph.Mutation{Renew: &graph.Renew{ClusterID: [16]byte{id}}}) }
	wantRefusal(t, "before Init", renew(1), engine.Malformed)
	for _, err := range []error{apply(&graph.Mutation{Init: &graph.Init{ClusterID: [16]byte{1}}}), renew(2), renew(3)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	wantRefusal(t, "zero", renew(0), engine.Malformed)
	wantRefusal(t, "the present id", renew(3), engine.AlreadyInitialized)
	wantRefusal(t, "an ancestor's id", renew(1), engine.AlreadyInitialized)
	wantRefusal(t, "another Init", apply(&graph.Mutation{Init: &graph.Init{ClusterID: [16]byte{1}}}), engine.AlreadyInitialized)
	tuple, err := graph.ParseTuple("document:a#viewer@person:anne")
	if err != nil {
		t.Fatal(err)
	}
	updates := []graph.Update{{Operation: graph.Touch, Tuple: tuple}}
	for what, m := range map[string]*graph.Mutation{
		"with updates":          {Renew: &graph.Renew{ClusterID: [16]byte{9}}, Updates: updates},
		"of a store":            {Renew: &graph.Renew{ClusterID: [16]byte{9}}, Store: 1},
		"checksum with updates": {StartChecksum: &graph.StartChecksum{}, Updates: updates},
		"checksum of a store":   {StartChecksum: &graph.StartChecksum{}, Store: 1},
	} {
		wantRefusal(t, what, apply(m), engine.Malformed)
	}
	want := []graph.Ancestor{{ClusterID: [16]byte{1}, Until: 3}, {ClusterID: [16]byte{2}, Until: 4}}
	if got := db.Ancestors(); db.ClusterID() != [16]byte{3} || !slices.Equal(got, want) {
		t.Errorf("the id is %x, before it %v", db.ClusterID(), got)
	}
	if a := db.Applied(); a.ChecksumSince != 2 {
		t.Errorf("applied is %+v", a)
	}
}

// TestSameChecksum applies random mutations, some of them refused, some repeated,
// on engines with different settings, of which one is restarted now and then: they
// come to the same results and to the same checksum at every revision.
func TestSameChecksum(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	g := rand.New(rand.NewPCG(seed, 3))
	type node struct {
		config graph.Config
		engine *engine.Engine
	}
	nodes := []*node{
		{config: graph.Config{Dir: "state", FS: vfs.NewMem()}},
		{config: graph.Config{Dir: "elsewhere", FS: vfs.NewMem(), MemTableBytes: 64 << 10, CacheBytes: 1 << 16}},
		{config: graph.Config{Dir: "state", FS: vfs.NewMem(), MemTableBytes: 1 << 20}},
	}
	open := func(n *node) {
		db, err := graph.Open(n.config)
		if err != nil {
			t.Fatal(err)
		}
		n.engine = engine.New(db, engine.Config{})
	}
	for _, n := range nodes {
		open(n)
	}
	revision, now := graph.Revision(0), graph.InstantOf(enginetest.Start)
	refused, repeated, chunks := 0, 0, map[byte]uint32{}
	apply := func(m *graph.Mutation) {
		t.Helper()
		revision++
		now += graph.Instant(g.IntN(20)) * 1_000_000
		if g.IntN(2) == 0 {
			m.RequestID = fmt.Appendf(nil, "request %d", g.IntN(40))
		}
		var want engine.Result
		var sum graph.Applied
		for i, n := range nodes {
			got, err := n.engine.Apply(revision, 1, now, m)
			if err != nil {
				t.Fatal(err)
			}
			at := n.engine.DB().Applied()
			if i == 0 {
				want, sum = got, at
				if got.Refusal != nil {
					refused++
				}
				if got.Repeated {
					repeated++
				}
			}
			if (got.Refusal == nil) != (want.Refusal == nil) || (got.Refusal != nil && got.Refusal.Error() != want.Refusal.Error()) {
				t.Fatalf("%+v is refused by node %d: %v, and by the first: %v", m, i, got.Refusal, want.Refusal)
			}
			if got.Refusal = want.Refusal; got != want || at.Checksum != sum.Checksum || at.ChecksumSince != sum.ChecksumSince {
				t.Fatalf("%+v came to %+v and %x on node %d, to %+v and %x on the first", m, got, at.Checksum, i, want, sum.Checksum)
			}
		}
		if want.Refusal == nil && !want.Repeated && m.Stage != nil {
			switch m.Stage.Operation {
			case graph.StageUpdates:
				chunks[m.Stage.ID[0]] = want.Stage.Chunks
			case graph.StageCommit, graph.StageDrop:
				delete(chunks, m.Stage.ID[0])
			}
		}
	}
	apply(&graph.Mutation{Init: &graph.Init{ClusterID: [16]byte{1}}})
	apply(&graph.Mutation{Store: 1, Schema: &graph.WriteSchema{Text: requestSchema}})
	update := func() graph.Update {
		tuple := graph.Tuple{
			Object: graph.Object{Type: "document", ID: fmt.Sprint("d", g.IntN(30))}, Relation: "viewer",
			Subject: graph.Subject{Object: graph.Object{Type: "person", ID: fmt.Sprint("p", g.IntN(10))}},
		}
		if g.IntN(4) == 0 {
			tuple.ValidUntil = now + graph.Instant(1+g.IntN(300))*1_000_000
		}
		return graph.Update{Operation: graph.Operation(1 + g.IntN(3)), Tuple: tuple}
	}
	second := graph.MinRetention
	for i := range 400 {
		m := &graph.Mutation{Store: 1}
		switch g.IntN(10) {
		case 0:
			m.Delete = &graph.DeleteMatching{Filter: graph.Filter{ObjectType: "document", ObjectID: fmt.Sprint("d", g.IntN(30))}, Limit: 1 + g.IntN(4), AllowPartial: g.IntN(2) == 0}
		case 1:
			m.Collect = &graph.Collect{Limit: 1 + g.IntN(4)}
		case 2:
			// Names that the store meets for the first time, and in another order.
			text, n := requestSchema, g.IntN(50)
			for j := range 6 {
				text += fmt.Sprintf("\ncaveat limit%d(a int, b int) { a < b }", (n+j)%50)
				text += fmt.Sprintf("\ndefinition group%d { relation member: person with limit%d\nrelation owner: group%d#member\npermission any = member + owner }", (n+j)%50, (n+j)%50, n)
			}
			m.Schema = &graph.WriteSchema{Text: text}
		case 3:
			m = &graph.Mutation{StoreChange: &graph.StoreChange{Operation: graph.CreateStore, Name: fmt.Sprint("s", g.IntN(6))}}
			if g.IntN(2) == 0 {
				m = &graph.Mutation{Store: graph.StoreID(1 + g.IntN(6)), StoreChange: &graph.StoreChange{Operation: graph.DropStore}}
			}
		case 4:
			id := byte(1 + g.IntN(4))
			m.Stage = &graph.Stage{Operation: graph.StageUpdates, ID: graph.StageID{id}, Chunk: chunks[id]}
			if chunks[id] > 0 && g.IntN(2) == 0 {
				m.Stage.Operation = graph.StageCommit
				break
			}
			for range 3 {
				u := update()
				u.Operation = min(u.Operation, graph.Create)
				m.Updates = append(m.Updates, u)
			}
		case 5:
			m.Prune = &graph.Prune{}
			if g.IntN(2) == 0 {
				m = &graph.Mutation{Store: 1, StoreChange: &graph.StoreChange{Operation: graph.SetStore, History: &second, Log: &second}}
			}
		case 6:
			m = &graph.Mutation{Renew: &graph.Renew{ClusterID: [16]byte{byte(g.IntN(200))}}}
		case 7:
			m.CounterChange = &graph.CounterChange{Operation: graph.CounterOperation(1 + g.IntN(2)), Name: "abc"}
			if m.CounterChange.Operation == graph.RegisterCounter {
				m.CounterChange.Filter.ObjectType = "document"
			}
		default:
			for range 1 + g.IntN(4) {
				m.Updates = append(m.Updates, update())
			}
		}
		apply(m)
		if i%9 == 0 {
			if err := nodes[2].engine.DB().Close(); err != nil {
				t.Fatal(err)
			}
			open(nodes[2])
		}
		if _, err := nodes[1].engine.DB().Remove(1, 5); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d refused, %d repeated", refused, repeated)
	if refused < 20 || repeated < 20 {
		t.Errorf("%d were refused and %d repeated; this tests too little", refused, repeated)
	}
	for _, n := range nodes {
		if err := n.engine.DB().CheckInvariants(); err != nil {
			t.Error(err)
		}
		if err := n.engine.DB().Close(); err != nil {
			t.Error(err)
		}
	}
}
