package cluster

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"

	"github.com/pembadb/pemba/cluster/badgerlog"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// Open starts the node whose data is in config.DataDir. An empty or missing
// directory becomes a cluster of one; a used one is resumed, and a start that a
// crash cut short is finished. When Open returns, the node leads and has
// applied everything that was ever acknowledged, so that no read is answered
// from an older state than before. ctx bounds how long that may take: some
// hundred milliseconds, and a second for some ten thousand entries to replay.
//
// With config.InMemory there is no directory, and a new cluster of one each time.
//
// It refuses a directory that another process holds, that was written in
// another format, or whose parts do not belong together, and says which.
func Open(ctx context.Context, config Config) (*Node, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	config = config.withDefaults()
	start := time.Now()
	openDir := openDataDir
	if config.InMemory {
		openDir = newMemoryDir
	}
	dir, err := openDir(config.DataDir, config.NodeID)
	if err != nil {
		return nil, err
	}
	n := &Node{
		config: config, dir: dir, opening: true,
		failed: make(chan struct{}), stop: make(chan struct{}),
		closing: make(chan struct{}), closed: make(chan struct{}),
	}
	err = n.start(ctx)
	n.mu.Lock()
	n.opening = false
	if failure := n.failure; failure != nil {
		err = failure // Whatever it led to.
	}
	n.mu.Unlock()
	if err != nil {
		err = fmt.Errorf("start the node in %s: %w", dir.path, err)
		// Without a deadline: what was opened must not be left behind, and a
		// second Open would find the directory locked.
		return nil, errors.Join(err, n.Close(context.Background()))
	}
	status := n.db.Applied()
	config.Logger.Info("the node is ready", "node", dir.nodeID, "dir", dir.path, "cluster", fmt.Sprintf("%x", n.db.ClusterID()),
		"revision", status.Revision, "term", n.raft.CurrentTerm(), "took", time.Since(start))
	return n, nil
}

// start opens the parts from the bottom up. What it leaves in n when it fails
// is what Close gives back.
func (n *Node) start(ctx context.Context) error {
	if err := n.openParts(ctx); err != nil {
		return err
	}
	if err := n.reconcile(); err != nil {
		return err
	}
	configuration, err := n.replay(ctx)
	if err != nil {
		return err
	}
	if err := n.checkConfiguration(configuration); err != nil {
		return err
	}
	if err := n.startRaft(); err != nil {
		return err
	}
	if err := n.await(ctx, n.leads); err != nil {
		return fmt.Errorf("wait for the first entry of a new term: %w", err)
	}
	if err := n.initialize(ctx); err != nil {
		return err
	}
	n.warnOfClock()
	n.loops.Add(4)
	go n.collect()
	go n.prune()
	go n.remove()
	go n.verify()
	return nil
}

// openParts opens the log and the graph, and makes what lies between. The log
// comes first because it looks for space: on a full disk Pebble's start never
// ends.
func (n *Node) openParts(ctx context.Context) error {
	logConfig := n.config.Log
	if logConfig.InMemory = n.config.InMemory; !logConfig.InMemory {
		logConfig.Dir = n.dir.log()
	}
	logConfig.Logger = n.config.Logger
	logConfig.OnFatal = n.fail
	// Nothing is stored before the graph is open.
	logConfig.CommitIndex = func() uint64 { return uint64(n.db.Applied().Revision) }
	log, err := badgerlog.Open(logConfig)
	if err != nil {
		return err
	}
	n.log = &logStore{Log: log, durable: func() uint64 { return uint64(n.db.Durable().Revision) }, fail: n.fail}
	n.room.log = log
	if err := n.room.checkStart(); err != nil {
		return err
	}

	n.entryBytesMax = n.config.EntryBytesMax
	if most := log.EntryBytesMax(); n.entryBytesMax == 0 {
		n.entryBytesMax = most
	} else if n.entryBytesMax > most {
		return fmt.Errorf("cluster: Config.EntryBytesMax is %d bytes, but the log takes at most %d in one entry; a larger Config.Log.MemTableSize allows more",
			n.entryBytesMax, most)
	}
	if n.config.ProposalBytesMax < int64(n.entryBytesMax) {
		return fmt.Errorf("cluster: Config.ProposalBytesMax is %d bytes, less than the %d that one entry may have", n.config.ProposalBytesMax, n.entryBytesMax)
	}
	n.admission = newAdmission(n.config.ProposalsMax, n.config.ProposalBytesMax)

	if err := n.openGraph(ctx); err != nil {
		return err
	}
	n.engine = engine.New(n.db, n.config.Engine)
	n.watches.init(n.db.Applied())
	n.collector.init(n.nextEnd)
	n.remover.init()
	n.cutter.wake = make(chan struct{}, 1)
	n.fsm = &fsm{
		db: n.db, engine: n.engine, changesMax: n.config.SnapshotChanges,
		fail:    n.fail,
		changed: n.noteChange,
		passed:  func(store graph.StoreID) { n.watches.note(store, n.db.Applied()) },
		advanced: func() {
			n.progress.broadcast()
			n.wakeCutter()
		},
	}
	return nil
}

// openGraph opens the graph. It does so apart, since Pebble tries for ever to
// write to a disk that fails while it starts.
func (n *Node) openGraph(ctx context.Context) error {
	config := n.config.Graph
	config.Dir = n.dir.state()
	config.Logger = n.config.Logger
	config.OnFatal = func(err error) { n.fail(fmt.Errorf("graph: %w", err)) }
	if n.config.InMemory {
		config = inMemory(config)
	} else if err := makeDirectory(config.Dir); err != nil {
		return err
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
		n.db = o.db
		return o.err
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
	return err
}

// keyCurrentTerm is under which Raft keeps its term.
var keyCurrentTerm = []byte("CurrentTerm")

// reconcile refuses a log and a state that do not belong together, and makes
// the first entry of a new cluster.
func (n *Node) reconcile() error {
	first, err := n.log.FirstIndex()
	if err != nil {
		return err
	}
	last, err := n.log.LastIndex()
	if err != nil {
		return err
	}
	applied := n.db.Applied()
	at := uint64(applied.Revision)
	switch {
	case last == 0 && at == 0:
		return n.bootstrap()
	case last < at:
		return fmt.Errorf("the log in %s ends at entry %d, but the state in %s holds everything up to %d: "+
			"the log lost its end or is not the one that made this state; it would acknowledge other entries under the same numbers",
			n.dir.log(), last, n.dir.state(), at)
	case first > at+1:
		return fmt.Errorf("the log in %s begins at entry %d, but the state in %s ends at %d: "+
			"the state lost its end or is not the one that this log made",
			n.dir.log(), first, n.dir.state(), at)
	}
	if at >= first && at != 0 {
		var entry raft.Log
		if err := n.log.GetLog(at, &entry); err != nil {
			return err
		}
		if entry.Term != applied.Term {
			return fmt.Errorf("entry %d has term %d in the log in %s, but term %d in the state in %s: they are not of the same node",
				at, entry.Term, n.dir.log(), applied.Term, n.dir.state())
		}
	}
	return nil
}

// bootstrap makes this node a cluster of one, by the entry that every Raft log
// begins with. raft.BootstrapCluster does the same, but refuses to finish after
// a crash between its two steps.
func (n *Node) bootstrap() error {
	term, err := n.log.GetUint64(keyCurrentTerm)
	if err != nil {
		return err
	}
	if term > 1 {
		return fmt.Errorf("the log in %s is empty but has come to term %d, and there is no state: both were lost or removed; "+
			"use an empty data directory", n.dir.log(), term)
	}
	if term == 0 {
		if err := n.log.Log.SetUint64(keyCurrentTerm, 1); err != nil {
			return err
		}
	}
	configuration := raft.Configuration{Servers: []raft.Server{{
		Suffrage: raft.Voter, ID: raft.ServerID(n.dir.nodeID), Address: raft.ServerAddress(n.config.RaftAddr),
	}}}
	n.config.Logger.Info("bootstrapping a cluster of one", "node", n.dir.nodeID, "dir", n.dir.path)
	return n.log.Log.StoreLog(&raft.Log{
		Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(configuration),
	})
}

// replay applies what is known to be agreed, reads what is not, and returns the
// newest configuration. Raft would do the former itself, but only once there is
// a leader, and it panics at an entry that it cannot read.
func (n *Node) replay(ctx context.Context) (raft.Configuration, error) {
	var configuration raft.Configuration
	applied := n.db.Applied()
	if applied.ConfigurationRevision != 0 {
		configuration = raft.DecodeConfiguration(applied.Configuration)
	}
	commit, err := n.log.CommitIndex()
	if err != nil {
		return configuration, err
	}
	last, err := n.log.LastIndex()
	if err != nil {
		return configuration, err
	}
	start, from := time.Now(), uint64(applied.Revision)+1
	var bytes int64
	for index := from; index <= last; index++ {
		if index%1024 == 0 && ctx.Err() != nil {
			return configuration, fmt.Errorf("replay the log, at entry %d of %d: %w", index, last, context.Cause(ctx))
		}
		var entry raft.Log
		if err := n.log.GetLog(index, &entry); err != nil {
			return configuration, err
		}
		if entry.Type == raft.LogConfiguration {
			configuration = raft.DecodeConfiguration(entry.Data)
		}
		bytes += int64(len(entry.Data))
		if index > commit {
			continue
		}
		if a, ok := n.fsm.Apply(&entry).(answer); ok && a.err != nil {
			return configuration, a.err
		}
	}
	// Raft starts from what List says, and that is what is durable.
	if from <= commit {
		if _, err := n.db.Flush(); err != nil {
			return configuration, err
		}
		n.config.Logger.Info("replayed the log", "from", from, "to", commit, "last", last, "bytes", bytes, "took", time.Since(start))
	}
	return configuration, nil
}

// checkConfiguration refuses a log that was made for another cluster than one
// of this node alone, which is all that this version runs.
func (n *Node) checkConfiguration(c raft.Configuration) error {
	if len(c.Servers) == 0 {
		return fmt.Errorf("neither the state nor the log in %s names the nodes of the cluster", n.dir.path)
	}
	if len(c.Servers) > 1 {
		return fmt.Errorf("the cluster has %d nodes; this version runs clusters of one", len(c.Servers))
	}
	if server := c.Servers[0]; string(server.ID) != n.dir.nodeID || server.Suffrage != raft.Voter {
		return fmt.Errorf("the log in %s is of the node %q, but the file %s names %q",
			n.dir.log(), server.ID, filepath.Join(n.dir.path, nodeFile), n.dir.nodeID)
	}
	return nil
}

// startRaft starts Raft and what follows its state.
func (n *Node) startRaft() error {
	// A node that is alone has no peers to speak to, and opens no port.
	_, transport := raft.NewInmemTransport(raft.ServerAddress(n.config.RaftAddr))
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(n.dir.nodeID)
	rc.Logger = newRaftLogger(n.config.Logger)
	rc.HeartbeatTimeout = n.config.ElectionTimeout
	rc.ElectionTimeout = n.config.ElectionTimeout
	rc.LeaderLeaseTimeout = n.config.ElectionTimeout / 2
	rc.MaxAppendEntries = n.config.MaxAppendEntries
	rc.TrailingLogs = n.config.TrailingLogs
	rc.NoSnapshotRestoreOnStart = true
	// The cutter says when, by entries and by bytes, and not by the clock.
	rc.SnapshotInterval = 365 * 24 * time.Hour
	r, err := raft.NewRaft(rc, n.fsm, n.log, n.log, snapshotStore{n.db}, transport)
	if err != nil {
		return errors.Join(fmt.Errorf("start Raft: %w", err), transport.Close())
	}
	n.raft = r
	n.loops.Add(2)
	go n.watchLeadership()
	go n.cut()
	return nil
}

// await waits until reached, or until the node fails or ctx ends.
func (n *Node) await(ctx context.Context, reached func() bool) error {
	err := n.progress.wait(ctx, n.failed, reached)
	if errors.Is(err, errStopped) {
		return n.usable()
	}
	return err
}

// initialize gives a new cluster its identity. The id stands in the entry, so
// that every node that applies it takes the same one. A crash before this
// leaves it to the next start.
func (n *Node) initialize(ctx context.Context) error {
	if n.db.ClusterID() != [16]byte{} {
		return nil
	}
	init := &graph.Init{}
	if _, err := rand.Read(init.ClusterID[:]); err != nil {
		return fmt.Errorf("make up a cluster id: %w", err)
	}
	result, err := n.Write(ctx, &graph.Mutation{Init: init})
	if err != nil {
		return fmt.Errorf("give the cluster its id: %w", err)
	}
	if result.Refusal != nil {
		return fmt.Errorf("give the cluster its id: %w", result.Refusal)
	}
	return nil
}

// clockLagMax is how far the clock may lag behind the newest stamp without a
// warning.
const clockLagMax = time.Minute

// warnOfClock tells of a clock that was set back: stamps never fall, so until
// it catches up all changes get the same instant, and lifetimes stand still.
func (n *Node) warnOfClock() {
	stamp, now := n.db.Applied().Stamp, n.now()
	if lag := stamp.Time().Sub(now.Time()); lag > clockLagMax {
		n.config.Logger.Warn("the clock is behind the newest change: lifetimes stand still until it catches up",
			"clock", now.Time(), "newest", stamp.Time(), "behind", lag)
	}
}

// now returns the node's time.
func (n *Node) now() graph.Instant { return graph.InstantOf(n.config.Now()) }
