package authzed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/graph"
)

// importBulk sends each list as one message of an import.
func importBulk(t testing.TB, conn *grpc.ClientConn, messages ...[]string) (uint64, error) {
	t.Helper()
	stream, err := v1.NewPermissionsServiceClient(conn).ImportBulkRelationships(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, texts := range messages {
		r := &v1.ImportBulkRelationshipsRequest{}
		for _, text := range texts {
			r.Relationships = append(r.Relationships, parseRelationship(t, text))
		}
		if err := stream.Send(r); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	}
	response, err := stream.CloseAndRecv()
	return response.GetNumLoaded(), err
}

// TestImportLargeMessage: a message may be larger than what the node stages at once.
func TestImportLargeMessage(t *testing.T) {
	conn := newServer(t)
	writeSchema(t, conn, "caveat noted(note string) { note != \"\" }\ndefinition user {}\ndefinition document { relation viewer: user with noted }")
	var message []string
	for i := range 1000 {
		message = append(message, fmt.Sprintf(`document:d%04d#viewer@user:anne[noted:{"note":"%s"}]`, i, strings.Repeat(`\u0001`, 1100)))
	}
	if n, err := importBulk(t, conn, message); n != 1000 || err != nil {
		t.Fatalf("imported %d, %v", n, err)
	}
}

func TestImportBulkRelationships(t *testing.T) {
	// Messages larger than a chunk of the node are staged as several.
	conn, _ := newServerWith(t, api.Config{Limits: api.Limits{ImportTuples: 2}})
	_, err := importBulk(t, conn, []string{"document:a#viewer@user:anne"})
	wantRefusal(t, err, codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_DEFINITION")
	writeSchema(t, conn, documents)
	if n, err := importBulk(t, conn); n != 0 || err != nil {
		t.Fatalf("an import of nothing: %d, %v", n, err)
	}
	first := []string{
		"document:a#viewer@user:anne", "document:a#viewer@user:bob", `document:a#viewer@user:carl[soon:{"limit":3}]`,
		"document:a#viewer@user:dora[expiration:2999-01-01T00:00:00Z]", "document:a#viewer@user:*",
	}
	second := []string{"group:eng#member@user:anne"}
	if n, err := importBulk(t, conn, first, nil, second); n != 6 || err != nil {
		t.Fatalf("imported %d, %v", n, err)
	}
	stored := append(slices.Clone(first), second...)
	wantAll(t, conn, stored...)

	for name, c := range map[string]struct {
		messages [][]string
		code     codes.Code
		reason   string
	}{
		"exists":             {[][]string{{"document:new#viewer@user:anne"}, {"document:a#viewer@user:bob"}}, codes.AlreadyExists, "ERROR_REASON_ATTEMPT_TO_RECREATE_RELATIONSHIP"},
		"exists with caveat": {[][]string{{"document:a#viewer@user:bob[soon]"}}, codes.AlreadyExists, "ERROR_REASON_ATTEMPT_TO_RECREATE_RELATIONSHIP"},
		"twice in a message": {[][]string{{"document:b#viewer@user:bob", "document:b#viewer@user:bob[soon]"}}, codes.AlreadyExists, "ERROR_REASON_ATTEMPT_TO_RECREATE_RELATIONSHIP"},
		"twice":              {[][]string{{"document:b#viewer@user:bob"}, {"document:b#viewer@user:bob"}}, codes.AlreadyExists, "ERROR_REASON_ATTEMPT_TO_RECREATE_RELATIONSHIP"},
		"permission":         {[][]string{{"document:b#view@user:bob"}}, codes.InvalidArgument, "ERROR_REASON_CANNOT_UPDATE_PERMISSION"},
		"subject":            {[][]string{{"document:b#viewer@user:bob"}, {"document:b#owner@group:eng"}}, codes.InvalidArgument, "ERROR_REASON_INVALID_SUBJECT_TYPE"},
		"unknown caveat":     {[][]string{{"document:b#viewer@user:bob", "document:b#viewer@user:x", "document:b#viewer@user:y[never]"}}, codes.InvalidArgument, "ERROR_REASON_INVALID_SUBJECT_TYPE"},
		"unknown type":       {[][]string{{"folder:b#viewer@user:bob"}}, codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_DEFINITION"},
		"form":               {[][]string{{"document:b.c#viewer@user:bob"}}, codes.InvalidArgument, ""},
		"context":            {[][]string{{`document:b#viewer@user:bob[soon:{"limit":"x"}]`}}, codes.InvalidArgument, "ERROR_REASON_CAVEAT_PARAMETER_TYPE_ERROR"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := importBulk(t, conn, c.messages...)
			metadata := wantRefusal(t, err, c.code, c.reason)
			if c.code == codes.AlreadyExists && (metadata["resource_type"] != "document" || metadata["subject_object_id"] != "bob") {
				t.Errorf("metadata is %v", metadata)
			}
		})
	}
	wantAll(t, conn, stored...)

	// An error that names a place counts messages, and in them relationships also
	// beyond a chunk of the node.
	plain := func(id string) *v1.Relationship { return parseRelationship(t, "document:"+id+"#viewer@user:place") }
	form, star, large, past := plain("p1"), plain("p2"), plain("p3"), plain("p4")
	form.Resource.ObjectId, star.Resource.ObjectId = "b.c", "*"
	large.OptionalCaveat = &v1.ContextualizedCaveat{CaveatName: "soon", Context: nested(t, graph.MaxContextDepth+1)}
	past.OptionalExpiresAt = &timestamppb.Timestamp{Seconds: -1}
	for want, wrong := range map[string]*v1.Relationship{
		"messages[1]: invalid ": form, "messages[1].relationships[3]: invalid ": star,
		"messages[1].relationships[3].optional_caveat.context": large, "messages[1].relationships[3].optional_expires_at: ": past,
	} {
		stream, err := v1.NewPermissionsServiceClient(conn).ImportBulkRelationships(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, message := range [][]*v1.Relationship{{plain("q1")}, {plain("q2"), plain("q3"), plain("q4"), wrong}} {
			if err := stream.Send(&v1.ImportBulkRelationshipsRequest{Relationships: message}); err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
		}
		_, err = stream.CloseAndRecv()
		if st := status.Convert(err); st.Code() != codes.InvalidArgument || !strings.Contains(st.Message(), want) {
			t.Errorf("got %v, want InvalidArgument of %s", err, want)
		}
	}
	wantAll(t, conn, stored...)
}

// nested is an object of so many levels.
func nested(t testing.TB, levels int) *structpb.Struct {
	t.Helper()
	s := &structpb.Struct{}
	for range levels {
		s = &structpb.Struct{Fields: map[string]*structpb.Value{"in": structpb.NewStructValue(s)}}
	}
	return s
}

// TestImportCutOff: of an import that its client gives up nothing stays.
func TestImportCutOff(t *testing.T) {
	conn := newServer(t)
	writeSchema(t, conn, documents)
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	stream, err := v1.NewPermissionsServiceClient(conn).ImportBulkRelationships(ctx)
	if err != nil {
		t.Fatal(err)
	}
	one := parseRelationship(t, "document:a#viewer@user:anne")
	if err := stream.Send(&v1.ImportBulkRelationshipsRequest{Relationships: []*v1.Relationship{one}}); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := stream.CloseAndRecv(); err == nil {
		t.Fatal("an import that was given up ended well")
	}
	wantAll(t, conn)
	if n, err := importBulk(t, conn, []string{"document:a#viewer@user:anne"}); n != 1 || err != nil {
		t.Fatalf("imported again: %d, %v", n, err)
	}
}

// exportBulk returns an export page by page, with the cursor behind each page.
func exportBulk(t testing.TB, conn *grpc.ClientConn, r *v1.ExportBulkRelationshipsRequest) (pages [][]string, cursors []*v1.Cursor, err error) {
	t.Helper()
	stream, err := v1.NewPermissionsServiceClient(conn).ExportBulkRelationships(testContext(t), r)
	if err != nil {
		t.Fatal(err)
	}
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return pages, cursors, nil
		}
		if err != nil {
			return nil, nil, err
		}
		pages = append(pages, texts(t, response.GetRelationships()))
		cursors = append(cursors, response.GetAfterResultCursor())
	}
}

func TestExportBulkRelationships(t *testing.T) {
	conn := newServer(t)
	if pages, _, err := exportBulk(t, conn, &v1.ExportBulkRelationshipsRequest{}); len(pages) != 0 || err != nil {
		t.Fatalf("without a schema: %v, %v", pages, err)
	}
	writeSchema(t, conn, documents)
	// Types, and the ids of a type, are written in the wrong order.
	touch(t, conn, "group:g#member@user:anne")
	for _, id := range []string{"c", "b", "a"} {
		touch(t, conn, "document:"+id+"#viewer@user:anne", "document:"+id+"#owner@user:anne", "document:"+id+"#viewer@group:g#member")
	}
	touch(t, conn, "document:b#viewer@user:late[expiration:2001-01-01T00:00:00Z]")
	keys := func(texts []string) (keys []string) {
		for _, text := range texts {
			keys = append(keys, strings.Split(text, "@")[0])
		}
		return keys
	}
	want := []string{
		"document:a#owner", "document:a#viewer", "document:a#viewer", "document:b#owner", "document:b#viewer", "document:b#viewer",
		"document:c#owner", "document:c#viewer", "document:c#viewer", "group:g#member",
	}
	for _, limit := range []uint32{0, 1, 3, 4, 10_000} {
		pages, cursors, err := exportBulk(t, conn, &v1.ExportBulkRelationshipsRequest{Consistency: fullyConsistent, OptionalLimit: limit})
		if err != nil {
			t.Fatal(err)
		}
		if got := keys(slices.Concat(pages...)); !slices.Equal(got, want) {
			t.Errorf("limit %d: got %q, want %q", limit, got, want)
		}
		before := 0
		for i, page := range pages {
			if limit != 0 && i < len(pages)-1 && len(page) != int(limit) {
				t.Errorf("limit %d: page %d has %d", limit, i, len(page))
			}
			before += len(page)
			// Each cursor goes on behind its page.
			rest, _, err := exportBulk(t, conn, &v1.ExportBulkRelationshipsRequest{OptionalLimit: limit, OptionalCursor: cursors[i]})
			if err != nil {
				t.Fatal(err)
			}
			if got := keys(slices.Concat(rest...)); !slices.Equal(got, want[before:]) {
				t.Errorf("limit %d: behind page %d come %q, want %q", limit, i, got, want[before:])
			}
		}
	}

	_, cursors, err := exportBulk(t, conn, &v1.ExportBulkRelationshipsRequest{Consistency: fullyConsistent, OptionalLimit: 5})
	if err != nil {
		t.Fatal(err)
	}
	// A cursor stays at its state.
	touch(t, conn, "document:z#viewer@user:anne")
	if rest, _, err := exportBulk(t, conn, &v1.ExportBulkRelationshipsRequest{Consistency: fullyConsistent, OptionalCursor: cursors[0]}); err != nil || len(slices.Concat(rest...)) != 5 {
		t.Errorf("behind the cursor come %v, %v", rest, err)
	}
	filtered, _, err := exportBulk(t, conn, &v1.ExportBulkRelationshipsRequest{
		Consistency: fullyConsistent, OptionalRelationshipFilter: &v1.RelationshipFilter{OptionalSubjectFilter: subjectFilter("group", "", nil)},
	})
	if got, want := keys(slices.Concat(filtered...)), []string{"document:a#viewer", "document:b#viewer", "document:c#viewer"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("filtered: %q, %v", got, err)
	}
	for name, c := range map[string]struct {
		request *v1.ExportBulkRelationshipsRequest
		code    codes.Code
		reason  string
	}{
		"limit":        {&v1.ExportBulkRelationshipsRequest{OptionalLimit: 10_001}, codes.InvalidArgument, "ERROR_REASON_EXCEEDS_MAXIMUM_ALLOWABLE_LIMIT"},
		"cursor":       {&v1.ExportBulkRelationshipsRequest{OptionalCursor: &v1.Cursor{Token: "garbage"}}, codes.InvalidArgument, "ERROR_REASON_INVALID_CURSOR"},
		"empty filter": {&v1.ExportBulkRelationshipsRequest{OptionalRelationshipFilter: &v1.RelationshipFilter{}}, codes.InvalidArgument, "ERROR_REASON_INVALID_FILTER"},
		"unknown type": {&v1.ExportBulkRelationshipsRequest{OptionalRelationshipFilter: &v1.RelationshipFilter{ResourceType: "folder"}}, codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_DEFINITION"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := exportBulk(t, conn, c.request)
			wantRefusal(t, err, c.code, c.reason)
		})
	}
}

// TestImportExport: what is imported comes out again, whole, in pages that clients
// can take.
func TestImportExport(t *testing.T) {
	conn := newServer(t)
	writeSchema(t, conn, documents)
	var messages [][]string
	for m := range 5 {
		var texts []string
		for i := range 1000 {
			texts = append(texts, fmt.Sprintf("document:d%04d#viewer@user:u%d", 4999-(m*1000+i), i%7))
		}
		messages = append(messages, texts)
	}
	if n, err := importBulk(t, conn, messages...); n != 5000 || err != nil {
		t.Fatalf("imported %d, %v", n, err)
	}
	pages, _, err := exportBulk(t, conn, &v1.ExportBulkRelationshipsRequest{Consistency: fullyConsistent, OptionalLimit: 10_000})
	if err != nil {
		t.Fatal(err)
	}
	got := slices.Concat(pages...)
	if !slices.IsSorted(got) {
		t.Error("the export is not sorted")
	}
	want := slices.Concat(messages...)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("exported are %d, which are not the %d imported", len(got), len(want))
	}
}

// TestOlderNames: the calls of ExperimentalService do what those they were replaced
// by do.
func TestOlderNames(t *testing.T) {
	conn := newServer(t)
	writeSchema(t, conn, documents)
	client := v1.NewExperimentalServiceClient(conn)
	imports, err := client.BulkImportRelationships(testContext(t)) //nolint:staticcheck // The deprecated names are what is tested.
	if err != nil {
		t.Fatal(err)
	}
	relationship := parseRelationship(t, `document:a#viewer@user:anne[soon]`)
	if err := imports.Send(&v1.BulkImportRelationshipsRequest{Relationships: []*v1.Relationship{relationship}}); err != nil {
		t.Fatal(err)
	}
	if r, err := imports.CloseAndRecv(); err != nil || r.GetNumLoaded() != 1 {
		t.Fatalf("imported %v, %v", r, err)
	}
	exports, err := client.BulkExportRelationships(testContext(t), &v1.BulkExportRelationshipsRequest{Consistency: fullyConsistent}) //nolint:staticcheck // The deprecated names are what is tested.
	if err != nil {
		t.Fatal(err)
	}
	page, err := exports.Recv()
	if err != nil || len(page.GetRelationships()) != 1 || !proto.Equal(page.GetRelationships()[0], relationship) || page.GetAfterResultCursor().GetToken() == "" {
		t.Fatalf("exported %v, %v", page, err)
	}
	if _, err := exports.Recv(); !errors.Is(err, io.EOF) {
		t.Fatalf("behind the last page comes %v", err)
	}
	item := func(id string) *v1.BulkCheckPermissionRequestItem {
		return &v1.BulkCheckPermissionRequestItem{
			Resource: &v1.ObjectReference{ObjectType: "document", ObjectId: "a"}, Permission: "view",
			Subject: &v1.SubjectReference{Object: &v1.ObjectReference{ObjectType: "user", ObjectId: id}},
		}
	}
	unknown := item("anne")
	unknown.Permission = "edit"
	question := &v1.BulkCheckPermissionRequest{Consistency: fullyConsistent}
	question.Items = []*v1.BulkCheckPermissionRequestItem{item("bob"), unknown, item("anne")} //nolint:staticcheck // The deprecated names are what is tested.
	checks, err := client.BulkCheckPermission(testContext(t), question)                       //nolint:staticcheck // The deprecated names are what is tested.
	if err != nil {
		t.Fatal(err)
	}
	pairs := checks.GetPairs()
	if len(pairs) != 3 || checks.GetCheckedAt().GetToken() == "" || pairs[0].GetRequest().GetSubject().GetObject().GetObjectId() != "bob" ||
		pairs[0].GetItem().GetPermissionship() != v1.CheckPermissionResponse_PERMISSIONSHIP_NO_PERMISSION ||
		pairs[1].GetError().GetCode() != int32(codes.FailedPrecondition) ||
		pairs[2].GetItem().GetPermissionship() != v1.CheckPermissionResponse_PERMISSIONSHIP_CONDITIONAL_PERMISSION ||
		!slices.Equal(pairs[2].GetItem().GetPartialCaveatInfo().GetMissingRequiredContext(), []string{"limit"}) {
		t.Errorf("got %v", checks)
	}
}
