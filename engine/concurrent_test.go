package engine_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/engine/enginetest"
	"github.com/pembadb/pemba/graph"
)

// A heard is an answer with the revision and instant that it is said to be of.
type heard struct {
	revision graph.Revision
	instant  graph.Instant
	question engine.Check
	context  int
	answer   engine.Answer
	err      error
}

// TestTwinConcurrent has readers ask while a writer changes what they ask about, with all,
// nothing, or little of it in memory: each answer is the twin's at the revision and the
// instant that it is of.
func TestTwinConcurrent(t *testing.T) {
	r := seeded(t)
	m := &mix{}
	for range 6 {
		m.worlds++
		concurrentWorld(t, enginetest.NewWorld(r), r, m)
		if t.Failed() {
			break
		}
	}
	t.Log(m)
	if m.questions == 0 {
		t.Error("nothing was asked")
	}
}

func concurrentWorld(t *testing.T, w *enginetest.World, r *rand.Rand, m *mix) {
	const (
		changes = 60
		readers = 2
		asked   = 300 // by each reader, at most
	)
	e, err := enginetest.New(engine.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}()
	inMemory(t, e, m.worlds)
	if err := e.Schema(w.Text); err != nil {
		t.Fatalf("%v\n%s", err, w.Text)
	}
	fail := func(format string, args ...any) {
		t.Errorf(format, args...)
		t.Logf("schema:\n%s", w.Text)
	}
	contexts := []map[string]any{w.Context(), w.Context(), w.Context()}
	var now atomic.Int64
	now.Store(int64(e.Now))
	var stop atomic.Bool
	var reading sync.WaitGroup
	answers := make([][]heard, readers)
	for i := range readers {
		random := rand.New(rand.NewPCG(r.Uint64(), r.Uint64()))
		reading.Go(func() {
			for !stop.Load() && len(answers[i]) < asked {
				instant := graph.Instant(now.Load())
				s, err := e.Engine.Snapshot(e.Store, 0, instant, graph.Overlay{})
				if err != nil {
					t.Errorf("snapshot: %v", err)
					return
				}
				for range 3 {
					object := w.Objects[random.IntN(len(w.Objects))]
					d := w.Schema.Definition(object.Type)
					names := make([]string, 0, len(d.Relations)+len(d.Permissions))
					for _, n := range d.Relations {
						names = append(names, n.Name)
					}
					for _, n := range d.Permissions {
						names = append(names, n.Name)
					}
					if len(names) == 0 {
						continue
					}
					c := random.IntN(len(contexts))
					q := engine.Check{
						Object: object, Name: names[random.IntN(len(names))],
						Subject: w.Subjects[random.IntN(len(w.Subjects))], Context: contexts[c],
					}
					answer, err := s.Check(context.Background(), q)
					answers[i] = append(answers[i], heard{s.Revision(), instant, q, c, answer, err})
				}
				s.Close()
			}
		})
	}
	// What the tuples were at each revision. A change takes one and sometimes one or two
	// more, which change nothing that lives.
	states := map[graph.Revision][]graph.Tuple{e.Engine.DB().Applied().Revision: nil}
	model := map[string]graph.Tuple{}
	for range changes {
		before := e.Engine.DB().Applied().Revision
		if !change(e, w, model, fail) {
			break
		}
		for at := before + 1; at <= e.Engine.DB().Applied().Revision; at++ {
			states[at] = sorted(model)
		}
		e.Now += graph.Instant(w.IntN(10)) * 1_000_000
		now.Store(int64(e.Now))
	}
	stop.Store(true)
	reading.Wait()
	if t.Failed() {
		return
	}
	twins := map[string]*twin{}
	revisions := map[graph.Revision]bool{}
	for _, of := range answers {
		for _, h := range of {
			tuples, known := states[h.revision]
			if !known {
				t.Fatalf("an answer is of revision %d, which was not made", h.revision)
			}
			k := fmt.Sprint(h.revision, h.instant, h.question.Subject, h.context)
			tw := twins[k]
			if tw == nil {
				var living []graph.Tuple
				for _, tuple := range tuples {
					if tuple.Living(h.instant) {
						living = append(living, tuple)
					}
				}
				tw = &twin{schema: w.Schema, tuples: living, objects: w.Objects, subject: h.question.Subject, context: h.question.Context}
				tw.solve()
				twins[k] = tw
			}
			q := h.question
			want := verdictOf(tw.lower[atom{q.Object, q.Name}])
			if h.err != nil || !equalVerdicts(h.answer.Verdict, want) {
				fail("check %s:%s#%s@%s at revision %d, instant %d: %v (%v), want %v",
					q.Object.Type, q.Object.ID, q.Name, q.Subject, h.revision, h.instant, h.answer.Verdict, h.err, want)
				return
			}
			revisions[h.revision] = true
			m.questions++
		}
	}
	if len(revisions) == 1 && m.questions > 0 {
		t.Logf("the readers of world %d saw one revision only", m.worlds)
	}
}
