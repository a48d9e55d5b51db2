package graph

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"

	"github.com/cockroachdb/pebble/v2"
)

// CheckInvariants reads everything that is stored and reports the first record
// that contradicts another:
//
//   - each tuple, current or ended, stands in both directions with one value;
//   - each tuple was created before it ended, and not after the applied revision;
//   - the counters are what a recount gives, in memory and on disk;
//   - the expiry index names exactly the current tuples with a ValidUntil;
//   - each number has one name and each name one number, below the next one;
//   - the change log is dense, in order, and ends where the store says;
//   - the floors are revisions in the change log, and the history holds exactly
//     the tuples that ended in what was not removed below them;
//   - each staged change has as many updates as it counts and the digest of each of
//     its chunks, and one that a crash
//     cut short has made what its marker says;
//   - each named counter has a name and a filter, and there are not too many;
//   - each request that is remembered stands under its id and its revision, and the
//     revisions are in the order of their stamps;
//   - the checksum, the cluster's id and its ancestors are of applied revisions;
//   - what is kept in memory of tuples and names is what is stored.
//
// Commits wait while memory is compared, and go on while the rest is read, from a
// snapshot. It takes some microseconds a tuple, and memory for all of them: it is for
// tests.
func (db *DB) CheckInvariants() error {
	db.commit.Lock()
	v, err := db.acquire()
	if err != nil {
		db.commit.Unlock()
		return fmt.Errorf("check the graph: %w", err)
	}
	c := &checker{
		r: v.pebble, applied: v.applied, counted: map[StoreID]map[counterKey]uint64{}, logs: map[StoreID]bool{},
		removed: map[StoreID]removalRecord{}, unfinished: v.unfinished, staged: map[StoreID]map[StageID]uint64{},
		chunks: map[StoreID]map[StageID]checkedStage{}, named: map[StoreID]int{},
	}
	db.mu.Lock()
	inMemory := map[StoreID]map[counterKey]uint64{}
	for id, st := range db.stores {
		inMemory[id] = maps.Clone(st.counters)
	}
	db.mu.Unlock()
	err = db.residents.check(v)
	db.commit.Unlock()
	if err != nil {
		return fmt.Errorf("check the graph: %w", errors.Join(err, db.leave(v)))
	}

	err = c.run()
	if err == nil {
		for id, counters := range inMemory {
			if st := c.stores[id]; st == nil || !maps.Equal(counters, st.counters) {
				err = corruptf("store %d: the counters in memory are not those on disk", id)
			}
		}
	}
	if err = errors.Join(err, db.leave(v)); err != nil {
		return fmt.Errorf("check the graph: %w", err)
	}
	return nil
}

type checker struct {
	r       *pebble.Snapshot
	applied Applied
	stores  map[StoreID]*store

	// unfinished is the staged change that is being committed, or nil, and
	// unfinishedRecords counts what it has in the change log; staged counts the
	// updates that are missing of each.
	unfinished        *unfinishedStage
	unfinishedRecords uint32
	staged            map[StoreID]map[StageID]uint64
	// chunks are the staged changes, with the digests of their chunks.
	chunks map[StoreID]map[StageID]checkedStage

	counted  map[StoreID]map[counterKey]uint64
	edges    [2][2]int // by direction; current and history
	expiring int
	numbers  int
	log      logCheck
	logs     map[StoreID]bool // the stores that have one
	removed  map[StoreID]removalRecord
	endings  int             // changes whose tuple must be in the history
	named    map[StoreID]int // counts the named counters

	requests     int     // how many more are met by revision than by id
	requestStamp Instant // of the last by revision
}

// A logCheck is where the change log of one store has come.
type logCheck struct {
	store  StoreID
	header LoggedRevision
	left   int // of the header's changes
	next   uint64
	stamp  Instant
	floors int // how many of the store's two floors were met
}

func (c *checker) run() error {
	var err error
	if c.stores, err = loadStores(c.r); err != nil {
		return err
	}
	next, err := readNextStore(c.r)
	if err != nil {
		return err
	}
	for id, st := range c.stores {
		removed, err := readRemoval(c.r, id)
		if err != nil {
			return err
		}
		r := &st.catalog.record
		if id >= next || removed.history.Revision > r.history.revision+1 || removed.log > min(r.history.revision, r.log.revision) {
			return corruptf("store %d, of the numbers below %d, has the floors %v and %v, but removed is %v", id, next, r.history, r.log, removed)
		}
		c.removed[id] = removed
	}
	if err := scan(c.r, nil, c.record); err != nil {
		return err
	}
	if c.edges[forward] != c.edges[reverse] {
		return corruptf("there are %d current and %d ended forward records, but %d and %d reverse ones",
			c.edges[forward][0], c.edges[forward][1], c.edges[reverse][0], c.edges[reverse][1])
	}
	if c.edges[forward][1] != c.endings {
		return corruptf("there are %d ended tuples, but the change log has %d endings", c.edges[forward][1], c.endings)
	}
	if c.expiring != 0 {
		return corruptf("the expiry index lacks %d tuples", c.expiring)
	}
	if c.numbers != 0 {
		return corruptf("there are %d names more than numbers", c.numbers)
	}
	if err := c.endLog(); err != nil {
		return err
	}
	if err := c.endStages(); err != nil {
		return err
	}
	if c.requests != 0 {
		return corruptf("there are %d requests more by revision than by id", c.requests)
	}
	_, ancestors, err := readIdentity(c.r)
	if err != nil {
		return err
	}
	if n := len(ancestors); n > 0 && ancestors[n-1].Until > c.applied.Revision {
		return corruptf("the cluster's id was another until revision %d, but %d is applied", ancestors[n-1].Until, c.applied.Revision)
	}
	for id, st := range c.stores {
		if !maps.Equal(st.counters, c.counted[id]) && len(st.counters)+len(c.counted[id]) > 0 {
			return corruptf("store %d: the counters are %v, a recount gives %v", id, st.counters, c.counted[id])
		}
		if r := st.catalog.record; r.changed != 0 && !c.logs[id] {
			return corruptf("store %d changed at revision %d but has no change log", id, r.changed)
		}
		if r := st.catalog.record; r.changed > c.applied.Revision || r.stamp > c.applied.Stamp {
			return corruptf("store %d changed at revision %d, but %d is applied", id, r.changed, c.applied.Revision)
		}
	}
	return nil
}

// record checks one key and its value against all others that they imply.
func (c *checker) record(key, value []byte) error {
	space := key[0]
	switch space {
	case spaceMeta:
		return nil
	case spaceRequestOrder:
		return c.requestOrder(key, value)
	case spaceRequest:
		return c.request(key, value)
	}
	if len(key) < storeEnd {
		return corruptf("key %x is too short", key)
	}
	st := c.stores[storeOf(key)]
	if st == nil {
		return corruptf("key %x is of a store without a record", cut(key))
	}
	switch space {
	case spaceStore, spaceShape, spaceCaveat, spaceNext, spaceCounter, spaceSchema, spaceRemoval:
		return nil // Read before.
	case spaceForward, spaceForwardHistory:
		return c.edge(st, forward, key, value)
	case spaceReverse, spaceReverseHistory:
		return c.edge(st, reverse, key, value)
	case spaceNumber:
		return c.name(st, key, value)
	case spaceID:
		c.numbers--
		if len(key) != idKeyLen {
			return corruptf("key %x of an id", cut(key))
		}
		return nil
	case spaceExpiry:
		return c.expiry(st, key)
	case spaceStage:
		return c.stage(st, key, value)
	case spaceStageDigest:
		return c.stageDigest(st, key, value)
	case spaceStaged:
		return c.stagedUpdate(st, key, value)
	case spaceCommittedStages:
		_, err := readCommittedStages(c.r, st.id)
		return err
	case spaceLog:
		return c.logged(st, key, value)
	case spaceNamedCounter:
		return c.namedCounter(st, key, value)
	}
	return corruptf("key %x is of no known keyspace", cut(key))
}

func (c *checker) edge(st *store, d direction, key, value []byte) error {
	r, ended, err := parseEdgeKey(key)
	if err != nil {
		return err
	}
	isHistory := key[0] == d.history()
	if isHistory != (ended != 0) {
		return corruptf("key %x has the wrong length", key)
	}
	n := 0
	if isHistory {
		n = 1
	}
	c.edges[d][n]++
	k := r.edge(d)
	var v edgeValue
	if err := v.decode(value, d); err != nil {
		return err
	}
	if newest := c.newest(st.id); v.created == 0 || v.created > newest || (isHistory && (v.created >= ended || ended > newest)) {
		return corruptf("edge %v was created at revision %d and ended at %d, but %d is applied", k, v.created, ended, c.applied.Revision)
	}
	if v.hasContext && d == forward {
		if canonical, err := CanonicalContext(v.context); err != nil || !bytes.Equal(canonical, v.context) {
			return corruptf("edge %v has the context %q, which is not canonical", k, v.context)
		}
	}
	if d == reverse {
		return nil // Each forward record checks its reverse one, and both are as many.
	}
	other := k.reverse()
	otherKey := appendEdgeKey(nil, spaceReverse, st.id, &other)
	if isHistory {
		otherKey = appendHistoryKey(nil, spaceReverseHistory, st.id, &other, ended)
	}
	got, ok, err := get(c.r, otherKey)
	if err != nil {
		return err
	}
	if want := v.appendValue(nil, reverse); !ok || !bytes.Equal(got, want) {
		return corruptf("edge %v has the reverse record %x, not %x", k, got, want)
	}
	if err := c.given(st, k, &v); err != nil {
		return err
	}
	if isHistory {
		return nil
	}
	counted := c.counted[st.id]
	if counted == nil {
		counted = map[counterKey]uint64{}
		c.counted[st.id] = counted
	}
	counted[counterOf(k, &v)]++
	if v.until == 0 {
		return nil
	}
	c.expiring++
	if _, ok, err = get(c.r, appendExpiryKey(nil, st.id, v.until, &r)); err == nil && !ok {
		err = corruptf("edge %v ends at %d but is not in the expiry index", k, v.until)
	}
	return err
}

// given checks that the numbers of a tuple were given out.
func (c *checker) given(st *store, k edgeKey, v *edgeValue) error {
	for _, end := range []struct {
		shape Shape
		n     Number
	}{{k.relation, k.object}, {k.subject, k.number}} {
		typ := st.catalog.plain(end.shape)
		if typ == 0 || end.n >= EphemeralNumber || (end.n >= st.next[typ] && end.n != WildcardNumber) {
			return corruptf("edge %v has the number %d of shape %d, which was not given out", k, end.n, end.shape)
		}
	}
	if st.catalog.name(k.relation).Relation == "" || k.object == WildcardNumber || int(v.caveat) > len(st.catalog.caveats) {
		return corruptf("edge %v is of no relation, object or caveat", k)
	}
	return nil
}

func (c *checker) name(st *store, key, value []byte) error {
	c.numbers++
	if len(key) <= storeEnd+3 {
		return corruptf("key %x of a name", cut(key))
	}
	typ, id := getShape(key[storeEnd:]), key[storeEnd+3:]
	n, err := decodeNumber(value)
	if err != nil {
		return err
	}
	if st.catalog.plain(typ) != typ || typ == 0 || n >= st.next[typ] {
		return corruptf("%q of type shape %d has the number %d, which was not given out", id, typ, n)
	}
	got, ok, err := get(c.r, appendIDKey(nil, st.id, typ, n))
	if err == nil && (!ok || !bytes.Equal(got, id)) {
		err = corruptf("%q of type shape %d has the number %d, which is that of %q", id, typ, n, got)
	}
	return err
}

func (c *checker) expiry(st *store, key []byte) error {
	c.expiring--
	if len(key) != expiryLen {
		return corruptf("key %x of the expiry index", cut(key))
	}
	var r rest
	copy(r[:], key[storeEnd+8:])
	value, ok, err := get(c.r, appendEdgeKey(nil, spaceForward, st.id, &r))
	if err != nil {
		return err
	}
	var v edgeValue
	if ok {
		err = v.decode(value, forward)
	}
	if err == nil && (!ok || uint64(v.until) != binary.BigEndian.Uint64(key[storeEnd:])) {
		err = corruptf("the expiry index has edge %v, which does not end then", r.edge(forward))
	}
	return err
}

func (c *checker) logged(st *store, key, value []byte) error {
	rev, offset, err := parseLogKey(key)
	if err != nil {
		return err
	}
	if rev > c.applied.Revision && rev == c.newest(st.id) {
		return c.unfinishedRecord(st, offset, value)
	}
	l := &c.log
	if offset > 0 {
		if st.id != l.store || rev != l.header.Revision || int(offset) != l.header.Count-l.left+1 || l.left == 0 {
			return corruptf("the change log has %x out of order", key)
		}
		l.left--
		return c.loggedChange(st, Position{rev, offset - 1}, value)
	}
	record := &st.catalog.record
	if st.id != l.store || l.next == 0 {
		if err := c.endLog(); err != nil {
			return err
		}
		*l = logCheck{store: st.id, next: 1}
		if c.removed[st.id].log > 0 {
			h, err := readHeader(key, value, 0)
			if err != nil {
				return err
			}
			l.next = h.Sequence
		}
		if rev < c.removed[st.id].log {
			return corruptf("the change log has %x, which was removed", key)
		}
	}
	if l.left != 0 {
		return corruptf("revision %d lacks %d records in the change log", l.header.Revision, l.left)
	}
	h, err := readHeader(key, value, 0)
	if err != nil {
		return err
	}
	if h.Sequence != l.next || h.Stamp < l.stamp || (h.Count == 0 && !h.SchemaChanged) {
		return corruptf("the change log has %x out of order", key)
	}
	l.header, l.left, l.stamp = h, h.Count, h.Stamp
	l.next += uint64(h.Count)
	for _, f := range []floor{record.history, record.log} {
		if f == (floor{rev, h.Stamp}) {
			l.floors++
		}
	}
	if !h.SchemaChanged || rev < record.history.revision {
		return nil
	}
	key = appendSchemaKey(nil, st.id, rev)
	value, ok, err := get(c.r, key)
	if err != nil || !ok {
		return errors.Join(err, corruptf("the schema of revision %d is missing", rev))
	}
	if v, err := decodeSchema(key, value); err != nil || v.Instant != h.Stamp {
		return errors.Join(err, corruptf("the schema of revision %d has the stamp %d, not %d", rev, v.Instant, h.Stamp))
	}
	return nil
}

// loggedChange checks a change against the history.
func (c *checker) loggedChange(st *store, at Position, value []byte) error {
	var r logRecord
	if err := r.decode(value); err != nil || r.kind == Created {
		return err
	}
	side := r.key.forward()
	_, ok, err := get(c.r, appendHistoryKey(nil, spaceForwardHistory, st.id, &side, at.Revision))
	if err != nil {
		return err
	}
	removed := c.removed[st.id].history
	kept := at.Revision > removed.Revision || (at.Revision == removed.Revision && at.Offset >= removed.Offset)
	if ok != kept {
		return corruptf("edge %v, which ended at revision %d, is in the history: %t; removed is what is before %v", r.key, at.Revision, ok, removed)
	}
	if kept {
		c.endings++
	}
	return nil
}

// endLog checks that the log of a store ends where the store says.
func (c *checker) endLog() error {
	l := &c.log
	if l.store == 0 {
		return nil
	}
	c.logs[l.store] = true
	r := c.stores[l.store].catalog.record
	if l.left != 0 || r.changed != l.header.Revision || r.sequence != l.next || r.stamp != l.stamp {
		return corruptf("store %d changed last at revision %d and has %d changes, but its log ends at %d and has %d",
			l.store, r.changed, r.sequence-1, l.header.Revision, l.next-1)
	}
	want := 0
	for _, f := range []floor{r.history, r.log} {
		if f.revision != 0 {
			want++
		}
	}
	if l.floors != want {
		return corruptf("store %d has the floors %v and %v, but %d of them in its change log", l.store, r.history, r.log, l.floors)
	}
	return nil
}
