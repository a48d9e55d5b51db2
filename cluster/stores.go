package cluster

import "github.com/pembadb/pemba/graph"

// Stores returns the stores of this node's newest state, by name.
func (n *Node) Stores() []graph.StoreInfo { return n.db().Stores() }

// StoreNamed returns the store of a name in this node's newest state.
func (n *Node) StoreNamed(name string) (graph.StoreInfo, bool) { return n.db().StoreNamed(name) }

// SchemaVersions returns what graph.DB.SchemaVersions does.
func (n *Node) SchemaVersions(id graph.StoreID, before graph.Revision, limit int) ([]graph.SchemaVersion, error) {
	if err := n.usable(); err != nil {
		return nil, err
	}
	return askGraph(n, func(db *graph.DB) ([]graph.SchemaVersion, error) { return db.SchemaVersions(id, before, limit) })
}

// Changes returns what graph.DB.Changes does: a page of the change log. To
// follow it there is Watch.
func (n *Node) Changes(id graph.StoreID, from graph.Position, limit int) ([]graph.LoggedRevision, error) {
	if err := n.usable(); err != nil {
		return nil, err
	}
	return n.changes(id, from, limit)
}

// Stages returns the staged changes of a store, by id.
func (n *Node) Stages(id graph.StoreID) ([]graph.StageInfo, error) {
	if err := n.usable(); err != nil {
		return nil, err
	}
	return askGraph(n, func(db *graph.DB) ([]graph.StageInfo, error) { return db.Stages(id) })
}

// Stage returns a staged change of a store, also one of the last that were
// committed: it has Committed set.
func (n *Node) Stage(id graph.StoreID, stage graph.StageID) (graph.StageInfo, bool, error) {
	if err := n.usable(); err != nil {
		return graph.StageInfo{}, false, err
	}
	return n.db().Stage(id, stage)
}

// RevisionAt returns what graph.DB.RevisionAt does. Unlike a Snapshot as of the
// moment it waits for nothing: writes under way may yet belong before it.
func (n *Node) RevisionAt(id graph.StoreID, at graph.Instant) (graph.Revision, error) {
	if err := n.usable(); err != nil {
		return 0, err
	}
	return askGraph(n, func(db *graph.DB) (graph.Revision, error) { return db.RevisionAt(id, at) })
}

// Ancestors returns the ids that the cluster had before it was recovered.
func (n *Node) Ancestors() []graph.Ancestor { return n.db().Ancestors() }
