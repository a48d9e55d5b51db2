package client_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/pembadb/pemba/api/client"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/graph"
)

// connect starts a server of its own for an example and connects to it. A
// program connects to one that runs.
func connect() (c *client.Client, done func()) {
	dir, err := os.MkdirTemp("", "pemba-example-")
	if err != nil {
		log.Fatal(err)
	}
	addr, stop, err := startServer(dir)
	if err != nil {
		log.Fatal(err)
	}
	c, err = client.Dial(context.Background(), client.Config{Addr: addr, Key: "k"})
	if err != nil {
		log.Fatal(err)
	}
	schema := `definition user {}
		definition document { relation viewer: user  permission view = viewer }`
	if _, err := c.Schemas.WriteSchema(context.Background(), &pembav1.WriteSchemaRequest{Schema: schema}); err != nil {
		log.Fatal(err)
	}
	return c, func() {
		for _, err := range []error{c.Close(), stop(), os.RemoveAll(dir)} {
			if err != nil {
				log.Fatal(err)
			}
		}
	}
}

func parse(text string) graph.Tuple {
	t, err := graph.ParseTuple(text)
	if err != nil {
		log.Fatal(err)
	}
	return t
}

// A write is asked for with the zookie that it gave: the answer has seen it,
// whichever node gives it.
func Example() {
	c, done := connect()
	defer done()
	ctx := context.Background()

	written, err := c.WriteTuples(ctx, graph.Touch, parse("document:readme#viewer@user:anne"))
	if err != nil {
		log.Fatal(err)
	}
	answer, err := c.Check(ctx, client.Question{
		Object:      graph.Object{Type: "document", ID: "readme"},
		Permission:  "view",
		Subject:     graph.Subject{Object: graph.Object{Type: "user", ID: "anne"}},
		Consistency: client.AtLeast(written.GetWrittenAt()),
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.GetDecision())
	// Output: DECISION_ALLOWED
}

// An import becomes visible as a whole.
func ExampleClient_Import() {
	c, done := connect()
	defer done()
	ctx := context.Background()

	im, err := c.Import(ctx, client.ImportConfig{RecordedActor: "user:admin"})
	if err != nil {
		log.Fatal(err)
	}
	defer im.Cancel()
	for i := range 10_000 {
		if err := im.Add(parse(fmt.Sprintf("document:%d#viewer@user:anne", i))); err != nil {
			log.Fatal(err)
		}
	}
	answer, err := im.Commit()
	if err != nil {
		log.Fatal(err)
	}
	count, err := c.CountTuples(ctx, &pembav1.CountTuplesRequest{Consistency: client.ExactlyAt(answer.GetWrittenAt())})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.GetTuples(), "imported,", count.GetCount(), "there")
	// Output: 10000 imported, 10000 there
}

// A watch goes on where it was when the connection is lost. Here it ends by
// itself, at the last change that is expected.
func ExampleClient_Watch() {
	c, done := connect()
	defer done()
	ctx := context.Background()

	written, err := c.WriteTuples(ctx, graph.Create, parse("document:a#viewer@user:anne"))
	if err != nil {
		log.Fatal(err)
	}
	if _, err := c.WriteTuples(ctx, graph.Create, parse("document:b#viewer@user:anne")); err != nil {
		log.Fatal(err)
	}
	if _, err := c.WriteTuples(ctx, graph.Delete, parse("document:a#viewer@user:anne")); err != nil {
		log.Fatal(err)
	}
	from := &pembav1.WatchRequest{From: &pembav1.WatchRequest_After{After: written.GetWrittenAt()}}
	lost := func(err error) { log.Print("the watch was cut off: ", err) }
watch:
	for response, err := range c.Watch(ctx, from, lost) {
		if err != nil {
			log.Fatal(err)
		}
		for _, change := range response.GetChanges() {
			fmt.Println(change.GetSequence(), change.GetKind(), change.GetTuple().GetObject().GetId())
			if change.GetKind() == pembav1.Change_KIND_DELETED {
				break watch
			}
		}
	}
	// Output:
	// 2 KIND_CREATED b
	// 3 KIND_DELETED a
}

// The past is asked like the present.
func ExampleAsOf() {
	c, done := connect()
	defer done()
	ctx := context.Background()

	viewer := parse("document:readme#viewer@user:anne")
	if _, err := c.WriteTuples(ctx, graph.Touch, viewer); err != nil {
		log.Fatal(err)
	}
	time.Sleep(time.Millisecond)
	then := time.Now()
	if _, err := c.WriteTuples(ctx, graph.Delete, viewer); err != nil {
		log.Fatal(err)
	}
	for _, consistency := range []*pembav1.Consistency{client.Linearizable(), client.AsOf(then)} {
		answer, err := c.Check(ctx, client.Question{
			Object: viewer.Object, Permission: "view", Subject: viewer.Subject, Consistency: consistency,
		})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(answer.GetDecision())
	}
	// Output:
	// DECISION_DENIED
	// DECISION_ALLOWED
}

// An export comes in batches, all of one revision.
func ExampleClient_ExportTuples() {
	c, done := connect()
	defer done()
	ctx := context.Background()

	if _, err := c.WriteTuples(ctx, graph.Touch, parse("document:a#viewer@user:anne"), parse("document:b#viewer@user:anne")); err != nil {
		log.Fatal(err)
	}
	request := &pembav1.ExportTuplesRequest{Filter: &pembav1.TupleFilter{ObjectType: "document"}}
	for batch, err := range c.ExportTuples(ctx, request) {
		if err != nil {
			log.Fatal(err)
		}
		for _, t := range batch.GetTuples() {
			fmt.Println(t.GetObject().GetId(), t.GetRelation(), t.GetSubject().GetObject().GetId())
		}
	}
	// Output:
	// a viewer anne
	// b viewer anne
}

// Stores are made by the service itself.
func ExampleClient_ListStores() {
	c, done := connect()
	defer done()
	ctx := context.Background()

	if _, err := c.Stores.CreateStore(ctx, &pembav1.CreateStoreRequest{Name: "staging"}); err != nil {
		log.Fatal(err)
	}
	for store, err := range c.ListStores(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(store.GetName(), store.GetSettings().GetHistory().GetDuration().AsDuration())
	}
	// Output:
	// default 720h0m0s
	// staging 720h0m0s
}
