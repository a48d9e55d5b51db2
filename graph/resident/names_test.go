package resident

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// TestNames adds names while readers ask for them.
func TestNames(t *testing.T) {
	var total atomic.Int64
	n := NewNames(&total)
	const count = 20_000
	name := func(i int) (typ uint32, id string) {
		// The same id in two types, and ids of all lengths.
		return uint32(1 + i%2), fmt.Sprintf("%d%s", i/2, strings.Repeat("x", i%40))
	}
	number := func(i int) uint64 { return uint64(i*2 + 1) }
	if _, found, known := n.Find(1, "none"); found || known {
		t.Fatal("names that know nothing know a name")
	}
	var added atomic.Int64
	var running sync.WaitGroup
	for range 2 {
		running.Go(func() {
			for end := 0; end < count; {
				end = int(added.Load())
				i := rand.IntN(count)
				typ, id := name(i)
				got, found, known := n.Find(typ, id)
				if back, ok := n.ID(typ, number(i)); i < end && !ok || ok && back != id {
					t.Errorf("number %d: %q, %t", number(i), back, ok)
					return
				}
				if i < end && !found || found && (!known || got != number(i)) {
					t.Errorf("name %d: %d, %t, %t", i, got, found, known)
					return
				}
			}
		})
	}
	for i := range count {
		typ, id := name(i)
		n.Add(typ, id, number(i))
		added.Store(int64(i + 1))
	}
	running.Wait()
	n.Complete()
	for i := range count {
		typ, id := name(i)
		n.Add(typ, id, number(i)) // changes nothing
		if got, found, known := n.Find(typ, id); got != number(i) || !found || !known {
			t.Fatalf("name %d: %d, %t, %t", i, got, found, known)
		}
		if _, found, known := n.Find(typ+2, id); found || !known {
			t.Fatalf("name %d of another type is found", i)
		}
	}
	if id, ok := n.ID(1, 2*count+1); ok {
		t.Fatalf("a number of none is that of %q", id)
	}
	bytes := int64(8 * len(*n.numbers.Load()))
	for _, table := range *n.numbers.Load() {
		if table != nil {
			for _, chunk := range *table.chunks.Load() {
				bytes += 8
				if chunk != nil {
					bytes += 8 * numbersChunk
				}
			}
		}
	}
	for s := range n.directory.Load().all() {
		bytes += s.bytes()
	}
	if bytes != total.Load() {
		t.Fatalf("%d bytes are told, %d are taken", total.Load(), bytes)
	}
	t.Logf("%.1f bytes a name", float64(bytes)/count)
	n.Forget()
	if total.Load() != 0 {
		t.Fatalf("%d bytes are left", total.Load())
	}
}

// TestKeptNames holds that a name which was kept by itself gets its place among the numbers
// when it comes with all others.
func TestKeptNames(t *testing.T) {
	n := NewNames(new(atomic.Int64))
	n.Keep(1, "a", 1<<30)
	if number, found, known := n.Find(1, "a"); number != 1<<30 || !found || !known {
		t.Errorf("the kept name: %d, %t, %t", number, found, known)
	}
	if _, ok := n.ID(1, 1<<30); ok || n.Bytes() > 4096 {
		t.Errorf("a kept name is in the table of numbers, which takes %d bytes", n.Bytes())
	}
	n.Keep(1, "b", 3)
	n.Add(1, "b", 3)
	if id, ok := n.ID(1, 3); id != "b" || !ok {
		t.Errorf("the number 3 is that of %q (%t)", id, ok)
	}
}
