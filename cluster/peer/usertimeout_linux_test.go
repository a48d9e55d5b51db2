package peer

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// TestUserTimeout holds that the connections of both roles end when nobody
// acknowledges what they send.
func TestUserTimeout(t *testing.T) {
	noLeaks(t)
	a, b := listen(t, "a"), listen(t, "b")
	if err := vote(a, b, b.Raft()); err != nil {
		t.Fatal(err)
	}
	for _, transport := range []*Transport{a, b} {
		transport.mu.Lock()
		n := 0
		for c := range transport.conns {
			n++
			raw, err := c.raw.(*net.TCPConn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			var got int
			var asked error
			if err := raw.Control(func(fd uintptr) {
				got, asked = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
			}); err != nil || asked != nil {
				t.Fatal(err, asked)
			}
			if int64(got) != unackedMax.Milliseconds() {
				t.Errorf("node %s, in %v: %d ms", transport.config.NodeID, c.in, got)
			}
		}
		transport.mu.Unlock()
		if n != 1 {
			t.Errorf("node %s has %d connections", transport.config.NodeID, n)
		}
	}
}
