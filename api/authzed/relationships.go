package authzed

import (
	"context"
	"errors"
	"fmt"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

// deleteWholeMax is how many relationships a delete without a limit may end. It is
// one change, for which all others of the node wait, and which looks at no more
// than the engine lets any change look at.
const deleteWholeMax = 500_000

func (s *permissionsService) ReadRelationships(r *v1.ReadRelationshipsRequest, stream grpc.ServerStreamingServer[v1.ReadRelationshipsResponse]) error {
	ctx := stream.Context()
	if err := validate(r); err != nil {
		return err
	}
	filter, err := toFullFilter(r.GetRelationshipFilter())
	if err != nil {
		return err
	}
	if err := exceeds(r.GetOptionalLimit(), readLimitMax); err != nil {
		return err
	}
	read, err := s.open(ctx, r.GetConsistency(), r.GetOptionalCursor(), "ReadRelationships", filter)
	if err != nil {
		return err
	}
	defer read.snapshot.Close()
	readAt, left := s.token(read.snapshot), r.GetOptionalLimit()
	return api.Feed(ctx, s.host, func(ctx context.Context, put func(*v1.ReadRelationshipsResponse) error) error {
		return api.EachTuple(ctx, read.snapshot, filter, read.position, func(t graph.Tuple, position func() []byte) (more bool, err error) {
			relationship, err := fromTuple(t)
			if err != nil {
				return false, err
			}
			err = put(&v1.ReadRelationshipsResponse{ReadAt: readAt, Relationship: relationship, AfterResultCursor: read.cursor(position())})
			left--
			return left != 0, err // Without a limit it begins at zero, and so far away.
		})
	}, stream.Send)
}

// A relationshipRead reads what matches a filter, from the beginning or from a
// cursor on.
type relationshipRead struct {
	host      *api.Host
	store     graph.StoreInfo
	snapshot  *engine.Snapshot
	question  string
	arguments []string
	// position is nil at the beginning.
	position []byte
}

// open gives the state that relationships are read from, whose snapshot must be
// closed. A cursor decides it alone when there is one.
func (a *adapter) open(ctx context.Context, c *v1.Consistency, from *v1.Cursor, question string, filter graph.Filter) (*relationshipRead, error) {
	store, err := a.host.Store(ctx)
	if err != nil {
		return nil, err
	}
	read := &relationshipRead{host: a.host, store: store, question: question, arguments: api.FilterArguments(filter)}
	var consistency cluster.Consistency
	if from != nil {
		at, err := a.host.ParseCursor(from.GetToken(), store, question, read.arguments...)
		if err != nil {
			return nil, err
		}
		read.position, consistency = at.Position, at.At()
	} else if consistency, err = a.consistency(c); err != nil {
		return nil, err
	}
	if read.snapshot, err = a.host.Snapshot(ctx, store, consistency); err != nil {
		return nil, err
	}
	if err := judgeFilter(read.snapshot, "relationship_filter", filter); err != nil {
		read.snapshot.Close()
		return nil, err
	}
	return read, nil
}

// judgeFilter refuses a filter that names what the schema does not have. The API
// judges a relation only together with its type: alone, one that no definition has
// matches nothing.
func judgeFilter(snapshot *engine.Snapshot, field string, filter graph.Filter) error {
	err := snapshot.JudgeFilter(field, filter)
	if isOfNoDefinition(err) {
		filter.Relation = "" // The rest is judged behind it.
		err = snapshot.JudgeFilter(field, filter)
	}
	return err
}

// isOfNoDefinition reports whether an error is the engine's no to a relation without
// a type, since no definition has it.
func isOfNoDefinition(err error) bool {
	var refusal *engine.Refusal
	return errors.As(err, &refusal) && refusal.Reason == engine.UnknownName && refusal.Metadata["type"] == ""
}

// cursor returns the cursor that continues behind a position.
func (r *relationshipRead) cursor(position []byte) *v1.Cursor {
	c := api.Cursor{Revision: r.snapshot.Revision(), Instant: r.snapshot.Instant(), Position: position}
	return &v1.Cursor{Token: r.host.Cursor(c, r.store, r.question, r.arguments...)}
}

func (s *permissionsService) WriteRelationships(ctx context.Context, r *v1.WriteRelationshipsRequest) (*v1.WriteRelationshipsResponse, error) {
	if err := validate(r); err != nil {
		return nil, err
	}
	store, err := s.host.Store(ctx)
	if err != nil {
		return nil, err
	}
	m := &graph.Mutation{}
	if m.Metadata, err = toMetadata(r.GetOptionalTransactionMetadata()); err != nil {
		return nil, err
	}
	if n := len(r.GetUpdates()); n > updatesMax {
		return nil, withReason(codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_TOO_MANY_UPDATES_IN_REQUEST,
			fmt.Sprintf("update count of %d is greater than maximum allowed of %d", n, updatesMax),
			map[string]string{"update_count": fmt.Sprint(n), "maximum_updates_allowed": fmt.Sprint(updatesMax)})
	}
	if err := countPreconditions(r.GetOptionalPreconditions()); err != nil {
		return nil, err
	}
	if m.Updates, err = toUpdates(r.GetUpdates()); err != nil {
		return nil, err
	}
	if m.Preconditions, err = toPreconditions(r.GetOptionalPreconditions()); err != nil {
		return nil, err
	}
	if len(m.Updates) == 0 {
		return s.writeNothing(ctx, store, r, m.Preconditions)
	}
	result, err := s.host.Change(ctx, store, m)
	if err != nil {
		return nil, refusedChange(err, m.Updates, r.GetOptionalPreconditions())
	}
	return &v1.WriteRelationshipsResponse{WrittenAt: s.writtenAt(result)}, nil
}

// writeNothing answers a write without updates, which the API allows: it changes
// nothing, so that its preconditions may be judged by a read of the newest state. Its
// metadata belongs to no change, and is dropped.
func (s *permissionsService) writeNothing(ctx context.Context, store graph.StoreInfo, r *v1.WriteRelationshipsRequest, conditions []graph.Precondition) (*v1.WriteRelationshipsResponse, error) {
	snapshot, err := s.host.Snapshot(ctx, store, cluster.Consistency{Mode: cluster.Linearizable})
	if err != nil {
		return nil, err
	}
	defer snapshot.Close()
	if err := hold(ctx, snapshot, conditions, r.GetOptionalPreconditions()); err != nil {
		return nil, err
	}
	return &v1.WriteRelationshipsResponse{WrittenAt: s.token(snapshot)}, nil
}

// hold returns an error unless the preconditions of a change that changes nothing
// hold at a state; given are the same as they were sent.
func hold(ctx context.Context, snapshot *engine.Snapshot, conditions []graph.Precondition, given []*v1.Precondition) error {
	for _, c := range conditions {
		if err := judgeFilter(snapshot, "optional_preconditions", c.Filter); err != nil {
			return err
		}
	}
	for i, c := range conditions {
		found := false
		err := api.EachTuple(ctx, snapshot, c.Filter, nil, func(graph.Tuple, func() []byte) (bool, error) {
			found = true
			return false, nil
		})
		if err != nil {
			return err
		}
		if found == c.MustNotMatch {
			return preconditionFailed(given[i])
		}
	}
	return nil
}

// toUpdates converts updates: that no two are of the same relationship is judged
// before the size of any context, and both before the schema is looked at.
func toUpdates(updates []*v1.RelationshipUpdate) ([]graph.Update, error) {
	type edge struct {
		object   graph.Object
		relation string
		subject  graph.Subject
	}
	seen := make(map[edge]struct{}, len(updates))
	for _, u := range updates {
		r := u.GetRelationship()
		seen[edge{toObject(r.GetResource()), r.GetRelation(), toSubject(r.GetSubject())}] = struct{}{}
	}
	if len(seen) < len(updates) {
		clear(seen)
		for i, u := range updates {
			r := u.GetRelationship()
			e := edge{toObject(r.GetResource()), r.GetRelation(), toSubject(r.GetSubject())}
			if _, twice := seen[e]; twice {
				text := graph.Tuple{Object: e.object, Relation: e.relation, Subject: e.subject}.String()
				return nil, &engine.Refusal{
					Reason: engine.DuplicateUpdate, Field: fmt.Sprintf("updates[%d]", i),
					Message:  fmt.Sprintf("found more than one update with relationship `%s` in this request; a relationship can be named by one update of a write", text),
					Metadata: map[string]string{"tuple": text},
				}
			}
			seen[e] = struct{}{}
		}
	}
	result := make([]graph.Update, len(updates))
	for i, u := range updates {
		t, err := toTuple(fmt.Sprintf("updates[%d].relationship", i), u.GetRelationship())
		if err != nil {
			return nil, err
		}
		result[i] = graph.Update{Operation: operations[u.GetOperation()], Tuple: t}
	}
	return result, nil
}

// operations has every operation that validate lets pass.
var operations = map[v1.RelationshipUpdate_Operation]graph.Operation{
	v1.RelationshipUpdate_OPERATION_CREATE: graph.Create,
	v1.RelationshipUpdate_OPERATION_TOUCH:  graph.Touch,
	v1.RelationshipUpdate_OPERATION_DELETE: graph.Delete,
}

func (s *permissionsService) DeleteRelationships(ctx context.Context, r *v1.DeleteRelationshipsRequest) (*v1.DeleteRelationshipsResponse, error) {
	if err := validate(r); err != nil {
		return nil, err
	}
	store, err := s.host.Store(ctx)
	if err != nil {
		return nil, err
	}
	m := &graph.Mutation{}
	if m.Metadata, err = toMetadata(r.GetOptionalTransactionMetadata()); err != nil {
		return nil, err
	}
	if err := countPreconditions(r.GetOptionalPreconditions()); err != nil {
		return nil, err
	}
	if err := exceeds(r.GetOptionalLimit(), deleteLimitMax); err != nil {
		return nil, err
	}
	if r.GetOptionalCursor() != nil {
		return nil, status.Error(codes.Unimplemented, "optional_cursor: deletes cannot be gone on with by a cursor; call again without one until the progress is DELETION_PROGRESS_COMPLETE")
	}
	filter, err := toFullFilter(r.GetRelationshipFilter())
	if err != nil {
		return nil, err
	}
	if m.Preconditions, err = toPreconditions(r.GetOptionalPreconditions()); err != nil {
		return nil, err
	}
	limit := int(r.GetOptionalLimit())
	if limit == 0 {
		limit = deleteWholeMax
	}
	m.Delete = &graph.DeleteMatching{Filter: filter, Limit: limit, AllowPartial: r.GetOptionalAllowPartialDeletions()}
	result, err := s.host.Change(ctx, store, m)
	if isOfNoDefinition(err) {
		if response, err := s.deleteNothing(ctx, store, r, m); response != nil || err != nil {
			return response, err
		}
		// A schema has the relation since then.
		result, err = s.host.Change(ctx, store, m)
	}
	if err != nil {
		var refusal *engine.Refusal
		if errors.As(err, &refusal) && refusal.Reason == engine.TooManyMatches {
			return nil, tooManyToDelete(limit, r.GetRelationshipFilter())
		}
		return nil, refusedChange(err, nil, r.GetOptionalPreconditions())
	}
	progress := v1.DeleteRelationshipsResponse_DELETION_PROGRESS_COMPLETE
	if result.Partial {
		progress = v1.DeleteRelationshipsResponse_DELETION_PROGRESS_PARTIAL
	}
	return &v1.DeleteRelationshipsResponse{
		DeletedAt: s.writtenAt(result), DeletionProgress: progress, RelationshipsDeletedCount: uint64(max(result.Changed, 0)),
	}, nil
}

// deleteNothing answers a delete whose filter names, without a type, a relation that
// no definition has. It matches nothing, so that a read of the newest state judges
// the rest of the request. Nil means that a definition of that state has the relation.
func (s *permissionsService) deleteNothing(ctx context.Context, store graph.StoreInfo, r *v1.DeleteRelationshipsRequest, m *graph.Mutation) (*v1.DeleteRelationshipsResponse, error) {
	snapshot, err := s.host.Snapshot(ctx, store, cluster.Consistency{Mode: cluster.Linearizable})
	if err != nil {
		return nil, err
	}
	defer snapshot.Close()
	if !isOfNoDefinition(snapshot.JudgeFilter("relationship_filter", m.Delete.Filter)) {
		return nil, nil
	}
	if err := judgeFilter(snapshot, "relationship_filter", m.Delete.Filter); err != nil {
		return nil, err
	}
	if err := hold(ctx, snapshot, m.Preconditions, r.GetOptionalPreconditions()); err != nil {
		return nil, err
	}
	return &v1.DeleteRelationshipsResponse{DeletedAt: s.token(snapshot), DeletionProgress: v1.DeleteRelationshipsResponse_DELETION_PROGRESS_COMPLETE}, nil
}

func tooManyToDelete(limit int, filter *v1.RelationshipFilter) error {
	metadata := filterMetadata("filter_", filter)
	metadata["limit"] = fmt.Sprint(limit)
	return withReason(codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_TOO_MANY_RELATIONSHIPS_FOR_TRANSACTIONAL_DELETE,
		fmt.Sprintf("found more than %d relationships to be deleted and partial deletion was not requested", limit), metadata)
}

func preconditionFailed(c *v1.Precondition) error {
	metadata := filterMetadata("precondition_", c.GetFilter())
	metadata["precondition_operation"] = c.GetOperation().String()
	return withReason(codes.FailedPrecondition, v1.ErrorReason_ERROR_REASON_WRITE_OR_DELETE_PRECONDITION_FAILURE,
		fmt.Sprintf("unable to satisfy write precondition `%s`", c), metadata)
}

// refusedChange gives the engine's no to a change what the API says beyond it; it
// is still an error of the engine where Status says all. The updates and the
// preconditions are those of the change.
func refusedChange(err error, updates []graph.Update, conditions []*v1.Precondition) error {
	var refusal *engine.Refusal
	if !errors.As(err, &refusal) {
		return err
	}
	var i int
	switch refusal.Reason {
	case engine.UnknownName:
		// A relation that no definition has matches nothing, which is what the API says.
		// Where nothing must match, only the engine could judge the rest of the change
		// at the same state, and its no stands.
		if _, scan := fmt.Sscanf(refusal.Field, "preconditions[%d]", &i); scan == nil && i < len(conditions) &&
			isOfNoDefinition(err) && conditions[i].GetOperation() == v1.Precondition_OPERATION_MUST_MATCH {
			return preconditionFailed(conditions[i])
		}
	case engine.PreconditionFailed:
		if _, scan := fmt.Sscanf(refusal.Field, "preconditions[%d]", &i); scan == nil && i < len(conditions) {
			return preconditionFailed(conditions[i])
		}
	case engine.UnknownCaveat:
		// No relation allows a caveat that is not declared, which is what the API says.
		if _, scan := fmt.Sscanf(refusal.Field, "updates[%d]", &i); scan == nil && i < len(updates) {
			t := &updates[i].Tuple
			given := schema.SubjectType{
				Type: t.Subject.Type, Relation: t.Subject.Relation, Wildcard: t.Subject.ID == graph.Wildcard,
				Caveat: t.Caveat, Expiration: t.ValidUntil != 0,
			}
			return &engine.Refusal{
				Reason: engine.SubjectNotAllowed, Field: refusal.Field, Message: refusal.Message,
				Metadata: map[string]string{"type": t.Object.Type, "name": t.Relation, "given": given.String()},
			}
		}
	default:
	}
	return err
}
