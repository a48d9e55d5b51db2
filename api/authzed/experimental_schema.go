package authzed

import (
	"context"
	"fmt"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/protobuf/proto"
)

// The older names of four methods of the SchemaService. Their messages have the
// same fields under the same numbers.

// ExperimentalReflectSchema is ReflectSchema.
func (s *experimentalService) ExperimentalReflectSchema(ctx context.Context, r *v1.ExperimentalReflectSchemaRequest) (*v1.ExperimentalReflectSchemaResponse, error) {
	return alias(ctx, r, new(v1.ReflectSchemaRequest), s.schemas.ReflectSchema, new(v1.ExperimentalReflectSchemaResponse))
}

// ExperimentalDiffSchema is DiffSchema.
func (s *experimentalService) ExperimentalDiffSchema(ctx context.Context, r *v1.ExperimentalDiffSchemaRequest) (*v1.ExperimentalDiffSchemaResponse, error) {
	return alias(ctx, r, new(v1.DiffSchemaRequest), s.schemas.DiffSchema, new(v1.ExperimentalDiffSchemaResponse))
}

// ExperimentalComputablePermissions is ComputablePermissions.
func (s *experimentalService) ExperimentalComputablePermissions(ctx context.Context, r *v1.ExperimentalComputablePermissionsRequest) (*v1.ExperimentalComputablePermissionsResponse, error) {
	return alias(ctx, r, new(v1.ComputablePermissionsRequest), s.schemas.ComputablePermissions, new(v1.ExperimentalComputablePermissionsResponse))
}

// ExperimentalDependentRelations is DependentRelations.
func (s *experimentalService) ExperimentalDependentRelations(ctx context.Context, r *v1.ExperimentalDependentRelationsRequest) (*v1.ExperimentalDependentRelationsResponse, error) {
	return alias(ctx, r, new(v1.DependentRelationsRequest), s.schemas.DependentRelations, new(v1.ExperimentalDependentRelationsResponse))
}

// alias answers a request under its older name: what it asks and what it is
// answered are the same bytes.
func alias[Request, Response, OldResponse proto.Message](ctx context.Context, old proto.Message, request Request,
	method func(context.Context, Request) (Response, error), oldResponse OldResponse,
) (OldResponse, error) {
	var none OldResponse
	if err := transcode(old, request); err != nil {
		return none, err
	}
	response, err := method(ctx, request)
	if err != nil {
		return none, err
	}
	return oldResponse, transcode(response, oldResponse)
}

func transcode(from, to proto.Message) error {
	b, err := proto.Marshal(from)
	if err == nil {
		err = proto.Unmarshal(b, to)
	}
	if err != nil {
		return fmt.Errorf("authzed: %s as %s: %w", from.ProtoReflect().Descriptor().FullName(), to.ProtoReflect().Descriptor().FullName(), err)
	}
	return nil
}
