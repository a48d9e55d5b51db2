package schema

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// FuzzParse holds that no text makes the parser, the compiler, the linter or the
// printers panic, and that formatting and printing are fixpoints.
func FuzzParse(f *testing.F) {
	paths, err := filepath.Glob("testdata/scripts/*.txt")
	if err != nil || len(paths) == 0 {
		f.Fatal("no scripts to take seeds from", err)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		// The inputs of the scripts stand between a command and a line ----.
		for _, block := range strings.Split(string(data), "\n\n#") {
			if input, _, ok := strings.Cut(block, "\n----"); ok {
				lines := strings.SplitN(input, "\n", 3)
				f.Add(lines[len(lines)-1])
			}
		}
	}
	f.Add("definition a{}//\r\n/*\n*/definition b{/**/}")
	f.Add("caveat c(x int){x==1//}\n}")
	f.Fuzz(func(t *testing.T, text string) {
		file, err := Parse("f", text)
		if err != nil {
			checkErrors(t, err)
			var errs Errors
			if errors.As(err, &errs) && !slices.ContainsFunc(errs, func(e *Error) bool { return e.Kind == SyntaxError }) {
				t.Errorf("Parse reports no syntax error: %v", err)
			}
			return
		}
		checkNoGaps(t, file)
		checkFormat(t, file)
		Lint(file)
		if _, err := Check(file); err != nil {
			checkErrors(t, err)
		}
		s, err := Compile(file)
		if err != nil {
			checkErrors(t, err)
			return
		}
		checkPrint(t, s)
		again, err := New(s.Definitions, s.Caveats)
		if err == nil {
			checkEqual(t, s, again)
		}
	})
}

// checkNoGaps holds that nothing is left open in a file without errors: what is
// open is not judged.
func checkNoGaps(t *testing.T, f *File) {
	t.Helper()
	if !reflect.DeepEqual(f.gaps, fileGaps{}) {
		t.Errorf("the file has gaps: %+v", f.gaps)
	}
	for _, item := range f.Items {
		switch item := item.(type) {
		case *DefinitionDecl:
			if item.headless || item.unclear || !reflect.DeepEqual(item.gaps, gaps{}) {
				t.Errorf("definition %s has gaps: %+v", item.Name.Text, item.gaps)
			}
		case *CaveatDecl:
			if item.flawed {
				t.Errorf("caveat %s is flawed", item.Name.Text)
			}
		}
	}
}

// FuzzCaveatContext holds that no context makes a caveat panic or run long, and
// that what Check accepts never fails for its types.
func FuzzCaveatContext(f *testing.F) {
	s, err := compileText(`
caveat all(i int, u uint, d double, b bool, s string, by bytes, t timestamp, du duration, ip ipaddress, l list<int>, m map<list<string>>, a any) {
	i > 1 || u > 1 || d > 1.0 || b || s == "a" || by == b"a" || t.getHours() == 3 || du > duration("1s") ||
	ip.in_cidr("10.0.0.0/8") || l.exists(x, x == i) || m.isSubtreeOf({"a": ["b"]}) || a == 1 || s.matches("a+")
}
caveat nested(l list<any>, a any) { l.all(x, x.all(y, y == a)) }
caveat deep(l list<any>, m map<any>) {
	l.all(x, l.all(y, l.exists(z, l.exists(v, [x, y] == [z, v])))) || m[?"k"].orValue({}).?a.hasValue() ||
	[dyn(l)].map(x, [x, x, x]).map(x, [x, x, x]) == [dyn(m)].map(x, [[x]])
}
`)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(`{"i": 1, "u": "1", "d": 1.5, "b": false}`, `{"s": "x", "by": "YQ==", "t": "2020-01-01T00:00:00Z", "du": "1s", "ip": "::1", "l": [1], "m": {"a": ["b"]}, "a": null}`)
	f.Add(`{"l": [[1], []]}`, `{"a": {"b": [1, "x", null, {}]}}`)
	f.Add(`{"l": [1, 2, [3], {"k": 4}, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}`, `{"m": {"k": {"a": 1}}}`)
	f.Add(`{"m": {"k": [1]}}`, ``)
	f.Add(`{"i": 1e400}`, `{"ip": "fe80::1%0", "t": "9999-12-31T23:59:60Z", "du": "-1ns"}`)
	f.Fuzz(func(t *testing.T, stored, request string) {
		if len(stored)+len(request) > 25_000 {
			return
		}
		var a, b Context
		if json.Unmarshal([]byte(stored), &a) != nil || json.Unmarshal([]byte(request), &b) != nil {
			return
		}
		for _, c := range s.Caveats {
			r, err := c.Eval(a, b)
			if r.Steps > stepsBound {
				t.Errorf("took %d steps", r.Steps)
			}
			again, errAgain := c.Eval(a, b)
			if outcome(r, err) != outcome(again, errAgain) {
				t.Errorf("%s, then %s", outcome(r, err), outcome(again, errAgain))
			}
			if (r.Truth == Unknown) != (len(r.Missing) > 0) {
				t.Errorf("%v with %v", r.Truth, r.Missing)
			}
			var contextErr *ContextError
			if c.Check(a) == nil && errors.As(err, &contextErr) {
				if _, stored := a[contextErr.Parameter]; stored {
					t.Errorf("Check accepts what Eval refuses: %v", err)
				}
			}
		}
	})
}
