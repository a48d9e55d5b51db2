package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
)

// A peersSpec says how a node is one of several.
type peersSpec struct {
	ID string `json:"id"`
	// RaftAddr is where the other nodes reach it.
	RaftAddr string `json:"raft_addr"`
	// Join is the gRPC address of a member that takes it in; empty for a node that
	// makes a cluster of one, or that belongs to one already.
	Join string `json:"join,omitempty"`
	// The settings of cluster.Config of these names.
	ElectionTimeout     time.Duration `json:"election_timeout"`
	CommitPause         time.Duration `json:"commit_pause"`
	StateBytesPerSecond int64         `json:"state_bytes_per_second"`
}

// configure fills in the configuration of a node.
func (p *peersSpec) configure(c *cluster.Config) {
	c.NodeID, c.RaftAddr = p.ID, p.RaftAddr
	c.ElectionTimeout, c.CommitPause, c.StateBytesPerSecond = p.ElectionTimeout, p.CommitPause, p.StateBytesPerSecond
	if p.Join != "" {
		c.Join = p.join
	}
}

// join asks the member to take the node in, as pemba serve --join does.
func (p *peersSpec) join(ctx context.Context, node cluster.Joining) (joined cluster.Joined, err error) {
	conn, err := grpc.NewClient("passthrough:///"+p.Join, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return joined, err
	}
	answer, err := pembav1.NewClusterServiceClient(conn).AddMember(ctx, &pembav1.AddMemberRequest{
		Id: node.ID, RaftAddr: node.RaftAddr, Empty: node.Empty,
	}, grpc.WaitForReady(true))
	closeErr := conn.Close()
	if err != nil {
		return joined, err
	}
	if closeErr != nil {
		return joined, closeErr
	}
	id, err := hex.DecodeString(answer.GetClusterId())
	if err != nil || len(id) != len(joined.ClusterID) {
		return joined, fmt.Errorf("the member at %s answers with the cluster id %q, which is none", p.Join, answer.GetClusterId())
	}
	copy(joined.ClusterID[:], id)
	return joined, nil
}

// counts are what a node has counted since its start.
type counts struct {
	// Syncs is how often the log was synced, and Entries of how many entries.
	Syncs   uint64 `json:"syncs"`
	Entries uint64 `json:"entries"`
	// Rounds is how often a majority confirmed that the node leads, and Readers for how
	// many reads.
	Rounds  uint64 `json:"rounds"`
	Readers uint64 `json:"readers"`
	// Sent are bytes to the other nodes, StateSent those of them that are of whole
	// states, and Installed the states that were received and came into force.
	Sent      uint64 `json:"sent"`
	StateSent int64  `json:"state_sent"`
	Installed int    `json:"installed"`
}

func (p *process) counts() (*counts, error) {
	m, err := p.node.Metrics()
	if err != nil {
		return nil, err
	}
	c := &counts{
		Syncs: m.LogBatches, Entries: m.LogEntries, Rounds: m.ConfirmRounds, Readers: m.ConfirmReaders,
		StateSent: m.StateBytesSent, Installed: m.StatesInstalled,
	}
	for _, peer := range m.Peers {
		c.Sent += peer.Raft.BytesSent + peer.Calls.BytesSent
	}
	return c, nil
}
