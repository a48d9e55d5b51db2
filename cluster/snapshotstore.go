package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"

	"github.com/pembadb/pemba/graph"
)

// What answers a leader that wants to install its state by way of Raft: this node
// fetches it by itself (install.go), and then says that it has it.
var (
	errStateIsFetched = errors.New("the state is fetched apart from Raft; try again when it is there")
	errStateIsHeld    = errors.New("the state is here, as far as the log of the leader begins")
)

// snapshotStore shows Raft the graph as its newest snapshot: "flushed durably
// up to N". There is no other copy, and nothing is written when Raft takes a
// snapshot but what Pebble still holds in memory.
//
// What a leader sends to a node that is too far behind for the log is a token, which
// says whom to ask for the state.
//
// Invariant: List()[0].Index <= graph.DB.Applied().Revision.
type snapshotStore struct {
	node *Node
	db   *graph.DB
}

// List implements raft.SnapshotStore. Raft starts from what it returns: index,
// term and configuration.
func (s *snapshotStore) List() ([]*raft.SnapshotMeta, error) {
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
// which flushed.Persist marks as such, and for the tokens that a leader sends.
func (s *snapshotStore) Create(_ raft.SnapshotVersion, index, term uint64, _ raft.Configuration, _ uint64,
	_ raft.Transport,
) (raft.SnapshotSink, error) {
	return &sink{id: fmt.Sprintf("%d-%d", term, index), node: s.node}, nil
}

// Open implements raft.SnapshotStore. Raft calls it to send a state, and sends the
// token instead. The state is flushed before, so that it is of no older revision than
// any that was sent.
func (s *snapshotStore) Open(string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	if _, err := s.db.Flush(); err != nil {
		return nil, nil, err
	}
	// Before the revision, which only rises: see stateToken.
	first, err := s.node.log.firstKnown()
	if err != nil {
		return nil, nil, err
	}
	list, err := s.List()
	if err == nil && len(list) == 0 {
		err = errors.New("no state is durable yet")
	}
	if err != nil {
		return nil, nil, err
	}
	meta := list[0]
	token := stateToken{node: s.node.dir.nodeID, revision: graph.Revision(meta.Index), first: first}.String()
	meta.Size = int64(len(token))
	return meta, io.NopCloser(bytes.NewReader([]byte(token))), nil
}

// A stateToken says who has a state, and from which entry on its log goes.
//
// Invariant: first <= revision. So who has applied the state's revision needs no state.
type stateToken struct {
	node     string
	revision graph.Revision
	// first is the lowest entry whose term the log of node knows, logStore.firstKnown.
	// The log has all that come behind it.
	first uint64
}

// isHeldBy reports whether a node that has applied so much needs no state to follow the
// log of the one that sent the token.
//
// That is so from first on, and no lower. The entry that was applied last is agreed, so
// that the leader has the same one, and knows its term, as this node does: it is in the
// log here, or the last of a state that was sent (logBase). All that comes behind it is
// in the leader's log. So Raft, which goes back in the log until an entry fits, comes to
// this one at the latest; a request that begins lower is begun at what is known here
// (logStore.beginKnown). An entry below first the leader cannot even ask about, and it
// would send its next token.
//
// That no-ops and barriers leave the applied revision where it is, on both sides, while
// configurations and refused mutations move it, makes no difference: first is never
// above the last revision that the leader has flushed, whatever comes behind that one
// (logStore.DeleteRange). So a state that is sent is of first or later; who puts it into
// force has what the next token asks for, and is never sent the same one again.
func (t stateToken) isHeldBy(applied graph.Revision) bool { return uint64(applied) >= t.first }

// tokenBytesMax is more than any token has.
const tokenBytesMax = 256

func (t stateToken) String() string {
	return fmt.Sprintf("pemba state %d of %s with log from %d\n", t.revision, t.node, t.first)
}

func parseStateToken(text []byte) (stateToken, error) {
	var t stateToken
	if _, err := fmt.Sscanf(string(text), "pemba state %d of %s with log from %d\n", &t.revision, &t.node, &t.first); err != nil {
		return t, fmt.Errorf("the leader sent %.80q, which is no token of a state: %w", text, err)
	}
	return t, validateNodeID(t.node)
}

// A sink stands for one snapshot that Raft takes, to which nothing is written, or
// receives a token.
type sink struct {
	id      string
	node    *Node
	flushed bool
	token   []byte
}

// ID implements raft.SnapshotSink.
func (s *sink) ID() string { return s.id }

// Write implements raft.SnapshotSink. Only a token is written.
func (s *sink) Write(b []byte) (int, error) {
	if len(s.token)+len(b) > tokenBytesMax {
		return 0, fmt.Errorf("the leader sends more than the %d bytes that a token of a state may have", tokenBytesMax)
	}
	s.token = append(s.token, b...)
	return len(b), nil
}

// Cancel implements raft.SnapshotSink.
func (s *sink) Cancel() error { return nil }

// Close implements raft.SnapshotSink.
func (s *sink) Close() error {
	if s.flushed {
		return nil
	}
	token, err := parseStateToken(s.token)
	if err != nil {
		return err
	}
	n := s.node
	if token.isHeldBy(n.db().Applied().Revision) {
		// What else is in the log here may not be agreed, and does not count. More may have
		// been applied here than the leader has flushed: a state came from another node.
		return errStateIsHeld
	}
	n.installer.want(token)
	return errStateIsFetched
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
