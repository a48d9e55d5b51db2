package badgerlog

import (
	"math"
	"time"
)

// memoryDir stands in messages for the directory that a log in memory has not.
const memoryDir = "memory"

// openInMemory opens an empty log that is kept in memory. It has no mark, no
// directory and no owner, for these guard what a restart finds.
func openInMemory(cfg Config) (*Log, error) {
	start := time.Now()
	cfg.Dir = memoryDir
	l := newLog(cfg)
	var err error
	if l.db, err = openBadger(cfg); err != nil {
		return nil, err
	}
	l.state.Store(&state{})
	close(l.syncerDone) // It would sync the mark.
	go l.worker()
	l.logger.Info("opened a raft log in memory", "took", time.Since(start))
	return l, nil
}

// freeMemory stands for freeBytes where there is no file system.
func freeMemory(string) (uint64, error) { return math.MaxInt64, nil }
