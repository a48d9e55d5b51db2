package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/pembadb/pemba/cluster/badgerlog"
)

// folders returns the names of the folders in a data directory, but for the log's.
func folders(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		if entry.IsDir() && entry.Name() != logFolder {
			names = append(names, entry.Name())
		}
	}
	return names
}

// sentState makes a directory, of a node that runs no more, as it is after a state was
// sent: state-7 holds the graph, and STATE says so.
func sentState(t *testing.T) Config {
	t.Helper()
	config := testConfig(t, t.TempDir())
	config.NodeID = "n1"
	n := open(t, config)
	writeSchema(t, n)
	write(t, n, create(viewer("0", "anna")))
	closeNode(t, n)
	if err := os.Rename(filepath.Join(config.DataDir, stateFolder), filepath.Join(config.DataDir, sentFolder(7))); err != nil {
		t.Fatal(err)
	}
	writeFile(t, config.DataDir, stateFile, stateText(sentFolder(7), 0))
	return config
}

func writeFile(t *testing.T, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestStartRemovesOnlyItsOwn: a start removes the states that were replaced or never came
// into force, and nothing else whose name begins so. It removed an operator's copy.
func TestStartRemovesOnlyItsOwn(t *testing.T) {
	t.Parallel()
	config := sentState(t)
	theirs := []string{"state-", "state-007", "state-7-before-the-upgrade", "state-backup", "state-x9", "state9", "states"}
	for _, name := range append([]string{stateFolder, sentFolder(6), sentFolder(8)}, theirs...) {
		if err := os.Mkdir(filepath.Join(config.DataDir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(config.DataDir, name), "precious", "")
	}
	before := folders(t, config.DataDir)

	// A start that is refused removes nothing, whatever part refuses it.
	other := config
	other.NodeID = "n9"
	refusedWith(t, other, "belongs to node")
	logPath := filepath.Join(config.DataDir, logFolder)
	if err := os.Rename(logPath, logPath+".away"); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, config, "ends at entry 0")
	if err := os.RemoveAll(logPath); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(logPath+".away", logPath); err != nil {
		t.Fatal(err)
	}
	if after := folders(t, config.DataDir); !slices.Equal(after, before) {
		t.Errorf("starts that were refused leave %q of %q", after, before)
	}

	n := open(t, config)
	mustHave(t, n, 1, "anna")
	want := append([]string{sentFolder(7)}, theirs...)
	slices.Sort(want)
	if after := folders(t, config.DataDir); !slices.Equal(after, want) {
		t.Errorf("a start leaves the folders %q of %q, and should leave %q", after, before, want)
	}
}

// TestStateFileLost: where the file is gone that says which folder holds the graph, the
// only graph that is there is not taken for one that was replaced. It was removed.
func TestStateFileLost(t *testing.T) {
	t.Parallel()
	config := sentState(t)
	if err := os.Remove(filepath.Join(config.DataDir, stateFile)); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, config, config.DataDir, sentFolder(7), stateFile)
	if after := folders(t, config.DataDir); !slices.Equal(after, []string{sentFolder(7)}) {
		t.Errorf("the refusal leaves the folders %q", after)
	}
	writeFile(t, config.DataDir, stateFile, stateText(sentFolder(7), 0))
	n := open(t, config)
	mustHave(t, n, 1, "anna")
	closeNode(t, n)
	// Nor is a folder named that no node makes.
	writeFile(t, config.DataDir, stateFile, stateText("state-backup", 0))
	refusedWith(t, config, stateFile, `"state-backup"`)
}

// TestLockHeldForAMoment: the lock of a directory that was just given back may be held for
// a moment yet, by a program that this process is starting and that has all files which
// were open when it began to. That is waited for.
func TestLockHeldForAMoment(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// Where the machine is busy the moment may be too long, so that one success counts.
	for range 50 {
		holder, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if err := badgerlog.TryLock(holder); err != nil {
			t.Fatal(err)
		}
		begun, released := make(chan struct{}), make(chan error, 1)
		go func() {
			<-begun
			time.Sleep(15 * time.Millisecond)
			released <- holder.Close()
		}()
		close(begun)
		lock, err := lockDirectory(dir)
		if err := <-released; err != nil {
			t.Fatal(err)
		}
		if err == nil {
			if err := lock.Close(); err != nil {
				t.Error(err)
			}
			return
		}
	}
	t.Error("the lock was refused each time, and nobody kept it")
}

// TestRemovedRestart: a node that was removed, and knows it by its log, is told so when it
// is started again. It was told that its log is another node's.
func TestRemovedRestart(t *testing.T) {
	t.Parallel()
	config := testConfig(t, t.TempDir())
	config.NodeID = "n1"
	n := open(t, config)
	writeSchema(t, n)
	if err := n.machine.Load().stopRaft(); err != nil {
		t.Fatal(err)
	}
	last, err := n.log.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	rest := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: "n2", Address: "n2:7000"}}}
	if err := n.log.StoreLog(&raft.Log{Index: last + 1, Term: 9, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(rest)}); err != nil {
		t.Fatal(err)
	}
	closeNode(t, n)
	refusedWith(t, config, ErrRemoved.Error(), "another node's", `"n2"`, `"n1"`, filepath.Join(config.DataDir, nodeFile))
	if _, err := Open(testContext(t), config); !errors.Is(err, ErrRemoved) {
		t.Errorf("%v is no ErrRemoved", err)
	}
}
