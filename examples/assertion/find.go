package assertion

import (
	"context"
	"errors"
	"maps"
	"math"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// find returns the subjects that have name on object: those that tuples name
// and that a check does not deny. Where they stand is read from the trees of
// Expand; whether they hold is asked of Check and LookupSubjects, so that
// caveats and exclusions have one meaning only.
func (r *runner) find(ctx context.Context, object graph.Object, name string) (map[graph.Subject]*foundSubject, error) {
	w := &treeWalk{runner: r, open: make(map[graph.Subject]int), done: make(map[graph.Subject]places), lowest: math.MaxInt}
	named, err := w.userset(ctx, graph.Subject{Object: object, Relation: name})
	if err != nil {
		return nil, err
	}
	found := make(map[graph.Subject]*foundSubject)
	for subject, p := range named {
		f := &foundSubject{subject: subject, relations: p.relations}
		if subject.ID == graph.Wildcard {
			ok, err := r.wildcard(ctx, object, name, f)
			if err != nil {
				return nil, err
			}
			if ok {
				found[subject] = f
			}
			continue
		}
		answer, err := r.snapshot.Check(ctx, engine.Check{Object: object, Name: name, Subject: subject})
		if err != nil {
			return nil, err
		}
		if answer.Decision == engine.Denied {
			continue
		}
		f.conditional = answer.Decision == engine.Conditional
		found[subject] = f
	}
	return found, nil
}

// wildcard completes f, a wildcard, and reports whether it holds at all.
func (r *runner) wildcard(ctx context.Context, object graph.Object, name string, f *foundSubject) (bool, error) {
	holds := false
	err := r.snapshot.LookupSubjects(ctx, engine.LookupSubjects{Object: object, Name: name, SubjectType: f.subject.Type},
		func(s engine.FoundSubject) error {
			if s.Subject.ID != graph.Wildcard {
				return nil
			}
			holds = true
			f.conditional = s.Decision == engine.Conditional
			f.excluded = make(map[graph.Subject]bool)
			for _, e := range s.Excluded {
				f.excluded[e.Subject] = e.Decision == engine.Conditional
			}
			return nil
		})
	return holds, err
}

// A place is where a subject stands in a tree.
type place struct {
	// relations are those whose tuples name the subject, as object#relation.
	relations map[string]bool
	// maybe says that a caveat stands between the subject and the tree's root.
	maybe bool
}

// places are the subjects of a tree with where they stand.
type places map[graph.Subject]*place

// A treeWalk follows trees through usersets to the end.
type treeWalk struct {
	runner *runner
	// open holds the usersets above the current one, with how many stand above
	// each: a cycle adds nobody.
	open map[graph.Subject]int
	// done holds what was found for usersets that no cycle cut short, so that a
	// userset with many ways to it is walked once.
	done map[graph.Subject]places
	// lowest is the least value in open of a userset that a cycle came back to
	// since it was last set.
	lowest int
}

func (w *treeWalk) userset(ctx context.Context, of graph.Subject) (places, error) {
	if depth, ok := w.open[of]; ok {
		w.lowest = min(w.lowest, depth)
		return nil, nil
	}
	if found, ok := w.done[of]; ok {
		return found.clone(), nil
	}
	depth, outer := len(w.open), w.lowest
	w.open[of], w.lowest = depth, math.MaxInt
	found, err := w.expand(ctx, of)
	delete(w.open, of)
	if err == nil && w.lowest >= depth {
		w.done[of] = found.clone()
		w.lowest = math.MaxInt
	}
	w.lowest = min(w.lowest, outer)
	return found, err
}

func (w *treeWalk) expand(ctx context.Context, of graph.Subject) (places, error) {
	tree, err := w.runner.snapshot.Expand(ctx, engine.Expand{Object: of.Object, Name: of.Relation})
	var refusal *engine.Refusal
	if len(w.open) > 1 && errors.As(err, &refusal) && refusal.Reason == engine.UnknownName {
		return nil, nil // A stored userset may name a relation that its type has no more.
	}
	if err != nil {
		return nil, err
	}
	return w.tree(ctx, tree)
}

func (w *treeWalk) tree(ctx context.Context, t *engine.Tree) (places, error) {
	if t.Operation == engine.TreeLeaf {
		return w.leaf(ctx, t)
	}
	var result places
	for i, child := range t.Children {
		p, err := w.tree(ctx, child)
		if err != nil {
			return nil, err
		}
		if child.Via != nil && child.Via.Caveat != "" {
			for _, held := range p {
				held.maybe = true
			}
		}
		switch {
		case i == 0:
			result = p
		case t.Operation == engine.TreeUnion:
			result = union(result, p)
		case t.Operation == engine.TreeIntersection:
			result = intersect(result, p)
		case t.Operation == engine.TreeExclusion:
			result = exclude(result, p)
		}
	}
	return result, nil
}

func (w *treeWalk) leaf(ctx context.Context, t *engine.Tree) (places, error) {
	var result places
	for i := range t.Leaves {
		tuple := &t.Leaves[i]
		on := graph.Subject{Object: tuple.Object, Relation: tuple.Relation}.String()
		maybe := tuple.Caveat != ""
		result = union(result, places{tuple.Subject: {relations: map[string]bool{on: true}, maybe: maybe}})
		if tuple.Subject.Relation == "" {
			continue
		}
		members, err := w.userset(ctx, tuple.Subject)
		if err != nil {
			return nil, err
		}
		for _, p := range members {
			p.maybe = p.maybe || maybe
		}
		result = union(result, members)
	}
	return result, nil
}

// union, intersect and exclude combine what two trees hold. They own their
// arguments.
func union(a, b places) places {
	if a == nil {
		return b
	}
	for s, p := range b {
		if q := a[s]; q != nil {
			q.maybe = q.maybe && p.maybe
			q.add(p)
		} else {
			a[s] = p
		}
	}
	return a
}

func intersect(a, b places) places {
	result := make(places)
	for _, pair := range [2][2]places{{a, b}, {b, a}} {
		for s, p := range pair[0] {
			for _, other := range []*place{pair[1][s], pair[1].wildcardFor(s)} {
				if other == nil {
					continue
				}
				q := result[s]
				if q == nil {
					q = &place{relations: make(map[string]bool)}
					result[s] = q
				}
				q.maybe = q.maybe || p.maybe || other.maybe
				q.add(p)
				q.add(other)
			}
		}
	}
	return result
}

func exclude(a, b places) places {
	for s, p := range a {
		for _, other := range []*place{b[s], b.wildcardFor(s)} {
			switch {
			case other == nil:
			case other.maybe:
				p.maybe = true
			default:
				delete(a, s)
			}
		}
	}
	return a
}

// wildcardFor returns the place of the wildcard that covers s, or nil.
func (p places) wildcardFor(s graph.Subject) *place {
	if s.Relation != "" || s.ID == graph.Wildcard {
		return nil
	}
	return p[graph.Subject{Object: graph.Object{Type: s.Type, ID: graph.Wildcard}}]
}

// clone returns a copy that shares nothing with p.
func (p places) clone() places {
	result := make(places, len(p))
	for s, from := range p {
		result[s] = &place{relations: maps.Clone(from.relations), maybe: from.maybe}
	}
	return result
}

func (p *place) add(other *place) {
	for r := range other.relations {
		p.relations[r] = true
	}
}
