package clustertest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

var (
	randomSeed     = flag.Uint64("seed", 0, "seed of TestRandomFaults; 0 takes one from the clock")
	randomDuration = flag.Duration("duration", 8*time.Second, "how long TestRandomFaults makes faults")
)

const (
	randomNodes   = 3
	randomClients = 4
	randomKeys    = 5
	// randomPatience is how long a call of a client may take.
	randomPatience = 2 * time.Second
)

// TestRandomFaults lets clients count keys up and read them with every consistency,
// while nodes are cut off from each other, crash, and hand the leadership on. A key is
// a document; its only viewer is its value.
//
// What must hold: what was acknowledged is there, once, at the revision that was said;
// what was refused is not; a read holds what its consistency promises; a node never
// answers from before what it answered; a look at a moment is always the same; a watch
// tells the change log, each change once; and in the end all nodes have the same.
//
// The seed decides what is tried when; what comes of it hangs on the machine, too.
func TestRandomFaults(t *testing.T) {
	t.Parallel()
	seed := *randomSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d (-seed)", seed)
	w := newWorld(t, seed)
	var clients, watchers sync.WaitGroup
	for i := range randomClients {
		clients.Go(func() { w.client(i, rand.New(rand.NewPCG(seed, uint64(i)+1))) })
	}
	for _, h := range w.cluster.Hosts() {
		watchers.Go(func() { w.watch(h) })
	}
	w.nemesis(rand.New(rand.NewPCG(seed, 0)), *randomDuration)
	close(w.calm)
	clients.Wait()
	w.cluster.Agree(w.cluster.Hosts()...)
	w.checkLog()
	w.checkMoments()
	close(w.end)
	watchers.Wait()
	w.checkWatches()
	w.mu.Lock()
	defer w.mu.Unlock()
	t.Logf("%v; faults: %v", w.counts, w.faults)
}

// A world is a cluster and what clients know of it.
type world struct {
	t       testing.TB
	cluster *Cluster
	calm    chan struct{} // Closed when there are no more faults.
	end     chan struct{} // Closed when the watches have to come to their end.

	mu     sync.Mutex
	faults map[string]int
	// counts are the calls by what came of them.
	counts map[string]int
	// acked are the highest values of the keys that were acknowledged, tried those
	// that anybody asked for.
	acked, tried [randomKeys]int
	// seen are the highest values that each node answered to who asked for the
	// newest.
	seen map[string]*[randomKeys]int
	// writes are all by the name that stands as actor in the change log.
	writes map[string]*randomWrite
	// moments are answers to looks at a moment.
	moments []moment
	watched map[string][]string
}

// A randomWrite is one write of a client.
type randomWrite struct {
	key, value int
	// result is what came of it, if it was acknowledged; else refused says that it was
	// refused, and neither that nobody knows.
	result  *engine.Result
	refused bool
}

// A moment is what a key was at a moment.
type moment struct {
	at         graph.Instant
	key, value int
}

// momentsMax bounds the moments that are asked for again in the end.
const momentsMax = 400

func newWorld(t testing.TB, seed uint64) *world {
	w := &world{
		t: t, cluster: New(t, randomPatience), calm: make(chan struct{}), end: make(chan struct{}),
		faults: map[string]int{}, counts: map[string]int{}, seen: map[string]*[randomKeys]int{},
		writes: map[string]*randomWrite{}, watched: map[string][]string{},
	}
	small := seed%2 == 0 // Then who is away for long is sent the state.
	hosts := w.cluster.Form(randomNodes, func(c *cluster.Config) {
		if small {
			c.SnapshotThreshold, c.TrailingLogs, c.SnapshotInterval = 32, 8, 10*time.Millisecond
		}
	})
	for _, h := range hosts {
		w.seen[h.Name] = &[randomKeys]int{}
	}
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	defer cancel()
	m := &graph.Mutation{Store: graph.DefaultStore, Schema: &graph.WriteSchema{Text: Schema}}
	if result, err := hosts[0].Node().Write(ctx, m); err != nil || result.Refusal != nil {
		t.Fatal(err, result.Refusal)
	}
	m = &graph.Mutation{Store: graph.DefaultStore}
	for key := range randomKeys {
		m.Updates = append(m.Updates, graph.Update{Operation: graph.Create, Tuple: valueTuple(key, 0)})
	}
	if result, err := hosts[0].Node().Write(ctx, m); err != nil || result.Refusal != nil {
		t.Fatal(err, result.Refusal)
	}
	w.cluster.Agree(hosts...)
	// As far apart as they may be, so that a next leader's clock is of before what was
	// asked about of the last one; and all behind what is there.
	w.cluster.Clock(cluster.ClockSkewMax)
	for i, h := range hosts {
		h.SetClock(time.Duration(i-len(hosts)/2) * cluster.ClockSkewMax / time.Duration(2*len(hosts)))
	}
	return w
}

func valueTuple(key, value int) graph.Tuple {
	return graph.Tuple{
		Object: graph.Object{Type: "document", ID: fmt.Sprint("key", key)}, Relation: "viewer",
		Subject: graph.Subject{Object: graph.Object{Type: "person", ID: fmt.Sprint(value)}},
	}
}

// nemesis makes faults for a while, and undoes them all. A majority is up and can
// speak most of the time.
func (w *world) nemesis(random *rand.Rand, duration time.Duration) {
	hosts := w.cluster.Hosts()
	for start := time.Now(); time.Since(start) < duration; {
		h, other := hosts[random.IntN(len(hosts))], hosts[random.IntN(len(hosts))]
		fault := [...]string{"isolate", "cut", "cut one way", "crash", "crash", "stop", "transfer", "delay", "crash all"}[random.IntN(9)]
		pause := func() { time.Sleep(time.Duration(100+random.IntN(900)) * time.Millisecond) }
		w.mu.Lock()
		w.faults[fault]++
		w.mu.Unlock()
		switch fault {
		case "isolate":
			w.cluster.Isolate(h.Name)
			pause()
		case "cut":
			w.cluster.Network.Cut(h.Name, other.Name)
			w.cluster.Network.Cut(other.Name, h.Name)
			pause()
		case "cut one way":
			for _, other := range hosts {
				if random.IntN(3) > 0 {
					w.cluster.Network.Cut(h.Name, other.Name)
				}
			}
			pause()
		case "delay":
			w.cluster.Network.Delay(h.Name, other.Name, 50*time.Millisecond)
			w.cluster.Network.Delay(other.Name, h.Name, 50*time.Millisecond)
			pause()
		case "transfer":
			ctx, cancel := context.WithTimeout(context.Background(), randomPatience)
			_ = h.Node().TransferLeadership(ctx, other.NodeID) // It may be told to itself, or twice.
			cancel()
		case "stop":
			h.Stop()
			pause()
			h.MustStart()
		case "crash":
			h.Crash()
			pause()
			h.MustStart()
		case "crash all":
			for _, h := range hosts {
				h.Crash()
			}
			for _, h := range hosts {
				h.MustStart()
			}
		}
		if random.IntN(4) > 0 { // Else it stays for the next fault.
			w.cluster.Network.Heal()
			pause()
		}
	}
	w.cluster.Network.Heal()
}

// client makes calls one after the other, and ends when each kind of call has
// succeeded once after the last fault.
func (w *world) client(id int, random *rand.Rand) {
	hosts := w.cluster.Hosts()
	calls := []string{"write", "newest", "at least", "exactly", "linearizable", "as of"}
	missing := map[string]bool{}
	for i := 0; ; i++ {
		select {
		case <-w.calm:
			if len(missing) == 0 {
				for _, call := range calls {
					missing[call] = true
				}
			}
		default:
		}
		call := calls[0]
		if random.IntN(2) > 0 {
			call = calls[random.IntN(len(calls))]
		}
		h := hosts[random.IntN(len(hosts))]
		node := h.Node()
		if node == nil {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), randomPatience)
		var err error
		if key := random.IntN(randomKeys); call == "write" {
			err = w.increment(ctx, node, key, fmt.Sprintf("client%d-%d", id, i))
		} else {
			err = w.read(ctx, h, node, call, key, random)
		}
		cancel()
		if w.t.Failed() {
			return
		}
		w.count(call, err)
		if err == nil && missing[call] {
			if delete(missing, call); len(missing) == 0 {
				return
			}
		}
		time.Sleep(time.Duration(random.IntN(10)) * time.Millisecond)
	}
}

// count counts a call, and fails the test for an error that no fault explains.
func (w *world) count(call string, err error) {
	text := "ok"
	if err != nil {
		text = ""
		for _, allowed := range []error{
			cluster.ErrOutcomeUnknown, cluster.ErrNotLeader, cluster.ErrNotReady, cluster.ErrShuttingDown,
			cluster.ErrRevisionAhead, cluster.ErrClock, cluster.ErrTooBusy, context.DeadlineExceeded,
			errLostRace, errNothingYet, graph.ErrClosed,
			// A moment of a write may be ahead of a node that has not applied it, and whose
			// clock is behind that of the leader.
			cluster.ErrInstantAhead,
		} {
			if errors.Is(err, allowed) {
				text = allowed.Error()
				break
			}
		}
		if text == "" {
			w.t.Errorf("%s: %v", call, err)
			return
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[call+": "+text]++
}

var (
	errLostRace   = errors.New("another client was quicker")
	errNothingYet = errors.New("nothing was written yet")
)

// increment reads a key and writes the next value, if it still is what was read.
func (w *world) increment(ctx context.Context, node *cluster.Node, key int, name string) error {
	value, _, err := w.value(ctx, node, key, cluster.Consistency{})
	if err != nil {
		return err
	}
	write := &randomWrite{key: key, value: value + 1}
	w.mu.Lock()
	w.writes[name] = write
	w.tried[key] = max(w.tried[key], write.value)
	w.mu.Unlock()
	was, next := valueTuple(key, value), valueTuple(key, value+1)
	result, err := node.Write(ctx, &graph.Mutation{
		Store: graph.DefaultStore, RecordedActor: name,
		Preconditions: []graph.Precondition{{Filter: graph.Filter{
			ObjectType: was.Object.Type, ObjectID: was.Object.ID, Relation: was.Relation,
			SubjectType: was.Subject.Type, SubjectID: was.Subject.ID,
		}}},
		Updates: []graph.Update{{Operation: graph.Delete, Tuple: was}, {Operation: graph.Create, Tuple: next}},
	})
	if err != nil && !errors.Is(err, cluster.ErrOutcomeUnknown) && !errors.Is(err, context.DeadlineExceeded) {
		w.mu.Lock()
		defer w.mu.Unlock()
		write.refused = true // All other errors mean that it is not made.
		return err
	}
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if result.Refusal != nil {
		write.refused = true
		return errLostRace
	}
	write.result = &result
	w.acked[key] = max(w.acked[key], write.value)
	return nil
}

// value reads a key, which has exactly one value at any revision.
func (w *world) value(ctx context.Context, node *cluster.Node, key int, c cluster.Consistency) (value int, at graph.Revision, err error) {
	snapshot, err := node.Snapshot(ctx, graph.DefaultStore, c, graph.Overlay{})
	if err != nil {
		return 0, 0, err
	}
	defer snapshot.Close()
	tuple := valueTuple(key, 0)
	tuples, _, err := snapshot.Graph().Read(graph.Filter{ObjectType: tuple.Object.Type, ObjectID: tuple.Object.ID}, nil, 10)
	if err != nil {
		return 0, 0, err
	}
	if len(tuples) != 1 {
		w.t.Errorf("key %d has %d values at revision %d of %s: %v", key, len(tuples), snapshot.Revision(), node.ID(), tuples)
		return 0, 0, nil
	}
	value, err = strconv.Atoi(tuples[0].Subject.ID)
	return value, snapshot.Revision(), err
}

// read reads a key, and checks that it holds what its consistency promises.
func (w *world) read(ctx context.Context, h *Host, node *cluster.Node, call string, key int, random *rand.Rand) error {
	w.mu.Lock()
	atLeast, atMost := 0, -1
	acked, seen := w.acked[key], w.seen[h.Name][key]
	var known []*randomWrite
	for _, write := range w.writes {
		if write.result != nil && write.key == key {
			known = append(known, write)
		}
	}
	w.mu.Unlock()
	var c cluster.Consistency
	switch call {
	case "newest":
		atLeast = seen
	case "linearizable":
		c.Mode, atLeast = cluster.Linearizable, acked
	default:
		if len(known) == 0 {
			return errNothingYet
		}
		slices.SortFunc(known, func(a, b *randomWrite) int { return a.value - b.value })
		write := known[random.IntN(len(known))]
		atLeast = write.value
		switch call {
		case "as of":
			c.Mode, c.Instant = cluster.AsOf, write.result.Instant
			if random.IntN(2) == 0 {
				// A moment of which nothing need have been written, by a clock that is not
				// that of the others.
				c.Instant, atLeast = graph.InstantOf(w.cluster.clock.of(h.Name)), 0
			}
		case "at least":
			c.Mode, c.Revision = cluster.AtLeast, write.result.Revision
		case "exactly":
			c.Mode, c.Revision = cluster.Exactly, write.result.Revision
			atMost = write.value
		}
	}
	value, revision, err := w.value(ctx, node, key, c)
	if err != nil || w.t.Failed() {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if atMost < 0 {
		atMost = w.tried[key]
	}
	if value < atLeast || value > atMost {
		w.t.Errorf("%s of key %d by way of %s is %d at revision %d, and must be from %d to %d", call, key, h.Name, value, revision, atLeast, atMost)
	}
	switch {
	case call == "newest":
		w.seen[h.Name][key] = max(w.seen[h.Name][key], value)
	case call == "as of" && len(w.moments) < momentsMax:
		w.moments = append(w.moments, moment{c.Instant, key, value})
	case call == "as of":
		w.moments[random.IntN(momentsMax)] = moment{c.Instant, key, value}
	}
	return nil
}

// checkLog checks that the change log holds what was acknowledged, once and where it
// was said to be, and nothing that was refused.
func (w *world) checkLog() {
	node := w.cluster.Hosts()[0].Node()
	made := map[string]graph.Revision{}
	var values [randomKeys]int
	err := changesOf(node, func(r graph.LoggedRevision) {
		if r.RecordedActor == "" {
			return
		}
		write := w.writes[r.RecordedActor]
		switch {
		case write == nil:
			w.t.Errorf("revision %d is of %q, who wrote nothing", r.Revision, r.RecordedActor)
			return
		case made[r.RecordedActor] != 0:
			w.t.Errorf("%s was made at revision %d and again at %d", r.RecordedActor, made[r.RecordedActor], r.Revision)
		case write.refused:
			w.t.Errorf("%s was refused, and made at revision %d", r.RecordedActor, r.Revision)
		case write.result != nil && (write.result.Revision != r.Revision || write.result.Instant != r.Stamp):
			w.t.Errorf("%s was acknowledged at revision %d, and made at %d", r.RecordedActor, write.result.Revision, r.Revision)
		case write.value != values[write.key]+1:
			w.t.Errorf("%s makes key %d go from %d to %d", r.RecordedActor, write.key, values[write.key], write.value)
		}
		made[r.RecordedActor] = r.Revision
		values[write.key] = write.value
	})
	if err != nil {
		w.t.Fatal(err)
	}
	for name, write := range w.writes {
		if write.result != nil && made[name] == 0 {
			w.t.Errorf("%s was acknowledged at revision %d, and is lost", name, write.result.Revision)
		}
	}
}

// checkMoments asks for the same moments again, of all nodes.
func (w *world) checkMoments() {
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	defer cancel()
	for _, h := range w.cluster.Hosts() {
		for _, m := range w.moments {
			value, _, err := w.value(ctx, h.Node(), m.key, cluster.Consistency{Mode: cluster.AsOf, Instant: m.at})
			if err != nil || value != m.value {
				w.t.Errorf("key %d as of %v was %d, and is now %d by way of %s; error %v", m.key, m.at, m.value, value, h.Name, err)
			}
		}
	}
}

// watch follows the changes by way of one host, over all restarts of its node, up to
// the newest revision of the end.
func (w *world) watch(h *Host) {
	var position graph.Position
	var lines []string
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.watched[h.Name] = lines
	}()
	for {
		node := h.Node()
		if node == nil {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		watcher, err := node.Watch(graph.DefaultStore, position)
		for err == nil {
			ctx, cancel := context.WithTimeout(context.Background(), randomPatience)
			var batch cluster.WatchBatch
			batch, err = watcher.Next(ctx, 50*time.Millisecond)
			cancel()
			if err != nil {
				break
			}
			for _, r := range batch.Revisions {
				for i, line := range showChanges(r) {
					lines = append(lines, fmt.Sprintf("%d.%d %s", r.Revision, int(r.Offset)+i, line))
				}
			}
			position = batch.Position
			select {
			case <-w.end:
				if batch.Reached >= node.Engine().DB().Applied().Revision {
					watcher.Close()
					return
				}
			default:
			}
		}
		if watcher != nil {
			watcher.Close()
		}
		if !errors.Is(err, cluster.ErrShuttingDown) && !errors.Is(err, graph.ErrClosed) && !errors.Is(err, context.DeadlineExceeded) {
			w.t.Errorf("watch by way of %s from %+v: %v", h.Name, position, err)
			return
		}
	}
}

// checkWatches checks that each watch was told the change log, each change once.
func (w *world) checkWatches() {
	var want []string
	err := changesOf(w.cluster.Hosts()[0].Node(), func(r graph.LoggedRevision) {
		for i, line := range showChanges(r) {
			want = append(want, fmt.Sprintf("%d.%d %s", r.Revision, int(r.Offset)+i, line))
		}
	})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, h := range w.cluster.Hosts() {
		got := w.watched[h.Name]
		for i := range max(len(want), len(got)) {
			if lineAt(want, i) != lineAt(got, i) {
				w.t.Errorf("the watch by way of %s was told %q, and %q was changed", h.Name, lineAt(got, i), lineAt(want, i))
				break
			}
		}
	}
}
