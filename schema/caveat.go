package schema

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// A Caveat is a named CEL expression over typed parameters that a tuple may
// carry. It is compiled once, immutable and safe for concurrent use.
type Caveat struct {
	Name string
	Doc  string
	// Parameters are in source order; there is at least one, and the
	// expression uses each.
	Parameters []Parameter
	// Expression is the source text of the body, trimmed and freed of its common
	// indentation.
	Expression string

	// types and unknowns run parallel to Parameters.
	types    []*valueType
	unknowns []*cel.AttributePatternType
	// plain evaluates when every parameter has a value, partial when some have not.
	plain, partial cel.Program
	// estimates are what an evaluation with a context of each of the contextSizes costs
	// at most. Where that is more than plainMax, the program of metered counts what it
	// does, which it makes at the first call.
	estimates       [len(contextSizes)]uint64
	plainCostOfStep uint64
	metered         func() (cel.Program, error)
}

// A Parameter is a declared parameter of a caveat.
type Parameter struct {
	Name string
	// Type is the parameter's type in source form: "int", "list<string>".
	Type string
}

// A Context holds values for a caveat's parameters as JSON values: nil, bool,
// float64, string, []any and map[string]any. It is not modified once given away.
type Context map[string]any

// Truth is the value of a caveat.
type Truth uint8

// The three values, in the order of how much they grant.
const (
	// False denies.
	False Truth = iota
	// Unknown depends on parameters that have no value.
	Unknown
	// True allows.
	True
)

// String returns "false", "unknown" or "true".
func (t Truth) String() string {
	switch t {
	case False:
		return "false"
	case Unknown:
		return "unknown"
	case True:
		return "true"
	}
	return fmt.Sprintf("Truth(%d)", uint8(t))
}

// A Result is the outcome of evaluating a caveat.
type Result struct {
	Truth Truth
	// Missing names the parameters without a value that decide, sorted. It is
	// empty unless Truth is Unknown.
	Missing []string
	// Steps is what the evaluation cost, in steps of some microseconds: 0 for a cheap
	// expression of small values, an upper bound where the cost is little, and what
	// was counted elsewhere. It is set beside an *EvalError, too.
	Steps int
}

// A ContextError says that a context does not fit the parameters of a caveat.
type ContextError struct {
	Caveat, Parameter string
	// Want is the parameter's declared type; empty if the caveat declares no such
	// parameter.
	Want string
	// Got describes the value.
	Got string
}

// Error names the caveat, the parameter, its type and the value.
func (e *ContextError) Error() string {
	if e.Want == "" {
		return fmt.Sprintf("caveat `%s` has no parameter `%s`", e.Caveat, e.Parameter)
	}
	return fmt.Sprintf("parameter `%s` of caveat `%s` has type %s, which %s is not", e.Parameter, e.Caveat, e.Want, e.Got)
}

// An EvalError says that the expression of a caveat failed on values of the right
// types: a division by zero, a missing key, or more work than an evaluation may be.
type EvalError struct {
	Caveat string
	Err    error
}

// Error names the caveat and the cause.
func (e *EvalError) Error() string {
	return fmt.Sprintf("caveat `%s` cannot be evaluated: %v", e.Caveat, e.Err)
}

// Unwrap returns the cause.
func (e *EvalError) Unwrap() error { return e.Err }

// Check reports, as a *ContextError, the first key of the context, by name, that
// the caveat does not declare or whose value does not have the declared type. It
// is for a context that is to be stored in a tuple. Parameters may be left out.
func (c *Caveat) Check(ctx Context) error {
	for _, name := range sortedKeys(ctx) {
		i := slices.IndexFunc(c.Parameters, func(p Parameter) bool { return p.Name == name })
		if i < 0 {
			return &ContextError{Caveat: c.Name, Parameter: name}
		}
		if _, err := c.convert(i, ctx[name]); err != nil {
			return err
		}
	}
	return nil
}

// Eval evaluates the caveat. A value of the stored context wins over one of the
// request; keys that the caveat does not declare are ignored. A null is a value
// of a parameter of type any, and does not fit any other type; a parameter is
// without value only when its key is absent. Parameters without value do not
// matter where the others decide: `false && p` is False.
//
// The error is a *ContextError for a value of the wrong type and an *EvalError
// for an expression that fails. The result depends on the arguments alone, and on what
// the machine knows of a time zone that the expression names; a map is walked over in
// the order of its keys.
//
// The work is bounded by EvaluationStepsMax: where the size of the context proves
// that it is little nothing is counted, and all else is given up beyond the bound,
// with an *EvalError. It is the work that is done which counts, with parameters
// missing or not.
func (c *Caveat) Eval(stored, request Context) (Result, error) {
	return c.eval(context.Background(), stored, request, cel.Program.Eval)
}

// EvalContext is Eval that gives up when ctx is done, with ctx's error. Because
// that depends on time, it has no place where several nodes must agree.
func (c *Caveat) EvalContext(ctx context.Context, stored, request Context) (Result, error) {
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	r, err := c.eval(ctx, stored, request, func(p cel.Program, vars any) (ref.Val, *cel.EvalDetails, error) {
		return p.ContextEval(ctx, vars)
	})
	if ctxErr := ctx.Err(); err != nil && ctxErr != nil {
		return Result{}, ctxErr
	}
	return r, err
}

// countingSlots bounds how many evaluations are counted at once: one may hold some fifty
// megabytes. There are more than processors, so that the short ones, which are most,
// need not wait behind the long ones.
var countingSlots = make(chan struct{}, 4*runtime.GOMAXPROCS(0))

// eval is Eval and EvalContext, which run programs differently.
func (c *Caveat) eval(ctx context.Context, stored, request Context, run func(cel.Program, any) (ref.Val, *cel.EvalDetails, error)) (Result, error) {
	vars := &bindings{caveat: c, values: make([]ref.Val, len(c.Parameters))}
	size := 0
	var missing []*cel.AttributePatternType
	for i := range c.Parameters {
		v, ok := stored[c.Parameters[i].Name]
		if !ok {
			v, ok = request[c.Parameters[i].Name]
		}
		if !ok {
			missing = append(missing, c.unknowns[i])
			continue
		}
		val, err := c.convert(i, v)
		if err != nil {
			return Result{}, err
		}
		vars.values[i] = val
		size += contextSize(v)
	}
	program, input := c.plain, cel.Activation(vars)
	if missing != nil {
		partial, err := cel.PartialVars(vars, missing...)
		if err != nil {
			return Result{}, &EvalError{c.Name, err}
		}
		program, input = c.partial, partial
	}
	spent := c.estimateFor(size)
	if spent > plainMax {
		metered, err := c.metered()
		if err != nil {
			return Result{}, &EvalError{c.Name, err}
		}
		program = metered
		select {
		case countingSlots <- struct{}{}:
			defer func() { <-countingSlots }()
		case <-ctx.Done():
			return Result{}, &EvalError{c.Name, ctx.Err()}
		}
	}
	out, details, err := run(program, input)
	r := Result{Steps: int(min(spent, plainMax) / max(c.plainCostOfStep, 1))}
	if counted := details.ActualCost(); counted != nil {
		// What was too much was not done.
		r.Steps = int(min(*counted, costMax) / costOfStep)
	}
	if err != nil {
		return r, &EvalError{c.Name, tooCostly(err, size)}
	}
	switch out := out.(type) {
	case types.Bool:
		if out {
			r.Truth = True
		}
		return r, nil
	case *types.Unknown:
		r.Truth, r.Missing = Unknown, c.missing(out)
		return r, nil
	}
	return r, &EvalError{c.Name, fmt.Errorf("the result is %v, not a bool", out.Type())}
}

// missing returns the names of the parameters that make a value unknown.
func (c *Caveat) missing(u *types.Unknown) []string {
	var names []string
	for _, id := range u.IDs() {
		trails, _ := u.GetAttributeTrails(id)
		for _, t := range trails {
			name := t.Variable()
			declared := slices.ContainsFunc(c.Parameters, func(p Parameter) bool { return p.Name == name })
			if declared && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	sort.Strings(names)
	return names
}

func (c *Caveat) convert(i int, v any) (ref.Val, error) {
	val, wrong, ok := c.types[i].convert(v)
	if !ok {
		return nil, &ContextError{Caveat: c.Name, Parameter: c.Parameters[i].Name, Want: c.Parameters[i].Type, Got: describeValue(wrong)}
	}
	return val, nil
}

// bindings are the values of a caveat's parameters; nil where there is none. It
// takes the place of a map because most caveats have few parameters.
type bindings struct {
	caveat *Caveat
	values []ref.Val
}

// ResolveName returns the value of a parameter.
func (b *bindings) ResolveName(name string) (any, bool) {
	for i := range b.values {
		if b.caveat.Parameters[i].Name == name {
			return b.values[i], b.values[i] != nil
		}
	}
	return nil, false
}

// Parent returns nil: there are no outer bindings.
func (b *bindings) Parent() cel.Activation { return nil }

// contextSize measures a JSON value: roughly the length of its text. It is never
// less than twice the number of values inside, which the estimate of an
// expression's cost relies on.
func contextSize(v any) int {
	switch v := v.(type) {
	case string:
		return len(v) + 2
	case []any:
		size := 2
		for _, e := range v {
			size += contextSize(e)
		}
		return size
	case map[string]any:
		size := 2
		for k, e := range v {
			size += len(k) + 3 + contextSize(e)
		}
		return size
	}
	return 2
}

// describeValue names a value in an error.
func describeValue(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case bool:
		return strconv.FormatBool(v)
	case float64:
		return "the number " + strconv.FormatFloat(v, 'g', -1, 64)
	case string:
		if len(v) > 40 {
			return "the string " + strconv.Quote(strings.ToValidUTF8(v[:40], "")+"...")
		}
		return "the string " + strconv.Quote(v)
	case []any:
		return "a list"
	case map[string]any:
		return "an object"
	}
	return fmt.Sprintf("a Go value of type %T (a context holds JSON values)", v)
}

// integer converts a JSON number or its decimal text.
func integer(v any) (int64, bool) {
	switch v := v.(type) {
	case float64:
		// The upper bound is 2^63 itself, the first float beyond int64.
		if v != math.Trunc(v) || v < math.MinInt64 || v >= math.MaxInt64 {
			return 0, false
		}
		return int64(v), true
	case string:
		n, err := strconv.ParseInt(v, 10, 64)
		return n, err == nil
	}
	return 0, false
}
