package badgerlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/cespare/xxhash/v2"
)

// mark is the high-water mark: a small file outside Badger that holds the
// sequence number of the newest acknowledged transaction. Badger takes a
// damaged record in its write-ahead file for the torn end of a crash, and drops
// it and all behind it without a word. The mark is what tells the two apart: a
// torn end was never acknowledged.
//
// For that the mark must never be ahead of what Badger has on the disk, or an
// honest crash would make the log refuse to open. Let transaction s be the next
// one. Its life is: (1) Badger syncs s, whose record says s; (2) the directory
// is synced if files came or went; (3) the mark becomes s, in the page cache;
// (4) the caller hears of it; (5) within about a second, or at Close, the mark
// is synced. On start Badger's record says r, the mark says m, and the log is
// refused if r < m.
//
//   - Crash before or during (1): r is s-1 or s, m <= s-1.
//   - Crash during (2), or before (3): r is s, m <= s-1.
//   - The process dies after (3): the page cache survives it. r = m = s.
//   - The machine dies after (3) and before (5) is done: the mark on the disk
//     is s or something older, for each write raises it. m <= s = r. The loss
//     of the newest mark weakens the guard for that second's transactions and
//     nothing else.
//   - The machine dies while the mark itself is being written back: that slot
//     may be torn, and its checksum says so. There are two slots, in different
//     4 KiB blocks, and the slot in use changes only after a sync. So the other
//     slot was synced before, is whole, and holds an older number.
//   - A cut of the log's suffix, or a wipe, makes the last index fall, but it is
//     a transaction like another and makes the sequence number rise. So there
//     is never a mark to be lowered, and no order between lowering it and
//     cutting that a crash could come between.
//   - A new log: the mark is made, with 0 in it, and synced with its directory
//     before Badger has a file. So a missing mark beside Badger's files, or a
//     mark beside none, is damage.
//
// Invariant: mark <= sequence number of the record that is synced in Badger.
type mark struct {
	path string

	mu    sync.Mutex // A sync holds up the next write; that is once a second.
	file  *os.File
	slot  int  // Slot that the next write goes to; the other one is synced.
	dirty bool // Whether something was written since the last sync.
}

// markValue is what a slot of the mark holds. Only seq is compared. Last and
// lastTerm are for the message that an operator reads.
type markValue struct {
	seq      uint64
	last     uint64
	lastTerm uint64
}

const (
	markFile      = "high"
	markMagic     = 0x504d_4231 // "PMB1".
	markSlotBytes = 4 + 3*8 + 8
	markSlotGap   = 4096
	markBytes     = 2 * markSlotGap
)

func encodeMark(v markValue) []byte {
	b := make([]byte, 0, markSlotBytes)
	b = binary.BigEndian.AppendUint32(b, markMagic)
	b = binary.BigEndian.AppendUint64(b, v.seq)
	b = binary.BigEndian.AppendUint64(b, v.last)
	b = binary.BigEndian.AppendUint64(b, v.lastTerm)
	return binary.BigEndian.AppendUint64(b, xxhash.Sum64(b))
}

func decodeMark(b []byte) (markValue, bool) {
	if len(b) < markSlotBytes || binary.BigEndian.Uint32(b) != markMagic ||
		binary.BigEndian.Uint64(b[markSlotBytes-8:]) != xxhash.Sum64(b[:markSlotBytes-8]) {
		return markValue{}, false
	}
	return markValue{
		seq:      binary.BigEndian.Uint64(b[4:]),
		last:     binary.BigEndian.Uint64(b[12:]),
		lastTerm: binary.BigEndian.Uint64(b[20:]),
	}, true
}

// openMark opens the mark in dir, making a new one if fresh. The error is a
// CorruptionError if the mark is missing or unreadable.
func openMark(dir string, fresh bool) (*mark, markValue, error) {
	path := filepath.Join(dir, markFile)
	file, err := os.OpenFile(path, os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if !fresh {
			return nil, markValue{}, &CorruptionError{Dir: dir, Reason: fmt.Sprintf(
				"the file %q is missing, which holds how much of the log was acknowledged", markFile)}
		}
		if err := createMark(dir, path); err != nil {
			return nil, markValue{}, err
		}
		file, err = os.OpenFile(path, os.O_RDWR, 0o600)
	}
	if err != nil {
		return nil, markValue{}, fmt.Errorf("badgerlog: open the high-water mark: %w", err)
	}
	m := &mark{path: path, file: file}
	v, err := m.load(dir)
	if err != nil {
		return nil, markValue{}, errors.Join(err, file.Close())
	}
	return m, v, nil
}

// createMark makes the file under another name first, so that it is either
// whole or absent.
func createMark(dir, path string) error {
	b := make([]byte, markBytes)
	copy(b, encodeMark(markValue{}))
	copy(b[markSlotGap:], encodeMark(markValue{}))
	return replaceFile(dir, path, b)
}

// load reads both slots. It syncs the file first, so that whatever slot is
// newest, both are on the disk, and the older one can be the next to be written.
func (m *mark) load(dir string) (markValue, error) {
	if err := m.file.Sync(); err != nil {
		return markValue{}, fmt.Errorf("badgerlog: sync the high-water mark: %w", err)
	}
	b, err := os.ReadFile(m.path)
	if err != nil {
		return markValue{}, fmt.Errorf("badgerlog: read the high-water mark: %w", err)
	}
	var newest markValue
	found := false
	for slot := range 2 {
		if len(b) < slot*markSlotGap {
			break
		}
		v, ok := decodeMark(b[slot*markSlotGap:])
		if ok && (!found || v.seq > newest.seq) {
			newest, found = v, true
			m.slot = 1 - slot
		}
	}
	if !found {
		return markValue{}, &CorruptionError{Dir: dir, Reason: fmt.Sprintf(
			"neither copy in the file %q is readable, which holds how much of the log was acknowledged", markFile)}
	}
	return newest, nil
}

// write raises the mark, in the page cache.
func (m *mark) write(v markValue) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.file.WriteAt(encodeMark(v), int64(m.slot)*markSlotGap); err != nil {
		return fmt.Errorf("write the high-water mark: %w", err)
	}
	m.dirty = true
	return nil
}

// sync makes the mark durable and turns to the other slot.
func (m *mark) sync() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.dirty {
		return nil
	}
	if err := m.file.Sync(); err != nil {
		return fmt.Errorf("sync the high-water mark: %w", err)
	}
	m.dirty = false
	m.slot = 1 - m.slot
	return nil
}

func (m *mark) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.file.Close()
}
