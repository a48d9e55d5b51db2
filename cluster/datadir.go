package cluster

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// The names in a data directory.
const (
	formatFile   = "FORMAT" // The version of the layout.
	lockFile     = "LOCK"   // Locked while a process has the directory; holds its id.
	nodeFile     = "NODE"   // The id of the node whose data this is.
	stateFolder  = "state"  // The graph, in Pebble.
	logFolder    = "log"    // The Raft log, in Badger.
	newExtension = ".new"   // A file that is being written.
)

// formatVersion is the version of the layout of the data directory as a whole.
// What stands in state and log has versions of its own.
const formatVersion = 1

// formatPrefix stands in the FORMAT file before the version, for the reader who
// wonders what this directory is.
const formatPrefix = "pemba data directory, format "

// A dataDir is a data directory that is locked for this process.
type dataDir struct {
	path   string
	lock   *os.File // Nil in memory, where path only stands in messages.
	nodeID string
}

// openDataDir locks the directory at path, made if it is missing, and returns
// it with the id of its node: the one kept there or, in a new directory,
// wantNodeID or one made up. Each step of making a directory can be the last
// before a crash, and the next start goes on from there.
func openDataDir(path, wantNodeID string) (*dataDir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", path, err)
	}
	if err := makeDirectory(path); err != nil {
		return nil, fmt.Errorf("create the data directory %s: %w", path, err)
	}
	lock, err := lockDirectory(path)
	if err != nil {
		return nil, err
	}
	d := &dataDir{path: path, lock: lock}
	if err := d.checkFormat(); err != nil {
		return nil, errors.Join(err, d.close())
	}
	if err := d.loadNodeID(wantNodeID); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// close gives the lock back.
func (d *dataDir) close() error {
	if d.lock == nil {
		return nil
	}
	return d.lock.Close()
}

func (d *dataDir) state() string { return filepath.Join(d.path, stateFolder) }
func (d *dataDir) log() string   { return filepath.Join(d.path, logFolder) }

// makeDirectory makes path and what is missing above it, and syncs the
// directories that then hold a new name.
func makeDirectory(path string) error {
	switch info, err := os.Stat(path); {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return errors.New("there is a file of that name")
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	parent := filepath.Dir(path)
	if err := makeDirectory(parent); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDirectory(parent)
}

func lockDirectory(path string) (*os.File, error) {
	name := filepath.Join(path, lockFile)
	file, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory %s: %w", path, err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder := "another process"
		if content, readErr := os.ReadFile(name); readErr == nil {
			if pid, convErr := strconv.Atoi(strings.TrimSpace(string(content))); convErr == nil {
				holder = fmt.Sprintf("process %d", pid)
			}
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock the data directory %s: %w", path, err), file.Close())
		}
		return nil, errors.Join(
			fmt.Errorf("the data directory %s is in use by %s: stop it, or use another directory", path, holder),
			file.Close())
	}
	err = file.Truncate(0)
	if err == nil {
		_, err = file.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock the data directory %s: %w", path, err), file.Close())
	}
	return file, nil
}

// checkFormat refuses a directory of another format or with foreign files, and
// marks an empty one as ours.
func (d *dataDir) checkFormat() error {
	content, err := os.ReadFile(filepath.Join(d.path, formatFile))
	if err == nil {
		return d.parseFormat(string(content))
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("data directory %s: %w", d.path, err)
	}
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return fmt.Errorf("data directory %s: %w", d.path, err)
	}
	for _, entry := range entries {
		switch entry.Name() {
		case lockFile, formatFile + newExtension, "lost+found": // The last one is in every new file system.
		default:
			return fmt.Errorf("the directory %s holds %q and no file %s: it is neither empty nor a data directory of Pemba's",
				d.path, entry.Name(), formatFile)
		}
	}
	return d.replaceFile(formatFile, formatPrefix+strconv.Itoa(formatVersion)+"\n")
}

func (d *dataDir) parseFormat(content string) error {
	text, ok := strings.CutPrefix(content, formatPrefix)
	version, err := strconv.Atoi(strings.TrimSuffix(text, "\n"))
	if !ok || err != nil {
		return fmt.Errorf("data directory %s: the file %s says %.80q, not %q and a version", d.path, formatFile, content, formatPrefix)
	}
	if version != formatVersion {
		return fmt.Errorf("the data directory %s has format version %d, but this program reads and writes version %d only",
			d.path, version, formatVersion)
	}
	return nil
}

// loadNodeID finds or decides the id of the node.
func (d *dataDir) loadNodeID(want string) error {
	content, err := os.ReadFile(filepath.Join(d.path, nodeFile))
	if err == nil {
		d.nodeID = strings.TrimSuffix(string(content), "\n")
		if err := validateNodeID(d.nodeID); err != nil {
			return fmt.Errorf("data directory %s: the file %s is damaged: %w", d.path, nodeFile, err)
		}
		if want != "" && want != d.nodeID {
			return fmt.Errorf("the data directory %s belongs to node %q, not %q: leave the node id away, or use another directory",
				d.path, d.nodeID, want)
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("data directory %s: %w", d.path, err)
	}
	for _, folder := range [...]string{stateFolder, logFolder} {
		if _, err := os.Lstat(filepath.Join(d.path, folder)); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("data directory %s: the folder %s is there, but the file %s, which comes first, is missing",
				d.path, folder, nodeFile)
		}
	}
	if d.nodeID, err = newNodeID(want); err != nil {
		return err
	}
	return d.replaceFile(nodeFile, d.nodeID+"\n")
}

// newNodeID returns the id of a new node: want, or one made up where it is empty.
func newNodeID(want string) (string, error) {
	if want != "" {
		return want, nil
	}
	var random [4]byte
	if _, err := rand.Read(random[:]); err != nil {
		return "", fmt.Errorf("make up a node id: %w", err)
	}
	return "node-" + hex.EncodeToString(random[:]), nil
}

// replaceFile makes a file so that a crash leaves all of it or nothing.
func (d *dataDir) replaceFile(name, content string) (err error) {
	path := filepath.Join(d.path, name)
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	file, err := os.OpenFile(path+newExtension, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteString(content)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+newExtension, path); err != nil {
		return err
	}
	return syncDirectory(d.path)
}

func syncDirectory(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}

// validateNodeID says what is wrong with id, if anything.
func validateNodeID(id string) error {
	if len(id) == 0 || len(id) > 64 {
		return fmt.Errorf("node id has %d bytes: 1 to 64 are allowed", len(id))
	}
	for _, r := range id {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '-', r == '_', r == '.':
		default:
			return fmt.Errorf("node id %q contains %q: letters, digits, '-', '_' and '.' are allowed", id, r)
		}
	}
	return nil
}

// occupiedBytes returns the space that the files below path take on the disk.
// It counts blocks, as Badger's files are sparse and their lengths mean
// nothing.
func occupiedBytes(path string) (int64, error) {
	var total int64
	err := filepath.WalkDir(path, func(_ string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			var info fs.FileInfo
			if info, err = entry.Info(); err == nil {
				if stat, ok := info.Sys().(*syscall.Stat_t); ok {
					total += stat.Blocks * 512
				} else {
					total += info.Size()
				}
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // Both databases delete files as they go.
		}
		return err
	})
	return total, err
}
