package badgerlog

import (
	"fmt"
	"testing"

	"github.com/hashicorp/raft"
)

// benchConfig is the default but for the ballast.
func benchConfig(b *testing.B) Config {
	cfg := testConfig(b.TempDir())
	cfg.MemTableSize = 0
	return cfg
}

// BenchmarkStoreLogs stores batches of entries of 200 bytes, with a truncation
// every 50,000 entries.
func BenchmarkStoreLogs(b *testing.B) {
	for _, batch := range []int{1, 64} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			l := mustOpen(b, benchConfig(b))
			list := entries(1, uint64(batch), 1, 200)
			last := uint64(0)
			b.ReportAllocs()
			for b.Loop() {
				for _, e := range list {
					last++
					e.Index = last
				}
				mustStore(b, l, list)
				if last%50_000 < uint64(batch) && last > 50_000 {
					if err := l.DeleteRange(1, last-10_000); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(last)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}

// BenchmarkGetLog reads entries of 200 bytes in order, as a leader does for a
// follower that is far behind, while others are being stored.
func BenchmarkGetLog(b *testing.B) {
	l := mustOpen(b, benchConfig(b))
	const held = 20_000
	for i := uint64(1); i <= held; i += 100 {
		mustStore(b, l, entries(i, i+99, 1, 200))
	}
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		for i := uint64(held + 1); ; i += 10 {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			if err := l.StoreLogs(entries(i, i+9, 1, 200)); err != nil {
				stopped <- err
				return
			}
		}
	}()
	var got raft.Log
	i := uint64(0)
	b.ReportAllocs()
	for b.Loop() {
		i = i%held + 1
		if err := l.GetLog(i, &got); err != nil {
			b.Fatal(err)
		}
	}
	close(stop)
	if err := <-stopped; err != nil {
		b.Fatal(err)
	}
}

// BenchmarkOpen opens a log of 100,000 entries of 200 bytes, reading them all.
func BenchmarkOpen(b *testing.B) {
	cfg := benchConfig(b)
	l := mustOpen(b, cfg)
	for i := uint64(1); i <= 100_000; i += 500 {
		mustStore(b, l, entries(i, i+499, 1, 200))
	}
	mustClose(b, l)
	for b.Loop() {
		l, err := Open(cfg)
		if err != nil {
			b.Fatal(err)
		}
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
