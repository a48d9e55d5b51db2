package cluster

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestRetryPauses: who asks a leader that refuses, since it hands the leadership on, say,
// asks it now and then until WaitMax is over, however often the node comes further
// meanwhile. That it leads is no news to who asked it while it did.
func TestRetryPauses(t *testing.T) {
	config := testConfig(t, t.TempDir())
	config.WaitMax = time.Second
	n := open(t, config)
	if !n.leads() {
		t.Fatal("it does not lead")
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Microsecond):
				n.progress.broadcast()
			}
		}
	}()
	tries := 0
	err := n.retry(testContext(t), func() error {
		tries++
		return fmt.Errorf("%w: %w", ErrNotLeader, raft.ErrLeadershipTransferInProgress)
	}, func(err error) bool { return errors.Is(err, ErrNotLeader) })
	close(stop)
	<-stopped
	if !errors.Is(err, raft.ErrLeadershipTransferInProgress) {
		t.Errorf("it ends with %v", err)
	}
	// As many as the pauses leave room for; on a machine that is busy it may be fewer.
	most, waited := 1, time.Duration(0)
	for pause := retryPauseMin; waited+pause <= config.WaitMax; pause = min(2*pause, retryPauseMax) {
		waited += pause
		most++
	}
	if tries < 2 || tries > most {
		t.Errorf("it was asked %d times, and at most %d were expected", tries, most)
	}
}
