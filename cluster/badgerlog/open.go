package badgerlog

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// markSyncInterval is how often the mark is made durable. A crash of the machine
// costs the guard so much of its memory.
const markSyncInterval = time.Second

// Open opens the log in cfg.Dir, making it if the directory is empty or missing.
// It reads every entry and refuses, with a CorruptionError, a log that lost or
// altered anything that it had acknowledged; some 100,000 entries of 200 bytes
// take about a tenth of a second. It returns ErrLocked if the directory is in
// use and ErrDiskFull if Badger could not be started safely.
func Open(cfg Config) (_ *Log, err error) {
	start := time.Now()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	if cfg.InMemory {
		return openInMemory(cfg)
	}
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, fmt.Errorf("badgerlog: open: %w", err)
	}
	if err := makeDir(cfg.Dir); err != nil {
		return nil, err
	}

	var undo []func() error
	defer func() {
		if err == nil {
			return
		}
		for i := len(undo) - 1; i >= 0; i-- {
			err = errors.Join(err, undo[i]())
		}
	}()
	l := newLog(cfg)
	if l.owner, err = lockOwner(cfg.Dir); err != nil {
		return nil, err
	}
	undo = append(undo, l.owner.Close)
	manifest, err := readManifest(cfg)
	if err != nil {
		return nil, err
	}
	use, err := measure(cfg.Dir, func() map[uint64]struct{} { return manifest.tables })
	if err != nil {
		return nil, fmt.Errorf("badgerlog: open: %w", err)
	}
	if err := checkSpace(cfg, l.upkeepBytes()+use.reserve()); err != nil {
		return nil, err
	}
	if l.directory, err = openDirectory(cfg.Dir); err != nil {
		return nil, err
	}
	undo = append(undo, l.directory.file.Close)
	var acknowledged markValue
	if l.mark, acknowledged, err = openMark(cfg.Dir, !manifest.exists); err != nil {
		return nil, err
	}
	undo = append(undo, l.mark.close)
	if acknowledged.seq > 0 && !manifest.exists {
		return nil, l.damaged(0, fmt.Sprintf(
			"badger's files are missing, and the file %q says that entries up to %d were acknowledged", markFile, acknowledged.last))
	}

	if err := removeUnborn(cfg.Dir); err != nil {
		return nil, fmt.Errorf("badgerlog: open: %w", err)
	}
	if err := checkKeys(cfg); err != nil {
		return nil, err
	}
	if err := checkTables(cfg, manifest.tables); err != nil {
		return nil, err
	}
	if err := manifest.setAside(cfg.Dir); err != nil {
		return nil, err
	}
	if l.db, err = openBadger(cfg); err != nil {
		return nil, err
	}
	undo = append(undo, l.db.Close)
	var st *state
	if err := safely(func() (err error) { st, err = l.load(acknowledged); return err }); err != nil {
		if !IsCorruptionError(err) {
			err = l.damaged(0, err.Error())
		}
		return nil, manifest.blame(err)
	}
	if err := manifest.removeAside(cfg.Dir); err != nil {
		return nil, err
	}
	l.state.Store(st)
	l.db.SetDiscardTs(st.seq)
	if err := l.directory.syncIfChanged(); err != nil {
		return nil, fmt.Errorf("badgerlog: open: %w", err)
	}
	if st.seq > acknowledged.seq {
		if err := l.mark.write(markValue{seq: st.seq, last: st.last, lastTerm: st.lastTerm}); err != nil {
			return nil, fmt.Errorf("badgerlog: open: %w", err)
		}
	}
	if err := l.mark.sync(); err != nil {
		return nil, fmt.Errorf("badgerlog: open: %w", err)
	}
	if err := makeBallast(cfg, use.reserve()); err != nil {
		return nil, fmt.Errorf("badgerlog: make the ballast file: %w", err)
	}
	go l.worker()
	undo = append(undo, l.stopWorker)
	if err := l.clean(); err != nil {
		return nil, err
	}
	go l.syncer()
	l.logger.Info("opened the raft log", "dir", cfg.Dir, "first", st.first, "last", st.last,
		"term", st.lastTerm, "took", time.Since(start))
	return l, nil
}

// newLog makes a log of which nothing is open yet.
func newLog(cfg Config) *Log {
	l := &Log{
		cfg:        cfg,
		logger:     cfg.Logger,
		timer:      time.NewTimer(time.Hour),
		work:       make(chan func() error, 1),
		done:       make(chan error, 1),
		workerDone: make(chan struct{}),
		holds:      map[uint64]uint64{},
		stop:       make(chan struct{}),
		syncerDone: make(chan struct{}),
	}
	l.timer.Stop()
	return l
}

func makeDir(dir string) error {
	if there, err := exists(dir); err != nil || there {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("badgerlog: open: %w", err)
	}
	if err := syncPath(filepath.Dir(dir)); err != nil {
		return fmt.Errorf("badgerlog: open: %w", err)
	}
	return nil
}

// openBadger opens Badger in the mode in which the caller numbers transactions,
// and reads as of a number of its choice: in the other mode each read waits for
// the commit in progress, and a follower that catches up would never do so.
func openBadger(cfg Config) (db *badger.DB, err error) {
	err = safely(func() error {
		var err error
		db, err = badger.OpenManaged(cfg.badgerOptions())
		return err
	})
	if err == nil {
		return db, nil
	}
	// Badger's other errors have no types that survive.
	if strings.Contains(strings.ToLower(err.Error()), "checksum") {
		return nil, &CorruptionError{Dir: cfg.Dir, Reason: "badger cannot open it: " + err.Error()}
	}
	return nil, fmt.Errorf("badgerlog: badger cannot open the log in %s: %w", cfg.Dir, err)
}

func (l *Log) damaged(index uint64, reason string) error {
	return &CorruptionError{Dir: l.cfg.Dir, Index: index, Reason: reason}
}

// load reads the record, the stable values and every entry, and compares them
// with each other and with the mark.
func (l *Log) load(acknowledged markValue) (*state, error) {
	txn := l.db.NewTransactionAt(math.MaxUint64, false)
	defer txn.Discard()
	st := &state{}
	value, err := get(txn, keyRecord)
	if err != nil {
		return nil, err
	}
	if value != nil {
		if st.record, err = decodeRecord(value); err != nil {
			return nil, err
		}
	}
	if st.seq < acknowledged.seq {
		return nil, l.damaged(0, fmt.Sprintf(
			"it ends at %d (change %d), but %d (change %d) was acknowledged", st.last, st.seq, acknowledged.last, acknowledged.seq))
	}
	// Each transaction writes the record, so no key can be newer than it.
	if newest := l.db.MaxVersion(); newest != st.seq {
		return nil, l.damaged(0, fmt.Sprintf(
			"its record is of change %d, and badger holds a change %d", st.seq, newest))
	}
	if st.stable, err = l.loadStable(txn, st.stableSum); err != nil {
		return nil, err
	}
	return st, l.walk(txn, st)
}

func (l *Log) loadStable(txn *badger.Txn, sum uint64) (map[string][]byte, error) {
	value, err := get(txn, keyStable)
	if err != nil {
		return nil, err
	}
	if value == nil && sum == 0 {
		return nil, nil
	}
	if value == nil {
		return nil, l.damaged(0, "term and vote are missing")
	}
	values, found, err := decodeStable(value)
	if err != nil {
		return nil, err
	}
	if found != sum {
		return nil, l.damaged(0, fmt.Sprintf(
			"term and vote are of an older change than its record (checksum %016x, and %016x was stored last)", found, sum))
	}
	return values, nil
}

// get returns a copy of the value of key, or nil if there is none.
func get(txn *badger.Txn, key []byte) ([]byte, error) {
	item, err := txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return item.ValueCopy(nil)
}

// walk follows the chain of entries from first to last, and collects the terms.
func (l *Log) walk(txn *badger.Txn, st *state) error {
	if st.first == 0 {
		return nil
	}
	it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{keyEntryPrefix}})
	defer it.Close()
	key := appendEntryKey(make([]byte, 0, keyBytes), st.first)
	it.Seek(key)
	var last link
	for index := st.first; index <= st.last; index++ {
		key = appendEntryKey(key[:0], index)
		if !it.Valid() || string(it.Item().Key()) != string(key) {
			return l.damaged(index, fmt.Sprintf("it is missing, and the log holds %d to %d", st.first, st.last))
		}
		var this link
		err := it.Item().Value(func(value []byte) (err error) {
			this, err = checkEntry(index, value)
			return err
		})
		if err != nil {
			return l.damaged(index, err.Error())
		}
		if index > st.first {
			if this.prev != last.sum {
				return l.damaged(index, "it does not belong to the entry before it, one of the two is older than what was stored last")
			}
			if this.term < last.term {
				return l.damaged(index, fmt.Sprintf("its term is %d, and that of the entry before it %d", this.term, last.term))
			}
		}
		if n := len(st.terms); n == 0 || st.terms[n-1].term != this.term {
			st.terms = append(st.terms, termRun{from: index, term: this.term})
		}
		last = this
		it.Next()
	}
	if last.sum != st.tip || last.term != st.lastTerm {
		return l.damaged(st.last, "it is older than what was stored last")
	}
	return nil
}

// clean deletes keys that a crash left beyond the end of the log. Those before
// its beginning wait for the next truncation.
func (l *Log) clean() error {
	st := *l.state.Load()
	if st.high <= st.last {
		return nil
	}
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	b := l.newBatch(l.upkeepBytes())
	if err := b.deleteAfter(&st, st.last); err != nil {
		return fmt.Errorf("badgerlog: delete what a crash left: %w", err)
	}
	return nil
}

// syncer makes the mark durable now and then.
func (l *Log) syncer() {
	defer close(l.syncerDone)
	ticker := time.NewTicker(markSyncInterval)
	defer ticker.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-ticker.C:
			if err := l.mark.sync(); err != nil {
				_ = l.poison(err) // The next caller gets it.
				return
			}
		}
	}
}

func (l *Log) stopWorker() error {
	close(l.work)
	<-l.workerDone
	return nil
}

// Close waits for the write in progress and closes the log; all later calls
// fail with ErrClosed, but a second Close does nothing. Shut Raft down before.
//
// It does not wait for a disk that hangs: after four times the deadline it
// returns an error and leaves the directory locked until the process ends. If
// there is too little space for closing Badger, and still is after a second, it
// leaves Badger as it is, as a crash would, and returns ErrDiskFull. Nothing
// acknowledged is lost by either.
func (l *Log) Close() error {
	l.writeMu.Lock()
	again := l.closed.Swap(true)
	l.writeMu.Unlock()
	if again {
		return nil
	}
	done := make(chan error, 1)
	go func() { done <- safely(l.shutdown) }()
	limit := time.NewTimer(4 * l.cfg.StoreDeadline)
	defer limit.Stop()
	select {
	case err := <-done:
		return err
	case <-limit.C:
		return fmt.Errorf("badgerlog: close the log in %s: %w", l.cfg.Dir, errDeadline)
	}
}

// shutdown runs when no writer begins any more.
func (l *Log) shutdown() error {
	// Readers that are inside leave, and those that come later wait, to see that
	// the log is closed.
	l.readMu.Lock()
	defer l.readMu.Unlock()
	close(l.stop)
	<-l.syncerDone
	err := l.stopWorker()
	if !l.cfg.InMemory {
		err = errors.Join(err, l.mark.sync(), l.mark.close(), l.directory.file.Close())
		// Badger flushes its memtables when it closes, and ends a compaction.
		if _, spaceErr := l.awaitSpace(l.upkeepBytes()); spaceErr != nil {
			return errors.Join(err, spaceErr)
		}
	}
	if closeErr := l.db.Close(); closeErr != nil {
		err = errors.Join(err, fmt.Errorf("badgerlog: close badger in %s: %w", l.cfg.Dir, closeErr))
	}
	if l.cfg.InMemory {
		return err
	}
	return errors.Join(err, l.owner.Close())
}
