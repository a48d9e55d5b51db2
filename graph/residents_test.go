package graph

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/pembadb/pemba/graph/resident"
)

// awaitResident waits until everything is in memory.
func awaitResident(t testing.TB, db *DB) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		complete := true
		db.mu.Lock()
		for _, st := range db.stores {
			all, err := st.resident.Each(func(uint32, uint32, resident.Direction, uint64, []resident.Element, bool) error { return nil })
			if err != nil {
				t.Error(err)
			}
			complete = complete && all
		}
		db.mu.Unlock()
		if complete {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the stores were not read into memory within a minute")
		}
		time.Sleep(time.Millisecond)
	}
}

// TestResidentReads holds that questions about the newest state read nothing from Pebble
// once all is in memory, but for what a tuple carries.
func TestResidentReads(t *testing.T) {
	fs := vfs.NewMem()
	config := Config{Dir: "graph", FS: fs}
	for _, opened := range []string{"written", "opened again"} {
		t.Run(opened, func(t *testing.T) {
			db, err := Open(config)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := db.Close(); err != nil {
					t.Error(err)
				}
			}()
			if db.Applied().Revision == 0 {
				tuples := []Tuple{mustParse(t, "doc:wide#viewer@user:caveated[odd:{\"a\":1}]")}
				for i := range 1000 {
					tuples = append(tuples, mustParse(t, fmt.Sprintf("doc:wide#viewer@user:u%d", i)))
					tuples = append(tuples, mustParse(t, fmt.Sprintf("doc:d%d#parent@folder:f%d", i, i/10)))
				}
				if _, err := db.Commit(Commit{Revision: 1, Term: 1, Stamp: 1, Init: &Init{ClusterID: [16]byte{1}}, Store: DefaultStore, Changes: create(tuples...)}); err != nil {
					t.Fatal(err)
				}
			}
			awaitResident(t, db)
			s, err := db.Snapshot(DefaultStore, 0, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			number := func(typ, id string) Number {
				n, err := s.Number(typ, id)
				if err != nil {
					t.Fatal(err)
				}
				if back, err := s.ID(typ, n); err != nil || back != id {
					t.Fatalf("the number of %s:%s is %d, which is that of %q (%v)", typ, id, n, back, err)
				}
				return n
			}
			viewer, parent, user, folder := s.Shape("doc", "viewer"), s.Shape("doc", "parent"), s.Shape("user", ""), s.Shape("folder", "")
			if _, found, err := s.Find(viewer, number("doc", "wide"), user, number("user", "u7")); !found || err != nil {
				t.Fatal(found, err)
			}
			for _, absent := range []string{"u1000", "stranger"} {
				if _, found, err := s.Find(viewer, number("doc", "wide"), user, number("user", absent)); found || err != nil {
					t.Fatal(absent, found, err)
				}
			}
			if edges, err := s.Subjects(nil, parent, number("doc", "d77"), folder, 0, 10); len(edges) != 1 || edges[0].Number != number("folder", "f7") || err != nil {
				t.Fatal(edges, err)
			}
			if edges, err := s.Objects(nil, folder, number("folder", "f7"), parent, 0, 100); len(edges) != 10 || err != nil {
				t.Fatal(edges, err)
			}
			if s.near != nil || s.current != nil || s.history != nil {
				t.Error("Pebble was read")
			}
			if e, found, err := s.Find(viewer, number("doc", "wide"), user, number("user", "caveated")); !found || string(e.Context) != `{"a":1}` || err != nil {
				t.Fatal(e, found, err)
			}
			if s.near == nil {
				t.Error("Pebble was not read for a caveat")
			}
			if edges, err := s.Subjects(nil, viewer, number("doc", "wide"), user, 0, 2000); len(edges) != 1001 || edges[0].Caveat == 0 || err != nil {
				t.Fatal(len(edges), err)
			}
		})
	}
}

// TestResidentConcurrent has readers compare what memory says with what Pebble says at
// the same revision, while tuples are written, staged changes committed, and stores made
// and dropped, with room for all, for some and for nothing. In between the graph is
// opened again, and is read into memory while that goes on.
func TestResidentConcurrent(t *testing.T) {
	for _, limit := range []int64{0, 30 << 10, -1} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			w := &residentWorld{t: t, config: Config{Dir: "graph", FS: vfs.NewMem(), ResidentBytes: limit}, r: rand.New(rand.NewPCG(5, 6))}
			for round := range 3 {
				w.open()
				w.play(map[bool]int{true: 400, false: 150}[round == 0])
				if limit == 0 {
					awaitResident(t, w.db)
				}
				if err := w.db.CheckInvariants(); err != nil {
					t.Fatal(err)
				}
				if limit > 0 {
					w.bounded(limit)
				}
				if err := w.db.Close(); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("%d comparisons, %d of them of memory", w.compared.Load(), w.resident.Load())
			if limit >= 0 && w.resident.Load() == 0 {
				t.Error("nothing was read from memory")
			}
		})
	}
}

type residentWorld struct {
	t      *testing.T
	config Config
	db     *DB
	r      *rand.Rand
	next   Revision
	others []StoreID

	compared, resident atomic.Int64
}

func (w *residentWorld) open() {
	db, err := Open(w.config)
	if err != nil {
		w.t.Fatal(err)
	}
	w.db, w.next = db, db.Applied().Revision+1
	db.stageBatchBytes = 2 << 10
	db.betweenBatches = runtime.Gosched
}

// play writes so many revisions while others compare.
func (w *residentWorld) play(revisions int) {
	done := make(chan struct{})
	var running sync.WaitGroup
	for i := range 2 {
		r := rand.New(rand.NewPCG(uint64(i), uint64(w.next)))
		running.Go(func() {
			for {
				w.compare(r)
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for range revisions {
		if w.t.Failed() {
			break
		}
		w.step()
	}
	close(done)
	running.Wait()
}

func (w *residentWorld) commit(c Commit) Receipt {
	c.Revision, c.Term, c.Stamp = w.next, 1, Instant(w.next)*1000
	w.next++
	receipt, err := w.db.Commit(c)
	if err != nil {
		w.t.Fatal(err)
	}
	return receipt
}

func randomResidentTuple(r *rand.Rand) Tuple {
	t := Tuple{Object: Object{"doc", fmt.Sprint("d", r.IntN(60))}, Relation: "viewer"}
	t.Subject.Object = Object{"user", fmt.Sprint("u", r.IntN(400))}
	switch r.IntN(8) {
	case 0:
		t.Object, t.Relation = Object{"group", fmt.Sprint("g", r.IntN(20))}, "member"
	case 1:
		t.Subject = Subject{Object: Object{"group", fmt.Sprint("g", r.IntN(20))}, Relation: "member"}
	case 2:
		t.Subject.ID = Wildcard
	case 3, 4:
		t.Object.ID = "wide"
	}
	switch r.IntN(12) {
	case 0:
		t.Caveat, t.Context = "odd", []byte(`{"a":1}`)
	case 1:
		t.ValidUntil = Instant(1+r.IntN(1000)) * 1000
	case 2:
		t.Sources = []string{"feed"}
	}
	return t
}

// step makes one revision.
func (w *residentWorld) step() {
	switch {
	case w.next == 1:
		w.commit(Commit{Init: &Init{ClusterID: [16]byte{1}}})
		return
	case w.r.IntN(40) == 0:
		made := w.commit(Commit{StoreChange: &StoreChange{Operation: CreateStore, Name: fmt.Sprint("store", w.next)}})
		w.others = append(w.others, made.Store)
		return
	case w.r.IntN(80) == 0 && len(w.others) > 0:
		w.commit(Commit{Store: w.others[0], StoreChange: &StoreChange{Operation: DropStore}})
		w.others = w.others[1:]
		return
	case w.r.IntN(30) == 0:
		w.stage()
		return
	}
	store := DefaultStore
	if len(w.others) > 0 && w.r.IntN(4) == 0 {
		store = w.others[w.r.IntN(len(w.others))]
	}
	s, err := w.db.Snapshot(store, 0, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer s.Close()
	s.BypassResident()
	c := Commit{Store: store}
	seen := map[edgeName]bool{}
	for range 1 + w.r.IntN(12) {
		tuple := randomResidentTuple(w.r)
		if seen[edgeOf(&tuple)] {
			continue
		}
		seen[edgeOf(&tuple)] = true
		old, found, err := s.GetStored(tuple.Object, tuple.Relation, tuple.Subject)
		switch {
		case err != nil:
			w.t.Fatal(err)
		case !found:
			c.Changes = append(c.Changes, Change{Kind: Created, Tuple: tuple})
		case w.r.IntN(2) == 0:
			c.Changes = append(c.Changes, Change{Kind: Deleted, Tuple: old, Before: &old})
		case !old.SameContent(&tuple):
			c.Changes = append(c.Changes, Change{Kind: Replaced, Tuple: tuple, Before: &old})
		}
	}
	w.commit(c)
}

// stage stages a change and commits it.
func (w *residentWorld) stage() {
	step := &StageStep{Operation: StageUpdates, ID: StageID{byte(w.next), byte(w.next >> 8)}, Schema: 1, Digest: StageDigest{1}}
	seen := map[edgeName]bool{}
	for range 100 {
		if tuple := randomResidentTuple(w.r); !seen[edgeOf(&tuple)] {
			seen[edgeOf(&tuple)] = true
			step.Updates = append(step.Updates, Update{Touch, tuple})
		}
	}
	w.commit(Commit{Store: DefaultStore, Stage: step})
	verdict := judgeStage(w.t, w.db, step.ID, Instant(w.next)*1000)
	w.commit(Commit{Store: DefaultStore, Stage: &StageStep{Operation: StageCommit, ID: step.ID, Verdict: verdict}})
}

// compare asks some questions of memory and of Pebble.
func (w *residentWorld) compare(r *rand.Rand) {
	store := DefaultStore
	if stores := w.db.Stores(); len(stores) > 0 {
		store = stores[r.IntN(len(stores))].ID
	}
	s, err := w.db.Snapshot(store, 0, Instant(1+r.IntN(1000))*1000)
	if errors.Is(err, ErrUnknownStore) {
		return
	}
	if err != nil {
		w.t.Error(err)
		return
	}
	defer s.Close()
	// The same view, so that it stays what it is while commits go on.
	view := *s
	stored := &view
	stored.near, stored.current, stored.history, stored.key, stored.value = nil, nil, nil, nil, edgeValue{}
	stored.BypassResident()
	defer func() {
		for _, it := range []**pebble.Iterator{&stored.near, &stored.current, &stored.history} {
			if err := stored.view.recycle(*it, it != &stored.near); err != nil {
				w.t.Error(err)
			}
		}
	}()
	if s.resident != nil {
		w.resident.Add(1)
	}
	for range 10 {
		tuple := randomResidentTuple(r)
		relation, subject := s.Shape(tuple.Object.Type, tuple.Relation), s.Shape(tuple.Subject.Type, tuple.Subject.Relation)
		var numbers [2]Number
		for i, o := range []Object{tuple.Object, tuple.Subject.Object} {
			want, ok, err := stored.lookup(o.Type, o.ID)
			if err != nil {
				w.t.Error(err)
				return
			}
			got, known, err := s.lookup(o.Type, o.ID)
			if err != nil || ok && (!known || got != want) {
				w.t.Errorf("%s has the number %d (%t, %v), stored is %d", o, got, known, err, want)
				return
			}
			if known {
				// One that was given out since has no tuples yet.
				want = got
			}
			numbers[i] = want
			if !known {
				numbers[i] = EphemeralNumber
			}
		}
		w.compared.Add(1)
		got, found, err := s.Find(relation, numbers[0], subject, numbers[1])
		want, stands, err2 := stored.Find(relation, numbers[0], subject, numbers[1])
		if err != nil || err2 != nil || found != stands || !sameEdge(got, want) {
			w.t.Errorf("%s of store %d at %d and %d: %+v, %t, %v; stored is %+v, %t, %v",
				tuple.String(), store, s.revision, s.instant, got, found, err, want, stands, err2)
			return
		}
		from, limit := Number(r.IntN(50)), 1+r.IntN(80)
		for d, list := range map[string]func(s *Snapshot) ([]Edge, error){
			"subjects": func(s *Snapshot) ([]Edge, error) {
				return s.Subjects(nil, relation, numbers[0], subject, from, limit)
			},
			"objects": func(s *Snapshot) ([]Edge, error) {
				return s.Objects(nil, subject, numbers[1], relation, from, limit)
			},
		} {
			got, err := list(s)
			want, err2 := list(stored)
			if err != nil || err2 != nil || !slices.EqualFunc(got, want, sameEdge) {
				w.t.Errorf("%s of %s in store %d at %d and %d: %+v, %v; stored are %+v, %v",
					d, tuple.String(), store, s.revision, s.instant, got, err, want, err2)
				return
			}
		}
	}
}

// TestResidentBound holds that memory stays near its limit while a large staged change is
// committed, whatever is asked for meanwhile.
func TestResidentBound(t *testing.T) {
	const limit = 256 << 10
	w := &residentWorld{t: t, config: Config{Dir: "graph", FS: vfs.NewMem(), ResidentBytes: limit}}
	w.open()
	defer func() {
		if err := w.db.Close(); err != nil {
			t.Error(err)
		}
	}()
	w.commit(Commit{Init: &Init{ClusterID: [16]byte{1}}})
	w.commit(Commit{Store: DefaultStore, Changes: create(mustParse(t, "doc:a#viewer@user:a"))})
	w.db.stageBatchBytes = 64 << 10
	step := &StageStep{Operation: StageUpdates, ID: StageID{7}, Schema: 1, Digest: StageDigest{1}}
	for i := range 20_000 {
		step.Updates = append(step.Updates, Update{Touch, mustParse(t, fmt.Sprintf("doc:d%d#viewer@user:u%d", i%2000, i/2000))})
	}
	w.commit(Commit{Store: DefaultStore, Stage: step})
	verdict := judgeStage(t, w.db, step.ID, Instant(w.next)*1000)
	st := w.db.stores[DefaultStore]
	w.db.betweenBatches = func() {
		w.db.residents.ask(missingList{st, 1, 1, forward, 1})
		w.bounded(limit)
	}
	w.commit(Commit{Store: DefaultStore, Stage: &StageStep{Operation: StageCommit, ID: step.ID, Verdict: verdict}})
	w.bounded(limit)
	if err := w.db.CheckInvariants(); err != nil {
		t.Error(err)
	}
}

// bounded waits until memory is within its limit.
func (w *residentWorld) bounded(limit int64) {
	w.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); w.db.residents.total.Load() > limit; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("%d bytes are in memory, with a limit of %d", w.db.residents.total.Load(), limit)
		}
	}
}

// TestResidentKeepsNames holds that names stay where giving up lists makes room enough.
func TestResidentKeepsNames(t *testing.T) {
	w := &residentWorld{t: t, config: Config{Dir: "graph", FS: vfs.NewMem(), ResidentBytes: 4 << 20}}
	w.open()
	defer func() {
		if err := w.db.Close(); err != nil {
			t.Error(err)
		}
	}()
	w.commit(Commit{Init: &Init{ClusterID: [16]byte{1}}})
	st := w.db.stores[DefaultStore]
	// Few names, and many edges between them.
	for i := 0; i < 300 && !st.resident.Partial(); i++ {
		var tuples []Tuple
		for j := range 1000 {
			n := i*1000 + j
			tuples = append(tuples, mustParse(t, fmt.Sprintf("doc:d%d#viewer@user:u%d", n%4000, n/4000*5+n%5)))
		}
		w.commit(Commit{Store: DefaultStore, Changes: create(tuples...)})
		w.bounded(w.config.ResidentBytes)
	}
	if !st.resident.Partial() {
		t.Fatalf("the limit was not met: %d bytes", w.db.residents.total.Load())
	}
	if _, _, known := st.named.Load().Find(1, "nobody"); !known {
		t.Errorf("the names were given up, of which there are %d bytes beside %d", st.named.Load().Bytes(), st.resident.Bytes())
	}
}

// TestResidentRoomPacked holds that a store is in memory as a whole where there is room
// for it when it is packed.
func TestResidentRoomPacked(t *testing.T) {
	config := Config{Dir: "graph", FS: vfs.NewMem()}
	db, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	seen := map[string]bool{}
	var tuples []Tuple
	for range 30_000 {
		s := fmt.Sprintf("doc:%d#r%d@user:%d", r.IntN(5000), r.IntN(3), r.IntN(1000))
		if !seen[s] {
			seen[s] = true
			tuples = append(tuples, mustParse(t, s))
		}
	}
	if _, err := db.Commit(Commit{Revision: 1, Term: 1, Stamp: 1, Init: &Init{ClusterID: [16]byte{1}}, Store: DefaultStore, Changes: create(tuples...)}); err != nil {
		t.Fatal(err)
	}
	reopen := func() {
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if db, err = Open(config); err != nil {
			t.Fatal(err)
		}
	}
	reopen()
	awaitResident(t, db)
	db.residents.end() // waits until it is packed as well
	packed := db.residents.total.Load()
	config.ResidentBytes = packed * 115 / 100
	reopen()
	for st := db.stores[DefaultStore]; !st.resident.Partial(); time.Sleep(time.Millisecond) {
		if st.resident.Numbered() {
			break // all is read
		}
	}
	db.residents.end()
	st := db.stores[DefaultStore]
	t.Logf("packed %d, limit %d, now %d, partial %t", packed, config.ResidentBytes, db.residents.total.Load(), st.resident.Partial())
	if st.resident.Partial() {
		t.Error("the store is not in memory as a whole, though there is room for it")
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}
