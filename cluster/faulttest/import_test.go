package faulttest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"
)

// chunkTuples is how many tuples each step of a staged change has.
const chunkTuples = 1000

// kill -9 at a random moment of a staged change, its commit included, leaves all
// of it or nothing, no reader ever sees a part, and it can be gone on with after
// the restart. Writers work beside it.
func TestImport(t *testing.T) {
	s := settings{
		DataDir:           filepath.Join(t.TempDir(), "data"),
		SnapshotThreshold: 2000, SnapshotInterval: 50 * time.Millisecond, TrailingLogs: 500,
		LogMemTable: 1 << 20, GraphMemTable: 1 << 20,
	}
	random := seed(t)
	rng := rand.New(rand.NewPCG(random, 1<<33))
	h := newHistory()
	writers := newWriters(h, 2, random)
	// The first import is not disturbed, and tells how long one takes.
	var whole time.Duration
	inside := 0
	for i := range *killsFlag + 1 {
		m := importer{number: uint8(i), tuples: *tuplesFlag, committing: make(chan struct{}, 2)}
		// What became of it is left open here, and looked at below.
		h.begin(m.prefix(), m.updates(0, m.tuples)).expectAll()
		p := start(t, s)
		if i == 0 {
			p.must(request{Op: "schema"})
			begun := time.Now()
			if err := m.run(p); err != nil {
				t.Fatal(err)
			}
			whole = time.Since(begun)
			m.mustBeAll(p)
			p.stop()
			continue
		}
		ctx, cancel := context.WithCancel(context.Background())
		imported, looked := make(chan error, 1), make(chan error, 1)
		go func() { imported <- m.run(p) }()
		go func() { looked <- m.look(ctx, p) }()
		// Every other kill waits for the commit, which is short.
		alive := time.Duration(rng.Int64N(int64(2 * whole)))
		until := func() { time.Sleep(alive); p.kill() }
		if i%2 == 0 {
			alive = time.Duration(rng.Int64N(int64(whole / 2)))
			until = func() {
				select {
				case <-m.committing:
				case <-time.After(patience):
				}
				time.Sleep(alive)
				p.kill()
			}
		}
		if err := load(p, writers, until); err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := <-imported; err != nil {
			t.Fatal(err)
		}
		if err := <-looked; err != nil {
			t.Fatal(err)
		}
		if said := p.complaint(); said != "" {
			t.Fatalf("the process had a fault of its own:\n%s", said)
		}
		mustBeWhole(t, s.DataDir)

		p = start(t, s)
		found := p.must(request{Op: "count", Prefix: m.prefix()}).Count
		if found != 0 && found != m.tuples {
			t.Fatalf("after a kill %v into the import, %d of its %d tuples are there", alive, found, m.tuples)
		}
		staged := p.must(request{Op: "staged", Stage: m.number})
		if found == 0 {
			if !staged.Gone && staged.Chunks > 0 {
				inside++
			}
			if err := m.run(p); err != nil {
				t.Fatal(err)
			}
		}
		m.mustBeAll(p)
		p.stop()
		h.verify(t, s.DataDir)
		t.Logf("kill %d after %v: %d chunks were staged, %d tuples visible", i, alive.Round(time.Millisecond), staged.Chunks, found)
	}
	t.Logf("%d kills, %d of them within an import; one of %d tuples takes %v", *killsFlag, inside, *tuplesFlag, whole.Round(time.Millisecond))
}

// An importer stages tuples and commits them.
type importer struct {
	number uint8
	tuples int
	// committing has room for what each run sends: one element when it asks for
	// the commit.
	committing chan struct{}
}

func (m importer) prefix() string { return fmt.Sprintf("import-%d-", m.number) }

// updates returns those with the numbers from first to below last.
func (m importer) updates(first, last int) []update {
	var updates []update
	for i := first; i < last; i++ {
		updates = append(updates, update{Document: fmt.Sprintf("%s%d", m.prefix(), i/10), Person: fmt.Sprint(i % 10)})
	}
	return updates
}

// run goes on behind what is staged, and commits. It returns nil when the
// process is killed.
func (m importer) run(p *process) error {
	c, err := p.dial()
	if err != nil {
		return nil
	}
	defer c.close()
	staged, err := c.ask(request{Op: "staged", Stage: m.number})
	if err != nil {
		return nil
	}
	chunks := (m.tuples + chunkTuples - 1) / chunkTuples
	for chunk := int(staged.Chunks); chunk < chunks; chunk++ {
		updates := m.updates(chunk*chunkTuples, min(m.tuples, (chunk+1)*chunkTuples))
		r, err := c.ask(request{Op: "stage", Stage: m.number, Chunk: uint32(chunk), Updates: updates})
		switch {
		case err != nil:
			return nil
		case r.Refusal != "":
			return fmt.Errorf("chunk %d of %s is refused: %s", chunk, m.prefix(), r.Refusal)
		case r.Error != "":
			return nil
		}
	}
	m.committing <- struct{}{}
	r, err := c.ask(request{Op: "commit", Stage: m.number, Chunk: uint32(chunks), Actor: m.prefix()})
	if err == nil && r.Refusal != "" {
		return fmt.Errorf("the commit of %s is refused: %s", m.prefix(), r.Refusal)
	}
	return nil
}

// look counts what readers see of the import until ctx ends.
func (m importer) look(ctx context.Context, p *process) error {
	c, err := p.dial()
	if err != nil {
		return nil
	}
	defer c.close()
	for ctx.Err() == nil {
		r, err := c.ask(request{Op: "count", Prefix: m.prefix()})
		if err != nil || r.Error != "" {
			return nil
		}
		if r.Count != 0 && r.Count != m.tuples {
			return fmt.Errorf("at revision %d a reader saw %d of the %d tuples of %s", r.Revision, r.Count, m.tuples, m.prefix())
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

// mustBeAll checks that the import is there.
func (m importer) mustBeAll(p *process) {
	p.t.Helper()
	if found := p.must(request{Op: "count", Prefix: m.prefix()}).Count; found != m.tuples {
		p.t.Fatalf("%d of the %d tuples of %s are there", found, m.tuples, m.prefix())
	}
}
