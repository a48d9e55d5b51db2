package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

func TestAsOf(t *testing.T) {
	t.Parallel()
	now := newClock(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))
	config := testConfig(t, t.TempDir())
	config.Now = now.Now
	n := open(t, config)
	created := now.instant()
	now.advance(time.Minute)
	writeSchema(t, n)
	schema := now.instant()
	now.advance(time.Minute)
	guest := viewer("0", "hanna")
	guest.Relation, guest.ValidUntil = "guest", now.instant()+30_000_000
	entered := write(t, n, create(guest))
	now.advance(time.Minute)
	left := write(t, n, &graph.Mutation{Updates: []graph.Update{{Operation: graph.Touch, Tuple: viewer("1", "hanna")}}})
	now.advance(time.Minute)

	type view = engine.Decision
	for _, c := range []struct {
		name     string
		at       graph.Instant
		revision graph.Revision
		decision view // Of document:0, zero where there is no schema.
	}{
		{"before the cluster", 1, 0, 0},
		{"as the cluster was made", created, 0, 0},
		{"the schema alone", schema, 0, engine.Denied},
		{"just before the tuple", entered.Instant - 1, 0, engine.Denied},
		{"at the tuple", entered.Instant, entered.Revision, engine.Allowed},
		{"the end of its lifetime, just before", guest.ValidUntil - 1, entered.Revision, engine.Allowed},
		{"the end of its lifetime", guest.ValidUntil, 0, engine.Denied},
		{"later", left.Instant, 0, engine.Denied},
		{"now", now.instant(), 0, engine.Denied},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := n.Snapshot(testContext(t), graph.DefaultStore, Consistency{Mode: AsOf, Instant: c.at}, graph.Overlay{})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if s.Instant() != c.at || (c.revision != 0 && s.Revision() != c.revision) {
				t.Errorf("revision %d at %s", s.Revision(), s.Instant())
			}
			answer, err := s.Check(testContext(t), engine.Check{Object: guest.Object, Name: "view", Subject: guest.Subject})
			var refusal *engine.Refusal
			switch {
			case c.decision == 0:
				if !errors.As(err, &refusal) || refusal.Reason != engine.NoSchema {
					t.Errorf("got %v, %v", answer.Decision, err)
				}
			case err != nil || answer.Decision != c.decision:
				t.Errorf("got %v, %v", answer.Decision, err)
			}
		})
	}

	// An entry of the background is stamped behind the moments that were asked about,
	// by as little as can be: what lies ahead must lie ahead of those entries.
	ahead := now.instant() + graph.Instant(time.Second.Microseconds())
	for _, c := range []struct {
		name  string
		store graph.StoreID
		ask   Consistency
		want  error
	}{
		{"a moment to come", graph.DefaultStore, Consistency{Mode: AsOf, Instant: ahead}, ErrInstantAhead},
		{"the last moment of all", graph.DefaultStore, Consistency{Mode: AsOf, Instant: graph.MaxInstant}, ErrInstantAhead},
		{"no moment", graph.DefaultStore, Consistency{Mode: AsOf}, nil},
		{"a revision too", graph.DefaultStore, Consistency{Mode: AsOf, Instant: 5, Revision: 5}, nil},
		{"an unknown store", 99, Consistency{Mode: AsOf, Instant: 5}, graph.ErrUnknownStore},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := n.Snapshot(testContext(t), c.store, c.ask, graph.Overlay{})
			if err == nil {
				s.Close()
			}
			if err == nil || (c.want != nil && !errors.Is(err, c.want)) {
				t.Errorf("got %v", err)
			}
		})
	}

	// The clock was set back: up to the newest stamp the past is known.
	now.advance(-24 * time.Hour)
	s, err := n.Snapshot(testContext(t), graph.DefaultStore, Consistency{Mode: AsOf, Instant: left.Instant}, graph.Overlay{})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if s, err := n.Snapshot(testContext(t), graph.DefaultStore, Consistency{Mode: AsOf, Instant: ahead}, graph.Overlay{}); !errors.Is(err, ErrInstantAhead) {
		if err == nil {
			s.Close()
		}
		t.Errorf("beyond the newest stamp: %v", err)
	}
	// What is written now is after the moment that was asked about.
	if result := write(t, n, create(viewer("2", "hanna"))); result.Instant <= left.Instant {
		t.Errorf("a write of %s is behind an answer as of %s", result.Instant, left.Instant)
	}

	// What is pruned is gone, also the emptiness of before.
	now.advance(48 * time.Hour)
	setRetention(t, n, graph.DefaultStore, graph.Retention(time.Second.Microseconds()))
	now.advance(time.Minute)
	write(t, n, &graph.Mutation{Prune: &graph.Prune{}})
	for _, at := range []graph.Instant{1, schema, entered.Instant} {
		_, err := n.Snapshot(testContext(t), graph.DefaultStore, Consistency{Mode: AsOf, Instant: at}, graph.Overlay{})
		if !errors.Is(err, graph.ErrRevisionGone) {
			t.Errorf("as of %s after all was pruned: %v", at, err)
		}
	}
}

// A proposal that has its stamp and is not applied yet holds up who asks for
// that moment, and nobody else.
func TestAsOfWaitsForWritesUnderWay(t *testing.T) {
	t.Parallel()
	now := newClock(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))
	config := testConfig(t, t.TempDir())
	config.Now = now.Now
	config.WaitMax = 20 * time.Millisecond
	n := open(t, config)
	writeSchema(t, n)
	now.advance(time.Second)
	stamp, proposal := n.stamps.take(n.now())
	now.advance(time.Second)
	ask := func(at graph.Instant) error {
		s, err := n.Snapshot(testContext(t), graph.DefaultStore, Consistency{Mode: AsOf, Instant: at}, graph.Overlay{})
		if err == nil {
			s.Close()
		}
		return err
	}
	if err := ask(stamp - 1); err != nil {
		t.Errorf("just before: %v", err)
	}
	if err := ask(stamp); !errors.Is(err, ErrTooBusy) {
		t.Errorf("at the stamp: %v", err)
	}
	if err := ask(stamp + 1); !errors.Is(err, ErrTooBusy) {
		t.Errorf("just after: %v", err)
	}
	n.config.WaitMax = deadline
	answered := make(chan error, 1)
	go func() { answered <- ask(stamp) }()
	select {
	case err := <-answered:
		t.Fatalf("answered beside a write of the moment: %v", err)
	case <-time.After(10 * time.Millisecond):
	}
	n.stamps.end(proposal)
	n.progress.broadcast()
	if err := <-answered; err != nil {
		t.Error(err)
	}

	n.leading.Store(n.leading.Load() - 1) // As in the moment after an election.
	if err := ask(n.db().Applied().Stamp); !errors.Is(err, ErrNotLeader) {
		t.Errorf("without the leader: %v", err)
	}
	if err := ask(n.db().Applied().Stamp - 1); err != nil {
		t.Errorf("without the leader, before the newest stamp: %v", err)
	}
}

// A write that has its stamp and then is not admitted holds up nobody.
func TestAsOfBesideARefusedWrite(t *testing.T) {
	t.Parallel()
	config := testConfig(t, t.TempDir())
	config.CollectPause, config.PrunePause = time.Hour, time.Hour // Nothing else is written.
	n := open(t, config)
	writeSchema(t, n)
	n.admission.mu.Lock() // The write comes as far as this.
	refused := make(chan error)
	go func() {
		m := create(viewer("0", "hanna"))
		m.Store = graph.DefaultStore
		_, err := n.Write(testContext(t), m)
		refused <- err
	}()
	eventually(t, "the stamp of the write", func() bool { return !n.stamps.isSettled(n.now()) })
	answered := make(chan error)
	go func() {
		// Its own entry may be refused as the write is.
		at, err := n.now(), ErrTooBusy
		for errors.Is(err, ErrTooBusy) {
			var s *engine.Snapshot
			if s, err = n.Snapshot(testContext(t), graph.DefaultStore, Consistency{Mode: AsOf, Instant: at}, graph.Overlay{}); err == nil {
				s.Close()
			}
		}
		answered <- err
	}()
	eventually(t, "the question", func() bool {
		n.progress.mu.Lock()
		defer n.progress.mu.Unlock()
		return n.progress.changed != nil
	})
	most := n.admission.entriesMax
	n.admission.entriesMax = 0
	n.admission.mu.Unlock()
	if err := <-refused; !errors.Is(err, ErrTooBusy) {
		t.Errorf("the write: %v", err)
	}
	n.admission.mu.Lock()
	n.admission.entriesMax = most
	n.admission.mu.Unlock()
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

// A clock that no stamp can be made of takes no writes.
func TestClockBefore1970(t *testing.T) {
	t.Parallel()
	now := newClock(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))
	config := testConfig(t, t.TempDir())
	config.Now = now.Now
	n := open(t, config)
	writeSchema(t, n)
	now.advance(-70 * 365 * 24 * time.Hour)
	m := create(viewer("0", "hanna"))
	m.Store = graph.DefaultStore
	if _, err := n.Write(testContext(t), m); err == nil || !strings.Contains(err.Error(), "1970") {
		t.Errorf("got %v", err)
	}
}

// A pebbleLogger fails the test with what Pebble cannot do.
type pebbleLogger struct{ t *testing.T }

func (pebbleLogger) Infof(string, ...any)                {}
func (l pebbleLogger) Errorf(format string, args ...any) { l.t.Errorf(format, args...) }
func (l pebbleLogger) Fatalf(format string, args ...any) { l.t.Fatalf(format, args...) }

// A store of format version 1 does not say which revision made it. Before its
// first change it was empty all the same.
func TestAsOfBeforeAnUpgradedStore(t *testing.T) {
	t.Parallel()
	now := newClock(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))
	config := testConfig(t, t.TempDir())
	config.Now = now.Now
	n := open(t, config)
	made := now.instant()
	now.advance(time.Minute)
	writeSchema(t, n)
	schema := n.db().Applied()
	closeNode(t, n)

	comparer := *pebble.DefaultComparer
	comparer.Name = "pemba.v1"
	comparer.Split = func(key []byte) int {
		if len(key) > 5 && key[0] == 'z' {
			return 5
		}
		return len(key)
	}
	state, err := pebble.Open(filepath.Join(config.DataDir, "state"), &pebble.Options{
		Comparer: &comparer, DisableWAL: true, DisableAutomaticCompactions: true, Logger: pebbleLogger{t},
	})
	if err != nil {
		t.Fatal(err)
	}
	record := binary.AppendUvarint([]byte{1}, uint64(schema.Revision))
	record = append(binary.AppendUvarint(record, uint64(schema.Stamp)), 1, 0)
	store := []byte{0, 0, 0, 1}
	for key, value := range map[string][]byte{
		"o" + string(store): record,
		"z" + string(binary.BigEndian.AppendUint64(store, uint64(schema.Revision))): []byte(testSchema),
		"mf": {1},
	} {
		if err := state.Set([]byte(key), value, pebble.NoSync); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(state.Delete([]byte("ms"), pebble.NoSync), state.Flush(), state.Close()); err != nil {
		t.Fatal(err)
	}

	n = open(t, config)
	if info, ok := n.StoreNamed(graph.DefaultStoreName); !ok || info.Created != 0 || info.Changed != schema.Revision {
		t.Fatalf("the store is %+v", info)
	}
	for at, want := range map[graph.Instant]bool{1: false, made: false, schema.Stamp - 1: false, schema.Stamp: true} {
		s, err := n.Snapshot(testContext(t), graph.DefaultStore, Consistency{Mode: AsOf, Instant: at}, graph.Overlay{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Check(testContext(t), engine.Check{Object: viewer("0", "hanna").Object, Name: "view", Subject: viewer("0", "hanna").Subject})
		var refusal *engine.Refusal
		if none := errors.As(err, &refusal) && refusal.Reason == engine.NoSchema; none == want || (want && err != nil) {
			t.Errorf("as of %s, revision %d: %v", at, s.Revision(), err)
		}
		s.Close()
	}
}

// An answer as of a moment is the last word on it, however many write: asked
// again when all is over, the same revision is found.
func TestAsOfIsRepeatable(t *testing.T) {
	t.Parallel()
	n := open(t, testConfig(t, t.TempDir()))
	writeSchema(t, n)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	type answer struct {
		at       graph.Instant
		revision graph.Revision
	}
	answers := make([][]answer, 4)
	for i := range answers {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				// The very moment, in which writes are being stamped.
				at := n.now()
				s, err := n.Snapshot(testContext(t), graph.DefaultStore, Consistency{Mode: AsOf, Instant: at}, graph.Overlay{})
				if err != nil {
					t.Error(err)
					return
				}
				answers[i] = append(answers[i], answer{at, s.Revision()})
				s.Close()
			}
		})
	}
	var writers sync.WaitGroup
	for i := range 8 {
		writers.Go(func() {
			for j := range 40 {
				write(t, n, create(viewer(fmt.Sprintf("%d-%d", i, j), "hanna")))
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
	count := 0
	for _, of := range answers {
		for _, a := range of {
			if revision, err := n.RevisionAt(graph.DefaultStore, a.at); err != nil || revision != a.revision {
				t.Errorf("as of %s: revision %d, and %d when asked again, %v", a.at, a.revision, revision, err)
			}
			count++
		}
	}
	t.Logf("%d answers", count)
	if count == 0 {
		t.Error("nothing was asked")
	}
}
