package engine

import "github.com/pembadb/pemba/graph"

// What a walk computes with. The walk knows the shape of rewrites and of the graph; here
// is what is collected on the way: for a check one value for one subject, for
// LookupSubjects a value for every subject (subjectSets), as one value that holds them.
//
// Union and intersection are commutative and associative, and monotone in both
// bounds of a value; exclusion is monotone in its base and swaps the bounds of
// what it subtracts.
//
// These are methods that ask whether there are sets, and no interface with two
// implementations: they are called several times in each step, and so are inlined.

// denied is the value of a name that nobody has.
func (w *walk) denied() value {
	if w.sets != nil {
		return nobody
	}
	return denied
}

// undefined is the value of a name that is being evaluated further up.
func (w *walk) undefined() value {
	if w.sets != nil {
		return undefinedForAll
	}
	return undefined
}

func (w *walk) or(a, b value) value {
	if w.sets != nil {
		return w.sets.or(a.set(), b.set()).value()
	}
	return a.or(b)
}

// add is or, for unions of many: it may change a if a is owned, that is, was
// returned by add as owned, and nobody else has it.
func (w *walk) add(a value, owned bool, b value) (sum value, sumOwned bool) {
	if w.sets != nil {
		s, owned := w.sets.add(a.set(), owned, b.set())
		return s.value(), owned
	}
	return a.or(b), false
}

func (w *walk) and(a, b value) value {
	if w.sets != nil {
		return w.sets.and(a.set(), b.set()).value()
	}
	return a.and(b)
}

func (w *walk) except(a, b value) value {
	if w.sets != nil {
		return w.sets.except(a.set(), b.set()).value()
	}
	return a.except(b)
}

// guard is v where the condition holds.
func (w *walk) guard(condition, v value) value {
	if w.sets != nil {
		return w.sets.guard(condition, v.set()).value()
	}
	return condition.and(v)
}

// isAllowed and isDenied say that v can change no more by union or by intersection;
// however many subjects a set holds, another branch may name one more.
func (w *walk) isAllowed(v value) bool { return w.sets == nil && v.isAllowed() }

func (w *walk) isDenied(v value) bool {
	if w.sets != nil {
		return v.set().all(value.isDenied)
	}
	return v.isDenied()
}

// isSettled says that v is the same whatever comes of the names that are open.
func (w *walk) isSettled(v value) bool {
	if w.sets != nil {
		return v.set().all(value.isSettled)
	}
	return v.isSettled()
}

// size is the estimate, in bytes, of what v takes beyond a cell.
func (w *walk) size(v value) int64 {
	if w.sets != nil {
		return v.set().bytes()
	}
	return 0
}

func (w *walk) equal(a, b value) bool {
	if w.sets != nil {
		return a.set().equal(b.set())
	}
	return a.equal(b)
}

// splice takes the low of one value and the high of another, and drops that they failed.
func (w *walk) splice(low, high value) value {
	if w.sets != nil {
		return w.sets.splice(low.set(), high.set()).value()
	}
	return splice(low, high)
}

// bare drops the missing parameters of both.
func (w *walk) bare(v value) value {
	if w.sets != nil {
		return w.sets.bare(v.set()).value()
	}
	return v.bare()
}

// reflexive is the value of n#object for itself as a subject: a userset is a member of
// itself.
func (w *walk) reflexive(n *name, object graph.Number) value {
	switch {
	case w.sets != nil:
		return w.sets.reflexive(n, object).value()
	case !w.subject.plain && n.shape == w.subject.shape && object == w.subject.number:
		return allowed
	}
	return denied
}

// self is the value of the leaf self.
func (w *walk) self(typ *objectType, object graph.Number) value {
	switch {
	case w.sets != nil:
		return w.sets.self(typ, object).value()
	case w.subject.plain && typ.shape == w.subject.shape && object == w.subject.number:
		return allowed
	}
	return denied
}

// direct is the value of the tuples stored on n of object for plain subjects, and for
// usersets taken as subjects themselves.
func (w *walk) direct(n *name, object graph.Number) (value, error) {
	if w.sets != nil {
		set, err := w.sets.direct(n, object)
		return set.value(), err
	}
	v := denied
	for i := range n.stored {
		s := &n.stored[i]
		if s.shape != w.subject.shape {
			continue
		}
		if s.concrete {
			x, err := w.tuple(n, object, s.shape, w.subject.number)
			if err != nil {
				return v, err
			}
			v = v.or(x)
		}
		if s.wildcard && w.subject.plain && !v.isAllowed() {
			x, err := w.tuple(n, object, s.shape, graph.WildcardNumber)
			if err != nil {
				return v, err
			}
			v = v.or(x)
		}
	}
	return v, nil
}

// tuple gives the value of one stored tuple.
func (w *walk) tuple(n *name, object graph.Number, shape graph.Shape, number graph.Number) (value, error) {
	if err := w.step(); err != nil {
		return denied, err
	}
	e, found, err := w.graph.Find(n.shape, object, shape, number)
	if err != nil || !found {
		return denied, err
	}
	parent := w.traceTuple(n, object, &e)
	v, err := w.condition(&e)
	if err != nil {
		return denied, err
	}
	w.traceClose(parent, v)
	return v, nil
}
