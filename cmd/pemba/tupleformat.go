package main

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pembadb/pemba/graph"
)

// Tuples are written in three forms: as text, as CSV with a heading, and as one
// JSON object a line. The last two have the same names, those of tupleColumns.

// tupleColumns are the columns of CSV and the names of JSONL, in order.
var tupleColumns = []string{
	"object_type", "object_id", "relation", "subject_type", "subject_id", "subject_relation", "caveat", "context", "expires_at",
}

// tupleColumnsNeeded is how many of the columns a CSV file must have.
const tupleColumnsNeeded = 5

// A tupleRecord is a tuple as CSV and JSONL have it.
type tupleRecord struct {
	ObjectType      string          `json:"object_type"`
	ObjectID        string          `json:"object_id"`
	Relation        string          `json:"relation"`
	SubjectType     string          `json:"subject_type"`
	SubjectID       string          `json:"subject_id"`
	SubjectRelation string          `json:"subject_relation,omitempty"`
	Caveat          string          `json:"caveat,omitempty"`
	Context         json.RawMessage `json:"context,omitempty"`
	ExpiresAt       string          `json:"expires_at,omitempty"`
}

func newTupleRecord(t graph.Tuple) tupleRecord {
	return tupleRecord{
		ObjectType: t.Object.Type, ObjectID: t.Object.ID, Relation: t.Relation,
		SubjectType: t.Subject.Type, SubjectID: t.Subject.ID, SubjectRelation: t.Subject.Relation,
		Caveat: t.Caveat, Context: t.Context, ExpiresAt: t.ValidUntil.String(),
	}
}

func (r *tupleRecord) tuple() (graph.Tuple, error) {
	t := graph.Tuple{
		Object: graph.Object{Type: r.ObjectType, ID: r.ObjectID}, Relation: r.Relation,
		Subject: graph.Subject{Object: graph.Object{Type: r.SubjectType, ID: r.SubjectID}, Relation: r.SubjectRelation},
		Caveat:  r.Caveat,
	}
	var err error
	if len(r.Context) > 0 && !bytes.Equal(r.Context, []byte("null")) {
		if t.Context, err = graph.CanonicalContext([]byte(r.Context)); err != nil {
			return t, err
		}
	}
	if r.ExpiresAt != "" {
		at, err := time.Parse(time.RFC3339Nano, r.ExpiresAt)
		if err != nil {
			return t, fmt.Errorf("expires_at %q is no time like 2030-01-31T12:00:00Z", r.ExpiresAt)
		}
		if t.ValidUntil = graph.InstantOf(at); t.ValidUntil <= 0 {
			return t, fmt.Errorf("expires_at %q is not after 1970", r.ExpiresAt)
		}
	}
	return t, t.Validate()
}

// tupleFormat decides the form of a file by the flag, or else by its name. A name
// without an ending, such as that of the standard input, means text.
func tupleFormat(flag, name string) (string, error) {
	switch flag {
	case "text", "csv", "jsonl":
		return flag, nil
	case "":
	default:
		return "", fmt.Errorf("--format %s: text, csv and jsonl are allowed", flag)
	}
	switch strings.ToLower(filepath.Ext(name)) {
	case ".csv":
		return "csv", nil
	case ".jsonl", ".ndjson":
		return "jsonl", nil
	case ".json":
		return "", fmt.Errorf("%s: a file of one JSON value is no form of tuples; give --format jsonl for one with an object a line, or end its name in .jsonl", name)
	case ".txt", "":
		return "text", nil
	}
	return "", fmt.Errorf("%s: a name that ends in %s does not say the form; .txt, .csv, .jsonl and .ndjson do, and so does --format text, csv or jsonl", name, filepath.Ext(name))
}

// A tupleLine is a tuple with the line where it stands.
type tupleLine struct {
	graph.Tuple
	line int
}

// tupleLineBytesMax bounds one line: a tuple with the largest context needs less.
const tupleLineBytesMax = 1 << 20

// readTupleLines reads tuples of the given form as they come. After an error,
// which begins with the line's number, nothing follows.
func readTupleLines(r io.Reader, format string) iter.Seq2[tupleLine, error] {
	switch format {
	case "csv":
		return readTupleCSV(r)
	case "jsonl":
		return readLines(r, func(text []byte) (graph.Tuple, error) {
			var record tupleRecord
			if text[0] == '[' {
				return graph.Tuple{}, errors.New("it begins with [, and one JSON object a line is expected, without an array around them")
			}
			dec := json.NewDecoder(bytes.NewReader(text))
			dec.DisallowUnknownFields()
			if err := dec.Decode(&record); err != nil {
				return graph.Tuple{}, fmt.Errorf("it is not a JSON object with the names %s: %w", strings.Join(tupleColumns, ", "), err)
			}
			if _, err := dec.Token(); !errors.Is(err, io.EOF) {
				return graph.Tuple{}, errors.New("there is more behind the JSON object; one a line is allowed")
			}
			return record.tuple()
		})
	}
	return readLines(r, func(text []byte) (graph.Tuple, error) {
		if text[0] == '#' || bytes.HasPrefix(text, []byte("//")) {
			return graph.Tuple{}, errSkip
		}
		return graph.ParseTuple(string(text))
	})
}

// errSkip marks a line without a tuple.
var errSkip = errors.New("skip this line")

func readLines(r io.Reader, parse func(text []byte) (graph.Tuple, error)) iter.Seq2[tupleLine, error] {
	return func(yield func(tupleLine, error) bool) {
		scanner := bufio.NewScanner(r)
		scanner.Buffer(nil, tupleLineBytesMax)
		line := 0
		for scanner.Scan() {
			line++
			text := bytes.TrimSpace(scanner.Bytes())
			if line == 1 {
				text = bytes.TrimPrefix(text, []byte("\uFEFF"))
			}
			if len(text) == 0 {
				continue
			}
			t, err := parse(text)
			if errors.Is(err, errSkip) {
				continue
			}
			if err != nil {
				yield(tupleLine{}, fmt.Errorf("%d: %w", line, err))
				return
			}
			if !yield(tupleLine{t, line}, nil) {
				return
			}
		}
		if err := scanner.Err(); err != nil {
			if errors.Is(err, bufio.ErrTooLong) {
				err = fmt.Errorf("the line has more than %d bytes", tupleLineBytesMax)
			}
			yield(tupleLine{}, fmt.Errorf("%d: %w", line+1, err))
		}
	}
}

func readTupleCSV(r io.Reader) iter.Seq2[tupleLine, error] {
	return func(yield func(tupleLine, error) bool) {
		reader := csv.NewReader(r)
		reader.ReuseRecord = true
		heading, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return
		}
		var columns []int
		if err == nil {
			columns, err = csvColumns(heading)
		}
		if err != nil {
			yield(tupleLine{}, fmt.Errorf("1: %w", err))
			return
		}
		for {
			cells, err := reader.Read()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				var parse *csv.ParseError
				line := 0
				if errors.As(err, &parse) {
					line, err = parse.Line, parse.Err
				}
				if errors.Is(err, csv.ErrFieldCount) {
					err = fmt.Errorf("the row has %d fields, and the heading names %d; what is not there is left empty between its commas", len(cells), len(columns))
				}
				yield(tupleLine{}, fmt.Errorf("%d: %w", line, err))
				return
			}
			line, _ := reader.FieldPos(0)
			t, err := csvTuple(cells, columns)
			if err != nil {
				yield(tupleLine{}, fmt.Errorf("%d: %w", line, err))
				return
			}
			if !yield(tupleLine{t, line}, nil) {
				return
			}
		}
	}
}

// csvColumns finds out which of tupleColumns each column is.
func csvColumns(heading []string) ([]int, error) {
	columns := make([]int, len(heading))
	seen := make([]bool, len(tupleColumns))
	for i, name := range heading {
		name = strings.TrimSpace(strings.TrimPrefix(name, "\uFEFF"))
		n := slices.Index(tupleColumns, name)
		if n < 0 {
			return nil, fmt.Errorf("the heading names a column %q; allowed are %s", name, strings.Join(tupleColumns, ", "))
		}
		if seen[n] {
			return nil, fmt.Errorf("the heading names the column %q twice", name)
		}
		columns[i], seen[n] = n, true
	}
	for n, name := range tupleColumns[:tupleColumnsNeeded] {
		if !seen[n] {
			return nil, fmt.Errorf("the heading does not name the column %q; needed are %s", name, strings.Join(tupleColumns[:tupleColumnsNeeded], ", "))
		}
	}
	return columns, nil
}

func csvTuple(cells []string, columns []int) (graph.Tuple, error) {
	var values [9]string
	for i, cell := range cells {
		values[columns[i]] = cell
	}
	record := tupleRecord{
		ObjectType: values[0], ObjectID: values[1], Relation: values[2],
		SubjectType: values[3], SubjectID: values[4], SubjectRelation: values[5],
		Caveat: values[6], Context: json.RawMessage(values[7]), ExpiresAt: values[8],
	}
	return record.tuple()
}

// A tupleWriter writes tuples in one of the forms.
type tupleWriter struct {
	format string
	text   *bufio.Writer
	csv    *csv.Writer
	json   *json.Encoder
}

func newTupleWriter(w io.Writer, format string) (*tupleWriter, error) {
	buffered := bufio.NewWriterSize(w, 64<<10)
	out := &tupleWriter{format: format, text: buffered}
	switch format {
	case "csv":
		out.csv = csv.NewWriter(buffered)
		return out, out.csv.Write(tupleColumns)
	case "jsonl":
		out.json = json.NewEncoder(buffered)
		out.json.SetEscapeHTML(false)
	}
	return out, nil
}

func (w *tupleWriter) write(t graph.Tuple) error {
	switch w.format {
	case "csv":
		r := newTupleRecord(t)
		return w.csv.Write([]string{
			r.ObjectType, r.ObjectID, r.Relation, r.SubjectType, r.SubjectID, r.SubjectRelation, r.Caveat, string(r.Context), r.ExpiresAt,
		})
	case "jsonl":
		return w.json.Encode(newTupleRecord(t))
	}
	_, err := w.text.WriteString(t.String() + "\n")
	return err
}

func (w *tupleWriter) flush() error {
	if w.csv != nil {
		w.csv.Flush()
		if err := w.csv.Error(); err != nil {
			return err
		}
	}
	return w.text.Flush()
}
