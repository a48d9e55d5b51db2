package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// A background is a command that runs until it is stopped.
type background struct {
	stdout, stderr lockedBuffer
	cancel         context.CancelFunc
	done           chan int
}

func startBackground(t *testing.T, args ...string) *background {
	ctx, cancel := context.WithCancel(t.Context())
	b := &background{cancel: cancel, done: make(chan int, 1)}
	go func() { b.done <- execute(ctx, args, strings.NewReader(""), &b.stdout, &b.stderr) }()
	return b
}

// wait waits until the output has so many lines, and returns them.
func (b *background) wait(t *testing.T, lines int) []string {
	t.Helper()
	for deadline := time.Now().Add(processWait); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if text := b.stdout.String(); strings.Count(text, "\n") >= lines {
			return strings.Split(strings.TrimSpace(text), "\n")
		}
	}
	t.Fatalf("%d lines did not come: %s%s", lines, b.stdout.String(), b.stderr.String())
	return nil
}

// end interrupts the command, which must succeed.
func (b *background) end(t *testing.T) {
	t.Helper()
	b.cancel()
	select {
	case code := <-b.done:
		if code != 0 {
			t.Errorf("exit %d: %s", code, b.stderr.String())
		}
	case <-time.After(processWait):
		t.Fatal("it did not end")
	}
}

const watchSchema = "definition user {} definition group { relation member: user } definition doc { relation viewer: user | group#member  relation owner: user }"

// zookieOf returns the zookie in what a command printed as JSON.
func zookieOf(t *testing.T, out string) string {
	t.Helper()
	var answer struct{ Zookie string }
	if err := json.Unmarshal([]byte(out), &answer); err != nil || answer.Zookie == "" {
		t.Fatalf("%s: %v", out, err)
	}
	return answer.Zookie
}

// TestWatchResumes: a watch whose connection is cut, time and again, shows every
// change once and in order.
func TestWatchResumes(t *testing.T) {
	r := testStart(t)
	begin := zookieOf(t, must(t, watchSchema, "schema", "write", "-", "-o", "json"))
	way := startCutter(t, r.server.GRPCAddr().String())
	w := startBackground(t, "watch", "--from", begin, "--addr", way.addr())
	const rounds, each = 4, 50
	for round := range rounds {
		var tuples strings.Builder
		for i := range each {
			fmt.Fprintf(&tuples, "doc:%d#viewer@user:%03d\n", round, i)
		}
		must(t, tuples.String(), "tuple", "write", "-", "--recorded-actor", "user:admin")
		if round%2 == 0 {
			w.wait(t, (round+1)*each)
		}
		way.cut()
	}
	lines := w.wait(t, rounds*each)
	if len(lines) != rounds*each {
		t.Errorf("%d lines", len(lines))
	}
	for i, line := range lines {
		fields := strings.Fields(line)
		if len(fields) != 6 || fields[1] != fmt.Sprint(i+1) || fields[2] != "created" || fields[4] != "by" || fields[5] != "user:admin" {
			t.Fatalf("line %d: %s", i+1, line)
		}
	}
	if !slices.IsSortedFunc(lines, func(a, b string) int { return strings.Compare(a[:27], b[:27]) }) {
		t.Error("the times do not rise")
	}
	w.end(t)
	said := w.stderr.String()
	if !strings.Contains(said, "the watch was cut off") || !strings.Contains(said, "\nthe watch goes on where it was\n") || !strings.Contains(said, "\nto go on from here: pemba watch --addr "+way.addr()+" --cursor ") {
		t.Errorf("it said: %s", said)
	}
	// From the cursor on, there is only what comes next.
	_, cursor, _ := strings.Cut(said, "--cursor ")
	next := startBackground(t, "watch", "--cursor", strings.TrimSpace(cursor), "-o", "json", "--type", "doc:0", "--relation", "viewer", "--subject", "user")
	must(t, "", "tuple", "delete", "doc:0#viewer@user:007", "doc:1#viewer@user:007")
	// Another object, another relation, another subject: each is left out by a flag
	// of its own.
	must(t, "", "tuple", "write", "doc:0#owner@user:007")
	must(t, "", "tuple", "write", "doc:0#viewer@group:eng#member")
	must(t, "", "tuple", "delete", "doc:0#viewer@user:008")
	var got []string
	for _, line := range next.wait(t, 2) {
		var j changesJSON
		if err := json.Unmarshal([]byte(line), &j); err != nil || j.Zookie == "" || j.Cursor == "" || j.Time == "" {
			t.Fatalf("%s: %v", line, err)
		}
		for _, c := range j.Changes {
			got = append(got, c.Kind+" "+c.Tuple)
		}
	}
	if want := "deleted doc:0#viewer@user:007, deleted doc:0#viewer@user:008"; strings.Join(got, ", ") != want {
		t.Errorf("got %v, expected %s", got, want)
	}
	next.end(t)
	// A watch from now on says at once that it is alive, when it is asked to.
	alive := startBackground(t, "watch", "--heartbeats")
	if line := alive.wait(t, 1)[0]; !strings.HasSuffix(line, "  heartbeat") {
		t.Errorf("%s", line)
	}
	alive.end(t)
}

// TestWatchEndsInError: what another attempt would not cure ends a watch.
func TestWatchEndsInError(t *testing.T) {
	testStart(t)
	for _, test := range []struct{ args, want string }{
		{"watch --cursor nonsense", "CURSOR_INVALID"},
		{"watch --from nonsense", "ZOOKIE_INVALID"},
		{"watch --store other", "UNKNOWN_STORE"},
		{"watch --from a --cursor b", "exclude"},
		{"watch --type a#b", "--type"},
		{"watch --subject #b", "--subject"},
		{"watch more", "takes no arguments"},
		{"changes --since tomorrow", "--since"},
		{"changes --since 1h --from x", "exclude"},
	} {
		if said := fails(t, "", strings.Fields(test.args)...); !strings.Contains(said, test.want) {
			t.Errorf("%s: %s", test.args, said)
		}
	}
}

// TestAsOf: the past is asked by time, with the schema and the tuples of it.
func TestAsOf(t *testing.T) {
	const laterSchema = "definition user {} definition doc { relation viewer: user  relation owner: user }"
	testStart(t)
	t.Chdir(t.TempDir())
	stamp := func() string {
		// Two moments must not fall into one microsecond.
		time.Sleep(2 * time.Millisecond)
		return time.Now().UTC().Format(time.RFC3339Nano)
	}
	before := stamp()
	first := zookieOf(t, must(t, "definition user {} definition doc { relation viewer: user }", "schema", "write", "-", "-o", "json", "--recorded-actor", "user:root"))
	must(t, "", "tuple", "write", "doc:a#viewer@user:anne", "doc:b#viewer@user:anne", "--recorded-actor", "user:bob", "--metadata", `{"ticket":"<7>"}`)
	then := stamp()
	must(t, "", "tuple", "delete", "doc:a#viewer@user:anne")
	must(t, laterSchema, "schema", "write", "-")
	must(t, "", "tuple", "write", "doc:a#owner@user:anne")
	for _, test := range []struct{ args, then, now string }{
		{"check doc:a#viewer@user:anne", "allowed\n", "denied\n"},
		{"tuple count", "2\n", "2\n"},
		{"tuple read doc:a", "doc:a#viewer@user:anne\n", "doc:a#owner@user:anne\n"},
		{"tuple export @user", "doc:a#viewer@user:anne\ndoc:b#viewer@user:anne\n", "doc:a#owner@user:anne\ndoc:b#viewer@user:anne\n"},
		{"lookup resources doc viewer user:anne", "doc:a\ndoc:b\n", "doc:b\n"},
		{"lookup resources doc viewer user:anne --count", "allowed      2\nconditional  0\n", "allowed      1\nconditional  0\n"},
		{"lookup subjects doc:a#viewer user --count", "allowed      1\nconditional  0\nuser:*       denied\n", "allowed      0\nconditional  0\nuser:*       denied\n"},
		{"expand doc:a#viewer", "doc:a#viewer\n  user:anne\n", "doc:a#viewer  (nobody)\n"},
		{"schema read", "definition user {} definition doc { relation viewer: user }\n", laterSchema + "\n"},
	} {
		args := strings.Fields(test.args)
		if got := must(t, "", args...); sortLines(got) != sortLines(test.now) {
			t.Errorf("%s now: %s", test.args, got)
		}
		if got := must(t, "", append(slices.Clone(args), "--as-of", then)...); sortLines(got) != sortLines(test.then) {
			t.Errorf("%s then: %s", test.args, got)
		}
	}
	if got := must(t, "", "schema", "read", "--at", first); !strings.HasPrefix(got, "definition user {} definition doc { relation viewer: user }") {
		t.Errorf("%s", got)
	}
	if said := fails(t, "", "check", "doc:a#viewer@user:anne", "--as-of", before); !strings.Contains(said, "NO_SCHEMA") {
		t.Errorf("before there was anything: %s", said)
	}
	fails(t, "", "check", "doc:a#viewer@user:anne", "--as-of", "2999-01-01")
	for _, args := range []string{"--as-of 1h --linearizable", "--as-of 1h --at x", "--as-of now"} {
		if said := fails(t, "", append([]string{"check", "doc:a#viewer@user:anne"}, strings.Fields(args)...)...); !strings.Contains(said, "--as-of") {
			t.Errorf("%s: %s", args, said)
		}
	}

	// Who changed what.
	masked := timePattern.ReplaceAllString(must(t, "", "changes"), "TIME$2")
	if want := `TIME  1  created   doc:a#viewer@user:anne  by user:bob  {"ticket":"<7>"}
TIME  2  created   doc:b#viewer@user:anne  by user:bob  {"ticket":"<7>"}
TIME  3  deleted   doc:a#viewer@user:anne  -
TIME  4  created   doc:a#owner@user:anne   -
`; masked != want {
		t.Errorf("changes:\n%s", masked)
	}
	// A watch has the same columns, and aligns what comes together.
	w := startBackground(t, "watch", "--from", first)
	watched := timePattern.ReplaceAllString(strings.Join(w.wait(t, 4), "\n")+"\n", "TIME$2")
	w.end(t)
	if want := strings.Replace(masked, "owner@user:anne   -", "owner@user:anne  -", 1); watched != want {
		t.Errorf("watch:\n%s", watched)
	}
	for args, want := range map[string]int{
		"--limit 1": 1, "--since " + then: 2, "--until " + then: 2, "--since 1h --schema": 6, "--since " + then + " --until " + then: 0,
		"--from " + first: 4, "--relation owner": 1, "--type doc:a --relation viewer": 2, "--subject user:bob": 0, "--type doc --type user": 4,
	} {
		if got := must(t, "", append([]string{"changes"}, strings.Fields(args)...)...); strings.Count(got, "\n") != want {
			t.Errorf("changes %s: %s", args, got)
		}
	}
	if got := must(t, "", "changes", "-o", "json", "--limit", "2"); !strings.Contains(got, `"recorded_actor":"user:bob","metadata":{"ticket":"<7>"},"changes":[{"sequence":1,"kind":"created","tuple":"doc:a#viewer@user:anne"}`) {
		t.Errorf("%s", got)
	}
	versions := strings.Split(strings.TrimSpace(must(t, "", "schema", "versions")), "\n")
	if len(versions) != 2 || !strings.Contains(versions[1], first+"  59 bytes  user:root") {
		t.Errorf("versions: %q", versions)
	}
	second := strings.Fields(versions[0])[1]
	if got := must(t, "", "schema", "diff", "--from", first, "--to", second); got != "relation added: doc#owner\n" {
		t.Errorf("diff: %s", got)
	}
}
