package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pembadb/pemba/cluster/badgerlog"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// testSchema has a plain relation and one whose tuples may end.
const testSchema = `use expiration

definition person {}

definition document {
    relation viewer: person
    relation guest: person with expiration
    permission view = viewer + guest
}
`

// deadline bounds what should happen at once; it is only met by failures, also
// where the machine is slow and busy with other things.
const deadline = 2 * time.Minute

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(cancel)
	return ctx
}

// testConfig is a small node in dir that starts fast.
func testConfig(t testing.TB, dir string) Config {
	return Config{
		DataDir:         dir,
		ElectionTimeout: 10 * time.Millisecond,
		WaitMax:         deadline,
		Graph:           graph.Config{CacheBytes: 8 << 20, MemTableBytes: 4 << 20},
		Log:             badgerlog.Config{BallastBytes: -1, MemTableSize: 2 << 20, StoreDeadline: deadline},
		Logger:          slog.New(slog.DiscardHandler),
		OnFatal:         func(err error) { t.Errorf("the node stopped: %v", err) },
	}
}

// open opens a node that is closed with the test, and says why not.
func open(t testing.TB, config Config) *Node {
	t.Helper()
	n, err := Open(testContext(t), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeNode(t, n) })
	return n
}

func closeNode(t testing.TB, n *Node) {
	t.Helper()
	if err := n.Close(testContext(t)); err != nil {
		t.Errorf("close: %v", err)
	}
}

// refusedWith checks that Open fails with a message that names all parts.
func refusedWith(t *testing.T, config Config, parts ...string) {
	t.Helper()
	n, err := Open(testContext(t), config)
	if err == nil {
		closeNode(t, n)
		t.Fatal("it was opened")
	}
	t.Logf("refused: %v", err)
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%v\ndoes not name %q", err, part)
		}
	}
}

func write(t testing.TB, n *Node, m *graph.Mutation) engine.Result {
	t.Helper()
	if m.Store == 0 && m.Init == nil && (m.StoreChange == nil || m.StoreChange.Operation != graph.CreateStore) {
		m.Store = graph.DefaultStore
	}
	result, err := n.Write(testContext(t), m)
	if err != nil {
		t.Fatal(err)
	}
	if result.Refusal != nil {
		t.Fatal(result.Refusal)
	}
	return result
}

func writeSchema(t testing.TB, n *Node) {
	t.Helper()
	write(t, n, &graph.Mutation{Schema: &graph.WriteSchema{Text: testSchema}})
}

// createStore makes a store with the schema of the tests; settings may be nil.
func createStore(t testing.TB, n *Node, name string, settings *graph.StoreChange) graph.StoreID {
	t.Helper()
	change := graph.StoreChange{}
	if settings != nil {
		change = *settings
	}
	change.Operation, change.Name = graph.CreateStore, name
	id := write(t, n, &graph.Mutation{StoreChange: &change}).Store
	write(t, n, &graph.Mutation{Store: id, Schema: &graph.WriteSchema{Text: testSchema}})
	return id
}

func dropStore(t testing.TB, n *Node, id graph.StoreID) {
	t.Helper()
	write(t, n, &graph.Mutation{Store: id, StoreChange: &graph.StoreChange{Operation: graph.DropStore}})
}

// setRetention sets how long a store keeps its history and its log.
func setRetention(t testing.TB, n *Node, id graph.StoreID, kept graph.Retention) {
	t.Helper()
	write(t, n, &graph.Mutation{Store: id, StoreChange: &graph.StoreChange{Operation: graph.SetStore, History: &kept, Log: &kept}})
}

func viewer(document, person string) graph.Tuple {
	return graph.Tuple{
		Object: graph.Object{Type: "document", ID: document}, Relation: "viewer",
		Subject: graph.Subject{Object: graph.Object{Type: "person", ID: person}},
	}
}

func create(tuples ...graph.Tuple) *graph.Mutation {
	m := &graph.Mutation{Store: graph.DefaultStore}
	for _, tuple := range tuples {
		m.Updates = append(m.Updates, graph.Update{Operation: graph.Create, Tuple: tuple})
	}
	return m
}

// has reports whether the tuple is there as c sees it.
func has(t testing.TB, n *Node, c Consistency, tuple graph.Tuple) bool {
	t.Helper()
	s, err := n.Snapshot(testContext(t), graph.DefaultStore, c, graph.Overlay{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, ok, err := s.Graph().Get(tuple.Object, tuple.Relation, tuple.Subject)
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

// mustHave checks that the documents 0 to count-1 have the viewer, in the
// newest state.
func mustHave(t testing.TB, n *Node, count int, person string) {
	t.Helper()
	s, err := n.Snapshot(testContext(t), graph.DefaultStore, Consistency{}, graph.Overlay{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	missing := 0
	for i := range count {
		tuple := viewer(fmt.Sprint(i), person)
		_, ok, err := s.Graph().Get(tuple.Object, tuple.Relation, tuple.Subject)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			missing++
		}
	}
	if missing > 0 {
		t.Errorf("%d of %d acknowledged tuples are missing at revision %d", missing, count, s.Revision())
	}
}

// crashCopy copies a data directory that a node has open and does not write to,
// which is what a process that is killed leaves behind: all that was written to
// files, and nothing that was only in its memory.
func crashCopy(t testing.TB, n *Node) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "copy")
	err := filepath.WalkDir(n.dir.path, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(dir, path[len(n.dir.path):])
		if entry.IsDir() {
			return os.MkdirAll(to, 0o700)
		}
		return copyFile(path, to)
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// copyFile copies a file and leaves out its empty blocks.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return errors.Join(err, in.Close())
	}
	err = copySparse(out, in)
	return errors.Join(err, in.Close(), out.Close())
}

func copySparse(out, in *os.File) error {
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if err := out.Truncate(info.Size()); err != nil {
		return err
	}
	block := make([]byte, 64<<10)
	for at := int64(0); at < info.Size(); {
		n, err := in.ReadAt(block, at)
		if err != nil && err != io.EOF {
			return err
		}
		for _, b := range block[:n] {
			if b != 0 {
				if _, err := out.WriteAt(block[:n], at); err != nil {
					return err
				}
				break
			}
		}
		at += int64(n)
		if n == 0 {
			return nil
		}
	}
	return nil
}

// A clock is set by the test.
type clock struct{ now atomic.Int64 }

func newClock(at time.Time) *clock {
	c := &clock{}
	c.now.Store(at.UnixMicro())
	return c
}

func (c *clock) Now() time.Time           { return time.UnixMicro(c.now.Load()) }
func (c *clock) instant() graph.Instant   { return graph.Instant(c.now.Load()) }
func (c *clock) advance(by time.Duration) { c.now.Add(by.Microseconds()) }
