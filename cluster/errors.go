package cluster

import (
	"errors"
	"fmt"

	"github.com/pembadb/pemba/cluster/badgerlog"
	"github.com/pembadb/pemba/graph"
)

// The errors that callers tell apart with errors.Is. All but ErrOutcomeUnknown
// mean that a write was not and will not be made.
var (
	// ErrNotLeader means that this node does not lead, or leads and does not
	// yet know all that its predecessors acknowledged. Trying again soon helps.
	ErrNotLeader = errors.New("this node does not lead the cluster")
	// ErrNotReady means that this node has not yet heard from a leader since it
	// was started, so that what it has may be older than what it answered before.
	// Trying again soon helps.
	ErrNotReady = errors.New("this node has not caught up with the cluster since its start")
	// ErrRemoved means that this node does not belong to the cluster any more.
	ErrRemoved = errors.New("this node was removed from the cluster")
	// ErrClock means that this node's clock is far from that of most others, so that
	// it cannot judge lifetimes. Another node answers.
	ErrClock = errors.New("this node's clock is not right")
	// ErrDiverged means that this node's state is not that of the others.
	ErrDiverged = errors.New("this node holds another state than the rest of the cluster")
	// ErrMember means that a change of who belongs to the cluster was refused.
	ErrMember = errors.New("the members of the cluster cannot be changed so")
	// ErrShuttingDown means that Close was called.
	ErrShuttingDown = errors.New("the node is shutting down")
	// ErrFailed means that the node stopped after a fault, which the error
	// names: a damaged disk, an entry that cannot be applied. It answers
	// nothing more; the process should end.
	ErrFailed = errors.New("the node has stopped after a fault")
	// ErrOutcomeUnknown means that a write was proposed and that nobody here
	// knows whether it was or will be made: the caller's context ended, the
	// leadership was lost, or the node failed in between.
	ErrOutcomeUnknown = errors.New("the outcome of the change is unknown")
	// ErrTooBusy means that as many writes are under way, or as many watchers
	// follow, as the node admits.
	ErrTooBusy = errors.New("the node is too busy")
	// ErrEntryTooLarge means that a mutation needs a larger log entry than one
	// may be.
	ErrEntryTooLarge = errors.New("the mutation is too large for one log entry")
	// ErrDiskFull means that the disk has too little space left for a safe
	// write. Reads go on, and writes do when there is space again.
	ErrDiskFull = badgerlog.ErrDiskFull
	// ErrRevisionAhead means that a read asked for a revision that this node
	// has not applied, and did not come to apply while the read waited.
	ErrRevisionAhead = graph.ErrRevisionAhead
	// ErrRevisionUnknown is the ErrRevisionAhead of a leader, for a revision that is
	// behind all that the cluster gave out: waiting does not help.
	ErrRevisionUnknown = fmt.Errorf("%w: nobody was given it", ErrRevisionAhead)
	// ErrInstantAhead means that the state of a moment was asked for that has
	// not passed: changes of before it may yet be made.
	ErrInstantAhead = errors.New("the moment has not passed yet")
)
