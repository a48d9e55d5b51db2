package api

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"google.golang.org/grpc/codes"
)

// feed runs produce and sends what it puts out, in order. The two run side by
// side, at most ahead results apart, so that a client that takes nothing
// for longer than stall makes produce end, and with it the snapshot it holds,
// even while the sending is stuck in the connection's flow control.
//
// produce must return soon after its put failed, with that error. A panic in it
// becomes one here.
func feed[T any](ctx context.Context, stall time.Duration, ahead int, produce func(ctx context.Context, put func(T) error) error, send func(T) error) error {
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan T, ahead)
	var failed error
	var panicked any
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(results)
		defer func() {
			if p := recover(); p != nil {
				panicked = producerPanic{p, debug.Stack()}
			}
		}()
		failed = produce(ctx, func(result T) error { return put(ctx, results, result, stall) })
	}()
	var sendErr error
	for result := range results {
		if sendErr = send(result); sendErr != nil {
			break
		}
	}
	cancel()
	<-done
	switch {
	case panicked != nil:
		panic(panicked)
	case sendErr != nil && (failed == nil || errors.Is(failed, context.Canceled)):
		return sendErr
	}
	return failed
}

// A producerPanic carries the value and the stack of a panic to the goroutine
// of the handler.
type producerPanic struct {
	value any
	stack []byte
}

// String gives both.
func (p producerPanic) String() string { return fmt.Sprintf("%v\n%s", p.value, p.stack) }

// put hands one result over, waiting at most stall.
func put[T any](ctx context.Context, results chan<- T, result T, stall time.Duration) error {
	select {
	case results <- result:
		return nil
	default:
	}
	timer := time.NewTimer(stall)
	defer timer.Stop()
	select {
	case results <- result:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return &requestError{
			code: codes.ResourceExhausted, reason: "CLIENT_STALLED",
			message: fmt.Sprintf("no result was taken for %v; ask again with the last cursor", stall),
		}
	}
}
