package engine_test

import (
	"fmt"
	"testing"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// TestSchemaReplaces: a schema that was judged to follow another is refused when that
// one is not the newest any more, and only then.
func TestSchemaReplaces(t *testing.T) {
	db, apply := newGraph(t)
	schema := func(text string, replaces *graph.Revision) error {
		t.Helper()
		return apply(&graph.Mutation{Store: graph.DefaultStore, Schema: &graph.WriteSchema{Text: text, Replaces: replaces}})
	}
	if err := apply(&graph.Mutation{Init: &graph.Init{ClusterID: [16]byte{1}}}); err != nil {
		t.Fatal(err)
	}
	none := graph.Revision(0)
	if err := schema("definition a {}", &none); err != nil {
		t.Fatal(err)
	}
	first := db.Applied().Revision
	for _, wrong := range []graph.Revision{0, first - 1, first + 1} {
		wantRefusal(t, fmt.Sprintf("a schema that follows the one of %d, and it is of %d", wrong, first),
			schema("definition b {}", &wrong), engine.SchemaReplaced)
	}
	if err := schema("definition b {}", &first); err != nil {
		t.Error(err)
	}
	if err := schema("definition c {}", nil); err != nil {
		t.Error("one that may follow any: ", err)
	}
}
