package cluster

import "time"

// What a node does in the background never holds up those who ask, because of
// how it is paced: it goes in steps of a few milliseconds at most, none of which holds
// a lock or a snapshot beyond its end, and rests after each for several times
// as long as the step took. So it takes a fixed part of one core and of the disk,
// and where the machine is busy, steps take longer and the rests with them.
const (
	// restAfterEntry follows an entry that the leader proposes: it is to take no
	// more than half of the time of the FSM.
	restAfterEntry = 1
	// A step of a removal looks at removalRecords of the change log, some tenths of
	// a millisecond, and restAfterRemoval follows it: it takes a twenty-fifth of one
	// core, so that fewer than one check in twenty meets a step, and what Pebble has
	// to flush and compact for it comes as slowly.
	removalRecords   = 25
	restAfterRemoval = 24
	// A removal that is not over when more is forgotten would never be, and fill the
	// disk. It hurries, with some ten times as many records a second.
	hurriedRecords   = 200
	restAfterHurried = 4

	restMin = time.Millisecond
)

// rest waits after a step that took so long. It reports false when the node
// stops.
func (n *Node) rest(took time.Duration, times int) bool {
	return n.sleep(max(restMin, took*time.Duration(times)))
}

// sleep waits, and reports false when the node stops.
func (n *Node) sleep(pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-n.stop:
		return false
	case <-timer.C:
		return true
	}
}

// nudge wakes who waits for the channel, which has room for one: now, or as soon as it comes
// to wait again. However many nudge it meanwhile, it wakes once.
func nudge(wake chan<- struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}
