package graph

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// mutationVersion is the first byte of an encoded Mutation, and laterVersion that
// of one which asks what came when the bits of the first were used up: it has
// another byte of bits. They stand in the Raft log, so what was written with a
// version must be read for as long as logs with it may exist, and a program that
// does not know one stops at it.
const (
	mutationVersion = 1
	laterVersion    = 2
)

// ErrInvalidMutation means that bytes are no encoded Mutation.
var ErrInvalidMutation = errors.New("not an encoded mutation")

// Bits of an encoded Mutation that say what it asks.
const (
	asksUpdates = 1 << iota
	asksDelete
	asksSchema
	asksCollect
	asksInit
	asksStoreChange
	asksPrune
	asksStage
)

// Bits of the second byte that a Mutation of laterVersion has; one or more are set.
const (
	asksCounterChange = 1 << iota
	asksStartChecksum
	asksRenew
	asksReplaces // Of a Schema.
	asksSettle
	asksLaterEnd
)

// Bits of an encoded StoreChange that say which settings are given.
const (
	setsHistory = 1 << iota
	setsLog
	setsTuplesMax
	setsCallsPerSecond
	setsEnd
)

// Bits of an encoded Filter that say which fields are set.
const (
	filterObjectType = 1 << iota
	filterObjectID
	filterObjectIDPrefix
	filterRelation
	filterSubjectType
	filterSubjectID
	filterSubjectRelation
	filterEnd
)

// AppendBinary appends the mutation's encoding to dst. Any mutation can be
// encoded, also one that Validate refuses. Created of the tuples is left out, and
// so is RequestID.
func (m *Mutation) AppendBinary(dst []byte) []byte {
	var asks byte
	if len(m.Updates) > 0 {
		asks |= asksUpdates
	}
	if m.Delete != nil {
		asks |= asksDelete
	}
	if m.Schema != nil {
		asks |= asksSchema
	}
	if m.Collect != nil {
		asks |= asksCollect
	}
	if m.Init != nil {
		asks |= asksInit
	}
	if m.StoreChange != nil {
		asks |= asksStoreChange
	}
	if m.Prune != nil {
		asks |= asksPrune
	}
	if m.Stage != nil {
		asks |= asksStage
	}
	if later := m.asksLater(); later == 0 {
		dst = append(dst, mutationVersion, asks)
	} else {
		dst = append(dst, laterVersion, asks, later)
	}
	dst = binary.AppendUvarint(dst, uint64(m.Store))
	dst = appendString(dst, m.RecordedActor)
	dst = appendBytes(dst, m.Metadata)
	dst = binary.AppendUvarint(dst, uint64(len(m.Preconditions)))
	for i := range m.Preconditions {
		p := &m.Preconditions[i]
		dst = p.Filter.append(appendBool(dst, p.MustNotMatch))
	}
	if len(m.Updates) > 0 {
		dst = binary.AppendUvarint(dst, uint64(len(m.Updates)))
		for i := range m.Updates {
			u := &m.Updates[i]
			dst = u.Tuple.append(append(dst, byte(u.Operation)))
		}
	}
	if d := m.Delete; d != nil {
		dst = appendBool(d.Filter.append(dst), d.AllowPartial)
		dst = binary.AppendVarint(dst, int64(d.Limit))
	}
	if m.Schema != nil {
		dst = appendString(dst, m.Schema.Text)
	}
	if m.Collect != nil {
		dst = binary.AppendVarint(dst, int64(m.Collect.Limit))
	}
	if m.Init != nil {
		dst = append(dst, m.Init.ClusterID[:]...)
	}
	if m.StoreChange != nil {
		dst = m.StoreChange.append(dst)
	}
	if m.Stage != nil {
		dst = append(append(dst, byte(m.Stage.Operation)), m.Stage.ID[:]...)
		dst = binary.AppendUvarint(dst, uint64(m.Stage.Chunk))
		if m.Stage.Operation == StageCommit {
			dst = append(dst, m.Stage.Digest[:]...)
		}
	}
	if m.CounterChange != nil {
		dst = m.CounterChange.append(dst)
	}
	if m.Renew != nil {
		dst = append(dst, m.Renew.ClusterID[:]...)
	}
	if m.Schema != nil && m.Schema.Replaces != nil {
		dst = binary.AppendUvarint(dst, uint64(*m.Schema.Replaces))
	}
	return dst
}

// asksLater returns the bits of what came with laterVersion.
func (m *Mutation) asksLater() (later byte) {
	if m.CounterChange != nil {
		later |= asksCounterChange
	}
	if m.StartChecksum != nil {
		later |= asksStartChecksum
	}
	if m.Renew != nil {
		later |= asksRenew
	}
	if m.Schema != nil && m.Schema.Replaces != nil {
		later |= asksReplaces
	}
	if m.Settle != nil {
		later |= asksSettle
	}
	return later
}

// DecodeMutation reads what AppendBinary wrote, and nothing else: another
// version, a length that does not fit and bytes that are left over are errors
// that wrap ErrInvalidMutation. What it returns shares nothing with b, and has no
// RequestID. It takes
// memory in proportion to what b holds, not to what it says.
func DecodeMutation(b []byte) (*Mutation, error) {
	d := decoder{b: b}
	version := d.byte()
	if d.err == "" && version != mutationVersion && version != laterVersion {
		d.fail(fmt.Sprintf("version %d, not %d or %d", version, mutationVersion, laterVersion))
	}
	asks, later := d.byte(), byte(0)
	if version == laterVersion {
		if later = d.byte(); d.err == "" && (later == 0 || later >= asksLaterEnd) {
			d.fail("asks what is unknown")
		}
	}
	store := d.uvarint()
	if store > math.MaxUint32 {
		d.fail("store out of range")
	}
	m := &Mutation{Store: StoreID(store)}
	m.RecordedActor = d.string()
	m.Metadata = d.clone()
	for n := d.count(); n > 0 && d.err == ""; n-- {
		p := Precondition{MustNotMatch: d.bool()}
		p.Filter.decode(&d)
		m.Preconditions = append(m.Preconditions, p)
	}
	if asks&asksUpdates != 0 {
		n := d.count()
		if n == 0 {
			d.fail("no updates")
		}
		for ; n > 0 && d.err == ""; n-- {
			u := Update{Operation: Operation(d.byte())}
			u.Tuple.decode(&d)
			m.Updates = append(m.Updates, u)
		}
	}
	if asks&asksDelete != 0 {
		m.Delete = &DeleteMatching{}
		m.Delete.Filter.decode(&d)
		m.Delete.AllowPartial = d.bool()
		m.Delete.Limit = int(d.varint())
	}
	if asks&asksSchema != 0 {
		m.Schema = &WriteSchema{Text: d.string()}
	}
	if asks&asksCollect != 0 {
		m.Collect = &Collect{Limit: int(d.varint())}
	}
	if asks&asksInit != 0 {
		m.Init = &Init{}
		d.copy(m.Init.ClusterID[:])
	}
	if asks&asksStoreChange != 0 {
		m.StoreChange = &StoreChange{}
		m.StoreChange.decode(&d)
	}
	if asks&asksPrune != 0 {
		m.Prune = &Prune{}
	}
	if asks&asksStage != 0 {
		m.Stage = &Stage{Operation: StageOperation(d.byte())}
		d.copy(m.Stage.ID[:])
		chunk := d.uvarint()
		if chunk > math.MaxUint32 {
			d.fail("chunk out of range")
		}
		m.Stage.Chunk = uint32(chunk)
		if m.Stage.Operation == StageCommit {
			d.copy(m.Stage.Digest[:])
		}
	}
	if later&asksCounterChange != 0 {
		m.CounterChange = &CounterChange{}
		m.CounterChange.decode(&d)
	}
	if later&asksStartChecksum != 0 {
		m.StartChecksum = &StartChecksum{}
	}
	if later&asksRenew != 0 {
		m.Renew = &Renew{}
		d.copy(m.Renew.ClusterID[:])
	}
	if later&asksReplaces != 0 {
		replaced := Revision(d.uvarint())
		if m.Schema == nil {
			d.fail("a schema to be replaced, and none to replace it")
		} else {
			m.Schema.Replaces = &replaced
		}
	}
	if later&asksSettle != 0 {
		m.Settle = &Settle{}
	}
	if d.err == "" && len(d.b) > 0 {
		d.fail(fmt.Sprintf("%d bytes are left over", len(d.b)))
	}
	if d.err != "" {
		return nil, fmt.Errorf("%w: %s", ErrInvalidMutation, d.err)
	}
	return m, nil
}

func (c *StoreChange) append(dst []byte) []byte {
	dst = appendString(append(dst, byte(c.Operation)), c.Name)
	at := len(dst)
	dst = append(dst, 0)
	if c.History != nil {
		dst[at] |= setsHistory
		dst = binary.AppendVarint(dst, int64(*c.History))
	}
	if c.Log != nil {
		dst[at] |= setsLog
		dst = binary.AppendVarint(dst, int64(*c.Log))
	}
	if c.TuplesMax != nil {
		dst[at] |= setsTuplesMax
		dst = binary.AppendUvarint(dst, *c.TuplesMax)
	}
	if c.CallsPerSecond != nil {
		dst[at] |= setsCallsPerSecond
		dst = binary.AppendUvarint(dst, uint64(*c.CallsPerSecond))
	}
	return dst
}

func (c *StoreChange) decode(d *decoder) {
	c.Operation, c.Name = StoreOperation(d.byte()), d.string()
	set := d.byte()
	if set >= setsEnd {
		d.fail("store change with unknown settings")
	}
	if set&setsHistory != 0 {
		v := Retention(d.varint())
		c.History = &v
	}
	if set&setsLog != 0 {
		v := Retention(d.varint())
		c.Log = &v
	}
	if set&setsTuplesMax != 0 {
		v := d.uvarint()
		c.TuplesMax = &v
	}
	if set&setsCallsPerSecond != 0 {
		v := d.uvarint()
		if v > math.MaxUint32 {
			d.fail("calls out of range")
		}
		calls := uint32(v)
		c.CallsPerSecond = &calls
	}
}

func (t *Tuple) append(dst []byte) []byte {
	dst = appendString(dst, t.Object.Type)
	dst = appendString(dst, t.Object.ID)
	dst = appendString(dst, t.Relation)
	dst = appendString(dst, t.Subject.Type)
	dst = appendString(dst, t.Subject.ID)
	dst = appendString(dst, t.Subject.Relation)
	dst = appendString(dst, t.Caveat)
	dst = appendBytes(dst, t.Context)
	dst = binary.AppendVarint(dst, int64(t.ValidFrom))
	dst = binary.AppendVarint(dst, int64(t.ValidUntil))
	dst = binary.AppendUvarint(dst, uint64(len(t.Sources)))
	return appendSources(dst, t.Sources)
}

func (t *Tuple) decode(d *decoder) {
	t.Object.Type = d.string()
	t.Object.ID = d.string()
	t.Relation = d.string()
	t.Subject.Type = d.string()
	t.Subject.ID = d.string()
	t.Subject.Relation = d.string()
	t.Caveat = d.string()
	t.Context = d.clone()
	t.ValidFrom = Instant(d.varint())
	t.ValidUntil = Instant(d.varint())
	for n := d.count(); n > 0 && d.err == ""; n-- {
		t.Sources = append(t.Sources, d.string())
	}
}

func (f *Filter) append(dst []byte) []byte {
	at := len(dst)
	dst = append(dst, 0)
	for i, s := range f.strings() {
		if *s != "" {
			dst[at] |= 1 << i
			dst = appendString(dst, *s)
		}
	}
	if f.SubjectRelation != nil {
		dst[at] |= filterSubjectRelation
		dst = appendString(dst, *f.SubjectRelation)
	}
	return dst
}

// strings returns the fields that are set when not empty, in the order of their
// bits.
func (f *Filter) strings() [6]*string {
	return [...]*string{&f.ObjectType, &f.ObjectID, &f.ObjectIDPrefix, &f.Relation, &f.SubjectType, &f.SubjectID}
}

func (f *Filter) decode(d *decoder) {
	set := d.byte()
	if set >= filterEnd {
		d.fail("filter with unknown fields")
	}
	for i, s := range f.strings() {
		if set&(1<<i) != 0 {
			if *s = d.string(); *s == "" {
				d.fail("filter with an empty field")
			}
		}
	}
	if set&filterSubjectRelation != 0 {
		relation := d.string()
		f.SubjectRelation = &relation
	}
}

func appendBool(dst []byte, v bool) []byte {
	if v {
		return append(dst, 1)
	}
	return append(dst, 0)
}

func (d *decoder) bool() bool {
	v := d.byte()
	if v > 1 {
		d.fail("bad truth value")
	}
	return v == 1
}

func (d *decoder) string() string { return string(d.bytes()) }

// clone reads bytes that do not alias the input; nil for none.
func (d *decoder) clone() []byte {
	b := d.bytes()
	if len(b) == 0 {
		return nil
	}
	return bytes.Clone(b)
}

// copy fills dst.
func (d *decoder) copy(dst []byte) {
	if len(d.b) < len(dst) {
		d.fail("too short")
		return
	}
	d.b = d.b[copy(dst, d.b):]
}

// count reads how many things follow. Each takes a byte or more, so more than
// there are bytes cannot be.
func (d *decoder) count() uint64 {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.fail("bad count")
		return 0
	}
	return n
}
