package api

import (
	"context"
	"errors"
	"testing"
	"time"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
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
}
