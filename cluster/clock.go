package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	peerv1 "github.com/pembadb/pemba/cluster/pemba/peer/v1"
	"github.com/pembadb/pemba/graph"
)

// Lifetimes end by the clock of the node that is asked, and by the stamps that the
// leader gives to entries. So a node whose clock is far from that of most voters
// neither leads nor answers. Each node asks the others what time it is, now and then;
// in between, a clock that was set is noticed, for it then went another way than the
// time that passed.

// clocks is what a node knows of how its clock stands to the others'. What is known is
// replaced as a whole, for every read looks at it.
type clocks struct {
	known atomic.Pointer[clockKnowledge]
} // Nil before the others were asked.

// A clockKnowledge is what was found when the others were asked. It does not change.
type clockKnowledge struct {
	// off is by how much the others' clock is ahead of this one, where more than half
	// of the voters are more than ClockSkewMax away from it and agree; else zero.
	off time.Duration
	// asked is when the others were asked, and was what this clock said then.
	asked time.Time
	was   time.Time
	// better are voters whose clocks are those of most.
	better []raft.Server
}

// clockSuspicion is by how much a clock may go another way than the time that passed
// before it is not believed until the others were asked.
const clockSuspicion = ClockSkewMax / 2

// clockPatience is how long an answer may take for its clock to count: it lies
// somewhere in between.
const clockPatience = time.Second

// clockTrusted returns why this node's clock cannot be believed, an ErrClock, or nil.
func (n *Node) clockTrusted() error {
	_, err := n.trustedNow()
	return err
}

// trustedNow returns the node's time, or an ErrClock where that cannot be believed. What
// is judged is the very time that it returns.
func (n *Node) trustedNow() (graph.Instant, error) {
	// Without the monotonic reading that Go's own clock carries, or a clock that was set
	// would not be noticed.
	now := n.config.Now().Round(0)
	if n.peers == nil {
		return graph.InstantOf(now), nil
	}
	c := n.clocks.known.Load()
	if c == nil {
		return graph.InstantOf(now), nil
	}
	if c.off != 0 {
		return 0, fmt.Errorf("%w: it is %v %s most others", ErrClock, c.off.Abs().Round(time.Millisecond), behindOrAhead(c.off))
	}
	if jump := now.Sub(c.was) - time.Since(c.asked); jump.Abs() > clockSuspicion {
		return 0, fmt.Errorf("%w: it jumped %s by %v, and no majority of the voters has agreed with it since",
			errClockSet, forwardOrBack(jump), jump.Abs().Round(time.Millisecond))
	}
	return graph.InstantOf(now), nil
}

// errClockSet is the ErrClock of a clock that was set and may well be right: the others
// are yet to be asked, or were, and too few agree with each other to tell.
var errClockSet = fmt.Errorf("%w", ErrClock)

// awaitClock returns when this node's clock can be believed, or an ErrClock when it
// cannot. One that was set just now is compared with the others first.
func (n *Node) awaitClock(ctx context.Context) error {
	err := n.clockTrusted()
	if !errors.Is(err, errClockSet) {
		return err
	}
	n.fitness.check()
	late := n.waitUntil(ctx, func() bool {
		err = n.clockTrusted()
		return !errors.Is(err, errClockSet)
	}, err)
	return cmp.Or(err, late)
}

func forwardOrBack(jump time.Duration) string {
	if jump > 0 {
		return "forward"
	}
	return "back"
}

func behindOrAhead(off time.Duration) string {
	if off > 0 {
		return "behind"
	}
	return "ahead of"
}

// askClocks compares this node's clock with those of the voters.
func (n *Node) askClocks(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, clockPatience)
	defer cancel()
	configuration := n.configuration()
	voters, others := countVoters(configuration), votersBut(configuration, n.dir.nodeID)
	agreeing := voters - len(others) // With itself, if it has a vote.
	// What it says is by how much the other's clock is ahead of this one.
	type reading = reply[time.Duration]
	// Read before the others are asked: whatever happens to the clock from here on is
	// noticed by trustedNow.
	was, asked := n.config.Now().Round(0), time.Now()
	readings := askAll(others, func(server raft.Server) (ahead time.Duration, err error) {
		err = n.ask(ctx, server, func(ctx context.Context, client peerv1.PeerServiceClient) error {
			start := time.Now() // Not before: what it took to find the connection is no part of the way.
			response, err := client.Confirm(ctx, &peerv1.ConfirmRequest{})
			if err != nil {
				return err
			}
			// It was read somewhere between question and answer.
			middle := was.Add(start.Sub(asked) + time.Since(start)/2)
			ahead = graph.Instant(response.GetClock()).Time().Sub(middle)
			return nil
		})
		return ahead, err
	})
	var ahead []reading
	for range others {
		if r := <-readings; r.err == nil {
			ahead = append(ahead, r)
			if r.said.Abs() <= ClockSkewMax {
				agreeing++
			}
		}
	}
	slices.SortFunc(ahead, func(a, b reading) int { return cmp.Compare(a.said, b.said) })
	// The largest group of others that agree with each other: within twice what two of
	// them may be from what is right.
	var group []reading
	for i := range ahead {
		j := i
		for j < len(ahead) && ahead[j].said-ahead[i].said <= 2*ClockSkewMax {
			j++
		}
		if j-i > len(group) {
			group = ahead[i:j]
		}
	}
	if agreeing > voters/2 {
		n.clocks.known.Store(&clockKnowledge{asked: asked, was: was})
		return
	}
	if len(group) <= voters/2 {
		// Nobody can tell: what was known stands, and so does a suspicion. Of two voters
		// it is always so when they disagree, and the one whose clock jumped is silent.
		return
	}
	if middle := group[len(group)/2].said; middle.Abs() > ClockSkewMax {
		c := &clockKnowledge{off: middle, asked: asked, was: was}
		for _, r := range group {
			c.better = append(c.better, r.server)
		}
		n.clocks.known.Store(c)
	}
}
