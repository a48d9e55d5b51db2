package faulttest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/graph"
)

// An act is what a client does to a register.
type act uint8

const (
	reads act = iota
	swaps
	clears
)

// An operation is what a client asked and was told.
type operation struct {
	client, node int
	act          act
	key          string
	old, new     string
	tag          string
	mode         cluster.Mode
	asked        graph.Revision // Of a read that names one.
	moment       graph.Instant  // Of a read as of a moment.
	// start and end are since the test began; end is endless where nobody knows.
	start, end time.Duration

	// fate is refused for what was certainly not done: the node said so, or it was
	// never asked.
	fate fate
	// found says of an acknowledged swap whether its condition held.
	found    bool
	value    string
	revision graph.Revision
	instant  graph.Instant
	changed  int
}

// endless is the end of an operation of which nobody knows.
const endless = time.Duration(1) << 62

func (o *operation) String() string {
	what := ""
	switch o.act {
	case reads:
		what = fmt.Sprintf("read %v %d: %q", o.mode, o.asked, o.value)
	case swaps:
		what = fmt.Sprintf("swap %q for %q: %v", o.old, o.new, o.found)
	case clears:
		what = "clear"
	}
	end := "never"
	if o.end != endless {
		end = o.end.Round(10 * time.Microsecond).String()
	}
	if o.mode == cluster.AsOf {
		what += fmt.Sprintf(" as of %d", o.moment)
	}
	return fmt.Sprintf("%v to %s: client %d at n%d, %s, %s at revision %d", o.start.Round(10*time.Microsecond), end, o.client, o.node+1, o.key, what, o.revision)
}

// A ledger is what all clients and watchers asked and were told.
type ledger struct {
	begun time.Time
	// name begins its registers and the tags of its writes.
	name string
	// registers is how many are in use at once, and turn after how many operations on
	// each they are left for others, so that what must be judged at once stays small.
	registers, turn int

	mu         sync.Mutex
	operations []*operation
	// wrong is what is wrong at first sight.
	wrong []string
	// believed is what some client knows of each register, to swap it.
	believed map[string]string
	// newest is the highest revision of an answer, and revisions and moments are some
	// earlier ones.
	newest    graph.Revision
	revisions []graph.Revision
	moments   []graph.Instant
	// acknowledged counts writes; last is when the newest was, and gap the longest
	// time between two.
	acknowledged int
	last, gap    time.Duration
	watchers     []*follower
}

func newLedger(name string) *ledger {
	return &ledger{begun: time.Now(), name: name, registers: 4, turn: 60, believed: map[string]string{}}
}

func (l *ledger) now() time.Duration { return time.Since(l.begun) }

func (l *ledger) complain(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.wrong) < 100 {
		l.wrong = append(l.wrong, fmt.Sprintf("%v: ", l.now().Round(time.Millisecond))+fmt.Sprintf(format, args...))
	}
}

func (l *ledger) writes() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acknowledged
}

// remembered bounds what is kept of earlier revisions and moments.
const remembered = 64

// record keeps an operation that ended.
func (l *ledger) record(o *operation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.operations = append(l.operations, o)
	if o.fate != acknowledged {
		return
	}
	switch {
	case o.act == reads && (o.mode == cluster.Linearizable || o.mode == cluster.Newest):
		l.believed[o.key] = o.value
	case o.act == swaps && o.found:
		l.believed[o.key] = o.new
	case o.act == clears:
		l.believed[o.key] = ""
	}
	if o.act != reads {
		l.acknowledged++
		l.gap = max(l.gap, o.end-l.last)
		l.last = o.end
	}
	if o.revision > 0 && o.mode != cluster.AsOf {
		l.newest = max(l.newest, o.revision)
		l.revisions = append(l.revisions, o.revision)
		l.moments = append(l.moments, o.instant)
		if len(l.revisions) > remembered {
			l.revisions, l.moments = l.revisions[1:], l.moments[1:]
		}
	}
}

// key chooses a register.
func (l *ledger) key(rng *rand.Rand) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprintf("%s%d-%d", l.name, len(l.operations)/(l.registers*l.turn), rng.IntN(l.registers))
}

// A mix says how often a client does what, of 100; the rest are reads at all other
// consistencies.
type mix struct {
	writes, linearizable int
	// pause is the longest pause between two operations.
	pause time.Duration
	// within is how long a node may take to answer.
	within time.Duration
}

var evenMix = mix{writes: 40, linearizable: 30, pause: 12 * time.Millisecond, within: 2 * time.Second}

// A caller is a client: it does one thing after another, at any node.
type caller struct {
	l     *ledger
	e     *ensemble
	id    int
	name  string
	rng   *rand.Rand
	mix   mix
	nodes []int // That it asks.
	lines map[int]*line
	next  int
	seen  graph.Revision // The newest of its own.
}

// run works until stop is closed.
func (c *caller) run(stop <-chan struct{}) {
	c.lines = map[int]*line{}
	defer func() {
		for _, l := range c.lines {
			l.close()
		}
	}()
	node := c.nodes[c.rng.IntN(len(c.nodes))]
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(c.rng.Int64N(int64(c.mix.pause)))):
		}
		if c.rng.IntN(3) == 0 {
			node = c.nodes[c.rng.IntN(len(c.nodes))]
		}
		c.once(node)
	}
}

// once does one thing at a node.
func (c *caller) once(node int) {
	c.next++
	o := &operation{client: c.id, node: node, key: c.l.key(c.rng)}
	c.choose(o)
	q := question{Key: o.key, Old: o.old, New: o.new, Tag: o.tag, Mode: o.mode, Revision: o.asked, Instant: o.moment}
	q.Op = [...]string{reads: "read", swaps: "swap", clears: "clear"}[o.act]
	l := c.lines[node]
	if l == nil {
		var err error
		if l, err = c.e.members[node].dial(); err != nil {
			return
		}
		c.lines[node] = l
	}
	o.start, o.end = c.l.now(), endless
	a, err := l.ask(q, c.mix.within)
	switch end := c.l.now(); {
	case err != nil:
		l.close()
		delete(c.lines, node)
	case a.Unknown:
	case a.Error != "":
		o.fate, o.end = refused, end
	default:
		o.fate, o.end = acknowledged, end
		o.found, o.value, o.revision, o.instant, o.changed = !a.Refused, a.Value, a.Revision, a.Instant, a.Changed
		c.seen = max(c.seen, a.Revision)
	}
	if a.Wrong != "" {
		c.l.complain("%s (%v)", a.Wrong, o)
	}
	c.l.record(o)
}

// choose decides what to do.
func (c *caller) choose(o *operation) {
	l := c.l
	l.mu.Lock()
	defer l.mu.Unlock()
	draw := c.rng.IntN(100)
	switch {
	case draw < c.mix.writes:
		o.tag = fmt.Sprintf("%s-%d", c.name, c.next)
		if o.act = swaps; c.rng.IntN(12) == 0 {
			o.act = clears
			return
		}
		o.old, o.new = l.believed[o.key], o.tag
	case draw < c.mix.writes+c.mix.linearizable || len(l.revisions) == 0:
		o.mode = cluster.Linearizable
	default:
		some := c.rng.IntN(len(l.revisions))
		switch c.rng.IntN(4) {
		case 0:
			o.mode = cluster.Newest
		case 1:
			// Often the newest of all, which the node may not have yet.
			if o.mode, o.asked = cluster.AtLeast, l.newest; c.rng.IntN(2) == 0 {
				o.asked = c.seen
			}
		case 2:
			o.mode, o.asked = cluster.Exactly, l.revisions[some]
		case 3:
			o.mode, o.moment = cluster.AsOf, l.moments[some]
		}
	}
}

// A follower is a watcher that begins at the first change, and goes on after each
// break, at the same node or another.
type follower struct {
	l     *ledger
	e     *ensemble
	start int

	mu      sync.Mutex
	next    graph.Position
	changes []change
	breaks  int
}

func (f *follower) run(stop <-chan struct{}) {
	for node := f.start; ; node = (node + 1) % len(f.e.members) {
		select {
		case <-stop:
			return
		case <-time.After(20 * time.Millisecond):
		}
		if f.follow(node, stop) {
			f.mu.Lock()
			f.breaks++
			f.mu.Unlock()
		}
	}
}

// silence is after how long without a word a watcher believes its node to be gone.
const silence = 2 * time.Second

// follow follows the changes at a node as long as it can, and reports whether it was
// told of any.
func (f *follower) follow(node int, stop <-chan struct{}) (told bool) {
	l, err := f.e.members[node].dial()
	if err != nil {
		return false
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-stop:
		case <-ended:
		}
		l.close()
	}()
	f.mu.Lock()
	from := f.next
	f.mu.Unlock()
	if err := l.out.Encode(question{Op: "watch", From: from}); err != nil {
		return false
	}
	for {
		if err := l.conn.SetReadDeadline(time.Now().Add(silence)); err != nil {
			return told
		}
		var a answered
		if err := l.in.Decode(&a); err != nil {
			return told
		}
		if a.Wrong != "" {
			f.l.complain("watch at n%d from %+v: %s", node+1, from, a.Wrong)
		}
		if a.Error != "" {
			return told
		}
		told = true
		f.mu.Lock()
		for _, c := range a.Changes {
			if at := (graph.Position{Revision: c.Revision, Offset: c.Offset}); before(at, f.next) {
				f.l.complain("the watcher at n%d was told of %+v again, and it was at %+v", node+1, at, f.next)
			}
		}
		if before(a.Next, f.next) {
			f.l.complain("the watcher at n%d was put back from %+v to %+v", node+1, f.next, a.Next)
		}
		f.changes, f.next = append(f.changes, a.Changes...), a.Next
		f.mu.Unlock()
	}
}

func before(a, b graph.Position) bool {
	return a.Revision < b.Revision || a.Revision == b.Revision && a.Offset < b.Offset
}

// A session is clients and watchers at work.
type session struct {
	l                  *ledger
	stop, stopWatching chan struct{}
	working, watching  sync.WaitGroup
	count              int // Of the clients.
}

// work starts a session without anybody.
func work(l *ledger) *session {
	return &session{l: l, stop: make(chan struct{}), stopWatching: make(chan struct{})}
}

// clients start so many clients that ask the nodes, or all of them if none is named.
func (s *session) clients(e *ensemble, count int, seed uint64, m mix, nodes ...int) {
	if len(nodes) == 0 {
		for i := range e.members {
			nodes = append(nodes, i)
		}
	}
	for range count {
		s.count++
		c := &caller{
			l: s.l, e: e, id: s.count, name: fmt.Sprintf("%sc%d", s.l.name, s.count), rng: rand.New(rand.NewPCG(seed, uint64(s.count))),
			mix: m, nodes: nodes,
		}
		s.working.Go(func() { c.run(s.stop) })
	}
}

// watch starts a watcher at each node.
func (s *session) watch(e *ensemble) {
	for i := range e.members {
		f := &follower{l: s.l, e: e, start: i, next: graph.Position{Revision: 1}}
		s.l.watchers = append(s.l.watchers, f)
		s.watching.Go(func() { f.run(s.stopWatching) })
	}
}

// end stops the clients and waits for them. The watchers go on until endWatching.
func (s *session) end() {
	close(s.stop)
	s.working.Wait()
}

func (s *session) endWatching() {
	close(s.stopWatching)
	s.watching.Wait()
}

// logOf reads the change log and the tuples of a node up to a revision at least.
func logOf(m *server, at graph.Revision) (answered, error) {
	a, err := m.askWithin(question{Op: "history", Revision: at, From: graph.Position{Revision: 1}}, patience)
	a.Changes = joined(a.Changes)
	return a, errors.Join(err, a.err())
}

// sameEverywhere waits until all nodes are at the same revision, and returns the log and
// tuples of it, which must be those of each. That they do not get there is a complaint as
// well, and nothing is returned then: a node that lost what it had acknowledged may have
// applied it before, and never be where the others are.
func sameEverywhere(t *testing.T, e *ensemble, l *ledger) *answered {
	t.Helper()
	var first answered
	err := e.becomes("all nodes have the same revision", func() error {
		at, err := e.members[0].ask(question{Op: "read", Key: "none", Mode: cluster.Linearizable})
		if err = errors.Join(err, at.err()); err != nil {
			return err
		}
		for i, m := range e.members {
			a, err := logOf(m, at.Revision)
			switch {
			case err != nil:
				return fmt.Errorf("%s: %w", m.settings.ID, err)
			case i == 0:
				first = a
			case a.Revision != first.Revision:
				return fmt.Errorf("%s is at revision %d, and n1 at %d", m.settings.ID, a.Revision, first.Revision)
			case !slices.Equal(a.Tuples, first.Tuples):
				l.complain("%s and n1 hold other tuples at revision %d: %v and %v", m.settings.ID, a.Revision, a.Tuples, first.Tuples)
			case !slices.EqualFunc(a.Changes, first.Changes, sameChange):
				l.complain("%s and n1 have other change logs up to revision %d", m.settings.ID, a.Revision)
			}
		}
		return nil
	})
	if err != nil {
		l.complain("%v", err)
		return nil
	}
	return &first
}

func sameChange(a, b change) bool {
	return a.Revision == b.Revision && a.Stamp == b.Stamp && a.Sequence == b.Sequence && a.Offset == b.Offset &&
		a.Count == b.Count && a.Tag == b.Tag && slices.Equal(a.Edges, b.Edges)
}
