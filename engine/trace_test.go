package engine_test

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// A judge holds the trace of an answer against what a trace promises: that each
// node follows from those below it by its operation, that each name is what the
// twin says it is, and that whatever is allowed is proved by tuples and not by
// itself. It knows nothing of how a trace is written.
type judge struct {
	tw *twin
	// shown holds the node of each name that is followed, proved what is proved
	// of them so far.
	shown  map[atom]*engine.Trace
	proved map[atom]bool
	// undefined counts the nodes that are undefined, referred those that refer to
	// a name shown elsewhere.
	undefined, referred int
}

// judgeTrace returns what is wrong with a trace.
func judgeTrace(root *engine.Trace, tw *twin) (*judge, error) {
	j := &judge{tw: tw, shown: map[atom]*engine.Trace{}, proved: map[atom]bool{}}
	if err := j.collect(root); err != nil {
		return j, err
	}
	if err := j.follows(root); err != nil {
		return j, err
	}
	for more := true; more; {
		more = false
		for a, t := range j.shown {
			if !j.proved[a] && j.proves(t) {
				j.proved[a], more = true, true
			}
		}
	}
	for a, t := range j.shown {
		if t.Verdict.Decision == engine.Allowed && !j.proved[a] {
			return j, fmt.Errorf("%s is allowed, and nothing in the trace proves it", nodeText(t))
		}
	}
	return j, nil
}

func nodeText(t *engine.Trace) string {
	return fmt.Sprintf("%s %s:%s#%s %s %q", t.Kind, t.Object.Type, t.Object.ID, t.Name, t.Expression, t.Note)
}

// refers says that the node is about a name shown elsewhere.
func refers(t *engine.Trace) bool {
	return t.Kind == engine.TraceName && (strings.HasPrefix(t.Note, "cycle") || strings.HasPrefix(t.Note, "seen above"))
}

func (j *judge) collect(t *engine.Trace) error {
	if t.Kind == engine.TraceName && !refers(t) {
		a := atom{t.Object, t.Name}
		if j.shown[a] != nil {
			return fmt.Errorf("%s is shown twice", nodeText(t))
		}
		j.shown[a] = t
	}
	for _, c := range t.Children {
		if err := j.collect(c); err != nil {
			return err
		}
	}
	return nil
}

// bounds is what a node says at least and at most.
func bounds(t *engine.Trace) (low, high tri) {
	return triOf(t.Verdict), triOf(t.AtMost)
}

func triOf(v engine.Verdict) tri {
	switch v.Decision {
	case engine.Allowed:
		return tri{truth: 2}
	case engine.Conditional:
		t := tri{truth: 1, missing: map[string]bool{}}
		for _, m := range v.Missing {
			t.missing[m] = true
		}
		return t
	}
	return tri{}
}

// everyOf says that an arrow asks for all of the objects it leads to.
func everyOf(t *engine.Trace) bool {
	every, arrow := strings.Index(t.Expression, ".all("), strings.Index(t.Expression, "->")
	return t.Kind == engine.TraceArrow && every >= 0 && (arrow < 0 || every < arrow)
}

// follows judges a node and those below it.
func (j *judge) follows(t *engine.Trace) error {
	var lows, highs []tri
	for _, c := range t.Children {
		if err := j.follows(c); err != nil {
			return err
		}
		low, high := bounds(c)
		lows, highs = append(lows, low), append(highs, high)
	}
	low, high := bounds(t)
	if low.truth == 0 && high.truth != 0 {
		j.undefined++
	}
	if (t.Verdict.Decision == engine.Denied) != (low.truth == 0 && high.truth == 0) {
		return fmt.Errorf("%s is %v, at most %v", nodeText(t), t.Verdict, t.AtMost)
	}
	var wantLow, wantHigh tri
	switch t.Kind {
	case engine.TraceName:
		a := atom{t.Object, t.Name}
		if !equalVerdicts(verdictOf(low), verdictOf(j.tw.lower[a])) || !equalVerdicts(verdictOf(high), verdictOf(j.tw.upper[a])) {
			return fmt.Errorf("%s is %v, at most %v; want %v and %v", nodeText(t), t.Verdict, t.AtMost, verdictOf(j.tw.lower[a]), verdictOf(j.tw.upper[a]))
		}
		switch {
		case refers(t):
			if j.referred++; j.shown[a] == nil {
				return fmt.Errorf("%s is shown nowhere else", nodeText(t))
			}
			return nil
		case strings.Contains(t.Note, "member of itself"):
			wantLow, wantHigh = truthOf(true), truthOf(true)
		default:
			wantLow, wantHigh = anyOf(lows...), anyOf(highs...)
		}
	case engine.TraceTuple:
		lacks := truthOf(!strings.Contains(t.Note, "has no such name"))
		wantLow, wantHigh = allOf(append(lows, lacks)...), allOf(append(highs, lacks)...)
	case engine.TraceCaveat:
		for _, tuple := range j.tw.tuples {
			// One of the tuples with this caveat that are stored says the same.
			if v := j.tw.caveat(tuple); tuple.Caveat == t.Name && equalVerdicts(verdictOf(v), t.Verdict) {
				wantLow, wantHigh = v, v
			}
		}
	case engine.TraceUnion, engine.TraceArrow, engine.TraceIntersection:
		if every := everyOf(t); every || t.Kind == engine.TraceIntersection {
			some := truthOf(len(lows) > 0)
			wantLow, wantHigh = allOf(append(lows, some)...), allOf(append(highs, some)...)
		} else {
			wantLow, wantHigh = anyOf(lows...), anyOf(highs...)
		}
	case engine.TraceExclusion:
		if len(lows) == 0 {
			return fmt.Errorf("%s takes away from nothing", nodeText(t))
		}
		wantLow, wantHigh = allOf(lows[0], not(anyOf(highs[1:]...))), allOf(highs[0], not(anyOf(lows[1:]...)))
	case engine.TraceSelf:
		wantLow, wantHigh = low, high
	}
	if !equalVerdicts(verdictOf(wantLow), verdictOf(low)) || !equalVerdicts(verdictOf(wantHigh), verdictOf(high)) {
		return fmt.Errorf("%s is %v, at most %v; what is below it gives %v and %v",
			nodeText(t), t.Verdict, t.AtMost, verdictOf(wantLow), verdictOf(wantHigh))
	}
	return nil
}

// proves says whether a node is proved to be allowed by what is proved so far.
func (j *judge) proves(t *engine.Trace) bool {
	below := func(c *engine.Trace) bool {
		if refers(c) || c.Kind == engine.TraceName {
			return j.proved[atom{c.Object, c.Name}]
		}
		return j.proves(c)
	}
	switch {
	case t.Verdict.Decision != engine.Allowed:
		return false
	case t.Kind == engine.TraceTuple, t.Kind == engine.TraceIntersection, everyOf(t):
		return !slices.ContainsFunc(t.Children, func(c *engine.Trace) bool { return !below(c) })
	case t.Kind == engine.TraceExclusion:
		return below(t.Children[0])
	case len(t.Children) == 0:
		return t.Kind == engine.TraceSelf || t.Kind == engine.TraceCaveat || strings.Contains(t.Note, "member of itself")
	}
	return slices.ContainsFunc(t.Children, below)
}

var tangles = flag.Int("tangles", 100, "how many tangles TestTraces asks about")

// traces counts what traces had.
type traces struct {
	all, undefined, referred int
}

// ask asks every question of a tangle with a trace.
func (n *traces) ask(t *testing.T, x *tangle) {
	for _, subject := range x.Subjects {
		tw := x.twins[subject.ID]
		for _, a := range x.atoms() {
			answer, err := x.s.Check(context.Background(), engine.Check{Object: a.object, Name: a.name, Subject: subject, Trace: true})
			if err != nil {
				t.Fatal(err)
			}
			j, err := judgeTrace(answer.Trace, tw)
			if err != nil {
				t.Fatalf("explain group:%s#%s@%s: %v\n%v", a.object.ID, a.name, subject, err, x.tuples)
			}
			n.all++
			n.referred += min(j.referred, 1)
			n.undefined += min(j.undefined, 1)
		}
	}
}

// TestTraces asks, of tangled groups, every question with a trace.
func TestTraces(t *testing.T) {
	r := seeded(t)
	n := &traces{}
	for range *tangles {
		t.Run("", func(t *testing.T) { n.ask(t, newTangle(t, r)) })
	}
	t.Logf("%d traces, %d of them with something undefined, %d that refer to what they show elsewhere", n.all, n.undefined, n.referred)
	if n.undefined*400 < n.all || n.referred*10 < n.all {
		t.Errorf("of %d traces %d have something undefined and %d refer to another place; too few to mean anything", n.all, n.undefined, n.referred)
	}
}

// TestTraceHangsOnSeveral is of a tangle where names follow from several that are still
// being shown.
func TestTraceHangsOnSeveral(t *testing.T) {
	x := emptyTangle(t, seeded(t))
	tuple := func(object, relation, subject string) (tuple graph.Tuple) {
		tuple.Object, tuple.Relation = graph.Object{Type: "group", ID: object}, relation
		tuple.Subject.Type = "group"
		tuple.Subject.ID, tuple.Subject.Relation, _ = strings.Cut(subject, "#")
		if strings.HasPrefix(subject, "u") {
			tuple.Subject.Type = "user"
		}
		return tuple
	}
	x.write(t, []graph.Tuple{
		tuple("g0", "member", "g1#member"), tuple("g0", "member", "g2#allowed"),
		tuple("g1", "banned", "g3#allowed"), tuple("g1", "link", "g3"),
		tuple("g1", "member", "g0#allowed"), tuple("g1", "member", "g1#allowed"),
		tuple("g2", "link", "g2"), tuple("g2", "link", "g3"),
		tuple("g2", "member", "g3#allowed"), tuple("g2", "member", "u1"),
		tuple("g3", "banned", "g1#allowed"),
	})
	(&traces{}).ask(t, x)
}
