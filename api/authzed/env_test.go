package authzed

import (
	"context"
	"log/slog"
	"testing"
	"time"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/graph"
)

// testKey is the key of the servers of the tests.
const testKey = "s3cret"

// newServer starts a real node and a server that speaks this dialect, both of
// which end with the test, and returns a connection with its key.
func newServer(t testing.TB) *grpc.ClientConn {
	t.Helper()
	conn, _ := newServerWith(t, api.Config{})
	return conn
}

// newNode opens a real node, which ends with the test.
func newNode(t testing.TB) *cluster.Node {
	t.Helper()
	return newNodeIn(t, t.TempDir())
}

// newNodeIn is newNode with its data in a folder.
func newNodeIn(t testing.TB, dir string) *cluster.Node {
	t.Helper()
	return openNode(t, cluster.Config{DataDir: dir})
}

// newMemoryNode is newNode with its data in memory, where a change waits for no disk.
func newMemoryNode(t testing.TB) *cluster.Node {
	t.Helper()
	return openNode(t, cluster.Config{InMemory: true})
}

// openNode opens a node, which ends with the test.
func openNode(t testing.TB, c cluster.Config) *cluster.Node {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c.Logger = slog.New(slog.DiscardHandler)
	c.Log.BallastBytes = -1 // It would take far more of the disk than a test writes.
	c.Log.StoreDeadline = patience
	node, err := cluster.Open(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := node.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return node
}

// newServerWith is newServer with what c says beside; it returns the server too.
// Keys that are empty but not nil are none.
func newServerWith(t testing.TB, c api.Config) (*grpc.ClientConn, *api.Server) {
	t.Helper()
	if c.Node == nil {
		c.Node = newNode(t)
	}
	c.GRPCAddr, c.Logger = "127.0.0.1:0", slog.New(slog.DiscardHandler)
	c.Dialects = []api.Dialect{Dialect{}}
	if c.Keys == nil {
		c.Keys = []string{testKey}
	}
	s, err := api.Listen(c)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve() }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return dial(t, s, testKey), s
}

// dial connects to a server with a key; "" is none.
func dial(t testing.TB, s *api.Server, key string) *grpc.ClientConn {
	t.Helper()
	options := []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	if key != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer(key)))
	}
	conn, err := grpc.NewClient("passthrough:///"+s.GRPCAddr().String(), options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

// A bearer is a key as the credentials of each call.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

func (bearer) RequireTransportSecurity() bool { return false }

// patience bounds what should happen at once. Only failures take as long: the
// machine may be slow and busy with other things.
const patience = time.Minute

// testContext bounds one test, which may wait for several things.
func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	t.Cleanup(cancel)
	return ctx
}

// writeSchema replaces the schema.
func writeSchema(t testing.TB, conn *grpc.ClientConn, text string) *v1.ZedToken {
	t.Helper()
	r, err := v1.NewSchemaServiceClient(conn).WriteSchema(testContext(t), &v1.WriteSchemaRequest{Schema: text})
	if err != nil {
		t.Fatal(err)
	}
	return r.GetWrittenAt()
}

// touch writes relationships in their text form, such as
// document:readme#viewer@user:anne, which parseRelationship reads.
func touch(t testing.TB, conn *grpc.ClientConn, relationships ...string) *v1.ZedToken {
	t.Helper()
	r := &v1.WriteRelationshipsRequest{}
	for _, text := range relationships {
		r.Updates = append(r.Updates, update(t, v1.RelationshipUpdate_OPERATION_TOUCH, text))
	}
	response, err := v1.NewPermissionsServiceClient(conn).WriteRelationships(testContext(t), r)
	if err != nil {
		t.Fatal(err)
	}
	return response.GetWrittenAt()
}

// update is one update of a relationship in its text form.
func update(t testing.TB, operation v1.RelationshipUpdate_Operation, text string) *v1.RelationshipUpdate {
	t.Helper()
	return &v1.RelationshipUpdate{Operation: operation, Relationship: parseRelationship(t, text)}
}

// parseRelationship reads the text form of a relationship, which is that of
// Pemba's tuples too: type:id#relation@type:id[#relation], and behind it
// [caveat:{context}] and [expiration:moment].
func parseRelationship(t testing.TB, text string) *v1.Relationship {
	t.Helper()
	tuple, err := graph.ParseTuple(text)
	if err != nil {
		t.Fatal(err)
	}
	r, err := fromTuple(tuple)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// reasonOf returns the code of an error, and the reason and the metadata of its
// ErrorInfo.
func reasonOf(err error) (codes.Code, string, map[string]string) {
	st, _ := status.FromError(err)
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return st.Code(), info.GetReason(), info.GetMetadata()
		}
	}
	return st.Code(), "", nil
}

// wantRefusal fails unless err has the code, and the reason ("" for none) in the
// API's domain. It returns the metadata.
func wantRefusal(t testing.TB, err error, code codes.Code, reason string) map[string]string {
	t.Helper()
	got, gotReason, metadata := reasonOf(err)
	if got != code || gotReason != reason {
		t.Fatalf("got %v %q (%v), want %v %q", got, gotReason, err, code, reason)
	}
	return metadata
}

// fullyConsistent asks for the newest state.
var fullyConsistent = &v1.Consistency{Requirement: &v1.Consistency_FullyConsistent{FullyConsistent: true}}
