package peer

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

const (
	// idleConnsMax is how many idle connections to a peer are kept, for heartbeats
	// and for the rest each. Raft has one heartbeat and one append at a time for each
	// peer, and one vote when it has neither. When a peer starts again, each idle
	// connection costs the RPC that finds it dead.
	idleConnsMax = 1

	// entryBytes is what an entry has on the wire besides its data: the names of its
	// fields, its index, term, type and time. TestEntryBytes holds that it is enough.
	entryBytes = 128
)

// Raft returns what hashicorp/raft speaks through. As long as it is open, every
// call returns the same one; raft.Raft closes it when it is shut down, and then the
// next call makes a new one, for a new Raft on the same port. Meanwhile the peers'
// connections for Raft are refused. After Close what it returns is closed, too.
//
// The addresses in Raft's configuration are host:port and nothing else. A request
// that Raft addresses to a server goes to the node with that server's id at that
// server's address, or nowhere.
func (t *Transport) Raft() raft.Transport {
	t.mu.Lock()
	if t.raft == nil || t.raft.closed && !t.closed {
		t.raft = newRaftTransport(t)
	}
	r, closed := t.raft, t.closed
	t.mu.Unlock()
	if closed {
		_ = r.Close()
	}
	return r
}

// raftTransport is a raft.Transport around a raft.NetworkTransport. It adds the
// ids of nodes to addresses, bounds the bytes of a request, counts, and ends
// cleanly.
type raftTransport struct {
	*raft.NetworkTransport
	transport *Transport
	door      *door
	local     string

	// ctx ends with Close, and with it every dial.
	ctx    context.Context
	cancel context.CancelFunc

	// closed is guarded by transport.mu: after it is set there are no new
	// connections.
	closed bool

	// handling is held shared by heartbeats while they are handled, which happens
	// outside of Raft's own goroutines. Raft's shutdown does not wait for them; Close
	// does. ended is guarded by it.
	handling sync.RWMutex
	ended    bool
}

// Raft looks for these by type assertion.
var (
	_ raft.Transport   = (*raftTransport)(nil)
	_ raft.WithPreVote = (*raftTransport)(nil)
	_ raft.WithClose   = (*raftTransport)(nil)
)

// newRaftTransport is called with the lock of t held.
func newRaftTransport(t *Transport) *raftTransport {
	r := &raftTransport{
		transport: t,
		door:      newDoor(t.listener.Addr()),
		local:     t.advertised(),
	}
	r.ctx, r.cancel = context.WithCancel(t.ctx)
	r.NetworkTransport = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:  stream{r.door, r},
		MaxPool: idleConnsMax,
		// No pipelining: it may stay wedged behind a follower whose disk hung, and
		// replicateTo is what rereads the entries of a request that was cut.
		MaxRPCsInFlight: 1,
		Timeout:         t.config.Timeout,
		Logger:          transportLogger{hclog.NewNullLogger(), t.config.Logger, func() bool { return r.ctx.Err() != nil }},
	})
	return r
}

// Close implements raft.WithClose. It closes the connections of this Raft in both
// directions, and returns when no heartbeat is being handled any more: nothing
// reaches into the stores below Raft after it. The port stays open.
func (r *raftTransport) Close() error {
	r.transport.mu.Lock()
	r.closed = true
	r.transport.mu.Unlock()
	r.cancel()
	_ = r.NetworkTransport.Close() // never fails; and our listener is a door
	r.transport.killAll(func(c *conn) bool { return c.owner == r })
	r.handling.Lock()
	r.ended = true
	r.handling.Unlock()
	// The pool holds connections that are closed, and their buffers.
	r.CloseStreams()
	return nil
}

// SetHeartbeatHandler implements raft.Transport.
func (r *raftTransport) SetHeartbeatHandler(handle func(raft.RPC)) {
	if handle == nil {
		r.NetworkTransport.SetHeartbeatHandler(nil)
		return
	}
	r.NetworkTransport.SetHeartbeatHandler(r.untilClosed(handle))
}

// untilClosed returns a handler that Close waits for, and that does nothing
// afterwards.
func (r *raftTransport) untilClosed(handle func(raft.RPC)) func(raft.RPC) {
	return func(rpc raft.RPC) {
		r.handling.RLock()
		defer r.handling.RUnlock()
		// Without an answer the connection ends, which it has to.
		if !r.ended {
			handle(rpc)
		}
	}
}

// LocalAddr implements raft.Transport. It is the address at which others reach this
// node.
func (r *raftTransport) LocalAddr() raft.ServerAddress { return raft.ServerAddress(r.local) }

// EncodePeer implements raft.Transport.
func (r *raftTransport) EncodePeer(_ raft.ServerID, addr raft.ServerAddress) []byte {
	return []byte(addr)
}

// AppendEntries implements raft.Transport. It may send fewer entries than it is
// given, and then takes the rest out of the request.
func (r *raftTransport) AppendEntries(id raft.ServerID, addr raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	rpc := AppendEntries
	if isHeartbeat(args) {
		rpc = Heartbeat
	} else {
		cut(args, r.transport.config.RPCBytesMax)
	}
	return r.call(rpc, id, addr, func(to raft.ServerAddress) error {
		return r.NetworkTransport.AppendEntries(id, to, args, resp)
	})
}

// RequestVote implements raft.Transport.
func (r *raftTransport) RequestVote(id raft.ServerID, addr raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return r.call(RequestVote, id, addr, func(to raft.ServerAddress) error {
		return r.NetworkTransport.RequestVote(id, to, args, resp)
	})
}

// RequestPreVote implements raft.WithPreVote.
func (r *raftTransport) RequestPreVote(id raft.ServerID, addr raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return r.call(RequestPreVote, id, addr, func(to raft.ServerAddress) error {
		return r.NetworkTransport.RequestPreVote(id, to, args, resp)
	})
}

// InstallSnapshot implements raft.Transport.
func (r *raftTransport) InstallSnapshot(id raft.ServerID, addr raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	return r.call(InstallSnapshot, id, addr, func(to raft.ServerAddress) error {
		return r.NetworkTransport.InstallSnapshot(id, to, args, resp, data)
	})
}

// TimeoutNow implements raft.Transport.
func (r *raftTransport) TimeoutNow(id raft.ServerID, addr raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return r.call(TimeoutNow, id, addr, func(to raft.ServerAddress) error {
		return r.NetworkTransport.TimeoutNow(id, to, args, resp)
	})
}

// isHeartbeat reports what NetworkTransport.handleCommand of the other side will
// take for a heartbeat.
func isHeartbeat(args *raft.AppendEntriesRequest) bool {
	return args.Term != 0 && len(args.Addr) > 0 && args.PrevLogEntry == 0 && args.PrevLogTerm == 0 &&
		len(args.Entries) == 0 && args.LeaderCommitIndex == 0
}

// cut takes entries off the end of a request until the others have at most
// bytesMax, or one is left.
//
// Raft allows that without having been asked: replicateTo hands the same request,
// after it was answered, to updateLastAppended, which takes the index of the last
// of req.Entries as replicated and the next one as the next to send. (So does
// pipelineSend, which is never reached here.) Then replicateTo goes round while
// nextIndex is not beyond the index it was asked for, and setupAppendEntries fills
// the request anew, the entries that were cut off among the rest.
//
// The commit index is bounded by what the request shows to agree. A follower
// commits up to the least of the leader's commit index and its own last index
// (raft.go, appendEntries), where the paper says the last *new* entry; in a request
// that ends below the follower's own last entry, that could be an entry which the
// leader has not compared yet. A smaller commit index is always allowed.
func cut(args *raft.AppendEntriesRequest, bytesMax int) {
	size := 0
	for i, entry := range args.Entries {
		size += len(entry.Data) + len(entry.Extensions) + entryBytes
		if i > 0 && size > bytesMax {
			clear(args.Entries[i:]) // let go of them while the rest is sent
			args.Entries = args.Entries[:i]
			break
		}
	}
	agreed := args.PrevLogEntry
	if n := len(args.Entries); n > 0 {
		agreed = args.Entries[n-1].Index
	}
	// Zero would make a heartbeat of it, which takes another way.
	if agreed > 0 {
		args.LeaderCommitIndex = min(args.LeaderCommitIndex, agreed)
	}
}

// call sends an RPC to a peer, and counts it.
func (r *raftTransport) call(rpc RPC, id raft.ServerID, addr raft.ServerAddress, send func(raft.ServerAddress) error) error {
	if err := checkTarget(r.transport.config.NodeID, target{string(id), string(addr)}); err != nil {
		return fmt.Errorf("%s: %w", rpc, err)
	}
	p := r.transport.peer(string(id))
	counters := &p.rpcs[rpc]
	to := encodeTarget(rpc, target{string(id), string(addr)})
	once := func() error {
		counters.sent.Add(1)
		counters.inFlight.Add(1)
		start := time.Now()
		err := send(to)
		counters.inFlight.Add(-1)
		if err != nil {
			counters.failed.Add(1)
			err = fmt.Errorf("%s to node %s at %s: %w", rpc, id, addr, err)
			p.failed(err)
			return err
		}
		p.answered(rpc, time.Since(start))
		return nil
	}
	if intercept := r.transport.config.Intercept; intercept != nil {
		return intercept(rpc, string(id), string(addr), once)
	}
	return once()
}

// NetworkTransport gives its StreamLayer only an address to dial, and keeps idle
// connections by address. So what it gets for an address is all that matters: the
// id, since a connection is to a node and not to a place; and whether it is for
// heartbeats, since those have connections with a deadline of their own. Whatever
// is in an id, this can be taken apart again, for an address has no "@"
// (checkTarget).
const (
	heartbeatLane = "heartbeat/"
	commonLane    = "common/"
)

func encodeTarget(rpc RPC, to target) raft.ServerAddress {
	lane := commonLane
	if rpc == Heartbeat {
		lane = heartbeatLane
	}
	return raft.ServerAddress(lane + to.id + "@" + to.addr)
}

func decodeTarget(s raft.ServerAddress) (to target, heartbeats bool, err error) {
	lane, rest, _ := strings.Cut(string(s), "/")
	at := strings.LastIndexByte(rest, '@')
	if at < 0 {
		return target{}, false, fmt.Errorf("%q is not an address that was made here", s)
	}
	return target{rest[:at], rest[at+1:]}, lane+"/" == heartbeatLane, nil
}

// stream is the raft.StreamLayer: the door, and dialing.
type stream struct {
	*door
	raft *raftTransport
}

// Dial implements raft.StreamLayer.
func (s stream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	to, heartbeats, err := decodeTarget(address)
	if err != nil {
		return nil, err
	}
	var deadlineMax time.Duration
	if heartbeats {
		deadlineMax = heartbeatTimeout
	}
	ctx, cancel := context.WithTimeout(s.raft.ctx, timeout)
	defer cancel()
	c, err := s.raft.transport.dial(ctx, kindRaft, to, s.raft, deadlineMax)
	if s.raft.ctx.Err() != nil {
		if err == nil {
			c.kill()
		}
		return nil, raft.ErrTransportShutdown
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}
