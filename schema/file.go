package schema

import (
	"fmt"
	"sort"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A File is the syntax tree of one schema text: what Parse makes and Compile,
// Format and Lint read. It keeps the order of the source and every comment.
type File struct {
	// Name is how errors call the file.
	Name string
	// Source is the text that was parsed; errors quote from it.
	Source string
	// Items holds the top-level statements in source order.
	Items []Item
	// Tail holds the comments behind the last item.
	Tail []Comment

	// flags are the features that the file's use lines switch on.
	flags flag
	// gaps is what syntax errors leave open.
	gaps fileGaps
}

// A Comment is one comment, "//..." to the end of its line or "/*...*/".
type Comment struct {
	Pos Position
	// Text includes the delimiters. The lines of a block comment are separated by
	// "\n" and freed of their common indentation.
	Text string
	// BlankAfter says that an empty line follows in the source.
	BlankAfter bool
}

// A Node is what all statements have in common.
type Node struct {
	// Pos is the first character of the statement, End the place just behind it.
	Pos, End Position
	// Comments holds the comments before and inside the statement.
	Comments []Comment
	// Trailing holds the comments behind the statement on its last line.
	Trailing []Comment
	// BlankBefore says that an empty line stands before the statement and its
	// comments.
	BlankBefore bool
}

func (n *Node) node() *Node { return n }

// An Item is a top-level statement: *Use, *Import, *DefinitionDecl or
// *CaveatDecl.
type Item interface {
	node() *Node
	isItem()
}

// A Member is a statement inside a definition or partial: *RelationDecl,
// *PermissionDecl or *Splat.
type Member interface {
	node() *Node
	isMember()
}

// A Name is a name as it stands in the source.
type Name struct {
	Pos, End Position
	// Text is the name without quotes.
	Text string
	// Quoted says that the source has it in double quotes.
	Quoted bool
}

// A Use is `use flag`.
type Use struct {
	Node
	Flag Name
}

// An Import is `import "path"`.
type Import struct {
	Node
	Path Name
	// File is what the path names; nil until Load resolves it.
	File *File
	// circular says that Load does not resolve it because the path leads back here.
	circular bool
}

// A DefinitionDecl is `definition name { ... }` or `partial name { ... }`.
type DefinitionDecl struct {
	Node
	Partial bool
	Name    Name
	Members []Member
	// Tail holds the comments behind the last member; TailBlank says that an empty
	// line stands before them.
	Tail      []Comment
	TailBlank bool

	// gaps is what syntax errors leave open about the names of the members; unclear
	// says that even what was read may belong elsewhere, headless that the name could
	// not be read, and is empty.
	gaps              gaps
	unclear, headless bool
}

// A RelationDecl is `relation name: subject | subject = rewrite`.
type RelationDecl struct {
	Node
	Name    Name
	Allowed []*SubjectDecl
	// Rewrite is nil for a plain relation.
	Rewrite *Expr
}

// A SubjectDecl is one form of subject that a relation allows.
type SubjectDecl struct {
	Pos, End Position
	Type     Name
	// Relation is empty unless the source has `type#relation`.
	Relation Name
	Wildcard bool
	// Caveat is empty unless the source has `with caveat`.
	Caveat     Name
	Expiration bool
	// flawed says that a syntax error is in it.
	flawed bool
}

// A PermissionDecl is `permission name: type | type = expression`.
type PermissionDecl struct {
	Node
	Name Name
	// Annotation holds the types between the colon and the equals sign.
	Annotation []Name
	Expr       *Expr
}

// A Splat is `...partial`.
type Splat struct {
	Node
	Partial Name
}

// A CaveatDecl is `caveat name(parameter type, ...) { expression }`.
type CaveatDecl struct {
	Node
	Name       Name
	Parameters []*ParameterDecl
	// Body is the text between the braces, untouched; BodyPos is its place.
	Body    string
	BodyPos Position
	// flawed says that a syntax error is in the parameters.
	flawed bool
}

// A ParameterDecl is `name type`.
type ParameterDecl struct {
	Name Name
	Type *TypeExpr
}

// A TypeExpr is a parameter's type: a name, of lists and maps with the type of
// their elements.
type TypeExpr struct {
	Pos, End Position
	Name     string
	// Element is nil unless the source has `name<element>`.
	Element *TypeExpr
}

// String returns the type in source form.
func (t *TypeExpr) String() string {
	if t.Element == nil {
		return t.Name
	}
	return t.Name + "<" + t.Element.String() + ">"
}

func (*Use) isItem()            {}
func (*Import) isItem()         {}
func (*DefinitionDecl) isItem() {}
func (*CaveatDecl) isItem()     {}

func (*RelationDecl) isMember()   {}
func (*PermissionDecl) isMember() {}
func (*Splat) isMember()          {}

// An ExprOp says what an Expr is.
type ExprOp uint8

// The forms of an expression.
const (
	OpName         ExprOp = iota + 1 // the relation or permission Name
	OpNil                            // nil
	OpSelf                           // self
	OpThis                           // this
	OpArrow                          // Steps: a->b, a.all(b)->c
	OpUnion                          // Children joined by +
	OpIntersection                   // Children joined by &
	OpExclusion                      // Children[0] - Children[1] - ...
)

// An Expr is the expression of a permission or of a relation's rewrite.
type Expr struct {
	Pos, End Position
	Op       ExprOp
	// Name is set for OpName.
	Name Name
	// Steps is set for OpArrow and has at least two elements.
	Steps []Step
	// Children is set for the three set operations and has at least two elements.
	Children []*Expr
	// Parens says that the source has parentheses around the expression.
	Parens bool
	// flawed says that a syntax error is in the name or the steps.
	flawed bool
}

// A Step is one name of an arrow.
type Step struct {
	Name Name
	// All says that the step before joins this one by .all(); Any says by .any(),
	// which means the same as ->. Both are false for the first step.
	All, Any bool
}

// flag is a set of language features that use lines switch on.
type flag uint8

const (
	flagExpiration flag = 1 << iota
	flagTypechecking
	flagSelf
	flagPartial
	flagImport
	flagRewrite
	flagWildcards
)

// useFlags lists the features in the order in which Print writes them, each with
// the words that become reserved by it.
var useFlags = []struct {
	name  string
	flag  flag
	words []string
}{
	{"expiration", flagExpiration, []string{"expiration", "and"}},
	{"import", flagImport, []string{"import"}},
	{"partial", flagPartial, []string{"partial"}},
	{"rewrite", flagRewrite, []string{"this"}},
	{"self", flagSelf, []string{"self"}},
	{"typechecking", flagTypechecking, []string{"typechecking"}},
	{"wildcards", flagWildcards, nil},
}

// flagNames returns the names of all features, for messages.
func flagNames() []string {
	names := make([]string, len(useFlags))
	for i, f := range useFlags {
		names[i] = f.name
	}
	return names
}

// keywords are the words that are reserved whatever a file uses.
var keywords = map[string]bool{
	"caveat": true, "definition": true, "nil": true,
	"permission": true, "relation": true, "with": true,
}

// reservedBy returns the feature among flags that reserves the word, or "".
func reservedBy(word string, flags flag) string {
	for _, f := range useFlags {
		if flags&f.flag == 0 {
			continue
		}
		for _, w := range f.words {
			if w == word {
				return f.name
			}
		}
	}
	return ""
}

// nameBytesMax bounds the length of every name.
const nameBytesMax = 128

// plainName reports whether the name needs no quotes. In an expression a dash is
// an operator, so names with one are not plain there.
func plainName(name string, inExpression bool) bool {
	if name == "" {
		return false
	}
	for i := range len(name) {
		c := name[i]
		switch {
		case isNameByte(c):
		case c == '-' || c == '/':
			// A dash or slash joins two name characters; anywhere else it is not part
			// of a name for the lexer.
			if inExpression || i == 0 || i == len(name)-1 || !isNameByte(name[i-1]) || !isNameByte(name[i+1]) {
				return false
			}
		default:
			return false
		}
	}
	return true
}

func isNameByte(c byte) bool {
	return c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// checkName says what is wrong with a name, or returns "". The characters it
// refuses are those that would make a tuple's text or a hidden permission's name
// ambiguous.
func checkName(name string) string {
	switch {
	case name == "":
		return "a name may not be empty"
	case len(name) > nameBytesMax:
		return fmt.Sprintf("a name may have at most %d bytes", nameBytesMax)
	case !utf8.ValidString(name):
		return "a name must be valid UTF-8"
	}
	for _, r := range name {
		if unicode.IsControl(r) || unicode.IsSpace(r) || !unicode.IsPrint(r) || strings.ContainsRune("\"\\:#@*()<>", r) {
			return "a quoted name may not hold blanks, control characters or any of \" \\ : # @ * ( ) < >"
		}
	}
	return ""
}

// nameText returns the name as it must be written in a file with these flags.
func nameText(name string, inExpression bool, flags flag) string {
	if plainName(name, inExpression) && !keywords[name] && reservedBy(name, flags) == "" {
		return name
	}
	return `"` + name + `"`
}

// files returns the file and all that it imports, imported ones first, each
// once.
func (f *File) files() []*File {
	var out []*File
	seen := map[*File]bool{}
	var visit func(f *File)
	visit = func(f *File) {
		if seen[f] {
			return
		}
		seen[f] = true
		for _, item := range f.Items {
			if imp, ok := item.(*Import); ok && imp.File != nil {
				visit(imp.File)
			}
		}
		out = append(out, f)
	}
	visit(f)
	return out
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
