package engine

import "sync/atomic"

// Stats count what questions cost since the engine was made. What Apply
// evaluates is not among it.
type Stats struct {
	// Questions counts the walks: checks (those of a bulk check one by one),
	// lookups and expansions.
	Questions uint64
	// Steps is what they cost together, in the unit of Budget.Steps.
	Steps uint64
	// Cycles counts the cycles of the data that had to be solved for them.
	Cycles uint64
	// Caveats counts the evaluations of caveats.
	Caveats uint64
	// BudgetRefusals counts the questions that were refused with BudgetExceeded.
	BudgetRefusals uint64
}

// Stats returns the counts. They are read one after another while questions go
// on, so that they need not fit each other to the last question. It may be
// called by any goroutine and costs nothing.
func (e *Engine) Stats() Stats {
	return Stats{
		Questions:      e.stats.questions.Load(),
		Steps:          e.stats.steps.Load(),
		Cycles:         e.stats.cycles.Load(),
		Caveats:        e.stats.caveats.Load(),
		BudgetRefusals: e.stats.budgetRefusals.Load(),
	}
}

// stats are the counters behind Stats. A question counts for itself while it
// goes on and adds here once, when it is done.
type stats struct {
	questions, steps, cycles, caveats, budgetRefusals atomic.Uint64
}

// add counts a question that is done.
func (s *stats) add(q *question) {
	s.questions.Add(1)
	s.steps.Add(uint64(q.steps))
	if q.cycles > 0 {
		s.cycles.Add(uint64(q.cycles))
	}
	if q.caveats > 0 {
		s.caveats.Add(uint64(q.caveats))
	}
}

// overBudget refuses a question that needs more than it may have.
func (q *question) overBudget(format string, args ...any) *Refusal {
	q.stats.budgetRefusals.Add(1)
	return refuse(BudgetExceeded, "", format, args...)
}
