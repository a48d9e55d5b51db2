package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pembadb/pemba/graph"
)

// A collector knows when the next lifetime ends.
type collector struct {
	wake chan struct{} // Has room for one.

	mu sync.Mutex
	// next is when the collector means to look again; zero for not before it
	// is woken or has idled.
	next graph.Instant
}

// note tells that a lifetime ends at until. The FSM calls it.
func (c *collector) note(until graph.Instant) {
	c.mu.Lock()
	sooner := c.next == 0 || until < c.next
	if sooner {
		c.next = until
	}
	c.mu.Unlock()
	if sooner {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

// idleRounds is how many pauses the collector lets pass, at most, before it
// looks by itself: its timer does not know when the clock is set.
const idleRounds = 100

// collect ends tuples whose lifetime is over. No answer needs it: whoever
// looks judges lifetimes at his own instant. But the end of a lifetime is a
// change that is watched, and the space is wanted back, so the leader proposes
// entries that make it, and every node makes it at the same revision. What
// such an entry ends is decided in Apply, by its stamp.
func (n *Node) collect() {
	defer n.loops.Done()
	for {
		wait := n.collectRound()
		select {
		case <-n.stop:
			return
		case <-time.After(n.config.CollectPause):
		}
		if wait -= n.config.CollectPause; wait <= 0 {
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-n.stop:
			timer.Stop()
			return
		case <-n.collector.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// collectRound ends what is due and returns how long to wait for the next
// round, unless woken.
func (n *Node) collectRound() time.Duration {
	idle := idleRounds * n.config.CollectPause
	if !n.leads() {
		return idle
	}
	for {
		wait, err := n.collectOnce(idle)
		switch {
		case err == nil && wait == 0:
			continue
		case err == nil:
			return wait
		case errors.Is(err, ErrShuttingDown), errors.Is(err, ErrFailed):
			return idle
		case errors.Is(err, ErrTooBusy), errors.Is(err, ErrNotLeader), errors.Is(err, ErrDiskFull):
			return idle / 10
		}
		n.config.Logger.Warn("tuples whose lifetime is over were not collected", "node", n.dir.nodeID, "error", err)
		return idle
	}
}

// collectOnce proposes one entry if something is due, and returns zero if more
// may be, else how long to wait.
func (n *Node) collectOnce(idle time.Duration) (time.Duration, error) {
	next, err := n.nextEnd(graph.DefaultStore)
	if err != nil {
		return 0, err
	}
	n.collector.mu.Lock()
	n.collector.next = next
	n.collector.mu.Unlock()
	if next == 0 {
		return idle, nil
	}
	if now := max(n.now(), n.db.Applied().Stamp); next > now {
		if left := next - now; left < graph.Instant(idle.Microseconds()) {
			return max(time.Microsecond, time.Duration(left)*time.Microsecond), nil
		}
		return idle, nil
	}
	result, err := n.Write(context.Background(), &graph.Mutation{
		Store: graph.DefaultStore, Collect: &graph.Collect{Limit: n.config.CollectLimit},
	})
	if err != nil {
		return 0, err
	}
	if result.Refusal != nil {
		return 0, fmt.Errorf("collect: %w", result.Refusal)
	}
	if result.Changed < n.config.CollectLimit {
		return n.config.CollectPause, nil
	}
	return 0, nil
}

// nextEnd returns when the lifetime of a stored tuple ends that ends first;
// zero when none ends.
func (n *Node) nextEnd(store graph.StoreID) (graph.Instant, error) {
	snapshot, err := n.db.Snapshot(store, 0, graph.MaxInstant)
	if err != nil {
		return 0, err
	}
	defer snapshot.Close()
	tuples, err := snapshot.Expired(1)
	if err != nil || len(tuples) == 0 {
		return 0, err
	}
	return tuples[0].ValidUntil, nil
}
