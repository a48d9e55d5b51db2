package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/engine"
)

// An httpAnswer is what a call over HTTP gave.
type httpAnswer struct {
	status int
	header http.Header
	body   string
}

// send makes a request. header are pairs.
func send(t testing.TB, method, url, body string, header ...string) httpAnswer {
	t.Helper()
	r, err := http.NewRequestWithContext(testContext(t), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		r.Header.Del(header[i])
		if header[i+1] != "" {
			r.Header.Set(header[i], header[i+1])
		}
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if err := response.Body.Close(); err != nil {
		t.Fatal(err)
	}
	return httpAnswer{response.StatusCode, response.Header, string(content)}
}

// httpURL is where a server answers path.
func httpURL(s *Server, path string) string { return "http://" + s.HTTPAddr().String() + path }

// httpError reads the one form of an error, and fails on anything else.
func httpError(t *testing.T, what, body string) (code int, reason string) {
	t.Helper()
	var e struct {
		Error struct {
			Code    int              `json:"code"`
			Message string           `json:"message"`
			Details []map[string]any `json:"details"`
		} `json:"error"`
	}
	d := json.NewDecoder(strings.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil || e.Error.Code == 0 || e.Error.Message == "" {
		t.Fatalf("%s: not the form of an error: %v: %s", what, err, body)
	}
	for _, detail := range e.Error.Details {
		if detail["@type"] == "type.googleapis.com/google.rpc.ErrorInfo" && detail["domain"] == ErrorDomain {
			reason, _ = detail["reason"].(string)
		}
	}
	if reason == "" {
		t.Errorf("%s: an error without a reason: %s", what, body)
	}
	return e.Error.Code, reason
}

// lines splits the answer of a stream.
func lines(body string) []string { return strings.Split(strings.TrimSuffix(body, "\n"), "\n") }

// TestPaths: every method has its path, here, for the generators and in the
// document, and there is no other.
func TestPaths(t *testing.T) {
	content, err := os.ReadFile("pemba/v1/gateway.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		HTTP struct {
			Rules []struct{ Selector, Post, Body string }
		}
	}
	if err := yaml.Unmarshal(content, &config); err != nil {
		t.Fatal(err)
	}
	rules := make(map[string]string)
	for _, r := range config.HTTP.Rules {
		rules[r.Selector] = r.Post
		if r.Body != "*" {
			t.Errorf("%s: its body is %q", r.Selector, r.Body)
		}
	}
	var document struct {
		Info                struct{ Title, Version string }
		SecurityDefinitions map[string]struct{ Type, Name, In string }
		Security            []map[string][]string
		Paths               map[string]map[string]any
	}
	if err := json.Unmarshal(openAPI, &document); err != nil {
		t.Fatal(err)
	}
	if document.Info.Title != "Pemba" || document.Info.Version != "v1" || len(document.Security) != 1 ||
		document.SecurityDefinitions["Bearer"].Name != "Authorization" {
		t.Errorf("the document's head: %+v", document.Info)
	}
	methods := 0
	expect := func(service, method string) {
		methods++
		path := httpPath(method)
		if got := rules[service+"."+method]; got != path {
			t.Errorf("gateway.yaml: %s.%s has the path %q, expected %q", service, method, got, path)
		}
		if len(document.Paths[path]) != 1 || document.Paths[path]["post"] == nil {
			t.Errorf("OpenAPI: %s: %v", path, document.Paths[path])
		}
	}
	for _, service := range services {
		for _, m := range service.Methods {
			expect(service.ServiceName, m.MethodName)
		}
		for _, m := range service.Streams {
			expect(service.ServiceName, m.StreamName)
		}
	}
	if methods != len(rules) || methods != len(document.Paths) {
		t.Errorf("%d methods, %d rules, %d paths", methods, len(rules), len(document.Paths))
	}
	if p := httpPath("LookupResources"); p != "/pemba/v1/lookup-resources" {
		t.Errorf("a path: %s", p)
	}
}

func TestHTTPCalls(t *testing.T) {
	s := testServer(t, Config{})
	post := func(path, body string) httpAnswer { return send(t, "POST", httpURL(s, "/pemba/v1/"+path), body) }
	expect := func(what string, a httpAnswer, parts ...string) {
		t.Helper()
		if a.status != 200 {
			t.Errorf("%s: %d %s", what, a.status, a.body)
		}
		for _, part := range parts {
			if !strings.Contains(strings.ReplaceAll(a.body, `": `, `":`), part) {
				t.Errorf("%s: no %s in %s", what, part, a.body)
			}
		}
	}
	schema, err := json.Marshal(map[string]string{"schema": testSchema})
	if err != nil {
		t.Fatal(err)
	}
	expect("write a schema", post("write-schema", string(schema)), `"written_at":{"token":"`)
	expect("write tuples", post("write-tuples", `{"updates": [
		{"operation": "OPERATION_TOUCH", "tuple": {"object": {"type": "doc", "id": "a"}, "relation": "viewer", "subject": {"object": {"type": "user", "id": "anne"}}}},
		{"operation": "OPERATION_CREATE", "tuple": {"object": {"type": "doc", "id": "b"}, "relation": "viewer", "subject": {"object": {"type": "user", "id": "anne"}}}}
	]}`), `"changed":2`)
	a := post("check", `{"object": {"type": "doc", "id": "a"}, "permission": "view", "subject": {"object": {"type": "user", "id": "anne"}}}`)
	// What has no value is written, but for messages; names are the protocol's.
	expect("check", a, `"decision":"DECISION_ALLOWED"`, `"missing":[]`, `"checked_at":{"token":"`)
	if form := a.header.Get("Content-Type"); form != "application/json" {
		t.Errorf("the form of an answer is %s", form)
	}
	// Both forms of a name are understood.
	a = post("lookup-subjects", `{"object": {"type": "doc", "id": "a"}, "permission": "view", "subjectType": "user"}`)
	expect("lower camel case", a, `"id":"anne"`)
	expect("an empty body", send(t, "POST", httpURL(s, "/pemba/v1/read-schema"), ""), "definition doc")
	a = post("read-tuples", `{}`)
	expect("a stream", a, `"id":"b"`)
	if form := a.header.Get("Content-Type"); form != "application/x-ndjson" {
		t.Errorf("the form of a stream is %s", form)
	}
	if l := lines(a.body); len(l) != 2 || !strings.HasPrefix(l[0], `{"result":{`) {
		t.Errorf("the lines of a stream: %q", l)
	}
	a = post("import-tuples", `{"header": {"operation": "OPERATION_CREATE"}, "tuples": [{"object": {"type": "doc", "id": "c"}, "relation": "viewer", "subject": {"object": {"type": "user", "id": "bob"}}}]}
		{"chunk": 1, "tuples": [{"object": {"type": "doc", "id": "d"}, "relation": "viewer", "subject": {"object": {"type": "user", "id": "bob"}}}]}`)
	expect("an import", a, `"tuples":"2"`)
	expect("what was imported", post("count-tuples", `{}`), `"count":"4"`)
	a = send(t, "GET", httpURL(s, openAPIPath), "", "Content-Type", "")
	expect("the document", a, `"swagger":"2.0"`)
}

// TestHTTPErrors: whatever is wrong, the error has one form and a reason.
func TestHTTPErrors(t *testing.T) {
	s := testServer(t, Config{Keys: []string{"k"}, Limits: Limits{RequestBytes: 2000}})
	large := `{"schema": "` + strings.Repeat(" ", 3000) + `"}`
	chunk := `{"tuples": [{"object": {"type": "` + strings.Repeat("x", 3000) + `"}}]}`
	for _, test := range []struct {
		name, method, path, body string
		header                   []string
		status, code             int
		reason                   string
	}{
		{"an unknown path", "POST", "/pemba/v1/delete-everything", "{}", nil, 404, 5, "UNKNOWN_PATH"},
		{"a path that is not clean", "POST", "/pemba/v1//check", "{}", nil, 404, 5, "UNKNOWN_PATH"},
		{"another unknown path", "GET", "/other", "", nil, 404, 5, "UNKNOWN_PATH"},
		{"the root", "GET", "/", "", nil, 404, 5, "UNKNOWN_PATH"},
		{"another method", "GET", "/pemba/v1/check", "", nil, 405, 12, "METHOD_NOT_ALLOWED"},
		{"another method of the document", "POST", "/pemba/v1/openapi.json", "", nil, 405, 12, "METHOD_NOT_ALLOWED"},
		{"another method of health", "POST", "/healthz", "", nil, 405, 12, "METHOD_NOT_ALLOWED"},
		{"a method by header", "GET", "/pemba/v1/check", "", []string{"X-HTTP-Method-Override", "POST"}, 405, 12, "METHOD_NOT_ALLOWED"},
		{"no key", "POST", "/pemba/v1/check", "{}", []string{"Authorization", ""}, 401, 16, "KEY_MISSING"},
		{"a wrong key", "POST", "/pemba/v1/check", "{}", []string{"Authorization", "Bearer x"}, 401, 16, "KEY_INVALID"},
		{"no JSON", "POST", "/pemba/v1/check", "{", nil, 400, 3, "MALFORMED"},
		{"a list", "POST", "/pemba/v1/check", "[]", nil, 400, 3, "MALFORMED"},
		{"two objects", "POST", "/pemba/v1/check", "{} {}", nil, 400, 3, "MALFORMED"},
		{"an unknown field", "POST", "/pemba/v1/check", `{"permision": "view"}`, nil, 400, 3, "MALFORMED"},
		{"an unknown field below", "POST", "/pemba/v1/check", `{"object": {"typ": "doc"}}`, nil, 400, 3, "MALFORMED"},
		{"an unknown field in a stream", "POST", "/pemba/v1/read-tuples", `{"filters": {}}`, nil, 400, 3, "MALFORMED"},
		{"an unknown field in an import", "POST", "/pemba/v1/import-tuples", `{"head": {}}`, nil, 400, 3, "MALFORMED"},
		{"an import that breaks off", "POST", "/pemba/v1/import-tuples", `{"header": {}, `, nil, 400, 3, "MALFORMED"},
		{"a name of an enum that is none", "POST", "/pemba/v1/write-tuples", `{"updates": [{"operation": "TOUCH"}]}`, nil, 400, 3, "MALFORMED"},
		{"a query", "POST", "/pemba/v1/check?store=x", "{}", nil, 400, 3, "MALFORMED"},
		{"a form", "POST", "/pemba/v1/check", "a=b", []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, 3, "UNSUPPORTED_MEDIA_TYPE"},
		{"text", "POST", "/pemba/v1/write-tuples", "{}", []string{"Content-Type", "text/plain"}, 415, 3, "UNSUPPORTED_MEDIA_TYPE"},
		{"no form", "POST", "/pemba/v1/check", "{}", []string{"Content-Type", ""}, 415, 3, "UNSUPPORTED_MEDIA_TYPE"},
		{"a large body", "POST", "/pemba/v1/write-schema", large, nil, 413, 8, "TOO_LARGE"},
		{"a large message of an import", "POST", "/pemba/v1/import-tuples", chunk, nil, 413, 8, "TOO_LARGE"},
		{"nesting", "POST", "/pemba/v1/check", `{"context": {"a": ` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + `}}`, nil, 400, 3, "MALFORMED"},
		{"no schema", "POST", "/pemba/v1/read-schema", "{}", nil, 400, 9, "NO_SCHEMA"},
		{"a stream without a schema", "POST", "/pemba/v1/lookup-resources", `{"type": "doc", "permission": "view", "subject": {"object": {"type": "user", "id": "a"}}}`, nil, 400, 9, "NO_SCHEMA"},
		{"a store that is none", "POST", "/pemba/v1/read-tuples", `{"store": "none"}`, nil, 404, 5, "UNKNOWN_STORE"},
		{"a timeout that is none", "POST", "/pemba/v1/check", "{}", []string{"Grpc-Timeout", "soon"}, 400, 3, "MALFORMED"},
	} {
		header := append([]string{"Authorization", "Bearer k"}, test.header...)
		a := send(t, test.method, httpURL(s, test.path), test.body, header...)
		code, reason := httpError(t, test.name, a.body)
		if a.status != test.status || code != test.code || reason != test.reason {
			t.Errorf("%s: %d, code %d, %s; expected %d, %d, %s: %s", test.name, a.status, code, reason, test.status, test.code, test.reason, a.body)
		}
		if form := a.header.Get("Content-Type"); form != "application/json" && form != ndjson {
			t.Errorf("%s: the form is %q", test.name, form)
		}
		if a.status == 401 && a.header.Get("WWW-Authenticate") != "Bearer" || a.status == 405 && a.header.Get("Allow") == "" {
			t.Errorf("%s: headers %v", test.name, a.header)
		}
	}
	a := send(t, "POST", httpURL(s, "/pemba/v1/chek"), "{}")
	if _, reason := httpError(t, "a misspelt path", a.body); reason != "UNKNOWN_PATH" || !strings.Contains(strings.ReplaceAll(a.body, `": `, `":`), `"suggestion":"/pemba/v1/check"`) {
		t.Errorf("a misspelt path: %s", a.body)
	}
	a = send(t, "POST", httpURL(s, "/v1/check"), "{}")
	if _, reason := httpError(t, "a path without its beginning", a.body); reason != "UNKNOWN_PATH" || !strings.Contains(strings.ReplaceAll(a.body, `": `, `":`), `"suggestion":"/pemba/v1/check"`) {
		t.Errorf("a path without its beginning: %s", a.body)
	}
	a = send(t, "POST", httpURL(s, "/pemba/v1/count-tuples"), "{}", "Authorization", "Bearer k", "Grpc-Timeout", "1n")
	if _, reason := httpError(t, "a deadline", a.body); reason != "DEADLINE_EXCEEDED" || !strings.Contains(a.body, "the deadline of the call has passed") {
		t.Errorf("a deadline: %s", a.body)
	}
	// The document tells nothing of what is stored; strangers may read it.
	if a := send(t, "GET", httpURL(s, openAPIPath), "", "Authorization", ""); a.status != 200 {
		t.Errorf("the document: %d", a.status)
	}
}

// TestHTTPStreamError: an error in the middle of a stream is its last line, in the
// form of all errors.
func TestHTTPStreamError(t *testing.T) {
	s := testServer(t, Config{Limits: Limits{Steps: 1500}})
	c := dial(t, s)
	writeDocs(t, c, 2000)
	a := send(t, "POST", httpURL(s, "/pemba/v1/lookup-resources"), `{"type": "doc", "permission": "view", "subject": {"object": {"type": "user", "id": "anne"}}}`)
	l := lines(a.body)
	if a.status != 200 && a.status != 429 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if code, reason := httpError(t, "the last line", l[len(l)-1]); code != 8 || reason != "BUDGET_EXCEEDED" {
		t.Errorf("code %d, %s", code, reason)
	}
	for _, line := range l[:len(l)-1] {
		if !strings.HasPrefix(line, `{"result":{`) {
			t.Fatalf("a line of the stream: %s", line)
		}
	}
}

// TestHTTPCancel: a caller that goes away ends the call, as over gRPC.
func TestHTTPCancel(t *testing.T) {
	node := &wrappedNode{Node: testNode(t)}
	s := testServer(t, Config{Node: node})
	entered, left := make(chan struct{}), make(chan error, 1)
	node.wait = func(ctx context.Context) (*engine.Snapshot, error) {
		close(entered)
		<-ctx.Done()
		left <- context.Cause(ctx)
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithCancel(testContext(t))
	r, err := http.NewRequestWithContext(ctx, "POST", httpURL(s, "/pemba/v1/read-tuples"), strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	done := make(chan error, 1)
	go func() {
		response, err := http.DefaultClient.Do(r)
		if err == nil {
			err = response.Body.Close()
		}
		done <- err
	}()
	select {
	case <-entered:
	case err := <-done:
		t.Fatalf("the call did not come to the node: %v", err)
	}
	cancel()
	select {
	case cause := <-left:
		if !errors.Is(cause, context.Canceled) {
			t.Errorf("the call ended by %v", cause)
		}
	case <-time.After(patience):
		t.Fatal("the call goes on without its caller")
	}
	if err := <-done; err == nil {
		t.Error("the request that was canceled has an answer")
	}
}

// TestHTTPStall: a client that takes nothing of a stream loses it, and the state
// behind it is let go.
func TestHTTPStall(t *testing.T) {
	const docs = 20_000 // More than the connections on the way can hold.
	node := testNode(t)
	s := testServer(t, Config{Node: node, Limits: Limits{StreamStall: 100 * time.Millisecond}})
	writeDocs(t, dial(t, s), docs)
	r, err := http.NewRequestWithContext(testContext(t), "POST", httpURL(s, "/pemba/v1/read-tuples"), strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err == nil {
			err = conn.(*net.TCPConn).SetReadBuffer(128 << 10)
		}
		return conn, err
	}}
	response, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }() // It may be cut off.
	answer := bufio.NewScanner(response.Body)
	answer.Scan()
	eventually(t, "the state is let go", func() bool {
		m, err := node.Engine().DB().Metrics()
		if err != nil {
			t.Fatal(err)
		}
		return m.Snapshots == 0
	})
	got := 1
	for answer.Scan() {
		got++
	}
	if got >= docs {
		t.Errorf("all %d results came", got)
	}
}

// TestHTTPPanic: a panic behind HTTP is caught by the same interceptor.
func TestHTTPPanic(t *testing.T) {
	var log lockedBuffer
	node := &wrappedNode{Node: testNode(t), snapshot: func() (*engine.Snapshot, error) { panic("out of luck") }}
	s := testServer(t, Config{Node: node, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	a := send(t, "POST", httpURL(s, "/pemba/v1/read-tuples"), "{}")
	if code, reason := httpError(t, "a panic", lines(a.body)[0]); code != 13 || reason != "FAULT" || a.status != 500 {
		t.Errorf("%d, code %d, %s", a.status, code, reason)
	}
	if !strings.Contains(log.String(), "out of luck") {
		t.Errorf("the log: %s", log.String())
	}
	node.snapshot = func() (*engine.Snapshot, error) { return nil, cluster.ErrNotLeader }
	a = send(t, "POST", httpURL(s, "/pemba/v1/count-tuples"), "{}")
	if code, reason := httpError(t, "another node leads", a.body); code != 14 || reason != "NOT_LEADER" || a.status != 503 {
		t.Errorf("%d, code %d, %s", a.status, code, reason)
	}
}

// FuzzHTTP: no body of any content gets anything but JSON back, and none is a
// fault of the server.
func FuzzHTTP(f *testing.F) {
	node := memoryNode(f)
	s := testServer(f, Config{Node: node})
	paths := make([]string, 0, len(s.gateway.streaming))
	for path := range s.gateway.streaming {
		if !strings.Contains(path, "watch") {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths) // A seed means the same path in each run.
	seeds := 0
	for _, body := range []string{
		`[]`, ``, `null`, `{"a":`, `{"store":"x"}`, `{"updates":[{}]}`, `{"items":[{"context":{"a":[1,null]}}]}`, `{"header":{}} {"chunk":1}`,
		`{"filter":{"subject_relation":""}}`, `{"consistency":{"as_of":"2020-01-01T00:00:00Z"}}`, "{\"schema\":\"\xff\"}", `{"cursor":"AAAA"}`,
		`{"settings":{"history":{"duration":"1s"}}}`, `{"limit":-1}`, `{"limit":1e99}`,
	} {
		seeds++
		f.Add(uint8(seeds), []byte(body))
	}
	for i := range paths {
		f.Add(uint8(i), []byte(`{}`))
	}
	f.Fuzz(func(t *testing.T, place uint8, body []byte) {
		path := paths[int(place)%len(paths)]
		r, err := http.NewRequestWithContext(testContext(t), "POST", httpURL(s, path), bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(response.Body)
		if err := errors.Join(err, response.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if response.StatusCode == 500 {
			t.Fatalf("%s %q: %s", path, body, content)
		}
		for _, line := range lines(string(content)) {
			if line != "" && !json.Valid([]byte(line)) {
				t.Fatalf("%s %q: %s", path, body, line)
			}
		}
	})
}
