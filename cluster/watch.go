package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/pembadb/pemba/graph"
)

// A Watcher follows the changes of one store from a position on. It is used by
// one goroutine at a time and must be closed.
//
// It holds nothing between two calls of Next: no snapshot, and no changes that
// wait for it. One that is slow falls behind what is kept in memory, and reads
// the change log by itself until it has caught up.
type Watcher struct {
	node *Node
	tail *tail
	// position is where the next batch begins. Everything before it, from where
	// the watcher began, was delivered.
	position graph.Position
	// page says how much the next read of its own asks for.
	page page
	// timer ends the pause of a call of Next.
	timer *time.Timer
	// at is position.Revision, for those who look from outside.
	at     atomic.Uint64
	closed bool
}

// A WatchBatch is what a Watcher delivers.
type WatchBatch struct {
	// Revisions are changes in order. They are shared with other watchers and
	// must not be changed. A revision of many changes comes in several parts,
	// which may be in several batches.
	Revisions []graph.LoggedRevision
	// Position is behind them: where to go on, also with another watcher on
	// another day.
	Position graph.Position
	// Reached says that everything up to this revision has been delivered, and
	// Instant is its moment; zero in the midst of more.
	//
	// Invariant: Reached == 0, or Position == Position{Revision: Reached + 1}.
	Reached graph.Revision
	Instant graph.Instant
}

// Watch follows a store's changes from a position on; Position{Revision: r + 1}
// is what comes after revision r. It fails with graph.ErrRevisionGone for a
// position whose changes are kept no more, with graph.ErrUnknownStore, with
// ErrRevisionUnknown on the leader for a position that no one was given, and with
// ErrTooBusy when Config.WatchersMax follow already.
func (n *Node) Watch(store graph.StoreID, from graph.Position) (*Watcher, error) {
	if err := n.usable(); err != nil {
		return nil, err
	}
	if last := n.raft().LastIndex(); n.leads() && uint64(from.Revision) > last+1 {
		return nil, fmt.Errorf("%w: changes from %d on are asked for, and %d is the newest revision of the cluster",
			ErrRevisionUnknown, from.Revision, last)
	}
	// What the log cannot answer is said now rather than by the first Next.
	if _, err := n.changes(store, from, 1); err != nil {
		return nil, n.watchError(err)
	}
	w := &Watcher{node: n, position: from, timer: time.NewTimer(time.Hour)}
	w.timer.Stop()
	w.at.Store(uint64(from.Revision))
	if err := n.watches.enter(n, store, w); err != nil {
		return nil, err
	}
	return w, nil
}

// watchError returns the error of a watcher.
func (n *Node) watchError(err error) error {
	if usable := n.usable(); usable != nil {
		return usable // Whatever it led to.
	}
	return fmt.Errorf("watch: %w", err)
}

// Next returns the next changes as soon as there are some, else, after the pause,
// none: then Reached says how far there were none. It fails when the store is
// dropped, the position is kept no more, ctx ends or the node stops; changes
// that were returned before are not lost by that, and it may be called again.
func (w *Watcher) Next(ctx context.Context, pause time.Duration) (WatchBatch, error) {
	w.timer.Reset(pause)
	defer w.timer.Stop()
	late := false
	for {
		if err := w.node.usable(); err != nil {
			return WatchBatch{}, err
		}
		batch, changed, err := w.node.tailAfter(w.tail, w.position)
		// What a watcher waits for: its turn to read, if it is behind, else for
		// changes.
		var turn chan<- struct{}
		switch {
		case errors.Is(err, errBehind):
			turn = w.node.watches.turns
		case err != nil:
			return WatchBatch{}, w.node.watchError(err)
		case len(batch.Revisions) > 0, late:
			return w.deliver(batch), nil
		}
		if late {
			return w.deliver(WatchBatch{Position: w.position}), nil
		}
		select {
		case turn <- struct{}{}:
			batch, err := w.readPage()
			<-w.node.watches.turns
			if err != nil {
				return WatchBatch{}, w.node.watchError(err)
			}
			if batch = w.deliver(batch); len(batch.Revisions) > 0 {
				return batch, nil
			}
		case <-changed:
		case <-w.timer.C:
			late = true
		case <-ctx.Done():
			return WatchBatch{}, fmt.Errorf("watch: %w", context.Cause(ctx))
		case <-w.node.closing:
		}
	}
}

// deliver moves the watcher behind a batch.
func (w *Watcher) deliver(batch WatchBatch) WatchBatch {
	w.position = batch.Position
	w.at.Store(uint64(w.position.Revision))
	return batch
}

// readPage reads what comes next by itself, for a watcher that is behind what
// the tail holds.
func (w *Watcher) readPage() (WatchBatch, error) {
	// Loaded first: the log as it is read next has all of it.
	seen := w.node.watches.seen.Load()
	w.node.watches.reads.Add(1)
	revisions, err := w.node.changes(w.tail.store, w.position, w.page.size())
	if err != nil {
		return WatchBatch{}, err
	}
	batch := WatchBatch{Revisions: revisions, Position: w.position}
	if len(revisions) > 0 {
		last := &revisions[len(revisions)-1]
		if batch.Position = last.End(); batch.Position.Offset == 0 {
			batch.reach(last.Revision, last.Stamp)
		}
	}
	if full := w.page.note(revisions); !full && isBefore(batch.Position, seen.end()) {
		batch.reach(seen.revision, seen.stamp)
	}
	return batch, nil
}

// reach says that nothing is missing up to a revision.
func (b *WatchBatch) reach(revision graph.Revision, stamp graph.Instant) {
	b.Position = graph.Position{Revision: revision + 1}
	b.Reached, b.Instant = revision, stamp
}

// Close gives the watcher back. It may be called again, but not while Next
// runs.
func (w *Watcher) Close() {
	if w.closed {
		return
	}
	w.closed = true
	w.timer.Stop()
	w.node.watches.leave(w)
}
