package authzed

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc/codes"

	"github.com/pembadb/pemba/api"
)

// allocated returns how many bytes f allocates, and others meanwhile.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// wantLinear fails when f allocates more for four times as much than some four times
// as much: the square would be sixteen times. What prepare allocates does not count.
func wantLinear(t *testing.T, what string, n int, prepare, f func(n int)) {
	t.Helper()
	prepare(n)
	little := allocated(func() { f(n) })
	prepare(4 * n)
	much := allocated(func() { f(4 * n) })
	if much > 8*little {
		t.Errorf("%s allocates %d KiB for %d and %d KiB for %d", what, little>>10, n, much>>10, 4*n)
	}
}

// manyTypes is a schema of many types, and of the member of doc that names them all.
func manyTypes(n int, body string, member func(types string) string) string {
	var b, types strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "definition t%05d {%s}\n", i, body)
		fmt.Fprintf(&types, " | t%05d", i)
	}
	return b.String() + member(types.String())
}

// TestDiffSchemaSize: what a difference of n subject types takes does not grow with
// the square of n, although each is told with all types of its relation, and an
// answer that does is refused.
func TestDiffSchemaSize(t *testing.T) {
	conn := newServer(t)
	writeSchema(t, conn, "definition doc {\nrelation viewer: doc\n}")
	schemaWith := func(n int) string {
		return manyTypes(n, "", func(types string) string { return "definition doc {\nrelation viewer: doc" + types + "\n}" })
	}
	diffs := func(n int) error {
		_, err := v1.NewSchemaServiceClient(conn).DiffSchema(testContext(t), &v1.DiffSchemaRequest{Consistency: fullyConsistent, ComparisonSchema: schemaWith(n)})
		return err
	}
	older := func(n int) error {
		//nolint:staticcheck // The deprecated name is served too.
		_, err := v1.NewExperimentalServiceClient(conn).ExperimentalDiffSchema(testContext(t), &v1.ExperimentalDiffSchemaRequest{Consistency: fullyConsistent, ComparisonSchema: schemaWith(n)})
		return err
	}
	for name, diff := range map[string]func(n int) error{"DiffSchema": diffs, "ExperimentalDiffSchema": older} {
		if err := diff(300); err != nil {
			t.Errorf("%s of 300 types: %v", name, err)
		}
		wantLinear(t, name, 600, func(int) {}, func(n int) {
			code, reason, _ := reasonOf(diff(n))
			if code != codes.FailedPrecondition || reason != "ANSWER_TOO_LARGE" {
				t.Errorf("%s of %d types gives %v %q", name, n, code, reason)
			}
		})
	}
}

// TestReferencesSize: what is found out about the names of a schema does not take
// memory by the product of the arrows and of the types that they lead to.
func TestReferencesSize(t *testing.T) {
	conn := newServer(t)
	client := v1.NewSchemaServiceClient(conn)
	write := func(n int) {
		writeSchema(t, conn, "use expiration\ndefinition user {}\n"+manyTypes(n, "\nrelation view: user with expiration\n", func(types string) string {
			var b strings.Builder
			b.WriteString("definition doc {\nrelation viewer: user" + types + "\n")
			for i := range n {
				fmt.Fprintf(&b, "permission p%05d = viewer->view\n", i)
			}
			return b.String() + "}"
		}))
		// The first who asks for it has it compiled.
		if _, err := client.ReflectSchema(testContext(t), &v1.ReflectSchemaRequest{Consistency: fullyConsistent}); err != nil {
			t.Fatal(err)
		}
	}
	for name, ask := range map[string]func() (int, error){
		"ComputablePermissions": func() (int, error) {
			r, err := client.ComputablePermissions(testContext(t), &v1.ComputablePermissionsRequest{Consistency: fullyConsistent, DefinitionName: "t00000", RelationName: "view"})
			return len(r.GetPermissions()), err
		},
		"DependentRelations": func() (int, error) {
			r, err := client.DependentRelations(testContext(t), &v1.DependentRelationsRequest{Consistency: fullyConsistent, DefinitionName: "doc", PermissionName: "p00000"})
			return len(r.GetRelations()) - 1, err // viewer is the other.
		},
		"the first CheckPermission": func() (int, error) {
			_, err := v1.NewPermissionsServiceClient(conn).CheckPermission(testContext(t), &v1.CheckPermissionRequest{
				Consistency: fullyConsistent, Permission: "p00000",
				Resource: &v1.ObjectReference{ObjectType: "doc", ObjectId: "a"}, Subject: subjectOf("user", "anne", ""),
			})
			return -1, err
		},
	} {
		wantLinear(t, name, 100, write, func(n int) {
			if found, err := ask(); err != nil || found != n && found != -1 {
				t.Errorf("%s with %d types: %d found, %v", name, n, found, err)
			}
		})
	}
}

// TestReflectionFits: an answer about the schema is refused when it is larger than a
// client takes, and says what to ask for instead.
func TestReflectionFits(t *testing.T) {
	conn, _ := newServerWith(t, api.Config{Limits: api.Limits{AnswerBytes: 1000}})
	client := v1.NewSchemaServiceClient(conn)
	var b strings.Builder
	b.WriteString("definition user {}\ndefinition doc {\nrelation viewer: user\n")
	for i := range 100 {
		fmt.Fprintf(&b, "permission p%05d = viewer\n", i)
	}
	b.WriteString("permission every = viewer")
	for i := range 100 {
		fmt.Fprintf(&b, " + p%05d", i)
	}
	writeSchema(t, conn, b.String()+"\n}")
	for name, ask := range map[string]func(all bool) error{
		"ReflectSchema": func(all bool) error {
			r := &v1.ReflectSchemaRequest{Consistency: fullyConsistent}
			if !all {
				r.OptionalFilters = []*v1.ReflectionSchemaFilter{{OptionalDefinitionNameFilter: "user"}}
			}
			_, err := client.ReflectSchema(testContext(t), r)
			return err
		},
		"ComputablePermissions": func(all bool) error {
			r := &v1.ComputablePermissionsRequest{Consistency: fullyConsistent, DefinitionName: "user"}
			if !all {
				r.OptionalDefinitionNameFilter = "user"
			}
			_, err := client.ComputablePermissions(testContext(t), r)
			return err
		},
		"DependentRelations": func(all bool) error {
			r := &v1.DependentRelationsRequest{Consistency: fullyConsistent, DefinitionName: "doc", PermissionName: "p00000"}
			if all {
				r.PermissionName = "every"
			}
			_, err := client.DependentRelations(testContext(t), r)
			return err
		},
	} {
		if err := ask(false); err != nil {
			t.Errorf("%s of little: %v", name, err)
		}
		if code, reason, _ := reasonOf(ask(true)); code != codes.FailedPrecondition || reason != "ANSWER_TOO_LARGE" {
			t.Errorf("%s of all gives %v %q", name, code, reason)
		}
	}
}
