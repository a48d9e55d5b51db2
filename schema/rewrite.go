package schema

import "strings"

// RewriteString returns the rewrite as an expression of the schema language:
// "viewer + parent->view". Its parentheses are those that precedence and the
// grouping of equal operators need, and those around other operators, for which
// Lint asks: "(viewer + owner) & member". It is meant for traces and differences.
func RewriteString(r Rewrite) string {
	var b strings.Builder
	writeRewrite(&b, r, precedenceNone, spelling{flags: flagSelf | flagRewrite})
	return b.String()
}

// A spelling says how the text of a rewrite is written.
type spelling struct {
	// flags are the features of the text's use lines.
	flags flag
	// least leaves out parentheses that only show the precedence.
	least bool
	// anyArrows holds the arrows that are still to be written, as Schema.anyArrows has
	// them; nil, and empty, for a text that spells none with .any().
	anyArrows *[]uint16
}

// flatten returns the rewrite without groups that change nothing: a union within a
// union becomes part of it, and so for intersections. The order of its leaves stays. An
// exclusion is another one where it is grouped otherwise, and stays as it is.
func flatten(r Rewrite) Rewrite {
	switch r := r.(type) {
	case Union:
		var children []Rewrite
		for _, c := range r.Children {
			c = flatten(c)
			if inner, ok := c.(Union); ok {
				children = append(children, inner.Children...)
			} else {
				children = append(children, c)
			}
		}
		return Union{Children: children}
	case Intersection:
		var children []Rewrite
		for _, c := range r.Children {
			c = flatten(c)
			if inner, ok := c.(Intersection); ok {
				children = append(children, inner.Children...)
			} else {
				children = append(children, c)
			}
		}
		return Intersection{Children: children}
	case Exclusion:
		return Exclusion{Base: flatten(r.Base), Subtracted: flatten(r.Subtracted)}
	}
	return r
}

// meaningOf returns a text that is the same for rewrites which are written alike but
// for groups that change nothing.
func meaningOf(r Rewrite) string { return RewriteString(flatten(r)) }

// The precedence of the operators, from loosest to tightest. An operand needs
// parentheses unless it binds tighter than the operator around it.
const (
	precedenceNone = iota
	precedenceExclusion
	precedenceIntersection
	precedenceUnion
)

func writeRewrite(b *strings.Builder, r Rewrite, around int, how spelling) {
	parentheses := func(precedence int) bool {
		return precedence <= around || !how.least && around != precedenceNone
	}
	open := func(precedence int) {
		if parentheses(precedence) {
			b.WriteByte('(')
		}
	}
	closing := func(precedence int) {
		if parentheses(precedence) {
			b.WriteByte(')')
		}
	}
	list := func(children []Rewrite, operator string, precedence int) {
		open(precedence)
		for i, c := range children {
			if i > 0 {
				b.WriteString(operator)
			}
			writeRewrite(b, c, precedence, how)
		}
		closing(precedence)
	}
	switch r := r.(type) {
	case This:
		b.WriteString("this")
	case Nil:
		b.WriteString("nil")
	case Self:
		b.WriteString("self")
	case Computed:
		b.WriteString(nameText(r.Name, true, how.flags))
	case Arrow:
		chain := splitChain(r.Name)
		chain[0].all = r.All
		chain = append([]link{{name: r.Relation}}, chain...)
		if how.anyArrows != nil && len(*how.anyArrows) > 0 {
			for i := range chain {
				chain[i].any = (*how.anyArrows)[0]&(1<<i) != 0
			}
			*how.anyArrows = (*how.anyArrows)[1:]
		}
		b.WriteString(chainText(chain, func(name string) string { return nameText(name, true, how.flags) }))
	case Union:
		list(r.Children, " + ", precedenceUnion)
	case Intersection:
		list(r.Children, " & ", precedenceIntersection)
	case Exclusion:
		open(precedenceExclusion)
		// `-` is left-associative: an exclusion on its left needs no parentheses.
		left := precedenceExclusion
		if _, ok := r.Base.(Exclusion); ok {
			left = precedenceNone
		}
		writeRewrite(b, r.Base, left, how)
		b.WriteString(" - ")
		writeRewrite(b, r.Subtracted, precedenceExclusion, how)
		closing(precedenceExclusion)
	}
}

// A link is one name of a chain of arrows; all says that .all() leads to it, any that
// the source spells the arrow to it with .any().
type link struct {
	name     string
	all, any bool
}

// chainText joins a chain: a->b.all(c). It is the source form when spell quotes
// names, and the name of a hidden permission when spell is nil.
func chainText(chain []link, spell func(string) string) string {
	var b strings.Builder
	for i, l := range chain {
		name := l.name
		if spell != nil {
			name = spell(name)
		}
		switch {
		case i == 0:
			b.WriteString(name)
		case l.all:
			b.WriteString(".all(" + name + ")")
		case l.any:
			b.WriteString(".any(" + name + ")")
		default:
			b.WriteString("->" + name)
		}
	}
	return b.String()
}

// splitChain takes the name of an arrow's target apart: a plain name gives one
// link, a hidden permission's name its chain. No name may hold `>` or `(`, so
// these two tell where a link ends.
func splitChain(name string) []link {
	var chain []link
	all := false
	for {
		end, next := len(name), len(name)
		nextAll := false
		switch i := strings.IndexAny(name, ">("); {
		case i < 0:
		case name[i] == '>':
			end, next = max(0, i-len("-")), i+1
		default:
			end, next, nextAll = max(0, i-len(".all")), i+1, true
		}
		chain = append(chain, link{name: strings.TrimSuffix(name[:end], ")"), all: all})
		if next == len(name) {
			return chain
		}
		name, all = name[next:], nextAll
	}
}
