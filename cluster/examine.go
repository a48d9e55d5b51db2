package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"

	"github.com/pembadb/pemba/graph"
)

// Examined says how far the data of a node goes.
type Examined struct {
	NodeID string
	// ClusterID is the id of its cluster, zero where it has heard of none.
	ClusterID [16]byte
	// LastTerm and LastIndex are of its last entry, agreed or not. Of the nodes that a
	// cluster has left, the one with the highest LastTerm and, of those, with the highest
	// LastIndex has everything that any of them knows to be agreed: a leader has all that
	// was agreed in the terms before its own, and the entries of one term are all in the
	// order of its one leader.
	LastTerm, LastIndex uint64
	// Recovering says that a recovery was begun and did not end: the last entry may be its
	// own, one behind what the node had.
	Recovering bool
	// Stamp is the moment of its newest change, zero where there is none.
	Stamp graph.Instant
}

// Examine says how far the data in config.DataDir goes, for somebody who is to choose
// which node is recovered. The node must not run, and nothing that it holds is changed.
func Examine(ctx context.Context, config Config) (e Examined, err error) {
	if config.InMemory {
		return e, errors.New("cluster: Examine is for a data directory, and Config.InMemory is set")
	}
	if err := config.Validate(); err != nil {
		return e, err
	}
	config = config.withDefaults()
	config.OnFatal = nil // What goes wrong is returned.
	if _, err := os.Stat(filepath.Join(config.DataDir, nodeFile)); err != nil {
		return e, fmt.Errorf("examine the node in %s: it holds none: %w", config.DataDir, err)
	}
	dir, err := openDataDir(config.DataDir, config.NodeID)
	if err != nil {
		return e, err
	}
	n := newNode(config, dir)
	if err = n.openParts(ctx); err == nil {
		err = n.examine(&e)
	}
	n.mu.Lock()
	n.opening = false
	if n.failure != nil {
		err = n.failure
	}
	n.mu.Unlock()
	if err != nil {
		err = fmt.Errorf("examine the node in %s: %w", dir.path, err)
	}
	return e, errors.Join(err, n.Close(context.WithoutCancel(ctx)))
}

func (n *Node) examine(e *Examined) error {
	applied := n.db().Applied()
	recovering, err := n.dir.recovering()
	if err != nil {
		return err
	}
	*e = Examined{
		NodeID: n.dir.nodeID, ClusterID: n.ClusterID(), Recovering: recovering,
		LastTerm: applied.Term, LastIndex: uint64(applied.Revision), Stamp: applied.Stamp,
	}
	if n.dir.installed != 0 {
		return nil // What is in the log is of before the state.
	}
	last, err := n.log.LastIndex()
	if err != nil {
		return err
	}
	for i := e.LastIndex + 1; i <= last; i++ {
		var entry raft.Log
		if err := n.log.GetLog(i, &entry); err != nil {
			return err
		}
		e.LastTerm, e.LastIndex = entry.Term, i
		if entry.Type != raft.LogCommand {
			continue
		}
		c, err := decodeCommand(entry.Data)
		if err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		e.Stamp = max(e.Stamp, c.Stamp)
	}
	return nil
}
