//go:build race

package clustertest

import "time"

// With the race detector all takes several times as long.
const electionTimeout = 1200 * time.Millisecond
