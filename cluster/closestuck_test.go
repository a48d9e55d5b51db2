package cluster

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"testing"
	"time"
)

// TestCloseWithoutAgreement: a leader is closed while the follower whose vote it needs has
// yet to be sent the state. That one answers heartbeats, so that the leader goes on leading,
// and takes no entries, so that what is under way is not agreed to. Close ends all the same.
// It waited as long as the state was sent, and for ever where the follower asked anew, since
// a node that is being closed answers no calls.
func TestCloseWithoutAgreement(t *testing.T) {
	configs := map[string]Config{}
	nodes := openCluster(t, 3, func(c *Config) {
		c.SnapshotThreshold, c.TrailingLogs, c.SnapshotInterval = 16, 4, time.Millisecond
		c.StateBytesPerSecond = 64 << 10 // Behind a MiB that comes at once.
		c.ElectionTimeout = time.Second  // So that n1 goes on leading on a busy machine.
		configs[c.NodeID] = *c
	})
	n1, n2 := nodes[0], nodes[1]
	writeSchema(t, n1)
	leadWith(t, n1, n2)
	closeNode(t, nodes[2])
	for i := range 200 {
		random := make([]byte, 30<<10)
		if _, err := rand.Read(random); err != nil {
			t.Fatal(err)
		}
		m := create(viewer(fmt.Sprint(i), "anna"))
		m.Metadata = fmt.Appendf(nil, "{%q:%q}", "a", base64.StdEncoding.EncodeToString(random))
		write(t, n1, m)
	}
	isCut(t, n1, 150)
	n3 := open(t, configs["n3"])
	eventually(t, "n3 is being sent the state", func() bool { return n3.installer.bytes() > 0 })
	closeNode(t, n2)
	ctx, cancel := context.WithTimeout(testContext(t), 100*time.Millisecond)
	defer cancel()
	if _, err := n1.Write(ctx, create(viewer("d", "anna"))); !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("a write that nobody else stores: %v", err)
	}
	if !n1.leads() {
		t.Fatal("n1 does not lead any more, so that nothing is shown")
	}
	err := n1.Close(testContext(t))
	if n3.installer.count() > 0 {
		t.Error("n3 has the state, so that nothing was shown")
	}
	if err != nil {
		t.Errorf("close: %v", err)
	}
}
