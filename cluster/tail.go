package cluster

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pembadb/pemba/graph"
)

// Bounds of what watching costs.
const (
	// tailChangesMax and tailBytesMax bound what one tail holds, and
	// tailsBytesMax, roughly, what all hold together: when it is reached, each
	// keeps but its newest part.
	tailChangesMax = 4096
	tailBytesMax   = 1 << 20
	tailsBytesMax  = 64 << 20

	// catchUpReads is how many watchers that are behind read the log at once.
	catchUpReads = 4

	// A page of the log has at most so many changes, and fewer while they are
	// so large that there are more than pageBytes in one.
	pageChangesStart = 64
	pageChangesMax   = 1024
	pageBytes        = 64 << 10

	// wakePause is the least time between two times that a tail wakes its
	// watchers, for each of them: a call of Next takes some 2 us in all, so they
	// take up to a fifth or so of a core, however often the store is written. The
	// first change after a pause wakes at once.
	wakePause = 10 * time.Microsecond
)

// watches is what the watchers of a node share.
type watches struct {
	// seen is how far each change was made known to the tails. The FSM sets it,
	// behind the entry and its note.
	seen atomic.Pointer[seen]
	// turns has room for catchUpReads.
	turns chan struct{}
	// bytes counts what all tails hold.
	bytes atomic.Int64
	// watched counts the tails, so that a node without watchers pays nothing.
	watched atomic.Int32
	// reads counts the pages of the log that were read, by the tails and by
	// watchers that are behind.
	reads atomic.Uint64

	mu       sync.Mutex
	tails    map[graph.StoreID]*tail
	watchers int
	closed   bool
}

// seen is a revision and its stamp.
type seen struct {
	revision graph.Revision
	stamp    graph.Instant
}

// end returns the position behind it.
func (s *seen) end() graph.Position { return graph.Position{Revision: s.revision + 1} }

func isBefore(a, b graph.Position) bool {
	return a.Revision < b.Revision || (a.Revision == b.Revision && a.Offset < b.Offset)
}

func (ws *watches) init(applied graph.Applied) {
	ws.turns = make(chan struct{}, catchUpReads)
	ws.tails = map[graph.StoreID]*tail{}
	ws.note(0, applied)
}

// note tells that an entry was applied, which may have changed a store; zero
// for none. The FSM calls it behind each.
func (ws *watches) note(store graph.StoreID, applied graph.Applied) {
	if store != 0 && ws.watched.Load() > 0 {
		ws.mu.Lock()
		t := ws.tails[store]
		ws.mu.Unlock()
		if t != nil {
			t.note()
		}
	}
	// Behind the note, so that a tail that nothing was noted to has missed
	// nothing up to here.
	ws.seen.Store(&seen{applied.Revision, applied.Stamp})
}

// enter adds a watcher to the tail of a store, with which the tail begins if
// it is the first.
func (ws *watches) enter(n *Node, store graph.StoreID, w *Watcher) error {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.closed {
		return ErrShuttingDown
	}
	if ws.watchers >= n.config.WatchersMax {
		return fmt.Errorf("%w: %d watchers follow, and more are not admitted", ErrTooBusy, ws.watchers)
	}
	t := ws.tails[store]
	if t == nil {
		t = &tail{
			store: store, wake: make(chan struct{}, 1), stop: make(chan struct{}),
			members: map[*Watcher]struct{}{},
		}
		ws.tails[store] = t
		// Counted before seen is loaded: what is made known from now on is noted
		// here, and what was before is in the log by now.
		ws.watched.Add(1)
		t.restart(ws.seen.Load())
		if info, ok := n.db().StoreInfo(store); ok {
			t.newest = info.Changed
		}
		n.loops.Add(1)
		go n.followLog(t)
		t.note()
	}
	ws.watchers++
	w.tail = t
	t.mu.Lock()
	t.members[w] = struct{}{}
	t.mu.Unlock()
	return nil
}

// leave takes a watcher away, and ends its tail with the last.
func (ws *watches) leave(w *Watcher) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.watchers--
	t := w.tail
	t.mu.Lock()
	delete(t.members, w)
	last := len(t.members) == 0
	t.mu.Unlock()
	if last {
		close(t.stop)
		ws.forget(t)
	}
}

// forget takes a tail out, so that later watchers begin another. It needs
// ws.mu.
func (ws *watches) forget(t *tail) {
	if ws.tails[t.store] == t {
		delete(ws.tails, t.store)
		ws.watched.Add(-1)
	}
}

// close admits no more watchers.
func (ws *watches) close() {
	ws.mu.Lock()
	ws.closed = true
	ws.mu.Unlock()
}

// figures returns how many watch how many stores, and by how many revisions the
// slowest is behind what its tail has read.
func (ws *watches) figures() (watchers, stores int, lag uint64) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, t := range ws.tails {
		t.mu.Lock()
		for w := range t.members {
			if at := w.at.Load(); at <= uint64(t.newest) {
				lag = max(lag, uint64(t.newest)+1-at)
			}
		}
		t.mu.Unlock()
	}
	return ws.watchers, len(ws.tails), lag
}

// errBehind says that a position is before what a tail holds.
var errBehind = errors.New("the position is behind")

// A tail is the end of the change log of one store, kept in memory while
// somebody watches it. One goroutine reads the log as it grows; all watchers
// share what it read.
//
// Invariant: parts are all that the log has in from..to, without gaps.
type tail struct {
	store graph.StoreID
	wake  chan struct{} // Has room for one.
	stop  chan struct{} // Closed when the last watcher left.

	mu      sync.Mutex
	members map[*Watcher]struct{}
	// parts are shared with watchers: an element that is there is never
	// changed.
	parts    []graph.LoggedRevision
	changes  int
	bytes    int64
	from, to graph.Position
	// stamp is that of revision to.Revision-1 when to.Offset is 0.
	stamp graph.Instant
	// newest is the revision of the last part that ever was, or the last that had
	// changed the store when the tail began.
	newest graph.Revision
	// noted counts the calls of note, and read how many of them there were when
	// the log was last read to its end. While they differ, the log may hold more
	// behind to than to says.
	//
	// Invariant: read <= noted.
	noted, read uint64
	// err is why the tail came to its end.
	err error
	// changed is closed when to moves or err comes; nil while nobody waits.
	changed chan struct{}
}

// note tells that the store may have been changed.
func (t *tail) note() {
	t.mu.Lock()
	t.noted++
	t.mu.Unlock()
	nudge(t.wake)
}

// restart lets the tail begin behind s, with nothing in it. It needs t.mu, or
// that nobody else has t.
func (t *tail) restart(s *seen) {
	t.parts, t.changes, t.bytes = nil, 0, 0
	t.from, t.to, t.stamp = s.end(), s.end(), s.stamp
}

// broadcast wakes the watchers. It needs t.mu.
func (t *tail) broadcast() {
	if t.changed != nil {
		close(t.changed)
		t.changed = nil
	}
}

// tailAfter returns at once what there is behind a position, and what is closed
// when there is more.
func (n *Node) tailAfter(t *tail, position graph.Position) (batch WatchBatch, changed <-chan struct{}, err error) {
	// Loaded before the tail is looked at: see watches.note.
	seen := n.watches.seen.Load()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return WatchBatch{}, nil, t.err
	}
	if isBefore(position, t.from) {
		return WatchBatch{}, nil, errBehind
	}
	if t.changed == nil {
		t.changed = make(chan struct{})
	}
	if t.read == t.noted && isBefore(t.to, seen.end()) {
		t.to, t.stamp = seen.end(), seen.stamp
	}
	batch.Position = position
	if isBefore(t.to, position) {
		return batch, t.changed, nil // It begins at what is still to come.
	}
	if batch.Position = t.to; t.to.Offset == 0 {
		batch.reach(t.to.Revision-1, t.stamp)
	}
	first := sort.Search(len(t.parts), func(i int) bool { return isBefore(position, t.parts[i].End()) })
	if first == len(t.parts) {
		return batch, t.changed, nil
	}
	batch.Revisions = t.parts[first:len(t.parts):len(t.parts)]
	if part := &t.parts[first]; part.Revision == position.Revision && part.Offset < position.Offset {
		if skip := position.Offset - part.Offset; int(skip) < len(part.Changes) {
			batch.Revisions = slices.Clone(batch.Revisions)
			cutFront(&batch.Revisions[0], skip)
		} else {
			batch.Revisions = batch.Revisions[1:] // The position is at the revision's end.
		}
	}
	return batch, t.changed, nil
}

// cutFront drops the first changes of a part.
func cutFront(r *graph.LoggedRevision, skip uint32) {
	r.Changes = r.Changes[skip:]
	r.Offset += skip
	r.Sequence += uint64(skip)
	r.SchemaChanged = false // It is told with the first part.
}

// pagesPerWake is how many pages a tail reads at most before it wakes its
// watchers. They must find them: the pages are fewer than a tail holds.
const pagesPerWake = 4

// followLog reads the log of a tail's store as it grows, until the last watcher
// leaves or there is no more to be had.
func (n *Node) followLog(t *tail) {
	defer n.loops.Done()
	defer func() { n.watches.bytes.Add(-t.bytes) }() // Nobody else changes it.
	var p page
	pause := time.NewTimer(time.Hour)
	defer pause.Stop()
	for {
		select {
		case <-t.stop:
			return
		case <-n.stop:
			return
		case <-t.wake:
		}
		for more := true; more; {
			var err error
			for pages := 0; more && pages < pagesPerWake && err == nil; pages++ {
				more, err = n.readTail(t, &p)
			}
			if err != nil {
				n.endTail(t, err)
				return
			}
			t.mu.Lock()
			t.broadcast()
			watchers := len(t.members)
			t.mu.Unlock()
			pause.Reset(time.Duration(watchers) * wakePause)
			select {
			case <-t.stop:
				return
			case <-n.stop:
				return
			case <-pause.C:
			}
		}
	}
}

// readTail reads one page. It reports whether there may be more.
func (n *Node) readTail(t *tail, p *page) (more bool, err error) {
	ws := &n.watches
	// Both taken first: the log as it is read next has all that they count.
	seen := ws.seen.Load()
	t.mu.Lock()
	from, noted := t.to, t.noted
	t.mu.Unlock()
	ws.reads.Add(1)
	revisions, err := n.changes(t.store, from, p.size())
	gone := errors.Is(err, graph.ErrRevisionGone)
	if err != nil && !gone {
		return false, err
	}
	full := p.note(revisions)

	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.bytes
	defer func() { ws.bytes.Add(t.bytes - before) }()
	if gone {
		// The log was pruned before it was read here. Each watcher learns by
		// itself whether that is so for its own position.
		t.restart(seen)
		return true, nil
	}
	for i := range revisions {
		r := &revisions[i]
		t.parts = append(t.parts, *r)
		t.changes += changesOf(r)
		t.bytes += bytesOf(r)
		t.to, t.stamp, t.newest = r.End(), r.Stamp, r.Revision
	}
	if !full {
		t.read = noted
		if isBefore(t.to, seen.end()) {
			t.to, t.stamp = seen.end(), seen.stamp
		}
	}
	t.trim(ws.bytes.Load()+t.bytes-before > tailsBytesMax)
	return full, nil
}

// trim drops the oldest half of what is too much, or all but the newest part
// if all tails together hold too much. Half, so that the others need not be
// copied for each part that comes; copied, since watchers share the array.
func (t *tail) trim(scarce bool) {
	if t.changes <= tailChangesMax && t.bytes <= tailBytesMax && !scarce {
		return
	}
	changesMax, bytesMax := tailChangesMax/2, int64(tailBytesMax/2)
	if scarce {
		changesMax, bytesMax = 0, 0
	}
	drop := 0
	for ; drop < len(t.parts)-1 && (t.changes > changesMax || t.bytes > bytesMax); drop++ {
		t.changes -= changesOf(&t.parts[drop])
		t.bytes -= bytesOf(&t.parts[drop])
		t.from = t.parts[drop].End()
	}
	if drop > 0 {
		t.parts = slices.Clone(t.parts[drop:])
	}
}

// endTail ends a tail with an error, which its watchers get.
func (n *Node) endTail(t *tail, err error) {
	n.watches.mu.Lock()
	defer n.watches.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	// Both at once: a tail that is told of no more changes must not be taken for
	// one that has seen them all.
	n.watches.forget(t)
	t.err = err
	t.broadcast()
}

// A page says how many changes to read at once. It learns from the last ones.
type page struct{ limit int }

func (p *page) size() int {
	if p.limit == 0 {
		p.limit = pageChangesStart
	}
	return p.limit
}

// note learns from what was read, and reports whether it was as much as was
// asked for, so that there may be more.
func (p *page) note(revisions []graph.LoggedRevision) (full bool) {
	changes, bytes := 0, int64(0)
	for i := range revisions {
		changes += changesOf(&revisions[i])
		bytes += bytesOf(&revisions[i])
	}
	full = changes >= p.limit
	switch {
	case bytes > pageBytes:
		p.limit = max(1, p.limit/2)
	case full && bytes < pageBytes/2:
		p.limit = min(pageChangesMax, p.limit*2)
	}
	return full
}

// changesOf counts as graph.DB.Changes does for its limit.
func changesOf(r *graph.LoggedRevision) int { return max(1, len(r.Changes)) }

// bytesOf estimates what a part takes in memory.
func bytesOf(r *graph.LoggedRevision) int64 {
	const head, change = 160, 320 // The structs, and what strings take beside their bytes.
	n := head + len(r.RecordedActor) + len(r.Metadata)
	for i := range r.Changes {
		t := &r.Changes[i].Tuple
		n += change + len(t.Object.ID) + len(t.Subject.ID) + len(t.Context)
		for _, source := range t.Sources {
			n += len(source)
		}
	}
	return int64(n)
}
