package schema

import (
	"fmt"
	"strings"
)

// A ChangeKind is one of the ways in which two schemas can differ. The set is
// closed.
type ChangeKind uint8

// The kinds of change. Old and New of a Change hold what each says in brackets;
// where nothing is said, they are empty.
const (
	DefinitionAdded ChangeKind = iota + 1
	DefinitionRemoved
	DefinitionDocChanged // [the doc]
	RelationAdded
	RelationRemoved
	RelationDocChanged  // [the doc]
	RelationExprChanged // [the rewrite]
	SubjectTypeAdded    // Subject is set
	SubjectTypeRemoved  // Subject is set
	PermissionAdded
	PermissionRemoved
	PermissionDocChanged  // [the doc]
	PermissionExprChanged // [the rewrite]
	AnnotationChanged     // [the types, joined by " | "]
	CaveatAdded
	CaveatRemoved
	CaveatDocChanged     // [the doc]
	CaveatExprChanged    // [the expression]
	ParameterAdded       // New is the type
	ParameterRemoved     // Old is the type
	ParameterTypeChanged // [the type]
	changeKindEnd
)

var changeKindNames = [...]string{
	DefinitionAdded:       "definition added",
	DefinitionRemoved:     "definition removed",
	DefinitionDocChanged:  "definition doc changed",
	RelationAdded:         "relation added",
	RelationRemoved:       "relation removed",
	RelationDocChanged:    "relation doc changed",
	RelationExprChanged:   "relation expression changed",
	SubjectTypeAdded:      "subject type added",
	SubjectTypeRemoved:    "subject type removed",
	PermissionAdded:       "permission added",
	PermissionRemoved:     "permission removed",
	PermissionDocChanged:  "permission doc changed",
	PermissionExprChanged: "permission expression changed",
	AnnotationChanged:     "permission annotation changed",
	CaveatAdded:           "caveat added",
	CaveatRemoved:         "caveat removed",
	CaveatDocChanged:      "caveat doc changed",
	CaveatExprChanged:     "caveat expression changed",
	ParameterAdded:        "parameter added",
	ParameterRemoved:      "parameter removed",
	ParameterTypeChanged:  "parameter type changed",
}

// String returns the kind in words: "relation added".
func (k ChangeKind) String() string {
	if k == 0 || k >= changeKindEnd {
		return fmt.Sprintf("ChangeKind(%d)", uint8(k))
	}
	return changeKindNames[k]
}

// A Change is one difference between two schemas.
type Change struct {
	Kind ChangeKind
	// Definition names the definition; empty for a change of a caveat.
	Definition string
	// Caveat names the caveat; empty for a change of a definition.
	Caveat string
	// Name is the relation, permission or parameter; empty for a change of the
	// definition or caveat itself.
	Name string
	// Subject is the subject type that was added or removed.
	Subject SubjectType
	// Old and New are what the comments of the kinds say.
	Old, New string
}

// String returns the change on one line: "relation added: org#admin".
func (c Change) String() string {
	place := c.Definition + c.Caveat
	if c.Name != "" && c.Caveat != "" {
		place += "(" + c.Name + ")"
	} else if c.Name != "" {
		place += "#" + c.Name
	}
	s := c.Kind.String() + ": " + place
	switch c.Kind {
	case SubjectTypeAdded, SubjectTypeRemoved:
		s += ": " + c.Subject.String()
	case ParameterAdded:
		s += ": " + c.New
	case ParameterRemoved:
		s += ": " + c.Old
	case RelationExprChanged, PermissionExprChanged, AnnotationChanged, ParameterTypeChanged:
		s += ": " + orNone(c.Old) + " => " + orNone(c.New)
	}
	return s
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// Diff returns what must change to get from one schema to the other: first the
// definitions, then the caveats, each in the order of their names, and within
// each what was removed or changed in the order of the old schema, then what was
// added in the order of the new one. The order of members alone is no change, and
// neither is the grouping of a union within a union or of an intersection within an
// intersection.
// Both schemas must not be nil; New of nothing is the empty schema.
func Diff(from, to *Schema) []Change {
	var d differ
	pairs(from.Definitions, to.Definitions, func(x *Definition) string { return x.Name }, d.definition)
	pairs(from.Caveats, to.Caveats, func(x *Caveat) string { return x.Name }, d.caveat)
	return d
}

// differ collects changes.
type differ []Change

func (d *differ) add(c Change) { *d = append(*d, c) }

// pairs calls f with the elements of two lists that are sorted by name, paired
// by name; one of the pair is nil where the other list has no such element.
func pairs[T any](from, to []*T, name func(*T) string, f func(a, b *T)) {
	for len(from) > 0 || len(to) > 0 {
		switch {
		case len(to) == 0 || len(from) > 0 && name(from[0]) < name(to[0]):
			f(from[0], nil)
			from = from[1:]
		case len(from) == 0 || name(to[0]) < name(from[0]):
			f(nil, to[0])
			to = to[1:]
		default:
			f(from[0], to[0])
			from, to = from[1:], to[1:]
		}
	}
}

// changed adds a change if the texts differ.
func (d *differ) changed(kind ChangeKind, c Change, from, to string) {
	if from != to {
		c.Kind, c.Old, c.New = kind, from, to
		d.add(c)
	}
}

// rewrite adds a change if the rewrites differ, and tells them as they are written.
func (d *differ) rewrite(kind ChangeKind, c Change, from, to Rewrite) {
	if meaningOf(from) != meaningOf(to) {
		d.changed(kind, c, RewriteString(from), RewriteString(to))
	}
}

func (d *differ) definition(a, b *Definition) {
	switch {
	case b == nil:
		d.add(Change{Kind: DefinitionRemoved, Definition: a.Name})
		return
	case a == nil:
		d.add(Change{Kind: DefinitionAdded, Definition: b.Name})
		return
	}
	d.changed(DefinitionDocChanged, Change{Definition: a.Name}, a.Doc, b.Doc)
	for _, r := range a.Relations {
		d.relation(Change{Definition: a.Name, Name: r.Name}, r, b.relations[r.Name])
	}
	for _, r := range b.Relations {
		if a.relations[r.Name] == nil {
			d.add(Change{Kind: RelationAdded, Definition: a.Name, Name: r.Name})
		}
	}
	for _, p := range a.Permissions {
		d.permission(Change{Definition: a.Name, Name: p.Name}, p, b.permissions[p.Name])
	}
	for _, p := range b.Permissions {
		if a.permissions[p.Name] == nil {
			d.add(Change{Kind: PermissionAdded, Definition: a.Name, Name: p.Name})
		}
	}
}

func (d *differ) relation(at Change, a, b *Relation) {
	if b == nil {
		at.Kind = RelationRemoved
		d.add(at)
		return
	}
	d.changed(RelationDocChanged, at, a.Doc, b.Doc)
	d.rewrite(RelationExprChanged, at, a.Rewrite, b.Rewrite)
	d.subjectTypes(SubjectTypeRemoved, at, a.Allowed, b.Allowed)
	d.subjectTypes(SubjectTypeAdded, at, b.Allowed, a.Allowed)
}

// subjectTypes adds a change for each subject type that the other list lacks.
func (d *differ) subjectTypes(kind ChangeKind, at Change, types, others []SubjectType) {
	known := make(map[SubjectType]bool, len(others))
	for _, s := range others {
		known[s] = true
	}
	for _, s := range types {
		if !known[s] {
			at.Kind, at.Subject = kind, s
			d.add(at)
		}
	}
}

func (d *differ) permission(at Change, a, b *Permission) {
	if b == nil {
		at.Kind = PermissionRemoved
		d.add(at)
		return
	}
	d.changed(PermissionDocChanged, at, a.Doc, b.Doc)
	d.rewrite(PermissionExprChanged, at, a.Rewrite, b.Rewrite)
	d.changed(AnnotationChanged, at, strings.Join(a.Annotation, " | "), strings.Join(b.Annotation, " | "))
}

func (d *differ) caveat(a, b *Caveat) {
	switch {
	case b == nil:
		d.add(Change{Kind: CaveatRemoved, Caveat: a.Name})
		return
	case a == nil:
		d.add(Change{Kind: CaveatAdded, Caveat: b.Name})
		return
	}
	at := Change{Caveat: a.Name}
	d.changed(CaveatDocChanged, at, a.Doc, b.Doc)
	d.changed(CaveatExprChanged, at, a.Expression, b.Expression)
	types := func(c *Caveat) map[string]string {
		m := make(map[string]string, len(c.Parameters))
		for _, p := range c.Parameters {
			m[p.Name] = p.Type
		}
		return m
	}
	aTypes, bTypes := types(a), types(b)
	for _, p := range a.Parameters {
		at.Name = p.Name
		if t, ok := bTypes[p.Name]; ok {
			d.changed(ParameterTypeChanged, at, p.Type, t)
		} else {
			d.add(Change{Kind: ParameterRemoved, Caveat: a.Name, Name: p.Name, Old: p.Type})
		}
	}
	for _, p := range b.Parameters {
		if _, ok := aTypes[p.Name]; !ok {
			d.add(Change{Kind: ParameterAdded, Caveat: a.Name, Name: p.Name, New: p.Type})
		}
	}
}
