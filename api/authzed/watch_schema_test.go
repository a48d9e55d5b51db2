package authzed

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/graph"
)

// TestWatchSchemaWithExpirations: a schema that ends more lifetimes than the change
// log gives at a time is told, once, by the messages of its revision, to who was
// there and to who comes back.
func TestWatchSchemaWithExpirations(t *testing.T) {
	// Nothing but the schema ends the lifetimes, and they are over when the test says so.
	var ahead atomic.Int64
	node := openNode(t, cluster.Config{
		InMemory: true, CollectPause: time.Hour, Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
	})
	conn, _ := newServerWith(t, api.Config{Node: node})
	writeSchema(t, conn, watchSchema)
	soon := time.Now().Add(time.Hour)
	var updates []*v1.RelationshipUpdate
	for i := range 300 {
		updates = append(updates, update(t, v1.RelationshipUpdate_OPERATION_TOUCH,
			fmt.Sprintf("document:d%d#viewer@user:anne[expiration:%s]", i, soon.UTC().Format(time.RFC3339Nano))))
	}
	before := write(t, conn, nil, updates...)
	ctx := testContext(t)
	there := watch(t, ctx, conn, after(before))
	ahead.Store(int64(2 * time.Hour))
	written := writeSchema(t, conn, watchSchema+"\ndefinition robot {}\n")
	store, _ := node.StoreNamed(api.DefaultStoreName)
	changes, err := node.Changes(store.ID, graph.Position{Revision: store.Changed}, 1)
	if err != nil || len(changes) != 1 || !changes[0].SchemaChanged || changes[0].Count != len(updates) {
		t.Fatalf("the schema ended %v, %v", changes, err)
	}
	for name, stream := range map[string]v1.WatchService_WatchClient{
		"who was there": there, "who comes back": watch(t, ctx, conn, after(before)),
	} {
		told := 0
		for {
			m, err := stream.Recv()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if len(m.GetUpdates()) > 0 {
				t.Errorf("%s was told of %d updates", name, len(m.GetUpdates()))
			}
			if m.GetSchemaUpdated() {
				told++
				if m.GetChangesThrough().GetToken() != written.GetToken() {
					t.Errorf("%s was told of the schema with another token than its write returned", name)
				}
			}
			if m.GetIsCheckpoint() && m.GetChangesThrough().GetToken() == written.GetToken() {
				break
			}
		}
		if told != 1 {
			t.Errorf("%s was told of the schema %d times, want once", name, told)
		}
	}
}
