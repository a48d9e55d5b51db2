//go:build !linux

package main

import (
	"io/fs"
	"time"
)

// sleep waits for d, or somewhat longer.
func sleep(d time.Duration) { time.Sleep(d) }

// processorTime returns 0: only Linux is asked, and what depends on it is left
// out of the report elsewhere.
func processorTime() (time.Duration, error) { return 0, nil }

// residentBytes returns 0, likewise.
func residentBytes() (int64, error) { return 0, nil }

// machineLoad says that nothing is known.
func machineLoad() (string, error) { return "load unknown", nil }

// occupiedBytes returns the length of a file.
func occupiedBytes(info fs.FileInfo) int64 { return info.Size() }
