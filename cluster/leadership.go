package cluster

// watchLeadership keeps Node.leading. On each election that this node wins it
// proposes a barrier, and leads for its readers once that is applied.
func (n *Node) watchLeadership(m *machine) {
	defer m.loops.Done()
	// A machine that is replaced leads no more.
	defer n.leading.Store(0)
	type barrier struct {
		term uint64
		err  error
	}
	var passed chan barrier // Of the newest election only.
	for {
		select {
		case <-m.stop:
			return
		case won := <-m.raft.LeaderCh():
			if was := n.leading.Swap(0); was != 0 {
				n.config.Logger.Info("no longer leads", "node", n.dir.nodeID, "term", was)
			}
			passed = nil
			if !won {
				continue
			}
			if plantedEarlyLead() {
				n.leading.Store(m.raft.CurrentTerm())
			}
			to := make(chan barrier, 1)
			passed = to
			// Apart, for the future of a Raft that shuts down may never answer.
			go func() {
				term := m.raft.CurrentTerm()
				to <- barrier{term, m.raft.Barrier(0).Error()}
			}()
		case b := <-passed:
			passed = nil
			if b.err != nil {
				// Raft says on LeaderCh when the leadership was lost.
				n.config.Logger.Warn("the first entry of the term did not come through", "node", n.dir.nodeID, "term", b.term, "error", b.err)
				continue
			}
			// The line comes first: Open returns once the node leads.
			n.config.Logger.Info("leads the cluster", "node", n.dir.nodeID, "term", b.term)
			n.leading.Store(b.term)
			n.progress.broadcast()
		}
	}
}
