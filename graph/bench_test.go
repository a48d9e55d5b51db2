package graph

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

var (
	benchTuples = flag.Int("tuples", 100_000, "how many tuples the benchmarks' graph holds; 1000000 for figures to compare")
	benchDisk   = flag.Bool("disk", false, "keep the benchmarks' graph on disk rather than in memory")
)

// A benchGraph is a graph of documents with ten viewers each, drawn from a tenth
// as many users as documents.
type benchGraph struct {
	db             *DB
	next           Revision
	objects, users int
}

func (b *benchGraph) tuple(i int) Tuple {
	return Tuple{
		Object: Object{"document", fmt.Sprintf("document-%08d", i/10%b.objects)}, Relation: "viewer",
		Subject: Subject{Object: Object{"user", fmt.Sprintf("user-%07d", (i*7919+i/10)%b.users)}},
	}
}

func (b *benchGraph) commit(tb testing.TB, first, count int) {
	c := Commit{Revision: b.next, Term: 1, Stamp: 1_700_000_000_000_000 + Instant(b.next), Store: DefaultStore}
	b.next++
	for i := first; i < first+count; i++ {
		c.Changes = append(c.Changes, Change{Kind: Created, Tuple: b.tuple(i)})
	}
	if c.Revision == 1 {
		c.Init = &Init{ClusterID: [16]byte{1}}
	}
	if _, err := b.db.Commit(c); err != nil {
		tb.Fatal(err)
	}
}

func newBenchGraph(tb testing.TB, tuples int) *benchGraph {
	tb.Helper()
	config := Config{Dir: "graph", FS: vfs.NewMem()}
	if *benchDisk {
		config.Dir, config.FS = tb.TempDir(), nil
	}
	db, err := Open(config)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := db.Close(); err != nil {
			tb.Error(err)
		}
	})
	b := &benchGraph{db: db, next: 1, objects: tuples / 10, users: max(tuples/100, 100)}
	for i := 0; i < tuples; i += 500 {
		b.commit(tb, i, min(500, tuples-i))
	}
	if _, err := db.Flush(); err != nil {
		tb.Fatal(err)
	}
	if err := db.pebble.Compact(tb.Context(), []byte{0}, []byte{0xff}, true); err != nil {
		tb.Fatal(err)
	}
	return b
}

// Benchmark measures reads of a compacted graph that the cache holds.
func Benchmark(b *testing.B) {
	g := newBenchGraph(b, *benchTuples)
	s, err := g.db.Snapshot(DefaultStore, 0, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	relation, user := s.Shape("document", "viewer"), s.Shape("user", "")
	keys := make([]edgeKey, 4096)
	for i := range keys {
		t := g.tuple(rand.IntN(*benchTuples))
		o, err := s.Number(t.Object.Type, t.Object.ID)
		if err != nil {
			b.Fatal(err)
		}
		u, err := s.Number(t.Subject.Type, t.Subject.ID)
		if err != nil {
			b.Fatal(err)
		}
		keys[i] = edgeKey{relation, o, user, u}
	}
	b.Run("find/hit", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			k := keys[i%len(keys)]
			if _, ok, err := s.Find(k.relation, k.object, k.subject, k.number); !ok || err != nil {
				b.Fatal(ok, err)
			}
		}
	})
	b.Run("find/miss", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			k := keys[i%len(keys)]
			if _, ok, err := s.Find(k.relation, k.object, k.subject, EphemeralNumber-1); ok || err != nil {
				b.Fatal(ok, err)
			}
		}
	})
	b.Run("find/miss-filtered", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			k := keys[i%len(keys)]
			if _, ok, err := s.Find(k.subject, k.object, k.subject, k.number); ok || err != nil {
				b.Fatal(ok, err)
			}
		}
	})
	b.Run("number", func(b *testing.B) {
		b.ReportAllocs()
		ids := make([]string, 4096)
		for i := range ids {
			ids[i] = g.tuple(rand.IntN(*benchTuples)).Object.ID
		}
		b.ResetTimer()
		for i := range b.N {
			if _, err := s.Number("document", ids[i%len(ids)]); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("id", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			if _, err := s.ID("document", keys[i%len(keys)].object); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("subjects/10", func(b *testing.B) {
		b.ReportAllocs()
		var dst []Edge
		for i := range b.N {
			k := keys[i%len(keys)]
			if dst, err = s.Subjects(dst[:0], k.relation, k.object, k.subject, 0, 100); len(dst) == 0 || err != nil {
				b.Fatal(dst, err)
			}
		}
	})
	b.Run("objects/100", func(b *testing.B) {
		b.ReportAllocs()
		var dst []Edge
		for i := range b.N {
			k := keys[i%len(keys)]
			if dst, err = s.Objects(dst[:0], k.subject, k.number, k.relation, 0, 1000); len(dst) == 0 || err != nil {
				b.Fatal(dst, err)
			}
		}
	})
	b.Run("snapshot", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			s, err := g.db.Snapshot(DefaultStore, 0, 1)
			if err != nil {
				b.Fatal(err)
			}
			s.Close()
		}
	})
}

// BenchmarkCommit measures commits of new tuples; tuples/s is the figure to look
// at.
func BenchmarkCommit(b *testing.B) {
	for _, size := range []int{1, 500} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			g := newBenchGraph(b, 1000)
			g.objects, g.users = 1<<30, 10_000
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				g.commit(b, 1000+i*size, size)
			}
			b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "tuples/s")
		})
	}
}

// BenchmarkCommitSnapshot measures what Apply does for one tuple: a commit, and
// a snapshot that looks at it.
func BenchmarkCommitSnapshot(b *testing.B) {
	g := newBenchGraph(b, 1000)
	g.objects, g.users = 1<<30, 10_000
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		g.commit(b, 1000+i, 1)
		s, err := g.db.Snapshot(DefaultStore, 0, 1)
		if err != nil {
			b.Fatal(err)
		}
		t := g.tuple(1000 + i)
		if _, ok, err := s.Get(t.Object, t.Relation, t.Subject); !ok || err != nil {
			b.Fatal(ok, err)
		}
		s.Close()
	}
}

// BenchmarkBytes reports how much a compacted graph takes on disk, by keyspace;
// it takes its size from -tuples and does the same work for any b.N.
func BenchmarkBytes(b *testing.B) {
	g := newBenchGraph(b, *benchTuples)
	total := 0.0
	for _, space := range []byte("fFrRnitelcsvzo") {
		n, err := g.db.pebble.EstimateDiskUsage([]byte{space}, []byte{space + 1})
		if err != nil {
			b.Fatal(err)
		}
		perTuple := float64(n) / float64(*benchTuples)
		if perTuple >= 0.01 {
			b.ReportMetric(perTuple, fmt.Sprintf("%c-B/tuple", space))
		}
		if space != spaceLog {
			total += perTuple
		}
	}
	b.ReportMetric(total, "B/tuple")
}

// BenchmarkRemove measures what removing costs for each ended tuple, and how long
// one step takes.
func BenchmarkRemove(b *testing.B) {
	g := newBenchGraph(b, 100_000)
	second := MinRetention
	steps, tuples := 0, 0
	var stepping time.Duration
	do := func(c Commit) {
		c.Revision, c.Term, c.Store = g.next, 1, DefaultStore
		c.Stamp = g.db.Applied().Stamp + c.Stamp
		g.next++
		if _, err := g.db.Commit(c); err != nil {
			b.Fatal(err)
		}
	}
	do(Commit{StoreChange: &StoreChange{Operation: SetStore, History: &second, Log: &second}})
	for b.Loop() {
		b.StopTimer()
		s, err := g.db.Snapshot(DefaultStore, 0, 0)
		if err != nil {
			b.Fatal(err)
		}
		old, _, err := s.Read(Filter{}, nil, 20_000)
		s.Close()
		if err != nil {
			b.Fatal(err)
		}
		var c Commit
		for i := range old {
			c.Changes = append(c.Changes, Change{Kind: Replaced, Tuple: old[i], Before: &old[i]})
		}
		do(c)
		do(Commit{Stamp: 10 * Instant(second), Prune: &Prune{}})
		b.StartTimer()
		begin := time.Now()
		for more := true; more; steps++ {
			if more, err = g.db.Remove(DefaultStore, 25); err != nil {
				b.Fatal(err)
			}
		}
		stepping += time.Since(begin)
		tuples += len(old)
	}
	b.ReportMetric(float64(stepping.Nanoseconds())/float64(tuples), "ns/tuple")
	b.ReportMetric(stepping.Seconds()*1000/float64(steps), "ms/step")
}

// BenchmarkPrune measures the search for the floors in a log of many revisions.
func BenchmarkPrune(b *testing.B) {
	g := newBenchGraph(b, *benchTuples)
	for b.Loop() {
		second := MinRetention
		record := g.db.stores[DefaultStore].catalog.record
		record.settings = StoreSettings{History: second, Log: second}
		if err := record.prune(g.db.pebble, DefaultStore, record.stamp); err != nil {
			b.Fatal(err)
		}
	}
}
