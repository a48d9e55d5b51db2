package peer

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// ErrNoCluster says that this node is not part of a cluster yet, so it has no
// peers to speak to.
var ErrNoCluster = errors.New("this node is not part of a cluster yet")

// ErrClosed says that the Transport was closed.
var ErrClosed = errors.New("the transport to the peers is closed")

// Transport is one port of one node, and the connections of that node to its
// peers. Its methods may be called concurrently.
type Transport struct {
	config   Config
	network  Network
	listener net.Listener

	// ctx ends with Close, and with it every dial.
	ctx    context.Context
	cancel context.CancelFunc
	// running are the goroutines of the listener.
	running sync.WaitGroup

	// mu guards what follows. It is held for moments, never while a connection is
	// read, written or closed in an orderly way.
	mu     sync.Mutex
	closed bool
	// hellos are the accepted connections whose hello is awaited, as net.Conn, the
	// oldest first. Invariant: hellos.Len() <= config.HellosMax.
	hellos *list.List
	// conns are the open connections after their hello. Those accepted number
	// connsIn. Invariant: connsIn <= config.ConnsMax.
	conns   map[*conn]struct{}
	connsIn int
	raft    *raftTransport // nil before the first Raft
	calls   *door          // nil before the first Calls
	clients map[target]*client
	// Invariant: len(peers) <= peersMax+1.
	peers  map[string]*peer
	totals Totals
	logged time.Time // by mayLog
	// warned says when a failure of TLS was last logged, by whom it was with. Invariant:
	// len(warned) <= warnedMax.
	warned map[string]time.Time
}

// target is a peer and where it is.
type target struct{ id, addr string }

// Listen opens the port of a node. The connections of its peers are accepted as
// soon as there is somebody to accept them: see [Transport.Raft] and
// [Transport.Calls]. The Transport must be closed.
func Listen(config Config) (*Transport, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("peer: %w", err)
	}
	config.ensureDefaults()
	t := &Transport{
		config:  config,
		network: config.Network,
		hellos:  list.New(),
		conns:   map[*conn]struct{}{},
		clients: map[target]*client{},
		peers:   map[string]*peer{},
		warned:  map[string]time.Time{},
	}
	if t.network == nil {
		t.network = tcp{plain: config.TLS == nil}
	}
	listener, err := t.network.Listen(config.Addr)
	if err != nil {
		return nil, fmt.Errorf("peer: listen at %s: %w", config.Addr, err)
	}
	t.listener = listener
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.running.Go(t.accept)
	return t, nil
}

// Addr returns the address of the listener.
func (t *Transport) Addr() net.Addr { return t.listener.Addr() }

// advertised returns the address at which others reach this node.
func (t *Transport) advertised() string {
	if t.config.Advertise != "" {
		return t.config.Advertise
	}
	return t.listener.Addr().String()
}

// Close closes the port and every connection, those that Raft and gRPC hold
// included, and waits for what it started itself. Raft should have been shut down
// and the gRPC server stopped before. Further calls do nothing.
func (t *Transport) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	raft, calls := t.raft, t.calls
	clients := make([]*client, 0, len(t.clients))
	for _, c := range t.clients {
		clients = append(clients, c)
	}
	clear(t.clients)
	for e := t.hellos.Front(); e != nil; e = e.Next() {
		_ = e.Value.(net.Conn).Close()
	}
	t.mu.Unlock()

	t.cancel()
	err := t.listener.Close()
	if calls != nil {
		_ = calls.Close()
	}
	for _, c := range clients {
		_ = c.Close()
	}
	if raft != nil {
		_ = raft.Close()
	}
	t.killAll(func(*conn) bool { return true })
	t.running.Wait()
	if err != nil {
		return fmt.Errorf("peer: close the listener at %s: %w", t.config.Addr, err)
	}
	return nil
}

// killAll closes the connections that are chosen.
func (t *Transport) killAll(chosen func(*conn) bool) {
	t.mu.Lock()
	var conns []*conn
	for c := range t.conns {
		if chosen(c) {
			conns = append(conns, c)
		}
	}
	t.mu.Unlock()
	for _, c := range conns {
		c.kill()
	}
}

// track counts a connection after its hello, or says why it may not be.
func (t *Transport) track(c *conn) *refusal {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed, c.owner != nil && c.owner.closed:
		return &refusal{CodeNotServing, fmt.Sprintf("node %s stops", t.config.NodeID)}
	case c.in && t.connsIn >= t.config.ConnsMax:
		return &refusal{CodeBusy, fmt.Sprintf("node %s has %d connections, as many as it accepts", t.config.NodeID, t.connsIn)}
	}
	t.conns[c] = struct{}{}
	if c.in {
		t.connsIn++
		c.peer.traffic(c.kind).in.Add(1)
	} else {
		c.peer.traffic(c.kind).out.Add(1)
	}
	return nil
}

// untrack is the opposite, once.
func (t *Transport) untrack(c *conn) {
	c.closed.Do(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.conns, c)
		if c.in {
			t.connsIn--
			c.peer.traffic(c.kind).in.Add(-1)
		} else {
			c.peer.traffic(c.kind).out.Add(-1)
		}
	})
}

// accept takes connections until Close. No error ends it: what a listener runs
// out of comes back.
func (t *Transport) accept() {
	const pauseMin, pauseMax = 5 * time.Millisecond, time.Second
	var pause time.Duration
	for {
		c, err := t.listener.Accept()
		if t.ctx.Err() != nil {
			if err == nil {
				_ = c.Close()
			}
			return
		}
		if err != nil {
			if pause == 0 {
				t.config.Logger.Error("no connection of a peer can be accepted",
					"listener", t.listener.Addr().String(), "error", err.Error())
			}
			t.mu.Lock()
			t.totals.AcceptErrors++
			t.mu.Unlock()
			pause = min(max(2*pause, pauseMin), pauseMax)
			timer := time.NewTimer(pause)
			select {
			case <-timer.C:
			case <-t.ctx.Done():
				timer.Stop()
			}
			continue
		}
		if pause > 0 {
			t.config.Logger.Info("connections of peers can be accepted again", "listener", t.listener.Addr().String())
			pause = 0
		}
		t.greetLater(c)
	}
}

// greetLater makes room for one more hello.
func (t *Transport) greetLater(c net.Conn) {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		_ = c.Close()
		return
	}
	var oldest net.Conn
	if t.hellos.Len() >= t.config.HellosMax {
		oldest = t.hellos.Remove(t.hellos.Front()).(net.Conn)
	}
	place := t.hellos.PushBack(c)
	t.mu.Unlock()
	if oldest != nil {
		_ = oldest.Close() // its goroutine sees that and counts it
	}
	t.running.Go(func() {
		// The hello is over when leave is called, the goroutine when the connection was
		// handed over.
		leave := sync.OnceFunc(func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			// Of an element that was removed before, this knows.
			t.hellos.Remove(place)
		})
		defer leave()
		t.greet(c, leave)
	})
}

// greet is the listener's side of a hello.
func (t *Transport) greet(raw net.Conn, leave func()) {
	until := time.Now().Add(t.config.HelloTimeout)
	drop := func(err error) {
		_ = raw.Close()
		t.mu.Lock()
		t.totals.Dropped++
		t.mu.Unlock()
		t.config.Logger.Debug("a connection is closed before its hello",
			"from", raw.RemoteAddr().String(), "reason", err.Error())
	}
	if err := raw.SetDeadline(until); err != nil {
		drop(err)
		return
	}
	stream := raw
	if t.config.TLS != nil {
		config, err := serverTLS(t.config.TLS())
		if err != nil {
			if t.mayLog() {
				t.config.Logger.Error("no connection of a peer can be accepted for want of certificates", "error", err.Error())
			}
			drop(err)
			return
		}
		secured := tls.Server(raw, config)
		err = secured.HandshakeContext(t.ctx)
		if err == nil {
			err = checkProtocol(secured)
		}
		if err != nil {
			t.warnOfCaller(raw.RemoteAddr().String(), err)
			drop(err)
			return
		}
		stream = secured
	}
	h, no, err := readHello(stream)
	if err != nil {
		drop(err)
		return
	}
	if no == nil {
		no = judge(h, t.config.NodeID, t.config.ClusterID())
	}
	var to *door
	var c *conn
	if no == nil {
		c = &conn{
			Conn: stream, raw: raw, transport: t, peer: t.peer(h.sender), kind: h.kind, in: true,
			remote: remoteAddr{raw.RemoteAddr(), h.sender},
		}
		if to, no = t.doorFor(c); no == nil {
			no = t.track(c)
		}
	}
	if no != nil {
		t.refuse(raw, stream, h, no)
		return
	}
	leave()
	c.peer.seen(raw.RemoteAddr().String(), false)
	t.mu.Lock()
	t.totals.Accepted++
	t.mu.Unlock()
	if _, err := stream.Write(appendAnswer(nil, nil)); err != nil {
		c.kill()
		return
	}
	if err := raw.SetDeadline(time.Time{}); err != nil {
		c.kill()
		return
	}
	if !to.pass(c, time.Until(until)) {
		c.kill()
	}
}

// refuse answers a hello with a no.
func (t *Transport) refuse(raw, stream net.Conn, h hello, no *refusal) {
	if p := t.knownPeer(h.sender); p != nil {
		p.in.Add(1)
	}
	t.mu.Lock()
	t.totals.Refused++
	t.mu.Unlock()
	if t.mayLog() {
		t.config.Logger.Warn("the connection of a peer is refused",
			"from", raw.RemoteAddr().String(), "peer", h.sender, "reason", no.code.String(), "message", no.sentence)
	}
	// If it cannot be written, the dialer sees a connection that ends.
	_, _ = stream.Write(appendAnswer(nil, no))
	_ = stream.Close()
}

// mayLog reports whether a line may be logged about one who was not let in: a peer
// that is set up wrongly comes again and again.
func (t *Transport) mayLog() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Since(t.logged) < time.Second {
		return false
	}
	t.logged = time.Now()
	return true
}

// How often the failures of TLS with one address are logged, and of how many addresses
// it is kept when that was: others than nodes may come, from many.
const (
	warnPause = time.Minute
	warnedMax = 64
)

// mayWarn reports whether a failure of TLS with somebody may be logged now.
func (t *Transport) mayWarn(with string, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if last, found := t.warned[with]; found && now.Sub(last) < warnPause {
		return false
	}
	maps.DeleteFunc(t.warned, func(_ string, last time.Time) bool { return now.Sub(last) >= warnPause })
	if len(t.warned) >= warnedMax {
		return false
	}
	t.warned[with] = now
	return true
}

// warnOfCaller logs a failure of TLS with one who connects.
func (t *Transport) warnOfCaller(from string, err error) {
	for _, mute := range [...]error{io.EOF, os.ErrDeadlineExceeded, syscall.ECONNRESET, net.ErrClosed} {
		if errors.Is(err, mute) {
			return // So goes who only looks whether the port is open, or was sent away.
		}
	}
	host, _, splitErr := net.SplitHostPort(from) // Its port is another one each time.
	if splitErr != nil {
		host = from
	}
	if t.ctx.Err() == nil && t.mayWarn("from "+host, time.Now()) {
		t.config.Logger.Warn("TLS failed with a peer that connects; are the certificates and authorities of both right?",
			"from", from, "error", err.Error())
	}
}

// A tlsError is a failure of TLS on a connection that was dialed.
type tlsError struct{ error }

func (e tlsError) Unwrap() error { return e.error }

// doorFor returns where an accepted connection is to go.
func (t *Transport) doorFor(c *conn) (*door, *refusal) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.kind == kindRaft && t.raft != nil && !t.raft.closed {
		c.owner = t.raft
		return t.raft.door, nil
	}
	if c.kind == kindCalls && t.calls != nil && !t.calls.isClosed() {
		return t.calls, nil
	}
	return nil, &refusal{CodeNotServing, fmt.Sprintf("node %s serves no connections of kind %s at the moment", t.config.NodeID, c.kind)}
}

// checkProtocol holds that the other side of TLS meant this protocol.
func checkProtocol(c *tls.Conn) error {
	if got := c.ConnectionState().NegotiatedProtocol; got != protocol {
		return fmt.Errorf("the other side of TLS speaks protocol %q and not %q", got, protocol)
	}
	return nil
}

// dial connects to a peer and says hello. Its errors name the peer, the address
// and the reason.
func (t *Transport) dial(ctx context.Context, k kind, to target, owner *raftTransport, deadlineMax time.Duration) (*conn, error) {
	p := t.peer(to.id)
	p.seen(to.addr, true)
	c := &conn{transport: t, owner: owner, peer: p, kind: k, dialed: to, deadlineMax: deadlineMax}
	err := t.sayHello(ctx, c, to)
	if err == nil {
		if no := t.track(c); no != nil {
			_ = c.raw.Close()
			err = ErrClosed
		}
	}
	if err != nil {
		if _, ok := errors.AsType[*RefusedError](err); ok {
			p.out.Add(1)
		} else {
			_, ofTLS := errors.AsType[tlsError](err)
			err = fmt.Errorf("connect to node %s at %s (%s): %w", to.id, to.addr, k, err)
			if ofTLS && t.mayWarn("to "+to.id+" "+to.addr, time.Now()) {
				t.config.Logger.Warn("TLS with a peer failed; are the certificates and authorities of both right?",
					"peer", to.id, "addr", to.addr, "error", err.Error())
			}
		}
		p.failed(err)
		return nil, err
	}
	return c, nil
}

// sayHello is the dialer's side of a hello. It fills in the connection.
func (t *Transport) sayHello(ctx context.Context, c *conn, to target) error {
	cluster := t.config.ClusterID()
	if cluster == [16]byte{} {
		return ErrNoCluster
	}
	start := time.Now()
	within := t.config.HelloTimeout
	if c.deadlineMax > 0 {
		within = min(within, c.deadlineMax)
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()

	raw, err := t.network.Dial(ctx, to.addr)
	if err != nil {
		return t.dialError(ctx, start, err)
	}
	// Closing works on every connection and at every point of what follows.
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	stream, no, err := t.exchange(ctx, raw, hello{c.kind, cluster, t.config.NodeID, to.id}, to.addr)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = raw.Close()
		return t.dialError(ctx, start, err)
	}
	if no != nil {
		_ = raw.Close()
		return &RefusedError{Code: no.code, Peer: to.id, Addr: to.addr, Message: no.sentence}
	}
	c.Conn, c.raw, c.remote = stream, raw, remoteAddr{raw.RemoteAddr(), to.id}
	return nil
}

// exchange says hello on a connection, and waits for the answer.
func (t *Transport) exchange(ctx context.Context, raw net.Conn, h hello, addr string) (net.Conn, *refusal, error) {
	stream := raw
	if t.config.TLS != nil {
		config, err := clientTLS(t.config.TLS(), addr)
		if err != nil {
			return nil, nil, tlsError{err}
		}
		secured := tls.Client(raw, config)
		if err := secured.HandshakeContext(ctx); err != nil {
			return nil, nil, tlsError{err}
		}
		if err := checkProtocol(secured); err != nil {
			return nil, nil, tlsError{err}
		}
		stream = secured
	}
	if _, err := stream.Write(h.append(nil)); err != nil {
		return nil, nil, err
	}
	no, err := readAnswer(stream)
	if alert, ok := errors.AsType[*net.OpError](err); ok && alert.Op == remoteAlert {
		// What a listener has against the certificate of a dialer comes after the handshake.
		err = tlsError{err}
	}
	return stream, no, err
}

// remoteAlert is what crypto/tls calls an error that the other side sent.
const remoteAlert = "remote error"

// dialError says what an error means that came before an answer.
func (t *Transport) dialError(ctx context.Context, start time.Time, err error) error {
	switch {
	case t.ctx.Err() != nil:
		return ErrClosed
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("no answer to the hello within %s: %w", time.Since(start).Round(time.Millisecond), context.DeadlineExceeded)
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.ErrClosedPipe),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fmt.Errorf("closed by the other side before the hello was answered; "+
			"is it a node of Pemba, which uses TLS if this one does, and is it not overloaded? (%w)", err)
	}
	return err
}

// Retain forgets every peer that is not at the address given for its id: its
// client connections (from Conn) are closed, with the calls on them, and so are
// the connections of Raft that this node dialed. What is in Stats about ids not
// given is dropped, unless the peer has a connection to this node. It is to be
// called after each change of the cluster's members; this node itself may be among
// them.
func (t *Transport) Retain(members map[string]string) {
	keep := func(to target) bool { addr, ok := members[to.id]; return ok && addr == to.addr }
	var clients []*client
	t.mu.Lock()
	for to, c := range t.clients {
		if !keep(to) {
			delete(t.clients, to)
			clients = append(clients, c)
		}
	}
	t.mu.Unlock()
	for _, c := range clients {
		_ = c.Close()
	}
	t.killAll(func(c *conn) bool { return !c.in && !keep(c.dialed) })
	t.mu.Lock()
	defer t.mu.Unlock()
	open := map[*peer]bool{}
	for c := range t.conns {
		open[c.peer] = true
	}
	for id, p := range t.peers {
		if _, ok := members[id]; !ok && !open[p] {
			delete(t.peers, id)
		}
	}
}
