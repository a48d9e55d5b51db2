package main

import (
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/schema"
)

// hashOf sums up all that a dataset yields.
func hashOf(t *testing.T, data *dataset) uint64 {
	t.Helper()
	hash := fnv.New64a()
	add := func(m proto.Message) {
		encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := hash.Write(encoded); err != nil {
			t.Fatal(err)
		}
	}
	for tuple := range data.tuples {
		add(tuple)
	}
	for _, name := range sortedKeys(data.checks) {
		r := rand.New(rand.NewPCG(1, 1))
		for i := range 100 {
			add(data.checks[name].request(data.checks[name].next(r, i%2 == 0)))
		}
	}
	return hash.Sum64()
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// textOf writes a tuple of the models, whose ids need no quotes.
func textOf(t *pembav1.Tuple) string {
	text := t.Object.Type + ":" + t.Object.Id + "#" + t.Relation + "@" + t.Subject.Object.Type + ":" + t.Subject.Object.Id
	if t.Subject.Relation != "" {
		text += "#" + t.Subject.Relation
	}
	return text
}

// TestModels holds what every model promises: a schema that compiles, the same
// data for the same seed, no tuple twice, about as many as were asked for, and
// questions of which half are denied.
func TestModels(t *testing.T) {
	for _, name := range sortedKeys(models) {
		t.Run(name, func(t *testing.T) {
			m := models[name]
			if m.name != name {
				t.Errorf("the model calls itself %s", m.name)
			}
			if parsed, err := schema.Parse(name, m.schema); err != nil {
				t.Error(err)
			} else if _, err := schema.Compile(parsed); err != nil {
				t.Error(err)
			}
			const size = 3000
			data := m.generate(size, 7)
			if first, second := hashOf(t, data), hashOf(t, m.generate(size, 7)); first != second {
				t.Errorf("the same seed gives other data: %x and %x", first, second)
			}
			tuples := map[string]bool{}
			for tuple := range data.tuples {
				text := textOf(tuple)
				if tuples[text] {
					t.Fatalf("a tuple comes twice: %s", text)
				}
				tuples[text] = true
			}
			if n := len(tuples); n < size*9/10 || n > 4*size {
				t.Errorf("there are %d tuples; about %d were asked for", n, size)
			}
			// A loop that ends early must end the generator.
			seen := 0
			for range data.tuples {
				if seen++; seen == 50 {
					break
				}
			}
			for ask, c := range data.checks {
				r := rand.New(rand.NewPCG(1, 1))
				right := 0
				for i := range 400 {
					if c.next(r, i%2 == 0).allowed == (i%2 == 0) {
						right++
					}
				}
				if right < 390 {
					t.Errorf("%s: %d of 400 questions have the wanted answer", ask, right)
				}
			}
			if data.fresh == nil {
				return
			}
			for i := range uint64(2000) {
				text := textOf(data.fresh(i))
				if tuples[text] {
					t.Fatalf("%s is not fresh", text)
				}
				tuples[text] = true
			}
		})
	}
}

// TestBusinessSeeds holds that another seed gives other data.
func TestBusinessSeeds(t *testing.T) {
	if hashOf(t, generateBusiness(5000, 1)) == hashOf(t, generateBusiness(5000, 2)) {
		t.Error("seeds 1 and 2 give the same data")
	}
}

// TestPool holds that a pool gives each question once, also after a refill, and
// ends when there are no more.
func TestPool(t *testing.T) {
	c := &checks{next: func(r *rand.Rand, allowed bool) question {
		return question{object: id("d", r.IntN(10)), subject: "p", allowed: allowed}
	}}
	p := newPool(c, 1)
	seen := map[question]bool{}
	for round := range 2 {
		if err := p.refill(6); err != nil {
			t.Fatal(err)
		}
		for {
			q, err := p.next(0)
			if err != nil {
				break
			}
			if seen[q] {
				t.Errorf("round %d: %v comes again", round, q)
			}
			seen[q] = true
		}
	}
	if len(seen) != 12 {
		t.Errorf("there were %d questions; want 12", len(seen))
	}
	for range 20 {
		if err := p.refill(8); err != nil {
			return // All twenty were asked.
		}
	}
	t.Error("twenty questions never come to an end")
}

// TestPlan holds that every workload is of a known kind and model, that names
// tell workloads apart, and that nothing changes data that is still asked about.
func TestPlan(t *testing.T) {
	for _, args := range [][]string{nil, {"--quick"}, {"--vast"}, {"--rate", "500"}} {
		c, err := parse(args, t.Output())
		if err != nil {
			t.Fatal(err)
		}
		names := map[string]bool{}
		sources := map[source]bool{}
		for _, group := range plan(c) {
			if sources[group[0].source] {
				t.Errorf("%v: %s comes again", args, group[0].source)
			}
			sources[group[0].source] = true
			changed := false
			for i := range group {
				w := &group[i]
				if models[w.model] == nil {
					t.Errorf("%s: there is no such model", w.name())
				}
				if names[w.name()] {
					t.Errorf("%v: two workloads are named %s", args, w.name())
				}
				names[w.name()] = true
				if changed && !w.changes() {
					t.Errorf("%s comes after a workload that changes the data", w.name())
				}
				changed = changed || w.changes()
			}
		}
		if len(names) < 10 {
			t.Errorf("%v: there are %d workloads", args, len(names))
		}
	}
}

// TestPlanOfRate holds that workloads which the command line gives a rate are found by
// the name that is listed, and by the one that they get.
func TestPlanOfRate(t *testing.T) {
	const listed, rated = "100k/check/view/cold/callers=16", "100k/check/view/cold/rate=4000/callers=16"
	for _, run := range []string{listed, rated} {
		c, err := parse([]string{"--run", run, "--rate", "4000"}, t.Output())
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, group := range plan(c) {
			for i := range group {
				names = append(names, group[i].name())
			}
		}
		if len(names) != 1 || !strings.HasSuffix(names[0], rated) {
			t.Errorf("--run %s finds %v", run, names)
		}
	}
}

// TestConfig holds that nonsense is refused at the door.
func TestConfig(t *testing.T) {
	for _, args := range [][]string{
		{"--rounds", "-1"}, {"--seconds", "0.001"}, {"--seconds", "NaN"}, {"--rate", "-5"}, {"--vast", "--quick"}, {"--run", "("}, {"surplus"}, {"--unknown"},
	} {
		if _, err := parse(args, t.Output()); err == nil {
			t.Errorf("%v is accepted", args)
		}
	}
}

// TestVerify holds that a wrong answer is an error that shows the question.
func TestVerify(t *testing.T) {
	c := &checks{objectType: "document", permission: "view", subjectType: "person"}
	q := question{object: "d1", subject: "p1", allowed: true}
	if err := c.verify(q, pembav1.Decision_DECISION_ALLOWED); err != nil {
		t.Error(err)
	}
	for _, wrong := range []pembav1.Decision{
		pembav1.Decision_DECISION_DENIED, pembav1.Decision_DECISION_CONDITIONAL, pembav1.Decision_DECISION_UNSPECIFIED,
	} {
		if c.verify(q, wrong) == nil {
			t.Errorf("%s passes for allowed", wrong)
		}
	}
}
