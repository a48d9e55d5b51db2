package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/api/client"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/graph"
)

func newExpand() *cobra.Command {
	var conn connection
	var state consistency
	cmd := &cobra.Command{
		Use:   "expand OBJECT#NAME",
		Short: "Show the tree of subjects behind a permission of an object",
		Long: `Expand shows the tree of subjects behind a permission (or relation) of an object.
It follows permissions and arrows, and stops at usersets, which can be expanded
in their turn. Caveats are shown, not evaluated.`,
		Example: "  pemba expand document:readme#view",
		Args:    arguments(1, 1, "OBJECT#NAME"),
	}
	conn.addFlags(cmd)
	state.addFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		object, name, err := graph.ParseUserset(args[0])
		if err != nil {
			return err
		}
		return conn.call(cmd, func(ctx ctx, c *client.Client) error {
			answer, err := c.Permissions.Expand(ctx, &pembav1.ExpandRequest{
				Store: conn.store, Consistency: state.message(), Object: api.ObjectMessage(object), Permission: name,
			})
			if err != nil {
				return err
			}
			if conn.json() {
				return printJSON(cmd, struct {
					Tree   *treeJSON `json:"tree"`
					Zookie string    `json:"zookie"`
				}{newTreeJSON(answer.GetTree()), answer.GetExpandedAt().GetToken()})
			}
			asked, shown := answer.GetTree(), withoutEmpty(answer.GetTree())
			if shown.GetName() != asked.GetName() || objectText(shown.GetObject()) != objectText(asked.GetObject()) {
				// All of it comes from one other place; what was asked stands above.
				shown = &pembav1.Tree{
					Object: asked.GetObject(), Name: asked.GetName(),
					Operation: pembav1.Tree_OPERATION_UNION, Children: []*pembav1.Tree{shown},
				}
			}
			return printTree(cmd, shown, 0)
		})
	}
	return cmd
}

// A treeJSON is a Tree in the form of -o json.
type treeJSON struct {
	On        string      `json:"on"`
	Operation string      `json:"operation"`
	Tuples    []string    `json:"tuples,omitempty"`
	Note      string      `json:"note,omitempty"`
	Children  []*treeJSON `json:"children,omitempty"`
}

func newTreeJSON(t *pembav1.Tree) *treeJSON {
	j := &treeJSON{On: objectText(t.GetObject()) + "#" + t.GetName(), Operation: treeOperation(t), Note: t.GetNote()}
	for _, leaf := range t.GetLeaves() {
		j.Tuples = append(j.Tuples, tupleText(leaf))
	}
	for _, child := range t.GetChildren() {
		j.Children = append(j.Children, newTreeJSON(child))
	}
	return j
}

func treeOperation(t *pembav1.Tree) string {
	return strings.ToLower(strings.TrimPrefix(t.GetOperation().String(), "OPERATION_"))
}

// withoutEmpty leaves out, of a union, the branches that hold nobody, and the
// union itself when a single branch is left. -o json has them all.
func withoutEmpty(t *pembav1.Tree) *pembav1.Tree {
	simple := &pembav1.Tree{Object: t.GetObject(), Name: t.GetName(), Operation: t.GetOperation(), Leaves: t.GetLeaves(), Note: t.GetNote()}
	union := t.GetOperation() == pembav1.Tree_OPERATION_UNION
	for _, child := range t.GetChildren() {
		if child = withoutEmpty(child); !union || !isEmptyTree(child) {
			simple.Children = append(simple.Children, child)
		}
	}
	// Of a union with one branch the branch says all; but a leaf keeps the
	// permission that it stands in.
	if children := simple.GetChildren(); union && len(children) == 1 && t.GetNote() == "" &&
		(children[0].GetOperation() != pembav1.Tree_OPERATION_LEAF || children[0].GetName() == t.GetName()) {
		return children[0]
	}
	return simple
}

func isEmptyTree(t *pembav1.Tree) bool {
	return len(t.GetChildren()) == 0 && len(t.GetLeaves()) == 0 && t.GetNote() == ""
}

func printTree(cmd *cobra.Command, t *pembav1.Tree, depth int) error {
	indent := strings.Repeat("  ", depth)
	line := indent + objectText(t.GetObject()) + "#" + t.GetName()
	if t.GetOperation() != pembav1.Tree_OPERATION_LEAF {
		line += "  " + treeOperation(t)
	}
	if t.GetNote() != "" {
		line += "  (" + t.GetNote() + ")"
	} else if isEmptyTree(t) {
		line += "  (nobody)"
	}
	if err := printf(cmd, "%s\n", line); err != nil {
		return err
	}
	for _, leaf := range t.GetLeaves() {
		// The object and relation stand above; the rest of the text is the subject
		// with what the tuple carries.
		_, subject, _ := strings.Cut(tupleText(leaf), "#"+leaf.GetRelation()+"@")
		if err := printf(cmd, "%s  %s\n", indent, subject); err != nil {
			return err
		}
	}
	for _, child := range t.GetChildren() {
		if err := printTree(cmd, child, depth+1); err != nil {
			return err
		}
	}
	return nil
}
