package api

import (
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/status"

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
	c := dial(t, testServer(t, Config{}))
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
}

// A request that is too large says so with a reason.
func TestRequestTooLarge(t *testing.T) {
	c := dial(t, testServer(t, Config{Limits: Limits{RequestBytes: 1 << 20}}))
	for _, size := range []int{1<<20 + 1, 3 << 20} {
		_, err := c.WriteSchema(t.Context(), &pembav1.WriteSchemaRequest{Schema: strings.Repeat(" ", size)})
		e, _ := toItemError(err)
		if status.Code(err) != codes.ResourceExhausted || e.GetReason() != "REQUEST_TOO_LARGE" {
			t.Errorf("%d bytes: %v with reason %q, want REQUEST_TOO_LARGE", size, err, e.GetReason())
		}
	}
}

func wantUndecodable(t *testing.T, what string, err error) {
	t.Helper()
	e, _ := toItemError(err)
	if status.Code(err) != codes.InvalidArgument || e.GetReason() != "UNDECODABLE" {
		t.Errorf("%s: %v with reason %q, want UNDECODABLE", what, err, e.GetReason())
	}
}
