package cluster

import (
	"errors"
	"time"

	"github.com/hashicorp/raft"
)

// A cutter is told when enough was applied for the graph to be flushed and the
// log to be cut.
type cutter struct{ wake chan struct{} }

// wakeCutter wakes it if so. The FSM calls it behind each batch.
func (n *Node) wakeCutter() {
	if n.fsm().entries.Load() < n.config.SnapshotThreshold && n.fsm().bytes.Load() < n.config.SnapshotBytes &&
		!n.fsm().large.Load() {
		return
	}
	nudge(n.cutter.wake)
}

// cut has Raft take a snapshot, which flushes the graph and cuts the log, each
// time that so many entries or bytes were applied. Raft itself looks at the
// number of entries only, and at fixed times, so the log would grow with the
// rate and the size of writes.
func (n *Node) cut(m *machine) {
	defer m.loops.Done()
	// What an earlier run left over counts too, or a node that is restarted
	// again and again would never cut.
	if first, err := n.log.FirstIndex(); err == nil {
		if held := m.raft.LastIndex() + 1 - first; held > n.config.TrailingLogs {
			m.fsm.entries.Add(held - n.config.TrailingLogs)
		}
	}
	for {
		select {
		case <-m.stop:
			return
		case <-n.cutter.wake:
		}
		n.cutOnce(m)
		select {
		case <-m.stop:
			return
		case <-time.After(n.config.SnapshotInterval):
		}
	}
}

func (n *Node) cutOnce(m *machine) {
	entries, bytes, large := m.fsm.entries.Swap(0), m.fsm.bytes.Swap(0), m.fsm.large.Swap(false)
	rc := m.raft.ReloadableConfig()
	rc.TrailingLogs = n.trailing(entries, bytes)
	err := m.raft.ReloadConfig(rc)
	if err == nil {
		err = m.raft.Snapshot().Error()
	}
	switch {
	case err == nil, errors.Is(err, raft.ErrRaftShutdown):
	default:
		// What was counted counts again, so that the next batch tries again.
		m.fsm.entries.Add(entries)
		m.fsm.bytes.Add(bytes)
		if large {
			m.fsm.large.Store(true)
		}
		if !errors.Is(err, raft.ErrNothingNewToSnapshot) {
			n.config.Logger.Warn("the log was not cut", "node", n.dir.nodeID, "error", err)
		}
	}
}

// trailing returns how many entries to keep: as configured, but no more than
// SnapshotBytes hold when entries are as large as lately. One is always kept,
// so that the log can tell how far it has come.
func (n *Node) trailing(entries uint64, bytes int64) uint64 {
	keep := n.config.TrailingLogs
	if entries > 0 && bytes > 0 {
		average := max(1, uint64(bytes)/entries)
		keep = min(keep, uint64(n.config.SnapshotBytes)/average)
	}
	return max(1, keep)
}
