package graph

import (
	"bytes"
	"fmt"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"
)

// The limits of names and of what a tuple carries. The wire may set lower ones.
const (
	// MaxNameLength bounds the names of types, relations and caveats, in bytes.
	MaxNameLength = 128
	// MaxIDLength bounds ids, in bytes.
	MaxIDLength = 1024
	// MaxContextLength bounds a canonical context, in bytes, and MaxContextDepth
	// how deep its values nest.
	MaxContextLength = 64 << 10
	MaxContextDepth  = 32
	// MaxSources bounds how many feeds may assert one tuple, and
	// MaxSourceLength the length of a feed's name in bytes.
	MaxSources      = 64
	MaxSourceLength = 128
)

// MaxInstant is the last instant: the end of the year 9999, the last that RFC
// 3339 can write.
const MaxInstant Instant = 253402300799999999

var maxInstantText = MaxInstant.Time().Format(time.RFC3339Nano)

const (
	relationAllowed = "1 to 128 letters, digits, '_' and '-'"
	typeAllowed     = "1 to 128 letters, digits, '_', '-' and '/'"
	idAllowed       = "1 to 1024 bytes of UTF-8 without control characters"
)

// isNameByte reports whether c may stand in the name of a relation.
func isNameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-'
}

func validateName(field, name string, slash bool) error {
	allowed := relationAllowed
	if slash {
		allowed = typeAllowed
	}
	if name == "" {
		return invalid(field, "", "is empty", allowed)
	}
	if len(name) > MaxNameLength {
		return invalid(field, name, fmt.Sprintf("has %d bytes", len(name)), allowed)
	}
	for i := range len(name) {
		if c := name[i]; !isNameByte(c) && (!slash || c != '/') {
			return invalid(field, name, "contains "+runeAt(name, i), allowed)
		}
	}
	return nil
}

// runeAt describes the character at a byte of s.
func runeAt(s string, i int) string {
	r, n := utf8.DecodeRuneInString(s[i:])
	if r == utf8.RuneError && n <= 1 {
		return fmt.Sprintf("the byte 0x%02x", s[i])
	}
	return strconv.QuoteRune(r)
}

// ValidateType checks the name of a type: 1 to 128 letters, digits, '_', '-' and
// '/'. Letters and digits are those of ASCII. The error is an *InvalidError, as
// with the other functions here.
func ValidateType(name string) error { return validateName("type", name, true) }

// ValidateRelation checks the name of a relation or permission: 1 to 128
// letters, digits, '_' and '-'.
func ValidateRelation(name string) error { return validateName("relation", name, false) }

// ValidateCaveat checks the name of a caveat, which is like that of a type.
func ValidateCaveat(name string) error { return validateName("caveat", name, true) }

// ValidateID checks an object's id: 1 to 1024 bytes of UTF-8 without control
// characters, and not Wildcard.
func ValidateID(id string) error { return validateID("id", id) }

func validateID(field, id string) error {
	switch id {
	case "":
		return invalid(field, "", "is empty", idAllowed)
	case Wildcard:
		return invalid(field, id, "is the wildcard, which is no object", idAllowed+"; not *")
	}
	return validateText(field, id, MaxIDLength, idAllowed)
}

func validateText(field, s string, limit int, allowed string) error {
	if len(s) > limit {
		return invalid(field, s, fmt.Sprintf("has %d bytes", len(s)), allowed)
	}
	for i, r := range s {
		if r == utf8.RuneError {
			if _, n := utf8.DecodeRuneInString(s[i:]); n == 1 {
				return invalid(field, s, fmt.Sprintf("is not UTF-8 at byte %d", i+1), allowed)
			}
		}
		if unicode.IsControl(r) {
			return invalid(field, s, fmt.Sprintf("contains the control character %U", r), allowed)
		}
	}
	return nil
}

func (n ShapeName) validate() error {
	if err := ValidateType(n.Type); err != nil {
		return err
	}
	if n.Relation == "" {
		return nil
	}
	return ValidateRelation(n.Relation)
}

// Validate checks the object's type and id.
func (o Object) Validate() error {
	if err := validateName("object type", o.Type, true); err != nil {
		return err
	}
	return validateID("object id", o.ID)
}

// Validate checks the subject's type, id and relation; a wildcard must not have
// a relation.
func (s Subject) Validate() error {
	if err := validateName("subject type", s.Type, true); err != nil {
		return err
	}
	if s.Relation != "" {
		if err := validateName("subject relation", s.Relation, false); err != nil {
			return err
		}
	}
	if s.ID != Wildcard {
		return validateID("subject id", s.ID)
	}
	if s.Relation != "" {
		return invalid("subject", s.Type+":*#"+s.Relation, "is a wildcard with a relation", "a wildcard without a relation")
	}
	return nil
}

// Validate checks everything that makes a tuple well-formed: its names, that its
// context is canonical and comes with a caveat, that its lifetime is not empty
// and lies between 1970 and 9999, and that its sources are sorted. Created is
// not looked at. Whether the tuple fits a schema is for others to say.
func (t *Tuple) Validate() error {
	if err := t.Object.Validate(); err != nil {
		return err
	}
	if err := ValidateRelation(t.Relation); err != nil {
		return err
	}
	if err := t.Subject.Validate(); err != nil {
		return err
	}
	if t.Caveat != "" {
		if err := ValidateCaveat(t.Caveat); err != nil {
			return err
		}
	}
	if t.Context != nil {
		if t.Caveat == "" {
			return invalid("context", string(t.Context), "comes without a caveat", "")
		}
		canonical, err := CanonicalContext(t.Context)
		if err != nil {
			return err
		}
		if len(canonical) == 0 || !bytes.Equal(canonical, t.Context) {
			return invalid("context", string(t.Context), "is not canonical", "what CanonicalContext returns, here "+string(cut(canonical)))
		}
	}
	if t.ValidFrom < 0 || t.ValidUntil < 0 || t.ValidFrom > MaxInstant || t.ValidUntil > MaxInstant {
		return invalid("lifetime", fmt.Sprintf("%d to %d", t.ValidFrom, t.ValidUntil), "is out of range",
			"microseconds since 1970, up to "+maxInstantText)
	}
	if t.ValidUntil != 0 && t.ValidUntil <= t.ValidFrom {
		return invalid("lifetime", t.ValidFrom.String()+" to "+t.ValidUntil.String(), "ends before it begins", "")
	}
	return validateSources(t.Sources)
}

func validateSources(sources []string) error {
	if len(sources) > MaxSources {
		return invalid("sources", "", fmt.Sprintf("are %d", len(sources)), fmt.Sprintf("at most %d", MaxSources))
	}
	for i, s := range sources {
		if s == "" {
			return invalid("source", "", "is empty", "a feed's name")
		}
		if err := validateText("source", s, MaxSourceLength, "1 to 128 bytes of UTF-8 without control characters"); err != nil {
			return err
		}
		if i > 0 && sources[i-1] >= s {
			return invalid("sources", s, "are not sorted or repeat", "ascending names, each once")
		}
	}
	return nil
}

// Validate checks that what is set in the filter is well-formed and does not
// exclude itself. An id prefix is whole
// UTF-8, as an id is.
func (f *Filter) Validate() error {
	if f.ObjectType != "" {
		if err := validateName("filter's object type", f.ObjectType, true); err != nil {
			return err
		}
	}
	if f.ObjectID != "" && f.ObjectIDPrefix != "" {
		return invalid("filter's object id prefix", f.ObjectIDPrefix, "is set together with an object id", "one of both")
	}
	if f.ObjectID != "" {
		if err := validateID("filter's object id", f.ObjectID); err != nil {
			return err
		}
	}
	if err := validateText("filter's object id prefix", f.ObjectIDPrefix, MaxIDLength, idAllowed); err != nil {
		return err
	}
	if f.Relation != "" {
		if err := validateName("filter's relation", f.Relation, false); err != nil {
			return err
		}
	}
	if f.SubjectType != "" {
		if err := validateName("filter's subject type", f.SubjectType, true); err != nil {
			return err
		}
	}
	if f.SubjectID != "" && f.SubjectID != Wildcard {
		if err := validateID("filter's subject id", f.SubjectID); err != nil {
			return err
		}
	}
	if f.SubjectRelation != nil && *f.SubjectRelation != "" {
		if err := validateName("filter's subject relation", *f.SubjectRelation, false); err != nil {
			return err
		}
		if f.SubjectID == Wildcard {
			return invalid("filter's subject relation", *f.SubjectRelation, "is set together with the wildcard", "a wildcard has no relation")
		}
	}
	return nil
}

// Matches reports whether a tuple agrees with every field that is set.
func (f *Filter) Matches(t *Tuple) bool {
	return (f.ObjectType == "" || f.ObjectType == t.Object.Type) &&
		(f.ObjectID == "" || f.ObjectID == t.Object.ID) &&
		(len(f.ObjectIDPrefix) <= len(t.Object.ID) && t.Object.ID[:len(f.ObjectIDPrefix)] == f.ObjectIDPrefix) &&
		(f.Relation == "" || f.Relation == t.Relation) &&
		(f.SubjectType == "" || f.SubjectType == t.Subject.Type) &&
		(f.SubjectID == "" || f.SubjectID == t.Subject.ID) &&
		(f.SubjectRelation == nil || *f.SubjectRelation == t.Subject.Relation)
}

// Validate checks that the mutation asks exactly one thing, and that everything
// in it is well-formed. Whether it may be done is for the engine to say.
func (m *Mutation) Validate() error {
	kinds := 0
	staged := m.Stage != nil && m.Stage.Operation == StageUpdates
	for _, set := range []bool{
		len(m.Updates) > 0 && !staged, m.Delete != nil, m.Schema != nil, m.Collect != nil, m.Init != nil,
		m.StoreChange != nil, m.Prune != nil, m.Stage != nil, m.CounterChange != nil, m.StartChecksum != nil, m.Renew != nil, m.Settle != nil,
	} {
		if set {
			kinds++
		}
	}
	if kinds != 1 {
		return invalid("mutation", "", fmt.Sprintf("asks %d things", kinds),
			"one of updates, delete, schema, collect, init, store change, prune, stage, counter change, start checksum, renew and settle")
	}
	if err := ValidateRequestID(m.RequestID); err != nil {
		return err
	}
	storeless := m.Init != nil || (m.StoreChange != nil && m.StoreChange.Operation == CreateStore) || m.StartChecksum != nil || m.Renew != nil || m.Settle != nil
	if (m.Store == 0) != storeless {
		return invalid("mutation's store", fmt.Sprint(m.Store), "does not go with what is asked",
			"zero for init, start checksum, renew, settle and to create a store, else a store")
	}
	if len(m.Preconditions) > 0 && (len(m.Updates) == 0 || staged) && m.Delete == nil {
		return invalid("mutation", "", "has preconditions", "preconditions with updates and delete only")
	}
	for i := range m.Preconditions {
		if err := m.Preconditions[i].Filter.Validate(); err != nil {
			return fmt.Errorf("precondition %d: %w", i+1, err)
		}
	}
	if err := m.validateUpdates(); err != nil {
		return err
	}
	if m.Delete != nil {
		if err := m.Delete.Filter.Validate(); err != nil {
			return err
		}
		if err := validateLimit("delete's limit", m.Delete.Limit); err != nil {
			return err
		}
	}
	if m.Collect != nil {
		if err := validateLimit("collect's limit", m.Collect.Limit); err != nil {
			return err
		}
	}
	if (m.Init != nil && m.Init.ClusterID == [16]byte{}) || (m.Renew != nil && m.Renew.ClusterID == [16]byte{}) {
		return invalid("cluster id", "", "is zero", "16 random bytes")
	}
	if err := m.StoreChange.validate(); err != nil {
		return err
	}
	if err := m.Stage.validate(); err != nil {
		return err
	}
	if err := m.CounterChange.validate(); err != nil {
		return err
	}
	if len(m.Metadata) > 0 {
		if _, err := CanonicalContext(m.Metadata); err != nil {
			return fmt.Errorf("metadata: %w", err)
		}
	}
	return validateText("recorded actor", m.RecordedActor, 4*MaxIDLength, "at most 4096 bytes of UTF-8 without control characters")
}

func (c *StoreChange) validate() error {
	if c == nil {
		return nil
	}
	switch c.Operation {
	case CreateStore:
		if err := ValidateStoreName(c.Name); err != nil {
			return err
		}
	case SetStore, DropStore:
		if c.Name != "" {
			return invalid("store change", c.Name, "names a store that it does not create", "no name")
		}
	default:
		return invalid("store change", fmt.Sprint(uint8(c.Operation)), "is unknown", "create, set and drop")
	}
	for _, r := range []struct {
		what string
		kept *Retention
	}{{"history retention", c.History}, {"log retention", c.Log}} {
		if r.kept != nil && *r.kept < MinRetention {
			return invalid(r.what, fmt.Sprint(*r.kept), "is too short", "a second and more, in microseconds")
		}
	}
	return nil
}

func (s *Stage) validate() error {
	if s == nil {
		return nil
	}
	if s.Operation < StageUpdates || s.Operation > StageCollect {
		return invalid("stage's operation", fmt.Sprint(uint8(s.Operation)), "is unknown", "updates, commit, drop and collect")
	}
	if (s.ID == StageID{}) != (s.Operation == StageCollect) {
		return invalid("stage's id", fmt.Sprintf("%x", s.ID), "does not go with the operation", "zero to collect, else 16 bytes that are not all zero")
	}
	if s.Operation != StageCommit && s.Digest != (StageDigest{}) {
		return invalid("stage's digest", fmt.Sprintf("%x", s.Digest), "does not go with the operation", "a digest with commit only")
	}
	return nil
}

// ValidateRequestID checks the id of a request: up to MaxRequestIDLength bytes, of
// which none means that there is no id. The error is an *InvalidError.
func ValidateRequestID(id []byte) error {
	if len(id) > MaxRequestIDLength {
		return invalid("request id", fmt.Sprintf("%x", cut(id)), fmt.Sprintf("has %d bytes", len(id)), fmt.Sprintf("at most %d bytes", MaxRequestIDLength))
	}
	return nil
}

// ValidateStoreName checks the name of a store: 1 to 64 letters, digits, '_',
// '-' and '.', the first a letter or digit. Letters are those of ASCII.
func ValidateStoreName(name string) error {
	const allowed = "1 to 64 letters, digits, '_', '-' and '.', the first a letter or digit"
	switch {
	case name == "":
		return invalid("store name", "", "is empty", allowed)
	case len(name) > MaxStoreNameLength:
		return invalid("store name", name, fmt.Sprintf("has %d bytes", len(name)), allowed)
	case !isNameByte(name[0]) || name[0] == '_' || name[0] == '-':
		return invalid("store name", name, "begins with "+runeAt(name, 0), allowed)
	}
	for i := range len(name) {
		if c := name[i]; !isNameByte(c) && c != '.' {
			return invalid("store name", name, "contains "+runeAt(name, i), allowed)
		}
	}
	return nil
}

// limitMax bounds the limits in a mutation.
const limitMax = 1 << 30

func validateLimit(what string, limit int) error {
	if limit < 1 || limit > limitMax {
		return invalid(what, fmt.Sprint(limit), "is out of range", fmt.Sprintf("1 to %d", limitMax))
	}
	return nil
}

func (m *Mutation) validateUpdates() error {
	for i := range m.Updates {
		u := &m.Updates[i]
		if u.Operation < Touch || u.Operation > Delete {
			return invalid("operation", fmt.Sprint(uint8(u.Operation)), "is unknown", "touch (1), create (2), delete (3)")
		}
		if err := u.Tuple.Validate(); err != nil {
			return fmt.Errorf("update %d: %w", i+1, err)
		}
	}
	return nil
}
