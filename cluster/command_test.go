package cluster

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

func text(s string) *string { return &s }

// commandsOfAllKinds has each kind of mutation, and each optional field set and
// not set.
func commandsOfAllKinds() []command {
	rich := graph.Tuple{
		Object: graph.Object{Type: "document", ID: "readme"}, Relation: "viewer",
		Subject: graph.Subject{Object: graph.Object{Type: "group", ID: "eng"}, Relation: "member"},
		Caveat:  "on_weekday", Context: []byte(`{"day":"monday"}`),
		ValidFrom: 5, ValidUntil: 1 << 40, Sources: []string{"hr", "ldap"},
	}
	plain := graph.Tuple{
		Object: graph.Object{Type: "document", ID: "a@b#c"}, Relation: "owner",
		Subject: graph.Subject{Object: graph.Object{Type: "person", ID: graph.Wildcard}},
	}
	filters := []graph.Precondition{
		{},
		{Filter: graph.Filter{ObjectType: "document", ObjectID: "readme", Relation: "viewer"}, MustNotMatch: true},
		{Filter: graph.Filter{ObjectIDPrefix: "re", SubjectType: "person", SubjectID: "*", SubjectRelation: text("")}},
		{Filter: graph.Filter{SubjectRelation: text("member")}},
	}
	hour, most, calls := graph.Retention(3600e6), uint64(10), uint32(5)
	var commands []command
	for _, m := range []graph.Mutation{
		{Store: 1, Updates: []graph.Update{{Operation: graph.Touch, Tuple: rich}, {Operation: graph.Delete, Tuple: plain}}},
		{Store: 1 << 31, Updates: []graph.Update{{Operation: graph.Create, Tuple: plain}}, Preconditions: filters, RecordedActor: "person:hanna", Metadata: []byte(`{"why":"x"}`)},
		{Store: 2, Delete: &graph.DeleteMatching{Filter: filters[1].Filter, Limit: 1000, AllowPartial: true}},
		{Store: 2, Delete: &graph.DeleteMatching{Limit: 1}},
		{Store: 1, Schema: &graph.WriteSchema{Text: "definition person {}"}},
		{Store: 1, Schema: &graph.WriteSchema{}},
		{Store: 1, Collect: &graph.Collect{Limit: 128}},
		{Init: &graph.Init{ClusterID: [16]byte{1, 2, 3, 15: 255}}},
		{StoreChange: &graph.StoreChange{Operation: graph.CreateStore, Name: "other", History: &hour, Log: &hour, TuplesMax: &most, CallsPerSecond: &calls}},
		{Store: 1, StoreChange: &graph.StoreChange{Operation: graph.SetStore, TuplesMax: &most}},
		{Store: 2, StoreChange: &graph.StoreChange{Operation: graph.DropStore}},
		{Store: 1, Prune: &graph.Prune{}},
		{Store: 1, Updates: []graph.Update{{Operation: graph.Touch, Tuple: rich}}, Stage: &graph.Stage{Operation: graph.StageUpdates, ID: graph.StageID{1}}},
		{Store: 1, Stage: &graph.Stage{Operation: graph.StageCommit, ID: graph.StageID{1}, Chunk: 1}, RecordedActor: "person:hanna"},
		{Store: 1, Stage: &graph.Stage{Operation: graph.StageDrop, ID: graph.StageID{1}}},
		{Store: 1, Stage: &graph.Stage{Operation: graph.StageCollect}},
		{Store: 1, CounterChange: &graph.CounterChange{Operation: graph.RegisterCounter, Name: "viewers", Filter: filters[1].Filter}},
		{Store: 1, Schema: &graph.WriteSchema{}, RequestID: []byte{0}},
		{Store: 1, Stage: &graph.Stage{Operation: graph.StageCommit, ID: graph.StageID{1}, Chunk: 1}, RequestID: make([]byte, graph.MaxRequestIDLength)},
		{StartChecksum: &graph.StartChecksum{}},
		{Settle: &graph.Settle{}},
		{Renew: &graph.Renew{ClusterID: [16]byte{3, 2, 1}}, RequestID: []byte("again")},
	} {
		commands = append(commands, command{Stamp: 1_700_000_000_000_000, Mutation: &m})
	}
	commands[0].Mutation.RequestID = []byte("0123456789abcdef")
	commands[1].Stamp = -1
	return commands
}

func TestCommandRoundTrip(t *testing.T) {
	for _, c := range commandsOfAllKinds() {
		entry, err := encodeCommand(c)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeCommand(entry)
		if err != nil {
			t.Fatalf("%x: %v", entry, err)
		}
		if !reflect.DeepEqual(got, c) {
			t.Errorf("got  %+v\nwant %+v", got.Mutation, c.Mutation)
		}
		// Every shorter entry is refused, and every longer one.
		for cut := range entry {
			if _, err := decodeCommand(entry[:cut]); err == nil {
				t.Fatalf("%x: cut to %d bytes it still decodes", entry, cut)
			}
		}
		if _, err := decodeCommand(append(bytes.Clone(entry), 0)); err == nil || !strings.Contains(err.Error(), "1 bytes are left over") {
			t.Errorf("one byte more: %v", err)
		}
	}
}

func TestCommandsThatCannotBeEncoded(t *testing.T) {
	collect := &graph.Collect{Limit: 1}
	for name, c := range map[string]command{
		"no mutation":     {},
		"nothing asked":   {Mutation: &graph.Mutation{}},
		"two things":      {Mutation: &graph.Mutation{Collect: collect, Init: &graph.Init{}}},
		"no delete limit": {Mutation: &graph.Mutation{Delete: &graph.DeleteMatching{}}},
		"collect nothing": {Mutation: &graph.Mutation{Collect: &graph.Collect{}}},
		"long request id": {Mutation: &graph.Mutation{Store: 1, Collect: collect, RequestID: make([]byte, graph.MaxRequestIDLength+1)}},
	} {
		if _, err := encodeCommand(c); err == nil {
			t.Errorf("%s: encoded", name)
		}
	}
}

// An id that an entry cannot hold, or that is longer than any, is refused by name.
func TestCommandRequestID(t *testing.T) {
	entry, err := encodeCommand(command{Mutation: &graph.Mutation{Store: 1, Prune: &graph.Prune{}, RequestID: []byte("abc")}})
	if err != nil {
		t.Fatal(err)
	}
	for _, length := range []byte{30, graph.MaxRequestIDLength + 1, 255} {
		bad := bytes.Clone(entry)
		bad[commandHeadBytes-1] = length
		if _, err := decodeCommand(append(bad, make([]byte, int(length)-20)...)); err == nil {
			t.Errorf("an id of %d bytes was read", length)
		} else if length > graph.MaxRequestIDLength && !strings.Contains(err.Error(), "at most 64 are allowed") {
			t.Errorf("an id of %d bytes: %v", length, err)
		}
	}
}

func TestCommandVersionIsNamed(t *testing.T) {
	_, err := decodeCommand([]byte{9, 0, 0})
	if err == nil || !strings.Contains(err.Error(), "version 9") || !strings.Contains(err.Error(), "version 1 only") {
		t.Errorf("got %v", err)
	}
}

// Whatever decodes is the same after another round, and nothing panics.
func FuzzCommand(f *testing.F) {
	for _, c := range commandsOfAllKinds() {
		entry, err := encodeCommand(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(entry)
	}
	f.Add([]byte{})
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, entry []byte) {
		c, err := decodeCommand(entry)
		if err != nil {
			return
		}
		entry, err = encodeCommand(c)
		if err != nil {
			return // Write refuses it.
		}
		if again, err := decodeCommand(entry); err != nil || !reflect.DeepEqual(again, c) {
			t.Fatalf("%+v became %+v: %v", c.Mutation, again.Mutation, err)
		}
	})
}

// Whatever a client may get into the log is applied or refused: an entry that
// makes Apply fail would stop every node of the cluster, at every start.
func FuzzApply(f *testing.F) {
	guest := viewer("1", "hanna")
	guest.Relation, guest.ValidUntil = "guest", 77
	touch := create(viewer("1", "hanna"), viewer("1", "*"))
	touch.Updates[0].Operation = graph.Touch
	touch.Preconditions = []graph.Precondition{{Filter: graph.Filter{ObjectType: "document", ObjectIDPrefix: "1", Relation: "guest", SubjectType: "person"}}}
	touch.Metadata = []byte(`{"a":1}`)
	fitting := []command{
		{Mutation: create(viewer("1", "hanna"))},
		{Mutation: create(guest)},
		{Mutation: touch},
		{Mutation: &graph.Mutation{Store: 1, Delete: &graph.DeleteMatching{Filter: graph.Filter{ObjectType: "document", Relation: "viewer"}, Limit: 9}}},
		{Mutation: &graph.Mutation{Store: 1, Schema: &graph.WriteSchema{Text: testSchema}}},
		{Mutation: &graph.Mutation{Store: 1, Updates: touch.Updates, Stage: &graph.Stage{Operation: graph.StageUpdates, ID: graph.StageID{7}}}},
		{Mutation: &graph.Mutation{Store: 1, Stage: &graph.Stage{Operation: graph.StageCommit, ID: graph.StageID{7}, Chunk: 1}}},
	}
	for _, c := range append(fitting, commandsOfAllKinds()...) {
		entry, err := encodeCommand(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(entry)
	}
	db, err := graph.Open(graph.Config{Dir: "graph", FS: vfs.NewMem()})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := db.Close(); err != nil {
			f.Error(err)
		}
	})
	e := engine.New(db, engine.Config{})
	revision := graph.Revision(0)
	apply := func(m *graph.Mutation) (engine.Result, error) {
		revision++
		return e.Apply(revision, 1, 1, m)
	}
	for _, m := range []*graph.Mutation{
		{Init: &graph.Init{ClusterID: [16]byte{1}}},
		{Store: graph.DefaultStore, Schema: &graph.WriteSchema{Text: testSchema}},
	} {
		if result, err := apply(m); err != nil || result.Refusal != nil {
			f.Fatal(err, result.Refusal)
		}
	}
	n := &Node{config: Config{}.withDefaults()}
	f.Fuzz(func(t *testing.T, entry []byte) {
		c, err := decodeCommand(entry)
		if err != nil {
			return
		}
		if _, err := n.encode(c.Mutation, n.now()); err != nil {
			return // Write refuses it.
		}
		if _, err := apply(c.Mutation); err != nil {
			t.Fatalf("%+v: %v", c.Mutation, err)
		}
	})
}
