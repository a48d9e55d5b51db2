package engine_test

import (
	"sort"

	"github.com/pembadb/pemba/engine/enginetest"
	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

// The dumb twin: what questions mean, written down from the definitions and
// with no thought of speed. It shares nothing with the evaluator but the
// compiled schema and the judgement of a single caveat.
//
// For one subject, every name of every object is an equation. The twin
// computes all of them at once, round by round, as the well-founded model: the
// upper values are the least solution when exclusions read the lower ones, the
// lower values the least solution when exclusions read the upper ones, and the
// two alternate until nothing moves.
type twin struct {
	schema  *schema.Schema
	tuples  []graph.Tuple // those living at the instant, overlay applied
	objects []graph.Object
	subject graph.Subject
	context schema.Context

	// Each is a solution: three-valued truths with missing parameters.
	lower, upper map[atom]tri
	// reads is the solution whose values positive occurrences read, negative
	// the one that exclusions read.
	reads, negative map[atom]tri
	// stored finds tuples by object and relation, in a slice per relation.
	stored map[atom][]graph.Tuple
	// judged remembers what each caveat with each context came to.
	judged map[string]tri
}

type atom struct {
	object graph.Object
	name   string
}

// A tri is 0 for no, 1 for maybe, 2 for yes.
type tri struct {
	truth   int
	missing map[string]bool
}

func (t tri) sorted() []string {
	var names []string
	for n := range t.missing {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// pick combines operands by their greatest (or least) truth; a maybe waits for
// what all its maybes wait for.
func pick(operands []tri, better func(a, b int) bool, truth int) tri {
	for _, o := range operands {
		if better(o.truth, truth) {
			truth = o.truth
		}
	}
	result := tri{truth: truth}
	if truth == 1 {
		result.missing = map[string]bool{}
		for _, o := range operands {
			for n := range o.missing {
				result.missing[n] = true
			}
		}
	}
	return result
}

func anyOf(operands ...tri) tri { return pick(operands, func(a, b int) bool { return a > b }, 0) }
func allOf(operands ...tri) tri { return pick(operands, func(a, b int) bool { return a < b }, 2) }
func not(t tri) tri             { return tri{2 - t.truth, t.missing} }

func truthOf(b bool) tri {
	if b {
		return tri{truth: 2}
	}
	return tri{}
}

// solve computes both solutions.
func (w *twin) solve() {
	w.stored, w.judged = map[atom][]graph.Tuple{}, map[string]tri{}
	for _, t := range w.tuples {
		a := atom{t.Object, t.Relation}
		w.stored[a] = append(w.stored[a], t)
	}
	w.lower, w.upper = map[atom]tri{}, map[atom]tri{}
	for {
		upper := w.least(w.lower)
		lower := w.least(upper)
		done := same(upper, w.upper) && same(lower, w.lower)
		w.upper, w.lower = upper, lower
		if done {
			break
		}
	}
	// The truths stand; the missing parameters are the least sets that fit.
	w.lower, w.upper = w.missing(w.lower, w.upper)
}

// least is the least solution of the truths when exclusions read negative.
func (w *twin) least(negative map[atom]tri) map[atom]tri {
	w.reads, w.negative = map[atom]tri{}, negative
	for changed := true; changed; {
		changed = false
		w.eachAtom(func(a atom, r schema.Rewrite) {
			v := tri{truth: w.equation(a, r).truth}
			if v.truth != w.reads[a].truth {
				w.reads[a], changed = v, true
			}
		})
	}
	return w.reads
}

func (w *twin) missing(lower, upper map[atom]tri) (map[atom]tri, map[atom]tri) {
	for changed := true; changed; {
		changed = false
		nextLower, nextUpper := map[atom]tri{}, map[atom]tri{}
		w.eachAtom(func(a atom, r schema.Rewrite) {
			w.reads, w.negative = lower, upper
			nextLower[a] = w.equation(a, r)
			w.reads, w.negative = upper, lower
			nextUpper[a] = w.equation(a, r)
			changed = changed || len(nextLower[a].missing) != len(lower[a].missing) || len(nextUpper[a].missing) != len(upper[a].missing)
		})
		lower, upper = nextLower, nextUpper
	}
	return lower, upper
}

func same(a, b map[atom]tri) bool {
	for k := range a {
		if a[k].truth != b[k].truth {
			return false
		}
	}
	return len(b) == 0 || len(a) == len(b)
}

func (w *twin) eachAtom(f func(atom, schema.Rewrite)) {
	for _, o := range w.objects {
		d := w.schema.Definition(o.Type)
		for _, r := range d.Relations {
			f(atom{o, r.Name}, r.Rewrite)
		}
		for _, p := range d.Permissions {
			f(atom{o, p.Name}, p.Rewrite)
		}
		for _, p := range d.Hidden {
			f(atom{o, p.Name}, p.Rewrite)
		}
	}
}

// equation is the right side of a name's equation: its rewrite, and itself.
func (w *twin) equation(a atom, r schema.Rewrite) tri {
	itself := truthOf(w.subject == graph.Subject{Object: a.object, Relation: a.name})
	return anyOf(itself, w.rewrite(a, r))
}

func (w *twin) rewrite(a atom, r schema.Rewrite) tri {
	switch r := r.(type) {
	case schema.This:
		var ways []tri
		for _, t := range w.stored[a] {
			ways = append(ways, allOf(w.caveat(t), w.holds(t.Subject)))
		}
		return anyOf(ways...)
	case schema.Computed:
		return w.reads[atom{a.object, r.Name}]
	case schema.Arrow:
		var ways []tri
		for _, t := range w.stored[atom{a.object, r.Relation}] {
			ways = append(ways, allOf(w.caveat(t), w.reads[atom{t.Subject.Object, r.Name}]))
		}
		if !r.All {
			return anyOf(ways...)
		}
		return allOf(append(ways, truthOf(len(ways) > 0))...)
	case schema.Union:
		return anyOf(w.each(a, r.Children)...)
	case schema.Intersection:
		return allOf(w.each(a, r.Children)...)
	case schema.Exclusion:
		base := w.rewrite(a, r.Base)
		w.reads, w.negative = w.negative, w.reads
		subtracted := w.rewrite(a, r.Subtracted)
		w.reads, w.negative = w.negative, w.reads
		return allOf(base, not(subtracted))
	case schema.Self:
		return truthOf(w.subject == graph.Subject{Object: a.object})
	}
	return tri{}
}

func (w *twin) each(a atom, rewrites []schema.Rewrite) []tri {
	var values []tri
	for _, r := range rewrites {
		values = append(values, w.rewrite(a, r))
	}
	return values
}

// holds says whether the asked subject is among those a tuple's subject stands
// for.
func (w *twin) holds(s graph.Subject) tri {
	direct := s == w.subject ||
		s.ID == graph.Wildcard && s.Type == w.subject.Type && w.subject.Relation == ""
	if direct || s.Relation == "" {
		return truthOf(direct)
	}
	return w.reads[atom{s.Object, s.Relation}]
}

func (w *twin) caveat(t graph.Tuple) tri {
	if t.Caveat == "" {
		return tri{truth: 2}
	}
	text := t.Caveat + string(t.Context)
	if v, done := w.judged[text]; done {
		return v
	}
	result, err := w.schema.Caveat(t.Caveat).Eval(enginetest.ContextOf(t), w.context)
	if err != nil {
		panic(err) // the generator makes no context that fails
	}
	v := tri{truth: map[schema.Truth]int{schema.False: 0, schema.Unknown: 1, schema.True: 2}[result.Truth]}
	if v.truth == 1 {
		v.missing = map[string]bool{}
		for _, n := range result.Missing {
			v.missing[n] = true
		}
	}
	w.judged[text] = v
	return v
}
