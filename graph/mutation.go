package graph

import (
	"crypto/sha256"
	"encoding/binary"
)

// An Operation says what an Update does to its tuple.
type Operation uint8

// The operations of an Update.
const (
	// Touch writes the tuple, replacing the caveat and lifetime of one that is
	// there; an identical one is left as it is, without a change.
	Touch Operation = iota + 1
	// Create writes the tuple and is refused if the edge is there.
	Create
	// Delete removes the edge, whatever it carries; a missing one is no change.
	Delete
)

// An Update is one operation on one tuple.
type Update struct {
	Operation Operation
	Tuple     Tuple
}

// A Filter selects tuples. A tuple matches when it agrees with every field that
// is set; the zero Filter matches all.
type Filter struct {
	ObjectType string
	// ObjectID and ObjectIDPrefix exclude each other.
	ObjectID       string
	ObjectIDPrefix string
	Relation       string
	SubjectType    string
	// SubjectID may be Wildcard, which matches wildcards only.
	SubjectID string
	// SubjectRelation is nil for any, points to "" for subjects without a
	// relation, else to the relation's name.
	SubjectRelation *string
}

// A Precondition must hold before a mutation changes anything.
type Precondition struct {
	Filter Filter
	// MustNotMatch asks that no tuple matches the filter; otherwise at least
	// one must.
	MustNotMatch bool
}

// A Mutation is one atomic request for change, as it stands in the log. Exactly
// one of Updates, Delete, Schema, Collect, Init, StoreChange, Prune, Stage,
// CounterChange, StartChecksum, Renew and Settle says what is asked, but that Updates
// go with a Stage of StageUpdates.
type Mutation struct {
	// Store is what is changed. It is zero where the mutation makes its store, or
	// names none: with Init, CreateStore, StartChecksum, Renew and Settle.
	Store StoreID

	// RequestID tells this request for change from all others of the cluster, so
	// that it is made once however often it is asked: a mutation whose id is
	// remembered changes nothing, and comes to what the first of that id came to,
	// whatever else it asks. It has up to MaxRequestIDLength bytes; empty for none,
	// which costs nothing. What became of it is remembered for RequestLifetime,
	// unless it was refused: a refusal changed nothing, and to judge again is right.
	//
	// It is no part of the encoding: whoever keeps mutations keeps it beside.
	RequestID []byte

	// Preconditions are judged, in order, before anything is changed. They go
	// with Updates and Delete.
	Preconditions []Precondition
	// Updates are applied together. No two are of the same edge.
	Updates []Update
	// Delete removes what matches a filter.
	Delete *DeleteMatching
	// Schema replaces the store's schema.
	Schema *WriteSchema
	// Collect ends tuples whose lifetime is over.
	Collect *Collect
	// Init is the first mutation of a cluster.
	Init *Init
	// StoreChange creates, changes or drops a store.
	StoreChange *StoreChange
	// Prune forgets what is older than the store's retention.
	Prune *Prune
	// Stage gathers a change that is too large for one entry.
	Stage *Stage
	// CounterChange registers or unregisters a named counter.
	CounterChange *CounterChange
	// StartChecksum begins the checksum of the state anew.
	StartChecksum *StartChecksum
	// Renew gives the cluster another id.
	Renew *Renew
	// Settle has time pass, and changes nothing.
	Settle *Settle

	// RecordedActor is on whose behalf the caller says the change is made; it
	// is recorded, not judged.
	RecordedActor string
	// Metadata is a JSON object kept with the change; nil for none.
	Metadata []byte
}

// DeleteMatching asks to delete the tuples that match Filter.
type DeleteMatching struct {
	Filter Filter
	// Limit bounds how many are deleted; it is at least 1.
	Limit int
	// AllowPartial deletes the first Limit matches when there are more; without
	// it the mutation is refused then.
	AllowPartial bool
}

// WriteSchema asks to make Text the store's schema.
type WriteSchema struct {
	Text string
	// Replaces is the revision of the schema that Text was judged to follow, zero for
	// none: a mutation that finds another one is refused. Nil for whichever there is.
	Replaces *Revision
}

// Collect asks to end at most Limit tuples whose ValidUntil is at or before the
// entry's stamp.
type Collect struct{ Limit int }

// Init gives a new cluster its identity and its default store.
type Init struct{ ClusterID [16]byte }

// StartChecksum makes its revision the one that Applied.ChecksumSince says. It is
// for data that an older program began; Init does the same.
type StartChecksum struct{}

// Settle gives its revision the entry's stamp, and no more: since stamps never fall, no
// revision behind it is of an earlier moment, whichever node leads.
type Settle struct{}

// Renew gives a cluster another id than it has and ever had, and makes the one that
// it has an Ancestor. It is for what goes on with the data of a cluster that is
// lost, and so must not be taken for it.
type Renew struct{ ClusterID [16]byte }

// A StoreOperation says what a StoreChange does.
type StoreOperation uint8

// The operations of a StoreChange.
const (
	// CreateStore makes an empty store of Name, with the settings given and the
	// defaults of the others. Mutation.Store is zero, for the number follows.
	CreateStore StoreOperation = iota + 1
	// SetStore changes the settings given of Mutation.Store.
	SetStore
	// DropStore removes Mutation.Store with everything it holds and held. Its
	// number is never given out again, its name may be.
	DropStore
)

// A StoreChange creates, changes or drops a store.
type StoreChange struct {
	Operation StoreOperation
	// Name goes with CreateStore: see ValidateStoreName.
	Name string
	// The settings; nil leaves one as it is. They are those of StoreSettings.
	History        *Retention
	Log            *Retention
	TuplesMax      *uint64
	CallsPerSecond *uint32
}

// Prune makes unreadable, and leaves to every node to remove, what is older than
// the retention of Mutation.Store at the entry's stamp: of the history all that
// no state from the horizon on needs, of the change log what was changed before
// it.
type Prune struct{}

// A StageID names a staged change within a store.
type StageID [16]byte

// A StageOperation says what a Stage does.
type StageOperation uint8

// The operations of a Stage.
const (
	// StageUpdates adds Mutation.Updates, which no reader sees, to the staged
	// change, and makes it when Chunk is 0.
	StageUpdates StageOperation = iota + 1
	// StageCommit makes everything that was staged visible at the revision of
	// its entry, or is refused. Its actor and metadata are those of the change.
	StageCommit
	// StageDrop forgets what was staged.
	StageDrop
	// StageCollect forgets every staged change of the store to which nothing was
	// added for StageLifetime before the entry's stamp. The ID is zero.
	StageCollect
)

// StageLifetime is after how many microseconds without a step a staged change
// may be collected: 24 hours.
const StageLifetime Instant = 24 * 3600 * 1e6

// A Stage is one step of a change that is too large for one entry.
type Stage struct {
	Operation StageOperation
	ID        StageID
	// Chunk numbers the steps of StageUpdates from 0. A chunk that was added
	// already is no change, or is refused when its updates are others; one that
	// leaves a gap is refused. With StageCommit it is how many chunks there must be.
	Chunk uint32
	// Digest, of StageCommit alone, is that of the chunks which the caller means:
	// if the staged change has another, or had when it was committed, the commit
	// is refused. Zero is for a caller who is the only one to use the id: nothing
	// is compared.
	Digest StageDigest
}

// A StageDigest stands for the chunks of a staged change up to one of them: it
// follows from the operation and the tuple of each of their updates, in order.
// Zero stands for no chunk.
type StageDigest [16]byte

// Next returns the digest when one more chunk is added, whose number is how many
// there were. It costs about as much as encoding the updates.
func (d StageDigest) Next(chunk uint32, updates []Update) StageDigest {
	h := sha256.New()
	b := binary.AppendUvarint(d[:], uint64(chunk))
	b = binary.AppendUvarint(b, uint64(len(updates)))
	for i := range updates {
		u := &updates[i]
		b = u.Tuple.append(append(b, byte(u.Operation)))
		if len(b) >= 16<<10 {
			_, _ = h.Write(b) // A hash never fails.
			b = b[:0]
		}
	}
	_, _ = h.Write(b)
	return StageDigest(h.Sum(nil)[:len(d)])
}
