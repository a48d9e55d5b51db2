package main

import (
	"slices"
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
	var context string
	cmd := &cobra.Command{
		Use:   "expand OBJECT#NAME",
		Short: "Show the tree of subjects behind a permission of an object",
		Long: `Expand shows the tree of subjects behind a permission (or relation) of an object.
It follows permissions and arrows, and stops at usersets, which can be expanded
in their turn. A tuple with a caveat says how far it holds: allowed, denied,
conditional with the parameters that nobody gave, or failed with the reason.
What an exclusion takes away is marked with "minus"; a part of an expression
stands in parentheses. Where an arrow goes along a tuple with a caveat or an
expiration, "via" shows the tuple; -o json shows all of them.`,
		Example: `  pemba expand document:readme#view
  pemba expand document:readme#view --context '{"ip":"10.0.0.7"}'`,
		Args: arguments(1, 1, "OBJECT#NAME"),
	}
	conn.addFlags(cmd)
	state.addFlags(cmd)
	cmd.Flags().StringVar(&context, "context", "", "values for caveat parameters, as a `JSON` object")
	before(cmd, func() error { return needTexts(cmd, "context") })
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		object, name, err := graph.ParseUserset(args[0])
		if err != nil {
			return err
		}
		values, err := parseJSONObject("context", context)
		if err != nil {
			return err
		}
		return conn.call(cmd, func(ctx ctx, c *client.Client) error {
			answer, err := c.Permissions.Expand(ctx, &pembav1.ExpandRequest{
				Store: conn.store, Consistency: state.message(), Object: api.ObjectMessage(object), Permission: name, Context: values,
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
			return printTree(cmd, shown, treeText(shown), 0)
		})
	}
	return cmd
}

// A treeJSON is a Tree in the form of -o json.
type treeJSON struct {
	On         string             `json:"on"`
	Via        string             `json:"via,omitempty"`
	ViaVerdict *tupleVerdictJSON  `json:"via_verdict,omitempty"`
	Operation  string             `json:"operation"`
	Tuples     []string           `json:"tuples,omitempty"`
	Verdicts   []tupleVerdictJSON `json:"verdicts,omitempty"`
	Note       string             `json:"note,omitempty"`
	Children   []*treeJSON        `json:"children,omitempty"`
}

// A tupleVerdictJSON is a TupleVerdict in the form of -o json.
type tupleVerdictJSON struct {
	Decision string   `json:"decision"`
	Missing  []string `json:"missing,omitempty"`
	Failure  string   `json:"failure,omitempty"`
}

func newTupleVerdictJSON(v *pembav1.TupleVerdict) tupleVerdictJSON {
	return tupleVerdictJSON{Decision: tupleDecision(v), Missing: v.GetMissing(), Failure: v.GetFailure()}
}

// tupleDecision is "failed" where the caveat says nothing.
func tupleDecision(v *pembav1.TupleVerdict) string {
	if v.GetFailure() != "" {
		return "failed"
	}
	return decisionText(v.GetDecision())
}

// verdictText is what stands behind a tuple with a caveat.
func verdictText(v *pembav1.TupleVerdict) string {
	switch {
	case v.GetFailure() != "":
		return "  " + tupleDecision(v) + " (" + v.GetFailure() + ")"
	case len(v.GetMissing()) > 0:
		return "  " + tupleDecision(v) + " (missing: " + strings.Join(v.GetMissing(), ", ") + ")"
	}
	return "  " + tupleDecision(v)
}

func newTreeJSON(t *pembav1.Tree) *treeJSON {
	j := &treeJSON{On: objectText(t.GetObject()) + "#" + t.GetName(), Operation: treeOperation(t), Note: t.GetNote()}
	if via := t.GetVia(); via != nil {
		j.Via = tupleText(via)
	}
	if t.GetViaVerdict() != nil {
		v := newTupleVerdictJSON(t.GetViaVerdict())
		j.ViaVerdict = &v
	}
	for _, leaf := range t.GetLeaves() {
		j.Tuples = append(j.Tuples, tupleText(leaf))
	}
	for _, v := range t.GetVerdicts() {
		j.Verdicts = append(j.Verdicts, newTupleVerdictJSON(v))
	}
	for _, child := range t.GetChildren() {
		j.Children = append(j.Children, newTreeJSON(child))
	}
	return j
}

// viaText is the tuple along which an arrow comes to t, if it carries what
// limits the arrow: a caveat or an expiration.
func viaText(t *pembav1.Tree) string {
	if via := t.GetVia(); via.GetCaveat() != nil || via.GetExpiresAt() != nil {
		return tupleText(via)
	}
	return ""
}

func treeOperation(t *pembav1.Tree) string {
	return strings.ToLower(strings.TrimPrefix(t.GetOperation().String(), "OPERATION_"))
}

// withoutEmpty leaves out, of a union, the branches that hold nobody, and the
// union itself when a single branch is left. -o json has them all.
func withoutEmpty(t *pembav1.Tree) *pembav1.Tree {
	simple := &pembav1.Tree{
		Object: t.GetObject(), Name: t.GetName(), Operation: t.GetOperation(),
		Via: t.GetVia(), ViaVerdict: t.GetViaVerdict(),
		Leaves: t.GetLeaves(), Verdicts: t.GetVerdicts(), Note: t.GetNote(),
	}
	union := t.GetOperation() == pembav1.Tree_OPERATION_UNION
	for _, child := range t.GetChildren() {
		if child = withoutEmpty(child); !union || !isEmptyTree(child) {
			simple.Children = append(simple.Children, child)
		}
	}
	// Of a union with one branch the branch says all; but a leaf keeps the
	// permission that it stands in, and a union what limits the way to it.
	if children := simple.GetChildren(); union && len(children) == 1 && t.GetNote() == "" && viaText(t) == "" &&
		(children[0].GetOperation() != pembav1.Tree_OPERATION_LEAF || children[0].GetName() == t.GetName()) {
		return children[0]
	}
	return simple
}

func isEmptyTree(t *pembav1.Tree) bool {
	return len(t.GetChildren()) == 0 && len(t.GetLeaves()) == 0 && t.GetNote() == ""
}

func treeText(t *pembav1.Tree) string { return objectText(t.GetObject()) + "#" + t.GetName() }

// isPart reports whether child is an operation within the expression of t, and
// not a name that the expression refers to.
func isPart(t, child *pembav1.Tree) bool {
	return child.GetOperation() != pembav1.Tree_OPERATION_LEAF && child.GetVia() == nil && treeText(child) == treeText(t)
}

// expression is what t is made of, as far as it is shown, in the words of a
// schema. It is given for parts alone, which have no name of their own.
func expression(t *pembav1.Tree) string {
	operator := " + "
	switch t.GetOperation() {
	case pembav1.Tree_OPERATION_INTERSECTION:
		operator = " & "
	case pembav1.Tree_OPERATION_EXCLUSION:
		operator = " - "
	default: // A union; leaves have no parts.
	}
	var operands []string
	for _, child := range t.GetChildren() {
		operand := child.GetName()
		switch {
		case isPart(t, child):
			if operand = expression(child); strings.Contains(operand, " ") {
				operand = "(" + operand + ")"
			}
		case objectText(child.GetObject()) != objectText(t.GetObject()):
			operand = "..->" + operand
			if via := child.GetVia(); via != nil {
				operand = via.GetRelation() + operand[len(".."):]
			}
		}
		// An arrow goes to many objects.
		if !slices.Contains(operands, operand) {
			operands = append(operands, operand)
		}
	}
	return strings.Join(operands, operator)
}

// printTree prints t below its name, which for a part is its expression.
func printTree(cmd *cobra.Command, t *pembav1.Tree, name string, depth int) error {
	indent := strings.Repeat("  ", depth)
	line := indent + name
	if t.GetOperation() != pembav1.Tree_OPERATION_LEAF {
		line += "  " + treeOperation(t)
	}
	if via := viaText(t); via != "" {
		line += "  via " + via
		if t.GetViaVerdict() != nil {
			line += verdictText(t.GetViaVerdict())
		}
	}
	if t.GetNote() != "" {
		line += "  (" + t.GetNote() + ")"
	} else if isEmptyTree(t) {
		line += "  (nobody)"
	}
	if err := printf(cmd, "%s\n", line); err != nil {
		return err
	}
	for i, leaf := range t.GetLeaves() {
		// The object and relation stand above; the rest of the text is the subject
		// with what the tuple carries.
		_, subject, _ := strings.Cut(tupleText(leaf), "#"+leaf.GetRelation()+"@")
		if leaf.GetCaveat() != nil && i < len(t.GetVerdicts()) {
			subject += verdictText(t.GetVerdicts()[i])
		}
		if err := printf(cmd, "%s  %s\n", indent, subject); err != nil {
			return err
		}
	}
	for i, child := range t.GetChildren() {
		name := treeText(child)
		if e := expression(child); e != "" && isPart(t, child) {
			name = "(" + e + ")"
		}
		if i > 0 && t.GetOperation() == pembav1.Tree_OPERATION_EXCLUSION {
			name = "minus " + name
		}
		if err := printTree(cmd, child, name, depth+1); err != nil {
			return err
		}
	}
	return nil
}
