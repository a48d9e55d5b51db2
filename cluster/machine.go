package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// A machine is the state of a node with what applies entries to it. A node has
// another one after it was sent a whole state; its log, its port and those who
// wait for it stay.
type machine struct {
	// folder is that of the graph in the data directory.
	folder string
	db     *graph.DB
	engine *engine.Engine
	fsm    *fsm
	raft   *raft.Raft
	// transport is what raft speaks through.
	transport raft.Transport

	// stop is closed when the loops are to end that belong to raft.
	stop chan struct{}
	// refusing has room for one; Raft refused an entry since it hands the leadership on.
	refusing chan struct{}
	stopOnce sync.Once
	stopErr  error
	loops    sync.WaitGroup
}

// The parts of the machine that is in force. One that is replaced meanwhile
// goes on answering, from the state that it had.
func (n *Node) db() *graph.DB    { return n.machine.Load().db }
func (n *Node) fsm() *fsm        { return n.machine.Load().fsm }
func (n *Node) raft() *raft.Raft { return n.machine.Load().raft }

// openMachine opens the graph in a folder of the data directory, and makes what applies entries to
// it. Raft is not started.
func (n *Node) openMachine(ctx context.Context, folder string) (*machine, error) {
	db, err := n.openGraph(ctx, n.dir.folder(folder))
	if err != nil {
		return nil, err
	}
	m := &machine{folder: folder, db: db, engine: engine.New(db, n.config.Engine), stop: make(chan struct{}), refusing: make(chan struct{}, 1)}
	m.fsm = &fsm{
		db: db, engine: m.engine, changesMax: n.config.SnapshotChanges,
		fail:    n.fail,
		next:    n.checksums.passed,
		changed: n.noteChange,
		passed:  func(store graph.StoreID) { n.watches.note(store, db.Applied()) },
		advanced: func() {
			n.progress.broadcast()
			n.wakeCutter()
		},
	}
	return m, nil
}

// openGraph opens the graph. It does so apart, since Pebble tries for ever to
// write to a disk that fails while it starts.
func (n *Node) openGraph(ctx context.Context, dir string) (*graph.DB, error) {
	config := n.graphConfig(dir)
	if !n.config.InMemory {
		if err := makeDirectory(dir); err != nil {
			return nil, err
		}
	}
	type opened struct {
		db  *graph.DB
		err error
	}
	done := make(chan opened, 1)
	go func() {
		db, err := graph.Open(config)
		done <- opened{db, err}
	}()
	var err error
	select {
	case o := <-done:
		return o.db, o.err
	case <-n.failed:
		err = n.failure
	case <-ctx.Done():
		err = fmt.Errorf("open the graph: %w", context.Cause(ctx))
	}
	go func() {
		if o := <-done; o.err == nil {
			if err := o.db.Close(); err != nil {
				n.config.Logger.Warn("close a graph that opened too late", "node", n.dir.nodeID, "error", err)
			}
		}
	}()
	return nil, err
}

// graphConfig is the configuration of a graph in a directory.
func (n *Node) graphConfig(dir string) graph.Config {
	config := n.config.Graph
	config.Dir = dir
	config.Logger = n.config.Logger
	config.OnFatal = func(err error) { n.fail(fmt.Errorf("graph: %w", err)) }
	if n.config.InMemory {
		config = inMemory(config, n.memory)
	}
	return config
}

// startRaft starts the machine's Raft and what follows its state.
func (n *Node) startRaft(m *machine) error {
	transport := n.raftTransport()
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(n.dir.nodeID)
	rc.Logger = newRaftLogger(n.config.Logger)
	rc.HeartbeatTimeout = n.electionTimeout()
	rc.ElectionTimeout = n.electionTimeout()
	// After so long without an answer of a majority a leader steps down. It is no lease
	// that anything is read under, so as long as is allowed is right: a shorter one
	// costs leaders where a machine is busy.
	rc.LeaderLeaseTimeout = n.electionTimeout()
	rc.CommitTimeout = n.config.CommitPause
	rc.MaxAppendEntries = n.config.MaxAppendEntries
	rc.TrailingLogs = n.config.TrailingLogs
	rc.NoSnapshotRestoreOnStart = true
	// The node itself finds out what a removal means: see followMembership.
	rc.ShutdownOnRemove = false
	// The cutter says when, by entries and by bytes, and not by the clock.
	rc.SnapshotInterval = 365 * 24 * time.Hour
	r, err := n.newRaft(rc, m, transport)
	if err != nil {
		err = fmt.Errorf("start Raft: %w", err)
		if closer, ok := transport.(raft.WithClose); ok {
			err = errors.Join(err, closer.Close())
		}
		return err
	}
	m.raft, m.transport = r, transport
	m.loops.Add(3)
	go n.followLeader(m)
	go n.watchLeadership(m)
	go n.cut(m)
	return nil
}

// newRaft is raft.NewRaft on a goroutine of its own, which does not come back when the
// log cannot store Raft's term (logStore.SetUint64).
func (n *Node) newRaft(rc *raft.Config, m *machine, transport raft.Transport) (*raft.Raft, error) {
	type made struct {
		raft *raft.Raft
		err  error
	}
	done := make(chan made, 1)
	go func() {
		ended := made{err: errors.New("the log failed")}
		defer func() { done <- ended }()
		ended.raft, ended.err = raft.NewRaft(rc, m.fsm, n.log, n.log, &snapshotStore{node: n, db: m.db}, transport)
	}()
	o := <-done
	return o.raft, o.err
}

// stopRaft stops the machine's Raft: after it nothing applies or stores. It may be
// called again.
func (m *machine) stopRaft() error {
	m.stopOnce.Do(func() {
		if m.raft != nil {
			down := m.raft.Shutdown()
			// A request to a node that does not answer would be waited for.
			if closer, ok := m.transport.(raft.WithClose); ok {
				m.stopErr = closer.Close()
			}
			// Waits for Raft's goroutines.
			if err := down.Error(); err != nil {
				m.stopErr = errors.Join(m.stopErr, fmt.Errorf("shut Raft down: %w", err))
			}
		}
		close(m.stop)
		m.loops.Wait()
	})
	return m.stopErr
}

// closeGraph closes the graph once the last snapshot is given back. Snapshots
// are counted by the graph and live as long as a question, so trying now and
// then will do.
func (m *machine) closeGraph() error {
	if m.db == nil {
		return nil
	}
	for {
		err := m.db.Close()
		if !errors.Is(err, graph.ErrSnapshotsOpen) {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}
