package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// An import is a stream of chunks of tuples. Each chunk is one entry of the log:
// a step of a staged change (MODE_ATOMIC), which the end of the stream commits,
// or a write of its own (MODE_BATCHES). The next chunk is read when the last one
// is synced, so that the flow control of gRPC slows down a caller who is faster
// than the disk, and a server holds one chunk of each import.

// An importStream is the work of one ImportTuples.
type importStream struct {
	server    *Server
	store     graph.StoreInfo
	header    *pembav1.ImportHeader
	operation graph.Operation
	atomic    bool
	// reasons carries the recorded actor and the metadata.
	reasons graph.Mutation

	// id is the staged change. Without an import_id nobody can come back to it,
	// so that it is dropped when the stream does not end well.
	id graph.StageID
	// known is how many chunks were staged when the stream began.
	known uint32
	// meant is the digest that the caller knows to be staged, and means says that
	// the header carries it: only what it stands for may be gone on with.
	meant graph.StageDigest
	means bool
	// committed says that it was committed before the stream began.
	committed bool
	// digest is that of the chunks up to the last one that came, as the caller
	// means them; located says that it is. It is not when the stream began within
	// what is staged and the caller does not say what that is: then the answer to
	// the first chunk tells it.
	digest  graph.StageDigest
	located bool
	// next is the chunk that must come next, once one came.
	next  uint32
	begun bool
	// staged is the staged change after its last step.
	staged graph.StageInfo
	// mayBeStaged says that a chunk was staged, or that nobody knows whether one was.
	mayBeStaged bool

	// What the batches came to; written counts them.
	written uint32
	tuples  uint64
	changed uint64
	last    engine.Result
}

func (s *tupleService) ImportTuples(stream grpc.ClientStreamingServer[pembav1.ImportTuplesRequest, pembav1.ImportTuplesResponse]) (err error) {
	ctx := stream.Context()
	message, err := stream.Recv()
	if errors.Is(err, io.EOF) {
		return malformed("header", "the stream has no message; the first one carries the header")
	}
	if err != nil {
		return err
	}
	x, err := s.begin(ctx, message.GetHeader())
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			x.forget()
		}
	}()
	// The first message may have tuples or have none.
	for first := true; ; first = false {
		if !first || len(message.GetTuples()) > 0 {
			if err := x.chunk(ctx, message); err != nil {
				return err
			}
		}
		message, err = stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if message.GetHeader() != nil {
			return malformed("header", "it stands in the first message alone")
		}
	}
	response, err := x.finish(ctx)
	if err != nil {
		return err
	}
	return stream.SendAndClose(response)
}

// newImport returns an atomic import of new tuples to which nobody can come back.
func newImport(s *Server, store graph.StoreInfo) *importStream {
	x := &importStream{server: s, store: store, operation: graph.Create, atomic: true, located: true}
	x.id = newStageID()
	return x
}

// namelessMark begins the ids of imports that nobody can come back to. Others are
// hashes, of which none will.
const namelessMark = "nameless"

// newStageID returns an id that nobody knows.
func newStageID() (id graph.StageID) {
	copy(id[:], namelessMark)
	// crypto/rand never fails: it ends the process instead.
	_, _ = rand.Read(id[len(namelessMark):])
	return id
}

func isNameless(id graph.StageID) bool { return strings.HasPrefix(string(id[:]), namelessMark) }

// LeftBehindAfter is after what time without a step an import that nobody can come
// back to is taken for left behind, by a server that was killed or could not write:
// then it makes room for another. Its stream may still be there, with a client that
// sends nothing for so long, and then fails.
const LeftBehindAfter = 10 * time.Minute

// dropLeftBehind forgets the imports of a store that were left behind, and reports
// whether there was one.
func (s *Server) dropLeftBehind(ctx context.Context, store graph.StoreInfo) (dropped bool, err error) {
	stages, err := s.stages(ctx, store)
	if err != nil {
		return false, err
	}
	before := graph.InstantOf(time.Now().Add(-LeftBehindAfter))
	for i := range stages {
		if !isNameless(stages[i].ID) || stages[i].Touched > before {
			continue
		}
		one, err := s.dropStage(ctx, store, stages[i].ID)
		if err != nil {
			return false, err
		}
		dropped = dropped || one
	}
	return dropped, nil
}

// stages returns the staged changes of a store, and stage one of them: at least those
// that were acknowledged before the call, by whichever node, for a client goes on
// through another one than it began with.
func (s *Server) stages(ctx context.Context, store graph.StoreInfo) ([]graph.StageInfo, error) {
	if err := s.node.Await(ctx, linearizable); err != nil {
		return nil, err
	}
	stages, err := s.node.Stages(store.ID)
	return stages, ofStore(store, err)
}

func (s *Server) stage(ctx context.Context, store graph.StoreInfo, id graph.StageID) (graph.StageInfo, bool, error) {
	if err := s.node.Await(ctx, linearizable); err != nil {
		return graph.StageInfo{}, false, err
	}
	stage, found, err := s.node.Stage(store.ID, id)
	return stage, found, ofStore(store, err)
}

// dropStage forgets a staged change, unless there is none under the id, or no more.
func (s *Server) dropStage(ctx context.Context, store graph.StoreInfo, id graph.StageID) (dropped bool, err error) {
	_, err = s.change(ctx, store, &graph.Mutation{Stage: &graph.Stage{Operation: graph.StageDrop, ID: id}})
	var refusal *engine.Refusal
	if errors.As(err, &refusal) && refusal.Reason == engine.StageUnknown {
		return false, nil
	}
	return err == nil, err
}

// isStagesFull reports whether a chunk was refused because the store has as many
// imports as it may have.
func isStagesFull(err error) bool {
	var refusal *engine.Refusal
	return errors.As(err, &refusal) && refusal.Reason == engine.StageTooLarge && refusal.Field == ""
}

// begin judges the header.
func (s *tupleService) begin(ctx context.Context, h *pembav1.ImportHeader) (*importStream, error) {
	if h == nil {
		return nil, malformed("header", "it is missing; the first message of an import carries it")
	}
	store, err := s.server.store(ctx, h.GetStore())
	if err != nil {
		return nil, within("header", err)
	}
	x := &importStream{server: s.server, store: store, header: h}
	switch h.GetMode() {
	case pembav1.ImportHeader_MODE_UNSPECIFIED, pembav1.ImportHeader_MODE_ATOMIC:
		x.atomic = true
	case pembav1.ImportHeader_MODE_BATCHES:
		if h.GetImportId() != "" {
			return nil, malformed("header.import_id", "it is set; imports of MODE_BATCHES have none, for nothing of them is waiting")
		}
	default:
		return nil, malformed("header.mode", "it is %s; MODE_ATOMIC and MODE_BATCHES are allowed", h.GetMode())
	}
	switch h.GetOperation() {
	case pembav1.TupleUpdate_OPERATION_UNSPECIFIED, pembav1.TupleUpdate_OPERATION_TOUCH:
		x.operation = graph.Touch
	case pembav1.TupleUpdate_OPERATION_CREATE:
		x.operation = graph.Create
	default:
		return nil, malformed("header.operation", "it is %s; OPERATION_TOUCH and OPERATION_CREATE are allowed", h.GetOperation())
	}
	if err := s.server.limits.setReasons(&x.reasons, h.GetRecordedActor(), h.GetMetadata()); err != nil {
		return nil, within("header", err)
	}
	if known := h.GetKnownDigest(); len(known) > 0 {
		if h.GetImportId() == "" {
			return nil, malformed("header.known_digest", "it is set; it goes with an import_id, for no other import is gone on with")
		}
		if len(known) != len(x.meant) {
			return nil, malformed("header.known_digest", "it has %d bytes; the digest of GetImport, of %d bytes, or none is allowed", len(known), len(x.meant))
		}
		x.meant, x.means = graph.StageDigest(known), true
	}
	switch {
	case !x.atomic:
	case h.GetImportId() == "":
		x.id = newStageID()
	default:
		if x.id, err = stageID("header.import_id", store, h.GetImportId()); err != nil {
			return nil, err
		}
		if x.staged, _, err = s.server.stage(ctx, store, x.id); err != nil {
			return nil, err
		}
		x.known, x.committed = x.staged.Chunks, x.staged.Committed != 0
	}
	return x, nil
}

// chunk takes the tuples of one message in.
func (x *importStream) chunk(ctx context.Context, message *pembav1.ImportTuplesRequest) error {
	number := message.GetChunk()
	if x.begun && number != x.next {
		return malformed("chunk", "it is %d; the one behind chunk %d is expected, which is %d", number, x.next-1, x.next)
	}
	if x.atomic && !x.begun {
		if err := x.locate(number); err != nil {
			return err
		}
	}
	if number == 1<<32-1 {
		return malformed("chunk", "it is %d; chunks count from 0", number)
	}
	updates, err := x.updates(message.GetTuples())
	if err != nil {
		return x.failed(number, err)
	}
	if err := x.add(ctx, number, updates); err != nil {
		return x.failed(number, err)
	}
	return nil
}

// add writes or stages the updates of a chunk.
func (x *importStream) add(ctx context.Context, number uint32, updates []graph.Update) error {
	if !x.atomic {
		m := x.reasons
		m.Updates = updates
		result, err := x.server.change(ctx, x.store, &m)
		if err != nil {
			return err
		}
		x.last = result
		x.changed += uint64(result.Changed)
		x.written++
	} else if err := x.stage(ctx, number, updates); err != nil {
		return err
	}
	x.tuples += uint64(len(updates))
	x.begun, x.next = true, number+1
	return nil
}

// locate finds the digest of the chunks before the first one of the stream, and
// refuses one that does not follow what the caller means before anything of it is
// staged. What is staged may change after this: it is compared again with each
// chunk, and by the commit.
func (x *importStream) locate(number uint32) error {
	switch {
	case x.means && !x.committed && x.known > 0 && x.meant != x.staged.Digest && (number == 0 || number >= x.known):
		// Within what is staged meant may be the digest of the chunks before this
		// one: an earlier stream of the caller, which was cut off, may have had some
		// on their way when he asked.
		return &chunkError{chunk: number, err: x.translated(&engine.Refusal{Reason: engine.StageMismatch})}
	case number > x.known && !x.committed:
		return x.gap(number)
	case number == 0:
		x.located = true
	case x.means:
		x.digest, x.located = x.meant, true
	case number == x.known:
		x.digest, x.located = x.staged.Digest, true
	case x.committed:
		return &chunkError{chunk: number, err: x.committedElsewhere()}
	}
	return nil
}

// gap says that the first chunk of the stream is not the one that must come.
func (x *importStream) gap(number uint32) error {
	message := fmt.Sprintf("it is %d; the import has %d chunks, and %d is expected next", number, x.known, x.known)
	switch {
	case x.header.GetImportId() == "":
		message = fmt.Sprintf("it is %d; the chunks of an import without an import_id count from 0", number)
	case x.known == 0:
		message = fmt.Sprintf("it is %d; no import %q is begun: it begins with chunk 0", number, x.header.GetImportId())
	}
	return &chunkError{chunk: number, err: &engine.Refusal{
		Reason: engine.StageGap, Field: "chunk", Message: message,
		Metadata: map[string]string{"chunks": strconv.FormatUint(uint64(x.known), 10)},
	}}
}

// stage adds a chunk to the staged change, or finds that it is in there. One of
// a change that is committed is not sent to the log: the commit compares all.
func (x *importStream) stage(ctx context.Context, number uint32, updates []graph.Update) error {
	if x.located {
		x.digest = x.digest.Next(number, updates)
	}
	if x.committed && number < x.known {
		return nil
	}
	if total, allowed := x.staged.Tuples+uint64(len(updates)), x.server.limits.ImportTotal; number >= x.known && total > uint64(allowed) {
		return &engine.Refusal{
			Reason: engine.StageTooLarge, Field: "tuples",
			Message: fmt.Sprintf("the import would have %d tuples, and at most %d may become visible at once on this node, since all other changes wait for that; "+
				"send them with MODE_BATCHES (pemba tuple import --batches), or as several imports", total, allowed),
			Metadata: map[string]string{"limit": strconv.Itoa(allowed)},
		}
	}
	m := graph.Mutation{Updates: updates, Stage: &graph.Stage{Operation: graph.StageUpdates, ID: x.id, Chunk: number}}
	result, err := x.server.change(ctx, x.store, &m)
	if isStagesFull(err) {
		room, failed := x.server.dropLeftBehind(ctx, x.store)
		if failed != nil {
			return failed
		}
		if room {
			result, err = x.server.change(ctx, x.store, &m)
		}
	}
	x.mayBeStaged = x.mayBeStaged || err == nil || errors.Is(err, cluster.ErrOutcomeUnknown)
	if err != nil {
		return err
	}
	x.staged = result.Stage
	switch {
	case x.staged.Committed != 0:
		// By another stream, since this one began.
		if !x.located {
			return x.committedElsewhere()
		}
	case !x.located:
		x.digest, x.located = x.staged.Digest, true
	case x.digest != x.staged.Digest:
		return &engine.Refusal{Reason: engine.StageMismatch}
	}
	return nil
}

// committedElsewhere refuses the rest of an import that is committed: nothing is
// left to compare a part of it with.
func (x *importStream) committedElsewhere() error {
	return &requestError{
		code: codes.FailedPrecondition, reason: engine.StageMismatch.String(), field: "chunk",
		message: fmt.Sprintf("the import %q is committed, with %d chunks; send all of them again, or none, to learn its result, and use another import_id for other tuples",
			x.header.GetImportId(), x.staged.Chunks),
		metadata: map[string]string{"import_id": x.header.GetImportId()},
	}
}

// updates converts the tuples of one chunk.
func (x *importStream) updates(tuples []*pembav1.Tuple) ([]graph.Update, error) {
	limits := &x.server.limits
	if len(tuples) == 0 {
		return nil, malformed("tuples", "there is none; 1 to %d are allowed in a message", limits.ImportTuples)
	}
	if len(tuples) > limits.ImportTuples {
		return nil, tooMany("tuples", "TOO_MANY_UPDATES", len(tuples), limits.ImportTuples, "send them in several messages, or raise --limit-import-tuples of the server")
	}
	updates := make([]graph.Update, len(tuples))
	for i, p := range tuples {
		t, err := limits.toTuple(p)
		if err != nil {
			return nil, within(fmt.Sprintf("tuples[%d]", i), err)
		}
		updates[i] = graph.Update{Operation: x.operation, Tuple: t}
	}
	return updates, nil
}

// failed says of an error which chunk it is about and, of batches, what was
// written before.
func (x *importStream) failed(number uint32, err error) error {
	chunk := &chunkError{err: x.translated(err), chunk: number}
	if !x.atomic {
		chunk.batches = true
		chunk.written, chunk.tuples = x.written, x.tuples
	}
	return chunk
}

// translated gives a refusal the words of the caller, who knows tuples and not
// updates, and the import by its name if it has one.
func (x *importStream) translated(err error) error {
	var refusal *engine.Refusal
	if !errors.As(err, &refusal) {
		return err
	}
	r := *refusal
	if rest, ok := strings.CutPrefix(r.Field, "updates["); ok {
		r.Field = "tuples[" + strings.Replace(rest, "].tuple", "]", 1)
	}
	switch r.Reason {
	case engine.StageGap:
		r.Field = "chunk"
		r.Message = "the chunks sent do not go with those that the import has; GetImport says which is next"
	case engine.StageUnknown:
		r.Message = "the import was aborted or collected meanwhile; begin it again"
	case engine.StageMismatch:
		r.Message = fmt.Sprintf("the import %q has other tuples, or the other operation; use another import_id", x.header.GetImportId())
		r.Metadata = map[string]string{"import_id": x.header.GetImportId()}
	case engine.StageTooLarge:
		if r.Field == "" { // It is not about what is sent.
			r.Message = fmt.Sprintf("the store has %d imports that were not committed, and no more are allowed; commit one of them, or forget it with AbortImport, or all with its field all "+
				"(pemba tuple import --abort --all); they are forgotten %d hours after their last chunk, and those without an import_id make room %d minutes after it",
				graph.StagesMax, graph.StageLifetime/3600e6, int(LeftBehindAfter.Minutes()))
			r.Metadata = map[string]string{"limit": strconv.Itoa(graph.StagesMax)}
		}
	case engine.StageStale:
		r.Message = "the schema changed since the import was begun; abort it, and begin again"
	case engine.DuplicateUpdate:
		if !x.atomic { // A chunk is a request of its own, which would tell of its updates.
			r.Message = r.Metadata["tuple"] + " is named twice in this chunk; one change may name a tuple once"
		}
	default:
	}
	return &r
}

// A chunkError is an error of one chunk of an import. toStatus adds what it says
// to what err says.
type chunkError struct {
	err   error
	chunk uint32
	// Of MODE_BATCHES: how many chunks, and tuples in them, were written before.
	batches bool
	written uint32
	tuples  uint64
}

// Error returns what comes before the message of err in the answer, and that.
func (e *chunkError) Error() string { return e.prefix() + e.err.Error() }

// Unwrap returns the error without the chunk.
func (e *chunkError) Unwrap() error { return e.err }

func (e *chunkError) prefix() string {
	text := fmt.Sprintf("chunk %d", e.chunk)
	if e.batches {
		text += fmt.Sprintf(" (%d before it, with %d tuples, are written)", e.written, e.tuples)
	}
	return text + ": "
}

func (e *chunkError) metadata() map[string]string {
	m := map[string]string{"chunk": strconv.FormatUint(uint64(e.chunk), 10)}
	if e.batches {
		m["written_chunks"] = strconv.FormatUint(uint64(e.written), 10)
		m["written_tuples"] = strconv.FormatUint(e.tuples, 10)
	}
	return m
}

// finish commits what was sent.
func (x *importStream) finish(ctx context.Context) (*pembav1.ImportTuplesResponse, error) {
	if !x.atomic {
		if x.written == 0 {
			return nil, malformed("tuples", "none was sent")
		}
		return &pembav1.ImportTuplesResponse{WrittenAt: x.server.writtenAt(x.last), Tuples: x.tuples, Changed: x.changed}, nil
	}
	// The caller vouches for the number of chunks that he sent last; one who came
	// back to send nothing more, for those that are known.
	chunks, digest := x.known, x.staged.Digest
	if x.begun {
		chunks, digest = x.next, x.digest
	} else if x.means && x.known > 0 && x.meant != digest {
		return nil, x.translated(&engine.Refusal{Reason: engine.StageMismatch})
	}
	if chunks == 0 {
		if x.header.GetImportId() != "" {
			return nil, unknownImport("header.import_id", x.header.GetImportId())
		}
		return nil, malformed("tuples", "none was sent")
	}
	result, err := x.commit(ctx, chunks, digest)
	if err != nil {
		return nil, x.translated(err)
	}
	return &pembav1.ImportTuplesResponse{
		WrittenAt: x.server.writtenAt(result), Tuples: result.Stage.Tuples, Changed: uint64(result.Changed),
	}, nil
}

// commit makes the chunks that were staged visible, if there are so many and they
// have the digest.
func (x *importStream) commit(ctx context.Context, chunks uint32, digest graph.StageDigest) (engine.Result, error) {
	m := x.reasons
	m.Stage = &graph.Stage{Operation: graph.StageCommit, ID: x.id, Chunk: chunks, Digest: digest}
	return x.server.change(ctx, x.store, &m)
}

// forgetTimeout bounds how long an import that failed waits to be forgotten; what
// is left over is collected.
const forgetTimeout = 2 * time.Second

// forget drops what was staged under an id that nobody knows. It works on after
// the call's own context has ended, but not while the server stops, which waits
// for it.
func (x *importStream) forget() {
	if !x.atomic || x.header.GetImportId() != "" || !x.mayBeStaged {
		return
	}
	select {
	case <-x.server.stopping:
		return
	default:
	}
	ctx, cancel := context.WithTimeout(context.Background(), forgetTimeout)
	defer cancel()
	_, err := x.server.write(ctx, &graph.Mutation{Store: x.store.ID, Stage: &graph.Stage{Operation: graph.StageDrop, ID: x.id}})
	var refusal *engine.Refusal
	if err != nil && !errors.As(err, &refusal) && !errors.Is(err, graph.ErrUnknownStore) {
		// A refusal means that it was committed after all, or is gone, alone or with
		// its store.
		x.server.logger.Info("an import that failed was not forgotten and will be collected", "store", x.store.Name, "error", err)
	}
}

// importIDBytesMax bounds the name of an import.
const importIDBytesMax = 64

// stageID returns the staged change that the name of an import stands for. It is
// a hash, so that a name may be longer than a StageID and says nothing about
// those of others.
func stageID(field string, store graph.StoreInfo, importID string) (graph.StageID, error) {
	const allowed = "1 to 64 letters, digits, '_' and '-' are allowed"
	if importID == "" {
		return graph.StageID{}, malformed(field, "it is empty; %s", allowed)
	}
	if len(importID) > importIDBytesMax {
		return graph.StageID{}, malformed(field, "it has %d bytes; %s", len(importID), allowed)
	}
	for i := range len(importID) {
		switch c := importID[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '-':
		default:
			return graph.StageID{}, malformed(field, "byte %d of it is %q; %s", i, c, allowed)
		}
	}
	digest := sha256.Sum256([]byte(storeArgument(store) + "/" + importID))
	return graph.StageID(digest[:len(graph.StageID{})]), nil
}

func unknownImport(field, importID string) error {
	return &engine.Refusal{
		Reason: engine.StageUnknown, Field: field,
		Message:  fmt.Sprintf("no import %q waits to be gone on with: it was committed, aborted or collected, or never begun", importID),
		Metadata: map[string]string{"import_id": importID},
	}
}

func (s *tupleService) GetImport(ctx context.Context, r *pembav1.GetImportRequest) (*pembav1.GetImportResponse, error) {
	store, err := s.server.store(ctx, r.GetStore())
	if err != nil {
		return nil, err
	}
	id, err := stageID("import_id", store, r.GetImportId())
	if err != nil {
		return nil, err
	}
	stage, found, err := s.server.stage(ctx, store, id)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, unknownImport("import_id", r.GetImportId())
	}
	response := &pembav1.GetImportResponse{NextChunk: stage.Chunks, Tuples: stage.Tuples, Digest: stage.Digest[:]}
	if stage.Committed != 0 {
		response.CommittedAt = s.server.writtenAt(engine.Result{Revision: stage.Committed, Instant: stage.Touched})
	} else {
		response.ExpiresAt = fromInstant(stage.Touched + graph.StageLifetime)
	}
	return response, nil
}

func (s *tupleService) AbortImport(ctx context.Context, r *pembav1.AbortImportRequest) (*pembav1.AbortImportResponse, error) {
	store, err := s.server.store(ctx, r.GetStore())
	if err != nil {
		return nil, err
	}
	if r.GetAll() {
		return s.abortAll(ctx, store, r)
	}
	if r.GetImportId() == "" {
		return nil, malformed("import_id", "it is empty, and all is not set; one of them says what to forget")
	}
	id, err := stageID("import_id", store, r.GetImportId())
	if err != nil {
		return nil, err
	}
	dropped, err := s.server.dropStage(ctx, store, id)
	if err != nil {
		return nil, err
	}
	if !dropped {
		return nil, unknownImport("import_id", r.GetImportId())
	}
	return &pembav1.AbortImportResponse{Aborted: 1}, nil
}

// abortAll forgets the imports of a store that are there now, also those without
// an id that are still sent: their streams fail.
func (s *tupleService) abortAll(ctx context.Context, store graph.StoreInfo, r *pembav1.AbortImportRequest) (*pembav1.AbortImportResponse, error) {
	if r.GetImportId() != "" {
		return nil, malformed("import_id", "it is set, and all is too; only one of them says what to forget")
	}
	stages, err := s.server.stages(ctx, store)
	if err != nil {
		return nil, err
	}
	response := &pembav1.AbortImportResponse{}
	for i := range stages {
		dropped, err := s.server.dropStage(ctx, store, stages[i].ID)
		if err != nil {
			return nil, err
		}
		if dropped {
			response.Aborted++
		}
	}
	return response, nil
}
