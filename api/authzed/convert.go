package authzed

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

// This file holds every conversion between the messages of the API and the nouns
// of graph and engine.

// validate asks the rules that come with the protocol.
func validate(r interface{ Validate() error }) error {
	if err := r.Validate(); err != nil {
		return invalid("%v", err)
	}
	if h, ok := r.(interface{ HandwrittenValidate() error }); ok {
		if err := h.HandwrittenValidate(); err != nil {
			return invalid("%v", err)
		}
	}
	return nil
}

// isPlainQuestion reports whether the names and ids of a check keep the rules of the
// protocol, by a glance at their bytes. It knows only what nearly all of them are:
// of others it says false, and the expressions that come with the protocol, which
// take several times as long, decide and have the words of the error.
func isPlainQuestion(q interface {
	GetResource() *v1.ObjectReference
	GetPermission() string
	GetSubject() *v1.SubjectReference
},
) bool {
	relation := q.GetSubject().GetOptionalRelation()
	return isPlainObject(q.GetResource()) && isPlainObject(q.GetSubject().GetObject()) &&
		isPlainName(q.GetPermission()) && (relation == "" || isPlainName(relation))
}

func isPlainObject(o *v1.ObjectReference) bool {
	id := o.GetObjectId()
	if id == "" || len(id) > 1024 {
		return false
	}
	for i := range len(id) {
		if !plainID[id[i]] {
			return false
		}
	}
	return isPlainName(o.GetObjectType())
}

// isPlainName is for a name without prefixes.
func isPlainName(name string) bool {
	if len(name) < 3 || len(name) > 64 || name[0] < 'a' || name[0] > 'z' || name[len(name)-1] == '_' {
		return false
	}
	for i := range len(name) {
		if !plainName[name[i]] {
			return false
		}
	}
	return true
}

// plainName and plainID have the bytes that names and ids may have.
var (
	plainName = bytesOf("abcdefghijklmnopqrstuvwxyz0123456789_")
	plainID   = bytesOf("abcdefghijklmnopqrstuvwxyz0123456789_ABCDEFGHIJKLMNOPQRSTUVWXYZ/|-=+")
)

func bytesOf(text string) (set [256]bool) {
	for i := range len(text) {
		set[text[i]] = true
	}
	return set
}

func toObject(o *v1.ObjectReference) graph.Object {
	return graph.Object{Type: o.GetObjectType(), ID: o.GetObjectId()}
}

func fromObject(o graph.Object) *v1.ObjectReference {
	return &v1.ObjectReference{ObjectType: o.Type, ObjectId: o.ID}
}

func toSubject(s *v1.SubjectReference) graph.Subject {
	return graph.Subject{Object: toObject(s.GetObject()), Relation: s.GetOptionalRelation()}
}

func fromSubject(s graph.Subject) *v1.SubjectReference {
	return &v1.SubjectReference{Object: fromObject(s.Object), OptionalRelation: s.Relation}
}

// toTuple converts a relationship, whose form validate has judged; field names it in
// an error.
func toTuple(field string, r *v1.Relationship) (graph.Tuple, error) {
	t := graph.Tuple{Object: toObject(r.GetResource()), Relation: r.GetRelation(), Subject: toSubject(r.GetSubject())}
	if c := r.GetOptionalCaveat(); c != nil && c.GetCaveatName() != "" {
		t.Caveat = c.GetCaveatName()
		if n := proto.Size(c.GetContext()); n > tupleContextMax {
			return t, withReason(codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_MAX_RELATIONSHIP_CONTEXT_SIZE,
				fmt.Sprintf("the context of %s has %d bytes; at most %d are allowed", relationshipString(t), n, tupleContextMax),
				map[string]string{"relationship": relationshipString(t), "context_size": fmt.Sprint(n), "max_allowed_size": fmt.Sprint(tupleContextMax)})
		}
		var err error
		// Its JSON form may be longer than the message.
		if t.Context, err = api.TupleContext(field+".optional_caveat.context", c.GetContext(), 4*tupleContextMax); err != nil {
			return t, err
		}
	}
	if e := r.GetOptionalExpiresAt(); e != nil {
		if err := e.CheckValid(); err != nil {
			return t, invalid("%s.optional_expires_at: %v", field, err)
		}
		t.ValidUntil = graph.InstantOf(e.AsTime())
		if t.ValidUntil <= 0 || t.ValidUntil > graph.MaxInstant {
			return t, invalid("%s.optional_expires_at: it is %s; moments from 1970 to the year 9999 are allowed", field, e.AsTime())
		}
	}
	return t, nil
}

func fromTuple(t graph.Tuple) (*v1.Relationship, error) {
	r := &v1.Relationship{Resource: fromObject(t.Object), Relation: t.Relation, Subject: fromSubject(t.Subject)}
	if t.Caveat != "" {
		r.OptionalCaveat = &v1.ContextualizedCaveat{CaveatName: t.Caveat}
		if len(t.Context) > 0 {
			r.OptionalCaveat.Context = &structpb.Struct{}
			if err := r.OptionalCaveat.Context.UnmarshalJSON(t.Context); err != nil {
				return nil, fmt.Errorf("the context of a stored tuple is no JSON object: %w", err)
			}
		}
	}
	if t.ValidUntil != 0 {
		r.OptionalExpiresAt = timestamppb.New(t.ValidUntil.Time())
	}
	return r, nil
}

// relationshipString writes a tuple as the API does, without caveat and expiration.
func relationshipString(t graph.Tuple) string {
	s := fmt.Sprintf("%s:%s#%s@%s:%s", t.Object.Type, t.Object.ID, t.Relation, t.Subject.Type, t.Subject.ID)
	if t.Subject.Relation != "" {
		s += "#" + t.Subject.Relation
	}
	return s
}

// toFilter converts a filter; an empty one matches everything, which the callers
// that must not allow it refuse.
func toFilter(f *v1.RelationshipFilter) (graph.Filter, error) {
	if err := validate(f); err != nil {
		return graph.Filter{}, err
	}
	if f.GetOptionalResourceId() != "" && f.GetOptionalResourceIdPrefix() != "" {
		return graph.Filter{}, withReason(codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_INVALID_FILTER,
			"the filter names a resource id and a prefix of one; only one of them is allowed", map[string]string{"filter": f.String()})
	}
	g := graph.Filter{
		ObjectType: f.GetResourceType(), ObjectID: f.GetOptionalResourceId(), ObjectIDPrefix: f.GetOptionalResourceIdPrefix(),
		Relation: f.GetOptionalRelation(),
	}
	if s := f.GetOptionalSubjectFilter(); s != nil {
		g.SubjectType, g.SubjectID = s.GetSubjectType(), s.GetOptionalSubjectId()
		if r := s.GetOptionalRelation(); r != nil {
			relation := r.GetRelation()
			g.SubjectRelation = &relation
		}
	}
	return g, nil
}

// toFullFilter is toFilter for calls that need a filter with something in it.
func toFullFilter(f *v1.RelationshipFilter) (graph.Filter, error) {
	g, err := toFilter(f)
	if err == nil && g == (graph.Filter{}) {
		err = withReason(codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_INVALID_FILTER,
			"the filter is empty; at least one field must be set", map[string]string{"filter": ""})
	}
	return g, err
}

// countPreconditions refuses too many of them.
func countPreconditions(conditions []*v1.Precondition) error {
	if len(conditions) <= preconditionsMax {
		return nil
	}
	return withReason(codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_TOO_MANY_PRECONDITIONS_IN_REQUEST,
		fmt.Sprintf("precondition count of %d is greater than maximum allowed of %d", len(conditions), preconditionsMax),
		map[string]string{"precondition_count": fmt.Sprint(len(conditions)), "maximum_updates_allowed": fmt.Sprint(preconditionsMax)})
}

// toPreconditions converts preconditions.
func toPreconditions(conditions []*v1.Precondition) ([]graph.Precondition, error) {
	if err := countPreconditions(conditions); err != nil {
		return nil, err
	}
	var result []graph.Precondition
	for i, c := range conditions {
		f, err := toFilter(c.GetFilter())
		if err != nil {
			return nil, err
		}
		if f == (graph.Filter{}) {
			return nil, withReason(codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_UNSPECIFIED,
				fmt.Sprintf("the filter of precondition %d is empty; at least one field must be set", i), nil)
		}
		p := graph.Precondition{Filter: f}
		switch c.GetOperation() {
		case v1.Precondition_OPERATION_MUST_MATCH:
		case v1.Precondition_OPERATION_MUST_NOT_MATCH:
			p.MustNotMatch = true
		default:
			return nil, invalid("optional_preconditions[%d].operation: it is %s", i, c.GetOperation())
		}
		result = append(result, p)
	}
	return result, nil
}

// toMetadata converts the metadata of a change to its canonical form, by which
// pemba.v1 stores it too. JSON as protobuf writes it has blanks that differ from one
// build to another, which do not count.
func toMetadata(m *structpb.Struct) ([]byte, error) {
	if len(m.GetFields()) == 0 {
		return nil, nil
	}
	b, err := m.MarshalJSON()
	if err != nil {
		return nil, invalid("optional_transaction_metadata: %v", err)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, b); err != nil {
		return nil, invalid("optional_transaction_metadata: %v", err)
	}
	if n := compact.Len(); n > metadataMax {
		return nil, withReason(codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_TRANSACTION_METADATA_TOO_LARGE,
			fmt.Sprintf("metadata size of %d is greater than maximum allowed of %d", n, metadataMax),
			map[string]string{"metadata_byte_size": fmt.Sprint(n), "maximum_allowed_metadata_byte_size": fmt.Sprint(metadataMax)})
	}
	return api.TupleContext("optional_transaction_metadata", m, metadataMax)
}

// filterMetadata is what the errors say of a filter: its fields that are set, under
// names that begin with prefix.
func filterMetadata(prefix string, f *v1.RelationshipFilter) map[string]string {
	m := map[string]string{prefix + "resource_type": f.GetResourceType()}
	set := func(name, value string) {
		if value != "" {
			m[prefix+name] = value
		}
	}
	set("resource_id", f.GetOptionalResourceId())
	set("resource_id_prefix", f.GetOptionalResourceIdPrefix())
	set("relation", f.GetOptionalRelation())
	if s := f.GetOptionalSubjectFilter(); s != nil {
		set("subject_type", s.GetSubjectType())
		set("subject_id", s.GetOptionalSubjectId())
		if r := s.GetOptionalRelation(); r != nil {
			m[prefix+"subject_relation"] = r.GetRelation()
		}
	}
	return m
}

// exceeds is the error of a limit that is larger than the largest allowed.
func exceeds(limit uint32, allowed int) error {
	if uint64(limit) <= uint64(allowed) {
		return nil
	}
	return withReason(codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_EXCEEDS_MAXIMUM_ALLOWABLE_LIMIT,
		fmt.Sprintf("the limit of %d is greater than the maximum allowed of %d", limit, allowed),
		map[string]string{"limit_provided": fmt.Sprint(limit), "maximum_limit_allowed": fmt.Sprint(allowed)})
}

// fromMetadata converts the metadata of a change back; nil for none.
func fromMetadata(b []byte) (*structpb.Struct, error) {
	if len(b) == 0 {
		return nil, nil
	}
	m := &structpb.Struct{}
	return m, m.UnmarshalJSON(b)
}

// toContext converts the context of a question.
func toContext(c *structpb.Struct) (schema.Context, error) {
	if c == nil {
		return nil, nil
	}
	if n := proto.Size(c); n > questionContextMax {
		return nil, invalid("request caveat context should have less than %d bytes but had %d", questionContextMax, n)
	}
	return api.QuestionContext("context", c, 4*questionContextMax)
}

// contextArgument is a context as an argument of a cursor.
func contextArgument(c schema.Context) (string, error) {
	if len(c) == 0 {
		return "", nil
	}
	b, err := json.Marshal(c)
	return string(b), err
}

// fromVerdict converts the answer to a check.
func fromVerdict(v engine.Verdict) (v1.CheckPermissionResponse_Permissionship, *v1.PartialCaveatInfo) {
	switch v.Decision {
	case engine.Allowed:
		return v1.CheckPermissionResponse_PERMISSIONSHIP_HAS_PERMISSION, nil
	case engine.Conditional:
		return v1.CheckPermissionResponse_PERMISSIONSHIP_CONDITIONAL_PERMISSION, partial(v)
	}
	return v1.CheckPermissionResponse_PERMISSIONSHIP_NO_PERMISSION, nil
}

// fromFound converts the verdict of a result of a lookup.
func fromFound(v engine.Verdict) (v1.LookupPermissionship, *v1.PartialCaveatInfo) {
	if v.Decision == engine.Conditional {
		return v1.LookupPermissionship_LOOKUP_PERMISSIONSHIP_CONDITIONAL_PERMISSION, partial(v)
	}
	return v1.LookupPermissionship_LOOKUP_PERMISSIONSHIP_HAS_PERMISSION, nil
}

func partial(v engine.Verdict) *v1.PartialCaveatInfo {
	return &v1.PartialCaveatInfo{MissingRequiredContext: v.Missing}
}

// looksLikeToken reports whether a token may be that of another server: the base64
// of a message that carries something in one of its first three fields. What is not
// was garbled.
func looksLikeToken(token string) bool {
	if strings.ContainsAny(token, "\r\n") {
		return false // The decoder skips them.
	}
	for _, e := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
		if b, err := e.DecodeString(token); err == nil {
			return isTokenMessage(b)
		}
	}
	return false
}

func isTokenMessage(b []byte) bool {
	carries := false
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeField(b)
		if n < 0 || number > 15 {
			return false
		}
		carries = carries || kind == protowire.BytesType && number <= 3
		b = b[n:]
	}
	return carries
}
