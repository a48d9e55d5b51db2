package engine_test

import (
	"context"
	"testing"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// TestStats: each question counts once, with what it cost, and what Apply
// evaluates does not count.
func TestStats(t *testing.T) {
	e := newEnv(t, `
caveat weekday(day string) { day != "sunday" }
definition person {}
definition group {
	relation member: person | person with weekday | group#whole
	permission whole = member & member
}`,
		"group:a#member@person:anne[weekday]", "group:a#member@group:b#whole", "group:b#member@group:a#whole")
	s := snapshot(t, e)
	before := e.Engine.Stats()
	if before.Questions != 0 || before.Steps != 0 {
		t.Errorf("writing counts as questions: %+v", before)
	}
	answer, err := check(t, s, "group:a#member@person:bob")
	if err != nil {
		t.Fatal(err)
	}
	after := e.Engine.Stats()
	want := engine.Stats{Questions: 1, Steps: uint64(answer.Steps), Cycles: uint64(answer.Cycles)}
	if after != want || answer.Cycles == 0 {
		t.Errorf("a check through a cycle: %+v, expected %+v", after, want)
	}
	mustCheck(t, s, "group:a#member@person:anne", engine.Conditional)
	if got := e.Engine.Stats(); got.Caveats == 0 || got.Questions != 2 {
		t.Errorf("a check of a caveat: %+v", got)
	}
	group := graph.Object{Type: "group", ID: "a"}
	for name, ask := range map[string]func() error{
		"expand": func() error {
			_, err := s.Expand(context.Background(), engine.Expand{Object: group, Name: "member"})
			return err
		},
		"lookup of resources": func() error {
			q := engine.LookupResources{Type: "group", Name: "member", Subject: graph.Subject{Object: graph.Object{Type: "person", ID: "anne"}}}
			return s.LookupResources(context.Background(), q, func(engine.Resource) error { return nil })
		},
		"lookup of subjects": func() error {
			q := engine.LookupSubjects{Object: group, Name: "member", SubjectType: "person"}
			return s.LookupSubjects(context.Background(), q, func(engine.FoundSubject) error { return nil })
		},
	} {
		before := e.Engine.Stats()
		if err := ask(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		after := e.Engine.Stats()
		if n := after.Questions - before.Questions; n != 1 {
			t.Errorf("%s counts as %d questions", name, n)
		}
		if after.Caveats == before.Caveats {
			t.Errorf("%s of a tuple with a caveat counts no caveat", name)
		}
	}
	q := engine.Check{Object: group, Name: "member", Subject: graph.Subject{Object: graph.Object{Type: "person", ID: "bob"}}, Budget: engine.Budget{Steps: 1}}
	_, err = s.Check(context.Background(), q)
	wantRefusal(t, "one step", err, engine.BudgetExceeded)
	if got := e.Engine.Stats().BudgetRefusals; got != 1 {
		t.Errorf("%d refusals are counted", got)
	}
}
