package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

// TestRunClusters runs the smallest workloads of several nodes with real processes: a
// leader is killed and a fresh node joins, and the table and the JSON lines tell of it.
func TestRunClusters(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts a dozen processes and kills some")
	}
	lines := filepath.Join(t.TempDir(), "figures.jsonl")
	var table bytes.Buffer
	args := []string{
		"--cluster", "--rounds", "2", "--seconds", "0.05", "--kills", "1", "--tuples", "3000",
		"--run", "idle|cluster/write/callers=16$|newest|linearizable/callers=16$|after-write/callers=1$|failover|catchup",
		"--json", lines, "--dir", t.TempDir(), "--profile", t.TempDir(),
	}
	if err := drive(args, &table); err != nil {
		t.Fatalf("%v\n%s", err, &table)
	}
	text, err := os.ReadFile(lines)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]measure{}
	for line := range bytes.Lines(text) {
		var m measure
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if m.Min > m.Median || m.Median > m.Max {
			t.Errorf("a line is wrong: %s", line)
		}
		found[m.Workload+" "+m.Measure] = m
	}
	// What is there is above zero, but for what may not be.
	for _, name := range []string{
		"cluster/write/callers=16/alone calls", "cluster/write/callers=16/port p99", "cluster/write/callers=16/leader entries/sync",
		"cluster/write/callers=16/follower between nodes", "cluster/check/newest/callers=48/alone p50",
		"cluster/check/newest/callers=48/nodes=3 calls", "cluster/check/linearizable/callers=16/newest calls",
		"cluster/check/linearizable/callers=16/leader readers/round", "cluster/check/linearizable/callers=16/follower p50",
		"cluster/check/after-write/callers=1/newest p50", "cluster/check/after-write/callers=1/at-least p50",
		"cluster/check/after-write/callers=1/at-least/forwarded p50", "cluster/idle three, sent by a node",
		"cluster/failover writes again, through both", "cluster/failover the killed node answers again",
		"cluster/failover checks through the others", "cluster/failover acknowledged writes",
		"cluster/catchup/3k member", "cluster/catchup/3k answers", "cluster/catchup/3k voter", "cluster/catchup/3k sent",
		"cluster/catchup/3k checks during/before, p99",
	} {
		m, ok := found[name]
		if !ok || m.Median <= 0 {
			t.Errorf("the JSON lines have for %q: %+v", name, m)
		}
		if part, _, _ := strings.Cut(name, " "); !strings.Contains(table.String(), part) && !strings.HasPrefix(name, "cluster/idle") {
			t.Errorf("the table does not show %q:\n%s", part, &table)
		}
	}
	for _, name := range []string{"cluster/failover of these failed", "cluster/failover of these lost"} {
		if m, ok := found[name]; !ok || m.Max != 0 {
			t.Errorf("the JSON lines have for %q: %+v", name, m)
		}
	}
	if m := found["cluster/write/callers=16/leader calls"]; m.Rounds != 2 || m.Base == nil || m.Base.Median <= 0 || m.Ratio == nil || m.Echo != nil || m.Parameters["nodes"] != 3.0 {
		t.Errorf("a line is wrong: %+v", m)
	}
	for _, want := range []string{"p50/base", "follower waits 400ms to 800ms", "the leader of 3 nodes killed 1 times"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table does not show %q:\n%s", want, &table)
		}
	}
}

// TestClusterList holds that the names of what is measured of several nodes are listed,
// and that --run that selects none of them is refused.
func TestClusterList(t *testing.T) {
	var names bytes.Buffer
	if err := drive([]string{"--cluster", "--list", "--quick"}, &names); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"cluster/idle\n", "cluster/write/callers=64\n", "cluster/check/linearizable/callers=1\n", "cluster/failover\n", "cluster/catchup/1m\n"} {
		if !strings.Contains(names.String(), want) {
			t.Errorf("the names lack %q:\n%s", want, &names)
		}
	}
	if err := drive([]string{"--cluster", "--run", "^business"}, t.Output()); err == nil || !strings.Contains(err.Error(), "selects nothing") {
		t.Errorf("a run of nothing gives: %v", err)
	}
}

// TestClusterFlags holds that settings that a node would refuse are refused before
// there is one.
func TestClusterFlags(t *testing.T) {
	for _, args := range [][]string{
		{"--kills", "-1"},
		{"--tuples", "5"},
		{"--away", "-1s"},
		{"--election-timeout", "1ms"},
		{"--commit-pause", "1us"},
		{"--state-rate", "0"},
	} {
		if err := drive(append([]string{"--cluster"}, args...), t.Output()); err == nil || !strings.Contains(err.Error(), args[0]) {
			t.Errorf("%v gives: %v", args, err)
		}
	}
}

// TestFirstAfter holds that the end of an outage is that of the first write that began
// in it: one that was under way before may have been acknowledged by who was killed.
func TestFirstAfter(t *testing.T) {
	at := time.Now()
	event := func(begun, ended time.Duration) loadEvent { return loadEvent{at.Add(begun), at.Add(ended)} }
	s := &memberLoad{events: []loadEvent{event(-2*time.Second, -time.Second), event(-time.Second, time.Second)}}
	if got := s.firstAfter(at); got != 0 {
		t.Errorf("no write began after the moment, and the first took %v", got)
	}
	s.events = append(s.events, event(time.Second, 3*time.Second), event(time.Second, 2*time.Second))
	if got := s.firstAfter(at); got != 2*time.Second {
		t.Errorf("the first write after the moment ended after %v; want 2s", got)
	}
}

// TestFailoverVerdict holds that a check that failed and a write that was lost fail the
// run.
func TestFailoverVerdict(t *testing.T) {
	if err := (&failoverSum{}).verdict(); err != nil {
		t.Errorf("where nothing is wrong the verdict is: %v", err)
	}
	reason := errors.New("why it failed")
	failed := &failoverSum{failed: 1, reason: reason, lost: 2, written: make([]*pembav1.Tuple, 3)}
	err := failed.verdict()
	if !errors.Is(err, reason) || !strings.Contains(err.Error(), "2 of 3 acknowledged writes were lost") {
		t.Errorf("where something is wrong the verdict is: %v", err)
	}
}
