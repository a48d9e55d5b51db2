package schema

import (
	"cmp"
	"slices"
)

// An AffectedPermission is a permission that two schemas have and that means
// something else in the second.
type AffectedPermission struct {
	Definition string
	Permission string
	// Rewritten says that its own rewrite changed; otherwise something did that
	// it refers to, over any number of steps.
	Rewritten bool
}

// Affected returns the permissions which both schemas have and whose meaning may
// change from one to the other, because their own rewrite differs or because
// they refer, in either schema and over any number of steps, to a relation,
// permission or caveat that differs, was added or was removed. They are sorted
// by definition and name. Comments, annotations and the order of members change
// no meaning. Both schemas must not be nil.
//
// It compares what is written, not what follows from it: a rewrite that is
// written in another way and says the same counts as changed, but for the groups that
// Diff sees no change in. The cost grows
// with the size of both schemas.
func Affected(from, to *Schema) []AffectedPermission {
	a := affection{users: make(map[element][]element)}
	before, after := a.elements(from), a.elements(to)
	for e, meaning := range before {
		if other, kept := after[e]; !kept || other != meaning {
			a.change(e)
		}
	}
	for e := range after {
		if _, kept := before[e]; !kept {
			a.change(e)
		}
	}
	var affected []AffectedPermission
	for e := range a.changed {
		if e.definition == "" {
			continue
		}
		x, y := from.Definition(e.definition), to.Definition(e.definition)
		if x == nil || y == nil {
			continue
		}
		p, q := x.Permission(e.name), y.Permission(e.name)
		if p == nil || q == nil || hidden(x, e.name) || hidden(y, e.name) {
			continue
		}
		affected = append(affected, AffectedPermission{
			Definition: e.definition, Permission: e.name,
			Rewritten: meaningOf(p.Rewrite) != meaningOf(q.Rewrite),
		})
	}
	slices.SortFunc(affected, func(x, y AffectedPermission) int {
		return cmp.Or(cmp.Compare(x.Definition, y.Definition), cmp.Compare(x.Permission, y.Permission))
	})
	return affected
}

// hidden reports whether the compiler made a permission.
func hidden(d *Definition, name string) bool {
	_, found := slices.BinarySearchFunc(d.Hidden, name, func(p *Permission, name string) int { return cmp.Compare(p.Name, name) })
	return found
}

// An element is what a rewrite can refer to: a relation or permission of a
// definition, or, where that is empty, a caveat.
type element struct{ definition, name string }

// An affection is the work of Affected.
type affection struct {
	// users has, of an element, those that refer to it in one of the schemas.
	users map[element][]element
	// changed holds the elements found to be changed or affected.
	changed map[element]bool
}

// change marks an element and all that refers to it.
func (a *affection) change(e element) {
	if a.changed == nil {
		a.changed = make(map[element]bool)
	}
	for open := []element{e}; len(open) > 0; {
		e, open = open[len(open)-1], open[:len(open)-1]
		if !a.changed[e] {
			a.changed[e] = true
			open = append(open, a.users[e]...)
		}
	}
}

// elements returns what a schema consists of, each element with a text that
// differs when its own meaning does, and takes note of who refers to whom.
func (a *affection) elements(s *Schema) map[element]string {
	elements := make(map[element]string)
	for _, c := range s.Caveats {
		meaning := c.Expression
		parameters := slices.SortedFunc(slices.Values(c.Parameters), func(a, b Parameter) int { return cmp.Compare(a.Name, b.Name) })
		for _, p := range parameters {
			meaning += "\x00" + p.Name + " " + p.Type
		}
		elements[element{name: c.Name}] = meaning
	}
	for _, d := range s.Definitions {
		for _, r := range d.Relations {
			e := element{d.Name, r.Name}
			// The order of what is allowed has no meaning.
			forms := make([]string, len(r.Allowed))
			for i, t := range r.Allowed {
				forms[i] = t.String()
				if t.Relation != "" {
					a.use(e, element{t.Type, t.Relation})
				}
				if t.Caveat != "" {
					a.use(e, element{name: t.Caveat})
				}
			}
			slices.Sort(forms)
			meaning := "relation " + meaningOf(r.Rewrite)
			for _, f := range forms {
				meaning += "\x00" + f
			}
			elements[e] = meaning
			a.rewrite(d, e, r.Rewrite)
		}
		for _, list := range [...][]*Permission{d.Permissions, d.Hidden} {
			for _, p := range list {
				e := element{d.Name, p.Name}
				elements[e] = "permission " + meaningOf(p.Rewrite)
				a.rewrite(d, e, p.Rewrite)
			}
		}
	}
	return elements
}

func (a *affection) use(user, used element) { a.users[used] = append(a.users[used], user) }

// rewrite takes note of what a rewrite of e refers to.
func (a *affection) rewrite(d *Definition, e element, r Rewrite) {
	switch r := r.(type) {
	case This, Nil, Self:
	case Computed:
		a.use(e, element{d.Name, r.Name})
	case Arrow:
		a.use(e, element{d.Name, r.Relation})
		if relation := d.Relation(r.Relation); relation != nil {
			for _, t := range relation.Allowed {
				if !t.Wildcard {
					a.use(e, element{t.Type, r.Name})
				}
			}
		}
	case Union:
		for _, c := range r.Children {
			a.rewrite(d, e, c)
		}
	case Intersection:
		for _, c := range r.Children {
			a.rewrite(d, e, c)
		}
	case Exclusion:
		a.rewrite(d, e, r.Base)
		a.rewrite(d, e, r.Subtracted)
	}
}
