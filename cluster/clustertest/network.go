package clustertest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/pembadb/pemba/cluster/peer"
)

// A Network connects hosts in one process, as TCP would, and can be told to do so
// badly. Its methods may be called by any number of goroutines.
//
// Between each two hosts there are two links, one for each direction. What a test
// does to a link holds for the connections that are open and for those to come,
// until it is undone.
//
// A link that is cut loses packets, not bytes, since TCP sends them again: they wait
// with the sender and arrive in order when the link is healed. Neither end is told.
// A connection ends by itself once one of its links was cut for Patience, and a host
// that dials through a cut link waits until it gives up or the link is healed.
type Network struct {
	patience time.Duration

	mu        sync.Mutex
	changed   chan struct{} // Closed and replaced when a link changes, for those who dial.
	links     map[direction]*link
	listeners map[string]*listener
	// owners are the hosts that listened at an address last: who is dialed through
	// which link if nobody listens there any more.
	owners map[string]string
	down   map[string]bool
	conns  map[*conn]struct{}
	// broken counts the connections that Break broke.
	broken int
}

// A direction is from one host to another.
type direction struct{ from, to string }

// A link is how bytes travel in one direction.
type link struct {
	cut   bool
	delay time.Duration
	// bytesPerSecond is the speed; zero for any.
	bytesPerSecond int64
	// breakAfter is after how many bytes each connection breaks; zero for never.
	breakAfter int64
}

// Patience is for how long a connection outlives a link that is cut: as long as
// package peer has TCP wait.
const Patience = 15 * time.Second

// bufferBytes is how much may be under way in one direction of a connection before
// writing waits.
const bufferBytes = 256 << 10

// backlog is how many connections wait to be accepted; more wait to be made.
const backlog = 128

// NewNetwork returns a network that does everything at once. Connections outlive a cut
// link for patience; zero means Patience.
func NewNetwork(patience time.Duration) *Network {
	if patience == 0 {
		patience = Patience
	}
	return &Network{
		patience: patience, changed: make(chan struct{}), links: map[direction]*link{},
		listeners: map[string]*listener{}, owners: map[string]string{}, down: map[string]bool{}, conns: map[*conn]struct{}{},
	}
}

// Of returns the network as one host sees it: its links are those from and to host.
func (n *Network) Of(host string) peer.Network { return view{n, host} }

// Cut cuts the link from one host to another. What goes the other way still arrives;
// but no connection is made where one of the two is cut.
func (n *Network) Cut(from, to string) { n.change(from, to, func(l *link) { l.cut = true }) }

// Delay lets bytes arrive so much later. Zero undoes it.
func (n *Network) Delay(from, to string, by time.Duration) {
	n.change(from, to, func(l *link) { l.delay = by })
}

// Slow bounds how fast each connection carries bytes. Zero undoes it.
func (n *Network) Slow(from, to string, bytesPerSecond int64) {
	n.change(from, to, func(l *link) { l.bytesPerSecond = bytesPerSecond })
}

// Break breaks each connection, for both ends, as soon as it has carried so many bytes
// from one host to the other since now or since it was made. Zero undoes it.
func (n *Network) Break(from, to string, after int64) {
	n.change(from, to, func(l *link) { l.breakAfter = after })
}

// Broken returns how many connections Break has broken.
func (n *Network) Broken() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.broken
}

// Heal undoes whatever was done to any link.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.links)
	n.apply(func(*conn) bool { return true })
}

// SetDown says whether a host is down: then its connections are broken at once, for
// both ends, and none are made from it or to it, without waiting.
func (n *Network) SetDown(host string, down bool) {
	n.mu.Lock()
	n.down[host] = down
	var reset []*conn
	for c := range n.conns {
		if down && (c.sends.from == host || c.sends.to == host) {
			reset = append(reset, c)
		}
	}
	n.mu.Unlock()
	for _, c := range reset {
		c.breakBoth(syscall.ECONNRESET)
	}
}

// change changes a link.
func (n *Network) change(from, to string, how func(*link)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := direction{from, to}
	l := n.links[d]
	if l == nil {
		l = &link{}
		n.links[d] = l
	}
	how(l)
	n.apply(func(c *conn) bool { return c.sends.direction == d || c.receives.direction == d })
}

// apply tells connections how their links are now. It needs n.mu.
func (n *Network) apply(chosen func(*conn) bool) {
	close(n.changed)
	n.changed = make(chan struct{})
	for c := range n.conns {
		if chosen(c) {
			n.applyTo(c)
		}
	}
}

// applyTo tells one connection how its links are now. It needs n.mu.
func (n *Network) applyTo(c *conn) {
	there, back := n.link(c.sends.direction), n.link(c.receives.direction)
	c.sends.set(there)
	if there.cut || back.cut {
		if c.cutOff == nil {
			c.cutOff = time.AfterFunc(n.patience, func() { c.breakBoth(syscall.ETIMEDOUT) })
		}
	} else if c.cutOff != nil {
		c.cutOff.Stop()
		c.cutOff = nil
	}
}

// link returns how a link is. It needs n.mu.
func (n *Network) link(d direction) link {
	if l := n.links[d]; l != nil {
		return *l
	}
	return link{}
}

// A view is the network as one host sees it.
type view struct {
	network *Network
	host    string
}

// Listen implements peer.Network. The address may be any text.
func (v view) Listen(addr string) (net.Listener, error) {
	n := v.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[addr] != nil {
		return nil, fmt.Errorf("listen at %s: %w", addr, syscall.EADDRINUSE)
	}
	l := &listener{network: n, addr: address(addr), host: v.host, waiting: make(chan *conn, backlog), closed: make(chan struct{})}
	n.listeners[addr] = l
	n.owners[addr] = v.host
	return l, nil
}

// Dial implements peer.Network.
func (v view) Dial(ctx context.Context, addr string) (net.Conn, error) {
	for {
		c, changed, err := v.dialOnce(addr)
		if c != nil || err != nil {
			return c, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("dial %s: %w", addr, context.Cause(ctx))
		}
	}
}

// dialOnce connects, or returns neither a connection nor an error where the packets
// are lost; then changed says when to try again.
func (v view) dialOnce(addr string) (_ net.Conn, changed <-chan struct{}, _ error) {
	n := v.network
	n.mu.Lock()
	defer n.mu.Unlock()
	owner, known := n.owners[addr]
	if !known {
		return nil, nil, fmt.Errorf("dial %s: no host has this address: %w", addr, syscall.EHOSTUNREACH)
	}
	switch {
	case n.down[v.host]:
		return nil, nil, fmt.Errorf("dial %s: %w", addr, syscall.ENETDOWN)
	case n.down[owner]:
		return nil, nil, fmt.Errorf("dial %s: %w", addr, syscall.ECONNREFUSED)
	}
	there, back := direction{v.host, owner}, direction{owner, v.host}
	if n.link(there).cut || n.link(back).cut {
		return nil, n.changed, nil
	}
	l := n.listeners[addr]
	if l == nil {
		return nil, nil, fmt.Errorf("dial %s: %w", addr, syscall.ECONNREFUSED)
	}
	here, other := newPipe(there), newPipe(back)
	dialing := &conn{network: n, sends: here, receives: other, local: address(v.host), remote: l.addr}
	accepting := &conn{network: n, sends: other, receives: here, local: l.addr, remote: address(v.host)}
	dialing.other, accepting.other = accepting, dialing
	select {
	case l.waiting <- accepting:
	default:
		return nil, nil, fmt.Errorf("dial %s: %d connections wait there: %w", addr, backlog, syscall.ECONNREFUSED)
	}
	for _, c := range [...]*conn{dialing, accepting} {
		n.conns[c] = struct{}{}
		n.applyTo(c)
	}
	return dialing, nil, nil
}

// A listener is one address where a host listens.
type listener struct {
	network *Network
	addr    address
	host    string
	waiting chan *conn

	once   sync.Once
	closed chan struct{}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, fmt.Errorf("accept at %s: %w", l.addr, net.ErrClosed)
	default:
	}
	select {
	case c := <-l.waiting:
		return c, nil
	case <-l.closed:
		return nil, fmt.Errorf("accept at %s: %w", l.addr, net.ErrClosed)
	}
}

// Close implements net.Listener. Connections that nobody accepted are broken.
func (l *listener) Close() error {
	l.once.Do(func() {
		l.network.mu.Lock()
		delete(l.network.listeners, string(l.addr))
		l.network.mu.Unlock()
		close(l.closed)
		// Nobody adds to these any more.
		for {
			select {
			case c := <-l.waiting:
				c.breakBoth(syscall.ECONNRESET)
				continue
			default:
			}
			break
		}
	})
	return nil
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return l.addr }

// An address is the address of a listener, or the name of a host.
type address string

// Network implements net.Addr.
func (address) Network() string { return "clustertest" }

// String implements net.Addr.
func (a address) String() string { return string(a) }

// errBroken is what breaks a connection that was told to break.
var errBroken = errors.New("the connection was broken by the test")
