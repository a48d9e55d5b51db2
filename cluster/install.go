package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	peerv1 "github.com/pembadb/pemba/cluster/pemba/peer/v1"
	"github.com/pembadb/pemba/graph"
)

// An installer is told when a leader has no log any more that this node could go on
// with, and which node has the state.
type installer struct {
	wake  chan struct{} // Has room for one.
	ended chan struct{} // Closed when install returned; nil before it was started.

	mu     sync.Mutex
	wanted *stateToken // The newest; nil for none.

	// What is being received, for those who look from outside.
	received int64 // Bytes since the node started.
	installs int   // States that came into force.

	// estimate is about how many bytes the last state has of which a header came; zero
	// before that. It belongs to the goroutine of install.
	estimate int64

	// replaced are the machines that were, until they are closed.
	replaced sync.WaitGroup
}

// want has a state fetched.
func (i *installer) want(token stateToken) {
	i.mu.Lock()
	i.wanted = &token
	i.mu.Unlock()
	nudge(i.wake)
}

// wantsFromOther reports whether another node than the one given has told of its state since
// a token was last taken.
func (i *installer) wantsFromOther(node string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.wanted != nil && i.wanted.node != node
}

func (i *installer) take() *stateToken {
	i.mu.Lock()
	defer i.mu.Unlock()
	token := i.wanted
	i.wanted = nil
	return token
}

// install fetches states and puts them into force. The state that this node has
// answers until then, and what reads it finishes undisturbed. When a fetch fails, the
// leader's next token says to begin again.
func (n *Node) install() {
	defer close(n.installer.ended)
	ctx, cancel := n.untilStop()
	defer cancel()
	pause := fetchRoomPauseMin
	for {
		select {
		case <-n.stop:
			return
		case <-n.installer.wake:
		}
		token := n.installer.take()
		if token == nil || token.isHeldBy(n.db().Applied().Revision) {
			continue
		}
		start := time.Now()
		folder, header, err := n.fetchState(ctx, *token)
		if err == nil {
			err = n.useState(ctx, folder, header)
		}
		switch {
		case err == nil:
			pause = fetchRoomPauseMin
			n.config.Logger.Info("a state that was sent is in force", "node", n.dir.nodeID, "from", token.node,
				"revision", header.Revision, "took", time.Since(start))
		case ctx.Err() != nil:
			return
		case graph.IsCorruptionError(err):
			n.fail(fmt.Errorf("install a state: %w", err))
			return
		default:
			n.config.Logger.Warn("the state could not be fetched; it is tried again", "node", n.dir.nodeID, "from", token.node, "error", err)
			if errors.Is(err, ErrDiskFull) {
				if !n.sleep(pause) {
					return
				}
				pause = min(2*pause, fetchRoomPauseMax)
			}
		}
	}
}

// The retries of a fetch whose connection broke.
const (
	fetchTriesMax = 20
	fetchPause    = 500 * time.Millisecond
)

// How long a fetch that found too little space is not tried again, at first and at most;
// twice as long after each time. The leader tells of its state all the time, and sends as
// much of it each time as there is room for.
const (
	fetchRoomPauseMin = time.Second
	fetchRoomPauseMax = time.Minute
)

// fetchState receives the state of another node into a folder of its own.
func (n *Node) fetchState(ctx context.Context, token stateToken) (folder string, header graph.StateHeader, err error) {
	f := &fetch{node: n, from: token.node, revision: token.revision}
	defer func() { err = errors.Join(err, f.close()) }()
	if n.installer.estimate > 0 { // Else the sender must be asked, for the message.
		if err := f.checkRoom(0); err != nil {
			return "", header, fmt.Errorf("fetch the state from %s: %w", token.node, err)
		}
	}
	for try := 0; ; try++ {
		before := f.records()
		done, err := f.receive(ctx)
		if done {
			return f.folder, f.header, nil
		}
		if f.records() > before {
			try = 0 // It comes on.
		}
		// Where another node leads by now, the one that has the log behind this state may
		// never be heard of again, and the one that leads may wait for this node.
		if ctx.Err() != nil || f.lasting(err) || n.installer.wantsFromOther(token.node) || try == fetchTriesMax {
			return "", header, fmt.Errorf("fetch the state from %s: %w", token.node, err)
		}
		n.config.Logger.Info("the sending of the state broke; going on", "node", n.dir.nodeID, "from", token.node, "error", err)
		if !n.sleep(fetchPause) {
			return "", header, ErrShuttingDown
		}
	}
}

// A fetch is a state that is being received.
type fetch struct {
	node     *Node
	from     string
	revision graph.Revision
	// transfer is what the sender calls it; empty before it began.
	transfer string
	folder   string
	header   graph.StateHeader
	writer   *graph.StateWriter // Nil before it began.
	// broken says that the writer can only be closed.
	broken bool
}

func (f *fetch) records() uint64 {
	if f.writer == nil {
		return 0
	}
	return f.writer.Total().Records
}

// judge notes when the writer is of no more use: after an error of the disk, say.
func (f *fetch) judge(err error) error {
	f.broken = f.broken || !errors.Is(err, graph.ErrChunkDamaged) && !errors.Is(err, graph.ErrChunkMisplaced)
	return err
}

// lasting reports whether going on with the same transfer is of no use.
func (f *fetch) lasting(err error) bool {
	var format *graph.FormatError
	var answered *peerError
	return f.broken || errors.As(err, &format) || errors.As(err, &answered) && !errors.Is(err, ErrTooBusy) ||
		errors.Is(err, graph.ErrStateDiffers) || errors.Is(err, ErrDiskFull) || graph.IsCorruptionError(err)
}

// checkRoom returns an ErrDiskFull when there is no room for so many bytes more. What
// writes need stays free: the node has a log to keep meanwhile, and without the space
// for a vote it would stop.
func (f *fetch) checkRoom(more int) error {
	room := &f.node.room
	err := room.check(int64(more))
	if !errors.Is(err, ErrDiskFull) {
		return err
	}
	stats, lookErr := room.look()
	if lookErr != nil {
		return lookErr
	}
	return fmt.Errorf("%w; the state that is to come has about %d bytes, so that some %d should be free, "+
		"beside the state that is there", err, f.node.installer.estimate, room.bytesMin(stats)+f.node.installer.estimate)
}

// receive makes one call for what is still missing.
func (f *fetch) receive(ctx context.Context) (done bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	client, err := f.client()
	if err != nil {
		return false, err
	}
	request := &peerv1.SendStateRequest{Transfer: f.transfer, Revision: uint64(f.revision)}
	if f.writer != nil {
		request.After = f.writer.After()
	}
	stream, err := client.SendState(ctx, request)
	if err != nil {
		return false, err
	}
	// A sender that hangs is asked again.
	stalled := time.AfterFunc(transferPatience, cancel)
	defer stalled.Stop()
	for {
		message, err := stream.Recv()
		stalled.Reset(transferPatience)
		if err != nil {
			return false, err
		}
		switch part := message.GetPart().(type) {
		case *peerv1.SendStateResponse_Failure:
			return false, fromFailure(part.Failure)
		case *peerv1.SendStateResponse_Header:
			if err := f.begin(part.Header); err != nil {
				return false, err
			}
		case *peerv1.SendStateResponse_Chunk:
			if f.writer == nil {
				return false, errors.New("a part of a state came before its header")
			}
			if err := f.checkRoom(len(part.Chunk)); err != nil {
				return false, err
			}
			chunk, err := graph.DecodeStateChunk(part.Chunk)
			if err != nil {
				return false, err
			}
			if err := f.writer.Write(chunk); err != nil {
				return false, f.judge(err)
			}
			f.node.installer.mu.Lock()
			f.node.installer.received += int64(len(part.Chunk))
			f.node.installer.mu.Unlock()
			if chunk.Done {
				if err := f.writer.Finish(chunk.Total); err != nil {
					return false, f.judge(err)
				}
				f.writer = nil
				return true, nil
			}
		default:
			return false, errors.New("a part of a state is of a kind that this version does not know")
		}
	}
}

// client returns the calls of the sender, wherever it is by now.
func (f *fetch) client() (peerv1.PeerServiceClient, error) {
	if leader, known := f.node.leader(); known && string(leader.ID) == f.from {
		return f.node.client(leader)
	}
	server, found := memberOf(f.node.configuration(), f.from)
	if !found {
		return nil, fmt.Errorf("the node %q that has the state is not known here", f.from)
	}
	return f.node.client(server)
}

// begin makes the folder, or finds out that the transfer goes on.
func (f *fetch) begin(h *peerv1.StateHeader) error {
	header, err := graph.DecodeStateHeader(h.GetHeader())
	if err != nil {
		return err
	}
	if f.writer != nil {
		if h.GetTransfer() != f.transfer || header != f.header {
			return fmt.Errorf("%w: another state came", graph.ErrStateDiffers)
		}
		return nil
	}
	if id := f.node.ClusterID(); header.ClusterID != id {
		return fmt.Errorf("%w: the state is of cluster %x, and this node belongs to %x", graph.ErrStateDiffers, header.ClusterID, id)
	}
	if header.Revision < f.revision {
		return fmt.Errorf("%w: the state is of revision %d, and one of %d or later was asked for", graph.ErrStateDiffers, header.Revision, f.revision)
	}
	folder := sentFolder(header.Revision)
	if folder == f.node.machine.Load().folder {
		return fmt.Errorf("%w: the state is of revision %d, and the one in force came from there too", graph.ErrStateDiffers, header.Revision)
	}
	f.node.installer.estimate = h.GetBytesEstimate()
	if err := f.checkRoom(0); err != nil {
		return err
	}
	config := f.node.graphConfig(f.node.dir.folder(folder))
	config.OnFatal = nil // Its errors come back from what is called.
	if err := f.node.removeFolder(folder); err != nil {
		return err
	}
	writer, err := graph.CreateState(config, header)
	if err != nil {
		return err
	}
	f.writer, f.transfer, f.folder, f.header = writer, h.GetTransfer(), folder, header
	f.node.config.Logger.Info("receiving a state", "node", f.node.dir.nodeID, "revision", header.Revision, "bytes_estimate", h.GetBytesEstimate())
	return nil
}

// close gives up what is not complete.
func (f *fetch) close() error {
	if f.writer == nil {
		return nil
	}
	return errors.Join(f.writer.Close(), f.node.removeFolder(f.folder))
}

// useState puts a received state into force in place of the one that this node has.
//
// Raft is stopped meanwhile: from here on nothing is stored in the log. Then it is
// decided what becomes of the log. If it has the entry of the state's revision, with
// the same term, all before it is the same as what made the state, and all behind it
// stays, since this node may have said that it has it. Otherwise nothing behind that
// revision can be agreed by way of this node, and the log is wiped.
func (n *Node) useState(ctx context.Context, folder string, header graph.StateHeader) error {
	old := n.machine.Load()
	if old.db.Applied().Revision >= header.Revision {
		return n.removeFolder(folder) // The log came further meanwhile.
	}
	err := old.stopRaft()
	// From here on the node has no Raft: whatever fails must stop it.
	if err == nil {
		err = n.replaceMachine(ctx, old, folder, header)
	}
	if err != nil {
		if ctx.Err() != nil {
			return err // It is being closed.
		}
		err = fmt.Errorf("put the state of revision %d into force: %w", header.Revision, err)
		n.fail(err)
		return err
	}
	return nil
}

func (n *Node) replaceMachine(ctx context.Context, old *machine, folder string, header graph.StateHeader) error {
	if applied := old.db.Applied().Revision; applied >= header.Revision {
		// The log came further than the state meanwhile.
		again, err := n.openAgain(old)
		if err != nil {
			return err
		}
		n.machine.Store(again)
		return n.removeFolder(folder)
	}
	// Before anything that cannot be taken back: a state that does not open is none.
	m, err := n.openMachine(ctx, folder)
	if err != nil {
		return err
	}
	if at := m.db.Applied(); at.Revision != header.Revision || at.Term != header.Term {
		return errors.Join(fmt.Errorf("it is of revision %d and term %d", at.Revision, at.Term), m.db.Close())
	}
	kept, err := n.log.holds(uint64(header.Revision), header.Term)
	if err == nil {
		err = n.dir.sync()
	}
	switch {
	case err != nil:
	case kept:
		err = n.dir.useState(folder, 0)
	default:
		if err = n.dir.useState(folder, header.Revision); err == nil {
			err = n.finishInstall(uint64(header.Revision))
		}
	}
	m.fsm.inForce = make(chan struct{})
	if err == nil {
		n.log.base.Store(&logBase{uint64(header.Revision), header.Term})
		err = n.startRaft(m)
	}
	if err != nil {
		return errors.Join(err, m.db.Close())
	}
	n.machine.Store(m)
	n.installer.mu.Lock()
	n.installer.installs++
	n.installer.mu.Unlock()
	n.noteState(m)
	close(m.fsm.inForce)
	n.installer.replaced.Go(func() {
		err := old.closeGraph()
		if err == nil {
			err = n.removeFolder(old.folder)
		}
		if err != nil {
			n.config.Logger.Warn("remove the state that was replaced", "node", n.dir.nodeID, "folder", old.folder, "error", err)
		}
	})
	return nil
}

// openAgain starts another Raft on a machine whose own was stopped.
func (n *Node) openAgain(old *machine) (*machine, error) {
	m := &machine{folder: old.folder, db: old.db, engine: old.engine, fsm: old.fsm, stop: make(chan struct{})}
	return m, n.startRaft(m)
}

// finishInstall wipes the log behind a state that was put into force, and records
// that this was done. A crash in between has it done by the next start.
func (n *Node) finishInstall(revision uint64) error {
	n.log.newest.clear()
	if err := n.log.Wipe(revision + 1); err != nil {
		return fmt.Errorf("wipe the log: %w", err)
	}
	return n.dir.useState(n.dir.graph, 0)
}

// noteState tells those who know something of the old state that all may be
// different. Nothing is applied meanwhile.
func (n *Node) noteState(m *machine) {
	for _, info := range m.db.Stores() {
		n.collector.forget(info.ID)
		n.remover.note(info.ID)
	}
	n.watches.mu.Lock()
	for _, t := range n.watches.tails { // Also of stores that are gone.
		t.note()
	}
	n.watches.mu.Unlock()
	// When all of them know: a tail that nothing was noted to takes it that its store was
	// not changed up to here.
	n.watches.note(0, m.db.Applied())
	n.progress.broadcast()
}

// closeReplaced waits until the machines are closed that were replaced.
func (n *Node) closeReplaced() { n.installer.replaced.Wait() }

// holds reports whether the log has an entry of a term.
func (l *logStore) holds(index, term uint64) (bool, error) {
	first, err := l.FirstIndex()
	if err != nil {
		return false, err
	}
	last, err := l.LastIndex()
	if err != nil || first == 0 || index < first || index > last {
		return false, err
	}
	var entry raft.Log
	if err := l.GetLog(index, &entry); err != nil {
		return false, err
	}
	return entry.Term == term, nil
}
