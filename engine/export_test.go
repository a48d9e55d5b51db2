package engine

import "github.com/pembadb/pemba/graph"

// Programs counts, for tests, the programs that an engine keeps by store.
func Programs(e *Engine) map[graph.StoreID]int {
	e.mu.RLock()
	defer e.mu.RUnlock()
	n := map[graph.StoreID]int{}
	for key := range e.programs {
		n[key.store]++
	}
	return n
}

// WalkCellsMax is how much a walk may keep between questions.
const WalkCellsMax = walkCellsMax

// KeptByWalk says how much room a walk of the pool has kept for what it climbs.
func KeptByWalk() (places, slots int) {
	w := walks.Get().(*walk)
	places, slots = cap(w.climbed.places), len(w.climbed.seen.slots)
	walks.Put(w)
	return places, slots
}
