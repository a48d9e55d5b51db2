package api

import (
	"errors"
	"math"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// TestTupleMessages: every valid tuple survives the way over the wire.
func TestTupleMessages(t *testing.T) {
	for _, text := range []string{
		`doc:a#viewer@user:anne`,
		`doc:a#viewer@user:*`,
		`a/b:"x y#z"#viewer@group:"ü:\""#member`,
		`doc:a#viewer@user:anne[weekday]`,
		`doc:a#viewer@user:anne[weekday:{"a":[1,2.5,null,true,{"b":"<&>"}]}][expiration:2100-01-01T00:00:00.123456Z]`,
		`doc:a#viewer@user:anne[expiration:9999-12-31T23:59:59.999999Z]`,
	} {
		want, err := graph.ParseTuple(text)
		if err != nil {
			t.Fatal(err)
		}
		p, err := TupleMessage(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseTupleMessage(p)
		if err != nil || got.String() != want.String() {
			t.Errorf("%s came back as %s, %v", want, got, err)
		}
	}
}

// TestContextLimits: contexts are bounded in depth and size before they are
// built, and hold only what JSON can.
func TestContextLimits(t *testing.T) {
	nested := func(depth int) *structpb.Struct {
		s := &structpb.Struct{}
		for range depth - 1 {
			s = &structpb.Struct{Fields: map[string]*structpb.Value{"a": structpb.NewStructValue(s)}}
		}
		return s
	}
	lists := func(depth int) *structpb.Struct {
		v := structpb.NewNullValue()
		for range depth - 1 {
			v = structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{v}})
		}
		return &structpb.Struct{Fields: map[string]*structpb.Value{"a": v}}
	}
	text := func(s string) *structpb.Struct {
		return &structpb.Struct{Fields: map[string]*structpb.Value{"a": structpb.NewStringValue(s)}}
	}
	l := DefaultLimits()
	for _, test := range []struct {
		name string
		s    *structpb.Struct
		ok   bool
	}{
		{"nothing", nil, true},
		{"as deep as allowed", nested(graph.MaxContextDepth), true},
		{"deeper", nested(graph.MaxContextDepth + 1), false},
		{"lists as deep as allowed", lists(graph.MaxContextDepth), true},
		{"lists deeper", lists(graph.MaxContextDepth + 1), false},
		{"as long as allowed", text(strings.Repeat("x", l.TupleContextBytes-10)), true},
		{"longer", text(strings.Repeat("x", l.TupleContextBytes+1)), false},
		{"not UTF-8", text("\xff"), false},
		{"a key that is not UTF-8", &structpb.Struct{Fields: map[string]*structpb.Value{"\xff": nil}}, false},
		{"infinity", &structpb.Struct{Fields: map[string]*structpb.Value{"a": structpb.NewNumberValue(math.Inf(1))}}, false},
		{"no value", &structpb.Struct{Fields: map[string]*structpb.Value{"a": nil}}, false},
		{"an empty list", &structpb.Struct{Fields: map[string]*structpb.Value{"a": structpb.NewListValue(nil)}}, true},
		{"no struct", &structpb.Struct{Fields: map[string]*structpb.Value{"a": structpb.NewStructValue(nil)}}, true},
	} {
		if _, err := toJSON("context", test.s, l.TupleContextBytes, "--limit-tuple-context-bytes"); (err == nil) != test.ok {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// FuzzRequests: whatever arrives, converting it does not panic, and what is
// refused is refused as the caller's mistake.
func FuzzRequests(f *testing.F) {
	requests := []func() proto.Message{
		func() proto.Message { return new(pembav1.WriteTuplesRequest) },
		func() proto.Message { return new(pembav1.DeleteTuplesRequest) },
		func() proto.Message { return new(pembav1.CheckRequest) },
		func() proto.Message { return new(pembav1.CheckBulkRequest) },
		func() proto.Message { return new(pembav1.ExpandRequest) },
		func() proto.Message { return new(pembav1.LookupResourcesRequest) },
		func() proto.Message { return new(pembav1.LookupSubjectsRequest) },
		func() proto.Message { return new(pembav1.ReadTuplesRequest) },
		func() proto.Message { return new(pembav1.CreateStoreRequest) },
		func() proto.Message { return new(pembav1.WatchRequest) },
	}
	seed := &pembav1.WriteTuplesRequest{}
	if err := prototext.Unmarshal([]byte(`
		updates { operation: OPERATION_TOUCH tuple { object { type: "doc" id: "a" } relation: "viewer" subject { object { type: "user" id: "anne" } } caveat { name: "c" context { fields { key: "n" value { list_value { values { number_value: 1 } } } } } } expires_at { seconds: 4102444800 } } }
		preconditions { operation: OPERATION_MUST_MATCH filter { object_type: "doc" subject_relation: "" } }`), seed); err != nil {
		f.Fatal(err)
	}
	raw, err := proto.Marshal(seed)
	if err != nil {
		f.Fatal(err)
	}
	for i := range requests {
		f.Add(i, raw)
	}
	f.Fuzz(func(t *testing.T, kind int, raw []byte) {
		m := requests[uint(kind)%uint(len(requests))]()
		if proto.Unmarshal(raw, m) != nil {
			return
		}
		for _, err := range convertAll(m) {
			var refusal *engine.Refusal
			var request *requestError
			if err != nil && !errors.As(err, &refusal) && !errors.As(err, &request) {
				t.Errorf("%T: %v", err, err)
			}
		}
	})
}

// convertAll runs every conversion that a request goes through.
func convertAll(m proto.Message) []error {
	l := DefaultLimits()
	var errs []error
	add := func(_ any, err error) { errs = append(errs, err) }
	switch r := m.(type) {
	case *pembav1.WriteTuplesRequest:
		var m graph.Mutation
		var err error
		if m.Updates, err = l.toUpdates(r.GetUpdates()); err == nil {
			for i := range m.Updates {
				// What passes the edge is well formed by graph's own rules.
				if err := m.Updates[i].Tuple.Validate(); err != nil {
					errs = append(errs, err)
				}
			}
		}
		add(nil, err)
		add(l.toPreconditions(r.GetPreconditions()))
		add(nil, l.setReasons(&m, r.GetRecordedActor(), r.GetMetadata()))
	case *pembav1.DeleteTuplesRequest:
		f, err := toFilter(r.GetFilter())
		if err == nil {
			err = f.Validate()
		}
		add(nil, err)
	case *pembav1.CheckRequest:
		add(toCheck(r.GetObject(), r.GetPermission(), r.GetSubject()))
		add(l.toContext(r.GetContext()))
		add(toConsistency(r.GetConsistency(), [16]byte{1}, func([16]byte) bool { return false }))
	case *pembav1.CheckBulkRequest:
		for _, item := range r.GetItems() {
			add(toCheck(item.GetObject(), item.GetPermission(), item.GetSubject()))
		}
	case *pembav1.ExpandRequest:
		add(l.toExpand(r))
	case *pembav1.LookupResourcesRequest:
		add(l.toLookupResources(r))
	case *pembav1.LookupSubjectsRequest:
		add(l.toLookupSubjects(r))
	case *pembav1.ReadTuplesRequest:
		add(toFilter(r.GetFilter()))
		add(toLimit(r.GetLimit()))
	case *pembav1.CreateStoreRequest:
		c, err := toStoreChange(r.GetSettings())
		if err == nil {
			c.Operation, c.Name = graph.CreateStore, "x"
			err = (&graph.Mutation{StoreChange: c}).Validate()
		}
		add(nil, err)
	case *pembav1.WatchRequest:
		add(toChangeFilters(r.GetFilters()))
	}
	return errs
}

// The path of a value is told where something is wrong with it, and costs nothing
// elsewhere: under a long key it would be made as often as there are values.
func TestContextPaths(t *testing.T) {
	limits := DefaultLimits()
	nested := &structpb.Struct{Fields: map[string]*structpb.Value{
		"a": structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{
			structpb.NewBoolValue(true),
			structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{"b": structpb.NewNumberValue(math.NaN())}}),
		}}),
	}}
	_, err := limits.toContext(nested)
	var refusal *engine.Refusal
	if !errors.As(err, &refusal) || refusal.Field != "context.a[1].b" {
		t.Errorf("got %v, want a refusal of context.a[1].b", err)
	}
	values := make([]*structpb.Value, 4000)
	for i := range values {
		values[i] = structpb.NewBoolValue(true)
	}
	long := &structpb.Struct{Fields: map[string]*structpb.Value{
		strings.Repeat("k", 30_000): structpb.NewListValue(&structpb.ListValue{Values: values}),
	}}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := limits.toContext(long); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if taken := after.TotalAlloc - before.TotalAlloc; taken > 8<<20 {
		t.Errorf("%d bytes were allocated for a context of some 40 KB", taken)
	}
}
