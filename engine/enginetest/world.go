package enginetest

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"

	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

// ContextOf returns the context that a tuple carries; nil for none. It panics if
// that is no JSON object, which no World makes.
func ContextOf(t graph.Tuple) schema.Context {
	if t.Context == nil {
		return nil
	}
	var c schema.Context
	if err := json.Unmarshal(t.Context, &c); err != nil {
		panic(err)
	}
	return c
}

// CaveatsText declares the caveats of the worlds.
const CaveatsText = `
caveat at_least(level int, needed int) { level >= needed }
caveat is_open(open bool) { open }
`

// A World is the random world of the twin tests: a schema, and tuples and
// questions that fit it, made from a seed and small enough that cycles, exclusions
// and shared paths are common. Its names are ones that every API can carry. It is
// for one goroutine at a time.
type World struct {
	*rand.Rand
	// Text is the source of Schema, which compiles.
	Text   string
	Schema *schema.Schema
	// Objects are all objects there are, IDsPerType of each type, the users first.
	// Subjects are the same, and each with every name of its type as a userset.
	Objects  []graph.Object
	Subjects []graph.Subject
	// Now is the moment around which the lifetimes of tuples end: Start, unless it
	// is set to another.
	Now graph.Instant

	types []string
	plain bool // no caveats
}

// IDsPerType is how many objects of each type a World has.
const IDsPerType = 4

// NewWorld makes a World. The same source makes the same World.
func NewWorld(r *rand.Rand) *World {
	for {
		w := &World{Rand: r, Now: graph.InstantOf(Start), types: []string{"user", "group", "folder", "doc"}, plain: r.IntN(6) == 0}
		w.Text = w.schemaText()
		file, err := schema.Parse("random", w.Text)
		if err != nil {
			panic(fmt.Sprintf("the generator made a schema that does not parse: %v\n%s", err, w.Text))
		}
		if w.Schema, err = schema.Check(file); err != nil {
			continue // a permission that never ends, a wildcard in the wrong place
		}
		for _, t := range w.types {
			for i := range IDsPerType {
				w.Objects = append(w.Objects, graph.Object{Type: t, ID: fmt.Sprintf("%s%d", t[:1], i)})
			}
		}
		for _, o := range w.Objects {
			w.Subjects = append(w.Subjects, graph.Subject{Object: o})
		}
		for _, d := range w.Schema.Definitions {
			for _, o := range w.Objects {
				if o.Type != d.Name || o.Type == "user" {
					continue
				}
				for _, x := range d.Relations {
					w.Subjects = append(w.Subjects, graph.Subject{Object: o, Relation: x.Name})
				}
				for _, x := range d.Permissions {
					w.Subjects = append(w.Subjects, graph.Subject{Object: o, Relation: x.Name})
				}
			}
		}
		return w
	}
}

// OneIn reports true once in n times.
func (w *World) OneIn(n int) bool { return w.IntN(n) == 0 }

// Choose returns one of some, which must not be none.
func Choose[T any](w *World, of []T) T { return of[w.IntN(len(of))] }

func (w *World) schemaText() string {
	var b strings.Builder
	b.WriteString("use expiration\nuse self\nuse rewrite\n")
	if !w.plain {
		b.WriteString(CaveatsText)
	}
	b.WriteString("definition user {}\n")
	for _, t := range w.types[1:] {
		fmt.Fprintf(&b, "definition %s {\n", t)
		for _, r := range []string{"member", "banned", "link"} {
			var allowed []string
			for range 1 + w.IntN(3) {
				allowed = append(allowed, w.subjectType(r))
			}
			fmt.Fprintf(&b, "\trelation %s: %s", r, strings.Join(dedup(allowed), " | "))
			if r == "member" && w.OneIn(5) {
				fmt.Fprintf(&b, " = this %s %s", Choose(w, []string{"+", "&", "-"}), w.expression(t, 1))
			}
			b.WriteString("\n")
		}
		for i := range 3 {
			if i == 1 && w.OneIn(2) {
				b.WriteString("\tpermission perm1 = member - banned\n")
				continue
			}
			fmt.Fprintf(&b, "\tpermission perm%d = %s\n", i, w.expression(t, 2))
		}
		b.WriteString("}\n")
	}
	return b.String()
}

func dedup(s []string) []string {
	seen := map[string]bool{}
	var out []string
	for _, x := range s {
		if !seen[x] {
			seen[x] = true
			out = append(out, x)
		}
	}
	return out
}

var permissionLine = regexp.MustCompile(`^\tpermission perm\d = `)

// OtherPermissions returns the World with other permissions, some of them with arrows
// that lead nowhere, as a stored schema may have. The relations stay, so that tuples of
// w fit. The two share their source.
func (w *World) OtherPermissions() *World {
	for {
		next := *w
		typ := ""
		lines := strings.Split(w.Text, "\n")
		for i, line := range lines {
			if rest, ok := strings.CutPrefix(line, "definition "); ok {
				typ = strings.TrimSuffix(rest, " {")
			}
			if head := permissionLine.FindString(line); head != "" && w.OneIn(2) {
				lines[i] = head + w.expression(typ, 2)
			}
		}
		next.Text = strings.Join(lines, "\n")
		file, err := schema.Parse("random", next.Text)
		if err != nil {
			panic(err)
		}
		if next.Schema, err = schema.Compile(file); err == nil {
			return &next
		}
	}
}

func (w *World) subjectType(relation string) string {
	s := ""
	switch k := w.IntN(10); {
	case relation == "link":
		s = Choose(w, w.types[1:])
		if w.OneIn(6) {
			s += "#member"
		}
	case k < 4:
		s = "user"
	case k < 5:
		s = "user:*"
	case relation == "banned" && k < 8:
		s = Choose(w, w.types[1:]) + "#perm1"
	case k < 9:
		s = Choose(w, w.types[1:]) + "#" + Choose(w, []string{"member", "member", "perm0", "perm1"})
	default:
		s = Choose(w, w.types[1:])
	}
	var traits []string
	if !w.plain && w.OneIn(2) {
		traits = append(traits, Choose(w, []string{"at_least", "is_open"}))
	}
	if w.OneIn(8) {
		traits = append(traits, "expiration")
	}
	if len(traits) > 0 {
		s += " with " + strings.Join(traits, " and ")
	}
	return s
}

func (w *World) expression(t string, depth int) string {
	if depth == 0 || w.OneIn(4) {
		switch k := w.IntN(20); {
		case k < 9:
			return Choose(w, []string{"member", "banned", "link", "perm0", "perm1", "perm2"})
		case k < 18:
			return w.arrow()
		case k < 19:
			return "self"
		default:
			return "nil"
		}
	}
	return fmt.Sprintf("(%s %s %s)", w.expression(t, depth-1), Choose(w, []string{"+", "+", "&", "-"}), w.expression(t, depth-1))
}

// arrow makes an arrow or a chain of up to three, each of them to any or to all
// of the objects that its relation leads to. Most walk link, which leads to
// types with all names; member leads to users, too, which have none, and where
// it allows a wildcard or leads to users alone NewWorld makes the schema anew.
func (w *World) arrow() string {
	walked := func() string {
		if w.OneIn(8) {
			return "member"
		}
		return "link"
	}
	text := walked()
	for arrows := Choose(w, []int{1, 1, 1, 1, 2, 2, 3}); arrows > 0; arrows-- {
		to := Choose(w, []string{"member", "member", "banned", "perm0", "perm1", "perm2"})
		if arrows > 1 {
			to = walked()
		}
		text += fmt.Sprintf(Choose(w, []string{"->%s", "->%s", ".any(%s)", ".all(%s)"}), to)
	}
	return text
}

// Tuple makes a random tuple that fits the schema, or false if it hit a type
// that stores nothing.
func (w *World) Tuple() (graph.Tuple, bool) {
	o := Choose(w, w.Objects)
	d := w.Schema.Definition(o.Type)
	if len(d.Relations) == 0 {
		return graph.Tuple{}, false
	}
	r := Choose(w, d.Relations)
	a := Choose(w, r.Allowed)
	s := graph.Subject{Object: graph.Object{Type: a.Type, ID: fmt.Sprintf("%s%d", a.Type[:1], w.IntN(IDsPerType))}, Relation: a.Relation}
	if a.Wildcard {
		s.ID = graph.Wildcard
	}
	t := graph.Tuple{Object: o, Relation: r.Name, Subject: s, Caveat: a.Caveat}
	switch a.Caveat {
	case "at_least":
		t.Context = []byte(Choose(w, []string{`{"needed":3}`, `{"needed":5}`, `{"level":4,"needed":3}`, `{"level":4}`}))
	case "is_open":
		if w.OneIn(5) {
			t.Context = []byte(Choose(w, []string{`{"open":true}`, `{"open":false}`}))
		}
	}
	if a.Expiration {
		t.ValidUntil = w.Now + graph.Instant(w.IntN(2000)-700)*1_000_000
	}
	return t, true
}

// Context makes the context of a question; nil for none.
func (w *World) Context() schema.Context {
	return Choose(w, []schema.Context{nil, nil, nil, {"level": 4.0}, {"level": 9.0}, {"open": false}, {"needed": 1.0, "other": "x"}})
}
