package api

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
)

// slots bound how many of something the node has open at a time. Operators may
// have all. Bound keys may have what is not reserved for operators, and those
// that are bound to the same stores have at most their share of it together, so
// that neither another key of a tenant nor several tenants shut out the others.
// Many goroutines may use it at once.
type slots struct {
	// what names the things in messages; reason is that of the refusal.
	what, reason string
	limit        int

	mu sync.Mutex
	// open counts all, and openBound those of bound keys.
	// Invariant: 0 <= openBound <= open <= limit, openBound <= limit - reserved(limit).
	open, openBound int
	// bound counts those of bound keys by what these are bound to. It holds no
	// zeros, and openBound is its sum.
	bound map[storeSet]int
}

// reserved is how many of the slots of a limit only operators may have: a tenth,
// and at least one, unless there is but one.
func reserved(limit int) int { return min(max(limit/10, 1), limit-1) }

// share is how many of the slots of a limit the keys that are bound to the same
// stores may have: half, and at least one, but none that is reserved.
func share(limit int) int { return min(max(limit/2, 1), limit-reserved(limit)) }

// A storeSet stands for the stores that a key is bound to.
type storeSet [sha256.Size]byte

// storeSetOf returns that of a bound key. No name in a key file holds a comma.
func storeSetOf(c caller) storeSet {
	return sha256.Sum256([]byte(strings.Join(slices.Sorted(maps.Keys(c.stores)), ",")))
}

// enter takes a slot for the caller, or refuses it with ResourceExhausted.
func (s *slots) enter(c caller) error {
	var set storeSet
	if !c.operator {
		set = storeSetOf(c)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	refuse := func(limited string, limit int, format string) error {
		return &requestError{
			code: codes.ResourceExhausted, reason: s.reason, retry: busyRetry,
			message:  fmt.Sprintf(format, limit, s.what),
			metadata: map[string]string{"limit": strconv.Itoa(limit), "limited": limited},
		}
	}
	if s.open >= s.limit {
		return refuse("node", s.limit, "%d %s are open on this node, and no more are allowed")
	}
	if !c.operator {
		if n := share(s.limit); s.bound[set] >= n {
			return refuse("key", n, "the keys that are bound to the same stores have %d %s open on this node, and no more are allowed to them")
		}
		if n := s.limit - reserved(s.limit); s.openBound >= n {
			return refuse("node", n, "%d %s of bound keys are open on this node, and no more are allowed to them: the others are for operators")
		}
		if s.bound == nil {
			s.bound = make(map[storeSet]int)
		}
		s.bound[set]++
		s.openBound++
	}
	s.open++
	return nil
}

// leave gives back a slot that the caller has.
func (s *slots) leave(c caller) {
	var set storeSet
	if !c.operator {
		set = storeSetOf(c)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open--
	if c.operator {
		return
	}
	s.openBound--
	if s.bound[set]--; s.bound[set] == 0 {
		delete(s.bound, set)
	}
}
