package graph

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/record"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// A manifest that is damaged, cut, or of records that do not fit together never
// takes the process down: the directory opens at a revision that was reached, as
// it does after a crash while the manifest was written, or is refused as damaged.
func TestDamagedManifest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	config := Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)}
	db, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	const revisions = 12
	for r := Revision(1); r <= revisions; r++ {
		c := Commit{Revision: r, Term: 1, Stamp: 1}
		if r == 1 {
			c.Init = &Init{ClusterID: [16]byte{1}}
		}
		if _, err := db.Commit(c); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	whole := os.DirFS(dir)
	manifests, err := filepath.Glob(filepath.Join(dir, "MANIFEST-*"))
	if err != nil || len(manifests) == 0 {
		t.Fatalf("no manifest: %v", err)
	}
	name := filepath.Base(manifests[len(manifests)-1])
	good, err := os.ReadFile(manifests[len(manifests)-1])
	if err != nil {
		t.Fatal(err)
	}

	opened, refused := 0, 0
	try := func(manifest []byte) {
		t.Helper()
		copied := config
		copied.Dir = t.TempDir()
		if err := os.CopyFS(copied.Dir, whole); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(copied.Dir, name), manifest, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := Open(copied)
		if err != nil {
			refused++
			if text := Damage(err).Error(); !IsCorruptionError(err) || !strings.Contains(text, "damaged") || strings.Contains(text, "\n") {
				t.Errorf("refused with %v", err)
			}
			return
		}
		opened++
		if at := db.Applied().Revision; at > revisions {
			t.Errorf("opened at revision %d of %d", at, revisions)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
	for i := 0; i < len(good); i += 23 {
		try(good[:i])
		flipped := slices.Clone(good)
		flipped[i] ^= 0xff
		try(flipped)
	}
	records := readRecords(t, good)
	for i := range records {
		try(writeRecords(t, slices.Delete(slices.Clone(records), i, i+1)))
		try(writeRecords(t, slices.Insert(slices.Clone(records), i, records[i])))
	}
	t.Logf("%d records in %d bytes: %d directories opened, %d were refused", len(records), len(good), opened, refused)
	if len(records) < revisions || refused < len(records) {
		t.Error("the manifest is too short, or too little damage was noticed")
	}
}

func readRecords(t *testing.T, manifest []byte) (records [][]byte) {
	t.Helper()
	r := record.NewReader(bytes.NewReader(manifest), 0)
	for {
		next, err := r.Next()
		if errors.Is(err, io.EOF) {
			return records
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(next)
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, b)
	}
}

func writeRecords(t *testing.T, records [][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := record.NewWriter(&b)
	for _, r := range records {
		if _, err := w.WriteRecord(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A fileThatPanics stands for a manifest at which Pebble panics.
type fileThatPanics struct{ vfs.FS }

func (fs fileThatPanics) Open(name string, options ...vfs.OpenOption) (vfs.File, error) {
	if strings.HasPrefix(fs.PathBase(name), "MANIFEST") {
		panic("two tables overlap")
	}
	return fs.FS.Open(name, options...)
}

func TestOpenThatPanics(t *testing.T) {
	t.Parallel()
	fs := vfs.NewMem()
	if err := openTest(t, fs).Close(); err != nil {
		t.Fatal(err)
	}
	_, err := Open(Config{Dir: "graph", FS: fileThatPanics{fs}})
	if !IsCorruptionError(err) || !strings.Contains(err.Error(), "two tables overlap") {
		t.Errorf("opened with %v", err)
	}
}
