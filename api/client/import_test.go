package client_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/api/client"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

// dialed starts a server with a schema and connects to it.
func dialed(t *testing.T) *client.Client {
	t.Helper()
	c, err := client.Dial(t.Context(), client.Config{Addr: serve(t), Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	schema := "definition user {} definition doc { relation viewer: user }"
	if _, err := c.Schemas.WriteSchema(t.Context(), &pembav1.WriteSchemaRequest{Schema: schema}); err != nil {
		t.Fatal(err)
	}
	return c
}

func count(t *testing.T, c *client.Client) uint64 {
	t.Helper()
	answer, err := c.CountTuples(t.Context(), &pembav1.CountTuplesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return answer.GetCount()
}

// add adds the tuples from a number up to another.
func add(t *testing.T, im *client.Import, from, to int) error {
	t.Helper()
	for i := from; i < to; i++ {
		if err := im.Add(tuple(t, fmt.Sprintf("doc:%06d#viewer@user:anne", i))); err != nil {
			return err
		}
	}
	return nil
}

// TestImport: nothing shows before the commit, everything after it; what was
// canceled can be gone on with by its name until it is forgotten.
func TestImport(t *testing.T) {
	c := dialed(t)
	begin := func(config client.ImportConfig) *client.Import {
		t.Helper()
		im, err := c.Import(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		return im
	}
	config := client.ImportConfig{ID: client.NewImportID()}
	im := begin(config)
	if err := add(t, im, 0, 12_000); err != nil {
		t.Fatal(err)
	}
	im.Cancel()
	im.Cancel()
	if _, err := im.Commit(); err == nil {
		t.Error("a canceled import was committed")
	}
	if n := count(t, c); n != 0 {
		t.Errorf("%d tuples of an import that was not committed can be seen", n)
	}

	// Go on. How much of it came is up to the network.
	im = begin(config)
	known := im.Known()
	if known%5000 != 0 || known > 12_000 {
		t.Errorf("%d tuples are known, which are not full chunks", known)
	}
	if err := add(t, im, 0, 12_000); err != nil {
		t.Fatal(err)
	}
	answer, err := im.Commit()
	if err != nil || answer.GetTuples() != 12_000 || answer.GetChanged() != 12_000 || im.DoneBefore() != nil {
		t.Fatalf("%v, done before: %v, %v", answer, im.DoneBefore(), err)
	}
	// That it is done once more is told.
	im = begin(config)
	if err := add(t, im, 0, 12_000); err != nil {
		t.Fatal(err)
	}
	if again, err := im.Commit(); err != nil || again.GetTuples() != 12_000 || again.GetChanged() != 12_000 || !proto.Equal(im.DoneBefore(), answer.GetWrittenAt()) {
		t.Fatalf("%v, done before: %v, %v; at first %v", again, im.DoneBefore(), err, answer)
	}
	if n := count(t, c); n != 12_000 {
		t.Errorf("%d tuples are there", n)
	}

	// A tuple that is there is refused by its number.
	im = begin(client.ImportConfig{Create: true, Batches: true})
	err = errors.Join(add(t, im, 20_000, 26_000), add(t, im, 100, 101))
	if err == nil {
		_, err = im.Commit()
	}
	var refused *client.ImportError
	if !errors.As(err, &refused) || refused.Number != 6000 {
		t.Errorf("%v", err)
	}
	if reason, _ := client.Reason(err); reason != "ALREADY_EXISTS" {
		t.Errorf("%v", err)
	}
	im.Cancel()

	// An import is forgotten.
	config.ID = "forgotten"
	im = begin(config)
	if err := add(t, im, 30_000, 36_000); err != nil {
		t.Fatal(err)
	}
	if err := im.Forget(t.Context()); err != nil {
		t.Fatal(err)
	}
	if im = begin(config); im.Known() != 0 {
		t.Errorf("%d tuples are remembered", im.Known())
	}
	// Its context ends it.
	im.Cancel()
	ctx, cancel := context.WithCancel(t.Context())
	if im, err = c.Import(ctx, client.ImportConfig{}); err != nil {
		t.Fatal(err)
	}
	cancel()
	err = add(t, im, 0, 50_000)
	if err == nil {
		_, err = im.Commit()
	}
	if err == nil {
		t.Error("a canceled context ends no import")
	}
	im.Cancel()
	if _, err := c.Import(t.Context(), client.ImportConfig{ID: "x", Batches: true}); err == nil {
		t.Error("an import in batches has a name")
	}
	if _, err := c.Import(t.Context(), client.ImportConfig{ID: "?"}); err == nil {
		t.Error("a name that is none was taken")
	}
}

// TestImportReplaced: an import is not told that it was committed when another has
// put other tuples under its ID since it looked, and these are not committed by it.
func TestImportReplaced(t *testing.T) {
	c := dialed(t)
	config := client.ImportConfig{ID: "shared"}
	begin := func() *client.Import {
		t.Helper()
		im, err := c.Import(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		return im
	}
	// leave stages a chunk of tuples, and forgets what is staged before.
	leave := func(from int) {
		t.Helper()
		if _, err := c.Tuples.AbortImport(t.Context(), &pembav1.AbortImportRequest{All: true}); err != nil {
			t.Fatal(err)
		}
		im := begin()
		if err := add(t, im, from, from+5001); err != nil { // The last one stays here.
			t.Fatal(err)
		}
		for {
			answer, err := c.Tuples.GetImport(t.Context(), &pembav1.GetImportRequest{ImportId: config.ID})
			if reason, _ := client.Reason(err); err != nil && reason != "STAGE_UNKNOWN" {
				t.Fatal(err)
			}
			if answer.GetNextChunk() == 1 {
				break
			}
		}
		im.Cancel()
	}
	for _, more := range []int{0, 10} {
		leave(0)
		im := begin()
		if im.Known() != 5000 {
			t.Fatalf("%d tuples are known", im.Known())
		}
		leave(100_000)
		err := add(t, im, 0, 5000+more)
		if err == nil {
			_, err = im.Commit()
		}
		if reason, _ := client.Reason(err); reason != "STAGE_MISMATCH" {
			t.Errorf("with %d more: %v", more, err)
		}
		im.Cancel()
		if n := count(t, c); n != 0 {
			t.Fatalf("with %d more: %d tuples of another are there", more, n)
		}
		// The other one is as it was, and can be gone on with.
		if im = begin(); im.Known() != 5000 {
			t.Errorf("with %d more: %d tuples are known of the other", more, im.Known())
		}
		im.Cancel()
	}
	// An import without tuples does not commit those of another either.
	if _, err := c.Tuples.AbortImport(t.Context(), &pembav1.AbortImportRequest{All: true}); err != nil {
		t.Fatal(err)
	}
	im := begin()
	leave(100_000)
	if _, err := im.Commit(); err == nil || count(t, c) != 0 {
		t.Errorf("nothing was added: %v, and %d tuples are there", err, count(t, c))
	}
}

// TestImportTwice: with batches a tuple may come twice, as in two writes.
func TestImportTwice(t *testing.T) {
	c := dialed(t)
	im, err := c.Import(t.Context(), client.ImportConfig{Batches: true})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Cancel()
	if err := errors.Join(add(t, im, 0, 10), add(t, im, 0, 10)); err != nil {
		t.Fatal(err)
	}
	if answer, err := im.Commit(); err != nil || answer.GetTuples() != 20 || answer.GetChanged() != 10 {
		t.Errorf("%v, %v", answer, err)
	}
}

// TestWatchEnds: a watch outlives the end of its server, goes on behind what it
// saw, and ends with an error that another attempt would not cure.
func TestWatchEnds(t *testing.T) {
	dir := t.TempDir()
	addr, stop, err := startServer(dir)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Dial(t.Context(), client.Config{Addr: addr, Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	write := func(text string) {
		t.Helper()
		if _, err := c.WriteTuples(t.Context(), 1, tuple(t, text)); err != nil {
			t.Fatal(err)
		}
	}
	schema := "definition user {} definition doc { relation viewer: user }"
	if _, err := c.Schemas.WriteSchema(t.Context(), &pembav1.WriteSchemaRequest{Schema: schema}); err != nil {
		t.Fatal(err)
	}
	var got []string
	losses := 0
	for response, err := range c.Watch(t.Context(), &pembav1.WatchRequest{}, func(error) { losses++ }) {
		if err != nil {
			t.Fatal(err)
		}
		if response.GetHeartbeat() && len(got) == 0 {
			// It has begun.
			write("doc:a#viewer@user:anne")
		}
		for _, change := range response.GetChanges() {
			got = append(got, change.GetTuple().GetObject().GetId())
		}
		if len(got) == 1 && losses == 0 {
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			if _, stop, err = startServer(dir, func(c *api.Config) { c.GRPCAddr = addr }); err != nil {
				t.Fatal(err)
			}
			write("doc:b#viewer@user:anne")
		}
		if len(got) == 2 {
			break
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if fmt.Sprint(got) != "[a b]" || losses == 0 {
		t.Errorf("got %v over %d losses", got, losses)
	}
}

// TestWatchCanceled: the end of its context is the last that a watch yields, as an
// error of that code.
func TestWatchCanceled(t *testing.T) {
	c := dialed(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last error
	for response, err := range c.Watch(ctx, &pembav1.WatchRequest{}, nil) {
		if last != nil {
			t.Fatalf("behind %v comes %v, %v", last, response, err)
		}
		if last = err; response.GetHeartbeat() { // It has begun.
			cancel()
		}
	}
	if status.Code(last) != codes.Canceled {
		t.Errorf("the last is %v", last)
	}
}

// TestWatchCanceledFirst: so it is when the server ended the watch before.
func TestWatchCanceledFirst(t *testing.T) {
	addr, stop, err := startServer(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Dial(t.Context(), client.Config{Addr: addr, Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // Its server is gone.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last error
	for response, err := range c.Watch(ctx, &pembav1.WatchRequest{}, nil) {
		if last = err; response.GetHeartbeat() && ctx.Err() == nil {
			if err := stop(); err != nil {
				t.Error(err)
			}
			cancel()
		}
	}
	if status.Code(last) != codes.Canceled {
		t.Errorf("the last is %v", last)
	}
}

// TestImportChunkBytes: an import in small chunks is known again by one with as many
// ChunkBytes, and by no other.
func TestImportChunkBytes(t *testing.T) {
	c := dialed(t)
	for _, size := range []int{-1, client.ChunkBytesMax + 1} {
		if _, err := c.Import(t.Context(), client.ImportConfig{ChunkBytes: size}); err == nil {
			t.Errorf("%d bytes are allowed", size)
		}
	}
	begin := func(size int) *client.Import {
		t.Helper()
		im, err := c.Import(t.Context(), client.ImportConfig{ID: "small", ChunkBytes: size})
		if err != nil {
			t.Fatal(err)
		}
		return im
	}
	im := begin(400)
	if err := add(t, im, 0, 500); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		answer, err := c.Tuples.GetImport(t.Context(), &pembav1.GetImportRequest{ImportId: "small"})
		if err == nil && answer.GetNextChunk() > 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("nothing came of 500 tuples: %v", err)
		}
	}
	im.Cancel()
	for _, size := range []int{0, 100, 4000} {
		im := begin(size)
		err := add(t, im, 0, 500)
		if err == nil {
			_, err = im.Commit()
		}
		if !errors.Is(err, client.ErrImportMismatch) {
			t.Errorf("gone on with by chunks of %d bytes: %v", size, err)
		}
		im.Cancel()
	}
	im = begin(400)
	if err := add(t, im, 0, 500); err != nil {
		t.Fatal(err)
	}
	if answer, err := im.Commit(); err != nil || answer.GetTuples() != 500 || count(t, c) != 500 {
		t.Errorf("%v, %v", answer, err)
	}
}
