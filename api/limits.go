package api

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// Limits bound what callers may ask. A zero field means the default that its
// comment gives; DefaultLimits has them all. docs/limits.md lists every limit of
// the product, those that are no settings as well.
type Limits struct {
	// RequestBytes bounds the encoded size of one message of a request, and of
	// its JSON form: 8 MiB. A chunk of an import is such a message.
	RequestBytes int
	// SchemaBytes bounds the text of a schema: 768 KiB. A schema is one entry of
	// the log, whose entries are bounded too: see cluster.Config.EntryBytesMax.
	SchemaBytes int
	// Updates and Preconditions bound one write: 1000 each. Preconditions go for
	// deletes too.
	Updates       int
	Preconditions int
	// Deletes bounds how many tuples one delete may end: 10,000.
	Deletes int
	// Checks bounds the items of a bulk check: 1000.
	Checks int
	// ImportTuples bounds the tuples of one message of an import: 10,000.
	ImportTuples int
	// ImportTotal bounds the tuples of one atomic import: 10,000,000. All of them
	// become visible by one change, and all other changes of the node wait for it,
	// some 3 to 5 s a million tuples.
	ImportTotal int
	// ContextBytes bounds the context of a question, as JSON: 64 KiB.
	ContextBytes int
	// TupleContextBytes bounds the context a tuple carries, as JSON: 25,000.
	TupleContextBytes int
	// MetadataBytes bounds the metadata of a change, as JSON: 65,000.
	MetadataBytes int
	// AnswerBytes bounds the encoded size of an answer that grows with what is stored
	// and comes as one message: the tree of an expand, the trace of a check, a wildcard
	// with its exclusions, what is told of a schema. 4 MiB, for that is what clients
	// take that are set to nothing else.
	AnswerBytes int
	// Steps and MemoryBytes are the budget of one question; zero leaves them to
	// the engine: 10,000,000 and 256 MiB.
	Steps       int
	MemoryBytes int64
	// Stores bounds how many stores there may be: 1000. It is judged by the node
	// that is asked to make one, so that requests at once may exceed it a little. With
	// Config.Testing zero means 10,000, and it is never exceeded.
	Stores int
	// Watches bounds the watches that the node has open: 1000. The keys that are
	// bound to the same stores have at most half of them together, and a tenth is
	// for operators alone.
	Watches int
	// OpenStreams bounds the streaming answers that the node has open, watches and
	// those over HTTP among them: 2000. Each may hold some 250 KiB for a client
	// that is slow to take it, and over HTTP twice that. They are shared like
	// Watches.
	OpenStreams int
	// WatchHeartbeat is after how long without a change a watch says that it is
	// alive: 10 s.
	WatchHeartbeat time.Duration
	// Connections bounds the open connections of each of the two addresses:
	// 10,000. One beyond is closed at once.
	Connections int
	// Streams bounds the calls that one connection may have open: 1000.
	Streams int
	// StreamStall bounds how long an answer waits for a client that takes no
	// results, and an import over HTTP for one that sends none: 30 s. The call
	// then ends, so that the state it holds is let go.
	StreamStall time.Duration
	// CallTimeout is the deadline of a call that names none, if it has one
	// answer and not a stream of them: 60 s.
	CallTimeout time.Duration
	// CallsPerSecond bounds the calls that one key may make, on average over a
	// second or so; zero means any number. A store has such a limit too, in its
	// settings.
	CallsPerSecond int
}

// DefaultLimits returns the limits that hold where nothing else is said.
func DefaultLimits() Limits {
	return Limits{
		RequestBytes:      8 << 20,
		SchemaBytes:       768 << 10,
		Updates:           1000,
		Preconditions:     1000,
		Deletes:           10_000,
		Checks:            1000,
		ImportTuples:      10_000,
		ImportTotal:       10_000_000,
		ContextBytes:      64 << 10,
		TupleContextBytes: 25_000,
		MetadataBytes:     65_000,
		AnswerBytes:       4 << 20,
		Stores:            1000,
		Watches:           1000,
		OpenStreams:       2000,
		WatchHeartbeat:    10 * time.Second,
		Connections:       10_000,
		Streams:           1000,
		StreamStall:       30 * time.Second,
		CallTimeout:       time.Minute,
	}
}

// Limits that are not settings: they bound forms, not work. Those of names, ids
// and nesting are graph's.
const (
	actorBytesMax    = 1024
	storeBytesMax    = 256
	cursorBytesMax   = 16 << 10
	pageTuples       = 256
	keyBytesMax      = 4096
	keysMax          = 1000
	fileBytesMax     = 4 << 20
	headerBytesMax   = 64 << 10
	sendAheadResults = 128
)

// withDefaults fills in what is zero.
func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	for _, f := range []struct {
		value     *int
		otherwise int
	}{
		{&l.RequestBytes, d.RequestBytes},
		{&l.SchemaBytes, d.SchemaBytes},
		{&l.Updates, d.Updates},
		{&l.Preconditions, d.Preconditions},
		{&l.Deletes, d.Deletes},
		{&l.Checks, d.Checks},
		{&l.ImportTuples, d.ImportTuples},
		{&l.ImportTotal, d.ImportTotal},
		{&l.ContextBytes, d.ContextBytes},
		{&l.TupleContextBytes, d.TupleContextBytes},
		{&l.MetadataBytes, d.MetadataBytes},
		{&l.AnswerBytes, d.AnswerBytes},
		{&l.Stores, d.Stores},
		{&l.Watches, d.Watches},
		{&l.OpenStreams, d.OpenStreams},
		{&l.Connections, d.Connections},
		{&l.Streams, d.Streams},
	} {
		if *f.value == 0 {
			*f.value = f.otherwise
		}
	}
	for _, f := range []struct {
		value     *time.Duration
		otherwise time.Duration
	}{
		{&l.WatchHeartbeat, d.WatchHeartbeat},
		{&l.StreamStall, d.StreamStall},
		{&l.CallTimeout, d.CallTimeout},
	} {
		if *f.value == 0 {
			*f.value = f.otherwise
		}
	}
	return l
}

// flagOf returns the flag of serve that sets a limit.
func flagOf(name string) string { return "--limit-" + strings.ReplaceAll(name, " ", "-") }

// Validate refuses negative limits and those that no machine word holds on the
// wire. Zero is allowed and means the default.
func (l Limits) Validate() error {
	for _, f := range []struct {
		name       string
		value, max int64
	}{
		{"request bytes", int64(l.RequestBytes), 1 << 30},
		{"schema bytes", int64(l.SchemaBytes), 1 << 30},
		{"updates", int64(l.Updates), 1 << 30},
		{"preconditions", int64(l.Preconditions), 1 << 30},
		{"deletes", int64(l.Deletes), 1 << 30},
		{"checks", int64(l.Checks), 1 << 30},
		{"import tuples", int64(l.ImportTuples), 1 << 30},
		{"import total", int64(l.ImportTotal), graph.StageTuplesMax},
		{"context bytes", int64(l.ContextBytes), 1 << 30},
		{"tuple context bytes", int64(l.TupleContextBytes), 1 << 30},
		{"metadata bytes", int64(l.MetadataBytes), 1 << 30},
		{"answer bytes", int64(l.AnswerBytes), 1 << 30},
		{"steps", int64(l.Steps), math.MaxInt64},
		{"memory bytes", l.MemoryBytes, math.MaxInt64},
		{"stores", int64(l.Stores), 1 << 30},
		{"watches", int64(l.Watches), 1 << 30},
		{"open streams", int64(l.OpenStreams), 1 << 30},
		{"connections", int64(l.Connections), 1 << 30},
		{"streams", int64(l.Streams), 1 << 30},
		{"calls per second", int64(l.CallsPerSecond), 1 << 30},
	} {
		if f.value < 0 || f.value > f.max {
			return fmt.Errorf("limit of %s (%s): %d is out of range; allowed are 0 (the default) to %d", f.name, flagOf(f.name), f.value, f.max)
		}
	}
	for _, f := range []struct {
		name  string
		value time.Duration
	}{
		{"watch heartbeat", l.WatchHeartbeat},
		{"stream stall", l.StreamStall},
		{"call timeout", l.CallTimeout},
	} {
		if f.value != 0 && f.value < time.Millisecond || f.value > 24*time.Hour {
			return fmt.Errorf("limit of %s (%s): %v is out of range; allowed are 0 (the default) and 1ms to 24h", f.name, flagOf(f.name), f.value)
		}
	}
	return nil
}

// budget is what one question may cost.
func (l Limits) budget() engine.Budget {
	return engine.Budget{Steps: l.Steps, MemoryBytes: l.MemoryBytes}
}

// FitsAnswer refuses an answer that is larger than AnswerBytes; instead says what to
// ask for instead.
func (l *Limits) FitsAnswer(answer proto.Message, instead string) error {
	return l.FitsAnswerBytes(proto.Size(answer), instead)
}

// FitsAnswerBytes is FitsAnswer for an answer that has so many bytes so far: one that
// is made in parts is refused before it is all there.
func (l *Limits) FitsAnswerBytes(got int, instead string) error {
	if got <= l.AnswerBytes {
		return nil
	}
	return &requestError{
		code: codes.ResourceExhausted, reason: "ANSWER_TOO_LARGE",
		message:  fmt.Sprintf("the answer has %d bytes or more, and %d are allowed: %s, or raise --limit-answer-bytes of the server and what the client takes", got, l.AnswerBytes, instead),
		metadata: map[string]string{"limit": strconv.Itoa(l.AnswerBytes)},
	}
}
