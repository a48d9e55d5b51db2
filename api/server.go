package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// DefaultStoreName is the name of the store that every cluster has, which an
// empty name means as well.
const DefaultStoreName = "default"

// A Node is what the server needs of a cluster.Node. Its methods are called by
// many goroutines at once.
type Node interface {
	// ClusterID returns the id of the cluster, which never changes.
	ClusterID() [16]byte
	// Ready returns why the node may not be given work, or nil.
	Ready() error
	// Write proposes m and waits for its outcome.
	Write(ctx context.Context, m *graph.Mutation) (engine.Result, error)
	// Snapshot waits until the node has the state that c asks for.
	Snapshot(ctx context.Context, store graph.StoreID, c cluster.Consistency, overlay graph.Overlay) (*engine.Snapshot, error)
}

// Config says what to serve and where.
type Config struct {
	// Node answers. It must not be nil, and is not closed by the server.
	Node Node
	// GRPCAddr is the address to serve gRPC on, as "127.0.0.1:50051"; port 0
	// takes a free one.
	GRPCAddr string
	// HTTPAddr is the address of /healthz and /readyz; empty for none.
	HTTPAddr string
	// Keys are the keys of which a caller must present one. Without any, both
	// addresses must be loopback addresses.
	Keys []string
	// Limits bound requests; its zero value has the defaults.
	Limits Limits
	// Logger gets a line for each change of state and each fault; nil means
	// slog.Default().
	Logger *slog.Logger
	// OnFault is called with an error that means that this node's data cannot be
	// trusted any more; the process should end. It may be nil, may be called
	// several times and at once, and must not block.
	OnFault func(error)
}

// Validate says what is wrong with the configuration, but for Node, so that it
// can be asked before there is one.
func (c *Config) Validate() error {
	if err := c.Limits.Validate(); err != nil {
		return fmt.Errorf("api: %w", err)
	}
	for i, key := range c.Keys {
		if err := validateKey(key); err != nil {
			return fmt.Errorf("api: key %d: %w", i+1, err)
		}
	}
	for _, a := range [...]struct{ what, addr string }{{"gRPC", c.GRPCAddr}, {"HTTP", c.HTTPAddr}} {
		if a.addr == "" && a.what == "HTTP" {
			continue
		}
		if err := validateAddr(a.addr, len(c.Keys) > 0); err != nil {
			return fmt.Errorf("api: %s address: %w", a.what, err)
		}
	}
	return nil
}

// validateAddr refuses an address that is none and, unless others is set, one
// that others than this machine can reach.
func validateAddr(addr string, others bool) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%q is not of the form host:port: %w", addr, err)
	}
	if others {
		return nil
	}
	ips := []net.IP{net.ParseIP(host)}
	if host != "" && ips[0] == nil {
		if ips, err = net.LookupIP(host); err != nil {
			return fmt.Errorf("%q: the host cannot be resolved: %w", addr, err)
		}
	}
	for _, ip := range ips {
		if !ip.IsLoopback() {
			return fmt.Errorf("%q can be reached from other machines and no key is configured; configure a key, or use a loopback address such as 127.0.0.1", addr)
		}
	}
	return nil
}

// A Server serves one node. Listen makes one; Serve and Close are called once
// each, the latter from any goroutine.
type Server struct {
	node      Node
	clusterID [16]byte
	limits    Limits
	logger    *slog.Logger
	onFault   func(error)

	grpc         *grpc.Server
	grpcListener net.Listener
	http         *http.Server // nil without HTTPAddr
	httpListener net.Listener

	// stopping is closed when Close begins.
	stopping  chan struct{}
	closeOnce sync.Once
	closeErr  error
}

// Listen validates c and takes the addresses; Serve then answers on them. A
// server that is not served must be closed as well.
func Listen(c Config) (*Server, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Node == nil {
		return nil, errors.New("api: no node is given")
	}
	s := &Server{
		node: c.Node, clusterID: c.Node.ClusterID(), limits: c.Limits.withDefaults(),
		logger: c.Logger, onFault: c.OnFault, stopping: make(chan struct{}),
	}
	if s.logger == nil {
		s.logger = slog.Default()
	}
	var err error
	if s.grpcListener, err = net.Listen("tcp", c.GRPCAddr); err != nil {
		return nil, fmt.Errorf("api: listen for gRPC: %w", err)
	}
	if c.HTTPAddr != "" {
		if s.httpListener, err = net.Listen("tcp", c.HTTPAddr); err != nil {
			return nil, errors.Join(fmt.Errorf("api: listen for HTTP: %w", err), s.grpcListener.Close())
		}
		s.http = &http.Server{
			Handler: s.httpHandler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
			WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: headerBytesMax,
			ErrorLog: slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
		}
	}
	keys := newKeyring(c.Keys)
	s.grpc = grpc.NewServer(
		grpc.InTapHandle(keys.authenticate),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
		grpc.MaxRecvMsgSize(s.limits.RequestBytes),
		grpc.MaxHeaderListSize(headerBytesMax),
		grpc.MaxConcurrentStreams(uint32(s.limits.Streams)),
		grpc.ConnectionTimeout(10*time.Second),
		// A worker keeps the stack that a deep question has grown; with too few
		// of them every call begins with a small one and copies it several times.
		grpc.NumStreamWorkers(uint32(64*runtime.GOMAXPROCS(0))),
		grpc.WaitForHandlers(true),
		// A client that is gone without a word is noticed, so that its streams
		// are let go; one that pings often is put up with.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)
	pembav1.RegisterSchemaServiceServer(s.grpc, &schemaService{server: s})
	pembav1.RegisterTupleServiceServer(s.grpc, &tupleService{server: s})
	pembav1.RegisterPermissionServiceServer(s.grpc, &permissionService{server: s})
	grpc_health_v1.RegisterHealthServer(s.grpc, &healthService{server: s})
	reflection.Register(s.grpc)
	return s, nil
}

// GRPCAddr returns the address that gRPC is served on.
func (s *Server) GRPCAddr() net.Addr { return s.grpcListener.Addr() }

// HTTPAddr returns the address that HTTP is served on, or nil.
func (s *Server) HTTPAddr() net.Addr {
	if s.httpListener == nil {
		return nil
	}
	return s.httpListener.Addr()
}

// Serve answers until Close, and then returns nil. When one of the two
// listeners fails it returns that error; the other still has to be closed.
func (s *Server) Serve() error {
	done := make(chan error, 2)
	go func() { done <- s.grpc.Serve(s.grpcListener) }()
	waiting := 1
	if s.http != nil {
		waiting++
		go func() { done <- s.http.Serve(s.httpListener) }()
	}
	for range waiting {
		err := <-done
		select {
		case <-s.stopping:
			continue
		default:
		}
		if err == nil || errors.Is(err, http.ErrServerClosed) {
			err = errors.New("a listener ended by itself")
		}
		return fmt.Errorf("api: %w", err)
	}
	return nil
}

// Close stops the server: it takes no more calls, waits for those that are open
// until ctx ends, and then cancels them. A write that was acknowledged stays
// one; of a write that is cut off the caller knows nothing. It returns when no
// call is open any more.
func (s *Server) Close(ctx context.Context) error {
	s.closeOnce.Do(func() { s.closeErr = s.close(ctx) })
	return s.closeErr
}

func (s *Server) close(ctx context.Context) error {
	close(s.stopping)
	graceful := make(chan struct{})
	go func() {
		defer close(graceful)
		s.grpc.GracefulStop()
	}()
	var httpErr error
	if s.http != nil {
		if httpErr = s.http.Shutdown(ctx); httpErr != nil {
			httpErr = errors.Join(httpErr, s.http.Close())
		}
		// A server that was never served does not know its listener.
		if err := s.httpListener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			httpErr = errors.Join(httpErr, err)
		}
	}
	select {
	case <-graceful:
	case <-ctx.Done():
		s.logger.Info("canceling the calls that are still open")
		s.grpc.Stop()
		<-graceful
	}
	if err := s.grpcListener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		httpErr = errors.Join(httpErr, err)
	}
	return httpErr
}

// ready returns why no work should be sent here, or nil.
func (s *Server) ready() error {
	select {
	case <-s.stopping:
		return cluster.ErrShuttingDown
	default:
		return s.node.Ready()
	}
}

// unary and stream are the only interceptors: they catch panics and map errors.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	defer func() {
		if p := recover(); p != nil {
			resp, err = nil, s.panicked(info.FullMethod, p)
		}
		if err != nil {
			err = s.outward(info.FullMethod, err)
		}
	}()
	return handler(ctx, req)
}

func (s *Server) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = s.panicked(info.FullMethod, p)
		}
		if err != nil {
			err = s.outward(info.FullMethod, err)
		}
	}()
	return handler(srv, stream)
}

// panicked logs a panic with its stack and returns what to tell the caller. A
// question changes nothing, so the process may live on; what was damaged shows
// as corruption, which outward passes on.
func (s *Server) panicked(method string, p any) error {
	s.logger.Error("a handler panicked", "method", method, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	if err, ok := p.(error); ok {
		return fmt.Errorf("panic: %w", err)
	}
	return fmt.Errorf("panic: %v", p)
}

// outward maps an error to its status, and lets the operator know of faults.
func (s *Server) outward(method string, err error) error {
	st, fault := toStatus(err)
	if fault {
		s.fault(method, err)
	}
	return st.Err()
}

func (s *Server) fault(method string, err error) {
	s.logger.Error("a call failed by a fault of this node", "method", method, "error", err)
	if graph.IsCorruptionError(err) && s.onFault != nil {
		s.onFault(err)
	}
}

// snapshot gives the state that a read is answered from. A cursor decides it
// alone when there is one.
func (s *Server) snapshot(ctx context.Context, store string, c *pembav1.Consistency, from *cursor) (*engine.Snapshot, error) {
	id, err := toStore(store)
	if err != nil {
		return nil, err
	}
	var consistency cluster.Consistency
	if from != nil {
		consistency = cluster.Consistency{Mode: cluster.Exactly, Revision: from.revision, Instant: from.instant, Pinned: true}
	} else if consistency, err = toConsistency(c, s.clusterID); err != nil {
		return nil, err
	}
	return s.node.Snapshot(ctx, id, consistency, graph.Overlay{})
}

// zookie returns the zookie of what a snapshot answers.
func (s *Server) zookie(snapshot *engine.Snapshot) zookie {
	return zookie{cluster: s.clusterID, revision: snapshot.Revision(), instant: snapshot.Instant()}
}

// write makes a change and returns its result, or the refusal as an error.
func (s *Server) write(ctx context.Context, m *graph.Mutation) (engine.Result, error) {
	result, err := s.node.Write(ctx, m)
	if err != nil {
		return engine.Result{}, err
	}
	if result.Refusal != nil {
		return engine.Result{}, result.Refusal
	}
	return result, nil
}

// writtenAt is the zookie of a change.
func (s *Server) writtenAt(r engine.Result) *pembav1.Zookie {
	return zookie{cluster: s.clusterID, revision: r.Revision, instant: r.Instant}.proto()
}
