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
// name, and checks what it arrives at. The checks share one walk, so that a
// group or folder on many ways is evaluated once.
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
	for _, object := range candidates {
		position := Position(object) + 1
		if position <= q.After {
			continue
		}
		if w.memory > w.memoryMax/2 {
			// What was evaluated for other objects only saves work.
			w.forgetAll()
		}
		v, err := w.evaluate(n, object)
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

// candidates finds the objects on which the walk's subject may have n, sorted.
func (w *walk) candidates(n *name) ([]graph.Number, error) {
	subject := w.subject
	leads := leadingTo(w.program, n)
	var (
		seen    index
		queue   []place
		results []graph.Number
		arrived int64
	)
	seen.reset()
	arrive := func(to *name, object graph.Number) error {
		if !leads[to.index] {
			return nil
		}
		key := uint64(to.index)<<40 | uint64(object)
		if _, found := seen.find(key); found {
			return nil
		}
		seen.insert(key, 0)
		queue = append(queue, place{to, object})
		if to == n {
			results = append(results, object)
		}
		arrived++
		return w.hold(placeBytes)
	}
	follow := func(to, via *name, shape graph.Shape, number graph.Number) error {
		if !leads[to.index] {
			return nil
		}
		edges := w.objectsOf(shape, number, via)
		for {
			e, err := edges.next()
			if err != nil || e == nil {
				return err
			}
			if err := arrive(to, e.Number); err != nil {
				return err
			}
		}
	}

	if subject.plain {
		for _, to := range w.program.direct[subject.shape] {
			if err := follow(to, to, subject.shape, subject.number); err != nil {
				return nil, err
			}
			if err := follow(to, to, subject.shape, graph.WildcardNumber); err != nil {
				return nil, err
			}
		}
		for _, to := range w.program.selves[subject.shape] {
			if err := arrive(to, subject.number); err != nil {
				return nil, err
			}
		}
	} else {
		for _, to := range w.program.names {
			if to.shape == subject.shape {
				if err := arrive(to, subject.number); err != nil {
					return nil, err
				}
			}
		}
	}
	for len(queue) > 0 {
		at := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		if err := w.step(); err != nil {
			return nil, err
		}
		for _, f := range at.name.feeds {
			var err error
			if f.via == nil {
				err = arrive(f.to, at.object)
			} else {
				err = follow(f.to, f.via, f.shape, at.object)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	slices.Sort(results)
	// Of all this only the results are kept.
	return results, w.hold(int64(len(results))*resultBytes - arrived*placeBytes)
}

// placeBytes is the estimate of what a place takes while candidates are looked
// for, resultBytes that of a candidate.
const (
	placeBytes  = 96
	resultBytes = 16
)

// leadingTo marks, by index, the names from which feeds lead to n.
func leadingTo(p *program, n *name) []bool {
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
