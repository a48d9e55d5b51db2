package graph

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// A Retention says for how many microseconds something of the past is kept,
// counted back from the newest stamp.
type Retention int64

// How long the past is kept where nothing else is said, the shortest that may be
// said, and for ever.
const (
	DefaultRetention = Retention(30 * 24 * time.Hour / time.Microsecond)
	MinRetention     = Retention(time.Second / time.Microsecond)
	Forever          = Retention(math.MaxInt64)
)

// MaxStoreNameLength bounds the name of a store, in bytes.
const MaxStoreNameLength = 64

// DefaultStoreName is the name of DefaultStore.
const DefaultStoreName = "default"

// StoreSettings are what may be set of a store. They are part of the state, the
// same on every node.
type StoreSettings struct {
	// History is how long past states can be read, Log how long the change log
	// can be. The log takes its space for as long as the longer of both.
	History Retention
	Log     Retention
	// TuplesMax bounds how many current tuples the store may hold; zero means
	// any number.
	TuplesMax uint64
	// CallsPerSecond bounds how many calls a second a node answers on the store;
	// zero means any number. Nothing in this package looks at it.
	CallsPerSecond uint32
}

// StoreInfo is a store as it is.
type StoreInfo struct {
	ID   StoreID
	Name string
	// Created is the revision that made it, CreatedAt its stamp; zero for a store
	// of format version 1.
	Created   Revision
	CreatedAt Instant
	Settings  StoreSettings
	// Tuples counts the current tuples, those whose lifetime is over but which
	// were not collected among them.
	Tuples uint64
	// Schema is the revision of the newest schema; zero for none.
	Schema Revision
	// Changed is the last revision that changed tuples or schema.
	Changed Revision
	// OldestHistory is the oldest revision that can be read, OldestLog the first
	// whose changes are in the log; zero while nothing has been forgotten. The
	// instants are their stamps.
	OldestHistory   Revision
	OldestHistoryAt Instant
	OldestLog       Revision
	OldestLogAt     Instant
}

// ErrUnknownStore means that there is no store of a name or number, or no more.
var ErrUnknownStore = errors.New("there is no such store")

// info describes the store; DB.mu is held.
func (st *store) info() StoreInfo {
	r := &st.catalog.record
	return StoreInfo{
		ID: st.id, Name: r.name, Created: r.created, CreatedAt: r.createdAt, Settings: r.settings,
		Tuples: st.tuples, Schema: st.catalog.schema.Revision, Changed: r.changed,
		OldestHistory: r.history.revision, OldestHistoryAt: r.history.stamp,
		OldestLog: r.log.revision, OldestLogAt: r.log.stamp,
	}
}

// Stores returns the stores, by name.
func (db *DB) Stores() []StoreInfo {
	db.mu.Lock()
	stores := make([]StoreInfo, 0, len(db.stores))
	for _, st := range db.stores {
		stores = append(stores, st.info())
	}
	db.mu.Unlock()
	slices.SortFunc(stores, func(a, b StoreInfo) int { return strings.Compare(a.Name, b.Name) })
	return stores
}

// StoreNamed returns the store of a name. Like StoreInfo it is a lookup in
// memory.
func (db *DB) StoreNamed(name string) (StoreInfo, bool) {
	db.mu.Lock()
	defer db.mu.Unlock()
	st := db.stores[db.names[name]]
	if st == nil {
		return StoreInfo{}, false
	}
	return st.info(), true
}

// StoreInfo returns a store.
func (db *DB) StoreInfo(id StoreID) (StoreInfo, bool) {
	db.mu.Lock()
	defer db.mu.Unlock()
	st := db.stores[id]
	if st == nil {
		return StoreInfo{}, false
	}
	return st.info(), true
}

// SchemaVersions returns up to limit schemas that the store has or had, the
// newest first, those only that were written before a revision unless that is
// zero. The oldest is the one that was in force at the oldest state that is kept.
func (db *DB) SchemaVersions(id StoreID, before Revision, limit int) ([]SchemaVersion, error) {
	if limit < 1 {
		return nil, fmt.Errorf("list schemas: %w", invalid("limit", fmt.Sprint(limit), "is too small", "at least 1"))
	}
	s, err := db.Snapshot(id, 0, 0)
	if err != nil {
		return nil, fmt.Errorf("list schemas: %w", err)
	}
	defer s.Close()
	if before == 0 || before > s.revision {
		before = s.revision + 1
	}
	versions, err := s.schemaVersions(before, limit)
	if err != nil {
		return nil, fmt.Errorf("list schemas: %w", err)
	}
	return versions, nil
}

func (s *Snapshot) schemaVersions(before Revision, limit int) (versions []SchemaVersion, err error) {
	// What is older than the one in force at the floor may be removed or not.
	oldest, err := schemaAt(s.view.pebble, s.store, s.catalog.record.history.revision)
	if err != nil {
		return nil, err
	}
	it, err := s.view.pebble.NewIter(&pebble.IterOptions{
		LowerBound: appendSchemaKey(nil, s.store, oldest),
		UpperBound: appendSchemaKey(nil, s.store, before),
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.Last(); ok && len(versions) < limit; ok = it.Prev() {
		v, err := decodeSchema(it.Key(), it.Value())
		if err != nil {
			return nil, err
		}
		versions = append(versions, v)
	}
	return versions, nil
}

// schemaAt returns the revision that wrote the schema in force at a revision;
// zero when there was none.
func schemaAt(r pebble.Reader, store StoreID, at Revision) (rev Revision, err error) {
	it, err := r.NewIter(&pebble.IterOptions{
		LowerBound: appendStore(nil, spaceSchema, store),
		UpperBound: appendSchemaKey(nil, store, at+1),
	})
	if err != nil {
		return 0, err
	}
	if it.Last() {
		rev = revisionOf(it.Key()[storeEnd:])
	}
	return rev, it.Close()
}

// readNextStore reads the number that the next store gets.
func readNextStore(r pebble.Reader) (StoreID, error) {
	value, ok, err := get(r, metaKey(metaStores))
	if err != nil || !ok {
		return DefaultStore + 1, err
	}
	d := decoder{b: value}
	next := StoreID(d.uint32())
	if next <= DefaultStore {
		d.fail("not beyond the default store")
	}
	return next, d.finish("the number of the next store")
}

// fillStore puts a StoreChange or a Prune into the batch.
func (w *writer) fillStore(db *DB) (Receipt, error) {
	c := w.c
	if len(c.Changes) > 0 || c.Schema != nil || c.Init != nil || (c.StoreChange != nil && c.Prune != nil) {
		return Receipt{}, errors.New("a change of a store and a prune are each alone in their commit")
	}
	if c.StoreChange != nil {
		if err := c.StoreChange.validate(); err != nil {
			return Receipt{}, err
		}
		if c.StoreChange.Operation == CreateStore {
			return w.createNext(db)
		}
	}
	if !w.find(db) {
		return Receipt{}, fmt.Errorf("store %d: %w", c.Store, ErrUnknownStore)
	}
	record := w.cat.record
	switch {
	case c.Prune != nil:
		before := record
		if err := record.prune(db.pebble, c.Store, c.Stamp); err != nil || record == before {
			return Receipt{}, err
		}
	case c.StoreChange.Operation == DropStore:
		if c.Store == DefaultStore {
			return Receipt{}, fmt.Errorf("store %d is the default store and cannot be dropped", c.Store)
		}
		w.dropped = true
		for _, space := range storeSpaces {
			from := appendStore(nil, space, c.Store)
			if err := w.batch.DeleteRange(from, prefixEnd(from), nil); err != nil {
				return Receipt{}, err
			}
		}
		return Receipt{}, nil
	default:
		record.settings.set(c.StoreChange)
	}
	return Receipt{}, w.writeRecord(&record)
}

// createNext makes a store with the next number.
func (w *writer) createNext(db *DB) (Receipt, error) {
	c := w.c
	if c.Store != 0 {
		return Receipt{}, fmt.Errorf("a store to be created has the number %d already", c.Store)
	}
	if old, exists := db.StoreNamed(c.StoreChange.Name); exists {
		return Receipt{}, fmt.Errorf("store %d has the name %s already", old.ID, c.StoreChange.Name)
	}
	if db.ClusterID() == [16]byte{} {
		return Receipt{}, fmt.Errorf("store %s cannot come before the cluster's id, with which the default store is made", c.StoreChange.Name)
	}
	if db.nextStore == math.MaxUint32 {
		return Receipt{}, fmt.Errorf("%w for store %s", ErrExhausted, c.StoreChange.Name)
	}
	return Receipt{Store: db.nextStore}, w.create(db.nextStore, c.StoreChange.Name, c.StoreChange)
}

// create makes an empty store, and moves on the number of the next.
func (w *writer) create(id StoreID, name string, settings *StoreChange) error {
	w.st, w.created = &store{id: id, counters: map[counterKey]uint64{}, next: map[Shape]Number{}}, true
	record := storeRecord{
		sequence: 1, name: name, created: w.c.Revision, createdAt: w.c.Stamp,
		settings: StoreSettings{History: DefaultRetention, Log: DefaultRetention},
	}
	record.settings.set(settings)
	if err := w.writeRecord(&record); err != nil {
		return err
	}
	return w.batch.Set(metaKey(metaStores), binary.AppendUvarint(nil, uint64(id)+1), nil)
}

// set takes over the settings that are given.
func (s *StoreSettings) set(c *StoreChange) {
	if c.History != nil {
		s.History = *c.History
	}
	if c.Log != nil {
		s.Log = *c.Log
	}
	if c.TuplesMax != nil {
		s.TuplesMax = *c.TuplesMax
	}
	if c.CallsPerSecond != nil {
		s.CallsPerSecond = *c.CallsPerSecond
	}
}

// prune raises the floors to the last change at or before the horizon, which is
// as far before now as the store keeps things. It only ever raises them, so that
// it comes to the same whatever was removed from the log below them.
func (r *storeRecord) prune(reader pebble.Reader, store StoreID, now Instant) error {
	for _, kept := range []struct {
		retention Retention
		floor     *floor
	}{{r.settings.History, &r.history}, {r.settings.Log, &r.log}} {
		if Instant(kept.retention) > now {
			continue
		}
		found, err := lastChange(reader, store, r.changed, now-Instant(kept.retention))
		if err != nil {
			return err
		}
		if found.revision > kept.floor.revision {
			*kept.floor = found
		}
	}
	return nil
}

// Count returns how many living tuples match the filter. Where the counters know
// it costs next to nothing: for a filter of types and relations, at the newest
// revision, without an overlay, and where no lifetime decides. Elsewhere it looks
// at as many tuples as Read would, and Guard bounds that, but reads no names.
func (s *Snapshot) Count(f Filter) (uint64, error) {
	if err := f.Validate(); err != nil {
		return 0, fmt.Errorf("count tuples: %w", err)
	}
	r := &reader{s: s, f: &f, names: newNamer(s), counting: true}
	if n, ok := r.counters(); ok {
		return n, nil
	}
	if err := r.run(nil); err != nil {
		return 0, fmt.Errorf("count tuples: %w", err)
	}
	return r.counted, nil
}

// counters returns what the counters count for the filter, unless something
// else has a say.
func (r *reader) counters() (n uint64, ok bool) {
	if r.f.ObjectID != "" || r.f.ObjectIDPrefix != "" || r.f.SubjectID != "" || !r.s.newest || r.s.overlay != nil {
		return 0, false
	}
	r.s.db.mu.Lock()
	defer r.s.db.mu.Unlock()
	st := r.s.db.stores[r.s.store]
	if st == nil {
		return 0, false
	}
	// The counters are of the store's last change, once that is applied; the
	// snapshot must have it, and every tuple must have begun.
	record := &st.catalog.record
	if record.changed > min(r.s.revision, r.s.db.Applied().Revision) || r.s.instant < record.latestFrom {
		return 0, false
	}
	for k, count := range st.counters {
		if !r.relationMatches(st.catalog.name(k.relation)) || !r.subjectMatches(st.catalog.name(k.subject)) {
			continue
		}
		if k.expiring {
			return 0, false
		}
		n += count
	}
	return n, true
}
