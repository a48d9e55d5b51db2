package api

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sort"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/graph"
)

// watchService implements pemba.v1.WatchService.
type watchService struct {
	pembav1.UnimplementedWatchServiceServer
	server *Server
}

// A changeTeller turns revisions of a change log into the messages of one
// stream. Every message has the cursor behind what was looked at for it, so that
// who comes back with the last one misses nothing and is told nothing twice.
type changeTeller struct {
	server  *Server
	store   graph.StoreInfo
	filters []graph.Filter
	schema  bool
	put     func(*pembav1.WatchResponse) error
	// left is how many changes may still be told; a schema counts as one.
	left int
}

// newChangeTeller judges what is asked for.
func (s *Server) newChangeTeller(store graph.StoreInfo, filters []*pembav1.ChangeFilter, schema bool) (*changeTeller, error) {
	converted, err := toChangeFilters(filters)
	if err != nil {
		return nil, err
	}
	return &changeTeller{server: s, store: store, filters: converted, schema: schema, left: math.MaxInt}, nil
}

// passes reports whether a change is to be told.
func (t *changeTeller) passes(c *graph.LoggedChange) bool {
	for i := range t.filters {
		if t.filters[i].Matches(&c.Tuple) {
			return true
		}
	}
	return len(t.filters) == 0
}

// tell puts out what of a revision, or of a part of one, is to be told: no
// message, one, or several when there is much. It reports whether anything was,
// and ends early when nothing is left to tell.
func (t *changeTeller) tell(r *graph.LoggedRevision) (told bool, err error) {
	var message *pembav1.WatchResponse
	bytes := 0
	begin := func() error {
		if message != nil {
			return nil
		}
		metadata, err := fromMetadata(r.Metadata)
		message, bytes = &pembav1.WatchResponse{
			Zookie:  zookie{cluster: t.server.clusterID(), revision: r.Revision, instant: r.Stamp}.proto(),
			Instant: fromInstant(r.Stamp), RecordedActor: r.RecordedActor, Metadata: metadata,
		}, 0
		return err
	}
	flush := func(looked int) error {
		upTo := graph.LoggedRevision{Revision: r.Revision, Count: r.Count, Offset: r.Offset, Changes: r.Changes[:looked]}
		full := message
		full.Cursor = t.server.changeCursor(t.store, upTo.End())
		message, told = nil, true
		return t.put(full)
	}
	if t.schema && r.SchemaChanged {
		if err := begin(); err != nil {
			return told, err
		}
		if message.Schema, err = t.version(r); err != nil {
			return told, err
		}
		if t.left--; t.left == 0 {
			return told, flush(0)
		}
	}
	for i := range r.Changes {
		if !t.passes(&r.Changes[i]) {
			continue
		}
		if err := begin(); err != nil {
			return told, err
		}
		change, err := fromChange(&r.Changes[i], r.Sequence+uint64(i))
		if err != nil {
			return told, err
		}
		message.Changes = append(message.Changes, change)
		bytes += proto.Size(change)
		t.left--
		if len(message.Changes) == batchTuples || bytes >= batchBytes || t.left == 0 {
			if err := flush(i + 1); err != nil || t.left == 0 {
				return told, err
			}
		}
	}
	if message != nil {
		return told, flush(len(r.Changes))
	}
	return told, nil
}

// version describes the schema that a revision wrote.
func (t *changeTeller) version(r *graph.LoggedRevision) (*pembav1.SchemaVersion, error) {
	size := 0
	versions, err := t.server.node.SchemaVersions(t.store.ID, r.Revision+1, 1)
	if err != nil {
		return nil, err
	}
	// The change log may be kept longer than the schemas are.
	if len(versions) > 0 && versions[0].Revision == r.Revision {
		size = len(versions[0].Text)
	}
	return t.server.schemaVersion(r.Revision, r.Stamp, r.RecordedActor, r.Metadata, size)
}

// heartbeat puts out that everything before a position was told; at is the
// moment of that, zero when it is not known.
func (t *changeTeller) heartbeat(p graph.Position, at graph.Instant) error {
	told := p.Revision - min(p.Revision, 1)
	return t.put(&pembav1.WatchResponse{
		Heartbeat: true, Cursor: t.server.changeCursor(t.store, p), Instant: fromInstant(at),
		Zookie: zookie{cluster: t.server.clusterID(), revision: told, instant: at}.proto(),
	})
}

// behind is the position behind everything up to a zookie.
func (s *Server) behind(field string, p *pembav1.Zookie) (graph.Position, error) {
	z, told, err := parseToldZookie(p.GetToken(), s.clusterID())
	if err != nil {
		return graph.Position{}, within(field, err)
	}
	if told > 0 { // It is that of a dialect's watch.
		return graph.Position{Revision: z.revision, Offset: told}, nil
	}
	if z.revision == math.MaxUint64 {
		return graph.Position{}, within(field, malformed("token", "its revision is the last one that there can be"))
	}
	return graph.Position{Revision: z.revision + 1}, nil
}

func (s *watchService) Watch(r *pembav1.WatchRequest, stream grpc.ServerStreamingServer[pembav1.WatchResponse]) error {
	server := s.server
	store, err := server.store(stream.Context(), r.GetStore())
	if err != nil {
		return err
	}
	teller, err := server.newChangeTeller(store, r.GetFilters(), r.GetSchemaChanges())
	if err != nil {
		return err
	}
	// Without a place to begin it is behind what is there now. What is written
	// from here on is told, and so is what is acknowledged after the first
	// heartbeat.
	from := graph.Position{Revision: max(store.Changed, store.Created) + 1}
	switch x := r.GetFrom().(type) {
	case *pembav1.WatchRequest_After:
		from, err = server.behind("after", x.After)
	case *pembav1.WatchRequest_Cursor:
		from, err = server.parseChangeCursor(store, x.Cursor)
	}
	if err != nil {
		return err
	}
	produce := func(ctx context.Context, watcher *cluster.Watcher, put func(*pembav1.WatchResponse) error) error {
		teller.put = put
		if err := teller.heartbeat(from, 0); err != nil {
			return err
		}
		for last := time.Now(); ; {
			batch, err := watcher.Next(ctx, max(server.limits.WatchHeartbeat-time.Since(last), 0))
			if err != nil {
				return err
			}
			told := false
			for i := range batch.Revisions {
				some, err := teller.tell(&batch.Revisions[i])
				if err != nil {
					return err
				}
				told = told || some
			}
			// Where the filters let nothing pass for long, the heartbeat moves the
			// cursor on, so that it does not grow old.
			if !told && time.Since(last) >= server.limits.WatchHeartbeat {
				if err := teller.heartbeat(batch.Position, batch.Instant); err != nil {
					return err
				}
				told = true
			}
			if told {
				last = time.Now()
			}
		}
	}
	return feedChanges(server, stream, store, from, produce)
}

// feedChanges follows the changes of a store from a position on, and sends what
// produce makes of them, until the call or the server ends. It takes one of the
// slots of the watches.
func feedChanges[M proto.Message](server *Server, stream grpc.ServerStream, store graph.StoreInfo, from graph.Position,
	produce func(ctx context.Context, watcher *cluster.Watcher, put func(M) error) error,
) error {
	who := callerOf(stream.Context())
	if err := server.watches.enter(who); err != nil {
		return err
	}
	defer server.watches.leave(who)
	watcher, err := server.node.Watch(store.ID, from)
	if err != nil {
		return ofStore(store, err)
	}
	defer watcher.Close()

	// A watch has no end of its own, so that of the server ends it.
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	go func() {
		select {
		case <-server.stopping:
			cancel(cluster.ErrShuttingDown)
		case <-ctx.Done():
		}
	}()
	err = feedBatches(ctx, server.limits.StreamStall, func(ctx context.Context, put func(M) error) error {
		return produce(ctx, watcher, put)
	}, stream)
	if err != nil && errors.Is(context.Cause(ctx), cluster.ErrShuttingDown) {
		return fmt.Errorf("watch store %s: %w", store.Name, cluster.ErrShuttingDown)
	}
	return ofStore(store, err)
}

func (s *watchService) ReadChanges(r *pembav1.ReadChangesRequest, stream grpc.ServerStreamingServer[pembav1.ReadChangesResponse]) error {
	server := s.server
	store, err := server.store(stream.Context(), r.GetStore())
	if err != nil {
		return err
	}
	teller, err := server.newChangeTeller(store, r.GetFilters(), r.GetSchemaChanges())
	if err != nil {
		return err
	}
	limit, err := toLimit(r.GetLimit())
	if err != nil {
		return err
	}
	if limit > 0 {
		teller.left = limit
	}
	until := graph.MaxInstant
	if r.GetUntil() != nil {
		if until, err = toInstant("until", r.GetUntil()); err != nil {
			return err
		}
	}
	from := graph.Position{Revision: store.OldestLog}
	switch x := r.GetFrom().(type) {
	case *pembav1.ReadChangesRequest_After:
		from, err = server.behind("after", x.After)
	case *pembav1.ReadChangesRequest_Cursor:
		from, err = server.parseChangeCursor(store, x.Cursor)
	case *pembav1.ReadChangesRequest_Since:
		var since graph.Instant
		if since, err = toInstant("since", x.Since); err == nil && since > until {
			err = malformed("since", "it is %s, which is after until, %s", since, until)
		}
		if err == nil {
			from, err = server.since(stream.Context(), store, since)
			if errors.Is(err, graph.ErrRevisionGone) {
				err = fmt.Errorf("%w; leave since out to begin there", err)
			}
		}
	}
	if err != nil {
		return ofStore(store, err)
	}
	// A place that no revision was given yet is refused as it is by Watch; one that
	// another store's change was given is the end of this log.
	if from.Revision > max(store.Changed, store.Created)+1 {
		snapshot, err := server.node.Snapshot(stream.Context(), store.ID, cluster.Consistency{Mode: cluster.AtLeast, Revision: from.Revision - 1}, graph.Overlay{})
		if err != nil {
			return ofStore(store, err)
		}
		snapshot.Close()
	}
	produce := func(ctx context.Context, put func(*pembav1.ReadChangesResponse) error) error {
		teller.put = func(m *pembav1.WatchResponse) error { return put(&pembav1.ReadChangesResponse{Changes: m}) }
		for {
			if err := ctx.Err(); err != nil {
				return err
			}
			revisions, err := server.node.Changes(store.ID, from, batchTuples)
			if err != nil || len(revisions) == 0 {
				return err
			}
			for i := range revisions {
				// It ends with what was newest when it began: what is written
				// meanwhile is for the next call.
				if revisions[i].Revision > store.Changed || revisions[i].Stamp > until {
					return nil
				}
				if _, err := teller.tell(&revisions[i]); err != nil || teller.left == 0 {
					return err
				}
				from = revisions[i].End()
			}
		}
	}
	return ofStore(store, feedBatches(stream.Context(), server.limits.StreamStall, produce, stream))
}

// since finds the position before the first change at or after a moment. Stamps
// never fall from one revision to the next, so a few reads find it however long
// the log is.
func (s *Server) since(ctx context.Context, store graph.StoreInfo, at graph.Instant) (graph.Position, error) {
	if store.OldestLog != 0 && at < store.OldestLogAt {
		return graph.Position{}, &graph.RevisionGoneError{At: at, Oldest: store.OldestLog, OldestAt: store.OldestLogAt, Log: true}
	}
	var failed error
	later := sort.Search(int(min(store.Changed-min(store.Changed, store.OldestLog), math.MaxInt-1))+1, func(i int) bool {
		if failed == nil {
			failed = ctx.Err()
		}
		if failed != nil {
			return true
		}
		revisions, err := s.node.Changes(store.ID, graph.Position{Revision: store.OldestLog + graph.Revision(i)}, 1)
		if failed = err; err != nil {
			return true
		}
		return len(revisions) == 0 || revisions[0].Stamp >= at
	})
	return graph.Position{Revision: store.OldestLog + graph.Revision(later)}, failed
}
