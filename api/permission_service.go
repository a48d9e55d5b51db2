package api

import (
	"context"
	"encoding/binary"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// permissionService implements pemba.v1.PermissionService.
type permissionService struct {
	pembav1.UnimplementedPermissionServiceServer
	server *Server
}

func (s *permissionService) Check(ctx context.Context, r *pembav1.CheckRequest) (*pembav1.CheckResponse, error) {
	store, err := s.server.store(ctx, r.GetStore())
	if err != nil {
		return nil, err
	}
	q, err := toCheck(r.GetObject(), r.GetPermission(), r.GetSubject())
	if err != nil {
		return nil, err
	}
	limits := &s.server.limits
	if q.Context, err = limits.toContext(r.GetContext()); err != nil {
		return nil, err
	}
	q.Budget, q.Trace = limits.budget(), r.GetExplain()
	snapshot, err := s.server.snapshot(ctx, store, r.GetConsistency(), nil)
	if err != nil {
		return nil, err
	}
	defer snapshot.Close()
	answer, err := snapshot.Check(ctx, q)
	if err != nil {
		return nil, err
	}
	trace, err := fromTrace(answer.Trace)
	if err != nil {
		return nil, err
	}
	response := &pembav1.CheckResponse{
		Decision: fromDecision(answer.Decision), Missing: answer.Missing,
		CheckedAt: s.server.zookie(snapshot).proto(), Trace: trace,
	}
	if trace != nil {
		if err := limits.FitsAnswer(response, "ask without explain, or about a name or object further down"); err != nil {
			return nil, err
		}
	}
	return response, nil
}

func (s *permissionService) CheckBulk(ctx context.Context, r *pembav1.CheckBulkRequest) (*pembav1.CheckBulkResponse, error) {
	store, err := s.server.store(ctx, r.GetStore())
	if err != nil {
		return nil, err
	}
	limits := &s.server.limits
	items := r.GetItems()
	if len(items) == 0 {
		return nil, malformed("items", "there is none; 1 to %d are allowed", limits.Checks)
	}
	if len(items) > limits.Checks {
		return nil, tooMany("items", "TOO_MANY_CHECKS", len(items), limits.Checks, "send several requests, or raise --limit-checks of the server")
	}
	response := &pembav1.CheckBulkResponse{Results: make([]*pembav1.CheckBulkResult, len(items))}
	fail := func(i int, err error) {
		e, fault := toItemError(within(fmt.Sprintf("items[%d]", i), err))
		if fault {
			s.server.fault(pembav1.PermissionService_CheckBulk_FullMethodName, err)
		}
		response.Results[i] = &pembav1.CheckBulkResult{Error: e}
	}
	// A malformed item is its own failure; places says which of the items each
	// question is.
	questions := make([]engine.Check, 0, len(items))
	places := make([]int, 0, len(items))
	for i, item := range items {
		q, err := toCheck(item.GetObject(), item.GetPermission(), item.GetSubject())
		if err == nil {
			q.Context, err = limits.toContext(item.GetContext())
		}
		if err != nil {
			fail(i, err)
			continue
		}
		q.Budget = limits.budget()
		questions, places = append(questions, q), append(places, i)
	}
	snapshot, err := s.server.snapshot(ctx, store, r.GetConsistency(), nil)
	if err != nil {
		return nil, err
	}
	defer snapshot.Close()
	answers, err := snapshot.CheckBulk(ctx, questions)
	if err != nil {
		return nil, err
	}
	for j, a := range answers {
		if a.Err != nil {
			fail(places[j], a.Err)
			continue
		}
		response.Results[places[j]] = &pembav1.CheckBulkResult{Decision: fromDecision(a.Decision), Missing: a.Missing}
	}
	response.CheckedAt = s.server.zookie(snapshot).proto()
	return response, nil
}

func (s *permissionService) Expand(ctx context.Context, r *pembav1.ExpandRequest) (*pembav1.ExpandResponse, error) {
	store, err := s.server.store(ctx, r.GetStore())
	if err != nil {
		return nil, err
	}
	q, err := s.server.limits.toExpand(r)
	if err != nil {
		return nil, err
	}
	snapshot, err := s.server.snapshot(ctx, store, r.GetConsistency(), nil)
	if err != nil {
		return nil, err
	}
	defer snapshot.Close()
	found, err := snapshot.Expand(ctx, q)
	if err != nil {
		return nil, err
	}
	tree, err := fromTree(found)
	if err != nil {
		return nil, err
	}
	response := &pembav1.ExpandResponse{Tree: tree, ExpandedAt: s.server.zookie(snapshot).proto()}
	return response, s.server.limits.FitsAnswer(response, "read the tuples, or look the subjects up, which come one by one and in pages, all but the exclusions of a wildcard, or expand what is further down")
}

func (s *permissionService) LookupResources(r *pembav1.LookupResourcesRequest, stream grpc.ServerStreamingServer[pembav1.LookupResourcesResponse]) error {
	ctx := stream.Context()
	store, err := s.server.store(ctx, r.GetStore())
	if err != nil {
		return err
	}
	q, err := s.server.limits.toLookupResources(r)
	if err != nil {
		return err
	}
	hasher := hashArguments(lookupResources, storeArgument(store), q.Type, q.Name, q.Subject.Type, q.Subject.ID, q.Subject.Relation)
	if err := hasher.addContext(q.Context); err != nil {
		return err
	}
	l, err := s.begin(stream, store, r, lookupResources, hasher.sum())
	if err != nil {
		return err
	}
	q.After = l.after
	produce := func(ctx context.Context, put func(*pembav1.LookupResourcesResponse) error) error {
		defer l.snapshot.Close()
		lookedUpAt := l.at.proto()
		return l.snapshot.LookupResources(ctx, q, func(found engine.Resource) error {
			return put(&pembav1.LookupResourcesResponse{
				Object: ObjectMessage(found.Object), Decision: fromDecision(found.Decision), Missing: found.Missing,
				LookedUpAt: lookedUpAt, Cursor: l.cursor(found.Position),
			})
		})
	}
	return feed(ctx, s.server.limits.StreamStall, sendAheadResults, produce, stream.Send)
}

func (s *permissionService) LookupSubjects(r *pembav1.LookupSubjectsRequest, stream grpc.ServerStreamingServer[pembav1.LookupSubjectsResponse]) error {
	ctx := stream.Context()
	store, err := s.server.store(ctx, r.GetStore())
	if err != nil {
		return err
	}
	q, err := s.server.limits.toLookupSubjects(r)
	if err != nil {
		return err
	}
	hasher := hashArguments(lookupSubjects, storeArgument(store), q.Object.Type, q.Object.ID, q.Name, q.SubjectType, q.SubjectRelation)
	if err := hasher.addContext(q.Context); err != nil {
		return err
	}
	l, err := s.begin(stream, store, r, lookupSubjects, hasher.sum())
	if err != nil {
		return err
	}
	q.After = l.after
	produce := func(ctx context.Context, put func(*pembav1.LookupSubjectsResponse) error) error {
		defer l.snapshot.Close()
		lookedUpAt := l.at.proto()
		return l.snapshot.LookupSubjects(ctx, q, func(found engine.FoundSubject) error {
			const instead = "ask with CheckBulk about the subjects that matter, or with CountSubjects how many there are"
			limits, bytes := &s.server.limits, 0
			for i := range found.Excluded {
				bytes += len(found.Excluded[i].Subject.ID)
			}
			if err := limits.FitsAnswerBytes(bytes, instead); err != nil {
				return err
			}
			result := &pembav1.LookupSubjectsResponse{
				Subject: SubjectMessage(found.Subject), Decision: fromDecision(found.Decision), Missing: found.Missing,
				Excluded: fromExcluded(found.Excluded), LookedUpAt: lookedUpAt,
				Cursor: l.cursor(found.Position),
			}
			// A wildcard has all its exclusions in one message.
			if len(found.Excluded) > 0 {
				if err := limits.FitsAnswer(result, instead); err != nil {
					return err
				}
			}
			return put(result)
		})
	}
	return feed(ctx, s.server.limits.StreamStall, sendAheadResults, produce, stream.Send)
}

func (s *permissionService) CountResources(ctx context.Context, r *pembav1.CountResourcesRequest) (*pembav1.CountResourcesResponse, error) {
	store, err := s.server.store(ctx, r.GetStore())
	if err != nil {
		return nil, err
	}
	q, err := s.server.limits.toLookupResources(&pembav1.LookupResourcesRequest{
		Type: r.GetType(), Permission: r.GetPermission(), Subject: r.GetSubject(), Context: r.GetContext(),
	})
	if err != nil {
		return nil, err
	}
	snapshot, err := s.server.snapshot(ctx, store, r.GetConsistency(), nil)
	if err != nil {
		return nil, err
	}
	defer snapshot.Close()
	counts, err := snapshot.CountResources(ctx, q)
	if err != nil {
		return nil, err
	}
	return &pembav1.CountResourcesResponse{
		Allowed: uint64(counts.Allowed), Conditional: uint64(counts.Conditional), CountedAt: s.server.zookie(snapshot).proto(),
	}, nil
}

func (s *permissionService) CountSubjects(ctx context.Context, r *pembav1.CountSubjectsRequest) (*pembav1.CountSubjectsResponse, error) {
	store, err := s.server.store(ctx, r.GetStore())
	if err != nil {
		return nil, err
	}
	q, err := s.server.limits.toLookupSubjects(&pembav1.LookupSubjectsRequest{
		Object: r.GetObject(), Permission: r.GetPermission(),
		SubjectType: r.GetSubjectType(), SubjectRelation: r.GetSubjectRelation(), Context: r.GetContext(),
	})
	if err != nil {
		return nil, err
	}
	snapshot, err := s.server.snapshot(ctx, store, r.GetConsistency(), nil)
	if err != nil {
		return nil, err
	}
	defer snapshot.Close()
	counts, wildcard, err := snapshot.CountSubjects(ctx, q)
	if err != nil {
		return nil, err
	}
	decision := engine.Denied
	if wildcard != nil {
		decision = wildcard.Decision
	}
	return &pembav1.CountSubjectsResponse{
		Allowed: uint64(counts.Allowed), Conditional: uint64(counts.Conditional),
		Wildcard: fromDecision(decision), CountedAt: s.server.zookie(snapshot).proto(),
	}, nil
}

// resume reads the cursor of a lookup, if there is one.
func (s *permissionService) resume(token string, kind questionKind, arguments argumentHash) (*cursor, engine.Position, error) {
	if token == "" {
		return nil, 0, nil
	}
	c, err := parseCursor(token, s.server.clusterID(), kind, arguments)
	if err != nil {
		return nil, 0, err
	}
	if len(c.position) != 8 {
		return nil, 0, &requestError{
			code: codes.InvalidArgument, reason: engine.CursorInvalid.String(), field: "cursor",
			message: "its position is not one of a lookup; send the cursor of an earlier answer unchanged",
		}
	}
	return c, engine.Position(binary.BigEndian.Uint64(c.position)), nil
}

// A lookup is one that is being answered.
type lookup struct {
	snapshot  *engine.Snapshot // The caller closes it.
	at        zookie           // of the snapshot
	after     engine.Position  // behind which the results begin
	kind      questionKind
	arguments argumentHash
}

// lookupRequest is what the requests of both lookups have in common.
type lookupRequest interface {
	GetConsistency() *pembav1.Consistency
	GetCursor() string
}

// begin opens the snapshot of a lookup and sends its zookie ahead.
func (s *permissionService) begin(
	stream grpc.ServerStream, store graph.StoreInfo, r lookupRequest, kind questionKind, arguments argumentHash,
) (*lookup, error) {
	from, after, err := s.resume(r.GetCursor(), kind, arguments)
	if err != nil {
		return nil, err
	}
	snapshot, err := s.server.snapshot(stream.Context(), store, r.GetConsistency(), from)
	if err != nil {
		return nil, err
	}
	l := &lookup{snapshot: snapshot, at: s.server.zookie(snapshot), after: after, kind: kind, arguments: arguments}
	if err := l.at.announce(stream); err != nil {
		snapshot.Close()
		return nil, err
	}
	return l, nil
}

// cursor returns the token that continues behind one result.
func (l *lookup) cursor(p engine.Position) string {
	c := cursor{zookie: l.at, kind: l.kind, arguments: l.arguments, position: binary.BigEndian.AppendUint64(nil, uint64(p))}
	return c.token()
}
