package cluster

import (
	"container/list"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	grpcpeer "google.golang.org/grpc/peer"

	"github.com/pembadb/pemba/cluster/badgerlog"
	peerv1 "github.com/pembadb/pemba/cluster/pemba/peer/v1"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// Write brings m into the cluster's order of changes and returns when it is applied:
// after a majority has it on the disk. Any node may be asked; one that does not lead
// asks the leader, and returns when it has applied m itself, or a second later.
// Writes that run at the same time share one sync. Whether the engine refused m is in
// the result's Refusal, which is the same on every node. A change of very many tuples
// returns only when the leader's graph is flushed behind it, so that a crash does not
// make it again.
//
// Where the leader changes meanwhile, the new one is asked, as long as ctx and
// Config.WaitMax allow: m is made once, however often it was asked for, since the
// state remembers its RequestID for graph.RequestLifetime. A cluster of several
// nodes gives it one if it has none.
//
// An error is of one of two kinds. ErrOutcomeUnknown: m was proposed, and may
// have been or may yet be applied; ctx ended, say. All others: m was not and
// will not be applied; ErrNotLeader, ErrTooBusy, ErrDiskFull and ErrShuttingDown
// say when to try again, ErrEntryTooLarge and a malformed m never to. m must not
// be changed before Write returns.
func (n *Node) Write(ctx context.Context, m *graph.Mutation) (engine.Result, error) {
	if n.peers == nil {
		return n.writeHere(ctx, m)
	}
	if len(m.RequestID) == 0 && len(n.configuration().Servers) > 1 {
		var id [requestIDBytes]byte
		if _, err := rand.Read(id[:]); err != nil {
			return engine.Result{}, fmt.Errorf("write: make up an id for the request: %w", err)
		}
		named := *m
		named.RequestID, m = id[:], &named
	}
	var result engine.Result
	tries := writeTries{named: len(m.RequestID) > 0}
	err := n.retry(ctx, func() error {
		began := time.Now()
		var err error
		result, err = n.writeOnce(ctx, m)
		tries.note(began, err)
		return err
	}, func(err error) bool { return tries.again(time.Now(), err) })
	unknown := tries.unknown()
	if err != nil {
		if unknown && !errors.Is(err, ErrOutcomeUnknown) {
			// An earlier try may have been the one that made it.
			err = fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
		}
		return engine.Result{}, err
	}
	if unknown && result.Refusal != nil {
		// The refusal is of a later try. The one before may yet come to be made.
		// The refusal is told and not wrapped: nobody may take it for the outcome.
		return engine.Result{}, fmt.Errorf("%w: it was refused when it was tried again: %s", ErrOutcomeUnknown, result.Refusal.Error())
	}
	return result, nil
}

// writeTries says whether a write may be tried once more.
type writeTries struct {
	named bool // The mutation has a RequestID.
	// since is when the first try began that may have made the mutation; zero for none.
	since time.Time
}

// repeatMax is how long after a try that may have made a mutation it is tried again. The
// state knows the request for graph.RequestLifetime by the stamps, which the leader gives:
// the other half is for the clocks of two leaders that differ, and for a try that is on
// its way for long.
const repeatMax = time.Duration(graph.RequestLifetime) * time.Microsecond / 2

func (t *writeTries) unknown() bool { return !t.since.IsZero() }

// note takes down how a try ended.
func (t *writeTries) note(began time.Time, err error) {
	if errors.Is(err, ErrOutcomeUnknown) && !t.unknown() {
		t.since = began
	}
}

// again reports whether to try once more after the error of the last try.
func (t *writeTries) again(now time.Time, err error) bool {
	switch {
	case !errors.Is(err, ErrNotLeader) && !errors.Is(err, ErrOutcomeUnknown):
		return false
	case t.unknown():
		// Without an id a second try could make the mutation twice, as it could with one
		// that is forgotten.
		return t.named && now.Sub(t.since) < repeatMax
	}
	return true
}

// requestIDBytes is how long the ids are that nodes make up: nobody meets another's.
const requestIDBytes = 16

// appliedPatience is how long a node that forwarded a write waits for it to be applied
// here too.
const appliedPatience = time.Second

// writeOnce writes m where the leader is, once.
func (n *Node) writeOnce(ctx context.Context, m *graph.Mutation) (engine.Result, error) {
	if err := n.usable(); err != nil {
		return engine.Result{}, err
	}
	var result engine.Result
	err := n.askLeader(ctx, false, func() (err error) {
		result, err = n.writeHere(ctx, m)
		return err
	}, func(asking context.Context, leader peerv1.PeerServiceClient) (err error) {
		result, err = n.forward(ctx, asking, leader, m)
		return err
	})
	return result, err
}

// forward has the leader write m. asking is ctx as long as the leader is one.
func (n *Node) forward(ctx, asking context.Context, leader peerv1.PeerServiceClient, m *graph.Mutation) (engine.Result, error) {
	if err := m.Validate(); err != nil {
		return engine.Result{}, fmt.Errorf("write: %w", err)
	}
	request := &peerv1.WriteRequest{Mutation: m.AppendBinary(nil), RequestId: m.RequestID}
	bytes := len(request.Mutation)
	if bytes > n.entryBytesMax {
		return engine.Result{}, tooLarge(bytes, n.entryBytesMax)
	}
	if err := n.admission.enter(bytes); err != nil {
		n.counts.refused.Add(1)
		return engine.Result{}, err
	}
	defer n.admission.leave(bytes)
	n.counts.forwarded.Add(1)
	var to grpcpeer.Peer
	response, err := leader.Write(asking, request, grpc.Peer(&to))
	if err != nil {
		return engine.Result{}, callError(ctx, err, &to, ErrOutcomeUnknown)
	}
	if err := fromFailure(response.GetFailure()); err != nil {
		return engine.Result{}, err
	}
	result := fromPeerResult(response.GetResult())
	waiting, cancel := context.WithTimeout(ctx, appliedPatience)
	defer cancel()
	// Who reads here next should see it; a node that lags has its zookie for that.
	_ = n.await(waiting, func() bool { return n.db().Applied().Revision >= result.Revision })
	return result, nil
}

// The pauses between two tries to reach a leader. Hearing of another one ends them.
const (
	retryPauseMin = 5 * time.Millisecond
	retryPauseMax = 100 * time.Millisecond
)

// retry calls try until it succeeds or its error is none that again says to try after,
// as long as ctx and Config.WaitMax allow. It returns the error of the last try.
func (n *Node) retry(ctx context.Context, try func() error, again func(error) bool) error {
	end := time.Now().Add(n.config.WaitMax)
	for pause := retryPauseMin; ; pause = min(2*pause, retryPauseMax) {
		before, led := n.following.Load(), n.leads()
		err := try()
		if err == nil || !again(err) || ctx.Err() != nil || time.Now().Add(pause).After(end) {
			return err
		}
		waiting, cancel := context.WithTimeout(ctx, pause)
		// Whatever ends it, the next try says what there is.
		_ = n.progress.wait(waiting, n.closing, func() bool {
			now := n.following.Load()
			return n.usable() != nil || !led && n.leads() || now != before && now != nil && now.leader != ""
		})
		cancel()
		if n.usable() != nil {
			return err
		}
	}
}

func tooLarge(bytes, allowed int) error {
	return fmt.Errorf("%w: it needs %d bytes, at most %d are allowed; make several smaller ones", ErrEntryTooLarge, bytes, allowed)
}

// writeHere is Write on the leader: it proposes m and waits for the outcome.
func (n *Node) writeHere(ctx context.Context, m *graph.Mutation) (engine.Result, error) {
	if err := n.usable(); err != nil {
		return engine.Result{}, err
	}
	if ctx.Err() != nil {
		return engine.Result{}, fmt.Errorf("write: %w", context.Cause(ctx))
	}
	now, err := n.trustedNow()
	if err != nil {
		// Another is to lead soon.
		return engine.Result{}, fmt.Errorf("%w: %w", ErrNotLeader, err)
	}
	stamp, proposal := n.stamps.take(now)
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
		return engine.Result{}, tooLarge(len(entry), n.entryBytesMax)
	}
	if err := n.admit(len(entry), m.Settle != nil); err != nil {
		n.counts.refused.Add(1)
		if errors.Is(err, ErrDiskFull) && n.mayHandOver() {
			err = fmt.Errorf("%w: %w", ErrNotLeader, err)
		}
		return engine.Result{}, err
	}
	type outcome struct {
		result engine.Result
		err    error
	}
	done := make(chan outcome, 1)
	proposer := n.machine.Load()
	var once sync.Once
	end := func(result engine.Result, err error) {
		once.Do(func() {
			n.endStamp(proposal)
			if result.Changed >= n.config.SnapshotChanges {
				// Who hears of it may count on a quick restart. Others do not wait,
				// but for Close, which waits for the admission.
				n.flushLarge(proposer)
			}
			n.admission.leave(len(entry))
			done <- outcome{result, err}
		})
	}
	proposed = true
	go func() {
		// Raft's timeout covers only the queue in front of its main loop, and
		// the future then waits without limit. So the caller waits beside it,
		// and what is under way stays counted until Raft has answered.
		end(proposer.propose(entry))
	}()
	select {
	case o := <-done:
		return o.result, o.err
	case <-proposer.stop:
		// A Raft that is stopped, since the machine is replaced, does not answer what
		// waits for the FSM.
		end(engine.Result{}, errMachineStopped)
		o := <-done
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
	}
	go func() { // In the place of the caller.
		select {
		case <-done:
		case <-proposer.stop:
			end(engine.Result{}, errMachineStopped)
		}
	}()
	return engine.Result{}, fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
}

// errMachineStopped is the outcome of what a Raft did not answer before it was stopped.
var errMachineStopped = fmt.Errorf("%w: Raft was stopped before it answered", ErrOutcomeUnknown)

// flushLarge flushes the graph of a machine behind a change of very many tuples. A graph
// that was replaced meanwhile may be closed, and what replaced it was whole on the disk;
// so may that of a node that is being closed.
func (n *Node) flushLarge(m *machine) {
	_, err := m.db.Flush()
	if err == nil || errors.Is(err, graph.ErrClosed) && (n.machine.Load() != m || n.usable() != nil) {
		return
	}
	n.fail(err)
}

// endStamp gives the time of a proposal back, and wakes who waits for it.
func (n *Node) endStamp(proposal *list.Element) {
	n.stamps.end(proposal)
	n.progress.broadcast()
}

// admit lets an entry of so many bytes in; the admission's leave must follow. One that a
// reader needs is let in beside however many writes, as long as there is room to start
// again.
func (n *Node) admit(bytes int, forReader bool) error {
	enter := n.admission.enter
	if forReader {
		enter = n.admission.enterAnyway
	}
	if err := enter(bytes); err != nil {
		return err
	}
	_, underWay := n.admission.figures()
	err := n.room.check(underWay)
	if err != nil && forReader {
		err = n.room.checkStart()
	}
	if err != nil {
		n.admission.leave(bytes)
	}
	return err
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
func (m *machine) propose(entry []byte) (engine.Result, error) {
	future := m.raft.Apply(entry, 0)
	switch err := future.Error(); {
	case err == nil:
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		if errors.Is(err, raft.ErrLeadershipTransferInProgress) {
			nudge(m.refusing)
		}
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
