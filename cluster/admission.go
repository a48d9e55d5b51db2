package cluster

import (
	"fmt"
	"sync"
)

// admission bounds the proposals that are under way, and lets Close wait for
// them.
//
// Invariant: 0 <= entries <= entriesMax + 1 and 0 <= bytes <= bytesMax and the bytes of
// one: the entry that as-of readers share is let in beyond the bounds.
type admission struct {
	entriesMax int
	bytesMax   int64

	mu      sync.Mutex
	entries int
	bytes   int64
	closed  bool
	drained chan struct{} // Closed when closed is set and nothing is under way.
}

func newAdmission(entriesMax int, bytesMax int64) *admission {
	return &admission{entriesMax: entriesMax, bytesMax: bytesMax, drained: make(chan struct{})}
}

// enter admits a proposal of so many bytes; leave must follow.
func (a *admission) enter(bytes int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.closed:
		return ErrShuttingDown
	case a.entries >= a.entriesMax:
		return fmt.Errorf("%w: %d writes are under way, and more are not admitted", ErrTooBusy, a.entries)
	case a.bytes+int64(bytes) > a.bytesMax:
		return fmt.Errorf("%w: %d bytes of writes are under way, and %d more would exceed the %d that are admitted",
			ErrTooBusy, a.bytes, bytes, a.bytesMax)
	}
	a.entries++
	a.bytes += int64(bytes)
	return nil
}

// enterAnyway is enter for what is made one at a time, and must not wait for writes.
func (a *admission) enterAnyway(bytes int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return ErrShuttingDown
	}
	a.entries++
	a.bytes += int64(bytes)
	return nil
}

func (a *admission) leave(bytes int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.entries--
	a.bytes -= int64(bytes)
	if a.closed && a.entries == 0 {
		close(a.drained)
	}
}

// figures returns how many proposals are under way, and their bytes.
func (a *admission) figures() (entries int, bytes int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.entries, a.bytes
}

// close admits nothing more. The channel it returns is closed when nothing is
// under way. It is called once.
func (a *admission) close() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	if a.entries == 0 {
		close(a.drained)
	}
	return a.drained
}
