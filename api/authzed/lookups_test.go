package authzed

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

const lookupSchema = `
caveat is_office(office string) { office == "yes" }

definition user {}

definition group {
	relation member: user
}

definition document {
	relation viewer: user | user:* | user with is_office | group#member
	relation banned: user | user with is_office
	permission view = viewer - banned
}
`

// resources runs a LookupResources to its end. A result is its id, with the
// missing fields behind a question mark when it is conditional.
func resources(t testing.TB, conn *grpc.ClientConn, r *v1.LookupResourcesRequest) (found []string, last *v1.LookupResourcesResponse, err error) {
	t.Helper()
	stream, err := v1.NewPermissionsServiceClient(conn).LookupResources(testContext(t), r)
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return found, last, nil
		}
		if err != nil {
			return found, last, err
		}
		if m.GetAfterResultCursor().GetToken() == "" || m.GetLookedUpAt().GetToken() == "" {
			t.Errorf("%v has no cursor or no token", m)
		}
		found = append(found, m.GetResourceObjectId()+permissionshipString(m.GetPermissionship(), m.GetPartialCaveatInfo()))
		last = m
	}
}

func permissionshipString(p v1.LookupPermissionship, info *v1.PartialCaveatInfo) string {
	switch p {
	case v1.LookupPermissionship_LOOKUP_PERMISSIONSHIP_HAS_PERMISSION:
		return ""
	case v1.LookupPermissionship_LOOKUP_PERMISSIONSHIP_CONDITIONAL_PERMISSION:
		return "?" + strings.Join(info.GetMissingRequiredContext(), ",")
	}
	return "!" + p.String()
}

// subjects is the same for LookupSubjects; behind a wildcard stands who it
// excludes. It fails when the deprecated fields do not say the same.
func subjects(t testing.TB, conn *grpc.ClientConn, r *v1.LookupSubjectsRequest) (found []string, last *v1.LookupSubjectsResponse, err error) {
	t.Helper()
	stream, err := v1.NewPermissionsServiceClient(conn).LookupSubjects(testContext(t), r)
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return found, last, nil
		}
		if err != nil {
			return found, last, err
		}
		text := m.GetSubject().GetSubjectObjectId() + permissionshipString(m.GetSubject().GetPermissionship(), m.GetSubject().GetPartialCaveatInfo())
		var excluded []string
		for _, e := range m.GetExcludedSubjects() {
			text += "-" + e.GetSubjectObjectId() + permissionshipString(e.GetPermissionship(), e.GetPartialCaveatInfo())
			excluded = append(excluded, e.GetSubjectObjectId())
		}
		//nolint:staticcheck // The deprecated fields are asked about.
		if m.GetSubjectObjectId() != m.GetSubject().GetSubjectObjectId() || m.GetPermissionship() != m.GetSubject().GetPermissionship() ||
			!proto.Equal(m.GetPartialCaveatInfo(), m.GetSubject().GetPartialCaveatInfo()) || !slices.Equal(m.GetExcludedSubjectIds(), excluded) {
			t.Errorf("the deprecated fields of %v say something else", m)
		}
		if m.GetAfterResultCursor().GetToken() == "" || m.GetLookedUpAt().GetToken() == "" {
			t.Errorf("%v has no cursor or no token", m)
		}
		found = append(found, text)
		last = m
	}
}

func officeContext(t testing.TB, office any) *structpb.Struct {
	t.Helper()
	c, err := structpb.NewStruct(map[string]any{"office": office})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestLookupResources: what is found, each once, in full pages, with contexts, on
// relations too, and at the state of the first page.
func TestLookupResources(t *testing.T) {
	conn := newServer(t)
	writeSchema(t, conn, lookupSchema)
	touch(t, conn, "document:d1#viewer@user:anne", "document:d2#viewer@group:eng#member", "group:eng#member@user:anne",
		"document:d2#viewer@user:anne", "document:d3#viewer@user:anne[is_office]", "document:d4#viewer@user:*",
		"document:d5#viewer@user:anne", "document:d5#banned@user:anne", "document:d6#viewer@user:bob")
	anne := &v1.SubjectReference{Object: &v1.ObjectReference{ObjectType: "user", ObjectId: "anne"}}
	request := func() *v1.LookupResourcesRequest {
		return &v1.LookupResourcesRequest{Consistency: fullyConsistent, ResourceObjectType: "document", Permission: "view", Subject: anne}
	}
	sorted := func(r *v1.LookupResourcesRequest) string {
		t.Helper()
		found, _, err := resources(t, conn, r)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(found)
		return strings.Join(found, " ")
	}
	expect := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: got %q, want %q", what, got, want)
		}
	}
	expect("all", sorted(request()), "d1 d2 d3?office d4")
	r := request()
	r.Context = officeContext(t, "yes")
	expect("with the context", sorted(r), "d1 d2 d3 d4")
	r.Context = officeContext(t, "no")
	expect("with another context", sorted(r), "d1 d2 d4")
	r = request()
	r.Permission = "viewer"
	expect("of a relation", sorted(r), "d1 d2 d3?office d4 d5")
	r.Subject = &v1.SubjectReference{Object: &v1.ObjectReference{ObjectType: "group", ObjectId: "eng"}, OptionalRelation: "member"}
	expect("of a userset", sorted(r), "d2")
	r.ResourceObjectType, r.Permission = "group", "member"
	expect("a userset of itself", sorted(r), "eng")

	// What is written between two pages is not on the second.
	r = request()
	r.OptionalLimit = 2
	var paged []string
	var cursor *v1.Cursor
	for {
		found, last, err := resources(t, conn, r)
		if err != nil {
			t.Fatal(err)
		}
		paged = append(paged, found...)
		if len(found) < 2 {
			break
		}
		if cursor == nil {
			touch(t, conn, "document:d7#viewer@user:anne")
		}
		cursor = last.GetAfterResultCursor()
		r.OptionalCursor = cursor
	}
	slices.Sort(paged)
	expect("in pages", strings.Join(paged, " "), "d1 d2 d3?office d4")

	for name, c := range map[string]struct {
		change func(r *v1.LookupResourcesRequest)
		code   codes.Code
		reason string
	}{
		"a cursor of another context":    {func(r *v1.LookupResourcesRequest) { r.OptionalCursor, r.Context = cursor, officeContext(t, "yes") }, codes.InvalidArgument, "ERROR_REASON_INVALID_CURSOR"},
		"a cursor of another permission": {func(r *v1.LookupResourcesRequest) { r.OptionalCursor, r.Permission = cursor, "viewer" }, codes.InvalidArgument, "ERROR_REASON_INVALID_CURSOR"},
		"a garbled cursor": {
			func(r *v1.LookupResourcesRequest) { r.OptionalCursor = &v1.Cursor{Token: "bm9uc2Vuc2U="} }, codes.InvalidArgument, "ERROR_REASON_INVALID_CURSOR",
		},
		"too large a limit":    {func(r *v1.LookupResourcesRequest) { r.OptionalLimit = 1001 }, codes.InvalidArgument, "ERROR_REASON_EXCEEDS_MAXIMUM_ALLOWABLE_LIMIT"},
		"a wildcard":           {func(r *v1.LookupResourcesRequest) { r.Subject = subjectOf("user", "*", "") }, codes.InvalidArgument, "ERROR_REASON_WILDCARD_NOT_ALLOWED"},
		"a wildcard's members": {func(r *v1.LookupResourcesRequest) { r.Subject = subjectOf("group", "*", "member") }, codes.InvalidArgument, ""},
		"an unknown type":      {func(r *v1.LookupResourcesRequest) { r.ResourceObjectType = "folder" }, codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_DEFINITION"},
		"an unknown name":      {func(r *v1.LookupResourcesRequest) { r.Permission = "edit" }, codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_RELATION_OR_PERMISSION"},
		"a malformed type":     {func(r *v1.LookupResourcesRequest) { r.ResourceObjectType = "Document" }, codes.InvalidArgument, ""},
		"no subject":           {func(r *v1.LookupResourcesRequest) { r.Subject = nil }, codes.InvalidArgument, ""},
		"a context of a wrong type": {
			func(r *v1.LookupResourcesRequest) { r.Context = officeContext(t, 7) }, codes.InvalidArgument, "ERROR_REASON_CAVEAT_PARAMETER_TYPE_ERROR",
		},
		"too large a context": {
			func(r *v1.LookupResourcesRequest) { r.Context = officeContext(t, strings.Repeat("x", 5000)) }, codes.InvalidArgument, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := request()
			c.change(r)
			_, _, err := resources(t, conn, r)
			wantRefusal(t, err, c.code, c.reason)
		})
	}
}

func subjectOf(typ, id, relation string) *v1.SubjectReference {
	return &v1.SubjectReference{Object: &v1.ObjectReference{ObjectType: typ, ObjectId: id}, OptionalRelation: relation}
}

// TestLookupSubjects: concrete subjects, the wildcard with those it excludes,
// usersets, and what the API promises of limits, cursors and the wildcard's option.
func TestLookupSubjects(t *testing.T) {
	conn := newServer(t)
	writeSchema(t, conn, lookupSchema)
	touch(t, conn, "document:d1#viewer@user:*", "document:d1#viewer@user:anne", "document:d1#viewer@user:bob[is_office]",
		"document:d1#viewer@group:eng#member", "group:eng#member@user:carl", "group:eng#member@user:anne",
		"document:d1#banned@user:dora", "document:d1#banned@user:emil[is_office]")
	request := func() *v1.LookupSubjectsRequest {
		return &v1.LookupSubjectsRequest{
			Consistency: fullyConsistent, Resource: &v1.ObjectReference{ObjectType: "document", ObjectId: "d1"}, Permission: "view", SubjectObjectType: "user",
		}
	}
	expect := func(what string, r *v1.LookupSubjectsRequest, want string) {
		t.Helper()
		found, _, err := subjects(t, conn, r)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(found)
		if got := strings.Join(found, " "); got != want {
			t.Errorf("%s: got %q, want %q", what, got, want)
		}
	}
	const all = "*-dora-emil?office anne bob carl"
	expect("all", request(), all)
	r := request()
	r.WildcardOption = v1.LookupSubjectsRequest_WILDCARD_OPTION_INCLUDE_WILDCARDS
	expect("with wildcards", r, all)
	r.WildcardOption = v1.LookupSubjectsRequest_WILDCARD_OPTION_EXCLUDE_WILDCARDS
	expect("without wildcards", r, "anne bob carl")
	r = request()
	r.Context = officeContext(t, "yes")
	expect("with the context", r, "*-dora-emil anne bob carl")
	r = request()
	r.Permission = "banned"
	expect("of a relation", r, "dora emil?office")
	r = request()
	r.SubjectObjectType, r.OptionalSubjectRelation, r.Permission = "group", "member", "viewer"
	expect("usersets", r, "eng")

	// The limit is one of concrete subjects: the wildcard comes besides.
	for _, option := range []v1.LookupSubjectsRequest_WildcardOption{0, 1, 2} {
		for limit := uint32(1); limit <= 4; limit++ {
			r := request()
			r.OptionalConcreteLimit, r.WildcardOption = limit, option
			var paged []string
			for pages := 0; ; pages++ {
				found, last, err := subjects(t, conn, r)
				if err != nil {
					t.Fatal(err)
				}
				paged = append(paged, found...)
				concrete := len(found)
				if len(found) > 0 && found[0][0] == '*' {
					concrete--
				}
				if concrete > int(limit) {
					t.Errorf("a page of %d has %v", limit, found)
				}
				if concrete < int(limit) {
					break
				}
				if pages == 0 {
					touch(t, conn, fmt.Sprintf("document:d1#viewer@user:late%d-%d", option, limit))
				}
				r.OptionalCursor = last.GetAfterResultCursor()
			}
			var late []string
			want := strings.Fields(all)
			if option == v1.LookupSubjectsRequest_WILDCARD_OPTION_EXCLUDE_WILDCARDS {
				want = want[1:]
			}
			paged = slices.DeleteFunc(paged, func(id string) bool {
				if strings.HasPrefix(id, "late") {
					late = append(late, id)
				}
				return strings.HasPrefix(id, "late")
			})
			slices.Sort(paged)
			if !slices.Equal(paged, want) {
				t.Errorf("option %v, pages of %d: got %v, want %v", option, limit, paged, want)
			}
			if slices.Contains(late, fmt.Sprintf("late%d-%d", option, limit)) {
				t.Errorf("option %v, pages of %d: a later page is of a later state", option, limit)
			}
		}
	}

	_, last, err := subjects(t, conn, request())
	if err != nil {
		t.Fatal(err)
	}
	cursor := last.GetAfterResultCursor()
	for name, c := range map[string]struct {
		change func(r *v1.LookupSubjectsRequest)
		code   codes.Code
		reason string
	}{
		"a cursor of another context": {func(r *v1.LookupSubjectsRequest) { r.OptionalCursor, r.Context = cursor, officeContext(t, "yes") }, codes.InvalidArgument, "ERROR_REASON_INVALID_CURSOR"},
		"a cursor of other subjects":  {func(r *v1.LookupSubjectsRequest) { r.OptionalCursor, r.SubjectObjectType = cursor, "group" }, codes.InvalidArgument, "ERROR_REASON_INVALID_CURSOR"},
		"an unknown subject type":     {func(r *v1.LookupSubjectsRequest) { r.SubjectObjectType = "robot" }, codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_DEFINITION"},
		"an unknown subject relation": {
			func(r *v1.LookupSubjectsRequest) { r.SubjectObjectType, r.OptionalSubjectRelation = "group", "owner" }, codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_RELATION_OR_PERMISSION",
		},
		"an unknown name": {func(r *v1.LookupSubjectsRequest) { r.Permission = "edit" }, codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_RELATION_OR_PERMISSION"},
		"no resource":     {func(r *v1.LookupSubjectsRequest) { r.Resource = nil }, codes.InvalidArgument, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := request()
			c.change(r)
			_, _, err := subjects(t, conn, r)
			wantRefusal(t, err, c.code, c.reason)
		})
	}
	// A cursor of the other lookup.
	_, found, err := resources(t, conn, &v1.LookupResourcesRequest{
		Consistency: fullyConsistent, ResourceObjectType: "document", Permission: "view", Subject: subjectOf("user", "anne", ""),
	})
	if err != nil {
		t.Fatal(err)
	}
	r = request()
	r.OptionalCursor = found.GetAfterResultCursor()
	_, _, err = subjects(t, conn, r)
	wantRefusal(t, err, codes.InvalidArgument, "ERROR_REASON_INVALID_CURSOR")
}
