package engine

import (
	"fmt"
	"slices"
	"time"

	"github.com/pembadb/pemba/graph"
)

// The walk writes a trace only when q.trace is set; every function here is a
// single comparison otherwise.
//
// A trace shows final values alone, so that each node follows from those below
// it. It is written when the answer is known, by a second walk over the same
// code: while the answer is sought names are open, and what is computed with
// meanwhile (open names as undefined, and whatever hangs on them) would stand in
// the trace as if it were so.
//
// In a cycle, that a node follows from those below it does not prove it: two
// groups that hold each other would each be shown to hold anne because the other
// does. Where a branch allows only by way of a name that is itself still being
// shown, the trace therefore goes on to the branches behind it, until one proves
// the name. There is one: the low of the well-founded model is found by proofs.

// judge gives the node the verdict of a value.
func (t *Trace) judge(x value) {
	t.Verdict, t.AtMost = x.low().verdict(), x.high().verdict()
	if x.lowTruth() == x.highTruth() {
		return
	}
	if x.lowTruth() == no {
		t.Verdict = Verdict{}
	} else {
		t.note("at least; whether more is undefined")
	}
}

// note adds to the node's note.
func (t *Trace) note(text string) {
	if t.Note != "" {
		t.Note += "; "
	}
	t.Note += text
}

// proved says whether the last of the nodes below t allows, and not by way of a
// name that is still being shown.
func (t *Trace) proved() bool {
	if len(t.Children) == 0 {
		return true // deeper than is shown
	}
	last := t.Children[len(t.Children)-1]
	return last.Verdict.Decision == Allowed && len(last.hangsOn()) == 0
}

// hangsOn returns the names, still being shown, by way of which t is shown to be
// allowed; none if t is proved. It may name more than t needs, and never fewer.
func (t *Trace) hangsOn() []*Trace {
	if slices.ContainsFunc(t.hangs, func(on *Trace) bool { return !on.showing }) {
		// What is shown by now hangs on what it hung on when it was done.
		names := showing{}
		for _, on := range t.hangs {
			if on.showing {
				names.add(on)
				continue
			}
			names.add(on.hangsOn()...)
		}
		t.hangs = names.names
	}
	return t.hangs
}

// showing collects names that are being shown, each once. They stand one above the other,
// so each has a depth of its own.
type showing struct {
	names  []*Trace
	depths [treeDepthMax/64 + 1]uint64
}

func (s *showing) add(names ...*Trace) {
	for _, t := range names {
		if word, bit := t.depth/64, uint64(1)<<(t.depth%64); s.depths[word]&bit == 0 {
			s.depths[word] |= bit
			s.names = append(s.names, t)
		}
	}
}

// prove finds out what t hangs on, once its children are there.
//
// That is whatever those of them hang on that allow, in a union as well, where it would
// do that one is proved: none is, so all are shown. A name never needs itself: what it
// follows from can be shown without it, and each way to show that is counted.
func (t *Trace) prove() {
	if children := t.Children; t.Verdict.Decision == Allowed && len(children) > 0 && (t.every || !t.proved()) {
		if t.Kind == TraceExclusion {
			// That the rest is denied takes no proof: what nothing proves is denied.
			children = children[:1]
		}
		names := showing{}
		for _, c := range children {
			if c.Verdict.Decision == Allowed {
				names.add(c.hangsOn()...)
			}
		}
		t.hangs = slices.DeleteFunc(names.names, func(on *Trace) bool { return on == t })
	}
	for _, c := range t.Children {
		if c.Kind != TraceName {
			c.hangs = nil // None asks again.
		}
	}
	t.showing = false
}

// NoteDeeper is the note of a node below which steps are left out, because there
// are too many above each other.
const NoteDeeper = "deeper steps are not shown"

// traceBytes is the estimate of what a node of a trace takes, hangBytes of what each name
// that it hangs on adds.
const (
	traceBytes = 512
	hangBytes  = 16
)

// traceUnder hangs a node under the current one and makes it the current one.
// The walk finds out at its next step whether its memory was too much.
func (q *question) traceUnder(t *Trace) (parent *Trace) {
	q.memory += traceBytes
	if t.Tuple != nil {
		q.memory += int64(len(t.Tuple.Context))
	}
	parent = q.trace
	switch q.traceDepth++; {
	case q.traceDepth <= treeDepthMax:
		parent.Children = append(parent.Children, t)
	case q.traceDepth == treeDepthMax+1:
		parent.note(NoteDeeper)
	}
	q.trace, t.began = t, time.Now()
	return parent
}

// traceAnswer writes the trace of a name whose value is known to be v. No name is
// open.
func (w *walk) traceAnswer(n *name, object graph.Number, v value) (*Trace, error) {
	above := &Trace{}
	w.trace, w.shown = above, make(map[int32]*Trace)
	_, err := w.nameOf(n, object)
	w.trace, w.shown = nil, nil
	if err != nil {
		return nil, err
	}
	root := above.Children[0]
	if v.lowTruth() == no && v.highTruth() != no {
		root.note("denied because it is undefined: a cycle leads through what an exclusion takes away")
	}
	return root, nil
}

// traceName is nameOf for a walk that writes a trace: it finds the value without
// one, and then shows how it follows. A name is shown once.
func (w *walk) traceName(n *name, object graph.Number) (value, error) {
	trace := w.trace
	w.trace = nil
	v, err := w.evaluate(n, object)
	w.trace = trace
	if err != nil {
		return v, err
	}
	at, found := w.table.find(key(n, object))
	if !found {
		return v, fmt.Errorf("engine: %s#%s was evaluated and is not known", n.typ.name, n.name)
	}
	t := &Trace{
		Kind: TraceName, Object: w.traceObject(n.typ, object), Name: n.name, Expression: n.rewrite.expression(),
	}
	if w.cells[at].solved {
		t.note("part of a cycle, decided by fixpoint")
	}
	before := w.shown[at]
	visible := w.traceDepth < treeDepthMax
	parent := w.traceUnder(t)
	switch {
	case before != nil:
		if t.Note = "seen above"; before.showing {
			t.Note = "cycle"
		}
		t.hangs = []*Trace{before}
	case visible:
		t.showing, t.depth = true, w.traceDepth
		w.shown[at] = t
		if err := w.descend(nameBytes); err != nil {
			return v, err
		}
		if _, err := w.body(n, object); err != nil {
			return v, err
		}
		w.ascend(nameBytes)
	}
	w.traceClose(parent, v)
	return v, nil
}

// traceOperation begins the node of an operation and returns the one to go back
// to.
func (w *walk) traceOperation(kind TraceKind, op *operation) *Trace {
	if w.trace == nil {
		return nil
	}
	return w.traceUnder(&Trace{Kind: kind, Expression: op.expression(), every: kind == TraceIntersection || op.all})
}

// traceTuple begins the node of a stored tuple.
func (w *walk) traceTuple(relation *name, object graph.Number, e *graph.Edge) *Trace {
	if w.trace == nil {
		return nil
	}
	typ, userset := w.graph.ShapeName(e.Shape)
	t := &graph.Tuple{
		Object:   w.traceObject(relation.typ, object),
		Relation: relation.name,
		Subject:  graph.Subject{Object: graph.Object{Type: typ, ID: w.traceID(typ, e.Number)}, Relation: userset},
		Context:  e.Context,
	}
	if e.Caveat != 0 {
		t.Caveat = w.graph.CaveatName(e.Caveat)
	}
	return w.traceUnder(&Trace{Kind: TraceTuple, Object: t.Object, Name: t.Relation, Tuple: t, every: true})
}

// traceClose ends the current node with its verdict.
func (w *walk) traceClose(parent *Trace, v value) {
	if parent != nil {
		w.trace.judge(v)
		w.memory += w.trace.Verdict.shownBytes() + w.trace.AtMost.shownBytes()
		w.trace.prove()
		w.memory += hangBytes * int64(len(w.trace.hangs))
		w.trace.Duration = time.Since(w.trace.began)
		w.trace = parent
		w.traceDepth--
	}
}

func (w *walk) traceText(note string) {
	if w.trace != nil {
		w.trace.note(note)
	}
}

// traceCaveat notes what a caveat came to.
func (q *question) traceCaveat(caveat string, v value, note string) error {
	if q.trace == nil {
		return nil
	}
	t := &Trace{Kind: TraceCaveat, Name: caveat, Note: note}
	t.judge(v)
	q.trace.Children = append(q.trace.Children, t)
	return q.hold(traceBytes + int64(len(note)) + t.Verdict.shownBytes() + t.AtMost.shownBytes())
}

func (q *question) traceObject(typ *objectType, number graph.Number) graph.Object {
	return graph.Object{Type: typ.name, ID: q.traceID(typ.name, number)}
}

// traceID is the id behind a number. A number that has none is damage that the
// evaluation itself would not notice: the trace shows it.
func (q *question) traceID(typ string, number graph.Number) string {
	id, err := q.graph.ID(typ, number)
	if err != nil {
		return "?" + err.Error()
	}
	return id
}
