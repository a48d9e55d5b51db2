package api

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

// openSlots returns how many slots are taken.
func openSlots(s *slots) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open
}

// TestFeedStuck: a send that never returns holds neither the call nor what it
// produces, whether more is produced or not, and whether the call's context ends.
func TestFeedStuck(t *testing.T) {
	for _, results := range []int{1, 1000} {
		for _, canceled := range []bool{false, true} {
			ctx, cancel := context.WithCancel(testContext(t))
			stuck, release := make(chan struct{}), make(chan struct{})
			stall := 20 * time.Millisecond
			if canceled {
				stall = time.Hour
				go func() { <-stuck; cancel() }()
			}
			var sends atomic.Int64
			done := make(chan error, 1)
			go func() {
				done <- feed(ctx, stall, 2, func(_ context.Context, put func(int) error) error {
					for i := range results {
						if err := put(i); err != nil {
							return err
						}
						<-stuck // The stall begins no sooner than the first send.
					}
					return nil
				}, func(int) error { sends.Add(1); close(stuck); <-release; return errors.New("gone") })
			}()
			select {
			case err := <-done:
				var e *requestError
				if canceled && !errors.Is(err, context.Canceled) || !canceled && (!errors.As(err, &e) || e.reason != "CLIENT_STALLED") {
					t.Errorf("%d results, canceled %t: %v", results, canceled, err)
				}
			case <-time.After(patience):
				t.Fatalf("%d results, canceled %t: feed is stuck", results, canceled)
			}
			cancel()
			close(release)
			if n := sends.Load(); n != 1 {
				t.Errorf("%d sends", n)
			}
		}
	}
}

// TestFeedEnds: all results come before the error behind them, the error of a
// send ends the producer, and a panic of a send becomes the handler's.
func TestFeedEnds(t *testing.T) {
	broken := errors.New("broken")
	var got []int
	err := feed(testContext(t), time.Minute, 2, func(_ context.Context, put func(int) error) error {
		for i := range 10 {
			if err := put(i); err != nil {
				return err
			}
		}
		return broken
	}, func(i int) error { got = append(got, i); return nil })
	if !errors.Is(err, broken) || len(got) != 10 {
		t.Errorf("%v after %d results", err, len(got))
	}
	forever := func(_ context.Context, put func(int) error) error {
		for {
			if err := put(0); err != nil {
				return err
			}
		}
	}
	if err := feed(testContext(t), time.Minute, 2, forever, func(int) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("a send that fails: %v", err)
	}
	defer func() {
		if p, ok := recover().(deliveryPanic); !ok || p.value != "out of luck" {
			t.Errorf("a send that panics: %v", p)
		}
	}()
	err = feed(testContext(t), time.Minute, 2, forever, func(int) error { panic("out of luck") })
	t.Errorf("a send that panics gives %v", err)
}

// TestStalledWatchLeaves: a watch that nobody takes gives its slot and its stream
// back at the stall, while the client still takes nothing.
func TestStalledWatchLeaves(t *testing.T) {
	s := testServer(t, Config{Limits: Limits{StreamStall: 50 * time.Millisecond, WatchHeartbeat: time.Millisecond}})
	writeDocs(t, dial(t, s), 10_000)
	c := dial(t, s, grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(64<<10))
	begin := &pembav1.WatchRequest_After{After: zookie{cluster: s.clusterID()}.proto()}
	var streams []grpc.ServerStreamingClient[pembav1.WatchResponse]
	for range 5 {
		stream, err := c.Watch(testContext(t), &pembav1.WatchRequest{From: begin})
		if err != nil {
			t.Fatal(err)
		}
		streams = append(streams, stream)
	}
	if _, err := streams[0].Header(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the slots are given back", func() bool {
		return openSlots(&s.watches) == 0 && openSlots(&s.streams) == 0 && s.metrics.methods["/pemba.v1.WatchService/Watch"].ended[codes.ResourceExhausted][noConsistency].Load() != nil
	})
}

// TestSlots: the keys that are bound to the same stores have half of what is open
// together, all bound keys what is not reserved, and an operator all; what was
// given back can be taken again. Over the wire, the refusal says so.
func TestSlots(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	writeFile(t, file, []byte("op\none store default,a\ntwo store a,default\nother store default\n"))
	s := testServer(t, Config{KeyFile: file, Limits: Limits{Watches: 4, OpenStreams: 6}})
	c := dial(t, s)
	watch := func(key string) (context.CancelFunc, error) {
		ctx, cancel := context.WithCancel(as(testContext(t), key))
		t.Cleanup(cancel)
		stream, err := c.Watch(ctx, &pembav1.WatchRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		return cancel, err
	}
	open := func(key string) context.CancelFunc {
		cancel, err := watch(key)
		if err != nil {
			t.Fatalf("key %s: %v", key, err)
		}
		return cancel
	}
	refused := func(key, reason, limited string) {
		_, err := watch(key)
		expectStatus(t, key, err, codes.ResourceExhausted, reason)
		for _, detail := range status.Convert(err).Details() {
			if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetMetadata()["limited"] != limited {
				t.Errorf("key %s: %v", key, info)
			}
		}
	}
	end := open("one")
	open("two")
	refused("one", "TOO_MANY_WATCHES", "key")
	refused("two", "TOO_MANY_WATCHES", "key")
	open("other")
	refused("other", "TOO_MANY_WATCHES", "node")
	open("op")
	refused("op", "TOO_MANY_WATCHES", "node")
	end()
	eventually(t, "a slot is given back", func() bool { return openSlots(&s.watches) == 3 && openSlots(&s.streams) == 3 })
	open("op")

	// Streams of all kinds count together.
	first := caller{digest: keyDigest{1}, stores: map[string]bool{"a": true}}
	for range 2 {
		if err := s.streams.enter(first); err != nil {
			t.Fatal(err)
		}
	}
	read := func() error {
		stream, err := c.ExportTuples(as(testContext(t), "op"), &pembav1.ExportTuplesRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		return err
	}
	expectStatus(t, "a seventh stream", read(), codes.ResourceExhausted, "TOO_MANY_STREAMS")
	s.streams.leave(first)
	s.streams.leave(first)
	if err := read(); status.Code(err) == codes.ResourceExhausted {
		t.Errorf("with streams to spare: %v", err)
	}
	if len(s.streams.bound) > 2 {
		t.Errorf("%d keys are counted", len(s.streams.bound))
	}
}

// BenchmarkStalledExport says how much the server and its client hold together
// of an export that nobody takes, before it is ended.
func BenchmarkStalledExport(b *testing.B) {
	s := testServer(b, Config{Limits: Limits{StreamStall: time.Minute}})
	writeDocs(b, dial(b, s), 20_000)
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	before := heap()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var conns []*testClient
	for i := range b.N {
		if i%500 == 0 {
			conns = append(conns, dial(b, s, grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(64<<10)))
		}
		stream, err := conns[len(conns)-1].ExportTuples(ctx, &pembav1.ExportTuplesRequest{})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := stream.Header(); err != nil {
			b.Fatal(fmt.Errorf("export %d: %w", i, err))
		}
	}
	time.Sleep(2 * time.Second) // What waits is what is measured.
	b.ReportMetric(float64(heap()-before)/float64(b.N), "held-B/op")
}

// TestStalledConnection: a connection on which several streams ended since nobody
// took them is closed, as what gRPC holds of them would stay; fewer are put up
// with, and their error comes behind what they had sent.
func TestStalledConnection(t *testing.T) {
	setup := newTLSSetup(t)
	for _, secured := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%t", secured), func(t *testing.T) {
			config, transport := Config{}, insecure.NewCredentials()
			if secured {
				config, transport = setup.config(), credentials.NewTLS(&tls.Config{RootCAs: pool(setup.ca)})
			}
			// All streams of the connection and of the node are few: what has ended
			// takes none of the latter.
			config.Limits = Limits{StreamStall: 50 * time.Millisecond, Streams: 3 * stalledStreamsMax, OpenStreams: 2}
			s := testServer(t, config)
			dialAs := func(options ...grpc.DialOption) *testClient {
				return dial(t, s, append(options, grpc.WithTransportCredentials(transport))...)
			}
			steady := dialAs()
			writeDocs(t, steady, 10_000)
			var dials atomic.Int64
			c := dialAs(grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(4<<20),
				grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
					dials.Add(1)
					return new(net.Dialer).DialContext(ctx, "tcp", addr)
				}))
			stalled := func() (n int) {
				for _, sample := range gather(t, s) {
					if sample.name == "pemba_requests_total" && sample.labels["method"] == "ExportTuples" && sample.labels["code"] == "ResourceExhausted" {
						n += int(sample.value)
					}
				}
				return n
			}
			var streams []grpc.ServerStreamingClient[pembav1.ExportTuplesResponse]
			stall := func() {
				t.Helper()
				stream, err := c.ExportTuples(testContext(t), &pembav1.ExportTuplesRequest{})
				if err != nil {
					t.Fatal(err)
				}
				streams = append(streams, stream)
				eventually(t, "the stream has stalled", func() bool { return stalled() == len(streams) })
			}
			drain := func(i int) error {
				for {
					if _, err := streams[i].Recv(); err != nil {
						return err
					}
				}
			}
			for range stalledStreamsMax - 1 {
				stall()
			}
			expectStatus(t, "a stream that stalled", drain(0), codes.ResourceExhausted, "CLIENT_STALLED")
			countDocs(t, c)
			if n := dials.Load(); n != 1 || s.grpcListener.open.Load() != 2 {
				t.Fatalf("the client has connected %d times, and %d connections are open", n, s.grpcListener.open.Load())
			}
			stall()
			eventually(t, "the connection is closed", func() bool { return s.grpcListener.open.Load() == 1 })
			if err := drain(1); status.Code(err) != codes.Unavailable {
				t.Errorf("what was held ends with %v", err)
			}
			// A new one is as good as any.
			countDocs(t, c)
			countDocs(t, steady)
			if n := dials.Load(); n != 2 {
				t.Errorf("the client has connected %d times", n)
			}
		})
	}
}

// TestStalledHTTP: streams over HTTP that nobody takes do not end the connection
// that all calls over HTTP share behind them.
func TestStalledHTTP(t *testing.T) {
	s := testServer(t, Config{Limits: Limits{StreamStall: time.Second, WatchHeartbeat: 10 * time.Millisecond}})
	c := dial(t, s)
	writeDocs(t, c, 0)
	// More than the connections on the way can hold.
	for from := 0; from < 6000; from += 500 {
		updates := touch(from, from+500)
		for _, u := range updates {
			u.Tuple.Object.Id += strings.Repeat("x", 1000)
		}
		if _, err := c.WriteTuples(testContext(t), &pembav1.WriteTuplesRequest{Updates: updates}); err != nil {
			t.Fatal(err)
		}
	}
	// What nobody reads of the watch would stall it as well.
	var beats atomic.Int64
	ended := make(chan string, 1)
	watch := post(t, s, "watch", "{}")
	go func() {
		lines := bufio.NewScanner(watch)
		for lines.Scan() && strings.Contains(lines.Text(), "heartbeat") {
			beats.Add(1)
		}
		ended <- fmt.Sprintf("%q, %v", lines.Text(), lines.Err())
	}()
	for range stalledStreamsMax + 1 {
		post(t, s, "export-tuples", "{}")
	}
	eventually(t, "they are ended", func() bool { return openSlots(&s.streams) <= 1 })
	for _, sample := range gather(t, s) {
		if sample.name == "pemba_requests_total" && sample.labels["method"] == "ExportTuples" && sample.labels["code"] == "OK" && sample.value > 0 {
			t.Error("a stream came to its end")
		}
	}
	before := beats.Load()
	eventually(t, "the watch beside them goes on", func() bool {
		select {
		case with := <-ended:
			t.Fatalf("the watch beside them ends with %s", with)
		default:
		}
		return beats.Load() > before+5
	})
}

// post asks over an HTTP connection of its own, which holds little, and returns
// what comes after the header.
func post(t *testing.T, s *Server, path, body string) io.Reader {
	t.Helper()
	conn, err := net.Dial("tcp", s.HTTPAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // The server may have closed it.
	if err := errors.Join(conn.(*net.TCPConn).SetReadBuffer(64<<10), conn.SetDeadline(time.Now().Add(3*patience))); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "POST /pemba/v1/%s HTTP/1.1\r\nHost: pemba\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %v, %v", path, response, err)
	}
	return response.Body
}

// TestSlotShares: whatever the limit, tenants together leave some slots to
// operators, and one of them leaves some to the others, as far as there are any.
func TestSlotShares(t *testing.T) {
	tenant := func(i int) caller {
		return caller{digest: keyDigest{byte(i)}, stores: map[string]bool{fmt.Sprint("store-", i%3): true}}
	}
	for _, x := range []struct{ limit, alone, together int }{
		{1, 1, 1}, {2, 1, 1}, {3, 1, 2}, {4, 2, 3}, {19, 9, 18}, {20, 10, 18}, {1000, 500, 900},
	} {
		s := slots{what: "things", limit: x.limit}
		alone, entered := 0, []caller{}
		// The keys of the first tenant come first, by turns.
		for i := range 3 {
			for key := i; s.enter(tenant(key%9)) == nil; key += 3 {
				entered = append(entered, tenant(key%9))
			}
			if i == 0 {
				alone = s.open
			}
		}
		if alone != x.alone || s.openBound != x.together {
			t.Errorf("of %d slots, one tenant has %d, and all have %d; expected %d and %d", x.limit, alone, s.openBound, x.alone, x.together)
		}
		operator := 0
		for s.enter(caller{operator: true}) == nil {
			operator++
		}
		if operator != x.limit-x.together || s.open != x.limit {
			t.Errorf("of %d slots, operators have the last %d", x.limit, operator)
		}
		for range operator {
			s.leave(caller{operator: true})
		}
		for _, c := range entered {
			s.leave(c)
		}
		if s.open != 0 || s.openBound != 0 || len(s.bound) != 0 {
			t.Errorf("of %d slots, %d are open, %d of bound keys, %d are counted", x.limit, s.open, s.openBound, len(s.bound))
		}
	}
}
