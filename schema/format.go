package schema

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Format returns the text of a file in its canonical layout: tabs, one empty line
// between top-level statements, at most one between the members of a definition,
// blanks around operators. It keeps the order of the source and all comments;
// comments inside a statement move above it. Of parentheses it keeps those that
// group, also where precedence does not need them, because mixed operators read
// badly without. Imports stay as they are.
//
// The text parses to the same schema, and formatting it again changes nothing.
func Format(f *File) string {
	p := &printer{flags: f.flags}
	for i, item := range f.Items {
		if i > 0 && !together(f.Items[i-1], item) {
			p.line("")
		}
		p.item(item)
	}
	if len(f.Tail) > 0 && len(f.Items) > 0 {
		p.line("")
	}
	p.comments(f.Tail)
	return p.String()
}

// together reports whether no empty line stands between two statements.
func together(a, b Item) bool {
	switch a.(type) {
	case *Use:
		_, ok := b.(*Use)
		return ok
	case *Import:
		_, ok := b.(*Import)
		return ok
	}
	return false
}

// printer writes the text of schemas.
type printer struct {
	strings.Builder
	flags  flag
	indent string
	// least leaves out parentheses that change nothing.
	least bool
	// anyArrows are those of the expression that is written, as Schema.anyArrows has
	// them; nil where no arrow is spelt with .any().
	anyArrows []uint16
}

// line writes the lines of text at the current indentation.
func (p *printer) line(text string) {
	for _, l := range strings.Split(text, "\n") {
		if l != "" {
			p.WriteString(p.indent + l)
		}
		p.WriteByte('\n')
	}
}

func (p *printer) name(n Name) string { return nameText(n.Text, false, p.flags) }

// comments writes comments that stand alone, with the empty lines behind them,
// except behind the last.
func (p *printer) comments(comments []Comment) {
	for i, c := range comments {
		p.line(c.Text)
		if c.BlankAfter && i+1 < len(comments) {
			p.line("")
		}
	}
}

// statement writes a statement with its comments.
func (p *printer) statement(n *Node, text string) {
	p.head(n)
	p.line(text + trailing(n))
}

// head writes the comments before a statement.
func (p *printer) head(n *Node) {
	p.comments(n.Comments)
	if k := len(n.Comments); k > 0 && n.Comments[k-1].BlankAfter {
		p.line("")
	}
}

func trailing(n *Node) string {
	var b strings.Builder
	for _, c := range n.Trailing {
		b.WriteString(" " + c.Text)
	}
	return b.String()
}

func (p *printer) item(item Item) {
	switch item := item.(type) {
	case *Use:
		p.statement(&item.Node, "use "+item.Flag.Text)
	case *Import:
		p.statement(&item.Node, `import "`+item.Path.Text+`"`)
	case *CaveatDecl:
		params := make([]string, len(item.Parameters))
		for i, param := range item.Parameters {
			params[i] = param.Name.Text + " " + param.Type.String()
		}
		p.head(&item.Node)
		expression, verbatim := canonicalBody(item.Body)
		p.caveat(p.name(item.Name), params, expression, verbatim, trailing(&item.Node))
	case *DefinitionDecl:
		p.head(&item.Node)
		word := "definition "
		if item.Partial {
			word = "partial "
		}
		if len(item.Members) == 0 && len(item.Tail) == 0 {
			p.line(word + p.name(item.Name) + " {}" + trailing(&item.Node))
			return
		}
		p.line(word + p.name(item.Name) + " {")
		p.indent = "\t"
		for i, m := range item.Members {
			if i > 0 && m.node().BlankBefore {
				p.line("")
			}
			p.member(m)
		}
		if item.TailBlank && len(item.Members) > 0 && len(item.Tail) > 0 {
			p.line("")
		}
		p.comments(item.Tail)
		p.indent = ""
		p.line("}" + trailing(&item.Node))
	}
}

func (p *printer) member(m Member) {
	switch m := m.(type) {
	case *Splat:
		p.statement(&m.Node, "..."+p.name(m.Partial))
	case *RelationDecl:
		subjects := make([]string, len(m.Allowed))
		for i, s := range m.Allowed {
			st := SubjectType{Type: s.Type.Text, Relation: s.Relation.Text, Wildcard: s.Wildcard, Caveat: s.Caveat.Text, Expiration: s.Expiration}
			subjects[i] = st.text(p.flags)
		}
		text := "relation " + p.name(m.Name) + ": " + strings.Join(subjects, " | ")
		if m.Rewrite != nil {
			text += " = " + p.expr(m.Rewrite)
		}
		p.statement(&m.Node, text)
	case *PermissionDecl:
		text := "permission " + p.name(m.Name)
		for i, a := range m.Annotation {
			if i == 0 {
				text += ": "
			} else {
				text += " | "
			}
			text += p.name(a)
		}
		p.statement(&m.Node, text+" = "+p.expr(m.Expr))
	}
}

// expr returns the text of an expression without parentheses around the whole.
func (p *printer) expr(e *Expr) string {
	var b strings.Builder
	p.writeExpr(&b, e)
	return b.String()
}

func (p *printer) writeExpr(b *strings.Builder, e *Expr) {
	operator := ""
	switch e.Op {
	case OpName:
		b.WriteString(nameText(e.Name.Text, true, p.flags))
	case OpNil:
		b.WriteString("nil")
	case OpSelf:
		b.WriteString("self")
	case OpThis:
		b.WriteString("this")
	case OpArrow:
		for i, s := range e.Steps {
			name := nameText(s.Name.Text, true, p.flags)
			switch {
			case i == 0:
				b.WriteString(name)
			case s.All:
				b.WriteString(".all(" + name + ")")
			case s.Any:
				b.WriteString(".any(" + name + ")")
			default:
				b.WriteString("->" + name)
			}
		}
	case OpUnion:
		operator = " + "
	case OpIntersection:
		operator = " & "
	case OpExclusion:
		operator = " - "
	}
	for i, child := range e.Children {
		if i > 0 {
			b.WriteString(operator)
		}
		// An exclusion in front of an exclusion is the same with and without.
		group := child.Parens && len(child.Children) > 0 && (i > 0 || e.Op != OpExclusion || child.Op != OpExclusion)
		if group {
			b.WriteByte('(')
		}
		p.writeExpr(b, child)
		if group {
			b.WriteByte(')')
		}
	}
}

// caveat writes a caveat without its comments.
func (p *printer) caveat(name string, params []string, expression string, verbatim bool, trailing string) {
	p.line("caveat " + name + "(" + strings.Join(params, ", ") + ") {")
	p.indent = "\t"
	switch {
	case expression == "":
	case verbatim:
		p.WriteString("\t" + expression + "\n")
	default:
		p.line(expression)
	}
	p.indent = ""
	p.line("}" + trailing)
}

// Print returns the canonical text of a schema: the use lines that it needs,
// then the caveats and the definitions, each sorted by name, with their members
// in the order of the source, relations first, and with the parentheses of
// RewriteString. The text compiles to an equal schema. Print of an empty schema is empty.
func Print(s *Schema) string { return printSchema(s.Definitions, s.Caveats) }

// String returns Print(s).
func (s *Schema) String() string { return Print(s) }

func printSchema(definitions []*Definition, caveats []*Caveat) string {
	p := &printer{flags: flagsOf(definitions)}
	first := true
	separate := func() {
		if !first {
			p.line("")
		}
		first = false
	}
	for _, f := range useFlags {
		if p.flags&f.flag != 0 {
			p.line("use " + f.name)
			first = false
		}
	}
	for _, c := range caveats {
		separate()
		params := make([]string, len(c.Parameters))
		for i, param := range c.Parameters {
			params[i] = param.Name + " " + param.Type
		}
		p.doc(c.Doc)
		_, verbatim, _ := scanCEL("{" + c.Expression + "}") // a compiled expression has no error
		p.caveat(nameText(c.Name, false, p.flags), params, c.Expression, verbatim, "")
	}
	for _, d := range definitions {
		separate()
		p.definition(d)
	}
	return p.String()
}

func (p *printer) definition(d *Definition) {
	p.doc(d.Doc)
	head := "definition " + nameText(d.Name, false, p.flags)
	if len(d.Relations) == 0 && len(d.Permissions) == 0 {
		p.line(head + " {}")
		return
	}
	p.line(head + " {")
	p.indent = "\t"
	for _, r := range d.Relations {
		p.relation(r)
	}
	if len(d.Relations) > 0 && len(d.Permissions) > 0 {
		p.line("")
	}
	for _, perm := range d.Permissions {
		p.permission(perm)
	}
	p.indent = ""
	p.line("}")
}

func (p *printer) relation(r *Relation) {
	subjects := make([]string, len(r.Allowed))
	for i, s := range r.Allowed {
		subjects[i] = s.text(p.flags)
	}
	text := "relation " + nameText(r.Name, false, p.flags) + ": " + strings.Join(subjects, " | ")
	if r.Rewrite != (This{}) {
		text += " = " + p.rewrite(r.Rewrite)
	}
	p.doc(r.Doc)
	p.line(text)
}

func (p *printer) permission(perm *Permission) {
	text := "permission " + nameText(perm.Name, false, p.flags)
	for i, a := range perm.Annotation {
		if i == 0 {
			text += ": "
		} else {
			text += " | "
		}
		text += nameText(a, false, p.flags)
	}
	p.doc(perm.Doc)
	p.line(text + " = " + p.rewrite(perm.Rewrite))
}

func (p *printer) rewrite(r Rewrite) string {
	if p.least {
		r = flatten(r)
	}
	var b strings.Builder
	writeRewrite(&b, r, precedenceNone, spelling{flags: p.flags, least: p.least, anyArrows: &p.anyArrows})
	return b.String()
}

// doc writes a Doc. What is not a comment, as in a schema that a program put
// together, becomes one.
func (p *printer) doc(doc string) {
	if doc == "" {
		return
	}
	var errs errorList
	toks := lex(&File{Source: doc}, &errs)
	comments := !errs.full() && len(errs.errs) == 0
	for _, t := range toks {
		comments = comments && (t.Type == tokenComment || t.EOF())
	}
	if comments {
		p.line(doc)
		return
	}
	for _, l := range strings.FieldsFunc(doc, func(r rune) bool { return r == '\n' || r == '\r' }) {
		p.line(strings.TrimRight("// "+l, " \t"))
	}
}

// flagsOf returns the features that the definitions need.
func flagsOf(definitions []*Definition) flag {
	var flags flag
	var visit func(r Rewrite)
	visit = func(r Rewrite) {
		switch r := r.(type) {
		case Self:
			flags |= flagSelf
		case Union:
			for _, c := range r.Children {
				visit(c)
			}
		case Intersection:
			for _, c := range r.Children {
				visit(c)
			}
		case Exclusion:
			visit(r.Base)
			visit(r.Subtracted)
		}
	}
	open := wildcardRelations(definitions)
	for _, d := range definitions {
		for _, r := range d.Relations {
			if r.Rewrite != (This{}) {
				flags |= flagRewrite
			}
			visit(r.Rewrite)
			for _, s := range r.Allowed {
				if s.Expiration {
					flags |= flagExpiration
				}
				if _, ok := open[memberKey{s.Type, s.Relation}]; ok {
					flags |= flagWildcards
				}
			}
		}
		for _, perm := range d.Permissions {
			visit(perm.Rewrite)
			if len(perm.Annotation) > 0 {
				flags |= flagTypechecking
			}
		}
	}
	return flags
}

// New makes a schema of definitions and caveats that a program has put together,
// for instance from another product's model, and checks it as Compile does. It
// copies what it is given. Of a definition it reads the name, doc, relations and
// permissions; it makes Hidden anew, of chained arrows, which have the rest of
// their chain as Name: Arrow{Relation: "a", Name: "b->c"}. A nil Rewrite of a
// relation means This. Usersets may include wildcards.
//
// The error is of type Errors; positions in it refer to the text that Print
// would write, which the errors quote.
func New(definitions []*Definition, caveats []*Caveat) (*Schema, error) {
	if err := checkParts(definitions, caveats); err != nil {
		return nil, Errors{{Kind: TypeError, Msg: err.Error()}}
	}
	definitions, caveats = slices.Clone(definitions), slices.Clone(caveats)
	for i, d := range definitions {
		relations := slices.Clone(d.Relations)
		for j, r := range relations {
			if r.Rewrite == nil {
				plain := *r
				plain.Rewrite = This{}
				relations[j] = &plain
			}
		}
		definitions[i] = &Definition{Name: d.Name, Doc: d.Doc, Relations: relations, Permissions: d.Permissions}
	}
	slices.SortStableFunc(definitions, func(a, b *Definition) int { return strings.Compare(a.Name, b.Name) })
	slices.SortStableFunc(caveats, func(a, b *Caveat) int { return strings.Compare(a.Name, b.Name) })
	file, err := Parse("", printSchema(definitions, caveats))
	if err != nil {
		return nil, err
	}
	return Compile(file)
}

// checkParts refuses what Print could not write as it was meant. Everything else
// is left to Compile.
func checkParts(definitions []*Definition, caveats []*Caveat) error {
	name := func(what, name string) error {
		if msg := checkName(name); msg != "" {
			return fmt.Errorf("the name %q of a %s is not allowed: %s", name, what, msg)
		}
		return nil
	}
	var errs []error
	for _, d := range definitions {
		errs = append(errs, name("definition", d.Name))
		for _, r := range d.Relations {
			errs = append(errs, name("relation", r.Name))
			if len(r.Allowed) == 0 {
				errs = append(errs, fmt.Errorf("relation `%s` of `%s` allows no subjects", r.Name, d.Name))
			}
			for _, s := range r.Allowed {
				errs = append(errs, name("type", s.Type))
				if s.Relation != "" {
					errs = append(errs, name("relation", s.Relation))
				}
				if s.Caveat != "" {
					errs = append(errs, name("caveat", s.Caveat))
				}
				if s.Wildcard && s.Relation != "" {
					errs = append(errs, fmt.Errorf("relation `%s` of `%s` allows a wildcard with a relation", r.Name, d.Name))
				}
			}
			if r.Rewrite != nil {
				errs = append(errs, checkRewrite(r.Rewrite, 0))
			}
		}
		for _, p := range d.Permissions {
			errs = append(errs, name("permission", p.Name), checkRewrite(p.Rewrite, 0))
			for _, a := range p.Annotation {
				errs = append(errs, name("type", a))
			}
		}
	}
	for _, c := range caveats {
		errs = append(errs, name("caveat", c.Name))
		for _, p := range c.Parameters {
			if strings.IndexFunc(p.Name, func(r rune) bool { return r > 127 || !isNameByte(byte(r)) }) >= 0 || p.Name == "" {
				errs = append(errs, fmt.Errorf("the name %q of a parameter of caveat `%s` does not consist of letters, digits and _", p.Name, c.Name))
			}
			if strings.IndexFunc(p.Type, func(r rune) bool { return r > 127 || r != '<' && r != '>' && !isNameByte(byte(r)) }) >= 0 || p.Type == "" {
				errs = append(errs, fmt.Errorf("the type %q of parameter `%s` of caveat `%s` is not one", p.Type, p.Name, c.Name))
			}
		}
		if n, _, err := scanCEL("{" + c.Expression + "\n}"); err != nil || n != len(c.Expression)+len("{\n}") {
			errs = append(errs, fmt.Errorf("the expression of caveat `%s` has unmatched braces or quotes", c.Name))
		}
	}
	return errors.Join(errs...)
}

func checkRewrite(r Rewrite, depth int) error {
	if depth > nestingMax/2 {
		return fmt.Errorf("a rewrite is nested more than %d deep", nestingMax/2)
	}
	children := func(children []Rewrite) error {
		if len(children) < 2 {
			return errors.New("a union or intersection needs at least two children")
		}
		for _, c := range children {
			if err := checkRewrite(c, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	names := func(names ...string) error {
		for _, n := range names {
			if msg := checkName(n); msg != "" {
				return fmt.Errorf("the name %q in a rewrite is not allowed: %s", n, msg)
			}
		}
		return nil
	}
	switch r := r.(type) {
	case This, Nil, Self:
		return nil
	case Computed:
		return names(r.Name)
	case Arrow:
		chain := splitChain(r.Name)
		if chainText(chain, nil) != r.Name {
			return fmt.Errorf("the target %q of an arrow is neither a name nor a chain", r.Name)
		}
		for _, l := range chain {
			if err := names(l.name); err != nil {
				return err
			}
		}
		return names(r.Relation)
	case Union:
		return children(r.Children)
	case Intersection:
		return children(r.Children)
	case Exclusion:
		return errors.Join(checkRewrite(r.Base, depth+1), checkRewrite(r.Subtracted, depth+1))
	}
	return fmt.Errorf("a rewrite is missing or of an unknown kind (%T)", r)
}
