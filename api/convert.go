package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

// This file holds every conversion between the messages of pemba.v1 and the
// nouns of graph and engine. What comes in is validated here: a message, or any
// part of one, may be missing, and an error names the path of the field, as
// "updates[3].tuple.subject.object.id". Whether names exist is not asked here:
// that depends on the schema, and is the engine's to say.

// malformed returns the refusal of one field.
func malformed(field, format string, args ...any) error {
	return &engine.Refusal{Reason: engine.Malformed, Field: field, Message: fmt.Sprintf(format, args...)}
}

// within puts the name of a message before the field that err is about.
func within(message string, err error) error {
	var refusal *engine.Refusal
	if errors.As(err, &refusal) {
		r := *refusal
		r.Field = joinField(message, r.Field)
		return &r
	}
	var re *requestError
	if errors.As(err, &re) {
		r := *re
		r.field = joinField(message, r.field)
		return &r
	}
	return err
}

func joinField(message, field string) string {
	if field == "" {
		return message
	}
	if field[0] == '[' {
		return message + field
	}
	return message + "." + field
}

// checked turns what graph says of a part into the refusal of a field.
func checked(field string, err error) error {
	if err == nil {
		return nil
	}
	var invalid *graph.InvalidError
	if !errors.As(err, &invalid) {
		return malformed(field, "%v", err)
	}
	message := "it " + invalid.Problem
	if invalid.Value != "" {
		message = fmt.Sprintf("%q %s", invalid.Value, invalid.Problem)
	}
	if invalid.Allowed != "" {
		message += "; allowed: " + invalid.Allowed
	}
	return malformed(field, "%s", message)
}

func checkType(field, name string) error     { return checked(field, graph.ValidateType(name)) }
func checkRelation(field, name string) error { return checked(field, graph.ValidateRelation(name)) }

// checkText validates a piece of text of at most bytesMax bytes, which may be
// empty.
func checkText(field, text string, bytesMax int) error {
	if len(text) > bytesMax {
		return malformed(field, "it has %d bytes; at most %d are allowed", len(text), bytesMax)
	}
	if !utf8.ValidString(text) {
		return malformed(field, "it is not valid UTF-8")
	}
	for i, r := range text {
		if unicode.IsControl(r) {
			return malformed(field, "it holds the control character %U at byte %d; control characters are not allowed", r, i)
		}
	}
	return nil
}

func toObject(p *pembav1.Object) (graph.Object, error) {
	if p == nil {
		return graph.Object{}, malformed("", "it is missing; an object has a type and an id")
	}
	if err := checkType("type", p.GetType()); err != nil {
		return graph.Object{}, err
	}
	if err := checked("id", graph.ValidateID(p.GetId())); err != nil {
		return graph.Object{}, err
	}
	return graph.Object{Type: p.GetType(), ID: p.GetId()}, nil
}

func toSubject(p *pembav1.Subject) (graph.Subject, error) {
	if p == nil {
		return graph.Subject{}, malformed("", "it is missing; a subject has an object and, for a userset, a relation")
	}
	if p.GetObject().GetId() == graph.Wildcard {
		if err := checkType("object.type", p.GetObject().GetType()); err != nil {
			return graph.Subject{}, err
		}
		if p.GetRelation() != "" {
			return graph.Subject{}, malformed("relation", "it is %q; a wildcard has no relation", p.GetRelation())
		}
		return graph.Subject{Object: graph.Object{Type: p.GetObject().GetType(), ID: graph.Wildcard}}, nil
	}
	o, err := toObject(p.GetObject())
	if err != nil {
		return graph.Subject{}, within("object", err)
	}
	if p.GetRelation() != "" {
		if err := checkRelation("relation", p.GetRelation()); err != nil {
			return graph.Subject{}, err
		}
	}
	return graph.Subject{Object: o, Relation: p.GetRelation()}, nil
}

func (l *Limits) toTuple(p *pembav1.Tuple) (graph.Tuple, error) {
	if p == nil {
		return graph.Tuple{}, malformed("", "it is missing; a tuple has an object, a relation and a subject")
	}
	var t graph.Tuple
	var err error
	if t.Object, err = toObject(p.GetObject()); err != nil {
		return graph.Tuple{}, within("object", err)
	}
	if err := checkRelation("relation", p.GetRelation()); err != nil {
		return graph.Tuple{}, err
	}
	t.Relation = p.GetRelation()
	if t.Subject, err = toSubject(p.GetSubject()); err != nil {
		return graph.Tuple{}, within("subject", err)
	}
	if c := p.GetCaveat(); c != nil {
		if err := checked("caveat.name", graph.ValidateCaveat(c.GetName())); err != nil {
			return graph.Tuple{}, err
		}
		t.Caveat = c.GetName()
		if t.Context, err = toJSON("caveat.context", c.GetContext(), l.TupleContextBytes, "--limit-tuple-context-bytes"); err != nil {
			return graph.Tuple{}, err
		}
	}
	if p.GetExpiresAt() != nil {
		if t.ValidUntil, err = toInstant("expires_at", p.GetExpiresAt()); err != nil {
			return graph.Tuple{}, err
		}
	}
	return t, nil
}

func toInstant(field string, p *timestamppb.Timestamp) (graph.Instant, error) {
	if err := p.CheckValid(); err != nil {
		return 0, malformed(field, "it is out of range; moments of the years 1 to 9999 are allowed, with 0 to 999,999,999 nanos")
	}
	i := graph.InstantOf(p.AsTime())
	if i <= 0 || i > graph.MaxInstant {
		return 0, malformed(field, "it is %s; moments after 1970-01-01T00:00:00Z and up to the year 9999 are allowed", p.AsTime().Format(time.RFC3339Nano))
	}
	return i, nil
}

func (l *Limits) toUpdates(updates []*pembav1.TupleUpdate) ([]graph.Update, error) {
	if len(updates) == 0 {
		return nil, malformed("updates", "there is none; 1 to %d are allowed", l.Updates)
	}
	if len(updates) > l.Updates {
		return nil, tooMany("updates", "TOO_MANY_UPDATES", len(updates), l.Updates, "send several requests, or raise --limit-updates of the server")
	}
	result := make([]graph.Update, len(updates))
	for i, u := range updates {
		at := func(err error) error { return within(fmt.Sprintf("updates[%d]", i), err) }
		switch u.GetOperation() {
		case pembav1.TupleUpdate_OPERATION_TOUCH:
			result[i].Operation = graph.Touch
		case pembav1.TupleUpdate_OPERATION_CREATE:
			result[i].Operation = graph.Create
		case pembav1.TupleUpdate_OPERATION_DELETE:
			result[i].Operation = graph.Delete
		default:
			return nil, at(malformed("operation", "it is %s; OPERATION_TOUCH, OPERATION_CREATE and OPERATION_DELETE are allowed", u.GetOperation()))
		}
		t, err := l.toTuple(u.GetTuple())
		if err != nil {
			return nil, at(within("tuple", err))
		}
		result[i].Tuple = t
	}
	return result, nil
}

func toFilter(p *pembav1.TupleFilter) (graph.Filter, error) {
	f := graph.Filter{
		ObjectType: p.GetObjectType(), ObjectID: p.GetObjectId(), ObjectIDPrefix: p.GetObjectIdPrefix(),
		Relation: p.GetRelation(), SubjectType: p.GetSubjectType(), SubjectID: p.GetSubjectId(),
	}
	for _, c := range [...]struct {
		field, text string
		check       func(field, text string) error
	}{
		{"object_type", f.ObjectType, checkType},
		{"object_id", f.ObjectID, func(field, id string) error { return checked(field, graph.ValidateID(id)) }},
		{"object_id_prefix", f.ObjectIDPrefix, func(field, id string) error { return checkText(field, id, graph.MaxIDLength) }},
		{"relation", f.Relation, checkRelation},
		{"subject_type", f.SubjectType, checkType},
		{"subject_id", f.SubjectID, func(field, id string) error {
			if id == graph.Wildcard {
				return nil
			}
			return checked(field, graph.ValidateID(id))
		}},
	} {
		if c.text == "" {
			continue
		}
		if err := c.check(c.field, c.text); err != nil {
			return graph.Filter{}, err
		}
	}
	if f.ObjectID != "" && f.ObjectIDPrefix != "" {
		return graph.Filter{}, malformed("object_id_prefix", "object_id is set too; the two exclude each other")
	}
	if p != nil && p.SubjectRelation != nil {
		if relation := p.GetSubjectRelation(); relation != "" {
			if err := checkRelation("subject_relation", relation); err != nil {
				return graph.Filter{}, err
			}
			if f.SubjectID == graph.Wildcard {
				return graph.Filter{}, malformed("subject_relation", "it is %q; a wildcard has no relation", relation)
			}
		}
		relation := p.GetSubjectRelation()
		f.SubjectRelation = &relation
	}
	return f, nil
}

func isEmpty(f graph.Filter) bool { return f == graph.Filter{} }

func (l *Limits) toPreconditions(conditions []*pembav1.Precondition) ([]graph.Precondition, error) {
	if len(conditions) > l.Preconditions {
		return nil, tooMany("preconditions", "TOO_MANY_PRECONDITIONS", len(conditions), l.Preconditions, "let fewer filters say it, or raise --limit-preconditions of the server")
	}
	if len(conditions) == 0 {
		return nil, nil
	}
	result := make([]graph.Precondition, len(conditions))
	for i, c := range conditions {
		at := func(err error) error { return within(fmt.Sprintf("preconditions[%d]", i), err) }
		switch c.GetOperation() {
		case pembav1.Precondition_OPERATION_MUST_MATCH:
		case pembav1.Precondition_OPERATION_MUST_NOT_MATCH:
			result[i].MustNotMatch = true
		default:
			return nil, at(malformed("operation", "it is %s; OPERATION_MUST_MATCH and OPERATION_MUST_NOT_MATCH are allowed", c.GetOperation()))
		}
		f, err := toFilter(c.GetFilter())
		if err != nil {
			return nil, at(within("filter", err))
		}
		if isEmpty(f) {
			return nil, at(malformed("filter", "it is empty; at least one of its fields must be set"))
		}
		result[i].Filter = f
	}
	return result, nil
}

// setReasons fills in what a change carries beside itself.
func (l *Limits) setReasons(m *graph.Mutation, actor string, metadata *structpb.Struct) (err error) {
	if err := checkText("recorded_actor", actor, actorBytesMax); err != nil {
		return err
	}
	m.RecordedActor = actor
	m.Metadata, err = toJSON("metadata", metadata, l.MetadataBytes, "--limit-metadata-bytes")
	return err
}

// toStoreChange converts the settings that are set.
func toStoreChange(p *pembav1.StoreSettings) (*graph.StoreChange, error) {
	var c graph.StoreChange
	var err error
	if c.History, err = toRetention("history", p.GetHistory()); err != nil {
		return nil, err
	}
	if c.Log, err = toRetention("log", p.GetLog()); err != nil {
		return nil, err
	}
	if p != nil {
		c.TuplesMax, c.CallsPerSecond = p.TuplesMax, p.CallsPerSecond
	}
	return &c, nil
}

// toRetention converts a retention; nil stays nil.
func toRetention(field string, p *pembav1.Retention) (*graph.Retention, error) {
	if p == nil {
		return nil, nil
	}
	var r graph.Retention
	switch kept := p.GetKept().(type) {
	case *pembav1.Retention_Forever:
		if !kept.Forever {
			return nil, malformed(field+".forever", "it is false; set it to true, or set a duration")
		}
		r = graph.Forever
	case *pembav1.Retention_Duration:
		d := kept.Duration
		if err := d.CheckValid(); err != nil {
			return nil, malformed(field+".duration", "it is out of range; a second to 315,576,000,000 seconds are allowed")
		}
		// time.Duration would end at 292 years.
		r = graph.Retention(d.GetSeconds()*1_000_000 + int64(d.GetNanos())/1000)
		if r < graph.MinRetention {
			return nil, malformed(field+".duration", "it is %v; at least a second is allowed", d.AsDuration())
		}
	default:
		return nil, malformed(field, "it is empty; a duration, or forever, is allowed")
	}
	return &r, nil
}

// setSettings applies a change to settings.
func setSettings(settings *graph.StoreSettings, c *graph.StoreChange) {
	if c.History != nil {
		settings.History = *c.History
	}
	if c.Log != nil {
		settings.Log = *c.Log
	}
	if c.TuplesMax != nil {
		settings.TuplesMax = *c.TuplesMax
	}
	if c.CallsPerSecond != nil {
		settings.CallsPerSecond = *c.CallsPerSecond
	}
}

// toConsistency turns a zookie into the state a read needs. isAncestor tells what the
// cluster was called before it was recovered: what was written then is here or was lost,
// and who asks for a state at least as fresh gets all that there is.
func toConsistency(p *pembav1.Consistency, clusterID [16]byte, isAncestor func([16]byte) bool) (cluster.Consistency, error) {
	var c cluster.Consistency
	var field string
	var token *pembav1.Zookie
	switch r := p.GetRequirement().(type) {
	case nil:
		return cluster.Consistency{Mode: cluster.Newest}, nil
	case *pembav1.Consistency_Newest:
		if !r.Newest {
			return c, malformed("consistency.newest", "it is false; set it to true, or leave the consistency out, which means the same")
		}
		return cluster.Consistency{Mode: cluster.Newest}, nil
	case *pembav1.Consistency_Linearizable:
		if !r.Linearizable {
			return c, malformed("consistency.linearizable", "it is false; set it to true or leave it out")
		}
		return cluster.Consistency{Mode: cluster.Linearizable}, nil
	case *pembav1.Consistency_AtLeastAsFresh:
		c.Mode, field, token = cluster.AtLeast, "consistency.at_least_as_fresh", r.AtLeastAsFresh
	case *pembav1.Consistency_ExactlyAt:
		c.Mode, field, token = cluster.Exactly, "consistency.exactly_at", r.ExactlyAt
	case *pembav1.Consistency_AsOf:
		c.Mode = cluster.AsOf
		var err error
		c.Instant, err = toInstant("consistency.as_of", r.AsOf)
		return c, err
	}
	z, err := parseZookie(token, clusterID)
	if err != nil && c.Mode == cluster.AtLeast && z.cluster != [16]byte{} && isAncestor(z.cluster) {
		return cluster.Consistency{Mode: cluster.Linearizable, Instant: z.instant}, nil
	}
	if err != nil {
		return c, within(field, err)
	}
	if c.Mode == cluster.Exactly && z.revision == 0 {
		return c, within(field, malformed("token", "it names no revision"))
	}
	c.Revision, c.Instant = z.revision, z.instant
	return c, nil
}

// toContext converts the context of a question.
func (l *Limits) toContext(p *structpb.Struct) (schema.Context, error) {
	if len(p.GetFields()) == 0 {
		return nil, nil
	}
	v := structReader{bytesMax: l.ContextBytes, flag: "--limit-context-bytes"}
	m, err := v.object(p, 1)
	if err != nil {
		return nil, within("context", err)
	}
	return schema.Context(m), nil
}

// toJSON converts a struct to canonical JSON, as graph.CanonicalContext does. An
// empty one gives nil. flag is that of serve that sets bytesMax.
func toJSON(field string, p *structpb.Struct, bytesMax int, flag string) ([]byte, error) {
	if len(p.GetFields()) == 0 {
		return nil, nil
	}
	v := structReader{bytesMax: bytesMax, flag: flag}
	m, err := v.object(p, 1)
	if err != nil {
		return nil, within(field, err)
	}
	b, err := graph.CanonicalContext(m)
	if err != nil {
		return nil, checked(field, err)
	}
	if len(b) > bytesMax {
		return nil, tooLarge(field, len(b), bytesMax, flag)
	}
	return b, nil
}

// A structReader converts a Struct to JSON values, counting what it holds so
// that one of a few nested lists cannot grow beyond its limit. The path of a value
// is made on the way back from an error: to make each would take the square of the
// size.
type structReader struct {
	bytesMax int
	bytes    int
	// flag is that of serve that sets bytesMax.
	flag string
}

func (r *structReader) count(n int) error {
	if r.bytes += n; r.bytes > r.bytesMax {
		return tooLarge("", r.bytes, r.bytesMax, r.flag)
	}
	return nil
}

func (r *structReader) text(s string) error {
	if !utf8.ValidString(s) {
		return malformed("", "it is not valid UTF-8")
	}
	return r.count(len(s) + 2)
}

func (r *structReader) object(p *structpb.Struct, depth int) (map[string]any, error) {
	if depth > graph.MaxContextDepth {
		return nil, malformed("", "it is nested more than %d deep", graph.MaxContextDepth)
	}
	m := make(map[string]any, len(p.GetFields()))
	for k, v := range p.GetFields() {
		if err := r.text(k); err != nil {
			return nil, err
		}
		value, err := r.value(v, depth)
		if err != nil {
			return nil, within(k, err)
		}
		m[k] = value
	}
	return m, nil
}

func (r *structReader) value(v *structpb.Value, depth int) (any, error) {
	if err := r.count(1); err != nil {
		return nil, err
	}
	switch k := v.GetKind().(type) {
	case *structpb.Value_NullValue:
		return nil, nil
	case *structpb.Value_BoolValue:
		return k.BoolValue, nil
	case *structpb.Value_NumberValue:
		if math.IsNaN(k.NumberValue) || math.IsInf(k.NumberValue, 0) {
			return nil, malformed("", "it is %v; finite numbers are allowed", k.NumberValue)
		}
		return k.NumberValue, nil
	case *structpb.Value_StringValue:
		return k.StringValue, r.text(k.StringValue)
	case *structpb.Value_StructValue:
		return r.object(k.StructValue, depth+1)
	case *structpb.Value_ListValue:
		if depth >= graph.MaxContextDepth {
			return nil, malformed("", "it is nested more than %d deep", graph.MaxContextDepth)
		}
		list := make([]any, 0, len(k.ListValue.GetValues()))
		for i, e := range k.ListValue.GetValues() {
			value, err := r.value(e, depth+1)
			if err != nil {
				return nil, within(fmt.Sprintf("[%d]", i), err)
			}
			list = append(list, value)
		}
		return list, nil
	}
	return nil, malformed("", "it has no value; null, a boolean, a number, text, a list or an object is allowed")
}

func toCheck(object *pembav1.Object, permission string, subject *pembav1.Subject) (q engine.Check, err error) {
	if q.Object, err = toObject(object); err != nil {
		return q, within("object", err)
	}
	if err := checkRelation("permission", permission); err != nil {
		return q, err
	}
	q.Name = permission
	if q.Subject, err = toSubject(subject); err != nil {
		return q, within("subject", err)
	}
	return q, nil
}

func (l *Limits) toExpand(r *pembav1.ExpandRequest) (engine.Expand, error) {
	object, err := toObject(r.GetObject())
	if err != nil {
		return engine.Expand{}, within("object", err)
	}
	if err := checkRelation("permission", r.GetPermission()); err != nil {
		return engine.Expand{}, err
	}
	context, err := l.toContext(r.GetContext())
	if err != nil {
		return engine.Expand{}, err
	}
	return engine.Expand{Object: object, Name: r.GetPermission(), Context: context, Budget: l.budget()}, nil
}

func (l *Limits) toLookupResources(r *pembav1.LookupResourcesRequest) (q engine.LookupResources, err error) {
	if err := checkType("type", r.GetType()); err != nil {
		return q, err
	}
	if err := checkRelation("permission", r.GetPermission()); err != nil {
		return q, err
	}
	if q.Subject, err = toSubject(r.GetSubject()); err != nil {
		return q, within("subject", err)
	}
	if q.Context, err = l.toContext(r.GetContext()); err != nil {
		return q, err
	}
	q.Type, q.Name, q.Budget = r.GetType(), r.GetPermission(), l.budget()
	q.Limit, err = toLimit(r.GetLimit())
	return q, err
}

func (l *Limits) toLookupSubjects(r *pembav1.LookupSubjectsRequest) (q engine.LookupSubjects, err error) {
	if q.Object, err = toObject(r.GetObject()); err != nil {
		return q, within("object", err)
	}
	if err := checkRelation("permission", r.GetPermission()); err != nil {
		return q, err
	}
	if err := checkType("subject_type", r.GetSubjectType()); err != nil {
		return q, err
	}
	if r.GetSubjectRelation() != "" {
		if err := checkRelation("subject_relation", r.GetSubjectRelation()); err != nil {
			return q, err
		}
	}
	if q.Context, err = l.toContext(r.GetContext()); err != nil {
		return q, err
	}
	q.Name, q.SubjectType, q.SubjectRelation = r.GetPermission(), r.GetSubjectType(), r.GetSubjectRelation()
	q.Budget = l.budget()
	q.Limit, err = toLimit(r.GetLimit())
	return q, err
}

// toLimit converts how many results are wanted; zero means all.
func toLimit(limit uint32) (int, error) {
	if limit > math.MaxInt32 {
		return 0, malformed("limit", "it is %d; 0 (all) to %d are allowed", limit, math.MaxInt32)
	}
	return int(limit), nil
}

// toPageLimit converts how many entries of a list are wanted.
func toPageLimit(limit uint32) (int, error) {
	switch {
	case limit == 0:
		return pageDefault, nil
	case limit > pageMax:
		return 0, malformed("limit", "it is %d; 0 (which means %d) to %d are allowed", limit, pageDefault, pageMax)
	}
	return int(limit), nil
}

// The sizes of a page of a list.
const (
	pageDefault = 100
	pageMax     = 1000
)

// toChangeFilters converts filters of changes. There is none among them that
// passes everything.
func toChangeFilters(filters []*pembav1.ChangeFilter) ([]graph.Filter, error) {
	if len(filters) > changeFiltersMax {
		return nil, tooMany("filters", "TOO_MANY_FILTERS", len(filters), changeFiltersMax, "let fewer of them match more, or ask several times")
	}
	result := make([]graph.Filter, len(filters))
	for i, p := range filters {
		at := fmt.Sprintf("filters[%d]", i)
		tuples := &pembav1.TupleFilter{
			ObjectType: p.GetObjectType(), ObjectId: p.GetObjectId(), Relation: p.GetRelation(),
			SubjectType: p.GetSubjectType(), SubjectId: p.GetSubjectId(),
		}
		if p != nil {
			tuples.SubjectRelation = p.SubjectRelation
		}
		f, err := toFilter(tuples)
		if err != nil {
			return nil, within(at, err)
		}
		if isEmpty(f) {
			return nil, malformed(at, "it is empty; leave all filters out to be told of every change")
		}
		result[i] = f
	}
	return result, nil
}

// changeFiltersMax bounds the filters of one watch.
const changeFiltersMax = 100

// From here on: what goes out.

func fromStore(info graph.StoreInfo) *pembav1.Store {
	tuplesMax, calls := info.Settings.TuplesMax, info.Settings.CallsPerSecond
	return &pembav1.Store{
		Name: info.Name, CreatedAt: fromInstant(info.CreatedAt), Tuples: info.Tuples,
		Settings: &pembav1.StoreSettings{
			History: fromRetention(info.Settings.History), Log: fromRetention(info.Settings.Log),
			TuplesMax: &tuplesMax, CallsPerSecond: &calls,
		},
		OldestHistory: fromInstant(info.OldestHistoryAt), OldestChange: fromInstant(info.OldestLogAt),
	}
}

func fromRetention(r graph.Retention) *pembav1.Retention {
	if r == graph.Forever {
		return &pembav1.Retention{Kept: &pembav1.Retention_Forever{Forever: true}}
	}
	d := &durationpb.Duration{Seconds: int64(r) / 1_000_000, Nanos: int32(int64(r) % 1_000_000 * 1000)}
	return &pembav1.Retention{Kept: &pembav1.Retention_Duration{Duration: d}}
}

// fromInstant returns a moment, or nil for none.
func fromInstant(i graph.Instant) *timestamppb.Timestamp {
	if i == 0 {
		return nil
	}
	return timestamppb.New(i.Time())
}

// fromMetadata returns the metadata of a change, which is a JSON object or nil.
func fromMetadata(metadata []byte) (*structpb.Struct, error) {
	if len(metadata) == 0 {
		return nil, nil
	}
	var m map[string]any
	if err := json.Unmarshal(metadata, &m); err != nil {
		return nil, fmt.Errorf("the metadata of a change is not a JSON object: %w", err)
	}
	return structpb.NewStruct(m)
}

var changeKinds = map[graph.ChangeKind]pembav1.Change_Kind{
	graph.Created:  pembav1.Change_KIND_CREATED,
	graph.Replaced: pembav1.Change_KIND_REPLACED,
	graph.Deleted:  pembav1.Change_KIND_DELETED,
	graph.Expired:  pembav1.Change_KIND_EXPIRED,
}

func fromChange(c *graph.LoggedChange, sequence uint64) (*pembav1.Change, error) {
	tuple, err := TupleMessage(c.Tuple)
	if err != nil {
		return nil, err
	}
	return &pembav1.Change{Kind: changeKinds[c.Kind], Tuple: tuple, Sequence: sequence}, nil
}

func fromSchemaChanges(changes []schema.Change) []*pembav1.SchemaChange {
	result := make([]*pembav1.SchemaChange, len(changes))
	for i, c := range changes {
		p := &pembav1.SchemaChange{
			Kind: c.Kind.String(), Definition: c.Definition, Caveat: c.Caveat, Name: c.Name, From: c.Old, To: c.New, Text: c.String(),
		}
		switch c.Kind {
		case schema.SubjectTypeAdded:
			p.To = c.Subject.String()
		case schema.SubjectTypeRemoved:
			p.From = c.Subject.String()
		default:
		}
		result[i] = p
	}
	return result
}

func fromAffected(affected []schema.AffectedPermission) []*pembav1.AffectedPermission {
	result := make([]*pembav1.AffectedPermission, len(affected))
	for i, a := range affected {
		result[i] = &pembav1.AffectedPermission{Definition: a.Definition, Permission: a.Permission, Rewritten: a.Rewritten}
	}
	return result
}

func fromStored(k engine.StoredKind) *pembav1.StoredKind {
	return &pembav1.StoredKind{Type: k.Type, Relation: k.Relation, Subject: k.Subject.String(), Count: k.Count}
}

func fromTrial(t engine.Trial) *pembav1.TrySchemaResponse {
	response := &pembav1.TrySchemaResponse{
		Accepted: t.Refusal == nil && len(t.Misfits) == 0,
		Changes:  fromSchemaChanges(t.Changes), Affected: fromAffected(t.Affected),
	}
	if t.Refusal != nil {
		// A refusal is no fault.
		response.Error, _ = toItemError(t.Refusal)
	}
	for _, m := range t.Misfits {
		response.Misfits = append(response.Misfits, &pembav1.Misfit{Stored: fromStored(m.StoredKind), Why: m.Why, Sample: m.Sample})
	}
	for _, k := range t.Stored {
		response.Stored = append(response.Stored, fromStored(k))
	}
	return response
}

// ObjectMessage returns o as a message.
func ObjectMessage(o graph.Object) *pembav1.Object { return &pembav1.Object{Type: o.Type, Id: o.ID} }

// SubjectMessage returns s as a message.
func SubjectMessage(s graph.Subject) *pembav1.Subject {
	return &pembav1.Subject{Object: ObjectMessage(s.Object), Relation: s.Relation}
}

// ReceivedTuple returns the tuple that a server makes of a message, which may
// differ from the one that it was made of in how its Context is written.
func ReceivedTuple(p *pembav1.Tuple) (graph.Tuple, error) {
	l := Limits{TupleContextBytes: math.MaxInt}
	return l.toTuple(p)
}

// TupleMessage returns t as a message. Its Context must be a JSON object or
// empty; what the message cannot hold (ValidFrom, Sources, Created) is left out.
func TupleMessage(t graph.Tuple) (*pembav1.Tuple, error) {
	p := &pembav1.Tuple{Object: ObjectMessage(t.Object), Relation: t.Relation, Subject: SubjectMessage(t.Subject)}
	if t.Caveat != "" {
		p.Caveat = &pembav1.Caveat{Name: t.Caveat}
		if len(t.Context) > 0 {
			var m map[string]any
			if err := json.Unmarshal(t.Context, &m); err != nil {
				return nil, fmt.Errorf("the context of tuple %s is not a JSON object: %w", t, err)
			}
			s, err := structpb.NewStruct(m)
			if err != nil {
				return nil, fmt.Errorf("the context of tuple %s: %w", t, err)
			}
			p.Caveat.Context = s
		}
	}
	if t.ValidUntil != 0 {
		p.ExpiresAt = timestamppb.New(t.ValidUntil.Time())
	}
	return p, nil
}

// ParseTupleMessage is the inverse of TupleMessage. It validates the form of p,
// within the default limits; its errors name the field.
func ParseTupleMessage(p *pembav1.Tuple) (graph.Tuple, error) {
	l := DefaultLimits()
	return l.toTuple(p)
}

func fromDecision(d engine.Decision) pembav1.Decision {
	switch d {
	case engine.Denied:
		return pembav1.Decision_DECISION_DENIED
	case engine.Conditional:
		return pembav1.Decision_DECISION_CONDITIONAL
	case engine.Allowed:
		return pembav1.Decision_DECISION_ALLOWED
	}
	return pembav1.Decision_DECISION_UNSPECIFIED
}

var traceKinds = map[engine.TraceKind]pembav1.Trace_Kind{
	engine.TraceName:         pembav1.Trace_KIND_NAME,
	engine.TraceTuple:        pembav1.Trace_KIND_TUPLE,
	engine.TraceUnion:        pembav1.Trace_KIND_UNION,
	engine.TraceIntersection: pembav1.Trace_KIND_INTERSECTION,
	engine.TraceExclusion:    pembav1.Trace_KIND_EXCLUSION,
	engine.TraceArrow:        pembav1.Trace_KIND_ARROW,
	engine.TraceNil:          pembav1.Trace_KIND_NIL,
	engine.TraceSelf:         pembav1.Trace_KIND_SELF,
	engine.TraceCaveat:       pembav1.Trace_KIND_CAVEAT,
}

func fromTrace(t *engine.Trace) (*pembav1.Trace, error) {
	if t == nil {
		return nil, nil
	}
	p := &pembav1.Trace{
		Kind: traceKinds[t.Kind], Name: t.Name, Expression: t.Expression,
		Decision: fromDecision(t.Verdict.Decision), Missing: t.Verdict.Missing, Note: t.Note,
	}
	if t.Object.Type != "" {
		p.Object = ObjectMessage(t.Object)
	}
	if t.Tuple != nil {
		tuple, err := TupleMessage(*t.Tuple)
		if err != nil {
			return nil, err
		}
		p.Tuple = tuple
	}
	for _, child := range t.Children {
		c, err := fromTrace(child)
		if err != nil {
			return nil, err
		}
		p.Children = append(p.Children, c)
	}
	return p, nil
}

var treeOperations = map[engine.TreeOperation]pembav1.Tree_Operation{
	engine.TreeLeaf:         pembav1.Tree_OPERATION_LEAF,
	engine.TreeUnion:        pembav1.Tree_OPERATION_UNION,
	engine.TreeIntersection: pembav1.Tree_OPERATION_INTERSECTION,
	engine.TreeExclusion:    pembav1.Tree_OPERATION_EXCLUSION,
}

func fromTree(t *engine.Tree) (*pembav1.Tree, error) {
	if t == nil {
		return nil, nil
	}
	p := &pembav1.Tree{Object: ObjectMessage(t.Object), Name: t.Name, Operation: treeOperations[t.Operation], Note: t.Note}
	for _, child := range t.Children {
		c, err := fromTree(child)
		if err != nil {
			return nil, err
		}
		p.Children = append(p.Children, c)
	}
	if t.Via != nil {
		via, err := TupleMessage(*t.Via)
		if err != nil {
			return nil, err
		}
		p.Via = via
	}
	for _, leaf := range t.Leaves {
		l, err := TupleMessage(leaf)
		if err != nil {
			return nil, err
		}
		p.Leaves = append(p.Leaves, l)
	}
	for i := range t.Verdicts {
		p.Verdicts = append(p.Verdicts, fromTupleVerdict(&t.Verdicts[i]))
	}
	if t.ViaVerdict != nil {
		p.ViaVerdict = fromTupleVerdict(t.ViaVerdict)
	}
	return p, nil
}

func fromTupleVerdict(v *engine.TupleVerdict) *pembav1.TupleVerdict {
	return &pembav1.TupleVerdict{Decision: fromDecision(v.Decision), Missing: v.Missing, Failure: validUTF8(v.Failure)}
}

func fromExcluded(excluded []engine.ExcludedSubject) []*pembav1.ExcludedSubject {
	if len(excluded) == 0 {
		return nil
	}
	result := make([]*pembav1.ExcludedSubject, len(excluded))
	for i, e := range excluded {
		result[i] = &pembav1.ExcludedSubject{Subject: SubjectMessage(e.Subject), Decision: fromDecision(e.Decision), Missing: e.Missing}
	}
	return result
}

// validUTF8 returns s with what is not UTF-8 replaced, since messages refuse it.
func validUTF8(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
