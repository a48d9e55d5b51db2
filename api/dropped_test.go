package api

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// A laggingNode resolves a name to the store that had it before, until it has waited for
// all that was acknowledged.
type laggingNode struct {
	*cluster.Node
	old       atomic.Pointer[graph.StoreInfo] // Nil for one that is not behind.
	asked     atomic.Int64
	hasLeader atomic.Bool // False where there is no leader to ask.
}

func (l *laggingNode) Await(ctx context.Context, c cluster.Consistency) error {
	if c.Mode == cluster.Linearizable {
		l.asked.Add(1)
		if !l.hasLeader.Load() {
			return fmt.Errorf("ask: %w", cluster.ErrNotLeader)
		}
		l.old.Store(nil)
	}
	return l.Node.Await(ctx, c)
}

func (l *laggingNode) StoreNamed(name string) (graph.StoreInfo, bool) {
	if old := l.old.Load(); old != nil && old.Name == name {
		return *old, true
	}
	return l.Node.StoreNamed(name)
}

// TestDroppedStore: a store that was deleted and made again through another node is the
// new one, also on a node that has not heard of either. It was said that there is none.
func TestDroppedStore(t *testing.T) {
	node := &laggingNode{Node: memoryNode(t)}
	node.hasLeader.Store(true)
	c := dial(t, testServer(t, Config{Node: node, Keys: []string{"op"}}))
	ctx := as(testContext(t), "op")
	makeStore := func() graph.StoreInfo {
		t.Helper()
		if _, err := c.CreateStore(ctx, &pembav1.CreateStoreRequest{Name: "team"}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Store: "team", Schema: testSchema}); err != nil {
			t.Fatal(err)
		}
		store, found := node.Node.StoreNamed("team")
		if !found {
			t.Fatal("the store is not there")
		}
		return store
	}
	drop := func() {
		t.Helper()
		if _, err := c.DeleteStore(ctx, &pembav1.DeleteStoreRequest{Store: "team"}); err != nil {
			t.Fatal(err)
		}
	}
	old := makeStore()
	drop()
	now := makeStore()
	tuple := &pembav1.Tuple{Object: object("doc", "a"), Relation: "viewer", Subject: user("anne")}
	for _, x := range []struct {
		what string
		call func() error
	}{
		{"a write", func() error {
			_, err := c.WriteTuples(ctx, &pembav1.WriteTuplesRequest{Store: "team", Updates: []*pembav1.TupleUpdate{{Operation: pembav1.TupleUpdate_OPERATION_CREATE, Tuple: tuple}}})
			return err
		}},
		{"a question", func() error {
			_, err := c.Check(ctx, &pembav1.CheckRequest{Store: "team", Object: tuple.GetObject(), Permission: "viewer", Subject: tuple.GetSubject()})
			return err
		}},
		{"its schema", func() error {
			_, err := c.ReadSchema(ctx, &pembav1.ReadSchemaRequest{Store: "team"})
			return err
		}},
		{"another schema", func() error {
			_, err := c.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Store: "team", Schema: testSchema})
			return err
		}},
		{"the store itself", func() error {
			got, err := c.GetStore(ctx, &pembav1.GetStoreRequest{Store: "team"})
			if err == nil && fromStore(now).GetCreatedAt().AsTime() != got.GetStore().GetCreatedAt().AsTime() {
				return fmt.Errorf("it is %v, and not %v", got.GetStore(), fromStore(now))
			}
			return err
		}},
	} {
		node.old.Store(&old)
		asked := node.asked.Load()
		if err := x.call(); err != nil {
			t.Errorf("%s: %v", x.what, err)
		}
		if n := node.asked.Load() - asked; n != 1 {
			t.Errorf("%s: the cluster was asked %d times", x.what, n)
		}
		// Where the cluster cannot be asked nobody knows whether there is one.
		node.old.Store(&old)
		node.hasLeader.Store(false)
		err := x.call()
		expectStatus(t, x.what+" without a leader", err, codes.Unavailable, "NOT_LEADER")
		node.hasLeader.Store(true)
	}
	node.old.Store(nil)
	drop()
	node.old.Store(&now)
	asked := node.asked.Load()
	_, err := c.ReadSchema(ctx, &pembav1.ReadSchemaRequest{Store: "team"})
	expectStatus(t, "a store that is no more", err, codes.NotFound, "UNKNOWN_STORE")
	if n := node.asked.Load() - asked; n != 1 {
		t.Errorf("for a store that is no more the cluster was asked %d times", n)
	}
}

// TestDroppedUnknown: what became of a write is not known for sure when an earlier try of
// it may have found the store, and it is not made again for another store then.
func TestDroppedUnknown(t *testing.T) {
	store := graph.StoreInfo{ID: 7, Name: "team"}
	err := fmt.Errorf("%w: it was refused when it was tried again: %w", cluster.ErrOutcomeUnknown, &engine.Refusal{Reason: engine.UnknownStore})
	if got := ofStore(store, err); !errors.Is(got, cluster.ErrOutcomeUnknown) {
		t.Errorf("it became %v", got)
	}
}
