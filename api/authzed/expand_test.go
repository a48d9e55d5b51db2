package authzed

import (
	"fmt"
	"strings"
	"testing"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc/codes"
)

// treeText renders a tree, one node a line.
func treeText(p *v1.PermissionRelationshipTree, indent string) string {
	text := fmt.Sprintf("%s%s:%s#%s", indent, p.GetExpandedObject().GetObjectType(), p.GetExpandedObject().GetObjectId(), p.GetExpandedRelation())
	if leaf := p.GetLeaf(); leaf != nil {
		for _, s := range leaf.GetSubjects() {
			text += fmt.Sprintf(" %s:%s", s.GetObject().GetObjectType(), s.GetObject().GetObjectId())
			if r := s.GetOptionalRelation(); r != "" {
				text += "#" + r
			}
		}
		return text + "\n"
	}
	text += " " + strings.ToLower(strings.TrimPrefix(p.GetIntermediate().GetOperation().String(), "OPERATION_")) + "\n"
	for _, c := range p.GetIntermediate().GetChildren() {
		text += treeText(c, indent+"  ")
	}
	return text
}

func TestExpandPermissionTree(t *testing.T) {
	conn := newServer(t)
	writeSchema(t, conn, `use self

caveat never(given bool) {
	given && !given
}
definition user {
	permission oneself = self
}
definition team {
	relation member: user | team#member
	relation guest: user | user:*
}
definition folder {
	relation viewer: user
	permission view = viewer
}
definition document {
	relation parent: folder | team
	relation viewer: user | team#member | user with never
	relation banned: user
	permission none = nil
	permission row = viewer - banned - parent->view
	permission group = (parent->view + viewer) + (banned + (viewer & banned))
	permission every = parent.all(view)
	permission through = parent->view
}
`)
	touch(
		t, conn,
		"document:plan#parent@folder:a",
		"document:plan#parent@folder:b",
		"document:plan#parent@team:eng",
		"folder:a#viewer@user:ann",
		"document:plan#viewer@user:zoe",
		"document:plan#viewer@user:bob[never]",
		"document:plan#viewer@team:eng#member",
		"team:eng#guest@user:*", "team:eng#guest@user:bob",
		"document:lone#parent@folder:a",
	)
	client := v1.NewPermissionsServiceClient(conn)
	for _, x := range []struct{ name, want string }{
		{"user:ann#oneself", `
user:ann#oneself union
  user:ann#oneself user:ann
`},
		{"team:eng#guest", `
team:eng#guest user:* user:bob
`},
		{"team:none#member", `
team:none#member
`},
		{"document:plan#none", `
document:plan#none union
  document:plan#none
`},
		{"document:lone#through", `
document:lone#through union
  document:lone#through union
    folder:a#view union
      folder:a#viewer user:ann
`},
		{"document:plan#row", `
document:plan#row exclusion
  document:plan#row exclusion
    document:plan#viewer team:eng#member user:bob user:zoe
    document:plan#banned
  document:plan#row union
    folder:a#view union
      folder:a#viewer user:ann
    folder:b#view union
      folder:b#viewer
    document:plan#row
`},
		{"document:plan#group", `
document:plan#group union
  document:plan#group union
    folder:a#view union
      folder:a#viewer user:ann
    folder:b#view union
      folder:b#viewer
    document:plan#group
  document:plan#viewer team:eng#member user:bob user:zoe
  document:plan#banned
  document:plan#group intersection
    document:plan#viewer team:eng#member user:bob user:zoe
    document:plan#banned
`},
		{"document:plan#every", `
document:plan#every union
  document:plan#every intersection
    folder:a#view union
      folder:a#viewer user:ann
    folder:b#view union
      folder:b#viewer
    document:plan#every
`},
		{"document:plan#viewer", `
document:plan#viewer team:eng#member user:bob user:zoe
`},
	} {
		q := parseQuestion(t, x.name+"@user:nobody")
		r, err := client.ExpandPermissionTree(testContext(t), &v1.ExpandPermissionTreeRequest{
			Consistency: fullyConsistent, Resource: q.GetResource(), Permission: q.GetPermission(),
		})
		if err != nil {
			t.Fatalf("%s: %v", x.name, err)
		}
		if got := "\n" + treeText(r.GetTreeRoot(), ""); got != x.want {
			t.Errorf("%s: got%swant%s", x.name, got, x.want)
		}
		if len(r.GetExpandedAt().GetToken()) < 24 {
			t.Errorf("%s: expanded at %v", x.name, r.GetExpandedAt())
		}
	}
	for _, x := range []struct {
		name   string
		code   codes.Code
		reason string
	}{
		{"paper:plan#view", codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_DEFINITION"},
		{"document:plan#sign", codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_RELATION_OR_PERMISSION"},
		{"document:*#view", codes.InvalidArgument, ""},
	} {
		q := parseQuestion(t, x.name+"@user:nobody")
		_, err := client.ExpandPermissionTree(testContext(t), &v1.ExpandPermissionTreeRequest{Resource: q.GetResource(), Permission: q.GetPermission()})
		wantRefusal(t, err, x.code, x.reason)
	}
}
