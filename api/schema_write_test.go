package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"google.golang.org/grpc/codes"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// TestSchemaTurn holds that no schema is written while another is being judged, by
// whichever API, and that the turn comes back after a refusal and after a panic.
func TestSchemaTurn(t *testing.T) {
	s := testServer(t, Config{})
	host := &Host{s}
	ctx := testContext(t)
	store, err := host.Store(context.WithValue(ctx, callerKey{}, nobody))
	if err != nil {
		t.Fatal(err)
	}
	// Without a connection: over one a call may go on when its caller has gone.
	native := &schemaService{server: s}
	write := func(ctx context.Context, text string) error {
		_, err := native.WriteSchema(context.WithValue(ctx, callerKey{}, nobody), &pembav1.WriteSchemaRequest{Schema: text})
		return err
	}
	if err := write(ctx, "definition first {}"); err != nil {
		t.Fatal(err)
	}
	isFirst := func(newest *engine.Snapshot) {
		t.Helper()
		if compiled, _, err := newest.Schema(); err != nil || compiled.Definition("first") == nil {
			t.Errorf("the newest schema is %v, %v", compiled, err)
		}
	}
	_, err = host.WriteSchema(ctx, store, "definition second {}", func(newest *engine.Snapshot) error {
		isFirst(newest)
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		if err := write(short, "definition between {}"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a schema written meanwhile: %v", err)
		}
		return errors.New("no")
	})
	if err == nil || err.Error() != "no" {
		t.Errorf("what judge refuses: %v", err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("judge did not panic")
			}
		}()
		_, err := host.WriteSchema(ctx, store, "definition second {}", func(newest *engine.Snapshot) error {
			isFirst(newest) // Also not written once its caller was gone.
			panic("judge")
		})
		t.Errorf("a judge that panics: %v", err)
	}()
	ended, cancel := context.WithCancel(ctx)
	_, err = host.WriteSchema(ended, store, "definition second {}", func(newest *engine.Snapshot) error {
		isFirst(newest)
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a write whose caller is gone before it: %v", err)
	}
	if _, err := host.WriteSchema(ctx, store, "definition second {}", func(*engine.Snapshot) error { return nil }); err != nil {
		t.Fatal(err)
	}
	var refusal *engine.Refusal
	_, err = host.WriteSchema(ctx, graph.StoreInfo{ID: 99, Name: "gone"}, "definition second {}", func(*engine.Snapshot) error { return nil })
	if err == nil || errors.As(err, &refusal) {
		t.Errorf("a schema of a store that there is not: %v", err)
	}
	if err := write(ctx, "definition third {}"); err != nil {
		t.Fatal(err)
	}
	if n := len(s.schemaTurns.turns); n != 0 {
		t.Errorf("the turns of %d stores are left", n)
	}
}

// TestSchemaTurnIsOfItsStore: a schema of another store does not wait.
func TestSchemaTurnIsOfItsStore(t *testing.T) {
	s := testServer(t, Config{})
	host := &Host{s}
	ctx := testContext(t)
	var stores []graph.StoreInfo
	for _, name := range []string{"one", "two"} {
		if _, err := s.write(ctx, &graph.Mutation{StoreChange: &graph.StoreChange{Operation: graph.CreateStore, Name: name}}); err != nil {
			t.Fatal(err)
		}
		store, _ := s.node.StoreNamed(name)
		stores = append(stores, store)
	}
	_, err := host.WriteSchema(ctx, stores[0], "definition first {}", func(*engine.Snapshot) error {
		short, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		_, err := host.WriteSchema(short, stores[1], "definition second {}", func(*engine.Snapshot) error { return nil })
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if n := len(s.schemaTurns.turns); n != 0 {
		t.Errorf("the turns of %d stores are left", n)
	}
}

// A brokenNode finds damage where it should write, and panics once release is closed.
type brokenNode struct {
	Node
	broken  atomic.Bool
	begun   chan struct{}
	release chan struct{}
}

func (n *brokenNode) Write(ctx context.Context, m *graph.Mutation) (engine.Result, error) {
	if !n.broken.Load() {
		return n.Node.Write(ctx, m)
	}
	n.begun <- struct{}{}
	<-n.release
	panic(fmt.Errorf("the node: %w", pebble.ErrCorruption))
}

// TestSchemaWritePanics: a panic while a schema is written is an error of that call,
// gives the turn back, and reaches the operator also when the caller has gone.
func TestSchemaWritePanics(t *testing.T) {
	var log lockedBuffer
	node := &brokenNode{Node: memoryNode(t), begun: make(chan struct{}, 1), release: make(chan struct{})}
	faults := make(chan error, 2)
	s := testServer(t, Config{Node: node, Logger: slog.New(slog.NewTextHandler(&log, nil)), OnFault: func(err error) { faults <- err }})
	c := dial(t, s)
	ctx := testContext(t)
	fault := func() {
		t.Helper()
		select {
		case err := <-faults:
			if !graph.IsCorruptionError(err) {
				t.Errorf("the fault is %v", err)
			}
		case <-ctx.Done():
			t.Fatalf("the operator learns of no fault; the log is %s", log.String())
		}
	}
	node.broken.Store(true)
	store, _ := s.node.StoreNamed(DefaultStoreName)
	gone, leave := context.WithCancel(ctx)
	go func() {
		<-node.begun
		leave()
	}()
	_, err := (&Host{s}).WriteSchema(gone, store, "definition user {}", func(*engine.Snapshot) error { return nil })
	if !errors.Is(err, cluster.ErrOutcomeUnknown) || !errors.Is(err, context.Canceled) {
		t.Errorf("a caller who goes is told %v", err)
	}
	close(node.release)
	fault()
	if said := log.String(); strings.Count(said, "a handler panicked") != 1 || !strings.Contains(said, "brokenNode") {
		t.Errorf("the log has not the stack of the panic: %s", said)
	}
	_, err = c.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Schema: "definition user {}"})
	expectStatus(t, "a write that panics", err, codes.DataLoss, "CORRUPTION")
	fault()
	node.broken.Store(false)
	if _, err := c.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Schema: "definition user {}"}); err != nil {
		t.Errorf("the next write: %v", err)
	}
}
