package engine_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

const climbSchema = `
caveat open(gate bool) { gate }
definition person {}
definition folder {
	relation parent: folder | folder with open
	relation viewer: person
	permission view = viewer + parent->view
}
definition document {
	relation folder: folder
	permission all = folder.all(view)
	permission some = folder->view
}`

// TestClimbOnce holds that a check goes through a place a few times at most: past a caveat
// at the end of a long way, and where much that is asked for separately leads to one place
// that has the subject, or to one that has not.
func TestClimbOnce(t *testing.T) {
	const depth, wide = 1000, 300
	var tuples []string
	for i := range depth {
		caveat := ""
		if i == depth-1 {
			caveat = "[open]"
		}
		tuples = append(tuples, fmt.Sprintf("folder:c%d#parent@folder:c%d%s", i, i+1, caveat),
			fmt.Sprintf("folder:f%d#parent@folder:f%d", i, i+1))
	}
	tuples = append(tuples, fmt.Sprintf("folder:c%d#viewer@person:top", depth), fmt.Sprintf("folder:f%d#viewer@person:top", depth))
	for i := range wide {
		tuples = append(tuples, fmt.Sprintf("folder:leaf%d#parent@folder:f0", i), fmt.Sprintf("document:d#folder@folder:leaf%d", i))
	}
	e := newEnv(t, climbSchema)
	for len(tuples) > 0 {
		n := min(1000, len(tuples))
		if err := e.Touch(tuples[:n]...); err != nil {
			t.Fatal(err)
		}
		tuples = tuples[n:]
	}
	s := snapshot(t, e)
	for _, test := range []struct {
		object graph.Object
		name   string
		person string
		want   engine.Decision
	}{
		{graph.Object{Type: "folder", ID: "c0"}, "view", "top", engine.Conditional},
		{graph.Object{Type: "folder", ID: "c0"}, "view", "nobody", engine.Denied},
		{graph.Object{Type: "document", ID: "d"}, "all", "top", engine.Allowed},
		{graph.Object{Type: "document", ID: "d"}, "some", "nobody", engine.Denied},
	} {
		answer, err := s.Check(context.Background(), engine.Check{
			Object: test.object, Name: test.name,
			Subject: graph.Subject{Object: graph.Object{Type: "person", ID: test.person}},
		})
		if err != nil || answer.Decision != test.want {
			t.Errorf("check %v#%s@person:%s: %v (%v), want %v", test.object, test.name, test.person, answer.Decision, err, test.want)
		}
		if most := 12 * (depth + wide); answer.Steps > most {
			t.Errorf("check %v#%s@person:%s took %d steps, want %d at most", test.object, test.name, test.person, answer.Steps, most)
		}
	}
}

// TestClimbKeepsLittle holds that what a check has climbed far with is given back.
func TestClimbKeepsLittle(t *testing.T) {
	const depth = 40_000
	var tuples []string
	for i := range depth {
		tuples = append(tuples, fmt.Sprintf("folder:c%d#parent@folder:c%d", i, i+1))
	}
	e := newEnv(t, climbSchema)
	for len(tuples) > 0 {
		n := min(1000, len(tuples))
		if err := e.Touch(tuples[:n]...); err != nil {
			t.Fatal(err)
		}
		tuples = tuples[n:]
	}
	s := snapshot(t, e)
	for range 8 { // A pool may drop a walk for reasons of its own.
		_, err := s.Check(context.Background(), engine.Check{
			Object: graph.Object{Type: "folder", ID: "c0"}, Name: "view",
			Subject: graph.Subject{Object: graph.Object{Type: "person", ID: "nobody"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if places, slots := engine.KeptByWalk(); places > engine.WalkCellsMax || slots > 4*engine.WalkCellsMax {
			t.Fatalf("a walk between questions keeps %d places and %d slots, want %d and %d at most",
				places, slots, engine.WalkCellsMax, 4*engine.WalkCellsMax)
		}
	}
}
