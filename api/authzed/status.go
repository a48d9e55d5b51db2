package authzed

import (
	"cmp"
	"errors"
	"fmt"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// errorDomain is the domain of the API's ErrorInfo.
const errorDomain = "authzed.com"

// invalid is the error of a request that breaks the rules of its form; such an
// error has no reason in this API.
func invalid(format string, args ...any) error {
	return status.Error(codes.InvalidArgument, api.StatusMessage(fmt.Sprintf(format, args...)))
}

// errInvalidToken answers a token that no server made.
var errInvalidToken = status.Error(codes.InvalidArgument, "invalid revision requested: the token is garbled, or was made by another server")

// withReason is an error with one of the API's reasons.
func withReason(code codes.Code, reason v1.ErrorReason, message string, metadata map[string]string) error {
	return reasoned(code, reason, message, metadata).Err()
}

func reasoned(code codes.Code, reason v1.ErrorReason, message string, metadata map[string]string) *status.Status {
	st := status.New(code, api.StatusMessage(message))
	detailed, err := st.WithDetails(&errdetails.ErrorInfo{Reason: reason.String(), Domain: errorDomain, Metadata: api.StatusMetadata(metadata)})
	if err != nil {
		return st // Only a detail that cannot be encoded comes here; the code stands.
	}
	return detailed
}

// A refusalStatus says what the API calls one of the engine's reasons.
type refusalStatus struct {
	code   codes.Code
	reason v1.ErrorReason
}

// refusals has every reason of the engine that has a name of its own in the API.
// The others keep the code that pemba.v1 gives them.
var refusals = map[engine.Reason]refusalStatus{
	engine.NoSchema:           {codes.FailedPrecondition, v1.ErrorReason_ERROR_REASON_UNKNOWN_DEFINITION},
	engine.UnknownType:        {codes.FailedPrecondition, v1.ErrorReason_ERROR_REASON_UNKNOWN_DEFINITION},
	engine.UnknownName:        {codes.FailedPrecondition, v1.ErrorReason_ERROR_REASON_UNKNOWN_RELATION_OR_PERMISSION},
	engine.UnknownCaveat:      {codes.FailedPrecondition, v1.ErrorReason_ERROR_REASON_UNKNOWN_CAVEAT},
	engine.NotARelation:       {codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_CANNOT_UPDATE_PERMISSION},
	engine.SubjectNotAllowed:  {codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_INVALID_SUBJECT_TYPE},
	engine.ContextInvalid:     {codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_CAVEAT_PARAMETER_TYPE_ERROR},
	engine.DuplicateUpdate:    {codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_UPDATES_ON_SAME_RELATIONSHIP},
	engine.AlreadyExists:      {codes.AlreadyExists, v1.ErrorReason_ERROR_REASON_ATTEMPT_TO_RECREATE_RELATIONSHIP},
	engine.PreconditionFailed: {codes.FailedPrecondition, v1.ErrorReason_ERROR_REASON_WRITE_OR_DELETE_PRECONDITION_FAILURE},
	engine.TooManyMatches:     {codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_TOO_MANY_RELATIONSHIPS_FOR_TRANSACTIONAL_DELETE},
	engine.SchemaSyntax:       {codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_SCHEMA_PARSE_ERROR},
	engine.SchemaType:         {codes.FailedPrecondition, v1.ErrorReason_ERROR_REASON_SCHEMA_TYPE_ERROR},
	engine.SchemaData:         {codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_SCHEMA_TYPE_ERROR},
	engine.WildcardSubject:    {codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_WILDCARD_NOT_ALLOWED},
	engine.CaveatFailed:       {codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_CAVEAT_EVALUATION_ERROR},
	engine.CursorInvalid:      {codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_INVALID_CURSOR},
	engine.CounterExists:      {codes.FailedPrecondition, v1.ErrorReason_ERROR_REASON_COUNTER_ALREADY_REGISTERED},
	engine.UnknownCounter:     {codes.FailedPrecondition, v1.ErrorReason_ERROR_REASON_COUNTER_NOT_REGISTERED},
	// What an import has staged was overtaken by a schema, or dropped: begin again.
	engine.StageStale:    {codes.Aborted, v1.ErrorReason_ERROR_REASON_SERIALIZATION_FAILURE},
	engine.StageUnknown:  {codes.Aborted, v1.ErrorReason_ERROR_REASON_SERIALIZATION_FAILURE},
	engine.StageTooLarge: {codes.ResourceExhausted, v1.ErrorReason_ERROR_REASON_UNSPECIFIED},
}

// metadataNames says under which names the API carries what a refusal says.
var metadataNames = map[string]string{
	"type": "definition_name", "caveat": "caveat_name", "parameter": "parameter_name", "tuple": "relationship",
	"given": "subject_type", "counter": "counter_name",
}

// Status implements api.Dialect.
func (Dialect) Status(err error, native *status.Status) *status.Status {
	if missing, wrong := api.KeyRefusal(err); missing {
		return status.New(codes.Unauthenticated, native.Message())
	} else if wrong {
		return status.New(codes.PermissionDenied, "invalid preshared key: invalid token")
	}
	var refusal *engine.Refusal
	if errors.As(err, &refusal) {
		if known, ok := refusals[refusal.Reason]; ok {
			if refusal.Reason == engine.StageTooLarge && refusal.Field != "" {
				// Not others have staged too much, but this one would.
				known.code = codes.FailedPrecondition
			}
			return reasoned(known.code, known.reason, refusalText(refusal), refusalMetadata(refusal))
		}
	}
	if errors.Is(err, graph.ErrInvalidPosition) || isCursorError(native) {
		return reasoned(codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_INVALID_CURSOR, "invalid cursor: "+native.Message(), nil)
	}
	if errors.Is(err, graph.ErrRevisionGone) || errors.Is(err, cluster.ErrRevisionUnknown) {
		return status.New(codes.OutOfRange, "invalid revision: "+native.Message())
	}
	if errors.Is(err, cluster.ErrEntryTooLarge) || isPartTooLarge(native) {
		return withCode(native, codes.InvalidArgument)
	}
	if failsAgain(native) {
		return withCode(native, codes.FailedPrecondition)
	}
	return native
}

// Clients of the API send again what has exhausted a resource, zed ten times. What
// fails whenever it is sent therefore has another code here: that of a mistake where
// the request alone decides it, and else that of a failed precondition, as a question
// has there that nests too deep.

// lasting has the reasons of pemba.v1 for what fails again until the schema, the data
// or the settings of the server are others.
var lasting = map[string]bool{
	"ANSWER_TOO_LARGE":               true,
	engine.BudgetExceeded.String():   true,
	engine.NumbersExhausted.String(): true,
	engine.StoreFull.String():        true,
	engine.TooManyCounters.String():  true,
	engine.TooMuchToRead.String():    true,
	"TOO_MANY_STORES":                true,
}

// failsAgain reports whether pemba.v1 has a lasting reason for an error. A question
// that found the memory used up by others is the exception of its reason.
func failsAgain(native *status.Status) bool {
	info := nativeInfo(native)
	return lasting[info.GetReason()] && info.GetMetadata()[engine.SharedMemoryBytes] == ""
}

// withCode is an error with another code, and all else as it is.
func withCode(st *status.Status, code codes.Code) *status.Status {
	same := st.Proto()
	same.Code = int32(code)
	return status.FromProto(same)
}

// isCursorError reports whether pemba.v1 calls an error that of a cursor.
func isCursorError(native *status.Status) bool {
	info := nativeInfo(native)
	return info.GetReason() == engine.CursorInvalid.String() ||
		info.GetReason() == "ZOOKIE_FOREIGN" && info.GetMetadata()["field"] == "cursor"
}

// isPartTooLarge reports whether pemba.v1 calls an error that of the size of a part
// of a request. A whole message that is too large is what it is for gRPC itself.
func isPartTooLarge(native *status.Status) bool {
	info := nativeInfo(native)
	return info.GetReason() == "TOO_LARGE" && info.GetMetadata()["field"] != ""
}

// nativeInfo returns what pemba.v1 says of an error beside its text, or nil.
func nativeInfo(native *status.Status) *errdetails.ErrorInfo {
	for _, d := range native.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == api.ErrorDomain {
			return info
		}
	}
	return nil
}

// refusalText says what the API says, where clients and people know its words.
func refusalText(r *engine.Refusal) string {
	switch r.Reason {
	case engine.NoSchema:
		return "object definition not found: no schema has been defined; please call WriteSchema to start"
	case engine.UnknownType:
		return fmt.Sprintf("object definition `%s` not found", r.Metadata["type"])
	case engine.UnknownName:
		if r.Metadata["type"] == "" {
			break // It is said of all definitions.
		}
		return fmt.Sprintf("relation/permission `%s` not found under definition `%s`", r.Metadata["name"], r.Metadata["type"])
	case engine.UnknownCaveat:
		return fmt.Sprintf("caveat with name `%s` not found", r.Metadata["caveat"])
	case engine.SubjectNotAllowed:
		return fmt.Sprintf("subjects of type `%s` are not allowed on relation `%s#%s`: %s",
			r.Metadata["given"], r.Metadata["type"], r.Metadata["name"], r.Message)
	case engine.NotARelation:
		return fmt.Sprintf("cannot write a relationship to permission `%s` under definition `%s`", r.Metadata["name"], r.Metadata["type"])
	case engine.AlreadyExists:
		return fmt.Sprintf("could not CREATE relationship `%s`, as it already exists; if this is persistent, TOUCH it", refusalMetadata(r)["relationship"])
	case engine.CounterExists:
		return fmt.Sprintf("counter with name `%s` already registered", r.Metadata["counter"])
	case engine.UnknownCounter:
		return fmt.Sprintf("counter with name `%s` not found", r.Metadata["counter"])
	case engine.StageStale:
		return "the schema was changed while relationships were imported; import them again"
	case engine.StageUnknown:
		return "what was imported so far was dropped meanwhile; import it again"
	case engine.StageTooLarge:
		if r.Field == "" { // It is not about what is sent.
			return fmt.Sprintf("the store has %d imports that are not done, and no more are allowed; try again when one of them is done. "+
				"One whose client is gone makes room after %d minutes, or after %d hours where it was begun so that it can be gone on with",
				graph.StagesMax, int(api.LeftBehindAfter.Minutes()), graph.StageLifetime/3600e6)
		}
		return "too many relationships would become visible at once; send them in several imports"
	}
	return r.Message
}

func refusalMetadata(r *engine.Refusal) map[string]string {
	m := make(map[string]string, len(r.Metadata)+1)
	for k, v := range r.Metadata {
		if name, ok := metadataNames[k]; ok {
			k = name
		}
		m[k] = v
	}
	if text, ok := r.Metadata["tuple"]; ok {
		tupleMetadata(m, r.Reason, text)
	}
	switch r.Reason {
	case engine.UnknownName:
		m["relation_or_permission_name"] = r.Metadata["name"]
		delete(m, "name")
	case engine.NotARelation:
		m["permission_name"] = r.Metadata["name"]
		delete(m, "name")
	case engine.SubjectNotAllowed:
		m["relation_name"] = r.Metadata["name"]
		delete(m, "name")
	case engine.WildcardSubject:
		m["field"] = cmp.Or(wildcardFields[r.Field], r.Field)
	}
	return m
}

// wildcardFields says what the API calls the parts of a question that may be no
// wildcard.
var wildcardFields = map[string]string{"subject.object.id": "subject.object_id", "object.id": "resource.object_id"}

// refusedLookup gives the engine's no to a LookupResources the API's name of its
// subject, which is another one there.
func refusedLookup(err error) error {
	var refusal *engine.Refusal
	if !errors.As(err, &refusal) || refusal.Reason != engine.WildcardSubject {
		return err
	}
	named := *refusal
	named.Field = "subject_id"
	return &named
}

// decomposedMax is how long a relationship may be for its parts to be told too.
const decomposedMax = 512

// tupleMetadata says of a tuple, given as Pemba's text, what the API says.
func tupleMetadata(m map[string]string, reason engine.Reason, text string) {
	t, err := graph.ParseTuple(text)
	if err != nil {
		return // It is no single tuple, and the text stands as it is.
	}
	m["relationship"] = relationshipString(t)
	switch reason {
	case engine.DuplicateUpdate:
		m["definition_name"] = t.Object.Type
	case engine.AlreadyExists:
		if len(text) > decomposedMax {
			return // Trailers are bounded, and all of it stands in the relationship.
		}
		m["resource_type"], m["resource_object_id"], m["resource_relation"] = t.Object.Type, t.Object.ID, t.Relation
		m["subject_type"], m["subject_object_id"], m["subject_relation"] = t.Subject.Type, t.Subject.ID, t.Subject.Relation
	default:
	}
}
