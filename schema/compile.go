package schema

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Limits on what Compile accepts. A schema is compiled on every node inside the
// log's order, so its cost must be bounded by more than the size of its text:
// partials and chained arrows multiply.
const (
	// DefinitionsMax bounds the definitions and partials of a schema.
	DefinitionsMax = 10_000
	// MembersMax bounds the relations and permissions of one definition.
	MembersMax = 5_000
	// CaveatsMax bounds the caveats of a schema.
	CaveatsMax = 1_000
	// SizeMax bounds the size of a schema: its relations, permissions, subject
	// types and the nodes of its expressions, counted after partials are expanded.
	// Those that no definition uses are counted, too.
	SizeMax = 500_000
	// ChainMax bounds the names in a chain of arrows.
	ChainMax = 16
	// ArrowTypesMax bounds what the arrows of a schema lead to: the subject types of
	// the relations they walk, counted anew for each arrow. Compile does not ask for it.
	ArrowTypesMax = 1_000_000
	// ExpressionBytesMax bounds the CEL expressions of a schema together; one alone
	// has at most ExpressionCharsMax characters.
	ExpressionBytesMax = 500_000
)

// typecheckStepsMax bounds the work of checking the annotations of permissions.
const typecheckStepsMax = 50_000_000

// Compile checks a file with all that it imports and returns the schema. The error
// is of type Errors, all of them of kind TypeError or, for a caveat's expression,
// SyntaxError. The result depends on nothing but the file: not on the order of
// maps, the machine or the time. Compile is safe for concurrent use and does not
// change the file.
//
// A schema that was stored must not be refused later for what says nothing: a partial
// that no definition uses is not looked into, and an arrow may lead to a name that none
// of the types has which it leads to. It holds nobody.
func Compile(f *File) (*Schema, error) { return compile(f, nil) }

// Check is Compile for a file that somebody writes: it also refuses the mistakes of a
// Strictness, arrows that lead to more than ArrowTypesMax, and patterns that are more
// work than PatternWorkMax, or too large to be matched.
func Check(f *File) (*Schema, error) { return compile(f, &strict) }

// CheckWith is Check with another Strictness.
func CheckWith(f *File, s Strictness) (*Schema, error) { return compile(f, &s) }

// A Strictness says which mistakes Check refuses that change no answer. Its zero value
// refuses none of them: it is for schemas that were made for SpiceDB, which takes them.
type Strictness struct {
	// UnusedPartials refuses mistakes in partials that no definition uses.
	UnusedPartials bool
	// UnreachableArrows refuses arrows to a name that none of the types has which they
	// lead to: nearly always it is misspelt, and denies in silence. Where they are not
	// refused, Lint warns of them, with RuleArrowUnreachable.
	UnreachableArrows bool
}

// strict is the Strictness of Check.
var strict = Strictness{UnusedPartials: true, UnreachableArrows: true}

// compile judges a file as somebody writes it, or one that is stored if written is nil.
func compile(f *File, written *Strictness) (*Schema, error) {
	var errs errorList
	c := analyse(f, &errs, written)
	if !c.tooLarge {
		c.caveatPrograms()
	}
	if err := errs.err(c.order); err != nil {
		return nil, err
	}
	return c.schema(), nil
}

// typeErrors adds to the syntax errors of a file, and of all that it imports, the
// errors that Check would find whatever the parts that could not be read were
// meant to be.
func typeErrors(f *File, errs *errorList) {
	if errs.full() {
		return
	}
	if c := analyse(f, errs, &strict); !c.tooLarge {
		c.caveatPrograms()
	}
}

// analyse runs all of Compile but the compilation of CEL expressions. errs is
// empty, or holds the syntax errors of the files; written is as for compile.
func analyse(f *File, errs *errorList, written *Strictness) *compiler {
	c := &compiler{
		errs:        errs,
		bounded:     written != nil,
		given:       len(errs.errs),
		files:       f.files(),
		order:       map[string]int{},
		definitions: map[string]*definition{},
		partials:    map[string]*partial{},
		caveats:     map[string]*caveat{},
		patterns:    map[string]*pattern{},

		strayPartials: map[*DefinitionDecl]bool{},
	}
	if written != nil {
		c.strict = *written
	}
	for i, file := range c.files {
		c.order[file.Name] = i
		c.gaps.types.include(&file.gaps.types)
		c.gaps.partials.include(&file.gaps.partials)
		c.gaps.caveats.include(&file.gaps.caveats)
	}
	c.declare()
	c.expand()
	if c.tooLarge {
		return c
	}
	judged := append(c.sorted[:len(c.sorted):len(c.sorted)], c.apart...)
	for _, d := range judged {
		c.relations(d)
	}
	for _, d := range judged {
		c.rewrites(d)
	}
	if c.tooLarge {
		return c
	}
	for _, d := range judged {
		slices.SortFunc(d.out.Hidden, func(a, b *Permission) int { return cmp.Compare(a.Name, b.Name) })
		c.cycles(d)
	}
	c.wildcards(judged)
	c.annotations(judged)
	return c
}

// compiler is the state of one compilation.
type compiler struct {
	errs     *errorList
	given    int // the number of syntax errors in errs
	files    []*File
	order    map[string]int // of the files
	gaps     fileGaps       // what the syntax errors of all files leave open
	size     int
	tooLarge bool
	strict   Strictness
	// arrowTypes counts what ArrowTypesMax bounds, and patternWork what PatternWorkMax
	// does, if bounded.
	arrowTypes  int
	patternWork uint64
	bounded     bool
	patterns    map[string]*pattern // that the caveats spell out, by their texts

	definitions map[string]*definition
	sorted      []*definition // the same, by name
	// apart holds what is judged and is no part of the schema: the partials that no
	// definition uses, and definitions whose name could not be read.
	apart    []*definition
	partials map[string]*partial
	caveats  map[string]*caveat
	// strayPartials holds what strayPartial found: a partial may have many words, and
	// many definitions.
	strayPartials map[*DefinitionDecl]bool
}

// definition is a definition being compiled.
type definition struct {
	file    *File
	decl    *DefinitionDecl
	out     *Definition
	members []*member // in source order, partials expanded
	byName  map[string]*member
	index   int // in compiler.sorted; 0 if the definition is not there

	// gaps is what is open about the names of the members; of a partial that stands
	// for itself everything is, since what uses it may declare more.
	gaps gaps
	// unclear says that what was read may belong elsewhere: byName is empty, and only
	// what the members refer to outside of the definition is judged.
	unclear bool
	// apart says that the definition is in compiler.apart.
	apart bool
}

// member returns the named member if it may be used; missing says that there is
// none for sure.
func (d *definition) member(name string) (m *member, missing bool) {
	m = d.byName[name]
	usable, missing := d.gaps.known(name, m != nil)
	if !usable {
		m = nil
	}
	return m, missing
}

// definition returns the named definition if it may be used; missing says that
// there is none for sure.
func (c *compiler) definition(name string) (d *definition, missing bool) {
	d = c.definitions[name]
	usable, missing := c.gaps.types.known(name, d != nil)
	if !usable {
		d = nil
	}
	return d, missing
}

// member is a relation or a permission; exactly one pair of pointers is set.
type member struct {
	file          *File
	relation      *RelationDecl
	permission    *PermissionDecl
	outRelation   *Relation
	outPermission *Permission
	// unresolved says that a subject type of the relation is in error, so that
	// errors about its arrows would be echoes.
	unresolved bool
}

func (m *member) name() Name {
	if m.relation != nil {
		return m.relation.Name
	}
	return m.permission.Name
}

func (m *member) expr() *Expr {
	if m.relation != nil {
		return m.relation.Rewrite
	}
	return m.permission.Expr
}

func (m *member) kind() string {
	if m.relation != nil {
		return "relation"
	}
	return "permission"
}

type partial struct {
	file *File
	decl *DefinitionDecl
	// open says that the partial is being expanded, checked that it contains no
	// circle, used that its members are in a definition.
	open, checked, used bool
}

type caveat struct {
	file *File
	decl *CaveatDecl
	out  *Caveat
	// flawed says that the declaration is in error, so that the expression cannot be
	// judged.
	flawed bool
}

// grow counts n towards the size of the schema.
func (c *compiler) grow(file *File, at Name, n int) {
	c.size += n
	if c.size > SizeMax && !c.tooLarge {
		c.tooLarge = true
		c.errs.add(file, TypeError, at.Pos, at.End, "the schema is too large: it has more than %d relations, permissions, subject types and terms of expressions", SizeMax)
	}
}

// leads counts an arrow that leads to so many types, and reports false when that is
// too much to look into them.
func (c *compiler) leads(file *File, e *Expr, types int) bool {
	c.arrowTypes += types
	if !c.bounded || c.arrowTypes <= ArrowTypesMax {
		return true
	}
	if c.arrowTypes-types <= ArrowTypesMax {
		c.errs.add(file, TypeError, e.Pos, e.End,
			"the arrows of the schema lead to too many types: each leads to the subject types of the relation it walks, and together they may lead to %d; give the relations fewer subject types, or name what all arrows ask for once, in a type between", ArrowTypesMax)
	}
	return false
}

// declare gathers the names of definitions, partials and caveats.
func (c *compiler) declare() {
	count, expressions := 0, 0
	for _, file := range c.files {
		for _, item := range file.Items {
			switch item := item.(type) {
			case *Import:
				switch {
				case item.File != nil || item.circular:
				case c.given > 0:
					c.gaps.openAll()
				default:
					c.errs.add(file, TypeError, item.Pos, item.End, "the import of `%s` is not resolved: a schema must be complete before it is compiled", item.Path.Text)
				}
			case *DefinitionDecl:
				if count++; count > DefinitionsMax {
					c.tooLarge = true
					c.errs.add(file, TypeError, item.Name.Pos, item.Name.End, "the schema has more than %d definitions and partials", DefinitionsMax)
					return
				}
				c.declareDefinition(file, item)
			case *CaveatDecl:
				if len(c.caveats) >= CaveatsMax {
					c.tooLarge = true
					c.errs.add(file, TypeError, item.Name.Pos, item.Name.End, "the schema has more than %d caveats", CaveatsMax)
					return
				}
				if expressions += len(item.Body); expressions > ExpressionBytesMax {
					c.tooLarge = true
					c.errs.add(file, TypeError, item.Name.Pos, item.Name.End, "the expressions of the caveats have more than %d bytes together", ExpressionBytesMax)
					return
				}
				name := item.Name
				if other := c.caveats[name.Text]; other != nil {
					c.duplicate(file, name, "caveat", other.file, other.decl.Name)
					continue
				}
				c.caveats[name.Text] = &caveat{file: file, decl: item, flawed: !c.parameters(file, item) || item.flawed}
			}
		}
	}
	for i, name := range sortedKeys(c.definitions) {
		d := c.definitions[name]
		d.index = i
		c.sorted = append(c.sorted, d)
	}
}

func (c *compiler) declareDefinition(file *File, item *DefinitionDecl) {
	name := item.Name
	if item.headless {
		d := newDefinition(file, item)
		d.apart = true
		c.apart = append(c.apart, d)
		return
	}
	if item.Partial {
		if other := c.partials[name.Text]; other != nil {
			c.duplicate(file, name, "partial", other.file, other.decl.Name)
			return
		}
		c.partials[name.Text] = &partial{file: file, decl: item}
		return
	}
	if other := c.definitions[name.Text]; other != nil {
		c.duplicate(file, name, "definition", other.file, other.decl.Name)
		return
	}
	c.definitions[name.Text] = newDefinition(file, item)
}

func newDefinition(file *File, item *DefinitionDecl) *definition {
	return &definition{
		file: file, decl: item, byName: map[string]*member{},
		out: &Definition{
			Name: item.Name.Text, Doc: docOf(&item.Node),
			relations: map[string]*Relation{}, permissions: map[string]*Permission{},
		},
	}
}

func (c *compiler) duplicate(file *File, name Name, what string, otherFile *File, other Name) {
	place := fmt.Sprintf("line %d", other.Pos.Line)
	if otherFile != file {
		place = fmt.Sprintf("%s:%d", otherFile.Name, other.Pos.Line)
	}
	c.errs.add(file, TypeError, name.Pos, name.End, "%s `%s` is declared already at %s", what, name.Text, place)
}

// parameters checks the declarations of a caveat's parameters, and reports whether
// they are right.
func (c *compiler) parameters(file *File, decl *CaveatDecl) (ok bool) {
	ok = true
	fail := func(pos, end Position, format string, args ...any) reported {
		ok = false
		return c.errs.add(file, TypeError, pos, end, format, args...)
	}
	if len(decl.Parameters) == 0 {
		fail(decl.Name.Pos, decl.Name.End, "caveat `%s` has no parameters; it needs at least one", decl.Name.Text)
	}
	seen := map[string]bool{}
	for _, p := range decl.Parameters {
		c.grow(file, p.Name, 1)
		name := p.Name
		if seen[name.Text] {
			fail(name.Pos, name.End, "parameter `%s` is declared twice", name.Text)
		}
		seen[name.Text] = true
		if msg := checkParameterName(name.Text); msg != "" {
			fail(name.Pos, name.End, "%s", msg)
		}
		depth := 0
		for t := p.Type; t != nil; t = t.Element {
			depth++
			container := t.Name == "list" || t.Name == "map"
			switch {
			case !container && scalarTypes[t.Name] == nil:
				fail(t.Pos, t.End, "unknown parameter type `%s`; known are %s", t.Name, strings.Join(parameterTypeNames, ", ")).
					suggest(t.Name, func() []string { return parameterTypeNames })
			case container && t.Element == nil:
				fail(t.Pos, t.End, "`%s` needs the type of its elements: `%s<string>`", t.Name, t.Name)
			case !container && t.Element != nil:
				fail(t.Pos, t.End, "`%s` has no elements; only `list` and `map` have", t.Name)
			}
		}
		if depth > typeDepthMax {
			fail(p.Type.Pos, p.Type.End, "a parameter type may be nested at most %d deep", typeDepthMax)
		}
	}
	return ok
}

// expand puts the members of partials into the definitions.
func (c *compiler) expand() {
	for _, file := range c.files {
		for _, item := range file.Items {
			if decl, ok := item.(*DefinitionDecl); ok && decl.Partial {
				if p := c.partials[decl.Name.Text]; p != nil && p.decl == decl {
					c.partialCircles(p, nil)
				}
			}
		}
	}
	for _, d := range c.apart {
		c.expandInto(d, d.file, d.decl, 0)
	}
	for _, file := range c.files {
		for _, item := range file.Items {
			if decl, ok := item.(*DefinitionDecl); ok && !decl.Partial {
				if d := c.definitions[decl.Name.Text]; d != nil && d.decl == decl {
					c.expandInto(d, file, decl, 0)
				}
			}
			if c.tooLarge {
				return
			}
		}
	}
	if c.strict.UnusedPartials {
		c.unusedPartials()
	}
}

// unusedPartials expands the partials that no definition uses, each for itself, so
// that they are judged too. One that another of them uses is judged there.
func (c *compiler) unusedPartials() {
	inner := map[string]bool{}
	for _, p := range c.partials {
		for _, m := range p.decl.Members {
			if splat, ok := m.(*Splat); ok {
				inner[splat.Partial.Text] = true
			}
		}
	}
	// Those that are left after the outermost ones contain one another in a circle.
	for _, outermost := range [...]bool{true, false} {
		for _, file := range c.files {
			for _, item := range file.Items {
				decl, ok := item.(*DefinitionDecl)
				if !ok || !decl.Partial || decl.headless || outermost == inner[decl.Name.Text] {
					continue
				}
				p := c.partials[decl.Name.Text]
				if p == nil || p.decl != decl || p.used {
					continue
				}
				d := newDefinition(file, decl)
				d.apart, d.gaps.open = true, true
				c.apart = append(c.apart, d)
				p.open, p.used = true, true
				c.expandInto(d, file, decl, 0)
				p.open = false
				if c.tooLarge {
					return
				}
			}
		}
	}
}

// partialCircles refuses partials that contain one another in a circle. path
// names the partials around p.
func (c *compiler) partialCircles(p *partial, path []string) {
	if p.checked {
		return
	}
	p.open = true
	path = append(path, p.decl.Name.Text)
	for _, m := range p.decl.Members {
		splat, ok := m.(*Splat)
		if !ok {
			continue
		}
		name := splat.Partial
		inner := c.partial(p.file, name)
		switch {
		case inner == nil: // reported already, or not certain
		case inner.open:
			circle := append(slices.Clone(path[slices.Index(path, name.Text):]), name.Text)
			c.errs.add(p.file, TypeError, name.Pos, name.End, "partials contain one another in a circle: %s", strings.Join(circle, " -> "))
		default:
			c.partialCircles(inner, path)
		}
	}
	p.open = false
	p.checked = true
}

// partial returns the partial of the name, or reports that there is none. If that
// is not certain, it does neither.
func (c *compiler) partial(file *File, name Name) *partial {
	p := c.partials[name.Text]
	usable, missing := c.gaps.partials.known(name.Text, p != nil)
	if !usable {
		p = nil
	}
	if missing {
		err := c.errs.add(file, TypeError, name.Pos, name.End, "unknown partial `%s`", name.Text)
		if c.definitions[name.Text] != nil {
			err.explain(": it is a definition")
		} else {
			err.suggest(name.Text, func() []string { return sortedKeys(c.partials) })
		}
	}
	return p
}

// strayPartial reports whether a word of the declaration that belongs nowhere may be
// a partial.
func (c *compiler) strayPartial(file *File, decl *DefinitionDecl) bool {
	if len(decl.gaps.strays) == 0 {
		return false
	}
	found, ok := c.strayPartials[decl]
	if ok {
		return found
	}
	may := (file.flags|file.gaps.flags)&flagPartial != 0
	for word := range decl.gaps.strays {
		_, missing := c.gaps.partials.known(word, false)
		if c.partials[word] != nil || may && !missing {
			found = true
			break
		}
	}
	c.strayPartials[decl] = found
	return found
}

// expandInto adds the members of a declaration to d; depth is the number of
// partials around it.
func (c *compiler) expandInto(d *definition, file *File, decl *DefinitionDecl, depth int) {
	d.gaps.include(&decl.gaps)
	for name := range decl.gaps.declared {
		// `relation owned` may have been meant to be `...owned`.
		d.gaps.open = d.gaps.open || c.partials[name] != nil
	}
	d.gaps.open = d.gaps.open || c.strayPartial(file, decl)
	if decl.unclear && !d.unclear {
		// What was added before may be declared again.
		d.unclear, d.byName = true, map[string]*member{}
	}
	for _, m := range decl.Members {
		if c.tooLarge {
			return
		}
		switch m := m.(type) {
		case *Splat:
			c.grow(file, m.Partial, 1)
			p := c.partial(file, m.Partial)
			switch {
			case p == nil:
				// Reported already, or not certain; then it may bring any name.
				if _, missing := c.gaps.partials.known(m.Partial.Text, false); !missing {
					d.gaps.open = true
				}
			case p.open: // reported already
			case depth >= nestingMax:
				c.errs.add(file, TypeError, m.Partial.Pos, m.Partial.End, "partials are nested more than %d deep", nestingMax)
			default:
				p.open = true
				p.used = p.used || !d.unclear
				c.expandInto(d, p.file, p.decl, depth+1)
				p.open = false
			}
		case *RelationDecl:
			c.grow(file, m.Name, 1+len(m.Allowed))
			c.addMember(d, &member{file: file, relation: m})
		case *PermissionDecl:
			c.grow(file, m.Name, 1)
			c.addMember(d, &member{file: file, permission: m})
		}
	}
}

func (c *compiler) addMember(d *definition, m *member) {
	name := m.name()
	if d.unclear {
		d.members = append(d.members, m)
		return
	}
	if other := d.byName[name.Text]; other != nil {
		if d.gaps.declares(name.Text) {
			return
		}
		place := fmt.Sprintf("line %d", other.name().Pos.Line)
		if other.file != m.file {
			place = fmt.Sprintf("%s:%d", other.file.Name, other.name().Pos.Line)
		}
		c.errs.add(m.file, TypeError, name.Pos, name.End, "`%s` has a %s `%s` already, at %s", d.out.Name, other.kind(), name.Text, place)
		return
	}
	if len(d.members) == MembersMax {
		c.errs.add(m.file, TypeError, name.Pos, name.End, "`%s` has more than %d relations and permissions", d.out.Name, MembersMax)
		return
	}
	d.byName[name.Text] = m
	d.members = append(d.members, m)
}

// relations compiles the subject types of the relations of d.
func (c *compiler) relations(d *definition) {
	for _, m := range d.members {
		if m.permission != nil {
			m.outPermission = &Permission{Name: m.permission.Name.Text, Doc: docOf(&m.permission.Node)}
			if d.unclear {
				continue
			}
			d.out.Permissions = append(d.out.Permissions, m.outPermission)
			d.out.permissions[m.outPermission.Name] = m.outPermission
			continue
		}
		r := &Relation{Name: m.relation.Name.Text, Doc: docOf(&m.relation.Node)}
		seen := map[SubjectType]bool{}
		for _, s := range m.relation.Allowed {
			st, ok := c.subjectType(m.file, s)
			if !ok || s.flawed {
				m.unresolved = true
				continue
			}
			if seen[st] {
				c.errs.add(m.file, TypeError, s.Pos, s.End, "`%s` is allowed twice on relation `%s`", st, r.Name)
				continue
			}
			seen[st] = true
			r.Allowed = append(r.Allowed, st)
		}
		m.outRelation = r
		if d.unclear {
			continue
		}
		d.out.Relations = append(d.out.Relations, r)
		d.out.relations[r.Name] = r
	}
}

func (c *compiler) subjectType(file *File, s *SubjectDecl) (st SubjectType, ok bool) {
	ok = true
	st = SubjectType{Type: s.Type.Text, Relation: s.Relation.Text, Wildcard: s.Wildcard, Caveat: s.Caveat.Text, Expiration: s.Expiration}
	t, missing := c.definition(s.Type.Text)
	switch {
	case missing:
		ok = false
		err := c.errs.add(file, TypeError, s.Type.Pos, s.Type.End, "unknown type `%s`", s.Type.Text)
		if c.partials[s.Type.Text] != nil {
			err.explain(": it is a partial, not a definition")
		} else {
			err.suggest(s.Type.Text, c.types)
		}
	case t == nil:
		ok = false
	case st.Relation != "":
		var relation *member
		if relation, missing = t.member(st.Relation); relation == nil {
			ok = false
		}
		if missing {
			c.errs.add(file, TypeError, s.Relation.Pos, s.Relation.End, "type `%s` has no relation or permission `%s`",
				st.Type, st.Relation).suggest(st.Relation, t.names)
		}
	}
	if st.Caveat == "" {
		return st, ok
	}
	usable, missing := c.gaps.caveats.known(st.Caveat, c.caveats[st.Caveat] != nil)
	ok = ok && usable
	if missing && (st.Caveat != "expiration" || s.Caveat.Quoted || file.gaps.flags&flagExpiration == 0) {
		err := c.errs.add(file, TypeError, s.Caveat.Pos, s.Caveat.End, "unknown caveat `%s`", st.Caveat)
		if st.Caveat == "expiration" && !s.Caveat.Quoted {
			err.explain("; for an expiration write `use expiration` at the top of the file")
		} else {
			err.suggest(st.Caveat, func() []string { return sortedKeys(c.caveats) })
		}
	}
	return st, ok
}

// types returns the names of all definitions.
func (c *compiler) types() []string {
	names := make([]string, len(c.sorted))
	for i, d := range c.sorted {
		names[i] = d.out.Name
	}
	return names
}

// names returns the names of the relations and permissions.
func (d *definition) names() []string {
	names := make([]string, len(d.members))
	for i, m := range d.members {
		names[i] = m.name().Text
	}
	return names
}

// relationNames returns the names of the relations.
func (d *definition) relationNames() []string {
	var names []string
	for _, m := range d.members {
		if m.relation != nil {
			names = append(names, m.name().Text)
		}
	}
	return names
}

// rewrites compiles the expressions of d.
func (c *compiler) rewrites(d *definition) {
	for _, m := range d.members {
		switch {
		case c.tooLarge:
			return
		case m.permission != nil:
			m.outPermission.Rewrite = c.rewrite(d, m, m.permission.Expr)
		case m.relation.Rewrite == nil:
			m.outRelation.Rewrite = This{}
		default:
			m.outRelation.Rewrite = c.rewrite(d, m, m.relation.Rewrite)
			if e := m.relation.Rewrite; m.file.flags&flagRewrite != 0 && !mayContain(e, OpThis) {
				c.errs.add(m.file, TypeError, e.Pos, e.End, "the expression of relation `%s` must contain `this`, the subjects stored on it; without `this` it is a permission", m.relation.Name.Text)
			}
		}
	}
}

func mayContain(e *Expr, op ExprOp) bool {
	if e.Op == op || e.flawed {
		return true
	}
	return slices.ContainsFunc(e.Children, func(child *Expr) bool { return mayContain(child, op) })
}

// rewrite compiles one expression. What is in error becomes Nil.
func (c *compiler) rewrite(d *definition, m *member, e *Expr) Rewrite {
	c.grow(m.file, Name{Pos: e.Pos, End: e.End}, 1)
	if e.flawed {
		return Nil{}
	}
	switch e.Op {
	case OpNil:
		return Nil{}
	case OpSelf:
		return Self{}
	case OpThis:
		if m.relation == nil {
			c.errs.add(m.file, TypeError, e.Pos, e.End, "`this` may only stand in the expression of a relation: a permission stores no subjects")
			return Nil{}
		}
		return This{}
	case OpName:
		return c.computed(d, m, e.Name)
	case OpArrow:
		return c.arrow(d, m, e)
	}
	if e.Op == OpExclusion && len(e.Children) > nestingMax {
		// Each exclusion nests in the next, and consumers recurse.
		c.errs.add(m.file, TypeError, e.Pos, e.End, "an expression may have at most %d exclusions in a row", nestingMax-1)
		return Nil{}
	}
	children := make([]Rewrite, len(e.Children))
	for i, child := range e.Children {
		children[i] = c.rewrite(d, m, child)
	}
	switch e.Op {
	case OpUnion:
		return Union{Children: children}
	case OpIntersection:
		return Intersection{Children: children}
	}
	out := children[0]
	for _, child := range children[1:] {
		out = Exclusion{Base: out, Subtracted: child}
	}
	return out
}

func (c *compiler) computed(d *definition, m *member, name Name) Rewrite {
	found, missing := d.member(name.Text)
	if found != nil {
		return Computed{Name: name.Text}
	}
	if !missing || mayBeWord(m.file, name) {
		return Nil{}
	}
	err := c.errs.add(m.file, TypeError, name.Pos, name.End, "`%s` has no relation or permission `%s`", d.out.Name, name.Text)
	switch {
	case c.dashed(d, m.file, name, err):
	case name.Text == "self" && !name.Quoted:
		err.explain("; to mean the object itself write `use self` at the top of the file")
	case name.Text == "this" && !name.Quoted:
		err.explain("; to mean the stored subjects write `use rewrite` at the top of the file")
	default:
		err.suggest(name.Text, d.names)
	}
	return Nil{}
}

// mayBeWord reports whether the name may be a word of a feature, and no name,
// because a use line of the file could not be read.
func mayBeWord(file *File, name Name) bool {
	switch {
	case name.Quoted:
		return false
	case name.Text == "self":
		return file.gaps.flags&flagSelf != 0
	case name.Text == "this":
		return file.gaps.flags&flagRewrite != 0
	}
	return false
}

// dashed explains the error when the name is the beginning of a name with a dash,
// which must be quoted in expressions.
func (c *compiler) dashed(d *definition, file *File, name Name, err reported) bool {
	for _, other := range d.names() {
		if strings.HasPrefix(other, name.Text+"-") && strings.HasPrefix(file.Source[min(name.Pos.Offset, len(file.Source)):], other) {
			err.explain("; in an expression a dash is an exclusion, and a name with one is written in quotes")
			err.suggestExactly(`"` + other + `"`)
			return true
		}
	}
	return false
}

// arrow compiles a chain of arrows: the first becomes the Arrow, each further one
// a hidden permission on the types that it starts from.
func (c *compiler) arrow(d *definition, m *member, e *Expr) Rewrite {
	if len(e.Steps) > ChainMax {
		c.errs.add(m.file, TypeError, e.Pos, e.End, "a chain of arrows may have at most %d names", ChainMax)
		return Nil{}
	}
	chain := make([]link, len(e.Steps))
	for i, s := range e.Steps {
		chain[i] = link{name: s.Name.Text, all: s.All}
	}
	// from holds the definitions whose relation the next arrow walks; if not sure, it
	// may lack some.
	from, sure := []*definition{d}, true
	for i := range len(chain) - 1 {
		for _, t := range from {
			if !c.leftOfArrow(t, m, e.Steps[i].Name, t == d && i == 0) {
				return Nil{}
			}
			if i > 0 && !d.apart {
				c.hide(t, m, e, chain[i:])
			}
		}
		types := 0
		for _, t := range from {
			types += len(t.byName[chain[i].name].outRelation.Allowed)
		}
		if !c.leads(m.file, e, types) {
			return Nil{}
		}
		reached, complete := c.reached(from, chain[i].name)
		sure = sure && complete
		target := e.Steps[i+1].Name
		var next []*definition
		for _, t := range reached {
			found, missing := t.member(target.Text)
			sure = sure && (found != nil || missing)
			if found != nil {
				next = append(next, t)
			}
		}
		if len(next) == 0 && !sure {
			return Nil{}
		}
		if len(next) == 0 && c.strict.UnreachableArrows {
			c.errs.add(m.file, TypeError, target.Pos, target.End, "%s", missingTarget(e.Steps[i].Name, target, reached)).
				suggest(target.Text, func() []string { return membersOf(reached) })
			return Nil{}
		}
		// With nothing to start from, nothing follows: the arrow holds nobody.
		from = next
	}
	return Arrow{Relation: chain[0].name, Name: chainText(chain[1:], nil), All: chain[1].all}
}

// leftOfArrow checks that the name is a relation of d that arrows can walk. own
// says that the arrow stands in d itself.
func (c *compiler) leftOfArrow(d *definition, m *member, name Name, own bool) bool {
	left, missing := d.member(name.Text)
	switch {
	case left == nil && (!missing || mayBeWord(m.file, name)):
		return false
	case left == nil && own:
		err := c.errs.add(m.file, TypeError, name.Pos, name.End, "`%s` has no relation `%s`", d.out.Name, name.Text)
		if !c.dashed(d, m.file, name, err) {
			err.suggest(name.Text, d.relationNames)
		}
		return false
	case left.permission != nil:
		c.errs.add(m.file, TypeError, name.Pos, name.End, "`%s` is a permission of `%s`; left of an arrow a relation is needed", name.Text, d.out.Name)
		return false
	}
	for _, s := range left.outRelation.Allowed {
		if s.Wildcard {
			c.errs.add(m.file, TypeError, name.Pos, name.End, "relation `%s` of `%s` allows the wildcard `%s:*`, which an arrow cannot follow", name.Text, d.out.Name, s.Type)
			return false
		}
	}
	return true
}

// reached returns the types on the subject's side of the relation in each of the
// definitions, and whether all of them are known.
func (c *compiler) reached(from []*definition, relation string) (types []*definition, complete bool) {
	complete = true
	seen := map[*definition]bool{}
	for _, d := range from {
		m := d.byName[relation]
		complete = complete && !m.unresolved
		for _, s := range m.outRelation.Allowed {
			if t := c.definitions[s.Type]; !seen[t] {
				seen[t] = true
				types = append(types, t)
			}
		}
	}
	return types, complete
}

// missingTarget says that none of the types which a relation leads to has a name.
func missingTarget(relation, target Name, types []*definition) string {
	var names []string
	for i, t := range types {
		if i < 5 {
			names = append(names, "`"+t.out.Name+"`")
		} else if i == 5 {
			names = append(names, "...")
		}
	}
	if len(types) > 1 {
		return fmt.Sprintf("`%s` leads to %s, none of which has a relation or permission `%s`", relation.Text, strings.Join(names, ", "), target.Text)
	}
	return fmt.Sprintf("`%s` leads to %s, which has no relation or permission `%s`", relation.Text, strings.Join(names, ""), target.Text)
}

// membersOf returns the names of all relations and permissions of some types.
func membersOf(types []*definition) []string {
	var names []string
	for _, t := range types {
		names = append(names, t.names()...)
	}
	return names
}

// hide gives d the hidden permission for the rest of a chain.
func (c *compiler) hide(d *definition, m *member, e *Expr, chain []link) {
	name := chainText(chain, nil)
	if d.out.permissions[name] != nil {
		return
	}
	c.grow(m.file, Name{Pos: e.Pos, End: e.End}, 2)
	p := &Permission{Name: name, Rewrite: Arrow{Relation: chain[0].name, Name: chainText(chain[1:], nil), All: chain[1].all}}
	d.out.Hidden = append(d.out.Hidden, p)
	d.out.permissions[name] = p
}

// cycles refuses names of d that refer to themselves through names alone: such a
// question would never end, whatever the tuples are.
func (c *compiler) cycles(d *definition) {
	done := make(map[*member]bool, len(d.members))
	onPath := map[*member]int{} // the place in path, plus one
	var path []*member
	var visit func(m *member)
	visit = func(m *member) {
		if done[m] {
			return
		}
		if i := onPath[m]; i > 0 {
			var names []string
			for _, p := range append(slices.Clone(path[i-1:]), m) {
				names = append(names, p.name().Text)
			}
			if len(names) > 10 {
				names = append(append(names[:5:5], "..."), names[len(names)-2:]...)
			}
			name := m.name()
			c.errs.add(m.file, TypeError, name.Pos, name.End, "%s `%s` refers to itself without end: %s", m.kind(), name.Text, strings.Join(names, " -> "))
			return
		}
		path = append(path, m)
		onPath[m] = len(path)
		eachName(m.expr(), func(name string) {
			if next, _ := d.member(name); next != nil && next.expr() != nil {
				visit(next)
			}
		})
		path = path[:len(path)-1]
		delete(onPath, m)
		done[m] = true
	}
	for _, m := range d.members {
		visit(m)
	}
}

// eachName calls f with the plain names of an expression, which may be nil.
func eachName(e *Expr, f func(name string)) {
	if e == nil {
		return
	}
	if e.Op == OpName {
		f(e.Name.Text)
	}
	for _, child := range e.Children {
		eachName(child, f)
	}
}

// wildcards refuses usersets that include a wildcard, in files that do not use
// the feature for it.
func (c *compiler) wildcards(judged []*definition) {
	all := make([]*Definition, len(c.sorted))
	for i, d := range c.sorted {
		all[i] = d.out
	}
	open := wildcardRelations(all)
	for _, d := range judged {
		for _, m := range d.members {
			if m.relation == nil || (m.file.flags|m.file.gaps.flags)&flagWildcards != 0 {
				continue
			}
			for _, s := range m.relation.Allowed {
				if t, _ := c.definition(s.Type.Text); t == nil {
					continue
				} else if used, _ := t.member(s.Relation.Text); used == nil {
					continue
				}
				if origin, ok := open[memberKey{s.Type.Text, s.Relation.Text}]; ok {
					through := ""
					if origin != (memberKey{s.Type.Text, s.Relation.Text}) {
						through = fmt.Sprintf(" through `%s#%s`", origin.definition, origin.member)
					}
					c.errs.add(m.file, TypeError, s.Pos, s.End, "`%s#%s` includes a wildcard%s; a userset with a wildcard may only be allowed after `use wildcards`",
						s.Type.Text, s.Relation.Text, through)
				}
			}
		}
	}
}

// A memberKey names a relation or permission of a type.
type memberKey struct{ definition, member string }

// wildcardRelations returns the relations that allow a wildcard, directly or
// through relations that they allow as usersets, each with the relation where
// the wildcard stands. Permissions are not followed.
func wildcardRelations(definitions []*Definition) map[memberKey]memberKey {
	usedBy := map[memberKey][]memberKey{}
	origin := map[memberKey]memberKey{}
	var queue []memberKey
	for _, d := range definitions {
		for _, r := range d.Relations {
			key := memberKey{d.Name, r.Name}
			for _, s := range r.Allowed {
				if s.Wildcard && origin[key] == (memberKey{}) {
					origin[key] = key
					queue = append(queue, key)
				}
				if s.Relation != "" {
					used := memberKey{s.Type, s.Relation}
					usedBy[used] = append(usedBy[used], key)
				}
			}
		}
	}
	for len(queue) > 0 {
		key := queue[0]
		queue = queue[1:]
		for _, user := range usedBy[key] {
			if origin[user] == (memberKey{}) {
				origin[user] = origin[key]
				queue = append(queue, user)
			}
		}
	}
	return origin
}

// annotations checks the types that permissions are annotated with.
func (c *compiler) annotations(judged []*definition) {
	var annotated []*typeNode
	t := &typechecker{c: c, nodes: map[memberKey]*typeNode{}, words: (len(c.sorted) + 63) / 64}
	for _, d := range judged {
		for _, m := range d.members {
			if m.permission == nil || m.file.flags&flagTypechecking == 0 || len(m.permission.Annotation) == 0 {
				continue
			}
			ok := true
			seen := map[string]bool{}
			for _, a := range m.permission.Annotation {
				t, missing := c.definition(a.Text)
				ok = ok && t != nil
				if missing {
					c.errs.add(m.file, TypeError, a.Pos, a.End, "unknown type `%s`", a.Text).suggest(a.Text, c.types)
				} else if seen[a.Text] {
					c.errs.add(m.file, TypeError, a.Pos, a.End, "type `%s` stands here twice", a.Text)
				}
				seen[a.Text] = true
				m.outPermission.Annotation = append(m.outPermission.Annotation, a.Text)
			}
			// In a schema with other errors of meaning, this check would only echo them.
			// What a syntax error hides can add to the types, and not take any away.
			if ok && !d.unclear && !d.apart && len(c.errs.errs) == c.given {
				n := t.node(d, m.outPermission.Name)
				n.annotated = m
				annotated = append(annotated, n)
			}
		}
	}
	if len(annotated) == 0 {
		return
	}
	if !t.solve() {
		m := annotated[0].annotated
		c.errs.add(m.file, TypeError, m.name().Pos, m.name().End, "the schema is too large for its type annotations to be checked")
		return
	}
	for _, n := range annotated {
		m := n.annotated
		var extra []string
		for i, d := range c.sorted {
			if n.types[i/64]&(1<<(i%64)) != 0 && !slices.Contains(m.outPermission.Annotation, d.out.Name) {
				extra = append(extra, "`"+d.out.Name+"`")
			}
		}
		if len(extra) > 0 {
			name := m.name()
			c.errs.add(m.file, TypeError, name.Pos, name.End, "permission `%s` can yield %s, which its annotation does not name", name.Text, strings.Join(extra, ", "))
		}
	}
}

// typechecker finds the types of subjects that relations and permissions can
// yield, as the least solution of one equation per name.
type typechecker struct {
	c     *compiler
	nodes map[memberKey]*typeNode
	order []*typeNode
	words int
	steps int
}

type typeNode struct {
	d         *definition
	name      string
	types     []uint64 // a bit for each of compiler.sorted
	annotated *member
}

func (t *typechecker) node(d *definition, name string) *typeNode {
	key := memberKey{d.out.Name, name}
	n := t.nodes[key]
	if n == nil {
		n = &typeNode{d: d, name: name, types: make([]uint64, t.words)}
		t.steps += t.words
		t.nodes[key] = n
		t.order = append(t.order, n)
	}
	return n
}

// solve evaluates the equations until nothing changes. It gives up, and returns
// false, when that takes too long.
func (t *typechecker) solve() bool {
	for changed := true; changed; {
		changed = false
		// The order grows while names are reached for the first time.
		for i := 0; i < len(t.order); i++ {
			n := t.order[i]
			types := t.eval(n.d, n.name, n.d.out.Rewrite(n.name))
			if t.steps > typecheckStepsMax {
				return false
			}
			if !slices.Equal(types, n.types) {
				n.types = types
				changed = true
			}
		}
	}
	return true
}

func (t *typechecker) eval(d *definition, name string, r Rewrite) []uint64 {
	out := make([]uint64, t.words)
	t.steps += t.words + 1
	if t.steps > typecheckStepsMax {
		return out
	}
	join := func(types []uint64) {
		t.steps += t.words
		for i, w := range types {
			out[i] |= w
		}
	}
	switch r := r.(type) {
	case This:
		for _, s := range d.out.Relation(name).Allowed {
			subject := t.c.definitions[s.Type]
			if s.Relation == "" {
				out[subject.index/64] |= 1 << (subject.index % 64)
			} else {
				join(t.node(subject, s.Relation).types)
			}
		}
	case Self:
		out[d.index/64] |= 1 << (d.index % 64)
	case Computed:
		join(t.node(d, r.Name).types)
	case Arrow:
		for _, s := range d.out.Relation(r.Relation).Allowed {
			if subject := t.c.definitions[s.Type]; subject.out.Rewrite(r.Name) != nil {
				join(t.node(subject, r.Name).types)
			}
		}
	case Union:
		for _, child := range r.Children {
			join(t.eval(d, name, child))
		}
	case Intersection:
		copy(out, t.eval(d, name, r.Children[0]))
		for _, child := range r.Children[1:] {
			for i, w := range t.eval(d, name, child) {
				out[i] &= w
			}
		}
	case Exclusion:
		return t.eval(d, name, r.Base)
	}
	return out
}

// caveatPrograms compiles the expressions of all caveats that are declared without
// errors.
func (c *compiler) caveatPrograms() {
	for _, name := range sortedKeys(c.caveats) {
		if cv := c.caveats[name]; !cv.flawed {
			cv.out = c.compileCaveat(cv.file, cv.decl)
		}
	}
}

// schema returns the result of a compilation without errors.
func (c *compiler) schema() *Schema {
	s := &Schema{
		definitions: make(map[string]*Definition, len(c.definitions)),
		caveats:     make(map[string]*Caveat, len(c.caveats)),
		order:       make(map[string][]string, len(c.definitions)),
		anyArrows:   map[memberKey][]uint16{},
	}
	for _, d := range c.sorted {
		for _, m := range d.members {
			if arrows := anyArrows(m.expr(), nil); slices.ContainsFunc(arrows, func(steps uint16) bool { return steps != 0 }) {
				s.anyArrows[memberKey{d.out.Name, m.name().Text}] = arrows
			}
		}
		s.Definitions = append(s.Definitions, d.out)
		s.definitions[d.out.Name] = d.out
		s.order[d.out.Name] = d.names()
	}
	for _, name := range sortedKeys(c.caveats) {
		cv := c.caveats[name].out
		s.Caveats = append(s.Caveats, cv)
		s.caveats[name] = cv
	}
	return s
}

// anyArrows adds the arrows of an expression, which may be nil, as Schema.anyArrows
// has them.
func anyArrows(e *Expr, arrows []uint16) []uint16 {
	if e == nil {
		return arrows
	}
	if e.Op == OpArrow {
		var steps uint16 // An arrow that was compiled has at most ChainMax names.
		for i, s := range e.Steps {
			if s.Any {
				steps |= 1 << i
			}
		}
		return append(arrows, steps)
	}
	for _, child := range e.Children {
		arrows = anyArrows(child, arrows)
	}
	return arrows
}

// docOf returns the comments of a statement as they are kept in the schema.
func docOf(n *Node) string {
	var lines []string
	for _, c := range n.Comments {
		lines = append(lines, c.Text)
	}
	for _, c := range n.Trailing {
		lines = append(lines, c.Text)
	}
	return strings.Join(lines, "\n")
}

// String returns the subject type in source form: "group#member with c".
func (s SubjectType) String() string { return s.text(flagExpiration) }

func (s SubjectType) text(flags flag) string {
	text := nameText(s.Type, false, flags)
	switch {
	case s.Wildcard:
		text += ":*"
	case s.Relation != "":
		text += "#" + nameText(s.Relation, false, flags)
	}
	switch {
	case s.Caveat != "" && s.Expiration:
		text += " with " + nameText(s.Caveat, false, flags) + " and expiration"
	case s.Caveat != "":
		text += " with " + nameText(s.Caveat, false, flags)
	case s.Expiration:
		text += " with expiration"
	}
	return text
}
