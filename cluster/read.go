package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	grpcpeer "google.golang.org/grpc/peer"

	peerv1 "github.com/pembadb/pemba/cluster/pemba/peer/v1"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// A Mode says how new the state behind an answer must be.
type Mode uint8

// The modes. The zero Mode is Newest.
const (
	// Newest is the newest state on this node: at least what this node ever
	// answered from, and on a node that is alone everything acknowledged. A node
	// that was started answers once it has caught up.
	Newest Mode = iota
	// AtLeast is the newest state on this node, but not older than a revision. That
	// revision is all that it promises of a node that was started and has not caught up
	// since.
	AtLeast
	// Exactly is the state at a revision.
	Exactly
	// Linearizable is a state that holds everything that any node acknowledged
	// before the read began.
	Linearizable
	// AsOf is the state as it was at a moment, Consistency.Instant, with the
	// lifetimes and the schema of that moment. It holds every change of that moment
	// and before: asked again, anywhere and whoever leads, the answer is the same, as
	// long as the store keeps its past.
	AsOf
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
	case AsOf:
		return "as of"
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
	// stamp, so that no answer is from a moment before one that the caller saw; but
	// at most ClockSkewMax later than what those two ever were on this node, since
	// callers name it, and what has not passed anywhere must not end a lifetime.
	// With AsOf it is the moment itself, and needed.
	Instant graph.Instant
	// Pinned makes the answer's instant Instant itself, for the pages that
	// follow a first one, and for looking at the past. It needs Exactly and an
	// Instant.
	Pinned bool
}

// ClockSkewMax is how far the clocks of nodes may be apart for an answer to be of no
// earlier moment than one that another node gave.
const ClockSkewMax = 10 * time.Second

func (c Consistency) validate() error {
	switch {
	case c.Mode > AsOf:
		return fmt.Errorf("consistency: %v is unknown", c.Mode)
	case c.Mode == Exactly && c.Revision == 0:
		return errors.New("consistency: exactly asks for a revision, and none is given")
	case c.Pinned && (c.Mode != Exactly || c.Instant == 0):
		return fmt.Errorf("consistency: an instant is pinned with mode %v and instant %d; exactly and an instant are needed", c.Mode, c.Instant)
	case c.Mode == AsOf && (c.Instant <= 0 || c.Revision != 0):
		return fmt.Errorf("consistency: as of asks for a moment and no revision, and instant %d and revision %d are given", c.Instant, c.Revision)
	}
	return nil
}

// Snapshot holds a store still so that questions can be asked, at the revision
// and instant that c asks for, with overlay on top. It is the only place that
// waits: for a revision that is not applied yet, as long as ctx and
// Config.WaitMax allow. The caller must close the snapshot, and soon: Close
// waits for it.
//
// Its errors are ErrRevisionAhead for a revision that did not come, and
// ErrRevisionUnknown for one that cannot be there as this node leads and has given
// out none so high;
// ErrInstantAhead for a moment to come, and for a pinned one that is later than
// ClockSkewMax allows; ErrNotLeader for a read that needs a leader where none is
// found, ErrNotReady where none was since the start, ErrClock where lifetimes cannot
// be judged; ctx's own; and those of engine.Engine.Snapshot, such as
// graph.ErrUnknownStore, and graph.ErrRevisionGone for what is older than the
// past that the store keeps.
func (n *Node) Snapshot(ctx context.Context, store graph.StoreID, c Consistency, overlay graph.Overlay) (*engine.Snapshot, error) {
	if c.Mode == AsOf {
		return n.snapshotAsOf(ctx, store, c, overlay)
	}
	if err := n.Await(ctx, c); err != nil {
		return nil, err
	}
	var at graph.Revision
	if c.Mode == Exactly {
		at = c.Revision
	}
	latest := n.latestInstant() + graph.Instant(ClockSkewMax.Microseconds())
	if c.Pinned {
		if c.Instant > latest {
			return nil, fmt.Errorf("%w: the answers are to be those of %s, and it is %s", ErrInstantAhead, c.Instant, n.now())
		}
		return n.engineSnapshot(store, at, c.Instant, overlay)
	}
	now, err := n.trustedNow()
	if err != nil {
		return nil, err
	}
	c.Instant = min(c.Instant, latest)
	// An entry that is applied between the two lines may carry a later stamp
	// than the instant, when the clock is behind. So the snapshot is taken
	// again then, at a revision whose stamp is known.
	instant := max(now, n.db().Applied().Stamp, c.Instant)
	snapshot, err := n.engineSnapshot(store, at, instant, overlay)
	if err != nil || n.db().Applied().Stamp <= instant {
		return snapshot, err
	}
	snapshot.Close()
	applied := n.db().Applied()
	if at == 0 {
		at = applied.Revision
	}
	return n.engineSnapshot(store, at, max(now, applied.Stamp, c.Instant), overlay)
}

// engineSnapshot is engine.Engine.Snapshot of the machine that is in force. One that is
// replaced just now may be closed already.
func (n *Node) engineSnapshot(store graph.StoreID, at graph.Revision, instant graph.Instant, overlay graph.Overlay) (*engine.Snapshot, error) {
	for {
		m := n.machine.Load()
		snapshot, err := m.engine.Snapshot(store, at, instant, overlay)
		if err == nil || !errors.Is(err, graph.ErrClosed) || n.machine.Load() == m {
			return snapshot, err
		}
	}
}

// askGraph asks the graph that is in force. One that is replaced just now may be closed
// already; then the next is asked.
func askGraph[T any](n *Node, ask func(*graph.DB) (T, error)) (T, error) {
	for {
		m := n.machine.Load()
		answer, err := ask(m.db)
		if err == nil || !errors.Is(err, graph.ErrClosed) || n.machine.Load() == m {
			return answer, err
		}
	}
}

// changes is graph.DB.Changes of the graph that is in force.
func (n *Node) changes(store graph.StoreID, from graph.Position, limit int) ([]graph.LoggedRevision, error) {
	return askGraph(n, func(db *graph.DB) ([]graph.LoggedRevision, error) { return db.Changes(store, from, limit) })
}

// latestInstant returns the latest of the clock, the newest stamp, and, to a second,
// what the clock once was: what this node gave out before its clock was set back is
// believed.
func (n *Node) latestInstant() graph.Instant {
	now, was := n.now(), graph.Instant(n.clockWas.Load())
	if now > was+graph.Instant(time.Second.Microseconds()) {
		// Not at each read, for all of them share it. Another who is here says the same.
		n.clockWas.Store(int64(now))
	}
	return max(now, was, n.db().Applied().Stamp)
}

// readIndex returns a revision that holds everything acknowledged before the call. A
// node that does not lead asks the leader, again where that changes.
func (n *Node) readIndex(ctx context.Context) (graph.Revision, error) { return n.settle(ctx, 0) }

// settle returns a readIndex behind which no change is made, by any node that leads
// now, whose stamp is the moment at or before; at may be zero. Readers of a node that
// does not lead share their questions to the leader, as he shares his to the others.
func (n *Node) settle(ctx context.Context, at graph.Instant) (graph.Revision, error) {
	if at > 0 || n.peers == nil || n.leads() {
		return n.settleAlone(ctx, at)
	}
	return n.questions.wait(ctx, n.config.WaitMax, func() (graph.Revision, error) {
		// Of its own, for who came first may leave first.
		asking, cancel := context.WithTimeoutCause(context.Background(), n.config.WaitMax, noneAnswered(n.config.WaitMax))
		defer cancel()
		return n.settleAlone(asking, 0)
	})
}

// settleAlone is settle for one reader.
func (n *Node) settleAlone(ctx context.Context, at graph.Instant) (graph.Revision, error) {
	if n.plantedLocalRead(at) {
		return 0, nil
	}
	var revision graph.Revision
	late := time.Now().Add(n.config.WaitMax) // For all tries.
	err := n.retry(ctx, func() error {
		if err := n.usable(); err != nil {
			return err
		}
		return n.askLeader(ctx, false, func() (err error) {
			revision, err = n.settleHere(ctx, at)
			return err
		}, func(asking context.Context, leader peerv1.PeerServiceClient) error {
			asking, cancel := context.WithDeadline(asking, late)
			defer cancel()
			var to grpcpeer.Peer
			response, err := leader.ReadIndex(asking, &peerv1.ReadIndexRequest{Settle: int64(at)}, grpc.Peer(&to))
			if err != nil {
				return callError(ctx, err, &to, ErrNotLeader)
			}
			revision = graph.Revision(response.GetRevision())
			return fromFailure(response.GetFailure())
		})
	}, func(err error) bool { return n.peers != nil && errors.Is(err, ErrNotLeader) })
	return revision, err
}

// settleHere is settle on the leader. It returns an ErrInstantAhead for a moment that has
// not passed by its own clock either: a node whose clock is wrong may ask for it, and all
// stamps from then on, which never fall, would be of behind that moment.
func (n *Node) settleHere(ctx context.Context, at graph.Instant) (graph.Revision, error) {
	if at > 0 {
		now, err := n.trustedNow()
		if err != nil {
			// Another is to lead soon.
			return 0, fmt.Errorf("%w: %w", ErrNotLeader, err)
		}
		latest := max(now+graph.Instant(ClockSkewMax.Microseconds()), n.latestStamp())
		if at > latest {
			return 0, fmt.Errorf("%w: %s is asked for, and it is %s on the leader", ErrInstantAhead, at, now)
		}
		n.stamps.settle(at)
		err = n.waitUntil(ctx, func() bool { return n.stamps.isSettled(at) },
			fmt.Errorf("%w: writes of that moment were not done within %v", ErrTooBusy, n.config.WaitMax))
		if err != nil {
			return 0, err
		}
		if n.db().Applied().Stamp <= at {
			return n.settlings.wait(ctx, n.config.WaitMax, n.proposeSettle)
		}
	}
	return n.confirms.wait(ctx, n.config.WaitMax, n.confirm)
}

// proposeSettle makes an entry whose stamp is behind all that is settled, so that a next
// leader, who knows nothing of what was asked of this one, gives no stamp that is not.
// That the entry was agreed to says also that this node led when it was asked to.
func (n *Node) proposeSettle() (graph.Revision, error) {
	result, err := n.proposeUpkeep(&graph.Mutation{Settle: &graph.Settle{}})
	if errors.Is(err, ErrOutcomeUnknown) {
		// It changes nothing, so that the next leader may be asked in any case.
		err = cmp.Or(n.usable(), fmt.Errorf("%w: %s", ErrNotLeader, err.Error()))
	}
	return result.Revision, err
}

// latestStamp returns the latest of the stamps that are applied and of those that may come
// to be: another node may have applied an entry before this one, which leads, did.
func (n *Node) latestStamp() graph.Instant {
	var latest graph.Instant
	n.stamps.mu.Lock()
	if newest := n.stamps.open.Back(); newest != nil {
		latest = newest.Value.(graph.Instant)
	}
	n.stamps.mu.Unlock()
	// Behind it, for a proposal that has ended is applied.
	return max(latest, n.db().Applied().Stamp)
}

// waitApplied returns when this node has applied the revision.
func (n *Node) waitApplied(ctx context.Context, revision graph.Revision) error {
	reached := func() bool { return n.db().Applied().Revision >= revision }
	if reached() {
		return nil
	}
	// A leader's log ends where the cluster's does: no one was given a revision
	// behind it. One that was replaced and does not know would be wrong.
	if last := n.raft().LastIndex(); n.leads() && uint64(revision) > last {
		if _, err := n.confirms.wait(ctx, n.config.WaitMax, n.confirm); err == nil {
			return fmt.Errorf("%w: %d is asked for, and %d is the newest of the cluster", ErrRevisionUnknown, revision, last)
		}
	}
	err := n.waitUntil(ctx, reached, fmt.Errorf("%w: it did not come within %v", ErrRevisionAhead, n.config.WaitMax))
	if err == nil || errors.Is(err, ErrFailed) || errors.Is(err, ErrShuttingDown) {
		return err
	}
	return fmt.Errorf("wait for revision %d, at %d: %w", revision, n.db().Applied().Revision, err)
}

// waitCurrent returns when this node has, since its start, once held everything that
// was acknowledged: what it answers is then not of before what it answered ever.
func (n *Node) waitCurrent(ctx context.Context) error {
	if n.current.Load() {
		return nil
	}
	return n.waitUntil(ctx, n.current.Load, fmt.Errorf("%w: no leader was heard of within %v", ErrNotReady, n.config.WaitMax))
}

// Await returns when this node holds what c asks for, so that what has no snapshot,
// such as the list of stores, may be read. Its errors are those of Snapshot.
func (n *Node) Await(ctx context.Context, c Consistency) error {
	if err := n.usable(); err != nil {
		return err
	}
	if err := c.validate(); err != nil {
		return err
	}
	if err := n.awaitClock(ctx); err != nil {
		return err
	}
	switch c.Mode {
	case Linearizable:
		index, err := n.readIndex(ctx)
		if err != nil {
			return err
		}
		return n.waitApplied(ctx, index)
	case AtLeast, Exactly:
		if c.Revision > 0 {
			return n.waitApplied(ctx, c.Revision)
		}
	case Newest, AsOf:
	}
	return n.waitCurrent(ctx)
}

// waitUntil waits as long as ctx and Config.WaitMax allow; late is the error
// when the latter ends it.
func (n *Node) waitUntil(ctx context.Context, reached func() bool, late error) error {
	if reached() {
		return nil
	}
	waiting, cancel := context.WithTimeoutCause(ctx, n.config.WaitMax, late)
	defer cancel()
	err := n.progress.wait(waiting, n.closing, reached)
	if errors.Is(err, errStopped) {
		return n.usable()
	}
	return err
}

// snapshotAsOf holds a store still as it was at a moment.
//
// The answer holds every change whose stamp is the moment or before. Stamps never
// fall from one entry to the next, so a node that has applied one of later has them
// all. Otherwise the leader first sees to it that no proposal from now on gets such a
// stamp, waits for those under way that have one, and only then makes sure that it
// still leads; what it has applied by then holds them. A leader that follows this one, or
// a restart of it with a clock that was set back, begins with what was applied. So where
// no entry of behind the moment is, one is made (proposeSettle), which readers share.
func (n *Node) snapshotAsOf(ctx context.Context, store graph.StoreID, c Consistency, overlay graph.Overlay) (*engine.Snapshot, error) {
	if err := n.Await(ctx, c); err != nil {
		return nil, err
	}
	at, stamp := c.Instant, n.db().Applied().Stamp
	if now := max(n.now(), stamp); at > now {
		return nil, fmt.Errorf("%w: %s is asked for, and it is %s", ErrInstantAhead, at, now)
	}
	if at >= stamp || n.leads() {
		index, err := n.settle(ctx, at)
		if err == nil {
			err = n.waitApplied(ctx, index)
		}
		if err != nil {
			return nil, fmt.Errorf("read as of %s: %w", at, err)
		}
	}
	revision, err := askGraph(n, func(db *graph.DB) (graph.Revision, error) { return db.RevisionAt(store, at) })
	if err != nil {
		return nil, err
	}
	if revision == 0 {
		// Nothing was there yet. As the store was made it was empty, and if that
		// is kept no more, it cannot be said.
		info, ok := n.db().StoreInfo(store)
		if !ok {
			return nil, fmt.Errorf("read as of %s: %w", at, graph.ErrUnknownStore)
		}
		// Which revision made it is not known of a store of format version 1, but
		// it was not the first, which a cluster begins with.
		revision = max(info.Created, 1)
	}
	return n.engineSnapshot(store, revision, at, overlay)
}
