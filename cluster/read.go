package cluster

import (
	"context"
	"errors"
	"fmt"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// A Mode says how new the state behind an answer must be.
type Mode uint8

// The modes. The zero Mode is Newest.
const (
	// Newest is the newest state on this node: at least what this node ever
	// answered from, and on a node that is alone everything acknowledged.
	Newest Mode = iota
	// AtLeast is the newest state on this node, but not older than a revision.
	AtLeast
	// Exactly is the state at a revision.
	Exactly
	// Linearizable is a state that holds everything that any node acknowledged
	// before the read began.
	Linearizable
)

// String returns the mode in lower case.
func (m Mode) String() string {
	switch m {
	case Newest:
		return "newest"
	case AtLeast:
		return "at least"
	case Exactly:
		return "exactly"
	case Linearizable:
		return "linearizable"
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

// A Consistency says at which revision and instant a question is answered. The
// zero Consistency is the newest state of this node, now.
type Consistency struct {
	Mode Mode
	// Revision goes with AtLeast and Exactly. Zero is allowed with AtLeast and
	// asks for nothing.
	Revision graph.Revision
	// Instant is at which lifetimes are judged at the earliest; zero for none.
	// The answer's instant is the latest of it, the node's clock and the newest
	// stamp, so that no answer is from a moment before one that the caller saw.
	Instant graph.Instant
	// Pinned makes the answer's instant Instant itself, for the pages that
	// follow a first one, and for looking at the past. It needs Exactly and an
	// Instant.
	Pinned bool
}

func (c Consistency) validate() error {
	switch {
	case c.Mode > Linearizable:
		return fmt.Errorf("consistency: %v is unknown", c.Mode)
	case c.Mode == Exactly && c.Revision == 0:
		return errors.New("consistency: exactly asks for a revision, and none is given")
	case c.Pinned && (c.Mode != Exactly || c.Instant == 0):
		return fmt.Errorf("consistency: an instant is pinned with mode %v and instant %d; exactly and an instant are needed", c.Mode, c.Instant)
	}
	return nil
}

// Snapshot holds a store still so that questions can be asked, at the revision
// and instant that c asks for, with overlay on top. It is the only place that
// waits: for a revision that is not applied yet, as long as ctx and
// Config.WaitMax allow. The caller must close the snapshot, and soon: Close
// waits for it.
//
// Its errors are ErrRevisionAhead for a revision that did not come, or that
// cannot be there as this node leads and has given out none so high;
// ErrNotLeader for a linearizable read that this node cannot answer; ctx's own;
// and those of engine.Engine.Snapshot.
func (n *Node) Snapshot(ctx context.Context, store graph.StoreID, c Consistency, overlay graph.Overlay) (*engine.Snapshot, error) {
	if err := n.usable(); err != nil {
		return nil, err
	}
	if err := c.validate(); err != nil {
		return nil, err
	}
	wanted := c.Revision
	switch c.Mode {
	case Newest:
		wanted = 0
	case Linearizable:
		index, err := n.readIndex(ctx)
		if err != nil {
			return nil, err
		}
		wanted = index
	case AtLeast, Exactly:
	}
	if err := n.waitApplied(ctx, wanted); err != nil {
		return nil, err
	}
	var at graph.Revision
	if c.Mode == Exactly {
		at = c.Revision
	}
	if c.Pinned {
		return n.engine.Snapshot(store, at, c.Instant, overlay)
	}
	// An entry that is applied between the two lines may carry a later stamp
	// than the instant, when the clock is behind. So the snapshot is taken
	// again then, at a revision whose stamp is known.
	instant := max(n.now(), n.db.Applied().Stamp, c.Instant)
	snapshot, err := n.engine.Snapshot(store, at, instant, overlay)
	if err != nil || n.db.Applied().Stamp <= instant {
		return snapshot, err
	}
	snapshot.Close()
	applied := n.db.Applied()
	if at == 0 {
		at = applied.Revision
	}
	return n.engine.Snapshot(store, at, max(n.now(), applied.Stamp, c.Instant), overlay)
}

// readIndex returns a revision that holds everything acknowledged before the
// call. Only the leader knows one, and only once it has applied an entry of its
// own term: what earlier leaders acknowledged is then applied here, and what it
// acknowledges itself it has applied before.
//
// A node that is alone needs to ask nobody. With peers, a leader must learn
// here from a majority that it still is the leader, by asking for their terms
// after the request came (raft.VerifyLeader accepts answers that were sent
// before), and a follower must ask the leader.
func (n *Node) readIndex(context.Context) (graph.Revision, error) {
	if !n.leads() {
		return 0, fmt.Errorf("%w: it cannot say what was acknowledged", ErrNotLeader)
	}
	return n.db.Applied().Revision, nil
}

// waitApplied returns when this node has applied the revision.
func (n *Node) waitApplied(ctx context.Context, revision graph.Revision) error {
	reached := func() bool { return n.db.Applied().Revision >= revision }
	if reached() {
		return nil
	}
	// A leader's log ends where the cluster's does: no one was given a revision
	// behind it.
	if last := n.raft.LastIndex(); n.leads() && uint64(revision) > last {
		return fmt.Errorf("%w: %d is asked for, and %d is the newest of the cluster", ErrRevisionAhead, revision, last)
	}
	waiting, cancel := context.WithTimeoutCause(ctx, n.config.WaitMax,
		fmt.Errorf("%w: it did not come within %v", ErrRevisionAhead, n.config.WaitMax))
	defer cancel()
	if err := n.progress.wait(waiting, n.closing, reached); err != nil {
		if errors.Is(err, errStopped) {
			return n.usable()
		}
		return fmt.Errorf("wait for revision %d, at %d: %w", revision, n.db.Applied().Revision, err)
	}
	return nil
}
