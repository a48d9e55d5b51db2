package api

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

// A Dialect answers another product's public API over the node of a server, on
// the same ports and through the same keys, limits, metrics and traces. What it
// adds is the words: it turns messages into questions and mutations of the engine
// and answers back. Its methods are called by many goroutines at once.
type Dialect interface {
	// Services are the services that Register adds; all calls of their methods are
	// the dialect's.
	Services() []*grpc.ServiceDesc
	// Register adds the services. It is called for each gRPC server that the
	// server has, with the same host.
	Register(services grpc.ServiceRegistrar, host *Host)
	// Status returns what a caller is told of an error: native is what pemba.v1
	// would say. It is asked for every error of the dialect's calls, those of keys
	// included.
	Status(err error, native *status.Status) *status.Status
	// Begin is called when one of its calls begins, before anything is asked, and may
	// set header and trailer of the answer. Its error ends the call.
	Begin(ctx context.Context) error
	// Asked says for metrics and traces which state a request asks for: none, that of
	// a cursor, or that of a mode.
	Asked(request any) (mode cluster.Mode, cursor, reads bool)
	// HTTP describes the API's JSON over HTTP; nil for one that has none.
	HTTP() *HTTPForm
}

// A Host is what a Dialect needs of the server that it speaks for. It is safe for
// use by several goroutines.
type Host struct{ server *Server }

// StoreHeader names the store that a call of a dialect is about, in its metadata.
const StoreHeader = "pemba-store"

// headerKey is the key of the metadata of a dialect's call in its context.
type headerKey struct{}

// Header returns what the metadata of a dialect's call has under a key, which is in
// lower case; nil for nothing. It must not be changed. The function of gRPC compares a
// key that is not there with each that is, and most keys of a dialect are not there.
func Header(ctx context.Context, key string) []string {
	header, _ := ctx.Value(headerKey{}).(metadata.MD)
	return header[key]
}

// Store returns the store that a call is about: the one named by StoreHeader;
// without one, the only store that the caller's key is bound to; else the default
// store. It counts the call against the rates.
func (h *Host) Store(ctx context.Context) (graph.StoreInfo, error) {
	name := ""
	switch values := Header(ctx, StoreHeader); len(values) {
	case 0:
	case 1:
		if name = values[0]; name == "" {
			return graph.StoreInfo{}, malformed(StoreHeader, "it is empty; leave it out, or name a store")
		}
	default:
		return graph.StoreInfo{}, malformed(StoreHeader, "it is given %d times; once is allowed", len(values))
	}
	if name == "" {
		who := callerOf(ctx)
		if !who.operator && len(who.stores) == 1 {
			for only := range who.stores {
				name = only
			}
		} else if !who.maySee(who.storeName("")) {
			return graph.StoreInfo{}, storeNotNamed(who, "metadata "+StoreHeader)
		}
	}
	store, err := h.server.store(ctx, name)
	if err != nil {
		return store, err
	}
	h.server.tracer.annotateStore(ctx, store.Name)
	// A stream ends when its key may no longer use the store.
	return store, h.server.gate.aboutStore(ctx, store.Name)
}

// Version returns the version of the module that was built, as "v1.2.3", or what Go
// says of a build that has none.
func Version() string { return buildVersion() }

// Node returns the node.
func (h *Host) Node() Node { return h.server.node }

// Snapshot gives the state that a read is answered from; it must be closed. A
// store that was deleted meanwhile is an error like one that never was there.
func (h *Host) Snapshot(ctx context.Context, store graph.StoreInfo, c cluster.Consistency) (*engine.Snapshot, error) {
	snapshot, err := h.server.node.Snapshot(ctx, store.ID, c, graph.Overlay{})
	return snapshot, ofStore(store, err)
}

// Change makes a change of a store and returns its result; what the engine
// refuses is an error, an *engine.Refusal.
func (h *Host) Change(ctx context.Context, store graph.StoreInfo, m *graph.Mutation) (engine.Result, error) {
	return h.server.change(ctx, store, m)
}

// WriteSchema replaces the schema of a store, unless judge returns an error of the
// newest state. Between the two no other schema of the store is written: this server,
// through whichever API, waits its turn for that, and where another server of the cluster
// was quicker judge is asked again. What the engine refuses is an error, an
// *engine.Refusal.
func (h *Host) WriteSchema(ctx context.Context, store graph.StoreInfo, text string, judge func(newest *engine.Snapshot) error) (engine.Result, error) {
	for try := 1; ; try++ {
		m := &graph.Mutation{Schema: &graph.WriteSchema{Text: text, Replaces: new(graph.Revision)}}
		result, err := h.server.writeSchema(ctx, store, m, func() error {
			newest, err := h.Snapshot(ctx, store, cluster.Consistency{Mode: cluster.Linearizable})
			if err != nil {
				return err
			}
			defer newest.Close()
			_, version, err := newest.Schema()
			var refusal *engine.Refusal
			if err != nil && (!errors.As(err, &refusal) || refusal.Reason != engine.NoSchema) {
				return err
			}
			*m.Schema.Replaces = version.Revision
			return judge(newest)
		})
		var refusal *engine.Refusal
		if !errors.As(err, &refusal) || refusal.Reason != engine.SchemaReplaced || try == schemaTriesMax {
			return result, err
		}
	}
}

// schemaTriesMax is how often a schema is judged that others replace meanwhile, at
// other nodes.
const schemaTriesMax = 5

// StreamStall is how long a result may wait for a client to take it.
func (h *Host) StreamStall() time.Duration { return h.server.limits.StreamStall }

// Limits returns the limits of the server.
func (h *Host) Limits() Limits { return h.server.limits }

// Budget is what one question may cost.
func (h *Host) Budget() engine.Budget { return h.server.limits.budget() }

// Zookie returns the token of a state of this cluster. It says the same as that of
// pemba.v1, which is read where this one is.
func (h *Host) Zookie(revision graph.Revision, instant graph.Instant) string {
	z := zookie{cluster: h.server.clusterID(), revision: revision, instant: instant}
	b := z.appendState(make([]byte, 0, stateBytes+checksumBytes), zookieVersion)
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)))
}

// standardToken gives a token the alphabet and the padding that most programs take
// for base64, as other products' tokens have it.
func standardToken(token string) string {
	b := append(make([]byte, 0, len(token)+3), token...)
	for i, c := range b {
		switch c {
		case '-':
			b[i] = '+'
		case '_':
			b[i] = '/'
		}
	}
	for len(b)%4 != 0 {
		b = append(b, '=')
	}
	return string(b)
}

// nativeToken undoes standardToken, and leaves a token of pemba.v1 as it is. What
// is none stays none.
func nativeToken(token string) string {
	if len(token)%4 == 0 {
		token = strings.TrimSuffix(strings.TrimSuffix(token, "="), "=")
	}
	return nativeAlphabet.Replace(token)
}

var nativeAlphabet = strings.NewReplacer("+", "-", "/", "_")

// ParseZookie reads a token, also one of ChangesZookie. Ours is false, and the rest
// zero, for one that no node of this cluster made.
func (h *Host) ParseZookie(token string) (revision graph.Revision, instant graph.Instant, ours bool) {
	z, _, ours := h.parseZookie(token)
	return z.revision, z.instant, ours
}

// IsZookie reports whether a token is one that a node of Pemba made, of whatever
// cluster.
func (h *Host) IsZookie(token string) bool {
	token = nativeToken(token)
	return len(open(token, zookieVersion)) == stateBytes || len(open(token, changesVersion)) == stateBytes+toldBytes
}

// ChangesZookie is the Zookie of a state of whose revision's changes only the first
// told, at least one, are known to who has the token. For whom else reads it, it
// says the same as Zookie.
func (h *Host) ChangesZookie(revision graph.Revision, instant graph.Instant, told uint32) string {
	z := zookie{cluster: h.server.clusterID(), revision: revision, instant: instant}
	b := z.appendState(make([]byte, 0, stateBytes+toldBytes+checksumBytes), changesVersion)
	return standardToken(seal(binary.BigEndian.AppendUint32(b, told)))
}

// ParseChangesZookie returns the place in a change log behind what is known to who
// has a token of Zookie or ChangesZookie. Ours is as for ParseZookie.
func (h *Host) ParseChangesZookie(token string) (from graph.Position, ours bool) {
	z, told, ours := h.parseZookie(token)
	switch {
	case !ours || z.revision == math.MaxUint64: // Nothing can come behind that.
		return graph.Position{}, false
	case told > 0:
		return graph.Position{Revision: z.revision, Offset: told}, true
	}
	return graph.Position{Revision: z.revision + 1}, true
}

const (
	changesVersion = 3
	toldBytes      = 4
)

// parseZookie reads a token of Zookie or of ChangesZookie; told is zero for the
// former.
func (h *Host) parseZookie(token string) (z zookie, told uint32, ours bool) {
	z, told, err := parseToldZookie(token, h.server.clusterID())
	return z, told, err == nil
}

// A Cursor is a place in the results of a dialect's question, at one state.
type Cursor struct {
	Revision graph.Revision
	Instant  graph.Instant
	// Position is the question's own.
	Position []byte
}

// Cursor returns the token of a cursor. Question names the call, and arguments all
// that decides its results; both must be given again.
func (h *Host) Cursor(c Cursor, store graph.StoreInfo, question string, arguments ...string) string {
	t := cursor{
		zookie: zookie{cluster: h.server.clusterID(), revision: c.Revision, instant: c.Instant}, kind: dialectQuestion,
		arguments: dialectArguments(store, question, arguments), position: c.Position,
	}
	return standardToken(t.token())
}

// ParseCursor undoes Cursor. An error says that the token is none, or one of other
// arguments.
func (h *Host) ParseCursor(token string, store graph.StoreInfo, question string, arguments ...string) (Cursor, error) {
	c, err := parseCursor(nativeToken(token), h.server.clusterID(), dialectQuestion, dialectArguments(store, question, arguments))
	if err != nil {
		return Cursor{}, err
	}
	return Cursor{Revision: c.revision, Instant: c.instant, Position: c.position}, nil
}

func dialectArguments(store graph.StoreInfo, question string, arguments []string) argumentHash {
	a := hashArguments(dialectQuestion, storeArgument(store), question)
	for _, s := range arguments {
		a.add(s)
	}
	return a.sum()
}

// LookupPosition and ParseLookupPosition turn the position of a lookup into that
// of a Cursor and back.
func LookupPosition(p engine.Position) []byte { return binary.BigEndian.AppendUint64(nil, uint64(p)) }

// ParseLookupPosition undoes LookupPosition.
func ParseLookupPosition(b []byte) (engine.Position, error) {
	if len(b) != 8 {
		return 0, graph.ErrInvalidPosition
	}
	return engine.Position(binary.BigEndian.Uint64(b)), nil
}

// At is the consistency of a question that goes on behind a cursor.
func (c Cursor) At() cluster.Consistency {
	return cluster.Consistency{Mode: cluster.Exactly, Revision: c.Revision, Instant: c.Instant, Pinned: true}
}

// QuestionContext converts the context of a question, of at most bytesMax bytes.
func QuestionContext(field string, p *structpb.Struct, bytesMax int) (schema.Context, error) {
	if len(p.GetFields()) == 0 {
		return nil, nil
	}
	v := structReader{bytesMax: bytesMax}
	m, err := v.object(p, 1)
	if err != nil {
		return nil, within(field, err)
	}
	return schema.Context(m), nil
}

// TupleContext converts the context that a tuple carries, or the metadata of a
// change, to its canonical form, of at most bytesMax bytes.
func TupleContext(field string, p *structpb.Struct, bytesMax int) ([]byte, error) {
	return toJSON(field, p, bytesMax, "")
}

// Feed sends what produce puts, a bounded number ahead, and ends the call when a
// client takes nothing for as long as StreamStall.
func Feed[T any](ctx context.Context, host *Host, produce func(ctx context.Context, put func(T) error) error, send func(T) error) error {
	return feed(ctx, host.server.limits.StreamStall, sendAheadResults, produce, send)
}

// FeedBatches is Feed for a stream whose messages are batches, which are large:
// few of them wait, in their encoded form. produce should keep no batch that it
// has put.
func FeedBatches[M proto.Message](ctx context.Context, host *Host, produce func(ctx context.Context, put func(M) error) error, stream grpc.ServerStream) error {
	return feedBatches(ctx, host.server.limits.StreamStall, produce, stream)
}

// An Import gathers new tuples, chunk by chunk, that become visible together, as
// ImportTuples of pemba.v1 does without an import_id. It is for one goroutine,
// which must call Forget when it does not commit.
type Import struct{ stream *importStream }

// Import begins one.
func (h *Host) Import(store graph.StoreInfo) *Import {
	return &Import{newImport(h.server, store)}
}

// Add stages a chunk of updates, all of them graph.Create, which must be at least
// one and at most Limits.ImportTuples. What the engine refuses is an error, an
// *engine.Refusal whose field counts updates within the chunk; nothing may be added
// after it.
func (i *Import) Add(ctx context.Context, updates []graph.Update) error {
	return i.stream.add(ctx, i.stream.next, updates)
}

// Commit makes everything that was added visible, or is refused. Something must
// have been added.
func (i *Import) Commit(ctx context.Context) (engine.Result, error) {
	return i.stream.commit(ctx, i.stream.next, i.stream.digest)
}

// Forget drops what was added and not committed. It works on after the call's own
// context has ended.
func (i *Import) Forget() { i.stream.forget() }

// FeedChanges follows the changes of a store from a position on, and sends what
// produce makes of them, a bounded number ahead, until the call or the server ends.
// It takes one of the slots of the watches. A handler must return what it returned.
func FeedChanges[M proto.Message](host *Host, stream grpc.ServerStream, store graph.StoreInfo, from graph.Position,
	produce func(ctx context.Context, watcher *cluster.Watcher, put func(M) error) error,
) error {
	return feedChanges(host.server, stream, store, from, produce)
}

// EachTuple gives f the tuples of a snapshot that match a filter, in a stable
// order, each with the position that continues behind it, which is good until the
// next; it ends early when f wants no more. Position nil is the beginning.
func EachTuple(ctx context.Context, snapshot *engine.Snapshot, filter graph.Filter, position []byte,
	f func(t graph.Tuple, position func() []byte) (more bool, err error),
) error {
	return eachTupleFrom(ctx, snapshot, snapshot.Graph().Read, filter, position, f)
}

// EachTupleSorted is EachTuple in the order of graph.Snapshot.ReadSorted: by type,
// id and relation. The positions of the two are not the same.
func EachTupleSorted(ctx context.Context, snapshot *engine.Snapshot, filter graph.Filter, position []byte,
	f func(t graph.Tuple, position func() []byte) (more bool, err error),
) error {
	return eachTupleFrom(ctx, snapshot, snapshot.Graph().ReadSorted, filter, position, f)
}

func eachTupleFrom(ctx context.Context, snapshot *engine.Snapshot, read tupleReader, filter graph.Filter, position []byte,
	f func(t graph.Tuple, position func() []byte) (more bool, err error),
) error {
	at := tuplePosition{}
	if position != nil {
		var ok bool
		if at, ok = parseTuplePosition(position); !ok {
			return graph.ErrInvalidPosition
		}
	}
	return eachTuple(ctx, snapshot, read, filter, at, f)
}

// FilterArguments is a filter as arguments of a cursor: what decides the results of
// reading tuples.
func FilterArguments(f graph.Filter) []string {
	relation := "any"
	if f.SubjectRelation != nil {
		relation = "=" + *f.SubjectRelation
	}
	return []string{f.ObjectType, f.ObjectID, f.ObjectIDPrefix, f.Relation, f.SubjectType, f.SubjectID, relation}
}

// A Pager gathers messages into pages, and puts each out that is full. It is for one
// goroutine.
type Pager[M proto.Message] struct {
	// Most is how many messages a page has at most; one that has BytesMax bytes or
	// more is full too.
	Most, BytesMax int
	// Put takes a page, which is never empty, and is not used again.
	Put func(page []M) error

	page  []M
	bytes int
}

// Add adds a message, and returns the error of Put when the page is full.
func (p *Pager[M]) Add(m M) error {
	p.page = append(p.page, m)
	if p.bytes += proto.Size(m); len(p.page) == p.Most || p.bytes >= p.BytesMax {
		return p.Flush()
	}
	return nil
}

// Flush puts out what is there, if there is anything.
func (p *Pager[M]) Flush() error {
	if len(p.page) == 0 {
		return nil
	}
	full := p.page
	p.page, p.bytes = nil, 0
	return p.Put(full)
}

// StatusOf returns what pemba.v1 says of an error of one item of a bulk call.
func StatusOf(err error) *status.Status {
	st, _ := toStatus(err)
	return st
}

// KeyRefusal reports whether an error is that of a missing or a wrong key.
func KeyRefusal(err error) (missing, wrong bool) {
	var refusal *requestError
	if !errors.As(err, &refusal) {
		return false, false
	}
	return refusal.reason == keyMissing, refusal.reason == keyInvalid
}

// Malformed is the error of a field that breaks the rules of the dialect.
func Malformed(field, format string, args ...any) error {
	return malformed(field, "%s", fmt.Sprintf(format, args...))
}

// Refused is an error with a code and a reason of the dialect's own.
func Refused(code codes.Code, reason, message string, metadata map[string]string) error {
	return &requestError{code: code, reason: reason, message: message, metadata: metadata}
}

// dialect returns the dialect that a method is of, and nil for pemba.v1.
func (s *Server) dialect(fullMethod string) Dialect {
	if strings.HasPrefix(fullMethod, "/pemba.") {
		return nil // Nearly all calls, where nearly all are native.
	}
	service, _, _ := strings.Cut(strings.TrimPrefix(fullMethod, "/"), "/")
	return s.dialects[service]
}
