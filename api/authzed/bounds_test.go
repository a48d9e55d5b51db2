package authzed

import (
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/pembadb/pemba/api"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

// The name of a store that cannot be carried, or two of them, is refused: the call
// must not be about another store.
func TestStoreHeaderIsNotLost(t *testing.T) {
	conn, s := newServerWith(t, api.Config{HTTPAddr: "127.0.0.1:0"})
	writeSchema(t, conn, "definition user {}")
	for _, values := range [][]string{{"prod\u00a0"}, {"\u00e4"}, {"default", "other"}, {""}} {
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
	ctx = metadata.AppendToOutgoingContext(testContext(t), api.StoreHeader, "")
	if _, err := v1.NewSchemaServiceClient(conn).ReadSchema(ctx, &v1.ReadSchemaRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a store without a name: %v", err)
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
	if _, err := client.CheckPermission(testContext(t), q); status.Code(err) != codes.FailedPrecondition {
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

// TestShownAgainIsCounted: what a step repeats of an earlier one is part of the
// debug information.
func TestShownAgainIsCounted(t *testing.T) {
	conn := newServer(t)
	const names = 80
	var text strings.Builder
	fmt.Fprintf(&text, "caveat big(n int) { n > 0 && %q != \"\" }\ndefinition user {}\ndefinition document {\n\trelation viewer: user with big\n", strings.Repeat("x", 3800))
	var lower, upper []string
	for i := range names {
		fmt.Fprintf(&text, "\tpermission lower%d = viewer\n", i)
		lower = append(lower, fmt.Sprintf("lower%d", i))
	}
	for i := range names {
		fmt.Fprintf(&text, "\tpermission upper%d = %s\n", i, strings.Join(lower, " + "))
		upper = append(upper, fmt.Sprintf("upper%d", i))
	}
	fmt.Fprintf(&text, "\tpermission top = %s\n}", strings.Join(upper, " + "))
	writeSchema(t, conn, text.String())
	touch(t, conn, "document:plan#viewer@user:anne[big]")
	client := v1.NewPermissionsServiceClient(conn)
	for name, want := range map[string]codes.Code{"lower0": codes.OK, "top": codes.FailedPrecondition} {
		q := parseQuestion(t, "document:plan#"+name+"@user:anne")
		q.WithTracing = true
		_, err := client.CheckPermission(testContext(t), q)
		if status.Code(err) != want || want != codes.OK && !strings.Contains(err.Error(), "debug information") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestErrorsFitTrailers: a client that takes trailers of 8 KiB sees every mistake as
// what it is, in both APIs.
func TestErrorsFitTrailers(t *testing.T) {
	_, s := newServerWith(t, api.Config{})
	conn, err := grpc.NewClient("passthrough:///"+s.GRPCAddr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithPerRPCCredentials(bearer(testKey)), grpc.WithMaxHeaderListSize(8<<10))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	const schema = "caveat holds(a int) { a > 0 }\ndefinition user {}\ndefinition document { relation viewer: user\npermission view = viewer }"
	writeSchema(t, conn, schema)
	object, subject := "x"+strings.Repeat("a", 1023), "y"+strings.Repeat("b", 1023)
	long := "document:" + object + "#viewer@user:" + subject
	touch(t, conn, long)
	there := &v1.RelationshipFilter{
		ResourceType: "document", OptionalResourceId: object, OptionalRelation: "viewer",
		OptionalSubjectFilter: &v1.SubjectFilter{SubjectType: "user", OptionalSubjectId: subject},
	}
	write := func(pre *v1.RelationshipFilter, updates ...*v1.RelationshipUpdate) error {
		r := &v1.WriteRelationshipsRequest{Updates: updates}
		if pre != nil {
			r.OptionalPreconditions = []*v1.Precondition{{Operation: v1.Precondition_OPERATION_MUST_NOT_MATCH, Filter: pre}}
		}
		_, err := v1.NewPermissionsServiceClient(conn).WriteRelationships(testContext(t), r)
		return err
	}
	schemaError := func(text string) error {
		_, err := v1.NewSchemaServiceClient(conn).WriteSchema(testContext(t), &v1.WriteSchemaRequest{Schema: text})
		return err
	}
	var mistakes strings.Builder
	mistakes.WriteString("definition user {}\ndefinition document {\n")
	for i := range 40 {
		fmt.Fprintf(&mistakes, "\trelation viewer%d: %s with missing%d // äöü\n", i, strings.Repeat("unknown", 8), i)
	}
	mistakes.WriteString("}")
	create, again := update(t, v1.RelationshipUpdate_OPERATION_CREATE, long), update(t, v1.RelationshipUpdate_OPERATION_TOUCH, long)
	nativeTuple := &pembav1.Tuple{
		Object: &pembav1.Object{Type: "document", Id: object}, Relation: "viewer",
		Subject: &pembav1.Subject{Object: &pembav1.Object{Type: "user", Id: subject}},
	}
	_, nativeCreate := pembav1.NewTupleServiceClient(conn).WriteTuples(testContext(t), &pembav1.WriteTuplesRequest{
		Updates: []*pembav1.TupleUpdate{{Operation: pembav1.TupleUpdate_OPERATION_CREATE, Tuple: nativeTuple}},
	})
	_, nativeSchema := pembav1.NewSchemaServiceClient(conn).WriteSchema(testContext(t), &pembav1.WriteSchemaRequest{Schema: mistakes.String()})
	type mistake struct {
		err  error
		want codes.Code
	}
	all := map[string]mistake{
		"create":           {write(nil, create), codes.AlreadyExists},
		"twice":            {write(nil, again, again), codes.InvalidArgument},
		"caveat":           {write(nil, update(t, v1.RelationshipUpdate_OPERATION_TOUCH, long+"[holds]")), codes.InvalidArgument},
		"unknown caveat":   {write(nil, update(t, v1.RelationshipUpdate_OPERATION_TOUCH, long+"[other]")), codes.InvalidArgument},
		"permission":       {write(nil, update(t, v1.RelationshipUpdate_OPERATION_TOUCH, strings.Replace(long, "#viewer", "#view", 1))), codes.InvalidArgument},
		"precondition":     {write(there, update(t, v1.RelationshipUpdate_OPERATION_TOUCH, "document:b#viewer@user:c")), codes.FailedPrecondition},
		"schema mistakes":  {schemaError(mistakes.String()), codes.FailedPrecondition},
		"schema syntax":    {schemaError(strings.Repeat("relation ", 4000)), codes.InvalidArgument},
		"orphaned":         {schemaError("definition user {}\ndefinition document { relation other: user }"), codes.InvalidArgument},
		"pemba.v1, create": {nativeCreate, codes.AlreadyExists},
		"pemba.v1, schema": {nativeSchema, codes.InvalidArgument},
	}
	// What gRPC sends of a message takes three bytes for each that is not printable
	// ASCII, and for each '%'.
	for _, letter := range []string{"a", "%", "\"", "é", "漢", "😀"} {
		id := strings.Repeat(letter, 1020/len(letter))
		tuple := func(relation string) *pembav1.Tuple {
			return &pembav1.Tuple{
				Object: &pembav1.Object{Type: "document", Id: id}, Relation: relation,
				Subject: &pembav1.Subject{Object: &pembav1.Object{Type: "user", Id: id}},
			}
		}
		writeNative := func(operation pembav1.TupleUpdate_Operation, tuples ...*pembav1.Tuple) error {
			r := new(pembav1.WriteTuplesRequest)
			for _, tuple := range tuples {
				r.Updates = append(r.Updates, &pembav1.TupleUpdate{Operation: operation, Tuple: tuple})
			}
			_, err := pembav1.NewTupleServiceClient(conn).WriteTuples(testContext(t), r)
			return err
		}
		touch, create := pembav1.TupleUpdate_OPERATION_TOUCH, pembav1.TupleUpdate_OPERATION_CREATE
		if err := writeNative(touch, tuple("viewer")); err != nil {
			t.Fatal(err)
		}
		caveated := tuple("viewer")
		caveated.Caveat = &pembav1.Caveat{Name: "holds"}
		// The path of the field holds the key of a context.
		keyed := tuple("viewer")
		keyed.Caveat = &pembav1.Caveat{Name: "holds", Context: &structpb.Struct{Fields: map[string]*structpb.Value{
			strings.Repeat(letter, 3000/len(letter)): structpb.NewNumberValue(math.Inf(1)),
		}}}
		nameless := tuple("viewer")
		nameless.Object.Type = id
		_, unknown := pembav1.NewSchemaServiceClient(conn).ReadSchema(testContext(t), &pembav1.ReadSchemaRequest{Store: id[:len(letter)*(250/len(letter))]})
		for what, m := range map[string]mistake{
			"create":  {writeNative(create, tuple("viewer")), codes.AlreadyExists},
			"twice":   {writeNative(touch, tuple("viewer"), tuple("viewer")), codes.InvalidArgument},
			"caveat":  {writeNative(touch, caveated), codes.InvalidArgument},
			"context": {writeNative(touch, keyed), codes.InvalidArgument},
			"type":    {writeNative(touch, nameless), codes.InvalidArgument},
			"store":   {unknown, codes.NotFound},
			"schema": {func() error {
				_, err := pembav1.NewSchemaServiceClient(conn).WriteSchema(testContext(t), &pembav1.WriteSchemaRequest{Schema: strings.Repeat(letter, 4000)})
				return err
			}(), codes.InvalidArgument},
		} {
			all["pemba.v1, "+what+" with "+letter] = m
		}
	}
	for what, c := range all {
		if status.Code(c.err) != c.want {
			t.Errorf("%s: %v", what, c.err)
		}
	}
}

// TestLimitsAreDocumented: the limits of this API are in the table of
// docs/limits.md with their values, and no others.
func TestLimitsAreDocumented(t *testing.T) {
	content, err := os.ReadFile("../../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := make(map[string]string)
	for _, row := range regexp.MustCompile(`(?m)^\| fixed \| ([^|]+) \| ([^|]+) \| [^|]*\|$`).FindAllStringSubmatch(string(content), -1) {
		if strings.Contains(row[2], "`authzed.api.v1`") && !strings.Contains(row[2], "counters") {
			rows[row[2]] = row[1]
		}
	}
	for _, n := range []int{deleteLimitMax, lookupResourcesMax} {
		if n != readLimitMax {
			t.Errorf("the limits of reads, deletes and lookups are one row, and one is %d, another %d", readLimitMax, n)
		}
	}
	for what, want := range map[string]string{
		"updates of one write of `authzed.api.v1`":                                                                 shownCount(updatesMax),
		"preconditions of one write or delete of `authzed.api.v1`":                                                 shownCount(preconditionsMax),
		"items of one bulk check of `authzed.api.v1`":                                                              shownCount(checksMax),
		"`optional_limit` of `ReadRelationships`, `DeleteRelationships` and `LookupResources` of `authzed.api.v1`": shownCount(readLimitMax),
		"relationships of one page of an export of `authzed.api.v1`": fmt.Sprintf("%s, and %s where none is asked for; a page also ends at %d KiB",
			shownCount(exportLimitMax), shownCount(exportPage), exportBatchBytes>>10),
		"relationships that one delete of `authzed.api.v1` without a limit ends":                    shownCount(deleteWholeMax),
		"context of a question of `authzed.api.v1`, as encoded":                                     shownCount(questionContextMax) + " bytes",
		"context of a relationship of `authzed.api.v1`, as encoded":                                 shownCount(tupleContextMax) + " bytes",
		"metadata of a change of `authzed.api.v1`, as JSON":                                         shownCount(metadataMax) + " bytes",
		"types, and filters, of one watch, and filters of one `ReflectSchema`, of `authzed.api.v1`": shownCount(filtersMax),
		"debug information of one call of `authzed.api.v1`":                                         fmt.Sprintf("%d MiB", debugBytesMax>>20),
	} {
		if got, ok := rows[what]; !ok || got != want {
			t.Errorf("docs/limits.md says %q of %s; it is %s", got, what, want)
		}
		delete(rows, what)
	}
	for what := range rows {
		t.Errorf("docs/limits.md lists %s, which is not known here", what)
	}
}

// shownCount writes a number as the pages do: 10,000.
func shownCount(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", shownCount(n/1000), n%1000)
}
