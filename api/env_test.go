package api

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/graph"
)

// patience bounds what should happen at once. Only failures take as long: the
// machine may be slow and busy with other things.
const patience = time.Minute

// testNode opens a real node on a directory of the test's own.
func testNode(t testing.TB) *cluster.Node {
	t.Helper()
	return openNode(t, cluster.Config{DataDir: t.TempDir()})
}

// memoryNode opens a real node in memory, where a change waits for no disk.
func memoryNode(t testing.TB) *cluster.Node {
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

// testServer serves c on loopback and ends with the test. What c leaves out is
// filled in.
func testServer(t testing.TB, c Config) *Server {
	t.Helper()
	if c.Node == nil {
		c.Node = testNode(t)
	}
	c.GRPCAddr, c.HTTPAddr = "127.0.0.1:0", "127.0.0.1:0"
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	s, err := Listen(c)
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
	return s
}

// A testClient has all services on one connection.
type testClient struct {
	conn *grpc.ClientConn
	pembav1.StoreServiceClient
	pembav1.SchemaServiceClient
	pembav1.TupleServiceClient
	pembav1.PermissionServiceClient
	pembav1.WatchServiceClient
	pembav1.ClusterServiceClient
}

func dial(t testing.TB, s *Server, options ...grpc.DialOption) *testClient {
	t.Helper()
	options = append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(64<<20)),
	}, options...)
	conn, err := grpc.NewClient("passthrough:///"+s.GRPCAddr().String(), options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return &testClient{
		conn, pembav1.NewStoreServiceClient(conn), pembav1.NewSchemaServiceClient(conn), pembav1.NewTupleServiceClient(conn),
		pembav1.NewPermissionServiceClient(conn), pembav1.NewWatchServiceClient(conn),
		pembav1.NewClusterServiceClient(conn),
	}
}

// testContext bounds one test, which may wait for several things.
func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	t.Cleanup(cancel)
	return ctx
}

func structOf(t testing.TB, m map[string]any) *structpb.Struct {
	t.Helper()
	s, err := structpb.NewStruct(m)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// corruption returns an error such as Pebble gives when a checksum fails.
func corruption(t testing.TB) error {
	t.Helper()
	err := fmt.Errorf("read a block: %w", pebble.ErrCorruption)
	if !graph.IsCorruptionError(err) {
		t.Fatal("the made-up damage is not recognised")
	}
	return err
}
