package graph

import (
	"errors"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestReadIsBounded: what a page holds is bounded by its bytes too, and who goes by
// names is asked whether to go on, also where no tuple is left of them.
func TestReadIsBounded(t *testing.T) {
	db := openTest(t, vfs.NewMem())
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	const large, gone = 20, 3 * guardEvery
	long := fmt.Appendf(nil, `{"why":"%020000d"}`, 0)
	tupleOf := func(typ string, n int) Tuple {
		return Tuple{
			Object: Object{typ, fmt.Sprintf("%05d", n)}, Relation: "viewer", Subject: Subject{Object: Object{"user", "ann"}},
		}
	}
	var first, second []Change
	for i := range large {
		tuple := tupleOf("doc", i)
		tuple.Caveat, tuple.Context = "office", long
		first = append(first, Change{Kind: Created, Tuple: tuple})
	}
	for i := range gone {
		tuple := tupleOf("gone", i)
		first = append(first, Change{Kind: Created, Tuple: tuple})
		before := tuple
		before.Created = 1
		second = append(second, Change{Kind: Deleted, Tuple: tuple, Before: &before})
	}
	mustCommit(t, db, Commit{Revision: 1, Term: 1, Stamp: 1, Store: DefaultStore, Changes: first})
	mustCommit(t, db, Commit{Revision: 2, Term: 1, Stamp: 2, Store: DefaultStore, Changes: second})
	s, err := db.Snapshot(DefaultStore, 0, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for name, read := range map[string]func(Filter, []byte, int) ([]Tuple, []byte, error){"by number": s.Read, "sorted": s.ReadSorted} {
		found, pages := 0, 0
		for position := []byte(nil); ; pages++ {
			tuples, next, err := read(Filter{ObjectType: "doc"}, position, 1000)
			if err != nil {
				t.Fatal(err)
			}
			if bytes := len(tuples) * len(long); bytes > readBytesMax+len(long) {
				t.Errorf("%s: %d bytes in a page", name, bytes)
			}
			for _, tuple := range tuples {
				if want := fmt.Sprintf("%05d", found); tuple.Object.ID != want {
					t.Fatalf("%s: %s instead of %s", name, tuple.Object.ID, want)
				}
				found++
			}
			if position = next; next == nil {
				break
			}
		}
		if found != large || pages == 0 {
			t.Errorf("%s: %d tuples in %d pages", name, found, pages+1)
		}
	}
	stop := errors.New("stop")
	asked := 0
	s.Guard(func(int) error { asked++; return stop })
	for name, f := range map[string]Filter{"sorted": {ObjectType: "gone"}, "prefix": {ObjectType: "gone", ObjectIDPrefix: "0"}} {
		asked = 0
		if _, _, err := s.ReadSorted(f, nil, 1000); !errors.Is(err, stop) || asked != 1 {
			t.Errorf("%s: %v, asked %d times", name, err, asked)
		}
	}
}
