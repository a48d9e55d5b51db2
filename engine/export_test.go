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
