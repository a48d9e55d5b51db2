package client

import (
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

// The pauses before a watch is taken up again: the first, and the longest.
const (
	watchPauseMin = 100 * time.Millisecond
	watchPauseMax = 5 * time.Second
)

// Watch follows the changes that r asks for, without end, until the loop or ctx
// ends: each change once, in order. The end of ctx is yielded as the last error, with
// the code Canceled or DeadlineExceeded. An empty store in r is filled in from the
// client's; r itself is not changed.
//
// When the connection is lost, or the server stops, lost is called with why, and
// the watch is taken up again behind the last answer as soon as there is a server;
// lost may be nil. All other errors end it, among them that the changes to go on
// with are kept no more, and that the connection was lost before there was any
// answer to a watch that begins now: where that was, nobody knows. A cut through
// an answer's middle repeats nothing, as the loop never saw that answer.
func (c *Client) Watch(ctx context.Context, r *pembav1.WatchRequest, lost func(error)) iter.Seq2[*pembav1.WatchResponse, error] {
	r = proto.CloneOf(r)
	c.fill(&r.Store)
	return func(yield func(*pembav1.WatchResponse, error) bool) {
		pause, again := watchPauseMin, false
		for {
			var failure error
			call := func(ctx context.Context, r *pembav1.WatchRequest, options ...grpc.CallOption) (grpc.ServerStreamingClient[pembav1.WatchResponse], error) {
				return c.Watches.Watch(ctx, r, append(options, grpc.WaitForReady(again))...)
			}
			for response, err := range results(ctx, call, r) {
				if err != nil {
					failure = err
					break
				}
				if response.GetCursor() != "" {
					r.From = &pembav1.WatchRequest_Cursor{Cursor: response.GetCursor()}
				}
				pause = watchPauseMin
				if !yield(response, nil) {
					return
				}
			}
			if failure == nil {
				failure = errWatchEnded
			}
			if err := ctx.Err(); err != nil && connectionLost(failure) {
				failure = status.FromContextError(err).Err() // Whatever came first.
			}
			if ctx.Err() != nil || !connectionLost(failure) || r.GetFrom() == nil {
				yield(nil, failure)
				return
			}
			if lost != nil {
				lost(failure)
			}
			select {
			case <-ctx.Done():
				yield(nil, status.FromContextError(ctx.Err()).Err())
				return
			// Many watches that lose one server must not come back at once.
			case <-time.After(pause/2 + rand.N(pause/2)):
			}
			pause, again = min(2*pause, watchPauseMax), true
		}
	}
}

// errWatchEnded stands for a stream that ended in order, which a watch never
// does.
var errWatchEnded = status.Error(codes.Unavailable, "the server ended the watch")

// connectionLost reports whether an error is that of a way to the server, or of
// a server that stops, and not an answer to what was asked.
func connectionLost(err error) bool {
	return status.Code(err) == codes.Unavailable && !errors.Is(err, context.Canceled)
}

// ReadChanges returns the changes that r asks for, up to the newest or its end;
// see ReadTuples for the store. Of the answers, none is a heartbeat.
func (c *Client) ReadChanges(ctx context.Context, r *pembav1.ReadChangesRequest) iter.Seq2[*pembav1.WatchResponse, error] {
	r = proto.CloneOf(r)
	c.fill(&r.Store)
	return func(yield func(*pembav1.WatchResponse, error) bool) {
		for response, err := range results(ctx, c.Watches.ReadChanges, r) {
			if !yield(response.GetChanges(), err) {
				return
			}
		}
	}
}
