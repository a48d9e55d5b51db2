package examples_test

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/examples"
	"github.com/pembadb/pemba/examples/assertion"
	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

// TestAssertions runs the assertions of every example.
func TestAssertions(t *testing.T) {
	for _, name := range examples.Names() {
		t.Run(name, func(t *testing.T) {
			file, err := assertion.Load(examples.FS(), name+"/"+examples.AssertionsFile)
			if err != nil {
				t.Fatal(err)
			}
			report, err := file.Run(t.Context(), time.Time{})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range report.Failures {
				t.Error(f)
			}
			if report.Assertions < 20 || report.Relations < 3 {
				t.Errorf("only %d assertions and %d expected relations: is the file read?", report.Assertions, report.Relations)
			}
		})
	}
}

// TestExamples: each has all its parts, and a schema without warnings.
func TestExamples(t *testing.T) {
	for _, name := range examples.Names() {
		e, err := examples.Get(name)
		if err != nil {
			t.Fatal(err)
		}
		if e.Title == "" || e.Tuples == "" || len(e.Questions) == 0 {
			t.Errorf("%s: something is empty: %+v", name, e)
		}
		for _, q := range e.Questions {
			if q.Sentence == "" || q.Command == "" {
				t.Errorf("%s: question %+v", name, q)
			}
		}
		file, err := schema.Parse(examples.SchemaFile, e.Schema)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range schema.Lint(file) {
			t.Errorf("%s: %s", name, w)
		}
	}
	if _, err := examples.Get("nothing"); err == nil || !strings.Contains(err.Error(), "securus") {
		t.Errorf("an unknown example: %v", err)
	}
}

// TestMisspelling is the mistake that the example's source made: a schema that
// names a relation which is not there is refused, with the right name.
func TestMisspelling(t *testing.T) {
	e, err := examples.Get("securus")
	if err != nil {
		t.Fatal(err)
	}
	misspelt := strings.Replace(e.Schema, "parent->is_accountant", "parent->is_accountants", 1)
	file, err := schema.Parse(examples.SchemaFile, misspelt)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = schema.Check(file); err == nil || !strings.Contains(err.Error(), "did you mean `is_accountant`") {
		t.Errorf("the misspelling is answered with %v", err)
	}
}

// TestPartnershipEnds: when the tuple that puts a customer below its insurer
// goes, so does everything that the insurer's people had there, at that very
// revision; and when a driver leaves, nothing of his access is left over.
func TestPartnershipEnds(t *testing.T) {
	e, err := examples.Get("securus")
	if err != nil {
		t.Fatal(err)
	}
	db, err := graph.Open(graph.Config{FS: vfs.NewMem(), Dir: "graph"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	eng := engine.New(db, engine.Config{})
	revision := graph.Revision(0)
	apply := func(m *graph.Mutation) {
		t.Helper()
		revision++
		result, err := eng.Apply(revision, 1, 1, m)
		if err == nil && result.Refusal != nil {
			err = result.Refusal
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	update := func(operation graph.Operation, texts ...string) {
		t.Helper()
		m := &graph.Mutation{Store: graph.DefaultStore}
		for _, text := range texts {
			tuple, err := graph.ParseTuple(text)
			if err != nil {
				t.Fatal(err)
			}
			m.Updates = append(m.Updates, graph.Update{Operation: operation, Tuple: tuple})
		}
		apply(m)
	}
	check := func(want engine.Decision, questions ...string) {
		t.Helper()
		s, err := eng.Snapshot(graph.DefaultStore, 0, graph.InstantOf(time.Now()), graph.Overlay{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for _, text := range questions {
			q, err := graph.ParseTuple(text)
			if err != nil {
				t.Fatal(err)
			}
			answer, err := s.Check(t.Context(), engine.Check{Object: q.Object, Name: q.Relation, Subject: q.Subject})
			if err != nil {
				t.Fatal(err)
			}
			if answer.Decision != want {
				t.Errorf("%s is %s, expected %s", text, answer.Decision, want)
			}
		}
	}
	apply(&graph.Mutation{Init: &graph.Init{ClusterID: [16]byte{1}}})
	apply(&graph.Mutation{Store: graph.DefaultStore, Schema: &graph.WriteSchema{Text: e.Schema}})
	var tuples []string
	for line := range strings.Lines(e.Tuples) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			tuples = append(tuples, line)
		}
	}
	update(graph.Touch, tuples...)

	ofSecurus := []string{
		"org:vector#is_admin@person:olga", "org:vector-nord#is_admin@person:olga", "person:nina#manage@person:olga",
		"truck_policy:tp-101#view@person:sam", "truck_policy:tp-201#view@person:sam", "depot:kassel#dispatch@person:olga",
	}
	check(engine.Allowed, ofSecurus...)
	update(graph.Delete, "org:vector#insurer@insurer:securus")
	check(engine.Denied, ofSecurus...)
	check(engine.Allowed, "truck_policy:tp-901#view@person:sam", "org:vector#is_admin@person:anna")

	ofDan := []string{"truck_policy:tp-101#view@person:dan", "truck_policy:tp-101#file_claim@person:dan", "truck:v-101#drive@person:dan"}
	check(engine.Allowed, ofDan...)
	update(graph.Delete, "org:vector#driver@person:dan")
	check(engine.Denied, ofDan...)
}

// TestFiles: the embedded folder holds no file that belongs to no example.
func TestFiles(t *testing.T) {
	err := fs.WalkDir(examples.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.Count(path, "/") != 1 {
			err = errors.New(path + " does not lie in the folder of an example")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
