package graph

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestScripts runs the scripts under testdata/scripts. They are the manual of
// this package by example; -rewrite writes down what the commands reply.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/scripts", func(t *testing.T, path string) {
		c := &console{t: t, fs: vfs.NewMem()}
		c.db = openTest(t, c.fs)
		datadriven.RunTest(t, path, c.run)
		if err := c.db.CheckInvariants(); err != nil {
			t.Error(err)
		}
		if err := c.db.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A console is a DB and what the next snapshot is given.
type console struct {
	t       *testing.T
	fs      vfs.FS
	db      *DB
	overlay Overlay
}

func (c *console) run(t *testing.T, d *datadriven.TestData) string {
	c.t = t
	var b strings.Builder
	if err := c.do(d, &b); err != nil {
		fmt.Fprintf(&b, "error: %v\n", err)
	}
	return b.String()
}

// number reads an argument, or returns zero when it is missing.
func number(d *datadriven.TestData, name string) uint64 {
	var s string
	if !d.MaybeScanArgs(&testing.T{}, name, &s) {
		return 0
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		panic(fmt.Sprintf("%s: %s=%s is no number", d.Pos, name, s))
	}
	return n
}

func text(d *datadriven.TestData, name string) string {
	for _, arg := range d.CmdArgs {
		if arg.Key == name {
			return strings.Join(arg.Vals, ",")
		}
	}
	return ""
}

func lines(d *datadriven.TestData) []string {
	if d.Input == "" {
		return nil
	}
	return strings.Split(strings.TrimSpace(d.Input), "\n")
}

func (c *console) store(d *datadriven.TestData) StoreID {
	return max(StoreID(number(d, "store")), DefaultStore)
}

func (c *console) snapshot(d *datadriven.TestData) (*Snapshot, error) {
	s, err := c.db.Snapshot(c.store(d), Revision(number(d, "at")), Instant(number(d, "instant")))
	if err != nil {
		return nil, err
	}
	if err := s.SetOverlay(c.overlay); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (c *console) do(d *datadriven.TestData, b *strings.Builder) error {
	switch d.Cmd {
	case "parse":
		for _, line := range lines(d) {
			t, err := ParseTuple(line)
			if err != nil {
				fmt.Fprintf(b, "error: %v\n", err)
				continue
			}
			fmt.Fprintln(b, t)
		}
		return nil
	case "parse-subject":
		for _, line := range lines(d) {
			s, err := ParseSubject(line)
			if err != nil {
				fmt.Fprintf(b, "error: %v\n", err)
				continue
			}
			fmt.Fprintln(b, s)
		}
		return nil
	case "parse-userset":
		for _, line := range lines(d) {
			o, name, err := ParseUserset(line)
			if err != nil {
				fmt.Fprintf(b, "error: %v\n", err)
				continue
			}
			fmt.Fprintf(b, "%s of %s\n", name, o)
		}
		return nil
	case "context":
		for _, line := range lines(d) {
			canonical, err := CanonicalContext([]byte(line))
			if err != nil {
				fmt.Fprintf(b, "error: %v\n", err)
				continue
			}
			fmt.Fprintf(b, "%s\n", canonical)
		}
		return nil
	case "commit":
		return c.commit(d, b)
	case "configuration":
		return c.db.CommitConfiguration(Revision(number(d, "revision")), number(d, "term"), []byte(d.Input))
	case "applied":
		a := c.db.Applied()
		fmt.Fprintf(b, "revision %d term %d stamp %d configuration %q of %d\n",
			a.Revision, a.Term, a.Stamp, a.Configuration, a.ConfigurationRevision)
		return nil
	case "checksum":
		a := c.db.Applied()
		fmt.Fprintf(b, "%016x since %d\n", a.Checksum, a.ChecksumSince)
		return nil
	case "request":
		o, ok, err := c.db.Request([]byte(text(d, "id")), max(Instant(number(d, "instant")), c.db.Applied().Stamp))
		if ok {
			fmt.Fprintf(b, "revision %d stamp %d, %d changed\n", o.Revision, o.Instant, o.Changed)
		} else {
			fmt.Fprintln(b, "none")
		}
		return err
	case "renew", "start-checksum":
		commit := Commit{Revision: Revision(number(d, "revision")), Term: 1, Stamp: c.db.Applied().Stamp, StartChecksum: &StartChecksum{}}
		if d.Cmd == "renew" {
			commit.StartChecksum, commit.Renew = nil, &Renew{ClusterID: [16]byte{byte(number(d, "id"))}}
		}
		_, err := c.db.Commit(commit)
		return err
	case "ancestors":
		fmt.Fprintf(b, "%x\n", c.db.ClusterID())
		for _, a := range c.db.Ancestors() {
			fmt.Fprintf(b, "%x until %d\n", a.ClusterID, a.Until)
		}
		return nil
	case "reopen":
		if err := c.db.Close(); err != nil {
			return err
		}
		c.db = openTest(c.t, c.fs)
		return nil
	case "counters":
		return c.counters(d, b)
	case "changes":
		return c.changes(d, b)
	case "revision-at":
		rev, err := c.db.RevisionAt(c.store(d), Instant(number(d, "instant")))
		fmt.Fprintln(b, rev)
		return err
	case "overlay":
		return c.setOverlay(d)
	case "create-store", "set-store", "drop-store", "prune":
		return c.changeStore(d, b)
	case "remove":
		more, err := c.db.Remove(c.store(d), stepRecords)
		fmt.Fprintf(b, "more: %t\n", more)
		return err
	case "stores":
		for _, s := range c.db.Stores() {
			fmt.Fprintf(b, "%d %s of revision %d: %d tuples, changed at %d, oldest %d at %d, log %d at %d, %s\n",
				s.ID, s.Name, s.Created, s.Tuples, s.Changed, s.OldestHistory, s.OldestHistoryAt, s.OldestLog, s.OldestLogAt, settings(s.Settings))
		}
		return nil
	case "schemas":
		versions, err := c.db.SchemaVersions(c.store(d), Revision(number(d, "before")), int(max(number(d, "limit"), 1)))
		for _, v := range versions {
			fmt.Fprintf(b, "revision %d stamp %d: %q\n", v.Revision, v.Instant, v.Text)
		}
		return err
	}
	s, err := c.snapshot(d)
	if err != nil {
		return err
	}
	defer s.Close()
	switch d.Cmd {
	case "schema":
		v, err := s.Schema()
		fmt.Fprintf(b, "%q of revision %d\n", v.Text, v.Revision)
		return err
	case "read":
		return c.read(d, s, b)
	case "count":
		n, err := s.Count(filterArguments(d))
		fmt.Fprintln(b, n)
		return err
	case "get":
		for _, line := range lines(d) {
			t, err := ParseTuple(line)
			if err != nil {
				return err
			}
			t, ok, err := s.Get(t.Object, t.Relation, t.Subject)
			if err != nil {
				return err
			}
			if !ok {
				fmt.Fprintln(b, "none")
				continue
			}
			fmt.Fprintf(b, "%s created at %d\n", t, t.Created)
		}
		return nil
	case "expired":
		tuples, err := s.Expired(max(int(number(d, "limit")), 1))
		for _, t := range tuples {
			fmt.Fprintln(b, t)
		}
		return err
	case "subjects", "objects":
		return c.edges(d, s, b)
	}
	return fmt.Errorf("no command %s", d.Cmd)
}

// commit takes a line for each change: its kind and a tuple. The tuple before it
// is looked up, unless the argument blind is given.
func (c *console) commit(d *datadriven.TestData, b *strings.Builder) error {
	commit := Commit{
		Revision: Revision(number(d, "revision")), Term: max(number(d, "term"), 1), Stamp: Instant(number(d, "stamp")),
		Store: c.store(d), RecordedActor: text(d, "actor"), Metadata: []byte(text(d, "metadata")),
	}
	if commit.Stamp == 0 {
		commit.Stamp = c.db.Applied().Stamp
	}
	if c.db.ClusterID() == [16]byte{} {
		commit.Init = &Init{ClusterID: [16]byte{1}}
	}
	if id := text(d, "request"); id != "" {
		commit.Request = &RequestCommit{ID: []byte(id), Changed: len(lines(d))}
	}
	before := func(t Tuple) (Tuple, bool, error) { return Tuple{}, false, nil }
	if _, known := c.db.StoreInfo(commit.Store); known {
		s, err := c.db.Snapshot(commit.Store, 0, 0)
		if err != nil {
			return err
		}
		defer s.Close()
		before = func(t Tuple) (Tuple, bool, error) { return s.GetStored(t.Object, t.Relation, t.Subject) }
	}
	kinds := map[string]ChangeKind{"create": Created, "replace": Replaced, "delete": Deleted, "expire": Expired}
	for _, line := range lines(d) {
		verb, rest, _ := strings.Cut(line, " ")
		switch verb {
		case "schema":
			commit.Schema = &SchemaCommit{Text: rest}
			continue
		case "shape":
			typ, relation, _ := strings.Cut(rest, "#")
			commit.Schema.Shapes = append(commit.Schema.Shapes, ShapeName{typ, relation})
			continue
		case "caveat":
			commit.Schema.Caveats = append(commit.Schema.Caveats, rest)
			continue
		}
		t, err := ParseTuple(rest)
		if err != nil {
			return err
		}
		change := Change{Kind: kinds[verb], Tuple: t}
		if change.Kind != Created && !d.HasArg("blind") {
			old, ok, err := before(t)
			if err != nil {
				return err
			}
			if ok {
				change.Before = &old
			}
			if change.Kind != Replaced {
				change.Tuple = old
			}
		}
		commit.Changes = append(commit.Changes, change)
	}
	receipt, err := c.db.Commit(commit)
	if err != nil {
		if errors.Is(err, ErrAlreadyApplied) {
			fmt.Fprintln(b, "already applied")
		}
		return err
	}
	if receipt.Count > 0 {
		fmt.Fprintf(b, "changes %d to %d\n", receipt.Sequence, receipt.Sequence+uint64(receipt.Count)-1)
	}
	return nil
}

func (c *console) counters(d *datadriven.TestData, b *strings.Builder) error {
	s, err := c.db.Snapshot(c.store(d), 0, 0)
	if err != nil {
		return err
	}
	defer s.Close()
	for _, n := range c.db.Counters(c.store(d)) {
		typ, relation := s.ShapeName(n.Relation)
		subject, subjectRelation := s.ShapeName(n.Subject)
		fmt.Fprintf(b, "%d %s @ %s", n.Count, ShapeName{typ, relation}, ShapeName{subject, subjectRelation})
		if n.Wildcard {
			b.WriteString(":*")
		}
		if n.Caveat != 0 {
			fmt.Fprintf(b, " with %s", s.CaveatName(n.Caveat))
		}
		if n.Expiring {
			b.WriteString(", expiring")
		}
		b.WriteByte('\n')
	}
	return nil
}

func (c *console) changes(d *datadriven.TestData, b *strings.Builder) error {
	from := Position{Revision(number(d, "from")), uint32(number(d, "offset"))}
	revisions, err := c.db.Changes(c.store(d), from, int(number(d, "limit")))
	for _, r := range revisions {
		fmt.Fprintf(b, "revision %d stamp %d", r.Revision, r.Stamp)
		if r.SchemaChanged {
			b.WriteString(", schema")
		}
		if r.RecordedActor != "" {
			fmt.Fprintf(b, ", by %s", r.RecordedActor)
		}
		if r.Metadata != nil {
			fmt.Fprintf(b, ", %s", r.Metadata)
		}
		b.WriteByte('\n')
		for i, change := range r.Changes {
			fmt.Fprintf(b, "  %d (%d of %d): %s %s of %d\n", r.Sequence+uint64(i), int(r.Offset)+i+1, r.Count, change.Kind, change.Tuple, change.Tuple.Created)
		}
		end := r.End()
		fmt.Fprintf(b, "  next from %d offset %d\n", end.Revision, end.Offset)
	}
	return err
}

func (c *console) setOverlay(d *datadriven.TestData) error {
	c.overlay = Overlay{}
	for _, line := range lines(d) {
		sign, rest, _ := strings.Cut(line, " ")
		t, err := ParseTuple(rest)
		if err != nil {
			return err
		}
		switch sign {
		case "+":
			c.overlay.Added = append(c.overlay.Added, t)
		case "-":
			c.overlay.Removed = append(c.overlay.Removed, t)
		default:
			return fmt.Errorf("%q is neither + nor -", sign)
		}
	}
	s, err := c.snapshot(d)
	if err != nil {
		c.overlay = Overlay{}
		return err
	}
	s.Close()
	return nil
}

func filterArguments(d *datadriven.TestData) Filter {
	f := Filter{
		ObjectType: text(d, "type"), ObjectID: text(d, "id"), ObjectIDPrefix: text(d, "prefix"), Relation: text(d, "relation"),
		SubjectType: text(d, "subject"), SubjectID: text(d, "subject-id"),
	}
	if d.HasArg("subject-relation") {
		relation := text(d, "subject-relation")
		f.SubjectRelation = &relation
	}
	return f
}

func settings(s StoreSettings) string {
	kept := func(r Retention) string {
		if r == Forever {
			return "for ever"
		}
		return (time.Duration(r) * time.Microsecond).String()
	}
	return fmt.Sprintf("history %s, log %s, at most %d tuples, %d calls", kept(s.History), kept(s.Log), s.TuplesMax, s.CallsPerSecond)
}

// changeStore takes settings as arguments, retentions in seconds or "forever".
func (c *console) changeStore(d *datadriven.TestData, b *strings.Builder) error {
	commit := Commit{
		Revision: Revision(number(d, "revision")), Term: 1, Stamp: max(Instant(number(d, "stamp")), c.db.Applied().Stamp),
		Store: StoreID(number(d, "store")),
	}
	change := &StoreChange{Name: text(d, "name")}
	retention := func(name string) *Retention {
		r := Forever
		if text(d, name) != "forever" {
			r = Retention(number(d, name)) * MinRetention
		}
		if !d.HasArg(name) {
			return nil
		}
		return &r
	}
	change.History, change.Log = retention("history"), retention("log")
	if n := number(d, "tuples-max"); n > 0 {
		change.TuplesMax = &n
	}
	switch d.Cmd {
	case "prune":
		commit.Prune, change = &Prune{}, nil
	case "create-store":
		change.Operation = CreateStore
	case "set-store":
		change.Operation = SetStore
	case "drop-store":
		change.Operation = DropStore
	}
	commit.StoreChange = change
	receipt, err := c.db.Commit(commit)
	if receipt.Store != 0 {
		fmt.Fprintf(b, "store %d\n", receipt.Store)
	}
	return err
}

// read reads all pages and says by which plan.
func (c *console) read(d *datadriven.TestData, s *Snapshot, b *strings.Builder) error {
	f := filterArguments(d)
	limit := int(number(d, "limit"))
	if limit == 0 {
		limit = 100
	}
	var after []byte
	for {
		tuples, next, err := s.Read(f, after, limit)
		if err != nil {
			return err
		}
		for _, t := range tuples {
			fmt.Fprintln(b, t)
		}
		if next == nil {
			break
		}
		fmt.Fprintf(b, "-- more (%c)\n", next[0])
		after = next
	}
	r := &reader{s: s, f: &f, names: newNamer(s), limit: 1}
	if err := r.run(nil); err != nil {
		return err
	}
	fmt.Fprintf(b, "plan %c\n", r.plan)
	return nil
}

// edges takes a tuple for its near end and the far end's shape.
func (c *console) edges(d *datadriven.TestData, s *Snapshot, b *strings.Builder) error {
	t, err := ParseTuple(strings.TrimSpace(d.Input))
	if err != nil {
		return err
	}
	object, err := s.Number(t.Object.Type, t.Object.ID)
	if err != nil {
		return err
	}
	subject, err := s.Number(t.Subject.Type, t.Subject.ID)
	if err != nil {
		return err
	}
	relation, shape := s.Shape(t.Object.Type, t.Relation), s.Shape(t.Subject.Type, t.Subject.Relation)
	var edges []Edge
	typ := t.Subject.Type
	if d.Cmd == "subjects" {
		edges, err = s.Subjects(nil, relation, object, shape, Number(number(d, "from")), 100)
	} else {
		typ = t.Object.Type
		edges, err = s.Objects(nil, shape, subject, relation, Number(number(d, "from")), 100)
	}
	if err != nil {
		return err
	}
	for _, e := range edges {
		id, err := s.ID(typ, e.Number)
		if err != nil {
			return err
		}
		fmt.Fprintf(b, "%s:%s", typ, id)
		if e.Caveat != 0 {
			fmt.Fprintf(b, " with %s %s", s.CaveatName(e.Caveat), e.Context)
		}
		b.WriteByte('\n')
	}
	return nil
}
