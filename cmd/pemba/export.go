package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/api/client"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

func newTupleExport() *cobra.Command {
	var e exporter
	cmd := &cobra.Command{
		Use:   "export [FILTER]",
		Short: "Write tuples, all of one revision, to a file or the standard output",
		Long: `Export writes the tuples that match a filter, without one all, as they are at one
revision, to the standard output or to the file of --out. It writes over no file.
The form follows from the name of the file (.txt, .csv, .jsonl or .ndjson) or from
--format, and is text if neither says it; "pemba tuple import" reads all three. An export that fails leaves no
file; one to a file says at its end how many tuples it holds.

` + filterForm,
		Example: "  pemba tuple export > tuples.txt\n  pemba tuple export --out tuples.csv\n  pemba tuple export document --as-of 24h --format jsonl",
		Args:    arguments(0, 1, "[FILTER]"),
	}
	e.connection.addFlags(cmd)
	e.consistency.addFlags(cmd)
	cmd.Flags().StringVar(&e.out, "out", "", "write to this `file`; one that exists is not written over")
	cmd.Flags().StringVar(&e.format, "format", "", "the `form` of the file: text, csv or jsonl")
	_ = cmd.MarkFlagFilename("out") // It only fails for a flag that is not there.
	addQuiet(cmd, &e.quiet)
	before(cmd, func() error { return needTexts(cmd, "out") })
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return e.run(cmd, strings.Join(args, "")) }
	return cmd
}

// An exporter holds the flags of tuple export.
type exporter struct {
	connection
	consistency
	out, format string
	quiet       bool
}

func (e *exporter) run(cmd *cobra.Command, filter string) (err error) {
	f, err := parseFilter(filter)
	if err != nil {
		return err
	}
	if e.format == "" && e.out == "" && e.json() {
		e.format = "jsonl"
	}
	form, err := tupleFormat(e.format, e.out)
	if err != nil {
		return err
	}
	if strings.ContainsAny(f.GetObjectType(), ".") {
		return fmt.Errorf("%q is a filter, and no type has a dot in it; to write to a file, use --out", filter)
	}
	return e.call(cmd, func(ctx ctx, c *client.Client) error {
		w := cmd.OutOrStdout()
		if e.out == "" {
			_, err := e.copy(ctx, cmd, c, f, form, w)
			return err
		}
		file, err := os.OpenFile(e.out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("--out %s: there is a file of that name, and an export writes over none; give another name, or remove it first", e.out)
		}
		if err != nil {
			return err
		}
		count, err := e.copy(ctx, cmd, c, f, form, file)
		if err := errors.Join(err, file.Close()); err != nil {
			_ = os.Remove(e.out) // Half an export is none; the first error is the one to tell.
			return err
		}
		if e.quiet {
			return nil
		}
		_, err = fmt.Fprintf(cmd.ErrOrStderr(), "exported %d tuples to %s\n", count, e.out)
		return err
	})
}

// copy asks for the tuples, writes them and says how many there were. What comes
// is received while what came before is written.
func (e *exporter) copy(ctx ctx, cmd *cobra.Command, c *client.Client, f *pembav1.TupleFilter, form string, w io.Writer) (int64, error) {
	p := startProgress(cmd, e.quiet)
	defer p.close()
	r := &pembav1.ExportTuplesRequest{Consistency: e.message(), Filter: f}
	if f.GetObjectId() == "" && f.GetObjectIdPrefix() == "" && f.GetSubjectId() == "" && !e.quiet {
		// Other filters would cost as much to count as to export. The count is for
		// the progress alone: without it the export does as well.
		if answer, err := c.CountTuples(ctx, &pembav1.CountTuplesRequest{Consistency: r.Consistency, Filter: f}); err == nil {
			p.whole.Store(int64(answer.GetCount()))
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type received struct {
		tuples []*pembav1.Tuple
		err    error
	}
	parts := make(chan received, 8)
	go func() {
		defer close(parts)
		for answer, err := range c.ExportTuples(ctx, r) {
			select {
			case parts <- received{answer.GetTuples(), err}:
			case <-ctx.Done():
				// Either nobody takes any more, or the end of ctx is the error.
				return
			}
		}
	}()
	out, err := newTupleWriter(w, form)
	if err != nil {
		return 0, err
	}
	for part := range parts {
		if part.err != nil {
			return 0, errors.Join(part.err, out.flush())
		}
		for _, m := range part.tuples {
			t, err := api.ParseTupleMessage(m)
			if err != nil {
				return 0, err
			}
			if err := out.write(t); err != nil {
				return 0, err
			}
		}
		p.done.Add(int64(len(part.tuples)))
		p.part.Add(int64(len(part.tuples)))
	}
	return p.done.Load(), errors.Join(ctx.Err(), out.flush())
}
