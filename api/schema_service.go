package api

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"unicode/utf8"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

// schemaService implements pemba.v1.SchemaService.
type schemaService struct {
	pembav1.UnimplementedSchemaServiceServer
	server *Server
}

// checkSchema refuses texts that are too large, or no texts.
func (l *Limits) checkSchema(field, text string) error {
	if n := len(text); n > l.SchemaBytes {
		return tooLarge(field, n, l.SchemaBytes, "--limit-schema-bytes")
	}
	if !utf8.ValidString(text) {
		return malformed(field, "it is not valid UTF-8")
	}
	return nil
}

// A storeTurns lets one at a time do something to a store; what is done to other
// stores does not wait for it. Its zero value is ready. Many goroutines may use it.
type storeTurns struct {
	mu    sync.Mutex
	turns map[graph.StoreID]*turn
}

// A turn is that of one store. It is there while somebody has it or waits for it.
//
// Invariant: 1 <= users.
type turn struct {
	// held has an element while somebody has the turn.
	held chan struct{}
	// users counts who has it and who waits for it, under the lock of storeTurns.
	users int
}

// take waits until nobody has the turn of a store. Who has it must call end once.
func (t *storeTurns) take(ctx context.Context, id graph.StoreID) (end func(), err error) {
	t.mu.Lock()
	this := t.turns[id]
	if this == nil {
		if t.turns == nil {
			t.turns = make(map[graph.StoreID]*turn)
		}
		this = &turn{held: make(chan struct{}, 1)}
		t.turns[id] = this
	}
	this.users++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if this.users--; this.users == 0 {
			delete(t.turns, id)
		}
	}
	select {
	case this.held <- struct{}{}:
		return func() {
			<-this.held
			leave()
		}, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}

// writeSchema makes a change that is a schema unless judge returns an error. In each
// store one is under way at a time, from judge to its outcome, also when that comes
// after ctx has ended.
func (s *Server) writeSchema(ctx context.Context, store graph.StoreInfo, m *graph.Mutation, judge func() error) (engine.Result, error) {
	end, err := s.schemaTurns.take(ctx, store.ID)
	if err != nil {
		return engine.Result{}, fmt.Errorf("wait for another schema to be written: %w", err)
	}
	written := false
	defer func() {
		if !written { // Also when judge panics.
			end()
		}
	}()
	err = judge()
	if err == nil && ctx.Err() != nil {
		err = fmt.Errorf("write a schema: %w", context.Cause(ctx))
	}
	if err != nil {
		return engine.Result{}, err
	}
	type outcome struct {
		result engine.Result
		err    error
	}
	done := make(chan outcome)
	written = true
	go func() {
		var o outcome
		defer func() {
			if p := recover(); p != nil {
				o = outcome{err: s.panicked("WriteSchema", p)}
			}
			end()
			select {
			case done <- o:
			case <-ctx.Done(): // Of its faults only the operator can learn then.
				if _, fault := toStatus(o.err); fault {
					s.fault("WriteSchema", o.err)
				}
			}
		}()
		o.result, o.err = s.change(context.WithoutCancel(ctx), store, m)
	}()
	select {
	case o := <-done:
		return o.result, o.err
	case <-ctx.Done():
		return engine.Result{}, fmt.Errorf("%w: %w", cluster.ErrOutcomeUnknown, context.Cause(ctx))
	}
}

func (s *schemaService) WriteSchema(ctx context.Context, r *pembav1.WriteSchemaRequest) (*pembav1.WriteSchemaResponse, error) {
	limits := &s.server.limits
	store, err := s.server.store(ctx, r.GetStore())
	if err != nil {
		return nil, err
	}
	if err := limits.checkSchema("schema", r.GetSchema()); err != nil {
		return nil, err
	}
	// The engine judges it again, as a node that applies it: there it forgives what
	// a schema does not use, for it may come from a log of long ago.
	if _, err := engine.CompileSchema("schema", r.GetSchema()); err != nil {
		return nil, err
	}
	m := &graph.Mutation{Schema: &graph.WriteSchema{Text: r.GetSchema()}}
	if err := limits.setReasons(m, r.GetRecordedActor(), r.GetMetadata()); err != nil {
		return nil, err
	}
	result, err := s.server.writeSchema(ctx, store, m, func() error { return nil })
	if err != nil {
		return nil, err
	}
	return &pembav1.WriteSchemaResponse{WrittenAt: s.server.writtenAt(result)}, nil
}

func (s *schemaService) ReadSchema(ctx context.Context, r *pembav1.ReadSchemaRequest) (*pembav1.ReadSchemaResponse, error) {
	store, err := s.server.store(ctx, r.GetStore())
	if err != nil {
		return nil, err
	}
	snapshot, err := s.server.snapshot(ctx, store, r.GetConsistency(), nil)
	if err != nil {
		version, err := s.kept(store, r.GetConsistency().GetExactlyAt(), err)
		if err != nil {
			return nil, err
		}
		written := s.written(version).proto()
		return &pembav1.ReadSchemaResponse{Schema: version.Text, WrittenAt: written, ReadAt: written}, nil
	}
	defer snapshot.Close()
	_, version, err := snapshot.Schema()
	if err != nil {
		return nil, err
	}
	return &pembav1.ReadSchemaResponse{
		Schema: version.Text, WrittenAt: s.written(version).proto(), ReadAt: s.server.zookie(snapshot).proto(),
	}, nil
}

// written is the zookie of the write of a schema.
func (s *schemaService) written(v graph.SchemaVersion) zookie {
	return zookie{cluster: s.server.clusterID(), revision: v.Revision, instant: v.Instant}
}

// kept returns the schema that was written at the very revision of a zookie, when
// the state of that revision is kept no more but the schema is: the one in force
// at the oldest state is. Else it returns gone, the error of reading the state.
func (s *schemaService) kept(store graph.StoreInfo, at *pembav1.Zookie, gone error) (graph.SchemaVersion, error) {
	if at == nil || !errors.Is(gone, graph.ErrRevisionGone) {
		return graph.SchemaVersion{}, gone
	}
	z, err := parseZookie(at, s.server.clusterID())
	if err != nil {
		return graph.SchemaVersion{}, err
	}
	versions, err := s.server.node.SchemaVersions(store.ID, z.revision+1, 1)
	switch {
	case err != nil:
		return graph.SchemaVersion{}, ofStore(store, err)
	case len(versions) == 0 || versions[0].Revision != z.revision:
		return graph.SchemaVersion{}, gone
	}
	return versions[0], nil
}

// versionsAtOnce is how many schemas ListSchemaVersions holds at once: it reads
// their texts, of which it tells the sizes alone.
const versionsAtOnce = 8

func (s *schemaService) ListSchemaVersions(ctx context.Context, r *pembav1.ListSchemaVersionsRequest) (*pembav1.ListSchemaVersionsResponse, error) {
	store, err := s.server.store(ctx, r.GetStore())
	if err != nil {
		return nil, err
	}
	limit, err := toPageLimit(r.GetLimit())
	if err != nil {
		return nil, err
	}
	arguments := hashArguments(listSchemaVersions, storeArgument(store)).sum()
	var before graph.Revision
	if r.GetCursor() != "" {
		from, err := parseCursor(r.GetCursor(), s.server.clusterID(), listSchemaVersions, arguments)
		if err != nil {
			return nil, err
		}
		before = from.revision
	}
	response := new(pembav1.ListSchemaVersionsResponse)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		versions, err := s.server.node.SchemaVersions(store.ID, before, versionsAtOnce)
		if err != nil {
			return nil, ofStore(store, err)
		}
		for _, v := range versions {
			if len(response.Versions) == limit {
				c := cursor{zookie: zookie{cluster: s.server.clusterID(), revision: before}, kind: listSchemaVersions, arguments: arguments}
				response.Cursor = c.token()
				return response, nil
			}
			version, err := s.describe(store, v)
			if err != nil {
				return nil, ofStore(store, err)
			}
			response.Versions = append(response.Versions, version)
			before = v.Revision
		}
		if len(versions) < versionsAtOnce {
			return response, nil
		}
	}
}

// describe says when a schema was written, and on whose behalf as far as the
// change log knows.
func (s *schemaService) describe(store graph.StoreInfo, v graph.SchemaVersion) (*pembav1.SchemaVersion, error) {
	version := &pembav1.SchemaVersion{
		WrittenAt: s.written(v).proto(), Instant: fromInstant(v.Instant), Size: toCount(len(v.Text)),
	}
	if v.Revision < store.OldestLog {
		return version, nil
	}
	changes, err := s.server.node.Changes(store.ID, graph.Position{Revision: v.Revision}, 1)
	if err != nil && !errors.Is(err, graph.ErrRevisionGone) {
		return nil, err
	}
	if len(changes) == 0 || changes[0].Revision != v.Revision {
		return version, nil // The change log was pruned in between.
	}
	version.RecordedActor = changes[0].RecordedActor
	version.Metadata, err = fromMetadata(changes[0].Metadata)
	return version, err
}

// schemaVersion makes the message of a version; what is not known is zero.
func (s *Server) schemaVersion(written graph.Revision, at graph.Instant, actor string, metadata []byte, size int) (*pembav1.SchemaVersion, error) {
	data, err := fromMetadata(metadata)
	if err != nil {
		return nil, err
	}
	return &pembav1.SchemaVersion{
		WrittenAt: zookie{cluster: s.clusterID(), revision: written, instant: at}.proto(), Instant: fromInstant(at),
		RecordedActor: actor, Metadata: data, Size: toCount(size),
	}, nil
}

func (s *schemaService) DiffSchema(ctx context.Context, r *pembav1.DiffSchemaRequest) (*pembav1.DiffSchemaResponse, error) {
	store, err := s.server.store(ctx, r.GetStore())
	if err != nil {
		return nil, err
	}
	if r.GetFrom() == nil && r.GetTo() == nil {
		return nil, malformed("", "neither from nor to is set, and a schema does not differ from itself")
	}
	var from, to *schema.Schema
	switch x := r.GetFrom().(type) {
	case *pembav1.DiffSchemaRequest_FromSchema:
		from, err = s.compile("from_schema", x.FromSchema)
	case *pembav1.DiffSchemaRequest_FromZookie:
		from, err = s.schemaAt(ctx, store, "from_zookie", x.FromZookie)
	default:
		from, err = s.schemaAt(ctx, store, "", nil)
	}
	if err != nil {
		return nil, err
	}
	switch x := r.GetTo().(type) {
	case *pembav1.DiffSchemaRequest_ToSchema:
		to, err = s.compile("to_schema", x.ToSchema)
	case *pembav1.DiffSchemaRequest_ToZookie:
		to, err = s.schemaAt(ctx, store, "to_zookie", x.ToZookie)
	default:
		to, err = s.schemaAt(ctx, store, "", nil)
	}
	if err != nil {
		return nil, err
	}
	return &pembav1.DiffSchemaResponse{
		Changes: fromSchemaChanges(schema.Diff(from, to)), Affected: fromAffected(schema.Affected(from, to)),
	}, nil
}

// compile compiles a schema of a request that is not written, so that it may be one
// that was read from a store.
func (s *schemaService) compile(field, text string) (*schema.Schema, error) {
	if err := s.server.limits.checkSchema(field, text); err != nil {
		return nil, err
	}
	return engine.CompileForgiving(field, text)
}

// schemaAt returns the schema that a store had at a zookie, or the newest one
// without a field.
func (s *schemaService) schemaAt(ctx context.Context, store graph.StoreInfo, field string, at *pembav1.Zookie) (*schema.Schema, error) {
	var consistency *pembav1.Consistency
	if field != "" {
		// The zookie's own errors name its field; that of a consistency would not.
		z, err := parseZookie(at, s.server.clusterID())
		if err == nil && z.revision == 0 {
			err = malformed("token", "it names no revision")
		}
		if err != nil {
			return nil, within(field, err)
		}
		consistency = &pembav1.Consistency{Requirement: &pembav1.Consistency_ExactlyAt{ExactlyAt: at}}
	}
	snapshot, err := s.server.snapshot(ctx, store, consistency, nil)
	if err != nil {
		version, err := s.kept(store, at, err)
		if err != nil {
			return nil, err
		}
		return engine.CompileStored(version.Text)
	}
	defer snapshot.Close()
	compiled, _, err := snapshot.Schema()
	return compiled, err
}

func (s *schemaService) TrySchema(ctx context.Context, r *pembav1.TrySchemaRequest) (*pembav1.TrySchemaResponse, error) {
	store, err := s.server.store(ctx, r.GetStore())
	if err != nil {
		return nil, err
	}
	if err := s.server.limits.checkSchema("schema", r.GetSchema()); err != nil {
		return nil, err
	}
	snapshot, err := s.server.snapshot(ctx, store, nil, nil)
	if err != nil {
		return nil, err
	}
	defer snapshot.Close()
	trial, err := snapshot.TrySchema(ctx, r.GetSchema())
	if err != nil {
		return nil, ofStore(store, err)
	}
	response := fromTrial(trial)
	response.TriedAt = s.server.zookie(snapshot).proto()
	return response, nil
}
