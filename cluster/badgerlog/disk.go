package badgerlog

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"
)

const (
	ownerFile   = "owner"
	ballastFile = "ballast"
)

// lockOwner locks dir for this process. Badger has a lock of its own, but the
// mark must not be touched before the lock is held, and Badger's error does not
// say what is meant. Closing the file unlocks.
func lockOwner(dir string) (*os.File, error) {
	path := filepath.Join(dir, ownerFile)
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("badgerlog: lock %s: %w", dir, err)
	}
	if err := TryLock(file); err != nil {
		owner := "another process"
		if b, readErr := os.ReadFile(path); readErr == nil && len(b) > 0 {
			owner = "process " + strings.TrimSpace(string(b))
		}
		return nil, errors.Join(
			fmt.Errorf("badgerlog: the log in %s is held by %s (%w): %w", dir, owner, err, ErrLocked),
			file.Close())
	}
	err = file.Truncate(0)
	if err == nil {
		_, err = file.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("badgerlog: lock %s: %w", dir, err), file.Close())
	}
	return file, nil
}

// replaceFile writes content to path so that a crash leaves either all of it or
// what was there before.
func replaceFile(dir, path string, content []byte) error {
	temporary := path + ".new"
	err := writeSynced(temporary, content)
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err == nil {
		err = syncPath(dir)
	}
	if err != nil {
		return fmt.Errorf("badgerlog: create %s: %w", path, err)
	}
	return nil
}

func writeSynced(path string, content []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

func syncPath(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}

// directory syncs the log's directory when files came or went in it, which
// Badger does not do for a new write-ahead file: an entry in a file without a
// name is lost. It looks at the directory's modification time, one system call.
type directory struct {
	file    *os.File
	modTime time.Time // What the last sync covers.
	settled bool      // Whether a later change would show in the time.
}

// modTimeGrain is more than the steps in which the kernel counts modification
// times. A change within it of the one before may not show.
const modTimeGrain = 20 * time.Millisecond

func openDirectory(path string) (*directory, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("badgerlog: open the directory: %w", err)
	}
	return &directory{file: file}, nil
}

func (d *directory) syncIfChanged() error {
	now := time.Now()
	info, err := d.file.Stat()
	if err != nil {
		return fmt.Errorf("look at the directory: %w", err)
	}
	modTime := info.ModTime()
	if d.settled && modTime.Equal(d.modTime) {
		return nil
	}
	if err := d.file.Sync(); err != nil {
		return fmt.Errorf("sync the directory: %w", err)
	}
	d.modTime = modTime
	// A clock that was set back must not make each commit sync for an hour, so
	// the distance counts, not the order.
	d.settled = now.Sub(modTime).Abs() > modTimeGrain
	return nil
}

// exists reports whether there is a file at path.
func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// removeUnborn removes what a process leaves that dies while Badger makes a
// write-ahead or value log file, between giving it a name and a length: Badger
// refuses to open with such a file. If it ever held anything, the mark knows.
func removeUnborn(dir string) error {
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range list {
		if ext := filepath.Ext(entry.Name()); ext != ".mem" && ext != ".vlog" {
			continue
		}
		info, err := entry.Info()
		if err == nil && info.Size() == 0 {
			err = os.Remove(filepath.Join(dir, entry.Name()))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// diskUse is the space that the files of a log occupy. It counts blocks: the
// files of Badger are sparse, and their lengths mean nothing.
type diskUse struct {
	files   int64 // All of them, but for the ballast.
	spare   int64 // Those among them that are tables and not in use.
	ballast int64
}

// reserve returns the free space that Badger may need at worst: enough to write
// anew, in compactions, all that is in use. A table that is not in use is what
// a compaction has written already, or what the last one will delete in a
// moment; both take from that need what they hold.
func (u diskUse) reserve() int64 { return u.files - 2*u.spare }

// measure looks at the files in dir. InUse returns the numbers of the tables
// that Badger has in use; they may change meanwhile, and it is asked again.
func measure(dir string, inUse func() map[uint64]struct{}) (diskUse, error) {
	tables := inUse()
	for {
		use, err := measureOnce(dir, tables)
		if err != nil {
			return diskUse{}, fmt.Errorf("measure the files: %w", err)
		}
		now := inUse()
		if maps.Equal(tables, now) {
			return use, nil
		}
		tables = now
	}
}

func measureOnce(dir string, tables map[uint64]struct{}) (use diskUse, err error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return use, err
	}
	for _, entry := range list {
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // Badger deletes files as it goes.
		}
		if err != nil {
			return use, err
		}
		if !info.Mode().IsRegular() {
			continue
		}
		size := blockBytes(info)
		if entry.Name() == ballastFile {
			use.ballast += size
			continue
		}
		use.files += size
		name, aside := strings.CutSuffix(entry.Name(), asideSuffix)
		if name, ok := strings.CutSuffix(name, ".sst"); ok {
			number, err := strconv.ParseUint(name, 10, 64)
			if _, used := tables[number]; err == nil && (aside || !used) {
				use.spare += size
			}
		}
	}
	return use, nil
}

// tablesInUse returns the numbers of an open Badger's tables.
func tablesInUse(db *badger.DB) map[uint64]struct{} {
	numbers := map[uint64]struct{}{}
	for _, table := range db.Tables() {
		numbers[table.ID] = struct{}{}
	}
	return numbers
}

// makeBallast makes the ballast of size bytes, unless it is there or there is
// not room enough for it and twice the reserve.
func makeBallast(cfg Config, reserve int64) error {
	if cfg.BallastBytes < 0 {
		return nil
	}
	path := filepath.Join(cfg.Dir, ballastFile)
	if info, err := os.Stat(path); err == nil && info.Size() >= cfg.BallastBytes {
		return nil
	}
	free, err := cfg.freeBytes(cfg.Dir)
	if err != nil {
		return err
	}
	if need := cfg.BallastBytes + 2*cfg.FreeBytesMin + reserve; free < uint64(max(need, 0)) {
		cfg.Logger.Warn("too little space for the ballast file of the log", "path", path, "bytes", cfg.BallastBytes, "free", free)
		return nil
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = allocate(file, cfg.BallastBytes)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// fill allocates size bytes by writing them, with noise that a compressing file
// system cannot shrink.
func fill(file *os.File, size int64) error {
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	for size > 0 {
		n, err := file.Write(noise[:min(size, int64(len(noise)))])
		if err != nil {
			return err
		}
		size -= int64(n)
	}
	return nil
}
