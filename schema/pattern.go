package schema

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"regexp/syntax"
	"strconv"
	"strings"
	"sync/atomic"
	"unicode/utf8"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/interpreter"
)

// What a pattern may be: reading one takes far longer than its length says, which
// package regexp does not bound.
const (
	patternBytesMax = 4 << 10
	// patternWorkMax bounds the work of reading one pattern, some thirty milliseconds,
	// and PatternWorkMax that of all patterns that a schema spells out.
	patternWorkMax = 250_000
	// regexProgramMax bounds the instructions that a pattern compiles to.
	regexProgramMax = 2_000
)

// PatternWorkMax bounds the work of reading the patterns that the caveats of a schema
// spell out, together: a unit for each character, some thousands for each class of
// Unicode, and the letters of each range that is to match in both cases. Compile does
// not ask for it.
const PatternWorkMax = 500_000

// A pattern is a regular expression that is small enough to be matched.
type pattern struct {
	text   string
	regexp *regexp.Regexp
	// Invariant: instructions <= regexProgramMax.
	instructions uint64
}

// readPattern reads a pattern, which takes patternWork.
func readPattern(text string) (*pattern, error) {
	tree, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return nil, err
	}
	instructions := 3 + instructionsOf(tree)
	if instructions > regexProgramMax {
		return nil, fmt.Errorf("the pattern has a size of %d; at most %d is allowed", instructions, regexProgramMax)
	}
	re, err := regexp.Compile(text)
	if err != nil {
		return nil, err
	}
	return &pattern{text, re, instructions}, nil
}

// matchCost returns the cost of matching a text of n bytes, each of which every
// instruction may look at.
func (p *pattern) matchCost(n uint64) uint64 {
	if n > costMax {
		return math.MaxUint64
	}
	return 3*p.instructions + (n+1)*p.instructions/12
}

const (
	// unicodeClassWork is that of a class of Unicode, which has up to a thousand ranges.
	unicodeClassWork = 5_000
	// foldedMax is the number of letters from the first to the last that has another case.
	foldedMax = 125_000
	// shortEscapeMax is the last letter that can be written as \377, \x7F or the like.
	// As much is added for each range, since its ends may be written so.
	shortEscapeMax = 0x1FF
)

// patternWork returns about what reading a pattern costs, or an error if that is too
// much, before anything is done with it. A range of letters that is to match in both
// cases is gone through letter by letter.
func patternWork(text string) (uint64, error) {
	if len(text) > patternBytesMax {
		return 0, fmt.Errorf("the pattern has %d bytes; at most %d are allowed", len(text), patternBytesMax)
	}
	work := 2*len(text) + unicodeClassWork*(strings.Count(text, `\p`)+strings.Count(text, `\P`))
	if folds(text) {
		for i := 1; i < len(text)-1; i++ {
			if text[i] != '-' {
				continue
			}
			low, _ := utf8.DecodeLastRuneInString(text[:i])
			work += min(max(int(rangeEnd(text[i+1:]))-int(low), 0)+shortEscapeMax, foldedMax)
		}
	}
	if work > patternWorkMax {
		return 0, errors.New("the pattern has too many classes of Unicode, or too wide ranges that are to match in both cases")
	}
	return uint64(work), nil
}

// folds reports whether a pattern may have a part that matches in both cases.
func folds(text string) bool {
	for {
		_, rest, found := strings.Cut(text, "(?")
		if !found {
			return false
		}
		flags := strings.TrimLeft(rest, "imsU-")
		if strings.Contains(rest[:len(rest)-len(flags)], "i") {
			return true
		}
		text = rest
	}
}

// rangeEnd returns the letter that a range ends with, which begins a text.
func rangeEnd(text string) rune {
	hex, found := strings.CutPrefix(text, `\x{`)
	if !found {
		end, _ := utf8.DecodeRuneInString(text)
		return end
	}
	hex, _, _ = strings.Cut(hex, "}")
	end, err := strconv.ParseUint(hex, 16, 31)
	if err != nil {
		return utf8.MaxRune
	}
	return rune(end)
}

// instructionsOf returns about how many instructions a pattern compiles to, which can
// be some millions.
func instructionsOf(re *syntax.Regexp) uint64 {
	n := uint64(0)
	for _, sub := range re.Sub {
		n += instructionsOf(sub)
	}
	switch re.Op {
	case syntax.OpLiteral:
		return uint64(len(re.Rune))
	case syntax.OpConcat:
		return n
	case syntax.OpAlternate:
		return n + uint64(len(re.Sub))
	case syntax.OpCapture:
		return n + 2
	case syntax.OpRepeat:
		if re.Max < 0 {
			return n*uint64(max(re.Min, 1)) + 1
		}
		return n*uint64(re.Min) + (n+1)*uint64(re.Max-re.Min)
	}
	return n + 1
}

// literalPatterns calls visit for each pattern that an expression spells out.
func literalPatterns(expr ast.Expr, visit func(literal ast.Expr, text string)) {
	ast.PreOrderVisit(expr, ast.NewExprVisitor(func(e ast.Expr) {
		if e.Kind() != ast.CallKind || e.AsCall().FunctionName() != overloads.Matches {
			return
		}
		call := e.AsCall()
		args := call.Args()
		if len(args) == 0 {
			return
		}
		last := args[len(args)-1]
		if last.Kind() != ast.LiteralKind {
			return
		}
		if text, ok := last.AsLiteral().(types.String); ok {
			visit(last, string(text))
		}
	}))
}

// readable counts the patterns that an expression spells out, if bounded, and reports
// those that are too large, before anything else reads them. One that is no pattern is
// left to CEL to report.
func (c *compiler) readable(file *File, decl *CaveatDecl, expr *ast.AST) bool {
	if !c.bounded {
		return true
	}
	ok := true
	literalPatterns(expr.Expr(), func(literal ast.Expr, text string) {
		if c.patternWork > PatternWorkMax {
			return // It is reported.
		}
		work, err := patternWork(text)
		if c.patternWork += work; err == nil && c.patternWork > PatternWorkMax {
			err = fmt.Errorf("the patterns of the schema are too much work together: at most %d units, of which a class of Unicode has %d, and a range that is to match in both cases as many as letters", PatternWorkMax, unicodeClassWork)
		}
		var wrong *syntax.Error
		if err == nil {
			if _, err = c.read(text); errors.As(err, &wrong) {
				return
			}
		}
		if err != nil {
			loc := expr.SourceInfo().GetStartLocation(literal.ID())
			pos := celPosition(decl, loc.Line(), loc.Column())
			c.errs.add(file, TypeError, pos, pos, "%v", err)
			ok = false
		}
	})
	return ok && c.patternWork <= PatternWorkMax
}

// read is readPattern for what a caveat spells out, once for each text.
func (c *compiler) read(text string) (*pattern, error) {
	if p := c.patterns[text]; p != nil {
		return p, nil
	}
	p, err := readPattern(text)
	if err == nil {
		c.patterns[text] = p
	}
	return p, err
}

// literals returns the patterns that an expression spells out, without those that are
// too large.
func (c *compiler) literals(expr *ast.AST) map[string]*pattern {
	found := map[string]*pattern{}
	literalPatterns(expr.Expr(), func(_ ast.Expr, text string) {
		if _, err := patternWork(text); err != nil {
			return
		}
		if p, err := c.read(text); err == nil {
			found[text] = p
		}
	})
	return found
}

// A patternCache holds the pattern of a context that was met last: most expressions
// have but one. It is safe for concurrent use.
type patternCache struct {
	// literals are those that the expression spells out.
	literals map[string]*pattern
	last     atomic.Pointer[pattern]
}

func (c *patternCache) read(text string) (*pattern, error) {
	if p := c.last.Load(); p != nil && p.text == text {
		return p, nil
	}
	p, err := readPattern(text)
	if err == nil {
		c.last.Store(p)
	}
	return p, err
}

// match is a decorator. It reads a pattern that the expression spells out once, and
// has all of reading and matching paid for before it is done, for nothing can stop it.
func (c *patternCache) match(i interpreter.InterpretableV2) (interpreter.InterpretableV2, error) {
	call, ok := i.(interpreter.InterpretableCall)
	if !ok || call.Function() != overloads.Matches || len(call.Args()) != 2 {
		return i, nil
	}
	m := &matching{InterpretableV2: i, cache: c, text: call.Args()[0], pattern: call.Args()[1]}
	if literal, ok := m.pattern.(interpreter.InterpretableConst); ok {
		if text, ok := literal.Value().(types.String); ok {
			if m.literal = c.literals[string(text)]; m.literal == nil {
				// It was stored before that was refused.
				m.err = errors.New("the pattern is too large, or none")
			}
		}
	}
	return m, nil
}

// matching is a match of a text against a pattern.
type matching struct {
	interpreter.InterpretableV2
	cache         *patternCache
	text, pattern interpreter.InterpretableV2
	// literal is what the expression spells out, or err what is wrong with it; both
	// are nil for a pattern that is not known beforehand.
	literal *pattern
	err     error
}

// Exec evaluates the match.
func (m *matching) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	text, wanted := m.text.Exec(frame), m.pattern.Exec(frame)
	// As with CEL's own operators, what is unknown first is not known to fail.
	switch v := text.(type) {
	case *types.Err:
		return v
	case *types.Unknown:
		if other, is := wanted.(*types.Unknown); is {
			v = types.MergeUnknowns(v, other)
		}
		return m.pay(frame, unknownCost, v)
	}
	if types.IsUnknownOrError(wanted) {
		return m.pay(frame, unknownCost, wanted)
	}
	in, isString := text.(types.String)
	if !isString {
		return types.MaybeNoSuchOverloadErr(text)
	}
	p, err := m.literal, m.err
	if p == nil && err == nil {
		of, isString := wanted.(types.String)
		if !isString {
			return types.MaybeNoSuchOverloadErr(wanted)
		}
		var work uint64
		if work, err = patternWork(string(of)); err == nil {
			m.pay(frame, work, nil)
			p, err = m.cache.read(string(of))
		}
	}
	if err != nil {
		return types.WrapErr(fmt.Errorf("matches: %w", err))
	}
	m.pay(frame, p.matchCost(uint64(len(in))), nil)
	return types.Bool(p.regexp.MatchString(string(in)))
}

// pay counts a cost, where costs are counted, and returns a result.
func (m *matching) pay(frame *interpreter.ExecutionFrame, cost uint64, result ref.Val) ref.Val {
	if costs := frame.CostTracker(); costs != nil {
		costs.EvalUnary(frame, m.ID(), ownCall(payOverload), types.Uint(cost), result)
	}
	return result
}

// Eval is Exec, for who has no frame.
func (m *matching) Eval(vars interpreter.Activation) ref.Val {
	return interpreter.EvalActivation(vars, m.Exec)
}
