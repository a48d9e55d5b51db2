package schema

import (
	"errors"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/alecthomas/participle/v2/lexer"
)

// The kinds of token. The lexer is written by hand, because three things depend
// on where they stand: a caveat's body is one token (CEL has its own lexical
// rules), a dash is an operator in expressions and part of a name elsewhere, and
// comments must survive.
const (
	tokenEOF lexer.TokenType = lexer.EOF - iota
	tokenIdent
	tokenKeyword
	tokenString
	tokenPunct
	tokenComment
	tokenCEL
)

// Limits on the text, which keep the parser's time and stack bounded.
const (
	// SourceBytesMax is the size of the largest file that Parse accepts.
	SourceBytesMax = 4 << 20
	// tokensMax also keeps every repetition below participle's own limit, which
	// would end in a panic.
	tokensMax = 500_000
	// nestingMax bounds brackets within brackets.
	nestingMax = 200
)

// tokens is the lexer definition for participle. The tokens come from lex; the
// Lex method is there for completeness of the interface.
type tokens struct{}

func (tokens) Symbols() map[string]lexer.TokenType {
	return map[string]lexer.TokenType{
		"EOF": tokenEOF, "Ident": tokenIdent, "Keyword": tokenKeyword, "String": tokenString,
		"Punct": tokenPunct, "Comment": tokenComment, "CEL": tokenCEL,
	}
}

func (tokens) Lex(filename string, r io.Reader) (lexer.Lexer, error) {
	source, err := io.ReadAll(io.LimitReader(r, SourceBytesMax+1))
	if err != nil {
		return nil, err
	}
	var errs errorList
	toks := lex(&File{Name: filename, Source: string(source)}, &errs)
	if err := errs.err(nil); err != nil {
		return nil, err
	}
	return &tokenReader{toks}, nil
}

// tokenReader hands out a slice of tokens that ends with EOF.
type tokenReader struct{ toks []lexer.Token }

func (r *tokenReader) Next() (lexer.Token, error) {
	t := r.toks[0]
	if len(r.toks) > 1 {
		r.toks = r.toks[1:]
	}
	return t, nil
}

// scanner is the state of lex.
type scanner struct {
	file *File
	src  string
	errs *errorList
	toks []lexer.Token

	offset, line, column int

	inExpression bool // behind an equals sign: a dash is an operator
	wantBody     bool // behind `caveat`: the next { opens a CEL body
}

// lex splits the file's source into tokens, of which the last is EOF. It reports
// characters that begin no token and leaves them out.
func lex(file *File, errs *errorList) []lexer.Token {
	s := &scanner{file: file, src: file.Source, errs: errs, line: 1, column: 1}
	s.toks = make([]lexer.Token, 0, len(s.src)/6+8)
	if strings.HasPrefix(s.src, "\uFEFF") {
		s.offset = len("\uFEFF")
	}
	for s.offset < len(s.src) && !s.errs.full() {
		if len(s.toks) >= tokensMax {
			pos := s.position()
			errs.add(file, SyntaxError, pos, pos, "the file has more than %d tokens", tokensMax)
			s.skip(len(s.src) - s.offset)
			break
		}
		s.next()
	}
	return append(s.toks, lexer.EOFToken(s.lexerPosition()))
}

func (s *scanner) position() Position {
	return Position{Line: s.line, Column: s.column, Offset: s.offset}
}

func (s *scanner) lexerPosition() lexer.Position {
	return lexer.Position{Offset: s.offset, Line: s.line, Column: s.column}
}

// advance moves behind the next n bytes.
func (s *scanner) advance(n int) {
	text := s.src[s.offset : s.offset+n]
	if i := strings.LastIndexByte(text, '\n'); i >= 0 {
		s.line += strings.Count(text, "\n")
		s.column = 1
		text = text[i+1:]
	}
	s.column += utf8.RuneCountInString(text)
	s.offset += n
}

// emit makes a token of the next n bytes.
func (s *scanner) emit(kind lexer.TokenType, n int) {
	s.toks = append(s.toks, lexer.Token{Type: kind, Value: s.src[s.offset : s.offset+n], Pos: s.lexerPosition()})
	s.advance(n)
}

// fail reports the next n bytes and skips them.
func (s *scanner) fail(n int, format string, args ...any) {
	pos := s.position()
	s.skip(n)
	s.errs.add(s.file, SyntaxError, pos, s.position(), format, args...)
}

// skip moves behind the next n bytes, of which no token is made.
func (s *scanner) skip(n int) {
	text := s.src[s.offset : s.offset+n]
	gap := skippedText{start: s.offset, end: s.offset + n, torn: strings.ContainsAny(text, "{}\n")}
	if utf8.RuneCountInString(text) > 1 {
		s.file.gaps.openAll()
	}
	s.file.gaps.skipped = append(s.file.gaps.skipped, gap)
	s.advance(n)
}

func (s *scanner) next() {
	rest := s.src[s.offset:]
	c := rest[0]
	switch {
	case c == ' ' || c == '\t' || c == '\r' || c == '\n':
		n := 1
		for n < len(rest) && (rest[n] == ' ' || rest[n] == '\t' || rest[n] == '\r' || rest[n] == '\n') {
			n++
		}
		s.advance(n)
	case isNameByte(c):
		s.word(rest)
	case c == '"':
		s.quoted(rest)
	case strings.HasPrefix(rest, "//"):
		n := strings.IndexByte(rest, '\n')
		if n < 0 {
			n = len(rest)
		}
		s.comment(n)
	case strings.HasPrefix(rest, "/*"):
		n := strings.Index(rest[2:], "*/")
		if n < 0 {
			s.fail(len(rest), "the comment is not closed by */")
			return
		}
		s.comment(n + 4)
	case strings.HasPrefix(rest, "..."):
		s.inExpression = false
		s.emit(tokenPunct, 3)
	case strings.HasPrefix(rest, "->"):
		s.emit(tokenPunct, 2)
	case c == '{' && s.wantBody:
		s.wantBody = false
		s.body(rest)
	case strings.IndexByte("{}()<>:#*|=+&-.,;", c) >= 0:
		switch c {
		case '=':
			s.inExpression = true
		case '}', ';':
			s.inExpression = false
		}
		s.emit(tokenPunct, 1)
	default:
		r, n := utf8.DecodeRuneInString(rest)
		if r == utf8.RuneError && n <= 1 {
			s.fail(1, "the source is not valid UTF-8 here")
			return
		}
		s.fail(n, "unexpected character %q", r)
	}
}

// word lexes a name or keyword. A slash, and outside expressions a dash, that
// joins two name characters belongs to the name.
func (s *scanner) word(rest string) {
	n := 1
	for n < len(rest) {
		c := rest[n]
		if !isNameByte(c) {
			joins := c == '/' || c == '-' && !s.inExpression
			if !joins || n+1 == len(rest) || !isNameByte(rest[n+1]) {
				break
			}
		}
		n++
	}
	kind := tokenIdent
	if word := rest[:n]; keywords[word] {
		kind = tokenKeyword
		switch word {
		case "definition", "relation", "permission":
			s.inExpression, s.wantBody = false, false
		case "caveat":
			s.inExpression, s.wantBody = false, true
		}
	}
	s.emit(kind, n)
}

// quoted lexes a name or path in double quotes. There are no escapes: no name
// needs one.
func (s *scanner) quoted(rest string) {
	n := strings.IndexAny(rest[1:], "\"\n")
	if n < 0 || rest[n+1] == '\n' {
		if n < 0 {
			n = len(rest) - 1
		}
		s.fail(n+1, "the string is not closed on its line")
		return
	}
	if !utf8.ValidString(rest[:n+2]) {
		s.fail(n+2, "the source is not valid UTF-8 here")
		return
	}
	s.emit(tokenString, n+2)
}

func (s *scanner) comment(n int) {
	if !utf8.ValidString(s.src[s.offset : s.offset+n]) {
		s.fail(n, "the source is not valid UTF-8 here")
		return
	}
	s.emit(tokenComment, n)
}

// body lexes a caveat's body with its braces.
func (s *scanner) body(rest string) {
	n, _, err := scanCEL(rest)
	if err != nil {
		s.fail(n, "%v", err)
		return
	}
	if !utf8.ValidString(rest[:n]) {
		s.fail(n, "the source is not valid UTF-8 here")
		return
	}
	s.emit(tokenCEL, n)
}

var errBodyNotClosed = errors.New("the caveat's expression is not closed by }")

// scanCEL finds the end of the braces that text begins with, knowing the strings
// and comments of CEL. It returns their length, and whether a string inside
// spans lines.
func scanCEL(text string) (n int, multiline bool, err error) {
	depth := 0
	for n < len(text) {
		switch c := text[n]; {
		case c == '{':
			depth++
			n++
		case c == '}':
			depth--
			n++
			if depth == 0 {
				return n, multiline, nil
			}
		case strings.HasPrefix(text[n:], "//"):
			end := strings.IndexByte(text[n:], '\n')
			if end < 0 {
				return len(text), multiline, errBodyNotClosed
			}
			n += end
		case c == '"' || c == '\'':
			size, spans := scanCELString(text[n:], rawPrefix(text[:n]))
			if size == 0 {
				return len(text), multiline, errors.New("a string in the caveat's expression is not closed")
			}
			multiline = multiline || spans
			n += size
		default:
			n++
		}
	}
	return n, multiline, errBodyNotClosed
}

// rawPrefix reports whether the string behind text is a raw one: r"..", br"..".
func rawPrefix(text string) bool {
	n := len(text)
	for n > 0 && isNameByte(text[n-1]) {
		n--
	}
	switch strings.ToLower(text[n:]) {
	case "r", "br", "rb":
		return true
	}
	return false
}

// scanCELString returns the length of the string literal that text begins with,
// or 0 if it is not closed, and whether it contains a line break.
func scanCELString(text string, raw bool) (n int, multiline bool) {
	quote := text[:1]
	if triple := strings.Repeat(quote, 3); strings.HasPrefix(text, triple) {
		quote = triple
	}
	for n = len(quote); n < len(text); n++ {
		switch {
		case text[n] == '\\' && !raw:
			n++
		case text[n] == '\n':
			if len(quote) == 1 {
				return 0, false
			}
			multiline = true
		case strings.HasPrefix(text[n:], quote):
			return n + len(quote), multiline
		}
	}
	return 0, false
}

// checkNesting reports the first bracket that is nested too deep. The grammar
// recurses with the nesting, and Go cannot recover from a full stack.
func checkNesting(file *File, toks []lexer.Token, errs *errorList) bool {
	depth := 0
	for _, t := range toks {
		if t.Type != tokenPunct {
			continue
		}
		switch t.Value {
		case "(", "{", "<":
			if depth++; depth > nestingMax {
				pos := tokenPos(t)
				errs.add(file, SyntaxError, pos, tokenEnd(t), "brackets are nested more than %d deep", nestingMax)
				return false
			}
		case ")", "}", ">":
			depth--
		}
	}
	return true
}

func tokenPos(t lexer.Token) Position {
	return Position{Line: t.Pos.Line, Column: t.Pos.Column, Offset: t.Pos.Offset}
}

// tokenEnd returns the place just behind the token.
func tokenEnd(t lexer.Token) Position { return endOf(tokenPos(t), t.Value) }

// endOf returns the place just behind the text that begins at pos.
func endOf(pos Position, text string) Position {
	pos.Offset += len(text)
	if i := strings.LastIndexByte(text, '\n'); i >= 0 {
		pos.Line += strings.Count(text, "\n")
		pos.Column = 1
		text = text[i+1:]
	}
	pos.Column += utf8.RuneCountInString(text)
	return pos
}

// normalComment removes what depends on the place of a comment: trailing blanks
// and the indentation of the lines behind the first.
func normalComment(text string) string {
	if !strings.Contains(text, "\n") {
		return strings.TrimRight(text, " \t\r")
	}
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " \t\r")
	}
	starred := true
	for _, l := range lines[1:] {
		starred = starred && strings.HasPrefix(strings.TrimLeft(l, " \t"), "*")
	}
	if starred {
		for i, l := range lines[1:] {
			lines[i+1] = " " + strings.TrimLeft(l, " \t")
		}
	} else {
		dedent(lines[1:])
	}
	return strings.Join(lines, "\n")
}

// dedent removes the blanks that all lines that are not empty begin with.
func dedent(lines []string) {
	prefix, found := "", false
	for _, l := range lines {
		if l == "" {
			continue
		}
		indent := l[:len(l)-len(strings.TrimLeft(l, " \t"))]
		if !found {
			prefix, found = indent, true
			continue
		}
		n := 0
		for n < len(prefix) && n < len(indent) && prefix[n] == indent[n] {
			n++
		}
		prefix = prefix[:n]
	}
	for i, l := range lines {
		lines[i] = strings.TrimPrefix(l, prefix)
	}
}
