package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/pembadb/pemba/graph"
)

// pause is so short that batches without changes come between the others.
const pause = 2 * time.Millisecond

func watch(t testing.TB, n *Node, store graph.StoreID, from graph.Position) *Watcher {
	t.Helper()
	w, err := n.Watch(store, from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

// next returns the next batch that has changes.
func next(t testing.TB, w *Watcher) WatchBatch {
	t.Helper()
	for {
		batch, err := w.Next(testContext(t), pause)
		if err != nil {
			t.Fatal(err)
		}
		if len(batch.Revisions) > 0 {
			return batch
		}
	}
}

// A follower checks what a watcher delivers against the numbers of the change
// log: every change once, in order.
type follower struct {
	position graph.Position
	sequence uint64 // Of the last change.
	schemas  int
	reached  []mark
}

// A mark says that at a revision so many changes had been made.
type mark struct {
	revision graph.Revision
	sequence uint64
}

func (f *follower) take(b WatchBatch) error {
	for i := range b.Revisions {
		r := &b.Revisions[i]
		if at := (graph.Position{Revision: r.Revision, Offset: r.Offset}); isBefore(at, f.position) {
			return fmt.Errorf("a part at %v comes after %v", at, f.position)
		}
		if r.SchemaChanged {
			f.schemas++
		}
		if len(r.Changes) > 0 && r.Sequence != f.sequence+1 {
			return fmt.Errorf("change %d of revision %d follows %d", r.Sequence, r.Revision, f.sequence)
		}
		if len(r.Changes) > pageChangesMax || int(r.Offset)+len(r.Changes) > r.Count {
			return fmt.Errorf("a part of revision %d has %d changes at %d of %d", r.Revision, len(r.Changes), r.Offset, r.Count)
		}
		f.sequence += uint64(len(r.Changes))
		f.position = r.End()
	}
	if isBefore(b.Position, f.position) || (b.Reached != 0 && b.Position != graph.Position{Revision: b.Reached + 1}) {
		return fmt.Errorf("position %v and reached %d behind %v", b.Position, b.Reached, f.position)
	}
	f.position = b.Position
	if b.Reached != 0 {
		f.reached = append(f.reached, mark{b.Reached, f.sequence})
	}
	return nil
}

// marksOf reads the whole log: how many changes there were after each revision.
func marksOf(t testing.TB, n *Node) (marks []mark) {
	t.Helper()
	var position graph.Position
	var sequence uint64
	for {
		revisions, err := n.Changes(graph.DefaultStore, position, 1000)
		if err != nil {
			t.Fatal(err)
		}
		if len(revisions) == 0 {
			return marks
		}
		for i := range revisions {
			sequence += uint64(len(revisions[i].Changes))
			position = revisions[i].End()
			marks = append(marks, mark{revisions[i].Revision, sequence})
		}
	}
}

// checkReached checks that all of a revision was delivered when it was said to
// be reached.
func (f *follower) checkReached(marks []mark) error {
	last := mark{}
	for _, at := range f.reached {
		for len(marks) > 0 && marks[0].revision <= at.revision {
			last, marks = marks[0], marks[1:]
		}
		if at.sequence != last.sequence {
			return fmt.Errorf("at revision %d there are %d changes, and it was reached after %d", at.revision, last.sequence, at.sequence)
		}
	}
	return nil
}

// writeParts writes requests of one change and of many, and returns how many
// changes that were.
func writeParts(t testing.TB, n *Node, random *rand.Rand, requests int) (changes uint64) {
	t.Helper()
	for i := range requests {
		m := &graph.Mutation{Store: graph.DefaultStore}
		count := 1 + random.IntN(3)
		if random.IntN(25) == 0 {
			count = 1200
		}
		for j := range count {
			m.Updates = append(m.Updates, graph.Update{Operation: graph.Touch, Tuple: viewer(fmt.Sprintf("%d-%d", i, j), fmt.Sprint(random.IntN(1e9)))})
		}
		changes += uint64(write(t, n, m).Changed)
	}
	return changes
}

// Watchers that stop and go on anywhere, at each change, get each change once,
// in order, however much is written meanwhile.
func TestWatchDeliversOnceInOrder(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	n := open(t, testConfig(t, t.TempDir()))
	writeSchema(t, n)
	// The machine may be busy, so there is no deadline but that of all tests.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	const watchers = 6
	followers := make([]follower, watchers)
	errs := make(chan error, watchers)
	target := make(chan struct{}) // Closed when total is known.
	var total uint64
	for i := range watchers {
		go func() {
			f, random := &followers[i], rand.New(rand.NewPCG(seed, uint64(i)))
			errs <- func() error {
				for {
					w, err := n.Watch(graph.DefaultStore, f.position)
					if err != nil {
						return err
					}
					for random.IntN(8) > 0 {
						batch, err := w.Next(ctx, pause)
						if err == nil && len(batch.Revisions) > 0 && random.IntN(3) == 0 {
							// As if the connection broke within the batch.
							if err := f.take(cutBatch(batch, random)); err != nil {
								w.Close()
								return err
							}
							break
						}
						if err = errors.Join(err, f.take(batch)); err != nil {
							w.Close()
							return err
						}
						if random.IntN(10) == 0 {
							time.Sleep(time.Duration(random.IntN(20)) * time.Millisecond)
						}
					}
					w.Close()
					select {
					case <-target:
						if f.sequence >= total {
							return nil
						}
					default:
					}
				}
			}()
		}()
	}
	total = writeParts(t, n, rand.New(rand.NewPCG(seed, 99)), 120)
	close(target)
	for range watchers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	marks := marksOf(t, n)
	for i := range followers {
		f := &followers[i]
		if err := f.checkReached(marks); err != nil || f.sequence != total || f.schemas != 1 {
			t.Errorf("watcher %d: %d changes of %d, %d schemas, %v", i, f.sequence, total, f.schemas, err)
		}
		if len(f.reached) == 0 {
			t.Errorf("watcher %d never reached a revision", i)
		}
	}
	n.watches.mu.Lock()
	defer n.watches.mu.Unlock()
	if n.watches.watchers != 0 || len(n.watches.tails) != 0 || n.watches.watched.Load() != 0 {
		t.Errorf("%d watchers and %d tails are left", n.watches.watchers, len(n.watches.tails))
	}
}

// cutBatch keeps a part of a batch that ends within a revision or at its end.
func cutBatch(b WatchBatch, random *rand.Rand) WatchBatch {
	keep := 1 + random.IntN(len(b.Revisions))
	cut := WatchBatch{Revisions: append([]graph.LoggedRevision(nil), b.Revisions[:keep]...)}
	last := &cut.Revisions[keep-1]
	if len(last.Changes) > 1 {
		last.Changes = last.Changes[:1+random.IntN(len(last.Changes)-1)]
	}
	cut.Position = last.End()
	return cut
}

// A revision of thousands of changes comes in parts, from any offset on, both
// from the log and from what is held in memory.
func TestWatchWithinARevision(t *testing.T) {
	t.Parallel()
	n := open(t, testConfig(t, t.TempDir()))
	writeSchema(t, n)
	first := watch(t, n, graph.DefaultStore, graph.Position{})
	next(t, first) // The schema; from here on the tail holds all.
	m := &graph.Mutation{}
	for i := range 3000 {
		m.Updates = append(m.Updates, graph.Update{Operation: graph.Create, Tuple: viewer(fmt.Sprint(i), "hanna")})
	}
	big := write(t, n, m).Revision
	end := graph.Position{Revision: big + 1}
	for isBefore(first.position, end) {
		next(t, first)
	}
	for _, test := range []struct {
		name   string
		behind bool
	}{{"held", false}, {"read again", true}} {
		if test.behind {
			for i := range 5 { // More than is held.
				m := &graph.Mutation{}
				for j := range 1000 {
					m.Updates = append(m.Updates, graph.Update{Operation: graph.Create, Tuple: viewer(fmt.Sprintf("%d-%d", i, j), "hanna")})
				}
				end = graph.Position{Revision: write(t, n, m).Revision + 1}
			}
			for isBefore(first.position, end) {
				next(t, first)
			}
		}
		first.tail.mu.Lock()
		if held := !isBefore(graph.Position{Revision: big}, first.tail.from); held == test.behind {
			t.Errorf("%s: the tail holds %v to %v", test.name, first.tail.from, first.tail.to)
		}
		if tail := first.tail; tail.changes > tailChangesMax || tail.bytes > tailBytesMax {
			t.Errorf("%s: the tail holds %d changes, %d bytes", test.name, tail.changes, tail.bytes)
		}
		first.tail.mu.Unlock()
		for _, offset := range []uint32{0, 1, 63, 64, 65, 1023, 1024, 2999, 3000, 1 << 31} {
			w := watch(t, n, graph.DefaultStore, graph.Position{Revision: big, Offset: offset})
			seen := min(offset, 3000)
			for seen < 3000 {
				for _, r := range next(t, w).Revisions {
					if r.Revision > big {
						break
					}
					if r.Offset != seen || r.Sequence != uint64(seen)+1 || len(r.Changes) == 0 ||
						r.Changes[0].Tuple.Object.ID != fmt.Sprint(seen) {
						t.Fatalf("%s: from offset %d: %d changes at %d, number %d, after %d", test.name, offset, len(r.Changes), r.Offset, r.Sequence, seen)
					}
					seen += uint32(len(r.Changes))
				}
			}
			w.Close()
		}
	}
}

// A thousand watchers of one store get the same, and of another store nothing
// but how far it came.
func TestThousandWatchers(t *testing.T) {
	t.Parallel()
	config := testConfig(t, t.TempDir())
	config.WatchersMax = 1000
	n := open(t, config)
	writeSchema(t, n)
	from := graph.Position{Revision: n.db().Applied().Revision + 1}
	const writes = 100
	done := make(chan error, config.WatchersMax)
	watchers := make([]*Watcher, config.WatchersMax)
	for i := range watchers {
		watchers[i] = watch(t, n, graph.DefaultStore, from)
	}
	if w, err := n.Watch(graph.DefaultStore, from); !errors.Is(err, ErrTooBusy) {
		t.Errorf("one more: %v, %v", w, err)
	}
	ctx := testContext(t)
	for _, w := range watchers {
		go func() {
			f := follower{position: from}
			for f.sequence < writes {
				batch, err := w.Next(ctx, time.Second)
				if err = errors.Join(err, f.take(batch)); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for i := range writes {
		write(t, n, create(viewer(fmt.Sprint(i), "hanna")))
	}
	for range watchers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	m, err := n.Metrics()
	if err != nil {
		t.Fatal(err)
	}
	if m.Watchers != 1000 || m.WatchersMax != 1000 || m.WatchedStores != 1 || m.WatchLag != 0 || m.WatchBytes <= 0 {
		t.Errorf("%d of %d watchers of %d stores, lag %d, %d bytes", m.Watchers, m.WatchersMax, m.WatchedStores, m.WatchLag, m.WatchBytes)
	}
	for _, w := range watchers {
		w.Close()
		w.Close()
	}
	// The tail gives back what it held as soon as its goroutine is gone.
	eventually(t, "that nothing is held for watches", func() bool { return n.watches.bytes.Load() == 0 })
	if m, err = n.Metrics(); err != nil || m.Watchers != 0 || m.WatchedStores != 0 || m.WatchBytes != 0 {
		t.Errorf("%d watchers of %d stores are left with %d bytes, %v", m.Watchers, m.WatchedStores, m.WatchBytes, err)
	}
}

// However many watch a store, a change of it is read from the log once; and
// whoever comes back from far behind reads for himself alone.
func TestWatchersShareTheirReads(t *testing.T) {
	t.Parallel()
	const writes = 40
	for _, count := range []int{1, 300} {
		n := open(t, testConfig(t, t.TempDir()))
		writeSchema(t, n)
		// The FSM tells the tails of an entry behind its result.
		from := graph.Position{Revision: n.db().Applied().Revision + 1}
		eventually(t, "the schema is made known", func() bool { return !isBefore(n.watches.seen.Load().end(), from) })
		ctx := testContext(t)
		took, failed := make(chan struct{}, count), make(chan error, count)
		for range count {
			w := watch(t, n, graph.DefaultStore, from)
			go func() {
				f := follower{position: from}
				for f.sequence < writes {
					batch, err := w.Next(ctx, time.Hour)
					before := f.sequence
					if err = errors.Join(err, f.take(batch)); err != nil {
						failed <- err
						return
					}
					for range f.sequence - before {
						took <- struct{}{}
					}
				}
			}()
		}
		for i := range writes {
			write(t, n, create(viewer(fmt.Sprint(i), "hanna")))
			for range count {
				select {
				case <-took: // Everybody has it before there is more.
				case err := <-failed:
					t.Fatal(err)
				}
			}
		}
		// One for each change, and one with which the tail begins.
		shared := n.watches.reads.Load()
		if shared < writes || shared > writes+1 {
			t.Errorf("%d watchers: the log was read %d times for %d changes", count, shared, writes)
		}
		behind := watch(t, n, graph.DefaultStore, graph.Position{})
		if batch := next(t, behind); len(batch.Revisions) == 0 || batch.Revisions[0].Revision >= from.Revision {
			t.Errorf("one who is behind got %+v", batch)
		}
		if own := n.watches.reads.Load() - shared; own == 0 || own > 2 {
			t.Errorf("%d watchers: one who is behind read %d pages", count, own)
		}
	}
}

// Where nothing changes, a watcher still learns how far there was nothing.
func TestWatchTellsHowFarNothingChanged(t *testing.T) {
	t.Parallel()
	now := newClock(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))
	config := testConfig(t, t.TempDir())
	config.Now = now.Now
	n := open(t, config)
	writeSchema(t, n)
	write(t, n, create(viewer("0", "hanna")))
	newest := n.db().Applied().Revision
	for _, from := range []graph.Position{{Revision: newest + 1}, {Revision: newest, Offset: 1}} {
		w := watch(t, n, graph.DefaultStore, from)
		batch, err := w.Next(testContext(t), pause)
		if err != nil || len(batch.Revisions) > 0 || batch.Reached != newest || batch.Instant != now.instant() ||
			batch.Position != (graph.Position{Revision: newest + 1}) {
			t.Errorf("from %v: %+v, %v", from, batch, err)
		}
		w.Close()
	}
	w := watch(t, n, graph.DefaultStore, graph.Position{Revision: newest + 1})
	now.advance(time.Second)
	refused, err := n.Write(testContext(t), create(viewer("0", "hanna")))
	if err != nil || refused.Refusal == nil {
		t.Fatal(refused, err)
	}
	for wait := time.Now().Add(deadline); ; {
		batch, err := w.Next(testContext(t), pause)
		if err != nil || len(batch.Revisions) > 0 || batch.Reached > refused.Revision || time.Now().After(wait) {
			t.Fatalf("%+v, %v", batch, err)
		}
		if batch.Reached == refused.Revision {
			if batch.Instant != now.instant() {
				t.Errorf("the instant is %v", batch.Instant)
			}
			break
		}
	}
	// Ahead of what there is, only that there is nothing yet.
	ahead := watch(t, n, graph.DefaultStore, graph.Position{Revision: refused.Revision + 1, Offset: 3})
	if batch, err := ahead.Next(testContext(t), pause); err != nil || batch.Reached != 0 || len(batch.Revisions) > 0 {
		t.Errorf("%+v, %v", batch, err)
	}
}

func TestWatchEnds(t *testing.T) {
	t.Parallel()
	config := testConfig(t, t.TempDir())
	n := open(t, config)
	writeSchema(t, n)
	newest := graph.Position{Revision: n.db().Applied().Revision + 1}

	if w, err := n.Watch(77, graph.Position{}); !errors.Is(err, graph.ErrUnknownStore) {
		t.Errorf("an unknown store: %v, %v", w, err)
	}
	if w, err := n.Watch(graph.DefaultStore, graph.Position{Revision: 1 << 40}); !errors.Is(err, ErrRevisionAhead) {
		t.Errorf("a position of the future: %v, %v", w, err)
	}
	w := watch(t, n, graph.DefaultStore, newest)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := w.Next(ctx, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller who leaves: %v", err)
	}

	store := createStore(t, n, "other", nil)
	var waiting sync.WaitGroup
	dropped := make([]error, 10)
	for i := range dropped {
		w := watch(t, n, store, graph.Position{Revision: n.db().Applied().Revision + 1})
		waiting.Go(func() { _, dropped[i] = w.Next(testContext(t), time.Hour) })
	}
	dropStore(t, n, store)
	waiting.Wait()
	for _, err := range dropped {
		if !errors.Is(err, graph.ErrUnknownStore) {
			t.Errorf("a store that was dropped: %v", err)
		}
	}
	if w, err := n.Watch(store, graph.Position{}); !errors.Is(err, graph.ErrUnknownStore) {
		t.Errorf("a store that was dropped before: %v, %v", w, err)
	}

	closed := make(chan error)
	go func() {
		_, err := w.Next(testContext(t), time.Hour)
		closed <- err
	}()
	time.Sleep(5 * time.Millisecond)
	closeNode(t, n)
	if err := <-closed; !errors.Is(err, ErrShuttingDown) {
		t.Errorf("a node that closes: %v", err)
	}
	if _, err := w.Next(testContext(t), time.Hour); !errors.Is(err, ErrShuttingDown) {
		t.Errorf("a closed node: %v", err)
	}
	if w, err := n.Watch(graph.DefaultStore, newest); !errors.Is(err, ErrShuttingDown) {
		t.Errorf("a closed node: %v, %v", w, err)
	}
}

// A position outlives the node, and a node that crashed goes on where it was.
func TestWatchAfterARestart(t *testing.T) {
	t.Parallel()
	config := testConfig(t, t.TempDir())
	n := open(t, config)
	writeSchema(t, n)
	random := rand.New(rand.NewPCG(1, 2))
	total := writeParts(t, n, random, 40)
	var f follower
	w := watch(t, n, graph.DefaultStore, f.position)
	for f.sequence < total/2 {
		if err := f.take(cutBatch(next(t, w), random)); err != nil {
			t.Fatal(err)
		}
		w.Close()
		w = watch(t, n, graph.DefaultStore, f.position)
	}
	w.Close()
	config.DataDir = crashCopy(t, n)
	again := open(t, config)
	total += writeParts(t, again, random, 10)
	w = watch(t, again, graph.DefaultStore, f.position)
	for f.sequence < total {
		if err := f.take(next(t, w)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.checkReached(marksOf(t, again)); err != nil {
		t.Error(err)
	}
}

// What is pruned away while somebody is behind is gone for him, and with a clear
// error; whoever has come further goes on.
func TestWatchBesidePruning(t *testing.T) {
	t.Parallel()
	now := newClock(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))
	config := testConfig(t, t.TempDir())
	config.Now = now.Now
	n := open(t, config)
	writeSchema(t, n)
	setRetention(t, n, graph.DefaultStore, graph.Retention(time.Hour.Microseconds()))
	behind := watch(t, n, graph.DefaultStore, graph.Position{})
	if m, err := n.Metrics(); err != nil || m.WatchLag == 0 {
		t.Errorf("one at the beginning lags by %d, %v", m.WatchLag, err)
	}
	next(t, behind)
	ahead := watch(t, n, graph.DefaultStore, graph.Position{})
	var newest graph.Revision
	for i := range 5 {
		now.advance(time.Hour)
		newest = write(t, n, create(viewer(fmt.Sprint(i), "hanna"))).Revision
	}
	for isBefore(ahead.position, graph.Position{Revision: newest + 1}) {
		next(t, ahead)
	}
	// More than is held, so that who is behind needs the log.
	for i := range 5 {
		m := &graph.Mutation{}
		for j := range 1000 {
			m.Updates = append(m.Updates, graph.Update{Operation: graph.Create, Tuple: viewer(fmt.Sprintf("%d-%d", i, j), "hanna")})
		}
		newest = write(t, n, m).Revision
	}
	for isBefore(ahead.position, graph.Position{Revision: newest + 1}) {
		next(t, ahead)
	}
	write(t, n, &graph.Mutation{Prune: &graph.Prune{}})
	_, err := behind.Next(testContext(t), pause)
	var gone *graph.RevisionGoneError
	if !errors.As(err, &gone) || gone.Oldest == 0 || gone.OldestAt == 0 {
		t.Errorf("what was pruned: %v", err)
	}
	t.Log(err)
	if w, err := n.Watch(graph.DefaultStore, graph.Position{}); !errors.Is(err, graph.ErrRevisionGone) {
		t.Errorf("from the beginning: %v, %v", w, err)
	}
	if w, err := n.Watch(graph.DefaultStore, graph.Position{Revision: gone.Oldest}); err != nil {
		t.Errorf("from the oldest on: %v", err)
	} else {
		w.Close()
	}
	last := write(t, n, create(viewer("last", "hanna"))).Revision
	if batch := next(t, ahead); batch.Revisions[0].Revision != last {
		t.Errorf("got %+v", batch)
	}
}
