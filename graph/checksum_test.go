package graph

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// older makes a DB what a program of a format version before this one would have
// written, but for what that version wrote in another form of its own: without a
// checksum, requests and ancestors. The model forgets the requests.
func older(t *testing.T, db *DB, m *model, version byte) {
	t.Helper()
	b := db.pebble.NewBatch()
	a := db.Applied()
	value := binary.AppendUvarint([]byte{recordVersion}, uint64(a.Revision))
	value = binary.AppendUvarint(binary.AppendUvarint(value, a.Term), uint64(a.Stamp))
	for _, err := range []error{
		b.Set(metaKey(metaApplied), value, nil),
		b.Set(metaKey(metaFormat), []byte{version}, nil),
		b.Delete(metaKey(metaAncestors), nil),
		b.DeleteRange([]byte{spaceRequest}, []byte{spaceRequest + 1}, nil),
		b.DeleteRange([]byte{spaceRequestOrder}, []byte{spaceRequestOrder + 1}, nil),
		b.Commit(pebble.NoSync),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	m.requests = nil
}

// A sum is the checksum of a DB at a revision.
type sum struct {
	checksum uint64
	since    Revision
}

func sumOf(db *DB) sum {
	a := db.Applied()
	return sum{a.Checksum, a.ChecksumSince}
}

// An entry is what stands in the log: a Commit, or a configuration.
type entry struct {
	Commit
	configuration []byte
}

func (e entry) apply(db *DB) error {
	if e.configuration != nil {
		return db.CommitConfiguration(e.Revision, e.Term, e.configuration)
	}
	_, err := db.Commit(e.Commit)
	return err
}

// entries makes a log with all that a Commit can be in it.
func entries(t *testing.T, seed uint64, count int) []entry {
	t.Helper()
	g, m, db := newGenerator(seed), newModel(), openTest(t, vfs.NewMem())
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	var log []entry
	add := func(e entry) {
		t.Helper()
		e.Term = 1
		if e.Stamp == 0 {
			e.Stamp = max(m.stamp, 1)
		}
		if e.Revision == 0 {
			e.Revision = m.applied + 1
		}
		if e.configuration == nil && e.StoreChange == nil && e.Store == 0 {
			e.Store = m.store
		}
		if e.StartChecksum != nil || e.Renew != nil {
			e.Store = 0
		}
		if err := e.apply(db); err != nil {
			t.Fatal(err)
		}
		log = append(log, e)
		if e.Stage != nil || e.configuration != nil || (e.Store != m.store && e.Store != 0) || (e.StoreChange != nil && e.StoreChange.Operation != SetStore) {
			m.applied, m.stamp = e.Revision, e.Stamp
			return
		}
		m.commit(e.Commit)
	}
	add(entry{configuration: []byte("of one")})
	add(entry{Commit: Commit{
		Init:   &Init{ClusterID: [16]byte{1}},
		Schema: &SchemaCommit{Text: "first", Shapes: g.shapes, Caveats: []string{"tenant", "hours"}},
	}})
	stages, stores := 0, 0
	for i := len(log); i < count; i++ {
		switch g.IntN(20) {
		case 0:
			add(entry{configuration: fmt.Appendf(nil, "of %d", i)})
		case 1:
			add(entry{Commit: Commit{Renew: &Renew{ClusterID: [16]byte{2, byte(i), byte(i >> 8)}}, Request: &RequestCommit{ID: []byte{byte(i)}}}})
		case 2:
			add(entry{Commit: Commit{StoreChange: &StoreChange{Operation: CreateStore, Name: fmt.Sprint("tenant-", i)}}})
			stores++
			add(entry{Commit: Commit{Store: StoreID(stores + 1), Changes: create(g.tuple(g.edge()), Tuple{
				Object: Object{"new", "a"}, Relation: "member", Subject: Subject{Object: Object{"newer", "b"}},
			})}})
			if g.IntN(2) == 0 {
				add(entry{Commit: Commit{Store: StoreID(stores + 1), StoreChange: &StoreChange{Operation: DropStore}}})
			}
		case 3:
			add(entry{Commit: Commit{Stamp: max(m.stamp, 1) + RequestLifetime/2}})
		case 4, 5:
			stages++
			id := StageID{byte(stages), byte(stages >> 8), 1}
			for chunk := range uint32(2) {
				step := &StageStep{Operation: StageUpdates, ID: id, Chunk: chunk, Schema: 1, Digest: StageDigest{byte(chunk)}}
				for range 15 {
					step.Updates = append(step.Updates, Update{Touch, Tuple{
						Object: Object{"doc", fmt.Sprint(chunk, "-", g.IntN(60))}, Relation: "viewer",
						Subject: Subject{Object: Object{"user", fmt.Sprint("u", len(step.Updates))}}, Caveat: pick(g, []string{"", "hours"}),
					}})
				}
				add(entry{Commit: Commit{Stage: step}})
			}
			if g.IntN(4) == 0 {
				add(entry{Commit: Commit{Stage: &StageStep{Operation: StageDrop, Drop: []StageID{id}}}})
				continue
			}
			step := &StageStep{Operation: StageCommit, ID: id, Verdict: judgeStage(t, db, id, max(m.stamp, 1))}
			add(entry{Commit: Commit{Stage: step, RecordedActor: "user:ann", Request: &RequestCommit{ID: id[:], Changed: 3, Stage: StageInfo{ID: id, Chunks: 2}}}})
		default:
			add(entry{Commit: g.commit(m)})
		}
	}
	return log
}

// A replica is a DB that applies a log in its own way.
type replica struct {
	name   string
	config Config
	fs     *vfs.MemFS
	db     *DB
	// between is called behind each entry.
	between func(r *replica)
	crashes int
}

func (r *replica) open(t *testing.T) {
	t.Helper()
	r.config.Dir, r.config.FS = "graph", r.fs
	r.config.OnFatal = func(err error) { t.Errorf("fatal: %v", err) }
	var err error
	if r.db, err = Open(r.config); err != nil {
		t.Fatal(err)
	}
}

func (r *replica) close(t *testing.T) {
	t.Helper()
	if err := r.db.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestChecksum applies one log to DBs of which one has other settings, one is
// restarted now and then, one removes what was pruned, one loses to crashes what
// was not flushed, in the middle of staged changes too, and one goes on with a copy
// of another's directory. All have the same checksum at every revision. What is
// changed in one entry shows from there on, and not before.
func TestChecksum(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	count := 200
	if slow || testing.Short() {
		count = 60
	}
	log := entries(t, seed, count)
	g := rand.New(rand.NewPCG(seed, 2))

	plain := &replica{name: "plain", fs: vfs.NewCrashableMem()}
	replicas := []*replica{
		plain,
		{name: "other settings", fs: vfs.NewMem(), config: Config{MemTableBytes: 64 << 10, CacheBytes: 1 << 16}},
		{name: "restarted", fs: vfs.NewMem(), between: func(r *replica) {
			if g.IntN(8) == 0 {
				r.close(t)
				r.open(t)
			}
			r.db.stageBatchBytes = 1 + g.IntN(3000)
		}},
		{name: "removing", fs: vfs.NewMem(), between: func(r *replica) {
			if _, err := r.db.Remove(DefaultStore, stepRecords); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "crashing", fs: vfs.NewCrashableMem()},
		{name: "copied", fs: vfs.NewMem()},
	}
	for _, r := range replicas {
		r.open(t)
	}
	crashing, copied := replicas[4], replicas[5]
	crash := func() {
		clone := crashing.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: g.IntN(101), RNG: rand.New(rand.NewPCG(seed, g.Uint64()))})
		crashing.close(t)
		crashing.fs = clone
		crashing.open(t)
		crashing.db.stageBatchBytes = 300 + g.IntN(1000)
		crashing.crashes++
	}
	want := map[Revision]sum{0: {}}
	for i, e := range log {
		for _, r := range replicas {
			if r == crashing {
				continue
			}
			if err := e.apply(r.db); err != nil {
				t.Fatalf("%s: %v", r.name, err)
			}
			if r == plain {
				want[e.Revision] = sumOf(r.db)
				if s := want[e.Revision]; (s.since == 0) != (i == 0) || (i > 0 && s.since != log[1].Revision) || (i == 0 && s.checksum != 0) {
					t.Fatalf("at %d the checksum is %+v", e.Revision, s)
				}
			}
			if got := sumOf(r.db); got != want[e.Revision] {
				t.Fatalf("%s at %d (%+v): %+v, not %+v", r.name, e.Revision, e, got, want[e.Revision])
			}
			if r.between != nil {
				r.between(r)
			}
		}
		// The crashing one catches up, from wherever it was thrown back to.
		for crashing.db.Applied().Revision < e.Revision {
			at := crashing.db.Applied().Revision
			next := log[slices.IndexFunc(log, func(e entry) bool { return e.Revision > at })]
			torn := false
			var clone *vfs.MemFS
			crashing.db.betweenBatches = func() {
				if !torn && g.IntN(4) == 0 {
					if _, err := crashing.db.Flush(); err != nil {
						t.Error(err)
					}
					clone, torn = crashing.fs.CrashClone(vfs.CrashCloneCfg{}), true
				}
			}
			if err := next.apply(crashing.db); err != nil {
				t.Fatal(err)
			}
			if torn {
				crashing.close(t)
				crashing.fs = clone
				crashing.open(t)
				crashing.db.stageBatchBytes = 300 + g.IntN(1000)
				crashing.crashes++
			}
			if at := crashing.db.Applied().Revision; sumOf(crashing.db) != want[at] {
				t.Fatalf("after a crash at %d: %+v, not %+v", at, sumOf(crashing.db), want[at])
			}
		}
		if g.IntN(6) == 0 {
			crash()
			if at := crashing.db.Applied().Revision; sumOf(crashing.db) != want[at] {
				t.Fatalf("thrown back to %d: %+v, not %+v", at, sumOf(crashing.db), want[at])
			}
		}
		if i == len(log)/2 {
			if _, err := plain.db.Flush(); err != nil {
				t.Fatal(err)
			}
			copied.close(t)
			copied.fs = plain.fs.CrashClone(vfs.CrashCloneCfg{})
			copied.open(t)
			if got := sumOf(copied.db); got != want[e.Revision] {
				t.Fatalf("copied at %d: %+v, not %+v", e.Revision, got, want[e.Revision])
			}
		}
	}
	for crashing.db.Applied().Revision < plain.db.Applied().Revision {
		at := crashing.db.Applied().Revision
		if err := log[slices.IndexFunc(log, func(e entry) bool { return e.Revision > at })].apply(crashing.db); err != nil {
			t.Fatal(err)
		}
	}
	keys := dump(t, plain.db)
	for _, r := range replicas {
		if err := r.db.CheckInvariants(); err != nil {
			t.Errorf("%s: %v", r.name, err)
		}
		if got := sumOf(r.db); got != sumOf(plain.db) {
			t.Errorf("%s ended with %+v, not %+v", r.name, got, sumOf(plain.db))
		}
		if r.name != "removing" && !slices.Equal(dump(t, r.db), keys) {
			t.Errorf("%s ended with other keys", r.name)
		}
		r.close(t)
	}
	if crashing.crashes == 0 {
		t.Error("nothing crashed")
	}

	seen := map[uint64]Revision{}
	for rev, s := range want {
		if other, twice := seen[s.checksum]; twice && s.since != 0 {
			t.Errorf("the checksums of %d and %d are the same", rev, other)
		}
		seen[s.checksum] = rev
	}
	planted := 0
	for i := range log {
		if plantDifference(t, log, i, want) {
			planted++
		}
	}
	t.Logf("%d entries, %d crashes, %d differences planted", len(log), crashing.crashes, planted)
	if planted < count/25 {
		t.Errorf("only %d differences were planted", planted)
	}
}

// plantDifference applies a log with one entry that differs in little. It does
// nothing for most entries.
func plantDifference(t *testing.T, log []entry, at int, want map[Revision]sum) bool {
	t.Helper()
	e := log[at]
	switch {
	case at%7 != 3:
		return false
	case e.configuration != nil:
		e.configuration = append(bytes.Clone(e.configuration), '!')
	case e.Request != nil && at%2 == 0:
		r := *e.Request
		r.Changed++
		e.Request = &r
	case e.Stage != nil || e.StoreChange != nil || e.CounterChange != nil || e.Renew != nil || e.Prune != nil || e.Store == 0:
		return false
	case len(e.Changes) > 0 && e.Changes[len(e.Changes)-1].Kind == Created:
		// A tuple that carries something else.
		e.Changes = slices.Clone(e.Changes)
		last := &e.Changes[len(e.Changes)-1].Tuple
		last.Sources = append(slices.Clone(last.Sources), "zz")
	default:
		// One tuple more.
		e.Changes = append(slices.Clone(e.Changes), create(Tuple{
			Object: Object{"doc", fmt.Sprint("planted ", at)}, Relation: "viewer", Subject: Subject{Object: Object{"user", "planted"}},
		})...)
	}
	db := openTest(t, vfs.NewMem())
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	for i, next := range log[:min(at+3, len(log))] {
		if i == at {
			next = e
		}
		if err := next.apply(db); err != nil {
			return i > at // What follows may not fit the difference.
		}
		if same := sumOf(db) == want[next.Revision]; same != (i < at) {
			t.Errorf("entry %d was %+v instead of %+v; at entry %d the checksum is the same: %t", at, e, log[at], i, same)
		}
	}
	return true
}

// TestChecksumKnown holds the checksum of a small log against the value that it
// has always had. Another value means that nodes with this program and with one
// from before would take each other for damaged: what a batch holds may change for
// all nodes at once only.
func TestChecksumKnown(t *testing.T) {
	db := openTest(t, vfs.NewMem())
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	stage := StageID{1}
	tuple := mustParse(t, `doc:a#viewer@user:x[tenant:{"a":1}][expiration:2030-01-31T12:00:00Z]`)
	old := tuple
	old.Created = 2
	second := MinRetention
	other := mustParse(t, "group:eng#member@user:x")
	for i, c := range []Commit{
		{Init: &Init{ClusterID: [16]byte{1}}},
		{Store: 1, Changes: create(tuple, other), Schema: &SchemaCommit{Text: "first", Shapes: []ShapeName{{"doc", "viewer"}}, Caveats: []string{"tenant"}}},
		{Store: 1, Changes: []Change{{Kind: Deleted, Tuple: old, Before: &old}}, Request: &RequestCommit{ID: []byte("a"), Changed: 1}},
		{Store: 1, Stage: &StageStep{Operation: StageUpdates, ID: stage, Schema: 2, Updates: []Update{{Touch, tuple}, {Create, mustParse(t, "doc:b#viewer@user:y")}}}},
		{Store: 1, Stage: &StageStep{Operation: StageCommit, ID: stage, Verdict: StageVerdict{Created: 2}}},
		{StoreChange: &StoreChange{Operation: CreateStore, Name: "other"}},
		{Store: 1, CounterChange: &CounterChange{Operation: RegisterCounter, Name: "abc", Filter: Filter{ObjectType: "doc"}}},
		{Store: 1, StoreChange: &StoreChange{Operation: SetStore, History: &second}},
		{Stamp: 2_000_000, Store: 1, Prune: &Prune{}},
		{Stamp: 1 + RequestLifetime, Store: 2, StoreChange: &StoreChange{Operation: DropStore}, Request: &RequestCommit{ID: []byte("b")}},
		{Stamp: 1 + RequestLifetime, Renew: &Renew{ClusterID: [16]byte{2}}},
	} {
		c.Revision, c.Term, c.Stamp = Revision(i+1), 1, max(c.Stamp, 1)
		mustCommitStep(t, db, c)
	}
	if err := db.CommitConfiguration(12, 2, []byte("of three")); err != nil {
		t.Fatal(err)
	}
	if got, want := sumOf(db), (sum{0x42ff20f4451b80c6, 1}); got != want {
		t.Errorf("the checksum is %#x since %d, not %#x since %d", got.checksum, got.since, want.checksum, want.since)
	}
}

// mustCommitStep makes a commit as it is.
func mustCommitStep(t *testing.T, db *DB, c Commit) {
	t.Helper()
	if _, err := db.Commit(c); err != nil {
		t.Fatal(err)
	}
}

// TestStartChecksum holds that data of an older program has no checksum until one
// is begun, and that two DBs which begin at the same revision have the same from
// there on, whatever was before.
func TestStartChecksum(t *testing.T) {
	log := entries(t, 5, 40)
	last := log[len(log)-1].Revision
	for _, version := range []byte{storesVersion, countersVersion} {
		var dbs []*DB
		for i := range 2 {
			fs := vfs.NewMem()
			db := openTest(t, fs)
			for _, e := range log {
				if err := e.apply(db); err != nil {
					t.Fatal(err)
				}
			}
			if i == 0 {
				older(t, db, newModel(), version)
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
				db = openTest(t, fs)
				if a := db.Applied(); sumOf(db) != (sum{}) || a.Revision != last || db.Ancestors() != nil {
					t.Fatalf("what an older program left has %+v", a)
				}
			}
			dbs = append(dbs, db)
			mustCommitStep(t, db, Commit{Revision: last + 1, Term: 1, Stamp: MaxInstant})
			if (sumOf(db) == sum{}) != (i == 0) {
				t.Fatalf("the checksum became %+v by itself", sumOf(db))
			}
		}
		tuple := mustParse(t, "doc:end#viewer@user:x")
		for i, c := range []Commit{
			{StartChecksum: &StartChecksum{}},
			{Store: 1, Changes: create(tuple)},
			{Renew: &Renew{ClusterID: [16]byte{7}}},
		} {
			c.Revision, c.Term, c.Stamp = last+2+Revision(i), 1, MaxInstant
			for _, db := range dbs {
				mustCommitStep(t, db, c)
				if i != 2 && sumOf(db) != sumOf(dbs[0]) {
					t.Fatalf("the checksums are %+v and %+v", sumOf(dbs[0]), sumOf(db))
				}
				if s := sumOf(db); s.since != last+2 || s.checksum == 0 {
					t.Fatalf("the checksum is %+v, not since %d", s, last+2)
				}
			}
		}
		// The one has lost its ancestors, so that what renews the id differs.
		if sumOf(dbs[0]) == sumOf(dbs[1]) {
			t.Errorf("DBs with the ancestors %v and %v have the same checksum", dbs[0].Ancestors(), dbs[1].Ancestors())
		}
		for _, db := range dbs {
			beside := Commit{Revision: last + 5, Term: 1, Stamp: MaxInstant, Store: 1, Changes: create(tuple), StartChecksum: &StartChecksum{}}
			if _, err := db.Commit(beside); err == nil {
				t.Error("a checksum began beside changes")
			}
			if err := db.CheckInvariants(); err != nil {
				t.Error(err)
			}
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestUnfinishedUpgrade holds that a staged change which a program without a
// checksum was committing, when it ended, is finished by this one.
func TestUnfinishedUpgrade(t *testing.T) {
	fs := vfs.NewCrashableMem()
	db := openTest(t, fs)
	db.stageBatchBytes = 1000
	mustCommitStep(t, db, Commit{Revision: 1, Term: 1, Stamp: 1, Init: &Init{ClusterID: [16]byte{1}}})
	id := StageID{1}
	step := &StageStep{Operation: StageUpdates, ID: id, Schema: 1}
	for i := range 50 {
		step.Updates = append(step.Updates, Update{Touch, mustParse(t, fmt.Sprintf("doc:%d#viewer@user:x", i))})
	}
	mustCommitStep(t, db, Commit{Revision: 2, Term: 1, Stamp: 1, Store: 1, Stage: step})
	older(t, db, newModel(), countersVersion)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = openTest(t, fs)
	db.stageBatchBytes = 1000
	commit := Commit{Revision: 3, Term: 1, Stamp: 1, Store: 1, Stage: &StageStep{Operation: StageCommit, ID: id, Verdict: StageVerdict{Created: 50}}}
	var clones []*vfs.MemFS
	db.betweenBatches = func() {
		if _, err := db.Flush(); err != nil {
			t.Error(err)
		}
		clones = append(clones, fs.CrashClone(vfs.CrashCloneCfg{}))
	}
	mustCommitStep(t, db, commit)
	keys := dump(t, db)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if len(clones) < 3 {
		t.Fatalf("there were %d batches", len(clones))
	}
	for _, clone := range clones {
		db := openTest(t, clone)
		older(t, db, newModel(), countersVersion)
		marker := db.unfinished.append(nil)
		if err := db.pebble.Set(metaKey(metaUnfinished), append([]byte{storesVersion}, marker[9:]...), pebble.NoSync); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		db = openTest(t, clone)
		mustCommitStep(t, db, commit)
		if got := dump(t, db); !slices.Equal(got, keys) {
			t.Errorf("it ended with other keys")
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
