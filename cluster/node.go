package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// A Node is one member of a cluster: a graph, the engine over it, and the log
// that brings all members to the same revision. Its methods may be called by
// any number of goroutines.
type Node struct {
	config  Config
	dir     *dataDir
	log     *logStore
	machine atomic.Pointer[machine] // Never nil, once Open made the first.
	memory  vfs.FS                  // With Config.InMemory, else nil.

	entryBytesMax int
	admission     *admission
	stamps        stamps
	room          room
	progress      progress
	watches       watches
	collector     collector
	remover       remover
	cutter        cutter
	verified      verified
	counts        counts

	// leading is the term in which this node leads and has applied an entry of
	// that very term, so that it knows all that its predecessors acknowledged;
	// zero when there is none. Invariant: leading <= raft's current term.
	leading atomic.Uint64

	// current says that the node has, since its start, once held everything that
	// was acknowledged.
	current atomic.Bool

	peers    *peers // Nil for a node without a port for others.
	confirms confirms
	// questions are those to the leader, shared like confirms.
	questions confirms
	// settlings are the entries that as-of readers share.
	settlings confirms
	// following says whom this node follows; nil while it has no Raft.
	following atomic.Pointer[following]
	// joined is the id of the cluster that the node joined, nil when it joined none.
	joined          atomic.Pointer[[16]byte]
	changingMembers chan struct{} // Has room for one.
	// handingOver counts the transfers of leadership that are under way here.
	handingOver atomic.Int32
	// untaken holds, by node, the term in which it was last handed the leadership and did
	// not take it (raft.ServerID to uint64).
	untaken   sync.Map
	installer installer
	transfers transfers
	checksums checksums
	clocks    clocks
	fitness   fitness

	// clockWas is the latest that the clock was when somebody read, to a second.
	clockWas atomic.Int64

	failed  chan struct{} // Closed at the first fault.
	failure error         // Why; set before failed is closed.

	stop  chan struct{} // Closed when the loops are to end.
	loops sync.WaitGroup

	mu       sync.Mutex
	opening  bool          // Open has not returned; it does the cleaning up.
	closing  chan struct{} // Closed when Close was called, or a fault closes the node.
	closed   chan struct{} // Closed when everything is given back.
	closeErr error         // Set before closed is closed.
}

// errStopped is what progress.wait returns when the node failed or closes.
var errStopped = errors.New("the node stopped")

// fail stops the node: nothing is answered from now on. Only the first fault
// counts. It returns at once and may be called from anywhere.
func (n *Node) fail(err error) {
	err = graph.Damage(err)
	n.mu.Lock()
	if n.failure != nil {
		n.mu.Unlock()
		return
	}
	n.failure = err
	close(n.failed)
	opening := n.opening
	n.mu.Unlock()

	n.progress.broadcast()
	n.config.Logger.Error("the node stops after a fault", "node", n.dir.nodeID, "error", err)
	if opening {
		return // Open returns the fault and gives back what it opened.
	}
	if n.config.OnFatal != nil {
		go n.config.OnFatal(err)
	}
	// Raft must not go on with a log that failed, nor Pebble with a disk.
	n.beginClose()
}

// usable returns why the node answers nothing, if so.
func (n *Node) usable() error {
	select {
	case <-n.failed:
		return fmt.Errorf("%w: %w", ErrFailed, n.failure)
	default:
	}
	select {
	case <-n.closing:
		return ErrShuttingDown
	default:
		return nil
	}
}

// leads reports whether this node leads and knows all that was acknowledged.
func (n *Node) leads() bool {
	term := n.leading.Load()
	return term != 0 && n.raft().State() == raft.Leader && n.raft().CurrentTerm() == term
}

// Ready returns nil when the node may be given work: it has caught up since its
// start, its clock is right, and it leads or follows a leader. Else it returns why not:
// an ErrNotReady, ErrClock, ErrNotLeader, ErrFailed or ErrShuttingDown.
func (n *Node) Ready() error {
	if err := n.usable(); err != nil {
		return err
	}
	if !n.current.Load() {
		return ErrNotReady
	}
	if err := n.clockTrusted(); err != nil {
		return err
	}
	if n.leads() {
		return nil
	}
	leader, known := n.leader()
	switch {
	case !known:
		return fmt.Errorf("%w: %w", ErrNotLeader, errNoLeader)
	case string(leader.ID) == n.dir.nodeID:
		return fmt.Errorf("%w: it was elected just now", ErrNotLeader)
	}
	return nil
}

// Engine returns the engine, for what needs no consistency. Questions go to
// Snapshot, changes to Write.
func (n *Node) Engine() *engine.Engine { return n.machine.Load().engine }

// InMemory reports whether the node keeps nothing on a disk.
func (n *Node) InMemory() bool { return n.config.InMemory }

// ID returns the node's id, as kept in its data directory.
func (n *Node) ID() string { return n.dir.nodeID }

// A Status says how a node is.
//
// Invariants: Durable <= Applied <= Committed <= LastIndex; FirstIndex <= Durable + 1.
type Status struct {
	NodeID    string
	ClusterID [16]byte
	// Version is Config.Version.
	Version string
	// Role is "leader", "candidate", "follower" or "shutdown".
	Role string
	// LeaderID is the id of the node that leads, "" when the node knows none.
	LeaderID string
	Term     uint64
	// NotReady is why the node is not ready, "" when it is.
	NotReady string
	// Clock is the node's clock.
	Clock graph.Instant
	// Committed is the last entry that the node knows to be agreed.
	Committed uint64
	// Voters counts the nodes whose votes make a majority.
	Voters int
	// Applied is the revision that reads see, Durable the one that survives a
	// crash without the log.
	Applied graph.Revision
	Durable graph.Revision
	// Stamp is the highest stamp applied.
	Stamp graph.Instant
	// FirstIndex and LastIndex are the ends of the log.
	FirstIndex, LastIndex uint64
	// StateBytes and LogBytes are what the graph and the log take on the disk,
	// LogBytes without the ballast file; zero for a node in memory.
	StateBytes, LogBytes int64
	// FreeBytes is what is free beside the log, and FreeBytesMin what must be
	// for writes to be admitted. In memory FreeBytes is math.MaxInt64.
	FreeBytes, FreeBytesMin int64
}

// Status gathers the figures. It costs some system calls for each file of the
// data directory.
func (n *Node) Status() (Status, error) {
	if err := n.usable(); err != nil {
		return Status{}, err
	}
	state, err := n.stateBytes()
	if err != nil {
		return Status{}, fmt.Errorf("measure the state: %w", err)
	}
	stats, err := n.log.Stats()
	if err != nil {
		return Status{}, err
	}
	// In this order, so that the invariants hold whatever happens meanwhile.
	durable, applied := n.db().Durable(), n.db().Applied()
	s := Status{
		NodeID: n.dir.nodeID, ClusterID: n.ClusterID(), Version: n.config.Version, Role: n.role(), Clock: n.now(),
		Term: n.raft().CurrentTerm(), Voters: n.voters(),
		Applied: applied.Revision, Durable: durable.Revision, Stamp: applied.Stamp,
		// What is applied is agreed. Raft has forgotten it after a start until it hears of a leader.
		Committed: max(n.raft().CommitIndex(), uint64(applied.Revision)), FirstIndex: stats.First, LastIndex: n.raft().LastIndex(),
		StateBytes: state, LogBytes: stats.DiskBytes,
		FreeBytes: stats.FreeBytes, FreeBytesMin: n.room.bytesMin(stats),
	}
	if leader, known := n.leader(); known {
		s.LeaderID = string(leader.ID)
	}
	if err := n.Ready(); err != nil {
		s.NotReady = err.Error()
	}
	return s, nil
}

// role names the node's part in Raft.
func (n *Node) role() string {
	switch n.raft().State() {
	case raft.Leader:
		return "leader"
	case raft.Candidate:
		return "candidate"
	case raft.Follower:
		return "follower"
	case raft.Shutdown:
		return "shutdown"
	}
	return ""
}

// voters counts the voters of the newest configuration.
func (n *Node) voters() int { return countVoters(n.configuration()) }

func countVoters(c raft.Configuration) int {
	count := 0
	for _, server := range c.Servers {
		if server.Suffrage == raft.Voter {
			count++
		}
	}
	return count
}

// Close stops the node: it takes no more writes, waits for those under way,
// leaves Raft, flushes the graph, so that the next start is quick, and gives
// the directory back. No acknowledged write is lost, however it ends.
//
// It waits for snapshots that are still open. When ctx ends it returns an error
// and closing goes on by itself. It may be called again, and by several.
func (n *Node) Close(ctx context.Context) error {
	n.beginClose()
	select {
	case <-n.closed:
		return n.closeErr
	case <-ctx.Done():
		select {
		case <-n.closed:
			return n.closeErr
		default:
		}
		return fmt.Errorf("close the node in %s: not done yet: %w", n.dir.path, context.Cause(ctx))
	}
}

// beginClose closes the node in the background, once.
func (n *Node) beginClose() {
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-n.closing:
		return
	default:
	}
	close(n.closing)
	go func() {
		n.closeErr = n.close()
		close(n.closed)
	}()
}

// forwardsPatience is how long writes that were handed to another node may go on when
// this one is closed.
const forwardsPatience = 2 * time.Second

// close gives everything back, in the reverse order of Open, as far as Open
// came.
func (n *Node) close() error {
	if n.admission != nil {
		drained := n.admission.close()
		patience := time.NewTimer(forwardsPatience)
		select {
		case <-drained:
		case <-n.failed: // Raft may never answer what is under way.
		case <-patience.C:
			// Nor may a leader elsewhere.
			if f := n.following.Load(); f != nil {
				f.end()
			}
			patience.Reset(forwardsPatience)
			select {
			case <-drained:
			case <-n.failed:
			case <-patience.C:
				// Nor may the others agree to it, while this node goes on leading: one that is
				// needed may be waiting for the state, which a node that is being closed sends
				// nobody. What Raft has not answered ends with Raft, its outcome unknown.
			}
		}
		patience.Stop()
	}
	n.watches.close()
	close(n.stop)
	if n.installer.ended != nil {
		<-n.installer.ended // It may be replacing the machine.
	}
	var errs []error
	m := n.machine.Load()
	if m != nil {
		errs = append(errs, m.stopRaft())
	}
	n.loops.Wait()
	if n.peers != nil {
		errs = append(errs, n.peers.close())
		n.endTransfers()
	}
	if m != nil {
		errs = append(errs, m.closeGraph())
	}
	n.closeReplaced()
	if n.log != nil {
		if err := n.log.Close(); err != nil {
			errs = append(errs, err)
		}
	}
	if err := n.dir.close(); err != nil {
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	n.config.Logger.Info("closed the node", "node", n.dir.nodeID, "error", err)
	return err
}
