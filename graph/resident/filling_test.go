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
		kind := g.number(1, 2, typeOf)
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
		g.Fill(1, 1, 2, typeOf, Forward, 7, []Far{{Number: 9}})
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
	c := g.Begin(2, typeOf)
	c.Set(1, 2, 1, 1, false)
	c.End()
	const ends = 100_000
	refused := 0
	for i := uint64(10); i < 10+ends; i++ {
		if !g.Fill(1, 1, 2, typeOf, Forward, i, []Far{{Number: 5}}) {
			refused++
		}
	}
	if refused > pageEnds {
		t.Errorf("one change kept out %d of %d lists", refused, ends)
	}
}

// TestMissedIsBounded changes more while a store is read than is worth noting.
func TestMissedIsBounded(t *testing.T) {
	var total atomic.Int64
	g := New(1, &total)
	c := g.Begin(2, typeOf)
	for i := range uint64(missedMax) {
		c.Set(1, 2, i, i, false)
	}
	c.End()
	if g.loading || len(g.missed) > 0 || !g.Partial() || g.Bytes() != total.Load() || g.Bytes() > 1<<22 {
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
	c := g.Begin(2, typeOf)
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
	g.Fill(1, 1, 2, typeOf, Forward, NumberMax+1, []Far{{Number: NumberMax + 2}})
	g.Fill(1, 1, 2, typeOf, Reverse, NumberMax+2, []Far{{Number: NumberMax + 1}})
	g.Complete()
	if g.Numbered() && g.Kind(1, 2) == NoKind {
		t.Error("a pair that has an edge is said to have none")
	}
}

// TestShedUnwantedFirst holds that what nobody asked for goes before what somebody did,
// and that this goes as well where it must.
func TestShedUnwantedFirst(t *testing.T) {
	g := New(1, new(atomic.Int64))
	g.Complete()
	c := g.Begin(2, typeOf)
	for i := range uint64(15_000) {
		c.Set(1, 20, i, i, false)
	}
	c.End()
	kind := g.Kind(1, 20)
	wanted := func(i uint32) bool { return i/pageEnds%7 == 3 }
	for i := range uint32(15_000) {
		if wanted(i) {
			g.Find(2, End{Forward, kind, i}, i)
		}
	}
	// Six of seven pages of one table, and all of the other, may go.
	g.Shed(g.Bytes() / 5)
	left := 0
	for i := range uint32(15_000) {
		a := g.Find(2, End{Forward, kind, i}, i)
		if a == Unknown && wanted(i) {
			t.Fatalf("%d was given up, which was wanted", i)
		}
		if a == Plain {
			left++
		}
	}
	if left == 15_000 || !g.Partial() {
		t.Errorf("%d ends are left, partial %t", left, g.Partial())
	}
	g.Shed(0)
	if g.Bytes() > 1<<13 {
		t.Errorf("%d bytes are left when all should go", g.Bytes())
	}
}

// TestShedWhileLoading holds that what was given up before everything was filled in is not
// taken for what is not there.
func TestShedWhileLoading(t *testing.T) {
	var total atomic.Int64
	g := New(1, &total)
	for i := range uint64(100) {
		g.Fill(1, 1, 2, typeOf, Forward, i, []Far{{Number: 9}})
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
