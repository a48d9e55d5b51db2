package api

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// limitFlag is the flag of serve that sets a field of Limits.
func limitFlag(field string) string {
	var flag strings.Builder
	flag.WriteString("limit")
	for _, c := range field {
		if 'A' <= c && c <= 'Z' {
			flag.WriteByte('-')
			c += 'a' - 'A'
		}
		flag.WriteRune(c)
	}
	return flag.String()
}

// TestLimitsAreDocumented: every limit is in docs/limits.md under its flag, has a
// default unless zero is one, and is judged.
func TestLimitsAreDocumented(t *testing.T) {
	content, err := os.ReadFile("../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := make(map[string]bool)
	for line := range strings.Lines(string(content)) {
		if cell, _, ok := strings.Cut(strings.TrimPrefix(line, "| `--"), "`"); ok && strings.HasPrefix(line, "| `--limit-") {
			documented[cell] = true
		}
	}
	zero := map[string]bool{"Steps": true, "MemoryBytes": true, "CallsPerSecond": true}
	limits := reflect.TypeFor[Limits]()
	for i := range limits.NumField() {
		name := limits.Field(i).Name
		flag := limitFlag(name)
		if !documented[flag] {
			t.Errorf("docs/limits.md does not list --%s", flag)
		}
		delete(documented, flag)
		filled := reflect.ValueOf(Limits{}.withDefaults()).Field(i).Int()
		if byDefault := reflect.ValueOf(DefaultLimits()).Field(i).Int(); filled != byDefault || (filled == 0) != zero[name] {
			t.Errorf("%s: the default is %d, filled in is %d", name, byDefault, filled)
		}
		var bad Limits
		reflect.ValueOf(&bad).Elem().Field(i).SetInt(-1)
		if err := bad.Validate(); err == nil {
			t.Errorf("%s: -1 is let through", name)
		}
	}
	for flag := range documented {
		t.Errorf("docs/limits.md lists --%s, which there is not", flag)
	}
	if err := DefaultLimits().Validate(); err != nil {
		t.Error(err)
	}
}
