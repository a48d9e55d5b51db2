package graph

import (
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// A scheduler lets Pebble compact as much as it asks for, like the scheduler it
// has by itself, but nothing before open is called. Pebble starts compactions
// while it opens and then waits for them, to look for files that nothing refers
// to; so a start behind a large write would take seconds, for which nobody could
// ask anything.
type scheduler struct {
	db   pebble.DBForCompaction // Set by Register, before all else is called.
	wake chan struct{}          // Of capacity 1: a compaction may have become possible.
	stop chan struct{}
	done chan struct{} // Closed when the goroutine that grants has ended.

	mu     sync.Mutex // Pebble's own locks come before it.
	opened bool
	closed bool
	// refused says that TrySchedule was refused since the last look at what waits:
	// Pebble then waits to be granted what it asked for.
	refused bool
	// Invariant: 0 <= running.
	running int
}

var (
	_ pebble.CompactionScheduler   = (*scheduler)(nil)
	_ pebble.CompactionGrantHandle = (*scheduler)(nil)
)

func newScheduler() *scheduler {
	return &scheduler{wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
}

// open begins to let compactions run.
func (s *scheduler) open() {
	s.mu.Lock()
	s.opened = true
	s.mu.Unlock()
	s.poke()
}

func (s *scheduler) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Register implements pebble.CompactionScheduler.
func (s *scheduler) Register(_ int, db pebble.DBForCompaction) {
	s.db = db
	go s.grant()
}

// Unregister implements pebble.CompactionScheduler. It may be called again.
func (s *scheduler) Unregister() {
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	s.mu.Unlock()
	if !closed {
		close(s.stop)
	}
	if s.db != nil {
		<-s.done
	}
}

// TrySchedule implements pebble.CompactionScheduler.
func (s *scheduler) TrySchedule() (bool, pebble.CompactionGrantHandle) {
	if !s.begin() {
		s.mu.Lock()
		s.refused = true
		s.mu.Unlock()
		return false, nil
	}
	return true, s
}

// UpdateGetAllowedWithoutPermission implements pebble.CompactionScheduler.
func (s *scheduler) UpdateGetAllowedWithoutPermission() { s.poke() }

// begin counts one compaction more, if it may run.
func (s *scheduler) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.opened || s.closed || s.running >= s.db.GetAllowedWithoutPermission() {
		return false
	}
	s.running++
	return true
}

// Started implements pebble.CompactionGrantHandle.
func (s *scheduler) Started() {}

// MeasureCPU implements pebble.CompactionGrantHandle.
func (s *scheduler) MeasureCPU(pebble.CompactionGoroutineKind) {}

// CumulativeStats implements pebble.CompactionGrantHandle.
func (s *scheduler) CumulativeStats(pebble.CompactionGrantHandleStats) {}

// Done implements pebble.CompactionGrantHandle.
func (s *scheduler) Done() {
	s.mu.Lock()
	s.running--
	s.mu.Unlock()
	s.poke()
}

// grantEvery is how often the scheduler looks without being woken: Pebble does
// not say when a flush allows more.
const grantEvery = 100 * time.Millisecond

// grant starts what waits, as far as it may run.
func (s *scheduler) grant() {
	defer close(s.done)
	ticker := time.NewTicker(grantEvery)
	defer ticker.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-s.wake:
		case <-ticker.C:
		}
		for s.begin() {
			if waiting, _ := s.db.GetWaitingCompaction(); waiting && s.db.Schedule(s) {
				continue
			}
			// The place that was taken to look may have kept out TrySchedule.
			s.mu.Lock()
			s.running--
			again := s.refused
			s.refused = false
			s.mu.Unlock()
			if !again {
				break
			}
		}
	}
}
