package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

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
	// retry is after what time the same request may succeed; zero says nothing.
	retry time.Duration
}

func (e *requestError) Error() string {
	if e.field != "" {
		return e.field + ": " + e.message
	}
	return e.message
}

// tooMany refuses a list by its length; advice says what to do instead.
func tooMany(field, reason string, got, allowed int, advice string) error {
	return &requestError{
		code: codes.ResourceExhausted, reason: reason, field: field,
		message:  fmt.Sprintf("there are %d; at most %d are allowed; %s", got, allowed, advice),
		metadata: map[string]string{"limit": strconv.Itoa(allowed)},
	}
}

// tooLarge refuses a part of a request by its size; flag is that of serve that
// sets the limit, "" where none does.
func tooLarge(field string, got, allowed int, flag string) error {
	advice := "make it smaller"
	if flag != "" {
		advice += ", or raise " + flag + " of the server"
	}
	return &requestError{
		code: codes.ResourceExhausted, reason: "TOO_LARGE", field: field,
		message:  fmt.Sprintf("it has %d bytes or more; at most %d are allowed; %s", got, allowed, advice),
		metadata: map[string]string{"limit": strconv.Itoa(allowed)},
	}
}

// isTooLarge reports whether a request was refused for its size alone. Unlike
// what else exhausts a resource it fails again, whenever it is sent.
func isTooLarge(st *status.Status) bool {
	if st.Code() != codes.ResourceExhausted {
		return false
	}
	for _, detail := range st.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			switch info.GetReason() {
			case "REQUEST_TOO_LARGE", "TOO_LARGE", "TOO_MANY_UPDATES", "TOO_MANY_PRECONDITIONS", "TOO_MANY_CHECKS", "TOO_MANY_FILTERS":
				return true
			}
		}
	}
	return false
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
	engine.UnknownStore:       codes.NotFound,
	engine.StoreExists:        codes.AlreadyExists,
	engine.StoreProtected:     codes.FailedPrecondition,
	engine.StoreFull:          codes.ResourceExhausted,
	engine.StageUnknown:       codes.NotFound,
	engine.StageGap:           codes.FailedPrecondition,
	engine.StageStale:         codes.Aborted,
	engine.StageTooLarge:      codes.ResourceExhausted,
	engine.StageMismatch:      codes.FailedPrecondition,
	engine.CounterExists:      codes.FailedPrecondition,
	engine.UnknownCounter:     codes.FailedPrecondition,
	engine.TooManyCounters:    codes.ResourceExhausted,
	engine.SchemaReplaced:     codes.Aborted,
}

// busyRetry is after what time a caller is told to try again who met a node that
// is busy: about as long as the writes that are under way take.
const busyRetry = 100 * time.Millisecond

// leaderRetry is after what time a caller is told to try again who met a node that
// has no leader: about as long as an election takes. The node itself has waited for
// one by then.
const leaderRetry = 500 * time.Millisecond

// sentinels gives the errors of the layers below their codes, in the order in
// which they are looked for: an error may wrap several.
var sentinels = []struct {
	err    error
	code   codes.Code
	reason string
	retry  time.Duration
}{
	{cluster.ErrRemoved, codes.Unavailable, "REMOVED", 0},
	{cluster.ErrDiverged, codes.Unavailable, "DIVERGED", 0},
	{cluster.ErrClock, codes.Unavailable, "CLOCK_WRONG", 0},
	{cluster.ErrMember, codes.FailedPrecondition, "MEMBER", 0},
	{cluster.ErrNotLeader, codes.Unavailable, "NOT_LEADER", leaderRetry},
	{cluster.ErrNotReady, codes.Unavailable, "NOT_READY", leaderRetry},
	{cluster.ErrShuttingDown, codes.Unavailable, "SHUTTING_DOWN", 0},
	{graph.ErrClosed, codes.Unavailable, "SHUTTING_DOWN", 0},
	{cluster.ErrFailed, codes.Unavailable, "NODE_FAILED", 0},
	{cluster.ErrTooBusy, codes.ResourceExhausted, "TOO_BUSY", busyRetry},
	{cluster.ErrEntryTooLarge, codes.ResourceExhausted, "TOO_LARGE", 0},
	{cluster.ErrDiskFull, codes.ResourceExhausted, "DISK_FULL", 0},
	{graph.ErrRevisionAhead, codes.Unavailable, "REVISION_AHEAD", 0},
	{graph.ErrRevisionGone, codes.OutOfRange, "REVISION_GONE", 0},
	{cluster.ErrInstantAhead, codes.OutOfRange, "INSTANT_AHEAD", 0},
	{graph.ErrUnknownStore, codes.NotFound, "UNKNOWN_STORE", 0},
	{graph.ErrInvalidPosition, codes.InvalidArgument, "CURSOR_INVALID", 0},
	{graph.ErrExhausted, codes.ResourceExhausted, "NUMBERS_EXHAUSTED", 0},
}

// toStatus maps any error to the status that goes over the wire. Errors that
// are already one, those of gRPC itself, stay as they are. The second result
// says that the error is a fault of this node, which its operator must learn of.
func toStatus(err error) (st *status.Status, fault bool) {
	// What only wraps one is judged by what it says.
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok || err == nil {
		return status.Convert(err), false
	}
	e, fault := toRequestError(err)
	if st, ok := status.FromError(err); ok && fault && e.code == codes.Internal {
		// Only what nothing here knows: an error of another node may wrap the status
		// of the call between the two.
		return st, false
	}
	var chunk *chunkError
	if errors.As(err, &chunk) {
		e.message = chunk.prefix() + e.message
		metadata := chunk.metadata()
		maps.Copy(metadata, e.metadata)
		e.metadata = metadata
	}
	st = newStatus(e.code, e.reason, e.field, e.message, e.metadata)
	if e.retry > 0 {
		if detailed, err := st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(e.retry)}); err == nil {
			st = detailed // Only a detail that cannot be encoded fails, and the code stands without it.
		}
	}
	return st, fault
}

// toRequestError gives any error that is no status yet its code, reason and
// words.
func toRequestError(err error) (e requestError, fault bool) {
	var refusal *engine.Refusal
	if errors.As(err, &refusal) {
		code, ok := reasonCodes[refusal.Reason]
		if !ok {
			code = codes.InvalidArgument
		}
		return requestError{
			code: code, reason: refusal.Reason.String(), field: refusal.Field, message: refusal.Message, metadata: refusal.Metadata,
		}, false
	}
	var request *requestError
	if errors.As(err, &request) {
		return *request, false
	}
	var chunk *chunkError
	if errors.As(err, &chunk) {
		err = chunk.err // The chunk is told by toStatus.
	}
	var invalid *graph.InvalidError
	if errors.As(err, &invalid) {
		return requestError{code: codes.InvalidArgument, reason: engine.Malformed.String(), message: invalid.Error()}, false
	}
	e = requestError{message: err.Error()}
	if graph.IsCorruptionError(err) {
		e.code, e.reason = codes.DataLoss, "CORRUPTION"
		e.message = graph.Damage(err).Error() + "; the node stops"
		return e, true
	}
	// What became of a write is worth more than why nobody knows.
	if errors.Is(err, cluster.ErrOutcomeUnknown) {
		e.code, e.reason = codes.Unavailable, "OUTCOME_UNKNOWN"
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			e.code = codes.DeadlineExceeded
		case errors.Is(err, context.Canceled):
			e.code = codes.Canceled
		}
		return e, false
	}
	for _, s := range sentinels {
		if errors.Is(err, s.err) {
			e.code, e.reason, e.retry = s.code, s.reason, s.retry
			var gone *graph.RevisionGoneError
			if errors.As(err, &gone) {
				e.metadata = map[string]string{"oldest_revision": strconv.FormatUint(uint64(gone.Oldest), 10)}
				if gone.OldestAt != 0 {
					e.metadata["oldest_at"] = gone.OldestAt.Time().UTC().Format(time.RFC3339Nano)
				}
			}
			return e, false
		}
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		e.code, e.reason = codes.DeadlineExceeded, "DEADLINE_EXCEEDED"
		return e, false
	case errors.Is(err, context.Canceled):
		e.code, e.reason = codes.Canceled, "CANCELED"
		return e, false
	}
	e.code, e.reason = codes.Internal, "FAULT"
	return e, true
}

// What bounds an error. gRPC sends it in the trailer, and some clients take trailers
// of 8 KiB at most: they would see an internal error.
const (
	// statusMessageSentMax bounds what a message takes of the trailer, the path of its
	// field before it included, as sentThirds counts it: 1,300 bytes of ASCII.
	statusMessageSentMax = 4767
	// statusFieldBytesMax bounds the path of a field, which may hold keys of a context.
	statusFieldBytesMax = 300
	// statusMetadataBytesMax bounds all of the metadata.
	statusMetadataBytesMax = 1500
)

// sentThirds returns what a byte of a message takes of the trailer, in thirds of a
// byte: it stands there by itself, where a byte that is not printable ASCII, and '%',
// becomes three, and twice in the details, which are sent as base64.
func sentThirds(c byte) int {
	if c < ' ' || c > '~' || c == '%' {
		return 3*3 + 2*4
	}
	return 3 + 2*4
}

// StatusMessage returns the message of an error as it may be sent: valid UTF-8, and
// cut where it is too long.
func StatusMessage(message string) string {
	message = validUTF8(message)
	left := 3 * statusMessageSentMax
	for i := range len(message) {
		if left -= sentThirds(message[i]); left < 0 {
			return cutText(message, i)
		}
	}
	return message
}

// StatusMetadata returns the metadata of an error as it may be sent: valid UTF-8, and
// with the longest values cut where all together are too long.
func StatusMetadata(metadata map[string]string) map[string]string {
	// Those that are short stay whole, for programs go by them.
	names := slices.SortedFunc(maps.Keys(metadata), func(a, b string) int {
		return cmp.Or(cmp.Compare(len(metadata[a]), len(metadata[b])), strings.Compare(a, b))
	})
	sent := make(map[string]string, len(metadata))
	left := statusMetadataBytesMax
	for i, name := range names {
		value := cutText(metadata[name], max(0, left/(len(names)-i)-len(name)))
		sent[validUTF8(name)] = value
		left -= len(name) + len(value)
	}
	return sent
}

// cutText returns a text as valid UTF-8, with three dots where it has more than most
// bytes.
func cutText(text string, most int) string {
	if text = validUTF8(text); len(text) > most {
		return strings.ToValidUTF8(text[:most], "") + "..."
	}
	return text
}

func newStatus(code codes.Code, reason, field, message string, metadata map[string]string) *status.Status {
	info := &errdetails.ErrorInfo{Reason: reason, Domain: ErrorDomain}
	text := StatusMessage(message)
	if field != "" {
		field = cutText(field, statusFieldBytesMax)
		text = StatusMessage(field + ": " + message)
		message = strings.TrimPrefix(text, field+": ")
		if metadata = maps.Clone(metadata); metadata == nil {
			metadata = make(map[string]string, 1)
		}
		metadata["field"] = field
	}
	info.Metadata = StatusMetadata(metadata)
	st := status.New(code, text)
	var detailed *status.Status
	var err error
	if field == "" {
		detailed, err = st.WithDetails(info)
	} else {
		detailed, err = st.WithDetails(info, &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
			{Field: field, Description: message, Reason: reason},
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
