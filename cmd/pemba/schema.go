package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/pembadb/pemba/api/client"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/schema"
)

func newSchema() *cobra.Command {
	return newGroup("schema", "Write, read and examine schemas",
		newSchemaWrite(), newSchemaRead(), newSchemaCheck(), newSchemaFormat(), newSchemaDiff(), newSchemaLint())
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
	root, err := os.OpenRoot(filepath.Dir(name))
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }() // It was only read.
	file, err := schema.Load(root.FS(), filepath.Base(name))
	return file, placeErrors(name, err)
}

// compileSchema reads and compiles a schema.
func compileSchema(cmd *cobra.Command, name string) (*schema.File, *schema.Schema, error) {
	file, err := loadSchema(cmd, name)
	if err != nil {
		return nil, nil, err
	}
	compiled, err := schema.Compile(file)
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
	cmd := &cobra.Command{
		Use:   "write FILE",
		Short: "Make a file the store's schema",
		Long: `Write makes the schema in FILE ("-" for the standard input) the store's. It is
refused when stored tuples would no longer fit. A file goes as it is written; one
with imports goes as one text in canonical form.`,
		Example: "  pemba schema write schema.pemba",
		Args:    arguments(1, 1, "FILE"),
	}
	conn.addFlags(cmd)
	by.addFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		metadata, err := parseJSONObject("metadata", by.metadata)
		if err != nil {
			return err
		}
		// What does not compile is better refused here, where imports and file
		// names are known.
		file, compiled, err := compileSchema(cmd, args[0])
		if err != nil {
			return err
		}
		text := file.Source
		if hasImports(file) {
			text = schema.Print(compiled)
		}
		return conn.call(cmd, func(ctx ctx, c *client.Client) error {
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

func newSchemaRead() *cobra.Command {
	var conn connection
	var state consistency
	cmd := &cobra.Command{
		Use:     "read",
		Short:   "Print the store's schema",
		Example: "  pemba schema read",
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
	return &cobra.Command{
		Use:     "check FILE",
		Short:   "Say whether a file is a correct schema, without a server",
		Example: "  pemba schema check schema.pemba",
		Args:    arguments(1, 1, "FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, compiled, err := compileSchema(cmd, args[0])
			if err != nil {
				return err
			}
			return printf(cmd, "%s: correct; definitions: %d, caveats: %d\n", args[0], len(compiled.Definitions), len(compiled.Caveats))
		},
	}
}

func newSchemaFormat() *cobra.Command {
	var write bool
	cmd := &cobra.Command{
		Use:     "format FILE",
		Short:   "Print a schema in canonical layout, without a server",
		Example: "  pemba schema format schema.pemba\n  pemba schema format --write schema.pemba",
		Args:    arguments(1, 1, "FILE"),
	}
	cmd.Flags().BoolVarP(&write, "write", "w", false, "change the file instead of printing")
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
		if !write {
			return printf(cmd, "%s", formatted)
		}
		if formatted == string(text) {
			return nil
		}
		return replaceFile(args[0], formatted)
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
	cmd := &cobra.Command{
		Use:   "diff FILE [NEWER]",
		Short: "List what differs between the store's schema and a file, or two files",
		Long: `Diff lists, one a line, what would change if FILE were written to the store. With
two files it asks no server and lists what leads from the first to the second.
Nothing is printed when they mean the same.`,
		Example: "  pemba schema diff schema.pemba\n  pemba schema diff old.pemba new.pemba",
		Args:    arguments(1, 2, "FILE [NEWER]"),
	}
	conn.addFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		_, newer, err := compileSchema(cmd, args[len(args)-1])
		if err != nil {
			return err
		}
		var older *schema.Schema
		if len(args) == 2 {
			if _, older, err = compileSchema(cmd, args[0]); err != nil {
				return err
			}
			return printDiff(cmd, &conn, older, newer)
		}
		return conn.call(cmd, func(ctx ctx, c *client.Client) error {
			older, err := storedSchema(ctx, c, conn.store)
			if err != nil {
				return err
			}
			return printDiff(cmd, &conn, older, newer)
		})
	}
	return cmd
}

// storedSchema compiles the schema of a store; where there is none it is empty.
func storedSchema(ctx ctx, c *client.Client, store string) (*schema.Schema, error) {
	answer, err := c.Schemas.ReadSchema(ctx, &pembav1.ReadSchemaRequest{Store: store})
	if reason, _ := client.Reason(err); reason == "NO_SCHEMA" {
		return schema.New(nil, nil)
	}
	if err != nil {
		return nil, err
	}
	file, err := schema.Parse("the store's schema", answer.GetSchema())
	if err != nil {
		return nil, err
	}
	return schema.Compile(file)
}

func printDiff(cmd *cobra.Command, conn *connection, older, newer *schema.Schema) error {
	for _, c := range schema.Diff(older, newer) {
		var err error
		if conn.json() {
			err = printJSON(cmd, struct {
				Kind       string `json:"kind"`
				Definition string `json:"definition,omitempty"`
				Caveat     string `json:"caveat,omitempty"`
				Name       string `json:"name,omitempty"`
				Old        string `json:"old,omitempty"`
				New        string `json:"new,omitempty"`
				Text       string `json:"text"`
			}{c.Kind.String(), c.Definition, c.Caveat, c.Name, c.Old, c.New, c.String()})
		} else {
			err = printf(cmd, "%s\n", c)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func newSchemaLint() *cobra.Command {
	return &cobra.Command{
		Use:   "lint FILE",
		Short: "Warn of what compiles but is likely a mistake, without a server",
		Long: `Lint prints a warning for each passage that compiles but is likely a mistake, and
fails if there is any. A comment "// pemba-ignore-warning: RULE" above a
statement switches a rule off for it.`,
		Example: "  pemba schema lint schema.pemba",
		Args:    arguments(1, 1, "FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			file, _, err := compileSchema(cmd, args[0])
			if err != nil {
				return err
			}
			warnings := schema.Lint(file)
			for _, w := range warnings {
				if args[0] != "-" {
					w.File = filepath.Join(filepath.Dir(args[0]), w.File)
				}
				if err := printf(cmd, "%s\n", w); err != nil {
					return err
				}
			}
			if len(warnings) > 0 {
				return fmt.Errorf("%s: warnings: %d", args[0], len(warnings))
			}
			return nil
		},
	}
}
