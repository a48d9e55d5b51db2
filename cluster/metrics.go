package cluster

import (
	"fmt"
	"strconv"
	"sync/atomic"

	"github.com/pembadb/pemba/cluster/badgerlog"
	"github.com/pembadb/pemba/cluster/peer"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// Metrics are the figures of a node, for looking at from outside. What is
// counted is counted from the node's start, and the same figures of two calls
// may be some entries apart from each other.
type Metrics struct {
	Graph graph.Metrics
	Log   badgerlog.Stats

	// Role and Term are as in Status.
	Role string
	Term uint64
	// Applied is the revision that reads see, Commit the last entry that is
	// agreed, LastIndex the last in the log.
	//
	// Invariant: Applied <= Commit <= LastIndex.
	Applied   graph.Revision
	Commit    uint64
	LastIndex uint64
	// FSMPending is how many batches of entries are agreed and wait to be
	// applied.
	FSMPending int
	// EntriesApplied counts the entries that were applied, and LogBatches and
	// LogEntries the batches that were synced, with the entries in them.
	EntriesApplied uint64
	LogBatches     uint64
	LogEntries     uint64

	// Proposals and ProposalBytes are the writes under way, of at most
	// ProposalsMax and ProposalBytesMax; ProposalsRefused counts those that were
	// not admitted: too busy, the disk too full, shutting down.
	Proposals        int
	ProposalsMax     int
	ProposalBytes    int64
	ProposalBytesMax int64
	ProposalsRefused uint64

	// Watchers follow WatchedStores; WatchBytes is what is held for them all.
	// WatchLag is by how many revisions the slowest is behind what was read of
	// its store's change log.
	Watchers      int
	WatchersMax   int
	WatchedStores int
	WatchBytes    int64
	WatchLag      uint64

	// Members and Voters are those of the newest configuration.
	Members int
	Voters  int
	// Forwarded counts the writes that this node handed to the leader.
	Forwarded uint64
	// ConfirmRounds counts how often this node, as the leader, had a majority confirm
	// that it leads, and ConfirmReaders the reads that this was done for.
	ConfirmRounds  uint64
	ConfirmReaders uint64
	// StatesSending are the whole states that are being sent, StateBytesSent and
	// StateBytesReceived what was sent and received of such, and StatesInstalled how
	// many that were received came into force.
	StatesSending      int
	StateBytesSent     int64
	StateBytesReceived int64
	StatesInstalled    int
	// ClockTrusted says that this node answers: see ErrClock.
	ClockTrusted bool
	// Peers is what went on between this node and each other, and Port at its port,
	// whoever came; nil and zero for a node that has none.
	Peers []peer.Stats
	Port  peer.Totals

	// LifetimesEnded counts the tuples that were collected because their
	// lifetime was over, Prunes the entries that let some past be forgotten,
	// StageCollections those that dropped staged changes which were left behind.
	LifetimesEnded   uint64
	Prunes           uint64
	StageCollections uint64

	// VerifiedBytes is how much of the tables was read since the start, and
	// Verified whether that was all; see Config.VerifyBytesPerSecond.
	VerifiedBytes int64
	Verified      bool
}

// counts are what a node counts as entries pass.
type counts struct {
	refused          atomic.Uint64
	forwarded        atomic.Uint64
	lifetimesEnded   atomic.Uint64
	prunes           atomic.Uint64
	stageCollections atomic.Uint64
}

// noteChange tells the background work of a mutation that was applied. The FSM
// calls it.
func (n *Node) noteChange(m *graph.Mutation, result engine.Result) {
	switch {
	case m.Collect != nil:
		n.counts.lifetimesEnded.Add(uint64(result.Changed))
	case m.Prune != nil:
		n.counts.prunes.Add(1)
		n.remover.note(m.Store)
	case m.StoreChange != nil && m.StoreChange.Operation == graph.DropStore:
		n.remover.note(m.Store)
	case m.Stage != nil:
		switch m.Stage.Operation {
		case graph.StageCommit:
			n.collector.forget(m.Store) // What was staged may have lifetimes.
		case graph.StageCollect:
			n.counts.stageCollections.Add(1)
		case graph.StageUpdates, graph.StageDrop:
		}
	default:
		earliest := never
		for i := range m.Updates {
			until := m.Updates[i].Tuple.ValidUntil
			if until != 0 && m.Updates[i].Operation != graph.Delete {
				earliest = min(earliest, until)
			}
		}
		if earliest != never {
			n.collector.note(m.Store, earliest)
		}
	}
}

// Metrics gathers the figures. It costs some milliseconds, with system calls for
// each file of the log, and a look at each watcher.
func (n *Node) Metrics() (Metrics, error) {
	if err := n.usable(); err != nil {
		return Metrics{}, err
	}
	// In this order, so that the invariant holds whatever happens meanwhile.
	g, err := n.db().Metrics()
	if err != nil {
		return Metrics{}, fmt.Errorf("measure the graph: %w", err)
	}
	log, err := n.log.Stats()
	if err != nil {
		return Metrics{}, err
	}
	m := Metrics{
		Graph: g, Log: log,
		Role: n.role(), Term: n.raft().CurrentTerm(), Applied: g.Applied, Commit: n.raft().CommitIndex(),
		EntriesApplied: n.fsm().applied.Load(), LogBatches: n.log.batches.Load(), LogEntries: n.log.entries.Load(),
		ProposalsMax: n.config.ProposalsMax, ProposalBytesMax: n.config.ProposalBytesMax,
		ProposalsRefused: n.counts.refused.Load(),
		WatchersMax:      n.config.WatchersMax, WatchBytes: n.watches.bytes.Load(),
		LifetimesEnded: n.counts.lifetimesEnded.Load(), Prunes: n.counts.prunes.Load(),
		StageCollections: n.counts.stageCollections.Load(),
		VerifiedBytes:    n.verified.bytes.Load(), Verified: n.verified.done.Load(),
	}
	m.LastIndex = n.raft().LastIndex()
	n.addPeerMetrics(&m)
	m.Proposals, m.ProposalBytes = n.admission.figures()
	m.Watchers, m.WatchedStores, m.WatchLag = n.watches.figures()
	// Raft tells this one as text only.
	if m.FSMPending, err = strconv.Atoi(n.raft().Stats()["fsm_pending"]); err != nil {
		return Metrics{}, fmt.Errorf("ask Raft what waits to be applied: %w", err)
	}
	return m, nil
}

// addPeerMetrics adds what there is to say of the other nodes.
func (n *Node) addPeerMetrics(m *Metrics) {
	configuration := n.configuration()
	m.Members, m.Voters = len(configuration.Servers), countVoters(configuration)
	m.Forwarded = n.counts.forwarded.Load()
	m.ConfirmRounds, m.ConfirmReaders = n.confirms.rounds.Load(), n.confirms.readers.Load()
	m.ClockTrusted = n.clockTrusted() == nil
	n.transfers.mu.Lock()
	m.StatesSending, m.StateBytesSent = len(n.transfers.open), n.transfers.sent
	n.transfers.mu.Unlock()
	n.installer.mu.Lock()
	m.StateBytesReceived, m.StatesInstalled = n.installer.received, n.installer.installs
	n.installer.mu.Unlock()
	if n.peers != nil {
		m.Peers, m.Port = n.peers.transport.Stats(), n.peers.transport.Totals()
	}
}
