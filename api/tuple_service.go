package api

import (
	"context"
	"math"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// tupleService implements pemba.v1.TupleService.
type tupleService struct {
	pembav1.UnimplementedTupleServiceServer
	server *Server
}

func (s *tupleService) WriteTuples(ctx context.Context, r *pembav1.WriteTuplesRequest) (*pembav1.WriteTuplesResponse, error) {
	limits := &s.server.limits
	store, err := s.server.store(ctx, r.GetStore())
	if err != nil {
		return nil, err
	}
	m := new(graph.Mutation)
	if m.Updates, err = limits.toUpdates(r.GetUpdates()); err != nil {
		return nil, err
	}
	if m.Preconditions, err = limits.toPreconditions(r.GetPreconditions()); err != nil {
		return nil, err
	}
	if err := limits.setReasons(m, r.GetRecordedActor(), r.GetMetadata()); err != nil {
		return nil, err
	}
	result, err := s.server.change(ctx, store, m)
	if err != nil {
		return nil, err
	}
	return &pembav1.WriteTuplesResponse{WrittenAt: s.server.writtenAt(result), Changed: toCount(result.Changed)}, nil
}

func (s *tupleService) DeleteTuples(ctx context.Context, r *pembav1.DeleteTuplesRequest) (*pembav1.DeleteTuplesResponse, error) {
	limits := &s.server.limits
	store, err := s.server.store(ctx, r.GetStore())
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
	m := &graph.Mutation{Delete: &graph.DeleteMatching{Filter: filter, Limit: limit, AllowPartial: r.GetAllowPartial()}}
	if m.Preconditions, err = limits.toPreconditions(r.GetPreconditions()); err != nil {
		return nil, err
	}
	if err := limits.setReasons(m, r.GetRecordedActor(), r.GetMetadata()); err != nil {
		return nil, err
	}
	result, err := s.server.change(ctx, store, m)
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
	limit, err := toLimit(r.GetLimit())
	if err != nil {
		return err
	}
	read, err := s.open(stream, readTuples, r)
	if err != nil {
		return err
	}
	produce := func(ctx context.Context, put func(*pembav1.ReadTuplesResponse) error) error {
		left := limit
		return read.each(ctx, func(tuple *pembav1.Tuple, cursor func() string) (more bool, err error) {
			err = put(&pembav1.ReadTuplesResponse{Tuple: tuple, ReadAt: read.readAt, Cursor: cursor()})
			left--
			return left != 0, err
		})
	}
	return feed(stream.Context(), s.server.limits.StreamStall, sendAheadResults, produce, stream.Send)
}

func (s *tupleService) ExportTuples(r *pembav1.ExportTuplesRequest, stream grpc.ServerStreamingServer[pembav1.ExportTuplesResponse]) error {
	read, err := s.open(stream, exportTuples, r)
	if err != nil {
		return err
	}
	produce := func(ctx context.Context, put func(*pembav1.ExportTuplesResponse) error) error {
		batch := &pembav1.ExportTuplesResponse{ReadAt: read.readAt}
		bytes := 0
		var last func() string
		flush := func() error {
			full := batch
			full.Cursor = last()
			batch, bytes = &pembav1.ExportTuplesResponse{ReadAt: read.readAt}, 0
			return put(full)
		}
		err := read.each(ctx, func(tuple *pembav1.Tuple, cursor func() string) (more bool, err error) {
			batch.Tuples, last = append(batch.Tuples, tuple), cursor
			if bytes += proto.Size(tuple); len(batch.Tuples) == batchTuples || bytes >= batchBytes {
				err = flush()
			}
			return true, err
		})
		if err == nil && len(batch.Tuples) > 0 {
			err = flush()
		}
		return err
	}
	return feedBatches(stream.Context(), s.server.limits.StreamStall, produce, stream)
}

func (s *tupleService) CountTuples(ctx context.Context, r *pembav1.CountTuplesRequest) (*pembav1.CountTuplesResponse, error) {
	store, err := s.server.store(ctx, r.GetStore())
	if err != nil {
		return nil, err
	}
	filter, err := toFilter(r.GetFilter())
	if err != nil {
		return nil, within("filter", err)
	}
	snapshot, err := s.server.snapshot(ctx, store, r.GetConsistency(), nil)
	if err != nil {
		return nil, err
	}
	defer snapshot.Close()
	snapshot.Graph().Guard(func(int) error { return ctx.Err() })
	if err := snapshot.JudgeFilter("filter", filter); err != nil {
		return nil, err
	}
	count, err := snapshot.Graph().Count(filter)
	if err != nil {
		return nil, err
	}
	return &pembav1.CountTuplesResponse{Count: count, CountedAt: s.server.zookie(snapshot).proto()}, nil
}

// A tupleRead walks the tuples that match a filter, at one revision, from where
// a cursor left off.
type tupleRead struct {
	snapshot  *engine.Snapshot
	filter    graph.Filter
	kind      questionKind
	arguments argumentHash
	position  tuplePosition
	at        zookie
	readAt    *pembav1.Zookie
}

// open begins to read. What it returns must be walked with each, which closes
// the snapshot.
func (s *tupleService) open(stream grpc.ServerStream, kind questionKind, r interface {
	GetStore() string
	GetConsistency() *pembav1.Consistency
	GetFilter() *pembav1.TupleFilter
	GetCursor() string
},
) (*tupleRead, error) {
	ctx := stream.Context()
	store, err := s.server.store(ctx, r.GetStore())
	if err != nil {
		return nil, err
	}
	filter, err := toFilter(r.GetFilter())
	if err != nil {
		return nil, within("filter", err)
	}
	read := &tupleRead{filter: filter, kind: kind, arguments: filterArguments(kind, store, filter)}
	var from *cursor
	if r.GetCursor() != "" {
		if from, err = parseCursor(r.GetCursor(), s.server.clusterID, kind, read.arguments); err != nil {
			return nil, err
		}
		var ok bool
		if read.position, ok = parseTuplePosition(from.position); !ok {
			return nil, graph.ErrInvalidPosition
		}
	}
	if read.snapshot, err = s.server.snapshot(ctx, store, r.GetConsistency(), from); err != nil {
		return nil, err
	}
	read.at = s.server.zookie(read.snapshot)
	read.readAt = read.at.proto()
	if err := read.at.announce(stream); err != nil {
		read.snapshot.Close()
		return nil, err
	}
	return read, nil
}

// each gives f the tuples in order, each with what makes the cursor that
// continues behind it, which is good until the next tuple; it ends early when f
// wants no more.
func (r *tupleRead) each(ctx context.Context, f func(t *pembav1.Tuple, cursor func() string) (more bool, err error)) error {
	defer r.snapshot.Close()
	// A filter that matches little may look at much before it finds it.
	r.snapshot.Graph().Guard(func(int) error { return ctx.Err() })
	if err := r.snapshot.JudgeFilter("filter", r.filter); err != nil {
		return err
	}
	token := func() string {
		c := cursor{zookie: r.at, kind: r.kind, arguments: r.arguments, position: r.position.append()}
		return c.token()
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		page, next, err := r.snapshot.Graph().Read(r.filter, r.position.after, pageTuples)
		if err != nil {
			return err
		}
		for r.position.skip < len(page) {
			tuple, err := TupleMessage(page[r.position.skip])
			if err != nil {
				return err
			}
			r.position.skip++
			if more, err := f(tuple, token); err != nil || !more {
				return err
			}
		}
		if next == nil {
			return nil
		}
		r.position = tuplePosition{after: next}
	}
}

// filterArguments hashes what decides the results of ReadTuples and
// ExportTuples.
func filterArguments(kind questionKind, store graph.StoreInfo, f graph.Filter) argumentHash {
	relation := "any"
	if f.SubjectRelation != nil {
		relation = "=" + *f.SubjectRelation
	}
	return hashArguments(kind, storeArgument(store), f.ObjectType, f.ObjectID, f.ObjectIDPrefix,
		f.Relation, f.SubjectType, f.SubjectID, relation).sum()
}
