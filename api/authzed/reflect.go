package authzed

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

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
	// What partials expand to may be much more than the text of the schema.
	limits, bytes := s.host.Limits(), 0
	const instead = "select less of the schema with optional_filters"
	for _, d := range compiled.Definitions {
		if filters.definition(d.Name) {
			reflected := reflectDefinition(d, filters)
			bytes += proto.Size(reflected)
			if err := limits.FitsAnswerBytes(bytes, instead); err != nil {
				return nil, err
			}
			response.Definitions = append(response.Definitions, reflected)
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
	return response, limits.FitsAnswer(response, instead)
}

// schemaFilters select parts of a schema: a part is selected if one of the filters
// that are about its kind names a prefix of its name. Filters about definitions
// alone select no caveat and the other way round; filters about definitions that
// name no relations select all relations, and so for permissions.
type schemaFilters []*v1.ReflectionSchemaFilter

// check refuses filters that are too many, or contradict themselves.
func (f schemaFilters) check() error {
	if len(f) > filtersMax {
		return invalid("there are %d filters in optional_filters; at most %d are allowed", len(f), filtersMax)
	}
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
	start := member{definition: r.GetDefinitionName(), name: r.GetRelationName()}
	compiled, readAt, err := s.members(ctx, r, start, true)
	if err != nil {
		return nil, err
	}
	users := usersOf(compiled)
	response := &v1.ComputablePermissionsResponse{ReadAt: readAt}
	for _, ref := range references(compiled, start, reach(func(m member) []member { return users[m] }, start)) {
		if strings.HasPrefix(ref.GetDefinitionName(), r.GetOptionalDefinitionNameFilter()) {
			response.Permissions = append(response.Permissions, ref)
		}
	}
	limits := s.host.Limits()
	return response, limits.FitsAnswer(response, "ask with an optional_definition_name_filter")
}

// DependentRelations returns the relations and permissions that a permission is
// computed of, over any number of steps.
func (s *schemaService) DependentRelations(ctx context.Context, r *v1.DependentRelationsRequest) (*v1.DependentRelationsResponse, error) {
	start := member{definition: r.GetDefinitionName(), name: r.GetPermissionName()}
	compiled, readAt, err := s.members(ctx, r, start, false)
	if err != nil {
		return nil, err
	}
	if compiled.Definition(start.definition).Relation(start.name) != nil {
		return nil, withReason(codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_UNKNOWN_RELATION_OR_PERMISSION,
			fmt.Sprintf("the relation `%s` is not a permission", start.name), map[string]string{"relationName": start.name})
	}
	found := reach(func(m member) []member { return subjectsOf(compiled, m) }, start)
	// The relations that arrows walk over are looked at too, though what they allow
	// is not among the subjects.
	for _, m := range slices.Collect(maps.Keys(found)) {
		if m.target != "" {
			found[member{definition: m.definition, name: m.name}] = true
		}
	}
	response := &v1.DependentRelationsResponse{Relations: references(compiled, start, found), ReadAt: readAt}
	limits := s.host.Limits()
	return response, limits.FitsAnswer(response, "ask about a permission that is computed of less")
}

// A member is a relation or permission of a definition; without a name it is the
// objects of the type themselves, as subjects. With a target it is the arrow from the
// relation to that name, of which what its subjects come from is found once for all
// expressions that have it: a relation may allow many types, and many may walk it.
type member struct{ definition, name, target string }

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
		f(member{definition: d.Name, name: r.Name})
	}
	for _, list := range [...][]*schema.Permission{d.Permissions, d.Hidden} {
		for _, p := range list {
			f(member{definition: d.Name, name: p.Name})
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
	if m.target != "" {
		for _, a := range d.Relation(m.name).Allowed {
			if !a.Wildcard && s.Definition(a.Type).Rewrite(m.target) != nil {
				from = append(from, member{definition: a.Type, name: m.target})
			}
		}
		return from
	}
	eachTerm(d.Rewrite(m.name), func(t schema.Rewrite) {
		switch t := t.(type) {
		case schema.This:
			for _, a := range d.Relation(m.name).Allowed {
				from = append(from, member{definition: a.Type, name: a.Relation})
			}
		case schema.Self:
			from = append(from, member{definition: d.Name})
		case schema.Computed:
			from = append(from, member{definition: d.Name, name: t.Name})
		case schema.Arrow:
			from = append(from, member{definition: d.Name, name: t.Relation, target: t.Name})
		}
	})
	return from
}

// usersOf returns for each member those whose subjects come from it in one step:
// subjectsOf the other way round.
func usersOf(s *schema.Schema) map[member][]member {
	users := make(map[member][]member)
	var add func(m member)
	add = func(m member) {
		for _, used := range subjectsOf(s, m) {
			first := users[used] == nil
			users[used] = append(users[used], m)
			if first && used.target != "" {
				add(used)
			}
		}
	}
	for _, d := range s.Definitions {
		eachMember(d, add)
	}
	return users
}

// reach returns all members that can be reached from some by steps, with those.
func reach(step func(member) []member, start ...member) map[member]bool {
	found := make(map[member]bool)
	for open := slices.Clone(start); len(open) > 0; {
		last := open[len(open)-1]
		open = open[:len(open)-1]
		if !found[last] {
			found[last] = true
			open = append(open, step(last)...)
		}
	}
	return found
}

// references returns all members but start as messages, sorted; arrows are none.
func references(s *schema.Schema, start member, members map[member]bool) []*v1.ReflectionRelationReference {
	var refs []*v1.ReflectionRelationReference
	for m := range members {
		if d := s.Definition(m.definition); m != start && m.name != "" && m.target == "" && !isHidden(d, m.name) {
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
