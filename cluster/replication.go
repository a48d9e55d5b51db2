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
//     Heartbeats have connections of their own, and where one of these breaks entries
//     wait that would pass. That is for moments: with the next heartbeat, which Raft sends
//     within half an election timeout, comes another connection. It would last only where
//     each new connection for heartbeats failed and none for entries, which go to the same
//     port, or where every answer took as long as heartbeats wait for one, which is
//     seconds. Entries that were sent as a trial then would each, where they fail,
//     double the pause again that this is about, for all whose silence is an ordinary one.
//   - A follower that has fetched a state says so as the answer to a token.
//
// On the other side, of a follower, it mends requests that begin below what the log knows.
type replication struct {
	peerTransport
	node *Node

	// passed are the requests of others that Raft is given. The goroutine that passes
	// them on ends when ended is closed.
	passed  chan raft.RPC
	ended   chan struct{}
	end     sync.Once
	passing sync.WaitGroup
	begin   sync.Once

	mu sync.Mutex
	// followers are the members that something was heard of.
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
	return &replication{
		peerTransport: t, node: n, followers: map[raft.ServerID]*replica{},
		passed: make(chan raft.RPC), ended: make(chan struct{}),
	}
}

// Consumer implements raft.Transport. Requests come to Raft in the order in which the
// transport gives them, one at a time, and are answered by Raft itself: who waits for the
// answers of a pipeline gets them in its order. Heartbeats go by another way.
func (r *replication) Consumer() <-chan raft.RPC {
	r.begin.Do(func() { r.passing.Go(func() { r.pass(r.peerTransport.Consumer()) }) })
	return r.passed
}

// pass gives Raft what comes from others.
func (r *replication) pass(from <-chan raft.RPC) {
	for {
		select {
		case <-r.ended:
			return
		case rpc := <-from:
			if request, ok := rpc.Command.(*raft.AppendEntriesRequest); ok {
				// It was decoded for this node, and is nobody else's.
				r.node.log.beginKnown(request)
			}
			select {
			case <-r.ended:
				return // Who waits for the answer sees that the transport is closed.
			case r.passed <- rpc:
			}
		}
	}
}

// Close implements raft.WithClose.
func (r *replication) Close() error {
	err := r.peerTransport.Close()
	r.end.Do(func() { close(r.ended) })
	r.passing.Wait()
	return err
}

// AppendEntries implements raft.Transport.
func (r *replication) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, response *raft.AppendEntriesResponse) error {
	if args.PrevLogEntry == 0 && len(args.Entries) == 0 && args.LeaderCommitIndex == 0 {
		// A heartbeat.
		err := r.peerTransport.AppendEntries(id, target, args, response)
		r.heard(id, err, announcement{})
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
	if !plain || !response.Success {
		said = announcement{}
	}
	r.heard(id, err, said)
	return err
}

// isKnown reports whether a node took an announcement just now.
func (r *replication) isKnown(id raft.ServerID, said announcement) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.followers[id]
	return f != nil && f.silent == nil && f.said == said && time.Since(f.saidAt) < repeatAfter
}

// heard notes whether a node answered, and what was said that it took, if anything.
func (r *replication) heard(id raft.ServerID, err error, took announcement) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.followers[id]
	if f == nil {
		f = &replica{}
		r.followers[id] = f
	}
	switch {
	case err != nil:
		f.said = announcement{}
		if f.silent == nil {
			f.silent = make(chan struct{})
		}
	case f.silent != nil:
		close(f.silent)
		f.silent = nil
	}
	if err == nil && took != (announcement{}) {
		f.said, f.saidAt = took, time.Now()
	}
	r.forgetRemoved()
}

// forgetRemoved forgets those that are no members any more. It needs mu. Something is
// heard of every follower once more behind its removal, since Raft sends it that, so that
// none is left.
func (r *replication) forgetRemoved() {
	now := r.node.raft()
	if now == nil {
		return // It is being started.
	}
	members := now.GetConfiguration().Configuration() // From memory; it is only looked at.
	for id, f := range r.followers {
		if _, found := memberOf(members, string(id)); found {
			continue
		}
		if f.silent != nil {
			close(f.silent) // Who waits finds out why.
		}
		delete(r.followers, id)
	}
}

// errUnwanted says that a request waited until nobody wanted it any more.
var errUnwanted = errors.New("the node does not answer, and the leader does not lead or has given it up")

// awaitAnswering waits while a node does not answer heartbeats, as long as this node
// leads in a term and the other is a member.
func (r *replication) awaitAnswering(id raft.ServerID, term uint64) error {
	var silent chan struct{}
	r.mu.Lock()
	if f := r.followers[id]; f != nil {
		silent = f.silent
	}
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
	var late <-chan time.Time
	if failed, found := r.node.untaken.Load(id); found && failed == term {
		// Raft still holds what that transfer asked of the goroutine that waits here. Another
		// transfer waits until it has been taken, without end, and meanwhile Raft refuses
		// every entry and every change of the members.
		late = time.After(r.node.electionTimeout())
	}
	for {
		select {
		case <-late:
			return errUnwanted
		case <-silent:
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.followers[id] == nil {
				return errUnwanted // It was removed.
			}
			return nil
		case <-ticker.C:
			now := r.node.raft()
			if r.node.handingOver.Load() > 0 || now == nil || now.State() != raft.Leader || now.CurrentTerm() != term || !r.node.isMember(string(id)) {
				r.mu.Lock()
				defer r.mu.Unlock()
				if now != nil {
					r.forgetRemoved()
				}
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
