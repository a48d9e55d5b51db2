package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"
)

// feed runs produce and sends what it puts out, in order. The sending has a
// goroutine of its own, at most ahead results behind, since it may be stuck in
// the connection's flow control for as long as the client likes: when none was
// taken for stall, feed returns CLIENT_STALLED all the same, and likewise when
// ctx ends. What waits is then dropped.
//
// A handler must return what feed returned and do nothing more with its stream:
// it is the end of the handler that makes gRPC release a Send that is stuck. Such
// a Send then fails, and is the last.
//
// produce must return soon after its put failed or its context ended, with that
// error.
func feed[T any](ctx context.Context, stall time.Duration, ahead int, produce func(ctx context.Context, put func(T) error) error, send func(T) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f := &feeding[T]{results: make(chan T, ahead), ended: make(chan struct{}), stall: stall}
	go func() {
		defer cancel()
		f.deliver(ctx, send)
	}()
	failed := f.produce(ctx, produce)
	if f.stalled {
		return failed
	}
	// The results that wait come before the error, unless nobody takes them.
	timer := time.NewTimer(stall)
	defer timer.Stop()
	for taken := f.taken.Load(); ; {
		select {
		case <-f.ended:
			return f.outcome(failed)
		case <-ctx.Done():
			select {
			case <-f.ended: // That has ended ctx.
				return f.outcome(failed)
			default:
				return cmp.Or(failed, ctx.Err())
			}
		case <-timer.C:
			now := f.taken.Load()
			if now == taken {
				return clientStalled(stall)
			}
			taken = now
			timer.Reset(stall)
		}
	}
}

// feedBatches feeds a stream whose messages are batches. They wait in their
// encoded form, which is a tenth as large as what produce puts; it should keep
// no batch that it has put.
func feedBatches[M proto.Message](ctx context.Context, stall time.Duration, produce func(ctx context.Context, put func(M) error) error, stream grpc.ServerStream) error {
	encode := func(ctx context.Context, put func(*grpc.PreparedMsg) error) error {
		return produce(ctx, func(batch M) error {
			encoded := new(grpc.PreparedMsg)
			if err := encoded.Encode(stream, batch); err != nil {
				return err
			}
			return put(encoded)
		})
	}
	return feed(ctx, stall, batchesAhead, encode, func(encoded *grpc.PreparedMsg) error { return stream.SendMsg(encoded) })
}

// A batch of an export, or of changes, ends with the tuple that makes it as
// large as one of the first two; so many of them wait for a client at most. gRPC
// keeps a message of up to 32 KiB in a buffer of that size.
const (
	batchTuples  = 500
	batchBytes   = 24 << 10
	batchesAhead = 2
)

// A feeding is the work of one feed.
type feeding[T any] struct {
	results chan T
	stall   time.Duration
	// stalled says that put gave up. Only the producing goroutine uses it.
	stalled bool

	// taken counts the results that send took.
	taken atomic.Uint64
	// ended is closed when nothing is sent any more; sendErr and panicked may be
	// read then.
	ended    chan struct{}
	sendErr  error
	panicked any
}

// produce runs f to its end, after which there are no more results.
func (f *feeding[T]) produce(ctx context.Context, produce func(ctx context.Context, put func(T) error) error) error {
	defer close(f.results)
	return produce(ctx, func(result T) error { return f.put(ctx, result) })
}

// outcome is what feed returns once nothing is sent any more; failed is what
// produce returned.
func (f *feeding[T]) outcome(failed error) error {
	switch {
	case f.panicked != nil:
		panic(f.panicked)
	case f.sendErr != nil && (failed == nil || errors.Is(failed, context.Canceled)):
		return f.sendErr
	}
	return failed
}

// put hands one result over, waiting at most stall.
func (f *feeding[T]) put(ctx context.Context, result T) error {
	select {
	case f.results <- result:
		return nil
	default:
	}
	timer := time.NewTimer(f.stall)
	defer timer.Stop()
	select {
	case f.results <- result:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		f.stalled = true
		return clientStalled(f.stall)
	}
}

// deliver sends the results until there are no more, one cannot be sent, or ctx
// ends.
func (f *feeding[T]) deliver(ctx context.Context, send func(T) error) {
	defer close(f.ended)
	defer func() {
		if p := recover(); p != nil {
			f.panicked = deliveryPanic{p, debug.Stack()}
		}
	}()
	for result := range f.results {
		if f.sendErr = ctx.Err(); f.sendErr != nil {
			return
		}
		if f.sendErr = send(result); f.sendErr != nil {
			return
		}
		f.taken.Add(1)
	}
}

// stalledReason is the reason of the error of a stream that nobody takes.
const stalledReason = "CLIENT_STALLED"

func clientStalled(stall time.Duration) error {
	return &requestError{
		code: codes.ResourceExhausted, reason: stalledReason,
		message: fmt.Sprintf("no result was taken for %v; ask again with the last cursor", stall),
	}
}

// stalledStreamsMax is how many streams of one connection over gRPC may end with
// CLIENT_STALLED; with the last of them it is closed.
const stalledStreamsMax = 4

// leftBehind looks at how a stream ended. When nobody took it, what gRPC has
// queued of it stays, and its error behind that, until the client takes them or
// its connection ends: gRPC cannot reset a single stream. A client that leaves
// several behind would have the server hold ever more, which no slot counts, so
// its connection is closed. Over HTTP there is no such rest: there a stream that
// is not taken ends its own connection, and the one to the gateway is never
// closed here.
func (s *Server) leftBehind(ctx context.Context, err error) {
	var stalled *requestError
	if !errors.As(err, &stalled) || stalled.reason != stalledReason {
		return
	}
	client, ok := peer.FromContext(ctx)
	if !ok {
		return
	}
	addr, ok := client.Addr.(clientAddr)
	if !ok || addr.conn.stalled.Add(1) != stalledStreamsMax {
		return
	}
	s.logger.Info("closing a connection whose client does not take what it asks for", "client", addr.String(), "streams", stalledStreamsMax)
	// It may be closed already, which is as good.
	_ = addr.conn.Close()
}

// A clientAddr is the address of a client of a boundedListener. gRPC tells a call
// no more of its connection than this.
type clientAddr struct {
	net.Addr
	conn *boundedConn
}

// RemoteAddr returns the address of the client, by which a call over gRPC finds
// its connection.
func (c *boundedConn) RemoteAddr() net.Addr { return clientAddr{c.Conn.RemoteAddr(), c} }

// A deliveryPanic carries the value and the stack of a panic to the goroutine of
// the handler.
type deliveryPanic struct {
	value any
	stack []byte
}

// String gives both.
func (p deliveryPanic) String() string { return fmt.Sprintf("%v\n%s", p.value, p.stack) }
