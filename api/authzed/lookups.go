package authzed

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// A lookup is what the two lookups share: a state, a place in the results of a
// question at it, and the cursors of those that follow.
type lookup struct {
	*adapter
	store    graph.StoreInfo
	snapshot *engine.Snapshot
	at       *v1.ZedToken
	after    engine.Position
	// question and arguments are what the cursors belong to.
	question  string
	arguments []string
}

// lookup opens the state that a lookup is answered from, which must be closed:
// that of the cursor, if there is one, whatever the consistency asks for.
func (a *adapter) lookup(ctx context.Context, c *v1.Consistency, cursor *v1.Cursor, question string, arguments ...string) (*lookup, error) {
	l := &lookup{adapter: a, question: question, arguments: arguments}
	var err error
	if cursor == nil {
		l.store, l.snapshot, err = a.snapshot(ctx, c)
	} else {
		err = l.resume(ctx, cursor.GetToken())
	}
	if err != nil {
		return nil, err
	}
	l.at = a.token(l.snapshot)
	return l, nil
}

// resume opens the state of a cursor, at its place.
func (l *lookup) resume(ctx context.Context, token string) error {
	var err error
	if l.store, err = l.host.Store(ctx); err != nil {
		return err
	}
	cursor, err := l.host.ParseCursor(token, l.store, l.question, l.arguments...)
	if err != nil {
		return err
	}
	if l.after, err = api.ParseLookupPosition(cursor.Position); err != nil {
		return err
	}
	l.snapshot, err = l.host.Snapshot(ctx, l.store, cursor.At())
	return err
}

// cursor returns the cursor that goes on behind a result.
func (l *lookup) cursor(p engine.Position) *v1.Cursor {
	c := api.Cursor{Revision: l.snapshot.Revision(), Instant: l.snapshot.Instant(), Position: api.LookupPosition(p)}
	return &v1.Cursor{Token: l.host.Cursor(c, l.store, l.question, l.arguments...)}
}

func (s *permissionsService) LookupResources(r *v1.LookupResourcesRequest, stream grpc.ServerStreamingServer[v1.LookupResourcesResponse]) error {
	if err := validate(r); err != nil {
		return err
	}
	// The rules of the message do not go into those that are written by hand.
	if err := validate(r.GetSubject()); err != nil {
		return err
	}
	if n := r.GetOptionalLimit(); n > lookupResourcesMax {
		return withReason(codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_EXCEEDS_MAXIMUM_ALLOWABLE_LIMIT,
			fmt.Sprintf("provided limit %d is greater than maximum allowed of %d", n, lookupResourcesMax),
			map[string]string{"limit_provided": fmt.Sprint(n), "maximum_limit_allowed": fmt.Sprint(lookupResourcesMax)})
	}
	q := engine.LookupResources{
		Type: r.GetResourceObjectType(), Name: r.GetPermission(), Subject: toSubject(r.GetSubject()),
		Limit: int(r.GetOptionalLimit()), Budget: s.host.Budget(),
	}
	var err error
	if q.Context, err = toContext(r.GetContext()); err != nil {
		return err
	}
	given, err := contextArgument(q.Context)
	if err != nil {
		return err
	}
	l, err := s.lookup(stream.Context(), r.GetConsistency(), r.GetOptionalCursor(), "LookupResources",
		q.Type, q.Name, q.Subject.Type, q.Subject.ID, q.Subject.Relation, given)
	if err != nil {
		return err
	}
	q.After = l.after
	produce := func(ctx context.Context, put func(*v1.LookupResourcesResponse) error) error {
		defer l.snapshot.Close()
		return refusedLookup(l.snapshot.LookupResources(ctx, q, func(found engine.Resource) error {
			permissionship, missing := fromFound(found.Verdict)
			return put(&v1.LookupResourcesResponse{
				LookedUpAt: l.at, ResourceObjectId: found.Object.ID, Permissionship: permissionship, PartialCaveatInfo: missing,
				AfterResultCursor: l.cursor(found.Position),
			})
		}))
	}
	return api.Feed(stream.Context(), s.host, produce, stream.Send)
}

// errPageFull ends a lookup that has given as much as was asked for.
var errPageFull = errors.New("the page is full")

func (s *permissionsService) LookupSubjects(r *v1.LookupSubjectsRequest, stream grpc.ServerStreamingServer[v1.LookupSubjectsResponse]) error {
	if err := validate(r); err != nil {
		return err
	}
	q := engine.LookupSubjects{
		Object: toObject(r.GetResource()), Name: r.GetPermission(),
		SubjectType: r.GetSubjectObjectType(), SubjectRelation: r.GetOptionalSubjectRelation(), Budget: s.host.Budget(),
	}
	var err error
	if q.Context, err = toContext(r.GetContext()); err != nil {
		return err
	}
	given, err := contextArgument(q.Context)
	if err != nil {
		return err
	}
	concreteOnly := r.GetWildcardOption() == v1.LookupSubjectsRequest_WILDCARD_OPTION_EXCLUDE_WILDCARDS
	l, err := s.lookup(stream.Context(), r.GetConsistency(), r.GetOptionalCursor(), "LookupSubjects",
		q.Object.Type, q.Object.ID, q.Name, q.SubjectType, q.SubjectRelation, strconv.FormatBool(concreteOnly), given)
	if err != nil {
		return err
	}
	q.After = l.after
	if concreteOnly {
		q.After = max(q.After, engine.Position(graph.WildcardNumber)+1) // The wildcard is the first result.
	}
	produce := func(ctx context.Context, put func(*v1.LookupSubjectsResponse) error) error {
		defer l.snapshot.Close()
		concrete := uint32(0)
		err := l.snapshot.LookupSubjects(ctx, q, func(found engine.FoundSubject) error {
			result, err := l.subject(found)
			if err != nil {
				return err
			}
			if err := put(result); err != nil || found.Subject.ID == graph.Wildcard {
				return err // The limit is one of concrete subjects: a wildcard comes besides.
			}
			if concrete++; concrete == r.GetOptionalConcreteLimit() {
				return errPageFull
			}
			return nil
		})
		if errors.Is(err, errPageFull) {
			return nil
		}
		return err
	}
	return api.Feed(stream.Context(), s.host, produce, stream.Send)
}

// subject converts a result of LookupSubjects, or refuses a wildcard with more
// exclusions than a client takes as one message. Old clients read the deprecated
// fields, which say the same as those that took their place.
func (l *lookup) subject(found engine.FoundSubject) (*v1.LookupSubjectsResponse, error) {
	const instead = "set wildcard_option to WILDCARD_OPTION_EXCLUDE_WILDCARDS, and ask with CheckBulkPermissions about the subjects of the wildcard that matter"
	limits, bytes := l.host.Limits(), 0
	subject := resolved(found.Subject.ID, found.Verdict)
	var excluded []*v1.ResolvedSubject
	var excludedIDs []string
	for _, e := range found.Excluded {
		bytes += 2 * len(e.Subject.ID)
		if err := limits.FitsAnswerBytes(bytes, instead); err != nil {
			return nil, err
		}
		excluded, excludedIDs = append(excluded, resolved(e.Subject.ID, e.Verdict)), append(excludedIDs, e.Subject.ID)
	}
	//nolint:staticcheck // Those are the deprecated fields.
	result := &v1.LookupSubjectsResponse{
		LookedUpAt: l.at, Subject: subject, ExcludedSubjects: excluded, AfterResultCursor: l.cursor(found.Position),
		SubjectObjectId: subject.GetSubjectObjectId(), ExcludedSubjectIds: excludedIDs,
		Permissionship: subject.GetPermissionship(), PartialCaveatInfo: subject.GetPartialCaveatInfo(),
	}
	if len(excluded) == 0 {
		return result, nil
	}
	return result, limits.FitsAnswer(result, instead)
}

func resolved(id string, v engine.Verdict) *v1.ResolvedSubject {
	permissionship, missing := fromFound(v)
	return &v1.ResolvedSubject{SubjectObjectId: id, Permissionship: permissionship, PartialCaveatInfo: missing}
}
