package peer

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// setUserTimeout ends a connection whose bytes nobody acknowledges. Without it,
// what is sent into a cut line is repeated for a quarter of an hour, and probes
// for a living peer are not sent meanwhile.
func setUserTimeout(_, _ string, c syscall.RawConn) error {
	var set error
	err := c.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unackedMax.Milliseconds()))
	})
	if err != nil {
		return err
	}
	return set
}
