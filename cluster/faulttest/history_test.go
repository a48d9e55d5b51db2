package faulttest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pembadb/pemba/graph"
)

// What became of a request, as far as the writer knows.
type fate uint8

const (
	unknown      fate = iota // Never answered, or answered with "unknown".
	acknowledged             // Answered with a revision.
	refused                  // Answered with an error that says it was not done.
)

// A past is a request and its fate.
type past struct {
	updates  []update
	fate     fate
	revision graph.Revision
	found    bool // Whether the change log has it.
	// left is what the change log has not shown yet of updates, for a request
	// whose changes come in another order; nil for one that keeps its order.
	left map[update]bool
}

// A history is what all writers asked and were told.
type history struct {
	mu       sync.Mutex
	requests map[string]*past
	// newest is the highest revision that anyone was told of.
	newest graph.Revision

	acknowledged, unknown, refused, changes atomic.Int64
}

func newHistory() *history { return &history{requests: map[string]*past{}} }

func (h *history) begin(actor string, updates []update) *past {
	p := &past{updates: updates}
	h.mu.Lock()
	h.requests[actor] = p
	h.mu.Unlock()
	return p
}

func (h *history) end(p *past, r reply, err error) {
	switch {
	case err != nil || r.Unknown:
		h.unknown.Add(1)
		return
	case r.Error != "" || r.Refusal != "":
		h.refused.Add(1)
		p.fate = refused
		return
	}
	h.acknowledged.Add(1)
	h.changes.Add(int64(len(p.updates)))
	h.mu.Lock()
	p.fate, p.revision = acknowledged, r.Revision
	h.newest = max(h.newest, r.Revision)
	h.mu.Unlock()
}

// A writer sends requests one after the other: new tuples, one or many, and
// deletions of earlier ones together with new ones.
type writer struct {
	h     *history
	name  string
	next  int
	rng   *rand.Rand
	alive []update // Tuples that were acknowledged and not deleted.
}

// run writes until the process is gone or stop is closed.
func (w *writer) run(p *process, stop <-chan struct{}) error {
	c, err := p.dial()
	if err != nil {
		return nil // Killed before it listened to this one.
	}
	defer c.close()
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		w.next++
		actor := fmt.Sprintf("%s-%d", w.name, w.next)
		var updates []update
		deleted := 0
		switch kind := w.rng.IntN(10); {
		case kind < 5:
			updates = append(updates, update{Document: actor, Person: "0"})
		case kind < 8:
			for i := range 2 + w.rng.IntN(30) {
				updates = append(updates, update{Document: actor, Person: fmt.Sprint(i)})
			}
		default:
			deleted = min(len(w.alive), 1+w.rng.IntN(10))
			for _, u := range w.alive[:deleted] {
				u.Delete = true
				updates = append(updates, u)
			}
			for i := range 1 + w.rng.IntN(3) {
				updates = append(updates, update{Document: actor, Person: fmt.Sprint(i)})
			}
		}
		// What is asked to be deleted may or may not be there from now on.
		w.alive = w.alive[deleted:]
		asked := w.h.begin(actor, updates)
		r, err := c.ask(request{Op: "write", Actor: actor, Updates: updates})
		w.h.end(asked, r, err)
		if err != nil {
			return nil
		}
		if r.Refusal != "" {
			return fmt.Errorf("request %s was refused: %s", actor, r.Refusal)
		}
		if r.Error != "" {
			return nil // The node stopped.
		}
		w.alive = append(w.alive, updates[deleted:]...)
	}
}

// verify reads the state in a data directory that no process has open, and
// compares it with the history.
func (h *history) verify(t *testing.T, dataDir string) {
	t.Helper()
	db, err := graph.Open(graph.Config{Dir: filepath.Join(dataDir, "state"), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, p := range h.requests {
		p.found = false
		if p.left != nil {
			p.expectAll()
		}
	}
	present := map[update]bool{}
	var (
		from     graph.Position
		sequence uint64
		last     graph.Revision
	)
	for {
		// A limit that cuts revisions: they must join again.
		revisions, err := db.Changes(graph.DefaultStore, from, 4999)
		if err != nil {
			t.Fatal(err)
		}
		if len(revisions) == 0 {
			break
		}
		for i := range revisions {
			r := &revisions[i]
			if r.Count == 0 {
				continue // A schema.
			}
			if r.Sequence != sequence+1 || r.Revision < last || (r.Revision == last) != (r.Offset > 0) {
				t.Fatalf("revision %d from change %d on has number %d, after revision %d and number %d",
					r.Revision, r.Offset, r.Sequence, last, sequence)
			}
			if err := h.match(r, present); err != nil {
				t.Fatal(err)
			}
			sequence += uint64(len(r.Changes))
			last = r.Revision
		}
		from = revisions[len(revisions)-1].End()
	}
	missing := 0
	for actor, p := range h.requests {
		if p.fate == acknowledged && !p.found {
			if missing++; missing < 10 {
				t.Errorf("request %s was acknowledged at revision %d and is not there (the log ends at %d)", actor, p.revision, last)
			}
		}
	}
	if missing > 0 {
		t.Fatalf("%d acknowledged requests are missing", missing)
	}
	h.compare(t, db, present)
	if err := db.CheckInvariants(); err != nil {
		t.Error(err)
	}
}

// match finds the request that a revision, or a part of one, is of, and adds
// its changes to what is present.
func (h *history) match(r *graph.LoggedRevision, present map[update]bool) error {
	p := h.requests[r.RecordedActor]
	switch {
	case p == nil:
		return fmt.Errorf("revision %d is of %q, which nobody asked for", r.Revision, r.RecordedActor)
	case p.found && r.Offset == 0:
		return fmt.Errorf("request %s is there a second time, at revision %d", r.RecordedActor, r.Revision)
	case p.fate == refused:
		return fmt.Errorf("request %s was refused and is there, at revision %d", r.RecordedActor, r.Revision)
	case p.fate == acknowledged && p.revision != r.Revision:
		return fmt.Errorf("request %s was acknowledged at revision %d and is at %d", r.RecordedActor, p.revision, r.Revision)
	case r.Count != len(p.updates):
		return fmt.Errorf("request %s has %d changes at revision %d, not %d", r.RecordedActor, r.Count, r.Revision, len(p.updates))
	}
	p.found = true
	for i, change := range r.Changes {
		want := p.updates[int(r.Offset)+i]
		if p.left != nil {
			want = update{false, change.Tuple.Object.ID, change.Tuple.Subject.ID}
			if !p.left[want] {
				return fmt.Errorf("request %s did not ask for its change %d, or once: %+v", r.RecordedActor, int(r.Offset)+i, want)
			}
			delete(p.left, want)
		}
		kind := graph.Created
		if want.Delete {
			kind = graph.Deleted
		}
		got := update{want.Delete, change.Tuple.Object.ID, change.Tuple.Subject.ID}
		if got != want || change.Kind != kind {
			return fmt.Errorf("change %d of request %s is %v %+v, not %+v", int(r.Offset)+i, r.RecordedActor, change.Kind, got, want)
		}
		got.Delete = false
		if present[got] != want.Delete {
			return fmt.Errorf("change %d of request %s does not follow from those before: %+v", int(r.Offset)+i, r.RecordedActor, want)
		}
		if want.Delete {
			delete(present, got)
		} else {
			present[got] = true
		}
	}
	return nil
}

// expectAll makes the request one whose changes may come in any order.
func (p *past) expectAll() {
	p.left = make(map[update]bool, len(p.updates))
	for _, u := range p.updates {
		p.left[u] = true
	}
}

// compare checks that the stored tuples are those present.
func (h *history) compare(t *testing.T, db *graph.DB, present map[update]bool) {
	t.Helper()
	s, err := db.Snapshot(graph.DefaultStore, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	count := 0
	if err := eachTuple(s, graph.Filter{}, func(tuple *graph.Tuple) {
		if u := (update{Document: tuple.Object.ID, Person: tuple.Subject.ID}); !present[u] {
			t.Fatalf("%+v is stored, but no change made it", u)
		}
		count++
	}); err != nil {
		t.Fatal(err)
	}
	if count != len(present) {
		t.Fatalf("%d tuples are stored, but the changes make %d", count, len(present))
	}
}

// load runs writers against a process until stop returns, and gives their first
// error.
func load(p *process, writers []*writer, until func()) error {
	stop := make(chan struct{})
	errs := make(chan error, len(writers))
	for _, w := range writers {
		go func() { errs <- w.run(p, stop) }()
	}
	until()
	close(stop)
	var all []error
	for range writers {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// writesAfter waits until something is acknowledged from now on, which on a slow
// machine takes a while, but no longer than patience.
func (h *history) writesAfter(p *process) {
	before := h.acknowledged.Load()
	for wait := time.Now().Add(patience); h.acknowledged.Load() == before && time.Now().Before(wait); {
		select {
		case <-p.exited:
			return
		case <-time.After(time.Millisecond):
		}
	}
}

func newWriters(h *history, count int, seed uint64) []*writer {
	writers := make([]*writer, count)
	for i := range writers {
		writers[i] = &writer{h: h, name: fmt.Sprintf("w%d", i), rng: rand.New(rand.NewPCG(seed, uint64(i)))}
	}
	return writers
}

// watch reads the newest revision again and again until the process is gone or
// ctx ends, and returns the highest it saw.
func watch(ctx context.Context, p *process) (highest graph.Revision, err error) {
	c, err := p.dial()
	if err != nil {
		return 0, nil
	}
	defer c.close()
	for ctx.Err() == nil {
		r, err := c.ask(request{Op: "status"})
		if err != nil || r.Error != "" {
			break
		}
		if r.Status.Applied < highest {
			return highest, fmt.Errorf("a read showed revision %d after %d", r.Status.Applied, highest)
		}
		highest = r.Status.Applied
	}
	return highest, nil
}
