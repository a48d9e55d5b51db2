package api

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/pembadb/pemba/cluster"
)

// A bluntDialect has one method, which repeats a text, and one code for all errors.
type bluntDialect struct{}

var bluntService = grpc.ServiceDesc{ServiceName: "blunt.Service", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{
	MethodName: "Repeat",
	Handler: func(service any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
		text := new(wrapperspb.StringValue)
		if err := decode(text); err != nil {
			return nil, err
		}
		info := &grpc.UnaryServerInfo{Server: service, FullMethod: "/blunt.Service/Repeat"}
		return interceptor(ctx, text, info, func(_ context.Context, r any) (any, error) { return r, nil })
	},
}}}

func (bluntDialect) Services() []*grpc.ServiceDesc { return []*grpc.ServiceDesc{&bluntService} }
func (bluntDialect) Register(services grpc.ServiceRegistrar, _ *Host) {
	services.RegisterService(&bluntService, bluntDialect{})
}

func (bluntDialect) Status(_ error, native *status.Status) *status.Status {
	return status.New(codes.Aborted, "blunt: "+native.Message())
}
func (bluntDialect) Begin(context.Context) error                       { return nil }
func (bluntDialect) Asked(any) (mode cluster.Mode, cursor, reads bool) { return 0, false, false }
func (bluntDialect) HTTP() *HTTPForm                                   { return nil }

// TestDialectUndecodable: the error of a request that cannot be decoded, or is too
// large, is the dialect's too.
func TestDialectUndecodable(t *testing.T) {
	c := dial(t, testServer(t, Config{Node: memoryNode(t), Dialects: []Dialect{bluntDialect{}}, Limits: Limits{RequestBytes: 1000}}))
	repeat := func(body []byte) error {
		var reply []byte
		return c.conn.Invoke(testContext(t), "/blunt.Service/Repeat", body, &reply, grpc.ForceCodec(rawCodec{}))
	}
	encoded := func(n int) []byte {
		b, err := proto.Marshal(wrapperspb.String(strings.Repeat("x", n)))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if err := repeat(encoded(10)); err != nil {
		t.Fatal(err)
	}
	for what, body := range map[string][]byte{"garbage": []byte("\xff\xff\xff"), "no UTF-8": []byte("\x0a\x02\xff\xfe"), "too large": encoded(2000)} {
		if err := repeat(body); status.Code(err) != codes.Aborted || !strings.HasPrefix(status.Convert(err).Message(), "blunt: the ") {
			t.Errorf("%s: %v", what, err)
		}
	}
}
