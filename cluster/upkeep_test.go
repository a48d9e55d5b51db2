package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s did not come about", what)
		}
	}
}

// Lifetimes end in every store, in those that come later and after a restart,
// and where nothing ends nothing is proposed.
func TestLifetimesEndInEveryStore(t *testing.T) {
	t.Parallel()
	now := newClock(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))
	config := testConfig(t, t.TempDir())
	config.Now = now.Now
	config.CollectPause = time.Millisecond
	n := open(t, config)
	writeSchema(t, n)
	stores := []graph.StoreID{graph.DefaultStore}
	for i := range 20 {
		stores = append(stores, createStore(t, n, fmt.Sprintf("store-%d", i), nil))
	}
	guests := func(n *Node, left time.Duration) {
		for i, store := range stores {
			tuple := viewer(fmt.Sprint(left), "hanna")
			tuple.Relation, tuple.ValidUntil = "guest", now.instant()+graph.Instant(left.Microseconds())+graph.Instant(i)
			m := create(tuple)
			m.Store = store
			write(t, n, m)
		}
	}
	left := func(n *Node) (tuples uint64) {
		for _, store := range stores {
			info, ok := n.db().StoreInfo(store)
			if !ok {
				t.Fatalf("store %d is missing", store)
			}
			tuples += info.Tuples
		}
		return tuples
	}
	guests(n, time.Hour)
	guests(n, time.Minute) // Earlier than what is known.
	now.advance(time.Minute + 9*time.Microsecond)
	eventually(t, "the end of 10 lifetimes", func() bool { return left(n) == uint64(2*len(stores)-10) })
	now.advance(time.Minute)
	eventually(t, "the end of all short lifetimes", func() bool { return left(n) == uint64(len(stores)) })
	last := n.raft().LastIndex()
	time.Sleep(20 * time.Millisecond)
	if now := n.raft().LastIndex(); now != last {
		t.Errorf("the log grew from %d to %d with nothing due", last, now)
	}
	// The FSM counts an entry behind its commit, which is seen before.
	eventually(t, "the count of the ended lifetimes", func() bool { return n.counts.lifetimesEnded.Load() >= uint64(len(stores)) })
	if m, err := n.Metrics(); err != nil || m.LifetimesEnded != uint64(len(stores)) {
		t.Errorf("%d lifetimes ended, %v", m.LifetimesEnded, err)
	}
	closeNode(t, n)
	now.advance(2 * time.Hour)
	again := open(t, config)
	eventually(t, "the end of the others after a restart", func() bool { return left(again) == 0 })
}

// A store in which collecting fails keeps no other from it, and is reported.
func TestCollectingGoesOnBehindAFailure(t *testing.T) {
	t.Parallel()
	now := newClock(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))
	config := testConfig(t, t.TempDir())
	config.Now = now.Now
	config.CollectPause = time.Millisecond
	var lines lineCounter
	config.Logger = lines.logger()
	n := open(t, config)
	writeSchema(t, n)
	stores := []graph.StoreID{graph.DefaultStore}
	for i := range 8 {
		stores = append(stores, createStore(t, n, fmt.Sprintf("store-%d", i), nil))
	}
	fails := func(store graph.StoreID) bool { return store%3 == 0 }
	broken := true // Guarded by the collector's lock, under which look is taken.
	look := func(store graph.StoreID) (graph.Instant, error) {
		n.collector.mu.Lock()
		fail := broken && fails(store)
		n.collector.mu.Unlock()
		if fail {
			return 0, errors.New("out of luck")
		}
		return n.nextEnd(store)
	}
	n.collector.mu.Lock()
	n.collector.look = look
	n.collector.mu.Unlock()
	for _, store := range stores {
		tuple := viewer("1", "hanna")
		tuple.Relation, tuple.ValidUntil = "guest", now.instant()+60_000_000
		m := create(tuple)
		m.Store = store
		write(t, n, m)
	}
	left := func(failing bool) (tuples uint64) {
		for _, store := range stores {
			if info, _ := n.db().StoreInfo(store); fails(store) == failing {
				tuples += info.Tuples
			}
		}
		return tuples
	}
	now.advance(time.Hour)
	eventually(t, "the end of the lifetimes in the other stores", func() bool { return left(false) == 0 })
	if got := left(true); got != 3 {
		t.Errorf("%d tuples are left in the stores that fail", got)
	}
	eventually(t, "the report", func() bool { return lines.bad.Load() > 0 })
	n.collector.mu.Lock()
	broken = false
	n.collector.mu.Unlock()
	now.advance(time.Hour)
	eventually(t, "the end of all lifetimes", func() bool { return left(true) == 0 })
}

// The past is pruned in each store by its own retention, when there is something
// to forget, and never where it is kept for ever.
func TestPastIsPruned(t *testing.T) {
	t.Parallel()
	now := newClock(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))
	config := testConfig(t, t.TempDir())
	config.Now = now.Now
	config.PrunePause = time.Millisecond
	n := open(t, config)
	writeSchema(t, n)
	hour, forever := graph.Retention(time.Hour.Microseconds()), graph.Forever
	short := createStore(t, n, "short", &graph.StoreChange{History: &hour, Log: &hour})
	long := createStore(t, n, "long", &graph.StoreChange{History: &forever, Log: &forever})
	var revisions []graph.Revision
	change := func(i int) {
		for _, store := range []graph.StoreID{short, long} {
			m := create(viewer(fmt.Sprint(i), "hanna"))
			if m.Store = store; i > 0 {
				m.Updates = append(m.Updates, graph.Update{Operation: graph.Delete, Tuple: viewer(fmt.Sprint(i-1), "hanna")})
			}
			result := write(t, n, m)
			if store == short {
				revisions = append(revisions, result.Revision)
			}
		}
	}
	for i := range 10 {
		now.advance(20 * time.Minute)
		change(i)
	}
	info := func(id graph.StoreID) graph.StoreInfo {
		info, ok := n.db().StoreInfo(id)
		if !ok {
			t.Fatalf("store %d is missing", id)
		}
		return info
	}
	// An hour ago the change three before the last one had just been made.
	eventually(t, "the pruning", func() bool { return info(short).OldestHistory == revisions[6] })
	if got := info(long); got.OldestHistory != 0 || got.OldestLog != 0 {
		t.Errorf("the store that is kept for ever: %+v", got)
	}
	snapshot := func(store graph.StoreID, at graph.Revision) error {
		s, err := n.Snapshot(testContext(t), store, Consistency{Mode: Exactly, Revision: at}, graph.Overlay{})
		if err == nil {
			s.Close()
		}
		return err
	}
	if err := errors.Join(snapshot(short, revisions[6]), snapshot(short, revisions[9]), snapshot(long, revisions[0])); err != nil {
		t.Error(err)
	}
	if err := snapshot(short, revisions[5]); !errors.Is(err, graph.ErrRevisionGone) {
		t.Errorf("what is older than the retention: %v", err)
	}
	// With nothing more to forget, nothing is proposed, however time passes.
	now.advance(48 * time.Hour)
	eventually(t, "the pruning of the rest", func() bool { return info(short).OldestHistory == revisions[9] })
	last := n.raft().LastIndex()
	for range 10 {
		now.advance(time.Hour)
		time.Sleep(3 * time.Millisecond)
	}
	if now := n.raft().LastIndex(); now != last {
		t.Errorf("the log grew from %d to %d with nothing to forget", last, now)
	}
	m, err := n.Metrics()
	if err != nil || m.Prunes == 0 || m.Prunes > 20 {
		t.Errorf("%d prunes, %v", m.Prunes, err)
	}
	// Each node removes by itself what nobody can read.
	eventually(t, "the removal", func() bool {
		n.remover.mu.Lock()
		defer n.remover.mu.Unlock()
		return len(n.remover.stores) == 0
	})
	if more, err := n.db().Remove(short, removalRecords); more || err != nil {
		t.Errorf("the removal left something: %v, %v", more, err)
	}
}

// A log that is kept longer than the history is pruned in time, also in a store
// that nobody changes any more, whose history was pruned to its end before.
func TestLogIsPrunedBehindTheHistory(t *testing.T) {
	t.Parallel()
	now := newClock(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))
	config := testConfig(t, t.TempDir())
	config.Now = now.Now
	config.PrunePause = time.Millisecond
	n := open(t, config)
	hour, day := graph.Retention(time.Hour.Microseconds()), graph.Retention(24*time.Hour.Microseconds())
	store := createStore(t, n, "idle", &graph.StoreChange{History: &hour, Log: &day})
	change := func(document string) graph.Revision {
		now.advance(20 * time.Hour)
		m := create(viewer(document, "hanna"))
		m.Store = store
		return write(t, n, m).Revision
	}
	info := func() graph.StoreInfo {
		info, ok := n.db().StoreInfo(store)
		if !ok {
			t.Fatal("the store is missing")
		}
		return info
	}
	first := change("0")
	last := change("1")
	now.advance(2 * time.Hour)
	eventually(t, "the pruning of the history", func() bool { return info().OldestHistory == last })
	now.advance(3 * time.Hour) // The first change is 25 hours old, the last 5.
	eventually(t, "the pruning of the log", func() bool { return info().OldestLog == first })
	now.advance(24 * time.Hour)
	eventually(t, "the pruning of the log to its end", func() bool { return info().OldestLog == last })
	index := n.raft().LastIndex()
	now.advance(24 * time.Hour)
	time.Sleep(10 * time.Millisecond)
	if now := n.raft().LastIndex(); now != index {
		t.Errorf("the log grew from %d to %d with nothing to forget", index, now)
	}
}

// Staged changes that were left behind are dropped, others not.
func TestIdleStagesAreCollected(t *testing.T) {
	t.Parallel()
	now := newClock(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))
	config := testConfig(t, t.TempDir())
	config.Now = now.Now
	config.PrunePause = time.Millisecond
	n := open(t, config)
	writeSchema(t, n)
	stage := func(id byte) {
		m := create(viewer(fmt.Sprint(id), "hanna"))
		m.Stage = &graph.Stage{Operation: graph.StageUpdates, ID: graph.StageID{id}}
		write(t, n, m)
	}
	stage(1)
	now.advance(12 * time.Hour)
	stage(2)
	now.advance(12*time.Hour + time.Second)
	eventually(t, "the collection", func() bool {
		stages, err := n.Stages(graph.DefaultStore)
		if err != nil {
			t.Fatal(err)
		}
		if len(stages) == 0 || stages[len(stages)-1].ID != (graph.StageID{2}) {
			t.Fatalf("left are %v", stages)
		}
		return len(stages) == 1
	})
	last := n.raft().LastIndex()
	time.Sleep(10 * time.Millisecond)
	if now := n.raft().LastIndex(); now != last {
		t.Errorf("the log grew from %d to %d with nothing idle", last, now)
	}
	eventually(t, "the count of collections", func() bool { return n.counts.stageCollections.Load() > 0 })
	if m, err := n.Metrics(); err != nil || m.StageCollections != 1 {
		t.Errorf("%d collections, %v", m.StageCollections, err)
	}
}

// Damage in a table that nobody reads stops the node soon after its start.
func TestDamageIsFoundByReadingEverything(t *testing.T) {
	t.Parallel()
	config, faults := failing(t)
	n := open(t, config)
	writeSchema(t, n)
	for i := range 40 {
		m := create()
		for j := range 100 {
			m.Updates = append(m.Updates, graph.Update{Operation: graph.Create, Tuple: viewer(fmt.Sprintf("%d-%d", i, j), "hanna")})
		}
		write(t, n, m)
	}
	closeNode(t, n)
	tables, err := filepath.Glob(filepath.Join(config.DataDir, "state", "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatal("there are no tables", err)
	}
	whole := open(t, config)
	eventually(t, "the reading of all tables", func() bool {
		m, err := whole.Metrics()
		return err == nil && m.Verified && m.VerifiedBytes > 0
	})
	closeNode(t, whole)

	table := tables[len(tables)-1]
	content, err := os.ReadFile(table)
	if err != nil {
		t.Fatal(err)
	}
	content[len(content)/2] ^= 0x10
	if err := os.WriteFile(table, content, 0o600); err != nil {
		t.Fatal(err)
	}
	n, err = Open(testContext(t), config)
	if err != nil {
		t.Logf("refused at once: %v", err)
		return
	}
	t.Cleanup(func() {
		if err := n.Close(testContext(t)); err != nil {
			t.Logf("close: %v", err)
		}
	})
	mustBeStopped(t, n, faults, "verify the state", filepath.Base(table))
}

// fill gives a store something of every kind that a node keeps for one: caveats
// and lifetimes, a named counter, an import that is committed and one that is not.
func fill(t *testing.T, n *Node, store graph.StoreID) {
	t.Helper()
	write(t, n, &graph.Mutation{Store: store, Schema: &graph.WriteSchema{Text: testSchema + `
caveat by_day(day string) { day == "monday" }
definition folder {
    relation viewer: person with by_day
}
`}})
	limited, ending := viewer("limited", "hanna"), viewer("ending", "hanna")
	limited.Object.Type, limited.Caveat = "folder", "by_day"
	ending.Relation, ending.ValidUntil = "guest", graph.Instant(time.Date(2040, 1, 2, 3, 4, 5, 0, time.UTC).UnixMicro())
	m := create(limited, ending)
	m.Store = store
	write(t, n, m)
	write(t, n, &graph.Mutation{Store: store, CounterChange: &graph.CounterChange{
		Operation: graph.RegisterCounter, Name: "documents", Filter: graph.Filter{ObjectType: "document"},
	}})
	staged := func(id byte) graph.StageInfo {
		m := create(viewer(fmt.Sprint("staged-", id), "hanna"))
		m.Store, m.Stage = store, &graph.Stage{Operation: graph.StageUpdates, ID: graph.StageID{id}}
		return write(t, n, m).Stage
	}
	done := staged(1)
	write(t, n, &graph.Mutation{Store: store, Stage: &graph.Stage{
		Operation: graph.StageCommit, ID: done.ID, Chunk: done.Chunks, Digest: done.Digest,
	}})
	staged(2)
}

// A store that is dropped goes while another answers, an import into it is under
// way and its own past is just being removed: nothing of it is left in the state,
// before and after a restart.
func TestDroppedStoreIsRemoved(t *testing.T) {
	t.Parallel()
	now := newClock(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))
	config := testConfig(t, t.TempDir())
	config.Now = now.Now
	config.PrunePause = time.Millisecond
	n := open(t, config)
	writeSchema(t, n)
	write(t, n, create(viewer("0", "hanna")))
	hour := graph.Retention(time.Hour.Microseconds())
	store := createStore(t, n, "large", &graph.StoreChange{History: &hour, Log: &hour})
	for i := range 10 {
		m := &graph.Mutation{Store: store}
		for j := range 1000 {
			m.Updates = append(m.Updates, graph.Update{Operation: graph.Touch, Tuple: viewer(fmt.Sprintf("%d-%d", i, j), "hanna")})
			if i > 0 {
				m.Updates = append(m.Updates, graph.Update{Operation: graph.Delete, Tuple: viewer(fmt.Sprintf("%d-%d", i-1, j), "hanna")})
			}
		}
		write(t, n, m)
	}
	fill(t, n, store)
	if _, err := n.db().Flush(); err != nil {
		t.Fatal(err) // What is dropped is to stand in tables, not in memory alone.
	}
	// Who reads it still sees all of it.
	reader, err := n.Snapshot(testContext(t), store, Consistency{}, graph.Overlay{})
	if err != nil {
		t.Fatal(err)
	}
	check := engine.Check{Object: graph.Object{Type: "document", ID: "0"}, Name: "view", Subject: graph.Subject{Object: graph.Object{Type: "person", ID: "hanna"}}}
	stop, done := make(chan struct{}), make(chan error, 1)
	var checks atomic.Int64
	go func() {
		done <- func() error {
			for {
				s, err := n.Snapshot(context.Background(), graph.DefaultStore, Consistency{}, graph.Overlay{})
				if err != nil {
					return err
				}
				answer, err := s.Check(context.Background(), check)
				s.Close()
				if err != nil || answer.Decision != engine.Allowed {
					return fmt.Errorf("%v, %w", answer, err)
				}
				checks.Add(1)
				select {
				case <-stop:
					return nil
				default:
				}
			}
		}()
	}()
	now.advance(2 * time.Hour)
	eventually(t, "the pruning", func() bool {
		info, _ := n.db().StoreInfo(store)
		return info.OldestHistory > 0
	})
	// Its past begins to go, and how far that has come is written down.
	if _, err := n.db().Remove(store, removalRecords); err != nil {
		t.Fatal(err)
	}
	if stages, err := n.Stages(store); err != nil || len(stages) != 1 {
		t.Fatalf("the imports under way are %v, %v; want one", stages, err)
	}
	dropStore(t, n, store)
	asked := checks.Load()
	if _, ok, err := reader.Graph().Get(graph.Object{Type: "document", ID: "9-0"}, "viewer", check.Subject); err != nil || !ok {
		t.Errorf("who reads the store has lost it: %t, %v", ok, err)
	}
	reader.Close()
	eventually(t, "the removal", func() bool {
		n.remover.mu.Lock()
		defer n.remover.mu.Unlock()
		return len(n.remover.stores) == 0
	})
	// Every record that is there is of a store that there is.
	if err := n.db().CheckInvariants(); err != nil {
		t.Error(err)
	}
	if info, ok := n.db().StoreInfo(store); ok {
		t.Errorf("it is still there: %+v", info)
	}
	if more, err := n.db().Remove(store, removalRecords); more || err != nil {
		t.Errorf("the removal left something: %v, %v", more, err)
	}
	eventually(t, "checks meanwhile", func() bool { return checks.Load() > asked })
	close(stop)
	if err := <-done; err != nil {
		t.Errorf("checks on another store: %v", err)
	}
	// A node that starts again knows nothing of it either.
	closeNode(t, n)
	again := open(t, config)
	if _, err := again.Snapshot(testContext(t), store, Consistency{}, graph.Overlay{}); !errors.Is(err, graph.ErrUnknownStore) {
		t.Errorf("after a restart: %v", err)
	}
	if err := again.db().CheckInvariants(); err != nil {
		t.Error(err)
	}
}
