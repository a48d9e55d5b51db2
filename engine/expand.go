package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pembadb/pemba/graph"
)

// Expand returns the tree of subjects behind a name of an object: the rewrite
// with the tuples it stands on, each with what its caveat says. About the whole
// it decides nothing, so it is not a walk: every branch is shown, the subtracted
// one too, and one whose caveat does not hold. A name that stands above itself is
// shown once and noted as a cycle. A caveat that fails is no error, but said where
// it failed. The budget bounds the tree.
func (s *Snapshot) Expand(ctx context.Context, q Expand) (*Tree, error) {
	n, err := s.name("object.type", "permission", q.Object.Type, q.Name)
	if err != nil {
		return nil, err
	}
	object, err := s.graph.Number(q.Object.Type, q.Object.ID)
	if err != nil {
		return nil, err
	}
	if object == graph.WildcardNumber {
		return nil, refuse(WildcardSubject, "object.id", "a wildcard is no object to ask about; name one")
	}
	question := s.question(ctx, q.Budget)
	defer question.done()
	question.context = q.Context
	x := &expansion{question: &question, open: make(map[place]bool)}
	t, err := x.nameOf(n, object)
	var refusal *Refusal
	if errors.As(err, &refusal) && refusal.Reason == BudgetExceeded {
		refusal.Message += "; read the tuples, or look the subjects up, which come one by one and in pages, or expand what is further down"
	}
	return t, err
}

type place struct {
	name   *name
	object graph.Number
}

type expansion struct {
	*question
	// open holds the names above the one being expanded.
	open map[place]bool
}

// treeDepthMax bounds how many names a tree, or nodes a trace, has above one
// another. An answer may be of any depth; what is shown of it has to be decoded
// by clients that bound the depth of a message.
const treeDepthMax = 1000

// treeBytes is the estimate of what a node of a tree takes; leafBytes that of a
// leaf's tuple with its verdict, while it is sorted and when it is sent.
const (
	treeBytes = 256
	leafBytes = 768
)

func (x *expansion) tree(n *name, object graph.Number, operation TreeOperation) (*Tree, error) {
	if err := x.step(); err != nil {
		return nil, err
	}
	if err := x.hold(treeBytes); err != nil {
		return nil, err
	}
	id, err := x.graph.ID(n.typ.name, object)
	if err != nil {
		return nil, err
	}
	return &Tree{Object: graph.Object{Type: n.typ.name, ID: id}, Name: n.name, Operation: operation}, nil
}

func (x *expansion) nameOf(n *name, object graph.Number) (*Tree, error) {
	at := place{n, object}
	if x.open[at] {
		t, err := x.tree(n, object, TreeLeaf)
		if err == nil {
			t.Note = "cycle"
		}
		return t, err
	}
	if len(x.open) >= treeDepthMax {
		return nil, x.overBudget("the tree is deeper than %d names", treeDepthMax)
	}
	x.open[at] = true
	defer delete(x.open, at)
	t, err := x.operate(n, n.rewrite, object)
	if err != nil || n.relation || n.rewrite.isSet() {
		return t, err
	}
	// A permission's root is always a set operation, also with one child.
	root, err := x.tree(n, object, TreeUnion)
	if err == nil {
		root.Children = []*Tree{t}
	}
	return root, err
}

// isSet says that the operation makes a set operation of its own in a tree.
func (o *operation) isSet() bool {
	switch o.kind {
	case TraceUnion, TraceIntersection, TraceExclusion:
		return true
	}
	return false
}

func (x *expansion) operate(n *name, op *operation, object graph.Number) (*Tree, error) {
	switch op.kind {
	case TraceTuple:
		return x.leaf(op.name, object)
	case TraceName:
		return x.nameOf(op.name, object)
	case TraceNil:
		return x.tree(n, object, TreeLeaf)
	case TraceSelf:
		t, err := x.tree(n, object, TreeLeaf)
		if err == nil {
			t.Leaves = []graph.Tuple{{Object: t.Object, Relation: n.name, Subject: graph.Subject{Object: t.Object}}}
		}
		return t, err
	case TraceArrow:
		return x.arrow(n, op, object)
	}
	if err := x.descend(operationBytes); err != nil {
		return nil, err
	}
	defer x.ascend(operationBytes)
	operation := map[TraceKind]TreeOperation{
		TraceUnion: TreeUnion, TraceIntersection: TreeIntersection, TraceExclusion: TreeExclusion,
	}[op.kind]
	t, err := x.tree(n, object, operation)
	if err != nil {
		return nil, err
	}
	for _, c := range op.written {
		child, err := x.operate(n, c, object)
		if err != nil {
			return nil, err
		}
		t.Children = append(t.Children, child)
	}
	return t, nil
}

// arrow gives one child for each tuple of the relation that leads to an object: an
// empty leaf, named by the arrow, where the type has not the name asked for.
func (x *expansion) arrow(n *name, op *operation, object graph.Number) (*Tree, error) {
	operation := TreeUnion
	if op.all {
		operation = TreeIntersection
	}
	t, err := x.tree(n, object, operation)
	if err != nil {
		return nil, err
	}
	for _, target := range op.targets {
		err := x.each(op.name, object, target.shape, func(e *graph.Edge) (bool, error) {
			var child *Tree
			var err error
			if target.name != nil {
				child, err = x.nameOf(target.name, e.Number)
			} else {
				// An object without the name holds nobody, which empties an intersection.
				child, err = x.tree(&name{typ: target.typ, name: op.expression()}, e.Number, TreeLeaf)
			}
			if err != nil {
				return false, err
			}
			via, err := x.tuple(t.Object, op.name, &target.storedShape, child.Object.ID, e)
			if err != nil {
				return false, err
			}
			child.Via = &via
			if e.Caveat != 0 {
				verdict, err := x.verdict(e)
				if err != nil {
					return false, err
				}
				child.ViaVerdict = &verdict
			}
			t.Children = append(t.Children, child)
			return true, nil
		})
		if err != nil {
			return nil, err
		}
	}
	return t, nil
}

// verdict gives what the caveat of an edge says; an edge without one holds.
func (x *expansion) verdict(e *graph.Edge) (TupleVerdict, error) {
	if e.Caveat == 0 {
		return TupleVerdict{Verdict: allowed.verdict()}, nil
	}
	_, v, failure, err := x.judge(e)
	switch {
	case err != nil:
		return TupleVerdict{}, err
	case failure != nil:
		return TupleVerdict{Failure: failure.Message}, x.hold(int64(len(failure.Message)))
	}
	verdict := v.verdict()
	return TupleVerdict{Verdict: verdict}, x.hold(verdict.shownBytes())
}

// A judgedTuple is a tuple of a leaf with what its caveat says.
type judgedTuple struct {
	tuple   graph.Tuple
	verdict TupleVerdict
}

// leaf gives the tuples stored on a relation.
func (x *expansion) leaf(n *name, object graph.Number) (*Tree, error) {
	t, err := x.tree(n, object, TreeLeaf)
	if err != nil {
		return nil, err
	}
	var found []judgedTuple
	judged := false
	for _, s := range n.stored {
		add := func(e *graph.Edge) (bool, error) {
			id := graph.Wildcard
			if e.Number != graph.WildcardNumber {
				var err error
				if id, err = x.graph.ID(s.typ.name, e.Number); err != nil {
					return false, err
				}
			}
			tuple, err := x.tuple(t.Object, n, &s, id, e)
			if err != nil {
				return false, err
			}
			verdict, err := x.verdict(e)
			found = append(found, judgedTuple{tuple, verdict})
			judged = judged || e.Caveat != 0
			return true, err
		}
		if s.wildcard {
			e, found, err := x.graph.Find(n.shape, object, s.shape, graph.WildcardNumber)
			if err != nil {
				return nil, err
			}
			if found {
				if _, err := add(&e); err != nil {
					return nil, err
				}
			}
		}
		if err := x.each(n, object, s.shape, add); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(found, func(a, b judgedTuple) int {
		return cmp.Or(
			cmp.Compare(a.tuple.Subject.Type, b.tuple.Subject.Type),
			cmp.Compare(a.tuple.Subject.ID, b.tuple.Subject.ID),
			cmp.Compare(a.tuple.Subject.Relation, b.tuple.Subject.Relation))
	})
	t.Leaves = make([]graph.Tuple, 0, len(found))
	for _, f := range found {
		t.Leaves = append(t.Leaves, f.tuple)
		if judged {
			t.Verdicts = append(t.Verdicts, f.verdict)
		}
	}
	return t, nil
}

// tuple gives the tuple of an edge of relation n on object, to the subject with
// the given id and the shape s, which n stores.
func (x *expansion) tuple(object graph.Object, n *name, s *storedShape, id string, e *graph.Edge) (graph.Tuple, error) {
	_, relation := x.graph.ShapeName(s.shape)
	t := graph.Tuple{
		Object: object, Relation: n.name,
		Subject: graph.Subject{Object: graph.Object{Type: s.typ.name, ID: id}, Relation: relation},
		Context: e.Context,
	}
	if e.Caveat != 0 {
		t.Caveat = x.graph.CaveatName(e.Caveat)
	}
	if err := x.hold(leafBytes + int64(len(e.Context))); err != nil || !s.expiring {
		return t, err
	}
	// Edges have no lifetime, which only trees show: it takes a second look.
	if err := x.step(); err != nil {
		return t, err
	}
	stored, found, err := x.graph.Get(t.Object, t.Relation, t.Subject)
	if err == nil && !found {
		err = fmt.Errorf("engine: tuple %s is listed by its relation, but not found by its names", t)
	}
	t.ValidUntil = stored.ValidUntil
	return t, err
}

// String renders the tree, one node or tuple a line, for people and for tests.
func (t *Tree) String() string {
	var b strings.Builder
	t.render(&b, "")
	return b.String()
}

func (t *Tree) render(b *strings.Builder, indent string) {
	fmt.Fprintf(b, "%s%s:%s#%s %s", indent, t.Object.Type, t.Object.ID, t.Name, t.Operation)
	if t.Via != nil {
		fmt.Fprintf(b, " via %s", t.Via)
		if t.ViaVerdict != nil {
			fmt.Fprintf(b, " %s", t.ViaVerdict)
		}
	}
	if t.Note != "" {
		fmt.Fprintf(b, " (%s)", t.Note)
	}
	b.WriteByte('\n')
	for i := range t.Leaves {
		fmt.Fprintf(b, "%s  %s", indent, &t.Leaves[i])
		if t.Leaves[i].Caveat != "" {
			fmt.Fprintf(b, " %s", &t.Verdicts[i])
		}
		b.WriteByte('\n')
	}
	for _, c := range t.Children {
		c.render(b, indent+"  ")
	}
}

// String returns the verdict as "conditional (missing: day)", "failed (division by
// zero)", or the decision.
func (v *TupleVerdict) String() string {
	switch {
	case v.Failure != "":
		return fmt.Sprintf("failed (%s)", v.Failure)
	case v.Decision == Conditional:
		return fmt.Sprintf("%s (missing: %s)", v.Decision, strings.Join(v.Missing, ", "))
	}
	return v.Decision.String()
}

var treeOperationNames = [...]string{
	TreeLeaf: "leaf", TreeUnion: "union", TreeIntersection: "intersection", TreeExclusion: "exclusion",
}

// String returns the operation in lower case.
func (o TreeOperation) String() string {
	if int(o) < len(treeOperationNames) && treeOperationNames[o] != "" {
		return treeOperationNames[o]
	}
	return "none"
}
