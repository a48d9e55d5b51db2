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
//
// Where subjects are looked up, a value stands for one of every subject (sets).
//
// Values are copied at each step, so they take two words: nearly all are yes or no,
// and say so in one comparison.
type value struct {
	truths truths
	// more is what cannot be said in truths; nil for nothing, as where low and high
	// are both yes or both no.
	more *more
}

// truths are the truths of a value's low, in the lowest two bits, and high, in the next,
// and failedBit: low and high differ because a caveat could not be evaluated, and such an
// answer is an error, not a denial.
// Invariant: failedBit only if low and high differ.
type truths uint8

const (
	highShift = 2
	failedBit = truths(1 << 4)

	bothNo  = truths(no) | truths(no)<<highShift
	bothYes = truths(yes) | truths(yes)<<highShift
	noToYes = truths(no) | truths(yes)<<highShift
)

// more is what low and high wait for, or the value of every subject of a walk that looks
// them up. It is not changed once made.
type more struct {
	low, high *missing
	subjects  *subjectSet
}

var (
	denied    = value{truths: bothNo}
	allowed   = value{truths: bothYes}
	undefined = value{truths: noToYes}
	failed    = value{truths: noToYes | failedBit}
)

func conditional(names []string) value {
	b := bound{maybe, &missing{names}}
	return valueBetween(b, b, false)
}

// valueBetween is the value of two bounds. It has failed if a part of it has and it
// matters.
func valueBetween(low, high bound, failed bool) value {
	v := value{truths: truths(low.truth) | truths(high.truth)<<highShift}
	if failed && low.truth != high.truth {
		v.truths |= failedBit
	}
	if low.missing != nil || high.missing != nil {
		v.more = &more{low: low.missing, high: high.missing}
	}
	return v
}

func (v value) lowTruth() truth  { return truth(v.truths & 3) }
func (v value) highTruth() truth { return truth(v.truths >> highShift & 3) }
func (v value) failed() bool     { return v.truths&failedBit != 0 }

func (v value) low() bound {
	b := bound{truth: v.lowTruth()}
	if v.more != nil {
		b.missing = v.more.low
	}
	return b
}

func (v value) high() bound {
	b := bound{truth: v.highTruth()}
	if v.more != nil {
		b.missing = v.more.high
	}
	return b
}

// isAllowed and isDenied say that nothing can change the value any more.
func (v value) isAllowed() bool { return v.truths == bothYes }
func (v value) isDenied() bool  { return v.truths == bothNo }

// isSettled says that the value is no or yes whatever comes of the names that
// are still open. A maybe is never settled while names are open, even where low
// and high agree: an open name counts as yes in the high, and so hides what it
// may turn out to wait for.
func (v value) isSettled() bool { return v.isAllowed() || v.isDenied() }

// combined is a value made of v and w.
func combined(v, w value, low, high bound) value {
	return valueBetween(low, high, v.failed() || w.failed())
}

// Nearly all values are yes or no, which or and and need not take apart.

func (v value) or(w value) value {
	switch {
	case v.isDenied(), w.isAllowed():
		return w
	case w.isDenied(), v.isAllowed():
		return v
	}
	return combined(v, w, v.low().or(w.low()), v.high().or(w.high()))
}

func (v value) and(w value) value {
	switch {
	case v.isAllowed(), w.isDenied():
		return w
	case w.isAllowed(), v.isDenied():
		return v
	}
	return combined(v, w, v.low().and(w.low()), v.high().and(w.high()))
}

func (v value) except(w value) value {
	return combined(v, w, v.low().and(w.high().not()), v.high().and(w.low().not()))
}

// splice takes the low of one value and the high of another.
func splice(low, high value) value {
	return valueBetween(low.low(), high.high(), false)
}

func (v value) equal(w value) bool {
	return v.truths == w.truths && (v.more == w.more || v.low().equal(w.low()) && v.high().equal(w.high()))
}

// bare is the truths alone.
func (v value) bare() value { return value{truths: v.truths &^ failedBit} }

// verdict gives the answer.
func (v value) verdict() Verdict { return v.low().verdict() }

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
