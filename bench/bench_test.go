package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

// TestMain makes the test binary a server where the driver starts it as one.
func TestMain(m *testing.M) {
	if spec := os.Getenv(serveVariable); spec != "" {
		if err := serve(spec, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// TestRun runs the smallest workloads with real servers: the table and the JSON
// lines must show calls of both.
func TestRun(t *testing.T) {
	lines := filepath.Join(t.TempDir(), "figures.jsonl")
	var table bytes.Buffer
	args := []string{
		"--run", "^business/10k/check/view/(hot|cold)/callers=16$", "--rounds", "2", "--seconds", "0.05",
		"--json", lines, "--dir", t.TempDir(), "--profile", t.TempDir(),
	}
	if err := drive(args, &table); err != nil {
		t.Fatalf("%v\n%s", err, &table)
	}
	for _, want := range []string{
		"business/10k/load by writes: 9996 tuples", "hot/callers=16", "cold/callers=16", "p50/echo", "resident after questions",
	} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table does not show %q:\n%s", want, &table)
		}
	}
	file, err := os.Open(lines)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := file.Close(); err != nil {
			t.Error(err)
		}
	}()
	found := 0
	for scanner := bufio.NewScanner(file); scanner.Scan(); {
		var m measure
		if err := json.Unmarshal(scanner.Bytes(), &m); err != nil {
			t.Fatalf("%v: %s", err, scanner.Bytes())
		}
		if m.Measure != measureCalls {
			continue
		}
		found++
		if m.Median <= 0 || m.Rounds != 2 || m.Echo == nil || m.Echo.Median <= 0 || m.Ratio == nil || m.Unit != "1/s" ||
			m.Parameters["callers"] != 16.0 || m.Min > m.Median || m.Median > m.Max {
			t.Errorf("a line is wrong: %s", scanner.Bytes())
		}
	}
	if found != 2 {
		t.Errorf("the JSON lines have the calls of %d workloads; want 2", found)
	}
}

// TestPruning holds that a workload with pruning has figures of the checks with and
// without it, and that in each of its rounds something was removed beside.
func TestPruning(t *testing.T) {
	echo, err := launch(serveSpec{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := echo.stop(); err != nil {
			t.Error(err)
		}
	}()
	// A busy machine may not come to it within a slice so short.
	for _, seconds := range []string{"0.02", "0.1", "0.5"} {
		found := prunedBeside(t, echo, seconds)
		for _, name := range []string{measureMedian, measureSlow, measureSlowest} {
			m := found[name]
			if m.Median <= 0 || m.Without == nil || m.Without.Median <= 0 || m.Slowdown == nil || m.Slowdown.Min > m.Slowdown.Median {
				t.Errorf("the measure %s is wrong: %+v", name, m)
			}
		}
		m := found[measurePruned]
		if m.Rounds != 2 || m.Without != nil || m.Min > m.Median {
			t.Errorf("the measure %s is wrong: %+v", measurePruned, m)
		}
		if m.Min > 0 {
			return
		}
		t.Logf("nothing was removed within %s s", seconds)
	}
	t.Error("the node removes nothing of what is pruned")
}

// prunedBeside runs a workload with pruning in two rounds and returns its measures
// by their names.
func prunedBeside(t *testing.T, echo *server, seconds string) map[string]measure {
	t.Helper()
	var table, lines bytes.Buffer
	c, err := parse([]string{"--rounds", "2", "--seconds", seconds, "--dir", t.TempDir()}, &table)
	if err != nil {
		t.Fatal(err)
	}
	d := &driver{config: c, echo: echo, report: &report{table: &table, lines: bufio.NewWriter(&lines)}}
	w := workload{
		source: source{model: "business", size: 2000}, kind: check, ask: "view", callers: 2, questions: hotQuestions, pruning: true,
	}
	if err := d.runGroup(t.Context(), []workload{w}); err != nil {
		t.Fatalf("%v\n%s", err, &table)
	}
	for _, want := range []string{"hot/pruning/callers=2", "the same without pruning", "with/without: p50 ", " p95 ", " p99 ", "pruned: "} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table does not show %q:\n%s", want, &table)
		}
	}
	if err := d.report.lines.Flush(); err != nil {
		t.Fatal(err)
	}
	found := map[string]measure{}
	for scanner := bufio.NewScanner(&lines); scanner.Scan(); {
		var m measure
		if err := json.Unmarshal(scanner.Bytes(), &m); err != nil {
			t.Fatalf("%v: %s", err, scanner.Bytes())
		}
		if m.Workload == w.name() {
			found[m.Measure] = m
		}
	}
	return found
}

// TestRemoval holds that removing a past is a matter of as many steps as the
// figure of what was pruned takes it to be, and that without a past there is
// nothing to prune.
func TestRemoval(t *testing.T) {
	const tuples = 8_000
	d := &driver{config: &config{rounds: 1}}
	made := &target{data: models["business"].generate(2000, 1)}
	var err error
	if made.server, err = launch(serveSpec{Dir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := made.end(); err != nil {
			t.Error(err)
		}
	}()
	ctx := t.Context()
	if _, err := made.schemas.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Schema: businessSchema}); err != nil {
		t.Fatal(err)
	}
	p, err := d.nextPast(ctx, made, tuples)
	if err != nil {
		t.Fatal(err)
	}
	if p.tuples != tuples {
		t.Errorf("the past has %d tuples; want %d", p.tuples, tuples)
	}
	if err := made.prune(ctx, p); err != nil {
		t.Fatal(err)
	}
	rest, err := made.tell(order{Do: removeRest})
	if err != nil {
		t.Fatal(err)
	}
	// The node has removed some of it already; how much is a matter of time. Each
	// write of importBatch tuples has a header in the log as well.
	most := 2 * (tuples + tuples/importBatch)
	if rest.Left > most {
		t.Errorf("%d records were left; the whole past should have at most %d", rest.Left, most)
	}
	if rest, err = made.tell(order{Do: removeRest}); err != nil || rest.Left != 0 {
		t.Errorf("when all is removed there are %d records left, error %v", rest.Left, err)
	}
	if err := made.prune(ctx, p); err == nil || !strings.Contains(err.Error(), "nothing was pruned") {
		t.Errorf("pruning nothing gives: %v", err)
	}
	store, err := made.stores.GetStore(ctx, &pembav1.GetStoreRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if kept := store.GetStore().GetSettings().GetHistory().GetDuration().AsDuration(); kept < 24*time.Hour {
		t.Errorf("the history is kept for %v afterwards", kept)
	}
	if n := store.GetStore().GetTuples(); n != 0 {
		t.Errorf("%d tuples are left of the past", n)
	}
}

// TestWrongAnswer holds that a wrong answer ends a run: here the questions claim
// the opposite of what is right.
func TestWrongAnswer(t *testing.T) {
	const name = "liar"
	liar := *models["depth"]
	liar.generate = func(size int, seed uint64) *dataset {
		data := generateDepth(size, seed)
		next := data.checks["groups=1"].next
		data.checks["groups=1"].next = func(r *rand.Rand, allowed bool) question {
			q := next(r, allowed)
			q.allowed = !q.allowed
			return q
		}
		return data
	}
	models[name] = &liar
	defer delete(models, name)
	c, err := parse([]string{"--rounds", "1", "--seconds", "0.05", "--dir", t.TempDir()}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	d := &driver{config: c}
	if d.report, err = newReport(c); err != nil {
		t.Fatal(err)
	}
	if d.echo, err = launch(serveSpec{}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.echo.stop(); err != nil {
			t.Error(err)
		}
	}()
	err = d.runGroup(context.Background(), []workload{{
		source: source{model: name, size: 200, byWrites: true}, kind: check, ask: "groups=1", callers: 2, questions: hotQuestions,
	}})
	if err == nil || !strings.Contains(err.Error(), "wrong answer") {
		t.Errorf("a wrong answer gives: %v", err)
	}
}

// TestOpenLoop holds that a server that stands still is charged with the calls
// that should have been made meanwhile, and that no call is lost.
func TestOpenLoop(t *testing.T) {
	const (
		rate   = 1000.0
		length = 100 * time.Millisecond
		still  = 50 * time.Millisecond
	)
	var made atomic.Uint64
	begin := time.Now()
	loop, pace := openLoop(t.Context(), begin, begin.Add(length), rate, 1, func(_ context.Context, _ *caller, i uint64) error {
		if i == 0 {
			time.Sleep(still)
		}
		made.Add(1)
		return nil
	})
	go pace()
	var c caller
	if err := loop(t.Context(), &c); err != nil {
		t.Fatal(err)
	}
	if want := uint64(rate * length.Seconds()); c.latency.count != want || made.Load()+c.unsent != want {
		t.Errorf("%d calls are counted, %d made and %d unsent; want %d", c.latency.count, made.Load(), c.unsent, want)
	}
	// The calls that were due in the first half of the pause waited for at least
	// its other half; without charging them one call would be slow.
	if quarter := c.latency.quantile(0.76); quarter < still/2 {
		t.Errorf("three quarters of the calls took at most %v; a quarter should have waited %v", quarter, still/2)
	}
}

// TestOpenLoopOverload holds that an overloaded server ends a slice in time, and
// that the calls that could not be sent are counted.
func TestOpenLoopOverload(t *testing.T) {
	const length = 20 * time.Millisecond
	begin := time.Now()
	loop, pace := openLoop(t.Context(), begin, begin.Add(length), 2000, 1, func(context.Context, *caller, uint64) error {
		time.Sleep(5 * time.Millisecond)
		return nil
	})
	go pace()
	var c caller
	if err := loop(t.Context(), &c); err != nil {
		t.Fatal(err)
	}
	if c.latency.count != 40 || c.unsent == 0 {
		t.Errorf("%d calls are counted and %d unsent; want 40 and some", c.latency.count, c.unsent)
	}
}

// TestAuthzed holds that a workload of the other API has figures of both, in the
// table and in JSON, and that its answers are verified as those of a check are.
func TestAuthzed(t *testing.T) {
	lines := filepath.Join(t.TempDir(), "figures.jsonl")
	var table bytes.Buffer
	c, err := parse([]string{"--rounds", "2", "--seconds", "0.02", "--dir", t.TempDir(), "--json", lines}, &table)
	if err != nil {
		t.Fatal(err)
	}
	d := &driver{config: c}
	if d.report, err = newReport(c); err != nil {
		t.Fatal(err)
	}
	if d.echo, err = launch(serveSpec{}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.echo.stop(); err != nil {
			t.Error(err)
		}
	}()
	var group []workload
	for _, questions := range []int{hotQuestions, 0} {
		group = append(group, workload{
			source: source{model: "business", size: 2000}, kind: check, ask: "view", callers: 2, questions: questions, authzed: true,
		})
	}
	if err := d.runGroup(t.Context(), group); err != nil {
		t.Fatalf("%v\n%s", err, &table)
	}
	if err := d.report.close(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"hot/authzed/callers=2", "cold/authzed/callers=2", "the same through pemba.v1", "authzed/pemba: p50 "} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table does not show %q:\n%s", want, &table)
		}
	}
	text, err := os.ReadFile(lines)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for line := range bytes.Lines(text) {
		var m measure
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if m.Measure != measureMedian {
			continue
		}
		found++
		if m.Parameters["api"] != "authzed.api.v1" || m.Native == nil || m.Native.Median <= 0 || m.Overhead == nil ||
			m.Overhead.Min > m.Overhead.Median || m.Ratio == nil || m.Slowdown != nil {
			t.Errorf("a line is wrong: %s", line)
		}
	}
	if found != len(group) {
		t.Errorf("the JSON lines have the medians of %d workloads; want %d", found, len(group))
	}
	ask := &checks{objectType: "document", permission: "view", subjectType: "person"}
	made := &target{data: models["business"].generate(2000, 1)}
	if made.server, err = launch(serveSpec{Dir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := made.end(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := made.schemas.WriteSchema(t.Context(), &pembav1.WriteSchemaRequest{Schema: businessSchema}); err != nil {
		t.Fatal(err)
	}
	wrong := made.checkAuthzed(ask, func(uint64) (question, error) { return question{"d1", "p1", true}, nil })
	if err := wrong(t.Context(), &caller{}, 0); err == nil || !strings.Contains(err.Error(), "wrong answer") {
		t.Errorf("a wrong answer gives: %v", err)
	}
}
