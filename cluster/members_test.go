package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pembadb/pemba/graph"
)

// freeAddr returns an address of this machine that nobody listens on.
func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// peerConfig is a node that can have peers.
func peerConfig(t testing.TB, id string) Config {
	config := testConfig(t, t.TempDir())
	config.NodeID, config.RaftAddr = id, freeAddr(t)
	config.ElectionTimeout = 200 * time.Millisecond
	config.MemberPause = 10 * time.Millisecond
	if testing.Verbose() {
		config.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("at", id)
	}
	return config
}

// joinVia lets a node join by asking a member.
func joinVia(member *Node) func(context.Context, Joining) (Joined, error) {
	return func(ctx context.Context, j Joining) (Joined, error) { return member.AddMember(ctx, j) }
}

// openCluster opens nodes n1, n2 and so on, which are all voters then.
func openCluster(t testing.TB, count int, configure func(*Config)) []*Node {
	t.Helper()
	var nodes []*Node
	for i := range count {
		config := peerConfig(t, fmt.Sprintf("n%d", i+1))
		if configure != nil {
			configure(&config)
		}
		if i > 0 {
			config.Join = joinVia(nodes[0])
		}
		nodes = append(nodes, open(t, config))
	}
	for _, n := range nodes {
		eventually(t, n.ID()+" is ready, and all have votes", func() bool { return n.Ready() == nil && n.voters() == count })
	}
	return nodes
}

// leaderOf returns the node that leads.
func leaderOf(t testing.TB, nodes []*Node) *Node {
	t.Helper()
	var leader *Node
	eventually(t, "one leads", func() bool {
		i := slices.IndexFunc(nodes, (*Node).leads)
		if i >= 0 {
			leader = nodes[i]
		}
		return i >= 0
	})
	return leader
}

// TestCluster: three nodes form a cluster, each takes writes and answers at every
// consistency.
func TestCluster(t *testing.T) {
	nodes := openCluster(t, 3, nil)
	writeSchema(t, nodes[2])
	for i, n := range nodes {
		tuple := viewer(fmt.Sprintf("d%d", i), "anna")
		result := write(t, n, create(tuple))
		if !has(t, n, Consistency{}, tuple) {
			t.Errorf("%s does not have what was written by way of it", n.ID())
		}
		for _, other := range nodes {
			for _, c := range []Consistency{
				{Mode: AtLeast, Revision: result.Revision},
				{Mode: Exactly, Revision: result.Revision},
				{Mode: Linearizable},
				{Mode: AsOf, Instant: result.Instant},
			} {
				if !has(t, other, c, tuple) {
					t.Errorf("%s does not have, %v, what %s wrote", other.ID(), c.Mode, n.ID())
				}
			}
		}
	}
	for _, n := range nodes {
		members, err := n.Members(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range members {
			if m.Err != nil || !m.Voter || m.Status.NodeID != m.ID {
				t.Errorf("%s says of %s: %+v", n.ID(), m.ID, m)
			}
		}
	}
}

// TestInstall: a node that joins when the log is gone is sent the state, and a member
// that was away for long too.
func TestInstall(t *testing.T) {
	small := func(c *Config) {
		c.SnapshotThreshold, c.TrailingLogs, c.SnapshotInterval = 16, 4, time.Millisecond
	}
	nodes := openCluster(t, 1, small)
	writeSchema(t, nodes[0])
	var last graph.Revision
	for i := range 200 {
		last = write(t, nodes[0], create(viewer(fmt.Sprintf("d%d", i), "anna"))).Revision
	}
	eventually(t, "the log is cut", func() bool { first, _ := nodes[0].log.FirstIndex(); return first > 100 })
	config := peerConfig(t, "n2")
	small(&config)
	config.Join = joinVia(nodes[0])
	n2 := open(t, config)
	eventually(t, "n2 is ready and votes", func() bool { return n2.Ready() == nil && n2.voters() == 2 })
	for i := range 200 {
		if tuple := viewer(fmt.Sprintf("d%d", i), "anna"); !has(t, n2, Consistency{Mode: AtLeast, Revision: last}, tuple) {
			t.Fatalf("n2 does not have %v", tuple)
		}
	}
	// It goes on, and resumes.
	write(t, n2, create(viewer("later", "anna")))
	closeNode(t, n2)
	config.Join = nil
	n2 = open(t, config)
	eventually(t, "n2 is ready again", func() bool { return n2.Ready() == nil })
	if !has(t, n2, Consistency{Mode: Linearizable}, viewer("later", "anna")) {
		t.Error("n2 does not have the last tuple")
	}
}

// TestRecover: of a cluster that lost its majority, one node goes on by itself with
// all that it has, under another id, and refuses those that come back.
func TestRecover(t *testing.T) {
	var configs []Config
	nodes := openCluster(t, 3, func(c *Config) { configs = append(configs, *c) })
	writeSchema(t, nodes[0])
	last := write(t, nodes[0], create(viewer("d", "anna"))).Revision
	was := nodes[0].ClusterID()
	eventually(t, "all have the tuple", func() bool {
		return !slices.ContainsFunc(nodes, func(n *Node) bool { return n.db().Applied().Revision < last })
	})
	for _, n := range nodes {
		closeNode(t, n)
	}
	recovered, err := Recover(testContext(t), configs[1])
	if err != nil {
		t.Fatal(err)
	}
	if recovered.Was != was || recovered.ClusterID == was || recovered.Revision <= last || len(recovered.Lost) != 2 {
		t.Errorf("recovered %+v of cluster %x, at %d", recovered, was, last)
	}
	n2 := open(t, configs[1])
	if !has(t, n2, Consistency{Mode: Linearizable}, viewer("d", "anna")) || n2.ClusterID() != recovered.ClusterID {
		t.Errorf("the node has not what it had, or not its id %x", n2.ClusterID())
	}
	// Another node joins, and an old one does not get in.
	n4 := peerConfig(t, "n4")
	n4.Join = joinVia(n2)
	open4 := open(t, n4)
	eventually(t, "n4 votes", func() bool { return open4.Ready() == nil && open4.voters() == 2 })
	old := open(t, configs[0])
	ctx, cancel := context.WithTimeout(testContext(t), 500*time.Millisecond)
	defer cancel()
	if _, err := old.Snapshot(ctx, graph.DefaultStore, Consistency{Mode: Linearizable}, graph.Overlay{}); err == nil {
		t.Error("a node of the lost cluster answers")
	}
}

// TestDiverged: the node that is alone with its state stops.
func TestDiverged(t *testing.T) {
	var fault error
	stopped := make(chan error, 1)
	nodes := openCluster(t, 3, func(c *Config) {
		c.ChecksumPause = 20 * time.Millisecond
		if c.NodeID == "n3" {
			c.OnFatal = func(err error) { stopped <- err }
		}
	})
	writeSchema(t, nodes[0])
	write(t, nodes[0], create(viewer("d", "anna")))
	leader := leaderOf(t, nodes)
	if leader == nodes[2] {
		if err := leader.TransferLeadership(testContext(t), "n1"); err != nil {
			t.Fatal(err)
		}
	}
	// n3 takes something else for its next entry, which must not be on its way yet.
	eventually(t, "all is quiet", func() bool {
		last := leaderOf(t, nodes).raft().LastIndex()
		return !slices.ContainsFunc(nodes, func(n *Node) bool { return uint64(n.db().Applied().Revision) != last })
	})
	applied := nodes[2].db().Applied()
	_, err := nodes[2].db().Commit(graph.Commit{
		Revision: applied.Revision + 1, Term: applied.Term, Stamp: applied.Stamp, Store: graph.DefaultStore,
		Changes: []graph.Change{{Kind: graph.Created, Tuple: viewer("planted", "eve")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		write(t, nodes[i%2], create(viewer(fmt.Sprintf("d%d", i), "anna")))
	}
	select {
	case fault = <-stopped:
	case <-testContext(t).Done():
		t.Fatal("n3 goes on")
	}
	if !errors.Is(fault, ErrDiverged) {
		t.Errorf("n3 stopped: %v", fault)
	}
	write(t, nodes[0], create(viewer("later", "anna"))) // The others go on.
}

// TestClocks: a node whose clock was set neither leads nor answers, and stamps go on as
// the time of the others.
func TestClocks(t *testing.T) {
	for _, jump := range []time.Duration{time.Hour, -time.Hour} {
		t.Run(jump.String(), func(t *testing.T) {
			var offsets []*atomic.Int64
			nodes := openCluster(t, 3, func(c *Config) {
				offset := &atomic.Int64{}
				offsets = append(offsets, offset)
				c.Now = func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }
				c.ClockPause = 20 * time.Millisecond
			})
			writeSchema(t, nodes[0])
			leader := leaderOf(t, nodes)
			wrong := slices.Index(nodes, leader)
			offsets[wrong].Store(int64(jump))
			// By way of any other, writes go on, and none is of the wrong time.
			for i := range 5 {
				result := write(t, nodes[(wrong+1)%3], create(viewer(fmt.Sprintf("d%d", i), "anna")))
				if off := time.Since(result.Instant.Time()).Abs(); off > time.Minute {
					t.Errorf("the stamp of a write is %v off", off)
				}
			}
			eventually(t, "another leads", func() bool { return !leader.leads() })
			for _, c := range []Consistency{{}, {Mode: Linearizable}} {
				if _, err := leader.Snapshot(testContext(t), graph.DefaultStore, c, graph.Overlay{}); !errors.Is(err, ErrClock) {
					t.Errorf("the node whose clock was set answers %v with %v", c.Mode, err)
				}
			}
			if err := leader.Ready(); !errors.Is(err, ErrClock) {
				t.Errorf("it is ready: %v", err)
			}
			offsets[wrong].Store(0)
			eventually(t, "it is ready again", func() bool { return leader.Ready() == nil })
			if !has(t, leader, Consistency{Mode: Linearizable}, viewer("d4", "anna")) {
				t.Error("it does not have what was written meanwhile")
			}
		})
	}
}
