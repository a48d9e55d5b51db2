package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

// The budget of a question that names none.
const (
	DefaultBudgetSteps       = 10_000_000
	DefaultBudgetMemoryBytes = 256 << 20
	// DefaultQuestionsMemoryBytes is what all questions share that need more
	// than a little.
	DefaultQuestionsMemoryBytes = 2 << 30
)

// Config holds an engine's settings. The zero Config is ready to use.
type Config struct {
	// Budget bounds each question that names no budget of its own; zero fields
	// mean the defaults above. Changes are not bounded by it: what Apply
	// evaluates is never cut short.
	Budget Budget
	// QuestionsMemoryBytes bounds what all questions hold together, by the
	// evaluator's estimate, beyond 256 KiB each; zero means the default. A
	// question that finds nothing left is refused with BudgetExceeded.
	QuestionsMemoryBytes int64
}

// An Engine answers questions over the snapshots of one DB and applies
// mutations to it. Questions may be asked by any number of goroutines; Apply is
// called by one.
type Engine struct {
	db     *graph.DB
	config Config
	pool   pool
	stats  stats

	mu sync.RWMutex
	// programs caches compiled schemas by store and revision. A program is made
	// from a snapshot alone, so it is the same whoever makes it.
	programs map[programKey]*program
	// compiled is the schema compiled last: the one that is written is also the
	// next that is asked.
	compiled struct {
		text   string
		schema *schema.Schema
	}
}

type programKey struct {
	store    graph.StoreID
	revision graph.Revision
}

// programsMax bounds the programs kept. A store asks for its current one nearly
// always; older ones serve reads of the past.
const programsMax = 256

// New returns an engine over db.
func New(db *graph.DB, config Config) *Engine {
	if config.Budget.Steps == 0 {
		config.Budget.Steps = DefaultBudgetSteps
	}
	if config.Budget.MemoryBytes == 0 {
		config.Budget.MemoryBytes = DefaultBudgetMemoryBytes
	}
	if config.QuestionsMemoryBytes == 0 {
		config.QuestionsMemoryBytes = DefaultQuestionsMemoryBytes
	}
	e := &Engine{db: db, config: config, programs: make(map[programKey]*program)}
	e.pool.bytes = config.QuestionsMemoryBytes
	e.pool.left.Store(e.pool.bytes)
	return e
}

// DB returns the database beneath.
func (e *Engine) DB() *graph.DB { return e.db }

// A Snapshot is one store held still at a revision and an instant. It is used
// by one goroutine at a time and must be closed.
type Snapshot struct {
	engine *Engine
	graph  *graph.Snapshot
	prog   *program
}

// Snapshot holds a store still at a revision (0 for the newest on this node)
// and an instant, with overlay on top. The errors are graph's: ErrUnknownStore, a
// revision that is not there yet or no more, an overlay that is not well formed.
func (e *Engine) Snapshot(store graph.StoreID, at graph.Revision, instant graph.Instant, overlay graph.Overlay) (*Snapshot, error) {
	g, err := e.db.Snapshot(store, at, instant)
	if err != nil {
		return nil, err
	}
	s := &Snapshot{engine: e, graph: g}
	if len(overlay.Added) > 0 || len(overlay.Removed) > 0 {
		if err := s.setOverlay(overlay); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

// setOverlay judges the overlay's tuples as a write would be judged, since the
// evaluator relies on tuples that fit the schema.
func (s *Snapshot) setOverlay(overlay graph.Overlay) error {
	p, err := s.program()
	if err != nil {
		return err
	}
	for i := range overlay.Added {
		if refusal := p.judgeTuple(fmt.Sprintf("overlay.added[%d]", i), &overlay.Added[i]); refusal != nil {
			return refusal
		}
	}
	for i := range overlay.Removed {
		if refusal := p.judgeEdge(fmt.Sprintf("overlay.removed[%d]", i), &overlay.Removed[i]); refusal != nil {
			return refusal
		}
	}
	err = s.graph.SetOverlay(overlay)
	var invalid *graph.InvalidError
	if errors.As(err, &invalid) {
		return refuseMalformed("overlay", err)
	}
	return err
}

// Close gives the snapshot back.
func (s *Snapshot) Close() { s.graph.Close() }

// Graph returns the tuples beneath, for reading them.
func (s *Snapshot) Graph() *graph.Snapshot { return s.graph }

// Revision returns the revision at which the snapshot stands.
func (s *Snapshot) Revision() graph.Revision { return s.graph.Revision() }

// Instant returns the moment at which lifetimes are judged.
func (s *Snapshot) Instant() graph.Instant { return s.graph.Instant() }

// Schema returns the schema of the snapshot's revision, compiled and as it was
// written. Without one it is a *Refusal with NoSchema.
func (s *Snapshot) Schema() (*schema.Schema, graph.SchemaVersion, error) {
	p, err := s.program()
	if err != nil {
		return nil, graph.SchemaVersion{}, err
	}
	return p.schema, p.version, nil
}

// Derived returns what derive makes of the schema of the snapshot's revision, of
// which it must be a function. It is made once for each key, when it is first asked
// for, and forgotten with the compiled schema; who asks meanwhile waits. Keys are
// told apart as those of contexts are: each user has a type of its own. The value is
// shared and must not be changed. A derive that panics is not called again: the same
// panic meets whoever asks for its key. The errors are those of Schema.
func (s *Snapshot) Derived(key any, derive func(*schema.Schema) any) (any, error) {
	p, err := s.program()
	if err != nil {
		return nil, err
	}
	entry, ok := p.derived.Load(key)
	if !ok {
		entry, _ = p.derived.LoadOrStore(key, sync.OnceValue(func() any { return derive(p.schema) }))
	}
	return entry.(func() any)(), nil //nolint:forcetypeassert // Nothing else is stored.
}

// program finds the compiled schema of the snapshot.
func (s *Snapshot) program() (*program, error) {
	if s.prog != nil {
		return s.prog, nil
	}
	version, err := s.graph.Schema()
	if err != nil {
		return nil, err
	}
	if version.Revision == 0 {
		return nil, s.noSchema()
	}
	key := programKey{s.graph.Store(), version.Revision}
	s.engine.mu.RLock()
	p := s.engine.programs[key]
	s.engine.mu.RUnlock()
	if p == nil {
		compiled, err := s.engine.compileSchema(version.Text)
		if err != nil {
			// It compiled when it was written: this node and that one differ.
			return nil, fmt.Errorf("engine: the schema stored at revision %d does not compile: %w", version.Revision, err)
		}
		if p, err = compileProgram(compiled, version, s.graph); err != nil {
			return nil, err
		}
		p = s.engine.remember(key, p)
	}
	s.prog = p
	return p, nil
}

// noSchema refuses a question because the store has no schema: none yet, or none
// at the moment or revision that is asked about.
func (s *Snapshot) noSchema() error {
	first, err := s.graph.FirstSchema()
	if err != nil {
		return err
	}
	revision, instant := s.graph.Revision(), s.graph.Instant()
	store, known := s.engine.db.StoreInfo(s.graph.Store())
	// What a moment is before tells that the moment is meant; a state of a
	// revision is read with lifetimes as of now, or as of a later moment.
	if known && instant < store.CreatedAt {
		return refuse(NoSchema, "", "the store did not exist at %s; it was created at %s", instant, store.CreatedAt)
	}
	if known && revision < store.Created {
		return refuse(NoSchema, "", "the store did not exist at revision %d; it was created at %s", revision, store.CreatedAt)
	}
	if first.Revision == 0 {
		return refuse(NoSchema, "", "the store has no schema yet; write one first")
	}
	if instant < first.Instant {
		return refuse(NoSchema, "", "the store had no schema at %s; its first is of %s", instant, first.Instant)
	}
	return refuse(NoSchema, "", "the store had no schema at revision %d; its first is of %s", revision, first.Instant)
}

// schemaName is how error messages call the one file that a stored schema is.
const schemaName = "schema"

// compileSchema compiles the text of a schema. The result is a function of the
// text; it is remembered because large schemas take seconds.
func (e *Engine) compileSchema(text string) (*schema.Schema, error) {
	e.mu.RLock()
	last := e.compiled
	e.mu.RUnlock()
	if last.schema != nil && last.text == text {
		return last.schema, nil
	}
	file, err := schema.Parse(schemaName, text)
	if err != nil {
		return nil, err
	}
	compiled, err := schema.Compile(file)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	e.compiled.text, e.compiled.schema = text, compiled
	e.mu.Unlock()
	return compiled, nil
}

func (s *Snapshot) name(typeField, field, typ, n string) (*name, error) {
	p, err := s.program()
	if err != nil {
		return nil, err
	}
	x, err := p.lookup(typeField, field, typ, n)
	if err != nil {
		return nil, err
	}
	return x, nil
}

// question makes what a walk needs, with the budget filled in. The program is
// known: every question has looked up a name before.
func (s *Snapshot) question(ctx context.Context, b Budget) question {
	if b.Steps == 0 {
		b.Steps = s.engine.config.Budget.Steps
	}
	if b.MemoryBytes == 0 {
		b.MemoryBytes = s.engine.config.Budget.MemoryBytes
	}
	return question{
		ctx: ctx, program: s.prog, graph: s.graph,
		stepsMax: b.Steps, memoryMax: b.MemoryBytes, pool: &s.engine.pool, stats: &s.engine.stats,
	}
}

// JudgeFilter refuses a filter that names what the schema does not know, since
// it would match nothing where a misspelling is more likely. field is the place
// of the filter in the request.
func (s *Snapshot) JudgeFilter(field string, f graph.Filter) error {
	if err := f.Validate(); err != nil {
		return refuseMalformed(field, err)
	}
	if f == (graph.Filter{}) {
		return nil
	}
	p, err := s.program()
	if err != nil {
		return err
	}
	if refusal := p.judgeFilter(field, f); refusal != nil {
		return refusal
	}
	return nil
}

func (p *program) judgeFilter(field string, f graph.Filter) *Refusal {
	if f.ObjectType != "" && p.types[f.ObjectType] == nil {
		return p.unknownType(field+".object_type", f.ObjectType)
	}
	if f.SubjectType != "" && p.types[f.SubjectType] == nil {
		return p.unknownType(field+".subject_type", f.SubjectType)
	}
	known := func(field, typ, n string, unknown func(field, typ, n string) *Refusal) *Refusal {
		if typ != "" {
			if x := p.types[typ].names[n]; x == nil || x.shape == 0 {
				return unknown(field, typ, n)
			}
			return nil
		}
		for _, t := range p.types {
			if x := t.names[n]; x != nil && x.shape != 0 {
				return nil
			}
		}
		return refuse(UnknownName, field, "no definition has a relation or permission %q", n).with("name", n)
	}
	if f.Relation != "" {
		if r := known(field+".relation", f.ObjectType, f.Relation, p.unknownRelation); r != nil {
			return r
		}
	}
	if f.SubjectRelation != nil && *f.SubjectRelation != "" {
		if r := known(field+".subject_relation", f.SubjectType, *f.SubjectRelation, p.unknownName); r != nil {
			return r
		}
	}
	return nil
}

// decodeContext reads the context of a stored tuple.
func decodeContext(data []byte) (schema.Context, error) {
	if len(data) == 0 {
		return nil, nil
	}
	var c schema.Context
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, fmt.Errorf("engine: the context of a stored tuple is no JSON object: %w", err)
	}
	return c, nil
}

// refuseContext turns what schema says of a context into a refusal; it is nil
// for any other error, which is then returned.
func refuseContext(field string, err error) (*Refusal, error) {
	var context *schema.ContextError
	if errors.As(err, &context) {
		r := refuse(ContextInvalid, field, "%v", context).with("caveat", context.Caveat).with("parameter", context.Parameter)
		r.Cause = context
		return r, nil
	}
	var eval *schema.EvalError
	if errors.As(err, &eval) {
		r := refuse(CaveatFailed, "", "%v", eval).with("caveat", eval.Caveat)
		r.Cause = eval
		return r, nil
	}
	return nil, err
}

func refuseMalformed(field string, err error) *Refusal {
	r := refuse(Malformed, field, "%v", err)
	r.Cause = err
	return r
}
