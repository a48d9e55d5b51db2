package api

import (
	"bufio"
	"fmt"
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
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
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
	if !strings.Contains(err.Error(), "--batches") || !strings.Contains(err.Error(), "12") {
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
	ahead := zookie{cluster: s.clusterID, revision: store.Changed + 1000}.proto()
	expectStatus(t, "a zookie ahead", read(&pembav1.ReadChangesRequest{From: &pembav1.ReadChangesRequest_After{After: ahead}}), codes.Unavailable, "REVISION_AHEAD")
	newest := zookie{cluster: s.clusterID, revision: store.Changed}.proto()
	if err := read(&pembav1.ReadChangesRequest{From: &pembav1.ReadChangesRequest_After{After: newest}}); err == nil || err.Error() != "EOF" {
		t.Errorf("behind the newest: %v", err)
	}
}
