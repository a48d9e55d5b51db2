package enginetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

// Start is the time at which every Env begins.
var Start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// An Env is an engine over a graph in memory with a clock of its own. It is
// used by one goroutine.
type Env struct {
	Engine *engine.Engine
	// Now is the time that changes are stamped with and questions are judged
	// at.
	Now graph.Instant
	// Store is the store that Write changes and Snapshot reads; at first the
	// default one.
	Store graph.StoreID

	// ResidentBytes is graph.Config's, from the next Restart on.
	ResidentBytes int64

	config   engine.Config
	fs       vfs.FS
	revision graph.Revision
}

// New returns an Env with an empty default store: revision 1 is taken by the
// mutation that makes it.
func New(config engine.Config) (*Env, error) {
	e := &Env{config: config, fs: vfs.NewMem(), Now: graph.InstantOf(Start), Store: graph.DefaultStore}
	if err := e.open(); err != nil {
		return nil, err
	}
	result, err := e.Apply(&graph.Mutation{Init: &graph.Init{ClusterID: [16]byte{1}}})
	if err == nil && result.Refusal != nil {
		err = result.Refusal
	}
	return e, err
}

func (e *Env) open() error {
	db, err := graph.Open(graph.Config{Dir: "state", FS: e.fs, ResidentBytes: e.ResidentBytes})
	if err != nil {
		return err
	}
	e.Engine = engine.New(db, e.config)
	return nil
}

// Close closes the graph.
func (e *Env) Close() error { return e.Engine.DB().Close() }

// Restart closes the graph and opens it again, with an engine that knows
// nothing.
func (e *Env) Restart() error {
	if err := e.Close(); err != nil {
		return err
	}
	return e.open()
}

// Apply applies a mutation at the next revision.
func (e *Env) Apply(m *graph.Mutation) (engine.Result, error) {
	e.revision++
	return e.Engine.Apply(e.revision, 1, e.Now, m)
}

// Write applies a mutation of the store and returns its refusal as an error.
func (e *Env) Write(m *graph.Mutation) (engine.Result, error) {
	m.Store = e.Store
	if m.StoreChange != nil && m.StoreChange.Operation == graph.CreateStore {
		m.Store = 0
	}
	result, err := e.Apply(m)
	if err == nil && result.Refusal != nil {
		err = result.Refusal
	}
	return result, err
}

// Schema writes a schema.
func (e *Env) Schema(text string) error {
	_, err := e.Write(&graph.Mutation{Schema: &graph.WriteSchema{Text: text}})
	return err
}

// Touch touches tuples given as text.
func (e *Env) Touch(tuples ...string) error {
	m := &graph.Mutation{}
	for _, text := range tuples {
		t, err := graph.ParseTuple(text)
		if err != nil {
			return err
		}
		m.Updates = append(m.Updates, graph.Update{Operation: graph.Touch, Tuple: t})
	}
	_, err := e.Write(m)
	return err
}

// Snapshot returns the newest state now.
func (e *Env) Snapshot() (*engine.Snapshot, error) {
	return e.Engine.Snapshot(e.Store, 0, e.Now, graph.Overlay{})
}

// Run runs the script at path in a new Env.
func Run(t *testing.T, path string) {
	t.Helper()
	e, err := New(engine.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}()
	datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
		t.Helper()
		return e.Handle(d)
	})
}

// Handle runs one command and returns its reply, errors included.
func (e *Env) Handle(d *datadriven.TestData) string {
	reply, err := e.handle(d)
	if err != nil {
		reply += errorString(err)
	}
	return reply
}

func errorString(err error) string {
	var refusal *engine.Refusal
	if errors.As(err, &refusal) {
		return fmt.Sprintf("%s: %v\n", refusal.Reason, refusal)
	}
	return fmt.Sprintf("error: %v\n", err)
}

func (e *Env) handle(d *datadriven.TestData) (string, error) {
	switch d.Cmd {
	case "schema":
		result, err := e.Write(&graph.Mutation{Schema: &graph.WriteSchema{Text: d.Input}})
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("revision %d\n", result.Revision), nil
	case "write":
		return e.write(d)
	case "delete":
		f, rest, err := filterOf(d.CmdArgs)
		if err != nil {
			return "", err
		}
		m := &graph.Mutation{Delete: &graph.DeleteMatching{Filter: f, Limit: 1000}}
		for _, a := range rest {
			switch a.Key {
			case "limit":
				if m.Delete.Limit, err = strconv.Atoi(a.Vals[0]); err != nil {
					return "", err
				}
			case "partial":
				m.Delete.AllowPartial = true
			default:
				return "", fmt.Errorf("unknown argument %s", a.Key)
			}
		}
		return written(e.Write(m))
	case "collect":
		return written(e.Write(&graph.Mutation{Collect: &graph.Collect{Limit: 1000}}))
	case "clock":
		seconds, err := strconv.Atoi(d.CmdArgs[0].Key)
		if err != nil {
			return "", err
		}
		e.Now += graph.Instant(seconds) * 1_000_000
		return e.Now.Time().Format(time.RFC3339) + "\n", nil
	case "restart":
		return "", e.Restart()
	case "reset":
		if err := e.Close(); err != nil {
			return "", err
		}
		fresh, err := New(e.config)
		if err == nil {
			*e = *fresh
		}
		return "", err
	case "changes":
		return e.changes()
	case "stage", "commit-stage", "drop-stage", "collect-stages":
		return e.stage(d)
	case "stages":
		stages, err := e.Engine.DB().Stages(e.Store)
		var b strings.Builder
		for _, info := range stages {
			b.WriteString(staged(info))
		}
		return b.String(), err
	case "stores", "use", "create-store", "set-store", "drop-store", "prune", "remove", "schemas":
		return e.store(d)
	}
	return e.ask(d)
}

func written(result engine.Result, err error) (string, error) {
	if err != nil {
		return "", err
	}
	text := fmt.Sprintf("revision %d: %d changed", result.Revision, result.Changed)
	if result.Partial {
		text += ", more match"
	}
	if result.Repeated {
		text += ", repeated"
	}
	return text + "\n", nil
}

func (e *Env) write(d *datadriven.TestData) (string, error) {
	m := &graph.Mutation{}
	operation := graph.Touch
	for _, a := range d.CmdArgs {
		switch a.Key {
		case "create":
			operation = graph.Create
		case "actor":
			m.RecordedActor = a.Vals[0]
		case "request":
			m.RequestID = []byte(a.Vals[0])
		default:
			return "", fmt.Errorf("unknown argument %s", a.Key)
		}
	}
	for _, line := range lines(d.Input) {
		word, rest, _ := strings.Cut(line, " ")
		switch word {
		case "if", "unless":
			f, _, err := filterOf(arguments(rest))
			if err != nil {
				return "", err
			}
			m.Preconditions = append(m.Preconditions, graph.Precondition{Filter: f, MustNotMatch: word == "unless"})
			continue
		}
		u := graph.Update{Operation: operation}
		if word == "delete" {
			u.Operation, line = graph.Delete, rest
		}
		var err error
		if u.Tuple, err = graph.ParseTuple(line); err != nil {
			return "", err
		}
		m.Updates = append(m.Updates, u)
	}
	return written(e.Write(m))
}

// stage runs one step of a staged change.
func (e *Env) stage(d *datadriven.TestData) (string, error) {
	m := &graph.Mutation{Stage: &graph.Stage{Operation: graph.StageCollect}}
	operation := graph.Touch
	for i, a := range d.CmdArgs {
		switch {
		case i == 0:
			copy(m.Stage.ID[:], a.Key)
		case a.Key == "chunk", a.Key == "chunks":
			n, err := strconv.ParseUint(a.Vals[0], 10, 32)
			if err != nil {
				return "", err
			}
			m.Stage.Chunk = uint32(n)
		case a.Key == "create":
			operation = graph.Create
		case a.Key == "digest-of":
			// The digest of chunks of one touched tuple each.
			for i, text := range a.Vals {
				t, err := graph.ParseTuple(text)
				if err != nil {
					return "", err
				}
				m.Stage.Digest = m.Stage.Digest.Next(uint32(i), []graph.Update{{Operation: graph.Touch, Tuple: t}})
			}
		case a.Key == "actor":
			m.RecordedActor = a.Vals[0]
		case a.Key == "request":
			m.RequestID = []byte(a.Vals[0])
		default:
			return "", fmt.Errorf("unknown argument %s", a.Key)
		}
	}
	switch d.Cmd {
	case "stage":
		m.Stage.Operation = graph.StageUpdates
	case "commit-stage":
		m.Stage.Operation = graph.StageCommit
	case "drop-stage":
		m.Stage.Operation = graph.StageDrop
	}
	for _, line := range lines(d.Input) {
		t, err := graph.ParseTuple(line)
		if err != nil {
			return "", err
		}
		m.Updates = append(m.Updates, graph.Update{Operation: operation, Tuple: t})
	}
	result, err := e.Write(m)
	if err != nil {
		return "", err
	}
	switch d.Cmd {
	case "stage":
		return staged(result.Stage), nil
	case "commit-stage":
		text, err := written(result, nil)
		return fmt.Sprintf("%s at revision %d\n", strings.TrimSpace(text), result.Stage.Committed), err
	}
	return fmt.Sprintf("revision %d\n", result.Revision), nil
}

func staged(info graph.StageInfo) string {
	return fmt.Sprintf("%s: %d updates in %d chunks, under the schema of revision %d\n",
		strings.TrimRight(string(info.ID[:]), "\x00"), info.Tuples, info.Chunks, info.Schema)
}

func (e *Env) changes() (string, error) {
	var b strings.Builder
	info, _ := e.Engine.DB().StoreInfo(e.Store)
	from := graph.Position{Revision: info.OldestLog}
	if from.Revision != 0 {
		fmt.Fprintf(&b, "what is before %s is forgotten\n", info.OldestLogAt)
	}
	changes, err := e.Engine.DB().Changes(e.Store, from, 1000)
	if err != nil {
		return "", err
	}
	for _, r := range changes {
		if r.SchemaChanged {
			fmt.Fprintf(&b, "at %d: schema\n", r.Revision)
		}
		for i, c := range r.Changes {
			fmt.Fprintf(&b, "%d at %d: %s %s", r.Sequence+uint64(i), r.Revision, c.Kind, c.Tuple.String())
			if r.RecordedActor != "" {
				fmt.Fprintf(&b, " by %s", r.RecordedActor)
			}
			b.WriteByte('\n')
		}
	}
	return b.String(), nil
}

// ask runs a question for each line of input.
func (e *Env) ask(d *datadriven.TestData) (string, error) {
	q, err := e.asking(d)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, line := range lines(d.Input) {
		if isSetting, err := q.set(line); err != nil {
			return "", err
		} else if isSetting {
			continue
		}
		if err := e.askLine(d.Cmd, q, line, &b); err != nil {
			b.WriteString(errorString(err))
		}
	}
	return b.String(), nil
}

// asking is what the arguments of a question say.
type asking struct {
	at      graph.Revision
	asOf    graph.Instant
	trace   bool
	context schema.Context
	overlay graph.Overlay
	limit   int
	after   engine.Position
	budget  engine.Budget
}

func (e *Env) asking(d *datadriven.TestData) (q asking, err error) {
	number := func(s string) (n int) {
		if err == nil {
			n, err = strconv.Atoi(s)
		}
		return n
	}
	for _, a := range d.CmdArgs {
		switch a.Key {
		case "at":
			q.at = graph.Revision(number(a.Vals[0]))
		case "as_of":
			at, timeErr := time.Parse(time.RFC3339, a.Vals[0])
			q.asOf, err = graph.InstantOf(at), errors.Join(err, timeErr)
		case "trace":
			q.trace = true
		case "limit":
			q.limit = number(a.Vals[0])
		case "after":
			q.after = engine.Position(number(a.Vals[0]))
		case "steps":
			q.budget.Steps = number(a.Vals[0])
		default:
			err = fmt.Errorf("unknown argument %s", a.Key)
		}
	}
	return q, err
}

// set reads a line of input that sets something for the questions below it.
func (q *asking) set(line string) (isSetting bool, err error) {
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "context":
		q.context = nil
		return true, json.Unmarshal([]byte(rest), &q.context)
	case "add", "remove":
		t, err := graph.ParseTuple(rest)
		if word == "add" {
			q.overlay.Added = append(q.overlay.Added, t)
		} else {
			q.overlay.Removed = append(q.overlay.Removed, t)
		}
		return true, err
	}
	return false, nil
}

func (e *Env) askLine(command string, q asking, line string, b *strings.Builder) error {
	ctx := context.Background()
	at, instant := q.at, e.Now
	if q.asOf != 0 {
		var err error
		if at, instant, err = e.AsOf(q.asOf); err != nil {
			return err
		}
	}
	s, err := e.Engine.Snapshot(e.Store, at, instant, q.overlay)
	if err != nil {
		return err
	}
	defer s.Close()
	if command == "read" || command == "count" {
		f, _, err := filterOf(arguments(line))
		if err != nil {
			return err
		}
		if err := s.JudgeFilter("filter", f); err != nil {
			return err
		}
		if command == "count" {
			n, err := s.Graph().Count(f)
			fmt.Fprintln(b, n)
			return err
		}
		tuples, _, err := s.Graph().Read(f, nil, 1000)
		for i := range tuples {
			fmt.Fprintf(b, "%s created %d\n", &tuples[i], tuples[i].Created)
		}
		return err
	}
	left, right, _ := strings.Cut(line, "@")
	typeID, name, _ := strings.Cut(left, "#")
	object, err := graph.ParseObject(typeID)
	ofResources := command == "lookup-resources" || command == "count-resources"
	if err != nil && !ofResources {
		return err
	}
	subject := graph.Subject{}
	if command == "check" || ofResources {
		if subject, err = graph.ParseSubject(right); err != nil {
			return err
		}
	}
	switch command {
	case "check":
		answer, err := s.Check(ctx, engine.Check{
			Object: object, Name: name, Subject: subject, Context: q.context, Trace: q.trace, Budget: q.budget,
		})
		if err != nil {
			return err
		}
		fmt.Fprintln(b, verdictString(answer.Verdict))
		if answer.Trace != nil {
			renderTrace(b, answer.Trace, "  ")
		}
	case "expand":
		tree, err := s.Expand(ctx, engine.Expand{Object: object, Name: name, Context: q.context, Budget: q.budget})
		if err != nil {
			return err
		}
		b.WriteString(tree.String())
	case "lookup-resources":
		return s.LookupResources(ctx, engine.LookupResources{
			Type: typeID, Name: name, Subject: subject, Context: q.context, Limit: q.limit, After: q.after, Budget: q.budget,
		}, func(r engine.Resource) error {
			fmt.Fprintf(b, "%s:%s %s\n", r.Object.Type, r.Object.ID, verdictString(r.Verdict))
			return nil
		})
	case "lookup-subjects":
		typ, relation, _ := strings.Cut(right, "#")
		return s.LookupSubjects(ctx, engine.LookupSubjects{
			Object: object, Name: name, SubjectType: typ, SubjectRelation: relation,
			Context: q.context, Limit: q.limit, After: q.after, Budget: q.budget,
		}, func(f engine.FoundSubject) error {
			fmt.Fprintf(b, "%s %s", f.Subject, verdictString(f.Verdict))
			for _, x := range f.Excluded {
				fmt.Fprintf(b, " except %s", x.Subject)
				if x.Decision == engine.Conditional {
					fmt.Fprintf(b, " (%s)", strings.Join(x.Missing, ", "))
				}
			}
			b.WriteByte('\n')
			return nil
		})
	case "count-resources":
		n, err := s.CountResources(ctx, engine.LookupResources{
			Type: typeID, Name: name, Subject: subject, Context: q.context, Budget: q.budget,
		})
		if err != nil {
			return err
		}
		fmt.Fprintf(b, "%d allowed, %d conditional\n", n.Allowed, n.Conditional)
	case "count-subjects":
		typ, relation, _ := strings.Cut(right, "#")
		n, wildcard, err := s.CountSubjects(ctx, engine.LookupSubjects{
			Object: object, Name: name, SubjectType: typ, SubjectRelation: relation, Context: q.context, Budget: q.budget,
		})
		if err != nil {
			return err
		}
		fmt.Fprintf(b, "%d allowed, %d conditional", n.Allowed, n.Conditional)
		if wildcard != nil {
			fmt.Fprintf(b, ", the wildcard %s", verdictString(*wildcard))
		}
		b.WriteByte('\n')
	default:
		return fmt.Errorf("unknown command %s", command)
	}
	return nil
}

// AsOf returns the revision and instant at which the store is read as of a time.
func (e *Env) AsOf(at graph.Instant) (graph.Revision, graph.Instant, error) {
	rev, err := e.Engine.DB().RevisionAt(e.Store, at)
	if rev == 0 && err == nil {
		// It was empty, as when it was created.
		info, _ := e.Engine.DB().StoreInfo(e.Store)
		rev = info.Created
	}
	return rev, at, err
}

// store runs a command about stores.
func (e *Env) store(d *datadriven.TestData) (string, error) {
	db := e.Engine.DB()
	var b strings.Builder
	switch d.Cmd {
	case "stores":
		for _, s := range db.Stores() {
			fmt.Fprintf(&b, "%s: store %d of revision %d, %d tuples, changed at %d", s.Name, s.ID, s.Created, s.Tuples, s.Changed)
			if s.OldestHistory != 0 {
				fmt.Fprintf(&b, ", history from %d at %s", s.OldestHistory, s.OldestHistoryAt)
			}
			if s.OldestLog != 0 {
				fmt.Fprintf(&b, ", log from %d at %s", s.OldestLog, s.OldestLogAt)
			}
			b.WriteByte('\n')
		}
		return b.String(), nil
	case "use":
		info, ok := db.StoreNamed(d.CmdArgs[0].Key)
		if !ok {
			return "", fmt.Errorf("store %s: %w", d.CmdArgs[0].Key, graph.ErrUnknownStore)
		}
		e.Store = info.ID
		return "", nil
	case "remove":
		for more := true; more; {
			var err error
			if more, err = db.Remove(e.Store, 100); err != nil {
				return "", err
			}
		}
		return "", nil
	case "schemas":
		versions, err := db.SchemaVersions(e.Store, 0, 100)
		for _, v := range versions {
			fmt.Fprintf(&b, "revision %d of %s\n", v.Revision, v.Instant)
		}
		return b.String(), err
	case "prune":
		return written(e.Write(&graph.Mutation{Prune: &graph.Prune{}}))
	}
	c := &graph.StoreChange{Operation: map[string]graph.StoreOperation{
		"create-store": graph.CreateStore, "set-store": graph.SetStore, "drop-store": graph.DropStore,
	}[d.Cmd]}
	for _, a := range d.CmdArgs {
		if len(a.Vals) == 0 {
			c.Name = a.Key
			continue
		}
		n, err := strconv.ParseUint(a.Vals[0], 10, 62)
		kept := graph.Retention(n) * graph.MinRetention
		if a.Vals[0] == "forever" {
			kept, err = graph.Forever, nil
		}
		if err != nil {
			return "", err
		}
		switch a.Key {
		case "history":
			c.History = &kept
		case "log":
			c.Log = &kept
		case "tuples_max":
			c.TuplesMax = &n
		default:
			return "", fmt.Errorf("unknown argument %s", a.Key)
		}
	}
	result, err := e.Write(&graph.Mutation{StoreChange: c})
	if err != nil {
		return "", err
	}
	if c.Operation == graph.CreateStore {
		return fmt.Sprintf("revision %d: store %d\n", result.Revision, result.Store), nil
	}
	return fmt.Sprintf("revision %d\n", result.Revision), nil
}

func verdictString(v engine.Verdict) string {
	if len(v.Missing) > 0 {
		return fmt.Sprintf("%s (%s)", v.Decision, strings.Join(v.Missing, ", "))
	}
	return v.Decision.String()
}

func renderTrace(b *strings.Builder, t *engine.Trace, indent string) {
	b.WriteString(indent)
	switch t.Kind {
	case engine.TraceName:
		fmt.Fprintf(b, "%s:%s#%s", t.Object.Type, t.Object.ID, t.Name)
	case engine.TraceTuple:
		fmt.Fprintf(b, "tuple %s", t.Tuple)
	case engine.TraceCaveat:
		fmt.Fprintf(b, "caveat %s", t.Name)
	default:
		fmt.Fprintf(b, "%s %s", t.Kind, t.Expression)
	}
	if t.Verdict.Decision == 0 {
		b.WriteString(": undefined")
	} else {
		fmt.Fprintf(b, ": %s", verdictString(t.Verdict))
	}
	if t.Note != "" {
		fmt.Fprintf(b, " [%s]", t.Note)
	}
	b.WriteByte('\n')
	for _, c := range t.Children {
		renderTrace(b, c, indent+"  ")
	}
}

func lines(input string) []string {
	var out []string
	for _, line := range strings.Split(input, "\n") {
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, line)
		}
	}
	return out
}

func arguments(text string) []datadriven.CmdArg {
	var args []datadriven.CmdArg
	for _, word := range strings.Fields(text) {
		key, value, _ := strings.Cut(word, "=")
		args = append(args, datadriven.CmdArg{Key: key, Vals: []string{value}})
	}
	return args
}

// filterOf reads the pairs of a filter and returns the arguments that are none.
func filterOf(args []datadriven.CmdArg) (f graph.Filter, rest []datadriven.CmdArg, err error) {
	for _, a := range args {
		value := strings.Join(a.Vals, ",")
		switch a.Key {
		case "object_type":
			f.ObjectType = value
		case "object_id":
			f.ObjectID = value
		case "object_id_prefix":
			f.ObjectIDPrefix = value
		case "relation":
			f.Relation = value
		case "subject_type":
			f.SubjectType = value
		case "subject_id":
			f.SubjectID = value
		case "subject_relation":
			f.SubjectRelation = &value
		default:
			rest = append(rest, a)
		}
	}
	return f, rest, nil
}
