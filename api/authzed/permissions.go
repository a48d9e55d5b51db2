package authzed

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/authzed/authzed-go/pkg/requestmeta"
	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/engine"
)

// This file holds the checks of the PermissionsService.

func (s *permissionsService) CheckPermission(ctx context.Context, r *v1.CheckPermissionRequest) (*v1.CheckPermissionResponse, error) {
	if r.GetConsistency().Validate() != nil || !isPlainQuestion(r) {
		if err := validate(r); err != nil {
			return nil, err
		}
	}
	q, err := s.toCheck(r.GetResource(), r.GetPermission(), r.GetSubject(), r.GetContext())
	if err != nil {
		return nil, err
	}
	q.Trace = wantsTrace(ctx, r.GetWithTracing())
	store, snapshot, err := s.snapshot(ctx, r.GetConsistency())
	if err != nil {
		return nil, err
	}
	defer snapshot.Close()
	var began time.Time
	if q.Trace {
		began = time.Now()
	}
	answer, expiresAt, err := s.expiringCheck(ctx, store, snapshot, q)
	if err != nil {
		return nil, err
	}
	response := &v1.CheckPermissionResponse{CheckedAt: s.token(snapshot), OptionalExpiresAt: expiresAt}
	response.Permissionship, response.PartialCaveatInfo = fromVerdict(answer.Verdict)
	if q.Trace {
		debug, err := s.newDebugger(snapshot)
		if err != nil {
			return nil, err
		}
		if response.DebugTrace, err = debug.information(answer, r.GetSubject(), r.GetContext(), time.Since(began)); err != nil {
			return nil, err
		}
		response.DebugTrace.Check.OptionalExpiresAt = expiresAt
	}
	return response, nil
}

func (s *permissionsService) CheckBulkPermissions(ctx context.Context, r *v1.CheckBulkPermissionsRequest) (*v1.CheckBulkPermissionsResponse, error) {
	items := r.GetItems()
	odd := func(item *v1.CheckBulkPermissionsRequestItem) bool { return !isPlainQuestion(item) }
	if r.GetConsistency().Validate() != nil || len(items) == 0 || slices.ContainsFunc(items, odd) {
		if err := validate(r); err != nil {
			return nil, err
		}
	}
	if len(items) > checksMax {
		return nil, withReason(codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_UNSPECIFIED,
			fmt.Sprintf("request has %d checks; at most %d are allowed", len(items), checksMax),
			map[string]string{"check_count": fmt.Sprint(len(items)), "maximum_checks_allowed": fmt.Sprint(checksMax)})
	}
	pairs := make([]*v1.CheckBulkPermissionsPair, len(items))
	// What is wrong with one item is its own failure; places says which of the
	// items each question is.
	questions := make([]engine.Check, 0, len(items))
	places := make([]int, 0, len(items))
	for i, item := range items {
		pairs[i] = &v1.CheckBulkPermissionsPair{Request: item}
		err := item.GetSubject().HandwrittenValidate()
		if err != nil {
			err = invalid("%v", err)
		}
		var q engine.Check
		if err == nil {
			q, err = s.toCheck(item.GetResource(), item.GetPermission(), item.GetSubject(), item.GetContext())
		}
		if err != nil {
			pairs[i].Response = itemError(err)
			continue
		}
		q.Trace = r.GetWithTracing()
		questions, places = append(questions, q), append(places, i)
	}
	_, snapshot, err := s.snapshot(ctx, r.GetConsistency())
	if err != nil {
		return nil, err
	}
	defer snapshot.Close()
	var answers []engine.BulkAnswer
	if !r.GetWithTracing() {
		if answers, err = snapshot.CheckBulk(ctx, questions); err != nil {
			return nil, err
		}
	}
	var debug *debugger
	for j := range questions {
		if r.GetWithTracing() {
			// One trace at a time is held.
			if answers, err = snapshot.CheckBulk(ctx, questions[j:j+1]); err != nil {
				return nil, err
			}
		}
		a := answers[min(j, len(answers)-1)]
		pair := pairs[places[j]]
		if a.Err != nil {
			pair.Response = itemError(a.Err)
			continue
		}
		item := &v1.CheckBulkPermissionsResponseItem{}
		item.Permissionship, item.PartialCaveatInfo = fromVerdict(a.Verdict)
		if a.Trace != nil {
			if debug == nil {
				if debug, err = s.newDebugger(snapshot); err != nil {
					return nil, err
				}
			}
			if item.DebugTrace, err = debug.information(a.Answer, pair.Request.GetSubject(), pair.Request.GetContext(), a.Trace.Duration); err != nil {
				return nil, err
			}
		}
		pair.Response = &v1.CheckBulkPermissionsPair_Item{Item: item}
	}
	return &v1.CheckBulkPermissionsResponse{CheckedAt: s.token(snapshot), Pairs: pairs}, nil
}

// itemError is the error of one item, in the words of a call that asks for it
// alone.
func itemError(err error) *v1.CheckBulkPermissionsPair_Error {
	return &v1.CheckBulkPermissionsPair_Error{Error: Dialect{}.Status(err, api.StatusOf(err)).Proto()}
}

// toCheck converts a question, whose form validate has judged.
func (a *adapter) toCheck(resource *v1.ObjectReference, permission string, subject *v1.SubjectReference, given *structpb.Struct) (engine.Check, error) {
	values, err := toContext(given)
	return engine.Check{
		Object: toObject(resource), Name: permission, Subject: toSubject(subject), Context: values, Budget: a.host.Budget(),
	}, err
}

// wantsTrace reports whether a check asks for a trace: by its field or, as older
// clients do, by a header of any value.
func wantsTrace(ctx context.Context, field bool) bool {
	return field || len(api.Header(ctx, string(requestmeta.RequestDebugInformation))) > 0
}
