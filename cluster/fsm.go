package cluster

import (
	"fmt"
	"io"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// fsm hands the entries that Raft commits to the engine, in order. It is a
// raft.BatchingFSM, because only that one receives the entries that change the
// configuration too: these must reach Pebble with the applied revision.
type fsm struct {
	db     *graph.DB
	engine *engine.Engine

	// fail stops the node. An entry that cannot be decoded or applied must
	// never be skipped, or this node would silently differ from the others.
	fail func(error)
	// next is told, ahead of each entry, how far the graph is.
	next func(graph.Applied, graph.Revision)
	// changed is told of each mutation that was applied and not refused, and
	// passed of each entry, behind it, with the store that it may have changed;
	// zero for none.
	changed func(*graph.Mutation, engine.Result)
	passed  func(graph.StoreID)
	// advanced is called behind each batch.
	advanced func()

	// inForce is closed once the machine is in force and all know that it is; nil for
	// one that is from the start. Nothing is applied before: who hears of an entry looks
	// for it in the machine that is in force.
	inForce chan struct{}

	// fault is what stopped the FSM; it belongs to the goroutine that applies.
	fault error
	// entries and bytes count what was applied since they were last reset.
	entries atomic.Uint64
	bytes   atomic.Int64
	// large is set by an entry that changes changesMax tuples and more, until the
	// graph is flushed.
	changesMax int
	large      atomic.Bool
	// applied counts what was applied since the node started.
	applied atomic.Uint64
}

var _ raft.BatchingFSM = (*fsm)(nil)

// answer is the answer to one entry, as it comes back from Raft.
type answer struct {
	result engine.Result
	err    error
}

// ApplyBatch implements raft.BatchingFSM.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	if f.inForce != nil {
		<-f.inForce
	}
	answers := make([]any, len(logs))
	for i, entry := range logs {
		answers[i] = f.Apply(entry)
	}
	f.advanced()
	return answers
}

// Apply implements raft.FSM. It applies one entry; after a fault it applies
// none.
func (f *fsm) Apply(entry *raft.Log) any {
	if f.fault != nil {
		return answer{err: f.fault}
	}
	result, err := f.apply(entry)
	if err != nil {
		f.fault = fmt.Errorf("log entry %d of term %d: %w", entry.Index, entry.Term, err)
		f.fail(f.fault)
		return answer{err: f.fault}
	}
	return answer{result: result}
}

func (f *fsm) apply(entry *raft.Log) (engine.Result, error) {
	revision := graph.Revision(entry.Index)
	applied := f.db.Applied()
	if revision <= applied.Revision {
		return engine.Result{Revision: revision}, nil // Raft starts from what was durable.
	}
	f.next(applied, revision)
	f.entries.Add(1)
	f.applied.Add(1)
	f.bytes.Add(int64(len(entry.Data)))
	switch entry.Type {
	case raft.LogCommand:
		c, err := decodeCommand(entry.Data)
		if err != nil {
			return engine.Result{}, err
		}
		result, err := f.engine.Apply(revision, entry.Term, c.Stamp, c.Mutation)
		if err != nil {
			return engine.Result{}, fmt.Errorf("apply: %w", err)
		}
		if result.Changed >= f.changesMax {
			f.large.Store(true)
		}
		if result.Refusal == nil && !result.Repeated {
			f.changed(c.Mutation, result)
			f.passed(c.Mutation.Store)
		} else {
			f.passed(0)
		}
		return result, nil
	case raft.LogConfiguration:
		if err := f.db.CommitConfiguration(revision, entry.Term, entry.Data); err != nil {
			return engine.Result{}, fmt.Errorf("store the configuration: %w", err)
		}
		f.passed(0)
		return engine.Result{Revision: revision}, nil
	}
	return engine.Result{Revision: revision}, nil // Raft's own: no-ops and barriers.
}

// Snapshot implements raft.FSM. It returns at once: applying goes on while the
// graph is flushed.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if f.fault != nil {
		return nil, f.fault
	}
	return flushed{f.db}, nil
}

// Restore implements raft.FSM. The node starts from Pebble, never from a
// snapshot of Raft's: a state that is sent comes in a machine of its own.
func (f *fsm) Restore(io.ReadCloser) error { return errStateIsFetched }
