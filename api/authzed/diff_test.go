package authzed

import (
	"fmt"
	"strings"
	"testing"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc/codes"
)

// diffLine writes a difference: its kind, then what it says.
func diffLine(d *v1.ReflectionSchemaDiff) string {
	kind := string(d.ProtoReflect().WhichOneof(d.ProtoReflect().Descriptor().Oneofs().ByName("diff")).Name())
	subject := func(c *v1.ReflectionRelationSubjectTypeChange) string {
		return typeText(c.GetChangedSubjectType()) + " of " + relationLine(c.GetRelation())
	}
	parameter := func(p *v1.ReflectionCaveatParameter) string {
		return p.GetParentCaveatName() + "." + p.GetName() + " " + p.GetType()
	}
	text := ""
	switch x := d.GetDiff().(type) {
	case *v1.ReflectionSchemaDiff_DefinitionAdded:
		text = strings.Join(definitionLines(x.DefinitionAdded), "; ")
	case *v1.ReflectionSchemaDiff_DefinitionRemoved:
		text = strings.Join(definitionLines(x.DefinitionRemoved), "; ")
	case *v1.ReflectionSchemaDiff_DefinitionDocCommentChanged:
		text = strings.Join(definitionLines(x.DefinitionDocCommentChanged), "; ")
	case *v1.ReflectionSchemaDiff_RelationAdded:
		text = relationLine(x.RelationAdded)
	case *v1.ReflectionSchemaDiff_RelationRemoved:
		text = relationLine(x.RelationRemoved)
	case *v1.ReflectionSchemaDiff_RelationDocCommentChanged:
		text = relationLine(x.RelationDocCommentChanged)
	case *v1.ReflectionSchemaDiff_RelationSubjectTypeAdded:
		text = subject(x.RelationSubjectTypeAdded)
	case *v1.ReflectionSchemaDiff_RelationSubjectTypeRemoved:
		text = subject(x.RelationSubjectTypeRemoved)
	case *v1.ReflectionSchemaDiff_PermissionAdded:
		text = permissionLine(x.PermissionAdded)
	case *v1.ReflectionSchemaDiff_PermissionRemoved:
		text = permissionLine(x.PermissionRemoved)
	case *v1.ReflectionSchemaDiff_PermissionDocCommentChanged:
		text = permissionLine(x.PermissionDocCommentChanged)
	case *v1.ReflectionSchemaDiff_PermissionExprChanged:
		text = permissionLine(x.PermissionExprChanged)
	case *v1.ReflectionSchemaDiff_CaveatAdded:
		text = caveatLine(x.CaveatAdded)
	case *v1.ReflectionSchemaDiff_CaveatRemoved:
		text = caveatLine(x.CaveatRemoved)
	case *v1.ReflectionSchemaDiff_CaveatDocCommentChanged:
		text = caveatLine(x.CaveatDocCommentChanged)
	case *v1.ReflectionSchemaDiff_CaveatExprChanged:
		text = caveatLine(x.CaveatExprChanged)
	case *v1.ReflectionSchemaDiff_CaveatParameterAdded:
		text = parameter(x.CaveatParameterAdded)
	case *v1.ReflectionSchemaDiff_CaveatParameterRemoved:
		text = parameter(x.CaveatParameterRemoved)
	case *v1.ReflectionSchemaDiff_CaveatParameterTypeChanged:
		text = fmt.Sprintf("%s, was %s", parameter(x.CaveatParameterTypeChanged.GetParameter()), x.CaveatParameterTypeChanged.GetPreviousType())
	}
	return kind + ": " + text
}

// TestDiffSchema holds every kind of difference, and that there is no other.
func TestDiffSchema(t *testing.T) {
	conn := newServer(t)
	client := v1.NewSchemaServiceClient(conn)
	const user, anon = "definition user {}\n", "definition anon {}\n"
	doc := func(members ...string) string {
		return user + anon + "definition doc {\n" + strings.Join(members, "\n") + "\n}"
	}
	seen := make(map[string]bool)
	for _, c := range []struct {
		name, from, to string
		want           []string
	}{
		{"nothing", user, user, nil},
		{"order and layout alone", doc("relation one: user", "permission two = (one)"), doc("permission two = one", "relation one: user"), nil},
		{"definition added", "", user, []string{`definition_added: user ""`}},
		{
			"definition removed", doc("// c", "relation one: user", "permission two = one"), user + anon,
			[]string{`definition_removed: doc ""; doc#one "// c": user#...; doc#two ""`},
		},
		{"definition comment", user, "// new\n" + user, []string{`definition_doc_comment_changed: user "// new"`}},
		{"relation added", doc(), doc("relation one: user"), []string{`relation_added: doc#one "": user#...`}},
		{"relation removed", doc("relation one: user"), doc(), []string{`relation_removed: doc#one "": user#...`}},
		{"relation comment", doc("relation one: user"), doc("// c", "relation one: user"), []string{`relation_doc_comment_changed: doc#one "// c": user#...`}},
		{
			"subject types", doc("relation one: anon"), doc("relation one: user:* | user"),
			[]string{
				`relation_subject_type_removed: anon#... of doc#one "": user:* | user#...`,
				`relation_subject_type_added: user:* of doc#one "": user:* | user#...`,
				`relation_subject_type_added: user#... of doc#one "": user:* | user#...`,
			},
		},
		{
			"relation with an expression", doc("relation one: user", "relation two: user"), "use rewrite\n" + doc("relation one: user = this + two", "relation two: user"),
			[]string{`relation_removed: doc#one "": user#...`, `relation_added: doc#one "": user#...`},
		},
		{"permission added", doc(), doc("permission one = nil"), []string{`permission_added: doc#one ""`}},
		{"permission removed", doc("// c", "permission one = nil"), doc(), []string{`permission_removed: doc#one "// c"`}},
		{"permission comment", doc("permission one = nil"), doc("// c", "permission one = nil"), []string{`permission_doc_comment_changed: doc#one "// c"`}},
		{
			"permission expression", doc("relation one: user", "permission two = one"), doc("relation one: user", "permission two = one - one"),
			[]string{`permission_expr_changed: doc#two ""`},
		},
		{
			"groups that say nothing", doc("relation one: user", "permission two = (one + one) + one", "permission six = one & (one & one)"),
			doc("relation one: user", "permission two = one + (one + one)", "permission six = one & one & one"), nil,
		},
		{
			"groups of an exclusion", doc("relation one: user", "permission two = one - one - one"), doc("relation one: user", "permission two = one - (one - one)"),
			[]string{`permission_expr_changed: doc#two ""`},
		},
		{
			"annotation", doc("relation one: user", "permission two = one"), "use typechecking\n" + doc("relation one: user", "permission two: user = one"),
			[]string{`permission_expr_changed: doc#two ""`},
		},
		{
			"relation becomes permission", doc("relation one: user"), doc("permission one = nil"),
			[]string{`relation_removed: doc#one "": user#...`, `permission_added: doc#one ""`},
		},
		{"caveat added", user, user + "caveat abc(x int) { x<42 }", []string{`caveat_added: caveat abc "" (abc.x int) x < 42`}},
		{"caveat removed", user + "caveat abc(x int) { x<42 }", user, []string{`caveat_removed: caveat abc "" (abc.x int) x < 42`}},
		{
			"caveat comment", "caveat abc(x int) { x < 42 }", "// c\ncaveat abc(x int) { x < 42 }",
			[]string{`caveat_doc_comment_changed: caveat abc "// c" (abc.x int) x < 42`},
		},
		{"caveat expression", "caveat abc(x int) { x < 42 }", "caveat abc(x int) { x < 43 }", []string{`caveat_expr_changed: caveat abc "" (abc.x int) x < 43`}},
		{"caveat layout", "caveat abc(x int) { x < 42 }", "caveat abc(x int) { (x)<42 // less\n }", nil},
		{
			"parameters", "caveat abc(x int, y int) { x < y }", "caveat abc(x uint, z string) { x < 1 && z == '' }",
			[]string{
				`caveat_expr_changed: caveat abc "" (abc.x uint, abc.z string) x < 1 && z == ""`,
				`caveat_parameter_type_changed: abc.x uint, was int`,
				`caveat_parameter_removed: abc.y int`,
				`caveat_parameter_added: abc.z string`,
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			writeSchema(t, conn, "")
			writeSchema(t, conn, c.from)
			r, err := client.DiffSchema(testContext(t), &v1.DiffSchemaRequest{Consistency: fullyConsistent, ComparisonSchema: c.to})
			if err != nil {
				t.Fatal(err)
			}
			if r.GetReadAt().GetToken() == "" {
				t.Error("read_at is empty")
			}
			var got []string
			for _, d := range r.GetDiffs() {
				line := diffLine(d)
				got = append(got, line)
				kind, _, _ := strings.Cut(line, ":")
				seen[kind] = true
			}
			wantLines(t, got, c.want)
		})
	}
	kinds := new(v1.ReflectionSchemaDiff).ProtoReflect().Descriptor().Oneofs().ByName("diff").Fields()
	for i := range kinds.Len() {
		if name := string(kinds.Get(i).Name()); !seen[name] {
			t.Errorf("no case has %s", name)
		}
	}

	_, err := client.DiffSchema(testContext(t), &v1.DiffSchemaRequest{Consistency: fullyConsistent, ComparisonSchema: "definition user { invalid"})
	m := wantRefusal(t, err, codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_SCHEMA_PARSE_ERROR.String())
	if m["source_code"] != "invalid" {
		t.Errorf("it quotes %q", m["source_code"])
	}
	_, err = client.DiffSchema(testContext(t), &v1.DiffSchemaRequest{Consistency: fullyConsistent, ComparisonSchema: "definition doc {\nrelation one: user\n}"})
	wantRefusal(t, err, codes.FailedPrecondition, v1.ErrorReason_ERROR_REASON_SCHEMA_TYPE_ERROR.String())
}
