package authzed

import (
	"fmt"
	"strings"
	"testing"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc/codes"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/graph"
)

// TestMetadataStored: the metadata of a change is stored in the form in which
// pemba.v1 stores it, and its size is that of this form.
func TestMetadataStored(t *testing.T) {
	node := newMemoryNode(t)
	conn, _ := newServerWith(t, api.Config{Node: node})
	writeSchema(t, conn, documents)
	by := func(n int) map[string]any {
		m := map[string]any{"by": "anne", "at": []any{1.0, 1e21, 2.5, nil, true}, "in": map[string]any{"b": "<é>", "a": "\u2028"}, "pad": ""}
		b, err := graph.CanonicalContext(m)
		if err != nil {
			t.Fatal(err)
		}
		m["pad"] = strings.Repeat("x", n-len(b))
		return m
	}
	for _, n := range []int{200, metadataMax} {
		given := by(n)
		want, err := graph.CanonicalContext(given)
		if err != nil || len(want) != n {
			t.Fatal(len(want), err)
		}
		write(t, conn, given, update(t, v1.RelationshipUpdate_OPERATION_TOUCH, fmt.Sprintf("document:d%d#viewer@user:anne", n)))
		store, _ := node.StoreNamed(api.DefaultStoreName)
		changes, err := node.Changes(store.ID, graph.Position{Revision: store.Changed}, 1)
		if err != nil || len(changes) != 1 || string(changes[0].Metadata) != string(want) {
			t.Errorf("of %.200s, %v is stored, want %.200s", given, changes, want)
		}
	}
	// What HTML would escape is as long as it looks.
	marks := map[string]any{"x": strings.Repeat("<", metadataMax-100)}
	write(t, conn, marks, update(t, v1.RelationshipUpdate_OPERATION_TOUCH, "document:marks#viewer@user:anne"))
	deep := nested(t, graph.MaxContextDepth+1)
	_, err := v1.NewPermissionsServiceClient(conn).WriteRelationships(testContext(t), &v1.WriteRelationshipsRequest{OptionalTransactionMetadata: deep})
	if code, reason, _ := reasonOf(err); code != codes.InvalidArgument || reason != "MALFORMED" {
		t.Errorf("metadata that is nested too deep: %v", err)
	}
}
