package engine

import "github.com/pembadb/pemba/graph"

// renew judges another id of the cluster, whose form is known to be good. An id is
// the cluster's once: whoever meets it must be able to tell which part of the past
// it means.
func (e *Engine) renew(r *graph.Renew, commit *graph.Commit) *Refusal {
	present := e.db.ClusterID()
	switch {
	case present == [16]byte{}:
		return refuse(Malformed, "", "the cluster has no identity yet that another could replace")
	case r.ClusterID == present:
		return refuse(AlreadyInitialized, "", "the cluster has the identity %x already", present)
	}
	for _, a := range e.db.Ancestors() {
		if a.ClusterID == r.ClusterID {
			return refuse(AlreadyInitialized, "", "the cluster had the identity %x until revision %d, and cannot have it again", a.ClusterID, a.Until)
		}
	}
	commit.Renew = r
	return nil
}
