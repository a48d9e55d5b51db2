//go:build !race

package clustertest

import "time"

const electionTimeout = 400 * time.Millisecond
