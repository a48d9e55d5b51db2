package graph

import (
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// A tablesHeld is a file system that makes no table before release is closed.
type tablesHeld struct {
	vfs.FS
	release chan struct{}
}

func (fs tablesHeld) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if strings.HasSuffix(name, ".sst") {
		<-fs.release
	}
	return fs.FS.Create(name, category)
}

// Open does not wait until what an earlier run wrote is compacted, and it is
// compacted then.
func TestOpenBeforeCompactions(t *testing.T) {
	t.Parallel()
	fs := vfs.NewMem()
	db, err := Open(Config{Dir: "graph", FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	options := db.config.options(db.listener)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	options.DisableAutomaticCompactions = true
	p, err := pebble.Open("graph", options)
	if err != nil {
		t.Fatal(err)
	}
	const tables = 8
	for range tables {
		value, _, err := get(p, metaKey(metaFormat))
		if err == nil {
			err = p.Set(metaKey(metaFormat), value, pebble.NoSync)
		}
		if err == nil {
			err = p.Flush()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}

	held := tablesHeld{fs, make(chan struct{})}
	opened := make(chan error, 1)
	go func() {
		var err error
		db, err = Open(Config{Dir: "graph", FS: held})
		opened <- err
	}()
	select {
	case err := <-opened:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(time.Minute):
		close(held.release)
		t.Fatal("Open waits for a compaction")
	}
	if n := db.pebble.Metrics().Levels[0].TablesCount; n < tables {
		t.Fatalf("%d tables in level 0 are left of %d: the test would show nothing", n, tables)
	}
	close(held.release)
	for end := time.Now().Add(time.Minute); db.pebble.Metrics().Levels[0].TablesCount >= tables; {
		if time.Now().After(end) {
			t.Fatal("nothing was compacted")
		}
		time.Sleep(time.Millisecond)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}
