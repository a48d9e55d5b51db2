package graph

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// The text of a tuple is
//
//	object:id#relation@subject:id[#relation][caveat_name:{json}][expiration:RFC3339]
//
// where the parts in brackets are optional; the brackets of the second line of
// parts are written. Ids stand in double quotes, with the escapes of JSON, when
// they contain a blank, a character that cannot be printed, or one of # @ : [ ]
// " \. An unquoted * as the subject's id is the wildcard. Caveats without a
// context are written [caveat_name]. ValidFrom, Sources and Created
// have no text: nothing that reads text may set them.

// String returns the tuple as text. For a valid tuple ParseTuple gives it back,
// but for ValidFrom, Sources and Created.
func (t Tuple) String() string {
	b := make([]byte, 0, 96)
	b = appendObjectText(b, t.Object)
	b = append(append(b, '#'), t.Relation...)
	b = append(b, '@')
	b = appendSubjectText(b, t.Subject)
	if t.Caveat != "" {
		b = append(append(b, '['), t.Caveat...)
		if t.Context != nil {
			b = append(append(b, ':'), t.Context...)
		}
		b = append(b, ']')
	}
	if t.ValidUntil != 0 {
		b = append(append(append(b, "[expiration:"...), t.ValidUntil.String()...), ']')
	}
	return string(b)
}

// String returns the object as text: type:id.
func (o Object) String() string { return string(appendObjectText(nil, o)) }

// String returns the subject as text: type:id, type:id#relation or type:*.
func (s Subject) String() string { return string(appendSubjectText(nil, s)) }

// String returns the instant as RFC 3339 in UTC with as many decimals as it
// needs; empty for the zero Instant.
func (i Instant) String() string {
	if i == 0 {
		return ""
	}
	return i.Time().Format("2006-01-02T15:04:05.999999Z07:00")
}

func appendObjectText(b []byte, o Object) []byte {
	return appendID(append(append(b, o.Type...), ':'), o.ID)
}

func appendSubjectText(b []byte, s Subject) []byte {
	if s.ID == Wildcard {
		b = append(append(b, s.Type...), ":*"...)
	} else {
		b = appendObjectText(b, s.Object)
	}
	if s.Relation != "" {
		b = append(append(b, '#'), s.Relation...)
	}
	return b
}

// mustQuote reports whether an id with r in it has to be quoted.
func mustQuote(r rune) bool {
	switch r {
	case '#', '@', ':', '[', ']', '"', '\\', utf8.RuneError:
		return true
	}
	return unicode.IsSpace(r) || !unicode.IsPrint(r)
}

func appendID(b []byte, id string) []byte {
	if id != "" && id != Wildcard && strings.IndexFunc(id, mustQuote) < 0 {
		return append(b, id...)
	}
	return strconv.AppendQuote(b, id)
}

// A TextError says where a text is wrong. It is what the Parse functions return
// for a text that does not have the right form.
type TextError struct {
	// Text is what was parsed, Column where the mistake is, in characters from 1.
	Text   string
	Column int
	// Problem says what is wrong there, Expected what would be right.
	Problem  string
	Expected string
}

// Error says it in one line.
func (e *TextError) Error() string {
	text := e.Text
	if len(text) > 2*invalidValueShown {
		text = strings.ToValidUTF8(text[:2*invalidValueShown], "") + "..."
	}
	s := fmt.Sprintf("column %d of %q: %s", e.Column, text, e.Problem)
	if e.Expected != "" {
		s += ", expected " + e.Expected
	}
	return s
}

// ParseTuple reads a tuple from text, which must hold nothing else, not even
// blanks around it. The tuple is valid. The error is a *TextError where the form
// is wrong and an *InvalidError where a name, context or lifetime is.
func ParseTuple(text string) (Tuple, error) {
	p := parser{text: text}
	t := p.tuple()
	if p.err == nil {
		p.end("the end or '['")
	}
	if p.err != nil {
		return Tuple{}, p.err
	}
	if err := t.Validate(); err != nil {
		return Tuple{}, err
	}
	return t, nil
}

// ParseObject reads type:id; the errors are those of ParseTuple.
func ParseObject(text string) (Object, error) {
	p := parser{text: text}
	o := p.object("object")
	if p.err == nil {
		p.end("the end")
	}
	if p.err != nil {
		return Object{}, p.err
	}
	return o, nil
}

// ParseSubject reads type:id, type:id#relation or type:*; the errors are those
// of ParseTuple.
func ParseSubject(text string) (Subject, error) {
	p := parser{text: text}
	s := p.subject()
	if p.err == nil {
		p.end("the end or '#'")
	}
	if p.err != nil {
		return Subject{}, p.err
	}
	if err := s.Validate(); err != nil {
		return Subject{}, err
	}
	return s, nil
}

// ParseUserset reads type:id#name, an object and one of its relations or
// permissions; the errors are those of ParseTuple.
func ParseUserset(text string) (Object, string, error) {
	p := parser{text: text}
	o := p.object("object")
	p.expect('#')
	name := p.name("relation", false)
	if p.err == nil {
		p.end("the end")
	}
	if p.err != nil {
		return Object{}, "", p.err
	}
	return o, name, nil
}

// A parser reads a text from left to right and stops at the first mistake.
type parser struct {
	text string
	at   int // in bytes
	err  error
}

func (p *parser) fail(at int, problem, expected string) {
	if p.err == nil {
		p.err = &TextError{
			Text: p.text, Column: utf8.RuneCountInString(p.text[:at]) + 1, Problem: problem, Expected: expected,
		}
	}
}

// found says what stands at a place.
func (p *parser) found(at int) string {
	if at >= len(p.text) {
		return "the text ends"
	}
	return "found " + runeAt(p.text, at)
}

// article puts a or an before a noun.
func article(noun string) string {
	if strings.ContainsRune("aeiou", rune(noun[0])) {
		return "an " + noun
	}
	return "a " + noun
}

// peek returns the byte that comes next, or zero at the end or after a mistake.
func (p *parser) peek() byte {
	if p.err == nil && p.at < len(p.text) {
		return p.text[p.at]
	}
	return 0
}

func (p *parser) expect(c byte) {
	if p.err != nil {
		return
	}
	if p.at >= len(p.text) || p.text[p.at] != c {
		p.fail(p.at, p.found(p.at), strconv.QuoteRune(rune(c)))
		return
	}
	p.at++
}

func (p *parser) end(expected string) {
	if p.err == nil && p.at < len(p.text) {
		p.fail(p.at, p.found(p.at), expected)
	}
}

func (p *parser) tuple() Tuple {
	var t Tuple
	t.Object = p.object("object")
	p.expect('#')
	t.Relation = p.name("relation", false)
	p.expect('@')
	t.Subject = p.subject()
	for p.peek() == '[' {
		p.trait(&t)
	}
	return t
}

func (p *parser) object(what string) Object {
	o := Object{Type: p.name(what+" type", true)}
	p.expect(':')
	at := p.at
	o.ID, _ = p.id(what + " id")
	if p.err == nil && o.ID == Wildcard {
		p.fail(at, "an object cannot be the wildcard", "an id")
	}
	return o
}

func (p *parser) subject() Subject {
	var s Subject
	s.Type = p.name("subject type", true)
	p.expect(':')
	at := p.at
	var quoted bool
	s.ID, quoted = p.id("subject id")
	if p.err == nil && s.ID == Wildcard && quoted {
		p.fail(at, `"*" is no id`, "* without quotes for the wildcard")
	}
	if p.peek() == '#' {
		p.at++
		s.Relation = p.name("subject relation", false)
		if p.err == nil && s.ID == Wildcard {
			p.fail(at, "a wildcard has a relation", "a wildcard without one")
		}
	}
	return s
}

// name reads the name of a type or relation.
func (p *parser) name(what string, slash bool) string {
	if p.err != nil {
		return ""
	}
	start := p.at
	for p.at < len(p.text) && (isNameByte(p.text[p.at]) || slash && p.text[p.at] == '/') {
		p.at++
	}
	name := p.text[start:p.at]
	switch {
	case name == "":
		p.fail(start, p.found(start), article(what))
	case len(name) > MaxNameLength:
		p.fail(start, fmt.Sprintf("the %s has %d bytes", what, len(name)), fmt.Sprintf("at most %d", MaxNameLength))
	}
	return name
}

// id reads an id, with or without quotes.
func (p *parser) id(what string) (id string, quoted bool) {
	if p.err != nil {
		return "", false
	}
	start := p.at
	if p.peek() == '"' {
		id, quoted = p.quoted(), true
	} else {
		n := strings.IndexFunc(p.text[p.at:], mustQuote)
		if n < 0 {
			n = len(p.text) - p.at
		}
		id = p.text[start : start+n]
		p.at += n
		if c := p.peek(); id == "" {
			p.fail(start, p.found(start), article(what)+`, in quotes if it has blanks or one of # @ : [ ] " \`)
		} else if c != 0 && c != '#' && c != '[' {
			p.fail(p.at, p.found(p.at), "what follows the "+what+", or quotes around it"+quotedLike(p.text[start:]))
		}
	}
	if p.err != nil || (id == Wildcard) {
		return id, quoted
	}
	if err := validateID(what, id); err != nil {
		p.err = err
	}
	return id, quoted
}

// quotedLike shows how an id is quoted that may go on as text does, up to what can
// only follow an id.
func quotedLike(text string) string {
	if n := strings.IndexAny(text, "#["); n >= 0 {
		text = text[:n]
	}
	if strings.ContainsFunc(text, unicode.IsSpace) || strings.ContainsAny(text, "\"\\") || validateID("id", text) != nil {
		return "" // It may well be something else that goes on.
	}
	return ", as " + string(appendID(nil, text))
}

// quoted reads a string in quotes with the escapes that JSON and Go have in
// common, and Go's \U, which may write any character.
func (p *parser) quoted() string {
	start := p.at
	p.at++
	var b strings.Builder
	for p.at < len(p.text) {
		c := p.text[p.at]
		switch c {
		case '"':
			p.at++
			return b.String()
		case '\\':
			r, ok := p.escape()
			if !ok {
				return ""
			}
			b.WriteRune(r)
		default:
			b.WriteByte(c)
			p.at++
		}
	}
	p.fail(start, "the quotes are not closed", `'"'`)
	return ""
}

// escape reads one character that is written with a backslash.
func (p *parser) escape() (rune, bool) {
	start := p.at
	p.at++
	c := p.peek()
	p.at++
	switch c {
	case '"', '\\', '/':
		return rune(c), true
	case 'a':
		return '\a', true
	case 'b':
		return '\b', true
	case 'f':
		return '\f', true
	case 'n':
		return '\n', true
	case 'r':
		return '\r', true
	case 't':
		return '\t', true
	case 'v':
		return '\v', true
	case 'x':
		if v, ok := p.hex(2); ok && v < utf8.RuneSelf {
			return v, true
		}
	case 'u':
		v, ok := p.hex(4)
		if ok && 0xd800 <= v && v < 0xdc00 && strings.HasPrefix(p.text[p.at:], `\u`) {
			p.at += 2
			low, lowOK := p.hex(4)
			if v = (v-0xd800)<<10 | (low - 0xdc00) + 0x10000; lowOK && 0xdc00 <= low && low < 0xe000 {
				return v, true
			}
			ok = false
		}
		if ok && utf8.ValidRune(v) {
			return v, true
		}
	case 'U':
		if v, ok := p.hex(8); ok && utf8.ValidRune(v) {
			return v, true
		}
	}
	p.fail(start, "a backslash begins no escape", `one of \" \\ \/ \uXXXX \UXXXXXXXX`)
	return 0, false
}

func (p *parser) hex(digits int) (rune, bool) {
	if len(p.text)-p.at < digits {
		return 0, false
	}
	v, err := strconv.ParseUint(p.text[p.at:p.at+digits], 16, 31)
	p.at += digits
	return rune(v), err == nil
}

// trait reads one of the parts in brackets.
func (p *parser) trait(t *Tuple) {
	start := p.at
	p.expect('[')
	name := p.name("caveat or expiration", true)
	if p.err != nil {
		return
	}
	if p.peek() != ':' {
		p.caveat(t, start, name)
		p.expect(']')
		return
	}
	p.at++
	if p.peek() == '{' {
		p.caveat(t, start, name)
		p.context(t)
		p.expect(']')
		return
	}
	if name == "expiration" {
		t.ValidUntil = p.instant(t.ValidUntil, start, name)
	} else {
		p.fail(p.at, p.found(p.at), "the caveat's context, a JSON object")
	}
	p.expect(']')
}

func (p *parser) caveat(t *Tuple, start int, name string) {
	if t.Caveat != "" {
		p.fail(start, "there is a second caveat", "at most one")
	}
	t.Caveat = name
}

// context reads a JSON object. Its end is found by counting braces outside of
// strings; whether it is JSON is judged then.
func (p *parser) context(t *Tuple) {
	if p.err != nil {
		return
	}
	start, depth, inString := p.at, 0, false
	for ; p.at < len(p.text); p.at++ {
		switch c := p.text[p.at]; {
		case inString && c == '\\':
			p.at++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{':
			depth++
		case c == '}':
			depth--
		}
		if depth == 0 {
			p.at++
			context, err := CanonicalContext([]byte(p.text[start:p.at]))
			if err != nil {
				p.err = err
			}
			t.Context = context
			return
		}
	}
	p.at = len(p.text)
	p.fail(start, "the context is not closed", "'}'")
}

// instant reads up to the closing bracket. What is finer than a microsecond is
// dropped.
func (p *parser) instant(old Instant, start int, name string) Instant {
	if old != 0 {
		p.fail(start, "there is a second "+name, "at most one")
		return 0
	}
	n := strings.IndexByte(p.text[p.at:], ']')
	if n < 0 {
		n = len(p.text) - p.at
	}
	at, err := time.Parse(time.RFC3339Nano, p.text[p.at:p.at+n])
	const allowed = "a time like 2030-01-31T12:00:00Z, after 1970"
	if err != nil {
		p.fail(p.at, "the "+name+" is no time", allowed)
		return 0
	}
	i := InstantOf(at)
	if i <= 0 || i > MaxInstant {
		p.fail(p.at, "the "+name+" is out of range", allowed)
		return 0
	}
	p.at += n
	return i
}
