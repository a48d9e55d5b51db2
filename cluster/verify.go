package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/pembadb/pemba/cluster/badgerlog"
	"github.com/pembadb/pemba/graph"
)

// verified says how far the reading of all tables has come.
type verified struct {
	bytes atomic.Int64
	done  atomic.Bool
}

// verify reads all tables of the log and of the state once. Checksums guard
// what is read, but much of it is read by nobody for months, and damage that
// is found then may be in every backup already. What is found stops the node.
func (n *Node) verify() {
	defer n.loops.Done()
	if n.config.VerifyBytesPerSecond < 0 || n.config.InMemory {
		return
	}
	ctx, cancel := n.untilStop()
	defer cancel()
	start := time.Now()
	if err := n.log.Verify(); err != nil {
		if !stops(err) {
			n.fail(fmt.Errorf("verify the log: %w", err))
		}
		return
	}
	m := n.machine.Load()
	err := m.db.Verify(ctx, n.config.VerifyBytesPerSecond, func(bytes int64) { n.verified.bytes.Add(bytes) })
	for err != nil && n.machine.Load() != m {
		// Another state has come into force meanwhile.
		m = n.machine.Load()
		n.verified.bytes.Store(0)
		err = m.db.Verify(ctx, n.config.VerifyBytesPerSecond, func(bytes int64) { n.verified.bytes.Add(bytes) })
	}
	if err != nil {
		if !stops(err) {
			n.fail(fmt.Errorf("verify the state: %w", err))
		}
		return
	}
	n.verified.done.Store(true)
	n.config.Logger.Info("verified all tables", "node", n.dir.nodeID, "bytes", n.verified.bytes.Load(), "took", time.Since(start))
}

// stops reports whether an error only says that the node is being closed, or
// stops for another reason.
func stops(err error) bool {
	for _, end := range []error{context.Canceled, graph.ErrClosed, badgerlog.ErrClosed, badgerlog.ErrPoisoned} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}
