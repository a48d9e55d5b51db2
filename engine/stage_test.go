package engine_test

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/engine/enginetest"
	"github.com/pembadb/pemba/graph"
)

// TestStageLimit holds that a store has at most 16 staged changes at a time.
func TestStageLimit(t *testing.T) {
	e := newEnv(t, "definition person {}\ndefinition document { relation viewer: person }")
	tuple, err := graph.ParseTuple("document:a#viewer@person:anne")
	if err != nil {
		t.Fatal(err)
	}
	begin := func(n int) error {
		_, err := e.Write(&graph.Mutation{
			Stage:   &graph.Stage{Operation: graph.StageUpdates, ID: graph.StageID{byte(n)}},
			Updates: []graph.Update{{Operation: graph.Create, Tuple: tuple}},
		})
		return err
	}
	for i := range graph.StagesMax {
		if err := begin(i + 1); err != nil {
			t.Fatal(err)
		}
	}
	wantRefusal(t, "one more", begin(graph.StagesMax+1), engine.StageTooLarge)
	if _, err := e.Write(&graph.Mutation{Stage: &graph.Stage{Operation: graph.StageDrop, ID: graph.StageID{3}}}); err != nil {
		t.Fatal(err)
	}
	if err := begin(graph.StagesMax + 1); err != nil {
		t.Fatal(err)
	}
}

// TestStageMalformed holds that a step whose parts do not go together is refused.
func TestStageMalformed(t *testing.T) {
	e := newEnv(t, "definition person {}\ndefinition document { relation viewer: person }")
	tuple, err := graph.ParseTuple("document:a#viewer@person:anne")
	if err != nil {
		t.Fatal(err)
	}
	touch := []graph.Update{{Operation: graph.Touch, Tuple: tuple}}
	id := graph.StageID{1}
	for what, m := range map[string]*graph.Mutation{
		"delete":          {Stage: &graph.Stage{Operation: graph.StageUpdates, ID: id}, Updates: []graph.Update{{Operation: graph.Delete, Tuple: tuple}}},
		"no id":           {Stage: &graph.Stage{Operation: graph.StageUpdates}, Updates: touch},
		"no operation":    {Stage: &graph.Stage{ID: id}, Updates: touch},
		"commit with":     {Stage: &graph.Stage{Operation: graph.StageCommit, ID: id}, Updates: touch},
		"drop with":       {Stage: &graph.Stage{Operation: graph.StageDrop, ID: id}, Updates: touch},
		"collect with id": {Stage: &graph.Stage{Operation: graph.StageCollect, ID: id}},
		"a precondition": {
			Stage: &graph.Stage{Operation: graph.StageUpdates, ID: id}, Updates: touch,
			Preconditions: []graph.Precondition{{Filter: graph.Filter{ObjectType: "document"}}},
		},
	} {
		_, err := e.Write(m)
		wantRefusal(t, what, err, engine.Malformed)
	}
	if stages, err := e.Engine.DB().Stages(graph.DefaultStore); err != nil || len(stages) > 0 {
		t.Errorf("staged is %v (%v)", stages, err)
	}
}

// A crasher is a file system in memory that keeps what a crash would leave
// before the first changes of Pebble's manifest after it was told to.
type crasher struct {
	memory *vfs.MemFS

	mu     sync.Mutex
	keeps  bool
	clones []*vfs.MemFS
}

func (c *crasher) String() string { return "crasher" }

func (c *crasher) MaybeError(op errorfs.Op) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.keeps && len(c.clones) < 8 && op.Kind == errorfs.OpFileSync && strings.Contains(op.Path, "MANIFEST") {
		c.clones = append(c.clones, c.memory.CrashClone(vfs.CrashCloneCfg{}))
	}
	return nil
}

func (c *crasher) keep(keeps bool) []*vfs.MemFS {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keeps = keeps
	return c.clones
}

// TestStageCrash crashes while a staged change is committed and applies the same
// entry again: it must end as if there had been no crash, although what is stored
// then is not what the change was judged against.
func TestStageCrash(t *testing.T) {
	c := &crasher{memory: vfs.NewCrashableMem()}
	open := func(fs vfs.FS) *engine.Engine {
		db, err := graph.Open(graph.Config{
			Dir: "state", FS: fs, MemTableBytes: 64 << 10, CacheBytes: 1 << 20, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		return engine.New(db, engine.Config{})
	}
	e := open(errorfs.Wrap(c.memory, c))
	revision, now := graph.Revision(0), graph.InstantOf(enginetest.Start)
	apply := func(m *graph.Mutation) engine.Result {
		revision++
		if m.Init == nil {
			m.Store = graph.DefaultStore
		}
		result, err := e.Apply(revision, 1, now, m)
		if err != nil {
			t.Fatal(err)
		}
		if result.Refusal != nil {
			t.Fatal(result.Refusal)
		}
		return result
	}
	apply(&graph.Mutation{Init: &graph.Init{ClusterID: [16]byte{1}}})
	apply(&graph.Mutation{Schema: &graph.WriteSchema{Text: `
		caveat note(text string) { text == "" }
		definition person {}
		definition document { relation viewer: person with note }`}})
	// Contexts are long, so that few tuples make many batches, of which Pebble
	// holds at most four in memory.
	update := func(o graph.Operation, i, pad int) graph.Update {
		context := fmt.Sprintf(`{"text":%q}`, strings.Repeat("x", pad))
		return graph.Update{Operation: o, Tuple: graph.Tuple{
			Object:   graph.Object{Type: "document", ID: fmt.Sprint(i)},
			Relation: "viewer",
			Subject:  graph.Subject{Object: graph.Object{Type: "person", ID: "anne"}},
			Caveat:   "note", Context: []byte(context),
		}}
	}
	const tuples, chunk, pad = 450, 90, 20_000
	for i := 0; i < tuples; i += chunk {
		m := &graph.Mutation{}
		staged := &graph.Mutation{Stage: &graph.Stage{Operation: graph.StageUpdates, ID: graph.StageID{1}, Chunk: uint32(i / chunk)}}
		for j := i; j < i+chunk; j++ {
			switch j % 3 {
			case 0: // replaces
				m.Updates = append(m.Updates, update(graph.Touch, j, 1))
				staged.Updates = append(staged.Updates, update(graph.Touch, j, pad))
			case 1: // changes nothing
				m.Updates = append(m.Updates, update(graph.Touch, j, 2))
				staged.Updates = append(staged.Updates, update(graph.Touch, j, 2))
			case 2:
				staged.Updates = append(staged.Updates, update(graph.Create, j, pad))
			}
		}
		apply(m)
		apply(staged)
	}
	if _, err := e.DB().Flush(); err != nil {
		t.Fatal(err)
	}
	commit := &graph.Mutation{
		Stage: &graph.Stage{Operation: graph.StageCommit, ID: graph.StageID{1}, Chunk: tuples / chunk}, RequestID: []byte("the only one"),
	}
	before := revision
	c.keep(true)
	want := apply(commit)
	clones := c.keep(false)
	if want.Changed != tuples*2/3 || want.Stage.Committed != revision {
		t.Fatalf("the commit came to %+v", want)
	}
	changes, err := e.DB().Changes(graph.DefaultStore, graph.Position{Revision: revision}, tuples)
	if err != nil {
		t.Fatal(err)
	}
	unfinished := 0
	for i, clone := range clones {
		if unfinished == 2 {
			break
		}
		back := open(clone)
		if at := back.DB().Applied().Revision; at != before {
			t.Fatalf("after crash %d, %d is applied, not %d", i, at, before)
		}
		s, err := back.DB().Snapshot(graph.DefaultStore, 0, now)
		if err != nil {
			t.Fatal(err)
		}
		if rev, _ := s.UnfinishedStage(); rev != 0 {
			unfinished++
		}
		if count, err := s.Count(graph.Filter{}); err != nil || count != tuples*2/3 {
			t.Errorf("after crash %d there are %d tuples (%v)", i, count, err)
		}
		s.Close()
		got, err := back.Apply(revision, 1, now, commit)
		if err != nil || got != want {
			t.Errorf("after crash %d the commit came to %+v (%v), not %+v", i, got, err, want)
		}
		again, err := back.DB().Changes(graph.DefaultStore, graph.Position{Revision: revision}, tuples)
		if err != nil || fmt.Sprint(again) != fmt.Sprint(changes) {
			t.Errorf("after crash %d the change log differs (%v)", i, err)
		}
		if a := back.DB().Applied(); a.Checksum != e.DB().Applied().Checksum || a.ChecksumSince != 1 {
			t.Errorf("after crash %d the checksum is %x since %d", i, a.Checksum, a.ChecksumSince)
		}
		repeated := want
		repeated.Repeated = true
		if got, err := back.Apply(revision+1, 1, now, commit); err != nil || got != repeated {
			t.Errorf("after crash %d the commit repeated came to %+v (%v), not %+v", i, got, err, repeated)
		}
		if err := back.DB().CheckInvariants(); err != nil {
			t.Errorf("after crash %d: %v", i, err)
		}
		if err := back.DB().Close(); err != nil {
			t.Error(err)
		}
	}
	if unfinished == 0 {
		t.Errorf("none of %d crashes was in the middle of the change", len(clones))
	}
	if err := e.DB().Close(); err != nil {
		t.Error(err)
	}
}
