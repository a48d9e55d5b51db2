package badgerlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/table"
)

const (
	// badgerManifest exists from the first moment of a Badger directory.
	badgerManifest = badger.ManifestFilename

	badgerKeyRegistry = badger.KeyRegistryFileName

	// asideSuffix follows the name of a table that is set aside.
	asideSuffix = ".unnamed"

	// The file KEYREGISTRY is 16 bytes that mean nothing without encryption, the
	// text, and then the keys, of which there are none.
	keyRegistryText  = "Hello Badger"
	keyRegistryBytes = 16 + len(keyRegistryText)

	// A write-ahead or value log file begins with the number of its key (8 bytes,
	// 0 without encryption) and 12 bytes that mean nothing then. Badger takes a
	// shorter file for an empty one.
	logFileHeaderBytes = 20
)

// checkKeys looks at what Badger's files say of the keys that they are encrypted
// with, before Badger does: there are none, and what Badger says of a file that
// names one, or that is cut, does not tell of damage and is about a key. A missing
// KEYREGISTRY is no damage: Badger makes it anew.
func checkKeys(cfg Config) error {
	list, err := os.ReadDir(cfg.Dir)
	if err != nil {
		return fmt.Errorf("badgerlog: open: %w", err)
	}
	for _, entry := range list {
		problem := ""
		switch name := entry.Name(); {
		case name == badgerKeyRegistry:
			problem, err = checkKeyRegistry(filepath.Join(cfg.Dir, name))
		case filepath.Ext(name) == ".mem" || filepath.Ext(name) == ".vlog":
			problem, err = checkLogFileHeader(filepath.Join(cfg.Dir, name))
		}
		if err != nil {
			return fmt.Errorf("badgerlog: open: %w", err)
		}
		if problem != "" {
			return &CorruptionError{Dir: cfg.Dir, Reason: fmt.Sprintf("badger's file %s is not what was stored: %s", entry.Name(), problem)}
		}
	}
	return nil
}

func checkKeyRegistry(path string) (problem string, err error) {
	// One byte more tells a file that is too long.
	content, err := readStart(path, keyRegistryBytes+1)
	switch {
	case err != nil:
		return "", err
	case len(content) < keyRegistryBytes:
		return fmt.Sprintf("it has %d bytes instead of %d", len(content), keyRegistryBytes), nil
	case len(content) > keyRegistryBytes:
		return fmt.Sprintf("it has more than %d bytes", keyRegistryBytes), nil
	case !strings.HasSuffix(string(content), keyRegistryText):
		return fmt.Sprintf("it does not end with %q", keyRegistryText), nil
	}
	return "", nil
}

func checkLogFileHeader(path string) (problem string, err error) {
	header, err := readStart(path, logFileHeaderBytes)
	if len(header) < logFileHeaderBytes || err != nil {
		return "", err
	}
	if key := binary.BigEndian.Uint64(header); key != 0 {
		return fmt.Sprintf("it begins with the number %d of a key, and the log is not encrypted", key), nil
	}
	return "", nil
}

// readStart returns the first n bytes of a file, or all of a shorter one.
func readStart(path string, n int) (content []byte, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return io.ReadAll(io.LimitReader(file, int64(n)))
}

// manifestAtRest is what Badger's file MANIFEST says before Badger is opened.
type manifestAtRest struct {
	exists bool

	// Numbers of the tables that Badger will use.
	tables map[uint64]struct{}

	// Names of the files of other tables, among them those that are set aside;
	// after setAside the latter alone.
	unnamed []string

	// How many bytes of the file are whole changes, and how many it has.
	// Invariant: whole <= size.
	whole, size int64
}

// readManifest fails with a CorruptionError if Badger could not read the file.
func readManifest(cfg Config) (m manifestAtRest, err error) {
	m.tables = map[uint64]struct{}{}
	file, err := os.Open(filepath.Join(cfg.Dir, badgerManifest))
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return m, fmt.Errorf("badgerlog: open: %w", err)
	}
	m.exists = true
	defer func() { err = errors.Join(err, file.Close()) }()
	content, end, err := badger.ReplayManifestFile(file, 0, cfg.badgerOptions())
	if err != nil {
		var hindered *fs.PathError
		if errors.As(err, &hindered) {
			return m, fmt.Errorf("badgerlog: open: %w", err)
		}
		// The second line of what Badger says is advice for another program.
		what, _, _ := strings.Cut(err.Error(), "\n")
		return m, &CorruptionError{Dir: cfg.Dir, Reason: fmt.Sprintf("badger's file %s cannot be read: %s",
			badgerManifest, strings.TrimSuffix(what, "."))}
	}
	for number := range content.Tables {
		m.tables[number] = struct{}{}
	}
	info, err := file.Stat()
	if err != nil {
		return m, fmt.Errorf("badgerlog: open: %w", err)
	}
	m.whole, m.size = end, info.Size()
	list, err := os.ReadDir(cfg.Dir)
	if err != nil {
		return m, fmt.Errorf("badgerlog: open: %w", err)
	}
	for _, entry := range list {
		name, aside := strings.CutSuffix(entry.Name(), asideSuffix)
		number, ok := table.ParseFileID(name)
		if _, named := m.tables[number]; ok && (aside || !named) {
			m.unnamed = append(m.unnamed, entry.Name())
		}
	}
	return m, nil
}

// setAside renames the tables that the manifest does not name. Badger would
// delete them, and they are what remains of the log if the manifest lost its end:
// a start that is refused must not make that worse.
// What stands aside already came first, and stays; a later table of its number is
// what Badger made of a log that was refused.
func (m *manifestAtRest) setAside(dir string) error {
	var aside []string
	for _, name := range m.unnamed {
		if strings.HasSuffix(name, asideSuffix) {
			aside = append(aside, name)
		}
	}
	for _, name := range m.unnamed {
		if to := name + asideSuffix; !strings.HasSuffix(name, asideSuffix) && !slices.Contains(aside, to) {
			if err := os.Rename(filepath.Join(dir, name), filepath.Join(dir, to)); err != nil {
				return fmt.Errorf("badgerlog: open: %w", err)
			}
			aside = append(aside, to)
		}
	}
	m.unnamed = aside
	return nil
}

// removeAside removes them when the log was read and nothing is missing from it:
// a crash left them, before a compaction or a flush had come to its end.
func (m *manifestAtRest) removeAside(dir string) error {
	for _, name := range m.unnamed {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("badgerlog: open: %w", err)
		}
	}
	return nil
}

// blame adds to damage that was found by reading the log that the manifest may
// be what was damaged: its end is missing, or there are tables that it does not
// name. By themselves both are what a crash leaves.
func (m *manifestAtRest) blame(err error) error {
	var damage *CorruptionError
	if !errors.As(err, &damage) {
		return err
	}
	doubt := ""
	switch more := len(m.unnamed) - 1; {
	case m.whole < m.size:
		doubt = fmt.Sprintf("it ended in the middle of a change, at byte %d of %d", m.whole, m.size)
	case more < 0:
		return err
	case more == 0:
		doubt = fmt.Sprintf("it does not name the table that is now %s", m.unnamed[0])
	default:
		doubt = fmt.Sprintf("it does not name the table that is now %s, and %d more", m.unnamed[0], more)
	}
	blamed := *damage
	blamed.Reason += fmt.Sprintf("; badger's file %s may have lost its end: %s", badgerManifest, doubt)
	return &blamed
}
