package graph

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

// AncestorsMax is how many ancestors a cluster remembers: the youngest ones.
const AncestorsMax = 64

// An Ancestor is an id that the cluster had before a Renew gave it another.
type Ancestor struct {
	ClusterID [16]byte
	// Until is the revision of that Renew: what was said under the id is of
	// revisions below it.
	Until Revision
}

// Ancestors returns what the cluster's id was before, the oldest first; nil when
// it never had another. The caller may keep it. It takes no lock.
func (db *DB) Ancestors() []Ancestor { return slices.Clone(*db.ancestors.Load()) }

// checkNew reports why an id cannot be the cluster's next, or nil.
func (db *DB) checkNew(id [16]byte) error {
	present := db.ClusterID()
	switch {
	case present == [16]byte{}:
		return errors.New("the cluster has no id that another could replace")
	case id == [16]byte{}:
		return errors.New("the cluster's new id is zero")
	case id == present:
		return fmt.Errorf("the cluster's id is %x already", id)
	}
	for _, a := range *db.ancestors.Load() {
		if a.ClusterID == id {
			return fmt.Errorf("the cluster's id was %x until revision %d, and cannot be so again", id, a.Until)
		}
	}
	return nil
}

// renew puts a Renew into the batch.
func (w *writer) renew(db *DB) error {
	c := w.c
	if c.Store != 0 || len(c.Changes) > 0 || c.Schema != nil || c.Init != nil || c.StoreChange != nil || c.Prune != nil ||
		c.Stage != nil || c.CounterChange != nil || c.StartChecksum != nil {
		return errors.New("a new id of the cluster is alone in its commit")
	}
	if err := db.checkNew(c.Renew.ClusterID); err != nil {
		return err
	}
	ancestors := append(db.Ancestors(), Ancestor{db.ClusterID(), c.Revision})
	if extra := len(ancestors) - AncestorsMax; extra > 0 {
		ancestors = ancestors[extra:]
	}
	w.value = appendAncestors(w.value[:0], ancestors)
	if err := w.batch.Set(metaKey(metaAncestors), w.value, nil); err != nil {
		return err
	}
	w.ancestors = ancestors
	return w.batch.Set(metaKey(metaCluster), c.Renew.ClusterID[:], nil)
}

// identify takes what the batch did to the cluster's id into memory.
func (w *writer) identify(db *DB) {
	switch c := w.c; {
	case c.Init != nil:
		id := c.Init.ClusterID
		db.cluster.Store(&id)
	case c.Renew != nil:
		id, ancestors := c.Renew.ClusterID, w.ancestors
		// In this order, so that no id is ever missing from both.
		db.ancestors.Store(&ancestors)
		db.cluster.Store(&id)
	}
}

func appendAncestors(dst []byte, ancestors []Ancestor) []byte {
	dst = append(dst, clusterVersion)
	for _, a := range ancestors {
		dst = append(dst, a.ClusterID[:]...)
		dst = binary.AppendUvarint(dst, uint64(a.Until))
	}
	return dst
}

func decodeAncestors(b []byte) ([]Ancestor, error) {
	d := decoder{b: b}
	d.version(clusterVersion)
	var ancestors []Ancestor
	for last := Revision(0); len(d.b) > 0 && d.err == ""; {
		var a Ancestor
		d.copy(a.ClusterID[:])
		a.Until = Revision(d.uvarint())
		if d.err == "" && (a.Until <= last || a.ClusterID == [16]byte{}) {
			d.fail("out of order, or zero")
		}
		last = a.Until
		ancestors = append(ancestors, a)
	}
	if d.err == "" && (len(ancestors) == 0 || len(ancestors) > AncestorsMax) {
		d.fail("none or too many")
	}
	return ancestors, d.finish("the ancestors of the cluster's id")
}

// readIdentity reads the cluster's id and what it was before.
func readIdentity(r pebble.Reader) (id [16]byte, ancestors []Ancestor, err error) {
	value, ok, err := get(r, metaKey(metaCluster))
	if err != nil {
		return id, nil, err
	}
	if ok && len(value) != len(id) {
		return id, nil, corruptf("the cluster's id has %d bytes", len(value))
	}
	copy(id[:], value)
	if value, ok, err = get(r, metaKey(metaAncestors)); err != nil || !ok {
		return id, nil, err
	}
	if ancestors, err = decodeAncestors(value); err != nil {
		return id, nil, err
	}
	if slices.ContainsFunc(ancestors, func(a Ancestor) bool { return a.ClusterID == id }) {
		return id, nil, corruptf("the cluster's id %x is an ancestor of itself", id)
	}
	return id, ancestors, nil
}
