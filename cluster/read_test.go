package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

func TestConsistency(t *testing.T) {
	t.Parallel()
	now := newClock(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))
	config := testConfig(t, t.TempDir())
	config.Now = now.Now
	config.WaitMax = time.Hour // What waits ends with its context.
	n := open(t, config)
	writeSchema(t, n)
	before := n.db().Applied().Revision
	first := write(t, n, create(viewer("0", "hanna")))
	now.advance(time.Second)
	second := write(t, n, &graph.Mutation{Updates: []graph.Update{{Operation: graph.Delete, Tuple: viewer("0", "hanna")}}})
	now.advance(time.Second)
	later := now.instant() + 5_000_000

	for _, c := range []struct {
		name     string
		ask      Consistency
		revision graph.Revision
		instant  graph.Instant
		has      bool
	}{
		{"newest", Consistency{}, second.Revision, now.instant(), false},
		{"newest, at a caller's later instant", Consistency{Instant: later}, second.Revision, later, false},
		{"newest, at an instant that no clock has", Consistency{Instant: graph.MaxInstant}, second.Revision, now.instant() + 10_000_000, false},
		{"newest, at a caller's earlier instant", Consistency{Instant: 5}, second.Revision, now.instant(), false},
		{"newest ignores a revision", Consistency{Revision: 1 << 40}, second.Revision, now.instant(), false},
		{"at least nothing", Consistency{Mode: AtLeast}, second.Revision, now.instant(), false},
		{"at least the first", Consistency{Mode: AtLeast, Revision: first.Revision}, second.Revision, now.instant(), false},
		{"at least the second", Consistency{Mode: AtLeast, Revision: second.Revision}, second.Revision, now.instant(), false},
		{"exactly before", Consistency{Mode: Exactly, Revision: before}, before, now.instant(), false},
		{"exactly the first", Consistency{Mode: Exactly, Revision: first.Revision}, first.Revision, now.instant(), true},
		{"pinned", Consistency{Mode: Exactly, Revision: first.Revision, Instant: 77, Pinned: true}, first.Revision, 77, true},
		{"linearizable", Consistency{Mode: Linearizable}, second.Revision, now.instant(), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := n.Snapshot(testContext(t), graph.DefaultStore, c.ask, graph.Overlay{})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if s.Revision() != c.revision || s.Instant() != c.instant {
				t.Errorf("revision %d at %d, not %d at %d", s.Revision(), s.Instant(), c.revision, c.instant)
			}
			tuple := viewer("0", "hanna")
			if _, ok, err := s.Graph().Get(tuple.Object, tuple.Relation, tuple.Subject); err != nil || ok != c.has {
				t.Errorf("the tuple is there: %v, %v", ok, err)
			}
			answer, err := s.Check(testContext(t), engine.Check{Object: tuple.Object, Name: "view", Subject: tuple.Subject})
			if err != nil || (answer.Decision == engine.Allowed) != c.has {
				t.Errorf("view is %v, %v", answer.Decision, err)
			}
		})
	}

	for _, c := range []struct {
		name string
		ask  Consistency
		want error
		says string
	}{
		{"pinned to what has not passed", Consistency{Mode: Exactly, Revision: first.Revision, Instant: now.instant() + 10_000_001, Pinned: true}, ErrInstantAhead, "has not passed"},
		{"unknown mode", Consistency{Mode: 9}, nil, "mode 9"},
		{"exactly nothing", Consistency{Mode: Exactly}, nil, "a revision"},
		{"pinned to newest", Consistency{Pinned: true, Instant: 5}, nil, "newest"},
		{"pinned to no instant", Consistency{Mode: Exactly, Revision: 1, Pinned: true}, nil, "instant 0"},
		{"at least the future", Consistency{Mode: AtLeast, Revision: 1 << 40}, ErrRevisionAhead, fmt.Sprint(n.raft().LastIndex())},
		{"exactly the future", Consistency{Mode: Exactly, Revision: 1 << 40}, ErrRevisionAhead, fmt.Sprint(n.raft().LastIndex())},
	} {
		t.Run(c.name, func(t *testing.T) {
			// None of them is waited for: that would end with the context.
			s, err := n.Snapshot(testContext(t), graph.DefaultStore, c.ask, graph.Overlay{})
			if err == nil {
				s.Close()
				t.Fatal("it was answered")
			}
			t.Log(err)
			if (c.want != nil && !errors.Is(err, c.want)) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v", err)
			}
			if errors.Is(err, context.DeadlineExceeded) {
				t.Error("it waited")
			}
		})
	}
}

// What a node gave out before its clock was set back it still believes: pages go on,
// and no answer is of an earlier moment.
func TestInstantsOfAnEarlierClock(t *testing.T) {
	t.Parallel()
	now := newClock(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))
	config := testConfig(t, t.TempDir())
	config.Now = now.Now
	n := open(t, config)
	writeSchema(t, n)
	now.advance(time.Hour)
	ask := func(c Consistency) graph.Instant {
		t.Helper()
		s, err := n.Snapshot(testContext(t), graph.DefaultStore, c, graph.Overlay{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		return s.Instant()
	}
	given := ask(Consistency{})
	now.advance(-time.Hour)
	revision := n.db().Applied().Revision
	for _, c := range []Consistency{
		{Mode: Exactly, Revision: revision, Instant: given, Pinned: true},
		{Mode: AtLeast, Revision: revision, Instant: given},
	} {
		if got := ask(c); got != given {
			t.Errorf("%+v: the instant is %s, not %s", c, got, given)
		}
	}
	if got := ask(Consistency{Instant: graph.MaxInstant}); got != given+10_000_000 {
		t.Errorf("the instant is %s, ten seconds later than any clock was", got)
	}
}

// A clock that was set back does not make an answer's instant fall below the
// newest change.
func TestInstantsDoNotFallBelowStamps(t *testing.T) {
	t.Parallel()
	now := newClock(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))
	config := testConfig(t, t.TempDir())
	config.Now = now.Now
	n := open(t, config)
	writeSchema(t, n)
	high := now.instant()
	now.advance(-time.Hour)
	result := write(t, n, create(viewer("0", "hanna")))
	if result.Instant != high {
		t.Errorf("the stamp is %v, not %v", result.Instant.Time(), high.Time())
	}
	s, err := n.Snapshot(testContext(t), graph.DefaultStore, Consistency{}, graph.Overlay{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Instant() != high {
		t.Errorf("the instant is %v, not %v", s.Instant().Time(), high.Time())
	}
}

// A node that does not lead waits for a revision, and a leader of an earlier
// term is not taken for one.
func TestWaiting(t *testing.T) {
	t.Parallel()
	config := testConfig(t, t.TempDir())
	n := open(t, config)
	writeSchema(t, n)
	n.leading.Store(n.leading.Load() - 1) // As in the moment after an election.
	if err := n.Ready(); !errors.Is(err, ErrNotLeader) {
		t.Errorf("ready: %v", err)
	}
	if s, err := n.Snapshot(testContext(t), graph.DefaultStore, Consistency{Mode: Linearizable}, graph.Overlay{}); !errors.Is(err, ErrNotLeader) {
		t.Errorf("linearizable read: %v, %v", s, err)
	}
	next := Consistency{Mode: AtLeast, Revision: n.db().Applied().Revision + 1}

	t.Run("comes", func(t *testing.T) {
		got := make(chan error, 1)
		go func() {
			s, err := n.Snapshot(testContext(t), graph.DefaultStore, next, graph.Overlay{})
			if err == nil {
				if s.Revision() < next.Revision {
					err = fmt.Errorf("answered from revision %d", s.Revision())
				}
				s.Close()
			}
			got <- err
		}()
		select {
		case err := <-got:
			t.Fatalf("answered before the revision was there: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
		write(t, n, create(viewer("0", "hanna")))
		if err := <-got; err != nil {
			t.Error(err)
		}
	})
	next.Revision = n.db().Applied().Revision + 1
	t.Run("the caller leaves", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		defer cancel()
		if _, err := n.Snapshot(ctx, graph.DefaultStore, next, graph.Overlay{}); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrRevisionAhead) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("it does not come", func(t *testing.T) {
		n.config.WaitMax = 20 * time.Millisecond
		_, err := n.Snapshot(testContext(t), graph.DefaultStore, next, graph.Overlay{})
		t.Log(err)
		if !errors.Is(err, ErrRevisionAhead) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("the node closes", func(t *testing.T) {
		n.config.WaitMax = deadline
		got := make(chan error, 1)
		go func() {
			_, err := n.Snapshot(testContext(t), graph.DefaultStore, next, graph.Overlay{})
			got <- err
		}()
		time.Sleep(20 * time.Millisecond)
		closeNode(t, n)
		if err := <-got; !errors.Is(err, ErrShuttingDown) {
			t.Errorf("got %v", err)
		}
	})
}

// Every reader of a busy node sees a revision, an instant and a tuple that
// belong together, and never an older revision than before.
func TestReadersBesideAWriter(t *testing.T) {
	t.Parallel()
	n := open(t, testConfig(t, t.TempDir()))
	writeSchema(t, n)
	done := make(chan error, 4)
	stop := make(chan struct{})
	for range cap(done) {
		go func() {
			var last graph.Revision
			for {
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
				s, err := n.Snapshot(context.Background(), graph.DefaultStore, Consistency{Mode: Linearizable}, graph.Overlay{})
				if err != nil {
					done <- err
					return
				}
				// Whole requests only: both tuples of each, or none.
				a, b := viewer("a", "hanna"), viewer("b", "hanna")
				_, hasA, errA := s.Graph().Get(a.Object, a.Relation, a.Subject)
				_, hasB, errB := s.Graph().Get(b.Object, b.Relation, b.Subject)
				revision := s.Revision()
				s.Close()
				if err := errors.Join(errA, errB); err != nil {
					done <- err
					return
				}
				if hasA != hasB || revision < last {
					done <- fmt.Errorf("revision %d after %d, a %v, b %v", revision, last, hasA, hasB)
					return
				}
				last = revision
			}
		}()
	}
	for i := range 150 {
		operation := graph.Create
		if i%2 == 1 {
			operation = graph.Delete
		}
		write(t, n, &graph.Mutation{Updates: []graph.Update{
			{Operation: operation, Tuple: viewer("a", "hanna")},
			{Operation: operation, Tuple: viewer("b", "hanna")},
		}})
	}
	close(stop)
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
