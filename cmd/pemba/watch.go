package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pembadb/pemba/api/client"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/schema"
)

// changeFilters are the flags that say which changes are shown.
type changeFilters struct {
	objects, relations, subjects []string
	schema                       bool
}

func (f *changeFilters) addFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringArrayVar(&f.objects, "type", nil, "show changes of objects of this `type`; TYPE:ID for one object")
	flags.StringArrayVar(&f.relations, "relation", nil, "show changes of tuples of this `relation`")
	flags.StringArrayVar(&f.subjects, "subject", nil, "show changes of tuples with this `subject`: TYPE:ID, as user:anne; TYPE:ID#RELATION; or a TYPE for all of it")
	flags.BoolVar(&f.schema, "schema", false, "show changes of the schema too")
}

const changeFiltersHelp = `A change is shown when it agrees with each of --type, --relation and --subject that
is given; of one that is given several times, with one of its values. A name
that the store's schema does not have gets a warning, and is taken all the same:
the schema may have had it.`

// changeFiltersMax bounds how many filters the flags make together; the server
// takes no more.
const changeFiltersMax = 100

// warn says which names of the filters the newest schema does not have: a change
// that passes them may never come. That they cannot be compared is a warning too,
// for the changes can be had without it; but a store or key that the server does
// not know is known by none of its answers.
func (f *changeFilters) warn(ctx ctx, cmd *cobra.Command, c *client.Client, store string, filters []*pembav1.ChangeFilter) error {
	if len(filters) == 0 {
		return nil
	}
	answer, err := c.Schemas.ReadSchema(ctx, &pembav1.ReadSchemaRequest{Store: store})
	switch reason, _ := client.Reason(err); reason {
	case engine.NoSchema.String():
		return nil // Which changes are to come nobody knows.
	case engine.UnknownStore.String(), "KEY_MISSING", "KEY_INVALID":
		return err
	}
	var newest *schema.Schema
	if err == nil {
		newest, err = engine.CompileStored(answer.GetSchema())
	}
	switch {
	case ctx.Err() != nil:
		return nil // What is asked next ends by it too.
	case err != nil:
		_, err = fmt.Fprintln(cmd.ErrOrStderr(), "warning: the names are not compared with the store's schema: "+printable(explainError(cmd, err)))
		return err
	}
	said := map[string]bool{}
	for _, filter := range filters {
		for _, warning := range filterWarnings(newest, filter) {
			if said[warning] {
				continue
			}
			said[warning] = true
			if _, err := fmt.Fprintln(cmd.ErrOrStderr(), "warning: "+warning); err != nil {
				return err
			}
		}
	}
	return nil
}

// filterWarnings says what of a filter a schema does not have.
func filterWarnings(s *schema.Schema, filter *pembav1.ChangeFilter) []string {
	var warnings []string
	var types []string
	for _, d := range s.Definitions {
		types = append(types, d.Name)
	}
	unknown := func(what, name string, names []string) string {
		text := fmt.Sprintf("the schema has no %s %q", what, name)
		if near := schema.Nearest(name, names); near != "" {
			text += fmt.Sprintf("; did you mean %q?", near)
		}
		return text
	}
	objects := s.Definitions
	if name := filter.GetObjectType(); name != "" {
		if d := s.Definition(name); d != nil {
			objects = []*schema.Definition{d}
		} else {
			warnings, objects = append(warnings, unknown("definition", name, types)), nil
		}
	}
	if name := filter.GetRelation(); name != "" && objects != nil {
		var relations, permissions []string
		for _, d := range objects {
			for _, r := range d.Relations {
				relations = append(relations, r.Name)
			}
			for _, p := range d.Permissions {
				permissions = append(permissions, p.Name)
			}
		}
		switch {
		case slices.Contains(relations, name):
		case slices.Contains(permissions, name):
			warnings = append(warnings, fmt.Sprintf("%q is a permission, and tuples are of relations alone", name))
		default:
			what := "relation"
			if filter.GetObjectType() != "" {
				what = "relation of " + filter.GetObjectType()
			}
			warnings = append(warnings, unknown(what, name, relations))
		}
	}
	if name := filter.GetSubjectType(); name != "" {
		d := s.Definition(name)
		if d == nil {
			warning := unknown("definition", name, types)
			if filter.GetSubjectId() == "" {
				warning += "; one subject has the form TYPE:ID, as user:anne"
			}
			return append(warnings, warning)
		}
		if relation := filter.GetSubjectRelation(); relation != "" && d.Relation(relation) == nil && d.Permission(relation) == nil {
			var relations []string
			for _, r := range d.Relations {
				relations = append(relations, r.Name)
			}
			for _, p := range d.Permissions {
				relations = append(relations, p.Name)
			}
			warnings = append(warnings, unknown("relation or permission of "+name, relation, relations))
		}
	}
	return warnings
}

// messages returns the filters of which a change must pass one: as many as there
// are ways to take a value of each flag.
func (f *changeFilters) messages() ([]*pembav1.ChangeFilter, error) {
	if len(f.objects)+len(f.relations)+len(f.subjects) == 0 {
		return nil, nil
	}
	either := func(values []string) []string {
		if len(values) == 0 {
			return []string{""}
		}
		return values
	}
	objects, relations, subjects := either(f.objects), either(f.relations), either(f.subjects)
	if n := len(objects) * len(relations) * len(subjects); n > changeFiltersMax {
		return nil, fmt.Errorf("--type, --relation and --subject make %d filters together; at most %d are allowed", n, changeFiltersMax)
	}
	var filters []*pembav1.ChangeFilter
	for _, object := range objects {
		wanted, err := parseFilterSide(object)
		if err == nil && (wanted.hasRelation || wanted.typ == "" && object != "") {
			err = fmt.Errorf("its form is TYPE or TYPE:ID, and there is %q", wanted.relation)
		}
		if err == nil {
			err = wanted.needWhole()
		}
		if err != nil {
			return nil, fmt.Errorf("--type %s: %w", object, err)
		}
		for _, subject := range subjects {
			of, err := parseFilterSide(subject)
			if err == nil && of.typ == "" && subject != "" {
				err = errors.New("its form is TYPE[:ID][#RELATION]")
			}
			if err == nil {
				err = of.needWhole()
			}
			if err != nil {
				return nil, fmt.Errorf("--subject %s: %w", subject, err)
			}
			for _, relation := range relations {
				filter := &pembav1.ChangeFilter{
					ObjectType: wanted.typ, ObjectId: wanted.id, Relation: relation, SubjectType: of.typ, SubjectId: of.id,
				}
				if of.hasRelation {
					filter.SubjectRelation = &of.relation
				}
				filters = append(filters, filter)
			}
		}
	}
	return filters, nil
}

func newWatch() *cobra.Command {
	var conn connection
	var filters changeFilters
	var from, cursor string
	var heartbeats bool
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Show changes as they are made",
		Long: `Watch shows the changes of a store as they are made, from now on or from behind a
zookie or cursor, until it is interrupted: one a line, with the time, the number
of the change, what became of the tuple (created, replaced, deleted, expired), the
tuple, on whose behalf (- where that was not recorded), and the metadata that was
kept with it, as "pemba changes" does. -o json gives one object a line for all
changes of a revision, or a part of them, with the zookie, and the cursor to go on
behind it.

It begins behind a --from, the zookie of a write or a read, or behind the --cursor
of an earlier watch, and without either with the next change. When the connection
is lost it is taken up again by itself where it was; no change is left out or shown
twice. However it ends, by SIGINT and SIGTERM in order or by an error, it says on
the standard error by which --cursor to go on.

` + changeFiltersHelp,
		Example: `  pemba watch
  pemba watch --type document --relation viewer --relation editor --schema
  pemba watch --subject user:anne -o json
  pemba watch --from $ZOOKIE`,
		Args: noArguments,
	}
	conn.addFlags(cmd)
	filters.addFlags(cmd)
	cmd.Flags().StringVar(&from, "from", "", "begin behind this `zookie`, that of a write or a read")
	cmd.Flags().StringVar(&cursor, "cursor", "", "begin behind this `cursor` of an earlier watch")
	cmd.Flags().BoolVar(&heartbeats, "heartbeats", false, "show that the watch is alive while nothing changes")
	before(cmd, func() error {
		return needTexts(cmd, "from", "cursor")
	})
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		r := &pembav1.WatchRequest{SchemaChanges: filters.schema}
		switch {
		case from != "" && cursor != "":
			return errors.New("--from and --cursor exclude each other")
		case from != "":
			r.From = &pembav1.WatchRequest_After{After: &pembav1.Zookie{Token: from}}
		case cursor != "":
			r.From = &pembav1.WatchRequest_Cursor{Cursor: cursor}
		}
		var err error
		if r.Filters, err = filters.messages(); err != nil {
			return err
		}
		return conn.call(cmd, func(ctx ctx, c *client.Client) error {
			if err := filters.warn(ctx, cmd, c, conn.store, r.GetFilters()); err != nil {
				return err
			}
			return watch(ctx, cmd, &conn, c, r, heartbeats)
		})
	}
	return cmd
}

// needTexts refuses flags that are given and empty: an unset variable in a script
// must not change what is asked.
func needTexts(cmd *cobra.Command, names ...string) error {
	for _, name := range names {
		if flag := cmd.Flags().Lookup(name); flag.Changed && flag.Value.String() == "" {
			return fmt.Errorf("--%s is empty; leave it out, or give it a value", name)
		}
	}
	return nil
}

func watch(ctx ctx, cmd *cobra.Command, conn *connection, c *client.Client, r *pembav1.WatchRequest, heartbeats bool) error {
	var say error // why the standard error takes nothing any more
	cut := false
	lost := func(err error) {
		cut = true
		_, say = fmt.Fprintf(cmd.ErrOrStderr(), "the watch was cut off: %s; it goes on when there is a server again\n", explainError(cmd, err))
	}
	behind, out := "", changePrinter{cmd: cmd, json: conn.json()}
	for response, err := range c.Watch(ctx, r, lost) {
		if ctx.Err() != nil {
			break // That is how a watch ends.
		}
		if err != nil && behind == "" && status.Code(err) != codes.Unavailable {
			return err // Where it was to begin may be the mistake.
		}
		if err != nil {
			return errors.Join(err, howToGoOn(cmd, behind, r, status.Code(err) != codes.Unauthenticated))
		}
		if cut {
			cut = false
			_, err := fmt.Fprintln(cmd.ErrOrStderr(), "the watch goes on where it was")
			say = errors.Join(say, err)
		}
		var shown error
		if !response.GetHeartbeat() || heartbeats {
			shown = out.print(response)
		}
		// What could not be shown is to be told again.
		if shown == nil && response.GetCursor() != "" {
			behind = response.GetCursor()
		}
		if err := errors.Join(shown, say); err != nil {
			return errors.Join(err, howToGoOn(cmd, behind, r, true))
		}
	}
	return howToGoOn(cmd, behind, r, true)
}

// howToGoOn says how to take up a watch that ended. One that told nothing is
// taken up where it was to begin, if that was said. keyGood is false when the key
// is why it ended.
func howToGoOn(cmd *cobra.Command, cursor string, r *pembav1.WatchRequest, keyGood bool) error {
	from := "--cursor " + shellQuote(cursor)
	if cursor == "" {
		switch {
		case r.GetCursor() != "":
			from = "--cursor " + shellQuote(r.GetCursor())
		case r.GetAfter().GetToken() != "":
			from = "--from " + shellQuote(r.GetAfter().GetToken())
		default:
			return nil
		}
	}
	text := "to go on from here"
	switch {
	case !keyGood:
		text += ", with another key"
	case cmd.Flags().Changed("key"):
		text += ", with the --key as before" // It is a secret, and what is shown here may be kept.
	}
	_, err := fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s %s\n", text, commandAgain(cmd, "key", "from", "cursor"), from)
	return err
}

// A changePrinter prints what Watch and ReadChanges tell.
type changePrinter struct {
	cmd  *cobra.Command
	json bool
}

// A changesJSON is a WatchResponse in the form of -o json.
type changesJSON struct {
	Time      string          `json:"time,omitempty"`
	Actor     string          `json:"recorded_actor,omitempty"`
	Metadata  json.RawMessage `json:"metadata,omitempty"`
	Changes   []changeJSON    `json:"changes,omitempty"`
	Schema    *schemaMarkJSON `json:"schema,omitempty"`
	Heartbeat bool            `json:"heartbeat,omitempty"`
	Zookie    string          `json:"zookie,omitempty"`
	Cursor    string          `json:"cursor,omitempty"`
}

type changeJSON struct {
	Sequence uint64 `json:"sequence"`
	Kind     string `json:"kind"`
	Tuple    string `json:"tuple"`
}

// A schemaMarkJSON says that a schema was written, and how large it is.
type schemaMarkJSON struct {
	Size   uint32 `json:"size"`
	Zookie string `json:"zookie"`
}

func (p *changePrinter) print(r *pembav1.WatchResponse) error {
	if p.json {
		j, err := newChangesJSON(r)
		if err != nil {
			return err
		}
		return printJSON(p.cmd, j)
	}
	rows, err := changeRows(r)
	if err != nil {
		return err
	}
	return printTable(p.cmd, rows)
}

// changeRows are the lines of an answer: the time, the number of the change, what
// became of the tuple, the tuple, on whose behalf, and the metadata. The first
// three have a width of their own, so that they stand below each other also where
// nobody knows yet what is to come.
func changeRows(r *pembav1.WatchResponse) ([]row, error) {
	const noNumber = "        "
	if r.GetHeartbeat() {
		return []row{{fixedTime(r), noNumber, "heartbeat"}}, nil
	}
	metadata, err := metadataJSON(r.GetMetadata())
	if err != nil {
		return nil, err
	}
	by := "-"
	if r.GetRecordedActor() != "" {
		by = "by " + r.GetRecordedActor()
	}
	var rows []row
	add := func(number, kind, what string) {
		rows = append(rows, row{fixedTime(r), number, fmt.Sprintf("%-8s", kind), what, by, string(metadata)})
	}
	if s := r.GetSchema(); s != nil {
		add(noNumber, "schema", fmt.Sprintf("%d bytes", s.GetSize()))
	}
	for _, c := range r.GetChanges() {
		add(fmt.Sprintf("%8d", c.GetSequence()), kindText(c.GetKind()), tupleText(c.GetTuple()))
	}
	return rows, nil
}

func newChangesJSON(r *pembav1.WatchResponse) (*changesJSON, error) {
	j := &changesJSON{
		Time: timeText(r.GetInstant()), Actor: r.GetRecordedActor(), Heartbeat: r.GetHeartbeat(),
		Zookie: r.GetZookie().GetToken(), Cursor: r.GetCursor(),
	}
	var err error
	if j.Metadata, err = metadataJSON(r.GetMetadata()); err != nil {
		return nil, err
	}
	if s := r.GetSchema(); s != nil {
		j.Schema = &schemaMarkJSON{Size: s.GetSize(), Zookie: s.GetWrittenAt().GetToken()}
	}
	for _, c := range r.GetChanges() {
		j.Changes = append(j.Changes, changeJSON{Sequence: c.GetSequence(), Kind: kindText(c.GetKind()), Tuple: tupleText(c.GetTuple())})
	}
	return j, nil
}

func kindText(k pembav1.Change_Kind) string {
	return strings.ToLower(strings.TrimPrefix(k.String(), "KIND_"))
}

// fixedTime is the moment of a change, in microseconds, always of one length.
// A watch that has told nothing yet knows of no moment.
func fixedTime(r *pembav1.WatchResponse) string {
	if r.GetInstant() == nil {
		return fmt.Sprintf("%-27s", "-")
	}
	return r.GetInstant().AsTime().Format("2006-01-02T15:04:05.000000Z")
}

func newChanges() *cobra.Command {
	var conn connection
	var filters changeFilters
	var since, until, from string
	var limit uint32
	cmd := &cobra.Command{
		Use:   "changes",
		Short: "Show who changed what, and when",
		Long: `Changes shows the changes that are in the store's change log, the oldest first, one
a line: the time, the number of the change, what became of the tuple (created,
replaced, deleted, expired), the tuple, on whose behalf (- where that was not
recorded), and the metadata that was kept with it, as "pemba watch" does. A store
keeps its changes for as long as it is set: see "pemba store".

` + changeFiltersHelp,
		Example: `  pemba changes --since 24h --type document:readme
  pemba changes --since 2026-01-01 --until 2026-02-01 --subject user:anne -o json`,
		Args: noArguments,
	}
	conn.addFlags(cmd)
	filters.addFlags(cmd)
	cmd.Flags().StringVar(&since, "since", "", "begin with the first change at or after this `time`: a time, a date, or how long ago, as 24h")
	cmd.Flags().StringVar(&until, "until", "", "end before the first change after this `time`")
	cmd.Flags().StringVar(&from, "from", "", "begin behind this `zookie`, that of a write or a read")
	addLimit(cmd, &limit)
	before(cmd, func() error {
		return needTexts(cmd, "since", "until", "from")
	})
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		r, err := changesRequest(since, until, from, time.Now())
		if err != nil {
			return err
		}
		r.Limit, r.SchemaChanges = limit, filters.schema
		if r.Filters, err = filters.messages(); err != nil {
			return err
		}
		return conn.call(cmd, func(ctx ctx, c *client.Client) error {
			if err := filters.warn(ctx, cmd, c, conn.store, r.GetFilters()); err != nil {
				return err
			}
			return printChanges(ctx, cmd, &conn, c, r)
		})
	}
	return cmd
}

func changesRequest(since, until, from string, now time.Time) (*pembav1.ReadChangesRequest, error) {
	r := &pembav1.ReadChangesRequest{}
	if since != "" && from != "" {
		return nil, errors.New("--since and --from exclude each other")
	}
	if from != "" {
		r.From = &pembav1.ReadChangesRequest_After{After: &pembav1.Zookie{Token: from}}
	}
	if since != "" {
		t, err := parseMoment("since", since, now)
		if err != nil {
			return nil, err
		}
		r.From = &pembav1.ReadChangesRequest_Since{Since: timestamppb.New(t)}
	}
	if until != "" {
		t, err := parseMoment("until", until, now)
		if err != nil {
			return nil, err
		}
		r.Until = timestamppb.New(t)
	}
	return r, nil
}

// changesPage is how many changes are aligned with each other: all of them would
// have to be held until the last one came.
const changesPage = 500

func printChanges(ctx ctx, cmd *cobra.Command, conn *connection, c *client.Client, r *pembav1.ReadChangesRequest) error {
	var rows []row
	for response, err := range c.ReadChanges(ctx, r) {
		if err != nil {
			return errors.Join(printTable(cmd, rows), err)
		}
		if conn.json() {
			out := changePrinter{cmd: cmd, json: true}
			if err := out.print(response); err != nil {
				return err
			}
			continue
		}
		more, err := changeRows(response)
		if err != nil {
			return err
		}
		rows = append(rows, more...)
		if len(rows) >= changesPage {
			if err := printTable(cmd, rows); err != nil {
				return err
			}
			rows = rows[:0]
		}
	}
	return printTable(cmd, rows)
}

// metadataJSON is the metadata of a change as JSON with sorted keys; nil for none.
func metadataJSON(s *structpb.Struct) (json.RawMessage, error) {
	if len(s.GetFields()) == 0 {
		return nil, nil
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s.AsMap()); err != nil {
		return nil, fmt.Errorf("the metadata of a change: %w", err)
	}
	return bytes.TrimSpace(b.Bytes()), nil
}
