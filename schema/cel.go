package schema

import (
	"encoding/base64"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/decls"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// Limits on one caveat, which bound the work of compiling and evaluating it.
const (
	// ExpressionCharsMax bounds the characters of a caveat's expression.
	ExpressionCharsMax = 100_000
	// typeDepthMax bounds lists of lists.
	typeDepthMax = 5
	// interruptSteps is the number of iterations between looks at a deadline.
	interruptSteps = 100
)

// A valueType converts JSON values to those of a parameter's type.
type valueType struct {
	cel *cel.Type
	// convert returns the part of the value that does not fit, if it does not.
	convert func(v any) (val ref.Val, wrong any, ok bool)
}

// scalarTypes are the parameter types other than list and map.
var scalarTypes = map[string]*valueType{
	"any": {cel.DynType, jsonValue},
	"bool": {cel.BoolType, func(v any) (ref.Val, any, bool) {
		b, ok := v.(bool)
		return types.Bool(b), v, ok
	}},
	"string": {cel.StringType, func(v any) (ref.Val, any, bool) {
		s, ok := v.(string)
		return types.String(s), v, ok
	}},
	"int": {cel.IntType, func(v any) (ref.Val, any, bool) {
		n, ok := integer(v)
		return types.Int(n), v, ok
	}},
	// An unsigned parameter is an int for CEL, so that it compares with literals.
	"uint": {cel.IntType, func(v any) (ref.Val, any, bool) {
		n, ok := integer(v)
		return types.Int(n), v, ok && n >= 0
	}},
	"double": {cel.DoubleType, func(v any) (ref.Val, any, bool) {
		f, ok := v.(float64)
		if s, isText := v.(string); isText {
			var err error
			f, err = strconv.ParseFloat(s, 64)
			ok = err == nil
		}
		return types.Double(f), v, ok && !math.IsNaN(f) && !math.IsInf(f, 0)
	}},
	"bytes": {cel.BytesType, func(v any) (ref.Val, any, bool) {
		s, ok := v.(string)
		b, err := base64.StdEncoding.DecodeString(s)
		return types.Bytes(b), v, ok && err == nil
	}},
	"duration": {cel.DurationType, func(v any) (ref.Val, any, bool) {
		s, ok := v.(string)
		d, err := time.ParseDuration(s)
		return types.Duration{Duration: d}, v, ok && err == nil
	}},
	"timestamp": {cel.TimestampType, func(v any) (ref.Val, any, bool) {
		s, ok := v.(string)
		t, err := time.Parse(time.RFC3339, s)
		ok = ok && err == nil
		return types.Timestamp{Time: t.UTC()}, v, ok && t.UTC().Year() >= 1 && t.UTC().Year() <= 9999
	}},
	"ipaddress": {ipType, func(v any) (ref.Val, any, bool) {
		s, ok := v.(string)
		a, err := netip.ParseAddr(s)
		return ipAddress{a.Unmap()}, v, ok && err == nil && a.Zone() == ""
	}},
}

// parameterTypeNames are all parameter types, sorted.
var parameterTypeNames = []string{
	"any", "bool", "bytes", "double", "duration", "int", "ipaddress", "list", "map", "string", "timestamp", "uint",
}

// valueTypeOf returns the type of a declared parameter, which has been checked.
func valueTypeOf(t *TypeExpr) *valueType {
	if t.Element == nil {
		return scalarTypes[t.Name]
	}
	element := valueTypeOf(t.Element)
	if t.Name == "list" {
		return &valueType{cel.ListType(element.cel), func(v any) (ref.Val, any, bool) {
			list, ok := v.([]any)
			if !ok {
				return nil, v, false
			}
			vals := make([]ref.Val, len(list))
			for i, e := range list {
				val, wrong, ok := element.convert(e)
				if !ok {
					return nil, wrong, false
				}
				vals[i] = val
			}
			return types.NewRefValList(types.DefaultTypeAdapter, vals), nil, true
		}}
	}
	return &valueType{cel.MapType(cel.StringType, element.cel), func(v any) (ref.Val, any, bool) {
		m, ok := v.(map[string]any)
		if !ok {
			return nil, v, false
		}
		vals, keys := make(map[string]any, len(m)), sortedKeys(m)
		for _, k := range keys {
			val, wrong, ok := element.convert(m[k])
			if !ok {
				return nil, wrong, false
			}
			vals[k] = val
		}
		return newOrderedMap(keys, vals), nil, true
	}}
}

// celReserved are the words that CEL does not take as the name of a variable.
var celReserved = []string{
	"as", "break", "const", "continue", "else", "false", "for", "function", "if", "import", "in", "let", "loop",
	"namespace", "null", "package", "return", "true", "var", "void", "while",
}

// checkParameterName says what is wrong with the name of a parameter, or returns
// "".
func checkParameterName(name string) string {
	switch {
	case slices.Contains(celReserved, name):
		return fmt.Sprintf("`%s` is a reserved word of CEL and cannot be the name of a parameter", name)
	case name != "" && '0' <= name[0] && name[0] <= '9':
		return "the name of a parameter may not begin with a digit"
	case len(name) > nameBytesMax:
		return "a name may have at most 256 bytes"
	}
	return ""
}

// baseEnv is the CEL environment without the parameters.
var baseEnv = sync.OnceValues(func() (*cel.Env, error) {
	dynMap := cel.MapType(cel.StringType, cel.DynType)
	return cel.NewEnv(
		cel.DefaultUTCTimeZone(true),
		// `price > 5` is meant to work for a double, too.
		cel.CrossTypeNumericComparisons(true),
		cel.OptionalTypes(),
		cel.ParserExpressionSizeLimit(ExpressionCharsMax),
		cel.RegexProgramSizeLimit(regexProgramMax),
		cel.ASTValidators(
			cel.ValidateDurationLiterals(), cel.ValidateTimestampLiterals(), cel.ValidateRegexLiterals(),
		),
		cel.Types(ipType),
		cel.Function("in_cidr", cel.MemberOverload(inCIDROverload,
			[]*cel.Type{ipType, cel.StringType}, cel.BoolType, cel.BinaryBinding(inCIDR))),
		cel.Function("isSubtreeOf", cel.MemberOverload(subtreeOverload,
			[]*cel.Type{dynMap, dynMap}, cel.BoolType, cel.BinaryBinding(isSubtreeOf))),
		zonedFunctions(),
	)
})

const (
	inCIDROverload  = "ipaddress_in_cidr_string"
	subtreeOverload = "map_is_subtree_of_map"
)

// compileCaveat compiles a caveat whose parameters have been checked. It returns
// nil after an error.
func (c *compiler) compileCaveat(file *File, decl *CaveatDecl) *Caveat {
	errs := c.errs
	cv := &Caveat{Name: decl.Name.Text, Doc: docOf(&decl.Node)}
	cv.Expression, _ = canonicalBody(decl.Body)
	fail := func(kind ErrorKind, pos Position, format string, args ...any) reported {
		return errs.add(file, kind, pos, pos, format, args...)
	}
	if n := utf8.RuneCountInString(decl.Body); n > ExpressionCharsMax {
		fail(TypeError, decl.BodyPos, "the expression has %d characters; at most %d are allowed", n, ExpressionCharsMax)
		return nil
	}
	if cv.Expression == "" {
		fail(SyntaxError, decl.BodyPos, "the expression is empty")
		return nil
	}
	base, err := baseEnv()
	if err != nil {
		fail(TypeError, decl.BodyPos, "CEL is not available: %v", err)
		return nil
	}
	var variables []cel.EnvOption
	var names []string
	for _, p := range decl.Parameters {
		t := valueTypeOf(p.Type)
		variables = append(variables, cel.Variable(p.Name.Text, t.cel))
		names = append(names, p.Name.Text)
		cv.Parameters = append(cv.Parameters, Parameter{Name: p.Name.Text, Type: p.Type.String()})
		cv.types = append(cv.types, t)
		cv.unknowns = append(cv.unknowns, cel.AttributePattern(p.Name.Text))
	}
	env, err := base.Extend(variables...)
	if err != nil {
		fail(TypeError, decl.Name.Pos, "the parameters are not acceptable: %v", err)
		return nil
	}

	// The untouched body is compiled, so that CEL's positions are those of the file.
	parsed, issues := env.Parse(decl.Body)
	kind := SyntaxError
	checked := parsed
	if issues.Err() == nil {
		if !c.readable(file, decl, parsed.NativeRep()) {
			return nil
		}
		checked, issues = env.Check(parsed)
		kind = TypeError
	}
	if issues.Err() != nil {
		unknown := celUnknown(env, parsed, kind)
		for _, e := range issues.Errors() {
			pos := celPosition(decl, e.Location.Line(), e.Location.Column())
			msg, name := celMessage(e.Message)
			if name != "" && unknown.bound[e.ExprID] {
				continue // follows from the misspelt macro around it
			}
			fail(kind, pos, "%s", msg).suggest(name, func() []string {
				if call := unknown.calls[e.ExprID]; call != nil {
					return celFunctions(env, call.IsMemberFunction())
				}
				return names
			})
		}
		return nil
	}
	use := &celUse{info: checked.NativeRep().SourceInfo(), used: map[string]bool{}}
	use.walk(checked.NativeRep().Expr(), nil)
	if use.badCIDR != nil {
		fail(TypeError, celPosition(decl, use.badLine, use.badColumn), "%v", use.badCIDR)
		return nil
	}
	if out := checked.OutputType(); !out.IsExactType(cel.BoolType) {
		fail(TypeError, celPosition(decl, use.firstLine, use.firstColumn), "the expression must yield a bool, but yields %s", out)
		return nil
	}
	for _, p := range decl.Parameters {
		if !use.used[p.Name.Text] {
			errs.add(file, TypeError, p.Name.Pos, p.Name.End, "parameter `%s` is not used in the expression of caveat `%s`", p.Name.Text, cv.Name)
			return nil
		}
	}
	patterns := c.literals(checked.NativeRep())
	cv.estimate(env, checked, patterns)
	cv.metered = newMetered(env, checked, patterns)
	cv.plain, err = env.Program(checked, append(inOrder(patterns), cel.InterruptCheckFrequency(interruptSteps))...)
	if err == nil {
		cv.partial, err = env.Program(checked, append(inOrder(patterns),
			cel.InterruptCheckFrequency(interruptSteps), cel.EvalOptions(cel.OptPartialEval))...)
	}
	if err != nil {
		fail(TypeError, celPosition(decl, use.firstLine, use.firstColumn), "the expression cannot be compiled: %v", err)
		return nil
	}
	return cv
}

// celPosition converts a position of CEL, which counts lines from 1 and columns
// from 0 within the body. It returns the beginning of the body for no position.
func celPosition(decl *CaveatDecl, line, column int) Position {
	if line < 1 {
		return decl.BodyPos
	}
	rest := decl.Body
	pos := decl.BodyPos
	for ; line > 1; line-- {
		i := strings.IndexByte(rest, '\n')
		if i < 0 {
			return decl.BodyPos
		}
		rest = rest[i+1:]
		pos = Position{Line: pos.Line + 1, Column: 1, Offset: pos.Offset + i + 1}
	}
	for i := range rest {
		if column == 0 {
			pos.Offset += i
			return pos
		}
		column--
		pos.Column++
	}
	pos.Offset += len(rest)
	return pos
}

// celMessage shortens a message of CEL and returns the name it does not know.
func celMessage(msg string) (short, unknown string) {
	if rest, ok := strings.CutPrefix(msg, "undeclared reference to '"); ok {
		if name, _, ok := strings.Cut(rest, "'"); ok {
			return fmt.Sprintf("the expression refers to `%s`, which is neither a parameter nor a function", name), name
		}
	}
	msg = strings.TrimPrefix(msg, "Syntax error: ")
	for _, tail := range []string{" (in container", " expecting "} {
		if i := strings.Index(msg, tail); i >= 0 {
			msg = msg[:i]
		}
	}
	if len(msg) > 500 {
		msg = strings.ToValidUTF8(msg[:500], "") + "..."
	}
	return "CEL: " + strings.ReplaceAll(msg, "\n", " "), ""
}

// celUnknowns says what the expressions are that a check may not know, by id.
type celUnknowns struct {
	// calls holds the calls of functions.
	calls map[int64]ast.CallExpr
	// bound holds the uses of a variable that a misspelt macro would declare.
	bound map[int64]bool
}

// celUnknown walks a parsed expression. Of one that does not parse, kind
// SyntaxError, there is nothing to say.
func celUnknown(env *cel.Env, parsed *cel.Ast, kind ErrorKind) *celUnknowns {
	u := &celUnknowns{calls: map[int64]ast.CallExpr{}, bound: map[int64]bool{}}
	if kind == SyntaxError {
		return u
	}
	functions := env.Functions()
	ast.PreOrderVisit(parsed.NativeRep().Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		if e.Kind() != ast.CallKind {
			return
		}
		call := e.AsCall()
		u.calls[e.ID()] = call
		// Macros are expanded by the parser, so a call with a macro's shape that is no
		// function is a misspelt one: list.exist(x, x > 1).
		args := call.Args()
		if functions[call.FunctionName()] != nil || !call.IsMemberFunction() || len(args) < 2 || args[0].Kind() != ast.IdentKind {
			return
		}
		if !slices.Contains(celMacros(env, true), suggest(call.FunctionName(), celFunctions(env, true))) {
			return
		}
		for _, arg := range args {
			ast.PreOrderVisit(arg, ast.NewExprVisitor(func(x ast.Expr) {
				if x.Kind() == ast.IdentKind && x.AsIdent() == args[0].AsIdent() {
					u.bound[x.ID()] = true
				}
			}))
		}
	}))
	return u
}

// celMacros returns the names of the macros that are called on a value, or not.
func celMacros(env *cel.Env, member bool) []string {
	var names []string
	for _, m := range env.Macros() {
		if m.IsReceiverStyle() == member {
			names = append(names, m.Function())
		}
	}
	return names
}

// celFunctions returns the names of the functions and macros that are called on a
// value, or of those that are not. Operators are none of them.
func celFunctions(env *cel.Env, member bool) []string {
	names := celMacros(env, member)
	for name, f := range env.Functions() {
		operator := strings.ContainsFunc(name, func(r rune) bool { return r > 0x7F || !isNameByte(byte(r)) })
		if operator || strings.HasPrefix(name, "_") {
			continue
		}
		if slices.ContainsFunc(f.OverloadDecls(), func(o *decls.OverloadDecl) bool { return o.IsMemberFunction() == member }) {
			names = append(names, name)
		}
	}
	return names
}

// celUse finds what an expression uses.
type celUse struct {
	info *ast.SourceInfo
	used map[string]bool // the free variables

	// The first place of the expression, in CEL's counting.
	firstLine, firstColumn int

	badCIDR            error
	badLine, badColumn int
}

// walk visits an expression; bound holds the variables of the comprehensions
// around it. The recursion is bounded by CEL's own limit on nesting.
func (u *celUse) walk(e ast.Expr, bound []string) {
	if loc := u.info.GetStartLocation(e.ID()); loc.Line() > 0 {
		if u.firstLine == 0 || loc.Line() < u.firstLine || loc.Line() == u.firstLine && loc.Column() < u.firstColumn {
			u.firstLine, u.firstColumn = loc.Line(), loc.Column()
		}
	}
	switch e.Kind() {
	case ast.IdentKind:
		if name := e.AsIdent(); !slices.Contains(bound, name) {
			u.used[name] = true
		}
	case ast.SelectKind:
		u.walk(e.AsSelect().Operand(), bound)
	case ast.CallKind:
		call := e.AsCall()
		if call.IsMemberFunction() {
			u.walk(call.Target(), bound)
		}
		for _, arg := range call.Args() {
			u.walk(arg, bound)
		}
		if call.FunctionName() == "in_cidr" && len(call.Args()) == 1 && call.Args()[0].Kind() == ast.LiteralKind && u.badCIDR == nil {
			if s, ok := call.Args()[0].AsLiteral().(types.String); ok {
				if _, err := parseCIDR(string(s)); err != nil {
					loc := u.info.GetStartLocation(call.Args()[0].ID())
					u.badCIDR, u.badLine, u.badColumn = err, loc.Line(), loc.Column()
				}
			}
		}
	case ast.ListKind:
		for _, x := range e.AsList().Elements() {
			u.walk(x, bound)
		}
	case ast.MapKind:
		for _, entry := range e.AsMap().Entries() {
			u.walk(entry.AsMapEntry().Key(), bound)
			u.walk(entry.AsMapEntry().Value(), bound)
		}
	case ast.StructKind:
		for _, field := range e.AsStruct().Fields() {
			u.walk(field.AsStructField().Value(), bound)
		}
	case ast.ComprehensionKind:
		comp := e.AsComprehension()
		u.walk(comp.IterRange(), bound)
		u.walk(comp.AccuInit(), bound)
		inner := append(slices.Clone(bound), comp.IterVar(), comp.AccuVar())
		if comp.HasIterVar2() {
			inner = append(inner, comp.IterVar2())
		}
		u.walk(comp.LoopCondition(), inner)
		u.walk(comp.LoopStep(), inner)
		u.walk(comp.Result(), inner)
	}
}

// canonicalBody returns the text of a caveat's body without surrounding blanks
// and common indentation. A body with a string that spans lines is only trimmed,
// and verbatim is true: its indentation may be part of the string.
func canonicalBody(body string) (text string, verbatim bool) {
	_, multiline, err := scanCEL("{" + body + "}")
	if multiline || err != nil {
		return strings.TrimSpace(body), true
	}
	lines := strings.Split(body, "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " \t\r")
	}
	// A first line behind the brace has no indentation of its own.
	dedent(lines[1:])
	lines[0] = strings.TrimLeft(lines[0], " \t")
	return strings.TrimSpace(strings.Join(lines, "\n")), false
}

// ipType is the CEL type of the parameter type ipaddress.
var ipType = types.NewObjectType("ipaddress")

// ipAddress is an address as a CEL value. An IPv4 address mapped into IPv6 is
// held as IPv4, so that a range cannot be avoided by another spelling.
type ipAddress struct{ netip.Addr }

// ConvertToNative returns the netip.Addr or its text.
func (a ipAddress) ConvertToNative(t reflect.Type) (any, error) {
	switch t {
	case reflect.TypeFor[netip.Addr]():
		return a.Addr, nil
	case reflect.TypeFor[string]():
		return a.String(), nil
	}
	return nil, fmt.Errorf("an ipaddress cannot be converted to %v", t)
}

// ConvertToType converts to a string, the type, or itself.
func (a ipAddress) ConvertToType(t ref.Type) ref.Val {
	switch t {
	case types.StringType:
		return types.String(a.String())
	case types.TypeType:
		return ipType
	case ipType:
		return a
	}
	return types.NewErr("an ipaddress cannot be converted to %s", t.TypeName())
}

// Equal compares addresses.
func (a ipAddress) Equal(other ref.Val) ref.Val {
	b, ok := other.(ipAddress)
	return types.Bool(ok && a.Addr == b.Addr)
}

// Type returns the CEL type.
func (a ipAddress) Type() ref.Type { return ipType }

// Value returns the netip.Addr.
func (a ipAddress) Value() any { return a.Addr }

func parseCIDR(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		if len(text) > 60 {
			text = strings.ToValidUTF8(text[:60], "") + "..."
		}
		return netip.Prefix{}, fmt.Errorf("`%s` is not a range of addresses such as 10.0.0.0/8 or fd00::/8", text)
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p, nil
}

func inCIDR(ip, cidr ref.Val) ref.Val {
	a, ok := ip.(ipAddress)
	if !ok {
		return types.MaybeNoSuchOverloadErr(ip)
	}
	text, ok := cidr.(types.String)
	if !ok {
		return types.MaybeNoSuchOverloadErr(cidr)
	}
	p, err := parseCIDR(string(text))
	if err != nil {
		return types.WrapErr(err)
	}
	return types.Bool(p.Contains(a.Addr))
}

// isSubtreeOf reports whether each key of a stands in b with an equal value,
// where maps within are compared in the same way.
func isSubtreeOf(a, b ref.Val) ref.Val {
	small, ok := a.(traits.Mapper)
	if !ok {
		return types.MaybeNoSuchOverloadErr(a)
	}
	large, ok := b.(traits.Mapper)
	if !ok {
		return types.MaybeNoSuchOverloadErr(b)
	}
	for it := small.Iterator(); it.HasNext() == types.True; {
		key := it.Next()
		theirs, found := large.Find(key)
		if !found {
			return types.False
		}
		ours := small.Get(key)
		_, oursMap := ours.(traits.Mapper)
		_, theirsMap := theirs.(traits.Mapper)
		var equal ref.Val
		if oursMap && theirsMap {
			equal = isSubtreeOf(ours, theirs)
		} else {
			equal = types.Equal(ours, theirs)
		}
		if equal != types.True {
			return types.False
		}
	}
	return types.True
}
