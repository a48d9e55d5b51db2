package cluster

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"
)

// A muteNetwork is a network in which nothing is heard from some addresses.
type muteNetwork struct{ mute *sync.Map }

func (n muteNetwork) Listen(addr string) (net.Listener, error) { return net.Listen("tcp", addr) }

func (n muteNetwork) Dial(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &muteConn{conn, addr, n.mute}, nil
}

type muteConn struct {
	net.Conn
	addr string
	mute *sync.Map
}

func (c *muteConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	for {
		if _, mute := c.mute.Load(c.addr); !mute {
			return n, err
		}
		time.Sleep(time.Millisecond)
	}
}

// TestRoomBesideOneThatHangs: a leader whose disk is full finds the voter that has room
// beside one that hangs. That one's silence once used up the time for all, and writes
// were refused.
func TestRoomBesideOneThatHangs(t *testing.T) {
	mute := &sync.Map{}
	nodes := openCluster(t, 3, func(c *Config) { c.PeerNetwork = muteNetwork{mute} })
	eventually(t, "n1 finds both while they answer", func() bool { return len(nodes[0].roomier(testContext(t))) == 2 })
	mute.Store(nodes[1].config.RaftAddr, true)
	defer mute.Clear()
	if first := nodes[0].otherVoters()[0]; string(first.ID) != nodes[1].ID() {
		t.Fatalf("%s would be asked first, and %s hangs", first.ID, nodes[1].ID())
	}
	// More than once: a slow machine may take as long as one that hangs.
	eventually(t, "n1 finds n3 alone", func() bool {
		found := nodes[0].roomier(testContext(t))
		return len(found) == 1 && string(found[0].ID) == nodes[2].ID()
	})
}
