//go:build pembafaults

package faulttest

import (
	"time"

	"github.com/pembadb/pemba/cluster"
)

// slowLog slows the log of this process down.
func slowLog(by time.Duration) error {
	cluster.SlowLog(by)
	return nil
}

// slowEntries slows the storing of entries down, but not elections.
func slowEntries(by time.Duration) error {
	cluster.SlowEntries(by)
	return nil
}
