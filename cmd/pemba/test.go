package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pembadb/pemba/examples/assertion"
)

func newTest() *cobra.Command {
	return &cobra.Command{
		Use:   "test FILE|DIR...",
		Short: "Run assertion files, without a server",
		Long: `Test runs assertion files: a schema, tuples, and what must hold of them, and what
must not. Each runs in a graph of its own in memory. Of a folder it takes all
files that end in .yaml or .yml, those of its subfolders too.

The form is that of SpiceDB's validation files (schema or schemaFile,
relationships, assertions, validation), with tuplesFile beside relationships.
What does not hold is printed as FILE:LINE, and the command fails.`,
		Example: "  pemba test examples/securus\n  pemba test assertions.yaml",
		Args:    arguments(1, -1, "FILE|DIR..."),
		RunE:    runTest,
	}
}

func runTest(cmd *cobra.Command, args []string) error {
	var files []string
	for _, arg := range args {
		found, err := assertionFiles(arg)
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
			if err := printf(cmd, "%v\n", err); err != nil {
				return err
			}
			continue
		}
		failed += len(report.Failures)
		asked += report.Assertions + report.Relations
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
	return printf(cmd, "files: %d, expectations: %d, all hold\n", len(files), asked)
}

// assertionFiles returns the file, or those below the folder, of that name.
func assertionFiles(name string) ([]string, error) {
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
		if ext := strings.ToLower(filepath.Ext(path)); !d.IsDir() && (ext == ".yaml" || ext == ".yml") {
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s: the folder holds no .yaml or .yml file", name)
	}
	return files, nil
}

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
