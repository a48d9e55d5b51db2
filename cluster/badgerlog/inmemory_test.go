package badgerlog

import (
	"errors"
	"log/slog"
	"math"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// memoryConfig is testConfig without a directory.
func memoryConfig() Config {
	return Config{InMemory: true, Logger: slog.New(slog.DiscardHandler), MemTableSize: minMemTableSize}
}

// TestInMemory: a log in memory is the same log, also when Badger's memtables are
// full several times over, and leaves nothing behind.
func TestInMemory(t *testing.T) {
	t.Chdir(t.TempDir())
	l := mustOpen(t, memoryConfig())
	const size, last = 2000, 4000 // Some eight memtables.
	for first := uint64(1); first < last; first += 100 {
		mustStore(t, l, entries(first, first+99, 1, size))
	}
	if err := l.DeleteRange(1, 1000); err != nil {
		t.Fatal(err)
	}
	if err := l.DeleteRange(3001, last); err != nil {
		t.Fatal(err)
	}
	mustStore(t, l, entries(3001, 3010, 2, size))
	wantLog(t, l, 1001, 3010, func(index uint64) uint64 {
		if index > 3000 {
			return 2
		}
		return 1
	}, size)
	if err := l.SetUint64([]byte("CurrentTerm"), 7); err != nil {
		t.Fatal(err)
	}
	if term, err := l.GetUint64([]byte("CurrentTerm")); err != nil || term != 7 {
		t.Errorf("the term is %d (%v)", term, err)
	}
	if err := l.Verify(); err != nil {
		t.Error(err)
	}
	most := l.EntryBytesMax()
	if onDisk := testConfig("x").entryBytesMax(); most != memoryConfig().entryBytesMax() || most != onDisk {
		t.Errorf("an entry may have %d bytes, and %d on a disk", most, onDisk)
	}
	largest := &raft.Log{Index: 3011, Term: 2, Data: make([]byte, most)}
	mustStore(t, l, []*raft.Log{largest})
	var got raft.Log
	if err := l.GetLog(3011, &got); err != nil || !sameEntry(&got, largest) {
		t.Errorf("the largest entry came back with %d bytes (%v)", len(got.Data), err)
	}
	if err := l.StoreLog(&raft.Log{Index: 3012, Term: 2, Data: make([]byte, most+1)}); !errors.Is(err, ErrEntryTooLarge) {
		t.Errorf("a byte more: %v", err)
	}
	stats, err := l.Stats()
	if err != nil || stats.DiskBytes != 0 || stats.BallastBytes != 0 || stats.FreeBytes != math.MaxInt64 || stats.Refusing {
		t.Errorf("the figures are %+v (%v)", stats, err)
	}
	if err := l.Wipe(0); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	if err := l.StoreLog(entry(1, 3, 10)); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if list, err := os.ReadDir("."); err != nil || len(list) > 0 {
		t.Errorf("there are files: %v (%v)", list, err)
	}
}

// TestInMemoryEnds: no goroutine outlives Close.
func TestInMemoryEnds(t *testing.T) {
	round := func() {
		l := mustOpen(t, memoryConfig())
		mustStore(t, l, entries(1, 100, 1, 100))
		mustClose(t, l)
	}
	round() // What starts once in a process has started.
	before := runtime.NumGoroutine()
	for range 5 {
		round()
	}
	for end := time.Now().Add(time.Minute); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("there were %d goroutines, and are %d:\n%s", before, runtime.NumGoroutine(), stacks())
		}
	}
}

func stacks() []byte {
	b := make([]byte, 1<<20)
	return b[:runtime.Stack(b, true)]
}

// TestInMemoryConfig: a log is in a directory or in memory.
func TestInMemoryConfig(t *testing.T) {
	c := memoryConfig()
	c.Dir = t.TempDir()
	if _, err := Open(c); err == nil || !strings.Contains(err.Error(), "InMemory") || !strings.Contains(err.Error(), c.Dir) {
		t.Errorf("both: %v", err)
	}
	if _, err := Open(Config{}); err == nil || !strings.Contains(err.Error(), "Dir is empty") {
		t.Errorf("neither: %v", err)
	}
}
