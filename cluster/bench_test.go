package cluster

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/pembadb/pemba/graph"
)

// BenchmarkWrite measures requests of one new tuple each, by so many writers at
// once.
func BenchmarkWrite(b *testing.B) {
	for _, writers := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			config := testConfig(b, b.TempDir())
			config.Log.MemTableSize, config.Graph = 0, graph.Config{}
			n := open(b, config)
			writeSchema(b, n)
			var next atomic.Int64
			batches, entries := n.log.batches.Load(), n.log.entries.Load()
			b.ResetTimer()
			done := make(chan error, writers)
			for range writers {
				go func() {
					for {
						i := next.Add(1)
						if i > int64(b.N) {
							done <- nil
							return
						}
						result, err := n.Write(context.Background(), create(viewer(fmt.Sprint(i), "hanna")))
						if err == nil && result.Refusal != nil {
							err = result.Refusal
						}
						if err != nil {
							done <- err
							return
						}
					}
				}()
			}
			for range writers {
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n.log.entries.Load()-entries)/float64(max(1, n.log.batches.Load()-batches)), "entries/sync")
		})
	}
}

// BenchmarkSnapshot measures what a read pays before its question.
func BenchmarkSnapshot(b *testing.B) {
	n := open(b, testConfig(b, b.TempDir()))
	writeSchema(b, n)
	for _, mode := range []Mode{Newest, Linearizable} {
		b.Run(mode.String(), func(b *testing.B) {
			for b.Loop() {
				s, err := n.Snapshot(context.Background(), graph.DefaultStore, Consistency{Mode: mode}, graph.Overlay{})
				if err != nil {
					b.Fatal(err)
				}
				s.Close()
			}
		})
	}
}
