package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

const (
	// pastPerSecond is how many tuples are written and deleted for a second of a
	// slice in which their past is removed, and pastMin how many at least. Where a
	// node removes more in the time, it gets twice as many, but pastMax at most.
	pastPerSecond = 20_000
	pastMin       = 2_000
	pastMax       = 2_000_000

	// pastAge is how old a past must be to be forgotten: a store keeps a second at
	// least.
	pastAge = 1100 * time.Millisecond
	// pastGap is the time between two pasts, so that what one round forgets does
	// not reach into that of the next: it takes so long until it is proposed.
	pastGap = 50 * time.Millisecond

	// removalRecords is how many records of the change log are looked at in one step
	// when the rest of a past is removed and counted; a tuple that was written and
	// deleted has two.
	removalRecords = 100

	// A server has settled when it took at most settledShare of one processor for
	// settledTime; after settleMost it is taken as it is.
	settledTime  = 100 * time.Millisecond
	settledShare = 0.1
	settleMost   = 5 * time.Second
)

// A past is what a round of pruning removes.
type past struct {
	tuples int
	// ended is when the last of them was deleted.
	ended time.Time
}

// errPrunedEarly says that pruning was over before the slice beside it.
var errPrunedEarly = errors.New("pruning ended before the slice beside it")

// makePast writes n fresh tuples and deletes them again, by a few callers at
// once, so that the store is as it was but for its past.
func (t *target) makePast(ctx context.Context, n int) (past, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	batches := make(chan int, (n+importBatch-1)/importBatch)
	for left := n; left > 0; left -= importBatch {
		batches <- min(left, importBatch)
	}
	close(batches)
	var wait sync.WaitGroup
	for range writers {
		wait.Go(func() {
			for batch := range batches {
				if ctx.Err() != nil {
					return
				}
				if err := t.touchAndDelete(ctx, batch); err != nil {
					cancel(err)
				}
			}
		})
	}
	wait.Wait()
	return past{tuples: n, ended: time.Now()}, context.Cause(ctx)
}

func (t *target) touchAndDelete(ctx context.Context, n int) error {
	request := t.freshTuples(n)
	for _, operation := range []pembav1.TupleUpdate_Operation{
		pembav1.TupleUpdate_OPERATION_TOUCH, pembav1.TupleUpdate_OPERATION_DELETE,
	} {
		for _, update := range request.Updates {
			update.Operation = operation
		}
		answer, err := t.tuples.WriteTuples(ctx, request)
		if err != nil {
			return err
		}
		if answer.GetChanged() != uint32(n) {
			return fmt.Errorf("wrong answer: a write of %d tuples (%s) changed %d", n, operation, answer.GetChanged())
		}
	}
	return nil
}

// nextPast returns a past of n tuples or more that no round has pruned, once the
// server is done with what it had to do.
// The pasts of all rounds are made at once, since what a write leaves behind is
// worked on for a while, which is not to be measured.
func (d *driver) nextPast(ctx context.Context, t *target, n int) (past, error) {
	var next past
	for next.tuples < n {
		if len(t.pasts) == 0 {
			if err := d.makePasts(ctx, t, n); err != nil {
				return past{}, err
			}
		}
		next.tuples += t.pasts[0].tuples
		next.ended = t.pasts[0].ended
		t.pasts = t.pasts[1:]
	}
	return next, t.settle(ctx)
}

// settle waits until the server is done with what earlier writes and removals left
// it to do, flushes and compactions. Where processor time is not known it does not
// wait.
func (t *target) settle(ctx context.Context) error {
	before, err := t.tell(order{Do: takeUsage})
	if err != nil {
		return err
	}
	for end := time.Now().Add(settleMost); time.Now().Before(end); {
		begin := time.Now()
		if err := pause(ctx, settledTime); err != nil {
			return err
		}
		now, err := t.tell(order{Do: takeUsage})
		if err != nil {
			return err
		}
		if float64(now.Processor-before.Processor) <= settledShare*float64(time.Since(begin)) {
			return nil
		}
		before = now
	}
	return nil
}

// makePasts makes a past of n tuples for every round, and removes what was there
// before.
func (d *driver) makePasts(ctx context.Context, t *target, n int) error {
	before, err := t.makePast(ctx, importBatch)
	if err != nil {
		return err
	}
	for range d.config.rounds {
		if err := pause(ctx, pastGap); err != nil {
			return err
		}
		p, err := t.makePast(ctx, n)
		if err != nil {
			return err
		}
		t.pasts = append(t.pasts, p)
	}
	if err := pause(ctx, pastAge); err != nil {
		return err
	}
	if err := t.prune(ctx, before); err != nil {
		return err
	}
	_, err = t.tell(order{Do: removeRest})
	return err
}

// pause waits so long, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// prune lets the server forget a past and all before it, which it then removes
// in the background. The settings of the store are afterwards as they were. It
// fails when there was nothing to forget.
func (t *target) prune(ctx context.Context, p past) error {
	before, err := t.stores.GetStore(ctx, &pembav1.GetStoreRequest{})
	if err != nil {
		return err
	}
	age := &pembav1.Retention{Kept: &pembav1.Retention_Duration{Duration: durationpb.New(time.Since(p.ended))}}
	if _, err := t.stores.UpdateStore(ctx, &pembav1.UpdateStoreRequest{
		Settings: &pembav1.StoreSettings{History: age, Log: age},
	}); err != nil {
		return err
	}
	if _, err := t.tell(order{Do: pruneNow}); err != nil {
		return err
	}
	settings := before.GetStore().GetSettings()
	after, err := t.stores.UpdateStore(ctx, &pembav1.UpdateStoreRequest{
		Settings: &pembav1.StoreSettings{History: settings.GetHistory(), Log: settings.GetLog()},
	})
	if err != nil {
		return err
	}
	// The node may have come before the order; that is as good.
	oldest := after.GetStore().GetOldestHistory().AsTime()
	if !oldest.After(before.GetStore().GetOldestHistory().AsTime()) {
		return fmt.Errorf("nothing was pruned: the oldest state is still that of %v", oldest)
	}
	return nil
}

// whilePruning makes calls without and then with a past being removed beside. It
// fails with errPrunedEarly when there was nothing left of that at the end.
func (d *driver) whilePruning(ctx context.Context, t *target, w *workload, made calls, p past) (without, with *slice, err error) {
	if without, _, err = runSlice(ctx, t.server, w.callers, w.rate, d.config.length(), made.pemba); err != nil {
		return nil, nil, err
	}
	if err := made.refill(); err != nil {
		return nil, nil, err
	}
	if err := t.prune(ctx, p); err != nil {
		return nil, nil, fmt.Errorf("prune: %w", err)
	}
	if with, _, err = runSlice(ctx, t.server, w.callers, w.rate, d.config.length(), made.pemba); err != nil {
		return nil, nil, err
	}
	rest, err := t.tell(order{Do: removeRest})
	if err != nil {
		return nil, nil, err
	}
	if rest.Left == 0 {
		return nil, nil, errPrunedEarly
	}
	with.pruned = uint64(max(p.tuples-rest.Left/2, 0))
	return without, with, nil
}
