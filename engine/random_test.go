package engine_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/pembadb/pemba/engine/enginetest"
	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

// The random world of the twin tests: schemas, tuples and questions made from
// a seed, small enough that cycles, exclusions and shared paths are common.

func contextOf(t graph.Tuple) schema.Context {
	if t.Context == nil {
		return nil
	}
	var c schema.Context
	if err := json.Unmarshal(t.Context, &c); err != nil {
		panic(err)
	}
	return c
}

const caveatsText = `
caveat at_least(level int, needed int) { level >= needed }
caveat is_open(open bool) { open }
`

type world struct {
	*rand.Rand
	text     string
	schema   *schema.Schema
	types    []string
	plain    bool // no caveats
	objects  []graph.Object
	subjects []graph.Subject
}

const idsPerType = 4

func newWorld(r *rand.Rand) *world {
	for {
		w := &world{Rand: r, types: []string{"user", "group", "folder", "doc"}, plain: r.IntN(6) == 0}
		w.text = w.schemaText()
		file, err := schema.Parse("random", w.text)
		if err != nil {
			panic(fmt.Sprintf("the generator made a schema that does not parse: %v\n%s", err, w.text))
		}
		if w.schema, err = schema.Compile(file); err != nil {
			continue // a permission that never ends, a wildcard in the wrong place
		}
		for _, t := range w.types {
			for i := range idsPerType {
				w.objects = append(w.objects, graph.Object{Type: t, ID: fmt.Sprintf("%s%d", t[:1], i)})
			}
		}
		for _, o := range w.objects {
			w.subjects = append(w.subjects, graph.Subject{Object: o})
		}
		for _, d := range w.schema.Definitions {
			for _, o := range w.objects {
				if o.Type != d.Name || o.Type == "user" {
					continue
				}
				for _, x := range d.Relations {
					w.subjects = append(w.subjects, graph.Subject{Object: o, Relation: x.Name})
				}
				for _, x := range d.Permissions {
					w.subjects = append(w.subjects, graph.Subject{Object: o, Relation: x.Name})
				}
			}
		}
		return w
	}
}

func (w *world) oneIn(n int) bool { return w.IntN(n) == 0 }

func choose[T any](w *world, of []T) T { return of[w.IntN(len(of))] }

func (w *world) schemaText() string {
	var b strings.Builder
	b.WriteString("use expiration\nuse self\nuse rewrite\n")
	if !w.plain {
		b.WriteString(caveatsText)
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
			if r == "member" && w.oneIn(5) {
				fmt.Fprintf(&b, " = this %s %s", choose(w, []string{"+", "&", "-"}), w.expression(t, 1))
			}
			b.WriteString("\n")
		}
		for i := range 3 {
			if i == 1 && w.oneIn(2) {
				b.WriteString("\tpermission p1 = member - banned\n")
				continue
			}
			fmt.Fprintf(&b, "\tpermission p%d = %s\n", i, w.expression(t, 2))
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

func (w *world) subjectType(relation string) string {
	s := ""
	switch k := w.IntN(10); {
	case relation == "link":
		s = choose(w, w.types[1:])
		if w.oneIn(6) {
			s += "#member"
		}
	case k < 4:
		s = "user"
	case k < 5:
		s = "user:*"
	case relation == "banned" && k < 8:
		s = choose(w, w.types[1:]) + "#p1"
	case k < 9:
		s = choose(w, w.types[1:]) + "#" + choose(w, []string{"member", "member", "p0", "p1"})
	default:
		s = choose(w, w.types[1:])
	}
	var traits []string
	if !w.plain && w.oneIn(2) {
		traits = append(traits, choose(w, []string{"at_least", "is_open"}))
	}
	if w.oneIn(8) {
		traits = append(traits, "expiration")
	}
	if len(traits) > 0 {
		s += " with " + strings.Join(traits, " and ")
	}
	return s
}

func (w *world) expression(t string, depth int) string {
	if depth == 0 || w.oneIn(4) {
		switch k := w.IntN(20); {
		case k < 9:
			return choose(w, []string{"member", "banned", "link", "p0", "p1", "p2"})
		case k < 18:
			return w.arrow()
		case k < 19:
			return "self"
		default:
			return "nil"
		}
	}
	return fmt.Sprintf("(%s %s %s)", w.expression(t, depth-1), choose(w, []string{"+", "+", "&", "-"}), w.expression(t, depth-1))
}

// arrow makes an arrow or a chain of up to three, each of them to any or to all
// of the objects that its relation leads to. Most walk link, which leads to
// types with all names; member leads to users, too, which have none, and where
// it allows a wildcard or leads to users alone the schema is made anew.
func (w *world) arrow() string {
	walked := func() string {
		if w.oneIn(8) {
			return "member"
		}
		return "link"
	}
	text := walked()
	for arrows := choose(w, []int{1, 1, 1, 1, 2, 2, 3}); arrows > 0; arrows-- {
		to := choose(w, []string{"member", "member", "banned", "p0", "p1", "p2"})
		if arrows > 1 {
			to = walked()
		}
		text += fmt.Sprintf(choose(w, []string{"->%s", "->%s", ".any(%s)", ".all(%s)"}), to)
	}
	return text
}

// now is where the random world's time begins; lifetimes end around it.
var now = graph.InstantOf(enginetest.Start)

// tuple makes a random tuple that fits the schema, or false if it hit a type
// that stores nothing.
func (w *world) tuple() (graph.Tuple, bool) {
	o := choose(w, w.objects)
	d := w.schema.Definition(o.Type)
	if len(d.Relations) == 0 {
		return graph.Tuple{}, false
	}
	r := choose(w, d.Relations)
	a := choose(w, r.Allowed)
	s := graph.Subject{Object: graph.Object{Type: a.Type, ID: fmt.Sprintf("%s%d", a.Type[:1], w.IntN(idsPerType))}, Relation: a.Relation}
	if a.Wildcard {
		s.ID = graph.Wildcard
	}
	t := graph.Tuple{Object: o, Relation: r.Name, Subject: s, Caveat: a.Caveat}
	switch a.Caveat {
	case "at_least":
		t.Context = []byte(choose(w, []string{`{"needed":3}`, `{"needed":5}`, `{"level":4,"needed":3}`, `{"level":4}`}))
	case "is_open":
		if w.oneIn(5) {
			t.Context = []byte(choose(w, []string{`{"open":true}`, `{"open":false}`}))
		}
	}
	if a.Expiration {
		t.ValidUntil = now + graph.Instant(w.IntN(2000)-700)*1_000_000
	}
	return t, true
}

func (w *world) context() schema.Context {
	return choose(w, []schema.Context{nil, nil, nil, {"level": 4.0}, {"level": 9.0}, {"open": false}, {"needed": 1.0, "other": "x"}})
}
