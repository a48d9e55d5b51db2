package engine

import (
	"slices"

	"github.com/pembadb/pemba/graph"
)

// What nests in each other, groups above all, is answered from the other end: the walk
// finds once which usersets its subject is in, by way of the reverse adjacency, and asks
// a relation that holds usersets whether it holds one of those. How deep they nest, and
// how many a relation holds, then costs nothing at each object that is met on the way up
// a tree: a person is in few groups, and a document may name a thousand.
//
// This is exact for names that nest (name.nests): their subjects are those that tuples
// name, and those of others that nest, and nothing is taken away or asked besides. For
// such names the well-founded model is the closure of the tuples, cycles or not. Where a
// caveat stands on the way, or there are very many, nothing is known, and the walk goes
// down into the usersets as it does for all other names.

// A nesting is the usersets that a walk's subject is in.
type nesting struct {
	state nestingState
	// within holds them, of names that nest, and what leads to them; table finds them.
	within []place
	table  index
	// families are those of the names that were looked for; within has no others.
	families []int32
	// reads and edges count what was looked at to find them.
	reads, edges int
}

type nestingState uint8

const (
	// known: within is all of them, of the families that were looked for.
	known nestingState = iota
	// notKnown: it cannot be told in this way.
	notKnown
)

// nestingMax bounds the usersets of one subject that are held. Whoever is in more is
// looked for from above.
const nestingMax = 256

// nestingReads bounds the ends whose edges are read for it, in a schema of many relations
// that nest, and nestingEdges the edges. An end without edges is a part of a step.
const (
	nestingReads        = 4 * nestingMax
	nestingEdges        = 16 * nestingMax
	nestingReadsPerStep = 8
)

// nestingFinds is how many edges are looked up one by one before reading them is tried.
const nestingFinds = 8

func (x *nesting) reset() {
	x.state, x.reads, x.edges = known, 0, 0
	x.within, x.families = x.within[:0], x.families[:0]
	x.table.reset()
}

// markNesting marks the names that nest: those that tuples hold as usersets, and what
// these are made of, where it is made of tuples and unions alone.
func (p *program) markNesting() {
	other, parts, wholes := p.madeOf(partsWithoutArrows)
	var queue []*name
	mark := func(n *name) {
		if !n.nests && !other[n.index] {
			n.nests = true
			queue = append(queue, n)
		}
	}
	for _, n := range p.names {
		for i := range n.stored {
			if userset := n.stored[i].userset; userset != nil {
				mark(userset)
			}
		}
	}
	for len(queue) > 0 {
		n := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		for _, part := range parts[n.index] {
			mark(part)
		}
	}

	// A family is all that is made of each other, either way.
	families := int32(0)
	for _, n := range p.names {
		if !n.nests || n.family != 0 {
			continue
		}
		families++
		n.family = families
		queue = append(queue, n)
		for len(queue) > 0 {
			n := queue[len(queue)-1]
			queue = queue[:len(queue)-1]
			for _, kin := range [][]*name{parts[n.index], wholes[n.index]} {
				for _, k := range kin {
					if k.nests && k.family == 0 {
						k.family = families
						queue = append(queue, k)
					}
				}
			}
		}
	}
}

// madeOf finds, by index, what each name is made of and what is made of it, as partsOf
// says, and whether there is something else in it or in what it is made of.
func (p *program) madeOf(partsOf partsOf) (other []bool, parts, wholes [][]*name) {
	parts, wholes = make([][]*name, len(p.names)), make([][]*name, len(p.names))
	other = make([]bool, len(p.names))
	var queue []*name
	for _, n := range p.names {
		made, ok := partsOf.append(nil, n.rewrite)
		if !ok {
			other[n.index] = true
			queue = append(queue, n)
			continue
		}
		parts[n.index] = made
		for _, part := range made {
			wholes[part.index] = append(wholes[part.index], n)
		}
	}
	for len(queue) > 0 {
		part := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		for _, n := range wholes[part.index] {
			if !other[n.index] {
				other[n.index] = true
				queue = append(queue, n)
			}
		}
	}
	return other, parts, wholes
}

// partsOf says of what operations a name may be made beside tuples, other names and
// unions.
type partsOf bool

const (
	partsWithoutArrows partsOf = false
	// partsWithArrows takes the object itself as well.
	partsWithArrows partsOf = true
)

// append appends the names whose subjects are those of an operation; ok is false where it
// is more than a union of them and of tuples.
func (arrows partsOf) append(parts []*name, op *operation) (_ []*name, ok bool) {
	switch op.kind {
	case TraceNil:
	case TraceTuple:
		for i := range op.name.stored {
			if userset := op.name.stored[i].userset; userset != nil {
				parts = append(parts, userset)
			}
		}
	case TraceName:
		parts = append(parts, op.name)
	case TraceUnion:
		for _, c := range op.children {
			if parts, ok = arrows.append(parts, c); !ok {
				return nil, false
			}
		}
	default:
		if arrows == partsWithoutArrows || op.kind != TraceSelf && (op.kind != TraceArrow || op.all) {
			return nil, false
		}
		for i := range op.targets {
			if target := op.targets[i].name; target != nil {
				parts = append(parts, target)
			}
		}
	}
	return parts, true
}

// nested gives the value of the usersets of s on n of object, from what the subject is
// within. ok is false if it cannot be told so.
func (w *walk) nested(n *name, object graph.Number, s *storedShape) (v value, ok bool, err error) {
	x := &w.nesting
	if x.state == known && !slices.Contains(x.families, s.userset.family) {
		// Many objects hold none.
		edges := w.subjectsOf(n, object, s.shape)
		e, err := edges.next()
		if err != nil || e == nil {
			return denied, true, err
		}
		edges.end()
		if err := w.findNesting(s.userset.family); err != nil {
			return denied, false, err
		}
	}
	if x.state == notKnown {
		return denied, false, nil
	}
	v = denied
	looked := 0
	for i := range x.within {
		m := &x.within[i]
		if m.name != s.userset {
			continue
		}
		if looked++; looked > nestingFinds {
			return w.nestedAmong(n, object, s, v)
		}
		y, err := w.tuple(n, object, s.shape, m.object)
		if err != nil {
			return v, false, err
		}
		if v = v.or(y); v.isAllowed() {
			break
		}
	}
	return v, true, nil
}

// nestedAmong is nested for a subject that is in many usersets: where the object holds
// few they are looked for among them, and else the other way round.
func (w *walk) nestedAmong(n *name, object graph.Number, s *storedShape, v value) (value, bool, error) {
	x := &w.nesting
	edges := w.subjectsOf(n, object, s.shape)
	for {
		e, err := edges.next()
		if err != nil {
			return v, false, err
		}
		if e == nil {
			return v, true, nil
		}
		if !edges.last {
			edges.end()
			break
		}
		if _, found := x.table.find(key(s.userset, e.Number)); !found {
			continue
		}
		condition, err := w.condition(e)
		if err != nil {
			return v, false, err
		}
		if v = v.or(condition); v.isAllowed() {
			edges.end()
			return v, true, nil
		}
	}
	for i := range x.within {
		if m := &x.within[i]; m.name == s.userset {
			y, err := w.tuple(n, object, s.shape, m.object)
			if err != nil {
				return v, false, err
			}
			if v = v.or(y); v.isAllowed() {
				break
			}
		}
	}
	return v, true, nil
}

// findNesting finds the usersets of a family that the subject is in.
func (w *walk) findNesting(family int32) error {
	x := &w.nesting
	x.families = append(x.families, family)
	at := len(x.within)
	if w.subject.plain {
		for _, seed := range w.program.direct[w.subject.shape] {
			to := seed.name
			if to.family != family {
				continue
			}
			for i := range to.stored {
				s := &to.stored[i]
				if s.shape != w.subject.shape {
					continue
				}
				if s.concrete {
					if err := w.nestUnder(to, to, s.shape, w.subject.number); err != nil {
						return err
					}
				}
				if s.wildcard {
					if err := w.nestUnder(to, to, s.shape, graph.WildcardNumber); err != nil {
						return err
					}
				}
			}
		}
	} else {
		for _, to := range w.program.names {
			if to.family == family && to.shape == w.subject.shape {
				w.nest(to, w.subject.number)
			}
		}
	}
	for ; at < len(x.within) && x.state == known; at++ {
		m := x.within[at]
		if err := w.step(); err != nil {
			return err
		}
		for i := range m.name.feeds {
			f := &m.name.feeds[i]
			switch {
			case !f.to.nests: // What nests is of the family of what it feeds.
			case f.via == nil:
				w.nest(f.to, m.object)
			default:
				if err := w.nestUnder(f.to, f.via, f.shape, m.object); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// nestUnder notes that the subject has to of the objects whose tuples on via name the
// subject of a shape and number.
func (w *walk) nestUnder(to, via *name, shape graph.Shape, number graph.Number) error {
	if w.nesting.reads++; w.nesting.reads > nestingReads {
		w.nesting.state = notKnown
	}
	if w.nesting.state != known {
		return nil
	}
	if w.nesting.reads%nestingReadsPerStep == 0 {
		if err := w.step(); err != nil {
			return err
		}
	}
	edges := w.objectsOf(shape, number, via)
	for {
		e, err := edges.next()
		if err != nil || e == nil {
			return err
		}
		w.nesting.edges++
		if e.Caveat != 0 || w.nesting.edges > nestingEdges {
			w.nesting.state = notKnown
		} else {
			w.nest(to, e.Number)
		}
		if w.nesting.state != known {
			edges.end()
			return nil
		}
	}
}

// nest notes that the subject has a name of an object, if it nests.
func (w *walk) nest(n *name, object graph.Number) {
	x := &w.nesting
	if !n.nests {
		return
	}
	key := key(n, object)
	if _, found := x.table.find(key); found {
		return
	}
	if len(x.within) == nestingMax {
		x.state = notKnown
		return
	}
	x.table.insert(key, int32(len(x.within)))
	x.within = append(x.within, place{n, object})
}
