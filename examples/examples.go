// Package examples holds worked examples: a schema, tuples, the assertions that
// hold of them, and questions worth asking.
//
// Each example is a folder. Its files are embedded, so that "pemba demo" needs
// nothing but its binary, and its assertions run as a test of this package.
//
//	e, err := examples.Get("securus")
//	fmt.Println(e.Title, e.Schema)
package examples

import (
	"embed"
	"fmt"
	"io/fs"
	"strings"
)

//go:embed */schema.pemba */*.txt */assertions.yaml */README.md
var files embed.FS

// The files that every example has.
const (
	SchemaFile     = "schema.pemba"
	TuplesFile     = "tuples.txt"
	AssertionsFile = "assertions.yaml"
	questionsFile  = "questions.txt"
	readmeFile     = "README.md"
)

// An Example is one worked example.
type Example struct {
	// Name is the name of its folder.
	Name string
	// Title is the heading of its README.
	Title string
	// Schema and Tuples are the texts of SchemaFile and TuplesFile.
	Schema string
	Tuples string
	// Questions are in the order in which they tell their story.
	Questions []Question
}

// A Question is a command of pemba with the sentence that introduces it.
type Question struct {
	// Sentence may hold several sentences, on one line.
	Sentence string
	// Command is what stands behind "pemba" on a command line. Its arguments
	// are separated by blanks and hold none.
	Command string
}

// FS returns the files of all examples, each in the folder of its name. The
// caller must not rely on there being others than those that every example has.
func FS() fs.FS { return files }

// Names returns the names of the examples, sorted.
func Names() []string {
	entries, err := files.ReadDir(".")
	if err != nil {
		panic(fmt.Sprintf("examples: the embedded files have no root: %v", err))
	}
	var names []string
	for _, e := range entries {
		// Other folders are there to be read, not to be asked.
		if _, err := fs.Stat(files, e.Name()+"/"+SchemaFile); err == nil {
			names = append(names, e.Name())
		}
	}
	return names
}

// Get returns the named example. The error of an unknown name lists those there
// are.
func Get(name string) (*Example, error) {
	known := false
	for _, n := range Names() {
		known = known || n == name
	}
	if !known {
		return nil, fmt.Errorf("no example is named %q; there are: %s", name, strings.Join(Names(), ", "))
	}
	e := &Example{Name: name}
	var questions, readme string
	for _, f := range []struct {
		file string
		text *string
	}{
		{SchemaFile, &e.Schema}, {TuplesFile, &e.Tuples}, {questionsFile, &questions}, {readmeFile, &readme},
	} {
		b, err := files.ReadFile(name + "/" + f.file)
		if err != nil {
			return nil, fmt.Errorf("example %s: %w", name, err)
		}
		*f.text = string(b)
	}
	heading, _, _ := strings.Cut(readme, "\n")
	e.Title = strings.TrimSpace(strings.TrimPrefix(heading, "#"))
	e.Questions = parseQuestions(questions)
	return e, nil
}

// parseQuestions reads commands, one a line, with the comments that stand
// before each.
func parseQuestions(text string) []Question {
	var questions []Question
	var sentence []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case line == "":
			sentence = nil
		case strings.HasPrefix(line, "#"):
			sentence = append(sentence, strings.TrimSpace(line[1:]))
		default:
			questions = append(questions, Question{Sentence: strings.Join(sentence, " "), Command: line})
			sentence = nil
		}
	}
	return questions
}
