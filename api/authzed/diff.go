package authzed

import (
	"context"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"

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
	to, err := engine.CompileSchema("comparison_schema", text)
	if err != nil {
		return nil, schemaError(text, err)
	}
	response := &v1.DiffSchemaResponse{ReadAt: s.token(snapshot)}
	for _, c := range schema.Diff(from, to) {
		response.Diffs = append(response.Diffs, reflectChange(c, from, to)...)
	}
	return response, nil
}

// reflectChange converts a change from one schema to another. What was removed is
// told as it was, all else as it is.
func reflectChange(c schema.Change, from, to *schema.Schema) []*v1.ReflectionSchemaDiff {
	if c.Caveat != "" {
		return reflectCaveatChange(c, from.Caveat(c.Caveat), to.Caveat(c.Caveat))
	}
	was, is := from.Definition(c.Definition), to.Definition(c.Definition)
	// Of these, was or is and its member c.Name are there for the kinds that use it.
	oldRelation := func() *v1.ReflectionRelation { return reflectRelation(was, was.Relation(c.Name)) }
	relation := func() *v1.ReflectionRelation { return reflectRelation(is, is.Relation(c.Name)) }
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

func reflectCaveatChange(c schema.Change, was, is *schema.Caveat) []*v1.ReflectionSchemaDiff {
	var d v1.ReflectionSchemaDiff
	switch c.Kind {
	case schema.CaveatAdded:
		d.Diff = &v1.ReflectionSchemaDiff_CaveatAdded{CaveatAdded: reflectCaveat(is, is.CanonicalExpression())}
	case schema.CaveatRemoved:
		d.Diff = &v1.ReflectionSchemaDiff_CaveatRemoved{CaveatRemoved: reflectCaveat(was, was.CanonicalExpression())}
	case schema.CaveatDocChanged:
		d.Diff = &v1.ReflectionSchemaDiff_CaveatDocCommentChanged{CaveatDocCommentChanged: reflectCaveat(is, is.CanonicalExpression())}
	case schema.CaveatExprChanged:
		if was.CanonicalExpression() == is.CanonicalExpression() {
			return nil // The same in another layout, in which the API never shows it.
		}
		d.Diff = &v1.ReflectionSchemaDiff_CaveatExprChanged{CaveatExprChanged: reflectCaveat(is, is.CanonicalExpression())}
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
