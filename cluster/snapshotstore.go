package cluster

import (
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"

	"github.com/pembadb/pemba/graph"
)

// errNoStateTransfer answers every attempt to send or install a state as a
// Raft snapshot. A node that is alone never meets one.
var errNoStateTransfer = errors.New("state transfer between nodes is not offered by this version")

// snapshotStore shows Raft the graph as its newest snapshot: "flushed durably
// up to N". There is no other copy, and nothing is written when Raft takes a
// snapshot but what Pebble still holds in memory.
//
// Invariant: List()[0].Index <= graph.DB.Applied().Revision.
type snapshotStore struct{ db *graph.DB }

// List implements raft.SnapshotStore. Raft starts from what it returns: index,
// term and configuration.
func (s snapshotStore) List() ([]*raft.SnapshotMeta, error) {
	durable := s.db.Durable()
	if durable.Revision == 0 {
		return nil, nil
	}
	if durable.ConfigurationRevision == 0 {
		return nil, fmt.Errorf("the state at revision %d holds no cluster configuration, which the first entry brings", durable.Revision)
	}
	return []*raft.SnapshotMeta{{
		Version:            1,
		ID:                 fmt.Sprintf("%d-%d", durable.Term, durable.Revision),
		Index:              uint64(durable.Revision),
		Term:               durable.Term,
		Configuration:      raft.DecodeConfiguration(durable.Configuration),
		ConfigurationIndex: uint64(durable.ConfigurationRevision),
	}}, nil
}

// Create implements raft.SnapshotStore. Raft calls it for its own snapshots,
// which flushed.Persist marks as such, and for states that a leader sends.
func (s snapshotStore) Create(_ raft.SnapshotVersion, index, term uint64, _ raft.Configuration, _ uint64,
	_ raft.Transport,
) (raft.SnapshotSink, error) {
	return &sink{id: fmt.Sprintf("%d-%d", term, index)}, nil
}

// Open implements raft.SnapshotStore. Raft calls it to send a state.
func (s snapshotStore) Open(string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	return nil, nil, errNoStateTransfer
}

// A sink stands for one snapshot that Raft takes. Nothing is written to it.
type sink struct {
	id      string
	flushed bool
}

// ID implements raft.SnapshotSink.
func (s *sink) ID() string { return s.id }

// Write implements raft.SnapshotSink. Only a state that is sent is written.
func (s *sink) Write([]byte) (int, error) { return 0, errNoStateTransfer }

// Cancel implements raft.SnapshotSink.
func (s *sink) Cancel() error { return nil }

// Close implements raft.SnapshotSink.
func (s *sink) Close() error {
	if !s.flushed {
		return errNoStateTransfer
	}
	return nil
}

// flushed is the snapshot that the FSM gives to Raft: a promise that the graph
// is durable up to here, which Persist keeps. Raft cuts its log afterwards.
type flushed struct{ db *graph.DB }

// Persist implements raft.FSMSnapshot.
func (f flushed) Persist(to raft.SnapshotSink) error {
	if _, err := f.db.Flush(); err != nil {
		return err
	}
	if s, ok := to.(*sink); ok {
		s.flushed = true
	}
	return to.Close()
}

// Release implements raft.FSMSnapshot.
func (f flushed) Release() {}
