package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"sync"
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

	// newest holds the end of the log, from which a leader sends entries to those who
	// follow it closely.
	newest newestEntries

	// base is nil for a log that begins behind no state that was sent.
	base atomic.Pointer[logBase]

	// deleting is held while entries are deleted.
	deleting sync.Mutex

	planted plantedLog //nolint:unused // Empty but in a test-only build.
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
	if err := l.plantedStore(entries); err != nil {
		l.fail(fmt.Errorf("store %d entries in the log: %w", len(entries), err))
		return err
	}
	l.newest.add(entries)
	l.batches.Add(1)
	l.entries.Add(uint64(len(entries)))
	return nil
}

// SetUint64 implements raft.StableStore. Raft answers an error here with a
// panic, in the middle of an election. So the node is told, and the goroutine
// that asked, Raft's main loop, ends here, as it would in a shutdown: the vote
// that could not be stored is not given.
//
// Raft stores the term of a vote before whom it is for. A crash in between would leave
// the new term with the candidate of the vote before, who would then get this vote
// unseen. So that one is taken away first: who finds none there gets no vote.
func (l *logStore) SetUint64(key []byte, value uint64) error {
	if bytes.Equal(key, keyLastVoteTerm) {
		if err := l.Set(keyLastVoteCand, []byte{}); err != nil {
			l.fail(fmt.Errorf("store %s in the log: %w", keyLastVoteCand, err))
			runtime.Goexit()
		}
	}
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
	if err := l.plantedSettle(); err != nil {
		return err
	}
	// One at a time: a snapshot may cut the log while what a new leader sent replaces its
	// end, and what each of them sees of it must not change meanwhile.
	l.deleting.Lock()
	defer l.deleting.Unlock()
	end, err := l.LastIndex()
	if err != nil {
		return err
	}
	durable := l.durable()
	if last >= end && first > durable {
		l.newest.clear() // Before the entries go from the log.
		if begin, err := l.FirstIndex(); err != nil || begin == first {
			// All of it goes. A log that begins behind a state must still say where, or
			// it would be taken for one that lost its end, should there be a crash now.
			return errors.Join(err, l.Wipe(first))
		}
		return l.Log.DeleteRange(first, last)
	}
	if last = min(last, durable, end-1); last < first {
		return nil
	}
	l.newest.behead(last)
	return l.Log.DeleteRange(first, last)
}

// GetLog implements raft.LogStore. Of the last entry that a state holds which was sent
// by another node it knows the term alone. Raft asks for that to see whether what a
// leader sends fits behind it; it asks for no content, since the entry before is not
// there to be fitted behind.
func (l *logStore) GetLog(index uint64, entry *raft.Log) error {
	if l.newest.get(index, entry) || l.plantedGet(index, entry) {
		return nil
	}
	err := l.Log.GetLog(index, entry)
	if base := l.base.Load(); errors.Is(err, raft.ErrLogNotFound) && base != nil && base.index == index && index > 1 {
		*entry = raft.Log{Index: index, Term: base.term, Type: raft.LogNoop}
		return nil
	}
	return err
}

// A logBase is the last entry before a log that begins behind a state.
type logBase struct{ index, term uint64 }

// newestEntries are the entries that were stored last. Raft would read each of them from
// the log once for every follower, with its checksum.
//
// Invariant: entries are consecutive, and bytes is what their data has: at most
// newestBytesMax, or there is one entry.
type newestEntries struct {
	mu      sync.Mutex
	entries []*raft.Log
	bytes   int
}

const (
	newestEntriesMax = 4096
	newestBytesMax   = 8 << 20
)

// add appends entries, which may replace some at the end.
func (n *newestEntries) add(entries []*raft.Log) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, stored := range entries {
		// A copy, for Raft's own is a part of what waits for it.
		copied := *stored
		entry := &copied
		if len(n.entries) > 0 && n.entries[len(n.entries)-1].Index+1 != entry.Index {
			n.entries, n.bytes = nil, 0
		}
		n.entries = append(n.entries, entry)
		n.bytes += len(entry.Data)
	}
	// Half of them go at once, so that the others are not copied for each that comes.
	if len(n.entries) > newestEntriesMax || n.bytes > newestBytesMax {
		drop := 0
		for ; drop < len(n.entries)-1 && (len(n.entries)-drop > newestEntriesMax/2 || n.bytes > newestBytesMax/2); drop++ {
			n.bytes -= len(n.entries[drop].Data)
		}
		n.entries = append([]*raft.Log(nil), n.entries[drop:]...)
	}
}

func (n *newestEntries) get(index uint64, entry *raft.Log) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.entries) == 0 || index < n.entries[0].Index || index > n.entries[len(n.entries)-1].Index {
		return false
	}
	*entry = *n.entries[index-n.entries[0].Index]
	return true
}

// behead drops the entries up to an index.
func (n *newestEntries) behead(last uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	drop := 0
	for ; drop < len(n.entries) && n.entries[drop].Index <= last; drop++ {
		n.bytes -= len(n.entries[drop].Data)
	}
	n.entries = append([]*raft.Log(nil), n.entries[drop:]...)
}

func (n *newestEntries) clear() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.entries, n.bytes = nil, 0
}
