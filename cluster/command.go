package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/pembadb/pemba/graph"
)

// A command is what stands in a log entry: a mutation, with what the leader
// adds to it. Every node decodes the same bytes to the same command, for ever:
// a later form gets a version byte of its own beside this one.
//
//	byte     version, 1
//	8 bytes  stamp, big endian, microseconds since the epoch
//	text     request id (text: uvarint length, then so many bytes)
//	uvarint  store
//	uvarint  number of preconditions, then each: byte of flags, filter
//	byte     kind of mutation, then its body:
//	           1  updates: uvarint number, then each: byte operation, tuple
//	           2  delete: filter, uvarint limit, byte 1 for partial, else 0
//	           3  schema: text
//	           4  collect: uvarint limit
//	           5  init: 16 bytes cluster id
//	text     recorded actor
//	text     metadata
//
// A filter is a byte that tells which of its eight fields follow, then these;
// a tuple is six texts and a byte that tells which of its optional fields
// follow. There is one encoding of each command: a decoder that accepts a
// second one would let two nodes read one entry differently after a change of
// the code. Hence numbers have their shortest form, a field is announced only
// when it is not empty, and nothing may follow the end.
type command struct {
	// Stamp is the leader's time when it proposed the entry.
	Stamp graph.Instant
	// RequestID is room for telling a repeated request from a new one. It is
	// empty in every entry that this version writes.
	RequestID []byte
	Mutation  *graph.Mutation
}

const (
	commandVersion = 1

	// requestIDBytesMax bounds the request id, which later stands in the
	// replicated state of every node.
	requestIDBytesMax = 64

	// commandOverheadBytes is what an entry takes beside its mutation.
	commandOverheadBytes = 1 + 8 + 1
)

const (
	kindUpdates = iota + 1
	kindDelete
	kindSchema
	kindCollect
	kindInit
)

const (
	filterObjectType = 1 << iota
	filterObjectID
	filterObjectIDPrefix
	filterRelation
	filterSubjectType
	filterSubjectID
	filterSubjectRelation
)

const (
	tupleCaveat = 1 << iota
	tupleContext
	tupleValidFrom
	tupleValidUntil
	tupleSources
	tupleFlagsEnd
)

// The least bytes that a tuple and a filter take, which bound how many of them
// can stand in what is left of an entry.
const (
	tupleBytesMin        = 6 + 1
	updateBytesMin       = 1 + tupleBytesMin
	filterBytesMin       = 1
	preconditionBytesMin = 1 + filterBytesMin
)

// encodeCommand returns c in the form above. Its error means that the mutation
// asks for nothing, or for two things.
func encodeCommand(c command) ([]byte, error) {
	if len(c.RequestID) > requestIDBytesMax {
		return nil, fmt.Errorf("request id has %d bytes; at most %d are allowed", len(c.RequestID), requestIDBytesMax)
	}
	m := c.Mutation
	kind, err := kindOf(m)
	if err != nil {
		return nil, err
	}
	size := commandOverheadBytes + len(c.RequestID) + 64 + len(m.RecordedActor) + len(m.Metadata) +
		len(m.Updates)*96 + len(m.Preconditions)*64
	if m.Schema != nil {
		size += len(m.Schema.Text)
	}
	e := encoder{b: make([]byte, 0, size)}
	e.byte(commandVersion)
	e.fixed64(uint64(c.Stamp))
	e.bytes(c.RequestID)
	e.uvarint(uint64(m.Store))
	e.uvarint(uint64(len(m.Preconditions)))
	for i := range m.Preconditions {
		e.bool(m.Preconditions[i].MustNotMatch)
		e.filter(&m.Preconditions[i].Filter)
	}
	e.byte(kind)
	switch kind {
	case kindUpdates:
		e.uvarint(uint64(len(m.Updates)))
		for i := range m.Updates {
			e.byte(byte(m.Updates[i].Operation))
			e.tuple(&m.Updates[i].Tuple)
		}
	case kindDelete:
		if m.Delete.Limit < 1 {
			return nil, fmt.Errorf("delete limit is %d; at least 1 is allowed", m.Delete.Limit)
		}
		e.filter(&m.Delete.Filter)
		e.uvarint(uint64(m.Delete.Limit))
		e.bool(m.Delete.AllowPartial)
	case kindSchema:
		e.text(m.Schema.Text)
	case kindCollect:
		if m.Collect.Limit < 1 {
			return nil, fmt.Errorf("collect limit is %d; at least 1 is allowed", m.Collect.Limit)
		}
		e.uvarint(uint64(m.Collect.Limit))
	case kindInit:
		e.b = append(e.b, m.Init.ClusterID[:]...)
	}
	e.text(m.RecordedActor)
	e.bytes(m.Metadata)
	return e.b, nil
}

// kindOf returns which one of its alternatives m is.
func kindOf(m *graph.Mutation) (byte, error) {
	if m == nil {
		return 0, errors.New("there is no mutation")
	}
	var kind byte
	count := 0
	for i, set := range [...]bool{len(m.Updates) > 0, m.Delete != nil, m.Schema != nil, m.Collect != nil, m.Init != nil} {
		if set {
			kind = byte(i + 1)
			count++
		}
	}
	if count != 1 {
		return 0, fmt.Errorf("the mutation asks for %d things; exactly one of updates, delete, schema, collect and init is allowed", count)
	}
	return kind, nil
}

// decodeCommand reads what encodeCommand wrote. The result shares no memory
// with data. It accepts nothing that encodeCommand would not have written.
func decodeCommand(data []byte) (command, error) {
	d := decoder{b: data}
	if version := d.byte(); d.err == nil && version != commandVersion {
		return command{}, fmt.Errorf("entry has command version %d, but this program reads version %d only", version, commandVersion)
	}
	var c command
	c.Stamp = graph.Instant(d.fixed64())
	c.RequestID = d.bytes()
	if len(c.RequestID) > requestIDBytesMax {
		d.failf("request id of %d bytes", len(c.RequestID))
	}
	m := &graph.Mutation{}
	c.Mutation = m
	store := d.uvarint()
	m.Store = graph.StoreID(store)
	if uint64(m.Store) != store {
		d.failf("store %d", store)
	}
	if n := d.count("preconditions", preconditionBytesMin); n > 0 {
		m.Preconditions = make([]graph.Precondition, n)
		for i := range m.Preconditions {
			m.Preconditions[i].MustNotMatch = d.bool()
			d.filter(&m.Preconditions[i].Filter)
		}
	}
	switch kind := d.byte(); {
	case d.err != nil:
	case kind == kindUpdates:
		n := d.count("updates", updateBytesMin)
		if n == 0 {
			d.failf("no updates")
			break
		}
		m.Updates = make([]graph.Update, n)
		for i := range m.Updates {
			m.Updates[i].Operation = graph.Operation(d.byte())
			d.tuple(&m.Updates[i].Tuple)
		}
	case kind == kindDelete:
		m.Delete = &graph.DeleteMatching{}
		d.filter(&m.Delete.Filter)
		m.Delete.Limit = d.limit()
		m.Delete.AllowPartial = d.bool()
	case kind == kindSchema:
		m.Schema = &graph.WriteSchema{Text: d.text()}
	case kind == kindCollect:
		m.Collect = &graph.Collect{Limit: d.limit()}
	case kind == kindInit:
		m.Init = &graph.Init{}
		copy(m.Init.ClusterID[:], d.take(uint64(len(m.Init.ClusterID))))
	default:
		d.failf("kind of mutation %d", kind)
	}
	m.RecordedActor = d.text()
	m.Metadata = d.bytes()
	if d.err == nil && len(d.b) > d.at {
		d.failf("%d bytes too many", len(d.b)-d.at)
	}
	if d.err != nil {
		return command{}, d.err
	}
	return c, nil
}

type encoder struct{ b []byte }

func (e *encoder) byte(v byte)      { e.b = append(e.b, v) }
func (e *encoder) uvarint(v uint64) { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) fixed64(v uint64) { e.b = binary.BigEndian.AppendUint64(e.b, v) }

func (e *encoder) bool(v bool) {
	if v {
		e.byte(1)
	} else {
		e.byte(0)
	}
}

func (e *encoder) text(s string) {
	e.uvarint(uint64(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) bytes(s []byte) {
	e.uvarint(uint64(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) filter(f *graph.Filter) {
	at := len(e.b)
	e.byte(0)
	var flags byte
	for i, field := range [...]string{f.ObjectType, f.ObjectID, f.ObjectIDPrefix, f.Relation, f.SubjectType, f.SubjectID} {
		if field != "" {
			flags |= 1 << i
			e.text(field)
		}
	}
	if f.SubjectRelation != nil {
		flags |= filterSubjectRelation
		e.text(*f.SubjectRelation)
	}
	e.b[at] = flags
}

func (e *encoder) tuple(t *graph.Tuple) {
	for _, field := range [...]string{
		t.Object.Type, t.Object.ID, t.Relation,
		t.Subject.Type, t.Subject.ID, t.Subject.Relation,
	} {
		e.text(field)
	}
	at := len(e.b)
	e.byte(0)
	var flags byte
	if t.Caveat != "" {
		flags |= tupleCaveat
		e.text(t.Caveat)
	}
	if len(t.Context) > 0 {
		flags |= tupleContext
		e.bytes(t.Context)
	}
	if t.ValidFrom != 0 {
		flags |= tupleValidFrom
		e.fixed64(uint64(t.ValidFrom))
	}
	if t.ValidUntil != 0 {
		flags |= tupleValidUntil
		e.fixed64(uint64(t.ValidUntil))
	}
	if len(t.Sources) > 0 {
		flags |= tupleSources
		e.uvarint(uint64(len(t.Sources)))
		for _, source := range t.Sources {
			e.text(source)
		}
	}
	e.b[at] = flags
}

// A decoder reads from the front of b. After the first error it returns zeros.
type decoder struct {
	b   []byte
	at  int // Invariant: 0 <= at <= len(b).
	err error
}

func (d *decoder) failf(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("entry is malformed near byte %d: %s", d.at, fmt.Sprintf(format, args...))
	}
}

func (d *decoder) take(n uint64) []byte {
	if d.err != nil {
		return nil
	}
	if left := uint64(len(d.b) - d.at); n > left {
		d.failf("%d bytes wanted, %d left", n, left)
		return nil
	}
	b := d.b[d.at : d.at+int(n)]
	d.at += int(n)
	return b
}

func (d *decoder) byte() byte {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) bool() bool {
	v := d.byte()
	if v > 1 {
		d.failf("flag is %d, not 0 or 1", v)
	}
	return v == 1
}

func (d *decoder) fixed64() uint64 {
	if b := d.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (d *decoder) uvarint() uint64 {
	if d.err != nil {
		return 0
	}
	v, n := binary.Uvarint(d.b[d.at:])
	// Only the number 0 may end in a zero byte: a longer form would say the same.
	if n <= 0 || (n > 1 && d.b[d.at+n-1] == 0) {
		d.failf("number is cut off or not in its shortest form")
		return 0
	}
	d.at += n
	return v
}

// count reads how many items follow, of which each takes at least bytesMin.
func (d *decoder) count(what string, bytesMin int) int {
	n := d.uvarint()
	if left := uint64(len(d.b) - d.at); d.err == nil && n > left/uint64(bytesMin) {
		d.failf("%d %s in %d bytes", n, what, left)
	}
	if d.err != nil {
		return 0
	}
	return int(n)
}

func (d *decoder) limit() int {
	n := d.uvarint()
	if d.err == nil && (n < 1 || n > 1<<31) {
		d.failf("limit %d", n)
	}
	return int(n)
}

func (d *decoder) text() string { return string(d.take(d.uvarint())) }

// field reads a text that is there because a flag said so.
func (d *decoder) field(name string) string {
	s := d.text()
	if s == "" {
		d.failf("%s is announced and empty", name)
	}
	return s
}

func (d *decoder) bytes() []byte {
	b := d.take(d.uvarint())
	if len(b) == 0 {
		return nil
	}
	return append([]byte(nil), b...)
}

func (d *decoder) instant(name string) graph.Instant {
	v := d.fixed64()
	if v == 0 {
		d.failf("%s is announced and zero", name)
	}
	return graph.Instant(v)
}

func (d *decoder) filter(f *graph.Filter) {
	flags := d.byte()
	for i, field := range [...]*string{&f.ObjectType, &f.ObjectID, &f.ObjectIDPrefix, &f.Relation, &f.SubjectType, &f.SubjectID} {
		if flags&(1<<i) != 0 {
			*field = d.field("field of a filter")
		}
	}
	if flags&filterSubjectRelation != 0 {
		relation := d.text()
		f.SubjectRelation = &relation
	}
	if flags >= filterSubjectRelation<<1 {
		d.failf("flags of a filter %#x", flags)
	}
}

func (d *decoder) tuple(t *graph.Tuple) {
	for _, field := range [...]*string{
		&t.Object.Type, &t.Object.ID, &t.Relation,
		&t.Subject.Type, &t.Subject.ID, &t.Subject.Relation,
	} {
		*field = d.text()
	}
	flags := d.byte()
	if flags >= tupleFlagsEnd {
		d.failf("flags of a tuple %#x", flags)
	}
	if flags&tupleCaveat != 0 {
		t.Caveat = d.field("caveat")
	}
	if flags&tupleContext != 0 {
		if t.Context = d.bytes(); t.Context == nil {
			d.failf("context is announced and empty")
		}
	}
	if flags&tupleValidFrom != 0 {
		t.ValidFrom = d.instant("valid from")
	}
	if flags&tupleValidUntil != 0 {
		t.ValidUntil = d.instant("valid until")
	}
	if flags&tupleSources != 0 {
		n := d.count("sources", 1)
		if n == 0 {
			d.failf("sources are announced and none")
			return
		}
		t.Sources = make([]string, n)
		for i := range t.Sources {
			t.Sources[i] = d.text()
		}
	}
}
