package engine

import (
	"fmt"

	"github.com/pembadb/pemba/graph"
)

// counter judges the registering or unregistering of a named counter, whose form
// is known to be good.
func (j *judgement) counter(c *graph.CounterChange) (*Refusal, error) {
	_, registered, err := j.snapshot.graph.NamedCounter(c.Name)
	if err != nil {
		return nil, err
	}
	if c.Operation == graph.UnregisterCounter {
		if !registered {
			return refuseUnknownCounter(c.Name), nil
		}
		j.commit.CounterChange = c
		return nil, nil
	}
	// The filter before the name, so that an error of the request never depends on
	// what is registered.
	if err := j.snapshot.JudgeFilter("filter", c.Filter); err != nil {
		return asRefusal(err)
	}
	if registered {
		return refuse(CounterExists, "name", "a counter named %q is registered; unregister it first, or choose another name", c.Name).
			with("counter", c.Name), nil
	}
	count, err := j.snapshot.graph.CountNamedCounters()
	if err != nil {
		return nil, err
	}
	if count >= graph.NamedCountersMax {
		return refuse(TooManyCounters, "", "the store has %d counters, and at most %d are allowed; unregister one of them, which GetStore lists",
			count, graph.NamedCountersMax).with("limit", fmt.Sprint(graph.NamedCountersMax)), nil
	}
	j.commit.CounterChange = c
	return nil, nil
}

func refuseUnknownCounter(name string) *Refusal {
	return refuse(UnknownCounter, "name", "no counter named %q is registered", name).with("counter", name)
}

// NamedCounter returns the named counter of a name, as of the newest revision when
// the snapshot was made; an unknown one is refused with UnknownCounter. What
// matches its filter is counted by Graph().Count, which no schema that was written
// since can make an error.
func (s *Snapshot) NamedCounter(name string) (graph.NamedCounter, error) {
	c, registered, err := s.graph.NamedCounter(name)
	if err == nil && !registered {
		err = refuseUnknownCounter(name)
	}
	return c, err
}
