package graph

import (
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestRenew gives a cluster more ids than it remembers, through restarts and
// crashes, and holds that none is given twice as long as it is remembered.
func TestRenew(t *testing.T) {
	fs := vfs.NewCrashableMem()
	db := openTest(t, fs)
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	id := func(i int) [16]byte { return [16]byte{byte(i + 1), byte(i >> 8), 15: 9} }
	renew := func(rev Revision, to [16]byte) error {
		_, err := db.Commit(Commit{Revision: rev, Term: 1, Stamp: 1, Renew: &Renew{ClusterID: to}})
		return err
	}
	if err := renew(1, id(0)); err == nil || !strings.Contains(err.Error(), "no id that another could replace") {
		t.Fatalf("an id came before Init: %v", err)
	}
	mustCommit(t, db, Commit{Revision: 1, Term: 1, Stamp: 1, Init: &Init{ClusterID: id(0)}})
	if db.Ancestors() != nil {
		t.Fatalf("ancestors %v", db.Ancestors())
	}
	var want []Ancestor
	for i := 1; i <= AncestorsMax+6; i++ {
		rev := Revision(10 * i)
		for what, other := range map[string][16]byte{"zero": {}, "already": id(i - 1), "cannot be so again": id(max(i-3, i-1-len(want)))} {
			if len(want) == 0 && what == "cannot be so again" {
				continue
			}
			if err := renew(rev, other); err == nil || !strings.Contains(err.Error(), what) {
				t.Fatalf("revision %d: %s: %v", rev, what, err)
			}
		}
		if _, err := db.Commit(Commit{Revision: rev, Term: 1, Stamp: 1, Store: 1, Prune: &Prune{}, Renew: &Renew{ClusterID: id(i)}}); err == nil {
			t.Fatal("an id came beside a prune")
		}
		if err := renew(rev, id(i)); err != nil {
			t.Fatal(err)
		}
		want = append(want, Ancestor{id(i - 1), rev})
		if extra := len(want) - AncestorsMax; extra > 0 {
			want = want[extra:]
		}
		if i%20 == 0 {
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			db = openTest(t, fs)
		}
		if i%7 == 0 {
			if i%14 == 7 { // Every other crash takes back seven ids.
				if _, err := db.Flush(); err != nil {
					t.Fatal(err)
				}
			}
			back := openTest(t, fs.CrashClone(vfs.CrashCloneCfg{}))
			at := int(back.Applied().Revision / 10)
			if back.ClusterID() != id(at) || (at > 0 && back.Ancestors()[len(back.Ancestors())-1] != Ancestor{id(at - 1), Revision(10 * at)}) {
				t.Errorf("after a crash at %d the id is %x, before it %v", back.Applied().Revision, back.ClusterID(), back.Ancestors())
			}
			if err := back.Close(); err != nil {
				t.Fatal(err)
			}
		}
		got := db.Ancestors()
		if db.ClusterID() != id(i) || !slices.Equal(got, want) {
			t.Fatalf("the id is %x, not %x, and was %v, not %v", db.ClusterID(), id(i), got, want)
		}
		got[0].Until = 0 // It is the caller's own.
	}
	// The first ones are forgotten, and may come again.
	if err := renew(10_000, id(2)); err != nil {
		t.Error(err)
	}
	if err := db.CheckInvariants(); err != nil {
		t.Error(err)
	}
}
