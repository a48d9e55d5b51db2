package faulttest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Damaged bytes in any file that holds acknowledged data are noticed: the node
// does not start, or stops at the first read of them, if only its own reading of
// all tables after the start, and says why. It never answers with less than was
// acknowledged.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	// The original: some history in tables of both databases, a log that was
	// cut, and acknowledged entries that only the log has, as kill -9 leaves it.
	s := settings{
		DataDir:           filepath.Join(dir, "original"),
		SnapshotThreshold: 3000, SnapshotInterval: 10 * time.Millisecond, TrailingLogs: 2000,
		LogMemTable: 1 << 20, GraphMemTable: 256 << 10,
	}
	p := start(t, s)
	p.must(request{Op: "schema"})
	h := newHistory()
	random := seed(t)
	if err := load(p, newWriters(h, 8, random), func() {
		for wait := time.Now().Add(4 * patience); h.acknowledged.Load() < 4000 && time.Now().Before(wait); {
			time.Sleep(10 * time.Millisecond)
		}
	}); err != nil {
		t.Fatal(err)
	}
	want := p.must(request{Op: "scan"})
	p.kill()

	files := dataFiles(t, s.DataDir)
	for _, kind := range []string{"log/*.mem", "log/*.sst", "state/*.sst"} {
		if len(files[kind]) == 0 {
			t.Errorf("there is no %s to damage", kind)
		}
	}
	noticed, harmless := map[string]int{}, 0
	for kind, paths := range files {
		for i, path := range pick(paths) {
			for _, part := range []float64{0.2, 0.6} {
				t.Run(fmt.Sprintf("%s/%d/%v", strings.ReplaceAll(kind, "/", " "), i, part), func(t *testing.T) {
					copied := s
					copied.DataDir = filepath.Join(t.TempDir(), "copy")
					copyTree(t, s.DataDir, copied.DataDir)
					at := damage(t, filepath.Join(copied.DataDir, path), part)
					said := check(t, copied, want)
					if said == "" {
						harmless++
						t.Logf("%s damaged at byte %d: every answer was right", path, at)
						// The files in front of Badger's tables guard what is behind
						// the damage; what it hit may be elsewhere by now. A table
						// that is in use must not be damaged.
						if _, err := os.Stat(filepath.Join(copied.DataDir, path)); err == nil && strings.HasSuffix(kind, ".sst") {
							t.Errorf("%s is in use, and the damage at byte %d was not noticed", path, at)
						}
						return
					}
					noticed[kind]++
					t.Logf("%s damaged at byte %d: %s", path, at, said)
				})
			}
		}
	}
	t.Logf("damage was noticed %v times, and %d times it was where nothing reads", noticed, harmless)
	for _, kind := range []string{"log/*.mem", "state/*.sst"} {
		if noticed[kind] == 0 {
			t.Errorf("no damage in %s was noticed", kind)
		}
	}
}

// verifiedLine is in what the node logs when it has read all its tables.
const verifiedLine = "verified all tables"

// check starts a node on a damaged directory, reads everything, and waits until
// the node has read all its tables. It returns what the node said is wrong, or
// nothing if every answer was right.
func check(t *testing.T, s settings, want reply) string {
	t.Helper()
	p, err := try(t, s)
	if errors.Is(err, errExited) {
		said := p.complaint()
		if said == "" {
			t.Errorf("the process ended without a word:\n%s", p.stderr)
		}
		return said
	}
	defer p.kill()
	c, err := p.dial()
	var got reply
	if err == nil {
		defer c.close()
		got, err = c.ask(request{Op: "scan"})
	}
	if err != nil {
		p.wait()
		said := p.complaint()
		if said == "" {
			t.Errorf("the process ended at the first read without a word:\n%s", p.stderr)
		}
		return said
	}
	if got.Error != "" {
		return "read: " + got.Error
	}
	if got.Revision < want.Revision || len(got.Tuples) != len(want.Tuples) {
		t.Fatalf("SILENT LOSS: %d tuples at revision %d, not %d at %d\n%s",
			len(got.Tuples), got.Revision, len(want.Tuples), want.Revision, p.stderr)
	}
	for i := range want.Tuples {
		if got.Tuples[i] != want.Tuples[i] {
			t.Fatalf("SILENT CHANGE: tuple %d is %+v, not %+v", i, got.Tuples[i], want.Tuples[i])
		}
	}
	late := time.After(patience)
	for !strings.Contains(p.stderr.String(), verifiedLine) {
		select {
		case <-p.exited:
			said := p.complaint()
			if said == "" {
				t.Errorf("the process ended without a word:\n%s", p.stderr)
			}
			return said
		case <-late:
			t.Fatalf("the tables are not read in %v:\n%s", patience, p.stderr)
		case <-time.After(time.Millisecond):
		}
	}
	return ""
}

// dataFiles returns the files that hold data, relative to dir, by kind.
func dataFiles(t *testing.T, dir string) map[string][]string {
	files := map[string][]string{}
	for _, kind := range []string{"log/*.mem", "log/*.sst", "state/*.sst"} {
		paths, err := filepath.Glob(filepath.Join(dir, kind))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			relative, err := filepath.Rel(dir, path)
			if err != nil {
				t.Fatal(err)
			}
			files[kind] = append(files[kind], relative)
		}
	}
	return files
}

// pick returns the first, the middle and the last of paths. The first and the
// last may be files that no one needs any more, or not yet.
func pick(paths []string) []string {
	if len(paths) <= 3 {
		return paths
	}
	return []string{paths[0], paths[len(paths)/2], paths[len(paths)-1]}
}

// damage turns over 8 bytes of a file, at a part of what is in use, and returns
// where.
func damage(t *testing.T, path string, part float64) int64 {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	used := len(content)
	for used > 0 && content[used-1] == 0 {
		used--
	}
	at := int64(part * float64(used))
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	wrong := make([]byte, 8)
	for i := range wrong {
		if int(at)+i < used {
			wrong[i] = ^content[int(at)+i]
		}
	}
	_, err = file.WriteAt(wrong, at)
	if err = errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	return at
}

// copyTree copies a directory, without the empty blocks of sparse files.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, relative)
		if entry.IsDir() {
			return os.MkdirAll(target, 0o700)
		}
		return copySparse(path, target)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func copySparse(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if err := out.Truncate(info.Size()); err != nil {
		return err
	}
	block, empty := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); ; {
		n, err := in.ReadAt(block, at)
		if n > 0 && string(block[:n]) != string(empty[:n]) {
			if _, err := out.WriteAt(block[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
