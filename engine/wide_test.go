package engine_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/engine/enginetest"
	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

const wideSchema = `
definition person {}
definition group { relation member: person | group#member }
definition folder {
	relation parent: folder
	relation viewer: person | group#member
	permission view = viewer + parent->view
	permission all = parent.all(viewer)
}`

func newEnv(t testing.TB, schema string, tuples ...string) *enginetest.Env {
	t.Helper()
	e, err := enginetest.New(engine.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := e.Schema(schema); err != nil {
		t.Fatal(err)
	}
	for len(tuples) > 0 {
		n := min(len(tuples), 1000)
		if err := e.Touch(tuples[:n]...); err != nil {
			t.Fatal(err)
		}
		tuples = tuples[n:]
	}
	return e
}

func snapshot(t testing.TB, e *enginetest.Env) *engine.Snapshot {
	t.Helper()
	s, err := e.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// check asks object#name@subject, given as the text of a tuple.
func check(t testing.TB, s *engine.Snapshot, text string) (engine.Answer, error) {
	t.Helper()
	tuple, err := graph.ParseTuple(text)
	if err != nil {
		t.Fatal(err)
	}
	return s.Check(context.Background(), engine.Check{Object: tuple.Object, Name: tuple.Relation, Subject: tuple.Subject})
}

func mustCheck(t testing.TB, s *engine.Snapshot, text string, want engine.Decision) {
	t.Helper()
	if answer, err := check(t, s, text); err != nil || answer.Decision != want {
		t.Errorf("check %s: %v (%v), want %v", text, answer.Decision, err, want)
	}
}

// TestWide holds that sets wider than what is read at once are read to the end,
// around every multiple of it.
func TestWide(t *testing.T) {
	for _, width := range []int{1, 63, 64, 65, 127, 128, 129, 300} {
		var tuples []string
		for i := range width {
			tuples = append(tuples,
				fmt.Sprintf("group:all#member@group:g%d#member", i),
				fmt.Sprintf("group:g%d#member@person:p%d", i, i),
				fmt.Sprintf("folder:leaf#parent@folder:f%d", i),
				fmt.Sprintf("folder:f%d#viewer@person:p%d", i, i),
				fmt.Sprintf("folder:f%d#viewer@person:everywhere", i))
		}
		s := snapshot(t, newEnv(t, wideSchema, tuples...))
		last := width - 1
		mustCheck(t, s, fmt.Sprintf("group:all#member@person:p%d", last), engine.Allowed)
		mustCheck(t, s, "group:all#member@person:q", engine.Denied)
		mustCheck(t, s, fmt.Sprintf("folder:leaf#view@person:p%d", last), engine.Allowed)
		mustCheck(t, s, "folder:leaf#all@person:everywhere", engine.Allowed)
		if width > 1 {
			mustCheck(t, s, "folder:leaf#all@person:p0", engine.Denied)
			mustCheck(t, s, fmt.Sprintf("folder:leaf#all@person:p%d", last), engine.Denied)
		}
		subjects := 0
		err := s.LookupSubjects(context.Background(), engine.LookupSubjects{
			Object: graph.Object{Type: "group", ID: "all"}, Name: "member", SubjectType: "person",
		}, func(engine.FoundSubject) error { subjects++; return nil })
		if err != nil || subjects != width {
			t.Errorf("width %d: %d subjects (%v), want %d", width, subjects, err, width)
		}
		resources := 0
		err = s.LookupResources(context.Background(), engine.LookupResources{
			Type: "folder", Name: "viewer",
			Subject: graph.Subject{Object: graph.Object{Type: "person", ID: "everywhere"}},
		}, func(engine.Resource) error { resources++; return nil })
		if err != nil || resources != width {
			t.Errorf("width %d: %d resources (%v), want %d", width, resources, err, width)
		}
		tree, err := s.Expand(context.Background(), engine.Expand{Object: graph.Object{Type: "group", ID: "all"}, Name: "member"})
		if err != nil || len(tree.Leaves) != width {
			t.Errorf("width %d: expand: %v (%v), want %d leaves", width, tree, err, width)
		}
	}
}

// TestDeep holds that depth is no limit of its own, and that a chain too deep
// for the budget is refused instead of overflowing the stack.
func TestDeep(t *testing.T) {
	const depth = 20_000
	var tuples []string
	for i := range depth {
		tuples = append(tuples, fmt.Sprintf("folder:f%d#parent@folder:f%d", i, i+1))
	}
	tuples = append(tuples, fmt.Sprintf("folder:f%d#viewer@person:top", depth))
	s := snapshot(t, newEnv(t, wideSchema, tuples...))
	mustCheck(t, s, "folder:f0#view@person:top", engine.Allowed)
	mustCheck(t, s, "folder:f0#view@person:other", engine.Denied)

	_, err := s.Check(context.Background(), engine.Check{
		Object: graph.Object{Type: "folder", ID: "f0"}, Name: "view",
		Subject: graph.Subject{Object: graph.Object{Type: "person", ID: "top"}},
		Budget:  engine.Budget{MemoryBytes: 1 << 20},
	})
	wantRefusal(t, fmt.Sprintf("a chain of %d folders in 1 MiB", depth), err, engine.BudgetExceeded)
}

// TestDiamonds holds that many ways to the same place cost no more than the
// places: thirty levels of two folders each have a billion ways.
func TestDiamonds(t *testing.T) {
	var tuples []string
	for i := range 30 {
		for _, from := range "ab" {
			for _, to := range "ab" {
				tuples = append(tuples, fmt.Sprintf("folder:%c%d#parent@folder:%c%d", from, i, to, i+1))
			}
		}
	}
	s := snapshot(t, newEnv(t, wideSchema, tuples...))
	answer, err := check(t, s, "folder:a0#view@person:nobody")
	if err != nil || answer.Decision != engine.Denied || answer.Steps > 1000 {
		t.Errorf("thirty diamonds: %v in %d steps (%v), want denied in under 1000", answer.Decision, answer.Steps, err)
	}
}

// TestCheckAllocates holds that a check in a steady state allocates nothing.
func TestCheckAllocates(t *testing.T) {
	s := snapshot(t, newEnv(t, wideSchema,
		"folder:a#parent@folder:b", "folder:b#viewer@group:g#member", "group:g#member@person:p"))
	q := engine.Check{
		Object: graph.Object{Type: "folder", ID: "a"}, Name: "view",
		Subject: graph.Subject{Object: graph.Object{Type: "person", ID: "p"}},
	}
	ctx := context.Background()
	if raceDetector {
		t.Skip("under the race detector a sync.Pool drops what it is given, at random")
	}
	got := testing.AllocsPerRun(200, func() {
		if answer, err := s.Check(ctx, q); err != nil || answer.Decision != engine.Allowed {
			t.Fatalf("%v (%v)", answer.Decision, err)
		}
	})
	if got > 0 {
		t.Errorf("a check allocates %v times, want 0", got)
	}
}

// TestManyGroups holds that looking up the subjects of a group of many groups
// costs what there is, not the square of it.
func TestManyGroups(t *testing.T) {
	var tuples []string
	for i := range 5000 {
		tuples = append(tuples, fmt.Sprintf("group:all#member@group:g%d#member", i))
		for j := range 3 {
			tuples = append(tuples, fmt.Sprintf("group:g%d#member@person:p%d", i, 3*i+j))
		}
	}
	s := snapshot(t, newEnv(t, wideSchema, tuples...))
	found := 0
	err := s.LookupSubjects(context.Background(), engine.LookupSubjects{
		Object: graph.Object{Type: "group", ID: "all"}, Name: "member", SubjectType: "person",
		Budget: engine.Budget{Steps: 60_000, MemoryBytes: 16 << 20},
	}, func(engine.FoundSubject) error { found++; return nil })
	if err != nil || found != 15_000 {
		t.Errorf("%d subjects (%v), want 15000", found, err)
	}
}

// TestManyResources holds that the memory of a lookup does not grow with what
// was evaluated on the way.
func TestManyResources(t *testing.T) {
	var tuples []string
	for i := range 10_000 {
		tuples = append(tuples, fmt.Sprintf("folder:f%d#viewer@person:p", i))
	}
	s := snapshot(t, newEnv(t, wideSchema, tuples...))
	found := 0
	err := s.LookupResources(context.Background(), engine.LookupResources{
		Type: "folder", Name: "view", Subject: graph.Subject{Object: graph.Object{Type: "person", ID: "p"}},
		Budget: engine.Budget{MemoryBytes: 3 << 20},
	}, func(engine.Resource) error { found++; return nil })
	if err != nil || found != 10_000 {
		t.Errorf("%d resources (%v), want 10000", found, err)
	}
}

// TestNestedSchema holds that a schema as nested as the language allows, asked
// over a long chain, meets the bound of the stack instead of overflowing it.
func TestNestedSchema(t *testing.T) {
	expression := "parent->view"
	for range 150 {
		expression = "(" + expression + strings.Repeat(" - banned", 20) + " + viewer) & (viewer + " + "parent->view" + ")"
	}
	var tuples []string
	for i := range 3000 {
		tuples = append(tuples, fmt.Sprintf("folder:f%d#parent@folder:f%d", i, i+1))
	}
	s := snapshot(t, newEnv(t, `
definition person {}
definition folder {
	relation parent: folder
	relation viewer: person
	relation banned: person
	permission view = viewer + `+expression+`
}`, tuples...))
	_, err := check(t, s, "folder:f0#view@person:nobody")
	wantRefusal(t, "deep and nested", err, engine.BudgetExceeded)
	mustCheck(t, s, "folder:f2995#view@person:nobody", engine.Denied)
}

// TestRing holds that a ring of groups is solved in about its own length.
func TestRing(t *testing.T) {
	const ring = 2000
	var tuples []string
	for i := range ring {
		tuples = append(tuples,
			fmt.Sprintf("group:g%d#member@group:g%d#member", i, (i+1)%ring),
			fmt.Sprintf("group:g%d#member@person:p%d", i, i))
	}
	s := snapshot(t, newEnv(t, wideSchema, tuples...))
	answer, err := check(t, s, "group:g0#member@person:stranger")
	if err != nil || answer.Decision != engine.Denied || answer.Steps > 40*ring {
		t.Errorf("a ring of %d groups: %v in %d steps (%v)", ring, answer.Decision, answer.Steps, err)
	}
	mustCheck(t, s, fmt.Sprintf("group:g7#member@person:p%d", 6), engine.Allowed)

	tuples = tuples[:200]
	tuples = append(tuples, "group:g99#member@group:g0#member")
	s = snapshot(t, newEnv(t, wideSchema, tuples...))
	found := 0
	err = s.LookupSubjects(context.Background(), engine.LookupSubjects{
		Object: graph.Object{Type: "group", ID: "g0"}, Name: "member", SubjectType: "person",
	}, func(engine.FoundSubject) error { found++; return nil })
	if err != nil || found != 100 {
		t.Errorf("the subjects of a ring of 100 groups: %d (%v), want 100", found, err)
	}
}

// TestApplyNeverFails holds that what is merely wrong is refused by Apply, and
// never a fault, which would stop every node.
func TestApplyNeverFails(t *testing.T) {
	e := newEnv(t, wideSchema)
	long := strings.Repeat("x", 200)
	for _, text := range []string{
		`definition "can.read" {}`, `definition "` + long + `" {}`, `definition "straße" {}`,
		`definition person {} definition d { relation "` + long + `": person }`,
		`definition person {} definition d { relation "a/b": person }`,
		`definition person {} definition d { permission "a.b" = nil }`,
		`caveat "` + long + `"(a int) { a > 1 } definition person {}`,
	} {
		want := engine.SchemaType
		if strings.Contains(text, long) {
			want = engine.SchemaSyntax
		}
		wantRefusal(t, text, e.Schema(text), want)
	}
	tuple := graph.Tuple{
		Object: graph.Object{Type: "group", ID: "g"}, Relation: "member",
		Subject: graph.Subject{Object: graph.Object{Type: "person", ID: "p"}},
	}
	later, sourced, badID, badContext := tuple, tuple, tuple, tuple
	later.ValidFrom = e.Now + 1
	sourced.Sources = []string{"hr"}
	badID.Object.ID = "a\x00b"
	badContext.Context = []byte("{")
	for _, bad := range []graph.Tuple{later, sourced, badID, badContext, {}} {
		_, err := e.Write(&graph.Mutation{Updates: []graph.Update{{Operation: graph.Touch, Tuple: bad}}})
		wantRefusal(t, fmt.Sprintf("%+v", bad), err, engine.Malformed)
	}
	for _, m := range []*graph.Mutation{
		{Updates: []graph.Update{{Operation: 9, Tuple: tuple}}},
		{Delete: &graph.DeleteMatching{Limit: 0}},
		{Delete: &graph.DeleteMatching{Limit: 1, Filter: graph.Filter{ObjectID: "a", ObjectIDPrefix: "b"}}},
		{Collect: &graph.Collect{}},
	} {
		_, err := e.Write(m)
		wantRefusal(t, fmt.Sprintf("%+v", m), err, engine.Malformed)
	}
	for _, m := range []*graph.Mutation{{}, {Store: 0, Schema: &graph.WriteSchema{}}, {Init: &graph.Init{}}} {
		if result, err := e.Apply(m); err != nil || result.Refusal == nil {
			t.Errorf("%+v: %v, %v; want a refusal", m, result, err)
		}
	}
	mustCheck(t, snapshot(t, e), "group:g#member@person:p", engine.Denied)

	_, err := e.Engine.Snapshot(graph.DefaultStore, 0, e.Now, graph.Overlay{Added: []graph.Tuple{tuple, tuple}})
	wantRefusal(t, "an overlay with a tuple twice", err, engine.Malformed)
}

// TestChainOfSets holds that the sets which a lookup gathers on its way back up
// a long chain meet the budget and the caller's patience.
func TestChainOfSets(t *testing.T) {
	var tuples []string
	for i := range 5000 {
		tuples = append(tuples, fmt.Sprintf("group:g%d#member@group:g%d#member", i, i+1))
	}
	s := snapshot(t, newEnv(t, wideSchema, tuples...))
	q := engine.LookupSubjects{
		Object: graph.Object{Type: "group", ID: "g0"}, Name: "member", SubjectType: "group", SubjectRelation: "member",
		Budget: engine.Budget{MemoryBytes: 64 << 20},
	}
	err := s.LookupSubjects(context.Background(), q, func(engine.FoundSubject) error { return nil })
	wantRefusal(t, "a set at every level", err, engine.BudgetExceeded)

	ctx, cancel := context.WithDeadline(context.Background(), time.Now())
	defer cancel()
	q.Budget = engine.Budget{MemoryBytes: 8 << 30}
	err = s.LookupSubjects(ctx, q, func(engine.FoundSubject) error { return nil })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a caller whose time is up: %v, want %v", err, context.DeadlineExceeded)
	}
}

// bannedSchema takes something away, and those from whom it was taken are remembered one by
// one: questions about many of them are large.
const bannedSchema = `
definition person {}
definition group {
	relation member: person
	relation banned: person
	permission left = member - banned
}`

// TestQuestionsShareMemory holds that many large questions at once are bounded
// together, and that each gives back what it took.
func TestQuestionsShareMemory(t *testing.T) {
	e, err := enginetest.New(engine.Config{QuestionsMemoryBytes: 6 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := e.Schema(bannedSchema); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		var tuples []string
		for j := range 1000 {
			tuples = append(tuples, fmt.Sprintf("group:g#%s@person:p%d", [...]string{"member", "banned"}[j%2], 500*i+(j+1)/2))
		}
		if err := e.Touch(tuples...); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(inside func() error) error {
		s, err := e.Snapshot()
		if err != nil {
			return err
		}
		defer s.Close()
		return s.LookupSubjects(context.Background(), engine.LookupSubjects{
			Object: graph.Object{Type: "group", ID: "g"}, Name: "left", SubjectType: "person", Limit: 1,
		}, func(engine.FoundSubject) error { return inside() })
	}
	for range 10 {
		err := ask(func() error {
			err := ask(func() error { return nil })
			wantRefusal(t, "a second large question", err, engine.BudgetExceeded)
			var refusal *engine.Refusal
			if !errors.As(err, &refusal) || refusal.Metadata[engine.SharedMemoryBytes] != fmt.Sprint(6<<20) {
				t.Errorf("a second large question is not told from one that is too large: %v", err)
			}
			return nil
		})
		if err != nil {
			t.Fatalf("the first large question: %v", err)
		}
	}
}

// A question that needs more than all have together is not told to ask again.
func TestQuestionAlone(t *testing.T) {
	e, err := enginetest.New(engine.Config{QuestionsMemoryBytes: 2 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := e.Schema(bannedSchema); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		var tuples []string
		for j := range 1000 {
			tuples = append(tuples, fmt.Sprintf("group:g#%s@person:p%d", [...]string{"member", "banned"}[j%2], 500*i+(j+1)/2))
		}
		if err := e.Touch(tuples...); err != nil {
			t.Fatal(err)
		}
	}
	s, err := e.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	err = s.LookupSubjects(context.Background(), engine.LookupSubjects{
		Object: graph.Object{Type: "group", ID: "g"}, Name: "left", SubjectType: "person", Limit: 1,
	}, func(engine.FoundSubject) error { return nil })
	wantRefusal(t, "a question alone", err, engine.BudgetExceeded)
	var refusal *engine.Refusal
	if !errors.As(err, &refusal) || refusal.Metadata[engine.SharedMemoryBytes] != "" || strings.Contains(refusal.Message, "ask again") {
		t.Errorf("got %v", err)
	}
}

// TestTraceBudget holds that a trace and a tree count for the budget, with the
// contexts in them.
func TestTraceBudget(t *testing.T) {
	big := strings.Repeat("x", 20_000)
	var tuples []string
	for i := range 200 {
		tuples = append(tuples, fmt.Sprintf(`doc:d#viewer@group:g%d#member[c:{"a":"%s"}]`, i, big))
	}
	var s *engine.Snapshot
	e := newEnv(t, `
caveat c(a string, k int) { a != "" && k > 1 }
definition person {}
definition group { relation member: person }
definition doc { relation viewer: group#member with c }`)
	for _, tuple := range tuples {
		if err := e.Touch(tuple); err != nil {
			t.Fatal(err)
		}
	}
	s = snapshot(t, e)
	budget := engine.Budget{MemoryBytes: 1 << 20}
	doc := graph.Object{Type: "doc", ID: "d"}
	_, err := s.Check(context.Background(), engine.Check{
		Object: doc, Name: "viewer", Subject: graph.Subject{Object: graph.Object{Type: "person", ID: "p"}},
		Trace: true, Budget: budget,
	})
	wantRefusal(t, "trace", err, engine.BudgetExceeded)
	_, err = s.Expand(context.Background(), engine.Expand{Object: doc, Name: "viewer", Budget: budget})
	wantRefusal(t, "expand", err, engine.BudgetExceeded)
}

// TestMissingNamesAreCounted holds that the names of what is missing count for the
// memory of a tree or a trace wherever they stand: at tuples, at the nodes above one
// tuple, and at caveats whose tuples lead nowhere. The same question with nothing
// missing, and without a trace, fits the same budget.
func TestMissingNamesAreCounted(t *testing.T) {
	var parameters, terms []string
	for i := range 100 {
		name := fmt.Sprintf("p%03d_%s", i, strings.Repeat("x", 100))
		parameters, terms = append(parameters, name+" bool"), append(terms, name)
	}
	text := "caveat c(" + strings.Join(parameters, ", ") + ") { " + strings.Join(terms, " && ") + ` }
definition person {}
definition group { relation member: person with c | group#member }
definition doc { relation viewer: person with c | group#member | group#member with c }`
	budget := engine.Budget{MemoryBytes: 3 << 20}
	for what, x := range map[string]struct {
		once   string
		each   []string // with the number of a group
		expand bool
	}{
		"tuples": {each: []string{
			"doc:d#viewer@person:p%[1]d[c]", "doc:d#viewer@group:g%[1]d#member", "group:g%[1]d#member@person:p[c]",
		}, expand: true},
		// The caveat stands in the trace once, and its names at all that leads there.
		"the nodes above a tuple": {once: "group:all#member@person:p[c]", each: []string{
			"doc:d#viewer@group:g%[1]d#member", "group:g%[1]d#member@group:all#member",
		}},
		// The groups deny, so nothing but the caveats of the tuples is undecided.
		"caveats": {each: []string{"doc:d#viewer@group:g%[1]d#member[c]"}},
	} {
		e := newEnv(t, text)
		var tuples []string
		if x.once != "" {
			tuples = append(tuples, x.once)
		}
		for i := range 100 {
			for _, tuple := range x.each {
				tuples = append(tuples, fmt.Sprintf(tuple, i))
			}
		}
		if err := e.Touch(tuples...); err != nil {
			t.Fatal(err)
		}
		s := snapshot(t, e)
		doc := graph.Object{Type: "doc", ID: "d"}
		if x.expand { // It has the tuples of the document alone, so it takes less.
			tree := engine.Expand{Object: doc, Name: "viewer", Budget: engine.Budget{MemoryBytes: 2 << 20}}
			_, err := s.Expand(context.Background(), tree)
			wantRefusal(t, "expand of "+what, err, engine.BudgetExceeded)
			tree.Context = schema.Context{terms[0]: false}
			if _, err := s.Expand(context.Background(), tree); err != nil {
				t.Errorf("expand of %s with nothing missing: %v", what, err)
			}
		}
		ask := engine.Check{Object: doc, Name: "viewer", Subject: graph.Subject{Object: graph.Object{Type: "person", ID: "p"}}, Budget: budget}
		if _, err := s.Check(context.Background(), ask); err != nil {
			t.Errorf("%s without a trace: %v", what, err)
		}
		ask.Trace = true
		_, err := s.Check(context.Background(), ask)
		wantRefusal(t, "trace of "+what, err, engine.BudgetExceeded)
		ask.Context = schema.Context{terms[0]: false}
		if answer, err := s.Check(context.Background(), ask); err != nil || answer.Decision != engine.Denied {
			t.Errorf("trace of %s with nothing missing: %v, %v", what, answer.Decision, err)
		}
	}
}

func wantRefusal(t *testing.T, what string, err error, want engine.Reason) {
	t.Helper()
	var refusal *engine.Refusal
	if !errors.As(err, &refusal) || refusal.Reason != want {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// TestFailingCaveat holds that a caveat that cannot be evaluated is an error
// where the answer hangs on it, and only there: not behind another branch that
// allows, and not for a denial that comes from a cycle.
func TestFailingCaveat(t *testing.T) {
	s := snapshot(t, newEnv(t, `
caveat divides(n int) { 1 / n == 1 }
definition person {}
definition group {
	relation member: person | person with divides | group#left
	relation banned: group#left
	permission left = member - banned
}`,
		`group:bad#member@person:p[divides:{"n":0}]`,
		`group:good#member@person:p`, `group:good#member@group:bad#left`,
		`group:x#member@person:p`, `group:x#banned@group:x#left`,
		`group:both#member@group:bad#left`, `group:both#member@group:x#left`))
	_, err := check(t, s, "group:bad#left@person:p")
	wantRefusal(t, "the caveat alone", err, engine.CaveatFailed)
	_, err = check(t, s, "group:both#left@person:p")
	wantRefusal(t, "the caveat beside a cycle", err, engine.CaveatFailed)
	tree, err := s.Expand(context.Background(), engine.Expand{Object: graph.Object{Type: "group", ID: "bad"}, Name: "member"})
	if err != nil || len(tree.Verdicts) != 1 || tree.Verdicts[0].Decision != 0 || !strings.Contains(tree.Verdicts[0].Failure, "division by zero") {
		t.Errorf("expand of the caveat: %v (%v), want a leaf that says why it failed", tree, err)
	}
	mustCheck(t, s, "group:good#left@person:p", engine.Allowed)
	mustCheck(t, s, "group:bad#left@person:q", engine.Denied)
	mustCheck(t, s, "group:x#left@person:p", engine.Denied)
	var found []string
	err = s.LookupSubjects(context.Background(), engine.LookupSubjects{
		Object: graph.Object{Type: "group", ID: "x"}, Name: "left", SubjectType: "person",
	}, func(f engine.FoundSubject) error { found = append(found, f.Subject.ID); return nil })
	if err != nil || len(found) > 0 {
		t.Errorf("lookup of what a cycle leaves undefined: %v (%v), want nobody", found, err)
	}
}

// TestCancelled holds that a question ends with its caller's context.
func TestCancelled(t *testing.T) {
	var tuples []string
	for i := range 2000 {
		tuples = append(tuples, fmt.Sprintf("group:all#member@group:g%d#member", i))
	}
	s := snapshot(t, newEnv(t, wideSchema, tuples...))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := s.Check(ctx, engine.Check{
		Object: graph.Object{Type: "group", ID: "all"}, Name: "member",
		Subject: graph.Subject{Object: graph.Object{Type: "person", ID: "p"}},
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a check without a caller: %v, want %v", err, context.Canceled)
	}
}

func BenchmarkCheck(b *testing.B) {
	var tuples []string
	for i := range 6 {
		tuples = append(tuples, fmt.Sprintf("folder:f%d#parent@folder:f%d", i, i+1))
	}
	tuples = append(tuples, "folder:f0#viewer@person:direct", "folder:f6#viewer@group:g0#member")
	for i := range 4 {
		tuples = append(tuples, fmt.Sprintf("group:g%d#member@group:g%d#member", i, i+1))
	}
	tuples = append(tuples, "group:g4#member@person:nested")
	s := snapshot(b, newEnv(b, wideSchema, tuples...))
	for _, who := range []string{"direct", "nested", "nobody"} {
		q := engine.Check{
			Object: graph.Object{Type: "folder", ID: "f0"}, Name: "view",
			Subject: graph.Subject{Object: graph.Object{Type: "person", ID: who}},
		}
		b.Run(who, func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				if _, err := s.Check(context.Background(), q); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkApply applies mutations of one tuple and of a hundred, and of one tuple
// with an id of the request.
func BenchmarkApply(b *testing.B) {
	for _, bench := range []struct {
		name string
		size int
		id   bool
	}{{"1", 1, false}, {"1/request", 1, true}, {"100", 100, false}} {
		b.Run(bench.name, func(b *testing.B) {
			e := newEnv(b, wideSchema)
			next := 0
			b.ReportAllocs()
			for range b.N {
				m := &graph.Mutation{}
				if bench.id {
					m.RequestID = binary.BigEndian.AppendUint64(nil, uint64(next)*0x9e3779b97f4a7c15)
					e.Now += graph.RequestLifetime / 100_000
				}
				for range bench.size {
					next++
					m.Updates = append(m.Updates, graph.Update{Operation: graph.Touch, Tuple: graph.Tuple{
						Object: graph.Object{Type: "folder", ID: fmt.Sprint("f", next)}, Relation: "viewer",
						Subject: graph.Subject{Object: graph.Object{Type: "person", ID: fmt.Sprint("p", next%1000)}},
					}})
				}
				if _, err := e.Write(m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
