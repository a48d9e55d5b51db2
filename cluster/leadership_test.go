package cluster

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// A warningCounter counts the log lines with a message.
type warningCounter struct {
	slog.Handler
	message string
	count   *atomic.Int64
}

// Enabled implements slog.Handler.
func (warningCounter) Enabled(context.Context, slog.Level) bool { return true }

// WithAttrs implements slog.Handler.
func (c warningCounter) WithAttrs(attrs []slog.Attr) slog.Handler {
	c.Handler = c.Handler.WithAttrs(attrs)
	return c
}

// Handle implements slog.Handler.
func (c warningCounter) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == c.message {
		c.count.Add(1)
	}
	if !c.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return c.Handler.Handle(ctx, r)
}

// TestTransferThatFailsIsTakenUp: what a transfer that failed left to the goroutine that
// replicates to the node is taken by it soon, also where the node is silent: the next
// transfer to it waited for that without end, and meanwhile Raft refused every entry.
func TestTransferThatFailsIsTakenUp(t *testing.T) {
	nodes := openCluster(t, 3, nil)
	writeSchema(t, nodes[0])
	n1, n3 := nodes[0], raft.ServerID("n3")
	for over := false; !over; {
		leadWith(t, n1, nodes[1])
		term := n1.raft().CurrentTerm()
		func() {
			nodes[2].log.newest.mu.Lock() // Its disk stalls.
			defer nodes[2].log.newest.mu.Unlock()
			if _, err := n1.Write(testContext(t), create(viewer("a", "anna"))); err != nil {
				t.Log(err) // It may have lost the leadership.
			}
			if err := n1.TransferLeadership(testContext(t), "n3"); err == nil {
				t.Error("who is behind took the leadership")
			}
		}()
		over = n1.leads() && n1.raft().CurrentTerm() == term
	}
	closeNode(t, nodes[2])
	r := n1.machine.Load().transport.(*replication)
	eventually(t, "n3 is silent", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		f := r.followers[n3]
		return f != nil && f.silent != nil
	})
	done := make(chan error, 1)
	go func() { done <- r.awaitAnswering(n3, n1.raft().CurrentTerm()) }()
	select {
	case err := <-done:
		if !errors.Is(err, errUnwanted) {
			t.Errorf("got %v", err)
		}
	case <-testContext(t).Done():
		t.Error("a request waits on for who is silent")
	}
	write(t, n1, create(viewer("d", "anna")))
}

// TestStuckTransfer: a leader whose Raft refuses every entry for long, since it takes
// itself to be handing the leadership on, fails, also where that began after it was
// elected. Nobody looked then, and it kept the leadership with its heartbeats.
func TestStuckTransfer(t *testing.T) {
	stopped := make(chan error, 3)
	nodes := openCluster(t, 3, func(c *Config) {
		c.transferStuck = 300 * time.Millisecond
		c.OnFatal = func(err error) { stopped <- err }
	})
	writeSchema(t, nodes[0])
	leadWith(t, nodes[0], nodes[1])
	n1 := nodes[0]
	n3, _ := memberOf(n1.configuration(), "n3")
	closeNode(t, nodes[2])
	ctx := testContext(t)
	go func() {
		// Nearly without an end there is one under way that this node does not know of.
		for ctx.Err() == nil && n1.usable() == nil {
			if err := n1.raft().LeadershipTransferToServer(n3.ID, n3.Address).Error(); errors.Is(err, raft.ErrNotLeader) {
				time.Sleep(time.Millisecond)
			}
		}
	}()
	go func() {
		for ctx.Err() == nil && n1.usable() == nil {
			within, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
			_, _ = n1.Write(within, create(viewer("d", "anna"))) // It is to be refused.
			cancel()
		}
	}()
	select {
	case err := <-stopped:
		if !strings.Contains(err.Error(), "handing its leadership on") {
			t.Errorf("it stopped with %v", err)
		}
	case <-ctx.Done():
		t.Error("it leads on, and refuses all")
	}
}

// TestLeadsAfterTransferThatFails: a node that is elected while it hands the leadership on,
// which it began to in an earlier term, leads once nobody takes it. Raft refuses the first
// entry of such a term; none was proposed again, and the node kept the leadership with its
// heartbeats and answered to nothing.
func TestLeadsAfterTransferThatFails(t *testing.T) {
	var refused atomic.Int64
	nodes := openCluster(t, 3, func(c *Config) {
		if c.NodeID == "n2" {
			c.Logger = slog.New(warningCounter{c.Logger.Handler(), "an entry of the leader's own did not come through", &refused})
		}
	})
	writeSchema(t, nodes[0])
	n2 := nodes[1]
	n3, _ := memberOf(n2.configuration(), "n3")
	closeNode(t, nodes[2]) // Who does not answer takes no leadership.
	refused.Store(0)
	for round := 0; refused.Load() == 0; round++ {
		if round == 20 {
			t.Fatal("the transfer was never there before the first entry of the term")
		}
		for leaderOf(t, nodes[:2]) != nodes[0] {
			if err := n2.TransferLeadership(testContext(t), "n1"); err != nil {
				t.Logf("hand the leadership to n1: %v", err) // It may be on its way.
			}
		}
		ended := make(chan error, 1)
		go func() {
			for {
				n2.handingOver.Add(1) // As followFitness does.
				err := n2.raft().LeadershipTransferToServer(n3.ID, n3.Address).Error()
				n2.handingOver.Add(-1)
				if !errors.Is(err, raft.ErrNotLeader) {
					ended <- err
					return
				}
			}
		}()
		ctx := testContext(t)
		for over := false; !over; {
			if n2.raft().State() != raft.Leader {
				_ = nodes[0].TransferLeadership(ctx, "n2") // It may be on its way.
			}
			select {
			case err := <-ended:
				t.Logf("the transfer to n3 ended: %v", err)
				over = true
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
				t.Fatal("no transfer to n3 began")
			}
		}
	}
	// Whoever has the leadership then knows it.
	write(t, nodes[0], create(viewer("d", "anna")))
	write(t, n2, create(viewer("e", "anna")))
}
