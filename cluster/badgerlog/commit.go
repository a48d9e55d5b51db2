package badgerlog

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"time"
)

// batch collects the writes of one transaction. Badger limits a transaction, so
// one call may need several; each writes the record that is true after it, and
// a crash between them leaves a shorter log, never a wrong one.
type batch struct {
	log       *Log
	writes    []write
	bytes     int64
	freeBytes int64 // What must be free before the first transaction.
	checked   bool
}

type write struct {
	key, value []byte // A nil value deletes the key.
}

// Badger adds to each write its version, its node in the skip list and the
// header in the file; this is more than it counts towards its limit.
const writeOverheadBytes = 32

func (l *Log) newBatch(freeBytes int64) *batch { return &batch{log: l, freeBytes: freeBytes} }

// fits reports whether one more write keeps within Badger's limits.
func (b *batch) fits(key, value []byte) bool {
	size := b.bytes + int64(len(key)+len(value)+writeOverheadBytes)
	return size < b.log.db.MaxBatchSize()*7/8-recordBytes-writeOverheadBytes &&
		int64(len(b.writes)) < b.log.db.MaxBatchCount()-8
}

func (b *batch) set(key, value []byte) { b.add(write{key: key, value: value}) }
func (b *batch) remove(key []byte)     { b.add(write{key: key}) }

func (b *batch) add(w write) {
	b.writes = append(b.writes, w)
	b.bytes += int64(len(w.key) + len(w.value) + writeOverheadBytes)
}

// deleteAfter deletes what keys are left beyond last, and commits all. If last
// is 0, no key is left.
func (b *batch) deleteAfter(st *state, last uint64) error {
	for st.high > last && st.high != 0 {
		key := appendEntryKey(make([]byte, 0, keyBytes), st.high)
		if !b.fits(key, nil) {
			if err := b.commit(st); err != nil {
				return err
			}
		}
		b.remove(key)
		st.high--
		if st.high < st.low {
			st.low, st.high = 0, 0
		}
	}
	return b.commit(st)
}

// commit stores the writes and the record of st in one transaction, and makes
// st the log's state once they are on the disk. It gives st its sequence number.
// The caller holds writeMu and poisons the log on any error but a refusal.
func (b *batch) commit(st *state) error {
	l := b.log
	st.seq = l.state.Load().seq + 1
	next := *st
	writes, bytes := append(b.writes, write{key: keyRecord, value: next.encode()}), b.bytes
	b.writes, b.bytes = nil, 0
	freeBytes := b.freeBytes
	if b.checked {
		freeBytes = 0
	}
	b.checked = true

	err := l.run(func() error {
		if freeBytes > 0 {
			if err := l.checkSpace(freeBytes); err != nil {
				return err
			}
		}
		l.reserve += bytes
		return l.commitNow(&next, writes)
	})
	if err != nil {
		return err
	}
	l.state.Store(&next)
	// After the state, so that no reader asks for what may be discarded.
	l.db.SetDiscardTs(next.seq)
	return nil
}

// commitNow does the work of commit. The order of its steps is argued at mark.
func (l *Log) commitNow(st *state, writes []write) error {
	if l.cfg.beforeCommit != nil {
		if err := l.cfg.beforeCommit(); err != nil {
			return err
		}
	}
	txn := l.db.NewTransactionAt(st.seq-1, true)
	defer txn.Discard()
	for _, w := range writes {
		var err error
		if w.value == nil {
			err = txn.Delete(w.key)
		} else {
			err = txn.Set(w.key, w.value)
		}
		if err != nil {
			return fmt.Errorf("write to badger: %w", err)
		}
	}
	if err := txn.CommitAt(st.seq, nil); err != nil {
		return fmt.Errorf("commit to badger: %w", err)
	}
	if l.cfg.InMemory {
		return nil
	}
	if err := l.directory.syncIfChanged(); err != nil {
		return err
	}
	return l.mark.write(markValue{seq: st.seq, last: st.last, lastTerm: st.lastTerm})
}

// run has fn run by the worker and waits for it no longer than the deadline. The
// caller holds writeMu, and gives up writing for good if the deadline passes:
// fn may still be running then, and may even succeed.
func (l *Log) run(fn func() error) error {
	l.timer.Reset(l.cfg.StoreDeadline)
	defer l.timer.Stop()
	l.work <- fn
	select {
	case err := <-l.done:
		return err
	case <-l.timer.C:
		return fmt.Errorf("%w: waited %v", errDeadline, l.cfg.StoreDeadline)
	}
}

// worker runs transactions one after the other, on a stack that has already
// grown to what Badger needs.
func (l *Log) worker() {
	defer close(l.workerDone)
	for fn := range l.work {
		l.done <- safely(fn)
	}
}

// safely turns a panic in fn into an error.
func safely(fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return fn()
}

// measureInterval is for how long the reserve is reckoned instead of found.
const measureInterval = 5 * time.Millisecond

// checkSpace refuses a write unless need bytes are free beside the reserve. The
// worker calls it.
func (l *Log) checkSpace(need int64) error {
	if now := time.Now(); now.Sub(l.measuredAt) >= measureInterval {
		use, err := l.measure()
		if err != nil {
			return err
		}
		l.reserve, l.measuredAt = use.reserve(), now
	}
	err := checkSpace(l.cfg, need+l.reserve)
	if errors.Is(err, ErrDiskFull) && need < l.cfg.FreeBytesMin {
		var reserve int64
		if reserve, err = l.awaitSpace(need); err == nil || errors.Is(err, ErrDiskFull) {
			l.reserve, l.measuredAt = reserve, time.Now()
		}
	}
	switch {
	case errors.Is(err, ErrDiskFull):
		if !l.refusing.Swap(true) {
			l.logger.Warn("the raft log refuses writes", "error", err)
		}
	case err == nil && need >= l.cfg.FreeBytesMin: // Upkeep that goes through says nothing.
		if l.refusing.Swap(false) {
			l.logger.Info("the raft log takes entries again", "dir", l.cfg.Dir)
		}
	}
	return err
}

// spacePatience is how long awaitSpace waits, within a quarter of the deadline.
const spacePatience = time.Second

// awaitSpace is checkSpace for what keeps the log going: it refuses only what is
// still refused after spacePatience. When Badger ends a flush or a
// compaction, what it wrote and what that replaces are both in use for a moment,
// and look as if all of it had to be written once more. It returns the reserve
// that it found last.
func (l *Log) awaitSpace(need int64) (reserve int64, err error) {
	limit := time.NewTimer(min(spacePatience, l.cfg.StoreDeadline/4))
	defer limit.Stop()
	again := time.NewTicker(measureInterval)
	defer again.Stop()
	for {
		use, err := l.measure()
		if err != nil {
			return 0, err
		}
		if err = checkSpace(l.cfg, need+use.reserve()); !errors.Is(err, ErrDiskFull) {
			return use.reserve(), err
		}
		select {
		case <-again.C:
		case <-limit.C:
			return use.reserve(), err
		}
	}
}

func (l *Log) measure() (diskUse, error) {
	if l.cfg.InMemory {
		return diskUse{}, nil
	}
	return measure(l.cfg.Dir, func() map[uint64]struct{} { return tablesInUse(l.db) })
}

func checkSpace(cfg Config, need int64) error {
	free, err := cfg.freeBytes(cfg.Dir)
	if err != nil {
		return fmt.Errorf("badgerlog: %w", err)
	}
	if free >= uint64(max(need, 0)) {
		return nil
	}
	advice := "there is no ballast file left to delete"
	path := filepath.Join(cfg.Dir, ballastFile)
	if there, err := exists(path); err == nil && there {
		advice = "as a last resort delete the ballast file " + path
	}
	return fmt.Errorf("badgerlog: %w for the log in %s: %d bytes are free there and %d are needed, since badger does not survive running out; free some space, or %s",
		ErrDiskFull, cfg.Dir, free, need, advice)
}

// isRefusal reports whether err means that nothing was written.
func isRefusal(err error) bool {
	return errors.Is(err, ErrDiskFull) || errors.Is(err, ErrEntryTooLarge)
}

// poison makes every further call fail, and tells Config.OnFatal of the first
// cause. It returns the error that the calls get.
func (l *Log) poison(cause error) error {
	err := fmt.Errorf("badgerlog: the log in %s: %w: %w", l.cfg.Dir, ErrPoisoned, cause)
	if !l.fatal.CompareAndSwap(nil, &err) {
		return *l.fatal.Load()
	}
	l.logger.Error("the raft log is poisoned", "dir", l.cfg.Dir, "error", cause)
	if l.cfg.OnFatal != nil {
		go l.cfg.OnFatal(err)
	}
	return err
}
