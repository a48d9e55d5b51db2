package engine

import (
	"context"
	"slices"

	"github.com/pembadb/pemba/graph"
)

// LookupResources yields the objects of a type on which a subject has a name,
// in order of their numbers: exactly those that Check allows or makes
// conditional. The order and the positions are the same on every node. An error
// of yield ends the lookup and is returned.
//
// It walks backwards from the subject along everything that could lead to the
// name. What it arrives at by unions alone, past no caveat, is a result; the rest is
// checked. The checks share one walk, so that a group or folder on many ways is
// evaluated once.
func (s *Snapshot) LookupResources(ctx context.Context, q LookupResources, yield func(Resource) error) error {
	given := 0
	return s.resources(ctx, q, func(object graph.Number, position Position, verdict Verdict) (more bool, err error) {
		id, err := s.graph.ID(q.Type, object)
		if err != nil {
			return false, err
		}
		err = yield(Resource{Object: graph.Object{Type: q.Type, ID: id}, Position: position, Verdict: verdict})
		given++
		return q.Limit == 0 || given < q.Limit, err
	})
}

// Counts say how many results a lookup has.
type Counts struct {
	Allowed     int
	Conditional int
}

func (c *Counts) add(d Decision) {
	switch d {
	case Allowed:
		c.Allowed++
	case Conditional:
		c.Conditional++
	}
}

// CountResources returns how many objects LookupResources yields for the same
// question, whatever its After and Limit are. It evaluates as much, but reads no
// names.
func (s *Snapshot) CountResources(ctx context.Context, q LookupResources) (Counts, error) {
	q.After = 0
	var counts Counts
	err := s.resources(ctx, q, func(_ graph.Number, _ Position, verdict Verdict) (more bool, err error) {
		counts.add(verdict.Decision)
		return true, nil
	})
	if err != nil {
		return Counts{}, err
	}
	return counts, nil
}

// resources calls found with the objects that LookupResources yields, in order,
// until it wants no more.
func (s *Snapshot) resources(ctx context.Context, q LookupResources, found func(graph.Number, Position, Verdict) (more bool, err error)) error {
	n, err := s.name("type", "permission", q.Type, q.Name)
	if err != nil {
		return err
	}
	subject, err := s.subject("subject", q.Subject)
	if err != nil {
		return err
	}
	w := walks.Get().(*walk)
	defer w.release()
	w.begin(s.question(ctx, q.Budget))
	w.context, w.subject = q.Context, subject

	candidates, err := w.candidates(n)
	if err != nil {
		return err
	}
	for _, c := range candidates {
		object := c.object()
		position := Position(object) + 1
		if position <= q.After {
			continue
		}
		if w.memory > w.memoryMax/2 {
			// What was evaluated for other objects only saves work.
			w.forgetAll()
		}
		v := allowed
		if c.certain() {
			err = w.step()
		} else {
			v, err = w.evaluate(n, object)
		}
		if err != nil {
			return err
		}
		if v.failed() {
			return w.fault
		}
		verdict := v.verdict()
		if verdict.Decision == Denied {
			continue
		}
		if more, err := found(object, position, verdict); err != nil || !more {
			return err
		}
	}
	return nil
}

// A candidate is an object on which a subject may have a name, shifted left by one, and in
// the lowest bit whether it certainly has. Candidates are ordered as their objects are.
type candidate uint64

func (c candidate) object() graph.Number { return graph.Number(c >> 1) }
func (c candidate) certain() bool        { return c&1 != 0 }

// candidates finds the objects on which the walk's subject may have n, sorted.
func (w *walk) candidates(n *name) ([]candidate, error) {
	c := candidateWalk{walk: w, n: n, leads: w.program.leadingTo(n)}
	c.seen.reset()
	if err := c.begin(); err != nil {
		return nil, err
	}
	// All that is certain comes first, so that no place is found to be so later.
	for len(c.sure)+len(c.unsure) > 0 {
		var at place
		certain := len(c.sure) > 0
		if certain {
			at = c.sure[len(c.sure)-1]
			c.sure = c.sure[:len(c.sure)-1]
		} else {
			at = c.unsure[len(c.unsure)-1]
			c.unsure = c.unsure[:len(c.unsure)-1]
			if !c.enter(at, false) {
				continue
			}
		}
		if err := w.step(); err != nil {
			return nil, err
		}
		for i := range at.name.feeds {
			f := &at.name.feeds[i]
			var err error
			if f.via == nil {
				err = c.arrive(f.to, at.object, certain && f.exact)
			} else {
				err = c.follow(f.to, f.via, f.shape, at.object, certain && f.exact)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	slices.Sort(c.results)
	// Of all this only the results are kept.
	return c.results, w.hold(int64(len(c.results))*resultBytes - c.arrived*placeBytes)
}

// A candidateWalk goes backwards from a subject to the objects on which it may have n.
type candidateWalk struct {
	*walk
	n     *name
	leads []bool
	seen  index
	// sure are places that were entered and are to be gone on from; unsure are those to
	// be entered, if they are not by then.
	sure, unsure []place
	results      []candidate
	// arrived counts what is held for places.
	arrived int64
}

// begin arrives at what the subject is named on.
func (c *candidateWalk) begin() error {
	if !c.subject.plain {
		for _, to := range c.program.names {
			if to.shape == c.subject.shape {
				if err := c.arrive(to, c.subject.number, true); err != nil {
					return err
				}
			}
		}
		return nil
	}
	for _, seed := range c.program.direct[c.subject.shape] {
		to := seed.name
		for i := range to.stored {
			s := &to.stored[i]
			if s.shape == c.subject.shape && s.concrete {
				if err := c.follow(to, to, s.shape, c.subject.number, seed.exact); err != nil {
					return err
				}
			}
			if s.shape == c.subject.shape && s.wildcard {
				if err := c.follow(to, to, s.shape, graph.WildcardNumber, seed.exact); err != nil {
					return err
				}
			}
		}
	}
	for _, to := range c.program.selves[c.subject.shape] {
		if err := c.arrive(to.name, c.subject.number, to.exact); err != nil {
			return err
		}
	}
	return nil
}

// What seen knows of a place.
const (
	waiting int32 = iota // It is among the unsure.
	entered
)

// arrive notes that the subject may have a name of an object.
func (c *candidateWalk) arrive(to *name, object graph.Number, certain bool) error {
	if !c.leads[to.index] {
		return nil
	}
	at, key := place{to, object}, key(to, object)
	state, found := c.seen.find(key)
	switch {
	case certain && (!found || state == waiting):
		c.enter(at, true)
		c.sure = append(c.sure, at)
	case found:
		return nil
	default:
		c.seen.insert(key, waiting)
		c.unsure = append(c.unsure, at)
	}
	c.arrived++
	return c.hold(placeBytes)
}

// enter reports whether a place was not entered yet.
func (c *candidateWalk) enter(at place, certain bool) bool {
	key := key(at.name, at.object)
	switch state, found := c.seen.find(key); {
	case !found:
		c.seen.insert(key, entered)
	case state == entered:
		return false
	default:
		c.seen.replace(key, entered)
	}
	if at.name == c.n {
		result := candidate(at.object) << 1
		if certain {
			result |= 1
		}
		c.results = append(c.results, result)
	}
	return true
}

// follow arrives at the objects whose tuples on via name the subject of a shape and number.
func (c *candidateWalk) follow(to, via *name, shape graph.Shape, number graph.Number, certain bool) error {
	if !c.leads[to.index] {
		return nil
	}
	edges := c.objectsOf(shape, number, via)
	for {
		e, err := edges.next()
		if err != nil || e == nil {
			return err
		}
		if err := c.arrive(to, e.Number, certain && e.Caveat == 0); err != nil {
			return err
		}
	}
}

// placeBytes is the estimate of what a place takes while candidates are looked
// for, resultBytes that of a candidate.
const (
	placeBytes  = 96
	resultBytes = 16
)

// leadingNamesMax is how many names a schema may have for what leads to them to be kept:
// it is as much as the square of it in all.
const leadingNamesMax = 1 << 10

// leadingTo marks, by index, the names from which feeds lead to n.
func (p *program) leadingTo(n *name) []bool {
	if leads, ok := p.leading.Load(n); ok {
		return leads.([]bool) //nolint:forcetypeassert // Nothing else is stored.
	}
	leads := findLeading(p, n)
	if len(p.names) <= leadingNamesMax {
		p.leading.Store(n, leads)
	}
	return leads
}

func findLeading(p *program, n *name) []bool {
	sources := make([][]*name, len(p.names))
	for _, from := range p.names {
		for _, f := range from.feeds {
			sources[f.to.index] = append(sources[f.to.index], from)
		}
	}
	leads := make([]bool, len(p.names))
	leads[n.index] = true
	for queue := []*name{n}; len(queue) > 0; {
		to := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		for _, from := range sources[to.index] {
			if !leads[from.index] {
				leads[from.index] = true
				queue = append(queue, from)
			}
		}
	}
	return leads
}
