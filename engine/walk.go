package engine

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

// A walk evaluates names of objects over one snapshot for one question. It is
// the one evaluator: Check, LookupResources and Apply have it find one value for one
// subject, and LookupSubjects a value for every subject (sets). What it computes with
// is the same for both (algebra.go).
//
// # Cycles
//
// The meaning of a question is the well-founded model of the equations "name of
// object = its rewrite". Without cycles in the data that is plain recursion.
// With them it is Tarjan's search for strongly connected components, with one
// twist that keeps the common case cheap:
//
//   - A name that is open further up is taken as undefined: low no, high yes.
//     Whatever is settled in spite of that is what it is in the well-founded
//     model (undefined is the least knowledge, and all operations
//     are monotone in knowledge), and is final at once, also for everyone else.
//   - A name that is not settled and has reached a name further up
//     is provisional: it stays on the stack, and its value is used only while
//     the names it depends on are open.
//   - If the uppermost name of such a component is settled, the rest of the
//     component is forgotten; whoever asks again finds it closed.
//   - Otherwise the component is solved: its low and high are found by the
//     alternating fixpoint of Van Gelder (the high is the least fixpoint when
//     exclusions read the low, the low is the least fixpoint when they read the
//     high, until neither moves).
//
// A component of n names is solved in at most O(n) alternations of at most O(n)
// rounds; nothing is exponential, whatever the shape of the data.
type walk struct {
	*question
	// subject is who is asked about, where sets is nil.
	subject subjectNumbers
	// sets makes the walk one for every subject; else it is nil.
	sets *subjectSets
	// nesting is of the subject.
	nesting nesting
	// once says that names are evaluated for one object, of which nothing is shown: then
	// those that can be are climbed, though little is remembered of the places in
	// between. Never with sets, nor behind a climb that could not be made.
	once    bool
	climbed climb

	cells []cell
	// table finds the cell of a name and object; stack holds the cells that are
	// open or provisional, in the order they were opened.
	table index
	stack []int32
	// low is the lowest position on the stack that the name being evaluated has
	// reached so far.
	low int32
	// solving is set while a component is solved: then no name may be opened.
	solving bool
}

// A cell is what the walk knows of one name of one object.
type cell struct {
	name   *name
	object graph.Number
	value  value
	// position is the cell's place on the stack and low the lowest place it
	// depends on. Invariant, while open or provisional: 0 <= low <= position <
	// len(stack).
	position int32
	low      int32
	state    cellState
	// reached says that the cell was asked for while it was open or
	// provisional.
	reached bool
	// solved says that the value is that of a component that was solved.
	solved bool
}

type cellState uint8

const (
	forgotten cellState = iota
	open
	provisional
	final
)

// edgesChunk is how many edges are read at once: enough that reading costs
// little beside what is done with an edge, few enough that a decision found
// early has not read a wide set for nothing.
const edgesChunk = 64

// What things take, by estimate: a level of names and a nested operation on the
// stack (the sums of their frames, rounded up), a cell with its place in the
// table.
const (
	nameBytes      = 2560
	operationBytes = 768
	cellBytes      = 160
)

// stackBytesMax bounds the stack of a question whatever its memory budget: Go
// ends the process at 1 GB, and stacks grow by doubling.
const stackBytesMax = 192 << 20

// A question is what every walk has, whatever its algebra.
type question struct {
	ctx      context.Context
	program  *program
	graph    *graph.Snapshot
	context  schema.Context
	steps    int
	stepsMax int
	// look is the number of steps at which to look again whether anybody waits.
	look   int
	memory int64
	stack  int64
	// reserved is what the question has taken of the pool.
	reserved int64
	pool     *pool
	// stepsMax bounds steps, and memoryMax memory. Apply asks no question: nothing in it
	// is ever cut short.
	memoryMax int64
	// cycles counts the components solved, caveats the evaluations of caveats.
	cycles  int
	caveats int
	// stats gets what the question cost.
	stats *stats
	// fault is the first caveat that could not be evaluated, the error of an
	// answer that has failed.
	fault error
	// trace is the node under which the walk writes; nil when nobody asked.
	trace *Trace
	// traceDepth is how many nodes stand above trace; shown holds the nodes of the
	// names in it, by cell.
	traceDepth int
	shown      map[int32]*Trace
	// edges is scratch space; each level of a recursion uses what lies beyond
	// its caller's.
	edges []graph.Edge
}

// step counts one step and looks now and then whether anybody still waits.
func (q *question) step() error {
	q.steps++
	if q.steps > q.stepsMax {
		return q.overBudget("the question needs more than its budget of %d steps", q.stepsMax).
			with("budget_steps", fmt.Sprint(q.stepsMax))
	}
	if q.steps >= q.look {
		q.look = q.steps + 256
		if err := q.ctx.Err(); err != nil {
			return err
		}
	}
	if q.memory > q.reserved+unreservedBytes {
		return q.hold(0)
	}
	return nil
}

// hold counts memory that the walk takes (or gives back).
func (q *question) hold(bytes int64) error {
	q.memory += bytes
	if q.memory > q.memoryMax {
		return q.overBudget("the question needs more than its budget of %d bytes of memory", q.memoryMax).
			with("budget_memory_bytes", fmt.Sprint(q.memoryMax))
	}
	if q.memory > q.reserved+unreservedBytes {
		return q.reserve()
	}
	return nil
}

// Most questions are small and need no part of the pool; the others take theirs
// in pieces, so that it is seldom touched.
const (
	unreservedBytes = 256 << 10
	reserveBytes    = 4 << 20
)

// reserve takes a piece of the memory that all questions share.
func (q *question) reserve() error {
	piece := max(reserveBytes, q.memory-q.reserved)
	if q.pool.left.Add(-piece) < 0 {
		q.pool.left.Add(piece)
		if q.reserved+piece > q.pool.bytes {
			return q.overBudget("the question alone needs more than there is of the %d bytes of memory that large questions have together", q.pool.bytes)
		}
		return q.overBudget("the memory for large questions is used up by others at the moment; ask again").
			with(SharedMemoryBytes, fmt.Sprint(q.pool.bytes))
	}
	q.reserved += piece
	return nil
}

// done gives back what the question took of the pool, and counts what it cost.
func (q *question) done() {
	q.stats.add(q)
	if q.reserved > 0 {
		q.pool.left.Add(q.reserved)
		q.reserved = 0
	}
}

// A pool is the memory that the large questions of an engine share.
type pool struct {
	left atomic.Int64
	// bytes is how much there is while no question has any of it.
	bytes int64
}

// descend counts a level of the recursion, ascend the way back.
func (q *question) descend(bytes int64) error {
	if q.stack += bytes; q.stack > stackBytesMax {
		return q.overBudget("the question nests deeper than %d bytes of stack allow", stackBytesMax)
	}
	return q.hold(bytes)
}

func (q *question) ascend(bytes int64) {
	q.stack -= bytes
	q.memory -= bytes
}

// condition gives how far an edge holds by its caveat. That the caveat failed
// becomes the question's fault, unless another did before.
func (q *question) condition(e *graph.Edge) (value, error) {
	if e.Caveat == 0 {
		return allowed, nil
	}
	caveat, v, failure, err := q.judge(e)
	if err != nil {
		return denied, err
	}
	if failure == nil {
		return v, q.traceCaveat(caveat.Name, v, caveat.Expression)
	}
	if q.fault == nil {
		q.fault = failure
	}
	return v, q.traceCaveat(caveat.Name, v, failure.Message)
}

// judge evaluates the caveat that an edge carries. The value is failed, and
// failure says why, when it could not be evaluated; an error is a fault of the
// node or the end of the caller's context.
func (q *question) judge(e *graph.Edge) (caveat *schema.Caveat, v value, failure *Refusal, err error) {
	caveat = q.program.caveats[e.Caveat]
	if caveat == nil {
		return nil, denied, nil, fmt.Errorf("engine: a tuple carries caveat %q, which the schema of revision %d does not declare",
			q.graph.CaveatName(e.Caveat), q.program.version.Revision)
	}
	stored, err := decodeContext(e.Context)
	if err != nil {
		return caveat, denied, nil, err
	}
	q.caveats++
	result, err := caveat.EvalContext(q.ctx, stored, q.context)
	// Else a question might meet a costly caveat as often as it may look at a tuple.
	q.steps += result.Steps
	if err != nil {
		if failure, err = refuseContext("context", err); failure == nil {
			return caveat, denied, nil, err
		}
		return caveat, failed, failure, nil
	}
	return caveat, valueOf(result), nil, nil
}

// evaluate gives the value of n of object, final.
func (w *walk) evaluate(n *name, object graph.Number) (value, error) {
	w.low = 0
	return w.nameOf(n, object)
}

// key is what the table finds the cell of n of object by.
func key(n *name, object graph.Number) uint64 { return uint64(n.index)<<40 | uint64(object) }

// nameOf gives the value of n of object: final if its cell is, else as far as
// it is known while the names it depends on are open.
func (w *walk) nameOf(n *name, object graph.Number) (value, error) {
	if w.trace != nil {
		return w.traceName(n, object)
	}
	if err := w.step(); err != nil {
		return w.denied(), err
	}
	if n.leaf && w.sets == nil && w.shown == nil {
		return w.body(n, object)
	}
	key := key(n, object)
	at, found := w.table.find(key)
	if found {
		c := &w.cells[at]
		switch c.state {
		case final:
			return c.value, nil
		case open, provisional:
			c.reached = true
			w.low = min(w.low, c.low)
			return c.value, nil
		}
	} else {
		at = int32(len(w.cells))
		w.cells = append(w.cells, cell{})
		w.table.insert(key, at)
		if err := w.hold(cellBytes); err != nil {
			return w.denied(), err
		}
	}
	if w.solving {
		return w.denied(), fmt.Errorf("engine: solving a cycle opened %s#%s, which exploring it had not", n.typ.name, n.name)
	}

	position := int32(len(w.stack))
	w.stack = append(w.stack, at)
	w.cells[at] = cell{
		name: n, object: object, value: w.undefined(),
		position: position, low: position, state: open,
	}
	if err := w.descend(nameBytes); err != nil {
		return w.denied(), err
	}
	outer := w.low
	w.low = position

	v, err := w.body(n, object)
	if err != nil {
		return v, err
	}
	// On the way back no name is opened, but sets are made.
	if err := w.step(); err != nil {
		return v, err
	}
	w.ascend(nameBytes)
	low := w.low
	w.low = outer
	c := &w.cells[at]
	switch {
	case w.isSettled(v), low == position && position == int32(len(w.stack))-1 && !c.reached:
		c.value, c.state = v, final
		w.forgetAbove(position)
	case low < position:
		c.value, c.low, c.state = v, low, provisional
		w.low = min(outer, low)
	default:
		c.value = v
		if err := w.solve(position); err != nil {
			return v, err
		}
		v = w.cells[at].value
	}
	return v, nil
}

// body is the equation of a name: its rewrite, and itself.
func (w *walk) body(n *name, object graph.Number) (value, error) {
	reflexive := w.reflexive(n, object)
	if w.isAllowed(reflexive) {
		w.traceText("a userset is a member of itself")
		return reflexive, nil
	}
	if n.operands != nil && w.once {
		if v, ok, err := w.climb(n, object); ok || err != nil {
			return v, err
		}
	}
	var v value
	var err error
	if n.rewrite.kind == TraceTuple {
		v, err = w.stored(n, object)
	} else {
		v, err = w.operate(n.rewrite, object)
	}
	if err != nil {
		return v, err
	}
	return w.or(reflexive, v), nil
}

// forgetAbove takes the cell at position and everything above it off the stack;
// what lies above depends on it and on names further down, and is opened anew
// if asked for again.
func (w *walk) forgetAbove(position int32) {
	for _, at := range w.stack[position+1:] {
		w.cells[at].state = forgotten
	}
	w.stack = w.stack[:position]
}

// solve finds the values of the component on the stack from position up.
func (w *walk) solve(position int32) error {
	w.cycles++
	members := append([]int32(nil), w.stack[position:]...)
	w.solving = true
	defer func() { w.solving = false }()

	// round evaluates every member until none changes, keeping what keep makes
	// of the old value and the new.
	//
	// The members opened last come first: what they find moves all the way down
	// a chain in one round. What a round made and threw away is not held.
	held := w.memory
	round := func(keep func(old, new value) value) (changed bool, err error) {
		for again := true; again; {
			again = false
			w.memory = held
			for _, at := range slices.Backward(members) {
				v, err := w.body(w.cells[at].name, w.cells[at].object)
				if err != nil {
					return false, err
				}
				old := w.cells[at].value
				if v = keep(old, v); !w.equal(old, v) {
					w.cells[at].value = v
					again, changed = true, true
				}
			}
		}
		return changed, nil
	}
	values := func() []value {
		vs := make([]value, len(members))
		for i, at := range members {
			vs[i] = w.cells[at].value
		}
		return vs
	}
	// Missing parameters are left out until the truths stand: members copy them
	// from each other, and would keep handing round what no longer matters.
	denied := w.denied()
	low := func(old, new value) value { return w.splice(w.bare(new), old) }
	high := func(old, new value) value { return w.splice(old, w.bare(new)) }
	set := func(with func(old value) value) {
		for _, at := range members {
			w.cells[at].value = with(w.cells[at].value)
		}
	}

	set(func(value) value { return denied })
	for before := []value(nil); ; {
		// The high, from nothing, with exclusions reading the low.
		set(func(old value) value { return w.splice(old, denied) })
		if _, err := round(high); err != nil {
			return err
		}
		// The low, from nothing, with exclusions reading the high.
		set(func(old value) value { return w.splice(denied, old) })
		if _, err := round(low); err != nil {
			return err
		}
		after := values()
		if before != nil && equalAll(w.equal, before, after) {
			break
		}
		before = after
	}
	// Now the missing parameters, from none up.
	if _, err := round(func(_, new value) value { return new }); err != nil {
		return err
	}
	w.memory = held
	for _, at := range members {
		w.cells[at].state, w.cells[at].solved = final, true
		w.memory += w.size(w.cells[at].value)
	}
	w.stack = w.stack[:position]
	return nil
}

func equalAll(equal func(a, b value) bool, a, b []value) bool {
	for i := range a {
		if !equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

// enough says that a union which has come to v needs no further branch. A trace
// needs one that proves it.
func (w *walk) enough(v value) bool {
	return w.isAllowed(v) && (w.trace == nil || w.trace.proved())
}

// operate gives the value of one operation on object.
func (w *walk) operate(op *operation, object graph.Number) (value, error) {
	switch op.kind {
	case TraceName:
		return w.nameOf(op.name, object)
	case TraceTuple:
		// One operand of several: its tuples stand together in the trace.
		parent := w.traceOperation(TraceUnion, op)
		v, err := w.stored(op.name, object)
		if err == nil {
			w.traceClose(parent, v)
		}
		return v, err
	case TraceNil:
		w.traceClose(w.traceOperation(TraceNil, op), w.denied())
		return w.denied(), nil
	}
	parent := w.traceOperation(op.kind, op)
	var v value
	err := w.descend(operationBytes)
	if err != nil {
		return v, err
	}
	defer w.ascend(operationBytes)
	switch op.kind {
	case TraceSelf:
		// The leaf needs the type, which the name above knows.
		v = w.self(op.typ, object)
	case TraceArrow:
		v, err = w.arrow(op, object)
	case TraceUnion:
		v = w.denied()
		owned := false
		for _, c := range op.children {
			var x value
			if x, err = w.operate(c, object); err != nil {
				return v, err
			}
			if v, owned = w.add(v, owned, x); w.enough(v) {
				break
			}
		}
	case TraceIntersection:
		for i, c := range op.children {
			var x value
			if x, err = w.operate(c, object); err != nil {
				return v, err
			}
			if i == 0 {
				v = x
			} else {
				v = w.and(v, x)
			}
			if w.isDenied(v) {
				break
			}
		}
	case TraceExclusion:
		v, err = w.operate(op.children[0], object)
		for _, c := range op.children[1:] {
			if err != nil || w.isDenied(v) {
				break
			}
			var x value
			if x, err = w.operate(c, object); err == nil {
				v = w.except(v, x)
			}
		}
	default:
		err = fmt.Errorf("engine: unknown operation %v", op.kind)
	}
	if err != nil {
		return v, err
	}
	w.traceClose(parent, v)
	return v, nil
}

// stored gives the value of the tuples on relation n of object.
func (w *walk) stored(n *name, object graph.Number) (value, error) {
	v, err := w.direct(n, object)
	if err != nil {
		return v, err
	}
	owned := false
	for i := range n.stored {
		s := &n.stored[i]
		if s.userset == nil {
			continue
		}
		if w.enough(v) {
			break
		}
		if s.userset.nests && w.sets == nil && w.shown == nil {
			x, ok, err := w.nested(n, object, s)
			if err != nil {
				return v, err
			}
			if ok {
				v = v.or(x)
				continue
			}
		}
		edges := w.subjectsOf(n, object, s.shape)
		for {
			e, err := edges.next()
			if err != nil {
				return v, err
			}
			if e == nil {
				break
			}
			x, err := w.through(n, object, e, s.userset)
			if err != nil {
				return v, err
			}
			if v, owned = w.add(v, owned, x); w.enough(v) {
				edges.end()
				break
			}
		}
	}
	return v, nil
}

// arrow gives the value of an arrow: what target gives on the objects that the
// relation leads to. A tuple whose caveat does not hold contributes nothing to
// a union and denies an intersection, as it does in the language this follows.
func (w *walk) arrow(op *operation, object graph.Number) (value, error) {
	v, owned, first := w.denied(), false, true
	for i := range op.targets {
		t := &op.targets[i]
		if t.name == nil && !op.all {
			continue
		}
		edges := w.subjectsOf(op.name, object, t.shape)
		for {
			e, err := edges.next()
			if err != nil {
				return v, err
			}
			if e == nil {
				break
			}
			x, err := w.through(op.name, object, e, t.name)
			if err != nil {
				return v, err
			}
			enough := false
			switch {
			case !op.all:
				v, owned = w.add(v, owned, x)
				enough = w.enough(v)
			case first:
				v, first = x, false
				enough = w.isDenied(v)
			default:
				v = w.and(v, x)
				enough = w.isDenied(v)
			}
			if enough {
				edges.end()
				return v, nil
			}
		}
	}
	return v, nil
}

// through gives the value of n on the far end of an edge of relation#object,
// where the edge's caveat holds; n is nil where the far end has no such name.
func (w *walk) through(relation *name, object graph.Number, e *graph.Edge, n *name) (value, error) {
	parent := w.traceTuple(relation, object, e)
	v := w.denied()
	condition, err := w.condition(e)
	if err != nil {
		return v, err
	}
	if n != nil && !condition.isDenied() {
		if v, err = w.nameOf(n, e.Number); err != nil {
			return v, err
		}
		if e.Caveat != 0 {
			v = w.guard(condition, v)
		}
	}
	if n == nil {
		w.traceText("the type of its subject has no such name")
	}
	w.traceClose(parent, v)
	return v, nil
}

// each calls f with the edges of relation#object to concrete subjects of shape,
// in order of number, until it returns false.
func (q *question) each(relation *name, object graph.Number, shape graph.Shape, f func(*graph.Edge) (bool, error)) error {
	edges := q.subjectsOf(relation, object, shape)
	for {
		e, err := edges.next()
		if err != nil || e == nil {
			return err
		}
		if more, err := f(e); err != nil || !more {
			edges.end()
			return err
		}
	}
}

// An edgeReader reads edges of one end, chunk by chunk. It is ended when it has no more;
// one that is left before that must be ended, in the reverse order in which readers of
// a question began, unless the question ends with an error.
type edgeReader struct {
	q *question
	// object is the near end of relation and shape, the subject's if it is reverse.
	relation, shape graph.Shape
	object          graph.Number
	reverse         bool
	// The chunk lies in q.edges from base up to end, and at is the next one of it.
	base, at, count int
	// contexts is what the contexts of the chunk are counted for.
	contexts int64
	// from is where the next chunk begins.
	from graph.Number
	last bool // The chunk is the last one.
}

// subjectsOf reads the edges of relation#object to concrete subjects of a shape, in order
// of number.
func (q *question) subjectsOf(relation *name, object graph.Number, shape graph.Shape) edgeReader {
	return edgeReader{q: q, relation: relation.shape, shape: shape, object: object, from: graph.WildcardNumber + 1, base: len(q.edges)}
}

// objectsOf reads the edges of a subject to the objects of a relation, in order of number.
func (q *question) objectsOf(shape graph.Shape, subject graph.Number, relation *name) edgeReader {
	return edgeReader{q: q, relation: relation.shape, shape: shape, object: subject, reverse: true, base: len(q.edges)}
}

// next returns the next edge, which is good until the next call, or nil when there is
// none. It counts a step.
func (r *edgeReader) next() (*graph.Edge, error) {
	for r.at == r.count {
		if r.last {
			r.end()
			return nil, nil
		}
		if err := r.read(); err != nil {
			return nil, err
		}
	}
	if err := r.q.step(); err != nil {
		return nil, err
	}
	// Deeper levels may move the slice, but not change what lies below them.
	e := &r.q.edges[:r.base+r.count][r.base+r.at]
	r.at++
	return e, nil
}

func (r *edgeReader) read() error {
	q := r.q
	var err error
	var edges []graph.Edge
	if r.reverse {
		edges, err = q.graph.Objects(q.edges[:r.base], r.shape, r.object, r.relation, r.from, edgesChunk)
	} else {
		edges, err = q.graph.Subjects(q.edges[:r.base], r.relation, r.object, r.shape, r.from, edgesChunk)
	}
	if err != nil {
		return err
	}
	q.edges = edges
	r.at, r.count = 0, len(edges)-r.base
	r.last = r.count < edgesChunk
	if r.count > 0 {
		r.from = edges[len(edges)-1].Number + 1
	}
	q.memory -= r.contexts
	r.contexts = 0
	for i := range edges[r.base:] {
		r.contexts += int64(len(edges[r.base+i].Context))
	}
	if r.contexts == 0 {
		return nil
	}
	return q.hold(r.contexts)
}

// end gives back what the chunk takes.
func (r *edgeReader) end() {
	r.q.edges = r.q.edges[:r.base]
	r.q.memory -= r.contexts
	r.contexts = 0
}
