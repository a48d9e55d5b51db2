//go:build linux || darwin

package badgerlog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// freeBytes returns the space that this process may still use on the file
// system of dir.
func freeBytes(dir string) (uint64, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(dir, &st)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("find the free space of %s: %w", dir, err)
		}
		return st.Bavail * uint64(st.Bsize), nil
	}
}

// blockBytes returns the space that a file occupies.
func blockBytes(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512 // The unit of st_blocks, whatever the file system's.
	}
	return info.Size()
}

// How often, and how long apart, TryLock tries.
const (
	lockTries = 5
	lockPause = 10 * time.Millisecond
)

// TryLock takes the advisory lock of a file, which ends with the process, or fails
// soon; with EWOULDBLOCK where somebody else has it.
func TryLock(file *os.File) error {
	// A program that this process is just starting has the files that it had when it
	// began to, also one that is closed here since, until it is another program.
	for try := 1; ; try++ {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || try == lockTries {
			return err
		}
		time.Sleep(lockPause)
	}
}
