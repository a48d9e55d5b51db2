package cluster

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"

	peerv1 "github.com/pembadb/pemba/cluster/pemba/peer/v1"
	"github.com/pembadb/pemba/graph"
)

// What sending a state costs this node, and how long it waits for a receiver whose
// connection broke. Meanwhile the log keeps what comes behind the state.
const (
	transfersMax     = 2
	transferPatience = 30 * time.Second
	// holdPatience is how long the log is kept behind a state that was sent whole, for
	// the receiver to put it into force and to follow.
	holdPatience = time.Minute
	// stateChunkBytes is about how large a message with a part of a state is. Its
	// reading takes some milliseconds of one core.
	stateChunkBytes = 256 << 10
)

// transfers are the states that this node is sending.
type transfers struct {
	mu   sync.Mutex
	open map[string]*transfer
	sent int64 // Bytes, since the node started.
}

// A transfer is one state that is being sent to one node. It outlives the calls that
// fetch it, each of which may break.
type transfer struct {
	id     string
	to     string
	reader *graph.StateReader
	// release lets the log go that comes behind the state.
	release func()
	// call is the one that fetches, nil for none; idle closes the transfer when none
	// comes. Both are guarded by transfers.mu.
	call *sending
	idle *time.Timer
	// done says that all of it was sent.
	done bool

	// reading is held by who uses reader, which is of no use once closed is set.
	reading sync.Mutex
	closed  bool
}

// A sending is one call that fetches a state. A node has one at a time: when it calls
// again it has given the one before up, also where that one does not know it yet, since
// it waits for a receiver that took nothing or for a connection that is gone.
type sending struct{ end context.CancelCauseFunc }

// errTakenOver is the end of a call whose transfer goes on in a newer one. Its receiver
// may ask again, should this have been the newer one after all.
var errTakenOver = fmt.Errorf("%w: a newer call of the same node fetches the state", ErrTooBusy)

// read returns the next part.
func (t *transfer) read(after []byte) (graph.StateChunk, error) {
	t.reading.Lock()
	defer t.reading.Unlock()
	if t.closed {
		return graph.StateChunk{}, errTransferGone
	}
	return t.reader.Chunk(after, stateChunkBytes)
}

// SendState implements peerv1.PeerServiceServer. A node that does not lead does not
// send its state: the log behind it would be another node's to keep. One that leads and
// has no agreed entry of its own term does: there may be none before the receiver has
// come so far, and all that is applied is agreed.
func (s *peerService) SendState(r *peerv1.SendStateRequest, stream grpc.ServerStreamingServer[peerv1.SendStateResponse]) error {
	n := s.node
	caller := callerID(stream.Context())
	var err error
	switch {
	case n.raft().State() != raft.Leader:
		err = ErrNotLeader
	case !n.isMember(caller):
		err = fmt.Errorf("%w: %q is none of its nodes", ErrRemoved, caller)
	default:
		err = n.sendState(stream.Context(), caller, r, stream.Send)
	}
	if err != nil && stream.Context().Err() == nil {
		if graph.IsCorruptionError(err) {
			n.fail(fmt.Errorf("send the state to %s: %w", caller, err))
		}
		return stream.Send(&peerv1.SendStateResponse{Part: &peerv1.SendStateResponse_Failure{Failure: toFailure(err)}})
	}
	return nil
}

func (n *Node) sendState(ctx context.Context, to string, r *peerv1.SendStateRequest, send func(*peerv1.SendStateResponse) error) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	call := &sending{end: end}
	t, err := n.beginTransfer(call, to, r.GetTransfer())
	if err != nil {
		return err
	}
	done := false
	defer func() { n.pauseTransfer(t, call, done) }()
	header := t.reader.Header()
	if header.Revision < graph.Revision(r.GetRevision()) {
		n.giveUpTransfer(t, call)
		return fmt.Errorf("%w: a state of revision %d or later is asked for, and this one is of %d", ErrRevisionAhead, r.GetRevision(), header.Revision)
	}
	// A receiver that takes nothing holds up neither the log nor the tables for ever.
	// Sending ends then, and so does the call when its connection does.
	stalled := time.AfterFunc(transferPatience, func() { n.giveUpTransfer(t, call) })
	defer stalled.Stop()
	err = send(&peerv1.SendStateResponse{Part: &peerv1.SendStateResponse_Header{Header: &peerv1.StateHeader{
		Transfer: t.id, Header: header.AppendBinary(nil), BytesEstimate: t.reader.SizeEstimate(),
	}}})
	limit := rate.Inf
	if n.config.StateBytesPerSecond > 0 {
		limit = rate.Limit(n.config.StateBytesPerSecond)
	}
	pace := rate.NewLimiter(limit, maxChunkBytes)
	for after := r.GetAfter(); err == nil && !done; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var chunk graph.StateChunk
		if chunk, err = t.read(after); err != nil {
			done = !errors.Is(err, errTransferGone)
			return err
		}
		encoded := chunk.AppendBinary(nil)
		if err = pace.WaitN(ctx, min(len(encoded), maxChunkBytes)); err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return err
		}
		err = send(&peerv1.SendStateResponse{Part: &peerv1.SendStateResponse_Chunk{Chunk: encoded}})
		stalled.Reset(transferPatience)
		after, done = chunk.Last, chunk.Done && err == nil
		n.transfers.mu.Lock()
		n.transfers.sent += int64(len(encoded))
		n.transfers.mu.Unlock()
	}
	return err
}

// maxChunkBytes is more than a chunk has, but for one with a very large record.
const maxChunkBytes = 1 << 20

// beginTransfer returns the transfer of an id, or a new one, for a call. An older call of
// the same node does not hold it up.
func (n *Node) beginTransfer(call *sending, to, id string) (*transfer, error) {
	ts := &n.transfers
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if id != "" {
		t := ts.open[id]
		if t == nil || t.to != to {
			return nil, fmt.Errorf("%w: it is not known here any more; begin again", errTransferGone)
		}
		if t.call != nil {
			t.call.end(errTakenOver)
		}
		t.call = call
		t.idle.Stop()
		return t, nil
	}
	for _, t := range ts.open {
		if t.to == to { // It begins again, and does not want the old one.
			n.endTransfer(t)
		}
	}
	if len(ts.open) >= transfersMax {
		return nil, fmt.Errorf("%w: %d states are being sent, and more are not", ErrTooBusy, len(ts.open))
	}
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, fmt.Errorf("make up an id of the transfer: %w", err)
	}
	t := &transfer{id: hex.EncodeToString(random[:]), to: to, call: call}
	// Held before the state is read, which is then of this revision or later.
	t.release = n.log.Hold(uint64(n.db().Applied().Revision))
	var err error
	if t.reader, err = n.db().ReadState(); err != nil {
		t.release()
		return nil, err
	}
	t.idle = time.AfterFunc(time.Hour, func() {
		ts.mu.Lock()
		defer ts.mu.Unlock()
		if t.call == nil && ts.open[t.id] == t {
			n.endTransfer(t)
		}
	})
	t.idle.Stop()
	if ts.open == nil {
		ts.open = map[string]*transfer{}
	}
	ts.open[t.id] = t
	n.config.Logger.Info("sending the state", "node", n.dir.nodeID, "to", to, "revision", t.reader.Header().Revision, "bytes_estimate", t.reader.SizeEstimate())
	return t, nil
}

// errTransferGone says that a transfer has to be begun again.
var errTransferGone = errors.New("the transfer of the state cannot be gone on with")

// pauseTransfer ends a call that fetched, and the transfer if it is done. Once another
// call has the transfer, nothing of it is this one's to say.
func (n *Node) pauseTransfer(t *transfer, call *sending, done bool) {
	ts := &n.transfers
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if t.call != call {
		return
	}
	t.call = nil
	t.done = done
	if done || n.usable() != nil {
		n.endTransfer(t)
		return
	}
	t.idle.Reset(transferPatience)
}

// giveUpTransfer ends a transfer in the middle of a call, unless another has it.
func (n *Node) giveUpTransfer(t *transfer, call *sending) {
	n.transfers.mu.Lock()
	defer n.transfers.mu.Unlock()
	if n.transfers.open[t.id] == t && t.call == call {
		n.config.Logger.Warn("a node takes no more of the state that it is sent", "node", n.dir.nodeID, "to", t.to)
		n.endTransfer(t)
	}
}

// endTransfer gives back what a transfer holds. It needs transfers.mu, and does nothing
// for one that has ended.
func (n *Node) endTransfer(t *transfer) {
	if n.transfers.open[t.id] != t {
		return
	}
	delete(n.transfers.open, t.id)
	t.idle.Stop()
	if t.call != nil {
		t.call.end(errTransferGone)
	}
	if t.done {
		time.AfterFunc(holdPatience, t.release)
	} else {
		t.release()
	}
	// Apart, for a call may be reading just now.
	go func() {
		t.reading.Lock()
		defer t.reading.Unlock()
		t.closed = true
		if err := t.reader.Close(); err != nil {
			n.config.Logger.Warn("end the sending of a state", "node", n.dir.nodeID, "to", t.to, "error", err)
		}
	}()
	n.config.Logger.Info("the sending of the state has ended", "node", n.dir.nodeID, "to", t.to)
}

// endTransfers ends all that no call is fetching.
func (n *Node) endTransfers() {
	ts := &n.transfers
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for _, t := range ts.open {
		if t.call == nil {
			n.endTransfer(t)
		}
	}
}
