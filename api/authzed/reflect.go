package authzed

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc/codes"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/schema"
)

// ReflectSchema lists what the schema declares and the filters select.
func (s *schemaService) ReflectSchema(ctx context.Context, r *v1.ReflectSchemaRequest) (*v1.ReflectSchemaResponse, error) {
	if err := validate(r); err != nil {
		return nil, err
	}
	filters := schemaFilters(r.GetOptionalFilters())
	if err := filters.check(); err != nil {
		return nil, err
	}
	_, snapshot, err := s.snapshot(ctx, r.GetConsistency())
	if err != nil {
		return nil, err
	}
	defer snapshot.Close()
	compiled, err := schemaOf(snapshot)
	if err != nil {
		return nil, err
	}
	response := &v1.ReflectSchemaResponse{ReadAt: s.token(snapshot)}
	for _, d := range compiled.Definitions {
		if filters.definition(d.Name) {
			response.Definitions = append(response.Definitions, reflectDefinition(d, filters))
		}
	}
	for _, c := range compiled.Caveats {
		if filters.caveat(c.Name) {
			expression, err := expressionOf(snapshot, c)
			if err != nil {
				return nil, err
			}
			response.Caveats = append(response.Caveats, reflectCaveat(c, expression))
		}
	}
	return response, nil
}

// schemaFilters select parts of a schema: a part is selected if one of the filters
// that are about its kind names a prefix of its name. Filters about definitions
// alone select no caveat and the other way round; filters about definitions that
// name no relations select all relations, and so for permissions.
type schemaFilters []*v1.ReflectionSchemaFilter

// check refuses filters that contradict themselves.
func (f schemaFilters) check() error {
	for _, filter := range f {
		definition, caveat := filter.GetOptionalDefinitionNameFilter() != "", filter.GetOptionalCaveatNameFilter() != ""
		relation, permission := filter.GetOptionalRelationNameFilter() != "", filter.GetOptionalPermissionNameFilter() != ""
		reason := ""
		switch {
		case definition && caveat:
			reason = "cannot filter by both definition and caveat name"
		case relation && !definition:
			reason = "relation name match requires definition name match"
		case relation && permission:
			reason = "cannot filter by both relation and permission name"
		case permission && !definition:
			reason = "permission name match requires definition name match"
		default:
			continue
		}
		return withReason(codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_INVALID_FILTER,
			"the schema filter provided is not valid: "+reason, map[string]string{"filter": filter.String()})
	}
	return nil
}

func (f schemaFilters) definition(name string) bool {
	return len(f) == 0 || slices.ContainsFunc(f, func(filter *v1.ReflectionSchemaFilter) bool {
		prefix := filter.GetOptionalDefinitionNameFilter()
		return prefix != "" && strings.HasPrefix(name, prefix)
	})
}

func (f schemaFilters) caveat(name string) bool {
	return len(f) == 0 || slices.ContainsFunc(f, func(filter *v1.ReflectionSchemaFilter) bool {
		prefix := filter.GetOptionalCaveatNameFilter()
		return prefix != "" && strings.HasPrefix(name, prefix)
	})
}

func (f schemaFilters) relation(definition, name string) bool {
	return f.member(definition, name, (*v1.ReflectionSchemaFilter).GetOptionalRelationNameFilter)
}

func (f schemaFilters) permission(definition, name string) bool {
	return f.member(definition, name, (*v1.ReflectionSchemaFilter).GetOptionalPermissionNameFilter)
}

// member reports whether a member is selected by the filters that give a prefix
// for its kind, or, when there is no such filter, true.
func (f schemaFilters) member(definition, name string, prefixOf func(*v1.ReflectionSchemaFilter) string) bool {
	selective := false
	for _, filter := range f {
		prefix := prefixOf(filter)
		if prefix == "" {
			continue
		}
		selective = true
		if strings.HasPrefix(name, prefix) && strings.HasPrefix(definition, filter.GetOptionalDefinitionNameFilter()) {
			return true
		}
	}
	return !selective
}

func reflectDefinition(d *schema.Definition, filters schemaFilters) *v1.ReflectionDefinition {
	reflected := &v1.ReflectionDefinition{Name: d.Name, Comment: d.Doc}
	for _, r := range d.Relations {
		if filters.relation(d.Name, r.Name) {
			reflected.Relations = append(reflected.Relations, reflectRelation(d, r))
		}
	}
	for _, p := range d.Permissions {
		if filters.permission(d.Name, p.Name) {
			reflected.Permissions = append(reflected.Permissions, reflectPermission(d, p))
		}
	}
	return reflected
}

func reflectRelation(d *schema.Definition, r *schema.Relation) *v1.ReflectionRelation {
	reflected := &v1.ReflectionRelation{Name: r.Name, Comment: r.Doc, ParentDefinitionName: d.Name}
	for _, t := range r.Allowed {
		reflected.SubjectTypes = append(reflected.SubjectTypes, reflectSubjectType(t))
	}
	return reflected
}

func reflectPermission(d *schema.Definition, p *schema.Permission) *v1.ReflectionPermission {
	return &v1.ReflectionPermission{Name: p.Name, Comment: p.Doc, ParentDefinitionName: d.Name}
}

// reflectSubjectType says nothing of an expiration, for which the message has no
// field.
func reflectSubjectType(t schema.SubjectType) *v1.ReflectionTypeReference {
	reflected := &v1.ReflectionTypeReference{SubjectDefinitionName: t.Type, OptionalCaveatName: t.Caveat}
	switch {
	case t.Wildcard:
		reflected.Typeref = &v1.ReflectionTypeReference_IsPublicWildcard{IsPublicWildcard: true}
	case t.Relation != "":
		reflected.Typeref = &v1.ReflectionTypeReference_OptionalRelationName{OptionalRelationName: t.Relation}
	default:
		reflected.Typeref = &v1.ReflectionTypeReference_IsTerminalSubject{IsTerminalSubject: true}
	}
	return reflected
}

// reflectCaveat is given the caveat's canonical expression, which takes long to print.
func reflectCaveat(c *schema.Caveat, expression string) *v1.ReflectionCaveat {
	reflected := &v1.ReflectionCaveat{Name: c.Name, Comment: c.Doc, Expression: expression}
	for _, p := range c.SortedParameters() {
		reflected.Parameters = append(reflected.Parameters, reflectParameter(c.Name, p.Name, p.Type))
	}
	return reflected
}

func reflectParameter(caveat, name, typ string) *v1.ReflectionCaveatParameter {
	return &v1.ReflectionCaveatParameter{Name: name, Type: typ, ParentCaveatName: caveat}
}

// members gives what the questions about one member of a schema begin with: the
// schema, which has that member, and the token of the state. A member without a name
// is the objects of a type, where those may be asked about.
func (s *schemaService) members(ctx context.Context, r interface {
	Validate() error
	GetConsistency() *v1.Consistency
}, start member, typeAlone bool,
) (*schema.Schema, *v1.ZedToken, error) {
	if err := validate(r); err != nil {
		return nil, nil, err
	}
	_, snapshot, err := s.snapshot(ctx, r.GetConsistency())
	if err != nil {
		return nil, nil, err
	}
	defer snapshot.Close()
	compiled, _, err := snapshot.Schema()
	if err != nil {
		return nil, nil, err
	}
	return compiled, s.token(snapshot), checkMember(compiled, start, typeAlone && start.name == "")
}

// ComputablePermissions returns the relations and permissions that lead, over any
// number of steps, from the subjects of a type, or from a relation or permission.
func (s *schemaService) ComputablePermissions(ctx context.Context, r *v1.ComputablePermissionsRequest) (*v1.ComputablePermissionsResponse, error) {
	start := member{r.GetDefinitionName(), r.GetRelationName()}
	compiled, readAt, err := s.members(ctx, r, start, true)
	if err != nil {
		return nil, err
	}
	users := make(map[member][]member)
	for _, d := range compiled.Definitions {
		eachMember(d, func(m member) {
			for _, used := range subjectsOf(compiled, m) {
				users[used] = append(users[used], m)
			}
		})
	}
	response := &v1.ComputablePermissionsResponse{ReadAt: readAt}
	for _, ref := range references(compiled, start, reach(start, func(m member) []member { return users[m] })) {
		if strings.HasPrefix(ref.GetDefinitionName(), r.GetOptionalDefinitionNameFilter()) {
			response.Permissions = append(response.Permissions, ref)
		}
	}
	return response, nil
}

// DependentRelations returns the relations and permissions that a permission is
// computed of, over any number of steps.
func (s *schemaService) DependentRelations(ctx context.Context, r *v1.DependentRelationsRequest) (*v1.DependentRelationsResponse, error) {
	start := member{r.GetDefinitionName(), r.GetPermissionName()}
	compiled, readAt, err := s.members(ctx, r, start, false)
	if err != nil {
		return nil, err
	}
	if compiled.Definition(start.definition).Relation(start.name) != nil {
		return nil, withReason(codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_UNKNOWN_RELATION_OR_PERMISSION,
			fmt.Sprintf("the relation `%s` is not a permission", start.name), map[string]string{"relationName": start.name})
	}
	found := reach(start, func(m member) []member { return subjectsOf(compiled, m) })
	// The relations that arrows walk over are looked at too, though what they allow
	// is not among the subjects.
	walked := make(map[member]bool)
	for m := range found {
		if d := compiled.Definition(m.definition); m.name != "" {
			eachTerm(d.Rewrite(m.name), func(t schema.Rewrite) {
				if a, ok := t.(schema.Arrow); ok {
					walked[member{m.definition, a.Relation}] = true
				}
			})
		}
	}
	for m := range walked {
		found[m] = true
	}
	return &v1.DependentRelationsResponse{Relations: references(compiled, start, found), ReadAt: readAt}, nil
}

// A member is a relation or permission of a definition; without a name it is the
// objects of the type themselves, as subjects.
type member struct{ definition, name string }

// checkMember refuses a member that is not in the schema; typeAlone allows one
// without a name.
func checkMember(s *schema.Schema, m member, typeAlone bool) error {
	d := s.Definition(m.definition)
	switch {
	case d == nil:
		return &engine.Refusal{
			Reason: engine.UnknownType, Field: "definition_name", Message: fmt.Sprintf("the schema has no definition %q", m.definition),
			Metadata: map[string]string{"type": m.definition},
		}
	case !typeAlone && (d.Rewrite(m.name) == nil || isHidden(d, m.name)):
		return &engine.Refusal{
			Reason: engine.UnknownName, Message: fmt.Sprintf("definition %q has no relation or permission %q", m.definition, m.name),
			Metadata: map[string]string{"type": m.definition, "name": m.name},
		}
	}
	return nil
}

// isHidden reports whether the compiler made a permission for a chain of arrows.
func isHidden(d *schema.Definition, name string) bool {
	return slices.ContainsFunc(d.Hidden, func(p *schema.Permission) bool { return p.Name == name })
}

// eachMember gives f the members of a definition, the hidden ones too.
func eachMember(d *schema.Definition, f func(member)) {
	for _, r := range d.Relations {
		f(member{d.Name, r.Name})
	}
	for _, list := range [...][]*schema.Permission{d.Permissions, d.Hidden} {
		for _, p := range list {
			f(member{d.Name, p.Name})
		}
	}
}

// eachTerm gives f the leaves of a rewrite.
func eachTerm(r schema.Rewrite, f func(schema.Rewrite)) {
	switch r := r.(type) {
	case schema.Union:
		for _, c := range r.Children {
			eachTerm(c, f)
		}
	case schema.Intersection:
		for _, c := range r.Children {
			eachTerm(c, f)
		}
	case schema.Exclusion:
		eachTerm(r.Base, f)
		eachTerm(r.Subtracted, f)
	default:
		f(r)
	}
}

// subjectsOf returns what the subjects of a member come from in one step.
func subjectsOf(s *schema.Schema, m member) []member {
	d := s.Definition(m.definition)
	if d == nil || m.name == "" {
		return nil
	}
	var from []member
	eachTerm(d.Rewrite(m.name), func(t schema.Rewrite) {
		switch t := t.(type) {
		case schema.This:
			for _, a := range d.Relation(m.name).Allowed {
				from = append(from, member{a.Type, a.Relation})
			}
		case schema.Self:
			from = append(from, member{d.Name, ""})
		case schema.Computed:
			from = append(from, member{d.Name, t.Name})
		case schema.Arrow:
			for _, a := range d.Relation(t.Relation).Allowed {
				if target := s.Definition(a.Type); !a.Wildcard && target.Rewrite(t.Name) != nil {
					from = append(from, member{a.Type, t.Name})
				}
			}
		}
	})
	return from
}

// reach returns all members that can be reached from one by steps, with that one.
func reach(start member, step func(member) []member) map[member]bool {
	found := map[member]bool{start: true}
	for open := []member{start}; len(open) > 0; {
		last := open[len(open)-1]
		open = open[:len(open)-1]
		for _, next := range step(last) {
			if !found[next] {
				found[next] = true
				open = append(open, next)
			}
		}
	}
	return found
}

// references returns all members but start as messages, sorted.
func references(s *schema.Schema, start member, members map[member]bool) []*v1.ReflectionRelationReference {
	var refs []*v1.ReflectionRelationReference
	for m := range members {
		if d := s.Definition(m.definition); m != start && m.name != "" && !isHidden(d, m.name) {
			refs = append(refs, &v1.ReflectionRelationReference{
				DefinitionName: m.definition, RelationName: m.name, IsPermission: d.Permission(m.name) != nil,
			})
		}
	}
	slices.SortFunc(refs, func(a, b *v1.ReflectionRelationReference) int {
		return cmp.Or(cmp.Compare(a.GetDefinitionName(), b.GetDefinitionName()), cmp.Compare(a.GetRelationName(), b.GetRelationName()))
	})
	return refs
}
