package api

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

func testLogger() *slog.Logger { return slog.New(slog.DiscardHandler) }

// A spanCollector is a collector of traces that keeps what it gets.
type spanCollector struct {
	collector.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans []*tracev1.Span
}

func (c *spanCollector) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, resource := range r.GetResourceSpans() {
		for _, scope := range resource.GetScopeSpans() {
			c.spans = append(c.spans, scope.GetSpans()...)
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// serveCollector starts a collector that ends with the test.
func serveCollector(t *testing.T) (*spanCollector, string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, server, done := &spanCollector{}, grpc.NewServer(), make(chan error, 1)
	collector.RegisterTraceServiceServer(server, c)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c, "http://" + listener.Addr().String()
}

// TestTraces: each call is a span that says what it asks, below the caller's if
// there is one; Close sends the last.
func TestTraces(t *testing.T) {
	spans, endpoint := serveCollector(t)
	s, err := Listen(Config{Node: testNode(t), GRPCAddr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0", OTLPEndpoint: endpoint, Logger: testLogger()})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve() }()
	c := dial(t, s)
	writeDocs(t, c, 1)
	const parent = "4bf92f3577b34da6a3ce929d0e0e4736"
	a := send(t, "POST", httpURL(s, "/pemba/v1/read-tuples"), `{"consistency": {"linearizable": true}}`, "Traceparent", "00-"+parent+"-00f067aa0ba902b7-01")
	if a.status != 200 {
		t.Fatal(a.body)
	}
	_, err = c.Check(testContext(t), &pembav1.CheckRequest{Store: "none"})
	expectStatus(t, "an unknown store", err, codes.NotFound, "UNKNOWN_STORE")
	if err := s.Close(testContext(t)); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	spans.mu.Lock()
	defer spans.mu.Unlock()
	found := make(map[string]*tracev1.Span)
	for _, span := range spans.spans {
		found[span.GetName()] = span
	}
	attributes := func(span *tracev1.Span) map[string]string {
		m := make(map[string]string)
		for _, kv := range span.GetAttributes() {
			m[kv.GetKey()] = kv.GetValue().GetStringValue()
		}
		return m
	}
	read := found["pemba.v1.TupleService/ReadTuples"]
	if got := attributes(read); got["pemba.store"] != "default" || got["pemba.consistency"] != "linearizable" {
		t.Errorf("the span of a stream: %v", read)
	}
	if hex := read.GetTraceId(); len(hex) != 16 || hex[0] != 0x4b || hex[15] != 0x36 {
		t.Errorf("it is not below the caller's: %x", hex)
	}
	check := found["pemba.v1.PermissionService/Check"]
	if got := attributes(check); got["pemba.store"] != "none" || got["pemba.consistency"] != "newest" {
		t.Errorf("the span of a check: %v", check)
	}
	if found["pemba.v1.SchemaService/WriteSchema"] == nil {
		t.Errorf("%d spans", len(found))
	}
}

// TestTracesOff: without a collector nothing of tracing is made.
func TestTracesOff(t *testing.T) {
	for _, name := range collectorVariables {
		t.Setenv(name, "")
	}
	tracer, err := newTracer("")
	if err != nil || tracer != nil || len(tracer.serverOptions()) != 0 {
		t.Errorf("%v, %v", tracer, err)
	}
	t.Setenv(collectorVariables[1], "http://127.0.0.1:1")
	if tracer, err = newTracer(""); err != nil || tracer == nil {
		t.Fatalf("by the environment: %v, %v", tracer, err)
	}
	// A collector that is not there holds nobody up.
	if err := tracer.close(testContext(t)); err != nil {
		t.Errorf("closing with nothing to send: %v", err)
	}
	t.Setenv(collectorVariables[1], "127.0.0.1:1")
	if _, err = newTracer(""); err == nil {
		t.Error("an endpoint without a scheme is taken")
	}
}
