package engine_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/engine/enginetest"
	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

var (
	questions = flag.Int("questions", 10_000, "how many random questions TestTwin asks")
	seed      = flag.Uint64("seed", 1, "the seed of the random tests; 0 takes one from the clock, for a hunt")
)

// seeded returns a source of randomness and prints what repeats it.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d (go test ./engine -run %s -seed %d)", s, t.Name(), s)
	return rand.New(rand.NewPCG(s, 1))
}

// A mix counts what the questions of a run were about.
type mix struct {
	questions, allowed, conditional, denied int
	cycles, undefined, exclusions           int
	checks, resources, subjects, expansions int
	traces, tracedUndefined                 int
	cut, verdicts                           int
	overlays, past, worlds                  int
}

func (m *mix) String() string {
	return fmt.Sprintf("%d questions in %d worlds: %d allowed, %d conditional, %d denied; "+
		"%d solved cycles, %d of them through an exclusion, %d about exclusions; "+
		"%d checks, %d lookups of resources, %d of subjects; %d traces, %d of them with something undefined; "+
		"%d expansions, %d of them cut at a cycle, with %d caveats judged; %d with overlay, %d of the past",
		m.questions, m.worlds, m.allowed, m.conditional, m.denied, m.cycles, m.undefined, m.exclusions,
		m.checks, m.resources, m.subjects, m.traces, m.tracedUndefined,
		m.expansions, m.cut, m.verdicts, m.overlays, m.past)
}

// TestTwin holds the evaluator against the dumb twin on random schemas, random
// histories and random questions.
func TestTwin(t *testing.T) {
	r := seeded(t)
	m := &mix{}
	for m.questions < *questions && !t.Failed() {
		m.worlds++
		runWorld(t, enginetest.NewWorld(r), m)
	}
	t.Log(m)
	if *questions < 100_000 {
		return // too few for shares to mean anything
	}
	for _, share := range []struct {
		what        string
		count, part int
	}{
		{"allowed", m.allowed, 4},
		{"conditional", m.conditional, 10},
		{"with a cycle", m.cycles, 100},
		{"with a cycle through an exclusion", m.undefined, 5000},
		{"about an exclusion", m.exclusions, 10},
		{"with an overlay", m.overlays, 20},
		{"of the past", m.past, 20},
	} {
		if share.count*share.part < m.questions {
			t.Errorf("only %d of %d questions are %s; the mix needs one in %d", share.count, m.questions, share.what, share.part)
		}
	}
}

// inMemory has the graph keep in memory all, nothing, or by far less than there is, in
// turns: answers are the same.
func inMemory(t *testing.T, e *enginetest.Env, world int) {
	t.Helper()
	e.ResidentBytes = []int64{0, -1, 12 << 10}[world%3]
	if e.ResidentBytes == 0 {
		return
	}
	if err := e.Restart(); err != nil {
		t.Fatal(err)
	}
}

// A moment is a revision of a random history as the model remembers it.
type moment struct {
	revision graph.Revision
	tuples   []graph.Tuple
	instant  graph.Instant     // when lifetimes are judged; zero for now
	w        *enginetest.World // nil for the world of the test
	brief    bool              // whether to ask checks only
}

// runWorld plays a random history and asks about its states.
func runWorld(t *testing.T, w *enginetest.World, m *mix) {
	e, err := enginetest.New(engine.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}()
	inMemory(t, e, m.worlds)
	if err := e.Schema(w.Text); err != nil {
		t.Fatalf("%v\n%s", err, w.Text)
	}
	fail := func(format string, args ...any) {
		t.Errorf(format, args...)
		t.Logf("schema:\n%s", w.Text)
	}
	model := map[string]graph.Tuple{}
	var moments []moment
	for range 4 {
		for range 3 {
			if !change(e, w, model, fail) {
				return
			}
		}
		at := moment{revision: e.Engine.DB().Applied().Revision}
		at.tuples = sorted(model)
		moments = append(moments, at)
		if w.OneIn(3) {
			if err := e.Restart(); err != nil {
				t.Fatal(err)
			}
		}
		e.Now += graph.Instant(w.IntN(100)) * 1_000_000
		for range 3 {
			about := moments[len(moments)-1]
			if len(moments) > 1 && w.OneIn(3) {
				about = enginetest.Choose(w, moments[:len(moments)-1])
			}
			if !askAll(e, w, m, about, about.revision != at.revision, fail) {
				return
			}
		}
	}
}

func key(t graph.Tuple) string {
	return fmt.Sprintf("%s:%s#%s@%s", t.Object.Type, t.Object.ID, t.Relation, t.Subject)
}

// sorted returns the model's tuples in a stable order, so that a seed repeats a
// run.
func sorted(model map[string]graph.Tuple) []graph.Tuple {
	keys := make([]string, 0, len(model))
	for k := range model {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	tuples := make([]graph.Tuple, len(keys))
	for i, k := range keys {
		tuples[i] = model[k]
	}
	return tuples
}

// change applies one random mutation to the engine and to the model, a plain
// map, and holds the outcomes against each other.
func change(e *enginetest.Env, w *enginetest.World, model map[string]graph.Tuple, fail func(string, ...any)) bool {
	stored := func(t graph.Tuple) (graph.Tuple, bool) {
		s, ok := model[key(t)]
		return s, ok && s.Living(e.Now)
	}
	mutation := &graph.Mutation{}
	seen := map[string]bool{}
	want := ""
	next := map[string]graph.Tuple{}
	for k, v := range model {
		next[k] = v
	}
	for range 6 + w.IntN(20) {
		t, ok := w.Tuple()
		if !ok || seen[key(t)] {
			continue
		}
		seen[key(t)] = true
		operation := graph.Touch
		switch k := w.IntN(20); {
		case k < 4:
			operation = graph.Delete
			if old, ok := stored(t); !ok && len(model) > 0 && old.Object.ID == "" {
				for _, any := range sorted(model) {
					if !seen[key(any)] {
						t = any
						seen[key(t)] = true
						break
					}
				}
			}
		case k < 5:
			operation = graph.Create
		}
		mutation.Updates = append(mutation.Updates, graph.Update{Operation: operation, Tuple: t})
		_, there := stored(t)
		switch {
		case operation == graph.Delete:
			delete(next, key(t))
		case operation == graph.Create && there:
			want = "ALREADY_EXISTS"
		default:
			next[key(t)] = t
		}
	}
	if w.OneIn(5) && len(model) > 0 {
		t := sorted(model)[w.IntN(len(model))]
		c := graph.Precondition{Filter: graph.Filter{
			ObjectType: t.Object.Type, ObjectID: t.Object.ID, Relation: t.Relation,
			SubjectType: t.Subject.Type, SubjectID: t.Subject.ID, SubjectRelation: &t.Subject.Relation,
		}, MustNotMatch: w.OneIn(2)}
		if _, there := stored(t); there == c.MustNotMatch {
			want = "PRECONDITION_FAILED"
		}
		mutation.Preconditions = append(mutation.Preconditions, c)
	}
	if len(mutation.Updates) == 0 {
		return true // a world whose types store nearly nothing
	}
	if at := e.Engine.DB().Applied().Revision; at%4 == 0 {
		mutation.RequestID = fmt.Appendf(nil, "behind %d", at)
	}
	result, err := e.Write(mutation)
	got := ""
	var refusal *engine.Refusal
	if errors.As(err, &refusal) {
		got = refusal.Reason.String()
	} else if err != nil {
		fail("write: %v", err)
		return false
	}
	if got != want {
		fail("write: refused with %q (%v), want %q", got, err, want)
		return false
	}
	if got == "" {
		clear(model)
		for k, v := range next {
			model[k] = v
		}
		if mutation.RequestID != nil {
			// Once more, which the model knows nothing of.
			result.Repeated = true
			if again, err := e.Write(mutation); err != nil || again != result {
				fail("write repeated: %+v (%v), want %+v", again, err, result)
				return false
			}
		}
	}
	if w.OneIn(8) {
		if _, err := e.Write(&graph.Mutation{Collect: &graph.Collect{Limit: 3}}); err != nil {
			fail("collect: %v", err)
			return false
		}
	}
	return true
}

// askAll asks every kind of question for one random subject and context at one
// revision, with or without an overlay, and compares with the twin.
func askAll(e *enginetest.Env, w *enginetest.World, m *mix, about moment, past bool, fail func(string, ...any)) bool {
	subject, context := enginetest.Choose(w, w.Subjects), w.Context()
	overlay := graph.Overlay{}
	tuples := slices.Clone(about.tuples)
	if w.OneIn(4) {
		for range 1 + w.IntN(3) {
			if t, ok := w.Tuple(); ok && !slices.ContainsFunc(overlay.Added, func(x graph.Tuple) bool { return key(x) == key(t) }) {
				overlay.Added = append(overlay.Added, t)
				tuples = slices.DeleteFunc(tuples, func(x graph.Tuple) bool { return key(x) == key(t) })
				tuples = append(tuples, t)
			}
		}
		if len(about.tuples) > 0 {
			gone := enginetest.Choose(w, about.tuples)
			if !slices.ContainsFunc(overlay.Added, func(x graph.Tuple) bool { return key(x) == key(gone) }) {
				overlay.Removed = append(overlay.Removed, gone)
				tuples = slices.DeleteFunc(tuples, func(x graph.Tuple) bool { return key(x) == key(gone) })
			}
		}
	}
	instant := about.instant
	if instant == 0 {
		instant = e.Now
	}
	tuples = slices.DeleteFunc(tuples, func(x graph.Tuple) bool { return !x.Living(instant) })
	twinAt := func(s graph.Subject, at graph.Instant) *twin {
		living := slices.DeleteFunc(slices.Clone(tuples), func(x graph.Tuple) bool { return !x.Living(at) })
		tw := &twin{schema: w.Schema, tuples: living, objects: w.Objects, subject: s, context: context}
		tw.solve()
		return tw
	}
	twinOf := func(s graph.Subject) *twin { return twinAt(s, instant) }
	s, err := e.Engine.Snapshot(e.Store, about.revision, instant, overlay)
	if err != nil {
		fail("snapshot: %v", err)
		return false
	}
	defer s.Close()
	q := &asker{e: e, w: w, m: m, s: s, context: context, fail: fail, where: func() string {
		var b strings.Builder
		fmt.Fprintf(&b, "at revision %d, context %v, overlay +%v -%v, tuples:\n", about.revision, context, overlay.Added, overlay.Removed)
		for _, t := range tuples {
			fmt.Fprintf(&b, "  %s\n", t.String())
		}
		return b.String()
	}}
	before := m.questions
	tw := twinOf(subject)
	ok := q.checks(tw)
	if ok && !about.brief {
		ok = q.resources(subject, tw) && q.subjects(twinOf) && q.expansions(twinAt, instant)
	}
	if past {
		m.past += m.questions - before
	}
	if len(overlay.Added)+len(overlay.Removed) > 0 {
		m.overlays += m.questions - before
	}
	return ok
}

type asker struct {
	e       *enginetest.Env
	w       *enginetest.World
	m       *mix
	s       *engine.Snapshot
	context schema.Context
	fail    func(string, ...any)
	where   func() string
}

func verdictOf(t tri) engine.Verdict {
	switch t.truth {
	case 2:
		return engine.Verdict{Decision: engine.Allowed}
	case 1:
		return engine.Verdict{Decision: engine.Conditional, Missing: t.sorted()}
	}
	return engine.Verdict{Decision: engine.Denied}
}

func equalVerdicts(a, b engine.Verdict) bool {
	return a.Decision == b.Decision && slices.Equal(a.Missing, b.Missing)
}

func (q *asker) count(a atom, v engine.Verdict) {
	q.m.questions++
	if r := q.w.Schema.Definition(a.object.Type).Rewrite(a.name); strings.Contains(schema.RewriteString(r), " - ") {
		q.m.exclusions++
	}
	switch v.Decision {
	case engine.Allowed:
		q.m.allowed++
	case engine.Conditional:
		q.m.conditional++
	case engine.Denied:
		q.m.denied++
	}
}

// checks asks about names of objects in random order, those that are allowed or
// conditional more often, so that the mix is not all denials.
func (q *asker) checks(tw *twin) bool {
	atoms := make([]atom, 0, len(tw.lower))
	for a := range tw.lower {
		if !strings.ContainsAny(a.name, ">(") { // not the hidden ones
			atoms = append(atoms, a)
		}
	}
	slices.SortFunc(atoms, func(a, b atom) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	q.w.Shuffle(len(atoms), func(i, j int) { atoms[i], atoms[j] = atoms[j], atoms[i] })
	granted, denials := 0, 0
	for _, a := range atoms {
		if tw.lower[a].truth > 0 {
			granted++
		}
	}
	for _, a := range atoms {
		want := verdictOf(tw.lower[a])
		undefined := tw.lower[a].truth != tw.upper[a].truth
		if want.Decision == engine.Denied && !undefined {
			if denials++; denials > 2+granted/2 {
				continue
			}
		}
		answer, err := q.s.Check(context.Background(), engine.Check{Object: a.object, Name: a.name, Subject: tw.subject, Context: q.context, Trace: q.w.OneIn(5) || undefined})
		if err != nil || !equalVerdicts(answer.Verdict, want) {
			q.fail("check %s:%s#%s@%s: %v (%v), want %v\n%s", a.object.Type, a.object.ID, a.name, tw.subject, answer.Verdict, err, want, q.where())
			return false
		}
		if answer.Trace != nil {
			judged, err := judgeTrace(answer.Trace, tw)
			if err != nil {
				q.fail("explain %s:%s#%s@%s: %v\n%s", a.object.Type, a.object.ID, a.name, tw.subject, err, q.where())
				return false
			}
			q.m.traces++
			q.m.tracedUndefined += min(judged.undefined, 1)
		}
		q.count(a, want)
		q.m.checks++
		if answer.Cycles > 0 {
			q.m.cycles++
		}
		if undefined {
			q.m.undefined++
		}
	}
	return true
}

// resources looks up the objects of every name of a random type and holds them
// against the twin, at once and in pages.
func (q *asker) resources(subject graph.Subject, tw *twin) bool {
	d := enginetest.Choose(q.w, q.w.Schema.Definitions)
	names := namesOf(d)
	q.w.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	for _, name := range names[:min(3, len(names))] {
		want := map[string]engine.Verdict{}
		for _, o := range q.w.Objects {
			if v := verdictOf(tw.lower[atom{o, name}]); o.Type == d.Name && v.Decision != engine.Denied {
				want[o.ID] = v
				q.count(atom{o, name}, v)
			}
		}
		limit, after, last := q.w.IntN(3), engine.Position(0), engine.Position(0)
		got := map[string]engine.Verdict{}
		for page := 0; ; page++ {
			given := 0
			err := q.s.LookupResources(context.Background(), engine.LookupResources{
				Type: d.Name, Name: name, Subject: subject, Context: q.context, Limit: limit, After: after,
			}, func(r engine.Resource) error {
				if r.Position <= last {
					return fmt.Errorf("position %d after %d", r.Position, last)
				}
				if _, twice := got[r.Object.ID]; twice {
					return fmt.Errorf("%s twice", r.Object.ID)
				}
				got[r.Object.ID], last, after = r.Verdict, r.Position, r.Position
				given++
				return nil
			})
			if err != nil {
				q.fail("lookup %s#%s@%s: %v\n%s", d.Name, name, subject, err, q.where())
				return false
			}
			if limit == 0 || given < limit {
				break
			}
		}
		if !equalMaps(got, want) {
			q.fail("lookup %s#%s@%s: %v, want %v\n%s", d.Name, name, subject, got, want, q.where())
			return false
		}
		counts, err := q.s.CountResources(context.Background(), engine.LookupResources{
			Type: d.Name, Name: name, Subject: subject, Context: q.context, Limit: 1, After: last,
		})
		if err != nil || counts != countsOf(want) {
			q.fail("count %s#%s@%s: %+v (%v), want %+v\n%s", d.Name, name, subject, counts, err, want, q.where())
			return false
		}
		q.m.resources++
	}
	return true
}

func countsOf(found map[string]engine.Verdict) (n engine.Counts) {
	for _, v := range found {
		switch v.Decision {
		case engine.Allowed:
			n.Allowed++
		case engine.Conditional:
			n.Conditional++
		}
	}
	return n
}

func namesOf(d *schema.Definition) []string {
	var names []string
	for _, r := range d.Relations {
		names = append(names, r.Name)
	}
	for _, p := range d.Permissions {
		names = append(names, p.Name)
	}
	return names
}

func equalMaps(a, b map[string]engine.Verdict) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || !equalVerdicts(v, w) {
			return false
		}
	}
	return true
}

// subjects looks up the subjects of a random shape for some names of objects
// and holds, for every subject there is and for one that nobody knows, what the
// result says of it against the twin.
func (q *asker) subjects(twinOf func(graph.Subject) *twin) bool {
	like := enginetest.Choose(q.w, q.w.Subjects)
	if q.w.OneIn(2) {
		like = graph.Subject{Object: graph.Object{Type: "user"}}
	}
	ids := []string{"stranger"}
	for i := range enginetest.IDsPerType {
		ids = append(ids, fmt.Sprintf("%s%d", like.Type[:1], i))
	}
	twins := map[string]*twin{}
	for _, id := range ids {
		twins[id] = twinOf(graph.Subject{Object: graph.Object{Type: like.Type, ID: id}, Relation: like.Relation})
	}
	for range 8 {
		a := q.atom(twins)
		if !q.subjectsOf(a, like, twins) {
			return false
		}
	}
	return true
}

// atom chooses a name of an object, preferring one that somebody has.
func (q *asker) atom(twins map[string]*twin) (a atom) {
	for range 6 {
		a.object = enginetest.Choose(q.w, q.w.Objects[enginetest.IDsPerType:])
		a.name = enginetest.Choose(q.w, namesOf(q.w.Schema.Definition(a.object.Type)))
		for _, tw := range twins {
			if tw.lower[a].truth > 0 {
				return a
			}
		}
	}
	return a
}

// smallBudget is more than a question about a small world takes, and ends one
// that never would.
var smallBudget = engine.Budget{Steps: 1_000_000}

func (q *asker) subjectsOf(a atom, like graph.Subject, twins map[string]*twin) bool {
	var all *engine.FoundSubject
	found := map[string]engine.Verdict{}
	err := q.s.LookupSubjects(context.Background(), engine.LookupSubjects{
		Object: a.object, Name: a.name, SubjectType: like.Type, SubjectRelation: like.Relation, Context: q.context,
		Budget: smallBudget,
	}, func(f engine.FoundSubject) error {
		if f.Subject.ID == graph.Wildcard {
			all = &f
			return nil
		}
		if _, twice := found[f.Subject.ID]; twice {
			return fmt.Errorf("%s twice", f.Subject)
		}
		found[f.Subject.ID] = f.Verdict
		return nil
	})
	where := fmt.Sprintf("lookup %s:%s#%s@%s#%s", a.object.Type, a.object.ID, a.name, like.Type, like.Relation)
	if err != nil {
		q.fail("%s: %v\n%s", where, err, q.where())
		return false
	}
	counts, wildcard, err := q.s.CountSubjects(context.Background(), engine.LookupSubjects{
		Object: a.object, Name: a.name, SubjectType: like.Type, SubjectRelation: like.Relation, Context: q.context, Limit: 1,
		Budget: smallBudget,
	})
	if err != nil || counts != countsOf(found) || (wildcard == nil) != (all == nil) || (all != nil && !equalVerdicts(*wildcard, all.Verdict)) {
		q.fail("count of %s: %+v, %v (%v), want %v and %v\n%s", where, counts, wildcard, err, found, all, q.where())
		return false
	}
	for id, tw := range twins {
		want := verdictOf(tw.lower[a])
		if got := saysOf(id, found, all); !equalVerdicts(got, want) {
			q.fail("%s: says %v of %s, want %v; found %v, wildcard %+v\n%s", where, got, id, want, found, all, q.where())
			return false
		}
		if want.Decision != engine.Denied || q.w.OneIn(4) {
			q.count(a, want)
		}
	}
	q.m.subjects++
	return true
}

// saysOf is what the results of a lookup say of one subject.
func saysOf(id string, found map[string]engine.Verdict, all *engine.FoundSubject) engine.Verdict {
	if v, named := found[id]; named {
		return v
	}
	if all == nil {
		return engine.Verdict{Decision: engine.Denied}
	}
	for _, x := range all.Excluded {
		if x.Subject.ID == id {
			if x.Decision == engine.Allowed {
				return engine.Verdict{Decision: engine.Denied}
			}
			return x.Verdict
		}
	}
	return all.Verdict
}

// expansions follows the tree of a random name by set algebra, with its verdicts
// and expirations, to what it says of some subjects, and holds that against the
// twin: at the tree's instant, or at a later one, when some of the tree's tuples
// are over. Where a tree is cut at a cycle, it says what the twin says of the name
// above.
func (q *asker) expansions(twinAt func(graph.Subject, graph.Instant) *twin, at graph.Instant) bool {
	if q.w.OneIn(2) {
		at += graph.Instant(q.w.IntN(1000)) * 1_000_000
	}
	twins, twinned := map[string]*twin{}, ""
	for _, o := range []graph.Object{enginetest.Choose(q.w, q.w.Objects[:enginetest.IDsPerType]), enginetest.Choose(q.w, q.w.Objects)} {
		s := graph.Subject{Object: o}
		twinned = s.String()
		twins[twinned] = twinAt(s, at)
	}
	for range 4 {
		a := q.atom(twins)
		tree, err := q.s.Expand(context.Background(), engine.Expand{
			Object: a.object, Name: a.name, Context: q.context, Budget: engine.Budget{Steps: 10_000},
		})
		var refusal *engine.Refusal
		if errors.As(err, &refusal) && refusal.Reason == engine.BudgetExceeded {
			continue // a tree of all ways through a tangle of folders
		}
		if err != nil {
			q.fail("expand %s:%s#%s: %v\n%s", a.object.Type, a.object.ID, a.name, err, q.where())
			return false
		}
		isCut, err := q.wellFormed(tree, nil, twins[twinned])
		if err != nil {
			q.fail("expand %s:%s#%s: %v\n%s\n%s", a.object.Type, a.object.ID, a.name, err, tree, q.where())
			return false
		}
		if isCut {
			q.m.cut++
		}
		for s, tw := range twins {
			lower, upper := treeSays(tree, tw, at)
			want, wantUpper := verdictOf(tw.lower[a]), verdictOf(tw.upper[a])
			if got, gotUpper := verdictOf(lower), verdictOf(upper); !equalVerdicts(got, want) || !equalVerdicts(gotUpper, wantUpper) {
				q.fail("expand %s:%s#%s for %s at %s: %v (at most %v), want %v (%v)\n%s\n%s",
					a.object.Type, a.object.ID, a.name, s, at, got, gotUpper, want, wantUpper, tree, q.where())
				return false
			}
			if want.Decision != engine.Denied || q.w.OneIn(4) {
				q.count(a, want)
			}
		}
		q.m.expansions++
	}
	return true
}

// wellFormed judges the tuples' verdicts by what the twin says of their caveats,
// and that the tree is cut where a name stands above itself, and only there.
func (q *asker) wellFormed(t *engine.Tree, above []atom, tw *twin) (cut bool, err error) {
	a := atom{t.Object, t.Name}
	if t.Note != "" {
		if t.Note != "cycle" || !slices.Contains(above, a) || len(t.Children)+len(t.Leaves) > 0 {
			return false, fmt.Errorf("%s:%s#%s is cut (%s) below %v", a.object.Type, a.object.ID, a.name, t.Note, above)
		}
		cut = true
	}
	judge := func(tuple *graph.Tuple, got engine.TupleVerdict) error {
		q.m.verdicts++
		if want := verdictOf(tw.caveat(*tuple)); !equalVerdicts(got.Verdict, want) || got.Failure != "" {
			return fmt.Errorf("%s %s, want %v", tuple, &got, want)
		}
		return nil
	}
	if (t.ViaVerdict != nil) != (t.Via != nil && t.Via.Caveat != "") {
		return false, fmt.Errorf("via %s: %v", t.Via, t.ViaVerdict)
	} else if t.ViaVerdict != nil {
		if err := judge(t.Via, *t.ViaVerdict); err != nil {
			return false, err
		}
	}
	caveats := slices.ContainsFunc(t.Leaves, func(l graph.Tuple) bool { return l.Caveat != "" })
	if caveats != (len(t.Verdicts) > 0) || caveats && len(t.Verdicts) != len(t.Leaves) {
		return false, fmt.Errorf("%d verdicts of %d leaves", len(t.Verdicts), len(t.Leaves))
	}
	for i := range t.Verdicts {
		if err := judge(&t.Leaves[i], t.Verdicts[i]); err != nil {
			return false, err
		}
	}
	for _, c := range t.Children {
		below, err := q.wellFormed(c, append(above, a), tw)
		if err != nil {
			return false, err
		}
		cut = cut || below
	}
	return cut, nil
}

// treeSays is what a tree says of the twin's subject at least and at most, its
// tuples taken as far as they hold and live, their usersets and names that are
// cut as the twin says.
func treeSays(t *engine.Tree, tw *twin, at graph.Instant) (lower, upper tri) {
	if t.Note != "" {
		a := atom{t.Object, t.Name}
		return tw.lower[a], tw.upper[a]
	}
	var l, u []tri
	for _, c := range t.Children {
		condition := tri{truth: 2}
		if c.Via != nil {
			if !c.Via.Living(at) {
				continue
			}
			if c.ViaVerdict != nil {
				condition = triOf(c.ViaVerdict.Verdict)
			}
		}
		x, y := treeSays(c, tw, at)
		l, u = append(l, allOf(condition, x)), append(u, allOf(condition, y))
	}
	switch t.Operation {
	case engine.TreeUnion:
		return anyOf(l...), anyOf(u...)
	case engine.TreeIntersection:
		some := truthOf(len(l) > 0)
		return allOf(append(l, some)...), allOf(append(u, some)...)
	case engine.TreeExclusion:
		return allOf(l[0], not(anyOf(u[1:]...))), allOf(u[0], not(anyOf(l[1:]...)))
	case engine.TreeLeaf:
	}
	for i, leaf := range t.Leaves {
		if !leaf.Living(at) {
			continue
		}
		condition := tri{truth: 2}
		if len(t.Verdicts) > 0 {
			condition = triOf(t.Verdicts[i].Verdict)
		}
		tw.reads = tw.lower
		l = append(l, allOf(condition, tw.holds(leaf.Subject)))
		tw.reads = tw.upper
		u = append(u, allOf(condition, tw.holds(leaf.Subject)))
	}
	return anyOf(l...), anyOf(u...)
}
