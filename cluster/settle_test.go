package cluster

import (
	"errors"
	"testing"
	"time"

	"github.com/pembadb/pemba/graph"
)

// TestSettleAhead: a node whose clock is a year ahead, and that cannot find out, as of two
// voters neither can, asks as of a moment that has not passed. The leader says so. It took
// that moment for its own: no stamp was ever to be of before it, so that all lifetimes ended
// and all requests were forgotten.
func TestSettleAhead(t *testing.T) {
	const year = 365 * 24 * time.Hour
	nodes := openCluster(t, 2, func(c *Config) {
		if c.NodeID == "n2" {
			c.ElectionTimeout = 24 * time.Hour // So that it never leads: its stamps would be its clock's.
			c.Now = func() time.Time { return time.Now().Add(year) }
		}
	})
	writeSchema(t, nodes[0])
	m := create(viewer("d", "anna"))
	m.RequestID = []byte("once")
	first := write(t, nodes[0], m)

	ahead := Consistency{Mode: AsOf, Instant: graph.InstantOf(time.Now().Add(year / 2))}
	s, err := nodes[1].Snapshot(testContext(t), graph.DefaultStore, ahead, graph.Overlay{})
	if err == nil {
		s.Close()
	}
	if !errors.Is(err, ErrInstantAhead) {
		t.Errorf("n2 answers as of half a year from now with %v", err)
	}
	if again := write(t, nodes[0], m); !again.Repeated || again.Revision != first.Revision {
		t.Errorf("the request is not known any more: %+v, and was %+v", again, first)
	}
	result := write(t, nodes[0], create(viewer("e", "anna")))
	if off := time.Since(result.Instant.Time()).Abs(); off > year/4 {
		t.Errorf("the stamp of a write of n1, whose clock is right, is %v off", off)
	}
	// What the clocks may be apart is no reason to refuse.
	near := Consistency{Mode: AsOf, Instant: graph.InstantOf(time.Now().Add(ClockSkewMax / 2))}
	s, err = nodes[1].Snapshot(testContext(t), graph.DefaultStore, near, graph.Overlay{})
	if err != nil {
		t.Fatalf("n2 answers as of some seconds from now with %v", err)
	}
	s.Close()
}

// TestSettleBehindStamps: where the clock was set back, what has a stamp has passed, however
// far from the clock it is. Behind it nothing has; what is asked for at the very newest
// stamp makes an entry of a microsecond later, which takes longer than that, so that
// asking moves no stamps ahead of the clock.
func TestSettleBehindStamps(t *testing.T) {
	c := newClock(time.Unix(1_700_000_000, 0))
	config := testConfig(t, t.TempDir())
	config.Now = c.Now
	n := open(t, config)
	writeSchema(t, n)
	stamp := write(t, n, create(viewer("d", "anna"))).Instant
	c.advance(-time.Hour)
	if _, err := n.settleHere(testContext(t), stamp); err != nil {
		t.Errorf("the moment of the newest stamp: %v", err)
	}
	settled := n.db().Applied().Stamp
	if settled != stamp+1 {
		t.Fatalf("behind the newest stamp %d, which was asked about, the newest is %d", stamp, settled)
	}
	// It was asked about before.
	if _, err := n.settleHere(testContext(t), stamp); err != nil || n.db().Applied().Stamp != settled {
		t.Errorf("asked again: %v, and the newest stamp is %d", err, n.db().Applied().Stamp)
	}
	if _, err := n.settleHere(testContext(t), settled+1); !errors.Is(err, ErrInstantAhead) {
		t.Errorf("the moment behind the newest stamp: %v", err)
	}
	// A proposal under way has its stamp before anybody applied it.
	next, proposal := n.stamps.take(c.instant())
	if next != settled {
		t.Fatalf("a proposal has the stamp %d, and %d was asked about", next, stamp)
	}
	n.endStamp(proposal)
	next, proposal = n.stamps.take(settled + 10)
	if latest := n.latestStamp(); latest != next {
		t.Errorf("the latest stamp is %d, and a proposal has %d", latest, next)
	}
	n.endStamp(proposal)
	if latest := n.latestStamp(); latest != settled {
		t.Errorf("the latest stamp is %d, and %d is applied", latest, settled)
	}
}

// TestSettleBesideManyWrites: an answer as of now does not wait for a place among writes.
func TestSettleBesideManyWrites(t *testing.T) {
	n := open(t, testConfig(t, t.TempDir()))
	writeSchema(t, n)
	entered := 0
	for n.admission.enter(0) == nil {
		entered++
	}
	defer func() {
		for range entered {
			n.admission.leave(0)
		}
	}()
	s, err := n.Snapshot(testContext(t), graph.DefaultStore, Consistency{Mode: AsOf, Instant: n.now()}, graph.Overlay{})
	if err != nil {
		t.Fatalf("as of now, with %d writes under way: %v", entered, err)
	}
	s.Close()
}

// TestRemovedLeaderIsAsked: who asks a leader that was removed is sent to the next one,
// and is not told that it was removed itself.
func TestRemovedLeaderIsAsked(t *testing.T) {
	n := &Node{failed: make(chan struct{}), closing: make(chan struct{}), failure: ErrRemoved}
	close(n.failed)
	err := fromFailure(toFailure(stopsLeading(n.usable())))
	if !errors.Is(err, ErrNotLeader) || errors.Is(err, ErrRemoved) {
		t.Errorf("got %v", err)
	}
}

// TestSettleOnALeaderThatFails: the entry that a reader needs changes nothing, so that its
// outcome does not matter, and who asked is sent to the next leader.
func TestSettleOnALeaderThatFails(t *testing.T) {
	nodes := openCluster(t, 2, func(c *Config) {
		c.ElectionTimeout = 3 * time.Second // So that n1 leads on for a while.
		c.OnFatal = func(error) {}
	})
	n1 := nodes[0]
	writeSchema(t, n1)
	leadWith(t, n1, nodes[1])
	closeNode(t, nodes[1])
	got := make(chan error, 1)
	go func() {
		_, err := n1.settleHere(testContext(t), n1.now())
		got <- err
	}()
	eventually(t, "the entry is under way, or n1 leads no more", func() bool {
		entries, _ := n1.admission.figures()
		return entries > 0 || len(got) > 0
	})
	n1.fail(errors.New("the disk"))
	if err := <-got; err == nil || errors.Is(err, ErrOutcomeUnknown) || !errors.Is(stopsLeading(err), ErrNotLeader) {
		t.Errorf("got %v", err)
	}
}
