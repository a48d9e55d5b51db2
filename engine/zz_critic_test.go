package engine_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc >> 20
}

func obj(t, id string) graph.Object { return graph.Object{Type: t, ID: id} }

// caveat cost and deadline
func TestZZCaveat(t *testing.T) {
	e := newEnv(t, `definition person {}
caveat c(l list<int>) { l.all(x, l.all(y, x + y >= 0)) && false }
definition d { relation v: person with c | g#m with c }
definition g { relation m: person }
`, "d:1#v@g:1#m[c]")
	var tuples []string
	for i := range 300 {
		tuples = append(tuples, fmt.Sprintf("d:1#v@g:%d#m[c]", i))
	}
	if err := e.Touch(tuples...); err != nil {
		t.Fatal(err)
	}
	s := snapshot(t, e)
	for _, n := range []int{100, 500, 1000, 2000, 4000} {
		var l []any
		for i := range n {
			l = append(l, float64(i))
		}
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		start := time.Now()
		a, err := s.Check(ctx, engine.Check{Object: obj("d", "1"), Name: "v", Subject: graph.Subject{Object: obj("person", "x")}, Context: schema.Context{"l": l}})
		t.Logf("n=%d: %v steps=%d err=%v after %v (deadline 100ms)", n, a.Decision, a.Steps, err, time.Since(start))
		cancel()
	}
}

// trace memory
func TestZZTrace(t *testing.T) {
	big := strings.Repeat("x", 60000)
	e := newEnv(t, `definition person {}
caveat c(a string, k int) { a != "" && k > 1 }
definition d { relation v: g#m with c }
definition g { relation m: person }
`)
	for i := range 3000 {
		if err := e.Touch(fmt.Sprintf(`d:1#v@g:%d#m[c:{"a":"%s","k":5}]`, i, big)); err != nil {
			t.Fatal(err)
		}
	}
	s := snapshot(t, e)
	h := heap()
	q := engine.Check{Object: obj("d", "1"), Name: "v", Subject: graph.Subject{Object: obj("person", "x")}, Budget: engine.Budget{MemoryBytes: 1 << 20}}
	q.Trace = true
	a, err := s.Check(context.Background(), q)
	t.Logf("trace: err=%v steps=%d heap +%d MiB with a budget of 1 MiB", err, a.Steps, heap()-h)
	runtime.KeepAlive(a)
	h = heap()
	tr, err := s.Expand(context.Background(), engine.Expand{Object: obj("d", "1"), Name: "v", Budget: engine.Budget{MemoryBytes: 1 << 20}})
	t.Logf("expand: err=%v heap +%d MiB with a budget of 1 MiB", err, heap()-h)
	runtime.KeepAlive(tr)
}

// LookupSubjects quadratic
func TestZZSubjects(t *testing.T) {
	for _, groups := range []int{50, 100, 200, 400} {
		var tuples []string
		for g := range groups {
			tuples = append(tuples, fmt.Sprintf("folder:f#viewer@group:g%d#member", g))
			for p := range 50 {
				tuples = append(tuples, fmt.Sprintf("group:g%d#member@person:p%d_%d", g, g, p))
			}
		}
		s := snapshot(t, newEnv(t, wideSchema, tuples...))
		n := 0
		start := time.Now()
		err := s.LookupSubjects(context.Background(), engine.LookupSubjects{Object: obj("folder", "f"), Name: "view", SubjectType: "person"}, func(engine.FoundSubject) error { n++; return nil })
		a, cerr := check(t, s, "folder:f#view@person:nobody")
		t.Logf("%d groups of 50: %d found err=%v in %v; check %v steps %d %v", groups, n, err, time.Since(start), a.Decision, a.Steps, cerr)
	}
}

// rings
func TestZZRing(t *testing.T) {
	for _, n := range []int{20, 40, 80, 160} {
		var tuples []string
		for i := range n {
			tuples = append(tuples, fmt.Sprintf("group:g%d#member@group:g%d#member", i, (i+1)%n), fmt.Sprintf("group:g%d#member@person:p%d", i, i))
		}
		s := snapshot(t, newEnv(t, wideSchema, tuples...))
		c := 0
		start := time.Now()
		err := s.LookupSubjects(context.Background(), engine.LookupSubjects{Object: obj("group", "g0"), Name: "member", SubjectType: "person"}, func(engine.FoundSubject) error { c++; return nil })
		t.Logf("lookup ring of %d groups: %d err=%v in %v", n, c, err, time.Since(start))
	}
	for _, n := range []int{100, 200, 400, 800} {
		var tuples []string
		for i := range n {
			tuples = append(tuples, fmt.Sprintf("g:%d#m@g:%d#m", i, (i+1)%n))
		}
		tuples = append(tuples, fmt.Sprintf("g:%d#m@person:p[c]", n-1))
		s := snapshot(t, newEnv(t, `definition person {}
caveat c(k int) { k > 1 }
definition g { relation m: person | person with c | g#m }`, tuples...))
		start := time.Now()
		a, err := check(t, s, "g:0#m@person:p")
		t.Logf("check ring of %d groups, caveated: %v %v steps=%d in %v", n, a.Decision, err, a.Steps, time.Since(start))
	}
}

// fault misattributed
func TestZZFault(t *testing.T) {
	e := newEnv(t, `definition person {}
caveat bad(k int) { 1 / k > 0 }
definition d { relation m: person | person with bad | d#p
 relation b: d#p
 permission p = m - b
 permission both = m & nil2
 relation nil2: person }`)
	_ = e
	if err := e.Touch(`d:a#m@person:x[bad:{"k":0}]`, `d:a#m@d:c#p`, `d:c#m@person:x`, `d:c#b@d:c#p`, `d:b#m@person:x`, `d:b#b@d:b#p`, `d:g#m@person:x`); err != nil {
		t.Fatal(err)
	}
	s := snapshot(t, e)
	for _, q := range []string{"d:a#p@person:x", "d:a#both@person:x", "d:b#p@person:x", "d:c#p@person:x", "d:g#p@person:x"} {
		a, err := check(t, s, q)
		t.Logf("check %s: %v %v", q, a.Decision, err)
	}
	err := s.LookupResources(context.Background(), engine.LookupResources{Type: "d", Name: "p", Subject: graph.Subject{Object: obj("person", "x")}}, func(r engine.Resource) error { t.Log(r.Object, r.Decision); return nil })
	t.Log("lookup p:", err)
}
