package cluster

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pembadb/pemba/graph"
)

// TestStuckQuestion: who joins a question that is shared waits for WaitMax in all, also
// behind one that is stuck. It waited for that one as well, and then anew.
func TestStuckQuestion(t *testing.T) {
	const waitMax = 300 * time.Millisecond
	nodes := openCluster(t, 2, func(c *Config) { c.WaitMax = waitMax })
	writeSchema(t, nodes[0])
	leader := leaderOf(t, nodes)
	for _, n := range nodes {
		shared := &n.questions
		if n == leader {
			shared = &n.confirms
		}
		// It is let go when the test ends, which is long after WaitMax.
		begun, letGo := make(chan struct{}), make(chan struct{})
		stuck := make(chan error, 1)
		var once sync.Once
		go func() {
			_, err := shared.wait(testContext(t), deadline, func() (graph.Revision, error) {
				once.Do(func() { close(begun) }) // Those who join have it asked again.
				<-letGo
				return 0, nil
			})
			stuck <- err
		}()
		<-begun
		_, err := n.Snapshot(testContext(t), graph.DefaultStore, Consistency{Mode: Linearizable}, graph.Overlay{})
		if !errors.Is(err, ErrNotLeader) || !strings.Contains(err.Error(), "none answered within "+waitMax.String()) {
			t.Errorf("%s, which leads: %v: %v", n.ID(), n == leader, err)
		}
		close(letGo)
		if err := <-stuck; err != nil {
			t.Errorf("who waits longer: %v", err)
		}
		eventually(t, "it answers again", func() bool {
			s, err := n.Snapshot(testContext(t), graph.DefaultStore, Consistency{Mode: Linearizable}, graph.Overlay{})
			if err == nil {
				s.Close()
			}
			return err == nil
		})
	}
}
