package cluster

import (
	"fmt"
	"log/slog"
	"math"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/pembadb/pemba/cluster/badgerlog"
)

// memoryConfig is testConfig without a directory.
func memoryConfig(t testing.TB) Config {
	config := testConfig(t, "")
	config.InMemory = true
	return config
}

// TestInMemory: a node in memory takes writes through the log, flushes its state
// and cuts its log as it does on a disk, answers for the past, and leaves nothing
// on the disk.
func TestInMemory(t *testing.T) {
	t.Chdir(t.TempDir())
	config := memoryConfig(t)
	config.NodeID = "mem"
	config.SnapshotThreshold, config.TrailingLogs, config.SnapshotInterval = 50, 10, time.Millisecond
	n := open(t, config)
	if n.ID() != "mem" {
		t.Errorf("its id is %q", n.ID())
	}
	writeSchema(t, n)
	const count = 400
	first := write(t, n, create(viewer("0", "anne")))
	for i := 1; i < count; i++ {
		write(t, n, create(viewer(fmt.Sprint(i), "anne")))
	}
	mustHave(t, n, count, "anne")
	then := Consistency{Mode: Exactly, Revision: first.Revision, Instant: first.Instant}
	if !has(t, n, then, viewer("0", "anne")) || has(t, n, then, viewer("1", "anne")) {
		t.Error("the first revision does not hold the first tuple alone")
	}
	var s Status
	for end := time.Now().Add(deadline); ; time.Sleep(5 * time.Millisecond) {
		var err error
		if s, err = n.Status(); err != nil {
			t.Fatal(err)
		}
		if s.FirstIndex > 100 && s.Durable > 100 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the log was not cut: %+v", s)
		}
	}
	if s.StateBytes != 0 || s.LogBytes != 0 || s.FreeBytes != math.MaxInt64 || s.Role != "leader" {
		t.Errorf("its status is %+v", s)
	}
	if _, err := n.Metrics(); err != nil {
		t.Error(err)
	}
	closeNode(t, n)
	if list, err := os.ReadDir("."); err != nil || len(list) > 0 {
		t.Errorf("there are files: %v (%v)", list, err)
	}
	// The next one is another cluster, which knows nothing of this one.
	other := open(t, memoryConfig(t))
	if other.ClusterID() == n.ClusterID() || other.ID() == "" {
		t.Errorf("the next node is %q of the same cluster", other.ID())
	}
	writeSchema(t, other)
	if has(t, other, Consistency{}, viewer("0", "anne")) {
		t.Error("the next node has what was written to this one")
	}
}

// TestInMemoryEnds: no goroutine outlives Close, and nodes in one process share
// nothing.
func TestInMemoryEnds(t *testing.T) {
	config := memoryConfig(t)
	round := func() {
		a, b := open(t, config), open(t, config)
		writeSchema(t, a)
		writeSchema(t, b)
		write(t, a, create(viewer("1", "anne")))
		if has(t, b, Consistency{}, viewer("1", "anne")) {
			t.Error("one node has what was written to the other")
		}
		closeNode(t, a)
		closeNode(t, b)
	}
	round() // What starts once in a process has started.
	before := runtime.NumGoroutine()
	for range 3 {
		round()
	}
	for end := time.Now().Add(deadline); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			b := make([]byte, 1<<20)
			t.Fatalf("there were %d goroutines, and are %d:\n%s", before, runtime.NumGoroutine(), b[:runtime.Stack(b, true)])
		}
	}
}

// TestInMemoryConfig: a node is in a directory or in memory, and says which fields
// are at odds.
func TestInMemoryConfig(t *testing.T) {
	both := memoryConfig(t)
	both.DataDir = t.TempDir()
	refusedWith(t, both, "InMemory", both.DataDir)
	refusedWith(t, Config{Logger: slog.New(slog.DiscardHandler)}, "DataDir is empty")
	log := testConfig(t, t.TempDir())
	log.Log = badgerlog.Config{InMemory: true}
	refusedWith(t, log, "Config.Log", "InMemory")
}
