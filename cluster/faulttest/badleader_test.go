package faulttest

import (
	"cmp"
	"fmt"
	"testing"
	"time"
)

// Whatever befalls the leader, the others go on without it while it lasts, and it comes
// back afterwards. The time without a write is printed.
func TestBadLeader(t *testing.T) {
	if cmp.Or(*durationFlag, nemesisDuration) < longNemesis {
		t.Skipf("run it with -duration %v or more, which is for long runs", longNemesis)
	}
	binary, err := faultyBinary(t)
	if err != nil {
		t.Logf("no disk is slow: %v", err)
	}
	c := ensembleConfig{nodes: 3, binary: binary, storeDeadline: nemesisStoreDeadline}
	if canMount(t) {
		c.diskBytes = nemesisDiskBytes
	}
	e := newEnsemble(t, c)
	random := seed(t)
	for i, f := range []fault{
		{kind: killOne},
		{kind: pauseOne},
		{kind: isolateOne},
		{kind: deafen},
		{kind: mute},
		{kind: slowDisk, amount: 1},
		{kind: fillDisk, amount: 0.5},
		{kind: fillDisk, amount: 1},
		{kind: skewClock, amount: 0},
		{kind: skewClock, amount: 1},
		{kind: moveLeadership},
	} {
		t.Run(fmt.Sprintf("%d %v", i, f.kind), func(t *testing.T) {
			switch {
			case f.kind == slowDisk && binary == "":
				t.Skip("the program with a slow disk cannot be built")
			case f.kind == fillDisk && c.diskBytes == 0:
				t.Skip("no small file system can be mounted")
			}
			e.t = t
			n := &nemesis{t: t, e: e, counts: map[faultKind]int{}}
			f.node = e.awaitLeader()
			n.l = newLedger(fmt.Sprintf("r%d.", i))
			s := work(n.l)
			s.clients(e, 6, random+uint64(i), evenMix, n.but(f.node)...)
			n.goesOn()
			if f.kind == moveLeadership {
				f.node = n.but(f.node)[0]
			}
			defer n.mend() // Also where it fails.
			n.begin(f)
			begun := time.Now()
			// Writes that were under way do not count.
			for range 10 {
				n.goesOn()
			}
			n.l.mu.Lock()
			t.Logf("writes go on %v after it began; the longest time without one was %v",
				time.Since(begun).Round(time.Millisecond), n.l.gap.Round(time.Millisecond))
			n.l.mu.Unlock()
			time.Sleep(500 * time.Millisecond)
			n.recover()
			for _, wrong := range finish(t, e, s).wrong {
				t.Error(wrong)
			}
		})
	}
}
