package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// Calls returns the listener for a grpc.Server, which must have no transport
// credentials: TLS is below already. As long as it is open, every call returns the
// same one; when it was closed, as grpc.Server does when it stops, the next call
// makes a new one. The port stays open. While there is none, the peers' connections
// for calls are refused. A handler gets the sender from [PeerOf].
func (t *Transport) Calls() net.Listener {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.calls == nil || t.calls.isClosed() {
		t.calls = newDoor(t.listener.Addr())
		if t.closed {
			_ = t.calls.Close()
		}
	}
	return t.calls
}

// PeerOf returns the id of the node that makes a call, from the context of its
// handler. It reports false for the context of anything else.
//
//nolint:revive // peer.Of would say nothing; the name repeats the package's on purpose.
func PeerOf(ctx context.Context) (id string, ok bool) {
	p, ok := grpcpeer.FromContext(ctx)
	if !ok {
		return "", false
	}
	addr, ok := p.Addr.(remoteAddr)
	return addr.id, ok
}

// client is a connection for calls to one peer at one address.
type client struct {
	*grpc.ClientConn
	// dialed is how the last attempt to connect ended; nil: well.
	dialed atomic.Pointer[error]
}

// Conn returns the connection for calls to the peer with an id at an address. It is
// shared by all who ask for the same, and must not be closed: Retain and Close do
// that. It connects with the first call, and again when the connection was lost;
// nothing bounds how long a call may take but the context it is made with.
//
// When a call fails because the peer refused the connection, its error is a
// *RefusedError besides being a status.
func (t *Transport) Conn(id, addr string) (*grpc.ClientConn, error) {
	to := target{id, addr}
	if err := checkTarget(t.config.NodeID, to); err != nil {
		return nil, fmt.Errorf("peer: connection for calls: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, fmt.Errorf("peer: connection for calls to node %s at %s: %w", id, addr, ErrClosed)
	}
	if c := t.clients[to]; c != nil {
		return c.ClientConn, nil
	}
	c := &client{}
	options := append([]grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return c.explain(invoke(ctx, method, req, reply, cc, opts...))
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			stream, err := open(ctx, desc, cc, method, opts...)
			return stream, c.explain(err)
		}),
	}, t.config.DialOptions...)
	options = append(options,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithConnectParams(grpc.ConnectParams{
			// A peer that comes back is wanted soon.
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: t.config.HelloTimeout,
		}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			conn, err := t.dial(ctx, kindCalls, to, nil, 0)
			if err != nil {
				c.dialed.Store(&err)
				return nil, err
			}
			c.dialed.Store(nil)
			return conn, nil
		}),
	)
	// The name is for gRPC's own use; where to connect is in the dialer.
	cc, err := grpc.NewClient("passthrough:///"+url.PathEscape(addr), options...)
	if err != nil {
		return nil, fmt.Errorf("peer: connection for calls to node %s at %s: %w", id, addr, err)
	}
	c.ClientConn = cc
	t.clients[to] = c
	return cc, nil
}

// explain adds the refusal to the error of a call that failed for want of a
// connection. gRPC makes a text of it.
func (c *client) explain(err error) error {
	// A call that waits for the connection ends with its time.
	if code := status.Code(err); code != codes.Unavailable && code != codes.DeadlineExceeded {
		return err
	}
	dialed := c.dialed.Load()
	if dialed == nil {
		return err
	}
	if refused, ok := errors.AsType[*RefusedError](*dialed); ok {
		return &callError{err, refused}
	}
	return err
}

// callError is the error of a call whose connection was refused.
type callError struct {
	error
	refused *RefusedError
}

// Unwrap lets errors.Is and errors.As find both.
func (e *callError) Unwrap() []error { return []error{e.error, e.refused} }

// GRPCStatus lets the status package find the status.
func (e *callError) GRPCStatus() *status.Status { return status.Convert(e.error) }

// checkTarget says what is wrong with a peer that a node wants to speak to.
func checkTarget(self string, to target) error {
	if err := checkID(to.id); err != nil {
		return err
	}
	switch {
	case to.id == self:
		return fmt.Errorf("node %s would speak to itself", self)
	case to.addr == "" || strings.ContainsRune(to.addr, '@'):
		return fmt.Errorf("address %q of node %s must be host:port", to.addr, to.id)
	}
	return nil
}
