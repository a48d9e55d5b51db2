package schema

import (
	"fmt"
	"sort"
	"strings"
	"unicode/utf8"
)

// A Position is a place in the text of a schema. The zero Position means that
// the place is not known.
type Position struct {
	// Line and Column count from 1; Column counts characters (code points).
	Line, Column int
	// Offset counts bytes from 0.
	Offset int
}

// IsZero reports whether the place is unknown.
func (p Position) IsZero() bool { return p.Line == 0 }

// String returns "line:column".
func (p Position) String() string { return fmt.Sprintf("%d:%d", p.Line, p.Column) }

// An ErrorKind says which half of the work an Error comes from.
type ErrorKind uint8

const (
	// SyntaxError is about the text alone: it does not follow the grammar, uses a
	// reserved word as a name, or holds a malformed CEL expression.
	SyntaxError ErrorKind = iota + 1
	// TypeError is about meaning: the text can be read, but a name does not
	// resolve, a rule of the language is broken, or a limit is passed.
	TypeError
)

// String returns "syntax" or "type".
func (k ErrorKind) String() string {
	switch k {
	case SyntaxError:
		return "syntax"
	case TypeError:
		return "type"
	}
	return fmt.Sprintf("ErrorKind(%d)", uint8(k))
}

// An Error is one mistake in a schema.
type Error struct {
	Kind ErrorKind
	// File is the name given to Parse, or the path given to Load.
	File string
	// Pos is where the mistake begins and End is just behind it. Pos is zero for
	// a mistake that has no place of its own.
	Pos, End Position
	// Msg is one sentence without a full stop.
	Msg string
	// Suggestion is the name that was probably meant; empty if there is none.
	Suggestion string
	// SourceLine is the line of Pos without its line end; of a very long line only
	// the part around Pos.
	SourceLine string

	// caret is the number of characters of SourceLine before Pos.
	caret int
}

// Error returns "file:line:col: msg", the source line, a caret below the place
// and the suggestion.
func (e *Error) Error() string {
	var b strings.Builder
	if e.File != "" {
		b.WriteString(e.File + ":")
	}
	if !e.Pos.IsZero() {
		b.WriteString(e.Pos.String() + ":")
	}
	if b.Len() > 0 {
		b.WriteByte(' ')
	}
	b.WriteString(e.Msg)
	if e.SourceLine != "" {
		b.WriteString("\n    " + e.SourceLine + "\n    ")
		n := 0
		for _, r := range e.SourceLine {
			if n == e.caret {
				break
			}
			// Tabs are kept so that the caret stands right for every tab width.
			if r != '\t' {
				r = ' '
			}
			b.WriteRune(r)
			n++
		}
		b.WriteByte('^')
		if e.End.Line == e.Pos.Line {
			rest := utf8.RuneCountInString(e.SourceLine) - e.caret
			b.WriteString(strings.Repeat("~", max(0, min(e.End.Column-e.Pos.Column, rest)-1)))
		}
	}
	if e.Suggestion != "" {
		b.WriteString("\n    did you mean `" + e.Suggestion + "`?")
	}
	return b.String()
}

// Errors holds all mistakes found in a schema, sorted by file and position. It
// is what Parse, Load and Compile return as their error.
type Errors []*Error

// errorsShown bounds the text of Errors, errorsKept its length.
const (
	errorsShown = 20
	errorsKept  = 100
)

// Error joins the texts of the first errors by line breaks.
func (e Errors) Error() string {
	var b strings.Builder
	for i, err := range e {
		if i == errorsShown {
			fmt.Fprintf(&b, "\n%d more errors", len(e)-i)
			break
		}
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(err.Error())
	}
	return b.String()
}

// Unwrap returns the single errors, each an *Error.
func (e Errors) Unwrap() []error {
	errs := make([]error, len(e))
	for i, err := range e {
		errs[i] = err
	}
	return errs
}

// An errorList gathers the errors of a parse or a compile. It drops repeats
// (a partial's mistake shows once, however often the partial is used) and what
// comes after errorsKept.
type errorList struct {
	errs Errors
	seen map[errorKey]bool
}

type errorKey struct {
	file   string
	offset int
	msg    string
}

// A reported error can still be completed. The error is nil if it was dropped.
type reported struct{ err *Error }

// explain adds to the message.
func (r reported) explain(more string) {
	if r.err != nil {
		r.err.Msg += more
	}
}

// suggest adds the candidate that name is probably a misspelling of.
func (r reported) suggest(name string, candidates func() []string) {
	if r.err != nil {
		r.err.Suggestion = suggest(name, candidates())
	}
}

// suggestExactly adds a suggestion.
func (r reported) suggestExactly(text string) {
	if r.err != nil {
		r.err.Suggestion = text
	}
}

// add records an error unless it is a repeat, and takes its SourceLine from the
// source of the file, which may be nil.
func (l *errorList) add(file *File, kind ErrorKind, pos, end Position, format string, args ...any) reported {
	err := &Error{Kind: kind, Pos: pos, End: end, Msg: fmt.Sprintf(format, args...)}
	if file != nil {
		err.File = file.Name
		if !pos.IsZero() {
			err.SourceLine, err.caret = sourceLine(file.Source, pos)
		}
	}
	key := errorKey{err.File, pos.Offset, err.Msg}
	if l.seen == nil {
		l.seen = map[errorKey]bool{}
	}
	if l.seen[key] || l.full() {
		return reported{}
	}
	l.seen[key] = true
	l.errs = append(l.errs, err)
	return reported{err}
}

// full reports whether further errors would be dropped.
func (l *errorList) full() bool { return len(l.errs) >= errorsKept }

// err returns the gathered errors, sorted, or nil. order gives the place of each
// file; files that it does not name come first.
func (l *errorList) err(order map[string]int) error {
	if len(l.errs) == 0 {
		return nil
	}
	sort.SliceStable(l.errs, func(i, j int) bool {
		a, b := l.errs[i], l.errs[j]
		if a.File != b.File {
			return order[a.File] < order[b.File]
		}
		if a.Pos.Offset != b.Pos.Offset {
			return a.Pos.Offset < b.Pos.Offset
		}
		return a.Msg < b.Msg
	})
	return l.errs
}

// sourceLineBytes bounds the part of a line that an Error or Warning shows.
const sourceLineBytes = 240

// sourceLine returns the line of pos, or the part around pos of a long one, and
// the number of characters before pos in it.
func sourceLine(source string, pos Position) (line string, caret int) {
	at := min(pos.Offset, len(source))
	start := strings.LastIndexByte(source[:at], '\n') + 1
	end := len(source)
	if i := strings.IndexByte(source[at:], '\n'); i >= 0 {
		end = at + i
	}
	if end-start > sourceLineBytes {
		start = max(start, at-sourceLineBytes/2)
		end = min(end, start+sourceLineBytes)
		for start < at && !utf8.RuneStart(source[start]) {
			start++
		}
		for end < len(source) && end > at && !utf8.RuneStart(source[end]) {
			end--
		}
	}
	line = strings.TrimRight(source[start:end], "\r")
	return strings.ToValidUTF8(line, "\uFFFD"), utf8.RuneCountInString(source[start:at])
}

// What suggest looks at is bounded: it also answers questions, and runs where the
// log is applied. Among more candidates, or beyond so many mistakes, a suggestion is
// a guess.
const (
	suggestNameBytes  = 64
	suggestCandidates = 2000
	suggestDistance   = 5
)

// suggest returns the candidate nearest to name by edit distance, or "" if none
// is near enough to be a misspelling of it. Of equally near ones the first in
// alphabetical order wins, so the result does not depend on the order given.
func suggest(name string, candidates []string) string {
	if name == "" || len(name) > suggestNameBytes || len(candidates) > suggestCandidates {
		return ""
	}
	best, bestDistance := "", min(max(1, len(name)/3), suggestDistance)+1
	for _, c := range candidates {
		if d := len(c) - len(name); d >= bestDistance+1 || -d >= bestDistance+1 || c == name {
			continue
		}
		d := editDistance(name, c, bestDistance)
		if d < bestDistance || d == bestDistance && best != "" && c < best {
			best, bestDistance = c, d
		}
	}
	return best
}

// editRow holds a row of the table of editDistance.
type editRow [suggestNameBytes + suggestDistance + 3]int

// editDistance returns the number of insertions, deletions, substitutions and
// swaps of neighbours that turn a into b, or some number above limit. Their
// lengths may differ by limit; a has at most suggestNameBytes, and the limit is at
// most suggestDistance+1.
func editDistance(a, b string, limit int) int {
	// Three rows of the usual table: two above the current one for the swaps. Of each
	// only the cells within limit of the diagonal can lie on a short way; those
	// beside them count as too far.
	var rows [3]editRow
	above2, above, row := &rows[0], &rows[1], &rows[2]
	for j := range min(len(b), limit) + 2 {
		above[j] = j
	}
	for i := 1; i <= len(a); i++ {
		from, to := max(1, i-limit), min(len(b), i+limit)
		row[from-1] = limit + 1
		if from == 1 {
			row[0] = i
		}
		best := row[from-1]
		for j := from; j <= to; j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d := min(above[j]+1, row[j-1]+1, above[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, above2[j-2]+1)
			}
			row[j] = d
			best = min(best, d)
		}
		row[to+1] = limit + 1
		if best > limit {
			return limit + 1
		}
		above2, above, row = above, row, above2
	}
	return above[len(b)]
}
