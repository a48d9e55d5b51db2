package cluster

import (
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// A peerTransport is what Raft speaks to the other nodes through.
type peerTransport interface {
	raft.Transport
	raft.WithPreVote
	raft.WithClose
}

// A replication stands between a leader's Raft and the transport, and mends how Raft
// treats its followers. Safety does not depend on it: what it answers in a follower's
// place is what that one answered, or would have to.
//
//   - Raft tells followers by a timer that an entry is agreed (Config.CommitPause). So
//     that the timer can be short, a request that says nothing new goes out only now and
//     then, and is answered here otherwise.
//   - Raft doubles its pause after each request that fails, up to ten seconds, also when
//     heartbeats come through again. So a request to a node that does not answer waits
//     here until it does.
//   - A follower that has fetched a state says so as the answer to a token.
type replication struct {
	peerTransport
	node *Node

	mu        sync.Mutex
	followers map[raft.ServerID]*replica
}

// A replica is what a leader knows of a follower. It is guarded by replication.mu.
type replica struct {
	// said is what was said last and taken, and saidAt when.
	said   announcement
	saidAt time.Time
	// silent is closed when the node answers again; nil while it does.
	silent chan struct{}
}

// An announcement is a request without entries.
type announcement struct{ term, index, entryTerm, commit uint64 }

const (
	// repeatAfter is when an announcement goes out again that says nothing new. What
	// Raft takes for contact with a follower is at most so much older than it seems.
	repeatAfter = 50 * time.Millisecond
	// silencePause is how often a request that waits looks whether it is still wanted.
	silencePause = 20 * time.Millisecond
)

func newReplication(n *Node, t peerTransport) *replication {
	return &replication{peerTransport: t, node: n, followers: map[raft.ServerID]*replica{}}
}

func (r *replication) replica(id raft.ServerID) *replica {
	f := r.followers[id]
	if f == nil {
		f = &replica{}
		r.followers[id] = f
	}
	return f
}

// AppendEntries implements raft.Transport.
func (r *replication) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, response *raft.AppendEntriesResponse) error {
	if args.PrevLogEntry == 0 && len(args.Entries) == 0 && args.LeaderCommitIndex == 0 {
		// A heartbeat.
		err := r.peerTransport.AppendEntries(id, target, args, response)
		r.heard(id, err)
		return err
	}
	said := announcement{args.Term, args.PrevLogEntry, args.PrevLogTerm, args.LeaderCommitIndex}
	if len(args.Entries) == 0 && r.isKnown(id, said) {
		*response = raft.AppendEntriesResponse{Term: args.Term, LastLog: args.PrevLogEntry, Success: true}
		return nil
	}
	if err := r.awaitAnswering(id, args.Term); err != nil {
		return err
	}
	plain := len(args.Entries) == 0
	err := r.peerTransport.AppendEntries(id, target, args, response)
	r.heard(id, err)
	if err == nil && plain && response.Success {
		r.mu.Lock()
		f := r.replica(id)
		f.said, f.saidAt = said, time.Now()
		r.mu.Unlock()
	}
	return err
}

// isKnown reports whether a node took an announcement just now.
func (r *replication) isKnown(id raft.ServerID, said announcement) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.replica(id)
	return f.silent == nil && f.said == said && time.Since(f.saidAt) < repeatAfter
}

// heard notes whether a node answered.
func (r *replication) heard(id raft.ServerID, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.replica(id)
	switch {
	case err == nil && f.silent != nil:
		close(f.silent)
		f.silent = nil
	case err != nil:
		f.said = announcement{}
		if f.silent == nil {
			f.silent = make(chan struct{})
		}
	}
}

// errUnwanted says that a request waited until nobody wanted it any more.
var errUnwanted = errors.New("the node does not answer, and the leader does not lead or has given it up")

// awaitAnswering waits while a node does not answer heartbeats, as long as this node
// leads in a term and the other is a member.
func (r *replication) awaitAnswering(id raft.ServerID, term uint64) error {
	r.mu.Lock()
	silent := r.replica(id).silent
	r.mu.Unlock()
	switch {
	case silent == nil:
		return nil
	case r.node.handingOver.Load() > 0:
		// A transfer asks for all that is missing there, and would wait for it as long.
		return errUnwanted
	}
	ticker := time.NewTicker(silencePause)
	defer ticker.Stop()
	for {
		select {
		case <-silent:
			return nil
		case <-ticker.C:
			now := r.node.raft()
			if r.node.handingOver.Load() > 0 || now == nil || now.State() != raft.Leader || now.CurrentTerm() != term || !r.node.isMember(string(id)) {
				return errUnwanted
			}
		}
	}
}

// InstallSnapshot implements raft.Transport. To Raft a follower that has fetched a state
// has all up to the leader's own durable revision, which may be later than what it has.
// All of that is agreed already, so no majority is made of it, and the first entry that
// does not fit tells Raft where the follower really is.
func (r *replication) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest,
	response *raft.InstallSnapshotResponse, data io.Reader,
) error {
	if err := r.awaitAnswering(id, args.Term); err != nil {
		return err
	}
	err := r.peerTransport.InstallSnapshot(id, target, args, response, data)
	if err != nil && strings.Contains(err.Error(), errStateIsHeld.Error()) {
		*response = raft.InstallSnapshotResponse{RPCHeader: response.RPCHeader, Term: args.Term, Success: true}
		return nil
	}
	return err
}
