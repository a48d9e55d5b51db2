//go:build unix

package cluster

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pembadb/pemba/graph"
)

// BenchmarkWatchers measures what watchers of one store cost: the time of the
// processors, in milliseconds a second, while there is a write each millisecond,
// or none for a second.
func BenchmarkWatchers(b *testing.B) {
	for _, writes := range []int{0, 1000} {
		for _, watchers := range []int{0, 1, 1000} {
			b.Run(fmt.Sprintf("writes=%d/watchers=%d", writes, watchers), func(b *testing.B) {
				n := open(b, testConfig(b, b.TempDir()))
				writeSchema(b, n)
				ctx, cancel := context.WithCancel(context.Background())
				var following sync.WaitGroup
				var delivered, batches atomic.Int64
				for range watchers {
					w := watch(b, n, graph.DefaultStore, graph.Position{Revision: n.db().Applied().Revision + 1})
					following.Go(func() {
						for {
							batch, err := w.Next(ctx, time.Second)
							if err != nil {
								return
							}
							delivered.Add(int64(len(batch.Revisions)))
							batches.Add(1)
						}
					})
				}
				time.Sleep(50 * time.Millisecond)
				written := 0
				before, start := processorTime(b), time.Now()
				for b.Loop() {
					for tick := time.NewTicker(time.Second / time.Duration(max(1, writes))); ; {
						<-tick.C
						if writes > 0 {
							write(b, n, create(viewer(fmt.Sprint(written), "hanna")))
						}
						if written++; written%max(1, writes) == 0 {
							tick.Stop()
							break
						}
					}
				}
				seconds := time.Since(start).Seconds()
				b.ReportMetric(float64((processorTime(b)-before).Milliseconds())/seconds, "cpu-ms/s")
				b.ReportMetric(float64(delivered.Load())/seconds, "delivered/s")
				b.ReportMetric(float64(batches.Load())/seconds, "batches/s")
				cancel()
				following.Wait()
			})
		}
	}
}

// processorTime is what this process has used so far.
func processorTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
