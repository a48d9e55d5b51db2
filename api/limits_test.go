package api

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
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

// limitRows returns the limits of docs/limits.md: those that are set by somebody,
// and by what they bound those that are fixed.
func limitRows(t *testing.T) (set, fixed map[string]string) {
	t.Helper()
	content, err := os.ReadFile("../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	set, fixed = make(map[string]string), make(map[string]string)
	for _, row := range limitRow.FindAllStringSubmatch(string(content), -1) {
		rows, key := set, row[1]
		switch key {
		case "set by", "---": // the head of the table
			continue
		case "fixed":
			rows, key = fixed, row[3]
		}
		if _, twice := rows[key]; twice {
			t.Errorf("docs/limits.md has two rows of %s", key)
		}
		rows[key] = row[2]
	}
	return set, fixed
}

// TestLimitsAreDocumented: every setting that is a limit is in the table of
// docs/limits.md with its default, and no other; a field of Limits has a default
// unless zero is one, and is judged.
func TestLimitsAreDocumented(t *testing.T) {
	set, _ := limitRows(t)
	zero := map[string]int64{"Steps": engine.DefaultBudgetSteps, "MemoryBytes": engine.DefaultBudgetMemoryBytes, "CallsPerSecond": 0}
	limits := reflect.TypeFor[Limits]()
	for i := range limits.NumField() {
		name := limits.Field(i).Name
		flag := "`--" + limitFlag(name) + "`"
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
		if got, ok := set[flag]; !ok {
			t.Errorf("docs/limits.md does not list %s", flag)
		} else if shown(got) != effective {
			t.Errorf("docs/limits.md: %s is %s; it is %d", flag, got, effective)
		}
		if name == "Stores" && !strings.HasSuffix(set[flag], "; "+shownCount(testingStores)+" with `--testing`") {
			t.Errorf("docs/limits.md: %s is %s; with --testing it is %d", flag, set[flag], testingStores)
		}
		delete(set, flag)
		var bad Limits
		reflect.ValueOf(&bad).Elem().Field(i).SetInt(-1)
		if err := bad.Validate(); err == nil {
			t.Errorf("%s: -1 is let through", name)
		}
	}
	if err := DefaultLimits().Validate(); err != nil {
		t.Error(err)
	}

	kept := fmt.Sprintf("%d days; at least %d s, or forever", graph.DefaultRetention/(24*3600e6), graph.MinRetention/1e6)
	const unbounded = "0, which means any number"
	for by, want := range map[string]string{
		"`tuples_max` of a store": unbounded, "`calls_per_second` of a store": unbounded,
		"`history` of a store": kept, "`log` of a store": kept,
		"`--resident-bytes`": fmt.Sprintf("%d GiB; -1 for none", graph.DefaultResidentBytes>>30),
	} {
		if got := set[by]; got != want {
			t.Errorf("docs/limits.md: %s is %q; it is %q", by, got, want)
		}
		delete(set, by)
	}
	for _, by := range []string{"`--wait-max`", "`--election-timeout`"} {
		delete(set, by) // The tests of package cluster hold it.
	}
	for by := range set {
		t.Errorf("docs/limits.md lists %s, which there is not", by)
	}
}

// A new store has what docs/limits.md says of its settings.
func TestSettingsOfANewStore(t *testing.T) {
	c := dial(t, testServer(t, Config{}))
	answer, err := c.CreateStore(testContext(t), &pembav1.CreateStoreRequest{Name: "new"})
	if err != nil {
		t.Fatal(err)
	}
	s := answer.GetStore().GetSettings()
	const days = 30 * 24 * time.Hour
	if s.GetTuplesMax() != 0 || s.GetCallsPerSecond() != 0 ||
		s.GetHistory().GetDuration().AsDuration() != days || s.GetLog().GetDuration().AsDuration() != days {
		t.Errorf("a new store has the settings %v", s)
	}
}

// TestFixedLimitsAreDocumented: the limits that nobody sets are in the table of
// docs/limits.md with their values, and no row is there that no test knows.
func TestFixedLimitsAreDocumented(t *testing.T) {
	_, fixed := limitRows(t)
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
		"tuples that the preconditions and the filter of one change look at, for all other changes wait meanwhile":                     declared(t, "../engine/apply.go", "lookedMax"),
		"imports of a store that are not committed":                                                                                    graph.StagesMax,
		"how long an import that is not committed waits for its next step":                                                             int64(graph.StageLifetime) / 3600e6,
		"how long an import without an `import_id` keeps its place without a step, when as many are open as may be and another begins": int64(LeftBehindAfter / time.Minute),
		"imports of a store that are committed and can be asked for again":                                                             graph.CommittedStagesMax,
		"`import_id`": importIDBytesMax,
		"relationship counters of a store, of [`authzed.api.v1`](spicedb.md)": graph.NamedCountersMax,
		"tuples of one import of `MODE_ATOMIC`, whatever the setting":         graph.StageTuplesMax,
		"one evaluation of a [caveat](schema.md#caveats)":                     declared(t, "../schema/cost.go", "EvaluationStepsMax"),
		"stack of a question": declared(t, "../engine/walk.go", "stackBytesMax"),
		"what all questions hold together, beyond 256 KiB each": engine.DefaultQuestionsMemoryBytes,
		"depth of a tree of `Expand`":                           declared(t, "../engine/expand.go", "treeDepthMax"),
		"depth of an explanation":                               declared(t, "../engine/expand.go", "treeDepthMax"),
		"nodes of a cluster":                                    declared(t, "../cluster/members.go", "membersMax"),
		"address of a node":                                     declared(t, "../cluster/config.go", "addrBytesMax"),
		"key":                                                   keyBytesMax,
		"keys of a server":                                      keysMax,
		"the key file, and each file of TLS":                    fileBytesMax,
		"the config file":                                       declared(t, "../cmd/pemba/serveconfig.go", "configBytesMax"),
		"one message that the Go client and the commands take": declared(t, "client/client.go", "ResponseBytesMax"),
		"headers of a call":                             headerBytesMax,
		"the body of a call over HTTP with one message": int64(httpSendTimeout / time.Second),
	} {
		if got, ok := fixed[what]; !ok {
			t.Errorf("docs/limits.md does not list what is fixed for %q", what)
		} else if shown(got) != value {
			t.Errorf("docs/limits.md: %s: it says %s; it is %d", what, got, value)
		}
		delete(fixed, what)
	}
	const sizes = "stores with a size of their own in the metrics"
	if want := fmt.Sprintf("the first %d by name", storesShown); fixed[sizes] != want {
		t.Errorf("docs/limits.md: %s: it says %s; it is %s", sizes, fixed[sizes], want)
	}
	delete(fixed, sizes)
	for _, what := range []string{
		"expiration", "schema", // No numbers, or another page's.
		"a change as an entry of the log",                                  // It follows from the settings of the log.
		"writes under way on a node",                                       // The tests of package cluster hold it.
		"how long a server that joins looks for a member that takes it in", // A variable, for its own test.
		// These are options of libraries, given where the server is made.
		"pings of a client over gRPC", "handshake of a connection", "scrapes of `/metrics` at a time",
	} {
		if _, ok := fixed[what]; !ok {
			t.Errorf("docs/limits.md does not list what is fixed for %q", what)
		}
		delete(fixed, what)
	}
	for what := range fixed {
		if !strings.Contains(what, "`authzed.api.v1`") { // The tests of that API hold its own.
			t.Errorf("docs/limits.md lists %q, which no test holds", what)
		}
	}
}

// declared returns the value of a constant of another package that is not exported.
func declared(t *testing.T, file, name string) int64 {
	t.Helper()
	files := token.NewFileSet()
	parsed, err := parser.ParseFile(files, file, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range parsed.Decls {
		group, ok := d.(*ast.GenDecl)
		if !ok || group.Tok != token.CONST {
			continue
		}
		for _, s := range group.Specs {
			spec := s.(*ast.ValueSpec)
			for i, n := range spec.Names {
				if n.Name != name || i >= len(spec.Values) {
					continue
				}
				v, err := types.Eval(files, nil, token.NoPos, types.ExprString(spec.Values[i]))
				if err != nil {
					t.Fatalf("%s of %s: %v", name, file, err)
				}
				value, exact := constant.Int64Val(v.Value)
				if !exact {
					t.Fatalf("%s of %s is %v, which is no integer", name, file, v.Value)
				}
				return value
			}
		}
	}
	t.Fatalf("%s declares no constant %s", file, name)
	return 0
}

// shownCount writes a number as the pages do: 10,000.
func shownCount(n int) string {
	if n < 1000 {
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%s,%03d", shownCount(n/1000), n%1000)
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
