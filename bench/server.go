package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"time"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/api/authzed"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/graph"
)

// serveVariable is the environment variable that makes this program a server:
// a serveSpec as JSON.
const serveVariable = "PEMBA_BENCH_SERVE"

// A serveSpec says what a server process serves.
type serveSpec struct {
	// Dir is the data directory of a node; empty for the echo.
	Dir string `json:"dir"`
	// Peers makes the node one of several, or one that others can join; nil for one
	// that is alone.
	Peers *peersSpec `json:"peers,omitempty"`
}

// An order is a line that the driver writes to the standard input of a server
// process. The end of the input is the order to stop.
type order struct {
	// Do is one of the orders below.
	Do string `json:"do"`
	// File is where the profile goes; of startProfile.
	File string `json:"file,omitempty"`
}

const (
	// takeUsage asks what the process has taken.
	takeUsage = "usage"
	// takeMemory collects garbage and gives back free memory before that.
	takeMemory = "memory"
	// startProfile and stopProfile begin and end a processor profile.
	startProfile = "start profile"
	stopProfile  = "stop profile"
	// pruneNow lets a node forget at once what its settings let it forget within
	// the next minute; what that frees is then removed in the background.
	pruneNow = "prune"
	// removeRest removes all of it that is left, and says how much that was.
	removeRest = "remove the rest"
	// takeCounts asks a node what it has counted since its start.
	takeCounts = "counts"
)

// A reply is a line that a server process writes to its standard output: one
// when it serves, and one for each order.
type reply struct {
	Error string `json:"error,omitempty"`
	// Addr is the address that is served; in the first reply.
	Addr string `json:"addr,omitempty"`
	// Processor is the time on processors that the process has taken so far.
	Processor time.Duration `json:"processor,omitempty"`
	// Resident is how many bytes of memory it has resident.
	Resident int64 `json:"resident,omitempty"`
	// Left is how many records of the change log the removal had left to look at,
	// to removalRecords of them; of removeRest.
	Left int `json:"left,omitempty"`
	// Counts are what a node has counted; of takeCounts.
	Counts *counts `json:"counts,omitempty"`
}

// serve is the whole life of a server process: it serves until its input ends.
func serve(spec string, orders io.Reader, replies io.Writer) error {
	var s serveSpec
	if err := json.Unmarshal([]byte(spec), &s); err != nil {
		return fmt.Errorf("%s: %w", serveVariable, err)
	}
	// An interrupt at the terminal reaches the whole group; the driver decides.
	signal.Ignore(os.Interrupt)
	out := json.NewEncoder(replies)
	start := startEcho
	if s.Dir != "" {
		start = func() (*process, error) { return startPemba(s) }
	}
	p, err := start()
	if err != nil {
		return errors.Join(err, out.Encode(reply{Error: err.Error()}))
	}
	err = out.Encode(reply{Addr: p.addr})
	lines := bufio.NewScanner(orders)
	for err == nil && lines.Scan() {
		var o order
		if err = json.Unmarshal(lines.Bytes(), &o); err != nil {
			break
		}
		r, failed := p.obey(o)
		if failed != nil {
			r.Error = failed.Error()
		}
		err = out.Encode(r)
	}
	return errors.Join(err, lines.Err(), p.profile.stop(), p.stop())
}

// A process is what a server process serves, and the profile of it.
type process struct {
	addr    string
	node    *cluster.Node // nil for the echo
	stop    func() error
	profile profile
}

// A profile is the processor profile of this process that is being taken.
type profile struct {
	file *os.File // nil for none
}

func (p *profile) start(name string) (err error) {
	if p.file != nil {
		return fmt.Errorf("a profile into %s is being taken", p.file.Name())
	}
	if p.file, err = os.Create(name); err != nil {
		return err
	}
	return pprof.StartCPUProfile(p.file)
}

func (p *profile) stop() error {
	if p.file == nil {
		return nil
	}
	pprof.StopCPUProfile()
	file := p.file
	p.file = nil
	return file.Close()
}

// obey carries out one order.
func (p *process) obey(o order) (r reply, err error) {
	switch o.Do {
	case takeMemory, takeUsage:
		if o.Do == takeMemory {
			debug.FreeOSMemory()
		}
		if r.Processor, err = processorTime(); err != nil {
			return r, err
		}
		r.Resident, err = residentBytes()
		return r, err
	case startProfile:
		return r, p.profile.start(o.File)
	case stopProfile:
		return r, p.profile.stop()
	case pruneNow, removeRest, takeCounts:
		if p.node == nil {
			return r, fmt.Errorf("the order %q is for a node, and this is the echo", o.Do)
		}
		switch o.Do {
		case pruneNow:
			return r, p.prune()
		case takeCounts:
			r.Counts, err = p.counts()
			return r, err
		}
		r.Left, err = p.removeRest()
		return r, err
	}
	return r, fmt.Errorf("the order %q is unknown", o.Do)
}

// prune proposes what the node itself would within a minute.
func (p *process) prune() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	result, err := p.node.Write(ctx, &graph.Mutation{Store: graph.DefaultStore, Prune: &graph.Prune{}})
	if err == nil && result.Refusal != nil {
		err = result.Refusal
	}
	return err
}

// removeRest does without pauses what the node was about to do with them, and
// returns how many records of the change log it looked at, but for the last step.
func (p *process) removeRest() (records int, err error) {
	for {
		more, err := p.node.Engine().DB().Remove(graph.DefaultStore, removalRecords)
		if err != nil || !more {
			return records, err
		}
		records += removalRecords
	}
}

// startPemba serves a node of its own, as the command pemba serve does.
func startPemba(spec serveSpec) (*process, error) {
	node, server, err := openPemba(spec)
	if err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve() }()
	stop := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		return errors.Join(server.Close(ctx), <-done, node.Close(ctx))
	}
	return &process{addr: server.GRPCAddr().String(), node: node, stop: stop}, nil
}

// openPemba opens a node and its server with the default settings, but for what the
// spec says of peers.
func openPemba(spec serveSpec) (*cluster.Node, *api.Server, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	fatal := func(err error) {
		logger.Error("the node failed", "error", err)
		os.Exit(1)
	}
	config := cluster.Config{DataDir: spec.Dir, Logger: logger, OnFatal: fatal}
	if spec.Peers != nil {
		spec.Peers.configure(&config)
	}
	node, err := cluster.Open(ctx, config)
	if err != nil {
		return nil, nil, err
	}
	server, err := api.Listen(api.Config{
		Node: node, GRPCAddr: "127.0.0.1:0", Logger: logger, OnFault: fatal, Dialects: []api.Dialect{authzed.Dialect{}},
	})
	if err != nil {
		return nil, nil, errors.Join(err, node.Close(ctx))
	}
	return node, server, nil
}

// An echo answers every check with the same answer, of the size of a real one.
type echo struct {
	pembav1.UnimplementedPermissionServiceServer
	answer *pembav1.CheckResponse
}

// Check implements the only call that an echo answers.
func (e *echo) Check(context.Context, *pembav1.CheckRequest) (*pembav1.CheckResponse, error) {
	return e.answer, nil
}

// zookieBytes is the length of a real zookie's token.
const zookieBytes = 50

// newEcho makes a server that does what a check costs before Pemba does anything.
// How it carries calls is api.Server's own; it looks at none of them: there are no
// interceptors, no keys and no test whether a message could be decoded.
func newEcho() *grpc.Server {
	server := grpc.NewServer(api.TransportOptions(api.DefaultLimits())...)
	pembav1.RegisterPermissionServiceServer(server, &echo{answer: &pembav1.CheckResponse{
		Decision: pembav1.Decision_DECISION_ALLOWED, CheckedAt: &pembav1.Zookie{Token: strings.Repeat("z", zookieBytes)},
	}})
	return server
}

func startEcho() (*process, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	server := newEcho()
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	return &process{addr: listener.Addr().String(), stop: func() error {
		server.Stop()
		return <-done
	}}, nil
}

// A server is a server process with a connection to it. Its methods but the
// calls are for one goroutine.
type server struct {
	command *exec.Cmd
	orders  io.WriteCloser
	replies *json.Decoder

	conn        *grpc.ClientConn
	stores      pembav1.StoreServiceClient
	schemas     pembav1.SchemaServiceClient
	tuples      pembav1.TupleServiceClient
	permissions pembav1.PermissionServiceClient
	cluster     pembav1.ClusterServiceClient
	// authzed is the same server under its other API.
	authzed v1.PermissionsServiceClient
}

// launch starts this program again as a server, and connects to it.
func launch(spec serveSpec) (s *server, err error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	encoded, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	s = &server{command: exec.Command(program)}
	s.command.Env = append(os.Environ(), serveVariable+"="+string(encoded))
	s.command.Stderr = os.Stderr
	if s.orders, err = s.command.StdinPipe(); err != nil {
		return nil, err
	}
	replies, err := s.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.replies = json.NewDecoder(replies)
	if err := s.command.Start(); err != nil {
		return nil, err
	}
	first, err := s.reply()
	if err != nil {
		return nil, errors.Join(err, s.stop())
	}
	s.conn, err = grpc.NewClient("passthrough:///"+first.Addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return nil, errors.Join(err, s.stop())
	}
	s.stores = pembav1.NewStoreServiceClient(s.conn)
	s.schemas = pembav1.NewSchemaServiceClient(s.conn)
	s.tuples = pembav1.NewTupleServiceClient(s.conn)
	s.permissions = pembav1.NewPermissionServiceClient(s.conn)
	s.cluster = pembav1.NewClusterServiceClient(s.conn)
	s.authzed = v1.NewPermissionsServiceClient(s.conn)
	return s, nil
}

func (s *server) reply() (reply, error) {
	var r reply
	if err := s.replies.Decode(&r); err != nil {
		return r, fmt.Errorf("a server process does not answer: %w", err)
	}
	if r.Error != "" {
		return r, fmt.Errorf("a server process: %s", r.Error)
	}
	return r, nil
}

// tell gives the process an order and waits for its reply.
func (s *server) tell(o order) (reply, error) {
	line, err := json.Marshal(o)
	if err != nil {
		return reply{}, err
	}
	if _, err := s.orders.Write(append(line, '\n')); err != nil {
		return reply{}, fmt.Errorf("a server process takes no orders: %w", err)
	}
	return s.reply()
}

// stop ends the process in an orderly way and waits for its end.
func (s *server) stop() error {
	var err error
	if s.conn != nil {
		err = s.conn.Close()
	}
	if closeErr := s.orders.Close(); closeErr != nil && !errors.Is(closeErr, os.ErrClosed) {
		err = errors.Join(err, closeErr)
	}
	if waitErr := s.command.Wait(); waitErr != nil {
		err = errors.Join(err, fmt.Errorf("a server process: %w", waitErr))
	}
	return err
}

// kill ends the process as a crash does, and waits for its end.
func (s *server) kill() error {
	err := s.command.Process.Kill()
	if err != nil {
		err = fmt.Errorf("kill a server process: %w", err)
	}
	err = errors.Join(err, s.conn.Close())
	if closeErr := s.orders.Close(); closeErr != nil && !errors.Is(closeErr, os.ErrClosed) {
		err = errors.Join(err, closeErr)
	}
	waitErr := s.command.Wait()
	if _, ended := errors.AsType[*exec.ExitError](waitErr); waitErr != nil && !ended {
		err = errors.Join(err, fmt.Errorf("a killed server process: %w", waitErr))
	}
	return err
}

// diskBytes returns the space that the files below dir take on the disk. A file
// that goes away meanwhile takes none.
func diskBytes(dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		sum += occupiedBytes(info)
		return nil
	})
	return sum, err
}
