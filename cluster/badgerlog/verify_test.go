package badgerlog

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestVerify damages tables in many places, one at a time, of a log most of
// whose entries were dropped. Open does not read what was dropped, and Verify
// finds what it leaves.
func TestVerify(t *testing.T) {
	t.Parallel()
	dir, last := tableLog(t)
	l := mustOpen(t, testConfig(dir))
	if err := l.DeleteRange(1, last-100); err != nil {
		t.Fatal(err)
	}
	if err := l.Verify(); err != nil {
		t.Errorf("a whole log: %v", err)
	}
	image := crashImage(t, dir)
	mustClose(t, l)
	if err := l.Verify(); !errors.Is(err, ErrClosed) {
		t.Errorf("a closed log: %v", err)
	}

	atOpen, later, left := 0, 0, 0
	for _, table := range filesOf(t, image, "*.sst") {
		used := usedBytes(t, table)
		for at := used / 50; at < used-2; at += used / 3 {
			copied := crashImage(t, image)
			path := filepath.Join(copied, filepath.Base(table))
			flip(t, path, at)
			damaged, err := Open(testConfig(copied))
			if err != nil {
				if !IsCorruptionError(err) {
					t.Errorf("damage at %d of %d: %v", at, used, err)
				}
				atOpen++
				continue
			}
			err = damaged.Verify()
			switch {
			case IsCorruptionError(err):
				later++
			case err != nil:
				t.Errorf("damage at %d of %d: %v", at, used, err)
			default:
				// Only in a table that is no part of the log any more.
				if _, err := os.Stat(path); err == nil {
					t.Errorf("%s is in use, and damage at %d of %d was not found", path, at, used)
				}
				left++
			}
			// It may have to leave Badger's files as they are.
			if err := damaged.Close(); err != nil {
				t.Logf("close: %v", err)
			}
		}
	}
	if later == 0 {
		t.Error("no damage was left to Verify")
	}
	t.Logf("%d places found by Open, %d by Verify, %d in tables that are not in use", atOpen, later, left)
}
