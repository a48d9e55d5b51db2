package graph

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// dump returns every key of a DB and its value, in order.
func dump(t testing.TB, db *DB) []string {
	t.Helper()
	var all []string
	err := scan(db.pebble, nil, func(key, value []byte) error {
		all = append(all, fmt.Sprintf("%q %x: %x", key[0], key[1:], value))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A stageModel is what is staged, by definition: the updates of each change.
type stageModel struct {
	*model
	staged map[StageID][]Update
	chunks map[StageID]uint32
	// digests are what the chunks of each come to.
	digests map[StageID]StageDigest
	// committed are those that were committed, the oldest first.
	committed []StageInfo
}

// changes returns what committing a stage at an instant would do, or the edges
// that Create finds. Only the order of the edges is asked of the DB.
func (m *stageModel) changes(t testing.TB, db *DB, id StageID, at Instant) (changes []Change, conflicts map[edgeName]bool) {
	t.Helper()
	s, err := db.Snapshot(DefaultStore, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	place := func(u *Update) (p [4]uint64) {
		n, ok, err := s.lookup(u.Tuple.Object.Type, u.Tuple.Object.ID)
		if err != nil || !ok {
			t.Fatalf("%s has no number (%v)", u.Tuple.Object, err)
		}
		k, ok, err := s.lookup(u.Tuple.Subject.Type, u.Tuple.Subject.ID)
		if err != nil || !ok {
			t.Fatalf("%s has no number (%v)", u.Tuple.Subject, err)
		}
		relation := s.Shape(u.Tuple.Object.Type, u.Tuple.Relation)
		subject := s.Shape(u.Tuple.Subject.Type, u.Tuple.Subject.Relation)
		return [4]uint64{uint64(relation), uint64(n), uint64(subject), uint64(k)}
	}
	updates := slices.Clone(m.staged[id])
	slices.SortFunc(updates, func(a, b Update) int {
		p, q := place(&a), place(&b)
		return slices.Compare(p[:], q[:])
	})
	conflicts = map[edgeName]bool{}
	for _, u := range updates {
		v := m.current(edgeOf(&u.Tuple))
		if v == nil {
			changes = append(changes, Change{Kind: Created, Tuple: u.Tuple})
			continue
		}
		old := v.tuple
		switch {
		case !old.Living(at):
			changes = append(changes, Change{Kind: Expired, Tuple: old, Before: &old}, Change{Kind: Created, Tuple: u.Tuple})
		case u.Operation == Create:
			conflicts[edgeOf(&u.Tuple)] = true
		case !old.SameContent(&u.Tuple):
			changes = append(changes, Change{Kind: Replaced, Tuple: u.Tuple, Before: &old})
		}
	}
	return changes, conflicts
}

// stages returns what Stages must say.
func (m *stageModel) same(t testing.TB, db *DB) {
	t.Helper()
	got, err := db.Stages(DefaultStore)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(m.staged) {
		t.Fatalf("%d changes are staged, not %d", len(got), len(m.staged))
	}
	for _, info := range got {
		if info.Tuples != uint64(len(m.staged[info.ID])) || info.Chunks != m.chunks[info.ID] ||
			info.Digest != m.digests[info.ID] || info.Committed != 0 {
			t.Fatalf("staged %+v, not %d in %d chunks", info, len(m.staged[info.ID]), m.chunks[info.ID])
		}
	}
	for _, want := range m.committed[max(0, len(m.committed)-CommittedStagesMax):] {
		if info, ok, err := db.Stage(DefaultStore, want.ID); err != nil || !ok || info != want {
			t.Fatalf("a committed stage is %+v (%t, %v), not %+v", info, ok, err, want)
		}
	}
}

// TestStages stages random changes among random commits and compares a DB with
// the model at every revision. Between any two batches of a staged change it
// crashes: what is left shows nothing of the change, and goes on, with another
// crash in between, to the very same keys and values.
func TestStages(t *testing.T) {
	seeds := []uint64{1, uint64(time.Now().UnixNano())}
	if testing.Short() || slow {
		seeds = seeds[1:]
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Logf("seed %d", seed)
			testStages(t, seed)
		})
	}
}

// A finished is what a commit of a staged change was, and the DBs that crashed
// in it and then went on.
type finished struct {
	commit Commit
	clones []*DB
}

func testStages(t *testing.T, seed uint64) {
	g := newGenerator(seed)
	m := &stageModel{model: newModel(), staged: map[StageID][]Update{}, chunks: map[StageID]uint32{}, digests: map[StageID]StageDigest{}}
	fs := vfs.NewCrashableMem()
	db := openTest(t, fs)
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	db.stageBatchBytes = 900
	g.begin(t, m.model, db)
	crashes, begun := 0, 0
	for range 80 {
		next := Commit{Revision: m.applied + 1, Term: 1, Stamp: m.stamp + Instant(g.IntN(4)), Store: DefaultStore}
		begun++
		id := StageID{byte(begun)}
		open := len(m.staged) == 4 || (len(m.staged) > 0 && g.IntN(4) != 0)
		if open {
			ids := slices.SortedFunc(maps.Keys(m.staged), func(a, b StageID) int { return bytes.Compare(a[:], b[:]) })
			id = pick(g, ids)
		}
		switch n := g.IntN(8); {
		case n < 2:
			c := g.commit(m.model)
			mustCommit(t, db, c)
			m.commit(c)
		case n < 6:
			g.stage(t, m, db, next, id)
		case n == 6 && open && g.IntN(5) == 0:
			next.Stage = &StageStep{Operation: StageDrop, Drop: []StageID{id}}
			mustCommit(t, db, next)
			m.commit(next)
			delete(m.staged, id)
			delete(m.chunks, id)
			delete(m.digests, id)
		case open:
			crashes += g.commitStage(t, m, db, fs, next, id)
		}
		m.same(t, db)
		if g.IntN(4) == 0 {
			compare(t, g, m.model, db, m.log[g.IntN(len(m.log))].Revision)
		}
	}
	for _, r := range m.log {
		compare(t, g, m.model, db, r.Revision)
	}
	compareLog(t, g, m.model, db)
	if err := db.CheckInvariants(); err != nil {
		t.Fatal(err)
	}
	if seed == 1 && (crashes < 10 || len(m.committed) < 3) {
		t.Errorf("only %d crashes in %d staged changes; this tests too little", crashes, len(m.committed))
	}
}

// stage adds a chunk of random updates.
func (g *generator) stage(t *testing.T, m *stageModel, db *DB, next Commit, id StageID) {
	t.Helper()
	seen := map[edgeName]bool{}
	for _, u := range m.staged[id] {
		seen[edgeOf(&u.Tuple)] = true
	}
	step := &StageStep{Operation: StageUpdates, ID: id, Chunk: m.chunks[id], Schema: m.schemas[len(m.schemas)-1].Revision}
	twice := -1
	for range g.IntN(30) {
		u := Update{Operation: Touch, Tuple: g.tuple(g.edge())}
		e := edgeOf(&u.Tuple)
		if g.IntN(25) == 0 {
			u.Operation = Create
		}
		if v := m.current(e); v != nil && g.IntN(3) == 0 {
			u.Tuple = v.tuple
			u.Tuple.Created = 0
		} else if v != nil && g.IntN(30) != 0 {
			u.Operation = Touch
		}
		if seen[e] {
			if twice >= 0 || g.IntN(20) != 0 {
				continue
			}
			twice = len(step.Updates)
		}
		seen[e] = true
		step.Updates = append(step.Updates, u)
	}
	step.Digest = m.digests[id].Next(step.Chunk, step.Updates)
	next.Stage = step
	_, err := db.Commit(next)
	var staged *StagedTwiceError
	switch {
	case twice >= 0 && (!errors.As(err, &staged) || staged.Index != twice):
		t.Fatalf("update %d of a chunk is staged already, but the error is %v", twice, err)
	case twice >= 0:
		return
	case err != nil:
		t.Fatal(err)
	}
	m.commit(next)
	m.digests[id] = step.Digest
	m.staged[id] = append(m.staged[id], step.Updates...)
	m.chunks[id]++
}

// commitStage commits a staged change, crashing between all of its batches, and
// returns how often that was.
func (g *generator) commitStage(t *testing.T, m *stageModel, db *DB, fs *vfs.MemFS, next Commit, id StageID) (crashes int) {
	t.Helper()
	next.RecordedActor, next.Metadata = "user:ann", []byte(`{"why":"staged"}`)
	changes, conflicts := m.changes(t, db, id, next.Stamp)
	verdict := judgeStage(t, db, id, next.Stamp)
	if len(conflicts) > 0 || verdict.Conflict != nil {
		if verdict.Conflict == nil || !conflicts[edgeOf(verdict.Conflict)] {
			t.Fatalf("the conflict is %v, and not one of %v", verdict.Conflict, conflicts)
		}
		next.Stage = &StageStep{Operation: StageDrop, Drop: []StageID{id}}
		mustCommit(t, db, next)
		m.commit(next)
		delete(m.staged, id)
		delete(m.chunks, id)
		delete(m.digests, id)
		return 0
	}
	var want StageVerdict
	for _, c := range changes {
		switch c.Kind {
		case Created:
			want.Created++
		case Replaced:
			want.Replaced++
		case Expired:
			want.Expired++
		}
	}
	if verdict != want {
		t.Fatalf("the verdict is %+v, not %+v", verdict, want)
	}
	next.Stage = &StageStep{Operation: StageCommit, ID: id, Verdict: verdict}
	next.Request = &RequestCommit{ID: id[:], Changed: len(changes), Stage: StageInfo{ID: id, Chunks: m.chunks[id], Committed: next.Revision}}
	done := finished{commit: next}
	db.betweenBatches = func() {
		compare(t, g, m.model, db, m.applied)
		if _, err := db.Flush(); err != nil {
			t.Error(err)
		}
		clone := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rand.New(rand.NewPCG(uint64(m.applied), uint64(crashes)))})
		crashes++
		done.clones = append(done.clones, g.crash(t, m, clone, next, true))
	}
	receipt, err := db.Commit(next)
	if err != nil {
		t.Fatal(err)
	}
	db.betweenBatches = nil
	if receipt.Count != len(changes) || (receipt.Count > 0 && receipt.Sequence != m.sequence) {
		t.Fatalf("receipt %+v for %d changes from %d", receipt, len(changes), m.sequence)
	}
	plain := next
	plain.Changes, plain.Stage = changes, nil
	m.commit(plain)
	m.committed = append(m.committed, StageInfo{
		ID: id, Chunks: m.chunks[id], Tuples: uint64(len(m.staged[id])), Digest: m.digests[id], Touched: next.Stamp,
		Schema: m.schemaOf(db, t, id, next), Committed: next.Revision, Changed: want.Created + want.Replaced,
	})
	delete(m.staged, id)
	delete(m.chunks, id)
	delete(m.digests, id)
	keys := dump(t, db)
	for i, clone := range done.clones {
		if other := dump(t, clone); !slices.Equal(keys, other) {
			t.Fatalf("after crash %d the commit went on to %d keys where there are %d without a crash", i, len(other), len(keys))
		}
		if err := clone.CheckInvariants(); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(clone.Counters(DefaultStore), db.Counters(DefaultStore)) {
			t.Fatalf("after crash %d the counters are others", i)
		}
		compare(t, g, m.model, clone, m.applied)
		if err := clone.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return crashes
}

// schemaOf returns the schema that a committed stage was judged by, which the
// model does not follow.
func (m *stageModel) schemaOf(db *DB, t *testing.T, id StageID, c Commit) Revision {
	t.Helper()
	info, _, err := db.Stage(c.Store, id)
	if err != nil {
		t.Fatal(err)
	}
	return info.Schema
}

func judgeStage(t testing.TB, db *DB, id StageID, at Instant) StageVerdict {
	t.Helper()
	s, err := db.Snapshot(DefaultStore, 0, at)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	verdict, err := s.JudgeStage(id)
	if err != nil {
		t.Fatal(err)
	}
	return verdict
}

// crash opens what a crash left in the middle of a staged change, compares it
// with the model as it was before, and commits the change again, crashing once
// more on the way if asked to. It returns the DB that finished.
func (g *generator) crash(t *testing.T, m *stageModel, fs *vfs.MemFS, next Commit, again bool) *DB {
	t.Helper()
	back := openTest(t, fs)
	back.stageBatchBytes = 600 + g.IntN(1500)
	if a := back.Applied().Revision; a != m.applied {
		t.Fatalf("after the crash %d is applied, not %d", a, m.applied)
	}
	if err := back.CheckInvariants(); err != nil {
		t.Fatal(err)
	}
	compare(t, g, m.model, back, m.applied)
	compare(t, g, m.model, back, m.log[g.IntN(len(m.log))].Revision)
	compareLog(t, g, m.model, back)
	m.same(t, back)
	s, err := back.Snapshot(DefaultStore, 0, next.Stamp)
	if err != nil {
		t.Fatal(err)
	}
	revision, verdict := s.UnfinishedStage()
	if revision != next.Revision || verdict != next.Stage.Verdict {
		t.Fatalf("revision %d is unfinished with %+v, not %d with %+v", revision, verdict, next.Revision, next.Stage.Verdict)
	}
	stored := m.at(m.applied, 0, Overlay{})
	for _, v := range m.versions {
		if v.ended == 0 {
			stored[edgeOf(&v.tuple)] = v.tuple
		}
	}
	over, err := s.Expired(1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, tuple := range over {
		if want := stored[edgeOf(&tuple)]; !reflect.DeepEqual(tuple, want) || want.ValidUntil == 0 || want.ValidUntil > next.Stamp {
			t.Fatalf("expired is %+v, where %+v is stored", tuple, want)
		}
	}
	s.Close()
	for _, other := range []Commit{
		{Revision: next.Revision, Term: 1, Stamp: next.Stamp},
		{Revision: next.Revision + 1, Term: 1, Stamp: next.Stamp},
	} {
		if _, err := back.Commit(other); err == nil || errors.Is(err, ErrAlreadyApplied) {
			t.Fatalf("revision %d was committed before the unfinished one (%v)", other.Revision, err)
		}
	}
	if err := back.CommitConfiguration(next.Revision, 1, nil); err == nil {
		t.Fatal("a configuration was committed before the unfinished revision")
	}
	batches, crashAt := 0, g.IntN(3)
	var second *DB
	back.betweenBatches = func() {
		if batches++; !again || batches <= crashAt || second != nil {
			return
		}
		if _, err := back.Flush(); err != nil {
			t.Error(err)
		}
		second = g.crash(t, m, fs.CrashClone(vfs.CrashCloneCfg{}), next, false)
	}
	if _, err := back.Commit(next); err != nil {
		t.Fatal(err)
	}
	if second == nil {
		return back
	}
	if keys, other := dump(t, back), dump(t, second); !slices.Equal(keys, other) {
		t.Fatal("two crashes end with other keys than one")
	}
	if err := back.Close(); err != nil {
		t.Fatal(err)
	}
	return second
}

// TestCommittedStages holds that a store remembers the last staged changes that
// were committed, and no more of them.
func TestCommittedStages(t *testing.T) {
	db := openTest(t, vfs.NewMem())
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	id := func(i int) StageID { return StageID{byte(i), byte(i >> 8), 1} }
	rev := Revision(1)
	mustCommit(t, db, Commit{Revision: rev, Term: 1, Init: &Init{ClusterID: [16]byte{1}}})
	for i := range CommittedStagesMax + 3 {
		tuple := mustParse(t, fmt.Sprintf("doc:%d#viewer@user:a", i))
		for _, step := range []*StageStep{
			{Operation: StageUpdates, ID: id(i), Updates: []Update{{Touch, tuple}}, Schema: 1},
			{Operation: StageCommit, ID: id(i), Verdict: StageVerdict{Created: 1}},
		} {
			rev++
			if _, err := db.Commit(Commit{Revision: rev, Term: 1, Store: DefaultStore, Stage: step}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range CommittedStagesMax + 3 {
		info, ok, err := db.Stage(DefaultStore, id(i))
		if err != nil || ok != (i >= 3) || (ok && info.Committed != Revision(3+2*i)) {
			t.Errorf("stage %d: %+v, %t, %v", i, info, ok, err)
		}
	}
}

// FuzzStageCodec holds that the records of staged changes have one encoding, and
// that no bytes make their decoders do anything but refuse.
func FuzzStageCodec(f *testing.F) {
	info := StageInfo{Chunks: 3, Tuples: 70_000, Digest: StageDigest{3}, Touched: 1_700_000_000_000_000, Schema: 9}
	f.Add(byte(0), info.append(nil))
	u := unfinishedStage{
		store: 1, stage: StageID{1}, revision: 9, stamp: 5, verdict: StageVerdict{Created: 3, Expired: 1}, offset: 2,
		counters: map[counterKey]int64{{relation: 2, subject: 3}: -4},
	}
	f.Add(byte(1), u.append(nil))
	f.Add(byte(1), append([]byte{storesVersion}, u.append(nil)[9:]...))
	u.checksum = 1 << 63
	f.Add(byte(1), u.append(nil))
	v := edgeValue{caveat: 2, until: 9}
	f.Add(byte(2), v.appendValue([]byte{byte(Touch)}, forward))
	f.Fuzz(func(t *testing.T, what byte, b []byte) {
		var again []byte
		switch what % 3 {
		case 0:
			var info StageInfo
			if info.decode(b) != nil {
				return
			}
			again = info.append(nil)
		case 1:
			var u unfinishedStage
			if u.decode(b) != nil || len(u.counters) > 1 {
				return // Several may stand in another order.
			}
			again = u.append(nil)
			if b[0] == storesVersion { // The form before there was a checksum.
				again = append([]byte{storesVersion}, again[9:]...)
			}
		case 2:
			var v edgeValue
			operation, err := decodeStaged(b, &v)
			if err != nil {
				return
			}
			again = v.appendValue([]byte{byte(operation)}, forward)
		}
		if !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}

// BenchmarkStage stages and commits -tuples tuples, in chunks of 5,000, and says
// how long each part took and how much memory the commit needed at most.
func BenchmarkStage(b *testing.B) {
	for range b.N {
		g := &benchGraph{objects: max(*benchTuples/10, 1), users: max(*benchTuples/100, 100)}
		config := Config{Dir: "graph", FS: vfs.NewMem()}
		if *benchDisk {
			config.Dir, config.FS = b.TempDir(), nil
		}
		db, err := Open(config)
		if err != nil {
			b.Fatal(err)
		}
		id, rev, stamp := StageID{1}, Revision(1), Instant(1_700_000_000_000_000)
		commit := func(step *StageStep) {
			rev++
			if _, err := db.Commit(Commit{Revision: rev, Term: 1, Stamp: stamp, Store: DefaultStore, Stage: step}); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := db.Commit(Commit{Revision: rev, Term: 1, Stamp: stamp, Init: &Init{ClusterID: [16]byte{1}}}); err != nil {
			b.Fatal(err)
		}
		begun := time.Now()
		step := &StageStep{Operation: StageUpdates, ID: id, Schema: 1}
		for i := 0; i < *benchTuples; {
			step.Updates = step.Updates[:0]
			for range min(5000, *benchTuples-i) {
				step.Updates = append(step.Updates, Update{Touch, g.tuple(i)})
				i++
			}
			commit(step)
			step.Chunk++
		}
		b.ReportMetric(time.Since(begun).Seconds(), "s-staging")
		begun = time.Now()
		verdict := judgeStage(b, db, id, stamp)
		b.ReportMetric(time.Since(begun).Seconds(), "s-judging")
		runtime.GC()
		var before, now runtime.MemStats
		runtime.ReadMemStats(&before)
		var peak uint64
		batches := 0
		db.betweenBatches = func() {
			if batches++; batches%8 == 0 {
				runtime.ReadMemStats(&now)
				peak = max(peak, now.HeapAlloc)
			}
		}
		begun = time.Now()
		commit(&StageStep{Operation: StageCommit, ID: id, Verdict: verdict})
		b.ReportMetric(time.Since(begun).Seconds(), "s-applying")
		b.ReportMetric(float64(max(peak, before.HeapAlloc)-before.HeapAlloc)/(1<<20), "MiB-more")
		b.ReportMetric(float64(before.HeapAlloc)/(1<<20), "MiB-before")
		if verdict.Created != uint64(*benchTuples) {
			b.Fatalf("the verdict is %+v", verdict)
		}
		if err := db.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
