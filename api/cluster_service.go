package api

import (
	"context"
	"encoding/hex"
	"math"

	"google.golang.org/grpc/status"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/graph"
)

// clusterService implements pemba.v1.ClusterService.
type clusterService struct {
	pembav1.UnimplementedClusterServiceServer
	server *Server
}

// admit lets operators in, and counts the call against the rate of the key.
func (s *clusterService) admit(ctx context.Context) error {
	who := callerOf(ctx)
	switch {
	case who.operator:
		return s.server.rate.allow(who, graph.StoreInfo{})
	case who.own != "":
		return needsOperator("a server for tests is a cluster of its own, whose nodes are nobody's to see or to change")
	}
	return needsOperator("the key is bound to stores; seeing and changing the nodes of the cluster needs an operator's key")
}

func (s *clusterService) GetCluster(ctx context.Context, _ *pembav1.GetClusterRequest) (*pembav1.GetClusterResponse, error) {
	if err := s.admit(ctx); err != nil {
		return nil, err
	}
	members, err := s.server.node.Members(ctx)
	if err != nil {
		return nil, err
	}
	response := &pembav1.GetClusterResponse{NodeId: s.server.node.ID(), Members: make([]*pembav1.Member, len(members))}
	if id := s.server.clusterID(); id != [16]byte{} {
		response.ClusterId = hex.EncodeToString(id[:])
	}
	var leader *cluster.Status
	for i := range members {
		if members[i].Leader {
			response.LeaderId, leader = members[i].ID, members[i].Status
		}
	}
	for i := range members {
		response.Members[i] = fromMember(&members[i], leader)
	}
	return response, nil
}

// fromMember makes the message of a member. leader is the status of the one that
// leads, nil where it is not known.
func fromMember(m *cluster.Member, leader *cluster.Status) *pembav1.Member {
	p := &pembav1.Member{Id: m.ID, RaftAddr: m.RaftAddr, Suffrage: pembav1.Member_SUFFRAGE_NONVOTER, Leader: m.Leader}
	if m.Voter {
		p.Suffrage = pembav1.Member_SUFFRAGE_VOTER
	}
	if m.Err != nil {
		p.Error = StatusMessage(status.Convert(m.Err).Message())
	}
	s := m.Status
	if s == nil {
		return p
	}
	p.Status = &pembav1.MemberStatus{
		Role: s.Role, Term: s.Term,
		AppliedRevision: uint64(s.Applied), CommittedRevision: s.Committed, DurableRevision: uint64(s.Durable),
		Version: s.Version, StateBytes: s.StateBytes, LogBytes: s.LogBytes,
		Clock: fromInstant(s.Clock), NotReady: s.NotReady,
	}
	if s.FreeBytes != math.MaxInt64 {
		p.Status.FreeBytes = &s.FreeBytes
	}
	if leader != nil {
		// The two were asked at about the same time; who was asked later may be ahead.
		lag := uint64(leader.Applied - min(leader.Applied, s.Applied))
		p.Status.LagRevisions = &lag
	}
	return p
}

func (s *clusterService) AddMember(ctx context.Context, r *pembav1.AddMemberRequest) (*pembav1.AddMemberResponse, error) {
	if err := s.admit(ctx); err != nil {
		return nil, err
	}
	if err := checkMember("id", r.GetId()); err != nil {
		return nil, err
	}
	if err := checkMember("raft_addr", r.GetRaftAddr()); err != nil {
		return nil, err
	}
	joined, err := s.server.node.AddMember(ctx, cluster.Joining{ID: r.GetId(), RaftAddr: r.GetRaftAddr(), Empty: r.GetEmpty()})
	if err != nil {
		return nil, err
	}
	if joined.ClusterID == [16]byte{} {
		return nil, cluster.ErrNotReady
	}
	return &pembav1.AddMemberResponse{ClusterId: hex.EncodeToString(joined.ClusterID[:])}, nil
}

// memberBytesMax bounds the texts that name a node.
const memberBytesMax = 512

// checkMember validates the id of a node, or its address, as text; what else is wrong
// with it the node says.
func checkMember(field, text string) error {
	if text == "" {
		return malformed(field, "no node is named: it is empty")
	}
	return checkText(field, text, memberBytesMax)
}

func (s *clusterService) PromoteMember(ctx context.Context, r *pembav1.PromoteMemberRequest) (*pembav1.PromoteMemberResponse, error) {
	if err := s.admit(ctx); err != nil {
		return nil, err
	}
	if err := checkMember("id", r.GetId()); err != nil {
		return nil, err
	}
	if err := s.server.node.PromoteMember(ctx, r.GetId()); err != nil {
		return nil, err
	}
	return &pembav1.PromoteMemberResponse{}, nil
}

func (s *clusterService) RemoveMember(ctx context.Context, r *pembav1.RemoveMemberRequest) (*pembav1.RemoveMemberResponse, error) {
	if err := s.admit(ctx); err != nil {
		return nil, err
	}
	if err := checkMember("id", r.GetId()); err != nil {
		return nil, err
	}
	if err := s.server.node.RemoveMember(ctx, r.GetId(), r.GetForce()); err != nil {
		return nil, err
	}
	return &pembav1.RemoveMemberResponse{}, nil
}

func (s *clusterService) TransferLeadership(ctx context.Context, r *pembav1.TransferLeadershipRequest) (*pembav1.TransferLeadershipResponse, error) {
	if err := s.admit(ctx); err != nil {
		return nil, err
	}
	if r.GetId() != "" {
		if err := checkMember("id", r.GetId()); err != nil {
			return nil, err
		}
	}
	if err := s.server.node.TransferLeadership(ctx, r.GetId()); err != nil {
		return nil, err
	}
	return &pembav1.TransferLeadershipResponse{}, nil
}
