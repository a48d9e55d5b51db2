package cluster

import (
	"container/list"
	"sync"

	"github.com/pembadb/pemba/graph"
)

// stamps gives each proposal its time, and knows which of those times may still
// come to be the stamp of an entry. A question as of a moment needs that: once
// it is answered, no change may turn up that was made before the moment.
//
// Invariant: the times of open never fall, and all that are given out are
// beyond settled.
type stamps struct {
	mu sync.Mutex
	// open holds a graph.Instant for each proposal under way, in order.
	open list.List
	// settled is the latest moment that somebody asked about; zero for none.
	settled graph.Instant
}

// take gives a proposal its time, at least now; end must follow when the
// outcome of the proposal is known.
func (s *stamps) take(now graph.Instant) (graph.Instant, *list.Element) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stamp := now
	if s.settled > 0 {
		stamp = max(stamp, s.settled+1)
	}
	if newest := s.open.Back(); newest != nil {
		stamp = max(stamp, newest.Value.(graph.Instant))
	}
	return stamp, s.open.PushBack(stamp)
}

func (s *stamps) end(proposal *list.Element) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open.Remove(proposal)
}

// settle makes every proposal from now on be of after the moment.
func (s *stamps) settle(at graph.Instant) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settled = max(s.settled, at)
}

// isSettled reports whether no proposal under way is of the moment or before.
func (s *stamps) isSettled(at graph.Instant) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	oldest := s.open.Front()
	return oldest == nil || oldest.Value.(graph.Instant) > at
}
