package cluster

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
)

// A retryCounter counts how often a fetch is gone on with, and calls at each time.
type retryCounter struct {
	slog.Handler
	count *atomic.Int64
	at    func(count int64)
}

// Enabled implements slog.Handler.
func (retryCounter) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

// WithAttrs implements slog.Handler.
func (c retryCounter) WithAttrs(attrs []slog.Attr) slog.Handler {
	return retryCounter{c.Handler.WithAttrs(attrs), c.count, c.at}
}

// Handle implements slog.Handler.
func (c retryCounter) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "the sending of the state broke; going on" {
		c.at(c.count.Add(1))
	}
	return nil
}

// TestFetchYieldsToOtherLeader: a node that does not get on with a fetch goes over to the
// leader that has told it of its state since. It asked the one that led before twenty times
// more, which takes ten minutes where that one hangs and takes what it is sent: as long
// there was no majority, where this node was needed for it.
func TestFetchYieldsToOtherLeader(t *testing.T) {
	t.Parallel()
	var retries atomic.Int64
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	at := func(int64) {}
	config := testConfig(t, t.TempDir())
	config.Logger = slog.New(retryCounter{config.Logger.Handler(), &retries, func(count int64) { at(count) }})
	n := open(t, config) // It is alone, so that only the test fetches.

	// What the one tells that is asked already changes nothing.
	at = func(count int64) {
		if count == 2 {
			cancel()
		}
	}
	n.installer.want(stateToken{"n8", 200, 200})
	if _, _, err := n.fetchState(ctx, stateToken{"n8", 100, 100}); err == nil || retries.Load() != 2 {
		t.Errorf("with a newer token of the same node, a fetch ends after %d retries (%v), and should when it is cancelled, after two", retries.Load(), err)
	}
	retries.Store(0)
	at = func(count int64) {
		if count == 1 {
			n.installer.want(stateToken{"n9", 200, 200})
		}
	}
	if _, _, err := n.fetchState(testContext(t), stateToken{"n8", 100, 100}); err == nil || retries.Load() != 1 {
		t.Errorf("a fetch ends after %d retries (%v), and another leader told of its state during the first", retries.Load(), err)
	}
	if token := n.installer.take(); token == nil || token.node != "n9" {
		t.Errorf("what is fetched next is %v", token)
	}
}
