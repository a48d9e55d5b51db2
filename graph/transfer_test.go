package graph

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
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

func receiverConfig(fs vfs.FS) Config {
	return Config{Dir: "received", FS: fs, MemTableBytes: 64 << 10, CacheBytes: 1 << 20, Logger: quiet}
}

// mustCreate begins or goes on to receive, in tables of some hundred bytes.
func mustCreate(t testing.TB, fs vfs.FS, h StateHeader) *StateWriter {
	t.Helper()
	w, err := CreateState(receiverConfig(fs), h)
	if err != nil {
		t.Fatal(err)
	}
	w.tableMax = 700
	return w
}

func mustReadState(t testing.TB, db *DB) *StateReader {
	t.Helper()
	r, err := db.ReadState()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustClose(t testing.TB, c interface{ Close() error }) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// wire is what a chunk becomes on its way.
func wire(t testing.TB, c StateChunk) StateChunk {
	t.Helper()
	decoded, err := DecodeStateChunk(c.AppendBinary(nil))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(decoded.Last, c.Last) || decoded.Total != c.Total || decoded.Done != c.Done {
		t.Fatalf("the chunk %+v became %+v", c, decoded)
	}
	return decoded
}

// send sends what is left, in chunks of about so many bytes.
func send(t testing.TB, r *StateReader, w *StateWriter, target int) {
	t.Helper()
	for {
		c, err := r.Chunk(w.After(), target)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Write(wire(t, c)); err != nil {
			t.Fatal(err)
		}
		if w.Total() != c.Total || !bytes.Equal(w.After(), c.Last) {
			t.Fatalf("behind a chunk the writer has %+v up to %x, not %+v up to %x", w.Total(), w.After(), c.Total, c.Last)
		}
		if c.Done {
			if err := w.Finish(c.Total); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
}

func openReceived(t testing.TB, fs vfs.FS) *DB {
	t.Helper()
	config := receiverConfig(fs)
	config.OnFatal = func(err error) { t.Errorf("fatal: %v", err) }
	db, err := Open(config)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// mustEqual holds that a DB has exactly these keys and values, and makes sense.
func mustEqual(t testing.TB, db *DB, want []string) {
	t.Helper()
	got := dump(t, db)
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			t.Fatalf("record %d of %d differs from that of %d: %.200q", i, len(got), len(want), append(got[min(i, len(got)):], "none")[0])
		}
	}
	if err := db.CheckInvariants(); err != nil {
		t.Fatal(err)
	}
}

// fill makes a DB of random commits.
func fill(t testing.TB, seed uint64, commits int) (*generator, *model, *DB) {
	t.Helper()
	g, m, db := newGenerator(seed), newModel(), openTest(t, vfs.NewMem())
	if tt, ok := t.(*testing.T); ok {
		g.begin(tt, m, db)
	}
	for range commits {
		c := g.commit(m)
		mustCommit(t, db, c)
		m.commit(c)
	}
	return g, m, db
}

// TestTransfer sends the state at random moments while commits and removals go on.
// What arrives is what was there when it was read, answers like the model, and goes
// on with the same commits to the same bytes.
func TestTransfer(t *testing.T) {
	seeds := []uint64{1, 2, uint64(time.Now().UnixNano())}
	if testing.Short() || slow {
		seeds = seeds[2:]
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { testTransfer(t, seed) })
	}
}

func testTransfer(t *testing.T, seed uint64) {
	g, m, db := fill(t, seed, 5)
	defer func() { mustClose(t, db) }()
	rounds := 12
	if slow {
		rounds = 4
	}
	for round := range rounds {
		var since []Commit
		configurations := map[Revision]bool{}
		next := func() {
			if g.IntN(6) == 0 {
				m.applied++
				if err := db.CommitConfiguration(m.applied, 1, []byte(fmt.Sprint("nodes of ", m.applied))); err != nil {
					t.Fatal(err)
				}
				since = append(since, Commit{Revision: m.applied})
				configurations[m.applied] = true
				return
			}
			c := g.commit(m)
			mustCommit(t, db, c)
			m.commit(c)
			since = append(since, c)
			switch g.IntN(6) {
			case 0:
				if _, err := db.Remove(m.store, stepRecords); err != nil {
					t.Fatal(err)
				}
			case 1:
				if _, err := db.Flush(); err != nil {
					t.Fatal(err)
				}
			case 2:
				if err := db.pebble.Compact(t.Context(), []byte{0}, []byte{0xff}, false); err != nil {
					t.Fatal(err)
				}
			}
		}
		for range g.IntN(12) {
			next()
		}
		since = nil
		r := mustReadState(t, db)
		want, applied := dump(t, db), db.Applied()
		if a := r.Applied(); a.Revision != applied.Revision || a.Term != applied.Term || a.Stamp != applied.Stamp ||
			a.ConfigurationRevision != applied.ConfigurationRevision || !bytes.Equal(a.Configuration, applied.Configuration) {
			t.Fatalf("the state read is of %+v, not %+v", a, applied)
		}
		if h := r.Header(); h != (StateHeader{formatVersion, db.ClusterID(), applied.Revision, applied.Term, applied.Stamp}) {
			t.Fatalf("header %+v", h)
		}
		fs := vfs.NewMem()
		w := mustCreate(t, fs, r.Header())
		for done := false; !done; {
			c, err := r.Chunk(w.After(), 1+g.IntN(800))
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Write(wire(t, c)); err != nil {
				t.Fatal(err)
			}
			if g.IntN(5) == 0 {
				next()
			}
			if done = c.Done; done {
				if size := r.SizeEstimate(); size < int64(c.Total.Bytes)/2 {
					t.Errorf("%d bytes were estimated to be %d", c.Total.Bytes, size)
				}
				if c.Total.Records != uint64(len(want)) {
					t.Errorf("%d records were sent of %d", c.Total.Records, len(want))
				}
				if err := w.Finish(c.Total); err != nil {
					t.Fatal(err)
				}
			}
		}
		mustClose(t, r)
		back := openReceived(t, fs)
		if a := back.Applied(); a.Revision != applied.Revision || a.ConfigurationRevision != applied.ConfigurationRevision ||
			!bytes.Equal(a.Configuration, applied.Configuration) || back.Durable().Revision != applied.Revision || back.ClusterID() != db.ClusterID() {
			t.Fatalf("the received state is of %+v, not %+v", a, applied)
		}
		mustEqual(t, back, want)
		compareInfo(t, m, back, applied.Revision)
		compare(t, g, m, back, applied.Revision)
		for rev := m.floorsAt(applied.Revision).history.revision; rev <= applied.Revision; rev += 1 + applied.Revision/10 {
			compare(t, g, m, back, max(rev, 1))
		}
		for range 3 {
			next()
		}
		for _, c := range since {
			if configurations[c.Revision] {
				if err := back.CommitConfiguration(c.Revision, 1, []byte(fmt.Sprint("nodes of ", c.Revision))); err != nil {
					t.Fatal(err)
				}
				continue
			}
			mustCommit(t, back, c)
		}
		compare(t, g, m, back, m.applied)
		if round%3 == 0 {
			compareLog(t, g, m, back)
		}
		mustRemove(t, back, m.store)
		mustRemove(t, db, m.store)
		mustEqual(t, back, dump(t, db))
		mustClose(t, back)
	}
}

// TestTransferResumes breaks the transfer behind each chunk: the receiver is closed
// or crashes, the sender goes on or is another reader of the same state.
func TestTransferResumes(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	commits, target := 25, 300
	if slow {
		commits, target = 10, 250
	}
	g, _, db := fill(t, seed, commits)
	defer func() { mustClose(t, db) }()
	want := dump(t, db)
	r := mustReadState(t, db)
	defer func() { mustClose(t, r) }()
	fs := vfs.NewCrashableMem()
	w := mustCreate(t, fs, r.Header())
	chunks, lost := 0, 0
	for done := false; !done; chunks++ {
		c, err := r.Chunk(w.After(), target)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Write(wire(t, c)); err != nil {
			t.Fatal(err)
		}
		done = c.Done
		clone := fs.CrashClone(vfs.CrashCloneCfg{
			UnsyncedDataPercent: pick(g, []int{0, 50, 100}), RNG: rand.New(rand.NewPCG(seed, uint64(chunks))),
		})
		after := bytes.Clone(w.After())
		if chunks%3 == 0 {
			mustClose(t, w)
			w = mustCreate(t, fs, r.Header())
			if bytes.Equal(after, metaKey(metaFormat)) {
				// The one record that Finish writes; it has to come again.
				after = bytes.Clone(w.After())
			} else if !bytes.Equal(w.After(), after) || w.Total() != c.Total {
				t.Fatalf("behind a pause the writer goes on behind %x, not %x", w.After(), after)
			}
		}
		other := mustCreate(t, clone, r.Header())
		if bytes.Compare(other.After(), after) > 0 {
			t.Fatalf("behind a crash the writer goes on behind %x, where %x was received", other.After(), after)
		}
		if !bytes.Equal(other.After(), after) {
			lost++
		}
		sender := r
		if g.IntN(2) == 0 {
			sender = mustReadState(t, db)
		}
		send(t, sender, other, 1+g.IntN(2000))
		if sender != r {
			mustClose(t, sender)
		}
		back := openReceived(t, clone)
		mustEqual(t, back, want)
		mustClose(t, back)
	}
	if chunks < 4 || lost == 0 {
		t.Errorf("%d chunks, %d crashes that lost something: this tests too little", chunks, lost)
	}
	if err := w.Finish(r.marksTotal(t)); err != nil {
		t.Fatal(err)
	}
	back := openReceived(t, fs)
	mustEqual(t, back, want)
	mustClose(t, back)
}

// marksTotal returns the total of the whole state, which is asked for again.
func (r *StateReader) marksTotal(t *testing.T) StateTotal {
	t.Helper()
	c, err := r.Chunk(r.marks[len(r.marks)-1].key, 1)
	if err != nil || !c.Done || len(c.Records) != 0 {
		t.Fatalf("behind the end there is %+v (%v)", c, err)
	}
	return c.Total
}

// TestTransferCrash crashes the receiver at every operation on its disk, Finish
// included. What is left is never opened as a graph unless it is the whole one, and
// can be finished.
func TestTransferCrash(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	commits, every := 12, 1
	if slow {
		commits, every = 4, 7
	}
	_, _, db := fill(t, seed, commits)
	defer func() { mustClose(t, db) }()
	want := dump(t, db)
	r := mustReadState(t, db)
	defer func() { mustClose(t, r) }()
	disk := vfs.NewCrashableMem()
	type crash struct {
		opened, resumed vfs.FS
		created, whole  bool // what had returned by then
	}
	var mu sync.Mutex
	var crashes []crash
	var operations int
	var created, whole bool
	take := func() {
		clone := func() vfs.FS {
			return disk.CrashClone(vfs.CrashCloneCfg{
				UnsyncedDataPercent: []int{0, 50, 100}[len(crashes)%3], RNG: rand.New(rand.NewPCG(seed, uint64(len(crashes)))),
			})
		}
		crashes = append(crashes, crash{clone(), clone(), created, whole})
	}
	fs := errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			mu.Lock()
			defer mu.Unlock()
			if operations++; operations%every == 0 {
				take()
			}
		}
		return nil
	}))
	w := mustCreate(t, fs, r.Header())
	mu.Lock()
	created = true
	mu.Unlock()
	send(t, r, w, 400)
	mu.Lock()
	whole = true
	take()
	mu.Unlock()
	counts := map[string]int{}
	for i, c := range crashes {
		back, err := Open(receiverConfig(c.opened))
		switch {
		case err != nil && c.whole, err != nil && !IsCorruptionError(err):
			t.Fatalf("crash %d: open: %v", i, err)
		case err != nil && strings.Contains(err.Error(), "without a format version"):
			counts["a part"]++
		case err != nil && c.created:
			t.Fatalf("crash %d: open: %v", i, err)
		case err != nil:
			// Pebble does not open all that a crash leaves while it makes a directory.
			counts["ruins"]++
		case back.Applied().Revision == 0:
			if c.created {
				t.Fatalf("crash %d left an empty graph behind CreateState", i)
			}
			counts["nothing"]++
			mustClose(t, back)
		default:
			mustEqual(t, back, want)
			mustClose(t, back)
			counts["the whole"]++
		}
		w, err := CreateState(receiverConfig(c.resumed), r.Header())
		switch {
		case err == nil && !c.whole:
			send(t, r, w, 1000)
		case !c.created && IsCorruptionError(err):
			continue // As above: the caller removes it.
		case !errors.Is(err, ErrStateComplete):
			t.Fatalf("crash %d: %v", i, err)
		}
		back = openReceived(t, c.resumed)
		mustEqual(t, back, want)
		mustClose(t, back)
	}
	t.Logf("crashes left %v", counts)
	if counts["a part"] < 3 || counts["the whole"] == 0 {
		t.Error("this tests too little")
	}
}

// TestTransferRefuses gives the receiver chunks that are damaged, dropped, repeated,
// swapped or of another state. None is taken, and the right one is then.
func TestTransferRefuses(t *testing.T) {
	g, m, db := fill(t, 3, 20)
	defer func() { mustClose(t, db) }()
	r := mustReadState(t, db)
	defer func() { mustClose(t, r) }()
	want := dump(t, db)
	var chunks []StateChunk
	for after := []byte(nil); ; after = chunks[len(chunks)-1].Last {
		c, err := r.Chunk(after, 400)
		if err != nil {
			t.Fatal(err)
		}
		if chunks = append(chunks, c); c.Done {
			break
		}
	}
	// A state of the same header whose records differ: it has an id more.
	_, _, other := fill(t, 3, 20)
	defer func() { mustClose(t, other) }()
	more := appendIDKey(nil, m.store, 1, 99)
	if err := other.pebble.Set(more, []byte("zz"), pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	foreign := mustReadState(t, other)
	defer func() { mustClose(t, foreign) }()
	if foreign.Header() != r.Header() {
		t.Fatal("the headers differ")
	}

	fs := vfs.NewMem()
	w := mustCreate(t, fs, r.Header())
	refuse := func(what string, c StateChunk, want error) {
		t.Helper()
		total, after := w.Total(), bytes.Clone(w.After())
		if err := w.Write(c); !errors.Is(err, want) || IsCorruptionError(err) {
			t.Fatalf("%s: %v, not %v", what, err, want)
		}
		if w.Total() != total || !bytes.Equal(w.After(), after) {
			t.Fatalf("%s: the writer moved", what)
		}
	}
	for i, c := range chunks {
		encoded := c.AppendBinary(nil)
		for range 200 {
			damaged := bytes.Clone(encoded)
			damaged[g.IntN(len(damaged))] ^= 1 << g.IntN(8)
			if _, err := DecodeStateChunk(damaged); !errors.Is(err, ErrChunkDamaged) || IsCorruptionError(err) {
				t.Fatalf("damaged on the way: %v", err)
			}
		}
		for range 50 {
			if _, err := DecodeStateChunk(encoded[:g.IntN(len(encoded))]); !errors.Is(err, ErrChunkDamaged) {
				t.Fatalf("cut on the way: %v", err)
			}
		}
		wrong := c
		wrong.Records = bytes.Clone(c.Records)
		wrong.Records[len(wrong.Records)-1] ^= 1
		refuse("damaged records", wrong, ErrChunkDamaged)
		wrong = c
		wrong.Done = !c.Done
		refuse("damaged end", wrong, ErrChunkDamaged)
		wrong = c
		wrong.Last = append(bytes.Clone(c.Last), 0)
		refuse("damaged last key", wrong, ErrChunkDamaged)
		wrong = c
		wrong.Total.Bytes++
		wrong.Sum = wrong.sum()
		refuse("another total", wrong, ErrStateDiffers)
		wrong = c
		wrong.After = append(bytes.Clone(c.After), 0)
		wrong.Sum = wrong.sum()
		refuse("another place", wrong, ErrChunkMisplaced)
		for j, misplaced := range chunks {
			if j != i {
				refuse(fmt.Sprintf("chunk %d for %d", j, i), misplaced, ErrChunkMisplaced)
			}
		}
		if err := w.Finish(chunks[len(chunks)-1].Total); !errors.Is(err, ErrStateDiffers) {
			t.Fatalf("finished before the end: %v", err)
		}
		if err := w.Write(c); err != nil {
			t.Fatalf("chunk %d: %v", i, err)
		}
	}
	total := w.Total()
	for _, wrong := range []StateTotal{{total.Records + 1, total.Bytes, total.Sum}, {total.Records, total.Bytes + 1, total.Sum}, {total.Records, total.Bytes, total.Sum + 1}} {
		if err := w.Finish(wrong); !errors.Is(err, ErrStateDiffers) {
			t.Fatalf("finished with the total %+v: %v", wrong, err)
		}
	}
	if err := w.Finish(total); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"write": w.Write(chunks[0]), "finish": w.Finish(total)} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s behind the end: %v", what, err)
		}
	}
	mustClose(t, w)
	back := openReceived(t, fs)
	mustEqual(t, back, want)
	mustClose(t, back)

	// The rest of the other state is refused behind the place where the two differ;
	// before it, what was received is of both, and becomes the other one.
	refused, taken := 0, 0
	for first := range chunks {
		w := mustCreate(t, vfs.NewMem(), r.Header())
		for _, c := range chunks[:first] {
			if err := w.Write(c); err != nil {
				t.Fatal(err)
			}
		}
		behind := bytes.Compare(w.After(), more) > 0
		var c StateChunk
		var err error
		for !c.Done && err == nil {
			if c, err = foreign.Chunk(w.After(), 400); err == nil {
				err = w.Write(c)
			}
		}
		switch {
		case behind && !errors.Is(err, ErrStateDiffers):
			t.Fatalf("%d chunks of one state and the rest of another: %v", first, err)
		case behind:
			refused++
		case err != nil || w.Total() == total || w.Total() != c.Total:
			t.Fatalf("%d chunks of both states and the rest of the other: %v, %+v", first, err, w.Total())
		default:
			taken++
		}
		mustClose(t, w)
	}
	if refused == 0 || taken == 0 {
		t.Errorf("%d mixed states were refused and %d taken; this tests too little", refused, taken)
	}
}

// TestTransferMakesSense gives the receiver chunks that are whole but of no state.
func TestTransferMakesSense(t *testing.T) {
	version := binary.AppendUvarint(nil, formatVersion)
	h := StateHeader{Format: formatVersion, Revision: 7, Term: 1, Stamp: 9, ClusterID: [16]byte{1}}
	applied := Applied{Revision: 7, Term: 1, Stamp: 9}
	type record struct{ key, value []byte }
	chunkOf := func(records ...record) StateChunk {
		sum := newTally(&h)
		c := StateChunk{Done: true}
		for _, r := range records {
			c.Records = appendStateRecord(c.Records, c.Last, r.key, r.value)
			c.Last = r.key
			sum.add(r.key, r.value)
		}
		c.Total = sum.total()
		c.Sum = c.sum()
		return c
	}
	meta := func(name byte, value []byte) record { return record{metaKey(name), value} }
	a := meta(metaApplied, applied.appendApplied(nil))
	f := meta(metaFormat, version)
	i := meta(metaCluster, h.ClusterID[:])
	behind := applied
	behind.Revision--
	for what, c := range map[string]struct {
		chunk  StateChunk
		write  error
		finish error
	}{
		"right":                         {chunk: chunkOf(a, f, i)},
		"another applied revision":      {chunk: chunkOf(meta(metaApplied, behind.appendApplied(nil)), f, i), finish: ErrStateDiffers},
		"a damaged applied revision":    {chunk: chunkOf(meta(metaApplied, []byte{9}), f, i), finish: ErrStateDiffers},
		"no applied revision":           {chunk: chunkOf(f, i), finish: ErrStateDiffers},
		"another cluster":               {chunk: chunkOf(a, f, meta(metaCluster, make([]byte, 16))), finish: ErrStateDiffers},
		"no format version at the end":  {chunk: chunkOf(a), finish: ErrStateDiffers},
		"no format version on the way":  {chunk: chunkOf(a, i), write: ErrStateDiffers},
		"another format version":        {chunk: chunkOf(a, meta(metaFormat, []byte{99}), i), write: ErrStateDiffers},
		"the header's place":            {chunk: chunkOf(meta(metaIncoming, nil), a, f, i), write: ErrStateDiffers},
		"a key of the keyspace alone":   {chunk: chunkOf(record{[]byte("m"), nil}, a, f, i), write: ErrStateDiffers},
		"keys in the wrong order":       {chunk: chunkOf(a, i, f), write: ErrStateDiffers},
		"a key that comes twice":        {chunk: chunkOf(a, a, f, i), write: ErrChunkDamaged},
		"a key that is too long":        {chunk: chunkOf(a, f, i, record{bytes.Repeat([]byte("n"), stateKeyMax+1), nil}), write: ErrChunkDamaged},
		"nothing, but not done":         {chunk: func() StateChunk { c := StateChunk{}; c.Sum = c.sum(); return c }(), write: ErrChunkDamaged},
		"nothing that is said to be it": {chunk: chunkOf(), finish: ErrStateDiffers},
	} {
		fs := vfs.NewMem()
		w := mustCreate(t, fs, h)
		if err := w.Write(c.chunk); !errors.Is(err, c.write) {
			t.Errorf("%s: write: %v", what, err)
			continue
		}
		if c.write == nil {
			if err := w.Finish(c.chunk.Total); !errors.Is(err, c.finish) || IsCorruptionError(err) {
				t.Errorf("%s: finish: %v", what, err)
			}
		}
		mustClose(t, w)
		if db, err := Open(receiverConfig(fs)); (err == nil) != (what == "right") {
			t.Errorf("%s: open: %v", what, err)
		} else if err == nil {
			mustClose(t, db)
		}
	}
}

// TestCreateState holds what directories a state may be received into.
func TestCreateState(t *testing.T) {
	_, _, db := fill(t, 4, 6)
	defer func() { mustClose(t, db) }()
	r := mustReadState(t, db)
	defer func() { mustClose(t, r) }()
	fs := vfs.NewMem()
	config := receiverConfig(fs)
	begin := func(h StateHeader) error {
		w, err := CreateState(config, h)
		if err == nil {
			mustClose(t, w)
		}
		return err
	}
	newer := r.Header()
	newer.Format++
	var format *FormatError
	if err := begin(newer); !errors.As(err, &format) || format.Found != formatVersion+1 || format.Supported != formatVersion {
		t.Errorf("another format version: %v", err)
	}
	if _, err := CreateState(Config{}, r.Header()); err == nil {
		t.Error("a config without a directory is taken")
	}
	if err := begin(r.Header()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(config); !IsCorruptionError(err) {
		t.Errorf("a state that was only begun is opened: %v", err)
	}
	for range 2 {
		w := mustCreate(t, fs, r.Header())
		c, err := r.Chunk(w.After(), 500)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Write(c); err != nil {
			t.Fatal(err)
		}
		if _, err := CreateState(config, r.Header()); err == nil {
			t.Error("two receive into one directory")
		}
		mustClose(t, w)
		mustClose(t, w)
		if _, err := Open(config); !IsCorruptionError(err) {
			t.Errorf("a part of a state is opened: %v", err)
		}
	}
	other := r.Header()
	other.Revision++
	if err := begin(other); !errors.Is(err, ErrStateDiffers) {
		t.Errorf("the rest of another state: %v", err)
	}
	send(t, r, mustCreate(t, fs, r.Header()), 5000)
	for _, h := range []StateHeader{r.Header(), other} {
		if err := begin(h); !errors.Is(err, ErrStateComplete) {
			t.Errorf("a whole state: %v", err)
		}
	}
	fs = vfs.NewMem()
	config.FS = fs
	if err := fs.MkdirAll("received", 0o700); err != nil {
		t.Fatal(err)
	}
	writeAll(t, fs, "received/notes.txt", []byte("mine"))
	var invalid *InvalidError
	if err := begin(r.Header()); !errors.As(err, &invalid) || !strings.Contains(err.Error(), "notes.txt") {
		t.Errorf("a directory of something else: %v", err)
	}
	if names, err := fs.List("received"); err != nil || len(names) != 1 {
		t.Errorf("in a directory of something else there are now %v (%v)", names, err)
	}
	for _, h := range []StateHeader{r.Header(), {}} {
		if got, err := DecodeStateHeader(h.AppendBinary(nil)); err != nil || got != h {
			t.Errorf("the header %+v became %+v (%v)", h, got, err)
		}
	}
}

// TestReadState holds what a reader promises beside its chunks.
func TestReadState(t *testing.T) {
	_, m, db := fill(t, 5, 10)
	r := mustReadState(t, db)
	if err := db.Close(); !errors.Is(err, ErrSnapshotsOpen) {
		t.Fatalf("closed beside a reader: %v", err)
	}
	for _, target := range []int{0, -1} {
		var invalid *InvalidError
		if _, err := r.Chunk(nil, target); !errors.As(err, &invalid) {
			t.Errorf("a chunk of %d bytes: %v", target, err)
		}
	}
	if _, err := r.Chunk([]byte("no such key"), 10); !errors.Is(err, ErrStateDiffers) {
		t.Errorf("behind a key that does not exist: %v", err)
	}
	// One record a chunk, each a mark; asking again in any order gives the same.
	var chunks []StateChunk
	for after := []byte(nil); ; after = chunks[len(chunks)-1].Last {
		c, err := r.Chunk(after, 1)
		if err != nil {
			t.Fatal(err)
		}
		if chunks = append(chunks, c); c.Done {
			break
		}
	}
	if got := len(chunks); got != len(dump(t, db)) {
		t.Errorf("%d chunks of one record", got)
	}
	fresh := mustReadState(t, db)
	for range 200 {
		i := rand.IntN(len(chunks))
		for _, r := range []*StateReader{r, fresh} {
			if c, err := r.Chunk(chunks[i].After, 1); err != nil || !bytes.Equal(c.AppendBinary(nil), chunks[i].AppendBinary(nil)) {
				t.Fatalf("chunk %d is another one when it is read again (%v)", i, err)
			}
		}
	}
	mustClose(t, fresh)
	if got := m.applied; r.Applied().Revision != got {
		t.Errorf("the state is of revision %d, not %d", r.Applied().Revision, got)
	}
	mustClose(t, r)
	mustClose(t, r)
	if _, err := r.Chunk(nil, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("a chunk of a closed reader: %v", err)
	}
	mustClose(t, db)
	if _, err := db.ReadState(); !errors.Is(err, ErrClosed) {
		t.Errorf("the state of a closed graph: %v", err)
	}
}

// TestStateMarks holds that a reader remembers a bounded number of places, and that
// what it forgot costs time only.
func TestStateMarks(t *testing.T) {
	db := openTest(t, vfs.NewMem())
	defer func() { mustClose(t, db) }()
	c := Commit{Revision: 1, Term: 1, Stamp: 1, Store: DefaultStore}
	for i := range 1500 {
		c.Changes = append(c.Changes, create(mustParse(t, fmt.Sprintf("doc:%d#viewer@user:%d", i, i)))...)
	}
	mustCommit(t, db, c)
	r := mustReadState(t, db)
	defer func() { mustClose(t, r) }()
	var chunks []StateChunk
	for after := []byte(nil); ; after = chunks[len(chunks)-1].Last {
		c, err := r.Chunk(after, 1)
		if err != nil {
			t.Fatal(err)
		}
		c.Records = nil
		if chunks = append(chunks, c); c.Done {
			break
		}
		if len(r.marks) >= stateMarksMax {
			t.Fatalf("%d marks", len(r.marks))
		}
	}
	if len(chunks) < stateMarksMax || len(r.marks[0].key) != 0 {
		t.Fatalf("only %d chunks", len(chunks))
	}
	for i := 0; i < len(chunks); i += 61 {
		again, err := r.Chunk(chunks[i].After, 1)
		if err != nil || again.Total != chunks[i].Total || again.Sum != chunks[i].Sum {
			t.Fatalf("chunk %d is another one when it is read again (%v)", i, err)
		}
	}
}

// TestTransferSmallAndLarge sends a graph that holds nothing, and one with records
// of MiBs, which take a chunk of their own.
func TestTransferSmallAndLarge(t *testing.T) {
	for name, work := range map[string]func(t *testing.T, db *DB){
		"nothing": func(*testing.T, *DB) {},
		"a configuration only": func(t *testing.T, db *DB) {
			if err := db.CommitConfiguration(3, 1, []byte("nodes")); err != nil {
				t.Fatal(err)
			}
		},
		"large records": func(t *testing.T, db *DB) {
			schemas := 4
			if slow {
				schemas = 2
			}
			for i := range schemas {
				text := strings.Repeat(fmt.Sprintf("// %d\n", i), 1<<20)
				mustCommit(t, db, Commit{
					Revision: Revision(i + 1), Term: 1, Stamp: Instant(i), Store: DefaultStore, Schema: &SchemaCommit{Text: text},
					Metadata: []byte(text[:1<<20]),
				})
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			db := openTest(t, vfs.NewMem())
			defer func() { mustClose(t, db) }()
			work(t, db)
			r := mustReadState(t, db)
			defer func() { mustClose(t, r) }()
			fs := vfs.NewMem()
			w := mustCreate(t, fs, r.Header())
			largest := 0
			for done := false; !done; {
				c, err := r.Chunk(w.After(), 256<<10)
				if err != nil {
					t.Fatal(err)
				}
				encoded := c.AppendBinary(nil)
				largest = max(largest, len(encoded))
				if len(encoded) > 300<<10 && c.Total.Records != w.Total().Records+1 {
					t.Errorf("a chunk of %d bytes holds %d records", len(encoded), c.Total.Records-w.Total().Records)
				}
				if err := w.Write(wire(t, c)); err != nil {
					t.Fatal(err)
				}
				done = c.Done
			}
			if large := name == "large records"; (largest > 5<<20) != large {
				t.Errorf("the largest chunk has %d bytes", largest)
			}
			if err := w.Finish(w.Total()); err != nil {
				t.Fatal(err)
			}
			back := openReceived(t, fs)
			defer func() { mustClose(t, back) }()
			mustEqual(t, back, dump(t, db))
			mustLieLow(t, back)
			if back.Applied().Revision != db.Applied().Revision || back.ClusterID() != db.ClusterID() {
				t.Errorf("revision %d was received as %d", db.Applied().Revision, back.Applied().Revision)
			}
			next := Commit{Revision: 10, Term: 1, Stamp: 10, Store: DefaultStore, Changes: create(mustParse(t, "doc:a#viewer@user:x"))}
			mustCommit(t, db, next)
			mustCommit(t, back, next)
			mustEqual(t, back, dump(t, db))
		})
	}
}

// mustLieLow holds that all that was received but meta is in the lowest level, where
// no compaction writes it again.
func mustLieLow(t *testing.T, db *DB) {
	t.Helper()
	levels, err := db.pebble.SSTables()
	if err != nil {
		t.Fatal(err)
	}
	for i, level := range levels[:len(levels)-1] {
		for _, table := range level {
			if from, to := table.Smallest.UserKey, table.Largest.UserKey; from[0] != spaceMeta || to[0] != spaceMeta {
				t.Errorf("a table in level %d has the keys %q to %q", i, from, to)
			}
		}
	}
}

// TestTransferInStage sends the state between the batches of a staged change: the
// receiver sees nothing of it, finishes the same commit, and holds the same bytes.
func TestTransferInStage(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	g, m, db := fill(t, seed, 20)
	defer func() { mustClose(t, db) }()
	db.stageBatchBytes = 900
	next := func() Commit {
		return Commit{Revision: m.applied + 1, Term: 1, Stamp: m.stamp, Store: DefaultStore}
	}
	id := StageID{1}
	c := next()
	step := &StageStep{Operation: StageUpdates, ID: id, Schema: m.schemas[len(m.schemas)-1].Revision}
	seen := map[edgeName]bool{}
	for len(seen) < 80 {
		e := g.edge()
		if !seen[e] {
			seen[e] = true
			step.Updates = append(step.Updates, Update{Touch, g.tuple(e)})
		}
	}
	c.Stage = step
	mustCommit(t, db, c)
	m.commit(c)
	c = next()
	c.Stage = &StageStep{Operation: StageCommit, ID: id, Verdict: judgeStage(t, db, id, c.Stamp)}
	var received []vfs.FS
	var dumps [][]string
	db.betweenBatches = func() {
		r := mustReadState(t, db)
		if r.Applied().Revision != m.applied {
			t.Errorf("the state is of revision %d, not %d", r.Applied().Revision, m.applied)
		}
		fs := vfs.NewMem()
		send(t, r, mustCreate(t, fs, r.Header()), 1+g.IntN(3000))
		mustClose(t, r)
		received, dumps = append(received, fs), append(dumps, dump(t, db))
	}
	if _, err := db.Commit(c); err != nil {
		t.Fatal(err)
	}
	db.betweenBatches = nil
	if len(received) < 3 {
		t.Fatalf("%d batches: this tests too little", len(received))
	}
	after := next()
	after.Revision++
	after.Changes = create(mustParse(t, "doc:new#viewer@user:new"))
	mustCommit(t, db, after)
	want := dump(t, db)
	for i, fs := range received {
		back := openReceived(t, fs)
		back.stageBatchBytes = 600 + g.IntN(1500)
		mustEqual(t, back, dumps[i])
		compare(t, g, m, back, m.applied)
		s, err := back.Snapshot(DefaultStore, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		if revision, verdict := s.UnfinishedStage(); revision != c.Revision || verdict != c.Stage.Verdict {
			t.Fatalf("revision %d is unfinished with %+v, not %d with %+v", revision, verdict, c.Revision, c.Stage.Verdict)
		}
		s.Close()
		if _, err := back.Commit(Commit{Revision: c.Revision, Term: 1, Stamp: c.Stamp}); err == nil {
			t.Fatal("another revision was committed before the unfinished one")
		}
		if _, err := back.Commit(c); err != nil {
			t.Fatal(err)
		}
		mustCommit(t, back, after)
		mustEqual(t, back, want)
		mustClose(t, back)
	}
}

// TestTransferBesideCommits reads while another goroutine commits.
func TestTransferBesideCommits(t *testing.T) {
	db := openTest(t, vfs.NewMem())
	defer func() { mustClose(t, db) }()
	tuple := func(i int) Tuple { return mustParse(t, fmt.Sprintf("doc:%d#viewer@user:x", i%50)) }
	mustCommit(t, db, Commit{Revision: 1, Term: 1, Stamp: 1, Store: 1, Changes: create(tuple(0))})
	commits := 2000
	if slow {
		commits = 150
	}
	var done atomic.Bool
	var committing sync.WaitGroup
	committing.Go(func() {
		defer done.Store(true)
		for i := range commits {
			old := tuple(i)
			old.Created = Revision(i + 1)
			_, err := db.Commit(Commit{
				Revision: Revision(i + 2), Term: 1, Stamp: Instant(i + 1), Store: 1,
				Changes: append(create(tuple(i+1)), Change{Kind: Deleted, Tuple: old, Before: &old}),
			})
			if err == nil && i%200 == 0 {
				_, err = db.Flush()
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	for transfers := 0; !done.Load() || transfers == 0; transfers++ {
		r := mustReadState(t, db)
		fs := vfs.NewMem()
		send(t, r, mustCreate(t, fs, r.Header()), 2000)
		back := openReceived(t, fs)
		if a := back.Applied().Revision; a != r.Applied().Revision {
			t.Errorf("revision %d was received as %d", r.Applied().Revision, a)
		}
		if err := back.CheckInvariants(); err != nil {
			t.Error(err)
		}
		s, err := back.Snapshot(1, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		if tuples, _, err := s.Read(Filter{}, nil, 10); err != nil || len(tuples) != 1 {
			t.Errorf("at %d: tuples %v, %v", s.Revision(), tuples, err)
		}
		s.Close()
		mustClose(t, back)
		mustClose(t, r)
	}
	committing.Wait()
}

// TestTransferOfDamage holds that a sender whose tables are damaged says so, and
// sends no damaged record.
func TestTransferOfDamage(t *testing.T) {
	disk := vfs.NewMem()
	db := openTest(t, disk)
	mustCommit(t, db, Commit{Revision: 1, Term: 1, Stamp: 1, Store: 1, Schema: &SchemaCommit{Text: strings.Repeat("// a schema\n", 4000)}})
	for i := range 300 {
		mustCommit(t, db, Commit{
			Revision: Revision(i + 2), Term: 1, Stamp: 1, Store: 1, Changes: create(mustParse(t, fmt.Sprintf("doc:%d#viewer@user:%d", i, i*7919))),
		})
	}
	if err := db.pebble.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := db.pebble.Compact(t.Context(), []byte{0}, []byte{0xff}, false); err != nil {
		t.Fatal(err)
	}
	mustClose(t, db)
	names, err := disk.List("graph")
	if err != nil {
		t.Fatal(err)
	}
	damages, step := 0, 1
	if slow {
		step = 4
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".sst") {
			continue
		}
		content := readAll(t, disk, "graph/"+name)
		for at := 0; at < len(content); at += max(1, step*len(content)/40) {
			damaged := vfs.NewMem()
			if ok, err := vfs.Clone(disk, damaged, "graph", "graph"); err != nil || !ok {
				t.Fatal(ok, err)
			}
			wrong := bytes.Clone(content)
			wrong[at] ^= 0x20
			writeAll(t, damaged, "graph/"+name, wrong)
			err := readThrough(Config{Dir: "graph", FS: damaged, Logger: quiet})
			if err == nil {
				continue // In a filter or another part that is not read.
			}
			damages++
			if !IsCorruptionError(err) {
				t.Errorf("byte %d of %d of %s: %v", at, len(content), name, err)
			}
		}
	}
	if damages < 5 {
		t.Errorf("only %d damages were met", damages)
	}
}

// readThrough opens a graph and reads its state whole.
func readThrough(config Config) (err error) {
	db, err := Open(config)
	if err != nil {
		return err
	}
	// What closing says of the damage, again, is not asked.
	defer func() { _ = db.Close() }()
	r, err := db.ReadState()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	for after := []byte(nil); ; {
		c, err := r.Chunk(after, 1<<10)
		if err != nil || c.Done {
			return err
		}
		after = c.Last
	}
}

// TestDamageOfReceived holds that what was received and then damaged is noticed when
// the transfer goes on, and never becomes a graph.
func TestDamageOfReceived(t *testing.T) {
	_, _, db := fill(t, 6, 25)
	defer func() { mustClose(t, db) }()
	r := mustReadState(t, db)
	defer func() { mustClose(t, r) }()
	want := dump(t, db)
	disk := vfs.NewMem()
	w := mustCreate(t, disk, r.Header())
	for w.Total().Bytes < 8000 {
		c, err := r.Chunk(w.After(), 900)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Write(c); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, w)
	names, err := disk.List("received")
	if err != nil {
		t.Fatal(err)
	}
	noticed, step := 0, 1
	if slow {
		step = 7
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".sst") {
			continue
		}
		content := readAll(t, disk, "received/"+name)
		for at := 0; at < len(content); at += max(1, step*len(content)/7) {
			damaged := vfs.NewMem()
			if ok, err := vfs.Clone(disk, damaged, "received", "received"); err != nil || !ok {
				t.Fatal(ok, err)
			}
			wrong := bytes.Clone(content)
			wrong[at] ^= 0x20
			writeAll(t, damaged, "received/"+name, wrong)
			w, err := CreateState(receiverConfig(damaged), r.Header())
			if err != nil {
				noticed++
				if !IsCorruptionError(err) {
					t.Errorf("byte %d of %s: %v", at, name, err)
				}
				continue
			}
			// Not in a record, so all that was received is there.
			send(t, r, w, 5000)
			back := openReceived(t, damaged)
			if got := dump(t, back); !slices.Equal(got, want) {
				t.Errorf("byte %d of %s: %d records where %d were sent", at, name, len(got), len(want))
			}
			mustClose(t, back)
		}
	}
	if noticed < 5 {
		t.Errorf("only %d damages were noticed", noticed)
	}
}

// TestTransferToFullDisk holds that each error of the receiver's disk comes back,
// and that the transfer goes on when there is room again.
func TestTransferToFullDisk(t *testing.T) {
	_, _, db := fill(t, 7, 10)
	defer func() { mustClose(t, db) }()
	want := dump(t, db)
	r := mustReadState(t, db)
	defer func() { mustClose(t, r) }()
	step := int64(1)
	if slow {
		step = 13
	}
	failures := 0
	for room := int64(0); ; room += step {
		disk := vfs.NewMem()
		var operations atomic.Int64
		fs := errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && operations.Add(1) > room {
				return syscall.ENOSPC
			}
			return nil
		}))
		err := receiveAll(r, receiverConfig(fs))
		if err == nil {
			break
		}
		failures++
		// Where Pebble panics because of it, as in its manifest, only the words are left.
		if !errors.Is(err, syscall.ENOSPC) && !strings.Contains(err.Error(), syscall.ENOSPC.Error()) {
			t.Fatalf("with room for %d operations: %v", room, err)
		}
		w, err := CreateState(receiverConfig(disk), r.Header())
		if !errors.Is(err, ErrStateComplete) {
			if err != nil {
				t.Fatalf("after %d operations: %v", room, err)
			}
			send(t, r, w, 1000)
		}
		back := openReceived(t, disk)
		mustEqual(t, back, want)
		mustClose(t, back)
	}
	if failures < 10 && !slow {
		t.Errorf("only %d failures", failures)
	}
}

// receiveAll receives the whole state and returns the first error.
func receiveAll(r *StateReader, config Config) (err error) {
	w, err := CreateState(config, r.Header())
	if err != nil {
		return err
	}
	w.tableMax = 700
	defer func() {
		if closeErr := w.Close(); err == nil {
			err = closeErr
		}
	}()
	for {
		c, err := r.Chunk(w.After(), 1000)
		if err != nil {
			return err
		}
		if err := w.Write(c); err != nil {
			if again := w.Write(c); again == nil {
				return errors.New("what failed is taken when it is tried again")
			}
			return err
		}
		if c.Done {
			return w.Finish(c.Total)
		}
	}
}

// FuzzStateChunk holds that decoding never panics, refuses what is damaged with the
// one error that says so, and that every chunk has one encoding. The last 8 bytes of
// what is decoded are made to be its digest, or nothing would get past it.
func FuzzStateChunk(f *testing.F) {
	_, _, db := fill(f, 8, 0)
	defer func() { mustClose(f, db) }()
	c := Commit{Revision: 1, Term: 1, Stamp: 1, Store: 1, Schema: &SchemaCommit{Text: "definition user {}"}}
	mustCommit(f, db, c)
	r := mustReadState(f, db)
	defer func() { mustClose(f, r) }()
	for after := []byte(nil); ; {
		c, err := r.Chunk(after, 40)
		if err != nil {
			f.Fatal(err)
		}
		b := c.AppendBinary(nil)
		f.Add(b[:len(b)-8])
		if after = c.Last; c.Done {
			break
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := DecodeStateChunk(b); err != nil && !errors.Is(err, ErrChunkDamaged) {
			t.Fatal(err)
		}
		var sum tally
		sum.digest.Reset()
		sum.write(b)
		b = binary.BigEndian.AppendUint64(bytes.Clone(b), sum.digest.Sum64())
		c, err := DecodeStateChunk(b)
		if err != nil {
			if !errors.Is(err, ErrChunkDamaged) || IsCorruptionError(err) {
				t.Fatal(err)
			}
			return
		}
		if again := c.AppendBinary(nil); !bytes.Equal(again, b) {
			t.Fatalf("%x is encoded again as %x", b, again)
		}
		var records, last []byte
		err = c.each(func(key, value []byte) error {
			records = appendStateRecord(records, last, key, value)
			last = append(last[:0], key...)
			return nil
		})
		if err != nil || !bytes.Equal(records, c.Records) {
			t.Fatalf("the records %x are encoded again as %x (%v)", c.Records, records, err)
		}
	})
}

// FuzzStateHeader holds the same for headers.
func FuzzStateHeader(f *testing.F) {
	h := StateHeader{Format: formatVersion, ClusterID: [16]byte{1, 2}, Revision: 1 << 40, Term: 3, Stamp: MaxInstant}
	f.Add(h.AppendBinary(nil))
	f.Add([]byte{stateVersion})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := DecodeStateHeader(b)
		if err != nil {
			if IsCorruptionError(err) {
				t.Fatal(err)
			}
			return
		}
		if again := h.AppendBinary(nil); !bytes.Equal(again, b) {
			t.Fatalf("%x is encoded again as %x", b, again)
		}
	})
}

// BenchmarkTransfer sends a graph of -tuples tuples in chunks of 1 MiB and says how
// many tuples a second each side makes, and how large a tuple is on the way and on
// the receiver's disk; log, names and both directions are included.
func BenchmarkTransfer(b *testing.B) {
	g := newBenchGraph(b, *benchTuples)
	for b.Loop() {
		config := Config{Dir: "received", FS: vfs.NewMem()}
		if *benchDisk {
			config.Dir, config.FS = b.TempDir(), nil
		}
		r := mustReadState(b, g.db)
		w, err := CreateState(config, r.Header())
		if err != nil {
			b.Fatal(err)
		}
		runtime.GC()
		var before, now runtime.MemStats
		runtime.ReadMemStats(&before)
		var reading, writing time.Duration
		var sent int
		var peak uint64
		for done := false; !done; {
			begun := time.Now()
			c, err := r.Chunk(w.After(), 1<<20)
			if err != nil {
				b.Fatal(err)
			}
			encoded := c.AppendBinary(nil)
			reading += time.Since(begun)
			sent += len(encoded)
			begun = time.Now()
			if c, err = DecodeStateChunk(encoded); err != nil {
				b.Fatal(err)
			}
			if err := w.Write(c); err != nil {
				b.Fatal(err)
			}
			if done = c.Done; done {
				if err := w.Finish(c.Total); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(c.Total.Records)/float64(*benchTuples), "records/tuple")
				b.ReportMetric(float64(c.Total.Bytes)/float64(*benchTuples), "raw-B/tuple")
				b.ReportMetric(float64(r.SizeEstimate())/float64(c.Total.Bytes), "estimate")
			}
			writing += time.Since(begun)
			runtime.ReadMemStats(&now)
			peak = max(peak, now.HeapAlloc)
		}
		mustClose(b, r)
		begun := time.Now()
		db, err := Open(config)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(time.Since(begun).Milliseconds()), "ms-open")
		m, err := db.Metrics()
		if err != nil {
			b.Fatal(err)
		}
		if m.Tuples != uint64(*benchTuples) {
			b.Fatalf("%d tuples were received", m.Tuples)
		}
		mustClose(b, db)
		n := float64(*benchTuples)
		b.ReportMetric(n/reading.Seconds(), "read-tuples/s")
		b.ReportMetric(n/writing.Seconds(), "written-tuples/s")
		b.ReportMetric(float64(sent)/n, "sent-B/tuple")
		b.ReportMetric(float64(m.DiskBytes)/n, "disk-B/tuple")
		b.ReportMetric(float64(max(peak, before.HeapAlloc)-before.HeapAlloc)/(1<<20), "MiB-more")
	}
}
