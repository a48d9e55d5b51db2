package api

import (
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
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

// limitRow is a row of the table of limits: who sets it, the limit, what it bounds
// and what is beyond it.
var limitRow = regexp.MustCompile(`(?m)^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]*)\|$`)

// TestLimitsAreDocumented: every limit is in the table of docs/limits.md under its
// flag with its default, has a default unless zero is one, and is judged; and the
// fixed ones that have a name here are there with their value.
func TestLimitsAreDocumented(t *testing.T) {
	content, err := os.ReadFile("../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	flags, fixed := make(map[string]string), make(map[string]string)
	for _, row := range limitRow.FindAllStringSubmatch(string(content), -1) {
		if flag, ok := strings.CutPrefix(row[1], "`--limit-"); ok {
			flags["limit-"+strings.TrimSuffix(flag, "`")] = row[2]
		}
		if row[1] == "fixed" {
			fixed[row[3]] = row[2]
		}
	}
	zero := map[string]int64{"Steps": engine.DefaultBudgetSteps, "MemoryBytes": engine.DefaultBudgetMemoryBytes, "CallsPerSecond": 0}
	limits := reflect.TypeFor[Limits]()
	for i := range limits.NumField() {
		name := limits.Field(i).Name
		flag := limitFlag(name)
		filled := reflect.ValueOf(Limits{}.withDefaults()).Field(i)
		effective, isZero := zero[name]
		if byDefault := reflect.ValueOf(DefaultLimits()).Field(i).Int(); filled.Int() != byDefault || (byDefault == 0) != isZero {
			t.Errorf("%s: the default is %d, filled in is %d", name, byDefault, filled.Int())
		}
		if !isZero {
			effective = filled.Int()
		}
		if _, isTime := filled.Interface().(time.Duration); isTime {
			effective /= int64(time.Second)
		}
		if got, ok := flags[flag]; !ok {
			t.Errorf("docs/limits.md does not list --%s", flag)
		} else if shown(got) != effective {
			t.Errorf("docs/limits.md: --%s is %s; it is %d", flag, got, effective)
		}
		delete(flags, flag)
		var bad Limits
		reflect.ValueOf(&bad).Elem().Field(i).SetInt(-1)
		if err := bad.Validate(); err == nil {
			t.Errorf("%s: -1 is let through", name)
		}
	}
	for flag := range flags {
		t.Errorf("docs/limits.md lists --%s, which there is not", flag)
	}
	for what, value := range map[string]int64{
		"name of a type, relation, permission or caveat": graph.MaxNameLength,
		"name of a store":                          graph.MaxStoreNameLength,
		"id of an object":                          graph.MaxIDLength,
		"nesting of a context":                     graph.MaxContextDepth,
		"context of a tuple, whatever the setting": graph.MaxContextLength,
		"`recorded_actor`":                         actorBytesMax,
		"filters of one watch, or of one reading of the change log":  changeFiltersMax,
		"entries of one page of stores or of versions of the schema": pageMax,
		"cursor": cursorBytesMax,
		"imports of a store that are not committed":                        graph.StagesMax,
		"how long an import that is not committed waits for its next step": int64(graph.StageLifetime) / 3600e6,
		"imports of a store that are committed and can be asked for again": graph.CommittedStagesMax,
		"`import_id`": importIDBytesMax,
		"tuples of one import of `MODE_ATOMIC`, whatever the setting": graph.StageTuplesMax,
		"key":                                keyBytesMax,
		"keys of a server":                   keysMax,
		"the key file, and each file of TLS": fileBytesMax,
		"headers of a call":                  headerBytesMax,
	} {
		if got, ok := fixed[what]; !ok {
			t.Errorf("docs/limits.md does not list what is fixed for %q", what)
		} else if shown(got) != value {
			t.Errorf("docs/limits.md: %s: it says %s; it is %d", what, got, value)
		}
	}
	if err := DefaultLimits().Validate(); err != nil {
		t.Error(err)
	}
}

var shownNumber = regexp.MustCompile(`^([0-9,]+)(?: (KiB|MiB|GiB))?`)

// shown returns the number that a limit begins with as the page shows it: 1,000,
// 8 MiB, or a number of its own unit. "any number" is 0, and what is none is -1.
func shown(limit string) int64 {
	if strings.HasPrefix(limit, "any number") {
		return 0
	}
	m := shownNumber.FindStringSubmatch(limit)
	if m == nil {
		return -1
	}
	n, err := strconv.ParseInt(strings.ReplaceAll(m[1], ",", ""), 10, 64)
	if err != nil {
		return -1
	}
	return n << map[string]int{"KiB": 10, "MiB": 20, "GiB": 30}[m[2]]
}
