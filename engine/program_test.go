package engine_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// A program is made in Apply and stays in memory: arrows alike must not each hold
// all that they lead to, which would be their number times that of the types.
func TestProgramSize(t *testing.T) {
	const types, arrows, bytesMax = 500, 2000, 8 << 20
	var b strings.Builder
	b.WriteString("definition d {\nrelation r: t000")
	for i := 1; i < types; i++ {
		fmt.Fprintf(&b, " | t%03d", i)
	}
	b.WriteString("\npermission p = r->b" + strings.Repeat(" + r->b", arrows-1) + "\n}\n")
	for i := range types {
		fmt.Fprintf(&b, "definition t%03d {\nrelation b: d\n}\n", i)
	}
	heap := func() int64 {
		var s runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&s)
		return int64(s.HeapAlloc)
	}
	e := newEnv(t, b.String())
	before := heap()
	if err := e.Touch("d:x#r@t000:y"); err != nil {
		t.Fatal(err)
	}
	if held := heap() - before; held > bytesMax {
		t.Errorf("the program of %d arrows to %d types holds %d bytes, want at most %d", arrows, types, held, bytesMax)
	}
}

// Many checks that are refused end with their context as those that walk do.
func TestBulkOfRefusedEnds(t *testing.T) {
	s := snapshot(t, newEnv(t, "definition user {}"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.CheckBulk(ctx, []engine.Check{{Object: graph.Object{Type: "usr", ID: "a"}, Name: "b"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that it was canceled", err)
	}
}
