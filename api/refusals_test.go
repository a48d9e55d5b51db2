package api

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

// TestHTTPSilence: an import over HTTP whose client goes silent in the middle of
// its body is answered after the stall, and its connection is closed.
func TestHTTPSilence(t *testing.T) {
	s := testServer(t, Config{Limits: Limits{StreamStall: 300 * time.Millisecond}})
	writeDocs(t, dial(t, s), 1)
	for what, header := range map[string]string{"an unknown store": `{"store": "nowhere"}`, "a good header": `{}`} {
		conn, err := net.Dial("tcp", s.HTTPAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		body := `{"header": ` + header + `}` + "\n" + `{"tup`
		if _, err := fmt.Fprintf(conn, "POST /pemba/v1/import-tuples HTTP/1.1\r\nHost: pemba\r\nContent-Type: application/x-ndjson\r\nContent-Length: 100000\r\n\r\n%s", body); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		from := bufio.NewReader(conn)
		response, err := http.ReadResponse(from, nil)
		if err != nil {
			t.Errorf("%s: no answer after %v: %v", what, time.Since(began), err)
			_ = conn.Close()
			continue
		}
		var answer strings.Builder
		if err := response.Write(&answer); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if response.StatusCode < 400 || !response.Close {
			t.Errorf("%s: %s", what, answer.String())
		}
		if _, err := from.ReadByte(); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("%s: the connection is open: %v", what, err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestHTTPEarlyError: an import over HTTP that is refused by its first message is
// answered at once with the reason, though its client sends no second one and
// does not end its body. The stall is longer than the test waits.
func TestHTTPEarlyError(t *testing.T) {
	s := testServer(t, Config{Limits: Limits{StreamStall: time.Hour}})
	writeDocs(t, dial(t, s), 1)
	tuple := func(relation string) string {
		return `[{"object": {"type": "doc", "id": "a"}, "relation": "` + relation + `", "subject": {"object": {"type": "user", "id": "anne"}}}]`
	}
	for _, x := range []struct {
		what, body, header, reason string
		code                       int
	}{
		{"an unknown store", `{"header": {"store": "nowhere"}}` + "\n", "", "UNKNOWN_STORE", 5},
		{"an unknown store, in chunks", `{"header": {"store": "nowhere"}}` + "\n", "chunked", "UNKNOWN_STORE", 5},
		{"half of a second message", `{"header": {"store": "nowhere"}}` + "\n" + `{"tup`, "", "UNKNOWN_STORE", 5},
		{"no header", `{"tuples": ` + tuple("viewer") + `}` + "\n", "", "MALFORMED", 3},
		{"a second message", `{"header": {}, "tuples": ` + tuple("viewer") + `}` + "\n" + `{"chunk": 1, "tuples": ` + tuple("editr") + `}` + "\n", "", "UNKNOWN_NAME", 9},
		{"a deadline", `{"header": {}}` + "\n", "timeout", "DEADLINE_EXCEEDED", 4},
	} {
		t.Run(x.what, func(t *testing.T) {
			conn, err := net.Dial("tcp", s.HTTPAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := conn.Close(); err != nil {
					t.Error(err)
				}
			}()
			if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			header, body := "Content-Length: 100000\r\n", x.body
			switch x.header {
			case "chunked":
				header, body = "Transfer-Encoding: chunked\r\n", fmt.Sprintf("%x\r\n%s\r\n", len(x.body), x.body)
			case "timeout":
				header += "Grpc-Timeout: 200m\r\n"
			}
			if _, err := fmt.Fprintf(conn, "POST /pemba/v1/import-tuples HTTP/1.1\r\nHost: pemba\r\nContent-Type: application/x-ndjson\r\n%s\r\n%s", header, body); err != nil {
				t.Fatal(err)
			}
			from := bufio.NewReader(conn)
			response, err := http.ReadResponse(from, nil)
			if err != nil {
				t.Fatalf("no answer: %v", err)
			}
			content, err := io.ReadAll(response.Body)
			if err != nil {
				t.Fatal(err)
			}
			if code, reason := httpError(t, x.what, string(content)); code != x.code || reason != x.reason || !response.Close {
				t.Errorf("code %d, %s, expected %d, %s: %s", code, reason, x.code, x.reason, content)
			}
			if _, err := from.ReadByte(); err == nil || strings.Contains(err.Error(), "timeout") {
				t.Errorf("the connection is open: %v", err)
			}
		})
	}
	if a := send(t, "POST", httpURL(s, "/pemba/v1/count-tuples"), "{}"); !strings.Contains(a.body, `"count":"1"`) {
		t.Errorf("an import that was refused left something: %s", a.body)
	}
}

// TestHTTP2EarlyError: the same over HTTP/2, on whose connection other calls go on.
func TestHTTP2EarlyError(t *testing.T) {
	setup := newTLSSetup(t)
	s := testServer(t, setup.config())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool(setup.ca)}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	for range 3 {
		reading, writing := io.Pipe()
		r, err := http.NewRequestWithContext(testContext(t), http.MethodPost, "https://"+s.HTTPAddr().String()+"/pemba/v1/import-tuples", reading)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", ndjson)
		go func() { _, _ = io.WriteString(writing, `{"header": {"store": "nowhere"}}`+"\n") }()
		response, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		if _, reason := httpError(t, "HTTP/2", string(content)); reason != "UNKNOWN_STORE" || response.ProtoMajor != 2 {
			t.Errorf("%s: %s", response.Proto, content)
		}
		if err := errors.Join(response.Body.Close(), writing.Close()); err != nil {
			t.Error(err)
		}
	}
}

// TestHTTPForms: what is compressed, or no UTF-8, is refused as such, and a timeout
// of nothing is one.
func TestHTTPForms(t *testing.T) {
	s := testServer(t, Config{})
	writeDocs(t, dial(t, s), 1)
	for _, x := range []struct {
		form, header, value string
		status              int
	}{
		{"application/json", "Content-Encoding", "gzip", 415},
		{"application/json", "Content-Encoding", "identity", 200},
		{"application/json; charset=latin1", "X-Nothing", "", 415},
		{"application/json; charset=UTF-8", "X-Nothing", "", 200},
		{"application/json", "Grpc-Timeout", "0S", 504},
		{"application/json", "Grpc-Timeout", "00000m", 504},
		{"application/json", "Grpc-Timeout", "10S", 200},
		{"application/json", "Grpc-Timeout", "0", 400},
	} {
		a := send(t, "POST", httpURL(s, "/pemba/v1/count-tuples"), "{}", "Content-Type", x.form, x.header, x.value)
		if a.status != x.status {
			t.Errorf("%s, %s: %s: %d, expected %d: %s", x.form, x.header, x.value, a.status, x.status, a.body)
		}
		if a.status != 200 {
			httpError(t, x.value, a.body)
		}
	}
}

// TestAdministrationHasNoStoreRate: a store that has used its calls can still be
// looked at and changed by its operator, who takes none of them.
func TestAdministrationHasNoStoreRate(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	writeFile(t, file, []byte("op\nbound store busy\n"))
	s := testServer(t, Config{KeyFile: file})
	c := dial(t, s)
	op, bound := as(testContext(t), "op"), as(testContext(t), "bound")
	one := uint32(1)
	_, err := c.CreateStore(op, &pembav1.CreateStoreRequest{Name: "busy", Settings: &pembav1.StoreSettings{CallsPerSecond: &one}})
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < 20 && status.Code(err) != codes.ResourceExhausted; i++ {
		_, err = c.GetStore(bound, &pembav1.GetStoreRequest{Store: "busy"})
	}
	expectStatus(t, "the store's caller", err, codes.ResourceExhausted, "RATE_LIMITED")
	for range 20 {
		if _, err := c.GetStore(op, &pembav1.GetStoreRequest{Store: "busy"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.UpdateStore(op, &pembav1.UpdateStoreRequest{Store: "busy", Settings: &pembav1.StoreSettings{CallsPerSecond: &one}}); err != nil {
		t.Error(err)
	}
	if _, err := c.DeleteStore(op, &pembav1.DeleteStoreRequest{Store: "busy"}); err != nil {
		t.Error(err)
	}
}

// TestImportTotal: an atomic import beyond the limit is refused and told of
// batches, which have none; one that begins in the middle is told where to begin.
func TestImportTotal(t *testing.T) {
	s := testServer(t, Config{Limits: Limits{ImportTotal: 10}})
	c := dial(t, s)
	writeDocs(t, c, 1)
	run := func(h *pembav1.ImportHeader, first uint32, chunks int) error {
		stream, err := c.ImportTuples(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		for i := range chunks {
			m := &pembav1.ImportTuplesRequest{Header: h, Chunk: first + uint32(i), Tuples: docs(100+6*i, 106+6*i)}
			h = nil
			if err := stream.Send(m); err != nil {
				break // CloseAndRecv has the reason.
			}
		}
		_, err = stream.CloseAndRecv()
		return err
	}
	err := run(&pembav1.ImportHeader{}, 0, 2)
	expectStatus(t, "12 tuples", err, codes.ResourceExhausted, "STAGE_TOO_LARGE")
	if !strings.Contains(err.Error(), "(pemba tuple import --batches)") || !strings.Contains(err.Error(), "12") {
		t.Error(err)
	}
	if n := countDocs(t, c); n != 1 {
		t.Errorf("%d tuples are there after it", n)
	}
	err = run(&pembav1.ImportHeader{ImportId: "later"}, 5, 1)
	expectStatus(t, "chunk 5 first", err, codes.FailedPrecondition, "STAGE_GAP")
	if !strings.Contains(err.Error(), "begins with chunk 0") {
		t.Error(err)
	}
	expectStatus(t, "chunk 5 first, without an id", run(&pembav1.ImportHeader{}, 5, 1), codes.FailedPrecondition, "STAGE_GAP")
	if err := run(&pembav1.ImportHeader{Mode: pembav1.ImportHeader_MODE_BATCHES}, 0, 3); err != nil {
		t.Error(err)
	}
}

// TestForget: a server that stops does not wait for imports to be forgotten, and
// nothing is said of one whose store is gone.
func TestForget(t *testing.T) {
	var log lockedBuffer
	s := testServer(t, Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	c := dial(t, s)
	writeDocs(t, c, 1)
	if _, err := c.CreateStore(testContext(t), &pembav1.CreateStoreRequest{Name: "gone"}); err != nil {
		t.Fatal(err)
	}
	x := &importStream{server: s, store: storeNamed(t, s, "gone"), header: &pembav1.ImportHeader{}, atomic: true}
	x.id[0], x.staged.Chunks = 1, 1
	if _, err := c.DeleteStore(testContext(t), &pembav1.DeleteStoreRequest{Store: "gone"}); err != nil {
		t.Fatal(err)
	}
	x.forget()
	if text := log.String(); strings.Contains(text, "not forgotten") {
		t.Errorf("of a store that is gone: %s", text)
	}
	stopped := &Server{stopping: make(chan struct{})}
	close(stopped.stopping)
	x.server = stopped // It has no node, so that any write panics.
	x.forget()
}

// TestReadChangesAhead: a place that the log has not come to is no empty answer.
func TestReadChangesAhead(t *testing.T) {
	s := testServer(t, Config{})
	c := dial(t, s)
	writeDocs(t, c, 1)
	store := storeNamed(t, s, "default")
	read := func(r *pembav1.ReadChangesRequest) error {
		stream, err := c.ReadChanges(testContext(t), r)
		if err == nil {
			_, err = stream.Recv()
		}
		return err
	}
	ahead := zookie{cluster: s.clusterID(), revision: store.Changed + 1000}.proto()
	expectStatus(t, "a zookie ahead", read(&pembav1.ReadChangesRequest{From: &pembav1.ReadChangesRequest_After{After: ahead}}), codes.Unavailable, "REVISION_AHEAD")
	newest := zookie{cluster: s.clusterID(), revision: store.Changed}.proto()
	if err := read(&pembav1.ReadChangesRequest{From: &pembav1.ReadChangesRequest_After{After: newest}}); err == nil || err.Error() != "EOF" {
		t.Errorf("behind the newest: %v", err)
	}
}

// TestHTTPBrokenBody: an import over HTTP whose body breaks the rules is answered at
// once, and its connection closed, though its client neither ends the body nor hangs
// up. The stall is longer than the test waits.
func TestHTTPBrokenBody(t *testing.T) {
	s := testServer(t, Config{Limits: Limits{RequestBytes: 1000, StreamStall: time.Hour}})
	writeDocs(t, dial(t, s), 1)
	for what, body := range map[string]string{
		"no JSON":               `{"header": {}}` + "\n" + `{"tuples": nothing}`,
		"no JSON at all":        `header`,
		"a message too large":   `{"header": {}}` + "\n" + `{"tuples": [` + strings.Repeat(" ", 5000),
		"not what is expected":  `{"header": {"name": "x"}}` + "\n",
		"another header behind": `{"header": {}}` + "\n" + `{"header": {}}` + "\n",
	} {
		conn, err := net.Dial("tcp", s.HTTPAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(conn, "POST /pemba/v1/import-tuples HTTP/1.1\r\nHost: pemba\r\nContent-Type: application/x-ndjson\r\nContent-Length: 100000\r\n\r\n%s", body); err != nil {
			t.Fatal(err)
		}
		from := bufio.NewReader(conn)
		response, err := http.ReadResponse(from, nil)
		if err != nil {
			t.Errorf("%s: no answer: %v", what, err)
		} else if _, err := io.Copy(io.Discard, response.Body); err != nil || response.StatusCode < 400 || !response.Close {
			t.Errorf("%s: %v, %v", what, response, err)
		} else if _, err := from.ReadByte(); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("%s: the connection is open: %v", what, err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}
