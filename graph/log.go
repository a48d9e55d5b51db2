package graph

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sort"

	"github.com/cockroachdb/pebble/v2"
)

// A Position is a place between two changes of a store's change log: before the
// change of Revision that has Offset others of that revision before it. The zero
// Position is before everything; Position{Revision: r + 1} is behind everything
// that revision r did.
type Position struct {
	Revision Revision
	Offset   uint32
}

// A LoggedRevision is what one revision changed in a store, or a part of it when
// a limit cut it.
//
// Invariant: Offset + len(Changes) <= Count.
type LoggedRevision struct {
	Revision Revision
	Stamp    Instant
	// RecordedActor and Metadata are as they were committed.
	RecordedActor string
	Metadata      []byte
	// SchemaChanged says that the revision wrote a schema, which the snapshot at
	// the revision has. It is told with the first part of a revision only.
	SchemaChanged bool
	// Count is how many changes the revision made; Offset how many of them come
	// before Changes[0].
	Count  int
	Offset uint32
	// Sequence is the dense number of Changes[0]. The changes of a store are
	// numbered from 1 without gaps.
	Sequence uint64
	Changes  []LoggedChange
}

// A LoggedChange is one change of a revision.
type LoggedChange struct {
	Kind ChangeKind
	// Tuple is as it is after the change (Created, Replaced), or as it was
	// (Deleted, Expired), with the revision that created it.
	Tuple Tuple
}

// End returns the position behind the changes in r.
func (r *LoggedRevision) End() Position {
	end := Position{r.Revision, r.Offset + uint32(len(r.Changes))}
	if int(end.Offset) >= r.Count {
		return Position{Revision: r.Revision + 1}
	}
	return end
}

// Changes reads a store's change log from a position on, in order, up to limit
// changes; a revision that only wrote a schema counts as one. Reading goes on at
// the End of the last revision returned. None means that there is nothing behind
// the position yet. A revision is in the log as soon as Commit returned.
func (db *DB) Changes(id StoreID, from Position, limit int) ([]LoggedRevision, error) {
	if limit < 1 {
		return nil, fmt.Errorf("read the change log: %w", invalid("limit", fmt.Sprint(limit), "is too small", "at least 1"))
	}
	s, err := db.Snapshot(id, 0, 0)
	if err != nil {
		return nil, fmt.Errorf("read the change log: %w", err)
	}
	defer s.Close()
	if f := s.catalog.record.log; from.Revision < f.revision {
		return nil, &RevisionGoneError{Revision: from.Revision, Oldest: f.revision, OldestAt: f.stamp, Log: true}
	}
	revisions, err := s.changes(from, limit)
	if err != nil {
		return nil, fmt.Errorf("read the change log: %w", err)
	}
	return revisions, nil
}

func (s *Snapshot) changes(from Position, limit int) (revisions []LoggedRevision, err error) {
	it, err := s.view.pebble.NewIter(&pebble.IterOptions{
		LowerBound: appendLogKey(nil, s.store, from.Revision, 0),
		UpperBound: appendLogKey(nil, s.store, s.revision+1, 0),
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	names := newNamer(s)
	for ok := it.First(); ok && limit > 0; {
		var r LoggedRevision
		skip := uint32(0)
		if revisionOf(it.Key()[storeEnd:]) == from.Revision {
			skip = from.Offset
		}
		if r, err = readHeader(it.Key(), it.Value(), skip); err != nil {
			return nil, err
		}
		switch {
		case r.Count == 0:
			limit--
		case int(skip) >= r.Count:
			// The position is at the revision's end. Its schema, if any, was
			// told with its first changes.
			ok = it.SeekGE(appendLogKey(nil, s.store, r.Revision+1, 0))
			continue
		}
		ok = it.SeekGE(appendLogKey(nil, s.store, r.Revision, skip+1))
		for ; ok && limit > 0 && int(r.Offset)+len(r.Changes) < r.Count; ok = it.Next() {
			key := it.Key()
			want := appendLogKey(s.key[:0], s.store, r.Revision, r.Offset+uint32(len(r.Changes))+1)
			if string(key) != string(want) {
				return nil, corruptf("the change log has %x where %x should be", key, want)
			}
			var record logRecord
			if err = record.decode(it.Value()); err != nil {
				return nil, err
			}
			c := LoggedChange{Kind: record.kind}
			if c.Tuple, err = names.tuple(record.key, &record.value); err != nil {
				return nil, err
			}
			r.Changes = append(r.Changes, c)
			limit--
		}
		if limit > 0 && int(r.Offset)+len(r.Changes) < r.Count {
			if err = it.Error(); err == nil {
				err = corruptf("the change log ends within revision %d", r.Revision)
			}
			return nil, err
		}
		revisions = append(revisions, r)
	}
	return revisions, nil
}

// readHeader reads the record that begins a revision.
func readHeader(key, value []byte, skip uint32) (LoggedRevision, error) {
	if len(key) != logKeyLen || binary.BigEndian.Uint32(key[logKeyLen-4:]) != 0 {
		return LoggedRevision{}, corruptf("the change log has %x where a header should be", cut(key))
	}
	var h logHeader
	if err := h.decode(value); err != nil {
		return LoggedRevision{}, err
	}
	return LoggedRevision{
		Revision:      revisionOf(key[storeEnd:]),
		Stamp:         h.stamp,
		RecordedActor: h.actor,
		Metadata:      h.metadata,
		SchemaChanged: h.schema && skip == 0,
		Count:         int(h.count),
		Offset:        skip,
		Sequence:      h.sequence + uint64(skip),
	}, nil
}

// RevisionAt returns the last revision that changed a store at or before an
// instant: what "as of" a time means. It is zero when there is none: then the
// store was empty, as it is at every revision before its first change. An instant
// before the oldest state that is kept gives a *RevisionGoneError. Stamps rise
// with revisions, so it looks at few records however long the log is.
func (db *DB) RevisionAt(id StoreID, at Instant) (Revision, error) {
	s, err := db.Snapshot(id, 0, 0)
	if err != nil {
		return 0, fmt.Errorf("find the revision at %s: %w", at, err)
	}
	defer s.Close()
	record := &s.catalog.record
	if f := record.history; f.revision != 0 && at < f.stamp {
		return 0, &RevisionGoneError{At: at, Oldest: f.revision, OldestAt: f.stamp}
	}
	found, err := lastChange(s.view.pebble, id, min(record.changed, s.view.applied.Revision), at)
	if err != nil {
		return 0, fmt.Errorf("find the revision at %s: %w", at, err)
	}
	return found.revision, nil
}

// lastChange finds the last revision up to changed that is in a store's change
// log and has a stamp at or before an instant; zero when there is none. What was
// removed from the log below the floors it cannot find.
func lastChange(r pebble.Reader, store StoreID, changed Revision, at Instant) (found floor, err error) {
	it, err := r.NewIter(&pebble.IterOptions{
		LowerBound: appendStore(nil, spaceLog, store),
		UpperBound: appendLogKey(nil, store, changed+1, 0),
	})
	if err != nil {
		return floor{}, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	// header reads the first header at or behind a revision.
	header := func(rev Revision) (h LoggedRevision, ok bool) {
		if err != nil || !it.SeekGE(appendLogKey(nil, store, rev, 0)) {
			return h, false
		}
		h, err = readHeader(it.Key(), it.Value(), 0)
		return h, err == nil
	}
	// Search for the first revision in [0, changed] whose next header has a
	// later stamp; the header before that is the answer.
	beyond := sort.Search(int(min(changed, 1<<62))+1, func(i int) bool {
		h, ok := header(Revision(i))
		return !ok || h.Stamp > at
	})
	if err != nil || !it.SeekLT(appendLogKey(nil, store, Revision(beyond), 0)) {
		return floor{}, errors.Join(err, it.Error())
	}
	h, ok := header(revisionOf(it.Key()[storeEnd:]))
	if err == nil && !ok {
		err = errors.Join(it.Error(), corruptf("the change log of store %d has no header before revision %d", store, beyond))
	}
	return floor{h.Revision, h.Stamp}, err
}

// A namer turns the numbers of many edges into names, remembering those of the
// last ones, for neighbours share their object or subject.
type namer struct {
	s   *Snapshot
	ids map[numberedObject]string
}

type numberedObject struct {
	typ    string
	number Number
}

// rememberedIDs bounds namer.ids.
const rememberedIDs = 1 << 12

func newNamer(s *Snapshot) *namer { return &namer{s: s, ids: map[numberedObject]string{}} }

func (n *namer) id(typ string, number Number) (string, error) {
	k := numberedObject{typ, number}
	if id, ok := n.ids[k]; ok {
		return id, nil
	}
	id, err := n.s.ID(typ, number)
	if err != nil {
		return "", err
	}
	if len(n.ids) >= rememberedIDs {
		clear(n.ids)
	}
	n.ids[k] = id
	return id, nil
}

func (n *namer) tuple(k edgeKey, v *edgeValue) (Tuple, error) {
	var object Object
	var subject Subject
	var relation string
	object.Type, relation = n.s.ShapeName(k.relation)
	subject.Type, subject.Relation = n.s.ShapeName(k.subject)
	if object.Type == "" || relation == "" || subject.Type == "" {
		return Tuple{}, corruptf("edge %v has a shape without a name", k)
	}
	var err error
	if object.ID, err = n.id(object.Type, k.object); err != nil {
		return Tuple{}, err
	}
	if subject.ID, err = n.id(subject.Type, k.number); err != nil {
		return Tuple{}, err
	}
	return n.s.tuple(object, relation, subject, v)
}
