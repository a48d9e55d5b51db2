package api

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/cluster/badgerlog"
	"github.com/pembadb/pemba/graph"
)

// watchersFlag is how many watch at once in TestManyWatchers.
var watchersFlag = flag.Int("watchers", 1000, "how many watch at once in TestManyWatchers")

// A place is where a server can be reached that is restarted now and then.
type place struct {
	mu sync.Mutex
	// writer and each of the watchers have a connection of their own: one that is
	// slow may lose it.
	writer   *testClient
	watchers []*testClient
}

func (p *place) get() *testClient {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.writer
}

func (p *place) watcher(i int) *testClient {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.watchers[i]
}

func (p *place) set(writer *testClient, watchers []*testClient) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.writer, p.watchers = writer, watchers
}

// serveDir serves a node on a directory; stop closes both.
func serveDir(t *testing.T, dir string, limits Limits) (s *Server, stop func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	node, err := cluster.Open(ctx, cluster.Config{DataDir: dir, Logger: slog.New(slog.DiscardHandler), Log: badgerlog.Config{BallastBytes: -1}})
	if err != nil {
		t.Fatal(err)
	}
	s, err = Listen(Config{Node: node, GRPCAddr: "127.0.0.1:0", Limits: limits, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve() }()
	return s, func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := errors.Join(s.Close(ctx), <-done, node.Close(ctx)); err != nil {
			t.Error(err)
		}
	}
}

// TestWatchAgain: whoever watches, is cut off at random or because he takes
// nothing for too long, and comes back with the last cursor, is told every change
// once, in order, through large revisions, one of them of 100,000 changes (fewer
// under the race detector and with -short), and a restart of the node.
func TestWatchAgain(t *testing.T) {
	const chunk, watchers = 10_000, 2
	imports := []int{6000, 100_000, 9000}
	if raceEnabled || testing.Short() {
		imports = []int{3000, 20_000, 4000} // It costs ten times as much.
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	dir := t.TempDir()
	limits := Limits{WatchHeartbeat: 20 * time.Millisecond, StreamStall: 30 * time.Millisecond}
	var where place
	stop := func() {}
	start := func() *testClient {
		var s *Server
		s, stop = serveDir(t, dir, limits)
		var slow []*testClient
		for range watchers {
			slow = append(slow, dial(t, s, grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(64<<10)))
		}
		c := dial(t, s)
		where.set(c, slow)
		return c
	}
	c := start()
	defer func() { stop() }()
	ctx, cancel := context.WithTimeout(context.Background(), 8*patience)
	defer cancel()
	schema, err := c.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Schema: testSchema})
	if err != nil {
		t.Fatal(err)
	}

	var total uint64
	finished := make(chan struct{}) // closed when total is known
	type told struct {
		sequence uint64
		id       string
		kind     pembav1.Change_Kind
	}
	got := make([][]told, watchers)
	stalls := make([]int, watchers)
	var group sync.WaitGroup
	for i := range watchers {
		group.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(i)))
			request := &pembav1.WatchRequest{From: &pembav1.WatchRequest_After{After: schema.GetWrittenAt()}}
			enough := func() bool {
				select {
				case <-finished:
					return uint64(len(got[i])) >= total
				default:
					return false
				}
			}
			for pause := 120 * time.Millisecond; !enough() && ctx.Err() == nil; {
				watching, cut := context.WithCancel(ctx)
				stream, err := where.watcher(i).Watch(watching, request)
				// Some are cut off between two messages, some anywhere, but for those that
				// are to be found too slow first.
				left, full := random.IntN(150), 0
				switch {
				case stalls[i] == 0:
					left = 1 << 30
				case random.IntN(2) == 0:
					time.AfterFunc(time.Duration(random.IntN(200))*time.Millisecond, cut)
					left = 1 << 30
				}
				for ; err == nil && left > 0 && !enough(); left-- {
					var m *pembav1.WatchResponse
					if m, err = stream.Recv(); err != nil {
						break
					}
					for _, change := range m.GetChanges() {
						got[i] = append(got[i], told{change.GetSequence(), change.GetTuple().GetObject().GetId(), change.GetKind()})
					}
					request.From = &pembav1.WatchRequest_Cursor{Cursor: m.GetCursor()}
					if len(m.GetChanges()) >= batchTuples/2 {
						full++
					}
					// Now and then he is slow, and until he has lost a watch by that
					// whenever much more is to come than is on the way to him: how long it
					// needs to fill that depends on the machine.
					switch {
					case stalls[i] == 0 && full%16 == 1:
						time.Sleep(pause)
						pause = min(2*pause, 2*time.Second)
						full++
					case random.IntN(300) == 0:
						time.Sleep(120 * time.Millisecond)
					}
				}
				cut()
				switch code := status.Code(err); {
				case code == codes.OK, code == codes.Canceled, code == codes.Unavailable:
				case reasonOfStatus(err) == "CLIENT_STALLED":
					stalls[i]++
				default:
					t.Errorf("watcher %d: %v", i, err)
					return
				}
				if status.Code(err) == codes.Unavailable {
					time.Sleep(5 * time.Millisecond) // The node is being restarted.
				}
			}
		})
	}

	write := func(from, to int) {
		for ; from < to; from += 7 {
			if _, err := where.get().WriteTuples(ctx, &pembav1.WriteTuplesRequest{Updates: touch(from, min(from+7, to))}); err != nil {
				t.Error(err)
				return
			}
		}
	}
	imported := 0
	// importDocs makes one revision of so many changes; meanwhile runs in its midst.
	importDocs := func(count int, meanwhile func()) {
		stream, err := where.get().ImportTuples(ctx)
		if err != nil {
			t.Fatal(err)
		}
		message := &pembav1.ImportTuplesRequest{Header: &pembav1.ImportHeader{}}
		for from := 0; from < count; from += chunk {
			message.Chunk = uint32(from / chunk)
			for i := range min(chunk, count-from) {
				message.Tuples = append(message.Tuples, &pembav1.Tuple{Object: object("doc", fmt.Sprintf("i%06d", imported+from+i)), Relation: "viewer", Subject: user("anne")})
			}
			if err := stream.Send(message); err != nil {
				t.Fatal(stream.RecvMsg(new(pembav1.ImportTuplesResponse)))
			}
			message = new(pembav1.ImportTuplesRequest)
		}
		meanwhile()
		result, err := stream.CloseAndRecv()
		if err != nil || result.GetChanged() != uint64(count) {
			t.Fatalf("%v, %v", result, err)
		}
		imported += count
	}
	write(0, 300)
	importDocs(imports[0], func() { write(300, 500) })
	importDocs(imports[1], func() { write(500, 700) })
	// The node goes while they are in the midst of what is large.
	stop()
	start()
	write(700, 800)
	importDocs(imports[2], func() { write(800, 1000) })
	total = uint64(imported) + 1000
	close(finished)
	group.Wait()
	t.Logf("the watchers lost %v watches by being slow", stalls)
	// What is smaller may come through at once; TestWatchStalled has that alone.
	if slices.Max(stalls) == 0 && slices.Max(imports) == 100_000 {
		t.Error("the watchers were slow and lost no watch by that")
	}

	// What the log has at the end is what everybody was told. This reader is not
	// to be hurried.
	stop()
	limits.StreamStall = 0
	c = start()
	var want []told
	reading, err := c.ReadChanges(ctx, &pembav1.ReadChangesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := reading.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if n := len(m.GetChanges().GetChanges()); n > batchTuples {
			t.Errorf("a message has %d changes", n)
		}
		for _, change := range m.GetChanges().GetChanges() {
			want = append(want, told{change.GetSequence(), change.GetTuple().GetObject().GetId(), change.GetKind()})
		}
	}
	if uint64(len(want)) != total {
		t.Errorf("the log has %d changes, expected %d", len(want), total)
	}
	for i, x := range want {
		if x.sequence != uint64(i)+1 || x.kind != pembav1.Change_KIND_CREATED {
			t.Fatalf("change %d of the log is %v", i, x)
		}
	}
	for i := range got {
		if !slices.Equal(got[i], want) {
			t.Errorf("watcher %d was told %d changes, which are not the %d of the log", i, len(got[i]), len(want))
		}
	}
}

// TestManyWatchers: a thousand watch at once, and all are told everything.
func TestManyWatchers(t *testing.T) {
	const revisions = 20
	s := testServer(t, Config{Limits: Limits{Watches: *watchersFlag}})
	c := dial(t, s)
	writeDocs(t, c, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 5*patience)
	defer cancel()
	var began, group sync.WaitGroup
	began.Add(*watchersFlag)
	begin := time.Now()
	for from := 0; from < *watchersFlag; from += 500 {
		conn := dial(t, s) // One connection takes a thousand calls.
		for i := range min(500, *watchersFlag-from) {
			group.Go(func() {
				ready := sync.OnceFunc(began.Done)
				defer ready()
				stream, err := conn.Watch(ctx, &pembav1.WatchRequest{})
				if err != nil {
					t.Errorf("watcher %d: %v", from+i, err)
					return
				}
				for next := uint64(2); next < 2+revisions; {
					m, err := stream.Recv()
					if err != nil {
						t.Errorf("watcher %d: %v", from+i, err)
						return
					}
					// Everything that is acknowledged from here on must be told.
					ready()
					for _, change := range m.GetChanges() {
						if change.GetSequence() != next {
							t.Errorf("watcher %d is told change %d, expected %d", from+i, change.GetSequence(), next)
							return
						}
						next++
					}
				}
			})
		}
	}
	began.Wait()
	t.Logf("%d watches were open after %v", *watchersFlag, time.Since(begin))
	if stream, err := c.Watch(ctx, &pembav1.WatchRequest{}); err != nil {
		t.Error(err)
	} else if _, err := stream.Recv(); err == nil {
		t.Error("one watch more than allowed was let in")
	} else {
		expectStatus(t, "one watch too many", err, codes.ResourceExhausted, "TOO_MANY_WATCHES")
	}
	begin = time.Now()
	for i := range revisions {
		if _, err := c.WriteTuples(ctx, &pembav1.WriteTuplesRequest{Updates: touch(1+i, 2+i)}); err != nil {
			t.Fatal(err)
		}
	}
	group.Wait()
	t.Logf("%d revisions were told to all after %v", revisions, time.Since(begin))
}

// TestWatchHeartbeat: what the filters keep back moves the cursor all the same.
func TestWatchHeartbeat(t *testing.T) {
	s := testServer(t, Config{Limits: Limits{WatchHeartbeat: 5 * time.Millisecond}})
	c := dial(t, s)
	writeDocs(t, c, 0)
	ctx := testContext(t)
	stream, err := c.Watch(ctx, &pembav1.WatchRequest{Filters: []*pembav1.ChangeFilter{{ObjectType: "doc", ObjectId: "none"}}})
	if err != nil {
		t.Fatal(err)
	}
	written, err := c.WriteTuples(ctx, &pembav1.WriteTuplesRequest{Updates: touch(0, 3)})
	if err != nil {
		t.Fatal(err)
	}
	last, err := parseZookie(written.GetWrittenAt(), s.clusterID())
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		z, err := parseZookie(m.GetZookie(), s.clusterID())
		if err != nil || !m.GetHeartbeat() || len(m.GetChanges()) > 0 {
			t.Fatalf("%v, %v", m, err)
		}
		if z.revision < last.revision {
			continue
		}
		// From this cursor on there is nothing left of the write.
		position, err := s.parseChangeCursor(storeNamed(t, s, DefaultStoreName), m.GetCursor())
		if err != nil || position.Revision <= last.revision || position.Offset != 0 {
			t.Errorf("%v, %v; the write was revision %d", position, err, last.revision)
		}
		return
	}
}

// TestWatchEnds: a watch ends when its store is deleted, and when the server is
// closed, which must not wait for it.
func TestWatchEnds(t *testing.T) {
	s := testServer(t, Config{})
	c := dial(t, s)
	ctx := testContext(t)
	if _, err := c.CreateStore(ctx, &pembav1.CreateStoreRequest{Name: "short"}); err != nil {
		t.Fatal(err)
	}
	open := func(store string) func() error {
		stream, err := c.Watch(ctx, &pembav1.WatchRequest{Store: store})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		return func() error {
			for {
				if _, err := stream.Recv(); err != nil {
					return err
				}
			}
		}
	}
	short, long := open("short"), open("")
	if _, err := c.DeleteStore(ctx, &pembav1.DeleteStoreRequest{Store: "short"}); err != nil {
		t.Fatal(err)
	}
	expectStatus(t, "a watch of a deleted store", short(), codes.NotFound, "UNKNOWN_STORE")
	closing, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	closed := make(chan error, 1)
	go func() { closed <- s.Close(closing) }()
	expectStatus(t, "a watch of a server that closes", long(), codes.Unavailable, "SHUTTING_DOWN")
	if err := <-closed; err != nil || closing.Err() != nil {
		t.Errorf("close: %v, %v", err, closing.Err())
	}
}

// TestChangesOfTime reads changes and states by the moments that the log names.
func TestChangesOfTime(t *testing.T) {
	s := testServer(t, Config{})
	c := dial(t, s)
	writeDocs(t, c, 0)
	ctx := testContext(t)
	for i := range 5 {
		if _, err := c.WriteTuples(ctx, &pembav1.WriteTuplesRequest{Updates: touch(i, i+1)}); err != nil {
			t.Fatal(err)
		}
	}
	read := func(r *pembav1.ReadChangesRequest) (changes []*pembav1.WatchResponse) {
		stream, err := c.ReadChanges(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		for {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return changes
			}
			if err != nil {
				t.Fatal(err)
			}
			changes = append(changes, m.GetChanges())
		}
	}
	all := read(&pembav1.ReadChangesRequest{})
	if len(all) != 5 {
		t.Fatalf("%d revisions", len(all))
	}
	before := func(at *timestamppb.Timestamp) *timestamppb.Timestamp {
		return timestamppb.New(at.AsTime().Add(-time.Microsecond))
	}
	for i, m := range all {
		since := read(&pembav1.ReadChangesRequest{From: &pembav1.ReadChangesRequest_Since{Since: m.GetInstant()}})
		until := read(&pembav1.ReadChangesRequest{Until: m.GetInstant()})
		earlier := read(&pembav1.ReadChangesRequest{Until: before(m.GetInstant())})
		if len(since) != 5-i || len(until) != i+1 || len(earlier) != i {
			t.Errorf("change %d: %d since, %d until, %d before", i, len(since), len(until), len(earlier))
		}
		for _, x := range []struct {
			at   *timestamppb.Timestamp
			want uint64
		}{{m.GetInstant(), uint64(i) + 1}, {before(m.GetInstant()), uint64(i)}} {
			asOf := &pembav1.Consistency{Requirement: &pembav1.Consistency_AsOf{AsOf: x.at}}
			count, err := c.CountTuples(ctx, &pembav1.CountTuplesRequest{Consistency: asOf})
			if err != nil || count.GetCount() != x.want {
				t.Errorf("as of change %d: %v tuples, %v, expected %d", i, count.GetCount(), err, x.want)
			}
		}
	}
	ahead := &pembav1.Consistency{Requirement: &pembav1.Consistency_AsOf{AsOf: timestamppb.New(time.Now().Add(time.Hour))}}
	_, err := c.CountTuples(ctx, &pembav1.CountTuplesRequest{Consistency: ahead})
	expectStatus(t, "a moment to come", err, codes.OutOfRange, "INSTANT_AHEAD")
}

// TestForgotten: what a store keeps no more is refused with the oldest that it
// keeps, by every call that can ask for it.
func TestForgotten(t *testing.T) {
	t.Parallel() // It waits for a second to pass.
	s := testServer(t, Config{})
	c := dial(t, s)
	ctx := testContext(t)
	second := &pembav1.Retention{Kept: &pembav1.Retention_Duration{Duration: durationpb.New(time.Second)}}
	if _, err := c.CreateStore(ctx, &pembav1.CreateStoreRequest{Name: "short", Settings: &pembav1.StoreSettings{History: second, Log: second}}); err != nil {
		t.Fatal(err)
	}
	schema, err := c.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Store: "short", Schema: testSchema})
	if err != nil {
		t.Fatal(err)
	}
	begun := timestamppb.Now()
	var first *pembav1.Zookie
	for i := range 3 {
		written, err := c.WriteTuples(ctx, &pembav1.WriteTuplesRequest{Store: "short", Updates: touch(i, i+1)})
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = written.GetWrittenAt()
		}
	}
	store := storeNamed(t, s, "short")
	cursor := s.changeCursor(store, graph.Position{Revision: store.Created})
	time.Sleep(1100 * time.Millisecond)
	if _, err := s.write(ctx, &graph.Mutation{Store: store.ID, Prune: &graph.Prune{}}); err != nil {
		t.Fatal(err)
	}
	info, err := c.GetStore(ctx, &pembav1.GetStoreRequest{Store: "short"})
	if err != nil || info.GetStore().GetOldestHistory() == nil || info.GetStore().GetOldestChange() == nil {
		t.Fatalf("%v, %v", info, err)
	}
	oldest := info.GetStore().GetOldestChange().AsTime().UTC().Format(time.RFC3339Nano)
	asOf := &pembav1.Consistency{Requirement: &pembav1.Consistency_AsOf{AsOf: begun}}
	exactly := &pembav1.Consistency{Requirement: &pembav1.Consistency_ExactlyAt{ExactlyAt: first}}
	written := &pembav1.Consistency{Requirement: &pembav1.Consistency_ExactlyAt{ExactlyAt: schema.GetWrittenAt()}}
	streamed := func(stream interface{ RecvMsg(any) error }, m any, err error) error {
		if err != nil {
			return err
		}
		return stream.RecvMsg(m)
	}
	for name, ask := range map[string]func() error{
		"as of": func() error {
			_, err := c.CountTuples(ctx, &pembav1.CountTuplesRequest{Store: "short", Consistency: asOf})
			return err
		},
		"exactly at": func() error {
			_, err := c.ReadSchema(ctx, &pembav1.ReadSchemaRequest{Store: "short", Consistency: exactly})
			return err
		},
		"a difference": func() error {
			_, err := c.DiffSchema(ctx, &pembav1.DiffSchemaRequest{Store: "short", From: &pembav1.DiffSchemaRequest_FromZookie{FromZookie: first}})
			return err
		},
		"what a schema said of tuples": func() error {
			_, err := c.CountTuples(ctx, &pembav1.CountTuplesRequest{Store: "short", Consistency: written})
			return err
		},
		"changes since": func() error {
			stream, err := c.ReadChanges(ctx, &pembav1.ReadChangesRequest{Store: "short", From: &pembav1.ReadChangesRequest_Since{Since: begun}})
			return streamed(stream, new(pembav1.ReadChangesResponse), err)
		},
		"changes after": func() error {
			stream, err := c.ReadChanges(ctx, &pembav1.ReadChangesRequest{Store: "short", From: &pembav1.ReadChangesRequest_After{After: schema.GetWrittenAt()}})
			return streamed(stream, new(pembav1.ReadChangesResponse), err)
		},
		"a watch": func() error {
			stream, err := c.Watch(ctx, &pembav1.WatchRequest{Store: "short", From: &pembav1.WatchRequest_Cursor{Cursor: cursor}})
			return streamed(stream, new(pembav1.WatchResponse), err)
		},
	} {
		err := ask()
		expectStatus(t, name, err, codes.OutOfRange, "REVISION_GONE")
		text := printError(t, err)
		if !strings.Contains(text, "oldest_at="+oldest) || !strings.Contains(text, "oldest_revision=") {
			t.Errorf("%s: %s does not say %s", name, text, oldest)
		}
		kept := "is older than the history that is kept: the oldest is"
		switch name {
		case "changes since":
			kept = "the changes since " + begun.AsTime().UTC().Truncate(time.Microsecond).Format(time.RFC3339Nano) +
				" are kept no more: the oldest that are kept are of revision"
			if !strings.Contains(text, "; leave since out to begin there\n") {
				t.Errorf("%s: %s has no advice", name, text)
			}
		case "changes after", "a watch":
			kept = "on are kept no more: the oldest that are kept are of revision"
		}
		if !strings.Contains(text, kept) || strings.Contains(text, "snapshot") || strings.Contains(text, "store ") {
			t.Errorf("%s: %s", name, text)
		}
	}
	// What is kept can be read from its oldest moment on, and watched from now on.
	stream, err := c.ReadChanges(ctx, &pembav1.ReadChangesRequest{Store: "short", From: &pembav1.ReadChangesRequest_Since{Since: info.GetStore().GetOldestChange()}})
	if err := streamed(stream, new(pembav1.ReadChangesResponse), err); err != nil {
		t.Error(err)
	}
	watch, err := c.Watch(ctx, &pembav1.WatchRequest{Store: "short"})
	if err := streamed(watch, new(pembav1.WatchResponse), err); err != nil {
		t.Error(err)
	}
	versions, err := c.ListSchemaVersions(ctx, &pembav1.ListSchemaVersionsRequest{Store: "short"})
	if err != nil || len(versions.GetVersions()) != 1 || versions.GetVersions()[0].GetSize() == 0 {
		t.Errorf("%v, %v", versions, err)
	}
	// The schema in force at the oldest state is kept, with its time, and can be
	// read and compared by its own zookie although the state of then cannot.
	if v := versions.GetVersions()[0]; v.GetInstant() == nil || v.GetInstant().AsTime().After(begun.AsTime()) || v.GetWrittenAt().GetToken() != schema.GetWrittenAt().GetToken() {
		t.Errorf("the schema was written at %v, version %v", schema.GetWrittenAt(), v)
	}
	read, err := c.ReadSchema(ctx, &pembav1.ReadSchemaRequest{Store: "short", Consistency: written})
	if err != nil || read.GetSchema() != testSchema || read.GetWrittenAt().GetToken() != schema.GetWrittenAt().GetToken() {
		t.Errorf("the schema by its version: %v, %v", read, err)
	}
	difference, err := c.DiffSchema(ctx, &pembav1.DiffSchemaRequest{Store: "short", From: &pembav1.DiffSchemaRequest_FromZookie{FromZookie: schema.GetWrittenAt()}})
	if err != nil || len(difference.GetChanges()) > 0 {
		t.Errorf("the schema differs from itself: %v, %v", difference, err)
	}
	// Once it is replaced and the state with it forgotten, it is gone as well.
	if _, err := c.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Store: "short", Schema: testSchema + "definition more {}"}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1100 * time.Millisecond)
	if _, err := s.write(ctx, &graph.Mutation{Store: store.ID, Prune: &graph.Prune{}}); err != nil {
		t.Fatal(err)
	}
	_, err = c.ReadSchema(ctx, &pembav1.ReadSchemaRequest{Store: "short", Consistency: written})
	expectStatus(t, "a schema that is listed no more", err, codes.OutOfRange, "REVISION_GONE")
}

// TestWatchStalled: a watch whose client takes nothing is ended, and goes on
// from the last cursor.
func TestWatchStalled(t *testing.T) {
	const count = 15_000 // More than is on the way to a client at most.
	s := testServer(t, Config{Limits: Limits{StreamStall: 10 * time.Millisecond}})
	writeDocs(t, dial(t, s), count)
	ctx := testContext(t)
	begin := &pembav1.WatchRequest_After{After: zookie{cluster: s.clusterID()}.proto()}
	request := &pembav1.WatchRequest{From: begin}
	next, stalled := uint64(1), false
	for pause := 50 * time.Millisecond; next <= count; {
		// A connection of its own, which is closed behind several watches that stalled:
		// on a busy machine one may stall though it is read.
		c := dial(t, s, grpc.WithInitialWindowSize(1<<16), grpc.WithInitialConnWindowSize(1<<16))
		stream, err := c.Watch(ctx, request)
		if err != nil {
			t.Fatal(err)
		}
		if !stalled {
			time.Sleep(pause) // How long it takes to fill what is on the way depends on the machine.
		}
		for next <= count {
			m, err := stream.Recv()
			if err != nil {
				expectStatus(t, "a client that takes nothing", err, codes.ResourceExhausted, "CLIENT_STALLED")
				stalled = true
				break
			}
			for _, change := range m.GetChanges() {
				if change.GetSequence() != next {
					t.Fatalf("change %d comes where %d should", change.GetSequence(), next)
				}
				next++
			}
			request.From = &pembav1.WatchRequest_Cursor{Cursor: m.GetCursor()}
		}
		if !stalled {
			// It was not asked for long enough; ctx ends one that never stalls.
			pause, next, request.From = pause*2, 1, begin
		}
	}
}

// TestWatchSchemaChanges: a watch that asks for schemas is told of each where it
// stands among the changes of tuples, also when it begins anew at any cursor, and
// one that does not ask is told of none.
func TestWatchSchemaChanges(t *testing.T) {
	s := testServer(t, Config{Limits: Limits{WatchHeartbeat: 5 * time.Millisecond}})
	c := dial(t, s)
	ctx := testContext(t)
	var want []string
	schemas := make(map[string]*pembav1.WriteSchemaResponse)
	for i := range 4 {
		text := testSchema + strings.Repeat(" ", i)
		written, err := c.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Schema: text, RecordedActor: fmt.Sprintf("writer %d", i)})
		if err != nil {
			t.Fatal(err)
		}
		event := fmt.Sprintf("schema of %d bytes by writer %d", len(text), i)
		schemas[event] = written
		want = append(want, event)
		for j := range i { // None stands between the first two.
			if _, err := c.WriteTuples(ctx, &pembav1.WriteTuplesRequest{Updates: touch(10*i+j, 10*i+j+1)}); err != nil {
				t.Fatal(err)
			}
			want = append(want, fmt.Sprintf("d%05d", 10*i+j))
		}
	}
	// follow is told so many events from a place on, with the cursor behind each.
	follow := func(r *pembav1.WatchRequest, count int) (events, cursors []string) {
		watching, cut := context.WithCancel(ctx)
		defer cut()
		stream, err := c.Watch(watching, r)
		if err != nil {
			t.Fatal(err)
		}
		for len(events) < count {
			m, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if v := m.GetSchema(); v != nil {
				event := fmt.Sprintf("schema of %d bytes by %s", v.GetSize(), v.GetRecordedActor())
				if written := schemas[event].GetWrittenAt().GetToken(); v.GetWrittenAt().GetToken() != written || v.GetInstant() == nil || m.GetHeartbeat() {
					t.Errorf("%s: %v is not the version %s", event, m, written)
				}
				events, cursors = append(events, event), append(cursors, m.GetCursor())
			}
			for _, change := range m.GetChanges() {
				events, cursors = append(events, change.GetTuple().GetObject().GetId()), append(cursors, m.GetCursor())
			}
		}
		return events, cursors
	}
	begin := &pembav1.WatchRequest_After{After: zookie{cluster: s.clusterID()}.proto()}
	all, cursors := follow(&pembav1.WatchRequest{From: begin, SchemaChanges: true}, len(want))
	if !slices.Equal(all, want) {
		t.Fatalf("told %q, expected %q", all, want)
	}
	for i, cursor := range cursors[:len(cursors)-1] {
		rest, _ := follow(&pembav1.WatchRequest{From: &pembav1.WatchRequest_Cursor{Cursor: cursor}, SchemaChanges: true}, len(want)-i-1)
		if !slices.Equal(rest, want[i+1:]) {
			t.Errorf("behind %q: told %q, expected %q", want[i], rest, want[i+1:])
		}
	}
	tuples := slices.DeleteFunc(slices.Clone(want), func(event string) bool { return strings.HasPrefix(event, "schema") })
	if told, _ := follow(&pembav1.WatchRequest{From: begin}, len(tuples)); !slices.Equal(told, tuples) {
		t.Errorf("without schemas: told %q, expected %q", told, tuples)
	}
	// A schema comes through filters that no tuple passes, and is told while it is
	// watched for.
	stream, err := c.Watch(ctx, &pembav1.WatchRequest{SchemaChanges: true, Filters: []*pembav1.ChangeFilter{{ObjectType: "doc", ObjectId: "none"}}})
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteTuples(ctx, &pembav1.WriteTuplesRequest{Updates: touch(99, 100)}); err != nil {
		t.Fatal(err)
	}
	written, err := c.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Schema: testSchema})
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if m.GetHeartbeat() {
			continue
		}
		if len(m.GetChanges()) > 0 || m.GetSchema().GetWrittenAt().GetToken() != written.GetWrittenAt().GetToken() {
			t.Errorf("%v is not the schema of %v", m, written)
		}
		break
	}
}
