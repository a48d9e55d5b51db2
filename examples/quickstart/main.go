// Command quickstart asks a running server from Go: it writes a tuple, and asks
// at once a question that must see it.
//
//	go run ./examples/quickstart
//
// PEMBA_ADDR and PEMBA_KEY name the server and the key, as for the commands.
// docs/tutorial.md has the schema that it needs.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/pembadb/pemba/api/client"
	"github.com/pembadb/pemba/graph"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	addr := os.Getenv("PEMBA_ADDR")
	if addr == "" {
		addr = "127.0.0.1:50051"
	}
	c, err := client.Dial(ctx, client.Config{Addr: addr, Key: os.Getenv("PEMBA_KEY")})
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // Nothing is lost when the connection of a program that ends does not close well.

	tuple, err := graph.ParseTuple("document:plan#editor@person:carol")
	if err != nil {
		return err
	}
	written, err := c.WriteTuples(ctx, graph.Touch, tuple)
	if err != nil {
		return err
	}
	// The zookie of the write makes sure that the answer has seen it, whichever
	// node gives the answer.
	answer, err := c.Check(ctx, client.Question{
		Object:      graph.Object{Type: "document", ID: "plan"},
		Permission:  "view",
		Subject:     graph.Subject{Object: graph.Object{Type: "person", ID: "carol"}},
		Consistency: client.AtLeast(written.GetWrittenAt()),
	})
	if err != nil {
		return err
	}
	fmt.Println("May carol view the plan?", answer.GetDecision())
	return nil
}
