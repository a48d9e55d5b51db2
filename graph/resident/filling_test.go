package resident

import (
	"math"
	"sync"
	"sync/atomic"
	"testing"
)

// TestCompleteWhileLooking has a reader look for a list at the moment at which it is
// filled in as the last one: it is unknown or there, and never missing.
func TestCompleteWhileLooking(t *testing.T) {
	var total atomic.Int64
	for i := range 3000 {
		g := New(1, &total)
		g.mu.Lock()
		kind := g.number(1, 2)
		g.mu.Unlock()
		end := End{Forward, kind, 7}
		var reader sync.WaitGroup
		var begun, wrong atomic.Bool
		reader.Go(func() {
			begun.Store(true)
			for {
				if i%2 == 0 {
					if a := g.Find(1, end, 9); a != Unknown {
						wrong.Store(a != Plain)
						return
					}
				} else if l, ok := g.List(nil, 1, end, 0, 10); ok {
					wrong.Store(len(l) != 1)
					return
				}
			}
		})
		for !begun.Load() {
		}
		g.Fill(1, 1, 2, Forward, 7, []Far{{Number: 9}})
		g.Complete()
		reader.Wait()
		if wrong.Load() {
			t.Fatalf("round %d: an edge that is there since revision 1 was not found", i)
		}
	}
}

// TestChangeWhileLoading holds that one change while a store is read does not keep out
// what was not changed, however the graph grows.
func TestChangeWhileLoading(t *testing.T) {
	var total atomic.Int64
	g := New(1, &total)
	c := g.Begin(2)
	c.Set(1, 2, 1, 1, false)
	c.End()
	const ends = 100_000
	refused := 0
	for i := uint64(10); i < 10+ends; i++ {
		if !g.Fill(1, 1, 2, Forward, i, []Far{{Number: 5}}) {
			refused++
		}
	}
	// The edge is of two of the first groups.
	if refused > ends*4/stampsMin {
		t.Errorf("one change kept out %d of %d lists", refused, ends)
	}
}

// TestMissedIsBounded changes more while a store is read than is worth noting.
func TestMissedIsBounded(t *testing.T) {
	var total atomic.Int64
	g := New(1, &total)
	c := g.Begin(2)
	for i := range uint64(missedMax) {
		c.Set(1, 2, i, i, false)
	}
	c.End()
	if g.loading || len(g.missed) > 0 || !g.Partial() || g.Bytes() != total.Load() || g.Bytes() > 1<<20 {
		t.Errorf("loading %t, %d missed, %d bytes, %d in all", g.loading, len(g.missed), g.Bytes(), total.Load())
	}
	if g.Complete(); g.Numbered() {
		t.Error("what was not read through is complete")
	}
}

// TestLimits lists with limits that are far beyond what there is.
func TestLimits(t *testing.T) {
	g := New(1, new(atomic.Int64))
	g.Complete()
	c := g.Begin(2)
	for i := range uint64(10) {
		c.Set(1, 2, 1, i, false)
	}
	for i := range uint64(1000) {
		c.Set(1, 2, 2, i, false)
	}
	c.End()
	kind := g.Kind(1, 2)
	for object, want := range map[uint32]int{1: 7, 2: 997} {
		if l, ok := g.List(nil, 2, End{Forward, kind, object}, 3, math.MaxInt); !ok || len(l) != want {
			t.Errorf("%d: listed %d of %d (%t)", object, len(l), want, ok)
		}
	}
}

// TestPairBeyond holds that a pair counts as one with edges if none of them can be kept.
func TestPairBeyond(t *testing.T) {
	g := New(1, new(atomic.Int64))
	g.Fill(1, 1, 2, Forward, NumberMax+1, []Far{{Number: NumberMax + 2}})
	g.Fill(1, 1, 2, Reverse, NumberMax+2, []Far{{Number: NumberMax + 1}})
	g.Complete()
	if g.Numbered() && g.Kind(1, 2) == NoKind {
		t.Error("a pair that has an edge is said to have none")
	}
}

// TestShedUnwantedFirst holds that what nobody asked for goes before what somebody did,
// also where a segment stands at several places.
func TestShedUnwantedFirst(t *testing.T) {
	tried := 0
	for n := uint64(3000); n < 15_000; n += 1500 {
		g := New(1, new(atomic.Int64))
		g.Complete()
		c := g.Begin(2)
		for i := range n {
			c.Set(1, 2, i, i, false)
		}
		c.End()
		d := g.directory.Load()
		var shallow *segment
		count := 0
		for s := range d.all() {
			count++
			s.wanted.Store(true)
			if s.depth < 64-d.shift && shallow == nil {
				shallow = s
			}
		}
		last := d.segments[len(d.segments)-1].Load()
		if shallow == nil || shallow == last || count < 3 {
			continue
		}
		tried++
		last.wanted.Store(false)
		g.Shed(g.Bytes() - 1)
		still := false
		for s := range d.all() {
			still = still || s == shallow
		}
		if !still {
			t.Fatalf("with %d edges, one of %d segments was given up that was wanted", n, count)
		}
	}
	if tried == 0 {
		t.Error("no graph had segments of several depths")
	}
}

// TestShedWhileLoading holds that what was given up before everything was filled in is not
// taken for what is not there.
func TestShedWhileLoading(t *testing.T) {
	var total atomic.Int64
	g := New(1, &total)
	for i := range uint64(100) {
		g.Fill(1, 1, 2, Forward, i, []Far{{Number: 9}})
	}
	g.Shed(0)
	g.Complete()
	kind := g.Kind(1, 2)
	if a := g.Find(1, End{Forward, kind, 7}, 9); a != Unknown {
		t.Errorf("an edge that was given up is answered %d", a)
	}
	if g.Numbered() || !g.Partial() {
		t.Errorf("numbered %t, partial %t", g.Numbered(), g.Partial())
	}
}
