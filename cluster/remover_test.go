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
		got, ok, left := r.take(at)
		if got != store || ok != (store != 0) || left != wait {
			t.Errorf("%s: store %d, %v, and %v to wait, want store %d and %v", what, got, ok, left, store, wait)
		}
	}
	expect("nothing", now, 0, 0)
	r.later(1, now.Add(removeRetry))
	r.later(2, now.Add(removeRetry/2))
	r.note(1)
	r.note(3)
	expect("the one that did not fail", now, 3, 0)
	expect("all wait", now, 0, removeRetry/2)
	expect("the first to come back", now.Add(removeRetry/2), 2, 0)
	expect("the other waits on", now.Add(removeRetry/2), 0, removeRetry/2)
	expect("the other", now.Add(removeRetry), 1, 0)
	expect("nothing is left", now.Add(removeRetry), 0, 0)
}
