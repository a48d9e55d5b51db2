package authzed

import (
	"context"
	"errors"
	"maps"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc/codes"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// Relationship counters. A store keeps their filters; what matches one is counted
// when it is asked for.

// ExperimentalRegisterRelationshipCounter gives a filter a name.
func (s *experimentalService) ExperimentalRegisterRelationshipCounter(ctx context.Context, r *v1.ExperimentalRegisterRelationshipCounterRequest) (*v1.ExperimentalRegisterRelationshipCounterResponse, error) {
	if err := validateCounter(r); err != nil {
		return nil, err
	}
	store, err := s.host.Store(ctx)
	if err != nil {
		return nil, err
	}
	filter, err := toFullFilter(r.GetRelationshipFilter())
	if err != nil {
		return nil, err
	}
	m := &graph.Mutation{CounterChange: &graph.CounterChange{Operation: graph.RegisterCounter, Name: r.GetName(), Filter: filter}}
	if _, err := s.host.Change(ctx, store, m); err != nil {
		return nil, refusedCounter(err, r.GetRelationshipFilter())
	}
	return &v1.ExperimentalRegisterRelationshipCounterResponse{}, nil
}

// ExperimentalCountRelationships counts at the newest state, so that it has every
// change that was acknowledged before the call.
func (s *experimentalService) ExperimentalCountRelationships(ctx context.Context, r *v1.ExperimentalCountRelationshipsRequest) (*v1.ExperimentalCountRelationshipsResponse, error) {
	if err := validateCounter(r); err != nil {
		return nil, err
	}
	snapshot, err := s.newest(ctx)
	if err != nil {
		return nil, err
	}
	defer snapshot.Close()
	counter, err := snapshot.NamedCounter(r.GetName())
	if err != nil {
		return nil, err
	}
	// The filter is not judged again: a name that the schema has no more matches
	// nothing, and a counter of it stands at zero.
	snapshot.Graph().Guard(func(int) error { return ctx.Err() })
	count, err := snapshot.Graph().Count(counter.Filter)
	if err != nil {
		return nil, err
	}
	return &v1.ExperimentalCountRelationshipsResponse{CounterResult: &v1.ExperimentalCountRelationshipsResponse_ReadCounterValue{
		ReadCounterValue: &v1.ReadCounterValue{RelationshipCount: count, ReadAt: s.token(snapshot)},
	}}, nil
}

// ExperimentalUnregisterRelationshipCounter takes a filter's name away.
func (s *experimentalService) ExperimentalUnregisterRelationshipCounter(ctx context.Context, r *v1.ExperimentalUnregisterRelationshipCounterRequest) (*v1.ExperimentalUnregisterRelationshipCounterResponse, error) {
	if err := validateCounter(r); err != nil {
		return nil, err
	}
	store, err := s.host.Store(ctx)
	if err != nil {
		return nil, err
	}
	m := &graph.Mutation{CounterChange: &graph.CounterChange{Operation: graph.UnregisterCounter, Name: r.GetName()}}
	if _, err := s.host.Change(ctx, store, m); err != nil {
		return nil, err
	}
	return &v1.ExperimentalUnregisterRelationshipCounterResponse{}, nil
}

// validateCounter is validate for a request that names a counter: the protocol's
// rules let an empty name pass.
func validateCounter(r interface {
	Validate() error
	GetName() string
},
) error {
	if err := validate(r); err != nil {
		return err
	}
	if r.GetName() == "" {
		return withReason(codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_UNSPECIFIED, "name must be provided", nil)
	}
	return nil
}

// refusedCounter adds to the engine's no, where the counter is registered, the
// filter that was to be registered, as the API does.
func refusedCounter(err error, filter *v1.RelationshipFilter) error {
	var refusal *engine.Refusal
	if !errors.As(err, &refusal) || refusal.Reason != engine.CounterExists {
		return err
	}
	told := *refusal
	told.Metadata = filterMetadata("new_filter_", filter)
	maps.Copy(told.Metadata, refusal.Metadata)
	return &told
}
