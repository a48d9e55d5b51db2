package schema

import (
	"reflect"
	"strings"
	"testing"
)

// checkPrintInOrder holds that the other layout of a schema compiles to the same
// meaning with the same order of members, and that it is a fixpoint. checkPrint
// asks it of every schema it sees.
func checkPrintInOrder(t *testing.T, s *Schema) {
	t.Helper()
	text := PrintInOrder(s)
	f, err := Parse("printed", text)
	if err != nil {
		t.Fatalf("the schema printed in order does not parse: %v\n%s", err, text)
	}
	again, err := Compile(f)
	if err != nil {
		t.Fatalf("the schema printed in order does not compile: %v\n%s", err, text)
	}
	if !reflect.DeepEqual(flatDefinitions(s), flatDefinitions(again)) || !reflect.DeepEqual(s.order, again.order) {
		t.Fatalf("the definitions differ:\n%s\n%s", Print(s), Print(again))
	}
	if !reflect.DeepEqual(s.anyArrows, again.anyArrows) {
		t.Fatalf("arrows are spelt otherwise: %v, then %v\n%s", s.anyArrows, again.anyArrows, text)
	}
	for _, c := range Diff(s, again) {
		// The text of an expression is another where CEL writes it otherwise.
		if c.Kind != CaveatExprChanged || s.Caveat(c.Caveat).CanonicalExpression() != again.Caveat(c.Caveat).CanonicalExpression() {
			t.Fatalf("the schema printed in order differs: %v\n%s", c, text)
		}
	}
	if second := PrintInOrder(again); second != text {
		t.Fatalf("printing in order is no fixpoint; first\n%s\nthen\n%s", text, second)
	}
}

// flatDefinitions returns the definitions without the groups that the layout drops.
func flatDefinitions(s *Schema) []Definition {
	var flat []Definition
	for _, d := range s.Definitions {
		f := Definition{Name: d.Name, Doc: d.Doc, Hidden: d.Hidden}
		for _, r := range d.Relations {
			r := *r
			r.Rewrite = flatten(r.Rewrite)
			f.Relations = append(f.Relations, &r)
		}
		for _, p := range d.Permissions {
			p := *p
			p.Rewrite = flatten(p.Rewrite)
			f.Permissions = append(f.Permissions, &p)
		}
		flat = append(flat, f)
	}
	return flat
}

// TestPrintInOrder shows the layout.
func TestPrintInOrder(t *testing.T) {
	file, err := Parse("", `use partial
// Shared.
partial owned { relation owner: user }
definition user {}
definition doc {
	permission early = late
	...owned
	// Commented.
	permission late = owner
	relation last: user with c
}
caveat c(b string, a int) { ( a==1 ) && (b in ['x', "y"] || [1, 2].all(x, x > a)) // why
}`)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Compile(file)
	if err != nil {
		t.Fatal(err)
	}
	checkPrint(t, s)
	want := strings.TrimPrefix(`
caveat c(a int, b string) {
	a == 1 && (b in ["x", "y"] || [1, 2].all(x, x > a))
}

definition doc {
	permission early = late
	relation owner: user

	// Commented.
	permission late = owner
	relation last: user with c
}

definition user {}`, "\n")
	if got := PrintInOrder(s); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	empty, err := New(nil, nil)
	if err != nil || PrintInOrder(empty) != "" {
		t.Errorf("an empty schema: %v, %q", err, PrintInOrder(empty))
	}
}
