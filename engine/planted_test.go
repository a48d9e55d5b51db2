package engine_test

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var bugs = flag.Int("bugs", 0, "how many of the planted bugs TestPlantedBugs plants; that each text to replace is there is looked at in any case")

// planted are bugs that could have been written in the evaluator. Each replaces
// a text that stands exactly once in a file.
var planted = []struct{ name, file, text, bug string }{
	{
		"an exclusion takes its low from the low of what it subtracts", "verdict.go",
		"combined(v, w, v.low().and(w.high().not()), v.high().and(w.low().not()))",
		"combined(v, w, v.low().and(w.low().not()), v.high().and(w.high().not()))",
	},
	{
		"an intersection stops at the first operand that allows", "walk.go",
		"				v = w.and(v, x)\n			}\n			if w.isDenied(v) {",
		"				v = w.and(v, x)\n			}\n			if w.isDenied(v) || w.isAllowed(v) {",
	},
	{
		"a provisional value is kept as final", "walk.go",
		"c.value, c.low, c.state = v, low, provisional",
		"c.value, c.low, c.state = v, low, final",
	},
	{
		"an open name is denied instead of undefined", "verdict.go",
		"undefined = value{truths: noToYes}\n",
		"undefined = value{}\n",
	},
	{
		"a caveat is not asked on the tuple to a userset", "walk.go",
		"			v = w.guard(condition, v)\n",
		"			_ = condition\n",
	},
	{
		"a wildcard is not asked where the subject is named", "algebra.go",
		"if s.wildcard && w.subject.plain && !v.isAllowed() {",
		"if s.wildcard && !s.concrete {",
	},
	{
		"an intersection arrow over nothing allows", "walk.go",
		"	v, owned, first := w.denied(), false, true\n	for i := range op.targets {",
		"	v, owned, first := w.denied(), false, true\n	if op.all {\n		v = w.or(v, w.splice(w.undefined(), w.undefined()))\n	}\n	for i := range op.targets {",
	},
	{
		"a userset is no member of itself", "algebra.go",
		"case !w.subject.plain && n.shape == w.subject.shape && object == w.subject.number:",
		"case false && n.shape == w.subject.shape:",
	},
	{
		"a lookup does not start from the wildcard", "resources.go",
		"s.shape, graph.WildcardNumber, seed.exact); err != nil {",
		"s.shape, c.subject.number, seed.exact); err != nil {",
	},
	{
		"a lookup takes what a caveat leads to for certain", "resources.go",
		"certain && e.Caveat == 0); err != nil {",
		"certain); err != nil {",
	},
	{
		"a lookup takes one of all that an arrow asks for certain", "program.go",
		"		exact = exact && !op.all\n",
		"",
	},
	{
		"a lookup takes the first operand of an intersection for certain", "program.go",
		"		// One operand is enough, since a subject must come through all.\n		f.feed(n, op.children[0], false)\n",
		"		f.feed(n, op.children[0], exact)\n",
	},
	{
		"a set is added to though others have it", "subjects.go",
		"	case !owned || !t.rest.isDenied():",
		"	case !t.rest.isDenied():",
	},
	{
		"an excluded subject keeps the wildcard", "subjects.go",
		"			covered: m.covered.except(gone),\n",
		"			covered: m.covered,\n",
	},
	{
		"missing parameters of one side only", "verdict.go",
		"	return bound{maybe, b.missing.union(c.missing)}\n}\n\nfunc (b bound) and(",
		"	return b\n}\n\nfunc (b bound) and(",
	},
	{
		"a chunk of edges is read only once", "walk.go",
		"	r.last = r.count < edgesChunk\n",
		"	r.last = true\n",
	},
	{
		"an intersection arrow passes over objects that lack the name", "walk.go",
		"		if t.name == nil && !op.all {\n",
		"		if t.name == nil {\n",
	},
	{
		"nesting takes a tuple with a caveat for one without", "nesting.go",
		"		if e.Caveat != 0 || w.nesting.edges > nestingEdges {\n",
		"		if w.nesting.edges > nestingEdges {\n",
	},
	{
		"nesting takes those of one family for those of all", "nesting.go",
		"!slices.Contains(x.families, s.userset.family)",
		"slices.Compare(x.families, nil) == 0",
	},
	{
		"nesting takes the first usersets for all", "nesting.go",
		"		x.state = notKnown\n		return\n",
		"		return\n",
	},
	{
		"nesting forgets the wildcard", "nesting.go",
		"				if s.wildcard {\n",
		"				if s.wildcard && !s.concrete {\n",
	},
	{
		"nesting holds of names that take something away", "nesting.go",
		"	default:\n		if arrows == ",
		"	case TraceExclusion:\n		return arrows.append(parts, op.children[0])\n	default:\n		if arrows == ",
	},
	{
		"a climb goes along a tuple with a caveat", "climb.go",
		"		if e.Caveat != 0 {\n",
		"		if false {\n",
	},
	{
		"a climb takes what it has seen for denied, whatever it found there", "climb.go",
		"	c.found = !v.isDenied()\n",
		"",
	},
	{
		"a climb takes one of all that an arrow asks for enough", "nesting.go",
		"op.kind != TraceArrow || op.all)",
		"op.kind != TraceArrow)",
	},
	{
		"a climb passes over the usersets that are not known from the subject", "climb.go",
		"			if ok {\n				v = v.or(x)\n				continue\n			}\n",
		"			v = v.or(x)\n			continue\n",
	},
	{
		"nesting looks among what was read first", "nesting.go",
		"		if !edges.last {\n			edges.end()\n			break\n",
		"		if !edges.last {\n			edges.end()\n			return v, true, nil\n",
	},
	{
		"a tree forgets the caveats of its tuples", "expand.go",
		"t.Caveat = x.graph.CaveatName(e.Caveat)",
		"_ = x.graph.CaveatName(e.Caveat)",
	},
	{
		"a tree forgets the tuple along which an arrow goes", "expand.go",
		"child.Via = &via",
		"_ = via",
	},
	{
		"a tree forgets when its tuples end", "expand.go",
		"t.ValidUntil = stored.ValidUntil",
		"_ = stored",
	},
	{
		"a tree judges caveats without the question's context", "expand.go",
		"	question.context = q.Context\n",
		"",
	},
	{
		"a tree is cut at names that do not stand above", "expand.go",
		"	defer delete(x.open, at)\n",
		"",
	},
	{
		"a trace shows what is undefined as denied", "trace.go",
		"		t.Verdict = Verdict{}\n",
		"		t.Verdict = Verdict{Decision: Denied}\n",
	},
	{
		"a trace lets a cycle prove itself", "walk.go",
		"w.isAllowed(v) && (w.trace == nil || w.trace.proved())",
		"w.isAllowed(v)",
	},
	{
		"a trace forgets that a name hangs on several", "trace.go",
		"			if c.Verdict.Decision == Allowed {\n",
		"			if c.Verdict.Decision == Allowed && len(names.names) == 0 {\n",
	},
	{
		"a trace shows the value of the last operand", "trace.go",
		"		w.trace.judge(v)\n",
		"		if n := len(w.trace.Children); n > 0 {\n			w.trace.Verdict, w.trace.AtMost = w.trace.Children[n-1].Verdict, w.trace.Children[n-1].AtMost\n		} else {\n			w.trace.judge(v)\n		}\n",
	},
}

// named finds the question in the output of a failed test.
var named = regexp.MustCompile(`_test\.go:\d+: (check|lookup|expand|write|explain) `)

// What finds a bug is bounded by work, so that the verdict does not hang on how
// busy the machine is: by the questions asked, from one seed. The time is there
// to end a run that a bug has made endless.
const (
	plantedQuestions = "60000"
	plantedSeed      = "7"
	plantedTimeout   = "10m"
)

// plantedTests are asked one after another, what takes seconds before what takes
// minutes.
var plantedTests = []string{"^(TestTangles|TestTraces|TestTraceHangsOnSeveral|TestWide|TestNesting|TestNestingExceptions)$", "^TestTwin$"}

// TestPlantedBugs builds the tests of this package with one bug at a time and
// asks that the twin or the scripts find it: a test that no bug can fail would
// prove nothing. The texts to replace stand in the sources as they are, so the
// list fails when the code moves on without it.
func TestPlantedBugs(t *testing.T) {
	if os.Getenv("PEMBA_PLANTED") != "" {
		t.Skip("this is the run of a planted bug")
	}
	directory, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range planted {
		source, err := os.ReadFile(p.file)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(source), p.text); n != 1 {
			t.Errorf("%s: the text to replace stands %d times in %s, want once:\n%s", p.name, n, p.file, p.text)
			continue
		}
		if i >= *bugs {
			continue
		}
		t.Run(p.name, func(t *testing.T) {
			scratch := t.TempDir()
			file := filepath.Join(scratch, p.file)
			if err := os.WriteFile(file, []byte(strings.Replace(string(source), p.text, p.bug, 1)), 0o600); err != nil {
				t.Fatal(err)
			}
			overlay, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(directory, p.file): file}})
			if err != nil {
				t.Fatal(err)
			}
			overlayFile := filepath.Join(scratch, "overlay.json")
			if err := os.WriteFile(overlayFile, overlay, 0o600); err != nil {
				t.Fatal(err)
			}
			run := func(args ...string) (string, error) {
				cmd := exec.Command("go", args...)
				cmd.Env = append(os.Environ(), "PEMBA_PLANTED=1")
				out, err := cmd.CombinedOutput()
				return string(out), err
			}
			binary := filepath.Join(scratch, "planted.test")
			if out, err := run("test", "-c", "-o", binary, "-overlay", overlayFile, "."); err != nil {
				t.Fatalf("the planted bug does not compile: %v\n%s", err, out)
			}
			for _, tests := range plantedTests {
				cmd := exec.Command(binary, "-test.run", tests, "-test.failfast", "-test.timeout", plantedTimeout,
					"-questions", plantedQuestions, "-seed", plantedSeed)
				cmd.Env = append(os.Environ(), "PEMBA_PLANTED=1")
				out, err := cmd.CombinedOutput()
				if err == nil {
					continue
				}
				// A panic or a timeout proves little: the tests have to name the question
				// that was answered wrongly, or not at all.
				for _, line := range strings.Split(string(out), "\n") {
					if named.MatchString(line) {
						t.Logf("noticed: %s", strings.TrimSpace(line))
						return
					}
				}
				t.Fatalf("%s failed, but nobody named a question:\n%s", tests, out)
			}
			t.Error("nobody noticed")
		})
	}
}
