package authzed

import (
	"context"
	"errors"
	"flag"
	"io"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/pembadb/pemba/api"
)

const fuzzSchema = `use expiration

caveat at_least(level int, needed int) {
	level / needed > 1
}

definition user {}

definition group {
	relation member: user | group#member
}

definition document {
	relation parent: document
	relation viewer: user | user:* | group#member | user with at_least | user with expiration
	relation banned: user | group#member
	permission view = viewer + parent->view - banned
	permission both = viewer & banned
}
`

var fuzzTuples = []string{
	"group:eng#member@user:anne", "group:eng#member@group:eng#member", "group:all#member@group:eng#member",
	"document:plan#viewer@group:eng#member", "document:plan#viewer@user:bob[at_least:{\"needed\":2}]", "document:plan#banned@user:bob",
	"document:plan#parent@document:readme", "document:readme#parent@document:plan", "document:readme#viewer@user:*",
}

// What fields are filled with: what is in the store, and what is in none.
var (
	fuzzTypes    = []string{"document", "group", "user", "folder"}
	fuzzIDs      = []string{"plan", "readme", "eng", "all", "anne", "bob", "*", "p", "nobody"}
	fuzzNames    = []string{"view", "viewer", "member", "banned", "parent", "both", "sign"}
	fuzzCaveats  = []string{"at_least", "at_most"}
	fuzzCounters = []string{"some_counter", "other_counter"}
	fuzzContexts = []string{`{"level":4}`, `{"level":"4","needed":1}`, `{"needed":0,"level":1}`, `{"level":"many"}`, `{"x":{"y":[1,null,{"z":"` + strings.Repeat("z", 5000) + `"}]}}`, `{}`}
	fuzzSchemas  = []string{
		fuzzSchema, fuzzSchema + "definition folder {\n\trelation viewer: user\n}", strings.Replace(fuzzSchema, "viewer & banned", "viewer - banned", 1),
		"definition user {}", "", "definition user {", "caveat at_least(level string) { level == \"\" }", "definition a {}", "use unknown",
		"definition user { permission view = view }", "import \"x\"", "definition user {}\ndefinition user {}",
	}
	// Each is valid UTF-8: what is not never leaves the client.
	fuzzGarbage = []string{"", "*", "a", "UPPER", "a.b", "a b", "\x00", "\u00e4", "a/b/c", "-1", "1e9", strings.Repeat("x", 1500), "document:plan#viewer", "{}", "%s%n"}
	fuzzNumbers = []uint64{0, 1, 2, 3, 1000, 1001, 10_000, 10_001, math.MaxInt32, math.MaxUint32}
)

// A fuzzServer is asked with requests that choices, a row of bytes, fill by
// reflection.
type fuzzServer struct {
	conn    *grpc.ClientConn
	methods []protoreflect.MethodDescriptor
	tokens  []string
}

// newFuzzServer has every method but the watch, which has no end.
func newFuzzServer(t testing.TB) *fuzzServer {
	t.Helper()
	x := &fuzzServer{}
	// Many rows change something, and each change would wait for a disk.
	x.conn, _ = newServerWith(t, api.Config{Node: newMemoryNode(t), Limits: api.Limits{Steps: 10_000}})
	for _, service := range (Dialect{}).Services() {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service.ServiceName))
		if err != nil {
			t.Fatal(err)
		}
		methods := d.(protoreflect.ServiceDescriptor).Methods()
		for i := range methods.Len() {
			if m := methods.Get(i); m.FullName() != "authzed.api.v1.WatchService.Watch" {
				x.methods = append(x.methods, m)
			}
		}
	}
	x.tokens = append(x.tokens, writeSchema(t, x.conn, fuzzSchema).GetToken(), touch(t, x.conn, fuzzTuples...).GetToken())
	x.count(t)
	for range 2 { // Two cursors of each kind differ.
		_, cursor, err := readAll(t, x.conn, &v1.ReadRelationshipsRequest{RelationshipFilter: &v1.RelationshipFilter{ResourceType: "document"}, OptionalLimit: 1})
		if err != nil {
			t.Fatal(err)
		}
		_, found, err := resources(t, x.conn, &v1.LookupResourcesRequest{ResourceObjectType: "document", Permission: "view", Subject: subjectOf("user", "anne", ""), OptionalLimit: 1})
		if err != nil {
			t.Fatal(err)
		}
		x.tokens = append(x.tokens, cursor.GetToken(), found.GetAfterResultCursor().GetToken(), found.GetLookedUpAt().GetToken())
	}
	garbled := x.tokens[0][:len(x.tokens[0])-6] + "AAAAA="
	x.tokens = append(x.tokens, "GgYKBENBRT0=", garbled, "garbled")
	return x
}

// A chooser reads choices from a row of bytes; behind its end all are 0.
type chooser struct{ row []byte }

func (c *chooser) next() int {
	if len(c.row) == 0 {
		return 0
	}
	b := c.row[0]
	c.row = c.row[1:]
	return int(b)
}

func of[T any](c *chooser, some []T) T { return some[c.next()%len(some)] }

// fill fills a message, its required fields nearly always.
func (x *fuzzServer) fill(c *chooser, m protoreflect.Message, depth int) {
	if s, ok := m.Interface().(*structpb.Struct); ok {
		// A choice of these is always a JSON object.
		if err := s.UnmarshalJSON([]byte(of(c, fuzzContexts))); err != nil {
			panic(err)
		}
		return
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if o := f.ContainingOneof(); o != nil && !o.IsSynthetic() {
			if f != o.Fields().Get(0) {
				continue // One is chosen where the first of them is.
			}
			chosen := c.next() % (o.Fields().Len() + 1)
			if chosen == o.Fields().Len() {
				continue
			}
			f = o.Fields().Get(chosen)
		} else if b, optional := c.next(), isOptional(f); optional && b%4 != 1 || b%32 == 31 {
			continue
		}
		switch {
		case f.IsMap(): // None of the requests has one but a Struct.
		case f.IsList():
			list := m.Mutable(f).List()
			for range 1 + c.next()%3 {
				if f.Kind() == protoreflect.MessageKind {
					element := list.NewElement()
					x.fill(c, element.Message(), depth+1)
					list.Append(element)
				} else {
					list.Append(x.value(c, f))
				}
			}
			if c.next()%64 == 63 { // More than is allowed.
				for range 1001 {
					list.Append(list.Get(0))
				}
			}
		case f.Kind() == protoreflect.MessageKind:
			if depth < 8 {
				x.fill(c, m.Mutable(f).Message(), depth+1)
			}
		default:
			m.Set(f, x.value(c, f))
		}
	}
}

// isOptional reports whether most requests leave a field out.
func isOptional(f protoreflect.FieldDescriptor) bool {
	name := string(f.Name())
	return strings.HasPrefix(name, "optional_") || strings.HasPrefix(name, "with_") || name == "context" || name == "consistency"
}

func (x *fuzzServer) value(c *chooser, f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(x.text(c, string(f.Name()), f.ContainingMessage()))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(c.next()%2 == 1)
	case protoreflect.EnumKind:
		if n := c.next(); n%32 == 31 {
			return protoreflect.ValueOfEnum(protoreflect.EnumNumber(n))
		} else {
			values := f.Enum().Values()
			return protoreflect.ValueOfEnum(values.Get(n % values.Len()).Number())
		}
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(of(c, fuzzNumbers)))
	case protoreflect.Int32Kind: // Of a Timestamp.
		return protoreflect.ValueOfInt32(int32(of(c, fuzzNumbers)))
	case protoreflect.Int64Kind:
		seconds := []int64{0, 4102444800, 1, -1, math.MaxInt64, math.MinInt64, 253402300800, time.Now().Unix()}
		return protoreflect.ValueOfInt64(of(c, seconds))
	}
	return f.Default()
}

func (x *fuzzServer) text(c *chooser, name string, m protoreflect.MessageDescriptor) string {
	if c.next()%32 == 31 {
		return of(c, fuzzGarbage)
	}
	switch {
	case strings.HasSuffix(name, "type") || strings.Contains(name, "definition_name"):
		return of(c, fuzzTypes)
	case strings.HasSuffix(name, "_id") || strings.HasSuffix(name, "_prefix"):
		return of(c, fuzzIDs)
	case strings.HasSuffix(name, "relation") || strings.Contains(name, "permission") || strings.Contains(name, "relation_name"):
		return of(c, fuzzNames)
	case strings.Contains(name, "caveat"):
		return of(c, fuzzCaveats)
	case name == "token":
		return of(c, x.tokens)
	case strings.HasSuffix(name, "schema"):
		return of(c, fuzzSchemas)
	case name == "name" && strings.Contains(string(m.Name()), "Count"):
		return of(c, fuzzCounters)
	}
	return of(c, append(fuzzNames, fuzzTypes...))
}

// fuzzDeadline is much more than any call takes.
const fuzzDeadline = patience

// ask makes a call and reports its code. It fails when the answer is none that a
// caller's mistake may have.
func (x *fuzzServer) ask(t testing.TB, m protoreflect.MethodDescriptor, row []byte) codes.Code {
	t.Helper()
	kind, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
	if err != nil {
		t.Fatal(err)
	}
	request := kind.New()
	x.fill(&chooser{row}, request, 0)
	ctx, cancel := context.WithTimeout(context.Background(), fuzzDeadline)
	defer cancel()
	answers, err := x.call(ctx, m, request.Interface())
	judge := func(what string, err error) codes.Code {
		st, _ := status.FromError(err)
		switch st.Code() {
		case codes.OK, codes.InvalidArgument, codes.FailedPrecondition, codes.NotFound, codes.AlreadyExists,
			codes.OutOfRange, codes.Unimplemented, codes.ResourceExhausted, codes.Aborted:
		default:
			t.Errorf("%s of %s(%v): %v", what, m.Name(), request.Interface(), err)
		}
		for _, d := range st.Details() {
			if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() != errorDomain && info.GetDomain() != api.ErrorDomain {
				t.Errorf("%s of %s(%v): %v", what, m.Name(), request.Interface(), info)
			}
		}
		return st.Code()
	}
	code := judge("the answer", err)
	for _, answer := range answers {
		if bulk, ok := answer.(*dynamicpb.Message); ok && m.Name() == "CheckBulkPermissions" {
			r := &v1.CheckBulkPermissionsResponse{}
			b, err := proto.Marshal(bulk)
			if err == nil {
				err = proto.Unmarshal(b, r)
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range r.GetPairs() {
				if failed := p.GetError(); failed != nil {
					judge("an item", statusProto(failed))
				}
			}
		}
	}
	if code == codes.OK && changes[m.Name()] {
		x.restore(t)
	}
	return code
}

// call makes a call of any kind with one message.
func (x *fuzzServer) call(ctx context.Context, m protoreflect.MethodDescriptor, request proto.Message) (answers []proto.Message, err error) {
	path := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
	stream, err := x.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, path)
	if err != nil {
		return nil, err
	}
	// An error of sending is told by the answer.
	if err := stream.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	for {
		answer := dynamicpb.NewMessage(m.Output())
		if err := stream.RecvMsg(answer); errors.Is(err, io.EOF) {
			return answers, nil
		} else if err != nil {
			return answers, err
		}
		answers = append(answers, answer)
	}
}

// changes are the methods after which the store is brought back to what it was.
var changes = map[protoreflect.Name]bool{
	"WriteSchema": true, "WriteRelationships": true, "DeleteRelationships": true, "ImportBulkRelationships": true, "BulkImportRelationships": true,
	"ExperimentalUnregisterRelationshipCounter": true,
}

func (x *fuzzServer) restore(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), fuzzDeadline)
	defer cancel()
	permissions := v1.NewPermissionsServiceClient(x.conn)
	if _, err := v1.NewSchemaServiceClient(x.conn).WriteSchema(ctx, &v1.WriteSchemaRequest{Schema: fuzzSchema}); err != nil {
		// A type that only the last schema had has relationships of the last call.
		t.Fatalf("the schema cannot be restored: %v", err)
	}
	r := &v1.WriteRelationshipsRequest{}
	for _, text := range fuzzTuples {
		r.Updates = append(r.Updates, update(t, v1.RelationshipUpdate_OPERATION_TOUCH, text))
	}
	if _, err := permissions.WriteRelationships(ctx, r); err != nil {
		t.Fatalf("the relationships cannot be restored: %v", err)
	}
	x.count(t)
}

// count registers a counter, so that there is one to ask about.
func (x *fuzzServer) count(t testing.TB) {
	t.Helper()
	err := newCounters(t, x.conn).register(fuzzCounters[0], &v1.RelationshipFilter{ResourceType: "document"})
	if code, reason, _ := reasonOf(err); code != codes.OK && reason != v1.ErrorReason_ERROR_REASON_COUNTER_ALREADY_REGISTERED.String() {
		t.Fatalf("the counter cannot be restored: %v", err)
	}
}

// fuzzRow is a row of choices for a method, the i-th of a seed.
func fuzzRow(seed uint64, method, i int) []byte {
	r := rand.New(rand.NewPCG(seed, uint64(method)<<32|uint64(i)))
	row := make([]byte, 200)
	for j := range row {
		row[j] = byte(r.Uint32())
	}
	return row
}

var requests = flag.Int("requests", 30, "how many random requests of each method TestRandomRequests makes")

// TestRandomRequests: no random request is answered as a fault of the server, and
// each method answers some of them. To ask much, give it more requests and seed 0: it
// asks ten times as much in the same time as FuzzRequests, which follows what its rows
// reach.
func TestRandomRequests(t *testing.T) {
	s := seedOf()
	t.Logf("seed %d (go test ./api/authzed -run %s -seed %d -requests %d)", s, t.Name(), s, *requests)
	x := newFuzzServer(t)
	for i, m := range x.methods {
		counts := map[codes.Code]int{}
		for j := 0; (j < *requests || counts[codes.OK] == 0 && j < 500) && !t.Failed(); j++ {
			counts[x.ask(t, m, fuzzRow(s, i, j))]++
		}
		t.Logf("%s: %v", m.Name(), counts)
		if !t.Failed() && (counts[codes.OK] == 0 || len(counts) < 2 && m.Input().Fields().Len() > 0) {
			t.Errorf("%s was answered with %v alone; the requests are of one kind", m.Name(), counts)
		}
	}
}

// FuzzRequests is TestRandomRequests with rows that the fuzzer makes.
func FuzzRequests(f *testing.F) {
	x := newFuzzServer(f)
	for i := range x.methods {
		f.Add(i, []byte{})
		for j := range 3 {
			f.Add(i, fuzzRow(1, i, j))
		}
	}
	f.Fuzz(func(t *testing.T, method int, row []byte) {
		if len(row) <= 4096 { // More says nothing new.
			x.ask(t, x.methods[uint(method)%uint(len(x.methods))], row)
		}
	})
}
