package faulttest

import (
	"flag"
	"fmt"
	"testing"
	"time"
)

var plantedFlag = flag.Bool("planted", false, "run TestPlanted, which builds a program with bugs and must find them")

// A shape is what the nemesis does again and again to bring one bug to light.
type shape struct {
	bug     string
	provoke func(n *nemesis, s *session, seed uint64)
}

// The names of the bugs are those of package cluster in the test-only build.
var shapes = []shape{
	{"local-reads", cutOffFollower},
	{"early-lead", killLeaderOfSlowDisks},
	{"old-confirmations", cutOffStuckLeader},
	{"late-sync", killEverybody},
}

// often is a mix of many short operations.
var often = mix{writes: 45, linearizable: 50, pause: 4 * time.Millisecond, within: time.Second}

// cutOffFollower has a follower asked that hears nothing of what the others write.
func cutOffFollower(n *nemesis, s *session, seed uint64) {
	follower := (n.e.awaitLeader() + 1) % len(n.e.members)
	s.clients(n.e, 3, seed, often, n.but(follower)...)
	s.clients(n.e, 3, seed+1, readOften, follower)
	n.goesOn()
	n.begin(fault{kind: isolateOne, node: follower})
	time.Sleep(500 * time.Millisecond)
}

// readOften only reads, and does not wait for long.
var readOften = mix{linearizable: 100, pause: 4 * time.Millisecond, within: 200 * time.Millisecond}

// but returns all nodes but one.
func (n *nemesis) but(node int) []int {
	var others []int
	for i := range n.e.members {
		if i != node {
			others = append(others, i)
		}
	}
	return others
}

// killLeaderOfSlowDisks kills the leader while the others have entries that it has just
// acknowledged, and do not know that these are agreed, since its word is late and then
// lost. Its successor's first entry takes long, so that readers have time to ask. (The
// writers are at the leader: a node that forwards a write knows that it is agreed when it
// acknowledges it.)
func killLeaderOfSlowDisks(n *nemesis, s *session, seed uint64) {
	leader := n.e.awaitLeader()
	links := n.e.net.links()
	n.undo = append(n.undo, func() { links.delayAll(0) })
	for _, other := range n.but(leader) {
		links.setDelay(leader, other, 100*time.Millisecond)
	}
	for _, m := range n.e.members {
		n.command(m, question{Op: "slow-entries", By: 300 * time.Millisecond})
		n.undo = append(n.undo, func() { n.command(m, question{Op: "slow-entries"}) })
	}
	s.clients(n.e, 6, seed, often, leader)
	n.goesOn()
	n.begin(fault{kind: isolateOne, node: leader})
	n.begin(fault{kind: killOne, node: leader})
	s.clients(n.e, 6, seed+1, readOften, n.but(leader)...)
	time.Sleep(2 * time.Second)
}

// cutOffStuckLeader cuts a leader off while its disk does not answer, so that it cannot
// give its leadership up, and has it asked for what the others write.
func cutOffStuckLeader(n *nemesis, s *session, seed uint64) {
	leader := n.e.awaitLeader()
	s.clients(n.e, 4, seed, often, n.but(leader)...)
	s.clients(n.e, 4, seed+1, readOften, leader)
	n.goesOn()
	m := n.e.members[leader]
	n.command(m, question{Op: "slow", By: 2 * time.Second})
	n.undo = append(n.undo, func() { n.command(m, question{Op: "slow"}) })
	time.Sleep(100 * time.Millisecond) // A write comes meanwhile, or the next round is another try.
	n.begin(fault{kind: isolateOne, node: leader})
	time.Sleep(2 * time.Second)
}

// killEverybody kills all nodes at the same moment, under load.
func killEverybody(n *nemesis, s *session, seed uint64) {
	s.clients(n.e, 6, seed, often)
	n.goesOn()
	time.Sleep(300 * time.Millisecond)
	n.begin(fault{kind: killAll})
}

// plantedBound is within what a planted bug must be found.
const plantedBound = 90 * time.Second

// innocentRounds is how often each shape must find nothing where no bug is planted.
const innocentRounds = 2

// The nemesis and the judge find each of four bugs that are planted in the program, and
// nothing in the program without them.
func TestPlanted(t *testing.T) {
	if !*plantedFlag {
		t.Skip("run it with -planted: it builds another program and takes a minute or two")
	}
	binary, err := faultyBinary(t)
	if err != nil {
		t.Skipf("the program with bugs cannot be built: %v", err)
	}
	random := seed(t)
	for _, shape := range shapes {
		t.Run(shape.bug, func(t *testing.T) {
			begun := time.Now()
			rounds, v := provoke(t, binary, shape, shape.bug, random, func(int) bool { return time.Since(begun) < plantedBound })
			if len(v.wrong) == 0 {
				t.Fatalf("it was not found in %d rounds, %v", rounds, time.Since(begun).Round(time.Second))
			}
			t.Logf("found in round %d, after %v; %d complaints, porcupine has one: %v; the first:\n%.1500s",
				rounds, time.Since(begun).Round(100*time.Millisecond), len(v.wrong), v.byPorcupine, v.wrong[0])
		})
		t.Run("nothing planted for "+shape.bug, func(t *testing.T) {
			_, v := provoke(t, binary, shape, "", random, func(rounds int) bool { return rounds < innocentRounds })
			for _, wrong := range v.wrong {
				t.Error(wrong)
			}
		})
	}
}

// provoke goes through rounds of a shape, each with a ledger of its own, as long as
// nothing is wrong and more says so.
func provoke(t *testing.T, binary string, s shape, bug string, random uint64, more func(rounds int) bool) (rounds int, v *verdict) {
	t.Helper()
	e := newEnsemble(t, ensembleConfig{nodes: 3, binary: binary, bug: bug})
	v = &verdict{}
	for ; len(v.wrong) == 0 && more(rounds); rounds++ {
		l := newLedger(fmt.Sprintf("r%d.", rounds))
		l.registers, l.turn = 1, 1000 // What is stale is that very register.
		session := work(l)
		n := &nemesis{t: t, e: e, l: l, counts: map[faultKind]int{}}
		s.provoke(n, session, random+uint64(rounds)<<8)
		n.mend()
		l.mu.Lock()
		broken := len(l.wrong) > 0 // It does not even start.
		l.mu.Unlock()
		if broken {
			session.end()
			return rounds + 1, l.judge(nil)
		}
		n.recover()
		v = finish(t, e, session)
	}
	return rounds, v
}
