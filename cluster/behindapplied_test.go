package cluster

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	peerv1 "github.com/pembadb/pemba/cluster/pemba/peer/v1"
	"github.com/pembadb/pemba/graph"
)

// useStateOf puts the state of a node into force at another, whose Raft is away. The one
// that has it need not lead, as if it had led when it began to send.
func useStateOf(t *testing.T, from, to *Node) {
	t.Helper()
	f := &fetch{node: to, from: from.ID(), revision: from.db().Applied().Revision}
	take := func(message *peerv1.SendStateResponse) error {
		switch part := message.GetPart().(type) {
		case *peerv1.SendStateResponse_Header:
			return f.begin(part.Header)
		case *peerv1.SendStateResponse_Chunk:
			chunk, err := graph.DecodeStateChunk(part.Chunk)
			if err != nil {
				return err
			}
			if err := f.writer.Write(chunk); err != nil || !chunk.Done {
				return err
			}
			err = f.writer.Finish(chunk.Total)
			f.writer = nil
			return err
		}
		return fmt.Errorf("a %T came", message.GetPart())
	}
	if err := from.sendState(testContext(t), to.ID(), &peerv1.SendStateRequest{Revision: uint64(f.revision)}, take); err != nil {
		t.Fatal(err)
	}
	if err := to.useState(testContext(t), f.folder, f.header); err != nil {
		t.Fatal(err)
	}
}

// TestStateAheadOfWhatLeaderApplied: a node has put a state into force that is of a later
// revision than the leader has applied, whose log is cut and begins behind what the leader
// takes the node to have. All of the state is agreed and in the leader's log, so the node
// answers the leader's token that it has the state, and follows. It refused the token: where
// it was needed for a majority, nothing was ever agreed to again.
func TestStateAheadOfWhatLeaderApplied(t *testing.T) {
	nodes := openCluster(t, 3, func(c *Config) {
		c.SnapshotThreshold, c.TrailingLogs, c.SnapshotInterval = 16, 4, time.Millisecond
	})
	n1, n2, n3 := nodes[0], nodes[1], nodes[2]
	writeSchema(t, n1)
	leadWith(t, n2, n1)
	eventually(t, "n3 has it all", func() bool { return n3.raft().LastIndex() == n2.raft().LastIndex() })
	away(t, n3)
	fillState(t, n2, 60)
	isCut(t, n2, 40)

	// The leader's FSM stands still, as if the leader did not know what is agreed.
	var writing sync.WaitGroup
	defer writing.Wait()
	n2.progress.mu.Lock()
	goOn := sync.OnceFunc(n2.progress.mu.Unlock)
	defer goOn()
	agreed := func(document string, before uint64) {
		t.Helper()
		writing.Go(func() {
			ctx := testContext(t)
			_, err := n2.Write(ctx, create(viewer(document, "anna")))
			for errors.Is(err, ErrNotLeader) && ctx.Err() == nil {
				_, err = n2.Write(ctx, create(viewer(document, "anna")))
			}
			if err != nil {
				t.Errorf("write %s: %v", document, err)
			}
		})
		eventually(t, document+" is agreed", func() bool { return n2.raft().CommitIndex() > before })
	}
	for _, document := range []string{"a", "b", "c", "d", "e"} {
		agreed(document, n2.raft().CommitIndex())
	}
	eventually(t, "n1 has it all", func() bool { return uint64(n1.db().Applied().Revision) == n2.raft().LastIndex() })
	revision := n1.db().Applied().Revision
	useStateOf(t, n1, n3)
	// Now n3 is needed. If n1 takes long to go, there may be an election meanwhile: then it
	// is the first entry of the new term that is agreed to, and the write comes when the
	// leader goes on.
	before := n2.raft().CommitIndex()
	closeNode(t, n1)
	agreed("after", before)
	if applied := n2.db().Applied().Revision; applied >= revision {
		t.Errorf("the leader has applied %d, and the state is of %d, so that nothing was shown", applied, revision)
	}
	goOn()
	writing.Wait()
	if !has(t, n3, Consistency{Mode: Linearizable}, viewer("after", "anna")) {
		t.Error("n3 does not have what was written with its help")
	}
}
