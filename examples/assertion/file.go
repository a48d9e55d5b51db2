package assertion

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

// A File is one assertion file, read and taken apart, with the files it names.
type File struct {
	// Name is the name that was given to Load.
	Name string

	schemaText string
	tuples     []placed[graph.Tuple]
	assertions []placed[assertion]
	relations  []expectedRelation
}

// A placed thing knows where it was written.
type placed[T any] struct {
	file  string
	line  int
	value T
}

// An assertion expects one decision of one check.
type assertion struct {
	text    string
	want    expectation
	object  graph.Object
	name    string
	subject graph.Subject
	context schema.Context
}

// An expectation is one of the lists below "assertions".
type expectation string

const (
	assertTrue     expectation = "assertTrue"
	assertCaveated expectation = "assertCaveated"
	assertFalse    expectation = "assertFalse"
)

// An expectedRelation expects exactly the listed subjects to have name on
// object.
type expectedRelation struct {
	file     string
	line     int
	object   graph.Object
	name     string
	subjects []placed[expectedSubject]
}

// An expectedSubject is one line of an expectedRelation.
type expectedSubject struct {
	subject     graph.Subject
	conditional bool
	// excluded holds, for a wildcard, whom it does not hold for, and whether
	// that depends on a caveat.
	excluded map[graph.Subject]bool
	// relations holds the relations that the subject stands on, in the form
	// object#relation; nil when the file does not say.
	relations map[string]bool
}

// A ParseError says where and why a file cannot be read.
type ParseError struct {
	File string
	// Line counts from 1; it is zero when the whole file is at fault.
	Line    int
	Message string
	// Cause is the error beneath; it may be nil.
	Cause error
}

// Error returns "file:line: message".
func (e *ParseError) Error() string {
	if e.Line == 0 {
		return e.File + ": " + e.Message
	}
	return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Message)
}

// Unwrap returns the cause.
func (e *ParseError) Unwrap() error { return e.Cause }

// Load reads the named assertion file of fsys. What the file itself names is
// looked for beside it. The errors are of type *ParseError, joined when there
// are several.
func Load(fsys fs.FS, name string) (*File, error) {
	text, err := fs.ReadFile(fsys, name)
	if err != nil {
		return nil, &ParseError{File: name, Message: "cannot be read: " + err.Error(), Cause: err}
	}
	l := &loader{fsys: fsys, file: &File{Name: name}}
	l.load(text)
	if len(l.errs) > 0 {
		return nil, errors.Join(l.errs...)
	}
	return l.file, nil
}

// A loader collects the errors of one file, as far as it can go on behind them.
type loader struct {
	fsys fs.FS
	file *File
	errs []error
}

func (l *loader) failf(line int, format string, args ...any) {
	l.errs = append(l.errs, &ParseError{File: l.file.Name, Line: line, Message: fmt.Sprintf(format, args...)})
}

func (l *loader) load(text []byte) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			l.failf(0, "the file is empty; it needs at least a schema or a schemaFile")
			return
		}
		l.failf(0, "is not YAML: %v", err)
		return
	}
	root := doc.Content[0]
	keys := l.mapping(root, "the file")
	if keys == nil {
		return
	}
	for _, key := range keys {
		switch key.name.Value {
		case "schema", "schemaFile", "relationships", "tuplesFile", "assertions", "validation":
		default:
			l.failf(key.name.Line, "unknown key %q; allowed are schema, schemaFile, relationships, tuplesFile, assertions, validation", key.name.Value)
		}
	}
	l.schema(root, find(keys, "schema"), find(keys, "schemaFile"))
	if n := find(keys, "tuplesFile"); n != nil {
		l.tuplesFile(n)
	}
	if n := find(keys, "relationships"); n != nil {
		l.relationships(n)
	}
	if n := find(keys, "assertions"); n != nil {
		l.assertions(n)
	}
	if n := find(keys, "validation"); n != nil {
		l.validation(n)
	}
}

// A pair is one entry of a mapping.
type pair struct{ name, value *yaml.Node }

// mapping returns the entries of n in source order; nil, with an error, when n
// is something else. A null counts as empty.
func (l *loader) mapping(n *yaml.Node, what string) []pair {
	if isNull(n) {
		return []pair{}
	}
	if n.Kind != yaml.MappingNode {
		l.failf(n.Line, "%s must be a mapping of keys to values", what)
		return nil
	}
	pairs := make([]pair, 0, len(n.Content)/2)
	seen := make(map[string]bool)
	for i := 0; i+1 < len(n.Content); i += 2 {
		name := n.Content[i]
		if seen[name.Value] {
			l.failf(name.Line, "key %q stands twice", name.Value)
		}
		seen[name.Value] = true
		pairs = append(pairs, pair{name, n.Content[i+1]})
	}
	return pairs
}

func find(pairs []pair, name string) *yaml.Node {
	for _, p := range pairs {
		if p.name.Value == name {
			return p.value
		}
	}
	return nil
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// scalar returns the text of n.
func (l *loader) scalar(n *yaml.Node, what string) (string, bool) {
	if isNull(n) {
		return "", true
	}
	if n.Kind != yaml.ScalarNode {
		l.failf(n.Line, "%s must be text", what)
		return "", false
	}
	return n.Value, true
}

func (l *loader) schema(root, text, file *yaml.Node) {
	if text != nil && file != nil {
		l.failf(file.Line, "schema and schemaFile exclude each other")
		return
	}
	if text == nil && file == nil {
		l.failf(root.Line, "a schema is missing: give schema or schemaFile")
		return
	}
	if text != nil {
		src, ok := l.scalar(text, "schema")
		if !ok {
			return
		}
		// The blank lines let the positions in errors be those in this file.
		if text.Style == yaml.LiteralStyle {
			src = strings.Repeat("\n", text.Line) + src
		}
		parsed, err := schema.Parse(l.file.Name, src)
		if err != nil {
			l.errs = append(l.errs, &ParseError{File: l.file.Name, Line: text.Line, Message: "the schema:\n" + err.Error(), Cause: err})
			return
		}
		if _, err := schema.Check(parsed); err != nil {
			l.errs = append(l.errs, &ParseError{File: l.file.Name, Line: text.Line, Message: "the schema:\n" + err.Error(), Cause: err})
			return
		}
		l.file.schemaText = src
		return
	}
	name, ok := l.scalar(file, "schemaFile")
	if !ok {
		return
	}
	full := path.Join(path.Dir(l.file.Name), name)
	// Imports of the schema may not leave its folder.
	dir, err := subFolder(l.fsys, path.Dir(full))
	if err != nil {
		l.failf(file.Line, "schemaFile %q cannot be read: %v", name, err)
		return
	}
	parsed, err := schema.Load(dir, path.Base(full))
	if err != nil {
		l.errs = append(l.errs, &ParseError{File: l.file.Name, Line: file.Line, Message: fmt.Sprintf("schemaFile %q: %v", name, err), Cause: err})
		return
	}
	compiled, err := schema.Check(parsed)
	if err != nil {
		l.errs = append(l.errs, &ParseError{File: l.file.Name, Line: file.Line, Message: fmt.Sprintf("schemaFile %q: %v", name, err), Cause: err})
		return
	}
	// Printed, because the text of a file alone may lack what it imports.
	l.file.schemaText = schema.Print(compiled)
}

func (l *loader) tuplesFile(n *yaml.Node) {
	name, ok := l.scalar(n, "tuplesFile")
	if !ok {
		return
	}
	full := path.Join(path.Dir(l.file.Name), name)
	text, err := fs.ReadFile(l.fsys, full)
	if err != nil {
		l.errs = append(l.errs, &ParseError{File: l.file.Name, Line: n.Line, Message: fmt.Sprintf("tuplesFile %q cannot be read: %v", name, err), Cause: err})
		return
	}
	line := 0
	for s := range strings.Lines(string(text)) {
		line++
		l.tuple(full, line, s)
	}
}

func (l *loader) relationships(n *yaml.Node) {
	text, ok := l.scalar(n, "relationships")
	if !ok {
		return
	}
	// Only a literal block keeps its lines; of other styles the first is named.
	line, step := n.Line, 0
	if n.Style == yaml.LiteralStyle {
		step = 1
	}
	for s := range strings.Lines(text) {
		line += step
		l.tuple(l.file.Name, line, s)
	}
}

// tuple reads one line of tuple text; blank lines and comments hold none.
func (l *loader) tuple(file string, line int, text string) {
	text = strings.TrimSpace(text)
	if text == "" || strings.HasPrefix(text, "#") || strings.HasPrefix(text, "//") {
		return
	}
	t, err := graph.ParseTuple(withoutEllipsis(text))
	if err != nil {
		l.errs = append(l.errs, &ParseError{File: file, Line: line, Message: err.Error(), Cause: err})
		return
	}
	l.file.tuples = append(l.file.tuples, placed[graph.Tuple]{file, line, t})
}

func (l *loader) assertions(n *yaml.Node) {
	for _, p := range l.mapping(n, "assertions") {
		want := expectation(p.name.Value)
		switch want {
		case assertTrue, assertCaveated, assertFalse:
		default:
			l.failf(p.name.Line, "unknown key %q; allowed are assertTrue, assertCaveated, assertFalse", p.name.Value)
			continue
		}
		for _, item := range l.sequence(p.value, p.name.Value) {
			text, ok := l.scalar(item, "an assertion")
			if !ok {
				continue
			}
			a, err := parseAssertion(text)
			if err != nil {
				l.failf(item.Line, "%v", err)
				continue
			}
			a.want = want
			l.file.assertions = append(l.file.assertions, placed[assertion]{l.file.Name, item.Line, a})
		}
	}
}

func (l *loader) sequence(n *yaml.Node, what string) []*yaml.Node {
	if isNull(n) {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		l.failf(n.Line, "%s must be a list", what)
		return nil
	}
	return n.Content
}

func (l *loader) validation(n *yaml.Node) {
	for _, p := range l.mapping(n, "validation") {
		object, name, err := graph.ParseUserset(p.name.Value)
		if err != nil {
			l.failf(p.name.Line, "%q is not of the form type:id#permission: %v", p.name.Value, err)
			continue
		}
		want := expectedRelation{file: l.file.Name, line: p.name.Line, object: object, name: name}
		for _, item := range l.sequence(p.value, p.name.Value) {
			text, ok := l.scalar(item, "an expected subject")
			if !ok {
				continue
			}
			s, err := parseExpectedSubject(text)
			if err != nil {
				l.failf(item.Line, "%v", err)
				continue
			}
			want.subjects = append(want.subjects, placed[expectedSubject]{l.file.Name, item.Line, s})
		}
		l.file.relations = append(l.file.relations, want)
	}
}

// parseAssertion reads "object:id#name@subject:id" with an optional
// " with {json}".
func parseAssertion(text string) (assertion, error) {
	a := assertion{text: text}
	question := text
	if i := indexOutsideQuotes(text, " with "); i >= 0 {
		question = text[:i]
		raw := strings.TrimSpace(text[i+len(" with "):])
		dec := json.NewDecoder(strings.NewReader(raw))
		if err := dec.Decode(&a.context); err != nil {
			var otherType *json.UnmarshalTypeError
			if errors.As(err, &otherType) {
				return a, fmt.Errorf("%q: the context behind \"with\" is not a JSON object", text)
			}
			return a, fmt.Errorf("%q: the context behind \"with\" is not JSON: %w", text, err)
		}
		if dec.More() {
			return a, fmt.Errorf("%q: there is more behind the context's JSON object", text)
		}
	}
	t, err := graph.ParseTuple(withoutEllipsis(strings.TrimSpace(question)))
	if err != nil {
		return a, fmt.Errorf("%q is not of the form object:id#permission@subject:id: %w", text, err)
	}
	if t.Caveat != "" || t.ValidUntil != 0 {
		return a, fmt.Errorf("%q: an assertion has neither caveat nor expiration; give a context by with {json}", text)
	}
	a.object, a.name, a.subject = t.Object, t.Relation, t.Subject
	return a, nil
}

// indexOutsideQuotes returns where sep begins first outside of double quotes,
// or -1.
func indexOutsideQuotes(s, sep string) int {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case !quoted && strings.HasPrefix(s[i:], sep):
			return i
		}
	}
	return -1
}

// withoutEllipsis takes away "#...", the long form in which these files may say
// that a subject has no relation.
func withoutEllipsis(text string) string {
	for {
		i := indexOutsideQuotes(text, "#...")
		if i < 0 {
			return text
		}
		text = text[:i] + text[i+len("#..."):]
	}
}

// parseExpectedSubject reads "[subject] is <relation>/<relation>"; the subject
// may carry "[...]" for conditional and, for a wildcard, " - {a, b}" for those
// it does not hold for.
func parseExpectedSubject(text string) (expectedSubject, error) {
	bad := func(why string) (expectedSubject, error) {
		return expectedSubject{}, fmt.Errorf("%q: %s; the form is [type:id] is <type:id#relation>/<type:id#relation>", text, why)
	}
	rest, ok := strings.CutPrefix(strings.TrimSpace(text), "[")
	if !ok {
		return bad("it does not begin with [")
	}
	var inside, relations string
	if i := indexOutsideQuotes(rest, "] is "); i >= 0 {
		inside, relations = rest[:i], rest[i+len("] is "):]
	} else if inside, ok = strings.CutSuffix(rest, "]"); !ok {
		return bad("the closing ] is missing")
	}
	var s expectedSubject
	var err error
	inside, excluded, hasExcluded := strings.Cut(inside, " - {")
	if s.subject, s.conditional, err = parseMarkedSubject(inside); err != nil {
		return bad(err.Error())
	}
	if hasExcluded {
		if s.subject.ID != graph.Wildcard {
			return bad("only a wildcard has exceptions")
		}
		list, ok := strings.CutSuffix(strings.TrimSpace(excluded), "}")
		if !ok {
			return bad("the closing } is missing")
		}
		s.excluded = make(map[graph.Subject]bool)
		for item := range strings.SplitSeq(list, ",") {
			e, conditional, err := parseMarkedSubject(strings.TrimSpace(item))
			if err != nil {
				return bad(err.Error())
			}
			s.excluded[e] = conditional
		}
	}
	if relations = strings.TrimSpace(relations); relations != "" {
		s.relations = make(map[string]bool)
		for item := range strings.SplitSeq(strings.TrimSuffix(relations, ">"), ">/") {
			name, ok := strings.CutPrefix(item, "<")
			if !ok {
				return bad("a relation is not in angle brackets")
			}
			r, err := graph.ParseSubject(name)
			if err != nil {
				return bad(err.Error())
			}
			s.relations[r.String()] = true
		}
	}
	return s, nil
}

// parseMarkedSubject reads a subject with an optional "[...]" behind it.
func parseMarkedSubject(text string) (graph.Subject, bool, error) {
	text, conditional := strings.CutSuffix(strings.TrimSpace(text), "[...]")
	s, err := graph.ParseSubject(withoutEllipsis(text))
	return s, conditional, err
}

// subFolder is fs.Sub, but lets a file system that knows names of its own (those
// of a command line) have them.
func subFolder(fsys fs.FS, dir string) (fs.FS, error) {
	if s, ok := fsys.(fs.SubFS); ok {
		return s.Sub(dir)
	}
	return fs.Sub(fsys, dir)
}
