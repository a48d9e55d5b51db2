package clustertest

import (
	"sync"
	"time"
)

// Start is what the clocks of a Cluster say at first.
var Start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// A clock is the time of all hosts, which passes as it does and can be moved, and by
// how much each host has it wrong.
type clock struct {
	began time.Time // When it was Start, by the clock of the machine.

	mu    sync.Mutex
	moved time.Duration
	wrong map[string]time.Duration
}

func newClock() *clock { return &clock{began: time.Now(), wrong: map[string]time.Duration{}} }

// of returns the time of one host.
func (c *clock) of(host string) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Start.Add(time.Since(c.began) + c.moved + c.wrong[host])
}

// move sets the clocks of all hosts on.
func (c *clock) move(by time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.moved += by
}

// set sets the clock of one host wrong by so much.
func (c *clock) set(host string, wrong time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrong[host] = wrong
}
