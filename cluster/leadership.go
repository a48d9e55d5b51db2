package cluster

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// transferStuck is how long Raft may refuse entries because of a transfer of the
// leadership that is none of this node's: in hashicorp/raft a transfer that meets the end
// of a replication can leave its mark for good (its issue 696). A transfer itself ends
// within an election timeout.
const transferStuck = 30 * time.Second

// watchLeadership keeps Node.leading. On each election that this node wins it
// proposes a barrier, again where Raft refuses it, and leads for its readers once one is
// applied. Another one follows where Raft refuses a write of a node that leads.
func (n *Node) watchLeadership(m *machine) {
	defer m.loops.Done()
	// A machine that is replaced leads no more.
	defer n.leading.Store(0)
	type barrier struct {
		term uint64
		err  error
	}
	var (
		passed chan barrier     // Of the newest election only.
		again  <-chan time.Time // When the next one is proposed; nil for never.
		// refused is since when, in this term, Raft refuses every entry because of a transfer
		// of the leadership that nobody asked for; zero where it does not.
		refused time.Time
	)
	propose := func() {
		to := make(chan barrier, 1)
		passed = to
		// Apart, for the future of a Raft that shuts down may never answer.
		go func() {
			term := m.raft.CurrentTerm()
			to <- barrier{term, m.raft.Barrier(0).Error()}
		}()
	}
	for {
		select {
		case <-m.stop:
			return
		case won := <-m.raft.LeaderCh():
			if was := n.leading.Swap(0); was != 0 {
				n.config.Logger.Info("no longer leads", "node", n.dir.nodeID, "term", was)
			}
			passed, again, refused = nil, nil, time.Time{}
			if !won {
				continue
			}
			if plantedEarlyLead() {
				n.leading.Store(m.raft.CurrentTerm())
			}
			propose()
		case <-m.refusing:
			// Of a leader that leads: whether that ends is found out as at its election.
			if passed == nil && again == nil && m.raft.State() == raft.Leader {
				propose()
			}
		case <-again:
			again = nil
			if m.raft.State() == raft.Leader {
				propose()
			}
		case b := <-passed:
			passed = nil
			if b.err != nil {
				if refused.IsZero() {
					n.config.Logger.Warn("an entry of the leader's own did not come through", "node", n.dir.nodeID, "term", b.term, "error", b.err)
				}
				// Raft says on LeaderCh when the leadership was lost. It was not where Raft
				// refused, since it was handing the leadership on and nobody took it.
				again = time.After(retryPauseMax)
				switch {
				case !errors.Is(b.err, raft.ErrLeadershipTransferInProgress) || n.handingOver.Load() > 0:
					refused = time.Time{}
				case refused.IsZero():
					refused = time.Now()
				case time.Since(refused) > cmp.Or(n.config.transferStuck, transferStuck):
					// Nobody else is elected meanwhile, for it goes on with its heartbeats.
					n.fail(fmt.Errorf("all entries of term %d are refused since %v: Raft takes itself to be handing its leadership on, and is not; "+
						"another node leads once this one is down, and a restart of it mends it", b.term, time.Since(refused).Round(time.Second)))
					return
				}
				continue
			}
			refused = time.Time{}
			if n.leading.Load() != b.term { // It is where entries are taken again.
				// The line comes first: Open returns once the node leads.
				n.config.Logger.Info("leads the cluster", "node", n.dir.nodeID, "term", b.term)
			}
			n.leading.Store(b.term)
			n.progress.broadcast()
		}
	}
}
