package api

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

// rawCodec sends bytes as they are, under the name of the usual codec.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error) { return v.([]byte), nil }
func (rawCodec) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte{}, data...)
	return nil
}
func (rawCodec) Name() string { return "proto" }

var _ encoding.Codec = rawCodec{}

// Bytes that are no request are the caller's mistake, and say so with a reason.
func TestUndecodable(t *testing.T) {
	server := testServer(t, Config{})
	c := dial(t, server)
	for what, body := range map[string][]byte{
		"garbage":  []byte("\xff\xff\xff"),
		"no UTF-8": []byte("\x1a\x09\x0a\x03doc\x12\x02\xff\xfe"),
	} {
		var reply []byte
		err := c.conn.Invoke(t.Context(), pembav1.PermissionService_Check_FullMethodName, body, &reply, grpc.ForceCodec(rawCodec{}))
		wantUndecodable(t, what, err)
		stream, err := c.conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true},
			pembav1.PermissionService_LookupResources_FullMethodName, grpc.ForceCodec(rawCodec{}))
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.SendMsg(body); err != nil {
			t.Fatal(err)
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		wantUndecodable(t, what+", streaming", stream.RecvMsg(&reply))
	}
	counted := map[string]float64{}
	for _, sample := range gather(t, server) {
		if sample.name == "pemba_requests_total" && sample.labels["code"] == "InvalidArgument" {
			counted[sample.labels["method"]] = sample.value
		}
	}
	if counted["Check"] != 2 || counted["LookupResources"] != 2 {
		t.Errorf("%v of them were counted, want 2 of each method", counted)
	}
}

// A request that is too large says so with a reason, also where it opens a stream
// or comes in the middle of one.
func TestRequestTooLarge(t *testing.T) {
	c := dial(t, testServer(t, Config{Limits: Limits{RequestBytes: 1 << 20}}))
	writeDocs(t, c, 0)
	imported := func(ctx context.Context, messages ...*pembav1.ImportTuplesRequest) error {
		stream, err := c.ImportTuples(ctx)
		if err != nil {
			return err
		}
		for _, m := range messages {
			if err := stream.Send(m); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
		}
		_, err = stream.CloseAndRecv()
		return err
	}
	for _, size := range []int{1<<20 + 1, 3 << 20, 5 << 20} {
		text := strings.Repeat(" ", size)
		large := docs(0, 1)
		large[0].Object.Id = text
		header := &pembav1.ImportHeader{}
		for what, ask := range map[string]func(context.Context) error{
			"WriteSchema": func(ctx context.Context) error {
				_, err := c.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Schema: text})
				return err
			},
			"Watch": func(ctx context.Context) error {
				stream, err := c.Watch(ctx, &pembav1.WatchRequest{From: &pembav1.WatchRequest_Cursor{Cursor: text}})
				if err != nil {
					return err
				}
				_, err = stream.Recv()
				return err
			},
			"ImportTuples": func(ctx context.Context) error {
				return imported(ctx, &pembav1.ImportTuplesRequest{Header: header, Tuples: large})
			},
			"ImportTuples, the second message": func(ctx context.Context) error {
				return imported(ctx, &pembav1.ImportTuplesRequest{Header: header, Tuples: docs(0, 1)},
					&pembav1.ImportTuplesRequest{Chunk: 1, Tuples: large})
			},
		} {
			err := ask(testContext(t))
			if size > tooLargeFactor<<20 {
				// gRPC answers this itself, for a stream too: its RecvMsg has sent the
				// status before it returns. What it says must be clear all the same.
				if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "larger than max") || !strings.Contains(err.Error(), "4194304") {
					t.Errorf("%s, %d bytes: %.500v, want gRPC's own error with its bound", what, size, err)
				}
				continue
			}
			e, _ := toItemError(err)
			if status.Code(err) != codes.ResourceExhausted || e.GetReason() != "REQUEST_TOO_LARGE" || e.GetMetadata()["limit"] != "1048576" {
				t.Errorf("%s, %d bytes: %.500v with reason %q, want REQUEST_TOO_LARGE", what, size, err, e.GetReason())
			}
		}
	}
	if n := countDocs(t, c); n != 0 {
		t.Errorf("%d tuples are there of imports that failed", n)
	}
}

func wantUndecodable(t *testing.T, what string, err error) {
	t.Helper()
	e, _ := toItemError(err)
	if status.Code(err) != codes.InvalidArgument || e.GetReason() != "UNDECODABLE" {
		t.Errorf("%s: %v with reason %q, want UNDECODABLE", what, err, e.GetReason())
	}
}

// TestMarshalledMemory: what waits for a client holds no more memory than it has
// bytes, or than a buffer of gRPC's next to that.
func TestMarshalledMemory(t *testing.T) {
	codec := newMarkingCodec(1 << 20)
	for _, size := range []int{0, 1, 1000, 1030, 20_000, pooledBytesMax, pooledBytesMax + 1, 40_000, 300_000} {
		m := &pembav1.ReadSchemaResponse{Schema: strings.Repeat("x", size)}
		data, err := codec.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		held := 0
		for _, buffer := range data {
			held += cap(buffer.ReadOnlyData())
		}
		if allowed := max(pooledBytesMax, data.Len()+data.Len()/4); held > allowed {
			t.Errorf("a message of %d bytes holds %d; at most %d are expected", data.Len(), held, allowed)
		}
		var got pembav1.ReadSchemaResponse
		if err := codec.Unmarshal(data, &got); err != nil || !proto.Equal(m, &got) {
			t.Errorf("%d bytes come back as another message: %v", size, err)
		}
		data.Free()
	}
	if _, err := codec.Marshal(&pembav1.ReadSchemaResponse{Schema: "\xff"}); err == nil {
		t.Error("text that is not UTF-8 is encoded")
	}
}

// TestUnknownMethod: a method or a service that there is not is refused with a
// reason and what was probably meant, but only once the key is known.
func TestUnknownMethod(t *testing.T) {
	c := dial(t, testServer(t, Config{Keys: []string{"k"}}))
	for _, x := range []struct{ method, suggestion string }{
		{"/pemba.v1.PermissionService/Chek", "/pemba.v1.PermissionService/Check"},
		{"/pemba.v1.TupleService/Check", "/pemba.v1.PermissionService/Check"},
		{"/pemba.v2.PermissionService/LookupResources", "/pemba.v1.PermissionService/LookupResources"},
		{"/authzed.api.v1.PermissionsService/CheckPermission", ""},
		{"/pemba.v1.PermissionService/", ""},
		{"/x/" + strings.Repeat("y", 20_000), ""},
		{"/grpc.health.v1.Health/Chek", ""},
	} {
		var reply []byte
		ask := func(ctx context.Context) error {
			return c.conn.Invoke(ctx, x.method, []byte("\xff\xff"), &reply, grpc.ForceCodec(rawCodec{}))
		}
		err := ask(as(testContext(t), "k"))
		expectStatus(t, x.method, err, codes.Unimplemented, "UNKNOWN_METHOD")
		e, _ := toItemError(err)
		if got := e.GetMetadata()["suggestion"]; got != x.suggestion || x.suggestion != "" && !strings.Contains(e.GetMessage(), x.suggestion) {
			t.Errorf("%s: the suggestion is %q, expected %q: %v", x.method, got, x.suggestion, err)
		}
		if got := e.GetMetadata()["method"]; !strings.HasPrefix(x.method, got) || len(got) < min(len(x.method), 100) || len(e.GetMessage()) > 2000 {
			t.Errorf("%.80s: the method is %q: %.2000v", x.method, got, err)
		}
		if strings.HasPrefix(x.method, "/grpc.health.") {
			continue // Anybody may ask for health.
		}
		expectStatus(t, x.method+" without a key", ask(testContext(t)), codes.Unauthenticated, "KEY_MISSING")
		expectStatus(t, x.method+" with a wrong key", ask(as(testContext(t), "x")), codes.Unauthenticated, "KEY_INVALID")
	}
	// A stream that is not ended is answered as well.
	stream, err := c.conn.NewStream(as(testContext(t), "k"), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/pemba.v1.WatchService/Follow")
	if err != nil {
		t.Fatal(err)
	}
	expectStatus(t, "an open stream", stream.RecvMsg(&pembav1.WatchResponse{}), codes.Unimplemented, "UNKNOWN_METHOD")
}
