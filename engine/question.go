package engine

import (
	"time"

	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

// A Decision is the answer to a check. The zero Decision is no answer.
type Decision uint8

// The three decisions, ordered: Denied < Conditional < Allowed.
const (
	Denied Decision = iota + 1
	// Conditional means that the answer depends on parameters of caveats that
	// neither the tuples nor the question gave.
	Conditional
	Allowed
)

// String returns "denied", "conditional" or "allowed".
func (d Decision) String() string {
	switch d {
	case Denied:
		return "denied"
	case Conditional:
		return "conditional"
	case Allowed:
		return "allowed"
	}
	return "undecided"
}

// A Budget bounds what one question may cost. A zero field means the engine's
// default.
type Budget struct {
	// Steps counts what the evaluator looks at: names of objects, tuples,
	// results.
	Steps int
	// MemoryBytes bounds what the evaluator holds at once, by its own estimate.
	MemoryBytes int64
}

// Check asks whether Subject has Name (a relation or permission) on Object.
type Check struct {
	Object  graph.Object
	Name    string
	Subject graph.Subject
	// Context gives values for parameters of caveats; what a tuple carries
	// itself wins. Undeclared keys are ignored. It may be nil.
	Context schema.Context
	Budget  Budget
	// Trace asks for the way the decision came about.
	Trace bool
}

// A Verdict is a decision with what is missing to decide further.
type Verdict struct {
	Decision Decision
	// Missing names, sorted, the caveat parameters that are undecided; empty
	// unless the decision is Conditional.
	Missing []string
}

// An Answer is the answer to a check.
type Answer struct {
	Verdict
	// Steps is what the answer cost, in the unit of Budget.Steps.
	Steps int
	// Cycles counts the cycles of the data that had to be solved for it.
	Cycles int
	// Trace is nil unless the check asked for it.
	Trace *Trace
}

// A Trace is the tree of how a decision follows, one node for each rewrite or
// tuple that the evaluator looked at, in the order it did. Branches that could not
// change the decision are not in it, and each name is followed once. A check with
// a trace takes up to twice the steps of one without.
type Trace struct {
	// Kind is one of the Trace kinds.
	Kind TraceKind
	// Object and Name say what was asked of the node; for a tuple they are
	// those of the tuple.
	Object graph.Object
	Name   string
	// Tuple is the tuple the node is about; nil when it is about none.
	Tuple *graph.Tuple
	// Expression is the rewrite in schema text; empty for tuples.
	Expression string
	// Verdict is what the node comes to by the nodes below it. Its Decision is
	// zero where that is undefined: by a cycle through what an exclusion takes
	// away, or by a caveat that failed.
	Verdict Verdict
	// AtMost is what the node comes to if all that is undefined below it turned
	// out in its favour: Verdict itself where nothing is undefined.
	AtMost Verdict
	// Note says what the verdict alone does not: "seen above", "cycle", the
	// expression of a caveat or why it failed. It may be empty.
	Note     string
	Children []*Trace
	// Duration is how long it took to write the node and those below it. What the
	// walk knew already took no time.
	Duration time.Duration

	// What the trace is written with. A name is showing while what is below it is
	// written, at depth; every says that a node which is allowed needs every child; hangs
	// are the names it hangs on, as hangsOn reads them.
	// Invariant, while showing: 0 < depth <= treeDepthMax, and no other that is showing in
	// the same trace has the same.
	showing, every bool
	depth          int
	hangs          []*Trace
	began          time.Time
}

// NeedsAll reports whether what the node stands for holds only where everything
// below it does: an intersection, an arrow that asks all it leads to, a tuple with
// its caveat and what it leads to.
func (t *Trace) NeedsAll() bool { return t.every }

// A TraceKind says what a Trace node stands for.
type TraceKind uint8

// The kinds of Trace nodes.
const (
	// TraceName is a relation or permission of an object.
	TraceName TraceKind = iota + 1
	// TraceTuple is a stored tuple.
	TraceTuple
	// TraceUnion, TraceIntersection, TraceExclusion and TraceArrow are the
	// operations of a rewrite.
	TraceUnion
	TraceIntersection
	TraceExclusion
	TraceArrow
	// TraceNil and TraceSelf are the leaves nil and self.
	TraceNil
	TraceSelf
	// TraceCaveat is the evaluation of a tuple's caveat.
	TraceCaveat
)

var traceKindNames = [...]string{
	TraceName: "name", TraceTuple: "tuple", TraceUnion: "union", TraceIntersection: "intersection",
	TraceExclusion: "exclusion", TraceArrow: "arrow", TraceNil: "nil", TraceSelf: "self", TraceCaveat: "caveat",
}

// String returns the kind in lower case.
func (k TraceKind) String() string {
	if int(k) < len(traceKindNames) && traceKindNames[k] != "" {
		return traceKindNames[k]
	}
	return "none"
}

// Expand asks for the tree of subjects behind Name on Object. It follows
// computed names and arrows and stops at usersets, which stand in the tree as
// subjects. A tuple outside its lifetime is not in the tree; one whose caveat does
// not hold is, and says so. So a tree grants nothing by itself: who evaluates one
// takes each tuple as far as its verdict says.
type Expand struct {
	Object graph.Object
	Name   string
	// Context gives values for parameters of caveats, as that of a Check does. A
	// value of a wrong type makes the caveats that ask for it fail. It may be nil.
	Context schema.Context
	Budget  Budget
}

// A TupleVerdict says how far a tuple holds, by its caveat.
type TupleVerdict struct {
	// Verdict is Allowed when the tuple holds, Denied when it does not, and
	// Conditional when that hangs on what is Missing. Its Decision is zero when the
	// caveat failed.
	Verdict
	// Failure says why the caveat could not be evaluated; else it is empty.
	Failure string
}

// A Tree is the answer to Expand: a set operation over children, or a leaf of
// subjects.
type Tree struct {
	// Object and Name say whose subjects the node holds.
	Object graph.Object
	Name   string
	// Operation is one of the Tree operations.
	Operation TreeOperation
	// Children are the operands, in the order of the source; for TreeExclusion the
	// base and then all that is subtracted, for an arrow one child for each tuple
	// that leads to an object, an empty leaf where that has not the name asked for. A TreeIntersection without children holds nobody.
	Children []*Tree
	// Via is, on a child of an arrow, the tuple that leads to it, and nil on all
	// other nodes. The child holds its subjects only as far as the caveat of this
	// tuple does, which ViaVerdict says; it is nil when there is no caveat.
	Via        *graph.Tuple
	ViaVerdict *TupleVerdict
	// Leaves are the tuples that stand on the relation, sorted by subject type,
	// id and relation; set only for TreeLeaf. Like Via they have their caveat and
	// ValidUntil; ValidFrom, Sources and Created are not filled in.
	Leaves []graph.Tuple
	// Verdicts says how far each of the Leaves holds, in their order; nil when
	// none of them has a caveat. Invariant: len(Verdicts) is 0 or len(Leaves).
	Verdicts []TupleVerdict
	// Note is "cycle" on a node that stands above itself, which is not
	// followed again.
	Note string
}

// A TreeOperation says how a Tree node combines its children.
type TreeOperation uint8

// The operations of Tree nodes.
const (
	TreeLeaf TreeOperation = iota + 1
	TreeUnion
	TreeIntersection
	TreeExclusion
)

// LookupResources asks for the objects of Type on which Subject has Name.
type LookupResources struct {
	Type    string
	Name    string
	Subject graph.Subject
	Context schema.Context
	// After continues behind a resource that an earlier answer at the same
	// revision and instant gave as its Position; zero starts at the beginning.
	After Position
	// Limit is how many results to give; zero means all.
	Limit  int
	Budget Budget
}

// A Position is a place in the order of a lookup's results: the number of the
// last object given, plus one. Zero is before the first.
type Position uint64

// A Resource is one result of LookupResources. Verdict is Allowed or
// Conditional.
type Resource struct {
	Object   graph.Object
	Position Position
	Verdict
}

// LookupSubjects asks for the subjects of one shape that have Name on Object.
type LookupSubjects struct {
	Object graph.Object
	Name   string
	// SubjectType and SubjectRelation are the shape: person, or group#member.
	SubjectType     string
	SubjectRelation string
	Context         schema.Context
	After           Position
	Limit           int
	Budget          Budget
}

// A FoundSubject is one result of LookupSubjects: a subject that a path of
// tuples names, or the wildcard with those it does not hold for. Verdict is
// Allowed or Conditional.
type FoundSubject struct {
	Subject  graph.Subject
	Position Position
	Verdict
	// Excluded lists, for the wildcard alone, the subjects for which the
	// wildcard does not hold, sorted by id. Their Verdict says how surely they
	// are excluded: Allowed for certainly, Conditional for depending on Missing.
	Excluded []ExcludedSubject
}

// An ExcludedSubject is a subject that a wildcard result does not cover.
type ExcludedSubject struct {
	Subject graph.Subject
	Verdict
}
