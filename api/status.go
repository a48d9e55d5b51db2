package api

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// ErrorDomain is the domain of the google.rpc.ErrorInfo that every error carries.
const ErrorDomain = "pemba"

// A requestError is an error that the wire itself finds in a request.
type requestError struct {
	code     codes.Code
	reason   string
	field    string
	message  string
	metadata map[string]string
}

func (e *requestError) Error() string {
	if e.field != "" {
		return e.field + ": " + e.message
	}
	return e.message
}

func tooMany(field, reason string, got, allowed int) error {
	return &requestError{
		code: codes.InvalidArgument, reason: reason, field: field,
		message:  fmt.Sprintf("there are %d; at most %d are allowed", got, allowed),
		metadata: map[string]string{"limit": strconv.Itoa(allowed)},
	}
}

func tooLarge(field string, got, allowed int) error {
	return &requestError{
		code: codes.InvalidArgument, reason: "TOO_LARGE", field: field,
		message:  fmt.Sprintf("it has %d bytes or more; at most %d are allowed", got, allowed),
		metadata: map[string]string{"limit": strconv.Itoa(allowed)},
	}
}

func unknownStore(name string) error {
	return &requestError{
		code: codes.NotFound, reason: "UNKNOWN_STORE", field: "store",
		message:  fmt.Sprintf("there is no store %q; leave the field empty for the store %q", name, DefaultStoreName),
		metadata: map[string]string{"store": name},
	}
}

// reasonCodes gives every reason of the engine its code. A reason that depends
// on what is stored is a failed precondition; one that no schema or tuple could
// cure, or that the schema alone decides for this request, an invalid argument.
var reasonCodes = map[engine.Reason]codes.Code{
	engine.NoSchema:           codes.FailedPrecondition,
	engine.UnknownType:        codes.FailedPrecondition,
	engine.UnknownName:        codes.FailedPrecondition,
	engine.UnknownCaveat:      codes.FailedPrecondition,
	engine.NotARelation:       codes.InvalidArgument,
	engine.SubjectNotAllowed:  codes.InvalidArgument,
	engine.ContextInvalid:     codes.InvalidArgument,
	engine.Malformed:          codes.InvalidArgument,
	engine.DuplicateUpdate:    codes.InvalidArgument,
	engine.AlreadyExists:      codes.AlreadyExists,
	engine.PreconditionFailed: codes.FailedPrecondition,
	engine.TooManyMatches:     codes.FailedPrecondition,
	engine.SchemaSyntax:       codes.InvalidArgument,
	engine.SchemaType:         codes.InvalidArgument,
	engine.SchemaData:         codes.FailedPrecondition,
	engine.WildcardSubject:    codes.InvalidArgument,
	engine.CaveatFailed:       codes.InvalidArgument,
	engine.BudgetExceeded:     codes.ResourceExhausted,
	engine.CursorInvalid:      codes.InvalidArgument,
	engine.AlreadyInitialized: codes.FailedPrecondition,
	engine.NumbersExhausted:   codes.ResourceExhausted,
	engine.TooMuchToRead:      codes.ResourceExhausted,
}

// sentinels gives the errors of the layers below their codes, in the order in
// which they are looked for: an error may wrap several.
var sentinels = []struct {
	err    error
	code   codes.Code
	reason string
}{
	{cluster.ErrNotLeader, codes.Unavailable, "NOT_LEADER"},
	{cluster.ErrShuttingDown, codes.Unavailable, "SHUTTING_DOWN"},
	{graph.ErrClosed, codes.Unavailable, "SHUTTING_DOWN"},
	{cluster.ErrFailed, codes.Unavailable, "NODE_FAILED"},
	{cluster.ErrTooBusy, codes.ResourceExhausted, "TOO_BUSY"},
	{cluster.ErrEntryTooLarge, codes.InvalidArgument, "TOO_LARGE"},
	{cluster.ErrDiskFull, codes.ResourceExhausted, "DISK_FULL"},
	{graph.ErrRevisionAhead, codes.Unavailable, "REVISION_AHEAD"},
	{graph.ErrRevisionGone, codes.OutOfRange, "REVISION_GONE"},
	{graph.ErrInvalidPosition, codes.InvalidArgument, "CURSOR_INVALID"},
	{graph.ErrExhausted, codes.ResourceExhausted, "NUMBERS_EXHAUSTED"},
}

// toStatus maps any error to the status that goes over the wire. Errors that
// are already one, those of gRPC itself, stay as they are. The second result
// says that the error is a fault of this node, which its operator must learn of.
func toStatus(err error) (st *status.Status, fault bool) {
	if st, ok := status.FromError(err); ok {
		return st, false
	}
	var refusal *engine.Refusal
	if errors.As(err, &refusal) {
		code, ok := reasonCodes[refusal.Reason]
		if !ok {
			code = codes.InvalidArgument
		}
		return newStatus(code, refusal.Reason.String(), refusal.Field, refusal.Message, refusal.Metadata), false
	}
	var request *requestError
	if errors.As(err, &request) {
		return newStatus(request.code, request.reason, request.field, request.message, request.metadata), false
	}
	var invalid *graph.InvalidError
	if errors.As(err, &invalid) {
		return newStatus(codes.InvalidArgument, engine.Malformed.String(), "", invalid.Error(), nil), false
	}
	if graph.IsCorruptionError(err) {
		return newStatus(codes.DataLoss, "CORRUPTION", "", err.Error(), nil), true
	}
	// What became of a write is worth more than why nobody knows.
	if errors.Is(err, cluster.ErrOutcomeUnknown) {
		code := codes.Unavailable
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			code = codes.DeadlineExceeded
		case errors.Is(err, context.Canceled):
			code = codes.Canceled
		}
		return newStatus(code, "OUTCOME_UNKNOWN", "", err.Error(), nil), false
	}
	for _, s := range sentinels {
		if errors.Is(err, s.err) {
			var gone *graph.RevisionGoneError
			var metadata map[string]string
			if errors.As(err, &gone) {
				metadata = map[string]string{"oldest_revision": strconv.FormatUint(uint64(gone.Oldest), 10)}
			}
			return newStatus(s.code, s.reason, "", err.Error(), metadata), false
		}
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return newStatus(codes.DeadlineExceeded, "DEADLINE_EXCEEDED", "", err.Error(), nil), false
	case errors.Is(err, context.Canceled):
		return newStatus(codes.Canceled, "CANCELED", "", err.Error(), nil), false
	}
	return newStatus(codes.Internal, "FAULT", "", err.Error(), nil), true
}

// statusMessageBytesMax bounds the message of an error. gRPC sends it in the
// trailer, once as it is and once or twice within the details, and some clients
// take trailers of 8 KiB at most.
const statusMessageBytesMax = 1500

func newStatus(code codes.Code, reason, field, message string, metadata map[string]string) *status.Status {
	if len(message) > statusMessageBytesMax {
		message = strings.ToValidUTF8(message[:statusMessageBytesMax], "") + "..."
	}
	info := &errdetails.ErrorInfo{Reason: reason, Domain: ErrorDomain, Metadata: make(map[string]string, len(metadata)+1)}
	for k, v := range metadata {
		info.Metadata[validUTF8(k)] = validUTF8(v)
	}
	text := message
	if field != "" {
		text = field + ": " + message
		info.Metadata["field"] = validUTF8(field)
	}
	st := status.New(code, validUTF8(text))
	var detailed *status.Status
	var err error
	if field == "" {
		detailed, err = st.WithDetails(info)
	} else {
		detailed, err = st.WithDetails(info, &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
			{Field: validUTF8(field), Description: validUTF8(message), Reason: reason},
		}})
	}
	if err != nil {
		// Only a detail that cannot be encoded comes here; the code stands.
		return st
	}
	return detailed
}

// toItemError maps the error of one item of a bulk request.
func toItemError(err error) (*pembav1.Error, bool) {
	st, fault := toStatus(err)
	e := &pembav1.Error{Code: int32(st.Code()), Message: st.Message()}
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			e.Reason, e.Metadata = info.GetReason(), maps.Clone(info.GetMetadata())
		}
	}
	return e, fault
}
