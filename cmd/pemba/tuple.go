package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/api/client"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/graph"
)

func newTuple() *cobra.Command {
	return newGroup("tuple", "Write, delete, read, count, import and export tuples",
		newTupleWrite(), newTupleDelete(), newTupleRead(), newTupleCount(), newTupleImport(), newTupleExport())
}

const tupleForm = `The text of a tuple is
  object:id#relation@subject:id[#relation][caveat:{json}][expiration:RFC3339]
with ids that hold one of # @ : [ ] or a blank in double quotes.`

// printChanged reports a change; what says what became of the tuples.
func printChanged(cmd *cobra.Command, conn *connection, what string, changed uint32, partial bool, z *pembav1.Zookie) error {
	if conn.json() {
		return printJSON(cmd, struct {
			Changed uint32 `json:"changed"`
			Partial bool   `json:"partial,omitempty"`
			Zookie  string `json:"zookie"`
		}{changed, partial, z.GetToken()})
	}
	more := ""
	if partial {
		more = ", more are left"
	}
	return printf(cmd, "%s %d%s, zookie %s\n", what, changed, more, z.GetToken())
}

// parseTuples reads tuples from the command line, or one a line from the
// standard input for "-" alone.
func parseTuples(cmd *cobra.Command, args []string) ([]graph.Tuple, error) {
	var tuples []graph.Tuple
	if len(args) == 1 && args[0] == "-" {
		for t, err := range readTupleLines(cmd.InOrStdin(), "text") {
			if err != nil {
				return nil, fmt.Errorf("standard input: %w", err)
			}
			tuples = append(tuples, t.Tuple)
		}
		return tuples, nil
	}
	for _, arg := range args {
		t, err := graph.ParseTuple(arg)
		if err != nil {
			return nil, err
		}
		tuples = append(tuples, t)
	}
	return tuples, nil
}

func newTupleWrite() *cobra.Command {
	var conn connection
	var by change
	var create bool
	cmd := &cobra.Command{
		Use:   "write TUPLE...",
		Short: "Write tuples, all at one revision or none",
		Long: `Write writes tuples, all at one revision or none. What is there already is kept,
and gets the caveat and expiration that are given now; with --create it is an
error. "-" alone reads tuples from the standard input, one a line.

` + tupleForm,
		Example: `  pemba tuple write document:readme#viewer@user:anne
  pemba tuple write document:readme#viewer@group:eng#member 'document:readme#viewer@user:bob[weekday:{"day":"monday"}]'`,
		Args: arguments(1, -1, "TUPLE..."),
	}
	conn.addFlags(cmd)
	by.addFlags(cmd)
	cmd.Flags().BoolVar(&create, "create", false, "fail if one of the tuples is there already")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		operation := graph.Touch
		if create {
			operation = graph.Create
		}
		return writeTuples(cmd, &conn, by, operation, args)
	}
	return cmd
}

func writeTuples(cmd *cobra.Command, conn *connection, by change, operation graph.Operation, args []string) error {
	tuples, err := parseTuples(cmd, args)
	if err != nil && operation == graph.Delete {
		return fmt.Errorf("%w; what matches a filter is deleted by --filter FILTER", err)
	}
	if err != nil {
		return err
	}
	r, err := writeRequest(conn, by, operation, tuples)
	if err != nil {
		return err
	}
	return conn.call(cmd, func(ctx ctx, c *client.Client) error {
		answer, err := c.Tuples.WriteTuples(ctx, r)
		if err != nil {
			return &tuplesError{tuples, err}
		}
		what := "changed"
		if operation == graph.Delete {
			what = "deleted"
		} else if err := warnOfExpired(cmd, tuples, time.Now()); err != nil {
			return err
		}
		return printChanged(cmd, conn, what, answer.GetChanged(), false, answer.GetWrittenAt())
	})
}

// warnOfExpired names the tuples that grant nothing any more. The server takes
// them, and judges them by a clock of its own.
func warnOfExpired(cmd *cobra.Command, tuples []graph.Tuple, now time.Time) error {
	for _, t := range tuples {
		if t.ValidUntil != 0 && t.ValidUntil <= graph.InstantOf(now) {
			if _, err := fmt.Fprintf(cmd.ErrOrStderr(), "warning: %s: the expiration is in the past, so it grants nothing\n", t); err != nil {
				return err
			}
		}
	}
	return nil
}

func writeRequest(conn *connection, by change, operation graph.Operation, tuples []graph.Tuple) (*pembav1.WriteTuplesRequest, error) {
	updates, err := client.Updates(operation, tuples...)
	if err != nil {
		return nil, err
	}
	metadata, err := parseJSONObject("metadata", by.metadata)
	if err != nil {
		return nil, err
	}
	return &pembav1.WriteTuplesRequest{Store: conn.store, Updates: updates, RecordedActor: by.actor, Metadata: metadata}, nil
}

func newTupleDelete() *cobra.Command {
	var conn connection
	var by change
	var filter string
	var limit uint32
	var partial bool
	cmd := &cobra.Command{
		Use:   "delete TUPLE...",
		Short: "Delete tuples, all at one revision or none",
		Long: `Delete removes tuples, whatever caveat and expiration they carry; one that is not
there is no error. "-" alone reads tuples from the standard input, one a line.
With --filter it removes what matches, in the form that "pemba tuple read" has.`,
		Example: `  pemba tuple delete document:readme#viewer@user:anne
  pemba tuple delete --filter document:readme`,
	}
	conn.addFlags(cmd)
	by.addFlags(cmd)
	cmd.Flags().StringVar(&filter, "filter", "", "delete what matches this `filter`")
	cmd.Flags().Uint32Var(&limit, "limit", 0, "with --filter, delete at most this `number`; 0 for the server's limit")
	cmd.Flags().BoolVar(&partial, "allow-partial", false, "with --filter, delete the first matches when there are more than the limit")
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if filter != "" {
			if len(args) > 0 {
				return fmt.Errorf("--filter and tuples exclude each other, and %q was given", args[0])
			}
			return nil
		}
		if limit != 0 || partial {
			return errors.New("--limit and --allow-partial go with --filter")
		}
		return arguments(1, -1, "TUPLE...")(cmd, args)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if filter == "" {
			return writeTuples(cmd, &conn, by, graph.Delete, args)
		}
		f, err := parseFilter(filter)
		if err != nil {
			return err
		}
		metadata, err := parseJSONObject("metadata", by.metadata)
		if err != nil {
			return err
		}
		return conn.call(cmd, func(ctx ctx, c *client.Client) error {
			answer, err := c.Tuples.DeleteTuples(ctx, &pembav1.DeleteTuplesRequest{
				Store: conn.store, Filter: f, Limit: limit, AllowPartial: partial, RecordedActor: by.actor, Metadata: metadata,
			})
			if err != nil {
				return err
			}
			return printChanged(cmd, &conn, "deleted", answer.GetDeleted(), answer.GetPartial(), answer.GetDeletedAt())
		})
	}
	return cmd
}

const filterForm = `A filter is TYPE[:ID][#RELATION][@TYPE[:ID][#RELATION]], and each of its two sides
may be missing. An id that ends in % is a prefix, on the left side only; a # with
nothing behind it, at the end, matches subjects without a relation.`

// parseFilter reads a filter; an empty one matches everything.
func parseFilter(text string) (*pembav1.TupleFilter, error) {
	f := &pembav1.TupleFilter{}
	bad := func(why string) (*pembav1.TupleFilter, error) {
		return nil, fmt.Errorf("the filter %q: %s; its form is TYPE[:ID][#RELATION][@TYPE[:ID][#RELATION]]", text, why)
	}
	left, right, hasRight := cutOutsideQuotes(text, '@')
	object, err := parseFilterSide(left)
	if err != nil {
		return bad(err.Error())
	}
	f.ObjectType, f.Relation = object.typ, object.relation
	if object.prefix {
		f.ObjectIdPrefix = strings.TrimSuffix(object.id, "%")
	} else {
		f.ObjectId = object.id
	}
	if !hasRight {
		return f, nil
	}
	subject, err := parseFilterSide(right)
	if err == nil {
		err = subject.needWhole()
	}
	if err != nil {
		return bad(err.Error())
	}
	f.SubjectType, f.SubjectId = subject.typ, subject.id
	if subject.hasRelation {
		f.SubjectRelation = &subject.relation
	}
	return f, nil
}

// A filterSide is TYPE[:ID][#RELATION]. What is missing is empty.
type filterSide struct {
	typ, id, relation string
	// prefix says that the id ends in a % outside of quotes.
	prefix, hasRelation bool
}

func parseFilterSide(text string) (filterSide, error) {
	var s filterSide
	text, s.relation, s.hasRelation = cutOutsideQuotes(text, '#')
	var hasID bool
	s.typ, s.id, hasID = cutOutsideQuotes(text, ':')
	if hasID && strings.HasPrefix(s.id, `"`) {
		var err error
		if s.id, err = strconv.Unquote(s.id); err != nil {
			return filterSide{}, errors.New("the quotes around an id are not closed, or hold an unknown escape")
		}
	} else {
		s.prefix = strings.HasSuffix(s.id, "%")
	}
	if hasID && s.id == "" {
		return filterSide{}, errors.New("the id behind a colon is empty")
	}
	return s, nil
}

// needWhole refuses a prefix, where only whole ids can be looked for.
func (s *filterSide) needWhole() error {
	if !s.prefix {
		return nil
	}
	return fmt.Errorf("the id %s is a prefix, which only the object of a filter of tuples may have; give a whole id, or none, or %q if it ends in %% itself", s.id, s.id)
}

// cutOutsideQuotes splits at the first sep that is not in double quotes.
func cutOutsideQuotes(s string, sep byte) (before, after string, found bool) {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case !quoted && s[i] == sep:
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

func newTupleRead() *cobra.Command {
	var conn connection
	var state consistency
	var limit uint32
	cmd := &cobra.Command{
		Use:   "read [FILTER]",
		Short: "List the tuples that match a filter",
		Long:  "Read lists the tuples that match a filter, one a line; without one, all.\n\n" + filterForm,
		Example: `  pemba tuple read document:readme
  pemba tuple read document#viewer
  pemba tuple read @user:anne
  pemba tuple read 'document:a%#viewer@group'`,
		Args: arguments(0, 1, "[FILTER]"),
	}
	conn.addFlags(cmd)
	state.addFlags(cmd)
	addLimit(cmd, &limit)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := parseFilter(strings.Join(args, ""))
		if err != nil {
			return err
		}
		format := "text"
		if conn.json() {
			format = "jsonl"
		}
		r := &pembav1.ReadTuplesRequest{Consistency: state.message(), Filter: f, Limit: limit}
		return copyTuples(cmd, &conn, r, cmd.OutOrStdout(), format)
	}
	return cmd
}

// copyTuples writes what r asks for to w.
func copyTuples(cmd *cobra.Command, conn *connection, r *pembav1.ReadTuplesRequest, w io.Writer, format string) error {
	return conn.call(cmd, func(ctx ctx, c *client.Client) error {
		out, err := newTupleWriter(w, format)
		if err != nil {
			return err
		}
		for found, err := range c.ReadTuples(ctx, r) {
			if err != nil {
				return errors.Join(err, out.flush())
			}
			t, err := api.ParseTupleMessage(found.GetTuple())
			if err != nil {
				return err
			}
			if err := out.write(t); err != nil {
				return err
			}
		}
		return out.flush()
	})
}

func newTupleCount() *cobra.Command {
	var conn connection
	var state consistency
	cmd := &cobra.Command{
		Use:   "count [FILTER]",
		Short: "Say how many tuples match a filter",
		Long: `Count says how many tuples match a filter; without one, how many there are. What
the server has counters for, such as a type or a relation, costs nothing.

` + filterForm,
		Example: "  pemba tuple count\n  pemba tuple count document#viewer",
		Args:    arguments(0, 1, "[FILTER]"),
	}
	conn.addFlags(cmd)
	state.addFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := parseFilter(strings.Join(args, ""))
		if err != nil {
			return err
		}
		return conn.call(cmd, func(ctx ctx, c *client.Client) error {
			answer, err := c.CountTuples(ctx, &pembav1.CountTuplesRequest{Consistency: state.message(), Filter: f})
			if err != nil {
				return err
			}
			if conn.json() {
				return printJSON(cmd, struct {
					Count  uint64 `json:"count"`
					Zookie string `json:"zookie"`
				}{answer.GetCount(), answer.GetCountedAt().GetToken()})
			}
			return printf(cmd, "%d\n", answer.GetCount())
		})
	}
	return cmd
}
