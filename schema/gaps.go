package schema

import (
	"slices"
	"strings"

	"github.com/alecthomas/participle/v2/lexer"
)

// A syntax error in one statement must not hide the type errors of the others,
// nor make up new ones: a name may seem unknown only because the statement that
// declares it could not be read. So the parser notes what such statements leave
// open, and the compiler judges only what no repair of them can change.

// gaps is what syntax errors leave open about the names of one scope: the types,
// partials or caveats of the files, or the members of a definition. The zero
// value leaves nothing open.
type gaps struct {
	// open says that any name may be declared by what could not be read.
	open bool
	// declared holds the names of statements that could not be read otherwise.
	// What they are names of is unknown, and nothing that depends on it is judged.
	declared map[string]bool
	// words and stems hold the words of statements whose name is not certain: the
	// name may be one of words, or begin with one of stems, as `can_view` does where
	// the text has `relation can view: user`.
	words, stems map[string]bool
	// strays holds those of words that stand in passages without a keyword, in a
	// definition: each may also be a partial.
	strays map[string]bool

	// others belong to the same scope: those of all files, or of the partials in a
	// definition. They are not copied, since many definitions may share one, and have
	// no others themselves.
	others []*gaps
}

// known judges a name that was found, or not, among what could be read: whether
// what was found may be used, and whether the name is missing for sure.
func (g *gaps) known(name string, found bool) (usable, missing bool) {
	switch {
	case g.declares(name):
		return false, false
	case found:
		return true, false
	}
	return false, !g.may(name) && !slices.ContainsFunc(g.others, func(o *gaps) bool { return o.may(name) })
}

// declares reports whether a statement of the name could not be read otherwise.
func (g *gaps) declares(name string) bool {
	return g.declared[name] || slices.ContainsFunc(g.others, func(o *gaps) bool { return o.declared[name] })
}

// may reports whether what could not be read may declare the name, apart from
// what is in declared.
func (g *gaps) may(name string) bool {
	if g.open || g.words[name] {
		return true
	}
	if len(g.stems) > 0 {
		for i := range len(name) {
			if g.stems[name[:i+1]] {
				return true
			}
		}
	}
	return false
}

// declare notes the name of a statement that could not be read otherwise.
func (g *gaps) declare(name string) { addName(&g.declared, name) }

// begins notes a word that a name may begin with; without any, the name may be
// all.
func (g *gaps) begins(stem string) {
	if stem == "" {
		g.open = true
		return
	}
	addName(&g.stems, stem)
}

// include adds what another part of the scope leaves open. Each that leaves any
// goes with a syntax error, so they are few.
func (g *gaps) include(other *gaps) {
	empty := !other.open && other.declared == nil && other.words == nil && other.stems == nil
	if !empty && !slices.Contains(g.others, other) {
		g.others = append(g.others, other)
	}
}

func addName(set *map[string]bool, name string) {
	if *set == nil {
		*set = map[string]bool{}
	}
	(*set)[name] = true
}

// fileGaps is what the syntax errors of a file leave open.
type fileGaps struct {
	types, partials, caveats gaps
	// flags are the features that a use line which could not be read, or stands in
	// the wrong place, may switch on.
	flags flag
	// skipped holds the parts of the text that made no token, in order.
	skipped []skippedText
}

// skippedText is a part of a text by offsets, without its end. If it is torn, it
// holds braces or lines, so that what stands around it may belong elsewhere.
type skippedText struct {
	start, end int
	torn       bool
}

// flagsAll are all features.
const flagsAll = ^flag(0)

// openAll notes that statements of any kind may be missing.
func (g *fileGaps) openAll() {
	g.types.open, g.partials.open, g.caveats.open = true, true, true
	g.flags = flagsAll
}

// scope returns the scope that a top-level keyword declares in, or nil.
func (g *fileGaps) scope(keyword string) *gaps {
	switch keyword {
	case "definition":
		return &g.types
	case "partial":
		return &g.partials
	case "caveat":
		return &g.caveats
	}
	return nil
}

// touched reports whether a part of the text made no token that lies between
// the offsets or touches one of them.
func (p *parser) touched(from, to int) bool {
	return slices.ContainsFunc(p.file.gaps.skipped, func(s skippedText) bool { return s.start <= to && s.end >= from })
}

// blur notes that it is not certain what belongs to the definition, which may be
// nil.
func (d *DefinitionDecl) blur() {
	if d != nil {
		d.unclear = true
		d.gaps.open = true
	}
}

// region returns the tokens from the one with the given index up to the next
// one, without comments.
func (p *parser) region(from int) []lexer.Token {
	var region []lexer.Token
	for _, t := range p.toks[from:p.index()] {
		if t.Type != tokenComment {
			region = append(region, t)
		}
	}
	return region
}

func isWord(t lexer.Token) bool {
	return t.Type == tokenIdent || t.Type == tokenString || t.Type == tokenKeyword
}

func unquoted(text string) string { return strings.Trim(text, `"`) }

// lost notes what a statement may declare that could not be read. The first token
// of the region is its keyword.
func (p *parser) lost(scope *gaps, region []lexer.Token) {
	follow := *p.peek()
	if len(region) > 2 {
		follow = region[2]
	}
	for _, t := range region[1:] {
		if isWord(t) {
			addName(&scope.words, unquoted(t.Value))
		}
	}
	if len(region) < 2 || !isWord(region[1]) || region[1].Type == tokenKeyword || region[1].Pos.Line != region[0].Pos.Line ||
		p.touched(region[0].Pos.Offset, tokenEnd(region[1]).Offset) {
		scope.open = true
		return
	}
	scope.declare(unquoted(region[1].Value))
	if follow.Pos.Line != region[1].Pos.Line || !isWord(follow) && follow.Value != "-" && follow.Value != "." {
		return
	}
	for _, t := range region[1:] {
		switch {
		case isWord(t):
			scope.begins(unquoted(t.Value))
		case t.Value != "-" && t.Value != ".":
			return
		}
	}
}

// lostItem notes what a top-level statement may declare that could not be read.
func (p *parser) lostItem(region []lexer.Token) {
	g := &p.file.gaps
	keyword := region[0].Value
	if scope := g.scope(keyword); scope != nil {
		p.lost(scope, region)
	}
	if len(region) > 1 {
		// The keyword may be the mistake.
		name := unquoted(region[1].Value)
		for _, scope := range [...]*gaps{&g.types, &g.partials, &g.caveats} {
			addName(&scope.words, name)
		}
		if slices.Contains(flagNames(), name) {
			g.flags = flagsAll
		}
	}
	switch {
	case keyword == "use" && len(region) <= 2:
		g.flags = flagsAll
	case keyword == "use" || keyword == "import" || tornItem(region):
		g.openAll()
	}
}

// beginsItem reports whether the token may be the first of a top-level statement.
func beginsItem(t lexer.Token) bool {
	switch t.Value {
	case "definition", "caveat":
		return t.Type == tokenKeyword
	case "use", "import", "partial":
		return t.Type == tokenIdent
	}
	return false
}

// tornItem reports whether the region of a top-level statement runs over what may
// be another.
func tornItem(region []lexer.Token) bool {
	depth, closed := 0, false
	for i, t := range region {
		if closed {
			return true
		}
		switch {
		case t.Type == tokenCEL:
			closed = true
		case i > 0 && beginsItem(t):
			return true
		case t.Type == tokenPunct && t.Value == "{":
			depth++
		case t.Type == tokenPunct && t.Value == "}":
			depth--
			closed = depth <= 0
		case i > 0 && i+2 < len(region) && isWord(t) && isWord(region[i+1]) && tokenEnd(region[i-1]).Line < t.Pos.Line:
			// A misspelt keyword, perhaps: it begins a line, and a name and a bracket follow.
			if next := region[i+2]; next.Value == "{" || next.Value == "(" || next.Type == tokenCEL {
				return true
			}
		}
	}
	return false
}

// lostMember notes what a statement of a block may declare that could not be
// read. The first token of the region is its keyword. It returns the members that
// can still be judged.
func (p *parser) lostMember(d *DefinitionDecl, members []Member, region []lexer.Token) []Member {
	p.checkTorn(d, region[1:])
	if region[0].Value == "..." {
		d.gaps.open = true
	} else {
		p.lost(&d.gaps, region)
	}
	return p.cutShort(d, members, region[0])
}

// cutShort returns the members that can still be judged where t is in error: the
// last one may go on there.
func (p *parser) cutShort(d *DefinitionDecl, members []Member, t lexer.Token) []Member {
	if len(members) == 0 || !p.sameStatement(members[len(members)-1], t) {
		return members
	}
	return d.dropLast(members)
}

// checkTorn looks whether a region of a block runs over what may begin a
// statement of the top level.
func (p *parser) checkTorn(d *DefinitionDecl, region []lexer.Token) {
	for _, t := range region {
		switch {
		case t.Type == tokenPunct && t.Value == "{", t.Type == tokenCEL, beginsItem(t):
			d.blur()
			p.file.gaps.openAll()
			return
		}
	}
}

// strayMember notes what a passage of a block may declare that begins with no
// keyword. It returns the members that can still be judged: the passage may be the
// rest of the last one, unless it looks like a statement with a misspelt keyword.
func (p *parser) strayMember(d *DefinitionDecl, members []Member, region []lexer.Token, misspelt, newLine bool) []Member {
	p.checkTorn(d, region)
	declares := mayDeclare(region)
	switch {
	case misspelt && len(region) > 2 && (region[2].Value == ":" || region[2].Value == "="):
		p.lost(&d.gaps, region)
		return members
	case newLine && declares:
		// The first word may be a keyword or the beginning of the name.
		p.lost(&d.gaps, region)
		d.gaps.begins(region[0].Value)
		return members
	}
	d.gaps.open = d.gaps.open || declares
	for _, t := range region {
		if isWord(t) {
			word := unquoted(t.Value)
			addName(&d.gaps.words, word)
			addName(&d.gaps.strays, word)
		}
	}
	return d.dropLast(members)
}

// mayDeclare reports whether a passage without a keyword has what only a declaration
// has, or two dots, as `...named` with one too few: then it may bring any name.
// Without, it is most likely the rest of a statement, as the second type in
// `relation viewer: user user`, also on a line of its own. If it declares anything for
// all that, the name of it is one of its words, or it is a partial.
func mayDeclare(region []lexer.Token) bool {
	for i, t := range region {
		if t.Type != tokenPunct {
			continue
		}
		next := ""
		if i+1 < len(region) {
			next = region[i+1].Value
		}
		if t.Value == "=" || t.Value == ":" && next != "*" || t.Value == "." && next == "." {
			return true
		}
	}
	return false
}

// sameStatement reports whether the statement of m may go on with t: it ends on the
// same line, without a semicolon.
func (p *parser) sameStatement(m Member, t lexer.Token) bool {
	end := m.node().End
	return end.Line == t.Pos.Line && !strings.Contains(p.file.Source[end.Offset:t.Pos.Offset], ";")
}

// dropLast takes back the last member, of which only the name is certain.
func (d *DefinitionDecl) dropLast(members []Member) []Member {
	if len(members) == 0 {
		return members
	}
	last := len(members) - 1
	switch m := members[last].(type) {
	case *RelationDecl:
		d.gaps.declare(m.Name.Text)
	case *PermissionDecl:
		d.gaps.declare(m.Name.Text)
	case *Splat:
		d.gaps.open = true
	}
	return members[:last]
}

// checkSkipped notes what the parts of the text that made no token leave open
// about a definition and all that stands beside it.
func (p *parser) checkSkipped(d *DefinitionDecl) {
	for _, s := range p.file.gaps.skipped {
		if s.end < d.Pos.Offset || s.start > p.peek().Pos.Offset {
			continue
		}
		if s.torn {
			d.blur()
		}
		d.gaps.open = true
	}
}
