package cluster

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	peerv1 "github.com/pembadb/pemba/cluster/pemba/peer/v1"
	"github.com/pembadb/pemba/graph"
)

// Nodes that applied the same entries hold the same state, or one of them is broken:
// a fault of the program, of the memory, of a disk below its checksums. The graph
// keeps a checksum of all that it wrote (graph.Applied.Checksum). At the same
// revisions every node notes it, and now and then compares its notes with those of the
// others. The odd one stops; judge says which that is.
const (
	// checksumEvery is the distance of the revisions, which is the same on all nodes,
	// and checksumsKept how many notes there are: some seconds of the fastest writes.
	checksumEvery = 64
	checksumsKept = 1024
)

// A checksumNote is the checksum behind the last entry below a revision.
type checksumNote struct {
	revision graph.Revision
	since    graph.Revision
	value    uint64
}

// checksums are the notes of a node.
type checksums struct {
	mu    sync.Mutex
	notes []checksumNote // Ascending by revision; at most checksumsKept.
	// differing are the nodes that were told of already.
	differing map[string]bool
}

// passed is told how far the graph is when an entry is about to be applied. The FSM
// calls it.
func (c *checksums) passed(applied graph.Applied, entry graph.Revision) {
	boundary := entry / checksumEvery * checksumEvery
	if applied.ChecksumSince == 0 || applied.Revision >= boundary {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.notes) == checksumsKept {
		c.notes = append(c.notes[:0], c.notes[checksumsKept/2:]...)
	}
	c.notes = append(c.notes, checksumNote{boundary, applied.ChecksumSince, applied.Checksum})
}

// all returns the notes, and as the last one what the graph has now.
func (c *checksums) all(applied graph.Applied) []checksumNote {
	c.mu.Lock()
	defer c.mu.Unlock()
	notes := append(make([]checksumNote, 0, len(c.notes)+1), c.notes...)
	if applied.ChecksumSince == 0 {
		return notes
	}
	return append(notes, checksumNote{applied.Revision + 1, applied.ChecksumSince, applied.Checksum})
}

// GetChecksums implements peerv1.PeerServiceServer.
func (s *peerService) GetChecksums(context.Context, *peerv1.GetChecksumsRequest) (*peerv1.GetChecksumsResponse, error) {
	n := s.node
	response := &peerv1.GetChecksumsResponse{}
	for _, note := range n.checksums.all(n.db().Applied()) {
		response.Checksums = append(response.Checksums, &peerv1.Checksum{
			Revision: uint64(note.revision), Since: uint64(note.since), Value: note.value,
		})
	}
	return response, nil
}

// A checksumPoint is where two nodes can be compared: behind the last entry below a
// revision, with checksums that began at the same one.
type checksumPoint struct{ revision, since graph.Revision }

// An otherState is what another node says of its state.
type otherState struct {
	id     raft.ServerID
	voter  bool
	values map[checksumPoint]uint64
}

func newOtherState(server raft.Server, notes []*peerv1.Checksum) otherState {
	s := otherState{id: server.ID, voter: server.Suffrage == raft.Voter, values: make(map[checksumPoint]uint64, len(notes))}
	for _, c := range notes {
		s.values[checksumPoint{graph.Revision(c.GetRevision()), graph.Revision(c.GetSince())}] = c.GetValue()
	}
	return s
}

// compare returns the newest revision for which both have a note, and whether the
// notes are the same.
func compare(ours []checksumNote, theirs otherState) (at graph.Revision, same, found bool) {
	for _, note := range slices.Backward(ours) {
		if value, found := theirs.values[checksumPoint{note.revision, note.since}]; found {
			return note.revision, value == note.value, true
		}
	}
	return 0, false, false
}

// agreeAgainst reports whether two others hold the same state, and we another: whether
// they do at the newest revision for which all three have a note. Where states differed
// once they differ ever after, so this says nothing that later revisions could take back.
func agreeAgainst(ours []checksumNote, a, b otherState) bool {
	for _, note := range slices.Backward(ours) {
		point := checksumPoint{note.revision, note.since}
		valueA, foundA := a.values[point]
		valueB, foundB := b.values[point]
		if foundA && foundB {
			return valueA == valueB && valueA != note.value
		}
	}
	return false
}

// A comparison is what came out when this node's state was compared with the others'.
type comparison struct {
	odd   bool           // This node is the odd one.
	at    graph.Revision // The revision at which the last one differs.
	nodes []string       // Which differ.
}

// judge compares this node's state with those of the others that answered, and decides
// whether it is the odd one. The rule:
//
//	A state is worth as many as hold it: the voters that do, and this node, which holds
//	its own. A node is odd when one other state is worth more than its own; or as much,
//	and the leader holds it, for that is the state that was answered from.
//
// What follows from it:
//
//   - It is one state that has to be worth more. Those who differ from this node and
//     from each other say nothing together: of three voters that all differ, the leader
//     has 1 against 1 and goes on, the two others have 1 against the leader's 1 and stop.
//   - Of two voters that differ, and of three or more of which all but two are down, the
//     one stops that does not lead. Nobody waits for those that are down, whose state may
//     be the same as this node's: as long as they are, two states would answer. Without
//     a known leader none of the two stops.
//   - Of three voters the one that differs from two stops, also where it leads. Of five,
//     two that agree stop when they reach the three; one of the three that reaches only
//     a part of the others judges by that part.
//   - A replica that differs stops where a majority, or the leader, stands against it,
//     and never makes a voter stop, however many replicas there are: they are often
//     the first that run a new version, and a fault in that must not end the cluster.
//   - A node that has not come to where the states part holds the same as both. It counts
//     for the one that asks, so that it keeps nobody from going on; once it has come
//     there, it is seen where it belongs.
func judge(ours []checksumNote, others []otherState, leader raft.ServerID) comparison {
	var c comparison
	worth := 1
	var different []otherState
	for _, other := range others {
		at, same, found := compare(ours, other)
		switch {
		case !found: // It is down, or far behind, or has begun another checksum.
		case !same:
			different = append(different, other)
			c.at, c.nodes = at, append(c.nodes, string(other.id))
		case other.voter:
			worth++
		}
	}
	different = slices.DeleteFunc(different, func(other otherState) bool { return !other.voter })
	for _, one := range different {
		theirs, leads := 0, false
		for _, other := range different {
			if agreeAgainst(ours, one, other) {
				theirs++
				leads = leads || other.id == leader
			}
		}
		c.odd = c.odd || theirs > worth || theirs == worth && leads
	}
	return c
}

// compareChecksums compares this node's state with that of the others, again and again.
func (n *Node) compareChecksums() {
	defer n.loops.Done()
	ctx, cancel := n.untilStop()
	defer cancel()
	for n.sleep(n.config.ChecksumPause) {
		if n.leads() && n.db().Applied().ChecksumSince == 0 {
			// Data of an older format has none.
			if _, err := n.proposeUpkeep(&graph.Mutation{StartChecksum: &graph.StartChecksum{}}); err != nil {
				n.config.Logger.Debug("the checksum of the state was not begun", "node", n.dir.nodeID, "error", err)
			}
		}
		c := n.compareOnce(ctx)
		if len(c.nodes) == 0 {
			continue
		}
		if c.odd {
			n.fail(fmt.Errorf("%w: at revision %d its checksum is another than that of %v, and it is the odd one; "+
				"keep its data directory for those who look into it, and let a new node take its place", ErrDiverged, c.at, c.nodes))
			return
		}
		n.tellDiffering(c)
	}
}

// tellDiffering logs, once for each, which nodes hold another state than this one.
func (n *Node) tellDiffering(c comparison) {
	n.checksums.mu.Lock()
	defer n.checksums.mu.Unlock()
	if n.checksums.differing == nil {
		n.checksums.differing = map[string]bool{}
	}
	for _, id := range c.nodes {
		if !n.checksums.differing[id] {
			n.checksums.differing[id] = true
			n.config.Logger.Error("another node holds a different state", "node", n.dir.nodeID, "other", id, "revision", c.at)
		}
	}
}

// compareOnce asks the others for their notes and compares this node's with them.
func (n *Node) compareOnce(ctx context.Context) comparison {
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	leader, _ := n.leader()
	servers := slices.DeleteFunc(n.configuration().Servers, func(server raft.Server) bool { return string(server.ID) == n.dir.nodeID })
	replies := askAll(servers, func(server raft.Server) (other otherState, err error) {
		err = n.ask(ctx, server, func(ctx context.Context, client peerv1.PeerServiceClient) error {
			response, err := client.GetChecksums(ctx, &peerv1.GetChecksumsRequest{})
			if err != nil {
				return err
			}
			other = newOtherState(server, response.GetChecksums())
			return nil
		})
		return other, err
	})
	var others []otherState
	for range servers {
		if r := <-replies; r.err == nil {
			others = append(others, r.said)
		}
	}
	if now, _ := n.leader(); now.ID != leader.ID {
		// It changed meanwhile. Two nodes that each took the other for it would both stop.
		leader = raft.Server{}
	}
	// Taken last: these notes reach at least as far as those of the others did.
	return judge(n.checksums.all(n.db().Applied()), others, leader.ID)
}

// untilStop returns a context that ends when the node's loops are to.
func (n *Node) untilStop() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		select {
		case <-n.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// checksumPauseDefault is the time between two comparisons.
const checksumPauseDefault = 10 * time.Second
