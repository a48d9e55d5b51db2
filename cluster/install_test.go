package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/pembadb/pemba/cluster/badgerlog"
	"github.com/pembadb/pemba/graph"
)

// TestSuffixBehindState: a node whose log begins behind a state starts again after a crash
// in the middle of replacing all entries of that log. A leader had them deleted, and those
// that replace them are not there yet. An empty log that does not say that it begins
// behind the state looks like one that lost its end, and was refused.
func TestSuffixBehindState(t *testing.T) {
	config := testConfig(t, t.TempDir())
	n := open(t, config)
	writeSchema(t, n)
	if err := n.machine.Load().stopRaft(); err != nil {
		t.Fatal(err)
	}
	if _, err := n.db().Flush(); err != nil {
		t.Fatal(err)
	}
	// As after a state was put into force, with three entries of a leader behind it.
	at := uint64(n.db().Applied().Revision)
	n.log.newest.clear()
	if err := n.log.Wipe(at + 1); err != nil {
		t.Fatal(err)
	}
	for i := at + 1; i <= at+3; i++ {
		if err := n.log.StoreLog(&raft.Log{Index: i, Term: 5, Type: raft.LogNoop}); err != nil {
			t.Fatal(err)
		}
	}
	// Another leader has other entries there. Raft deletes before it stores.
	if err := n.log.DeleteRange(at+1, at+3); err != nil {
		t.Fatal(err)
	}
	if to := n.log.WipedTo(); to != at+1 {
		t.Errorf("the next entry of the log is to be %d, and the state ends at %d", to, at)
	}
	closeNode(t, n)
	again := open(t, config)
	if applied := uint64(again.db().Applied().Revision); applied < at {
		t.Errorf("the node is at revision %d, and was at %d", applied, at)
	}
	write(t, again, create(viewer("d", "anna")))
	if !has(t, again, Consistency{Mode: Linearizable}, viewer("d", "anna")) {
		t.Error("the node does not go on")
	}
}

// TestVoteInTwoSteps: between the two steps in which Raft stores a vote the log names no
// candidate. It named the candidate of the vote before: after a crash in between, that one
// would have got the vote of the new term too, from a node that never looked at its log.
func TestVoteInTwoSteps(t *testing.T) {
	n := open(t, testConfig(t, t.TempDir()))
	// Raft must not vote meanwhile.
	if err := n.machine.Load().stopRaft(); err != nil {
		t.Fatal(err)
	}
	term, err := n.log.GetUint64(keyLastVoteTerm)
	if err != nil {
		t.Fatal(err)
	}
	for _, candidate := range []string{"n2:7000", "n3:7000"} {
		term++
		if err := n.log.SetUint64(keyLastVoteTerm, term); err != nil {
			t.Fatal(err)
		}
		// Raft gives the vote where the candidate is the same, and none where there is an
		// empty one. Nil would be no vote at all in this term, which leaves it free.
		between, err := n.log.Get(keyLastVoteCand)
		if err != nil || between == nil || len(between) > 0 {
			t.Errorf("after the term %d of a vote the candidate is %#v (%v), and should be empty and not nil", term, between, err)
		}
		if err := n.log.Set(keyLastVoteCand, []byte(candidate)); err != nil {
			t.Fatal(err)
		}
		stored, err := n.log.GetUint64(keyLastVoteTerm)
		if voted, err2 := n.log.Get(keyLastVoteCand); err != nil || err2 != nil || stored != term || string(voted) != candidate {
			t.Errorf("the vote is for %q in term %d (%v, %v), and was for %q in %d", voted, stored, err, err2, candidate, term)
		}
	}
	// Other numbers leave it alone.
	if err := n.log.SetUint64(keyCurrentTerm, term); err != nil {
		t.Fatal(err)
	}
	if voted, err := n.log.Get(keyLastVoteCand); err != nil || string(voted) != "n3:7000" {
		t.Errorf("after another number was stored the vote is for %q (%v)", voted, err)
	}
}

// A tokenCounter counts how often Raft says that it was sent a token of a state, which is
// how it sees one: a snapshot that could not be finished.
type tokenCounter struct {
	slog.Handler
	count *atomic.Int64
}

// Enabled implements slog.Handler.
func (tokenCounter) Enabled(context.Context, slog.Level) bool { return true }

// WithAttrs implements slog.Handler.
func (c tokenCounter) WithAttrs(attrs []slog.Attr) slog.Handler {
	return tokenCounter{c.Handler.WithAttrs(attrs), c.count}
}

// Handle implements slog.Handler.
func (c tokenCounter) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == "raft: failed to finalize snapshot" {
		c.count.Add(1)
	}
	if !c.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return c.Handler.Handle(ctx, r)
}

// fillState writes so many times 100 tuples.
func fillState(t *testing.T, n *Node, writes int) {
	t.Helper()
	for i := range writes {
		var tuples []graph.Tuple
		for j := range 100 {
			tuples = append(tuples, viewer(fmt.Sprintf("a-document-with-a-name-of-some-length-%d-%d", i, j), "anna"))
		}
		write(t, n, create(tuples...))
	}
}

// sendsState opens a node that holds a state, whose log is cut, and another that joins and
// is sent that state. tokens counts how often the leader says to the other that there is
// one.
func sendsState(t *testing.T, configure func(*Config)) (leader, joining *Node, tokens *atomic.Int64) {
	t.Helper()
	leader = openCluster(t, 1, configure)[0]
	writeSchema(t, leader)
	fillState(t, leader, 50)
	eventually(t, "the log is cut", func() bool { first, _ := leader.log.FirstIndex(); return first > 10 })
	config := peerConfig(t, "n2")
	configure(&config)
	tokens = &atomic.Int64{}
	config.Logger = slog.New(tokenCounter{config.Logger.Handler(), tokens})
	config.Join = joinVia(leader)
	return leader, open(t, config), tokens
}

// count returns how many states that were sent came into force.
func (i *installer) count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.installs
}

// TestHoldBehindState: while a state is sent, the log is cut as far as that allows and no
// farther, so that the receiver goes on behind it. The leader needs the last entry that
// the state holds as well, whose term says that the next one fits. It was not held: the
// leader then told the receiver of the state again and again, and the receiver answered
// that it had it, without end.
func TestHoldBehindState(t *testing.T) {
	leader, joining, tokens := sendsState(t, func(c *Config) {
		c.SnapshotThreshold, c.TrailingLogs, c.SnapshotInterval = 16, 1, time.Millisecond
		c.StateBytesPerSecond = 1 << 20
	})
	var revision uint64
	eventually(t, "the state is being sent", func() bool {
		leader.transfers.mu.Lock()
		defer leader.transfers.mu.Unlock()
		for _, transfer := range leader.transfers.open {
			revision = uint64(transfer.reader.Header().Revision)
		}
		return revision > 0
	})
	for i := range 64 {
		write(t, leader, create(viewer(fmt.Sprintf("later%d", i), "anna")))
	}
	// The state is of what was applied when the log was held, or of a little later.
	eventually(t, "the log is cut to where it is held", func() bool {
		first, err := leader.log.FirstIndex()
		if err != nil || first > revision {
			t.Fatalf("the log begins at %d (%v), and a state of revision %d is being sent", first, err, revision)
		}
		return first+2 >= revision
	})
	leader.log.newest.clear() // As many more entries would.
	eventually(t, "n2 has it all", func() bool {
		return joining.Ready() == nil && joining.db().Applied().Revision >= leader.db().Applied().Revision
	})
	if got := joining.installer.count(); got != 1 {
		t.Errorf("%d states came into force, and one was enough", got)
	}
	// Raft waits longer each time that it is told to come again.
	if got := tokens.Load(); got < 1 || got > 100 {
		t.Errorf("the leader told of its state %d times", got)
	}
	if !has(t, joining, Consistency{Mode: Linearizable}, viewer("later63", "anna")) {
		t.Error("n2 does not have what was written while the state was sent")
	}
}

// TestTransferUnderLoad: a node is sent the state once and follows, however much is written
// meanwhile. The log was let go when the last part of the state was sent, and was cut
// before the receiver had the state in force, so that it needed another state, for ever.
func TestTransferUnderLoad(t *testing.T) {
	var stop atomic.Bool
	var writers sync.WaitGroup
	defer writers.Wait()
	defer stop.Store(true)
	leader, joining, _ := sendsState(t, func(c *Config) {
		c.SnapshotThreshold, c.TrailingLogs, c.SnapshotInterval = 32, 16, time.Millisecond
		c.StateBytesPerSecond = 2 << 20
	})
	for w := range 4 {
		writers.Go(func() {
			for i := 0; !stop.Load(); i++ {
				result, err := leader.Write(testContext(t), create(viewer(fmt.Sprintf("load%d-%d", w, i), "anna")))
				switch {
				case errors.Is(err, ErrOutcomeUnknown), errors.Is(err, ErrNotLeader): // Both may lead in the end.
				case err != nil:
					t.Errorf("writer %d: %v", w, err)
					return
				case result.Refusal != nil:
					t.Errorf("writer %d: %v", w, result.Refusal)
					return
				}
			}
		})
	}
	eventually(t, "n2 has caught up and votes", func() bool { return joining.Ready() == nil && joining.voters() == 2 })
	if got := joining.installer.count(); got != 1 {
		t.Errorf("%d states came into force, and one was enough", got)
	}
}

// TestForwardCancelled: a write that was handed to the leader, and whose caller went away
// before the answer, is one of which nobody knows what became of it. It had the error of
// one that was never made, though the leader made it.
func TestForwardCancelled(t *testing.T) {
	nodes := openCluster(t, 3, nil)
	writeSchema(t, nodes[0])
	leader := leaderOf(t, nodes)
	follower := nodes[0]
	if follower == leader {
		follower = nodes[1]
	}
	// From calls that end before anything is sent to calls that end as the answer comes.
	var denied []graph.Tuple
	unknown := 0
	for i := range 150 {
		tuple := viewer(fmt.Sprintf("c%d", i), "anna")
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i)*40*time.Microsecond)
		_, err := follower.Write(ctx, create(tuple))
		cancel()
		switch {
		case errors.Is(err, ErrOutcomeUnknown):
			unknown++
		case err != nil:
			denied = append(denied, tuple)
		}
	}
	t.Logf("of 150 calls %d have an outcome that nobody knows, and %d were not made", unknown, len(denied))
	// What comes behind them by the same way, so that they have arrived.
	write(t, follower, create(viewer("last", "anna")))
	for _, tuple := range denied {
		if has(t, leader, Consistency{Mode: Linearizable}, tuple) {
			t.Errorf("%v was made, and its error said that it was not", tuple)
		}
	}
}

// TestClockWithOneDown: of three voters one is down and the clock of another is wrong. The
// one that has it wrong does not believe itself because fewer than most contradict it, and
// the time of the cluster stays right. With one answer a majority had been asked, and none
// of those who disagreed was one: a wrong clock was believed, and with it led.
func TestClockWithOneDown(t *testing.T) {
	var offsets []*atomic.Int64
	nodes := openCluster(t, 3, func(c *Config) {
		offset := &atomic.Int64{}
		offsets = append(offsets, offset)
		c.Now = func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }
		c.ClockPause = 20 * time.Millisecond
		c.WaitMax = 10 * time.Second
	})
	writeSchema(t, nodes[0])
	for leaderOf(t, nodes) != nodes[0] {
		if err := nodes[1].TransferLeadership(testContext(t), "n1"); err != nil {
			t.Logf("hand the leadership to n1: %v", err) // It may be on its way.
		}
	}
	offsets[1].Store(int64(time.Hour))
	eventually(t, "n2 does not trust its clock", func() bool { return errors.Is(nodes[1].Ready(), ErrClock) })
	closeNode(t, nodes[2])
	for range 5 {
		nodes[1].askClocks(testContext(t))
		if err := nodes[1].clockTrusted(); !errors.Is(err, ErrClock) {
			t.Fatalf("n2, an hour ahead, is believed once n3 is down: %v", err)
		}
	}
	offsets[1].Store(0)
	eventually(t, "n2 is ready again", func() bool { return nodes[1].Ready() == nil })

	// Now the leader's is set: no time of its own comes into the order of changes.
	offsets[0].Store(int64(time.Hour))
	for i := range 5 {
		m := create(viewer(fmt.Sprintf("d%d", i), "anna"))
		m.Store = graph.DefaultStore
		result, err := nodes[1].Write(testContext(t), m)
		if errors.Is(err, ErrNotLeader) || errors.Is(err, ErrOutcomeUnknown) {
			break // The leader has found out and leads no more, and who is left is no majority.
		}
		if err != nil || result.Refusal != nil {
			t.Fatal(err, result.Refusal)
		}
		if off := time.Since(result.Instant.Time()).Abs(); off > time.Minute {
			t.Errorf("the stamp of a write is %v off", off)
		}
	}
	for range 5 {
		nodes[0].askClocks(testContext(t))
		if err := nodes[0].clockTrusted(); !errors.Is(err, ErrClock) {
			t.Fatalf("n1, an hour ahead, is believed while n3 is down: %v", err)
		}
	}
	eventually(t, "n1 leads no more", func() bool { return !nodes[0].leads() })
}

// TestCutWhileTruncated: Raft's snapshot cuts the log up to what it thinks leaves some
// entries, while what a new leader sent has just taken the end away. What is left is not
// all of the log's to lose: it once was wiped, and what came next fitted nowhere.
func TestCutWhileTruncated(t *testing.T) {
	t.Parallel()
	log, err := badgerlog.Open(badgerlog.Config{Dir: t.TempDir(), BallastBytes: -1, CommitIndex: func() uint64 { return 100 }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := log.Close(); err != nil {
			t.Error(err)
		}
	}()
	l := &logStore{Log: log, durable: func() uint64 { return 100 }, fail: func(err error) { t.Errorf("the node would stop: %v", err) }}
	var entries []*raft.Log
	for i := uint64(1); i <= 150; i++ {
		entries = append(entries, &raft.Log{Index: i, Term: 1, Data: []byte("x")})
	}
	for _, err := range []error{l.StoreLogs(entries), l.DeleteRange(101, 150), l.DeleteRange(1, 100)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	last, err := l.LastIndex()
	if err != nil || last != 100 || l.WipedTo() != 0 {
		t.Errorf("the log ends at %d, was wiped to %d, error %v", last, l.WipedTo(), err)
	}
	if err := l.StoreLogs([]*raft.Log{{Index: 101, Term: 2}}); err != nil {
		t.Error(err)
	}
}
