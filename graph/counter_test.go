package graph

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

func TestValidateCounterName(t *testing.T) {
	for name, want := range map[string]string{
		"abc":                         "",
		"a_1":                         "",
		strings.Repeat("a", 64):       "",
		"":                            "is empty",
		"ab":                          "has 2 bytes",
		"a" + strings.Repeat("b", 64): "has 65 bytes",
		"1ab":                         "begins with '1'",
		"_ab":                         "begins with '_'",
		"abc_":                        "ends with '_'",
		"aBc":                         "contains 'B'",
		"a-c":                         "contains '-'",
		"a/c":                         "contains '/'",
		"abö":                         "contains 'ö'",
		"a\xffc":                      "contains the byte 0xff",
	} {
		err := ValidateCounterName(name)
		var invalidErr *InvalidError
		if (want == "") != (err == nil) || (err != nil && (!errors.As(err, &invalidErr) || invalidErr.Problem != want)) {
			t.Errorf("%q: %v, not %q", name, err, want)
		}
	}
}

// TestCounterChange holds what a change of a counter needs, that a refused one
// changes nothing, that the filter is kept as it was given, and that a store's
// counters are no other's and go with it.
func TestCounterChange(t *testing.T) {
	fs := vfs.NewMem()
	db := openTest(t, fs)
	rev := Revision(0)
	commit := func(c Commit) error {
		rev++
		c.Revision, c.Term, c.Stamp = rev, 1, Instant(rev)
		_, err := db.Commit(c)
		return err
	}
	must := func(c Commit) {
		t.Helper()
		if err := commit(c); err != nil {
			t.Fatal(err)
		}
	}
	must(Commit{Init: &Init{ClusterID: [16]byte{1}}})
	must(Commit{StoreChange: &StoreChange{Operation: CreateStore, Name: "tenant"}})
	const tenant = DefaultStore + 1
	none := ""
	full := Filter{
		ObjectType: strings.Repeat("t", MaxNameLength), ObjectIDPrefix: strings.Repeat("i", MaxIDLength), Relation: strings.Repeat("r", MaxNameLength),
		SubjectType: strings.Repeat("s", MaxNameLength), SubjectID: strings.Repeat("j", MaxIDLength), SubjectRelation: &none,
	}
	register := func(name string, f Filter) *CounterChange {
		return &CounterChange{Operation: RegisterCounter, Name: name, Filter: f}
	}
	must(Commit{Store: DefaultStore, CounterChange: register("full", full)})
	must(Commit{Store: DefaultStore, CounterChange: register("all", Filter{})})
	must(Commit{Store: tenant, CounterChange: register("full", Filter{ObjectType: "doc"})})
	before := db.Stores()

	for what, c := range map[string]Commit{
		"registered":     {Store: DefaultStore, CounterChange: register("full", Filter{})},
		"not registered": {Store: tenant, CounterChange: &CounterChange{Operation: UnregisterCounter, Name: "all"}},
		"with a filter":  {Store: DefaultStore, CounterChange: &CounterChange{Operation: UnregisterCounter, Name: "all", Filter: Filter{ObjectType: "doc"}}},
		"no operation":   {Store: DefaultStore, CounterChange: &CounterChange{Name: "new"}},
		"bad name":       {Store: DefaultStore, CounterChange: register("New", Filter{})},
		"bad filter":     {Store: DefaultStore, CounterChange: register("new", Filter{ObjectID: "*"})},
		"no store":       {CounterChange: register("new", Filter{})},
		"unknown store":  {Store: 9, CounterChange: register("new", Filter{})},
		"a schema":       {Store: DefaultStore, CounterChange: register("new", Filter{}), Schema: &SchemaCommit{Text: "x"}},
		"a prune":        {Store: DefaultStore, CounterChange: register("new", Filter{}), Prune: &Prune{}},
		"a stage":        {Store: DefaultStore, CounterChange: register("new", Filter{}), Stage: &StageStep{Operation: StageDrop}},
	} {
		if err := commit(c); err == nil {
			t.Errorf("%s: committed", what)
		}
		rev--
	}
	if after := db.Stores(); !reflect.DeepEqual(after, before) {
		t.Errorf("the stores are %+v, not %+v", after, before)
	}

	check := func(store StoreID, want ...NamedCounter) {
		t.Helper()
		s, err := db.Snapshot(store, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if got, err := s.NamedCounters(); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("the counters of store %d are %+v (%v), not %+v", store, got, err, want)
		}
	}
	check(DefaultStore, NamedCounter{"all", Filter{}}, NamedCounter{"full", full})
	check(tenant, NamedCounter{"full", Filter{ObjectType: "doc"}})
	held, err := db.Snapshot(tenant, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	must(Commit{Store: tenant, StoreChange: &StoreChange{Operation: DropStore}})
	if c, ok, err := held.NamedCounter("full"); !ok || err != nil || c.Filter.ObjectType != "doc" {
		t.Errorf("a snapshot from before the drop has %+v, %t, %v", c, ok, err)
	}
	held.Close()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = openTest(t, fs)
	check(DefaultStore, NamedCounter{"all", Filter{}}, NamedCounter{"full", full})
	must(Commit{StoreChange: &StoreChange{Operation: CreateStore, Name: "tenant"}})
	check(tenant + 1)
	must(Commit{Store: DefaultStore, CounterChange: &CounterChange{Operation: UnregisterCounter, Name: "all"}})
	must(Commit{Store: DefaultStore, CounterChange: register("all", Filter{Relation: "viewer"})})
	check(DefaultStore, NamedCounter{"all", Filter{Relation: "viewer"}}, NamedCounter{"full", full})
	if changes, err := db.Changes(DefaultStore, Position{}, 10); err != nil || len(changes) != 0 {
		t.Errorf("the change log has %+v (%v)", changes, err)
	}
	if err := db.CheckInvariants(); err != nil {
		t.Error(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestDamagedCounter holds that a record which no commit writes is damage, for who
// reads it and for CheckInvariants.
func TestDamagedCounter(t *testing.T) {
	good := (&NamedCounter{Filter: Filter{ObjectType: "doc"}}).append(nil)
	many := map[string][]byte{}
	for i := range NamedCountersMax + 1 {
		many[fmt.Sprintf("many%d", i)] = good
	}
	for what, records := range map[string]map[string][]byte{
		"version":     {"abc": append([]byte{storesVersion}, good[1:]...)},
		"empty":       {"abc": nil},
		"left over":   {"abc": append(good[:len(good):len(good)], 0)},
		"bad name":    {"Abc": good},
		"no name":     {"": good},
		"bad filter":  {"abc": (&NamedCounter{Filter: Filter{ObjectType: "a b"}}).append(nil)},
		"empty field": {"abc": {countersVersion, filterObjectType, 0}},
		"too many":    many,
	} {
		db := openTest(t, vfs.NewMem())
		mustCommit(t, db, Commit{Revision: 1, Term: 1, Stamp: 1, Store: DefaultStore})
		for name, value := range records {
			if err := db.pebble.Set(appendNamedCounterKey(nil, DefaultStore, name), value, pebble.NoSync); err != nil {
				t.Fatal(err)
			}
		}
		if err := db.CheckInvariants(); !IsCorruptionError(err) {
			t.Errorf("%s: the invariants hold: %v", what, err)
		}
		if what != "too many" {
			s, err := db.Snapshot(DefaultStore, 0, 0)
			if err != nil {
				t.Fatal(err)
			}
			if c, err := s.NamedCounters(); !IsCorruptionError(err) {
				t.Errorf("%s: the counters are %+v (%v)", what, c, err)
			}
			for name := range records {
				if c, _, err := s.NamedCounter(name); !IsCorruptionError(err) {
					t.Errorf("%s: the counter %q is %+v (%v)", what, name, c, err)
				}
			}
			s.Close()
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMarkedUpgrade holds that a directory of format version 3 opens with all that
// is in it, is of the newest version then, also when a crash took the mark back,
// and keeps counters.
func TestMarkedUpgrade(t *testing.T) {
	fs := vfs.NewCrashableMem()
	db := openTest(t, fs)
	g, m := newGenerator(12), newModel()
	g.begin(t, m, db)
	for range 20 {
		c := g.commit(m)
		if c.CounterChange != nil {
			continue
		}
		mustCommit(t, db, c)
		m.commit(c)
	}
	older(t, db, m, storesVersion)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	marked := openTest(t, fs)
	clone := fs.CrashClone(vfs.CrashCloneCfg{})
	if err := marked.Close(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []vfs.FS{clone, fs} {
		db := openTest(t, dir)
		if value, ok, err := get(db.pebble, metaKey(metaFormat)); err != nil || !ok || string(value) != string(rune(formatVersion)) {
			t.Fatalf("the format version is %x, %t (%v)", value, ok, err)
		}
		for rev := Revision(1); rev <= m.applied; rev++ {
			compare(t, g, m, db, rev)
		}
		compareLog(t, g, m, db)
		mustCommit(t, db, Commit{
			Revision: m.applied + 1, Term: 1, Stamp: m.stamp, Store: DefaultStore,
			CounterChange: &CounterChange{Operation: RegisterCounter, Name: "abc"},
		})
		if err := db.CheckInvariants(); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		db = openTest(t, dir)
		s, err := db.Snapshot(DefaultStore, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok, err := s.NamedCounter("abc"); !ok || err != nil {
			t.Fatalf("the counter is kept: %t (%v)", ok, err)
		}
		s.Close()
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
