package assertion

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/cockroachdb/datadriven"
)

// TestScripts runs the files in testdata: "file NAME" adds a file, "run NAME"
// loads and runs one, and shows what came of it. The clock stands at the start
// of 2026.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/script", func(t *testing.T, path string) {
		files := fstest.MapFS{}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			name := d.CmdArgs[0].Key
			if d.Cmd == "file" {
				files[name] = &fstest.MapFile{Data: []byte(d.Input + "\n")}
				return ""
			}
			file, err := Load(files, name)
			if err != nil {
				return err.Error() + "\n"
			}
			report, err := file.Run(t.Context(), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
			if err != nil {
				return "error: " + err.Error() + "\n"
			}
			var b strings.Builder
			for _, f := range report.Failures {
				b.WriteString(f.String() + "\n")
			}
			fmt.Fprintf(&b, "%d assertions, %d relations, %d failures\n", report.Assertions, report.Relations, len(report.Failures))
			return b.String()
		})
	})
}

// TestManyWays: of forty layers of groups, each reached from both above, every
// userset is walked once and not once for each of the 2^40 ways to it.
func TestManyWays(t *testing.T) {
	const layers = 40
	var b strings.Builder
	b.WriteString("schema: |-\n  definition user {}\n  definition group { relation member: user | group#member }\nrelationships: |-\n")
	for i := range layers {
		for _, edge := range []string{"aa", "ab", "ba", "bb"} {
			fmt.Fprintf(&b, "  group:%d%c#member@group:%d%c#member\n", i, edge[0], i+1, edge[1])
		}
	}
	fmt.Fprintf(&b, "  group:%da#member@user:anne\nvalidation:\n  group:0a#member:\n", layers)
	for i := 1; i <= layers; i++ {
		fmt.Fprintf(&b, "    - \"[group:%da#member]\"\n    - \"[group:%db#member]\"\n", i, i)
	}
	fmt.Fprintf(&b, "    - \"[user:anne] is <group:%da#member>\"\n", layers)
	file, err := Load(fstest.MapFS{"f.yaml": &fstest.MapFile{Data: []byte(b.String())}}, "f.yaml")
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
}

// FuzzLoad: no file crashes the loader, and one that it takes can be run.
func FuzzLoad(f *testing.F) {
	f.Add("schema: definition user {}\nrelationships: |-\n  user:a#b@user:c\nassertions: {assertTrue: [\"user:a#b@user:c with {\\\"a\\\":1}\"]}\nvalidation: {\"user:a#b\": [\"[user:* - {user:a[...]}] is <user:a#b>/<user:c#d>\"]}")
	f.Add("schemaFile: ../x\ntuplesFile: /y")
	f.Add("[]")
	f.Fuzz(func(t *testing.T, text string) {
		file, err := Load(fstest.MapFS{"f.yaml": &fstest.MapFile{Data: []byte(text)}}, "f.yaml")
		if err != nil {
			return
		}
		if _, err := file.Run(t.Context(), time.Unix(1, 0)); err != nil {
			t.Logf("%v", err)
		}
	})
}

// FuzzExpectedSubject: no line crashes the parser.
func FuzzExpectedSubject(f *testing.F) {
	f.Add("[user:a] is <doc:a#b>/<doc:c#d>")
	f.Add(`[user:"x] is <"[...]]`)
	f.Add("[user:* - {user:a, user:b[...]}] is <doc:a#b>")
	f.Fuzz(func(t *testing.T, text string) {
		if s, err := parseExpectedSubject(text); err == nil && s.subject.Type == "" {
			t.Errorf("%q has no subject", text)
		}
	})
}
