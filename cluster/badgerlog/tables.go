package badgerlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4/pb"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/badger/v4/y"
	"google.golang.org/protobuf/proto"
)

// checkTables looks at the end of every table of the given numbers, where its
// index is, before Badger does: Badger trusts the lengths there, and panics on a
// goroutine of its own when a table is cut. It reads the indexes only, some
// kilobytes a table.
func checkTables(cfg Config, numbers map[uint64]struct{}) error {
	for number := range numbers {
		name := table.IDToFilename(number)
		problem, err := checkTable(filepath.Join(cfg.Dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			problem, err = fmt.Sprintf("badger's file %s names it, and it is missing", badgerManifest), nil
		}
		if err != nil {
			return fmt.Errorf("badgerlog: open: %w", err)
		}
		if problem != "" {
			return &CorruptionError{Dir: cfg.Dir, Reason: fmt.Sprintf("its table %s is damaged: %s", name, problem)}
		}
	}
	return nil
}

// checkTable says what is wrong with the end of a table, which is
//
//	index | length of the index (4 bytes) | checksum of the index | length of the checksum (4 bytes)
//
// with lengths in big-endian order.
func checkTable(path string) (problem string, err error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return "", err
	}
	end := info.Size()
	// before reads the n bytes in front of end and moves it there.
	before := func(n int64) ([]byte, error) {
		if n > end {
			return nil, nil
		}
		end -= n
		b := make([]byte, n)
		_, err := file.ReadAt(b, end)
		return b, err
	}
	// part reads a length and as many bytes in front of it; nothing when the
	// table is shorter.
	part := func() ([]byte, error) {
		length, err := before(4)
		if len(length) < 4 || err != nil {
			return nil, err
		}
		return before(int64(binary.BigEndian.Uint32(length)))
	}
	encoded, err := part()
	if err != nil {
		return "", err
	}
	var sum pb.Checksum
	if len(encoded) == 0 || proto.Unmarshal(encoded, &sum) != nil || pb.Checksum_Algorithm_name[int32(sum.Algo)] == "" {
		return "it does not end with a checksum; a part of it is missing", nil
	}
	index, err := part()
	if err != nil {
		return "", err
	}
	if len(index) == 0 {
		return "it does not hold its index; a part of it is missing", nil
	}
	if err := y.VerifyChecksum(index, &sum); err != nil {
		return "its index is not what was stored", nil //nolint:nilerr // That it does not fit is the answer.
	}
	return "", nil
}
