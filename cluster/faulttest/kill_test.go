package faulttest

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/pembadb/pemba/graph"
)

func seed(t *testing.T) uint64 {
	s := *seedFlag
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", s)
	return s
}

// kill -9 at a random moment under full load, with the log being cut all the
// time, loses nothing that was acknowledged and leaves no half of a request.
func TestKill(t *testing.T) {
	s := settings{
		DataDir:           filepath.Join(t.TempDir(), "data"),
		SnapshotThreshold: 2000, SnapshotInterval: 50 * time.Millisecond, TrailingLogs: 500,
		LogMemTable: 1 << 20, GraphMemTable: 1 << 20,
	}
	random := seed(t)
	rng := rand.New(rand.NewPCG(random, 1<<32))
	h := newHistory()
	writers := newWriters(h, 16, random)
	var restarts, opens []time.Duration
	var seen graph.Revision
	begun := time.Now()
	for kill := range *killsFlag {
		p := start(t, s)
		if kill == 0 {
			p.must(request{Op: "schema"})
		}
		// Neither an acknowledged write nor what was read before may be ahead.
		if now := p.must(request{Op: "status"}).Status.Applied; now < max(seen, h.newest) {
			t.Fatalf("after restart a read shows revision %d; %d was acknowledged and %d read before", now, h.newest, seen)
		}
		ctx, cancel := context.WithCancel(context.Background())
		watched := make(chan error, 1)
		go func() {
			highest, err := watch(ctx, p)
			seen = max(seen, highest)
			watched <- err
		}()
		alive := 100*time.Millisecond + time.Duration(rng.Int64N(int64(900*time.Millisecond)))
		if err := load(p, writers, func() { h.writesAfter(p); time.Sleep(alive); p.kill() }); err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := <-watched; err != nil {
			t.Fatal(err)
		}
		if said := p.complaint(); said != "" {
			t.Fatalf("the process had a fault of its own:\n%s", said)
		}

		mustBeWhole(t, s.DataDir)

		p = start(t, s)
		restarts, opens = append(restarts, p.started), append(opens, p.opened)
		status := p.must(request{Op: "status"}).Status
		if status.Applied < max(seen, h.newest) {
			t.Fatalf("after kill %d a read shows revision %d; %d was acknowledged and %d read before", kill+1, status.Applied, h.newest, seen)
		}
		p.stop()
		h.verify(t, s.DataDir)
		t.Logf("kill %d after %v: %d acknowledged, log %d to %d, up again in %v (open %v)", kill+1, alive.Round(time.Millisecond),
			h.acknowledged.Load(), status.FirstIndex, status.LastIndex, p.started.Round(time.Millisecond), p.opened.Round(time.Millisecond))
	}
	slices.Sort(restarts)
	slices.Sort(opens)
	t.Logf("%d kills in %v: %d requests with %d changes acknowledged, %d unknown; restart median %v, most %v; open median %v, most %v",
		*killsFlag, time.Since(begun).Round(time.Second), h.acknowledged.Load(), h.changes.Load(), h.unknown.Load(),
		restarts[len(restarts)/2], restarts[len(restarts)-1], opens[len(opens)/2], opens[len(opens)-1])
	if h.acknowledged.Load() == 0 {
		t.Error("nothing was written")
	}
}

// mustBeWhole checks the state as the dead process left it, before anything is
// replayed: it is what it was at some revision, with nothing half done.
func mustBeWhole(t *testing.T, dataDir string) {
	t.Helper()
	db, err := graph.Open(graph.Config{Dir: filepath.Join(dataDir, "state"), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.CheckInvariants(); err != nil {
		t.Error(err)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}
