package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/graph"
)

// freeAddr returns an address of this machine that nobody listens on.
func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return l.Addr().String()
}

// clusterNodes opens n nodes in memory, n1 and so on, that are a cluster: each with a
// vote, and n1 leads.
func clusterNodes(t testing.TB, n int) []*cluster.Node {
	t.Helper()
	var nodes []*cluster.Node
	for i := range n {
		c := cluster.Config{InMemory: true, NodeID: fmt.Sprintf("n%d", i+1), RaftAddr: freeAddr(t), MemberPause: 10 * time.Millisecond, Version: "v0"}
		if i > 0 {
			c.Join = func(ctx context.Context, j cluster.Joining) (cluster.Joined, error) {
				return nodes[0].AddMember(ctx, j)
			}
		}
		nodes = append(nodes, openNode(t, c))
	}
	for _, node := range nodes {
		eventually(t, node.ID()+" is ready, and all have votes", func() bool {
			s, err := node.Status()
			return err == nil && s.NotReady == "" && s.Voters == n
		})
	}
	return nodes
}

// TestClusterService: an operator sees the nodes through any of them, and changes who
// belongs to the cluster; others do neither.
func TestClusterService(t *testing.T) {
	nodes := clusterNodes(t, 2)
	keys := t.TempDir() + "/keys"
	writeFile(t, keys, []byte("op\nbound store default\n"))
	var clients []*testClient
	var servers []*Server
	for _, node := range nodes {
		servers = append(servers, testServer(t, Config{Node: node, KeyFile: keys}))
		clients = append(clients, dial(t, servers[len(servers)-1]))
	}
	ctx := as(testContext(t), "op")
	for i, c := range clients {
		var answer *pembav1.GetClusterResponse
		eventually(t, "both nodes are known", func() bool {
			var err error
			if answer, err = c.GetCluster(ctx, &pembav1.GetClusterRequest{}); err != nil {
				t.Fatal(err)
			}
			return answer.GetLeaderId() == "n1" && len(answer.GetMembers()) == 2 &&
				answer.GetMembers()[0].GetStatus().GetAppliedRevision() == answer.GetMembers()[1].GetStatus().GetAppliedRevision()
		})
		id := nodes[0].ClusterID()
		if answer.GetClusterId() != fmt.Sprintf("%x", id) || answer.GetNodeId() != nodes[i].ID() {
			t.Errorf("the cluster is %v", answer)
		}
		for j, m := range answer.GetMembers() {
			s := m.GetStatus()
			if m.GetId() != nodes[j].ID() || m.GetRaftAddr() == "" || m.GetSuffrage() != pembav1.Member_SUFFRAGE_VOTER || m.GetLeader() != (j == 0) || m.GetError() != "" ||
				(s.GetRole() == "leader") != (j == 0) || s.GetTerm() == 0 || s.GetCommittedRevision() < s.GetAppliedRevision() || s.LagRevisions == nil || s.GetLagRevisions() != 0 ||
				s.GetVersion() != "v0" || s.FreeBytes != nil || s.GetClock() == nil || s.GetNotReady() != "" {
				t.Errorf("node %d is %v", j, m)
			}
		}
	}
	c := clients[1]
	_, err := c.AddMember(ctx, &pembav1.AddMemberRequest{RaftAddr: "127.0.0.1:1"})
	expectStatus(t, "no id", err, codes.InvalidArgument, "MALFORMED")
	_, err = c.AddMember(ctx, &pembav1.AddMemberRequest{Id: "n3"})
	expectStatus(t, "no address", err, codes.InvalidArgument, "MALFORMED")
	_, err = c.AddMember(ctx, &pembav1.AddMemberRequest{Id: "n3", RaftAddr: strings.Repeat("a", memberBytesMax) + ":1"})
	expectStatus(t, "a long address", err, codes.InvalidArgument, "MALFORMED")
	_, err = c.AddMember(ctx, &pembav1.AddMemberRequest{Id: "n3", RaftAddr: "nowhere"})
	expectStatus(t, "no port", err, codes.FailedPrecondition, "MEMBER")
	_, err = c.AddMember(ctx, &pembav1.AddMemberRequest{Id: "n1", RaftAddr: "127.0.0.1:1", Empty: true})
	expectStatus(t, "a voter without its data", err, codes.FailedPrecondition, "MEMBER")
	_, err = c.PromoteMember(ctx, &pembav1.PromoteMemberRequest{})
	expectStatus(t, "nobody promoted", err, codes.InvalidArgument, "MALFORMED")
	_, err = c.PromoteMember(ctx, &pembav1.PromoteMemberRequest{Id: "n3"})
	expectStatus(t, "an unknown node promoted", err, codes.FailedPrecondition, "MEMBER")
	_, err = c.RemoveMember(ctx, &pembav1.RemoveMemberRequest{})
	expectStatus(t, "nobody removed", err, codes.InvalidArgument, "MALFORMED")
	_, err = c.TransferLeadership(ctx, &pembav1.TransferLeadershipRequest{Id: "n3"})
	expectStatus(t, "an unknown leader", err, codes.FailedPrecondition, "MEMBER")
	_, err = c.TransferLeadership(ctx, &pembav1.TransferLeadershipRequest{Id: "n\x00"})
	expectStatus(t, "a leader that is no text", err, codes.InvalidArgument, "MALFORMED")

	// A node that is not there is one all the same.
	added, err := c.AddMember(ctx, &pembav1.AddMemberRequest{Id: "n3", RaftAddr: "127.0.0.1:1"})
	if id := nodes[0].ClusterID(); err != nil || added.GetClusterId() != fmt.Sprintf("%x", id) {
		t.Errorf("adding: %v, %v", added, err)
	}
	answer, err := clients[0].GetCluster(ctx, &pembav1.GetClusterRequest{})
	if err != nil || len(answer.GetMembers()) != 3 {
		t.Fatalf("%v, %v", answer, err)
	}
	if m := answer.GetMembers()[2]; m.GetSuffrage() != pembav1.Member_SUFFRAGE_NONVOTER || m.GetStatus() != nil || m.GetError() == "" || strings.Contains(m.GetError(), "rpc error") {
		t.Errorf("the one that is not there: %v", m)
	}
	if _, err := c.RemoveMember(ctx, &pembav1.RemoveMemberRequest{Id: "n3"}); err != nil {
		t.Errorf("removing: %v", err)
	}
	if _, err := clients[0].TransferLeadership(ctx, &pembav1.TransferLeadershipRequest{}); err != nil {
		t.Errorf("handing on: %v", err)
	}
	eventually(t, "the other leads", func() bool {
		answer, err := c.GetCluster(ctx, &pembav1.GetClusterRequest{})
		return err == nil && answer.GetLeaderId() == "n2"
	})

	bound := as(testContext(t), "bound")
	for what, call := range map[string]func() error{
		"GetCluster": func() error { _, err := c.GetCluster(bound, &pembav1.GetClusterRequest{}); return err },
		"AddMember": func() error {
			_, err := c.AddMember(bound, &pembav1.AddMemberRequest{Id: "n3", RaftAddr: "127.0.0.1:1"})
			return err
		},
		"PromoteMember": func() error { _, err := c.PromoteMember(bound, &pembav1.PromoteMemberRequest{Id: "n1"}); return err },
		"RemoveMember":  func() error { _, err := c.RemoveMember(bound, &pembav1.RemoveMemberRequest{Id: "n1"}); return err },
		"TransferLeadership": func() error {
			_, err := c.TransferLeadership(bound, &pembav1.TransferLeadershipRequest{})
			return err
		},
	} {
		expectStatus(t, what+" with a key that is bound", call(), codes.PermissionDenied, "OPERATOR_ONLY")
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+servers[0].HTTPAddr().String()+"/pemba/v1/get-cluster", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer op")
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil || response.StatusCode != http.StatusOK || !strings.Contains(string(body), `"suffrage":"SUFFRAGE_VOTER"`) {
		t.Errorf("over HTTP: %v, %d, %s", err, response.StatusCode, body)
	}
}

// TestMemberMessage holds what is told of a member, and what is not where nobody knows.
func TestMemberMessage(t *testing.T) {
	s := &cluster.Status{Role: "follower", Applied: 7, Committed: 9, Durable: 5, FreeBytes: 3, NotReady: "why"}
	m := &cluster.Member{ID: "n2", Status: s}
	if p := fromMember(m, nil).GetStatus(); p.LagRevisions != nil || p.GetFreeBytes() != 3 || p.GetNotReady() != "why" || p.GetDurableRevision() != 5 {
		t.Errorf("without a leader: %v", p)
	}
	if p := fromMember(m, &cluster.Status{Applied: 10}).GetStatus(); p.GetLagRevisions() != 3 {
		t.Errorf("behind the leader: %v", p)
	}
	s.FreeBytes = math.MaxInt64
	if p := fromMember(m, &cluster.Status{Applied: 6}).GetStatus(); p.LagRevisions == nil || p.GetLagRevisions() != 0 || p.FreeBytes != nil {
		t.Errorf("asked later than the leader: %v", p)
	}
}

// TestNotReady: a server whose node has not caught up is up and says that it is not
// ready; it answers nothing that could be old, and learns its cluster from its node.
func TestNotReady(t *testing.T) {
	// The cluster that took it in never speaks to it.
	id := [16]byte{1, 2, 3}
	node := openNode(t, cluster.Config{
		InMemory: true, NodeID: "n2", RaftAddr: freeAddr(t), WaitMax: 20 * time.Millisecond,
		Join: func(context.Context, cluster.Joining) (cluster.Joined, error) {
			return cluster.Joined{ClusterID: id}, nil
		},
	})
	keys := t.TempDir() + "/keys"
	writeFile(t, keys, []byte("op\nbound store team\n"))
	var log strings.Builder
	s := testServer(t, Config{Node: node, KeyFile: keys, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	c := dial(t, s)
	ctx := as(testContext(t), "op")
	health, err := grpc_health_v1.NewHealthClient(c.conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: pembav1.ClusterService_ServiceDesc.ServiceName})
	if err != nil || health.GetStatus() != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("its health is %v, %v", health, err)
	}
	response, err := http.Get("http://" + s.HTTPAddr().String() + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil || response.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(body), cluster.ErrNotReady.Error()) {
		t.Errorf("/readyz: %v, %d, %s", err, response.StatusCode, body)
	}
	for what, call := range map[string]func() error{
		"ReadSchema": func() error { _, err := c.ReadSchema(ctx, &pembav1.ReadSchemaRequest{}); return err },
		"ListStores": func() error { _, err := c.ListStores(ctx, &pembav1.ListStoresRequest{}); return err },
		"GetStore":   func() error { _, err := c.GetStore(ctx, &pembav1.GetStoreRequest{Store: "team"}); return err },
		"CreateStore": func() error {
			_, err := c.CreateStore(ctx, &pembav1.CreateStoreRequest{Name: "team"})
			return err
		},
		"Watch": func() error {
			stream, err := c.Watch(ctx, &pembav1.WatchRequest{})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		},
	} {
		err := call()
		expectStatus(t, what, err, codes.Unavailable, "NOT_READY")
		if !slices.ContainsFunc(status.Convert(err).Details(), func(d any) bool {
			retry, ok := d.(*errdetails.RetryInfo)
			return ok && retry.GetRetryDelay().AsDuration() > 0
		}) {
			t.Errorf("%s: it does not say when to ask again: %v", what, err)
		}
	}
	answer, err := c.GetCluster(ctx, &pembav1.GetClusterRequest{})
	if err != nil || answer.GetClusterId() != fmt.Sprintf("%x", id) || answer.GetLeaderId() != "" {
		t.Errorf("the cluster is %v, %v", answer, err)
	}
	if z, err := parseZookie(s.writtenAtZookie(), id); err != nil || z.cluster != id {
		t.Errorf("a zookie is of %v, %v", z, err)
	}
	if strings.Contains(log.String(), "stores that do not exist") {
		t.Errorf("it warns of stores that it has not heard of yet: %s", log.String())
	}
}

// writtenAtZookie is the zookie of some change.
func (s *Server) writtenAtZookie() *pembav1.Zookie {
	return zookie{cluster: s.clusterID(), revision: 1, instant: 1}.proto()
}

// A behindNode is a node that lacks what was made lately, until it has waited for all
// that was acknowledged.
type behindNode struct {
	*cluster.Node
	caughtUp atomic.Bool
	asked    atomic.Int64
}

func (b *behindNode) Await(ctx context.Context, c cluster.Consistency) error {
	if c.Mode == cluster.Linearizable {
		b.asked.Add(1)
		b.caughtUp.Store(true)
	}
	return b.Node.Await(ctx, c)
}

func (b *behindNode) StoreNamed(name string) (graph.StoreInfo, bool) {
	if !b.caughtUp.Load() && name != DefaultStoreName {
		return graph.StoreInfo{}, false
	}
	return b.Node.StoreNamed(name)
}

func (b *behindNode) Stage(id graph.StoreID, stage graph.StageID) (graph.StageInfo, bool, error) {
	if !b.caughtUp.Load() {
		return graph.StageInfo{}, false, nil
	}
	return b.Node.Stage(id, stage)
}

func (b *behindNode) Stages(id graph.StoreID) ([]graph.StageInfo, error) {
	if !b.caughtUp.Load() {
		return nil, nil
	}
	return b.Node.Stages(id)
}

// TestBehind: what was made through another node a moment ago is found, and only who
// may see a store makes the node ask for it.
func TestBehind(t *testing.T) {
	node := &behindNode{Node: memoryNode(t)}
	keys := t.TempDir() + "/keys"
	writeFile(t, keys, []byte("op\nbound store team\n"))
	c := dial(t, testServer(t, Config{Node: node, KeyFile: keys}))
	ctx := as(testContext(t), "op")
	if _, err := c.CreateStore(ctx, &pembav1.CreateStoreRequest{Name: "team"}); err != nil {
		t.Fatal(err)
	}
	bound := as(testContext(t), "bound")
	_, err := c.GetStore(bound, &pembav1.GetStoreRequest{Store: "other"})
	expectStatus(t, "a store of others", err, codes.NotFound, "UNKNOWN_STORE")
	if asked := node.asked.Load(); asked != 0 {
		t.Errorf("for a store that the key may not see the cluster was asked %d times", asked)
	}
	if _, err := c.GetStore(bound, &pembav1.GetStoreRequest{Store: "team"}); err != nil {
		t.Errorf("a store that was just made: %v", err)
	}
	if asked := node.asked.Load(); asked != 1 {
		t.Errorf("the cluster was asked %d times", asked)
	}
	if _, err := c.GetStore(ctx, &pembav1.GetStoreRequest{Store: "team"}); err != nil || node.asked.Load() != 1 {
		t.Errorf("a store that is known: %v, asked %d times", err, node.asked.Load())
	}
	_, err = c.GetStore(ctx, &pembav1.GetStoreRequest{Store: "none"})
	expectStatus(t, "a store that is none", err, codes.NotFound, "UNKNOWN_STORE")

	// An import goes on where it was left, whichever node is asked.
	if _, err := c.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Schema: testSchema}); err != nil {
		t.Fatal(err)
	}
	tuple := func(doc string) []*pembav1.Tuple {
		return []*pembav1.Tuple{{Object: object("doc", doc), Relation: "viewer", Subject: user("anne")}}
	}
	send := func(job string, first uint32, docs ...string) (*pembav1.ImportTuplesResponse, error) {
		t.Helper()
		stream, err := c.ImportTuples(ctx)
		if err != nil {
			t.Fatal(err)
		}
		requests := []*pembav1.ImportTuplesRequest{{Header: &pembav1.ImportHeader{ImportId: job}}}
		for i, doc := range docs {
			requests = append(requests, &pembav1.ImportTuplesRequest{Chunk: first + uint32(i), Tuples: tuple(doc)})
		}
		if first == 0 { // It ends with a mistake, so that it waits to be gone on with.
			requests = append(requests, &pembav1.ImportTuplesRequest{Chunk: 99, Tuples: tuple("x")})
		}
		for _, r := range requests {
			if err := stream.Send(r); err != nil {
				break // What became of it the answer says.
			}
		}
		return stream.CloseAndRecv()
	}
	_, err = send("job", 0, "a", "b")
	expectStatus(t, "an import with a gap", err, codes.InvalidArgument, "chunk")
	node.caughtUp.Store(false)
	got, err := c.GetImport(ctx, &pembav1.GetImportRequest{ImportId: "job"})
	if err != nil || got.GetNextChunk() != 2 {
		t.Errorf("the import is %v, %v", got, err)
	}
	node.caughtUp.Store(false)
	done, err := send("job", 2, "c")
	if err != nil || done.GetTuples() != 3 {
		t.Errorf("the import ends with %v, %v", done, err)
	}
	_, err = send("other", 0, "d")
	expectStatus(t, "another import with a gap", err, codes.InvalidArgument, "chunk")
	node.caughtUp.Store(false)
	if aborted, err := c.AbortImport(ctx, &pembav1.AbortImportRequest{All: true}); err != nil || aborted.GetAborted() != 1 {
		t.Errorf("forgetting all: %v, %v", aborted, err)
	}
}

// TestWrappedStatus: the status of a call between two nodes that an error wraps does not
// hide what the error is.
func TestWrappedStatus(t *testing.T) {
	between := status.Error(codes.Unavailable, "connection refused")
	for _, x := range []struct {
		err    error
		code   codes.Code
		reason string
	}{
		{fmt.Errorf("%w: %w", cluster.ErrOutcomeUnknown, between), codes.Unavailable, "OUTCOME_UNKNOWN"},
		{fmt.Errorf("node n2: %w: %w", cluster.ErrNotLeader, between), codes.Unavailable, "NOT_LEADER"},
		{fmt.Errorf("%w: %w", cluster.ErrFailed, cluster.ErrRemoved), codes.Unavailable, "REMOVED"},
		{cluster.ErrNotReady, codes.Unavailable, "NOT_READY"},
		{fmt.Errorf("no: %w", cluster.ErrMember), codes.FailedPrecondition, "MEMBER"},
		{between, codes.Unavailable, ""},
		{fmt.Errorf("read a message: %w", between), codes.Unavailable, ""},
	} {
		st, fault := toStatus(x.err)
		reason := ""
		for _, d := range st.Details() {
			if info, ok := d.(*errdetails.ErrorInfo); ok {
				reason = info.GetReason()
			}
		}
		if st.Code() != x.code || reason != x.reason || fault {
			t.Errorf("%v: %v %q, fault %v", x.err, st.Code(), reason, fault)
		}
	}
}
