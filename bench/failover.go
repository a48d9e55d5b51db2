package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

const (
	// loadWriters and loadCheckers are how many callers write and check through each
	// node while leaders are killed, and loadPause what each of them waits between two
	// calls: the machine is to have processors left, or its load would be measured.
	loadWriters  = 2
	loadCheckers = 4
	loadPause    = 4 * time.Millisecond
	// killAfter and killSpread say when a leader is killed: so long after the load began,
	// and up to so much more, so that no kill is at the same beat of the heart.
	killAfter  = 400 * time.Millisecond
	killSpread = 100 * time.Millisecond
	// writePatience is how long writes may fail before that is an error, backPatience how
	// long a node that was killed may take to answer again, and callPatience how long one
	// call may take.
	writePatience = 30 * time.Second
	backPatience  = time.Minute
	callPatience  = 10 * time.Second
)

// A loadEvent is a write that was acknowledged.
type loadEvent struct {
	begun, ended time.Time
}

// A memberLoad is what the callers of one member saw.
type memberLoad struct {
	mu sync.Mutex
	// written are the tuples of all acknowledged writes, and events their times.
	written []*pembav1.Tuple
	events  []loadEvent
	// refused counts the writes that were not acknowledged, by code.
	refused map[codes.Code]int
	// checks counts what checks took, and failed those that got no answer or a wrong
	// one, with the first reason.
	checks  histogram
	failed  int
	reason  error
	longest time.Duration
}

// A load is what is asked of all members while leaders are killed.
type load struct {
	of     map[*member]*memberLoad
	cancel context.CancelFunc
	wait   sync.WaitGroup
}

// startLoad begins to write and check through some members.
func (r *clusterRun) startLoad(ctx context.Context, members []*member) *load {
	ctx, cancel := context.WithCancel(ctx)
	l := &load{of: map[*member]*memberLoad{}, cancel: cancel}
	ask := r.data.checks["view"]
	for _, m := range members {
		seen, t := &memberLoad{refused: map[codes.Code]int{}}, m.target
		l.of[m] = seen
		for range loadWriters {
			l.wait.Go(func() { seen.write(ctx, t) })
		}
		for n := range loadCheckers {
			next := ask.repeated(drawnQuestions, r.config.seed+uint64(n))
			l.wait.Go(func() { seen.check(ctx, t, ask, next) })
		}
	}
	return l
}

// stop ends the load, and waits until the last call is answered.
func (l *load) stop() {
	l.cancel()
	l.wait.Wait()
}

func (s *memberLoad) write(ctx context.Context, t *target) {
	for pause(ctx, loadPause) == nil {
		// What is under way when the load ends is answered.
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), callPatience)
		begun := time.Now()
		w, err := t.touch(call, 1)
		ended := time.Now()
		cancel()
		s.mu.Lock()
		if err != nil {
			s.refused[status.Code(err)]++
		} else {
			s.written = append(s.written, w.tuple)
			s.events = append(s.events, loadEvent{begun, ended})
		}
		s.mu.Unlock()
	}
}

func (s *memberLoad) check(ctx context.Context, t *target, ask *checks, next questions) {
	for i := uint64(0); pause(ctx, loadPause) == nil; i++ {
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), callPatience)
		q, err := next(i)
		begun := time.Now()
		var answer *pembav1.CheckResponse
		if err == nil {
			answer, err = t.permissions.Check(call, ask.request(q))
		}
		took := time.Since(begun)
		cancel()
		if err == nil {
			err = ask.verify(q, answer.GetDecision())
		}
		s.mu.Lock()
		s.checks.record(took)
		s.longest = max(s.longest, took)
		if err != nil {
			s.failed++
			if s.reason == nil {
				s.reason = err
			}
		}
		s.mu.Unlock()
	}
}

// firstAfter returns how long after a moment the first write ended that began then or
// later; 0 while there is none.
func (s *memberLoad) firstAfter(at time.Time) (first time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		if took := e.ended.Sub(at); !e.begun.Before(at) && (first == 0 || took < first) {
			first = took
		}
	}
	return first
}

// A failoverSum is what became of all kills.
type failoverSum struct {
	kills int
	// first and all are, for each kill, after how long writes were acknowledged again
	// through one of the other nodes, and through all; back after how long the killed
	// node, started again, answered.
	first, all, back []float64
	// checks are those through the others, failed those of them without a right answer.
	checks  histogram
	failed  int
	reason  error
	longest time.Duration
	// written are the acknowledged writes, through the killed node too, lost those of
	// them that were not there at the end.
	written []*pembav1.Tuple
	lost    int
	// refused counts the writes through the others that were not acknowledged.
	refused map[codes.Code]int
}

// failover kills the leader of three nodes again and again.
func (r *clusterRun) failover(ctx context.Context) error {
	g, err := r.threeNodes(ctx)
	if err != nil {
		return err
	}
	sum := &failoverSum{refused: map[codes.Code]int{}}
	for sum.kills < r.config.kills {
		if err := r.killLeader(ctx, g, sum); err != nil {
			return fmt.Errorf("kill %d: %w", sum.kills+1, err)
		}
	}
	for _, m := range g.running() {
		lost, err := r.missing(ctx, m, sum.written)
		if err != nil {
			return err
		}
		sum.lost = max(sum.lost, lost)
	}
	return errors.Join(r.report.failedOver(r.config, sum), sum.verdict())
}

// verdict says what of it may not be.
func (sum *failoverSum) verdict() error {
	var errs []error
	if sum.failed > 0 {
		errs = append(errs, fmt.Errorf("%d of %d checks through nodes that were not killed failed; none may: %w", sum.failed, sum.checks.count, sum.reason))
	}
	if sum.lost > 0 {
		errs = append(errs, fmt.Errorf("%d of %d acknowledged writes were lost", sum.lost, len(sum.written)))
	}
	return errors.Join(errs...)
}

// killLeader kills the leader under load, and starts it again.
func (r *clusterRun) killLeader(ctx context.Context, g *group, sum *failoverSum) error {
	leader, err := g.leader(ctx)
	if err != nil {
		return err
	}
	others := g.others(leader)
	l := r.startLoad(ctx, g.running())
	stop := sync.OnceFunc(l.stop)
	defer stop()
	if err := pause(ctx, killAfter+time.Duration(sum.kills*37%100)*killSpread/100); err != nil {
		return err
	}
	at := time.Now()
	killed := leader.server
	leader.target = &target{data: r.data} // Its callers go on with what they had.
	if err := killed.kill(); err != nil {
		return err
	}
	firsts := make([]time.Duration, len(others))
	for slices.Contains(firsts, 0) {
		if time.Since(at) > writePatience {
			return fmt.Errorf("%v after the leader %s was killed, writes through all others are not acknowledged again", writePatience, leader.id)
		}
		if err := pause(ctx, time.Millisecond); err != nil {
			return err
		}
		for i, m := range others {
			firsts[i] = l.of[m].firstAfter(at)
		}
	}
	if err := pause(ctx, r.config.away); err != nil {
		return err
	}
	again := time.Now()
	if err := leader.start(); err != nil {
		return err
	}
	// What it is asked waits until it has caught up, but no longer than a node lets wait.
	for {
		_, err := leader.schemas.ReadSchema(ctx, &pembav1.ReadSchemaRequest{})
		if err == nil {
			break
		}
		if status.Code(err) != codes.Unavailable || time.Since(again) > backPatience {
			return fmt.Errorf("the killed node %s does not answer: %w", leader.id, err)
		}
	}
	back := time.Since(again)
	stop()
	milliseconds := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	sum.kills++
	sum.first = append(sum.first, milliseconds(slices.Min(firsts)))
	sum.all = append(sum.all, milliseconds(slices.Max(firsts)))
	sum.back = append(sum.back, milliseconds(back))
	for m, seen := range l.of {
		sum.written = append(sum.written, seen.written...)
		if m == leader {
			continue
		}
		sum.checks.add(&seen.checks)
		sum.failed += seen.failed
		sum.longest = max(sum.longest, seen.longest)
		if sum.reason == nil {
			sum.reason = seen.reason
		}
		for code, n := range seen.refused {
			sum.refused[code] += n
		}
	}
	return nil
}

// missing asks a member, linearizably, for tuples that were written, and returns how
// many it does not have.
func (r *clusterRun) missing(ctx context.Context, m *member, written []*pembav1.Tuple) (count int, err error) {
	for batch := range slices.Chunk(written, bulkBatch) {
		request := &pembav1.CheckBulkRequest{Consistency: linearizable()}
		for _, tuple := range batch {
			q := r.data.written(tuple)
			request.Items = append(request.Items, &pembav1.CheckBulkItem{Object: q.Object, Permission: q.Permission, Subject: q.Subject})
		}
		answer, err := m.permissions.CheckBulk(ctx, request)
		if err != nil {
			return count, err
		}
		for _, result := range answer.GetResults() {
			if result.GetDecision() != pembav1.Decision_DECISION_ALLOWED {
				count++
			}
		}
	}
	return count, nil
}
