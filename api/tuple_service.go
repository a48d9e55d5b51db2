package api

import (
	"context"
	"math"

	"google.golang.org/grpc"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/graph"
)

// tupleService implements pemba.v1.TupleService.
type tupleService struct {
	pembav1.UnimplementedTupleServiceServer
	server *Server
}

func (s *tupleService) WriteTuples(ctx context.Context, r *pembav1.WriteTuplesRequest) (*pembav1.WriteTuplesResponse, error) {
	limits := &s.server.limits
	store, err := toStore(r.GetStore())
	if err != nil {
		return nil, err
	}
	m := &graph.Mutation{Store: store}
	if m.Updates, err = limits.toUpdates(r.GetUpdates()); err != nil {
		return nil, err
	}
	if m.Preconditions, err = limits.toPreconditions(r.GetPreconditions()); err != nil {
		return nil, err
	}
	if err := limits.setReasons(m, r.GetRecordedActor(), r.GetMetadata()); err != nil {
		return nil, err
	}
	result, err := s.server.write(ctx, m)
	if err != nil {
		return nil, err
	}
	return &pembav1.WriteTuplesResponse{WrittenAt: s.server.writtenAt(result), Changed: toCount(result.Changed)}, nil
}

func (s *tupleService) DeleteTuples(ctx context.Context, r *pembav1.DeleteTuplesRequest) (*pembav1.DeleteTuplesResponse, error) {
	limits := &s.server.limits
	store, err := toStore(r.GetStore())
	if err != nil {
		return nil, err
	}
	filter, err := toFilter(r.GetFilter())
	if err != nil {
		return nil, within("filter", err)
	}
	if isEmpty(filter) {
		return nil, malformed("filter", "it is empty, which would delete everything; at least one of its fields must be set")
	}
	limit := limits.Deletes
	if r.GetLimit() > 0 {
		if uint64(r.GetLimit()) > uint64(limits.Deletes) {
			return nil, malformed("limit", "it is %d; 0 (which means %d) to %d are allowed", r.GetLimit(), limits.Deletes, limits.Deletes)
		}
		limit = int(r.GetLimit())
	}
	m := &graph.Mutation{
		Store:  store,
		Delete: &graph.DeleteMatching{Filter: filter, Limit: limit, AllowPartial: r.GetAllowPartial()},
	}
	if m.Preconditions, err = limits.toPreconditions(r.GetPreconditions()); err != nil {
		return nil, err
	}
	if err := limits.setReasons(m, r.GetRecordedActor(), r.GetMetadata()); err != nil {
		return nil, err
	}
	result, err := s.server.write(ctx, m)
	if err != nil {
		return nil, err
	}
	return &pembav1.DeleteTuplesResponse{
		DeletedAt: s.server.writtenAt(result), Deleted: toCount(result.Changed), Partial: result.Partial,
	}, nil
}

// toCount converts a count that the limits keep far below the largest.
func toCount(n int) uint32 { return uint32(min(max(n, 0), math.MaxUint32)) }

func (s *tupleService) ReadTuples(r *pembav1.ReadTuplesRequest, stream grpc.ServerStreamingServer[pembav1.ReadTuplesResponse]) error {
	ctx := stream.Context()
	filter, err := toFilter(r.GetFilter())
	if err != nil {
		return within("filter", err)
	}
	limit, err := toLimit(r.GetLimit())
	if err != nil {
		return err
	}
	arguments := filterArguments(r.GetStore(), filter)
	var from *cursor
	var position tuplePosition
	if r.GetCursor() != "" {
		if from, err = parseCursor(r.GetCursor(), s.server.clusterID, readTuples, arguments); err != nil {
			return err
		}
		var ok bool
		if position, ok = parseTuplePosition(from.position); !ok {
			return graph.ErrInvalidPosition
		}
	}
	snapshot, err := s.server.snapshot(ctx, r.GetStore(), r.GetConsistency(), from)
	if err != nil {
		return err
	}
	// The snapshot is produce's: it is closed there, whatever becomes of the
	// stream.
	produce := func(ctx context.Context, put func(*pembav1.ReadTuplesResponse) error) error {
		defer snapshot.Close()
		// A filter that matches little may look at much before it finds it.
		snapshot.Graph().Guard(func(int) error { return ctx.Err() })
		if err := snapshot.JudgeFilter("filter", filter); err != nil {
			return err
		}
		at := s.server.zookie(snapshot)
		readAt := at.proto()
		for left := limit; ; {
			if err := ctx.Err(); err != nil {
				return err
			}
			page, next, err := snapshot.Graph().Read(filter, position.after, pageTuples)
			if err != nil {
				return err
			}
			for position.skip < len(page) {
				message, err := TupleMessage(page[position.skip])
				if err != nil {
					return err
				}
				position.skip++
				c := cursor{zookie: at, kind: readTuples, arguments: arguments, position: position.append()}
				if err := put(&pembav1.ReadTuplesResponse{Tuple: message, ReadAt: readAt, Cursor: c.token()}); err != nil {
					return err
				}
				if left--; left == 0 {
					return nil
				}
			}
			if next == nil {
				return nil
			}
			position = tuplePosition{after: next}
		}
	}
	return feed(ctx, s.server.limits.StreamStall, produce, stream.Send)
}

// filterArguments hashes what decides the results of ReadTuples.
func filterArguments(store string, f graph.Filter) argumentHash {
	relation := "any"
	if f.SubjectRelation != nil {
		relation = "=" + *f.SubjectRelation
	}
	return hashArguments(readTuples, canonicalStore(store), f.ObjectType, f.ObjectID, f.ObjectIDPrefix,
		f.Relation, f.SubjectType, f.SubjectID, relation).sum()
}

// canonicalStore gives the two names of the default store one form.
func canonicalStore(name string) string {
	if name == "" {
		return DefaultStoreName
	}
	return name
}
