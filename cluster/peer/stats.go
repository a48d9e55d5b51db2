package peer

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// RPC is a type of Raft's RPCs.
type RPC uint8

// The RPCs of Raft, as they leave a node.
const (
	// AppendEntries brings entries and the commit index.
	AppendEntries RPC = iota
	// Heartbeat is an AppendEntries with nothing in it, which the other side
	// answers without waiting for its disk.
	Heartbeat
	// RequestVote asks for a vote.
	RequestVote
	// RequestPreVote asks whether a vote would be given.
	RequestPreVote
	// InstallSnapshot brings a snapshot.
	InstallSnapshot
	// TimeoutNow asks the other side to stand for election at once.
	TimeoutNow

	// RPCTypes is how many types there are.
	RPCTypes = int(TimeoutNow) + 1
)

// String returns the name of the RPC.
func (r RPC) String() string {
	switch r {
	case AppendEntries:
		return "AppendEntries"
	case Heartbeat:
		return "Heartbeat"
	case RequestVote:
		return "RequestVote"
	case RequestPreVote:
		return "RequestPreVote"
	case InstallSnapshot:
		return "InstallSnapshot"
	case TimeoutNow:
		return "TimeoutNow"
	}
	return fmt.Sprintf("RPC(%d)", uint8(r))
}

// Stats is what happened between this node and one peer since the Transport was
// made, or since Retain forgot the peer.
type Stats struct {
	// ID is the peer's id. Empty: all peers beyond the first 1024.
	ID string
	// Addr is where the peer was dialed last; if it never was, where it came from.
	Addr string
	// Raft and Calls are what the connections of each kind carried.
	Raft, Calls Traffic
	// RPCs is what this node asked the peer's Raft, by type.
	RPCs [RPCTypes]RPCStats
	// LastSuccess is when an RPC of Raft was last answered; zero if none was.
	LastSuccess time.Time
	// LastError is the text of the last failure to connect or of an RPC, LastErrorAt
	// its time; empty and zero if there was none.
	LastError   string
	LastErrorAt time.Time
	// HeartbeatRoundTrip is the smoothed time from a heartbeat to its answer: an
	// eighth of it is the newest one's. 0 if there was none.
	HeartbeatRoundTrip time.Duration
	// RefusedIn counts the hellos of the peer that this node refused, RefusedOut those
	// of this node that the peer did. RefusedIn leaves out what came before the
	// first that was accepted.
	RefusedIn, RefusedOut uint64
}

// Traffic is what the connections of one kind carried, in both roles together,
// without the hellos and without what TLS adds.
type Traffic struct {
	// ConnsOut and ConnsIn are the open connections that this node dialed and
	// accepted.
	ConnsOut, ConnsIn int
	// BytesSent and BytesReceived are sums over open and closed connections.
	BytesSent, BytesReceived uint64
}

// RPCStats counts RPCs of one type.
type RPCStats struct {
	// Sent counts all, Failed those that had no answer or an error for an answer.
	Sent, Failed uint64
	// InFlight are those being waited for.
	InFlight int
}

// Totals is what happened at the listener, whoever came.
type Totals struct {
	// ConnsIn are the open accepted connections, HellosOpen those whose hello is
	// awaited.
	ConnsIn, HellosOpen int
	// Accepted counts the hellos that were accepted, Refused those that were
	// answered with a refusal.
	Accepted, Refused uint64
	// Dropped counts the connections that were closed without an answer: TLS failed, no
	// hello came in time or something else, or too many were waiting.
	Dropped uint64
	// AcceptErrors counts the failures to accept a connection at all, such as too few
	// file descriptors.
	AcceptErrors uint64
}

// peersMax bounds for how many ids there are counters.
const peersMax = 1024

// peer counts what happens with one other node.
type peer struct {
	id     string
	kinds  [2]traffic
	rpcs   [RPCTypes]rpcCounters
	in     atomic.Uint64 // hellos refused here
	out    atomic.Uint64 // hellos refused there
	mu     sync.Mutex
	addr   string
	dialed bool // addr is from dialing
	// The fields of Stats with these names.
	lastSuccess, lastErrorAt time.Time
	lastError                string
	roundTrip                time.Duration
}

type traffic struct {
	out, in        atomic.Int64
	sent, received atomic.Uint64
}

type rpcCounters struct {
	sent, failed atomic.Uint64
	inFlight     atomic.Int64
}

func (p *peer) traffic(k kind) *traffic { return &p.kinds[k-kindRaft] }

// seen keeps where the peer is.
func (p *peer) seen(addr string, dialed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if dialed || !p.dialed {
		p.addr, p.dialed = addr, dialed
	}
}

// failed keeps an error.
func (p *peer) failed(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastError, p.lastErrorAt = err.Error(), time.Now()
}

// answered keeps a success.
func (p *peer) answered(rpc RPC, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastSuccess = time.Now()
	if rpc != Heartbeat {
		return
	}
	if p.roundTrip == 0 {
		p.roundTrip = took
	}
	p.roundTrip += (took - p.roundTrip) / 8
}

func (p *peer) stats() Stats {
	s := Stats{ID: p.id, RefusedIn: p.in.Load(), RefusedOut: p.out.Load()}
	for _, k := range []struct {
		from *traffic
		to   *Traffic
	}{{p.traffic(kindRaft), &s.Raft}, {p.traffic(kindCalls), &s.Calls}} {
		*k.to = Traffic{
			ConnsOut:      int(k.from.out.Load()),
			ConnsIn:       int(k.from.in.Load()),
			BytesSent:     k.from.sent.Load(),
			BytesReceived: k.from.received.Load(),
		}
	}
	for i := range p.rpcs {
		c := &p.rpcs[i]
		s.RPCs[i] = RPCStats{Sent: c.sent.Load(), Failed: c.failed.Load(), InFlight: int(c.inFlight.Load())}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s.Addr, s.LastSuccess, s.LastError, s.LastErrorAt = p.addr, p.lastSuccess, p.lastError, p.lastErrorAt
	s.HeartbeatRoundTrip = p.roundTrip
	return s
}

// peer returns the counters for an id.
func (t *Transport) peer(id string) *peer {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.peers[id]; p != nil {
		return p
	}
	if len(t.peers) >= peersMax {
		id = ""
		if p := t.peers[id]; p != nil {
			return p
		}
	}
	p := &peer{id: id}
	t.peers[id] = p
	return p
}

// knownPeer returns the counters for an id, nil if there are none.
func (t *Transport) knownPeer(id string) *peer {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.peers[id]
}

// Stats returns what happened between this node and each peer, by id. It is safe
// to call at any time, after Close too.
func (t *Transport) Stats() []Stats {
	t.mu.Lock()
	peers := make([]*peer, 0, len(t.peers))
	for _, p := range t.peers {
		peers = append(peers, p)
	}
	t.mu.Unlock()
	stats := make([]Stats, len(peers))
	for i, p := range peers {
		stats[i] = p.stats()
	}
	slices.SortFunc(stats, func(a, b Stats) int { return strings.Compare(a.ID, b.ID) })
	return stats
}

// Totals returns what happened at the listener. It is safe to call at any time.
func (t *Transport) Totals() Totals {
	t.mu.Lock()
	defer t.mu.Unlock()
	totals := t.totals
	totals.ConnsIn, totals.HellosOpen = t.connsIn, t.hellos.Len()
	return totals
}

// LastError is [Stats.LastError] of one peer.
func (t *Transport) LastError(id string) string {
	p := t.knownPeer(id)
	if p == nil {
		return ""
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lastError
}
