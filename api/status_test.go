package api

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// TestReasonsAreMapped finds every reason of the engine by its name: reasons
// beyond the last have a made-up one.
func TestReasonsAreMapped(t *testing.T) {
	count := 0
	for r := engine.Reason(1); !strings.HasPrefix(r.String(), "REASON_"); r++ {
		count++
		if _, ok := reasonCodes[r]; !ok {
			t.Errorf("reason %v has no code", r)
		}
		st, fault := toStatus(fmt.Errorf("wrapped: %w", &engine.Refusal{Reason: r, Field: "a.b", Message: "no"}))
		if fault || st.Code() == codes.Internal || st.Code() == codes.Unknown || st.Code() == codes.OK {
			t.Errorf("reason %v: code %v, fault %v", r, st.Code(), fault)
		}
		if st.Message() != "a.b: no" {
			t.Errorf("reason %v: message %q", r, st.Message())
		}
	}
	if count != len(reasonCodes) {
		t.Errorf("%d reasons, %d codes", count, len(reasonCodes))
	}
}

// TestReasonsAreDocumented: the page of errors has every reason of the engine
// and of the layers below.
func TestReasonsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	reasons := reasonsInSource(t)
	for r := range reasonCodes {
		reasons = append(reasons, r.String())
	}
	for _, s := range sentinels {
		reasons = append(reasons, s.reason)
	}
	for _, r := range reasons {
		if !strings.Contains(string(page), "`"+r+"`") {
			t.Errorf("docs/errors.md does not mention %s", r)
		}
	}
}

// reasonsInSource finds the reasons that this package gives itself: every text of
// capitals in its source that stands where a reason does.
func reasonsInSource(t *testing.T) []string {
	t.Helper()
	reasons := reasonsOf(t, regexp.MustCompile(`(?:reason: |reason = \S+, |codes\.\w+, |(?:key(?:Missing|Invalid)|\w+Reason) += |tooMany\(.*)"([A-Z]+(?:_[A-Z]+)*)"`))
	for _, known := range []string{"KEY_MISSING", "OPERATOR_ONLY", "CLIENT_STALLED", "RATE_LIMITED", "TOO_MANY_FILTERS", "TOO_MANY_WATCHES", "FAULT"} {
		if !slices.Contains(reasons, known) {
			t.Fatalf("the search does not find %s", known)
		}
	}
	return reasons
}

// reasonsOf returns what a pattern finds in the source of this package.
func reasonsOf(t *testing.T, pattern *regexp.Regexp) []string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var reasons []string
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range pattern.FindAllSubmatch(source, -1) {
			reasons = append(reasons, string(found[1]))
		}
	}
	return reasons
}

func TestStatus(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("while trying: %w", err) }
	for _, test := range []struct {
		err    error
		code   codes.Code
		reason string
		fault  bool
	}{
		{wrap(context.Canceled), codes.Canceled, "CANCELED", false},
		{wrap(context.DeadlineExceeded), codes.DeadlineExceeded, "DEADLINE_EXCEEDED", false},
		{wrap(cluster.ErrNotLeader), codes.Unavailable, "NOT_LEADER", false},
		{wrap(cluster.ErrShuttingDown), codes.Unavailable, "SHUTTING_DOWN", false},
		{wrap(cluster.ErrFailed), codes.Unavailable, "NODE_FAILED", false},
		{wrap(cluster.ErrTooBusy), codes.ResourceExhausted, "TOO_BUSY", false},
		{wrap(cluster.ErrEntryTooLarge), codes.ResourceExhausted, "TOO_LARGE", false},
		{wrap(cluster.ErrDiskFull), codes.ResourceExhausted, "DISK_FULL", false},
		{wrap(cluster.ErrOutcomeUnknown), codes.Unavailable, "OUTCOME_UNKNOWN", false},
		{errors.Join(cluster.ErrOutcomeUnknown, context.DeadlineExceeded), codes.DeadlineExceeded, "OUTCOME_UNKNOWN", false},
		{errors.Join(context.Canceled, cluster.ErrOutcomeUnknown), codes.Canceled, "OUTCOME_UNKNOWN", false},
		{errors.Join(cluster.ErrOutcomeUnknown, cluster.ErrShuttingDown), codes.Unavailable, "OUTCOME_UNKNOWN", false},
		{wrap(graph.ErrClosed), codes.Unavailable, "SHUTTING_DOWN", false},
		{wrap(graph.ErrRevisionAhead), codes.Unavailable, "REVISION_AHEAD", false},
		{wrap(&graph.RevisionGoneError{Revision: 3, Oldest: 7}), codes.OutOfRange, "REVISION_GONE", false},
		{wrap(graph.ErrInvalidPosition), codes.InvalidArgument, "CURSOR_INVALID", false},
		{wrap(graph.ErrExhausted), codes.ResourceExhausted, "NUMBERS_EXHAUSTED", false},
		{wrap(&graph.InvalidError{Field: "id", Problem: "is empty"}), codes.InvalidArgument, "MALFORMED", false},
		{wrap(tooMany("updates", "TOO_MANY_UPDATES", 2, 1, "send several")), codes.ResourceExhausted, "TOO_MANY_UPDATES", false},
		{wrap(tooLarge("schema", 2, 1, "--limit-schema-bytes")), codes.ResourceExhausted, "TOO_LARGE", false},
		{wrap(&engine.Refusal{Reason: engine.TooManyMatches}), codes.FailedPrecondition, "TOO_MANY_MATCHES", false},
		{wrap(unknownStore("other")), codes.NotFound, "UNKNOWN_STORE", false},
		{wrap(cluster.ErrInstantAhead), codes.OutOfRange, "INSTANT_AHEAD", false},
		{wrap(graph.ErrUnknownStore), codes.NotFound, "UNKNOWN_STORE", false},
		{&chunkError{err: wrap(cluster.ErrTooBusy), chunk: 3}, codes.ResourceExhausted, "TOO_BUSY", false},
		{wrap(&chunkError{err: malformed("tuples[0]", "no"), chunk: 3}), codes.InvalidArgument, "MALFORMED", false},
		{errors.New("the disk is on fire"), codes.Internal, "FAULT", true},
	} {
		st, fault := toStatus(test.err)
		reason := ""
		for _, d := range st.Details() {
			if info, ok := d.(*errdetails.ErrorInfo); ok {
				reason = info.GetReason()
			}
		}
		if st.Code() != test.code || reason != test.reason || fault != test.fault {
			t.Errorf("%v: %v %s fault=%v, expected %v %s fault=%v", test.err, st.Code(), reason, fault, test.code, test.reason, test.fault)
		}
	}
}

// TestStatusDetails: what a program needs to go on stands in the details.
func TestStatusDetails(t *testing.T) {
	details := func(err error) (info *errdetails.ErrorInfo, retry *errdetails.RetryInfo, message string) {
		st, _ := toStatus(err)
		for _, d := range st.Details() {
			switch d := d.(type) {
			case *errdetails.ErrorInfo:
				info = d
			case *errdetails.RetryInfo:
				retry = d
			}
		}
		return info, retry, st.Message()
	}
	if _, retry, _ := details(cluster.ErrTooBusy); retry.GetRetryDelay().AsDuration() != busyRetry {
		t.Errorf("too busy: retry %v", retry)
	}
	if _, retry, _ := details(cluster.ErrDiskFull); retry != nil {
		t.Errorf("disk full: retry %v, which helps nobody", retry)
	}
	gone := &graph.RevisionGoneError{Revision: 3, Oldest: 7, OldestAt: 1_500_000}
	info, _, _ := details(fmt.Errorf("read: %w", gone))
	if info.GetMetadata()["oldest_revision"] != "7" || info.GetMetadata()["oldest_at"] != "1970-01-01T00:00:01.5Z" {
		t.Errorf("gone: %v", info)
	}
	busy := &chunkError{err: fmt.Errorf("%w: 16 are under way", cluster.ErrTooBusy), chunk: 3, batches: true, written: 2, tuples: 20}
	info, retry, message := details(busy)
	if m := info.GetMetadata(); m["chunk"] != "3" || m["written_chunks"] != "2" || m["written_tuples"] != "20" || retry == nil {
		t.Errorf("a chunk: %v, %v", info, retry)
	}
	if want := "chunk 3 (2 before it, with 20 tuples, are written): the node is too busy: 16 are under way"; message != want {
		t.Errorf("a chunk: %q", message)
	}
}

// TestStatusIsBounded keeps errors within the trailers that clients take, and
// their texts valid whatever the cause of the error holds.
func TestStatusIsBounded(t *testing.T) {
	st, _ := toStatus(malformed("field", "%s\xff", strings.Repeat("ü", 5000)))
	raw, err := proto.Marshal(st.Proto())
	if err != nil {
		t.Fatal(err)
	}
	if len(raw) > 5000 {
		t.Errorf("the status has %d bytes", len(raw))
	}
	if st, _ := toStatus(status.Error(codes.Aborted, "as it was")); st.Code() != codes.Aborted || st.Message() != "as it was" {
		t.Errorf("a status did not stay as it was: %v", st)
	}
}

// TestAnswerTooLarge: a tree or trace that clients would not take is refused, and
// the refusal says what to ask instead.
func TestAnswerTooLarge(t *testing.T) {
	s := testServer(t, Config{Limits: Limits{AnswerBytes: 2000, MemoryBytes: 64 << 10}})
	c := dial(t, s)
	ctx := testContext(t)
	writeDocs(t, c, 0)
	viewers := func(id string, n int) *pembav1.Object {
		r := &pembav1.WriteTuplesRequest{}
		for i := range n {
			r.Updates = append(r.Updates, &pembav1.TupleUpdate{Operation: pembav1.TupleUpdate_OPERATION_TOUCH, Tuple: &pembav1.Tuple{
				Object: &pembav1.Object{Type: "doc", Id: id}, Relation: "viewer",
				Subject: &pembav1.Subject{Object: &pembav1.Object{Type: "user", Id: fmt.Sprintf("%s-%030d", id, i)}},
			}})
		}
		if _, err := c.WriteTuples(ctx, r); err != nil {
			t.Fatal(err)
		}
		return r.GetUpdates()[0].GetTuple().GetObject()
	}
	for _, test := range []struct {
		id      string
		viewers int
		reason  string
	}{
		{"few", 5, ""},
		{"many", 40, "ANSWER_TOO_LARGE"},
		{"most", 900, "BUDGET_EXCEEDED"},
	} {
		object := viewers(test.id, test.viewers)
		_, err := c.Expand(ctx, &pembav1.ExpandRequest{Object: object, Permission: "viewer"})
		if test.reason == "" {
			if err != nil {
				t.Errorf("%s: %v", test.id, err)
			}
			continue
		}
		expectStatus(t, test.id, err, codes.ResourceExhausted, test.reason)
		if !strings.Contains(err.Error(), "read the tuples, or look the subjects up") {
			t.Errorf("%s: %v", test.id, err)
		}
	}
	question := &pembav1.CheckRequest{
		Object: &pembav1.Object{Type: "doc", Id: strings.Repeat("x", 1020)}, Permission: "view",
		Subject: &pembav1.Subject{Object: &pembav1.Object{Type: "user", Id: "nobody"}},
	}
	if _, err := c.Check(ctx, question); err != nil {
		t.Error(err)
	}
	question.Explain = true
	_, err := c.Check(ctx, question)
	expectStatus(t, "a trace", err, codes.ResourceExhausted, "ANSWER_TOO_LARGE")
}

// TestTooLargeHelps: what is over a limit of its size says what is allowed and what
// to do, with a flag of serve that there is where one raises it; over HTTP it is
// 413, also where the answer is a stream, and nothing else is.
func TestTooLargeHelps(t *testing.T) {
	s := testServer(t, Config{Limits: Limits{
		RequestBytes: 64 << 10, SchemaBytes: 1000, Updates: 2, Preconditions: 1, Checks: 2, ImportTuples: 2,
		ContextBytes: 100, TupleContextBytes: 50, MetadataBytes: 60, Steps: 20,
	}})
	c := dial(t, s)
	writeDocs(t, c, 2)
	flags := make(map[string]bool)
	for limits, i := reflect.TypeFor[Limits](), 0; i < limits.NumField(); i++ {
		flags["--"+limitFlag(limits.Field(i).Name)] = true
	}
	flag := regexp.MustCompile(`--[a-z-]+`)
	repeat := func(text string, n int) string { return strings.TrimSuffix(strings.Repeat(text+",", n), ",") }
	const (
		tuple = `{"object": {"type": "doc", "id": "a"}, "relation": "viewer", "subject": {"object": {"type": "user", "id": "b"}}}`
		check = `"object": {"type": "doc", "id": "a"}, "permission": "view", "subject": {"object": {"type": "user", "id": "b"}}`
	)
	large := `{"text": "` + strings.Repeat("x", 200) + `"}`
	for _, test := range []struct {
		path, body, reason, flag string
	}{
		{"write-schema", `{"schema": "` + strings.Repeat(" ", 1001) + `"}`, "TOO_LARGE", "--limit-schema-bytes"},
		{"try-schema", `{"schema": "` + strings.Repeat(" ", 1001) + `"}`, "TOO_LARGE", "--limit-schema-bytes"},
		{"write-tuples", `{"updates": [` + repeat(`{"operation": "OPERATION_TOUCH", "tuple": `+tuple+`}`, 3) + `]}`, "TOO_MANY_UPDATES", "--limit-updates"},
		{"delete-tuples", `{"filter": {"object_id": "a"}, "preconditions": [` + repeat(`{"filter": {"object_id": "a"}}`, 2) + `]}`, "TOO_MANY_PRECONDITIONS", "--limit-preconditions"},
		{"write-tuples", `{"updates": [{"operation": "OPERATION_TOUCH", "tuple": ` + strings.TrimSuffix(tuple, "}") + `, "caveat": {"name": "c", "context": ` + large + `}}}]}`, "TOO_LARGE", "--limit-tuple-context-bytes"},
		{"write-tuples", `{"updates": [{"operation": "OPERATION_TOUCH", "tuple": ` + tuple + `}], "metadata": ` + large + `}`, "TOO_LARGE", "--limit-metadata-bytes"},
		{"import-tuples", `{"header": {}, "tuples": [` + repeat(tuple, 3) + `]}`, "TOO_MANY_UPDATES", "--limit-import-tuples"},
		{"check", `{` + check + `, "context": ` + large + `}`, "TOO_LARGE", "--limit-context-bytes"},
		{"check-bulk", `{"items": [` + repeat(`{`+check+`}`, 3) + `]}`, "TOO_MANY_CHECKS", "--limit-checks"},
		{"lookup-resources", `{"type": "doc", "permission": "view", "subject": {"object": {"type": "user", "id": "b"}}, "context": ` + large + `}`, "TOO_LARGE", "--limit-context-bytes"},
		{"watch", `{"filters": [` + repeat(`{"object_type": "doc"}`, changeFiltersMax+1) + `]}`, "TOO_MANY_FILTERS", ""},
		{"check", `{"permission": "` + strings.Repeat("x", 65<<10) + `"}`, "TOO_LARGE", "--limit-request-bytes"},
	} {
		a := send(t, "POST", httpURL(s, httpPrefix+test.path), test.body)
		code, reason := httpError(t, test.path, lines(a.body)[0])
		if a.status != 413 || code != int(codes.ResourceExhausted) || reason != test.reason {
			t.Errorf("%s: %d, code %d, %s; expected 413, %d, %s: %s", test.path, a.status, code, reason, codes.ResourceExhausted, test.reason, a.body)
		}
		var named string
		if named = flag.FindString(a.body); named != test.flag || named != "" && !flags[named] {
			t.Errorf("%s: the flag is %q, expected %q: %s", test.path, named, test.flag, a.body)
		}
		if !strings.Contains(a.body, "allowed") || !strings.Contains(a.body, `"limit":`) {
			t.Errorf("%s: it does not say what is allowed: %s", test.path, a.body)
		}
	}
	// What is exhausted for another reason may be there again.
	for i := range 30 {
		u := touch(i, i+1)
		u[0].Tuple.Subject = &pembav1.Subject{Object: object("doc", fmt.Sprintf("d%05d", i+1)), Relation: "view"}
		if i == 0 {
			if _, err := c.WriteSchema(testContext(t), &pembav1.WriteSchemaRequest{
				Schema: `definition user {} definition doc { relation viewer: user | doc#view relation banned: user permission view = viewer - banned }`,
			}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.WriteTuples(testContext(t), &pembav1.WriteTuplesRequest{Updates: u}); err != nil {
			t.Fatal(err)
		}
	}
	a := send(t, "POST", httpURL(s, "/pemba/v1/check"), `{"object": {"type": "doc", "id": "d00000"}, "permission": "view", "subject": {"object": {"type": "user", "id": "b"}}}`)
	if _, reason := httpError(t, "a budget", a.body); a.status != 429 || reason != "BUDGET_EXCEEDED" {
		t.Errorf("a budget: %d %s", a.status, a.body)
	}
	// A reason that is given by tooMany or tooLarge is known to be one of a size.
	for _, reason := range append(reasonsOf(t, regexp.MustCompile(`tooMany\(.*"([A-Z_]+)"`)), "TOO_LARGE", "REQUEST_TOO_LARGE") {
		if !isTooLarge(newStatus(codes.ResourceExhausted, reason, "", "", nil)) {
			t.Errorf("%s is not taken for a reason of a size", reason)
		}
	}
}

// TestStatusFitsTrailer: what gRPC sends of an error that is as large as can be
// leaves room for the rest of a trailer of 8 KiB, and what is short is whole.
func TestStatusFitsTrailer(t *testing.T) {
	const rest = 600 // The names and the other pairs, of which a dialect sends some.
	sent := func(st *status.Status) int {
		details, err := proto.Marshal(st.Proto())
		if err != nil {
			t.Fatal(err)
		}
		n := base64.RawStdEncoding.EncodedLen(len(details))
		for _, c := range []byte(st.Message()) {
			if n++; c < ' ' || c > '~' || c == '%' {
				n += 2
			}
		}
		return n
	}
	for _, letter := range []string{"a", "%", "é", "漢", "😀", "\xff", "a漢"} {
		long := strings.Repeat(letter, 5000)
		for _, field := range []string{"", "updates[3].tuple.subject.object.id", long} {
			e := &requestError{
				code: codes.ResourceExhausted, reason: "TOO_MANY_PRECONDITIONS", field: field, message: long, retry: time.Hour,
				metadata: map[string]string{"tuple": long, "given": long, "type": long, "suggestion": "abc"},
			}
			st, _ := toStatus(e)
			if n := sent(st); n > 8<<10-rest || !utf8.ValidString(st.Message()) {
				t.Errorf("an error of %q with the field %.20q takes %d bytes", letter, field, n)
			}
			if len(field) < 100 && !strings.HasPrefix(st.Message(), field) {
				t.Errorf("the field %s is not named: %s", field, st.Message())
			}
		}
		short := strings.Repeat(letter, 800/len(letter))
		st, _ := toStatus(malformed("id", "%s", short))
		if want := "id: " + strings.ToValidUTF8(short, "\uFFFD"); len(want) <= 830 && st.Message() != want {
			t.Errorf("an error of %d bytes of %q is cut to %d", len(want), letter, len(st.Message()))
		}
	}
}
