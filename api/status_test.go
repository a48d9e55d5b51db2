package api

import (
	"context"
	"errors"
	"fmt"
	"os"
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
	reasons := []string{"KEY_MISSING", "KEY_INVALID", "UNKNOWN_STORE", "ZOOKIE_INVALID", "ZOOKIE_FOREIGN", "CLIENT_STALLED", "TOO_LARGE", "OUTCOME_UNKNOWN", "CORRUPTION", "FAULT"}
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
