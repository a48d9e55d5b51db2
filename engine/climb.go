package engine

import "github.com/pembadb/pemba/graph"

// What is made of tuples, unions and arrows alone, such as "who may edit this folder, or
// one above it", takes nothing away, so it needs neither cells nor Tarjan's search: a
// check goes through the places that the name leads to, each once, until one of them has
// the subject. In the well-founded model such names are what can be reached, cycles or
// not.
//
// That holds where no caveat stands on the way to a place. Where one does, the walk
// evaluates that name and all further ones in the ordinary way, which remembers what it
// finds at each place; and so it does once it has climbed far and found something, again
// and again, for what leads to what is found is not remembered.

// A climb is the places that checks of one walk have gone through.
type climb struct {
	// places are those of the climb under way.
	places []place
	// seen finds them, and those of climbs before that found nothing: nobody need go
	// there again.
	seen index
	// found says that the last climb found something, so that seen says nothing; spent is
	// how many places such climbs went through.
	found bool
	spent int
	// held is what is held for seen.
	held int64
}

func (c *climb) reset() {
	c.places, c.found, c.held = c.places[:0], false, 0
	c.seen.reset()
}

// climbedMax is how many places a walk goes through that it may have to go through again.
const climbedMax = 1 << 10

// climbedBytes is the estimate of what a place takes.
const climbedBytes = 64

// markClimbs marks the names that are made of tuples, unions and arrows alone, all the way
// down, and gathers what they are unions of.
func (p *program) markClimbs() {
	other, _, _ := p.madeOf(partsWithArrows)
	for _, n := range p.names {
		if !other[n.index] && n.rewrite.kind != TraceTuple {
			n.operands = flatUnion(nil, n.rewrite)
		}
	}
}

func flatUnion(operands []*operation, op *operation) []*operation {
	if op.kind != TraceUnion {
		return append(operands, op)
	}
	for _, c := range op.children {
		operands = flatUnion(operands, c)
	}
	return operands
}

// climb gives the value of a name that has operands. ok is false if it cannot be told so.
func (w *walk) climb(n *name, object graph.Number) (v value, ok bool, err error) {
	c := &w.climbed
	if c.found {
		w.memory -= c.held
		c.reset()
	}
	c.places = c.places[:0]
	if err := w.climbTo(n, object); err != nil {
		return denied, false, err
	}
	v = denied
	for at := 0; at < len(c.places) && !v.isAllowed(); at++ {
		p := c.places[at]
		if err := w.step(); err != nil {
			return v, false, err
		}
		x := w.reflexive(p.name, p.object)
		ok := true
		if operands := p.name.operands; operands == nil {
			x, ok, err = w.climbTuples(p.name, p.object, x)
		} else {
			for i := 0; i < len(operands) && ok && err == nil && !x.isAllowed(); i++ {
				x, ok, err = w.climbOperand(operands[i], p.object, x)
			}
		}
		if !ok || err != nil {
			w.once = false
			return v, false, err
		}
		v = v.or(x)
	}
	c.found = !v.isDenied()
	if c.found {
		c.spent += len(c.places)
		w.once = c.spent <= climbedMax
	}
	return v, true, nil
}

// climbTo notes a place to go through.
func (w *walk) climbTo(n *name, object graph.Number) error {
	c, key := &w.climbed, key(n, object)
	if _, found := c.seen.find(key); found {
		return nil
	}
	c.seen.insert(key, 0)
	c.places = append(c.places, place{n, object})
	c.held += climbedBytes
	return w.hold(climbedBytes)
}

// climbOperand adds the value of one operand of a place to v, and notes the places that it
// leads to.
func (w *walk) climbOperand(op *operation, object graph.Number, v value) (_ value, ok bool, err error) {
	switch op.kind {
	case TraceSelf:
		return v.or(w.self(op.typ, object)), true, nil
	case TraceTuple:
		return w.climbTuples(op.name, object, v)
	case TraceName:
		if op.name.leaf {
			x, err := w.body(op.name, object)
			return v.or(x), true, err
		}
		return v, true, w.climbTo(op.name, object)
	case TraceArrow:
		for i := range op.targets {
			t := &op.targets[i]
			if t.name == nil {
				continue
			}
			if ok, err := w.climbAlong(op.name, object, t.shape, t.name); !ok || err != nil {
				return v, ok, err
			}
		}
	}
	return v, true, nil
}

// climbTuples adds the value of the tuples on relation n of object to v, and notes the
// places of the usersets among them.
func (w *walk) climbTuples(n *name, object graph.Number, v value) (_ value, ok bool, err error) {
	x, err := w.direct(n, object)
	if err != nil {
		return v, false, err
	}
	v = v.or(x)
	for i := range n.stored {
		s := &n.stored[i]
		if s.userset == nil {
			continue
		}
		if v.isAllowed() {
			break
		}
		if s.userset.nests {
			if x, ok, err = w.nested(n, object, s); err != nil {
				return v, false, err
			}
			if ok {
				v = v.or(x)
				continue
			}
		}
		if ok, err := w.climbAlong(n, object, s.shape, s.userset); !ok || err != nil {
			return v, ok, err
		}
	}
	return v, true, nil
}

// climbAlong notes the places to which the edges of relation#object to a shape lead.
func (w *walk) climbAlong(relation *name, object graph.Number, shape graph.Shape, to *name) (ok bool, err error) {
	edges := w.subjectsOf(relation, object, shape)
	for {
		e, err := edges.next()
		if err != nil || e == nil {
			return true, err
		}
		if e.Caveat != 0 {
			edges.end()
			return false, nil
		}
		if err := w.climbTo(to, e.Number); err != nil {
			return false, err
		}
	}
}
