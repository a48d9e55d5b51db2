package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pembadb/pemba/api/client"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

func newTupleImport() *cobra.Command {
	var i importer
	cmd := &cobra.Command{
		Use:   "import FILE|-",
		Short: "Write the tuples of a file, all at one revision or none",
		Long: `Import writes the tuples in FILE ("-" for the standard input). All of them become
visible at one revision, or none does, up to as many as the server allows
(10,000,000 unless it was started otherwise). What is there already is kept, and
gets the caveat and expiration of the file; with --create it is an error.

An import that is cut off, or that meets a server which is too busy, says by which
--import-id the same file can be imported from where it was. It is forgotten when
nobody goes on with it for 24 hours; by --abort --import-id ID at once, as are all
of the store by --abort --all. One that is refused is forgotten at once, unless
--import-id names it.

A server whose --limit-request-bytes is below 512 KiB may take only smaller messages;
then --chunk-bytes says how large they may be, and the refusal names the number. It is
given again with --import-id.

With --batches the tuples are written in batches, each at a revision of its own;
what came before a failure stays. Importing a file again changes nothing but
tuples whose expiration is over.

The form follows from the name, or from --format:
  .csv    a heading with the columns ` + strings.Join(tupleColumns, ", ") + `,
          of which all but the first five may be missing
  .jsonl  one JSON object a line, with the same names; .ndjson too
  .txt    one tuple a line as text; blank lines and lines that begin with # or //
          are skipped; likewise a name without an ending, and the standard input

` + tupleForm,
		Example: "  pemba tuple import tuples.txt\n  pemba tuple export --format csv | pemba tuple import --format csv --addr 127.0.0.1:50061 -\n  pemba tuple import --abort --import-id readers-1",
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if i.abort && len(args) > 0 {
			return fmt.Errorf("--abort takes no file, and %q was given", args[0])
		}
		if i.abort {
			return nil
		}
		return arguments(1, 1, "FILE|-")(cmd, args)
	}
	i.addFlags(cmd)
	i.by.addFlags(cmd)
	cmd.Flags().BoolVar(&i.create, "create", false, "fail if one of the tuples is there already")
	cmd.Flags().BoolVar(&i.batches, "batches", false, "write in batches, each at a revision of its own")
	cmd.Flags().StringVar(&i.id, "import-id", "", "go on with the import of this `id`, or name a new one so")
	cmd.Flags().StringVar(&i.format, "format", "", "the `form` of the file: text, csv or jsonl")
	cmd.Flags().BoolVar(&i.abort, "abort", false, "forget the import of --import-id, of which nothing can be seen, and import nothing")
	cmd.Flags().BoolVar(&i.all, "all", false, "with --abort, forget all imports of the store that are not committed, also those that others are at")
	addQuiet(cmd, &i.quiet)
	addChunkBytes(cmd, &i.chunkBytes)
	before(cmd, func() error {
		switch {
		case i.all && !i.abort:
			return errors.New("--all goes with --abort")
		case i.all && i.id != "":
			return errors.New("--all and --import-id exclude each other")
		case i.abort && !i.all && i.id == "":
			return errors.New("--abort needs the --import-id of what is to be forgotten, or --all")
		}
		for _, name := range []string{"create", "batches", "format", "recorded-actor", "metadata", "chunk-bytes"} {
			if i.abort && cmd.Flags().Changed(name) {
				return fmt.Errorf("--abort and --%s exclude each other", name)
			}
		}
		if i.batches && i.id != "" {
			return errors.New("--batches and --import-id exclude each other: what is imported in batches can be imported again")
		}
		return needTexts(cmd, "import-id")
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if i.abort {
			return i.forget(cmd)
		}
		return i.run(cmd, args[0])
	}
	return cmd
}

// addChunkBytes adds the flag of commands that import.
func addChunkBytes(cmd *cobra.Command, size *int) {
	cmd.Flags().IntVar(size, "chunk-bytes", 0, "how many `bytes` a message of tuples may have, but for one tuple that needs more; 0 for 512 KiB")
	before(cmd, func() error {
		if *size < 0 || *size > client.ChunkBytesMax {
			return fmt.Errorf("--chunk-bytes %d: 1 to %d are allowed, and 0 for %d KiB", *size, client.ChunkBytesMax, client.ChunkBytesMax>>10)
		}
		return nil
	})
}

// An importer holds the flags of tuple import.
type importer struct {
	connection
	by              change
	create, batches bool
	abort, all      bool
	id, format      string
	quiet           bool
	chunkBytes      int

	cmd  *cobra.Command
	file string // empty for the standard input

	// committing says that everything was handed over and the commit asked for.
	committing bool
}

// forget makes the server forget the import of the given id, or all.
func (i *importer) forget(cmd *cobra.Command) error {
	return i.call(cmd, func(ctx ctx, c *client.Client) error {
		answer, err := c.Tuples.AbortImport(ctx, &pembav1.AbortImportRequest{Store: i.store, ImportId: i.id, All: i.all})
		if err != nil {
			return err
		}
		if i.json() {
			return printJSON(cmd, map[string]uint32{"aborted": answer.GetAborted()})
		}
		return printf(cmd, "forgotten imports: %d\n", answer.GetAborted())
	})
}

func (i *importer) run(cmd *cobra.Command, name string) error {
	i.cmd = cmd
	form, err := tupleFormat(i.format, name)
	if err != nil {
		return err
	}
	metadata, err := parseJSONObject("metadata", i.by.metadata)
	if err != nil {
		return err
	}
	config := client.ImportConfig{Store: i.store, Batches: i.batches, Create: i.create, ID: i.id, RecordedActor: i.by.actor, ChunkBytes: i.chunkBytes}
	if metadata != nil {
		config.Metadata = metadata.AsMap()
	}
	if config.ID == "" && !i.batches {
		config.ID = client.NewImportID()
	}
	in, whole := cmd.InOrStdin(), int64(0)
	shown := "standard input"
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }() // It was only read.
		info, err := f.Stat()
		if err != nil {
			return err
		}
		in, shown, i.file = f, name, name
		if info.Mode().IsRegular() {
			whole = info.Size()
		}
	}
	return i.call(cmd, func(ctx ctx, c *client.Client) error {
		p := startProgress(cmd, i.quiet)
		p.whole.Store(whole)
		answer, before, err := i.copy(ctx, c, config, countingReader{in, p}, form, shown, p)
		p.close()
		if err != nil {
			return err
		}
		if i.json() {
			return printJSON(cmd, struct {
				Imported uint64 `json:"imported"`
				Changed  uint64 `json:"changed"`
				// DoneBefore says that all was visible before this command began; the
				// rest is what came of it then.
				DoneBefore bool   `json:"done_before,omitempty"`
				Zookie     string `json:"zookie,omitempty"`
			}{answer.GetTuples(), answer.GetChanged(), before != nil, cmp.Or(before, answer.GetWrittenAt()).GetToken()})
		}
		if before != nil {
			return printf(cmd, "was done before, and nothing was written now: imported %d, changed %d, zookie %s\n",
				answer.GetTuples(), answer.GetChanged(), before.GetToken())
		}
		if answer.GetTuples() == 0 {
			return printf(cmd, "imported 0, there are no tuples in %s\n", shown)
		}
		return printf(cmd, "imported %d, changed %d, zookie %s\n", answer.GetTuples(), answer.GetChanged(), answer.GetWrittenAt().GetToken())
	})
}

// A parsed part of a file: tuples, or the error behind them.
type parsedPart struct {
	tuples []tupleLine
	err    error
}

// importPart is how many tuples are parsed before they are given on.
const importPart = 512

// copy reads tuples and sends them. One goroutine reads and parses, this one
// fills chunks, and that of the client encodes and sends them. before is where an
// earlier command with the same id had done it, nil if none had.
func (i *importer) copy(
	ctx ctx, c *client.Client, config client.ImportConfig, in io.Reader, form, name string, p *progress,
) (answer *pembav1.ImportTuplesResponse, before *pembav1.Zookie, err error) {
	im, err := c.Import(ctx, config)
	if err != nil {
		return nil, nil, err
	}
	defer im.Cancel()
	reading, stop := context.WithCancel(ctx)
	defer stop()
	parts := make(chan parsedPart, 4)
	go parse(reading, in, form, parts)
	var lines lineMap
	// failed explains an error, by the line where it is known, and says what is
	// left of the import.
	failed := func(err error) error {
		at := ""
		var refused *client.ImportError
		if errors.As(err, &refused) {
			if line, ok := lines.line(refused.Number); ok {
				at = fmt.Sprintf("%d:", line)
			}
		} else if line := i.find(ctx, form, err); line > 0 {
			at = fmt.Sprintf("%d:", line)
		}
		return fmt.Errorf("%s:%s %s%s", name, at, explainImport(i.cmd, err), i.left(c, im, config, err))
	}
	for {
		var part parsedPart
		var more bool
		select {
		case part, more = <-parts:
		case <-ctx.Done():
			// A standard input that says nothing must not keep anybody waiting.
			return nil, nil, failed(context.Cause(ctx))
		}
		if !more {
			break
		}
		for n := range part.tuples {
			t := &part.tuples[n]
			lines.add(t.line)
			if err := im.Add(t.Tuple); err != nil {
				return nil, nil, failed(err)
			}
		}
		p.done.Add(int64(len(part.tuples)))
		if part.err != nil {
			return nil, nil, fmt.Errorf("%s:%w%s", name, part.err, i.left(c, im, config, part.err))
		}
	}
	if lines.count == 0 {
		if im.Known() > 0 {
			return nil, nil, fmt.Errorf("%s: it holds no tuples, and the import %s began with some; use another --import-id", name, config.ID)
		}
		return &pembav1.ImportTuplesResponse{}, nil, nil
	}
	p.last.Store(!i.batches)
	i.committing = true
	if answer, err = im.Commit(); err != nil {
		return nil, nil, failed(err)
	}
	return answer, im.DoneBefore(), nil
}

// parse sends what is read to parts, and closes it at the end, after an error, or
// when ctx ends.
func parse(ctx ctx, in io.Reader, form string, parts chan<- parsedPart) {
	defer close(parts)
	send := func(part parsedPart) bool {
		select {
		case parts <- part:
			return true
		case <-ctx.Done():
			return false
		}
	}
	tuples := make([]tupleLine, 0, importPart)
	for t, err := range readTupleLines(in, form) {
		if err != nil {
			send(parsedPart{tuples, err})
			return
		}
		if tuples = append(tuples, t); len(tuples) == importPart {
			if !send(parsedPart{tuples: tuples}) {
				return
			}
			tuples = make([]tupleLine, 0, importPart)
		}
	}
	send(parsedPart{tuples: tuples})
}

// findBytesMax bounds the files in which a tuple is looked for.
const findBytesMax = 256 << 20

// find returns the line of the tuple that exists already and was to be created,
// zero when it is not to be found. The server finds it when all are there, and
// names it; nobody keeps them here, so that the file is read once more.
func (i *importer) find(ctx ctx, form string, err error) int {
	reason, metadata := client.Reason(err)
	if reason != engine.AlreadyExists.String() || metadata["tuple"] == "" || i.file == "" {
		return 0
	}
	// That it cannot be read again is not what failed.
	f, err := os.Open(i.file)
	if err != nil {
		return 0
	}
	defer func() { _ = f.Close() }() // It was only read.
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() || info.Size() > findBytesMax {
		return 0
	}
	for t, err := range readTupleLines(f, form) {
		if err != nil || ctx.Err() != nil {
			return 0
		}
		bare := graph.Tuple{Object: t.Object, Relation: t.Relation, Subject: t.Subject}
		if bare.String() == metadata["tuple"] {
			return t.line
		}
	}
	return 0
}

// explainImport is what the server says of a refused tuple, without the numbers
// that it has within a message, and that has within the import: there is its line.
func explainImport(cmd *cobra.Command, err error) string {
	text := explainError(cmd, err)
	if errors.Is(err, client.ErrImportMismatch) { // What is left says by which flag.
		text = strings.TrimSuffix(text, "; "+client.ErrImportMismatch.Error())
	}
	reason, metadata := reasonOf(err)
	if reason == requestTooLarge {
		return withSmallerChunks(cmd, text, metadata)
	}
	var refused *client.ImportError
	if !errors.As(err, &refused) {
		return text
	}
	for _, d := range status.Convert(refused.Err).Details() {
		if bad, ok := d.(*errdetails.BadRequest); ok && len(bad.GetFieldViolations()) > 0 {
			text = inCommandWords(cmd, withoutChunk(bad.GetFieldViolations()[0].GetDescription(), metadata), reason, metadata) + " (" + reason + ")"
		}
	}
	return withoutChunk(text, metadata)
}

// withSmallerChunks says how an import gets through that had too large a message.
func withSmallerChunks(cmd *cobra.Command, text string, metadata map[string]string) string {
	at := strings.Index(text, raiseLimit)
	if at < 0 {
		return text
	}
	advice := "it holds one tuple alone, or what an import begins with, and cannot be smaller; "
	if metadataTooLarge(cmd, metadata) {
		advice = "it holds --metadata, which cannot be cut; make that smaller, or "
	} else if size, ok := smallerChunks(cmd, metadata); ok {
		advice = fmt.Sprintf("send smaller ones with --chunk-bytes %d, or ", size)
	}
	return text[:at] + advice + text[at:]
}

// smallerChunks returns the --chunk-bytes by which an import gets through that had too
// large a message; not where more than one tuple would have been cut to that size, so
// that none helps. It is less than the size that the import had.
func smallerChunks(cmd *cobra.Command, metadata map[string]string) (int, bool) {
	limit, err := strconv.Atoi(metadata["limit"])
	given, flagErr := cmd.Flags().GetInt("chunk-bytes")
	return limit, err == nil && flagErr == nil && limit > 0 && limit < cmp.Or(given, client.ChunkBytesMax)
}

// metadataTooLarge reports whether a server that refused a message for its size can take
// none with the --metadata of the command, which goes in the first message, before all
// tuples. The names of store and import are left out of account.
func metadataTooLarge(cmd *cobra.Command, metadata map[string]string) bool {
	limit, err := strconv.Atoi(metadata["limit"])
	_, size := largestFlag(cmd)
	actor := ""
	if flag := cmd.Flags().Lookup("recorded-actor"); flag != nil {
		actor = flag.Value.String()
	}
	return err == nil && size > 0 && size+len(actor) > limit
}

// withoutChunk takes the number of a message off what the server says of it.
func withoutChunk(text string, metadata map[string]string) string {
	if strings.HasPrefix(text, "chunk "+metadata["chunk"]) {
		_, text, _ = strings.Cut(text, ": ")
	}
	return text
}

// An importEnd is how an import failed.
type importEnd int

const (
	// importRefused: the same import would fail again.
	importRefused importEnd = iota
	// importHindered: the same import may succeed later, from where it is.
	importHindered
	// importUncertain: it was to become visible, and may have.
	importUncertain
)

// passing are the reasons of a server that go by. A key that it does not take may
// be mended, and it forgets nothing for that key.
var passing = []string{
	"RATE_LIMITED", "TOO_BUSY", "DISK_FULL", "CLIENT_STALLED", "TOO_MANY_STREAMS",
	"NOT_LEADER", "SHUTTING_DOWN", "NODE_FAILED", "REVISION_AHEAD", "OUTCOME_UNKNOWN",
	"DEADLINE_EXCEEDED", "CANCELED", "KEY_MISSING", "KEY_INVALID",
}

// endOfImport tells how an import failed. committing says that all was handed over,
// and the commit asked for. Where there is a reason it decides: codes are shared by
// what goes by and what does not.
func endOfImport(err error, committing bool) importEnd {
	end := importRefused
	reason, _ := client.Reason(err)
	code := codes.OK
	var network interface{ GRPCStatus() *status.Status }
	if errors.As(err, &network) {
		code = network.GRPCStatus().Code()
	}
	switch {
	case slices.Contains(passing, reason):
		end = importHindered
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		end = importHindered
	case reason == "" && slices.Contains([]codes.Code{codes.Unavailable, codes.Canceled, codes.DeadlineExceeded, codes.Internal, codes.Unknown}, code):
		end = importHindered // The connection was lost, in one way or another.
	}
	if !committing {
		return end
	}
	// Of these codes a server gives what it knows not to have done too, but for few
	// reasons, and what it does not know as well.
	switch code {
	case codes.Unavailable, codes.Canceled, codes.DeadlineExceeded, codes.Internal, codes.DataLoss, codes.Unknown:
		return importUncertain
	case codes.OK:
		if end == importHindered {
			return importUncertain // This side has ended before the answer came.
		}
	default: // A refusal is an answer: nothing was done.
	}
	return end
}

// left says what a failed import leaves behind, and forgets what is of no use any
// more: what nobody can go on with counts as staged for a day. An import that the
// user named stays, whatever it failed by: the file may be mended.
func (i *importer) left(c *client.Client, im *client.Import, config client.ImportConfig, err error) string {
	if i.batches {
		im.Cancel()
		return leftOfBatches(err)
	}
	end := endOfImport(err, i.committing)
	reason, metadata := reasonOf(err)
	// What is there under the ID is another import: it is neither gone on with nor
	// forgotten.
	if reason == engine.StageMismatch.String() || errors.Is(err, client.ErrImportMismatch) {
		im.Cancel()
		return "; nothing of this was imported; use another --import-id, or the file and the --chunk-bytes that it was begun with"
	}
	// The context of the command may have ended, and this is short.
	ctx, cancel := context.WithTimeout(context.Background(), forgetPatience)
	defer cancel()
	drop := "\"" + commandAgain(i.cmd, "key", "import-id", "create", "format", "recorded-actor", "metadata", "quiet", "chunk-bytes") +
		" --abort --import-id " + config.ID + "\""
	switch {
	case end == importUncertain:
		im.Cancel()
		return "; whether it is visible is not known; the same command with --import-id " + config.ID + " finishes it, or says that it was"
	case i.id == "" && end == importRefused:
		if err := im.Forget(ctx); err != nil {
			return "; nothing was imported; what the server has of it is forgotten in some time, or by " + drop
		}
		return "; nothing was imported"
	}
	im.Cancel()
	// A refusal of the first chunk leaves nothing to go on with. After any other
	// failure the server may still be at work on what it was sent.
	if reason != "" && !known(ctx, c, config) {
		if end == importHindered {
			return "; nothing was imported; the same command may succeed later"
		}
		return "; nothing was imported"
	}
	// Chunks of another size do not go with those that are there.
	if reason == engine.StageStale.String() || reason == requestTooLarge && !metadataTooLarge(i.cmd, metadata) {
		return "; nothing can be seen of it; begin again after " + drop
	}
	if config.ChunkBytes > 0 {
		return fmt.Sprintf("; nothing can be seen of it; go on with --import-id %s --chunk-bytes %d", config.ID, config.ChunkBytes)
	}
	return "; nothing can be seen of it; go on with --import-id " + config.ID
}

// leftOfBatches says what a failed import in batches wrote. The server tells how
// many tuples it had written before a batch that it fails at. Nobody tells when it
// was this side that failed, or the connection.
func leftOfBatches(err error) string {
	_, metadata := client.Reason(err)
	written, told := metadata["written_tuples"]
	// Each batch is a commit of its own, of which the outcome may be unknown.
	uncertain := endOfImport(err, true) == importUncertain
	switch {
	case !told:
		return "; earlier batches, if there were any, may have been written"
	case written == "0" && uncertain:
		return "; the first batch may have been written"
	case written == "0":
		return "; nothing was imported"
	case uncertain:
		return "; imported " + written + ", in earlier batches; the next one may have been written too"
	}
	return "; imported " + written + ", in earlier batches"
}

// known reports whether a server has anything of an import. When it does not say so
// it may have.
func known(ctx ctx, c *client.Client, config client.ImportConfig) bool {
	_, err := c.Tuples.GetImport(ctx, &pembav1.GetImportRequest{Store: config.Store, ImportId: config.ID})
	reason, _ := client.Reason(err)
	return reason != engine.StageUnknown.String()
}

// forgetPatience bounds how long a failed import is cleaned up.
const forgetPatience = 3 * time.Second

// A lineMap knows the lines of the last tuples that were read. The server can
// refuse none that came before them: so many are never on the way.
type lineMap struct {
	recent [64 << 10]int
	count  uint64
}

func (m *lineMap) add(line int) {
	m.recent[m.count%uint64(len(m.recent))] = line
	m.count++
}

// line returns the line of tuple number n.
func (m *lineMap) line(n uint64) (int, bool) {
	if n >= m.count || m.count-n > uint64(len(m.recent)) {
		return 0, false
	}
	return m.recent[n%uint64(len(m.recent))], true
}
