package graph

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Every byte of a table is guarded: turned over anywhere, Verify finds it and
// names the table.
func TestVerify(t *testing.T) {
	t.Parallel()
	disk := vfs.NewMem()
	config := Config{Dir: "graph", FS: disk, MemTableBytes: 64 << 10}
	db, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	const steps = 12
	for i := range steps {
		c := Commit{Revision: Revision(i + 1), Term: 1, Stamp: Instant(i + 1)}
		if i == 0 {
			c.Init = &Init{ClusterID: [16]byte{1}}
		} else {
			c.Store, c.Schema = DefaultStore, &SchemaCommit{Text: strings.Repeat(fmt.Sprintf("// %d %x\n", i, i*7919), 400)}
		}
		if _, err := db.Commit(c); err != nil {
			t.Fatal(err)
		}
		if i%4 == 3 {
			if _, err := db.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}

	verify := func(disk vfs.FS, bytesPerSecond int64) (read int64, err error) {
		// A compaction would take the tables away before they are read.
		held := tablesHeld{disk, make(chan struct{})}
		c := config
		c.FS = held
		db, err := Open(c)
		if err != nil {
			return 0, err
		}
		defer func() {
			close(held.release)
			if closeErr := db.Close(); closeErr != nil && err == nil {
				err = closeErr
			}
		}()
		return read, db.Verify(context.Background(), bytesPerSecond, func(bytes int64) { read += bytes })
	}
	read, err := verify(disk, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	names, err := disk.List("graph")
	if err != nil {
		t.Fatal(err)
	}
	var tables []string
	size := int64(0)
	for _, name := range names {
		if strings.HasSuffix(name, ".sst") {
			tables = append(tables, name)
			info, err := disk.Stat("graph/" + name)
			if err != nil {
				t.Fatal(err)
			}
			size += info.Size()
		}
	}
	if len(tables) == 0 || read < size {
		t.Fatalf("read %d bytes of %d tables of %d", read, len(tables), size)
	}
	found := 0 // By Verify, and not when the graph was opened.
	for _, name := range tables {
		content := readAll(t, disk, "graph/"+name)
		for at := 0; at < len(content); at += max(1, len(content)/40) {
			damaged := vfs.NewMem()
			if ok, err := vfs.Clone(disk, damaged, "graph", "graph"); err != nil || !ok {
				t.Fatal(ok, err)
			}
			wrong := append([]byte(nil), content...)
			wrong[at] ^= 0x20
			writeAll(t, damaged, "graph/"+name, wrong)
			_, err := verify(damaged, 1<<30)
			if !IsCorruptionError(err) || !strings.Contains(err.Error(), strings.TrimSuffix(name, ".sst")) {
				t.Errorf("byte %d of %d of %s: %v", at, len(content), name, err)
			}
			// It is the only file that is named.
			if err != nil && strings.HasPrefix(err.Error(), "verify the graph: ") {
				found++
				if !strings.Contains(err.Error(), "graph/"+name) || strings.Contains(err.Error(), "000000") {
					t.Errorf("byte %d of %d of %s: %v", at, len(content), name, err)
				}
			}
		}
		lost := vfs.NewMem()
		if ok, err := vfs.Clone(disk, lost, "graph", "graph"); err != nil || !ok {
			t.Fatal(ok, err)
		}
		held := tablesHeld{lost, make(chan struct{})}
		db, err := Open(Config{Dir: "graph", FS: held})
		if err != nil {
			t.Fatal(err)
		}
		if err := lost.Remove("graph/" + name); err != nil {
			t.Fatal(err)
		}
		if err := db.Verify(context.Background(), 1<<30, nil); !IsCorruptionError(err) || !strings.Contains(err.Error(), name) {
			t.Errorf("without %s: %v", name, err)
		}
		close(held.release)
		if err := db.Close(); err != nil {
			t.Logf("close without %s: %v", name, err)
		}
	}
	if found == 0 {
		t.Error("no damage was left for Verify to find")
	}
}

// It ends when it is told to, however slowly it reads.
func TestVerifyEnds(t *testing.T) {
	t.Parallel()
	db, err := Open(Config{Dir: "graph", FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Commit(Commit{Revision: 1, Term: 1, Stamp: 1, Init: &Init{ClusterID: [16]byte{1}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Flush(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := db.Verify(ctx, 1, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if err := db.Verify(ctx, 0, nil); err == nil || !strings.Contains(err.Error(), "bytes per second") {
		t.Errorf("got %v", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := db.Verify(context.Background(), 1, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func readAll(t *testing.T, disk vfs.FS, path string) []byte {
	t.Helper()
	file, err := disk.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(file)
	if err = errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	return content
}

func writeAll(t *testing.T, disk vfs.FS, path string, content []byte) {
	t.Helper()
	file, err := disk.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	_, err = file.Write(content)
	if err = errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
}
