package authzed

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/graph"
)

const errorsSchema = `use expiration

caveat soon(limit int) {
	limit < 5
}

caveat other(limit int) {
	limit < 5
}

caveat share(whole int, parts int) {
	whole / parts > 1
}

definition user {}

definition group {
	relation member: user | group#member | group#left
	relation banned: user
	permission left = member - banned
}

definition document {
	relation viewer: user | user:* | group#member | user with soon | user with share | user with expiration
	relation owner: user
	permission view = viewer + owner
}
`

// An errorsServer is where the errors of TestErrorTable come from.
type errorsServer struct {
	t           testing.TB
	server      *api.Server
	conn        *grpc.ClientConn
	permissions v1.PermissionsServiceClient
	schemas     v1.SchemaServiceClient
	watches     v1.WatchServiceClient
	counters    v1.ExperimentalServiceClient
	// empty has no schema, foreign is of another cluster.
	empty, foreign *grpc.ClientConn
	// old is of the first revision, which is pruned; newest of the newest.
	old, newest *v1.ZedToken
}

// newErrorsServer has errorsSchema and some relationships, and no past.
func newErrorsServer(t testing.TB) *errorsServer {
	node := newNode(t)
	x := &errorsServer{t: t, empty: newServer(t), foreign: newServer(t)}
	x.conn, x.server = newServerWith(t, api.Config{Node: node, Limits: api.Limits{Steps: 2000}})
	x.permissions, x.schemas = v1.NewPermissionsServiceClient(x.conn), v1.NewSchemaServiceClient(x.conn)
	x.watches, x.counters = v1.NewWatchServiceClient(x.conn), v1.NewExperimentalServiceClient(x.conn)
	writeSchema(t, x.foreign, errorsSchema)
	x.old = writeSchema(t, x.conn, errorsSchema)
	touch(
		t, x.conn,
		"document:plan#viewer@user:anne", "document:plan#viewer@user:bob[soon]", "document:plan#viewer@user:carl[share]",
		"document:plan#owner@user:olga", "document:plan#owner@user:otto", "group:ring#member@group:ring#member",
	)
	var chain []string
	for i := range 900 {
		chain = append(chain, fmt.Sprintf("group:c%d#member@group:c%d#left", i, i+1))
	}
	touch(t, x.conn, chain...)
	if err := newCounters(t, x.conn).register("owners", &v1.RelationshipFilter{ResourceType: "document", OptionalRelation: "owner"}); err != nil {
		t.Fatal(err)
	}
	const kept = time.Second // The least that can be kept.
	store, ok := node.StoreNamed(api.DefaultStoreName)
	if !ok {
		t.Fatal("there is no default store")
	}
	retention := graph.Retention(kept.Microseconds())
	time.Sleep(kept + 100*time.Millisecond)
	x.newest = touch(t, x.conn, "document:plan#viewer@user:newest")
	for _, m := range []*graph.Mutation{
		{Store: store.ID, StoreChange: &graph.StoreChange{Operation: graph.SetStore, Log: &retention, History: &retention}},
		{Store: store.ID, Prune: &graph.Prune{}},
	} {
		if result, err := node.Write(testContext(t), m); err != nil || result.Refusal != nil {
			t.Fatalf("%v, %v", err, result.Refusal)
		}
	}
	return x
}

// ahead is a token of a revision that is not there yet.
func (x *errorsServer) ahead() *v1.ZedToken {
	b, err := base64.StdEncoding.DecodeString(x.newest.GetToken())
	if err != nil || len(b) != 37 {
		x.t.Fatalf("the token %v has %d bytes: %v", x.newest, len(b), err)
	}
	binary.BigEndian.PutUint64(b[17:], binary.BigEndian.Uint64(b[17:])+1_000_000)
	binary.BigEndian.PutUint32(b[33:], crc32.Checksum(b[:33], crc32.MakeTable(crc32.Castagnoli)))
	return &v1.ZedToken{Token: base64.StdEncoding.EncodeToString(b)}
}

func at(token *v1.ZedToken) *v1.Consistency {
	return &v1.Consistency{Requirement: &v1.Consistency_AtExactSnapshot{AtExactSnapshot: token}}
}

func atLeast(token *v1.ZedToken) *v1.Consistency {
	return &v1.Consistency{Requirement: &v1.Consistency_AtLeastAsFresh{AtLeastAsFresh: token}}
}

func (x *errorsServer) check(question string, change ...func(*v1.CheckPermissionRequest)) error {
	r := parseQuestion(x.t, question)
	for _, f := range change {
		f(r)
	}
	_, err := x.permissions.CheckPermission(testContext(x.t), r)
	return err
}

// ofItem is check as an item of a bulk check, whose error is its own.
func (x *errorsServer) ofItem(question string) error {
	q := parseQuestion(x.t, question)
	r, err := x.permissions.CheckBulkPermissions(testContext(x.t), &v1.CheckBulkPermissionsRequest{Items: []*v1.CheckBulkPermissionsRequestItem{
		{Resource: q.GetResource(), Permission: q.GetPermission(), Subject: q.GetSubject(), Context: q.GetContext()},
	}})
	if err != nil {
		return fmt.Errorf("the call: %w", err)
	}
	return statusProto(r.GetPairs()[0].GetError())
}

func (x *errorsServer) resources(r *v1.LookupResourcesRequest) error {
	_, _, err := resources(x.t, x.conn, r)
	return err
}

func (x *errorsServer) subjects(r *v1.LookupSubjectsRequest) error {
	_, _, err := subjects(x.t, x.conn, r)
	return err
}

func (x *errorsServer) read(r *v1.ReadRelationshipsRequest) error {
	_, _, err := readAll(x.t, x.conn, r)
	return err
}

func (x *errorsServer) export(r *v1.ExportBulkRelationshipsRequest) error {
	_, _, err := exportBulk(x.t, x.conn, r)
	return err
}

func (x *errorsServer) expand(object, id, permission string) error {
	_, err := x.permissions.ExpandPermissionTree(testContext(x.t), &v1.ExpandPermissionTreeRequest{
		Resource: &v1.ObjectReference{ObjectType: object, ObjectId: id}, Permission: permission,
	})
	return err
}

func (x *errorsServer) write(r *v1.WriteRelationshipsRequest) error {
	_, err := x.permissions.WriteRelationships(testContext(x.t), r)
	return err
}

func (x *errorsServer) touch(texts ...string) error {
	return x.write(&v1.WriteRelationshipsRequest{Updates: x.updates(texts...)})
}

func (x *errorsServer) updates(texts ...string) (all []*v1.RelationshipUpdate) {
	for _, text := range texts {
		all = append(all, update(x.t, v1.RelationshipUpdate_OPERATION_TOUCH, text))
	}
	return all
}

func (x *errorsServer) remove(r *v1.DeleteRelationshipsRequest) error {
	_, err := x.permissions.DeleteRelationships(testContext(x.t), r)
	return err
}

func (x *errorsServer) schema(text string) error {
	_, err := x.schemas.WriteSchema(testContext(x.t), &v1.WriteSchemaRequest{Schema: text})
	return err
}

func (x *errorsServer) watch(token *v1.ZedToken) error {
	_, err := watch(x.t, testContext(x.t), x.conn, after(token)).Recv()
	return err
}

// overtaken imports relationships while the schema changes. The flow control lets
// the last messages go only when the first ones are staged.
func (x *errorsServer) overtaken() error {
	stream, err := x.permissions.ImportBulkRelationships(testContext(x.t))
	if err != nil {
		return err
	}
	for m := range 40 {
		r := &v1.ImportBulkRelationshipsRequest{}
		for i := range 500 {
			r.Relationships = append(r.Relationships, parseRelationship(x.t, fmt.Sprintf("document:m%d_%d#viewer@user:anne", m, i)))
		}
		if err := stream.Send(r); err != nil {
			_, err = stream.CloseAndRecv()
			return err
		}
	}
	if err := x.schema(errorsSchema + "definition late {}"); err != nil {
		x.t.Fatal(err)
	}
	_, err = stream.CloseAndRecv()
	return err
}

// Parts of requests that several rows have.
var (
	folders = &v1.RelationshipFilter{ResourceType: "folder"}
	owners  = &v1.RelationshipFilter{ResourceType: "document", OptionalRelation: "owner"}
	editors = &v1.RelationshipFilter{ResourceType: "document", OptionalRelation: "editor"}
	// approvers names no type, and a relation that no type has.
	approvers = &v1.RelationshipFilter{OptionalRelation: "approver"}
	garbled   = &v1.Cursor{Token: "garbled"}
	tooLarge  = strings.Repeat("x", 70_000)
)

// An errorRow is a situation, and how this API answers it.
type errorRow struct {
	situation string
	call      func(x *errorsServer) error
	code      codes.Code
	// reason is without its prefix ERROR_REASON_ when it is one of the API's; ""
	// when there is no ErrorInfo.
	reason string
	// metadata is all that must be there, sorted by keys: "key=value, key=value".
	metadata string
}

var errorRows = []errorRow{
	{"a field breaks its rule", func(x *errorsServer) error { return x.check("Document:plan#view@user:anne") }, codes.InvalidArgument, "", ""},
	{"an id breaks its rule", func(x *errorsServer) error { return x.check("document:a.b#view@user:anne") }, codes.InvalidArgument, "", ""},
	{"no key", func(x *errorsServer) error {
		_, err := v1.NewSchemaServiceClient(dial(x.t, x.server, "")).ReadSchema(testContext(x.t), &v1.ReadSchemaRequest{})
		return err
	}, codes.Unauthenticated, "", ""},
	{"a wrong key", func(x *errorsServer) error {
		_, err := v1.NewSchemaServiceClient(dial(x.t, x.server, "wrong")).ReadSchema(testContext(x.t), &v1.ReadSchemaRequest{})
		return err
	}, codes.PermissionDenied, "", ""},
	{"no such store", func(x *errorsServer) error {
		ctx := metadata.AppendToOutgoingContext(testContext(x.t), api.StoreHeader, "nowhere")
		_, err := x.schemas.ReadSchema(ctx, &v1.ReadSchemaRequest{})
		return err
	}, codes.NotFound, "pemba UNKNOWN_STORE", "field=store, store=nowhere"},

	{"ReadSchema without a schema", func(x *errorsServer) error {
		_, err := v1.NewSchemaServiceClient(x.empty).ReadSchema(testContext(x.t), &v1.ReadSchemaRequest{})
		return err
	}, codes.NotFound, "", ""},
	{"a check without a schema", func(x *errorsServer) error {
		_, err := v1.NewPermissionsServiceClient(x.empty).CheckPermission(testContext(x.t), parseQuestion(x.t, "document:plan#view@user:anne"))
		return err
	}, codes.FailedPrecondition, "UNKNOWN_DEFINITION", ""},

	{"a check of an unknown type", func(x *errorsServer) error { return x.check("folder:f#view@user:anne") }, codes.FailedPrecondition, "UNKNOWN_DEFINITION", "definition_name=folder"},
	{"a check of an unknown subject type", func(x *errorsServer) error { return x.check("document:plan#view@robot:r") }, codes.FailedPrecondition, "UNKNOWN_DEFINITION", "definition_name=robot"},
	{"an item of an unknown type", func(x *errorsServer) error { return x.ofItem("folder:f#view@user:anne") }, codes.FailedPrecondition, "UNKNOWN_DEFINITION", "definition_name=folder"},
	{"a tree of an unknown type", func(x *errorsServer) error { return x.expand("folder", "f", "view") }, codes.FailedPrecondition, "UNKNOWN_DEFINITION", "definition_name=folder"},
	{"resources of an unknown type", func(x *errorsServer) error {
		return x.resources(&v1.LookupResourcesRequest{ResourceObjectType: "folder", Permission: "view", Subject: subjectOf("user", "anne", "")})
	}, codes.FailedPrecondition, "UNKNOWN_DEFINITION", "definition_name=folder"},
	{"subjects of an unknown type", func(x *errorsServer) error {
		return x.subjects(&v1.LookupSubjectsRequest{Resource: &v1.ObjectReference{ObjectType: "document", ObjectId: "plan"}, Permission: "view", SubjectObjectType: "robot"})
	}, codes.FailedPrecondition, "UNKNOWN_DEFINITION", "definition_name=robot"},
	{"a write of an unknown type", func(x *errorsServer) error { return x.touch("folder:f#viewer@user:anne") }, codes.FailedPrecondition, "UNKNOWN_DEFINITION", "definition_name=folder"},
	{"a read of an unknown type", func(x *errorsServer) error { return x.read(&v1.ReadRelationshipsRequest{RelationshipFilter: folders}) }, codes.FailedPrecondition, "UNKNOWN_DEFINITION", "definition_name=folder"},
	{"a delete of an unknown type", func(x *errorsServer) error {
		return x.remove(&v1.DeleteRelationshipsRequest{RelationshipFilter: folders})
	}, codes.FailedPrecondition, "UNKNOWN_DEFINITION", "definition_name=folder"},
	{"a precondition on an unknown type", func(x *errorsServer) error {
		return x.write(&v1.WriteRelationshipsRequest{OptionalPreconditions: []*v1.Precondition{{Operation: v1.Precondition_OPERATION_MUST_MATCH, Filter: folders}}})
	}, codes.FailedPrecondition, "UNKNOWN_DEFINITION", "definition_name=folder"},

	{"a check of an unknown permission", func(x *errorsServer) error { return x.check("document:plan#sign@user:anne") }, codes.FailedPrecondition, "UNKNOWN_RELATION_OR_PERMISSION", "definition_name=document, relation_or_permission_name=sign"},
	{"a check of an unknown subject relation", func(x *errorsServer) error { return x.check("document:plan#view@group:g#guest") }, codes.FailedPrecondition, "UNKNOWN_RELATION_OR_PERMISSION", "definition_name=group, relation_or_permission_name=guest"},
	{"an item of an unknown permission", func(x *errorsServer) error { return x.ofItem("document:plan#sign@user:anne") }, codes.FailedPrecondition, "UNKNOWN_RELATION_OR_PERMISSION", "definition_name=document, relation_or_permission_name=sign"},
	{"a tree of an unknown permission", func(x *errorsServer) error { return x.expand("document", "plan", "sign") }, codes.FailedPrecondition, "UNKNOWN_RELATION_OR_PERMISSION", "definition_name=document, relation_or_permission_name=sign"},
	{"a write of an unknown relation", func(x *errorsServer) error { return x.touch("document:plan#editor@user:anne") }, codes.FailedPrecondition, "UNKNOWN_RELATION_OR_PERMISSION", "definition_name=document, relation_or_permission_name=editor"},
	{"a read of an unknown relation", func(x *errorsServer) error { return x.read(&v1.ReadRelationshipsRequest{RelationshipFilter: editors}) }, codes.FailedPrecondition, "UNKNOWN_RELATION_OR_PERMISSION", "definition_name=document, relation_or_permission_name=editor"},
	{"a delete of an unknown relation", func(x *errorsServer) error {
		return x.remove(&v1.DeleteRelationshipsRequest{RelationshipFilter: editors})
	}, codes.FailedPrecondition, "UNKNOWN_RELATION_OR_PERMISSION", "definition_name=document, relation_or_permission_name=editor"},

	// A relation is judged only together with its type.
	{"a read of a relation that nothing has", func(x *errorsServer) error {
		return x.read(&v1.ReadRelationshipsRequest{RelationshipFilter: approvers})
	}, codes.OK, "", ""},
	{"a delete of a relation that nothing has", func(x *errorsServer) error {
		return x.remove(&v1.DeleteRelationshipsRequest{RelationshipFilter: approvers})
	}, codes.OK, "", ""},
	{"a precondition that a relation which nothing has must match", func(x *errorsServer) error {
		return x.write(&v1.WriteRelationshipsRequest{
			Updates: x.updates("document:plan#viewer@user:new"), OptionalPreconditions: []*v1.Precondition{{Operation: v1.Precondition_OPERATION_MUST_MATCH, Filter: approvers}},
		})
	}, codes.FailedPrecondition, "WRITE_OR_DELETE_PRECONDITION_FAILURE", "precondition_operation=OPERATION_MUST_MATCH, precondition_relation=approver, precondition_resource_type="},
	// There it holds.
	{"a precondition that a relation which nothing has must not match", func(x *errorsServer) error {
		return x.write(&v1.WriteRelationshipsRequest{
			Updates: x.updates("document:plan#viewer@user:new"), OptionalPreconditions: []*v1.Precondition{{Operation: v1.Precondition_OPERATION_MUST_NOT_MATCH, Filter: approvers}},
		})
	}, codes.FailedPrecondition, "UNKNOWN_RELATION_OR_PERMISSION", "relation_or_permission_name=approver"},

	{"a schema that does not parse", func(x *errorsServer) error { return x.schema("definition user {") }, codes.InvalidArgument, "SCHEMA_PARSE_ERROR", "end_column_position=17, end_line_number=0, source_code=, start_column_position=17, start_line_number=0"},
	{"a schema that does not hold together", func(x *errorsServer) error {
		return x.schema("definition user {}\ndefinition paper {\n\trelation viewer: robot\n}")
	}, codes.FailedPrecondition, "SCHEMA_TYPE_ERROR", "definition_name=paper, end_column_position=23, end_line_number=2, relation_name=viewer, source_code=robot, start_column_position=18, start_line_number=2"},
	{"a schema without a type that has data", func(x *errorsServer) error {
		return x.schema(strings.Replace(errorsSchema, "definition document", "definition paper", 1))
	}, codes.InvalidArgument, "SCHEMA_TYPE_ERROR", "count=6, operation=delete_object_definition, relationship=document:plan#viewer@user:anne, resource_type=document"},
	{"a schema without a relation that has data", func(x *errorsServer) error {
		return x.schema(strings.NewReplacer("\trelation owner: user\n", "", " + owner", "").Replace(errorsSchema))
	}, codes.InvalidArgument, "SCHEMA_TYPE_ERROR", "count=2, operation=delete_relation, relation=owner, relationship=document:plan#owner@user:olga, resource_type=document"},
	{"a schema without an allowed type that has data", func(x *errorsServer) error {
		return x.schema(strings.Replace(errorsSchema, "user with soon | ", "", 1))
	}, codes.InvalidArgument, "SCHEMA_TYPE_ERROR", "allowed_type=user with soon, count=1, operation=remove_allowed_type, relation=viewer, relationship=document:plan#viewer@user:bob[soon], resource_type=document"},
	{"a schema without a parameter", func(x *errorsServer) error {
		return x.schema(strings.Replace(errorsSchema, "caveat other(limit int) {\n\tlimit < 5", "caveat other(least int) {\n\tleast < 5", 1))
	}, codes.InvalidArgument, "SCHEMA_TYPE_ERROR", "caveat_name=other, operation=remove_parameter, parameter_name=limit"},
	{"a schema with another type of a parameter", func(x *errorsServer) error {
		return x.schema(strings.Replace(errorsSchema, "caveat other(limit int)", "caveat other(limit double)", 1))
	}, codes.InvalidArgument, "SCHEMA_TYPE_ERROR", "caveat_name=other, operation=change_parameter_type, parameter_name=limit"},

	{"CREATE of what is there", func(x *errorsServer) error {
		return x.write(&v1.WriteRelationshipsRequest{Updates: []*v1.RelationshipUpdate{update(x.t, v1.RelationshipUpdate_OPERATION_CREATE, "document:plan#viewer@user:anne")}})
	}, codes.AlreadyExists, "ATTEMPT_TO_RECREATE_RELATIONSHIP", "relationship=document:plan#viewer@user:anne, resource_object_id=plan, resource_relation=viewer, resource_type=document, subject_object_id=anne, subject_relation=, subject_type=user"},
	{"CREATE of a set that is there", func(x *errorsServer) error {
		return x.write(&v1.WriteRelationshipsRequest{Updates: []*v1.RelationshipUpdate{update(x.t, v1.RelationshipUpdate_OPERATION_CREATE, "group:ring#member@group:ring#member")}})
	}, codes.AlreadyExists, "ATTEMPT_TO_RECREATE_RELATIONSHIP", "relationship=group:ring#member@group:ring#member, resource_object_id=ring, resource_relation=member, resource_type=group, subject_object_id=ring, subject_relation=member, subject_type=group"},
	{"an import of what is there", func(x *errorsServer) error {
		_, err := importBulk(x.t, x.conn, []string{"document:plan#viewer@user:anne"})
		return err
	}, codes.AlreadyExists, "ATTEMPT_TO_RECREATE_RELATIONSHIP", "relationship=document:plan#viewer@user:anne, resource_object_id=plan, resource_relation=viewer, resource_type=document, subject_object_id=anne, subject_relation=, subject_type=user"},
	{"one relationship twice in a write", func(x *errorsServer) error {
		return x.touch("document:plan#viewer@user:anne", "document:plan#viewer@user:anne[soon]")
	}, codes.InvalidArgument, "UPDATES_ON_SAME_RELATIONSHIP", "definition_name=document, relationship=document:plan#viewer@user:anne"},
	{"a write to a permission", func(x *errorsServer) error { return x.touch("document:plan#view@user:anne") }, codes.InvalidArgument, "CANNOT_UPDATE_PERMISSION", "definition_name=document, permission_name=view"},
	{"a subject that is not allowed", func(x *errorsServer) error { return x.touch("document:plan#owner@group:eng#member") }, codes.InvalidArgument, "INVALID_SUBJECT_TYPE", "definition_name=document, relation_name=owner, subject_type=group#member"},
	{"a wildcard that is not allowed", func(x *errorsServer) error { return x.touch("document:plan#owner@user:*") }, codes.InvalidArgument, "INVALID_SUBJECT_TYPE", "definition_name=document, relation_name=owner, subject_type=user:*"},
	{"a caveat that is not allowed", func(x *errorsServer) error { return x.touch("document:plan#viewer@user:anne[other]") }, codes.InvalidArgument, "INVALID_SUBJECT_TYPE", "definition_name=document, relation_name=viewer, subject_type=user with other"},
	{"a caveat that is not there", func(x *errorsServer) error { return x.touch("document:plan#viewer@user:anne[never]") }, codes.InvalidArgument, "INVALID_SUBJECT_TYPE", "definition_name=document, relation_name=viewer, subject_type=user with never"},
	{"an expiration that is not allowed", func(x *errorsServer) error {
		return x.touch("document:plan#owner@user:anne[expiration:2999-01-01T00:00:00Z]")
	}, codes.InvalidArgument, "INVALID_SUBJECT_TYPE", "definition_name=document, relation_name=owner, subject_type=user with expiration"},

	// There it is UNKNOWN.
	{"a stored context of the wrong type", func(x *errorsServer) error { return x.touch(`document:plan#viewer@user:anne[soon:{"limit":"many"}]`) }, codes.InvalidArgument, "CAVEAT_PARAMETER_TYPE_ERROR", "caveat_name=soon, parameter_name=limit"},
	{"a stored context with an unknown key", func(x *errorsServer) error { return x.touch(`document:plan#viewer@user:anne[soon:{"most":1}]`) }, codes.InvalidArgument, "CAVEAT_PARAMETER_TYPE_ERROR", "caveat_name=soon, parameter_name=most"},
	{"a context of the wrong type", func(x *errorsServer) error { return x.check(`document:plan#view@user:bob {"limit":"many"}`) }, codes.InvalidArgument, "CAVEAT_PARAMETER_TYPE_ERROR", "caveat_name=soon, parameter_name=limit"},
	{"a caveat that fails", func(x *errorsServer) error { return x.check(`document:plan#view@user:carl {"whole":1,"parts":0}`) }, codes.InvalidArgument, "CAVEAT_EVALUATION_ERROR", "caveat_name=share"},
	{"a caveat that fails in an item", func(x *errorsServer) error { return x.ofItem(`document:plan#view@user:carl {"whole":1,"parts":0}`) }, codes.InvalidArgument, "CAVEAT_EVALUATION_ERROR", "caveat_name=share"},
	{"a context of a question that is too large", func(x *errorsServer) error {
		return x.check(`document:plan#view@user:bob {"limit":"` + tooLarge + `"}`)
	}, codes.InvalidArgument, "", ""},
	{"a stored context that is too large", func(x *errorsServer) error {
		return x.touch(`document:plan#viewer@user:anne[soon:{"limit":"` + tooLarge[:26_000] + `"}]`)
	}, codes.InvalidArgument, "MAX_RELATIONSHIP_CONTEXT_SIZE", "context_size=26019, max_allowed_size=25000, relationship=document:plan#viewer@user:anne"},
	// Its JSON is larger than it is itself: a control character takes six bytes there.
	{"a stored context whose JSON is too large", func(x *errorsServer) error {
		u := x.updates("document:plan#viewer@user:anne[soon]")
		given, err := structpb.NewStruct(map[string]any{"limit": strings.Repeat("\x01", 20_000)})
		if err != nil {
			return err
		}
		u[0].Relationship.OptionalCaveat.Context = given
		return x.write(&v1.WriteRelationshipsRequest{Updates: u})
	}, codes.InvalidArgument, "pemba MALFORMED", "field=updates[0].relationship.optional_caveat.context"},
	{"metadata that is too large", func(x *errorsServer) error {
		m, err := structpb.NewStruct(map[string]any{"x": tooLarge})
		if err != nil {
			return err
		}
		return x.write(&v1.WriteRelationshipsRequest{OptionalTransactionMetadata: m})
	}, codes.InvalidArgument, "TRANSACTION_METADATA_TOO_LARGE", "maximum_allowed_metadata_byte_size=65000, metadata_byte_size=70008"},

	// A line separator takes three bytes in JSON, and six in its canonical form.
	{"metadata whose canonical form is too large", func(x *errorsServer) error {
		m, err := structpb.NewStruct(map[string]any{"x": strings.Repeat("\u2028", 10_850)})
		if err != nil {
			return err
		}
		return x.write(&v1.WriteRelationshipsRequest{Updates: x.updates("document:plan#viewer@user:new"), OptionalTransactionMetadata: m})
	}, codes.InvalidArgument, "pemba TOO_LARGE", "field=optional_transaction_metadata, limit=65000"},
	{"a write that is too large", func(x *errorsServer) error { return x.touch(large(1000)...) }, codes.InvalidArgument, "pemba TOO_LARGE", ""},
	{"too many updates", func(x *errorsServer) error {
		return x.write(&v1.WriteRelationshipsRequest{Updates: slices.Repeat(x.updates("document:plan#viewer@user:anne"), 1001)})
	}, codes.InvalidArgument, "TOO_MANY_UPDATES_IN_REQUEST", "maximum_updates_allowed=1000, update_count=1001"},
	{"too many preconditions", func(x *errorsServer) error {
		return x.write(&v1.WriteRelationshipsRequest{OptionalPreconditions: slices.Repeat([]*v1.Precondition{{Operation: v1.Precondition_OPERATION_MUST_MATCH, Filter: owners}}, 1001)})
	}, codes.InvalidArgument, "TOO_MANY_PRECONDITIONS_IN_REQUEST", "maximum_updates_allowed=1000, precondition_count=1001"},
	{"too many checks", func(x *errorsServer) error {
		q := parseQuestion(x.t, "document:plan#view@user:anne")
		item := &v1.CheckBulkPermissionsRequestItem{Resource: q.GetResource(), Permission: q.GetPermission(), Subject: q.GetSubject()}
		_, err := x.permissions.CheckBulkPermissions(testContext(x.t), &v1.CheckBulkPermissionsRequest{Items: slices.Repeat([]*v1.CheckBulkPermissionsRequestItem{item}, 10_001)})
		return err
	}, codes.InvalidArgument, "UNSPECIFIED", "check_count=10001, maximum_checks_allowed=10000"},
	{"a lookup with too large a limit", func(x *errorsServer) error {
		return x.resources(&v1.LookupResourcesRequest{ResourceObjectType: "document", Permission: "view", Subject: subjectOf("user", "anne", ""), OptionalLimit: 1001})
	}, codes.InvalidArgument, "EXCEEDS_MAXIMUM_ALLOWABLE_LIMIT", "limit_provided=1001, maximum_limit_allowed=1000"},
	{"a read with too large a limit", func(x *errorsServer) error {
		return x.read(&v1.ReadRelationshipsRequest{RelationshipFilter: owners, OptionalLimit: 1001})
	}, codes.InvalidArgument, "EXCEEDS_MAXIMUM_ALLOWABLE_LIMIT", "limit_provided=1001, maximum_limit_allowed=1000"},
	{"a delete with too large a limit", func(x *errorsServer) error {
		return x.remove(&v1.DeleteRelationshipsRequest{RelationshipFilter: owners, OptionalLimit: 1001})
	}, codes.InvalidArgument, "EXCEEDS_MAXIMUM_ALLOWABLE_LIMIT", "limit_provided=1001, maximum_limit_allowed=1000"},
	{"an export with too large a page", func(x *errorsServer) error {
		return x.export(&v1.ExportBulkRelationshipsRequest{OptionalLimit: 10_001})
	}, codes.InvalidArgument, "EXCEEDS_MAXIMUM_ALLOWABLE_LIMIT", "limit_provided=10001, maximum_limit_allowed=10000"},

	{"a precondition of a write that fails", func(x *errorsServer) error {
		return x.write(&v1.WriteRelationshipsRequest{OptionalPreconditions: []*v1.Precondition{{Operation: v1.Precondition_OPERATION_MUST_NOT_MATCH, Filter: owners}}})
	}, codes.FailedPrecondition, "WRITE_OR_DELETE_PRECONDITION_FAILURE", "precondition_operation=OPERATION_MUST_NOT_MATCH, precondition_relation=owner, precondition_resource_type=document"},
	{"a precondition of a delete that fails", func(x *errorsServer) error {
		return x.remove(&v1.DeleteRelationshipsRequest{RelationshipFilter: owners, OptionalPreconditions: []*v1.Precondition{{Operation: v1.Precondition_OPERATION_MUST_NOT_MATCH, Filter: owners}}})
	}, codes.FailedPrecondition, "WRITE_OR_DELETE_PRECONDITION_FAILURE", "precondition_operation=OPERATION_MUST_NOT_MATCH, precondition_relation=owner, precondition_resource_type=document"},
	{"an empty precondition", func(x *errorsServer) error {
		return x.write(&v1.WriteRelationshipsRequest{OptionalPreconditions: []*v1.Precondition{{Operation: v1.Precondition_OPERATION_MUST_MATCH, Filter: &v1.RelationshipFilter{}}}})
	}, codes.InvalidArgument, "UNSPECIFIED", ""},
	{"an empty filter", func(x *errorsServer) error {
		return x.read(&v1.ReadRelationshipsRequest{RelationshipFilter: &v1.RelationshipFilter{}})
	}, codes.InvalidArgument, "INVALID_FILTER", "filter="},
	{"an id and a prefix of one", func(x *errorsServer) error {
		return x.remove(&v1.DeleteRelationshipsRequest{RelationshipFilter: &v1.RelationshipFilter{OptionalResourceId: "plan", OptionalResourceIdPrefix: "p"}})
	}, codes.InvalidArgument, "INVALID_FILTER", `filter=optional_resource_id:"plan" optional_resource_id_prefix:"p"`},
	{"a delete of more than its limit", func(x *errorsServer) error {
		return x.remove(&v1.DeleteRelationshipsRequest{RelationshipFilter: owners, OptionalLimit: 1})
	}, codes.InvalidArgument, "TOO_MANY_RELATIONSHIPS_FOR_TRANSACTIONAL_DELETE", "filter_relation=owner, filter_resource_type=document, limit=1"},
	{"a delete with a cursor", func(x *errorsServer) error {
		return x.remove(&v1.DeleteRelationshipsRequest{RelationshipFilter: owners, OptionalCursor: garbled})
	}, codes.Unimplemented, "", ""},
	{"a check of a wildcard", func(x *errorsServer) error { return x.check("document:plan#view@user:*") }, codes.InvalidArgument, "WILDCARD_NOT_ALLOWED", "field=subject.object_id"},
	{"an item with a wildcard", func(x *errorsServer) error { return x.ofItem("document:plan#view@user:*") }, codes.InvalidArgument, "WILDCARD_NOT_ALLOWED", "field=subject.object_id"},
	{"resources of a wildcard", func(x *errorsServer) error {
		return x.resources(&v1.LookupResourcesRequest{ResourceObjectType: "document", Permission: "view", Subject: subjectOf("user", "*", "")})
	}, codes.InvalidArgument, "WILDCARD_NOT_ALLOWED", "field=subject_id"},

	{"subjects of a wildcard", func(x *errorsServer) error {
		return x.subjects(&v1.LookupSubjectsRequest{Resource: &v1.ObjectReference{ObjectType: "document", ObjectId: "*"}, Permission: "view", SubjectObjectType: "user"})
	}, codes.InvalidArgument, "WILDCARD_NOT_ALLOWED", "field=resource.object_id"},

	// There both are MAXIMUM_DEPTH_EXCEEDED; here a cycle is answered by its meaning,
	// and what bounds a question is its cost.
	{"a cycle of the data", func(x *errorsServer) error { return x.check("group:ring#member@user:anne") }, codes.OK, "", ""},
	{"a chain that costs less than a question may", func(x *errorsServer) error { return x.check("group:c800#member@user:anne") }, codes.OK, "", ""},
	{"a question that costs too much", func(x *errorsServer) error { return x.check("group:c0#member@user:anne") }, codes.FailedPrecondition, "pemba BUDGET_EXCEEDED", "budget_steps=2000"},

	{"a garbled cursor of a lookup", func(x *errorsServer) error {
		return x.resources(&v1.LookupResourcesRequest{ResourceObjectType: "document", Permission: "view", Subject: subjectOf("user", "anne", ""), OptionalCursor: garbled})
	}, codes.InvalidArgument, "INVALID_CURSOR", ""},
	{"a garbled cursor of a read", func(x *errorsServer) error {
		return x.read(&v1.ReadRelationshipsRequest{RelationshipFilter: owners, OptionalCursor: garbled})
	}, codes.InvalidArgument, "INVALID_CURSOR", ""},
	{"a cursor of another question", func(x *errorsServer) error {
		_, cursor, err := readAll(x.t, x.conn, &v1.ReadRelationshipsRequest{RelationshipFilter: owners, OptionalLimit: 1})
		if err != nil {
			return fmt.Errorf("the first page: %w", err)
		}
		return x.read(&v1.ReadRelationshipsRequest{RelationshipFilter: &v1.RelationshipFilter{ResourceType: "document"}, OptionalCursor: cursor})
	}, codes.InvalidArgument, "INVALID_CURSOR", ""},
	{"a cursor of another cluster", func(x *errorsServer) error {
		touch(x.t, x.foreign, "document:plan#owner@user:olga")
		_, cursor, err := readAll(x.t, x.foreign, &v1.ReadRelationshipsRequest{RelationshipFilter: owners, OptionalLimit: 1})
		if err != nil {
			return fmt.Errorf("the first page: %w", err)
		}
		return x.read(&v1.ReadRelationshipsRequest{RelationshipFilter: owners, OptionalCursor: cursor})
	}, codes.InvalidArgument, "INVALID_CURSOR", ""},
	{"a garbled token", func(x *errorsServer) error {
		return x.check("document:plan#view@user:anne", func(r *v1.CheckPermissionRequest) { r.Consistency = atLeast(&v1.ZedToken{Token: "garbled"}) })
	}, codes.InvalidArgument, "", ""},
	{"a token that is too old", func(x *errorsServer) error {
		return x.check("document:plan#view@user:anne", func(r *v1.CheckPermissionRequest) { r.Consistency = at(x.old) })
	}, codes.OutOfRange, "", ""},
	{"a token of a revision to come", func(x *errorsServer) error {
		return x.check("document:plan#view@user:anne", func(r *v1.CheckPermissionRequest) { r.Consistency = at(x.ahead()) })
	}, codes.OutOfRange, "", ""},
	{"a token of another cluster, at exactly", func(x *errorsServer) error {
		return x.check("document:plan#view@user:anne", func(r *v1.CheckPermissionRequest) { r.Consistency = at(writeSchema(x.t, x.foreign, errorsSchema)) })
	}, codes.InvalidArgument, "", ""},
	{"a token of another cluster, at least", func(x *errorsServer) error {
		return x.check("document:plan#view@user:anne", func(r *v1.CheckPermissionRequest) {
			r.Consistency = atLeast(writeSchema(x.t, x.foreign, errorsSchema))
		})
	}, codes.OK, "", ""},
	{"a watch from a token of another cluster", func(x *errorsServer) error { return x.watch(writeSchema(x.t, x.foreign, errorsSchema)) }, codes.InvalidArgument, "", ""},
	{"a watch from a token that is too old", func(x *errorsServer) error { return x.watch(x.old) }, codes.OutOfRange, "", ""},
	{"a watch of types and filters", func(x *errorsServer) error {
		_, err := watch(x.t, testContext(x.t), x.conn, &v1.WatchRequest{
			OptionalObjectTypes: []string{"document"}, OptionalRelationshipFilters: []*v1.RelationshipFilter{owners},
		}).Recv()
		return err
	}, codes.InvalidArgument, "", ""},

	{"an import that a schema overtakes", (*errorsServer).overtaken, codes.Aborted, "SERIALIZATION_FAILURE", ""},
	{"a counter that is there", func(x *errorsServer) error { return newCounters(x.t, x.conn).register("owners", owners) }, codes.FailedPrecondition, "COUNTER_ALREADY_REGISTERED", "counter_name=owners, new_filter_relation=owner, new_filter_resource_type=document"},
	{"a count of a counter that is not there", func(x *errorsServer) error {
		_, err := newCounters(x.t, x.conn).count("nobodys")
		return err
	}, codes.FailedPrecondition, "COUNTER_NOT_REGISTERED", "counter_name=nobodys"},
	{"a removal of a counter that is not there", func(x *errorsServer) error { return newCounters(x.t, x.conn).unregister("nobodys") }, codes.FailedPrecondition, "COUNTER_NOT_REGISTERED", "counter_name=nobodys"},
	// There it is Unimplemented.
	{"subjects with a limit", func(x *errorsServer) error {
		return x.subjects(&v1.LookupSubjectsRequest{
			Resource: &v1.ObjectReference{ObjectType: "document", ObjectId: "plan"}, Permission: "owner", SubjectObjectType: "user", OptionalConcreteLimit: 1,
		})
	}, codes.OK, "", ""},
	{"a call that its client gives up", func(x *errorsServer) error {
		ctx, cancel := context.WithCancel(testContext(x.t))
		cancel()
		_, err := x.schemas.ReadSchema(ctx, &v1.ReadSchemaRequest{})
		return err
	}, codes.Canceled, "", ""},
}

// neverGiven are the reasons of the API that no request can bring about, and why.
var neverGiven = map[v1.ErrorReason]string{
	v1.ErrorReason_ERROR_REASON_UNKNOWN_CAVEAT:                       "a write with a caveat that is not there is one of a subject that is not allowed, as there",
	v1.ErrorReason_ERROR_REASON_MAXIMUM_DEPTH_EXCEEDED:               "there is no depth at which a question is refused",
	v1.ErrorReason_ERROR_REASON_SERVICE_READ_ONLY:                    "there is no read-only mode",
	v1.ErrorReason_ERROR_REASON_EMPTY_PRECONDITION:                   "it is UNSPECIFIED there too",
	v1.ErrorReason_ERROR_REASON_TOO_MANY_CHECKS_IN_REQUEST:           "it is UNSPECIFIED there too",
	v1.ErrorReason_ERROR_REASON_INMEMORY_TOO_MANY_CONCURRENT_UPDATES: "writes at once wait for each other",
	v1.ErrorReason_ERROR_REASON_DATASTORE_NOT_MIGRATED:               "there is no datastore beside the server",
}

// TestErrorTable drives the situations in which a call of the API fails, each to its
// code, reason and metadata. What no request can bring about says neverGiven. That a
// stream ends whose client does not read is for TestWatchEnds to say.
func TestErrorTable(t *testing.T) {
	t.Parallel() // It waits for a past to be over.
	x := newErrorsServer(t)
	given := map[string]bool{}
	for _, row := range errorRows {
		t.Run(row.situation, func(t *testing.T) {
			x.t = t
			err := row.call(x)
			st, ok := status.FromError(err)
			if !ok {
				t.Fatalf("%v is no status", err)
			}
			if st.Code() == codes.Unknown || st.Code() == codes.Internal {
				t.Errorf("the code is %v: %v", st.Code(), err)
			}
			if st.Code() != row.code {
				t.Errorf("the code is %v, want %v: %v", st.Code(), row.code, err)
			}
			reason, metadata := "", ""
			for _, d := range st.Details() {
				if info, ok := d.(*errdetails.ErrorInfo); ok {
					if reason != "" {
						t.Errorf("there is a second ErrorInfo, %v", info)
					}
					reason, ok = strings.CutPrefix(info.GetReason(), "ERROR_REASON_")
					if !ok || info.GetDomain() != errorDomain {
						reason = info.GetDomain() + " " + info.GetReason()
					}
					given[reason] = true
					var pairs []string
					for _, key := range slices.Sorted(maps.Keys(info.GetMetadata())) {
						// What protobuf writes of a filter has one blank or two between fields.
						pairs = append(pairs, key+"="+strings.ReplaceAll(info.GetMetadata()[key], "  ", " "))
					}
					metadata = strings.Join(pairs, ", ")
				}
			}
			if reason != row.reason {
				t.Errorf("the reason is %q, want %q: %v", reason, row.reason, err)
			}
			if metadata != row.metadata {
				t.Errorf("the metadata is %q, want %q", metadata, row.metadata)
			}
		})
	}
	x.t = t
	for number, name := range v1.ErrorReason_name {
		reason := strings.TrimPrefix(name, "ERROR_REASON_")
		if why := neverGiven[v1.ErrorReason(number)]; (why == "") != given[reason] {
			t.Errorf("%s is given: %v; why not: %q", name, given[reason], why)
		}
	}
}
