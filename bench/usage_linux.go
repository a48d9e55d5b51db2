package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"syscall"
	"time"
)

// sleep waits for d. The kernel's timer is exact to some 50 us, where that of the
// Go runtime may be a millisecond late in an idle process. It holds a thread.
func sleep(d time.Duration) {
	for end := time.Now().Add(d); d > 0; d = time.Until(end) {
		t := syscall.NsecToTimespec(int64(d))
		// The only error is an interruption, after which the rest is slept.
		_ = syscall.Nanosleep(&t, nil)
	}
}

// processorTime returns the time on processors that this process has taken, in
// its own code and in the kernel's.
func processorTime() (time.Duration, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, fmt.Errorf("ask for the processor time: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

// residentBytes returns how much memory this process has resident.
func residentBytes() (int64, error) {
	const file = "/proc/self/statm"
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(text) // size resident …, in pages
	if len(fields) < 2 {
		return 0, fmt.Errorf("%s: %q has no second field", file, text)
	}
	pages, err := strconv.ParseInt(string(fields[1]), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	return pages * int64(os.Getpagesize()), nil
}

// machineLoad says how busy the machine is with all that runs on it: how many
// threads wanted a processor, in the mean of the last minute.
func machineLoad() (string, error) {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "", err
	}
	minute, _, _ := bytes.Cut(text, []byte(" "))
	return "load " + string(minute), nil
}

// occupiedBytes returns the space that a file takes on its disk, without holes.
func occupiedBytes(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512 // The unit of st_blocks, whatever the file system's.
	}
	return info.Size()
}
