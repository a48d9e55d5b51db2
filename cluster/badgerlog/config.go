package badgerlog

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

const (
	defaultMemTableSize  = 8 << 20
	minMemTableSize      = 1 << 20
	maxMemTableSize      = 256 << 20
	defaultStoreDeadline = 5 * time.Second
	minStoreDeadline     = 10 * time.Millisecond

	// Badger stalls flushes at so many tables of level 0.
	levelZeroTablesStall = 6

	// Values at or above the threshold would go to Badger's value log, which is
	// never reclaimed under this load. A batch must fit a transaction, which is
	// 15 % of a memtable, with room for the record.
	valueThresholdMax = 1 << 20
)

// Config says where and how a Log is kept. The zero value of each field but Dir
// is a good default.
type Config struct {
	// Dir is the directory of the log. It is created if missing, and must hold
	// nothing else. It is empty where InMemory is set.
	Dir string

	// InMemory keeps the log in memory alone, until Close. Nothing is written to
	// a disk, so there is nothing to lock, no free space to look at (Stats says
	// math.MaxInt64) and no ballast; the log is otherwise the same, and takes the
	// same entries.
	InMemory bool

	// Logger receives one line for each change of state (opened, poisoned,
	// refusing writes), and Badger's own lines at their levels, its chatter at
	// debug. Nil means slog.Default.
	Logger *slog.Logger

	// FreeBytesMin is the space in bytes that must be free on the file system
	// of Dir before entries are stored, beside twice the batch itself and as
	// much as Badger's files occupy, since compactions may write all of them
	// anew before they delete the old ones. To open and close the log, store
	// term and vote, or delete entries, half of FreeBytesMin will do. Zero means
	// about 66 MiB at the default MemTableSize. (Deleting entries gives no space
	// back at once: Badger compacts as it is written to.) The least allowed is
	// 2 x (MemTableSize + one transaction + one flushed table).
	FreeBytesMin int64

	// BallastBytes is the size of the file "ballast" in Dir, which occupies
	// space (it is not sparse) so that an operator can delete it when the disk
	// is full. It is made at Open, also after a deletion, if twice FreeBytesMin
	// and as much as the files occupy are free beside it. Zero means
	// 2 x FreeBytesMin; negative means none.
	BallastBytes int64

	// StoreDeadline bounds each transaction. A disk that does not answer
	// within it poisons the log. A batch of some MiB may be several
	// transactions. Zero means 5 s; the least allowed is 10 ms.
	StoreDeadline time.Duration

	// MemTableSize is the size in bytes of Badger's memtables, and sets its use
	// of memory (some 20 times this under load) and of disk, and the largest
	// entry. Zero means 8 MiB; 1 MiB to 256 MiB are allowed.
	MemTableSize int64

	// OnFatal is told when the log is poisoned, once, on a goroutine of its
	// own. The process, or at least its Raft, should then end. It may be nil.
	OnFatal func(error)

	// CommitIndex is asked at each StoreLogs for the index that the state
	// machine has reached, which is stored in the same transaction, for
	// Log.CommitIndex. It runs on Raft's main loop and must not block. It may
	// be nil.
	CommitIndex func() uint64

	// Seams for this package's tests. Both may be nil.
	beforeCommit func() error                     // Runs where Badger's commit does.
	freeBytes    func(dir string) (uint64, error) // Stands for statfs.
}

// SlowedBy returns c for a disk that is slow: wait runs before each commit, and what it
// takes counts against StoreDeadline. It is for tests.
func (c Config) SlowedBy(wait func()) Config {
	c.beforeCommit = func() error {
		wait()
		return nil
	}
	return c
}

// withDefaults returns c with each zero value replaced by its default.
func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.MemTableSize == 0 {
		c.MemTableSize = defaultMemTableSize
	}
	if c.StoreDeadline == 0 {
		c.StoreDeadline = defaultStoreDeadline
	}
	if c.FreeBytesMin == 0 {
		c.FreeBytesMin = c.freeBytesFloor() + 4*c.MemTableSize
	}
	if c.BallastBytes == 0 {
		c.BallastBytes = 2 * c.FreeBytesMin
	}
	if c.freeBytes == nil {
		c.freeBytes = freeBytes
		if c.InMemory {
			c.freeBytes = freeMemory
		}
	}
	return c
}

// Validate says which field, if any, holds a value that is not allowed. Open
// calls it.
func (c Config) Validate() error {
	switch {
	case c.InMemory && c.Dir != "":
		return fmt.Errorf("badgerlog: Config.InMemory is set and Config.Dir is %q: a log in memory has no directory", c.Dir)
	case !c.InMemory && c.Dir == "":
		return errors.New("badgerlog: Config.Dir is empty: name the directory of the log")
	}
	if c.MemTableSize != 0 && (c.MemTableSize < minMemTableSize || c.MemTableSize > maxMemTableSize) {
		return fmt.Errorf("badgerlog: Config.MemTableSize is %d bytes: %d to %d are allowed, or 0 for %d",
			c.MemTableSize, minMemTableSize, maxMemTableSize, defaultMemTableSize)
	}
	if c.StoreDeadline != 0 && c.StoreDeadline < minStoreDeadline {
		return fmt.Errorf("badgerlog: Config.StoreDeadline is %v: at least %v is allowed, or 0 for %v",
			c.StoreDeadline, minStoreDeadline, defaultStoreDeadline)
	}
	if c.MemTableSize == 0 {
		c.MemTableSize = defaultMemTableSize
	}
	if floor := c.freeBytesFloor(); c.FreeBytesMin != 0 && c.FreeBytesMin < floor {
		return fmt.Errorf("badgerlog: Config.FreeBytesMin is %d bytes: at least %d are needed with a MemTableSize of %d, or 0 for the default",
			c.FreeBytesMin, floor, c.MemTableSize)
	}
	return nil
}

// transactionBytesMax is Badger's own limit (15 % of a memtable).
func (c Config) transactionBytesMax() int64 { return c.MemTableSize * 15 / 100 }

func (c Config) baseLevelSize() int64 { return 2 * c.MemTableSize }

// freeBytesFloor is for the memtable that is being filled, the batch that fills
// it, and the flush of those before it.
func (c Config) freeBytesFloor() int64 {
	return 2 * (c.MemTableSize + c.transactionBytesMax() + c.MemTableSize)
}

func (c Config) valueThreshold() int64 {
	return min(valueThresholdMax, c.transactionBytesMax()*3/4)
}

// badgerOptions are the options under which Badger can be a Raft log. Each one
// that differs from Badger's default has its reason beside it.
func (c Config) badgerOptions() badger.Options {
	dir := c.Dir
	if c.InMemory {
		dir = "" // It only stands in messages; Badger refuses one in this mode.
	}
	return badger.DefaultOptions(dir).
		WithInMemory(c.InMemory).
		WithLogger(badgerLogger{c.Logger}).
		WithSyncWrites(true).       // An acknowledged entry is on the disk.
		WithDetectConflicts(false). // There is one writer at a time.
		WithNumVersionsToKeep(1).
		WithCompression(options.None). // Entries are small, and with compression Badger wants a block cache.
		WithBlockCacheSize(0).
		WithValueThreshold(c.valueThreshold()). // No value ever goes to the value log.
		WithValueLogFileSize(16 << 20).         // The value log stays empty, and is a sparse file of twice this.
		WithChecksumVerificationMode(options.OnBlockRead).
		WithMemTableSize(c.MemTableSize).
		WithNumMemtables(2).
		WithBaseLevelSize(c.baseLevelSize()).
		WithNumLevelZeroTables(2).
		WithNumLevelZeroTablesStall(levelZeroTablesStall).
		WithNumCompactors(2). // One is refused by Badger.
		WithCompactL0OnClose(false).
		WithMetricsEnabled(false) // These are global to the process.
}
