package main

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/status"

	"github.com/pembadb/pemba/api/client"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

func newCluster() *cobra.Command {
	return newGroup("cluster", "Look after the nodes of a cluster",
		newClusterStatus(), newClusterAdd(), newClusterPromote(), newClusterRemove(), newClusterTransfer(), newClusterRecover())
}

func newClusterStatus() *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the nodes, and how each is",
		Long: `Status shows the nodes that belong to the cluster, one a line, and how each is: its
role, whether it has a vote, Raft's term, the revision that its reads see, the last
one that it knows to be agreed, by how many its reads are behind those of the leader,
its version, what its data takes on the disk, and where the others reach it. A node
that cannot be asked has a line with the reason, and so has one that is not ready.

Any node can be asked, also while there is no leader. It takes an operator's key.`,
		Example: "  pemba cluster status\n  pemba cluster status -o json",
		Args:    noArguments,
	}
	conn.addServerFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return conn.call(cmd, func(ctx ctx, c *client.Client) error {
			answer, err := c.Cluster.GetCluster(ctx, &pembav1.GetClusterRequest{})
			if err != nil {
				return err
			}
			if conn.json() {
				return printJSON(cmd, newClusterJSON(answer))
			}
			return printCluster(cmd, answer)
		})
	}
	return cmd
}

// A clusterJSON is what cluster status -o json prints.
type clusterJSON struct {
	ClusterID string `json:"cluster_id"`
	// NodeID is the node that answered, LeaderID the one that leads, empty where it
	// knows none.
	NodeID   string       `json:"node_id"`
	LeaderID string       `json:"leader_id"`
	Members  []memberJSON `json:"members"`
}

// A memberJSON is a node. What follows Leader is missing where Error says why it could
// not be asked.
type memberJSON struct {
	ID                string  `json:"id"`
	RaftAddr          string  `json:"raft_addr"`
	Suffrage          string  `json:"suffrage"`
	Leader            bool    `json:"leader"`
	Role              string  `json:"role,omitempty"`
	Term              uint64  `json:"term,omitempty"`
	AppliedRevision   uint64  `json:"applied_revision,omitempty"`
	CommittedRevision uint64  `json:"committed_revision,omitempty"`
	DurableRevision   uint64  `json:"durable_revision,omitempty"`
	LagRevisions      *uint64 `json:"lag_revisions,omitempty"`
	Version           string  `json:"version,omitempty"`
	StateBytes        int64   `json:"state_bytes,omitempty"`
	LogBytes          int64   `json:"log_bytes,omitempty"`
	FreeBytes         *int64  `json:"free_bytes,omitempty"`
	Clock             string  `json:"clock,omitempty"`
	NotReady          string  `json:"not_ready,omitempty"`
	Error             string  `json:"error,omitempty"`
}

func newClusterJSON(answer *pembav1.GetClusterResponse) clusterJSON {
	j := clusterJSON{
		ClusterID: answer.GetClusterId(), NodeID: answer.GetNodeId(), LeaderID: answer.GetLeaderId(),
		Members: make([]memberJSON, len(answer.GetMembers())),
	}
	for i, m := range answer.GetMembers() {
		s := m.GetStatus()
		j.Members[i] = memberJSON{
			ID: m.GetId(), RaftAddr: m.GetRaftAddr(), Suffrage: suffrageText(m.GetSuffrage()), Leader: m.GetLeader(),
			Role: s.GetRole(), Term: s.GetTerm(), AppliedRevision: s.GetAppliedRevision(), CommittedRevision: s.GetCommittedRevision(),
			DurableRevision: s.GetDurableRevision(), Version: s.GetVersion(), StateBytes: s.GetStateBytes(), LogBytes: s.GetLogBytes(),
			Clock: timeText(s.GetClock()), NotReady: s.GetNotReady(), Error: m.GetError(),
		}
		if s != nil {
			j.Members[i].LagRevisions, j.Members[i].FreeBytes = s.LagRevisions, s.FreeBytes
		}
	}
	return j
}

func suffrageText(s pembav1.Member_Suffrage) string {
	if s == pembav1.Member_SUFFRAGE_VOTER {
		return "voter"
	}
	return "nonvoter"
}

// printCluster writes a table of the nodes, with a line for each that is not well.
func printCluster(cmd *cobra.Command, answer *pembav1.GetClusterResponse) error {
	rows := []row{{"ID", "ROLE", "SUFFRAGE", "TERM", "APPLIED", "COMMITTED", "LAG", "VERSION", "DISK", "ADDRESS"}}
	var unwell []row
	number := func(n uint64) string { return strconv.FormatUint(n, 10) }
	for _, m := range answer.GetMembers() {
		s := m.GetStatus()
		if s == nil {
			role := "unreachable"
			if m.GetLeader() {
				role = "leader?" // The node that answers has not noticed yet.
			}
			rows = append(rows, row{m.GetId(), role, suffrageText(m.GetSuffrage()), "-", "-", "-", "-", "-", "-", m.GetRaftAddr()})
			unwell = append(unwell, row{m.GetId() + " cannot be asked:", oneLine(m.GetError())})
			continue
		}
		lag := "-"
		if s.LagRevisions != nil {
			lag = number(s.GetLagRevisions())
		}
		rows = append(rows, row{
			m.GetId(), s.GetRole(), suffrageText(m.GetSuffrage()), number(s.GetTerm()), number(s.GetAppliedRevision()),
			number(s.GetCommittedRevision()), lag, cmp.Or(s.GetVersion(), "-"), sizeText(s.GetStateBytes() + s.GetLogBytes()), m.GetRaftAddr(),
		})
		if s.GetNotReady() != "" {
			unwell = append(unwell, row{m.GetId() + " is not ready:", oneLine(s.GetNotReady())})
		}
	}
	if len(answer.GetMembers()) == 0 {
		return printf(cmd, "%s knows no node of the cluster yet: it joined, and no leader has reached it; ask a member, which has a line for it that says why\n", answer.GetNodeId())
	}
	if err := printTable(cmd, rows); err != nil {
		return err
	}
	return printTable(cmd, unwell)
}

// oneLine makes text that another node sent fit for a line of a table.
func oneLine(text string) string { return printable(strings.Join(strings.Fields(text), " ")) }

// sizeText is a number of bytes for people.
func sizeText(bytes int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	size, unit := float64(bytes), 0
	for size >= 1000 && unit < len(units)-1 {
		size, unit = size/1024, unit+1
	}
	if unit == 0 || size >= 10 {
		return strconv.FormatFloat(size, 'f', 0, 64) + " " + units[unit]
	}
	return strconv.FormatFloat(size, 'f', 1, 64) + " " + units[unit]
}

func newClusterAdd() *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:   "add ID RAFT-ADDR",
		Short: "Take a node in, or change its address",
		Long: `Add takes a node into the cluster, without a vote, or changes the address under which
the others reach one that belongs to it. A server that is started with --join and an
empty directory does this by itself. It takes an operator's key.`,
		Example: "  pemba cluster add n3 n3.example.com:7000",
		Args:    arguments(2, 2, "ID RAFT-ADDR"),
	}
	conn.addServerFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return conn.call(cmd, func(ctx ctx, c *client.Client) error {
			answer, err := c.Cluster.AddMember(ctx, &pembav1.AddMemberRequest{Id: args[0], RaftAddr: args[1]})
			if err != nil {
				return err
			}
			return conn.said(cmd, memberChangeJSON{ID: args[0], Done: "added", ClusterID: answer.GetClusterId()})
		})
	}
	return cmd
}

func newClusterPromote() *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:   "promote ID",
		Short: "Give a node a vote",
		Long: `Promote gives a vote to a node that has none, once it has caught up: to a replica, for
a node that joined to have a vote asks for it by itself. It takes an operator's key.`,
		Example: "  pemba cluster promote n4",
		Args:    arguments(1, 1, "ID"),
	}
	conn.addServerFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return conn.call(cmd, func(ctx ctx, c *client.Client) error {
			if _, err := c.Cluster.PromoteMember(ctx, &pembav1.PromoteMemberRequest{Id: args[0]}); err != nil {
				return err
			}
			return conn.said(cmd, memberChangeJSON{ID: args[0], Done: "promoted"})
		})
	}
	return cmd
}

func newClusterRemove() *cobra.Command {
	var conn connection
	var force bool
	cmd := &cobra.Command{
		Use:   "remove ID",
		Short: "Take a node out, also one that is down",
		Long: `Remove takes a node out of the cluster, also one that is down. A node that runs stops
when it hears of it; its directory is of no use any more. It is refused where fewer
than a majority of the voters that are left can be reached, for then nothing could be
written; --force removes the node all the same. It takes an operator's key.`,
		Example: "  pemba cluster remove n3\n  pemba cluster remove n3 --force",
		Args:    arguments(1, 1, "ID"),
	}
	conn.addServerFlags(cmd)
	cmd.Flags().BoolVar(&force, "force", false, "remove it though too few of the others can be reached")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return conn.call(cmd, func(ctx ctx, c *client.Client) error {
			if _, err := c.Cluster.RemoveMember(ctx, &pembav1.RemoveMemberRequest{Id: args[0], Force: force}); err != nil {
				return err
			}
			return conn.said(cmd, memberChangeJSON{ID: args[0], Done: "removed"})
		})
	}
	return cmd
}

func newClusterTransfer() *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:   "transfer [ID]",
		Short: "Let another node lead",
		Long: `Transfer hands the leadership on to the node of the id, or without one to the node that
is furthest; before a leader is stopped, say. It waits until the node that is asked
follows the new leader, and fails where that takes longer than ` + transferPatience.String() + `. It takes an
operator's key.`,
		Example: "  pemba cluster transfer\n  pemba cluster transfer n2",
		Args:    arguments(0, 1, "[ID]"),
	}
	conn.addServerFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return conn.call(cmd, func(ctx ctx, c *client.Client) error {
			who := func(ctx context.Context) (string, error) {
				answer, err := c.Cluster.GetCluster(ctx, &pembav1.GetClusterRequest{})
				return answer.GetLeaderId(), err
			}
			var id string
			var leads func(leader string) bool
			if len(args) > 0 {
				id = args[0]
				leads = func(leader string) bool { return leader == id }
			} else {
				before, err := who(ctx)
				if err != nil {
					return err
				}
				leads = func(leader string) bool { return leader != before }
			}
			if _, err := c.Cluster.TransferLeadership(ctx, &pembav1.TransferLeadershipRequest{Id: id}); err != nil {
				return err
			}
			leader, err := awaitLeader(ctx, who, leads)
			if err != nil {
				return err
			}
			return conn.said(cmd, memberChangeJSON{ID: leader, Done: "transferred"})
		})
	}
	return cmd
}

// transferPatience is how long a new leader may take to be elected and to be heard of, and
// transferPause how often that is asked.
const (
	transferPatience = 10 * time.Second
	transferPause    = 20 * time.Millisecond
)

// awaitLeader asks who leads until it is the right one. That the old leader has left,
// which is when TransferLeadership returns, does not say that another was elected.
func awaitLeader(ctx context.Context, who func(context.Context) (string, error), right func(leader string) bool) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, transferPatience, fmt.Errorf("waited longer than %v for it to be so", transferPatience))
	defer cancel()
	said := "nobody was asked who leads"
	for {
		leader, err := who(ctx)
		switch {
		case err == nil && leader != "" && right(leader):
			return leader, nil
		case err == nil && leader != "":
			said = leader + " leads"
		case err == nil:
			said = "no node is known to lead"
		case ctx.Err() == nil:
			said = "the node that was asked does not answer: " + status.Convert(err).Message()
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("the leader has handed the leadership on, but %s: %w", said, context.Cause(ctx))
		case <-time.After(transferPause):
		}
	}
}

// A memberChangeJSON says what a command did with a node, which after a transfer is the
// one that leads.
type memberChangeJSON struct {
	ID        string `json:"id"`
	Done      string `json:"done"`
	ClusterID string `json:"cluster_id,omitempty"`
}

// said prints what was done.
func (c *connection) said(cmd *cobra.Command, done memberChangeJSON) error {
	if c.json() {
		return printJSON(cmd, done)
	}
	if done.Done == "transferred" {
		return printf(cmd, "%s leads now\n", done.ID)
	}
	return printf(cmd, "%s %s\n", done.Done, done.ID)
}
