package engine

import (
	"fmt"
	"maps"

	"github.com/pembadb/pemba/graph"
)

// storeChange judges a change of a store, whose form is known to be good.
func (e *Engine) storeChange(m *graph.Mutation, commit *graph.Commit) *Refusal {
	c := m.StoreChange
	if c.Operation == graph.CreateStore {
		if e.db.ClusterID() == [16]byte{} {
			return refuse(Malformed, "", "the cluster has no identity yet, with which its first store is made")
		}
		if store, exists := e.db.StoreNamed(c.Name); exists {
			if store.ID == graph.DefaultStore {
				return refuse(StoreExists, "name", "the store %q is the default store, which is always there; use it, or choose another name", c.Name).with("store", c.Name)
			}
			return refuse(StoreExists, "name", "a store named %q exists; delete it first, or choose another name", c.Name).with("store", c.Name)
		}
	} else {
		store, known := e.db.StoreInfo(m.Store)
		if !known {
			return refuseUnknownStore(m.Store)
		}
		if c.Operation == graph.DropStore && m.Store == graph.DefaultStore {
			return refuse(StoreProtected, "store", "the store %q is the default store, which cannot be deleted", store.Name).with("store", store.Name)
		}
	}
	commit.Store, commit.StoreChange = m.Store, c
	return nil
}

// refuseUnknownStore says that a store was dropped, or never created: a caller
// that had its number may have been overtaken.
func refuseUnknownStore(id graph.StoreID) *Refusal {
	r := refuse(UnknownStore, "store", "there is no store %d, or no longer", id)
	r.Cause = graph.ErrUnknownStore
	return r
}

// room refuses what would leave the store with more tuples than it may hold. A
// change that adds none is let through, also in a store that is too full since
// its settings changed.
func (j *judgement) room(store *graph.StoreInfo) *Refusal {
	most := store.Settings.TuplesMax
	if most == 0 {
		return nil
	}
	var added, ended uint64
	for i := range j.commit.Changes {
		switch j.commit.Changes[i].Kind {
		case graph.Created:
			added++
		case graph.Deleted, graph.Expired:
			ended++
		}
	}
	if step := j.commit.Stage; step != nil {
		added, ended = step.Verdict.Created, step.Verdict.Expired
	}
	if added <= ended || store.Tuples+added-ended <= most {
		return nil
	}
	return refuse(StoreFull, "", "the store %q holds %d tuples of at most %d, and this would add %d; delete some, or raise the store's limit",
		store.Name, store.Tuples, most, added-ended).
		with("store", store.Name).with("limit", fmt.Sprint(most)).with("count", fmt.Sprint(store.Tuples))
}

// remember keeps a program unless its store was dropped meanwhile, and returns the
// one to use: that of who was first, where several have compiled it.
func (e *Engine) remember(key programKey, p *program) *program {
	e.mu.Lock()
	defer e.mu.Unlock()
	// A drop that comes behind this look forgets the program again.
	if _, known := e.db.StoreInfo(key.store); !known {
		return p
	}
	if first := e.programs[key]; first != nil {
		return first
	}
	if len(e.programs) >= programsMax {
		// Any one: with more stores in turn than programs, to drop the oldest would
		// mean that none is ever found.
		for other := range e.programs {
			delete(e.programs, other)
			break
		}
	}
	e.programs[key] = p
	return p
}

// forget drops the programs of a store that is no more.
func (e *Engine) forget(id graph.StoreID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	maps.DeleteFunc(e.programs, func(key programKey, _ *program) bool { return key.store == id })
}
