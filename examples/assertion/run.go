package assertion

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// A Report is the outcome of one file.
type Report struct {
	File string
	// Assertions and Relations count what was asked: the assertions, and the
	// expected relations below "validation".
	Assertions int
	Relations  int
	// Failures are sorted by file and line; it is empty when everything holds.
	Failures []Failure
}

// A Failure is one expectation that does not hold.
type Failure struct {
	File    string
	Line    int
	Message string
}

// String returns "file:line: message".
func (f Failure) String() string { return fmt.Sprintf("%s:%d: %s", f.File, f.Line, f.Message) }

// tuplesAtOnce bounds how many tuples of a file are written by one mutation.
const tuplesAtOnce = 1000

// Run loads the file into a graph in memory and asks everything it expects, as
// of now; the zero time means the present. An expectation that does not hold,
// and a tuple that does not fit the schema, is a Failure. An error means that
// the questions could not be asked at all, ctx's end included.
func (f *File) Run(ctx context.Context, now time.Time) (report *Report, err error) {
	if now.IsZero() {
		now = time.Now()
	}
	db, err := graph.Open(graph.Config{FS: vfs.NewMem(), Dir: "graph"})
	if err != nil {
		return nil, fmt.Errorf("%s: open a graph in memory: %w", f.Name, err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()

	r := &runner{file: f, report: &Report{File: f.Name}, engine: engine.New(db, engine.Config{})}
	// The tuples are written at the epoch, so that one whose lifetime is over
	// may still stand in the file.
	written := graph.Instant(1)
	if err := r.apply(written, &graph.Mutation{Init: &graph.Init{ClusterID: [16]byte{1}}}); err != nil {
		return nil, err
	}
	if err := r.apply(written, &graph.Mutation{Store: graph.DefaultStore, Schema: &graph.WriteSchema{Text: f.schemaText}}); err != nil {
		return nil, err
	}
	if err := r.write(written); err != nil {
		return nil, err
	}
	if r.snapshot, err = r.engine.Snapshot(graph.DefaultStore, 0, graph.InstantOf(now), graph.Overlay{}); err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name, err)
	}
	defer r.snapshot.Close()
	for _, a := range f.assertions {
		if err := r.assert(ctx, a); err != nil {
			return nil, err
		}
	}
	for _, want := range f.relations {
		if err := r.expect(ctx, want); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(r.report.Failures, func(a, b Failure) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
	})
	return r.report, nil
}

// A runner holds the graph of one file while it is asked.
type runner struct {
	file     *File
	report   *Report
	engine   *engine.Engine
	snapshot *engine.Snapshot
	revision graph.Revision
}

func (r *runner) failf(file string, line int, format string, args ...any) {
	r.report.Failures = append(r.report.Failures, Failure{File: file, Line: line, Message: fmt.Sprintf(format, args...)})
}

// apply applies m at the next revision. A refusal is returned as an error.
func (r *runner) apply(at graph.Instant, m *graph.Mutation) error {
	r.revision++
	result, err := r.engine.Apply(r.revision, 1, at, m)
	if err != nil {
		return fmt.Errorf("%s: %w", r.file.Name, err)
	}
	if result.Refusal != nil {
		return fmt.Errorf("%s: %w", r.file.Name, result.Refusal)
	}
	return nil
}

// write writes the tuples of the file. Those that are refused become failures,
// found by writing the batch they are in one by one.
func (r *runner) write(at graph.Instant) error {
	type edge struct {
		object   graph.Object
		relation string
		subject  graph.Subject
	}
	lines := make(map[edge]placed[graph.Tuple])
	var batch []placed[graph.Tuple]
	flush := func() error {
		err := r.touch(at, batch)
		var refusal *engine.Refusal
		if !errors.As(err, &refusal) {
			batch = batch[:0]
			return err
		}
		for i := range batch {
			err := r.touch(at, batch[i:i+1])
			if errors.As(err, &refusal) {
				r.failf(batch[i].file, batch[i].line, "%s: %s", batch[i].value, refusal.Message)
				err = nil
			}
			if err != nil {
				return err
			}
		}
		batch = batch[:0]
		return nil
	}
	for _, t := range r.file.tuples {
		e := edge{t.value.Object, t.value.Relation, t.value.Subject}
		if before, ok := lines[e]; ok {
			if before.value.String() != t.value.String() {
				r.failf(t.file, t.line, "%s: line %d of %s writes the same edge with another caveat or expiration", t.value, before.line, before.file)
			}
			continue
		}
		lines[e] = t
		if batch = append(batch, t); len(batch) == tuplesAtOnce {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

func (r *runner) touch(at graph.Instant, tuples []placed[graph.Tuple]) error {
	if len(tuples) == 0 {
		return nil
	}
	m := &graph.Mutation{Store: graph.DefaultStore}
	for _, t := range tuples {
		m.Updates = append(m.Updates, graph.Update{Operation: graph.Touch, Tuple: t.value})
	}
	return r.apply(at, m)
}

func (r *runner) assert(ctx context.Context, a placed[assertion]) error {
	r.report.Assertions++
	answer, err := r.snapshot.Check(ctx, engine.Check{
		Object: a.value.object, Name: a.value.name, Subject: a.value.subject, Context: a.value.context,
	})
	var refusal *engine.Refusal
	if errors.As(err, &refusal) {
		r.failf(a.file, a.line, "%s: %s: %s", a.value.want, a.value.text, refusal)
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s:%d: %w", a.file, a.line, err)
	}
	want := map[expectation]engine.Decision{
		assertTrue: engine.Allowed, assertCaveated: engine.Conditional, assertFalse: engine.Denied,
	}[a.value.want]
	if answer.Decision == want {
		return nil
	}
	missing := ""
	if len(answer.Missing) > 0 {
		missing = " on " + strings.Join(answer.Missing, ", ")
	}
	r.failf(a.file, a.line, "%s: %s is %s%s, not %s", a.value.want, a.value.text, answer.Decision, missing, want)
	return nil
}

// expect compares one list of expected subjects with those that there are.
func (r *runner) expect(ctx context.Context, want expectedRelation) error {
	r.report.Relations++
	of := graph.Subject{Object: want.object, Relation: want.name}
	found, err := r.find(ctx, want.object, want.name)
	var refusal *engine.Refusal
	if errors.As(err, &refusal) {
		r.failf(want.file, want.line, "%s: %s", of, refusal)
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s:%d: %w", want.file, want.line, err)
	}
	for _, s := range want.subjects {
		f, ok := found[s.value.subject]
		if !ok {
			r.failf(s.file, s.line, "%s: %s is expected and not found", of, s.value.subject)
			continue
		}
		delete(found, s.value.subject)
		if got, want := f.String(), s.value.describe(f); got != want {
			r.failf(s.file, s.line, "%s: found %s, expected %s", of, got, want)
		}
	}
	for _, f := range sorted(found) {
		r.failf(want.file, want.line, "%s: found %s, which is not expected", of, f)
	}
	return nil
}

// describe returns s in the form that found subjects have, taking over the
// relations of f where s does not name any.
func (s *expectedSubject) describe(f *foundSubject) string {
	d := &foundSubject{subject: s.subject, conditional: s.conditional, excluded: s.excluded, relations: s.relations}
	if d.relations == nil {
		d.relations = f.relations
	}
	return d.String()
}

// A foundSubject is a subject that has a permission.
type foundSubject struct {
	subject     graph.Subject
	conditional bool
	excluded    map[graph.Subject]bool
	relations   map[string]bool
}

// String returns the form that assertion files have.
func (f *foundSubject) String() string {
	var b strings.Builder
	b.WriteString("[" + marked(f.subject, f.conditional))
	if len(f.excluded) > 0 {
		var names []string
		for s, conditional := range f.excluded {
			names = append(names, marked(s, conditional))
		}
		sort.Strings(names)
		b.WriteString(" - {" + strings.Join(names, ", ") + "}")
	}
	b.WriteString("] is ")
	var names []string
	for r := range f.relations {
		names = append(names, "<"+r+">")
	}
	sort.Strings(names)
	b.WriteString(strings.Join(names, "/"))
	return b.String()
}

func marked(s graph.Subject, conditional bool) string {
	if conditional {
		return s.String() + "[...]"
	}
	return s.String()
}

func sorted(found map[graph.Subject]*foundSubject) []*foundSubject {
	list := make([]*foundSubject, 0, len(found))
	for _, f := range found {
		list = append(list, f)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].subject.String() < list[j].subject.String() })
	return list
}
