package graph

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

// A caller that lost the answer to a change asks for it again, and the log may
// then hold it twice. So a change can carry an id, and what became of it is
// remembered under the id for some time, as a part of the state. Time is that of
// the entries' stamps, so that all nodes remember the same.
//
// Each id that is remembered has two records, by id and by the revision that it
// was remembered at. The latter are in the order of age too, for stamps never
// fall. Forgetting goes on with each commit that remembers: it forgets at most
// forgottenMax, which is more than comes in, and so it costs about the same
// whatever has gathered.

const (
	// MaxRequestIDLength bounds the id of a request, in bytes.
	MaxRequestIDLength = 64
	// RequestLifetime is for how many microseconds what became of a request is
	// remembered: 5 minutes.
	RequestLifetime Instant = 5 * 60 * 1e6

	// forgottenMax is how many a commit that remembers one forgets at most. It is
	// the same on every node, for the checksum is of it.
	forgottenMax = 4
)

// A RequestCommit has the Commit remember what became of a request.
type RequestCommit struct {
	// ID has 1 to MaxRequestIDLength bytes, and is remembered of no other commit
	// at the Commit's stamp.
	ID []byte
	// Changed, Partial and Stage are kept as they are. Stage is kept when its ID
	// is not zero.
	Changed int
	Partial bool
	Stage   StageInfo
}

// A RequestOutcome is what became of a request.
type RequestOutcome struct {
	// Revision is the one that the Commit had, and Instant its stamp.
	Revision Revision
	Instant  Instant
	// Store is the store that the Commit created; zero for none.
	Store StoreID
	// Changed, Partial and Stage are those of RequestCommit.
	Changed int
	Partial bool
	Stage   StageInfo
}

// over reports whether what was remembered at a stamp is no longer at another.
func over(stamp, at Instant) bool { return stamp+RequestLifetime <= at }

// Request returns what became of the request of an id, as of the last Commit; it
// is false when none is remembered at an instant, which is a stamp to come. What
// is asked for at most RequestLifetime after its stamp is found. It is safe for
// use by several goroutines; one of an unknown id costs about a microsecond.
func (db *DB) Request(id []byte, at Instant) (RequestOutcome, bool, error) {
	db.life.RLock()
	defer db.life.RUnlock()
	if db.isClosed() {
		return RequestOutcome{}, false, ErrClosed
	}
	asked := &askedRequest{applied: db.applied.Load()} // Before the state is read.
	o, ok, err := readRequest(db.pebble, appendRequestKey(nil, id))
	if err != nil {
		return RequestOutcome{}, false, fmt.Errorf("look up the request %x: %w", cut(id), err)
	}
	if len(id) <= MaxRequestIDLength {
		asked.id, asked.outcome, asked.found = string(id), o, ok
		db.asked.Store(asked)
	}
	if !ok || over(o.Instant, at) {
		return RequestOutcome{}, false, nil
	}
	return o, true, nil
}

// An askedRequest is what Request read last. The Commit that follows mostly is of
// that id, and need not read it again.
type askedRequest struct {
	applied *Applied // how far the state had come, or an earlier one
	id      string
	outcome RequestOutcome
	found   bool
}

// stored returns what stands under the id of a request, over or not. The caller
// holds db.commit.
func (db *DB) stored(id []byte) (RequestOutcome, bool, error) {
	// What was read when this was the last Commit is what that one left.
	if a := db.asked.Load(); a != nil && a.applied == db.applied.Load() && a.id == string(id) {
		return a.outcome, a.found, nil
	}
	return readRequest(db.pebble, appendRequestKey(nil, id))
}

// A requestQueue knows where the oldest request stands that is remembered. To
// look for it on disk would be to pass the tombstones of all that were forgotten.
//
// Invariant: page holds those below next, and next <= newest + 1, but that both
// are zero before the first.
type requestQueue struct {
	// page are the oldest, by revision; it is read ahead.
	page []rememberedRequest
	// next is where reading goes on.
	next Revision
	// newest is the revision of the last one that was remembered; zero when none is.
	newest Revision
}

// A rememberedRequest is a record of spaceRequestOrder.
type rememberedRequest struct {
	revision Revision
	stamp    Instant
	id       []byte
}

// requestPage is how many a requestQueue reads at once.
const requestPage = 64

// loadRequests finds the oldest and the newest. It may pass many tombstones.
func loadRequests(r pebble.Reader) (q requestQueue, err error) {
	prefix := []byte{spaceRequestOrder}
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: prefixEnd(prefix)})
	if err != nil {
		return q, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if !it.First() {
		return q, it.Error()
	}
	if q.next, err = parseRequestOrderKey(it.Key()); err != nil {
		return q, err
	}
	if !it.Last() {
		return q, it.Error()
	}
	q.newest, err = parseRequestOrderKey(it.Key())
	return q, err
}

// due returns the oldest that are over at a stamp, forgottenMax at most. They are
// good until the next call.
func (q *requestQueue) due(r pebble.Reader, at Instant) ([]rememberedRequest, error) {
	n := 0
	for n < forgottenMax {
		if n == len(q.page) {
			if q.next > q.newest || q.newest == 0 {
				break
			}
			if err := q.read(r); err != nil {
				return nil, err
			}
		}
		if !over(q.page[n].stamp, at) {
			break
		}
		n++
	}
	return q.page[:n], nil
}

// read appends to the page.
func (q *requestQueue) read(r pebble.Reader) (err error) {
	it, err := r.NewIter(&pebble.IterOptions{
		LowerBound: appendRequestOrderKey(nil, q.next), UpperBound: appendRequestOrderKey(nil, q.newest+1),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	count := 0
	for ok := it.First(); ok && count < requestPage; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		o, err := decodeRequestOrder(it.Key(), value)
		if err != nil {
			return err
		}
		q.page = append(q.page, o)
		q.next = o.revision + 1
		count++
	}
	if err := it.Error(); err != nil {
		return err
	}
	if count == 0 {
		return corruptf("no request is remembered of the revisions %d to %d", q.next, q.newest)
	}
	return nil
}

// remembered takes into memory that a revision remembered a request, forgot the n
// oldest, and besides one of another revision unless that is zero.
func (q *requestQueue) remembered(rev Revision, n int, besides Revision) {
	q.page = slices.Delete(q.page, 0, n)
	if besides != 0 {
		q.page = slices.DeleteFunc(q.page, func(o rememberedRequest) bool { return o.revision == besides })
	}
	if q.newest == 0 {
		q.next = rev
	}
	q.newest = rev
}

// remember puts into the batch what became of the request, if the Commit has one,
// and forgets some that are over. Store is the one that the Commit created.
func (w *writer) remember(db *DB, store StoreID) error {
	r := w.c.Request
	if r == nil {
		return nil
	}
	if n := len(r.ID); n == 0 || n > MaxRequestIDLength || r.Changed < 0 {
		return fmt.Errorf("a request with an id of %d bytes and %d changes cannot be remembered; 1 to %d bytes are allowed", n, r.Changed, MaxRequestIDLength)
	}
	old, found, err := db.stored(r.ID)
	if err != nil {
		return err
	}
	if found && !over(old.Instant, w.c.Stamp) {
		return fmt.Errorf("the request %x was made by revision %d already", r.ID, old.Revision)
	}
	due, err := db.requests.due(db.pebble, w.c.Stamp)
	if err != nil {
		return err
	}
	for i := range due {
		o := &due[i]
		w.key = appendRequestOrderKey(w.key[:0], o.revision)
		if err := w.batch.Delete(w.key, nil); err != nil {
			return err
		}
		w.key = appendRequestKey(w.key[:0], o.id)
		if err := w.batch.Delete(w.key, nil); err != nil {
			return err
		}
		if found && o.revision == old.Revision {
			found = false
		}
	}
	w.forgotten = len(due)
	if found {
		// It is over, but it is not its turn yet; the id is the new one's now.
		w.forgottenBesides = old.Revision
		w.key = appendRequestOrderKey(w.key[:0], old.Revision)
		if err := w.batch.Delete(w.key, nil); err != nil {
			return err
		}
	}
	o := RequestOutcome{
		Revision: w.c.Revision, Instant: w.c.Stamp, Store: store, Changed: r.Changed, Partial: r.Partial, Stage: r.Stage,
	}
	w.key = appendRequestKey(w.key[:0], r.ID)
	w.value = o.append(w.value[:0])
	if err := w.batch.Set(w.key, w.value, nil); err != nil {
		return err
	}
	w.key = appendRequestOrderKey(w.key[:0], w.c.Revision)
	w.value = appendRequestOrder(w.value[:0], w.c.Stamp, r.ID)
	return w.batch.Set(w.key, w.value, nil)
}

// Keys and values of remembered requests.

func appendRequestKey(dst, id []byte) []byte { return append(append(dst, spaceRequest), id...) }

func appendRequestOrderKey(dst []byte, rev Revision) []byte {
	return binary.BigEndian.AppendUint64(append(dst, spaceRequestOrder), uint64(rev))
}

func parseRequestOrderKey(key []byte) (Revision, error) {
	if len(key) != 1+8 {
		return 0, corruptf("key %x of a request's revision", cut(key))
	}
	return revisionOf(key[1:]), nil
}

func appendRequestOrder(dst []byte, stamp Instant, id []byte) []byte {
	dst = binary.AppendUvarint(append(dst, clusterVersion), uint64(stamp))
	return append(dst, id...)
}

// decodeRequestOrder reads a key and value of spaceRequestOrder.
func decodeRequestOrder(key, value []byte) (o rememberedRequest, err error) {
	if o.revision, err = parseRequestOrderKey(key); err != nil {
		return o, err
	}
	d := decoder{b: value}
	d.version(clusterVersion)
	o.stamp = d.instant()
	if n := len(d.b); d.err == "" && (n == 0 || n > MaxRequestIDLength) {
		d.fail("no id of a request")
	}
	o.id, d.b = slices.Clone(d.b), nil
	return o, d.finish("the request of a revision")
}

// Flags of an encoded RequestOutcome.
const (
	outcomePartial = 1 << iota
	outcomeStage
	outcomeEnd
)

func (o *RequestOutcome) append(dst []byte) []byte {
	var flags byte
	if o.Partial {
		flags |= outcomePartial
	}
	if o.Stage.ID != (StageID{}) {
		flags |= outcomeStage
	}
	dst = append(dst, clusterVersion, flags)
	dst = binary.AppendUvarint(dst, uint64(o.Revision))
	dst = binary.AppendUvarint(dst, uint64(o.Instant))
	dst = binary.AppendUvarint(dst, uint64(o.Store))
	dst = binary.AppendUvarint(dst, uint64(o.Changed))
	if flags&outcomeStage != 0 {
		dst = o.Stage.appendWhole(dst)
	}
	return dst
}

func (o *RequestOutcome) decode(b []byte) error {
	d := decoder{b: b}
	d.version(clusterVersion)
	flags := d.byte()
	if flags >= outcomeEnd {
		d.fail("unknown flags")
	}
	*o = RequestOutcome{
		Partial:  flags&outcomePartial != 0,
		Revision: Revision(d.uvarint()), Instant: d.instant(), Store: StoreID(d.uint32()),
	}
	changed := d.uvarint()
	if changed > math.MaxInt {
		d.fail("too many changes")
	}
	o.Changed = int(changed)
	if flags&outcomeStage != 0 {
		if o.Stage.decodeWhole(&d); d.err == "" && o.Stage.ID == (StageID{}) {
			d.fail("a stage without an id")
		}
	}
	return d.finish("what became of a request")
}

// readRequest reads what stands under a key of spaceRequest.
func readRequest(r pebble.Reader, key []byte) (o RequestOutcome, ok bool, err error) {
	value, closer, err := r.Get(key)
	if err == pebble.ErrNotFound { //nolint:errorlint // Get returns it bare.
		return o, false, nil
	}
	if err != nil {
		return o, false, err
	}
	err = o.decode(value)
	return o, err == nil, errors.Join(err, closer.Close())
}

// requestOrder checks the request of a revision. Those by id come behind all of
// these.
func (c *checker) requestOrder(key, value []byte) error {
	o, err := decodeRequestOrder(key, value)
	if err != nil {
		return err
	}
	got, ok, err := readRequest(c.r, appendRequestKey(nil, o.id))
	if err != nil {
		return err
	}
	if !ok || got.Revision != o.revision || got.Instant != o.stamp || o.stamp < c.requestStamp ||
		o.revision > c.applied.Revision || o.stamp > c.applied.Stamp {
		return corruptf("revision %d of stamp %d remembers the request %x, which is remembered of %d (%t); %d is applied",
			o.revision, o.stamp, o.id, got.Revision, ok, c.applied.Revision)
	}
	c.requestStamp = o.stamp
	c.requests++
	return nil
}

// request checks what is remembered under an id.
func (c *checker) request(key, value []byte) error {
	if n := len(key) - 1; n == 0 || n > MaxRequestIDLength {
		return corruptf("key %x of a request", cut(key))
	}
	c.requests--
	var o RequestOutcome
	return o.decode(value)
}
