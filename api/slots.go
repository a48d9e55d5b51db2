package api

import (
	"fmt"
	"strconv"
	"sync"

	"google.golang.org/grpc/codes"
)

// slots bound how many of something the node has open at a time, and how many of
// them one bound key has: half, so that no tenant shuts out the others. Operators
// may have all. Many goroutines may use it at once.
type slots struct {
	// what names the things in messages; reason is that of the refusal.
	what, reason string
	limit        int

	mu sync.Mutex
	// 0 <= open <= limit.
	open int
	// bound counts those of bound keys; it holds no zeros.
	bound map[keyDigest]int
}

// share is how many of the slots of a limit one bound key may have.
func share(limit int) int { return max(limit/2, 1) }

// enter takes a slot for the caller, or refuses it with ResourceExhausted.
func (s *slots) enter(c caller) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	refusal := &requestError{
		code: codes.ResourceExhausted, reason: s.reason, retry: busyRetry,
		metadata: map[string]string{"limit": strconv.Itoa(s.limit), "limited": "node"},
	}
	if s.open >= s.limit {
		refusal.message = fmt.Sprintf("%d %s are open on this node, and no more are allowed", s.limit, s.what)
		return refusal
	}
	if !c.operator {
		if n := share(s.limit); s.bound[c.digest] >= n {
			refusal.message = fmt.Sprintf("the key has %d %s open on this node, and a key that is bound to stores is allowed no more", n, s.what)
			refusal.metadata = map[string]string{"limit": strconv.Itoa(n), "limited": "key"}
			return refusal
		}
		if s.bound == nil {
			s.bound = make(map[keyDigest]int)
		}
		s.bound[c.digest]++
	}
	s.open++
	return nil
}

// leave gives back a slot that the caller has.
func (s *slots) leave(c caller) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open--
	if c.operator {
		return
	}
	if s.bound[c.digest]--; s.bound[c.digest] == 0 {
		delete(s.bound, c.digest)
	}
}
