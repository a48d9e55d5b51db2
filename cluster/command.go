package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/pembadb/pemba/graph"
)

// A command is what stands in a log entry: a mutation, in graph's own encoding,
// with what the leader adds to it. Every node decodes the same bytes to the same
// command, for ever: a later form gets a version byte of its own beside this
// one.
//
//	byte     version, 1
//	8 bytes  stamp, big endian, microseconds since the epoch
//	byte     length of the request id, then so many bytes
//	rest     the mutation (graph.Mutation.AppendBinary)
type command struct {
	// Stamp is the leader's time when it proposed the entry.
	Stamp graph.Instant
	// RequestID is room for telling a repeated request from a new one. It is
	// empty in every entry that this version writes.
	RequestID []byte
	Mutation  *graph.Mutation
}

const (
	commandVersion = 1

	// requestIDBytesMax bounds the request id, which later stands in the
	// replicated state of every node.
	requestIDBytesMax = 64

	// commandHeadBytes is what comes before the request id.
	commandHeadBytes = 1 + 8 + 1

	// updateBytes is about what an update with ordinary names takes.
	updateBytes = 96
)

// encodeCommand returns c in the form above. It refuses a mutation that no
// engine could make sense of: that must not stand in the log.
func encodeCommand(c command) ([]byte, error) {
	if len(c.RequestID) > requestIDBytesMax {
		return nil, fmt.Errorf("request id has %d bytes; at most %d are allowed", len(c.RequestID), requestIDBytesMax)
	}
	if c.Mutation == nil {
		return nil, errors.New("there is no mutation")
	}
	if err := c.Mutation.Validate(); err != nil {
		return nil, err
	}
	entry := make([]byte, 0, commandHeadBytes+len(c.RequestID)+len(c.Mutation.Metadata)+updateBytes*(1+len(c.Mutation.Updates)))
	entry = append(entry, commandVersion)
	entry = binary.BigEndian.AppendUint64(entry, uint64(c.Stamp))
	entry = append(entry, byte(len(c.RequestID)))
	entry = append(entry, c.RequestID...)
	return c.Mutation.AppendBinary(entry), nil
}

// decodeCommand reads what encodeCommand wrote. The result shares no memory
// with entry.
func decodeCommand(entry []byte) (command, error) {
	if len(entry) == 0 {
		return command{}, errors.New("the entry is empty, and no command is")
	}
	if version := entry[0]; version != commandVersion {
		return command{}, fmt.Errorf("the command has version %d; this program knows version %d only", version, commandVersion)
	}
	if len(entry) < commandHeadBytes {
		return command{}, fmt.Errorf("the entry has %d bytes; a command has %d and more", len(entry), commandHeadBytes)
	}
	c := command{Stamp: graph.Instant(binary.BigEndian.Uint64(entry[1:]))}
	id := int(entry[commandHeadBytes-1])
	rest := entry[commandHeadBytes:]
	if id > requestIDBytesMax || id > len(rest) {
		return command{}, fmt.Errorf("the request id is to have %d bytes; %d are left, and at most %d are allowed", id, len(rest), requestIDBytesMax)
	}
	if id > 0 {
		c.RequestID = append([]byte(nil), rest[:id]...)
	}
	var err error
	c.Mutation, err = graph.DecodeMutation(rest[id:])
	return c, err
}
