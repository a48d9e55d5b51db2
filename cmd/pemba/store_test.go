package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/pembadb/pemba/graph"
)

// TestStoreGetShowsCounters: one store is shown with the names of its relationship
// counters; a list of stores is one row for each.
func TestStoreGetShowsCounters(t *testing.T) {
	r := testStart(t)
	names := []string{"anne", "viewers"}
	for _, name := range names {
		change := &graph.CounterChange{Operation: graph.RegisterCounter, Name: name}
		result, err := r.node.Write(t.Context(), &graph.Mutation{Store: graph.DefaultStore, CounterChange: change})
		if err != nil || result.Refusal != nil {
			t.Fatalf("register %s: %v, %v", name, err, result.Refusal)
		}
	}
	out, errs, code := pemba("", "store", "get", "default", "-o", "json")
	var shown storeJSON
	if err := json.Unmarshal([]byte(out), &shown); err != nil || code != 0 || shown.Name != "default" || !slices.Equal(shown.Counters, names) {
		t.Errorf("exit %d, %v: %s%s", code, err, out, errs)
	}
	out, errs, code = pemba("", "store", "get", "default")
	if lines := strings.Split(out, "\n"); code != 0 || len(lines) != 4 || lines[1] != "counter  anne" || lines[2] != "counter  viewers" {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	out, errs, code = pemba("", "store", "list")
	if code != 0 || strings.Count(out, "\n") != 1 {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
}
