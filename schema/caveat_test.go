package schema

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func mustCaveat(t testing.TB, params, expression string) *Caveat {
	t.Helper()
	s, err := compileText("caveat c(" + params + ") { " + expression + " }")
	if err != nil {
		t.Fatal(err)
	}
	return s.Caveat("c")
}

func mustContext(t testing.TB, text string) Context {
	t.Helper()
	if text == "" {
		return nil
	}
	var ctx Context
	if err := json.Unmarshal([]byte(text), &ctx); err != nil {
		t.Fatal(err)
	}
	return ctx
}

func TestCaveatEval(t *testing.T) {
	for _, test := range []struct {
		params, expression string
		stored, request    string
		want               string // "true", "false", "unknown [names]", or a part of the error
	}{
		// The types, and the forms in which JSON gives their values.
		{"x int", "x == 42", ``, `{"x": 42}`, "true"},
		{"x int", "x == 42", ``, `{"x": "42"}`, "true"},
		{"x int", "x == 42", ``, `{"x": 41}`, "false"},
		{"x int", "x == 42", ``, `{"x": 1.5}`, "parameter `x` of caveat `c` has type int, which the number 1.5 is not"},
		{"x int", "x == 42", ``, `{"x": "str"}`, `which the string "str" is not`},
		{"x int", "x == 42", ``, `{"x": 1e300}`, "has type int"},
		{"x int", "x == 42", ``, `{"x": null}`, "which null is not"},
		{"x int", "x == -9223372036854775808", ``, `{"x": "-9223372036854775808"}`, "true"},
		{"x uint", "x < 5", ``, `{"x": 4}`, "true"},
		{"x uint", "x < 5", ``, `{"x": -1}`, "has type uint"},
		{"x double", "x > 1", ``, `{"x": 1.5}`, "true"},
		{"x double", "x > 1.0", ``, `{"x": "0.5"}`, "false"},
		{"x double", "x > 1.0", ``, `{"x": "NaN"}`, "has type double"},
		{"x bool", "x", ``, `{"x": true}`, "true"},
		{"x bool", "x", ``, `{"x": "true"}`, "has type bool"},
		{"x string", "x.startsWith('a') && x.matches('^a+$') && size(x) == 3", ``, `{"x": "aaa"}`, "true"},
		{"x string", "x == ''", ``, `{"x": 1}`, "has type string"},
		{"x bytes", "x == b'abc'", ``, `{"x": "YWJj"}`, "true"},
		{"x bytes", "x == b'abc'", ``, `{"x": "?"}`, "has type bytes"},
		{"x duration", "x > duration('1h')", ``, `{"x": "90m"}`, "true"},
		{"x duration", "x > duration('1h')", ``, `{"x": "90"}`, "has type duration"},
		{"x timestamp", "x < timestamp('2026-01-01T00:00:00Z')", ``, `{"x": "2025-12-31T23:30:00-01:00"}`, "false"},
		{"x timestamp", "x.getHours('Europe/Berlin') == 13 && x.getHours() == 12", ``, `{"x": "2025-12-31T12:30:00Z"}`, "true"},
		{"x timestamp, d duration", "x + d > x", ``, `{"x": "2025-12-31T12:30:00Z", "d": "1s"}`, "true"},
		{"x timestamp", "x.getHours() == 1", ``, `{"x": "yesterday"}`, "has type timestamp"},
		{"x timestamp", "x.getHours() == 1", ``, `{"x": "0000-01-01T00:00:00Z"}`, "has type timestamp"},
		{"x ipaddress", "x.in_cidr('10.0.0.0/8')", ``, `{"x": "10.1.2.3"}`, "true"},
		{"x ipaddress", "x.in_cidr('10.0.0.0/8')", ``, `{"x": "::ffff:10.1.2.3"}`, "true"},
		{"x ipaddress", "x.in_cidr('::ffff:10.0.0.0/104')", ``, `{"x": "10.1.2.3"}`, "true"},
		{"x ipaddress", "x.in_cidr('fd00::/8')", ``, `{"x": "fe80::1"}`, "false"},
		{"x ipaddress", "x.in_cidr('fd00::/8')", ``, `{"x": "fe80::1%eth0"}`, "has type ipaddress"},
		{"x ipaddress", "x.in_cidr('fd00::/8')", ``, `{"x": "localhost"}`, "has type ipaddress"},
		{"x ipaddress, r string", "x.in_cidr(r)", ``, `{"x": "10.1.2.3", "r": "10.0.0.0"}`, "is not a range of addresses"},
		{"x ipaddress, y ipaddress", "x == y", ``, `{"x": "10.1.2.3", "y": "10.1.2.3"}`, "true"},
		{"x list<string>, y string", "y in x", ``, `{"x": ["a", "b"], "y": "b"}`, "true"},
		{"x list<int>", "x.all(i, i >= 42)", ``, `{"x": [42, "43"]}`, "true"},
		{"x list<int>", "x.all(i, i >= 42)", ``, `{"x": [42, true]}`, "has type list<int>, which true is not"},
		{"x list<list<string>>", "x[1][0] == 'b'", ``, `{"x": [["a"], ["b"]]}`, "true"},
		{"x list<ipaddress>", "x.exists(i, i.in_cidr('10.0.0.0/8'))", ``, `{"x": ["11.0.0.1", "10.0.0.1"]}`, "true"},
		{"x map<int>", "x['a'] + x.b == 3", ``, `{"x": {"a": 1, "b": 2}}`, "true"},
		{"x map<int>", "x['a'] == 3", ``, `{"x": {"b": 2}}`, "no such key"},
		{"x map<int>", "x['a'] == 3", ``, `{"x": [1]}`, "which a list is not"},
		{"x map<any>, y map<any>", "x.isSubtreeOf(y)", ``, `{"x": {"a": {"b": 1}}, "y": {"a": {"b": 1, "c": 2}, "d": 3}}`, "true"},
		{"x map<any>, y map<any>", "x.isSubtreeOf(y)", ``, `{"x": {"a": {"b": 1}}, "y": {"a": {"b": 2}}}`, "false"},
		{"x map<any>, y map<any>", "x.isSubtreeOf(y)", ``, `{"x": {"a": {"b": 1}}, "y": {"a": 1}}`, "false"},
		{"x map<string>, y map<string>", "x.isSubtreeOf(y)", ``, `{"x": {}, "y": {}}`, "true"},
		{"x any", "x == 1", ``, `{"x": 1}`, "true"},
		{"x any", "x.a.b[0] == 'z'", ``, `{"x": {"a": {"b": ["z"]}}}`, "true"},
		{"x any", "x == null", ``, `{"x": null}`, "true"},
		{"x any", "x > 1", ``, `{"x": "a"}`, "no such overload"},

		// What is stored wins; what is not declared does not matter.
		{"x int", "x == 1", `{"x": 1}`, `{"x": 2}`, "true"},
		{"x int", "x == 1", `{"x": 1}`, `{"x": "wrong", "y": 3}`, "true"},
		{"x int", "x == 1", `{"x": "wrong"}`, `{"x": 1}`, "has type int"},
		{"x int, y int", "x == y", `{"x": 1}`, `{"y": 1}`, "true"},

		// Parameters without value.
		{"x int", "x == 1", ``, ``, "unknown [x]"},
		{"x int, y int", "x == 1 && y == 1", ``, ``, "unknown [x y]"},
		{"x int, y int", "y == 1 && x == 1", ``, ``, "unknown [x y]"},
		{"x int, y int", "x == 1 && y == 1", ``, `{"x": 2}`, "false"},
		{"x int, y int", "x == 1 && y == 1", ``, `{"x": 1}`, "unknown [y]"},
		{"x int, y int", "y == 1 || x == 1", ``, `{"x": 1}`, "true"},
		{"x bool, y int, z int", "x ? y == 1 : z == 1", ``, `{"x": true}`, "unknown [y]"},
		{"x bool, y int, z int", "x ? y == 1 : z == 1", ``, `{"y": 1}`, "unknown [x]"},
		{"x list<int>, y int", "x.exists(i, i == y)", ``, `{"x": [1, 2]}`, "unknown [y]"},
		{"x list<int>, y int", "x.exists(i, i == y)", ``, `{"x": []}`, "false"},
		{"x list<int>, y int", "x.exists(i, i == y)", ``, `{"y": 1}`, "unknown [x]"},
		{"x map<any>, y int", "has(x.a) && y == 1", ``, `{"y": 1}`, "unknown [x]"},
		{"x ipaddress, y string", "x.in_cidr('10.0.0.0/8') && y == 'a'", `{"y": "a"}`, ``, "unknown [x]"},

		// Values that may be absent.
		{"x map<any>, k string", "x[?k].orValue(1) == 1", ``, `{"x": {"a": 2}, "k": "a"}`, "false"},
		{"x map<any>, k string", "x[?k].orValue(1) == 1", ``, `{"x": {"a": 2}, "k": "b"}`, "true"},
		{"x map<any>, k string", "x[?k].orValue(1) == 1", ``, `{"x": {"a": 2}}`, "unknown [k]"},
		{"x map<any>, k string", "x[?k].orValue(1) == 1", ``, `{"k": "a"}`, "unknown [x]"},
		{"x map<any>, y int", "x.?a.?b.orValue(1) == y", ``, `{"x": {"a": {"b": 2}}}`, "unknown [y]"},
		{"x any", "x.?a.b.hasValue()", ``, `{"x": {"a": {"b": null}}}`, "true"},
		{"x any", "x.?a.b.hasValue()", ``, `{"x": {"b": 1}}`, "false"},
		{"x any", "x.?a.value() == 1", ``, `{"x": {"b": 1}}`, "optional.none() dereference"},
		{"x list<int>", "x[?1].optMap(v, v * 2).orValue(0) == 6", ``, `{"x": [1, 3]}`, "true"},
		{"x int, y int", "optional.of(x).or(optional.of(y)).value() == 1", ``, `{"x": 1}`, "true"},
		{"x int", "[?optional.ofNonZeroValue(x), 5] == [5]", ``, `{"x": 0}`, "true"},
		{"optional map<int>", "optional.a == 1", ``, `{"optional": {"a": 1}}`, "true"},

		// Expressions that fail.
		{"x int", "1 / x == 1", ``, `{"x": 0}`, "division by zero"},
		{"x int, y int", "1 / x == 1 || y == 1", ``, `{"x": 0, "y": 1}`, "true"},
		{"x int, y int", "1 / x == 1 || y == 1", ``, `{"x": 0}`, "unknown [y]"},
		{"x string, y string", "x.matches(y)", ``, `{"x": "a", "y": "("}`, "caveat `c` cannot be evaluated"},
	} {
		name := fmt.Sprintf("%s {%s} %s %s", test.params, test.expression, test.stored, test.request)
		c := mustCaveat(t, test.params, test.expression)
		stored, request := mustContext(t, test.stored), mustContext(t, test.request)
		got := outcome(c.Eval(stored, request))
		if got != test.want && (test.want == "true" || test.want == "false" || strings.HasPrefix(test.want, "unknown") || !strings.Contains(got, test.want)) {
			t.Errorf("%s\n  is %s\nwant %s", name, got, test.want)
		}
		if other := outcome(c.EvalContext(context.Background(), stored, request)); other != got {
			t.Errorf("%s\nEval says        %s\nEvalContext says %s", name, got, other)
		}
		// The program that counts gives the same answers.
		counting := *c
		count(&counting)
		if other := outcome(counting.Eval(stored, request)); other != got {
			t.Errorf("%s\nEval says     %s\ncounting says %s", name, got, other)
		}
	}
}

func outcome(r Result, err error) string {
	if err != nil {
		return err.Error()
	}
	if r.Truth == Unknown {
		return fmt.Sprintf("unknown %v", r.Missing)
	}
	return r.Truth.String()
}

func TestCaveatCheck(t *testing.T) {
	c := mustCaveat(t, "x int, l list<string>", "x == 1 && l == []")
	for text, want := range map[string]string{
		`{}`:                      "",
		`{"x": 1}`:                "",
		`{"x": "1", "l": ["a"]}`:  "",
		`{"x": 1, "l": ["a", 1]}`: "parameter `l` of caveat `c` has type list<string>, which the number 1 is not",
		`{"y": 1, "z": 2}`:        "caveat `c` has no parameter `y`",
		`{"x": null}`:             "which null is not",
	} {
		err := c.Check(mustContext(t, text))
		got := ""
		if err != nil {
			got = err.Error()
			var contextErr *ContextError
			if !errors.As(err, &contextErr) || contextErr.Caveat != "c" || contextErr.Parameter == "" {
				t.Errorf("%s gives %#v", text, err)
			}
		}
		if got != want && (want == "" || !strings.Contains(got, want)) {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
	if err := c.Check(Context{"x": 1}); err == nil || !strings.Contains(err.Error(), "Go value of type int") {
		t.Errorf("a Go int is no JSON value: %v", err)
	}
}

// stepsBound is more than any evaluation may take: the last call before it is
// given up may go beyond the limit.
const stepsBound = 3 * EvaluationStepsMax

func numbers(n int) []any {
	list := make([]any, n)
	for i := range list {
		list[i] = float64(i + 1)
	}
	return list
}

// words returns a list whose text has some n bytes.
func words(prefix string, n int) []any {
	var list []any
	for size := 0; size < n; {
		w := fmt.Sprintf("%s%05d", prefix, len(list))
		list = append(list, w)
		size += len(w) + 3
	}
	return list
}

// TestCaveatBounds holds that no evaluation takes long: what would is given up, by
// what it costs and not by how it is written or how large the context is.
func TestCaveatBounds(t *testing.T) {
	text := strings.Repeat("a", 20_000)
	tenfold := strings.Repeat(".map(x, [x, x, x, x, x, x, x, x, x, x])", 12)
	for _, test := range []struct {
		expression string
		context    Context
		costly     bool
	}{
		{"l.all(a, a > 0)", Context{"l": numbers(12_000)}, false},
		{"l.all(a, l.exists(b, a < b + 1))", Context{"l": numbers(200)}, false},
		{"l.all(a, l.all(b, l.all(c, l.all(d, a + b + c + d > 0))))", Context{"l": numbers(10)}, false},
		{"l.all(a, l.all(b, l.all(c, l.all(d, a + b + c + d > 0))))", Context{"l": numbers(100)}, true},
		{"l.all(a, l.all(b, p > 0 || a + b > 0))", Context{"l": numbers(200)}, false},
		{"o.all(a, a.exists(b, b > 11000.0)) && o == o", Context{"o": []any{numbers(12_000)}}, false},
		{"l.all(a, o == o)", Context{"l": numbers(1_000), "o": []any{numbers(10_000)}}, true},
		{"l.all(a, m.isSubtreeOf(m))", Context{"l": numbers(1_000), "m": map[string]any{"a": numbers(10_000)}}, true},
		{"l + l + l + l == l", Context{"l": numbers(12_000)}, false},
		// Values that hold the same part many times.
		{"[l]" + tenfold + " == [l]" + tenfold, Context{"l": []any{}}, true},
		{"[s].map(x, {'a': x, 'b': x})" + strings.Repeat(".map(x, {'a': x, 'b': x})", 25) + ".size() == 1", Context{"s": "a"}, true},
		{"[l]" + strings.Repeat(".map(x, x + x + x + x)", 20) + ".all(x, x.all(y, y > 0))", Context{"l": numbers(10)}, true},
		{"[s]" + strings.Repeat(".map(x, x + x + x + x)", 20) + ".all(x, x != '')", Context{"s": "a"}, true},
		// Texts.
		{"s.matches(p) && size(s) == 20000", Context{"s": text, "p": "^a+$"}, false},
		{"s.matches('^(((a{10}){10}){10})')", Context{"s": text}, false},
		{"l.all(a, s.matches('(((a{10}){10}){10})b') || true)", Context{"l": numbers(1_000), "s": text}, true},
		{"l.all(a, s.matches(p) || true)", Context{"l": numbers(3_000), "s": "a", "p": "((" + strings.Repeat("ab", 1000) + "){10}){9}"}, true},
		{"s.matches(p) || true", Context{"s": "a", "p": "((" + strings.Repeat("ab", 100) + "){100}){9}"}, false},
		{"l.all(a, size(s) > 0)", Context{"l": numbers(10_000), "s": text}, true},
		{"l.all(a, int(s) == 0 || true)", Context{"l": numbers(10_000), "s": text}, true},
		// Large parts of one parameter beside many elements of another.
		{"l.all(a, a > 5 || !o[0].matches('^(a|b|ab)*c$'))", Context{"l": ones(12_000), "o": []any{strings.Repeat("ab", 19_000)}}, true},
		{"l.all(a, a > 5 || m.y == m.z)", Context{"l": ones(8_000), "m": map[string]any{"y": numbers(3_000), "z": numbers(3_000)}}, true},
		{"l.all(a, l.all(b, o[0] != b))", Context{"l": numbers(100), "o": []any{wide(5_000)}}, false},
		// Optional values.
		{"[o.map(x, optional.of(x))].all(u, l.all(b, u.unwrapOpt().size() > 0))", Context{"l": numbers(3_000), "o": numbers(3_000)}, true},
		{"[o.map(x, optional.of(x))].all(u, l.all(b, optional.unwrap(u).size() > 0))", Context{"l": numbers(3_000), "o": numbers(3_000)}, true},
		{"l.all(b, optional.of(o).hasValue(o))", Context{"l": numbers(1_000), "o": []any{numbers(10_000)}}, true},
		{"l.all(b, [l.first(), l.last(), l[?b]].unwrapOpt().size() > 1 && l.first().hasValue(l[0]))", Context{"l": numbers(1_000)}, false},
		// Patterns that are large for their length, and those that are not.
		{"s.matches(p) || true", Context{"s": "a", "p": strings.Repeat(`\pL`, 1900)}, false}, // It is refused.
		{"s.matches(p) || true", Context{"s": "a", "p": `(?i)^[a-z]+@[a-z]+\pL$`}, false},
		{"s.matches(p) || true", Context{"s": "a", "p": `(?i)[B-𞥂]`}, false},
		{"l.all(a, s.matches(p) || true)", Context{"l": numbers(100), "s": "a", "p": `(?i)[B-𞥂]`}, true},
		{"l.all(a, s.matches(p) || true)", Context{"l": numbers(100), "s": "a", "p": strings.Repeat(`\pL`, 40)}, true},
		{"l.all(a, s.matches(p) || true)", Context{"l": numbers(100), "s": "a", "p": `(?i)^[a-z]+@[a-z]+$`}, false},
		{"s.matches(p)", Context{"s": "id", "p": `^(?:[a-z]+|id)` + strings.Repeat("[a-z]?", 40)}, false},
		{"[s].map(x, x + x).map(x, x + x).map(x, x + x).all(x, x.matches('.{990}.{990}x') || true)", Context{"s": text}, true},
		{"l.all(a, s.matches(p) || true)", Context{"l": numbers(500), "s": "a", "p": "(?i)[" + strings.Repeat(`~-\377`, 400) + "]"}, true},
		// What is spelt out is made once if it is constant, and else costs what it holds.
		{"l.all(a, l.all(b, {" + constants(5000) + "}.size() > 0))", Context{"l": numbers(300)}, false},
		{"l.all(a, {" + constants(5000) + ", 'a': a}.size() > 0)", Context{"l": numbers(2000)}, true},
		{"l.all(a, t.getHours('Europe/Berlin') >= 0)", Context{"l": numbers(20_000), "t": "2026-01-01T00:00:00Z"}, true},
	} {
		if slow && test.costly && !strings.Contains(test.expression, "matches") {
			continue // They have nothing that runs beside, and each takes all it may.
		}
		var params []string
		for _, p := range []string{"l list<int>", "m map<any>", "o list<any>", "s string", "p string", "t timestamp"} {
			name, _, _ := strings.Cut(p, " ")
			if slices.Contains(strings.FieldsFunc(test.expression, func(r rune) bool { return r < 'a' || r > 'z' }), name) {
				if name == "p" && strings.Contains(test.expression, "p > 0") {
					p = "p int"
				}
				params = append(params, p)
			}
		}
		c := mustCaveat(t, strings.Join(params, ", "), test.expression)
		r, err := c.Eval(test.context, nil)
		if r.Steps > stepsBound {
			t.Errorf("%.80s takes %d steps", test.expression, r.Steps)
		}
		if costly := errors.Is(err, errTooCostly); costly != test.costly || err != nil && !costly {
			t.Errorf("%.80s after %d steps: %v, with %v", test.expression, r.Steps, r, err)
		}
		if test.costly && !strings.Contains(fmt.Sprint(err), "needs more than 80000 steps; give smaller values, or simplify the expression") {
			t.Errorf("the error is %v", err)
		}
	}

	c := mustCaveat(t, "s string, p string", "s.matches(p)")
	if _, err := c.Eval(Context{"s": "a", "p": strings.Repeat("a", patternBytesMax+1)}, nil); err == nil || !strings.Contains(err.Error(), "4097 bytes; at most 4096 are allowed") {
		t.Errorf("a pattern that is too long: %v", err)
	}
	c = mustCaveat(t, "s string", "s == 'a'")
	if _, err := c.Eval(nil, Context{"s": "a", "undeclared": strings.Repeat("a", 70_000)}); err != nil {
		t.Errorf("what is not declared counts: %v", err)
	}
}

// constants returns the entries of a map of n constants.
func constants(n int) string {
	entries := make([]string, n)
	for i := range entries {
		entries[i] = fmt.Sprintf("'k%d': %d", i, i)
	}
	return strings.Join(entries, ", ")
}

// ones returns n ones, and wide an object of n keys.
func ones(n int) []any {
	list := make([]any, n)
	for i := range list {
		list[i] = 1.0
	}
	return list
}

func wide(n int) map[string]any {
	m := make(map[string]any, n)
	for i := range n {
		m[fmt.Sprint(i)] = 1.0
	}
	return m
}

// TestCaveatEstimate holds which expressions are evaluated without counting, and
// up to which size of the context.
func TestCaveatEstimate(t *testing.T) {
	for expression, want := range map[string]int{
		"n > 1 && s == 'a'":                            16 << 10,
		"s in g && g == h":                             8 << 10,
		"g.exists(x, x == s)":                          1 << 10,
		"s.matches('^[a-z]+$')":                        16 << 10,
		"string(n).matches('^[0-9]+$')":                16 << 10,
		"g.filter(x, x != s).size() > 0":               1 << 10,
		"a in [a, m]":                                  8 << 10,
		"m.isSubtreeOf({'a': ['b', {'c': 1}]})":        8 << 10,
		"g.exists(x, h.exists(y, x == y))":             128,
		"g.exists(x, x.matches(s))":                    -1,
		"g.all(x, g.all(y, g.all(z, x == y + z)))":     -1,
		"[a].map(x, [x, x]) == [a].map(x, [x, x])":     -1,
		"[g, h].exists(x, x == g)":                     -1,
		"(g + h + g + h + g + h + g + h + g + h) == g": -1,
	} {
		c := mustCaveat(t, "n int, s string, g list<string>, h list<string>, a any, m map<any>",
			"("+expression+") && n > 0 && s != '' && g != [] && h != [] && a != 1 && m != {}")
		got := -1
		for i, b := range contextSizes {
			if c.estimates[i] <= plainMax {
				got = b
				break
			}
		}
		if got != want {
			t.Errorf("%s: up to %d, want %d", expression, got, want)
		}
	}
}

// TestCaveatLargeContexts holds that what a tuple may carry can be evaluated: a
// context of 25,000 bytes, by expressions of all the shapes that are common.
func TestCaveatLargeContexts(t *testing.T) {
	groups := words("group-", 24_900)
	object := map[string]any{}
	for _, w := range groups[:len(groups)/2] {
		object[w.(string)] = w
	}
	last := groups[len(groups)-1]
	for _, test := range []struct {
		params, expression string
		stored, request    Context
		want               string
	}{
		{"allowed list<string>, given list<string>", "allowed.exists(a, given.exists(b, a == b))", Context{"allowed": groups}, Context{"given": append(words("team-", 1_300), last)}, "true"},
		{"allowed list<string>, given list<string>", "allowed.exists(a, given.exists(b, a == b))", Context{"allowed": groups}, Context{"given": words("team-", 1_300)}, "false"},
		{"allowed list<string>, given list<string>", "allowed.exists(a, given.exists(b, a == b))", Context{"allowed": groups}, nil, "unknown [given]"},
		{"allowed list<string>, given list<string>", "given.all(a, a in allowed)", Context{"allowed": groups}, Context{"given": groups[:300]}, "true"},
		{"allowed list<string>, given string", "given in allowed", Context{"allowed": groups}, Context{"given": last}, "true"},
		{"allowed list<string>, given string", "allowed.exists_one(a, a == given)", Context{"allowed": groups}, Context{"given": last}, "true"},
		{"allowed list<string>, given string", "allowed.filter(a, a.startsWith('group')).map(a, a + '!').exists(a, a == given + '!')", Context{"allowed": groups}, Context{"given": last}, "true"},
		{"allowed list<string>, given list<string>", "given.map(a, a + '').filter(a, allowed.exists(b, b == a)).size() == 1", Context{"allowed": groups}, Context{"given": []any{last, "x"}}, "true"},
		{"patterns list<string>, path string", "patterns.exists(p, path.matches(p))", Context{"patterns": words("^/docs/[a-z]+/", 24_900)}, Context{"path": "/docs/plan/00001"}, "true"},
		{"patterns list<string>, path string", "patterns.exists(p, path.matches(p))", Context{"patterns": words("^/docs/[a-z]+/", 24_900)}, Context{"path": "/other"}, "false"},
		{"text string, pattern string", "text.matches(pattern)", Context{"text": strings.Repeat("a", 24_900)}, Context{"pattern": "^a+$"}, "true"},
		{"text string, word string", "text.contains(word) && text.endsWith(word)", Context{"text": strings.Repeat("a", 24_900) + "b"}, Context{"word": "ab"}, "true"},
		{"ranges list<string>, ip ipaddress", "ranges.exists(r, ip.in_cidr(r))", Context{"ranges": slices.Repeat([]any{"10.0.0.0/16", "fd00::/8"}, 1_000)}, Context{"ip": "10.1.2.3"}, "false"},
		{"required map<any>, given map<any>", "required.isSubtreeOf(given)", Context{"given": object}, Context{"required": map[string]any{"group-00001": "group-00001"}}, "true"},
		{"attributes map<any>, key string", "attributes[?key].orValue('') == key", Context{"attributes": object}, Context{"key": "group-00002"}, "true"},
		{"attributes map<string>, key string", "key in attributes && attributes[key] == key", Context{"attributes": object}, Context{"key": "group-00002"}, "true"},
		{"attributes map<any>, n int", "attributes.all(a, attributes.exists(b, n > 0))", Context{"attributes": object}, Context{"n": 1.0}, "true"},
		{
			"tree any, name string", "tree.all(a, a.members.exists(b, b.names.exists(c, c.exists(d, d == name))))",
			Context{"tree": []any{map[string]any{"members": []any{map[string]any{"names": []any{groups}}}}}},
			Context{"name": last},
			"true",
		},
		{
			"a map<any>, b map<any>, c map<any>", "a.all(x, b.all(y, c.all(z, x == y || y == z || x == z || z != '')))",
			Context{"a": object},
			Context{"b": map[string]any{"p": 1.0, "q": 2.0}, "c": map[string]any{"p": 1.0}},
			"true",
		},
		{"l list<int>", "l.all(a, [1, 2].all(b, [1, 2].all(c, [1, 2].all(d, [1].all(e, a + b + c + d + e > 0)))))", Context{"l": numbers(2_000)}, nil, "true"},
		{"aa int", "string(aa).matches('^[0-9]+$')", Context{"aa": 42.0}, nil, "true"},
		{"aa double", "string(aa).matches('^[0-9.]+$')", Context{"aa": 1.5}, nil, "true"},
		{"aa int", "string(timestamp(aa)).matches('1970')", Context{"aa": 42.0}, nil, "true"},
		{"dur duration", "string(dur).contains('s')", Context{"dur": "1h"}, nil, "true"},
		{"aa int", "string(aa).size() == 2 && bytes(string(aa)) == b'42'", Context{"aa": 42.0}, nil, "true"},
		{"now timestamp, days list<int>", "now.getDayOfWeek('Europe/Berlin') in days || now - duration('1h') < timestamp('2000-01-01T00:00:00Z')", Context{"days": numbers(5_000)}, Context{"now": "2026-01-05T12:00:00Z"}, "true"},
	} {
		c := mustCaveat(t, test.params, test.expression)
		if err := c.Check(test.stored); err != nil {
			t.Errorf("%s: %v", test.expression, err)
		}
		if got := outcome(c.Eval(test.stored, test.request)); got != test.want {
			t.Errorf("%s is %s, want %s", test.expression, got, test.want)
		}
	}
}

// TestCanonicalOptional holds that the syntax of absent values survives printing.
func TestCanonicalOptional(t *testing.T) {
	for _, expression := range []string{
		`m[?"k"].orValue(1) == n`,
		`m.?a.b.hasValue() && n > 0`,
		`[?m.?a, n] == [1] || {?"a": m[?"b"]} == m`,
		`m.?a.optMap(v, v == n).orValue(false)`,
	} {
		c := mustCaveat(t, "m map<any>, n int", expression)
		if got := c.CanonicalExpression(); got != expression {
			t.Errorf("%s is printed as %s", expression, got)
		}
	}
}

func TestEvalContextStops(t *testing.T) {
	for _, estimate := range []uint64{0, math.MaxUint64} {
		c := *mustCaveat(t, "l list<int>", "l.all(a, l.all(b, a + b > 0))")
		for i := range c.estimates {
			c.estimates[i] = estimate
		}
		list := Context{"l": numbers(500)}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := c.EvalContext(ctx, nil, list); !errors.Is(err, context.Canceled) {
			t.Errorf("the error is %v", err)
		}
		ctx, cancel = context.WithTimeout(context.Background(), time.Millisecond)
		if _, err := c.EvalContext(ctx, nil, list); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the error is %v", err)
		}
		cancel()
	}
}

func TestCaveatConcurrent(t *testing.T) {
	c := mustCaveat(t, "x int, y string", "x > 1 && y.startsWith('a')")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 200 {
				r, err := c.Eval(Context{"x": float64(i)}, Context{"y": "ab"})
				if err != nil || (r.Truth == True) != (i > 1) {
					t.Errorf("%d: %v, %v", i, r, err)
					return
				}
				r, err = c.Eval(Context{"x": 2.0}, nil)
				if err != nil || !reflect.DeepEqual(r, Result{Truth: Unknown, Missing: []string{"y"}}) {
					t.Errorf("%v, %v", r, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkCaveatEval(b *testing.B) {
	for _, bench := range []struct {
		name, params, expression string
		context                  Context
	}{
		{"int", "used int, limit int", "used < limit", Context{"used": 1.0, "limit": 2.0}},
		{"partial", "used int, limit int", "used < limit", Context{"used": 1.0}},
		{"ip", "ip ipaddress, at timestamp", "ip.in_cidr('10.0.0.0/8') && at > timestamp('2020-01-01T00:00:00Z')", Context{"ip": "10.1.2.3", "at": "2026-01-01T00:00:00Z"}},
		{"list", "roles list<string>", "'admin' in roles", Context{"roles": []any{"a", "b", "admin"}}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			c := mustCaveat(b, bench.params, bench.expression)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Eval(nil, bench.context); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// count makes a caveat count whatever it does.
func count(c *Caveat) {
	for i := range c.estimates {
		c.estimates[i] = math.MaxUint64
	}
}

// TestCaveatOrder holds that a map is walked over in the order of its keys, of whatever
// types: whether what decides comes before what fails or costs too much is no chance.
func TestCaveatOrder(t *testing.T) {
	m := map[string]any{}
	for _, key := range "hgfedcba" {
		m[string(key)] = map[string]any{string(key): 1.0, "z": 2.0, "y": 3.0}
	}
	for expression, want := range map[string]string{
		"m.exists(k, k == 'a' || l.all(x, l.all(y, l.all(z, x > 0))))":              "true",
		"m.exists(k, k == 'h' || l.all(x, l.all(y, l.all(z, x > 0))))":              "costly",
		"o.exists(k, k == 'a' || l.all(x, l.all(y, l.all(z, x > 0))))":              "true",
		"o.map(k, k)[7] == 'h' && o.a.map(k, k) == ['a', 'y', 'z']":                 "true",
		"m.map(k, k) == ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h']":                   "true",
		"{9: 1, 10: 2, 8: 3}.map(k, k) == [8, 9, 10]":                               "true",
		"{'b': 1, true: 2, 'a': 3, 2: 4, 1: 5}.map(k, k) == [true, 1, 2, 'a', 'b']": "true",
	} {
		var params []string
		for _, p := range []string{"m map<any>", "o any", "l list<int>"} {
			if strings.Contains(expression, p[:1]+".") {
				params = append(params, p)
			}
		}
		if len(params) == 0 {
			params, expression = []string{"l list<int>"}, "l != [] && "+expression
		}
		c := mustCaveat(t, strings.Join(params, ", "), expression)
		turns := 8
		if want == "costly" {
			turns = 2 // Each takes all it may.
		}
		for range turns {
			r, err := c.Eval(nil, Context{"m": m, "o": m, "l": numbers(1000)})
			got := r.Truth.String()
			if errors.Is(err, errTooCostly) {
				got = "costly"
			} else if err != nil {
				t.Fatal(err)
			}
			if got != want {
				t.Fatalf("%s is %s, want %s", expression, got, want)
			}
		}
	}
}

// TestCaveatOrdinary holds that the evaluations that most tuples have are no steps of a
// question, and that values are what they are for CEL.
func TestCaveatOrdinary(t *testing.T) {
	words := []any{"reader", "writer", "owner", "auditor", "guest"}
	for _, test := range []struct {
		params, expression string
		context            Context
		want               string
	}{
		{
			"hour int, ip ipaddress, groups list<string>", "hour >= 9 && ip.in_cidr('10.0.0.0/8') && groups.exists(g, g == 'x')",
			Context{"hour": 10.0, "ip": "10.1.2.3", "groups": []any{"a", "x"}},
			"true",
		},
		{"user map<any>", "user.department == 'x' && user.roles.exists(r, r == 'a')", Context{"user": map[string]any{"department": "x", "roles": words}}, "false"},
		{"have list<string>, allowed list<string>", "have.all(h, h in allowed)", Context{"have": words[:2], "allowed": words}, "true"},
		{"have list<string>", "have.exists(h, {'admin': true, 'owner': true}[?h].orValue(false))", Context{"have": words}, "true"},
		{"now timestamp, zone string", "now.getHours(zone) >= 8", Context{"now": "2026-01-01T12:00:00Z", "zone": "Europe/Berlin"}, "true"},
		{"email string", "email.matches('^[a-z.]+@example[.]com$')", Context{"email": "anne.smith@example.com"}, "true"},
		{"m map<any>", "optional.ofNonZeroValue(m) == m.?a && !optional.ofNonZeroValue({}).hasValue()", Context{"m": map[string]any{}}, "true"},
		{"s string, m map<any>", "s.matches(m.k)", Context{"m": map[string]any{}}, "unknown [s]"},
		{"s string, m map<any>, p string", "s.matches(p) && m == {}", Context{"m": map[string]any{}}, "unknown [p s]"},
		{"s string, p string", "s.matches(p + '(')", Context{"s": "a"}, "unknown [p]"},
		{"a ipaddress, b ipaddress", "{a: 1, b: 2}.map(k, k)[0] == a", Context{"a": "10.0.0.1", "b": "10.0.0.2"}, "true"},
	} {
		c := mustCaveat(t, test.params, test.expression)
		for range 20 {
			r, err := c.Eval(nil, test.context)
			got := r.Truth.String()
			if len(r.Missing) > 0 {
				got += fmt.Sprint(" ", r.Missing)
			}
			if err != nil || got != test.want {
				t.Fatalf("%s is %s, %v; want %s", test.expression, got, err, test.want)
			}
			if r.Steps > 12 {
				t.Fatalf("%s is %d steps", test.expression, r.Steps)
			}
		}
	}
}

// TestCaveatZones holds that a zone has the same name on every machine.
func TestCaveatZones(t *testing.T) {
	c := mustCaveat(t, "t timestamp, z string", "t.getHours(z) == 13 && t.getDayOfMonth(z) >= 0")
	for zone, want := range map[string]string{
		"Europe/Berlin": "true", "+01:00": "true", "01:00": "true", "UTC": "false", "America/Argentina/Buenos_Aires": "false", "Etc/GMT-1": "true",
		"Local": "error", "/etc/passwd": "error", "../UTC": "error", strings.Repeat("x", zoneBytesMax+1): "error", "Europe/Bérlin": "error", "No/Such": "error",
	} {
		r, err := c.Eval(nil, Context{"t": "2026-01-01T12:00:00Z", "z": zone})
		got := r.Truth.String()
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%.80s gives %s, %v; want %s", zone, got, err, want)
		}
		if err != nil && len(err.Error()) > 200 {
			t.Errorf("the error has %d bytes", len(err.Error()))
		}
	}
}
