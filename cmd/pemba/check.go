package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/api/client"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/graph"
)

func newCheck() *cobra.Command {
	var conn connection
	var state consistency
	var context string
	var explain, byCode bool
	cmd := &cobra.Command{
		Use:   "check OBJECT#NAME@SUBJECT",
		Short: "Ask whether a subject has a permission on an object",
		Long: `Check asks whether a subject has a permission (or relation) on an object and
prints allowed, denied or conditional: conditional means that the answer depends
on caveat parameters that nobody gave, which are then listed on standard error.

Whatever the answer, the command succeeds: its exit code is 0, and 1 when there is
no answer. With --exit-code it is 0 for allowed alone, 1 when there is no answer, 2
for denied and 3 for conditional.`,
		Example: `  pemba check document:readme#view@user:anne
  pemba check document:readme#view@group:eng#member --explain
  pemba check document:readme#view@user:bob --context '{"ip":"10.0.0.7"}' -o json
  if pemba check document:readme#view@user:anne --exit-code; then cat readme; fi`,
		Args: arguments(1, 1, "OBJECT#NAME@SUBJECT"),
	}
	conn.addFlags(cmd)
	state.addFlags(cmd)
	cmd.Flags().StringVar(&context, "context", "", "values for caveat parameters, as a `JSON` object")
	cmd.Flags().BoolVar(&explain, "explain", false, "show how the decision came about")
	cmd.Flags().BoolVar(&byCode, "exit-code", false, "exit with 0 for allowed, 2 for denied and 3 for conditional; 1 is an error")
	before(cmd, func() error { return needTexts(cmd, "context") })
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		q, err := parseQuestion(args[0])
		if err != nil {
			return err
		}
		s, err := parseJSONObject("context", context)
		if err != nil {
			return err
		}
		q.Context, q.Explain, q.Consistency = s.AsMap(), explain, state.message()
		return conn.call(cmd, func(ctx ctx, c *client.Client) error {
			answer, err := c.Check(ctx, q)
			if err != nil {
				return err
			}
			if err := printAnswer(cmd, &conn, answer); err != nil || !byCode {
				return err
			}
			return decisionCode(answer.GetDecision())
		})
	}
	return cmd
}

// decisionCode is how --exit-code ends a check.
func decisionCode(d pembav1.Decision) error {
	switch d {
	case pembav1.Decision_DECISION_ALLOWED:
		return nil
	case pembav1.Decision_DECISION_DENIED:
		return exitCode(2)
	case pembav1.Decision_DECISION_CONDITIONAL:
		return exitCode(3)
	}
	return fmt.Errorf("the server gave a decision that this program does not know: %v", d)
}

// ctx is short for what nearly every function here takes first.
type ctx = context.Context

// parseQuestion reads OBJECT#NAME@SUBJECT.
func parseQuestion(text string) (client.Question, error) {
	t, err := graph.ParseTuple(text)
	if err != nil {
		return client.Question{}, fmt.Errorf("the question has the form OBJECT#NAME@SUBJECT, as document:readme#view@user:anne: %w", err)
	}
	if t.Caveat != "" || t.ValidUntil != 0 {
		return client.Question{}, fmt.Errorf("%q: a question has neither caveat nor expiration; give values by --context", text)
	}
	return client.Question{Object: t.Object, Permission: t.Relation, Subject: t.Subject}, nil
}

func printAnswer(cmd *cobra.Command, conn *connection, answer *pembav1.CheckResponse) error {
	if conn.json() {
		out := struct {
			Decision string     `json:"decision"`
			Missing  []string   `json:"missing,omitempty"`
			Zookie   string     `json:"zookie"`
			Trace    *traceJSON `json:"trace,omitempty"`
		}{decisionText(answer.GetDecision()), answer.GetMissing(), answer.GetCheckedAt().GetToken(), newTraceJSON(answer.GetTrace())}
		return printJSON(cmd, out)
	}
	if err := printf(cmd, "%s\n", decisionText(answer.GetDecision())); err != nil {
		return err
	}
	if len(answer.GetMissing()) > 0 {
		if _, err := fmt.Fprintf(cmd.ErrOrStderr(), "missing: %s\n", strings.Join(answer.GetMissing(), ", ")); err != nil {
			return err
		}
	}
	if answer.GetTrace() == nil {
		return nil
	}
	return printTrace(cmd, answer.GetTrace())
}

func decisionText(d pembav1.Decision) string {
	switch d {
	case pembav1.Decision_DECISION_DENIED:
		return "denied"
	case pembav1.Decision_DECISION_CONDITIONAL:
		return "conditional"
	case pembav1.Decision_DECISION_ALLOWED:
		return "allowed"
	}
	return "undecided"
}

// objectText, subjectText and tupleText give messages their text form. What a
// server sends is trusted to be well formed.
func objectText(o *pembav1.Object) string {
	return graph.Object{Type: o.GetType(), ID: o.GetId()}.String()
}

func subjectText(s *pembav1.Subject) string {
	return graph.Subject{
		Object: graph.Object{Type: s.GetObject().GetType(), ID: s.GetObject().GetId()}, Relation: s.GetRelation(),
	}.String()
}

func tupleText(p *pembav1.Tuple) string {
	t, err := api.ParseTupleMessage(p)
	if err != nil {
		return fmt.Sprintf("(%v)", err)
	}
	return t.String()
}

// A traceJSON is a Trace in the form of -o json.
type traceJSON struct {
	Kind       string       `json:"kind"`
	On         string       `json:"on,omitempty"`
	Tuple      string       `json:"tuple,omitempty"`
	Expression string       `json:"expression,omitempty"`
	Decision   string       `json:"decision"`
	Missing    []string     `json:"missing,omitempty"`
	Note       string       `json:"note,omitempty"`
	Children   []*traceJSON `json:"children,omitempty"`
}

func newTraceJSON(t *pembav1.Trace) *traceJSON {
	if t == nil {
		return nil
	}
	j := &traceJSON{
		Kind: traceKind(t), On: traceOn(t), Expression: t.GetExpression(),
		Decision: traceDecision(t), Missing: t.GetMissing(), Note: t.GetNote(),
	}
	if t.GetTuple() != nil {
		j.Tuple = tupleText(t.GetTuple())
	}
	for _, child := range t.GetChildren() {
		j.Children = append(j.Children, newTraceJSON(child))
	}
	return j
}

func traceKind(t *pembav1.Trace) string {
	return strings.ToLower(strings.TrimPrefix(t.GetKind().String(), "KIND_"))
}

// traceDecision is "undefined" where a cycle or a failed caveat leaves open what a
// node comes to.
func traceDecision(t *pembav1.Trace) string {
	if t.GetDecision() == pembav1.Decision_DECISION_UNSPECIFIED {
		return "undefined"
	}
	return decisionText(t.GetDecision())
}

// traceOn is what was asked of a node, as object#name.
func traceOn(t *pembav1.Trace) string {
	if t.GetObject().GetType() == "" {
		return ""
	}
	if t.GetName() == "" {
		return objectText(t.GetObject())
	}
	return objectText(t.GetObject()) + "#" + t.GetName()
}

// printTrace writes what decided a trace as an indented table: what was looked
// at, what came of it, and why. Branches that did not matter, such as those of a
// union beside the one that allows, are counted only; -o json has them all.
func printTrace(cmd *cobra.Command, t *pembav1.Trace) error {
	var rows []row
	var walk func(t *pembav1.Trace, depth int)
	walk = func(t *pembav1.Trace, depth int) {
		what, children := t.GetExpression(), t.GetChildren()
		var why []string
		switch t.GetKind() {
		case pembav1.Trace_KIND_NAME:
			what = traceOn(t)
			if e := t.GetExpression(); e != "" && e != "this" {
				why = append(why, "= "+e)
			}
			// The operation of a name's own rewrite says nothing more.
			if len(children) == 1 && children[0].GetExpression() == t.GetExpression() && children[0].GetKind() != pembav1.Trace_KIND_NAME {
				if t.GetNote() != "" {
					why = append(why, t.GetNote())
				}
				t, children = children[0], children[0].GetChildren()
			}
		case pembav1.Trace_KIND_TUPLE:
			what = tupleText(t.GetTuple())
		}
		if what == "" {
			what = traceKind(t)
		}
		if len(t.GetMissing()) > 0 {
			why = append(why, "missing "+strings.Join(t.GetMissing(), ", "))
		}
		if t.GetNote() != "" {
			why = append(why, t.GetNote())
		}
		shown := decisive(t, children)
		if n := len(children) - len(shown); n > 0 {
			why = append(why, fmt.Sprintf("%d more looked at", n))
		}
		rows = append(rows, row{strings.Repeat("  ", depth) + what, traceDecision(t), strings.Join(why, "; ")})
		for _, child := range shown {
			walk(child, depth+1)
		}
	}
	walk(t, 1)
	return printTable(cmd, rows)
}

// decisive returns the children that made t what it is: of what one child can
// allow those as good as t, of what one child can deny those as bad. All matter
// where it takes all of them.
func decisive(t *pembav1.Trace, children []*pembav1.Trace) []*pembav1.Trace {
	switch t.GetKind() {
	case pembav1.Trace_KIND_UNION, pembav1.Trace_KIND_ARROW, pembav1.Trace_KIND_NAME:
		if t.GetDecision() == pembav1.Decision_DECISION_DENIED {
			return children
		}
	case pembav1.Trace_KIND_INTERSECTION:
		if t.GetDecision() == pembav1.Decision_DECISION_ALLOWED {
			return children
		}
	default:
		return children
	}
	var shown []*pembav1.Trace
	for _, child := range children {
		if child.GetDecision() == t.GetDecision() {
			shown = append(shown, child)
		}
	}
	if len(shown) == 0 {
		return children
	}
	return shown
}

// A row is one line of a table.
type row []string

// columnMax bounds how far a long cell pushes the columns behind it.
const columnMax = 72

// printTable writes rows with aligned columns.
func printTable(cmd *cobra.Command, rows []row) error {
	var widths []int
	for _, r := range rows {
		for i, cell := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			if n := len([]rune(cell)); n <= columnMax {
				widths[i] = max(widths[i], n)
			}
		}
	}
	for _, r := range rows {
		var b strings.Builder
		for i, cell := range r {
			b.WriteString(cell)
			if i < len(r)-1 {
				b.WriteString(strings.Repeat(" ", max(0, widths[i]-len([]rune(cell)))+2))
			}
		}
		if err := printf(cmd, "%s\n", strings.TrimRight(b.String(), " ")); err != nil {
			return err
		}
	}
	return nil
}
