package graph

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// FuzzParseTuple holds that what parses prints as a text that parses to the same
// tuple, and that such a text is a fixpoint.
func FuzzParseTuple(f *testing.F) {
	for _, text := range []string{
		`org:vector#hr@person:hanna`,
		`document:"a@b#c"#viewer@group:eng#member`,
		`document:readme#viewer@person:*`,
		`document:"\ud83d\ude00\""#viewer@person:a/b|c`,
		`document:readme#viewer@person:hanna[tenant:{"b":[1.0,"}]"],"a":{}}][expiration:2030-01-31T12:00:00.123456Z]`,
		`document:readme#viewer@person:hanna[expiration:{"a":1e3}]`,
		`a/b:"*"#c@d:"*"`,
		`a:b#c@d:e[f:{"g":"\u0000"}]`,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		tuple, err := ParseTuple(text)
		if err != nil {
			var textErr *TextError
			var invalidErr *InvalidError
			if !errors.As(err, &textErr) && !errors.As(err, &invalidErr) {
				t.Fatalf("%q: the error is a %T: %v", text, err, err)
			}
			return
		}
		printed := tuple.String()
		again, err := ParseTuple(printed)
		if err != nil {
			t.Fatalf("%q prints as %q: %v", text, printed, err)
		}
		if !reflect.DeepEqual(tuple, again) || again.String() != printed {
			t.Fatalf("%q prints as %q, which is %q", text, printed, again)
		}
		if o, err := ParseObject(tuple.Object.String()); err != nil || o != tuple.Object {
			t.Fatalf("object %q: %v, %v", tuple.Object, o, err)
		}
		if s, err := ParseSubject(tuple.Subject.String()); err != nil || s != tuple.Subject {
			t.Fatalf("subject %q: %v, %v", tuple.Subject, s, err)
		}
	})
}

// mutations are one of each kind.
func mutations(tb testing.TB) []*Mutation {
	tuple, err := ParseTuple(`doc:a#viewer@group:eng#member[tenant:{"n":1}][expiration:2030-01-31T12:00:00Z]`)
	if err != nil {
		tb.Fatal(err)
	}
	tuple.Sources = []string{"crm", "hr"}
	none, most, calls := "", uint64(1<<40), uint32(1<<31)
	kept, ever := MinRetention, Forever
	filter := Filter{ObjectType: "doc", ObjectIDPrefix: "a", Relation: "viewer", SubjectType: "user", SubjectID: "*", SubjectRelation: &none}
	return []*Mutation{
		{
			Store: 1, Updates: []Update{{Touch, tuple}, {Delete, Tuple{Object: Object{"doc", "b"}, Relation: "viewer", Subject: tuple.Subject}}},
			Preconditions: []Precondition{{Filter: filter}, {Filter: Filter{ObjectID: "x"}, MustNotMatch: true}},
			RecordedActor: "person:hanna", Metadata: []byte(`{"ticket":1}`),
		},
		{Store: 1 << 31, Delete: &DeleteMatching{Filter: filter, Limit: 1000, AllowPartial: true}},
		{Store: 2, Schema: &WriteSchema{Text: "definition doc {}"}},
		{Store: 3, Collect: &Collect{Limit: 7}},
		{Init: &Init{ClusterID: [16]byte{1, 15: 2}}},
		{StoreChange: &StoreChange{Operation: CreateStore, Name: "tenant"}},
		{Store: 4, StoreChange: &StoreChange{Operation: SetStore, History: &kept, Log: &ever, TuplesMax: &most, CallsPerSecond: &calls}},
		{Store: 4, StoreChange: &StoreChange{Operation: DropStore}},
		{Store: 5, Prune: &Prune{}},
		{Store: 6, Updates: []Update{{Touch, tuple}}, Stage: &Stage{Operation: StageUpdates, ID: StageID{1, 15: 2}, Chunk: 3}},
		{Store: 7, Schema: &WriteSchema{Text: "definition person {}", Replaces: new(Revision)}},
		{Store: 6, Stage: &Stage{Operation: StageCommit, ID: StageID{1}, Chunk: 4}},
		{Store: 6, Stage: &Stage{Operation: StageCommit, ID: StageID{1}, Chunk: 4, Digest: StageDigest{7, 15: 9}}},
		{Store: 6, Stage: &Stage{Operation: StageCollect}},
		{Store: 7, CounterChange: &CounterChange{Operation: RegisterCounter, Name: "viewers", Filter: filter}},
		{Store: 7, CounterChange: &CounterChange{Operation: UnregisterCounter, Name: "viewers"}},
		{StartChecksum: &StartChecksum{}},
		{Settle: &Settle{}},
		{Renew: &Renew{ClusterID: [16]byte{3, 15: 4}}, RecordedActor: "person:hanna"},
		{},
	}
}

// FuzzDecodeMutation holds that a mutation has one encoding, that decoding takes
// back what encoding wrote, and that no bytes do harm.
func FuzzDecodeMutation(f *testing.F) {
	for _, m := range mutations(f) {
		f.Add(m.AppendBinary(nil))
	}
	f.Add([]byte{laterVersion, 0, 0, 1, 0, 0, 0})
	f.Add([]byte{laterVersion, 0, asksLaterEnd, 1, 0, 0, 0})
	f.Add([]byte{laterVersion + 1, 0})
	f.Add([]byte{mutationVersion, asksUpdates, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xf})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeMutation(b)
		if err != nil {
			if !errors.Is(err, ErrInvalidMutation) {
				t.Fatalf("the error is %v", err)
			}
			return
		}
		if again := m.AppendBinary(nil); !bytes.Equal(again, b) {
			t.Fatalf("%x decodes to %+v, which encodes to %x", b, m, again)
		}
	})
}

// oneForm returns what holds, for a decoder of b, that it refused b as damaged, or that
// what it made of b is encoded as b again.
func oneForm(t *testing.T, b []byte) func(err error, again []byte) {
	return func(err error, again []byte) {
		t.Helper()
		if err == nil && !bytes.Equal(again, b) {
			t.Fatalf("%x is encoded again as %x", b, again)
		}
		if err != nil && !IsCorruptionError(err) {
			t.Fatalf("the error is %v", err)
		}
	}
}

// FuzzStoreCodec holds the same for what is stored of a store: its record, how
// far was removed, its schemas and its named counters.
func FuzzStoreCodec(f *testing.F) {
	r := storeRecord{
		changed: 9, stamp: 1 << 40, sequence: 3, name: "tenant", created: 2, createdAt: 1 << 39, latestFrom: MaxInstant,
		settings: StoreSettings{History: MinRetention, Log: Forever, TuplesMax: 1 << 40, CallsPerSecond: 1 << 31},
		history:  floor{7, 8}, log: floor{9, 1 << 40},
	}
	removed := removalRecord{history: Position{7, 1 << 31}, log: 7}
	none := ""
	counter := NamedCounter{Filter: Filter{ObjectType: "doc", ObjectIDPrefix: "a", SubjectID: Wildcard, SubjectRelation: &none}}
	for _, seed := range [][]byte{
		counter.append(nil), r.append(nil), removed.append(nil), appendSchema(nil, SchemaVersion{Instant: 5, Text: "definition doc {}"}),
		{storesVersion},
		{countersVersion, 0},
		{countersVersion, filterObjectID | filterObjectIDPrefix, 1, 'a', 1, 'a'},
		{oldestFormatVersion, 1, 1, 1, 0},
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		hold := oneForm(t, b)
		var r storeRecord
		err := r.decode(b)
		hold(err, r.append(nil))
		var removed removalRecord
		err = removed.decode(b)
		hold(err, removed.append(nil))
		v, err := decodeSchema(appendSchemaKey(nil, 1, 7), b)
		hold(err, appendSchema(nil, v))
		c, err := decodeNamedCounter(appendNamedCounterKey(nil, 1, "viewers"), b)
		hold(err, c.append(nil))
		if err := r.decodeFirst(b); err == nil && b[0] != oldestFormatVersion {
			t.Fatalf("%x is read as a record of the first version", b)
		}
	})
}

// FuzzValueCodec holds the same for the values of tuples, in both directions.
func FuzzValueCodec(f *testing.F) {
	f.Add([]byte{valueVersion, 1}, false)
	f.Add([]byte{valueVersion | valueCaveat | valueContext, 5, 1, 2, '{', '}'}, false)
	f.Add([]byte{valueVersion | valueCaveat | valueContext | valueSources, 5, 1}, true)
	f.Add([]byte{valueVersion | valueFrom | valueUntil, 0x80, 1, 5, 6}, true)
	f.Add([]byte{valueVersion | valueSources, 7, 3, 2, 'h', 'r'}, false)
	f.Fuzz(func(t *testing.T, b []byte, reversed bool) {
		d := forward
		if reversed {
			d = reverse
		}
		hold := oneForm(t, b)
		var v edgeValue
		err := v.decode(b, d)
		hold(err, v.appendValue(nil, d))
		var h logHeader
		err = h.decode(b)
		hold(err, h.append(nil))
		var r logRecord
		err = r.decode(b)
		hold(err, r.append(nil))
	})
}

// FuzzEdgeKey holds that keys give back their edge, are ordered as the numbers
// are, and that Split keeps Pebble's rules.
func FuzzEdgeKey(f *testing.F) {
	f.Add(uint32(1), uint64(2), uint32(3), uint64(0), uint32(1), uint64(2), uint32(3), uint64(1<<39))
	f.Add(uint32(255), uint64(1<<32-1), uint32(256), uint64(1<<32), uint32(256), uint64(1<<39), uint32(1), uint64(5))
	f.Fuzz(func(t *testing.T, r1 uint32, o1 uint64, s1 uint32, n1 uint64, r2 uint32, o2 uint64, s2 uint32, n2 uint64) {
		edge := func(r uint32, o uint64, s uint32, n uint64) edgeKey {
			return edgeKey{Shape(r % (1 << 24)), Number(o) % endNumber, Shape(s % (1 << 24)), Number(n) % endNumber}
		}
		a, b := edge(r1, o1, s1, n1), edge(r2, o2, s2, n2)
		for _, d := range []direction{forward, reverse} {
			sides := func(k edgeKey) (rest, []uint64) {
				if d == forward {
					return k.forward(), []uint64{uint64(k.relation), uint64(k.object), uint64(k.subject), uint64(k.number)}
				}
				return k.reverse(), []uint64{uint64(k.subject), uint64(k.number), uint64(k.relation), uint64(k.object)}
			}
			ra, wantA := sides(a)
			rb, wantB := sides(b)
			if ra.edge(d) != a {
				t.Fatalf("%v gives back %v", a, ra.edge(d))
			}
			if want := slices.Compare(wantA, wantB); ra.compare(&rb) != want {
				t.Fatalf("%v and %v compare as %d, not %d", a, b, ra.compare(&rb), want)
			}
			ka, kb := appendEdgeKey(nil, d.current(), 1, &ra), appendHistoryKey(nil, d.history(), 1, &rb, 7)
			for _, k := range [][]byte{ka, kb} {
				if splitKey(k) != nearEnd || splitKey(k[:nearEnd]) != nearEnd || splitKey(k[:3]) != 3 {
					t.Fatalf("%x splits at %d", k, splitKey(k))
				}
			}
			if got, ended, err := parseEdgeKey(kb); got != rb || ended != 7 || err != nil {
				t.Fatalf("%x gives back %x, %d, %v", kb, got, ended, err)
			}
		}
		if succ := a.forward().successor(); a.number+1 < endNumber && succ.edge(forward).number != a.number+1 {
			t.Fatalf("%v is followed by %v", a, succ.edge(forward))
		}
	})
}

// FuzzReadPosition holds that a position from outside is either refused or
// continues a read, whatever the filter.
func FuzzReadPosition(f *testing.F) {
	db := openTest(f, vfs.NewMem())
	f.Cleanup(func() {
		if err := db.Close(); err != nil {
			f.Error(err)
		}
	})
	g, m := newGenerator(1), newModel()
	for range 30 {
		c := g.commit(m)
		mustCommit(f, db, c)
		m.commit(c)
	}
	s, err := db.Snapshot(DefaultStore, 0, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(s.Close)
	member := "member"
	filters := []Filter{
		{},
		{ObjectID: "a"},
		{ObjectIDPrefix: "a"},
		{SubjectID: "a"},
		{ObjectType: "doc"},
		{SubjectRelation: &member},
		{Relation: "viewer", SubjectType: "user"},
	}
	for i, filter := range filters {
		_, next, err := s.Read(filter, nil, 1)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(next, uint8(i))
		f.Add(append([]byte{'r'}, bytes.Repeat([]byte{0xff}, restLen)...), uint8(i))
		f.Add(append([]byte{'n'}, binary.AppendUvarint(next, 5)...), uint8(i))
	}
	f.Fuzz(func(t *testing.T, after []byte, which uint8) {
		filter := filters[int(which)%len(filters)]
		tuples, _, err := s.Read(filter, after, 3)
		if err != nil && !errors.Is(err, ErrInvalidPosition) {
			t.Fatal(err)
		}
		for _, tuple := range tuples {
			if !filter.Matches(&tuple) {
				t.Fatalf("%s does not match %+v", tuple, filter)
			}
		}
	})
}
