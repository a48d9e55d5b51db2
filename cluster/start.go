package cluster

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"github.com/pembadb/pemba/cluster/badgerlog"
	"github.com/pembadb/pemba/graph"
)

// Open starts the node whose data is in config.DataDir. An empty or missing
// directory becomes a cluster of one or, with config.Join, a member of another
// one; a used one is resumed, and a start that a crash cut short is finished.
//
// When Open returns, a node that is alone leads and has applied everything that
// was ever acknowledged. One that has peers may have neither yet: Ready says when
// it may be given work, and until then it answers nothing as newest that could be from
// an older state than what it answered before. ctx bounds how long Open may take:
// some hundred milliseconds, and a second for some ten thousand entries to replay.
//
// With config.InMemory there is no directory, and an empty one each time.
//
// It refuses a directory that another process holds, that was written in
// another format, or whose parts do not belong together, and says which.
func Open(ctx context.Context, config Config) (*Node, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	config = config.withDefaults()
	start := time.Now()
	if config.NoBootstrap && config.Join == nil && !config.InMemory {
		if err := refuseEmpty(config.DataDir); err != nil {
			return nil, err
		}
	}
	openDir := openDataDir
	if config.InMemory {
		openDir = newMemoryDir
	}
	dir, err := openDir(config.DataDir, config.NodeID)
	if err != nil {
		return nil, err
	}
	n := newNode(config, dir)
	if !config.InMemory && !config.recovering {
		err = dir.checkRecovery()
	}
	if err == nil {
		err = n.start(ctx)
	}
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
	status := n.db().Applied()
	config.Logger.Info("the node runs", "node", dir.nodeID, "dir", dir.path, "cluster", fmt.Sprintf("%x", n.ClusterID()),
		"revision", status.Revision, "term", n.raft().CurrentTerm(), "took", time.Since(start))
	return n, nil
}

// newNode makes a node of which nothing is open yet but the directory. Its Close gives
// back what is opened.
func newNode(config Config, dir *dataDir) *Node {
	n := &Node{
		config: config, dir: dir, opening: true,
		failed: make(chan struct{}), stop: make(chan struct{}),
		closing: make(chan struct{}), closed: make(chan struct{}),
		changingMembers: make(chan struct{}, 1),
	}
	n.installer.wake = make(chan struct{}, 1)
	n.fitness.wake = make(chan struct{}, 1)
	if cluster := dir.member.cluster; cluster != [16]byte{} {
		n.joined.Store(&cluster)
	}
	if config.InMemory {
		n.memory = vfs.NewMem()
	}
	return n
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
	if err := n.dir.removeStates(); err != nil {
		return err
	}
	if n.config.recovering {
		if err := n.beginRecovery(); err != nil {
			return fmt.Errorf("begin the recovery: %w", err)
		}
	}
	configuration, err := n.replay(ctx)
	if err != nil {
		return err
	}
	if err := n.checkConfiguration(configuration); err != nil {
		return err
	}
	n.warnOfJoin(configuration)
	n.chooseAddr(configuration)
	if n.config.RaftAddr == "" && len(configuration.Servers) == 0 {
		return fmt.Errorf("the node joined a cluster and has nothing of it yet, so that it must be told again where the others reach it: Config.RaftAddr is empty (--raft-addr)")
	}
	if err := n.openPeers(); err != nil {
		return err
	}
	if err := n.startRaft(n.machine.Load()); err != nil {
		return err
	}
	if n.peers != nil {
		n.peers.serve(n)
	}
	if isAlone(configuration, n.dir.nodeID) {
		// It leads before anybody else can join, so that a cluster has its
		// identity before it has a second member.
		if err := n.await(ctx, n.leads); err != nil {
			return fmt.Errorf("wait for the first entry of a new term: %w", err)
		}
		if err := n.initialize(ctx); err != nil {
			return err
		}
		n.current.Store(true)
	} else if err := n.join(ctx, len(configuration.Servers) == 0); err != nil {
		return err
	}
	if n.peers != nil {
		n.installer.ended = make(chan struct{})
		go n.install()
		n.loops.Add(3)
		go n.followFitness()
		go n.followMembership()
		go n.compareChecksums()
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
	plantLog(&logConfig)
	// Nothing is stored before the graph is open.
	logConfig.CommitIndex = func() uint64 { return uint64(n.db().Applied().Revision) }
	log, err := badgerlog.Open(logConfig)
	if err != nil {
		return err
	}
	n.log = &logStore{Log: log, durable: func() uint64 { return uint64(n.db().Durable().Revision) }, fail: n.fail}
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

	m, err := n.openMachine(ctx, n.dir.graph)
	if err != nil {
		return err
	}
	n.machine.Store(m)
	n.watches.init(m.db.Applied())
	n.collector.init(n.nextEnd)
	n.remover.init()
	n.cutter.wake = make(chan struct{}, 1)
	return nil
}

// Under these Raft keeps its term, and the term and candidate of its last vote.
var (
	keyCurrentTerm  = []byte("CurrentTerm")
	keyLastVoteTerm = []byte("LastVoteTerm")
	keyLastVoteCand = []byte("LastVoteCand")
)

// reconcile refuses a log and a state that do not belong together, wipes a log
// that a new state made worthless, and makes the first entry of a new cluster.
func (n *Node) reconcile() error {
	applied := n.db().Applied()
	at := uint64(applied.Revision)
	if n.dir.installed != 0 {
		if at < uint64(n.dir.installed) {
			return fmt.Errorf("the state in %s ends at %d, but the one of revision %d was installed there", n.dir.state(), at, n.dir.installed)
		}
		// Whatever is in the log is of before.
		if err := n.finishInstall(at); err != nil {
			return err
		}
	}
	first, err := n.log.FirstIndex()
	if err != nil {
		return err
	}
	last, err := n.log.LastIndex()
	if err != nil {
		return err
	}
	if at != 0 && (first == at+1 || n.log.WipedTo() == at+1) {
		n.log.base.Store(&logBase{at, applied.Term})
	}
	switch {
	case last == 0 && at == 0:
		if n.dir.member.began {
			return fmt.Errorf("the log and the state in %s were lost or removed, and the node had begun to vote: "+
				"it could give a vote twice; remove it from the cluster, and let it join with an empty directory", n.dir.path)
		}
		if n.config.Join != nil || n.dir.member != (membership{}) {
			return nil // The entries come from the others.
		}
		if n.config.NoBootstrap {
			return emptyError(n.dir.path)
		}
		return n.bootstrap()
	case last == 0 && n.log.WipedTo() == at+1:
		return nil // The state was sent by another node, and no entry since.
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

// refuseEmpty refuses a directory that holds nothing, before an id is chosen for its node:
// it may be where a disk is to be mounted.
func refuseEmpty(path string) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return emptyError(path)
	}
	d := dataDir{path: path}
	if marked, err := d.look(); err != nil || marked {
		return err
	}
	return emptyError(path)
}

func emptyError(path string) error {
	return fmt.Errorf("the data directory %s is empty, and whether the node is to join a cluster was not said: "+
		"--join makes it a member of one, --bootstrap a new cluster; if there should be data, its disk may not be there", path)
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
		Suffrage: raft.Voter, ID: raft.ServerID(n.dir.nodeID), Address: raft.ServerAddress(cmp.Or(n.config.RaftAddr, aloneAddr)),
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
	applied := n.db().Applied()
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
		if a, ok := n.fsm().Apply(&entry).(answer); ok && a.err != nil {
			return configuration, a.err
		}
	}
	// Raft starts from what List says, and that is what is durable.
	if from <= commit {
		if _, err := n.db().Flush(); err != nil {
			return configuration, err
		}
		n.config.Logger.Info("replayed the log", "from", from, "to", commit, "last", last, "bytes", bytes, "took", time.Since(start))
	}
	return configuration, nil
}

// checkConfiguration refuses a log of a cluster that this node does not belong to.
// There may be none yet where the node joined or is to join.
func (n *Node) checkConfiguration(c raft.Configuration) error {
	if len(c.Servers) == 0 {
		if n.config.Join != nil || n.dir.member != (membership{}) {
			return nil
		}
		return fmt.Errorf("neither the state nor the log in %s names the nodes of the cluster", n.dir.path)
	}
	self, found := memberOf(c, n.dir.nodeID)
	switch {
	case !found && n.dir.member != (membership{}):
		return nil // A log that has not come so far names those who were there before.
	case !found && len(c.Servers) == 1:
		return fmt.Errorf("%w, or the log in %s is another node's: the only node that it names is %q, and the file %s names %q",
			ErrRemoved, n.dir.log(), c.Servers[0].ID, filepath.Join(n.dir.path, nodeFile), n.dir.nodeID)
	case len(c.Servers) == 1 && self.Suffrage != raft.Voter:
		return fmt.Errorf("the log in %s is of a cluster whose only node %q has no vote", n.dir.log(), n.dir.nodeID)
	}
	return nil
}

// warnOfJoin says that a node does not join what it was told to, for it has a cluster.
func (n *Node) warnOfJoin(c raft.Configuration) {
	attrs := []any{"node", n.dir.nodeID, "dir", n.dir.path, "cluster", fmt.Sprintf("%x", n.ClusterID())}
	switch {
	case n.config.Join == nil, len(c.Servers) == 0 && n.dir.member == (membership{}):
	case isAlone(c, n.dir.nodeID):
		n.config.Logger.Warn("the directory is in use, --join is not used: the node is the only one of its cluster, and joins no other", attrs...)
	default:
		n.config.Logger.Info("the directory is in use, --join is not used", attrs...)
	}
}

// isAlone reports whether a node is the only one of its cluster.
func isAlone(c raft.Configuration, id string) bool {
	return len(c.Servers) == 1 && string(c.Servers[0].ID) == id
}

// memberOf finds a node in a configuration.
func memberOf(c raft.Configuration, id string) (raft.Server, bool) {
	for _, server := range c.Servers {
		if string(server.ID) == id {
			return server, true
		}
	}
	return raft.Server{}, false
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
	if n.db().ClusterID() != [16]byte{} {
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
	stamp, now := n.db().Applied().Stamp, n.now()
	if lag := stamp.Time().Sub(now.Time()); lag > clockLagMax {
		n.config.Logger.Warn("the clock is behind the newest change: lifetimes stand still until it catches up",
			"clock", now.Time(), "newest", stamp.Time(), "behind", lag)
	}
}

// now returns the node's time.
func (n *Node) now() graph.Instant { return graph.InstantOf(n.config.Now()) }
