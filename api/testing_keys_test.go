package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/types/dynamicpb"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
)

// testingServer is a server that takes every key, of a node in memory.
func testingServer(t testing.TB, limits Limits) (*Server, *testClient) {
	t.Helper()
	s := testServer(t, Config{Node: memoryNode(t), Testing: true, Limits: limits})
	return s, dial(t, s)
}

// storeOfKey is the name of a key's store, found in another way than the server does.
func storeOfKey(key string) string {
	digest := sha256.Sum256([]byte(key))
	return "key-" + hex.EncodeToString(digest[:])[:32]
}

// asTester presents a key; "" presents none.
func asTester(ctx context.Context, key string) context.Context {
	if key == "" {
		return ctx
	}
	return as(ctx, key)
}

// TestTestingKeys: each key has what was written with it and nothing else, and so
// has the store of calls without a key.
func TestTestingKeys(t *testing.T) {
	_, c := testingServer(t, Limits{})
	ctx := testContext(t)
	keys := []string{"one", "two", "a-key/with+signs=", ""}
	for i, key := range keys {
		ctx := asTester(ctx, key)
		if _, err := c.ReadSchema(ctx, &pembav1.ReadSchemaRequest{}); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("key %q: a store that is new has a schema: %v", key, err)
		}
		if _, err := c.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Schema: testSchema}); err != nil {
			t.Fatalf("key %q: %v", key, err)
		}
		if _, err := c.WriteTuples(ctx, &pembav1.WriteTuplesRequest{Updates: touch(i, i+1)}); err != nil {
			t.Fatalf("key %q: %v", key, err)
		}
	}
	for i, key := range keys {
		ctx := asTester(ctx, key)
		for j := range keys {
			r, err := c.Check(ctx, &pembav1.CheckRequest{
				Object: object("doc", fmt.Sprintf("d%05d", j)), Permission: "view", Subject: user("anne"),
			})
			want := pembav1.Decision_DECISION_DENIED
			if i == j {
				want = pembav1.Decision_DECISION_ALLOWED
			}
			if err != nil || r.GetDecision() != want {
				t.Errorf("key %q asks for the tuple of key %q: %v, %v", key, keys[j], r, err)
			}
		}
		want := DefaultStoreName
		if key != "" {
			want = storeOfKey(key)
		}
		list, err := c.ListStores(ctx, &pembav1.ListStoresRequest{})
		if err != nil || len(list.GetStores()) != 1 || list.GetStores()[0].GetName() != want {
			t.Errorf("key %q lists %v (%v), want %s", key, list, err, want)
		}
		// Its own name is a name of it.
		if r, err := c.CountTuples(ctx, &pembav1.CountTuplesRequest{Store: want}); err != nil || r.GetCount() != 1 {
			t.Errorf("key %q counts in %s: %v, %v", key, want, r, err)
		}
	}
	// A list is a first call as any other.
	list, err := c.ListStores(as(ctx, "lister"), &pembav1.ListStoresRequest{})
	if err != nil || len(list.GetStores()) != 1 || list.GetStores()[0].GetName() != storeOfKey("lister") {
		t.Errorf("the first call of a key lists %v (%v)", list, err)
	}
}

// TestTestingIsolation: no call of pemba.v1 lets a key see into the store of
// another, by its name, its zookies, its cursors or what the call asks for, and a
// store of another key is no other than one that there is not.
func TestTestingIsolation(t *testing.T) {
	s, c := testingServer(t, Limits{})
	x := &twoStores{server: s, client: c, cursors: make(map[string]string)}
	ctx := testContext(t)
	fillIn := func(key, schema string, tuples ...[2]string) *pembav1.Zookie {
		ctx := as(ctx, key)
		if _, err := c.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Schema: schema}); err != nil {
			t.Fatal(err)
		}
		r := &pembav1.WriteTuplesRequest{RecordedActor: key}
		for _, tuple := range tuples {
			r.Updates = append(r.Updates, &pembav1.TupleUpdate{
				Operation: pembav1.TupleUpdate_OPERATION_TOUCH,
				Tuple:     &pembav1.Tuple{Object: object("doc", tuple[0]), Relation: "viewer", Subject: user(tuple[1])},
			})
		}
		written, err := c.WriteTuples(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		return written.GetWrittenAt()
	}
	// x.ask has the key "bound". Its store is the older one, so that it exists at the
	// zookie of the other.
	fillIn("bound", testSchema, [2]string{"shared", "anne"}, [2]string{"shared", "bob"}, [2]string{"other", "anne"})
	written := fillIn(secret, testSchema+" definition zz_secret {}",
		[2]string{"shared", "anne"}, [2]string{"shared", secret}, [2]string{secret, "anne"}, [2]string{secret + "2", "anne"}, [2]string{secret, secret})
	for _, m := range isolationMethods(t) {
		if m.Output().Fields().ByName("cursor") == nil || m.Name() == "ListStores" || m.Name() == "ListSchemaVersions" {
			continue
		}
		messages, err := invoke(as(ctx, secret), c.conn, m, 1, x.request(t, m, "", nil, "").Interface())
		if err != nil || len(messages) == 0 {
			t.Fatalf("%s: %v", m.Name(), err)
		}
		x.cursors[string(m.Name())] = messages[0].Get(m.Output().Fields().ByName("cursor")).String()
	}
	if len(x.cursors) == 0 {
		t.Fatal("there are no cursors of the other key")
	}
	for _, m := range isolationMethods(t) {
		name := string(m.Name())
		administers := m.Parent().Name() == "ClusterService" || slices.Contains([]string{"CreateStore", "UpdateStore", "DeleteStore"}, name)
		ask := func(store string, z *pembav1.Zookie, cursor string) error {
			_, err := x.ask(t, m, x.request(t, m, store, z, cursor))
			return err
		}
		for _, store := range []string{storeOfKey(secret), DefaultStoreName, "gamma"} {
			switch err := ask(store, nil, ""); {
			case administers:
				expectStatus(t, name, err, codes.PermissionDenied, "OPERATOR_ONLY")
			case name == "ListStores":
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
			default:
				expectStatus(t, name+" of "+store, err, codes.NotFound, "UNKNOWN_STORE")
			}
		}
		if administers {
			expectStatus(t, name, ask("", nil, ""), codes.PermissionDenied, "OPERATOR_ONLY")
			continue
		}
		// Whatever these come to, x.ask holds that nothing of the other is told.
		_ = ask("", nil, "")
		_ = ask("", written, "")
		if cursor := x.cursors[name]; cursor != "" {
			expectStatus(t, name+" with a cursor of the other", ask("", nil, cursor), codes.InvalidArgument, "CURSOR_INVALID")
		}
		// What changes the store would make the secret one of its own.
		writes := slices.Contains([]string{"WriteSchema", "WriteTuples", "DeleteTuples", "ImportTuples"}, name)
		if text, ok := secretRequests[name]; ok && !writes {
			r := dynamicpb.NewMessage(m.Input())
			if err := prototext.Unmarshal([]byte(text), r); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			fill(r, "", nil, "")
			_, _ = x.ask(t, m, r)
		}
	}
	if r, err := c.CountTuples(as(ctx, secret), &pembav1.CountTuplesRequest{}); err != nil || r.GetCount() != 5 {
		t.Errorf("the other key has %v tuples (%v), want 5", r.GetCount(), err)
	}
}

// TestTestingWatch: a watch of one key passes over what is written with another,
// also over HTTP.
func TestTestingWatch(t *testing.T) {
	s, c := testingServer(t, Limits{})
	ctx := testContext(t)
	for _, key := range []string{"one", "two"} {
		if _, err := c.WriteSchema(as(ctx, key), &pembav1.WriteSchemaRequest{Schema: testSchema}); err != nil {
			t.Fatal(err)
		}
	}
	stream, err := c.Watch(as(ctx, "one"), &pembav1.WatchRequest{SchemaChanges: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil { // Where it begins.
		t.Fatal(err)
	}
	for _, step := range []struct {
		key  string
		from int
	}{{"two", 1}, {"", 2}, {"one", 3}} {
		if step.key == "" {
			if _, err := c.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Schema: testSchema}); err != nil {
				t.Fatal(err)
			}
		}
		body := fmt.Sprintf(`{"updates":[{"operation":"OPERATION_TOUCH","tuple":{"object":{"type":"doc","id":"d%d"},"relation":"viewer","subject":{"object":{"type":"user","id":"anne"}}}}]}`, step.from)
		header := []string{}
		if step.key != "" {
			header = append(header, "Authorization", "Bearer "+step.key)
		}
		if a := send(t, http.MethodPost, httpURL(s, "/pemba/v1/write-tuples"), body, header...); a.status != http.StatusOK {
			t.Fatalf("key %q: %d %s", step.key, a.status, a.body)
		}
	}
	for {
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		changes := r.GetChanges()
		if len(changes) == 0 {
			continue // It says that it is alive.
		}
		if id := changes[0].GetTuple().GetObject().GetId(); len(changes) != 1 || id != "d3" {
			t.Errorf("the first change is %v", r)
		}
		return
	}
}

// TestTestingRace: calls at once with keys that are new find one store each.
func TestTestingRace(t *testing.T) {
	s, c := testingServer(t, Limits{})
	ctx := testContext(t)
	const keys, calls = 8, 16
	created := make([][]string, keys)
	for i := range created {
		created[i] = make([]string, calls)
	}
	var group sync.WaitGroup
	for i := range keys {
		for j := range calls {
			group.Go(func() {
				r, err := c.GetStore(as(ctx, fmt.Sprint("k", i)), &pembav1.GetStoreRequest{})
				if err != nil {
					t.Error(err)
					return
				}
				created[i][j] = fmt.Sprint(r.GetStore().GetName(), " ", r.GetStore().GetCreatedAt().AsTime())
			})
		}
	}
	group.Wait()
	for i, of := range created {
		if slices.Sort(of); of[0] == "" || of[0] != of[calls-1] {
			t.Errorf("key %d has the stores %q", i, slices.Compact(of))
		}
	}
	if n := len(s.node.Stores()); n != keys+1 {
		t.Errorf("there are %d stores, want %d and the default one", n, keys)
	}
}

// TestTestingBound: no more keys get a store than the limit has room for, however
// many ask at once, and those who have one keep it.
func TestTestingBound(t *testing.T) {
	s, c := testingServer(t, Limits{Stores: 4})
	ctx := testContext(t)
	const keys = 20
	errs := make([]error, keys)
	var group sync.WaitGroup
	for i := range keys {
		group.Go(func() {
			_, errs[i] = c.WriteSchema(as(ctx, fmt.Sprint("k", i)), &pembav1.WriteSchemaRequest{Schema: testSchema})
		})
	}
	group.Wait()
	let := 0
	for i, err := range errs {
		if err == nil {
			let++
			if _, err := c.ReadSchema(as(ctx, fmt.Sprint("k", i)), &pembav1.ReadSchemaRequest{}); err != nil {
				t.Errorf("key %d has a store no more: %v", i, err)
			}
			continue
		}
		expectStatus(t, fmt.Sprint("key ", i), err, codes.ResourceExhausted, "TOO_MANY_STORES")
	}
	if n := len(s.node.Stores()); let != 3 || n != 4 {
		t.Errorf("%d keys were let in, and there are %d stores; want 3, and 4 with the default one", let, n)
	}
	if _, err := c.GetStore(ctx, &pembav1.GetStoreRequest{}); err != nil {
		t.Errorf("a call without a key: %v", err)
	}
}

// TestTestingWaits: a call that waits for its store to be made ends with its
// deadline, and the next one gets the store.
func TestTestingWaits(t *testing.T) {
	s, c := testingServer(t, Limits{})
	s.makingStore <- struct{}{}
	ctx, cancel := context.WithTimeout(as(t.Context(), "k"), 30*time.Millisecond)
	defer cancel()
	if _, err := c.GetStore(ctx, &pembav1.GetStoreRequest{}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("while another store is made: %v", err)
	}
	<-s.makingStore
	if _, err := c.GetStore(as(testContext(t), "k"), &pembav1.GetStoreRequest{}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestTestingRefusals: what is no key is refused, and is no call without one; the
// metrics, which tell of all stores, are nobody's.
func TestTestingRefusals(t *testing.T) {
	s, c := testingServer(t, Limits{})
	ctx := testContext(t)
	for _, test := range []struct {
		headers []string
		reason  string // Empty for what is let in.
	}{
		{[]string{"Bearer x"}, ""},
		{[]string{"bearer   x  "}, ""},
		{[]string{"Bearer " + strings.Repeat("x", keyBytesMax)}, ""},
		{[]string{"Bearer "}, ""},
		{[]string{"Bearer " + strings.Repeat("x", keyBytesMax+1)}, keyInvalid},
		{[]string{"Bearer two words"}, keyInvalid},
		{[]string{"Bearer x", "Bearer x"}, keyInvalid},
		{[]string{"Basic eDp4"}, keyMissing},
		{[]string{"x"}, keyMissing},
	} {
		_, err := c.GetStore(metadata.NewOutgoingContext(ctx, metadata.MD{"authorization": test.headers}), &pembav1.GetStoreRequest{})
		if test.reason == "" {
			if err != nil {
				t.Errorf("%.20q: %v", test.headers, err)
			}
			continue
		}
		expectStatus(t, fmt.Sprintf("%.20q", test.headers), err, codes.Unauthenticated, test.reason)
	}
	for _, key := range []string{"", "x"} {
		if a := send(t, http.MethodGet, httpURL(s, "/metrics"), "", "Authorization", bearerOf(key)); a.status != http.StatusForbidden ||
			!strings.Contains(a.body, "tests shows no metrics") {
			t.Errorf("the metrics with the key %q: %d %s", key, a.status, a.body)
		}
		_, err := c.CreateStore(asTester(ctx, key), &pembav1.CreateStoreRequest{Name: "another"})
		expectStatus(t, "a store", err, codes.PermissionDenied, "OPERATOR_ONLY")
		if said := status.Convert(err).Message(); !strings.Contains(said, "server for tests") || strings.Contains(said, "operator's key") {
			t.Errorf("a store with the key %q is refused with %s", key, said)
		}
	}
	if a := send(t, http.MethodGet, httpURL(s, "/readyz"), ""); a.status != http.StatusOK {
		t.Errorf("/readyz says %d %s", a.status, a.body)
	}
	// The name of a store tells nothing of the key.
	for _, store := range s.node.Stores() {
		if store.Name != DefaultStoreName && (len(store.Name) != len(storeOfKey("")) || strings.Contains(store.Name, "xx")) {
			t.Errorf("there is a store %q", store.Name)
		}
	}
}

func bearerOf(key string) string {
	if key == "" {
		return ""
	}
	return "Bearer " + key
}

// TestTestingConfig: a server has keys or takes all, and one that takes all may be
// reached from other machines if it is told so.
func TestTestingConfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte("k\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []Config{{Keys: []string{"k"}}, {KeyFile: file}} {
		c.Testing, c.GRPCAddr = true, "127.0.0.1:0"
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "Testing") || !strings.Contains(err.Error(), "Key") {
			t.Errorf("%+v: %v", c, err)
		}
	}
	durable := Config{Testing: true, GRPCAddr: "127.0.0.1:0", Node: testNode(t), Logger: testLogger()}
	if s, err := Listen(durable); err == nil || !strings.Contains(err.Error(), "Testing") || !strings.Contains(err.Error(), "memory") {
		t.Errorf("of a node on a disk: %v", err)
		if err == nil {
			if err := s.Close(testContext(t)); err != nil {
				t.Error(err)
			}
		}
	}
	c := Config{Testing: true, GRPCAddr: "0.0.0.0:0", HTTPAddr: "127.0.0.1:0"}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	var log lockedBuffer
	c.Node, c.Logger = memoryNode(t), slog.New(slog.NewTextHandler(&log, nil))
	s, err := Listen(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(testContext(t)); err != nil {
		t.Error(err)
	}
	if s.limits.Stores != testingStores || DefaultLimits().Stores == testingStores {
		t.Errorf("it has room for %d stores", s.limits.Stores)
	}
	if said := log.String(); strings.Count(said, "every key is let in") != 1 || !strings.Contains(said, s.GRPCAddr().String()) {
		t.Errorf("it does not warn of the address that others can reach: %s", said)
	}
}

// TestTestingEnds: a server and its node end at once with a watch, a stream of
// answers and an import open, and leave no goroutine.
func TestTestingEnds(t *testing.T) {
	round := func() {
		node, err := cluster.Open(testContext(t), cluster.Config{InMemory: true, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		s, err := Listen(Config{Node: node, GRPCAddr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0", Testing: true, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- s.Serve() }()
		conn, err := grpc.NewClient("passthrough:///"+s.GRPCAddr().String(), grpc.WithTransportCredentials(plainCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		schemas, tuples := pembav1.NewSchemaServiceClient(conn), pembav1.NewTupleServiceClient(conn)
		ctx, cancelCalls := context.WithTimeout(as(context.Background(), "k"), 3*patience)
		defer cancelCalls()
		if _, err := schemas.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Schema: testSchema}); err != nil {
			t.Fatal(err)
		}
		for from := 0; from < 3000; from += 1000 {
			if _, err := tuples.WriteTuples(ctx, &pembav1.WriteTuplesRequest{Updates: touch(from, from+1000)}); err != nil {
				t.Fatal(err)
			}
		}
		watch, err := pembav1.NewWatchServiceClient(conn).Watch(ctx, &pembav1.WatchRequest{})
		if err == nil {
			_, err = watch.Recv()
		}
		if err != nil {
			t.Fatal(err)
		}
		read, err := tuples.ReadTuples(ctx, &pembav1.ReadTuplesRequest{})
		if err == nil {
			_, err = read.Recv()
		}
		if err != nil {
			t.Fatal(err)
		}
		imports, err := tuples.ImportTuples(ctx)
		if err == nil {
			err = imports.Send(&pembav1.ImportTuplesRequest{Header: &pembav1.ImportHeader{}})
		}
		if err != nil {
			t.Fatal(err)
		}
		now, cancel := context.WithCancel(context.Background())
		cancel()
		if err := s.Close(now); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := node.Close(testContext(t)); err != nil {
			t.Error(err)
		}
		if _, err := watch.Recv(); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("the watch ended with %v", err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	round() // What starts once in a process has started.
	before := runtime.NumGoroutine()
	for range 2 {
		round()
	}
	for end := time.Now().Add(patience); runtime.NumGoroutine() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			b := make([]byte, 1<<20)
			t.Fatalf("there were %d goroutines, and are %d:\n%s", before, runtime.NumGoroutine(), b[:runtime.Stack(b, true)])
		}
	}
}

// TestTestingTraces: a call that names no store is shown as one about its key's.
func TestTestingTraces(t *testing.T) {
	spans, endpoint := serveCollector(t)
	s, err := Listen(Config{Node: memoryNode(t), GRPCAddr: "127.0.0.1:0", Testing: true, OTLPEndpoint: endpoint, Logger: testLogger()})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve() }()
	if _, err := dial(t, s).GetStore(as(testContext(t), "k"), &pembav1.GetStoreRequest{}); err != nil {
		t.Error(err)
	}
	if err := s.Close(testContext(t)); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	spans.mu.Lock()
	defer spans.mu.Unlock()
	shown := ""
	for _, span := range spans.spans {
		for _, kv := range span.GetAttributes() {
			if kv.GetKey() == "pemba.store" {
				shown = kv.GetValue().GetStringValue()
			}
		}
	}
	if shown != storeOfKey("k") {
		t.Errorf("the store of the span is %q, want %q", shown, storeOfKey("k"))
	}
}
