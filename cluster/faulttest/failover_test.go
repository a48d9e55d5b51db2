package faulttest

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pembadb/pemba/cluster"
)

// failoverMax is how long writes may be away when the leader dies.
const failoverMax = 3 * time.Second

// Under a load of checks and writes the leader is killed again and again: writes go on
// soon by way of the other nodes, whose checks of the newest state never fail.
func TestFailover(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes some seconds; run it without -short")
	}
	e := newEnsemble(t, ensembleConfig{nodes: 3})
	t.Logf("%d nodes, %s", len(e.members), e.net.name())
	var away []time.Duration
	checks, written := 0, 0
	for kill := range *killsFlag {
		leader := e.awaitLeader()
		var (
			mu      sync.Mutex
			killed  time.Time // Zero before.
			back    time.Time // When the first write ended that began after the kill.
			working sync.WaitGroup
		)
		stop, going := make(chan struct{}), make(chan struct{})
		for i, m := range e.members {
			if i == leader {
				continue
			}
			for w := range 3 {
				working.Go(func() {
					l, err := m.dial()
					if err != nil {
						t.Error(err)
						return
					}
					defer l.close()
					for next := 0; ; next++ {
						select {
						case <-stop:
							return
						default:
						}
						begun := time.Now()
						key := fmt.Sprintf("k%d-%d-%d-%d", kill, i, w, next)
						a, err := l.ask(question{Op: "swap", Key: key, New: "someone", Tag: key}, patience)
						if err != nil {
							t.Errorf("%s: %v", m.settings.ID, err)
							return
						}
						if a.Error != "" {
							continue // Nobody led for long; the time says so.
						}
						mu.Lock()
						if written++; !killed.IsZero() && begun.After(killed) && back.IsZero() {
							back = time.Now()
							close(going)
						}
						mu.Unlock()
					}
				})
			}
			working.Go(func() {
				l, err := m.dial()
				if err != nil {
					t.Error(err)
					return
				}
				defer l.close()
				for {
					select {
					case <-stop:
						return
					case <-time.After(time.Millisecond):
					}
					a, err := l.ask(question{Op: "read", Key: "k", Mode: cluster.Newest}, patience)
					if err != nil || a.Error != "" || a.Wrong != "" {
						t.Errorf("a check of the newest state of %s failed: %v %s %s", m.settings.ID, err, a.Error, a.Wrong)
						return
					}
					mu.Lock()
					checks++
					mu.Unlock()
				}
			})
		}
		mu.Lock()
		already := written
		mu.Unlock()
		e.until("writes are made", func() error {
			mu.Lock()
			defer mu.Unlock()
			if written < already+20 {
				return fmt.Errorf("%d were made", written-already)
			}
			return nil
		})
		mu.Lock()
		killed = time.Now()
		mu.Unlock()
		e.members[leader].kill()
		select {
		case <-going:
		case <-time.After(patience):
			close(stop)
			t.Fatalf("no write within %v", patience)
		}
		close(stop)
		working.Wait()
		took := back.Sub(killed)
		away = append(away, took)
		t.Logf("kill %d, of n%d: writes are back after %v", kill+1, leader+1, took.Round(time.Millisecond))
		if took > failoverMax {
			t.Errorf("that is more than %v", failoverMax)
		}
		if err := e.members[leader].start(); err != nil {
			t.Fatal(err)
		}
		if err := e.ready(); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(away)
	t.Logf("%d kills of the leader: writes were back after %v (median; least %v, most %v); %d writes, %d good checks of the newest state on the other nodes",
		len(away), away[len(away)/2].Round(time.Millisecond), away[0].Round(time.Millisecond), away[len(away)-1].Round(time.Millisecond), written, checks)
}
