//go:build !pembafaults

package faulttest

import (
	"errors"
	"time"
)

// slowLog slows the log of this process down, and slowEntries the storing of entries,
// which only the test-only build can.
func slowLog(time.Duration) error     { return errNotSlow }
func slowEntries(time.Duration) error { return errNotSlow }

var errNotSlow = errors.New("this program cannot slow its disk; it was built without the tag pembafaults")
