package engine_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/engine/enginetest"
	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

// A tangle is a few groups that hold and ban one another at random, with every
// twin there is. The worlds of TestTwin are wide; in a tangle nearly every
// question comes to the same names on several ways, and often in a cycle.
type tangle struct {
	*enginetest.World
	tuples []graph.Tuple
	s      *engine.Snapshot
	twins  map[string]*twin // by the id of the user
}

const tangleText = enginetest.CaveatsText + `
definition user {}
definition group {
	relation member: user | group#member | group#allowed | user with is_open | group#allowed with is_open
	relation banned: user | group#member | group#allowed | group#allowed with is_open
	relation link: group
	permission allowed = member - banned
	permission both = allowed & (link->allowed + banned)
	permission every = member + link.all(both)
}`

// newTangle returns a tangle of random tuples.
func newTangle(t *testing.T, r *rand.Rand) *tangle {
	t.Helper()
	x := emptyTangle(t, r)
	stored := map[string]graph.Tuple{}
	for range 4 + r.IntN(14) {
		tuple := graph.Tuple{Object: enginetest.Choose(x.World, x.Objects), Relation: enginetest.Choose(x.World, []string{"member", "member", "banned", "link"})}
		tuple.Subject = graph.Subject{Object: enginetest.Choose(x.World, x.Objects), Relation: enginetest.Choose(x.World, []string{"member", "allowed", "allowed"})}
		switch {
		case tuple.Relation == "link":
			tuple.Subject.Relation = ""
		case x.OneIn(3):
			tuple.Subject = enginetest.Choose(x.World, x.Subjects)
		case x.OneIn(5) && tuple.Subject.Relation == "allowed":
			tuple.Caveat = "is_open"
		}
		stored[key(tuple)] = tuple
	}
	x.write(t, sorted(stored))
	return x
}

// emptyTangle returns a tangle without tuples.
func emptyTangle(t *testing.T, r *rand.Rand) *tangle {
	t.Helper()
	file, err := schema.Parse("tangle", tangleText)
	if err != nil {
		t.Fatal(err)
	}
	compiled, err := schema.Compile(file)
	if err != nil {
		t.Fatal(err)
	}
	x := &tangle{World: &enginetest.World{Rand: r, Text: tangleText, Schema: compiled}, twins: map[string]*twin{}}
	for i := range 4 {
		x.Objects = append(x.Objects, graph.Object{Type: "group", ID: fmt.Sprint("g", i)})
	}
	for i := range 2 {
		x.Subjects = append(x.Subjects, graph.Subject{Object: graph.Object{Type: "user", ID: fmt.Sprint("u", i)}})
	}
	return x
}

// write stores the tuples of the tangle, and solves it.
func (x *tangle) write(t *testing.T, tuples []graph.Tuple) {
	t.Helper()
	x.tuples = tuples
	mutation := &graph.Mutation{}
	for _, tuple := range x.tuples {
		mutation.Updates = append(mutation.Updates, graph.Update{Operation: graph.Touch, Tuple: tuple})
	}
	e := newEnv(t, x.Text)
	if _, err := e.Write(mutation); err != nil {
		t.Fatal(err)
	}
	x.s = snapshot(t, e)
	for _, s := range x.Subjects {
		tw := &twin{schema: x.Schema, tuples: x.tuples, objects: x.Objects, subject: s}
		tw.solve()
		x.twins[s.ID] = tw
	}
}

// atoms returns every name of every group.
func (x *tangle) atoms() []atom {
	var atoms []atom
	for _, o := range x.Objects {
		for _, n := range namesOf(x.Schema.Definition(o.Type)) {
			atoms = append(atoms, atom{o, n})
		}
	}
	return atoms
}

// TestTangles looks up the subjects of every name of tangled groups.
func TestTangles(t *testing.T) {
	r := seeded(t)
	m := &mix{}
	for range 100 {
		t.Run("", func(t *testing.T) {
			x := newTangle(t, r)
			q := &asker{
				w: x.World, m: m, s: x.s,
				fail:  func(format string, args ...any) { t.Errorf(format, args...) },
				where: func() string { return fmt.Sprint(x.tuples) },
			}
			for _, a := range x.atoms() {
				if !q.subjectsOf(a, graph.Subject{Object: graph.Object{Type: "user"}}, x.twins) {
					return
				}
			}
		})
	}
	t.Log(m)
}
