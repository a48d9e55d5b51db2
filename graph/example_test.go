package graph_test

import (
	"fmt"
	"log"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/pembadb/pemba/graph"
)

func Example() {
	db, err := graph.Open(graph.Config{Dir: "data", FS: vfs.NewMem()})
	if err != nil {
		log.Fatal(err)
	}
	tuple, err := graph.ParseTuple("org:vector#hr@person:hanna")
	if err != nil {
		log.Fatal(err)
	}
	// The first commit gives the cluster an id and a default store.
	first := graph.Commit{Revision: 1, Term: 1, Stamp: 1_700_000_000_000_000, Init: &graph.Init{ClusterID: [16]byte{1}}}
	if _, err := db.Commit(first); err != nil {
		log.Fatal(err)
	}
	// A revision creates the tuple, a later one deletes it.
	created := graph.Commit{
		Revision: 5, Term: 1, Stamp: 1_700_000_000_000_000, Store: graph.DefaultStore,
		Changes: []graph.Change{{Kind: graph.Created, Tuple: tuple}},
	}
	if _, err := db.Commit(created); err != nil {
		log.Fatal(err)
	}
	tuple.Created = 5
	deleted := graph.Commit{
		Revision: 9, Term: 1, Stamp: 1_700_000_060_000_000, Store: graph.DefaultStore,
		Changes: []graph.Change{{Kind: graph.Deleted, Tuple: tuple, Before: &tuple}},
	}
	if _, err := db.Commit(deleted); err != nil {
		log.Fatal(err)
	}
	// The older revision still has it.
	for _, revision := range []graph.Revision{5, 9} {
		snapshot, err := db.Snapshot(graph.DefaultStore, revision, 0)
		if err != nil {
			log.Fatal(err)
		}
		tuples, _, err := snapshot.Read(graph.Filter{SubjectID: "hanna"}, nil, 10)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(revision, tuples)
		snapshot.Close()
	}
	if err := db.Close(); err != nil {
		log.Fatal(err)
	}
	// Output:
	// 5 [org:vector#hr@person:hanna]
	// 9 []
}
