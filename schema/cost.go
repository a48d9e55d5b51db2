package schema

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"
)

// EvaluationStepsMax bounds one evaluation of a caveat, in the unit of Result.Steps.
// It is part of the language, the same on every node.
const EvaluationStepsMax = 80_000

// The cost of an evaluation is counted in units of CEL: one per operation, a tenth per
// character of a string that is read. A unit takes some hundred nanoseconds.
//
// There are two ways to keep it below costMax. When a schema is compiled, the cost
// is estimated for contexts of several sizes: where it is little, nothing is counted
// and the estimate is what it cost (Caveat.estimates). Everything else is evaluated by
// a program that counts and gives up (Caveat.metered).
const (
	// costOfStep is the cost that counts as one step in Result.Steps.
	costOfStep = 50
	// costMax bounds the cost of one evaluation, to about half a second, on a busy
	// machine some seconds.
	costMax = EvaluationStepsMax * costOfStep
	// plainMax bounds the cost that is not counted, to some milliseconds.
	plainMax = costMax / 50
	// plainCostOfStep is the cost that counts as one step where nothing is counted,
	// which takes a small part of the time: but a match takes what it takes.
	plainCostOfStep = 16 * costOfStep
	// zoneCost is that of finding a time zone by its name, which is read anew at
	// each call.
	zoneCost = 500
	// listSumsMax is the number of sums of lists in an expression, with those that
	// map and filter stand for, whose cost is estimated.
	listSumsMax = 8
	// elementsMax is the number of elements of a list or map that an expression spells
	// out, and not with constants alone, up to which its cost is estimated.
	elementsMax = 32
	// conversionCost is that of a conversion, beside what its text costs.
	conversionCost = 5
	// unknownCost is that of a call whose result waits for parameters that are
	// missing: these are gathered.
	unknownCost = 8
	// unwrapCost is that of each element of a list of optional values, of which those
	// that are there are copied to another list.
	unwrapCost = 8
	// The overloads of optional values for which CEL takes less than they cost.
	unwrapOverload     = "optional_unwrap"
	unwrapOptOverload  = "optional_unwrapOpt"
	hasValueIsOverload = "optional_hasValue_value"
	// measureOverload stands for the making of a list or a map, copyOverload for the
	// copying of a list, payOverload for what has its price beforehand.
	measureOverload = "@measure"
	copyOverload    = "@copy"
	payOverload     = "@pay"
)

// contextSizes are the sizes of contexts for which the cost of an expression is
// estimated, from the largest that any context may have.
var contextSizes = [...]int{64 << 10, 32 << 10, 16 << 10, 8 << 10, 4 << 10, 2 << 10, 1 << 10, 512, 256, 128, 64, 32}

// errTooCostly is the cause of an EvalError for an evaluation that was given up.
var errTooCostly = errors.New("the evaluation is too costly")

// estimate sets the estimates.
//
// Of a context of b bytes every list is taken to have as many elements as can be, and
// every element, which may be asked for by its place or its name, all the bytes: that
// is more than any context has, but a list of one parameter and an element of another
// may each have half of them.
func (c *Caveat) estimate(env *cel.Env, checked *cel.Ast, patterns map[string]*pattern) {
	for i := range c.estimates {
		c.estimates[i] = math.MaxUint64
	}
	if multiplies(checked.NativeRep()) {
		return
	}
	c.plainCostOfStep = plainCostOfStep
	if len(patterns) > 0 {
		c.plainCostOfStep = costOfStep
	}
	for i, b := range contextSizes {
		s := sizes{text: b, list: b / 2, element: b, patterns: patterns}
		estimate, err := env.EstimateCost(checked, s, cost.OverloadCostEstimate(hasValueIsOverload, unbounded))
		if err != nil {
			return
		}
		c.estimates[i] = estimate.Max
		if estimate.Max < costOfStep {
			for j := range c.estimates[i:] {
				c.estimates[i+j] = estimate.Max // It costs nothing to speak of, with less neither.
			}
			return
		}
	}
}

// estimateFor returns what an evaluation with a context of that size costs at most.
func (c *Caveat) estimateFor(size int) uint64 {
	for i, b := range slices.Backward(contextSizes[:]) {
		if size <= b {
			return c.estimates[i]
		}
	}
	return math.MaxUint64
}

// multiplies reports whether an expression can make values that hold the same
// part many times, as lists of lists of one map do, or adds up many lists. What
// it costs to compare the first, or to find an element of the second, is not known
// to the estimate.
func multiplies(expr *ast.AST) bool {
	found, sums := false, 0
	var walk func(e ast.Expr, element string)
	literal := func(values []ast.Expr, element string) {
		if len(values) > elementsMax && slices.ContainsFunc(values, func(v ast.Expr) bool { return !isConstant(v) }) {
			found = true // The estimate takes it to cost as much as an empty one.
		}
		for _, v := range values {
			if isContainer(expr.GetType(v.ID())) && !isConstant(v) && (v.Kind() != ast.IdentKind || v.AsIdent() != element) {
				found = true
			}
			walk(v, element)
		}
	}
	// element is the variable of the innermost comprehension: filter puts each
	// element into its result once.
	walk = func(e ast.Expr, element string) {
		switch e.Kind() {
		case ast.ListKind:
			literal(e.AsList().Elements(), element)
		case ast.MapKind:
			for _, entry := range e.AsMap().Entries() {
				literal([]ast.Expr{entry.AsMapEntry().Key(), entry.AsMapEntry().Value()}, element)
			}
		case ast.StructKind:
			found = true
		case ast.SelectKind:
			walk(e.AsSelect().Operand(), element)
		case ast.CallKind:
			call := e.AsCall()
			if call.FunctionName() == operators.Add && isContainer(expr.GetType(e.ID())) {
				if sums++; sums > listSumsMax {
					found = true
				}
			}
			if call.IsMemberFunction() {
				walk(call.Target(), element)
			}
			for i, arg := range call.Args() {
				if call.FunctionName() == operators.In && i == 1 && arg.Kind() == ast.ListKind {
					// The list ends with the comparison.
					for _, v := range arg.AsList().Elements() {
						walk(v, element)
					}
					continue
				}
				walk(arg, element)
			}
		case ast.ComprehensionKind:
			comp := e.AsComprehension()
			walk(comp.IterRange(), element)
			walk(comp.AccuInit(), element)
			walk(comp.LoopCondition(), comp.IterVar())
			walk(comp.LoopStep(), comp.IterVar())
			walk(comp.Result(), element)
		}
	}
	walk(expr.Expr(), "")
	return found
}

// isContainer reports whether values of a type may hold others.
func isContainer(t *types.Type) bool {
	switch t.Kind() {
	case types.BoolKind, types.BytesKind, types.DoubleKind, types.DurationKind, types.IntKind, types.NullTypeKind,
		types.StringKind, types.TimestampKind, types.UintKind:
		return false
	}
	return !t.IsExactType(ipType)
}

// isConstant reports whether an expression is a literal, all through.
func isConstant(e ast.Expr) bool {
	switch e.Kind() {
	case ast.LiteralKind:
		return true
	case ast.ListKind:
		for _, v := range e.AsList().Elements() {
			if !isConstant(v) {
				return false
			}
		}
		return true
	case ast.MapKind:
		for _, entry := range e.AsMap().Entries() {
			if !isConstant(entry.AsMapEntry().Key()) || !isConstant(entry.AsMapEntry().Value()) {
				return false
			}
		}
		return true
	}
	return false
}

// sizes tells CEL's cost estimate how large the values of parameters can be.
type sizes struct {
	text, list, element int
	// patterns are those that the expression spells out, but for what is refused, which
	// is as costly as can be.
	patterns map[string]*pattern
}

// EstimateSize returns the size of a parameter, or of an element within one.
func (s sizes) EstimateSize(node cost.AstNode) *cost.SizeEstimate {
	size := s.element
	switch path := node.Path(); {
	case len(path) == 0:
		return nil
	case len(path) == 1:
		size = s.list
		if k := node.Type().Kind(); k == types.StringKind || k == types.BytesKind {
			size = s.text
		}
	}
	estimate := cost.RangedSizeEstimate(0, uint64(size))
	return &estimate
}

// EstimateCallCost returns the cost of what CEL does not know or takes for cheaper
// than it is. It follows meter, of which it is the upper bound.
func (s sizes) EstimateCallCost(function, overload string, target *cost.AstNode, args []cost.AstNode) *cost.CallEstimate {
	operands := args
	if target != nil {
		operands = append([]cost.AstNode{*target}, args...)
	}
	most := func(i int) uint64 { return cost.EstimateSize(s, operands[i]).Max }
	switch overload {
	case subtreeOverload:
		return atMost(uint64(2 * s.text))
	case overloads.Equals, overloads.NotEquals:
		if !isContainer(operands[0].Type()) || !isContainer(operands[1].Type()) {
			return nil
		}
		return atMost(min(s.bytesIn(operands[0]), s.bytesIn(operands[1])))
	case overloads.InList:
		if list := operands[1]; len(list.Path()) > 0 || isContainer(operands[0].Type()) {
			return atMost(s.bytesIn(list))
		}
	case overloads.AddString, overloads.AddBytes:
		size := cost.RangedSizeEstimate(0, cost.SafeAdd(most(0), most(1)))
		return cost.NewCallEstimate(cost.RangedCostEstimate(0, cost.SafeAdd(1, size.Max/4)), &size)
	case overloads.Matches, overloads.MatchesString:
		// A pattern of the context may be of any kind.
		n := uint64(math.MaxUint64)
		if literal := operands[1].Expr(); literal.Kind() == ast.LiteralKind {
			if text, ok := literal.AsLiteral().(types.String); ok && s.patterns[string(text)] != nil {
				n = s.patterns[string(text)].matchCost(most(0))
			}
		}
		return atMost(n)
	case overloads.BoolToString, overloads.IntToString, overloads.UintToString, overloads.DoubleToString,
		overloads.TimestampToString, overloads.DurationToString:
		size := cost.RangedSizeEstimate(0, scalarTextMax)
		return cost.NewCallEstimate(cost.FixedCostEstimate(conversionCost+scalarTextMax/10), &size)
	case overloads.StringToBytes, overloads.BytesToString:
		return nil // known to CEL, with the size of the result
	case unwrapOverload, unwrapOptOverload:
		return atMost(math.MaxUint64)
	}
	switch {
	case isZoned(overload):
		return atMost(zoneCost)
	case isReading(function) && len(operands) > 0:
		n := uint64(0)
		for i := range operands {
			if isText(operands[i].Type()) || operands[i].Type().Kind() == types.DynKind {
				n = cost.SafeAdd(n, most(i))
			}
		}
		return atMost(cost.SafeAdd(conversionCost, n/10))
	}
	return nil
}

// scalarTextMax is not less than the length of any number, moment, duration or
// truth as text.
const scalarTextMax = 40

func atMost(n uint64) *cost.CallEstimate {
	return cost.NewCallEstimate(cost.RangedCostEstimate(0, n), nil)
}

// unbounded is the estimate of a call that is always counted.
func unbounded(cost.Estimator, *cost.AstNode, []cost.AstNode) *cost.CallEstimate {
	return atMost(math.MaxUint64)
}

// bytesIn returns how much of the context can stand in a value; without bound if
// it is neither a part of the context nor a list of such parts.
func (s sizes) bytesIn(node cost.AstNode) uint64 {
	switch {
	case len(node.Path()) == 1:
		return uint64(s.text)
	case len(node.Path()) > 1:
		return uint64(s.element)
	case isConstant(node.Expr()):
		return ExpressionCharsMax
	case node.Expr().Kind() != ast.ListKind:
		return math.MaxUint64
	}
	n := uint64(0)
	for _, e := range node.Expr().AsList().Elements() {
		if e.Kind() != ast.IdentKind && e.Kind() != ast.SelectKind && !isConstant(e) {
			return math.MaxUint64
		}
		n += uint64(s.text)
	}
	return n
}

func isText(t *types.Type) bool { return t.Kind() == types.StringKind || t.Kind() == types.BytesKind }

// isZoned reports whether a function takes the name of a time zone.
func isZoned(overload string) bool {
	return strings.HasPrefix(overload, "timestamp_to_") && strings.HasSuffix(overload, "_tz")
}

// isReading reports whether a function looks at all of a text that CEL takes to
// cost nothing: it counts characters, or reads a number.
func isReading(function string) bool {
	switch function {
	case overloads.Size, overloads.TypeConvertBool, overloads.TypeConvertBytes, overloads.TypeConvertDouble,
		overloads.TypeConvertDuration, overloads.TypeConvertInt, overloads.TypeConvertString,
		overloads.TypeConvertTimestamp, overloads.TypeConvertUint, "in_cidr":
		return true
	}
	return false
}

// newMetered returns what makes the program that counts, at the first call. It
// takes whole contexts and partial ones.
func newMetered(env *cel.Env, checked *cel.Ast, patterns map[string]*pattern) func() (cel.Program, error) {
	return sync.OnceValues(func() (cel.Program, error) {
		return env.Program(checked, append(inOrder(patterns),
			cel.InterruptCheckFrequency(1), // A step may take as long as all of a plain evaluation.
			cel.EvalOptions(cel.OptPartialEval),
			cel.CostTracking(meter{}),
			cel.CostTrackerOptions(cost.OverloadTracker(hasValueIsOverload, compareCost)),
			cel.CostLimit(costMax),
			cel.CustomDecoratorV2(chargeForMore),
		)...)
	})
}

// inOrder are the options of every program: maps have an order, and patterns a bound.
func inOrder(patterns map[string]*pattern) []cel.ProgramOption {
	cache := &patternCache{literals: patterns}
	return []cel.ProgramOption{cel.CustomDecoratorV2(ready), cel.CustomDecoratorV2(cache.match)}
}

// meter says what calls cost that CEL does not know or takes for cheaper than they
// are. It is asked behind each call.
type meter struct{}

// CallCost returns nil for what CEL knows.
func (meter) CallCost(function, overload string, args []ref.Val, result ref.Val) *uint64 {
	n := uint64(1)
	if types.IsUnknown(result) {
		n = unknownCost
		return &n
	}
	switch overload {
	case measureOverload:
		n = weigh(args[0])
	case copyOverload:
		size, _ := args[0].(types.Int)
		n += uint64(size)
	case payOverload:
		price, _ := args[0].(types.Uint)
		n = uint64(price)
	case subtreeOverload:
		n += 2 * weigh(args[0])
	case overloads.Equals, overloads.NotEquals:
		n += 2 * lighter(args[0], args[1])
	case overloads.InList:
		n += weigh(args[1])
	case unwrapOverload, unwrapOptOverload:
		if list, ok := args[0].(traits.Lister); ok {
			size, _ := list.Size().(types.Int)
			n += unwrapCost * uint64(size)
		}
	case overloads.AddString, overloads.AddBytes:
		n += textSize(result) / 4
	default:
		switch {
		case isZoned(overload):
			n += zoneCost
		case isReading(function):
			n += conversionCost
			for _, a := range args {
				n += textSize(a) / 10
			}
			n += textSize(result) / 10
		default:
			return nil
		}
	}
	return &n
}

// compareCost is that of comparing what an optional value holds, for which CEL counts
// the elements of the outermost list or map alone.
func compareCost(args []ref.Val, _ ref.Val) *uint64 {
	n := uint64(1)
	if len(args) == 2 {
		n += 2 * lighter(args[0], args[1])
	}
	return &n
}

// textSize returns the bytes of a string or bytes, and 0 for other values.
func textSize(v ref.Val) uint64 {
	switch v := v.(type) {
	case types.String:
		return uint64(len(v))
	case types.Bytes:
		return uint64(len(v))
	}
	return 0
}

// weigh counts the values within a value, and its text. It stops where an
// evaluation is given up, so that it takes no longer than that.
func weigh(v ref.Val) uint64 {
	left := int64(costMax)
	weighUpTo(v, &left)
	return uint64(costMax - left)
}

// lighter returns about the lesser weight of two values. It looks into the heavier one
// no further than it takes to tell: to compare it ends where they differ, at the latest
// at the end of the lighter one.
func lighter(a, b ref.Val) uint64 {
	for limit := int64(64); ; limit *= 4 {
		for _, v := range [...]ref.Val{a, b} {
			left := limit
			if weighUpTo(v, &left); left > 0 || limit >= costMax {
				return uint64(limit - left)
			}
		}
	}
}

func weighUpTo(v ref.Val, left *int64) {
	*left -= 1 + int64(textSize(v)/10)
	switch v := v.(type) {
	case traits.Lister:
		size, _ := v.Size().(types.Int)
		for i := types.Int(0); i < size && *left > 0; i++ {
			weighUpTo(v.Get(i), left)
		}
	case traits.Mapper:
		// To walk over a map is to copy its keys.
		if size, _ := v.Size().(types.Int); int64(size) >= *left {
			*left = 0
			return
		}
		for it := v.Iterator(); it.HasNext() == types.True && *left > 0; {
			key := it.Next()
			weighUpTo(key, left)
			weighUpTo(v.Get(key), left)
		}
	case *types.Optional:
		if v.HasValue() {
			weighUpTo(v.GetValue(), left)
		}
	}
}

// chargeForMore is a decorator. It makes lists and maps that an expression writes
// cost what they hold, before anything is done with them: else a list of lists of
// one list would grow a hundredfold with each pair of brackets, and one comparison
// take years. And it makes the sum of two lists a list of its own, for CEL's is a pair
// in which finding an element takes longer with each sum.
func chargeForMore(i interpreter.InterpretableV2) (interpreter.InterpretableV2, error) {
	switch step := i.(type) {
	case interpreter.InterpretableConstructor:
		for _, v := range step.InitVals() {
			if !isConst(v) {
				return measured{i}, nil
			}
		}
	case interpreter.InterpretableCall:
		if step.Function() == operators.Add {
			return flattened{i}, nil
		}
	}
	return i, nil
}

func isConst(i interpreter.InterpretableV2) bool {
	_, is := i.(interpreter.InterpretableConst)
	return is
}

// measured makes a list or a map, and pays for all that is in it.
type measured struct{ interpreter.InterpretableV2 }

// Exec evaluates the step within and counts the values in its result.
func (m measured) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	v := m.InterpretableV2.Exec(frame)
	if costs := frame.CostTracker(); costs != nil {
		costs.EvalUnary(frame, m.ID(), ownCall(measureOverload), v, v)
	}
	return v
}

// Eval is Exec, for who has no frame.
func (m measured) Eval(vars interpreter.Activation) ref.Val {
	return interpreter.EvalActivation(vars, m.Exec)
}

// ownCall is what meter is asked the cost of, where no function is called.
type ownCall string

// Function returns a name that no function has.
func (c ownCall) Function() string { return string(c) }

// OverloadID returns the same.
func (c ownCall) OverloadID() string { return string(c) }

// flattened is a sum, which may be one of lists.
type flattened struct{ interpreter.InterpretableV2 }

// Exec evaluates the sum. What a macro gathers is left as it is.
func (f flattened) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	v := f.InterpretableV2.Exec(frame)
	list, isList := v.(traits.Lister)
	if _, gathering := v.(traits.MutableLister); !isList || gathering {
		return v
	}
	size, isInt := list.Size().(types.Int)
	if !isInt {
		return v
	}
	if costs := frame.CostTracker(); costs != nil {
		costs.EvalUnary(frame, f.ID(), ownCall(copyOverload), size, v)
	}
	vals := make([]ref.Val, size)
	for i := range vals {
		vals[i] = list.Get(types.Int(i))
	}
	return types.NewRefValList(types.DefaultTypeAdapter, vals)
}

// Eval is Exec, for who has no frame.
func (f flattened) Eval(vars interpreter.Activation) ref.Val {
	return interpreter.EvalActivation(vars, f.Exec)
}

// tooCostly turns the error of a program that gave up for its cost into one that
// says so; other errors it returns as they are.
func tooCostly(err error, size int) error {
	var cancelled interpreter.EvalCancelledError
	if !errors.As(err, &cancelled) || cancelled.Cause != interpreter.CostLimitExceeded {
		return err
	}
	return fmt.Errorf("%w: with this context, of size %d, it needs more than %d steps; give smaller values, or simplify the expression",
		errTooCostly, size, EvaluationStepsMax)
}
