package graph

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"

	"github.com/cockroachdb/pebble/v2"
)

// This file owns every key and every value that the graph keeps in Pebble;
// docs/format.md draws them. Nothing else in the project encodes tuples.

// formatVersion is the version of everything below. A directory of the
// oldestFormatVersion is rewritten when it is opened, one of storesVersion or
// countersVersion lacks keyspaces and is marked, one of any other refused: two
// programs wrote staged changes of version 2 in two ways, so what it means cannot
// be known. Changing the meaning of a byte raises it, and so does a keyspace that
// programs before would leave behind.
const formatVersion = 5

// Records begin with the formatVersion that gave them their form. recordVersion
// is that of those which are as they were in the first, storesVersion of those
// that came or changed with stores and staged changes, countersVersion that of
// named counters, clusterVersion of what clusters of several nodes need:
// remembered requests, the checksum, ancestors.
const (
	oldestFormatVersion = 1
	recordVersion       = 1
	storesVersion       = 3
	countersVersion     = 4
	clusterVersion      = 5
)

// A keyspace is the first byte of a key. Integers in keys are big-endian, so
// that the order of keys is the order of what they say.
type keyspace = byte

const (
	spaceMeta            keyspace = 'm' // name 1                                            -> see meta*
	spaceStore           keyspace = 'o' // store 4                                           -> storeRecord
	spaceShape           keyspace = 's' // store 4, shape 3                                  -> type, relation
	spaceCaveat          keyspace = 'v' // store 4, caveat 3                                 -> name
	spaceNext            keyspace = 't' // store 4, type shape 3                             -> next number
	spaceNumber          keyspace = 'n' // store 4, type shape 3, id                         -> number
	spaceID              keyspace = 'i' // store 4, type shape 3, number 5                   -> id
	spaceForward         keyspace = 'f' // store 4, relation 3, object 5, subject 3, number 5 -> edgeValue
	spaceReverse         keyspace = 'r' // store 4, subject 3, number 5, relation 3, object 5 -> edgeValue, short
	spaceForwardHistory  keyspace = 'F' // forward key, ended revision 8                     -> edgeValue
	spaceReverseHistory  keyspace = 'R' // reverse key, ended revision 8                     -> edgeValue, short
	spaceExpiry          keyspace = 'e' // store 4, valid until 8, forward rest 16           -> nothing
	spaceCounter         keyspace = 'c' // store 4, relation 3, subject 3, flags 1, caveat 3 -> count
	spaceSchema          keyspace = 'z' // store 4, revision 8                               -> stamp, text
	spaceStage           keyspace = 'g' // store 4, stage 16 -> StageInfo
	spaceStageDigest     keyspace = 'h' // store 4, stage 16, chunk 4 -> StageDigest
	spaceStaged          keyspace = 'u' // store 4, stage 16, forward rest 16 -> operation, edgeValue
	spaceCommittedStages keyspace = 'k' // store 4 -> the last StageInfos
	spaceLog             keyspace = 'l' // store 4, revision 8, offset 4                     -> logHeader or logRecord
	spaceRemoval         keyspace = 'x' // store 4                                           -> removalRecord
	spaceNamedCounter    keyspace = 'q' // store 4, name                                     -> NamedCounter
	spaceRequest         keyspace = 'd' // id of a request                                   -> RequestOutcome
	spaceRequestOrder    keyspace = 'D' // revision 8                                        -> stamp, id of a request
)

// storeSpaces are the keyspaces that a store has keys in: all but spaceMeta and
// those of requests, whose ids are of the cluster. Their order is that of the
// tombstones of a store that is dropped, which the checksum is of.
var storeSpaces = []keyspace{
	spaceStore, spaceShape, spaceCaveat, spaceNext, spaceNumber, spaceID, spaceForward, spaceReverse,
	spaceForwardHistory, spaceReverseHistory, spaceExpiry, spaceCounter, spaceSchema, spaceLog, spaceRemoval,
	spaceStage, spaceStageDigest, spaceStaged, spaceCommittedStages, spaceNamedCounter,
}

// The names in spaceMeta.
const (
	metaFormat        = 'f' // formatVersion
	metaCluster       = 'i' // 16 bytes
	metaAncestors     = 'b' // what the cluster's id was before; missing while it had no other
	metaApplied       = 'a' // revision, term, stamp, checksum
	metaConfiguration = 'c' // revision, bytes
	metaUnfinished    = 'u' // unfinishedStage; missing unless a staged change is being committed
	metaStores        = 's' // the number of the next store; missing before the first
)

// Lengths of keys and of their parts.
const (
	storeEnd   = 1 + 4                 // keyspace and store
	nearEnd    = storeEnd + 3 + 5      // and the near end of an edge: what Split keeps together
	farEnd     = nearEnd + 3           // and the shape of the far end
	edgeKeyLen = farEnd + 5            // a whole current edge
	historyLen = edgeKeyLen + 8        // and the revision that ended it
	restLen    = edgeKeyLen - storeEnd // the edge without keyspace and store
	expiryLen  = storeEnd + 8 + restLen
	idKeyLen   = storeEnd + 3 + 5
	logKeyLen  = storeEnd + 8 + 4
	counterLen = storeEnd + 3 + 3 + 1 + 3
)

// comparer orders keys by their bytes. Its Split decides what bloom filters are
// built on: the near end of an edge, so that a question about an object that
// lacks the relation, or about a subject that appears nowhere, reads no block.
//
// A change of Split needs a new Name, for filters on disk were built by it.
var comparer = func() *pebble.Comparer {
	c := *pebble.DefaultComparer
	c.Name = "pemba.v1"
	c.Split = splitKey
	c.ImmediateSuccessor = func(dst, a []byte) []byte { return append(append(dst, a...), 0) }
	return &c
}()

// splitKey returns the length of the part of a key that filters are built on.
// It depends on the first byte only, which makes it monotone in the order of
// keys as Pebble asks.
func splitKey(key []byte) int {
	if len(key) == 0 {
		return 0
	}
	n := len(key)
	switch key[0] {
	case spaceForward, spaceReverse, spaceForwardHistory, spaceReverseHistory:
		n = nearEnd
	case spaceID:
		// Numbers are only looked up when they exist, so a filter on them would
		// never say no.
		n = storeEnd + 3
	case spaceStaged, spaceStageDigest:
		n = stageKeyLen
	case spaceRequestOrder:
		n = 1
	case spaceShape, spaceCaveat, spaceNext, spaceExpiry, spaceCounter, spaceSchema, spaceLog, spaceRemoval, spaceStage, spaceCommittedStages:
		n = storeEnd
	}
	return min(n, len(key))
}

func putShape(b []byte, s Shape) {
	b[0], b[1], b[2] = byte(s>>16), byte(s>>8), byte(s)
}

func getShape(b []byte) Shape {
	return Shape(b[0])<<16 | Shape(b[1])<<8 | Shape(b[2])
}

func putNumber(b []byte, n Number) {
	b[0] = byte(n >> 32)
	binary.BigEndian.PutUint32(b[1:5], uint32(n))
}

func getNumber(b []byte) Number {
	return Number(b[0])<<32 | Number(binary.BigEndian.Uint32(b[1:5]))
}

// An edgeKey is an edge in numbers.
type edgeKey struct {
	relation Shape
	object   Number
	subject  Shape
	number   Number
}

// A rest is an edge in the order of one direction, as it stands in a key behind
// keyspace and store.
type rest [restLen]byte

func (k edgeKey) forward() (r rest) {
	putShape(r[0:], k.relation)
	putNumber(r[3:], k.object)
	putShape(r[8:], k.subject)
	putNumber(r[11:], k.number)
	return r
}

func (k edgeKey) reverse() (r rest) {
	putShape(r[0:], k.subject)
	putNumber(r[3:], k.number)
	putShape(r[8:], k.relation)
	putNumber(r[11:], k.object)
	return r
}

// side returns the edge in the order of a direction.
func (k edgeKey) side(d direction) rest {
	if d == forward {
		return k.forward()
	}
	return k.reverse()
}

func (r *rest) edge(d direction) edgeKey {
	if d == forward {
		return edgeKey{getShape(r[0:]), getNumber(r[3:]), getShape(r[8:]), getNumber(r[11:])}
	}
	return edgeKey{getShape(r[8:]), getNumber(r[11:]), getShape(r[0:]), getNumber(r[3:])}
}

func (r *rest) compare(o *rest) int { return bytes.Compare(r[:], o[:]) }

// successor returns the rest that follows r; r must not be the last one.
func (r rest) successor() rest {
	for i := restLen - 1; i >= 0; i-- {
		r[i]++
		if r[i] != 0 {
			break
		}
	}
	return r
}

// A direction says which end of an edge its key begins with.
type direction uint8

const (
	forward direction = iota // by object, then subject
	reverse                  // by subject, then object
)

func (d direction) current() keyspace {
	if d == forward {
		return spaceForward
	}
	return spaceReverse
}

func (d direction) history() keyspace {
	if d == forward {
		return spaceForwardHistory
	}
	return spaceReverseHistory
}

// appendStore begins a key.
func appendStore(dst []byte, space keyspace, store StoreID) []byte {
	return binary.BigEndian.AppendUint32(append(dst, space), uint32(store))
}

func appendShape(dst []byte, s Shape) []byte {
	return append(dst, byte(s>>16), byte(s>>8), byte(s))
}

func appendNumber(dst []byte, n Number) []byte {
	return binary.BigEndian.AppendUint32(append(dst, byte(n>>32)), uint32(n))
}

func appendEdgeKey(dst []byte, space keyspace, store StoreID, r *rest) []byte {
	return append(appendStore(dst, space, store), r[:]...)
}

func appendHistoryKey(dst []byte, space keyspace, store StoreID, r *rest, ended Revision) []byte {
	return binary.BigEndian.AppendUint64(appendEdgeKey(dst, space, store, r), uint64(ended))
}

func metaKey(name byte) []byte { return []byte{spaceMeta, name} }

func appendNumberKey(dst []byte, store StoreID, typ Shape, id string) []byte {
	return append(appendShape(appendStore(dst, spaceNumber, store), typ), id...)
}

func appendIDKey(dst []byte, store StoreID, typ Shape, n Number) []byte {
	return appendNumber(appendShape(appendStore(dst, spaceID, store), typ), n)
}

func appendExpiryKey(dst []byte, store StoreID, until Instant, r *rest) []byte {
	dst = binary.BigEndian.AppendUint64(appendStore(dst, spaceExpiry, store), uint64(until))
	return append(dst, r[:]...)
}

func appendSchemaKey(dst []byte, store StoreID, rev Revision) []byte {
	return binary.BigEndian.AppendUint64(appendStore(dst, spaceSchema, store), uint64(rev))
}

func appendLogKey(dst []byte, store StoreID, rev Revision, offset uint32) []byte {
	dst = binary.BigEndian.AppendUint64(appendStore(dst, spaceLog, store), uint64(rev))
	return binary.BigEndian.AppendUint32(dst, offset)
}

func parseLogKey(key []byte) (rev Revision, offset uint32, err error) {
	if len(key) != logKeyLen {
		return 0, 0, corruptf("key %x of the change log", cut(key))
	}
	return revisionOf(key[storeEnd:]), binary.BigEndian.Uint32(key[storeEnd+8:]), nil
}

// parseEdgeKey reads a key of the current or the history keyspaces; ended is
// zero for a current one.
func parseEdgeKey(key []byte) (r rest, ended Revision, err error) {
	switch len(key) {
	case edgeKeyLen:
	case historyLen:
		ended = Revision(binary.BigEndian.Uint64(key[edgeKeyLen:]))
	default:
		return r, 0, corruptf("key %x has %d bytes, not %d or %d", key, len(key), edgeKeyLen, historyLen)
	}
	copy(r[:], key[storeEnd:])
	return r, ended, nil
}

// Bits of the first byte of an edgeValue. The two highest are its version. In a
// reverse record, valueContext and valueSources say that the forward record has
// them.
const (
	valueCaveat  = 1 << 0
	valueContext = 1 << 1
	valueFrom    = 1 << 2
	valueUntil   = 1 << 3
	valueSources = 1 << 4
	valueUnknown = 1 << 5

	valueVersion     = 1 << 6
	valueVersionMask = 3 << 6
)

// An edgeValue is what a tuple carries beside its edge. The forward record holds
// all of it; the reverse record leaves out the context and the sources, so that
// listing by subject reads little and the disk holds long contexts once.
//
// Invariant: hasContext implies caveat != 0; until == 0 || from < until.
type edgeValue struct {
	created    Revision
	caveat     CaveatNumber
	from       Instant
	until      Instant
	hasContext bool
	hasSources bool
	context    []byte // nil in a reverse record; aliases what was decoded
	sources    []byte // as encoded: each a length and its bytes; nil likewise
}

// living reports whether the lifetime covers the instant.
func living(from, until, at Instant) bool {
	return from <= at && (until == 0 || at < until)
}

func (v *edgeValue) living(at Instant) bool { return living(v.from, v.until, at) }

// appendValue encodes v for one direction.
func (v *edgeValue) appendValue(dst []byte, d direction) []byte {
	head := byte(valueVersion)
	if v.caveat != 0 {
		head |= valueCaveat
	}
	if v.hasContext {
		head |= valueContext
	}
	if v.from != 0 {
		head |= valueFrom
	}
	if v.until != 0 {
		head |= valueUntil
	}
	if v.hasSources {
		head |= valueSources
	}
	dst = append(dst, head)
	dst = binary.AppendUvarint(dst, uint64(v.created))
	if v.caveat != 0 {
		dst = binary.AppendUvarint(dst, uint64(v.caveat))
	}
	if v.from != 0 {
		dst = binary.AppendUvarint(dst, uint64(v.from))
	}
	if v.until != 0 {
		dst = binary.AppendUvarint(dst, uint64(v.until))
	}
	if v.hasContext && d == forward {
		dst = appendBytes(dst, v.context)
	}
	if v.hasSources && d == forward {
		dst = appendBytes(dst, v.sources)
	}
	return dst
}

// decode reads what appendValue wrote for the direction. It is strict: any other
// bytes are damage.
func (v *edgeValue) decode(b []byte, d direction) error {
	*v = edgeValue{}
	if len(b) < 2 || b[0]&valueVersionMask != valueVersion || b[0]&valueUnknown != 0 {
		return corruptf("a tuple's value %x has no known version", cut(b))
	}
	head := b[0]
	// Nearly all tuples carry nothing, so their way is short.
	if head == valueVersion {
		created, n := binary.Uvarint(b[1:])
		if n != len(b)-1 || (n > 1 && b[n] == 0) {
			return corruptf("a tuple's value %x is not a revision", cut(b))
		}
		v.created = Revision(created)
		return nil
	}
	dec := decoder{b: b[1:]}
	v.created = Revision(dec.uvarint())
	if head&valueCaveat != 0 {
		n := dec.uvarint()
		if n == 0 || n >= uint64(endCaveat) {
			dec.fail("caveat out of range")
		}
		v.caveat = CaveatNumber(n)
	}
	if head&valueFrom != 0 {
		if v.from = dec.instant(); v.from == 0 {
			dec.fail("lifetime from zero")
		}
	}
	if head&valueUntil != 0 {
		if v.until = dec.instant(); v.until <= v.from {
			dec.fail("empty lifetime")
		}
	}
	v.hasContext = head&valueContext != 0
	v.hasSources = head&valueSources != 0
	if v.hasContext && v.caveat == 0 {
		dec.fail("context without caveat")
	}
	if v.hasContext && d == forward {
		if v.context = dec.bytes(); len(v.context) == 0 {
			dec.fail("empty context")
		}
	}
	if v.hasSources && d == forward {
		if v.sources = dec.bytes(); len(v.sources) == 0 {
			dec.fail("no sources")
		}
	}
	return dec.finish("a tuple's value")
}

// appendSources encodes sources as they stand in an edgeValue.
func appendSources(dst []byte, sources []string) []byte {
	for _, s := range sources {
		dst = appendString(dst, s)
	}
	return dst
}

func decodeSources(b []byte) ([]string, error) {
	if len(b) == 0 {
		return nil, nil
	}
	d := decoder{b: b}
	var sources []string
	for len(d.b) > 0 && d.err == "" {
		sources = append(sources, string(d.bytes()))
	}
	return sources, d.finish("a tuple's sources")
}

// decodeNumber reads the value of a name.
func decodeNumber(b []byte) (Number, error) {
	d := decoder{b: b}
	n := d.number()
	if n == 0 {
		d.fail("zero")
	}
	return n, d.finish("the number of a name")
}

// A storeRecord is what a store is and remembers beside its tuples.
//
// Invariant: created <= changed <= applied revision, or changed is zero;
// stamp <= applied stamp; sequence >= 1; history <= changed; log <= changed.
type storeRecord struct {
	changed  Revision // the last revision that is in the change log
	stamp    Instant  // the stamp of that revision
	sequence uint64   // the dense number of the next change, from 1

	name      string
	created   Revision // zero where an older program made the store
	createdAt Instant
	settings  StoreSettings
	// latestFrom is at or behind the ValidFrom of every tuple there ever was.
	latestFrom Instant
	// history is the oldest state that can be read, log the first revision
	// whose changes can be; each is a revision that changed the store, or zero
	// while nothing was forgotten.
	history, log floor
}

// A floor is a revision below which something was forgotten, and its stamp.
type floor struct {
	revision Revision
	stamp    Instant
}

// gone returns the error for a revision below the floor.
func (f floor) gone(rev Revision) error {
	return &RevisionGoneError{Revision: rev, Oldest: f.revision, OldestAt: f.stamp}
}

func (r *storeRecord) append(dst []byte) []byte {
	dst = append(dst, storesVersion)
	dst = binary.AppendUvarint(dst, uint64(r.changed))
	dst = binary.AppendUvarint(dst, uint64(r.stamp))
	dst = binary.AppendUvarint(dst, r.sequence)
	dst = appendString(dst, r.name)
	dst = binary.AppendUvarint(dst, uint64(r.created))
	dst = binary.AppendUvarint(dst, uint64(r.createdAt))
	dst = binary.AppendUvarint(dst, uint64(r.settings.History))
	dst = binary.AppendUvarint(dst, uint64(r.settings.Log))
	dst = binary.AppendUvarint(dst, r.settings.TuplesMax)
	dst = binary.AppendUvarint(dst, uint64(r.settings.CallsPerSecond))
	dst = binary.AppendUvarint(dst, uint64(r.latestFrom))
	for _, f := range []floor{r.history, r.log} {
		dst = binary.AppendUvarint(dst, uint64(f.revision))
		dst = binary.AppendUvarint(dst, uint64(f.stamp))
	}
	return dst
}

func (r *storeRecord) decode(b []byte) error {
	d := decoder{b: b}
	d.version(storesVersion)
	*r = storeRecord{
		changed: Revision(d.uvarint()), stamp: d.instant(), sequence: d.uvarint(),
		name: string(d.bytes()), created: Revision(d.uvarint()), createdAt: d.instant(),
		settings: StoreSettings{History: d.retention(), Log: d.retention(), TuplesMax: d.uvarint(), CallsPerSecond: d.uint32()},
	}
	r.latestFrom = d.instant()
	r.history = floor{Revision(d.uvarint()), d.instant()}
	r.log = floor{Revision(d.uvarint()), d.instant()}
	switch {
	case d.err != "":
	case r.sequence == 0:
		d.fail("sequence zero")
	case ValidateStoreName(r.name) != nil:
		d.fail("not the name of a store")
	case r.history.revision > r.changed || r.log.revision > r.changed:
		d.fail("a floor beyond the last change")
	}
	return d.finish("a store's record")
}

// decodeFirst reads the form of format version 1, which had one store without
// settings, and floors that nothing raised.
func (r *storeRecord) decodeFirst(b []byte) error {
	d := decoder{b: b}
	d.version(oldestFormatVersion)
	*r = storeRecord{changed: Revision(d.uvarint()), stamp: d.instant(), sequence: d.uvarint()}
	if d.uvarint() != 0 {
		d.fail("a floor")
	}
	return d.finish("a store's record of format version 1")
}

// A removalRecord says how far this node has removed what is below the floors.
// It is the one record that may differ between nodes.
//
// Invariant: log <= history.Revision.
type removalRecord struct {
	// history is the place in the change log before which the tuples that ended
	// are removed from the history.
	history Position
	// log is the revision before which the change log is removed.
	log Revision
}

func (r *removalRecord) append(dst []byte) []byte {
	dst = append(dst, storesVersion)
	dst = binary.AppendUvarint(dst, uint64(r.history.Revision))
	dst = binary.AppendUvarint(dst, uint64(r.history.Offset))
	return binary.AppendUvarint(dst, uint64(r.log))
}

func (r *removalRecord) decode(b []byte) error {
	d := decoder{b: b}
	d.version(storesVersion)
	*r = removalRecord{history: Position{Revision(d.uvarint()), d.uint32()}, log: Revision(d.uvarint())}
	if r.log > r.history.Revision {
		d.fail("more of the log removed than of the history")
	}
	return d.finish("a record of what was removed")
}

// appendSchema encodes a schema as it stands under its revision.
func appendSchema(dst []byte, v SchemaVersion) []byte {
	dst = binary.AppendUvarint(append(dst, storesVersion), uint64(v.Instant))
	return append(dst, v.Text...)
}

// decodeSchema reads a key and value of spaceSchema.
func decodeSchema(key, value []byte) (SchemaVersion, error) {
	if len(key) != storeEnd+8 {
		return SchemaVersion{}, corruptf("schema key %x", cut(key))
	}
	d := decoder{b: value}
	d.version(storesVersion)
	v := SchemaVersion{Revision: revisionOf(key[storeEnd:]), Instant: d.instant()}
	v.Text, d.b = string(d.b), nil
	return v, d.finish("a schema")
}

// A logHeader stands at offset zero of a revision in the change log.
type logHeader struct {
	stamp    Instant
	sequence uint64 // of the first change
	count    uint32
	schema   bool // whether the revision wrote a schema
	actor    string
	metadata []byte
}

func (h *logHeader) append(dst []byte) []byte {
	var flags byte
	if h.schema {
		flags = 1
	}
	dst = append(dst, recordVersion, flags)
	dst = binary.AppendUvarint(dst, uint64(h.stamp))
	dst = binary.AppendUvarint(dst, h.sequence)
	dst = binary.AppendUvarint(dst, uint64(h.count))
	dst = appendString(dst, h.actor)
	return appendBytes(dst, h.metadata)
}

func (h *logHeader) decode(b []byte) error {
	d := decoder{b: b}
	d.version(recordVersion)
	flags := d.byte()
	if flags > 1 {
		d.fail("unknown flags")
	}
	*h = logHeader{schema: flags == 1, stamp: d.instant(), sequence: d.uvarint()}
	count := d.uvarint()
	if count > math.MaxUint32 {
		d.fail("count too large")
	}
	h.count = uint32(count)
	h.actor = string(d.bytes())
	if m := d.bytes(); len(m) > 0 {
		h.metadata = bytes.Clone(m)
	}
	return d.finish("a header of the change log")
}

// A logRecord is one change; its offset is its place in the revision, from 1.
type logRecord struct {
	kind  ChangeKind
	key   edgeKey
	value edgeValue
}

func (r *logRecord) append(dst []byte) []byte {
	dst = append(dst, byte(r.kind))
	dst = binary.AppendUvarint(dst, uint64(r.key.relation))
	dst = binary.AppendUvarint(dst, uint64(r.key.object))
	dst = binary.AppendUvarint(dst, uint64(r.key.subject))
	dst = binary.AppendUvarint(dst, uint64(r.key.number))
	return r.value.appendValue(dst, forward)
}

func (r *logRecord) decode(b []byte) error {
	d := decoder{b: b}
	r.kind = ChangeKind(d.byte())
	if r.kind < Created || r.kind > Expired {
		d.fail("unknown kind")
	}
	r.key = edgeKey{d.shape(), d.number(), d.shape(), d.number()}
	if d.err != "" {
		return d.finish("a record of the change log")
	}
	return r.value.decode(d.b, forward)
}

// A decoder reads a value from the front and remembers the first mistake. It
// never allocates on the word of a length.
type decoder struct {
	b   []byte
	err string
}

func (d *decoder) fail(problem string) {
	if d.err == "" {
		d.err = problem
	}
	d.b = nil
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail("too short")
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

func (d *decoder) version(want byte) {
	if v := d.byte(); d.err == "" && v != want {
		d.fail(fmt.Sprintf("version %d, not %d", v, want))
	}
}

// uvarint reads the shortest form of a number only, so that a value has one
// encoding.
func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || (n > 1 && d.b[n-1] == 0) {
		d.fail("bad number")
		return 0
	}
	d.b = d.b[n:]
	return v
}

// varint reads a number that may be negative.
func (d *decoder) varint() int64 {
	u := d.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

func (d *decoder) instant() Instant {
	v := d.uvarint()
	if v > uint64(MaxInstant) {
		d.fail("instant out of range")
		return 0
	}
	return Instant(v)
}

func (d *decoder) retention() Retention {
	v := d.uvarint()
	if v < uint64(MinRetention) || v > uint64(Forever) {
		d.fail("retention out of range")
		return 0
	}
	return Retention(v)
}

func (d *decoder) uint32() uint32 {
	v := d.uvarint()
	if v > math.MaxUint32 {
		d.fail("number too large")
		return 0
	}
	return uint32(v)
}

func (d *decoder) shape() Shape {
	v := d.uvarint()
	if v == 0 || v >= uint64(endShape) {
		d.fail("shape out of range")
		return 0
	}
	return Shape(v)
}

func (d *decoder) number() Number {
	v := d.uvarint()
	if v >= uint64(EphemeralNumber) {
		d.fail("number out of range")
		return 0
	}
	return Number(v)
}

// bytes reads a length and as many bytes, which alias the input.
func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.fail("bad length")
		return nil
	}
	b := d.b[:n:n]
	d.b = d.b[n:]
	return b
}

// finish returns the first mistake, or one for bytes that are left.
func (d *decoder) finish(what string) error {
	if d.err == "" && len(d.b) > 0 {
		d.fail("bytes left over")
	}
	if d.err != "" {
		return corruptf("%s: %s", what, d.err)
	}
	return nil
}

func appendBytes(dst, b []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

func appendString(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// cut bounds what an error repeats of a value.
func cut(b []byte) []byte { return b[:min(len(b), 32)] }
