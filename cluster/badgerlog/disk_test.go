package badgerlog

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestDiskUse appends and truncates as a node does, and checks that the disk
// does not fill.
func TestDiskUse(t *testing.T) {
	t.Parallel()
	total, limit := uint64(200_000), int64(24<<20)
	if testing.Short() {
		total = 50_000
	}
	l := mustOpen(t, testConfig(t.TempDir()))
	var worst time.Duration
	var peak int64
	const batch, keep = 250, 5_000
	for first := uint64(1); first <= total; first += batch {
		list := entries(first, first+batch-1, 1, 200)
		start := time.Now()
		mustStore(t, l, list)
		worst = max(worst, time.Since(start))
		if last := first + batch - 1; last%keep == 0 && last > 2*keep {
			if err := l.DeleteRange(1, last-keep); err != nil {
				t.Fatal(err)
			}
			stats, err := l.Stats()
			if err != nil {
				t.Fatal(err)
			}
			peak = max(peak, stats.DiskBytes)
			if stats.Entries != keep {
				t.Fatalf("%d entries held, want %d", stats.Entries, keep)
			}
		}
	}
	written := int64(total) * 200
	t.Logf("%d entries, %d MiB written, at most %d MiB on disk, slowest store %v", total, written>>20, peak>>20, worst)
	if peak > limit {
		t.Errorf("%d bytes on disk after %d written, at most %d wanted", peak, written, limit)
	}
}

// TestDiskFullSeam runs the refusals on a pretended disk.
func TestDiskFullSeam(t *testing.T) {
	t.Parallel()
	var free atomic.Uint64
	free.Store(1 << 40)
	fatal := make(chan error, 10)
	cfg := testConfig(t.TempDir())
	cfg.OnFatal = func(err error) { fatal <- err }
	cfg.freeBytes = func(string) (uint64, error) { return free.Load(), nil }
	l := mustOpen(t, cfg)
	mustStore(t, l, entries(1, 10, 1, 10))
	reserve := uint64(l.cfg.FreeBytesMin)

	free.Store(reserve)
	err := l.StoreLogs(entries(11, 12, 1, 10))
	if !errors.Is(err, ErrDiskFull) || !strings.Contains(err.Error(), cfg.Dir) || errors.Is(err, ErrPoisoned) {
		t.Fatalf("store with %d free: %v", reserve, err)
	}
	if stats, err := l.Stats(); err != nil || !stats.Refusing || stats.FreeBytes != int64(reserve) {
		t.Fatalf("stats %+v (%v)", stats, err)
	}
	wantLog(t, l, 1, 10, term(1), 10)
	// Voting and truncating go on with less, and stop in time too.
	if err := errors.Join(l.Set([]byte("k"), []byte("v")), l.DeleteRange(1, 2)); err != nil {
		t.Fatal(err)
	}
	free.Store(reserve/2 - 1)
	for _, err := range []error{l.Set([]byte("k"), []byte("w")), l.DeleteRange(1, 3), l.DeleteRange(9, 10), l.Wipe(0)} {
		if !errors.Is(err, ErrDiskFull) || errors.Is(err, ErrPoisoned) {
			t.Fatalf("write with %d free: %v", free.Load(), err)
		}
	}
	if v, err := l.Get([]byte("k")); err != nil || string(v) != "v" {
		t.Fatalf("a refused Set left %q (%v)", v, err)
	}
	wantLog(t, l, 3, 10, term(1), 10)
	// What a compaction holds for a moment refuses no vote.
	time.AfterFunc(30*time.Millisecond, func() { free.Store(1 << 40) })
	if err := l.Set([]byte("k"), []byte("w")); err != nil {
		t.Fatalf("vote while a compaction ends: %v", err)
	}
	mustStore(t, l, entries(11, 12, 1, 10))
	wantLog(t, l, 3, 12, term(1), 10)

	// After a cut, Raft would go on as if the suffix were there.
	if err := l.DeleteRange(11, 12); err != nil {
		t.Fatal(err)
	}
	free.Store(reserve)
	if err := l.StoreLogs(entries(11, 12, 2, 10)); !errors.Is(err, ErrDiskFull) || !errors.Is(err, ErrPoisoned) {
		t.Fatalf("store after a cut: %v", err)
	}
	wantPoisoned(t, l, fatal)

	// Close does not start what it could not finish, and Open does not begin.
	free.Store(0)
	if err := l.Close(); !errors.Is(err, ErrDiskFull) {
		t.Fatalf("close: %v", err)
	}
	other := testConfig(t.TempDir())
	other.freeBytes = cfg.freeBytes
	if _, err := Open(other); !errors.Is(err, ErrDiskFull) {
		t.Fatalf("open: %v", err)
	}
	if err := l.db.Close(); err != nil { // The test's own disk is not full.
		t.Fatal(err)
	}
	if err := l.owner.Close(); err != nil {
		t.Fatal(err)
	}
	wantLog(t, mustOpen(t, testConfig(cfg.Dir)), 3, 10, term(1), 10)
}

// TestDiskFull fills a small file system for real. Were the check missing, the
// kernel would end this process with SIGBUS.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", root).CombinedOutput(); err != nil {
		t.Skipf("cannot mount a small file system here: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", root).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	cfg := testConfig(filepath.Join(root, "log"))
	cfg.BallastBytes = 20 << 20
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A test that failed must not leave the file system busy.
		_ = l.Close()
	})
	if stats, err := l.Stats(); err != nil || stats.BallastBytes != cfg.BallastBytes {
		t.Fatalf("ballast is %d bytes (%v), want %d of real blocks", stats.BallastBytes, err, cfg.BallastBytes)
	}
	fillUp := func(last uint64) (uint64, error) {
		for range 5000 {
			if err := l.StoreLogs(entries(last+1, last+100, 1, 1000)); err != nil {
				return last, err
			}
			last += 100
		}
		return last, errors.New("the disk never filled")
	}
	last, err := fillUp(0)
	ballast := filepath.Join(cfg.Dir, ballastFile)
	if !errors.Is(err, ErrDiskFull) || !strings.Contains(err.Error(), ballast) || errors.Is(err, ErrPoisoned) {
		t.Fatalf("filled up to %d: %v", last, err)
	}
	t.Logf("refused after %d entries of 1 KB: %v", last, err)
	wantLog(t, l, 1, last, term(1), 1000)

	// The way out that the error names.
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	before := last
	if last, err = fillUp(last); last == before {
		t.Fatalf("still refused without the ballast: %v", err)
	}
	if !errors.Is(err, ErrDiskFull) || !strings.Contains(err.Error(), "no ballast file left") {
		t.Fatalf("filled up again to %d: %v", last, err)
	}
	if err := l.SetUint64([]byte("CurrentTerm"), 2); err != nil {
		t.Fatalf("vote on a full disk: %v", err)
	}

	// A restart on the full disk finds everything, and makes no new ballast.
	mustClose(t, l)
	if l, err = Open(cfg); err != nil {
		t.Fatal(err)
	}
	wantLog(t, l, 1, last, term(1), 1000)
	if there, err := exists(ballast); err != nil || there {
		t.Fatalf("ballast on a full disk: %v, %v", there, err)
	}
	// Truncating works, though its space comes back only as more is written.
	if err := l.DeleteRange(1, last-10); err != nil {
		t.Fatal(err)
	}
	// Somebody else takes the rest: nothing is begun, not even at start.
	mustClose(t, l)
	if out, err := exec.Command("dd", "if=/dev/zero", "of="+filepath.Join(root, "other"), "bs=1M", "count=64").CombinedOutput(); err == nil {
		t.Fatalf("dd found too much room: %s", out)
	}
	if _, err := Open(cfg); !errors.Is(err, ErrDiskFull) {
		t.Fatalf("open on a disk without a block: %v", err)
	}
	if err := os.Remove(filepath.Join(root, "other")); err != nil {
		t.Fatal(err)
	}
	if l, err = Open(cfg); err != nil {
		t.Fatal(err)
	}
	wantLog(t, l, last-9, last, term(1), 1000)
	mustClose(t, l)
}

// TestDirectorySync checks that a new file is noticed, however soon it comes
// after the sync before.
func TestDirectorySync(t *testing.T) {
	path := t.TempDir()
	d, err := openDirectory(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.file.Close() //nolint:errcheck // Only read.
	for i := range 50 {
		if err := d.syncIfChanged(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(path, "f"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		info, err := d.file.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if d.settled && info.ModTime().Equal(d.modTime) {
			t.Fatalf("round %d: a new file does not show", i)
		}
		if err := os.Remove(filepath.Join(path, "f")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i%5) * 7 * time.Millisecond)
	}
	time.Sleep(2 * modTimeGrain)
	for range 2 {
		if err := d.syncIfChanged(); err != nil {
			t.Fatal(err)
		}
	}
	if !d.settled {
		t.Fatal("an idle directory never settles")
	}
}
