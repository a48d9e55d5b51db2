package cluster

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// A leader whose clock is wrong or whose disk is full does its heartbeats as well as any
// other, so that Raft keeps it. It finds out by itself, and hands the leadership on.

// fitness is what a node knows of whether another could lead better.
type fitness struct {
	wake chan struct{} // Has room for one.
	// lonely says that no voter was found that has more room, when last looked.
	lonely atomic.Bool
}

// fitnessPauseMin is the least time between two looks, however many ask for one.
const fitnessPauseMin = 20 * time.Millisecond

// followFitness compares this node's clock with those of the others, again and again,
// and hands the leadership on when this node is not fit for it.
func (n *Node) followFitness() {
	defer n.loops.Done()
	ctx, cancel := n.untilStop()
	defer cancel()
	told := false
	for {
		suspected := errors.Is(n.clockTrusted(), errClockSet)
		n.askClocks(ctx)
		err := n.clockTrusted()
		if suspected {
			n.progress.broadcast()
		}
		if (err != nil) != told {
			told = !told
			if told {
				n.config.Logger.Error("this node does not answer until its clock is right", "node", n.dir.nodeID, "error", err)
			} else {
				n.config.Logger.Info("the clock is believed again", "node", n.dir.nodeID)
			}
			n.progress.broadcast()
		}
		if n.raft().State() == raft.Leader {
			switch full := n.room.check(0); {
			case err != nil:
				better := n.clocks.known.Load().better
				if len(better) == 0 {
					better = n.otherVoters() // Nobody knows whose is right, but this one was set.
				}
				n.handOverBecause(ctx, better, err)
			case full != nil:
				better := n.roomier(ctx)
				n.fitness.lonely.Store(len(better) == 0)
				n.handOverBecause(ctx, better, full)
			default:
				n.fitness.lonely.Store(false)
			}
		}
		timer := time.NewTimer(n.config.ClockPause)
		select {
		case <-n.stop:
			timer.Stop()
			return
		case <-n.fitness.wake:
			timer.Stop()
			if !n.sleep(fitnessPauseMin) {
				return
			}
		case <-timer.C:
		}
	}
}

// handOverBecause hands the leadership on, and says why.
func (n *Node) handOverBecause(ctx context.Context, to []raft.Server, because error) {
	if len(to) == 0 {
		return
	}
	if err := n.handOver(ctx, to); err != nil {
		n.config.Logger.Warn("nobody takes the leadership", "node", n.dir.nodeID, "because", because, "error", err)
		return
	}
	n.config.Logger.Warn("this node is not fit to lead", "node", n.dir.nodeID, "because", because)
}

// mayHandOver reports whether somebody else may have the room for what this leader has
// not, and sees to it that this is found out.
func (n *Node) mayHandOver() bool {
	if n.peers == nil || n.voters() < 2 || n.fitness.lonely.Load() {
		return false
	}
	n.fitness.check()
	return true
}

// check has the fitness found out soon.
func (f *fitness) check() {
	nudge(f.wake)
}

// roomier returns the voters whose disks have room for writes. One that hangs keeps
// nobody from finding the others.
func (n *Node) roomier(ctx context.Context) []raft.Server {
	var found []raft.Server
	for _, r := range n.askStatus(ctx, n.otherVoters()) {
		if r.err == nil && r.said.FreeBytes >= r.said.FreeBytesMin {
			found = append(found, r.server)
		}
	}
	return found
}
