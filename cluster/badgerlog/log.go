package badgerlog

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/hashicorp/raft"
)

// Log is a Raft log and stable store in one directory. All methods may be
// called concurrently; writes take their turns, and reads do not wait for them.
type Log struct {
	cfg    Config
	logger *slog.Logger
	db     *badger.DB

	// The guards of what is on the disk; nil for a log in memory.
	mark      *mark
	directory *directory
	owner     *os.File

	// state is what the newest acknowledged transaction left. It is replaced,
	// never changed, and only by the holder of writeMu.
	state atomic.Pointer[state]

	// writeMu gives writers their turns. It is never held longer than the
	// deadlines of the transactions of one StoreLogs, Wipe or cut suffix.
	writeMu   sync.Mutex
	suffixCut bool // Whether a suffix went and nothing was stored since.
	timer     *time.Timer

	// Transactions run on a goroutine of their own, which may hang in place of
	// the writer. After a deadline it is never given work again.
	work       chan func() error
	done       chan error
	workerDone chan struct{}

	// readMu is held shared by readers of Badger, which maps files into memory
	// and unmaps them in Close.
	readMu sync.RWMutex
	closed atomic.Bool
	fatal  atomic.Pointer[error] // The cause, if poisoned.

	refusing atomic.Bool // Whether entries were refused for space last.

	// The reserve for Badger's files as found a moment ago, with all that was
	// written since. The two belong to the worker.
	reserve    int64
	measuredAt time.Time

	holdMu   sync.Mutex
	holds    map[uint64]uint64 // Index that each hold keeps, by number.
	holdLast uint64

	stop       chan struct{}
	syncerDone chan struct{}
}

var (
	_ raft.LogStore          = (*Log)(nil)
	_ raft.StableStore       = (*Log)(nil)
	_ raft.MonotonicLogStore = (*Log)(nil)
)

// state is the record, and what is derived from Badger with it.
type state struct {
	record

	// terms holds the index at which each term of the log begins, in order. An
	// entry of a Raft log is known by index and term, so this is how a reader
	// notices that Badger answered with an entry that was overwritten long ago.
	// Invariant: neither from nor term ever falls.
	terms []termRun

	stable map[string][]byte // Never changed in place.

	// replaced counts changes that can take an entry away other than from the
	// log's front.
	replaced uint64
}

type termRun struct{ from, term uint64 }

// termAt returns the term of the entry at index, which is in first..last.
func (s *state) termAt(index uint64) uint64 {
	i := sort.Search(len(s.terms), func(i int) bool { return s.terms[i].from > index })
	if i == 0 {
		return 0
	}
	return s.terms[i-1].term
}

// extend notes an entry after the last one.
func (s *state) extend(index, term uint64) {
	if n := len(s.terms); n == 0 || s.terms[n-1].term != term {
		// The slice may be shared with an older state and be longer there.
		s.terms = append(s.terms[:n:n], termRun{from: index, term: term})
	}
	if s.first == 0 {
		s.first = index
	}
	s.last, s.lastTerm, s.next = index, term, 0
	if s.low == 0 {
		s.low, s.high = index, index
	}
	s.low, s.high = min(s.low, index), max(s.high, index)
}

// cut forgets the entries from index on; tip is the sum of the entry before.
func (s *state) cut(index, tip uint64) {
	if index <= s.first {
		s.empty(0)
		return
	}
	s.replaced++
	s.last, s.tip, s.lastTerm = index-1, tip, s.termAt(index-1)
	n := sort.Search(len(s.terms), func(i int) bool { return s.terms[i].from >= index })
	s.terms = s.terms[:n:n]
}

// empty forgets all entries. The next one must have the index next, or any if
// that is 0.
func (s *state) empty(next uint64) {
	s.replaced++
	s.first, s.last, s.lastTerm, s.tip, s.terms = 0, 0, 0, 0, nil
	s.next = next
}

// behead forgets the entries before index, which is in first..last.
func (s *state) behead(index uint64) {
	s.first = index
	n := sort.Search(len(s.terms), func(i int) bool { return s.terms[i].from > index })
	if n > 1 {
		s.terms = append([]termRun(nil), s.terms[n-1:]...)
	}
}

// IsMonotonic is true: StoreLogs refuses entries that leave a gap. (It tells
// raft to empty the log after it restored a snapshot of its own.)
func (l *Log) IsMonotonic() bool { return true }

// FirstIndex returns the index of the first entry, or 0 if there is none.
func (l *Log) FirstIndex() (uint64, error) {
	if err := l.usable(); err != nil {
		return 0, err
	}
	return l.state.Load().first, nil
}

// LastIndex returns the index of the last entry, or 0 if there is none.
func (l *Log) LastIndex() (uint64, error) {
	if err := l.usable(); err != nil {
		return 0, err
	}
	return l.state.Load().last, nil
}

// CommitIndex returns the highest index that Config.CommitIndex had reported
// when entries were last stored, at most LastIndex. All up to it was agreed and
// may be applied at start before Raft runs. It is 0 if nothing is known.
func (l *Log) CommitIndex() (uint64, error) {
	if err := l.usable(); err != nil {
		return 0, err
	}
	st := l.state.Load()
	return min(st.commit, st.last), nil
}

// EntryBytesMax returns how many bytes the data and extensions of one entry may
// have together. With the default MemTableSize it is a little over 900 KiB.
func (l *Log) EntryBytesMax() int { return l.cfg.entryBytesMax() }

func (c Config) entryBytesMax() int { return int(c.valueThreshold()) - 1 - entryHeaderBytes }

// GetLog reads the entry at index into out, all fields of which it sets. It
// returns raft.ErrLogNotFound itself for what is not in the log, and a
// CorruptionError for what should be there and is damaged. Each call reads from
// Badger; put a raft.LogCache in front of it.
func (l *Log) GetLog(index uint64, out *raft.Log) error {
	l.readMu.RLock()
	defer l.readMu.RUnlock()
	for {
		if err := l.usable(); err != nil {
			return err
		}
		st := l.state.Load()
		if index < st.first || index > st.last || st.first == 0 {
			return raft.ErrLogNotFound
		}
		_, err := l.read(st, index, out)
		if err == nil {
			return nil
		}
		// The entry may have been deleted or overwritten while it was read.
		now := l.state.Load()
		if now.replaced == st.replaced && now.first <= index {
			return err
		}
	}
}

// read reads and verifies the entry at index as of st. Out may be nil. The
// caller holds readMu or writeMu.
func (l *Log) read(st *state, index uint64, out *raft.Log) (found link, err error) {
	damaged := func(reason string) error {
		return &CorruptionError{Dir: l.cfg.Dir, Index: index, Reason: reason}
	}
	// Badger decodes the damaged block before it can know, and may stumble.
	defer func() {
		if p := recover(); p != nil {
			err = damaged(fmt.Sprintf("badger panicked on reading it: %v", p))
		}
	}()
	txn := l.db.NewTransactionAt(st.seq, false)
	defer txn.Discard()
	item, err := txn.Get(appendEntryKey(make([]byte, 0, keyBytes), index))
	if errors.Is(err, badger.ErrKeyNotFound) {
		// Badger also skips a table whose block is damaged.
		return link{}, damaged(fmt.Sprintf("it is missing, and the log holds %d to %d", st.first, st.last))
	}
	if err != nil {
		return link{}, damaged(err.Error())
	}
	err = item.Value(func(value []byte) error {
		var err error
		if out == nil {
			found, err = checkEntry(index, value)
		} else {
			found, err = decodeEntry(index, value, out)
		}
		return err
	})
	if err != nil {
		return link{}, damaged(err.Error())
	}
	if term := st.termAt(index); term != found.term {
		return link{}, damaged(fmt.Sprintf("it has term %d, and term %d was stored last", found.term, term))
	}
	return found, nil
}

// StoreLog stores one entry; see StoreLogs.
func (l *Log) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

// StoreLogs stores entries with consecutive indices and returns when they are
// on the disk. They begin directly after the last entry, or at an earlier one:
// then that entry and all after it are replaced in one transaction.
//
// ErrDiskFull and ErrEntryTooLarge mean that nothing was written and the log is
// as it was. Every other error poisons the log, a gap included, for then Raft
// and its log do not agree about what is stored. So do these two after a suffix
// was deleted, for Raft would go on as if it were still there.
func (l *Log) StoreLogs(entries []*raft.Log) error {
	if len(entries) == 0 {
		return nil
	}
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	err := l.store(entries)
	switch {
	case err == nil:
		l.suffixCut = false
		return nil
	case isRefusal(err) && !l.suffixCut:
		return err
	default:
		return l.poison(err)
	}
}

// store is StoreLogs under writeMu.
func (l *Log) store(entries []*raft.Log) error {
	st := *l.state.Load()
	if err := l.admit(&st, entries); err != nil {
		return err
	}
	total := 0
	for _, e := range entries {
		size := entryBytes(e)
		if size-entryHeaderBytes > l.EntryBytesMax() {
			return fmt.Errorf("badgerlog: entry %d has %d bytes of data and extensions, at most %d are allowed: %w",
				e.Index, size-entryHeaderBytes, l.EntryBytesMax(), ErrEntryTooLarge)
		}
		total += size
	}
	if l.cfg.CommitIndex != nil {
		// A state machine that was restarted is behind for a while.
		st.commit = max(st.commit, l.cfg.CommitIndex())
	}
	first := entries[0].Index
	if st.first != 0 && first <= st.last {
		var tip uint64
		if first > st.first {
			before, err := l.read(&st, first-1, nil)
			if err != nil {
				return err
			}
			tip = before.sum
		}
		st.cut(first, tip)
	}

	// One buffer for all keys and values. It is not used again, for the
	// goroutine that writes may outlive the deadline.
	b := l.newBatch(l.cfg.FreeBytesMin + 2*int64(total))
	buf := make([]byte, 0, total+len(entries)*keyBytes)
	for _, e := range entries {
		start := len(buf)
		buf = appendEntryKey(buf, e.Index)
		key := buf[start:len(buf):len(buf)]
		start = len(buf)
		var sum uint64
		buf, sum = appendEntry(buf, e, st.tip)
		value := buf[start:len(buf):len(buf)]
		if !b.fits(key, value) {
			if err := b.commit(&st); err != nil {
				return err
			}
		}
		b.set(key, value)
		st.extend(e.Index, e.Term)
		st.tip = sum
	}
	return b.deleteAfter(&st, st.last)
}

// admit says why the entries cannot follow what is stored, if so.
func (l *Log) admit(st *state, entries []*raft.Log) error {
	for _, e := range entries {
		if e == nil {
			return fmt.Errorf("badgerlog: StoreLogs was given a nil entry for the log in %s", l.cfg.Dir)
		}
	}
	first := entries[0].Index
	switch {
	case first == 0:
		return fmt.Errorf("badgerlog: StoreLogs was given entry 0 for the log in %s: indices begin at 1", l.cfg.Dir)
	case st.first == 0 && st.next != 0 && first != st.next:
		return fmt.Errorf("badgerlog: StoreLogs was given entry %d for the log in %s, which was wiped to begin at %d", first, l.cfg.Dir, st.next)
	case st.first != 0 && first > st.last+1:
		return fmt.Errorf("badgerlog: StoreLogs was given entry %d for the log in %s, which ends at %d: there would be a gap", first, l.cfg.Dir, st.last)
	case st.first != 0 && first < st.first:
		return fmt.Errorf("badgerlog: StoreLogs was given entry %d for the log in %s, which begins at %d", first, l.cfg.Dir, st.first)
	case st.first != 0 && first <= st.last && first <= st.commit:
		return fmt.Errorf("badgerlog: StoreLogs was given entry %d for the log in %s, where all up to %d was agreed and must not be replaced", first, l.cfg.Dir, st.commit)
	}
	term := uint64(0)
	if st.first != 0 && first > st.first {
		term = st.termAt(first - 1)
	}
	for i, e := range entries {
		if e.Index != first+uint64(i) {
			return fmt.Errorf("badgerlog: StoreLogs was given entry %d after entry %d for the log in %s: indices must be consecutive", e.Index, first+uint64(i)-1, l.cfg.Dir)
		}
		if e.Term < term {
			return fmt.Errorf("badgerlog: StoreLogs was given entry %d of term %d for the log in %s, after one of term %d: terms never fall", e.Index, e.Term, l.cfg.Dir, term)
		}
		term = e.Term
	}
	return nil
}

// Stats is what an operator wants to know of a log.
type Stats struct {
	First, Last     uint64 // The entries held; 0 and 0 if none.
	CommitIndex     uint64 // As Log.CommitIndex.
	Entries         uint64
	Transactions    uint64 // Number of changes since the directory was made.
	DiskBytes       int64  // Blocks that the files occupy, without the ballast.
	BallastBytes    int64  // Blocks that the ballast occupies.
	FreeBytes       int64  // Free on the file system; math.MaxInt64 in memory.
	FreeBytesNeeded int64  // What must be free for a small batch to be stored.
	Refusing        bool   // Whether entries were refused with ErrDiskFull last.
}

// Stats looks at the log and its files. It costs some tens of system calls.
func (l *Log) Stats() (Stats, error) {
	l.readMu.RLock()
	defer l.readMu.RUnlock()
	if err := l.usable(); err != nil {
		return Stats{}, err
	}
	use, err := l.measure()
	if err != nil {
		return Stats{}, fmt.Errorf("badgerlog: %w", err)
	}
	free, err := l.cfg.freeBytes(l.cfg.Dir)
	if err != nil {
		return Stats{}, fmt.Errorf("badgerlog: %w", err)
	}
	st := l.state.Load()
	s := Stats{
		First:           st.first,
		Last:            st.last,
		CommitIndex:     min(st.commit, st.last),
		Transactions:    st.seq,
		DiskBytes:       use.files,
		BallastBytes:    use.ballast,
		FreeBytes:       int64(free),
		FreeBytesNeeded: l.cfg.FreeBytesMin + use.reserve(),
		Refusing:        l.refusing.Load(),
	}
	if st.first != 0 {
		s.Entries = st.last - st.first + 1
	}
	return s, nil
}

// usable returns the error that every call must answer with, if there is one.
func (l *Log) usable() error {
	if cause := l.fatal.Load(); cause != nil {
		return *cause
	}
	if l.closed.Load() {
		return fmt.Errorf("badgerlog: the log in %s: %w", l.cfg.Dir, ErrClosed)
	}
	return nil
}
