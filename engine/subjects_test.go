package engine_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// TestLargeSets looks up the subjects of unions, intersections and exclusions of sets of
// thousands, some with caveats and some under a wildcard, and checks each subject.
func TestLargeSets(t *testing.T) {
	const schema = `
use wildcards
caveat open(gate bool) { gate }
definition person {}
definition group { relation member: person | person with open }
definition document {
	relation a: person | group#member
	relation b: person | person with open | group#member
	relation c: person | person with open
	relation every: person | person:* | person:* with open
	permission either = a + b
	permission both = a & b
	permission without = (a + b) - c
	permission spared = (a - c) + b
	permission twice = ((a - c) & b) - (c & b)
	permission wide = (a - c) + every
	permission narrow = every - c
	permission within = (every & b) + a
}`
	const people = 3000
	random := rand.New(rand.NewPCG(5, 6))
	var tuples []string
	add := func(share int, format string, caveated bool) {
		for i := range people {
			switch draw := random.IntN(1000); {
			case draw < share:
				tuples = append(tuples, fmt.Sprintf(format, i))
			case caveated && draw < share+20:
				tuples = append(tuples, fmt.Sprintf(format+"[open]", i))
			}
		}
	}
	add(300, "group:g#member@person:p%d", true)
	add(300, "group:h#member@person:p%d", false)
	for i, every := range []string{"", "document:d1#every@person:*", "document:d2#every@person:*[open]"} {
		d := fmt.Sprintf("document:d%d", i)
		tuples = append(tuples, d+"#a@group:g#member", d+"#a@group:h#member", d+"#b@group:h#member")
		if every != "" {
			tuples = append(tuples, every)
		}
		add(100, d+"#a@person:p%d", false)
		add(400, d+"#b@person:p%d", true)
		add(300, d+"#c@person:p%d", true)
		add(10, d+"#every@person:p%d", false)
	}
	e := newEnv(t, schema)
	for len(tuples) > 0 {
		n := min(1000, len(tuples))
		if err := e.Touch(tuples[:n]...); err != nil {
			t.Fatal(err)
		}
		tuples = tuples[n:]
	}
	s := snapshot(t, e)
	for d := range 3 {
		for _, name := range []string{"either", "both", "without", "spared", "twice", "wide", "narrow", "within"} {
			object := graph.Object{Type: "document", ID: fmt.Sprint("d", d)}
			q := engine.LookupSubjects{Object: object, Name: name, SubjectType: "person"}
			found, listed := map[string]engine.Decision{}, 0
			wildcard, excluded := engine.Denied, map[string]bool{}
			conditionally := map[string]bool{}
			last := engine.Position(0)
			err := s.LookupSubjects(context.Background(), q, func(f engine.FoundSubject) error {
				if f.Position <= last {
					t.Errorf("lookup %v#%s: %v comes behind the position %d", object, name, f, last)
				}
				last = f.Position
				if f.Subject.ID == graph.Wildcard {
					wildcard = f.Decision
					for _, x := range f.Excluded {
						excluded[x.Subject.ID] = true
						conditionally[x.Subject.ID] = x.Decision == engine.Conditional
					}
					return nil
				}
				found[f.Subject.ID] = f.Decision
				listed++
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			counts, _, err := s.CountSubjects(context.Background(), q)
			if err != nil || counts.Allowed+counts.Conditional != listed || len(found) != listed {
				t.Errorf("lookup %v#%s: %d listed, %d of them different, and %+v counted (%v)", object, name, listed, len(found), counts, err)
			}
			decide := func(name, id string) engine.Decision {
				answer, err := s.Check(context.Background(), engine.Check{
					Object: object, Name: name, Subject: graph.Subject{Object: graph.Object{Type: "person", ID: id}},
				})
				if err != nil {
					t.Fatal(err)
				}
				return answer.Decision
			}
			for i := range people {
				id := fmt.Sprint("p", i)
				decision := decide(name, id)
				// The wildcard shows whom an exclusion has taken from the other side, unless
				// it holds for them as surely as can be.
				if name == "wide" && decide("a", id) == engine.Allowed && decide("c", id) == engine.Allowed {
					want := wildcard == engine.Conditional && decision == engine.Conditional
					if conditionally[id] != want || excluded[id] != want {
						t.Fatalf("lookup %v#%s: the wildcard excludes %s: %v, conditionally %v, want %v",
							object, name, id, excluded[id], conditionally[id], want)
					}
				}
				says, is := found[id]
				switch {
				case is && says != decision:
					t.Fatalf("lookup %v#%s: says %v of %s, want %v", object, name, says, id, decision)
				case !is && (wildcard == engine.Denied || excluded[id]) && decision == engine.Allowed:
					t.Fatalf("lookup %v#%s: does not have %s, who is allowed", object, name, id)
				case !is && wildcard == engine.Allowed && !excluded[id] && decision != engine.Allowed:
					t.Fatalf("lookup %v#%s: has %s under the wildcard, who is %v", object, name, id, decision)
				}
			}
		}
	}
}
