package authzed

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const reflectedSchema = `use expiration
/** user represents a user */
definition user {}

// A group.
definition group {
	relation direct_member: user | group#member
	relation admin: user
	permission member = direct_member + admin
}

/** somecaveat is a caveat */
caveat somecaveat(second string, first list<int>) {
	first == [1]   && second == "two"
}

definition document {
	// editor is a relation
	relation editor: user with expiration | group#member
	relation viewer: user | user with somecaveat | user:*

	// read all the things
	permission read = viewer + editor
}`

// linesOf writes what was reflected, one part a line.
func linesOf(r *v1.ReflectSchemaResponse) []string {
	var lines []string
	for _, d := range r.GetDefinitions() {
		lines = append(lines, definitionLines(d)...)
	}
	for _, c := range r.GetCaveats() {
		lines = append(lines, caveatLine(c))
	}
	return lines
}

func definitionLines(d *v1.ReflectionDefinition) []string {
	lines := []string{fmt.Sprintf("%s %q", d.GetName(), d.GetComment())}
	for _, r := range d.GetRelations() {
		lines = append(lines, relationLine(r))
	}
	for _, p := range d.GetPermissions() {
		lines = append(lines, permissionLine(p))
	}
	return lines
}

func relationLine(r *v1.ReflectionRelation) string {
	var types []string
	for _, t := range r.GetSubjectTypes() {
		types = append(types, typeText(t))
	}
	return fmt.Sprintf("%s#%s %q: %s", r.GetParentDefinitionName(), r.GetName(), r.GetComment(), strings.Join(types, " | "))
}

func permissionLine(p *v1.ReflectionPermission) string {
	return fmt.Sprintf("%s#%s %q", p.GetParentDefinitionName(), p.GetName(), p.GetComment())
}

func typeText(t *v1.ReflectionTypeReference) string {
	text := t.GetSubjectDefinitionName()
	switch ref := t.GetTyperef().(type) {
	case *v1.ReflectionTypeReference_IsPublicWildcard:
		text += ":*"
	case *v1.ReflectionTypeReference_OptionalRelationName:
		text += "#" + ref.OptionalRelationName
	case *v1.ReflectionTypeReference_IsTerminalSubject:
		text += "#..."
	}
	if t.GetOptionalCaveatName() != "" {
		text += " with " + t.GetOptionalCaveatName()
	}
	return text
}

func caveatLine(c *v1.ReflectionCaveat) string {
	var parameters []string
	for _, p := range c.GetParameters() {
		parameters = append(parameters, p.GetParentCaveatName()+"."+p.GetName()+" "+p.GetType())
	}
	return fmt.Sprintf("caveat %s %q (%s) %s", c.GetName(), c.GetComment(), strings.Join(parameters, ", "), c.GetExpression())
}

func wantLines(t *testing.T, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestReflectSchema holds what is reflected, and what filters leave of it.
func TestReflectSchema(t *testing.T) {
	conn := newServer(t)
	client := v1.NewSchemaServiceClient(conn)
	token := writeSchema(t, conn, reflectedSchema)
	all := []string{
		`document ""`,
		`document#editor "// editor is a relation": user#... | group#member`,
		`document#viewer "": user#... | user#... with somecaveat | user:*`,
		`document#read "// read all the things"`,
		`group "// A group."`,
		`group#direct_member "": user#... | group#member`,
		`group#admin "": user#...`,
		`group#member ""`,
		`user "/** user represents a user */"`,
		`caveat somecaveat "/** somecaveat is a caveat */" (somecaveat.first list<int>, somecaveat.second string) first == [1] && second == "two"`,
	}
	type filter = v1.ReflectionSchemaFilter
	for name, c := range map[string]struct {
		filters []*filter
		want    []string
	}{
		"none":                    {nil, all},
		"definitions":             {[]*filter{{OptionalDefinitionNameFilter: "doc"}, {OptionalDefinitionNameFilter: "us"}}, append(all[:4:4], all[8])},
		"caveats":                 {[]*filter{{OptionalCaveatNameFilter: "some"}}, all[9:]},
		"no such":                 {[]*filter{{OptionalCaveatNameFilter: "x"}, {OptionalDefinitionNameFilter: "x"}}, nil},
		"definition and caveat":   {[]*filter{{OptionalCaveatNameFilter: "some"}, {OptionalDefinitionNameFilter: "user"}}, all[8:]},
		"relation":                {[]*filter{{OptionalDefinitionNameFilter: "doc", OptionalRelationNameFilter: "v"}}, []string{all[0], all[2], all[3]}},
		"permission":              {[]*filter{{OptionalDefinitionNameFilter: "doc", OptionalPermissionNameFilter: "x"}}, all[:3]},
		"relation and permission": {[]*filter{{OptionalDefinitionNameFilter: "doc", OptionalPermissionNameFilter: "re"}, {OptionalDefinitionNameFilter: "gr", OptionalRelationNameFilter: "ad"}}, []string{all[0], all[3], all[4], all[6]}},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := client.ReflectSchema(testContext(t), &v1.ReflectSchemaRequest{Consistency: fullyConsistent, OptionalFilters: c.filters})
			if err != nil {
				t.Fatal(err)
			}
			if r.GetReadAt().GetToken() == "" {
				t.Error("read_at is empty")
			}
			wantLines(t, linesOf(r), c.want)
		})
	}
	for message, f := range map[string]*filter{
		"cannot filter by both definition and caveat name":     {OptionalDefinitionNameFilter: "a", OptionalCaveatNameFilter: "b"},
		"relation name match requires definition name match":   {OptionalRelationNameFilter: "a"},
		"permission name match requires definition name match": {OptionalPermissionNameFilter: "a"},
		"cannot filter by both relation and permission name":   {OptionalDefinitionNameFilter: "a", OptionalRelationNameFilter: "a", OptionalPermissionNameFilter: "b"},
	} {
		_, err := client.ReflectSchema(testContext(t), &v1.ReflectSchemaRequest{Consistency: fullyConsistent, OptionalFilters: []*filter{f}})
		wantRefusal(t, err, codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_INVALID_FILTER.String())
		if !strings.Contains(status.Convert(err).Message(), message) {
			t.Errorf("got %v, want %s", err, message)
		}
	}
	for n, want := range map[int]codes.Code{filtersMax: codes.OK, filtersMax + 1: codes.InvalidArgument} {
		many := slices.Repeat([]*filter{{OptionalDefinitionNameFilter: "x"}}, n)
		_, err := client.ReflectSchema(testContext(t), &v1.ReflectSchemaRequest{Consistency: fullyConsistent, OptionalFilters: many})
		//nolint:staticcheck // The deprecated name is served too.
		_, older := v1.NewExperimentalServiceClient(conn).ExperimentalReflectSchema(testContext(t), &v1.ExperimentalReflectSchemaRequest{
			Consistency: fullyConsistent, OptionalFilters: slices.Repeat([]*v1.ExpSchemaFilter{{OptionalDefinitionNameFilter: "x"}}, n),
		})
		for _, err := range []error{err, older} {
			if status.Code(err) != want || want != codes.OK && !strings.Contains(err.Error(), "there are 1001 filters in optional_filters; at most 1000 are allowed") {
				t.Errorf("%d filters: %v, want %v", n, err, want)
			}
		}
	}
	// A schema of the past is reflected at its token.
	writeSchema(t, conn, "definition user {}")
	r, err := client.ReflectSchema(testContext(t), &v1.ReflectSchemaRequest{
		Consistency: &v1.Consistency{Requirement: &v1.Consistency_AtExactSnapshot{AtExactSnapshot: token}},
	})
	if err != nil {
		t.Fatal(err)
	}
	wantLines(t, linesOf(r), all)
}

// TestReferences holds which relations and permissions are computable from others,
// and depend on others.
func TestReferences(t *testing.T) {
	conn := newServer(t)
	client := v1.NewSchemaServiceClient(conn)
	writeSchema(t, conn, `
	definition user {}
	definition bot {}
	definition organization {
		relation admin: user
		relation banned: user
		permission can_admin = admin - banned
	}
	definition group {
		relation direct_member: user | group#member
		relation org: organization
		permission member = direct_member + org->can_admin
	}
	definition folder {
		relation parent: folder
		relation owner: bot:*
		permission view = owner + parent->view
	}
	definition document {
		relation unused: bot
		relation viewer: user | group#member
		relation folder: folder
		permission view = viewer
		permission chained = folder->parent->owner
		permission empty = nil
		permission both = view & folder.all(view)
	}`)
	list := func(refs []*v1.ReflectionRelationReference) string {
		var texts []string
		for _, r := range refs {
			text := r.GetDefinitionName() + "#" + r.GetRelationName()
			if r.GetIsPermission() {
				text += "!"
			}
			texts = append(texts, text)
		}
		return strings.Join(texts, " ")
	}
	for _, c := range []struct{ definition, relation, filter, want string }{
		{"user", "", "", "document#both! document#view! document#viewer group#direct_member group#member! organization#admin organization#banned organization#can_admin!"},
		{"user", "", "org", "organization#admin organization#banned organization#can_admin!"},
		{"organization", "banned", "", "document#both! document#view! document#viewer group#direct_member group#member! organization#can_admin!"},
		{"group", "member", "", "document#both! document#view! document#viewer group#direct_member"},
		{"document", "view", "", "document#both!"},
		{"document", "unused", "", ""},
		{"bot", "", "", "document#both! document#chained! document#unused folder#owner folder#view!"},
		{"folder", "owner", "", "document#both! document#chained! folder#view!"},
	} {
		r, err := client.ComputablePermissions(testContext(t), &v1.ComputablePermissionsRequest{
			Consistency: fullyConsistent, DefinitionName: c.definition, RelationName: c.relation, OptionalDefinitionNameFilter: c.filter,
		})
		if err != nil || r.GetReadAt().GetToken() == "" || list(r.GetPermissions()) != c.want {
			t.Errorf("computable from %s#%s in %q*: %v %s, want %s", c.definition, c.relation, c.filter, err, list(r.GetPermissions()), c.want)
		}
	}
	for _, c := range []struct{ definition, permission, want string }{
		{"document", "empty", ""},
		{"document", "view", "document#viewer group#direct_member group#member! group#org organization#admin organization#banned organization#can_admin!"},
		{"document", "chained", "document#folder folder#owner folder#parent"},
		{"folder", "view", "folder#owner folder#parent"},
		{"organization", "can_admin", "organization#admin organization#banned"},
	} {
		r, err := client.DependentRelations(testContext(t), &v1.DependentRelationsRequest{
			Consistency: fullyConsistent, DefinitionName: c.definition, PermissionName: c.permission,
		})
		if err != nil || r.GetReadAt().GetToken() == "" || list(r.GetRelations()) != c.want {
			t.Errorf("%s#%s depends on: %v %s, want %s", c.definition, c.permission, err, list(r.GetRelations()), c.want)
		}
	}

	const unknownType, unknownName = v1.ErrorReason_ERROR_REASON_UNKNOWN_DEFINITION, v1.ErrorReason_ERROR_REASON_UNKNOWN_RELATION_OR_PERMISSION
	for _, c := range []struct {
		definition, name string
		code             codes.Code
		reason           v1.ErrorReason
		message          string
	}{
		{"invalid", "", codes.FailedPrecondition, unknownType, "object definition `invalid` not found"},
		{"", "empty", codes.FailedPrecondition, unknownType, "object definition `` not found"},
		{"user", "invalid", codes.FailedPrecondition, unknownName, "relation/permission `invalid` not found"},
		{"document", "parent->owner", codes.FailedPrecondition, unknownName, "not found"},
	} {
		_, err := client.ComputablePermissions(testContext(t), &v1.ComputablePermissionsRequest{Consistency: fullyConsistent, DefinitionName: c.definition, RelationName: c.name})
		wantRefusal(t, err, c.code, c.reason.String())
		_, other := client.DependentRelations(testContext(t), &v1.DependentRelationsRequest{Consistency: fullyConsistent, DefinitionName: c.definition, PermissionName: c.name})
		wantRefusal(t, other, c.code, c.reason.String())
		for _, err := range []error{err, other} {
			if !strings.Contains(status.Convert(err).Message(), c.message) {
				t.Errorf("%s#%s: %v", c.definition, c.name, err)
			}
		}
	}
	_, err := client.DependentRelations(testContext(t), &v1.DependentRelationsRequest{Consistency: fullyConsistent, DefinitionName: "user"})
	wantRefusal(t, err, codes.FailedPrecondition, unknownName.String())
	_, err = client.DependentRelations(testContext(t), &v1.DependentRelationsRequest{Consistency: fullyConsistent, DefinitionName: "document", PermissionName: "viewer"})
	wantRefusal(t, err, codes.InvalidArgument, unknownName.String())
	if !strings.Contains(status.Convert(err).Message(), "is not a permission") {
		t.Error(err)
	}
}
