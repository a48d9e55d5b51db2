package authzed

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/schema"
)

// TestUnreachableArrows: an arrow to a name that none of the types has which it leads to
// is accepted, as it is there, and holds nobody in any question. pemba.v1, which refuses
// to write it, reads it and compares with it.
func TestUnreachableArrows(t *testing.T) {
	conn := newServer(t)
	schemas, permissions := v1.NewSchemaServiceClient(conn), v1.NewPermissionsServiceClient(conn)
	const text = `definition document {
	relation parent: folder
	relation viewer: user
	permission view = viewer + parent->veiwer
	permission nobody = parent.all(veiwer)
	permission through = parent->lost
	permission chained = parent->parent->lots
}

definition folder {
	relation parent: folder
	relation viewer: user
	permission lost = parent->lots
}

definition user {}`
	writeSchema(t, conn, text)
	if got := readSchema(t, conn); got != text {
		t.Errorf("it reads\n%s", got)
	}
	writeSchema(t, conn, readSchema(t, conn))
	touch(t, conn, "document:plan#parent@folder:a", "document:plan#viewer@user:zoe", "folder:a#viewer@user:ann", "folder:a#parent@folder:b")

	for relationship, want := range map[string]v1.CheckPermissionResponse_Permissionship{
		"document:plan#view@user:zoe":    v1.CheckPermissionResponse_PERMISSIONSHIP_HAS_PERMISSION,
		"document:plan#view@user:ann":    v1.CheckPermissionResponse_PERMISSIONSHIP_NO_PERMISSION,
		"document:plan#nobody@user:ann":  v1.CheckPermissionResponse_PERMISSIONSHIP_NO_PERMISSION,
		"document:plan#through@user:ann": v1.CheckPermissionResponse_PERMISSIONSHIP_NO_PERMISSION,
		"document:plan#chained@user:ann": v1.CheckPermissionResponse_PERMISSIONSHIP_NO_PERMISSION,
	} {
		r := parseRelationship(t, relationship)
		answer, err := permissions.CheckPermission(testContext(t), &v1.CheckPermissionRequest{
			Consistency: fullyConsistent, Resource: r.GetResource(), Permission: r.GetRelation(), Subject: r.GetSubject(),
		})
		if err != nil || answer.GetPermissionship() != want {
			t.Errorf("%s: %v, %v; want %v", relationship, answer, err, want)
		}
	}
	found, _, err := resources(t, conn, &v1.LookupResourcesRequest{
		Consistency: fullyConsistent, ResourceObjectType: "document", Permission: "view", Subject: subjectOf("user", "zoe", ""),
	})
	if err != nil || !slices.Equal(found, []string{"plan"}) {
		t.Errorf("resources: %v, %v", found, err)
	}
	found, _, err = subjects(t, conn, &v1.LookupSubjectsRequest{
		Consistency: fullyConsistent, Resource: &v1.ObjectReference{ObjectType: "document", ObjectId: "plan"}, Permission: "view", SubjectObjectType: "user",
	})
	if err != nil || !slices.Equal(found, []string{"zoe"}) {
		t.Errorf("subjects: %v, %v", found, err)
	}
	// A relationship along the arrow is a leaf without subjects, of what is expanded; also
	// where the compiler has a permission of the name that the arrow is written with.
	for name, want := range map[string]string{
		"document:plan#view": `
document:plan#view union
  document:plan#viewer user:zoe
  document:plan#view union
    document:plan#view
`,
		"document:none#nobody": `
document:none#nobody union
  document:none#nobody intersection
`,
		"folder:a#lost": `
folder:a#lost union
  folder:a#lost union
    folder:a#lost
`,
	} {
		r := parseRelationship(t, name+"@user:any")
		answer, err := permissions.ExpandPermissionTree(testContext(t), &v1.ExpandPermissionTreeRequest{
			Consistency: fullyConsistent, Resource: r.GetResource(), Permission: r.GetRelation(),
		})
		if got := "\n" + treeText(answer.GetTreeRoot(), ""); err != nil || got != want {
			t.Errorf("%s: %v, got%swant%s", name, err, got, want)
		}
	}

	reflected, err := schemas.ReflectSchema(testContext(t), &v1.ReflectSchemaRequest{Consistency: fullyConsistent})
	if err != nil || len(reflected.GetDefinitions()) != 3 {
		t.Errorf("ReflectSchema: %v, %v", reflected, err)
	}
	dependent, err := schemas.DependentRelations(testContext(t), &v1.DependentRelationsRequest{Consistency: fullyConsistent, DefinitionName: "document", PermissionName: "view"})
	var names []string
	for _, r := range dependent.GetRelations() {
		names = append(names, r.GetDefinitionName()+"#"+r.GetRelationName())
	}
	if want := []string{"document#parent", "document#viewer"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("DependentRelations: %v, %v; want %v", names, err, want)
	}
	mended := strings.ReplaceAll(text, "veiwer", "viewer")
	for comparison, want := range map[string]int{text: 0, mended: 2} {
		diff, err := schemas.DiffSchema(testContext(t), &v1.DiffSchemaRequest{Consistency: fullyConsistent, ComparisonSchema: comparison})
		if err != nil || len(diff.GetDiffs()) != want {
			t.Errorf("DiffSchema: %v, %v; want %d", diff.GetDiffs(), err, want)
		}
	}

	native := pembav1.NewSchemaServiceClient(conn)
	read, err := native.ReadSchema(testContext(t), &pembav1.ReadSchemaRequest{})
	if err != nil || read.GetSchema() != text {
		t.Errorf("pemba.v1 reads %q, %v", read.GetSchema(), err)
	}
	_, err = native.WriteSchema(testContext(t), &pembav1.WriteSchemaRequest{Schema: text})
	if code, reason, _ := reasonOf(err); code != codes.InvalidArgument && code != codes.FailedPrecondition || reason != engine.SchemaType.String() || !strings.Contains(status.Convert(err).Message(), "did you mean `viewer`?") {
		t.Errorf("pemba.v1 writes it: %v", err)
	}
	trial, err := native.TrySchema(testContext(t), &pembav1.TrySchemaRequest{Schema: text})
	if err != nil || trial.GetAccepted() || trial.GetError().GetReason() != engine.SchemaType.String() {
		t.Errorf("pemba.v1 tries it: %v, %v", trial, err)
	}
	diff, err := native.DiffSchema(testContext(t), &pembav1.DiffSchemaRequest{To: &pembav1.DiffSchemaRequest_ToSchema{ToSchema: text}})
	if err != nil || len(diff.GetChanges()) != 0 {
		t.Errorf("pemba.v1 compares it: %v, %v", diff, err)
	}
	if _, err := native.WriteSchema(testContext(t), &pembav1.WriteSchemaRequest{Schema: strings.ReplaceAll(mended, "lots", "lost")}); err != nil {
		t.Errorf("pemba.v1 writes it without the mistakes: %v", err)
	}
}

// TestForgivenSchemas: WriteSchema and DiffSchema forgive alike what pemba.v1 does not,
// and are bounded alike.
func TestForgivenSchemas(t *testing.T) {
	conn := newServer(t)
	client := v1.NewSchemaServiceClient(conn)
	idle := "use partial\ndefinition user {}\npartial idle {\n\trelation viewer: nobody\n}"
	writeSchema(t, conn, idle)
	if diff, err := client.DiffSchema(testContext(t), &v1.DiffSchemaRequest{Consistency: fullyConsistent, ComparisonSchema: idle}); err != nil || len(diff.GetDiffs()) > 0 {
		t.Errorf("a mistake in a partial that nothing uses: %v, %v", diff, err)
	}
	const types = 2000
	var wide strings.Builder
	wide.WriteString("definition document {\n\trelation parent: document")
	for i := range types - 1 {
		fmt.Fprintf(&wide, " | type%d", i)
	}
	wide.WriteString("\n\tpermission view = parent->view" + strings.Repeat(" + parent->view", schema.ArrowTypesMax/types) + "\n}\n")
	for i := range types - 1 {
		fmt.Fprintf(&wide, "definition type%d {}\n", i)
	}
	_, message := refuseSchema(t, conn, wide.String(), codes.FailedPrecondition, v1.ErrorReason_ERROR_REASON_SCHEMA_TYPE_ERROR)
	_, err := client.DiffSchema(testContext(t), &v1.DiffSchemaRequest{Consistency: fullyConsistent, ComparisonSchema: wide.String()})
	wantRefusal(t, err, codes.FailedPrecondition, v1.ErrorReason_ERROR_REASON_SCHEMA_TYPE_ERROR.String())
	for _, text := range []string{message, status.Convert(err).Message()} {
		if !strings.Contains(text, "lead to too many types") {
			t.Errorf("arrows that lead to more than may be: %.300s", text)
		}
	}
}
