package engine_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// TestTrySchema tries schemas and then writes them: a trial must foretell what
// becomes of the write, and change nothing.
func TestTrySchema(t *testing.T) {
	const first = `use expiration
caveat late(hour int) { hour > 22 }
definition user {}
definition group { relation member: user }
definition doc {
	relation owner: user
	relation viewer: user | group#member | user with late | user with expiration
	permission view = viewer + owner
}`
	tuples := []string{
		"doc:a#owner@user:anne", "doc:a#viewer@group:eng#member", "doc:b#viewer@group:eng#member", "doc:a#viewer@user:bob[late]",
		"doc:a#viewer@user:eve[expiration:2100-01-01T00:00:00Z]",
		"doc:a#viewer@user:old[expiration:2000-01-01T00:00:00Z]",
	}
	for _, test := range []struct {
		name, old, new string
		misfits        int
		reason         engine.Reason // zero when it is accepted
		affected       string
	}{
		{"the same", "", "", 0, 0, ""},
		{"more is allowed", "owner: user", "owner: user | group#member", 0, 0, "doc#view"},
		{"a form is allowed no more", " | group#member", "", 1, engine.SchemaData, "doc#view"},
		{"two are", " | group#member | user with late", "", 2, engine.SchemaData, "doc#view"},
		{"what has expired is in nobody's way", " | user with expiration", "", 1, engine.SchemaData, "doc#view"},
		{"a relation is gone", "relation owner: user", "permission owner = viewer", 1, engine.SchemaData, "doc#view"},
		{"a caveat's parameter", "late(hour int) { hour > 22 }", "late(hour double) { hour > 22.0 }", 1, engine.SchemaData, "doc#view"},
		{"it does not parse", "definition user {}", "definition user {", 0, engine.SchemaSyntax, ""},
		{"it does not hold together", "viewer + owner", "viewer + onwer", 0, engine.SchemaType, ""},
	} {
		e := newEnv(t, first, tuples...)
		text := strings.Replace(first, test.old, test.new, 1)
		if test.old != "" && text == first {
			t.Fatalf("%s: nothing was replaced", test.name)
		}
		s := snapshot(t, e)
		revision := e.Engine.DB().Applied().Revision
		trial, err := s.TrySchema(context.Background(), text)
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		if got := e.Engine.DB().Applied().Revision; got != revision {
			t.Errorf("%s: the trial moved the revision from %d to %d", test.name, revision, got)
		}
		var affected []string
		for _, a := range trial.Affected {
			affected = append(affected, a.Definition+"#"+a.Permission)
		}
		if len(trial.Misfits) != test.misfits || strings.Join(affected, " ") != test.affected {
			t.Errorf("%s: misfits %v, affected %v", test.name, trial.Misfits, affected)
		}
		stored := uint64(0)
		for _, k := range trial.Stored {
			stored += k.Count
		}
		if want := uint64(len(tuples) - 1); stored != want {
			t.Errorf("%s: %d tuples are stored, expected %d that live", test.name, stored, want)
		}
		result, err := e.Apply(&graph.Mutation{Store: graph.DefaultStore, Schema: &graph.WriteSchema{Text: text}})
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case result.Refusal == nil:
			if test.reason != 0 || trial.Refusal != nil || len(trial.Misfits) > 0 {
				t.Errorf("%s: it is accepted, and the trial said %v, %v", test.name, trial.Refusal, trial.Misfits)
			}
		case result.Refusal.Reason != test.reason:
			t.Errorf("%s: %v, expected %v", test.name, result.Refusal.Reason, test.reason)
		case test.reason != engine.SchemaData:
			if trial.Refusal == nil || trial.Refusal.Error() != result.Refusal.Error() {
				t.Errorf("%s: the trial said %v, and it is %v", test.name, trial.Refusal, result.Refusal)
			}
		default:
			m, misfits := trial.Misfits[0], uint64(0)
			for _, m := range trial.Misfits {
				misfits += m.Count
			}
			if trial.Refusal != nil || !strings.Contains(result.Refusal.Message, m.Why) || !strings.Contains(result.Refusal.Message, m.Sample) ||
				result.Refusal.Metadata["count"] != fmt.Sprint(misfits) || !strings.HasPrefix(result.Refusal.Message, fmt.Sprint(misfits, " stored ")) {
				t.Errorf("%s: the trial said %v, and it is %v", test.name, m, result.Refusal)
			}
		}
	}
}
