package cluster

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/raft"

	"github.com/pembadb/pemba/graph"
)

// Recovered says what Recover made.
type Recovered struct {
	// ClusterID is the id of the new cluster, Was that of the lost one.
	ClusterID, Was [16]byte
	// Revision is the newest that the node holds, and Stamp its moment.
	Revision graph.Revision
	Stamp    graph.Instant
	// Lost are the ids of the other nodes of the lost cluster, ascending.
	Lost []string
}

// Recover makes the node whose data is in config.DataDir, which must not run, a
// cluster of one, with all that it holds. It is for a cluster that has lost more
// than half of its voters for good: of what that cluster acknowledged, this node may
// not have the last, which is then lost, and what was never acknowledged may come to
// be. The node that is furthest should be taken.
//
// The new cluster has an id of its own, so that the lost nodes, should they come back,
// are refused, and no zookie of what was lost means anything. A crash in between
// leaves a directory that nothing but Recover opens.
//
// Of config, what a start without peers needs counts: RaftAddr and Join do not.
func Recover(ctx context.Context, config Config) (Recovered, error) {
	var r Recovered
	config.Join, config.RaftAddr, config.RaftListenAddr, config.recovering = nil, "", "", true
	if config.InMemory {
		return r, errors.New("cluster: Recover is for a data directory, and Config.InMemory is set")
	}
	if err := config.Validate(); err != nil {
		return r, err
	}
	if _, err := os.Stat(filepath.Join(config.DataDir, nodeFile)); err != nil {
		return r, fmt.Errorf("recover the node in %s: it holds none: %w", config.DataDir, err)
	}
	n, err := Open(ctx, config)
	if err != nil {
		return r, err
	}
	err = n.renew(ctx, &r)
	return r, errors.Join(err, n.Close(context.WithoutCancel(ctx)))
}

// renew gives a cluster another id.
func (n *Node) renew(ctx context.Context, r *Recovered) error {
	begun := n.dir.recovery()
	if begun.was == [16]byte{} {
		begun.was = n.ClusterID()
		if err := n.dir.beginRecovery(begun); err != nil {
			return err
		}
	}
	r.Was, r.Lost = begun.was, begun.lost
	m := &graph.Mutation{Renew: &graph.Renew{}}
	if _, err := rand.Read(m.Renew.ClusterID[:]); err != nil {
		return fmt.Errorf("make up a cluster id: %w", err)
	}
	result, err := n.Write(ctx, m)
	if err == nil && result.Refusal != nil {
		err = result.Refusal
	}
	if err != nil {
		return fmt.Errorf("give the cluster another id: %w", err)
	}
	if _, err := n.db().Flush(); err != nil {
		return err
	}
	r.ClusterID, r.Revision, r.Stamp = m.Renew.ClusterID, result.Revision, result.Instant
	return n.dir.endRecovery()
}

// beginRecovery makes this node the only one of its cluster, by an entry at the end of
// the log, of a term of its own. All before it counts as agreed then.
func (n *Node) beginRecovery() error {
	if n.dir.member != (membership{}) && n.db().Applied().Revision == 0 {
		if last, err := n.log.LastIndex(); err != nil || last == 0 {
			return errors.Join(err, errors.New("the node joined a cluster, and has nothing of it yet"))
		}
	}
	last, err := n.log.LastIndex()
	if err != nil {
		return err
	}
	applied := n.db().Applied()
	index, term := uint64(applied.Revision), applied.Term
	var latest raft.Configuration
	if applied.ConfigurationRevision != 0 {
		latest = raft.DecodeConfiguration(applied.Configuration)
	}
	for i := index + 1; i <= last; i++ {
		var entry raft.Log
		if err := n.log.GetLog(i, &entry); err != nil {
			return err
		}
		index, term = i, entry.Term
		if entry.Type == raft.LogConfiguration {
			latest = raft.DecodeConfiguration(entry.Data)
		}
	}
	begun := n.dir.recovery()
	if len(begun.lost) == 0 {
		for _, server := range latest.Servers {
			if string(server.ID) != n.dir.nodeID {
				begun.lost = append(begun.lost, string(server.ID))
			}
		}
		slices.Sort(begun.lost)
	}
	if err := n.dir.beginRecovery(begun); err != nil {
		return err
	}
	current, err := n.log.GetUint64(keyCurrentTerm)
	if err != nil {
		return err
	}
	if current = max(current, term) + 1; current <= term {
		return fmt.Errorf("the log is at term %d, the last that there is", term)
	}
	if err := n.log.Log.SetUint64(keyCurrentTerm, current); err != nil {
		return err
	}
	configuration := raft.Configuration{Servers: []raft.Server{{
		Suffrage: raft.Voter, ID: raft.ServerID(n.dir.nodeID), Address: aloneAddr,
	}}}
	return n.log.StoreLog(&raft.Log{
		Index: index + 1, Term: current, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(configuration),
	})
}

// A recovery is what the file RECOVER keeps of the lost cluster for a second try, which
// finds the node a cluster of one already, and perhaps under its new id.
type recovery struct {
	was  [16]byte // Zero until it is known.
	lost []string
}

func (r recovery) String() string {
	return fmt.Sprintf("recovery was begun\ncluster %x\nlost %s\n", r.was, strings.Join(r.lost, " "))
}

// recovery returns what the file RECOVER keeps; nothing where it is not there or says
// something else. It only serves a report, and must not stand in the way of the last
// resort.
func (d *dataDir) recovery() recovery {
	var r recovery
	content, err := os.ReadFile(filepath.Join(d.path, recoverFile))
	if err != nil {
		return r
	}
	for line := range strings.Lines(string(content)) {
		if word, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " "); word == "lost" {
			r.lost = strings.Fields(rest)
		} else if was, err := hex.DecodeString(rest); word == "cluster" && err == nil && len(was) == len(r.was) {
			copy(r.was[:], was)
		}
	}
	return r
}

// beginRecovery marks the directory as one that is being recovered, and endRecovery as
// one that was.
func (d *dataDir) beginRecovery(r recovery) error { return d.replaceFile(recoverFile, r.String()) }

func (d *dataDir) endRecovery() error {
	// It is a member of what it joined no more. That must last before the mark goes: with
	// the old MEMBER and no mark, the node would be started as one of the lost cluster.
	if err := os.Remove(filepath.Join(d.path, memberFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := syncDirectory(d.path); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(d.path, recoverFile)); err != nil {
		return err
	}
	return syncDirectory(d.path)
}

// checkRecovery refuses a directory whose recovery was cut short.
func (d *dataDir) checkRecovery() error {
	recovering, err := d.recovering()
	if recovering {
		return fmt.Errorf("the recovery of %s was begun and not finished; recover it again (pemba cluster recover)", d.path)
	}
	return err
}

// recovering reports whether a recovery was begun and not finished.
func (d *dataDir) recovering() (bool, error) {
	_, err := os.Stat(filepath.Join(d.path, recoverFile))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
