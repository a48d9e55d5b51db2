package engine_test

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/engine/enginetest"
	"github.com/pembadb/pemba/graph"
)

// registerCounter and unregisterCounter are the changes of a named counter.
func registerCounter(name string, f graph.Filter) *graph.Mutation {
	return &graph.Mutation{CounterChange: &graph.CounterChange{Operation: graph.RegisterCounter, Name: name, Filter: f}}
}

func unregisterCounter(name string) *graph.Mutation {
	return &graph.Mutation{CounterChange: &graph.CounterChange{Operation: graph.UnregisterCounter, Name: name}}
}

// countNamed counts what a counter of the newest state counts.
func countNamed(t *testing.T, e *enginetest.Env, name string) (uint64, error) {
	t.Helper()
	s, err := e.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	c, err := s.NamedCounter(name)
	if err != nil {
		return 0, err
	}
	return s.Graph().Count(c.Filter)
}

// TestCounters holds what is refused of a change of a counter, that a refused one
// changes nothing, and that one which is made changes no tuple, no schema, and
// nothing in the change log.
func TestCounters(t *testing.T) {
	e := newEnv(t, "definition person {}\ndefinition document {\n  relation viewer: person\n  permission view = viewer\n}",
		"document:a#viewer@person:anne", "document:b#viewer@person:anne", "document:b#viewer@person:bob")
	db := e.Engine.DB()
	changes := func() any {
		t.Helper()
		log, err := db.Changes(graph.DefaultStore, graph.Position{}, 100)
		if err != nil {
			t.Fatal(err)
		}
		return []any{log, db.Stores()}
	}
	before := changes()
	write := func(m *graph.Mutation) engine.Result {
		t.Helper()
		result, err := e.Write(m)
		if err != nil {
			t.Fatal(err)
		}
		return result
	}
	first := write(registerCounter("anne", graph.Filter{SubjectType: "person", SubjectID: "anne"}))
	if first.Changed != 0 || first.Revision != db.Applied().Revision {
		t.Errorf("the result is %+v", first)
	}
	write(registerCounter("viewers", graph.Filter{ObjectType: "document", Relation: "viewer"}))
	member := "member"
	for what, c := range map[string]struct {
		mutation *graph.Mutation
		want     engine.Reason
	}{
		"twice":             {registerCounter("anne", graph.Filter{ObjectType: "document"}), engine.CounterExists},
		"twice, alike":      {registerCounter("anne", graph.Filter{SubjectType: "person", SubjectID: "anne"}), engine.CounterExists},
		"unknown":           {unregisterCounter("bob"), engine.UnknownCounter},
		"type":              {registerCounter("new", graph.Filter{ObjectType: "folder"}), engine.UnknownType},
		"relation":          {registerCounter("new", graph.Filter{ObjectType: "document", Relation: "owner"}), engine.UnknownName},
		"any type":          {registerCounter("new", graph.Filter{Relation: "owner"}), engine.UnknownName},
		"subject type":      {registerCounter("new", graph.Filter{SubjectType: "group"}), engine.UnknownType},
		"subject relation":  {registerCounter("new", graph.Filter{SubjectType: "person", SubjectRelation: &member}), engine.UnknownName},
		"type before twice": {registerCounter("anne", graph.Filter{ObjectType: "folder"}), engine.UnknownType},
		"name":              {registerCounter("An", graph.Filter{ObjectType: "document"}), engine.Malformed},
		"filter":            {registerCounter("new", graph.Filter{ObjectID: "a", ObjectIDPrefix: "a"}), engine.Malformed},
		"operation":         {&graph.Mutation{CounterChange: &graph.CounterChange{Name: "new"}}, engine.Malformed},
		"unregister with":   {&graph.Mutation{CounterChange: &graph.CounterChange{Operation: graph.UnregisterCounter, Name: "anne", Filter: graph.Filter{ObjectType: "document"}}}, engine.Malformed},
		"and updates": {&graph.Mutation{
			CounterChange: registerCounter("new", graph.Filter{}).CounterChange,
			Updates:       []graph.Update{{Operation: graph.Touch}},
		}, engine.Malformed},
		"and a precondition": {&graph.Mutation{
			CounterChange: registerCounter("new", graph.Filter{}).CounterChange,
			Preconditions: []graph.Precondition{{Filter: graph.Filter{ObjectType: "document"}}},
		}, engine.Malformed},
		"store": {&graph.Mutation{Store: 9, CounterChange: registerCounter("new", graph.Filter{}).CounterChange}, engine.UnknownStore},
	} {
		if c.mutation.Store == 0 {
			c.mutation.Store = graph.DefaultStore
		}
		result, err := e.Apply(c.mutation)
		if err != nil || result.Refusal == nil || result.Refusal.Reason != c.want {
			t.Errorf("%s: %+v (%v), want %s", what, result, err, c.want)
		}
	}
	if after := changes(); !reflect.DeepEqual(after, before) {
		t.Errorf("counters made %+v of %+v", after, before)
	}
	for name, want := range map[string]uint64{"anne": 2, "viewers": 3} {
		if n, err := countNamed(t, e, name); n != want || err != nil {
			t.Errorf("%s counts %d (%v), not %d", name, n, err, want)
		}
	}
	write(unregisterCounter("anne"))
	_, err := countNamed(t, e, "anne")
	wantRefusal(t, "unregistered", err, engine.UnknownCounter)
	write(registerCounter("anne", graph.Filter{SubjectType: "person", SubjectID: "bob"}))
	if n, err := countNamed(t, e, "anne"); n != 1 || err != nil {
		t.Errorf("counted %d (%v), not 1", n, err)
	}

	// A counter does not hold up a schema, and counts what is left.
	if _, err := e.Write(&graph.Mutation{Delete: &graph.DeleteMatching{Limit: 10}}); err != nil {
		t.Fatal(err)
	}
	if err := e.Schema("definition person {}"); err != nil {
		t.Fatal(err)
	}
	if n, err := countNamed(t, e, "viewers"); n != 0 || err != nil {
		t.Errorf("counted %d (%v) of a type that is gone", n, err)
	}
	write(unregisterCounter("viewers"))
}

// TestCounterLimit holds that a store has at most 1,000 counters, and each store
// for itself.
func TestCounterLimit(t *testing.T) {
	if raceDetector {
		t.Skip("a thousand entries take seconds, and one goroutine does all of it")
	}
	e := newEnv(t, "definition person {}")
	for i := range graph.NamedCountersMax {
		if _, err := e.Write(registerCounter(fmt.Sprintf("c%04d", i), graph.Filter{ObjectType: "person"})); err != nil {
			t.Fatal(err)
		}
	}
	_, err := e.Write(registerCounter("more", graph.Filter{ObjectType: "person"}))
	wantRefusal(t, "one more", err, engine.TooManyCounters)
	_, err = e.Write(registerCounter("c0000", graph.Filter{ObjectType: "person"}))
	wantRefusal(t, "one of them again", err, engine.CounterExists)
	if _, err := e.Write(unregisterCounter("c0500")); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Write(registerCounter("more", graph.Filter{ObjectType: "person"})); err != nil {
		t.Fatal(err)
	}
	if err := e.Engine.DB().CheckInvariants(); err != nil {
		t.Fatal(err)
	}
	made, err := e.Write(&graph.Mutation{StoreChange: &graph.StoreChange{Operation: graph.CreateStore, Name: "tenant"}})
	if err != nil {
		t.Fatal(err)
	}
	e.Store = made.Store
	_, err = e.Write(registerCounter("more", graph.Filter{ObjectType: "person"}))
	wantRefusal(t, "without a schema", err, engine.NoSchema)
	if err := e.Schema("definition person {}"); err != nil {
		t.Fatal(err)
	}
	_, err = countNamed(t, e, "more")
	wantRefusal(t, "another store's counter", err, engine.UnknownCounter)
	if _, err := e.Write(registerCounter("more", graph.Filter{ObjectType: "person"})); err != nil {
		t.Fatal(err)
	}
}
