package engine

import (
	"context"
	"errors"
	"sync"

	"github.com/pembadb/pemba/graph"
)

// Check answers one question at the snapshot's revision and instant. It returns
// a *Refusal when the question cannot be answered as asked, and ctx's error
// when the caller's time is up.
func (s *Snapshot) Check(ctx context.Context, q Check) (Answer, error) {
	n, err := s.name("object.type", "permission", q.Object.Type, q.Name)
	if err != nil {
		return Answer{}, err
	}
	subject, err := s.subject("subject", q.Subject)
	if err != nil {
		return Answer{}, err
	}
	object, err := s.graph.Number(q.Object.Type, q.Object.ID)
	if err != nil {
		return Answer{}, err
	}
	if object == graph.WildcardNumber {
		return Answer{}, refuse(WildcardSubject, "object.id", "a wildcard is no object to ask about; name one")
	}
	w := walks.Get().(*walk)
	defer w.release()
	w.begin(s.question(ctx, q.Budget))
	w.context, w.subject, w.once = q.Context, subject, !q.Trace
	if q.Trace {
		w.nesting.state = notKnown // A trace shows the way through the usersets.
	}
	v, err := w.evaluate(n, object)
	if err != nil {
		return Answer{}, err
	}
	if v.failed() {
		return Answer{}, w.fault
	}
	answer := Answer{Verdict: v.verdict()}
	if q.Trace {
		if answer.Trace, err = w.traceAnswer(n, object, v); err != nil {
			return Answer{}, err
		}
	}
	answer.Steps, answer.Cycles = w.steps, w.cycles
	return answer, nil
}

// A BulkAnswer is the answer to one check of many: an Answer or why there is
// none.
type BulkAnswer struct {
	Answer
	Err error
}

// CheckBulk answers the checks in order, all at the snapshot's revision and
// instant. A check that is refused does not stop the others; a fault or the
// end of ctx does, and is the error.
func (s *Snapshot) CheckBulk(ctx context.Context, questions []Check) ([]BulkAnswer, error) {
	answers := make([]BulkAnswer, len(questions))
	for i, q := range questions {
		// One that is refused before it walks does not look at ctx.
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		answer, err := s.Check(ctx, q)
		var refusal *Refusal
		if err != nil && !errors.As(err, &refusal) {
			return nil, err
		}
		answers[i] = BulkAnswer{Answer: answer, Err: err}
	}
	return answers, nil
}

// A subjectNumbers is a concrete subject in the numbers of a snapshot: a plain
// object of a type, or the userset that shape and number name.
type subjectNumbers struct {
	shape  graph.Shape
	number graph.Number
	// plain says that the subject has no relation; only then do wildcards
	// cover it.
	plain bool
}

// subject finds the numbers of a subject that a question names.
func (s *Snapshot) subject(field string, subject graph.Subject) (subjectNumbers, error) {
	none := subjectNumbers{}
	p, err := s.program()
	if err != nil {
		return none, err
	}
	t := p.types[subject.Type]
	if t == nil {
		return none, p.unknownType(field+".object.type", subject.Type)
	}
	if subject.ID == graph.Wildcard {
		return none, refuse(WildcardSubject, field+".object.id", "a wildcard is no subject to ask about; name a %s", subject.Type)
	}
	number, err := s.graph.Number(subject.Type, subject.ID)
	if err != nil {
		return none, err
	}
	if subject.Relation == "" {
		return subjectNumbers{shape: t.shape, number: number, plain: true}, nil
	}
	n, err := p.lookup(field+".object.type", field+".relation", subject.Type, subject.Relation)
	if err != nil {
		return none, err
	}
	return subjectNumbers{shape: n.shape, number: number}, nil
}

// walks keeps the memory of walks between questions, so that a check in a
// steady state allocates nothing.
var walks = sync.Pool{New: func() any { return new(walk) }}

// walkCellsMax is how much a walk may keep between questions; what grew larger
// is given back.
const walkCellsMax = 1 << 14

func (w *walk) begin(q question) {
	if w.question == nil {
		w.question = new(question)
	}
	q.edges = w.edges[:0]
	*w.question = q
	w.subject, w.sets = subjectNumbers{}, nil
	w.nesting.reset()
	w.once, w.climbed.spent = false, 0
	w.climbed.reset()
	w.cells, w.stack = w.cells[:0], w.stack[:0]
	w.table.reset()
	w.low, w.solving = 0, false
}

// forgetAll drops what was evaluated. No name is open.
func (w *walk) forgetAll() {
	w.memory -= int64(len(w.cells)) * cellBytes
	clear(w.cells)
	w.cells = w.cells[:0]
	w.table.reset()
}

// release drops what the question held. A sync.Pool may then keep the walk.
func (w *walk) release() {
	w.done()
	edges := w.edges
	*w.question = question{}
	w.sets = nil
	if cap(w.cells) > walkCellsMax || cap(edges) > walkCellsMax ||
		cap(w.climbed.places) > walkCellsMax || len(w.climbed.seen.slots) > 4*walkCellsMax {
		return
	}
	clear(w.cells)
	clear(w.nesting.within)
	clear(w.climbed.places[:cap(w.climbed.places)])
	clear(edges[:cap(edges)])
	w.edges = edges[:0]
	walks.Put(w)
}
