package clustertest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/cluster/peer"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// make makes a change by way of a host and keeps its result as the last one. With
// patient it asks again, as the same request, while there is no leader.
func (c *console) make(ctx context.Context, h *Host, as string, patient bool, m *graph.Mutation) (engine.Result, error) {
	m.Store = graph.DefaultStore
	if c.requests++; patient && len(m.RequestID) == 0 {
		m.RequestID = fmt.Appendf(nil, "request %d", c.requests)
	}
	result, err := h.Node().Write(ctx, m)
	for patient && ctx.Err() == nil && noLeader(err) {
		result, err = h.Node().Write(ctx, m)
	}
	if err == nil && result.Refusal != nil {
		err = result.Refusal
	}
	if err != nil {
		return result, err
	}
	if result.Revision > c.written["last"].Revision {
		c.written["last"] = result
	}
	if as != "" {
		c.written[as] = result
	}
	return result, nil
}

func (c *console) write(args *call) (string, error) {
	h, err := c.running(args)
	if err != nil {
		return "", err
	}
	patient := args.values["within"] == nil
	ctx, cancel, err := within(args)
	if err != nil {
		return "", err
	}
	defer cancel()
	m := &graph.Mutation{RequestID: []byte(args.value("request"))}
	named := len(m.RequestID) > 0
	operation := graph.Touch
	switch {
	case args.flag("create"):
		operation = graph.Create
	case args.flag("delete"):
		operation = graph.Delete
	}
	as, unsure := args.value("as"), args.flag("unsure")
	for _, line := range args.lines() {
		tuple, err := graph.ParseTuple(line)
		if err != nil {
			return "", err
		}
		m.Updates = append(m.Updates, graph.Update{Operation: operation, Tuple: tuple})
	}
	if err := args.end(); err != nil {
		return "", err
	}
	result, err := c.make(ctx, h, as, patient, m)
	switch {
	case unsure && noLeader(err):
		// Which of the two may hang on who was quicker.
		return "not acknowledged\n", nil
	case err != nil:
		return "", err
	case result.Repeated && named:
		return fmt.Sprintf("made before: %d changed\n", result.Changed), nil
	}
	return fmt.Sprintf("%d changed\n", result.Changed), nil
}

// fillBatch is how many tuples a fill writes at once.
const fillBatch = 500

func (c *console) fill(args *call) (string, error) {
	h, err := c.running(args)
	if err != nil {
		return "", err
	}
	count, err := args.number("count", 1)
	if err != nil {
		return "", err
	}
	batch, err := args.number("batch", fillBatch)
	if err != nil {
		return "", err
	}
	length, err := args.number("length", 8)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	defer cancel()
	for first := 0; first < count; first += batch {
		m := &graph.Mutation{}
		for i := first; i < min(first+batch, count); i++ {
			m.Updates = append(m.Updates, graph.Update{Operation: graph.Touch, Tuple: graph.Tuple{
				Object:   graph.Object{Type: "document", ID: fmt.Sprintf("fill%0*d", length, i)},
				Relation: "viewer", Subject: graph.Subject{Object: graph.Object{Type: "person", ID: "anna"}},
			}})
		}
		if _, err := c.make(ctx, h, "", true, m); err != nil {
			return "", err
		}
	}
	return "", nil
}

// consistency takes a consistency out of the arguments; zero is the newest.
func (c *console) consistency(args *call, h *Host) (cluster.Consistency, error) {
	named := func(name string) (engine.Result, error) {
		result, ok := c.written[name]
		if !ok {
			return result, usageError(fmt.Sprintf("no write has the name %q", name))
		}
		return result, nil
	}
	if args.flag("linearizable") {
		return cluster.Consistency{Mode: cluster.Linearizable}, nil
	}
	if name := args.value("at-least"); name == "never" {
		// A revision that nobody was given.
		return cluster.Consistency{Mode: cluster.AtLeast, Revision: c.written["last"].Revision + 1_000_000}, nil
	} else if name != "" {
		result, err := named(name)
		return cluster.Consistency{Mode: cluster.AtLeast, Revision: result.Revision}, err
	}
	if name := args.value("exactly"); name != "" {
		result, err := named(name)
		return cluster.Consistency{Mode: cluster.Exactly, Revision: result.Revision}, err
	}
	switch name := args.value("as-of"); name {
	case "":
		return cluster.Consistency{}, nil
	case "now":
		return cluster.Consistency{Mode: cluster.AsOf, Instant: graph.InstantOf(c.clock.of(h.Name))}, nil
	default:
		result, err := named(name)
		return cluster.Consistency{Mode: cluster.AsOf, Instant: result.Instant}, err
	}
}

func (c *console) check(args *call) (string, error) {
	h, err := c.running(args)
	if err != nil {
		return "", err
	}
	patient := args.values["within"] == nil
	ctx, cancel, err := within(args)
	if err != nil {
		return "", err
	}
	defer cancel()
	consistency, err := c.consistency(args, h)
	if err != nil {
		return "", err
	}
	if name := args.value("as"); name != "" {
		c.written[name] = engine.Result{Instant: consistency.Instant}
	}
	unsure := args.flag("unsure")
	questions := args.lines()
	if err := args.end(); err != nil {
		return "", err
	}
	snapshot, err := h.Node().Snapshot(ctx, graph.DefaultStore, consistency, graph.Overlay{})
	for patient && ctx.Err() == nil && noLeader(err) {
		snapshot, err = h.Node().Snapshot(ctx, graph.DefaultStore, consistency, graph.Overlay{})
	}
	if unsure && (errors.Is(err, cluster.ErrNotLeader) || errors.Is(err, context.DeadlineExceeded)) {
		return "not answered\n", nil
	}
	if err != nil {
		return "", err
	}
	defer snapshot.Close()
	var b strings.Builder
	for _, line := range questions {
		// A question is written as a tuple is.
		question, err := graph.ParseTuple(line)
		if err != nil {
			return b.String(), err
		}
		answer, err := snapshot.Check(ctx, engine.Check{Object: question.Object, Name: question.Relation, Subject: question.Subject})
		if err != nil {
			return b.String(), err
		}
		fmt.Fprintln(&b, answer.Decision)
	}
	return b.String(), nil
}

// pageSize is how much of a change log or of the tuples is read at once.
const pageSize = 1000

// changesOf reads the whole change log of a node.
func changesOf(node *cluster.Node, each func(graph.LoggedRevision)) error {
	for from := (graph.Position{}); ; {
		revisions, err := node.Engine().DB().Changes(graph.DefaultStore, from, pageSize)
		if err != nil || len(revisions) == 0 {
			return err
		}
		for _, r := range revisions {
			each(r)
			from = r.End()
		}
	}
}

// showChanges shows what a revision changed, a line each.
func showChanges(r graph.LoggedRevision) []string {
	var lines []string
	if r.SchemaChanged {
		lines = append(lines, "schema")
	}
	for i := range r.Changes {
		lines = append(lines, fmt.Sprintf("%s %s", r.Changes[i].Kind, &r.Changes[i].Tuple))
	}
	return lines
}

func (c *console) changes(args *call) (string, error) {
	h, err := c.running(args)
	if err != nil {
		return "", err
	}
	if err := c.upToDate(h); err != nil {
		return "", err
	}
	var lines []string
	err = changesOf(h.Node(), func(r graph.LoggedRevision) { lines = append(lines, showChanges(r)...) })
	return strings.Join(lines, "\n") + "\n", err
}

// upToDate waits until a host has the last write that a script made.
func (c *console) upToDate(h *Host) error {
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	defer cancel()
	return h.Node().Await(ctx, cluster.Consistency{Mode: cluster.AtLeast, Revision: c.written["last"].Revision})
}

func (c *console) agree(args *call) (string, error) {
	var hosts []*Host
	for len(args.words) > 0 {
		h, err := c.running(args)
		if err != nil {
			return "", err
		}
		hosts = append(hosts, h)
	}
	if len(hosts) == 0 {
		for _, h := range c.Hosts() {
			if h.Running() {
				hosts = append(hosts, h)
			}
		}
	}
	c.Agree(hosts...)
	return names(hosts) + " hold the same\n", nil
}

// Agree waits until all nodes are at the same revision, and fails the test unless they
// then hold the same tuples and the same change log. Nothing must be written
// meanwhile.
func (c *Cluster) Agree(hosts ...*Host) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	defer cancel()
	for _, h := range hosts {
		linearizable := cluster.Consistency{Mode: cluster.Linearizable}
		err := h.Node().Await(ctx, linearizable)
		for noLeader(err) && ctx.Err() == nil {
			err = h.Node().Await(ctx, linearizable)
		}
		if err != nil {
			c.t.Fatalf("%s cannot be made to catch up: %v", h.Name, err)
		}
	}
	// The applied revision may be before the end of the log: Raft has entries of its own.
	type place struct {
		term, last, committed uint64
		applied               graph.Revision
	}
	places := make([]place, len(hosts))
	defer func() {
		if c.t.Failed() {
			c.t.Logf("%s were last at %+v", names(hosts), places)
		}
	}()
	c.Wait(names(hosts)+" are at the same revision", func() bool {
		for i, h := range hosts {
			s, err := h.Node().Status()
			places[i] = place{s.Term, s.LastIndex, s.Committed, s.Applied}
			if err != nil || s.LeaderID == "" || s.Committed != s.LastIndex || places[i] != places[0] {
				return false
			}
		}
		return true
	})
	var first []string
	for i, h := range hosts {
		lines, err := contents(h.Node())
		if err != nil {
			c.t.Fatalf("read all of %s: %v", h.Name, err)
		}
		if i == 0 {
			first = lines
			continue
		}
		for j := range max(len(first), len(lines)) {
			if j >= len(first) || j >= len(lines) || first[j] != lines[j] {
				c.t.Errorf("%s and %s differ: %q and %q", hosts[0].Name, h.Name, lineAt(first, j), lineAt(lines, j))
				break
			}
		}
	}
}

func lineAt(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return "nothing"
}

// contents returns all tuples and all changes that a node has.
func contents(node *cluster.Node) ([]string, error) {
	db := node.Engine().DB()
	snapshot, err := db.Snapshot(graph.DefaultStore, db.Applied().Revision, db.Applied().Stamp)
	if err != nil {
		return nil, err
	}
	defer snapshot.Close()
	lines := []string{fmt.Sprintf("cluster %x", node.ClusterID())}
	for after := []byte(nil); ; {
		tuples, next, err := snapshot.Read(graph.Filter{}, after, pageSize)
		if err != nil {
			return nil, err
		}
		for i := range tuples {
			lines = append(lines, fmt.Sprintf("%s created %d", &tuples[i], tuples[i].Created))
		}
		if after = next; next == nil {
			break
		}
	}
	slices.Sort(lines)
	err = changesOf(node, func(r graph.LoggedRevision) {
		for i, line := range showChanges(r) {
			lines = append(lines, fmt.Sprintf("%d at %d, %d: %s", r.Revision, r.Stamp, r.Sequence+uint64(i), line))
		}
	})
	return lines, err
}

// A watch follows a store in the background.
type watch struct {
	cancel context.CancelFunc
	ended  chan struct{}

	mu       sync.Mutex
	position graph.Position
	lines    []string // Not shown yet.
	reached  graph.Revision
	err      error
}

// follow begins to watch at a node.
func (w *watch) follow(node *cluster.Node) error {
	watcher, err := node.Watch(graph.DefaultStore, w.position)
	if err != nil {
		return err
	}
	var ctx context.Context
	ctx, w.cancel = context.WithCancel(context.Background())
	w.ended, w.err = make(chan struct{}), nil
	go func() {
		defer close(w.ended)
		defer watcher.Close()
		for {
			batch, err := watcher.Next(ctx, 20*time.Millisecond)
			w.mu.Lock()
			if err != nil {
				w.err = err
				w.mu.Unlock()
				return
			}
			for _, r := range batch.Revisions {
				w.lines = append(w.lines, showChanges(r)...)
			}
			w.position, w.reached = batch.Position, max(w.reached, batch.Reached)
			w.mu.Unlock()
		}
	}()
	return nil
}

func (w *watch) close() {
	w.cancel()
	<-w.ended
}

func (c *console) watch(args *call) (string, error) {
	h, err := c.running(args)
	if err != nil {
		return "", err
	}
	name := args.value("as")
	w := c.watches[name]
	if w == nil {
		w = &watch{position: graph.Position{Revision: c.written["last"].Revision + 1}}
	} else {
		w.close() // It goes on at another node.
	}
	if err := w.follow(h.Node()); err != nil {
		return "", err
	}
	c.watches[name] = w
	return "", nil
}

func (c *console) watched(args *call) (string, error) {
	w := c.watches[args.next()]
	if w == nil {
		return "", usageError("no watch has this name")
	}
	c.Wait("the watch saw the last write", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.reached >= c.written["last"].Revision || w.err != nil
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	lines := w.lines
	w.lines = nil
	return strings.Join(append(lines, ""), "\n"), w.err
}

// A load writes one thing after the other by way of one host, in the background. Each
// write is asked for until it is made.
type load struct {
	name string
	host *Host

	quit  chan struct{} // Closed when it is to end behind a write.
	abort chan struct{} // Closed when it is to end, whatever became of its write.
	once  sync.Once
	ended chan struct{}

	mu      sync.Mutex
	made    int
	retried int
	last    engine.Result
	err     error
}

// loadPatience is how long one try of a load takes at most.
const loadPatience = 5 * time.Second

func (l *load) run() {
	defer close(l.ended)
	for i := 0; ; i++ {
		// What was created is deleted next, so that what is made twice is refused.
		operation := graph.Create
		if i%2 == 1 {
			operation = graph.Delete
		}
		m := &graph.Mutation{
			Store: graph.DefaultStore, RequestID: fmt.Appendf(nil, "%s-%d", l.name, i),
			Updates: []graph.Update{{Operation: operation, Tuple: l.tuple(i)}},
		}
		for {
			result, err := l.try(m)
			l.mu.Lock()
			retry := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, cluster.ErrOutcomeUnknown) || errors.Is(err, cluster.ErrNotLeader)
			switch {
			case err == nil && result.Changed != 1:
				err = fmt.Errorf("write %d changed %d tuples", i, result.Changed)
				fallthrough
			case err != nil && !retry:
				l.err = err
				l.mu.Unlock()
				return
			case err == nil:
				l.made++
				l.last = result
			default:
				l.retried++
			}
			l.mu.Unlock()
			if err == nil {
				break
			}
			select {
			case <-l.abort:
				return
			default:
			}
		}
		select {
		case <-l.quit:
			return
		default:
		}
	}
}

func (l *load) try(m *graph.Mutation) (engine.Result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), loadPatience)
	defer cancel()
	result, err := l.host.Node().Write(ctx, m)
	if err == nil && result.Refusal != nil {
		err = result.Refusal
	}
	return result, err
}

func (l *load) tuple(i int) graph.Tuple {
	return graph.Tuple{
		Object: graph.Object{Type: "document", ID: fmt.Sprintf("%s-%d", l.name, i/2)}, Relation: "viewer",
		Subject: graph.Subject{Object: graph.Object{Type: "person", ID: "anna"}},
	}
}

func (l *load) stop() {
	l.once.Do(func() { close(l.quit) })
	<-l.ended
}

func (c *console) load(args *call) (string, error) {
	h, err := c.asked(args)
	if err != nil {
		return "", err
	}
	name := args.value("as")
	if name == "" || c.loads[name] != nil {
		return "", usageError("a load needs a name of its own (as=a)")
	}
	l := &load{name: name, host: h, quit: make(chan struct{}), abort: make(chan struct{}), ended: make(chan struct{})}
	c.loads[name] = l
	go l.run()
	return "", nil
}

func (c *console) loaded(args *call) (string, error) {
	l := c.loads[args.next()]
	if l == nil {
		return "", usageError("no load has this name")
	}
	more, err := args.number("more", 0)
	if err != nil {
		return "", err
	}
	l.mu.Lock()
	before := l.made
	l.mu.Unlock()
	c.Wait("the load made more writes", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.made >= before+more || l.err != nil
	})
	if more > 0 {
		l.mu.Lock()
		defer l.mu.Unlock()
		return "", l.err
	}
	l.stop()
	if l.err != nil {
		return "", l.err
	}
	if l.last.Revision > c.written["last"].Revision {
		c.written["last"] = l.last
	}
	if err := c.upToDate(l.host); err != nil {
		return "", err
	}
	i := 0
	err = changesOf(l.host.Node(), func(r graph.LoggedRevision) {
		for _, change := range r.Changes {
			if !strings.HasPrefix(change.Tuple.Object.ID, l.name+"-") {
				continue
			}
			kind := graph.Created
			if i%2 == 1 {
				kind = graph.Deleted
			}
			if want := l.tuple(i); change.Kind != kind || change.Tuple.Object != want.Object {
				c.t.Errorf("change %d of the load %s is: %s %s", i, l.name, change.Kind, &change.Tuple)
			}
			i++
		}
	})
	if i != l.made {
		c.t.Errorf("the load %s was told of %d writes, and %d were made", l.name, l.made, i)
	}
	c.t.Logf("load %s: %d writes, %d tried again", l.name, l.made, l.retried)
	return "each write was made once\n", err
}

// clusterID is the id of a cluster, which differs from run to run.
var clusterID = regexp.MustCompile(`[0-9a-f]{32}`)

// causeOf returns what a node says that refuses a connection.
func causeOf(err error) string {
	if refused, ok := errors.AsType[*peer.RefusedError](err); ok {
		return fmt.Sprintf("%s: %s", refused.Code, clusterID.ReplaceAllString(refused.Message, "…"))
	}
	return err.Error()
}

// hello connects to a host as a stranger, and shows the answer.
func (c *console) hello(args *call) (string, error) {
	h, err := c.running(args)
	if err != nil {
		return "", err
	}
	version, err := args.number("version", 1)
	if err != nil {
		return "", err
	}
	to := args.value("to")
	if to == "" {
		to = h.NodeID
	}
	silent := args.flag("silent")
	kind := byte(1)
	if silent {
		kind = 2 // For calls: whoever listens waits for HTTP/2 to begin.
	}
	id := h.Node().ClusterID()
	if args.flag("other-cluster") {
		id = [16]byte{0xaa}
	}
	body := append([]byte{kind}, id[:]...)
	for _, id := range [...]string{"stranger", to} {
		body = append(body, byte(len(id)))
		body = append(body, id...)
	}
	message := append([]byte("\xf5pemba\r\n"), byte(version))
	message = binary.BigEndian.AppendUint16(message, uint16(len(body)))

	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	defer cancel()
	conn, err := c.Network.Of("stranger").Dial(ctx, h.Addr)
	if err != nil {
		return "", err
	}
	if silent {
		c.t.Cleanup(func() { _ = conn.Close() })
	} else {
		defer func() { _ = conn.Close() }()
	}
	if _, err := conn.Write(append(message, body...)); err != nil {
		return "", err
	}
	head := make([]byte, 12)
	if _, err := io.ReadFull(conn, head); err != nil {
		return "", err
	}
	sentence := make([]byte, binary.BigEndian.Uint16(head[10:]))
	if _, err := io.ReadFull(conn, sentence); err != nil {
		return "", err
	}
	text := clusterID.ReplaceAllString(string(sentence), "…")
	if head[9] == 0 {
		return "accepted\n", nil
	}
	return fmt.Sprintf("refused (%s): %s\n", peer.Code(head[9]), text), nil
}
