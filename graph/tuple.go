package graph

import (
	"bytes"
	"slices"
	"time"
)

// A Revision is a point in the one total order of changes: the index of the
// Raft entry that made it. Revisions rise with gaps. The zero Revision is
// before every change.
type Revision uint64

// An Instant is a moment in microseconds since the Unix epoch. The zero Instant
// means that none is given.
type Instant int64

// InstantOf converts a time, dropping what is finer than a microsecond; the
// zero time gives the zero Instant.
func InstantOf(t time.Time) Instant {
	if t.IsZero() {
		return 0
	}
	return Instant(t.UnixMicro())
}

// Time returns the instant in UTC; the zero Instant gives the zero time.
func (i Instant) Time() time.Time {
	if i == 0 {
		return time.Time{}
	}
	return time.UnixMicro(int64(i)).UTC()
}

// A StoreID numbers a store, an isolated tenant with a schema and tuples of its
// own. Zero is no store.
type StoreID uint32

// DefaultStore is the store that every cluster has.
const DefaultStore StoreID = 1

// An Object is a thing with a type and an id: org:vector.
type Object struct {
	Type string
	ID   string
}

// Wildcard is the id that stands for every object of a type on the subject's
// side of a tuple.
const Wildcard = "*"

// A Subject is who: an object (person:hanna), a userset (group:eng#member) when
// Relation is not empty, or a wildcard (person:*) when the id is Wildcard.
// Invariant: a wildcard has no Relation.
type Subject struct {
	Object
	Relation string
}

// A Tuple is a stored edge object#relation@subject, with an optional caveat and
// lifetime. Two tuples are the same edge when Object, Relation and Subject are
// equal, whatever the rest.
type Tuple struct {
	Object   Object
	Relation string
	Subject  Subject

	// Caveat names the caveat the tuple carries; empty for none.
	Caveat string
	// Context is the caveat's context as canonical JSON (an object, keys
	// sorted, no insignificant blanks); nil when empty or without caveat.
	Context []byte
	// ValidFrom and ValidUntil bound the tuple's lifetime: it counts at an
	// instant i with ValidFrom <= i and, unless ValidUntil is zero,
	// i < ValidUntil.
	ValidFrom  Instant
	ValidUntil Instant
	// Sources names the feeds that assert the tuple, sorted, without repeats;
	// nil for tuples that no feed owns.
	Sources []string

	// Created is the revision that made the tuple as it is. It is set on what
	// is read and ignored on what is written.
	Created Revision
}

// A Shape numbers a (type, relation) pair within a store. It is the shape of
// the subject group:eng#member and, seen from the object's side, the relation
// group#member itself; with an empty relation it is the plain type. Zero is no
// shape. Shapes are given out when a schema or a tuple first names them, a type
// before its relations, and never reused.
type Shape uint32

// A Number stands for an object's id among the objects of its type within a
// store. WildcardNumber stands for the wildcard. Numbers are given out in
// ascending order when a tuple first names the object and never reused.
// Invariant: stored numbers are < EphemeralNumber; numbers from there up exist
// only within one Snapshot, for objects that no stored tuple names.
type Number uint64

// The number of the wildcard, the first number that a snapshot gives to objects
// which no stored tuple names, and the first that no Number reaches.
const (
	WildcardNumber  Number = 0
	EphemeralNumber Number = 1 << 39
	endNumber       Number = 1 << 40
)

// A CaveatNumber numbers a caveat's name within a store. Zero is no caveat.
type CaveatNumber uint32

// An Edge is one tuple as the evaluator sees it, from one of its ends.
type Edge struct {
	// Shape and Number name the far end: the subject's shape and number in
	// Subjects, the relation and the object's number in Objects.
	Shape  Shape
	Number Number
	// Caveat is the tuple's caveat, or zero; Context its canonical JSON, which
	// the reader may keep but not change.
	Caveat  CaveatNumber
	Context []byte
}

// Living reports whether the tuple counts at an instant.
func (t *Tuple) Living(at Instant) bool { return living(t.ValidFrom, t.ValidUntil, at) }

// SameContent reports whether two tuples of the same edge carry the same:
// caveat, context, lifetime and sources.
func (t *Tuple) SameContent(u *Tuple) bool {
	return t.Caveat == u.Caveat && bytes.Equal(t.Context, u.Context) &&
		t.ValidFrom == u.ValidFrom && t.ValidUntil == u.ValidUntil && slices.Equal(t.Sources, u.Sources)
}
