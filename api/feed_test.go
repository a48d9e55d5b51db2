package api

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
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
			case <-time.After(10 * time.Second):
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
	begin := &pembav1.WatchRequest_After{After: zookie{cluster: s.clusterID}.proto()}
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

// TestSlots: a bound key has half of what is open, an operator all, and what was
// given back can be taken again; over the wire, the refusal says so.
func TestSlots(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	writeFile(t, file, []byte("op\none store default\ntwo store default\n"))
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
	open("one")
	refused("one", "TOO_MANY_WATCHES", "key")
	open("two")
	open("op")
	refused("op", "TOO_MANY_WATCHES", "node")
	end()
	eventually(t, "a slot is given back", func() bool { return openSlots(&s.watches) == 3 && openSlots(&s.streams) == 3 })
	open("op")

	// Streams of all kinds count together.
	first := caller{digest: keyDigest{1}}
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
