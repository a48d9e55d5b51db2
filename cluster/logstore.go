package cluster

import (
	"fmt"
	"runtime"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/pembadb/pemba/cluster/badgerlog"
)

// logStore is the log as Raft sees it: badgerlog's, with two rules that only
// the node can hold. It embeds the log so that it is all that the log is
// (raft.StableStore, raft.MonotonicLogStore).
type logStore struct {
	*badgerlog.Log

	// durable is the revision up to which the graph survives a crash.
	durable func() uint64
	// fail stops the node.
	fail func(error)

	// batches and entries count what was stored since the node started.
	batches, entries atomic.Uint64
}

var (
	_ raft.LogStore          = (*logStore)(nil)
	_ raft.StableStore       = (*logStore)(nil)
	_ raft.MonotonicLogStore = (*logStore)(nil)
)

// StoreLog implements raft.LogStore.
func (l *logStore) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

// StoreLogs implements raft.LogStore. The first failure of any kind ends the
// node: Raft steps down after one, remembers entries that are not there, and
// stands for election again at once, each time writing to the disk that just
// failed. A disk that fills up is noticed before, when a write is admitted.
func (l *logStore) StoreLogs(entries []*raft.Log) error {
	if err := l.Log.StoreLogs(entries); err != nil {
		l.fail(fmt.Errorf("store %d entries in the log: %w", len(entries), err))
		return err
	}
	l.batches.Add(1)
	l.entries.Add(uint64(len(entries)))
	return nil
}

// SetUint64 implements raft.StableStore. Raft answers an error here with a
// panic, in the middle of an election. So the node is told, and the goroutine
// that asked, Raft's main loop, ends here, as it would in a shutdown: the vote
// that could not be stored is not given.
func (l *logStore) SetUint64(key []byte, value uint64) error {
	if err := l.Log.SetUint64(key, value); err != nil {
		l.fail(fmt.Errorf("store %s %d in the log: %w", key, value, err))
		runtime.Goexit()
	}
	return nil
}

// DeleteRange implements raft.LogStore. Of a prefix it keeps what the graph
// would need after a crash. Raft may ask for more than that: it counts its own
// no-ops and barriers as part of the snapshot, but these never reach the graph,
// whose revision then stays below, and NewRaft panics when an entry behind that
// revision is missing. A suffix goes completely.
func (l *logStore) DeleteRange(first, last uint64) error {
	end, err := l.LastIndex()
	if err != nil {
		return err
	}
	if last < end {
		if last = min(last, l.durable()); last < first {
			return nil
		}
	}
	return l.Log.DeleteRange(first, last)
}
