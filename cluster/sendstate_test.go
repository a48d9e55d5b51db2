package cluster

import (
	"context"
	"errors"
	"testing"

	peerv1 "github.com/pembadb/pemba/cluster/pemba/peer/v1"
)

// A stuckCall is a call for a state whose receiver takes nothing behind the header until
// it is let go.
type stuckCall struct {
	transfer string
	letGo    chan struct{}
	ended    chan error
	sent     int // Messages, once ended has something.
}

// stickCall begins a call, and returns when it is stuck.
func stickCall(t *testing.T, n *Node, to string) *stuckCall {
	t.Helper()
	c := &stuckCall{letGo: make(chan struct{}), ended: make(chan error, 1)}
	stuck := make(chan string, 1)
	go func() {
		c.ended <- n.sendState(testContext(t), to, &peerv1.SendStateRequest{}, func(part *peerv1.SendStateResponse) error {
			if c.sent++; c.sent == 1 {
				stuck <- part.GetHeader().GetTransfer()
				<-c.letGo
			}
			return nil
		})
	}()
	select {
	case c.transfer = <-stuck:
	case err := <-c.ended:
		t.Fatalf("the call ended: %v", err)
	}
	return c
}

// fetchWhole makes a call that takes all, and returns the transfer's id.
func fetchWhole(ctx context.Context, n *Node, to, transfer string) (id string, whole bool, err error) {
	err = n.sendState(ctx, to, &peerv1.SendStateRequest{Transfer: transfer}, func(part *peerv1.SendStateResponse) error {
		if header := part.GetHeader(); header != nil {
			id = header.GetTransfer()
			return nil
		}
		whole = len(part.GetChunk()) > 0
		return nil
	})
	return id, whole, err
}

// TestSendStateAgain: a node that asks again for the state, since its connection broke
// say, is not held up by its older call, whose end the sender has not heard of. It was
// told for half a minute that another call fetched the state, or, where it began anew,
// had two states sent, so that nobody else was sent one.
func TestSendStateAgain(t *testing.T) {
	n := open(t, testConfig(t, t.TempDir()))
	writeSchema(t, n)
	for _, again := range []bool{true, false} {
		older := stickCall(t, n, "n2")
		other := stickCall(t, n, "n3") // Is not touched by any of this.
		asked, what := "", "begun anew"
		if again {
			asked, what = older.transfer, "gone on with"
		}
		id, whole, err := fetchWhole(testContext(t), n, "n2", asked)
		if err != nil || !whole || (id == older.transfer) != again {
			t.Errorf("%s: transfer %s of %s, whole %v, %v", what, id, older.transfer, whole, err)
		}
		if _, _, err := fetchWhole(testContext(t), n, "n3", older.transfer); !errors.Is(err, errTransferGone) {
			t.Errorf("%s: by another node: %v", what, err)
		}
		n.transfers.mu.Lock()
		if _, there := n.transfers.open[other.transfer]; !there || len(n.transfers.open) != 1 {
			t.Errorf("%s: %d states are being sent, n3's: %v", what, len(n.transfers.open), there)
		}
		n.transfers.mu.Unlock()
		close(older.letGo)
		// Whether it is told to ask again: it may be the newer call, and have overtaken.
		if err := <-older.ended; errors.Is(err, ErrTooBusy) != again || !again && !errors.Is(err, errTransferGone) || older.sent != 1 {
			t.Errorf("%s: the older call ended with %v after %d messages", what, err, older.sent)
		}
		close(other.letGo)
		if err := <-other.ended; err != nil || other.sent < 2 {
			t.Errorf("%s: n3's call ended with %v after %d messages", what, err, other.sent)
		}
	}
	n.transfers.mu.Lock()
	defer n.transfers.mu.Unlock()
	if len(n.transfers.open) != 0 {
		t.Errorf("%d transfers are left", len(n.transfers.open))
	}
}
