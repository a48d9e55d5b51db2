package cluster

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	peerv1 "github.com/pembadb/pemba/cluster/pemba/peer/v1"
)

// A gate holds who passes it, as long as it is closed.
type gate struct {
	mu     sync.Mutex
	closed chan struct{} // Closed when the gate is opened again; nil for an open gate.
}

func (g *gate) pass() {
	g.mu.Lock()
	closed := g.closed
	g.mu.Unlock()
	if closed != nil {
		<-closed
	}
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed == nil {
		g.closed = make(chan struct{})
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed != nil {
		close(g.closed)
		g.closed = nil
	}
}

// openHeld opens two voters. While the gate is closed n2 stores nothing, so that nothing
// is agreed to, though its heartbeats go on.
func openHeld(t *testing.T, configure func(*Config)) ([]*Node, *gate) {
	t.Helper()
	held := &gate{}
	nodes := openCluster(t, 2, func(c *Config) {
		if c.NodeID == "n2" {
			c.Log = c.Log.SlowedBy(held.pass)
		}
		if configure != nil {
			configure(c)
		}
	})
	t.Cleanup(held.open) // Before the nodes are closed.
	return nodes, held
}

func additionOf(id, addr string) *peerv1.ChangeMembersRequest {
	return &peerv1.ChangeMembersRequest{Change: &peerv1.ChangeMembersRequest_Add{Add: &peerv1.AddMember{Id: id, Addr: addr}}}
}

func removalOf(id string) *peerv1.ChangeMembersRequest {
	return &peerv1.ChangeMembersRequest{Change: &peerv1.ChangeMembersRequest_Remove{Remove: &peerv1.RemoveMember{Id: id}}}
}

// pending has n1 make a change of its members that does not come to be agreed to.
func pending(t *testing.T, nodes []*Node, held *gate, r *peerv1.ChangeMembersRequest, made func() bool) {
	t.Helper()
	for !made() { // Again where n1 lost the leadership just then.
		held.open()
		makeLeader(t, nodes, nodes[0])
		held.close()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- nodes[0].changeMembersHere(ctx, "n1", r) }()
		var err error
		ended := false
		eventually(t, "n1 has the change", func() bool {
			select {
			case err = <-done:
				ended = true
			default:
			}
			return ended || made()
		})
		cancel()
		if !ended {
			err = <-done
		}
		if err == nil {
			t.Fatal("the change was agreed to while n2 stored nothing")
		}
	}
}

// TestMembersNotAgreed: that the leader has a change already is no success as long as it is
// not agreed to, for another leader may take it back. Who asked for it again was told that
// it was made.
func TestMembersNotAgreed(t *testing.T) {
	nodes, held := openHeld(t, nil)
	n1, addr := nodes[0], freeAddr(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	// n1 has had no answer of n2 when the context has ended.
	mayBe := func(what string, err error) {
		t.Helper()
		if err == nil || !errors.Is(err, ErrOutcomeUnknown) && !errors.Is(err, ErrNotLeader) {
			t.Errorf("%s: %v", what, err)
		}
	}
	pending(t, nodes, held, additionOf("n4", addr), func() bool { return n1.isMember("n4") })
	mayBe("n4 is added again", n1.addHere(ended, additionOf("n4", addr).GetAdd()))
	mayBe("n2 has a vote already", n1.promoteHere(ended, "n2"))
	held.open()
	if _, err := n1.AddMember(testContext(t), Joining{ID: "n4", RaftAddr: addr}); err != nil {
		t.Fatal(err)
	}
	if err := n1.PromoteMember(testContext(t), "n2"); err != nil {
		t.Error(err)
	}
	eventually(t, "n2 knows n4", func() bool { return nodes[1].isMember("n4") })

	pending(t, nodes, held, removalOf("n4"), func() bool { return !n1.isMember("n4") })
	mayBe("n4 is removed again", n1.removeHere(ended, removalOf("n4").GetRemove()))
	held.open()
	if err := n1.RemoveMember(testContext(t), "n4", false); err != nil && !errors.Is(err, errUnknownMember) {
		t.Error(err)
	}
	eventually(t, "n2 knows of no n4", func() bool { return !nodes[1].isMember("n4") })
}

// TestMembersOutcomeUnknown: a change that the leader may have made before it was lost is
// not said to have been refused for want of a leader.
func TestMembersOutcomeUnknown(t *testing.T) {
	nodes, held := openHeld(t, func(c *Config) { c.WaitMax = 2 * time.Second })
	done := make(chan error, 1)
	for asked := false; !asked; { // Again where n1 lost the leadership just then.
		held.open()
		makeLeader(t, nodes, nodes[0])
		held.close()
		go func() {
			_, err := nodes[1].AddMember(testContext(t), Joining{ID: "n4", RaftAddr: "127.0.0.1:1"})
			done <- err
		}()
		ended := false
		eventually(t, "n1 has the change", func() bool {
			select {
			case err := <-done:
				t.Logf("n1 was asked in vain: %v", err)
				ended = true
			default:
			}
			asked = nodes[0].isMember("n4") && !ended
			return ended || asked
		})
	}
	away(t, nodes[0])
	if err := <-done; !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("n1 may have made it, and it is said: %v", err)
	}
}

// TestRemovedWhileItAsks: what a member asked for before it was removed, and comes up
// behind the removal, is refused. Its new address took it in again.
func TestRemovedWhileItAsks(t *testing.T) {
	nodes := openCluster(t, 2, nil)
	n1, addr := nodes[0], freeAddr(t)
	makeLeader(t, nodes, n1)
	if _, err := n1.AddMember(testContext(t), Joining{ID: "n4", RaftAddr: addr}); err != nil {
		t.Fatal(err)
	}
	if err := n1.RemoveMember(testContext(t), "n4", false); err != nil {
		t.Fatal(err)
	}
	for {
		err := n1.changeMembersHere(testContext(t), "n4", additionOf("n4", addr))
		if errors.Is(err, ErrNotLeader) {
			makeLeader(t, nodes, n1)
			continue
		}
		if !errors.Is(err, ErrRemoved) || n1.isMember("n4") {
			t.Errorf("n4 asks to have another address: %v", err)
		}
		return
	}
}

// neverAnswered is what a Raft leaves that is stopped before it looks at what it was asked.
type neverAnswered struct{ stopped <-chan struct{} }

func (f neverAnswered) Error() error {
	<-f.stopped
	return nil
}

// TestAskStoppedRaft: who asked a Raft that is stopped, since the node's state is replaced,
// does not wait for it. A leader that was handing the leadership on just then never compared
// its clock again.
func TestAskStoppedRaft(t *testing.T) {
	n := open(t, peerConfig(t, "n1"))
	away(t, n)
	end := make(chan struct{})
	defer close(end)
	err := n.awaitRaft(testContext(t), func(*raft.Raft) raft.Future { return neverAnswered{end} })
	if !errors.Is(err, ErrOutcomeUnknown) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("it ended with %v", err)
	}
}
