package faulttest

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/cluster/badgerlog"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// memberEnv holds the settings of a child that is one node of several, as JSON.
const memberEnv = "PEMBA_FAULTTEST_MEMBER"

// memberSettings say which node a child is.
type memberSettings struct {
	ID, Addr, DataDir string
	// Socket is the path at which the parent asks, and Join that of the member that
	// takes this one in; empty for the first.
	Socket, Join string
	// Certificates is the folder that certify wrote to.
	Certificates string
	// Dials say where the others are reached; empty for at their addresses.
	Dials         map[string]string
	StoreDeadline time.Duration
}

// memberClock is the clock of a member: that of the machine, and how far the nemesis
// set it off.
type memberClock struct{ offset atomic.Int64 }

func (c *memberClock) now() time.Time { return time.Now().Add(time.Duration(c.offset.Load())) }

// runMember is one node of a cluster. It says "ready" on standard output when it can
// be asked, and closes the node when its standard input ends.
func runMember(settingsJSON string) int {
	var s memberSettings
	if err := json.Unmarshal([]byte(settingsJSON), &s); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitStart
	}
	certificates, err := loadCertificates(s.Certificates)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitStart
	}
	clock := &memberClock{}
	config := cluster.Config{
		DataDir: s.DataDir, NodeID: s.ID, RaftAddr: s.Addr,
		PeerTLS: func() *tls.Config { return certificates },
		// Small, so that the log is cut and states are sent all the time.
		SnapshotThreshold: 50, SnapshotInterval: 100 * time.Millisecond, TrailingLogs: 10,
		Graph:  graph.Config{CacheBytes: 16 << 20, MemTableBytes: 1 << 20},
		Log:    badgerlog.Config{BallastBytes: -1, MemTableSize: 1 << 20, StoreDeadline: s.StoreDeadline},
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Now:    clock.now,
		OnFatal: func(err error) {
			fmt.Fprintf(os.Stderr, "fatal: %v\n", err)
			os.Exit(exitFatal)
		},
	}
	if len(s.Dials) > 0 {
		config.PeerNetwork = dialer(s.Dials)
	}
	if s.Join != "" {
		config.Join = func(ctx context.Context, j cluster.Joining) (cluster.Joined, error) { return joinBy(s.Join, j) }
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	node, err := cluster.Open(ctx, config)
	if err != nil {
		fmt.Fprintf(os.Stderr, "start: %v\n", err)
		return exitStart
	}
	_ = os.Remove(s.Socket) // Of the process before.
	listener, err := net.Listen("unix", s.Socket)
	if err != nil {
		fmt.Fprintf(os.Stderr, "listen: %v\n", err)
		return exitStart
	}
	go acceptAll(listener, (&member{node, clock}).serve)
	fmt.Println("ready")
	return closeInTheEnd(node)
}

// joinBy asks the member at a socket to take a node in.
func joinBy(socket string, j cluster.Joining) (cluster.Joined, error) {
	l, err := dialLine(socket)
	if err != nil {
		return cluster.Joined{}, err
	}
	defer l.close()
	a, err := l.ask(question{Op: "add", Joining: &j}, patience)
	if err := errors.Join(err, a.err()); err != nil {
		return cluster.Joined{}, err
	}
	return *a.Joined, nil
}

// A question asks a member for something.
type question struct {
	// Op is "read", "swap", "clear", "watch", "history", "status", "schema", "add",
	// "transfer", "clock", "slow" or "slow-entries".
	Op string `json:"op"`
	// Key is the document that is a register: its value is the person that views it,
	// or "" for none. A swap makes it New if it is Old.
	Key string `json:"k,omitempty"`
	Old string `json:"o,omitempty"`
	New string `json:"n,omitempty"`
	// Tag stands as the actor with the change in the change log.
	Tag      string           `json:"t,omitempty"`
	Mode     cluster.Mode     `json:"m,omitempty"`
	Revision graph.Revision   `json:"r,omitempty"`
	Instant  graph.Instant    `json:"i,omitempty"`
	From     graph.Position   `json:"f"`
	Patience time.Duration    `json:"p,omitempty"`
	By       time.Duration    `json:"by,omitempty"`
	ID       string           `json:"id,omitempty"`
	Joining  *cluster.Joining `json:"joining,omitempty"`
}

// An answered question. Error is empty when all is well.
type answered struct {
	Value    string         `json:"v,omitempty"`
	Revision graph.Revision `json:"r,omitempty"`
	Instant  graph.Instant  `json:"i,omitempty"`
	// Changed is how many tuples a write changed, and Refused says that a swap found
	// another value.
	Changed int  `json:"c,omitempty"`
	Refused bool `json:"x,omitempty"`
	// Error is why there is no answer; Unknown says that a write may have been made.
	Error   string `json:"e,omitempty"`
	Unknown bool   `json:"u,omitempty"`
	// Wrong is what no fault excuses.
	Wrong   string          `json:"w,omitempty"`
	Changes []change        `json:"l,omitempty"`
	Next    graph.Position  `json:"f"`
	Tuples  []string        `json:"tuples,omitempty"`
	Status  *cluster.Status `json:"status,omitempty"`
	Joined  *cluster.Joined `json:"joined,omitempty"`
}

// A change is a revision of the change log, or a part of one.
type change struct {
	Revision graph.Revision `json:"r"`
	Stamp    graph.Instant  `json:"s"`
	Sequence uint64         `json:"q"`
	Offset   uint32         `json:"o,omitempty"`
	Count    int            `json:"n"`
	Tag      string         `json:"t"`
	// Edges are "+key value" and "-key value".
	Edges []string `json:"e"`
}

func changeOf(r *graph.LoggedRevision) change {
	c := change{Revision: r.Revision, Stamp: r.Stamp, Sequence: r.Sequence, Offset: r.Offset, Count: r.Count, Tag: r.RecordedActor}
	for _, logged := range r.Changes {
		sign := "+"
		if logged.Kind == graph.Deleted {
			sign = "-"
		}
		c.Edges = append(c.Edges, sign+logged.Tuple.Object.ID+" "+logged.Tuple.Subject.ID)
	}
	return c
}

// member answers questions.
type member struct {
	node  *cluster.Node
	clock *memberClock
}

func (m *member) serve(conn net.Conn) {
	in := json.NewDecoder(bufio.NewReader(conn))
	out := json.NewEncoder(conn)
	for {
		var q question
		if in.Decode(&q) != nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), q.Patience)
		if q.Op == "watch" {
			m.watch(q, out)
			cancel()
			return
		}
		a, err := m.answer(ctx, q)
		cancel()
		if err != nil {
			a.fail(err)
		}
		if out.Encode(a) != nil {
			return
		}
	}
}

// fail puts an error into the answer.
func (a *answered) fail(err error) {
	a.Error, a.Unknown = err.Error(), errors.Is(err, cluster.ErrOutcomeUnknown)
	if errors.Is(err, cluster.ErrRevisionUnknown) || errors.Is(err, graph.ErrRevisionGone) {
		a.Wrong = "what was asked for was given out: " + a.Error
	}
}

func (m *member) answer(ctx context.Context, q question) (answered, error) {
	switch q.Op {
	case "read":
		return m.read(ctx, q)
	case "schema":
		return m.write(ctx, &graph.Mutation{Schema: &graph.WriteSchema{Text: schemaText}})
	case "swap":
		now := graph.Precondition{Filter: registerFilter(q.Key)}
		mutation := &graph.Mutation{RecordedActor: q.Tag, Updates: []graph.Update{{Operation: graph.Create, Tuple: register(q.Key, q.New)}}}
		if q.Old == "" {
			now.MustNotMatch = true
		} else {
			now.Filter.SubjectType, now.Filter.SubjectID = "person", q.Old
			mutation.Updates = append(mutation.Updates, graph.Update{Operation: graph.Delete, Tuple: register(q.Key, q.Old)})
		}
		mutation.Preconditions = []graph.Precondition{now}
		return m.write(ctx, mutation)
	case "clear":
		return m.write(ctx, &graph.Mutation{RecordedActor: q.Tag, Delete: &graph.DeleteMatching{Filter: registerFilter(q.Key), Limit: 10}})
	case "history":
		return m.history(ctx, q)
	case "status":
		status, err := m.node.Status()
		return answered{Status: &status}, err
	case "add":
		joined, err := m.node.AddMember(ctx, *q.Joining)
		return answered{Joined: &joined}, err
	case "transfer":
		return answered{}, m.node.TransferLeadership(ctx, q.ID)
	case "clock":
		m.clock.offset.Store(int64(q.By))
		return answered{}, nil
	case "slow":
		return answered{}, slowLog(q.By)
	case "slow-entries":
		return answered{}, slowEntries(q.By)
	}
	return answered{}, fmt.Errorf("unknown op %q", q.Op)
}

func register(key, value string) graph.Tuple { return update{Document: key, Person: value}.tuple() }

func registerFilter(key string) graph.Filter {
	return graph.Filter{ObjectType: "document", ObjectID: key, Relation: "viewer"}
}

func (m *member) write(ctx context.Context, mutation *graph.Mutation) (answered, error) {
	mutation.Store = graph.DefaultStore
	result, err := m.node.Write(ctx, mutation)
	if err != nil {
		return answered{}, err
	}
	a := answered{Revision: result.Revision, Instant: result.Instant, Changed: result.Changed}
	if result.Refusal != nil {
		if a.Refused = true; result.Refusal.Reason != engine.PreconditionFailed {
			a.Wrong = "a swap is refused otherwise than by its condition: " + result.Refusal.Error()
		}
	}
	return a, nil
}

// read reads a register, and has the engine check that it is so.
func (m *member) read(ctx context.Context, q question) (answered, error) {
	s, err := m.node.Snapshot(ctx, graph.DefaultStore, cluster.Consistency{Mode: q.Mode, Revision: q.Revision, Instant: q.Instant}, graph.Overlay{})
	if err != nil {
		return answered{}, err
	}
	defer s.Close()
	a := answered{Revision: s.Revision(), Instant: s.Instant()}
	tuples, _, err := s.Graph().Read(registerFilter(q.Key), nil, 10)
	if err != nil {
		return a, err
	}
	for _, tuple := range tuples {
		a.Value = tuple.Subject.ID
	}
	if len(tuples) > 1 {
		a.Wrong = fmt.Sprintf("register %s has %d values at revision %d", q.Key, len(tuples), a.Revision)
	}
	for person, decision := range map[string]engine.Decision{a.Value: engine.Allowed, "nobody": engine.Denied} {
		if person == "" {
			continue
		}
		object, relation, subject := register(q.Key, person).Object, "viewer", register(q.Key, person).Subject
		answer, err := s.Check(ctx, engine.Check{Object: object, Name: relation, Subject: subject})
		if err != nil {
			return a, err
		}
		if answer.Decision != decision {
			a.Wrong = fmt.Sprintf("the check of %s for %q says %v at revision %d, and the tuples are %v", q.Key, person, answer.Decision, a.Revision, tuples)
		}
	}
	return a, nil
}

// history returns the change log and the tuples up to a revision.
func (m *member) history(ctx context.Context, q question) (answered, error) {
	s, err := m.node.Snapshot(ctx, graph.DefaultStore, cluster.Consistency{Mode: cluster.AtLeast, Revision: q.Revision}, graph.Overlay{})
	if err != nil {
		return answered{}, err
	}
	defer s.Close()
	a := answered{Revision: s.Revision()}
	if err := eachTuple(s.Graph(), graph.Filter{}, func(t *graph.Tuple) {
		a.Tuples = append(a.Tuples, t.Object.ID+" "+t.Subject.ID)
	}); err != nil {
		return a, err
	}
	watcher, err := m.node.Watch(graph.DefaultStore, q.From)
	if err != nil {
		return a, err
	}
	defer watcher.Close()
	for a.Next = q.From; a.Next.Revision <= a.Revision; {
		batch, err := watcher.Next(ctx, 10*time.Millisecond)
		if err != nil {
			return a, err
		}
		for i := range batch.Revisions {
			if r := &batch.Revisions[i]; r.Revision <= a.Revision && r.Count > 0 {
				a.Changes = append(a.Changes, changeOf(r))
			}
		}
		a.Next = batch.Position
	}
	return a, nil
}

// watch sends what changes from a position on, until the connection ends.
func (m *member) watch(q question, out *json.Encoder) {
	watcher, err := m.node.Watch(graph.DefaultStore, q.From)
	if err != nil {
		var a answered
		a.fail(err)
		_ = out.Encode(a) // Or the parent is gone.
		return
	}
	defer watcher.Close()
	for {
		batch, err := watcher.Next(context.Background(), 200*time.Millisecond)
		a := answered{Next: batch.Position, Revision: batch.Reached}
		for i := range batch.Revisions {
			if batch.Revisions[i].Count > 0 {
				a.Changes = append(a.Changes, changeOf(&batch.Revisions[i]))
			}
		}
		if err != nil {
			a.fail(err)
		}
		if out.Encode(a) != nil || err != nil {
			return
		}
	}
}
