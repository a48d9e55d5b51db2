package faulttest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"testing"
	"time"

	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/cluster/badgerlog"
	"github.com/pembadb/pemba/graph"
)

var (
	seedFlag     = flag.Uint64("seed", 0, "seed of the requests; 0 takes one from the clock")
	killsFlag    = flag.Int("kills", 3, "how often TestKill and TestImport kill the process, and TestFailover the leader")
	tuplesFlag   = flag.Int("tuples", 20_000, "how many tuples each import of TestImport has")
	durationFlag = flag.Duration("duration", 0, "how long TestTruncation writes and TestNemesis does its worst; 0 for what suits each")
)

// childEnv holds the settings of a child, as JSON; its presence makes one.
const childEnv = "PEMBA_FAULTTEST_CHILD"

// Exit codes of the child.
const (
	exitStart = 3 // The node did not start.
	exitFatal = 4 // The node stopped after a fault.
)

func TestMain(m *testing.M) {
	if settings := os.Getenv(childEnv); settings != "" {
		os.Exit(runChild(settings))
	}
	if settings := os.Getenv(memberEnv); settings != "" {
		os.Exit(runMember(settings))
	}
	flag.Parse()
	code := m.Run()
	if faulty.folder != "" {
		_ = os.RemoveAll(faulty.folder) // It is in the folder for what is temporary.
	}
	os.Exit(code)
}

// settings are what a test varies of a node.
type settings struct {
	DataDir           string
	SnapshotThreshold uint64
	SnapshotInterval  time.Duration
	TrailingLogs      uint64
	LogMemTable       int64
	GraphMemTable     int64
}

func (s settings) config() cluster.Config {
	return cluster.Config{
		DataDir:           s.DataDir,
		SnapshotThreshold: s.SnapshotThreshold,
		SnapshotInterval:  s.SnapshotInterval,
		TrailingLogs:      s.TrailingLogs,
		Graph:             graph.Config{CacheBytes: 16 << 20, MemTableBytes: s.GraphMemTable},
		Log:               badgerlog.Config{BallastBytes: -1, MemTableSize: s.LogMemTable, StoreDeadline: patience},
	}
}

// A request asks the child for something.
type request struct {
	// Op is "schema", "write", "stage", "commit", "staged", "count", "status" or
	// "scan".
	Op string `json:"op"`
	// Stage and Chunk name a step of a staged change, or say how many there are.
	Stage uint8  `json:"stage,omitempty"`
	Chunk uint32 `json:"chunk,omitempty"`
	// Prefix begins the documents to count.
	Prefix string `json:"prefix,omitempty"`
	// Actor names a write; it stands with its changes in the change log.
	Actor   string   `json:"actor,omitempty"`
	Updates []update `json:"updates,omitempty"`
	// Pad is how many bytes of metadata to write with it.
	Pad int `json:"pad,omitempty"`
}

// An update creates or deletes document:Document#viewer@person:Person.
type update struct {
	Delete   bool   `json:"x,omitempty"`
	Document string `json:"d"`
	Person   string `json:"p"`
}

func (u update) tuple() graph.Tuple {
	return graph.Tuple{
		Object: graph.Object{Type: "document", ID: u.Document}, Relation: "viewer",
		Subject: graph.Subject{Object: graph.Object{Type: "person", ID: u.Person}},
	}
}

// A reply is the child's answer. Error and Refusal are empty when all is well.
type reply struct {
	Actor    string         `json:"actor,omitempty"`
	Revision graph.Revision `json:"revision,omitempty"`
	Refusal  string         `json:"refusal,omitempty"`
	Error    string         `json:"error,omitempty"`
	// Unknown says that the error leaves the outcome open.
	Unknown bool     `json:"unknown,omitempty"`
	Full    bool     `json:"full,omitempty"`
	Tuples  []update `json:"tuples,omitempty"`
	// Chunks is how many steps of the staged change are known; Gone says that
	// there is no such change. Count is how many tuples were counted.
	Chunks uint32          `json:"chunks,omitempty"`
	Gone   bool            `json:"gone,omitempty"`
	Count  int             `json:"count,omitempty"`
	Status *cluster.Status `json:"status,omitempty"`
}

const schemaText = `definition person {}

definition document {
    relation viewer: person
}
`

// runChild is the process under test. It says on standard output where it
// listens, and closes the node when its standard input ends.
func runChild(settingsJSON string) int {
	var s settings
	if err := json.Unmarshal([]byte(settingsJSON), &s); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitStart
	}
	start := time.Now()
	config := s.config()
	config.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	config.OnFatal = func(err error) {
		fmt.Fprintf(os.Stderr, "fatal: %v\n", err)
		os.Exit(exitFatal)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	node, err := cluster.Open(ctx, config)
	if err != nil {
		fmt.Fprintf(os.Stderr, "start: %v\n", err)
		return exitStart
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintf(os.Stderr, "listen: %v\n", err)
		return exitStart
	}
	go acceptAll(listener, func(conn net.Conn) { serve(node, conn) })
	fmt.Printf("%s %d\n", listener.Addr(), time.Since(start).Microseconds())
	return closeInTheEnd(node)
}

// closeInTheEnd closes the node of a child when its standard input ends, and returns
// what the child exits with.
func closeInTheEnd(node *cluster.Node) int {
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		fmt.Fprintf(os.Stderr, "standard input: %v\n", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := node.Close(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "close: %v\n", err)
		return exitFatal
	}
	return 0
}

// acceptAll serves each connection in a goroutine of its own, and closes it then.
func acceptAll(listener net.Listener, serve func(net.Conn)) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = conn.Close() }() // The parent sees the end either way.
			serve(conn)
		}()
	}
}

func serve(node *cluster.Node, conn net.Conn) {
	in := json.NewDecoder(bufio.NewReader(conn))
	out := json.NewEncoder(conn)
	for {
		var q request
		if in.Decode(&q) != nil {
			return
		}
		answer, err := handle(node, q)
		answer.Actor = q.Actor
		if err != nil {
			answer.Error = err.Error()
			answer.Unknown = errors.Is(err, cluster.ErrOutcomeUnknown)
			answer.Full = errors.Is(err, cluster.ErrDiskFull)
		}
		if out.Encode(answer) != nil {
			return
		}
	}
}

func handle(node *cluster.Node, q request) (reply, error) {
	ctx := context.Background()
	var m *graph.Mutation
	switch q.Op {
	case "schema":
		m = &graph.Mutation{Store: graph.DefaultStore, Schema: &graph.WriteSchema{Text: schemaText}}
	case "write":
		m = &graph.Mutation{Store: graph.DefaultStore, RecordedActor: q.Actor}
		for _, u := range q.Updates {
			operation := graph.Create
			if u.Delete {
				operation = graph.Delete
			}
			m.Updates = append(m.Updates, graph.Update{Operation: operation, Tuple: u.tuple()})
		}
		if q.Pad > 0 {
			m.Metadata = fmt.Appendf(nil, `{"pad":"%0*d"}`, q.Pad, 0)
		}
	case "stage", "commit":
		m = &graph.Mutation{Store: graph.DefaultStore, Stage: &graph.Stage{
			Operation: graph.StageUpdates, ID: graph.StageID{q.Stage + 1}, Chunk: q.Chunk,
		}}
		if q.Op == "commit" {
			m.Stage.Operation, m.RecordedActor = graph.StageCommit, q.Actor
		}
		for _, u := range q.Updates {
			m.Updates = append(m.Updates, graph.Update{Operation: graph.Create, Tuple: u.tuple()})
		}
	case "staged":
		stages, err := node.Stages(graph.DefaultStore)
		for _, s := range stages {
			if s.ID == (graph.StageID{q.Stage + 1}) {
				return reply{Chunks: s.Chunks}, err
			}
		}
		return reply{Gone: true}, err
	case "count":
		return count(node, q.Prefix)
	case "status":
		status, err := node.Status()
		return reply{Status: &status}, err
	case "scan":
		return scan(node)
	default:
		return reply{}, fmt.Errorf("unknown op %q", q.Op)
	}
	result, err := node.Write(ctx, m)
	if err != nil {
		return reply{}, err
	}
	answer := reply{Revision: result.Revision}
	if result.Refusal != nil {
		answer.Refusal = result.Refusal.Error()
	}
	return answer, nil
}

// count counts the tuples of the newest revision whose document begins with the
// prefix, one by one.
func count(node *cluster.Node, prefix string) (reply, error) {
	s, err := node.Snapshot(context.Background(), graph.DefaultStore, cluster.Consistency{}, graph.Overlay{})
	if err != nil {
		return reply{}, err
	}
	defer s.Close()
	answer := reply{Revision: s.Revision()}
	err = eachTuple(s.Graph(), graph.Filter{ObjectType: "document", ObjectIDPrefix: prefix}, func(*graph.Tuple) { answer.Count++ })
	return answer, err
}

// eachTuple calls f with every tuple that a filter finds.
func eachTuple(s *graph.Snapshot, filter graph.Filter, f func(*graph.Tuple)) error {
	for after := []byte(nil); ; {
		tuples, next, err := s.Read(filter, after, 10000)
		if err != nil {
			return err
		}
		for i := range tuples {
			f(&tuples[i])
		}
		if after = next; next == nil {
			return nil
		}
	}
}

// scan reads the newest revision and every tuple.
func scan(node *cluster.Node) (reply, error) {
	s, err := node.Snapshot(context.Background(), graph.DefaultStore, cluster.Consistency{}, graph.Overlay{})
	if err != nil {
		return reply{}, err
	}
	defer s.Close()
	answer := reply{Revision: s.Revision()}
	err = eachTuple(s.Graph(), graph.Filter{}, func(t *graph.Tuple) {
		answer.Tuples = append(answer.Tuples, update{Document: t.Object.ID, Person: t.Subject.ID})
	})
	return answer, err
}
