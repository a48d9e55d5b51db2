package schema

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
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

// TestCaveatBounds holds that no evaluation takes long: what could is refused,
// by the size of the context alone.
func TestCaveatBounds(t *testing.T) {
	for _, expression := range []string{
		"l.all(a, l.all(b, l.all(c, [a, b, c].all(d, d > 0))))",
		"l.map(a, l.map(b, l.map(c, l.map(d, a)))).size() > 0",
	} {
		if _, err := compileText("caveat c(s string, l list<int>) { " + expression + " && s == '' && l == [] }"); err == nil {
			t.Errorf("%.80s is accepted", expression)
		}
	}

	var numbers []any
	for range 12_000 {
		numbers = append(numbers, 1.0)
	}
	for _, test := range []struct{ params, expression string }{
		{"l list<int>", "l.all(a, a > 0)"},
		{"l list<int>", "l.all(a, l.exists(b, a < b))"},
		{"l list<int>", "l.all(a, l.all(b, l.exists(c, a < b + c)))"},
		{"l list<int>", "l.map(a, l.map(b, a + b)).all(x, x.all(y, y > 0))"},
		{"l list<any>", "l.all(a, l.exists(b, a < b))"},
		{"l any", "l.all(a, l.exists(b, a < b))"},
		{"l any", "l == l"},
		{"l list<int>", "l + l + l + l == l"},
	} {
		c := mustCaveat(t, test.params, test.expression)
		longest := 0 * time.Second
		refused := 0
		for _, n := range []int{1, 10, 100, 400, 2000, 12_000} {
			start := time.Now()
			_, err := c.Eval(nil, Context{"l": numbers[:n]})
			longest = max(longest, time.Since(start))
			var evalErr *EvalError
			if errors.As(err, &evalErr) && strings.Contains(err.Error(), "the context has a size") {
				refused++
			} else if err != nil {
				t.Errorf("%s: %v", test.expression, err)
			}
		}
		t.Logf("%-55s at most %d bytes; longest %v, %d of 6 refused", test.expression, c.contextMax, longest, refused)
		if longest > 10*time.Second {
			t.Errorf("%s took %v", test.expression, longest)
		}
	}

	c := mustCaveat(t, "s string", "s == 'a'")
	if _, err := c.Eval(nil, Context{"s": strings.Repeat("a", 70_000)}); err == nil {
		t.Error("a context of 70,000 bytes is accepted")
	}
	if _, err := c.Eval(nil, Context{"s": "a", "undeclared": strings.Repeat("a", 70_000)}); err != nil {
		t.Errorf("what is not declared counts: %v", err)
	}
}

func TestEvalContextStops(t *testing.T) {
	c := mustCaveat(t, "l list<int>", "l.all(a, l.all(b, a + b > 0))")
	var numbers []any
	for range 400 {
		numbers = append(numbers, 1.0)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := c.EvalContext(ctx, nil, Context{"l": numbers}); !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}
	ctx, cancel = context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if _, err := c.EvalContext(ctx, nil, Context{"l": numbers}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the error is %v", err)
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
				if err != nil || !reflect.DeepEqual(r, Result{Unknown, []string{"y"}}) {
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
