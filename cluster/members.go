package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	grpcpeer "google.golang.org/grpc/peer"

	"github.com/pembadb/pemba/cluster/peer"
	peerv1 "github.com/pembadb/pemba/cluster/pemba/peer/v1"
)

// Joining is what a node tells the cluster that it wants to join.
type Joining struct {
	// ID is the node's id, and RaftAddr where the others reach it.
	ID       string
	RaftAddr string
	// Empty says that the node has nothing yet.
	Empty bool
}

// Joined is what the cluster answers.
type Joined struct {
	// ClusterID is the id of the cluster; the node speaks to no other.
	ClusterID [16]byte
}

// A Member is a node of the cluster.
type Member struct {
	ID       string
	RaftAddr string
	// Voter says that its vote counts; a member without one is a replica, or is
	// still catching up.
	Voter bool
	// Leader says that the node that was asked follows it, or is it.
	Leader bool
	// Status is how it is, nil when it could not be asked, which Err explains.
	Status *Status
	Err    error
}

// Members asks all members how they are, at once, and returns them by id. One that
// does not answer within ctx or two seconds has an Err. It needs no leader; the
// members are those that this node knows.
func (n *Node) Members(ctx context.Context) ([]Member, error) {
	if err := n.usable(); err != nil {
		return nil, err
	}
	leader, _ := n.leader()
	said := n.askStatus(ctx, n.configuration().Servers)
	members := make([]Member, 0, len(said))
	for _, r := range said {
		m := Member{
			ID: string(r.server.ID), RaftAddr: string(r.server.Address), Voter: r.server.Suffrage == raft.Voter,
			Leader: r.server.ID == leader.ID, Err: r.err,
		}
		if r.err == nil {
			m.Status = &r.said
		}
		members = append(members, m)
	}
	slices.SortFunc(members, func(a, b Member) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return members, nil
}

// statusPatience is how long a member may take to say how it is.
const statusPatience = 2 * time.Second

// askStatus asks members how they are, and returns what they said, the quickest first. One
// that says nothing within statusPatience has an error, and takes none of the others' time.
func (n *Node) askStatus(ctx context.Context, servers []raft.Server) []reply[Status] {
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	replies := askAll(servers, func(server raft.Server) (Status, error) { return n.statusOf(ctx, server) })
	said := make([]reply[Status], len(servers))
	for i := range said {
		said[i] = <-replies
	}
	return said
}

func (n *Node) statusOf(ctx context.Context, server raft.Server) (Status, error) {
	if string(server.ID) == n.dir.nodeID {
		return n.Status()
	}
	client, err := n.client(server)
	if err != nil {
		return Status{}, err
	}
	response, err := client.GetStatus(ctx, &peerv1.GetStatusRequest{})
	if err != nil {
		return Status{}, inWords(err)
	}
	if err := fromFailure(response.GetFailure()); err != nil {
		return Status{}, err
	}
	return fromPeerStatus(response), nil
}

// AddMember takes a node into the cluster, without a vote, or changes the address of
// one that is a member. It may be asked of any node. A node that has forgotten
// everything is not taken for the voter whose id it has: that one must be removed
// first, or a vote that it gave could be given twice.
func (n *Node) AddMember(ctx context.Context, j Joining) (Joined, error) {
	err := n.changeMembers(ctx, &peerv1.ChangeMembersRequest{Change: &peerv1.ChangeMembersRequest_Add{
		Add: &peerv1.AddMember{Id: j.ID, Addr: j.RaftAddr, Empty: j.Empty},
	}})
	return Joined{ClusterID: n.ClusterID()}, err
}

// PromoteMember gives a vote to a member that has none. A node that joined to become
// a voter asks for it by itself, once it has caught up.
func (n *Node) PromoteMember(ctx context.Context, id string) error {
	return n.changeMembers(ctx, &peerv1.ChangeMembersRequest{Change: &peerv1.ChangeMembersRequest_Promote{
		Promote: &peerv1.PromoteMember{Id: id},
	}})
}

// RemoveMember takes a node out of the cluster, also one that is down. It is refused
// where fewer than a majority of the voters that are left could be reached, unless
// force is set. A leader that is removed hands the leadership on first.
func (n *Node) RemoveMember(ctx context.Context, id string, force bool) error {
	return n.changeMembers(ctx, &peerv1.ChangeMembersRequest{Change: &peerv1.ChangeMembersRequest_Remove{
		Remove: &peerv1.RemoveMember{Id: id, Force: force},
	}})
}

// TransferLeadership lets another voter lead: the one with the id, or with "" the one
// that is furthest.
func (n *Node) TransferLeadership(ctx context.Context, id string) error {
	return n.changeMembers(ctx, &peerv1.ChangeMembersRequest{Change: &peerv1.ChangeMembersRequest_Transfer{
		Transfer: &peerv1.TransferLeadership{Id: id},
	}})
}

// changeMembers has the leader change the members. All but a transfer may be asked for
// again where it is not known what became of it.
func (n *Node) changeMembers(ctx context.Context, r *peerv1.ChangeMembersRequest) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*n.config.WaitMax, fmt.Errorf("%w: the leader has not answered within %v", ErrOutcomeUnknown, 2*n.config.WaitMax))
	defer cancel()
	unknown := false
	err := n.retry(ctx, func() error {
		if err := n.usable(); err != nil {
			return err
		}
		return n.askLeader(ctx, true, func() error { return n.changeMembersHere(ctx, n.dir.nodeID, r) }, func(asking context.Context, leader peerv1.PeerServiceClient) error {
			var to grpcpeer.Peer
			response, err := leader.ChangeMembers(asking, r, grpc.Peer(&to))
			if err != nil {
				return callError(ctx, err, &to, ErrOutcomeUnknown)
			}
			return fromFailure(response.GetFailure())
		})
	}, func(err error) bool {
		if n.peers == nil {
			return false
		}
		if errors.Is(err, ErrOutcomeUnknown) && r.GetTransfer() == nil {
			unknown = true
			return true
		}
		return errors.Is(err, ErrNotLeader)
	})
	if unknown && r.GetRemove() != nil && errors.Is(err, errUnknownMember) {
		return nil // An earlier try removed it.
	}
	if _, known := n.leader(); errors.Is(err, ErrNotLeader) && !known && n.peers != nil {
		// Who was asked last in place of a leader, and what came of it, means nothing.
		err = fmt.Errorf("%w: %w", ErrNotLeader, errNoLeader)
	}
	if err != nil && unknown && !errors.Is(err, ErrOutcomeUnknown) {
		// An earlier try may have made the change, or it may yet come to be made.
		err = fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
	return err
}

// changeMembersHere changes the members on the leader, one change at a time: each begins
// from what the one before left. Which may have been the removal of the caller: it
// would take itself in again.
func (n *Node) changeMembersHere(ctx context.Context, caller string, r *peerv1.ChangeMembersRequest) error {
	select {
	case n.changingMembers <- struct{}{}:
		defer func() { <-n.changingMembers }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := n.answersLeader(caller); err != nil {
		return err
	}
	switch change := r.GetChange().(type) {
	case *peerv1.ChangeMembersRequest_Add:
		return n.addHere(ctx, change.Add)
	case *peerv1.ChangeMembersRequest_Promote:
		return n.promoteHere(ctx, change.Promote.GetId())
	case *peerv1.ChangeMembersRequest_Remove:
		return n.removeHere(ctx, change.Remove)
	case *peerv1.ChangeMembersRequest_Transfer:
		return n.transferHere(ctx, change.Transfer.GetId())
	}
	return fmt.Errorf("%w: the request says no change that this version knows", ErrMember)
}

func (n *Node) addHere(ctx context.Context, add *peerv1.AddMember) error {
	id, addr := add.GetId(), add.GetAddr()
	if err := validateNodeID(id); err != nil {
		return fmt.Errorf("%w: %w", ErrMember, err)
	}
	if err := validateAddr(addr); err != nil {
		return fmt.Errorf("%w: the address of node %q: %w", ErrMember, id, err)
	}
	if n.peers == nil {
		return fmt.Errorf("%w: this node has no port for others; restart it with an address for Raft (--raft-addr)", ErrMember)
	}
	if host, _, _ := net.SplitHostPort(addr); n.config.PeerTLS == nil && n.config.PeerNetwork == nil && !peer.IsLoopback(host) {
		return fmt.Errorf("%w: %s is not an address of this machine alone, and the nodes speak no TLS with each other (--peer-cert)", ErrMember, addr)
	}
	servers := n.configuration().Servers
	voter := false
	for _, server := range servers {
		switch {
		case string(server.ID) == id && server.Suffrage == raft.Voter && add.GetEmpty():
			return fmt.Errorf("%w: %q is a voter at %s, and the node that would join under its name has nothing; "+
				"remove the old one first, or let the new one join with another empty directory and another id", ErrMember, id, server.Address)
		case string(server.ID) == id && string(server.Address) == addr:
			return n.awaitMembers(ctx)
		case string(server.ID) == id:
			voter = server.Suffrage == raft.Voter
		case string(server.Address) == addr:
			return fmt.Errorf("%w: the address %s is that of the node %q", ErrMember, addr, server.ID)
		}
	}
	if len(servers) >= membersMax {
		return fmt.Errorf("%w: the cluster has %d nodes, and %d are allowed", ErrMember, len(servers), membersMax)
	}
	return n.commitMembers(ctx, fmt.Sprintf("add %s at %s", id, addr), func(r *raft.Raft) raft.Future {
		if voter {
			return r.AddVoter(raft.ServerID(id), raft.ServerAddress(addr), 0, n.config.WaitMax)
		}
		return r.AddNonvoter(raft.ServerID(id), raft.ServerAddress(addr), 0, n.config.WaitMax)
	})
}

// membersMax bounds the members: the leader sends every entry to each of them.
const membersMax = 64

func (n *Node) promoteHere(ctx context.Context, id string) error {
	server, found := memberOf(n.configuration(), id)
	switch {
	case !found:
		return unknownMember(id)
	case server.Suffrage == raft.Voter:
		return n.awaitMembers(ctx)
	}
	// A voter that lags makes majorities that cannot answer.
	status, err := n.statusOf(ctx, server)
	if err != nil {
		return fmt.Errorf("%w: %q cannot be asked how far it is: %w", ErrMember, id, err)
	}
	if applied := n.db().Applied().Revision; uint64(status.Applied)+promoteLagMax < uint64(applied) {
		return fmt.Errorf("%w: %q is at revision %d, and this node at %d; it must catch up first", ErrMember, id, status.Applied, applied)
	}
	return n.commitMembers(ctx, "give a vote to "+id, func(r *raft.Raft) raft.Future {
		return r.AddVoter(server.ID, server.Address, 0, n.config.WaitMax)
	})
}

// promoteLagMax is how many entries a node may lag that is to get a vote: some moments
// of a busy cluster.
const promoteLagMax = 2048

func unknownMember(id string) error { return fmt.Errorf("%w: %q", errUnknownMember, id) }

// errUnknownMember is an ErrMember about a node that is none of the cluster's.
var errUnknownMember = fmt.Errorf("%w: no node has that id", ErrMember)

func (n *Node) removeHere(ctx context.Context, remove *peerv1.RemoveMember) error {
	id := remove.GetId()
	configuration := n.configuration()
	server, found := memberOf(configuration, id)
	if !found {
		if err := n.awaitMembers(ctx); err != nil {
			return err
		}
		return unknownMember(id)
	}
	if server.Suffrage == raft.Voter {
		if countVoters(configuration) == 1 {
			return fmt.Errorf("%w: %q is the only voter", ErrMember, id)
		}
		if reached, voters := n.reachWithout(ctx, configuration, id); reached <= voters/2 && !remove.GetForce() {
			return fmt.Errorf("%w: without %q there would be %d voters, of which %d can be reached now, and more than half are needed; "+
				"start the others first, or force it", ErrMember, id, voters, reached)
		}
		if id == n.dir.nodeID {
			if err := n.transferHere(ctx, ""); err != nil {
				return err
			}
			return fmt.Errorf("%w: it was to be removed, and has handed its leadership on", ErrNotLeader)
		}
	}
	return n.commitMembers(ctx, "remove "+id, func(r *raft.Raft) raft.Future {
		return r.RemoveServer(server.ID, 0, n.config.WaitMax)
	})
}

// reachWithout counts the voters that there would be without one, and those of them
// that can be reached.
func (n *Node) reachWithout(ctx context.Context, c raft.Configuration, id string) (reached, voters int) {
	left := votersBut(c, id)
	for _, r := range n.askStatus(ctx, left) {
		if r.err == nil {
			reached++
		}
	}
	return reached, len(left)
}

func (n *Node) transferHere(ctx context.Context, id string) error {
	configuration := n.configuration()
	if countVoters(configuration) == 1 {
		return fmt.Errorf("%w: no other node has a vote", ErrMember)
	}
	to := n.otherVoters()
	if id != "" {
		server, found := memberOf(configuration, id)
		switch {
		case !found:
			return unknownMember(id)
		case id == n.dir.nodeID:
			return nil
		case server.Suffrage != raft.Voter:
			return fmt.Errorf("%w: %q has no vote and cannot lead", ErrMember, id)
		}
		to = []raft.Server{server}
	}
	return n.handOver(ctx, to)
}

// handOver lets one of some voters lead: the one that is furthest of those that answer,
// or the next, where that one does not take it.
func (n *Node) handOver(ctx context.Context, to []raft.Server) error {
	err := fmt.Errorf("%w: no other voter answers", ErrMember)
	var candidates []reply[Status]
	for _, r := range n.askStatus(ctx, to) {
		if r.err == nil {
			candidates = append(candidates, r)
		} else {
			err = fmt.Errorf("%w: %q does not answer: %w", ErrMember, r.server.ID, r.err)
		}
	}
	slices.SortFunc(candidates, func(a, b reply[Status]) int { return cmp.Compare(b.said.Applied, a.said.Applied) })
	n.handingOver.Add(1)
	defer n.handingOver.Add(-1)
	for _, c := range candidates {
		term := n.raft().CurrentTerm()
		err = n.awaitRaft(ctx, func(r *raft.Raft) raft.Future { return r.LeadershipTransferToServer(c.server.ID, c.server.Address) })
		if err != nil && n.raft().State() == raft.Leader {
			n.untaken.Store(c.server.ID, term)
			err = fmt.Errorf("hand the leadership on to %s: %w", c.server.ID, err)
			if ctx.Err() != nil {
				return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err) // Raft goes on with it.
			}
			continue
		}
		// It went, also where Raft's patience ended before it was told.
		n.config.Logger.Info("handed the leadership on", "node", n.dir.nodeID, "to", c.server.ID)
		return nil
	}
	return err
}

// commitMembers makes a change of the members and waits until it is agreed.
func (n *Node) commitMembers(ctx context.Context, what string, change func(*raft.Raft) raft.Future) error {
	err := n.awaitRaft(ctx, change)
	switch {
	case err == nil:
		n.config.Logger.Info("the members of the cluster were changed", "node", n.dir.nodeID, "change", what)
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	}
	return fmt.Errorf("%s: %w: %w", what, ErrOutcomeUnknown, err)
}

// awaitMembers returns when the newest configuration that this leader has is agreed. It may
// be that of an earlier try, which nobody knows the outcome of: until it is agreed, another
// leader may take it back, and who was told that the change is made would be told wrong.
func (n *Node) awaitMembers(ctx context.Context) error {
	err := n.awaitRaft(ctx, func(r *raft.Raft) raft.Future { return r.Barrier(n.config.WaitMax) })
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	}
	return fmt.Errorf("the newest change of the members is not agreed: %w: %w", ErrOutcomeUnknown, err)
}

// awaitRaft asks Raft and waits for it, but no longer than ctx allows, the node lives or
// Raft runs: one that is stopped does not answer all that it was asked.
func (n *Node) awaitRaft(ctx context.Context, ask func(*raft.Raft) raft.Future) error {
	m := n.machine.Load()
	future := ask(m.raft)
	done := make(chan error, 1)
	go func() { done <- future.Error() }()
	select {
	case err := <-done:
		return err
	case <-m.stop:
		select {
		case err := <-done: // Both came at once.
			return err
		default:
			return errMachineStopped
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-n.failed:
		return n.usable()
	}
}

// join makes an empty node a member. Its entries come by themselves then.
func (n *Node) join(ctx context.Context, empty bool) error {
	if !empty || n.dir.member != (membership{}) || n.config.Join == nil {
		return nil
	}
	joined, err := n.config.Join(ctx, Joining{ID: n.dir.nodeID, RaftAddr: n.config.RaftAddr, Empty: true})
	if err == nil && joined.ClusterID == [16]byte{} {
		err = errors.New("the answer names no cluster")
	}
	if err != nil {
		return fmt.Errorf("join the cluster: %w", err)
	}
	if err := n.dir.join(membership{cluster: joined.ClusterID, replica: n.config.Replica}); err != nil {
		return err
	}
	n.joined.Store(&joined.ClusterID)
	n.config.Logger.Info("joined the cluster", "node", n.dir.nodeID, "cluster", fmt.Sprintf("%x", joined.ClusterID))
	return nil
}

// ClusterID returns the id of the cluster; zero on a node that is to join one and has
// not. It changes only when a cluster is recovered.
//
// What the node joined counts before what its state says: in a cluster that was
// recovered, the state has the id of before until the entry is applied that brought
// the new one, and nobody who has that old id is heard.
func (n *Node) ClusterID() [16]byte {
	if joined := n.joined.Load(); joined != nil {
		return *joined
	}
	if m := n.machine.Load(); m != nil {
		return m.db.ClusterID()
	}
	return [16]byte{}
}

// followMembership looks after this node's own place in the cluster, as long as it
// has peers: it finds out when it has caught up, asks for its vote then, tells the
// others when its address was changed, and stops the node when it was removed.
func (n *Node) followMembership() {
	defer n.loops.Done()
	ctx, cancel := n.untilStop()
	defer cancel()
	var alone time.Time // Since when no leader is known; zero while one is.
	said := ""          // Why it was last said that the node is not in its place.
	for n.sleep(n.config.MemberPause) {
		n.retainPeers()
		if _, known := n.leader(); known {
			alone = time.Time{}
		} else if alone.IsZero() {
			alone = time.Now()
		}
		patience := removedTimeouts * n.electionTimeout()
		if _, found := memberOf(n.configuration(), n.dir.nodeID); !found && n.current.Load() {
			patience = 0 // What it has seen of the log says so too.
		}
		if !alone.IsZero() && time.Since(alone) >= patience && n.wasRemoved(ctx) {
			n.fail(ErrRemoved)
			return
		}
		switch err := n.takePlace(ctx); {
		case err == nil:
			said = ""
		case n.usable() != nil:
		case errors.Is(err, errAddressRefused) && err.Error() != said:
			// That does not end by itself.
			said = err.Error()
			n.config.Logger.Warn("the cluster does not take this node as it is", "node", n.dir.nodeID, "error", err)
		default:
			n.config.Logger.Debug("not in place yet", "node", n.dir.nodeID, "error", err)
		}
	}
}

// retainPeers forgets those who are no members any more.
func (n *Node) retainPeers() {
	members := map[string]string{}
	for _, server := range n.configuration().Servers {
		members[string(server.ID)] = string(server.Address)
	}
	if leader, known := n.leader(); known {
		members[string(leader.ID)] = string(leader.Address) // Which the log may not tell yet.
	}
	n.peers.transport.Retain(members)
}

// removedTimeouts is after how many election timeouts without a leader a node asks
// whether it still belongs to the cluster.
const removedTimeouts = 8

// errAddressRefused is the error of a node that has another address than the cluster
// knows, and whose new one is not taken.
var errAddressRefused = errors.New("the new address of this node is refused")

// takePlace does what is next for this node to be what it is to be.
func (n *Node) takePlace(ctx context.Context) error {
	// No longer, so that a node that was removed finds out soon.
	ctx, cancel := context.WithTimeout(ctx, min(n.config.WaitMax, removedTimeouts*n.electionTimeout()))
	defer cancel()
	self, found := memberOf(n.configuration(), n.dir.nodeID)
	if found && string(self.Address) != n.config.RaftAddr {
		// First of all: until they know it, the others cannot reach this node.
		_, err := n.AddMember(ctx, Joining{ID: n.dir.nodeID, RaftAddr: n.config.RaftAddr})
		if errors.Is(err, ErrMember) {
			err = fmt.Errorf("%w: %w", errAddressRefused, err)
		}
		return err
	}
	if !n.current.Load() {
		index, err := n.readIndex(ctx)
		if err == nil {
			err = n.waitApplied(ctx, index)
		}
		if err != nil {
			return err
		}
		if err := n.dir.begin(); err != nil {
			n.fail(err)
			return err
		}
		n.current.Store(true)
		n.progress.broadcast()
		n.config.Logger.Info("caught up with the cluster", "node", n.dir.nodeID, "revision", n.db().Applied().Revision)
	}
	if found && self.Suffrage != raft.Voter && n.dir.member != (membership{}) && !n.dir.member.replica {
		return n.PromoteMember(ctx, n.dir.nodeID)
	}
	return nil
}

// wasRemoved asks the other members whether this node belongs to the cluster. It does
// not when more than half of the other voters that it knows say so: they have the agreed
// change that removed it, or one that is about to be agreed.
func (n *Node) wasRemoved(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, statusPatience)
	defer cancel()
	others := n.otherVoters()
	replies := askAll(others, func(server raft.Server) (*peerv1.ConfirmResponse, error) {
		return n.askTerm(ctx, server, 0)
	})
	removed := 0
	for range others {
		if r := <-replies; r.err == nil && !r.said.GetMember() {
			removed++
		}
	}
	return removed > len(others)/2
}
