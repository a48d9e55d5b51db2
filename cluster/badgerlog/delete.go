package badgerlog

import (
	"errors"
	"fmt"
	"maps"
	"time"
)

// A truncated prefix is deleted in pieces of so many keys, with a pause after
// each, so that appends get their turn: a piece takes some milliseconds.
const (
	sweepKeys  = 2000
	sweepPause = time.Millisecond
)

// DeleteRange deletes the entries from index first to last, both included, as
// far as they exist. They must be a prefix or a suffix of the log, for anything
// else would leave a hole, and is refused.
//
// A suffix, or all there is, is deleted completely before DeleteRange returns.
// Of a prefix, less than asked may be deleted because of a Hold; what goes is
// gone from the log at once, while its keys are deleted piece by piece beside
// the appends, which may take a second for some 100,000 entries.
func (l *Log) DeleteRange(first, last uint64) error {
	if first > last {
		return fmt.Errorf("badgerlog: DeleteRange was given %d to %d: the first must not be above the last", first, last)
	}
	l.writeMu.Lock()
	swept, err := l.deleteRange(first, last)
	l.writeMu.Unlock()
	if err != nil || swept {
		return err
	}
	return l.sweep()
}

// deleteRange is DeleteRange under writeMu. It reports whether no keys are left
// to be deleted.
func (l *Log) deleteRange(first, last uint64) (swept bool, err error) {
	if err := l.usable(); err != nil {
		return true, err
	}
	st := *l.state.Load()
	first, last = max(first, st.first), min(last, st.last)
	switch {
	case st.first == 0 || first > last:
		return true, nil
	case last == st.last:
		return true, l.deleteSuffix(&st, first)
	case first > st.first:
		return true, fmt.Errorf("badgerlog: DeleteRange was given %d to %d of the log %d to %d in %s: that would leave a hole",
			first, last, st.first, st.last, l.cfg.Dir)
	}
	last = l.heldBack(last)
	if last < st.first {
		return true, nil
	}
	st.behead(last + 1)
	b := l.newBatch(l.upkeepBytes())
	return false, l.settle(b.commit(&st))
}

// deleteSuffix deletes the entries from index on.
func (l *Log) deleteSuffix(st *state, index uint64) error {
	var tip uint64
	if index > st.first {
		if index <= st.commit {
			return l.poison(fmt.Errorf("badgerlog: DeleteRange was to delete the entries from %d on in the log in %s, where all up to %d was agreed", index, l.cfg.Dir, st.commit))
		}
		before, err := l.read(st, index-1, nil)
		if err != nil {
			return l.poison(err)
		}
		tip = before.sum
	}
	st.cut(index, tip)
	b := l.newBatch(l.upkeepBytes())
	if err := l.settle(b.deleteAfter(st, st.last)); err != nil {
		return err
	}
	l.suffixCut = true
	return nil
}

// Wipe deletes all entries, and never term and vote. The next entry stored must
// have the index next, or may have any if next is 0. The recorded commit index
// becomes 0. Holds do not hold it back. A crash during Wipe leaves either the
// log as it was or an empty one.
func (l *Log) Wipe(next uint64) error {
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	st := *l.state.Load()
	l.logger.Info("wiping the raft log", "dir", l.cfg.Dir, "first", st.first, "last", st.last, "next", next)
	st.empty(next)
	st.commit = 0
	b := l.newBatch(l.upkeepBytes())
	if err := l.settle(b.deleteAfter(&st, 0)); err != nil {
		return err
	}
	l.suffixCut = false
	return nil
}

// WipedTo returns the index that the next entry must have, while the log is empty
// because of Wipe; else 0.
func (l *Log) WipedTo() uint64 { return l.state.Load().next }

// Hold keeps the entries from index on from being deleted as a prefix until
// release is called, so that a follower that is being sent the state can be
// sent the log after it. Entries that are already gone are not brought back:
// look at FirstIndex after Hold. Any number of holds may exist; release may be
// called more than once.
func (l *Log) Hold(index uint64) (release func()) {
	l.holdMu.Lock()
	defer l.holdMu.Unlock()
	l.holdLast++
	number := l.holdLast
	l.holds[number] = index
	return func() {
		l.holdMu.Lock()
		defer l.holdMu.Unlock()
		delete(l.holds, number)
	}
}

// heldBack returns how far a prefix up to last may be deleted.
func (l *Log) heldBack(last uint64) uint64 {
	l.holdMu.Lock()
	defer l.holdMu.Unlock()
	for index := range maps.Values(l.holds) {
		if index == 0 {
			return 0
		}
		last = min(last, index-1)
	}
	return last
}

// sweep deletes the keys before the first entry. It leaves them to the next
// deletion if the log is closed meanwhile or space runs out.
func (l *Log) sweep() error {
	for {
		more, err := l.sweepPiece()
		if errors.Is(err, ErrDiskFull) {
			return nil
		}
		if err != nil || !more {
			return err
		}
		time.Sleep(sweepPause)
	}
}

func (l *Log) sweepPiece() (more bool, err error) {
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	if l.closed.Load() {
		return false, nil
	}
	if err := l.usable(); err != nil {
		return false, err
	}
	st := *l.state.Load()
	if st.first == 0 || st.low >= st.first {
		return false, nil
	}
	b := l.newBatch(l.upkeepBytes())
	for n := 0; n < sweepKeys && st.low < st.first; n++ {
		key := appendEntryKey(make([]byte, 0, keyBytes), st.low)
		if !b.fits(key, nil) {
			break
		}
		b.remove(key)
		st.low++
	}
	if err := l.settle(b.commit(&st)); err != nil {
		return false, err
	}
	return st.low < st.first, nil
}

// upkeepBytes is what must be free for writes other than entries. It is less
// than for these, so that a node that stores nothing more can still vote, and
// can delete what fills the disk.
func (l *Log) upkeepBytes() int64 { return l.cfg.FreeBytesMin / 2 }

// settle poisons the log unless err is nil or a refusal.
func (l *Log) settle(err error) error {
	if err == nil || isRefusal(err) {
		return err
	}
	return l.poison(err)
}
