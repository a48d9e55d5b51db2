package cluster

import (
	"context"
	"fmt"
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
// others. The one that is alone with what it holds stops.
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

// compare returns the newest revision for which both have a note, and whether the
// notes are the same.
func compare(ours []checksumNote, theirs []*peerv1.Checksum) (at graph.Revision, same, found bool) {
	known := make(map[checksumNote]bool, len(theirs))
	revisions := make(map[[2]graph.Revision]bool, len(theirs))
	for _, c := range theirs {
		note := checksumNote{graph.Revision(c.GetRevision()), graph.Revision(c.GetSince()), c.GetValue()}
		known[note] = true
		revisions[[2]graph.Revision{note.revision, note.since}] = true
	}
	for i := len(ours) - 1; i >= 0; i-- {
		note := ours[i]
		if revisions[[2]graph.Revision{note.revision, note.since}] {
			return note.revision, known[note], true
		}
	}
	return 0, false, false
}

// A comparison is what the others said.
type comparison struct {
	same, different int // Other nodes.
	leaderDiffers   bool
	at              graph.Revision // The revision at which the last one differs.
	nodes           []string       // Which differ.
}

// isOdd reports whether this node is the odd one: more nodes hold something else than
// hold the same, or as many, among them the leader, whose state is what was answered
// from.
func (c comparison) isOdd() bool {
	return c.different > c.same+1 || c.different == c.same+1 && c.leaderDiffers
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
		if c.isOdd() {
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

func (n *Node) compareOnce(ctx context.Context) comparison {
	var c comparison
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	leader, _ := n.leader()
	type answer struct {
		server    raft.Server
		checksums []*peerv1.Checksum
	}
	servers := n.configuration().Servers
	answers := make(chan answer, len(servers))
	asked := 0
	for _, server := range servers {
		if string(server.ID) == n.dir.nodeID {
			continue
		}
		asked++
		go func() {
			a := answer{server: server}
			if client, err := n.client(server); err == nil {
				if response, err := client.GetChecksums(ctx, &peerv1.GetChecksumsRequest{}); err == nil {
					a.checksums = response.GetChecksums()
				}
			}
			answers <- a
		}()
	}
	var all []answer
	for range asked {
		all = append(all, <-answers)
	}
	// Taken last: these notes reach at least as far as those of the others did.
	ours := n.checksums.all(n.db().Applied())
	for _, a := range all {
		at, same, found := compare(ours, a.checksums)
		switch {
		case !found: // It is down, or far behind, or has begun another checksum.
		case same:
			c.same++
		default:
			c.different++
			c.at = at
			c.nodes = append(c.nodes, string(a.server.ID))
			c.leaderDiffers = c.leaderDiffers || a.server.ID == leader.ID
		}
	}
	return c
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
