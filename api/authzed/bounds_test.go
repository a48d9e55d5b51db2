package authzed

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/pembadb/pemba/api"
)

// The name of a store that cannot be carried, or two of them, is refused: the call
// must not be about another store.
func TestStoreHeaderIsNotLost(t *testing.T) {
	conn, s := newServerWith(t, api.Config{HTTPAddr: "127.0.0.1:0"})
	writeSchema(t, conn, "definition user {}")
	for _, values := range [][]string{{"prod\u00a0"}, {"\u00e4"}, {"default", "other"}} {
		r, err := http.NewRequestWithContext(testContext(t), http.MethodPost, "http://"+s.HTTPAddr().String()+"/v1/schema/read", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+testKey)
		r.Header.Set("Content-Type", "application/json")
		r.Header[http.CanonicalHeaderKey(api.StoreHeader)] = values
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode != http.StatusBadRequest || !strings.Contains(string(body), api.StoreHeader) {
			t.Errorf("%q: %d %s %v", values, response.StatusCode, body, err)
		}
		if err := response.Body.Close(); err != nil {
			t.Error(err)
		}
	}
	ctx := metadata.AppendToOutgoingContext(testContext(t), api.StoreHeader, "default", api.StoreHeader, "other")
	if _, err := v1.NewSchemaServiceClient(conn).ReadSchema(ctx, &v1.ReadSchemaRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("two stores: %v", err)
	}
}

// Debug information repeats expressions, and is bounded.
func TestDebugInformationIsBounded(t *testing.T) {
	conn := newServer(t)
	writeSchema(t, conn, `caveat big(n int) { n > 0 && "`+strings.Repeat("x", 40_000)+`" != "" }
definition user {}
definition group {
	relation member: user
}
definition document {
	relation viewer: group#member with big
}`)
	for i := range 150 {
		touch(t, conn, fmt.Sprintf("document:plan#viewer@group:g%03d#member[big]", i))
	}
	client := v1.NewPermissionsServiceClient(conn)
	q := parseQuestion(t, "document:plan#viewer@user:anne")
	if _, err := client.CheckPermission(testContext(t), q); err != nil {
		t.Fatal(err)
	}
	q.WithTracing = true
	if _, err := client.CheckPermission(testContext(t), q); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a large trace: %v", err)
	}
	bulk := &v1.CheckBulkPermissionsRequest{WithTracing: true}
	for range 300 { // Of little each, but for the schema.
		bulk.Items = append(bulk.Items, &v1.CheckBulkPermissionsRequestItem{
			Resource: &v1.ObjectReference{ObjectType: "group", ObjectId: "g000"}, Permission: "member", Subject: q.GetSubject(),
		})
	}
	r, err := client.CheckBulkPermissions(testContext(t), bulk)
	if err != nil {
		t.Fatal(err)
	}
	bytes, pairs := 0, r.GetPairs()
	for _, p := range pairs {
		bytes += len(p.GetItem().GetDebugTrace().GetSchemaUsed())
	}
	if pairs[0].GetItem().GetDebugTrace().GetSchemaUsed() == "" || bytes > debugBytesMax {
		t.Errorf("the schema is told in %d bytes", bytes)
	}
}
