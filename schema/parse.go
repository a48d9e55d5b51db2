package schema

import (
	"errors"
	"strings"

	"github.com/alecthomas/participle/v2"
	"github.com/alecthomas/participle/v2/lexer"
)

// The grammar, one rule per statement. The parser below reads statement by
// statement, so that one mistake does not hide the next. Every choice is decided
// by its first token: that is what useLookahead(0) relies on, and what makes
// errors point at the first token that cannot be right.
type (
	nameRule struct {
		Pos  lexer.Position
		Text string `parser:"@(Ident | String)"`
	}
	pathRule struct {
		Pos  lexer.Position
		Text string `parser:"@String"`
	}

	useRule struct {
		Flag nameRule `parser:"'use' @@"`
	}
	importRule struct {
		Path pathRule `parser:"'import' @@"`
	}
	headRule struct {
		Name nameRule `parser:"('definition' | 'partial') @@ '{'"`
	}
	splatRule struct {
		Partial nameRule `parser:"'...' @@"`
	}

	relationRule struct {
		Name    nameRule       `parser:"'relation' @@ ':'"`
		Allowed []*subjectRule `parser:"@@ ('|' @@)*"`
		Rewrite *exclusionRule `parser:"('=' @@)?"`
	}
	subjectRule struct {
		Type     nameRule    `parser:"@@"`
		Relation *memberRule `parser:"( '#' @@"`
		Wildcard *starRule   `parser:"| ':' @@ )?"`
		Traits   []*nameRule `parser:"( 'with' @@ ('and' @@)* )?"`
	}
	memberRule struct {
		Pos  lexer.Position
		Text string `parser:"@(Ident | String | '...')"`
	}
	starRule struct {
		Pos  lexer.Position
		Text string `parser:"@'*'"`
	}

	permissionRule struct {
		Name       nameRule       `parser:"'permission' @@"`
		Annotation []*nameRule    `parser:"( ':' @@ ('|' @@)* )?"`
		Expr       *exclusionRule `parser:"'=' @@"`
	}
	exclusionRule struct {
		Operands []*intersectionRule `parser:"@@ ('-' @@)*"`
	}
	intersectionRule struct {
		Operands []*unionRule `parser:"@@ ('&' @@)*"`
	}
	unionRule struct {
		Operands []*termRule `parser:"@@ ('+' @@)*"`
	}
	termRule struct {
		Pos   lexer.Position
		Nil   bool           `parser:"(   @'nil'"`
		Inner *exclusionRule `parser:"  | '(' @@"`
		Close *closeRule     `parser:"        @@"`
		Head  *nameRule      `parser:"  | @@"`
		Steps []*stepRule    `parser:"        @@* )"`
	}
	closeRule struct {
		Pos  lexer.Position
		Text string `parser:"@')'"`
	}
	stepRule struct {
		Name  *nameRule  `parser:"(   '->' @@"`
		Kind  *nameRule  `parser:"  | '.' @@"`
		Inner *nameRule  `parser:"    '(' @@"`
		Close *closeRule `parser:"    @@ )"`
	}

	caveatRule struct {
		Name       nameRule         `parser:"'caveat' @@ '('"`
		Parameters []*parameterRule `parser:"( @@ (',' @@)* )? ')'"`
		Body       bodyRule         `parser:"@@"`
	}
	parameterRule struct {
		Name nameRule  `parser:"@@"`
		Type *typeRule `parser:"@@"`
	}
	typeRule struct {
		Pos     lexer.Position
		Name    string     `parser:"@Ident"`
		Element *typeRule  `parser:"( '<' @@"`
		Close   *angleRule `parser:"      @@ )?"`
	}
	angleRule struct {
		Pos  lexer.Position
		Text string `parser:"@'>'"`
	}
	bodyRule struct {
		Pos  lexer.Position
		Text string `parser:"@CEL"`
	}
)

var (
	parseUse        = build[useRule]()
	parseImport     = build[importRule]()
	parseHead       = build[headRule]()
	parseSplat      = build[splatRule]()
	parseRelation   = build[relationRule]()
	parsePermission = build[permissionRule]()
	parseCaveat     = build[caveatRule]()
)

func build[G any]() *participle.Parser[G] {
	return participle.MustBuild[G](participle.Lexer(tokens{}), participle.Elide("Comment"), participle.UseLookahead(0))
}

// Parse reads the text of a schema. The name is how errors call it; it may be
// empty. The error, if any, is of type Errors and holds at least one SyntaxError;
// the File is then nil. So that a mistake of grammar does not hide those of
// meaning, the error holds, too, the TypeErrors that what could be read has for
// sure, whatever the rest was meant to be; of a text without syntax errors, they
// are Compile's. Parse is safe for concurrent use, takes time linear in the size
// of the text, for a text with errors as much as Compile, and refuses texts beyond
// SourceBytesMax.
//
// An import statement is kept, but not followed: see Load.
func Parse(name, source string) (*File, error) {
	var errs errorList
	file := parse(name, source, &errs)
	if len(errs.errs) == 0 {
		return file, nil
	}
	typeErrors(file, &errs)
	return nil, errs.err(nil)
}

func parse(name, source string, errs *errorList) *File {
	file := &File{Name: name, Source: source}
	if len(source) > SourceBytesMax {
		file.Source = ""
		file.gaps.openAll()
		errs.add(file, SyntaxError, Position{}, Position{},
			"the schema has %d bytes; at most %d are allowed", len(source), SourceBytesMax)
		return file
	}
	toks := lex(file, errs)
	if errs.full() || !checkNesting(file, toks, errs) {
		file.gaps.openAll()
		return file
	}
	peeking, err := lexer.Upgrade(&tokenReader{toks}, tokenComment)
	if err != nil {
		file.gaps.openAll()
		errs.add(file, SyntaxError, Position{}, Position{}, "%v", err)
		return file
	}
	p := &parser{file: file, errs: errs, lex: peeking, toks: toks}
	p.file.Items = p.items()
	file.Tail, _ = p.comments()
	return file
}

// parser reads the statements of one file.
type parser struct {
	file *File
	errs *errorList
	lex  *lexer.PeekingLexer
	toks []lexer.Token
	// done is the index in toks behind the last token or comment that belongs to a
	// statement.
	done int
	// failedAt is the offset of the last syntax error: a second error at the same
	// token would be an echo of the first.
	failedAt int
	failed   bool
}

func (p *parser) peek() *lexer.Token { return p.lex.Peek() }

// index returns the index in toks of the next token that is not a comment.
func (p *parser) index() int {
	_, i := p.lex.PeekAny(func(lexer.Token) bool { return false })
	return int(i)
}

// fail reports a syntax error at the token, unless one is known there.
func (p *parser) fail(t *lexer.Token, format string, args ...any) reported {
	if p.failed && p.failedAt == t.Pos.Offset {
		return reported{}
	}
	p.failed, p.failedAt = true, t.Pos.Offset
	end := tokenEnd(*t)
	if t.Type == tokenCEL {
		end = endOf(tokenPos(*t), "{")
	}
	return p.errs.add(p.file, SyntaxError, tokenPos(*t), end, format, args...)
}

// failAfter reports a syntax error just behind the token.
func (p *parser) failAfter(t lexer.Token, format string, args ...any) {
	end := tokenEnd(t)
	p.errs.add(p.file, SyntaxError, end, end, format, args...)
}

// describe returns a token as a message names it.
func describe(t *lexer.Token) string {
	switch t.Type {
	case tokenEOF:
		return "the end of the file"
	case tokenCEL:
		return "`{`"
	case tokenString:
		if len(t.Value) > 40 {
			return "a string"
		}
		return t.Value
	}
	if len(t.Value) > 40 {
		return "`" + strings.ToValidUTF8(t.Value[:40], "") + "...`"
	}
	return "`" + t.Value + "`"
}

// unexpected reports the error of a participle parser. A reserved word where a
// name should stand is skipped, lest it be taken for the next statement.
func (p *parser) unexpected(err error) {
	var unexpected *participle.UnexpectedTokenError
	if !errors.As(err, &unexpected) {
		p.fail(p.peek(), "%v", err)
		return
	}
	t := unexpected.Unexpected
	want := expectation(err.Error())
	before := int(p.lex.RawCursor()) - 1
	newLine := before >= 0 && p.peek().Pos == t.Pos && tokenEnd(p.toks[before]).Line != t.Pos.Line
	switch {
	case want == "":
		p.fail(&t, "unexpected %s", describe(&t))
	case newLine:
		// The mistake is where the statement breaks off, not where the next begins.
		p.failAfter(p.toks[before], "expected %s, found the end of the line", want)
	case want == "a name" && t.Type == tokenKeyword:
		p.fail(&t, "`%s` is a reserved word and cannot be a name unless it is quoted", t.Value)
		p.lex.Next()
	default:
		p.fail(&t, "expected %s, found %s", want, describe(&t))
	}
}

// expectation turns the grammar fragment that participle says it expected into
// words; only the first symbol of the fragment matters.
func expectation(msg string) string {
	_, fragment, ok := strings.Cut(msg, "(expected ")
	if !ok {
		return ""
	}
	fragment = strings.TrimLeft(fragment, "(")
	for _, e := range [...]struct{ prefix, words string }{
		{"NameRule", "a name"},
		{"<ident>", "a name"},
		{"MemberRule", "a name"},
		{"PathRule", "a path in double quotes"},
		{"SubjectRule", "a type"},
		{"TypeRule", "a parameter type"},
		{"ParameterRule", "a parameter"},
		{"BodyRule", "`{` and a CEL expression"},
		{"StarRule", "`*`"},
		{"CloseRule", "`)`"},
		{"AngleRule", "`>`"},
		{"ExclusionRule", "an expression"},
		{"IntersectionRule", "an expression"},
		{"UnionRule", "an expression"},
		{"TermRule", "an expression"},
	} {
		if strings.HasPrefix(fragment, e.prefix) {
			return e.words
		}
	}
	if strings.HasPrefix(fragment, `"`) {
		if literal, _, ok := strings.Cut(fragment[1:], `"`); ok {
			return "`" + literal + "`"
		}
	}
	return ""
}

// items reads the top-level statements up to the end of the file.
func (p *parser) items() []Item {
	var items []Item
	// last is the definition or partial that ends before the next statement.
	var last *DefinitionDecl
	defined := false
	for !p.errs.full() {
		p.semicolons()
		t := p.peek()
		if t.EOF() {
			break
		}
		from := p.index()
		var item Item
		switch {
		case t.Value == "use" && t.Type == tokenIdent:
			if item = p.use(); item != nil && defined {
				// What stands before was read without the feature.
				p.file.gaps.flags = flagsAll
				p.errs.add(p.file, SyntaxError, tokenPos(*t), tokenEnd(*t), "a use line must stand before all definitions, partials and caveats")
			}
		case t.Value == "import" && t.Type == tokenIdent:
			item = p.importFile()
		case t.Value == "definition", t.Value == "partial" && t.Type == tokenIdent:
			item, defined = p.definition(), true
		case t.Value == "caveat":
			item, defined = p.caveat(), true
		default:
			p.strayItem(t, last)
		}
		switch item := item.(type) {
		case nil:
			last = nil
			continue
		case *DefinitionDecl:
			last = item
		default:
			last = nil
			if p.touched(p.toks[from].Pos.Offset, p.peek().Pos.Offset) {
				p.lostItem(p.region(from))
				continue
			}
		}
		items = append(items, item)
	}
	return items
}

// strayItem reports a token that begins no top-level statement and skips to one
// that does. last is the definition before it, or nil.
func (p *parser) strayItem(t *lexer.Token, last *DefinitionDecl) {
	from := p.index()
	meant := ""
	switch t.Value {
	case "}":
		p.fail(t, "`}` without an opening `{`")
	case "relation", "permission", "...":
		p.fail(t, "%s must stand inside a definition or partial", describe(t))
	default:
		err := p.fail(t, "expected `definition`, `caveat`, `partial`, `import` or `use`, found %s", describe(t))
		if t.Type == tokenIdent {
			words := []string{"caveat", "definition", "import", "partial", "use"}
			meant = suggest(t.Value, words)
			err.suggest(t.Value, func() []string { return words })
		}
	}
	p.lex.Next()
	p.skipToItem()
	region := p.region(from)
	if meant != "" {
		region[0].Value = meant
		p.lostItem(region)
		return
	}
	if len(region) == 1 && t.Value == "}" {
		return // a brace too many hides nothing
	}
	if last != nil {
		last.blur()
		last.Members = last.dropLast(last.Members)
	}
	p.file.gaps.openAll()
}

// skipToItem skips to what begins a top-level statement: a reserved word that
// does, or at brace depth 0 a word that may.
func (p *parser) skipToItem() {
	depth := 0
	for {
		t := p.peek()
		switch {
		case t.EOF():
			return
		case t.Type == tokenKeyword && (t.Value == "definition" || t.Value == "caveat"):
			return
		case depth == 0 && t.Type == tokenIdent && (t.Value == "use" || t.Value == "partial" || t.Value == "import"):
			return
		case t.Type == tokenPunct && t.Value == "{":
			depth++
		case t.Type == tokenPunct && t.Value == "}":
			depth = max(0, depth-1)
		}
		p.lex.Next()
	}
}

// skipToMember skips to what begins a statement of a block or ends the block.
func (p *parser) skipToMember() {
	depth := 0
	for {
		t := p.peek()
		switch {
		case t.EOF():
			return
		case t.Type == tokenKeyword && (t.Value == "definition" || t.Value == "caveat"):
			return
		case t.Type == tokenKeyword && (t.Value == "relation" || t.Value == "permission"):
			return
		case t.Type == tokenPunct && depth == 0 && (t.Value == "}" || t.Value == "..." || t.Value == ";"):
			return
		case t.Type == tokenIdent && depth == 0 && p.misspeltMember():
			return
		case t.Type == tokenPunct && t.Value == "{":
			depth++
		case t.Type == tokenPunct && t.Value == "}":
			depth--
		}
		p.lex.Next()
	}
}

// misspeltMember reports whether the next token could be the misspelt first word
// of a statement: it begins a line, and a name and `:` or `=` follow.
func (p *parser) misspeltMember() bool {
	i := p.index()
	return i > 0 && i+2 < len(p.toks) && tokenEnd(p.toks[i-1]).Line < p.toks[i].Pos.Line &&
		p.toks[i+1].Type == tokenIdent && (p.toks[i+2].Value == ":" || p.toks[i+2].Value == "=")
}

func (p *parser) semicolons() {
	for t := p.peek(); t.Type == tokenPunct && t.Value == ";"; t = p.peek() {
		p.lex.Next()
	}
}

// comments takes the comments between the last statement and the next token, and
// reports whether an empty line comes first.
func (p *parser) comments() (comments []Comment, blankBefore bool) {
	end := p.index()
	line := 0
	if p.done > 0 {
		line = tokenEnd(p.toks[p.done-1]).Line
	}
	first := true
	for ; p.done < end; p.done++ {
		t := p.toks[p.done]
		if first && t.Type == tokenComment {
			blankBefore = line > 0 && t.Pos.Line > line+1
			first = false
		}
		line = tokenEnd(t).Line
		if t.Type == tokenComment {
			blank := p.toks[p.done+1].Pos.Line > line+1
			comments = append(comments, Comment{Pos: tokenPos(t), Text: normalComment(t.Value), BlankAfter: blank})
		}
	}
	if first {
		blankBefore = line > 0 && p.toks[end].Pos.Line > line+1
	}
	return comments, blankBefore
}

// begin starts a statement at the next token: it takes the comments before it.
func (p *parser) begin() Node {
	n := Node{}
	n.Comments, n.BlankBefore = p.comments()
	n.Pos = tokenPos(*p.peek())
	return n
}

// finish ends a statement behind the last token that was read: it takes the
// comments inside the statement and those behind it on its last line.
func (p *parser) finish(n *Node) {
	end := int(p.lex.RawCursor())
	for ; p.done < end; p.done++ {
		if t := p.toks[p.done]; t.Type == tokenComment {
			n.Comments = append(n.Comments, Comment{Pos: tokenPos(t), Text: normalComment(t.Value)})
		}
	}
	n.End = tokenEnd(p.toks[end-1])
	p.semicolons()
	n.Trailing = p.sameLine(n.End.Line)
}

// sameLine takes the comments that follow on the given line, unless another
// statement follows on the line as well.
func (p *parser) sameLine(line int) []Comment {
	next := p.index()
	if t := p.toks[next]; t.Pos.Line == line && !t.EOF() && t.Value != "}" {
		return nil
	}
	var comments []Comment
	for i := p.done; i < next; i++ {
		t := p.toks[i]
		if t.Type != tokenComment {
			continue // a semicolon
		}
		if t.Pos.Line != line {
			break
		}
		comments = append(comments, Comment{Pos: tokenPos(t), Text: normalComment(t.Value)})
		line = tokenEnd(t).Line
		p.done = i + 1
	}
	return comments
}

// statement runs the parser of one statement. It returns nil after an error,
// when the lexer has been moved to a place to go on.
func statement[G any](p *parser, rule *participle.Parser[G], skip func()) *G {
	start := p.lex.Cursor()
	tree, err := rule.ParseFromLexer(p.lex, participle.AllowTrailing(true))
	if err == nil {
		return tree
	}
	p.unexpected(err)
	if p.lex.Cursor() == start {
		p.lex.Next()
	}
	skip()
	return nil
}

func (p *parser) use() Item {
	n := &Use{Node: p.begin()}
	from := p.index()
	rule := statement(p, parseUse, p.skipToItem)
	if rule == nil {
		p.lostItem(p.region(from))
		return nil
	}
	n.Flag = p.name(rule.Flag)
	p.finish(&n.Node)
	for _, f := range useFlags {
		if f.name == n.Flag.Text {
			p.file.flags |= f.flag
			return n
		}
	}
	p.file.gaps.flags = flagsAll
	p.errs.add(p.file, SyntaxError, n.Flag.Pos, n.Flag.End, "unknown use flag `%s`; known are %s",
		n.Flag.Text, strings.Join(flagNames(), ", ")).suggest(n.Flag.Text, flagNames)
	return n
}

func (p *parser) importFile() Item {
	n := &Import{Node: p.begin()}
	from := p.index()
	rule := statement(p, parseImport, p.skipToItem)
	if rule == nil {
		p.lostItem(p.region(from))
		return nil
	}
	n.Path = p.name(nameRule(rule.Path))
	p.finish(&n.Node)
	if p.file.flags&flagImport == 0 {
		p.errs.add(p.file, SyntaxError, n.Pos, n.End, "an import needs the line `use import` at the top of the file")
	}
	return n
}

func (p *parser) definition() Item {
	n := &DefinitionDecl{Node: p.begin()}
	keyword := *p.peek()
	from := p.index()
	n.Partial = keyword.Value == "partial"
	scope := p.file.gaps.scope(keyword.Value)
	rule := statement(p, parseHead, func() {})
	if rule == nil && !p.skipToBlock() {
		p.lostItem(p.region(from))
		return nil
	}
	head := p.region(from)
	if rule == nil || p.touched(keyword.Pos.Offset, head[len(head)-1].Pos.Offset) {
		n.headless = true
		n.blur()
		p.lostItem(head[:len(head)-1])
	}
	if rule != nil {
		name := p.declare(rule.Name, "a type", true, scope)
		if !n.headless {
			n.Name = name
		}
	}
	if n.Partial && p.file.flags&flagPartial == 0 {
		p.errs.add(p.file, SyntaxError, tokenPos(keyword), tokenEnd(keyword), "a partial needs the line `use partial` at the top of the file")
	}
	// The comments inside the head and behind its brace are about the definition.
	var inHead Node
	brace := int(p.lex.RawCursor()) - 1
	p.finish(&inHead)
	n.Comments = append(append(n.Comments, inHead.Comments...), inHead.Trailing...)
	n.Members = p.members(n, p.toks[brace])
	n.Tail, n.TailBlank = p.comments()
	if t := p.peek(); t.Type == tokenPunct && t.Value == "}" {
		p.lex.Next()
		p.finish(&n.Node)
	} else {
		n.blur()
	}
	p.checkSkipped(n)
	return n
}

// skipToBlock goes behind the `{` of a definition whose head is wrong, so that its
// members are checked too. It reports whether there is one.
func (p *parser) skipToBlock() bool {
	for {
		t := p.peek()
		switch {
		case t.EOF(), t.Type == tokenKeyword, t.Value == "}":
			p.skipToItem()
			return false
		case t.Type == tokenPunct && t.Value == "{":
			p.lex.Next()
			return true
		}
		p.lex.Next()
	}
}

// members reads the statements of a block up to its `}`, which it leaves.
func (p *parser) members(d *DefinitionDecl, brace lexer.Token) []Member {
	var members []Member
	broken := false // whether the statement before could not be read
	for !p.errs.full() {
		p.semicolons()
		t := p.peek()
		from := p.index()
		var m Member
		switch {
		case t.Type == tokenPunct && t.Value == "}":
			return members
		case t.EOF(), t.Type == tokenKeyword && (t.Value == "definition" || t.Value == "caveat"):
			p.fail(t, "expected `}` before %s: the `{` of line %d is not closed", describe(t), brace.Pos.Line)
			d.blur()
			return p.cutShort(d, members, *t)
		case t.Type == tokenKeyword && t.Value == "relation":
			m = p.relation(d)
		case t.Type == tokenKeyword && t.Value == "permission":
			m = p.permission(d)
		case t.Type == tokenPunct && t.Value == "...":
			m = p.splat()
		case t.Type == tokenPunct && (t.Value == "->" || t.Value == "."):
			p.fail(t, "left of an arrow stands the name of a relation and nothing else")
			p.lex.Next()
			p.skipToMember()
			members = p.strayMember(d, members, p.region(from), false, false)
			broken = true
			continue
		default:
			err := p.fail(t, "expected `relation`, `permission`, `...` or `}`, found %s", describe(t))
			words := []string{"permission", "relation"}
			misspelt := t.Type == tokenIdent && suggest(t.Value, words) != ""
			if misspelt {
				err.suggest(t.Value, func() []string { return words })
			}
			newLine := t.Type == tokenIdent && p.misspeltMember()
			p.lex.Next()
			p.skipToMember()
			members = p.strayMember(d, members, p.region(from), misspelt, newLine)
			broken = true
			continue
		}
		switch {
		case m == nil, p.touched(p.toks[from].Pos.Offset, p.peek().Pos.Offset):
			members = p.lostMember(d, members, p.region(from))
			broken = true
		case t.Value == "..." && broken && tokenEnd(p.toks[from-1]).Line == t.Pos.Line:
			// What looks like a partial is perhaps the rest of what could not be read.
			d.gaps.open = true
		default:
			members = append(members, m)
			broken = false
		}
	}
	d.blur()
	return members
}

func (p *parser) relation(d *DefinitionDecl) Member {
	n := &RelationDecl{Node: p.begin()}
	rule := statement(p, parseRelation, p.skipToMember)
	if rule == nil {
		return nil
	}
	n.Name = p.declare(rule.Name, "a relation", false, &d.gaps)
	for _, s := range rule.Allowed {
		n.Allowed = append(n.Allowed, p.subject(s))
	}
	p.finish(&n.Node)
	if rule.Rewrite != nil {
		n.Rewrite = p.exclusion(rule.Rewrite)
		if p.file.flags&flagRewrite == 0 {
			p.file.gaps.flags |= flagRewrite
			p.errs.add(p.file, SyntaxError, n.Rewrite.Pos, n.Rewrite.End,
				"a relation with an expression needs the line `use rewrite` at the top of the file; without it, write a permission")
		}
	}
	return n
}

func (p *parser) subject(rule *subjectRule) *SubjectDecl {
	s := &SubjectDecl{Type: p.name(rule.Type)}
	s.Pos, s.End = s.Type.Pos, s.Type.End
	if r := rule.Relation; r != nil {
		relation := p.name(nameRule(*r))
		s.End = relation.End
		// `user#...` is an old spelling of `user`.
		if r.Text != "..." {
			s.Relation = relation
		}
	}
	if r := rule.Wildcard; r != nil {
		s.Wildcard = true
		s.End = p.name(nameRule(*r)).End
	}
	for i, trait := range rule.Traits {
		t := p.name(*trait)
		s.End = t.End
		expiration := t.Text == "expiration" && !t.Quoted
		flawed := true
		switch {
		case expiration && p.file.flags&flagExpiration == 0 && i > 0:
			p.file.gaps.flags |= flagExpiration
			p.errs.add(p.file, SyntaxError, t.Pos, t.End, "an expiration needs the line `use expiration` at the top of the file")
		case expiration && p.file.flags&flagExpiration != 0 && !s.Expiration:
			s.Expiration, flawed = true, false
		case expiration && s.Expiration:
			p.errs.add(p.file, SyntaxError, t.Pos, t.End, "`expiration` stands here twice")
		case i == 0:
			s.Caveat, flawed = t, false
		case s.Expiration:
			p.errs.add(p.file, SyntaxError, t.Pos, t.End, "`expiration` must come last: write `with %s and expiration`", t.Text)
		default:
			p.errs.add(p.file, SyntaxError, t.Pos, t.End, "a subject can carry one caveat; only `expiration` may follow `and`")
		}
		s.flawed = s.flawed || flawed
	}
	return s
}

func (p *parser) permission(d *DefinitionDecl) Member {
	n := &PermissionDecl{Node: p.begin()}
	rule := statement(p, parsePermission, p.skipToMember)
	if rule == nil {
		return nil
	}
	n.Name = p.declare(rule.Name, "a permission", false, &d.gaps)
	for _, a := range rule.Annotation {
		n.Annotation = append(n.Annotation, p.name(*a))
	}
	n.Expr = p.exclusion(rule.Expr)
	p.finish(&n.Node)
	return n
}

func (p *parser) splat() Member {
	n := &Splat{Node: p.begin()}
	rule := statement(p, parseSplat, p.skipToMember)
	if rule == nil {
		return nil
	}
	n.Partial = p.name(rule.Partial)
	p.finish(&n.Node)
	if p.file.flags&flagPartial == 0 {
		p.errs.add(p.file, SyntaxError, n.Pos, n.End, "a partial needs the line `use partial` at the top of the file")
	}
	return n
}

func (p *parser) caveat() Item {
	n := &CaveatDecl{Node: p.begin()}
	from := p.index()
	rule := statement(p, parseCaveat, p.skipToItem)
	if rule == nil {
		p.lostItem(p.region(from))
		return nil
	}
	n.Name = p.declare(rule.Name, "a caveat", true, &p.file.gaps.caveats)
	for _, param := range rule.Parameters {
		name := p.name(param.Name)
		if strings.ContainsAny(name.Text, "-/") || name.Quoted {
			n.flawed = true
			p.errs.add(p.file, SyntaxError, name.Pos, name.End, "the name of a parameter consists of letters, digits and `_`")
		}
		n.Parameters = append(n.Parameters, &ParameterDecl{Name: name, Type: p.typeExpr(param.Type)})
	}
	body := rule.Body.Text
	n.Body = body[1 : len(body)-1]
	n.BodyPos = endOf(lexedPos(rule.Body.Pos), "{")
	p.finish(&n.Node)
	return n
}

func (p *parser) typeExpr(rule *typeRule) *TypeExpr {
	t := &TypeExpr{Pos: lexedPos(rule.Pos), Name: rule.Name}
	t.End = endOf(t.Pos, rule.Name)
	if rule.Element != nil {
		t.Element = p.typeExpr(rule.Element)
		t.End = endOf(lexedPos(rule.Close.Pos), ">")
	}
	return t
}

func lexedPos(pos lexer.Position) Position {
	return Position{Line: pos.Line, Column: pos.Column, Offset: pos.Offset}
}

// name converts a name and refuses what no name may hold.
func (p *parser) name(rule nameRule) Name {
	n := Name{Pos: lexedPos(rule.Pos), Text: rule.Text}
	n.End = endOf(n.Pos, rule.Text)
	if strings.HasPrefix(rule.Text, `"`) {
		n.Quoted = true
		n.Text = rule.Text[1 : len(rule.Text)-1]
	}
	return n
}

// declare converts the name of what is declared here in the scope. Only the names
// of types, partials and caveats may hold an unquoted slash.
func (p *parser) declare(rule nameRule, what string, slash bool, scope *gaps) Name {
	n := p.name(rule)
	plain := 0
	for plain < len(n.Text) && isNameByte(n.Text[plain]) {
		plain++
	}
	if n.Quoted {
		if msg := checkName(n.Text); msg != "" {
			scope.begins(n.Text[:plain])
			p.errs.add(p.file, SyntaxError, n.Pos, n.End, "%s", msg)
		}
		return n
	}
	switch word := reservedBy(n.Text, p.file.flags); {
	case len(n.Text) > nameBytesMax:
		p.errs.add(p.file, SyntaxError, n.Pos, n.End, "a name may have at most %d bytes", nameBytesMax)
	case word != "":
		scope.open = true
		p.errs.add(p.file, SyntaxError, n.Pos, n.End, "`%s` is reserved by `use %s` and cannot be the name of %s unless it is quoted", n.Text, word, what)
	case !slash && strings.Contains(n.Text, "/"):
		scope.begins(n.Text[:plain])
		p.errs.add(p.file, SyntaxError, n.Pos, n.End, "the name of %s may not hold `/`; only types and caveats have prefixes", what)
	}
	return n
}

func (p *parser) exclusion(rule *exclusionRule) *Expr {
	return operation(OpExclusion, rule.Operands, p.intersection)
}

func (p *parser) intersection(rule *intersectionRule) *Expr {
	return operation(OpIntersection, rule.Operands, p.union)
}

func (p *parser) union(rule *unionRule) *Expr {
	return operation(OpUnion, rule.Operands, p.term)
}

// operation makes one n-ary node of the operands, or returns the only operand.
func operation[R any](op ExprOp, operands []R, convert func(R) *Expr) *Expr {
	if len(operands) == 1 {
		return convert(operands[0])
	}
	e := &Expr{Op: op, Children: make([]*Expr, len(operands))}
	for i, o := range operands {
		e.Children[i] = convert(o)
	}
	e.Pos, e.End = e.Children[0].Pos, e.Children[len(operands)-1].End
	return e
}

func (p *parser) term(rule *termRule) *Expr {
	pos := lexedPos(rule.Pos)
	switch {
	case rule.Nil:
		return &Expr{Op: OpNil, Pos: pos, End: endOf(pos, "nil")}
	case rule.Inner != nil:
		e := p.exclusion(rule.Inner)
		e.Parens = true
		e.Pos, e.End = pos, endOf(lexedPos(rule.Close.Pos), ")")
		return e
	}
	head, flawed := p.reference(*rule.Head)
	special := p.special(head)
	if len(rule.Steps) == 0 {
		switch special {
		case flagSelf:
			return &Expr{Op: OpSelf, Pos: head.Pos, End: head.End}
		case flagRewrite:
			return &Expr{Op: OpThis, Pos: head.Pos, End: head.End}
		}
		return &Expr{Op: OpName, Name: head, Pos: head.Pos, End: head.End, flawed: flawed}
	}
	if special != 0 {
		flawed = true
		p.errs.add(p.file, SyntaxError, head.Pos, head.End, "`%s` cannot stand left of an arrow; a relation must", head.Text)
	}
	e := &Expr{Op: OpArrow, Pos: head.Pos, Steps: []Step{{Name: head}}}
	for _, s := range rule.Steps {
		step := Step{}
		bad := false
		if s.Name != nil {
			step.Name, bad = p.reference(*s.Name)
			e.End = step.Name.End
		} else {
			kind := p.name(*s.Kind)
			step.All, step.Any = kind.Text == "all", kind.Text == "any"
			if kind.Quoted || !step.All && !step.Any {
				flawed = true
				p.errs.add(p.file, SyntaxError, kind.Pos, kind.End, "expected `any` or `all` behind the dot, found `%s`", kind.Text)
			}
			step.Name, bad = p.reference(*s.Inner)
			e.End = endOf(lexedPos(s.Close.Pos), ")")
		}
		if p.special(step.Name) != 0 {
			flawed = true
			p.errs.add(p.file, SyntaxError, step.Name.Pos, step.Name.End, "`%s` cannot be the target of an arrow", step.Name.Text)
		}
		e.Steps = append(e.Steps, step)
		flawed = flawed || bad
	}
	e.flawed = flawed
	return e
}

// reference converts the name of a relation or permission in an expression, and
// reports whether it is in error.
func (p *parser) reference(rule nameRule) (n Name, flawed bool) {
	n = p.name(rule)
	if !n.Quoted && strings.Contains(n.Text, "/") {
		flawed = true
		p.errs.add(p.file, SyntaxError, n.Pos, n.End, "`%s` is not the name of a relation or permission: those have no `/`", n.Text)
	}
	return n, flawed
}

// special returns the feature that makes the word mean something of its own in
// an expression, or 0.
func (p *parser) special(n Name) flag {
	switch {
	case n.Quoted:
		return 0
	case n.Text == "self":
		return p.file.flags & flagSelf
	case n.Text == "this":
		return p.file.flags & flagRewrite
	}
	return 0
}
