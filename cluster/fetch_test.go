package cluster

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	peerv1 "github.com/pembadb/pemba/cluster/pemba/peer/v1"
	"github.com/pembadb/pemba/graph"
)

// warnings hands on the lines that say that a state could not be fetched.
type warnings struct {
	slog.Handler
	lines chan string
}

// Enabled implements slog.Handler.
func (w warnings) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }

// WithAttrs implements slog.Handler.
func (w warnings) WithAttrs(attrs []slog.Attr) slog.Handler {
	return warnings{w.Handler.WithAttrs(attrs), w.lines}
}

// Handle implements slog.Handler.
func (w warnings) Handle(_ context.Context, r slog.Record) error {
	if strings.HasPrefix(r.Message, "the state could not be fetched") {
		r.Attrs(func(a slog.Attr) bool {
			if err, ok := a.Value.Any().(error); ok {
				w.lines <- err.Error()
			}
			return true
		})
	}
	return nil
}

// pretend sets what a room found, for good or, with free < 0, has it look again.
func (r *room) pretend(free int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if free < 0 {
		r.looked = time.Time{}
		return
	}
	r.looked, r.stats.FreeBytes = time.Now().Add(time.Hour), free
}

// bytes returns how many bytes of states have come.
func (i *installer) bytes() int64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.received
}

// TestStateLargerThanDisk: a node that is sent a state gives it up while there is still
// the space that writes need, gives the space back, says how much there must be, does not
// ask again at once, and goes on when there is room. It filled the disk to its end, where
// the log cannot store a vote and the node stops.
func TestStateLargerThanDisk(t *testing.T) {
	t.Parallel()
	small := func(c *Config) {
		c.SnapshotThreshold, c.TrailingLogs, c.SnapshotInterval = 16, 4, time.Millisecond
		c.StateBytesPerSecond = 256 << 10 // Behind a MiB that comes at once.
	}
	leader := openCluster(t, 1, small)[0]
	writeSchema(t, leader)
	const count, metadataBytes = 60, 40 << 10
	for i := range count {
		random := make([]byte, metadataBytes*3/4)
		if _, err := rand.Read(random); err != nil {
			t.Fatal(err)
		}
		m := create(viewer(fmt.Sprint(i), "anna"))
		m.Metadata = fmt.Appendf(nil, "{%q:%q}", "a", base64.StdEncoding.EncodeToString(random))
		write(t, leader, m)
	}
	eventually(t, "the log is cut", func() bool { first, _ := leader.log.FirstIndex(); return first > count/2 })

	config := peerConfig(t, "n2")
	small(&config)
	config.Join = joinVia(leader)
	lines := make(chan string, 100)
	config.Logger = slog.New(warnings{config.Logger.Handler(), lines})
	n2 := open(t, config)
	eventually(t, "some of the state has come", func() bool { return n2.installer.bytes() > 0 })
	n2.room.pretend(12345)
	told := ""
	select {
	case told = <-lines:
	case <-time.After(deadline):
		t.Fatal("the state was not given up")
	}
	stats, err := n2.room.look() // What was pretended.
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("given up: %s", told)
	came := n2.installer.bytes()
	if installs := n2.installer.count(); installs != 0 || came >= count*metadataBytes {
		t.Fatalf("%d states came into force, and %d bytes have come", installs, came)
	}
	var has, need int64
	if _, text, ok := strings.Cut(told, "has about "); ok {
		if _, err := fmt.Sscanf(text, "%d bytes, so that some %d should be free", &has, &need); err != nil {
			t.Error(err)
		}
	}
	if !strings.Contains(told, ErrDiskFull.Error()) || has < count*metadataBytes || need != has+n2.room.bytesMin(stats) {
		t.Errorf("%q does not say that the disk is full and that %d bytes are needed beside the %d of the state",
			told, n2.room.bytesMin(stats), has)
	}
	if entries, err := filepath.Glob(filepath.Join(config.DataDir, stateFolder+"-*")); err != nil || len(entries) > 0 {
		t.Errorf("what had come is still there: %q (%v)", entries, err)
	}
	if err := n2.usable(); err != nil {
		t.Errorf("the node stopped: %v", err)
	}
	// It was given up at once, and not after the tries that are for a broken connection.
	full := n2.room.check(0)
	if f := (&fetch{node: n2}); !errors.Is(full, ErrDiskFull) || !f.lasting(fmt.Errorf("a part: %w", full)) {
		t.Errorf("a fetch goes on with its transfer after %v", full)
	}
	// The next round ends before the sender is asked, which would hold its log for it.
	select {
	case told = <-lines:
	case <-time.After(deadline):
		t.Fatal("the state was not tried again")
	}
	if !strings.Contains(told, ErrDiskFull.Error()) || n2.installer.bytes() != came {
		t.Errorf("the next round got %d bytes: %s", n2.installer.bytes()-came, told)
	}
	n2.room.pretend(-1)
	eventually(t, "n2 is ready", func() bool { return n2.Ready() == nil })
	mustHave(t, n2, count, "anna")
	if installs := n2.installer.count(); installs != 1 {
		t.Errorf("%d states came into force", installs)
	}
}

// TestFetchSparesTheLiveState: a sender that says that its state is of a revision that was
// not asked for, or of the one whose folder is in force, is refused before that folder is
// removed to make room for it.
func TestFetchSparesTheLiveState(t *testing.T) {
	t.Parallel()
	_, n2, _ := sendsState(t, func(c *Config) {
		c.SnapshotThreshold, c.TrailingLogs, c.SnapshotInterval = 16, 1, time.Millisecond
	})
	eventually(t, "n2 is ready", func() bool { return n2.Ready() == nil })
	m := n2.machine.Load()
	var live graph.Revision
	if _, err := fmt.Sscanf(m.folder, stateFolder+"-%d", &live); err != nil {
		t.Fatalf("the state in force is in %s: %v", m.folder, err)
	}
	reader, err := n2.db().ReadState()
	if err != nil {
		t.Fatal(err)
	}
	header := reader.Header()
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ asked, sent graph.Revision }{{live + 100, live}, {live, live}, {1, live}, {live, live - 1}} {
		f := &fetch{node: n2, from: "n1", revision: c.asked}
		header.Revision = c.sent
		err := f.begin(&peerv1.StateHeader{Transfer: "t", Header: header.AppendBinary(nil)})
		if !errors.Is(err, graph.ErrStateDiffers) || !f.lasting(err) {
			t.Errorf("revision %d where %d or later was asked for: %v", c.sent, c.asked, err)
		}
		if err := f.close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(n2.dir.folder(m.folder), "LOCK")); errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("revision %d where %d or later was asked for removed the state in force", c.sent, c.asked)
		}
	}
}
