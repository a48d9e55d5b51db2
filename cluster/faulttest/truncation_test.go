package faulttest

import (
	"cmp"
	"path/filepath"
	"testing"
	"time"
)

// The disk holds the state and a bounded log, however long writes go on.
func TestTruncation(t *testing.T) {
	const trailing, threshold = 100, 200
	s := settings{
		DataDir:           filepath.Join(t.TempDir(), "data"),
		SnapshotThreshold: threshold, SnapshotInterval: 20 * time.Millisecond, TrailingLogs: trailing,
		LogMemTable: 1 << 20, GraphMemTable: 1 << 20,
	}
	p := start(t, s)
	p.must(request{Op: "schema"})
	h := newHistory()
	writers := newWriters(h, 16, seed(t))
	// A cut is asked for at the threshold and made while writes go on.
	const bound = 4 * (trailing + threshold)
	duration := cmp.Or(*durationFlag, 3*time.Second)
	var longest, written uint64
	var largest int64
	err := load(p, writers, func() {
		begun := time.Now()
		every := max(duration/10, 100*time.Millisecond)
		// A slow machine takes longer, or there would be nothing to see.
		for next := begun.Add(every); time.Since(begun) < duration || written < 2*bound; {
			status := p.must(request{Op: "status"}).Status
			held := status.LastIndex + 1 - status.FirstIndex
			written = status.LastIndex
			longest, largest = max(longest, held), max(largest, status.LogBytes)
			if time.Now().After(next) {
				next = next.Add(every)
				t.Logf("%6.1f s: %8d requests, %9d changes; log %d to %d (%d entries, %5.1f MiB); state %6.1f MiB, durable %d below applied",
					time.Since(begun).Seconds(), h.acknowledged.Load(), h.changes.Load(), status.FirstIndex, status.LastIndex, held,
					float64(status.LogBytes)/(1<<20), float64(status.StateBytes)/(1<<20), status.Applied-status.Durable)
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	last := p.must(request{Op: "status"}).Status
	p.stop()
	h.verify(t, s.DataDir)
	t.Logf("%d entries written; the log held at most %d entries and %.1f MiB", last.LastIndex, longest, float64(largest)/(1<<20))
	if longest > bound {
		t.Errorf("the log held %d entries, more than %d: it was not cut in time", longest, bound)
	}
	// Two memtables, level 0 and the base level of the log at 1 MiB each, and
	// its sparse files.
	if limit := int64(64 << 20); largest > limit {
		t.Errorf("the log took %d bytes, more than %d", largest, limit)
	}
}
