//nolint:staticcheck // What is tested here is deprecated, and still served.
package authzed

import (
	"testing"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// TestSchemaAliases holds that the older names answer the same, and that their
// messages have the same fields, on which that relies.
func TestSchemaAliases(t *testing.T) {
	conn := newServer(t)
	schemas, aliases := v1.NewSchemaServiceClient(conn), v1.NewExperimentalServiceClient(conn)
	writeSchema(t, conn, reflectedSchema)
	same := func(old, now proto.Message, oldErr, err error) {
		t.Helper()
		if oldErr != nil || err != nil {
			t.Fatal(oldErr, err)
		}
		sameFields(t, old.ProtoReflect().Descriptor(), now.ProtoReflect().Descriptor())
		options := proto.MarshalOptions{Deterministic: true}
		a, aErr := options.Marshal(old)
		b, bErr := options.Marshal(now)
		if aErr != nil || bErr != nil || len(a) == 0 || len(b) == 0 {
			t.Fatal(aErr, bErr)
		}
		// The tokens are of different moments.
		withoutToken := func(b []byte, m proto.Message) string {
			copied := m.ProtoReflect().New().Interface()
			if err := proto.Unmarshal(b, copied); err != nil {
				t.Fatal(err)
			}
			copied.ProtoReflect().Clear(copied.ProtoReflect().Descriptor().Fields().ByName("read_at"))
			b, err := options.Marshal(copied)
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		if withoutToken(a, old) != withoutToken(b, now) {
			t.Errorf("%s answers %v, %s %v", old.ProtoReflect().Descriptor().Name(), old, now.ProtoReflect().Descriptor().Name(), now)
		}
	}
	ctx := testContext(t)
	oldReflect, oldErr := aliases.ExperimentalReflectSchema(ctx, &v1.ExperimentalReflectSchemaRequest{Consistency: fullyConsistent, OptionalFilters: []*v1.ExpSchemaFilter{{OptionalDefinitionNameFilter: "doc"}}})
	reflected, err := schemas.ReflectSchema(ctx, &v1.ReflectSchemaRequest{Consistency: fullyConsistent, OptionalFilters: []*v1.ReflectionSchemaFilter{{OptionalDefinitionNameFilter: "doc"}}})
	same(oldReflect, reflected, oldErr, err)
	oldDiff, oldErr := aliases.ExperimentalDiffSchema(ctx, &v1.ExperimentalDiffSchemaRequest{Consistency: fullyConsistent, ComparisonSchema: "definition user {}"})
	diff, err := schemas.DiffSchema(ctx, &v1.DiffSchemaRequest{Consistency: fullyConsistent, ComparisonSchema: "definition user {}"})
	same(oldDiff, diff, oldErr, err)
	oldComputable, oldErr := aliases.ExperimentalComputablePermissions(ctx, &v1.ExperimentalComputablePermissionsRequest{Consistency: fullyConsistent, DefinitionName: "user"})
	computable, err := schemas.ComputablePermissions(ctx, &v1.ComputablePermissionsRequest{Consistency: fullyConsistent, DefinitionName: "user"})
	same(oldComputable, computable, oldErr, err)
	oldDependent, oldErr := aliases.ExperimentalDependentRelations(ctx, &v1.ExperimentalDependentRelationsRequest{Consistency: fullyConsistent, DefinitionName: "document", PermissionName: "read"})
	dependent, err := schemas.DependentRelations(ctx, &v1.DependentRelationsRequest{Consistency: fullyConsistent, DefinitionName: "document", PermissionName: "read"})
	same(oldDependent, dependent, oldErr, err)

	for old, now := range map[proto.Message]proto.Message{
		&v1.ExperimentalReflectSchemaRequest{}:         &v1.ReflectSchemaRequest{},
		&v1.ExperimentalDiffSchemaRequest{}:            &v1.DiffSchemaRequest{},
		&v1.ExperimentalComputablePermissionsRequest{}: &v1.ComputablePermissionsRequest{},
		&v1.ExperimentalDependentRelationsRequest{}:    &v1.DependentRelationsRequest{},
	} {
		sameFields(t, old.ProtoReflect().Descriptor(), now.ProtoReflect().Descriptor())
	}
	_, err = aliases.ExperimentalDependentRelations(ctx, &v1.ExperimentalDependentRelationsRequest{Consistency: fullyConsistent, DefinitionName: "nobody", PermissionName: "read"})
	wantRefusal(t, err, codes.FailedPrecondition, v1.ErrorReason_ERROR_REASON_UNKNOWN_DEFINITION.String())
}

// sameFields holds that two messages have fields of the same kinds under the same
// numbers, all the way down.
func sameFields(t *testing.T, a, b protoreflect.MessageDescriptor) {
	t.Helper()
	if a == b {
		return
	}
	if a.Fields().Len() != b.Fields().Len() {
		t.Fatalf("%s has %d fields, %s %d", a.Name(), a.Fields().Len(), b.Name(), b.Fields().Len())
	}
	for i := range a.Fields().Len() {
		x := a.Fields().Get(i)
		y := b.Fields().ByNumber(x.Number())
		if y == nil || x.Name() != y.Name() || x.Kind() != y.Kind() || x.Cardinality() != y.Cardinality() {
			t.Fatalf("%s has %v, %s %v", a.Name(), x, b.Name(), y)
		}
		if x.Kind() == protoreflect.MessageKind {
			sameFields(t, x.Message(), y.Message())
		}
	}
}
