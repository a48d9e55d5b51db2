package cluster

import (
	"context"
	"sync"
)

// progress wakes those who wait for the node to come further: to apply a
// revision, to lead. It costs next to nothing while nobody waits.
type progress struct {
	mu      sync.Mutex
	changed chan struct{} // Closed at the next broadcast; nil while nobody waits.
}

// broadcast wakes all waiters to look again.
func (p *progress) broadcast() {
	p.mu.Lock()
	if p.changed != nil {
		close(p.changed)
		p.changed = nil
	}
	p.mu.Unlock()
}

// wait returns nil as soon as reached returns true, which it asks now and after
// each broadcast; the context's error when that ends before; or, when stop is
// closed, errStopped.
func (p *progress) wait(ctx context.Context, stop <-chan struct{}, reached func() bool) error {
	for {
		p.mu.Lock()
		if p.changed == nil {
			p.changed = make(chan struct{})
		}
		changed := p.changed
		p.mu.Unlock()
		// Asked after the channel is there, so that no broadcast is missed.
		if reached() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-stop:
			return errStopped
		}
	}
}
