package badgerlog

import (
	"errors"
	"fmt"
)

var (
	// ErrDiskFull says that too little space is free for a write that Badger
	// would be sure to survive. The write was refused before it began, the log
	// is unharmed, and it takes writes again once there is space. The error's
	// text names the directory and the figures, and says how to recover.
	ErrDiskFull = errors.New("the disk is too full")

	// ErrEntryTooLarge says that an entry is larger than Log.EntryBytesMax. The
	// whole batch was refused before anything was written.
	ErrEntryTooLarge = errors.New("the entry is too large")

	// ErrLocked says that another process, or another Log of this process, has
	// the directory open.
	ErrLocked = errors.New("the directory is in use")

	// ErrPoisoned says that an earlier write failed or outlasted its deadline,
	// so that it is unknown what the disk holds. The log answers nothing but
	// this error until it is opened anew. The text holds the first cause.
	ErrPoisoned = errors.New("the log has stopped")

	// ErrClosed says that Close was called.
	ErrClosed = errors.New("the log is closed")

	// ErrKeyNotFound is what Get returns for a key that was never set. Raft
	// recognises it by its text, which is therefore fixed.
	ErrKeyNotFound = errors.New("not found")
)

// errDeadline is the cause of poisoning when the disk does not answer.
var errDeadline = errors.New("the disk did not answer in time")

// CorruptionError says that the log in Dir lost or altered something that it
// had acknowledged. A node must not go on with such a log: it should be given
// an empty data directory and fetch its state from the others.
type CorruptionError struct {
	Dir    string // Directory of the log.
	Index  uint64 // Index of the entry concerned, or 0 if it is not one entry.
	Reason string // What was expected and what was found.
}

// whatToDo ends the text of a CorruptionError. Without its log the rest of the
// data directory is of no use either. A member of a cluster must not come back from a
// copy: that has forgotten entries that it acknowledged, and votes.
const whatToDo = "; remove the node from its cluster and let it join with an empty directory; " +
	"only where it is the only node, bring back a copy of the whole data directory"

// Error implements error. It is one line if Reason is.
func (e *CorruptionError) Error() string {
	at := ""
	if e.Index != 0 {
		at = fmt.Sprintf(" at entry %d", e.Index)
	}
	return fmt.Sprintf("badgerlog: the log in %s is damaged%s: %s%s", e.Dir, at, e.Reason, whatToDo)
}

// IsCorruptionError reports whether err is or wraps a CorruptionError.
func IsCorruptionError(err error) bool {
	var damaged *CorruptionError
	return errors.As(err, &damaged)
}
