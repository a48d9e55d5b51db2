package resident

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

var seed = flag.Uint64("seed", 1, "of random tests")

func isTrue(t *testing.T, ok bool, what ...any) {
	t.Helper()
	if !ok {
		t.Fatal(append([]any{"not so:"}, what...)...)
	}
}

func equal[T any](t *testing.T, want, got T, what ...any) {
	t.Helper()
	if !reflect.DeepEqual(want, got) {
		t.Fatal(append([]any{"got", got, "want", want}, what...)...)
	}
}

// typeOf gives all objects one type, and the subjects of the first shape the same.
func typeOf(shape uint32) uint32 { return (shape + 7) / 8 }

// A model is what a Graph should know: for each edge the revisions at which it came and
// went, in order.
type model struct {
	edges map[modelEdge][]version
}

type modelEdge struct {
	relation, subject uint32
	object, number    uint64
}

type version struct {
	revision           uint64
	present, qualified bool
}

func (m *model) set(e modelEdge, v version) { m.edges[e] = append(m.edges[e], v) }

func (m *model) at(e modelEdge, revision uint64) Answer {
	answer := Absent
	for _, v := range m.edges[e] {
		if v.revision > revision {
			break
		}
		switch {
		case !v.present:
			answer = Absent
		case v.qualified:
			answer = Qualified
		default:
			answer = Plain
		}
	}
	return answer
}

// list is the list of an end at a revision.
func (m *model) list(end modelEdge, d Direction, revision uint64) []Far {
	var far []Far
	for e := range m.edges {
		if e.relation != end.relation || e.subject != end.subject {
			continue
		}
		near, other := e.object, e.number
		if d == Reverse {
			near, other = other, near
		}
		if want := end.object; d == Forward && near != want || d == Reverse && near != end.number {
			continue
		}
		if a := m.at(e, revision); a != Absent {
			far = append(far, Far{other, a == Qualified})
		}
	}
	slices.SortFunc(far, func(a, b Far) int { return int(a.Number) - int(b.Number) })
	return far
}

// find asks a graph as package graph does.
func find(g *Graph, revision uint64, e modelEdge, d Direction) Answer {
	kind := g.Kind(e.relation, e.subject)
	if kind == NoKind {
		if g.Numbered() {
			return Absent
		}
		return Unknown
	}
	if e.object > NumberMax || e.number > NumberMax {
		return Unknown
	}
	if d == Forward {
		return g.Find(revision, End{Forward, kind, uint32(e.object)}, uint32(e.number))
	}
	return g.Find(revision, End{Reverse, kind, uint32(e.number)}, uint32(e.object))
}

// randomEdge draws from few objects with many subjects, and many with few.
func randomEdge(r *rand.Rand, wide int) modelEdge {
	e := modelEdge{relation: 1 + r.Uint32N(6), subject: 1 + r.Uint32N(2)}
	if r.IntN(3) == 0 {
		e.object, e.number = uint64(r.IntN(2)), uint64(r.IntN(wide))
	} else {
		e.object, e.number = uint64(r.IntN(wide)), uint64(r.IntN(wide/2))
	}
	return e
}

// TestRandom changes a graph as a model is changed, and compares them, at sizes at which
// lists take every form.
func TestRandom(t *testing.T) {
	for _, wide := range []int{8, 100, 3000} {
		t.Run(fmt.Sprint(wide), func(t *testing.T) {
			r := rand.New(rand.NewPCG(*seed, uint64(wide)))
			g := New(0, new(atomic.Int64))
			isTrue(t, g.Complete())
			m := model{edges: map[modelEdge][]version{}}
			var used []modelEdge
			for revision := uint64(1); revision <= 300; revision++ {
				c := g.Begin(revision, typeOf)
				removing := revision%100 > 60
				for range 1 + r.IntN(100) {
					e := randomEdge(r, wide)
					if removing && len(used) > 0 {
						e = used[r.IntN(len(used))]
					}
					if vs := m.edges[e]; len(vs) > 0 && vs[len(vs)-1].revision == revision {
						continue
					}
					if removing {
						c.Remove(e.relation, e.subject, e.object, e.number)
						m.set(e, version{revision: revision})
						continue
					}
					qualified := r.IntN(10) == 0
					c.Set(e.relation, e.subject, e.object, e.number, qualified)
					m.set(e, version{revision, true, qualified})
					used = append(used, e)
				}
				c.End()
				for range 50 {
					e := randomEdge(r, wide)
					for d := range Reverse + 1 {
						equal(t, m.at(e, revision), find(g, revision, e, d), e, revision)
					}
				}
				if revision%25 == 0 {
					compare(t, g, &m, revision)
				}
			}
		})
	}
}

// compare holds that all lists are those of the model, whole and from the middle on.
func compare(t *testing.T, g *Graph, m *model, revision uint64) {
	t.Helper()
	want := map[End][]Element{}
	for e := range m.edges {
		a := m.at(e, revision)
		if a == Absent || e.object > NumberMax || e.number > NumberMax {
			continue
		}
		kind := g.Kind(e.relation, e.subject)
		f, r := End{Forward, kind, uint32(e.object)}, End{Reverse, kind, uint32(e.number)}
		want[f] = append(want[f], MakeElement(r.Number, a == Qualified))
		want[r] = append(want[r], MakeElement(f.Number, a == Qualified))
	}
	bytes := int64(overhead)
	for _, t := range g.order {
		bytes += int64(8 * len(*t.pages.Load()))
	}
	for p := range g.all() {
		bytes += p.bytes()
	}
	equal(t, bytes, g.Bytes())
	for end, elements := range want {
		slices.Sort(elements)
		got, ok := g.List(nil, revision, end, 0, 1<<30)
		isTrue(t, ok)
		equal(t, elements, got, end)
		middle := len(elements) / 2
		got, ok = g.List(nil, revision, end, elements[middle].Number(), 3)
		isTrue(t, ok)
		equal(t, elements[middle:min(middle+3, len(elements))], got, end)
	}
	complete, err := g.Each(func(relation, subject uint32, d Direction, number uint64, far []Element, _ bool) error {
		end := End{d, g.Kind(relation, subject), uint32(number)}
		if !slices.Equal(want[end], far) && len(far) > 0 {
			return fmt.Errorf("%v, want %v", far, want[end])
		}
		return nil
	})
	isTrue(t, err == nil, err)
	isTrue(t, complete)
}

// TestReaders has readers ask while a writer changes what they ask for, and a filler
// fills in and sheds. Each answer must be that of the reader's revision.
func TestReaders(t *testing.T) {
	const wide = 400
	r := rand.New(rand.NewPCG(*seed, 7))
	// The whole history is made beforehand, so that readers can look at it.
	m := model{edges: map[modelEdge][]version{}}
	const revisions = 3000
	history := make([][]modelEdge, revisions+1)
	for revision := uint64(1); revision <= revisions; revision++ {
		for range 1 + r.IntN(8) {
			e := randomEdge(r, wide)
			vs := m.edges[e]
			if len(vs) > 0 && vs[len(vs)-1].revision == revision {
				continue
			}
			present := len(vs) == 0 || !vs[len(vs)-1].present || r.IntN(3) == 0
			m.set(e, version{revision, present, present && r.IntN(8) == 0})
			history[revision] = append(history[revision], e)
		}
	}
	for _, complete := range []bool{true, false} {
		t.Run(fmt.Sprintf("complete %t", complete), func(t *testing.T) {
			g := New(0, new(atomic.Int64))
			if complete {
				isTrue(t, g.Complete())
			} else {
				g.StopLoading()
			}
			var applied atomic.Uint64
			var running sync.WaitGroup
			var known, unknown atomic.Int64
			for i := range 3 {
				running.Go(func() {
					r := rand.New(rand.NewPCG(*seed, uint64(100+i)))
					for {
						revision := applied.Load()
						for range 20 {
							e := randomEdge(r, wide)
							d := Direction(r.IntN(2))
							if answer := find(g, revision, e, d); answer == Unknown {
								unknown.Add(1)
							} else {
								known.Add(1)
								if want := m.at(e, revision); want != answer {
									t.Errorf("%+v at %d: %d, want %d", e, revision, answer, want)
									return
								}
							}
							kind := g.Kind(e.relation, e.subject)
							if kind == NoKind {
								continue
							}
							end := End{Forward, kind, uint32(e.object)}
							if list, ok := g.List(nil, revision, end, uint32(e.number), 10); ok && !slices.IsSorted(list) {
								t.Errorf("%+v at %d: %v", end, revision, list)
								return
							} else if ok {
								for _, x := range list {
									e.number = uint64(x.Number())
									want := Plain
									if x.Qualified() {
										want = Qualified
									}
									if got := m.at(e, revision); got != want {
										t.Errorf("%+v at %d is in a list as %d: want %d", e, revision, want, got)
										return
									}
								}
							}
						}
						if revision == revisions {
							return
						}
					}
				})
			}
			running.Go(func() {
				for applied.Load() < revisions {
					g.Pack()
					runtime.Gosched()
				}
			})
			if !complete {
				running.Go(func() {
					r := rand.New(rand.NewPCG(*seed, 200))
					for n := 0; applied.Load() < revisions; n++ {
						revision := applied.Load()
						e := randomEdge(r, wide)
						d := Direction(r.IntN(2))
						number := e.object
						if d == Reverse {
							number = e.number
						}
						g.Fill(revision, e.relation, e.subject, typeOf, d, number, m.list(e, d, revision))
						if n%64 == 0 {
							g.Shed(60_000)
						}
					}
				})
			}
			for revision := uint64(1); revision <= revisions; revision++ {
				c := g.Begin(revision, typeOf)
				for _, e := range history[revision] {
					switch m.at(e, revision) {
					case Absent:
						c.Remove(e.relation, e.subject, e.object, e.number)
					case Plain:
						c.Set(e.relation, e.subject, e.object, e.number, false)
					case Qualified:
						c.Set(e.relation, e.subject, e.object, e.number, true)
					}
				}
				c.End()
				applied.Store(revision)
				for known.Load() < int64(revision) && !t.Failed() {
					runtime.Gosched()
				}
			}
			running.Wait()
			isTrue(t, known.Load() > 0)
			t.Logf("%d answers, %d unknown, %d bytes", known.Load(), unknown.Load(), g.Bytes())
		})
	}
}

// TestLoad fills a graph in while it is changed, as at a start.
func TestLoad(t *testing.T) {
	r := rand.New(rand.NewPCG(*seed, 3))
	const wide = 200
	m := model{edges: map[modelEdge][]version{}}
	revision := uint64(10)
	for range 2000 {
		e := randomEdge(r, wide)
		if len(m.edges[e]) == 0 {
			m.set(e, version{revision - 5, true, false})
		}
	}
	g := New(revision, new(atomic.Int64))
	change := func() {
		revision++
		c := g.Begin(revision, typeOf)
		for range 5 {
			e := randomEdge(r, wide)
			if vs := m.edges[e]; len(vs) > 0 && vs[len(vs)-1].revision == revision {
				continue
			}
			if m.at(e, revision) == Absent {
				c.Set(e.relation, e.subject, e.object, e.number, false)
				m.set(e, version{revision, true, false})
			} else {
				c.Remove(e.relation, e.subject, e.object, e.number)
				m.set(e, version{revision: revision})
			}
		}
		c.End()
	}
	fill := func(e modelEdge, d Direction, at uint64) {
		number := e.object
		if d == Reverse {
			number = e.number
		}
		g.Fill(at, e.relation, e.subject, typeOf, d, number, m.list(e, d, at))
	}
	at := revision
	for e := range maps(m.edges) {
		for d := range Reverse + 1 {
			fill(e, d, at)
		}
		if r.IntN(20) == 0 {
			change()
		}
		isTrue(t, find(g, revision, e, Forward) != Qualified)
	}
	rounds := 0
	for !g.Complete() {
		rounds++
		at := revision
		for i, end := range g.Missed() {
			if rounds < 4 && i%10 == 0 {
				change()
			}
			fill(modelEdge{end.Relation, end.Subject, end.Number, end.Number}, end.Direction, at)
		}
	}
	isTrue(t, rounds > 1)
	compare(t, g, &m, revision)
	before := g.Bytes()
	g.Pack()
	isTrue(t, g.Bytes() < before, g.Bytes(), before)
	compare(t, g, &m, revision)
	for range 1000 {
		e := randomEdge(r, wide)
		equal(t, m.at(e, revision), find(g, revision, e, Reverse))
	}
	equal(t, Unknown, find(g, 9, modelEdge{1, 1, 1, 1}, Forward))
}

// maps returns the edges in a copy, since they are added to meanwhile.
func maps(edges map[modelEdge][]version) map[modelEdge]bool {
	copied := map[modelEdge]bool{}
	for e := range edges {
		copied[e] = true
	}
	return copied
}

// TestNumbersBeyond holds that ends which do not fit are never told of.
func TestNumbersBeyond(t *testing.T) {
	g := New(0, new(atomic.Int64))
	isTrue(t, g.Complete())
	c := g.Begin(1, typeOf)
	c.Set(1, 1, 5, NumberMax, false)
	c.Set(1, 1, 5, 7, false)
	c.Set(1, 1, 6, NumberMax+1, false)
	c.Set(1, 1, 5, NumberMax+1, true)
	c.Set(1, 1, NumberMax+1, 7, true)
	c.End()
	kind := g.Kind(1, 1)
	for _, end := range []End{{Forward, kind, 5}, {Forward, kind, 6}, {Reverse, kind, 7}} {
		_, ok := g.List(nil, 1, end, 0, 10)
		isTrue(t, !ok, end)
		equal(t, Unknown, g.Find(1, end, 7))
	}
	equal(t, Plain, g.Find(1, End{Reverse, kind, NumberMax}, 5))
}
