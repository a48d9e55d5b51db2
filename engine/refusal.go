package engine

import "fmt"

// A Reason says why the engine refused a question or a mutation. The list is
// closed: the wire maps every one of them to a code of its own.
type Reason uint8

// The reasons, in groups: names, tuples, mutations, schemas, questions.
const (
	// NoSchema: the store has no schema (at that revision).
	NoSchema Reason = iota + 1
	// UnknownType: no definition of that name.
	UnknownType
	// UnknownName: the type has no relation or permission of that name.
	UnknownName
	// UnknownCaveat: no caveat of that name.
	UnknownCaveat
	// NotARelation: a tuple names a permission, which stores nothing.
	NotARelation
	// SubjectNotAllowed: the relation does not allow a subject of that shape,
	// with that caveat, with or without expiration.
	SubjectNotAllowed
	// ContextInvalid: a caveat's context names an undeclared parameter or has a
	// value of the wrong type.
	ContextInvalid
	// Malformed: a name, id or other field breaks the rules for its form.
	Malformed
	// DuplicateUpdate: one mutation names the same edge twice.
	DuplicateUpdate
	// AlreadyExists: Create found the edge.
	AlreadyExists
	// PreconditionFailed: a precondition does not hold.
	PreconditionFailed
	// TooManyMatches: a delete without AllowPartial matched more than its limit.
	TooManyMatches
	// SchemaSyntax: the schema does not parse.
	SchemaSyntax
	// SchemaType: the schema parses and does not hold together.
	SchemaType
	// SchemaData: stored tuples would not fit the new schema.
	SchemaData
	// WildcardSubject: a wildcard where a concrete subject is asked about.
	WildcardSubject
	// CaveatFailed: a caveat that decides the answer could not be evaluated.
	CaveatFailed
	// BudgetExceeded: the question needs more steps or memory than its budget.
	BudgetExceeded
	// CursorInvalid: the cursor is not one of this question's.
	CursorInvalid
	// AlreadyInitialized: Init on a cluster that has an identity.
	AlreadyInitialized
	// NumbersExhausted: the store has named so many types, relations or caveats
	// in its life that no number is left for another.
	NumbersExhausted
	// TooMuchToRead: the preconditions and the filter of one mutation would have
	// to look at more tuples than a change may.
	TooMuchToRead
	// UnknownStore: no store of that name or number.
	UnknownStore
	// StoreExists: a store of that name exists.
	StoreExists
	// StoreProtected: the default store cannot be deleted.
	StoreProtected
	// StoreFull: the store would hold more tuples than its settings allow.
	StoreFull
	// StageUnknown: no staged change of that id, or it was collected.
	StageUnknown
	// StageGap: a chunk of a staged change is missing.
	StageGap
	// StageStale: the schema changed since the staged change was begun.
	StageStale
	// StageTooLarge: too much is staged.
	StageTooLarge
	// StageMismatch: other updates were staged under the same id.
	StageMismatch
	// CounterExists: a named counter of that name is registered.
	CounterExists
	// UnknownCounter: no named counter of that name is registered.
	UnknownCounter
	// TooManyCounters: the store has as many named counters as it may.
	TooManyCounters
	// SchemaReplaced: the schema was judged to follow one that is not the store's any
	// more.
	SchemaReplaced
)

// SharedMemoryBytes is the metadata by which a BudgetExceeded differs from all others:
// not the question was too large, but others had the memory that all share. Its value
// is how much that is.
const SharedMemoryBytes = "shared_memory_bytes"

var reasonNames = [...]string{
	NoSchema: "NO_SCHEMA", UnknownType: "UNKNOWN_TYPE", UnknownName: "UNKNOWN_NAME", UnknownCaveat: "UNKNOWN_CAVEAT",
	NotARelation: "NOT_A_RELATION", SubjectNotAllowed: "SUBJECT_NOT_ALLOWED", ContextInvalid: "CONTEXT_INVALID",
	Malformed: "MALFORMED", DuplicateUpdate: "DUPLICATE_UPDATE", AlreadyExists: "ALREADY_EXISTS",
	PreconditionFailed: "PRECONDITION_FAILED", TooManyMatches: "TOO_MANY_MATCHES", SchemaSyntax: "SCHEMA_SYNTAX",
	SchemaType: "SCHEMA_TYPE", SchemaData: "SCHEMA_DATA", WildcardSubject: "WILDCARD_SUBJECT",
	CaveatFailed: "CAVEAT_FAILED", BudgetExceeded: "BUDGET_EXCEEDED", CursorInvalid: "CURSOR_INVALID",
	AlreadyInitialized: "ALREADY_INITIALIZED", NumbersExhausted: "NUMBERS_EXHAUSTED",
	TooMuchToRead: "TOO_MUCH_TO_READ", UnknownStore: "UNKNOWN_STORE", StoreExists: "STORE_EXISTS",
	StoreProtected: "STORE_PROTECTED", StoreFull: "STORE_FULL", StageUnknown: "STAGE_UNKNOWN",
	StageGap: "STAGE_GAP", StageStale: "STAGE_STALE", StageTooLarge: "STAGE_TOO_LARGE",
	StageMismatch: "STAGE_MISMATCH", CounterExists: "COUNTER_EXISTS", UnknownCounter: "UNKNOWN_COUNTER",
	TooManyCounters: "TOO_MANY_COUNTERS", SchemaReplaced: "SCHEMA_REPLACED",
}

// String returns the reason as it stands on the wire: UNKNOWN_TYPE.
func (r Reason) String() string {
	if int(r) < len(reasonNames) && reasonNames[r] != "" {
		return reasonNames[r]
	}
	return fmt.Sprintf("REASON_%d", uint8(r))
}

// A Refusal is the engine's no to a question or a mutation that cannot be
// answered or applied as asked. It is a result, the same on every node, not a
// fault of the node. Errors of other types that the engine returns are faults
// (a damaged disk) or the caller's own deadline.
type Refusal struct {
	Reason Reason
	// Field names the part of the request at fault, as "updates[3].tuple";
	// empty when the request as a whole is.
	Field string
	// Message says in a sentence what was given, what was wrong and what is
	// allowed.
	Message string
	// Metadata holds the parts of the message a program may want: "type",
	// "name", "suggestion", "tuple". It may be nil.
	Metadata map[string]string
	// Cause is the error beneath (*schema.ContextError, schema.Errors); nil
	// when there is none.
	Cause error
}

// Error returns the message, with the field before it.
func (r *Refusal) Error() string {
	if r.Field != "" {
		return r.Field + ": " + r.Message
	}
	return r.Message
}

// Unwrap returns the cause.
func (r *Refusal) Unwrap() error { return r.Cause }

func refuse(reason Reason, field, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Field: field, Message: fmt.Sprintf(format, args...)}
}

// with adds one pair of metadata.
func (r *Refusal) with(key, value string) *Refusal {
	if r.Metadata == nil {
		r.Metadata = make(map[string]string, 4)
	}
	r.Metadata[key] = value
	return r
}
