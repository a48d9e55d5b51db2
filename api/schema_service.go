package api

import (
	"context"
	"unicode/utf8"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/graph"
)

// schemaService implements pemba.v1.SchemaService.
type schemaService struct {
	pembav1.UnimplementedSchemaServiceServer
	server *Server
}

func (s *schemaService) WriteSchema(ctx context.Context, r *pembav1.WriteSchemaRequest) (*pembav1.WriteSchemaResponse, error) {
	limits := &s.server.limits
	store, err := toStore(r.GetStore())
	if err != nil {
		return nil, err
	}
	if n := len(r.GetSchema()); n > limits.SchemaBytes {
		return nil, tooLarge("schema", n, limits.SchemaBytes)
	}
	if !utf8.ValidString(r.GetSchema()) {
		return nil, malformed("schema", "it is not valid UTF-8")
	}
	m := &graph.Mutation{Store: store, Schema: &graph.WriteSchema{Text: r.GetSchema()}}
	if err := limits.setReasons(m, r.GetRecordedActor(), r.GetMetadata()); err != nil {
		return nil, err
	}
	result, err := s.server.write(ctx, m)
	if err != nil {
		return nil, err
	}
	return &pembav1.WriteSchemaResponse{WrittenAt: s.server.writtenAt(result)}, nil
}

func (s *schemaService) ReadSchema(ctx context.Context, r *pembav1.ReadSchemaRequest) (*pembav1.ReadSchemaResponse, error) {
	snapshot, err := s.server.snapshot(ctx, r.GetStore(), r.GetConsistency(), nil)
	if err != nil {
		return nil, err
	}
	defer snapshot.Close()
	_, version, err := snapshot.Schema()
	if err != nil {
		return nil, err
	}
	// The instant of the write is not kept with the schema; a zookie without one
	// leaves it to the read.
	written := zookie{cluster: s.server.clusterID, revision: version.Revision}
	return &pembav1.ReadSchemaResponse{
		Schema: version.Text, WrittenAt: written.proto(), ReadAt: s.server.zookie(snapshot).proto(),
	}, nil
}
