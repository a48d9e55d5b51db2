package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

// A slice is a stretch of one workload on one server, as short as a round allows.
type slice struct {
	// latency counts every call, from when it was begun, or in an open loop from
	// when it should have been; first counts what lookups took to their first
	// result.
	latency, first histogram
	// items is how many checks, results or tuples the calls had.
	items uint64
	// unsent is how many calls of an open loop could not be begun in time at
	// all; latency counts the time that they had waited so far.
	unsent    uint64
	elapsed   time.Duration
	processor time.Duration // of the server process
	// beside is how many writes were made beside.
	beside uint64
	// pruned is of how many tuples the past was removed beside.
	pruned uint64
	// behind is how many answers of another node did not hold what was just written.
	behind uint64
	// syncs and entries are how often the leader's log was synced, and of how many
	// entries; confirms and readers how often others confirmed that it leads, and for how
	// many reads; carried is how many bytes the nodes sent each other.
	syncs, entries, confirms, readers, carried uint64
}

// A caller makes one call after the other.
type caller struct {
	slice
	// written is the last tuple that the caller wrote; nil before.
	written *writtenTuple
}

type writtenTuple struct {
	tuple *pembav1.Tuple
	at    *pembav1.Zookie
}

// A callFunc makes the call with the number i, which begins with 0 in every
// slice, and adds to the caller's items.
type callFunc func(ctx context.Context, c *caller, i uint64) error

// errExhausted ends a slice early: every question was asked.
var errExhausted = errors.New("every question was asked")

// runSlice makes calls to s for so long, and returns what they took together and
// the callers.
func runSlice(ctx context.Context, s *server, callers int, rate float64, length time.Duration, call callFunc) (*slice, []*caller, error) {
	return runSliceOn(ctx, []*server{s}, callers, rate, length, call)
}

// processorOfAll returns the time on processors that some processes have taken so far.
func processorOfAll(servers []*server) (sum time.Duration, err error) {
	for _, s := range servers {
		r, err := s.tell(order{Do: takeUsage})
		if err != nil {
			return 0, err
		}
		sum += r.Processor
	}
	return sum, nil
}

// runSliceOn is runSlice where several processes work for the calls.
func runSliceOn(ctx context.Context, servers []*server, callers int, rate float64, length time.Duration, call callFunc) (*slice, []*caller, error) {
	before, err := processorOfAll(servers)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wait sync.WaitGroup
	all := make([]*caller, callers)
	begin := time.Now()
	end := begin.Add(length)
	loop := closedLoop(end, call)
	if rate > 0 {
		var pace func()
		loop, pace = openLoop(ctx, begin, end, rate, callers, call)
		wait.Go(pace)
	}
	for n := range all {
		c := &caller{}
		all[n] = c
		wait.Go(func() {
			if err := loop(ctx, c); err != nil && !errors.Is(err, errExhausted) {
				cancel(err)
			}
		})
	}
	wait.Wait()
	sum := &slice{elapsed: time.Since(begin)}
	if err := context.Cause(ctx); err != nil {
		return nil, nil, err
	}
	after, err := processorOfAll(servers)
	if err != nil {
		return nil, nil, err
	}
	sum.processor = after - before
	for _, c := range all {
		sum.latency.add(&c.latency)
		sum.first.add(&c.first)
		sum.items += c.items
		sum.unsent += c.unsent
		sum.behind += c.behind
	}
	if sum.latency.count == 0 {
		return nil, nil, errors.New("not one call was made; give the rounds more seconds")
	}
	return sum, all, nil
}

// A loop makes the calls of one caller.
type loop func(ctx context.Context, c *caller) error

// closedLoop begins a call when the caller's one before is answered, until end.
func closedLoop(end time.Time, call callFunc) loop {
	var next atomic.Uint64
	return func(ctx context.Context, c *caller) error {
		for begin := time.Now(); begin.Before(end); {
			if err := call(ctx, c, next.Add(1)-1); err != nil {
				return err
			}
			now := time.Now()
			c.latency.record(now.Sub(begin))
			begin = now
		}
		return nil
	}
}

// openLoop begins call i at begin + i/rate, or as soon after that as a caller is
// free, and counts its time from when it should have begun: a server that stands
// still for a moment is charged with every call that waited meanwhile. Those that
// wait when the time of the slice has passed once more are not sent, and counted
// with what they have waited.
//
// pace says when: it is for a goroutine of its own, and returns when all calls
// are due or ctx ends.
func openLoop(ctx context.Context, begin, end time.Time, rate float64, callers int, call callFunc) (l loop, pace func()) {
	type due struct {
		i  uint64
		at time.Time
	}
	queue := make(chan due, callers)
	pace = func() {
		defer close(queue)
		for i := uint64(0); ; i++ {
			d := due{i, begin.Add(time.Duration(float64(i) / rate * float64(time.Second)))}
			if !d.at.Before(end) {
				return
			}
			sleep(time.Until(d.at))
			select {
			case queue <- d:
			case <-ctx.Done():
				return
			}
		}
	}
	giveUp := end.Add(end.Sub(begin))
	return func(ctx context.Context, c *caller) error {
		for d := range queue {
			if waited := time.Since(d.at); time.Now().After(giveUp) {
				c.latency.record(waited)
				c.unsent++
				continue
			}
			err := call(ctx, c, d.i)
			if err != nil {
				// Without takers pace would wait for ever.
				for errors.Is(err, errExhausted) {
					if _, more := <-queue; !more {
						break
					}
				}
				return err
			}
			c.latency.record(time.Since(d.at))
		}
		return nil
	}, pace
}

// A driver runs workloads.
type driver struct {
	config *config
	report *report
	echo   *server
}

// run runs everything that the configuration selects.
func run(ctx context.Context, c *config) (err error) {
	begin := time.Now()
	groups := plan(c)
	if len(groups) == 0 {
		return fmt.Errorf("--run %s selects no workload; --list shows their names", c.run)
	}
	d := &driver{config: c}
	if d.report, err = newReport(c); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.report.close()) }()
	if d.echo, err = launch(serveSpec{}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.echo.stop()) }()
	for _, group := range groups {
		if err := d.runGroup(ctx, group); err != nil {
			return fmt.Errorf("%s: %w", group[0].source, err)
		}
	}
	return d.report.ended(time.Since(begin))
}

// A target is the measured server with its data and what was asked already.
type target struct {
	*server
	data *dataset
	// pools have, by the name of their checks, questions of which each is asked
	// once.
	pools map[string]*pool
	// count is how many tuples were loaded, and empty the resident memory of the
	// server before that.
	count int
	empty int64
	// fresh counts the tuples that were written beyond the data.
	fresh atomic.Uint64
	// pasts are what rounds of pruning have yet to remove, the oldest first.
	pasts []past
}

// runGroup loads the data of some workloads, and runs these.
func (d *driver) runGroup(ctx context.Context, group []workload) (err error) {
	from := group[0].source
	m := models[from.model]
	t := &target{data: m.generate(from.size, d.config.seed), pools: map[string]*pool{}}
	dir, err := os.MkdirTemp(d.config.dir, "pemba-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := d.load(ctx, t, from, m.schema, dir); err != nil {
		return errors.Join(err, t.end())
	}
	defer func() { err = errors.Join(err, t.end()) }()
	asked := false
	for i := range group {
		if asked && group[i].changes() {
			if err := d.remember(t, from); err != nil {
				return err
			}
			asked = false
		}
		if err := d.measure(ctx, t, &group[i]); err != nil {
			return fmt.Errorf("%s: %w", group[i].name(), err)
		}
		asked = asked || !group[i].changes()
	}
	if asked {
		return d.remember(t, from)
	}
	return nil
}

// remember reports what the server holds in memory once it was asked all
// questions, before it is written to.
func (d *driver) remember(t *target, from source) error {
	now, err := t.tell(order{Do: takeMemory})
	if err != nil {
		return err
	}
	return d.report.asked(from, t.count, now.Resident-t.empty)
}

// end stops the process, if there is one.
func (t *target) end() error {
	if t.server == nil {
		return nil
	}
	s := t.server
	t.server = nil
	return s.stop()
}

// load starts a server on an empty directory, writes the data, measures what
// they take, and starts it again.
func (d *driver) load(ctx context.Context, t *target, from source, schema, dir string) (err error) {
	data := filepath.Join(dir, "data")
	if t.server, err = launch(serveSpec{Dir: data}); err != nil {
		return err
	}
	if _, err := t.schemas.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Schema: schema}); err != nil {
		return err
	}
	empty, err := t.tell(order{Do: takeMemory})
	if err != nil {
		return err
	}
	begin := time.Now()
	fill := t.importAll
	if from.byWrites {
		fill = t.writeAll
	}
	tuples, err := fill(ctx)
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	took := time.Since(begin)
	full, err := t.tell(order{Do: takeMemory})
	if err != nil {
		return err
	}
	// The end flushes what Pebble has in memory, so that the disk has it all.
	if err := t.end(); err != nil {
		return err
	}
	state, err := diskBytes(filepath.Join(data, "state"))
	if err != nil {
		return err
	}
	log, err := diskBytes(filepath.Join(data, "log"))
	if err != nil {
		return err
	}
	begin = time.Now()
	if t.server, err = launch(serveSpec{Dir: data}); err != nil {
		return err
	}
	if _, err := t.schemas.ReadSchema(ctx, &pembav1.ReadSchemaRequest{Consistency: linearizable()}); err != nil {
		return err
	}
	restart := time.Since(begin)
	again, err := t.tell(order{Do: takeMemory})
	if err != nil {
		return err
	}
	t.count, t.empty = tuples, empty.Resident
	return d.report.loaded(from, loaded{
		tuples: tuples, took: took, restart: restart, state: state, log: log,
		resident: full.Resident - empty.Resident, quiet: again.Resident - empty.Resident,
		processor: full.Processor - empty.Processor, byWrites: from.byWrites,
	})
}

func linearizable() *pembav1.Consistency {
	return &pembav1.Consistency{Requirement: &pembav1.Consistency_Linearizable{Linearizable: true}}
}

// importBatch is how many tuples a message of an import, or a write, has.
const importBatch = 1000

// writers is how many callers write data at once, where it is not measured.
const writers = 4

// importAll writes the tuples of the data, all at one revision, and returns how
// many there are.
func (t *target) importAll(ctx context.Context) (tuples int, err error) {
	stream, err := t.tuples.ImportTuples(ctx)
	if err != nil {
		return 0, err
	}
	message := &pembav1.ImportTuplesRequest{Header: &pembav1.ImportHeader{}}
	// An error of Send is io.EOF; the reason comes with the answer.
	send := func() error {
		tuples += len(message.Tuples)
		err := stream.Send(message)
		message = &pembav1.ImportTuplesRequest{Chunk: message.Chunk + 1}
		return err
	}
	for tuple := range t.data.tuples {
		if message.Tuples = append(message.Tuples, tuple); len(message.Tuples) == importBatch {
			if err = send(); err != nil {
				break
			}
		}
	}
	if err == nil && len(message.Tuples) > 0 {
		err = send()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	answer, err := stream.CloseAndRecv()
	if err != nil {
		return 0, err
	}
	if answer.GetChanged() != uint64(tuples) {
		return 0, fmt.Errorf("%d of %d imported tuples changed something; all should", answer.GetChanged(), tuples)
	}
	return tuples, nil
}

// writeAll writes the tuples of the data, each batch at a revision of its own
// and by a few callers at once, and returns how many there are.
func (t *target) writeAll(ctx context.Context) (tuples int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	requests := make(chan *pembav1.WriteTuplesRequest)
	var wait sync.WaitGroup
	for range writers {
		wait.Go(func() {
			for request := range requests {
				answer, err := t.tuples.WriteTuples(ctx, request)
				if err == nil && int(answer.GetChanged()) != len(request.GetUpdates()) {
					err = fmt.Errorf("%d of %d written tuples changed something; all should", answer.GetChanged(), len(request.GetUpdates()))
				}
				if err != nil {
					cancel(err)
				}
			}
		})
	}
	request := &pembav1.WriteTuplesRequest{}
	send := func() {
		tuples += len(request.Updates)
		requests <- request
		request = &pembav1.WriteTuplesRequest{}
	}
	for tuple := range t.data.tuples {
		if ctx.Err() != nil {
			break
		}
		request.Updates = append(request.Updates, &pembav1.TupleUpdate{Operation: pembav1.TupleUpdate_OPERATION_TOUCH, Tuple: tuple})
		if len(request.Updates) == importBatch {
			send()
		}
	}
	if len(request.Updates) > 0 {
		send()
	}
	close(requests)
	wait.Wait()
	return tuples, context.Cause(ctx)
}

// measure runs the rounds of one workload, the echo before Pemba in each, and
// reports them. Where there is pruning, Pemba is asked twice, without and with it.
func (d *driver) measure(ctx context.Context, t *target, w *workload) error {
	length := d.config.length()
	profiled := d.config.profile != "" && w.kind == check
	if profiled {
		file := filepath.Join(d.config.profile, fileName(w.name())+".pprof")
		if _, err := t.tell(order{Do: startProfile, File: file}); err != nil {
			return err
		}
	}
	calls, err := d.prepare(ctx, t, w)
	if err != nil {
		return err
	}
	if _, _, err := runSlice(ctx, d.echo, w.callers, w.rate, length/4, calls.echo); err != nil {
		return fmt.Errorf("echo: %w", err)
	}
	if w.pruning && t.data.fresh == nil {
		return errors.New("the model is not written to, so it has no past to prune")
	}
	if w.questions > 0 || w.kind == resources || w.kind == subjects {
		for _, call := range []callFunc{calls.native, calls.pemba} {
			if call == nil {
				continue
			}
			if _, _, err := runSlice(ctx, t.server, w.callers, w.rate, length/4, call); err != nil {
				return err
			}
		}
	}
	var rounds []round
	pastTuples := max(int(d.config.seconds*pastPerSecond), pastMin)
	for len(rounds) < d.config.rounds {
		if err := calls.refill(); err != nil {
			return err
		}
		var p past
		if w.pruning {
			if p, err = d.nextPast(ctx, t, pastTuples); err != nil {
				return fmt.Errorf("make a past: %w", err)
			}
		}
		baseline, _, err := runSlice(ctx, d.echo, w.callers, w.rate, length, calls.echo)
		if err != nil {
			return fmt.Errorf("echo: %w", err)
		}
		r := round{echo: baseline}
		if w.authzed {
			// Each is the first in every other round.
			r.native, r.pemba, err = d.bothWays(ctx, t, w, calls, len(rounds)%2 == 0)
		} else if w.pruning {
			r.without, r.pemba, err = d.whilePruning(ctx, t, w, calls, p)
			if errors.Is(err, errPrunedEarly) && pastTuples < pastMax {
				pastTuples = min(2*pastTuples, pastMax)
				continue
			}
			if errors.Is(err, errPrunedEarly) {
				err = fmt.Errorf("%w, of %d tuples; use fewer seconds than %g", err, p.tuples, d.config.seconds)
			}
		} else {
			r.pemba, err = d.beside(ctx, t, w, calls)
		}
		if err != nil {
			return err
		}
		rounds = append(rounds, r)
	}
	if profiled {
		if _, err := t.tell(order{Do: stopProfile}); err != nil {
			return err
		}
	}
	return d.report.measured(w, rounds)
}

// beside makes calls with the writes of the workload beside.
func (d *driver) beside(ctx context.Context, t *target, w *workload, made calls) (*slice, error) {
	stop := t.writeBeside(ctx, w.beside)
	measured, callers, err := runSlice(ctx, t.server, w.callers, w.rate, d.config.length(), made.pemba)
	written, besideErr := stop()
	if err := errors.Join(err, besideErr); err != nil {
		return nil, err
	}
	measured.beside = written
	return measured, t.verifyWrites(ctx, callers)
}

// bothWays makes the calls through pemba.v1 and through authzed.api.v1, one after
// the other. Questions that are asked once are others for each.
func (d *driver) bothWays(ctx context.Context, t *target, w *workload, made calls, nativeFirst bool) (native, authzed *slice, err error) {
	turns := []struct {
		call     callFunc
		measured **slice
	}{{made.native, &native}, {made.pemba, &authzed}}
	if !nativeFirst {
		slices.Reverse(turns)
	}
	for i, turn := range turns {
		if i > 0 {
			if err := made.refill(); err != nil {
				return nil, nil, err
			}
		}
		if *turn.measured, _, err = runSlice(ctx, t.server, w.callers, w.rate, d.config.length(), turn.call); err != nil {
			return nil, nil, err
		}
	}
	return native, authzed, nil
}

// fileName makes a name one of a file.
func fileName(name string) string {
	text := []byte(name)
	for i, c := range text {
		if c == '/' || c == '=' {
			text[i] = '-'
		}
	}
	return string(text)
}

// calls are what the callers of a workload do.
type calls struct {
	pemba, echo callFunc
	// native asks through pemba.v1 what pemba asks through another API; nil where
	// that is pemba.v1 itself.
	native callFunc
	// refill makes new questions where each is asked once.
	refill func() error
}

// prepare makes the questions of a workload.
func (d *driver) prepare(ctx context.Context, t *target, w *workload) (calls, error) {
	made := calls{refill: func() error { return nil }}
	made.echo = func(ctx context.Context, _ *caller, i uint64) error {
		_, err := d.echo.permissions.Check(ctx, &pembav1.CheckRequest{
			Object: objectOf("document", id("d", int(i))), Permission: "view",
			Subject: &pembav1.Subject{Object: objectOf("person", id("p", int(i)))},
		})
		return err
	}
	switch w.kind {
	case check, bulk:
		ask := t.data.checks[w.ask]
		if ask == nil {
			return made, fmt.Errorf("the data have no questions %q", w.ask)
		}
		source := ask.repeated(w.questions, d.config.seed)
		if w.questions == 0 {
			p := t.pools[w.ask]
			if p == nil {
				p = newPool(ask, d.config.seed)
				t.pools[w.ask] = p
			}
			made.refill = func() error { return p.refill(int(d.config.seconds * coldRate)) }
			source = p.next
		}
		if w.kind == check {
			made.pemba = t.check(ask, source)
			if w.authzed {
				made.native, made.pemba = made.pemba, t.checkAuthzed(ask, source)
			}
		} else {
			made.pemba = t.bulk(ask, w.batch, source)
		}
	case resources, subjects:
		lookups := t.data.subjects[w.ask]
		call := t.lookupSubjects
		if w.kind == resources {
			lookups, call = t.data.resources[w.ask], t.lookupResources
		}
		if len(lookups) == 0 {
			return made, fmt.Errorf("the data have no lookups %q", w.ask)
		}
		for i := range lookups {
			if err := verifyLookup(ctx, call, &lookups[i]); err != nil {
				return made, err
			}
		}
		made.pemba = func(ctx context.Context, c *caller, i uint64) error {
			l := &lookups[i%uint64(len(lookups))]
			results := 0
			begin := time.Now()
			err := call(ctx, l, func(string) error {
				if results == 0 {
					c.first.record(time.Since(begin))
				}
				results++
				return nil
			})
			c.items += uint64(results)
			if err == nil && results != len(l.found) {
				return fmt.Errorf("wrong answer: the lookup of %s has %d results; %d are right", l.of, results, len(l.found))
			}
			return err
		}
	case write:
		if t.data.fresh == nil {
			return made, errors.New("the model is not written to")
		}
		made.pemba = t.write(max(w.batch, 1))
	default:
		return made, fmt.Errorf("the kind of workload %q is unknown", w.kind)
	}
	return made, nil
}

// questions returns the question with the number i of a slice.
type questions func(i uint64) (question, error)

// repeated draws n questions, of which every other is denied, and repeats them.
func (c *checks) repeated(n int, seed uint64) questions {
	r := rand.New(rand.NewPCG(seed, 4))
	list := make([]question, n)
	for i := range list {
		list[i] = c.next(r, i%2 == 0)
	}
	return func(i uint64) (question, error) { return list[i%uint64(n)], nil }
}

// coldRate is how many questions that are asked once are made for a second.
const coldRate = 50_000

// A pool has questions of which each is asked once. Only next may be called by
// many goroutines at once, and not beside refill.
type pool struct {
	checks *checks
	random *rand.Rand
	asked  map[question]bool
	list   []question
	taken  atomic.Uint64
}

func newPool(c *checks, seed uint64) *pool {
	return &pool{checks: c, random: rand.New(rand.NewPCG(seed, 5)), asked: map[question]bool{}}
}

// refill replaces the questions by n new ones, of which every other is denied,
// or by fewer when it finds no more.
func (p *pool) refill(n int) error {
	p.list = p.list[:0]
	p.taken.Store(0)
	for tries := 0; len(p.list) < n && tries < 8*n; tries++ {
		q := p.checks.next(p.random, len(p.list)%2 == 0)
		if !p.asked[q] {
			p.asked[q] = true
			p.list = append(p.list, q)
		}
	}
	if len(p.list) == 0 {
		return errors.New("the data have no more questions that were not asked; use fewer seconds or rounds")
	}
	return nil
}

// next takes a question, whatever the number of the call.
func (p *pool) next(uint64) (question, error) {
	i := p.taken.Add(1) - 1
	if i >= uint64(len(p.list)) {
		return question{}, errExhausted
	}
	return p.list[i], nil
}

// decision is the right answer to a question.
func (q question) decision() pembav1.Decision {
	if q.allowed {
		return pembav1.Decision_DECISION_ALLOWED
	}
	return pembav1.Decision_DECISION_DENIED
}

// verify compares an answer with the right one.
func (c *checks) verify(q question, got pembav1.Decision) error {
	if want := q.decision(); got != want {
		return fmt.Errorf("wrong answer: %s:%s#%s@%s:%s is %s; right is %s", c.objectType, q.object, c.permission, c.subjectType, q.subject, got, want)
	}
	return nil
}

// check makes calls that ask one question each.
func (t *target) check(ask *checks, next questions) callFunc {
	return func(ctx context.Context, c *caller, i uint64) error {
		q, err := next(i)
		if err != nil {
			return err
		}
		answer, err := t.permissions.Check(ctx, ask.request(q))
		if err != nil {
			return err
		}
		c.items++
		return ask.verify(q, answer.GetDecision())
	}
}

// checkAuthzed makes the calls of check through authzed.api.v1.
func (t *target) checkAuthzed(ask *checks, next questions) callFunc {
	return func(ctx context.Context, c *caller, i uint64) error {
		q, err := next(i)
		if err != nil {
			return err
		}
		answer, err := t.authzed.CheckPermission(ctx, &v1.CheckPermissionRequest{
			Resource:   &v1.ObjectReference{ObjectType: ask.objectType, ObjectId: q.object},
			Permission: ask.permission,
			Subject:    &v1.SubjectReference{Object: &v1.ObjectReference{ObjectType: ask.subjectType, ObjectId: q.subject}},
		})
		if err != nil {
			return err
		}
		c.items++
		decision := pembav1.Decision_DECISION_UNSPECIFIED
		switch answer.GetPermissionship() {
		case v1.CheckPermissionResponse_PERMISSIONSHIP_HAS_PERMISSION:
			decision = pembav1.Decision_DECISION_ALLOWED
		case v1.CheckPermissionResponse_PERMISSIONSHIP_NO_PERMISSION:
			decision = pembav1.Decision_DECISION_DENIED
		default: // No question of the models is conditional.
		}
		return ask.verify(q, decision)
	}
}

// bulk makes calls that ask batch questions each.
func (t *target) bulk(ask *checks, batch int, next questions) callFunc {
	return func(ctx context.Context, c *caller, i uint64) error {
		asked := make([]question, batch)
		request := &pembav1.CheckBulkRequest{Items: make([]*pembav1.CheckBulkItem, batch)}
		for n := range asked {
			var err error
			if asked[n], err = next(i*uint64(batch) + uint64(n)); err != nil {
				return err
			}
			single := ask.request(asked[n])
			request.Items[n] = &pembav1.CheckBulkItem{Object: single.Object, Permission: single.Permission, Subject: single.Subject}
		}
		answer, err := t.permissions.CheckBulk(ctx, request)
		if err != nil {
			return err
		}
		if len(answer.GetResults()) != batch {
			return fmt.Errorf("wrong answer: a bulk check of %d has %d results", batch, len(answer.GetResults()))
		}
		for n, result := range answer.GetResults() {
			if err := result.GetError(); err != nil {
				return fmt.Errorf("item %d of a bulk check: %s", n, err.GetMessage())
			}
			if err := ask.verify(asked[n], result.GetDecision()); err != nil {
				return err
			}
		}
		c.items += uint64(batch)
		return nil
	}
}

// each calls found with each message of a stream, until that fails.
func each[Message any](stream grpc.ServerStreamingClient[Message], found func(*Message) error) error {
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := found(message); err != nil {
			return err
		}
	}
}

// lookupResources calls found with each result, until that fails.
func (t *target) lookupResources(ctx context.Context, l *lookup, found func(id string) error) error {
	stream, err := t.permissions.LookupResources(ctx, &pembav1.LookupResourcesRequest{
		Type: l.typed, Permission: l.permission, Subject: &pembav1.Subject{Object: l.of},
	})
	if err != nil {
		return err
	}
	return each(stream, func(result *pembav1.LookupResourcesResponse) error { return found(result.GetObject().GetId()) })
}

// lookupSubjects calls found with each result, until that fails.
func (t *target) lookupSubjects(ctx context.Context, l *lookup, found func(id string) error) error {
	stream, err := t.permissions.LookupSubjects(ctx, &pembav1.LookupSubjectsRequest{
		Object: l.of, Permission: l.permission, SubjectType: l.typed,
	})
	if err != nil {
		return err
	}
	return each(stream, func(result *pembav1.LookupSubjectsResponse) error {
		return found(result.GetSubject().GetObject().GetId())
	})
}

// verifyLookup compares each result of a lookup with the right ones; while it is
// measured only their number is.
func verifyLookup(ctx context.Context, call func(context.Context, *lookup, func(string) error) error, l *lookup) error {
	missing := make(map[string]bool, len(l.found))
	for _, id := range l.found {
		missing[id] = true
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err := call(ctx, l, func(id string) error {
		if !missing[id] {
			return fmt.Errorf("wrong answer: the lookup of %s found %s, which is not right or found twice", l.of, id)
		}
		delete(missing, id)
		return nil
	})
	if err != nil {
		return err
	}
	for id := range missing {
		return fmt.Errorf("wrong answer: the lookup of %s did not find %s and %d others", l.of, id, len(missing)-1)
	}
	return nil
}

// freshTuples returns the write of n tuples that were not written yet, the last
// of them first.
func (t *target) freshTuples(n int) *pembav1.WriteTuplesRequest {
	request := &pembav1.WriteTuplesRequest{Updates: make([]*pembav1.TupleUpdate, n)}
	last := t.fresh.Add(uint64(n))
	for i := range request.Updates {
		request.Updates[i] = &pembav1.TupleUpdate{
			Operation: pembav1.TupleUpdate_OPERATION_TOUCH, Tuple: t.data.fresh(last - uint64(i)),
		}
	}
	return request
}

// touch writes n fresh tuples and returns the last.
func (t *target) touch(ctx context.Context, n int) (*writtenTuple, error) {
	request := t.freshTuples(n)
	answer, err := t.tuples.WriteTuples(ctx, request)
	if err != nil {
		return nil, err
	}
	if answer.GetChanged() != uint32(n) {
		return nil, fmt.Errorf("wrong answer: a write of %d new tuples changed %d", n, answer.GetChanged())
	}
	return &writtenTuple{tuple: request.Updates[0].Tuple, at: answer.GetWrittenAt()}, nil
}

// write makes calls that write so many fresh tuples each.
func (t *target) write(batch int) callFunc {
	return func(ctx context.Context, c *caller, _ uint64) (err error) {
		c.written, err = t.touch(ctx, batch)
		c.items += uint64(batch)
		return err
	}
}

// verifyWrites asks for what the callers wrote last, and for a tuple that nobody
// wrote.
func (t *target) verifyWrites(ctx context.Context, callers []*caller) error {
	verify := func(tuple *pembav1.Tuple, at *pembav1.Zookie, want pembav1.Decision) error {
		request := t.data.written(tuple)
		request.Consistency = &pembav1.Consistency{Requirement: &pembav1.Consistency_AtLeastAsFresh{AtLeastAsFresh: at}}
		answer, err := t.permissions.Check(ctx, request)
		if err == nil && answer.GetDecision() != want {
			err = fmt.Errorf("wrong answer: after a write, %s is %s; right is %s", request, answer.GetDecision(), want)
		}
		return err
	}
	for _, c := range callers {
		if c.written == nil {
			continue
		}
		if err := verify(c.written.tuple, c.written.at, pembav1.Decision_DECISION_ALLOWED); err != nil {
			return err
		}
		if c == callers[0] {
			unwritten := t.data.fresh(t.fresh.Load() + 1)
			if err := verify(unwritten, c.written.at, pembav1.Decision_DECISION_DENIED); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeBeside makes so many writes of one tuple in a second until stop is
// called, which returns how many it made. A rate of 0 makes none.
func (t *target) writeBeside(ctx context.Context, rate float64) (stop func() (uint64, error)) {
	if rate == 0 {
		return func() (uint64, error) { return 0, nil }
	}
	ctx, cancel := context.WithCancel(ctx)
	var written uint64
	failed := make(chan error, 1)
	go func() {
		pace := time.NewTicker(time.Duration(float64(time.Second) / rate))
		defer pace.Stop()
		for {
			select {
			case <-ctx.Done():
				failed <- nil
				return
			case <-pace.C:
			}
			_, err := t.touch(ctx, 1)
			if err != nil && status.Code(err) != codes.Canceled {
				failed <- fmt.Errorf("write beside: %w", err)
				return
			}
			if err == nil {
				written++
			}
		}
	}()
	return func() (uint64, error) {
		cancel()
		err := <-failed
		return written, err
	}
}
