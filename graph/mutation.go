package graph

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
// one of Updates, Delete, Schema, Collect and Init says what is asked.
type Mutation struct {
	Store StoreID

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
type WriteSchema struct{ Text string }

// Collect asks to end at most Limit tuples whose ValidUntil is at or before the
// entry's stamp.
type Collect struct{ Limit int }

// Init gives a new cluster its identity and its default store.
type Init struct{ ClusterID [16]byte }
