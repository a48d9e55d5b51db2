package faulttest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A node on a disk that fills up refuses writes, says so, and goes on reading;
// killed there it does not start, says why, and when there is space again it
// has everything that was acknowledged.
func TestFullDisk(t *testing.T) {
	const size = 192 << 20
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if !canMount(t) {
		t.Skip("no disk is filled")
	}
	mountDisk(t, disk, size)
	s := settings{DataDir: filepath.Join(disk, "data"), LogMemTable: 1 << 20, GraphMemTable: 1 << 20, SnapshotThreshold: 500, SnapshotInterval: 20 * time.Millisecond, TrailingLogs: 100}
	p := start(t, s)
	p.must(request{Op: "schema"})
	h := newHistory()
	writers := newWriters(h, 4, seed(t))
	// A second of ordinary life.
	if err := load(p, writers, func() { h.writesAfter(p); time.Sleep(300 * time.Millisecond) }); err != nil {
		t.Fatal(err)
	}

	// Someone else takes most of the rest; then the node itself fills it. How much that
	// is depends on how soon its log is cut, so the other one takes more by and by.
	var fillers []string
	takeMore := func(size int) {
		fillers = append(fillers, filepath.Join(disk, fmt.Sprint("filler-", len(fillers))))
		fill(t, fillers[len(fillers)-1], size)
	}
	takeMore(100 << 20)
	c, err := p.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	full := 0
	for i, wait := 0, time.Now().Add(patience); full < 3 && time.Now().Before(wait); i++ {
		if full == 0 && i%25 == 24 {
			takeMore(4 << 20)
		}
		actor := "full-" + time.Now().Format("150405.000000000")
		updates := []update{{Document: actor, Person: "0"}}
		asked := h.begin(actor, updates)
		r, err := c.ask(request{Op: "write", Actor: actor, Updates: updates, Pad: 60_000})
		h.end(asked, r, err)
		switch {
		case err != nil:
			t.Fatalf("the process is gone: %v\n%s", err, p.stderr)
		case r.Full:
			if full++; full == 1 {
				t.Logf("write %d is refused: %s", i, r.Error)
			}
		case r.Error != "":
			t.Fatalf("%s\n%s", r.Error, p.stderr)
		}
	}
	if full == 0 {
		t.Fatal("the node did not notice that the disk is full")
	}
	if scan := p.must(request{Op: "scan"}); len(scan.Tuples) == 0 {
		t.Error("nothing can be read")
	}

	// Someone else takes the last byte. Badger writes to mapped files, also by
	// itself in the background, and a process that does so on a full disk is
	// ended by the kernel: against that there is only the ballast file. A node
	// that is not caught in such a moment goes on reading.
	takeMore(size)
	updates := []update{{Document: "last", Person: "0"}}
	asked := h.begin("last", updates)
	r, err := c.ask(request{Op: "write", Actor: "last", Updates: updates})
	h.end(asked, r, err)
	if err == nil && !r.Full {
		t.Errorf("write on a disk without a free byte: %+v\n%s", r, p.stderr)
	}
	if err != nil {
		p.wait()
		if said := p.stderr.String(); !strings.Contains(said, "SIGBUS") && !strings.Contains(said, "no space") {
			t.Errorf("the process ended:\n%s", said)
		}
		t.Log("the process did not survive the last byte")
	} else {
		p.kill()
	}
	if p, err := try(t, s); err == nil {
		p.kill()
		t.Error("it started without a free byte")
	} else if said := p.complaint(); !strings.Contains(said, "full") && !strings.Contains(said, "no space") {
		t.Errorf("it did not start and said:\n%s", p.stderr)
	} else {
		t.Logf("without a free byte: %s", said)
	}

	for _, name := range fillers {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	p = start(t, s)
	if err := load(p, writers, func() { h.writesAfter(p); time.Sleep(200 * time.Millisecond) }); err != nil {
		t.Fatal(err)
	}
	p.stop()
	h.verify(t, s.DataDir)
	t.Logf("%d requests acknowledged, all there", h.acknowledged.Load())
}

// fill writes a file of so many bytes, or of all that is free.
func fill(t *testing.T, path string, size int) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 1<<20)
	for written := 0; written < size; {
		n, err := file.Write(block)
		if written += n; err != nil {
			break // Full.
		}
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
}
