package resident

import (
	"math"
	"runtime"
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

// TestPackWhileRemoved has a store dropped while its graph is packed.
func TestPackWhileRemoved(t *testing.T) {
	for range 20 {
		g := New(1, new(atomic.Int64))
		for i := range uint64(100_000) {
			g.Fill(1, 1, 2, typeOf, Forward, i, []Far{{Number: 9}})
		}
		g.Complete()
		before := g.Bytes()
		var packing sync.WaitGroup
		packing.Go(g.Pack)
		for g.Bytes() == before {
			runtime.Gosched()
		}
		c := g.Begin(2, typeOf)
		c.RemoveAll()
		c.End()
		packing.Wait()
	}
}

// TestComeAndGo holds that objects which came and went take nothing, and that who asks at
// a revision at which they were there is not told that they were not.
func TestComeAndGo(t *testing.T) {
	const window, objects = 1000, 200_000
	g := New(0, new(atomic.Int64))
	isTrue(t, g.Complete())
	revision := uint64(0)
	for i := uint64(0); i < objects; i += 100 {
		revision++
		c := g.Begin(revision, typeOf)
		for j := i; j < i+100; j++ {
			c.Set(1, 2, j, j%500, false)
			if j >= window {
				c.Remove(1, 2, j-window, (j-window)%500)
			}
		}
		c.End()
	}
	if g.Bytes() > 1<<18 {
		t.Errorf("%d objects take %d bytes, of which %d are left", objects, g.Bytes(), window)
	}
	kind := g.Kind(1, 2)
	equal(t, Unknown, g.Find(1, End{Forward, kind, 5}, 5))
	equal(t, Absent, g.Find(revision, End{Forward, kind, 5}, 5))
	// Nor is what was read before they went filled in behind that.
	g.Shed(0)
	g.Fill(1, 1, 2, typeOf, Forward, 5, []Far{{Number: 5}})
	isTrue(t, g.Find(revision, End{Forward, kind, 5}, 5) != Plain)
}

// TestChangeInPlace holds that a change which needs no room of the arena does not have the
// page replaced.
func TestChangeInPlace(t *testing.T) {
	g := New(1, new(atomic.Int64))
	for i := range uint64(64) {
		g.Fill(1, 1, 2, typeOf, Forward, i, []Far{{Number: 9}})
	}
	g.Complete()
	g.Pack()
	table := g.kinds.Load().sides[g.Kind(1, 2)][Forward]
	before := table.find(0)
	c := g.Begin(2, typeOf)
	c.Set(1, 2, 5, 9, true)
	c.Set(1, 2, 6, 10, false)
	c.Remove(1, 2, 7, 9)
	c.End()
	if table.find(0) != before {
		t.Error("the page was replaced for changes that have room where they stand")
	}
}

// TestKindsGrow holds that a further kind does not cost what all before it take.
func TestKindsGrow(t *testing.T) {
	g := New(0, new(atomic.Int64))
	g.mu.Lock()
	defer g.mu.Unlock()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const kinds = 20_000
	for i := range uint32(kinds) {
		g.number(1+i%100, 1+i/100, typeOf)
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > kinds*10_000 {
		t.Errorf("%d kinds were numbered with %d bytes", kinds, took)
	}
}

// TestShedSome holds that where a tenth is given up, what comes behind that is still kept,
// and of most of what never was it is still known.
func TestShedSome(t *testing.T) {
	g := New(1, new(atomic.Int64))
	g.Complete()
	set := func(revision, from, to uint64) {
		c := g.Begin(revision, typeOf)
		for i := from; i < to; i++ {
			c.Set(1, 20, i, i, false)
		}
		c.End()
	}
	set(2, 0, 50_000)
	g.Shed(g.Bytes() * 9 / 10)
	set(3, 50_000, 60_000)
	kind := g.Kind(1, 20)
	unknown := func(from, to uint32) (n int) {
		for i := from; i < to; i++ {
			if g.Find(3, End{Forward, kind, i}, i) == Unknown {
				n++
			}
		}
		return n
	}
	if u := unknown(50_000, 60_000); u > 5000 {
		t.Errorf("%d of 10,000 edges that came since are not known", u)
	}
	if u := unknown(70_000, 80_000); u > 5000 {
		t.Errorf("of %d of 10,000 ends that never were it is not known", u)
	}
}

// TestOldPage holds that who still looks at a page which was replaced finds there what was
// true, also in a long list.
func TestOldPage(t *testing.T) {
	g := New(1, new(atomic.Int64))
	g.Complete()
	c := g.Begin(2, typeOf)
	for i := range uint64(2 * blockMax) {
		c.Set(1, 2, 1, i, false)
	}
	c.End()
	kind := g.Kind(1, 2)
	old := g.kinds.Load().sides[kind][Forward].find(1)
	l, _, _ := old.find(1, kind)
	g.Pack()
	c = g.Begin(3, typeOf)
	c.Set(1, 2, 1, 5000, false)
	c.Remove(1, 2, 1, 7)
	c.End()
	isTrue(t, old.stamp.Load() == 2)
	_, added := old.element(l, 5000)
	_, kept := old.element(l, 7)
	isTrue(t, !added && kept, added, kept)
}
