package api

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

const testSchema = `definition user {} definition doc { relation viewer: user permission view = viewer }`

func object(typ, id string) *pembav1.Object { return &pembav1.Object{Type: typ, Id: id} }

func user(id string) *pembav1.Subject { return &pembav1.Subject{Object: object("user", id)} }

// touch returns updates of the documents from up to below to.
func touch(from, to int) []*pembav1.TupleUpdate {
	var updates []*pembav1.TupleUpdate
	for i := from; i < to; i++ {
		updates = append(updates, &pembav1.TupleUpdate{
			Operation: pembav1.TupleUpdate_OPERATION_TOUCH,
			Tuple:     &pembav1.Tuple{Object: object("doc", fmt.Sprintf("d%05d", i)), Relation: "viewer", Subject: user("anne")},
		})
	}
	return updates
}

// writeDocs writes the schema and n tuples.
func writeDocs(t testing.TB, c *testClient, n int) {
	t.Helper()
	ctx := testContext(t)
	if _, err := c.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Schema: testSchema}); err != nil {
		t.Fatal(err)
	}
	for from := 0; from < n; from += 1000 {
		if _, err := c.WriteTuples(ctx, &pembav1.WriteTuplesRequest{Updates: touch(from, min(from+1000, n))}); err != nil {
			t.Fatal(err)
		}
	}
}

// expectStatus checks the code and the reason of an error.
func expectStatus(t *testing.T, what string, err error, code codes.Code, reason string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(printError(t, err), reason) {
		t.Errorf("%s: %v, expected %v %s", what, err, code, reason)
	}
}

func TestConfig(t *testing.T) {
	node := testNode(t)
	for _, test := range []struct {
		name   string
		config Config
		want   string // part of the error; empty for none
	}{
		{"loopback", Config{Node: node, GRPCAddr: "127.0.0.1:0"}, ""},
		{"loopback by name", Config{Node: node, GRPCAddr: "localhost:0", HTTPAddr: "[::1]:0"}, ""},
		{"everywhere, with a key", Config{Node: node, GRPCAddr: ":0", HTTPAddr: "0.0.0.0:0", Keys: []string{"k"}}, ""},
		{"no address", Config{Node: node}, "host:port"},
		{"everywhere without a key", Config{Node: node, GRPCAddr: ":0"}, "no key is configured"},
		{"all of IPv4 without a key", Config{Node: node, GRPCAddr: "0.0.0.0:0"}, "no key is configured"},
		{"HTTP everywhere without a key", Config{Node: node, GRPCAddr: "127.0.0.1:0", HTTPAddr: ":0"}, "no key is configured"},
		{"empty key", Config{Node: node, GRPCAddr: "127.0.0.1:0", Keys: []string{""}}, "key 1"},
		{"key with a blank", Config{Node: node, GRPCAddr: "127.0.0.1:0", Keys: []string{"k", "sec ret"}}, "key 2"},
		{"key beyond ASCII", Config{Node: node, GRPCAddr: "127.0.0.1:0", Keys: []string{"schlüssel"}}, "key 1"},
		{"negative limit", Config{Node: node, GRPCAddr: "127.0.0.1:0", Limits: Limits{Updates: -1}}, "updates"},
		{"negative stall", Config{Node: node, GRPCAddr: "127.0.0.1:0", Limits: Limits{StreamStall: -1}}, "stall"},
	} {
		err := test.config.Validate()
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", test.name, err)
		}
		if err != nil && strings.Contains(err.Error(), "sec") {
			t.Errorf("%s: the error tells a key: %v", test.name, err)
		}
	}
}

func TestKeys(t *testing.T) {
	s := testServer(t, Config{Keys: []string{"first", "second"}})
	c := dial(t, s)
	ask := func(header ...string) error {
		ctx := testContext(t)
		for _, h := range header {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", h)
		}
		_, err := c.ReadSchema(ctx, &pembav1.ReadSchemaRequest{})
		return err
	}
	for _, test := range []struct {
		name   string
		header []string
		code   codes.Code
		reason string
	}{
		{"no header", nil, codes.Unauthenticated, "KEY_MISSING"},
		{"another scheme", []string{"Basic first"}, codes.Unauthenticated, "KEY_MISSING"},
		{"the key alone", []string{"first"}, codes.Unauthenticated, "KEY_MISSING"},
		{"an empty key", []string{"Bearer "}, codes.Unauthenticated, "KEY_MISSING"},
		{"a wrong key", []string{"Bearer third"}, codes.Unauthenticated, "KEY_INVALID"},
		{"a part of a key", []string{"Bearer firs"}, codes.Unauthenticated, "KEY_INVALID"},
		{"two headers", []string{"Bearer first", "Bearer first"}, codes.Unauthenticated, "KEY_INVALID"},
		// A good key gets through to the answer that there is no schema.
		{"the first key", []string{"Bearer first"}, codes.FailedPrecondition, "NO_SCHEMA"},
		{"the second key, in lower case", []string{"bearer second"}, codes.FailedPrecondition, "NO_SCHEMA"},
	} {
		expectStatus(t, test.name, ask(test.header...), test.code, test.reason)
	}
	// Streams ask for the key as well.
	stream, err := c.ReadTuples(testContext(t), &pembav1.ReadTuplesRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	expectStatus(t, "a stream", err, codes.Unauthenticated, "KEY_MISSING")
	// Health and reflection are open to all.
	health := grpc_health_v1.NewHealthClient(c.conn)
	for name := range healthNames {
		if r, err := health.Check(testContext(t), &grpc_health_v1.HealthCheckRequest{Service: name}); err != nil || r.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
			t.Errorf("health of %q: %v, %v", name, r, err)
		}
	}
	if _, err := health.Check(testContext(t), &grpc_health_v1.HealthCheckRequest{Service: "other"}); status.Code(err) != codes.NotFound {
		t.Errorf("health of an unknown service: %v", err)
	}
	v1, err := grpc_reflection_v1.NewServerReflectionClient(c.conn).ServerReflectionInfo(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := v1.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	if r, err := v1.Recv(); err != nil || !strings.Contains(r.String(), "pemba.v1.TupleService") {
		t.Errorf("reflection v1: %v, %v", r, err)
	}
	// Old clients know the version before; its messages have the same form.
	alpha, err := c.conn.NewStream(testContext(t), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true},
		"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
	if err != nil {
		t.Fatal(err)
	}
	if err := alpha.SendMsg(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	var r grpc_reflection_v1.ServerReflectionResponse
	if err := alpha.RecvMsg(&r); err != nil || !strings.Contains(r.String(), "pemba.v1.TupleService") {
		t.Errorf("reflection v1alpha: %v, %v", &r, err)
	}
}

func TestHTTP(t *testing.T) {
	node := &wrappedNode{Node: testNode(t)}
	s := testServer(t, Config{Node: node, Keys: []string{"k"}})
	get := func(path string) (int, string) {
		r, err := http.Get("http://" + s.HTTPAddr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Body.Close(); err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(body)
	}
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/": 404, "/v1/check": 404} {
		if code, body := get(path); code != want {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	node.ready = cluster.ErrNotLeader
	if code, body := get("/readyz"); code != 503 || !strings.Contains(body, cluster.ErrNotLeader.Error()) {
		t.Errorf("not ready: %d %s", code, body)
	}
	if code, _ := get("/healthz"); code != 200 {
		t.Errorf("alive but not ready: %d", code)
	}
}

// A wrappedNode is a real node with faults that no real one shows on demand.
type wrappedNode struct {
	Node
	ready    error
	snapshot func() (*engine.Snapshot, error)
	wait     func(context.Context) (*engine.Snapshot, error)
}

func (n *wrappedNode) Ready() error {
	if n.ready != nil {
		return n.ready
	}
	return n.Node.Ready()
}

func (n *wrappedNode) Snapshot(ctx context.Context, store graph.StoreID, c cluster.Consistency, overlay graph.Overlay) (*engine.Snapshot, error) {
	if n.snapshot != nil {
		return n.snapshot()
	}
	if n.wait != nil {
		return n.wait(ctx)
	}
	return n.Node.Snapshot(ctx, store, c, overlay)
}

// TestPanic: a panic ends its call and is logged; the server lives on.
func TestPanic(t *testing.T) {
	var log lockedBuffer
	node := &wrappedNode{Node: testNode(t), snapshot: func() (*engine.Snapshot, error) { panic("out of luck") }}
	s := testServer(t, Config{Node: node, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	c := dial(t, s)
	_, err := c.Check(testContext(t), &pembav1.CheckRequest{Object: object("doc", "a"), Permission: "view", Subject: user("anne")})
	expectStatus(t, "a unary call", err, codes.Internal, "FAULT")
	stream, err := c.ReadTuples(testContext(t), &pembav1.ReadTuplesRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	expectStatus(t, "a stream", err, codes.Internal, "FAULT")
	// A nil snapshot panics on the goroutine that produces the results.
	node.snapshot = func() (*engine.Snapshot, error) { return nil, nil }
	if stream, err = c.ReadTuples(testContext(t), &pembav1.ReadTuplesRequest{}); err == nil {
		_, err = stream.Recv()
	}
	expectStatus(t, "the producer of a stream", err, codes.Internal, "FAULT")
	node.snapshot = nil
	writeDocs(t, c, 1)
	if text := log.String(); !strings.Contains(text, "out of luck") || !strings.Contains(text, "server_test.go") {
		t.Errorf("the log holds no stack: %s", text)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestLimits(t *testing.T) {
	s := testServer(t, Config{Limits: Limits{
		RequestBytes: 64 << 10, SchemaBytes: 1000, Updates: 2, Preconditions: 1, Deletes: 3, Checks: 2,
		ContextBytes: 100, TupleContextBytes: 50, MetadataBytes: 60, Steps: 20,
	}})
	c := dial(t, s)
	ctx := testContext(t)
	schema := `caveat c(text string) { text == "x" } definition user {}
		definition doc { relation viewer: user | user with c | doc#view relation banned: user permission view = viewer - banned }`
	if _, err := c.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Schema: schema}); err != nil {
		t.Fatal(err)
	}
	_, err := c.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Schema: schema + strings.Repeat(" ", 1000)})
	expectStatus(t, "schema", err, codes.ResourceExhausted, "TOO_LARGE")
	_, err = c.WriteTuples(ctx, &pembav1.WriteTuplesRequest{Updates: touch(0, 3)})
	expectStatus(t, "updates", err, codes.ResourceExhausted, "TOO_MANY_UPDATES")
	condition := &pembav1.Precondition{Operation: pembav1.Precondition_OPERATION_MUST_NOT_MATCH, Filter: &pembav1.TupleFilter{ObjectId: "none"}}
	_, err = c.WriteTuples(ctx, &pembav1.WriteTuplesRequest{Updates: touch(0, 1), Preconditions: []*pembav1.Precondition{condition, condition}})
	expectStatus(t, "preconditions", err, codes.ResourceExhausted, "TOO_MANY_PRECONDITIONS")
	_, err = c.DeleteTuples(ctx, &pembav1.DeleteTuplesRequest{Filter: &pembav1.TupleFilter{ObjectType: "doc"}, Limit: 4})
	expectStatus(t, "deletes", err, codes.InvalidArgument, "MALFORMED")
	for i := range 3 {
		if _, err := c.WriteTuples(ctx, &pembav1.WriteTuplesRequest{Updates: touch(2*i, 2*i+2)}); err != nil {
			t.Fatal(err)
		}
	}
	_, err = c.DeleteTuples(ctx, &pembav1.DeleteTuplesRequest{Filter: &pembav1.TupleFilter{ObjectType: "doc"}})
	expectStatus(t, "matches", err, codes.FailedPrecondition, "TOO_MANY_MATCHES")

	check := &pembav1.CheckBulkItem{Object: object("doc", "d00000"), Permission: "view", Subject: user("anne")}
	_, err = c.CheckBulk(ctx, &pembav1.CheckBulkRequest{Items: []*pembav1.CheckBulkItem{check, check, check}})
	expectStatus(t, "checks", err, codes.ResourceExhausted, "TOO_MANY_CHECKS")
	large := structOf(t, map[string]any{"text": strings.Repeat("x", 200)})
	_, err = c.Check(ctx, &pembav1.CheckRequest{Object: check.Object, Permission: "view", Subject: check.Subject, Context: large})
	expectStatus(t, "context", err, codes.ResourceExhausted, "TOO_LARGE")
	updates := touch(0, 1)
	updates[0].Tuple.Caveat = &pembav1.Caveat{Name: "c", Context: large}
	_, err = c.WriteTuples(ctx, &pembav1.WriteTuplesRequest{Updates: updates})
	expectStatus(t, "tuple context", err, codes.ResourceExhausted, "TOO_LARGE")
	_, err = c.WriteTuples(ctx, &pembav1.WriteTuplesRequest{Updates: touch(0, 1), Metadata: large})
	expectStatus(t, "metadata", err, codes.ResourceExhausted, "TOO_LARGE")
	_, err = c.WriteTuples(ctx, &pembav1.WriteTuplesRequest{Updates: touch(0, 1), RecordedActor: strings.Repeat("x", actorBytesMax+1)})
	expectStatus(t, "actor", err, codes.InvalidArgument, "MALFORMED")
	_, err = c.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Schema: strings.Repeat(" ", 100<<10)})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("request: %v", err)
	}

	// A chain of documents costs more steps than are allowed.
	for i := range 30 {
		updates := touch(i, i+1)
		updates[0].Tuple.Subject = &pembav1.Subject{Object: object("doc", fmt.Sprintf("d%05d", i+1)), Relation: "view"}
		if _, err := c.WriteTuples(ctx, &pembav1.WriteTuplesRequest{Updates: updates}); err != nil {
			t.Fatal(err)
		}
	}
	_, err = c.Check(ctx, &pembav1.CheckRequest{Object: object("doc", "d00000"), Permission: "view", Subject: user("nobody")})
	expectStatus(t, "steps", err, codes.ResourceExhausted, "BUDGET_EXCEEDED")
}

// TestForeignZookie: what another cluster made is refused, and so is a revision
// that this one never reached.
func TestForeignZookie(t *testing.T) {
	s := testServer(t, Config{})
	c := dial(t, s)
	writeDocs(t, c, 1)
	check := func(z zookie, exactly bool) error {
		r := &pembav1.CheckRequest{Object: object("doc", "d00000"), Permission: "view", Subject: user("anne")}
		r.Consistency = &pembav1.Consistency{Requirement: &pembav1.Consistency_AtLeastAsFresh{AtLeastAsFresh: z.proto()}}
		if exactly {
			r.Consistency = &pembav1.Consistency{Requirement: &pembav1.Consistency_ExactlyAt{ExactlyAt: z.proto()}}
		}
		_, err := c.Check(testContext(t), r)
		return err
	}
	expectStatus(t, "foreign", check(zookie{cluster: [16]byte{1}, revision: 1}, false), codes.FailedPrecondition, "ZOOKIE_FOREIGN")
	expectStatus(t, "foreign, exactly", check(zookie{cluster: [16]byte{1}, revision: 1}, true), codes.FailedPrecondition, "ZOOKIE_FOREIGN")
	expectStatus(t, "future", check(zookie{cluster: s.clusterID(), revision: 1 << 40}, false), codes.Unavailable, "REVISION_AHEAD")
	expectStatus(t, "nothing at all", check(zookie{cluster: s.clusterID()}, true), codes.InvalidArgument, "MALFORMED")
	if err := check(zookie{cluster: s.clusterID()}, false); err != nil {
		t.Errorf("at least as fresh as nothing: %v", err)
	}
	// Of before a recovery, which gives the cluster another id, all that there is is as
	// fresh as can be had.
	was := s.clusterID()
	if result, err := s.node.Write(testContext(t), &graph.Mutation{Renew: &graph.Renew{ClusterID: [16]byte{7}}}); err != nil || result.Refusal != nil {
		t.Fatal(result.Refusal, err)
	}
	if err := check(zookie{cluster: was, revision: 1 << 40}, false); err != nil {
		t.Errorf("at least as fresh as the cluster was before it was recovered: %v", err)
	}
	expectStatus(t, "of before a recovery, exactly", check(zookie{cluster: was, revision: 3}, true), codes.FailedPrecondition, "ZOOKIE_FOREIGN")
	expectStatus(t, "still foreign", check(zookie{cluster: [16]byte{1}, revision: 1}, false), codes.FailedPrecondition, "ZOOKIE_FOREIGN")
	// A cursor may be made up from a zookie's parts; its position is still judged.
	for _, position := range [][]byte{nil, {255}, {0, 1, 2, 3}, bytes.Repeat([]byte{0}, 200)} {
		bad := cursor{
			zookie: zookie{cluster: s.clusterID(), revision: 2, instant: 1}, kind: readTuples,
			arguments: filterArguments(readTuples, graph.StoreInfo{ID: graph.DefaultStore}, graph.Filter{}), position: position,
		}
		stream, err := c.ReadTuples(testContext(t), &pembav1.ReadTuplesRequest{Cursor: bad.token()})
		if err == nil {
			_, err = stream.Recv()
		}
		if code := status.Code(err); code != codes.InvalidArgument && err != io.EOF { //nolint:errorlint // gRPC returns it as it is.
			t.Errorf("position %x: %v", position, err)
		}
	}
}

// TestPages: paging through everything gives what one stream gives, whatever the
// size of the pages, also across the pages that the server reads by.
func TestPages(t *testing.T) {
	const docs = 2*pageTuples + 17
	c := dial(t, testServer(t, Config{}))
	writeDocs(t, c, docs)
	for _, limit := range []uint32{0, 10, 100, pageTuples, pageTuples + 1} {
		var ids, found []string
		for cursor := ""; ; {
			stream, err := c.ReadTuples(testContext(t), &pembav1.ReadTuplesRequest{Limit: limit, Cursor: cursor})
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for ; ; n++ {
				r, err := stream.Recv()
				if err == io.EOF { //nolint:errorlint // gRPC returns it as it is.
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				ids, cursor = append(ids, r.GetTuple().GetObject().GetId()), r.GetCursor()
			}
			if n == 0 || limit == 0 {
				break
			}
		}
		for cursor := ""; ; {
			stream, err := c.LookupResources(testContext(t), &pembav1.LookupResourcesRequest{
				Type: "doc", Permission: "view", Subject: user("anne"), Limit: limit, Cursor: cursor,
			})
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for ; ; n++ {
				r, err := stream.Recv()
				if err == io.EOF { //nolint:errorlint // gRPC returns it as it is.
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				found, cursor = append(found, r.GetObject().GetId()), r.GetCursor()
			}
			if n == 0 || limit == 0 {
				break
			}
		}
		for what, list := range map[string][]string{"read": ids, "found": found} {
			if len(list) != docs {
				t.Errorf("limit %d: %s %d, expected %d", limit, what, len(list), docs)
			}
			for i, id := range list {
				if want := fmt.Sprintf("d%05d", i); id != want {
					t.Fatalf("limit %d: %s %s at %d, expected %s", limit, what, id, i, want)
				}
			}
		}
	}
}

// stalledStream starts a read of many tuples and takes none, so that the server
// is stuck in the connection's flow control.
func stalledStream(t *testing.T, c *testClient) grpc.ServerStreamingClient[pembav1.ReadTuplesResponse] {
	t.Helper()
	stream, err := c.ReadTuples(context.Background(), &pembav1.ReadTuplesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	return stream
}

// TestStall: a client that takes nothing loses its stream, and the state behind
// it is let go before it takes anything again.
func TestStall(t *testing.T) {
	node := testNode(t)
	c := dial(t, testServer(t, Config{Node: node, Limits: Limits{StreamStall: 100 * time.Millisecond}}), grpc.WithStaticStreamWindowSize(64<<10))
	writeDocs(t, c, 5000)
	stream := stalledStream(t, c)
	snapshots := func() int64 {
		m, err := node.Engine().DB().Metrics()
		if err != nil {
			t.Fatal(err)
		}
		return int64(m.Snapshots)
	}
	eventually(t, "the state is let go", func() bool { return snapshots() == 0 })
	var err error
	n := 1
	for ; err == nil; n++ {
		_, err = stream.Recv()
	}
	expectStatus(t, fmt.Sprintf("after %d results", n), err, codes.ResourceExhausted, "CLIENT_STALLED")
	if !strings.Contains(status.Convert(err).Message(), "taken for 100ms") {
		t.Errorf("it had another time: %v", err)
	}
}

// TestCloseWithOpenStreams: closing waits for open calls as long as it is told
// and no longer, and loses no write that was acknowledged.
func TestCloseWithOpenStreams(t *testing.T) {
	node := testNode(t)
	config := Config{
		Node: node, GRPCAddr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler),
		Limits: Limits{StreamStall: time.Hour}, // Nothing but closing ends a stream.
	}
	s, err := Listen(config)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	c := dial(t, s, grpc.WithStaticStreamWindowSize(64<<10))
	writeDocs(t, c, 3000)
	stream := stalledStream(t, c)
	watch, err := grpc_health_v1.NewHealthClient(c.conn).Watch(context.Background(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	// Writers go on until they are turned away; each remembers its last success.
	const writers = 4
	acknowledged := make([]atomic.Int64, writers)
	var running sync.WaitGroup
	for w := range writers {
		running.Add(1)
		go func() {
			defer running.Done()
			for i := 1; ; i++ {
				id := fmt.Sprintf("w%d-%06d", w, i)
				_, err := c.WriteTuples(context.Background(), &pembav1.WriteTuplesRequest{Updates: []*pembav1.TupleUpdate{{
					Operation: pembav1.TupleUpdate_OPERATION_CREATE,
					Tuple:     &pembav1.Tuple{Object: object("doc", id), Relation: "viewer", Subject: user("anne")},
				}}})
				if err != nil {
					return
				}
				acknowledged[w].Store(int64(i))
			}
		}()
	}
	eventually(t, "every writer gets to write", func() bool {
		for w := range acknowledged {
			if acknowledged[w].Load() == 0 {
				return false
			}
		}
		return true
	})
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	closed := make(chan error, 1)
	go func() { closed <- s.Close(ctx) }()
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
		if ctx.Err() == nil {
			t.Error("it did not wait for the open streams")
		}
	case <-time.After(patience):
		t.Fatal("closing waits for a stream that nobody takes")
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	running.Wait()
	if _, err := watch.Recv(); err == nil {
		t.Error("the watch of health goes on")
	}
	for err = nil; err == nil; {
		_, err = stream.Recv()
	}
	if code := status.Code(err); code != codes.Canceled && code != codes.Unavailable {
		t.Errorf("the open stream: %v", err)
	}
	snapshot, err := node.Snapshot(context.Background(), graph.DefaultStore, cluster.Consistency{}, graph.Overlay{})
	if err != nil {
		t.Fatal(err)
	}
	defer snapshot.Close()
	for w := range acknowledged {
		for i := range acknowledged[w].Load() {
			subject := graph.Subject{Object: graph.Object{Type: "user", ID: "anne"}}
			id := fmt.Sprintf("w%d-%06d", w, i+1)
			if _, ok, err := snapshot.Graph().Get(graph.Object{Type: "doc", ID: id}, "viewer", subject); err != nil || !ok {
				t.Fatalf("%s was acknowledged and is gone: %v", id, err)
			}
		}
	}
	// Closing again is harmless.
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
}

// TestCorruption: damaged data reaches the operator, not only the caller.
func TestCorruption(t *testing.T) {
	damage := corruption(t)
	faults := make(chan error, 1)
	node := &wrappedNode{Node: testNode(t), snapshot: func() (*engine.Snapshot, error) { return nil, damage }}
	var log lockedBuffer
	c := dial(t, testServer(t, Config{
		Node: node, OnFault: func(err error) { faults <- err }, Logger: slog.New(slog.NewTextHandler(&log, nil)),
	}))
	_, err := c.Check(testContext(t), &pembav1.CheckRequest{Object: object("doc", "a"), Permission: "view", Subject: user("anne")})
	expectStatus(t, "damage", err, codes.DataLoss, "CORRUPTION")
	if text := printError(t, err); text != "DataLoss CORRUPTION\nthe graph's data is damaged: read a block: pebble: corruption; the node stops" {
		t.Errorf("the caller is told %s", text)
	}
	if text := log.String(); strings.Count(text, "\n") != 1 || len(text) > 400 || !strings.Contains(text, "damaged: read a block: pebble: corruption\"\n") {
		t.Errorf("the operator is told %s", text)
	}
	select {
	case err := <-faults:
		if !graph.IsCorruptionError(err) {
			t.Errorf("the fault is %v", err)
		}
	default:
		t.Error("nobody was told")
	}
}
