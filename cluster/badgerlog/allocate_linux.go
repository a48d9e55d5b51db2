package badgerlog

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// allocate gives file size bytes of real blocks.
func allocate(file *os.File, size int64) error {
	err := unix.Fallocate(int(file.Fd()), 0, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return fill(file, size)
	}
	return err
}
