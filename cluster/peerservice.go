package cluster

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pembadb/pemba/cluster/peer"
	peerv1 "github.com/pembadb/pemba/cluster/pemba/peer/v1"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// A peerService answers the other nodes.
type peerService struct {
	peerv1.UnimplementedPeerServiceServer
	node *Node
}

// callerID returns the id of the node that calls.
func callerID(ctx context.Context) string {
	id, _ := peer.PeerOf(ctx)
	return id
}

// isMember reports whether a node belongs to the cluster, as far as this one knows.
func (n *Node) isMember(id string) bool {
	_, found := memberOf(n.configuration(), id)
	return found
}

// Confirm implements peerv1.PeerServiceServer.
func (s *peerService) Confirm(ctx context.Context, _ *peerv1.ConfirmRequest) (*peerv1.ConfirmResponse, error) {
	n := s.node
	// The term that is stored: a vote is never given before it. Raft's own may be that of a
	// Raft that was stopped.
	term, err := n.log.GetUint64(keyCurrentTerm)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return &peerv1.ConfirmResponse{Term: term, Clock: int64(n.now()), Member: n.isMember(callerID(ctx))}, nil
}

// ReadIndex implements peerv1.PeerServiceServer.
func (s *peerService) ReadIndex(ctx context.Context, r *peerv1.ReadIndexRequest) (*peerv1.ReadIndexResponse, error) {
	n := s.node
	var revision graph.Revision
	err := n.answersLeader(callerID(ctx))
	if err == nil {
		revision, err = n.settleHere(ctx, graph.Instant(r.GetSettle()))
	}
	if err != nil {
		return &peerv1.ReadIndexResponse{Failure: toFailure(stopsLeading(err))}, nil
	}
	return &peerv1.ReadIndexResponse{Revision: uint64(revision)}, nil
}

// answersLeader returns why this node does not answer what only a leader can, to a
// caller; nil when it does.
func (n *Node) answersLeader(caller string) error {
	if !n.leads() {
		return ErrNotLeader
	}
	if !n.isMember(caller) {
		return fmt.Errorf("%w: %q is none of its nodes", ErrRemoved, caller)
	}
	return nil
}

// Write implements peerv1.PeerServiceServer.
func (s *peerService) Write(ctx context.Context, r *peerv1.WriteRequest) (*peerv1.WriteResponse, error) {
	n := s.node
	m, err := graph.DecodeMutation(r.GetMutation())
	if err != nil {
		// No error of gRPC, of which the caller could not tell that nothing was done.
		return &peerv1.WriteResponse{Failure: toFailure(fmt.Errorf("write: %w", err))}, nil
	}
	m.RequestID = r.GetRequestId()
	if err = n.answersLeader(callerID(ctx)); err == nil {
		var result engine.Result
		if result, err = n.writeHere(ctx, m); err == nil {
			return &peerv1.WriteResponse{Result: toPeerResult(&result)}, nil
		}
	}
	return &peerv1.WriteResponse{Failure: toFailure(stopsLeading(err))}, nil
}

// stopsLeading returns what an error of this node is to another one that asked it as the
// leader. Where this node stops, and nothing was done, the next leader is to be asked:
// the caller's own node runs.
func stopsLeading(err error) error {
	if !errors.Is(err, ErrOutcomeUnknown) && (errors.Is(err, ErrShuttingDown) || errors.Is(err, ErrFailed)) {
		return fmt.Errorf("%w: %s", ErrNotLeader, err.Error()) // It may be an ErrRemoved, which is of this node.
	}
	return err
}

// GetStatus implements peerv1.PeerServiceServer.
func (s *peerService) GetStatus(context.Context, *peerv1.GetStatusRequest) (*peerv1.GetStatusResponse, error) {
	now, err := s.node.Status()
	if err != nil {
		return &peerv1.GetStatusResponse{Failure: toFailure(err)}, nil
	}
	return toPeerStatus(&now), nil
}

// ChangeMembers implements peerv1.PeerServiceServer.
func (s *peerService) ChangeMembers(ctx context.Context, r *peerv1.ChangeMembersRequest) (*peerv1.ChangeMembersResponse, error) {
	n := s.node
	err := n.answersLeader(callerID(ctx))
	if err == nil {
		err = n.changeMembersHere(ctx, callerID(ctx), r)
	}
	if err != nil {
		return &peerv1.ChangeMembersResponse{Failure: toFailure(err)}, nil
	}
	id := n.ClusterID()
	return &peerv1.ChangeMembersResponse{ClusterId: id[:]}, nil
}

func toPeerResult(r *engine.Result) *peerv1.Result {
	to := &peerv1.Result{
		Revision: uint64(r.Revision), Instant: int64(r.Instant), Changed: int64(r.Changed), Partial: r.Partial,
		Store: uint32(r.Store), RepeatedRequest: r.Repeated,
	}
	if refusal := r.Refusal; refusal != nil {
		to.Refusal = &peerv1.Refusal{
			Reason: uint32(refusal.Reason), Field: refusal.Field, Message: refusal.Message, Metadata: refusal.Metadata,
		}
	}
	if stage := &r.Stage; stage.ID != (graph.StageID{}) {
		to.Stage = &peerv1.Stage{
			Id: stage.ID[:], Chunks: stage.Chunks, Tuples: stage.Tuples, Digest: stage.Digest[:], Touched: int64(stage.Touched),
			Schema: uint64(stage.Schema), Committed: uint64(stage.Committed), Changed: stage.Changed,
		}
	}
	return to
}

func fromPeerResult(from *peerv1.Result) engine.Result {
	r := engine.Result{
		Revision: graph.Revision(from.GetRevision()), Instant: graph.Instant(from.GetInstant()),
		Changed: int(from.GetChanged()), Partial: from.GetPartial(), Store: graph.StoreID(from.GetStore()),
		Repeated: from.GetRepeatedRequest(),
	}
	if refusal := from.GetRefusal(); refusal != nil {
		r.Refusal = &engine.Refusal{
			Reason: engine.Reason(refusal.GetReason()), Field: refusal.GetField(), Message: refusal.GetMessage(), Metadata: refusal.GetMetadata(),
		}
	}
	if stage := from.GetStage(); stage != nil {
		copy(r.Stage.ID[:], stage.GetId())
		copy(r.Stage.Digest[:], stage.GetDigest())
		r.Stage.Chunks, r.Stage.Tuples, r.Stage.Touched = stage.GetChunks(), stage.GetTuples(), graph.Instant(stage.GetTouched())
		r.Stage.Schema, r.Stage.Committed, r.Stage.Changed = graph.Revision(stage.GetSchema()), graph.Revision(stage.GetCommitted()), stage.GetChanged()
	}
	return r
}

func toPeerStatus(s *Status) *peerv1.GetStatusResponse {
	return &peerv1.GetStatusResponse{
		NodeId: s.NodeID, Version: s.Version, Role: s.Role, LeaderId: s.LeaderID, Term: s.Term,
		Applied: uint64(s.Applied), Durable: uint64(s.Durable), Committed: s.Committed, Stamp: int64(s.Stamp),
		FirstIndex: s.FirstIndex, LastIndex: s.LastIndex, StateBytes: s.StateBytes, LogBytes: s.LogBytes,
		FreeBytes: s.FreeBytes, FreeBytesMin: s.FreeBytesMin, ClusterId: s.ClusterID[:], Voters: uint32(s.Voters),
		NotReady: s.NotReady, Clock: int64(s.Clock),
	}
}

func fromPeerStatus(from *peerv1.GetStatusResponse) Status {
	s := Status{
		NodeID: from.GetNodeId(), Version: from.GetVersion(), Role: from.GetRole(), LeaderID: from.GetLeaderId(), Term: from.GetTerm(),
		Applied: graph.Revision(from.GetApplied()), Durable: graph.Revision(from.GetDurable()), Committed: from.GetCommitted(),
		Stamp: graph.Instant(from.GetStamp()), FirstIndex: from.GetFirstIndex(), LastIndex: from.GetLastIndex(),
		StateBytes: from.GetStateBytes(), LogBytes: from.GetLogBytes(), FreeBytes: from.GetFreeBytes(), FreeBytesMin: from.GetFreeBytesMin(),
		Voters: int(from.GetVoters()), NotReady: from.GetNotReady(), Clock: graph.Instant(from.GetClock()),
	}
	copy(s.ClusterID[:], from.GetClusterId())
	return s
}
