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
//	byte     length of the mutation's RequestID, then so many bytes
//	rest     the mutation (graph.Mutation.AppendBinary)
type command struct {
	// Stamp is the leader's time when it proposed the entry.
	Stamp    graph.Instant
	Mutation *graph.Mutation
}

const (
	commandVersion = 1

	// commandHeadBytes is what comes before the request id.
	commandHeadBytes = 1 + 8 + 1

	// updateBytes is about what an update with ordinary names takes.
	updateBytes = 96
)

// encodeCommand returns c in the form above. It refuses a mutation that no
// engine could make sense of: that must not stand in the log.
func encodeCommand(c command) ([]byte, error) {
	if c.Mutation == nil {
		return nil, errors.New("there is no mutation")
	}
	if err := c.Mutation.Validate(); err != nil {
		return nil, err
	}
	id := c.Mutation.RequestID // Validate bounds it.
	entry := make([]byte, 0, commandHeadBytes+len(id)+len(c.Mutation.Metadata)+updateBytes*(1+len(c.Mutation.Updates)))
	entry = append(entry, commandVersion)
	entry = binary.BigEndian.AppendUint64(entry, uint64(c.Stamp))
	entry = append(append(entry, byte(len(id))), id...)
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
	if id > graph.MaxRequestIDLength || id > len(rest) {
		return command{}, fmt.Errorf("the request id is to have %d bytes; %d are left, and at most %d are allowed", id, len(rest), graph.MaxRequestIDLength)
	}
	var err error
	if c.Mutation, err = graph.DecodeMutation(rest[id:]); err != nil {
		return command{}, err
	}
	if id > 0 {
		c.Mutation.RequestID = append([]byte(nil), rest[:id]...)
	}
	return c, nil
}
