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
// would need after a crash, and the entry before that. Raft may ask for more: it
// counts its own no-ops and barriers as part of the snapshot, but these never reach
// the graph, whose revision then stays below, and NewRaft panics when an entry behind
// that revision is missing. The entry before says of which term it is, and without that
// a node whose graph is just as far could not be sent what comes behind. A suffix goes
// completely.
//
// Invariant: firstKnown <= max(durable, 1).
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
	if last = min(last, max(durable, 1)-1, end-1); last < first {
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
	if base := l.base.Load(); errors.Is(err, raft.ErrLogNotFound) && base.tells(index) {
		*entry = raft.Log{Index: index, Term: base.term, Type: raft.LogNoop}
		return nil
	}
	return err
}

// firstKnown returns the lowest entry of which GetLog tells the term, from which on it
// tells of all; zero for none.
func (l *logStore) firstKnown() (uint64, error) {
	first, err := l.FirstIndex()
	if err != nil {
		return 0, err
	}
	if first == 0 {
		first = l.WipedTo() // What comes next.
	}
	if first > 0 && l.base.Load().tells(first-1) {
		first--
	}
	return first, nil
}

// beginKnown changes a request that begins below what the log knows so that it begins at
// the first known entry: what comes before is dropped, and what it is to be fitted behind
// is that entry, with the term that it has here. Others are left as they are.
//
// A leader makes such a request where the log here jumped ahead of what it has found out:
// a state was put into force that another node sent, or what was stored was cut or begins
// behind a state and the answer was lost. Raft would refuse it, since the entry before is
// not here, and the leader would go back by one entry after another and never forward
// again: to the first, which has none before it and so is accepted, and cannot be stored;
// or to where its own log begins, and tell of a state that is of no use here.
//
// The answer is true all the same. The known entry is agreed, and so is all before it:
// firstKnown is never above what the graph holds. A leader of the term in which it was
// agreed, or of a later one, has the same entries up to there, so that what it sends from
// there on fits behind the same entry, and it may count this node for all that is below.
//
// A leader of an earlier term may have others. Raft looks at the term of the request, as of
// any, and refuses it if this node knows of a later one. It may not: a state is of what its
// sender had applied by the end, and the term that this node was last told may be that of
// a leader before. Such a leader L agrees to nothing wrong with this answer. Would it agree
// to an entry by it, the others of its majority took that entry from L, and before they
// heard of the later term; the majority that elected the later leader M did not have this
// node, which would then know that term, and so has one of those others in it. By that one
// M, and each leader between, has the entry of L, with all that L has before it. M has the
// known entry as well: so it is in L's log, or the entry of L is below it and the
// same. What this node stores of L, while L lacks the known entry, fits nothing in the log
// of M and is replaced. Until then no vote comes of it: a majority has an entry of M's
// term, which is later than all of L's.
//
// Raft's other checks stay: that the entry before has its term, which is judged again when
// the request is carried out, should the log be cut meanwhile, and that of each entry
// that is here already. To the leader the request is the one that it sent: where nothing
// is left of it, its success still means that this node has the last entry of it.
//
// What is agreed is told no farther than the request goes. Raft would take all that is in
// the log here for what the leader means.
func (l *logStore) beginKnown(request *raft.AppendEntriesRequest) {
	first, err := l.firstKnown()
	if err != nil || request.PrevLogEntry >= first || first <= 1 {
		return // Raft finds out what is wrong with the log. One that begins at 1 lacks nothing.
	}
	if request.PrevLogEntry == 0 && len(request.Entries) == 0 && request.LeaderCommitIndex == 0 {
		return // A heartbeat.
	}
	var known raft.Log
	if l.GetLog(first, &known) != nil {
		return // It was cut just now, or nothing is there; Raft refuses what does not fit.
	}
	entries := request.Entries
	for len(entries) > 0 && entries[0].Index <= first {
		entries = entries[1:]
	}
	told := first
	if len(entries) > 0 {
		told = entries[len(entries)-1].Index
	}
	request.Entries, request.PrevLogEntry, request.PrevLogTerm = entries, first, known.Term
	request.LeaderCommitIndex = min(request.LeaderCommitIndex, told)
}

// A logBase is the last entry before a log that begins behind a state.
type logBase struct{ index, term uint64 }

// tells reports whether it is that of an index. The first entry of all has none before
// it to be fitted behind, so that Raft would ask for what is in it.
func (b *logBase) tells(index uint64) bool { return b != nil && b.index == index && index > 1 }

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
