package engine_test

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// TestSchemaReplaces: a schema that was judged to follow another is refused when that
// one is not the newest any more, and only then.
func TestSchemaReplaces(t *testing.T) {
	db, err := graph.Open(graph.Config{Dir: "graph", FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	e := engine.New(db, engine.Config{})
	revision := graph.Revision(0)
	apply := func(m *graph.Mutation) engine.Result {
		t.Helper()
		revision++
		result, err := e.Apply(revision, 1, graph.Instant(revision), m)
		if err != nil {
			t.Fatal(err)
		}
		return result
	}
	schema := func(text string, replaces *graph.Revision) *engine.Refusal {
		t.Helper()
		return apply(&graph.Mutation{Store: graph.DefaultStore, Schema: &graph.WriteSchema{Text: text, Replaces: replaces}}).Refusal
	}
	apply(&graph.Mutation{Init: &graph.Init{ClusterID: [16]byte{1}}})
	none := graph.Revision(0)
	if refusal := schema("definition a {}", &none); refusal != nil {
		t.Fatal(refusal)
	}
	first := revision
	for _, wrong := range []graph.Revision{0, first - 1, first + 1} {
		if refusal := schema("definition b {}", &wrong); refusal == nil || refusal.Reason != engine.SchemaReplaced {
			t.Errorf("a schema that follows the one of %d, and it is of %d: %v", wrong, first, refusal)
		}
	}
	if refusal := schema("definition b {}", &first); refusal != nil {
		t.Error(refusal)
	}
	if refusal := schema("definition c {}", nil); refusal != nil {
		t.Error("one that may follow any: ", refusal)
	}
}
