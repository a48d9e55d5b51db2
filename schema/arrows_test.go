package schema

import (
	"fmt"
	"strings"
	"testing"
)

// What arrows lead to is bounded for a schema that somebody writes; one that was
// stored is compiled all the same.
func TestArrowTypesMax(t *testing.T) {
	const types = 2000
	var b strings.Builder
	b.WriteString("definition d {\n\trelation r: d")
	for i := range types - 1 {
		fmt.Fprintf(&b, " | t%d", i)
	}
	b.WriteString("\n\tpermission p = r->p")
	head := b.String() + strings.Repeat(" + r->p", ArrowTypesMax/types-1)
	b.Reset()
	b.WriteString("\n}\n")
	for i := range types - 1 {
		fmt.Fprintf(&b, "definition t%d {}\n", i)
	}
	tail := b.String()
	parse := func(text string) *File {
		t.Helper()
		file, err := Parse("schema", text)
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	if _, err := Check(parse(head + tail)); err != nil {
		t.Errorf("as many as are allowed: %.500v", err)
	}
	more := parse(head + " + r->p" + tail)
	if _, err := Check(more); err == nil || !strings.Contains(err.Error(), "too many types") {
		t.Errorf("one arrow more: %.500v, want an error of too many types", err)
	}
	if _, err := Compile(more); err != nil {
		t.Errorf("stored: %.500v", err)
	}
}
