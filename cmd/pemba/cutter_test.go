package main

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A cutter is a way to a server that can be cut.
type cutter struct {
	listener net.Listener
	server   string
	// sent is what went to the server, received what came from it; cuts counts how
	// often either cut the way.
	sent, received flow
	cuts           atomic.Int64
	// due, where it is set before a flow is told to cut, is waited for before each cut.
	due func() bool
	// gone keeps the way from being found again behind the first cut.
	gone atomic.Bool

	mu    sync.Mutex
	conns map[net.Conn]bool
	work  sync.WaitGroup
}

// A flow counts the bytes that go in one direction. At each multiple of cutEvery, if
// that is not zero, all connections are cut.
type flow struct{ bytes, cutEvery atomic.Int64 }

func startCutter(t *testing.T, server string) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{listener: l, server: server, conns: make(map[net.Conn]bool)}
	c.work.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return // It was closed.
			}
			c.work.Go(func() { c.forward(near) })
		}
	})
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		c.cut()
		c.work.Wait()
	})
	return c
}

func (c *cutter) addr() string { return c.listener.Addr().String() }

func (c *cutter) forward(near net.Conn) {
	far, err := net.Dial("tcp", c.server)
	if err != nil || c.gone.Load() && c.cuts.Load() > 0 {
		_ = near.Close() // Nobody was told anything yet.
		if err == nil {
			_ = far.Close()
		}
		return
	}
	c.mu.Lock()
	c.conns[near], c.conns[far] = true, true
	c.mu.Unlock()
	c.work.Go(func() { c.carry(near, far, &c.received) })
	c.carry(far, near, &c.sent)
}

// carry gives what comes from one side to the other, until either ends.
func (c *cutter) carry(to, from net.Conn, f *flow) {
	b := make([]byte, 4<<10)
	for {
		n, err := from.Read(b)
		after, every := f.bytes.Add(int64(n)), f.cutEvery.Load()
		if every > 0 && after/every > (after-int64(n))/every {
			if c.due != nil {
				for end := time.Now().Add(time.Minute); !c.due() && time.Now().Before(end); {
					time.Sleep(time.Millisecond)
				}
			}
			c.cuts.Add(1)
			c.cut()
		}
		if _, writeErr := to.Write(b[:n]); err != nil || writeErr != nil {
			break
		}
	}
	_, _ = to.Close(), from.Close()
}

// cut ends all connections; new ones are taken.
func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.conns {
		_ = conn.Close() // It may have ended before.
		delete(c.conns, conn)
	}
}
