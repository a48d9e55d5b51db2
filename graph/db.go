package graph

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable/block"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// A Config says where a DB keeps its data and how much memory it may take.
type Config struct {
	// Dir is the directory of the data; it is created when missing. One process
	// at a time may have it open.
	Dir string
	// FS is the file system; nil for the disk.
	FS vfs.FS
	// CacheBytes bounds the cache of blocks read from disk; zero for 256 MiB.
	CacheBytes int64
	// MemTableBytes is how much is gathered in memory before it is written to
	// disk; zero for 32 MiB, at least 64 KiB, at most 1 GiB. Up to four times as
	// much is held, and replayed from the log after a crash.
	MemTableBytes int64
	// ResidentBytes bounds the memory in which the adjacency of current tuples is kept,
	// besides the cache; zero for 1 GiB, negative for none. What has no room is read
	// from the cache and the disk, with the same answers.
	ResidentBytes int64
	// Logger is told when something goes wrong in the background; nil for
	// slog.Default.
	Logger *slog.Logger
	// OnFatal is called at most once, on a goroutine of its own, with the first
	// error after which the DB can no longer keep its promises: a full or failing
	// disk, damaged data. From then on Commit and Flush return that error. The
	// caller must soon Close the DB, for Pebble tries again without pause. Nil
	// for none.
	OnFatal func(error)
}

// Validate reports the first field that makes no sense.
func (c Config) Validate() error {
	switch {
	case c.Dir == "":
		return invalid("graph directory", "", "is empty", "a path")
	case c.CacheBytes < 0:
		return invalid("graph cache size", fmt.Sprint(c.CacheBytes), "is negative", "a number of bytes, 0 for 256 MiB")
	case c.MemTableBytes != 0 && (c.MemTableBytes < 64<<10 || c.MemTableBytes > 1<<30):
		return invalid("graph memtable size", fmt.Sprint(c.MemTableBytes), "is out of range",
			"64 KiB to 1 GiB in bytes, 0 for 32 MiB")
	}
	return nil
}

// formatMajorVersion pins what Pebble writes, so that a newer library does not
// raise the format of the disk by itself: there is no way back.
const formatMajorVersion = pebble.FormatValueSeparation

func (c Config) options(l *listener) *pebble.Options {
	o := &pebble.Options{
		FS:                          c.FS,
		Comparer:                    comparer,
		FormatMajorVersion:          formatMajorVersion,
		DisableWAL:                  true, // The Raft log is the write-ahead log.
		CacheSize:                   c.CacheBytes,
		MemTableSize:                uint64(c.MemTableBytes),
		MemTableStopWritesThreshold: 4,
		L0CompactionThreshold:       2,
		L0StopWritesThreshold:       24,
		LBaseMaxBytes:               64 << 20,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 2 },
		TargetByteDeletionRate:      128 << 20,
		Logger:                      l,
		EventListener: &pebble.EventListener{
			BackgroundError: l.backgroundError,
			DataCorruption: func(info pebble.DataCorruptionInfo) {
				l.fatal(Damage(corruptf("%s: %v", info.Path, info.Details)))
			},
		},
	}
	if o.CacheSize == 0 {
		o.CacheSize = 256 << 20
	}
	if o.MemTableSize == 0 {
		o.MemTableSize = 32 << 20
	}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		o.Levels[i].Compression = func() *block.CompressionProfile { return block.FastestCompression }
	}
	return o
}

// Applied says how far a DB has come.
type Applied struct {
	// Revision is the last one applied, with the term of its entry; zero when
	// nothing was.
	Revision Revision
	Term     uint64
	// Stamp is the highest stamp applied.
	Stamp Instant
	// Checksum hashes everything that was committed since the revision
	// ChecksumSince, that one among it: two nodes that applied the same entries have
	// the same, whatever happened to them, and nodes that differ in what they
	// committed have others. Both are zero before Init, and where an older program
	// began the data until there is a StartChecksum.
	Checksum      uint64
	ChecksumSince Revision
	// Configuration is the last Raft configuration stored, as it was given, and
	// ConfigurationRevision its revision; nil and zero for none. It must not be
	// changed.
	Configuration         []byte
	ConfigurationRevision Revision
}

// A DB keeps the graph of every store in one directory. It is safe for use by
// several goroutines, but only one may commit.
//
// Writing is not durable by itself: after a crash a DB is exactly what it was at
// some revision between the last Flush and the last Commit, and the caller
// commits again what follows.
type DB struct {
	config   Config
	pebble   *pebble.DB
	listener *listener

	// life is held shared by what may take long, and alone by Close. It comes
	// before commit, which serialises Commit, and commit before mu.
	life   sync.RWMutex
	commit sync.Mutex
	writer writer // guarded by commit

	// unfinished is the staged change that is being committed, or was when the
	// program ended; nil for none. It is written with commit and mu held.
	unfinished *unfinishedStage
	// stageBatchBytes is about how much one batch of it writes; betweenBatches,
	// which tests set, is called behind each but the last.
	stageBatchBytes int
	betweenBatches  func()
	// nextStore is the number of the next store to be created; guarded by commit.
	nextStore StoreID
	requests  requestQueue // guarded by commit
	asked     atomic.Pointer[askedRequest]
	// removal serialises Remove. It comes after life and before commit.
	removal sync.Mutex
	// residents keeps the stores' adjacency in memory; nil for none.
	residents *residents

	applied   atomic.Pointer[Applied]
	durable   atomic.Pointer[Applied]
	cluster   atomic.Pointer[[16]byte]
	ancestors atomic.Pointer[[]Ancestor]

	// mu is held shortly: never while Pebble writes.
	mu     sync.Mutex
	closed bool
	stores map[StoreID]*store
	names  map[string]StoreID // of stores, by their names
	view   *view              // the newest, or nil when a Commit made it old
	views  int                // how many have users
	open   int                // how many users the views have, the DB aside
}

// Open opens the data in a directory, or begins a new one. It fails with a
// *FormatError for a directory of a format version that it does not know.
func Open(config Config) (*DB, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if config.FS == nil {
		config.FS = vfs.Default
	}
	if config.Logger == nil {
		config.Logger = slog.Default()
	}
	l := &listener{logger: config.Logger, onFatal: config.OnFatal, failed: make(chan struct{})}
	compactions := newScheduler()
	p, err := openPebble(config, l, compactions)
	if err != nil {
		return nil, fmt.Errorf("open the graph in %s: %w", config.Dir, err)
	}
	db := &DB{config: config, pebble: p, listener: l, stageBatchBytes: stageBatchBytes}
	if err := db.load(compactions); err != nil {
		return nil, errors.Join(fmt.Errorf("open the graph in %s: %w", config.Dir, err), p.Close())
	}
	// Not before: what refuses to load need not wait for a compaction to end.
	compactions.open()
	db.residents.start()
	return db, nil
}

// openPebble opens Pebble, but does not wait for it once its background work has
// failed: Pebble would try again for ever. It is then closed if it ever opens.
func openPebble(config Config, l *listener, compactions *scheduler) (*pebble.DB, error) {
	type result struct {
		pebble *pebble.DB
		err    error
	}
	opened := make(chan result)
	go func() {
		p, err := openRecovered(config, l, compactions)
		select {
		case opened <- result{p, err}:
		case <-l.failed:
			if err == nil {
				if err := p.Close(); err != nil {
					l.Errorf("close after a failure: %v", err)
				}
			}
		}
	}()
	select {
	case r := <-opened:
		return r.pebble, r.err
	case <-l.failed:
		return nil, l.err()
	}
}

// openRecovered is pebble.Open that returns a panic as corruption: that is how
// Pebble answers a manifest whose records do not fit together.
func openRecovered(config Config, l *listener, compactions *scheduler) (p *pebble.DB, err error) {
	options := config.options(l)
	options.Experimental.CompactionScheduler = compactions
	defer func() {
		if v := recover(); v != nil {
			p, err = nil, corruptf("the files in %s do not fit together: %v", config.Dir, v)
		}
		if err != nil {
			compactions.Unregister() // Pebble does so only when it is closed.
		}
	}()
	p, err = pebble.Open(config.Dir, options)
	switch {
	case err == nil:
	case errors.Is(err, os.ErrNotExist):
		// Of a table, for all else is made where it is missing.
		return nil, corruptf("a file that the manifest in %s names is missing, or the manifest is damaged: %v", config.Dir, err)
	default:
		return nil, err
	}
	return p, nil
}

// load reads what is kept in memory, and marks a new directory.
func (db *DB) load(compactions *scheduler) error {
	if err := db.checkFormat(compactions); err != nil {
		return err
	}
	applied, err := readApplied(db.pebble)
	if err != nil {
		return err
	}
	db.applied.Store(&applied)
	db.durable.Store(&applied)
	if db.unfinished, err = readUnfinished(db.pebble); err != nil {
		return err
	}
	id, ancestors, err := readIdentity(db.pebble)
	if err != nil {
		return err
	}
	db.cluster.Store(&id)
	db.ancestors.Store(&ancestors)
	if db.requests, err = loadRequests(db.pebble); err != nil {
		return err
	}
	if db.nextStore, err = readNextStore(db.pebble); err != nil {
		return err
	}
	if db.stores, err = loadStores(db.pebble); err != nil {
		return err
	}
	db.names = map[string]StoreID{}
	for id, st := range db.stores {
		name := st.catalog.record.name
		if other, twice := db.names[name]; twice || id >= db.nextStore {
			return corruptf("store %d has the name %q, which is that of store %d, or a number of %d and more", id, name, other, db.nextStore)
		}
		db.names[name] = id
	}
	db.residents = newResidents(db)
	return nil
}

// checkFormat compares the version in the directory, or writes it into an empty
// one. It stands in the first batch, so that every prefix of batches has it.
func (db *DB) checkFormat(compactions *scheduler) error {
	value, ok, err := get(db.pebble, metaKey(metaFormat))
	if err != nil {
		return err
	}
	if ok {
		found, n := binary.Uvarint(value)
		if n <= 0 || n != len(value) {
			return corruptf("the format version is %x", cut(value))
		}
		switch found {
		case formatVersion:
			return nil
		case storesVersion, countersVersion:
			// What came since has keyspaces of its own, or records that are read in both
			// forms: there is nothing to rewrite.
			return db.pebble.Set(metaKey(metaFormat), binary.AppendUvarint(nil, formatVersion), pebble.NoSync)
		case oldestFormatVersion:
			compactions.open() // A large write may have to wait for one.
			return db.upgrade()
		}
		return &FormatError{Found: found, Supported: formatVersion}
	}
	empty := true
	err = scan(db.pebble, nil, func([]byte, []byte) error {
		empty = false
		return errStop
	})
	if err != nil {
		return err
	}
	if !empty {
		return corruptf("the directory holds data without a format version")
	}
	return db.pebble.Set(metaKey(metaFormat), binary.AppendUvarint(nil, formatVersion), pebble.NoSync)
}

// readApplied reads how far r has come.
func readApplied(r pebble.Reader) (Applied, error) {
	a, err := readRevision(r)
	if err != nil {
		return a, err
	}
	value, ok, err := get(r, metaKey(metaConfiguration))
	if err != nil {
		return a, err
	}
	if ok {
		rev, n := binary.Uvarint(value)
		if n <= 0 {
			return a, corruptf("the configuration's revision is %x", cut(value))
		}
		a.ConfigurationRevision, a.Configuration = Revision(rev), value[n:]
	}
	return a, nil
}

// readRevision is readApplied without the configuration.
func readRevision(r pebble.Reader) (Applied, error) {
	var a Applied
	value, ok, err := get(r, metaKey(metaApplied))
	if err != nil || !ok {
		return a, err
	}
	return a, a.decode(value)
}

func (a *Applied) appendApplied(dst []byte) []byte {
	dst = append(dst, clusterVersion)
	dst = binary.AppendUvarint(dst, uint64(a.Revision))
	dst = binary.AppendUvarint(dst, a.Term)
	dst = binary.AppendUvarint(dst, uint64(a.Stamp))
	dst = binary.AppendUvarint(dst, uint64(a.ChecksumSince))
	if a.ChecksumSince == 0 {
		return dst
	}
	return binary.BigEndian.AppendUint64(dst, a.Checksum)
}

// decode reads what appendApplied wrote, or a program before there was a checksum.
func (a *Applied) decode(b []byte) error {
	d := decoder{b: b}
	version := d.byte()
	if d.err == "" && version != recordVersion && version != clusterVersion {
		d.fail(fmt.Sprintf("version %d, not %d or %d", version, recordVersion, clusterVersion))
	}
	*a = Applied{Revision: Revision(d.uvarint()), Term: d.uvarint(), Stamp: d.instant()}
	if version == clusterVersion {
		if a.ChecksumSince = Revision(d.uvarint()); a.ChecksumSince != 0 {
			var checksum [8]byte
			d.copy(checksum[:])
			a.Checksum = binary.BigEndian.Uint64(checksum[:])
		}
		if a.ChecksumSince > a.Revision {
			d.fail("a checksum since a revision that is not applied")
		}
	}
	return d.finish("the applied revision")
}

// Close flushes and closes. It is refused while snapshots are open, with
// ErrSnapshotsOpen, and again after it succeeded. After a fatal error it closes
// without flushing.
func (db *DB) Close() (err error) {
	db.life.Lock()
	defer db.life.Unlock()
	db.residents.end()
	defer func() {
		if errors.Is(err, ErrSnapshotsOpen) {
			db.residents.start()
		}
	}()
	db.commit.Lock()
	defer db.commit.Unlock()
	db.mu.Lock()
	if db.closed {
		db.mu.Unlock()
		return ErrClosed
	}
	if open := db.open; open > 0 {
		db.mu.Unlock()
		return fmt.Errorf("close the graph in %s: %d %w", db.config.Dir, open, ErrSnapshotsOpen)
	}
	db.closed = true
	old := db.view
	db.view = nil
	db.mu.Unlock()

	var errs []error
	if old != nil {
		errs = append(errs, db.release(old))
	}
	if db.listener.err() == nil {
		if _, err := db.flush(); err != nil {
			errs = append(errs, err)
		}
	}
	if err := db.pebble.Close(); err != nil {
		errs = append(errs, fmt.Errorf("close the graph in %s: %w", db.config.Dir, err))
	}
	return errors.Join(errs...)
}

// Applied returns how far the DB has come. It takes no lock.
func (db *DB) Applied() Applied { return *db.applied.Load() }

// Durable returns what survives any crash: what the last Flush reached, or what
// Open found. Pebble may have written more. It takes no lock.
func (db *DB) Durable() Applied { return *db.durable.Load() }

// ClusterID returns the id that Init gave, or the last Renew; zero before.
func (db *DB) ClusterID() [16]byte { return *db.cluster.Load() }

// Flush makes everything committed so far durable and returns how far that is.
// It may take as long as writing four memtables to disk; commits go on
// meanwhile. It fails when the disk does.
func (db *DB) Flush() (Applied, error) {
	db.life.RLock()
	defer db.life.RUnlock()
	if db.isClosed() {
		return Applied{}, ErrClosed
	}
	return db.flush()
}

func (db *DB) isClosed() bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.closed
}

// flush needs db.life, so that Close cannot pull Pebble from under it.
func (db *DB) flush() (Applied, error) {
	applied := db.applied.Load()
	if err := db.listener.err(); err != nil {
		return Applied{}, fmt.Errorf("flush the graph: %w", err)
	}
	done, err := db.pebble.AsyncFlush()
	if err != nil {
		return Applied{}, fmt.Errorf("flush the graph: %w", err)
	}
	select {
	case <-done:
	case <-db.listener.failed:
	}
	// A flush that succeeded after a failure proves nothing: the disk may have
	// dropped what it could not write and said so only once.
	if err := db.listener.err(); err != nil {
		return Applied{}, fmt.Errorf("flush the graph: %w", err)
	}
	for {
		// Another flush may have come further.
		old := db.durable.Load()
		if old.Revision >= applied.Revision || db.durable.CompareAndSwap(old, applied) {
			return *applied, nil
		}
	}
}

// Metrics are the figures of a DB.
type Metrics struct {
	// Applied is the applied revision, Durable the one that survives a crash.
	Applied Revision
	Durable Revision
	// Stores is how many stores exist, Tuples how many current tuples they hold.
	Stores int
	Tuples uint64
	// Snapshots is how many are open; Views on how many different states.
	Snapshots int
	Views     int
	// ResidentBytes is what the adjacency and the names in memory take.
	ResidentBytes int64
	// DiskBytes is how much the directory takes.
	DiskBytes uint64
	// Pebble is everything that Pebble says of itself.
	Pebble *pebble.Metrics
}

// Metrics gathers the figures; it costs about a millisecond.
func (db *DB) Metrics() (Metrics, error) {
	m := Metrics{Applied: db.Applied().Revision, Durable: db.Durable().Revision}
	db.life.RLock()
	defer db.life.RUnlock()
	db.mu.Lock()
	closed := db.closed
	m.Stores, m.Snapshots, m.Views = len(db.stores), db.open, db.views
	for _, st := range db.stores {
		m.Tuples += st.tuples
	}
	db.mu.Unlock()
	if closed {
		return Metrics{}, ErrClosed
	}
	m.ResidentBytes = db.residents.total.Load()
	m.Pebble = db.pebble.Metrics()
	m.DiskBytes = m.Pebble.DiskSpaceUsage()
	return m, nil
}

// A listener hears what Pebble says. It is Pebble's logger too, for that is how
// Pebble tells that its manifest could not be written.
type listener struct {
	logger  *slog.Logger
	onFatal func(error)

	once   sync.Once
	cause  error         // set before failed is closed
	failed chan struct{} // closed by the first fatal error
}

// err returns the fatal error, or nil.
func (l *listener) err() error {
	select {
	case <-l.failed:
		return l.cause
	default:
		return nil
	}
}

// retryPause is how long Pebble is held up before it tries again what failed.
// By itself it makes no pause and takes a whole core.
const retryPause = 10 * time.Millisecond

// fatal keeps the first error. OnFatal gets a goroutine of its own because
// Pebble calls with its locks held.
func (l *listener) fatal(err error) {
	first := false
	l.once.Do(func() {
		first = true
		l.cause = err
		close(l.failed)
		l.logger.Error("the graph can no longer be written or trusted", "error", err)
		if l.onFatal != nil {
			go l.onFatal(err)
		}
	})
	if !first {
		time.Sleep(retryPause)
	}
}

func (l *listener) backgroundError(err error) {
	l.fatal(fmt.Errorf("the graph's background work failed: %w", Damage(err)))
}

// Infof drops what Pebble says in passing: a line per table is no state change.
func (l *listener) Infof(string, ...any) {}

// Errorf passes on what Pebble could not do but survives.
func (l *listener) Errorf(format string, args ...any) {
	l.logger.Warn("pebble", "message", fmt.Sprintf(format, args...))
}

// Fatalf returns, although Pebble would rather it did not: what it is called for
// comes back as an error too, and it is the caller of Commit and Flush who
// decides how the process ends.
func (l *listener) Fatalf(format string, args ...any) {
	failure := &fatalError{message: "the graph's background work failed: " + fmt.Sprintf(format, args...)}
	for _, arg := range args {
		if err, ok := arg.(error); ok {
			failure.cause = err
		}
	}
	l.fatal(failure)
}

// A fatalError is what Pebble gave Fatalf to print.
type fatalError struct {
	message string
	cause   error // the error among what was to be printed, or nil
}

func (e *fatalError) Error() string { return e.message }

func (e *fatalError) Unwrap() error { return e.cause }

// A view is the graph at one revision, shared by the snapshots that read it.
type view struct {
	pebble  *pebble.Snapshot
	applied Applied
	// unfinished is the staged change of which the state holds a part that is of
	// a revision beyond applied; nil for none.
	unfinished *unfinishedStage
	users      int // guarded by DB.mu; the DB itself is one while the view is newest

	mu   sync.Mutex
	free []*pebble.Iterator // without bounds
}

// keptIterators bounds how many idle iterators a view keeps: each pins the
// tables it was made on.
const keptIterators = 16

// acquire returns the newest view with one more user, to be given back by leave.
func (db *DB) acquire() (*view, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed {
		return nil, ErrClosed
	}
	if db.view == nil {
		// The batch of a Commit is seen whole or not at all, and carries its own
		// revision: what the Pebble snapshot says of itself is right, whether or
		// not that Commit has returned.
		snap := db.pebble.NewSnapshot()
		applied, err := readRevision(snap)
		if err != nil {
			return nil, errors.Join(err, snap.Close())
		}
		var unfinished *unfinishedStage
		if db.unfinished != nil {
			if unfinished, err = readUnfinished(snap); err != nil {
				return nil, errors.Join(err, snap.Close())
			}
		}
		db.view = &view{pebble: snap, applied: applied, unfinished: unfinished, users: 1}
		db.views++
	}
	db.view.users++
	db.open++
	return db.view, nil
}

// leave gives back what acquire returned.
func (db *DB) leave(v *view) error {
	err := db.release(v)
	db.mu.Lock()
	db.open--
	db.mu.Unlock()
	return err
}

// release takes one user away, and closes a view that has none.
func (db *DB) release(v *view) error {
	db.mu.Lock()
	v.users--
	last := v.users == 0
	if last {
		db.views--
	}
	db.mu.Unlock()
	if !last {
		return nil
	}
	var errs []error
	for _, it := range v.free {
		errs = append(errs, it.Close())
	}
	errs = append(errs, v.pebble.Close())
	return errors.Join(errs...)
}

// iterator returns an idle iterator of the view, or a new one.
func (v *view) iterator() (*pebble.Iterator, error) {
	v.mu.Lock()
	if n := len(v.free); n > 0 {
		it := v.free[n-1]
		v.free = v.free[:n-1]
		v.mu.Unlock()
		return it, nil
	}
	v.mu.Unlock()
	return v.pebble.NewIter(nil)
}

// recycle takes an iterator back; one that failed is closed.
func (v *view) recycle(it *pebble.Iterator, bounded bool) error {
	if it == nil {
		return nil
	}
	if it.Error() != nil {
		return it.Close()
	}
	if bounded {
		it.SetBounds(nil, nil)
	}
	v.mu.Lock()
	if len(v.free) < keptIterators {
		v.free = append(v.free, it)
		it = nil
	}
	v.mu.Unlock()
	if it != nil {
		return it.Close()
	}
	return nil
}

// get returns a copy of a value.
func get(r pebble.Reader, key []byte) (value []byte, ok bool, err error) {
	v, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	return bytes.Clone(v), true, closer.Close()
}

// errStop ends a scan early.
var errStop = errors.New("stop")

// scan calls f with every key that begins with prefix, in order. Key and value
// are good until f returns.
func scan(r pebble.Reader, prefix []byte, f func(key, value []byte) error) error {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: prefixEnd(prefix)})
	if err != nil {
		return err
	}
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err == nil {
			err = f(it.Key(), value)
		}
		if errors.Is(err, errStop) {
			break
		}
		if err != nil {
			return errors.Join(err, it.Close())
		}
	}
	return it.Close()
}

// prefixEnd returns the first key that is beyond every key with the prefix; nil
// when there is none.
func prefixEnd(prefix []byte) []byte {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] != 0xff {
			end := bytes.Clone(prefix[:i+1])
			end[i]++
			return end
		}
	}
	return nil
}

func storeOf(key []byte) StoreID { return StoreID(binary.BigEndian.Uint32(key[1:])) }

func revisionOf(b []byte) Revision { return Revision(binary.BigEndian.Uint64(b)) }
