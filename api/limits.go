package api

import (
	"fmt"
	"time"

	"github.com/pembadb/pemba/engine"
)

// Limits bound what one request may ask. A zero field means the default that
// its comment gives; DefaultLimits has them all.
type Limits struct {
	// RequestBytes bounds the encoded size of a request: 8 MiB.
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
	// ContextBytes bounds the context of a question, as JSON: 64 KiB.
	ContextBytes int
	// TupleContextBytes bounds the context a tuple carries, as JSON: 25,000.
	TupleContextBytes int
	// MetadataBytes bounds the metadata of a change, as JSON: 65,000.
	MetadataBytes int
	// Steps and MemoryBytes are the budget of one question; zero leaves them to
	// the engine: 10,000,000 and 256 MiB.
	Steps       int
	MemoryBytes int64
	// Streams bounds the calls that one connection may have open: 1000.
	Streams int
	// StreamStall bounds how long an answer waits for a client that takes no
	// results: 30 s. The stream then ends, so that the state it reads is let go.
	StreamStall time.Duration
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
		ContextBytes:      64 << 10,
		TupleContextBytes: 25_000,
		MetadataBytes:     65_000,
		Streams:           1000,
		StreamStall:       30 * time.Second,
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
		{&l.ContextBytes, d.ContextBytes},
		{&l.TupleContextBytes, d.TupleContextBytes},
		{&l.MetadataBytes, d.MetadataBytes},
		{&l.Streams, d.Streams},
	} {
		if *f.value == 0 {
			*f.value = f.otherwise
		}
	}
	if l.StreamStall == 0 {
		l.StreamStall = d.StreamStall
	}
	return l
}

// Validate refuses negative limits and those that no machine word holds on the
// wire. Zero is allowed and means the default.
func (l Limits) Validate() error {
	for _, f := range []struct {
		name  string
		value int64
	}{
		{"request bytes", int64(l.RequestBytes)},
		{"schema bytes", int64(l.SchemaBytes)},
		{"updates", int64(l.Updates)},
		{"preconditions", int64(l.Preconditions)},
		{"deletes", int64(l.Deletes)},
		{"checks", int64(l.Checks)},
		{"context bytes", int64(l.ContextBytes)},
		{"tuple context bytes", int64(l.TupleContextBytes)},
		{"metadata bytes", int64(l.MetadataBytes)},
		{"streams", int64(l.Streams)},
	} {
		if f.value < 0 || f.value > 1<<30 {
			return fmt.Errorf("limit of %s: %d is out of range; allowed are 0 (the default) to %d", f.name, f.value, 1<<30)
		}
	}
	switch {
	case l.Steps < 0:
		return fmt.Errorf("limit of steps: %d is negative; allowed are 0 (the default) and more", l.Steps)
	case l.MemoryBytes < 0:
		return fmt.Errorf("limit of memory bytes: %d is negative; allowed are 0 (the default) and more", l.MemoryBytes)
	case l.StreamStall < 0:
		return fmt.Errorf("limit of stream stall: %v is negative; allowed are 0 (the default) and more", l.StreamStall)
	}
	return nil
}

// budget is what one question may cost.
func (l Limits) budget() engine.Budget {
	return engine.Budget{Steps: l.Steps, MemoryBytes: l.MemoryBytes}
}
