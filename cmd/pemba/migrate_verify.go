package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/api/client"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

// How a migration is verified: by the number of tuples, and by questions that both
// servers are asked.

const (
	// verifyMax is how many questions may be asked.
	verifyMax = 1_000_000
	// verifyBatch is how many are asked by one call.
	verifyBatch = 100
	// differencesMax is how many differences are told one by one.
	differencesMax = 20
	// perType is how many relationships of each type are kept, that rare ones are
	// asked for too.
	perType = 8
	// verifyAttempts is how often two answers must differ where something may have
	// expired between them, verifyPause how long is waited in between.
	verifyAttempts = 4
	verifyPause    = 500 * time.Millisecond
)

// A reservoir keeps as many tuples as it has room for, each of those that were added
// with the same chance.
type reservoir struct {
	room int
	seen uint64
	kept []graph.Tuple
}

func (r *reservoir) add(rng *rand.Rand, t graph.Tuple) {
	r.seen++
	if len(r.kept) < r.room {
		r.kept = append(r.kept, t)
	} else if n := rng.Uint64N(r.seen); n < uint64(r.room) {
		r.kept[n] = t
	}
}

// A sample draws relationships while they pass by, and then questions about them.
// It is a function of its seed and of the relationships in their order.
type sample struct {
	rng    *rand.Rand
	all    reservoir
	byType map[string]*reservoir
}

// newSample makes one that draws size questions; zero is none.
func newSample(seed uint64, size int) *sample {
	return &sample{
		//nolint:gosec // Nothing has to be hard to guess, and the seed must be enough to repeat it.
		rng: rand.New(rand.NewPCG(seed, 0)), all: reservoir{room: size}, byType: make(map[string]*reservoir),
	}
}

func (s *sample) add(t graph.Tuple) {
	if s.all.room == 0 {
		return
	}
	t = graph.Tuple{Object: t.Object, Relation: t.Relation, Subject: t.Subject}
	s.all.add(s.rng, t)
	r := s.byType[t.Object.Type]
	if r == nil {
		r = &reservoir{room: perType}
		s.byType[t.Object.Type] = r
	}
	r.add(s.rng, t)
}

// A question is asked of both servers.
type question struct {
	object  graph.Object
	name    string
	subject graph.Subject
}

func (q question) String() string {
	return graph.Tuple{Object: q.object, Relation: q.name, Subject: q.subject}.String()
}

// questions draws the questions: one for each name of every type that was seen, and
// then others up to the size of the sample. Small stores have fewer.
func (s *sample) questions(compiled *schema.Schema) []question {
	subjects := newSubjects(s, compiled)
	asked := make(map[question]bool)
	var list []question
	ask := func(t graph.Tuple, name string) {
		q := question{t.Object, name, subjects.draw(s.rng, t.Subject)}
		if !asked[q] {
			asked[q] = true
			list = append(list, q)
		}
	}
	names := make(map[string][]string)
	for _, typ := range slices.Sorted(maps.Keys(s.byType)) {
		relations, permissions := namesOf(compiled.Definition(typ))
		kept := s.byType[typ].kept
		for _, name := range slices.Concat(relations, permissions) {
			ask(kept[s.rng.IntN(len(kept))], name)
		}
		// More hangs on the answer for a permission.
		names[typ] = slices.Concat(relations, permissions, permissions)
	}
	// What is drawn twice is asked once, so that it may take more attempts.
	for range 4 * s.all.room {
		if len(list) >= s.all.room || len(s.all.kept) == 0 {
			break
		}
		t := s.all.kept[s.rng.IntN(len(s.all.kept))]
		if of := names[t.Object.Type]; len(of) > 0 {
			ask(t, of[s.rng.IntN(len(of))])
		}
	}
	return list
}

// namesOf returns what may be asked of a type. A type that a schema does not have
// has no names.
func namesOf(d *schema.Definition) (relations, permissions []string) {
	if d == nil {
		return nil, nil
	}
	for _, r := range d.Relations {
		relations = append(relations, r.Name)
	}
	for _, p := range d.Permissions {
		permissions = append(permissions, p.Name)
	}
	return relations, permissions
}

// subjects are those of a sample that may be asked for: by type, and those of types
// that have no relations themselves, as users, or all where there are none of them.
type subjects struct {
	byType map[string][]graph.Subject
	users  []graph.Subject
}

func newSubjects(s *sample, compiled *schema.Schema) *subjects {
	list := &subjects{byType: make(map[string][]graph.Subject)}
	var all []graph.Subject
	add := func(kept []graph.Tuple) {
		for _, t := range kept {
			if t.Subject.ID == graph.Wildcard {
				continue // Nobody can ask for it.
			}
			all = append(all, t.Subject)
			list.byType[t.Subject.Type] = append(list.byType[t.Subject.Type], t.Subject)
			if relations, permissions := namesOf(compiled.Definition(t.Subject.Type)); len(relations)+len(permissions) == 0 {
				list.users = append(list.users, t.Subject)
			}
		}
	}
	add(s.all.kept)
	for _, typ := range slices.Sorted(maps.Keys(s.byType)) {
		add(s.byType[typ].kept)
	}
	if len(list.users) == 0 {
		list.users = all
	}
	return list
}

// stranger is the id of a subject that no relationship names. For a wildcard it
// stands for everybody.
const stranger = "nobody-of-this-name"

// draw returns the subject to ask for about a relationship with subject own: that
// one, another of its type, or a user, as whom an object may reach through others.
func (s *subjects) draw(rng *rand.Rand, own graph.Subject) graph.Subject {
	list := s.users
	switch rng.IntN(4) {
	case 0:
		list = nil
	case 1:
		list = s.byType[own.Type]
	}
	switch {
	case len(list) > 0:
		return list[rng.IntN(len(list))]
	case own.ID == graph.Wildcard:
		own.ID = stranger
	}
	return own
}

// expirations knows how many tuples expire when, to the minute, for as long as
// a migration may take. What expires later is not counted.
type expirations struct {
	end     time.Time
	minutes map[int64]uint64
	count   uint64
}

// expirationsHorizon is longer than a migration takes; it bounds the memory.
const expirationsHorizon = 30 * 24 * time.Hour

func newExpirations(began time.Time) expirations {
	return expirations{end: began.Add(expirationsHorizon), minutes: make(map[int64]uint64)}
}

func (e *expirations) add(t time.Time) {
	e.count++
	if t.Before(e.end) {
		e.minutes[t.Unix()/60]++
	}
}

// clocksApart is how far the clocks of two machines may be apart.
const clocksApart = time.Minute

// between returns how many have expired at a moment between two, at least and at
// most.
func (e *expirations) between(from, to time.Time) (least, most uint64) {
	from, to = from.Add(-clocksApart), to.Add(clocksApart)
	for minute, n := range e.minutes {
		if minute < from.Unix()/60 {
			least += n
		}
		if minute <= to.Unix()/60 {
			most += n
		}
	}
	return least, most
}

// compare counts the tuples of the store, and asks both servers what the sample
// says.
func (m *migration) compare(ctx ctx, zookie *pembav1.Zookie, r *migrationJSON) error {
	var consistency *pembav1.Consistency
	if zookie != nil {
		consistency = client.ExactlyAt(zookie)
	}
	before := time.Now()
	counted, err := m.target.CountTuples(ctx, &pembav1.CountTuplesRequest{Consistency: consistency})
	if err != nil {
		return err
	}
	least, most := m.expiry.between(before, time.Now())
	r.Counted = counted.GetCount()
	r.countWrong = r.Counted+most < m.added || r.Counted+least > m.added
	if r.schemaDiffers, err = m.schemaDiffers(ctx, zookie); err != nil {
		return err
	}
	if m.verify == 0 {
		return nil
	}
	// That of the store is the schema of the revision that was copied, also when the
	// source has another one by now.
	compiled, err := m.compiledAt(ctx, consistency)
	if err != nil {
		return err
	}
	asked := m.sample.questions(compiled)
	for attempt := range verifyAttempts {
		var differing []difference
		for batch := range slices.Chunk(asked, verifyBatch) {
			found, refused, err := m.compareAnswers(ctx, consistency, batch)
			if err != nil {
				return err
			}
			differing = append(differing, found...)
			if attempt == 0 {
				r.Checks += len(batch) - len(refused)
				if r.RefusedAtSource += len(refused); r.FirstRefusal == "" && len(refused) > 0 {
					r.FirstRefusal = refused[0]
				}
			}
		}
		if r.differ(differing); len(differing) == 0 || m.expiry.count == 0 || attempt == verifyAttempts-1 {
			break
		}
		// Something may have expired between two answers.
		asked = asked[:0]
		for _, d := range differing {
			asked = append(asked, d.question)
		}
		select {
		case <-time.After(verifyPause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// compiledAt returns the schema that the store has, compiled.
func (m *migration) compiledAt(ctx ctx, consistency *pembav1.Consistency) (*schema.Schema, error) {
	written, err := m.target.Schemas.ReadSchema(ctx, &pembav1.ReadSchemaRequest{Consistency: consistency, Store: m.store})
	if err != nil {
		return nil, err
	}
	return engine.CompileStored(written.GetSchema())
}

// A difference is a question with two answers.
type difference struct {
	question       question
	source, target string
}

// differ replaces the differences that were found.
func (r *migrationJSON) differ(list []difference) {
	r.Differing, r.Differences = len(list), nil
	for _, d := range list[:min(len(list), differencesMax)] {
		r.Differences = append(r.Differences, differenceJSON{d.question.String(), d.source, d.target})
	}
}

// compareAnswers asks both servers some questions. It returns those with different
// answers, and those that the source refused with what it said.
func (m *migration) compareAnswers(ctx ctx, consistency *pembav1.Consistency, asked []question) (differing []difference, refused []string, err error) {
	theirs, err := m.source.answers(ctx, m.revision, asked)
	if err != nil {
		return nil, nil, err
	}
	ours, err := m.answers(ctx, consistency, asked)
	if err != nil {
		return nil, nil, err
	}
	for i, q := range asked {
		switch {
		case theirs[i].refused:
			refused = append(refused, q.String()+": "+theirs[i].text)
		case theirs[i].text != ours[i]:
			// They are kept, and may be megabytes each.
			differing = append(differing, difference{q, brief(theirs[i].text, sourceTextMax), brief(ours[i], sourceTextMax)})
		}
	}
	return differing, refused, nil
}

// A sourceAnswer is what the source says to a question: an answer in words, or
// why it refuses it.
type sourceAnswer struct {
	text    string
	refused bool
}

// An answer in words, which are the same for the same answer. The last is one that no
// store gives to a question that was drawn from its schema.
const (
	allowedAnswer = "allowed"
	deniedAnswer  = "denied"
	unknownAnswer = "no such type or name"
)

// conditionalAnswer names what is missing as a set.
func conditionalAnswer(missing []string) string {
	return "conditional on " + strings.Join(slices.Compact(slices.Sorted(slices.Values(missing))), ", ")
}

// answers asks the store that was written to. What it refuses is an answer that no
// source gives.
func (m *migration) answers(ctx ctx, consistency *pembav1.Consistency, asked []question) ([]string, error) {
	r := &pembav1.CheckBulkRequest{Store: m.store, Consistency: consistency, Items: make([]*pembav1.CheckBulkItem, len(asked))}
	for i, q := range asked {
		r.Items[i] = &pembav1.CheckBulkItem{Object: api.ObjectMessage(q.object), Permission: q.name, Subject: api.SubjectMessage(q.subject)}
	}
	answer, err := m.target.Permissions.CheckBulk(ctx, r)
	if err != nil {
		return nil, err
	}
	if len(answer.GetResults()) != len(asked) {
		return nil, fmt.Errorf("of %d questions %s answered %d", len(asked), m.where(), len(answer.GetResults()))
	}
	list := make([]string, len(asked))
	for i, result := range answer.GetResults() {
		switch failed := result.GetError(); {
		case failed != nil:
			list[i] = "refused, " + failed.GetMessage() + ","
		case result.GetDecision() == pembav1.Decision_DECISION_ALLOWED:
			list[i] = allowedAnswer
		case result.GetDecision() == pembav1.Decision_DECISION_CONDITIONAL:
			list[i] = conditionalAnswer(result.GetMissing())
		default:
			list[i] = deniedAnswer
		}
	}
	return list, nil
}

// refusals are the codes by which a source may refuse a question, so that it can be
// asked the next one.
var refusals = []codes.Code{codes.FailedPrecondition, codes.InvalidArgument}

// unknownNames are the reasons of a source that does not have what is asked for: then
// its schema is not that of the store.
var unknownNames = []string{
	v1.ErrorReason_ERROR_REASON_UNKNOWN_DEFINITION.String(),
	v1.ErrorReason_ERROR_REASON_UNKNOWN_RELATION_OR_PERMISSION.String(),
}

// refusal returns what a refusal of one question says. It is not ok where the error
// is not about the question, and may pass.
func refusal(e *sourceError) (_ sourceAnswer, ok bool) {
	switch {
	case slices.Contains(unknownNames, e.reason):
		return sourceAnswer{text: unknownAnswer}, true
	case slices.Contains(refusals, e.code), e.reason == engine.BudgetExceeded.String():
		return sourceAnswer{text: e.text, refused: true}, true
	}
	return sourceAnswer{}, false
}

// answers asks the source. Some servers refuse all questions of a call for one of
// them: then they are asked one by one. What is not about a question is tried again,
// also where it came as the answer to one.
func (s *source) answers(ctx ctx, revision string, asked []question) ([]sourceAnswer, error) {
	r := &v1.CheckBulkPermissionsRequest{Consistency: at(revision), Items: make([]*v1.CheckBulkPermissionsRequestItem, len(asked))}
	for i, q := range asked {
		r.Items[i] = &v1.CheckBulkPermissionsRequestItem{
			Resource:   &v1.ObjectReference{ObjectType: q.object.Type, ObjectId: q.object.ID},
			Permission: q.name,
			Subject: &v1.SubjectReference{
				Object:           &v1.ObjectReference{ObjectType: q.subject.Type, ObjectId: q.subject.ID},
				OptionalRelation: q.subject.Relation,
			},
		}
	}
	var list []sourceAnswer
	err := s.persist(ctx, func(ctx context.Context) error {
		answer, err := s.permissions.CheckBulkPermissions(ctx, r)
		if err != nil {
			return err
		}
		list, err = s.readAnswers(asked, answer)
		return err
	})
	if err == nil {
		return list, nil
	}
	var refused *sourceError
	if !errors.As(err, &refused) {
		return nil, err
	}
	one, ok := refusal(refused)
	switch {
	case !ok:
		return nil, err
	case len(asked) == 1:
		return []sourceAnswer{one}, nil
	}
	list = nil
	for _, q := range asked {
		one, err := s.answers(ctx, revision, []question{q})
		if err != nil {
			return nil, err
		}
		list = append(list, one...)
	}
	return list, nil
}

// readAnswers puts what the source answered into words. The errors are gRPC statuses:
// that of the first question that failed by what is not about it, or of an answer that
// is none.
func (s *source) readAnswers(asked []question, answer *v1.CheckBulkPermissionsResponse) ([]sourceAnswer, error) {
	if len(answer.GetPairs()) != len(asked) {
		return nil, status.Errorf(codes.DataLoss, "of %d questions it answered %d", len(asked), len(answer.GetPairs()))
	}
	list := make([]sourceAnswer, len(asked))
	for i, pair := range answer.GetPairs() {
		item := pair.GetItem()
		switch {
		case pair.GetError() != nil:
			failed := status.FromProto(pair.GetError())
			one, ok := refusal(newSourceError(failed))
			if !ok {
				return nil, status.Errorf(notOK(failed.Code()), "%s: %s", brief(asked[i].String(), sourceTextMax/3), brief(failed.Message(), sourceTextMax/2))
			}
			list[i] = one
		case item.GetPermissionship() == v1.CheckPermissionResponse_PERMISSIONSHIP_HAS_PERMISSION:
			list[i].text = allowedAnswer
		case item.GetPermissionship() == v1.CheckPermissionResponse_PERMISSIONSHIP_CONDITIONAL_PERMISSION:
			list[i].text = conditionalAnswer(item.GetPartialCaveatInfo().GetMissingRequiredContext())
		case item.GetPermissionship() == v1.CheckPermissionResponse_PERMISSIONSHIP_NO_PERMISSION:
			list[i].text = deniedAnswer
		default:
			return nil, status.Errorf(codes.DataLoss, "it answers %s with %s, which is no answer", brief(asked[i].String(), sourceTextMax/2), item.GetPermissionship())
		}
	}
	return list, nil
}

// notOK is the code of an error, also of one that claims to be none.
func notOK(code codes.Code) codes.Code {
	if code == codes.OK {
		return codes.Unknown
	}
	return code
}
