package graph

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"sort"
	"strings"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// A node that is too far behind gets the whole state of another one: every record
// that the other holds at one applied revision, as it is and in the order of keys.
// A StateReader reads it in chunks, a StateWriter makes a new directory of them:
//
//	r, err := db.ReadState()                    w, err := CreateState(config, r.Header())
//	chunk, err := r.Chunk(w.After(), 1 << 20)   err = w.Write(chunk)    until chunk.Done
//	                                            err = w.Finish(chunk.Total)
//
// Nothing of a record is interpreted on the way but the few that say what state it
// is, so the receiver goes on as the sender would:
//
//   - How far the sender has removed what was pruned (spaceRemoval) is said of one
//     node and sent all the same: the receiver gets exactly the records that the
//     sender had not removed yet, so it is true of the receiver as well.
//   - A staged change that the sender was in the middle of committing is there as far
//     as it had come, with its marker. That is what a crash at the same moment would
//     have left: reads do not see it, and the entry of the commit, which is beyond the
//     applied revision and therefore comes next, goes on behind the marker.
//
// A transfer may break at any moment. Both ends keep a running digest of all
// records from the first one on, and each chunk says what it must be behind it; so
// whatever chunk is missing, damaged, of another place or of another state is
// noticed with that chunk. Digests are xxHash: they protect from accidents, on the
// way and in memory, not from who would forge them; that is for the connection,
// which is TLS.

// The errors of a transfer that callers tell apart with errors.Is.
var (
	// ErrChunkDamaged means that a chunk is not as it was made: send it again.
	ErrChunkDamaged = errors.New("the chunk is damaged")
	// ErrChunkMisplaced means that a chunk does not follow what was received: send
	// the one behind StateWriter.After.
	ErrChunkMisplaced = errors.New("the chunk is not the next one")
	// ErrStateDiffers means that what was received before is not of the state that is
	// sent now: begin again in an empty directory.
	ErrStateDiffers = errors.New("it is of another state")
	// ErrStateComplete means that a directory holds a whole graph, so that there is
	// nothing to receive into it: Open it, or remove it.
	ErrStateComplete = errors.New("the directory holds a whole graph already")
)

const (
	// StateChunkMax bounds an encoded StateChunk, in bytes. Only a chunk of one
	// record is larger than what was asked for.
	StateChunkMax = stateValueMax + 1<<20
	// stateTargetMax bounds what a caller may ask a chunk to be.
	stateTargetMax = 4 << 20
	// stateKeyMax and stateValueMax bound one record: far more than the entry of a
	// Raft log that wrote it.
	stateKeyMax   = 4 << 10
	stateValueMax = 64 << 20

	// stateVersion begins the encodings below.
	stateVersion = 1
)

// A StateHeader says what state is transferred. Two of the same header may still
// differ in what their nodes have removed of what was pruned.
type StateHeader struct {
	// Format is the sender's version of the format on disk.
	Format uint64
	// ClusterID is zero as long as there was no Init.
	ClusterID [16]byte
	// Revision, Term and Stamp are the applied ones.
	Revision Revision
	Term     uint64
	Stamp    Instant
}

// AppendBinary appends the encoding.
func (h *StateHeader) AppendBinary(dst []byte) []byte {
	dst = append(dst, stateVersion)
	dst = binary.AppendUvarint(dst, h.Format)
	dst = append(dst, h.ClusterID[:]...)
	dst = binary.AppendUvarint(dst, uint64(h.Revision))
	dst = binary.AppendUvarint(dst, h.Term)
	return binary.AppendUvarint(dst, uint64(h.Stamp))
}

// DecodeStateHeader decodes what AppendBinary made, and refuses all else.
func DecodeStateHeader(b []byte) (StateHeader, error) {
	var h StateHeader
	d := decoder{b: b}
	d.version(stateVersion)
	h.Format = d.uvarint()
	d.copy(h.ClusterID[:])
	h.Revision, h.Term, h.Stamp = Revision(d.uvarint()), d.uvarint(), d.instant()
	if d.err == "" && len(d.b) > 0 {
		d.fail("bytes left over")
	}
	if d.err != "" {
		// Not corruption: it is not this node's data.
		return StateHeader{}, fmt.Errorf("the header of a state, %x, cannot be decoded: %s", cut(b), d.err)
	}
	return h, nil
}

// A StateTotal says what the records of a state come to, from the first one to
// some place.
type StateTotal struct {
	// Records counts them, Bytes their keys and values.
	Records uint64
	Bytes   uint64
	// Sum is a digest of the header and of all of them in order. It does not depend
	// on how they are cut into chunks.
	Sum uint64
}

// A tally is a StateTotal that goes on. It may be copied.
type tally struct {
	records, bytes uint64
	digest         xxhash.Digest
}

func newTally(h *StateHeader) tally {
	var t tally
	t.digest.Reset()
	t.write(h.AppendBinary(nil))
	return t
}

// write adds to the digest, which never fails.
func (t *tally) write(b []byte) { _, _ = t.digest.Write(b) }

func (t *tally) add(key, value []byte) {
	var buffer [2 * binary.MaxVarintLen64]byte
	lengths := binary.AppendUvarint(buffer[:0], uint64(len(key)))
	t.write(binary.AppendUvarint(lengths, uint64(len(value))))
	t.write(key)
	t.write(value)
	t.records++
	t.bytes += uint64(len(key) + len(value))
}

func (t *tally) total() StateTotal { return StateTotal{t.records, t.bytes, t.digest.Sum64()} }

// A StateChunk is some records of a state that follow each other.
type StateChunk struct {
	// After is the key that they follow; empty for the first ones.
	After []byte
	// Records are their keys, ascending, and values, each as: how many bytes its key
	// shares with that of the record before it in the chunk, length and bytes of the
	// rest of the key, length and bytes of the value; integers are varints.
	Records []byte
	// Last is the key of the last one; After when there is none.
	Last []byte
	// Done says that no other follows. Only then may Records be empty.
	Done bool
	// Total is that of all records of the state up to Last; with Done, of the state.
	Total StateTotal
	// Sum is a digest of all fields above.
	Sum uint64
}

const stateChunkDone = 1 // a flag of the encoding

// appendHead appends the encoding up to Records.
func (c *StateChunk) appendHead(dst []byte) []byte {
	var flags byte
	if c.Done {
		flags = stateChunkDone
	}
	dst = appendBytes(append(dst, stateVersion, flags), c.After)
	dst = binary.AppendUvarint(dst, c.Total.Records)
	dst = binary.AppendUvarint(dst, c.Total.Bytes)
	return binary.BigEndian.AppendUint64(dst, c.Total.Sum)
}

// sum returns what Sum must be. Last is not in it, for it follows from Records.
func (c *StateChunk) sum() uint64 {
	t := tally{}
	t.digest.Reset()
	t.write(c.appendHead(nil))
	t.write(c.Records)
	return t.digest.Sum64()
}

// AppendBinary appends the encoding.
func (c *StateChunk) AppendBinary(dst []byte) []byte {
	dst = append(c.appendHead(dst), c.Records...)
	return binary.BigEndian.AppendUint64(dst, c.Sum)
}

// DecodeStateChunk decodes what AppendBinary made of a chunk that is whole, and
// refuses all else with ErrChunkDamaged. The chunk shares the memory of b.
func DecodeStateChunk(b []byte) (StateChunk, error) {
	if len(b) > StateChunkMax {
		return StateChunk{}, fmt.Errorf("%w: it has %d bytes, at most %d are allowed", ErrChunkDamaged, len(b), StateChunkMax)
	}
	if len(b) < 8 {
		return StateChunk{}, fmt.Errorf("%w: it has %d bytes", ErrChunkDamaged, len(b))
	}
	var c StateChunk
	end := len(b) - 8
	c.Sum = binary.BigEndian.Uint64(b[end:])
	d := decoder{b: b[:end]}
	d.version(stateVersion)
	flags := d.byte()
	if flags&^stateChunkDone != 0 {
		d.fail(fmt.Sprintf("unknown flags %x", flags))
	}
	c.Done = flags == stateChunkDone
	if c.After = d.bytes(); len(c.After) == 0 {
		c.After = nil
	}
	c.Total = StateTotal{Records: d.uvarint(), Bytes: d.uvarint()}
	var sum [8]byte
	d.copy(sum[:])
	c.Total.Sum = binary.BigEndian.Uint64(sum[:])
	if d.err != "" {
		return StateChunk{}, fmt.Errorf("%w: %s", ErrChunkDamaged, d.err)
	}
	c.Records = d.b
	if err := c.whole(); err != nil {
		return StateChunk{}, err
	}
	var last []byte
	if err := c.each(func(key, _ []byte) error {
		last = append(last[:0], key...)
		return nil
	}); err != nil {
		return StateChunk{}, err
	}
	if c.Last = last; last == nil {
		c.Last = c.After
	}
	return c, nil
}

// appendStateRecord appends a record behind the one with the key before.
func appendStateRecord(dst, before, key, value []byte) []byte {
	shared := 0
	for shared < min(len(before), len(key)) && before[shared] == key[shared] {
		shared++
	}
	dst = binary.AppendUvarint(dst, uint64(shared))
	dst = appendBytes(dst, key[shared:])
	return appendBytes(dst, value)
}

// whole compares the chunk with its sum.
func (c *StateChunk) whole() error {
	if sum := c.sum(); sum != c.Sum {
		return fmt.Errorf("%w: its digest is %016x, not %016x", ErrChunkDamaged, sum, c.Sum)
	}
	return nil
}

// each calls f with each record. The key is good until f returns, the value as long
// as the chunk.
func (c *StateChunk) each(f func(key, value []byte) error) error {
	if len(c.After) > stateKeyMax {
		return fmt.Errorf("%w: it follows a key of %d bytes", ErrChunkDamaged, len(c.After))
	}
	if len(c.Records) == 0 && !c.Done {
		return fmt.Errorf("%w: it has no records", ErrChunkDamaged)
	}
	d := decoder{b: c.Records}
	key := make([]byte, 0, 64)
	for n := 0; len(d.b) > 0; n++ {
		shared, rest, value := d.uvarint(), d.bytes(), d.bytes()
		switch {
		case d.err != "":
		case shared > uint64(len(key)) || len(rest) == 0,
			// So keys ascend, and each has one form.
			shared < uint64(len(key)) && rest[0] <= key[shared]:
			d.fail("its keys do not ascend")
		case int(shared)+len(rest) > stateKeyMax || len(value) > stateValueMax:
			d.fail("a record is too large")
		}
		if d.err == "" {
			key = append(key[:shared], rest...)
			if n == 0 && bytes.Compare(key, c.After) <= 0 {
				d.fail("it begins before the key that it follows")
			}
		}
		if d.err != "" {
			return fmt.Errorf("%w: record %d: %s", ErrChunkDamaged, n, d.err)
		}
		if err := f(key, value); err != nil {
			return err
		}
	}
	return nil
}

// A StateReader reads everything that a DB held when ReadState was called. It is
// for one goroutine; the DB goes on meanwhile, but it cannot be closed before the
// reader is. Until then the tables that the reader needs stay on disk.
type StateReader struct {
	db       *DB
	snapshot *pebble.EventuallyFileOnlySnapshot
	applied  Applied
	header   StateHeader
	size     int64
	closed   bool
	// marks are tallies at some keys behind which a chunk may be asked for, ascending.
	// The first is that of the beginning. Invariant: 1 <= len(marks) <= stateMarksMax.
	marks []stateMark
}

// A stateMark is the tally of all records up to key.
type stateMark struct {
	key   []byte
	tally tally
}

const (
	// stateMarksMax bounds what a reader remembers, to less than a MiB.
	stateMarksMax = 4096
	// stateMarkBytes is how far marks are from each other when a reader catches up.
	stateMarkBytes = 4 << 20
)

// ReadState begins to read the newest state. It takes some milliseconds, for it
// looks at the properties of each table.
func (db *DB) ReadState() (*StateReader, error) {
	db.mu.Lock()
	if db.closed {
		db.mu.Unlock()
		return nil, fmt.Errorf("read the state: %w", ErrClosed)
	}
	db.open++ // From here on Close is refused.
	db.mu.Unlock()
	// Each batch is seen whole or not at all, and carries its revision. The snapshot
	// is of the kind that turns into a set of tables once its part of the memtables is
	// flushed: compactions then drop old versions as if it were not there. The trap of
	// the plain kind, that it loses what is excised, does not arise either.
	r := &StateReader{db: db, snapshot: db.pebble.NewEventuallyFileOnlySnapshot([]pebble.KeyRange{{Start: []byte{0}, End: []byte{0xff}}})}
	if err := r.begin(); err != nil {
		return nil, fmt.Errorf("read the state: %w", errors.Join(err, r.Close()))
	}
	return r, nil
}

func (r *StateReader) begin() (err error) {
	if r.applied, err = readApplied(r.snapshot); err != nil {
		return err
	}
	id, ok, err := get(r.snapshot, metaKey(metaCluster))
	if err != nil {
		return err
	}
	r.header = StateHeader{Format: formatVersion, Revision: r.applied.Revision, Term: r.applied.Term, Stamp: r.applied.Stamp}
	if ok && copy(r.header.ClusterID[:], id) != len(id) {
		return corruptf("the cluster's id has %d bytes", len(id))
	}
	r.marks = []stateMark{{tally: newTally(&r.header)}}
	r.size, err = r.db.rawBytes()
	return err
}

// rawBytes returns about how many bytes all keys and values have.
func (db *DB) rawBytes() (int64, error) {
	levels, err := db.pebble.SSTables(pebble.WithProperties())
	if err != nil {
		return 0, err
	}
	n := int64(db.pebble.Metrics().MemTable.Size)
	for _, level := range levels {
		for i := range level {
			p := level[i].Properties
			// Pebble counts 8 bytes of its own to each key.
			n += int64(p.RawKeySize) + int64(p.RawValueSize) - 8*int64(p.NumEntries)
		}
	}
	return max(n, 0), nil
}

// Applied returns how far the state has come that is read.
func (r *StateReader) Applied() Applied { return r.applied }

// Header returns what CreateState must be given.
func (r *StateReader) Header() StateHeader { return r.header }

// SizeEstimate returns about how many bytes StateTotal.Bytes will come to, for a
// display of progress: too much by what was replaced or removed and is still on the
// disk, and by what Pebble has reserved for its memtables, some MemTableBytes.
func (r *StateReader) SizeEstimate() int64 { return r.size }

// Chunk returns the records behind the key after, which is StateChunk.Last of
// another chunk, StateWriter.After, or empty for the first ones: targetBytes of
// them as they are encoded, at most 4 MiB, or one that is larger; none behind the
// last one. The caller decides how fast it asks.
//
// Asking for any chunk again costs no more than its neighbours. A reader that is
// asked to go on at a place where it never was reads everything before it, some
// million records a second, for the digest; and returns ErrStateDiffers when it has
// no record of that key. An error that IsCorruptionError knows means that this node
// must stop.
func (r *StateReader) Chunk(after []byte, targetBytes int) (StateChunk, error) {
	if r.closed {
		return StateChunk{}, fmt.Errorf("read the state: %w", ErrClosed)
	}
	if targetBytes < 1 {
		return StateChunk{}, fmt.Errorf("read the state: %w", invalid("size of a chunk", fmt.Sprint(targetBytes), "is too small", "at least 1 byte"))
	}
	chunk, err := r.chunk(after, min(targetBytes, stateTargetMax))
	if err != nil {
		return StateChunk{}, fmt.Errorf("read the state of revision %d: %w", r.applied.Revision, err)
	}
	return chunk, nil
}

func (r *StateReader) chunk(after []byte, target int) (chunk StateChunk, err error) {
	// The first mark is before everything.
	mark := r.marks[sort.Search(len(r.marks), func(i int) bool { return bytes.Compare(r.marks[i].key, after) > 0 })-1]
	it, err := r.snapshot.NewIter(&pebble.IterOptions{LowerBound: append(bytes.Clone(mark.key), 0)})
	if err != nil {
		return chunk, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	ok := it.First()
	if !bytes.Equal(mark.key, after) {
		if ok, err = r.catchUp(it, ok, &mark, after); err != nil {
			return chunk, err
		}
	}
	// The tally of this chunk goes on behind that of the mark, which is a copy.
	chunk.Records = make([]byte, 0, target)
	var last []byte
	for ; ok; ok = it.Next() {
		key := it.Key()
		value, err := it.ValueAndErr()
		if err != nil {
			return chunk, err
		}
		if len(key) > stateKeyMax || len(value) > stateValueMax {
			return chunk, fmt.Errorf("record %x has %d bytes, and its key %d: at most %d and %d can be sent",
				cut(key), len(value), len(key), stateValueMax, stateKeyMax)
		}
		begun := len(chunk.Records)
		chunk.Records = appendStateRecord(chunk.Records, last, key, value)
		if begun > 0 && len(chunk.Records) > target {
			chunk.Records = chunk.Records[:begun]
			break
		}
		mark.tally.add(key, value)
		last = append(last[:0], key...)
	}
	if err := it.Error(); err != nil {
		return chunk, err
	}
	if len(after) > 0 {
		chunk.After = bytes.Clone(after)
	}
	if chunk.Last = last; last == nil {
		chunk.Last = chunk.After
	}
	chunk.Done, chunk.Total = !ok, mark.tally.total()
	chunk.Sum = chunk.sum()
	r.remember(chunk.Last, &mark.tally)
	return chunk, nil
}

// catchUp reads to the record with the key after, and moves the mark there.
func (r *StateReader) catchUp(it *pebble.Iterator, ok bool, mark *stateMark, after []byte) (more bool, err error) {
	last, due := mark.key, mark.tally.bytes+stateMarkBytes
	key := []byte(nil)
	for ; ok && bytes.Compare(it.Key(), after) <= 0; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return false, err
		}
		key = append(key[:0], it.Key()...)
		last = key
		mark.tally.add(key, value)
		if mark.tally.bytes >= due {
			r.remember(key, &mark.tally)
			due = mark.tally.bytes + stateMarkBytes
		}
	}
	if err := it.Error(); err != nil {
		return false, err
	}
	if !bytes.Equal(last, after) {
		return false, fmt.Errorf("the receiver has come to the record %x, which does not exist: %w", cut(after), ErrStateDiffers)
	}
	return ok, nil
}

// remember adds a mark. Where there are too many, every other one goes.
func (r *StateReader) remember(key []byte, t *tally) {
	i, found := slices.BinarySearchFunc(r.marks, key, func(m stateMark, key []byte) int { return bytes.Compare(m.key, key) })
	if found {
		return
	}
	r.marks = slices.Insert(r.marks, i, stateMark{bytes.Clone(key), *t})
	if len(r.marks) < stateMarksMax {
		return
	}
	kept := r.marks[:0]
	for i := 0; i < len(r.marks); i += 2 {
		kept = append(kept, r.marks[i])
	}
	clear(r.marks[len(kept):])
	r.marks = kept
}

// Close gives the state back. Calling it again does nothing.
func (r *StateReader) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	err := r.snapshot.Close()
	r.db.mu.Lock()
	r.db.open--
	r.db.mu.Unlock()
	return err
}

// A StateWriter makes a directory of a state that is received. It is for one
// goroutine.
//
// What comes is written to tables, in order and each once, which are added to the
// directory when they are large enough; what is in them is durable. A crash takes
// back what came since, about stateTableBytes at most.
//
// Until Finish the directory has no format version, so that Open refuses it: that
// record, which every state has, is held back and written last. In its place there
// is the header, which says what is being received. Only a crash in the first
// moments of CreateState leaves a directory that has neither: it is as good as
// empty, for CreateState and for Open, or cannot be opened at all.
type StateWriter struct {
	config   Config
	header   StateHeader
	listener *listener
	pebble   *pebble.DB
	options  sstable.WriterOptions

	// after is the key of the last record, with the tally of all up to it; format says
	// that the format version was among them.
	after  []byte
	tally  tally
	format bool

	// table is the one that is being written, nil for none, under path; tableBytes is
	// how much it holds, tableMax at how much it is added, and meta whether it is of
	// the keyspace meta.
	table      *sstable.Writer
	path       string
	meta       bool
	tables     int
	tableBytes int
	tableMax   int

	err    error // The first of the disk's: nothing more can be written.
	closed bool
}

const (
	// stateTableBytes is how much a table holds, before compression: as much as a
	// crash may lose, and of which Pebble would otherwise make one in its lowest level.
	stateTableBytes = 32 << 20
	// stateSyncBytes is after how much the disk is told to begin writing, so that the
	// rest is not much for it to do at once while others wait for it.
	stateSyncBytes = 512 << 10
	// stateCacheBytes is the cache of a directory that is hardly ever read.
	stateCacheBytes = 8 << 20
	// stateTableName names tables that are not added yet.
	stateTableName = "incoming-%06d.table"
)

// metaIncoming names the record that holds the header of an unfinished state. No
// DB has it.
const metaIncoming = 0

// CreateState begins to receive a state, or goes on. config.Dir must be missing or
// empty, or hold what an earlier StateWriter of the same header left, after Close or
// a crash; it then reads that again, some million records a second. It takes some
// tens of MiB of memory, whatever config says. OnFatal is about this directory alone:
// the graph that this node has open may still be whole.
//
// It fails with a *FormatError for a state of another format version, with
// ErrStateDiffers for the rest of another state, with ErrStateComplete when Finish
// was here before, and with an error that IsCorruptionError knows when what was
// received was damaged since. In these cases and on an error of the disk removing the
// directory and beginning again is right.
func CreateState(config Config, of StateHeader) (*StateWriter, error) {
	w, err := createState(config, of)
	if err != nil {
		return nil, fmt.Errorf("receive a state into %s: %w", config.Dir, err)
	}
	return w, nil
}

func createState(config Config, of StateHeader) (*StateWriter, error) {
	if of.Format != formatVersion {
		return nil, &FormatError{Found: of.Format, Supported: formatVersion}
	}
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if config.FS == nil {
		config.FS = vfs.Default
	}
	if config.Logger == nil {
		config.Logger = slog.Default()
	}
	config.CacheBytes = stateCacheBytes
	left, err := stateTables(config)
	if err != nil {
		return nil, err
	}
	l := &listener{logger: config.Logger, onFatal: config.OnFatal, failed: make(chan struct{})}
	compactions := newScheduler()
	p, err := openPebble(config, l, compactions)
	if err != nil {
		return nil, err
	}
	options := config.options(l)
	options.EnsureDefaults()
	w := &StateWriter{
		config: config, header: of, listener: l, pebble: p, tally: newTally(&of), tableMax: stateTableBytes,
		options: options.MakeWriterOptions(len(options.Levels)-1, p.TableFormat()),
	}
	if err := w.load(left); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	compactions.open()
	return w, nil
}

// stateTables returns the tables in the directory that were not added, and refuses
// a directory with files of something else.
func stateTables(config Config) (left []string, err error) {
	names, err := config.FS.List(config.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		var n int
		if _, err := fmt.Sscanf(name, stateTableName, &n); err == nil && name == fmt.Sprintf(stateTableName, n) {
			left = append(left, config.FS.PathJoin(config.Dir, name))
			continue
		}
		if !isPebbleFile(name) {
			return nil, invalid("directory of a state", config.Dir, fmt.Sprintf("holds %q", name), "a directory that is missing, empty or an unfinished state")
		}
	}
	return left, nil
}

// isPebbleFile reports whether Pebble gives a file such a name.
func isPebbleFile(name string) bool {
	for _, prefix := range []string{"MANIFEST-", "OPTIONS-", "marker."} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	for _, suffix := range []string{".sst", ".blob", ".log", ".dbtmp"} {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return name == "LOCK"
}

// load finds out how far an earlier writer came, or begins.
func (w *StateWriter) load(left []string) error {
	if _, complete, err := get(w.pebble, metaKey(metaFormat)); err != nil {
		return err
	} else if complete {
		return ErrStateComplete
	}
	// Tables that were not added may be torn. What another program left must be gone
	// before one of the same name is made: a table that was added may share its file.
	for _, path := range left {
		if err := w.config.FS.Remove(path); err != nil {
			return err
		}
	}
	header, begun, err := get(w.pebble, metaKey(metaIncoming))
	if err != nil {
		return err
	}
	want := w.header.AppendBinary(nil)
	if begun {
		if !bytes.Equal(header, want) {
			return fmt.Errorf("the directory holds a part of the state %x, not of %x: %w", cut(header), want, ErrStateDiffers)
		}
		return w.resume()
	}
	err = scan(w.pebble, nil, func(key, _ []byte) error {
		return corruptf("the directory holds the record %x of a state without a header", cut(key))
	})
	if err != nil {
		return err
	}
	if err := w.pebble.Set(metaKey(metaIncoming), want, pebble.NoSync); err != nil {
		return err
	}
	return w.flush()
}

// resume reads what was received, which shows whether it still can be read.
func (w *StateWriter) resume() error {
	format := metaKey(metaFormat)
	return scan(w.pebble, nil, func(key, value []byte) error {
		if bytes.Equal(key, metaKey(metaIncoming)) {
			return nil
		}
		if !w.format && bytes.Compare(key, format) > 0 {
			// Write lets nothing pass that lies behind it before it came.
			w.format = true
			w.tally.add(format, binary.AppendUvarint(nil, w.header.Format))
		}
		w.tally.add(key, value)
		w.after = append(w.after[:0], key...)
		return nil
	})
}

// flush makes what was written without tables durable.
func (w *StateWriter) flush() error {
	if err := w.listener.err(); err != nil {
		return err
	}
	done, err := w.pebble.AsyncFlush()
	if err != nil {
		return err
	}
	select {
	case <-done:
	case <-w.listener.failed:
	}
	return w.listener.err()
}

// After returns the key behind which the next chunk must come; nil for the first
// one. It must not be changed. After a crash it may be before what it was.
func (w *StateWriter) After() []byte { return slices.Clip(w.after) }

// Total returns what the records come to that were received.
func (w *StateWriter) Total() StateTotal { return w.tally.total() }

// Write takes the next chunk. It refuses one that is damaged, out of place or of
// another state, with ErrChunkDamaged, ErrChunkMisplaced or ErrStateDiffers; nothing
// of it was taken then, and another may be given. After any other error, which is the
// disk's, only Close may be called.
func (w *StateWriter) Write(chunk StateChunk) error {
	if w.closed {
		return fmt.Errorf("receive a state: %w", ErrClosed)
	}
	if w.err != nil {
		return fmt.Errorf("receive a state: %w", w.err)
	}
	next, format, err := w.judge(&chunk)
	if err != nil {
		return fmt.Errorf("receive a state: %w", err)
	}
	err = chunk.each(w.put)
	if err == nil && w.tableBytes >= w.tableMax {
		err = w.add()
	}
	if err != nil {
		return w.fail(err)
	}
	w.tally, w.format = next, format
	w.after = append(w.after[:0:0], chunk.Last...)
	return nil
}

// fail keeps the first error.
func (w *StateWriter) fail(err error) error {
	w.err = fmt.Errorf("receive a state into %s: %w", w.config.Dir, err)
	return w.err
}

// judge says whether a chunk is the next one, and what comes of it.
func (w *StateWriter) judge(chunk *StateChunk) (next tally, format bool, err error) {
	next, format = w.tally, w.format
	if err := chunk.whole(); err != nil {
		return next, format, err
	}
	if !bytes.Equal(chunk.After, w.after) {
		return next, format, fmt.Errorf("it follows the record %x, and not %x: %w", cut(chunk.After), cut(w.after), ErrChunkMisplaced)
	}
	var last []byte
	version := binary.AppendUvarint(nil, w.header.Format)
	err = chunk.each(func(key, value []byte) error {
		// What keyspaces there are is not asked: the format version says which.
		if len(key) == 1 || bytes.Equal(key, metaKey(metaIncoming)) {
			return fmt.Errorf("a record has the key %x, which no state has: %w", cut(key), ErrStateDiffers)
		}
		switch order := bytes.Compare(key, metaKey(metaFormat)); {
		case order == 0 && !bytes.Equal(value, version):
			return fmt.Errorf("its format version is %x, not %x: %w", cut(value), version, ErrStateDiffers)
		case order == 0:
			format = true
		case order > 0 && !format:
			return fmt.Errorf("it has no format version: %w", ErrStateDiffers)
		}
		next.add(key, value)
		last = append(last[:0], key...)
		return nil
	})
	if err != nil {
		return next, format, err
	}
	if len(chunk.Records) == 0 {
		last = chunk.After
	}
	if !bytes.Equal(chunk.Last, last) {
		return next, format, fmt.Errorf("%w: its last record is %x, not %x", ErrChunkDamaged, cut(last), cut(chunk.Last))
	}
	if total := next.total(); total != chunk.Total {
		return next, format, fmt.Errorf("up to the record %x there are %+v here, and %+v at the sender: %w", cut(last), total, chunk.Total, ErrStateDiffers)
	}
	return next, format, nil
}

// put writes a record.
func (w *StateWriter) put(key, value []byte) error {
	if len(key) == 2 && key[0] == spaceMeta && key[1] == metaFormat {
		return nil // Finish writes it.
	}
	// The header and what Finish writes lie among the records of meta. With these in
	// a table of their own, small, no large one overlaps them: all others go to the
	// lowest level, where nothing has to be rewritten.
	if meta := key[0] == spaceMeta; meta != w.meta {
		if err := w.add(); err != nil {
			return err
		}
		w.meta = meta
	}
	if w.table == nil {
		if err := w.createTable(); err != nil {
			return err
		}
	}
	w.tableBytes += len(key) + len(value)
	return w.table.Set(key, value)
}

// createTable begins a table.
func (w *StateWriter) createTable() error {
	w.tables++ // No name is used twice, see load.
	w.path = w.config.FS.PathJoin(w.config.Dir, fmt.Sprintf(stateTableName, w.tables))
	file, err := w.config.FS.Create(w.path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	file = vfs.NewSyncingFile(file, vfs.SyncingFileOptions{BytesPerSync: stateSyncBytes})
	w.table, w.tableBytes = sstable.NewWriter(objstorageprovider.NewFileWritable(file), w.options), 0
	return nil
}

// add makes what was received so far durable.
func (w *StateWriter) add() error {
	if w.table == nil {
		return nil
	}
	err := w.table.Close() // Syncs the file.
	w.table, w.tableBytes = nil, 0
	if err != nil {
		return err
	}
	// The memtable is empty since the header was flushed, so Pebble need not flush it
	// first: when Ingest returns, the table is in the manifest, and that on the disk.
	if err := w.pebble.Ingest(context.Background(), []string{w.path}); err != nil {
		return err
	}
	return w.listener.err()
}

// Finish compares what was received with the sender's total, which is that of the
// chunk that was Done, makes the directory whole and durable, and closes. From then
// on Open opens it.
//
// It refuses with ErrStateDiffers what is not the whole state; the writer stays open
// then. After any other error only Close may be called: whether the directory is whole
// is then for CreateState to say.
func (w *StateWriter) Finish(total StateTotal) error {
	if w.closed {
		return fmt.Errorf("receive a state: %w", ErrClosed)
	}
	if w.err != nil {
		return fmt.Errorf("receive a state: %w", w.err)
	}
	if got := w.tally.total(); got != total || !w.format {
		return fmt.Errorf("receive a state: there are %+v here (format version: %t), and %+v at the sender: %w", got, w.format, total, ErrStateDiffers)
	}
	if err := w.add(); err != nil {
		return w.fail(err)
	}
	if err := w.compare(); err != nil {
		return fmt.Errorf("receive a state: %w", err)
	}
	if err := w.mark(); err != nil {
		return w.fail(err)
	}
	return w.Close()
}

// compare holds that the records say what the header said.
func (w *StateWriter) compare() error {
	applied, err := readRevision(w.pebble)
	switch {
	case errors.Is(err, errCorrupt):
		// It is as it was sent, and so no damage of this disk.
		return fmt.Errorf("its applied revision cannot be decoded (%s): %w", err.Error(), ErrStateDiffers)
	case err != nil:
		return w.fail(err)
	}
	id, ok, err := get(w.pebble, metaKey(metaCluster))
	if err != nil {
		return w.fail(err)
	}
	if !ok {
		id = make([]byte, len(w.header.ClusterID))
	}
	h := &w.header
	if applied.Revision != h.Revision || applied.Term != h.Term || applied.Stamp != h.Stamp || !bytes.Equal(id, h.ClusterID[:]) {
		return fmt.Errorf("revision %d, term %d, stamp %d of cluster %x was received as %d, %d, %d of %x: %w",
			h.Revision, h.Term, h.Stamp, h.ClusterID, applied.Revision, applied.Term, applied.Stamp, cut(id), ErrStateDiffers)
	}
	return nil
}

// mark makes the directory one that Open opens, in one batch.
func (w *StateWriter) mark() error {
	b := w.pebble.NewBatch()
	if err := b.Delete(metaKey(metaIncoming), nil); err != nil {
		return closeBatch(b, err)
	}
	if err := b.Set(metaKey(metaFormat), binary.AppendUvarint(nil, w.header.Format), nil); err != nil {
		return closeBatch(b, err)
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		return closeBatch(b, err)
	}
	if err := b.Close(); err != nil {
		return err
	}
	if err := w.flush(); err != nil {
		return err
	}
	// Pebble has synced the directory with each table. Its name it synced when it
	// made it, but not when the caller did.
	parent, err := w.config.FS.OpenDir(w.config.FS.PathDir(w.config.Dir))
	if err != nil {
		return err
	}
	return errors.Join(parent.Sync(), parent.Close())
}

// Close ends without Finish: for a pause, after which CreateState goes on behind
// what was written, or for good, when the caller removes the directory. Calling it
// again, or after Finish, does nothing.
func (w *StateWriter) Close() error {
	if w.closed {
		return nil
	}
	w.closed = true
	var errs []error
	if w.err == nil {
		if err := w.add(); err != nil {
			errs = append(errs, err)
		}
	} else if w.table != nil {
		// What it says of the disk was said by Write; a new writer removes the file.
		_ = w.table.Close()
	}
	if errs = append(errs, w.pebble.Close()); errors.Join(errs...) != nil {
		return fmt.Errorf("close the state in %s: %w", w.config.Dir, errors.Join(errs...))
	}
	return nil
}
