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

	"github.com/pembadb/pemba/cluster/badgerlog"
	"github.com/pembadb/pemba/graph"
)

// The names in a data directory.
const (
	formatFile   = "FORMAT"  // The version of the layout.
	lockFile     = "LOCK"    // Locked while a process has the directory; holds its id.
	nodeFile     = "NODE"    // The id of the node whose data this is.
	memberFile   = "MEMBER"  // Of a node that joined: which cluster, and as what.
	recoverFile  = "RECOVER" // There while a recovery is under way.
	stateFile    = "STATE"   // Which folder holds the graph, when it is not the first.
	stateFolder  = "state"   // The graph, in Pebble; state-N when it was sent by another node.
	logFolder    = "log"     // The Raft log, in Badger.
	newExtension = ".new"    // A file that is being written.
)

// formatVersion is the version of the layout of the data directory as a whole.
// What stands in state and log has versions of its own.
const formatVersion = 1

// formatPrefix stands in the FORMAT file before the version, for the reader who
// wonders what this directory is.
const formatPrefix = "pemba data directory, format "

// formatText is what the FORMAT file of this program says.
var formatText = formatPrefix + strconv.Itoa(formatVersion) + "\n"

// A dataDir is a data directory that is locked for this process.
type dataDir struct {
	path   string
	lock   *os.File // Nil in memory, where path only stands in messages.
	nodeID string
	// member is the zero membership of a node that did not join.
	member membership
	// graph is the folder of the graph that is in force. Where installed is not
	// zero, that state was sent by another node and is of this revision, and what
	// is in the log is to be wiped.
	graph     string
	installed graph.Revision
}

// A membership is what a node that joined a cluster must know of it before the
// state tells.
type membership struct {
	cluster [16]byte
	// replica says that the node means to stay without a vote.
	replica bool
	// began says that the node had once caught up, so that it may have voted.
	began bool
}

// openDataDir locks the directory at path, made if it is missing, and returns
// it with the id of its node: the one kept there or, in a new directory,
// wantNodeID or one made up. Each step of making a directory can be the last
// before a crash, and the next start goes on from there. Into a directory that is
// refused for what it holds nothing is written, the lock neither.
func openDataDir(path, wantNodeID string) (*dataDir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("data directory %s: %w", path, err)
	}
	if err := makeDirectory(path); err != nil {
		return nil, fmt.Errorf("create the data directory %s: %w", path, err)
	}
	d := &dataDir{path: path}
	if _, err := d.look(); err != nil {
		return nil, err
	}
	if d.lock, err = lockDirectory(path); err != nil {
		return nil, err
	}
	if err := d.claim(); err != nil {
		return nil, errors.Join(err, d.close())
	}
	if err := d.load(wantNodeID); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// load reads what the files say, one after the other: the first that is refused ends it.
func (d *dataDir) load(wantNodeID string) error {
	if err := d.loadNodeID(wantNodeID); err != nil {
		return err
	}
	if err := d.loadMember(); err != nil {
		return err
	}
	return d.loadState()
}

// close gives the lock back.
func (d *dataDir) close() error {
	if d.lock == nil {
		return nil
	}
	return d.lock.Close()
}

func (d *dataDir) state() string { return d.folder(d.graph) }

// folder returns the path of a folder of graphs.
func (d *dataDir) folder(name string) string { return filepath.Join(d.path, name) }
func (d *dataDir) log() string               { return filepath.Join(d.path, logFolder) }

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

// lockDirectory locks the directory at path, and changes nothing in it but for
// making the lock. The lock is never removed, so that whoever has it open has the
// one that the others find.
func lockDirectory(path string) (*os.File, error) {
	name := filepath.Join(path, lockFile)
	file, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory %s: %w", path, err)
	}
	if err := badgerlog.TryLock(file); err != nil {
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
	return file, nil
}

// claim decides, now that nobody else can, whether the directory is ours, marks an
// empty one so, and says who has it.
func (d *dataDir) claim() error {
	marked, err := d.look()
	if err != nil {
		return err
	}
	err = d.lock.Truncate(0)
	if err == nil {
		_, err = d.lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		return fmt.Errorf("lock the data directory %s: %w", d.path, err)
	}
	if marked {
		return nil
	}
	return d.replaceFile(formatFile, formatText)
}

// look refuses a directory of another format or with foreign files, without
// changing any. It reports whether the directory is marked as ours; it is empty
// else. Without the lock, what it finds may change: its entries are read before the
// mark, which is made before all that it does not expect.
func (d *dataDir) look() (marked bool, err error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return false, fmt.Errorf("data directory %s: %w", d.path, err)
	}
	content, err := os.ReadFile(filepath.Join(d.path, formatFile))
	if err == nil {
		return true, d.parseFormat(string(content))
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("data directory %s: %w", d.path, err)
	}
	for _, entry := range entries {
		ours, err := d.beginning(entry)
		if err != nil {
			return false, fmt.Errorf("data directory %s: %w", d.path, err)
		}
		if !ours {
			return false, fmt.Errorf("the directory %s holds %q and no file %s: it is neither empty nor a data directory of Pemba's",
				d.path, entry.Name(), formatFile)
		}
	}
	return false, nil
}

// beginning reports whether an entry may stand in a directory before the mark: it is
// then what a crash leaves of a first start, and may be written over.
func (d *dataDir) beginning(entry fs.DirEntry) (bool, error) {
	switch entry.Name() {
	case "lost+found": // It is in every new file system.
		return true, nil
	case lockFile, formatFile + newExtension:
	default:
		return false, nil
	}
	info, err := entry.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil // Another process has marked the directory meanwhile.
	}
	if err != nil || !info.Mode().IsRegular() || info.Size() > int64(len(formatText)) {
		return false, err
	}
	content, err := os.ReadFile(filepath.Join(d.path, entry.Name()))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true, nil
	case err != nil:
		return false, err
	case entry.Name() == lockFile:
		return strings.Trim(string(content), "0123456789\n\x00") == "", nil
	}
	// What was not synced may have its length and not yet its bytes.
	return strings.HasPrefix(formatText, strings.TrimRight(string(content), "\x00")), nil
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

// loadMember finds out whether the node joined a cluster.
func (d *dataDir) loadMember() error {
	content, err := os.ReadFile(filepath.Join(d.path, memberFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		d.member, err = parseMembership(string(content))
	}
	if err != nil {
		return fmt.Errorf("data directory %s: the file %s: %w", d.path, memberFile, err)
	}
	return nil
}

// roles are the words for what a node joined as, by membership.replica.
var roles = map[bool]string{false: "voter", true: "replica"}

func (m membership) String() string {
	return fmt.Sprintf("cluster %x\nrole %s\nbegan %t\n", m.cluster, roles[m.replica], m.began)
}

func parseMembership(content string) (membership, error) {
	var m membership
	var id []byte
	var role string
	if _, err := fmt.Sscanf(content, "cluster %x\nrole %s\nbegan %t\n", &id, &role, &m.began); err != nil {
		return m, fmt.Errorf("it says %.80q, not a cluster and a role: %w", content, err)
	}
	m.replica = role == roles[true]
	if len(id) != len(m.cluster) || role != roles[m.replica] {
		return m, fmt.Errorf("it says %.80q, not a cluster of %d bytes and one of the roles voter and replica", content, len(m.cluster))
	}
	copy(m.cluster[:], id)
	return m, nil
}

// join records which cluster the node joined.
func (d *dataDir) join(m membership) error {
	if d.lock != nil {
		if err := d.replaceFile(memberFile, m.String()); err != nil {
			return err
		}
	}
	d.member = m
	return nil
}

// begin records that the node has caught up.
func (d *dataDir) begin() error {
	if d.member == (membership{}) || d.member.began {
		return nil
	}
	m := d.member
	m.began = true
	return d.join(m)
}

// loadState finds the folder of the graph.
func (d *dataDir) loadState() error {
	d.graph = stateFolder
	content, err := os.ReadFile(filepath.Join(d.path, stateFile))
	if err == nil {
		d.graph, d.installed, err = parseState(string(content))
	} else if errors.Is(err, fs.ErrNotExist) {
		return d.checkFirstState()
	}
	if err != nil {
		return fmt.Errorf("data directory %s: the file %s: %w", d.path, stateFile, err)
	}
	return nil
}

// checkFirstState refuses a directory without the file STATE where the first state is
// gone and another one is there. A node makes the first before it is sent any, and
// removes it when STATE names another.
func (d *dataDir) checkFirstState() error {
	// It may be a link to a folder elsewhere.
	if _, err := os.Stat(d.folder(stateFolder)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	states, err := d.states()
	if err != nil || len(states) == 0 {
		return err
	}
	return fmt.Errorf("data directory %s: the folder %s is there, but neither the folder %s nor the file %s that would name another one: "+
		"bring that file back if you have it as it was; else remove the node from its cluster and let it join with an empty directory",
		d.path, states[0], stateFolder, stateFile)
}

// sync makes the names in the directory durable.
func (d *dataDir) sync() error {
	if d.lock == nil {
		return nil
	}
	return syncDirectory(d.path)
}

// sentFolder returns the name of the folder of a state that was sent at a revision.
func sentFolder(revision graph.Revision) string { return fmt.Sprintf("%s-%d", stateFolder, revision) }

// isStateFolder reports whether a folder of that name is a node's own: the first one, or
// what sentFolder returns. Whatever else begins so is the operator's.
func isStateFolder(name string) bool {
	digits, sent := strings.CutPrefix(name, stateFolder+"-")
	revision, err := strconv.ParseUint(digits, 10, 64)
	return name == stateFolder || sent && err == nil && name == sentFolder(graph.Revision(revision))
}

// states returns the names of the folders of graphs.
func (d *dataDir) states() ([]string, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, entry := range entries {
		if entry.IsDir() && isStateFolder(entry.Name()) {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}

// removeStates removes the folders of states that were replaced, or never came into
// force. What is in force was looked at before: where that is not what it should be,
// one of them may be what remains.
func (d *dataDir) removeStates() error {
	if d.lock == nil {
		return nil
	}
	names, err := d.states()
	errs := []error{err}
	for _, name := range names {
		if name != d.graph {
			errs = append(errs, os.RemoveAll(filepath.Join(d.path, name)))
		}
	}
	return errors.Join(errs...)
}

// stateText is what the file STATE says of a folder and of whether its state is
// newly installed.
func stateText(folder string, installed graph.Revision) string {
	return fmt.Sprintf("folder %s\ninstalled %d\n", folder, installed)
}

func parseState(content string) (folder string, installed graph.Revision, err error) {
	if _, err := fmt.Sscanf(content, "folder %s\ninstalled %d\n", &folder, &installed); err != nil {
		return "", 0, fmt.Errorf("it says %.80q, not a folder and a revision: %w", content, err)
	}
	if !isStateFolder(folder) {
		return "", 0, fmt.Errorf("it names the folder %.80q: %s and %s-N are allowed", folder, stateFolder, stateFolder)
	}
	return folder, installed, nil
}

// useState puts a folder into force, in one step as a crash sees it.
func (d *dataDir) useState(folder string, installed graph.Revision) error {
	if d.lock != nil {
		if err := d.replaceFile(stateFile, stateText(folder, installed)); err != nil {
			return err
		}
	}
	d.graph, d.installed = folder, installed
	return nil
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
