package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/pembadb/pemba/api/client"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/schema"
)

func newSchema() *cobra.Command {
	return newGroup("schema", "Write, read and examine schemas",
		newSchemaWrite(), newSchemaRead(), newSchemaVersions(), newSchemaCheck(), newSchemaFormat(), newSchemaDiff(), newSchemaLint())
}

// loadSchema reads a schema from a file, following imports within its folder, or
// from the standard input for "-".
func loadSchema(cmd *cobra.Command, name string) (*schema.File, error) {
	if name == "-" {
		text, err := readInput(cmd, name, schema.SourceBytesMax)
		if err != nil {
			return nil, err
		}
		return schema.Parse("standard input", string(text))
	}
	// The package schema would look for a folder within its own.
	if info, err := os.Stat(name); err == nil && info.IsDir() {
		return nil, fmt.Errorf("%s is a directory; name the file of a schema", name)
	}
	named, err := os.Open(name)
	if err != nil {
		return nil, err // It has the whole name.
	}
	defer func() { _ = named.Close() }() // It was only read, and mostly is closed.
	root, err := os.OpenRoot(filepath.Dir(name))
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }() // The same.
	files := &schemaFiles{FS: root.FS(), name: filepath.Base(name), named: named}
	file, err := schema.Load(files, files.name)
	return file, placeErrors(name, err)
}

// schemaFiles are the files of a schema: the one that was named, which may be
// anywhere that its name leads, as a symbolic link or a pipe does, and those of its
// folder, which its imports cannot leave.
type schemaFiles struct {
	fs.FS
	name  string   // of the named file within FS
	named *os.File // nil when it was given out, since a pipe is read once
}

func (f *schemaFiles) Open(name string) (fs.File, error) {
	if name != f.name || f.named == nil {
		return f.FS.Open(name)
	}
	named := f.named
	f.named = nil
	return named, nil
}

// compileSchema reads and compiles a schema.
func compileSchema(cmd *cobra.Command, name string) (*schema.File, *schema.Schema, error) {
	file, err := loadSchema(cmd, name)
	if err != nil {
		return nil, nil, err
	}
	compiled, err := schema.Check(file)
	if err != nil {
		return nil, nil, placeErrors(name, err)
	}
	return file, compiled, engine.Storable(compiled)
}

// placeErrors puts the folder of the named file before the file names in the
// errors of a schema, which begin in that folder.
func placeErrors(name string, err error) error {
	var errs schema.Errors
	if name == "-" || !errors.As(err, &errs) {
		return err
	}
	placed := make(schema.Errors, len(errs))
	for i, e := range errs {
		copied := *e
		if copied.File != "" {
			copied.File = filepath.Join(filepath.Dir(name), copied.File)
		}
		placed[i] = &copied
	}
	return placed
}

// isMistake reports whether an error is about what a schema says, and not about
// getting at it.
func isMistake(err error) bool {
	var mistakes schema.Errors
	var refusal *engine.Refusal
	if errors.As(err, &mistakes) {
		// A file that cannot be read is a mistake without a place.
		return slices.ContainsFunc(mistakes, func(e *schema.Error) bool { return !e.Pos.IsZero() })
	}
	return errors.As(err, &refusal)
}

// mistakeReason is the reason that a server would give.
func mistakeReason(err error) string {
	var mistakes schema.Errors
	if errors.As(err, &mistakes) && slices.ContainsFunc(mistakes, func(e *schema.Error) bool { return e.Kind == schema.SyntaxError }) {
		return engine.SchemaSyntax.String()
	}
	return engine.SchemaType.String()
}

// A mistakeJSON is one mistake or warning in a schema in the form of -o json.
type mistakeJSON struct {
	File       string `json:"file,omitempty"`
	Line       int    `json:"line,omitempty"`
	Column     int    `json:"column,omitempty"`
	Rule       string `json:"rule,omitempty"`
	Message    string `json:"message"`
	Suggestion string `json:"suggestion,omitempty"`
}

func newMistakesJSON(err error) []mistakeJSON {
	var mistakes schema.Errors
	if !errors.As(err, &mistakes) {
		return []mistakeJSON{{Message: err.Error()}}
	}
	list := make([]mistakeJSON, len(mistakes))
	for i, e := range mistakes {
		list[i] = mistakeJSON{File: e.File, Line: e.Pos.Line, Column: e.Pos.Column, Message: e.Msg, Suggestion: e.Suggestion}
	}
	return list
}

// hasImports reports whether the text alone does not hold the schema.
func hasImports(file *schema.File) bool {
	for _, item := range file.Items {
		if _, ok := item.(*schema.Import); ok {
			return true
		}
	}
	return false
}

func newSchemaWrite() *cobra.Command {
	var conn connection
	var by change
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "write FILE",
		Short: "Make a file the store's schema",
		Long: `Write makes the schema in FILE ("-" for the standard input) the store's. It is
refused when stored tuples would no longer fit. A file goes as it is written; one
with imports goes as one text in canonical form.

With --dry-run nothing is written. It says whether the schema would be, what would
change, which permissions would mean something else, and each kind of stored
tuples that would not fit, with how many there are and why; and it fails where
writing would.`,
		Example: "  pemba schema write schema.pemba\n  pemba schema write schema.pemba --dry-run",
		Args:    arguments(1, 1, "FILE"),
	}
	conn.addFlags(cmd)
	by.addFlags(cmd)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would come of it, and write nothing")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		metadata, err := parseJSONObject("metadata", by.metadata)
		if err != nil {
			return err
		}
		// What does not compile is better refused here, where imports and file
		// names are known.
		file, compiled, err := compileSchema(cmd, args[0])
		if dryRun && conn.json() && isMistake(err) {
			if err := printJSON(cmd, trialJSON{Error: err.Error(), Reason: mistakeReason(err)}); err != nil {
				return err
			}
			return errTrialRefused
		}
		if err != nil {
			return err
		}
		text := file.Source
		if hasImports(file) {
			text = schema.Print(compiled)
		}
		return conn.call(cmd, func(ctx ctx, c *client.Client) error {
			if dryRun {
				answer, err := c.Schemas.TrySchema(ctx, &pembav1.TrySchemaRequest{Store: conn.store, Schema: text})
				if err != nil {
					return err
				}
				return printTrial(cmd, &conn, answer)
			}
			answer, err := c.Schemas.WriteSchema(ctx, &pembav1.WriteSchemaRequest{
				Store: conn.store, Schema: text, RecordedActor: by.actor, Metadata: metadata,
			})
			if err != nil {
				return err
			}
			if conn.json() {
				return printJSON(cmd, map[string]string{"zookie": answer.GetWrittenAt().GetToken()})
			}
			return printf(cmd, "written, zookie %s\n", answer.GetWrittenAt().GetToken())
		})
	}
	return cmd
}

// A trialJSON is what a dry run found out in the form of -o json.
type trialJSON struct {
	Accepted bool             `json:"accepted"`
	Error    string           `json:"error,omitempty"`
	Reason   string           `json:"reason,omitempty"`
	Misfits  []misfitJSON     `json:"misfits,omitempty"`
	Changes  []schemaDiffJSON `json:"changes,omitempty"`
	Affected []affectedJSON   `json:"affected,omitempty"`
	Stored   []storedKindJSON `json:"stored,omitempty"`
	Zookie   string           `json:"zookie,omitempty"`
}

type storedKindJSON struct {
	Relation string `json:"relation"`
	Subject  string `json:"subject"`
	Count    uint64 `json:"count"`
}

type misfitJSON struct {
	storedKindJSON
	Why    string `json:"why"`
	Sample string `json:"sample,omitempty"`
}

// A schemaDiffJSON is one difference of two schemas in the form of -o json.
type schemaDiffJSON struct {
	Kind       string `json:"kind"`
	Definition string `json:"definition,omitempty"`
	Caveat     string `json:"caveat,omitempty"`
	Name       string `json:"name,omitempty"`
	Old        string `json:"old,omitempty"`
	New        string `json:"new,omitempty"`
	Text       string `json:"text"`
}

type affectedJSON struct {
	Permission string `json:"permission"`
	Rewritten  bool   `json:"rewritten"`
}

func newStoredKindJSON(k *pembav1.StoredKind) storedKindJSON {
	return storedKindJSON{Relation: k.GetType() + "#" + k.GetRelation(), Subject: k.GetSubject(), Count: k.GetCount()}
}

func newSchemaDiffJSON(c *pembav1.SchemaChange) schemaDiffJSON {
	return schemaDiffJSON{c.GetKind(), c.GetDefinition(), c.GetCaveat(), c.GetName(), c.GetFrom(), c.GetTo(), c.GetText()}
}

func newAffectedJSON(a *pembav1.AffectedPermission) affectedJSON {
	return affectedJSON{Permission: a.GetDefinition() + "#" + a.GetPermission(), Rewritten: a.GetRewritten()}
}

// errTrialRefused is how a dry run fails that found something.
var errTrialRefused = errors.New("the schema would be refused, and was not written")

func printTrial(cmd *cobra.Command, conn *connection, t *pembav1.TrySchemaResponse) error {
	j := trialJSON{
		Accepted: t.GetAccepted(), Error: t.GetError().GetMessage(), Reason: t.GetError().GetReason(), Zookie: t.GetTriedAt().GetToken(),
	}
	for _, m := range t.GetMisfits() {
		j.Misfits = append(j.Misfits, misfitJSON{newStoredKindJSON(m.GetStored()), m.GetWhy(), m.GetSample()})
	}
	for _, c := range t.GetChanges() {
		j.Changes = append(j.Changes, newSchemaDiffJSON(c))
	}
	for _, a := range t.GetAffected() {
		j.Affected = append(j.Affected, newAffectedJSON(a))
	}
	for _, k := range t.GetStored() {
		j.Stored = append(j.Stored, newStoredKindJSON(k))
	}
	var err error
	if conn.json() {
		err = printJSON(cmd, j)
	} else {
		err = printTrialText(cmd, &j)
	}
	if err == nil && !j.Accepted {
		return errTrialRefused
	}
	return err
}

// printTrialText writes a line each for what would change, what would mean
// something else, and what speaks against it.
func printTrialText(cmd *cobra.Command, j *trialJSON) error {
	for _, c := range j.Changes {
		if err := printf(cmd, "%s\n", c.Text); err != nil {
			return err
		}
	}
	if err := printAffected(cmd, j.Affected); err != nil {
		return err
	}
	if j.Error != "" {
		if err := printf(cmd, "refused: %s (%s)\n", j.Error, j.Reason); err != nil {
			return err
		}
	}
	var rows []row
	for _, m := range j.Misfits {
		sample := ""
		if m.Sample != "" {
			sample = "as " + m.Sample
		}
		rows = append(rows, row{"misfit:", fmt.Sprintf("%d tuples", m.Count), m.Relation + "@" + m.Subject, m.Why, sample})
	}
	if err := printTable(cmd, rows); err != nil {
		return err
	}
	if !j.Accepted {
		return nil
	}
	if len(j.Changes) == 0 {
		return printf(cmd, "it would be written, and means the same as the store's schema\n")
	}
	return printf(cmd, "it would be written\n")
}

func printAffected(cmd *cobra.Command, affected []affectedJSON) error {
	var rows []row
	for _, a := range affected {
		how := "by what it refers to"
		if a.Rewritten {
			how = "rewritten"
		}
		rows = append(rows, row{"affected: " + a.Permission, how})
	}
	return printTable(cmd, rows)
}

func newSchemaVersions() *cobra.Command {
	var conn connection
	var limit uint32
	cmd := &cobra.Command{
		Use:   "versions",
		Short: "List the schemas that the store has and had",
		Long: `Versions lists the schemas that are kept, the newest first, one a line: the time,
the zookie, by which "pemba schema read --at" shows it, the size in bytes, on whose
behalf it was written (- where that was not recorded), and the metadata.`,
		Example: "  pemba schema versions\n  pemba schema versions --limit 1 -o json",
		Args:    noArguments,
	}
	conn.addFlags(cmd)
	addLimit(cmd, &limit)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return conn.call(cmd, func(ctx ctx, c *client.Client) error {
			var rows []row
			shown := uint32(0)
			for v, err := range c.ListSchemaVersions(ctx) {
				if err != nil {
					return errors.Join(printTable(cmd, rows), err)
				}
				metadata, err := metadataJSON(v.GetMetadata())
				if err != nil {
					return err
				}
				if conn.json() {
					err = printJSON(cmd, struct {
						Time     string          `json:"time"`
						Zookie   string          `json:"zookie"`
						Size     uint32          `json:"size"`
						Actor    string          `json:"recorded_actor,omitempty"`
						Metadata json.RawMessage `json:"metadata,omitempty"`
					}{timeText(v.GetInstant()), v.GetWrittenAt().GetToken(), v.GetSize(), v.GetRecordedActor(), metadata})
					if err != nil {
						return err
					}
				} else {
					actor := v.GetRecordedActor()
					if actor == "" {
						actor = "-"
					}
					rows = append(rows, row{
						timeText(v.GetInstant()), v.GetWrittenAt().GetToken(), fmt.Sprintf("%d bytes", v.GetSize()), actor, string(metadata),
					})
				}
				if shown++; shown == limit {
					break
				}
			}
			return printTable(cmd, rows)
		})
	}
	return cmd
}

func newSchemaRead() *cobra.Command {
	var conn connection
	var state consistency
	cmd := &cobra.Command{
		Use:     "read",
		Short:   "Print the store's schema, as it is or as it was",
		Example: "  pemba schema read\n  pemba schema read --as-of 30d",
		Args:    noArguments,
	}
	conn.addFlags(cmd)
	state.addFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return conn.call(cmd, func(ctx ctx, c *client.Client) error {
			answer, err := c.Schemas.ReadSchema(ctx, &pembav1.ReadSchemaRequest{Store: conn.store, Consistency: state.message()})
			if err != nil {
				return err
			}
			if conn.json() {
				return printJSON(cmd, struct {
					Schema    string `json:"schema"`
					WrittenAt string `json:"written_at"`
					Zookie    string `json:"zookie"`
				}{answer.GetSchema(), answer.GetWrittenAt().GetToken(), answer.GetReadAt().GetToken()})
			}
			text := answer.GetSchema()
			if text == "" || text[len(text)-1] != '\n' {
				text += "\n"
			}
			return printf(cmd, "%s", text)
		})
	}
	return cmd
}

func newSchemaCheck() *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:     "check FILE",
		Short:   "Say whether a file is a correct schema, without a server",
		Example: "  pemba schema check schema.pemba\n  pemba schema check schema.pemba -o json",
		Args:    arguments(1, 1, "FILE"),
	}
	out.addFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		_, compiled, err := compileSchema(cmd, args[0])
		if !out.json() {
			if err != nil {
				return err
			}
			return printf(cmd, "%s: correct; definitions: %d, caveats: %d\n", args[0], len(compiled.Definitions), len(compiled.Caveats))
		}
		if err != nil && !isMistake(err) {
			return err
		}
		j := struct {
			File        string        `json:"file"`
			Correct     bool          `json:"correct"`
			Definitions int           `json:"definitions,omitempty"`
			Caveats     int           `json:"caveats,omitempty"`
			Mistakes    []mistakeJSON `json:"mistakes,omitempty"`
		}{File: args[0], Correct: err == nil}
		if err == nil {
			j.Definitions, j.Caveats = len(compiled.Definitions), len(compiled.Caveats)
			return printJSON(cmd, j)
		}
		j.Mistakes = newMistakesJSON(err)
		if err := printJSON(cmd, j); err != nil {
			return err
		}
		return fmt.Errorf("%s: mistakes: %d", args[0], len(j.Mistakes))
	}
	return cmd
}

func newSchemaFormat() *cobra.Command {
	var write bool
	var out output
	cmd := &cobra.Command{
		Use:     "format FILE",
		Short:   "Print a schema in canonical layout, without a server",
		Example: "  pemba schema format schema.pemba\n  pemba schema format --write schema.pemba",
		Args:    arguments(1, 1, "FILE"),
	}
	cmd.Flags().BoolVarP(&write, "write", "w", false, "change the file instead of printing")
	out.addFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if write && args[0] == "-" {
			return fmt.Errorf("--write: the standard input cannot be changed; name a file")
		}
		text, err := readInput(cmd, args[0], schema.SourceBytesMax)
		if err != nil {
			return err
		}
		file, err := schema.Parse(args[0], string(text))
		if err != nil {
			return err
		}
		formatted := schema.Format(file)
		changed := formatted != string(text)
		if write && changed {
			if err := replaceFile(args[0], formatted); err != nil {
				return err
			}
		}
		shown := formatted
		if write {
			shown = ""
		}
		if out.json() {
			return printJSON(cmd, struct {
				File    string `json:"file"`
				Changed bool   `json:"changed"`
				Schema  string `json:"schema,omitempty"`
			}{args[0], changed, shown})
		}
		return printf(cmd, "%s", shown)
	}
	return cmd
}

// replaceFile changes a file's content so that a crash leaves the old or the new
// one. The mode stays.
func replaceFile(name, content string) (err error) {
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".pemba-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // The first error is the one to tell.
		}
	}()
	_, err = f.WriteString(content)
	if err == nil {
		err = f.Chmod(info.Mode())
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

func newSchemaDiff() *cobra.Command {
	var conn connection
	var from, to string
	cmd := &cobra.Command{
		Use:   "diff [FILE] [NEWER]",
		Short: "List what differs between schemas of the store, and files",
		Long: `Diff lists, one a line, what would change if FILE were written to the store, and
which permissions would mean something else by it. --from compares FILE with the
schema that the store had at a zookie; --to compares two schemas of the store, and
there is no FILE. With two files it asks no server and lists what leads from the
first to the second. Nothing is printed when they mean the same.`,
		Example: "  pemba schema diff schema.pemba\n  pemba schema diff old.pemba new.pemba\n  pemba schema diff --from $OLD --to $NEW",
		Args:    arguments(0, 2, "[FILE] [NEWER]"),
	}
	conn.addFlags(cmd)
	cmd.Flags().StringVar(&from, "from", "", "compare with the schema that the store had at this `zookie`, instead of the newest")
	cmd.Flags().StringVar(&to, "to", "", "compare the schema that the store had at this `zookie`, instead of FILE")
	before(cmd, func() error { return needTexts(cmd, "from", "to") })
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 2 {
			if from+to != "" {
				return errors.New("--from and --to do not go with two files")
			}
			return diffFiles(cmd, &conn, args[0], args[1])
		}
		r := &pembav1.DiffSchemaRequest{Store: conn.store}
		if from != "" {
			r.From = &pembav1.DiffSchemaRequest_FromZookie{FromZookie: &pembav1.Zookie{Token: from}}
		}
		switch {
		case len(args) == 1 && to != "":
			return errors.New("FILE and --to exclude each other")
		case len(args) == 0 && to == "":
			return errors.New("there is nothing to compare; give a FILE, or --to with a zookie")
		case to != "":
			r.To = &pembav1.DiffSchemaRequest_ToZookie{ToZookie: &pembav1.Zookie{Token: to}}
		default:
			file, compiled, err := compileSchema(cmd, args[0])
			if err != nil {
				return orZookie(args[0], err)
			}
			text := file.Source
			if hasImports(file) {
				text = schema.Print(compiled)
			}
			r.To = &pembav1.DiffSchemaRequest_ToSchema{ToSchema: text}
		}
		return conn.call(cmd, func(ctx ctx, c *client.Client) error {
			answer, err := c.Schemas.DiffSchema(ctx, r)
			if reason, _ := client.Reason(err); reason == "NO_SCHEMA" && from == "" && to == "" {
				// The store has none yet; all of the file would be new.
				r.From = &pembav1.DiffSchemaRequest_FromSchema{}
				answer, err = c.Schemas.DiffSchema(ctx, r)
			}
			if err != nil {
				return err
			}
			var changes []schemaDiffJSON
			for _, c := range answer.GetChanges() {
				changes = append(changes, newSchemaDiffJSON(c))
			}
			var affected []affectedJSON
			for _, a := range answer.GetAffected() {
				affected = append(affected, newAffectedJSON(a))
			}
			return printDiff(cmd, &conn, changes, affected)
		})
	}
	return cmd
}

// orZookie says of an error about a file that is not there what else may have been
// meant.
func orZookie(name string, err error) error {
	if _, statErr := os.Stat(name); name == "-" || !errors.Is(statErr, fs.ErrNotExist) {
		return err
	}
	return fmt.Errorf("%w; arguments are files, and zookies go by --from and --to", err)
}

// diffFiles compares by itself what two files hold, as the server does.
func diffFiles(cmd *cobra.Command, conn *connection, older, newer string) error {
	_, from, err := compileSchema(cmd, older)
	if err != nil {
		return orZookie(older, err)
	}
	_, to, err := compileSchema(cmd, newer)
	if err != nil {
		return orZookie(newer, err)
	}
	var changes []schemaDiffJSON
	for _, c := range schema.Diff(from, to) {
		j := schemaDiffJSON{c.Kind.String(), c.Definition, c.Caveat, c.Name, c.Old, c.New, c.String()}
		switch c.Kind {
		case schema.SubjectTypeAdded:
			j.New = c.Subject.String()
		case schema.SubjectTypeRemoved:
			j.Old = c.Subject.String()
		default: // Old and New say it all.
		}
		changes = append(changes, j)
	}
	var affected []affectedJSON
	for _, a := range schema.Affected(from, to) {
		affected = append(affected, affectedJSON{Permission: a.Definition + "#" + a.Permission, Rewritten: a.Rewritten})
	}
	return printDiff(cmd, conn, changes, affected)
}

func printDiff(cmd *cobra.Command, conn *connection, changes []schemaDiffJSON, affected []affectedJSON) error {
	for _, c := range changes {
		var err error
		if conn.json() {
			err = printJSON(cmd, c)
		} else {
			err = printf(cmd, "%s\n", c.Text)
		}
		if err != nil {
			return err
		}
	}
	if !conn.json() {
		return printAffected(cmd, affected)
	}
	for _, a := range affected {
		if err := printJSON(cmd, struct {
			Kind string `json:"kind"`
			affectedJSON
		}{"permission affected", a}); err != nil {
			return err
		}
	}
	return nil
}

func newSchemaLint() *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "lint FILE",
		Short: "Warn of what compiles but is likely a mistake, without a server",
		Long: `Lint prints a warning for each passage that compiles but is likely a mistake, and
fails if there is any. A comment "// pemba-ignore-warning: RULE" above a
statement switches a rule off for it.`,
		Example: "  pemba schema lint schema.pemba\n  pemba schema lint schema.pemba -o json",
		Args:    arguments(1, 1, "FILE"),
	}
	out.addFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		file, err := loadSchema(cmd, args[0])
		if err != nil {
			return err
		}
		// What Lint has a rule for is no error here.
		compiled, err := schema.CheckWith(file, schema.Strictness{UnusedPartials: true})
		if err != nil {
			return placeErrors(args[0], err)
		}
		if err := engine.Storable(compiled); err != nil {
			return err
		}
		warnings := schema.Lint(file)
		for _, w := range warnings {
			if args[0] != "-" {
				w.File = filepath.Join(filepath.Dir(args[0]), w.File)
			}
			if out.json() {
				err = printJSON(cmd, mistakeJSON{File: w.File, Line: w.Pos.Line, Column: w.Pos.Column, Rule: w.Rule, Message: w.Msg})
			} else {
				err = printf(cmd, "%s\n", printable(w.String()))
			}
			if err != nil {
				return err
			}
		}
		if len(warnings) > 0 {
			return fmt.Errorf("%s: warnings: %d", args[0], len(warnings))
		}
		return nil
	}
	return cmd
}
