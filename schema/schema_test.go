package schema

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/cockroachdb/datadriven"
)

// TestScripts runs the scripts in testdata. Their commands are
//
//	parse      prints the errors of the parser, or ok
//	compile    prints all errors, or ok
//	rewrites   prints what each relation and permission compiles to
//	format     prints the canonical layout, and holds it to be a fixpoint
//	stored     is rewrites for a schema that was stored, which forgives more
//	print      prints the compiled schema, and holds that it compiles to itself
//	in-order   is print in the layout of PrintInOrder, for a schema that was stored
//	diff       prints the changes from the text above a line === to that below
//	affected   is diff for schemas that were stored, with the permissions that mean
//	           something else
//	lint       prints the warnings
//	load       compiles the first of several files, each below a line -- name --
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/scripts", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, td *datadriven.TestData) string {
			out, err := command(t, td.Cmd, td.Input)
			if err != nil {
				checkErrors(t, err)
				return err.Error() + "\n"
			}
			return out
		})
	})
}

func command(t *testing.T, name, input string) (string, error) {
	t.Helper()
	switch name {
	case "parse":
		_, err := Parse("s", input)
		return "ok\n", err
	case "compile":
		s, err := compileText(input)
		if err == nil {
			checkPrint(t, s)
		}
		return "ok\n", err
	case "rewrites":
		s, err := compileText(input)
		if err != nil {
			return "", err
		}
		checkPrint(t, s)
		return rewrites(s), nil
	case "stored", "in-order":
		s, err := storedText(input)
		if err != nil {
			return "", err
		}
		checkPrint(t, s)
		if name == "in-order" {
			return PrintInOrder(s) + "\n", nil
		}
		return rewrites(s), nil
	case "format":
		f, err := Parse("s", input)
		if err != nil {
			return "", err
		}
		checkFormat(t, f)
		return Format(f), nil
	case "print":
		s, err := compileText(input)
		if err != nil {
			return "", err
		}
		checkPrint(t, s)
		return s.String(), nil
	case "diff", "affected":
		from, to, ok := strings.Cut(input, "===\n")
		if !ok {
			t.Fatal("a diff needs a line ===")
		}
		compile := compileText
		if name == "affected" {
			compile = storedText
		}
		a, err := compile(from)
		if err != nil {
			return "", err
		}
		b, err := compile(to)
		if err != nil {
			return "", err
		}
		if d := Diff(a, a); len(d) > 0 {
			t.Errorf("a schema differs from itself: %v", d)
		}
		out := lines(Diff(a, b))
		if name == "affected" {
			for _, p := range Affected(a, b) {
				out += fmt.Sprintf("affected: %s#%s, rewritten: %v\n", p.Definition, p.Permission, p.Rewritten)
			}
		}
		return out, nil
	case "lint":
		f, err := Parse("s", input)
		if err != nil {
			return "", err
		}
		if out := lines(Lint(f)); out != "" {
			return out, nil
		}
		return "no warnings\n", nil
	case "load":
		fsys := fstest.MapFS{}
		root := ""
		var file *fstest.MapFile
		for _, l := range strings.SplitAfter(input, "\n") {
			if name, ok := strings.CutPrefix(l, "-- "); ok {
				name = strings.TrimSuffix(strings.TrimSpace(name), " --")
				file = &fstest.MapFile{}
				fsys[name] = file
				if root == "" {
					root = name
				}
				continue
			}
			file.Data = append(file.Data, l...)
		}
		f, err := Load(fsys, root)
		if err != nil {
			return "", err
		}
		s, err := Check(f)
		if err != nil {
			return "", err
		}
		return s.String(), nil
	}
	t.Fatalf("unknown command %s", name)
	return "", nil
}

func compileText(text string) (*Schema, error) {
	f, err := Parse("s", text)
	if err != nil {
		return nil, err
	}
	return Check(f)
}

// storedText compiles a text as one that was stored.
func storedText(text string) (*Schema, error) {
	f, err := Parse("s", text)
	if err != nil {
		return nil, err
	}
	return Compile(f)
}

func lines[T fmt.Stringer](list []T) string {
	var b strings.Builder
	for _, x := range list {
		b.WriteString(x.String() + "\n")
	}
	return b.String()
}

// rewrites shows what every name compiles to, as text and as the tree.
func rewrites(s *Schema) string {
	var b strings.Builder
	for _, d := range s.Definitions {
		show := func(name string, r Rewrite) {
			fmt.Fprintf(&b, "%s#%s = %s\n    %s\n", d.Name, name, RewriteString(r), tree(r))
		}
		for _, r := range d.Relations {
			if r.Rewrite != (This{}) {
				show(r.Name, r.Rewrite)
			}
		}
		for _, p := range d.Permissions {
			show(p.Name, p.Rewrite)
		}
		for _, p := range d.Hidden {
			show(p.Name, p.Rewrite)
		}
	}
	return b.String()
}

func tree(r Rewrite) string {
	list := func(children []Rewrite) string {
		var parts []string
		for _, c := range children {
			parts = append(parts, tree(c))
		}
		return strings.Join(parts, ", ")
	}
	switch r := r.(type) {
	case This:
		return "This"
	case Nil:
		return "Nil"
	case Self:
		return "Self"
	case Computed:
		return r.Name
	case Arrow:
		if r.All {
			return "ArrowAll(" + r.Relation + ", " + r.Name + ")"
		}
		return "Arrow(" + r.Relation + ", " + r.Name + ")"
	case Union:
		return "Union(" + list(r.Children) + ")"
	case Intersection:
		return "Intersection(" + list(r.Children) + ")"
	case Exclusion:
		return "Exclusion(" + tree(r.Base) + ", " + tree(r.Subtracted) + ")"
	}
	return fmt.Sprintf("%T", r)
}

// checkErrors holds what every error must fulfil.
func checkErrors(t *testing.T, err error) {
	t.Helper()
	var errs Errors
	if !errors.As(err, &errs) || len(errs) == 0 {
		t.Fatalf("the error is no Errors: %#v", err)
	}
	last := map[string]int{}
	seen := map[errorKey]bool{}
	for _, e := range errs {
		key := errorKey{e.File, e.Pos.Offset, e.Msg}
		if seen[key] {
			t.Errorf("error stands there twice: %v", e)
		}
		seen[key] = true
		if e.Kind != SyntaxError && e.Kind != TypeError {
			t.Errorf("error without a kind: %v", e)
		}
		if e.Pos.Offset < last[e.File] {
			t.Errorf("errors are not sorted: %v", e)
		}
		last[e.File] = e.Pos.Offset
		if e.SourceLine != "" && (e.Pos.Line < 1 || e.Pos.Column < 1) {
			t.Errorf("error without a position: %v", e)
		}
		if !errors.Is(err, e) {
			t.Errorf("Unwrap does not lead to %v", e)
		}
	}
}

// checkFormat holds that formatting is a fixpoint and keeps the schema and the
// comments.
func checkFormat(t *testing.T, f *File) {
	t.Helper()
	text := Format(f)
	again, err := Parse("s", text)
	if err != nil {
		t.Fatalf("the formatted text does not parse: %v\n%s", err, text)
	}
	if second := Format(again); second != text {
		t.Fatalf("formatting is no fixpoint; first\n%s\nthen\n%s", text, second)
	}
	if had, has := comments(f.Source), comments(text); !reflect.DeepEqual(had, has) {
		t.Fatalf("formatting lost comments: had %v, has %v", had, has)
	}
	for _, judge := range []func(*File) (*Schema, error){Check, Compile} {
		before, errBefore := judge(f)
		after, errAfter := judge(again)
		if (errBefore == nil) != (errAfter == nil) {
			t.Fatalf("formatting changed whether the schema compiles: %v, then %v", errBefore, errAfter)
		}
		if errBefore == nil {
			checkEqual(t, before, after)
		}
	}
}

// comments counts the comments of a text, however they are moved about.
func comments(text string) map[string]int {
	var errs errorList
	count := map[string]int{}
	for _, tok := range lex(&File{Source: text}, &errs) {
		if tok.Type == tokenComment {
			count[strings.Join(strings.Fields(tok.Value), " ")]++
		}
	}
	return count
}

// checkPrint holds that the text of a schema compiles to an equal schema.
func checkPrint(t *testing.T, s *Schema) {
	t.Helper()
	text := Print(s)
	f, err := Parse("printed", text)
	if err != nil {
		t.Fatalf("the printed schema does not parse: %v\n%s", err, text)
	}
	again, err := Compile(f)
	if err != nil {
		t.Fatalf("the printed schema does not compile: %v\n%s", err, text)
	}
	checkEqual(t, s, again)
	if second := Print(again); second != text {
		t.Fatalf("printing is no fixpoint; first\n%s\nthen\n%s", text, second)
	}
	// Lint must not complain of what Print writes.
	for _, w := range Lint(f) {
		if w.Rule == RuleMixedOperators {
			t.Fatalf("the printed schema draws a warning: %v\n%s", w, text)
		}
	}
	checkPrintInOrder(t, s)
}

// checkEqual holds that two schemas are the same, the compiled expressions of
// caveats aside.
func checkEqual(t *testing.T, a, b *Schema) {
	t.Helper()
	if !reflect.DeepEqual(a.Definitions, b.Definitions) {
		t.Fatalf("the definitions differ:\n%s\n%s", rewrites(a)+Print(a), rewrites(b)+Print(b))
	}
	if len(a.Caveats) != len(b.Caveats) {
		t.Fatalf("%d caveats, then %d", len(a.Caveats), len(b.Caveats))
	}
	for i, c := range a.Caveats {
		d := b.Caveats[i]
		if c.Name != d.Name || c.Doc != d.Doc || c.Expression != d.Expression || !reflect.DeepEqual(c.Parameters, d.Parameters) {
			t.Fatalf("caveat %s differs: %q, then %q", c.Name, c.Expression, d.Expression)
		}
	}
	if d := Diff(a, b); len(d) > 0 {
		t.Fatalf("Diff sees changes: %v", d)
	}
}

// TestNew builds schemas by program, as an adapter of another model would.
func TestNew(t *testing.T) {
	user := &Definition{Name: "user"}
	good := &Definition{
		Name: "my.doc",
		Doc:  "About documents,\nwithout delimiters.",
		Relations: []*Relation{
			{Name: "can-view", Allowed: []SubjectType{{Type: "user"}, {Type: "user", Wildcard: true}, {Type: "my.doc", Relation: "can-view", Caveat: "c"}}},
			{Name: "relation", Allowed: []SubjectType{{Type: "my.doc"}}, Rewrite: Union{Children: []Rewrite{
				This{}, Union{Children: []Rewrite{Computed{"can-view"}, Self{}}}, Arrow{Relation: "parent", Name: "parent->can-view"},
			}}},
			{Name: "parent", Allowed: []SubjectType{{Type: "my.doc"}}},
		},
		Permissions: []*Permission{
			{Name: "x", Rewrite: Exclusion{Base: Exclusion{Base: Computed{"relation"}, Subtracted: Nil{}}, Subtracted: Computed{"can-view"}}},
		},
	}
	c := &Caveat{Name: "c", Parameters: []Parameter{{"x", "int"}}, Expression: "x > 1"}
	s, err := New([]*Definition{user, good}, []*Caveat{c})
	if err != nil {
		t.Fatal(err)
	}
	checkPrint(t, s)
	d := s.Definition("my.doc")
	if !reflect.DeepEqual(d.Relation("relation").Rewrite, good.Relations[1].Rewrite) {
		t.Errorf("the rewrite became %s", tree(d.Relation("relation").Rewrite))
	}
	if !reflect.DeepEqual(d.Relation("can-view").Allowed, good.Relations[0].Allowed) || d.Relation("can-view").Rewrite != (This{}) {
		t.Errorf("the relation became %+v", d.Relation("can-view"))
	}
	if len(d.Hidden) != 1 || d.Permission("parent->can-view") == nil {
		t.Errorf("hidden permissions: %v", d.Hidden)
	}
	if r, err := s.Caveat("c").Eval(nil, Context{"x": 2.0}); err != nil || r.Truth != True {
		t.Errorf("the caveat is %v, %v", r.Truth, err)
	}

	permission := func(r Rewrite) []*Definition {
		return []*Definition{{
			Name:        "d",
			Relations:   []*Relation{{Name: "r", Allowed: []SubjectType{{Type: "d"}}}},
			Permissions: []*Permission{{Name: "p", Rewrite: r}},
		}}
	}
	deep := Rewrite(Nil{})
	for range 1000 {
		deep = Exclusion{Base: Nil{}, Subtracted: deep}
	}
	for name, definitions := range map[string][]*Definition{
		"empty name":      {{Name: ""}},
		"name with quote": {{Name: "a\" {} definition b {"}},
		"twice":           {user, user},
		"nil rewrite":     permission(nil),
		"one child":       permission(Union{Children: []Rewrite{Nil{}}}),
		"unknown name":    permission(Computed{"x"}),
		"hidden name":     permission(Computed{"r->r"}),
		"odd target":      permission(Arrow{Relation: "r", Name: "(x"}),
		"this":            permission(This{}),
		"deep":            permission(deep),
		"no subjects":     {{Name: "d", Relations: []*Relation{{Name: "r"}}}},
		"unknown type":    {{Name: "d", Relations: []*Relation{{Name: "r", Allowed: []SubjectType{{Type: "e"}}}}}},
		"odd wildcard":    {{Name: "d", Relations: []*Relation{{Name: "r", Allowed: []SubjectType{{Type: "d", Relation: "r", Wildcard: true}}}}}},
	} {
		if _, err := New(definitions, nil); err == nil {
			t.Errorf("%s is accepted", name)
		} else {
			checkErrors(t, err)
		}
	}
	for _, c := range []*Caveat{
		{Name: "c", Parameters: []Parameter{{"x", "int"}}, Expression: "x > 1 } definition a {"},
		{Name: "c", Parameters: []Parameter{{"x", "int"}}, Expression: "x > 1 // }"},
		{Name: "c", Parameters: []Parameter{{"x", "int) {"}}, Expression: "x > 1"},
		{Name: "c", Parameters: []Parameter{{"x y", "int"}}, Expression: "x > 1"},
		{Name: "c", Expression: "true"},
		{Name: "c", Parameters: []Parameter{{"x", "int"}}},
	} {
		s, err := New(nil, []*Caveat{c})
		if err == nil && s.Caveats[0].Expression != c.Expression {
			t.Errorf("%q became %q", c.Expression, s.Caveats[0].Expression)
		}
		if err == nil && c.Expression != "x > 1 // }" {
			t.Errorf("%q is accepted", c.Expression)
		}
	}
	if s, err := New(nil, nil); err != nil || s.String() != "" || s.Definition("x") != nil {
		t.Errorf("the empty schema is %v, %v", s, err)
	}
}

// TestDocumentation runs the code blocks of the language manual.
func TestDocumentation(t *testing.T) {
	file, err := os.Open("../docs/schema.md")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := file.Close(); err != nil {
			t.Error(err)
		}
	}()
	count := map[string]int{}
	scanner := bufio.NewScanner(file)
	kind, start, block := "", 0, ""
	for n := 1; scanner.Scan(); n++ {
		line := scanner.Text()
		fence, isFence := strings.CutPrefix(line, "```")
		switch {
		case isFence && kind == "" && (fence == "pemba" || fence == "pemba-error"):
			kind, start, block = fence, n, ""
		case isFence && kind != "":
			count[kind]++
			t.Run(fmt.Sprintf("line%d", start), func(t *testing.T) { checkBlock(t, kind, block) })
			kind = ""
		case kind != "":
			block += line + "\n"
		}
	}
	if err := scanner.Err(); err != nil {
		t.Fatal(err)
	}
	if count["pemba"] < 10 || count["pemba-error"] < 3 {
		t.Errorf("the manual has %v code blocks; are the fences right?", count)
	}
}

func checkBlock(t *testing.T, kind, block string) {
	f, err := Parse("schema.md", block)
	var s *Schema
	if err == nil {
		checkFormat(t, f)
		s, err = Check(f)
	}
	switch {
	case kind == "pemba-error" && err == nil:
		t.Error("the block should be refused")
	case kind == "pemba" && err != nil:
		t.Error(err)
	case err == nil:
		checkPrint(t, s)
	}
}

// TestRandom formats and prints random schemas of every construct.
func TestRandom(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	for i := range 100 {
		text := randomSchema(rand.New(rand.NewPCG(uint64(seed), uint64(i))))
		f, err := Parse("random", text)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		s, err := Check(f)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		checkFormat(t, f)
		checkPrint(t, s)
		Lint(f)
		again, err := New(s.Definitions, s.Caveats)
		if err != nil {
			t.Fatalf("New refuses what Compile accepts: %v\n%s", err, text)
		}
		checkEqual(t, s, again)
	}
}

// randomSchema returns a text that compiles: a permission refers to relations and
// to permissions before it only.
func randomSchema(r *rand.Rand) string {
	var b strings.Builder
	gap := func() string {
		return []string{" ", "  ", "\n", "\t", " /* c */ ", " // c\n", "\n\n"}[max(0, r.IntN(16)-9)]
	}
	write := func(words ...string) {
		for _, w := range words {
			b.WriteString(w + gap())
		}
	}
	types := []string{"user", "tenant/doc", "my-group"}
	relations := []string{"owner", "parent", `"can-view"`}
	b.WriteString("use expiration\nuse rewrite\nuse self\nuse wildcards\n")
	write("caveat", "c", "(", "x", "int", ",", "y", "map", "<", "list", "<", "any", ">", ">", ")")
	b.WriteString("{ x > 1 &&" + []string{" ", "\n   "}[r.IntN(2)] + "y == {}" + []string{"", " // }\n"}[r.IntN(2)] + "}" + gap())
	var expr func(depth, permissions int) string
	expr = func(depth, permissions int) string {
		switch k := r.IntN(9); {
		case k < 3 && depth > 0:
			operator := []string{"+", "&", "-"}[k]
			text := expr(depth-1, permissions)
			for range 1 + r.IntN(3) {
				text += gap() + operator + gap() + expr(depth-1, permissions)
			}
			return text
		case k == 3 && depth > 0:
			return "(" + gap() + expr(depth-1, permissions) + gap() + ")"
		case k == 4:
			return []string{"nil", "self"}[r.IntN(2)]
		case k == 5:
			text := "parent"
			for range 1 + r.IntN(3) {
				next := []string{"parent", "parent", "owner", `"can-view"`}[r.IntN(4)]
				switch r.IntN(3) {
				case 0:
					text += "->" + next
				case 1:
					text += ".any(" + next + ")"
				case 2:
					text += ".all(" + next + ")"
				}
				if next != "parent" {
					break
				}
			}
			return text
		case k == 6 && permissions > 0:
			return fmt.Sprintf("p%d", r.IntN(permissions))
		}
		return relations[r.IntN(len(relations))]
	}
	for _, d := range types {
		write("definition", d, "{")
		for _, name := range relations {
			if name == "parent" {
				write("relation", name, ":", "tenant/doc", "|", "my-group", "|", "user", ";")
				continue
			}
			write("relation", name, ":", types[r.IntN(3)])
			for _, form := range []string{"user:*", "user with c", "my-group#parent", "tenant/doc#\"can-view\" with c and expiration"} {
				if r.IntN(2) == 0 {
					write("|", form)
				}
			}
			if r.IntN(4) == 0 {
				write("=", "this", "+", "parent->owner")
			}
		}
		for i := range r.IntN(5) {
			write("permission", fmt.Sprintf("p%d", i), "=", expr(3, i))
		}
		write("}")
	}
	return b.String()
}

// TestCaveatsCounted: caveats are counted before the first of their expressions is
// compiled, which takes long: none of these compiles, and nothing is said of any.
func TestCaveatsCounted(t *testing.T) {
	caveats := func(n int, body string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "caveat c%d(x int) {%s}\n", i, body)
		}
		return b.String()
	}
	large := strings.Repeat(" ", ExpressionCharsMax-10) + "y == 1"
	for _, test := range []struct{ text, want string }{
		{caveats(CaveatsMax+1, "y == 1"), "the schema has more than 1000 caveats"},
		{caveats(ExpressionBytesMax/len(large)+1, large), "the expressions of the caveats have more than 500000 bytes together"},
	} {
		_, err := compileText(test.text)
		var found Errors
		if !errors.As(err, &found) || len(found) != 1 || found[0].Msg != test.want {
			t.Errorf("got %d errors, the first %.500v; expected only: %s", len(found), err, test.want)
		}
	}
	_, err := compileText(caveats(2, "y == 1"))
	var found Errors
	if !errors.As(err, &found) || len(found) != 2 {
		t.Errorf("of two that do not compile: %v", err)
	}
}

// TestLimits holds that no text takes the process down or takes long.
func TestLimits(t *testing.T) {
	definition := func(body string) string {
		return "definition user {}\ndefinition d {\nrelation r: user\n" + body + "\n}\n"
	}
	var many, members, caveats strings.Builder
	for i := range DefinitionsMax + 1 {
		fmt.Fprintf(&many, "definition d%d {}\n", i)
	}
	for i := range MembersMax + 1 {
		fmt.Fprintf(&members, "permission p%d = r\n", i)
	}
	for i := range CaveatsMax + 1 {
		fmt.Fprintf(&caveats, "caveat c%d(x int) { x == 1 }\n", i)
	}
	doubling := "use partial\npartial p0 {}\n"
	for i := range 60 {
		doubling += fmt.Sprintf("partial p%d { ...p%d ...p%d }\n", i+1, i, i)
	}
	unusedDoubling := doubling
	doubling += "definition d { ...p60 }\n"
	shared := "use partial\npartial p { relation " + strings.Repeat("a ", 100_000) + "}\n"
	words := make([]string, 300_000)
	for i := range words {
		words[i] = fmt.Sprintf("w%d", i)
	}
	strays := "use partial\npartial p { " + strings.Join(words, " ") + " }\n"
	for i := range 9_000 {
		shared += fmt.Sprintf("definition d%d { ...p }\n", i)
	}
	strays += shared[strings.Index(shared, "definition"):]
	partials := "use partial\n"
	for i := range DefinitionsMax + 1 {
		partials += fmt.Sprintf("partial p%d {}\n", i)
	}
	product := "use partial\npartial p { relation r: d0 permission p = r" + strings.Repeat("+r", 5_000) + " }\n"
	for i := range 200 {
		product += fmt.Sprintf("definition d%d { ...p }\n", i)
	}
	chain := "r" + strings.Repeat("->r", ChainMax)
	for name, test := range map[string]struct{ text, want string }{
		"source":       {strings.Repeat(" ", SourceBytesMax+1), "at most 4194304 are allowed"},
		"tokens":       {strings.Repeat(";", tokensMax+1), "more than 500000 tokens"},
		"parentheses":  {definition("permission p = " + strings.Repeat("(", 1<<20) + "r" + strings.Repeat(")", 1<<20)), "nested more than 200 deep"},
		"braces":       {strings.Repeat("definition d {", 1<<17), "nested more than 200 deep"},
		"types":        {"caveat c(x " + strings.Repeat("list<", 1<<18), "nested more than 200 deep"},
		"operands":     {definition("permission p = r" + strings.Repeat("+r", 50_000)), ""},
		"size":         {product, "the schema is too large"},
		"exclusions":   {definition("permission p = r" + strings.Repeat("-r", 1000)), "at most 199 exclusions"},
		"chain":        {"definition d {\nrelation r: d\npermission p = " + chain + "\n}", "at most 16 names"},
		"definitions":  {many.String(), "more than 10000 definitions"},
		"members":      {definition(members.String()), "more than 5000 relations and permissions"},
		"caveats":      {caveats.String(), "more than 1000 caveats"},
		"doubling":     {doubling, "the schema is too large"},
		"unused":       {unusedDoubling, "the schema is too large"},
		"partials":     {partials, "more than 10000 definitions"},
		"gaps":         {definition(strings.Repeat("relation a b: c\n", 50) + strings.Repeat("permission p = q\n", 40_000)), "expected `:`"},
		"shared gaps":  {shared, "expected `:`"},
		"strays":       {strays, "found `w0`"},
		"words":        {"definition " + strings.Repeat("a ", 100_000) + "{ " + strings.Repeat("relation x: y\n", 50_000) + "}", "expected `{`"},
		"expression":   {"caveat c(x int) { x == " + strings.Repeat(" ", ExpressionCharsMax) + "1 }", "at most 100000 are allowed"},
		"deep cel":     {"caveat c(x int) { " + strings.Repeat("(", 40_000) + "x == 1" + strings.Repeat(")", 40_000) + " }", "CEL: "},
		"many errors":  {strings.Repeat("definition a { relation }\n", 10_000), "more errors"},
		"long line":    {"definition a { " + strings.Repeat("/* */", 10_000) + " relation }", "expected a name"},
		"odd bytes":    {"definition \xff\xfe {}\x00", "not valid UTF-8"},
		"open comment": {"definition a {} /* ", "not closed by */"},
		"open string":  {"definition \"a {}\n", "not closed on its line"},
		"open body":    {"caveat c(x int) { x == 1", "not closed by }"},
		"open literal": {"caveat c(x string) { x == \"a }", "a string in the caveat's expression is not closed"},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			_, err := compileText(test.text)
			switch {
			case err == nil && test.want != "":
				t.Error("accepted")
			case err != nil && (test.want == "" || !strings.Contains(err.Error(), test.want)):
				t.Errorf("%.500v", err)
			}
			if err != nil && len(err.Error()) > 50_000 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
			if d := time.Since(start); d > time.Minute {
				t.Errorf("took %v", d)
			}
		})
	}
}

// TestDeterministic compiles the same text many times: neither the schema nor the
// errors may depend on the order of maps.
func TestDeterministic(t *testing.T) {
	good, bad := "use typechecking\n", ""
	for i := range 30 {
		good += fmt.Sprintf("caveat c%d(x int) { x == %d }\ndefinition t%d { relation r: t%d | t%d with c%d\npermission p: t%d | t%d = r + r->p2->p3 + q\npermission p2 = r->p3 & r\nrelation p3: t%d\n permission q = p2 }\n",
			i, i, i, i, (i+7)%30, i, i, (i+7)%30, i)
		bad += fmt.Sprintf("caveat c%d(x int) { y == %d }\ndefinition t%d { relation r: tt%d | t%d#rr | t%d with c\npermission p = q\npermission q = p + x\n permission u = r->zz + q->t }\n",
			i, i, i, i, i, i)
	}
	var wantText, wantErr string
	for range 8 {
		s, err := compileText(bad)
		if err == nil || s != nil {
			t.Fatal("the bad schema is accepted")
		}
		if wantErr == "" {
			wantErr = err.Error()
		}
		if err.Error() != wantErr {
			t.Fatalf("errors differ:\n%v\n%v", wantErr, err)
		}
		_, err = compileText(good)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if wantText == "" {
			wantText = text
		}
		if text != wantText {
			t.Fatalf("results differ:\n%v\n%v", wantText, text)
		}
	}
}

// TestConcurrent compiles in several goroutines, which share the CEL environment
// and the grammar.
func TestConcurrent(t *testing.T) {
	text := bigSchema(20)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			s, err := compileText(text)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := s.Caveat("c0").Eval(nil, Context{"limit": 1.0}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// bigSchema has n definitions of eight members and n/10 caveats.
func bigSchema(n int) string {
	var b strings.Builder
	b.WriteString("use expiration\ndefinition user {}\n")
	for i := range n {
		if i%10 == 0 {
			fmt.Fprintf(&b, "caveat c%d(limit int, used int) { used < limit && limit > %d }\n", i/10, i)
		}
		fmt.Fprintf(&b, `
// Documents of kind %d.
definition tenant/doc%d {
	relation parent: tenant/doc%d | tenant/doc%d
	relation owner: user
	relation viewer: user | user:* | user with c%d | tenant/doc%d#owner with expiration
	relation banned: user
	permission edit = owner + parent->edit
	permission view = (viewer + edit) - banned
	permission share = owner & edit
	permission far = parent->parent->view
}
`, i, i, i, (i+1)%n, i/10, (i+3)%n)
	}
	return b.String()
}

func BenchmarkCompile1000(b *testing.B) {
	text := bigSchema(1000)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, err := compileText(text); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParse1000(b *testing.B) {
	text := bigSchema(1000)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, err := Parse("s", text); err != nil {
			b.Fatal(err)
		}
	}
}

// TestBigSchema bounds the time, generously: the machine may be busy.
func TestBigSchema(t *testing.T) {
	start := time.Now()
	if _, err := compileText(bigSchema(1000)); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d > time.Minute {
		t.Errorf("1000 definitions took %v", d)
	}
	f, err := Parse("s", bigSchema(100))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Check(f)
	if err != nil {
		t.Fatal(err)
	}
	checkPrint(t, s)
	checkFormat(t, f)
	if w := Lint(f); len(w) > 0 {
		t.Errorf("%d warnings, such as %v", len(w), w[0])
	}
}

// A schema that was stored goes on to compile, whatever it holds that it does not
// use; who writes one is told.
func TestUnusedPartialIsForgiven(t *testing.T) {
	for _, text := range []string{
		"use partial\npartial old { relation a: gone }\ndefinition user {}\n",
		"use partial\npartial old { permission a = a }\ndefinition user {}\n",
	} {
		f, err := Parse("s", text)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Check(f); err == nil {
			t.Errorf("Check has nothing against\n%s", text)
		}
		s, err := Compile(f)
		if err != nil || s.Definition("user") == nil {
			t.Errorf("Compile refuses\n%s%v", text, err)
		}
	}
}
