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
	expectStatus(t, "too many tuples", err, codes.ResourceExhausted, "TOO_MANY_UPDATES")
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
	expectStatus(t, "a message of 2 MB", err, codes.ResourceExhausted, "TOO_LARGE")
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
		if n := proto.Size(b); n > pooledBytesMax {
			t.Errorf("a batch of %d bytes", n)
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

// stageDocs begins an import of chunks of ten documents each and leaves it.
func stageDocs(t *testing.T, s *Server, c *testClient, id string, first, chunks int) {
	t.Helper()
	ctx, cut := context.WithCancel(testContext(t))
	defer cut()
	stream, err := c.ImportTuples(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range chunks {
		if err := stream.Send(importMessage(&pembav1.ImportHeader{ImportId: id}, i, first, i == 0)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the chunks are staged", func() bool {
		info, err := c.GetImport(testContext(t), &pembav1.GetImportRequest{ImportId: id})
		return err == nil && info.GetNextChunk() == uint32(chunks)
	})
}

// importMessage is the chunk of an import whose first document is given.
func importMessage(h *pembav1.ImportHeader, chunk, first int, withHeader bool) *pembav1.ImportTuplesRequest {
	m := &pembav1.ImportTuplesRequest{Chunk: uint32(chunk), Tuples: docs(first+chunk*10, first+chunk*10+10)}
	if withHeader {
		m.Header = h
	}
	return m
}

// goOn goes on with an import by chunks from one number up to another. Without any
// it sends the header alone.
func goOn(t *testing.T, c *testClient, h *pembav1.ImportHeader, first, from, to int) (*pembav1.ImportTuplesResponse, error) {
	t.Helper()
	stream, err := c.ImportTuples(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if from == to {
		err = stream.Send(&pembav1.ImportTuplesRequest{Header: h, Chunk: uint32(from)})
	}
	for i := from; i < to && err == nil; i++ {
		err = stream.Send(importMessage(h, i, first, i == from))
	}
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return stream.CloseAndRecv()
}

// TestImportKnownDigest: who goes on with an import and says what is known of it
// never commits what another has put in its place, nor is told that it was; and
// nothing is added to what the other has.
func TestImportKnownDigest(t *testing.T) {
	s := testServer(t, Config{})
	c := dial(t, s)
	writeDocs(t, c, 0)
	ctx := testContext(t)
	info := func() *pembav1.GetImportResponse {
		t.Helper()
		info, err := c.GetImport(ctx, &pembav1.GetImportRequest{ImportId: "n"})
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	abort := func() {
		t.Helper()
		if r, err := c.AbortImport(ctx, &pembav1.AbortImportRequest{ImportId: "n"}); err != nil || r.GetAborted() != 1 {
			t.Fatalf("%v, %v", r, err)
		}
	}
	header := func(digest []byte) *pembav1.ImportHeader {
		return &pembav1.ImportHeader{ImportId: "n", KnownDigest: digest}
	}
	stageDocs(t, s, c, "n", 0, 2)
	mine := info().GetDigest()
	abort()

	// Others of the same number of chunks, of more and of fewer.
	for _, theirs := range []int{1, 2, 3} {
		stageDocs(t, s, c, "n", 1000, theirs)
		before := info()
		for _, to := range []int{2, 4} {
			_, err := goOn(t, c, header(mine), 0, 2, to)
			expectStatus(t, fmt.Sprintf("%d other chunks, up to %d", theirs, to), err, codes.FailedPrecondition, "STAGE_MISMATCH")
		}
		// An import that knows of nothing and brings nothing takes nothing over.
		_, err := goOn(t, c, header(make([]byte, 16)), 0, 0, 0)
		expectStatus(t, "nothing", err, codes.FailedPrecondition, "STAGE_MISMATCH")
		if after := info(); after.GetCommittedAt() != nil || after.GetTuples() != before.GetTuples() || string(after.GetDigest()) != string(before.GetDigest()) {
			t.Errorf("what was staged has changed from %v to %v", before, after)
		}
		abort()
	}
	_, err := goOn(t, c, header(mine), 0, 2, 3)
	expectStatus(t, "aborted", err, codes.FailedPrecondition, "STAGE_GAP")
	_, err = goOn(t, c, header(mine), 0, 2, 2)
	expectStatus(t, "aborted, and nothing sent", err, codes.NotFound, "STAGE_UNKNOWN")

	// Chunks of an earlier stream of the caller may come after he has asked.
	stageDocs(t, s, c, "n", 0, 3)
	if r, err := goOn(t, c, header(mine), 0, 2, 4); err != nil || r.GetTuples() != 40 {
		t.Errorf("more of the same: %v, %v", r, err)
	}
	if n := countDocs(t, c); n != 40 {
		t.Fatalf("%d tuples are there", n)
	}
	// And so may its commit: the same again is acknowledged, and nothing else.
	if r, err := goOn(t, c, header(mine), 0, 2, 4); err != nil || r.GetTuples() != 40 {
		t.Errorf("committed already: %v, %v", r, err)
	}
	for _, x := range [][3]int{{0, 2, 2}, {0, 2, 3}, {0, 2, 5}, {1000, 2, 4}} {
		_, err := goOn(t, c, header(mine), x[0], x[1], x[2])
		expectStatus(t, fmt.Sprint("committed with other chunks: ", x), err, codes.FailedPrecondition, "STAGE_MISMATCH")
	}
	if r, err := goOn(t, c, header(info().GetDigest()), 0, 4, 4); err != nil || r.GetTuples() != 40 {
		t.Errorf("committed as it is known: %v, %v", r, err)
	}
	for what, h := range map[string]*pembav1.ImportHeader{
		"15 bytes":      header(mine[:15]),
		"without an id": {KnownDigest: mine},
		"of batches":    {KnownDigest: mine, Mode: pembav1.ImportHeader_MODE_BATCHES},
	} {
		_, err := goOn(t, c, h, 0, 0, 1)
		expectStatus(t, what, err, codes.InvalidArgument, "MALFORMED")
		if !strings.Contains(err.Error(), "known_digest") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A swappingNode has something happen right after a stream has looked at what is
// staged.
type swappingNode struct {
	Node
	after func()
}

func (n *swappingNode) Stage(store graph.StoreID, id graph.StageID) (graph.StageInfo, bool, error) {
	info, found, err := n.Node.Stage(store, id)
	if after := n.after; after != nil {
		n.after = nil
		after()
	}
	return info, found, err
}

// TestImportSwapped: what another puts in the place of an import after its stream
// has begun is not committed for it either, whether it sends more or not; and the
// stream ends with the first chunk that shows it, so that it adds no more to what is
// not its own.
func TestImportSwapped(t *testing.T) {
	node := &swappingNode{Node: testNode(t)}
	other := testServer(t, Config{Node: node.Node})
	s := testServer(t, Config{Node: node})
	theirs, mine := dial(t, other), dial(t, s)
	writeDocs(t, theirs, 0)
	for _, to := range []int{1, 3} {
		stageDocs(t, other, theirs, "n", 0, 1)
		info, err := theirs.GetImport(testContext(t), &pembav1.GetImportRequest{ImportId: "n"})
		if err != nil {
			t.Fatal(err)
		}
		node.after = func() {
			if _, err := theirs.AbortImport(testContext(t), &pembav1.AbortImportRequest{ImportId: "n"}); err != nil {
				t.Error(err)
			}
			stageDocs(t, other, theirs, "n", 1000, 1)
		}
		_, err = goOn(t, mine, &pembav1.ImportHeader{ImportId: "n", KnownDigest: info.GetDigest()}, 0, 1, to)
		expectStatus(t, fmt.Sprintf("up to chunk %d", to), err, codes.FailedPrecondition, "STAGE_MISMATCH")
		if n := countDocs(t, theirs); n != 0 {
			t.Fatalf("up to chunk %d: %d tuples of another are there", to, n)
		}
		info, err = theirs.GetImport(testContext(t), &pembav1.GetImportRequest{ImportId: "n"})
		if err != nil || info.GetNextChunk() != min(uint32(to), 2) {
			t.Errorf("up to chunk %d: the import of another has %d chunks (%v); at most one may be added", to, info.GetNextChunk(), err)
		}
		if _, err := theirs.AbortImport(testContext(t), &pembav1.AbortImportRequest{All: true}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAbortAll: every import that was not committed is forgotten at once, of one
// store alone; and who may begin no more is told of it.
func TestAbortAll(t *testing.T) {
	s := testServer(t, Config{})
	c := dial(t, s)
	writeDocs(t, c, 0)
	ctx := testContext(t)
	if _, err := goOn(t, c, &pembav1.ImportHeader{ImportId: "done"}, 5000, 0, 1); err != nil {
		t.Fatal(err)
	}
	for i := range graph.StagesMax {
		stageDocs(t, s, c, fmt.Sprint("left-", i), i*100, 1)
	}
	_, err := goOn(t, c, &pembav1.ImportHeader{ImportId: "more"}, 9000, 0, 1)
	expectStatus(t, "one more", err, codes.ResourceExhausted, "STAGE_TOO_LARGE")
	for _, word := range []string{"16 imports", "pemba tuple import --abort --all", "AbortImport", "24 hours after their last chunk"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%v says nothing of %q", err, word)
		}
	}
	if _, err := c.CreateStore(ctx, &pembav1.CreateStoreRequest{Name: "else"}); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		r    *pembav1.AbortImportRequest
		want uint32
	}{
		{&pembav1.AbortImportRequest{All: true, Store: "else"}, 0},
		{&pembav1.AbortImportRequest{ImportId: "left-3"}, 1},
		{&pembav1.AbortImportRequest{All: true}, graph.StagesMax - 1},
		{&pembav1.AbortImportRequest{All: true}, 0},
	} {
		if r, err := c.AbortImport(ctx, x.r); err != nil || r.GetAborted() != x.want {
			t.Errorf("%v: %v, %v", x.r, r, err)
		}
	}
	for _, r := range []*pembav1.AbortImportRequest{{}, {All: true, ImportId: "left-1"}} {
		_, err := c.AbortImport(ctx, r)
		expectStatus(t, r.String(), err, codes.InvalidArgument, "MALFORMED")
		if !strings.Contains(err.Error(), "all ") {
			t.Errorf("%v: %v", r, err)
		}
	}
	if info, err := c.GetImport(ctx, &pembav1.GetImportRequest{ImportId: "done"}); err != nil || info.GetCommittedAt() == nil {
		t.Errorf("what was committed: %v, %v", info, err)
	}
	if _, err := goOn(t, c, &pembav1.ImportHeader{ImportId: "more"}, 9000, 0, 1); err != nil {
		t.Errorf("one more, after all: %v", err)
	}
}
