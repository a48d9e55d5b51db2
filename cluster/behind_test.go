package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/pembadb/pemba/cluster/badgerlog"
	"github.com/pembadb/pemba/graph"
)

// leadWith has one of the nodes lead; another is asked to see to it.
func leadWith(t *testing.T, leader, asked *Node) {
	t.Helper()
	for end := time.Now().Add(deadline); !leader.leads(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s does not lead", leader.ID())
		}
		if err := asked.TransferLeadership(testContext(t), leader.ID()); err != nil {
			t.Logf("hand the leadership to %s: %v", leader.ID(), err) // It may be on its way.
		}
	}
}

// isCut waits until the log of a node begins behind an entry.
func isCut(t *testing.T, n *Node, behind uint64) {
	t.Helper()
	eventually(t, "the log is cut", func() bool { first, _ := n.log.FirstIndex(); return first > behind })
}

// holdsState checks that the folder of the state that is in force is there.
func holdsState(t *testing.T, n *Node) {
	t.Helper()
	folder := n.machine.Load().folder
	files, err := os.ReadDir(n.dir.folder(folder))
	if err != nil || len(files) == 0 {
		t.Errorf("%s answers from %s, in which %d files are left (%v)", n.ID(), folder, len(files), err)
	}
}

// TestBehindSentState: the log of the leader begins behind a state that the leader itself
// was sent, and only no-ops came since. Another node is sent that state once, and follows
// then. No-ops do not move its revision, which so never came to where the log of the
// leader begins: it fetched the same state again and again, into the folder of the one
// that was open, and was none of the majority without which there was no leader.
func TestBehindSentState(t *testing.T) {
	configs := map[string]Config{}
	nodes := openCluster(t, 5, func(c *Config) {
		c.SnapshotThreshold, c.TrailingLogs, c.SnapshotInterval = 16, 4, time.Millisecond
		c.ElectionTimeout = 2 * time.Second // So that n4 is the one that is elected.
		if c.NodeID == "n1" || c.NodeID == "n4" {
			c.ElectionTimeout = 200 * time.Millisecond
		}
		configs[c.NodeID] = *c
	})
	n1, n2, n3 := nodes[0], nodes[1], nodes[2]
	writeSchema(t, n1)
	leadWith(t, n1, n2)
	closeNode(t, nodes[3])
	closeNode(t, nodes[4])
	fillState(t, n1, 60)
	isCut(t, n1, 40)
	n4 := open(t, configs["n4"])
	eventually(t, "n4 has the state", func() bool {
		return n4.Ready() == nil && n4.db().Applied().Revision == n1.db().Applied().Revision
	})
	leadWith(t, n4, n2)
	n5 := open(t, configs["n5"])
	eventually(t, "n5 has a state", func() bool { return n5.installer.count() > 0 })
	closeNode(t, n1)
	closeNode(t, n2)
	write(t, n3, create(viewer("after", "anna")))
	if !has(t, n5, Consistency{Mode: Linearizable}, viewer("after", "anna")) {
		t.Error("n5 does not have what was written with its help")
	}
	if got := n5.installer.count(); got != 1 {
		t.Errorf("n5 put %d states into force, and one was enough", got)
	}
	holdsState(t, n5)
	closeNode(t, n5)
	again := open(t, configs["n5"])
	if !has(t, again, Consistency{Mode: Linearizable}, viewer("after", "anna")) {
		t.Error("n5 does not have the write after a restart")
	}
}

// TestReplicaBehindSentState is the same with a node that nobody waits for: it is not
// sent the state without end.
func TestReplicaBehindSentState(t *testing.T) {
	configs := map[string]Config{}
	configure := func(c *Config) {
		c.SnapshotThreshold, c.TrailingLogs, c.SnapshotInterval = 16, 4, time.Millisecond
		configs[c.NodeID] = *c
	}
	nodes := openCluster(t, 3, configure)
	n1, n2 := nodes[0], nodes[1]
	writeSchema(t, n1)
	leadWith(t, n1, n2)
	config := peerConfig(t, "n4")
	configure(&config)
	config.Replica, config.Join = true, joinVia(n1)
	n4 := open(t, config)
	eventually(t, "n4 is ready", func() bool { return n4.Ready() == nil })
	write(t, n1, create(viewer("before", "anna")))
	closeNode(t, nodes[2])
	closeNode(t, n4)
	fillState(t, n1, 60)
	isCut(t, n1, 40)
	n3 := open(t, configs["n3"])
	eventually(t, "n3 has the state", func() bool {
		return n3.Ready() == nil && n3.db().Applied().Revision == n1.db().Applied().Revision
	})
	leadWith(t, n3, n2)
	n4 = open(t, config)
	eventually(t, "n4 follows", func() bool { return n4.Ready() == nil && n4.raft().LastIndex() >= n3.raft().LastIndex() })
	if got := n4.installer.count(); got != 1 {
		t.Errorf("n4 put %d states into force, and one was enough", got)
	}
	holdsState(t, n4)
}

// TestCutBehindNoops: behind the last change there are more no-ops than entries are kept.
// To Raft they belong to its snapshot, and it cut the log up to them: the entry of the
// graph's revision went, of which the leader has to know the term for a node that has just
// this revision. Such a node was sent the state again and again.
func TestCutBehindNoops(t *testing.T) {
	configure := func(c *Config) { c.TrailingLogs = 1 }
	nodes := openCluster(t, 1, configure)
	n1 := nodes[0]
	writeSchema(t, n1)
	config := peerConfig(t, "n2")
	configure(&config)
	config.Replica, config.Join = true, joinVia(n1)
	n2 := open(t, config)
	eventually(t, "n2 is ready", func() bool { return n2.Ready() == nil })
	closeNode(t, n2)
	fillState(t, n1, 20)
	for range 10 {
		if err := n1.raft().Barrier(0).Error(); err != nil {
			t.Fatal(err)
		}
	}
	n1.cutOnce(n1.machine.Load())
	n1.log.newest.clear() // As many more entries would.
	first, err := n1.log.FirstIndex()
	if durable := uint64(n1.db().Durable().Revision); err != nil || first != durable {
		t.Errorf("the log begins at %d (%v), and the graph is flushed up to %d", first, err, durable)
	}
	n2 = open(t, config)
	eventually(t, "n2 follows", func() bool { return n2.Ready() == nil && n2.raft().LastIndex() >= n1.raft().LastIndex() })
	if got := n2.installer.count(); got != 1 {
		t.Errorf("n2 put %d states into force, and one was enough", got)
	}
	holdsState(t, n2)
}

// TestFirstKnown: the log knows the terms of its entries, and that of the last entry of a
// state that it begins behind.
func TestFirstKnown(t *testing.T) {
	t.Parallel()
	log, err := badgerlog.Open(badgerlog.Config{Dir: t.TempDir(), BallastBytes: -1, CommitIndex: func() uint64 { return 0 }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := log.Close(); err != nil {
			t.Error(err)
		}
	}()
	durable := uint64(100)
	l := &logStore{Log: log, durable: func() uint64 { return durable }, fail: func(err error) { t.Errorf("the node would stop: %v", err) }}
	known := func(when string, want uint64) {
		t.Helper()
		got, err := l.firstKnown()
		if err != nil || got != want {
			t.Errorf("%s: the log knows the terms from %d on (%v), and should from %d", when, got, err, want)
		}
		// What it says is what GetLog does.
		var entry raft.Log
		if want > 0 && l.GetLog(want-1, &entry) == nil {
			t.Errorf("%s: the log knows the term of %d too", when, want-1)
		}
	}
	known("nothing is there", 0)
	if err := l.Wipe(101); err != nil {
		t.Fatal(err)
	}
	known("it was wiped", 101)
	l.base.Store(&logBase{100, 7})
	known("it was wiped behind a state", 100)
	var entries []*raft.Log
	for i := uint64(101); i <= 150; i++ {
		entries = append(entries, &raft.Log{Index: i, Term: 8, Type: raft.LogNoop})
	}
	if err := l.StoreLogs(entries); err != nil {
		t.Fatal(err)
	}
	known("entries came behind the state", 100)
	l.newest.clear()
	// Raft counts no-ops as part of its snapshot.
	if err := l.DeleteRange(101, 149); err != nil {
		t.Fatal(err)
	}
	known("there are only no-ops to be cut", 100)
	durable = 120
	if err := l.DeleteRange(101, 149); err != nil {
		t.Fatal(err)
	}
	known("it was cut", 120)
}

// TestNothingAppliedBeforeInForce: a machine applies nothing before it is in force and
// those who look at states know that. Who was told of an entry before looked for it in the
// state of before, and took it that there was none.
func TestNothingAppliedBeforeInForce(t *testing.T) {
	t.Parallel()
	f := &fsm{inForce: make(chan struct{}), advanced: func() {}}
	applied := make(chan struct{})
	go func() {
		f.ApplyBatch(nil)
		close(applied)
	}()
	select {
	case <-applied:
		t.Error("a machine that is not in force applies")
	case <-time.After(100 * time.Millisecond):
	}
	close(f.inForce)
	<-applied
}

// TestWatchOverState: a node is sent a state while somebody watches there. The watcher of
// a store that was changed meanwhile gets the changes, and that of a store that was
// dropped hears so. He was told that the store was not changed, for ever.
func TestWatchOverState(t *testing.T) {
	configure := func(c *Config) { c.TrailingLogs = 1 }
	n1 := openCluster(t, 1, configure)[0]
	writeSchema(t, n1)
	dropped := createStore(t, n1, "dropped", nil)
	kept := createStore(t, n1, "kept", nil)
	config := peerConfig(t, "n2")
	config.Replica, config.Join = true, joinVia(n1)
	n2 := open(t, config)
	eventually(t, "n2 has it all", func() bool {
		return n2.Ready() == nil && n2.db().Applied().Revision == n1.db().Applied().Revision
	})
	next := graph.Position{Revision: n2.db().Applied().Revision + 1}
	watch := func(store graph.StoreID) *Watcher {
		w, err := n2.Watch(store, next)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(w.Close)
		// It is behind all that there is, so that it reads nothing by itself.
		if _, err := w.Next(testContext(t), time.Millisecond); err != nil {
			t.Fatal(err)
		}
		return w
	}
	ofDropped, ofKept := watch(dropped), watch(kept)
	if err := n2.machine.Load().stopRaft(); err != nil {
		t.Fatal(err)
	}
	dropStore(t, n1, dropped)
	changed := create(viewer("d", "anna"))
	changed.Store = kept
	revision := write(t, n1, changed).Revision
	n1.cutOnce(n1.machine.Load()) // Which is why it is sent one.
	n2.installer.want(stateToken{node: "n1", revision: revision, first: uint64(revision)})

	batch, err := ofKept.Next(testContext(t), deadline)
	if err != nil || len(batch.Revisions) != 1 || batch.Revisions[0].Revision != revision {
		t.Errorf("the watcher of the store that was changed got %+v (%v), and should have got revision %d", batch, err, revision)
	}
	for end := time.Now().Add(deadline); ; {
		batch, err := ofDropped.Next(testContext(t), 10*time.Millisecond)
		if errors.Is(err, graph.ErrUnknownStore) {
			break
		}
		if err != nil || batch.Reached >= revision || time.Now().After(end) {
			t.Errorf("the watcher of the store that was dropped got %+v (%v)", batch, err)
			break
		}
	}
	if got := n2.installer.count(); got != 1 {
		t.Errorf("n2 put %d states into force", got)
	}
}

// TestProposalsOfStoppedRaft: a Raft that is stopped, as it is when its machine is
// replaced, does not answer what is agreed and waits for the FSM. Those who wrote it hear
// that the outcome is unknown, and what they held is given back, also where they did not
// wait. Close waited for the admission for ever, and no moment was settled any more.
func TestProposalsOfStoppedRaft(t *testing.T) {
	n := open(t, testConfig(t, t.TempDir()))
	writeSchema(t, n)
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	const count = 60
	outcomes := make(chan error, count)
	var leaving sync.WaitGroup
	// The FSM stands still behind the first of them.
	n.progress.mu.Lock()
	goOn := sync.OnceFunc(n.progress.mu.Unlock)
	defer goOn()
	before := n.raft().LastIndex()
	for i := range count {
		asking := testContext(t)
		if i%2 == 1 {
			asking = ctx
			leaving.Add(1)
		}
		go func() {
			_, err := n.Write(asking, create(viewer(fmt.Sprint(i), "anna")))
			outcomes <- err
			if asking == ctx {
				leaving.Done()
			}
		}()
		// One by one, so that each waits for the FSM by itself.
		eventually(t, "a write is agreed", func() bool { return n.raft().AppliedIndex() >= before+uint64(i)+1 })
	}
	cancel()
	leaving.Wait()
	stopped := make(chan error, 1)
	go func() { stopped <- n.machine.Load().stopRaft() }()
	eventually(t, "Raft stops", func() bool { return n.raft().State() == raft.Shutdown })
	// From here on the FSM ends before each of what is left with a chance of one half.
	goOn()
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	made := 0
	for range count {
		select {
		case err := <-outcomes:
			if err == nil {
				made++
			} else if !errors.Is(err, ErrOutcomeUnknown) {
				t.Errorf("a write that Raft did not answer: %v", err)
			}
		case <-time.After(deadline):
			t.Fatal("a write waits for a Raft that is stopped")
		}
	}
	if made == count {
		t.Error("all were answered, so that nothing was shown")
	}
	eventually(t, "what the writes held is given back", func() bool {
		entries, bytes := n.admission.figures()
		return entries == 0 && bytes == 0 && n.stamps.isSettled(graph.MaxInstant)
	})
}
