package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	peerv1 "github.com/pembadb/pemba/cluster/pemba/peer/v1"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// makeLeader has a node lead.
func makeLeader(t *testing.T, nodes []*Node, to *Node) {
	t.Helper()
	for {
		leader := leaderOf(t, nodes)
		if leader == to {
			return
		}
		if err := leader.TransferLeadership(testContext(t), to.ID()); err != nil {
			t.Logf("hand the leadership to %s: %v", to.ID(), err) // It may be on its way.
		}
	}
}

// TestForwardTooLarge: a mutation that the leader does not take for its size was not made,
// and the node that forwarded it says so. The leader's port did not let it in where its bound
// is smaller, so that nobody knew what became of it, and it was tried again for all of
// WaitMax.
func TestForwardTooLarge(t *testing.T) {
	nodes := openCluster(t, 2, func(c *Config) {
		c.WaitMax = 5 * time.Second
		if c.NodeID == "n1" {
			c.EntryBytesMax = 4 << 10
		}
	})
	makeLeader(t, nodes, nodes[0])
	writeSchema(t, nodes[0])
	for _, size := range []int{100, 1000} { // Above n1's bound; above that of a message so far.
		var tuples []graph.Tuple
		for i := range size {
			tuples = append(tuples, viewer(fmt.Sprintf("d%d-%s", i, strings.Repeat("x", 100)), "anna"))
		}
		_, err := nodes[1].Write(testContext(t), create(tuples...))
		if !errors.Is(err, ErrEntryTooLarge) || errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("%d tuples: %v", size, err)
		}
	}
}

// TestForwardToALeaderThatStops: what a leader that is being closed did not take, it or the
// next one is asked for again. The client of another node was told that the node is shutting
// down, though that one ran.
func TestForwardToALeaderThatStops(t *testing.T) {
	nodes := openCluster(t, 2, nil)
	makeLeader(t, nodes, nodes[0])
	writeSchema(t, nodes[0])
	setClosed := func(closed bool) {
		// As between admitCall and admission.enter, when the leader is closed.
		a := nodes[0].admission
		a.mu.Lock()
		a.closed = closed
		a.mu.Unlock()
	}
	setClosed(true)
	before := nodes[0].counts.refused.Load()
	type outcome struct {
		result engine.Result
		err    error
	}
	done := make(chan outcome, 1)
	go func() {
		result, err := nodes[1].Write(testContext(t), create(viewer("d", "anna")))
		done <- outcome{result, err}
	}()
	eventually(t, "n1 refuses the write", func() bool { return nodes[0].counts.refused.Load() > before })
	setClosed(false)
	if o := <-done; o.err != nil || o.result.Refusal != nil {
		t.Errorf("n2 runs, and said: %v, %v", o.err, o.result.Refusal)
	}
}

// TestStopsLeading: what a node that stops answers to another is an ErrNotLeader on the other
// side, unless the write may have been made.
func TestStopsLeading(t *testing.T) {
	for _, c := range []struct{ err, is error }{
		{ErrShuttingDown, ErrNotLeader},
		{fmt.Errorf("%w: a damaged disk", ErrFailed), ErrNotLeader},
		{fmt.Errorf("%w: %w: a damaged disk", ErrOutcomeUnknown, ErrFailed), ErrOutcomeUnknown},
		{ErrTooBusy, ErrTooBusy},
	} {
		got := fromFailure(toFailure(stopsLeading(c.err)))
		if !errors.Is(got, c.is) || errors.Is(got, ErrShuttingDown) || errors.Is(got, ErrFailed) {
			t.Errorf("%v is %v on the other side", c.err, got)
		}
	}
}

// TestCallError: of a call that came to no answer it is known whether it was begun.
func TestCallError(t *testing.T) {
	reached := &grpcpeer.Peer{Addr: &net.TCPAddr{}}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name string
		ctx  context.Context
		code codes.Code
		to   *grpcpeer.Peer
		made bool // It may have been.
	}{
		{"no connection", t.Context(), codes.Unavailable, &grpcpeer.Peer{}, false},
		{"a connection that broke", t.Context(), codes.Unavailable, reached, true},
		{"a node that stops", t.Context(), codeNotServed, reached, false},
		{"an older node", t.Context(), codes.Unimplemented, reached, false},
		{"a caller who left", ended, codes.Canceled, reached, true},
	} {
		err := callError(c.ctx, status.Error(c.code, "why"), c.to, ErrOutcomeUnknown)
		if errors.Is(err, ErrOutcomeUnknown) != c.made || errors.Is(err, ErrNotLeader) == c.made {
			t.Errorf("%s: %v", c.name, err)
		}
		if _, is := status.FromError(err); is || strings.Contains(err.Error(), "rpc error") {
			t.Errorf("%s: what gRPC puts around it is in %v", c.name, err)
		}
	}
	config := peerConfig(t, "n1")
	n := open(t, config)
	service := &peerService{node: n}
	response, err := service.Write(t.Context(), &peerv1.WriteRequest{Mutation: []byte("none")})
	if err != nil || response.GetFailure() == nil {
		t.Errorf("a malformed mutation: %v, %v", response, err)
	} else if is := fromFailure(response.GetFailure()); errors.Is(is, ErrOutcomeUnknown) || errors.Is(is, ErrNotLeader) {
		t.Errorf("a malformed mutation: %v", is)
	}
	if err := n.admitPeer(); err != nil {
		t.Errorf("a node that runs: %v", err)
	}
	closeNode(t, n)
	if err := n.admitPeer(); status.Code(err) != codeNotServed {
		t.Errorf("a node that was closed: %v", err)
	}
}

// TestWriteTries: a write that may have been made is tried again only as long as the state
// surely knows its request, however long WaitMax is.
func TestWriteTries(t *testing.T) {
	begin := time.Unix(1_700_000_000, 0)
	lifetime := time.Duration(graph.RequestLifetime) * time.Microsecond
	if repeatMax+2*ClockSkewMax >= lifetime {
		t.Errorf("a try may be repeated for %v, and is known for %v by clocks that may be %v apart", repeatMax, lifetime, 2*ClockSkewMax)
	}
	notLeader, unknown := fmt.Errorf("x: %w", ErrNotLeader), fmt.Errorf("x: %w", ErrOutcomeUnknown)
	for _, named := range []bool{true, false} {
		tries := writeTries{named: named}
		tries.note(begin, notLeader)
		if !tries.again(begin.Add(10*lifetime), notLeader) || tries.unknown() {
			t.Errorf("named %v: what was never made is not tried again", named)
		}
		// The clock runs from the first try that may have made it.
		since := begin.Add(10 * lifetime)
		tries.note(since, unknown)
		tries.note(since.Add(time.Second), unknown)
		tries.note(since.Add(2*time.Second), notLeader)
		for _, err := range []error{unknown, notLeader} {
			if tries.again(since.Add(repeatMax-1), err) != named {
				t.Errorf("named %v: in time, after %v, it says %v", named, err, !named)
			}
			if tries.again(since.Add(repeatMax), err) {
				t.Errorf("named %v: too late, after %v, it is tried again", named, err)
			}
		}
		if !tries.unknown() {
			t.Errorf("named %v: it is forgotten that it may have been made", named)
		}
		if tries.again(since, ErrTooBusy) {
			t.Errorf("named %v: it is tried again where the leader is too busy", named)
		}
	}
}
