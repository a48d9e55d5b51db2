package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// A collector knows of each store when its next lifetime ends.
type collector struct {
	wake chan struct{} // Has room for one.

	mu sync.Mutex
	// next is when the lifetime ends that ends first; never for none. What is
	// not there is not known and has to be looked up. A moment may be too early,
	// for a tuple may be deleted before its time, but it is never too late, other
	// than in a store where looking or collecting failed.
	next map[graph.StoreID]graph.Instant
	// at is when the collector means to look again by itself.
	at graph.Instant
	// look finds when a lifetime ends; it is nextEnd, but in tests.
	look func(graph.StoreID) (graph.Instant, error)
}

// never is beyond every lifetime.
const never = graph.MaxInstant + 1

func (c *collector) init(look func(graph.StoreID) (graph.Instant, error)) {
	c.look = look
	c.wake = make(chan struct{}, 1)
	c.next = map[graph.StoreID]graph.Instant{}
}

// note tells that a lifetime ends in a store at until. The FSM calls it, behind
// the entry.
func (c *collector) note(store graph.StoreID, until graph.Instant) {
	c.mu.Lock()
	if next, ok := c.next[store]; ok {
		c.next[store] = min(next, until)
	}
	sooner := until < c.at
	c.mu.Unlock()
	if sooner {
		c.wakeUp()
	}
}

// forget tells that a store has to be looked at: lifetimes came into it in a way
// that says nothing of them. The FSM calls it, behind the entry.
func (c *collector) forget(store graph.StoreID) {
	c.mu.Lock()
	delete(c.next, store)
	c.mu.Unlock()
	c.wakeUp()
}

func (c *collector) wakeUp() {
	nudge(c.wake)
}

// plan returns the stores to look at now, and sets when to look again.
func (c *collector) plan(stores []graph.StoreInfo, now graph.Instant) (due []graph.StoreID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := make(map[graph.StoreID]graph.Instant, len(stores))
	c.at = never
	for i := range stores {
		id := stores[i].ID
		next, ok := c.next[id]
		if ok {
			known[id] = next // Those that were dropped go.
			c.at = min(c.at, next)
		}
		if !ok || next <= now {
			due = append(due, id)
		}
	}
	c.next = known
	return due
}

// idleRounds is how many pauses the collector lets pass, at most, before it
// looks by itself: its timer does not know when the clock is set.
const idleRounds = 100

// collect ends tuples whose lifetime is over, in all stores. No answer needs it:
// whoever looks judges lifetimes at his own instant. But the end of a lifetime is
// a change that is watched, and the space is wanted back, so the leader proposes
// entries that make it, and every node makes it at the same revision. What
// such an entry ends is decided in Apply, by its stamp.
func (n *Node) collect() {
	defer n.loops.Done()
	for {
		wait := n.collectRound()
		if !n.sleep(n.config.CollectPause) {
			return
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

// postpone has a store looked at again at a moment.
func (c *collector) postpone(store graph.StoreID, until graph.Instant) {
	c.mu.Lock()
	c.next[store] = until
	c.mu.Unlock()
}

// collectRound ends what is due, store by store, and returns how long to wait
// for the next round, unless woken. A store in which it fails does not keep it
// from the others, and is tried again after a while.
func (n *Node) collectRound() time.Duration {
	idle := idleRounds * n.config.CollectPause
	for n.leads() {
		now := max(n.now(), n.db().Applied().Stamp)
		due := n.collector.plan(n.db().Stores(), now)
		if len(due) == 0 {
			n.collector.mu.Lock()
			left := n.collector.at - now
			n.collector.mu.Unlock()
			return max(time.Microsecond, time.Duration(min(left, graph.Instant(idle.Microseconds())))*time.Microsecond)
		}
		var errs []error
		stopped := false
		for _, store := range due {
			start := time.Now()
			err := n.collectOnce(store, now)
			switch {
			case err == nil:
			case errors.Is(err, ErrShuttingDown), errors.Is(err, ErrFailed):
				return idle
			case errors.Is(err, ErrTooBusy), errors.Is(err, ErrNotLeader), errors.Is(err, ErrDiskFull):
				return idle / 10
			case graph.IsCorruptionError(err):
				n.fail(fmt.Errorf("collect what is over in store %d: %w", store, err))
				return idle
			default:
				n.collector.postpone(store, now+graph.Instant(idle.Microseconds()))
				if len(errs) < roundErrorsMax {
					errs = append(errs, fmt.Errorf("store %d: %w", store, err))
				}
			}
			if stopped = !n.rest(time.Since(start), restAfterEntry); stopped {
				break
			}
		}
		if len(errs) > 0 {
			n.config.Logger.Warn("tuples whose lifetime is over were not collected", "node", n.dir.nodeID, "error", errors.Join(errs...))
		}
		if stopped {
			break
		}
	}
	return idle
}

// collectOnce looks at a store and proposes one entry if something is due. There
// may be more then; the next round looks again.
func (n *Node) collectOnce(store graph.StoreID, now graph.Instant) error {
	// What is noted from here on counts, whatever the look finds.
	c := &n.collector
	c.mu.Lock()
	c.next[store] = never
	look := c.look
	c.mu.Unlock()
	next, err := look(store)
	if errors.Is(err, graph.ErrUnknownStore) {
		return nil // It was dropped meanwhile.
	}
	if err != nil {
		c.forget(store)
		return err
	}
	if next > now {
		c.mu.Lock()
		c.next[store] = min(c.next[store], next)
		c.mu.Unlock()
		return nil
	}
	defer c.forget(store)
	result, err := n.proposeUpkeep(&graph.Mutation{Store: store, Collect: &graph.Collect{Limit: n.config.CollectLimit}})
	if err != nil {
		return err
	}
	if result.Refusal == nil && result.Changed == 0 {
		return fmt.Errorf("the lifetime of a tuple ended at %s, and nothing was collected at %s", next, result.Instant)
	}
	return nil
}

// proposeUpkeep writes what the node itself has to change. That a store is no
// more is no error.
func (n *Node) proposeUpkeep(m *graph.Mutation) (engine.Result, error) {
	// Here or not at all: another leader does its own upkeep.
	result, err := n.writeHere(context.Background(), m)
	if err == nil && result.Refusal != nil && result.Refusal.Reason != engine.UnknownStore {
		err = result.Refusal
	}
	return result, err
}

// nextEnd returns when the lifetime of a stored tuple ends that ends first;
// never when none ends.
func (n *Node) nextEnd(store graph.StoreID) (graph.Instant, error) {
	snapshot, err := n.db().Snapshot(store, 0, graph.MaxInstant)
	if err != nil {
		return 0, err
	}
	defer snapshot.Close()
	tuples, err := snapshot.Expired(1)
	if err != nil {
		return 0, err
	}
	if len(tuples) == 0 {
		return never, nil
	}
	return tuples[0].ValidUntil, nil
}
