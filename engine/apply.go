package engine

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

// A Result is what became of a mutation, the same on every node.
type Result struct {
	// Revision is the revision of the entry; Instant its stamp, made monotone.
	Revision graph.Revision
	Instant  graph.Instant
	// Refusal is nil when the mutation was applied.
	Refusal *Refusal
	// Changed counts the tuples that were created, replaced, deleted or
	// collected.
	Changed int
	// Partial says that a delete which allowed it left matches behind.
	Partial bool
	// Store is the store that CreateStore made.
	Store graph.StoreID
	// Stage is the staged change after the step that was asked for. If that was a
	// chunk that was staged before, and is not committed, Stage.Digest is the one
	// behind that chunk.
	Stage graph.StageInfo
	// Repeated says that a mutation of the same RequestID was applied before, and
	// that this one changed nothing. All else is what the first came to, its
	// Revision and Instant too; how often it is asked again makes no difference.
	Repeated bool
}

// Apply judges m against the graph as of the last commit and commits what it
// changes at revision, which is above every revision before; a refused mutation
// changes nothing but the applied revision. Everything it decides follows from
// the graph, the stamp and m: it sees no clock, no configuration and no cache
// that could differ between nodes, and is never cut short.
//
// The error is a fault of this node, after which it must not go on: it could no
// longer tell what the other nodes know.
//
// Tuples whose lifetime is over at the stamp are absent: a Create over one
// succeeds and ends it first.
//
// A mutation with a RequestID that was applied before, and is still remembered at
// the stamp, is not judged: its result is that of the first, with Repeated. One
// that was refused is not remembered, so asked again it is judged again, by what is
// stored then. Both are right, for a refusal changed nothing.
func (e *Engine) Apply(revision graph.Revision, term uint64, stamp graph.Instant, m *graph.Mutation) (Result, error) {
	stamp = max(stamp, e.db.Applied().Stamp)
	commit := graph.Commit{
		Revision: revision, Term: term, Stamp: stamp,
		RecordedActor: m.RecordedActor, Metadata: m.Metadata,
	}
	result, repeated, err := e.repeated(m.RequestID, stamp)
	if err != nil {
		return Result{}, err
	}
	if repeated {
		if _, err := e.db.Commit(graph.Commit{Revision: revision, Term: term, Stamp: stamp}); err != nil {
			return Result{}, fmt.Errorf("engine: commit revision %d: %w", revision, err)
		}
		return result, nil
	}
	result = Result{Revision: revision, Instant: stamp}
	if err := e.judge(m, &commit, &result); err != nil {
		return Result{}, err
	}
	if result.Refusal != nil {
		result.Changed, result.Partial, result.Stage = 0, false, graph.StageInfo{}
		commit = graph.Commit{Revision: revision, Term: term, Stamp: stamp}
	} else if len(m.RequestID) > 0 {
		commit.Request = &graph.RequestCommit{ID: m.RequestID, Changed: result.Changed, Partial: result.Partial, Stage: result.Stage}
	}
	receipt, err := e.db.Commit(commit)
	if refusal := refuseStagedTwice(m, err); refusal != nil {
		result = Result{Revision: revision, Instant: stamp, Refusal: refusal}
		_, err = e.db.Commit(graph.Commit{Revision: revision, Term: term, Stamp: stamp})
	}
	var invalid *graph.InvalidError
	if exhausted := errors.Is(err, graph.ErrExhausted); exhausted || errors.As(err, &invalid) {
		// Nothing was written, and every node finds the same.
		result = Result{Revision: revision, Instant: stamp, Refusal: refuseMalformed("", err)}
		if exhausted {
			result.Refusal.Reason = NumbersExhausted
		}
		_, err = e.db.Commit(graph.Commit{Revision: revision, Term: term, Stamp: stamp})
	}
	if err != nil {
		return Result{}, fmt.Errorf("engine: commit revision %d: %w", revision, err)
	}
	result.Store = receipt.Store
	if c := commit.StoreChange; c != nil && c.Operation == graph.DropStore && result.Refusal == nil {
		e.forget(m.Store)
	}
	return result, nil
}

// repeated returns what the first mutation of an id came to, if one was applied
// that is remembered at the stamp.
func (e *Engine) repeated(id []byte, stamp graph.Instant) (Result, bool, error) {
	if len(id) == 0 || graph.ValidateRequestID(id) != nil {
		return Result{}, false, nil
	}
	o, found, err := e.db.Request(id, stamp)
	if err != nil || !found {
		return Result{}, false, err
	}
	return Result{
		Revision: o.Revision, Instant: o.Instant, Changed: o.Changed, Partial: o.Partial, Store: o.Store, Stage: o.Stage, Repeated: true,
	}, true, nil
}

// judge fills in what m changes, or why it is refused.
func (e *Engine) judge(m *graph.Mutation, commit *graph.Commit, result *Result) error {
	if err := graph.ValidateRequestID(m.RequestID); err != nil {
		result.Refusal = refuseMalformed("request_id", err)
		return nil
	}
	if m.Init != nil {
		if e.db.ClusterID() != [16]byte{} {
			result.Refusal = refuse(AlreadyInitialized, "", "the cluster has the identity %x already", e.db.ClusterID())
			return nil
		}
		commit.Init = m.Init
		return nil
	}
	if err := m.Validate(); err != nil && (len(m.Updates) == 0 || m.StoreChange != nil || m.Prune != nil || m.CounterChange != nil ||
		m.StartChecksum != nil || m.Renew != nil || m.Settle != nil) {
		// What is wrong with an update is told below, with its place.
		result.Refusal = refuseMalformed("", err)
		return nil
	}
	if m.StartChecksum != nil {
		commit.StartChecksum = m.StartChecksum
		return nil
	}
	if m.Settle != nil {
		return nil
	}
	if m.Renew != nil {
		result.Refusal = e.renew(m.Renew, commit)
		return nil
	}
	if m.StoreChange != nil {
		result.Refusal = e.storeChange(m, commit)
		return nil
	}
	if m.Store == 0 {
		result.Refusal = refuse(Malformed, "store", "the mutation names no store")
		return nil
	}
	store, known := e.db.StoreInfo(m.Store)
	if !known {
		result.Refusal = refuseUnknownStore(m.Store)
		return nil
	}
	if m.Prune != nil {
		commit.Store, commit.Prune = m.Store, m.Prune
		return nil
	}
	s, err := e.Snapshot(m.Store, 0, commit.Stamp, graph.Overlay{})
	if err != nil {
		return fmt.Errorf("engine: mutation of store %d: %w", m.Store, err)
	}
	defer s.Close()
	s.graph.BypassResident()
	commit.Store = m.Store
	j := &judgement{snapshot: s, commit: commit, result: result}
	s.graph.Guard(func(looked int) error {
		if looked > lookedMax {
			return errTooMuchToRead
		}
		return nil
	})
	switch {
	case m.Schema != nil:
		result.Refusal, err = j.schema(m.Schema)
	case m.Collect != nil:
		result.Refusal, err = j.collect(m.Collect)
	case m.Stage != nil:
		result.Refusal, err = j.stage(m)
	case m.CounterChange != nil:
		result.Refusal, err = j.counter(m.CounterChange)
	default:
		result.Refusal, err = j.tuples(m)
	}
	if errors.Is(err, errTooMuchToRead) {
		result.Refusal, err = refuse(TooMuchToRead, "",
			"preconditions and filters of one change may look at %d tuples, and these look at more; name ids in them", lookedMax), nil
	}
	if err == nil && result.Refusal == nil {
		result.Refusal = j.room(&store)
	}
	return err
}

// lookedMax bounds how many tuples one mutation looks at, for all others wait
// meanwhile. It is counted, not timed, and no setting, so that every node draws
// the line at the same place.
const lookedMax = 1_000_000

var errTooMuchToRead = errors.New("too many tuples to look at")

// A judgement is the work of judging one mutation.
type judgement struct {
	snapshot *Snapshot
	commit   *graph.Commit
	result   *Result
}

// tuples judges a mutation of tuples: preconditions first, then every update on
// its own, then what matches.
func (j *judgement) tuples(m *graph.Mutation) (*Refusal, error) {
	if len(m.Preconditions) == 0 && len(m.Updates) == 0 && m.Delete == nil {
		return nil, nil
	}
	p, err := j.snapshot.program()
	if err != nil {
		return asRefusal(err)
	}
	// The form of the request before its fit, all of it before the first
	// precondition, so that an error of the request never depends on the data.
	for i, c := range m.Preconditions {
		if err := j.snapshot.JudgeFilter(fmt.Sprintf("preconditions[%d].filter", i), c.Filter); err != nil {
			return asRefusal(err)
		}
	}
	edges := make(map[edgeKey]int, len(m.Updates))
	for i := range m.Updates {
		u, field := &m.Updates[i], fmt.Sprintf("updates[%d]", i)
		if first, twice := edges[edgeOf(&u.Tuple)]; twice {
			return refuse(DuplicateUpdate, field+".tuple", "%s is updated by updates[%d] already; one request may name a tuple once",
				edgeString(&u.Tuple), first).with("tuple", edgeString(&u.Tuple)), nil
		}
		edges[edgeOf(&u.Tuple)] = i
		switch u.Operation {
		case graph.Touch, graph.Create:
			if refusal := p.judgeTuple(field+".tuple", &u.Tuple); refusal != nil {
				return refusal, nil
			}
		case graph.Delete:
			if refusal := p.judgeEdge(field+".tuple", &u.Tuple); refusal != nil {
				return refusal, nil
			}
		default:
			return refuse(Malformed, field+".operation", "unknown operation %d; touch, create and delete are allowed", u.Operation), nil
		}
	}
	if m.Delete != nil {
		if err := j.snapshot.JudgeFilter("filter", m.Delete.Filter); err != nil {
			return asRefusal(err)
		}
	}

	for i, c := range m.Preconditions {
		found, _, err := j.snapshot.graph.Read(c.Filter, nil, 1)
		if err != nil {
			return nil, err
		}
		if (len(found) == 0) == c.MustNotMatch {
			continue
		}
		refusal := refuse(PreconditionFailed, fmt.Sprintf("preconditions[%d]", i), "no tuple matches %s, and one must", filterString(c.Filter))
		if c.MustNotMatch {
			refusal.Message = fmt.Sprintf("%s matches %s, and none may", edgeString(&found[0]), filterString(c.Filter))
			refusal = refusal.with("tuple", edgeString(&found[0]))
		}
		return refusal, nil
	}
	for i := range m.Updates {
		if refusal, err := j.update(fmt.Sprintf("updates[%d]", i), &m.Updates[i]); refusal != nil || err != nil {
			return refusal, err
		}
	}
	if m.Delete != nil {
		return j.delete(m.Delete)
	}
	return nil, nil
}

// update judges one update against what is stored.
func (j *judgement) update(field string, u *graph.Update) (*Refusal, error) {
	before, found, err := j.snapshot.graph.GetStored(u.Tuple.Object, u.Tuple.Relation, u.Tuple.Subject)
	if err != nil {
		return nil, err
	}
	living := found && before.Living(j.commit.Stamp)
	if u.Operation == graph.Delete {
		if living {
			j.change(graph.Deleted, before, &before)
		}
		return nil, nil
	}
	switch {
	case !living:
		if found {
			j.change(graph.Expired, before, &before)
		}
		j.change(graph.Created, u.Tuple, nil)
	case u.Operation == graph.Create:
		return refuse(AlreadyExists, field+".tuple", "%s exists; touch it to replace what it carries", edgeString(&u.Tuple)).
			with("tuple", edgeString(&u.Tuple)), nil
	case !before.SameContent(&u.Tuple):
		j.change(graph.Replaced, u.Tuple, &before)
	}
	return nil, nil
}

func (j *judgement) change(kind graph.ChangeKind, t graph.Tuple, before *graph.Tuple) {
	j.commit.Changes = append(j.commit.Changes, graph.Change{Kind: kind, Tuple: t, Before: before})
	if kind != graph.Expired {
		j.result.Changed++
	}
}

func (j *judgement) delete(d *graph.DeleteMatching) (*Refusal, error) {
	updated := make(map[edgeKey]bool, len(j.commit.Changes))
	for i := range j.commit.Changes {
		updated[edgeOf(&j.commit.Changes[i].Tuple)] = true
	}
	deleted := 0
	for position := []byte(nil); ; {
		found, next, err := j.snapshot.graph.Read(d.Filter, position, min(d.Limit+1-deleted, deletePage))
		if err != nil {
			return nil, err
		}
		for i := range found {
			if updated[edgeOf(&found[i])] {
				continue
			}
			if deleted == d.Limit {
				if d.AllowPartial {
					j.result.Partial = true
					return nil, nil
				}
				return refuse(TooManyMatches, "limit", "more than %d tuples match %s; allow a partial delete, or narrow the filter",
					d.Limit, filterString(d.Filter)).with("limit", fmt.Sprint(d.Limit)), nil
			}
			deleted++
			j.change(graph.Deleted, found[i], &found[i])
		}
		if next == nil {
			return nil, nil
		}
		position = next
	}
}

// deletePage is how many tuples a delete reads at once.
const deletePage = 1024

// collect ends tuples whose lifetime is over.
func (j *judgement) collect(c *graph.Collect) (*Refusal, error) {
	over, err := j.snapshot.graph.Expired(c.Limit)
	if err != nil {
		return nil, err
	}
	for i := range over {
		j.change(graph.Expired, over[i], &over[i])
		j.result.Changed++
	}
	return nil, nil
}

// schema judges a new schema: it must compile, and every stored tuple must fit
// it.
func (j *judgement) schema(w *graph.WriteSchema) (*Refusal, error) {
	compiled, err := j.snapshot.engine.compileSchema(w.Text)
	if err != nil {
		return refuseSchema(err), nil
	}
	old, err := j.snapshot.program()
	if err != nil {
		refusal, err := asRefusal(err)
		if err != nil || refusal.Reason != NoSchema {
			return refusal, err
		}
	}
	if w.Replaces != nil {
		var newest graph.Revision
		if old != nil {
			newest = old.version.Revision
		}
		if newest != *w.Replaces {
			return refuse(SchemaReplaced, "schema", "it was judged to follow the schema of revision %d, and the store's is of revision %d; judge it again",
				*w.Replaces, newest), nil
		}
	}
	if old != nil {
		if old.version.Text == w.Text {
			return nil, nil
		}
		if refusal, err := j.fit(old, compiled); refusal != nil || err != nil {
			return refusal, err
		}
	}
	commit := &graph.SchemaCommit{Text: w.Text}
	if err := Storable(compiled); err != nil {
		return asRefusal(err)
	}
	for _, c := range compiled.Caveats {
		commit.Caveats = append(commit.Caveats, c.Name)
	}
	for _, d := range compiled.Definitions {
		commit.Shapes = append(commit.Shapes, graph.ShapeName{Type: d.Name})
		for _, r := range d.Relations {
			commit.Shapes = append(commit.Shapes, graph.ShapeName{Type: d.Name, Relation: r.Name})
		}
		for _, m := range d.Permissions {
			commit.Shapes = append(commit.Shapes, graph.ShapeName{Type: d.Name, Relation: m.Name})
		}
	}
	j.commit.Schema = commit
	return nil, nil
}

// Storable refuses, with SchemaType, names that the language can write in quotes
// and the graph cannot store. Apply asks it of every schema.
func Storable(s *schema.Schema) error {
	check := func(err error) error {
		if err == nil {
			return nil
		}
		return &Refusal{Reason: SchemaType, Field: "schema", Message: err.Error(), Cause: err}
	}
	for _, c := range s.Caveats {
		if err := check(graph.ValidateCaveat(c.Name)); err != nil {
			return err
		}
	}
	for _, d := range s.Definitions {
		if err := check(graph.ValidateType(d.Name)); err != nil {
			return err
		}
		for _, x := range d.Relations {
			if err := check(graph.ValidateRelation(x.Name)); err != nil {
				return err
			}
		}
		for _, x := range d.Permissions {
			if err := check(graph.ValidateRelation(x.Name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// fit refuses a schema that stored tuples do not fit.
func (j *judgement) fit(old *program, compiled *schema.Schema) (*Refusal, error) {
	// Tuples whose lifetime is over stand in no schema's way: end them first.
	over, err := j.snapshot.graph.Expired(schemaCollectMax)
	if err != nil {
		return nil, err
	}
	for i := range over {
		j.change(graph.Expired, over[i], &over[i])
	}
	misfits, err := j.snapshot.misfits(old.schema, compiled, j.snapshot.stored(over), 1)
	if err != nil || len(misfits) == 0 {
		return nil, err
	}
	return refuseMisfits(misfits), nil
}

// refuseMisfits says how many tuples do not fit a schema, and of the first kind
// why.
func refuseMisfits(misfits []Misfit) *Refusal {
	first, all, alike := misfits[0], uint64(0), uint64(0)
	for _, m := range misfits {
		all += m.Count
		if m.Why == first.Why {
			alike += m.Count
		}
	}
	noun, because := "tuples do", ": "
	if all == 1 {
		noun = "tuple does"
	} else if alike < all {
		because = fmt.Sprintf(", %d of them because ", alike)
	}
	r := refuse(SchemaData, "schema", "%d stored %s not fit the new schema%s%s", all, noun, because, first.Why).
		with("type", first.Type).with("name", first.Relation).with("count", fmt.Sprint(all))
	if first.Sample != "" {
		r.Message += "; for example " + first.Sample
		r = r.with("tuple", first.Sample)
	}
	return r
}

// schemaCollectMax bounds how many expired tuples a schema ends on its way; were
// there more, those would have to be collected first.
const schemaCollectMax = 10_000

// misfit says why tuples of a relation and form of subject do not fit, or "".
func misfit(s *schema.Schema, objectType, relation string, stored schema.SubjectType) string {
	d := s.Definition(objectType)
	if d == nil {
		return fmt.Sprintf("it has no definition %q", objectType)
	}
	r := d.Relation(relation)
	if r == nil {
		if d.Permission(relation) != nil {
			return fmt.Sprintf("%s#%s has become a permission, which stores nothing", objectType, relation)
		}
		return fmt.Sprintf("definition %q has no relation %q", objectType, relation)
	}
	for _, a := range r.Allowed {
		if a == stored {
			return ""
		}
	}
	return fmt.Sprintf("%s#%s does not allow %s", objectType, relation, stored)
}

// changedParameter says which parameter of a caveat that tuples carry is gone or
// has another type, or "": contexts are stored with the tuples.
func changedParameter(old, changed *schema.Caveat) string {
	if old == nil || changed == nil {
		return ""
	}
	for _, a := range old.Parameters {
		kept := ""
		for _, b := range changed.Parameters {
			if a.Name == b.Name {
				kept = b.Type
			}
		}
		switch {
		case kept == "":
			return fmt.Sprintf("caveat %q has lost its parameter %q", old.Name, a.Name)
		case kept != a.Type:
			return fmt.Sprintf("parameter %q of caveat %q was %s and is %s", a.Name, old.Name, a.Type, kept)
		}
	}
	return ""
}

// subjectTypeOf is the form of subject that a tuple needs its relation to allow.
func subjectTypeOf(t *graph.Tuple) schema.SubjectType {
	return schema.SubjectType{
		Type: t.Subject.Type, Relation: t.Subject.Relation, Wildcard: t.Subject.ID == graph.Wildcard,
		Caveat: t.Caveat, Expiration: t.ValidUntil != 0,
	}
}

// judgeTuple refuses a tuple that does not fit the schema.
func (p *program) judgeTuple(field string, t *graph.Tuple) *Refusal {
	r, refusal := p.relation(field, t)
	if refusal != nil {
		return refusal
	}
	if t.ValidFrom != 0 || len(t.Sources) > 0 {
		return refuse(Malformed, field, "%s begins later or names sources, for which the stored form has room but which this version does not write", edgeString(t))
	}
	stored := subjectTypeOf(t)
	if p.types[stored.Type] == nil {
		return p.unknownType(field+".subject.object.type", stored.Type)
	}
	if stored.Relation != "" && p.types[stored.Type].names[stored.Relation] == nil {
		return p.unknownName(field+".subject.relation", stored.Type, stored.Relation)
	}
	allowed := false
	for _, a := range r.Allowed {
		allowed = allowed || a == stored
	}
	if !allowed {
		if t.Caveat != "" && p.schema.Caveat(t.Caveat) == nil {
			return p.unknownCaveat(field+".caveat.name", t.Caveat)
		}
		return p.subjectNotAllowed(field, t, r, stored.String())
	}
	if t.Caveat == "" {
		return nil
	}
	context, err := decodeContext(t.Context)
	if err != nil {
		return refuseMalformed(field+".caveat.context", err)
	}
	if err := p.schema.Caveat(t.Caveat).Check(context); err != nil {
		refusal, err := refuseContext(field+".caveat.context", err)
		if err != nil {
			return refuseMalformed(field+".caveat.context", err)
		}
		return refusal
	}
	return nil
}

// judgeEdge refuses an edge that no tuple of the schema could have, whatever it
// carried.
func (p *program) judgeEdge(field string, t *graph.Tuple) *Refusal {
	r, refusal := p.relation(field, t)
	if refusal != nil {
		return refusal
	}
	if p.types[t.Subject.Type] == nil {
		return p.unknownType(field+".subject.object.type", t.Subject.Type)
	}
	stored := subjectTypeOf(t)
	for _, a := range r.Allowed {
		if t.Caveat == "" {
			a.Caveat = ""
		}
		if t.ValidUntil == 0 {
			a.Expiration = false
		}
		if a == stored {
			return nil
		}
	}
	return p.subjectNotAllowed(field, t, r, stored.String())
}

// relation finds the relation that a tuple names.
func (p *program) relation(field string, t *graph.Tuple) (*schema.Relation, *Refusal) {
	if err := t.Validate(); err != nil {
		return nil, refuseMalformed(field, err)
	}
	d := p.schema.Definition(t.Object.Type)
	if d == nil {
		return nil, p.unknownType(field+".object.type", t.Object.Type)
	}
	if r := d.Relation(t.Relation); r != nil {
		return r, nil
	}
	if d.Permission(t.Relation) != nil {
		return nil, refuse(NotARelation, field+".relation", "%s#%s is a permission, which follows from relations and stores no tuples",
			t.Object.Type, t.Relation).with("type", t.Object.Type).with("name", t.Relation)
	}
	return nil, p.unknownRelation(field+".relation", t.Object.Type, t.Relation)
}

func (p *program) subjectNotAllowed(field string, t *graph.Tuple, r *schema.Relation, given string) *Refusal {
	forms := make([]string, len(r.Allowed))
	for i, a := range r.Allowed {
		forms[i] = a.String()
	}
	return refuse(SubjectNotAllowed, field+".subject", "%s#%s does not allow %s; it allows %s",
		t.Object.Type, r.Name, given, strings.Join(forms, " | ")).
		with("type", t.Object.Type).with("name", r.Name).with("given", given)
}

// refuseSchema turns the errors of parsing or compiling into a refusal.
func refuseSchema(err error) *Refusal {
	reason := SchemaType
	var mistakes schema.Errors
	if errors.As(err, &mistakes) && slices.ContainsFunc(mistakes, func(e *schema.Error) bool { return e.Kind == schema.SyntaxError }) {
		reason = SchemaSyntax
	}
	return &Refusal{Reason: reason, Field: "schema", Message: err.Error(), Cause: err}
}

// asRefusal tells a refusal from a fault.
func asRefusal(err error) (*Refusal, error) {
	if refusal, ok := err.(*Refusal); ok { //nolint:errorlint // Refusals of this package come unwrapped.
		return refusal, nil
	}
	return nil, err
}

// edgeKey is what makes two tuples the same edge.
type edgeKey struct {
	object   graph.Object
	relation string
	subject  graph.Subject
}

func edgeOf(t *graph.Tuple) edgeKey { return edgeKey{t.Object, t.Relation, t.Subject} }

// edgeString is the text of a tuple without what it carries.
func edgeString(t *graph.Tuple) string {
	return graph.Tuple{Object: t.Object, Relation: t.Relation, Subject: t.Subject}.String()
}

// filterString shows a filter in the form of a tuple, without the parts that it
// leaves open, but for any where the type is one. An id that ends in % is a prefix,
// and a # with nothing behind it asks for subjects without a relation.
func filterString(f graph.Filter) string {
	side := func(typ, id, relation string) string {
		if typ == "" && id+relation != "" {
			typ = "any"
		}
		if id != "" {
			typ = graph.Object{Type: typ, ID: id}.String()
		}
		return typ + relation
	}
	id, relation, subjectRelation := f.ObjectID, "", ""
	if f.Relation != "" {
		relation = "#" + f.Relation
	}
	if f.ObjectIDPrefix != "" {
		id, relation = f.ObjectIDPrefix, "%"+relation
	}
	if f.SubjectRelation != nil {
		subjectRelation = "#" + *f.SubjectRelation
	}
	text := side(f.ObjectType, id, relation)
	if subject := side(f.SubjectType, f.SubjectID, subjectRelation); subject != "" {
		text += "@" + subject
	}
	if text == "" {
		return "the empty filter"
	}
	return text
}
