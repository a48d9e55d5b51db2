package engine_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

const nestingSchema = `
use wildcards
caveat open(gate bool) { gate }
definition person {}
definition team { relation member: person | person:* | team#member }
definition group {
	relation direct: person | person with open | team#member | group#member
	relation owner: person
	permission member = direct + owner
	relation banned: person
	permission left = direct - banned
}
definition document {
	relation viewer: person | group#member | group#member with open | group#left | team#member
	permission view = viewer
}`

// TestNesting asks whether subjects that are in many usersets, or in few, are on objects
// that hold many, or few, around each bound at which it is found out in another way: by
// looking for each userset that the subject is in, by reading those of the object, or by
// going down into them.
func TestNesting(t *testing.T) {
	counts := []int{0, 1, 2, 7, 8, 9, 63, 64, 65, 128, 254, 255, 256, 257, 300}
	const groups = 400
	random := rand.New(rand.NewPCG(3, 4))
	var tuples []string
	member := map[int]map[int]bool{}
	for _, k := range counts {
		member[k] = map[int]bool{}
		for i, g := range random.Perm(groups)[:k] {
			member[k][g] = true
			if i%7 == 3 {
				// By way of a team, one for each, which counts too.
				tuples = append(tuples, fmt.Sprintf("group:g%d#direct@team:of%d-%d#member", g, k, g),
					fmt.Sprintf("team:of%d-%d#member@person:p%d", k, g, k))
				continue
			}
			tuples = append(tuples, fmt.Sprintf("group:g%d#%s@person:p%d", g, [...]string{"direct", "owner"}[i%2], k))
		}
	}
	holds := map[int][]int{}
	for _, e := range counts {
		for _, g := range random.Perm(groups)[:e] {
			holds[e] = append(holds[e], g)
			tuples = append(tuples, fmt.Sprintf("document:d%d#viewer@group:g%d#member", e, g))
		}
	}
	s := snapshot(t, newEnv(t, nestingSchema, tuples...))
	allowed := 0
	for _, k := range counts {
		for _, e := range counts {
			want := engine.Denied
			for _, g := range holds[e] {
				if member[k][g] {
					want = engine.Allowed
				}
			}
			if want == engine.Allowed {
				allowed++
			}
			mustCheck(t, s, fmt.Sprintf("document:d%d#view@person:p%d", e, k), want)
		}
		for g := range groups {
			if want := engine.Denied; g%5 == 0 {
				if member[k][g] {
					want = engine.Allowed
				}
				mustCheck(t, s, fmt.Sprintf("group:g%d#member@person:p%d", g, k), want)
			}
		}
	}
	if all := len(counts) * len(counts); allowed < all/4 || allowed > all*3/4 {
		t.Errorf("%d of %d documents are allowed: too much alike", allowed, all)
	}
}

// TestNestingExceptions: caveats on the way to a userset and from it, wildcards, usersets
// as subjects, cycles, and usersets of names that take something away.
func TestNestingExceptions(t *testing.T) {
	s := snapshot(t, newEnv(t, nestingSchema,
		"group:a#direct@person:anne", "group:b#direct@group:a#member", "group:a#direct@group:b#member",
		"group:c#direct@person:cato[open]", "group:d#direct@group:c#member",
		"team:all#member@person:*", "group:every#direct@team:all#member",
		"group:l#direct@person:anne", "group:l#direct@person:bob", "group:l#banned@person:bob",
		"document:a#viewer@group:b#member", "document:gated#viewer@group:b#member[open]",
		`document:shut#viewer@group:b#member[open:{"gate":false}]`, `document:opened#viewer@group:b#member[open:{"gate":true}]`,
		"document:c#viewer@group:d#member", "document:every#viewer@group:every#member",
		"document:left#viewer@group:l#left", "document:team#viewer@team:all#member",
	))
	for question, want := range map[string]engine.Decision{
		"document:a#view@person:anne": engine.Allowed, "document:a#view@person:bob": engine.Denied,
		"document:a#view@group:a#member": engine.Allowed, "document:a#view@group:b#member": engine.Allowed,
		"document:a#view@group:c#member": engine.Denied, "document:a#view@group:a#direct": engine.Allowed,
		"document:a#view@group:a#owner": engine.Allowed, "document:a#view@group:a#left": engine.Denied,
		"document:gated#view@person:anne": engine.Conditional, "document:gated#view@person:bob": engine.Denied,
		"document:shut#view@person:anne": engine.Denied, "document:opened#view@person:anne": engine.Allowed,
		"document:c#view@person:cato": engine.Conditional, "document:a#view@person:cato": engine.Denied,
		"document:every#view@person:cato": engine.Allowed, "document:every#view@person:nobody": engine.Allowed,
		"document:every#view@group:a#member": engine.Denied, "document:team#view@person:nobody": engine.Allowed,
		"document:left#view@person:anne": engine.Allowed, "document:left#view@person:bob": engine.Denied,
		"group:b#member@person:anne": engine.Allowed, "group:b#left@group:a#member": engine.Allowed,
	} {
		mustCheck(t, s, question, want)
	}
}

// TestCaveatIsJudgedOnce: what many objects come to by one tuple with a caveat is evaluated
// once for a question, however many they are.
func TestCaveatIsJudgedOnce(t *testing.T) {
	tuples := []string{"org:o#admin@person:anne[open]"}
	for i := range 50 {
		tuples = append(tuples, fmt.Sprintf("document:d%d#org@org:o", i))
	}
	e := newEnv(t, `
caveat open(gate bool) { gate }
definition person {}
definition org { relation admin: person | person with open }
definition document {
	relation org: org
	permission view = org->admin
}`, tuples...)
	s := snapshot(t, e)
	before, found := e.Engine.Stats().Caveats, 0
	err := s.LookupResources(t.Context(), engine.LookupResources{
		Type: "document", Name: "view", Subject: graph.Subject{Object: graph.Object{Type: "person", ID: "anne"}},
	}, func(r engine.Resource) error {
		if r.Decision == engine.Conditional {
			found++
		}
		return nil
	})
	if judged := e.Engine.Stats().Caveats - before; err != nil || found != 50 || judged != 1 {
		t.Errorf("%d documents, %d caveats judged, %v; want 50 and 1", found, judged, err)
	}
}

// TestNestingDense: groups that hold each other, each all others, are not read through from
// the subject's end, and what is asked about them has its answer.
func TestNestingDense(t *testing.T) {
	const groups = 100
	var tuples []string
	for a := range groups {
		for b := range groups {
			if a != b {
				tuples = append(tuples, fmt.Sprintf("group:g%d#direct@group:g%d#member", a, b))
			}
		}
	}
	tuples = append(tuples, "group:g0#direct@person:anne", "document:d#viewer@group:g99#member")
	s := snapshot(t, newEnv(t, nestingSchema, tuples...))
	mustCheck(t, s, "document:d#view@person:anne", engine.Allowed)
	mustCheck(t, s, "document:d#view@person:bob", engine.Denied)
	mustCheck(t, s, "group:g50#member@group:g7#member", engine.Allowed)
}

// TestNestingOfManyRelations: a schema of very many relations that hold usersets is compiled
// in the time that it takes to read it, and the names that nest are found behind the ones
// that do not.
func TestNestingOfManyRelations(t *testing.T) {
	const types = 3000
	var text strings.Builder
	text.WriteString("definition person {}\n")
	for i := range types {
		// The last one takes something away, so that none of those before it nests.
		fmt.Fprintf(&text, "definition t%d { relation member: person | t%d#member }\n", i, i+1)
	}
	fmt.Fprintf(&text, "definition t%d { relation direct: person relation out: person permission member = direct - out }\n", types)
	text.WriteString("definition group { relation member: person | group#member }\n")
	s := snapshot(t, newEnv(t, text.String(),
		fmt.Sprintf("t%d:x#direct@person:anne", types),
		fmt.Sprintf("t%d:x#direct@person:bob", types), fmt.Sprintf("t%d:x#out@person:bob", types),
		fmt.Sprintf("t%d:x#member@t%d:x#member", types-1, types), fmt.Sprintf("t%d:x#member@t%d:x#member", types-2, types-1),
		"group:a#member@group:b#member", "group:b#member@person:anne",
	))
	mustCheck(t, s, fmt.Sprintf("t%d:x#member@person:anne", types-2), engine.Allowed)
	mustCheck(t, s, fmt.Sprintf("t%d:x#member@person:bob", types-2), engine.Denied)
	mustCheck(t, s, "group:a#member@person:anne", engine.Allowed)
	mustCheck(t, s, "group:a#member@person:bob", engine.Denied)
}

// TestNestingFamilies asks for usersets of relations that have nothing to do with each
// other, in one walk and in another order, of a schema with more of them than the ends
// that are read for one subject: whoever asks for one needs to know nothing of the rest.
func TestNestingFamilies(t *testing.T) {
	const types = 1500
	var text strings.Builder
	text.WriteString("definition person {}\n")
	for i := range types {
		fmt.Fprintf(&text, "definition t%d { relation member: person | t%d#member }\n", i, i)
	}
	text.WriteString("definition document {\nrelation a: t3#member\nrelation b: t1400#member\n" +
		"permission both = a & b\npermission either = b + a\npermission onlyb = b - a\n}\n")
	tuples := []string{
		"document:one#a@t3:top#member", "document:one#b@t1400:top#member",
		"t3:top#member@t3:low#member", "t1400:top#member@t1400:low#member",
		"t3:low#member@person:a", "t1400:low#member@person:b",
		"t3:low#member@person:ab", "t1400:low#member@person:ab",
	}
	// More than would be looked up one by one, from above.
	for i := range 200 {
		tuples = append(tuples, fmt.Sprintf("t3:top#member@t3:more%d#member", i))
	}
	s := snapshot(t, newEnv(t, text.String(), tuples...))
	for _, c := range []struct {
		person              string
		both, either, onlyb engine.Decision
	}{
		{"a", engine.Denied, engine.Allowed, engine.Denied},
		{"b", engine.Denied, engine.Allowed, engine.Allowed},
		{"ab", engine.Allowed, engine.Allowed, engine.Denied},
		{"nobody", engine.Denied, engine.Denied, engine.Denied},
	} {
		mustCheck(t, s, "document:one#both@person:"+c.person, c.both)
		mustCheck(t, s, "document:one#either@person:"+c.person, c.either)
		mustCheck(t, s, "document:one#onlyb@person:"+c.person, c.onlyb)
	}
	// It costs a few steps, however many relations nest.
	answer, err := check(t, s, "document:one#both@person:b")
	if err != nil {
		t.Fatal(err)
	}
	if answer.Steps > 30 {
		t.Errorf("the check took %d steps", answer.Steps)
	}
}
