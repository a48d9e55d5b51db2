package client_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/api/client"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/cluster/badgerlog"
	"github.com/pembadb/pemba/graph"
)

// patience bounds what should happen at once. Only failures take as long: the
// machine may be slow and busy with other things.
const patience = time.Minute

// serve starts a server for a test.
func serve(t *testing.T, change ...func(*api.Config)) string {
	t.Helper()
	addr, stop, err := startServer(t.TempDir(), change...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return addr
}

// startServer starts a server with the key "k" on a directory. stop ends it.
func startServer(dir string, change ...func(*api.Config)) (addr string, stop func() error, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	quiet := slog.New(slog.DiscardHandler)
	node, err := cluster.Open(ctx, cluster.Config{
		DataDir: dir, Logger: quiet,
		Log: badgerlog.Config{BallastBytes: -1}, // It would take far more of the disk than a test writes.
	})
	if err != nil {
		return "", nil, err
	}
	config := api.Config{Node: node, GRPCAddr: "127.0.0.1:0", Keys: []string{"k"}, Logger: quiet}
	for _, f := range change {
		f(&config)
	}
	server, err := api.Listen(config)
	if err != nil {
		return "", nil, errors.Join(err, node.Close(ctx))
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve() }()
	return server.GRPCAddr().String(), func() error {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		return errors.Join(server.Close(ctx), <-done, node.Close(ctx))
	}, nil
}

func tuple(t *testing.T, text string) graph.Tuple {
	t.Helper()
	parsed, err := graph.ParseTuple(text)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

func TestClient(t *testing.T) {
	ctx := t.Context()
	c, err := client.Dial(ctx, client.Config{Addr: serve(t), Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	schema := `caveat c(n int) { n == 1 } definition user {} definition doc { relation viewer: user | user with c permission view = viewer }`
	if _, err := c.Schemas.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Schema: schema}); err != nil {
		t.Fatal(err)
	}
	var tuples []graph.Tuple
	for i := range 600 {
		tuples = append(tuples, tuple(t, fmt.Sprintf("doc:%03d#viewer@user:anne", i)))
	}
	tuples = append(tuples, tuple(t, "doc:000#viewer@user:bob[c]"))
	written, err := c.WriteTuples(ctx, graph.Create, tuples...)
	if err != nil || written.GetChanged() != 601 {
		t.Fatalf("%v, %v", written, err)
	}
	_, err = c.WriteTuples(ctx, graph.Create, tuples[0])
	if reason, metadata := client.Reason(err); reason != "ALREADY_EXISTS" || metadata["tuple"] != "doc:000#viewer@user:anne" {
		t.Errorf("creating again: %v", err)
	}
	if reason, _ := client.Reason(errors.New("another")); reason != "" {
		t.Errorf("an error of no server has the reason %s", reason)
	}

	q := client.Question{
		Object: graph.Object{Type: "doc", ID: "000"}, Permission: "view",
		Subject: graph.Subject{Object: graph.Object{Type: "user", ID: "bob"}}, Consistency: client.AtLeast(written.GetWrittenAt()),
	}
	decide := func(want pembav1.Decision) {
		t.Helper()
		if answer, err := c.Check(ctx, q); err != nil || answer.GetDecision() != want {
			t.Errorf("%v, %v; expected %v", answer, err, want)
		}
	}
	decide(pembav1.Decision_DECISION_CONDITIONAL)
	q.Context = map[string]any{"n": 1.0}
	decide(pembav1.Decision_DECISION_ALLOWED)
	q.Context = map[string]any{"n": struct{}{}}
	if _, err := c.Check(ctx, q); err == nil {
		t.Error("a context that is no JSON was sent")
	}
	q.Context = nil
	if _, err := c.WriteTuples(ctx, graph.Delete, tuples[600]); err != nil {
		t.Fatal(err)
	}
	decide(pembav1.Decision_DECISION_DENIED)
	q.Consistency = client.ExactlyAt(written.GetWrittenAt())
	decide(pembav1.Decision_DECISION_CONDITIONAL)
	q.Consistency = client.Linearizable()
	decide(pembav1.Decision_DECISION_DENIED)
	if client.AtLeast(nil) != nil {
		t.Error("at least as fresh as nothing asks for something")
	}

	// Iterators: to the end, left early, and with an error.
	n := 0
	for _, err := range c.ReadTuples(ctx, &pembav1.ReadTuplesRequest{}) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 600 {
		t.Errorf("%d tuples were read", n)
	}
	for r, err := range c.LookupResources(ctx, &pembav1.LookupResourcesRequest{Type: "doc", Permission: "view", Subject: api.SubjectMessage(tuples[0].Subject)}) {
		if err != nil || r.GetObject().GetId() != "000" {
			t.Errorf("%v, %v", r, err)
		}
		break
	}
	n = 0
	for _, err := range c.LookupSubjects(ctx, &pembav1.LookupSubjectsRequest{Object: &pembav1.Object{Type: "doc", Id: "000"}, Permission: "nothing", SubjectType: "user"}) {
		n++
		if status.Code(err) != codes.FailedPrecondition {
			t.Errorf("%v", err)
		}
	}
	if n != 1 {
		t.Errorf("a failed lookup yielded %d times", n)
	}
}

// TestStore: the client's store is filled in where a request names none.
func TestStore(t *testing.T) {
	c, err := client.Dial(t.Context(), client.Config{Addr: serve(t), Key: "k", Store: "other"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	request := &pembav1.ReadTuplesRequest{}
	for _, err := range c.ReadTuples(t.Context(), request) {
		if reason, _ := client.Reason(err); reason != "UNKNOWN_STORE" {
			t.Errorf("%v", err)
		}
	}
	if request.GetStore() != "" {
		t.Error("the request was changed")
	}
	for _, err := range c.ReadTuples(t.Context(), &pembav1.ReadTuplesRequest{Store: api.DefaultStoreName}) {
		t.Errorf("%v", err)
	}
}

func TestDialFails(t *testing.T) {
	if _, err := client.Dial(t.Context(), client.Config{}); err == nil {
		t.Error("dialled nothing")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := listener.Close(); err != nil {
			t.Error(err)
		}
	}()
	// Nobody listens where a connection goes out, and nobody else can meanwhile.
	outgoing, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := outgoing.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := client.Dial(t.Context(), client.Config{Addr: outgoing.LocalAddr().String()}); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("%v", err)
	}
	// Somebody listens and says nothing.
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := client.Dial(ctx, client.Config{Addr: listener.Addr().String()}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}
