package cluster

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/pembadb/pemba/cluster/badgerlog"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// Write proposes m to the cluster and returns when it is applied here, which is
// after a majority has it on the disk. Writes that run at the same time share
// one sync. Whether the engine refused m is in the result's Refusal, which is
// the same on every node. A change of very many tuples returns only when the
// graph is flushed behind it, so that a crash does not make it again.
//
// An error is of one of two kinds. ErrOutcomeUnknown: m was proposed, and may
// have been or may yet be applied; ctx ended, say. All others: m was not and
// will not be applied; ErrNotLeader, ErrTooBusy, ErrDiskFull and ErrShuttingDown
// say when to try again, ErrEntryTooLarge and a malformed m never to. m must not
// be changed before Write returns.
func (n *Node) Write(ctx context.Context, m *graph.Mutation) (engine.Result, error) {
	if err := n.usable(); err != nil {
		return engine.Result{}, err
	}
	if ctx.Err() != nil {
		return engine.Result{}, fmt.Errorf("write: %w", context.Cause(ctx))
	}
	stamp, proposal := n.stamps.take(n.now())
	proposed := false
	defer func() {
		if !proposed {
			n.endStamp(proposal)
		}
	}()
	entry, err := n.encode(m, stamp)
	if err != nil {
		return engine.Result{}, fmt.Errorf("write: %w", err)
	}
	if len(entry) > n.entryBytesMax {
		return engine.Result{}, fmt.Errorf("%w: it needs %d bytes, at most %d are allowed; make several smaller ones",
			ErrEntryTooLarge, len(entry), n.entryBytesMax)
	}
	if err := n.admit(len(entry)); err != nil {
		n.counts.refused.Add(1)
		return engine.Result{}, err
	}
	type outcome struct {
		result engine.Result
		err    error
	}
	done := make(chan outcome, 1)
	proposed = true
	go func() {
		// Raft's timeout covers only the queue in front of its main loop, and
		// the future then waits without limit. So the caller waits beside it,
		// and what is under way stays counted until Raft has answered.
		result, err := n.propose(entry)
		n.endStamp(proposal)
		if result.Changed >= n.config.SnapshotChanges {
			// Who hears of it may count on a quick restart. Others do not wait,
			// but for Close, which waits for the admission.
			if _, err := n.db.Flush(); err != nil {
				n.fail(err)
			}
		}
		n.admission.leave(len(entry))
		done <- outcome{result, err}
	}()
	select {
	case o := <-done:
		return o.result, o.err
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-n.failed:
		err = n.usable()
	}
	select {
	case o := <-done: // Both came at once.
		return o.result, o.err
	default:
		return engine.Result{}, fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
}

// endStamp gives the time of a proposal back, and wakes who waits for it.
func (n *Node) endStamp(proposal *list.Element) {
	n.stamps.end(proposal)
	n.progress.broadcast()
}

// admit lets an entry of so many bytes in; the admission's leave must follow.
func (n *Node) admit(bytes int) error {
	if err := n.admission.enter(bytes); err != nil {
		return err
	}
	_, underWay := n.admission.figures()
	if err := n.room.check(underWay); err != nil {
		n.admission.leave(bytes)
		return err
	}
	return nil
}

// encode makes an entry of m. What it refuses would be a fault of every node if
// it stood in the log.
func (n *Node) encode(m *graph.Mutation, stamp graph.Instant) ([]byte, error) {
	if stamp <= 0 || stamp > graph.MaxInstant {
		return nil, fmt.Errorf("the node's clock says %v, which is not between 1970 and %v", n.config.Now(), graph.MaxInstant.Time())
	}
	return encodeCommand(command{Stamp: stamp, Mutation: m})
}

// propose hands an entry to Raft and waits for the answer of the FSM.
func (n *Node) propose(entry []byte) (engine.Result, error) {
	future := n.raft.Apply(entry, 0)
	switch err := future.Error(); {
	case err == nil:
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return engine.Result{}, fmt.Errorf("%w: %w", ErrNotLeader, err)
	default:
		// Leadership lost, shut down, or an error of the log: the entry may be
		// on the disk, and then the next leader, here or elsewhere, applies it.
		return engine.Result{}, fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
	a, ok := future.Response().(answer)
	if !ok {
		return engine.Result{}, fmt.Errorf("%w: Raft answered with %T", ErrOutcomeUnknown, future.Response())
	}
	if a.err != nil {
		return engine.Result{}, fmt.Errorf("%w: %w: %w", ErrOutcomeUnknown, ErrFailed, a.err)
	}
	return a.result, nil
}

// roomLookEvery is how often a write looks at the free space. What is written
// in between is far below the reserve.
const roomLookEvery = 50 * time.Millisecond

// A room refuses writes while the disk is nearly full, before the log has to:
// that would cost the node its leadership, and elections write too. Reads go
// on.
type room struct {
	log *badgerlog.Log

	mu     sync.Mutex
	looked time.Time
	stats  badgerlog.Stats
}

// bytesMin is what must be free for writes to be admitted: half as much again
// as the log needs, for the graph writes to the same disk.
func (r *room) bytesMin(stats badgerlog.Stats) int64 { return stats.FreeBytesNeeded * 3 / 2 }

// check returns an ErrDiskFull when there is no room for entries of so many
// bytes.
func (r *room) check(underWay int64) error {
	stats, err := r.look()
	if err != nil {
		return err
	}
	if need := r.bytesMin(stats) + 2*underWay; stats.FreeBytes < need {
		return fmt.Errorf("%w: %d bytes are free, and writes are taken from %d on", ErrDiskFull, stats.FreeBytes, need)
	}
	return nil
}

// checkStart returns an ErrDiskFull when there is too little space for the
// entries that every start writes: Raft panics when it cannot store its term.
func (r *room) checkStart() error {
	stats, err := r.look()
	if err != nil {
		return err
	}
	if need := stats.FreeBytesNeeded * 9 / 8; stats.FreeBytes < need {
		return fmt.Errorf("%w: %d bytes are free, and a node needs %d to start", ErrDiskFull, stats.FreeBytes, need)
	}
	return nil
}

func (r *room) look() (badgerlog.Stats, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); now.Sub(r.looked) > roomLookEvery {
		stats, err := r.log.Stats()
		if err != nil {
			return badgerlog.Stats{}, err
		}
		r.stats, r.looked = stats, now
	}
	return r.stats, nil
}
