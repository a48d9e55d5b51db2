package graph

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestDamageIsOneLine holds that a block that fails its checksum is told in one
// line, which names the file with its directory, by the read that meets it as by
// the log, which prints errors with %+v.
func TestDamageIsOneLine(t *testing.T) {
	disk := vfs.NewMem()
	db := openTest(t, disk)
	c := Commit{Revision: 1, Term: 1, Stamp: 1, Store: DefaultStore}
	for i := range 3000 {
		c.Changes = append(c.Changes, create(mustParse(t, fmt.Sprintf("doc:a%d#viewer@user:x%d", i, i)))...)
	}
	mustCommit(t, db, c)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	names, err := disk.List("graph")
	if err != nil {
		t.Fatal(err)
	}
	met := 0
	for _, name := range names {
		if !strings.HasSuffix(name, ".sst") {
			continue
		}
		content := readAll(t, disk, "graph/"+name)
		for at := 100; at < len(content); at += len(content)/10 + 1 {
			damaged := vfs.NewMem()
			if ok, err := vfs.Clone(disk, damaged, "graph", "graph"); err != nil || !ok {
				t.Fatal(ok, err)
			}
			wrong := append([]byte(nil), content...)
			wrong[at] ^= 0x20
			writeAll(t, damaged, "graph/"+name, wrong)
			var log strings.Builder
			fatal := make(chan error, 1)
			db, err := Open(Config{
				Dir: "graph", FS: damaged, Logger: slog.New(slog.NewTextHandler(&log, nil)), OnFatal: func(err error) { fatal <- err },
			})
			if err != nil {
				continue // Opening met it.
			}
			s, err := db.Snapshot(DefaultStore, 0, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, _, err = s.Read(Filter{}, nil, 5000)
			s.Close()
			if err != nil {
				met++
				path := "graph/" + name
				told := Damage(fmt.Errorf("answer: %w", err))
				var heard error
				select {
				case heard = <-fatal:
				case <-time.After(time.Minute):
					t.Fatalf("a read met %v, and OnFatal was not called", err)
				}
				for what, err := range map[string]error{"the read": told, "OnFatal": heard} {
					text := fmt.Sprintf("%+v", err)
					if !IsCorruptionError(err) || strings.Contains(text, "\n") || strings.Contains(text, "carrier") ||
						strings.Count(text, path) != 1 || !strings.Contains(text, "the graph's data is damaged") || len(text) > 400 {
						t.Errorf("%s says %s", what, text)
					}
				}
				if again := Damage(told); again.Error() != told.Error() || !strings.Contains(told.Error(), "answer: ") {
					t.Errorf("told again: %v", again)
				}
			}
			_ = db.Close() // It says again what it met.
			// Only now is nobody left who writes to it.
			for line := range strings.Lines(log.String()) {
				if len(line) > 500 || strings.Contains(line, ".go:") {
					t.Errorf("the log has %s", line)
				}
			}
		}
	}
	if met == 0 {
		t.Fatal("no read met the damage")
	}
	if got := Damage(nil); got != nil {
		t.Errorf("nothing became %v", got)
	}
	if got := Damage(ErrClosed); !errors.Is(got, ErrClosed) || IsCorruptionError(got) {
		t.Errorf("%v became %v", ErrClosed, got)
	}
}
