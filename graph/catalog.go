package graph

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"github.com/pembadb/pemba/graph/resident"
)

// The ends of the number spaces, and how many shapes and caveats a store may
// have. The caps keep the tables that every DB holds in memory small; the keys
// have room for more.
const (
	endShape  Shape        = 1 << 20
	endCaveat CaveatNumber = 1 << 20
)

// A ShapeName is the pair that a Shape numbers. Relation is empty for the plain
// type.
type ShapeName struct {
	Type     string
	Relation string
}

// String returns the pair as it stands in text: type#relation or type.
func (n ShapeName) String() string {
	if n.Relation == "" {
		return n.Type
	}
	return n.Type + "#" + n.Relation
}

// A catalog is what a store knows beside its tuples, held still. Numbers in it
// are only ever added, so that a snapshot may use a catalog newer than itself:
// what is newer appears in no tuple that the snapshot sees.
//
// Invariant: shapes[s-1] is the name of s and index is its inverse; a pair's
// plain type has a shape too; caveats likewise.
type catalog struct {
	shapes      []ShapeName
	index       map[ShapeName]Shape
	caveats     []string
	caveatIndex map[string]CaveatNumber

	// schema is the newest version, or zero.
	schema SchemaVersion
	record storeRecord
}

func newCatalog() *catalog {
	return &catalog{
		index:       map[ShapeName]Shape{},
		caveatIndex: map[string]CaveatNumber{},
		record:      storeRecord{sequence: 1},
	}
}

var emptyCatalog = newCatalog()

// name returns the zero ShapeName for a shape that was never given out.
func (c *catalog) name(s Shape) ShapeName {
	if s == 0 || int(s) > len(c.shapes) {
		return ShapeName{}
	}
	return c.shapes[s-1]
}

func (c *catalog) caveat(n CaveatNumber) string {
	if n == 0 || int(n) > len(c.caveats) {
		return ""
	}
	return c.caveats[n-1]
}

// plain returns the shape of the type of a shape, or zero.
func (c *catalog) plain(s Shape) Shape {
	return c.index[ShapeName{Type: c.name(s).Type}]
}

// typeOf is plain as package resident asks for it.
func (c *catalog) typeOf(shape uint32) uint32 { return uint32(c.plain(Shape(shape))) }

// A store is the memory of one store: its catalog for all, its counters, and
// the next numbers for the one who commits.
type store struct {
	id       StoreID
	catalog  *catalog              // guarded by DB.mu; what it points to never changes
	counters map[counterKey]uint64 // guarded by DB.mu
	tuples   uint64                // the sum of counters; guarded by DB.mu
	next     map[Shape]Number      // of plain types; used by Commit alone
	// resident is the store's adjacency in memory, and named the numbers of its names;
	// nil where none are kept.
	resident *resident.Graph
	named    atomic.Pointer[resident.Names]
}

// A counterKey is what tuples are counted by.
type counterKey struct {
	relation Shape
	subject  Shape
	wildcard bool
	expiring bool
	caveat   CaveatNumber
}

func (k counterKey) compare(o counterKey) int {
	var kb, ob [counterLen]byte
	return bytes.Compare(k.append(kb[:0], 0), o.append(ob[:0], 0))
}

const (
	counterWildcard = 1 << 0
	counterExpiring = 1 << 1
)

func (k counterKey) append(dst []byte, store StoreID) []byte {
	dst = appendShape(appendStore(dst, spaceCounter, store), k.relation)
	dst = appendShape(dst, k.subject)
	var flags byte
	if k.wildcard {
		flags |= counterWildcard
	}
	if k.expiring {
		flags |= counterExpiring
	}
	return appendShape(append(dst, flags), Shape(k.caveat))
}

func parseCounterKey(key []byte) (counterKey, error) {
	if len(key) != counterLen || key[storeEnd+6]&^(counterWildcard|counterExpiring) != 0 {
		return counterKey{}, corruptf("counter key %x", cut(key))
	}
	b := key[storeEnd:]
	return counterKey{
		relation: getShape(b[0:]),
		subject:  getShape(b[3:]),
		wildcard: b[6]&counterWildcard != 0,
		expiring: b[6]&counterExpiring != 0,
		caveat:   CaveatNumber(getShape(b[7:])),
	}, nil
}

func counterOf(k edgeKey, v *edgeValue) counterKey {
	return counterKey{
		relation: k.relation,
		subject:  k.subject,
		wildcard: k.number == WildcardNumber,
		expiring: v.until != 0,
		caveat:   v.caveat,
	}
}

// A Counter says how many current tuples of one kind a store holds, those whose
// lifetime is over but which were not collected among them.
type Counter struct {
	// Relation is the shape of the object's type and relation, Subject that of
	// the subject; Snapshot.ShapeName names them.
	Relation Shape
	Subject  Shape
	// Wildcard says that the subjects are wildcards, Expiring that the tuples
	// have a ValidUntil.
	Wildcard bool
	Expiring bool
	// Caveat is the caveat that the tuples carry, or zero.
	Caveat CaveatNumber
	// Count is at least 1.
	Count uint64
}

// Counters returns how many tuples a store holds, by relation, subject, caveat
// and so on, as of the last Commit; none for an unknown store. They are kept in
// memory, in an order that is the same on every node.
func (db *DB) Counters(id StoreID) []Counter {
	db.mu.Lock()
	defer db.mu.Unlock()
	st := db.stores[id]
	if st == nil {
		return nil
	}
	keys := slices.SortedFunc(maps.Keys(st.counters), counterKey.compare)
	counters := make([]Counter, len(keys))
	for i, k := range keys {
		counters[i] = Counter{
			Relation: k.relation,
			Subject:  k.subject,
			Wildcard: k.wildcard,
			Expiring: k.expiring,
			Caveat:   k.caveat,
			Count:    st.counters[k],
		}
	}
	return counters
}

// loadStores reads the memory of every store from r.
func loadStores(r pebble.Reader) (map[StoreID]*store, error) {
	stores := map[StoreID]*store{}
	err := scan(r, []byte{spaceStore}, func(key, value []byte) error {
		if len(key) != storeEnd {
			return corruptf("store key %x", cut(key))
		}
		st := &store{
			id:       storeOf(key),
			catalog:  newCatalog(),
			counters: map[counterKey]uint64{},
			next:     map[Shape]Number{},
		}
		stores[st.id] = st
		return st.catalog.record.decode(value)
	})
	if err != nil {
		return nil, fmt.Errorf("read the list of stores: %w", err)
	}
	for _, st := range stores {
		if err := st.load(r); err != nil {
			return nil, fmt.Errorf("read store %d: %w", st.id, err)
		}
	}
	return stores, nil
}

func (st *store) load(r pebble.Reader) error {
	c := st.catalog
	space := func(s keyspace) []byte { return appendStore(nil, s, st.id) }
	err := scan(r, space(spaceShape), func(key, value []byte) error {
		d := decoder{b: value}
		name := ShapeName{Type: string(d.bytes()), Relation: string(d.bytes())}
		c.shapes = append(c.shapes, name)
		c.index[name] = Shape(len(c.shapes))
		if len(key) != storeEnd+3 || getShape(key[storeEnd:]) != Shape(len(c.shapes)) {
			return corruptf("shape key %x is not of number %d", cut(key), len(c.shapes))
		}
		return d.finish("a shape")
	})
	if err != nil {
		return err
	}
	err = scan(r, space(spaceCaveat), func(key, value []byte) error {
		c.caveats = append(c.caveats, string(value))
		c.caveatIndex[string(value)] = CaveatNumber(len(c.caveats))
		if len(key) != storeEnd+3 || getShape(key[storeEnd:]) != Shape(len(c.caveats)) {
			return corruptf("caveat key %x is not of number %d", cut(key), len(c.caveats))
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = scan(r, space(spaceNext), func(key, value []byte) error {
		d := decoder{b: value}
		n := Number(d.uvarint())
		if n > EphemeralNumber {
			d.fail("number out of range")
		}
		if len(key) != storeEnd+3 || c.plain(getShape(key[storeEnd:])) != getShape(key[storeEnd:]) {
			return corruptf("key %x of a next number is not of a type", cut(key))
		}
		st.next[getShape(key[storeEnd:])] = n
		return d.finish("a next number")
	})
	if err != nil {
		return err
	}
	err = scan(r, space(spaceCounter), func(key, value []byte) error {
		k, err := parseCounterKey(key)
		if err != nil {
			return err
		}
		d := decoder{b: value}
		st.counters[k] = d.uvarint()
		st.tuples += st.counters[k]
		return d.finish("a counter")
	})
	if err != nil {
		return err
	}
	return scan(r, space(spaceSchema), func(key, value []byte) (err error) {
		c.schema, err = decodeSchema(key, value)
		return err
	})
}
