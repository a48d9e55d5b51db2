package faulttest

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	nodesFlag  = flag.Int("nodes", 3, "how many nodes the cluster of TestNemesis has")
	faultsFlag = flag.String("faults", "", "what TestNemesis does, such as \"pause,lead\"; empty for everything")
)

// A step is what the nemesis does next. Everything is drawn at once, so that a seed
// gives the same steps whatever becomes of them; which node leads then is up to the
// cluster.
type step struct {
	faults []fault
	// hold is how long the faults last, and rest how long all is well afterwards.
	hold, rest time.Duration
}

// A fault is one thing that goes wrong.
type fault struct {
	kind faultKind
	// leader picks the node that leads, or else, and if none does, node.
	leader bool
	node   int
	// amount is from 0 to 1: how slow, how late, how far.
	amount float64
}

type faultKind uint8

const (
	killOne faultKind = iota
	killAll
	pauseOne
	isolateOne
	splitHalves
	deafen // Nothing reaches the node, but what it says reaches the others.
	mute   // The other way.
	cutOneWay
	delayOne
	delayEverything
	fillDisk
	slowDisk
	skewClock
	moveLeadership
	faultKinds
)

func (k faultKind) String() string {
	return [...]string{
		"kill", "kill-all", "pause", "isolate", "split", "deafen", "mute", "cut-one-way", "delay", "delay-all",
		"fill-disk", "slow-disk", "set-clock", "lead",
	}[k]
}

// planSteps draws steps for ever.
func planSteps(rng *rand.Rand, nodes int, kinds []faultKind) func() step {
	return func() step {
		var s step
		count := 1
		if rng.IntN(3) == 0 {
			count = 2
		}
		for range count {
			s.faults = append(s.faults, fault{
				kind: kinds[rng.IntN(len(kinds))], leader: rng.IntN(2) == 0, node: rng.IntN(nodes), amount: rng.Float64(),
			})
		}
		if first, last := &s.faults[0], &s.faults[count-1]; first.kind == pauseOne {
			*first, *last = *last, *first // A node that is paused cannot be told of another.
		}
		s.hold = 300*time.Millisecond + time.Duration(rng.Int64N(int64(2*time.Second)))
		if rng.IntN(5) == 0 {
			s.hold *= 3 // So long that a node that was away is sent a whole state.
		}
		s.rest = 200*time.Millisecond + time.Duration(rng.Int64N(int64(time.Second)))
		return s
	}
}

// A nemesis makes things go wrong, and well again.
type nemesis struct {
	t *testing.T
	e *ensemble
	l *ledger
	// undo puts things right, the last first.
	undo   []func()
	counts map[faultKind]int
	// stalls are how long each step kept everyone from writing.
	stalls []time.Duration
}

// begin makes a fault.
func (n *nemesis) begin(f fault) {
	e, links := n.e, n.e.net.links()
	node := f.node
	if f.leader {
		if leader := e.leader(); leader >= 0 {
			node = leader
		}
	}
	m := e.members[node]
	n.counts[f.kind]++
	n.t.Logf("%v: %v, n%d, %.2f", n.l.now().Round(time.Millisecond), f.kind, node+1, f.amount)
	// cut cuts ways between nodes, as chosen.
	cut := func(chosen func(from, to int) bool) {
		set := func(is bool) {
			for from := range e.members {
				for to := range e.members {
					if from != to && chosen(from, to) {
						links.setCut(from, to, is)
					}
				}
			}
		}
		set(true)
		n.undo = append(n.undo, func() { set(false) })
	}
	switch f.kind {
	case killOne:
		m.kill()
	case killAll:
		for _, m := range e.members {
			m.killAtOnce()
		}
		for _, m := range e.members {
			m.kill()
		}
	case pauseOne:
		m.pause()
		n.undo = append(n.undo, m.resume)
	case isolateOne:
		cut(func(from, to int) bool { return from == node || to == node })
	case splitHalves:
		// The half that node is in is the smaller one.
		in := func(other int) bool { return (other-node+len(e.members))%len(e.members) < len(e.members)/2 }
		cut(func(from, to int) bool { return in(from) != in(to) })
	case deafen:
		cut(func(_, to int) bool { return to == node })
	case mute:
		cut(func(from, _ int) bool { return from == node })
	case cutOneWay:
		other := (node + 1 + int(f.amount*float64(len(e.members)-1))) % len(e.members)
		cut(func(from, to int) bool { return from == node && to == other })
	case delayOne:
		by := time.Duration(f.amount * float64(400*time.Millisecond))
		for other := range e.members {
			links.setDelay(node, other, by)
			links.setDelay(other, node, by)
		}
		n.undo = append(n.undo, func() { links.delayAll(0) })
	case delayEverything:
		links.delayAll(time.Duration(f.amount * float64(100*time.Millisecond)))
		n.undo = append(n.undo, func() { links.delayAll(0) })
	case fillDisk:
		n.fill(m, f.amount)
	case slowDisk:
		// From what is a bad day to more than the deadline of the log, after which the
		// node stops itself.
		m.doom()
		by := time.Duration(f.amount * float64(2*nemesisStoreDeadline))
		n.command(m, question{Op: "slow", By: by})
		n.undo = append(n.undo, func() { n.command(m, question{Op: "slow"}) })
	case skewClock:
		by := time.Hour
		if f.amount < 0.5 {
			by = -time.Hour
		}
		n.command(m, question{Op: "clock", By: by})
		n.undo = append(n.undo, func() { n.command(m, question{Op: "clock"}) })
	case moveLeadership:
		// Of the one that leads itself it is asked too, and refused where it cannot be.
		go func() { _, _ = m.ask(question{Op: "transfer", ID: m.settings.ID}) }()
	}
}

// nemesisStoreDeadline is the deadline of the nodes' logs.
const nemesisStoreDeadline = 2 * time.Second

// command tells a node something until it has heard it, or is gone.
func (n *nemesis) command(m *server, q question) {
	n.t.Helper()
	var a answered
	n.e.until(m.settings.ID+" is told to "+q.Op, func() (err error) {
		if gone, _ := m.gone(); !gone {
			a, err = m.askWithin(q, time.Second)
		}
		return err
	})
	if a.Error != "" {
		n.t.Errorf("%s: %s: %s", m.settings.ID, q.Op, a.Error)
	}
}

// fill takes nearly all of a node's disk, or all of it, of which the kernel may end the
// node (see TestFullDisk).
func (n *nemesis) fill(m *server, amount float64) {
	m.doom()
	path := filepath.Join(filepath.Dir(m.settings.DataDir), "filler")
	file, err := os.Create(path)
	if err != nil {
		n.t.Error(err)
		return
	}
	block := make([]byte, 1<<20)
	for {
		if _, err = file.Write(block); err != nil {
			break // Full.
		}
	}
	if info, err := file.Stat(); err == nil && amount < 0.8 {
		err = file.Truncate(max(0, info.Size()-int64(amount*(16<<20))))
		if err != nil {
			n.t.Error(err)
		}
	}
	_ = file.Close() // What it holds is of no use.
	n.undo = append(n.undo, func() {
		// Of two that fill one disk, the later one has made the file anew.
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			n.t.Error(err)
		}
	})
}

// mend puts everything right: what was done is undone, and who is gone starts again.
func (n *nemesis) mend() {
	n.t.Helper()
	for _, undo := range slices.Backward(n.undo) {
		undo()
	}
	n.undo = nil
	var starting sync.WaitGroup
	for _, m := range n.e.members {
		// A doomed one may be about to end.
		gone, why := m.gone()
		if why != nil {
			n.l.complain("%v", why)
		}
		if !gone {
			continue
		}
		starting.Go(func() {
			if err := m.start(); err != nil {
				n.l.complain("%v", err)
			}
		})
	}
	starting.Wait()
}

// goesOn waits until a write is acknowledged from now on.
func (n *nemesis) goesOn() {
	n.t.Helper()
	before := n.l.writes()
	n.e.until("writes go on", func() error {
		if n.l.writes() == before {
			return errors.New("no write was acknowledged")
		}
		return nil
	})
}

// recover puts everything right, and waits until a write is acknowledged. A node that
// was doomed may take its time to end, and is started again then.
func (n *nemesis) recover() {
	n.t.Helper()
	n.mend()
	before, begun := n.l.writes(), time.Now()
	n.e.until("writes go on", func() error {
		if n.l.writes() == before {
			n.mend()
			return errors.New("no write was acknowledged")
		}
		return nil
	})
	n.stalls = append(n.stalls, time.Since(begun))
}

// run takes steps for a while.
func (n *nemesis) run(next func() step, duration time.Duration) {
	n.t.Helper()
	n.goesOn()
	for begun := time.Now(); time.Since(begun) < duration; {
		s := next()
		for _, f := range s.faults {
			n.begin(f)
		}
		time.Sleep(s.hold)
		n.recover()
		time.Sleep(s.rest)
	}
}

// nemesisDiskBytes is the size of a node's disk where disks are filled.
const nemesisDiskBytes = 192 << 20

// nemesisDuration is how long TestNemesis runs where nothing else is said: so long that
// each run of all tests has some of it. From longNemesis on it takes the time to build
// the program whose disk can be slow.
const (
	nemesisDuration = 8 * time.Second
	longNemesis     = 20 * time.Second
)

// Whatever the nemesis does, no client is told what the cluster promises not to say,
// and service goes on afterwards.
//
// Where namespaces are not allowed, a proxy stands between the nodes; where no file
// system can be mounted, no disk is filled; and where the program with a slow disk
// cannot be built, none is slow. Each is logged.
func TestNemesis(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes some ten seconds; run it without -short")
	}
	duration := cmp.Or(*durationFlag, nemesisDuration)
	random := seed(t)
	rng := rand.New(rand.NewPCG(random, 1<<34))
	var kinds []faultKind
	for k := range faultKinds {
		if *faultsFlag == "" || slices.Contains(strings.Split(*faultsFlag, ","), k.String()) {
			kinds = append(kinds, k)
		}
	}
	without := func(k faultKind) { kinds = slices.DeleteFunc(kinds, func(is faultKind) bool { return is == k }) }
	c := ensembleConfig{nodes: *nodesFlag, storeDeadline: nemesisStoreDeadline}
	if canMount(t) {
		c.diskBytes = nemesisDiskBytes
	} else {
		without(fillDisk)
	}
	if duration >= longNemesis {
		binary, err := faultyBinary(t)
		if c.binary = binary; err != nil {
			t.Logf("disks are not slow: %v", err)
			without(slowDisk)
		}
	} else {
		t.Logf("disks are not slow in a run of less than %v", longNemesis)
		without(slowDisk)
	}
	if len(kinds) == 0 {
		t.Fatalf("-faults=%s names nothing that can be done here", *faultsFlag)
	}
	e := newEnsemble(t, c)
	t.Logf("%d nodes, %s", *nodesFlag, e.net.name())
	l := newLedger("r")
	s := work(l)
	s.clients(e, 2*(*nodesFlag), random, evenMix)
	s.watch(e)
	n := &nemesis{t: t, e: e, l: l, counts: map[faultKind]int{}}
	n.run(planSteps(rng, *nodesFlag, kinds), duration)
	v := finish(t, e, s)
	v.report(t, n)
}

// report says what was done, and fails the test where something is wrong.
func (v *verdict) report(t *testing.T, n *nemesis) {
	t.Helper()
	var faults []string
	for k := range faultKinds {
		if n.counts[k] > 0 {
			faults = append(faults, fmt.Sprintf("%v %d", k, n.counts[k]))
		}
	}
	fates := map[fate]int{}
	for _, o := range n.l.operations {
		fates[o.fate]++
	}
	breaks := 0
	for _, f := range n.l.watchers {
		breaks += f.breaks
	}
	states := 0
	for _, m := range n.e.members {
		states += m.count("a state that was sent is in force")
	}
	slices.Sort(n.stalls)
	t.Logf("%d operations in %v: %d answered, %d refused, %d unknown; %d writes acknowledged; %d registers, %d of them undecided; "+
		"%d watchers, broken %d times; %d whole states sent; the longest time without a write %v; after a fault was over, writes went on within %v (median %v)\nfaults: %s",
		v.operations, n.l.now().Round(time.Second), fates[acknowledged], fates[refused], fates[unknown], n.l.acknowledged,
		v.registers, v.undecided, len(n.l.watchers), breaks, states, n.l.gap.Round(time.Millisecond),
		n.stalls[len(n.stalls)-1].Round(time.Millisecond), n.stalls[len(n.stalls)/2].Round(time.Millisecond), strings.Join(faults, ", "))
	for _, wrong := range v.wrong {
		t.Error(wrong)
	}
	if v.undecided*5 > v.registers {
		t.Errorf("porcupine could not decide %d of %d registers", v.undecided, v.registers)
	}
}

// faultyBinary builds this test with the faults that the ordinary build leaves out, and
// returns the program, once for all tests of this run.
func faultyBinary(t *testing.T) (string, error) {
	t.Helper()
	faulty.Do(func() {
		self, err := os.Executable()
		if err == nil && slowLog(0) == nil {
			faulty.path = self // It is such a build itself.
			return
		}
		folder, err := os.MkdirTemp("", "pemba")
		if err != nil {
			faulty.err = err
			return
		}
		faulty.folder, faulty.path = folder, filepath.Join(folder, "faulty")
		begun := time.Now()
		if out, err := exec.Command("go", "test", "-c", "-tags", "pembafaults", "-o", faulty.path, ".").CombinedOutput(); err != nil {
			faulty.err = fmt.Errorf("build with the tag pembafaults: %w\n%s", err, out)
		}
		t.Logf("built the program with faults in %v", time.Since(begun).Round(time.Millisecond))
	})
	return faulty.path, faulty.err
}

var faulty struct {
	sync.Once
	folder, path string
	err          error
}
