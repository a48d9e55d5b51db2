package cluster

import (
	"errors"
	"slices"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/pembadb/pemba/cluster/badgerlog"
)

// TestBeginKnown: requests of a leader that begin below what the log knows begin at the
// first known entry then, and all others stay as they are.
func TestBeginKnown(t *testing.T) {
	t.Parallel()
	log, err := badgerlog.Open(badgerlog.Config{Dir: t.TempDir(), BallastBytes: -1, CommitIndex: func() uint64 { return 26 }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := log.Close(); err != nil {
			t.Error(err)
		}
	}()
	durable := uint64(26)
	l := &logStore{Log: log, durable: func() uint64 { return durable }, fail: func(err error) { t.Errorf("the node would stop: %v", err) }}

	// The entries up to 26 are of term 3, and those behind of term 4.
	entries := func(from, to uint64) []*raft.Log {
		var list []*raft.Log
		for i := from; i <= to; i++ {
			term := uint64(3)
			if i > 26 {
				term = 4
			}
			list = append(list, &raft.Log{Index: i, Term: term, Type: raft.LogNoop})
		}
		return list
	}
	// An outcome is what a request becomes: the entry before, its term, the first and last
	// entry that are left, zero for none, and how far entries are said to be agreed.
	type outcome struct{ prev, term, first, last, commit uint64 }
	type request struct {
		name     string
		prev, to uint64 // The entries are all behind prev up to here.
		commit   uint64
		want     outcome
		wantSame bool
	}
	check := func(log string, requests []request) {
		t.Helper()
		for _, r := range requests {
			given := raft.AppendEntriesRequest{Term: 4, PrevLogEntry: r.prev, LeaderCommitIndex: r.commit, Entries: entries(r.prev+1, r.to)}
			if r.prev > 0 {
				given.PrevLogTerm = entries(r.prev, r.prev)[0].Term
			}
			all := given.Entries
			mended := given
			l.beginKnown(&mended)
			got := outcome{prev: mended.PrevLogEntry, term: mended.PrevLogTerm, commit: mended.LeaderCommitIndex}
			if n := len(mended.Entries); n > 0 {
				got.first, got.last = mended.Entries[0].Index, mended.Entries[n-1].Index
			}
			want := r.want
			if r.wantSame {
				want = outcome{prev: given.PrevLogEntry, term: given.PrevLogTerm, commit: r.commit}
				if len(all) > 0 {
					want.first, want.last = all[0].Index, r.to
				}
			}
			if got != want {
				t.Errorf("%s, %s: the request is %+v, and should be %+v", log, r.name, got, want)
			}
			// What is left are the leader's entries, none amiss.
			if kept := all[len(all)-len(mended.Entries):]; !slices.Equal(mended.Entries, kept) {
				t.Errorf("%s, %s: %d other entries are left", log, r.name, len(mended.Entries))
			}
			if mended.Term != given.Term {
				t.Errorf("%s, %s: the request is of term %d", log, r.name, mended.Term)
			}
		}
	}

	check("nothing is there", []request{
		{name: "from the first", prev: 0, to: 9, commit: 5, wantSame: true},
		{name: "heartbeat", wantSame: true},
	})
	if err := l.Wipe(27); err != nil {
		t.Fatal(err)
	}
	check("what is before is not known", []request{
		{name: "below", prev: 5, to: 40, commit: 40, wantSame: true},
	})
	behindState := []request{
		{name: "from the first, over the base", prev: 0, to: 40, commit: 45, want: outcome{26, 3, 27, 40, 40}},
		{name: "from the first, agreed to less", prev: 0, to: 40, commit: 30, want: outcome{26, 3, 27, 40, 30}},
		{name: "below, over the base", prev: 5, to: 40, commit: 20, want: outcome{26, 3, 27, 40, 20}},
		{name: "just below, over the base", prev: 25, to: 27, commit: 27, want: outcome{26, 3, 27, 27, 27}},
		{name: "below, up to the base", prev: 5, to: 26, commit: 45, want: outcome{26, 3, 0, 0, 26}},
		{name: "all below", prev: 5, to: 10, commit: 45, want: outcome{26, 3, 0, 0, 26}},
		{name: "from the first, all below", prev: 0, to: 10, commit: 7, want: outcome{26, 3, 0, 0, 7}},
		{name: "below, without entries", prev: 5, to: 5, commit: 45, want: outcome{26, 3, 0, 0, 26}},
		{name: "at the base", prev: 26, to: 40, commit: 45, wantSame: true},
		{name: "at the base, without entries", prev: 26, to: 26, commit: 45, wantSame: true},
		{name: "above", prev: 30, to: 40, commit: 45, wantSame: true},
		{name: "heartbeat", wantSame: true},
	}
	l.base.Store(&logBase{26, 3})
	check("behind a state", behindState)
	if err := l.StoreLogs(entries(27, 32)); err != nil {
		t.Fatal(err)
	}
	check("behind a state, with entries", behindState)
	// As after a restart, when more was applied than the state that was sent: 27 is the
	// first of which anything is known.
	durable = 32
	l.base.Store(nil)
	check("behind a state that nothing is known of", []request{
		{name: "below, over the first", prev: 5, to: 40, commit: 45, want: outcome{27, 4, 28, 40, 40}},
		{name: "below, up to the first", prev: 5, to: 27, commit: 45, want: outcome{27, 4, 0, 0, 27}},
		{name: "just below", prev: 26, to: 40, commit: 45, want: outcome{27, 4, 28, 40, 40}},
		{name: "at the first", prev: 27, to: 40, commit: 45, wantSame: true},
	})
	// The log was kept, and reaches below the state.
	l.newest.clear()
	if err := l.Wipe(1); err != nil {
		t.Fatal(err)
	}
	if err := l.StoreLogs(entries(1, 32)); err != nil {
		t.Fatal(err)
	}
	l.base.Store(&logBase{26, 3})
	check("a whole log", []request{
		{name: "from the first", prev: 0, to: 40, commit: 45, wantSame: true},
		{name: "below the state", prev: 5, to: 40, commit: 45, wantSame: true},
		{name: "all below the state", prev: 5, to: 10, commit: 45, wantSame: true},
		{name: "behind the state", prev: 26, to: 40, commit: 45, wantSame: true},
		{name: "heartbeat", wantSame: true},
	})
	if err := l.DeleteRange(1, 9); err != nil {
		t.Fatal(err)
	}
	check("a log that reaches below the state", []request{
		{name: "below the log", prev: 0, to: 40, commit: 45, want: outcome{10, 3, 11, 40, 40}},
		{name: "below the state", prev: 10, to: 40, commit: 45, wantSame: true},
	})
}

// TestBeginKnownAllocatesNothing: an ordinary request is looked at without an allocation.
func TestBeginKnownAllocatesNothing(t *testing.T) {
	n := open(t, testConfig(t, t.TempDir()))
	writeSchema(t, n)
	ordinary := &raft.AppendEntriesRequest{PrevLogEntry: n.raft().LastIndex(), LeaderCommitIndex: 1}
	if got := testing.AllocsPerRun(100, func() { n.log.beginKnown(ordinary) }); got != 0 {
		t.Errorf("an ordinary request costs %v allocations", got)
	}
}

// away stops the Raft of a node, so that the leader knows of it only what it had until
// then.
func away(t *testing.T, n *Node) {
	t.Helper()
	if err := n.machine.Load().stopRaft(); err != nil {
		t.Fatal(err)
	}
}

// TestStateAheadOfLeader: a node puts a state into force that another node sent, while
// the leader's log is whole and the leader takes the node to be far below. The leader went
// back to its first entry, which the log of the node could not store any more: the node
// stopped, and again after each start.
func TestStateAheadOfLeader(t *testing.T) {
	configs := map[string]Config{}
	nodes := openCluster(t, 3, func(c *Config) {
		// So that the leader goes on in requests that are all below the state.
		c.MaxAppendEntries = 4
		configs[c.NodeID] = *c
	})
	n1, n2, n3 := nodes[0], nodes[1], nodes[2]
	writeSchema(t, n1)
	leadWith(t, n2, n1)
	eventually(t, "n3 has it all", func() bool { return n3.raft().LastIndex() == n2.raft().LastIndex() })
	away(t, n3)
	fillState(t, n2, 20)
	revision := n2.db().Applied().Revision
	n3.installer.want(stateToken{"n2", revision, uint64(revision)}) // Only a leader begins to send one.
	eventually(t, "n3 has the state", func() bool { return n3.installer.count() == 1 })
	closeNode(t, n1)
	// Now n3 is needed.
	write(t, n2, create(viewer("after", "anna")))
	if !has(t, n3, Consistency{Mode: Linearizable}, viewer("after", "anna")) {
		t.Error("n3 does not have what was written with its help")
	}
	if first, err := n3.log.FirstIndex(); err != nil || first != uint64(revision)+1 {
		t.Errorf("the log of n3 begins at %d (%v), and the state that was sent is of %d", first, err, revision)
	}
	if !n2.leads() {
		t.Error("n2 does not lead any more, so that nothing was shown")
	}
	closeNode(t, n3)
	again := open(t, configs["n3"])
	write(t, again, create(viewer("later", "anna")))
	if !has(t, again, Consistency{Mode: Linearizable}, viewer("later", "anna")) {
		t.Error("n3 does not have the write after a restart")
	}
}

// TestReplicaStateAheadOfLeader is the same with a node that nobody waits for, and that
// starts again before it hears of the leader.
func TestReplicaStateAheadOfLeader(t *testing.T) {
	n1 := openCluster(t, 1, nil)[0]
	writeSchema(t, n1)
	config := peerConfig(t, "n2")
	config.Replica, config.Join = true, joinVia(n1)
	n2 := open(t, config)
	eventually(t, "n2 has it all", func() bool { return n2.Ready() == nil && n2.raft().LastIndex() == n1.raft().LastIndex() })
	away(t, n2)
	fillState(t, n1, 20)
	revision := n1.db().Applied().Revision
	n2.installer.want(stateToken{"n1", revision, uint64(revision)})
	eventually(t, "n2 has the state", func() bool { return n2.installer.count() == 1 })
	closeNode(t, n2)
	n2 = open(t, config)
	write(t, n1, create(viewer("after", "anna")))
	if !has(t, n2, Consistency{Mode: Linearizable}, viewer("after", "anna")) {
		t.Error("n2 does not follow")
	}
}

// TestTokenBelowApplied: a node that has applied more than the state that a token is of
// answers that it has what it needs. It refused: a node that had put a state into force
// which was ahead of what the next leader had applied, and that was needed for the
// majority, was told of the older one for ever.
func TestTokenBelowApplied(t *testing.T) {
	n := open(t, testConfig(t, t.TempDir()))
	writeSchema(t, n)
	applied := n.db().Applied().Revision
	for _, token := range []stateToken{{"n2", applied - 1, 1}, {"n2", applied - 1, uint64(applied - 1)}, {"n2", applied, 1}, {"n2", applied + 5, uint64(applied)}} {
		s := &sink{node: n}
		if _, err := s.Write([]byte(token.String())); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); !errors.Is(err, errStateIsHeld) {
			t.Errorf("at revision %d, the answer to %q is %v", applied, token, err)
		}
	}
	s := &sink{node: n}
	if _, err := s.Write([]byte(stateToken{"n2", applied + 5, uint64(applied) + 1}.String())); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); !errors.Is(err, errStateIsFetched) {
		t.Errorf("at revision %d, the answer to a token of a later log is %v", applied, err)
	}
}
