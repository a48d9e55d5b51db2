package engine

import (
	"github.com/pembadb/pemba/graph"
)

// The walk writes a trace only when q.trace is set; every function here is a
// single comparison otherwise.

// traceVerdict is the verdict of what a walk collects, where it is one.
func traceVerdict(v any) Verdict {
	if v, ok := v.(value); ok {
		return v.verdict()
	}
	return Verdict{}
}

// traceBytes is the estimate of what a node of a trace takes.
const traceBytes = 512

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
		parent.Note = "deeper steps are not shown"
	}
	q.trace = t
	return parent
}

// traceOpen begins the node of a name and returns the one to go back to.
func (w *walk[V, A]) traceOpen(n *name, object graph.Number) *Trace {
	if w.trace == nil {
		return nil
	}
	return w.traceUnder(&Trace{
		Kind: TraceName, Object: w.traceObject(n.typ, object), Name: n.name, Expression: n.rewrite.expression(),
	})
}

// traceSeen notes a name that is not walked again.
func (w *walk[V, A]) traceSeen(n *name, object graph.Number, v V, note string) {
	if w.trace == nil {
		return
	}
	w.memory += traceBytes
	w.trace.Children = append(w.trace.Children, &Trace{
		Kind: TraceName, Object: w.traceObject(n.typ, object), Name: n.name,
		Expression: n.rewrite.expression(), Verdict: traceVerdict(v), Note: note,
	})
}

// traceCycle notes on the current node that its component was solved.
func (w *walk[V, A]) traceCycle() {
	if w.trace != nil {
		w.trace.Note = "part of a cycle, decided by fixpoint"
	}
}

func (w *walk[V, A]) traceOperation(op *operation) *Trace {
	if w.trace == nil {
		return nil
	}
	return w.traceUnder(&Trace{Kind: op.kind, Expression: op.expression()})
}

// traceTuple begins the node of a stored tuple.
func (w *walk[V, A]) traceTuple(relation *name, object graph.Number, e graph.Edge) *Trace {
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
	return w.traceUnder(&Trace{Kind: TraceTuple, Object: t.Object, Name: t.Relation, Tuple: t})
}

// traceClose ends the current node with its verdict.
func (w *walk[V, A]) traceClose(parent *Trace, v V) {
	if parent != nil {
		w.trace.Verdict = traceVerdict(v)
		w.trace = parent
		w.traceDepth--
	}
}

func (w *walk[V, A]) traceText(note string) {
	if w.trace != nil {
		w.trace.Note = note
	}
}

// traceCaveat notes what a caveat came to.
func (q *question) traceCaveat(caveat string, v value, note string) error {
	if q.trace == nil {
		return nil
	}
	q.trace.Children = append(q.trace.Children, &Trace{Kind: TraceCaveat, Name: caveat, Verdict: v.verdict(), Note: note})
	return q.hold(traceBytes + int64(len(note)))
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
