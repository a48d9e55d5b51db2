package peer

import (
	"net"
	"sync"
	"time"
)

// conn is a connection after its hello.
type conn struct {
	// Conn is what is spoken on: TLS, where there is TLS.
	net.Conn
	// raw is below TLS, or the same. Closing it never waits.
	raw net.Conn

	transport *Transport
	// owner is the Raft whose connection it is; nil for calls.
	owner  *raftTransport
	peer   *peer
	kind   kind
	in     bool
	remote remoteAddr
	dialed target // zero if accepted

	// deadlineMax is how far ahead a deadline may be at most; 0: any.
	deadlineMax time.Duration

	closed sync.Once
}

// remoteAddr is the address of the other end of a connection, with who that is.
// It is how a gRPC handler learns the sender (PeerOf).
type remoteAddr struct {
	net.Addr
	id string
}

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.peer.traffic(c.kind).received.Add(uint64(n))
	return n, err
}

// Write implements net.Conn.
func (c *conn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.peer.traffic(c.kind).sent.Add(uint64(n))
	return n, err
}

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	if c.deadlineMax > 0 && !t.IsZero() {
		if latest := time.Now().Add(c.deadlineMax); t.After(latest) {
			t = latest
		}
	}
	return c.Conn.SetDeadline(t)
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.transport.untrack(c)
	return c.Conn.Close()
}

// kill closes without a farewell, which within TLS could wait for a peer that
// does not read.
func (c *conn) kill() {
	c.transport.untrack(c)
	_ = c.raw.Close()
}

// door is where accepted connections of one kind go to: a net.Listener.
type door struct {
	addr  net.Addr
	conns chan *conn
	done  chan struct{}
	close sync.Once
}

func newDoor(addr net.Addr) *door {
	return &door{addr: addr, conns: make(chan *conn), done: make(chan struct{})}
}

// Accept implements net.Listener.
func (d *door) Accept() (net.Conn, error) {
	select {
	case <-d.done: // first of all: who closed it does not want what waits
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-d.conns:
		return c, nil
	case <-d.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. The port stays open.
func (d *door) Close() error {
	d.close.Do(func() { close(d.done) })
	return nil
}

// Addr implements net.Listener.
func (d *door) Addr() net.Addr { return d.addr }

func (d *door) isClosed() bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}

// pass hands over a connection. It reports false if nobody took it in time.
func (d *door) pass(c *conn, within time.Duration) bool {
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case d.conns <- c:
		return true
	case <-d.done:
	case <-timer.C:
	}
	return false
}
