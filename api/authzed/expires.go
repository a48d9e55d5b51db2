package authzed

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

// This file finds until when the answer to a check stands. Only names that can
// lead to tuples that expire cost more than the check.
//
// The trace of an answer shows the tuples that it follows from. Until the first of
// them expires the answer follows from the same tuples; at that moment it is asked
// again, as of then, and so on until it is another answer. So the moment is that
// at which the answer changes if nothing is written, and an answer that other
// tuples keep has none. The search is bounded: where it ends before it knows, the
// moment is the last at which the answer was seen to stand still, or none. It is
// bounded by steps and not by time, so that a busy node says the same.

// What the search may cost: how often the check is asked again, and the steps of
// each time.
const (
	expirationsMax  = 4
	expirationSteps = 2000
)

// expiringCheck asks a check and says when its answer expires: nil when it does
// not, or when that takes too much to find out.
func (a *adapter) expiringCheck(ctx context.Context, store graph.StoreInfo, snapshot *engine.Snapshot, q engine.Check) (engine.Answer, *timestamppb.Timestamp, error) {
	names, err := snapshot.Derived(expiringNames{}, func(s *schema.Schema) any { return findExpiring(s) })
	if err != nil {
		return engine.Answer{}, nil, err
	}
	if expiring, _ := names.(map[member]bool); !expiring[member{definition: q.Object.Type, name: q.Name}] {
		answer, err := snapshot.Check(ctx, q)
		return answer, nil, err
	}
	answer, err := snapshot.Check(ctx, q)
	if err != nil || answer.Steps > expirationSteps {
		return answer, nil, err
	}
	traced := q
	traced.Trace = true
	if most := traced.Budget.Steps; most == 0 || most > 2*expirationSteps {
		traced.Budget.Steps = 2 * expirationSteps
	}
	held, err := a.expiration(ctx, store, snapshot, traced, answer)
	if isOverBudget(err) {
		err = nil // Nobody asked for more than the answer.
	}
	if err != nil || held == 0 {
		return answer, nil, err
	}
	return answer, timestamppb.New(held.Time()), nil
}

func isOverBudget(err error) bool {
	var refusal *engine.Refusal
	return errors.As(err, &refusal) && refusal.Reason == engine.BudgetExceeded
}

// expiration finds out when the answer to a traced check becomes another: 0 for
// never, or not known. With an error it is the last moment at which the answer was
// seen to stand, if any.
func (a *adapter) expiration(ctx context.Context, store graph.StoreInfo, snapshot *engine.Snapshot, q engine.Check, answer engine.Answer) (held graph.Instant, err error) {
	at := snapshot
	later, err := at.Check(ctx, q)
	for range expirationsMax {
		if err != nil {
			return held, err
		}
		moment, isWhole, err := firstExpiration(ctx, at, later.Trace)
		if err != nil || !isWhole {
			return held, err
		}
		if moment == 0 {
			return 0, nil
		}
		next, err := a.host.Node().Engine().Snapshot(store.ID, snapshot.Revision(), moment, graph.Overlay{})
		if errors.Is(err, graph.ErrRevisionGone) || errors.Is(err, graph.ErrUnknownStore) {
			return held, nil // Both since the question was asked; the answer stands.
		}
		if err != nil {
			return held, err
		}
		defer next.Close()
		at, held = next, moment
		later, err = at.Check(ctx, q)
		var refusal *engine.Refusal
		if errors.As(err, &refusal) && refusal.Reason != engine.BudgetExceeded {
			return moment, nil // No answer is another one.
		}
		if err != nil {
			return held, err
		}
		if later.Decision != answer.Decision || !slices.Equal(later.Missing, answer.Missing) {
			return moment, nil
		}
	}
	return held, nil
}

// firstExpiration returns the first moment at which a tuple of a trace expires, 0
// when none does, and whether the trace shows all of them.
func firstExpiration(ctx context.Context, at *engine.Snapshot, t *engine.Trace) (first graph.Instant, isWhole bool, err error) {
	isWhole = true
	var visit func(t *engine.Trace) error
	visit = func(t *engine.Trace) error {
		isWhole = isWhole && !strings.Contains(t.Note, engine.NoteDeeper)
		if t.Tuple != nil {
			if err := ctx.Err(); err != nil {
				return err
			}
			stored, _, err := at.Graph().Get(t.Tuple.Object, t.Tuple.Relation, t.Tuple.Subject)
			if err != nil {
				return err
			}
			if until := stored.ValidUntil; until != 0 && (first == 0 || until < first) {
				first = until
			}
		}
		for _, c := range t.Children {
			if err := visit(c); err != nil {
				return err
			}
		}
		return nil
	}
	err = visit(t)
	return first, isWhole, err
}

// expiringNames is the key of what findExpiring derives from a schema.
type expiringNames struct{}

// findExpiring returns the names that can lead to tuples that expire: relations
// that store such, and what refers to them.
func findExpiring(s *schema.Schema) map[member]bool {
	users := usersOf(s)
	// The tuples that an arrow walks over may expire too.
	for _, m := range slices.Collect(maps.Keys(users)) {
		if m.target != "" {
			walked := member{definition: m.definition, name: m.name}
			users[walked] = append(users[walked], m)
		}
	}
	var start []member
	for _, d := range s.Definitions {
		for _, r := range d.Relations {
			if slices.ContainsFunc(r.Allowed, func(t schema.SubjectType) bool { return t.Expiration }) {
				start = append(start, member{definition: d.Name, name: r.Name})
			}
		}
	}
	return reach(func(m member) []member { return users[m] }, start...)
}
