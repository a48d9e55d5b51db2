package cluster

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/pembadb/pemba/graph"
)

// pruneShare is the part of a retention by which the past must have outlived it
// before it is pruned. So a store whose past is kept for 30 days is pruned some
// twice a day, and a thousand of them put an entry into the log every 40
// seconds, if they change at all.
const pruneShare = 64

// prune lets every node forget, at the same revision, what is older than the
// retention of its store, and staged changes that nobody goes on with. The
// leader looks at every store now and then and proposes an entry for those where
// something would be forgotten: for a store that did not change there is
// nothing to propose, and looking costs no more than its record.
func (n *Node) prune() {
	defer n.loops.Done()
	pruned := map[graph.StoreID]horizons{}
	for n.sleep(n.config.PrunePause) {
		if err := n.pruneRound(pruned); err != nil && n.usable() == nil {
			n.config.Logger.Warn("the past was not pruned", "node", n.dir.nodeID, "error", err)
		}
	}
}

// horizons are the moments up to which a store was looked at last.
type horizons struct{ history, log graph.Instant }

// pruneRound looks at every store once. What fails in one does not keep it from
// the others.
func (n *Node) pruneRound(pruned map[graph.StoreID]horizons) error {
	var errs []error
	stores := n.db().Stores()
	for i := range stores {
		if !n.leads() {
			break
		}
		start := time.Now()
		if err := n.pruneStore(&stores[i], pruned); err != nil && len(errs) < roundErrorsMax {
			errs = append(errs, fmt.Errorf("store %d: %w", stores[i].ID, err))
		}
		if !n.rest(time.Since(start), restAfterEntry) {
			break
		}
	}
	for id := range pruned {
		if !slices.ContainsFunc(stores, func(s graph.StoreInfo) bool { return s.ID == id }) {
			delete(pruned, id)
		}
	}
	return errors.Join(errs...)
}

// roundErrorsMax bounds how many errors of a round through the stores are told.
const roundErrorsMax = 4

func (n *Node) pruneStore(info *graph.StoreInfo, pruned map[graph.StoreID]horizons) error {
	now := max(n.now(), n.db().Applied().Stamp)
	last := pruned[info.ID]
	history, err := n.mayForget(info, now, info.Settings.History, &last.history, info.OldestHistory, n.historyWouldRise)
	if err != nil {
		return err
	}
	log, err := n.mayForget(info, now, info.Settings.Log, &last.log, info.OldestLog, n.logWouldRise)
	if err != nil {
		return err
	}
	if history || log {
		if _, err := n.proposeUpkeep(&graph.Mutation{Store: info.ID, Prune: &graph.Prune{}}); err != nil {
			return err
		}
	}
	pruned[info.ID] = last
	return n.collectStages(info.ID, now)
}

// mayForget reports whether a floor would rise, to what was valid a retention
// ago, as wouldRise says. looked is the moment that was asked about last.
func (n *Node) mayForget(
	info *graph.StoreInfo, now graph.Instant, kept graph.Retention, looked *graph.Instant, floor graph.Revision,
	wouldRise func(info *graph.StoreInfo, horizon graph.Instant) (bool, error),
) (bool, error) {
	if kept == graph.Forever || info.Changed <= floor {
		return false, nil
	}
	horizon := now - graph.Instant(kept)
	if horizon <= info.CreatedAt || horizon-*looked < graph.Instant(kept)/pruneShare {
		return false, nil
	}
	rises, err := wouldRise(info, horizon)
	switch {
	case errors.Is(err, graph.ErrRevisionGone), errors.Is(err, graph.ErrUnknownStore):
		return false, nil // All of that is forgotten already.
	case err != nil:
		return false, err
	}
	*looked = horizon
	return rises, nil
}

func (n *Node) historyWouldRise(info *graph.StoreInfo, horizon graph.Instant) (bool, error) {
	at, err := n.db().RevisionAt(info.ID, horizon)
	return at > info.OldestHistory, err
}

// logWouldRise asks the log itself, which may be kept longer than the history
// that RevisionAt answers from.
func (n *Node) logWouldRise(info *graph.StoreInfo, horizon graph.Instant) (bool, error) {
	next, err := n.db().Changes(info.ID, graph.Position{Revision: info.OldestLog + 1}, 1)
	return len(next) > 0 && next[0].Stamp <= horizon, err
}

// collectStages drops the staged changes of a store that were left behind.
func (n *Node) collectStages(store graph.StoreID, now graph.Instant) error {
	stages, err := n.db().Stages(store)
	if errors.Is(err, graph.ErrUnknownStore) {
		return nil
	}
	if err != nil {
		return err
	}
	for i := range stages {
		if stages[i].Touched+graph.StageLifetime < now {
			_, err := n.proposeUpkeep(&graph.Mutation{Store: store, Stage: &graph.Stage{Operation: graph.StageCollect}})
			return err
		}
	}
	return nil
}

// A remover knows in which stores there is something to remove from the disk.
type remover struct {
	wake chan struct{} // Has room for one.

	mu     sync.Mutex
	stores map[graph.StoreID]removal // Those that may have something to remove.
}

// A removal is how far the remover is with a store.
type removal struct {
	// after is the moment before which it is not tried: zero, unless it failed.
	after time.Time
	// noted says that something was forgotten since the last step began.
	noted bool
	// left says that the last step left something, and hurried that more was
	// forgotten before all of that was removed. Invariant: !hurried || left.
	left, hurried bool
}

func (r *remover) init() {
	r.wake = make(chan struct{}, 1)
	r.stores = map[graph.StoreID]removal{}
}

// note tells that something of a store was forgotten. The FSM calls it. A store that
// waits after a failure goes on waiting.
func (r *remover) note(store graph.StoreID) {
	r.mu.Lock()
	now := r.stores[store]
	now.noted, now.hurried = true, now.left
	r.stores[store] = now
	r.mu.Unlock()
	nudge(r.wake)
}

// took is told of each step of a store what it left.
func (r *remover) took(store graph.StoreID, more bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.stores[store]
	if !more && !now.noted {
		delete(r.stores, store)
		return
	}
	now.left, now.hurried = more, now.hurried && more
	r.stores[store] = now
}

// later puts off a store whose removal failed, until a moment.
func (r *remover) later(store graph.StoreID, until time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.stores[store]
	now.after = until
	r.stores[store] = now
}

// next returns a store whose moment has come and whether its removal must hurry;
// else wait is how long the first one waits, zero when there is none. took or later
// must follow before it is called again.
func (r *remover) next(now time.Time) (store graph.StoreID, hurried, ok bool, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for store, at := range r.stores {
		left := at.after.Sub(now)
		if left <= 0 {
			at.noted, at.after = false, time.Time{}
			r.stores[store] = at
			return store, at.hurried, true, 0
		}
		if wait == 0 || left < wait {
			wait = left
		}
	}
	return 0, false, false, wait
}

// removeRetry is how long the remover leaves a store alone after a failure.
const removeRetry = time.Minute

// remove takes from the disk what was pruned and dropped. Nobody can read it any
// more, so each node does it by itself, when it likes, and begins with what an
// earlier run left.
func (n *Node) remove() {
	defer n.loops.Done()
	for _, info := range n.db().Stores() {
		n.remover.note(info.ID)
	}
	for {
		store, hurried, ok, wait := n.remover.next(time.Now())
		if !ok {
			var retry <-chan time.Time // Never, where no store waits.
			if wait > 0 {
				retry = time.After(wait)
			}
			select {
			case <-n.stop:
				return
			case <-n.remover.wake:
			case <-retry:
			}
			continue
		}
		records, times := removalRecords, restAfterRemoval
		if hurried {
			records, times = hurriedRecords, restAfterHurried
		}
		start := time.Now()
		more, err := n.db().Remove(store, records)
		took := time.Since(start)
		switch {
		case err == nil:
			n.remover.took(store, more)
		case n.usable() != nil:
			return
		case graph.IsCorruptionError(err):
			n.fail(fmt.Errorf("remove what was pruned of store %d: %w", store, err))
			return
		default:
			n.config.Logger.Warn("what was pruned was not removed", "node", n.dir.nodeID, "store", store, "error", err)
			n.remover.later(store, time.Now().Add(removeRetry))
		}
		if !n.rest(took, times) {
			return
		}
	}
}
