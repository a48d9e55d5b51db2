package graph

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

// A staged change is gathered by many revisions and made by one. Its updates
// stand in a keyspace of their own, by edge, where no read of tuples looks. To
// make it, they are merged with the current tuples, which are in the same order;
// what that writes does not fit one batch, so it goes in many:
//
//	batch 1 .. n-1   some tuples, their past, their log records; the marker
//	batch n          the last of them; the log's header, the store's record, the
//	                 counters, the applied revision; no marker, no stage
//
// All of it is of the one revision, which is not applied before the last batch,
// so a snapshot taken in between takes it for the future: a tuple that is created
// by it is not seen, one that ends by it still is. After a crash the same commit
// goes on behind the marker, and ends with the same bytes.

// The bounds of staged changes. They are the same on every node, for they decide
// what is refused.
const (
	// StagesMax is how many staged changes a store may have at a time.
	StagesMax = 16
	// StageTuplesMax is how many updates one may have.
	StageTuplesMax = 64_000_000
	// CommittedStagesMax is how many staged changes that were committed a store
	// remembers, so that who asks again learns what became of them.
	CommittedStagesMax = 64
)

// stageBatchBytes is about how much one batch of a staged change writes: little
// beside a memtable, and much beside the marker.
const stageBatchBytes = 2 << 20

// StageInfo is a staged change as it is, or as it was when it was committed.
type StageInfo struct {
	ID StageID
	// Chunks is how many steps there were, Tuples how many updates in them.
	Chunks uint32
	Tuples uint64
	// Digest is that of all chunks.
	Digest StageDigest
	// Touched is the stamp of the last step, Schema the revision of the schema
	// that the updates were judged by.
	Touched Instant
	Schema  Revision
	// Committed is the revision that made the change, zero while it is staged;
	// Changed how many tuples it created or replaced.
	Committed Revision
	Changed   uint64
}

// A StageVerdict says what a staged change would do to the current tuples.
type StageVerdict struct {
	// Created, Replaced and Expired count the changes of each kind. A tuple whose
	// lifetime is over makes two, for it expires and is created.
	Created  uint64
	Replaced uint64
	Expired  uint64
	// Conflict is the first edge, in the order of edges, that Create found; nil
	// for none. The counts mean nothing beside it.
	Conflict *Tuple
}

func (v *StageVerdict) changes() uint64 { return v.Created + v.Replaced + v.Expired }

// A StageStep is what a Commit does to the staged changes of its store. It is
// alone in its Commit.
type StageStep struct {
	// Operation is StageUpdates, StageCommit or StageDrop.
	Operation StageOperation
	// ID names the staged change of StageUpdates and StageCommit.
	ID StageID
	// Chunk is the number of the step of StageUpdates: at 0 there is no such
	// staged change, else it has that many chunks.
	Chunk uint32
	// Updates are what StageUpdates adds, Touch and Create only; Schema the
	// revision of the schema that they were judged by.
	Updates []Update
	Schema  Revision
	// Digest is that of the staged change when StageUpdates has added its chunk.
	Digest StageDigest
	// Verdict is what JudgeStage said of the StageCommit, without a Conflict.
	Verdict StageVerdict
	// Drop are the staged changes that StageDrop forgets.
	Drop []StageID
}

// A StagedTwiceError says that a Commit would have staged an edge that is staged
// already. Nothing was changed.
type StagedTwiceError struct {
	// Index is the place among StageStep.Updates.
	Index int
}

// Error says which update it is.
func (e *StagedTwiceError) Error() string {
	return fmt.Sprintf("update %d is of an edge that is staged already", e.Index+1)
}

// Stages returns the staged changes of a store, by id, those that were committed
// not among them.
func (db *DB) Stages(id StoreID) ([]StageInfo, error) {
	s, err := db.Snapshot(id, 0, 0)
	if err != nil {
		return nil, fmt.Errorf("list staged changes: %w", err)
	}
	defer s.Close()
	return s.Stages()
}

// Stage returns a staged change of a store, also one of the last that were
// committed: it has Committed set.
func (db *DB) Stage(id StoreID, stage StageID) (StageInfo, bool, error) {
	s, err := db.Snapshot(id, 0, 0)
	if err != nil {
		return StageInfo{}, false, fmt.Errorf("look up a staged change: %w", err)
	}
	defer s.Close()
	return s.Stage(stage)
}

// Stages is DB.Stages as of the newest revision when the snapshot was made.
func (s *Snapshot) Stages() ([]StageInfo, error) {
	var stages []StageInfo
	err := scan(s.view.pebble, appendStore(nil, spaceStage, s.store), func(key, value []byte) error {
		var info StageInfo
		if len(key) != stageKeyLen {
			return corruptf("key %x of a staged change", cut(key))
		}
		copy(info.ID[:], key[storeEnd:])
		if err := info.decode(value); err != nil {
			return err
		}
		stages = append(stages, info)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list staged changes: %w", err)
	}
	return stages, nil
}

// Stage is DB.Stage as of the newest revision when the snapshot was made.
func (s *Snapshot) Stage(id StageID) (StageInfo, bool, error) {
	info, ok, err := readStage(s.view.pebble, s.store, id)
	if err != nil || ok {
		return info, ok, err
	}
	committed, err := readCommittedStages(s.view.pebble, s.store)
	if err != nil {
		return StageInfo{}, false, err
	}
	for _, info := range committed {
		if info.ID == id {
			return info, true, nil
		}
	}
	return StageInfo{}, false, nil
}

// StageDigest returns the digest that a change, which is staged and not
// committed, had when it ended with a chunk. It is false for a chunk that is not
// there.
func (s *Snapshot) StageDigest(id StageID, chunk uint32) (StageDigest, bool, error) {
	var digest StageDigest
	value, ok, err := get(s.view.pebble, appendStageDigestKey(nil, s.store, id, chunk))
	if err == nil && ok {
		err = digest.decode(value)
	}
	if err != nil {
		return StageDigest{}, false, fmt.Errorf("read the digest of chunk %d of the staged change %x: %w", chunk, id, err)
	}
	return digest, ok, nil
}

// UnfinishedStage returns the revision that a crash cut short while it made a
// staged change, and what was judged of it; zero for none. The commit of that
// revision goes on without being judged again, and no other may come before.
func (s *Snapshot) UnfinishedStage() (Revision, StageVerdict) {
	if u := s.view.unfinished; u != nil && u.store == s.store {
		return u.revision, u.verdict
	}
	return 0, StageVerdict{}
}

// unfinished reports whether a part of a revision that is not applied may stand
// in the store.
func (s *Snapshot) unfinished() bool {
	return s.view.unfinished != nil && s.view.unfinished.store == s.store
}

// JudgeStage says what a staged change would do if it were committed now, at the
// snapshot's instant. It looks at each update of it and at the current tuple of
// the same edge, some tenths of a microsecond each; Guard is not asked.
func (s *Snapshot) JudgeStage(id StageID) (StageVerdict, error) {
	var v StageVerdict
	m, err := newStageMerge(s.view.pebble, s.store, id, nil)
	if err != nil {
		return v, fmt.Errorf("judge a staged change: %w", err)
	}
	for m.next() {
		expired, kind := m.judge(s.instant)
		if expired {
			v.Expired++
		}
		switch kind {
		case Created:
			v.Created++
		case Replaced:
			v.Replaced++
		}
		if kind != Created && m.operation == Create {
			var t Tuple
			if t, err = newNamer(s).tuple(m.rest.edge(forward), &m.staged); err == nil {
				v.Conflict = &t
			}
			break
		}
	}
	if err = errors.Join(err, m.close()); err != nil {
		return v, fmt.Errorf("judge a staged change: %w", err)
	}
	return v, nil
}

// A stageMerge goes through the updates of a staged change, in the order of
// edges, with the current tuple of each.
type stageMerge struct {
	store   StoreID
	updates *pebble.Iterator
	current *pebble.Iterator
	begun   bool
	ahead   bool // whether current stands on a tuple
	key     []byte
	err     error

	// What next found; good until the next call.
	rest      rest
	operation Operation
	staged    edgeValue
	found     bool // whether before is the current tuple of the edge
	before    edgeValue
}

// newStageMerge begins behind an edge, or at the first for nil.
func newStageMerge(r pebble.Reader, store StoreID, id StageID, after *rest) (*stageMerge, error) {
	prefix := appendStagePrefix(nil, store, id)
	lower := prefix
	if after != nil {
		next := after.successor()
		lower = append(bytes.Clone(prefix), next[:]...)
	}
	m := &stageMerge{store: store}
	var err error
	if m.updates, err = r.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: prefixEnd(prefix)}); err != nil {
		return nil, err
	}
	space := appendStore(nil, spaceForward, store)
	if m.current, err = r.NewIter(&pebble.IterOptions{LowerBound: space, UpperBound: prefixEnd(space)}); err != nil {
		return nil, errors.Join(err, m.updates.Close())
	}
	return m, nil
}

func (m *stageMerge) close() error {
	return errors.Join(m.err, m.updates.Close(), m.current.Close())
}

// next moves to the next update and reports whether there is one.
func (m *stageMerge) next() bool {
	ok := false
	if m.begun {
		ok = m.updates.Next()
	} else {
		ok = m.updates.First()
	}
	if !ok || m.err != nil {
		return false // An error of the iterator is told by its Close.
	}
	key := m.updates.Key()
	if len(key) != stagedKeyLen {
		m.err = corruptf("key %x of a staged update", cut(key))
		return false
	}
	copy(m.rest[:], key[stageKeyLen:])
	var value []byte
	if value, m.err = m.updates.ValueAndErr(); m.err == nil {
		m.operation, m.err = decodeStaged(value, &m.staged)
	}
	if m.err == nil {
		m.err = m.find()
	}
	return m.err == nil
}

// stepsBeforeSeek is how many tuples find passes one by one before it seeks: a
// seek costs about as much as that many steps.
const stepsBeforeSeek = 8

// find looks for the current tuple of the edge, from where it stood before.
func (m *stageMerge) find() error {
	m.found = false
	m.key = appendEdgeKey(m.key[:0], spaceForward, m.store, &m.rest)
	if !m.begun {
		m.begun, m.ahead = true, m.current.SeekGE(m.key)
	}
	order := -1
	for steps := 0; m.ahead; steps++ {
		if order = bytes.Compare(m.current.Key(), m.key); order >= 0 {
			break
		}
		if steps < stepsBeforeSeek {
			m.ahead = m.current.Next()
		} else {
			m.ahead = m.current.SeekGE(m.key)
		}
	}
	if !m.ahead || order > 0 {
		return m.current.Error()
	}
	value, err := m.current.ValueAndErr()
	if err != nil {
		return err
	}
	m.found = true
	return m.before.decode(value, forward)
}

// judge says what the update does to the current tuple: whether it ends it as
// expired, and what becomes of the edge; zero for nothing.
func (m *stageMerge) judge(at Instant) (expired bool, kind ChangeKind) {
	switch {
	case !m.found:
		return false, Created
	case !m.before.living(at):
		return true, Created
	case !m.before.sameContent(&m.staged):
		return false, Replaced
	}
	return false, 0
}

// stage gathers a step that fits one batch.
func (w *writer) stage(db *DB) error {
	step := w.c.Stage
	switch step.Operation {
	case StageUpdates:
		return w.stageUpdates(db, step)
	case StageDrop:
		for _, id := range step.Drop {
			if err := w.dropStage(id); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("stage operation %d cannot be part of a commit", step.Operation)
}

// A stagedUpdate is one update of a step in the form that is stored.
type stagedUpdate struct {
	rest  rest
	index int
	value []byte // operation and edgeValue
}

func (w *writer) stageUpdates(db *DB, step *StageStep) error {
	info, ok, err := readStage(db.pebble, w.c.Store, step.ID)
	if err != nil {
		return err
	}
	if step.Chunk != info.Chunks || ok != (step.Chunk > 0) {
		return fmt.Errorf("chunk %d of a staged change that has %d", step.Chunk, info.Chunks)
	}
	if !ok {
		info = StageInfo{ID: step.ID, Schema: step.Schema}
	}
	updates := make([]stagedUpdate, len(step.Updates))
	var values []byte
	for i := range step.Updates {
		u := &step.Updates[i]
		if u.Operation != Touch && u.Operation != Create {
			return fmt.Errorf("update %d has operation %d; touch and create can be staged", i+1, u.Operation)
		}
		k, v, err := w.encode(db, &u.Tuple)
		if err != nil {
			return fmt.Errorf("update %d (%s): %w", i+1, u.Tuple, err)
		}
		v.created = 0
		from := len(values)
		values = v.appendValue(append(values, byte(u.Operation)), forward)
		updates[i] = stagedUpdate{rest: k.forward(), index: i, value: values[from:len(values):len(values)]}
	}
	slices.SortStableFunc(updates, func(a, b stagedUpdate) int { return a.rest.compare(&b.rest) })
	for i := 1; i < len(updates); i++ {
		if updates[i-1].rest == updates[i].rest {
			return &StagedTwiceError{Index: updates[i].index}
		}
	}
	if err := w.stagedBefore(db, step.ID, updates); err != nil {
		return err
	}
	prefix := appendStagePrefix(nil, w.c.Store, step.ID)
	for i := range updates {
		w.key = append(append(w.key[:0], prefix...), updates[i].rest[:]...)
		if err := w.batch.Set(w.key, updates[i].value, nil); err != nil {
			return err
		}
	}
	if err := w.batch.Set(appendStageDigestKey(nil, w.c.Store, step.ID, step.Chunk), step.Digest[:], nil); err != nil {
		return err
	}
	info.Chunks++
	info.Tuples += uint64(len(updates))
	info.Digest, info.Touched = step.Digest, w.c.Stamp
	w.value = info.append(w.value[:0])
	return w.batch.Set(appendStageKey(nil, w.c.Store, step.ID), w.value, nil)
}

// stagedBefore looks for updates, which are in order, in earlier chunks and
// returns the one that came first in its own.
func (w *writer) stagedBefore(db *DB, id StageID, updates []stagedUpdate) (err error) {
	prefix := appendStagePrefix(nil, w.c.Store, id)
	it, err := db.pebble.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: prefixEnd(prefix)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	twice := -1
	key := prefix
	for i := range updates {
		key = append(key[:stageKeyLen], updates[i].rest[:]...)
		if i == 0 || bytes.Compare(it.Key(), key) < 0 {
			if !it.SeekGE(key) {
				break
			}
		}
		if bytes.Equal(it.Key(), key) && (twice < 0 || updates[i].index < twice) {
			twice = updates[i].index
		}
	}
	if err := it.Error(); err != nil {
		return err
	}
	if twice >= 0 {
		return &StagedTwiceError{Index: twice}
	}
	return nil
}

// dropStage removes everything that is staged under an id.
func (w *writer) dropStage(id StageID) error {
	for _, space := range []keyspace{spaceStaged, spaceStageDigest} {
		prefix := append(appendStore(nil, space, w.c.Store), id[:]...)
		if err := w.batch.DeleteRange(prefix, prefixEnd(prefix), nil); err != nil {
			return err
		}
	}
	return w.batch.Delete(appendStageKey(nil, w.c.Store, id), nil)
}

// An unfinishedStage is the marker of a staged change that is being committed:
// how far the batches before have come.
type unfinishedStage struct {
	store    StoreID
	stage    StageID
	revision Revision
	stamp    Instant
	verdict  StageVerdict
	last     rest   // the last edge that is done
	offset   uint32 // how many changes it and those before made
	// checksum is what the edges up to the last one came to; see checksum.go.
	checksum uint64
	// What the last batch must do to the counters and to the store's record.
	counters   map[counterKey]int64
	latestFrom Instant
}

// commitStage makes a staged change. Its first batches are in the DB before the
// last one is, so what fails behind the first cannot be taken back.
func (w *writer) commitStage(db *DB, c *Commit) (Receipt, error) {
	// As long as this view is held it is the newest one: reads meanwhile share
	// it, and see a store that nothing was done to.
	v, err := db.acquire()
	if err != nil {
		return Receipt{}, err
	}
	w.reset(db, c)
	receipt, err := w.fillStage(db, v)
	if err != nil {
		err = closeBatch(w.batch, err)
		if db.unfinished != nil {
			db.listener.fatal(fmt.Errorf("revision %d cannot be finished: %w", c.Revision, err))
		}
		return Receipt{}, errors.Join(err, db.leave(v))
	}
	err = db.finish(w.batch, w.applied(db), func() { w.publish(db) }, func() {
		w.count(db)
		db.unfinished = nil
	})
	if err = errors.Join(err, db.leave(v)); err != nil {
		return Receipt{}, err
	}
	return receipt, nil
}

// fillStage writes all batches of a staged change but the last, and gathers that.
func (w *writer) fillStage(db *DB, v *view) (Receipt, error) {
	c, step := w.c, w.c.Stage
	if !w.find(db) {
		return Receipt{}, fmt.Errorf("store %d: %w", c.Store, ErrUnknownStore)
	}
	info, ok, err := readStage(v.pebble, c.Store, step.ID)
	if err != nil {
		return Receipt{}, err
	}
	if !ok {
		return Receipt{}, fmt.Errorf("no change is staged under %x", step.ID)
	}
	if step.Verdict.Conflict != nil || step.Verdict.changes() >= math.MaxUint32 {
		return Receipt{}, fmt.Errorf("the staged change was judged to be impossible: %+v", step.Verdict)
	}
	progress := unfinishedStage{store: c.Store, stage: step.ID, revision: c.Revision, stamp: c.Stamp, verdict: step.Verdict}
	var after *rest
	if u := db.unfinished; u != nil {
		if u.stamp != c.Stamp || u.verdict != step.Verdict {
			return Receipt{}, fmt.Errorf("the revision was begun with stamp %d and verdict %+v and cannot go on with %d and %+v",
				u.stamp, u.verdict, c.Stamp, step.Verdict)
		}
		progress = *u
		after = &progress.last
		maps.Copy(w.counters, u.counters)
		w.latestFrom = u.latestFrom
	}
	if progress.offset, err = w.mergeStage(db, v, &progress, after); err != nil {
		return Receipt{}, err
	}
	w.merged, w.mergedEnd = progress.checksum, w.batch.Len()
	if uint64(progress.offset) != step.Verdict.changes() {
		return Receipt{}, corruptf("a staged change made %d changes where %d were judged", progress.offset, step.Verdict.changes())
	}
	info.Touched, info.Committed, info.Changed = c.Stamp, c.Revision, step.Verdict.Created+step.Verdict.Replaced
	if err := w.rememberStage(db, info); err != nil {
		return Receipt{}, err
	}
	if err := w.dropStage(step.ID); err != nil {
		return Receipt{}, err
	}
	if err := w.batch.Delete(metaKey(metaUnfinished), nil); err != nil {
		return Receipt{}, err
	}
	receipt, err := w.conclude(w.cat.record, progress.offset)
	if err != nil {
		return Receipt{}, err
	}
	return receipt, w.remember(db, 0)
}

// mergeStage makes the changes from behind an edge on, and returns how many the
// revision has.
func (w *writer) mergeStage(db *DB, v *view, progress *unfinishedStage, after *rest) (offset uint32, err error) {
	m, err := newStageMerge(v.pebble, w.c.Store, w.c.Stage.ID, after)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	var spaces batchRecords
	for m.next() {
		if w.batch.Len() >= db.stageBatchBytes {
			if err := w.flushStage(db, progress, &spaces); err != nil {
				return 0, err
			}
		}
		before := w.batch.Len()
		if err := w.mergeOne(m, progress); err != nil {
			return 0, fmt.Errorf("edge %v: %w", m.rest.edge(forward), err)
		}
		progress.last = m.rest
		if w.batch.Len() > before {
			progress.checksum = chainEdge(progress.checksum, w.batch.Repr()[before:])
		}
	}
	return progress.offset, nil
}

// mergeOne makes one update. All that it writes goes into one batch.
func (w *writer) mergeOne(m *stageMerge, progress *unfinishedStage) error {
	expired, kind := m.judge(w.c.Stamp)
	if kind != Created && m.operation == Create {
		return fmt.Errorf("it exists, and was judged not to")
	}
	k := m.rest.edge(forward)
	if m.found && kind != 0 {
		if err := w.end(k, &m.before, false); err != nil {
			return err
		}
	}
	if expired {
		if err := w.logStaged(Expired, k, &m.before, progress); err != nil {
			return err
		}
	}
	if kind == 0 {
		return nil
	}
	m.staged.created = w.c.Revision
	if err := w.begin(k, &m.staged); err != nil {
		return err
	}
	return w.logStaged(kind, k, &m.staged, progress)
}

func (w *writer) logStaged(kind ChangeKind, k edgeKey, v *edgeValue, progress *unfinishedStage) error {
	progress.offset++
	w.record = logRecord{kind, k, *v}
	w.key = appendLogKey(w.key[:0], w.c.Store, w.c.Revision, progress.offset)
	w.value = w.record.append(w.value[:0])
	return w.batch.Set(w.key, w.value, nil)
}

// flushStage writes what was gathered, with the marker, and begins another batch.
func (w *writer) flushStage(db *DB, progress *unfinishedStage, spaces *batchRecords) error {
	progress.counters, progress.latestFrom = w.counters, w.latestFrom
	if err := w.batch.Set(metaKey(metaUnfinished), progress.append(nil), nil); err != nil {
		return err
	}
	// Before the batch, so that no view of it is taken for one without a marker.
	db.mu.Lock()
	begun := *progress
	begun.counters = nil // Only those that Open read are ever used.
	db.unfinished = &begun
	db.mu.Unlock()
	sorted, err := w.bySpace(db, spaces)
	if err != nil {
		return err
	}
	if err := db.residents.apply(sorted, progress.revision); err != nil {
		return closeBatch(sorted, err)
	}
	if err := sorted.Commit(pebble.NoSync); err != nil {
		return closeBatch(sorted, err)
	}
	if err := db.listener.err(); err != nil {
		return closeBatch(sorted, err)
	}
	w.batch.Reset()
	if err := sorted.Close(); err != nil {
		return err
	}
	if db.betweenBatches != nil {
		db.betweenBatches()
	}
	return nil
}

// batchRecords are the records of a batch, which they alias, by keyspace.
type batchRecords [256][]batchRecord

type batchRecord struct {
	kind       pebble.InternalKeyKind
	key, value []byte
}

// bySpace returns the batch with the records of each keyspace together, in the
// order in which they were made. Pebble puts what comes in the order of keys into
// its memtable much faster than what alternates between keyspaces.
// Spaces is room to work in.
func (w *writer) bySpace(db *DB, spaces *batchRecords) (*pebble.Batch, error) {
	for i := range spaces {
		spaces[i] = spaces[i][:0]
	}
	for r := w.batch.Reader(); len(r) > 0; {
		kind, key, value, _, err := r.Next()
		if err != nil {
			return nil, err
		}
		spaces[key[0]] = append(spaces[key[0]], batchRecord{kind, key, value})
	}
	sorted := db.pebble.NewBatchWithSize(w.batch.Len() + 64)
	for _, records := range spaces {
		for _, r := range records {
			var err error
			switch r.kind {
			case pebble.InternalKeyKindSet:
				err = sorted.Set(r.key, r.value, nil)
			case pebble.InternalKeyKindDelete:
				err = sorted.Delete(r.key, nil)
			default:
				err = fmt.Errorf("a batch of a staged change has a record of kind %s", r.kind)
			}
			if err != nil {
				return nil, closeBatch(sorted, err)
			}
		}
	}
	return sorted, nil
}

// rememberStage adds a staged change to those that were committed.
func (w *writer) rememberStage(db *DB, info StageInfo) error {
	committed, err := readCommittedStages(db.pebble, w.c.Store)
	if err != nil {
		return err
	}
	committed = append(committed, info)
	if extra := len(committed) - CommittedStagesMax; extra > 0 {
		committed = committed[extra:]
	}
	w.key = appendStore(w.key[:0], spaceCommittedStages, w.c.Store)
	w.value = appendCommittedStages(w.value[:0], committed)
	return w.batch.Set(w.key, w.value, nil)
}

// Keys and values of staged changes.

const (
	stageKeyLen  = storeEnd + len(StageID{})
	stagedKeyLen = stageKeyLen + restLen
	digestKeyLen = stageKeyLen + 4
)

func appendStageKey(dst []byte, store StoreID, id StageID) []byte {
	return append(appendStore(dst, spaceStage, store), id[:]...)
}

// appendStagePrefix begins the key of each update that is staged under an id.
func appendStagePrefix(dst []byte, store StoreID, id StageID) []byte {
	return append(appendStore(dst, spaceStaged, store), id[:]...)
}

func appendStageDigestKey(dst []byte, store StoreID, id StageID, chunk uint32) []byte {
	return binary.BigEndian.AppendUint32(append(appendStore(dst, spaceStageDigest, store), id[:]...), chunk)
}

func (d *StageDigest) decode(b []byte) error {
	if len(b) != len(d) {
		return corruptf("the digest %x of a staged change", cut(b))
	}
	copy(d[:], b)
	return nil
}

// sameContent reports whether two tuples of one edge carry the same.
func (v *edgeValue) sameContent(o *edgeValue) bool {
	return v.caveat == o.caveat && v.from == o.from && v.until == o.until &&
		bytes.Equal(v.context, o.context) && bytes.Equal(v.sources, o.sources)
}

// decodeStaged reads a staged update: its operation and the tuple's value, which
// no revision has created yet.
func decodeStaged(b []byte, v *edgeValue) (Operation, error) {
	if len(b) == 0 || (Operation(b[0]) != Touch && Operation(b[0]) != Create) {
		return 0, corruptf("a staged update %x has no known operation", cut(b))
	}
	if err := v.decode(b[1:], forward); err != nil {
		return 0, err
	}
	if v.created != 0 {
		return 0, corruptf("a staged update %x has a revision", cut(b))
	}
	return Operation(b[0]), nil
}

func (info *StageInfo) append(dst []byte) []byte {
	dst = append(dst, storesVersion)
	dst = binary.AppendUvarint(dst, uint64(info.Chunks))
	dst = binary.AppendUvarint(dst, info.Tuples)
	dst = append(dst, info.Digest[:]...)
	dst = binary.AppendUvarint(dst, uint64(info.Touched))
	return binary.AppendUvarint(dst, uint64(info.Schema))
}

func (info *StageInfo) decode(b []byte) error {
	d := decoder{b: b}
	d.version(storesVersion)
	info.decodeFields(&d)
	return d.finish("a staged change")
}

func (info *StageInfo) decodeFields(d *decoder) {
	chunks := d.uvarint()
	if chunks == 0 || chunks > math.MaxUint32 {
		d.fail("chunks out of range")
	}
	info.Chunks, info.Tuples = uint32(chunks), d.uvarint()
	d.copy(info.Digest[:])
	info.Touched, info.Schema = d.instant(), Revision(d.uvarint())
}

// readStage reads what is staged under an id.
func readStage(r pebble.Reader, store StoreID, id StageID) (StageInfo, bool, error) {
	info := StageInfo{ID: id}
	value, ok, err := get(r, appendStageKey(nil, store, id))
	if err == nil && ok {
		err = info.decode(value)
	}
	if err != nil {
		return StageInfo{}, false, fmt.Errorf("read the staged change %x: %w", id, err)
	}
	return info, ok, nil
}

// appendCommittedStages encodes what a store remembers of staged changes that
// were committed, the oldest first.
func appendCommittedStages(dst []byte, committed []StageInfo) []byte {
	dst = append(dst, storesVersion)
	for i := range committed {
		dst = committed[i].appendWhole(dst)
	}
	return dst
}

// appendWhole is append with the id, and what became of the staged change.
func (info *StageInfo) appendWhole(dst []byte) []byte {
	dst = info.append(append(dst, info.ID[:]...))
	dst = binary.AppendUvarint(dst, uint64(info.Committed))
	return binary.AppendUvarint(dst, info.Changed)
}

func (info *StageInfo) decodeWhole(d *decoder) {
	d.copy(info.ID[:])
	d.version(storesVersion)
	info.decodeFields(d)
	info.Committed, info.Changed = Revision(d.uvarint()), d.uvarint()
}

func readCommittedStages(r pebble.Reader, store StoreID) ([]StageInfo, error) {
	value, ok, err := get(r, appendStore(nil, spaceCommittedStages, store))
	if err != nil || !ok {
		return nil, err
	}
	d := decoder{b: value}
	d.version(storesVersion)
	var committed []StageInfo
	for len(d.b) > 0 && d.err == "" {
		var info StageInfo
		info.decodeWhole(&d)
		committed = append(committed, info)
	}
	if len(committed) > CommittedStagesMax {
		d.fail("too many")
	}
	return committed, d.finish("the staged changes that were committed")
}

func (u *unfinishedStage) append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint64(append(dst, clusterVersion), u.checksum)
	dst = binary.AppendUvarint(dst, uint64(u.store))
	dst = append(dst, u.stage[:]...)
	dst = binary.AppendUvarint(dst, uint64(u.revision))
	dst = binary.AppendUvarint(dst, uint64(u.stamp))
	dst = binary.AppendUvarint(dst, u.verdict.Created)
	dst = binary.AppendUvarint(dst, u.verdict.Replaced)
	dst = binary.AppendUvarint(dst, u.verdict.Expired)
	dst = append(dst, u.last[:]...)
	dst = binary.AppendUvarint(dst, uint64(u.offset))
	dst = binary.AppendUvarint(dst, uint64(u.latestFrom))
	for _, k := range slices.SortedFunc(maps.Keys(u.counters), counterKey.compare) {
		dst = k.append(dst, u.store)
		dst = binary.AppendVarint(dst, u.counters[k])
	}
	return dst
}

func (u *unfinishedStage) decode(b []byte) error {
	d := decoder{b: b}
	*u = unfinishedStage{counters: map[counterKey]int64{}}
	// The first form has no checksum, and neither has the state that it is of.
	if version := d.byte(); version == clusterVersion {
		var checksum [8]byte
		d.copy(checksum[:])
		u.checksum = binary.BigEndian.Uint64(checksum[:])
	} else if d.err == "" && version != storesVersion {
		d.fail(fmt.Sprintf("version %d, not %d or %d", version, storesVersion, clusterVersion))
	}
	store := d.uvarint()
	if store == 0 || store > math.MaxUint32 {
		d.fail("store out of range")
	}
	u.store = StoreID(store)
	d.copy(u.stage[:])
	u.revision, u.stamp = Revision(d.uvarint()), d.instant()
	u.verdict = StageVerdict{Created: d.uvarint(), Replaced: d.uvarint(), Expired: d.uvarint()}
	d.copy(u.last[:])
	offset := d.uvarint()
	if offset > u.verdict.changes() || offset >= math.MaxUint32 {
		d.fail("offset out of range")
	}
	u.offset, u.latestFrom = uint32(offset), d.instant()
	for len(d.b) > 0 && d.err == "" {
		var key [counterLen]byte
		d.copy(key[:])
		if d.err != "" {
			break
		}
		k, err := parseCounterKey(key[:])
		if err != nil {
			return err
		}
		if key[0] != spaceCounter || storeOf(key[:]) != u.store {
			d.fail("a counter of something else")
		}
		u.counters[k] = d.varint()
	}
	return d.finish("the marker of a staged change")
}

// readUnfinished reads the marker; nil for none.
func readUnfinished(r pebble.Reader) (*unfinishedStage, error) {
	value, ok, err := get(r, metaKey(metaUnfinished))
	if err != nil || !ok {
		return nil, err
	}
	u := &unfinishedStage{}
	return u, u.decode(value)
}

// newest returns the last revision of which a store may hold anything.
func (c *checker) newest(id StoreID) Revision {
	if u := c.unfinished; u != nil && u.store == id {
		return u.revision
	}
	return c.applied.Revision
}

// stage checks the record of a staged change. Its updates come behind it.
func (c *checker) stage(st *store, key, value []byte) error {
	if len(key) != stageKeyLen {
		return corruptf("key %x of a staged change", cut(key))
	}
	var info StageInfo
	if err := info.decode(value); err != nil {
		return err
	}
	if info.Schema == 0 || info.Schema > c.applied.Revision || info.Touched > c.applied.Stamp {
		return corruptf("the staged change %x is of schema %d and instant %d, but %d is applied",
			key[storeEnd:], info.Schema, info.Touched, c.applied.Revision)
	}
	if c.staged[st.id] == nil {
		c.staged[st.id] = map[StageID]uint64{}
	}
	if c.chunks[st.id] == nil {
		c.chunks[st.id] = map[StageID]checkedStage{}
	}
	c.staged[st.id][StageID(key[storeEnd:])] = info.Tuples
	c.chunks[st.id][StageID(key[storeEnd:])] = checkedStage{info: info}
	return nil
}

// stageDigest checks the digest of a chunk, which come in order.
func (c *checker) stageDigest(st *store, key, value []byte) error {
	if len(key) != digestKeyLen {
		return corruptf("key %x of the digest of a staged chunk", cut(key))
	}
	id := StageID(key[storeEnd:])
	left, ok := c.chunks[st.id][id]
	if chunk := binary.BigEndian.Uint32(key[stageKeyLen:]); !ok || left.next != chunk || chunk >= left.info.Chunks {
		return corruptf("chunk %d of the staged change %x has a digest, and %d of %d was expected", chunk, id, left.next, left.info.Chunks)
	}
	left.next++
	if err := left.last.decode(value); err != nil {
		return err
	}
	c.chunks[st.id][id] = left
	return nil
}

// A checkedStage is a staged change with how far its digests were seen.
type checkedStage struct {
	info StageInfo
	next uint32
	last StageDigest
}

func (c *checker) stagedUpdate(st *store, key, value []byte) error {
	if len(key) != stagedKeyLen {
		return corruptf("key %x of a staged update", cut(key))
	}
	id := StageID(key[storeEnd:])
	left, ok := c.staged[st.id][id]
	if !ok || left == 0 {
		return corruptf("the staged change %x has more updates than it counts", id)
	}
	c.staged[st.id][id]--
	var v edgeValue
	if _, err := decodeStaged(value, &v); err != nil {
		return err
	}
	var r rest
	copy(r[:], key[stageKeyLen:])
	return c.given(st, r.edge(forward), &v)
}

// endStages checks that nothing is missing of what is staged, and that what is
// unfinished made the counters what they are not yet.
func (c *checker) endStages() error {
	for store, stages := range c.staged {
		for id, left := range stages {
			if left != 0 {
				return corruptf("store %d: the staged change %x lacks %d updates", store, id, left)
			}
		}
	}
	for store, stages := range c.chunks {
		for id, s := range stages {
			if s.next != s.info.Chunks || s.last != s.info.Digest {
				return corruptf("store %d: the staged change %x has %d digests up to %x, and %d chunks of %x", store, id, s.next, s.last, s.info.Chunks, s.info.Digest)
			}
		}
	}
	u := c.unfinished
	if u == nil {
		return nil
	}
	if u.revision <= c.applied.Revision || c.stores[u.store] == nil {
		return corruptf("revision %d of store %d is unfinished, but %d is applied", u.revision, u.store, c.applied.Revision)
	}
	if _, ok := c.staged[u.store][u.stage]; !ok {
		return corruptf("the unfinished revision %d is of the staged change %x, which is not there", u.revision, u.stage)
	}
	if c.unfinishedRecords != u.offset {
		return corruptf("the unfinished revision %d has %d records in the change log, not %d", u.revision, c.unfinishedRecords, u.offset)
	}
	for k, delta := range u.counters {
		counted := c.counted[u.store]
		if counted == nil {
			counted = map[counterKey]uint64{}
			c.counted[u.store] = counted
		}
		if counted[k] -= uint64(delta); counted[k] == 0 {
			delete(counted, k)
		}
	}
	return nil
}

// unfinishedRecord checks a record of a revision that has no header yet.
func (c *checker) unfinishedRecord(st *store, offset uint32, value []byte) error {
	c.unfinishedRecords++
	if offset != c.unfinishedRecords {
		return corruptf("the unfinished revision %d has record %d in the change log, not %d", c.unfinished.revision, offset, c.unfinishedRecords)
	}
	return c.loggedChange(st, Position{c.unfinished.revision, offset - 1}, value)
}
