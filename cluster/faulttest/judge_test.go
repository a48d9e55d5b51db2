package faulttest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/graph"
)

// What porcupine is given of an operation, and what it is told of the answer.
type (
	registerInput struct {
		act      act
		old, new string
	}
	registerOutput struct {
		unknown bool
		found   bool   // Of a swap.
		value   string // Of a read.
	}
)

// registerModel is what a register is: a word that is read, swapped and cleared. An
// operation of which nobody knows may take effect at any time after it began; one
// that never does is put behind all others, where it disturbs nobody.
var registerModel = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		is, in, out := state.(string), input.(registerInput), output.(registerOutput)
		switch in.act {
		case reads:
			return out.value == is, is
		case clears:
			return true, ""
		}
		switch {
		case !out.unknown && out.found != (is == in.old):
			return false, is
		case is == in.old:
			return true, in.new
		}
		return true, is
	},
}

// A verdict is what is wrong with a ledger, and how much was looked at.
type verdict struct {
	wrong      []string
	operations int
	// registers were given to porcupine; undecided are those for which it took too
	// long.
	registers, undecided int
	byPorcupine          bool // Whether porcupine found something wrong.
}

func (v *verdict) complain(format string, args ...any) {
	if len(v.wrong) < 30 {
		v.wrong = append(v.wrong, fmt.Sprintf(format, args...))
	}
}

// judge holds a ledger to what the cluster promises. final is the change log at the
// end; nil where it is not known, and only what the clients saw of each other counts.
func (l *ledger) judge(final *answered) *verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := &verdict{wrong: slices.Clone(l.wrong), operations: len(l.operations)}
	l.judgeTime(v)
	l.judgeRegisters(v)
	if final != nil {
		l.judgeLog(v, final)
	}
	return v
}

// judgeTime compares the revisions of answers with those that were given before.
func (l *ledger) judgeTime(v *verdict) {
	var acked []*operation
	for _, o := range l.operations {
		if o.fate == acknowledged {
			acked = append(acked, o)
		}
	}
	// A linearizable read shows at least what was acknowledged, and what another one
	// showed, before it began.
	holdsAll := func(o *operation) bool { return o.act == reads && o.mode == cluster.Linearizable }
	neverFalls(acked, holdsAll,
		func(o *operation) bool { return holdsAll(o) || o.act != reads && o.changed > 0 },
		func(o, than *operation) {
			v.complain("a linearizable read is of before what was told when it began:\n  %v\n  %v", o, than)
		})
	// The newest state of a node is never older than what the node showed before.
	nodes := 0
	for _, o := range acked {
		nodes = max(nodes, o.node+1)
	}
	for node := range nodes {
		newest := func(o *operation) bool {
			return o.node == node && o.act == reads && (o.mode == cluster.Newest || o.mode == cluster.Linearizable)
		}
		// A node that was restarted answers with a zookie as soon as it has that revision,
		// which may be before it has what it had.
		shows := func(o *operation) bool {
			return newest(o) || o.node == node && o.act == reads && o.mode == cluster.AtLeast
		}
		neverFalls(acked, newest, shows, func(o, than *operation) {
			v.complain("the newest state of n%d went back:\n  %v\n  %v", node+1, o, than)
		})
	}
	for _, o := range acked {
		switch {
		case o.act != reads:
		case o.mode == cluster.AtLeast && o.revision < o.asked:
			v.complain("a read is not as new as the zookie that it was given: %v", o)
		case o.mode == cluster.Exactly && o.revision != o.asked:
			v.complain("a read is not at its revision: %v", o)
		}
	}
}

// neverFalls calls bad where an operation that is bound has a lower revision than one
// that sets and ended before it began.
func neverFalls(all []*operation, bound, sets func(*operation) bool, bad func(o, than *operation)) {
	byStart, byEnd := slices.Clone(all), slices.Clone(all)
	slices.SortFunc(byStart, func(a, b *operation) int { return cmp.Compare(a.start, b.start) })
	slices.SortFunc(byEnd, func(a, b *operation) int { return cmp.Compare(a.end, b.end) })
	var highest *operation
	ended := 0
	for _, o := range byStart {
		for ; ended < len(byEnd) && byEnd[ended].end < o.start; ended++ {
			if e := byEnd[ended]; sets(e) && (highest == nil || e.revision > highest.revision) {
				highest = e
			}
		}
		if highest != nil && bound(o) && o.revision < highest.revision {
			bad(o, highest)
		}
	}
}

// registerPatience is how long porcupine may think about one register.
const registerPatience = 5 * time.Second

// judgeRegisters asks porcupine whether the writes and the linearizable reads of each
// register can have happened one after the other.
func (l *ledger) judgeRegisters(v *verdict) {
	byKey := map[string][]*operation{}
	for _, o := range l.operations {
		if o.fate == refused || o.act == reads && (o.mode != cluster.Linearizable || o.fate != acknowledged) {
			continue
		}
		byKey[o.key] = append(byKey[o.key], o)
	}
	for key, operations := range byKey {
		v.registers++
		history := make([]porcupine.Operation, len(operations))
		for i, o := range operations {
			history[i] = porcupine.Operation{
				ClientId: i, Call: int64(o.start), Return: int64(o.end),
				Input:  registerInput{o.act, o.old, o.new},
				Output: registerOutput{unknown: o.fate != acknowledged, found: o.found, value: o.value},
			}
		}
		switch porcupine.CheckOperationsTimeout(registerModel, history, registerPatience) {
		case porcupine.Unknown:
			v.undecided++
		case porcupine.Illegal:
			v.byPorcupine = true
			slices.SortFunc(operations, func(a, b *operation) int { return cmp.Compare(a.start, b.start) })
			lines := make([]string, 0, len(operations))
			for _, o := range operations {
				lines = append(lines, "  "+o.String())
			}
			v.complain("register %s is not linearizable:\n%s", key, strings.Join(lines, "\n"))
		}
	}
}

// judgeLog compares what was told with the change log.
func (l *ledger) judgeLog(v *verdict, final *answered) {
	type version struct {
		revision graph.Revision
		stamp    graph.Instant
		value    string
	}
	versions := map[string][]version{}
	byTag := map[string]change{}
	var sequence uint64
	var last change
	for _, c := range final.Changes {
		switch {
		case c.Sequence != sequence+1 || c.Revision <= last.Revision || c.Offset != 0 || c.Count != len(c.Edges):
			v.complain("the change log has %+v behind %+v", c, last)
		case c.Stamp < last.Stamp:
			v.complain("the stamps of the change log fall: %+v behind %+v", c, last)
		}
		sequence, last = sequence+uint64(len(c.Edges)), c
		if earlier, twice := byTag[c.Tag]; twice {
			v.complain("request %s was made twice: %+v and %+v", c.Tag, earlier, c)
		}
		byTag[c.Tag] = c
		now := map[string]string{}
		for _, edge := range c.Edges {
			key, value, _ := strings.Cut(edge[1:], " ")
			switch {
			case edge[0] == '+':
				now[key] = value
			case now[key] == "":
				now[key] = ""
			}
		}
		for key, value := range now {
			versions[key] = append(versions[key], version{c.Revision, c.Stamp, value})
		}
	}
	// at returns what a register is behind all versions that are counted.
	at := func(key string, counts func(version) bool) string {
		of := versions[key]
		end, _ := slices.BinarySearchFunc(of, true, func(is version, _ bool) int {
			if counts(is) {
				return -1
			}
			return 1
		})
		if end == 0 {
			return ""
		}
		return of[end-1].value
	}
	// made are the writes that were acknowledged, by their tags.
	made := map[string]*operation{}
	for _, o := range l.operations {
		if o.act != reads && o.fate == acknowledged {
			made[o.tag] = o
		}
	}
	for _, o := range l.operations {
		logged, isMade := byTag[o.tag]
		switch {
		case o.act == reads && o.fate == acknowledged:
			if o.revision > final.Revision {
				v.complain("a read showed a revision behind the last, %d: %v", final.Revision, o)
			}
			if is := at(o.key, func(is version) bool { return is.revision <= o.revision }); is != o.value {
				v.complain("a read shows what the change log does not say, which is %q: %v", is, o)
			}
			if o.mode == cluster.AsOf {
				l.judgeMoment(v, o, final.Changes, made)
			}
		case o.act == reads:
		case o.fate == acknowledged && o.changed > 0 && (!isMade || logged.Revision != o.revision):
			v.complain("an acknowledged write is not in the change log at its revision, but %+v: %v", logged, o)
		case isMade && (o.fate == refused || o.fate == acknowledged && o.changed == 0):
			v.complain("a write that was not made is in the change log, %+v: %v", logged, o)
		}
	}
	tuples := map[string]string{}
	for _, tuple := range final.Tuples {
		key, value, _ := strings.Cut(tuple, " ")
		tuples[key] = value
	}
	for key := range versions {
		if is := at(key, func(version) bool { return true }); is != tuples[key] {
			v.complain("register %s is %q, and by the change log it is %q", key, tuples[key], is)
		}
	}
	for _, f := range l.watchers {
		f.mu.Lock()
		upTo := f.next.Revision
		expected := final.Changes
		if end := slices.IndexFunc(expected, func(c change) bool { return c.Revision >= upTo }); end >= 0 {
			expected = expected[:end]
		}
		if !slices.EqualFunc(joined(f.changes), expected, sameChange) {
			v.complain("the watcher that began at n%d was told of %d revisions up to %d, and there are %d: %s",
				f.start+1, len(f.changes), upTo, len(expected), difference(joined(f.changes), expected))
		}
		if upTo <= final.Revision {
			v.complain("the watcher that began at n%d came to revision %d, and the last is %d", f.start+1, upTo, final.Revision)
		}
		f.mu.Unlock()
	}
}

// judgeMoment holds a read as of a moment to its promise: it has all changes whose stamp
// is the moment or before, and none behind.
func (l *ledger) judgeMoment(v *verdict, o *operation, changes []change, made map[string]*operation) {
	end, _ := slices.BinarySearchFunc(changes, o.moment, func(c change, moment graph.Instant) int {
		if c.Stamp <= moment {
			return -1
		}
		return 1
	})
	if first := slices.IndexFunc(changes, func(c change) bool { return c.Revision > o.revision }); first >= 0 && first < end {
		missed := changes[first]
		v.complain("a read as of a moment misses %+v, and the next are %+v:\n  %v\n  %v", missed, changes[first+1:min(first+3, len(changes))], o, made[missed.Tag])
	}
	if end == 0 || changes[end-1].Revision < o.revision {
		// What changes nothing that is logged, such as a schema, has a revision too.
		if last := slices.IndexFunc(changes, func(c change) bool { return c.Revision == o.revision }); last >= end {
			v.complain("a read as of a moment has %+v, which is of after it: %v", changes[last], o)
		}
	}
}

// joined puts parts of a revision together.
func joined(changes []change) []change {
	var all []change
	for _, c := range changes {
		if last := len(all) - 1; last >= 0 && all[last].Revision == c.Revision && int(c.Offset) == len(all[last].Edges) {
			all[last].Edges = append(slices.Clone(all[last].Edges), c.Edges...)
			continue
		}
		all = append(all, c)
	}
	return all
}

func difference(got, want []change) string {
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			return fmt.Sprintf("%+v is missing", want[i])
		case i >= len(want):
			return fmt.Sprintf("%+v is too much", got[i])
		case !sameChange(got[i], want[i]):
			return fmt.Sprintf("%+v instead of %+v", got[i], want[i])
		}
	}
	return "none"
}

// awaitWatchers waits until all watchers have come behind a revision.
func (l *ledger) awaitWatchers(e *ensemble, revision graph.Revision) {
	for _, f := range l.watchers {
		begun := time.Now()
		for ; time.Since(begun) < patience; time.Sleep(5 * time.Millisecond) {
			f.mu.Lock()
			next := f.next
			f.mu.Unlock()
			if next.Revision > revision {
				break
			}
		}
	}
}

// finish ends a session: everything is well again, all nodes are compared, and the
// ledger is judged.
func finish(t *testing.T, e *ensemble, s *session) *verdict {
	t.Helper()
	s.end()
	if err := e.ready(); err != nil {
		s.endWatching()
		s.l.complain("%v", err)
		return s.l.judge(nil)
	}
	final := sameEverywhere(t, e, s.l)
	if final != nil {
		s.l.awaitWatchers(e, final.Revision)
	}
	s.endWatching()
	return s.l.judge(final)
}

// The judge finds what it is to find, in histories that are made up.
func TestJudge(t *testing.T) {
	write := func(client int, start, end time.Duration, old, new string, revision graph.Revision) *operation {
		return &operation{
			client: client, act: swaps, key: "a", old: old, new: new, tag: new, start: start, end: end,
			fate: acknowledged, found: true, revision: revision, changed: 1,
		}
	}
	read := func(node int, mode cluster.Mode, start, end time.Duration, value string, revision graph.Revision) *operation {
		return &operation{node: node, act: reads, key: "a", mode: mode, start: start, end: end, fate: acknowledged, value: value, revision: revision}
	}
	atLeast := func(o *operation, asked graph.Revision) *operation { o.asked = asked; return o }
	fated := func(o *operation, f fate) *operation {
		if o.fate = f; f == unknown {
			o.end = endless
		}
		return o
	}
	final := &answered{Revision: 20, Tuples: []string{"a y"}, Changes: []change{
		{Revision: 10, Stamp: 100, Sequence: 1, Count: 1, Tag: "x", Edges: []string{"+a x"}},
		{Revision: 20, Stamp: 200, Sequence: 2, Count: 2, Tag: "y", Edges: []string{"+a y", "-a x"}},
	}}
	both := []*operation{write(0, 0, 10, "", "x", 10), write(1, 20, 30, "x", "y", 20)}
	for _, c := range []struct {
		name       string
		operations []*operation
		want       string // Part of a complaint; empty for none.
		porcupine  bool
	}{
		{"good", append(both, read(0, cluster.Linearizable, 31, 40, "y", 20), read(1, cluster.Newest, 31, 40, "x", 10)), "", false},
		{"read beside a write", append(both, read(0, cluster.Linearizable, 25, 40, "x", 10)), "", false},
		{"stale linearizable read", append(both, read(0, cluster.Linearizable, 31, 40, "x", 10)), "of before what was told", true},
		{"linearizable reads go back", []*operation{
			both[0], fated(write(1, 12, 13, "x", "y", 20), unknown),
			read(0, cluster.Linearizable, 20, 30, "y", 20), read(1, cluster.Linearizable, 31, 40, "x", 10),
		}, "of before what was told", true},
		{"newest goes back", append(both, read(0, cluster.Newest, 31, 40, "y", 20), read(0, cluster.Newest, 41, 50, "x", 10)), "went back", false},
		{"older than its zookie", append(both, atLeast(read(1, cluster.AtLeast, 31, 40, "x", 10), 20)), "not as new as the zookie", false},
		{"not at its revision", append(both, atLeast(read(1, cluster.Exactly, 31, 40, "x", 10), 20)), "not at its revision", false},
		{"wrong value", append(both, read(1, cluster.Newest, 31, 40, "x", 20)), "does not say", false},
		{"lost write", append(both, write(2, 32, 33, "y", "z", 30)), "not in the change log", false},
		{"refused and made", []*operation{both[0], fated(write(1, 20, 30, "x", "y", 20), refused)}, "that was not made is in", false},
		{"swapped what was not there", append(both, write(2, 40, 50, "x", "q", 20)), "not linearizable", true},
	} {
		l := newLedger("r")
		l.operations = c.operations
		v := l.judge(final)
		said := strings.Join(v.wrong, "\n")
		if c.want == "" && said != "" || !strings.Contains(said, c.want) || v.byPorcupine != c.porcupine {
			t.Errorf("%s: porcupine complains: %v; all complaints:\n%s\nwanted: %s", c.name, v.byPorcupine, said, c.want)
		}
	}

	l := newLedger("r")
	l.watchers = []*follower{{next: graph.Position{Revision: 21}, changes: final.Changes[1:]}}
	if said := strings.Join(l.judge(final).wrong, "\n"); !strings.Contains(said, "instead of") {
		t.Errorf("a watcher that missed a change: %s", said)
	}
	twice := *final
	twice.Changes = append(slices.Clone(final.Changes), change{Revision: 21, Stamp: 200, Sequence: 4, Count: 1, Tag: "y", Edges: []string{"+a y"}})
	if said := strings.Join(newLedger("r").judge(&twice).wrong, "\n"); !strings.Contains(said, "made twice") {
		t.Errorf("a request that was made twice: %s", said)
	}
}
