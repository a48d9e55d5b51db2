package graph

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// The bounds of named counters. They are the same on every node, for they decide
// what is refused.
const (
	// NamedCountersMax is how many named counters a store may have.
	NamedCountersMax = 1000
	// MaxCounterNameLength bounds the name of a named counter, in bytes. Its filter
	// is bounded by its names and ids, to less than 4 KiB.
	MaxCounterNameLength = 64
)

const counterNameAllowed = "3 to 64 lower-case letters, digits and '_', the first a letter, the last not '_'"

// A NamedCounter is a filter that a store keeps under a name, so that who asks for
// the count of what matches need not say it again. Nothing is counted before it is
// asked: Snapshot.Count is. It follows no schema: where a type that the filter
// names is no more, nothing matches.
type NamedCounter struct {
	// Name is as ValidateCounterName has it, and names one counter of its store.
	Name   string
	Filter Filter
}

// A CounterOperation says what a CounterChange does.
type CounterOperation uint8

// The operations of a CounterChange.
const (
	// RegisterCounter makes a named counter; there must be none of the name.
	RegisterCounter CounterOperation = iota + 1
	// UnregisterCounter takes one away; there must be one of the name.
	UnregisterCounter
)

// A CounterChange registers or unregisters a named counter. It stands in no change
// log, for it changes no tuple and no schema.
type CounterChange struct {
	Operation CounterOperation
	Name      string
	// Filter goes with RegisterCounter.
	Filter Filter
}

// ValidateCounterName checks the name of a named counter: 3 to 64 lower-case
// letters, digits and '_', the first a letter, the last not '_'. Letters are those
// of ASCII. The error is an *InvalidError.
func ValidateCounterName(name string) error {
	const field = "counter name"
	lower := func(c byte) bool { return 'a' <= c && c <= 'z' }
	switch {
	case name == "":
		return invalid(field, "", "is empty", counterNameAllowed)
	case len(name) < 3 || len(name) > MaxCounterNameLength:
		return invalid(field, name, fmt.Sprintf("has %d bytes", len(name)), counterNameAllowed)
	case !lower(name[0]):
		return invalid(field, name, "begins with "+runeAt(name, 0), counterNameAllowed)
	case name[len(name)-1] == '_':
		return invalid(field, name, "ends with '_'", counterNameAllowed)
	}
	for i := range len(name) {
		if c := name[i]; !lower(c) && (c < '0' || c > '9') && c != '_' {
			return invalid(field, name, "contains "+runeAt(name, i), counterNameAllowed)
		}
	}
	return nil
}

func (c *CounterChange) validate() error {
	if c == nil {
		return nil
	}
	if err := ValidateCounterName(c.Name); err != nil {
		return err
	}
	switch c.Operation {
	case RegisterCounter:
		return c.Filter.Validate()
	case UnregisterCounter:
		if c.Filter != (Filter{}) {
			return invalid("counter change", c.Name, "has a filter", "a filter to register a counter only")
		}
		return nil
	}
	return invalid("counter change", fmt.Sprint(uint8(c.Operation)), "is unknown", "register (1), unregister (2)")
}

func (c *CounterChange) append(dst []byte) []byte {
	return c.Filter.append(appendString(append(dst, byte(c.Operation)), c.Name))
}

func (c *CounterChange) decode(d *decoder) {
	c.Operation, c.Name = CounterOperation(d.byte()), d.string()
	c.Filter.decode(d)
}

// NamedCounter returns the named counter of a name, as of the newest revision when
// the snapshot was made. It is false when there is none.
func (s *Snapshot) NamedCounter(name string) (NamedCounter, bool, error) {
	c, ok, err := readNamedCounter(s.view.pebble, s.store, name)
	if err != nil {
		return NamedCounter{}, false, fmt.Errorf("look up the counter %q: %w", name, err)
	}
	return c, ok, nil
}

// NamedCounters returns the named counters of the store, by name, as of the newest
// revision when the snapshot was made.
func (s *Snapshot) NamedCounters() ([]NamedCounter, error) {
	var counters []NamedCounter
	err := scan(s.view.pebble, appendStore(nil, spaceNamedCounter, s.store), func(key, value []byte) error {
		c, err := decodeNamedCounter(key, value)
		counters = append(counters, c)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the counters: %w", err)
	}
	return counters, nil
}

// CountNamedCounters returns how many NamedCounters returns. It reads no filters, and
// takes some tenths of a microsecond each.
func (s *Snapshot) CountNamedCounters() (int, error) {
	n := 0
	err := scan(s.view.pebble, appendStore(nil, spaceNamedCounter, s.store), func([]byte, []byte) error {
		n++
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("count the counters: %w", err)
	}
	return n, nil
}

func appendNamedCounterKey(dst []byte, store StoreID, name string) []byte {
	return append(appendStore(dst, spaceNamedCounter, store), name...)
}

func (c *NamedCounter) append(dst []byte) []byte {
	return c.Filter.append(append(dst, countersVersion))
}

// decodeNamedCounter reads a key and value of spaceNamedCounter.
func decodeNamedCounter(key, value []byte) (NamedCounter, error) {
	if len(key) < storeEnd {
		return NamedCounter{}, corruptf("key %x of a named counter", cut(key))
	}
	c := NamedCounter{Name: string(key[storeEnd:])}
	d := decoder{b: value}
	d.version(countersVersion)
	c.Filter.decode(&d)
	if d.err == "" && (ValidateCounterName(c.Name) != nil || c.Filter.Validate() != nil) {
		d.fail("not a name and a filter")
	}
	return c, d.finish("a named counter")
}

func readNamedCounter(r pebble.Reader, store StoreID, name string) (NamedCounter, bool, error) {
	key := appendNamedCounterKey(nil, store, name)
	value, ok, err := get(r, key)
	if err != nil || !ok {
		return NamedCounter{}, false, err
	}
	c, err := decodeNamedCounter(key, value)
	return c, err == nil, err
}

// changeCounter puts a CounterChange into the batch.
func (w *writer) changeCounter(db *DB) error {
	c := w.c
	if len(c.Changes) > 0 || c.Schema != nil || c.Init != nil || c.StoreChange != nil || c.Prune != nil || c.Stage != nil || c.StartChecksum != nil || c.Renew != nil {
		return fmt.Errorf("the change of a counter is alone in its commit")
	}
	if err := c.CounterChange.validate(); err != nil {
		return err
	}
	if !w.find(db) {
		return fmt.Errorf("store %d: %w", c.Store, ErrUnknownStore)
	}
	name := c.CounterChange.Name
	_, exists, err := readNamedCounter(db.pebble, c.Store, name)
	if err != nil {
		return err
	}
	if register := c.CounterChange.Operation == RegisterCounter; register == exists {
		return fmt.Errorf("counter %s is registered: %t", name, exists)
	}
	w.key = appendNamedCounterKey(w.key[:0], c.Store, name)
	if exists {
		return w.batch.Delete(w.key, nil)
	}
	counter := NamedCounter{Name: name, Filter: c.CounterChange.Filter}
	w.value = counter.append(w.value[:0])
	return w.batch.Set(w.key, w.value, nil)
}

// namedCounter checks a named counter.
func (c *checker) namedCounter(st *store, key, value []byte) error {
	if _, err := decodeNamedCounter(key, value); err != nil {
		return err
	}
	if c.named[st.id]++; c.named[st.id] > NamedCountersMax {
		return corruptf("store %d has more than %d named counters", st.id, NamedCountersMax)
	}
	return nil
}
