package schema

import (
	"fmt"
	"slices"
	"sort"
	"strings"
)

// The rules of Lint.
const (
	// RuleMixedOperators: different operators stand side by side without
	// parentheses, and precedence decides what few readers know.
	RuleMixedOperators = "mixed-operators-without-parentheses"
	// RuleUnusedRelation: nothing in the schema refers to a relation.
	RuleUnusedRelation = "unused-relation"
	// RuleArrowUnreachable: an arrow can never yield anybody, whatever the tuples, since
	// what it leads to is always empty, or no type that it leads to has the name. Check
	// refuses the latter, unless its Strictness says otherwise.
	RuleArrowUnreachable = "arrow-references-unreachable-relation"
	// RuleArrowSubjectRelation: an arrow walks usersets, whose relation it ignores.
	RuleArrowSubjectRelation = "arrow-walks-subject-relation"
	// RuleArrowRelation: an arrow's target is a relation, which ties the expression
	// to how the other type stores its subjects.
	RuleArrowRelation = "arrow-references-relation"
	// RuleSelfReference: a permission is subtracted from itself through the tuples;
	// where these form a circle, nobody has it.
	RuleSelfReference = "permission-references-itself"
	// RuleRepeatedName: the name of a relation or permission repeats its type's.
	RuleRepeatedName = "relation-name-references-parent"
)

// A Warning is a passage that compiles but is likely a mistake.
type Warning struct {
	File     string
	Pos, End Position
	// Rule is one of the Rule constants.
	Rule string
	// Msg is one sentence without a full stop.
	Msg        string
	SourceLine string

	caret int
}

// String returns the warning like an Error, with the rule's name behind the
// message.
func (w Warning) String() string {
	e := Error{File: w.File, Pos: w.Pos, End: w.End, Msg: w.Msg + " (" + w.Rule + ")", SourceLine: w.SourceLine, caret: w.caret}
	return e.Error()
}

// Lint returns the warnings about a file and its imports, by file and position.
// It is made for files that compile; of a file with errors it says what it can.
//
// A comment above a statement or on its line switches a rule off for it:
//
//	// pemba-ignore-warning: unused-relation
//
// spicedb-ignore-warning means the same. Several rules are separated by commas.
func Lint(f *File) []Warning {
	c := analyse(f, &errorList{}, nil)
	if c.tooLarge {
		return nil
	}
	l := &linter{c: c}
	l.findUsed()
	l.findPossible()
	l.findSelfSubtracted()
	for _, d := range c.sorted {
		for _, m := range d.members {
			l.member(d, m)
		}
	}
	// A partial's passage is seen once for each definition that uses it.
	sort.SliceStable(l.warnings, func(i, j int) bool {
		a, b := l.warnings[i], l.warnings[j]
		if a.File != b.File {
			return c.order[a.File] < c.order[b.File]
		}
		if a.Pos.Offset != b.Pos.Offset {
			return a.Pos.Offset < b.Pos.Offset
		}
		if a.Rule != b.Rule {
			return a.Rule < b.Rule
		}
		return a.Msg < b.Msg
	})
	return slices.Compact(l.warnings)
}

// linter is the state of one Lint.
type linter struct {
	c        *compiler
	warnings []Warning
	used     map[memberKey]bool
	possible map[memberKey]bool // what some tuples could give to somebody
	// selfSubtracted holds the names that subtract what leads back to them.
	selfSubtracted map[memberKey]bool
}

func (l *linter) warn(m *member, pos, end Position, rule, format string, args ...any) {
	var statement Member = m.permission
	if m.relation != nil {
		statement = m.relation
	}
	if ignores(statement.node(), rule) {
		return
	}
	w := Warning{File: m.file.Name, Pos: pos, End: end, Rule: rule, Msg: fmt.Sprintf(format, args...)}
	w.SourceLine, w.caret = sourceLine(m.file.Source, pos)
	l.warnings = append(l.warnings, w)
}

// ignores reports whether a comment of the statement switches the rule off.
func ignores(n *Node, rule string) bool {
	for _, c := range slices.Concat(n.Comments, n.Trailing) {
		for _, line := range strings.Split(c.Text, "\n") {
			for _, prefix := range []string{"pemba-ignore-warning:", "spicedb-ignore-warning:"} {
				_, rules, ok := strings.Cut(line, prefix)
				if !ok {
					continue
				}
				for _, r := range strings.Split(strings.TrimSuffix(rules, "*/"), ",") {
					if strings.TrimSpace(r) == rule {
						return true
					}
				}
			}
		}
	}
	return false
}

func (l *linter) member(d *definition, m *member) {
	name := m.name()
	typeName := d.out.Name[strings.LastIndexByte(d.out.Name, '/')+1:]
	if strings.HasPrefix(name.Text, typeName+"_") || strings.HasSuffix(name.Text, "_"+typeName) {
		l.warn(m, name.Pos, name.End, RuleRepeatedName, "%s `%s` repeats the name of its type `%s`", m.kind(), name.Text, d.out.Name)
	}
	if m.relation != nil && !l.used[memberKey{d.out.Name, name.Text}] {
		l.warn(m, name.Pos, name.End, RuleUnusedRelation, "no permission and no other relation refers to relation `%s`", name.Text)
	}
	if e := m.expr(); e != nil {
		l.expr(d, m, e)
		if l.selfSubtracted[memberKey{d.out.Name, name.Text}] {
			l.warn(m, name.Pos, name.End, RuleSelfReference,
				"%s `%s` is subtracted from itself through other objects; where these refer to one another in a circle, nobody has it", m.kind(), name.Text)
		}
	}
}

var operatorText = map[ExprOp]string{OpUnion: "+", OpIntersection: "&", OpExclusion: "-"}

func (l *linter) expr(d *definition, m *member, e *Expr) {
	for _, child := range e.Children {
		if len(child.Children) > 0 && !child.Parens && child.Op != e.Op {
			l.warn(m, child.Pos, child.End, RuleMixedOperators, "`%s` binds tighter than `%s` here; parentheses would show it",
				operatorText[child.Op], operatorText[e.Op])
		}
		l.expr(d, m, child)
	}
	if e.Op == OpArrow {
		l.arrow(d, m, e)
	}
}

func (l *linter) arrow(d *definition, m *member, e *Expr) {
	from := []*definition{d}
	for i := range len(e.Steps) - 1 {
		var next []*definition
		left, target := e.Steps[i].Name, e.Steps[i+1].Name
		last := i+2 == len(e.Steps)
		usersets, relations := "", ""
		possible := false
		for _, t := range from {
			r := t.out.Relation(left.Text)
			if r == nil {
				return // an error of the compiler's
			}
			for _, s := range r.Allowed {
				if s.Relation != "" && usersets == "" {
					usersets = s.Type + "#" + s.Relation
				}
				to := l.c.definitions[s.Type]
				found := to.byName[target.Text]
				if found == nil {
					continue
				}
				next = append(next, to)
				if found.relation != nil && last && relations == "" {
					relations = s.Type
				}
				possible = possible || l.possible[memberKey{s.Type, target.Text}]
			}
		}
		if usersets != "" {
			l.warn(m, left.Pos, left.End, RuleArrowSubjectRelation, "relation `%s` allows `%s`; the arrow goes to the object and ignores `#%s`",
				left.Text, usersets, usersets[strings.IndexByte(usersets, '#')+1:])
		}
		if relations != "" {
			l.warn(m, target.Pos, target.End, RuleArrowRelation, "the arrow's target `%s` is a relation of `%s`; a permission there would keep the types independent",
				target.Text, relations)
		}
		if len(next) == 0 {
			if reached, complete := l.c.reached(from, left.Text); complete {
				text := missingTarget(left, target, reached)
				if near := Nearest(target.Text, membersOf(reached)); near != "" {
					text += "; did you mean `" + near + "`?"
				}
				l.warn(m, target.Pos, target.End, RuleArrowUnreachable, "the arrow can never yield anybody: %s", text)
			}
			return
		}
		if last && !possible {
			l.warn(m, e.Pos, e.End, RuleArrowUnreachable, "the arrow can never yield anybody: `%s` is always empty", target.Text)
		}
		seen := map[*definition]bool{}
		from = slices.DeleteFunc(next, func(t *definition) bool {
			again := seen[t]
			seen[t] = true
			return again
		})
	}
}

// findUsed gathers the names that something refers to. What an arrow of any
// definition could reach counts.
func (l *linter) findUsed() {
	l.used = map[memberKey]bool{}
	l.each(func(d *Definition, name string, r Rewrite) {
		if relation := d.Relation(name); relation != nil {
			for _, s := range relation.Allowed {
				// A relation that allows its own usersets is not used by that.
				if s.Type != d.Name || s.Relation != name {
					l.used[memberKey{s.Type, s.Relation}] = true
				}
			}
		}
		references(d, r, false, func(target memberKey, _ bool) { l.used[target] = true })
		walkedRelations(r, func(relation string) { l.used[memberKey{d.Name, relation}] = true })
	})
}

// walkedRelations calls f with the relation of each arrow in a rewrite.
func walkedRelations(r Rewrite, f func(relation string)) {
	switch r := r.(type) {
	case Arrow:
		f(r.Relation)
	case Union:
		for _, c := range r.Children {
			walkedRelations(c, f)
		}
	case Intersection:
		for _, c := range r.Children {
			walkedRelations(c, f)
		}
	case Exclusion:
		walkedRelations(r.Base, f)
		walkedRelations(r.Subtracted, f)
	}
}

// findPossible finds the names that are not always empty: the least set that
// holds every relation that stores subjects and what follows from it.
func (l *linter) findPossible() {
	l.possible = map[memberKey]bool{}
	dependents := map[memberKey][]memberKey{}
	var queue []memberKey
	l.each(func(d *Definition, name string, r Rewrite) {
		key := memberKey{d.Name, name}
		queue = append(queue, key)
		references(d, r, false, func(target memberKey, _ bool) {
			dependents[target] = append(dependents[target], key)
		})
	})
	for len(queue) > 0 {
		key := queue[0]
		queue = queue[1:]
		d := l.c.definitions[key.definition].out
		if !l.possible[key] && l.canYield(d, key.member, d.Rewrite(key.member)) {
			l.possible[key] = true
			queue = append(queue, dependents[key]...)
		}
	}
}

// each calls f with the rewrite of every relation and permission.
func (l *linter) each(f func(d *Definition, name string, r Rewrite)) {
	for _, d := range l.c.sorted {
		for _, r := range d.out.Relations {
			f(d.out, r.Name, r.Rewrite)
		}
		for _, p := range slices.Concat(d.out.Permissions, d.out.Hidden) {
			f(d.out, p.Name, p.Rewrite)
		}
	}
}

func (l *linter) canYield(d *Definition, name string, r Rewrite) bool {
	switch r := r.(type) {
	case This:
		// A stored userset is a subject itself, even if it is empty.
		return len(d.Relation(name).Allowed) > 0
	case Self:
		return true
	case Computed:
		return l.possible[memberKey{d.Name, r.Name}]
	case Arrow:
		return slices.ContainsFunc(d.Relation(r.Relation).Allowed, func(s SubjectType) bool {
			return l.possible[memberKey{s.Type, r.Name}]
		})
	case Union:
		return slices.ContainsFunc(r.Children, func(c Rewrite) bool { return l.canYield(d, name, c) })
	case Intersection:
		return !slices.ContainsFunc(r.Children, func(c Rewrite) bool { return !l.canYield(d, name, c) })
	case Exclusion:
		return l.canYield(d, name, r.Base)
	}
	return false
}

// findSelfSubtracted finds the names whose expression subtracts what leads back to
// them. Names that lead to one another form the strongly connected components of
// the graph of references; Tarjan's algorithm numbers them.
func (l *linter) findSelfSubtracted() {
	l.selfSubtracted = map[memberKey]bool{}
	component := map[memberKey]int{}
	number := map[memberKey]int{} // the order of first visits, from 1
	var stack []memberKey
	var visit func(key memberKey) (low int)
	visit = func(key memberKey) int {
		number[key] = len(number) + 1
		low := number[key]
		stack = append(stack, key)
		d := l.c.definitions[key.definition].out
		references(d, d.Rewrite(key.member), false, func(target memberKey, _ bool) {
			switch {
			case l.c.definitions[target.definition].out.Rewrite(target.member) == nil:
			case number[target] == 0:
				low = min(low, visit(target))
			case component[target] == 0:
				low = min(low, number[target])
			}
		})
		if low == number[key] {
			for {
				top := stack[len(stack)-1]
				stack = stack[:len(stack)-1]
				component[top] = number[key]
				if top == key {
					break
				}
			}
		}
		return low
	}
	l.each(func(d *Definition, name string, _ Rewrite) {
		if key := (memberKey{d.Name, name}); number[key] == 0 {
			visit(key)
		}
	})
	l.each(func(d *Definition, name string, r Rewrite) {
		key := memberKey{d.Name, name}
		references(d, r, false, func(target memberKey, subtracted bool) {
			if subtracted && component[target] == component[key] {
				l.selfSubtracted[key] = true
			}
		})
	})
}

// references calls f with each name that a rewrite refers to, directly or through
// an arrow, and whether it is below the subtracted side of an exclusion.
func references(d *Definition, r Rewrite, subtracted bool, f func(key memberKey, subtracted bool)) {
	switch r := r.(type) {
	case Computed:
		f(memberKey{d.Name, r.Name}, subtracted)
	case Arrow:
		for _, s := range d.Relation(r.Relation).Allowed {
			f(memberKey{s.Type, r.Name}, subtracted)
		}
	case Union:
		for _, c := range r.Children {
			references(d, c, subtracted, f)
		}
	case Intersection:
		for _, c := range r.Children {
			references(d, c, subtracted, f)
		}
	case Exclusion:
		references(d, r.Base, subtracted, f)
		references(d, r.Subtracted, true, f)
	}
}
