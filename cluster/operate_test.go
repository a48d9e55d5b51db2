package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// A keptLog keeps what is logged.
type keptLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *keptLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *keptLog) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// lines returns the lines that hold a text.
func (l *keptLog) lines(text string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []string
	for line := range strings.Lines(l.text.String()) {
		if strings.Contains(line, text) {
			found = append(found, line)
		}
	}
	return found
}

// TestNoBootstrap: an empty directory that is neither to join nor to be a new cluster is
// refused, and can be either later; one that is used is none of that.
func TestNoBootstrap(t *testing.T) {
	config := peerConfig(t, "n1")
	config.NoBootstrap = true
	refusedWith(t, config, config.DataDir+" is empty", "--join", "--bootstrap", "its disk may not be there")
	if entries, err := os.ReadDir(config.DataDir); err != nil || len(entries) > 0 {
		t.Errorf("it holds %v now: %v", entries, err)
	}
	missing := config
	missing.DataDir = filepath.Join(config.DataDir, "missing")
	refusedWith(t, missing, missing.DataDir+" is empty")
	// A first start that a crash ended early.
	begun := config
	begun.DataDir = t.TempDir()
	dir, err := openDataDir(begun.DataDir, "n1")
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.close(); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, begun, begun.DataDir+" is empty")
	foreign := config
	foreign.DataDir = t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign.DataDir, "other"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, foreign, "neither empty nor a data directory")
	config.NoBootstrap = false
	n := open(t, config)
	writeSchema(t, n)
	closeNode(t, n)
	config.NoBootstrap = true
	n = open(t, config)

	joining := peerConfig(t, "n2")
	joining.NoBootstrap = true
	refusedWith(t, joining, "--join")
	joining.Join = joinVia(n)
	other := open(t, joining)
	eventually(t, "it joined", func() bool { return other.Ready() == nil })
}

// TestJoinUnused: a node whose directory is in use says that it does not join, and warns
// where it is alone: whoever told it to join may have meant a node of another cluster.
func TestJoinUnused(t *testing.T) {
	var log keptLog
	config := peerConfig(t, "n1")
	closeNode(t, open(t, config))
	config.Logger = log.logger()
	config.Join = func(context.Context, Joining) (Joined, error) {
		t.Error("it asks to join")
		return Joined{}, errors.New("no")
	}
	first := open(t, config)
	const unused = "the directory is in use, --join is not used"
	if lines := log.lines(unused); len(lines) != 1 || !strings.Contains(lines[0], "level=WARN") || !strings.Contains(lines[0], fmt.Sprintf("cluster=%x", first.ClusterID())) {
		t.Errorf("alone, it says %s", lines)
	}
	var joined keptLog
	other := peerConfig(t, "n2")
	other.Logger, other.Join = joined.logger(), joinVia(first)
	n := open(t, other)
	if lines := joined.lines(unused); len(lines) > 0 {
		t.Errorf("a node that joins says %s", lines)
	}
	eventually(t, "it joined", func() bool { return n.Ready() == nil && n.voters() == 2 })
	closeNode(t, n)
	other.Join = config.Join
	open(t, other)
	if lines := joined.lines(unused); len(lines) != 1 || !strings.Contains(lines[0], "level=INFO") {
		t.Errorf("a member says %s", lines)
	}
}

// TestSilentMember: the leader says once that a node does not answer, with the reason, and
// again of another one that joins under its id and does not answer either.
func TestSilentMember(t *testing.T) {
	// On a busy machine a node may be silent by itself, or the leader be another one
	// meanwhile. That shows nothing, and is done again with more patience.
	disturbed := "not tried"
	for timeout := 200 * time.Millisecond; disturbed != "" && timeout < time.Minute; timeout *= 4 {
		t.Run(timeout.String(), func(t *testing.T) {
			if disturbed = silentMember(t, timeout); disturbed != "" {
				t.Log(disturbed)
			}
		})
	}
	if disturbed != "" {
		t.Error(disturbed)
	}
}

// silentMember closes a member, and has another one join in its place. It returns what may
// be for another reason than a fault of the leader, "" for nothing.
func silentMember(t *testing.T, timeout time.Duration) (disturbed string) {
	var log keptLog
	nodes := openCluster(t, 3, func(c *Config) { c.Logger, c.ElectionTimeout = log.logger(), timeout })
	leader := leaderOf(t, nodes)
	term := leader.leading.Load()
	var gone *Node
	for _, n := range nodes {
		if n != leader {
			gone = n
		}
	}
	id, addr := gone.ID(), gone.config.RaftAddr
	silent := func() []string {
		return log.lines("a node does not answer the leader\" node=" + leader.ID() + " silent=" + id)
	}
	if lines := silent(); len(lines) > 0 {
		return fmt.Sprintf("it was silent before: %s", lines)
	}
	closeNode(t, gone)
	left := func() bool { return term == 0 || leader.leading.Load() != term }
	eventually(t, "the leader tells of it", func() bool { return len(silent()) > 0 || left() })
	if lines := silent(); len(lines) != 1 || !strings.Contains(lines[0], " to node "+id+" at "+addr) {
		return fmt.Sprintf("it does not give the reason, or not once: %s", lines)
	}
	if err := leader.RemoveMember(testContext(t), id, false); err != nil {
		t.Fatal(err)
	}
	if _, err := leader.AddMember(testContext(t), Joining{ID: id, RaftAddr: addr}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the leader tells of the new one", func() bool { return len(silent()) > 1 || left() })
	if lines := silent(); len(lines) != 2 {
		return fmt.Sprintf("of the new one it tells not once: %s", lines)
	}
	return ""
}

// TestCommittedAfterStart: what a node has applied it knows to be agreed, also when it was
// started and finds no leader: an operator may have to choose by it.
func TestCommittedAfterStart(t *testing.T) {
	nodes := openCluster(t, 2, nil)
	writeSchema(t, nodes[0])
	at := write(t, nodes[0], create(viewer("plan", "anna"))).Revision
	eventually(t, "both have it", func() bool { return nodes[1].db().Applied().Revision >= at })
	closeNode(t, nodes[0])
	config := nodes[1].config
	closeNode(t, nodes[1])
	n := open(t, config)
	s, err := n.Status()
	if err != nil {
		t.Fatal(err)
	}
	if s.LeaderID != "" || s.Applied < at || s.Committed < uint64(s.Applied) || s.Committed > s.LastIndex {
		t.Errorf("alone, it says %+v", s)
	}
}

// TestExamine: what is told of a directory is the last entry that it holds, agreed or not,
// and the moment of its newest change; looking changes nothing.
func TestExamine(t *testing.T) {
	now := newClock(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))
	config := testConfig(t, filepath.Join(t.TempDir(), "data"))
	config.NodeID, config.Now = "n1", now.Now
	if _, err := Examine(testContext(t), config); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), config.DataDir) {
		t.Errorf("of no directory: %v", err)
	}
	if _, err := os.Stat(config.DataDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory was made: %v", err)
	}
	n := open(t, config)
	writeSchema(t, n)
	stamp := now.instant()
	status, err := n.Status()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Examine(testContext(t), config); err == nil || !strings.Contains(err.Error(), "is in use") {
		t.Errorf("of a node that runs: %v", err)
	}
	closeNode(t, n)
	want := Examined{NodeID: "n1", ClusterID: status.ClusterID, LastTerm: status.Term, LastIndex: status.LastIndex, Stamp: stamp}
	for range 2 {
		if got, err := Examine(testContext(t), config); err != nil || got != want {
			t.Errorf("%+v, %v\nexpected %+v", got, err, want)
		}
	}

	// What came from a later leader and was never agreed counts: it shows that all before
	// it is of that leader.
	dir, err := openDataDir(config.DataDir, "")
	if err != nil {
		t.Fatal(err)
	}
	n = newNode(config.withDefaults(), dir)
	if err := n.openParts(testContext(t)); err != nil {
		t.Fatal(err)
	}
	later := stamp + 1000
	entry, err := encodeCommand(command{Stamp: later, Mutation: create(viewer("plan", "anna"))})
	if err != nil {
		t.Fatal(err)
	}
	err = n.log.StoreLogs([]*raft.Log{
		{Index: want.LastIndex + 1, Term: want.LastTerm + 6, Type: raft.LogNoop},
		{Index: want.LastIndex + 2, Term: want.LastTerm + 6, Type: raft.LogCommand, Data: entry},
	})
	if err != nil {
		t.Fatal(err)
	}
	n.opening = false
	closeNode(t, n)
	want.LastTerm, want.LastIndex, want.Stamp = want.LastTerm+6, want.LastIndex+2, later
	if got, err := Examine(testContext(t), config); err != nil || got != want {
		t.Errorf("with what is not agreed: %+v, %v\nexpected %+v", got, err, want)
	}
	if err := dir.beginRecovery(recovery{}); err != nil {
		t.Fatal(err)
	}
	want.Recovering = true
	if got, err := Examine(testContext(t), config); err != nil || got != want {
		t.Errorf("amid a recovery: %+v, %v\nexpected %+v", got, err, want)
	}
}
