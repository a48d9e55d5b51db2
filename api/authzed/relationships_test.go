package authzed

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// documents is the schema of the tests of relationships.
const documents = `use expiration

caveat soon(limit int) {
	limit < 5
}

caveat other(limit int) {
	limit < 5
}

definition user {}

definition group {
	relation member: user
}

definition document {
	relation viewer: user | user:* | group#member | user with soon | user with expiration
	relation owner: user
	permission view = viewer + owner
}`

// texts shows relationships in their text form.
func texts(t testing.TB, relationships []*v1.Relationship) []string {
	t.Helper()
	var result []string
	for _, r := range relationships {
		tuple, err := toTuple("relationship", r)
		if err != nil {
			t.Fatal(err)
		}
		result = append(result, tuple.String())
	}
	return result
}

// readAll reads to the end of one stream; it returns the last cursor too.
func readAll(t testing.TB, conn *grpc.ClientConn, r *v1.ReadRelationshipsRequest) ([]string, *v1.Cursor, error) {
	t.Helper()
	stream, err := v1.NewPermissionsServiceClient(conn).ReadRelationships(testContext(t), r)
	if err != nil {
		t.Fatal(err)
	}
	var found []*v1.Relationship
	var last *v1.Cursor
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return texts(t, found), last, nil
		}
		if err != nil {
			return nil, nil, err
		}
		if response.GetReadAt().GetToken() == "" {
			t.Fatal("a result without read_at")
		}
		found, last = append(found, response.GetRelationship()), response.GetAfterResultCursor()
	}
}

// all returns what is stored, sorted.
func all(t testing.TB, conn *grpc.ClientConn, types ...string) []string {
	t.Helper()
	if len(types) == 0 {
		types = []string{"document", "group"}
	}
	var found []string
	for _, typ := range types {
		some, _, err := readAll(t, conn, &v1.ReadRelationshipsRequest{
			Consistency: fullyConsistent, RelationshipFilter: &v1.RelationshipFilter{ResourceType: typ},
		})
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, some...)
	}
	slices.Sort(found)
	return found
}

func wantAll(t testing.TB, conn *grpc.ClientConn, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := all(t, conn); !slices.Equal(got, want) {
		t.Fatalf("stored are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// subjectFilter is a filter of subjects; a nil relation means any.
func subjectFilter(typ, id string, relation *string) *v1.SubjectFilter {
	f := &v1.SubjectFilter{SubjectType: typ, OptionalSubjectId: id}
	if relation != nil {
		f.OptionalRelation = &v1.SubjectFilter_RelationFilter{Relation: *relation}
	}
	return f
}

func TestReadRelationships(t *testing.T) {
	conn := newServer(t)
	writeSchema(t, conn, documents)
	stored := []string{
		"document:a1#viewer@user:anne",
		"document:a2#viewer@group:eng#member",
		`document:a2#viewer@user:bob[soon:{"limit":3}]`,
		"document:b#owner@user:anne",
		"document:b#viewer@user:*",
		"group:eng#member@user:anne",
	}
	touch(t, conn, append(stored, "document:b#viewer@user:late[expiration:2001-01-01T00:00:00Z]")...)
	wantAll(t, conn, stored...)
	plain, member := "", "member"
	for name, c := range map[string]struct {
		filter *v1.RelationshipFilter
		want   []int // of stored
	}{
		"type":            {&v1.RelationshipFilter{ResourceType: "group"}, []int{5}},
		"id":              {&v1.RelationshipFilter{ResourceType: "document", OptionalResourceId: "a1"}, []int{0}},
		"id of any type":  {&v1.RelationshipFilter{OptionalResourceId: "eng"}, []int{5}},
		"prefix":          {&v1.RelationshipFilter{OptionalResourceIdPrefix: "a"}, []int{0, 1, 2}},
		"relation":        {&v1.RelationshipFilter{OptionalRelation: "owner"}, []int{3}},
		"subject type":    {&v1.RelationshipFilter{OptionalSubjectFilter: subjectFilter("group", "", nil)}, []int{1}},
		"subject":         {&v1.RelationshipFilter{OptionalSubjectFilter: subjectFilter("user", "anne", nil)}, []int{0, 3, 5}},
		"wildcard":        {&v1.RelationshipFilter{OptionalSubjectFilter: subjectFilter("user", "*", nil)}, []int{4}},
		"plain subjects":  {&v1.RelationshipFilter{ResourceType: "document", OptionalSubjectFilter: subjectFilter("group", "", &plain)}, nil},
		"plain users":     {&v1.RelationshipFilter{OptionalResourceId: "a2", OptionalSubjectFilter: subjectFilter("user", "", &plain)}, []int{2}},
		"members":         {&v1.RelationshipFilter{OptionalSubjectFilter: subjectFilter("group", "", &member)}, []int{1}},
		"never allowed":   {&v1.RelationshipFilter{ResourceType: "document", OptionalRelation: "owner", OptionalSubjectFilter: subjectFilter("group", "", nil)}, nil},
		"a permission":    {&v1.RelationshipFilter{ResourceType: "document", OptionalRelation: "view"}, nil},
		"nothing matches": {&v1.RelationshipFilter{ResourceType: "document", OptionalResourceId: "none"}, nil},
	} {
		got, _, err := readAll(t, conn, &v1.ReadRelationshipsRequest{Consistency: fullyConsistent, RelationshipFilter: c.filter})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		slices.Sort(got)
		var want []string
		for _, i := range c.want {
			want = append(want, stored[i])
		}
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}

	// The limit caps the stream, and the cursor goes on at the state of the first
	// page whatever is written since.
	filter := &v1.RelationshipFilter{ResourceType: "document"}
	var paged []string
	var cursor *v1.Cursor
	for page := 0; ; page++ {
		got, last, err := readAll(t, conn, &v1.ReadRelationshipsRequest{
			Consistency: fullyConsistent, RelationshipFilter: filter, OptionalLimit: 2, OptionalCursor: cursor,
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(got) == 0 {
			break
		}
		if len(got) > 2 || page > 2 {
			t.Fatalf("page %d has %q", page, got)
		}
		paged, cursor = append(paged, got...), last
		touch(t, conn, fmt.Sprintf("document:new%d#viewer@user:anne", page))
	}
	slices.Sort(paged)
	if want := stored[:5]; !slices.Equal(paged, slices.Sorted(slices.Values(want))) {
		t.Errorf("in pages: %q, want %q", paged, want)
	}

	for name, c := range map[string]struct {
		request *v1.ReadRelationshipsRequest
		code    codes.Code
		reason  string
	}{
		"no filter":        {&v1.ReadRelationshipsRequest{}, codes.InvalidArgument, ""},
		"empty":            {&v1.ReadRelationshipsRequest{RelationshipFilter: &v1.RelationshipFilter{}}, codes.InvalidArgument, "ERROR_REASON_INVALID_FILTER"},
		"id and prefix":    {&v1.ReadRelationshipsRequest{RelationshipFilter: &v1.RelationshipFilter{OptionalResourceId: "a", OptionalResourceIdPrefix: "a"}}, codes.InvalidArgument, "ERROR_REASON_INVALID_FILTER"},
		"form":             {&v1.ReadRelationshipsRequest{RelationshipFilter: &v1.RelationshipFilter{ResourceType: "Document"}}, codes.InvalidArgument, ""},
		"wildcard":         {&v1.ReadRelationshipsRequest{RelationshipFilter: &v1.RelationshipFilter{OptionalResourceId: "*"}}, codes.InvalidArgument, ""},
		"unknown type":     {&v1.ReadRelationshipsRequest{RelationshipFilter: &v1.RelationshipFilter{ResourceType: "folder"}}, codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_DEFINITION"},
		"unknown relation": {&v1.ReadRelationshipsRequest{RelationshipFilter: &v1.RelationshipFilter{ResourceType: "document", OptionalRelation: "editor"}}, codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_RELATION_OR_PERMISSION"},
		"unknown subject":  {&v1.ReadRelationshipsRequest{RelationshipFilter: &v1.RelationshipFilter{OptionalSubjectFilter: subjectFilter("robot", "", nil)}}, codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_DEFINITION"},
		"limit":            {&v1.ReadRelationshipsRequest{RelationshipFilter: filter, OptionalLimit: 1001}, codes.InvalidArgument, "ERROR_REASON_EXCEEDS_MAXIMUM_ALLOWABLE_LIMIT"},
		"garbled cursor":   {&v1.ReadRelationshipsRequest{RelationshipFilter: filter, OptionalCursor: &v1.Cursor{Token: "garbage"}}, codes.InvalidArgument, "ERROR_REASON_INVALID_CURSOR"},
		"cursor of another filter": {
			&v1.ReadRelationshipsRequest{RelationshipFilter: &v1.RelationshipFilter{ResourceType: "group"}, OptionalCursor: cursor},
			codes.InvalidArgument, "ERROR_REASON_INVALID_CURSOR",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := readAll(t, conn, c.request)
			wantRefusal(t, err, c.code, c.reason)
		})
	}
}

func TestWriteRelationships(t *testing.T) {
	conn := newServer(t)
	client := v1.NewPermissionsServiceClient(conn)
	create, touched, removed := v1.RelationshipUpdate_OPERATION_CREATE, v1.RelationshipUpdate_OPERATION_TOUCH, v1.RelationshipUpdate_OPERATION_DELETE
	_, err := client.WriteRelationships(testContext(t), &v1.WriteRelationshipsRequest{
		Updates: []*v1.RelationshipUpdate{update(t, create, "document:a#viewer@user:anne")},
	})
	wantRefusal(t, err, codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_DEFINITION")

	writeSchema(t, conn, documents)
	write := func(operation v1.RelationshipUpdate_Operation, text string) {
		t.Helper()
		r, err := client.WriteRelationships(testContext(t), &v1.WriteRelationshipsRequest{Updates: []*v1.RelationshipUpdate{update(t, operation, text)}})
		if err != nil {
			t.Fatal(err)
		}
		if len(r.GetWrittenAt().GetToken()) < 24 {
			t.Fatalf("the token %q is short", r.GetWrittenAt().GetToken())
		}
	}
	write(create, "document:a#viewer@user:anne")
	write(touched, "document:a#viewer@user:anne")
	wantAll(t, conn, "document:a#viewer@user:anne")
	write(touched, `document:a#viewer@user:anne[soon:{"limit":3}]`)
	wantAll(t, conn, `document:a#viewer@user:anne[soon:{"limit":3}]`)
	write(touched, "document:a#viewer@user:anne[expiration:2999-01-01T00:00:00Z]")
	wantAll(t, conn, "document:a#viewer@user:anne[expiration:2999-01-01T00:00:00Z]")
	write(removed, "document:a#viewer@user:bob") // There is none.
	write(removed, `document:a#viewer@user:anne[soon]`)
	wantAll(t, conn)
	write(create, "document:a#viewer@user:anne[expiration:2001-01-01T00:00:00Z]")
	wantAll(t, conn)
	write(removed, "document:a#viewer@user:anne")
	write(touched, "document:a#viewer@user:anne")

	big, err := structpb.NewStruct(map[string]any{"x": strings.Repeat("x", 70_000)})
	if err != nil {
		t.Fatal(err)
	}
	caveated := update(t, touched, "document:a#viewer@user:anne[soon]")
	caveated.Relationship.OptionalCaveat.Context = big
	wrong := update(t, touched, `document:a#viewer@user:anne[soon:{"limit":"many"}]`)
	missing := update(t, touched, `document:a#viewer@user:anne[soon:{"maximum":1}]`)
	early := update(t, touched, "document:a#viewer@user:anne")
	early.Relationship.OptionalExpiresAt = timestamppb.New(time.Date(1901, 1, 1, 0, 0, 0, 0, time.UTC))
	var many []*v1.RelationshipUpdate
	for i := range 1001 {
		many = append(many, update(t, touched, fmt.Sprintf("document:m%d#viewer@user:anne", i)))
	}
	ofDocument := &v1.RelationshipFilter{ResourceType: "document", OptionalResourceId: "a", OptionalSubjectFilter: subjectFilter("user", "anne", nil)}
	mustNot := &v1.Precondition{Operation: v1.Precondition_OPERATION_MUST_NOT_MATCH, Filter: ofDocument}
	must := &v1.Precondition{Operation: v1.Precondition_OPERATION_MUST_MATCH, Filter: &v1.RelationshipFilter{ResourceType: "document", OptionalRelation: "owner"}}
	unknown := &v1.Precondition{Operation: v1.Precondition_OPERATION_MUST_MATCH, Filter: &v1.RelationshipFilter{ResourceType: "folder"}}
	empty := &v1.Precondition{Operation: v1.Precondition_OPERATION_MUST_MATCH, Filter: &v1.RelationshipFilter{}}
	one := func(operation v1.RelationshipUpdate_Operation, text string) []*v1.RelationshipUpdate {
		return []*v1.RelationshipUpdate{update(t, operation, text)}
	}
	twice := append(one(touched, "document:a#viewer@user:anne[soon]"), one(removed, "document:a#viewer@user:anne")...)
	fine := one(touched, "document:z#viewer@user:anne")
	for _, c := range []struct {
		name     string
		request  *v1.WriteRelationshipsRequest
		code     codes.Code
		reason   string
		metadata map[string]string
	}{
		{"form", &v1.WriteRelationshipsRequest{Updates: one(touched, "document:a.b#viewer@user:anne")}, codes.InvalidArgument, "", nil},
		{"resource wildcard", &v1.WriteRelationshipsRequest{Updates: []*v1.RelationshipUpdate{{Operation: touched, Relationship: &v1.Relationship{
			Resource: &v1.ObjectReference{ObjectType: "document", ObjectId: "*"}, Relation: "viewer", Subject: &v1.SubjectReference{Object: &v1.ObjectReference{ObjectType: "user", ObjectId: "a"}},
		}}}}, codes.InvalidArgument, "", nil},
		{"no operation", &v1.WriteRelationshipsRequest{Updates: one(0, "document:a#viewer@user:anne")}, codes.InvalidArgument, "", nil},
		{"metadata before counts", &v1.WriteRelationshipsRequest{Updates: many, OptionalTransactionMetadata: big}, codes.InvalidArgument, "ERROR_REASON_TRANSACTION_METADATA_TOO_LARGE", nil},
		{
			"updates", &v1.WriteRelationshipsRequest{Updates: append(many, many...)}, codes.InvalidArgument, "ERROR_REASON_TOO_MANY_UPDATES_IN_REQUEST",
			map[string]string{"update_count": "2002", "maximum_updates_allowed": "1000"},
		},
		{
			"preconditions before duplicates", &v1.WriteRelationshipsRequest{Updates: twice, OptionalPreconditions: slices.Repeat([]*v1.Precondition{must}, 1001)},
			codes.InvalidArgument, "ERROR_REASON_TOO_MANY_PRECONDITIONS_IN_REQUEST",
			map[string]string{"precondition_count": "1001", "maximum_updates_allowed": "1000"},
		},
		{
			"duplicates before contexts", &v1.WriteRelationshipsRequest{Updates: append([]*v1.RelationshipUpdate{caveated}, twice...), OptionalPreconditions: []*v1.Precondition{empty}},
			codes.InvalidArgument, "ERROR_REASON_UPDATES_ON_SAME_RELATIONSHIP",
			map[string]string{"definition_name": "document", "relationship": "document:a#viewer@user:anne"},
		},
		{
			"contexts before the schema", &v1.WriteRelationshipsRequest{Updates: []*v1.RelationshipUpdate{caveated}, OptionalPreconditions: []*v1.Precondition{unknown}},
			codes.InvalidArgument, "ERROR_REASON_MAX_RELATIONSHIP_CONTEXT_SIZE",
			map[string]string{"relationship": "document:a#viewer@user:anne", "max_allowed_size": "25000"},
		},
		{"empty precondition", &v1.WriteRelationshipsRequest{Updates: fine, OptionalPreconditions: []*v1.Precondition{empty}}, codes.InvalidArgument, "ERROR_REASON_UNSPECIFIED", nil},
		{
			"filters before updates", &v1.WriteRelationshipsRequest{Updates: one(touched, "document:a#view@user:anne"), OptionalPreconditions: []*v1.Precondition{unknown}},
			codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_DEFINITION",
			map[string]string{"definition_name": "folder"},
		},
		{
			"updates before preconditions", &v1.WriteRelationshipsRequest{Updates: one(touched, "document:a#view@user:anne"), OptionalPreconditions: []*v1.Precondition{must}},
			codes.InvalidArgument, "ERROR_REASON_CANNOT_UPDATE_PERMISSION",
			map[string]string{"definition_name": "document", "permission_name": "view"},
		},
		{"unknown type", &v1.WriteRelationshipsRequest{Updates: one(touched, "folder:a#viewer@user:anne")}, codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_DEFINITION", map[string]string{"definition_name": "folder"}},
		{
			"unknown relation", &v1.WriteRelationshipsRequest{Updates: one(touched, "document:a#editor@user:anne")}, codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_RELATION_OR_PERMISSION",
			map[string]string{"definition_name": "document", "relation_or_permission_name": "editor"},
		},
		{"unknown subject", &v1.WriteRelationshipsRequest{Updates: one(touched, "document:a#viewer@robot:r2d2")}, codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_DEFINITION", map[string]string{"definition_name": "robot"}},
		{
			"subject", &v1.WriteRelationshipsRequest{Updates: one(touched, "document:a#owner@user:*")}, codes.InvalidArgument, "ERROR_REASON_INVALID_SUBJECT_TYPE",
			map[string]string{"definition_name": "document", "relation_name": "owner", "subject_type": "user:*"},
		},
		{"caveat", &v1.WriteRelationshipsRequest{Updates: one(touched, "document:a#viewer@user:anne[other]")}, codes.InvalidArgument, "ERROR_REASON_INVALID_SUBJECT_TYPE", nil},
		{
			"unknown caveat", &v1.WriteRelationshipsRequest{Updates: one(touched, "document:a#viewer@user:anne[never]")}, codes.InvalidArgument, "ERROR_REASON_INVALID_SUBJECT_TYPE",
			map[string]string{"definition_name": "document", "relation_name": "viewer", "subject_type": "user with never"},
		},
		{"caveat of a delete", &v1.WriteRelationshipsRequest{Updates: one(removed, "document:a#viewer@user:anne[other]")}, codes.InvalidArgument, "ERROR_REASON_INVALID_SUBJECT_TYPE", nil},
		{"expiration", &v1.WriteRelationshipsRequest{Updates: one(touched, "document:a#owner@user:anne[expiration:2999-01-01T00:00:00Z]")}, codes.InvalidArgument, "ERROR_REASON_INVALID_SUBJECT_TYPE", nil},
		{"early expiration", &v1.WriteRelationshipsRequest{Updates: []*v1.RelationshipUpdate{early}}, codes.InvalidArgument, "", nil},
		{"context", &v1.WriteRelationshipsRequest{Updates: []*v1.RelationshipUpdate{wrong}}, codes.InvalidArgument, "ERROR_REASON_CAVEAT_PARAMETER_TYPE_ERROR", nil},
		{"context key", &v1.WriteRelationshipsRequest{Updates: []*v1.RelationshipUpdate{missing}}, codes.InvalidArgument, "ERROR_REASON_CAVEAT_PARAMETER_TYPE_ERROR", nil},
		{
			"must match", &v1.WriteRelationshipsRequest{Updates: fine, OptionalPreconditions: []*v1.Precondition{must}}, codes.FailedPrecondition, "ERROR_REASON_WRITE_OR_DELETE_PRECONDITION_FAILURE",
			map[string]string{"precondition_operation": "OPERATION_MUST_MATCH", "precondition_resource_type": "document", "precondition_relation": "owner"},
		},
		{
			"must not match", &v1.WriteRelationshipsRequest{Updates: fine, OptionalPreconditions: []*v1.Precondition{mustNot}}, codes.FailedPrecondition, "ERROR_REASON_WRITE_OR_DELETE_PRECONDITION_FAILURE",
			map[string]string{"precondition_operation": "OPERATION_MUST_NOT_MATCH", "precondition_resource_type": "document", "precondition_resource_id": "a", "precondition_subject_type": "user", "precondition_subject_id": "anne"},
		},
		{"preconditions alone", &v1.WriteRelationshipsRequest{OptionalPreconditions: []*v1.Precondition{must}}, codes.FailedPrecondition, "ERROR_REASON_WRITE_OR_DELETE_PRECONDITION_FAILURE", nil},
		{
			"create again", &v1.WriteRelationshipsRequest{Updates: one(create, "document:a#viewer@user:anne[soon]")}, codes.AlreadyExists, "ERROR_REASON_ATTEMPT_TO_RECREATE_RELATIONSHIP",
			map[string]string{
				"relationship": "document:a#viewer@user:anne", "resource_type": "document", "resource_object_id": "a", "resource_relation": "viewer",
				"subject_type": "user", "subject_object_id": "anne", "subject_relation": "",
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := client.WriteRelationships(testContext(t), c.request)
			got := wantRefusal(t, err, c.code, c.reason)
			for k, v := range c.metadata {
				if g, ok := got[k]; !ok || g != v {
					t.Errorf("metadata %s is %q (%v), want %q; all is %v", k, g, ok, v, got)
				}
			}
		})
	}
	wantAll(t, conn, "document:a#viewer@user:anne")
	r, err := client.WriteRelationships(testContext(t), &v1.WriteRelationshipsRequest{})
	if err != nil || r.GetWrittenAt().GetToken() == "" {
		t.Errorf("a write of nothing: %v, %v", r, err)
	}
}

func TestDeleteRelationships(t *testing.T) {
	conn := newServer(t)
	client := v1.NewPermissionsServiceClient(conn)
	writeSchema(t, conn, documents)
	for batch := range 2 {
		var some []string
		for i := range 600 {
			some = append(some, fmt.Sprintf("document:d%d#viewer@user:u%d", batch, i))
		}
		touch(t, conn, some...)
	}
	touch(t, conn, "document:keep#owner@user:anne", "document:p#owner@user:a", "document:p#owner@user:b", "document:p#owner@user:c")
	whole, partial := v1.DeleteRelationshipsResponse_DELETION_PROGRESS_COMPLETE, v1.DeleteRelationshipsResponse_DELETION_PROGRESS_PARTIAL
	remove := func(r *v1.DeleteRelationshipsRequest, progress v1.DeleteRelationshipsResponse_DeletionProgress, count uint64) {
		t.Helper()
		got, err := client.DeleteRelationships(testContext(t), r)
		if err != nil {
			t.Fatal(err)
		}
		if got.GetDeletionProgress() != progress || got.GetRelationshipsDeletedCount() != count || got.GetDeletedAt().GetToken() == "" {
			t.Fatalf("got %v, want %v and %d", got, progress, count)
		}
	}
	owners := &v1.RelationshipFilter{ResourceType: "document", OptionalResourceId: "p", OptionalRelation: "owner", OptionalSubjectFilter: subjectFilter("user", "", new(string))}
	_, err := client.DeleteRelationships(testContext(t), &v1.DeleteRelationshipsRequest{RelationshipFilter: owners, OptionalLimit: 2})
	metadata := wantRefusal(t, err, codes.InvalidArgument, "ERROR_REASON_TOO_MANY_RELATIONSHIPS_FOR_TRANSACTIONAL_DELETE")
	if want := (map[string]string{
		"limit": "2", "filter_resource_type": "document", "filter_resource_id": "p", "filter_relation": "owner", "filter_subject_type": "user", "filter_subject_relation": "",
	}); !maps.Equal(metadata, want) {
		t.Errorf("metadata is %v, want %v", metadata, want)
	}
	failed := &v1.Precondition{Operation: v1.Precondition_OPERATION_MUST_MATCH, Filter: &v1.RelationshipFilter{ResourceType: "group"}}
	_, err = client.DeleteRelationships(testContext(t), &v1.DeleteRelationshipsRequest{RelationshipFilter: owners, OptionalPreconditions: []*v1.Precondition{failed}})
	wantRefusal(t, err, codes.FailedPrecondition, "ERROR_REASON_WRITE_OR_DELETE_PRECONDITION_FAILURE")
	remove(&v1.DeleteRelationshipsRequest{RelationshipFilter: owners, OptionalLimit: 2, OptionalAllowPartialDeletions: true}, partial, 2)
	remove(&v1.DeleteRelationshipsRequest{RelationshipFilter: owners, OptionalLimit: 2, OptionalAllowPartialDeletions: true}, whole, 1)
	remove(&v1.DeleteRelationshipsRequest{RelationshipFilter: owners, OptionalLimit: 2, OptionalAllowPartialDeletions: true}, whole, 0)
	remove(&v1.DeleteRelationshipsRequest{RelationshipFilter: &v1.RelationshipFilter{OptionalResourceIdPrefix: "d"}}, whole, 1200)
	wantAll(t, conn, "document:keep#owner@user:anne")

	for name, c := range map[string]struct {
		request *v1.DeleteRelationshipsRequest
		code    codes.Code
		reason  string
	}{
		"no filter":        {&v1.DeleteRelationshipsRequest{}, codes.InvalidArgument, ""},
		"empty":            {&v1.DeleteRelationshipsRequest{RelationshipFilter: &v1.RelationshipFilter{}}, codes.InvalidArgument, "ERROR_REASON_INVALID_FILTER"},
		"unknown type":     {&v1.DeleteRelationshipsRequest{RelationshipFilter: &v1.RelationshipFilter{ResourceType: "folder"}}, codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_DEFINITION"},
		"unknown relation": {&v1.DeleteRelationshipsRequest{RelationshipFilter: &v1.RelationshipFilter{ResourceType: "document", OptionalRelation: "editor"}}, codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_RELATION_OR_PERMISSION"},
		"limit":            {&v1.DeleteRelationshipsRequest{RelationshipFilter: owners, OptionalLimit: 1001}, codes.InvalidArgument, "ERROR_REASON_EXCEEDS_MAXIMUM_ALLOWABLE_LIMIT"},
		"cursor":           {&v1.DeleteRelationshipsRequest{RelationshipFilter: owners, OptionalCursor: &v1.Cursor{Token: "x"}}, codes.Unimplemented, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := client.DeleteRelationships(testContext(t), c.request)
			wantRefusal(t, err, c.code, c.reason)
		})
	}
}

// TestRefusalsNameTuples: what the errors say of a tuple is the API's text, also of
// ids that Pemba's own text quotes.
func TestRefusalsNameTuples(t *testing.T) {
	m := make(map[string]string)
	tuple := graph.Tuple{
		Object: graph.Object{Type: "document", ID: "a:b c"}, Relation: "viewer",
		Subject: graph.Subject{Object: graph.Object{Type: "group", ID: "eng"}, Relation: "member"},
	}
	tupleMetadata(m, 0, tuple.String())
	if want := "document:a:b c#viewer@group:eng#member"; m["relationship"] != want {
		t.Errorf("got %q, want %q", m["relationship"], want)
	}
}

// TestImportRefusals: an import that was overtaken is one to begin again.
func TestImportRefusals(t *testing.T) {
	for reason, want := range map[engine.Reason]codes.Code{
		engine.StageStale: codes.Aborted, engine.StageUnknown: codes.Aborted, engine.StageTooLarge: codes.ResourceExhausted,
	} {
		st := Dialect{}.Status(&engine.Refusal{Reason: reason, Message: "pemba tuple import"}, status.New(codes.FailedPrecondition, "native"))
		if st.Code() != want || strings.Contains(st.Message(), "pemba") {
			t.Errorf("%v: got %v", reason, st)
		}
	}
}
