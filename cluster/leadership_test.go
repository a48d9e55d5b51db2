package cluster

import (
	"context"
	"errors"
	"log/slog"
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

// TestLeadsAfterTransferThatFails: a node that is elected while it hands the leadership on,
// which it began to in an earlier term, leads once nobody takes it. Raft refuses the first
// entry of such a term; none was proposed again, and the node kept the leadership with its
// heartbeats and answered to nothing.
func TestLeadsAfterTransferThatFails(t *testing.T) {
	var refused atomic.Int64
	nodes := openCluster(t, 3, func(c *Config) {
		if c.NodeID == "n2" {
			c.Logger = slog.New(warningCounter{c.Logger.Handler(), "the first entry of the term did not come through", &refused})
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
