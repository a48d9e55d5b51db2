package engine_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

const costlySchema = `
caveat member_of(allowed list<string>, given list<string>) { allowed.exists(a, given.exists(b, a == b)) }
definition person {}
definition document {
	relation viewer: person | person with member_of
	relation banned: person with member_of
	permission view = viewer - banned
}`

// groupNames returns n names of groups, as values of a context.
func groupNames(prefix string, n int) []any {
	names := make([]any, n)
	for i := range names {
		names[i] = fmt.Sprintf("%s-%04d", prefix, i)
	}
	return names
}

// memberOf returns the text of a tuple whose caveat names the groups.
func memberOf(t *testing.T, edge string, allowed []any) string {
	t.Helper()
	text, err := json.Marshal(schema.Context{"allowed": allowed})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s[member_of:%s]", edge, text)
}

// viewable looks up the documents that anne views, and appends "?" to those that
// are conditional.
func viewable(s *engine.Snapshot, given schema.Context, budget engine.Budget) ([]string, error) {
	var found []string
	err := s.LookupResources(context.Background(), engine.LookupResources{
		Type: "document", Name: "view", Subject: graph.Subject{Object: graph.Object{Type: "person", ID: "anne"}},
		Context: given, Budget: budget,
	}, func(r engine.Resource) error {
		id := r.Object.ID
		if r.Decision == engine.Conditional {
			id += "?"
		}
		found = append(found, id)
		return nil
	})
	slices.Sort(found)
	return found, err
}

// TestLargeStoredContext holds that a tuple with a context of many kilobytes, over
// which an expression loops within a loop, is judged like any other: with the
// parameters that it lacks, without them, and in a lookup beside others.
func TestLargeStoredContext(t *testing.T) {
	e := newEnv(t, costlySchema,
		"document:open#viewer@person:anne",
		memberOf(t, "document:some#viewer@person:anne", groupNames("group", 600)),
		memberOf(t, "document:many#viewer@person:anne", groupNames("group", 2_000)),
	)
	s := snapshot(t, e)
	member, stranger := schema.Context{"given": []any{"team", "group-0599"}}, schema.Context{"given": groupNames("team", 100)}
	for _, test := range []struct {
		context schema.Context
		want    engine.Decision
		found   string
	}{
		{nil, engine.Conditional, "many? open some?"},
		{member, engine.Allowed, "many open some"},
		{stranger, engine.Denied, "open"},
	} {
		for _, id := range []string{"some", "many"} {
			answer, err := s.Check(context.Background(), engine.Check{
				Object: graph.Object{Type: "document", ID: id}, Name: "view",
				Subject: graph.Subject{Object: graph.Object{Type: "person", ID: "anne"}}, Context: test.context,
			})
			if err != nil || answer.Decision != test.want {
				t.Errorf("document:%s is %v with %d values given: %v", id, answer.Verdict, len(test.context), err)
			}
			if test.want == engine.Conditional && !slices.Equal(answer.Missing, []string{"given"}) {
				t.Errorf("document:%s misses %v", id, answer.Missing)
			}
		}
		found, err := viewable(s, test.context, engine.Budget{})
		if err != nil || strings.Join(found, " ") != test.found {
			t.Errorf("found %v, want %s: %v", found, test.found, err)
		}
	}
}

// TestCostlyCaveat holds that a caveat which is given up is an error that says what
// to do, in a lookup as in a check, and that its cost counts for the question.
func TestCostlyCaveat(t *testing.T) {
	e := newEnv(t, costlySchema,
		"document:open#viewer@person:anne",
		memberOf(t, "document:many#viewer@person:anne", groupNames("group", 2_000)),
	)
	s := snapshot(t, e)
	given := schema.Context{"given": groupNames("team", 2_000)}
	_, err := viewable(s, given, engine.Budget{})
	var refusal *engine.Refusal
	if !errors.As(err, &refusal) || refusal.Reason != engine.CaveatFailed || !strings.Contains(refusal.Message, "give smaller values, or simplify the expression") {
		t.Errorf("the error is %v", err)
	}
	if _, err = viewable(s, given, engine.Budget{Steps: 1_000}); !errors.As(err, &refusal) || refusal.Reason != engine.BudgetExceeded {
		t.Errorf("with a budget of 1,000 steps the error is %v", err)
	}
	// Without the tuple's caveat in the way, the rest is found.
	if found, err := viewable(s, schema.Context{"given": []any{"group-0001"}}, engine.Budget{}); err != nil || len(found) != 2 {
		t.Errorf("found %v: %v", found, err)
	}
}
