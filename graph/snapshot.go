package graph

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/pembadb/pemba/graph/resident"
)

// A SchemaVersion is the text of a schema, with the revision that wrote it and
// its stamp; zero when the store has none.
type SchemaVersion struct {
	Revision Revision
	Instant  Instant
	Text     string
}

// A Snapshot is the graph of one store held still at a revision, with lifetimes
// judged at an instant. It is used by one goroutine at a time and must be
// closed; many may be open, and they share what they can. What it returns stays
// good after Close.
//
// Invariant: Revision is at most the revision of the newest Commit begun.
type Snapshot struct {
	db       *DB
	view     *view
	catalog  *catalog
	store    StoreID
	revision Revision
	instant  Instant
	// newest says that every current tuple of the view belongs to the revision
	// and none of the history does.
	newest bool

	overlay   *overlay
	ephemeral ephemerals

	// stored is the store's memory. resident is its adjacency; nil unless it may be
	// used, which is only where newest is true. named is its names; nil for none. elements
	// is room for what resident lists, first that of few.
	stored   *store
	resident *resident.Graph
	named    *resident.Names
	elements []resident.Element
	few      [8]resident.Element

	// near is for lookups and for what lies within one prefix; it has no bounds.
	// current and history are the two sides of a walk, and have some. All are
	// made when first needed.
	near, current, history *pebble.Iterator

	key   []byte
	value edgeValue

	// guard is asked every guardEvery tuples that reads have looked at.
	guard  func(looked int) error
	looked int
}

// guardEvery is how many tuples and names a read looks at before it asks the guard.
const guardEvery = 1024

// Guard has f asked, while Read looks through tuples, and through names where it goes
// by these, after every 1,024 of them (whether they match or not), with how many they were since the snapshot was
// made. An error of f ends the read and is its error. At the newest revision and
// without an overlay the count depends on what is stored and asked alone, so a
// limit on it means the same on every node.
func (s *Snapshot) Guard(f func(looked int) error) { s.guard = f }

// look counts what a read looks at, and asks the guard now and then.
func (s *Snapshot) look() error {
	if s.looked++; s.guard != nil && s.looked%guardEvery == 0 {
		return s.guard(s.looked)
	}
	return nil
}

// ephemerals are the numbers that one snapshot gives to names that no stored
// tuple has.
//
// Invariant: names[n-EphemeralNumber] is the name of n and numbers is its
// inverse.
type ephemerals struct {
	names   []Object
	numbers map[Object]Number
}

// Snapshot holds a store still at a revision, zero for the newest, and judges
// lifetimes at the instant, zero for the stamp of the store's last change up to
// that revision. At revisions before it was created a store is empty. The errors
// are ErrUnknownStore, ErrRevisionAhead, ErrRevisionGone and ErrClosed. The first
// snapshot after a Commit costs some microseconds, the others less than one.
func (db *DB) Snapshot(id StoreID, at Revision, instant Instant) (*Snapshot, error) {
	v, err := db.acquire()
	if err != nil {
		return nil, err
	}
	s := &Snapshot{db: db, view: v, store: id, revision: at, instant: instant}
	// The catalog is taken after the view: it is at least as new, and so are the
	// floors in it, below which things may be missing in the view.
	db.mu.Lock()
	st := db.stores[id]
	if st != nil {
		s.catalog, s.stored = st.catalog, st
	}
	db.mu.Unlock()
	err = ErrUnknownStore
	if st != nil {
		err = s.init()
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Snapshot) init() error {
	applied := s.view.applied.Revision
	switch f := s.catalog.record.history; {
	case s.revision == 0:
		// A view lacks nothing of its own newest state, also when the floors of a
		// catalog that is newer lie above it.
		s.revision = applied
	case s.revision > applied:
		return fmt.Errorf("%w: %d is asked for, %d is applied", ErrRevisionAhead, s.revision, applied)
	case s.revision < f.revision:
		return f.gone(s.revision)
	}
	// The catalog may be of a Commit that the view does not hold yet, but then
	// its record is newer and only the slow way is taken.
	s.newest = (s.revision == applied || s.revision >= s.catalog.record.changed) && !s.unfinished()
	if s.newest {
		s.resident = s.stored.resident
	}
	s.named = s.stored.named.Load()
	s.elements = s.few[:0]
	if s.instant == 0 {
		var err error
		s.instant, err = s.lastStamp()
		return err
	}
	return nil
}

// lastStamp returns the stamp of the store's last change up to the revision.
func (s *Snapshot) lastStamp() (Instant, error) {
	if r := s.catalog.record; r.changed <= s.revision {
		return r.stamp, nil
	}
	it, err := s.view.pebble.NewIter(&pebble.IterOptions{
		LowerBound: appendStore(nil, spaceLog, s.store),
		UpperBound: appendLogKey(nil, s.store, s.revision+1, 0),
	})
	if err != nil {
		return 0, err
	}
	var stamp Instant
	if it.Last() {
		var h logHeader
		key := append([]byte{}, it.Key()...)
		if len(key) != logKeyLen {
			return 0, errors.Join(corruptf("key %x of the change log", cut(key)), it.Close())
		}
		clear(key[logKeyLen-4:])
		if !it.SeekGE(key) {
			return 0, errors.Join(corruptf("revision %d has no header in the change log", revisionOf(key[storeEnd:])), it.Close())
		}
		if err := h.decode(it.Value()); err != nil {
			return 0, errors.Join(err, it.Close())
		}
		stamp = h.stamp
	}
	return stamp, it.Close()
}

// Close gives the snapshot back. It must not be used afterwards; closing again
// does nothing.
func (s *Snapshot) Close() {
	if s.view == nil {
		return
	}
	err := errors.Join(
		s.view.recycle(s.near, false),
		s.view.recycle(s.current, true),
		s.view.recycle(s.history, true),
		s.db.leave(s.view),
	)
	if err != nil {
		// An iterator that failed says so again when it is closed; its user was
		// told already.
		s.db.listener.Errorf("close a snapshot: %v", Damage(err))
	}
	s.view, s.near, s.current, s.history = nil, nil, nil, nil
}

// Store returns the store that the snapshot is of.
func (s *Snapshot) Store() StoreID { return s.store }

// Revision returns the revision that is read; never zero unless nothing was
// ever committed.
func (s *Snapshot) Revision() Revision { return s.revision }

// Instant returns when lifetimes are judged.
func (s *Snapshot) Instant() Instant { return s.instant }

// Schema returns the store's schema as of the revision; zero when it had none.
func (s *Snapshot) Schema() (SchemaVersion, error) {
	if c := s.catalog.schema; c.Revision <= s.revision {
		return c, nil
	}
	it, err := s.view.pebble.NewIter(&pebble.IterOptions{
		LowerBound: appendStore(nil, spaceSchema, s.store),
		UpperBound: appendSchemaKey(nil, s.store, s.revision+1),
	})
	if err != nil {
		return SchemaVersion{}, fmt.Errorf("read the schema: %w", err)
	}
	var v SchemaVersion
	if it.Last() {
		v, err = decodeSchema(it.Key(), it.Value())
	}
	if err = errors.Join(err, it.Close()); err != nil {
		return SchemaVersion{}, fmt.Errorf("read the schema: %w", err)
	}
	return v, nil
}

// FirstSchema returns the oldest schema that the store has or had, as far as the
// snapshot's state of the disk knows, also one of after the revision; zero when
// there is none. At a revision without a schema it is the first ever: nothing of
// what came later was forgotten then.
func (s *Snapshot) FirstSchema() (v SchemaVersion, err error) {
	from := appendStore(nil, spaceSchema, s.store)
	it, err := s.view.pebble.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: prefixEnd(from)})
	if err != nil {
		return SchemaVersion{}, fmt.Errorf("read the first schema: %w", err)
	}
	if it.First() {
		v, err = decodeSchema(it.Key(), it.Value())
	}
	if err = errors.Join(err, it.Close()); err != nil {
		return SchemaVersion{}, fmt.Errorf("read the first schema: %w", err)
	}
	return v, nil
}

// Shape returns the shape of a type and relation, or zero when neither a schema
// nor a tuple ever named it. It is a lookup in memory.
func (s *Snapshot) Shape(typ, relation string) Shape {
	return s.catalog.index[ShapeName{Type: typ, Relation: relation}]
}

// ShapeName returns what a shape numbers; empty for one never given out.
func (s *Snapshot) ShapeName(shape Shape) (typ, relation string) {
	name := s.catalog.name(shape)
	return name.Type, name.Relation
}

// Caveat returns the number of a caveat's name, or zero when neither a schema
// nor a tuple ever named it.
func (s *Snapshot) Caveat(name string) CaveatNumber { return s.catalog.caveatIndex[name] }

// CaveatName returns what a caveat number stands for; empty for zero and for one
// never given out.
func (s *Snapshot) CaveatName(n CaveatNumber) string { return s.catalog.caveat(n) }

// Number returns the number of an object: the stored one, else one that stands
// for it within this snapshot only. Wildcard has WildcardNumber.
func (s *Snapshot) Number(typ, id string) (Number, error) {
	n, ok, err := s.lookup(typ, id)
	if err != nil || ok {
		return n, err
	}
	if s.ephemeral.numbers == nil {
		s.ephemeral.numbers = map[Object]Number{}
	}
	n = EphemeralNumber + Number(len(s.ephemeral.names))
	if n >= endNumber {
		return 0, fmt.Errorf("%w within the snapshot for %s:%s", ErrExhausted, typ, id)
	}
	o := Object{Type: typ, ID: id}
	s.ephemeral.names = append(s.ephemeral.names, o)
	s.ephemeral.numbers[o] = n
	return n, nil
}

// lookup is Number for names that have a number already.
func (s *Snapshot) lookup(typ, id string) (Number, bool, error) {
	if id == Wildcard {
		return WildcardNumber, true, nil
	}
	if n, ok := s.ephemeral.numbers[Object{Type: typ, ID: id}]; ok {
		return n, true, nil
	}
	shape := s.Shape(typ, "")
	if shape == 0 {
		return 0, false, nil
	}
	if s.named != nil {
		if n, found, known := s.named.Find(uint32(shape), id); known {
			return Number(n), found, nil
		}
	}
	s.key = appendNumberKey(s.key[:0], s.store, shape, id)
	value, ok, err := s.seek()
	var n Number
	if ok {
		n, err = decodeNumber(value)
	}
	if err != nil {
		return 0, false, fmt.Errorf("look up %s:%s: %w", typ, id, err)
	}
	if ok && s.named != nil {
		s.db.residents.keepName(s.named, shape, id, n)
	}
	return n, ok, nil
}

// ID returns the id that a number of the given type stands for. A number that
// was not given out is an error.
func (s *Snapshot) ID(typ string, n Number) (string, error) {
	if n == WildcardNumber {
		return Wildcard, nil
	}
	if n >= EphemeralNumber {
		if i := n - EphemeralNumber; i < Number(len(s.ephemeral.names)) && s.ephemeral.names[i].Type == typ {
			return s.ephemeral.names[i].ID, nil
		}
		return "", fmt.Errorf("number %d of type %s was not given out by this snapshot", n, typ)
	}
	shape := s.Shape(typ, "")
	if shape == 0 {
		return "", fmt.Errorf("number %d is of type %q, which has no objects", n, typ)
	}
	if s.named != nil {
		if id, ok := s.named.ID(uint32(shape), uint64(n)); ok {
			return id, nil
		}
	}
	s.key = appendIDKey(s.key[:0], s.store, shape, n)
	value, ok, err := s.seek()
	if err != nil {
		return "", fmt.Errorf("look up number %d of type %s: %w", n, typ, err)
	}
	if !ok {
		return "", corruptf("number %d of type %s has no id", n, typ)
	}
	return string(value), nil
}

// Find looks up one edge by its numbers. An edge outside its lifetime is not
// found.
func (s *Snapshot) Find(relation Shape, object Number, subject Shape, number Number) (Edge, bool, error) {
	k := edgeKey{relation, object, subject, number}
	if s.overlay != nil {
		if e := s.overlay.find(k); e != nil {
			if !e.living(s.instant) {
				return Edge{}, false, nil
			}
			return e.edge(forward), true, nil
		}
	}
	if s.resident != nil {
		if found, known := s.findResident(k); found {
			return Edge{Shape: subject, Number: number}, true, nil
		} else if known {
			return Edge{}, false, nil
		}
	}
	ok, err := s.find(k)
	if err != nil || !ok || !s.value.living(s.instant) {
		return Edge{}, false, err
	}
	return s.value.edge(subject, number), true, nil
}

// find reads the stored tuple of an edge, whatever its lifetime, into s.value,
// whose bytes are good until the next lookup.
func (s *Snapshot) find(k edgeKey) (bool, error) {
	if k.relation == 0 || k.subject == 0 || k.object >= EphemeralNumber || k.number >= EphemeralNumber {
		return false, nil
	}
	r := k.forward()
	s.key = appendEdgeKey(s.key[:0], spaceForward, s.store, &r)
	value, ok, err := s.seek()
	if err != nil {
		return false, fmt.Errorf("find a tuple: %w", err)
	}
	if ok {
		if err := s.value.decode(value, forward); err != nil {
			return false, err
		}
		if s.value.created <= s.revision {
			return true, nil
		}
	}
	if s.newest {
		return false, nil
	}
	return s.findHistory(&r)
}

// seek looks up s.key. The value is good until the next lookup. A reused
// iterator takes half the time of a Get, and allocates nothing.
func (s *Snapshot) seek() (value []byte, ok bool, err error) {
	if err := s.open(&s.near); err != nil {
		return nil, false, err
	}
	if !s.near.SeekPrefixGE(s.key) {
		return nil, false, s.near.Error()
	}
	if !bytes.Equal(s.near.Key(), s.key) {
		return nil, false, nil
	}
	value, err = s.near.ValueAndErr()
	return value, err == nil, err
}

// findHistory is find for a tuple that ended after the revision: the first that
// did, if it was created by then.
func (s *Snapshot) findHistory(r *rest) (bool, error) {
	if err := s.open(&s.near); err != nil {
		return false, err
	}
	s.key = appendHistoryKey(s.key[:0], spaceForwardHistory, s.store, r, s.revision+1)
	if !s.near.SeekPrefixGE(s.key) {
		return false, s.failed("find a tuple", s.near)
	}
	key := s.near.Key()
	if len(key) != historyLen || string(key[:edgeKeyLen]) != string(s.key[:edgeKeyLen]) {
		return false, nil
	}
	value, err := s.near.ValueAndErr()
	if err != nil {
		return false, fmt.Errorf("find a tuple: %w", err)
	}
	if err := s.value.decode(value, forward); err != nil {
		return false, err
	}
	return s.value.created <= s.revision, nil
}

// open makes an iterator when it is first needed.
func (s *Snapshot) open(it **pebble.Iterator) (err error) {
	if *it == nil {
		*it, err = s.view.iterator()
	}
	return err
}

func (s *Snapshot) failed(what string, it *pebble.Iterator) error {
	if err := it.Error(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// Subjects appends to dst up to limit edges of relation#object whose subject has
// the given shape and a number of at least from, in ascending order of the
// number; the wildcard comes first when from is zero. Fewer than limit means
// that there are no more.
func (s *Snapshot) Subjects(dst []Edge, relation Shape, object Number, subject Shape, from Number, limit int) ([]Edge, error) {
	if relation == 0 || subject == 0 || limit <= 0 || from >= endNumber {
		return dst, nil
	}
	return s.edges(dst, forward, edgeKey{relation, object, subject, from}, limit)
}

// Objects appends to dst up to limit edges to objects that hold the subject
// (shape and number) by the relation, in ascending order of the object's number
// and from at least from. Fewer than limit means that there are no more.
func (s *Snapshot) Objects(dst []Edge, subject Shape, number Number, relation Shape, from Number, limit int) ([]Edge, error) {
	if relation == 0 || subject == 0 || limit <= 0 || from >= endNumber {
		return dst, nil
	}
	return s.edges(dst, reverse, edgeKey{relation, from, subject, number}, limit)
}

// edges lists far ends from k on, while the near end and the far end's shape
// stay those of k.
func (s *Snapshot) edges(dst []Edge, d direction, k edgeKey, limit int) ([]Edge, error) {
	r := k.forward()
	shape := k.subject
	if d == reverse {
		r = k.reverse()
		shape = k.relation
	}
	if !s.newest || s.overlay != nil {
		return s.edgesSlowly(dst, d, r, limit)
	}
	if getNumber(r[3:]) >= EphemeralNumber {
		return dst, nil
	}
	if s.resident != nil {
		dst, known, err := s.edgesResident(dst, d, k, limit)
		if known || err != nil {
			return dst, err
		}
	}
	if err := s.open(&s.near); err != nil {
		return dst, err
	}
	it := s.near
	s.key = appendEdgeKey(s.key[:0], d.current(), s.store, &r)
	ok := it.SeekPrefixGE(s.key)
	for ; ok && limit > 0; ok = it.Next() {
		key := it.Key()
		if len(key) != edgeKeyLen {
			return dst, corruptf("key %x of an edge", cut(key))
		}
		if string(key[nearEnd:farEnd]) != string(s.key[nearEnd:farEnd]) {
			return dst, nil
		}
		value, err := it.ValueAndErr()
		if err != nil {
			return dst, fmt.Errorf("list edges: %w", err)
		}
		if err := s.value.decode(value, d); err != nil {
			return dst, err
		}
		if !s.value.living(s.instant) {
			continue
		}
		number := getNumber(key[farEnd:])
		if s.value.hasContext && d == reverse {
			copy(r[:], key[storeEnd:])
			if err := s.fetchForward(&s.value, r.edge(reverse), 0); err != nil {
				return dst, err
			}
		}
		dst = append(dst, s.value.edge(shape, number))
		limit--
	}
	return dst, s.failed("list edges", it)
}

// edgesSlowly is edges for what needs the history or an overlay.
func (s *Snapshot) edgesSlowly(dst []Edge, d direction, r rest, limit int) ([]Edge, error) {
	end := r
	putNumber(end[11:], 0)
	putShape(end[8:], getShape(r[8:])+1)
	w, err := s.walk(d, r, end)
	if err != nil {
		return dst, err
	}
	for limit > 0 && w.next() {
		e, err := w.edge()
		if err != nil {
			return dst, err
		}
		dst = append(dst, e)
		limit--
	}
	return dst, w.err
}

// fetchForward replaces the value of a reverse record by the forward one's, which
// ended at the same revision, or is current when ended is zero.
func (s *Snapshot) fetchForward(v *edgeValue, k edgeKey, ended Revision) error {
	f := k.forward()
	var buf [historyLen]byte
	key := appendEdgeKey(buf[:0], spaceForward, s.store, &f)
	if ended != 0 {
		key[0] = spaceForwardHistory
		key = binary.BigEndian.AppendUint64(key, uint64(ended))
	}
	value, ok, err := get(s.view.pebble, key)
	if err != nil {
		return fmt.Errorf("read a tuple: %w", err)
	}
	if !ok {
		return corruptf("the reverse record of edge %v has no forward record", k)
	}
	return v.decode(value, forward)
}

// Get reads one tuple by its names. A tuple outside its lifetime is not found.
func (s *Snapshot) Get(object Object, relation string, subject Subject) (Tuple, bool, error) {
	return s.getTuple(object, relation, subject, false)
}

// GetStored is Get that also finds a tuple outside its lifetime. It does not see
// the overlay.
func (s *Snapshot) GetStored(object Object, relation string, subject Subject) (Tuple, bool, error) {
	return s.getTuple(object, relation, subject, true)
}

func (s *Snapshot) getTuple(object Object, relation string, subject Subject, stored bool) (Tuple, bool, error) {
	k := edgeKey{relation: s.Shape(object.Type, relation), subject: s.Shape(subject.Type, subject.Relation)}
	if k.relation == 0 || k.subject == 0 || object.ID == Wildcard || (subject.ID == Wildcard && subject.Relation != "") {
		return Tuple{}, false, nil
	}
	var ok bool
	var err error
	if k.object, ok, err = s.lookup(object.Type, object.ID); err != nil || !ok {
		return Tuple{}, false, err
	}
	if k.number, ok, err = s.lookup(subject.Type, subject.ID); err != nil || !ok {
		return Tuple{}, false, err
	}
	if s.overlay != nil && !stored {
		if e := s.overlay.find(k); e != nil {
			if !e.living(s.instant) {
				return Tuple{}, false, nil
			}
			return e.tuple, true, nil
		}
	}
	ok, err = s.find(k)
	if err != nil || !ok || (!stored && !s.value.living(s.instant)) {
		return Tuple{}, false, err
	}
	t, err := s.tuple(object, relation, subject, &s.value)
	return t, err == nil, err
}

// tuple returns a whole tuple, sharing nothing with v.
func (s *Snapshot) tuple(object Object, relation string, subject Subject, v *edgeValue) (Tuple, error) {
	t := Tuple{
		Object: object, Relation: relation, Subject: subject,
		ValidFrom: v.from, ValidUntil: v.until, Created: v.created,
	}
	if v.caveat != 0 {
		if t.Caveat = s.CaveatName(v.caveat); t.Caveat == "" {
			return Tuple{}, corruptf("caveat %d of a tuple has no name", v.caveat)
		}
	}
	if v.hasContext {
		t.Context = bytes.Clone(v.context)
	}
	var err error
	t.Sources, err = decodeSources(v.sources)
	return t, err
}

// Expired returns up to limit stored tuples whose ValidUntil is at or before the
// instant, those that ended first coming first. It reads the current state only
// and is refused on a snapshot of an older revision; it does not see the overlay.
// In a store of which UnfinishedStage tells it may leave some out.
func (s *Snapshot) Expired(limit int) ([]Tuple, error) {
	if !s.newest && (!s.unfinished() || s.revision != s.view.applied.Revision) {
		return nil, fmt.Errorf("list expired tuples: revision %d is not the newest", s.revision)
	}
	it, err := s.view.pebble.NewIter(&pebble.IterOptions{
		LowerBound: appendStore(nil, spaceExpiry, s.store),
		UpperBound: binary.BigEndian.AppendUint64(appendStore(nil, spaceExpiry, s.store), uint64(s.instant)+1),
	})
	if err != nil {
		return nil, fmt.Errorf("list expired tuples: %w", err)
	}
	var tuples []Tuple
	for ok := it.First(); ok && len(tuples) < limit; ok = it.Next() {
		key := it.Key()
		if len(key) != expiryLen {
			return nil, errors.Join(corruptf("key %x of the expiry index", cut(key)), it.Close())
		}
		var r rest
		copy(r[:], key[storeEnd+8:])
		if s.unfinished() {
			// The entry may be of a tuple that is not seen yet, and the edge may
			// have another one that is.
			ok, err := s.find(r.edge(forward))
			if err != nil {
				return nil, errors.Join(fmt.Errorf("list expired tuples: %w", err), it.Close())
			}
			if !ok || uint64(s.value.until) != binary.BigEndian.Uint64(key[storeEnd:]) {
				continue
			}
		}
		t, err := s.storedTuple(r.edge(forward))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("list expired tuples: %w", err), it.Close())
		}
		tuples = append(tuples, t)
	}
	if err := it.Close(); err != nil {
		return nil, fmt.Errorf("list expired tuples: %w", err)
	}
	return tuples, nil
}

// storedTuple reads the tuple of an edge that an index says is there.
func (s *Snapshot) storedTuple(k edgeKey) (Tuple, error) {
	object, relation, subject, err := s.names(k)
	if err != nil {
		return Tuple{}, err
	}
	ok, err := s.find(k)
	if err != nil {
		return Tuple{}, err
	}
	if !ok {
		return Tuple{}, corruptf("edge %v is in an index but not stored", k)
	}
	return s.tuple(object, relation, subject, &s.value)
}

// names turns the numbers of an edge into names.
func (s *Snapshot) names(k edgeKey) (object Object, relation string, subject Subject, err error) {
	object.Type, relation = s.ShapeName(k.relation)
	subject.Type, subject.Relation = s.ShapeName(k.subject)
	if object.Type == "" || relation == "" || subject.Type == "" {
		return object, "", subject, corruptf("edge %v has a shape without a name", k)
	}
	if object.ID, err = s.ID(object.Type, k.object); err != nil {
		return object, "", subject, err
	}
	subject.ID, err = s.ID(subject.Type, k.number)
	return object, relation, subject, err
}
