//go:build !linux

package peer

import "syscall"

// setUserTimeout does nothing: there is no such option here.
func setUserTimeout(_, _ string, _ syscall.RawConn) error { return nil }
