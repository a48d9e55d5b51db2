package authzed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// A recordingNode is a node that remembers what it is asked.
type recordingNode struct {
	api.Node

	mu      sync.Mutex
	asked   []cluster.Consistency
	written []*graph.Mutation
	// then is called once, behind the next change.
	then func()
}

func (n *recordingNode) Snapshot(ctx context.Context, store graph.StoreID, c cluster.Consistency, overlay graph.Overlay) (*engine.Snapshot, error) {
	n.mu.Lock()
	n.asked = append(n.asked, c)
	n.mu.Unlock()
	return n.Node.Snapshot(ctx, store, c, overlay)
}

func (n *recordingNode) Write(ctx context.Context, m *graph.Mutation) (engine.Result, error) {
	n.mu.Lock()
	n.written = append(n.written, m)
	then := n.then
	n.then = nil
	n.mu.Unlock()
	result, err := n.Node.Write(ctx, m)
	if then != nil {
		then()
	}
	return result, err
}

// take returns what was asked since the last call of it.
func (n *recordingNode) take() (asked []cluster.Consistency, written []*graph.Mutation) {
	n.mu.Lock()
	defer n.mu.Unlock()
	asked, written = n.asked, n.written
	n.asked, n.written = nil, nil
	return asked, written
}

// newRecorded starts a node in memory that remembers, and a server of it.
func newRecorded(t testing.TB) (*recordingNode, *grpc.ClientConn, *api.Server) {
	t.Helper()
	node := &recordingNode{Node: newMemoryNode(t)}
	conn, s := newServerWith(t, api.Config{Node: node})
	return node, conn, s
}

const boundariesSchema = `caveat noted(note string) {
	note != ""
}

definition user {}

definition document {
	relation viewer: user | user with noted
	permission view = viewer
}
`

// large are relationships whose ids have 600 bytes.
func large(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("document:%s%04d#viewer@user:%s", strings.Repeat("d", 596), i, strings.Repeat("u", 600))
	}
	return all
}

// structOf is a Struct of one text that has so many bytes by a measure.
func structOf(t testing.TB, key string, bytes int, measure func(*structpb.Struct) int) *structpb.Struct {
	t.Helper()
	of := func(n int) *structpb.Struct {
		return &structpb.Struct{Fields: map[string]*structpb.Value{key: structpb.NewStringValue(strings.Repeat("x", n))}}
	}
	s := of(2*bytes - measure(of(bytes)))
	if got := measure(s); got != bytes {
		t.Fatalf("a struct of %d bytes has %d", bytes, got)
	}
	return s
}

func encodedSize(s *structpb.Struct) int { return proto.Size(s) }

func jsonSize(s *structpb.Struct) int {
	b, err := s.MarshalJSON()
	if err != nil {
		return -1
	}
	return len(b)
}

// TestBoundaries: what the API allows by default is taken, and one more is refused,
// as TestLimitsAreDocumented has it of the page.
func TestBoundaries(t *testing.T) {
	t.Parallel()
	_, conn, _ := newRecorded(t)
	writeSchema(t, conn, boundariesSchema)
	touch(t, conn, "document:plan#viewer@user:anne")
	permissions, ctx := v1.NewPermissionsServiceClient(conn), testContext(t)
	documents := &v1.RelationshipFilter{ResourceType: "document", OptionalResourceId: "plan"}
	conditions := func(n int) []*v1.Precondition {
		return slices.Repeat([]*v1.Precondition{{Operation: v1.Precondition_OPERATION_MUST_MATCH, Filter: documents}}, n)
	}
	fine := []*v1.RelationshipUpdate{update(t, v1.RelationshipUpdate_OPERATION_TOUCH, "document:fine#viewer@user:anne")}
	checks := func(n int) []*v1.CheckBulkPermissionsRequestItem {
		q := parseQuestion(t, "document:plan#view@user:anne")
		return slices.Repeat([]*v1.CheckBulkPermissionsRequestItem{{Resource: q.GetResource(), Permission: q.GetPermission(), Subject: q.GetSubject()}}, n)
	}
	follow := func(r *v1.WatchRequest) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		r.OptionalUpdateKinds = []v1.WatchKind{v1.WatchKind_WATCH_KIND_INCLUDE_CHECKPOINTS}
		_, err := watch(t, ctx, conn, r).Recv() // A checkpoint, at the latest after a second.
		return err
	}
	const limitReason = "EXCEEDS_MAXIMUM_ALLOWABLE_LIMIT"
	for _, c := range []struct {
		what   string
		most   int
		reason string
		call   func(n int) error
	}{
		{"updates", 1000, "TOO_MANY_UPDATES_IN_REQUEST", func(n int) error {
			r := &v1.WriteRelationshipsRequest{}
			for i := range n {
				r.Updates = append(r.Updates, update(t, v1.RelationshipUpdate_OPERATION_TOUCH, fmt.Sprintf("document:d%d#viewer@user:anne", i)))
			}
			_, err := permissions.WriteRelationships(ctx, r)
			return err
		}},
		{"preconditions of a write", 1000, "TOO_MANY_PRECONDITIONS_IN_REQUEST", func(n int) error {
			_, err := permissions.WriteRelationships(ctx, &v1.WriteRelationshipsRequest{Updates: fine, OptionalPreconditions: conditions(n)})
			return err
		}},
		{"preconditions of a delete", 1000, "TOO_MANY_PRECONDITIONS_IN_REQUEST", func(n int) error {
			_, err := permissions.DeleteRelationships(ctx, &v1.DeleteRelationshipsRequest{
				RelationshipFilter: &v1.RelationshipFilter{OptionalResourceId: "none"}, OptionalPreconditions: conditions(n),
			})
			return err
		}},
		{"checks", 10_000, "UNSPECIFIED", func(n int) error {
			r, err := permissions.CheckBulkPermissions(ctx, &v1.CheckBulkPermissionsRequest{Consistency: fullyConsistent, Items: checks(n)})
			if err == nil && (len(r.GetPairs()) != n || r.GetPairs()[n-1].GetItem().GetPermissionship() != v1.CheckPermissionResponse_PERMISSIONSHIP_HAS_PERMISSION) {
				t.Errorf("%d answers for %d checks, the last is %v", len(r.GetPairs()), n, r.GetPairs()[len(r.GetPairs())-1])
			}
			return err
		}},
		{"limit of a read", 1000, limitReason, func(n int) error {
			_, _, err := readAll(t, conn, &v1.ReadRelationshipsRequest{RelationshipFilter: documents, OptionalLimit: uint32(n)})
			return err
		}},
		{"limit of a delete", 1000, limitReason, func(n int) error {
			_, err := permissions.DeleteRelationships(ctx, &v1.DeleteRelationshipsRequest{
				RelationshipFilter: &v1.RelationshipFilter{OptionalResourceId: "none"}, OptionalLimit: uint32(n),
			})
			return err
		}},
		{"limit of a lookup", 1000, limitReason, func(n int) error {
			_, _, err := resources(t, conn, &v1.LookupResourcesRequest{ResourceObjectType: "document", Permission: "view", Subject: subjectOf("user", "nobody", ""), OptionalLimit: uint32(n)})
			return err
		}},
		{"limit of an export", 10_000, limitReason, func(n int) error {
			_, _, err := exportBulk(t, conn, &v1.ExportBulkRelationshipsRequest{OptionalLimit: uint32(n), OptionalRelationshipFilter: documents})
			return err
		}},
		{"context of a question", 4096, "", func(n int) error {
			q := parseQuestion(t, "document:plan#view@user:anne")
			q.Context = structOf(t, "note", n, encodedSize)
			_, err := permissions.CheckPermission(ctx, q)
			return err
		}},
		{"context of a relationship", 25_000, "MAX_RELATIONSHIP_CONTEXT_SIZE", func(n int) error {
			u := update(t, v1.RelationshipUpdate_OPERATION_TOUCH, "document:noted#viewer@user:anne")
			u.Relationship.OptionalCaveat = &v1.ContextualizedCaveat{CaveatName: "noted", Context: structOf(t, "note", n, encodedSize)}
			_, err := permissions.WriteRelationships(ctx, &v1.WriteRelationshipsRequest{Updates: []*v1.RelationshipUpdate{u}})
			return err
		}},
		{"metadata of a write", 65_000, "TRANSACTION_METADATA_TOO_LARGE", func(n int) error {
			_, err := permissions.WriteRelationships(ctx, &v1.WriteRelationshipsRequest{Updates: fine, OptionalTransactionMetadata: structOf(t, "x", n, jsonSize)})
			return err
		}},
		{"metadata of a delete", 65_000, "TRANSACTION_METADATA_TOO_LARGE", func(n int) error {
			_, err := permissions.DeleteRelationships(ctx, &v1.DeleteRelationshipsRequest{
				RelationshipFilter: &v1.RelationshipFilter{OptionalResourceId: "none"}, OptionalTransactionMetadata: structOf(t, "x", n, jsonSize),
			})
			return err
		}},
		{"types of a watch", 1000, "", func(n int) error {
			r := &v1.WatchRequest{}
			for i := range n {
				r.OptionalObjectTypes = append(r.OptionalObjectTypes, fmt.Sprintf("type%d", i))
			}
			return follow(r)
		}},
		{"filters of a watch", 1000, "", func(n int) error {
			r := &v1.WatchRequest{}
			for i := range n {
				r.OptionalRelationshipFilters = append(r.OptionalRelationshipFilters, &v1.RelationshipFilter{OptionalResourceId: fmt.Sprintf("id%d", i)})
			}
			return follow(r)
		}},
	} {
		if err := c.call(c.most); err != nil {
			t.Errorf("%s: %d: %v", c.what, c.most, err)
		}
		reason := ""
		if c.reason != "" {
			reason = "ERROR_REASON_" + c.reason
		}
		if code, got, _ := reasonOf(c.call(c.most + 1)); code != codes.InvalidArgument || got != reason {
			t.Errorf("%s: %d: got %v %q, want %v %q", c.what, c.most+1, code, got, codes.InvalidArgument, reason)
		}
	}
}

// TestLargestNames: the names and ids that this API may carry are taken wherever they
// stand, and longer ones are refused.
func TestLargestNames(t *testing.T) {
	t.Parallel()
	_, conn, _ := newRecorded(t)
	name := func(bytes int) string { return strings.Repeat("n", bytes) }
	type names struct{ typ, relation, caveat, id string }
	most := names{name(63) + "/" + name(64), name(64), name(128), name(1024)}
	schemaOf := func(n names) string {
		return fmt.Sprintf("caveat %s(a int) { a > 0 }\ndefinition %s {\n\trelation %s: %s | %s with %s\n}", n.caveat, n.typ, n.relation, n.typ, n.typ, n.caveat)
	}
	writeSchema(t, conn, schemaOf(most))
	object := func(n names) *v1.ObjectReference { return &v1.ObjectReference{ObjectType: n.typ, ObjectId: n.id} }
	ask := func(n names) error {
		_, err := v1.NewPermissionsServiceClient(conn).WriteRelationships(testContext(t), &v1.WriteRelationshipsRequest{Updates: []*v1.RelationshipUpdate{{
			Operation: v1.RelationshipUpdate_OPERATION_TOUCH, Relationship: &v1.Relationship{
				Resource: object(n), Relation: n.relation, Subject: &v1.SubjectReference{Object: object(n)},
				OptionalCaveat: &v1.ContextualizedCaveat{CaveatName: n.caveat},
			},
		}}})
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		r, err := v1.NewPermissionsServiceClient(conn).CheckPermission(testContext(t), &v1.CheckPermissionRequest{
			Consistency: fullyConsistent, Resource: object(n), Permission: n.relation, Subject: &v1.SubjectReference{Object: object(n)},
		})
		if err == nil && r.GetPermissionship() != v1.CheckPermissionResponse_PERMISSIONSHIP_CONDITIONAL_PERMISSION {
			t.Errorf("the answer is %v", r)
		}
		return err
	}
	if err := ask(most); err != nil {
		t.Error(err)
	}
	if filtered, _, err := readAll(t, conn, &v1.ReadRelationshipsRequest{
		Consistency: fullyConsistent, RelationshipFilter: &v1.RelationshipFilter{ResourceType: most.typ, OptionalResourceId: most.id, OptionalRelation: most.relation},
	}); err != nil || len(filtered) != 1 {
		t.Errorf("read are %d, %v", len(filtered), err)
	}
	for what, longer := range map[string]names{
		"type":     {"nnn/" + name(60) + "/" + name(64), most.relation, most.caveat, most.id},
		"relation": {most.typ, name(65), most.caveat, most.id},
		"caveat":   {most.typ, most.relation, name(129), most.id},
		"id":       {most.typ, most.relation, most.caveat, name(1025)},
	} {
		if err := ask(longer); status.Code(err) != codes.InvalidArgument {
			t.Errorf("a longer %s: %v", what, err)
		}
		if longer.id != most.id {
			continue // A schema has no ids.
		}
		_, err := v1.NewSchemaServiceClient(conn).WriteSchema(testContext(t), &v1.WriteSchemaRequest{Schema: schemaOf(longer)})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("a schema with a longer %s: %v", what, err)
		}
	}
}

// TestPagesOfExports: a page ends at what was asked for, or at 1000 relationships, and
// in any case at 64 KiB. Behind it, a delete without a limit ends them all.
func TestPagesOfExports(t *testing.T) {
	t.Parallel()
	node, conn, _ := newRecorded(t)
	writeSchema(t, conn, boundariesSchema)
	const stored = 10_001
	message := make([]string, stored)
	for i := range message {
		message[i] = fmt.Sprintf("document:d%05d#viewer@user:u", i)
	}
	if n, err := importBulk(t, conn, message); n != stored || err != nil {
		t.Fatalf("imported %d, %v", n, err)
	}
	pagesOf := func(limit uint32) [][]*v1.Relationship {
		t.Helper()
		stream, err := v1.NewPermissionsServiceClient(conn).ExportBulkRelationships(testContext(t), &v1.ExportBulkRelationshipsRequest{Consistency: fullyConsistent, OptionalLimit: limit})
		if err != nil {
			t.Fatal(err)
		}
		var pages [][]*v1.Relationship
		for {
			page, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return pages
			}
			if err != nil {
				t.Fatal(err)
			}
			pages = append(pages, page.GetRelationships())
		}
	}
	for i, page := range pagesOf(0) {
		if want := min(1000, stored-i*1000); len(page) != want {
			t.Errorf("page %d has %d relationships, want %d", i, len(page), want)
		}
	}
	pages, exported := pagesOf(10_000), 0
	for i, page := range pages {
		exported += len(page)
		bytes, last := 0, proto.Size(page[len(page)-1])
		for _, r := range page {
			bytes += proto.Size(r)
		}
		// It ends with the relationship that fills it.
		if bytes-last >= 64<<10 || i < len(pages)-1 && bytes < 64<<10 {
			t.Errorf("page %d of %d has %d relationships of %d bytes", i, len(pages), len(page), bytes)
		}
	}
	if exported != stored {
		t.Errorf("exported are %d, want %d", exported, stored)
	}

	node.take()
	r, err := v1.NewPermissionsServiceClient(conn).DeleteRelationships(testContext(t), &v1.DeleteRelationshipsRequest{
		RelationshipFilter: &v1.RelationshipFilter{ResourceType: "document"},
	})
	if err != nil || r.GetRelationshipsDeletedCount() != stored || r.GetDeletionProgress() != v1.DeleteRelationshipsResponse_DELETION_PROGRESS_COMPLETE {
		t.Errorf("a delete without a limit: %v, %v", r, err)
	}
	if _, written := node.take(); len(written) != 1 || written[0].Delete.Limit != 500_000 || written[0].Delete.AllowPartial {
		t.Errorf("the delete is %+v", written)
	}
}

// TestLargeWrite: what is too large for one change is told so as a mistake, for it
// fails whenever it is sent, and nothing of it is done. An import takes it.
func TestLargeWrite(t *testing.T) {
	t.Parallel()
	_, conn, _ := newRecorded(t)
	writeSchema(t, conn, boundariesSchema)
	client, all := v1.NewPermissionsServiceClient(conn), large(1000)
	write := func(texts []string) error {
		r := &v1.WriteRelationshipsRequest{}
		for _, text := range texts {
			r.Updates = append(r.Updates, update(t, v1.RelationshipUpdate_OPERATION_TOUCH, text))
		}
		_, err := client.WriteRelationships(testContext(t), r)
		return err
	}
	wantRefusal(t, write(all), codes.InvalidArgument, "TOO_LARGE")
	count := func() int {
		t.Helper()
		found, _, err := readAll(t, conn, &v1.ReadRelationshipsRequest{Consistency: fullyConsistent, RelationshipFilter: &v1.RelationshipFilter{ResourceType: "document"}})
		if err != nil {
			t.Fatal(err)
		}
		return len(found)
	}
	if n := count(); n != 0 {
		t.Errorf("%d relationships of a write that was refused are stored", n)
	}
	if err := write(all[:500]); err != nil {
		t.Errorf("half of it: %v", err)
	}
	if n, err := importBulk(t, conn, all[500:], nil); n != 500 || err != nil {
		t.Errorf("imported %d, %v", n, err)
	}
	if n := count(); n != 1000 {
		t.Errorf("%d relationships are stored, want 1000", n)
	}
}

// TestDeleteHasMetadata: the metadata of a delete is told with it, as that of a write is.
func TestDeleteHasMetadata(t *testing.T) {
	t.Parallel()
	_, conn, _ := newRecorded(t)
	written := writeSchema(t, conn, boundariesSchema)
	client := v1.NewPermissionsServiceClient(conn)
	who := func(name string) *structpb.Struct {
		return &structpb.Struct{Fields: map[string]*structpb.Value{"who": structpb.NewStringValue(name)}}
	}
	if _, err := client.WriteRelationships(testContext(t), &v1.WriteRelationshipsRequest{
		Updates:                     []*v1.RelationshipUpdate{update(t, v1.RelationshipUpdate_OPERATION_TOUCH, "document:plan#viewer@user:anne")},
		OptionalTransactionMetadata: who("writer"),
	}); err != nil {
		t.Fatal(err)
	}
	// It belongs to no change.
	if _, err := client.WriteRelationships(testContext(t), &v1.WriteRelationshipsRequest{OptionalTransactionMetadata: who("nobody")}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.DeleteRelationships(testContext(t), &v1.DeleteRelationshipsRequest{
		RelationshipFilter: &v1.RelationshipFilter{ResourceType: "document"}, OptionalTransactionMetadata: who("remover"),
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	stream := watch(t, ctx, conn, &v1.WatchRequest{OptionalStartCursor: written})
	for _, want := range []string{"writer", "remover"} {
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if got := r.GetOptionalTransactionMetadata().GetFields()["who"].GetStringValue(); got != want || len(r.GetUpdates()) != 1 {
			t.Errorf("got %v, want one update with the metadata of the %s", r, want)
		}
	}
}

// TestWildcardOptionOfCursors: a cursor goes on with the option that it comes from.
func TestWildcardOptionOfCursors(t *testing.T) {
	t.Parallel()
	_, conn, _ := newRecorded(t)
	writeSchema(t, conn, lookupSchema)
	touch(t, conn, "document:d1#viewer@user:*", "document:d1#viewer@user:anne", "document:d1#viewer@user:bob")
	with, without := v1.LookupSubjectsRequest_WILDCARD_OPTION_INCLUDE_WILDCARDS, v1.LookupSubjectsRequest_WILDCARD_OPTION_EXCLUDE_WILDCARDS
	request := func(option v1.LookupSubjectsRequest_WildcardOption, cursor *v1.Cursor) *v1.LookupSubjectsRequest {
		return &v1.LookupSubjectsRequest{
			Consistency: fullyConsistent, Resource: &v1.ObjectReference{ObjectType: "document", ObjectId: "d1"}, Permission: "view",
			SubjectObjectType: "user", WildcardOption: option, OptionalConcreteLimit: 1, OptionalCursor: cursor,
		}
	}
	for from, to := range map[v1.LookupSubjectsRequest_WildcardOption]v1.LookupSubjectsRequest_WildcardOption{with: without, without: with} {
		_, last, err := subjects(t, conn, request(from, nil))
		if err != nil {
			t.Fatal(err)
		}
		if found, _, err := subjects(t, conn, request(from, last.GetAfterResultCursor())); err != nil || !slices.Equal(found, []string{"bob"}) {
			t.Errorf("%v: behind the cursor come %v, %v", from, found, err)
		}
		_, _, err = subjects(t, conn, request(to, last.GetAfterResultCursor()))
		if code, reason, _ := reasonOf(err); code != codes.InvalidArgument || reason != "ERROR_REASON_INVALID_CURSOR" {
			t.Errorf("a cursor of %v with %v: %v", from, to, err)
		}
	}
}

// TestKeyTexts: the words by which tools and people know that a key is wrong.
func TestKeyTexts(t *testing.T) {
	t.Parallel()
	_, _, s := newRecorded(t)
	_, err := v1.NewSchemaServiceClient(dial(t, s, "wrong")).ReadSchema(testContext(t), &v1.ReadSchemaRequest{})
	if st := status.Convert(err); st.Code() != codes.PermissionDenied || st.Message() != "invalid preshared key: invalid token" {
		t.Errorf("a wrong key: %v", err)
	}
	_, err = v1.NewSchemaServiceClient(dial(t, s, "")).ReadSchema(testContext(t), &v1.ReadSchemaRequest{})
	if st := status.Convert(err); st.Code() != codes.Unauthenticated || st.Message() == "" {
		t.Errorf("no key: %v", err)
	}
}

// TestConsistencyAsked: each consistency asks the node for the state it promises. A
// token of another server asks for all that was acknowledged, not for what the node
// happens to have.
func TestConsistencyAsked(t *testing.T) {
	t.Parallel()
	node, conn, _ := newRecorded(t)
	_, other, _ := newRecorded(t)
	writeSchema(t, conn, boundariesSchema)
	ours, foreign := touch(t, conn, "document:plan#viewer@user:anne"), writeSchema(t, other, boundariesSchema)
	// The base64 of a message with another one in its third field, as another product's.
	unknown := &v1.ZedToken{Token: "GhUKEzE3NTQwMDAwMDAwMDAwMDAwMDA="}
	minimal := &v1.Consistency{Requirement: &v1.Consistency_MinimizeLatency{MinimizeLatency: true}}
	permissions := v1.NewPermissionsServiceClient(conn)
	calls := map[string]func(c *v1.Consistency) error{
		"check": func(c *v1.Consistency) error {
			q := parseQuestion(t, "document:plan#view@user:anne")
			q.Consistency = c
			r, err := permissions.CheckPermission(testContext(t), q)
			if err == nil && r.GetPermissionship() != v1.CheckPermissionResponse_PERMISSIONSHIP_HAS_PERMISSION {
				err = fmt.Errorf("the answer is %v", r)
			}
			return err
		},
		"lookup": func(c *v1.Consistency) error {
			found, _, err := resources(t, conn, &v1.LookupResourcesRequest{Consistency: c, ResourceObjectType: "document", Permission: "view", Subject: subjectOf("user", "anne", "")})
			if err == nil && !slices.Equal(found, []string{"plan"}) {
				err = fmt.Errorf("found are %v", found)
			}
			return err
		},
		"read": func(c *v1.Consistency) error {
			found, _, err := readAll(t, conn, &v1.ReadRelationshipsRequest{Consistency: c, RelationshipFilter: &v1.RelationshipFilter{ResourceType: "document"}})
			if err == nil && len(found) != 1 {
				err = fmt.Errorf("found are %v", found)
			}
			return err
		},
	}
	for name, call := range calls {
		for _, c := range []struct {
			what        string
			consistency *v1.Consistency
			want        cluster.Mode
		}{
			{"nothing", nil, cluster.Newest},
			{"minimize_latency", minimal, cluster.Newest},
			{"fully_consistent", fullyConsistent, cluster.Linearizable},
			{"a token, at least", atLeast(ours), cluster.AtLeast},
			{"a token, at exactly", at(ours), cluster.Exactly},
			{"a token of another cluster, at least", atLeast(foreign), cluster.Linearizable},
			{"a token of another server, at least", atLeast(unknown), cluster.Linearizable},
		} {
			node.take()
			if err := call(c.consistency); err != nil {
				t.Errorf("%s with %s: %v", name, c.what, err)
			}
			asked, _ := node.take()
			if len(asked) != 1 || asked[0].Mode != c.want {
				t.Errorf("%s with %s asks the node for %+v, want mode %v once", name, c.what, asked, c.want)
			}
			if len(asked) == 1 && (asked[0].Revision != 0) != (c.want == cluster.AtLeast || c.want == cluster.Exactly) {
				t.Errorf("%s with %s asks for revision %d", name, c.what, asked[0].Revision)
			}
		}
	}
}

// TestRelationWithoutType: a relation that no definition has matches nothing, where a
// filter names no type; what else the filter names is judged.
func TestRelationWithoutType(t *testing.T) {
	t.Parallel()
	node, conn, _ := newRecorded(t)
	writeSchema(t, conn, boundariesSchema)
	touch(t, conn, "document:plan#viewer@user:anne")
	client := v1.NewPermissionsServiceClient(conn)
	nothing := &v1.RelationshipFilter{OptionalRelation: "approver"}
	there, absent := &v1.RelationshipFilter{ResourceType: "document"}, &v1.RelationshipFilter{OptionalResourceId: "none"}
	must, mustNot := v1.Precondition_OPERATION_MUST_MATCH, v1.Precondition_OPERATION_MUST_NOT_MATCH
	if found, _, err := readAll(t, conn, &v1.ReadRelationshipsRequest{Consistency: fullyConsistent, RelationshipFilter: nothing}); err != nil || len(found) > 0 {
		t.Errorf("a read: %v, %v", found, err)
	}
	if found, _, err := exportBulk(t, conn, &v1.ExportBulkRelationshipsRequest{Consistency: fullyConsistent, OptionalRelationshipFilter: nothing}); err != nil || len(found) > 0 {
		t.Errorf("an export: %v, %v", found, err)
	}
	for _, c := range []struct {
		what      string
		operation v1.Precondition_Operation
		filter    *v1.RelationshipFilter
		reason    string
	}{
		{"none", 0, nil, ""},
		{"one that holds", must, there, ""},
		{"one that holds", mustNot, absent, ""},
		{"one that does not hold", must, absent, "ERROR_REASON_WRITE_OR_DELETE_PRECONDITION_FAILURE"},
		{"one that does not hold", mustNot, there, "ERROR_REASON_WRITE_OR_DELETE_PRECONDITION_FAILURE"},
		{"one that the same relation must match", must, nothing, "ERROR_REASON_WRITE_OR_DELETE_PRECONDITION_FAILURE"},
		{"one of an unknown type", mustNot, &v1.RelationshipFilter{ResourceType: "folder"}, "ERROR_REASON_UNKNOWN_DEFINITION"},
		{"one of an unknown relation", mustNot, &v1.RelationshipFilter{ResourceType: "document", OptionalRelation: "approver"}, "ERROR_REASON_UNKNOWN_RELATION_OR_PERMISSION"},
	} {
		remove := &v1.DeleteRelationshipsRequest{RelationshipFilter: nothing}
		write := &v1.WriteRelationshipsRequest{}
		if c.filter != nil {
			remove.OptionalPreconditions = []*v1.Precondition{{Operation: c.operation, Filter: c.filter}}
			write.OptionalPreconditions = remove.OptionalPreconditions
		}
		deleted, err := client.DeleteRelationships(testContext(t), remove)
		if _, reason, _ := reasonOf(err); reason != c.reason || (err == nil) != (c.reason == "") {
			t.Errorf("a delete with the precondition %s: %v, want %q", c.what, err, c.reason)
		}
		if err == nil && (deleted.GetRelationshipsDeletedCount() != 0 || deleted.GetDeletedAt().GetToken() == "" ||
			deleted.GetDeletionProgress() != v1.DeleteRelationshipsResponse_DELETION_PROGRESS_COMPLETE) {
			t.Errorf("a delete with the precondition %s: %v", c.what, deleted)
		}
		// A write without updates judges preconditions in the same way.
		_, err = client.WriteRelationships(testContext(t), write)
		if _, reason, _ := reasonOf(err); reason != c.reason || (err == nil) != (c.reason == "") {
			t.Errorf("a write with the precondition %s: %v, want %q", c.what, err, c.reason)
		}
	}
	for what, filter := range map[string]*v1.RelationshipFilter{
		"type":     {OptionalRelation: "approver", OptionalSubjectFilter: subjectFilter("robot", "", nil)},
		"relation": {OptionalRelation: "approver", OptionalSubjectFilter: subjectFilter("user", "", proto.String("guest"))},
	} {
		_, _, err := readAll(t, conn, &v1.ReadRelationshipsRequest{RelationshipFilter: filter})
		if status.Code(err) != codes.FailedPrecondition {
			t.Errorf("a read of subjects of an unknown %s: %v", what, err)
		}
		_, err = client.DeleteRelationships(testContext(t), &v1.DeleteRelationshipsRequest{RelationshipFilter: filter})
		if status.Code(err) != codes.FailedPrecondition {
			t.Errorf("a delete of subjects of an unknown %s: %v", what, err)
		}
	}
	found, _, err := readAll(t, conn, &v1.ReadRelationshipsRequest{Consistency: fullyConsistent, RelationshipFilter: there})
	if err != nil || !slices.Equal(found, []string{"document:plan#viewer@user:anne"}) {
		t.Errorf("left are %v, %v", found, err)
	}
	// A schema that has the relation comes while it is asked about.
	node.mu.Lock()
	node.then = func() {
		writeSchema(t, conn, strings.Replace(boundariesSchema, "\tpermission", "\trelation approver: user\n\tpermission", 1))
		touch(t, conn, "document:plan#approver@user:anne")
	}
	node.mu.Unlock()
	deleted, err := client.DeleteRelationships(testContext(t), &v1.DeleteRelationshipsRequest{RelationshipFilter: nothing})
	if err != nil || deleted.GetRelationshipsDeletedCount() != 1 {
		t.Errorf("a delete that a schema overtakes: %v, %v", deleted, err)
	}
}

// TestCursorsOfOtherPages: a cursor goes on with another limit and another consistency,
// at the state it comes from.
func TestCursorsOfOtherPages(t *testing.T) {
	t.Parallel()
	_, conn, _ := newRecorded(t)
	writeSchema(t, conn, boundariesSchema)
	stored := []string{"document:a#viewer@user:anne", "document:b#viewer@user:anne", "document:c#viewer@user:anne"}
	written := touch(t, conn, stored...)
	filter := &v1.RelationshipFilter{ResourceType: "document"}
	first, cursor, err := readAll(t, conn, &v1.ReadRelationshipsRequest{Consistency: fullyConsistent, RelationshipFilter: filter, OptionalLimit: 1})
	if err != nil {
		t.Fatal(err)
	}
	touch(t, conn, "document:d#viewer@user:anne")
	for limit, c := range map[uint32]*v1.Consistency{0: nil, 2: fullyConsistent, 1000: atLeast(written)} {
		rest, _, err := readAll(t, conn, &v1.ReadRelationshipsRequest{Consistency: c, RelationshipFilter: filter, OptionalLimit: limit, OptionalCursor: cursor})
		got := append(slices.Clone(first), rest...)
		slices.Sort(got)
		if err != nil || !slices.Equal(got, stored) {
			t.Errorf("with a limit of %d: %q, %v, want %q", limit, got, err, stored)
		}
	}
}

// TestUseImport: the flag alone imports nothing, and an import is refused.
func TestUseImport(t *testing.T) {
	t.Parallel()
	_, conn, _ := newRecorded(t)
	writeSchema(t, conn, "use import\n\ndefinition user {}")
	_, err := v1.NewSchemaServiceClient(conn).WriteSchema(testContext(t), &v1.WriteSchemaRequest{Schema: "use import\n\nimport \"other.zed\"\n\ndefinition user {}"})
	wantRefusal(t, err, codes.InvalidArgument, "ERROR_REASON_SCHEMA_PARSE_ERROR")
}
