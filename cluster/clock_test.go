package cluster

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestTwoClocks: of two voters that agreed, the one whose clock jumps is silent and says
// truly why, and the other goes on, until the clock is set back, the other's agrees with
// it, or the node is restarted.
func TestTwoClocks(t *testing.T) {
	var offsets []*atomic.Int64
	var configs []Config
	nodes := openCluster(t, 2, func(c *Config) {
		offset := &atomic.Int64{}
		offsets = append(offsets, offset)
		c.Now = func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }
		c.ClockPause = 20 * time.Millisecond
		configs = append(configs, *c)
	})
	writeSchema(t, nodes[0])
	// asked returns when a node has asked the other, whatever it learnt.
	asked := func(i int) { nodes[i].askClocks(testContext(t)) }
	agreed := func() {
		t.Helper()
		for i, n := range nodes {
			eventually(t, n.ID()+" is ready and knows that the clocks agree", func() bool {
				asked(i)
				c := n.clocks.known.Load()
				return n.Ready() == nil && c != nil && c.off == 0 && time.Since(c.asked) < ClockSkewMax
			})
		}
	}
	silent := func(way string) {
		t.Helper()
		eventually(t, "n2 is silent", func() bool { return errors.Is(nodes[1].Ready(), ErrClock) })
		for range 3 {
			asked(1) // It does not help, and the error does not say that it was not done.
			if err := nodes[1].Ready(); !errors.Is(err, ErrClock) || !strings.Contains(err.Error(), "it jumped "+way+" by 1h0m0") && !strings.Contains(err.Error(), "it jumped "+way+" by 59m59") ||
				!strings.Contains(err.Error(), "no majority of the voters has agreed with it since") {
				t.Errorf("n2, whose clock jumped, says: %v", err)
			}
			asked(0)
			if err := nodes[0].clockTrusted(); err != nil {
				t.Errorf("n1, whose clock is as it was: %v", err)
			}
		}
		eventually(t, "n1 leads", nodes[0].leads)
	}
	for _, c := range []struct {
		way  string
		jump time.Duration
	}{{"forward", time.Hour}, {"back", -time.Hour}} {
		agreed()
		offsets[1].Store(int64(c.jump))
		silent(c.way)
		offsets[1].Store(0)
		eventually(t, "n2 is ready when its clock is set back", func() bool { return nodes[1].Ready() == nil })

		agreed()
		offsets[1].Store(int64(c.jump))
		silent(c.way)
		offsets[0].Store(int64(c.jump))
		eventually(t, "both are ready when n1's clock agrees", func() bool { return nodes[0].Ready() == nil && nodes[1].Ready() == nil })
		offsets[0].Store(0)
		offsets[1].Store(0)
	}
	agreed()
	offsets[1].Store(int64(time.Hour))
	silent("forward")
	closeNode(t, nodes[1])
	nodes[1] = open(t, configs[1])
	eventually(t, "both are ready after n2 was restarted", func() bool { return nodes[0].Ready() == nil && nodes[1].Ready() == nil })
	for range 3 {
		asked(1)
		if err := nodes[1].clockTrusted(); err != nil {
			t.Errorf("n2, which forgot that its clock was another, says: %v", err)
		}
	}
}
