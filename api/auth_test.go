package api

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
)

func plainCredentials() credentials.TransportCredentials { return insecure.NewCredentials() }

func TestKeyFile(t *testing.T) {
	many := strings.Builder{}
	for i := range keysMax + 1 {
		fmt.Fprintf(&many, "k%d\n", i)
	}
	for _, test := range []struct {
		name, content, want string // want is what describe says, or a part of the error
	}{
		{"an operator", "secret\n", "secret: operator"},
		{"no newline", "secret", "secret: operator"},
		{"bound", "a store one\nb store one,two\n", "a: one; b: one,two"},
		{"comments", "# keys\n\n  a # old\nb store one # new\n", "a: operator; b: one"},
		{"blanks", "\ta \t store\tone\r\n", "a: one"},
		{"a # inside", "a#b\n", "a#b: operator"},
		{"nothing", "", "no key"},
		{"comments alone", "# a\n", "no key"},
		{"twice", "a\nb\na store one\n", "line 3: the key stands in line 1"},
		{"no store", "a store\n", "line 1: behind the key"},
		{"another word", "a stores one\n", "line 1: behind the key"},
		{"too many words", "a store one two\n", "line 1: behind the key"},
		{"an empty name", "a store one,,two\n", "line 1: the name"},
		{"a long name", "a store " + strings.Repeat("x", 65), "line 1: the name"},
		{"beyond ASCII", "b\nschlüssel\n", "line 2: the key"},
		{"too many", many.String(), "more than 1000 keys"},
		{"too large", strings.Repeat("#\n", fileBytesMax), "bytes"},
	} {
		ring, err := parseKeyFile([]byte(test.content))
		got := fmt.Sprint(err)
		if err == nil {
			got = describe(ring)
		}
		if err == nil && got != test.want || err != nil && !strings.Contains(got, test.want) {
			t.Errorf("%s: %s, expected %s", test.name, got, test.want)
		}
		if err != nil && strings.Contains(err.Error(), "schl") {
			t.Errorf("%s: the error tells a key: %v", test.name, err)
		}
	}
}

// describe names the callers of a ring whose keys are among a few.
func describe(ring keyring) string {
	var texts []string
	for _, c := range ring {
		for _, key := range []string{"secret", "a", "b", "a#b"} {
			if c.digest == sha256.Sum256([]byte(key)) {
				what := "operator"
				if !c.operator {
					var names []string
					for _, name := range []string{"one", "two"} {
						if c.maySee(name) {
							names = append(names, name)
						}
					}
					what = strings.Join(names, ",")
				}
				texts = append(texts, key+": "+what)
			}
		}
	}
	return strings.Join(texts, "; ")
}

// FuzzKeyFile: whatever a file holds, it gives keys that can be presented or an
// error that tells nothing of them.
func FuzzKeyFile(f *testing.F) {
	for _, seed := range []string{"a\n", "a store one,two # x\n", "\x00", "a store ,", "#", "k\r\nk2 store default"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		ring, err := parseKeyFile(content)
		if err != nil {
			if len(ring) > 0 {
				t.Fatal("keys beside an error")
			}
			return
		}
		if len(ring) == 0 || len(ring) > keysMax {
			t.Fatalf("%d keys", len(ring))
		}
		for _, c := range ring {
			if c.operator == (c.stores != nil) || c.maySee("") && !c.operator {
				t.Fatalf("a caller that is neither: %+v", c)
			}
		}
	})
}

// TestCallers: the context says who calls; without a key configured it is the
// operator of the machine.
func TestCallers(t *testing.T) {
	ring := keyring{
		{operator: true, digest: sha256.Sum256([]byte("op"))},
		{stores: map[string]bool{"one": true}, digest: sha256.Sum256([]byte("bound"))},
	}
	for _, test := range []struct {
		name                   string
		ring                   keyring
		key                    string
		operator, seesOne, see bool
	}{
		{"an operator", ring, "op", true, true, true},
		{"bound", ring, "bound", false, true, false},
		{"no keys", nil, "", true, true, true},
	} {
		g := &gate{}
		g.ring.Store(&test.ring)
		header := metadata.MD{}
		if test.key != "" {
			header.Set("authorization", "Bearer "+test.key)
		}
		ctx, err := g.authenticate(context.Background(), &tap.Info{FullMethodName: pembav1.PermissionService_Check_FullMethodName, Header: header})
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		c := callerOf(ctx)
		if c.operator != test.operator || c.maySee("one") != test.seesOne || c.maySee("default") != test.see {
			t.Errorf("%s: %+v", test.name, c)
		}
	}
	if c := callerOf(context.Background()); c.operator || c.maySee("default") {
		t.Error("a context that was not let in sees something")
	}
}

// TestKeyRotation: keys change without a failed call, over gRPC and HTTP; a
// broken file changes nothing.
func TestKeyRotation(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	writeFile(t, file, []byte("old\n"))
	var log lockedBuffer
	s := testServer(t, Config{KeyFile: file, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	c := dial(t, s)
	letIn := func(key string) bool {
		ctx := metadata.AppendToOutgoingContext(testContext(t), "authorization", "Bearer "+key)
		_, err := c.ReadSchema(ctx, &pembav1.ReadSchemaRequest{})
		return strings.Contains(printError(t, err), "NO_SCHEMA")
	}
	var key atomic.Value
	key.Store("old")
	l := startLoad(t, false, func() string { return key.Load().(string) }, func() *grpc.ClientConn {
		conn, err := grpc.NewClient("passthrough:///"+s.GRPCAddr().String(), grpc.WithTransportCredentials(plainCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}, func() *http.Client { return &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4}} }, httpURL(s, "/pemba/v1/count-tuples"))
	defer l.stop()
	writeFile(t, file, []byte("old\nnew store default\n"))
	eventually(t, "the new key counts", func() bool { return letIn("new") })
	key.Store("new")
	// Calls that have taken the old key may still be on their way.
	l.turnOver(t)
	// A file that is empty for a moment does not open the server, and neither does
	// one that is gone.
	writeFile(t, file, nil)
	eventually(t, "the empty file is noticed", func() bool { return strings.Contains(log.String(), "stays in force") })
	if letIn("other") || !letIn("new") {
		t.Error("an empty file changed the keys")
	}
	writeFile(t, file, []byte("new store default\n"))
	eventually(t, "the old key counts no more", func() bool { return !letIn("old") })
	l.stop()
	_, err := c.ReadSchema(metadata.AppendToOutgoingContext(testContext(t), "authorization", "Bearer old"), &pembav1.ReadSchemaRequest{})
	expectStatus(t, "the old key", err, codes.Unauthenticated, "KEY_INVALID")
	// A store that is misspelt is told with the line, and no key.
	if text := log.String(); strings.Contains(text, "do not exist") {
		t.Errorf("a store that exists is missed: %s", text)
	}
	writeFile(t, file, []byte("# keys\nnew store default\nsecret store default,defautl,later\n"))
	eventually(t, "the new line is in force", func() bool { return letIn("secret") })
	want := fmt.Sprintf("file=%s line=3 count=2 stores=defautl,later\n", file)
	if text := log.String(); strings.Count(text, "level=WARN") != 1 || !strings.Contains(text, want) || strings.Contains(text, "secret") {
		t.Errorf("the log lacks %s: %s", want, text)
	}
	if strings.Contains(log.String(), "default\n") {
		t.Errorf("the log tells of keys: %s", log.String())
	}
}

// An openCall is a call of a test that was let in and goes on until it is ended.
type openCall struct {
	what string
	// end waits for its error. A watch must tell of no change until then.
	end func() (codes.Code, string)
}

// openStreams opens one call of each kind that may last with a key: over gRPC and
// HTTP, those that read and those that write, some of them stuck in a client that
// takes nothing.
func openStreams(t *testing.T, s *Server, c *testClient, key, store string) []openCall {
	t.Helper()
	ctx := as(testContext(t), key)
	reasonOf := func(err error) (codes.Code, string) {
		st := status.Convert(err)
		for _, d := range st.Details() {
			if info, ok := d.(*errdetails.ErrorInfo); ok {
				return st.Code(), info.GetReason()
			}
		}
		return st.Code(), ""
	}
	watch, err := c.Watch(ctx, &pembav1.WatchRequest{Store: store})
	if err == nil {
		_, err = watch.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	calls := []openCall{{"a watch", func() (codes.Code, string) {
		for {
			m, err := watch.Recv()
			if err != nil {
				return reasonOf(err)
			}
			if !m.GetHeartbeat() {
				t.Errorf("a watch tells of %v", m)
			}
		}
	}}}
	// Its server waits for the client, who waits for the test.
	slow := dial(t, s, grpc.WithInitialWindowSize(1<<16), grpc.WithInitialConnWindowSize(1<<16))
	export, err := slow.ExportTuples(ctx, &pembav1.ExportTuplesRequest{Store: store})
	if err == nil {
		_, err = export.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	calls = append(calls, openCall{"an export that nobody takes", func() (codes.Code, string) {
		for {
			if _, err := export.Recv(); err != nil {
				return reasonOf(err)
			}
		}
	}})
	imports, err := c.ImportTuples(ctx)
	if err == nil {
		err = imports.Send(&pembav1.ImportTuplesRequest{Header: &pembav1.ImportHeader{Store: store, ImportId: "open"}, Tuples: docs(0, 1)})
	}
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the import is staged", func() bool {
		stages, err := s.node.Stages(storeNamed(t, s, store).ID)
		return err == nil && len(stages) == 1
	})
	calls = append(calls, openCall{"an import that sends nothing", func() (codes.Code, string) {
		// The answer comes although the request has not ended.
		return reasonOf(imports.RecvMsg(new(pembav1.ImportTuplesResponse)))
	}})
	post := func(path string, body io.Reader) (*http.Response, *bufio.Reader) {
		r, err := http.NewRequestWithContext(testContext(t), "POST", httpURL(s, path), body)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer "+key)
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = response.Body.Close() }) // The server ends it first.
		return response, bufio.NewReader(response.Body)
	}
	_, answer := post("/pemba/v1/watch", strings.NewReader(`{"store": "`+store+`"}`))
	if line, err := answer.ReadString('\n'); err != nil || !strings.Contains(line, `"heartbeat":true`) {
		t.Fatalf("a watch over HTTP: %s, %v", line, err)
	}
	return append(calls, openCall{"a watch over HTTP", func() (codes.Code, string) {
		for {
			line, err := answer.ReadString('\n')
			if err != nil {
				t.Errorf("a watch over HTTP: %q, %v", line, err)
				return codes.Unknown, ""
			}
			if strings.HasPrefix(line, `{"error"`) {
				code, reason := httpError(t, "a watch over HTTP", line)
				return codes.Code(code), reason
			}
			if !strings.Contains(line, `"heartbeat":true`) {
				t.Errorf("a watch over HTTP tells of %s", line)
			}
		}
	}})
}

// TestKeyRemoved: a call that is open ends when its key is removed, or may no
// more see the store, and nothing that is written afterwards comes over it; those
// of other keys go on.
func TestKeyRemoved(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	writeFile(t, file, []byte("gone store one,two\nnarrowed store one,two\nstays store one\n"))
	node := &wrappedNode{Node: testNode(t)}
	s := testServer(t, Config{Node: node, Keys: []string{"operator"}, KeyFile: file, Limits: Limits{WatchHeartbeat: 10 * time.Millisecond, StreamStall: time.Hour}})
	c := dial(t, s)
	operator := as(testContext(t), "operator")
	for _, store := range []string{"one", "two"} {
		if _, err := c.CreateStore(operator, &pembav1.CreateStoreRequest{Name: store}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.WriteSchema(operator, &pembav1.WriteSchemaRequest{Store: store, Schema: testSchema}); err != nil {
			t.Fatal(err)
		}
		// More than is on the way to a client at most.
		for from := 0; from < 8000; from += 1000 {
			if _, err := c.WriteTuples(operator, &pembav1.WriteTuplesRequest{Store: store, Updates: touch(from, from+1000)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	gone := openStreams(t, s, c, "gone", "one")
	narrowed := openStreams(t, s, c, "narrowed", "two")
	// The function receives one message, and says whether it tells of a change.
	stays := func(key, store string) func() bool {
		stream, err := c.Watch(as(testContext(t), key), &pembav1.WatchRequest{Store: store})
		if err != nil {
			t.Fatal(err)
		}
		return func() bool {
			m, err := stream.Recv()
			if err != nil {
				t.Fatalf("the watch of the key %s of the store %s: %v", key, store, err)
			}
			return !m.GetHeartbeat()
		}
	}
	others := []func() bool{stays("stays", "one"), stays("narrowed", "one"), stays("operator", "two")}
	for _, told := range others {
		if told() {
			t.Error("a watch begins with a change")
		}
	}
	if n := openStreamsOf(s.gate); n != len(gone)+len(narrowed)+len(others) {
		t.Errorf("%d streams are known to be open", n)
	}
	// Its lock is held until all streams are judged by the new keys.
	generation := func() uint64 {
		s.gate.mu.Lock()
		defer s.gate.mu.Unlock()
		return s.gate.generation
	}
	before := generation()
	writeFile(t, file, []byte("narrowed store one\nstays store one\n"))
	eventually(t, "the keys are in force", func() bool { return generation() > before })
	for _, store := range []string{"one", "two"} {
		if _, err := c.WriteTuples(as(testContext(t), "operator"), &pembav1.WriteTuplesRequest{Store: store, Updates: touch(8000, 8001)}); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range []struct {
		calls  []openCall
		code   codes.Code
		reason string
	}{{gone, codes.Unauthenticated, "KEY_INVALID"}, {narrowed, codes.NotFound, "UNKNOWN_STORE"}} {
		for _, call := range x.calls {
			if code, reason := call.end(); code != x.code || reason != x.reason {
				t.Errorf("%s: %v %s, expected %v %s", call.what, code, reason, x.code, x.reason)
			}
		}
	}
	// The others are told of it.
	for _, told := range others {
		for !told() {
		}
	}
	// Nothing is left of those that ended.
	eventually(t, "the streams are forgotten", func() bool { return openStreamsOf(s.gate) == len(others) })
	// What an import had staged was not committed.
	for _, store := range []string{"one", "two"} {
		if stages, err := s.node.Stages(storeNamed(t, s, store).ID); err != nil || len(stages) != 1 || stages[0].Committed != 0 {
			t.Errorf("the import into %s: %v, %v", store, stages, err)
		}
	}
}

func openStreamsOf(g *gate) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.open)
}

// TestKeyRemovedBetween: a key that goes after a stream was let in and before it
// is known, or before its first message, ends it as well, and so does a change
// between.
func TestKeyRemovedBetween(t *testing.T) {
	ringOf := func(content string) keyring {
		ring, err := parseKeyFile([]byte(content))
		if err != nil {
			t.Fatal(err)
		}
		return ring
	}
	watch := &pembav1.WatchRequest{Store: "two"}
	for _, test := range []struct {
		name, before, after string
		entered             bool // The change comes behind the entering.
		request             any
		want                string
	}{
		{"nothing changes", "k store one,two", "k store one,two", false, watch, ""},
		{"more stores", "k store two", "k", false, watch, ""},
		{"removed before it is known", "k store one,two", "other", false, watch, "KEY_INVALID"},
		{"removed before its message", "k store one,two", "other", true, watch, "KEY_INVALID"},
		{"narrowed before it is known", "k store one,two", "k store one", false, watch, "UNKNOWN_STORE"},
		{"narrowed before its message", "k", "k store one", true, watch, "UNKNOWN_STORE"},
		{"an import", "k", "k store one", true, &pembav1.ImportTuplesRequest{Header: &pembav1.ImportHeader{Store: "two"}}, "UNKNOWN_STORE"},
		{"an import into the default store", "k", "k store one", true, &pembav1.ImportTuplesRequest{Header: &pembav1.ImportHeader{}}, "UNKNOWN_STORE"},
		{"an import without a header", "k", "k store one", true, &pembav1.ImportTuplesRequest{}, ""},
		{"a request about no store", "k", "k store one", true, &pembav1.ListStoresRequest{}, ""},
	} {
		g := &gate{metrics: newMetrics(&Server{})}
		g.use(ringOf(test.before))
		c, err := g.admit([]string{"Bearer k"})
		if err != nil {
			t.Fatal(err)
		}
		ctx := context.WithValue(context.Background(), callerKey{}, c)
		if !test.entered {
			g.use(ringOf(test.after))
		}
		o := g.enter(ctx)
		if test.entered {
			g.use(ringOf(test.after))
		}
		got := ""
		var refusal *requestError
		if err := g.about(o, test.request); errors.As(err, &refusal) {
			got = refusal.reason
		}
		if got != test.want {
			t.Errorf("%s: %q, expected %q", test.name, got, test.want)
		}
		if ended := test.want != ""; (o.ctx.Err() != nil) != ended {
			t.Errorf("%s: %v", test.name, o.ctx.Err())
		}
		if callerOf(o.ctx).digest != c.digest {
			t.Errorf("%s: the caller is lost", test.name)
		}
		g.leave(o)
		if openStreamsOf(g) != 0 {
			t.Errorf("%s: it is still open", test.name)
		}
	}
	// Without keys there is nothing to follow.
	ctx := context.WithValue(context.Background(), callerKey{}, nobody)
	if g := (&gate{}); g.enter(ctx) != nil {
		t.Error("who needs no key is followed")
	}
}

// TestEndedStreamKeepsTheError: what became of a write is worth more than that the key
// is gone.
func TestEndedStreamKeepsTheError(t *testing.T) {
	refused := errors.New("refused")
	unknown := fmt.Errorf("%w: %w", cluster.ErrOutcomeUnknown, context.Canceled)
	for _, test := range []struct{ err, refused, want error }{
		{nil, refused, nil},
		{context.Canceled, nil, context.Canceled},
		{context.Canceled, refused, refused},
		{context.DeadlineExceeded, refused, context.DeadlineExceeded},
		{unknown, refused, unknown},
	} {
		if got := because(test.err, test.refused); !errors.Is(got, test.want) || (got == nil) != (test.want == nil) {
			t.Errorf("%v, %v: %v, expected %v", test.err, test.refused, got, test.want)
		}
	}
}

// TestStoreNotNamed: who names no store and may not see the default one is told to
// name one, and who names one is not told of another.
func TestStoreNotNamed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte("operator\nbound store alpha,beta\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := dial(t, testServer(t, Config{KeyFile: file}))
	ctx := testContext(t)
	for store, want := range map[string]string{
		"":        `store: none is named, which means the store "default", and the key may not see that; name one in the field store`,
		"default": `store: there is no store "default" that the caller may see`,
		"alpha":   `store: there is no store "alpha" that the caller may see`,
	} {
		_, err := c.ReadSchema(as(ctx, "bound"), &pembav1.ReadSchemaRequest{Store: store})
		expectStatus(t, "the store "+store, err, codes.NotFound, "UNKNOWN_STORE")
		if said := status.Convert(err).Message(); said != want {
			t.Errorf("of the store %q it says %s", store, said)
		}
	}
}
