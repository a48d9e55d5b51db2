//go:build pembafaults

package cluster

import (
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/pembadb/pemba/cluster/badgerlog"
	"github.com/pembadb/pemba/graph"
)

// This file is of a test-only build. It slows the disk down when a test says so, and
// it plants one of four bugs, for a test to show that it would find it. The place of
// each is marked in the ordinary code by a call that is empty there (faults_off.go).

// PlantedBugVariable is the environment variable that names the bug of a process;
// empty for none.
const PlantedBugVariable = "PEMBA_PLANTED_BUG"

// The bugs that can be planted.
const (
	// LocalReads has followers answer linearizable reads from what they have.
	LocalReads = "local-reads"
	// EarlyLead has a new leader answer for the cluster before it has applied an
	// entry of its own term.
	EarlyLead = "early-lead"
	// OldConfirmations has a leader count what the others confirmed before the
	// reader came, for some seconds.
	OldConfirmations = "old-confirmations"
	// LateSync acknowledges entries that are not on the disk yet, so that kill -9
	// loses them.
	LateSync = "late-sync"
)

var plantedBug = chosenBug()

func chosenBug() string {
	bug := os.Getenv(PlantedBugVariable)
	if bug != "" && !slices.Contains([]string{LocalReads, EarlyLead, OldConfirmations, LateSync}, bug) {
		panic(fmt.Sprintf("%s is %q; empty, %s, %s, %s and %s are allowed", PlantedBugVariable, bug, LocalReads, EarlyLead, OldConfirmations, LateSync))
	}
	return bug
}

// storeDelay is how long each commit of the log takes longer, and entriesDelay how long
// each storing of entries does, beside that.
var storeDelay, entriesDelay atomic.Int64

// SlowLog makes each commit of the logs of this process take longer from now on. It
// counts against the deadline of the log, as a slow disk does.
func SlowLog(by time.Duration) { storeDelay.Store(int64(by)) }

// SlowEntries makes each storing of entries in the logs of this process take longer from
// now on, and leaves terms and votes alone, so that elections are as quick as ever.
func SlowEntries(by time.Duration) { entriesDelay.Store(int64(by)) }

// plantLog puts the delay where the log is committed.
func plantLog(config *badgerlog.Config) {
	*config = config.SlowedBy(func() { time.Sleep(time.Duration(storeDelay.Load())) })
}

// plantedLocalRead reports whether a read index may be left out.
func (n *Node) plantedLocalRead(at graph.Instant) bool {
	return plantedBug == LocalReads && at == 0 && n.current.Load() && !n.leads()
}

// plantedEarlyLead reports whether winning an election is enough.
func plantedEarlyLead() bool { return plantedBug == EarlyLead }

// oldConfirmationLife is how long a confirmation counts that should count for those
// before it only.
const oldConfirmationLife = 5 * time.Second

// A confirmation is what the others said of a node.
type confirmation struct {
	term uint64
	at   time.Time
}

// confirmations holds the last confirmation of each *Node.
var confirmations sync.Map

// plantedOldConfirmation reports whether an earlier confirmation is to count.
func (n *Node) plantedOldConfirmation(term uint64) bool {
	last, found := confirmations.Load(n)
	return plantedBug == OldConfirmations && found &&
		last.(confirmation).term == term && time.Since(last.(confirmation).at) < oldConfirmationLife
}

// plantedConfirmed keeps a confirmation for later.
func (n *Node) plantedConfirmed(term uint64) {
	if plantedBug == OldConfirmations {
		confirmations.Store(n, confirmation{term, time.Now()})
	}
}

// lateSyncPause is how long entries are in memory only.
const lateSyncPause = 150 * time.Millisecond

// A plantedLog holds the entries that were acknowledged and are not stored.
type plantedLog struct {
	mu      sync.Mutex
	entries []*raft.Log
}

// plantedStore takes entries into memory, to be stored later.
func (l *logStore) plantedStore(entries []*raft.Log) error {
	time.Sleep(time.Duration(entriesDelay.Load()))
	if plantedBug != LateSync {
		return l.Log.StoreLogs(entries)
	}
	l.planted.mu.Lock()
	defer l.planted.mu.Unlock()
	if len(l.planted.entries) == 0 {
		time.AfterFunc(lateSyncPause, func() {
			if err := l.plantedSettle(); err != nil {
				l.fail(err)
			}
		})
	}
	for _, entry := range entries {
		kept := *entry
		l.planted.entries = append(l.planted.entries, &kept)
	}
	return nil
}

// plantedSettle stores what is in memory only.
func (l *logStore) plantedSettle() error {
	l.planted.mu.Lock()
	defer l.planted.mu.Unlock()
	if len(l.planted.entries) == 0 {
		return nil
	}
	err := l.Log.StoreLogs(l.planted.entries)
	l.planted.entries = nil
	return err
}

// FirstIndex implements raft.LogStore.
func (l *logStore) FirstIndex() (uint64, error) {
	l.planted.mu.Lock()
	defer l.planted.mu.Unlock()
	first, err := l.Log.FirstIndex()
	if first == 0 && err == nil && len(l.planted.entries) > 0 {
		first = l.planted.entries[0].Index
	}
	return first, err
}

// LastIndex implements raft.LogStore.
func (l *logStore) LastIndex() (uint64, error) {
	l.planted.mu.Lock()
	defer l.planted.mu.Unlock()
	if count := len(l.planted.entries); count > 0 {
		return l.planted.entries[count-1].Index, nil
	}
	return l.Log.LastIndex()
}

// plantedGet returns an entry that is in memory only.
func (l *logStore) plantedGet(index uint64, entry *raft.Log) bool {
	l.planted.mu.Lock()
	defer l.planted.mu.Unlock()
	for _, kept := range l.planted.entries {
		if kept.Index == index {
			*entry = *kept
			return true
		}
	}
	return false
}

// Wipe empties the log, as badgerlog.Log.Wipe does.
func (l *logStore) Wipe(first uint64) error {
	if err := l.plantedSettle(); err != nil {
		return err
	}
	return l.Log.Wipe(first)
}
