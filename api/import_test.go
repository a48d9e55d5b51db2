package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/graph"
)

func storeNamed(t testing.TB, s *Server, name string) graph.StoreInfo {
	t.Helper()
	store, found := s.node.StoreNamed(name)
	if !found {
		t.Fatalf("there is no store %s", name)
	}
	return store
}

// docs returns the tuples of the documents from up to below to.
func docs(from, to int) []*pembav1.Tuple {
	var tuples []*pembav1.Tuple
	for _, u := range touch(from, to) {
		tuples = append(tuples, u.GetTuple())
	}
	return tuples
}

func countDocs(t *testing.T, c *testClient) uint64 {
	t.Helper()
	count, err := c.CountTuples(testContext(t), &pembav1.CountTuplesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return count.GetCount()
}

// TestImportBroken: a stream that breaks never commits. What it had is dropped
// when nobody can come back to it, and is gone on with when somebody can.
func TestImportBroken(t *testing.T) {
	s := testServer(t, Config{})
	c := dial(t, s)
	writeDocs(t, c, 0)
	ctx := testContext(t)
	store := storeNamed(t, s, DefaultStoreName)
	staged := func() int {
		stages, err := s.node.Stages(store.ID)
		if err != nil {
			t.Fatal(err)
		}
		return len(stages)
	}
	waitFor := func(what string, reached func() bool) {
		for !reached() {
			if ctx.Err() != nil {
				t.Fatalf("%s: it does not come", what)
			}
			time.Sleep(time.Millisecond)
		}
	}
	for _, id := range []string{"", "again"} {
		sending, cut := context.WithCancel(ctx)
		stream, err := c.ImportTuples(sending)
		if err != nil {
			t.Fatal(err)
		}
		for i := range uint32(3) {
			m := &pembav1.ImportTuplesRequest{Chunk: i, Tuples: docs(int(i)*10, int(i)*10+10)}
			if i == 0 {
				m.Header = &pembav1.ImportHeader{ImportId: id}
			}
			if err := stream.Send(m); err != nil {
				t.Fatal(err)
			}
		}
		waitFor("the chunks", func() bool {
			stages, err := s.node.Stages(store.ID)
			return err == nil && len(stages) == 1 && stages[0].Chunks == 3
		})
		cut()
		if id == "" {
			waitFor("that the import is dropped", func() bool { return staged() == 0 })
		}
		if n := countDocs(t, c); n != 0 {
			t.Fatalf("%d tuples are there after a stream that broke", n)
		}
	}
	// It goes on where it was cut off, and also when everything is sent again.
	info, err := c.GetImport(ctx, &pembav1.GetImportRequest{ImportId: "again"})
	if err != nil || info.GetNextChunk() != 3 || info.GetTuples() != 30 {
		t.Fatalf("%v, %v", info, err)
	}
	stream, err := c.ImportTuples(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint32(5) {
		m := &pembav1.ImportTuplesRequest{Chunk: i, Tuples: docs(int(i)*10, int(i)*10+10)}
		if i == 0 {
			m.Header = &pembav1.ImportHeader{ImportId: "again"}
		}
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	result, err := stream.CloseAndRecv()
	if err != nil || result.GetTuples() != 50 || result.GetChanged() != 50 {
		t.Errorf("%v, %v", result, err)
	}
	if n := countDocs(t, c); n != 50 || staged() != 0 {
		t.Errorf("%d tuples are there, and %d imports wait", n, staged())
	}
}

// TestImportRefused: a refused import leaves nothing behind, and says which chunk
// it was and why.
func TestImportRefused(t *testing.T) {
	s := testServer(t, Config{Limits: Limits{ImportTuples: 20}})
	c := dial(t, s)
	writeDocs(t, c, 0)
	ctx := testContext(t)
	long := docs(0, 20)
	for i := range long {
		long[i].Object.Id = fmt.Sprintf("%02d%s", i, strings.Repeat("x", 1000))
	}
	send := func(messages ...*pembav1.ImportTuplesRequest) (*pembav1.ImportTuplesResponse, error) {
		stream, err := c.ImportTuples(ctx)
		if err != nil {
			return nil, err
		}
		for _, m := range messages {
			if err := stream.Send(m); err != nil && !errors.Is(err, io.EOF) {
				return nil, err
			}
		}
		return stream.CloseAndRecv()
	}
	header := &pembav1.ImportHeader{}
	_, err := send(&pembav1.ImportTuplesRequest{Header: header, Tuples: docs(0, 21)})
	expectStatus(t, "too many tuples", err, codes.InvalidArgument, "TOO_MANY_UPDATES")
	if !strings.Contains(printError(t, err), "chunk=0, limit=20") {
		t.Errorf("too many tuples: %v", printError(t, err))
	}
	// The schema may not change under an import.
	stream, err := c.ImportTuples(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&pembav1.ImportTuplesRequest{Header: header, Tuples: docs(0, 5)}); err != nil {
		t.Fatal(err)
	}
	store := storeNamed(t, s, DefaultStoreName)
	for {
		stages, err := s.node.Stages(store.ID)
		if err != nil || ctx.Err() != nil {
			t.Fatalf("%v, %v", err, ctx.Err())
		}
		if len(stages) == 1 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if _, err := c.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Schema: testSchema + " definition more {}"}); err != nil {
		t.Fatal(err)
	}
	_, err = stream.CloseAndRecv()
	expectStatus(t, "a schema that changed", err, codes.Aborted, "STAGE_STALE")
	stages, err := s.node.Stages(store.ID)
	if err != nil || len(stages) != 0 || countDocs(t, c) != 0 {
		t.Errorf("%v, %v: something is left", stages, err)
	}
	if result, err := send(&pembav1.ImportTuplesRequest{Header: header, Tuples: long}); err != nil || result.GetChanged() != 20 {
		t.Errorf("%v, %v", result, err)
	}
}

// TestImportEntry: a message that does not fit one entry of the log is refused
// and says so.
func TestImportEntry(t *testing.T) {
	c := dial(t, testServer(t, Config{}))
	writeDocs(t, c, 0)
	tuples := docs(0, 2000)
	for i := range tuples {
		tuples[i].Object.Id = fmt.Sprintf("%04d%s", i, strings.Repeat("x", 1000))
	}
	stream, err := c.ImportTuples(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&pembav1.ImportTuplesRequest{Header: &pembav1.ImportHeader{}, Tuples: tuples}); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	_, err = stream.CloseAndRecv()
	expectStatus(t, "a message of 2 MB", err, codes.InvalidArgument, "TOO_LARGE")
	if text := printError(t, err); !strings.Contains(text, "chunk=0") {
		t.Error(text)
	}
}

// TestExport exports more than one page in batches, and goes on behind each of
// their cursors at the same revision, whatever is written in between.
func TestExport(t *testing.T) {
	const count = 1700
	c := dial(t, testServer(t, Config{}))
	writeDocs(t, c, count)
	ctx := testContext(t)
	export := func(cursor string) (batches []*pembav1.ExportTuplesResponse) {
		stream, err := c.ExportTuples(ctx, &pembav1.ExportTuplesRequest{Cursor: cursor})
		if err != nil {
			t.Fatal(err)
		}
		for {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return batches
			}
			if err != nil {
				t.Fatal(err)
			}
			batches = append(batches, m)
		}
	}
	batches := export("")
	var all []*pembav1.Tuple
	for _, b := range batches {
		if n := len(b.GetTuples()); n > batchTuples || n == 0 {
			t.Errorf("a batch of %d tuples", n)
		}
		all = append(all, b.GetTuples()...)
	}
	if len(all) != count {
		t.Fatalf("%d tuples, expected %d", len(all), count)
	}
	if _, err := c.WriteTuples(ctx, &pembav1.WriteTuplesRequest{Updates: touch(count, count+5)}); err != nil {
		t.Fatal(err)
	}
	for i := range batches {
		rest := export(batches[i].GetCursor())
		var got []*pembav1.Tuple
		for _, b := range rest {
			got = append(got, b.GetTuples()...)
			if !proto.Equal(b.GetReadAt(), batches[0].GetReadAt()) {
				t.Errorf("batch %d: the rest is of another revision", i)
			}
		}
		skipped := 0
		for _, b := range batches[:i+1] {
			skipped += len(b.GetTuples())
		}
		want := all[skipped:]
		if len(got) != len(want) {
			t.Fatalf("behind batch %d are %d tuples, expected %d", i, len(got), len(want))
		}
		for j := range got {
			if !proto.Equal(got[j], want[j]) {
				t.Fatalf("behind batch %d, tuple %d is %v, expected %v", i, j, got[j], want[j])
			}
		}
	}
}

// TestImportMismatch: of streams that use one id for different tuples at the same
// time at most one is acknowledged, and what it sent is what is there.
func TestImportMismatch(t *testing.T) {
	s := testServer(t, Config{})
	c := dial(t, s)
	writeDocs(t, c, 0)
	ctx := testContext(t)
	send := func(operation pembav1.TupleUpdate_Operation, first, chunks int) (*pembav1.ImportTuplesResponse, error) {
		stream, err := c.ImportTuples(ctx)
		if err != nil {
			return nil, err
		}
		for i := range chunks {
			m := &pembav1.ImportTuplesRequest{Chunk: uint32(i), Tuples: docs(first+i*10, first+i*10+10)}
			if i == 0 {
				m.Header = &pembav1.ImportHeader{ImportId: "one", Operation: operation}
			}
			if err := stream.Send(m); err != nil && !errors.Is(err, io.EOF) {
				return nil, err
			}
		}
		return stream.CloseAndRecv()
	}
	const touch, create = pembav1.TupleUpdate_OPERATION_TOUCH, pembav1.TupleUpdate_OPERATION_CREATE
	errs := make(chan error, 8)
	for i := range cap(errs) {
		go func() {
			_, err := send(touch, i*1000, 3)
			errs <- err
		}()
	}
	won := 0
	for range cap(errs) {
		if err := <-errs; err == nil {
			won++
		} else {
			expectStatus(t, "an id in use", err, codes.FailedPrecondition, "STAGE_MISMATCH")
		}
	}
	if n := countDocs(t, c); won != 1 || n != 30 {
		t.Fatalf("%d streams were acknowledged, and %d tuples are there", won, n)
	}
	info, err := c.GetImport(ctx, &pembav1.GetImportRequest{ImportId: "one"})
	if err != nil || info.GetCommittedAt() == nil || info.GetExpiresAt() != nil || info.GetNextChunk() != 3 {
		t.Fatalf("%v, %v", info, err)
	}
	same := 0
	for i := range cap(errs) {
		for _, attempt := range []struct {
			operation pembav1.TupleUpdate_Operation
			chunks    int
		}{{touch, 3}, {create, 3}, {touch, 2}, {touch, 4}} {
			answer, err := send(attempt.operation, i*1000, attempt.chunks)
			if err == nil && attempt.operation == touch && attempt.chunks == 3 && answer.GetChanged() == 30 {
				same++
				continue
			}
			expectStatus(t, fmt.Sprint(attempt), err, codes.FailedPrecondition, "STAGE_MISMATCH")
		}
	}
	if n := countDocs(t, c); same != 1 || n != 30 {
		t.Errorf("%d of the streams are taken for the one that won, and %d tuples are there", same, n)
	}
}
