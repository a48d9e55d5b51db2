package engine

import (
	"slices"

	"github.com/pembadb/pemba/schema"
)

// A truth is a value of the three-valued logic in which caveats are judged:
// no < maybe < yes. Union is the maximum, intersection the minimum, negation
// swaps no and yes.
type truth uint8

const (
	no truth = iota
	maybe
	yes
)

func (t truth) not() truth { return yes - t }

// missing names the caveat parameters that a maybe waits for, sorted, without
// repeats. It is shared and never changed once made. A value carries a pointer
// to it, for values are copied much and seldom wait for anything.
type missing struct{ names []string }

func (m *missing) union(n *missing) *missing {
	switch {
	case n == nil || m == n:
		return m
	case m == nil:
		return n
	}
	both := slices.Concat(m.names, n.names)
	slices.Sort(both)
	both = slices.Compact(both)
	switch len(both) {
	case len(m.names):
		return m
	case len(n.names):
		return n
	}
	return &missing{both}
}

func (m *missing) equal(n *missing) bool {
	return m == n || m != nil && n != nil && slices.Equal(m.names, n.names)
}

// A bound is a truth with what is missing to say more.
// Invariant: missing is nil unless truth is maybe.
type bound struct {
	truth   truth
	missing *missing
}

func (b bound) or(c bound) bound {
	switch {
	case b.truth == yes || c.truth == no:
		return b
	case c.truth == yes || b.truth == no:
		return c
	}
	return bound{maybe, b.missing.union(c.missing)}
}

func (b bound) and(c bound) bound {
	switch {
	case b.truth == no || c.truth == yes:
		return b
	case c.truth == no || b.truth == yes:
		return c
	}
	return bound{maybe, b.missing.union(c.missing)}
}

func (b bound) not() bound { return bound{b.truth.not(), b.missing} }

func (b bound) equal(c bound) bool {
	return b.truth == c.truth && b.missing.equal(c.missing)
}

// A value is what the evaluator knows of one name of one object for one
// subject: low is what holds at least, high what holds at most. They differ
// only where the data has a cycle. While a cycle is open, everything between no
// and yes is possible; when it is solved, low < high is left exactly where a
// cycle runs through the subtracted side of an exclusion, which the
// well-founded model calls undefined. The answer to a question is low: what is
// undefined is denied.
//
// Exclusion takes its low from the high of what it subtracts and the other way
// round, which is what keeps an undefined name from ever turning into allowed,
// on either side of any number of exclusions.
type value struct {
	low, high bound
	// failed says that low and high differ because a caveat could not be
	// evaluated: such an answer is an error, not a denial.
	// Invariant: failed only if low.truth != high.truth.
	failed bool
}

var (
	denied    = value{}
	allowed   = value{low: bound{truth: yes}, high: bound{truth: yes}}
	undefined = value{high: bound{truth: yes}}
	failed    = value{high: bound{truth: yes}, failed: true}
)

func conditional(names []string) value {
	b := bound{maybe, &missing{names}}
	return value{low: b, high: b}
}

// isAllowed and isDenied say that nothing can change the value any more.
func (v value) isAllowed() bool { return v.low.truth == yes && v.high.truth == yes }
func (v value) isDenied() bool  { return v.low.truth == no && v.high.truth == no }

// isSettled says that the value is no or yes whatever comes of the names that
// are still open. A maybe is never settled while names are open, even where low
// and high agree: an open name counts as yes in the high, and so hides what it
// may turn out to wait for.
func (v value) isSettled() bool { return v.isAllowed() || v.isDenied() }

// combined is a value made of v and w: it has failed if one of them has and it
// matters.
func combined(v, w value, low, high bound) value {
	return value{low, high, (v.failed || w.failed) && low.truth != high.truth}
}

// Nearly all values are yes or no, which or and and need not take apart.

func (v value) or(w value) value {
	switch {
	case v.isDenied(), w.isAllowed():
		return w
	case w.isDenied(), v.isAllowed():
		return v
	}
	return combined(v, w, v.low.or(w.low), v.high.or(w.high))
}

func (v value) and(w value) value {
	switch {
	case v.isAllowed(), w.isDenied():
		return w
	case w.isAllowed(), v.isDenied():
		return v
	}
	return combined(v, w, v.low.and(w.low), v.high.and(w.high))
}

func (v value) except(w value) value {
	return combined(v, w, v.low.and(w.high.not()), v.high.and(w.low.not()))
}

func (v value) equal(w value) bool {
	return v.low.equal(w.low) && v.high.equal(w.high) && v.failed == w.failed
}

// bare is the truths alone.
func (v value) bare() value {
	return value{low: bound{truth: v.low.truth}, high: bound{truth: v.high.truth}}
}

// verdict gives the answer.
func (v value) verdict() Verdict { return v.low.verdict() }

// shownBytes estimates what a verdict takes that is shown in a tree or a trace: the
// names of what is missing, which are written out for each.
func (v Verdict) shownBytes() int64 {
	n := int64(0)
	for _, name := range v.Missing {
		n += 16 + 2*int64(len(name))
	}
	return n
}

func (b bound) verdict() Verdict {
	switch b.truth {
	case yes:
		return Verdict{Decision: Allowed}
	case maybe:
		return Verdict{Decision: Conditional, Missing: b.missing.names}
	}
	return Verdict{Decision: Denied}
}

// valueOf converts the result of a caveat.
func valueOf(r schema.Result) value {
	switch r.Truth {
	case schema.True:
		return allowed
	case schema.Unknown:
		return conditional(r.Missing)
	}
	return denied
}
