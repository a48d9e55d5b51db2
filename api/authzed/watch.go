package authzed

import (
	"context"
	"slices"
	"time"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/graph"
)

const (
	// checkpointPause is after what time without a checkpoint a watch that asks for
	// them has one, whether something changed or not.
	checkpointPause = time.Second
	// watchMessageBytes is about how large a message of updates may be. What one
	// write may change comes in one, unless its contexts or names are large.
	watchMessageBytes = 256 << 10
)

// Watch tells the changes of a store, revision by revision: its updates, then that
// it wrote the schema, then a checkpoint, each a message of its own and only what
// was asked for. A revision larger than a message has several of updates. The token
// of all but the last says how many of its changes were told, so that who comes
// back with any token is told every change once.
func (s *watchService) Watch(r *v1.WatchRequest, stream grpc.ServerStreamingServer[v1.WatchResponse]) error {
	if err := validate(r); err != nil {
		return err
	}
	t := &teller{
		adapter:     s.adapter,
		schemas:     slices.Contains(r.GetOptionalUpdateKinds(), v1.WatchKind_WATCH_KIND_INCLUDE_SCHEMA_UPDATES),
		checkpoints: slices.Contains(r.GetOptionalUpdateKinds(), v1.WatchKind_WATCH_KIND_INCLUDE_CHECKPOINTS),
	}
	var err error
	if t.filters, err = toWatchFilters(r); err != nil {
		return err
	}
	store, err := s.host.Store(stream.Context())
	if err != nil {
		return err
	}
	// Without a place to begin it is behind what is there now.
	from := graph.Position{Revision: max(store.Changed, store.Created) + 1}
	if start := r.GetOptionalStartCursor(); start != nil {
		var ours bool
		if from, ours = s.host.ParseChangesZookie(start.GetToken()); !ours {
			return errInvalidToken
		}
	}
	produce := func(ctx context.Context, watcher *cluster.Watcher, put func(*v1.WatchResponse) error) error {
		t.put = put
		// A client that waits for it misses nothing of what it writes from then on.
		if err := stream.SendHeader(nil); err != nil {
			return err
		}
		for last := time.Now(); ; {
			batch, err := watcher.Next(ctx, max(checkpointPause-time.Since(last), 0))
			if err != nil {
				return err
			}
			for i := range batch.Revisions {
				if err := t.tell(&batch.Revisions[i]); err != nil {
					return err
				}
			}
			if time.Since(last) < checkpointPause {
				continue
			}
			last = time.Now()
			// In the midst of a revision there is nothing to tell: the token of what was
			// told of it is beyond those of all before.
			if t.checkpoints && batch.Reached != 0 {
				if err := t.checkpoint(batch.Reached, batch.Instant); err != nil {
					return err
				}
			}
		}
	}
	return api.FeedChanges(s.host, stream, store, from, produce)
}

// toWatchFilters converts what a watch is to be told of; none is everything.
func toWatchFilters(r *v1.WatchRequest) ([]graph.Filter, error) {
	types, filters := r.GetOptionalObjectTypes(), r.GetOptionalRelationshipFilters()
	if len(types) > 0 && len(filters) > 0 {
		return nil, invalid("optional_object_types and optional_relationship_filters are both given; only one of them is allowed")
	}
	if n := len(types) + len(filters); n > filtersMax {
		return nil, invalid("there are %d object types or filters; at most %d are allowed", n, filtersMax)
	}
	var result []graph.Filter
	for _, name := range types {
		result = append(result, graph.Filter{ObjectType: name})
	}
	for _, f := range filters {
		filter, err := toFullFilter(f)
		if err != nil {
			return nil, err
		}
		result = append(result, filter)
	}
	return result, nil
}

// A teller makes the messages of one watch.
type teller struct {
	*adapter
	filters              []graph.Filter
	schemas, checkpoints bool
	put                  func(*v1.WatchResponse) error
	// schemaChanged says that the revision which is being told wrote the schema. Its
	// first part says so, and it is told with the last.
	schemaChanged bool
	// message has the updates of a revision that were not sent yet; nil when there
	// are none. It may wait for the next part of its revision, which is in the log.
	message *v1.WatchResponse
	bytes   int // of its updates
}

// tell puts out what of a revision, or of a part of one, is to be told.
func (t *teller) tell(r *graph.LoggedRevision) error {
	for i := range r.Changes {
		c := &r.Changes[i]
		// That a lifetime ended is no event: who was told of the relationship knows.
		if c.Kind == graph.Expired || !t.passes(&c.Tuple) {
			continue
		}
		if err := t.add(r, c); err != nil {
			return err
		}
		if t.bytes >= watchMessageBytes {
			if err := t.flush(r, i+1); err != nil {
				return err
			}
		}
	}
	t.schemaChanged = t.schemaChanged || r.SchemaChanged
	if int(r.Offset)+len(r.Changes) < r.Count {
		return nil
	}
	if err := t.flush(r, len(r.Changes)); err != nil {
		return err
	}
	schemaChanged := t.schemaChanged
	t.schemaChanged = false
	// A revision that writes the schema may end lifetimes, many of them, and has no
	// other changes. So none of it is an update, and no token of updates leads into it,
	// behind the part that says so.
	if t.schemas && schemaChanged {
		message := &v1.WatchResponse{ChangesThrough: t.through(r.Revision, r.Stamp), SchemaUpdated: true}
		if err := describe(message, r); err != nil {
			return err
		}
		if err := t.put(message); err != nil {
			return err
		}
	}
	if t.checkpoints {
		return t.checkpoint(r.Revision, r.Stamp)
	}
	return nil
}

// add adds a change to the message. No revision has two of one relationship that
// are events.
func (t *teller) add(r *graph.LoggedRevision, c *graph.LoggedChange) error {
	if t.message == nil {
		t.message, t.bytes = &v1.WatchResponse{}, 0
		if err := describe(t.message, r); err != nil {
			return err
		}
	}
	relationship, err := fromTuple(c.Tuple)
	if err != nil {
		return err
	}
	update := &v1.RelationshipUpdate{Operation: v1.RelationshipUpdate_OPERATION_TOUCH, Relationship: relationship}
	if c.Kind == graph.Deleted {
		update.Operation = v1.RelationshipUpdate_OPERATION_DELETE
	}
	t.message.Updates = append(t.message.Updates, update)
	t.bytes += proto.Size(update)
	return nil
}

// flush puts the message out, if there is one; looked is how many changes of the
// part were looked at for it.
func (t *teller) flush(r *graph.LoggedRevision, looked int) error {
	if t.message == nil {
		return nil
	}
	message := t.message
	t.message = nil
	message.ChangesThrough = t.through(r.Revision, r.Stamp)
	if told := int(r.Offset) + looked; told < r.Count {
		message.ChangesThrough.Token = t.host.ChangesZookie(r.Revision, r.Stamp, uint32(told))
	}
	return t.put(message)
}

// checkpoint puts out that everything up to a revision was told.
func (t *teller) checkpoint(revision graph.Revision, stamp graph.Instant) error {
	return t.put(&v1.WatchResponse{ChangesThrough: t.through(revision, stamp), IsCheckpoint: true})
}

// through is the token of a revision all of which was told: the one that the write
// returned.
func (t *teller) through(revision graph.Revision, stamp graph.Instant) *v1.ZedToken {
	return &v1.ZedToken{Token: t.host.Zookie(revision, stamp)}
}

// passes reports whether a change is to be told.
func (t *teller) passes(tuple *graph.Tuple) bool {
	for i := range t.filters {
		if t.filters[i].Matches(tuple) {
			return true
		}
	}
	return len(t.filters) == 0
}

// describe adds the metadata of a revision, which is that of one transaction.
func describe(message *v1.WatchResponse, r *graph.LoggedRevision) error {
	metadata, err := fromMetadata(r.Metadata)
	if err == nil && metadata != nil {
		message.OptionalTransactionMetadata = metadata
		message.FullRevisionMetadata = []*structpb.Struct{metadata}
	}
	return err
}
