package api

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/graph"
)

// Two stores, alpha and beta, have the same types and in part the same ids; what
// beta alone has is called secret. The tests of this file hold a key that is
// bound to alpha and must learn nothing of beta, nor change anything in it.

// secret stands in every name that is beta's alone.
const secret = "zz-secret"

// isolationRequests has a request for every call of every service, which answers
// something in both stores. What names the store, a zookie or a cursor is filled
// in by the tests.
var isolationRequests = map[string]string{
	"CreateStore":        `name: "beta"`,
	"UpdateStore":        `settings { tuples_max: 1 }`,
	"GetStore":           ``,
	"ListStores":         ``,
	"DeleteStore":        ``,
	"WriteSchema":        `schema: "definition user {} definition doc { relation viewer: user permission view = viewer }"`,
	"ReadSchema":         ``,
	"ListSchemaVersions": `limit: 1`,
	"DiffSchema":         `to_schema: "definition user {}"`,
	"TrySchema":          `schema: "definition user {}"`,
	"WriteTuples":        `updates { operation: OPERATION_TOUCH tuple { object { type: "doc" id: "shared" } relation: "viewer" subject { object { type: "user" id: "anne" } } } }`,
	"DeleteTuples":       `filter { object_type: "doc" object_id: "nothing" }`,
	"ReadTuples":         `limit: 1`,
	"CountTuples":        ``,
	"ImportTuples":       `header {} tuples { object { type: "doc" id: "shared" } relation: "viewer" subject { object { type: "user" id: "anne" } } }`,
	"GetImport":          `import_id: "job"`,
	"AbortImport":        `import_id: "job"`,
	"ExportTuples":       ``,
	"Check":              `object { type: "doc" id: "shared" } permission: "view" subject { object { type: "user" id: "zz-secret" } }`,
	"CheckBulk":          `items { object { type: "doc" id: "shared" } permission: "view" subject { object { type: "user" id: "zz-secret" } } }`,
	"Expand":             `object { type: "doc" id: "shared" } permission: "view"`,
	"LookupResources":    `type: "doc" permission: "view" subject { object { type: "user" id: "anne" } } limit: 1`,
	"LookupSubjects":     `object { type: "doc" id: "shared" } permission: "view" subject_type: "user" limit: 1`,
	"CountResources":     `type: "doc" permission: "view" subject { object { type: "user" id: "anne" } }`,
	"CountSubjects":      `object { type: "doc" id: "shared" } permission: "view" subject_type: "user"`,
	"Watch":              `schema_changes: true`,
	"ReadChanges":        `schema_changes: true limit: 1`,
}

// isolationMethods finds every call of pemba.v1, so that a new one that is
// missing above is noticed.
func isolationMethods(t testing.TB) []protoreflect.MethodDescriptor {
	t.Helper()
	var methods []protoreflect.MethodDescriptor
	services := pembav1.File_pemba_v1_pemba_proto.Services()
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			m := services.Get(i).Methods().Get(j)
			if _, known := isolationRequests[string(m.Name())]; !known {
				t.Fatalf("the call %s has no request here", m.FullName())
			}
			methods = append(methods, m)
		}
	}
	return methods
}

// A twoStores is a server with both stores.
type twoStores struct {
	server *Server
	client *testClient
	// written is a zookie of beta's; cursors holds one of beta's for each call
	// that gives out some.
	written *pembav1.Zookie
	cursors map[string]string
	beta    graph.StoreInfo
}

func as(ctx context.Context, key string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+key)
}

func newTwoStores(t testing.TB) *twoStores {
	t.Helper()
	keys := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(keys, []byte("bound store alpha\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	x := &twoStores{server: testServer(t, Config{Keys: []string{"operator"}, KeyFile: keys}), cursors: make(map[string]string)}
	x.client = dial(t, x.server)
	ctx := as(testContext(t), "operator")
	tuple := func(doc, user string) *pembav1.Tuple {
		return &pembav1.Tuple{
			Object: object("doc", doc), Relation: "viewer",
			Subject: &pembav1.Subject{Object: object("user", user)},
		}
	}
	write := func(store string, tuples ...*pembav1.Tuple) *pembav1.Zookie {
		if _, err := x.client.CreateStore(ctx, &pembav1.CreateStoreRequest{Name: store}); err != nil {
			t.Fatal(err)
		}
		if _, err := x.client.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Store: store, Schema: testSchema}); err != nil {
			t.Fatal(err)
		}
		r := &pembav1.WriteTuplesRequest{Store: store}
		for _, tuple := range tuples {
			r.Updates = append(r.Updates, &pembav1.TupleUpdate{Operation: pembav1.TupleUpdate_OPERATION_TOUCH, Tuple: tuple})
		}
		if store == "beta" {
			r.RecordedActor, r.Metadata = secret, structOf(t, map[string]any{"note": secret})
		}
		written, err := x.client.WriteTuples(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		return written.GetWrittenAt()
	}
	write("alpha", tuple("shared", "anne"), tuple("shared", "bob"), tuple("other", "anne"))
	x.written = write("beta", tuple("shared", "anne"), tuple("shared", secret), tuple(secret, "anne"), tuple(secret+"2", "anne"), tuple(secret, secret))
	if _, err := x.client.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Store: "beta", Schema: testSchema + " definition zz_secret {}"}); err != nil {
		t.Fatal(err)
	}
	// An import waits in beta.
	method := findMethod(t, "ImportTuples")
	_, err := invoke(ctx, x.client.conn, method, -1,
		&pembav1.ImportTuplesRequest{Header: &pembav1.ImportHeader{Store: "beta", ImportId: "job"}},
		&pembav1.ImportTuplesRequest{Tuples: []*pembav1.Tuple{tuple(secret+"3", secret)}},
		&pembav1.ImportTuplesRequest{Chunk: 7, Tuples: []*pembav1.Tuple{tuple("x", "y")}})
	if status.Code(err) != codes.InvalidArgument {
		t.Fatalf("an import with a gap: %v", err)
	}
	for _, m := range isolationMethods(t) {
		if m.Output().Fields().ByName("cursor") == nil && m.Name() != "ReadChanges" {
			continue
		}
		r := x.request(t, m, "beta", nil, "")
		messages, err := invoke(ctx, x.client.conn, m, 1, r.Interface())
		if err != nil || len(messages) == 0 {
			t.Fatalf("%s: %v", m.Name(), err)
		}
		answer := messages[0]
		if m.Name() == "ReadChanges" {
			answer = answer.Get(m.Output().Fields().ByName("changes")).Message()
		}
		x.cursors[string(m.Name())] = answer.Get(answer.Descriptor().Fields().ByName("cursor")).String()
	}
	x.beta = x.info(t)
	return x
}

// info is how beta is.
func (x *twoStores) info(t testing.TB) graph.StoreInfo {
	t.Helper()
	info, found := x.server.node.StoreNamed("beta")
	if !found {
		t.Fatal("beta is gone")
	}
	stages, err := x.server.node.Stages(info.ID)
	if err != nil || len(stages) != 1 || stages[0].Chunks != 1 {
		t.Fatalf("beta's import: %v, %v", stages, err)
	}
	return info
}

// request makes the request of a call for a store, with a zookie wherever one
// may stand, and with a cursor.
func (x *twoStores) request(t testing.TB, m protoreflect.MethodDescriptor, store string, z *pembav1.Zookie, cursor string) protoreflect.Message {
	t.Helper()
	r := dynamicpb.NewMessage(m.Input())
	if err := prototext.Unmarshal([]byte(isolationRequests[string(m.Name())]), r); err != nil {
		t.Fatalf("%s: %v", m.Name(), err)
	}
	fill(r, store, z, cursor)
	return r
}

// fill sets the store, the zookies and the cursor of a request, as far as it has
// fields for them.
func fill(r protoreflect.Message, store string, z *pembav1.Zookie, cursor string) {
	fields := r.Descriptor().Fields()
	set := func(f protoreflect.FieldDescriptor, m proto.Message) {
		raw, err := proto.Marshal(m)
		if err == nil {
			err = proto.Unmarshal(raw, r.Mutable(f).Message().Interface())
		}
		if err != nil {
			panic(err) // The messages have one type.
		}
	}
	if f := fields.ByName("store"); f != nil {
		r.Set(f, protoreflect.ValueOfString(store))
	}
	if f := fields.ByName("header"); f != nil && r.Has(f) {
		fill(r.Mutable(f).Message(), store, nil, "")
	}
	if z != nil {
		for i := range fields.Len() {
			if f := fields.Get(i); f.Message() != nil && f.Message().Name() == "Zookie" {
				set(f, z)
			}
		}
		if f := fields.ByName("consistency"); f != nil {
			set(f, &pembav1.Consistency{Requirement: &pembav1.Consistency_ExactlyAt{ExactlyAt: z}})
		}
	}
	if f := fields.ByName("cursor"); f != nil && cursor != "" {
		r.Set(f, protoreflect.ValueOfString(cursor))
	}
}

// ask makes a call with the key that is bound to alpha and returns the answer as
// text, tokens and moments left out. Of a watch it takes the first message.
func (x *twoStores) ask(t testing.TB, m protoreflect.MethodDescriptor, r protoreflect.Message) (string, error) {
	t.Helper()
	take := -1
	if m.Name() == "Watch" {
		take = 1
	}
	ctx, cancel := context.WithTimeout(as(context.Background(), "bound"), 10*time.Second)
	defer cancel()
	messages, err := invoke(ctx, x.client.conn, m, take, r.Interface())
	var b strings.Builder
	for _, message := range messages {
		raw, err := prototext.MarshalOptions{}.Marshal(message.Interface())
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(raw, []byte(secret)) || bytes.Contains(raw, []byte("zz_secret")) {
			t.Errorf("%s: the answer has a secret of the other store: %s", m.Name(), raw)
		}
		b.WriteString(printMessage(t, message) + "\n")
	}
	return b.String(), err
}

// TestStoresOfOthers asks, with a key that is bound to alpha, for beta and for a
// store that does not exist, and must not be able to tell the two apart.
func TestStoresOfOthers(t *testing.T) {
	x := newTwoStores(t)
	for _, m := range isolationMethods(t) {
		answer := func(store string) string {
			r := x.request(t, m, store, nil, "")
			if f := m.Input().Fields().ByName("name"); f != nil {
				r.Set(f, protoreflect.ValueOfString(store))
			}
			text, err := x.ask(t, m, r)
			if err == nil {
				if m.Name() != "ListStores" {
					t.Errorf("%s of %s: no error", m.Name(), store)
				}
				return text
			}
			want := []string{"UNKNOWN_STORE"}
			if m.Parent().Name() == "StoreService" {
				want = append(want, "OPERATOR_ONLY")
			}
			printed := printError(t, err)
			if !slices.ContainsFunc(want, func(reason string) bool { return strings.Contains(printed, reason) }) {
				t.Errorf("%s of %s: %s", m.Name(), store, printed)
			}
			raw, err := prototext.MarshalOptions{}.Marshal(status.Convert(err).Proto())
			if err != nil {
				t.Fatal(err)
			}
			return string(raw)
		}
		there, missing := answer("beta"), answer("gamm")
		// prototext adds blanks at random, and raw details are in it by length:
		// the names are as long as each other.
		there = strings.ReplaceAll(strings.ReplaceAll(there, "beta", "gamm"), " ", "")
		if missing = strings.ReplaceAll(missing, " ", ""); there != missing {
			t.Errorf("%s tells a store of others from one that is none:\n%s\n%s", m.Name(), there, missing)
		}
	}
	if got := x.info(t); got != x.beta {
		t.Errorf("beta was %+v and is %+v", x.beta, got)
	}
	// The list has what the key may see, and nothing besides.
	list, err := x.client.ListStores(as(testContext(t), "bound"), &pembav1.ListStoresRequest{})
	if err != nil || len(list.GetStores()) != 1 || list.GetStores()[0].GetName() != "alpha" {
		t.Errorf("the list: %v, %v", list, err)
	}
}

// TestTokensOfOthers uses beta's zookies and cursors in alpha. A zookie is a
// revision and no more: alpha did not change since, so that every answer is the
// one it gives without. A cursor is refused.
func TestTokensOfOthers(t *testing.T) {
	x := newTwoStores(t)
	// What the calls that change alpha come to must not differ between the two.
	for _, m := range isolationMethods(t) {
		if m.Parent().Name() == "StoreService" && m.Name() != "GetStore" && m.Name() != "ListStores" {
			continue // The key may not call them.
		}
		want, wantErr := x.ask(t, m, x.request(t, m, "alpha", nil, ""))
		got, err := x.ask(t, m, x.request(t, m, "alpha", x.written, ""))
		if m.Name() == "Watch" || m.Name() == "ReadChanges" || m.Name() == "DiffSchema" {
			// Here the zookie is the question itself.
			want, wantErr = got, err
		}
		if got != want || (err == nil) != (wantErr == nil) {
			t.Errorf("%s with a zookie of the other store:\n%s %v\nwithout:\n%s %v", m.Name(), got, err, want, wantErr)
		}
		if err != nil && !strings.Contains(printError(t, err), "STAGE_UNKNOWN") && m.Name() != "DiffSchema" {
			t.Errorf("%s: %v", m.Name(), err)
		}
		cursor := x.cursors[string(m.Name())]
		if m.Name() == "ListStores" {
			continue // It belongs to no store.
		}
		if m.Input().Fields().ByName("cursor") != nil && cursor == "" {
			t.Errorf("%s takes a cursor, and the other store gave none", m.Name())
		}
		if cursor == "" {
			continue
		}
		if got, err := x.ask(t, m, x.request(t, m, "alpha", nil, cursor)); err == nil {
			t.Errorf("%s takes a cursor of the other store: %s", m.Name(), got)
		} else {
			expectStatus(t, string(m.Name()), err, codes.InvalidArgument, "CURSOR_INVALID")
		}
	}
	if got := x.info(t); got != x.beta {
		t.Errorf("beta was %+v and is %+v", x.beta, got)
	}
}

// TestWatchOfOthers: a watch of alpha passes over what is written to beta.
func TestWatchOfOthers(t *testing.T) {
	x := newTwoStores(t)
	ctx := testContext(t)
	stream, err := x.client.Watch(as(ctx, "bound"), &pembav1.WatchRequest{Store: "alpha", SchemaChanges: true})
	if err != nil {
		t.Fatal(err)
	}
	if first, err := stream.Recv(); err != nil || !first.GetHeartbeat() {
		t.Fatalf("%v, %v", first, err)
	}
	for i, store := range []string{"beta", "beta", "alpha"} {
		if _, err := x.client.WriteTuples(as(ctx, "operator"), &pembav1.WriteTuplesRequest{Store: store, Updates: touch(i, i+1)}); err != nil {
			t.Fatal(err)
		}
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if m.GetHeartbeat() {
			continue
		}
		if id := m.GetChanges()[0].GetTuple().GetObject().GetId(); id != "d00002" {
			t.Errorf("the watch of alpha tells of %s", id)
		}
		return
	}
}

// FuzzStores: whatever a caller with alpha's key asks, nothing of beta's is told
// and nothing of it changes.
func FuzzStores(f *testing.F) {
	methods := isolationMethods(f)
	x := newTwoStores(f)
	for i, m := range methods {
		for _, store := range []string{"alpha", "beta"} {
			for _, z := range []*pembav1.Zookie{nil, x.written} {
				raw, err := proto.Marshal(x.request(f, m, store, z, x.cursors[string(m.Name())]).Interface())
				if err != nil {
					f.Fatal(err)
				}
				f.Add(i, byte(len(store)), raw)
			}
		}
	}
	f.Fuzz(func(t *testing.T, method int, choice byte, raw []byte) {
		m := methods[uint(method)%uint(len(methods))]
		r := dynamicpb.NewMessage(m.Input())
		if proto.Unmarshal(raw, r) != nil || bytes.Contains(raw, []byte("secret")) {
			return
		}
		switch choice % 4 {
		case 0:
			fill(r, "alpha", nil, "")
		case 1:
			fill(r, "beta", x.written, "")
		case 2:
			fill(r, "alpha", x.written, x.cursors[string(m.Name())])
		}
		if _, err := x.ask(t, m, r); err != nil {
			switch code := status.Code(err); code {
			case codes.Internal, codes.Unknown, codes.DataLoss:
				t.Errorf("%s: %v", m.Name(), err)
			}
			if strings.Contains(fmt.Sprint(err), secret) {
				t.Errorf("%s: the error has a secret of the other store: %v", m.Name(), err)
			}
		}
		if got := x.info(t); got != x.beta {
			t.Errorf("%s: beta was %+v and is %+v", m.Name(), x.beta, got)
		}
	})
}
