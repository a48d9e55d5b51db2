package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

const (
	// catchupRate is how many checks are begun in a second while a node catches up: few
	// enough that the processors are not what is measured.
	catchupRate    = 1000
	catchupCallers = 64
	// catchupBefore is how many slices are measured before and after.
	catchupBefore = 6
	// catchupRounds is how often a fresh node joins in a full run.
	catchupRounds = 3
	// catchupPatience is how long that may take.
	catchupPatience = 10 * time.Minute
)

// A caughtUp is what it took that a fresh node became a voter.
type caughtUp struct {
	// joined, answered and voted are the times from the start of its process until it
	// was a member, until it answered a check and until it had its vote.
	joined, answered, voted time.Duration
	// bytes are what the leader sent, stateBytes those of them that are of the state, and
	// installed is 1 when that came into force, 0 when the log sufficed.
	bytes      uint64
	stateBytes int64
	installed  int
	// before, during and after are checks of the leader.
	before, during, after *slice
	// processor is what the fresh node took.
	processor time.Duration
}

// catchup lets fresh nodes join a cluster of one.
func (r *clusterRun) catchup(ctx context.Context, tuples int) (err error) {
	data := models["business"].generate(tuples, r.config.seed)
	g, err := r.open(ctx, "catchup", 1, true, data)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.stop()) }()
	count, err := g.fill(ctx)
	if err != nil {
		return err
	}
	rounds := min(r.config.rounds, catchupRounds)
	if r.config.quick {
		rounds = 1
	}
	var all []*caughtUp
	for range rounds {
		one, err := r.catchOne(ctx, g, data)
		if err != nil {
			return err
		}
		all = append(all, one)
	}
	return r.report.caughtUp(r.config, tuples, count, all)
}

// catchOne lets a fresh node join, and leave again.
func (r *clusterRun) catchOne(ctx context.Context, g *group, data *dataset) (c *caughtUp, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, catchupPatience, fmt.Errorf("no fresh node caught up within %v", catchupPatience))
	defer cancel()
	leader := g.members[0]
	if err := leader.settle(ctx); err != nil {
		return nil, err
	}
	ask := data.checks["view"]
	rate := float64(catchupRate)
	if r.config.rate > 0 {
		rate = r.config.rate
	}
	checks := func() (*slice, error) {
		s, _, err := runSliceOn(ctx, []*server{leader.server}, catchupCallers, rate, r.config.length(),
			leader.check(ask, ask.repeated(drawnQuestions, r.config.seed)))
		return s, err
	}
	some := func() (sum *slice, err error) {
		for range catchupBefore {
			s, err := checks()
			if err != nil {
				return nil, err
			}
			sum = addSlices(sum, s)
		}
		return sum, nil
	}
	c = &caughtUp{}
	if c.before, err = some(); err != nil {
		return nil, err
	}
	sent, err := g.count(leader)
	if err != nil {
		return nil, err
	}
	fresh, err := r.newMember(g, true, data)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, fresh.remove(context.WithoutCancel(ctx), leader)) }()
	if err := r.profileCatchup(leader, "leader"); err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	go func() {
		done <- c.follow(ctx, fresh, leader, ask, func() error { return r.profileCatchup(fresh, "fresh") })
	}()
	for joining := true; joining; {
		s, err := checks()
		if err != nil {
			return nil, errors.Join(err, cancelled(cancel, done))
		}
		c.during = addSlices(c.during, s)
		select {
		case err := <-done:
			if err != nil {
				return nil, err
			}
			joining = false
		default:
		}
	}
	if r.config.profile != "" {
		for _, m := range []*member{leader, fresh} {
			if _, err := m.tell(order{Do: stopProfile}); err != nil {
				return nil, err
			}
		}
	}
	now, err := g.count(leader)
	if err != nil {
		return nil, err
	}
	c.bytes, c.stateBytes = now.Sent-sent.Sent, now.StateSent-sent.StateSent
	usage, err := fresh.tell(order{Do: takeUsage})
	if err != nil {
		return nil, err
	}
	c.processor = usage.Processor
	own, err := fresh.tell(order{Do: takeCounts})
	if err != nil {
		return nil, err
	}
	c.installed = own.Counts.Installed
	c.after, err = some()
	return c, err
}

// cancelled ends what reports to done, and returns its error if that is another one.
func cancelled(cancel context.CancelFunc, done <-chan error) error {
	cancel()
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// profileCatchup begins a profile of a member, if there are to be any. Of several
// rounds the last one's stays.
func (r *clusterRun) profileCatchup(m *member, part string) error {
	if r.config.profile == "" {
		return nil
	}
	_, err := m.tell(order{Do: startProfile, File: filepath.Join(r.config.profile, "cluster-catchup-"+part+".pprof")})
	return err
}

// follow starts a fresh node, calls started, and notes the times.
func (c *caughtUp) follow(ctx context.Context, fresh, leader *member, ask *checks, started func() error) error {
	begin := time.Now()
	if err := fresh.start(); err != nil {
		return err
	}
	c.joined = time.Since(begin)
	if err := started(); err != nil {
		return err
	}
	next := ask.repeated(1, 1)
	// It is asked again as long as it says that it is not ready.
	for answered := false; ; {
		if !answered {
			err := fresh.check(ask, next)(ctx, &caller{}, 0)
			switch {
			case err == nil:
				answered, c.answered = true, time.Since(begin)
			case status.Code(err) != codes.Unavailable:
				return err
			}
		}
		answer, err := leader.cluster.GetCluster(ctx, &pembav1.GetClusterRequest{}, grpc.WaitForReady(true))
		if err != nil {
			return err
		}
		if answered && voters(answer) == 2 {
			c.voted = time.Since(begin)
			return nil
		}
		if err := pause(ctx, formPause); err != nil {
			return err
		}
	}
}

// remove takes a node out of the cluster again and ends it.
func (m *member) remove(ctx context.Context, leader *member) error {
	if m.server == nil {
		return nil
	}
	_, err := leader.cluster.RemoveMember(ctx, &pembav1.RemoveMemberRequest{Id: m.id})
	s := m.server
	m.server = nil
	// It may have ended itself by then, having heard of it.
	return errors.Join(err, s.kill(), os.RemoveAll(m.spec.Dir))
}

// addSlices returns what two slices of the same calls had together; a may be nil.
func addSlices(a, b *slice) *slice {
	if a == nil {
		return b
	}
	a.latency.add(&b.latency)
	a.items += b.items
	a.unsent += b.unsent
	a.elapsed += b.elapsed
	a.processor += b.processor
	return a
}
