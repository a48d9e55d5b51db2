package authzed

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pembadb/pemba/api"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/engine/enginetest"
	"github.com/pembadb/pemba/graph"
)

var (
	questions = flag.Int("questions", 2000, "how many random questions TestTwin asks")
	seed      = flag.Uint64("seed", 1, "the seed of the random tests; 0 takes one from the clock, for a hunt")
)

// seedOf returns the seed of a run.
func seedOf() uint64 {
	if *seed == 0 {
		return uint64(time.Now().UnixNano())
	}
	return *seed
}

// A questionMix counts what the questions of a run were about.
type questionMix struct {
	questions, yes, conditional, no          int
	checks, items, wrongItems, resources     int
	subjects, wildcards, excluded            int
	trees, reads, exports, pages             int
	past, traces, costly, overtaken          int
	worlds, writes, nativeWrites, shortLived int
}

// TestTwin asks random questions about random worlds in both APIs and holds the
// answers against each other. That the native ones are right is for the twin of
// the engine to say: here the adapter is judged. Where docs/spicedb.md has this API
// answer otherwise, the comparison says so.
func TestTwin(t *testing.T) {
	s := seedOf()
	t.Logf("seed %d (go test ./api/authzed -run %s -seed %d -questions %d)", s, t.Name(), s, *questions)
	r := rand.New(rand.NewPCG(s, 1))
	// The budget ends trees of all ways through a tangle of folders.
	conn, server := newServerWith(t, api.Config{Limits: api.Limits{Steps: 10_000}})
	m := &questionMix{}
	// Few worlds have wildcards, and it takes as many as show some: which lifetimes
	// are over when a question is asked is not in the seed.
	least := *questions / 1000
	for (m.questions < *questions || min(m.wildcards, m.excluded) < least && m.questions < 10**questions) && !t.Failed() {
		m.worlds++
		t.Run(fmt.Sprintf("world%d", m.worlds), func(t *testing.T) { askWorld(t, conn, server, enginetest.NewWorld(r), m) })
	}
	t.Logf("%+v", *m)
	if *questions < 2000 || t.Failed() {
		return // Too few for shares to mean anything.
	}
	for what, count := range map[string]int{
		"allowed checks": m.yes, "conditional checks": m.conditional, "denied checks": m.no, "checks": m.checks, "items of bulk checks": m.items,
		"items that fail alone": m.wrongItems, "lookups of resources": m.resources, "lookups of subjects": m.subjects,
		"trees": m.trees, "reads": m.reads, "exports": m.exports,
		"pages behind a cursor": m.pages, "questions of the past": m.past, "traces": m.traces,
		"lifetimes that end while questions are asked": m.shortLived,
	} {
		if count < *questions/250 {
			t.Errorf("only %d %s; the mix needs one in 250 questions", count, what)
		}
	}
	if m.wildcards < least || m.excluded < least {
		t.Errorf("only %d wildcards and %d excluded subjects; the mix needs one in 1000 questions", m.wildcards, m.excluded)
	}
}

// A storeKey is the credentials of calls about one store.
type storeKey struct{ store string }

func (k storeKey) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + testKey, api.StoreHeader: k.store}, nil
}

func (storeKey) RequireTransportSecurity() bool { return false }

// A twinWorld is a random world in a store of its own.
type twinWorld struct {
	*enginetest.World
	*questionMix
	t       *testing.T
	store   string
	conn    *grpc.ClientConn // whose calls are about the store
	dialect v1.PermissionsServiceClient
	native  pembav1.PermissionServiceClient
	tuples  pembav1.TupleServiceClient
	// model is what was written, as a plain map.
	model   map[string]graph.Tuple
	moments []twinMoment
	began   graph.Instant
}

// A twinMoment is a token and what was written then.
type twinMoment struct {
	token  string
	stored []graph.Tuple
}

// askWorld plays a random history and asks about its states.
func askWorld(t *testing.T, shared *grpc.ClientConn, server *api.Server, w *enginetest.World, m *questionMix) {
	x := &twinWorld{World: w, questionMix: m, t: t, store: fmt.Sprintf("world%d", m.worlds), model: map[string]graph.Tuple{}}
	if _, err := pembav1.NewStoreServiceClient(shared).CreateStore(testContext(t), &pembav1.CreateStoreRequest{Name: x.store}); err != nil {
		t.Fatal(err)
	}
	var err error
	x.conn, err = grpc.NewClient("passthrough:///"+server.GRPCAddr().String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithPerRPCCredentials(storeKey{x.store}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if t.Failed() {
			t.Logf("schema:\n%s", w.Text)
			for _, at := range x.moments {
				t.Logf("at %s: %s", at.token, at.stored)
			}
		}
		if err := x.conn.Close(); err != nil {
			t.Error(err)
		}
	}()
	x.dialect, x.native, x.tuples = v1.NewPermissionsServiceClient(x.conn), pembav1.NewPermissionServiceClient(x.conn), pembav1.NewTupleServiceClient(x.conn)
	writeSchema(t, x.conn, w.Text)
	for range 4 {
		w.Now = graph.InstantOf(time.Now())
		if x.began == 0 {
			x.began = w.Now
		}
		for range 2 {
			x.write()
		}
		for range 2 {
			x.checks()
			x.bulk()
			x.lookupResources()
			x.lookupSubjects()
			x.expand()
			x.read()
		}
		x.export()
	}
}

// write changes what is stored, by either API.
func (x *twinWorld) write() {
	x.t.Helper()
	var updates []graph.Update
	seen := map[string]bool{}
	add := func(operation graph.Operation, tuple graph.Tuple) {
		key := relationshipString(tuple)
		if seen[key] {
			return
		}
		seen[key] = true
		if _, there := x.model[key]; operation == graph.Create && there {
			operation = graph.Touch
		}
		updates = append(updates, graph.Update{Operation: operation, Tuple: tuple})
		if operation == graph.Delete {
			delete(x.model, key)
		} else {
			x.model[key] = tuple
		}
	}
	for range 16 + x.IntN(40) {
		tuple, ok := x.Tuple()
		if !ok {
			continue
		}
		if tuple.ValidUntil != 0 && x.OneIn(2) {
			tuple.ValidUntil = graph.InstantOf(time.Now()) + graph.Instant(x.IntN(40_000)) // In 40 ms.
			x.shortLived++
		}
		operation := graph.Touch
		switch x.IntN(8) {
		case 0:
			operation = graph.Delete
			if stored := x.stored(); len(stored) > 0 {
				tuple = enginetest.Choose(x.World, stored)
			}
		case 1:
			operation = graph.Create
		}
		add(operation, tuple)
	}
	if len(updates) == 0 {
		return
	}
	x.writes++
	token := ""
	if x.OneIn(2) {
		x.nativeWrites++
		r := &pembav1.WriteTuplesRequest{Store: x.store}
		for _, u := range updates {
			r.Updates = append(r.Updates, &pembav1.TupleUpdate{Operation: map[graph.Operation]pembav1.TupleUpdate_Operation{
				graph.Touch: pembav1.TupleUpdate_OPERATION_TOUCH, graph.Create: pembav1.TupleUpdate_OPERATION_CREATE, graph.Delete: pembav1.TupleUpdate_OPERATION_DELETE,
			}[u.Operation], Tuple: x.nativeTuple(u.Tuple)})
		}
		written, err := x.tuples.WriteTuples(testContext(x.t), r)
		if err != nil {
			x.t.Fatalf("native write: %v", err)
		}
		token = written.GetWrittenAt().GetToken()
	} else {
		r := &v1.WriteRelationshipsRequest{}
		for _, u := range updates {
			r.Updates = append(r.Updates, &v1.RelationshipUpdate{Operation: map[graph.Operation]v1.RelationshipUpdate_Operation{
				graph.Touch: v1.RelationshipUpdate_OPERATION_TOUCH, graph.Create: v1.RelationshipUpdate_OPERATION_CREATE, graph.Delete: v1.RelationshipUpdate_OPERATION_DELETE,
			}[u.Operation], Relationship: x.relationship(u.Tuple)})
		}
		written, err := x.dialect.WriteRelationships(testContext(x.t), r)
		if err != nil {
			x.t.Fatalf("write: %v", err)
		}
		token = written.GetWrittenAt().GetToken()
	}
	x.moments = append(x.moments, twinMoment{token, x.stored()})
}

// stored is the model in a stable order.
func (x *twinWorld) stored() []graph.Tuple {
	keys := make([]string, 0, len(x.model))
	for k := range x.model {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	tuples := make([]graph.Tuple, len(keys))
	for i, k := range keys {
		tuples[i] = x.model[k]
	}
	return tuples
}

// The conversions of the test are its own: those of the adapter could be wrong in
// both directions.

func (x *twinWorld) structOf(text []byte) *structpb.Struct {
	if text == nil {
		return nil
	}
	s := &structpb.Struct{}
	if err := s.UnmarshalJSON(text); err != nil {
		x.t.Fatal(err)
	}
	return s
}

func (x *twinWorld) relationship(t graph.Tuple) *v1.Relationship {
	r := &v1.Relationship{
		Resource: &v1.ObjectReference{ObjectType: t.Object.Type, ObjectId: t.Object.ID}, Relation: t.Relation, Subject: subjectOf(t.Subject.Type, t.Subject.ID, t.Subject.Relation),
	}
	if t.Caveat != "" {
		r.OptionalCaveat = &v1.ContextualizedCaveat{CaveatName: t.Caveat, Context: x.structOf(t.Context)}
	}
	if t.ValidUntil != 0 {
		r.OptionalExpiresAt = timestamppb.New(t.ValidUntil.Time())
	}
	return r
}

func (x *twinWorld) nativeTuple(t graph.Tuple) *pembav1.Tuple {
	n := &pembav1.Tuple{Object: nativeObject(t.Object), Relation: t.Relation, Subject: nativeSubject(t.Subject)}
	if t.Caveat != "" {
		n.Caveat = &pembav1.Caveat{Name: t.Caveat, Context: x.structOf(t.Context)}
	}
	if t.ValidUntil != 0 {
		n.ExpiresAt = timestamppb.New(t.ValidUntil.Time())
	}
	return n
}

func nativeObject(o graph.Object) *pembav1.Object { return &pembav1.Object{Type: o.Type, Id: o.ID} }

func nativeSubject(s graph.Subject) *pembav1.Subject {
	return &pembav1.Subject{Object: nativeObject(s.Object), Relation: s.Relation}
}

// storedText is all that a stored tuple says, in a form of the test's own.
func storedText(object, relation, subject, subjectRelation, caveat string, given *structpb.Struct, until *timestamppb.Timestamp) string {
	text := object + "#" + relation + "@" + subject
	if subjectRelation != "" {
		text += "#" + subjectRelation
	}
	if caveat != "" {
		text += " with " + caveat
		if len(given.GetFields()) > 0 {
			b, err := json.Marshal(given.AsMap())
			text += fmt.Sprintf(" %s %v", b, err)
		}
	}
	if until != nil {
		text += " until " + until.AsTime().String()
	}
	return text
}

func dialectText(r *v1.Relationship) string {
	object := func(o *v1.ObjectReference) string { return o.GetObjectType() + ":" + o.GetObjectId() }
	return storedText(object(r.GetResource()), r.GetRelation(), object(r.GetSubject().GetObject()), r.GetSubject().GetOptionalRelation(),
		r.GetOptionalCaveat().GetCaveatName(), r.GetOptionalCaveat().GetContext(), r.GetOptionalExpiresAt())
}

func nativeText(t *pembav1.Tuple) string {
	object := func(o *pembav1.Object) string { return o.GetType() + ":" + o.GetId() }
	return storedText(object(t.GetObject()), t.GetRelation(), object(t.GetSubject().GetObject()), t.GetSubject().GetRelation(),
		t.GetCaveat().GetName(), t.GetCaveat().GetContext(), t.GetExpiresAt())
}

// A when is the state that a question is asked of, and what is known of the answer.
type when struct {
	consistency *v1.Consistency
	// exact is whether the answer is from the revision of token; else it is from
	// that or a later one, with the same relationships.
	exact bool
	token string
	// stored is what the state has.
	stored []graph.Tuple
	// asked is before the question.
	asked graph.Instant
}

func (x *twinWorld) when() when {
	last := x.moments[len(x.moments)-1]
	some := enginetest.Choose(x.World, x.moments)
	w := when{token: last.token, stored: last.stored, asked: graph.InstantOf(time.Now())}
	token := &v1.ZedToken{Token: some.token}
	switch x.IntN(8) {
	case 0:
		w.consistency = fullyConsistent
	case 1: // The newest state of the node, which is alone.
	case 2:
		w.consistency = &v1.Consistency{Requirement: &v1.Consistency_AtLeastAsFresh{AtLeastAsFresh: token}}
	default:
		w.consistency = &v1.Consistency{Requirement: &v1.Consistency_AtExactSnapshot{AtExactSnapshot: token}}
		w.exact, w.token, w.stored = true, some.token, some.stored
		if some.token != last.token {
			x.past++
		}
	}
	return w
}

// exactly is the native words for the state of an answer, which has no token when
// it is a stream without results. It fails unless the answer is from the state that
// was asked for.
func (x *twinWorld) exactly(w when, at *v1.ZedToken, what string) *pembav1.Consistency {
	x.t.Helper()
	token := w.token
	if at != nil {
		token = at.GetToken()
		if asked, answered := x.revision(w.token), x.revision(token); answered < asked || w.exact && answered > asked {
			x.t.Fatalf("%s: asked at revision %d, answered at %d (%v)", what, asked, answered, w.consistency)
		}
	}
	return &pembav1.Consistency{Requirement: &pembav1.Consistency_ExactlyAt{ExactlyAt: &pembav1.Zookie{Token: nativeToken(token)}}}
}

// nativeToken is a token in the form of base64 of the native API, which reads no
// other; this one reads both.
func nativeToken(token string) string {
	return strings.NewReplacer("+", "-", "/", "_", "=", "").Replace(token)
}

// revision reads the revision of a token.
func (x *twinWorld) revision(token string) uint64 {
	x.t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(nativeToken(token))
	if err != nil || len(b) < 25 {
		x.t.Fatalf("the token %q has %d bytes: %v", token, len(b), err)
	}
	return binary.BigEndian.Uint64(b[17:25])
}

// wantSame compares what the two said. A token pins no instant, so that the native
// answer is later by a little: when a lifetime has ended since the first was asked
// for, a difference says nothing. It reports whether they are the same.
func (x *twinWorld) wantSame(what string, w when, got, native string) bool {
	x.t.Helper()
	x.questions++
	if got == native {
		return true
	}
	if !x.endedSince(w) {
		x.t.Fatalf("%s:\ngot    %s\nnative %s", what, got, native)
	}
	return false
}

// endedSince reports whether a lifetime has ended since w was asked.
func (x *twinWorld) endedSince(w when) bool {
	for _, tuple := range w.stored {
		if tuple.ValidUntil >= w.asked && tuple.ValidUntil <= graph.InstantOf(time.Now()) {
			x.overtaken++
			return true
		}
	}
	return false
}

// failed reports whether a question cost too much in this API, and so has to in the
// other, unless a lifetime has ended that made it as costly. Any other error is a failure
// of the test.
func (x *twinWorld) failed(what string, w when, err, native error) bool {
	x.t.Helper()
	costly, nativeCostly := status.Code(err) == codes.FailedPrecondition, status.Code(native) == codes.ResourceExhausted
	switch {
	case err == nil && native == nil:
		return false
	case costly && nativeCostly:
		x.costly++
	case !costly && err != nil, !nativeCostly && native != nil, !x.endedSince(w):
		x.t.Fatalf("%s: %v; native: %v", what, err, native)
	}
	return true
}

func decisionText(d pembav1.Decision, missing []string) string {
	switch d {
	case pembav1.Decision_DECISION_ALLOWED:
		return "yes"
	case pembav1.Decision_DECISION_DENIED:
		return "no"
	case pembav1.Decision_DECISION_CONDITIONAL:
		return "needs " + strings.Join(missing, ",")
	}
	return d.String()
}

// foundText is a result of a lookup in the words of resources and subjects.
func foundText(id string, d pembav1.Decision, missing []string) string {
	switch d {
	case pembav1.Decision_DECISION_ALLOWED:
		return id
	case pembav1.Decision_DECISION_CONDITIONAL:
		return id + "?" + strings.Join(missing, ",")
	}
	return id + "!" + d.String()
}

// A question is a check in words of no API.
type question struct {
	object  graph.Object
	name    string
	subject graph.Subject
	context *structpb.Struct
}

func (q question) String() string {
	return fmt.Sprintf("%s:%s#%s@%s %v", q.object.Type, q.object.ID, q.name, q.subject, q.context.AsMap())
}

// question makes one, more often than not about what is stored, and about wildcards
// more often than there are, so that not all answers are no.
func (x *twinWorld) question(w when) question {
	q := question{object: x.object(w), subject: enginetest.Choose(x.World, x.Subjects), context: x.givenContext()}
	q.name = x.name(q.object.Type)
	if len(w.stored) > 0 && !x.OneIn(4) {
		tuple := enginetest.Choose(x.World, w.stored)
		if i := slices.IndexFunc(w.stored, func(t graph.Tuple) bool { return t.Subject.ID == graph.Wildcard && x.OneIn(2) }); i >= 0 {
			tuple = w.stored[i]
		}
		q.object, q.subject = tuple.Object, tuple.Subject
		q.name = enginetest.Choose(x.World, []string{tuple.Relation, "perm1", x.name(q.object.Type)})
		if q.subject.ID == graph.Wildcard {
			q.subject.ID = enginetest.Choose(x.World, []string{"stranger", x.Objects[0].ID, x.Objects[1].ID})
		}
	}
	return q
}

func (x *twinWorld) givenContext() *structpb.Struct {
	given := x.Context()
	if given == nil {
		return nil
	}
	s, err := structpb.NewStruct(given)
	if err != nil {
		x.t.Fatal(err)
	}
	return s
}

// object chooses one whose type has names.
func (x *twinWorld) object(w when) graph.Object {
	if len(w.stored) > 0 && !x.OneIn(4) {
		return enginetest.Choose(x.World, w.stored).Object
	}
	return enginetest.Choose(x.World, x.Objects[enginetest.IDsPerType:])
}

func (x *twinWorld) name(objectType string) string {
	var names []string
	d := x.Schema.Definition(objectType)
	for _, r := range d.Relations {
		names = append(names, r.Name)
	}
	for _, p := range d.Permissions {
		names = append(names, p.Name)
	}
	return enginetest.Choose(x.World, names)
}

func (x *twinWorld) checks() {
	for range 5 {
		w := x.when()
		q := x.question(w)
		traced := x.OneIn(4)
		got, err := x.dialect.CheckPermission(testContext(x.t), &v1.CheckPermissionRequest{
			Consistency: w.consistency, Resource: &v1.ObjectReference{ObjectType: q.object.Type, ObjectId: q.object.ID}, Permission: q.name,
			Subject: subjectOf(q.subject.Type, q.subject.ID, q.subject.Relation), Context: q.context, WithTracing: traced,
		})
		what := "check " + q.String()
		if err != nil {
			x.t.Fatalf("%s: %v", what, err)
		}
		native, err := x.native.Check(testContext(x.t), &pembav1.CheckRequest{
			Store: x.store, Consistency: x.exactly(w, got.GetCheckedAt(), what),
			Object: nativeObject(q.object), Permission: q.name, Subject: nativeSubject(q.subject), Context: q.context,
		})
		if err != nil {
			x.t.Fatalf("%s: native: %v", what, err)
		}
		x.wantSame(what, w, permissionshipText(got.GetPermissionship(), got.GetPartialCaveatInfo()), decisionText(native.GetDecision(), native.GetMissing()))
		x.checksAnswered(native.GetDecision())
		x.questionMix.checks++
		if traced {
			sound(x.t, got.GetDebugTrace(), map[string]bool{})
			x.traces++
			if traced, answered := got.GetDebugTrace().GetCheck().GetResult().String(), got.GetPermissionship().String(); traced != answered {
				x.t.Fatalf("%s: the trace says %s, the answer %s", what, traced, answered)
			}
		}
	}
}

func (x *twinWorld) checksAnswered(d pembav1.Decision) {
	switch d {
	case pembav1.Decision_DECISION_ALLOWED:
		x.yes++
	case pembav1.Decision_DECISION_CONDITIONAL:
		x.conditional++
	default:
		x.no++
	}
}

// bulk asks for several checks at once, of which some are wrong and fail alone.
func (x *twinWorld) bulk() {
	w := x.when()
	r, n := &v1.CheckBulkPermissionsRequest{Consistency: w.consistency, WithTracing: x.OneIn(8)}, &pembav1.CheckBulkRequest{Store: x.store}
	for range 12 {
		q := x.question(w)
		switch x.IntN(20) {
		case 0:
			q.name = "nowhere"
		case 1:
			q.subject = graph.Subject{Object: graph.Object{Type: "user", ID: graph.Wildcard}}
		}
		r.Items = append(r.Items, &v1.CheckBulkPermissionsRequestItem{
			Resource: &v1.ObjectReference{ObjectType: q.object.Type, ObjectId: q.object.ID}, Permission: q.name,
			Subject: subjectOf(q.subject.Type, q.subject.ID, q.subject.Relation), Context: q.context,
		})
		n.Items = append(n.Items, &pembav1.CheckBulkItem{Object: nativeObject(q.object), Permission: q.name, Subject: nativeSubject(q.subject), Context: q.context})
	}
	got, err := x.dialect.CheckBulkPermissions(testContext(x.t), r)
	if err != nil {
		x.t.Fatalf("bulk check: %v", err)
	}
	n.Consistency = x.exactly(w, got.GetCheckedAt(), "bulk check")
	native, err := x.native.CheckBulk(testContext(x.t), n)
	if err != nil {
		x.t.Fatalf("bulk check: native: %v", err)
	}
	if len(got.GetPairs()) != len(r.GetItems()) || len(native.GetResults()) != len(r.GetItems()) {
		x.t.Fatalf("bulk check: %d pairs, native %d results, of %d items", len(got.GetPairs()), len(native.GetResults()), len(r.GetItems()))
	}
	for i, pair := range got.GetPairs() {
		if !proto.Equal(pair.GetRequest(), r.GetItems()[i]) {
			x.t.Fatalf("bulk check: the pair %d is of %v, not of %v", i, pair.GetRequest(), r.GetItems()[i])
		}
		said := permissionshipText(pair.GetItem().GetPermissionship(), pair.GetItem().GetPartialCaveatInfo())
		if pair.GetError() != nil {
			said = codes.Code(uint32(pair.GetError().GetCode())).String()
			x.wrongItems++
		}
		result := native.GetResults()[i]
		want := decisionText(result.GetDecision(), result.GetMissing())
		if result.GetError() != nil {
			want = codes.Code(uint32(result.GetError().GetCode())).String()
		} else {
			x.checksAnswered(result.GetDecision())
		}
		x.wantSame(fmt.Sprintf("item %d of a bulk check: %v", i, r.GetItems()[i]), w, said, want)
		x.items++
	}
}

func (x *twinWorld) lookupResources() {
	for range 3 {
		w := x.when()
		q := x.question(w)
		what := "resources " + q.String()
		r := &v1.LookupResourcesRequest{
			Consistency: w.consistency, ResourceObjectType: q.object.Type, Permission: q.name,
			Subject: subjectOf(q.subject.Type, q.subject.ID, q.subject.Relation), Context: q.context, OptionalLimit: uint32(x.IntN(4)),
		}
		var got []string
		var at *v1.ZedToken
		var failed error
		for {
			page, last, err := resources(x.t, x.conn, r)
			got, failed = append(got, page...), err
			if last != nil {
				if at != nil && at.GetToken() != last.GetLookedUpAt().GetToken() {
					x.t.Fatalf("%s: a page at %v behind one at %v", what, last.GetLookedUpAt(), at)
				}
				at = last.GetLookedUpAt()
			}
			if err != nil || r.GetOptionalLimit() == 0 || len(page) < int(r.GetOptionalLimit()) {
				break // A page that is not the last is full.
			}
			r.OptionalCursor = last.GetAfterResultCursor()
			r.Consistency = fullyConsistent // The cursor says which state it is.
			x.pages++
		}
		stream, err := x.native.LookupResources(testContext(x.t), &pembav1.LookupResourcesRequest{
			Store: x.store, Consistency: x.exactly(w, at, what), Type: q.object.Type, Permission: q.name, Subject: nativeSubject(q.subject), Context: q.context,
		})
		if err != nil {
			x.t.Fatal(err)
		}
		results, err := drainOrError(stream.Recv)
		if x.failed(what, w, failed, err) {
			continue
		}
		var native []string
		for _, n := range results {
			native = append(native, foundText(n.GetObject().GetId(), n.GetDecision(), n.GetMissing()))
		}
		// One result more than once, here or there, is a difference too.
		slices.Sort(got)
		slices.Sort(native)
		x.wantSame(what, w, strings.Join(got, " "), strings.Join(native, " "))
		x.resources++
	}
}

// drainOrError receives a stream to its end, or to its error.
func drainOrError[T any](recv func() (T, error)) (all []T, err error) {
	for {
		r, err := recv()
		if err == nil {
			all = append(all, r)
			continue
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return all, err
	}
}

func (x *twinWorld) lookupSubjects() {
	for range 3 {
		w := x.when()
		q := x.question(w)
		like := enginetest.Choose(x.World, x.Subjects)
		if !x.OneIn(3) {
			like = graph.Subject{Object: graph.Object{Type: "user"}}
		}
		what := fmt.Sprintf("subjects %s:%s#%s@%s#%s %v", q.object.Type, q.object.ID, q.name, like.Type, like.Relation, q.context.AsMap())
		r := &v1.LookupSubjectsRequest{
			Consistency: w.consistency, Resource: &v1.ObjectReference{ObjectType: q.object.Type, ObjectId: q.object.ID}, Permission: q.name,
			SubjectObjectType: like.Type, OptionalSubjectRelation: like.Relation, Context: q.context, OptionalConcreteLimit: uint32(x.IntN(4)),
		}
		concreteOnly := x.OneIn(4)
		if concreteOnly {
			r.WildcardOption = v1.LookupSubjectsRequest_WILDCARD_OPTION_EXCLUDE_WILDCARDS
		}
		var got []string
		var at *v1.ZedToken
		var failed error
		for {
			page, last, err := subjects(x.t, x.conn, r)
			got, failed = append(got, page...), err
			if last != nil {
				if at != nil && at.GetToken() != last.GetLookedUpAt().GetToken() {
					x.t.Fatalf("%s: a page at %v behind one at %v", what, last.GetLookedUpAt(), at)
				}
				at = last.GetLookedUpAt()
			}
			concrete := len(page)
			if len(page) > 0 && strings.HasPrefix(page[0], graph.Wildcard) {
				concrete-- // The limit is one of concrete subjects: a wildcard comes besides.
			}
			if err != nil || r.GetOptionalConcreteLimit() == 0 || concrete < int(r.GetOptionalConcreteLimit()) {
				break
			}
			if concrete > int(r.GetOptionalConcreteLimit()) {
				x.t.Fatalf("%s: a page of %d has %q", what, r.GetOptionalConcreteLimit(), page)
			}
			r.OptionalCursor, r.Consistency = last.GetAfterResultCursor(), nil
			x.pages++
		}
		stream, err := x.native.LookupSubjects(testContext(x.t), &pembav1.LookupSubjectsRequest{
			Store: x.store, Consistency: x.exactly(w, at, what), Object: nativeObject(q.object), Permission: q.name,
			SubjectType: like.Type, SubjectRelation: like.Relation, Context: q.context,
		})
		if err != nil {
			x.t.Fatal(err)
		}
		results, err := drainOrError(stream.Recv)
		if x.failed(what, w, failed, err) {
			continue
		}
		var native []string
		for _, n := range results {
			id := n.GetSubject().GetObject().GetId()
			if id == graph.Wildcard {
				if concreteOnly {
					continue // wildcard_option, which the native API does not have.
				}
				x.wildcards++
			}
			text := foundText(id, n.GetDecision(), n.GetMissing())
			for _, e := range n.GetExcluded() {
				text += "-" + foundText(e.GetSubject().GetObject().GetId(), e.GetDecision(), e.GetMissing())
				x.excluded++
			}
			native = append(native, text)
		}
		slices.Sort(got)
		slices.Sort(native)
		x.wantSame(what, w, strings.Join(got, " "), strings.Join(native, " "))
		x.subjects++
	}
}

// expand compares the leaves of trees, and whom the trees hold by the algebra of
// their nodes, caveats left aside. This API groups nodes in another way, tells
// nothing of caveats, and takes no context.
func (x *twinWorld) expand() {
	for range 2 {
		w := x.when()
		q := x.question(w)
		what := "expand " + q.String()
		got, failed := x.dialect.ExpandPermissionTree(testContext(x.t), &v1.ExpandPermissionTreeRequest{
			Consistency: w.consistency, Resource: &v1.ObjectReference{ObjectType: q.object.Type, ObjectId: q.object.ID}, Permission: q.name,
		})
		native, err := x.native.Expand(testContext(x.t), &pembav1.ExpandRequest{
			Store: x.store, Consistency: x.exactly(w, got.GetExpandedAt(), what), Object: nativeObject(q.object), Permission: q.name,
		})
		if x.failed(what, w, failed, err) {
			continue
		}
		leaves, want := dialectLeaves(nil, got.GetTreeRoot()), nativeLeaves(nil, native.GetTree())
		slices.Sort(leaves)
		slices.Sort(want)
		if !x.wantSame(what, w, strings.Join(leaves, "\n"), strings.Join(want, "\n")) {
			continue
		}
		for _, leaf := range slices.Compact(leaves) {
			_, subject, _ := strings.Cut(leaf, "@")
			if holds, want := dialectHolds(got.GetTreeRoot(), subject), nativeHolds(native.GetTree(), subject); holds != want {
				x.t.Fatalf("%s: the tree holds %s: %v, want %v\n%s", what, subject, holds, want, treeText(got.GetTreeRoot(), ""))
			}
		}
		x.trees++
	}
}

func (x *twinWorld) read() {
	for range 3 {
		w := x.when()
		f, n := &v1.RelationshipFilter{}, &pembav1.TupleFilter{}
		var tuple graph.Tuple
		if len(w.stored) > 0 {
			tuple = enginetest.Choose(x.World, w.stored)
		} else {
			tuple.Object = enginetest.Choose(x.World, x.Objects)
		}
		filter := graph.Filter{}
		set := func(dialect, native, model *string, value string) {
			if value != "" && x.OneIn(2) {
				*dialect, *native, *model = value, value, value
			}
		}
		set(&f.ResourceType, &n.ObjectType, &filter.ObjectType, tuple.Object.Type)
		set(&f.OptionalRelation, &n.Relation, &filter.Relation, tuple.Relation)
		if x.OneIn(2) {
			set(&f.OptionalResourceId, &n.ObjectId, &filter.ObjectID, tuple.Object.ID)
		} else {
			set(&f.OptionalResourceIdPrefix, &n.ObjectIdPrefix, &filter.ObjectIDPrefix, tuple.Object.ID[:1])
		}
		if tuple.Subject.Type != "" && x.OneIn(2) {
			s := &v1.SubjectFilter{SubjectType: tuple.Subject.Type}
			n.SubjectType, filter.SubjectType = s.SubjectType, s.SubjectType
			set(&s.OptionalSubjectId, &n.SubjectId, &filter.SubjectID, tuple.Subject.ID)
			if relation := tuple.Subject.Relation; x.OneIn(2) {
				s.OptionalRelation = &v1.SubjectFilter_RelationFilter{Relation: relation}
				n.SubjectRelation, filter.SubjectRelation = &relation, &relation
			}
			f.OptionalSubjectFilter = s
		}
		if proto.Size(f) == 0 { // Which only the native API reads as everything.
			f.ResourceType, n.ObjectType, filter.ObjectType = tuple.Object.Type, tuple.Object.Type, tuple.Object.Type
		}
		what := fmt.Sprintf("read %v", f)
		r := &v1.ReadRelationshipsRequest{Consistency: w.consistency, RelationshipFilter: f, OptionalLimit: uint32(x.IntN(4))}
		var got []string
		var at *v1.ZedToken
		for {
			stream, err := x.dialect.ReadRelationships(testContext(x.t), r)
			if err != nil {
				x.t.Fatal(err)
			}
			page := drain(x.t, stream.Recv)
			for _, m := range page {
				got = append(got, dialectText(m.GetRelationship()))
				if at != nil && at.GetToken() != m.GetReadAt().GetToken() {
					x.t.Fatalf("%s: a page at %v behind one at %v", what, m.GetReadAt(), at)
				}
				at = m.GetReadAt()
			}
			if r.GetOptionalLimit() == 0 || len(page) < int(r.GetOptionalLimit()) {
				break
			}
			r.OptionalCursor, r.Consistency = page[len(page)-1].GetAfterResultCursor(), fullyConsistent
			x.pages++
		}
		x.wantStored(what, w, got, filter)
		x.wantSame(what, w, strings.Join(got, "\n"), strings.Join(x.nativeRead(x.exactly(w, at, what), n), "\n"))
		x.reads++
	}
}

// nativeRead reads what matches a filter by the native API.
func (x *twinWorld) nativeRead(at *pembav1.Consistency, f *pembav1.TupleFilter) (found []string) {
	x.t.Helper()
	stream, err := x.tuples.ReadTuples(testContext(x.t), &pembav1.ReadTuplesRequest{Store: x.store, Consistency: at, Filter: f})
	if err != nil {
		x.t.Fatal(err)
	}
	for _, m := range drain(x.t, stream.Recv) {
		found = append(found, nativeText(m.GetTuple()))
	}
	return found
}

// settled is how far from the beginning of a world a lifetime ends that is over, or
// goes on, at each of its moments.
const settled = graph.Instant(2 * time.Minute / time.Microsecond)

// wantStored holds what was read against what was written, but for lifetimes that
// end while the test runs.
func (x *twinWorld) wantStored(what string, w when, got []string, filter graph.Filter) {
	x.t.Helper()
	var want []string
	for _, tuple := range w.stored {
		text := dialectText(x.relationship(tuple))
		if until := tuple.ValidUntil; until != 0 && until > x.began-settled && until < x.began+settled {
			got = slices.DeleteFunc(slices.Clone(got), func(s string) bool { return s == text })
			continue
		}
		if filter.Matches(&tuple) && tuple.Living(x.began) {
			want = append(want, text)
		}
	}
	got = slices.Clone(got)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		x.t.Fatalf("%s: read\n%s\nwritten\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// export compares everything that is stored, in pages, of which the later come from
// a cursor of an earlier.
func (x *twinWorld) export() {
	w := x.when()
	r := &v1.ExportBulkRelationshipsRequest{Consistency: w.consistency, OptionalLimit: 1 + uint32(x.IntN(20))}
	read := func() (pages []*v1.ExportBulkRelationshipsResponse) {
		stream, err := x.dialect.ExportBulkRelationships(testContext(x.t), r)
		if err != nil {
			x.t.Fatal(err)
		}
		return drain(x.t, stream.Recv)
	}
	pages := read()
	if len(pages) > 1 {
		kept := 1 + x.IntN(len(pages)-1)
		r.OptionalCursor, r.Consistency = pages[kept-1].GetAfterResultCursor(), nil
		pages = append(pages[:kept], read()...)
		x.pages++
	}
	var got []string
	for i, page := range pages {
		if n := len(page.GetRelationships()); n > int(r.GetOptionalLimit()) || n < int(r.GetOptionalLimit()) && i < len(pages)-1 {
			x.t.Fatalf("export: page %d of %d has %d relationships, of %d", i, len(pages), n, r.GetOptionalLimit())
		}
		for _, relationship := range page.GetRelationships() {
			got = append(got, dialectText(relationship))
		}
	}
	x.wantStored("export", w, got, graph.Filter{})
	native := x.nativeRead(x.exactly(w, nil, "export"), &pembav1.TupleFilter{})
	slices.Sort(got)
	slices.Sort(native)
	x.wantSame("export", w, strings.Join(got, "\n"), strings.Join(native, "\n"))
	x.exports++
}

func dialectLeaves(leaves []string, p *v1.PermissionRelationshipTree) []string {
	for _, s := range p.GetLeaf().GetSubjects() {
		leaves = append(leaves, fmt.Sprintf("%s:%s#%s@%s", p.GetExpandedObject().GetObjectType(), p.GetExpandedObject().GetObjectId(), p.GetExpandedRelation(), dialectSubject(s)))
	}
	for _, c := range p.GetIntermediate().GetChildren() {
		leaves = dialectLeaves(leaves, c)
	}
	return leaves
}

func dialectSubject(s *v1.SubjectReference) string {
	return fmt.Sprintf("%s:%s#%s", s.GetObject().GetObjectType(), s.GetObject().GetObjectId(), s.GetOptionalRelation())
}

// dialectHolds reports whether a tree holds one of the subjects of its leaves.
func dialectHolds(p *v1.PermissionRelationshipTree, subject string) bool {
	for _, s := range p.GetLeaf().GetSubjects() {
		if dialectSubject(s) == subject {
			return true
		}
	}
	children := p.GetIntermediate().GetChildren()
	holds := func(c *v1.PermissionRelationshipTree) bool { return dialectHolds(c, subject) }
	switch p.GetIntermediate().GetOperation() {
	case v1.AlgebraicSubjectSet_OPERATION_UNION:
		return slices.ContainsFunc(children, holds)
	case v1.AlgebraicSubjectSet_OPERATION_INTERSECTION:
		return len(children) > 0 && !slices.ContainsFunc(children, func(c *v1.PermissionRelationshipTree) bool { return !holds(c) })
	case v1.AlgebraicSubjectSet_OPERATION_EXCLUSION:
		return len(children) > 0 && holds(children[0]) && !slices.ContainsFunc(children[1:], holds)
	}
	return false
}

func nativeLeaves(leaves []string, t *pembav1.Tree) []string {
	for _, leaf := range t.GetLeaves() {
		leaves = append(leaves, fmt.Sprintf("%s:%s#%s@%s", t.GetObject().GetType(), t.GetObject().GetId(), t.GetName(), nativeSubjectText(leaf.GetSubject())))
	}
	for _, c := range t.GetChildren() {
		leaves = nativeLeaves(leaves, c)
	}
	return leaves
}

func nativeSubjectText(s *pembav1.Subject) string {
	return fmt.Sprintf("%s:%s#%s", s.GetObject().GetType(), s.GetObject().GetId(), s.GetRelation())
}

func nativeHolds(t *pembav1.Tree, subject string) bool {
	children := t.GetChildren()
	holds := func(c *pembav1.Tree) bool { return nativeHolds(c, subject) }
	switch t.GetOperation() {
	case pembav1.Tree_OPERATION_UNION:
		return slices.ContainsFunc(children, holds)
	case pembav1.Tree_OPERATION_INTERSECTION:
		return len(children) > 0 && !slices.ContainsFunc(children, func(c *pembav1.Tree) bool { return !holds(c) })
	case pembav1.Tree_OPERATION_EXCLUSION:
		return len(children) > 0 && holds(children[0]) && !slices.ContainsFunc(children[1:], holds)
	}
	return slices.ContainsFunc(t.GetLeaves(), func(leaf *pembav1.Tuple) bool { return nativeSubjectText(leaf.GetSubject()) == subject })
}
