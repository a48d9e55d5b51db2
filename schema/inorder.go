package schema

import (
	"cmp"
	"slices"
	"sync"

	"cel.dev/cel-go/cel"
)

// PrintInOrder returns the text of a compiled schema in another layout than
// Print's, which readers of schemas of this language also know: relations and
// permissions mixed as the source has them, an empty line only before those with
// comments, parentheses only where the meaning needs them, so that those around a union
// within a union or an intersection within an intersection are gone, .any() where the
// source has it for ->, the parameters of a caveat sorted by name and its expression as
// CanonicalExpression has it, and no line break at the end. The text compiles to a
// schema of the same meaning. That of an empty schema is empty.
func PrintInOrder(s *Schema) string {
	p := &printer{flags: flagsOf(s.Definitions), least: true}
	for _, f := range useFlags {
		if p.flags&f.flag != 0 {
			p.line("use " + f.name)
		}
	}
	separate := func() {
		if p.Len() > 0 {
			p.line("")
		}
	}
	for _, c := range s.Caveats {
		separate()
		p.doc(c.Doc)
		var params []string
		for _, param := range c.SortedParameters() {
			params = append(params, param.Name+" "+param.Type)
		}
		expression := c.CanonicalExpression()
		_, verbatim, _ := scanCEL("{" + expression + "}") // what CEL wrote has no error
		p.caveat(nameText(c.Name, false, p.flags), params, expression, verbatim, "")
	}
	for _, d := range s.Definitions {
		separate()
		p.inOrder(s, d)
	}
	text := p.String()
	return text[:max(0, len(text)-len("\n"))]
}

// inOrder writes a definition of s with its members in the order of the source.
func (p *printer) inOrder(s *Schema, d *Definition) {
	names := s.order[d.Name]
	p.doc(d.Doc)
	head := "definition " + nameText(d.Name, false, p.flags)
	if len(names) == 0 {
		p.line(head + " {}")
		return
	}
	p.line(head + " {")
	p.indent = "\t"
	for i, name := range names {
		relation, permission := d.relations[name], d.permissions[name]
		if i > 0 && (relation != nil && relation.Doc != "" || permission != nil && permission.Doc != "") {
			p.line("")
		}
		p.anyArrows = s.anyArrows[memberKey{d.Name, name}]
		if relation != nil {
			p.relation(relation)
		} else {
			p.permission(permission)
		}
	}
	p.indent, p.anyArrows = "", nil
	p.line("}")
}

// SortedParameters returns the parameters sorted by name.
func (c *Caveat) SortedParameters() []Parameter {
	return slices.SortedFunc(slices.Values(c.Parameters), func(a, b Parameter) int { return cmp.Compare(a.Name, b.Name) })
}

// printEnv parses expressions for printing: it keeps what macros stood for.
var printEnv = sync.OnceValues(func() (*cel.Env, error) {
	return cel.NewEnv(cel.OptionalTypes(), cel.EnableMacroCallTracking(), cel.ParserExpressionSizeLimit(ExpressionCharsMax))
})

// CanonicalExpression returns the expression as CEL itself writes it: without
// comments, with blanks around operators, text in double quotes, parentheses only
// where precedence needs them, and long lines broken behind && and ||. An
// expression that CEL can evaluate and not write is returned as it stands. It
// parses the expression at each call.
func (c *Caveat) CanonicalExpression() string {
	env, err := printEnv()
	if err != nil {
		return c.Expression
	}
	parsed, issues := env.Parse(c.Expression)
	if issues.Err() != nil {
		return c.Expression
	}
	text, err := cel.AstToString(parsed)
	if err != nil {
		return c.Expression
	}
	return text
}
