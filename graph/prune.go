package graph

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// logRemovalMin is how many revisions of the change log stay behind a removal of
// history that is under way.
const logRemovalMin = 10_000

// Remove removes from this node's disk a bounded part of what Prune made
// unreadable in a store, and reports whether more is left: the tuples that ended
// at or before the oldest state kept, the schemas replaced by then, and the change
// log before both floors, for as-of reads and the search of what to remove need
// it that long. It changes no answer, so that nodes need not agree on it. After a
// crash a part may be there again, and is removed again. A store that was dropped
// has nothing left.
//
// One call looks at that many records of the change log, at least at one: records
// bounds how long a commit may wait for it and how long it keeps a processor from
// those who ask, some 5 microseconds each. Commits go on meanwhile. Open snapshots
// keep what they see, and its space with it.
func (db *DB) Remove(id StoreID, records int) (more bool, err error) {
	db.life.RLock()
	defer db.life.RUnlock()
	if db.isClosed() {
		return false, ErrClosed
	}
	db.removal.Lock()
	defer db.removal.Unlock()
	b := db.pebble.NewBatch()
	more, err = db.fillRemoval(b, id, max(records, 1))
	if err == nil && !b.Empty() {
		err = db.commitRemoval(b, id)
	}
	if err = errors.Join(err, b.Close()); err != nil {
		return false, fmt.Errorf("remove what was pruned from store %d: %w", id, err)
	}
	return more, nil
}

// fillRemoval puts the next step into the batch, and how far it comes.
func (db *DB) fillRemoval(b *pebble.Batch, id StoreID, records int) (more bool, err error) {
	// The floors are those that Pebble has, of which some may be in memory alone: one
	// that a commit is about to raise must not be obeyed before its batch. The batch of
	// this removal comes behind that one, and a crash keeps a prefix of the batches, so
	// that no removal is on the disk without the floor that it obeyed.
	value, ok, err := get(db.pebble, appendStore(nil, spaceStore, id))
	if err != nil || !ok {
		return false, err
	}
	var record storeRecord
	if err := record.decode(value); err != nil {
		return false, err
	}
	old, err := readRemoval(db.pebble, id)
	if err != nil {
		return false, err
	}
	removed, end := old, Position{Revision: record.history.revision + 1}
	if record.history.revision == 0 {
		return false, nil
	}
	if removed.history != end {
		if removed.history, err = db.removeHistory(b, id, removed.history, end, records); err != nil {
			return false, err
		}
		if removed.history == end {
			if err := db.removeSchemas(b, id, record.history.revision); err != nil {
				return false, err
			}
		}
	}
	// The first header that stays is that of a floor or of what is looked at
	// next; the one of the lower floor stays for the search by time. The log is
	// removed behind the history in few ranges that do not overlap: the first reader
	// behind each new one has to split those that lie in memory at each other's ends.
	to := min(record.history.revision, record.log.revision, removed.history.Revision)
	if to > removed.log && (removed.history == end || to-removed.log >= logRemovalMin) {
		if err := b.DeleteRange(appendLogKey(nil, id, removed.log, 0), appendLogKey(nil, id, to, 0), nil); err != nil {
			return false, err
		}
		removed.log = to
	}
	if removed == old {
		return false, nil
	}
	return removed.history != end, b.Set(appendStore(nil, spaceRemoval, id), removed.append(nil), nil)
}

// commitRemoval writes the batch unless the store was dropped meanwhile, which
// left nothing to remove and no place to say so.
func (db *DB) commitRemoval(b *pebble.Batch, id StoreID) error {
	db.commit.Lock()
	defer db.commit.Unlock()
	if err := db.listener.err(); err != nil {
		return err
	}
	if _, exists := db.StoreInfo(id); !exists {
		return nil
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		db.listener.fatal(fmt.Errorf("the graph's batch failed: %w", err))
		return err
	}
	return db.listener.err()
}

// removeHistory removes the tuples that ended between two places of the change
// log, of which it looks at so many records, and returns how far it came.
func (db *DB) removeHistory(b *pebble.Batch, id StoreID, from, end Position, records int) (next Position, err error) {
	first := from.Offset
	if first > 0 {
		first++ // The change behind a position has an offset one higher.
	}
	it, err := db.pebble.NewIter(&pebble.IterOptions{
		LowerBound: appendLogKey(nil, id, from.Revision, first),
		UpperBound: appendLogKey(nil, id, end.Revision, 0),
	})
	if err != nil {
		return from, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	looked := 0
	var r logRecord
	var key []byte
	for ok := it.First(); ok; ok = it.Next() {
		rev, offset, err := parseLogKey(it.Key())
		if err != nil {
			return from, err
		}
		if looked == records {
			return Position{rev, max(offset, 1) - 1}, nil
		}
		looked++
		if offset == 0 {
			continue
		}
		if err := r.decode(it.Value()); err != nil {
			return from, err
		}
		if r.kind == Created {
			continue
		}
		for _, d := range []direction{forward, reverse} {
			side := r.key.side(d)
			key = appendHistoryKey(key[:0], d.history(), id, &side, rev)
			if err := b.Delete(key, nil); err != nil {
				return from, err
			}
		}
	}
	return end, it.Error()
}

// removeSchemas removes what was replaced at or before a revision.
func (db *DB) removeSchemas(b *pebble.Batch, id StoreID, at Revision) error {
	kept, err := schemaAt(db.pebble, id, at)
	if err != nil || kept == 0 {
		return err
	}
	return b.DeleteRange(appendSchemaKey(nil, id, 0), appendSchemaKey(nil, id, kept), nil)
}

// readRemoval reads how far a store's removal has come on this node.
func readRemoval(r pebble.Reader, id StoreID) (removed removalRecord, err error) {
	value, ok, err := get(r, appendStore(nil, spaceRemoval, id))
	if ok {
		err = removed.decode(value)
	}
	return removed, err
}

// upgrade rewrites, in one batch, a directory of the format version before this
// one: its stores get a name and settings, its schemas the stamps that stand in
// the change log.
func (db *DB) upgrade() error {
	b := db.pebble.NewBatch()
	if err := db.fillUpgrade(b); err != nil {
		return closeBatch(b, err)
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		return closeBatch(b, err)
	}
	return b.Close()
}

func (db *DB) fillUpgrade(b *pebble.Batch) error {
	next := DefaultStore + 1
	err := scan(db.pebble, []byte{spaceStore}, func(key, value []byte) error {
		if len(key) != storeEnd {
			return corruptf("store key %x", cut(key))
		}
		// Nobody could say which tuples begin later: take it that some do.
		r := storeRecord{}
		if err := r.decodeFirst(value); err != nil {
			return err
		}
		id := storeOf(key)
		r.name, r.latestFrom = DefaultStoreName, MaxInstant
		if id != DefaultStore {
			r.name = fmt.Sprintf("store-%d", id)
		}
		r.settings = StoreSettings{History: DefaultRetention, Log: DefaultRetention}
		next = max(next, id+1)
		return b.Set(key, r.append(nil), nil)
	})
	if err != nil {
		return err
	}
	err = scan(db.pebble, []byte{spaceSchema}, func(key, value []byte) error {
		if len(key) != storeEnd+8 {
			return corruptf("schema key %x", cut(key))
		}
		v := SchemaVersion{Revision: revisionOf(key[storeEnd:]), Text: string(value)}
		head, ok, err := get(db.pebble, appendLogKey(nil, storeOf(key), v.Revision, 0))
		if err != nil {
			return err
		}
		if !ok {
			return corruptf("the schema of revision %d is not in the change log", v.Revision)
		}
		var h logHeader
		if err := h.decode(head); err != nil {
			return err
		}
		v.Instant = h.stamp
		return b.Set(key, appendSchema(nil, v), nil)
	})
	if err != nil {
		return err
	}
	if err := b.Set(metaKey(metaStores), binary.AppendUvarint(nil, uint64(next)), nil); err != nil {
		return err
	}
	return b.Set(metaKey(metaFormat), binary.AppendUvarint(nil, formatVersion), nil)
}
