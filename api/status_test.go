package api

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

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
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var reasons []string
	literal := regexp.MustCompile(`(?:reason: |reason = \S+, |codes\.\w+, |key(?:Missing|Invalid) += |tooMany\(.*)"([A-Z]+(?:_[A-Z]+)*)"`)
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range literal.FindAllSubmatch(source, -1) {
			reasons = append(reasons, string(found[1]))
		}
	}
	for _, known := range []string{"KEY_MISSING", "OPERATOR_ONLY", "CLIENT_STALLED", "RATE_LIMITED", "TOO_MANY_FILTERS", "TOO_MANY_WATCHES", "FAULT"} {
		if !slices.Contains(reasons, known) {
			t.Fatalf("the search does not find %s", known)
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
		{wrap(cluster.ErrEntryTooLarge), codes.InvalidArgument, "TOO_LARGE", false},
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
		{wrap(tooMany("updates", "TOO_MANY_UPDATES", 2, 1)), codes.InvalidArgument, "TOO_MANY_UPDATES", false},
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
