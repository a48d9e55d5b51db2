package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/pembadb/pemba/examples/assertion"
)

func newTest() *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "test FILE|DIR...",
		Short: "Run assertion files, without a server",
		Long: `Test runs assertion files: a schema, tuples, and what must hold of them, and what
must not. Each runs in a graph of its own in memory. Of a folder it takes the
assertion files that end in .yaml or .yml, those of its subfolders too. Other
files of these names, which have no schema or nothing beside it, are named on the
standard error as skipped; a file that is named itself is always taken.

The form is that of SpiceDB's validation files (schema or schemaFile,
relationships, assertions, validation), with tuplesFile beside relationships.
What does not hold is printed as FILE:LINE, and the command fails. -o json gives an
object a line for each file.`,
		Example: "  pemba test examples/securus\n  pemba test assertions.yaml -o json",
		Args:    arguments(1, -1, "FILE|DIR..."),
	}
	out.addFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return runTest(cmd, &out, args) }
	return cmd
}

// A reportJSON is what came of one assertion file in the form of -o json.
type reportJSON struct {
	File       string        `json:"file"`
	OK         bool          `json:"ok"`
	Assertions int           `json:"assertions"`
	Relations  int           `json:"relations"`
	Failures   []mistakeJSON `json:"failures,omitempty"`
	// Error is why the file could not be run.
	Error string `json:"error,omitempty"`
}

func newReportJSON(name string, report *assertion.Report) reportJSON {
	j := reportJSON{File: name, OK: len(report.Failures) == 0, Assertions: report.Assertions, Relations: report.Relations}
	for _, f := range report.Failures {
		j.Failures = append(j.Failures, mistakeJSON{File: f.File, Line: f.Line, Message: f.Message})
	}
	return j
}

func runTest(cmd *cobra.Command, out *output, args []string) error {
	var files []string
	for _, arg := range args {
		found, err := assertionFiles(cmd, arg)
		if err != nil {
			return err
		}
		files = append(files, found...)
	}
	failed, asked := 0, 0
	for _, name := range files {
		report, err := testFile(cmd, name)
		if err != nil {
			failed++
			if out.json() {
				err = printJSON(cmd, reportJSON{File: name, Error: err.Error()})
			} else {
				err = printf(cmd, "%v\n", err)
			}
			if err != nil {
				return err
			}
			continue
		}
		failed += len(report.Failures)
		asked += report.Assertions + report.Relations
		if out.json() {
			if err := printJSON(cmd, newReportJSON(name, report)); err != nil {
				return err
			}
			continue
		}
		for _, f := range report.Failures {
			if err := printf(cmd, "%s\n", f); err != nil {
				return err
			}
		}
		verdict := "ok"
		if len(report.Failures) > 0 {
			verdict = "FAIL"
		}
		if err := printf(cmd, "%-4s %s: assertions: %d, expected relations: %d, failures: %d\n",
			verdict, name, report.Assertions, report.Relations, len(report.Failures)); err != nil {
			return err
		}
	}
	if failed > 0 {
		return fmt.Errorf("failures: %d, files: %d", failed, len(files))
	}
	if out.json() {
		return nil
	}
	return printf(cmd, "files: %d, expectations: %d, all hold\n", len(files), asked)
}

// assertionFiles returns the file of that name, or the assertion files below the
// folder, and names those that are skipped.
func assertionFiles(cmd *cobra.Command, name string) ([]string, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{name}, nil
	}
	var files []string
	err = filepath.WalkDir(name, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ext := strings.ToLower(filepath.Ext(path)); d.IsDir() || ext != ".yaml" && ext != ".yml" {
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if isAssertionFile(content) {
			files = append(files, path)
			return nil
		}
		_, err = fmt.Fprintf(cmd.ErrOrStderr(), "skipped %s: it is no assertion file\n", path)
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s: the folder holds no assertion file, which ends in .yaml or .yml and has a schema, and tuples or assertions", name)
	}
	return files, nil
}

// isAssertionFile reports whether a YAML file is meant for this command: it has a
// schema and something to do with it. One that is no YAML but has a line that
// begins with the key of a schema is meant too, and is better shown as wrong than
// passed over.
func isAssertionFile(content []byte) bool {
	var keys map[string]yaml.Node
	if err := yaml.Unmarshal(content, &keys); err != nil {
		return schemaLine.Match(content)
	}
	has := func(names ...string) bool {
		return slices.ContainsFunc(names, func(name string) bool { _, ok := keys[name]; return ok })
	}
	return has("schema", "schemaFile") && has("relationships", "tuplesFile", "assertions", "validation")
}

var schemaLine = regexp.MustCompile(`(?m)^(schema|schemaFile):`)

func testFile(cmd *cobra.Command, name string) (*assertion.Report, error) {
	file, err := assertion.Load(osFiles{}, filepath.ToSlash(name))
	if err != nil {
		return nil, err
	}
	return file.Run(cmd.Context(), time.Time{})
}

// osFiles opens files by the names they have on the command line, absolute ones
// and those with ".." too, which os.DirFS refuses. Errors then show the names as
// the user wrote them.
type osFiles struct{}

func (osFiles) Open(name string) (fs.File, error) { return os.Open(filepath.FromSlash(name)) }

func (osFiles) Sub(dir string) (fs.FS, error) { return os.DirFS(filepath.FromSlash(dir)), nil }
