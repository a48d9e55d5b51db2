//go:build !pembafaults

package cluster

import (
	"github.com/hashicorp/raft"

	"github.com/pembadb/pemba/cluster/badgerlog"
	"github.com/pembadb/pemba/graph"
)

// What follows marks the places at which a test-only build (faults_on.go) is made to
// fail. Here each does nothing, and the compiler leaves it out.

type plantedLog struct{} //nolint:unused // See logStore.

func plantLog(*badgerlog.Config)                           {}
func (n *Node) plantedLocalRead(graph.Instant) bool        { return false }
func plantedEarlyLead() bool                               { return false }
func (n *Node) plantedOldConfirmation(uint64) bool         { return false }
func (n *Node) plantedConfirmed(uint64)                    {}
func (l *logStore) plantedStore(entries []*raft.Log) error { return l.Log.StoreLogs(entries) }
func (l *logStore) plantedGet(uint64, *raft.Log) bool      { return false }
func (l *logStore) plantedSettle() error                   { return nil }
