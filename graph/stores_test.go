package graph

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// A tenancy is a model for each store that lives, and what lived when.
type tenancy struct {
	models  map[string]*model
	applied Revision
	stamp   Instant
	next    StoreID
	dropped []StoreID
	past    []tenants // ascending
}

// tenants are the stores from a revision on, by name.
type tenants struct {
	from   Revision
	models map[string]*model
}

func (y *tenancy) at(rev Revision) (models map[string]*model) {
	for _, p := range y.past {
		if p.from <= rev {
			models = p.models
		}
	}
	return models
}

// commit makes a random commit in a random store, or creates or drops one.
func (y *tenancy) commit(t *testing.T, g *generator, db *DB) {
	t.Helper()
	names := slices.Sorted(maps.Keys(y.models))
	name := pick(g, names)
	m := y.models[name]
	m.applied, m.stamp = y.applied, y.stamp
	c := g.commit(m)
	switch free := fmt.Sprintf("tenant-%d", g.IntN(4)); {
	case g.IntN(8) == 0 && y.models[free] == nil:
		most := uint64(g.IntN(9))
		c = Commit{
			Revision: c.Revision, Term: 1, Stamp: c.Stamp,
			StoreChange: &StoreChange{Operation: CreateStore, Name: free, TuplesMax: &most},
		}
		receipt, err := db.Commit(c)
		if err != nil || receipt.Store != y.next {
			t.Fatalf("created store %d (%v), not %d", receipt.Store, err, y.next)
		}
		made := newModel()
		made.store, made.settings.TuplesMax, made.applied, made.stamp = y.next, most, c.Revision, c.Stamp
		y.models[free] = made
		y.next++
		y.past = append(y.past, tenants{c.Revision, maps.Clone(y.models)})
		g.begin(t, made, db)
		y.applied, y.stamp = made.applied, made.stamp
		return
	case g.IntN(12) == 0 && name != DefaultStoreName:
		c = Commit{
			Revision: c.Revision, Term: 1, Stamp: c.Stamp, Store: m.store,
			StoreChange: &StoreChange{Operation: DropStore},
		}
		mustCommit(t, db, c)
		delete(y.models, name)
		y.dropped = append(y.dropped, m.store)
	default:
		mustCommit(t, db, c)
		m.commit(c)
		y.applied, y.stamp = c.Revision, c.Stamp
		return
	}
	y.applied, y.stamp = c.Revision, c.Stamp
	y.past = append(y.past, tenants{c.Revision, maps.Clone(y.models)})
}

// compareStores holds the stores of a DB against those that lived at its applied
// revision.
func (y *tenancy) compare(t *testing.T, g *generator, db *DB) {
	t.Helper()
	applied := db.Applied().Revision
	models := y.at(applied)
	want := slices.Sorted(maps.Keys(models))
	var got []string
	for _, s := range db.Stores() {
		got = append(got, s.Name)
		m := models[s.Name]
		if m == nil || s.ID != m.store || s.Settings.TuplesMax != m.settings.TuplesMax {
			t.Fatalf("store %+v at %d", s, applied)
		}
		if named, ok := db.StoreNamed(s.Name); !ok || named != s {
			t.Fatalf("store %+v is %+v by its name", s, named)
		}
		now := uint64(0)
		for _, v := range m.versions {
			if v.tuple.Created <= applied && (v.ended == 0 || applied < v.ended) {
				now++
			}
		}
		if s.Tuples != now {
			t.Fatalf("store %+v has %d tuples", s, now)
		}
		compareInfo(t, m, db, applied)
		compare(t, g, m, db, applied)
		if floor := m.floorsAt(applied).history.revision; floor != 0 {
			compare(t, g, m, db, floor)
			compare(t, g, m, db, floor-1)
		}
	}
	if !slices.Equal(got, want) {
		t.Fatalf("the stores at %d are %v, not %v", applied, got, want)
	}
	for _, id := range append([]StoreID{0, y.next}, y.dropped...) {
		if slices.ContainsFunc(db.Stores(), func(s StoreInfo) bool { return s.ID == id }) {
			continue // Dropped later than the applied revision.
		}
		_, snapshot := db.Snapshot(id, 0, 0)
		_, changes := db.Changes(id, Position{}, 1)
		_, at := db.RevisionAt(id, 1)
		_, schemas := db.SchemaVersions(id, 0, 1)
		_, commit := db.Commit(Commit{Revision: applied + 1, Term: 1, Stamp: MaxInstant, Store: id, Prune: &Prune{}})
		for _, err := range []error{snapshot, changes, at, schemas, commit} {
			if !errors.Is(err, ErrUnknownStore) {
				t.Fatalf("store %d at %d: %v", id, applied, err)
			}
		}
		if more, err := db.Remove(id, stepRecords); more || err != nil {
			t.Fatalf("remove of store %d: %t, %v", id, more, err)
		}
		if _, ok := db.StoreInfo(id); ok || db.Counters(id) != nil {
			t.Fatalf("store %d is known", id)
		}
	}
	if err := db.CheckInvariants(); err != nil {
		t.Fatal(err)
	}
}

// TestStores creates, changes, prunes and drops stores with the same names in
// them, through restarts and crashes, and holds each against a model of its own.
func TestStores(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rounds := 2
	if testing.Short() || slow {
		rounds = 1
	}
	for range rounds {
		g, fs := newGenerator(seed), vfs.NewCrashableMem()
		seed++
		db := openTest(t, fs)
		first := newModel()
		g.begin(t, first, db)
		y := &tenancy{models: map[string]*model{DefaultStoreName: first}, next: 2, applied: first.applied, stamp: first.stamp}
		y.past = []tenants{{from: y.applied, models: maps.Clone(y.models)}}
		for range 150 {
			y.commit(t, g, db)
			if g.IntN(3) == 0 {
				if _, err := db.Remove(StoreID(1+g.IntN(int(y.next))), stepRecords); err != nil {
					t.Fatal(err)
				}
			}
			switch g.IntN(16) {
			case 0:
				if _, err := db.Flush(); err != nil {
					t.Fatal(err)
				}
			case 1:
				y.compare(t, g, db)
			case 2:
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
				db = openTest(t, fs)
				if db.nextStore != y.next {
					t.Fatalf("the next store is %d, not %d", db.nextStore, y.next)
				}
			case 3:
				clone := fs.CrashClone(vfs.CrashCloneCfg{
					UnsyncedDataPercent: pick(g, []int{0, 50, 100}), RNG: rand.New(rand.NewPCG(seed, uint64(y.applied))),
				})
				back := openTest(t, clone)
				y.compare(t, g, back)
				for _, s := range back.Stores() {
					mustRemove(t, back, s.ID)
				}
				y.compare(t, g, back)
				if err := back.Close(); err != nil {
					t.Fatal(err)
				}
			}
		}
		y.compare(t, g, db)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStoreErrors holds that a commit which may not be made changes nothing.
func TestStoreErrors(t *testing.T) {
	db := openTest(t, vfs.NewMem())
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	// It would take the number or the name of the default store.
	_, err := db.Commit(Commit{Revision: 1, Term: 1, Stamp: 1, StoreChange: &StoreChange{Operation: CreateStore, Name: "early"}})
	if err == nil || !strings.Contains(err.Error(), "before the cluster's id") || len(db.Stores()) > 0 {
		t.Errorf("a store before the default store: %v, %+v", err, db.Stores())
	}
	mustCommit(t, db, Commit{Revision: 1, Term: 1, Stamp: 1, Store: 1})
	short := Retention(1)
	tuple := create(mustParse(t, "doc:a#viewer@user:x"))
	for _, c := range []struct {
		commit Commit
		want   string
	}{
		{Commit{StoreChange: &StoreChange{Operation: CreateStore, Name: DefaultStoreName}}, "store 1 has the name default already"},
		{Commit{StoreChange: &StoreChange{Operation: CreateStore, Name: "a b"}}, "store name"},
		{Commit{Store: 1, StoreChange: &StoreChange{Operation: CreateStore, Name: "b"}}, "has the number 1 already"},
		{Commit{Store: 1, StoreChange: &StoreChange{Operation: DropStore}}, "cannot be dropped"},
		{Commit{Store: 1, StoreChange: &StoreChange{Operation: SetStore, Log: &short}}, "log retention"},
		{Commit{Store: 1, StoreChange: &StoreChange{}}, "store change"},
		{Commit{Store: 1, Prune: &Prune{}, Changes: tuple}, "each alone"},
		{Commit{Store: 7, Changes: tuple}, "there is no such store"},
		{Commit{Store: 7, StoreChange: &StoreChange{Operation: SetStore}}, "there is no such store"},
	} {
		before := fmt.Sprintf("%+v", db.Stores())
		c.commit.Revision, c.commit.Term, c.commit.Stamp = 2, 1, 1
		if _, err := db.Commit(c.commit); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, expected %q", c.commit, err, c.want)
		}
		if after := fmt.Sprintf("%+v", db.Stores()); after != before {
			t.Errorf("%+v made %s of %s", c.commit, after, before)
		}
	}
	db.nextStore = 1<<32 - 1
	_, err = db.Commit(Commit{Revision: 2, Term: 1, Stamp: 1, StoreChange: &StoreChange{Operation: CreateStore, Name: "last"}})
	if !errors.Is(err, ErrExhausted) {
		t.Errorf("error %v", err)
	}
}

// TestDropBesideSnapshot holds that an open snapshot of a dropped store still
// shows everything, and that another store of its name is another.
func TestDropBesideSnapshot(t *testing.T) {
	db := openTest(t, vfs.NewMem())
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	mustCommit(t, db, Commit{Revision: 1, Term: 1, Stamp: 1, Store: 1})
	named := func(rev Revision) StoreID {
		receipt, err := db.Commit(Commit{Revision: rev, Term: 1, Stamp: 1, StoreChange: &StoreChange{Operation: CreateStore, Name: "tenant"}})
		if err != nil {
			t.Fatal(err)
		}
		return receipt.Store
	}
	first := named(2)
	tuple := mustParse(t, "doc:a#viewer@user:x")
	mustCommit(t, db, Commit{Revision: 3, Term: 1, Stamp: 1, Store: first, Changes: create(tuple)})
	s, err := db.Snapshot(first, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	mustCommit(t, db, Commit{Revision: 4, Term: 1, Stamp: 1, Store: first, StoreChange: &StoreChange{Operation: DropStore}})
	second := named(5)
	if second == first {
		t.Fatalf("store %d was given out again", first)
	}
	if _, err := db.Flush(); err != nil {
		t.Fatal(err)
	}
	if tuples, _, err := s.Read(Filter{}, nil, 10); err != nil || len(tuples) != 1 {
		t.Errorf("read %v, %v", tuples, err)
	}
	if n, err := s.Count(Filter{}); err != nil || n != 1 {
		t.Errorf("count %d, %v", n, err)
	}
	s.Close()
	if s, err = db.Snapshot(second, 0, 0); err != nil {
		t.Fatal(err)
	}
	if tuples, _, err := s.Read(Filter{}, nil, 10); err != nil || len(tuples) != 0 || s.Shape("doc", "") != 0 {
		t.Errorf("the new store has %v, %v", tuples, err)
	}
	s.Close()
	mustCommit(t, db, Commit{Revision: 6, Term: 1, Stamp: 1, Store: second, Changes: create(tuple)})
	if changes, err := db.Changes(second, Position{}, 10); err != nil || len(changes) != 1 || changes[0].Sequence != 1 {
		t.Errorf("the new store's log is %v, %v", changes, err)
	}
}

// TestRemoveBesides removes while others commit, prune, flush and read: what a
// snapshot shows does not change, and nothing is lost that is kept.
func TestRemoveBesides(t *testing.T) {
	db := openTest(t, vfs.NewMem())
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	tuple := func(i int) Tuple { return mustParse(t, fmt.Sprintf("doc:%d#viewer@user:x", i%20)) }
	second := MinRetention
	mustCommit(t, db, Commit{Revision: 1, Term: 1, Stamp: 1, Store: 1, Changes: create(tuple(0))})
	mustCommit(t, db, Commit{Revision: 2, Term: 1, Stamp: 1, Store: 1, StoreChange: &StoreChange{Operation: SetStore, History: &second, Log: &second}})
	var done atomic.Bool
	var others sync.WaitGroup
	others.Go(func() {
		for !done.Load() {
			if _, err := db.Remove(1, stepRecords); err != nil {
				t.Error(err)
				return
			}
		}
	})
	others.Go(func() {
		for !done.Load() {
			if _, err := db.Flush(); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 2 {
		others.Go(func() {
			for !done.Load() && !t.Failed() {
				info, _ := db.StoreInfo(1)
				s, err := db.Snapshot(1, max(info.OldestHistory, 1), 0)
				if errors.Is(err, ErrRevisionGone) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				for range 5 {
					if tuples, _, err := s.Read(Filter{}, nil, 10); err != nil || len(tuples) != 1 {
						t.Errorf("at %d: tuples %v, %v", s.Revision(), tuples, err)
					}
				}
				s.Close()
			}
		})
	}
	commits := 600
	if slow {
		commits = 100
	}
	at := Revision(1)
	for i := range commits {
		rev, stamp := Revision(2*i+3), Instant(i)*100_000
		old := tuple(i)
		old.Created = at
		mustCommit(t, db, Commit{
			Revision: rev, Term: 1, Stamp: max(stamp, 1), Store: 1,
			Changes: append(create(tuple(i+1)), Change{Kind: Deleted, Tuple: old, Before: &old}),
		})
		mustCommit(t, db, Commit{Revision: rev + 1, Term: 1, Stamp: max(stamp, 1), Store: 1, Prune: &Prune{}})
		at = rev
	}
	done.Store(true)
	others.Wait()
	mustRemove(t, db, 1)
	if err := db.CheckInvariants(); err != nil {
		t.Fatal(err)
	}
	ended, logged := 0, 0
	for space, n := range map[keyspace]*int{spaceForwardHistory: &ended, spaceLog: &logged} {
		if err := scan(db.pebble, appendStore(nil, space, 1), func([]byte, []byte) error { *n++; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	// Ten commits a second, each with a header and two changes.
	if ended > 12 || logged > 3*12 {
		t.Errorf("%d ended tuples and %d records of the log are left of a second", ended, logged)
	}
}

// TestNewestBesidePrune holds that the newest state can always be read, however
// much is committed and pruned while a snapshot is being made.
func TestNewestBesidePrune(t *testing.T) {
	db := openTest(t, vfs.NewMem())
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	stamp, kept := Instant(1), MinRetention
	mustCommit(t, db, Commit{Revision: 1, Term: 1, Stamp: stamp, Store: 1})
	mustCommit(t, db, Commit{Revision: 2, Term: 1, Stamp: stamp, Store: 1, StoreChange: &StoreChange{Operation: SetStore, History: &kept}})
	var readers sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				s, err := db.Snapshot(1, 0, 0)
				if err != nil {
					t.Error(err)
					return
				}
				s.Close()
			}
		})
	}
	for rev := Revision(3); rev < 3000; rev += 2 {
		stamp += 2 * Instant(kept)
		mustCommit(t, db, Commit{Revision: rev, Term: 1, Stamp: stamp, Store: 1, Schema: &SchemaCommit{Text: "x"}})
		stamp += 2 * Instant(kept)
		mustCommit(t, db, Commit{Revision: rev + 1, Term: 1, Stamp: stamp, Store: 1, Prune: &Prune{}})
	}
	close(stop)
	readers.Wait()
}

// TestUpgrade holds that a directory of format version 1 opens with everything in
// it, also when the crash that follows takes the rewriting back.
func TestUpgrade(t *testing.T) {
	fs := vfs.NewCrashableMem()
	db := openTest(t, fs)
	g, m := newGenerator(11), newModel()
	g.begin(t, m, db)
	for range 20 {
		c := g.commit(m)
		if c.Prune != nil || c.StoreChange != nil || c.CounterChange != nil {
			continue
		}
		mustCommit(t, db, c)
		m.commit(c)
	}
	b := db.pebble.NewBatch()
	set := func(key, value []byte) {
		if err := b.Set(key, value, nil); err != nil {
			t.Fatal(err)
		}
	}
	r := db.stores[1].catalog.record
	value := binary.AppendUvarint([]byte{1}, uint64(r.changed))
	value = binary.AppendUvarint(value, uint64(r.stamp))
	set(appendStore(nil, spaceStore, 1), append(binary.AppendUvarint(value, r.sequence), 0))
	for _, v := range m.schemas {
		set(appendSchemaKey(nil, 1, v.Revision), []byte(v.Text))
	}
	if err := b.Delete(metaKey(metaStores), nil); err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	older(t, db, m, oldestFormatVersion)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	crashed := openTest(t, fs)
	clone := fs.CrashClone(vfs.CrashCloneCfg{})
	if err := crashed.Close(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []vfs.FS{clone, fs} {
		db := openTest(t, dir)
		info, ok := db.StoreNamed(DefaultStoreName)
		if !ok || info.ID != DefaultStore || info.Settings != (StoreSettings{History: DefaultRetention, Log: DefaultRetention}) || info.Changed != r.changed {
			t.Fatalf("store %+v", info)
		}
		for rev := Revision(1); rev <= m.applied; rev++ {
			compare(t, g, m, db, rev)
		}
		compareLog(t, g, m, db)
		if err := db.CheckInvariants(); err != nil {
			t.Fatal(err)
		}
		if a := db.Applied(); a.ChecksumSince != 0 || a.Checksum != 0 {
			t.Fatalf("the checksum is %+v", a)
		}
		receipt, err := db.Commit(Commit{
			Revision: m.applied + 1, Term: 1, Stamp: m.stamp, StoreChange: &StoreChange{Operation: CreateStore, Name: "second"},
		})
		if err != nil || receipt.Store != 2 {
			t.Fatalf("store %d, %v", receipt.Store, err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
