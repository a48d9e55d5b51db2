package clustertest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/graph"
)

// TestRemovalStays: a node that was removed is no member, also where it was to be given a
// vote at the same time. The promotion looked for the node, found it, and then gave a vote
// to it though it had been removed meanwhile, which made it a member again.
func TestRemovalStays(t *testing.T) {
	t.Parallel()
	c := New(t, Patience)
	hosts := c.Form(2, nil)
	n1, n2 := hosts[0], hosts[1]
	c.Lead(n1, n2)
	n3 := c.Add("n3")
	if err := n3.Join(true); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	defer cancel()
	joining := cluster.Joining{ID: n3.NodeID, RaftAddr: n3.Addr}
	for round := range 20 {
		var both sync.WaitGroup
		begun := make(chan struct{})
		both.Go(func() {
			close(begun)
			// It fails where the removal came first, and where the node is gone meanwhile.
			if err := n1.Node().PromoteMember(ctx, n3.NodeID); err != nil && !errors.Is(err, cluster.ErrMember) && !noLeader(err) {
				t.Errorf("round %d: give a vote to n3: %v", round, err)
			}
		})
		if round%2 == 0 {
			<-begun
		}
		removed := n1.Node().RemoveMember(ctx, n3.NodeID, true)
		both.Wait()
		members, err := n1.Node().Members(ctx)
		if err != nil {
			t.Fatal(err)
		}
		member := slices.ContainsFunc(members, func(m cluster.Member) bool { return m.ID == n3.NodeID })
		if removed == nil && member {
			t.Fatalf("round %d: n3 was removed, and is a member", round)
		}
		if removed != nil && !noLeader(removed) {
			t.Fatalf("round %d: remove n3: %v", round, removed)
		}
		if !member {
			if _, err := n1.Node().AddMember(ctx, joining); err != nil && !noLeader(err) {
				t.Fatal(err)
			}
		}
	}
	select {
	case err := <-n3.Fault():
		// On a slow machine it finds out in between.
		if !errors.Is(err, cluster.ErrRemoved) {
			t.Errorf("n3 stopped: %v", err)
		}
	default:
	}
}

// TestForgottenVoter: a voter that lost its log and its state, and still has the files that
// say who it is, does not start. It forgot for whom it voted and which entries it has: it
// took part again, and could vote twice in a term and lose what was agreed.
func TestForgottenVoter(t *testing.T) {
	t.Parallel()
	c := New(t, Patience)
	hosts := c.Form(3, nil)
	n1, n2, n3 := hosts[0], hosts[1], hosts[2]
	writeSchema(t, n1)
	n3.Stop()
	for _, name := range []string{"state", "log"} {
		if err := os.RemoveAll(filepath.Join(n3.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	err := n3.Start()
	if err == nil || !strings.Contains(err.Error(), "lost or removed") {
		t.Fatalf("a voter without its votes and its log starts: %v", err)
	}
	// As its message says: it is removed, and joins anew.
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	defer cancel()
	err = n1.Node().RemoveMember(ctx, n3.NodeID, false)
	for noLeader(err) && ctx.Err() == nil {
		err = n1.Node().RemoveMember(ctx, n3.NodeID, false)
	}
	if err != nil {
		t.Fatal(err)
	}
	n3.Forget()
	if err := n3.Join(false); err != nil {
		t.Fatal(err)
	}
	c.WaitVoters(n1, n2, n3)
	c.Agree(n1, n2, n3)
}

// TestCloseBehindForward: a write that was handed to a leader which hangs goes on with the
// next leader, and closing the node does not wait for the old one. Nothing told the call
// that the leader was none any more: it waited for as long as its caller did, or the
// connection was there, and Close with it.
func TestCloseBehindForward(t *testing.T) {
	t.Parallel()
	c := New(t, Deadline*10) // Its connections stay, as those of a process that is stopped.
	hosts := c.Form(3, nil)
	n1, n2, n3 := hosts[0], hosts[1], hosts[2]
	writeSchema(t, n1)
	c.Lead(n1, n2, n3)
	c.Isolate("n1")
	written := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 2*Deadline)
	defer cancel()
	go func() {
		m := &graph.Mutation{Store: graph.DefaultStore, Updates: []graph.Update{viewerOf("x")}}
		_, err := n2.Node().Write(ctx, m)
		written <- err
	}()
	c.Wait("another leads", func() bool { leader := status(t, n2).LeaderID; return leader == "n2" || leader == "n3" })
	c.Wait("the write has ended", func() bool { return len(written) > 0 })
	if err := <-written; err != nil && !noLeader(err) {
		t.Errorf("the write: %v", err)
	}

	// Nor does closing wait, where no other leader comes.
	leader, follower := n2, n3
	c.Lead(leader, follower)
	c.Isolate(leader.Name)
	node := follower.Node()
	forwarded := func() uint64 {
		m, err := node.Metrics()
		if err != nil {
			t.Fatal(err)
		}
		return m.Forwarded
	}
	before := forwarded()
	go func() {
		m := &graph.Mutation{Store: graph.DefaultStore, Updates: []graph.Update{viewerOf("y")}}
		_, err := node.Write(ctx, m)
		written <- err
	}()
	c.Wait("the write is handed on", func() bool { return forwarded() > before || len(written) > 0 })
	follower.Stop()
	c.Wait("the write has ended", func() bool { return len(written) > 0 })
	if err := <-written; err == nil {
		t.Error("a write is acknowledged that no majority has")
	}
}

// TestTransferToTheDead: a leader that is asked again and again to hand over to a voter
// that is down refuses, and goes on. Raft waits for such a voter in a way that once ended
// all writes, as a transfer that never was over.
func TestTransferToTheDead(t *testing.T) {
	t.Parallel()
	c := New(t, Patience)
	hosts := c.Form(3, nil)
	n1, n2, n3 := hosts[0], hosts[1], hosts[2]
	writeSchema(t, n1)
	c.Lead(n1, n2, n3)
	n3.Stop()
	writeMany(t, n1, "a", 5, 1)
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	defer cancel()
	for range 3 {
		if err := n1.Node().TransferLeadership(ctx, n3.NodeID); err == nil {
			t.Fatal("the leadership was handed to a node that is down")
		}
	}
	writeMany(t, n1, "b", 5, 1)
	// Any other is one that answers.
	if err := n1.Node().TransferLeadership(ctx, ""); err != nil {
		t.Errorf("hand over to whoever can: %v", err)
	}
	c.Wait("n2 leads", func() bool { return n2.Node().Ready() == nil && leads(n2) })
	if err := n2.Node().RemoveMember(ctx, n3.NodeID, false); err != nil {
		t.Errorf("remove the node that is down: %v", err)
	}
	writeMany(t, n2, "c", 5, 1)
}

// leads reports whether a host's node leads.
func leads(h *Host) bool {
	s, err := h.Node().Status()
	return err == nil && s.Role == "leader"
}
