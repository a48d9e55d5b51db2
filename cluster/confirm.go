package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	peerv1 "github.com/pembadb/pemba/cluster/pemba/peer/v1"
	"github.com/pembadb/pemba/graph"
)

// confirms lets many readers share one question to the other nodes. Those who come
// while a round is under way wait for the next: what was asked before they came
// proves nothing to them.
type confirms struct {
	mu      sync.Mutex
	next    *confirmRound // The one that new readers join; nil for none.
	running bool

	// rounds and readers count since the node started.
	rounds, readers atomic.Uint64
}

// A confirmRound is one question to the other nodes.
type confirmRound struct {
	done     chan struct{} // Closed when the others are set.
	revision graph.Revision
	err      error
}

// wait joins the next round, and returns what confirm did in it, or an ErrNotLeader when
// that takes too long: before that round another may be under way that is stuck, and each
// of them takes as long as it may.
func (c *confirms) wait(ctx context.Context, waitMax time.Duration, confirm func() (graph.Revision, error)) (graph.Revision, error) {
	c.readers.Add(1)
	c.mu.Lock()
	if c.next == nil {
		c.next = &confirmRound{done: make(chan struct{})}
	}
	round := c.next
	if !c.running {
		c.running = true
		go c.run(confirm)
	}
	c.mu.Unlock()
	late := time.NewTimer(waitMax)
	defer late.Stop()
	select {
	case <-round.done:
		return round.revision, round.err
	case <-late.C:
		return 0, noneAnswered(waitMax)
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// noneAnswered is the error of who asked whether there is a leader, and was not told.
func noneAnswered(within time.Duration) error {
	return fmt.Errorf("%w: none answered within %v", ErrNotLeader, within)
}

// run does rounds as long as somebody waits.
func (c *confirms) run(confirm func() (graph.Revision, error)) {
	for {
		c.mu.Lock()
		round := c.next
		c.next = nil
		if round == nil {
			c.running = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		c.rounds.Add(1)
		round.revision, round.err = confirm()
		close(round.done)
	}
}

// confirm returns a revision that holds everything that any node acknowledged before
// the call, or an ErrNotLeader.
//
// The leader has an agreed entry of its own term, so that it knows to be agreed all that
// its predecessors acknowledged, all that it acknowledged itself, and all that anybody
// who follows it has applied. What is left is that a successor may have acknowledged
// something already.
// One that was elected before the call has the vote of some node of every majority,
// and that node went to the new term before it gave its vote. So each is asked for its
// term, after the readers came: if a majority is in the leader's, nobody has followed
// it by then. No clock is involved. (raft.VerifyLeader counts answers that were sent
// before it was called.)
//
// While a change of the members is being agreed, the majority is one of the newest
// configuration: it meets every majority of the one before and of the one behind.
func (n *Node) confirm() (graph.Revision, error) {
	term := n.leading.Load()
	if !n.leads() {
		return 0, fmt.Errorf("%w: it cannot say what was acknowledged", ErrNotLeader)
	}
	if n.plantedOldConfirmation(term) {
		return n.db().Applied().Revision, nil
	}
	revision, err := n.agreed()
	if err != nil {
		return 0, err
	}
	configuration := n.configuration()
	voters, others := countVoters(configuration), votersBut(configuration, n.dir.nodeID)
	if len(others) == 0 && voters == 1 {
		return revision, nil // It is alone: nobody else can be elected.
	}
	ctx, cancel := context.WithTimeout(context.Background(), confirmTimeouts*n.electionTimeout())
	defer cancel() // Also of the slow ones, once there is a majority.
	replies := askAll(others, func(server raft.Server) (*peerv1.ConfirmResponse, error) {
		return n.askTerm(ctx, server, term)
	})
	agreeing := voters - len(others) // Itself, if it has a vote.
	var failure error
	for range others {
		switch r := <-replies; {
		case r.err != nil:
			failure = r.err
		case r.said.GetTerm() > term:
			return 0, fmt.Errorf("%w: another node is in term %d, and this one led in %d", ErrNotLeader, r.said.GetTerm(), term)
		case r.said.GetTerm() == term:
			agreeing++
		}
		if agreeing > voters/2 {
			break
		}
	}
	switch {
	case agreeing <= voters/2 && failure != nil:
		return 0, fmt.Errorf("%w: %d of %d voters confirm that it does: %w", ErrNotLeader, agreeing, voters, failure)
	case agreeing <= voters/2:
		return 0, fmt.Errorf("%w: %d of %d voters confirm that it does", ErrNotLeader, agreeing, voters)
	case n.leading.Load() != term:
		return 0, fmt.Errorf("%w: it lost its leadership meanwhile", ErrNotLeader)
	}
	n.plantedConfirmed(term)
	return revision, nil
}

// agreed returns the revision of the last entry that is agreed and that graphs apply. It
// may not be applied here yet: another node may have been quicker, and have answered
// from it already.
func (n *Node) agreed() (graph.Revision, error) {
	// In this order: what is applied when the index was taken is at or below it, or behind.
	index := n.raft().CommitIndex()
	applied := n.db().Applied().Revision
	for ; index > uint64(applied); index-- {
		var entry raft.Log
		switch err := n.log.GetLog(index, &entry); {
		case errors.Is(err, raft.ErrLogNotFound):
			return n.db().Applied().Revision, nil // It was applied meanwhile, and cut.
		case err != nil:
			return 0, err
		case entry.Type == raft.LogCommand || entry.Type == raft.LogConfiguration:
			return graph.Revision(index), nil
		}
	}
	return applied, nil
}

// confirmTimeouts is for how many election timeouts a leader waits for the others to
// confirm it: by then it has lost its leadership anyway.
const confirmTimeouts = 4
