package authzed

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/authzed/authzed-go/pkg/requestmeta"
	"github.com/authzed/authzed-go/pkg/responsemeta"
	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/pembadb/pemba/api"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

const documentSchema = `definition user {}

definition document {
	relation viewer: user
	relation editor: user
	permission view = viewer + editor
}
`

// drain receives a stream to its end.
func drain[T any](t testing.TB, recv func() (T, error)) []T {
	t.Helper()
	var all []T
	for {
		r, err := recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
}

func same(t testing.TB, what string, got, want []string) {
	t.Helper()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func textOf(r *v1.Relationship) string {
	return fmt.Sprintf("%s:%s#%s@%s:%s", r.GetResource().GetObjectType(), r.GetResource().GetObjectId(), r.GetRelation(),
		r.GetSubject().GetObject().GetObjectType(), r.GetSubject().GetObject().GetObjectId())
}

// TestClient: the API's own client does what most programs do with it, and none
// of it knows which server answers.
func TestClient(t *testing.T) {
	conn, ctx := newServer(t), testContext(t)
	schemas, permissions := v1.NewSchemaServiceClient(conn), v1.NewPermissionsServiceClient(conn)

	written, err := schemas.WriteSchema(ctx, &v1.WriteSchemaRequest{Schema: documentSchema})
	if err != nil {
		t.Fatal(err)
	}
	read, err := schemas.ReadSchema(ctx, &v1.ReadSchemaRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(read.GetSchemaText(), "permission view = viewer + editor") {
		t.Errorf("the schema is %q", read.GetSchemaText())
	}

	watching, stop := context.WithCancel(ctx)
	defer stop()
	watch, err := v1.NewWatchServiceClient(conn).Watch(watching, &v1.WatchRequest{OptionalStartCursor: written.GetWrittenAt()})
	if err != nil {
		t.Fatal(err)
	}

	object := func(id string) *v1.ObjectReference { return &v1.ObjectReference{ObjectType: "document", ObjectId: id} }
	user := func(id string) *v1.SubjectReference {
		return &v1.SubjectReference{Object: &v1.ObjectReference{ObjectType: "user", ObjectId: id}}
	}
	relationship := func(document, relation, subject string) *v1.Relationship {
		return &v1.Relationship{Resource: object(document), Relation: relation, Subject: user(subject)}
	}
	wrote, err := permissions.WriteRelationships(ctx, &v1.WriteRelationshipsRequest{Updates: []*v1.RelationshipUpdate{
		{Operation: v1.RelationshipUpdate_OPERATION_CREATE, Relationship: relationship("readme", "viewer", "anne")},
		{Operation: v1.RelationshipUpdate_OPERATION_TOUCH, Relationship: relationship("plan", "editor", "anne")},
		{Operation: v1.RelationshipUpdate_OPERATION_TOUCH, Relationship: relationship("plan", "viewer", "bob")},
	}})
	if err != nil {
		t.Fatal(err)
	}
	fresh := &v1.Consistency{Requirement: &v1.Consistency_AtLeastAsFresh{AtLeastAsFresh: wrote.GetWrittenAt()}}

	for subject, want := range map[string]v1.CheckPermissionResponse_Permissionship{
		"anne": v1.CheckPermissionResponse_PERMISSIONSHIP_HAS_PERMISSION,
		"bob":  v1.CheckPermissionResponse_PERMISSIONSHIP_NO_PERMISSION,
	} {
		checked, err := permissions.CheckPermission(ctx, &v1.CheckPermissionRequest{
			Consistency: fresh, Resource: object("readme"), Permission: "view", Subject: user(subject),
		})
		if err != nil {
			t.Fatal(err)
		}
		if checked.GetPermissionship() != want || checked.GetCheckedAt().GetToken() == "" {
			t.Errorf("check of %s: %v", subject, checked)
		}
	}

	resources, err := permissions.LookupResources(ctx, &v1.LookupResourcesRequest{
		Consistency: fresh, ResourceObjectType: "document", Permission: "view", Subject: user("anne"),
	})
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, r := range drain(t, resources.Recv) {
		found = append(found, r.GetResourceObjectId())
	}
	same(t, "resources of anne", found, []string{"plan", "readme"})

	subjects, err := permissions.LookupSubjects(ctx, &v1.LookupSubjectsRequest{
		Consistency: fresh, Resource: object("plan"), Permission: "view", SubjectObjectType: "user",
	})
	if err != nil {
		t.Fatal(err)
	}
	found = nil
	for _, r := range drain(t, subjects.Recv) {
		found = append(found, r.GetSubject().GetSubjectObjectId())
	}
	same(t, "subjects of plan", found, []string{"anne", "bob"})

	// The write arrives, and nothing of it twice.
	found = nil
	for len(found) < 3 {
		r, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range r.GetUpdates() {
			found = append(found, u.GetOperation().String()+" "+textOf(u.GetRelationship()))
		}
	}
	same(t, "watched", found, []string{
		"OPERATION_TOUCH document:plan#editor@user:anne",
		"OPERATION_TOUCH document:plan#viewer@user:bob",
		"OPERATION_TOUCH document:readme#viewer@user:anne",
	})
	stop()

	importing, err := permissions.ImportBulkRelationships(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const perMessage, messages = 100, 3
	want := []string{"document:plan#editor@user:anne", "document:plan#viewer@user:bob", "document:readme#viewer@user:anne"}
	for m := range messages {
		r := &v1.ImportBulkRelationshipsRequest{}
		for i := range perMessage {
			r.Relationships = append(r.Relationships, relationship(fmt.Sprintf("d%d_%d", m, i), "viewer", "carol"))
			want = append(want, textOf(r.Relationships[i]))
		}
		if err := importing.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	imported, err := importing.CloseAndRecv()
	if err != nil {
		t.Fatal(err)
	}
	if imported.GetNumLoaded() != perMessage*messages {
		t.Errorf("%d were loaded", imported.GetNumLoaded())
	}
	export, err := permissions.ExportBulkRelationships(ctx, &v1.ExportBulkRelationshipsRequest{Consistency: fullyConsistent, OptionalLimit: 70})
	if err != nil {
		t.Fatal(err)
	}
	var exported []string
	for _, page := range drain(t, export.Recv) {
		if len(page.GetRelationships()) > 70 {
			t.Errorf("a page has %d", len(page.GetRelationships()))
		}
		for _, r := range page.GetRelationships() {
			exported = append(exported, textOf(r))
		}
	}
	same(t, "exported", exported, want)
}

// An answer is what a call over HTTP gave.
type answer struct {
	status int
	header http.Header
	body   string
}

// post makes a call over HTTP. Header are pairs.
func post(t testing.TB, s *api.Server, path, body string, header ...string) answer {
	t.Helper()
	return send(t, s, http.MethodPost, path, body, header...)
}

func send(t testing.TB, s *api.Server, method, path, body string, header ...string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(testContext(t), method, "http://"+s.HTTPAddr().String()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+testKey)
	for i := 0; i < len(header); i += 2 {
		r.Header.Del(header[i])
		if header[i+1] != "" {
			r.Header.Set(header[i], header[i+1])
		}
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if err := response.Body.Close(); err != nil {
		t.Fatal(err)
	}
	for name, values := range response.Trailer {
		response.Header[name] = values
	}
	return answer{response.StatusCode, response.Header, string(content)}
}

// decode reads JSON of a form that says all there is.
func decode[T any](t testing.TB, text string) T {
	t.Helper()
	var v T
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return v
}

// TestHTTP: the calls over HTTP, in the JSON that clients of the API know.
func TestHTTP(t *testing.T) {
	_, s := newServerWith(t, api.Config{HTTPAddr: "127.0.0.1:0", Limits: api.Limits{RequestBytes: 2 << 20}})
	schema, err := json.Marshal(map[string]string{"schema": documentSchema})
	if err != nil {
		t.Fatal(err)
	}
	type token struct{ Token string }
	if a := post(t, s, "/v1/schema/write", string(schema)); a.status != http.StatusOK ||
		decode[struct{ WrittenAt token }](t, a.body).WrittenAt.Token == "" {
		t.Fatalf("write the schema: %+v", a)
	}
	// An unknown field is ignored, and so is what the body calls itself.
	body := `{"updates": [{"operation": "OPERATION_TOUCH", "relationship": {
		"resource": {"objectType": "document", "objectId": "readme"}, "relation": "viewer",
		"subject": {"object": {"objectType": "user", "objectId": "anne"}}}}], "unknownField": 1}`
	if a := post(t, s, "/v1/relationships/write", body, "Content-Type", "application/x-www-form-urlencoded"); a.status != http.StatusOK {
		t.Fatalf("write: %+v", a)
	}
	const question = `{"consistency": {"fullyConsistent": true}, "resource": {"objectType": "document", "objectId": "readme"},
		"permission": "view", "subject": {"object": {"objectType": "user", "objectId": "anne"}}}`
	a := post(t, s, "/v1/permissions/check", question, "Te", "trailers", "X-Request-Id", "call-7", "Io.spicedb.requestversion", "1")
	checked := decode[struct {
		CheckedAt         token
		Permissionship    string
		PartialCaveatInfo any
		DebugTrace        any
		OptionalExpiresAt any
	}](t, a.body)
	// What is not set is written as well.
	if a.status != http.StatusOK || checked.Permissionship != "PERMISSIONSHIP_HAS_PERMISSION" || !strings.Contains(a.body, `"partialCaveatInfo":`) {
		t.Errorf("check: %+v", a)
	}
	if id := a.header.Get("Grpc-Trailer-X-Request-Id"); id != "call-7" {
		t.Errorf("the request id is %q: %v", id, a.header)
	}

	a = post(t, s, "/v1/permissions/resources", `{"consistency": {"fullyConsistent": true}, "resourceObjectType": "document",
		"permission": "view", "subject": {"object": {"objectType": "user", "objectId": "anne"}}}`)
	lines := strings.Split(strings.TrimSpace(a.body), "\n")
	if a.status != http.StatusOK || len(lines) != 1 {
		t.Fatalf("resources: %+v", a)
	}
	var found struct {
		Result struct{ ResourceObjectID string }
	}
	if err := json.Unmarshal([]byte(lines[0]), &found); err != nil || found.Result.ResourceObjectID != "readme" {
		t.Errorf("resources: %v: %s", err, a.body)
	}

	a = post(t, s, "/v1/relationships/importbulk", `{"relationships": [{"resource": {"objectType": "document", "objectId": "a"},
		"relation": "viewer", "subject": {"object": {"objectType": "user", "objectId": "anne"}}}]}
		{"relationships": [{"resource": {"objectType": "document", "objectId": "b"},
		"relation": "viewer", "subject": {"object": {"objectType": "user", "objectId": "anne"}}}]}`)
	if a.status != http.StatusOK || decode[struct{ NumLoaded string }](t, a.body).NumLoaded != "2" {
		t.Errorf("import: %+v", a)
	}

	type form struct {
		Code    int
		Message string
		Details []map[string]any
	}
	for _, c := range []struct {
		name, path, body string
		header           []string
		status           int
		code             codes.Code
		reason           string
	}{
		{"no key", "/v1/permissions/check", question, []string{"Authorization", ""}, http.StatusUnauthorized, codes.Unauthenticated, ""},
		{"another key", "/v1/permissions/check", question, []string{"Authorization", "Bearer other"}, http.StatusForbidden, codes.PermissionDenied, ""},
		{"an unknown path", "/v1/permissions/chekc", question, nil, http.StatusNotFound, codes.NotFound, ""},
		{"no JSON", "/v1/permissions/check", "resource=readme", nil, http.StatusBadRequest, codes.InvalidArgument, ""},
		{"a field that breaks a rule", "/v1/permissions/check", `{}`, nil, http.StatusBadRequest, codes.InvalidArgument, ""},
		{
			"an unknown type", "/v1/permissions/check", strings.Replace(question, `"document"`, `"folder"`, 1), nil,
			http.StatusBadRequest, codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_DEFINITION",
		},
		{"a stream that fails", "/v1/permissions/resources", `{}`, nil, http.StatusBadRequest, codes.InvalidArgument, ""},
		{"an import that fails", "/v1/relationships/importbulk", `{"relationships": 7}`, nil, http.StatusBadRequest, codes.InvalidArgument, ""},
		{"a store that is none", "/v1/schema/read", `{}`, []string{"Pemba-Store", "nowhere"}, http.StatusNotFound, codes.NotFound, "UNKNOWN_STORE"},
		{"no time", "/v1/schema/read", `{}`, []string{"Grpc-Timeout", "0S"}, http.StatusGatewayTimeout, codes.DeadlineExceeded, "DEADLINE_EXCEEDED"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := post(t, s, c.path, c.body, c.header...)
			var e form
			if wrapped, ok := strings.CutPrefix(strings.TrimSpace(a.body), `{"error":`); ok {
				// As the gateway writes an error of a stream.
				e = decode[form](t, strings.TrimSuffix(wrapped, "}"))
			} else {
				e = decode[form](t, a.body)
			}
			if a.status != c.status || e.Code != int(c.code) || e.Message == "" {
				t.Errorf("got %d: %s", a.status, a.body)
			}
			reason := ""
			for _, d := range e.Details {
				if d["@type"] == "type.googleapis.com/google.rpc.ErrorInfo" {
					reason, _ = d["reason"].(string)
				}
			}
			if reason != c.reason {
				t.Errorf("the reason is %q: %s", reason, a.body)
			}
		})
	}

	for _, path := range []string{"/v1/openapi.json", "/openapi.json"} {
		a := send(t, s, http.MethodGet, path, "", "Authorization", "")
		var document struct{ Paths map[string]any }
		if err := json.Unmarshal([]byte(a.body), &document); err != nil || a.status != http.StatusOK {
			t.Fatalf("%s: %d, %v", path, a.status, err)
		}
		// Every path that it lists is answered.
		for p := range document.Paths {
			if a := post(t, s, p, `!`); a.status == http.StatusNotFound || a.status == http.StatusMethodNotAllowed {
				t.Errorf("%s lists %s, which is answered with %d", path, p, a.status)
			}
		}
		wantServed(t, path, a.body, s)
	}

	// What is too large is told so, whoever finds it.
	large := `{"schema": "` + strings.Repeat("x", 3<<20) + `"}`
	if a := post(t, s, "/v1/schema/write", large); a.status != http.StatusRequestEntityTooLarge || decode[form](t, a.body).Code != int(codes.ResourceExhausted) {
		t.Errorf("a request that is too large: %d: %.200s", a.status, a.body)
	}
	if a := post(t, s, "/v1/relationships/importbulk", large); a.status != http.StatusRequestEntityTooLarge || decode[form](t, a.body).Code != int(codes.ResourceExhausted) {
		t.Errorf("a message that is too large: %d: %.200s", a.status, a.body)
	}

	a = send(t, s, http.MethodGet, "/metrics", "")
	for _, want := range []string{
		`pemba_requests_total{code="OK",consistency="linearizable",method="authzed.api.v1.PermissionsService/CheckPermission"} 1`,
		`pemba_request_duration_seconds_count{method="authzed.api.v1.PermissionsService/LookupResources"}`,
	} {
		if !strings.Contains(a.body, want) {
			t.Errorf("the metrics have no %s", want)
		}
	}
	if strings.Contains(a.body, `pemba_request_duration_seconds_count{method="authzed.api.v1.WatchService/Watch"}`) {
		t.Error("a watch has a latency")
	}
}

// TestHTTPWithoutKeys: where nobody needs a key, what a page of another site can
// send unasked is refused.
func TestHTTPWithoutKeys(t *testing.T) {
	_, s := newServerWith(t, api.Config{HTTPAddr: "127.0.0.1:0", Keys: []string{}})
	for form, want := range map[string]int{
		"": http.StatusUnsupportedMediaType, "text/plain": http.StatusUnsupportedMediaType,
		"application/json": http.StatusNotFound, // There is no schema.
	} {
		if a := post(t, s, "/v1/schema/read", `{}`, "Authorization", "", "Content-Type", form); a.status != want {
			t.Errorf("the form %q is answered with %+v", form, a)
		}
	}
}

// TestHTTPWatch: a watch is one object a line for as long as the client listens.
func TestHTTPWatch(t *testing.T) {
	conn, s := newServerWith(t, api.Config{HTTPAddr: "127.0.0.1:0"})
	start := writeSchema(t, conn, documentSchema)
	touch(t, conn, "document:readme#viewer@user:anne")
	ctx, stop := context.WithCancel(testContext(t))
	defer stop()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.HTTPAddr().String()+"/v1/watch",
		strings.NewReader(`{"optionalStartCursor": {"token": "`+start.GetToken()+`"}}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+testKey)
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	var line struct {
		Result struct {
			Updates []struct {
				Operation    string
				Relationship struct{ Resource struct{ ObjectID string } }
			}
		}
	}
	if err := json.NewDecoder(response.Body).Decode(&line); err != nil {
		t.Fatal(err)
	}
	if u := line.Result.Updates; len(u) != 1 || u[0].Operation != "OPERATION_TOUCH" || u[0].Relationship.Resource.ObjectID != "readme" {
		t.Errorf("the first line is %+v", line)
	}
	stop()
	_ = response.Body.Close() // The call was canceled.
}

// TestMetadata: what the API's tools read beside the messages.
func TestMetadata(t *testing.T) {
	conn := newServer(t)
	writeSchema(t, conn, documentSchema)
	schemas := v1.NewSchemaServiceClient(conn)
	ask := func(ctx context.Context) (header, trailer metadata.MD) {
		t.Helper()
		if _, err := schemas.ReadSchema(ctx, &v1.ReadSchemaRequest{}, grpc.Header(&header), grpc.Trailer(&trailer)); err != nil {
			t.Fatal(err)
		}
		return header, trailer
	}
	header, trailer := ask(testContext(t))
	for _, key := range []responsemeta.ResponseMetadataTrailerKey{responsemeta.DispatchedOperationsCount, responsemeta.CachedOperationsCount} {
		if _, err := responsemeta.GetIntResponseTrailerMetadata(trailer, key); err != nil {
			t.Error(err)
		}
	}
	if got := header.Get(string(responsemeta.ServerVersion)); len(got) != 0 {
		t.Errorf("the version is %q, which nobody asked for", got)
	}
	id, err := responsemeta.GetResponseTrailerMetadata(trailer, responsemeta.RequestID)
	if err != nil || id == "" {
		t.Errorf("the id is %q: %v", id, err)
	}
	if _, again := ask(testContext(t)); again.Get(string(responsemeta.RequestID))[0] == id {
		t.Errorf("two calls have the id %q", id)
	}

	ctx := requestmeta.AddRequestHeaders(requestmeta.WithOverlapKey(requestmeta.WithRequestID(testContext(t), "call-7"), "any"), requestmeta.RequestServerVersion)
	header, trailer = ask(ctx)
	for _, key := range []responsemeta.ResponseMetadataTrailerKey{responsemeta.RequestID, responsemeta.RequestIDLegacy} {
		if id, err := responsemeta.GetResponseTrailerMetadata(trailer, key); err != nil || id != "call-7" {
			t.Errorf("%s is %q: %v", key, id, err)
		}
	}
	// The version of a test is what Go says of it.
	var want []string
	if version := suffixed(api.Version()); version != "" {
		want = []string{version}
	}
	if got := header.Get(string(responsemeta.ServerVersion)); !slices.Equal(got, want) {
		t.Errorf("the version is %q, want %q", got, want)
	}
	// A call that fails has them too.
	trailer = nil
	_, err = v1.NewPermissionsServiceClient(conn).CheckPermission(requestmeta.WithRequestID(testContext(t), "call-8"),
		&v1.CheckPermissionRequest{}, grpc.Trailer(&trailer))
	if status.Code(err) != codes.InvalidArgument || !slices.Equal(trailer.Get(string(responsemeta.RequestID)), []string{"call-8"}) {
		t.Errorf("a call that fails: %v, %v", err, trailer)
	}

	for version, want := range map[string]string{
		"v1.2.3": "v1.2.3+pemba", "v1.2.3-rc.1": "v1.2.3+pemba", "v0.0.0-20260102030405-abcdef123456+dirty": "v0.0.0+pemba",
		"(devel)": "", "unknown": "", "": "",
	} {
		if got := suffixed(version); got != want {
			t.Errorf("the version %q is %q, want %q", version, got, want)
		}
	}
}

// TestOpenServices: health and reflection answer without a key and know the API.
func TestOpenServices(t *testing.T) {
	_, s := newServerWith(t, api.Config{})
	conn, ctx := dial(t, s, ""), testContext(t)
	for _, service := range []string{"", "authzed.api.v1.PermissionsService", "authzed.api.v1.SchemaService", "authzed.api.v1.WatchService"} {
		r, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
		if err != nil || r.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
			t.Errorf("the health of %q: %v, %v", service, r, err)
		}
	}
	stream, err := grpc_reflection_v1.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	r, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, service := range r.GetListServicesResponse().GetService() {
		listed = append(listed, service.GetName())
	}
	for _, service := range (Dialect{}).Services() {
		if !slices.Contains(listed, service.ServiceName) {
			t.Errorf("reflection lists %q, not %s", listed, service.ServiceName)
		}
		if err := stream.Send(&grpc_reflection_v1.ServerReflectionRequest{
			MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: service.ServiceName},
		}); err != nil {
			t.Fatal(err)
		}
		if r, err := stream.Recv(); err != nil || len(r.GetFileDescriptorResponse().GetFileDescriptorProto()) == 0 {
			t.Errorf("the file of %s: %v, %v", service.ServiceName, r.GetErrorResponse(), err)
		}
	}
	for key, want := range map[string]codes.Code{"": codes.Unauthenticated, "other": codes.PermissionDenied} {
		_, err := v1.NewSchemaServiceClient(dial(t, s, key)).ReadSchema(ctx, &v1.ReadSchemaRequest{})
		if status.Code(err) != want {
			t.Errorf("with the key %q: %v", key, err)
		}
	}
}

// TestStores: a call is about the store that its metadata names, else about the
// one its key is bound to, else about the default one.
func TestStores(t *testing.T) {
	keys := filepath.Join(t.TempDir(), "keys")
	bind := func(text string) {
		t.Helper()
		if err := os.WriteFile(keys+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(keys+".new", keys); err != nil {
			t.Fatal(err)
		}
	}
	bind("of-left store left\nof-both store left,right\n")
	conn, s := newServerWith(t, api.Config{KeyFile: keys, HTTPAddr: "127.0.0.1:0"})
	for _, name := range []string{"left", "right"} {
		if _, err := pembav1.NewStoreServiceClient(conn).CreateStore(testContext(t), &pembav1.CreateStoreRequest{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	in := func(store string) context.Context {
		if store == "" {
			return testContext(t)
		}
		return metadata.AppendToOutgoingContext(testContext(t), api.StoreHeader, store)
	}
	for _, store := range []string{"", "left", "right"} {
		text := "definition in_" + store + "_store {}"
		if _, err := v1.NewSchemaServiceClient(conn).WriteSchema(in(store), &v1.WriteSchemaRequest{Schema: text}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		key, store, want string
		code             codes.Code
	}{
		{testKey, "", "in__store", codes.OK},
		{testKey, "right", "in_right_store", codes.OK},
		{"of-left", "", "in_left_store", codes.OK},
		{"of-left", "left", "in_left_store", codes.OK},
		{"of-left", "right", "", codes.NotFound},
		{"of-both", "right", "in_right_store", codes.OK},
		{"of-both", "", "", codes.NotFound},
	} {
		r, err := v1.NewSchemaServiceClient(dial(t, s, c.key)).ReadSchema(in(c.store), &v1.ReadSchemaRequest{})
		if status.Code(err) != c.code || !strings.Contains(r.GetSchemaText(), c.want) {
			t.Errorf("the key %s in the store %q: %v, %v", c.key, c.store, r, err)
		}
		if c.code == codes.NotFound && strings.Contains(err.Error(), "name one in the metadata "+api.StoreHeader) != (c.store == "") {
			t.Errorf("the key %s in the store %q is told %v", c.key, c.store, err)
		}
		a := post(t, s, "/v1/schema/read", `{}`, "Authorization", "Bearer "+c.key, "Pemba-Store", c.store)
		if (a.status == http.StatusOK) != (c.code == codes.OK) || !strings.Contains(a.body, c.want) {
			t.Errorf("the key %s in the store %q over HTTP: %+v", c.key, c.store, a)
		}
	}

	// A stream ends when its key may no longer use the store that it is about.
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	defer cancel()
	watch, err := v1.NewWatchServiceClient(dial(t, s, "of-left")).Watch(ctx, &v1.WatchRequest{
		OptionalUpdateKinds: []v1.WatchKind{v1.WatchKind_WATCH_KIND_INCLUDE_CHECKPOINTS},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	bind("of-left store right\nof-both store left,right\n")
	for err == nil {
		_, err = watch.Recv()
	}
	if status.Code(err) != codes.NotFound {
		t.Errorf("the watch of a store that is out of reach ended with %v", err)
	}
}

// TestTokens: tokens and cursors are what most programs take for base64, and those
// of pemba.v1 are read as well.
func TestTokens(t *testing.T) {
	conn := newServer(t)
	writeSchema(t, conn, documentSchema)
	permissions := v1.NewPermissionsServiceClient(conn)
	valid := func(what, token string) {
		t.Helper()
		if _, err := base64.StdEncoding.Strict().DecodeString(token); err != nil || len(token) < 24 {
			t.Errorf("%s is %q: %v", what, token, err)
		}
	}
	touch(t, conn, "document:d1#viewer@user:anne", "document:d2#viewer@user:anne")
	question := func() *v1.ReadRelationshipsRequest {
		return &v1.ReadRelationshipsRequest{
			RelationshipFilter: &v1.RelationshipFilter{ResourceType: "document"}, Consistency: fullyConsistent, OptionalLimit: 1,
		}
	}
	for range 50 { // Few tokens have every character.
		valid("a token", touch(t, conn, "document:d1#viewer@user:anne").GetToken())
		first, err := permissions.ReadRelationships(testContext(t), question())
		if err != nil {
			t.Fatal(err)
		}
		page := drain(t, first.Recv)
		if len(page) != 1 {
			t.Fatalf("a page has %d", len(page))
		}
		valid("a cursor", page[0].GetAfterResultCursor().GetToken())
		valid("the token of an answer", page[0].GetReadAt().GetToken())
		r := question()
		r.OptionalCursor = page[0].GetAfterResultCursor()
		second, err := permissions.ReadRelationships(testContext(t), r)
		if err != nil {
			t.Fatal(err)
		}
		if page := drain(t, second.Recv); len(page) != 1 || page[0].GetRelationship().GetResource().GetObjectId() != "d2" {
			t.Fatalf("the next page is %v", page)
		}
	}
	native, err := pembav1.NewSchemaServiceClient(conn).ReadSchema(testContext(t), &pembav1.ReadSchemaRequest{})
	if err != nil {
		t.Fatal(err)
	}
	r := question()
	r.Consistency = &v1.Consistency{Requirement: &v1.Consistency_AtExactSnapshot{AtExactSnapshot: &v1.ZedToken{Token: native.GetReadAt().GetToken()}}}
	read, err := permissions.ReadRelationships(testContext(t), r)
	if err != nil {
		t.Fatal(err)
	}
	if page := drain(t, read.Recv); len(page) != 1 {
		t.Errorf("at the token of pemba.v1 there is %v", page)
	}
}

// wantServed fails unless a description of the API lists what a server answers of
// this dialect, by its registered services, and nothing else.
func wantServed(t *testing.T, path, body string, s *api.Server) {
	t.Helper()
	var document struct {
		Tags        []struct{ Name string }
		Paths       map[string]map[string]struct{ OperationID string }
		Definitions map[string]json.RawMessage
	}
	if err := json.Unmarshal([]byte(body), &document); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	var served, services, listed, tags []string
	recorded := make(registered)
	Dialect{}.Register(recorded, nil)
	for name, methods := range recorded {
		service := strings.TrimPrefix(name, "authzed.api.v1.")
		services = append(services, service)
		for _, method := range methods {
			served = append(served, service+"_"+method)
		}
	}
	for p, methods := range document.Paths {
		for verb, operation := range methods {
			listed = append(listed, operation.OperationID)
			// The cursor has a watch refused, which would go on without; others ignore it.
			a := send(t, s, strings.ToUpper(verb), p, `{"optionalStartCursor": {"token": "none"}}`)
			if a.status == http.StatusNotImplemented || a.status == http.StatusNotFound {
				t.Errorf("%s lists %s, which is answered with %s", path, p, a.body)
			}
		}
	}
	for _, tag := range document.Tags {
		tags = append(tags, tag.Name)
	}
	for _, l := range []struct{ got, want []string }{{listed, served}, {tags, services}} {
		slices.Sort(l.got)
		slices.Sort(l.want)
		if !slices.Equal(l.got, l.want) {
			t.Errorf("%s lists %q; served are %q", path, l.got, l.want)
		}
	}
	for name := range document.Definitions {
		if !strings.Contains(body, `"#/definitions/`+name+`"`) {
			t.Errorf("%s defines %s, to which nothing refers", path, name)
		}
	}
	for _, reference := range regexp.MustCompile(`"#/definitions/([^"]+)"`).FindAllStringSubmatch(body, -1) {
		if document.Definitions[reference[1]] == nil {
			t.Errorf("%s refers to %s, which it does not define", path, reference[1])
		}
	}
}

// registered are the methods of the services that are registered with it.
type registered map[string][]string

// RegisterService implements grpc.ServiceRegistrar.
func (r registered) RegisterService(d *grpc.ServiceDesc, _ any) {
	for _, m := range d.Methods {
		r[d.ServiceName] = append(r[d.ServiceName], m.MethodName)
	}
	for _, m := range d.Streams {
		r[d.ServiceName] = append(r[d.ServiceName], m.StreamName)
	}
}
