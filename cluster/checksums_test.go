package cluster

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	peerv1 "github.com/pembadb/pemba/cluster/pemba/peer/v1"
	"github.com/pembadb/pemba/graph"
)

// TestJudgeStates: which node is the odd one, in clusters of all shapes. A node is
// written as its name and what it holds; one that is down is not there.
func TestJudgeStates(t *testing.T) {
	type node struct {
		name    string // Replicas begin with r.
		holds   uint64 // Until revision 128 all hold the same.
		reaches graph.Revision
	}
	at := func(name string, holds uint64) node { return node{name, holds, 192} }
	for _, c := range []struct {
		what   string
		leader string
		nodes  []node
		odd    []string // In the order of nodes.
	}{
		{"one voter", "n1", []node{at("n1", 1)}, nil},
		{"all hold the same", "n1", []node{at("n1", 1), at("n2", 1), at("n3", 1)}, nil},

		{"two voters, and the leader goes on", "n1", []node{at("n1", 1), at("n2", 2)}, []string{"n2"}},
		{"two voters without a leader", "", []node{at("n1", 1), at("n2", 2)}, nil},
		{"three voters, of which one is down", "n2", []node{at("n1", 1), at("n2", 2)}, []string{"n1"}},
		{"three voters, of which the leader is down", "n3", []node{at("n1", 1), at("n2", 2)}, nil},

		{"a follower against two", "n1", []node{at("n1", 1), at("n2", 1), at("n3", 2)}, []string{"n3"}},
		{"the leader against two", "n1", []node{at("n1", 1), at("n2", 2), at("n3", 2)}, []string{"n1"}},
		{"three that all differ", "n1", []node{at("n1", 1), at("n2", 2), at("n3", 3)}, []string{"n2", "n3"}},
		{"three that all differ, without a leader", "", []node{at("n1", 1), at("n2", 2), at("n3", 3)}, nil},

		{"two against three", "n1", []node{at("n1", 1), at("n2", 1), at("n3", 2), at("n4", 2), at("n5", 2)}, []string{"n1", "n2"}},
		{"two against two and one", "n5", []node{at("n1", 1), at("n2", 1), at("n3", 2), at("n4", 2), at("n5", 3)}, []string{"n5"}},
		{"two with the leader against two and one", "n1", []node{at("n1", 1), at("n2", 1), at("n3", 2), at("n4", 2), at("n5", 3)}, []string{"n3", "n4", "n5"}},
		{"five that all differ", "n3", []node{at("n1", 1), at("n2", 2), at("n3", 3), at("n4", 4), at("n5", 5)}, []string{"n1", "n2", "n4", "n5"}},
		{"five, of which one is down, two against two", "n2", []node{at("n1", 1), at("n2", 1), at("n3", 2), at("n4", 2)}, []string{"n3", "n4"}},
		{"five, of which two are down, the leader against two", "n1", []node{at("n1", 1), at("n2", 2), at("n3", 2)}, []string{"n1"}},

		{"a replica", "n1", []node{at("n1", 1), at("r1", 2)}, []string{"r1"}},
		{"more replicas than voters", "n1", []node{at("n1", 1), at("r1", 2), at("r2", 2), at("r3", 2)}, []string{"r1", "r2", "r3"}},
		{"a replica beside two voters that differ", "n1", []node{at("n1", 1), at("n2", 2), at("r1", 2)}, []string{"n2"}},
		{"a replica with a third state", "n1", []node{at("n1", 1), at("n2", 2), at("r1", 3)}, []string{"n2", "r1"}},
		{"a replica that reaches one voter, which does not lead", "n1", []node{at("n2", 1), at("r1", 2)}, nil},
		{"replicas do not help a voter", "n1", []node{at("n1", 1), at("n2", 1), at("n3", 2), at("r1", 2), at("r2", 2)}, []string{"n3", "r1", "r2"}},

		{"a voter that has not come so far", "n1", []node{at("n1", 1), at("n2", 2), {"n3", 2, 128}}, nil},
		{"a voter that has come further", "n1", []node{at("n1", 1), at("n2", 2), {"n3", 2, 256}}, []string{"n1"}},
		{"one that shares no revision", "n1", []node{at("n1", 1), at("n2", 2), {"n3", 2, 0}}, []string{"n2"}},
	} {
		t.Run(c.what, func(t *testing.T) {
			notes := func(n node) (notes []checksumNote) {
				for revision := graph.Revision(64); revision <= n.reaches; revision += 64 {
					value := uint64(revision)
					if revision > 128 {
						value += n.holds
					}
					notes = append(notes, checksumNote{revision, 1, value})
				}
				return notes
			}
			var odd []string
			for _, self := range c.nodes {
				var others []otherState
				for _, n := range c.nodes {
					if n.name == self.name {
						continue
					}
					var sent []*peerv1.Checksum
					for _, note := range notes(n) {
						sent = append(sent, &peerv1.Checksum{Revision: uint64(note.revision), Since: uint64(note.since), Value: note.value})
					}
					server := raft.Server{ID: raft.ServerID(n.name), Suffrage: raft.Voter}
					if n.name[0] == 'r' {
						server.Suffrage = raft.Nonvoter
					}
					others = append(others, newOtherState(server, sent))
				}
				for range 3 { // In any order.
					if got := judge(notes(self), others, raft.ServerID(c.leader)); got.odd && !slices.Contains(odd, self.name) {
						odd = append(odd, self.name)
						if len(got.nodes) == 0 || got.at <= 128 {
							t.Errorf("%s is odd and differs from %v at revision %d", self.name, got.nodes, got.at)
						}
					}
					if len(others) > 1 {
						others = append(others[1:], others[0])
					}
				}
			}
			if !slices.Equal(odd, c.odd) {
				t.Errorf("odd are %v, expected %v", odd, c.odd)
			}
		})
	}
}

// TestAgreeAgainst: two others stand together against a node only where all three can be
// compared, and the two hold the same there and it another.
func TestAgreeAgainst(t *testing.T) {
	ours := []checksumNote{{64, 1, 10}, {128, 1, 20}, {192, 1, 30}}
	other := func(values ...checksumNote) otherState {
		s := otherState{voter: true, values: map[checksumPoint]uint64{}}
		for _, v := range values {
			s.values[checksumPoint{v.revision, v.since}] = v.value
		}
		return s
	}
	for _, c := range []struct {
		what string
		a, b otherState
		want bool
	}{
		{"both at the same revision", other(checksumNote{192, 1, 31}), other(checksumNote{192, 1, 31}), true},
		{"one is further", other(checksumNote{128, 1, 21}), other(checksumNote{128, 1, 21}, checksumNote{192, 1, 32}), true},
		{"the two differ", other(checksumNote{192, 1, 31}), other(checksumNote{192, 1, 32}), false},
		{"the two differ since", other(checksumNote{128, 1, 21}, checksumNote{192, 1, 31}), other(checksumNote{128, 1, 21}, checksumNote{192, 1, 32}), false},
		{"all three agree where they meet", other(checksumNote{64, 1, 10}, checksumNote{128, 1, 21}), other(checksumNote{64, 1, 10}, checksumNote{192, 1, 31}), false},
		{"they never meet", other(checksumNote{128, 1, 21}), other(checksumNote{192, 1, 31}), false},
		{"their checksums began elsewhere", other(checksumNote{192, 1, 31}), other(checksumNote{192, 2, 31}), false},
		{"they meet where we were not", other(checksumNote{200, 1, 5}), other(checksumNote{200, 1, 5}), false},
	} {
		if got := agreeAgainst(ours, c.a, c.b); got != c.want {
			t.Errorf("%s: %t", c.what, got)
		}
		if got := agreeAgainst(ours, c.b, c.a); got != c.want {
			t.Errorf("%s, the other way round: %t", c.what, got)
		}
	}
}

// TestAllDiffer: where all three hold different states, the leader goes on. It once
// stopped too when it was the first to compare, and all that was answered from was gone.
func TestAllDiffer(t *testing.T) {
	nodes := openCluster(t, 3, func(c *Config) { c.ChecksumPause = time.Hour })
	leader := nodes[0]
	writeSchema(t, leader)
	for leaderOf(t, nodes) != leader {
		if err := nodes[1].TransferLeadership(testContext(t), leader.ID()); err != nil {
			t.Logf("hand the leadership on: %v", err) // It may be on its way.
		}
	}
	eventually(t, "all is quiet", func() bool {
		last := leader.raft().LastIndex()
		return !slices.ContainsFunc(nodes, func(n *Node) bool { return uint64(n.db().Applied().Revision) != last })
	})
	for i, n := range nodes[1:] {
		// It takes something else for its next entry.
		applied := n.db().Applied()
		if _, err := n.db().Commit(graph.Commit{
			Revision: applied.Revision + 1, Term: applied.Term, Stamp: applied.Stamp, Store: graph.DefaultStore,
			Changes: []graph.Change{{Kind: graph.Created, Tuple: viewer("planted", fmt.Sprint("eve", i))}},
		}); err != nil {
			t.Fatal(err)
		}
	}
	last := write(t, leader, create(viewer("d1", "anna"))).Revision
	last = max(last, write(t, leader, create(viewer("d2", "anna"))).Revision)
	eventually(t, "all have applied what was written", func() bool {
		return !slices.ContainsFunc(nodes, func(n *Node) bool { return n.db().Applied().Revision < last })
	})
	for _, n := range nodes {
		var c comparison
		eventually(t, n.ID()+" has the answers of the others", func() bool {
			c = n.compareOnce(testContext(t))
			return len(c.nodes) == 2
		})
		if leads := n.leads(); leads == c.odd {
			t.Errorf("%s leads: %t; it is the odd one: %t", n.ID(), leads, c.odd)
		}
	}
}
