package api

import (
	"context"
	"math"

	"google.golang.org/grpc"

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
		var last func() string
		pages := Pager[*pembav1.Tuple]{Most: batchTuples, BytesMax: batchBytes, Put: func(page []*pembav1.Tuple) error {
			return put(&pembav1.ExportTuplesResponse{ReadAt: read.readAt, Tuples: page, Cursor: last()})
		}}
		err := read.each(ctx, func(tuple *pembav1.Tuple, cursor func() string) (more bool, err error) {
			last = cursor
			return true, pages.Add(tuple)
		})
		if err != nil {
			return err
		}
		return pages.Flush()
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
		if from, err = parseCursor(r.GetCursor(), s.server.clusterID(), kind, read.arguments); err != nil {
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
	if err := r.snapshot.JudgeFilter("filter", r.filter); err != nil {
		return err
	}
	var behind func() []byte
	token := func() string {
		c := cursor{zookie: r.at, kind: r.kind, arguments: r.arguments, position: behind()}
		return c.token()
	}
	return eachTuple(ctx, r.snapshot, r.snapshot.Graph().Read, r.filter, r.position, func(t graph.Tuple, position func() []byte) (more bool, err error) {
		tuple, err := TupleMessage(t)
		if err != nil {
			return false, err
		}
		behind = position
		return f(tuple, token)
	})
}

// A tupleReader is one of the orders in which a snapshot gives tuples, a page at a
// time.
type tupleReader func(f graph.Filter, after []byte, limit int) ([]graph.Tuple, []byte, error)

// eachTuple is EachTuple from a position that was parsed, in the order of read.
func eachTuple(ctx context.Context, snapshot *engine.Snapshot, read tupleReader, filter graph.Filter, at tuplePosition,
	f func(t graph.Tuple, position func() []byte) (more bool, err error),
) error {
	// A filter that matches little may look at much before it finds it.
	snapshot.Graph().Guard(func(int) error { return ctx.Err() })
	position := func() []byte { return at.append() }
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		page, next, err := read(filter, at.after, pageTuples)
		if err != nil {
			return err
		}
		for at.skip < len(page) {
			t := page[at.skip]
			at.skip++
			if more, err := f(t, position); err != nil || !more {
				return err
			}
		}
		if next == nil {
			return nil
		}
		at = tuplePosition{after: next}
	}
}

// filterArguments hashes what decides the results of ReadTuples and
// ExportTuples.
func filterArguments(kind questionKind, store graph.StoreInfo, f graph.Filter) argumentHash {
	return hashArguments(kind, append([]string{storeArgument(store)}, FilterArguments(f)...)...).sum()
}
