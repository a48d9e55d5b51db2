package graph

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

// A manifest that is damaged or cut anywhere never takes the process down: the
// directory opens, as it does after a crash while the manifest was written, or
// is refused with an error.
func TestDamagedManifest(t *testing.T) {
	dir := t.TempDir()
	config := Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)}
	for i := range 3 {
		db, err := Open(config)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			_, err = db.Commit(Commit{Revision: 1, Term: 1, Stamp: 1, Init: &Init{ClusterID: [16]byte{1}}})
		} else {
			_, err = db.Commit(Commit{Revision: Revision(1 + i), Term: 1, Stamp: 1})
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
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
	try := func(damaged []byte) {
		copied := config
		copied.Dir = t.TempDir()
		if err := os.CopyFS(copied.Dir, whole); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(copied.Dir, name), damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := Open(copied)
		if err != nil {
			refused++
			return
		}
		opened++
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
	for i := 0; i < len(good); i += 5 {
		try(good[:i])
		flipped := append([]byte{}, good...)
		flipped[i] ^= 0xff
		try(flipped)
	}
	t.Logf("%d bytes: %d directories opened, %d were refused", len(good), opened, refused)
	if refused == 0 {
		t.Error("no damage was noticed")
	}
}
