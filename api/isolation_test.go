package api

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
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
	"GetCluster":         ``,
	"AddMember":          `id: "n2" raft_addr: "127.0.0.1:7002"`,
	"PromoteMember":      `id: "n2"`,
	"RemoveMember":       `id: "n2"`,
	"TransferLeadership": ``,
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

// secretRequests asks for what beta alone has, in every call that can name it. The
// calls that are missing have no place for an id.
var secretRequests = map[string]string{
	"WriteSchema":     `schema: "definition user {} definition zz_secret {}"`,
	"DiffSchema":      `to_schema: "definition zz_secret {}"`,
	"TrySchema":       `schema: "definition zz_secret {}"`,
	"WriteTuples":     `updates { operation: OPERATION_TOUCH tuple { object { type: "doc" id: "zz-secret" } relation: "viewer" subject { object { type: "user" id: "zz-secret2" } } } } recorded_actor: "zz-secret"`,
	"DeleteTuples":    `filter { object_type: "doc" object_id: "zz-secret" } recorded_actor: "zz-secret"`,
	"ReadTuples":      `filter { object_type: "doc" object_id: "zz-secret" }`,
	"CountTuples":     `filter { object_type: "zz_secret" object_id: "zz-secret" }`,
	"ImportTuples":    `header { import_id: "zz-secret" } tuples { object { type: "doc" id: "zz-secret" } relation: "viewer" subject { object { type: "user" id: "zz-secret3" } } }`,
	"GetImport":       `import_id: "zz-secret"`,
	"AbortImport":     `import_id: "zz-secret"`,
	"ExportTuples":    `filter { object_type: "doc" object_id: "zz-secret" }`,
	"Check":           `object { type: "doc" id: "zz-secret" } permission: "view" subject { object { type: "user" id: "zz-secret" } } explain: true`,
	"CheckBulk":       `items { object { type: "doc" id: "zz-secret" } permission: "view" subject { object { type: "user" id: "zz-secret" } } } items { object { type: "zz_secret" id: "shared" } permission: "view" subject { object { type: "user" id: "anne" } } }`,
	"Expand":          `object { type: "doc" id: "zz-secret" } permission: "view"`,
	"LookupResources": `type: "doc" permission: "view" subject { object { type: "user" id: "zz-secret" } }`,
	"LookupSubjects":  `object { type: "doc" id: "zz-secret" } permission: "view" subject_type: "user"`,
	"CountResources":  `type: "doc" permission: "view" subject { object { type: "user" id: "zz-secret" } }`,
	"CountSubjects":   `object { type: "doc" id: "zz-secret" } permission: "view" subject_type: "zz_secret"`,
	"Watch":           `filters { object_type: "doc" object_id: "zz-secret" } schema_changes: true`,
	"ReadChanges":     `filters { object_type: "doc" object_id: "zz-secret" }`,
}

// secretWord matches a name of beta's own, whole.
var secretWord = regexp.MustCompile(`zz[-_]secret[-_0-9A-Za-z]*`)

// leaked returns the names of beta's own that an answer has and its request has
// not: what a caller is told of his own words is no secret.
func leaked(t testing.TB, request proto.Message, answer string) (names []string) {
	t.Helper()
	if !strings.Contains(answer, "zz") {
		return nil
	}
	said, err := prototext.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	known := secretWord.FindAllString(string(said), -1)
	for _, at := range secretWord.FindAllStringIndex(answer, -1) {
		name, cut := answer[at[0]:at[1]], strings.HasPrefix(answer[at[1]:], "...")
		if !slices.ContainsFunc(known, func(k string) bool { return k == name || cut && strings.HasPrefix(k, name) }) {
			names = append(names, name)
		}
	}
	return names
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
	// renew makes alpha anew, with nothing in it that a test wrote.
	renew func()
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
	x := &twoStores{server: testServer(t, Config{Node: memoryNode(t), Keys: []string{"operator"}, KeyFile: keys}), cursors: make(map[string]string)}
	x.client = dial(t, x.server)
	ctx := as(context.Background(), "operator") // A fuzzer renews alpha for as long as it runs.
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
	x.renew = func() {
		if _, there := x.server.node.StoreNamed("alpha"); there {
			if _, err := x.client.DeleteStore(ctx, &pembav1.DeleteStoreRequest{Store: "alpha"}); err != nil {
				t.Fatal(err)
			}
		}
		write("alpha", tuple("shared", "anne"), tuple("shared", "bob"), tuple("other", "anne"))
	}
	x.renew()
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
	ctx, cancel := context.WithTimeout(as(context.Background(), "bound"), patience)
	defer cancel()
	messages, err := invoke(ctx, x.client.conn, m, take, r.Interface())
	var b strings.Builder
	for _, message := range messages {
		raw, err := prototext.MarshalOptions{}.Marshal(message.Interface())
		if err != nil {
			t.Fatal(err)
		}
		if names := leaked(t, r.Interface(), string(raw)); names != nil {
			t.Errorf("%s: the answer tells of %q of the other store: %s", m.Name(), names, raw)
		}
		b.WriteString(printMessage(t, message) + "\n")
	}
	if err != nil {
		raw, failed := prototext.Marshal(status.Convert(err).Proto())
		if failed != nil {
			t.Fatal(failed)
		}
		if names := leaked(t, r.Interface(), string(raw)+fmt.Sprint(err)); names != nil {
			t.Errorf("%s: the error tells of %q of the other store: %v", m.Name(), names, err)
		}
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
			if m.Parent().Name() == "StoreService" || m.Parent().Name() == "ClusterService" {
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
		if m.Parent().Name() == "ClusterService" || m.Parent().Name() == "StoreService" && m.Name() != "GetStore" && m.Name() != "ListStores" {
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

// changing are the calls that leave something in a store.
var changing = []protoreflect.Name{
	"CreateStore", "UpdateStore", "DeleteStore", "WriteSchema", "WriteTuples", "DeleteTuples", "ImportTuples", "AbortImport",
}

// hide gives beta's own names other ones, as long, which nobody has.
func hide(b []byte) []byte {
	return bytes.ReplaceAll(bytes.ReplaceAll(b, []byte("zz-secret"), []byte("zz-hidden")), []byte("zz_secret"), []byte("zz_hidden"))
}

// hideIn does so in all texts of a message, and reports whether there was such a name.
func hideIn(m protoreflect.Message) (names bool) {
	value := func(v protoreflect.Value) protoreflect.Value {
		switch was := v.Interface().(type) {
		case protoreflect.Message:
			names = hideIn(was) || names
		case string:
			v = protoreflect.ValueOfString(string(hide([]byte(was))))
			names = names || v.String() != was
		case []byte:
			v = protoreflect.ValueOfBytes(hide(was))
			names = names || !bytes.Equal(v.Bytes(), was)
		}
		return v
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			entries := v.Map()
			var keys []protoreflect.MapKey
			entries.Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
				keys = append(keys, k)
				return true
			})
			for _, k := range keys {
				e := entries.Get(k)
				entries.Clear(k)
				entries.Set(value(k.Value()).MapKey(), value(e))
			}
		case f.IsList():
			for i := range v.List().Len() {
				v.List().Set(i, value(v.List().Get(i)))
			}
		default:
			m.Set(f, value(v))
		}
		return true
	})
	return names
}

// pry makes a call with the key that is bound to alpha. Nothing of beta's may be
// told that the request does not say, nothing may depend on whether beta has what
// it names, and nothing of beta may change.
func (x *twoStores) pry(t testing.TB, m protoreflect.MethodDescriptor, r protoreflect.Message) {
	t.Helper()
	other := proto.Clone(r.Interface()).ProtoReflect()
	names := hideIn(other)
	outcome := func(r protoreflect.Message) string {
		text, err := x.ask(t, m, r)
		if err != nil {
			switch code := status.Code(err); code {
			case codes.Internal, codes.Unknown, codes.DataLoss:
				t.Errorf("%s: %v", m.Name(), err)
			}
			// Its text may have the time.
			text += fmt.Sprintf("%v %s", status.Code(err), reasonOfStatus(err))
		}
		return text
	}
	got := outcome(r)
	switch {
	case names && slices.Contains(changing, m.Name()):
		x.renew() // What alpha was told is no secret in it any more.
	case names:
		if want := outcome(other); string(hide([]byte(got))) != want {
			t.Errorf("%s tells what the other store has from what nobody has:\n%s\n%s", m.Name(), got, want)
		}
	}
	if got := x.info(t); got != x.beta {
		t.Errorf("%s: beta was %+v and is %+v", m.Name(), x.beta, got)
	}
}

// reasonOfStatus is the reason that an error has over the wire.
func reasonOfStatus(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

// TestLeakIsFound: the search of the tests of this file finds what it should, and
// takes no echo for a leak.
func TestLeakIsFound(t *testing.T) {
	said := &pembav1.CheckRequest{Object: object("doc", "zz-secret2"), Subject: user("anne")}
	for _, test := range []struct {
		answer string
		want   []string
	}{
		{`id: "shared"`, nil},
		{`message: "doc:zz-secret2#view"`, nil},
		{`id: "zz-secret"`, []string{"zz-secret"}},
		{`type: "zz_secret" id: "zz-secret2"`, []string{"zz_secret"}},
		{`id: "zz-secret23"`, []string{"zz-secret23"}},
		{`message: "doc:zz-secret..."`, nil},
	} {
		if got := leaked(t, said, test.answer); !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, expected %q", test.answer, got, test.want)
		}
	}
}

// FuzzStores: whatever a caller with alpha's key asks, nothing of beta's is told
// and nothing of it changes. The seeds ask every call for both stores, with
// beta's zookie and cursor and without, and for what beta alone has.
func FuzzStores(f *testing.F) {
	methods := isolationMethods(f)
	x := newTwoStores(f)
	for i, m := range methods {
		for _, text := range []string{isolationRequests[string(m.Name())], secretRequests[string(m.Name())]} {
			for choice := range byte(4) {
				r := dynamicpb.NewMessage(m.Input())
				if err := prototext.Unmarshal([]byte(text), r); err != nil {
					f.Fatalf("%s: %v", m.Name(), err)
				}
				if choice == 3 {
					fill(r, "beta", nil, x.cursors[string(m.Name())])
				}
				raw, err := proto.Marshal(r)
				if err != nil {
					f.Fatal(err)
				}
				f.Add(i, choice, raw)
			}
		}
	}
	f.Fuzz(func(t *testing.T, method int, choice byte, raw []byte) {
		m := methods[uint(method)%uint(len(methods))]
		r := dynamicpb.NewMessage(m.Input())
		if proto.Unmarshal(raw, r) != nil {
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
		x.pry(t, m, r)
	})
}
