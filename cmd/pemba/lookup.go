package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/api/client"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/graph"
)

func newLookup() *cobra.Command {
	return newGroup("lookup", "List the resources of a subject, or the subjects of a resource", newLookupResources(), newLookupSubjects())
}

// A lookup holds the flags that both lookups have.
type lookup struct {
	connection
	consistency
	context string
	limit   uint32
	count   bool
}

func (l *lookup) addFlags(cmd *cobra.Command) {
	l.connection.addFlags(cmd)
	l.consistency.addFlags(cmd)
	cmd.Flags().StringVar(&l.context, "context", "", "values for caveat parameters, as a `JSON` object")
	addLimit(cmd, &l.limit)
	cmd.Flags().BoolVar(&l.count, "count", false, "say only how many there are")
	before(cmd, func() error {
		if l.count && l.limit > 0 {
			return errors.New("--count and --limit exclude each other")
		}
		return needTexts(cmd, "context")
	})
}

func addLimit(cmd *cobra.Command, limit *uint32) {
	cmd.Flags().Uint32Var(limit, "limit", 0, "stop after this `number` of results; 0 for all")
}

func (l *lookup) contextMessage() (*structpb.Struct, error) {
	return parseJSONObject("context", l.context)
}

func newLookupResources() *cobra.Command {
	var l lookup
	cmd := &cobra.Command{
		Use:   "resources TYPE NAME SUBJECT",
		Short: "List the objects of a type on which a subject has a permission",
		Long: `Resources lists, one a line, the objects of a type on which a subject has a
permission (or relation). Behind those where it depends on caveat parameters that
nobody gave stands "conditional" with what is missing. With --count it says how
many are allowed, and how many conditional.`,
		Example: "  pemba lookup resources document view user:anne\n  pemba lookup resources document view user:anne --count",
		Args:    arguments(3, 3, "TYPE NAME SUBJECT"),
	}
	l.addFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		subject, err := graph.ParseSubject(args[2])
		if err != nil {
			return fmt.Errorf("the subject has the form TYPE:ID[#RELATION], as user:anne: %w", err)
		}
		context, err := l.contextMessage()
		if err != nil {
			return err
		}
		return l.call(cmd, func(ctx ctx, c *client.Client) error {
			if l.count {
				answer, err := c.CountResources(ctx, &pembav1.CountResourcesRequest{
					Consistency: l.message(), Type: args[0], Permission: args[1], Subject: api.SubjectMessage(subject), Context: context,
				})
				if err != nil {
					return err
				}
				return l.printCount(cmd, args[0], countJSON{Allowed: answer.GetAllowed(), Conditional: answer.GetConditional(), Zookie: answer.GetCountedAt().GetToken()})
			}
			r := &pembav1.LookupResourcesRequest{
				Consistency: l.message(), Type: args[0], Permission: args[1],
				Subject: api.SubjectMessage(subject), Context: context, Limit: l.limit,
			}
			for found, err := range c.LookupResources(ctx, r) {
				if err != nil {
					return err
				}
				if err := l.print(cmd, resultJSON{Object: objectText(found.GetObject())}, found.GetDecision(), found.GetMissing()); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return cmd
}

func newLookupSubjects() *cobra.Command {
	var l lookup
	cmd := &cobra.Command{
		Use:   "subjects OBJECT#NAME TYPE[#RELATION]",
		Short: "List the subjects of a type that have a permission on an object",
		Long: `Subjects lists, one a line, the subjects of a type that have a permission (or
relation) on an object: those that tuples name, and the wildcard with those for
whom it does not hold, as "user:* - {user:carl}". With --count it says how many
are allowed, how many conditional, and, as user:*, what holds for everybody whom no
tuple names.`,
		Example: "  pemba lookup subjects document:readme#view user\n  pemba lookup subjects document:readme#view group#member",
		Args:    arguments(2, 2, "OBJECT#NAME TYPE[#RELATION]"),
	}
	l.addFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		object, name, err := graph.ParseUserset(args[0])
		if err != nil {
			return err
		}
		context, err := l.contextMessage()
		if err != nil {
			return err
		}
		if strings.Contains(args[1], ":") {
			return fmt.Errorf("the subjects to list are those of a type, TYPE[#RELATION], as user, and one subject was given: %s; whether it is among them says \"%s\"",
				args[1], typed("pemba check "+shellQuote(args[0]+"@"+args[1])))
		}
		typ, relation, _ := strings.Cut(args[1], "#")
		return l.call(cmd, func(ctx ctx, c *client.Client) error {
			if l.count {
				answer, err := c.CountSubjects(ctx, &pembav1.CountSubjectsRequest{
					Consistency: l.message(), Object: api.ObjectMessage(object), Permission: name,
					SubjectType: typ, SubjectRelation: relation, Context: context,
				})
				if err != nil {
					return err
				}
				return l.printCount(cmd, typ, countJSON{
					Allowed: answer.GetAllowed(), Conditional: answer.GetConditional(),
					Wildcard: decisionText(answer.GetWildcard()), Zookie: answer.GetCountedAt().GetToken(),
				})
			}
			r := &pembav1.LookupSubjectsRequest{
				Consistency: l.message(), Object: api.ObjectMessage(object), Permission: name,
				SubjectType: typ, SubjectRelation: relation, Context: context, Limit: l.limit,
			}
			for found, err := range c.LookupSubjects(ctx, r) {
				if err != nil {
					return err
				}
				result := resultJSON{Subject: subjectText(found.GetSubject())}
				for _, e := range found.GetExcluded() {
					result.Excluded = append(result.Excluded, excludedJSON{
						Subject: subjectText(e.GetSubject()), Decision: decisionText(e.GetDecision()), Missing: e.GetMissing(),
					})
				}
				if err := l.print(cmd, result, found.GetDecision(), found.GetMissing()); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return cmd
}

// A countJSON says how many results a lookup has, in the form of -o json.
type countJSON struct {
	Allowed     uint64 `json:"allowed"`
	Conditional uint64 `json:"conditional"`
	Wildcard    string `json:"wildcard,omitempty"`
	Zookie      string `json:"zookie"`
}

// printCount says how many there are; typ is the type of what was counted.
func (l *lookup) printCount(cmd *cobra.Command, typ string, c countJSON) error {
	if l.json() {
		return printJSON(cmd, c)
	}
	rows := []row{{"allowed", strconv.FormatUint(c.Allowed, 10)}, {"conditional", strconv.FormatUint(c.Conditional, 10)}}
	if c.Wildcard != "" {
		rows = append(rows, row{typ + ":*", c.Wildcard})
	}
	return printTable(cmd, rows)
}

// A resultJSON is one result of a lookup in the form of -o json.
type resultJSON struct {
	Object   string         `json:"object,omitempty"`
	Subject  string         `json:"subject,omitempty"`
	Decision string         `json:"decision"`
	Missing  []string       `json:"missing,omitempty"`
	Excluded []excludedJSON `json:"excluded,omitempty"`
}

// An excludedJSON is a subject for whom a wildcard does not hold: its decision
// says how surely it is excluded.
type excludedJSON struct {
	Subject  string   `json:"subject"`
	Decision string   `json:"decision"`
	Missing  []string `json:"missing,omitempty"`
}

func (l *lookup) print(cmd *cobra.Command, r resultJSON, decision pembav1.Decision, missing []string) error {
	if l.json() {
		r.Decision, r.Missing = decisionText(decision), missing
		return printJSON(cmd, r)
	}
	line := r.Object + r.Subject
	if len(r.Excluded) > 0 {
		var except []string
		for _, e := range r.Excluded {
			if e.Decision == "conditional" {
				e.Subject += "[...]"
			}
			except = append(except, e.Subject)
		}
		line += " - {" + strings.Join(except, ", ") + "}"
	}
	if decision == pembav1.Decision_DECISION_CONDITIONAL {
		line += "  conditional, missing " + strings.Join(missing, ", ")
	}
	return printf(cmd, "%s\n", line)
}
