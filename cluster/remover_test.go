package cluster

import (
	"testing"
	"time"

	"github.com/pembadb/pemba/graph"
)

// TestRemoverWaitsPerStore: a store whose removal failed is left alone for its time,
// whatever else happens to it, and keeps no other waiting.
func TestRemoverWaitsPerStore(t *testing.T) {
	var r remover
	r.init()
	now := time.Unix(1e9, 0)
	expect := func(what string, at time.Time, store graph.StoreID, wait time.Duration) {
		t.Helper()
		got, hurried, ok, left := r.next(at)
		if got != store || hurried || ok != (store != 0) || left != wait {
			t.Errorf("%s: store %d, %v, %v, and %v to wait, want store %d and %v", what, got, hurried, ok, left, store, wait)
		}
	}
	expect("nothing", now, 0, 0)
	r.later(1, now.Add(removeRetry))
	r.later(2, now.Add(removeRetry/2))
	r.note(1)
	r.note(3)
	expect("the one that did not fail", now, 3, 0)
	r.took(3, false)
	expect("all wait", now, 0, removeRetry/2)
	expect("the first to come back", now.Add(removeRetry/2), 2, 0)
	r.took(2, false)
	expect("the other waits on", now.Add(removeRetry/2), 0, removeRetry/2)
	expect("the other", now.Add(removeRetry), 1, 0)
	r.took(1, false)
	expect("nothing is left", now.Add(removeRetry), 0, 0)
}

// TestRemoverHurries: a removal hurries when more is forgotten before it is over,
// and until it is; one that is over when more is forgotten does not, nor does one
// of which only the first step is under way.
func TestRemoverHurries(t *testing.T) {
	var r remover
	r.init()
	step := func(more, forgotten bool, want string) {
		t.Helper()
		got := "over"
		if _, hurried, ok, _ := r.next(time.Now()); ok {
			got = map[bool]string{false: "slow", true: "hurried"}[hurried]
			if forgotten {
				r.note(1)
			}
			r.took(1, more)
		}
		if got != want {
			t.Errorf("the removal is %s, want %s", got, want)
		}
	}
	r.note(1)
	step(true, true, "slow") // The first step leaves something, and more is forgotten.
	step(true, false, "slow")
	step(true, true, "slow") // The second forgetting finds something left.
	step(true, false, "hurried")
	step(true, false, "hurried")
	step(false, true, "hurried") // All is removed, but for what came just now.
	step(true, false, "slow")
	step(false, false, "slow")
	step(false, false, "over")
	r.note(1)
	step(true, false, "slow")
	r.note(1)
	step(false, false, "hurried")
	step(false, false, "over")
}
