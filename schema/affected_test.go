package schema

import (
	"fmt"
	"strings"
	"testing"
)

const affectedBase = `use expiration
caveat late(hour int) { hour > 22 }
definition user {}
definition group { relation member: user | group#member }
definition folder {
	relation parent: folder
	relation viewer: user | group#member
	permission view = viewer + parent->view
	permission free = nil
}
definition doc {
	relation folder: folder
	relation owner: user | user with late
	relation editor: user
	permission edit = editor
	permission own = owner
	permission view = edit + own + folder->view
	permission deep = folder->parent->view
	permission apart = editor & edit
}
`

// TestAffected changes one thing of a schema at a time.
func TestAffected(t *testing.T) {
	for _, test := range []struct {
		name, old, new string
		want           string // with a star for those rewritten themselves
	}{
		{"nothing", "", "", ""},
		{"a comment", "permission free = nil", "// Says nothing.\npermission free = nil", ""},
		{"the order of what is allowed", "relation viewer: user | group#member", "relation viewer: group#member | user", ""},
		{"own rewrite", "permission edit = editor", "permission edit = owner", "doc#apart doc#edit* doc#view"},
		{"own rewrite alone", "permission free = nil", "permission free = viewer", "folder#free*"},
		{"what a relation allows", "relation editor: user", "relation editor: user | group#member", "doc#apart doc#edit doc#view"},
		{"through a userset", "relation member: user | group#member", "relation member: group#member", "doc#deep doc#view folder#view"},
		{"through a caveat", "hour > 22", "hour > 23", "doc#own doc#view"},
		{"a caveat's parameter", "late(hour int)", "late(hour double)", "doc#own doc#view"},
		{"through arrows", "permission view = viewer + parent->view", "permission view = viewer", "doc#deep doc#view folder#view*"},
		{"the arrow's own tuples", "relation folder: folder", "relation folder: folder | folder with expiration", "doc#deep doc#view"},
		{"a permission that is added", "permission free = nil", "permission free = nil permission more = view", ""},
		{"one that is gone", "permission free = nil", "", ""},
		{"a target that is gone", "permission deep = folder->parent->view", "permission deep = folder->view", "doc#deep*"},
	} {
		from, err := compileText(affectedBase)
		if err != nil {
			t.Fatal(err)
		}
		text := affectedBase
		if test.old != "" {
			if text = strings.Replace(text, test.old, test.new, 1); text == affectedBase {
				t.Fatalf("%s: nothing was replaced", test.name)
			}
		}
		to, err := compileText(text)
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		var got, back []string
		for _, a := range Affected(from, to) {
			s := fmt.Sprintf("%s#%s", a.Definition, a.Permission)
			back = append(back, s)
			if a.Rewritten {
				s += "*"
			}
			got = append(got, s)
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%s: got %q, expected %q", test.name, strings.Join(got, " "), test.want)
		}
		// The way back changes the same permissions.
		for i, a := range Affected(to, from) {
			if i >= len(back) || fmt.Sprintf("%s#%s", a.Definition, a.Permission) != back[i] {
				t.Errorf("%s: the way back has %v", test.name, a)
			}
		}
	}
}

// TestAffectedByAddedTarget: an arrow that leads to nothing on one of its types
// means more as soon as that type has the name.
func TestAffectedByAddedTarget(t *testing.T) {
	const base = `definition user {} definition bin {%s} definition doc { relation in: bin | doc  relation own: user  permission view = own + in->view }`
	from, err := compileText(fmt.Sprintf(base, ""))
	if err != nil {
		t.Fatal(err)
	}
	to, err := compileText(fmt.Sprintf(base, " relation view: user "))
	if err != nil {
		t.Fatal(err)
	}
	want := []AffectedPermission{{Definition: "doc", Permission: "view"}}
	if got := Affected(from, to); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, expected %v", got, want)
	}
}
