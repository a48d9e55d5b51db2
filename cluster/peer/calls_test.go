package peer

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// echo is a service: it answers with who asked and what.
var echo = grpc.ServiceDesc{
	ServiceName: "peer.test.Echo",
	HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{
		MethodName: "Say",
		Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			var word wrapperspb.StringValue
			if err := decode(&word); err != nil {
				return nil, err
			}
			id, ok := PeerOf(ctx)
			if !ok {
				return nil, status.Error(codes.Unauthenticated, "nobody")
			}
			return wrapperspb.String(id + " says " + word.Value), nil
		},
	}},
	Streams: []grpc.StreamDesc{{
		StreamName:    "Listen",
		ServerStreams: true,
		Handler: func(_ any, stream grpc.ServerStream) error {
			id, _ := PeerOf(stream.Context())
			if err := stream.SendMsg(wrapperspb.String(id)); err != nil {
				return err
			}
			<-stream.Context().Done()
			return stream.Context().Err()
		},
	}},
}

// serve serves the calls of a Transport until the test ends.
func serve(t *testing.T, transport *Transport) *grpc.Server {
	t.Helper()
	server := grpc.NewServer()
	server.RegisterService(&echo, nil)
	over := make(chan error, 1)
	listener := transport.Calls()
	go func() { over <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-over; err != nil && !errors.Is(err, grpc.ErrServerStopped) && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return server
}

func call(t *testing.T, cc *grpc.ClientConn, word string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var answer wrapperspb.StringValue
	err := cc.Invoke(ctx, "/peer.test.Echo/Say", wrapperspb.String(word), &answer)
	return answer.Value, err
}

func connect(t *testing.T, from *Transport, id, addr string) *grpc.ClientConn {
	t.Helper()
	cc, err := from.Conn(id, addr)
	if err != nil {
		t.Fatal(err)
	}
	return cc
}

// TestCalls holds that calls pass over the port beside Raft, that the handler knows
// who calls, and that connections are shared.
func TestCalls(t *testing.T) {
	noLeaks(t)
	ours := newAuthority(t)
	a, b := listen(t, "a", withTLS(ours.config())), listen(t, "b", withTLS(ours.config()))
	serve(t, a)
	serve(t, b)
	if err := vote(a, b, b.Raft()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		from, to *Transport
		want     string
	}{{a, b, "a says hello"}, {b, a, "b says hello"}} {
		cc := connect(t, c.from, c.to.config.NodeID, addr(c.to))
		if cc != connect(t, c.from, c.to.config.NodeID, addr(c.to)) {
			t.Error("a connection is not shared")
		}
		for range 3 {
			if got, err := call(t, cc, "hello"); err != nil || got != c.want {
				t.Errorf("%q, %v; want %q", got, err, c.want)
			}
		}
	}
	s := a.Stats()[0]
	if s.ID != "b" || s.Calls.ConnsOut != 1 || s.Calls.ConnsIn != 1 || s.Raft.ConnsOut != 1 || s.Raft.ConnsIn != 0 ||
		s.Calls.BytesSent == 0 || s.Calls.BytesReceived == 0 {
		t.Errorf("%+v", s)
	}
	if id, ok := PeerOf(context.Background()); ok || id != "" {
		t.Errorf("the peer of no call is %q", id)
	}
}

// TestCallsRefused holds that a call whose connection is refused says so, as a
// status for gRPC and as a RefusedError for us.
func TestCallsRefused(t *testing.T) {
	noLeaks(t)
	a, b := listen(t, "a"), listen(t, "b")
	check := func(err error, code Code, peer, message string) {
		t.Helper()
		refused, ok := errors.AsType[*RefusedError](err)
		if !ok || refused.Code != code || refused.Peer != peer || refused.Addr != addr(b) || !strings.Contains(refused.Message, message) {
			t.Errorf("%v; want %s: %s", err, code, message)
		}
		if got := status.Code(err); got != codes.Unavailable && got != codes.DeadlineExceeded {
			t.Errorf("status %s: %v", got, err)
		}
	}
	_, err := call(t, connect(t, a, "b", addr(b)), "hello")
	check(err, CodeNotServing, "b", "node b serves no connections of kind calls at the moment")

	serve(t, b)
	_, err = call(t, connect(t, a, "x", addr(b)), "hello")
	check(err, CodeRecipient, "x", "the hello is for node x, and this is node b")
	_, err = connect(t, a, "x", addr(b)).NewStream(context.Background(), &echo.Streams[0], "/peer.test.Echo/Listen")
	check(err, CodeRecipient, "x", "the hello is for node x, and this is node b")

	// One that waits for the connection has a refusal, too, when its time is over.
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	err = connect(t, a, "x", addr(b)).Invoke(ctx, "/peer.test.Echo/Say", wrapperspb.String(""), &wrapperspb.StringValue{}, grpc.WaitForReady(true))
	check(err, CodeRecipient, "x", "the hello is for node x")

	eventually(t, "gRPC connects after b serves", func() bool {
		got, err := call(t, connect(t, a, "b", addr(b)), "hello")
		return err == nil && got == "a says hello"
	})
	// Errors of the service are not touched.
	err = connect(t, a, "b", addr(b)).Invoke(context.Background(), "/peer.test.Echo/No", wrapperspb.String(""), &wrapperspb.StringValue{})
	if _, ok := errors.AsType[*RefusedError](err); ok || status.Code(err) != codes.Unimplemented {
		t.Error(err)
	}
	for _, c := range [][2]string{{"", "h:1"}, {"a", "h:1"}, {"b", ""}, {"b c", "h:1"}, {"b", "c@h:1"}} {
		if _, err := a.Conn(c[0], c[1]); err == nil {
			t.Errorf("a connection to node %q at %q", c[0], c[1])
		}
	}
}

// TestCallsRetain holds that the connections to those who left are closed with the
// calls on them, and come anew when they are asked for anew.
func TestCallsRetain(t *testing.T) {
	noLeaks(t)
	a, b := listen(t, "a"), listen(t, "b")
	serve(t, b)
	cc := connect(t, a, "b", addr(b))
	stream, err := cc.NewStream(context.Background(), &echo.Streams[0], "/peer.test.Echo/Listen")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(stream.SendMsg(wrapperspb.String("")), stream.CloseSend()); err != nil {
		t.Fatal(err)
	}
	var word wrapperspb.StringValue
	if err := stream.RecvMsg(&word); err != nil || word.Value != "a" {
		t.Fatal(err, &word)
	}
	a.Retain(map[string]string{"b": addr(b)})
	if connect(t, a, "b", addr(b)) != cc {
		t.Error("a member was forgotten")
	}
	a.Retain(map[string]string{"a": addr(a)})
	if err := stream.RecvMsg(&word); err == nil {
		t.Error("a call goes on after its peer was forgotten")
	}
	if _, err := call(t, cc, "hello"); status.Code(err) != codes.Canceled {
		t.Errorf("on a forgotten connection: %v", err)
	}
	eventually(t, "b has lost a", func() bool { return b.Totals().ConnsIn == 0 })
	if got, err := call(t, connect(t, a, "b", addr(b)), "again"); err != nil || got != "a says again" {
		t.Error(got, err)
	}
}

// TestCallsAgain holds that a new server takes over the port from one that was
// stopped, and that Close ends the connections of a server that was not.
func TestCallsAgain(t *testing.T) {
	noLeaks(t)
	a, b := listen(t, "a"), listen(t, "b")
	first := serve(t, b)
	cc := connect(t, a, "b", addr(b))
	if _, err := call(t, cc, "hello"); err != nil {
		t.Fatal(err)
	}
	first.Stop()
	if _, err := call(t, cc, "hello"); err == nil {
		t.Error("a stopped server answers")
	}
	serve(t, b)
	eventually(t, "the second server answers", func() bool { _, err := call(t, cc, "hello"); return err == nil })
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := call(t, cc, "hello"); status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
	if n := b.Totals().ConnsIn; n != 0 {
		t.Errorf("%d connections are left", n)
	}
	if _, err := b.Calls().Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// TestCallsOverPipes holds that addresses of a Network of one's own may be any
// text.
func TestCallsOverPipes(t *testing.T) {
	noLeaks(t)
	network := &pipes{}
	node := func(id, addr string) *Transport {
		return listen(t, id, func(c *Config) { c.Network, c.Addr = network, addr })
	}
	a, b := node("a", "first"), node("b", "[fe80::1%eth0]:7000/ä b")
	serve(t, b)
	if got, err := call(t, connect(t, a, "b", addr(b)), "hello"); err != nil || got != "a says hello" {
		t.Error(got, err)
	}
}
