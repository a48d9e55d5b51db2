package badgerlog

import (
	"errors"

	"github.com/hashicorp/raft"
)

// Verify reads every table of Badger's and compares each block with its
// checksum, and then reads every entry of the log. Open has read all entries
// already, so what the former finds is damage in what waits to be deleted. That
// matters too: a compaction that meets it drops, without a word, what stands
// behind it in the same table; one that was faster is found out by the latter.
// It fails with a CorruptionError.
//
// It takes some tenths of a second for 100 MiB, and does not rest: Badger reads
// all tables or none. Close waits for it.
func (l *Log) Verify() error {
	if err := l.verifyTables(); err != nil {
		return err
	}
	var entry raft.Log
	st := l.state.Load()
	for index := st.first; index != 0 && index <= st.last; index++ {
		// What was deleted meanwhile is not missing.
		if err := l.GetLog(index, &entry); err != nil && !errors.Is(err, raft.ErrLogNotFound) {
			return err
		}
	}
	return nil
}

func (l *Log) verifyTables() error {
	l.readMu.RLock()
	defer l.readMu.RUnlock()
	if err := l.usable(); err != nil {
		return err
	}
	if err := l.verifyChecksums(); err != nil {
		return l.damaged(0, "a block of a table is not what was stored: "+err.Error())
	}
	return nil
}

// errUnreadableBlock stands for a panic of Badger's.
var errUnreadableBlock = errors.New("badger does not say of which")

// verifyChecksums has Badger do it, which panics at a block that it cannot read,
// because it asks the block where it is.
func (l *Log) verifyChecksums() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errUnreadableBlock
		}
	}()
	return l.db.VerifyChecksum()
}
