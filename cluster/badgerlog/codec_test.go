package badgerlog

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

func FuzzEntry(f *testing.F) {
	f.Add(uint64(1), uint64(1), byte(0), []byte("data"), []byte(nil), int64(0), uint64(0), 0)
	f.Add(uint64(1<<63), uint64(7), byte(5), []byte(nil), []byte("ext"), int64(-62135596800), uint64(1<<63), 20)
	f.Add(uint64(0), uint64(0), byte(255), []byte{0}, []byte{0}, int64(1e9), uint64(3), 41)
	f.Fuzz(func(t *testing.T, index, term uint64, kind byte, data, extensions []byte, seconds int64, prev uint64, damage int) {
		want := raft.Log{
			Index: index, Term: term, Type: raft.LogType(kind), Data: data, Extensions: extensions,
			AppendedAt: time.Unix(seconds, 999).UTC(),
		}
		value, sum := appendEntry([]byte("before"), &want, prev)
		value = value[len("before"):]
		if len(value) != entryBytes(&want) {
			t.Fatalf("%d bytes, %d were reckoned", len(value), entryBytes(&want))
		}
		var got raft.Log
		l, err := decodeEntry(index, value, &got)
		if err != nil || !sameEntry(&got, &want) || l != (link{sum: sum, prev: prev, term: term}) {
			t.Fatalf("%+v came back as %+v, %+v, %v", want, got, l, err)
		}
		if _, err := decodeEntry(index+1, value, &got); err == nil {
			t.Fatal("an entry passed under another index")
		}
		damaged := bytes.Clone(value)
		damaged[uint(damage)%uint(len(damaged))] ^= 1
		if _, err := decodeEntry(index, damaged, &got); err == nil {
			t.Fatal("a flipped bit passed")
		}
		if _, err := decodeEntry(index, value[:uint(damage)%uint(len(value))], &got); err == nil {
			t.Fatal("a cut entry passed")
		}
	})
}

// TestZeroTime: raft asks AppendedAt.IsZero.
func TestZeroTime(t *testing.T) {
	value, _ := appendEntry(nil, &raft.Log{Index: 1}, 0)
	var got raft.Log
	if _, err := decodeEntry(1, value, &got); err != nil || !reflect.DeepEqual(got, raft.Log{Index: 1}) {
		t.Fatalf("%+v, %v", got, err)
	}
}

// FuzzDecode gives the decoders arbitrary bytes. What they take they must write
// in the same way.
func FuzzDecode(f *testing.F) {
	r := record{seq: 9, first: 3, last: 7, lastTerm: 2, tip: 5, low: 1, high: 8, commit: 4, stableSum: 6}
	stable, _ := encodeStable(map[string][]byte{"CurrentTerm": make([]byte, 8), "": nil})
	value, _ := appendEntry(nil, entry(3, 1, 20), 4)
	f.Add(r.encode())
	f.Add(stable)
	f.Add(value)
	f.Add(encodeMark(markValue{seq: 1, last: 2, lastTerm: 3}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := decodeRecord(b); err == nil && !bytes.Equal(r.encode(), b) {
			t.Errorf("record %x came back as %x", b, r.encode())
		}
		if values, sum, err := decodeStable(b); err == nil {
			again, sum2 := encodeStable(values)
			back, _, err := decodeStable(again)
			if err != nil || len(back) != len(values) || len(again) == len(b) && bytes.Equal(again, b) != (sum == sum2) {
				t.Errorf("stable values %x came back as %x (%v)", b, again, err)
			}
		}
		if v, ok := decodeMark(b); ok && !bytes.Equal(encodeMark(v), b[:markSlotBytes]) {
			t.Errorf("mark %x came back as %x", b, encodeMark(v))
		}
		var got raft.Log
		if l, err := decodeEntry(3, b, &got); err == nil {
			if again, _ := appendEntry(nil, &got, l.prev); !bytes.Equal(again, b) {
				t.Errorf("entry %x came back as %x", b, again)
			}
		}
	})
}

func TestRecordCheck(t *testing.T) {
	good := record{seq: 9, first: 3, last: 7, low: 1, high: 8}
	if err := good.check(); err != nil {
		t.Fatal(err)
	}
	for i, spoil := range []func(*record){
		func(r *record) { r.seq = 0 },
		func(r *record) { r.first = 0 },
		func(r *record) { r.last = 0 },
		func(r *record) { r.first = 8 },
		func(r *record) { r.low = 4 },
		func(r *record) { r.low = 0 },
		func(r *record) { r.high = 6 },
		func(r *record) { r.next = 1 },
	} {
		r := good
		spoil(&r)
		if r.check() == nil {
			t.Errorf("case %d: %+v passed", i, r)
		}
		if _, err := decodeRecord(r.encode()); err == nil {
			t.Errorf("case %d: %+v was decoded", i, r)
		}
	}
}
