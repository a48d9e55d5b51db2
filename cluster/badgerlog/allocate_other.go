//go:build !linux

package badgerlog

import "os"

// allocate gives file size bytes of real blocks.
func allocate(file *os.File, size int64) error { return fill(file, size) }
