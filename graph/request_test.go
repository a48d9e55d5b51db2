package graph

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// requestsOf returns what a DB remembers of requests, by revision, and holds that
// both keyspaces say the same.
func requestsOf(t *testing.T, db *DB) (all []modelRequest) {
	t.Helper()
	err := scan(db.pebble, []byte{spaceRequestOrder}, func(key, value []byte) error {
		o, err := decodeRequestOrder(key, value)
		if err != nil {
			return err
		}
		outcome, ok, err := readRequest(db.pebble, appendRequestKey(nil, o.id))
		if err != nil || !ok {
			return fmt.Errorf("the request %q is not there: %w", o.id, err)
		}
		all = append(all, modelRequest{string(o.id), outcome})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.CheckInvariants(); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestRequests remembers requests in bursts, with few ids that come again and
// pauses of minutes, through restarts and crashes. It holds that a DB remembers
// exactly those that the definition says: each commit with an id forgets the four
// oldest that are over, and the one of its own id, and adds itself.
func TestRequests(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	g, fs := rand.New(rand.NewPCG(seed, 1)), vfs.NewCrashableMem()
	db := openTest(t, fs)
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	rev, stamp := Revision(1), Instant(1)
	mustCommit(t, db, Commit{Revision: rev, Term: 1, Stamp: stamp, Init: &Init{ClusterID: [16]byte{1}}})
	var want []modelRequest
	past := map[Revision][]modelRequest{}
	commit := func(c Commit) error {
		rev++
		c.Revision, c.Term, c.Stamp = rev, 1, stamp
		_, err := db.Commit(c)
		return err
	}
	refused, again, most := 0, 0, 0
	rounds := 30
	if slow {
		rounds = 8
	}
	for round := range rounds {
		pause := Instant(g.IntN(10)) * 1e6
		if g.IntN(3) == 0 {
			pause = RequestLifetime
		}
		stamp += pause
		burst := g.IntN(10)
		if g.IntN(4) == 0 {
			burst = 2*requestPage + g.IntN(100) // More than are read ahead.
		}
		for i := range burst {
			stamp += Instant(g.IntN(3))
			if g.IntN(6) == 0 {
				if err := commit(Commit{}); err != nil {
					t.Fatal(err)
				}
				past[rev] = slices.Clone(want)
				continue
			}
			r := &RequestCommit{ID: []byte{byte(g.IntN(12))}, Changed: i}
			if g.IntN(2) == 0 {
				r.ID = fmt.Appendf(nil, "%d/%d", round, i)
			}
			at := slices.IndexFunc(want, func(o modelRequest) bool { return o.id == string(r.ID) })
			err := commit(Commit{Request: r})
			if at >= 0 && want[at].outcome.Instant+RequestLifetime > stamp {
				if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("by revision %d already", want[at].outcome.Revision)) {
					t.Fatalf("the request %q was made twice (%v)", r.ID, err)
				}
				rev--
				refused++
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if at >= 0 {
				again++
			}
			forgotten := 0
			for forgotten < 4 && forgotten < len(want) && want[forgotten].outcome.Instant+RequestLifetime <= stamp {
				forgotten++
			}
			want = slices.Clone(want[forgotten:])
			want = slices.DeleteFunc(want, func(o modelRequest) bool { return o.id == string(r.ID) })
			want = append(want, modelRequest{string(r.ID), RequestOutcome{Revision: rev, Instant: stamp, Changed: i}})
			past[rev] = want
			most = max(most, len(want))
		}
		if got := requestsOf(t, db); !slices.Equal(got, want) {
			t.Fatalf("round %d: remembered are\n%+v, not\n%+v", round, got, want)
		}
		switch g.IntN(4) {
		case 0:
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			db = openTest(t, fs)
		case 1:
			if _, err := db.Flush(); err != nil {
				t.Fatal(err)
			}
		case 2:
			// What a crash leaves goes on as from there, with what it read of its own.
			back := openTest(t, fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rand.New(rand.NewPCG(seed, uint64(rev)))}))
			at := back.Applied().Revision
			if got := requestsOf(t, back); at > 1 && !slices.Equal(got, past[at]) {
				t.Fatalf("after a crash at %d remembered are %+v, not %+v", at, got, past[at])
			}
			if err := back.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("%d revisions, %d refused, %d ids again, %d remembered at most", rev, refused, again, most)
	for _, o := range want {
		got, ok, err := db.Request([]byte(o.id), stamp)
		if living := o.outcome.Instant+RequestLifetime > stamp; err != nil || ok != living || (ok && got != o.outcome) {
			t.Errorf("the request %q came to %+v, %t (%v), not %+v", o.id, got, ok, err, o.outcome)
		}
	}
}

// TestRequestErrors holds that what cannot be remembered is told, and that nothing
// of its commit is made.
func TestRequestErrors(t *testing.T) {
	db := openTest(t, vfs.NewMem())
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	mustCommit(t, db, Commit{Revision: 1, Term: 1, Stamp: 1, Store: 1})
	before := dump(t, db)
	for _, r := range []RequestCommit{
		{},
		{ID: make([]byte, MaxRequestIDLength+1)},
		{ID: []byte("a"), Changed: -1},
	} {
		_, err := db.Commit(Commit{
			Revision: 2, Term: 1, Stamp: 1, Store: 1, Changes: create(mustParse(t, "doc:a#viewer@user:x")), Request: &r,
		})
		if err == nil || !strings.Contains(err.Error(), "cannot be remembered") {
			t.Errorf("%+v: %v", r, err)
		}
	}
	if after := dump(t, db); !slices.Equal(after, before) {
		t.Errorf("%v became %v", before, after)
	}
	if _, ok, err := db.Request(make([]byte, 1<<16), 1); ok || err != nil {
		t.Errorf("a request with a long id: %t, %v", ok, err)
	}
	// The longest id, with a store that its commit creates.
	id := bytes.Repeat([]byte{0xff}, MaxRequestIDLength)
	receipt, err := db.Commit(Commit{
		Revision: 2, Term: 1, Stamp: 1, StoreChange: &StoreChange{Operation: CreateStore, Name: "tenant"}, Request: &RequestCommit{ID: id},
	})
	if err != nil {
		t.Fatal(err)
	}
	if o, ok, err := db.Request(id, 1); err != nil || !ok || o.Store != receipt.Store || o.Store == 0 {
		t.Errorf("the request came to %+v, %t (%v), not store %d", o, ok, err, receipt.Store)
	}
}

// FuzzClusterCodec holds that what stands once for the cluster has one encoding:
// requests, the applied revision, ancestors.
func FuzzClusterCodec(f *testing.F) {
	stage := StageInfo{ID: StageID{1}, Chunks: 3, Tuples: 70_000, Digest: StageDigest{3}, Touched: 1 << 50, Schema: 9, Committed: 10, Changed: 4}
	for _, o := range []RequestOutcome{
		{Revision: 9, Instant: 1 << 50, Changed: 300, Partial: true},
		{Revision: 9, Instant: 1 << 50, Store: 7},
		{Revision: 10, Changed: 4, Stage: stage},
	} {
		f.Add(o.append(nil))
	}
	f.Add(appendRequestOrder(nil, 1<<50, []byte("an id")))
	f.Add(appendRequestOrder(nil, 1<<50, nil))
	for _, a := range []Applied{{Revision: 9, Term: 2, Stamp: 1 << 50}, {Revision: 9, Checksum: 1 << 63, ChecksumSince: 3}, {Revision: 2, ChecksumSince: 3}} {
		f.Add(a.appendApplied(nil))
	}
	f.Add([]byte{recordVersion, 9, 2, 5})
	f.Add(appendAncestors(nil, []Ancestor{{[16]byte{1}, 5}, {[16]byte{2}, 300}}))
	f.Add(appendAncestors(nil, []Ancestor{{[16]byte{1}, 5}, {[16]byte{2}, 5}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		hold := oneForm(t, b)
		var o RequestOutcome
		err := o.decode(b)
		hold(err, o.append(nil))
		order, err := decodeRequestOrder(appendRequestOrderKey(nil, 7), b)
		hold(err, appendRequestOrder(nil, order.stamp, order.id))
		var a Applied
		err = a.decode(b)
		again := a.appendApplied(nil)
		if err == nil && b[0] == recordVersion { // The form before there was a checksum.
			again = append([]byte{recordVersion}, again[1:len(again)-1]...)
		}
		hold(err, again)
		ancestors, err := decodeAncestors(b)
		hold(err, appendAncestors(nil, ancestors))
	})
}

// BenchmarkRequests measures what it costs that a commit is remembered: not at all,
// with none to forget, and with one to forget each time. It includes Request, as an
// engine asks it. The commits have a tuple each.
func BenchmarkRequests(b *testing.B) {
	for _, c := range []struct {
		name     string
		remember bool
		step     Instant // Between commits.
		before   int     // How many are remembered already.
	}{
		{"without", false, 1000, 0},
		{"first", true, 1, 0},
		{"steady", true, RequestLifetime / 100_000, 100_000},
	} {
		b.Run(c.name, func(b *testing.B) {
			g := newBenchGraph(b, 100_000)
			stamp := g.db.Applied().Stamp
			tuple := Tuple{Object: Object{"document", "of requests"}, Relation: "viewer", Subject: Subject{Object: Object{"user", ""}}}
			commit := func(i int, changes []Change) {
				stamp += c.step
				next := Commit{Revision: g.next, Term: 1, Stamp: stamp, Store: DefaultStore, Changes: changes}
				if c.remember {
					id := fmt.Appendf(nil, "%016x", uint64(g.next)*0x9e3779b97f4a7c15)
					if _, ok, err := g.db.Request(id, stamp); ok || err != nil {
						b.Fatal(ok, err)
					}
					next.Request = &RequestCommit{ID: id, Changed: 1}
				}
				g.next++
				if _, err := g.db.Commit(next); err != nil {
					b.Fatal(err)
				}
			}
			for i := range c.before {
				commit(i, nil)
			}
			b.ResetTimer()
			b.ReportAllocs()
			for i := range b.N {
				tuple.Subject.ID = fmt.Sprintf("%d", g.next)
				commit(i, []Change{{Kind: Created, Tuple: tuple}})
			}
		})
	}
}
