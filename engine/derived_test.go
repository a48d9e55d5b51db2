package engine_test

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/engine/enginetest"
	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

// TestDerived holds that what is derived from a schema is made once for each key,
// by however many ask for it, that it is that of the snapshot's own schema, and that
// there is none without one.
func TestDerived(t *testing.T) {
	type firstName struct{}
	type secondName struct{}
	e, err := enginetest.New(engine.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}()
	var made atomic.Int32
	ask := func(key any) (any, error) {
		snapshot, err := e.Engine.Snapshot(e.Store, 0, e.Now, graph.Overlay{})
		if err != nil {
			return nil, err
		}
		defer snapshot.Close()
		return snapshot.Derived(key, func(s *schema.Schema) any {
			made.Add(1)
			return s.Definitions[0].Name
		})
	}
	if got, err := ask(firstName{}); err == nil {
		t.Fatalf("without a schema there is %v", got)
	}
	for n, name := range []string{"first", "second", "first"} {
		if _, err := e.Write(&graph.Mutation{Schema: &graph.WriteSchema{Text: "definition " + name + " {}"}}); err != nil {
			t.Fatal(err)
		}
		var wait sync.WaitGroup
		for range 8 {
			for _, key := range []any{firstName{}, secondName{}} {
				wait.Go(func() {
					if got, err := ask(key); err != nil || got != name {
						t.Errorf("derived %v, %v; want %s", got, err, name)
					}
				})
			}
		}
		wait.Wait()
		if got, want := made.Load(), int32(2*(n+1)); got != want {
			t.Errorf("derived %d times of %d schemas; want %d", got, n+1, want)
		}
	}
}

// TestDerivedPanics: what cannot be derived is no value, for nobody who asks, and
// nobody waits for it.
func TestDerivedPanics(t *testing.T) {
	type key struct{}
	e, err := enginetest.New(engine.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := e.Write(&graph.Mutation{Schema: &graph.WriteSchema{Text: "definition user {}"}}); err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		func() {
			snapshot, err := e.Engine.Snapshot(e.Store, 0, e.Now, graph.Overlay{})
			if err != nil {
				t.Fatal(err)
			}
			defer snapshot.Close()
			defer func() {
				if p := recover(); p != "derive" {
					t.Errorf("asked for the %d. time it panics with %v", n+1, p)
				}
			}()
			got, err := snapshot.Derived(key{}, func(*schema.Schema) any { panic("derive") })
			t.Errorf("asked for the %d. time it gives %v, %v", n+1, got, err)
		}()
	}
}
