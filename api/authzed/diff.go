package authzed

import (
	"context"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/protobuf/proto"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/schema"
)

// DiffSchema says what must change to get from the schema to another one.
func (s *schemaService) DiffSchema(ctx context.Context, r *v1.DiffSchemaRequest) (*v1.DiffSchemaResponse, error) {
	if err := validate(r); err != nil {
		return nil, err
	}
	text := r.GetComparisonSchema()
	if _, err := s.parse("comparison_schema", text); err != nil {
		return nil, err
	}
	_, snapshot, err := s.snapshot(ctx, r.GetConsistency())
	if err != nil {
		return nil, err
	}
	defer snapshot.Close()
	from, err := schemaOf(snapshot)
	if err != nil {
		return nil, err
	}
	to, err := engine.CompileForgiving("comparison_schema", text)
	if err != nil {
		return nil, schemaError(text, err)
	}
	response := &v1.DiffSchemaResponse{ReadAt: s.token(snapshot)}
	changes := newChangeReflector(from, to)
	limits, bytes := s.host.Limits(), 0
	for _, c := range schema.Diff(from, to) {
		for _, d := range changes.reflect(c) {
			// Each subject type that comes or goes is told with its whole relation, so
			// that the answer may be as large as the square of the schemas.
			bytes += proto.Size(d)
			if err := limits.FitsAnswerBytes(bytes, "compare with a schema that differs in less, or compare what ReflectSchema tells of both"); err != nil {
				return nil, err
			}
			response.Diffs = append(response.Diffs, d)
		}
	}
	return response, limits.FitsAnswer(response, "compare with a schema that differs in less")
}

// A changeReflector converts changes from one schema to another. What was removed is
// told as it was, all else as it is.
type changeReflector struct {
	from, to *schema.Schema
	// expressions are those of caveats as the API shows them. Each is written once for
	// all changes of its caveat, since it is parsed for that.
	expressions map[*schema.Caveat]string
	// relations are those that were reflected. All changes of one share a message.
	relations map[*schema.Relation]*v1.ReflectionRelation
}

func newChangeReflector(from, to *schema.Schema) *changeReflector {
	return &changeReflector{
		from: from, to: to,
		expressions: make(map[*schema.Caveat]string), relations: make(map[*schema.Relation]*v1.ReflectionRelation),
	}
}

func (x *changeReflector) reflect(c schema.Change) []*v1.ReflectionSchemaDiff {
	if c.Caveat != "" {
		return x.caveat(c)
	}
	was, is := x.from.Definition(c.Definition), x.to.Definition(c.Definition)
	// Of these, was or is and its member c.Name are there for the kinds that use it.
	oldRelation := func() *v1.ReflectionRelation { return x.relation(was, c.Name) }
	relation := func() *v1.ReflectionRelation { return x.relation(is, c.Name) }
	permission := func() *v1.ReflectionPermission { return reflectPermission(is, is.Permission(c.Name)) }
	subject := func() *v1.ReflectionRelationSubjectTypeChange {
		return &v1.ReflectionRelationSubjectTypeChange{Relation: relation(), ChangedSubjectType: reflectSubjectType(c.Subject)}
	}
	var d v1.ReflectionSchemaDiff
	switch c.Kind {
	case schema.DefinitionAdded:
		d.Diff = &v1.ReflectionSchemaDiff_DefinitionAdded{DefinitionAdded: reflectDefinition(is, nil)}
	case schema.DefinitionRemoved:
		d.Diff = &v1.ReflectionSchemaDiff_DefinitionRemoved{DefinitionRemoved: reflectDefinition(was, nil)}
	case schema.DefinitionDocChanged:
		d.Diff = &v1.ReflectionSchemaDiff_DefinitionDocCommentChanged{DefinitionDocCommentChanged: reflectDefinition(is, nil)}
	case schema.RelationAdded:
		d.Diff = &v1.ReflectionSchemaDiff_RelationAdded{RelationAdded: relation()}
	case schema.RelationRemoved:
		d.Diff = &v1.ReflectionSchemaDiff_RelationRemoved{RelationRemoved: oldRelation()}
	case schema.RelationDocChanged:
		d.Diff = &v1.ReflectionSchemaDiff_RelationDocCommentChanged{RelationDocCommentChanged: relation()}
	case schema.RelationExprChanged:
		// The API knows no relations with expressions: as it sees them, one is gone
		// and another came.
		return []*v1.ReflectionSchemaDiff{
			{Diff: &v1.ReflectionSchemaDiff_RelationRemoved{RelationRemoved: oldRelation()}},
			{Diff: &v1.ReflectionSchemaDiff_RelationAdded{RelationAdded: relation()}},
		}
	case schema.SubjectTypeAdded:
		d.Diff = &v1.ReflectionSchemaDiff_RelationSubjectTypeAdded{RelationSubjectTypeAdded: subject()}
	case schema.SubjectTypeRemoved:
		d.Diff = &v1.ReflectionSchemaDiff_RelationSubjectTypeRemoved{RelationSubjectTypeRemoved: subject()}
	case schema.PermissionAdded:
		d.Diff = &v1.ReflectionSchemaDiff_PermissionAdded{PermissionAdded: permission()}
	case schema.PermissionRemoved:
		d.Diff = &v1.ReflectionSchemaDiff_PermissionRemoved{PermissionRemoved: reflectPermission(was, was.Permission(c.Name))}
	case schema.PermissionDocChanged:
		d.Diff = &v1.ReflectionSchemaDiff_PermissionDocCommentChanged{PermissionDocCommentChanged: permission()}
	case schema.PermissionExprChanged, schema.AnnotationChanged:
		// The types that a permission is said to yield are part of what stands
		// behind its name.
		d.Diff = &v1.ReflectionSchemaDiff_PermissionExprChanged{PermissionExprChanged: permission()}
	default:
		return nil // The kinds of caveats never come with a definition.
	}
	return []*v1.ReflectionSchemaDiff{&d}
}

func (x *changeReflector) relation(d *schema.Definition, name string) *v1.ReflectionRelation {
	r := d.Relation(name)
	reflected, ok := x.relations[r]
	if !ok {
		reflected = reflectRelation(d, r)
		x.relations[r] = reflected
	}
	return reflected
}

func (x *changeReflector) expression(c *schema.Caveat) string {
	text, ok := x.expressions[c]
	if !ok {
		text = c.CanonicalExpression()
		x.expressions[c] = text
	}
	return text
}

func (x *changeReflector) caveat(c schema.Change) []*v1.ReflectionSchemaDiff {
	// Of these, was or is is there for the kinds that use it.
	was, is := x.from.Caveat(c.Caveat), x.to.Caveat(c.Caveat)
	var d v1.ReflectionSchemaDiff
	switch c.Kind {
	case schema.CaveatAdded:
		d.Diff = &v1.ReflectionSchemaDiff_CaveatAdded{CaveatAdded: reflectCaveat(is, x.expression(is))}
	case schema.CaveatRemoved:
		d.Diff = &v1.ReflectionSchemaDiff_CaveatRemoved{CaveatRemoved: reflectCaveat(was, x.expression(was))}
	case schema.CaveatDocChanged:
		d.Diff = &v1.ReflectionSchemaDiff_CaveatDocCommentChanged{CaveatDocCommentChanged: reflectCaveat(is, x.expression(is))}
	case schema.CaveatExprChanged:
		if x.expression(was) == x.expression(is) {
			return nil // The same in another layout, in which the API never shows it.
		}
		d.Diff = &v1.ReflectionSchemaDiff_CaveatExprChanged{CaveatExprChanged: reflectCaveat(is, x.expression(is))}
	case schema.ParameterAdded:
		d.Diff = &v1.ReflectionSchemaDiff_CaveatParameterAdded{CaveatParameterAdded: reflectParameter(c.Caveat, c.Name, c.New)}
	case schema.ParameterRemoved:
		d.Diff = &v1.ReflectionSchemaDiff_CaveatParameterRemoved{CaveatParameterRemoved: reflectParameter(c.Caveat, c.Name, c.Old)}
	case schema.ParameterTypeChanged:
		d.Diff = &v1.ReflectionSchemaDiff_CaveatParameterTypeChanged{CaveatParameterTypeChanged: &v1.ReflectionCaveatParameterTypeChange{
			Parameter: reflectParameter(c.Caveat, c.Name, c.New), PreviousType: c.Old,
		}}
	default:
		return nil // The kinds of definitions never come with a caveat.
	}
	return []*v1.ReflectionSchemaDiff{&d}
}
