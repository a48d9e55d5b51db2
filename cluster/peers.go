package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/pembadb/pemba/cluster/peer"
	peerv1 "github.com/pembadb/pemba/cluster/pemba/peer/v1"
)

// peers is a node's port for the other nodes, with what it answers there.
type peers struct {
	transport *peer.Transport
	server    *grpc.Server
	serving   bool
	served    chan struct{} // Closed when the server ended that was serving.
}

// electionTimeout is Config.ElectionTimeout with its default.
func (n *Node) electionTimeout() time.Duration {
	if n.peers != nil {
		return cmp.Or(n.config.ElectionTimeout, DefaultElectionTimeout)
	}
	return cmp.Or(n.config.ElectionTimeout, aloneElectionTimeout)
}

// chooseAddr decides under which address the others reach this node: the one that is
// configured, or the one they know. A node that nobody else knows has none.
func (n *Node) chooseAddr(c raft.Configuration) {
	if n.config.RaftAddr != "" || isAlone(c, n.dir.nodeID) {
		return
	}
	if self, found := memberOf(c, n.dir.nodeID); found {
		n.config.RaftAddr = string(self.Address)
	}
}

// openPeers opens the port, unless the node has no address for it.
func (n *Node) openPeers() error {
	if n.config.RaftAddr == "" {
		return nil
	}
	transport, err := peer.Listen(peer.Config{
		NodeID:    n.dir.nodeID,
		Addr:      cmp.Or(n.config.RaftListenAddr, n.config.RaftAddr),
		Advertise: n.config.RaftAddr,
		Network:   n.config.PeerNetwork,
		TLS:       n.config.PeerTLS,
		ClusterID: n.ClusterID,
		Logger:    n.config.Logger,
	})
	if err != nil {
		return fmt.Errorf("listen for the other nodes: %w", err)
	}
	p := &peers{transport: transport, served: make(chan struct{})}
	p.server = grpc.NewServer(
		// What the log can take arrives, so that a node with a smaller bound of its own can
		// say what that is.
		grpc.MaxRecvMsgSize(callBytesMax(n.log.EntryBytesMax())),
		grpc.MaxConcurrentStreams(callsMax), grpc.ConnectionTimeout(beginMax),
		grpc.UnaryInterceptor(n.admitCall), grpc.StreamInterceptor(n.admitStream),
	)
	peerv1.RegisterPeerServiceServer(p.server, &peerService{node: n})
	n.peers = p
	return nil
}

// serve answers the other nodes. Raft must have been started.
func (p *peers) serve(n *Node) {
	p.serving = true
	go func() {
		defer close(p.served)
		if err := p.server.Serve(p.transport.Calls()); err != nil && n.usable() == nil {
			n.fail(fmt.Errorf("serve the other nodes: %w", err))
		}
	}()
}

// callsMax bounds the calls that one node may have open at another: its writes that
// are under way, and some. callBytesMax bounds what one of them carries.
// beginMax bounds how long a connection may take from its hello to the first
// bytes of HTTP/2.
const (
	callsMax = 16 << 10
	beginMax = 5 * time.Second
)

func callBytesMax(entryBytesMax int) int { return entryBytesMax + 64<<10 }

// close closes the port. Calls that are open end.
func (p *peers) close() error {
	// Both at once: the server waits for connections on which HTTP/2 has not begun, and
	// it is the transport that ends them.
	closed := make(chan error, 1)
	go func() { closed <- p.transport.Close() }()
	p.server.Stop()
	if p.serving {
		<-p.served
	}
	return <-closed
}

// raftTransport returns what Raft speaks through. A node that is alone has nobody to
// speak to.
func (n *Node) raftTransport() raft.Transport {
	if n.peers == nil {
		_, transport := raft.NewInmemTransport(raft.ServerAddress(aloneAddr))
		return transport
	}
	return newReplication(n, n.peers.transport.Raft().(peerTransport))
}

// configuration returns the newest configuration that this node knows, agreed or not.
func (n *Node) configuration() raft.Configuration {
	future := n.raft().GetConfiguration()
	if future.Error() != nil {
		return raft.Configuration{} // Raft answers this one from memory, and never fails.
	}
	c := future.Configuration()
	return c.Clone() // Raft gives all the same.
}

// client returns the calls of another node.
func (n *Node) client(server raft.Server) (peerv1.PeerServiceClient, error) {
	if n.peers == nil {
		return nil, fmt.Errorf("%w: it has no port for others", ErrNotLeader)
	}
	conn, err := n.peers.transport.Conn(string(server.ID), string(server.Address))
	if err != nil {
		return nil, fmt.Errorf("call the node %s at %s: %w", server.ID, server.Address, err)
	}
	return peerv1.NewPeerServiceClient(conn), nil
}

// leader returns the node that leads, as far as this one knows.
func (n *Node) leader() (raft.Server, bool) {
	addr, id := n.raft().LeaderWithID()
	if id == "" {
		return raft.Server{}, false
	}
	// Where it is it says itself; the configuration here may be an old one.
	return raft.Server{ID: id, Address: addr}, addr != ""
}

// askLeader has ask called with the leader, once, or local where this node leads itself.
// The context that ask is given ends when this node hears of another leader or of none:
// what was asked of the old one may never be answered. ask returns an ErrNotLeader where
// the node that it was given does not lead.
//
// With around, which is for what changes who leads or belongs to the cluster, ask goes on
// when the leader changes, and a node that knows no leader asks each member, until one of
// them leads.
func (n *Node) askLeader(ctx context.Context, around bool, local func() error, ask func(context.Context, peerv1.PeerServiceClient) error) error {
	if n.leads() {
		return local()
	}
	if n.peers == nil {
		return ErrNotLeader
	}
	if leader, known := n.leader(); known {
		if string(leader.ID) == n.dir.nodeID {
			return fmt.Errorf("%w: it was elected just now", ErrNotLeader)
		}
		if around {
			return n.ask(ctx, leader, ask)
		}
		asking, stop := n.whileFollowing(ctx, string(leader.ID))
		defer stop()
		return n.ask(asking, leader, ask)
	}
	err := fmt.Errorf("%w: %w", ErrNotLeader, errNoLeader)
	if !around {
		return err
	}
	servers := n.configuration().Servers
	rand.Shuffle(len(servers), func(i, j int) { servers[i], servers[j] = servers[j], servers[i] })
	for _, server := range servers {
		if string(server.ID) == n.dir.nodeID {
			continue
		}
		asking, stop := context.WithTimeout(ctx, statusPatience)
		err = n.ask(asking, server, ask)
		stop()
		if !errors.Is(err, ErrNotLeader) || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// errNoLeader says why there is no leader, as far as one node can know.
var errNoLeader = errors.New("no leader is known here; there is one when more than half of the voters run and reach each other")

// ask has ask called with one node.
func (n *Node) ask(ctx context.Context, server raft.Server, ask func(context.Context, peerv1.PeerServiceClient) error) error {
	client, err := n.client(server)
	if err == nil {
		err = ask(ctx, client)
	}
	if err != nil {
		return fmt.Errorf("node %s: %w", server.ID, err)
	}
	return nil
}

// A reply is what one of several nodes said that were asked at once.
type reply[T any] struct {
	server raft.Server
	said   T
	err    error
}

// askAll asks nodes at once, and returns where the replies come, one of each. Who has heard
// enough need not hear the rest, and lets the context of ask end.
func askAll[T any](servers []raft.Server, ask func(raft.Server) (T, error)) <-chan reply[T] {
	replies := make(chan reply[T], len(servers))
	for _, server := range servers {
		go func() {
			said, err := ask(server)
			replies <- reply[T]{server, said, err}
		}()
	}
	return replies
}

// askTerm asks a node for its term, and whether this node is a member as far as it knows.
// A leader asks with its own term, and who does not lead with 0.
func (n *Node) askTerm(ctx context.Context, server raft.Server, term uint64) (response *peerv1.ConfirmResponse, err error) {
	err = n.ask(ctx, server, func(ctx context.Context, client peerv1.PeerServiceClient) (err error) {
		if response, err = client.Confirm(ctx, &peerv1.ConfirmRequest{Term: term}); err != nil {
			return inWords(err)
		}
		return nil
	})
	return response, err
}

// otherVoters returns the voters but for this node.
func (n *Node) otherVoters() []raft.Server { return votersBut(n.configuration(), n.dir.nodeID) }

// votersBut returns the voters of a configuration but for one node.
func votersBut(c raft.Configuration, id string) []raft.Server {
	var voters []raft.Server
	for _, server := range c.Servers {
		if server.Suffrage == raft.Voter && string(server.ID) != id {
			voters = append(voters, server)
		}
	}
	return voters
}

// A following is the time in which a node hears of one and the same leader, "" for none.
type following struct {
	leader string
	ctx    context.Context // Ends with it.
	end    context.CancelFunc
}

// whileFollowing returns a context that ends when the node does not follow a leader any
// more.
func (n *Node) whileFollowing(ctx context.Context, leader string) (context.Context, context.CancelFunc) {
	f := n.following.Load()
	if f == nil || f.leader != leader {
		return context.WithTimeout(ctx, n.config.WaitMax) // It changes just now.
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(f.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// followLeader keeps Node.following, and says which nodes do not answer this one while
// it leads.
func (n *Node) followLeader(m *machine) {
	defer m.loops.Done()
	// One place is enough: what counts is how it is when one comes to look.
	changes := make(chan raft.Observation, 1)
	leaders := raft.NewObserver(changes, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	m.raft.RegisterObserver(leaders)
	defer m.raft.DeregisterObserver(leaders)
	beats := make(chan raft.Observation, membersMax)
	heartbeats := raft.NewObserver(beats, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.FailedHeartbeatObservation, raft.ResumedHeartbeatObservation:
			return true
		}
		return false
	})
	m.raft.RegisterObserver(heartbeats)
	defer m.raft.DeregisterObserver(heartbeats)
	// Since when: a node that was removed and joined anew under its id is another one.
	silent := map[raft.ServerID]time.Time{}
	for {
		n.noteLeader(m.raft)
		select {
		case <-m.stop:
			if f := n.following.Swap(nil); f != nil {
				f.end()
			}
			return
		case <-changes:
		case o := <-beats:
			switch beat := o.Data.(type) {
			case raft.FailedHeartbeatObservation:
				if since, known := silent[beat.PeerID]; !known || !since.Equal(beat.LastContact) {
					silent[beat.PeerID] = beat.LastContact
					n.config.Logger.Warn("a node does not answer the leader", "node", n.dir.nodeID, "silent", beat.PeerID, "last_contact", beat.LastContact,
						"error", n.peers.transport.LastError(string(beat.PeerID)))
				}
			case raft.ResumedHeartbeatObservation:
				delete(silent, beat.PeerID)
				n.config.Logger.Info("a node answers the leader again", "node", n.dir.nodeID, "answers", beat.PeerID)
			}
		}
	}
}

func (n *Node) noteLeader(r *raft.Raft) {
	_, id := r.LeaderWithID()
	old := n.following.Load()
	if old != nil && old.leader == string(id) {
		return
	}
	ctx, end := context.WithCancel(context.Background())
	n.following.Store(&following{leader: string(id), ctx: ctx, end: end})
	if old != nil {
		old.end()
	}
	n.progress.broadcast() // For those who wait for a leader.
}

// The errors that mean the same on both sides of a call, by name.
var failureKinds = map[string]error{
	"not leader":       ErrNotLeader,
	"not ready":        ErrNotReady,
	"removed":          ErrRemoved,
	"clock":            ErrClock,
	"member":           ErrMember,
	"unknown member":   errUnknownMember,
	"shutting down":    ErrShuttingDown,
	"failed":           ErrFailed,
	"outcome unknown":  ErrOutcomeUnknown,
	"too busy":         ErrTooBusy,
	"entry too large":  ErrEntryTooLarge,
	"disk full":        ErrDiskFull,
	"revision ahead":   ErrRevisionAhead,
	"revision unknown": ErrRevisionUnknown,
	"instant ahead":    ErrInstantAhead,
}

// failureOrder is the order in which an error is asked what it is: it may be several
// things, and what became of a write is worth more than why nobody knows.
var failureOrder = []string{
	"outcome unknown", "removed", "unknown member", "member", "not leader", "not ready", "clock", "shutting down", "failed", "too busy",
	"entry too large", "disk full", "revision unknown", "revision ahead", "instant ahead",
}

// toFailure puts an error into the form in which it crosses the wire.
func toFailure(err error) *peerv1.Failure {
	for _, kind := range failureOrder {
		if errors.Is(err, failureKinds[kind]) {
			return &peerv1.Failure{Kind: kind, Message: err.Error()}
		}
	}
	return &peerv1.Failure{Message: err.Error()}
}

// A peerError is an error of another node.
type peerError struct {
	message string
	kind    error // Nil for an error without a name.
}

func (e *peerError) Error() string { return e.message }
func (e *peerError) Unwrap() error { return e.kind }

// fromFailure takes an error from the wire; nil stays nil.
func fromFailure(f *peerv1.Failure) error {
	if f == nil {
		return nil
	}
	return &peerError{message: f.GetMessage(), kind: failureKinds[f.GetKind()]}
}

// callError is the error of a call that did not come to an answer. Where no connection
// was there to send it by, or the other node said that it did not begin, nothing was
// done. Otherwise it may have done what was asked, and otherwise says what that means.
func callError(ctx context.Context, err error, to *grpcpeer.Peer, otherwise error) error {
	switch code := status.Code(err); {
	case to.Addr == nil && code == codes.Unavailable:
		return fmt.Errorf("%w: the one that did cannot be reached: %w", ErrNotLeader, inWords(err))
	case code == codeNotServed, code == codes.Unimplemented:
		return fmt.Errorf("%w: the one that did does not take it: %w", ErrNotLeader, inWords(err))
	case ctx.Err() == nil:
		return fmt.Errorf("%w: %w", otherwise, inWords(err))
	case errors.Is(otherwise, ErrOutcomeUnknown):
		return fmt.Errorf("%w: %w", otherwise, context.Cause(ctx))
	}
	return context.Cause(ctx)
}

// inWords returns the error of a call without what gRPC puts around it, which says
// nothing to who asked another node of the cluster for something. It is no status any
// more: what gRPC makes of a call between two nodes is not what a client is to be told.
func inWords(err error) error {
	if refused, ok := errors.AsType[*peer.RefusedError](err); ok {
		return refused
	}
	said := status.Convert(err)
	message := cmp.Or(said.Message(), said.Code().String())
	if _, problem, ok := strings.Cut(message, "Error while dialing: "); ok {
		message = strings.TrimSuffix(problem, `"`)
	}
	return errors.New(message)
}

// codeNotServed is what a node answers that stops: it did not begin with what it was asked.
// The gRPC library itself never makes this code up.
const codeNotServed = codes.FailedPrecondition

// admitCall is before every call of another node: the answer of a node that stops means
// nothing. The connection says that the caller is of this cluster, but not that it still
// belongs to it. What is done or said only for members asks for itself, as answersLeader
// does. Confirm answers every caller, since a node learns by it that it was removed;
// GetStatus and GetChecksums do too, for a node that was just added may not be known to
// all yet, and what they say is no secret to who holds a certificate of the cluster.
func (n *Node) admitCall(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if err := n.admitPeer(); err != nil {
		return nil, err
	}
	return handler(ctx, request)
}

func (n *Node) admitStream(service any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := n.admitPeer(); err != nil {
		return err
	}
	return handler(service, stream)
}

func (n *Node) admitPeer() error {
	if err := n.usable(); err != nil {
		return status.Error(codeNotServed, err.Error())
	}
	return nil
}
