package cluster

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/pembadb/pemba/graph"
)

// closedMachine returns a machine whose graph is closed, as one is that was replaced.
func closedMachine(t *testing.T, n *Node) *machine {
	t.Helper()
	config := n.graphConfig(filepath.Join(t.TempDir(), "state"))
	db, err := graph.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return &machine{db: db, stop: make(chan struct{})}
}

// TestAskGraphThatIsReplaced: who took a graph just before it was replaced and closed asks the
// one that came in its place. A tail ended with that error, and with it all its watchers.
func TestAskGraphThatIsReplaced(t *testing.T) {
	n := open(t, testConfig(t, t.TempDir()))
	writeSchema(t, n)
	written := write(t, n, create(viewer("d", "anna")))
	inForce := n.machine.Load()
	closed := closedMachine(t, n)

	asked := 0
	n.machine.Store(closed)
	revisions, err := askGraph(n, func(db *graph.DB) ([]graph.LoggedRevision, error) {
		asked++
		n.machine.Store(inForce) // Behind the loading of what was in force.
		return db.Changes(graph.DefaultStore, graph.Position{Revision: written.Revision}, 10)
	})
	if err != nil || asked != 2 || len(revisions) != 1 || revisions[0].Revision != written.Revision {
		t.Errorf("asked %d times, it says %v, %v", asked, revisions, err)
	}

	// A graph that is closed and was not replaced is that of a node that is closed.
	n.machine.Store(closed)
	_, err = n.changes(graph.DefaultStore, graph.Position{Revision: written.Revision}, 10)
	n.machine.Store(inForce)
	if !errors.Is(err, graph.ErrClosed) {
		t.Errorf("a graph that was closed for good: %v", err)
	}
}

// TestFlushOfAGraphThatIsReplaced: a graph that was replaced and closed cannot be flushed behind
// a large change, nor need it be. The node stopped as if its disk had failed.
func TestFlushOfAGraphThatIsReplaced(t *testing.T) {
	config := testConfig(t, t.TempDir())
	stopped := make(chan error, 1)
	config.OnFatal = func(err error) { stopped <- err }
	n := open(t, config)
	closed := closedMachine(t, n)
	n.flushLarge(closed)
	if err := n.usable(); err != nil {
		t.Fatalf("after the flush of a graph that was replaced: %v", err)
	}
	inForce := n.machine.Load()
	if err := inForce.stopRaft(); err != nil { // Or it would use what is stored next.
		t.Fatal(err)
	}
	n.machine.Store(closed)
	n.flushLarge(closed)
	n.machine.Store(inForce)
	if err := <-stopped; !errors.Is(err, graph.ErrClosed) {
		t.Errorf("after the flush of a graph in force that is closed: %v", err)
	}
}
