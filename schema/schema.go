package schema

// A Schema is a checked and compiled schema: every name in it resolves, every
// rewrite is in its final form. It is immutable and safe for concurrent use.
// Compile makes one from a File.
type Schema struct {
	// Definitions holds the types, sorted by name.
	Definitions []*Definition
	// Caveats holds the caveats, sorted by name.
	Caveats []*Caveat

	definitions map[string]*Definition
	caveats     map[string]*Caveat
	// order has the names of each definition's relations and permissions in one
	// list, in source order. It stands beside the definitions because it is no part
	// of what they mean.
	order map[string][]string
	// anyArrows has, for each relation and permission whose expression spells an arrow
	// with .any(), all arrows of the expression in source order, each with a bit for
	// every name of its chain that .any() leads to: bit 1 for the second. It is no part
	// of what they mean either.
	anyArrows map[memberKey][]uint16
}

// Definition returns the definition of the named type, or nil.
func (s *Schema) Definition(name string) *Definition { return s.definitions[name] }

// Caveat returns the named caveat, or nil.
func (s *Schema) Caveat(name string) *Caveat { return s.caveats[name] }

// A Definition is a type of object with its relations and permissions.
type Definition struct {
	// Name is the type's name, with its prefixes: "org", "tenant/org".
	Name string
	// Doc holds the comments that stand before the definition, delimiters
	// included, lines separated by "\n"; empty if there are none.
	Doc string
	// Relations and Permissions are in source order; partials are expanded in
	// the place of their splat.
	Relations   []*Relation
	Permissions []*Permission
	// Hidden holds the permissions the compiler made for chained arrows, sorted
	// by name. The name of each is the rest of its chain, "b->c", which no
	// source can declare and no question from outside can ask.
	Hidden []*Permission

	relations   map[string]*Relation
	permissions map[string]*Permission // Hidden included
}

// Relation returns the named relation, or nil.
func (d *Definition) Relation(name string) *Relation { return d.relations[name] }

// Permission returns the named permission (hidden ones too), or nil.
func (d *Definition) Permission(name string) *Permission { return d.permissions[name] }

// Rewrite returns the rewrite of the named relation or permission (hidden ones
// too), or nil when the type has no such name.
func (d *Definition) Rewrite(name string) Rewrite {
	if r := d.relations[name]; r != nil {
		return r.Rewrite
	}
	if p := d.permissions[name]; p != nil {
		return p.Rewrite
	}
	return nil
}

// A Relation is a named edge that tuples store.
type Relation struct {
	Name string
	Doc  string
	// Allowed lists what may stand on the subject's side, in source order,
	// without repeats.
	Allowed []SubjectType
	// Rewrite is This for a plain relation; with "use rewrite" it may be any
	// rewrite that contains This.
	Rewrite Rewrite
}

// A SubjectType is one form of subject that a relation allows. Exactly the
// tuples whose shape equals one of the relation's subject types may be stored:
// a subject type with a caveat allows only tuples that carry that caveat, one
// without allows only tuples that carry none, and so for expiration.
type SubjectType struct {
	Type string
	// Relation names a relation or permission of Type: the subject is a
	// userset. It is empty for a plain subject.
	Relation string
	// Wildcard allows Type:* and nothing else. Wildcard implies Relation == "".
	Wildcard bool
	// Caveat names the caveat that the tuple must carry; empty for none.
	Caveat string
	// Expiration says that the tuple must carry an expiration.
	Expiration bool
}

// A Permission is a named rule over relations and permissions.
type Permission struct {
	Name    string
	Doc     string
	Rewrite Rewrite
	// Annotation holds the subject types of "use typechecking", in source
	// order; nil when the permission has none.
	Annotation []string
}

// A Rewrite is the tree a relation or permission compiles to. It is one of
// This, Computed, Arrow, Union, Intersection, Exclusion, Nil and Self: a closed
// set, over which every consumer switches.
type Rewrite interface{ isRewrite() }

// This is the set of subjects stored directly on the relation itself. It occurs
// only in the rewrite of a relation.
type This struct{}

// Computed is the set of another relation or permission of the same object.
type Computed struct{ Name string }

// Arrow walks the tuples stored on Relation to the objects on their subject's
// side (a subject's own relation is ignored there, wildcards do not occur) and
// takes Name of each: the union of what they give, or with All the
// intersection, which is empty when there is no tuple. An object whose type
// has no Name contributes the empty set, and there may be no type that has it.
type Arrow struct {
	Relation string
	Name     string
	All      bool
}

// Union, Intersection and Exclusion are the set operations. Children has at
// least two elements; nested operations of the same kind are flattened where
// the source does not put parentheses.
type (
	// Union holds a subject that any child holds.
	Union struct{ Children []Rewrite }
	// Intersection holds a subject that all children hold.
	Intersection struct{ Children []Rewrite }
	// Exclusion holds a subject that Base holds and Subtracted does not.
	Exclusion struct{ Base, Subtracted Rewrite }
)

// Nil is the empty set.
type Nil struct{}

// Self holds exactly the object itself, as a subject without a relation.
type Self struct{}

func (This) isRewrite()         {}
func (Computed) isRewrite()     {}
func (Arrow) isRewrite()        {}
func (Union) isRewrite()        {}
func (Intersection) isRewrite() {}
func (Exclusion) isRewrite()    {}
func (Nil) isRewrite()          {}
func (Self) isRewrite()         {}
