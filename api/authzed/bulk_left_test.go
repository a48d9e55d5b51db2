package authzed

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// A cutNode is a node whose callers go away while a chunk of an import is in the log:
// cut, unless it is nil, ends the call, and nobody learns what becomes of the chunk.
type cutNode struct {
	*cluster.Node
	cut atomic.Pointer[context.CancelFunc]
}

func (n *cutNode) Write(ctx context.Context, m *graph.Mutation) (engine.Result, error) {
	cut := n.cut.Load()
	if cut == nil || m.Stage == nil || m.Stage.Operation != graph.StageUpdates {
		return n.Node.Write(ctx, m)
	}
	(*cut)()
	<-ctx.Done()
	if _, err := n.Node.Write(context.WithoutCancel(ctx), m); err != nil {
		return engine.Result{}, err
	}
	return engine.Result{}, fmt.Errorf("%w: %w", cluster.ErrOutcomeUnknown, ctx.Err())
}

// stagesOf returns how many imports of the default store are not done.
func stagesOf(t testing.TB, node *cluster.Node) int {
	t.Helper()
	store, _ := node.StoreNamed(api.DefaultStoreName)
	stages, err := node.Stages(store.ID)
	if err != nil {
		t.Fatal(err)
	}
	return len(stages)
}

// TestImportCutOffAtOnce: of imports whose clients go away while their first chunk is
// in the log nothing stays, however many they are.
func TestImportCutOffAtOnce(t *testing.T) {
	node := &cutNode{Node: newMemoryNode(t)}
	conn, _ := newServerWith(t, api.Config{Node: node})
	writeSchema(t, conn, documents)
	one := parseRelationship(t, "document:a#viewer@user:anne")
	ctx := testContext(t)
	for range graph.StagesMax + 1 {
		sending, cut := context.WithCancel(ctx)
		node.cut.Store(&cut)
		stream, err := v1.NewPermissionsServiceClient(conn).ImportBulkRelationships(sending)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&v1.ImportBulkRelationshipsRequest{Relationships: []*v1.Relationship{one}}); err != nil {
			t.Fatal(err)
		}
		<-sending.Done()
		if err := stream.RecvMsg(new(v1.ImportBulkRelationshipsResponse)); status.Code(err) != codes.Canceled {
			t.Fatalf("an import that was cut off ended with %v", err)
		}
	}
	// The handler goes on after its client has gone.
	for deadline := time.Now().Add(patience); stagesOf(t, node.Node) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d imports are left behind", stagesOf(t, node.Node))
		}
	}
	node.cut.Store(nil)
	if n, err := importBulk(t, conn, []string{"document:a#viewer@user:anne"}); n != 1 || err != nil {
		t.Fatalf("the next import: %d, %v", n, err)
	}
}

// TestTooManyImports: an import is refused while as many are open as may be, in words
// that are about that; those that nobody went on with for long make room.
func TestTooManyImports(t *testing.T) {
	// A node whose clock is behind takes what happens for long past.
	for name, behind := range map[string]time.Duration{"just now": 0, "long ago": api.LeftBehindAfter + time.Minute} {
		t.Run(name, func(t *testing.T) {
			node := openNode(t, cluster.Config{InMemory: true, Now: func() time.Time { return time.Now().Add(-behind) }})
			conn, _ := newServerWith(t, api.Config{Node: node})
			writeSchema(t, conn, documents)
			var open []grpc.ClientStreamingClient[v1.ImportBulkRelationshipsRequest, v1.ImportBulkRelationshipsResponse]
			for i := range graph.StagesMax {
				stream, err := v1.NewPermissionsServiceClient(conn).ImportBulkRelationships(testContext(t))
				if err != nil {
					t.Fatal(err)
				}
				one := parseRelationship(t, fmt.Sprintf("document:d%d#viewer@user:anne", i))
				if err := stream.Send(&v1.ImportBulkRelationshipsRequest{Relationships: []*v1.Relationship{one}}); err != nil {
					t.Fatal(err)
				}
				open = append(open, stream)
			}
			for deadline := time.Now().Add(patience); stagesOf(t, node) < len(open); time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%d imports are open, want %d", stagesOf(t, node), len(open))
				}
			}
			n, err := importBulk(t, conn, []string{"document:a#viewer@user:anne"})
			_, other := open[0].CloseAndRecv()
			if behind == 0 {
				if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "16 imports") || strings.Contains(err.Error(), "several") {
					t.Errorf("one more import: %v", err)
				}
				if other != nil {
					t.Errorf("one that was open: %v", other)
				}
				return
			}
			if n != 1 || err != nil {
				t.Errorf("one more import: %d, %v", n, err)
			}
			wantRefusal(t, other, codes.Aborted, v1.ErrorReason_ERROR_REASON_SERIALIZATION_FAILURE.String())
		})
	}
}

// TestImportTooLarge: an import of more relationships than may become visible at once
// is refused in words that are about that.
func TestImportTooLarge(t *testing.T) {
	conn, _ := newServerWith(t, api.Config{Limits: api.Limits{ImportTotal: 1}})
	writeSchema(t, conn, documents)
	_, err := importBulk(t, conn, []string{"document:a#viewer@user:anne"}, []string{"document:b#viewer@user:anne"})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "several imports") || strings.Contains(err.Error(), "16") {
		t.Errorf("got %v", err)
	}
}
