package cluster

import (
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/hashicorp/raft"
)

// knownFollowers returns the ids of the followers that a leader's Raft knows something of.
func (n *Node) knownFollowers() []string {
	r := n.machine.Load().transport.(*replication)
	r.mu.Lock()
	defer r.mu.Unlock()
	var ids []string
	for _, id := range slices.Sorted(maps.Keys(r.followers)) {
		ids = append(ids, string(id))
	}
	return ids
}

// TestForgetRemoved: what a leader knew of nodes that were removed, one that answered and
// one that did not, is forgotten, also when nobody is left. It was kept as long as the
// leader ran, and a node that came back under its id was taken for as silent as it was.
func TestForgetRemoved(t *testing.T) {
	nodes := openCluster(t, 3, func(c *Config) {
		c.OnFatal = func(err error) {
			if !errors.Is(err, ErrRemoved) {
				t.Errorf("the node stopped: %v", err)
			}
		}
	})
	leader := leaderOf(t, nodes)
	others := slices.DeleteFunc(slices.Clone(nodes), func(n *Node) bool { return n == leader })
	silent, answering := others[0], others[1]
	both := []string{silent.ID(), answering.ID()}
	slices.Sort(both)
	eventually(t, "both are heard of", func() bool { return slices.Equal(leader.knownFollowers(), both) })
	closeNode(t, silent)
	r := leader.machine.Load().transport.(*replication)
	eventually(t, silent.ID()+" is silent", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		f := r.followers[raft.ServerID(silent.ID())]
		return f != nil && f.silent != nil
	})
	writeSchema(t, leader) // It waits to be sent to the silent one.
	if err := leader.RemoveMember(testContext(t), silent.ID(), false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the silent one is forgotten", func() bool { return slices.Equal(leader.knownFollowers(), []string{answering.ID()}) })
	if err := leader.RemoveMember(testContext(t), answering.ID(), false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other one is forgotten", func() bool { return len(leader.knownFollowers()) == 0 })
	if !leader.leads() {
		t.Fatal("another Raft was looked at")
	}
}
