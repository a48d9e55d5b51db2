package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/pembadb/pemba/api"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/graph"
)

// An ImportConfig says how to import.
type ImportConfig struct {
	// Store is the store to write to; empty for the client's.
	Store string
	// Batches writes the tuples in batches, each at a revision of its own as it
	// comes, instead of all of them at one revision or none.
	Batches bool
	// Create fails at a tuple that is there already, instead of replacing what it
	// carries.
	Create bool
	// ID names the import, so that it can be gone on with after it was cut off:
	// by an import with the same ID to which the same tuples are added in the same
	// order. NewImportID makes one. Empty means one that cannot; it does not go
	// with Batches.
	ID string
	// RecordedActor is on whose behalf the change is made; recorded, not judged.
	RecordedActor string
	// Metadata is kept with the change, as JSON values. It may be nil.
	Metadata map[string]any
	// ChunkBytes is how many bytes each message of tuples may have as encoded, for a
	// server that takes no larger ones; only a tuple that needs more goes alone in one
	// that has. From 1 to ChunkBytesMax; zero means that. An import that is gone on with
	// needs the same again. Small chunks are slow: the server syncs its log after each.
	ChunkBytes int
}

// The size of a chunk, which is one message and one entry of the log. Imports
// that go on with another's depend on them: a server that knows chunk 7 must
// know what this client would put into it. To change them is to have no import
// gone on with that an older client began: see ErrImportMismatch.
const (
	chunkTuples = 5000
	// ChunkBytesMax is the largest ImportConfig.ChunkBytes, and what zero means.
	ChunkBytesMax = 512 << 10
)

// chunksAhead is how many chunks may wait to be sent.
const chunksAhead = 4

// An Import writes tuples that come one after the other:
//
//	im, err := c.Import(ctx, client.ImportConfig{})
//	...
//	defer im.Cancel()
//	for ... {
//		if err := im.Add(tuple); err != nil { ... }
//	}
//	answer, err := im.Commit()
//
// It holds a few chunks of tuples in memory, however many are added. Its methods
// are called by one goroutine.
type Import struct {
	client *Client
	config ImportConfig
	cancel context.CancelFunc
	stream grpc.ClientStreamingClient[pembav1.ImportTuplesRequest, pembav1.ImportTuplesResponse]

	// What is being filled: chunk number next, whose first tuple is number
	// begins[next].
	chunk  []*pembav1.Tuple
	bytes  int // what chunk takes in a message; <= room, or of one tuple alone
	room   int
	edges  map[edge]struct{} // of the chunk, with Batches alone
	next   uint32
	begins []uint64
	added  uint64

	// The server has the chunks below known, which hold knownTuples.
	known       uint32
	knownTuples uint64
	// doneBefore is where the server had committed all of it when it was begun; nil
	// when it had not.
	doneBefore *pembav1.Zookie
	// knownDigest stands for what they hold, and digest for what this import would
	// have put into the chunks that were not sent. The server is told of digest, so
	// that it commits nothing else, whatever it has by then.
	knownDigest []byte
	digest      graph.StageDigest

	// full takes chunks to the sender; sent is closed when it has ended, after
	// it set sendErr.
	full    chan outgoing
	sent    chan struct{}
	sendErr error
	ended   bool
}

// An outgoing chunk with its number.
type outgoing struct {
	number uint32
	tuples []*pembav1.Tuple
}

// An edge is what makes two tuples the same.
type edge struct {
	object   graph.Object
	relation string
	subject  graph.Subject
}

// NewImportID returns an ID that no import has.
func NewImportID() string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // It never fails.
	return hex.EncodeToString(b[:])
}

// Import begins to import, or goes on with the import of config.ID. It ends with
// Commit or Cancel, or when ctx does. Nothing can be read of what is imported
// before Commit, unless it goes in batches.
func (c *Client) Import(ctx context.Context, config ImportConfig) (*Import, error) {
	if config.Batches && config.ID != "" {
		return nil, errors.New("client: an import in batches has no ID; it can be begun again without harm")
	}
	if config.ChunkBytes < 0 || config.ChunkBytes > ChunkBytesMax {
		return nil, fmt.Errorf("client: the ChunkBytes of an import are %d; 1 to %d are allowed, or 0 for as many as by default", config.ChunkBytes, ChunkBytesMax)
	}
	c.fill(&config.Store)
	header := &pembav1.ImportHeader{
		Store: config.Store, Mode: pembav1.ImportHeader_MODE_ATOMIC, Operation: pembav1.TupleUpdate_OPERATION_TOUCH,
		ImportId: config.ID, RecordedActor: config.RecordedActor,
	}
	if config.Batches {
		header.Mode = pembav1.ImportHeader_MODE_BATCHES
	}
	if config.Create {
		header.Operation = pembav1.TupleUpdate_OPERATION_CREATE
	}
	if config.Metadata != nil {
		s, err := structpb.NewStruct(config.Metadata)
		if err != nil {
			return nil, fmt.Errorf("client: the metadata: %w", err)
		}
		header.Metadata = s
	}
	room := cmp.Or(config.ChunkBytes, ChunkBytesMax) - chunkNumberBytes
	i := &Import{client: c, config: config, room: room, begins: []uint64{0}, full: make(chan outgoing, chunksAhead), sent: make(chan struct{})}
	if config.Batches {
		i.edges = make(map[edge]struct{}, chunkTuples)
	}
	if config.ID != "" {
		answer, err := c.Tuples.GetImport(ctx, &pembav1.GetImportRequest{Store: config.Store, ImportId: config.ID})
		if reason, _ := Reason(err); err != nil && reason != unknownImport {
			return nil, err
		}
		// One that is committed is sent again as a whole: the server compares it,
		// and says what it came to.
		if i.doneBefore = answer.GetCommittedAt(); i.doneBefore == nil {
			i.known, i.knownTuples, i.knownDigest = answer.GetNextChunk(), answer.GetTuples(), answer.GetDigest()
		}
	}
	ctx, i.cancel = context.WithCancel(ctx)
	stream, err := c.Tuples.ImportTuples(ctx)
	if err != nil {
		i.cancel()
		return nil, err
	}
	i.stream = stream
	go i.send(header)
	return i, nil
}

// unknownImport is the reason of the error of GetImport that there is none.
const unknownImport = "STAGE_UNKNOWN"

// Known returns how many tuples the server has of an earlier attempt with the
// same ID. They must be added again, before all others and in the same order,
// but are not sent.
func (i *Import) Known() uint64 { return i.knownTuples }

// DoneBefore returns the zookie of the revision at which an import with the same ID had
// been committed when this one was begun, nil if none had. Commit then writes nothing:
// it compares the tuples with those that were committed, and answers with their numbers
// of then and a zookie that is not older.
func (i *Import) DoneBefore() *pembav1.Zookie { return i.doneBefore }

// Add adds tuples. An error may be about tuples that were added some time
// before; if it is known which one was refused it is an *ImportError. After an
// error the import is over.
func (i *Import) Add(tuples ...graph.Tuple) error {
	for _, t := range tuples {
		m, err := api.TupleMessage(t)
		if err != nil {
			return i.fail(fmt.Errorf("client: %w", err))
		}
		size := protowire.SizeTag(tuplesField) + protowire.SizeBytes(proto.Size(m))
		e := edge{t.Object, t.Relation, t.Subject}
		_, twice := i.edges[e]
		// One batch may name an edge once. In an atomic import it is the server
		// that refuses one that comes twice, wherever.
		if len(i.chunk) == chunkTuples || len(i.chunk) > 0 && i.bytes+size > i.room || twice {
			if err := i.flush(); err != nil {
				return err
			}
		}
		i.chunk = append(i.chunk, m)
		i.bytes += size
		if i.edges != nil {
			i.edges[e] = struct{}{}
		}
		i.added++
	}
	return nil
}

// chunkNumberBytes is how many bytes the number of a chunk takes in a message at most.
const chunkNumberBytes = 6

// tuplesField is the number of the field of a message that holds its tuples.
const tuplesField = 3

// flush gives the chunk to the sender.
func (i *Import) flush() error {
	if i.ended {
		return errImportEnded
	}
	number := i.next
	i.next++
	i.begins = append(i.begins, i.added)
	if number < i.known {
		if err := i.compare(number); err != nil {
			return i.fail(err)
		}
		i.chunk, i.bytes = i.chunk[:0], 0
		return nil
	}
	select {
	case i.full <- outgoing{number, i.chunk}:
		i.chunk, i.bytes = make([]*pembav1.Tuple, 0, len(i.chunk)), 0
		clear(i.edges)
		return nil
	case <-i.sent:
		return i.fail(i.sendErr)
	}
}

// ErrImportMismatch is wrapped by the error of an import whose ID stands for
// other tuples, or the other operation, than those that were added. Where the
// server finds that out, its error has the reason STAGE_MISMATCH instead. What the
// server has stays as it is.
//
// The tuples must also come in the same chunks to be known again. Where chunks end
// follows from the tuples, their order and ImportConfig.ChunkBytes, but another version
// of this package may end them elsewhere: an import that is cut off is gone on with by
// the version that began it, or begun again under another ID.
var ErrImportMismatch = errors.New("use another ID")

// compare compares the chunk with what the server has, of which it knows the
// digest of all together.
func (i *Import) compare(number uint32) error {
	updates := make([]graph.Update, len(i.chunk))
	for n, m := range i.chunk {
		t, err := api.ReceivedTuple(m)
		if err != nil {
			return fmt.Errorf("client: %w", err)
		}
		updates[n] = graph.Update{Operation: graph.Touch, Tuple: t}
		if i.config.Create {
			updates[n].Operation = graph.Create
		}
	}
	i.digest = i.digest.Next(number, updates)
	if number+1 == i.known && !bytes.Equal(i.digest[:], i.knownDigest) {
		return fmt.Errorf("client: the import %s began with other tuples, with the other operation, or with chunks of another size, in its first %d chunks; %w", i.config.ID, i.known, ErrImportMismatch)
	}
	return nil
}

// send sends chunks as they come, so that the caller can parse meanwhile. The first
// message is the header, also where there is no chunk to send. It goes alone, so that
// where chunks end does not depend on it.
func (i *Import) send(header *pembav1.ImportHeader) {
	defer close(i.sent)
	for chunk := range i.full {
		if header != nil {
			if chunk.number > 0 {
				header.KnownDigest = i.digest[:] // All that is known has been compared.
			}
			if i.sendErr = i.sendMessage(&pembav1.ImportTuplesRequest{Header: header, Chunk: chunk.number}); i.sendErr != nil {
				return
			}
			header = nil
		}
		if i.sendErr = i.sendMessage(&pembav1.ImportTuplesRequest{Chunk: chunk.number, Tuples: chunk.tuples}); i.sendErr != nil {
			return
		}
	}
	if header != nil {
		if i.config.ID != "" {
			// Also when it stands for no tuples: those of others are not to be committed.
			header.KnownDigest = i.digest[:]
		}
		i.sendErr = i.sendMessage(&pembav1.ImportTuplesRequest{Header: header, Chunk: i.known})
	}
}

func (i *Import) sendMessage(message *pembav1.ImportTuplesRequest) error {
	err := i.stream.Send(message)
	if errors.Is(err, io.EOF) {
		// The server has answered already; the answer says why.
		_, err = i.stream.CloseAndRecv()
	}
	return err
}

var errImportEnded = errors.New("client: the import is over")

// fail ends the import with an error.
func (i *Import) fail(err error) error {
	i.Cancel()
	if at, ok := i.blame(err); ok {
		return &ImportError{Number: at, Err: err}
	}
	return err
}

// Commit makes what was added visible and says how many tuples that were. When
// it fails because the connection is lost it may have taken place all the same;
// to go on with an import that did is harmless, and says what it came to, as long
// as the server remembers it: the last 64 of a store.
func (i *Import) Commit() (*pembav1.ImportTuplesResponse, error) {
	if i.ended {
		return nil, errImportEnded
	}
	if len(i.chunk) > 0 {
		if err := i.flush(); err != nil {
			return nil, err
		}
	}
	if i.next < i.known && i.added >= i.knownTuples {
		return nil, i.fail(fmt.Errorf("client: the import %s began with other tuples, or with chunks of another size: the server has %d chunks of %d tuples, and now there are %d chunks of %d; %w",
			i.config.ID, i.known, i.knownTuples, i.next, i.added, ErrImportMismatch))
	}
	if i.next < i.known {
		return nil, i.fail(fmt.Errorf("client: the import %s began with more tuples: the server has %d, and now there are only %d, as when what they are read from has become shorter; %w",
			i.config.ID, i.knownTuples, i.added, ErrImportMismatch))
	}
	i.ended = true
	close(i.full)
	<-i.sent
	if i.sendErr != nil {
		return nil, i.fail(i.sendErr)
	}
	answer, err := i.stream.CloseAndRecv()
	if err != nil {
		return nil, i.fail(err)
	}
	i.cancel()
	if answer.GetTuples() != i.added {
		// The server learned of chunks of an earlier attempt after it was asked.
		return answer, fmt.Errorf("client: the import %s began with other tuples: %d were added to it, and %d were committed; %w",
			i.config.ID, i.added, answer.GetTuples(), ErrImportMismatch)
	}
	return answer, nil
}

// Cancel ends an import that was not committed. What the server has of it stays
// there for some time, if it has an ID: see Forget. After Commit it does
// nothing.
func (i *Import) Cancel() {
	i.cancel()
	if !i.ended {
		i.ended = true
		close(i.full)
	}
	<-i.sent
}

// Forget makes the server forget an import that was not committed, so that it
// cannot be gone on with. It is Canceled first.
func (i *Import) Forget(ctx context.Context) error {
	i.Cancel()
	if i.config.ID == "" {
		return nil
	}
	_, err := i.client.Tuples.AbortImport(ctx, &pembav1.AbortImportRequest{Store: i.config.Store, ImportId: i.config.ID})
	if reason, _ := Reason(err); reason == unknownImport {
		return nil
	}
	return err
}

// An ImportError says which tuple the server refused.
type ImportError struct {
	// Number is that of the tuple in the order of Add, from 0.
	Number uint64
	// Err is the error as the server gave it.
	Err error
}

func (e *ImportError) Error() string { return fmt.Sprintf("tuple %d: %v", e.Number, e.Err) }

// Unwrap returns the server's error.
func (e *ImportError) Unwrap() error { return e.Err }

// blame finds out which tuple an error of the server is about. The error names
// the chunk, and the tuple within it.
func (i *Import) blame(err error) (uint64, bool) {
	_, metadata := Reason(err)
	chunk, parseErr := strconv.ParseUint(metadata["chunk"], 10, 32)
	if parseErr != nil || chunk >= uint64(len(i.begins)) {
		return 0, false
	}
	for _, d := range status.Convert(err).Details() {
		bad, ok := d.(*errdetails.BadRequest)
		if !ok {
			continue
		}
		for _, v := range bad.GetFieldViolations() {
			_, rest, found := strings.Cut(v.GetField(), "tuples[")
			number, _, closed := strings.Cut(rest, "]")
			if n, err := strconv.ParseUint(number, 10, 32); found && closed && err == nil {
				return i.begins[chunk] + n, true
			}
		}
	}
	return 0, false
}
