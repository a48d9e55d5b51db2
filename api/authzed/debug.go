package authzed

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

// This file turns the engine's trace of a check into the API's.
//
// The engine's has a node for each operation and tuple, the API's one for each
// relation or permission of an object. So operations are left out and what stands
// below them hangs under the name above, as do the names that tuples lead to. A
// tuple with a caveat is a step of its own, under the relation that stores it,
// unless it is the only step there: then the relation carries its evaluation.
//
// An evaluation is also carried by the steps above that hang on it, and a step
// that is conditional always has one, as clients expect: that of the one caveat it
// hangs on, or all of them in one expression.

// A debugger makes the debug information of the checks of one snapshot.
type debugger struct {
	schema *schema.Schema
	text   string
	// operation begins the ids of the steps, which count on behind it.
	operation string
	written   int
	source    string
	// bytes is about how much all of it takes: at most debugBytesMax.
	bytes int
	// told says that the schema stands in an item already.
	told bool
}

// debugBytesMax bounds the debug information of one call: each step may repeat the
// expression and the context of a caveat. With the rest of the answer it stays below
// the 4 MiB that clients take.
const debugBytesMax = 3 << 20

// stepBytes is the estimate of what a step takes besides names and evaluation.
const stepBytes = 256

func (d *debugger) take(bytes int) error {
	if d.bytes += bytes; d.bytes > debugBytesMax {
		return withReason(codes.FailedPrecondition, v1.ErrorReason_ERROR_REASON_UNSPECIFIED,
			fmt.Sprintf("the debug information takes more than %d bytes; ask without tracing, or about less", debugBytesMax), nil)
	}
	return nil
}

func (a *adapter) newDebugger(snapshot *engine.Snapshot) (*debugger, error) {
	s, _, err := snapshot.Schema()
	if err != nil {
		return nil, err
	}
	text, err := printed(snapshot)
	if err != nil {
		return nil, err
	}
	cluster := a.host.Node().ClusterID()
	return &debugger{
		schema: s, text: text, operation: fmt.Sprintf("%016x", rand.Uint64()),
		source: "pemba:" + hex.EncodeToString(cluster[:]),
	}, nil
}

// information converts the trace of an answer, which took so long.
func (d *debugger) information(answer engine.Answer, subject *v1.SubjectReference, given *structpb.Struct, took time.Duration) (*v1.DebugInformation, error) {
	c := &conversion{debugger: d, subject: subject, given: given, shown: make(map[place]*v1.CaveatEvalInfo)}
	root, err := c.convert(answer.Trace)
	if err != nil {
		return nil, err
	}
	check := root.steps[0].trace
	// Where the trace is undefined the answer is not.
	check.Result = debugResult(answer.Decision)
	check.Duration = durationpb.New(took)
	information := &v1.DebugInformation{Check: check, SchemaUsed: d.text}
	if d.bytes+len(d.text) > debugBytesMax/2 && d.told {
		information.SchemaUsed = "" // An earlier item has it.
	}
	d.told = true
	return information, d.take(len(information.SchemaUsed))
}

// A conversion is the work on one trace.
type conversion struct {
	*debugger
	subject *v1.SubjectReference
	given   *structpb.Struct
	// shown holds the evaluation that each name shown so far hangs on.
	shown map[place]*v1.CaveatEvalInfo
}

// A place is a relation or permission of an object.
type place struct {
	object graph.Object
	name   string
}

// A converted is what became of a node of the engine's trace.
type converted struct {
	decision engine.Decision
	// steps are those to hang under the name above.
	steps []step
	// evaluation is the one that the node hangs on; it may be nil unless the node
	// is conditional.
	evaluation *v1.CaveatEvalInfo
}

// A step is one node of the API's trace, of a name or of a tuple with a caveat.
type step struct {
	trace   *v1.CheckDebugTrace
	isTuple bool
}

func (c *conversion) convert(t *engine.Trace) (converted, error) {
	if err := c.take(stepBytes + len(t.Object.Type) + len(t.Object.ID) + len(t.Name) + proto.Size(c.subject)); err != nil {
		return converted{}, err
	}
	if t.Kind == engine.TraceCaveat {
		// Its tuple converts it.
		return converted{}, fmt.Errorf("authzed: the evaluation of caveat %s belongs to no tuple", t.Name)
	}
	at := place{t.Object, t.Name}
	again := false
	if t.Kind == engine.TraceName {
		// A name is followed where it is shown first, and referred to from then on.
		if _, again = c.shown[at]; !again {
			c.shown[at] = nil
		}
	}
	result := converted{decision: t.Verdict.Decision}
	var below []converted
	var own *v1.CaveatEvalInfo
	for _, child := range t.Children {
		if child.Kind == engine.TraceCaveat {
			var err error
			if own, err = c.evaluate(t.Tuple, child); err != nil {
				return result, err
			}
			if err := c.take(proto.Size(own)); err != nil {
				return result, err
			}
			below = append(below, converted{decision: child.Verdict.Decision, evaluation: own})
			continue
		}
		x, err := c.convert(child)
		if err != nil {
			return result, err
		}
		result.steps = append(result.steps, x.steps...)
		below = append(below, x)
	}
	result.evaluation = carried(hangsOn(t, below))
	if t.Kind == engine.TraceName {
		if again {
			result.evaluation = c.shown[at]
		}
		if t.Verdict.Decision == engine.Conditional && result.evaluation == nil {
			// What it hangs on is shown elsewhere, or too deep to be shown.
			result.evaluation = undecided(fmt.Sprintf("%s:%s#%s", t.Object.Type, t.Object.ID, t.Name), t.Verdict.Missing)
		}
		c.shown[at] = result.evaluation
	}
	// Also what was shown before stands in the message once more.
	if err := c.take(proto.Size(result.evaluation)); err != nil {
		return result, err
	}
	switch {
	case t.Kind == engine.TraceName:
		result.steps = []step{{trace: c.name(t, result.steps, result.evaluation, again)}}
	case own != nil:
		s := c.step(t, result.steps)
		s.CaveatEvaluationInfo = own
		if e := result.evaluation; t.Verdict.Decision == engine.Conditional && own.GetResult() == v1.CaveatEvalInfo_RESULT_TRUE {
			// The caveat holds, and what the tuple leads to is undecided.
			s.CaveatEvaluationInfo = carried(undecided("("+own.GetExpression()+") && ("+e.GetExpression()+")", t.Verdict.Missing))
			if err := c.take(proto.Size(s.CaveatEvaluationInfo)); err != nil {
				return result, err
			}
		}
		result.steps = []step{{trace: s, isTuple: true}}
	}
	return result, nil
}

// name makes the step of a name, which again says was shown before.
func (c *conversion) name(t *engine.Trace, below []step, evaluation *v1.CaveatEvalInfo, again bool) *v1.CheckDebugTrace {
	if len(below) == 1 && below[0].isTuple {
		only := below[0].trace
		if r := only.GetResource(); only.GetPermission() == t.Name && r.GetObjectType() == t.Object.Type && r.GetObjectId() == t.Object.ID {
			only.Result, only.Duration = debugResult(t.Verdict.Decision), durationpb.New(t.Duration)
			return only
		}
	}
	s := c.step(t, below)
	s.CaveatEvaluationInfo = evaluation
	if again {
		s.Resolution = &v1.CheckDebugTrace_WasCachedResult{WasCachedResult: true}
	}
	return s
}

// step makes the step of a name or a tuple.
func (c *conversion) step(t *engine.Trace, below []step) *v1.CheckDebugTrace {
	c.written++
	s := &v1.CheckDebugTrace{
		Resource: fromObject(t.Object), Permission: t.Name, PermissionType: v1.CheckDebugTrace_PERMISSION_TYPE_PERMISSION,
		Subject: c.subject, Result: debugResult(t.Verdict.Decision), Duration: durationpb.New(t.Duration),
		TraceOperationId: fmt.Sprintf("%s-%d", c.operation, c.written), Source: c.source,
	}
	if d := c.schema.Definition(t.Object.Type); d != nil && d.Relation(t.Name) != nil {
		s.PermissionType = v1.CheckDebugTrace_PERMISSION_TYPE_RELATION
	}
	if len(below) == 0 {
		// Where nothing is below a step, clients show the subject itself.
		s.Resolution = &v1.CheckDebugTrace_WasCachedResult{}
		return s
	}
	problems := &v1.CheckDebugTrace_SubProblems{}
	for _, b := range below {
		problems.Traces = append(problems.Traces, b.trace)
	}
	s.Resolution = &v1.CheckDebugTrace_SubProblems_{SubProblems: problems}
	return s
}

var debugResults = map[engine.Decision]v1.CheckDebugTrace_Permissionship{
	engine.Denied:      v1.CheckDebugTrace_PERMISSIONSHIP_NO_PERMISSION,
	engine.Conditional: v1.CheckDebugTrace_PERMISSIONSHIP_CONDITIONAL_PERMISSION,
	engine.Allowed:     v1.CheckDebugTrace_PERMISSIONSHIP_HAS_PERMISSION,
}

// debugResult converts a decision; what is undefined is unspecified.
func debugResult(d engine.Decision) v1.CheckDebugTrace_Permissionship { return debugResults[d] }

// evaluate converts the evaluation of a tuple's caveat.
func (c *conversion) evaluate(tuple *graph.Tuple, t *engine.Trace) (*v1.CaveatEvalInfo, error) {
	info := &v1.CaveatEvalInfo{CaveatName: t.Name}
	switch t.Verdict.Decision {
	case engine.Allowed:
		info.Result = v1.CaveatEvalInfo_RESULT_TRUE
	case engine.Denied:
		info.Result = v1.CaveatEvalInfo_RESULT_FALSE
	case engine.Conditional:
		info.Result, info.PartialCaveatInfo = v1.CaveatEvalInfo_RESULT_MISSING_SOME_CONTEXT, partial(t.Verdict)
	default:
		info.Result = v1.CaveatEvalInfo_RESULT_UNEVALUATED
	}
	caveat := c.schema.Caveat(t.Name)
	if caveat == nil || tuple == nil {
		return info, nil
	}
	info.Expression = caveat.Expression
	stored := &structpb.Struct{}
	if len(tuple.Context) > 0 {
		if err := stored.UnmarshalJSON(tuple.Context); err != nil {
			return nil, fmt.Errorf("the context of a stored tuple is no JSON object: %w", err)
		}
	}
	info.Context = &structpb.Struct{Fields: make(map[string]*structpb.Value)}
	for _, p := range caveat.Parameters {
		// What the tuple carries wins.
		for _, from := range []*structpb.Struct{stored, c.given} {
			if v, ok := from.GetFields()[p.Name]; ok {
				info.Context.Fields[p.Name] = v
				break
			}
		}
	}
	return info, nil
}

// hangsOn returns the evaluation that a node hangs on by those of the nodes below
// it: of a conditional node, that which is undecided; of a decided one, the only
// one that decided likewise.
func hangsOn(t *engine.Trace, below []converted) *v1.CaveatEvalInfo {
	if t.Verdict.Decision != engine.Conditional {
		return decidedBy(t, below)
	}
	var on []*v1.CaveatEvalInfo
	var expressions []string
	for i, x := range below {
		if x.decision != engine.Conditional || x.evaluation == nil {
			continue
		}
		on = append(on, x.evaluation)
		expression := x.evaluation.GetExpression()
		if t.Kind == engine.TraceExclusion && i > 0 {
			expression = "!(" + expression + ")"
		}
		expressions = append(expressions, expression)
	}
	switch {
	case len(on) == 0:
		return nil
	case len(on) == 1 && expressions[0] == on[0].GetExpression():
		return on[0]
	case len(on) == 1:
		return undecided(expressions[0], t.Verdict.Missing)
	}
	operator := " || "
	if t.NeedsAll() || t.Kind == engine.TraceExclusion {
		operator = " && "
	}
	for i, e := range expressions {
		if !strings.HasPrefix(e, "!(") {
			expressions[i] = "(" + e + ")"
		}
	}
	return undecided(strings.Join(expressions, operator), t.Verdict.Missing)
}

func decidedBy(t *engine.Trace, below []converted) *v1.CaveatEvalInfo {
	want := v1.CaveatEvalInfo_RESULT_TRUE
	if t.Verdict.Decision == engine.Denied {
		want = v1.CaveatEvalInfo_RESULT_FALSE
	}
	if t.Kind == engine.TraceExclusion {
		below = below[:min(1, len(below))] // What is taken away decides the opposite.
	}
	var by *v1.CaveatEvalInfo
	for _, x := range below {
		if x.decision != t.Verdict.Decision || x.evaluation.GetResult() != want {
			continue
		}
		if by != nil {
			return nil
		}
		by = x.evaluation
	}
	return by
}

// undecided is the evaluation of several caveats as one.
func undecided(expression string, missing []string) *v1.CaveatEvalInfo {
	return &v1.CaveatEvalInfo{
		Expression: expression, Result: v1.CaveatEvalInfo_RESULT_MISSING_SOME_CONTEXT,
		PartialCaveatInfo: partial(engine.Verdict{Missing: missing}),
	}
}

// Steps may stand high above each other, and each carries what it hangs on: a
// large evaluation is carried without its context and the end of its expression.
const (
	carriedBytesMax           = 4096
	carriedExpressionBytesMax = 1024
)

func carried(e *v1.CaveatEvalInfo) *v1.CaveatEvalInfo {
	if e == nil || proto.Size(e) <= carriedBytesMax {
		return e
	}
	short := &v1.CaveatEvalInfo{
		Expression: e.GetExpression(), Result: e.GetResult(), PartialCaveatInfo: e.GetPartialCaveatInfo(), CaveatName: e.GetCaveatName(),
	}
	if len(short.Expression) > carriedExpressionBytesMax {
		short.Expression = strings.ToValidUTF8(short.Expression[:carriedExpressionBytesMax], "") + "..."
	}
	return short
}
