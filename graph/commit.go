package graph

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

// A ChangeKind says what became of a tuple.
type ChangeKind uint8

// The kinds of a Change.
const (
	// Created is a tuple whose edge was not there.
	Created ChangeKind = iota + 1
	// Replaced is a tuple whose edge was there with another caveat, lifetime or
	// set of sources.
	Replaced
	// Deleted is a tuple that somebody removed.
	Deleted
	// Expired is a tuple that was removed because its lifetime was over.
	Expired
)

// String returns the kind's name in lower case.
func (k ChangeKind) String() string {
	switch k {
	case Created:
		return "created"
	case Replaced:
		return "replaced"
	case Deleted:
		return "deleted"
	case Expired:
		return "expired"
	}
	return fmt.Sprintf("change kind %d", uint8(k))
}

// A Change is what one revision did to one edge.
type Change struct {
	Kind ChangeKind
	// Tuple is as it is after the change (Created, Replaced), or as it was
	// (Deleted, Expired). Its Created is ignored in the former.
	Tuple Tuple
	// Before is the tuple that ends, as GetStored returned it: set for Replaced,
	// Deleted and Expired, nil for Created.
	Before *Tuple
}

// A SchemaCommit makes a text the store's schema.
type SchemaCommit struct {
	Text string
	// Shapes and Caveats are what the schema names. Those that the store does
	// not know yet are numbered, in this order.
	Shapes  []ShapeName
	Caveats []string
}

// A Commit is everything that one revision changes.
//
// Invariant: Revision and Stamp are beyond, or for Stamp at, those of the Commit
// before.
type Commit struct {
	Revision Revision
	Term     uint64
	Stamp    Instant

	// Store is what is changed; zero when nothing is, which still moves the
	// applied revision.
	Store StoreID
	// Changes are made in this order. No two are of the same edge, but that an
	// Expired may stand before the Created of its edge.
	Changes []Change
	Schema  *SchemaCommit
	// Init gives the cluster its id and creates DefaultStore.
	Init *Init
	// StoreChange creates, sets or drops a store, alone in its Commit. Store is
	// zero to create one.
	StoreChange *StoreChange
	// Prune raises the floors of Store to what its retention says at Stamp.
	Prune *Prune
	// Stage stages a change or makes one that was staged, alone in its Commit.
	Stage *StageStep
	// CounterChange registers or unregisters a named counter of Store, alone in its
	// Commit: there must be fewer than NamedCountersMax, and none of the name, or one.
	CounterChange *CounterChange
	// StartChecksum begins the checksum anew, alone in its Commit but for Request.
	StartChecksum *StartChecksum
	// Renew gives the cluster another id than it has and ever had, likewise alone.
	Renew *Renew

	// Request has the Commit remembered under the id of a request; nil for none.
	Request *RequestCommit

	// RecordedActor and Metadata are kept in the change log.
	RecordedActor string
	Metadata      []byte
}

// A Receipt says where the changes of a Commit stand in the store's change log.
type Receipt struct {
	// Sequence is the dense number of the first change; the others follow. It is
	// zero when there is none.
	Sequence uint64
	Count    int
	// Store is the store that the Commit created; zero for none.
	Store StoreID
}

// A writer gathers one Commit. It changes nothing that others see until the
// whole Commit is known to be good.
type writer struct {
	batch *pebble.Batch
	c     *Commit
	st    *store   // nil before the store's first commit
	cat   *catalog // the catalog to be; st's own until grown
	grown bool     // whether cat is a copy
	names bool     // whether its tables are copies too

	created bool // whether st is a store that this commit makes
	dropped bool // whether st goes with this commit

	// forgotten is how many requests the commit forgets, from the oldest on, and
	// forgottenBesides the revision of one that is not among them, zero for none.
	forgotten        int
	forgottenBesides Revision
	ancestors        []Ancestor // behind a Renew
	// mergedEnd is where the batch goes on behind the edges of a staged change, and
	// merged what those came to; see checksum.go.
	mergedEnd int
	merged    uint64

	counters   map[counterKey]int64
	next       map[Shape]Number
	edges      map[edgeKey]ChangeKind
	latestFrom Instant // of the tuples made by this commit

	// numbers remembers names across commits, for nearly every tuple names an
	// object that another one just named.
	numbers map[numberKey]Number
	fresh   []numberKey // added to numbers by this commit, to be taken back

	key, value, sources []byte
	record              logRecord
}

type numberKey struct {
	store StoreID
	typ   Shape
	id    string
}

// rememberedNumbers bounds writer.numbers.
const rememberedNumbers = 1 << 16

// Commit makes the changes of one revision, all or none. It is the only way to
// write, besides CommitConfiguration. It returns ErrAlreadyApplied for a
// revision that was committed before; any other error means that the caller did
// not keep Commit's invariants or that the disk or data is damaged, and nothing
// was changed then either. The names in it must be valid as Tuple.Validate has
// it; whether they fit the schema is not judged here. It returns without waiting
// for the disk.
func (db *DB) Commit(c Commit) (Receipt, error) {
	db.commit.Lock()
	defer db.commit.Unlock()
	var stage StageID
	commit := db.writer.commit
	if c.Stage != nil && c.Stage.Operation == StageCommit {
		stage, commit = c.Stage.ID, db.writer.commitStage
	}
	if err := db.admit(c.Revision, c.Term, c.Stamp, stage); err != nil {
		return Receipt{}, fmt.Errorf("commit revision %d: %w", c.Revision, err)
	}
	receipt, err := commit(db, &c)
	if err != nil {
		return Receipt{}, fmt.Errorf("commit revision %d: %w", c.Revision, err)
	}
	return receipt, nil
}

// CommitConfiguration stores a Raft configuration with the revision of its
// entry. It moves the applied revision and changes nothing else; the errors are
// those of Commit.
func (db *DB) CommitConfiguration(rev Revision, term uint64, configuration []byte) error {
	db.commit.Lock()
	defer db.commit.Unlock()
	old := db.Applied()
	if err := db.admit(rev, term, old.Stamp, StageID{}); err != nil {
		return fmt.Errorf("commit the configuration of revision %d: %w", rev, err)
	}
	next := Applied{
		Revision: rev, Term: term, Stamp: old.Stamp, Checksum: old.Checksum, ChecksumSince: old.ChecksumSince,
		Configuration: append([]byte{}, configuration...), ConfigurationRevision: rev,
	}
	b := db.pebble.NewBatch()
	value := append(binary.AppendUvarint(nil, uint64(rev)), configuration...)
	if err := b.Set(metaKey(metaConfiguration), value, nil); err != nil {
		return fmt.Errorf("commit the configuration of revision %d: %w", rev, closeBatch(b, err))
	}
	next.check(0, b.Repr()[batchHeaderLen:])
	if err := db.finish(b, next, nil, nil); err != nil {
		return fmt.Errorf("commit the configuration of revision %d: %w", rev, err)
	}
	return nil
}

// admit checks that a revision may follow the applied one. Stage is the staged
// change that it commits, zero for none.
func (db *DB) admit(rev Revision, term uint64, stamp Instant, stage StageID) error {
	if db.isClosed() {
		return ErrClosed
	}
	if err := db.listener.err(); err != nil {
		return err
	}
	a := db.applied.Load()
	switch {
	case rev <= a.Revision:
		return fmt.Errorf("%w: applied is %d", ErrAlreadyApplied, a.Revision)
	case term < a.Term:
		return fmt.Errorf("term %d is below the applied term %d", term, a.Term)
	case stamp < a.Stamp:
		return fmt.Errorf("stamp %d is before the applied stamp %d", stamp, a.Stamp)
	case stamp > MaxInstant:
		return fmt.Errorf("stamp %d is beyond the last instant %d", stamp, MaxInstant)
	}
	if u := db.unfinished; u != nil && (u.revision != rev || u.stage != stage) {
		return fmt.Errorf("revision %d, which commits the staged change %x, must be finished first", u.revision, u.stage)
	}
	return nil
}

// finish writes the batch with the applied revision in it, and then says so.
// before runs ahead of the batch, for what readers of the batch must find.
func (db *DB) finish(b *pebble.Batch, next Applied, before, after func()) error {
	if err := b.Set(metaKey(metaApplied), next.appendApplied(nil), nil); err != nil {
		return closeBatch(b, err)
	}
	if before != nil {
		db.mu.Lock()
		before()
		db.mu.Unlock()
	}
	if err := db.residents.apply(b, next.Revision); err != nil {
		db.listener.fatal(err)
		return closeBatch(b, err)
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		// What was said before cannot be taken back, so nothing may follow.
		db.listener.fatal(fmt.Errorf("the graph's batch failed: %w", err))
		return closeBatch(b, err)
	}
	if err := db.listener.err(); err != nil {
		return closeBatch(b, err)
	}
	db.mu.Lock()
	if after != nil {
		after()
	}
	db.applied.Store(&next)
	old := db.view
	if old != nil && old.applied.Revision < next.Revision {
		db.view = nil
	} else {
		old = nil
	}
	db.mu.Unlock()
	if old != nil {
		if err := db.release(old); err != nil {
			return closeBatch(b, err)
		}
	}
	return b.Close()
}

// closeBatch gives up a batch because of err.
func closeBatch(b *pebble.Batch, err error) error {
	if closeErr := b.Close(); closeErr != nil {
		return fmt.Errorf("%w (and closing the batch: %w)", err, closeErr)
	}
	return err
}

// reset begins the work on a Commit.
func (w *writer) reset(db *DB, c *Commit) {
	if w.numbers == nil {
		w.counters = map[counterKey]int64{}
		w.next = map[Shape]Number{}
		w.edges = map[edgeKey]ChangeKind{}
		w.numbers = map[numberKey]Number{}
	}
	clear(w.counters)
	clear(w.next)
	clear(w.edges)
	w.fresh = w.fresh[:0]
	w.batch, w.c, w.st, w.cat, w.grown, w.names = db.pebble.NewBatch(), c, nil, emptyCatalog, false, false
	w.created, w.dropped, w.latestFrom = false, false, 0
	w.forgotten, w.forgottenBesides, w.ancestors = 0, 0, nil
	w.mergedEnd, w.merged = batchHeaderLen, 0
}

// publish shows in memory what readers must find there ahead of the batch.
func (w *writer) publish(db *DB) {
	switch {
	case w.st == nil:
	case w.dropped:
		delete(db.stores, w.st.id)
		delete(db.names, w.cat.record.name)
	default:
		if w.created {
			db.residents.create(w.st, w.c.Revision)
		}
		w.st.catalog = w.cat
		db.stores[w.st.id] = w.st
		db.names[w.cat.record.name] = w.st.id
	}
}

// count takes what the batch did to the counters, to the requests that are
// remembered and to the cluster's id into memory.
func (w *writer) count(db *DB) {
	if w.c.Request != nil {
		db.requests.remembered(w.c.Revision, w.forgotten, w.forgottenBesides)
	}
	w.identify(db)
	if w.st == nil {
		return
	}
	for k, delta := range w.counters {
		w.st.tuples += uint64(delta)
		if n := w.st.counters[k] + uint64(delta); n > 0 {
			w.st.counters[k] = n
		} else {
			delete(w.st.counters, k)
		}
	}
	maps.Copy(w.st.next, w.next)
}

// applied returns how far the Commit brings the DB. The batch is complete but for
// that.
func (w *writer) applied(db *DB) Applied {
	next := db.Applied()
	next.Revision, next.Term, next.Stamp = w.c.Revision, w.c.Term, w.c.Stamp
	if w.c.StartChecksum != nil || (w.c.Init != nil && db.ClusterID() == [16]byte{}) {
		next.Checksum, next.ChecksumSince = 0, w.c.Revision
	}
	next.check(w.merged, w.batch.Repr()[w.mergedEnd:])
	return next
}

func (w *writer) commit(db *DB, c *Commit) (Receipt, error) {
	w.reset(db, c)
	receipt, err := w.fill(db)
	if err == nil {
		err = w.remember(db, receipt.Store)
	}
	if err != nil {
		// Numbers that were not given out after all must be forgotten.
		for _, k := range w.fresh {
			delete(w.numbers, k)
		}
		return Receipt{}, closeBatch(w.batch, err)
	}
	if err := db.finish(w.batch, w.applied(db), func() { w.publish(db) }, func() { w.count(db) }); err != nil {
		return Receipt{}, err
	}
	if len(w.numbers) > rememberedNumbers || w.dropped {
		clear(w.numbers)
	}
	if w.dropped && w.st.resident != nil {
		w.st.resident.Forget()
	}
	if w.created {
		db.nextStore = max(db.nextStore, w.st.id+1)
	}
	return receipt, nil
}

// fill puts everything into the batch.
func (w *writer) fill(db *DB) (Receipt, error) {
	c := w.c
	if c.CounterChange != nil {
		return Receipt{}, w.changeCounter(db)
	}
	if c.Renew != nil {
		return Receipt{}, w.renew(db)
	}
	if c.StartChecksum != nil {
		if c.Store != 0 || len(c.Changes) > 0 || c.Schema != nil || c.Init != nil || c.StoreChange != nil || c.Prune != nil || c.Stage != nil {
			return Receipt{}, fmt.Errorf("the start of a checksum is alone in its commit")
		}
		return Receipt{}, nil
	}
	if c.Init != nil {
		if old := db.ClusterID(); old != [16]byte{} && old != c.Init.ClusterID {
			return Receipt{}, fmt.Errorf("the cluster's id is %x already and cannot become %x", old, c.Init.ClusterID)
		}
		if err := w.batch.Set(metaKey(metaCluster), c.Init.ClusterID[:], nil); err != nil {
			return Receipt{}, err
		}
		if c.Store == 0 {
			c.Store = DefaultStore
		}
	}
	if c.StoreChange != nil || c.Prune != nil {
		return w.fillStore(db)
	}
	if c.Store == 0 {
		if len(c.Changes) > 0 || c.Schema != nil || c.Stage != nil {
			return Receipt{}, fmt.Errorf("there are changes but no store")
		}
		return Receipt{}, nil
	}
	if len(c.Changes) == 0 && c.Schema == nil && c.Init == nil && c.Stage == nil {
		return Receipt{}, nil
	}
	if len(c.Changes) >= math.MaxUint32 {
		return Receipt{}, fmt.Errorf("%d changes are too many for one revision", len(c.Changes))
	}
	if !w.find(db) {
		if c.Init == nil || c.Store != DefaultStore {
			return Receipt{}, fmt.Errorf("store %d: %w", c.Store, ErrUnknownStore)
		}
		if err := w.create(DefaultStore, DefaultStoreName, &StoreChange{}); err != nil {
			return Receipt{}, err
		}
	}
	record := w.cat.record
	if c.Schema != nil {
		if err := w.writeSchema(c.Schema); err != nil {
			return Receipt{}, err
		}
	}
	for i := range c.Changes {
		if err := w.change(db, i); err != nil {
			return Receipt{}, fmt.Errorf("change %d (%s %s): %w", i+1, c.Changes[i].Kind, c.Changes[i].Tuple, err)
		}
	}
	if c.Stage != nil {
		if err := w.stage(db); err != nil {
			return Receipt{}, err
		}
	}
	return w.conclude(record, uint32(len(c.Changes)))
}

// conclude writes what stands once for a revision: the counters, the header of
// its changes in the log, and the store's record.
func (w *writer) conclude(record storeRecord, changes uint32) (Receipt, error) {
	c := w.c
	if err := w.writeCounters(); err != nil {
		return Receipt{}, err
	}
	receipt := Receipt{Count: int(changes)}
	if changes > 0 {
		receipt.Sequence = record.sequence
	}
	if changes > 0 || c.Schema != nil {
		head := logHeader{
			stamp: c.Stamp, sequence: record.sequence, count: changes, schema: c.Schema != nil,
			actor: c.RecordedActor, metadata: c.Metadata,
		}
		w.key = appendLogKey(w.key[:0], c.Store, c.Revision, 0)
		w.value = head.append(w.value[:0])
		if err := w.batch.Set(w.key, w.value, nil); err != nil {
			return Receipt{}, err
		}
		record.changed, record.stamp = c.Revision, c.Stamp
		record.sequence += uint64(changes)
	}
	record.latestFrom = max(record.latestFrom, w.latestFrom)
	return receipt, w.writeRecord(&record)
}

// find takes up the store of the commit and reports whether there is one.
func (w *writer) find(db *DB) bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	if w.st = db.stores[w.c.Store]; w.st == nil {
		return false
	}
	w.cat = w.st.catalog
	return true
}

// writeRecord makes a record the store's.
func (w *writer) writeRecord(r *storeRecord) error {
	w.grow().record = *r
	w.key = appendStore(w.key[:0], spaceStore, w.st.id)
	w.value = r.append(w.value[:0])
	return w.batch.Set(w.key, w.value, nil)
}

// grow returns a catalog that may be written to: a copy of the store's own,
// which shares its tables.
func (w *writer) grow() *catalog {
	if !w.grown {
		c := *w.cat
		w.cat, w.grown = &c, true
	}
	return w.cat
}

// growNames returns a catalog whose tables may be written to. Readers hold the
// old one, so that is a copy, made at most once a commit and seldom at all.
func (w *writer) growNames() *catalog {
	c := w.grow()
	if !w.names {
		c.shapes, c.index = slices.Clone(c.shapes), maps.Clone(c.index)
		c.caveats, c.caveatIndex = slices.Clone(c.caveats), maps.Clone(c.caveatIndex)
		w.names = true
	}
	return c
}

func (w *writer) writeSchema(s *SchemaCommit) error {
	for _, name := range s.Shapes {
		if _, err := w.shape(name); err != nil {
			return err
		}
	}
	for _, name := range s.Caveats {
		if _, err := w.caveat(name); err != nil {
			return err
		}
	}
	v := SchemaVersion{Revision: w.c.Revision, Instant: w.c.Stamp, Text: s.Text}
	w.grow().schema = v
	w.key = appendSchemaKey(w.key[:0], w.c.Store, w.c.Revision)
	w.value = appendSchema(w.value[:0], v)
	return w.batch.Set(w.key, w.value, nil)
}

// shape returns the number of a pair, giving it one, and its plain type one
// before, when it has none.
func (w *writer) shape(name ShapeName) (Shape, error) {
	if s := w.cat.index[name]; s != 0 {
		return s, nil
	}
	if name.Relation != "" {
		if _, err := w.shape(ShapeName{Type: name.Type}); err != nil {
			return 0, err
		}
	}
	if err := name.validate(); err != nil {
		return 0, err
	}
	s := Shape(len(w.cat.shapes) + 1)
	if s >= endShape {
		return 0, fmt.Errorf("%w for %s: a store has at most %d types and relations", ErrExhausted, name, endShape-1)
	}
	c := w.growNames()
	c.shapes = append(c.shapes, name)
	c.index[name] = s
	w.key = appendShape(appendStore(w.key[:0], spaceShape, w.c.Store), s)
	w.value = appendString(appendString(w.value[:0], name.Type), name.Relation)
	return s, w.batch.Set(w.key, w.value, nil)
}

func (w *writer) caveat(name string) (CaveatNumber, error) {
	if name == "" {
		return 0, nil
	}
	if n := w.cat.caveatIndex[name]; n != 0 {
		return n, nil
	}
	if err := ValidateCaveat(name); err != nil {
		return 0, err
	}
	n := CaveatNumber(len(w.cat.caveats) + 1)
	if n >= endCaveat {
		return 0, fmt.Errorf("%w for caveat %s: a store has at most %d caveats", ErrExhausted, name, endCaveat-1)
	}
	c := w.growNames()
	c.caveats = append(c.caveats, name)
	c.caveatIndex[name] = n
	w.key = appendShape(appendStore(w.key[:0], spaceCaveat, w.c.Store), Shape(n))
	return n, w.batch.Set(w.key, []byte(name), nil)
}

// number returns the number of an object, giving it one when it has none.
func (w *writer) number(db *DB, typ, id string) (Number, error) {
	if id == Wildcard {
		return WildcardNumber, nil
	}
	shape, err := w.shape(ShapeName{Type: typ})
	if err != nil {
		return 0, err
	}
	k := numberKey{w.c.Store, shape, id}
	if n, ok := w.numbers[k]; ok {
		return n, nil
	}
	w.key = appendNumberKey(w.key[:0], w.c.Store, shape, id)
	n, err := getStoredNumber(db.pebble, w.key)
	if err != nil {
		return 0, err
	}
	if n == 0 {
		var ok bool
		if n, ok = w.next[shape]; !ok {
			n = max(w.st.next[shape], 1)
		}
		if n >= EphemeralNumber {
			return 0, fmt.Errorf("%w for %s:%s: a store has at most %d objects of a type", ErrExhausted, typ, id, EphemeralNumber-1)
		}
		w.next[shape] = n + 1
		w.value = binary.AppendUvarint(w.value[:0], uint64(n))
		if err := w.batch.Set(w.key, w.value, nil); err != nil {
			return 0, err
		}
		w.key = appendIDKey(w.key[:0], w.c.Store, shape, n)
		if err := w.batch.Set(w.key, []byte(id), nil); err != nil {
			return 0, err
		}
		w.fresh = append(w.fresh, k)
	}
	w.numbers[k] = n
	return n, nil
}

// getStoredNumber returns zero for a name that has no number.
func getStoredNumber(r pebble.Reader, key []byte) (Number, error) {
	value, closer, err := r.Get(key)
	if err == pebble.ErrNotFound { //nolint:errorlint // Get returns it bare, and this is the hot path.
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := decodeNumber(value)
	if closeErr := closer.Close(); err == nil {
		err = closeErr
	}
	return n, err
}

// encode gives the tuple's names numbers and returns it in the form that is
// stored.
func (w *writer) encode(db *DB, t *Tuple) (k edgeKey, v edgeValue, err error) {
	if err = t.Validate(); err != nil {
		return k, v, err
	}
	if k.relation, err = w.shape(ShapeName{t.Object.Type, t.Relation}); err != nil {
		return k, v, err
	}
	if k.subject, err = w.shape(ShapeName{t.Subject.Type, t.Subject.Relation}); err != nil {
		return k, v, err
	}
	if v.caveat, err = w.caveat(t.Caveat); err != nil {
		return k, v, err
	}
	if k.object, err = w.number(db, t.Object.Type, t.Object.ID); err != nil {
		return k, v, err
	}
	if k.number, err = w.number(db, t.Subject.Type, t.Subject.ID); err != nil {
		return k, v, err
	}
	w.sources = appendSources(w.sources[:0], t.Sources)
	v.created, v.from, v.until = t.Created, t.ValidFrom, t.ValidUntil
	v.context, v.hasContext = t.Context, len(t.Context) > 0
	v.sources, v.hasSources = w.sources, len(w.sources) > 0
	return k, v, nil
}

// change writes one change: the tuple in both directions, what it replaces into
// the history, its expiry, and its record in the log.
func (w *writer) change(db *DB, i int) error {
	c := &w.c.Changes[i]
	switch c.Kind {
	case Created:
		if c.Before != nil {
			return fmt.Errorf("a created tuple has no tuple before it")
		}
	case Replaced, Deleted, Expired:
		if c.Before == nil {
			return fmt.Errorf("the tuple before it is missing")
		}
		if c.Before.Object != c.Tuple.Object || c.Before.Relation != c.Tuple.Relation || c.Before.Subject != c.Tuple.Subject {
			return fmt.Errorf("the tuple before it is another edge: %s", c.Before)
		}
		if c.Before.Created == 0 || c.Before.Created >= w.c.Revision {
			return fmt.Errorf("the tuple before it was created at revision %d", c.Before.Created)
		}
	default:
		return fmt.Errorf("its kind is unknown")
	}
	var k edgeKey
	var err error
	if c.Before != nil {
		var old edgeValue
		if k, old, err = w.encode(db, c.Before); err != nil {
			return err
		}
		if err := w.end(k, &old, c.Kind != Replaced); err != nil {
			return err
		}
		w.record = logRecord{c.Kind, k, old}
	}
	if c.Kind == Created || c.Kind == Replaced {
		var v edgeValue
		if k, v, err = w.encode(db, &c.Tuple); err != nil {
			return err
		}
		v.created = w.c.Revision
		if err := w.begin(k, &v); err != nil {
			return err
		}
		w.record = logRecord{c.Kind, k, v}
	}
	before, seen := w.edges[k]
	if seen && (before != Expired || c.Kind != Created) {
		return fmt.Errorf("the same edge was %s by the same commit", before)
	}
	w.edges[k] = c.Kind
	w.key = appendLogKey(w.key[:0], w.c.Store, w.c.Revision, uint32(i+1))
	w.value = w.record.append(w.value[:0])
	if err := w.batch.Set(w.key, w.value, nil); err != nil || !Invariants || seen {
		return err
	}
	return w.verify(db, c, k)
}

// verify holds that the tuple before a change is what is stored.
func (w *writer) verify(db *DB, c *Change, k edgeKey) error {
	r := k.forward()
	value, ok, err := get(db.pebble, appendEdgeKey(nil, spaceForward, w.c.Store, &r))
	if err != nil {
		return err
	}
	if ok != (c.Before != nil) {
		return fmt.Errorf("the edge is stored: %t", ok)
	}
	if c.Before == nil {
		return nil
	}
	_, old, err := w.encode(db, c.Before)
	if err != nil {
		return err
	}
	if want := old.appendValue(nil, forward); string(want) != string(value) {
		return fmt.Errorf("the tuple before it has the value %x, but %x is stored", want, value)
	}
	return nil
}

// begin makes a tuple current.
func (w *writer) begin(k edgeKey, v *edgeValue) error {
	f, r := k.forward(), k.reverse()
	for _, d := range []direction{forward, reverse} {
		at := &f
		if d == reverse {
			at = &r
		}
		w.key = appendEdgeKey(w.key[:0], d.current(), w.c.Store, at)
		w.value = v.appendValue(w.value[:0], d)
		if err := w.batch.Set(w.key, w.value, nil); err != nil {
			return err
		}
	}
	w.counters[counterOf(k, v)]++
	w.latestFrom = max(w.latestFrom, v.from)
	if v.until == 0 {
		return nil
	}
	w.key = appendExpiryKey(w.key[:0], w.c.Store, v.until, &f)
	return w.batch.Set(w.key, nil, nil)
}

// end moves a tuple to the history. Its current records are removed unless
// others are about to replace them.
func (w *writer) end(k edgeKey, v *edgeValue, remove bool) error {
	f, r := k.forward(), k.reverse()
	for _, d := range []direction{forward, reverse} {
		at := &f
		if d == reverse {
			at = &r
		}
		w.key = appendHistoryKey(w.key[:0], d.history(), w.c.Store, at, w.c.Revision)
		w.value = v.appendValue(w.value[:0], d)
		if err := w.batch.Set(w.key, w.value, nil); err != nil {
			return err
		}
		if !remove {
			continue
		}
		w.key = appendEdgeKey(w.key[:0], d.current(), w.c.Store, at)
		if err := w.batch.Delete(w.key, nil); err != nil {
			return err
		}
	}
	w.counters[counterOf(k, v)]--
	if v.until == 0 {
		return nil
	}
	w.key = appendExpiryKey(w.key[:0], w.c.Store, v.until, &f)
	return w.batch.Delete(w.key, nil)
}

func (w *writer) writeCounters() error {
	// In order, for the checksum is of the order too.
	for _, k := range slices.SortedFunc(maps.Keys(w.counters), counterKey.compare) {
		delta := w.counters[k]
		if delta == 0 {
			continue
		}
		old := w.st.counters[k]
		if delta < 0 && old < uint64(-delta) {
			return corruptf("%d tuples of a kind end of which only %d are counted", -delta, old)
		}
		w.key = k.append(w.key[:0], w.c.Store)
		var err error
		if n := old + uint64(delta); n == 0 {
			err = w.batch.Delete(w.key, nil)
		} else {
			w.value = binary.AppendUvarint(w.value[:0], n)
			err = w.batch.Set(w.key, w.value, nil)
		}
		if err != nil {
			return err
		}
	}
	for _, typ := range slices.Sorted(maps.Keys(w.next)) {
		w.key = appendShape(appendStore(w.key[:0], spaceNext, w.c.Store), typ)
		w.value = binary.AppendUvarint(w.value[:0], uint64(w.next[typ]))
		if err := w.batch.Set(w.key, w.value, nil); err != nil {
			return err
		}
	}
	return nil
}
