package authzed

import (
	"context"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/schema"
)

func (s *permissionsService) ExpandPermissionTree(ctx context.Context, r *v1.ExpandPermissionTreeRequest) (*v1.ExpandPermissionTreeResponse, error) {
	if err := validate(r); err != nil {
		return nil, err
	}
	_, snapshot, err := s.snapshot(ctx, r.GetConsistency())
	if err != nil {
		return nil, err
	}
	defer snapshot.Close()
	tree, err := snapshot.Expand(ctx, engine.Expand{Object: toObject(r.GetResource()), Name: r.GetPermission(), Budget: s.host.Budget()})
	if err != nil {
		return nil, err
	}
	compiled, _, err := snapshot.Schema()
	if err != nil {
		return nil, err
	}
	response := &v1.ExpandPermissionTreeResponse{TreeRoot: fromTree(compiled, tree), ExpandedAt: s.token(snapshot)}
	limits := s.host.Limits()
	return response, limits.FitsAnswer(response, "use ReadRelationships or LookupSubjects, whose results come one by one, all but the exclusions of a wildcard, or expand what is further down")
}

var treeOperations = map[engine.TreeOperation]v1.AlgebraicSubjectSet_Operation{
	engine.TreeUnion:        v1.AlgebraicSubjectSet_OPERATION_UNION,
	engine.TreeIntersection: v1.AlgebraicSubjectSet_OPERATION_INTERSECTION,
	engine.TreeExclusion:    v1.AlgebraicSubjectSet_OPERATION_EXCLUSION,
}

// fromTree converts a tree. The API's has nothing of caveats: it holds a tuple
// whose caveat does not hold like any other.
func fromTree(s *schema.Schema, t *engine.Tree) *v1.PermissionRelationshipTree {
	if t.Operation == engine.TreeLeaf {
		leaf := &v1.DirectSubjectSet{Subjects: make([]*v1.SubjectReference, len(t.Leaves))}
		for i := range t.Leaves {
			leaf.Subjects[i] = fromSubject(t.Leaves[i].Subject)
		}
		return expanded(t, &v1.PermissionRelationshipTree{TreeType: &v1.PermissionRelationshipTree_Leaf{Leaf: leaf}})
	}
	var children []*v1.PermissionRelationshipTree
	for _, c := range t.Children {
		switch {
		case isGrouped(t, c):
			children = append(children, fromTree(s, c).GetIntermediate().GetChildren()...)
		case c.Via != nil && !hasName(s, c):
			// The arrow leads to an object without the name: nobody, on behalf of
			// what is expanded.
			children = append(children, expanded(t, &v1.PermissionRelationshipTree{
				TreeType: &v1.PermissionRelationshipTree_Leaf{Leaf: &v1.DirectSubjectSet{}},
			}))
		default:
			children = append(children, fromTree(s, c))
		}
	}
	if t.Operation != engine.TreeExclusion || len(children) <= 2 {
		return setOf(t, children)
	}
	// An exclusion has two operands here; a row of them nests to the left.
	tree := setOf(t, children[:2])
	for _, c := range children[2:] {
		tree = setOf(t, []*v1.PermissionRelationshipTree{tree, c})
	}
	return tree
}

// isGrouped reports whether a child is a group in parentheses of the operation
// around it, which makes no difference: the API shows one operation. An arrow has
// a place of its own, which its children tell.
func isGrouped(t, c *engine.Tree) bool {
	return c.Operation == t.Operation && t.Operation != engine.TreeExclusion &&
		c.Object == t.Object && c.Name == t.Name && c.Via == nil && len(c.Children) > 1 && c.Children[0].Via == nil
}

// hasName reports whether the type of a node's object has its name. A leaf that has the
// name of a chain of arrows is no permission of the compiler's, which are unions: it is
// an arrow that leads nowhere, and is called like what it is written with.
func hasName(s *schema.Schema, t *engine.Tree) bool {
	d := s.Definition(t.Object.Type)
	return d != nil && d.Rewrite(t.Name) != nil && (t.Operation != engine.TreeLeaf || !isHidden(d, t.Name))
}

func setOf(t *engine.Tree, children []*v1.PermissionRelationshipTree) *v1.PermissionRelationshipTree {
	return expanded(t, &v1.PermissionRelationshipTree{TreeType: &v1.PermissionRelationshipTree_Intermediate{
		Intermediate: &v1.AlgebraicSubjectSet{Operation: treeOperations[t.Operation], Children: children},
	}})
}

// expanded says whose subjects a node holds.
func expanded(t *engine.Tree, p *v1.PermissionRelationshipTree) *v1.PermissionRelationshipTree {
	p.ExpandedObject, p.ExpandedRelation = fromObject(t.Object), t.Name
	return p
}
