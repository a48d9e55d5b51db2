package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"
)

// Network is where connections come from. Its connections need deadlines, as
// net.Conn says.
type Network interface {
	// Listen listens at an address, as net.Listen does.
	Listen(addr string) (net.Listener, error)
	// Dial connects to an address. It gives up when ctx is done.
	Dial(ctx context.Context, addr string) (net.Conn, error)
}

// Config says who a node is and how it speaks with its peers. NodeID, Addr and
// ClusterID are needed.
type Config struct {
	// NodeID is the id of this node: printable characters without blanks, at most
	// IDBytesMax bytes.
	NodeID string

	// Addr is where to listen, as host:port. Without TLS and Network the host must
	// be a loopback address or "localhost".
	Addr string

	// Advertise is the address at which others reach this node, as it stands in
	// Raft's configuration. Empty: the address of the listener, which is right if
	// Addr names one interface by its number.
	Advertise string

	// Network is where connections come from. Nil: TCP.
	Network Network

	// TLS gives the certificates. Nil: no TLS, and then this node listens and dials
	// on loopback addresses only, if Network is nil. It is called for every
	// connection in both roles, concurrently, so what it gives may change; it must
	// not give nil, and what it gave is not written to. It must have certificates
	// and RootCAs or ClientCAs (one stands in for the other). Whatever it says, TLS is
	// 1.3 at least, a client must show a certificate of ClientCAs, and a server one of
	// RootCAs for the host of the address that was dialed.
	TLS func() *tls.Config

	// ClusterID gives the id of the cluster that this node is part of, zero while it
	// is part of none. It is called for every connection in both roles,
	// concurrently.
	ClusterID func() [16]byte

	// Logger gets a line for what an operator must know: refusals (at most one a
	// second), and trouble with the listener. Nil: none.
	Logger *slog.Logger

	// Timeout is how long an RPC of Raft may take, from its first byte to the last
	// of its answer; a follower syncs its log in between. 0: 10 s, which is longer
	// than a healthy disk ever takes and allows RPCBytesMax on a slow line.
	// Heartbeats, which never wait for a disk, have the lesser of this and 2 s, so
	// that a connection that was lost without a word is soon replaced.
	Timeout time.Duration

	// RPCBytesMax is the most bytes of entries in one AppendEntries RPC; an entry
	// that is larger travels alone. 0: 4 MiB.
	RPCBytesMax int

	// HelloTimeout is how long a connection may take until its hello is answered,
	// TLS and on the dialing side TCP included. 0: 5 s.
	HelloTimeout time.Duration

	// HellosMax is the most accepted connections whose hello is awaited. 0: 64.
	HellosMax int

	// ConnsMax is the most open connections that others have to this node. 0: 512.
	ConnsMax int

	// DialOptions are added to those of every grpc.ClientConn: limits of messages,
	// interceptors. They cannot change how it connects.
	DialOptions []grpc.DialOption

	// Intercept, when it is not nil, stands before every RPC of Raft that leaves
	// this node; a test drops RPCs, delays or repeats them with it. It calls send,
	// which sends the RPC and waits for the answer, as often as it likes
	// (InstallSnapshot at most once), and returns what Raft is to see. It is called
	// concurrently.
	Intercept func(rpc RPC, id, addr string, send func() error) error
}

const (
	defaultTimeout      = 10 * time.Second
	heartbeatTimeout    = 2 * time.Second
	defaultRPCBytesMax  = 4 << 20
	defaultHelloTimeout = 5 * time.Second
	defaultHellosMax    = 64
	defaultConnsMax     = 512
)

// Validate says what is wrong with the config, if anything is.
func (c *Config) Validate() error {
	if err := checkID(c.NodeID); err != nil {
		return fmt.Errorf("NodeID: %w", err)
	}
	if c.ClusterID == nil {
		return errors.New("ClusterID is nil; it must say which cluster the node is part of")
	}
	if c.Addr == "" {
		return errors.New("Addr is empty; it must be host:port")
	}
	if c.Network == nil {
		host, _, err := net.SplitHostPort(c.Addr)
		if err != nil {
			return fmt.Errorf("Addr %q must be host:port: %w", c.Addr, err)
		}
		if c.TLS == nil && !IsLoopback(host) {
			return fmt.Errorf("Addr %q is not a loopback address, and there is no TLS; anyone who reaches the port could change everything",
				c.Addr)
		}
	}
	if c.TLS != nil {
		if _, err := serverTLS(c.TLS()); err != nil {
			return fmt.Errorf("TLS: %w", err)
		}
	}
	for _, d := range []struct {
		name  string
		value int64
	}{
		{"Timeout", int64(c.Timeout)},
		{"RPCBytesMax", int64(c.RPCBytesMax)},
		{"HelloTimeout", int64(c.HelloTimeout)},
		{"HellosMax", int64(c.HellosMax)},
		{"ConnsMax", int64(c.ConnsMax)},
	} {
		if d.value < 0 {
			return fmt.Errorf("%s is %d; it must be positive, or 0 for the default", d.name, d.value)
		}
	}
	return nil
}

// ensureDefaults fills in what is zero.
func (c *Config) ensureDefaults() {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	orDefault(&c.Timeout, defaultTimeout)
	orDefault(&c.RPCBytesMax, defaultRPCBytesMax)
	orDefault(&c.HelloTimeout, defaultHelloTimeout)
	orDefault(&c.HellosMax, defaultHellosMax)
	orDefault(&c.ConnsMax, defaultConnsMax)
}

func orDefault[T int | time.Duration](value *T, otherwise T) {
	if *value == 0 {
		*value = otherwise
	}
}

// IsLoopback reports whether a host, as in host:port, certainly is this machine only, so that
// what is sent there needs no TLS. Names but localhost are not looked up: what they mean may
// change between two looks.
func IsLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// tcp is the Network of the machine.
type tcp struct {
	// plain is set when there is no TLS: nothing leaves the machine then.
	plain bool
}

// keepAlive finds a peer that is gone without a word, while nothing is said.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 5 * time.Second, Count: 2}

// unackedMax is how long bytes that were sent may wait to be acknowledged, on
// systems where that can be said.
const unackedMax = 15 * time.Second

// Listen implements Network.
func (n tcp) Listen(addr string) (net.Listener, error) {
	config := net.ListenConfig{KeepAliveConfig: keepAlive, Control: setUserTimeout}
	listener, err := config.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, err
	}
	if err := n.check(listener.Addr()); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

// Dial implements Network.
func (n tcp) Dial(ctx context.Context, addr string) (net.Conn, error) {
	dialer := net.Dialer{KeepAliveConfig: keepAlive, Control: setUserTimeout}
	c, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if err := n.check(c.RemoteAddr()); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// check holds that nothing leaves the machine unencrypted, whatever a name
// resolved to.
func (n tcp) check(addr net.Addr) error {
	if a, ok := addr.(*net.TCPAddr); n.plain && (!ok || !a.IP.IsLoopback()) {
		return fmt.Errorf("%s is not a loopback address, and there is no TLS", addr)
	}
	return nil
}
