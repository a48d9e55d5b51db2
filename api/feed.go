package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
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

func clientStalled(stall time.Duration) error {
	return &requestError{
		code: codes.ResourceExhausted, reason: "CLIENT_STALLED",
		message: fmt.Sprintf("no result was taken for %v; ask again with the last cursor", stall),
	}
}

// A deliveryPanic carries the value and the stack of a panic to the goroutine of
// the handler.
type deliveryPanic struct {
	value any
	stack []byte
}

// String gives both.
func (p deliveryPanic) String() string { return fmt.Sprintf("%v\n%s", p.value, p.stack) }
