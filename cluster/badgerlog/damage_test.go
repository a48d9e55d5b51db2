package badgerlog

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/hashicorp/raft"
)

// crashImage copies the directory of a log that nobody writes to: what a process
// that dies now would leave. Badger may be compacting, so the copy is taken
// again until nothing moved meanwhile.
func crashImage(t testing.TB, dir string) string {
	t.Helper()
	list := func() (names []string, times string) {
		files, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			info, err := file.Info()
			if err != nil {
				continue // Gone; the times will differ.
			}
			names = append(names, file.Name())
			times += fmt.Sprintln(file.Name(), info.Size(), info.ModTime())
		}
		return names, times
	}
	for {
		image := t.TempDir()
		names, before := list()
		for _, name := range names {
			content, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(image, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, after := list(); before == after {
			return image
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func filesOf(t testing.TB, dir, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("no %s in %s (%v)", pattern, dir, err)
	}
	return files
}

func flip(t testing.TB, path string, at int64) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close() //nolint:errcheck // The write below is what matters.
	b := make([]byte, 2)
	if _, err := file.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x55
	b[1] ^= 0xff
	if _, err := file.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// usedBytes is the length of a file without the zeros at its end.
func usedBytes(t testing.TB, path string) int64 {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n := len(content)
	for n > 0 && content[n-1] == 0 {
		n--
	}
	return int64(n)
}

// TestDamagedMemtable damages Badger's write-ahead file in many places, one at a
// time. Badger itself opens each without a word and has lost what stood behind.
func TestDamagedMemtable(t *testing.T) {
	t.Parallel()
	l := mustOpen(t, testConfig(t.TempDir()))
	for i := uint64(1); i <= 120; i++ {
		mustStore(t, l, entries(i*10-9, i*10, 1, 100))
		if i%10 == 0 {
			if err := l.SetUint64([]byte("CurrentTerm"), i); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := l.mark.sync(); err != nil {
		t.Fatal(err)
	}
	mem := filesOf(t, l.cfg.Dir, "*.mem")
	if len(mem) != 1 {
		t.Fatalf("%d memtables, the test wants all in one", len(mem))
	}
	used := usedBytes(t, mem[0])
	const header = 20 // Of the file; without encryption nothing reads it back but a key's number.
	for at := int64(header); at < used-2; at += used / 20 {
		image := crashImage(t, l.cfg.Dir)
		flip(t, filepath.Join(image, filepath.Base(mem[0])), at)
		for attempt := range 2 { // Badger has cut its file by the second.
			_, err := Open(testConfig(image))
			if !IsCorruptionError(err) || !strings.Contains(err.Error(), "1200") || !strings.Contains(err.Error(), image) {
				t.Fatalf("damage at %d of %d, attempt %d: %v", at, used, attempt, err)
			}
			if at == header && attempt == 0 {
				t.Log(err)
			}
		}
	}
	// The very end of the file is the newest transaction, and it counts too.
	image := crashImage(t, l.cfg.Dir)
	flip(t, filepath.Join(image, filepath.Base(mem[0])), used-4)
	if _, err := Open(testConfig(image)); !IsCorruptionError(err) {
		t.Fatalf("damage at the end: %v", err)
	}
}

// TestTornTail is the other half: a torn end of what was never acknowledged is
// no damage.
func TestTornTail(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := mustOpen(t, testConfig(dir))
	mustStore(t, l, entries(1, 50, 1, 100))
	before := crashImage(t, dir)
	mustStore(t, l, entries(51, 60, 1, 100))
	after := crashImage(t, dir)
	mem := filepath.Base(filesOf(t, dir, "*.mem")[0])
	start, end := usedBytes(t, filepath.Join(before, mem)), usedBytes(t, filepath.Join(after, mem))
	for cut := start; cut < end; cut += (end - start) / 8 {
		image := crashImage(t, after)
		content, err := os.ReadFile(filepath.Join(after, mem))
		if err != nil {
			t.Fatal(err)
		}
		clear(content[cut:])
		// The mark is what it was before the store.
		high, err := os.ReadFile(filepath.Join(before, markFile))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.WriteFile(filepath.Join(image, mem), content, 0o600),
			os.WriteFile(filepath.Join(image, markFile), high, 0o600)); err != nil {
			t.Fatal(err)
		}
		torn := mustOpen(t, testConfig(image))
		wantLog(t, torn, 1, 50, term(1), 100)
		mustStore(t, torn, entries(51, 70, 2, 100))
		mustClose(t, torn)
	}
}

// TestUnbornFiles: a process may die between making a file and giving it a
// length. Emptying a file that held something is damage all the same.
func TestUnbornFiles(t *testing.T) {
	l := mustOpen(t, testConfig(t.TempDir()))
	mustStore(t, l, entries(1, 50, 1, 100))
	image := crashImage(t, l.cfg.Dir)
	for _, name := range []string{"00099.mem", "000099.vlog"} {
		if err := os.WriteFile(filepath.Join(image, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	unborn := mustOpen(t, testConfig(image))
	wantLog(t, unborn, 1, 50, term(1), 100)
	mustStore(t, unborn, entries(51, 60, 1, 100))
	mustClose(t, unborn)
	wantLog(t, mustOpen(t, testConfig(image)), 1, 60, term(1), 100)

	image = crashImage(t, l.cfg.Dir)
	for _, path := range filesOf(t, image, "*.mem") {
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(testConfig(image)); !IsCorruptionError(err) || !strings.Contains(err.Error(), "but 50 (change 1) was acknowledged") {
		t.Fatalf("open with an emptied write-ahead file: %v", err)
	}
}

// tableLog makes a log whose entries are in tables, and closes it.
func tableLog(t testing.TB) (dir string, last uint64) {
	t.Helper()
	l := mustOpen(t, testConfig(t.TempDir()))
	const rounds = 120
	for i := uint64(0); i < rounds; i++ {
		mustStore(t, l, entries(i*20+1, i*20+20, 1, 1000))
	}
	if err := l.SetUint64([]byte("CurrentTerm"), 9); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	return l.cfg.Dir, rounds * 20
}

// TestDamagedTable damages tables in many places, one at a time. What opens must
// be whole.
func TestDamagedTable(t *testing.T) {
	t.Parallel()
	dir, last := tableLog(t)
	refused, harmless := 0, 0
	for _, table := range filesOf(t, dir, "*.sst") {
		used := usedBytes(t, table)
		for at := used / 50; at < used-2; at += used / 6 {
			image := crashImage(t, dir)
			flip(t, filepath.Join(image, filepath.Base(table)), at)
			damaged, err := Open(testConfig(image))
			if err != nil {
				if !IsCorruptionError(err) {
					t.Errorf("damage at %d of %d: %v", at, used, err)
				}
				refused++
				continue
			}
			harmless++
			wantLog(t, damaged, 1, last, term(1), 1000)
			if n, err := damaged.GetUint64([]byte("CurrentTerm")); n != 9 || err != nil {
				t.Fatalf("the term is %d (%v), want 9", n, err)
			}
			mustClose(t, damaged)
		}
	}
	if refused == 0 {
		t.Fatalf("no damage was found, %d places were harmless", harmless)
	}
	t.Logf("%d places refused, %d harmless", refused, harmless)
}

// TestCutTable cuts tables at all kinds of lengths, and takes one away.
func TestCutTable(t *testing.T) {
	t.Parallel()
	dir, _ := tableLog(t)
	tables := filesOf(t, dir, "*.sst")
	table := tables[len(tables)-1]
	size := usedBytes(t, table)
	for _, length := range []int64{-1, 0, 1, 3, 4, 7, 8, 100, size / 3, size / 2, size - 100, size - 13, size - 5, size - 4, size - 1} {
		image := crashImage(t, dir)
		path := filepath.Join(image, filepath.Base(table))
		err := os.Truncate(path, max(length, 0))
		if length < 0 {
			err = os.Remove(path)
		}
		if err != nil {
			t.Fatal(err)
		}
		l, err := Open(testConfig(image))
		if err == nil {
			mustClose(t, l)
			t.Errorf("a table that was cut from %d to %d bytes was not noticed", size, length)
		} else if !IsCorruptionError(err) || !strings.Contains(err.Error(), filepath.Base(table)) {
			t.Errorf("a table that was cut from %d to %d bytes: %v, want a corruption error that names it", size, length, err)
		}
	}
}

// TestDamageWhileOpen damages a table under an open log.
func TestDamageWhileOpen(t *testing.T) {
	t.Parallel()
	dir, last := tableLog(t)
	l := mustOpen(t, testConfig(dir))
	found := 0
	var got raft.Log
	// A compaction may take the damaged tables away at the wrong moment.
	for attempt := 0; attempt < 20 && found == 0; attempt++ {
		time.Sleep(20 * time.Millisecond)
		for _, table := range filesOf(t, dir, "*.sst") {
			content, err := os.ReadFile(table)
			if err != nil {
				continue
			}
			for at := len(content) / 4; at < len(content)*3/4; at += 1500 {
				content[at] ^= 0x55
			}
			file, err := os.OpenFile(table, os.O_WRONLY, 0)
			if err != nil {
				continue
			}
			_, err = file.WriteAt(content, 0)
			if err := errors.Join(err, file.Close()); err != nil {
				t.Fatal(err)
			}
		}
		for i := uint64(1); i <= last; i++ {
			err := l.GetLog(i, &got)
			switch {
			case err == nil:
				if !sameEntry(&got, entry(i, 1, 1000)) {
					t.Fatalf("entry %d came back otherwise", i)
				}
			case IsCorruptionError(err):
				found++
			default:
				t.Fatalf("entry %d: %v", i, err)
			}
		}
	}
	if found == 0 {
		t.Fatal("no damage was found")
	}
	// The tables are damaged, so Close may fail at compacting them.
	if err := l.Close(); err != nil {
		t.Log(err)
	}
}

// TestReverted gives Badger older truths behind the log's back, as a lost
// write-ahead file between two others, a skipped table or a reappearing deleted
// key would. Each has valid checksums of its own.
func TestReverted(t *testing.T) {
	t.Parallel()
	l := mustOpen(t, testConfig(t.TempDir()))
	mustStore(t, l, entries(1, 20, 1, 50))
	if err := l.SetUint64([]byte("CurrentTerm"), 1); err != nil {
		t.Fatal(err)
	}
	raw := func(key []byte) []byte {
		t.Helper()
		txn := l.db.NewTransactionAt(math.MaxUint64, false)
		defer txn.Discard()
		value, err := get(txn, key)
		if err != nil || value == nil {
			t.Fatalf("get %q: %v", key, err)
		}
		return value
	}
	older := map[string][]byte{}
	for _, key := range [][]byte{appendEntryKey(nil, 12), appendEntryKey(nil, 20), keyStable, keyRecord} {
		older[string(key)] = raw(key)
	}
	mustStore(t, l, entries(10, 20, 2, 50))
	if err := l.SetUint64([]byte("CurrentTerm"), 2); err != nil {
		t.Fatal(err)
	}
	version := l.state.Load().seq
	mustClose(t, l)

	tests := []struct {
		name string
		key  []byte
		// The value to put, or nil to delete.
		value []byte
		want  string // What the error says; "" if there is no damage.
	}{
		{"an entry in the middle", appendEntryKey(nil, 12), older[string(appendEntryKey(nil, 12))], "at entry 12"},
		{"the last entry", appendEntryKey(nil, 20), older[string(appendEntryKey(nil, 20))], "at entry 20"},
		{"an entry under another index", appendEntryKey(nil, 13), older[string(appendEntryKey(nil, 12))], "at entry 13: its checksum"},
		{"a lost entry", appendEntryKey(nil, 15), nil, "at entry 15: it is missing"},
		{"a lost last entry", appendEntryKey(nil, 20), nil, "at entry 20: it is missing"},
		{"a short entry", appendEntryKey(nil, 15), []byte{formatEntry}, "at entry 15: its value has 1 bytes"},
		{"term and vote", keyStable, older[string(keyStable)], "older change than its record"},
		{"lost term and vote", keyStable, nil, "term and vote are missing"},
		{"the record", keyRecord, older[string(keyRecord)], "it ends at 20 (change 2), but 20 (change 4) was acknowledged"},
		{"a lost record", keyRecord, nil, "but 20 (change 4) was acknowledged"},
		{"a damaged record", keyRecord, []byte("nonsense"), "record has an unknown format"},
		{"a deleted entry before the log", appendEntryKey(nil, 21), older[string(appendEntryKey(nil, 12))], ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			image := crashImage(t, l.cfg.Dir)
			db, err := badger.OpenManaged(testConfig(image).withDefaults().badgerOptions())
			if err != nil {
				t.Fatal(err)
			}
			// The same version again: in the memtable it comes before the table.
			txn := db.NewTransactionAt(version, true)
			if test.value == nil {
				err = txn.Delete(test.key)
			} else {
				err = txn.Set(test.key, test.value)
			}
			if err := errors.Join(err, txn.CommitAt(version, nil), db.Close()); err != nil {
				t.Fatal(err)
			}
			reverted, err := Open(testConfig(image))
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				wantLog(t, reverted, 1, 20, termFrom(1, 10, 2), 50)
				mustClose(t, reverted)
				return
			}
			if !IsCorruptionError(err) || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error is %v, want one with %q", err, test.want)
			}
		})
	}
}

// TestMark damages and loses the high-water mark.
func TestMark(t *testing.T) {
	t.Parallel()
	l := mustOpen(t, testConfig(t.TempDir()))
	for i := uint64(1); i <= 10; i++ {
		mustStore(t, l, entries(i, i, 1, 10))
		if err := l.mark.sync(); err != nil { // It takes turns between its slots.
			t.Fatal(err)
		}
	}
	path := func(dir string) string { return filepath.Join(dir, markFile) }
	tests := []struct {
		name   string
		damage func(dir string)
		want   string
	}{
		{"whole", func(string) {}, ""},
		{"first slot torn", func(dir string) { flip(t, path(dir), 10) }, ""},
		{"second slot torn", func(dir string) { flip(t, path(dir), markSlotGap+10) }, ""},
		{"both slots damaged", func(dir string) { flip(t, path(dir), 10); flip(t, path(dir), markSlotGap+10) }, "neither copy"},
		{"emptied", func(dir string) {
			if err := os.Truncate(path(dir), 0); err != nil {
				t.Fatal(err)
			}
		}, "neither copy"},
		{"lost", func(dir string) {
			if err := os.Remove(path(dir)); err != nil {
				t.Fatal(err)
			}
		}, "\"high\" is missing"},
		{"badger lost", func(dir string) {
			for _, pattern := range []string{"MANIFEST", "*.mem", "*.vlog", "KEYREGISTRY"} {
				for _, name := range filesOf(t, dir, pattern) {
					if err := os.Remove(name); err != nil {
						t.Fatal(err)
					}
				}
			}
		}, "badger's files are missing"},
		{"badger's write-ahead file lost", func(dir string) {
			for _, name := range filesOf(t, dir, "*.mem") {
				if err := os.Remove(name); err != nil {
					t.Fatal(err)
				}
			}
		}, "it ends at 0 (change 0), but 10 (change 10) was acknowledged"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			image := crashImage(t, l.cfg.Dir)
			test.damage(image)
			damaged, err := Open(testConfig(image))
			if test.want != "" {
				if !IsCorruptionError(err) || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("error is %v, want one with %q", err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			wantLog(t, damaged, 1, 10, term(1), 10)
			mustClose(t, damaged)
			wantLog(t, mustOpen(t, testConfig(image)), 1, 10, term(1), 10)
		})
	}
}

// TestMarkSlots writes and syncs a mark at random moments and tears the slot in
// use: what is left is never above what was written, nor below what was synced.
func TestMarkSlots(t *testing.T) {
	dir := t.TempDir()
	m, _, err := openMark(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	synced := uint64(0)
	for seq := uint64(1); seq <= 40; seq++ {
		if err := m.write(markValue{seq: seq, last: seq * 2, lastTerm: 3}); err != nil {
			t.Fatal(err)
		}
		image := crashImage(t, dir)
		flip(t, filepath.Join(image, markFile), int64(m.slot)*markSlotGap+20)
		torn, v, err := openMark(image, false)
		if err != nil || v.seq != synced {
			t.Fatalf("seq %d: torn, the mark is %d (%v), want %d", seq, v.seq, err, synced)
		}
		if err := torn.close(); err != nil {
			t.Fatal(err)
		}
		if seq%3 == 0 || seq%7 == 0 {
			if err := m.sync(); err != nil {
				t.Fatal(err)
			}
			synced = seq
		}
		if seq%10 == 0 {
			if err := m.close(); err != nil {
				t.Fatal(err)
			}
			var v markValue
			if m, v, err = openMark(dir, false); err != nil || v != (markValue{seq: seq, last: seq * 2, lastTerm: 3}) {
				t.Fatalf("seq %d: reopened, the mark is %+v (%v)", seq, v, err)
			}
			synced = seq
		}
	}
	if err := m.close(); err != nil {
		t.Fatal(err)
	}
}

func ExampleIsCorruptionError() {
	err := fmt.Errorf("start node: %w", &CorruptionError{Dir: "/data/log", Index: 7, Reason: "it is missing, and the log holds 3 to 9"})
	fmt.Println(err)
	fmt.Println(IsCorruptionError(err))
	// Output:
	// start node: badgerlog: the log in /data/log is damaged at entry 7: it is missing, and the log holds 3 to 9; remove the node from its cluster and let it join with an empty directory; only where it is the only node, bring back a copy of the whole data directory
	// true
}
