package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/pembadb/pemba/cluster/badgerlog"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

func TestBootstrapAndResume(t *testing.T) {
	t.Parallel()
	config := testConfig(t, filepath.Join(t.TempDir(), "not", "there", "yet"))
	n := open(t, config)
	info, err := os.Stat(config.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode != 0o700 {
		t.Errorf("the data directory has mode %o", mode)
	}
	if err := n.Ready(); err != nil {
		t.Error(err)
	}
	writeSchema(t, n)
	result := write(t, n, create(viewer("0", "hanna")))
	if result.Changed != 1 || result.Revision != n.db().Applied().Revision {
		t.Errorf("got %+v at revision %d", result, n.db().Applied().Revision)
	}
	before, err := n.Status()
	if err != nil {
		t.Fatal(err)
	}
	if before.Role != "leader" || before.Voters != 1 || before.ClusterID == [16]byte{} || !strings.HasPrefix(before.NodeID, "node-") ||
		uint64(before.Applied) > before.LastIndex || before.Durable > before.Applied || before.LogBytes <= 0 || before.StateBytes <= 0 {
		t.Errorf("got %+v", before)
	}
	closeNode(t, n)
	closeNode(t, n) // Again does nothing.
	if _, err := n.Write(testContext(t), create(viewer("1", "hanna"))); !errors.Is(err, ErrShuttingDown) {
		t.Errorf("write to a closed node: %v", err)
	}
	if _, err := n.Snapshot(testContext(t), graph.DefaultStore, Consistency{}, graph.Overlay{}); !errors.Is(err, ErrShuttingDown) {
		t.Errorf("read from a closed node: %v", err)
	}
	if err := n.Ready(); !errors.Is(err, ErrShuttingDown) {
		t.Errorf("closed node is ready: %v", err)
	}

	n = open(t, config)
	after, err := n.Status()
	if err != nil {
		t.Fatal(err)
	}
	if after.ClusterID != before.ClusterID || after.NodeID != before.NodeID || after.Applied < before.Applied || after.Term <= before.Term {
		t.Errorf("before %+v\nafter  %+v", before, after)
	}
	if !has(t, n, Consistency{Mode: Linearizable}, viewer("0", "hanna")) {
		t.Error("the tuple is gone")
	}
	closeNode(t, n)

	config.NodeID = "another"
	refusedWith(t, config, config.DataDir, before.NodeID, "another")
}

// A crash at any step of the first start leaves a directory that the next start
// finishes.
func TestHalfFinishedBootstrap(t *testing.T) {
	t.Parallel()
	logAt := func(t *testing.T, dir string) *badgerlog.Log {
		config := testConfig(t, dir).Log
		config.Dir, config.Logger = filepath.Join(dir, logFolder), slog.New(slog.DiscardHandler)
		log, err := badgerlog.Open(config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := log.Close(); err != nil {
				t.Error(err)
			}
		})
		return log
	}
	claim := func(t *testing.T, dir string) {
		d, err := openDataDir(dir, "n1")
		if err != nil {
			t.Fatal(err)
		}
		if err := d.close(); err != nil {
			t.Fatal(err)
		}
	}
	put := func(t *testing.T, dir, name, content string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		name string
		make func(t *testing.T, dir string)
	}{
		{"the lock", func(t *testing.T, dir string) { put(t, dir, lockFile, "1\n") }},
		{"half the format", func(t *testing.T, dir string) { put(t, dir, formatFile+newExtension, "pem") }},
		{"the format", func(t *testing.T, dir string) { put(t, dir, formatFile, "pemba data directory, format 1\n") }},
		{"half the node id", func(t *testing.T, dir string) {
			put(t, dir, formatFile, "pemba data directory, format 1\n")
			put(t, dir, nodeFile+newExtension, "n")
		}},
		{"the node id", claim},
		{"an empty state", func(t *testing.T, dir string) {
			claim(t, dir)
			if err := os.Mkdir(filepath.Join(dir, stateFolder), 0o700); err != nil {
				t.Fatal(err)
			}
		}},
		{"an empty log", func(t *testing.T, dir string) {
			claim(t, dir)
			logAt(t, dir)
		}},
		{"the first term", func(t *testing.T, dir string) {
			claim(t, dir)
			if err := logAt(t, dir).SetUint64(keyCurrentTerm, 1); err != nil {
				t.Fatal(err)
			}
		}},
		{"the first entry", func(t *testing.T, dir string) {
			claim(t, dir)
			log := logAt(t, dir)
			if err := log.SetUint64(keyCurrentTerm, 1); err != nil {
				t.Fatal(err)
			}
			c := raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: "127.0.0.1:7000"}}}
			if err := log.StoreLog(&raft.Log{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(c)}); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(step.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			t.Run("made", func(t *testing.T) { step.make(t, dir) }) // Closed when it ends.
			n := open(t, testConfig(t, dir))
			if n.ClusterID() == [16]byte{} {
				t.Error("the cluster has no id")
			}
			writeSchema(t, n)
		})
	}
}

func TestRefusedDirectories(t *testing.T) {
	t.Parallel()
	// used makes a directory with some history, and a cut log.
	used := func(t *testing.T) Config {
		config := testConfig(t, t.TempDir())
		config.NodeID = "n1"
		config.TrailingLogs = 1
		n := open(t, config)
		writeSchema(t, n)
		for i := range 10 {
			write(t, n, create(viewer(fmt.Sprint(i), "hanna")))
		}
		n.cutOnce(n.machine.Load())
		closeNode(t, n)
		return config
	}
	remove := func(t *testing.T, path ...string) {
		if err := os.RemoveAll(filepath.Join(path...)); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("another format", func(t *testing.T) {
		config := used(t)
		if err := os.WriteFile(filepath.Join(config.DataDir, formatFile), []byte("pemba data directory, format 7\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		refusedWith(t, config, config.DataDir, "version 7", "version 1")
	})
	t.Run("damaged format", func(t *testing.T) {
		config := used(t)
		if err := os.WriteFile(filepath.Join(config.DataDir, formatFile), []byte("hello"), 0o600); err != nil {
			t.Fatal(err)
		}
		refusedWith(t, config, config.DataDir, formatFile, "hello")
	})
	t.Run("foreign files", func(t *testing.T) {
		config := testConfig(t, t.TempDir())
		if err := os.WriteFile(filepath.Join(config.DataDir, "thesis.tex"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		refusedWith(t, config, config.DataDir, "thesis.tex")
	})
	t.Run("nothing is written into it", func(t *testing.T) {
		for _, foreign := range []map[string]string{
			{"thesis.tex": "chapter"},
			{"thesis.tex": "chapter", lockFile: "precious"},
			{lockFile: "precious"},
			{lockFile: "12345", formatFile + newExtension: "precious"},
			{lockFile: "12345", formatFile: "pemba data directory, format 7\n"},
			{formatFile: "precious"},
		} {
			config := testConfig(t, t.TempDir())
			for name, content := range foreign {
				if err := os.WriteFile(filepath.Join(config.DataDir, name), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			refusedWith(t, config, config.DataDir)
			entries, err := os.ReadDir(config.DataDir)
			if err != nil {
				t.Fatal(err)
			}
			left := map[string]string{}
			for _, entry := range entries {
				content, err := os.ReadFile(filepath.Join(config.DataDir, entry.Name()))
				if err != nil {
					t.Fatal(err)
				}
				left[entry.Name()] = string(content)
			}
			if !maps.Equal(left, foreign) {
				t.Errorf("of %q the refusal leaves %q", foreign, left)
			}
		}
	})
	t.Run("many begin at once", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "new")
		const many = 8
		ends := make(chan error, many)
		for i := range many {
			go func() {
				d, err := openDataDir(dir, fmt.Sprint("n", i))
				if err == nil {
					t.Cleanup(func() {
						if err := d.close(); err != nil {
							t.Error(err)
						}
					})
				}
				ends <- err
			}()
		}
		held := 0
		for range many {
			switch err := <-ends; {
			case err == nil:
				held++
			case !strings.Contains(err.Error(), "is in use by"):
				t.Error(err)
			}
		}
		if held != 1 {
			t.Errorf("%d have the directory", held)
		}
	})
	t.Run("a file", func(t *testing.T) {
		config := testConfig(t, filepath.Join(t.TempDir(), "file"))
		if err := os.WriteFile(config.DataDir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		refusedWith(t, config, config.DataDir, "a file of that name")
	})
	t.Run("in use", func(t *testing.T) {
		config := testConfig(t, t.TempDir())
		open(t, config)
		refusedWith(t, config, config.DataDir, fmt.Sprintf("process %d", os.Getpid()))
	})
	t.Run("no node id", func(t *testing.T) {
		config := used(t)
		remove(t, config.DataDir, nodeFile)
		refusedWith(t, config, config.DataDir, nodeFile)
	})
	t.Run("a log behind the state", func(t *testing.T) {
		config, young := used(t), testConfig(t, t.TempDir())
		young.NodeID = "n1"
		closeNode(t, open(t, young))
		remove(t, config.DataDir, logFolder)
		if err := os.Rename(filepath.Join(young.DataDir, logFolder), filepath.Join(config.DataDir, logFolder)); err != nil {
			t.Fatal(err)
		}
		refusedWith(t, config, filepath.Join(config.DataDir, logFolder), filepath.Join(config.DataDir, stateFolder), "ends at entry 4", "up to 15")
	})
	t.Run("no log", func(t *testing.T) {
		config := used(t)
		remove(t, config.DataDir, logFolder)
		refusedWith(t, config, filepath.Join(config.DataDir, logFolder), "ends at entry 0")
	})
	t.Run("no state behind a cut log", func(t *testing.T) {
		config := used(t)
		remove(t, config.DataDir, stateFolder)
		refusedWith(t, config, "begins at entry", "ends at 0")
	})
	t.Run("a log of another history", func(t *testing.T) {
		config, other := used(t), testConfig(t, t.TempDir())
		other.NodeID = "n1"
		for range 8 { // Each start is a term and some entries.
			closeNode(t, open(t, other))
		}
		remove(t, config.DataDir, logFolder)
		if err := os.Rename(filepath.Join(other.DataDir, logFolder), filepath.Join(config.DataDir, logFolder)); err != nil {
			t.Fatal(err)
		}
		refusedWith(t, config, "term", "not of the same node")
	})
	t.Run("a full disk", func(t *testing.T) {
		config := testConfig(t, t.TempDir())
		config.Log.FreeBytesMin = 1 << 50
		_, err := Open(testContext(t), config)
		if !errors.Is(err, ErrDiskFull) {
			t.Errorf("got %v", err)
		}
	})
}

// A whole log without its state makes the state again.
func TestStateIsMadeFromTheLog(t *testing.T) {
	t.Parallel()
	config := testConfig(t, t.TempDir())
	n := open(t, config)
	writeSchema(t, n)
	for i := range 20 {
		write(t, n, create(viewer(fmt.Sprint(i), "hanna")))
	}
	id := n.ClusterID()
	closeNode(t, n)
	if err := os.RemoveAll(filepath.Join(config.DataDir, stateFolder)); err != nil {
		t.Fatal(err)
	}
	n = open(t, config)
	mustHave(t, n, 20, "hanna")
	if n.ClusterID() != id {
		t.Error("the cluster has another id")
	}
}

// What a caller may come to feel of the defaults is in docs/limits.md.
func TestDefaultsAreDocumented(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile("../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	c := Config{}.withDefaults()
	for _, row := range []string{
		fmt.Sprintf("| `--wait-max` | %d s | how long a read waits for its revision", c.WaitMax/time.Second),
		fmt.Sprintf("| fixed | %d,%03d, and %d MiB together | writes under way on a node |", c.ProposalsMax/1000, c.ProposalsMax%1000, c.ProposalBytesMax>>20),
	} {
		if !strings.Contains(string(content), row) {
			t.Errorf("docs/limits.md has no row %q", row)
		}
	}
}

func TestConfigIsValidated(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Config){
		"DataDir":          func(c *Config) { c.DataDir = "" },
		"NodeID":           func(c *Config) { c.NodeID = "a b" },
		"RaftAddr":         func(c *Config) { c.RaftAddr = "localhost" },
		"ElectionTimeout":  func(c *Config) { c.ElectionTimeout = 1 },
		"MaxAppendEntries": func(c *Config) { c.MaxAppendEntries = 1025 },
		"SnapshotBytes":    func(c *Config) { c.SnapshotBytes = -1 },
		"SnapshotInterval": func(c *Config) { c.SnapshotInterval = -1 },
		"EntryBytesMax":    func(c *Config) { c.EntryBytesMax = -1 },
		"ProposalsMax":     func(c *Config) { c.ProposalsMax = -1 },
		"ProposalBytesMax": func(c *Config) { c.ProposalBytesMax, c.EntryBytesMax = 10, 11 },
		"WaitMax":          func(c *Config) { c.WaitMax = -1 },
		"CollectPause":     func(c *Config) { c.CollectPause = -1 },
		"CollectLimit":     func(c *Config) { c.CollectLimit = -1 },
		"PrunePause":       func(c *Config) { c.PrunePause = -1 },
		"WatchersMax":      func(c *Config) { c.WatchersMax = -1 },
		"Graph":            func(c *Config) { c.Graph.Dir = "x" },
		"Log":              func(c *Config) { c.Log.Dir = "x" },
	} {
		config := Config{DataDir: "x"}
		if err := config.Validate(); err != nil {
			t.Fatal(err)
		}
		change(&config)
		if err := config.Validate(); err == nil || !strings.Contains(err.Error(), "Config."+name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	config := testConfig(t, t.TempDir())
	config.EntryBytesMax = 1 << 29
	config.ProposalBytesMax = 1 << 30
	refusedWith(t, config, "Config.EntryBytesMax")
}

// What was acknowledged is there after a crash, before Open returns, and the
// revision that readers see is not below what they saw.
func TestCrashLosesNothing(t *testing.T) {
	t.Parallel()
	config := testConfig(t, t.TempDir())
	n := open(t, config)
	writeSchema(t, n)
	for i := range 50 {
		write(t, n, create(viewer(fmt.Sprint(i), "hanna")))
	}
	applied := n.db().Applied()
	if durable := n.db().Durable(); durable.Revision >= applied.Revision {
		t.Fatalf("nothing is in memory only: durable %d, applied %d", durable.Revision, applied.Revision)
	}
	config.DataDir = crashCopy(t, n)
	crashed := open(t, config)
	if now := crashed.db().Applied(); now.Revision < applied.Revision || now.Stamp < applied.Stamp {
		t.Errorf("applied went back from %d to %d", applied.Revision, now.Revision)
	}
	mustHave(t, crashed, 50, "hanna")
	// What replayed before Raft started is durable at once.
	if durable := crashed.db().Durable(); durable.Revision+1 < applied.Revision {
		t.Errorf("durable %d, applied before %d", durable.Revision, applied.Revision)
	}
}

// Raft's own entries never reach the graph. A cut must not take them when the
// graph's revision stays below: NewRaft would miss them.
func TestCutSparesWhatTheStateNeeds(t *testing.T) {
	t.Parallel()
	config := testConfig(t, t.TempDir())
	config.TrailingLogs = 1
	n := open(t, config)
	writeSchema(t, n)
	for range 4 {
		for range 10 {
			if err := n.raft().Barrier(0).Error(); err != nil {
				t.Fatal(err)
			}
		}
		n.cutOnce(n.machine.Load())
		status, err := n.Status()
		if err != nil {
			t.Fatal(err)
		}
		if status.FirstIndex > uint64(status.Durable)+1 {
			t.Fatalf("the log begins at %d, and the state is durable up to %d", status.FirstIndex, status.Durable)
		}
		closeNode(t, n)
		n = open(t, config)
	}
}

func TestLogIsCutUnderLoad(t *testing.T) {
	t.Parallel()
	config := testConfig(t, t.TempDir())
	config.SnapshotThreshold = 200
	config.TrailingLogs = 50
	config.SnapshotInterval = time.Millisecond
	n := open(t, config)
	writeSchema(t, n)
	const writers, each = 16, 250
	writeConcurrently(t, n, writers, each)
	wait := time.Now().Add(deadline)
	for {
		status, err := n.Status()
		if err != nil {
			t.Fatal(err)
		}
		if held := status.LastIndex + 1 - status.FirstIndex; held <= 50+2*200 {
			t.Logf("%d entries of %d are left", held, status.LastIndex)
			break
		} else if time.Now().After(wait) {
			t.Fatalf("%d entries are left: %+v", held, status)
		}
		time.Sleep(5 * time.Millisecond)
	}
	closeNode(t, n)
	n = open(t, config)
	mustHave(t, n, writers*each, "hanna")
}

// Large entries are cut by their bytes, and fewer of them are kept.
func TestLogIsCutByBytes(t *testing.T) {
	t.Parallel()
	config := testConfig(t, t.TempDir())
	config.SnapshotBytes = 200 << 10
	config.SnapshotInterval = time.Millisecond
	n := open(t, config)
	writeSchema(t, n)
	long := strings.Repeat("x", 1000)
	for i := range 100 {
		m := create()
		for j := range 20 {
			m.Updates = append(m.Updates, graph.Update{Operation: graph.Touch, Tuple: viewer(fmt.Sprintf("%s%d", long, j), fmt.Sprint(i))})
		}
		write(t, n, m)
	}
	wait := time.Now().Add(deadline)
	for {
		status, err := n.Status()
		if err != nil {
			t.Fatal(err)
		}
		if held := status.LastIndex + 1 - status.FirstIndex; held <= 30 {
			return
		} else if time.Now().After(wait) {
			t.Fatalf("%d entries of 20 KiB are left", held)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// writeConcurrently creates documents 0 to writers*each-1, viewed by hanna.
func writeConcurrently(t testing.TB, n *Node, writers, each int) {
	t.Helper()
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			for i := range each {
				result, err := n.Write(context.Background(), create(viewer(fmt.Sprint(w*each+i), "hanna")))
				if err != nil || result.Refusal != nil {
					t.Error(err, result.Refusal)
					return
				}
			}
		})
	}
	group.Wait()
}

// An entry that changes very many tuples is not made again after a crash, once
// it was answered; small ones are left to the log.
func TestLargeChangeIsFlushed(t *testing.T) {
	t.Parallel()
	const large = 100
	config := testConfig(t, t.TempDir())
	config.SnapshotChanges = large
	n := open(t, config)
	writeSchema(t, n)
	for _, size := range []int{large - 1, 1} {
		m := create()
		for i := range size {
			m.Updates = append(m.Updates, graph.Update{Operation: graph.Create, Tuple: viewer(fmt.Sprint(size, "d", i), "anna")})
		}
		write(t, n, m)
	}
	if durable, applied := n.db().Durable(), n.db().Applied(); durable.Revision >= applied.Revision {
		t.Fatalf("revision %d is durable, of %d: the test would show nothing", durable.Revision, applied.Revision)
	}
	result := write(t, n, &graph.Mutation{Store: graph.DefaultStore, Delete: &graph.DeleteMatching{
		Filter: graph.Filter{ObjectType: "document"}, Limit: large,
	}})
	if result.Changed != large {
		t.Fatalf("deleted %d tuples, want %d", result.Changed, large)
	}
	if durable := n.db().Durable(); durable.Revision < result.Revision {
		t.Errorf("revision %d was answered and %d is durable", result.Revision, durable.Revision)
	}
}

func TestWritersShareSyncs(t *testing.T) {
	t.Parallel()
	n := open(t, testConfig(t, t.TempDir()))
	writeSchema(t, n)
	batches, entries := n.log.batches.Load(), n.log.entries.Load()
	start := time.Now()
	writeConcurrently(t, n, 64, 50)
	batches, entries = n.log.batches.Load()-batches, n.log.entries.Load()-entries
	t.Logf("%d entries in %d batches, %v", entries, batches, time.Since(start))
	if entries < 64*50 || batches*4 > entries*3 { // A busy machine shares less.
		t.Errorf("%d entries took %d batches", entries, batches)
	}
}

func TestCloseUnderLoad(t *testing.T) {
	t.Parallel()
	config := testConfig(t, t.TempDir())
	n := open(t, config)
	writeSchema(t, n)
	var group sync.WaitGroup
	var total atomic.Int64
	var counts [8]int
	for w := range counts {
		group.Go(func() {
			for i := 0; ; i++ {
				_, err := n.Write(context.Background(), create(viewer(fmt.Sprintf("%d-%d", w, i), "hanna")))
				if errors.Is(err, ErrShuttingDown) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				counts[w]++
				total.Add(1)
			}
		})
	}
	eventually(t, "the writing", func() bool { return total.Load() >= 100 })
	closeNode(t, n)
	group.Wait()
	n = open(t, config)
	for w, count := range counts {
		for i := range count {
			if !has(t, n, Consistency{}, viewer(fmt.Sprintf("%d-%d", w, i), "hanna")) {
				t.Errorf("document %d-%d was acknowledged and is gone", w, i)
			}
		}
	}
}

// Close ends with its context while a snapshot is open, and finishes by itself.
func TestCloseWaitsForSnapshots(t *testing.T) {
	t.Parallel()
	config := testConfig(t, t.TempDir())
	n := open(t, config)
	s, err := n.Snapshot(testContext(t), graph.DefaultStore, Consistency{}, graph.Overlay{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := n.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("closed with a snapshot open: %v", err)
	}
	s.Close()
	closeNode(t, n)
	closeNode(t, open(t, config))
}

// Close fails for none of the readers that come in its way.
func TestCloseBesideReaders(t *testing.T) {
	t.Parallel()
	n := open(t, testConfig(t, t.TempDir()))
	var readers sync.WaitGroup
	for range 8 {
		readers.Go(func() {
			for {
				s, err := n.db().Snapshot(graph.DefaultStore, 0, 0)
				if errors.Is(err, graph.ErrClosed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				time.Sleep(10 * time.Microsecond)
				s.Close()
				time.Sleep(100 * time.Microsecond)
			}
		})
	}
	closeNode(t, n)
	readers.Wait()
}

// failing returns a config whose node may stop, and the fault it stops with.
func failing(t *testing.T) (Config, <-chan error) {
	config := testConfig(t, t.TempDir())
	faults := make(chan error, 10)
	config.OnFatal = func(err error) { faults <- err }
	return config, faults
}

// mustBeStopped checks that the node stopped once, and answers nothing more.
func mustBeStopped(t *testing.T, n *Node, faults <-chan error, parts ...string) {
	t.Helper()
	var fault error
	select {
	case fault = <-faults:
	case <-time.After(deadline):
		t.Fatal("the node did not stop")
	}
	t.Logf("stopped: %v", fault)
	for _, part := range parts {
		if !strings.Contains(fault.Error(), part) {
			t.Errorf("%v\ndoes not name %q", fault, part)
		}
	}
	if _, err := n.Write(testContext(t), create(viewer("x", "y"))); !errors.Is(err, ErrFailed) {
		t.Errorf("write: %v", err)
	}
	if _, err := n.Snapshot(testContext(t), graph.DefaultStore, Consistency{}, graph.Overlay{}); !errors.Is(err, ErrFailed) {
		t.Errorf("read: %v", err)
	}
	if err := n.Ready(); !errors.Is(err, ErrFailed) {
		t.Errorf("ready: %v", err)
	}
	if _, err := n.Status(); !errors.Is(err, ErrFailed) {
		t.Errorf("status: %v", err)
	}
	if len(faults) > 0 {
		t.Errorf("told a second time: %v", <-faults)
	}
}

// An entry that nobody can read stops the node, also at the next start: it is
// never skipped.
func TestForeignEntryStopsTheNode(t *testing.T) {
	t.Parallel()
	config, faults := failing(t)
	n := open(t, config)
	writeSchema(t, n)
	index := n.raft().LastIndex() + 1
	if err := n.raft().Apply([]byte("\x01garbage"), 0).Error(); err != nil {
		t.Fatal(err)
	}
	entry := fmt.Sprintf("log entry %d", index)
	mustBeStopped(t, n, faults, entry, "8 bytes")
	closeNode(t, n)
	refusedWith(t, config, entry, "8 bytes")
	refusedWith(t, config, entry, "8 bytes")
}

// After the first entry that could not be stored nothing is answered: Raft would
// believe that it has the entry.
func TestLogThatFailsStopsTheNode(t *testing.T) {
	t.Parallel()
	config, faults := failing(t)
	n := open(t, config)
	writeSchema(t, n)
	if err := n.log.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := n.Write(testContext(t), create(viewer("x", "y")))
	if !errors.Is(err, ErrOutcomeUnknown) && !errors.Is(err, badgerlog.ErrClosed) {
		t.Errorf("write: %v", err)
	}
	if errors.Is(err, ErrOutcomeUnknown) {
		mustBeStopped(t, n, faults, "log", badgerlog.ErrClosed.Error())
	}
	if err := n.Close(testContext(t)); err != nil {
		t.Errorf("close: %v", err)
	}
}

// A term that cannot be stored ends Raft's main loop and not the process.
func TestTermThatCannotBeStoredStopsTheNode(t *testing.T) {
	t.Parallel()
	config, faults := failing(t)
	n := open(t, config)
	if err := n.log.Close(); err != nil {
		t.Fatal(err)
	}
	returned := make(chan bool, 1)
	go func() {
		defer close(returned)
		returned <- n.log.SetUint64(keyCurrentTerm, 99) == nil
	}()
	select {
	case stored := <-returned:
		if stored {
			t.Error("it was stored")
		}
	case <-time.After(deadline):
		t.Fatal("storing it does not end")
	}
	mustBeStopped(t, n, faults, "CurrentTerm 99", badgerlog.ErrClosed.Error())
	closeNode(t, n)
}

func TestWritesThatAreNotTaken(t *testing.T) {
	t.Parallel()
	config := testConfig(t, t.TempDir())
	config.EntryBytesMax = 4000
	config.ProposalsMax = 3
	config.ProposalBytesMax = 5000
	n := open(t, config)
	writeSchema(t, n)
	last := n.raft().LastIndex()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	large := create()
	for i := range 100 {
		large.Updates = append(large.Updates, graph.Update{Operation: graph.Create, Tuple: viewer(fmt.Sprint(i), strings.Repeat("p", 100))})
	}
	small := create(viewer("a", "b"))
	for _, c := range []struct {
		name   string
		ctx    context.Context
		m      *graph.Mutation
		before func()
		after  func()
		want   error
		says   string
	}{
		{name: "ended context", ctx: ended, m: small, want: context.Canceled},
		{name: "nothing asked", m: &graph.Mutation{Store: 1}, says: "one of updates"},
		{name: "no store", m: &graph.Mutation{Collect: &graph.Collect{Limit: 1}}, says: `store "0"`},
		{name: "nil", says: "no mutation"},
		{name: "too large", m: large, want: ErrEntryTooLarge, says: "4000"},
		{
			name: "too many", m: small, want: ErrTooBusy, says: "3 writes",
			before: func() { n.admission.entries += 3 }, after: func() { n.admission.entries -= 3 },
		},
		{
			name: "too many bytes", m: small, want: ErrTooBusy, says: "5000",
			before: func() { n.admission.bytes += 5000 }, after: func() { n.admission.bytes -= 5000 },
		},
		{
			name: "no space", m: small, want: ErrDiskFull, says: "12345",
			before: func() { n.room.looked, n.room.stats.FreeBytes = time.Now().Add(time.Hour), 12345 },
			after:  func() { n.room.looked = time.Time{} },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.before != nil {
				c.before()
				defer c.after()
			}
			if c.ctx == nil {
				c.ctx = testContext(t)
			}
			_, err := n.Write(c.ctx, c.m)
			t.Log(err)
			if err == nil || (c.want != nil && !errors.Is(err, c.want)) || !strings.Contains(err.Error(), c.says) || errors.Is(err, ErrOutcomeUnknown) {
				t.Errorf("got %v", err)
			}
		})
	}
	if now := n.raft().LastIndex(); now != last {
		t.Errorf("the log grew from %d to %d", last, now)
	}
	write(t, n, small)
}

// goneContext ends as soon as it is waited for.
type goneContext struct{ context.Context }

func (goneContext) Done() <-chan struct{} {
	done := make(chan struct{})
	close(done)
	return done
}

func TestOutcomeIsUnknownWhenTheCallerLeaves(t *testing.T) {
	t.Parallel()
	n := open(t, testConfig(t, t.TempDir()))
	writeSchema(t, n)
	for i := 0; ; i++ {
		_, err := n.Write(goneContext{context.Background()}, create(viewer(fmt.Sprint(i), "hanna")))
		if err == nil {
			continue // It was quicker.
		}
		if !errors.Is(err, ErrOutcomeUnknown) {
			t.Fatal(err)
		}
		// This one is applied after all, soon.
		eventually(t, "that the entry which was proposed is applied", func() bool { return has(t, n, Consistency{}, viewer(fmt.Sprint(i), "hanna")) })
		return
	}
}

// A refusal is a result with a revision, and changes nothing.
func TestRefusalIsAResult(t *testing.T) {
	t.Parallel()
	n := open(t, testConfig(t, t.TempDir()))
	writeSchema(t, n)
	write(t, n, create(viewer("0", "hanna")))
	result, err := n.Write(testContext(t), create(viewer("1", "hanna"), viewer("0", "hanna")))
	if err != nil {
		t.Fatal(err)
	}
	if result.Refusal == nil || result.Refusal.Reason != engine.AlreadyExists {
		t.Errorf("got %+v", result)
	}
	if has(t, n, Consistency{Mode: AtLeast, Revision: result.Revision}, viewer("1", "hanna")) {
		t.Error("half of a refused request is there")
	}
}

// Lifetimes end by an entry whose stamp is behind their end, as soon as the
// clock says so.
func TestLifetimesEnd(t *testing.T) {
	t.Parallel()
	now := newClock(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))
	config := testConfig(t, t.TempDir())
	config.Now = now.Now
	config.CollectPause = time.Millisecond
	config.CollectLimit = 10
	n := open(t, config)
	writeSchema(t, n)
	const guests = 25
	m := create()
	for i := range guests {
		tuple := viewer(fmt.Sprint(i), "hanna")
		tuple.Relation, tuple.ValidUntil = "guest", now.instant()+graph.Instant(1+i/5)*60_000_000
		m.Updates = append(m.Updates, graph.Update{Operation: graph.Create, Tuple: tuple})
	}
	ends := m.Updates[0].Tuple.ValidUntil
	written := write(t, n, m)
	stored := func(at graph.Revision) (left int) {
		s, err := n.db().Snapshot(graph.DefaultStore, at, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for i := range m.Updates {
			tuple := &m.Updates[i].Tuple
			_, ok, err := s.GetStored(tuple.Object, tuple.Relation, tuple.Subject)
			if err != nil {
				t.Fatal(err)
			}
			if ok {
				left++
			}
		}
		return left
	}
	time.Sleep(20 * time.Millisecond)
	if left := stored(0); left != guests {
		t.Fatalf("%d of %d are left before their time", left, guests)
	}
	for _, step := range []struct {
		by   time.Duration
		left int
	}{{time.Minute, 20}, {time.Minute - time.Microsecond, 20}, {time.Microsecond, 15}, {time.Hour, 0}} {
		now.advance(step.by)
		wait := time.Now().Add(deadline)
		for stored(0) > step.left && time.Now().Before(wait) {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(5 * time.Millisecond)
		if left := stored(0); left != step.left {
			t.Errorf("%v: %d are left, not %d", now.Now(), left, step.left)
		}
	}
	if left := stored(written.Revision); left != guests {
		t.Errorf("as of revision %d, %d of %d are there", written.Revision, left, guests)
	}
	revisions, err := n.db().Changes(graph.DefaultStore, graph.Position{Revision: written.Revision + 1}, 1000)
	if err != nil {
		t.Fatal(err)
	}
	expired := 0
	for _, r := range revisions {
		if r.Count > config.CollectLimit || r.Stamp < ends {
			t.Errorf("revision %d at %d ends %d lifetimes", r.Revision, r.Stamp, r.Count)
		}
		for _, change := range r.Changes {
			if change.Kind == graph.Expired && change.Tuple.ValidUntil <= r.Stamp {
				expired++
			}
		}
	}
	if expired != guests {
		t.Errorf("%d lifetimes ended in the change log", expired)
	}
	// Nothing is due, so nothing is proposed.
	last := n.raft().LastIndex()
	time.Sleep(50 * time.Millisecond)
	if now := n.raft().LastIndex(); now != last {
		t.Errorf("the log grew from %d to %d with nothing due", last, now)
	}
}

func TestRaftLinesAreQuiet(t *testing.T) {
	t.Parallel()
	lines := &lineCounter{}
	config := testConfig(t, t.TempDir())
	config.Logger = lines.logger()
	config.SnapshotThreshold, config.SnapshotInterval = 50, time.Millisecond
	config.VerifyBytesPerSecond = -1 // Its end has a line, whenever that is.
	n := open(t, config)
	writeSchema(t, n)
	started := lines.count.Load()
	writeConcurrently(t, n, 8, 100)
	if more := lines.count.Load() - started; more > 0 {
		t.Errorf("%d lines for writes and cuts", more)
	}
	if started == 0 || lines.bad.Load() > 0 {
		t.Errorf("%d lines at the start, %d warnings", started, lines.bad.Load())
	}
}

// A lineCounter counts lines at the levels that people read.
type lineCounter struct {
	slog.Handler
	count, bad atomic.Int64
}

func (l *lineCounter) logger() *slog.Logger {
	l.Handler = slog.DiscardHandler
	return slog.New(l)
}

func (l *lineCounter) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo
}

func (l *lineCounter) Handle(_ context.Context, r slog.Record) error {
	l.count.Add(1)
	if r.Level > slog.LevelInfo {
		l.bad.Add(1)
	}
	return nil
}
