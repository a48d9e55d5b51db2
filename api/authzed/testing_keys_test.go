package authzed

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"strings"
	"testing"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/pembadb/pemba/api"
)

// newTestingServer starts a node in memory and a server that takes every key, as
// the tests of an application do.
func newTestingServer(t testing.TB) *api.Server {
	t.Helper()
	_, s := newServerWith(t, api.Config{Node: newMemoryNode(t), Testing: true, Keys: []string{}, HTTPAddr: "127.0.0.1:0"})
	return s
}

func checkOf(document, permission, user string) *v1.CheckPermissionRequest {
	return &v1.CheckPermissionRequest{
		Consistency: fullyConsistent,
		Resource:    &v1.ObjectReference{ObjectType: "document", ObjectId: document},
		Permission:  permission,
		Subject:     &v1.SubjectReference{Object: &v1.ObjectReference{ObjectType: "user", ObjectId: user}},
	}
}

// relationshipsOf reads all documents of a connection's key.
func relationshipsOf(t testing.TB, conn *grpc.ClientConn) []string {
	t.Helper()
	stream, err := v1.NewPermissionsServiceClient(conn).ReadRelationships(testContext(t), &v1.ReadRelationshipsRequest{
		Consistency: fullyConsistent, RelationshipFilter: &v1.RelationshipFilter{ResourceType: "document"},
	})
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, r := range drain(t, stream.Recv) {
		all = append(all, textOf(r.GetRelationship()))
	}
	return all
}

// TestTestingKeys: the tests of an application run at once against one server, each
// with a key that it made up, and none meets what another wrote.
func TestTestingKeys(t *testing.T) {
	s := newTestingServer(t)
	for i := range 12 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			conn, ctx := dial(t, s, rand.Text()), testContext(t)
			// The odd ones have another schema under the same names.
			schema, permission := documentSchema, "view"
			if i%2 == 1 {
				schema, permission = "definition user {}\ndefinition document {\n\trelation viewer: user\n\tpermission peek = viewer\n}\n", "peek"
			}
			writeSchema(t, conn, schema)
			mine := fmt.Sprintf("document:d%d#viewer@user:u%d", i, i)
			touch(t, conn, mine)
			permissions := v1.NewPermissionsServiceClient(conn)
			for j := range 12 {
				r, err := permissions.CheckPermission(ctx, checkOf(fmt.Sprint("d", j), permission, fmt.Sprint("u", j)))
				want := v1.CheckPermissionResponse_PERMISSIONSHIP_NO_PERMISSION
				if i == j {
					want = v1.CheckPermissionResponse_PERMISSIONSHIP_HAS_PERMISSION
				}
				if err != nil || r.GetPermissionship() != want {
					t.Errorf("document d%d: %v (%v), want %v", j, r.GetPermissionship(), err, want)
				}
			}
			same(t, "relationships", relationshipsOf(t, conn), []string{mine})
			other := map[string]string{"view": "peek", "peek": "view"}[permission]
			if _, err := permissions.CheckPermission(ctx, checkOf("d0", other, "u0")); err == nil {
				t.Errorf("the permission %s of another key's schema is known", other)
			}
		})
	}
}

// TestTestingTokens: tokens, cursors and watches of one key tell another nothing,
// nor does the name of its store.
func TestTestingTokens(t *testing.T) {
	s := newTestingServer(t)
	one, two, ctx := dial(t, s, "one"), dial(t, s, "two"), testContext(t)
	writeSchema(t, one, documentSchema)
	writeSchema(t, two, documentSchema)
	touch(t, one, "document:mine#viewer@user:anne")
	before := touch(t, two, "document:first#viewer@user:anne")
	watched := watch(t, ctx, one, after(before))
	written := touch(t, two, "document:theirs#viewer@user:anne", "document:theirs#editor@user:bob")

	// A token is a moment and no more.
	permissions := v1.NewPermissionsServiceClient(one)
	for _, consistency := range []*v1.Consistency{
		{Requirement: &v1.Consistency_AtExactSnapshot{AtExactSnapshot: written}},
		{Requirement: &v1.Consistency_AtLeastAsFresh{AtLeastAsFresh: written}},
	} {
		for document, want := range map[string]v1.CheckPermissionResponse_Permissionship{
			"mine":   v1.CheckPermissionResponse_PERMISSIONSHIP_HAS_PERMISSION,
			"theirs": v1.CheckPermissionResponse_PERMISSIONSHIP_NO_PERMISSION,
		} {
			r := checkOf(document, "view", "anne")
			r.Consistency = consistency
			if a, err := permissions.CheckPermission(ctx, r); err != nil || a.GetPermissionship() != want {
				t.Errorf("with a token of the other key, of document %s: %v (%v), want %v", document, a.GetPermissionship(), err, want)
			}
		}
	}

	read := &v1.ReadRelationshipsRequest{
		Consistency: fullyConsistent, RelationshipFilter: &v1.RelationshipFilter{ResourceType: "document"}, OptionalLimit: 1,
	}
	stream, err := v1.NewPermissionsServiceClient(two).ReadRelationships(ctx, read)
	if err != nil {
		t.Fatal(err)
	}
	page, err := stream.Recv()
	if err != nil || page.GetAfterResultCursor().GetToken() == "" {
		t.Fatalf("the other key's page: %v, %v", page, err)
	}
	read.Consistency, read.OptionalCursor = nil, page.GetAfterResultCursor()
	if stream, err = permissions.ReadRelationships(ctx, read); err == nil {
		_, err = stream.Recv()
	}
	if code, _, _ := reasonOf(err); code != codes.InvalidArgument && code != codes.FailedPrecondition {
		t.Errorf("a cursor of the other key: %v", err)
	}

	// What the watch tells first is what its own key writes.
	touch(t, one, "document:last#viewer@user:anne")
	for {
		m, err := watched.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if len(m.GetUpdates()) == 0 {
			continue // A checkpoint.
		}
		if got, want := eventOf(m.GetUpdates()[0]), "TOUCH document:last#viewer@user:anne"; got != want || len(m.GetUpdates()) != 1 {
			t.Errorf("the first change is %s of %d, want %s", got, len(m.GetUpdates()), want)
		}
		break
	}

	// Any name but its own is that of no store; the own one is not needed.
	for _, name := range []string{api.DefaultStoreName, "gamma"} {
		named := metadata.AppendToOutgoingContext(ctx, api.StoreHeader, name)
		_, err := permissions.CheckPermission(named, checkOf("mine", "view", "anne"))
		if code, reason, _ := reasonOf(err); code != codes.NotFound || reason != "UNKNOWN_STORE" {
			t.Errorf("the store %s: %v", name, err)
		}
	}
}

// TestTestingHTTP: over HTTP a key has the same store, a call without one that of
// the default, and that one cannot come from a page of another site unasked.
func TestTestingHTTP(t *testing.T) {
	s := newTestingServer(t)
	conn := dial(t, s, "one")
	writeSchema(t, conn, documentSchema)
	touch(t, conn, "document:mine#viewer@user:anne")
	keyless := dial(t, s, "")
	writeSchema(t, keyless, documentSchema)

	const question = `{"consistency":{"fullyConsistent":true},"resource":{"objectType":"document","objectId":"mine"},` +
		`"permission":"view","subject":{"object":{"objectType":"user","objectId":"anne"}}}`
	for _, test := range []struct {
		authorization, form, store string
		status                     int
		want                       string
	}{
		{"Bearer one", "", "", http.StatusOK, "PERMISSIONSHIP_HAS_PERMISSION"},
		{"", "application/json", "", http.StatusOK, "PERMISSIONSHIP_NO_PERMISSION"},
		{"", "application/json", api.DefaultStoreName, http.StatusOK, "PERMISSIONSHIP_NO_PERMISSION"},
		{"", "text/plain", "", http.StatusUnsupportedMediaType, ""},
		{"", "", "", http.StatusUnsupportedMediaType, ""},
		{"Bearer two", "", "", http.StatusBadRequest, ""}, // It has no schema yet.
		{"Bearer one", "", api.DefaultStoreName, http.StatusNotFound, "UNKNOWN_STORE"},
		{"Basic b25l", "application/json", "", http.StatusUnauthorized, ""},
	} {
		a := post(t, s, "/v1/permissions/check", question, "Authorization", test.authorization, "Content-Type", test.form, api.StoreHeader, test.store)
		if a.status != test.status {
			t.Errorf("%+v: %d %s", test, a.status, a.body)
			continue
		}
		if !strings.Contains(a.body, test.want) {
			t.Errorf("%+v: %s", test, a.body)
		}
	}
}
