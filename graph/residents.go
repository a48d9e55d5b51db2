package graph

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/pembadb/pemba/graph/resident"
)

// DefaultResidentBytes bounds what is kept in memory where Config.ResidentBytes is zero.
const DefaultResidentBytes = 1 << 30

// residents keeps the adjacency of all stores in memory, as far as there is room. One
// goroutine reads the stores through when the DB was opened; behind that it fills in what
// was asked for and is not there, and gives up what was not asked for when the room is
// used up. Every batch that changes current tuples comes by here, before Pebble has it
// (apply). What is kept here decides nothing that Commit does.
type residents struct {
	db    *DB
	limit int64
	// total is what the graphs of all stores take.
	total atomic.Int64

	// missing are ends that were asked for and not there. Who finds it full goes on:
	// another will ask again.
	missing chan missingList
	// over is told when the room is used up.
	over chan struct{}

	mu      sync.Mutex
	stop    chan struct{} // closed to end the goroutine; nil while there is none
	stopped chan struct{}
	// unread are the stores that have not been read through.
	unread []*store
}

// A missingList is the list of one end in a store.
type missingList struct {
	store             *store
	relation, subject Shape
	direction         direction
	number            Number
}

// missingMax is how many lists wait to be filled in at most.
const missingMax = 1 << 12

func newResidents(db *DB) *residents {
	rs := &residents{
		db: db, limit: db.config.ResidentBytes,
		missing: make(chan missingList, missingMax), over: make(chan struct{}, 1),
	}
	if rs.limit == 0 {
		rs.limit = DefaultResidentBytes
	}
	if rs.limit < 0 {
		return rs
	}
	for _, st := range db.stores {
		st.resident = resident.New(uint64(db.Applied().Revision), &rs.total)
		st.named.Store(resident.NewNames(&rs.total))
		rs.unread = append(rs.unread, st)
	}
	// The small ones first: they are there at once.
	slices.SortFunc(rs.unread, func(a, b *store) int {
		if a.tuples != b.tuples {
			if a.tuples < b.tuples {
				return -1
			}
			return 1
		}
		return int(a.id) - int(b.id)
	})
	return rs
}

// create begins with a store that is empty until the revision.
func (rs *residents) create(st *store, at Revision) {
	if rs.limit >= 0 {
		st.resident = resident.New(uint64(at), &rs.total)
		st.resident.Complete()
		st.named.Store(resident.NewNames(&rs.total))
		st.named.Load().Complete()
	}
}

// apply takes over what a batch does to current tuples. It comes before the batch is in
// Pebble, so that no reader can have a revision that is not here yet.
func (rs *residents) apply(b *pebble.Batch, revision Revision) error {
	if rs.limit < 0 {
		return nil
	}
	var changer resident.Changer
	var st, changed *store
	end := func() {
		if changed != nil {
			changer.End()
			changed = nil
		}
	}
	defer end()
	for r := b.Reader(); len(r) > 0; {
		kind, key, value, ok, err := r.Next()
		if err != nil || !ok {
			return errors.Join(err, corruptf("a batch of revision %d cannot be read", revision))
		}
		space := key[0]
		dropped := kind == pebble.InternalKeyKindRangeDelete
		if space != spaceForward && (space != spaceNumber || dropped) {
			continue
		}
		if kind != pebble.InternalKeyKindSet && kind != pebble.InternalKeyKindDelete && !dropped {
			return corruptf("a batch of revision %d has a record of kind %s for the key %x", revision, kind, cut(key))
		}
		if st == nil || st.id != storeOf(key) {
			end()
			if st = rs.db.writer.storeNumbered(rs.db, storeOf(key)); st == nil || st.resident == nil {
				return corruptf("a batch of revision %d changes the store %d, which is not there", revision, storeOf(key))
			}
		}
		if space == spaceNumber {
			n, err := decodeNumber(value)
			if err != nil || kind != pebble.InternalKeyKindSet {
				return corruptf("a batch of revision %d takes back the name %x: %v", revision, cut(key), err)
			}
			rs.addName(st, key, n)
			continue
		}
		if changed == nil {
			changer, changed = st.resident.Begin(uint64(revision), rs.db.writer.catalogOf(st).typeOf), st
		}
		if dropped {
			changer.RemoveAll()
			st.named.Load().Forget()
			continue
		}
		edge, _, err := parseEdgeKey(key)
		if err != nil {
			return err
		}
		k := edge.edge(forward)
		if kind == pebble.InternalKeyKindSet {
			changer.Set(uint32(k.relation), uint32(k.subject), uint64(k.object), uint64(k.number), qualified(value))
		} else {
			changer.Remove(uint32(k.relation), uint32(k.subject), uint64(k.object), uint64(k.number))
		}
	}
	if rs.total.Load() > rs.limit {
		select {
		case rs.over <- struct{}{}:
		default:
		}
	}
	return nil
}

// addName takes over a record of spaceNumber.
func (rs *residents) addName(st *store, key []byte, n Number) {
	for {
		named := st.named.Load()
		named.Add(uint32(getShape(key[storeEnd:])), string(key[storeEnd+3:]), uint64(n))
		if st.named.Load() == named {
			return
		}
		// Those were given up meanwhile, and what came in their place may be completed.
	}
}

// qualified says that a tuple's value has what Edge or the tuple's life depends on.
func qualified(value []byte) bool {
	return len(value) == 0 || value[0]&^(valueVersionMask|valueSources) != 0
}

// storeNumbered returns a store, also the one that the commit creates.
func (w *writer) storeNumbered(db *DB, id StoreID) *store {
	if w.st != nil && w.st.id == id {
		return w.st
	}
	return db.stores[id]
}

// catalogOf returns a store's catalog with what the commit adds to it.
func (w *writer) catalogOf(st *store) *catalog {
	if w.st == st {
		return w.cat
	}
	return st.catalog
}

// ask has the list of an end filled in, soon or never.
func (rs *residents) ask(m missingList) {
	select {
	case rs.missing <- m:
	default:
	}
}

// start begins to fill in.
func (rs *residents) start() {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.limit < 0 || rs.stop != nil {
		return
	}
	rs.stop, rs.stopped = make(chan struct{}), make(chan struct{})
	go rs.run(rs.stop, rs.stopped)
}

// end ends what start began, and waits for it. start may go on with it.
func (rs *residents) end() {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.stop == nil {
		return
	}
	close(rs.stop)
	<-rs.stopped
	rs.stop, rs.stopped = nil, nil
}

var errStopped = errors.New("the DB is being closed")

func (rs *residents) run(stop, stopped chan struct{}) {
	defer close(stopped)
	for len(rs.unread) > 0 {
		err := rs.readThrough(rs.unread[0], stop)
		if errors.Is(err, errStopped) {
			return
		}
		if err != nil {
			// Reads will find out what is wrong, and say so to who can help.
			rs.db.listener.logger.Warn("a store's tuples could not be read into memory; they are read from disk",
				"store", rs.unread[0].id, "error", Damage(err))
			rs.unread[0].resident.StopLoading()
		}
		rs.unread = rs.unread[1:]
	}
	for {
		select {
		case <-stop:
			return
		case <-rs.over:
			rs.shed()
		case m := <-rs.missing:
			if err := rs.fill(m); err != nil {
				rs.db.listener.logger.Warn("tuples could not be read into memory; they are read from disk",
					"store", m.store.id, "error", Damage(err))
			}
		}
	}
}

// shed makes room, a tenth of all, from every store by its size.
func (rs *residents) shed() {
	want := rs.limit - rs.limit/10
	if rs.total.Load() <= rs.limit {
		return
	}
	rs.db.mu.Lock()
	stores := make([]*store, 0, len(rs.db.stores))
	for _, st := range rs.db.stores {
		stores = append(stores, st)
	}
	rs.db.mu.Unlock()
	var graphs, names int64
	for _, st := range stores {
		graphs += st.resident.Bytes()
		names += st.named.Load().Bytes()
	}
	share := float64(max(0, want-names)) / float64(max(1, graphs))
	for _, st := range stores {
		st.resident.Shed(int64(float64(st.resident.Bytes()) * share))
	}
	// Names cannot be given up one by one. They go where they alone have no room.
	slices.SortFunc(stores, func(a, b *store) int {
		return cmp.Compare(b.named.Load().Bytes(), a.named.Load().Bytes())
	})
	for _, st := range stores {
		if rs.total.Load() <= want {
			break
		}
		// Snapshots that have the old ones go on with them: of their revisions they have
		// all.
		old := st.named.Swap(resident.NewNames(&rs.total))
		old.Forget()
	}
}

// keepName keeps a name that was read from Pebble, if there is room.
func (rs *residents) keepName(named *resident.Names, typ Shape, id string, n Number) {
	if rs.total.Load() < rs.limit-rs.limit/10 {
		named.Keep(uint32(typ), id, uint64(n))
	}
}

// A still is Pebble held still to read tuples from.
type still struct {
	*pebble.Snapshot
	at Revision
	// catalog is the store's, of that revision or later.
	catalog *catalog
}

// hold returns the state of a store at some revision, which must be closed. ok is false
// while a staged change of the store is being committed.
func (rs *residents) hold(st *store) (s still, ok bool, err error) {
	snap := rs.db.pebble.NewSnapshot()
	applied, err := readRevision(snap)
	var unfinished *unfinishedStage
	if err == nil {
		unfinished, err = readUnfinished(snap)
	}
	if err != nil || unfinished != nil && unfinished.store == st.id {
		return still{}, false, errors.Join(err, snap.Close())
	}
	rs.db.mu.Lock()
	defer rs.db.mu.Unlock()
	return still{snap, applied.Revision, st.catalog}, true, nil
}

// await is hold that waits.
func (rs *residents) await(st *store, stop chan struct{}) (still, error) {
	for {
		if s, ok, err := rs.hold(st); ok || err != nil {
			return s, err
		}
		select {
		case <-stop:
			return still{}, errStopped
		case <-rs.over:
			rs.shed()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// readThrough fills in everything that a store has, until there is no more room.
func (rs *residents) readThrough(st *store, stop chan struct{}) error {
	s, err := rs.await(st, stop)
	if err != nil {
		return err
	}
	// The names first: each question begins with two.
	err = rs.readNames(st, s, stop)
	for _, d := range []direction{forward, reverse} {
		if err == nil {
			err = rs.readDirection(st, s, d, stop)
		}
	}
	if err = errors.Join(err, s.Close()); err != nil {
		if errors.Is(err, errNoRoom) {
			st.resident.StopLoading()
			return nil
		}
		return err
	}
	if err = rs.readMissed(st, stop); err == nil {
		st.resident.Pack()
	}
	if errors.Is(err, errNoRoom) {
		st.resident.StopLoading()
		return nil
	}
	return err
}

// readMissed fills in what was changed before it could be.
func (rs *residents) readMissed(st *store, stop chan struct{}) error {
	for !st.resident.Complete() {
		for few := range slices.Chunk(st.resident.Missed(), missedFew) {
			s, err := rs.await(st, stop)
			if err != nil {
				return err
			}
			for _, end := range few {
				d := forward
				if end.Direction == resident.Reverse {
					d = reverse
				}
				m := missingList{st, Shape(end.Relation), Shape(end.Subject), d, Number(end.Number)}
				if err = rs.fillFrom(s, m); err != nil {
					break
				}
			}
			if err = errors.Join(err, s.Close(), rs.look(stop)); err != nil {
				// Who goes on later begins with the whole store again.
				return err
			}
		}
	}
	return nil
}

// missedFew is how many lists are read of one state: soon the next ones were changed
// since, and could not be filled in.
const missedFew = 64

// readNames adds all names. Those that are given out meanwhile come with their batches.
func (rs *residents) readNames(st *store, s still, stop chan struct{}) error {
	named := st.named.Load() // Nobody sheds meanwhile.
	err := scan(s, appendStore(nil, spaceNumber, st.id), func(key, value []byte) error {
		n, err := decodeNumber(value)
		if err != nil {
			return err
		}
		rs.addName(st, key, n)
		return rs.look(stop)
	})
	if err == nil {
		named.Complete()
	}
	return err
}

// look says whether to go on reading.
func (rs *residents) look(stop chan struct{}) error {
	if err := rs.db.listener.err(); err != nil {
		return err // Else what Pebble does not get would be asked of it for ever.
	}
	if rs.total.Load() > rs.limit-rs.limit/10 {
		return errNoRoom
	}
	select {
	case <-stop:
		return errStopped
	default:
		return nil
	}
}

// lookPacked is look that, where there is no room, has the graph give back what it does
// not need, as long as that is worth it.
func (rs *residents) lookPacked(st *store, packed *int64, stop chan struct{}) error {
	err := rs.look(stop)
	if !errors.Is(err, errNoRoom) || st.resident.Bytes() < *packed+*packed/8 {
		return err
	}
	st.resident.Pack()
	*packed = st.resident.Bytes()
	return rs.look(stop)
}

var errNoRoom = errors.New("there is no room for more adjacency")

// readDirection fills in all lists of one direction.
func (rs *residents) readDirection(st *store, s still, d direction, stop chan struct{}) error {
	from := appendStore(nil, d.current(), st.id)
	it, err := s.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: prefixEnd(from)})
	if err != nil {
		return err
	}
	var near rest // of the list that is being read: all but the number of the far end
	var far []resident.Far
	var packed int64 // what the graph took when it was packed last
	fill := func() {
		if len(far) > 0 {
			rs.give(st, s, near.edge(d), d, far)
			far = far[:0]
		}
	}
	for ok := it.First(); ok; ok = it.Next() {
		r, value, err := edgeAt(it)
		if err != nil {
			return errors.Join(err, it.Close())
		}
		if !bytes.Equal(r[:11], near[:11]) {
			fill()
			near = r
			if err := rs.lookPacked(st, &packed, stop); err != nil {
				return errors.Join(err, it.Close())
			}
		}
		far = append(far, resident.Far{Number: uint64(getNumber(r[11:])), Qualified: qualified(value)})
	}
	if err := it.Close(); err != nil {
		return err
	}
	fill()
	return nil
}

// edgeAt reads what an iterator over current tuples stands on.
func edgeAt(it *pebble.Iterator) (r rest, value []byte, err error) {
	if r, _, err = parseEdgeKey(it.Key()); err == nil {
		value, err = it.ValueAndErr()
	}
	return r, value, err
}

// give fills in one list, which k is an edge of.
func (rs *residents) give(st *store, s still, k edgeKey, d direction, far []resident.Far) {
	number := k.object
	direction := resident.Forward
	if d == reverse {
		number, direction = k.number, resident.Reverse
	}
	st.resident.Fill(uint64(s.at), uint32(k.relation), uint32(k.subject), s.catalog.typeOf, direction, uint64(number), far)
}

// fill reads one list that was asked for.
func (rs *residents) fill(m missingList) error {
	s, ok, err := rs.hold(m.store)
	if !ok || err != nil {
		return err // It will be asked for again.
	}
	err = errors.Join(rs.fillFrom(s, m), s.Close())
	if rs.total.Load() > rs.limit {
		rs.shed()
	}
	return err
}

// fillFrom fills in the list of one end.
func (rs *residents) fillFrom(s still, m missingList) error {
	k := edgeKey{relation: m.relation, object: m.number, subject: m.subject}
	if m.direction == reverse {
		k = edgeKey{relation: m.relation, subject: m.subject, number: m.number}
	}
	from := k.side(m.direction)
	lower := appendEdgeKey(nil, m.direction.current(), m.store.id, &from)
	it, err := s.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: prefixEnd(lower[:farEnd])})
	if err != nil {
		return err
	}
	var far []resident.Far
	for ok := it.First(); ok; ok = it.Next() {
		r, value, err := edgeAt(it)
		if err != nil {
			return errors.Join(err, it.Close())
		}
		far = append(far, resident.Far{Number: uint64(getNumber(r[11:])), Qualified: qualified(value)})
	}
	if err := it.Close(); err != nil {
		return err
	}
	rs.give(m.store, s, k, m.direction, far)
	return nil
}

// kindOf numbers the pair of an edge. ok is false where the graph does not know of it;
// there are no such edges if none is true.
func kindOf(g *resident.Graph, relation, subject Shape) (kind resident.Kind, none, ok bool) {
	numbered := g.Numbered() // before the kind: what is numbered later is of later revisions
	kind = g.Kind(uint32(relation), uint32(subject))
	return kind, kind == resident.NoKind && numbered, kind != resident.NoKind
}

// findResident looks an edge up in memory: what edge there is, and whether it is there,
// if that is known.
func (s *Snapshot) findResident(k edgeKey) (found, known bool) {
	g := s.resident
	kind, none, ok := kindOf(g, k.relation, k.subject)
	if !ok || k.object > resident.NumberMax || k.number > resident.NumberMax {
		if !ok && !none {
			s.askResident(k.relation, k.subject, forward, k.object)
		}
		return false, none
	}
	end := resident.End{Direction: resident.Forward, Kind: kind, Number: uint32(k.object)}
	switch g.Find(uint64(s.view.applied.Revision), end, uint32(k.number)) {
	case resident.Absent:
		return false, true
	case resident.Plain:
		return true, true
	case resident.Unknown:
		s.askResident(k.relation, k.subject, forward, k.object)
	}
	return false, false
}

func (s *Snapshot) askResident(relation, subject Shape, d direction, number Number) {
	if s.resident.Partial() && number <= resident.NumberMax && relation != 0 && subject != 0 {
		s.db.residents.ask(missingList{s.stored, relation, subject, d, number})
	}
}

// edgesResident is edges from memory. It reports whether it could tell.
func (s *Snapshot) edgesResident(dst []Edge, d direction, k edgeKey, limit int) (_ []Edge, known bool, err error) {
	g := s.resident
	kind, none, ok := kindOf(g, k.relation, k.subject)
	near, from, shape := k.object, k.number, k.subject
	end := resident.End{Direction: resident.Forward, Kind: kind}
	if d == reverse {
		near, from, shape = k.number, k.object, k.relation
		end.Direction = resident.Reverse
	}
	if !ok || near > resident.NumberMax || from > resident.NumberMax {
		if !ok && !none {
			s.askResident(k.relation, k.subject, d, near)
		}
		return dst, none, nil
	}
	end.Number = uint32(near)
	for limit > 0 {
		s.elements, known = g.List(s.elements[:0], uint64(s.view.applied.Revision), end, uint32(from), limit)
		if !known {
			s.askResident(k.relation, k.subject, d, near)
			return dst, false, nil
		}
		asked := limit
		for _, e := range s.elements {
			from = Number(e.Number()) + 1
			if e.Qualified() {
				edge := k
				if d == forward {
					edge.number = Number(e.Number())
				} else {
					edge.object = Number(e.Number())
				}
				found, err := s.find(edge)
				if err != nil {
					return dst, true, err
				}
				if !found {
					return dst, true, fmt.Errorf("edge %v is in memory but not stored", edge)
				}
				if !s.value.living(s.instant) {
					continue
				}
				dst = append(dst, s.value.edge(shape, Number(e.Number())))
			} else {
				dst = append(dst, Edge{Shape: shape, Number: Number(e.Number())})
			}
			limit--
		}
		if len(s.elements) < asked || from > resident.NumberMax {
			break
		}
	}
	return dst, true, nil
}

// edge is the edge of a forward record as the evaluator sees it.
func (v *edgeValue) edge(shape Shape, far Number) Edge {
	e := Edge{Shape: shape, Number: far, Caveat: v.caveat}
	if v.hasContext {
		e.Context = bytes.Clone(v.context)
	}
	return e
}

// BypassResident has the snapshot read nothing from the adjacency in memory. What
// decides a change reads so: the same on every node, whatever is in memory there.
func (s *Snapshot) BypassResident() { s.resident, s.named = nil, nil }

// check holds that what is in memory is what a view of the newest state holds. Commit is
// locked.
func (rs *residents) check(v *view) error {
	if rs.limit < 0 {
		return nil
	}
	for id, st := range rs.db.stores {
		if v.unfinished != nil && v.unfinished.store == id {
			continue
		}
		if err := st.checkResident(v); err != nil {
			return fmt.Errorf("store %d: %w", id, err)
		}
	}
	return nil
}

func (st *store) checkResident(v *view) error {
	// What is stored, by the lists that it belongs to.
	type list struct {
		relation, subject Shape
		direction         direction
		number            Number
	}
	stored := map[list][]resident.Element{}
	for _, d := range []direction{forward, reverse} {
		err := scan(v.pebble, appendStore(nil, d.current(), st.id), func(key, value []byte) error {
			r, _, err := parseEdgeKey(key)
			if err != nil {
				return err
			}
			k := r.edge(d)
			at, far := list{k.relation, k.subject, d, k.object}, k.number
			if d == reverse {
				at.number, far = k.number, k.object
			}
			stored[at] = append(stored[at], resident.MakeElement(uint32(far), qualified(value)))
			return nil
		})
		if err != nil {
			return err
		}
	}
	complete, err := st.resident.Each(func(relation, subject uint32, d resident.Direction, number uint64, far []resident.Element, known bool) error {
		at := list{Shape(relation), Shape(subject), forward, Number(number)}
		if d == resident.Reverse {
			at.direction = reverse
		}
		if known && !slices.Equal(far, stored[at]) {
			return corruptf("in memory are %v, stored are %v", far, stored[at])
		}
		delete(stored, at)
		return nil
	})
	if err != nil {
		return err
	}
	for at := range stored {
		if complete && at.number <= resident.NumberMax {
			return corruptf("the list of %d to %d, direction %d, number %d is stored, and not in memory, where all is said to be", at.relation, at.subject, at.direction, at.number)
		}
	}
	named := st.named.Load()
	return scan(v.pebble, appendStore(nil, spaceNumber, st.id), func(key, value []byte) error {
		typ, id := getShape(key[storeEnd:]), string(key[storeEnd+3:])
		n, err := decodeNumber(value)
		if err != nil {
			return err
		}
		if got, found, known := named.Find(uint32(typ), id); known && (!found || Number(got) != n) {
			return corruptf("the number of %q, of the type %d, is %d (%t) in memory, %d is stored", id, typ, got, found, n)
		}
		if got, ok := named.ID(uint32(typ), uint64(n)); ok && got != id {
			return corruptf("the number %d of the type %d is that of %q in memory, %q is stored", n, typ, got, id)
		}
		return nil
	})
}
