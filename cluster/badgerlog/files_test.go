package badgerlog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A damager damages one file of a log at a time, in copies of its directory.
type damager struct {
	dir    string
	name   string // Of the file.
	want   func(t testing.TB, l *Log)
	opened []string // What was harmless.
}

// try opens a copy whose file has the given content. It must hold everything, or
// be refused in one line that names the file.
func (d *damager) try(t *testing.T, what string, content []byte) {
	t.Helper()
	image := crashImage(t, d.dir)
	if err := os.WriteFile(filepath.Join(image, d.name), content, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := Open(testConfig(image))
	if err == nil {
		d.opened = append(d.opened, what)
		d.want(t, l)
		mustClose(t, l)
		if left, err := filepath.Glob(filepath.Join(image, "*"+asideSuffix)); err != nil || left != nil {
			t.Errorf("%s, %s: %v were left (%v)", d.name, what, left, err)
		}
		return
	}
	text := err.Error()
	if !IsCorruptionError(err) || strings.Contains(text, "\n") || !strings.Contains(text, image) ||
		!strings.Contains(text, d.name) || !strings.HasSuffix(text, whatToDo) {
		t.Errorf("%s, %s: %v", d.name, what, err)
	}
	// A refused start destroys none of what the next one is refused by.
	again, err := Open(testConfig(image))
	if err == nil {
		mustClose(t, again)
	}
	if !IsCorruptionError(err) || !strings.Contains(err.Error(), d.name) {
		t.Errorf("%s, %s, once more: %v", d.name, what, err)
	}
}

// read returns what is in the file.
func (d *damager) read(t *testing.T) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(d.dir, d.name))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// TestDamagedFiles cuts the files that Badger reads first at each length, and
// alters each byte of them and of the heads of its log files.
func TestDamagedFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	want := func(t testing.TB, l *Log) { wantLog(t, l, 1, 30, term(1), 10) }
	for i := uint64(1); i <= 30; i += 10 {
		l := mustOpen(t, testConfig(dir)) // Each time but the last leaves a table.
		mustStore(t, l, entries(i, i+9, 1, 10))
		if i < 20 {
			mustClose(t, l)
		}
	}
	image := crashImage(t, dir)
	// Copies are quicker without the files that hold nothing.
	for _, name := range []string{"DISCARD", filepath.Base(slices.Max(filesOf(t, dir, "*.vlog")))} {
		if err := os.Remove(filepath.Join(image, name)); err != nil {
			t.Fatal(err)
		}
	}
	memtable := filepath.Base(filesOf(t, image, "*.mem")[0])
	for _, test := range []struct {
		name     string
		pattern  string
		head     int    // How much of the file is damaged; 0 for all of it.
		harmless string // Places of bytes that mean nothing, and lengths that lose nothing.
		cut      bool
	}{
		{"key registry", badgerKeyRegistry, 0, "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15", true},
		{"manifest", badgerManifest, 0, "", true},
		// A memtable that is cut has lost entries, and the error is about those.
		// TestDamagedMemtable does what stands behind its head.
		{"memtable", memtable, 8, "", false},
		{"value log", "*.vlog", 8, "cut 0 cut 1 cut 2 cut 3 cut 4 cut 5 cut 6 cut 7", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			d := &damager{dir: image, name: filepath.Base(filesOf(t, image, test.pattern)[0]), want: want}
			whole := d.read(t)
			head := test.head
			if head == 0 {
				head = len(whole)
			}
			for at := range head {
				if test.cut {
					d.try(t, fmt.Sprint("cut ", at), whole[:at])
				}
				altered := bytes.Clone(whole)
				altered[at] ^= 0xff
				d.try(t, fmt.Sprint(at), altered)
			}
			if got := strings.Join(d.opened, " "); got != test.harmless {
				t.Errorf("harmless were %q, expected %q", got, test.harmless)
			}
		})
	}
	t.Run("too long", func(t *testing.T) {
		t.Parallel()
		d := &damager{dir: image, name: badgerKeyRegistry, want: want}
		// Badger would allocate what the length behind the text says.
		d.try(t, "longer", append(d.read(t), 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0))
		if d.opened != nil {
			t.Error("a longer file was not noticed")
		}
	})
}

// TestHonestFiles: what a crash leaves of these files is no damage, and neither is
// a lost key registry, for there are no keys.
func TestHonestFiles(t *testing.T) {
	t.Parallel()
	l := mustOpen(t, testConfig(t.TempDir()))
	mustStore(t, l, entries(1, 30, 1, 10))
	mustClose(t, l)
	d := &damager{dir: l.cfg.Dir, name: badgerManifest, want: func(t testing.TB, l *Log) { wantLog(t, l, 1, 30, term(1), 10) }}
	whole := d.read(t)
	for _, next := range [][]byte{{0}, {0, 0, 0, 4, 1, 2, 3, 4}, {0, 0, 0, 4, 1, 2, 3, 4, 5, 6, 7}} {
		d.try(t, fmt.Sprint(len(next)), append(bytes.Clone(whole), next...))
	}
	// Tables that the manifest does not name, and one that a start set aside which
	// did not come to its end, of a number that is in use.
	for _, d.name = range []string{"000099.sst", "000001.sst" + asideSuffix} {
		d.try(t, d.name, []byte("half a table"))
	}
	if err := os.WriteFile(filepath.Join(d.dir, "000099.sst"), []byte("half a table"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.name = "000099.sst" + asideSuffix
	d.try(t, "both", []byte("half a table"))
	if err := os.Remove(filepath.Join(d.dir, badgerKeyRegistry)); err != nil {
		t.Fatal(err)
	}
	d.name = badgerManifest
	d.try(t, "no key registry", whole)
	if got := strings.Join(d.opened, ", "); got != "1, 8, 11, 000099.sst, 000001.sst.unnamed, both, no key registry" {
		t.Errorf("only these were opened: %s", got)
	}
}

// TestCutManifest cuts the manifest of a log that compacted its tables after each
// of its changes: it then names tables that are gone, or leaves out some that are
// in use.
func TestCutManifest(t *testing.T) {
	t.Parallel()
	dir, last := tableLog(t)
	d := &damager{dir: dir, name: badgerManifest, want: func(t testing.TB, l *Log) {
		wantLog(t, l, 1, last, term(1), 1000)
		if n, err := l.GetUint64([]byte("CurrentTerm")); n != 9 || err != nil {
			t.Fatalf("the term is %d (%v), want 9", n, err)
		}
	}}
	whole := d.read(t)
	changes := 0
	for at := 8; at < len(whole); changes++ {
		d.try(t, fmt.Sprint("cut ", at), whole[:at])
		at += 8 + int(binary.BigEndian.Uint32(whole[at:]))
	}
	if changes < 3 || len(d.opened) == changes {
		t.Errorf("%d changes, and these cuts were harmless: %v", changes, d.opened)
	}
	t.Logf("%d changes; harmless: %v", changes, d.opened)
}
