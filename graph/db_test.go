package graph

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

func mustParse(t testing.TB, text string) Tuple {
	t.Helper()
	tuple, err := ParseTuple(text)
	if err != nil {
		t.Fatal(err)
	}
	return tuple
}

func create(tuples ...Tuple) []Change {
	var changes []Change
	for _, t := range tuples {
		changes = append(changes, Change{Kind: Created, Tuple: t})
	}
	return changes
}

func TestConfig(t *testing.T) {
	for _, c := range []Config{
		{},
		{Dir: "x", CacheBytes: -1},
		{Dir: "x", MemTableBytes: 1},
		{Dir: "x", MemTableBytes: 1 << 40},
	} {
		var invalidErr *InvalidError
		if _, err := Open(c); !errors.As(err, &invalidErr) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestMutation holds that mutations of every kind survive encoding, and that
// decoding refuses every strict prefix and every extension.
func TestMutation(t *testing.T) {
	for _, m := range mutations(t) {
		b := m.AppendBinary([]byte("x"))[1:]
		got, err := DecodeMutation(b)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%+v became %+v (%v)", m, got, err)
		}
		for i := range b {
			if _, err := DecodeMutation(b[:i]); !errors.Is(err, ErrInvalidMutation) {
				t.Errorf("%d bytes of %+v: %v", i, m, err)
			}
		}
		if _, err := DecodeMutation(append(b, 0)); !errors.Is(err, ErrInvalidMutation) {
			t.Errorf("a byte more than %+v: %v", m, err)
		}
		if err := m.Validate(); (err == nil) == reflect.DeepEqual(m, &Mutation{}) {
			t.Errorf("validate %+v: %v", m, err)
		}
	}
}

func TestValidateMutation(t *testing.T) {
	tuple := mustParse(t, "doc:a#viewer@user:x")
	wild := tuple
	wild.Object.ID = Wildcard
	sources := tuple
	sources.Sources = []string{"b", "a"}
	context := tuple
	context.Context = []byte(`{"a":1}`)
	loose := context
	loose.Caveat, loose.Context = "tenant", []byte(`{"a": 1}`)
	for _, c := range []struct {
		m    Mutation
		want string
	}{
		{Mutation{Store: 1}, "asks 0 things"},
		{Mutation{Store: 1, Schema: &WriteSchema{}, Collect: &Collect{1}}, "asks 2 things"},
		{Mutation{Schema: &WriteSchema{}}, "mutation's store"},
		{Mutation{Store: 1, Init: &Init{ClusterID: [16]byte{1}}}, "mutation's store"},
		{Mutation{Init: &Init{}}, "cluster id"},
		{Mutation{Renew: &Renew{}}, "cluster id"},
		{Mutation{Store: 1, Renew: &Renew{ClusterID: [16]byte{1}}}, "mutation's store"},
		{Mutation{Store: 1, StartChecksum: &StartChecksum{}}, "mutation's store"},
		{Mutation{Store: 1, Settle: &Settle{}}, "mutation's store"},
		{Mutation{StartChecksum: &StartChecksum{}, Renew: &Renew{ClusterID: [16]byte{1}}}, "asks 2 things"},
		{Mutation{Renew: &Renew{ClusterID: [16]byte{1}}, Preconditions: []Precondition{{}}}, "preconditions with updates and delete only"},
		{Mutation{Store: 1, Prune: &Prune{}, RequestID: make([]byte, MaxRequestIDLength+1)}, "request id"},
		{Mutation{Store: 1, Collect: &Collect{}}, "collect's limit"},
		{Mutation{Store: 1, Delete: &DeleteMatching{}}, "delete's limit"},
		{Mutation{Store: 1, Schema: &WriteSchema{}, Preconditions: []Precondition{{}}}, "preconditions with updates and delete only"},
		{Mutation{Store: 1, Updates: []Update{{0, tuple}}}, "operation"},
		{Mutation{Store: 1, Updates: []Update{{Touch, wild}}}, "is the wildcard"},
		{Mutation{Store: 1, Updates: []Update{{Touch, sources}}}, "not sorted"},
		{Mutation{Store: 1, Updates: []Update{{Touch, context}}}, "without a caveat"},
		{Mutation{Store: 1, Updates: []Update{{Touch, loose}}}, "not canonical"},
		{Mutation{Store: 1, Updates: []Update{{Touch, tuple}}, Metadata: []byte("[]")}, "metadata"},
		{Mutation{Store: 1, Updates: []Update{{Touch, tuple}}, RecordedActor: "a\n"}, "recorded actor"},
		{
			Mutation{
				Store: 1, Updates: []Update{{Touch, tuple}},
				Preconditions: []Precondition{{Filter: Filter{ObjectID: "a", ObjectIDPrefix: "a"}}},
			}, "precondition 1",
		},
	} {
		err := c.m.Validate()
		var invalidErr *InvalidError
		if !errors.As(err, &invalidErr) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, expected %q", c.m, err, c.want)
		}
	}
}

// TestFormatVersion holds that a directory of another version, or with data of
// none, is refused.
func TestFormatVersion(t *testing.T) {
	for _, found := range []byte{0, 2, formatVersion + 1} {
		fs := vfs.NewMem()
		db := openTest(t, fs)
		if err := db.pebble.Set(metaKey(metaFormat), []byte{found}, pebble.NoSync); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		_, err := Open(Config{Dir: "graph", FS: fs})
		var formatErr *FormatError
		if !errors.As(err, &formatErr) || formatErr.Found != uint64(found) || formatErr.Supported != formatVersion ||
			!strings.Contains(err.Error(), fmt.Sprintf("version %d", found)) || !strings.Contains(err.Error(), "versions 1, 3, 4 and 5 only") {
			t.Fatalf("error %v", err)
		}
	}

	fs := vfs.NewMem()
	db := openTest(t, fs)
	if err := db.pebble.Delete(metaKey(metaFormat), pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	if err := db.pebble.Set([]byte("x"), nil, pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: "graph", FS: fs}); !IsCorruptionError(err) {
		t.Fatalf("error %v", err)
	}
}

// TestInit holds that the cluster's id is given once and survives.
func TestInit(t *testing.T) {
	fs := vfs.NewMem()
	db := openTest(t, fs)
	id := [16]byte{1, 2, 3}
	mustCommit(t, db, Commit{Revision: 1, Term: 1, Stamp: 1, Init: &Init{ClusterID: id}})
	mustCommit(t, db, Commit{Revision: 2, Term: 1, Stamp: 1, Init: &Init{ClusterID: id}})
	if _, err := db.Commit(Commit{Revision: 3, Term: 1, Stamp: 1, Init: &Init{ClusterID: [16]byte{9}}}); err == nil {
		t.Fatal("the cluster's id changed")
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = openTest(t, fs)
	if db.ClusterID() != id {
		t.Fatalf("cluster id %x", db.ClusterID())
	}
	m, err := db.Metrics()
	if err != nil || m.Stores != 1 || m.Applied != 2 || m.DiskBytes == 0 {
		t.Fatalf("metrics %+v, %v", m, err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestClose holds that a DB is not pulled from under its snapshots and that
// nothing works afterwards.
func TestClose(t *testing.T) {
	db := openTest(t, vfs.NewMem())
	mustCommit(t, db, Commit{Revision: 1, Term: 1, Stamp: 1, Store: DefaultStore})
	s, err := db.Snapshot(DefaultStore, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); !errors.Is(err, ErrSnapshotsOpen) || !strings.Contains(err.Error(), "1 snapshots are still open") {
		t.Fatalf("close: %v", err)
	}
	s.Close()
	s.Close()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	calls := map[string]func() error{
		"close":         db.Close,
		"flush":         func() error { _, err := db.Flush(); return err },
		"snapshot":      func() error { _, err := db.Snapshot(1, 0, 0); return err },
		"commit":        func() error { _, err := db.Commit(Commit{Revision: 9}); return err },
		"configuration": func() error { return db.CommitConfiguration(9, 1, nil) },
		"changes":       func() error { _, err := db.Changes(1, Position{}, 1); return err },
		"schemas":       func() error { _, err := db.SchemaVersions(1, 0, 1); return err },
		"remove":        func() error { _, err := db.Remove(1, stepRecords); return err },
		"request":       func() error { _, _, err := db.Request([]byte("a"), 1); return err },
		"metrics":       func() error { _, err := db.Metrics(); return err },
		"check":         db.CheckInvariants,
	}
	for name, call := range calls {
		if err := call(); !errors.Is(err, ErrClosed) {
			t.Errorf("%s after close: %v", name, err)
		}
	}
}

// TestRevisionGone holds that the floors of a store are honoured, each for what it
// is of, and that the error says the oldest moment kept.
func TestRevisionGone(t *testing.T) {
	db := openTest(t, vfs.NewMem())
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	second := MinRetention
	start := Instant(1_700_000_000_000_000)
	mustCommit(t, db, Commit{Revision: 7, Term: 1, Stamp: start, Store: 1, Changes: create(mustParse(t, "doc:a#viewer@user:x"))})
	mustCommit(t, db, Commit{Revision: 9, Term: 1, Stamp: start + 500_000, Store: 1, Changes: create(mustParse(t, "doc:b#viewer@user:x"))})
	mustCommit(t, db, Commit{Revision: 10, Term: 1, Stamp: start + 500_000, Store: 1, StoreChange: &StoreChange{Operation: SetStore, History: &second}})
	mustCommit(t, db, Commit{Revision: 11, Term: 1, Stamp: start + 1_600_000, Store: 1, Prune: &Prune{}})
	_, err := db.Snapshot(1, 8, 0)
	mustBeGone(t, err, RevisionGoneError{Revision: 8, Oldest: 9, OldestAt: start + 500_000})
	if want := "revision 8 is older than the history that is kept: the oldest is revision 9 of 2023-11-14T22:13:20.5Z"; !strings.HasSuffix(err.Error(), want) {
		t.Errorf("error %v, not %s", err, want)
	}
	_, err = db.RevisionAt(1, start+499_999)
	mustBeGone(t, err, RevisionGoneError{At: start + 499_999, Oldest: 9, OldestAt: start + 500_000})
	if want := "the state at 2023-11-14T22:13:20.499999Z is older"; !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, not %s", err, want)
	}
	if changes, err := db.Changes(1, Position{}, 10); err != nil || len(changes) != 2 {
		t.Fatalf("the log has another floor: %v, %v", changes, err)
	}
	mustCommit(t, db, Commit{Revision: 12, Term: 1, Stamp: start + 1_600_000, Store: 1, StoreChange: &StoreChange{Operation: SetStore, Log: &second}})
	mustCommit(t, db, Commit{Revision: 13, Term: 1, Stamp: start + 1_600_000, Store: 1, Prune: &Prune{}})
	_, err = db.Changes(1, Position{Revision: 8}, 1)
	mustBeGone(t, err, RevisionGoneError{Revision: 8, Oldest: 9, OldestAt: start + 500_000, Log: true})
	s, err := db.Snapshot(1, 9, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := db.Snapshot(1, 14, 0); !errors.Is(err, ErrRevisionAhead) {
		t.Fatalf("error %v", err)
	}
	for _, id := range []StoreID{0, 2} {
		if _, err := db.Snapshot(id, 0, 0); !errors.Is(err, ErrUnknownStore) {
			t.Fatalf("store %d: %v", id, err)
		}
	}
}

// TestExhausted holds that the end of a number space is an error that changes
// nothing.
func TestExhausted(t *testing.T) {
	db := openTest(t, vfs.NewMem())
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	first := mustParse(t, "doc:a#viewer@user:x")
	mustCommit(t, db, Commit{Revision: 1, Term: 1, Stamp: 1, Store: 1, Changes: create(first)})
	st := db.stores[1]
	doc := st.catalog.index[ShapeName{Type: "doc"}]
	st.next[doc] = EphemeralNumber - 1
	last := Commit{Revision: 2, Term: 1, Stamp: 1, Store: 1, Changes: create(mustParse(t, "doc:b#viewer@user:x"), mustParse(t, "doc:c#viewer@user:x"))}
	if _, err := db.Commit(last); !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "doc:c") {
		t.Fatalf("error %v", err)
	}
	last.Changes = last.Changes[:1]
	mustCommit(t, db, last)
	s, err := db.Snapshot(1, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := s.Number("doc", "b"); err != nil || n != EphemeralNumber-1 {
		t.Errorf("number %d, %v", n, err)
	}
	if n, err := s.Number("doc", "unknown"); err != nil || n != EphemeralNumber {
		t.Errorf("number %d, %v", n, err)
	}
	if _, ok, err := s.Get(last.Changes[0].Tuple.Object, "viewer", last.Changes[0].Tuple.Subject); !ok || err != nil {
		t.Errorf("get: %t, %v", ok, err)
	}
	s.Close()

	full := *st.catalog
	full.shapes = make([]ShapeName, endShape-1)
	copy(full.shapes, st.catalog.shapes)
	whole := st.catalog
	st.catalog = &full
	more := Commit{Revision: 3, Term: 1, Stamp: 1, Store: 1, Changes: create(mustParse(t, "doc:a#editor@user:x"))}
	if _, err := db.Commit(more); !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "doc#editor") {
		t.Fatalf("error %v", err)
	}
	st.catalog = whole
	mustCommit(t, db, more)
	if err := db.CheckInvariants(); err != nil {
		t.Fatal(err)
	}
	// What has a number that cannot be kept in memory takes no memory by its number.
	metrics, err := db.Metrics()
	if err != nil || metrics.ResidentBytes > 1<<20 {
		t.Errorf("a few tuples take %d bytes in memory, %v", metrics.ResidentBytes, err)
	}
}

// TestConcurrent reads while it commits. Each commit moves one tuple from one
// document to the next, so that every snapshot must see exactly one, in both
// directions, and a revision that never goes back.
func TestConcurrent(t *testing.T) {
	db := openTest(t, vfs.NewMem())
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	tuple := func(i int) Tuple { return mustParse(t, fmt.Sprintf("doc:%d#viewer@user:x", i%50)) }
	mustCommit(t, db, Commit{Revision: 1, Term: 1, Stamp: 1, Store: 1, Changes: create(tuple(0))})
	commits := 2000
	if slow {
		commits = 200
	}
	var done atomic.Bool
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			var last Revision
			for !done.Load() {
				applied := db.Applied().Revision
				s, err := db.Snapshot(1, 0, 0)
				if err != nil {
					t.Error(err)
					return
				}
				if s.Revision() < last || s.Revision() < applied {
					t.Errorf("revision %d after %d, with %d applied", s.Revision(), last, applied)
				}
				last = s.Revision()
				user, err := s.Number("user", "x")
				if err != nil {
					t.Error(err)
				}
				edges, err := s.Objects(nil, s.Shape("user", ""), user, s.Shape("doc", "viewer"), 0, 10)
				if err != nil || len(edges) != 1 {
					t.Errorf("at %d: objects %v, %v", s.Revision(), edges, err)
				}
				tuples, _, err := s.Read(Filter{}, nil, 10)
				if err != nil || len(tuples) != 1 {
					t.Errorf("at %d: tuples %v, %v", s.Revision(), tuples, err)
				}
				s.Close()
				if old := Revision(1 + rand.IntN(int(last))); old > 1 {
					s, err := db.Snapshot(1, old, 0)
					if err != nil {
						t.Error(err)
						return
					}
					if tuples, _, err := s.Read(Filter{}, nil, 10); err != nil || len(tuples) != 1 {
						t.Errorf("at %d: tuples %v, %v", old, tuples, err)
					}
					s.Close()
				}
				if t.Failed() {
					return
				}
			}
		})
	}
	for i := range commits {
		old := tuple(i)
		old.Created = Revision(i + 1)
		mustCommit(t, db, Commit{
			Revision: Revision(i + 2), Term: 1, Stamp: Instant(i + 1), Store: 1,
			Changes: append(create(tuple(i+1)), Change{Kind: Deleted, Tuple: old, Before: &old}),
		})
		if i%500 == 0 {
			if _, err := db.Flush(); err != nil {
				t.Error(err)
			}
		}
	}
	done.Store(true)
	readers.Wait()
	if m, err := db.Metrics(); err != nil || m.Snapshots != 0 || m.Views > 1 || m.Tuples != 1 {
		t.Errorf("metrics %+v, %v", m, err)
	}
	if err := db.CheckInvariants(); err != nil {
		t.Error(err)
	}
}

var quiet = slog.New(slog.DiscardHandler)

// TestDiskFull holds that a disk that takes nothing more is told to OnFatal once
// and to everyone who writes from then on, while reads go on.
func TestDiskFull(t *testing.T) {
	var full atomic.Bool
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if full.Load() && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			return syscall.ENOSPC
		}
		return nil
	}))
	fatal := make(chan error, 10)
	db, err := Open(Config{Dir: "graph", FS: fs, MemTableBytes: 64 << 10, Logger: quiet, OnFatal: func(err error) { fatal <- err }})
	if err != nil {
		t.Fatal(err)
	}
	tuple := mustParse(t, "doc:a#viewer@user:x")
	mustCommit(t, db, Commit{Revision: 1, Term: 1, Stamp: 1, Store: 1, Changes: create(tuple)})
	if _, err := db.Flush(); err != nil {
		t.Fatal(err)
	}
	mustCommit(t, db, Commit{Revision: 2, Term: 1, Stamp: 1, Store: 1, Changes: create(mustParse(t, "doc:b#viewer@user:x"))})
	full.Store(true)
	if _, err := db.Flush(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("flush: %v", err)
	}
	select {
	case err := <-fatal:
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("fatal: %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("OnFatal was not called")
	}
	if db.Durable().Revision != 1 {
		t.Errorf("revision %d is said to be durable", db.Durable().Revision)
	}
	if _, err := db.Commit(Commit{Revision: 3, Term: 1, Stamp: 1}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("commit: %v", err)
	}
	s, err := db.Snapshot(1, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if tuples, _, err := s.Read(Filter{}, nil, 10); err != nil || len(tuples) != 2 {
		t.Errorf("read %v, %v", tuples, err)
	}
	s.Close()
	full.Store(false)
	if err := db.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if len(fatal) != 0 {
		t.Errorf("OnFatal was called again: %v", <-fatal)
	}
}

// TestDiskErrors opens, writes and reads on a disk that fails now and then: each
// call either does what it says or returns the disk's error.
func TestDiskErrors(t *testing.T) {
	injected := errors.New("the disk failed")
	rounds := 150
	if slow || testing.Short() {
		rounds = 20
	}
	for round := range rounds {
		var left atomic.Int32
		left.Store(int32(1 + round*3))
		// When Pebble fails to open a directory that has data, a compaction that it
		// has begun may trip over what it closes, and end the process: a start that
		// fails anyhow, but no test.
		var reopening atomic.Bool
		fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			// Pebble ends the process by itself when a directory cannot be
			// synced.
			if reopening.Load() || op.Kind == errorfs.OpFileClose || op.Kind == errorfs.OpRemove || (op.Kind == errorfs.OpFileSync && op.Path == "graph") {
				return nil
			}
			if left.Add(-1) == 0 {
				return injected
			}
			return nil
		}))
		err := diskSession(t, fs, &reopening)
		if err != nil && !strings.Contains(err.Error(), injected.Error()) {
			t.Errorf("round %d: %v", round, err)
		}
	}
}

// diskSession does some of everything and returns the first error.
func diskSession(t *testing.T, fs vfs.FS, reopening *atomic.Bool) (err error) {
	for session := range 2 {
		reopening.Store(session > 0)
		db, err := Open(Config{Dir: "graph", FS: fs, MemTableBytes: 64 << 10, CacheBytes: 1, Logger: quiet})
		if err != nil {
			return err
		}
		reopening.Store(false)
		err = diskWork(t, db)
		if closeErr := db.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func diskWork(t *testing.T, db *DB) error {
	for i := range 8 {
		rev := db.Applied().Revision + 1
		c := Commit{
			Revision: rev, Term: 1, Stamp: 1, Store: 1,
			Changes: create(mustParse(t, fmt.Sprintf("doc:%d#viewer@user:x", rev))),
		}
		if rev == 1 {
			c.Init = &Init{ClusterID: [16]byte{1}}
		}
		_, err := db.Commit(c)
		if err != nil {
			return err
		}
		if i%3 == 0 {
			if _, err := db.Flush(); err != nil {
				return err
			}
		}
		s, err := db.Snapshot(1, 0, 0)
		if err != nil {
			return err
		}
		tuples, _, err := s.Read(Filter{SubjectID: "x"}, nil, 100)
		s.Close()
		if err != nil {
			return err
		}
		if len(tuples) != int(rev) {
			return fmt.Errorf("%d tuples at revision %d", len(tuples), rev)
		}
	}
	return db.CheckInvariants()
}

// TestDamage changes one record at a time behind the graph's back: CheckInvariants
// must notice, and no read may panic.
func TestDamage(t *testing.T) {
	damages := map[string]func(b *pebble.Batch, key, value []byte) error{
		"remove":   func(b *pebble.Batch, key, _ []byte) error { return b.Delete(key, nil) },
		"truncate": func(b *pebble.Batch, key, value []byte) error { return b.Set(key, value[:len(value)/2], nil) },
		"flip":     func(b *pebble.Batch, key, value []byte) error { return b.Set(key, flip(value), nil) },
		"copy":     func(b *pebble.Batch, key, value []byte) error { return b.Set(flip(key), value, nil) },
	}
	build := func() *DB {
		db := openTest(t, vfs.NewMem())
		g, m := newGenerator(5), newModel()
		g.begin(t, m, db)
		second, forever := MinRetention, Forever
		do := func(c Commit) {
			c.Term = 1
			mustCommit(t, db, c)
			m.commit(c)
		}
		do(Commit{Revision: m.applied + 1, Stamp: m.stamp, StoreChange: &StoreChange{Operation: CreateStore, Name: "other"}})
		for range 6 {
			do(g.commit(m))
		}
		do(Commit{Revision: m.applied + 1, Stamp: m.stamp, Store: 1, StoreChange: &StoreChange{Operation: SetStore, History: &second, Log: &second}})
		do(Commit{Revision: m.applied + 1, Stamp: m.stamp + 2*Instant(second), Store: 1, Prune: &Prune{}})
		mustRemove(t, db, 1)
		do(Commit{Revision: m.applied + 1, Stamp: m.stamp, Store: 1, StoreChange: &StoreChange{Operation: SetStore, History: &forever, Log: &forever}})
		for range 4 {
			do(g.commit(m))
		}
		return db
	}
	count := 0
	probe := build()
	if err := scan(probe.pebble, nil, func([]byte, []byte) error { count++; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := probe.Close(); err != nil {
		t.Fatal(err)
	}
	step := 1
	if slow || testing.Short() {
		step = 17
	}
	for name, damage := range damages {
		for target := 0; target < count; target += step {
			db := build()
			b := db.pebble.NewBatch()
			i := 0
			var hit, value []byte
			err := scan(db.pebble, nil, func(k, v []byte) error {
				if i++; i != target+1 {
					return nil
				}
				hit, value = append(hit, k...), append(value, v...)
				return damage(b, append([]byte{}, k...), append([]byte{}, v...))
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := b.Commit(pebble.NoSync); err != nil {
				t.Fatal(err)
			}
			if err := db.CheckInvariants(); err == nil && noticeable(name, hit, value) {
				t.Errorf("%s of %q went unnoticed", name, hit)
			} else if err != nil && !IsCorruptionError(err) {
				t.Errorf("%s of %q: %v is no corruption", name, hit, err)
			}
			_, _ = db.Remove(DefaultStore, stepRecords)
			_, _ = db.SchemaVersions(DefaultStore, 0, 10)
			_, _ = db.RevisionAt(DefaultStore, MaxInstant)
			_ = scan(db.pebble, []byte{spaceRequest}, func(key, _ []byte) error {
				_, _, _ = db.Request(key[1:], 1)
				return nil
			})
			queue, _ := loadRequests(db.pebble)
			_, _ = queue.due(db.pebble, MaxInstant)
			info, _ := db.StoreInfo(DefaultStore)
			if s, err := db.Snapshot(DefaultStore, info.OldestHistory, 0); err == nil {
				_, _ = s.Count(Filter{})
				_, _, _ = s.Read(Filter{}, nil, 100)
				_, _, _ = s.Read(Filter{SubjectType: "user"}, nil, 100)
				_, _, _ = s.Read(Filter{ObjectIDPrefix: "a"}, nil, 100)
				_, _ = s.Schema()
				s.Close()
			}
			_, _ = db.Changes(DefaultStore, Position{Revision: info.OldestLog}, 100)
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// flip changes the last byte, or adds one to nothing.
func flip(b []byte) []byte {
	if len(b) == 0 {
		return []byte{1}
	}
	b[len(b)-1] ^= 0x40
	return b
}

// noticeable says whether damage contradicts another record. What the change log
// tells, what a schema says, who asserts a tuple, who the cluster is and what
// became of a request stand in one place only.
func noticeable(damage string, key, value []byte) bool {
	switch key[0] {
	case spaceMeta, spaceLog, spaceSchema, spaceCaveat, spaceShape, spaceExpiry:
		return false
	case spaceStore, spaceNext:
		return damage == "remove" || damage == "truncate"
	case spaceForward, spaceForwardHistory:
		return damage != "flip" || value[0]&valueSources == 0
	case spaceRequest:
		return damage != "flip"
	}
	return true
}
