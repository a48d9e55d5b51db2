package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

// DefaultStoreName is the name of the store that every cluster has, which an
// empty name means as well.
const DefaultStoreName = "default"

// A Node is what the server needs of a cluster.Node. Its methods are called by
// many goroutines at once.
type Node interface {
	// ClusterID returns the id of the cluster; zero on a node that has not heard of it
	// yet, which is not ready then.
	ClusterID() [16]byte
	// Ancestors returns the ids that the cluster had before it was recovered.
	Ancestors() []graph.Ancestor
	// Ready returns why the node may not be given work, or nil.
	Ready() error
	// Write proposes m and waits for its outcome.
	Write(ctx context.Context, m *graph.Mutation) (engine.Result, error)
	// Snapshot waits until the node has the state that c asks for.
	Snapshot(ctx context.Context, store graph.StoreID, c cluster.Consistency, overlay graph.Overlay) (*engine.Snapshot, error)
	// Await waits until the node has the state that c asks for, for what is read
	// without a snapshot.
	Await(ctx context.Context, c cluster.Consistency) error
	// Members asks all members of the cluster how they are.
	Members(ctx context.Context) ([]cluster.Member, error)
	// AddMember takes a node into the cluster, or changes its address.
	AddMember(ctx context.Context, j cluster.Joining) (cluster.Joined, error)
	// PromoteMember gives a vote to a node that has caught up.
	PromoteMember(ctx context.Context, id string) error
	// RemoveMember takes a node out of the cluster.
	RemoveMember(ctx context.Context, id string, force bool) error
	// TransferLeadership lets another voter lead: the one that is furthest with "".
	TransferLeadership(ctx context.Context, id string) error
	// ID returns the id of the node.
	ID() string
	// Stores returns the stores, by name.
	Stores() []graph.StoreInfo
	// StoreNamed returns the store of a name.
	StoreNamed(name string) (graph.StoreInfo, bool)
	// SchemaVersions returns up to limit schemas of a store, the newest first, only
	// those before a revision unless that is zero.
	SchemaVersions(id graph.StoreID, before graph.Revision, limit int) ([]graph.SchemaVersion, error)
	// Changes reads the change log from a position on.
	Changes(id graph.StoreID, from graph.Position, limit int) ([]graph.LoggedRevision, error)
	// Stages returns the staged changes of a store, by id.
	Stages(id graph.StoreID) ([]graph.StageInfo, error)
	// Stage returns a staged change of a store, also one of the last that were
	// committed: it has Committed set.
	Stage(id graph.StoreID, stage graph.StageID) (graph.StageInfo, bool, error)
	// RevisionAt returns the revision that a store had at a moment.
	RevisionAt(id graph.StoreID, at graph.Instant) (graph.Revision, error)
	// Watch follows the changes of a store from a position on.
	Watch(store graph.StoreID, from graph.Position) (*cluster.Watcher, error)
	// Metrics gathers the figures of the node; it may cost a millisecond.
	Metrics() (cluster.Metrics, error)
	// Engine returns what evaluates, for its counts.
	Engine() *engine.Engine
	// InMemory reports whether the node keeps nothing on a disk.
	InMemory() bool
}

// Config says what to serve and where.
type Config struct {
	// Node answers. It must not be nil, and is not closed by the server.
	Node Node
	// GRPCAddr is the address to serve gRPC on, as "127.0.0.1:50051"; port 0
	// takes a free one.
	GRPCAddr string
	// HTTPAddr is the address of the HTTP form of the protocol, of /healthz,
	// /readyz and /metrics; empty for none.
	HTTPAddr string
	// Dialects are the other APIs that the server answers, besides pemba.v1.
	Dialects []Dialect
	// Keys are operators' keys. A caller must present one of them or of KeyFile.
	// Without either, both addresses must be loopback addresses.
	Keys []string
	// KeyFile names a file of further keys, a line each: "KEY" for an operator's,
	// "KEY store NAME,NAME" for one that is bound to stores; # begins a comment.
	// It is read again when it changes; one that cannot be read leaves the keys as
	// they are. Empty for none.
	KeyFile string
	// Testing makes a server for the tests of applications, of a Node that must be
	// in memory: every key is let in, and has a store of its own, empty, which is made
	// at the first call with the key and which no other key sees. A call without a key
	// is about DefaultStoreName. Nobody is an operator, so that stores can be neither
	// made nor changed nor deleted, and Limits.Stores bounds how many keys there may
	// be. Keys and KeyFile must be empty. Whoever reaches an address may call: it need
	// not be a loopback address, but should be one.
	Testing bool
	// TLSCert and TLSKey name the PEM files of the certificate (with its chain)
	// and key that both addresses show; empty for no TLS. They are read again when
	// they change, like KeyFile.
	TLSCert string
	TLSKey  string
	// ClientCA names a PEM file of authorities; every client must then show a
	// certificate that one of them signed, besides a key. Empty for none; it needs
	// TLSCert. It is read again as well.
	ClientCA string
	// OTLPEndpoint is the collector that traces are sent to, as
	// "http://localhost:4317", or with TLS "https://..."; it speaks OTLP over gRPC.
	// When empty, the environment variable OTEL_EXPORTER_OTLP_ENDPOINT says, and
	// without that there are no traces.
	OTLPEndpoint string
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

// Validate says what is wrong with the configuration. It can be asked before there
// is a Node; Listen asks it again.
func (c *Config) Validate() error {
	if err := c.Limits.Validate(); err != nil {
		return fmt.Errorf("api: %w", err)
	}
	for i, key := range c.Keys {
		if err := validateKey(key); err != nil {
			return fmt.Errorf("api: key %d: %w", i+1, err)
		}
	}
	if len(c.Keys) > keysMax {
		return fmt.Errorf("api: there are %d keys; at most %d are allowed", len(c.Keys), keysMax)
	}
	if c.Testing && c.hasKeys() {
		return errors.New("api: Testing is set, and so is Keys or KeyFile: a server that lets every key in has none of its own")
	}
	if c.Testing && c.Node != nil && !c.Node.InMemory() {
		return errors.New("api: Testing is set, and Node keeps its data on a disk: a server that lets every key in serves a node in memory")
	}
	if c.KeyFile != "" {
		if _, err := c.readKeys(); err != nil {
			return fmt.Errorf("api: %w", err)
		}
	}
	if err := c.tlsFiles().validate(); err != nil {
		return fmt.Errorf("api: %w", err)
	}
	if err := validateEndpoint(c.OTLPEndpoint); err != nil {
		return fmt.Errorf("api: collector of traces: %w", err)
	}
	for _, a := range [...]struct{ what, addr string }{{"gRPC", c.GRPCAddr}, {"HTTP", c.HTTPAddr}} {
		if a.addr == "" && a.what == "HTTP" {
			continue
		}
		if err := validateAddr(a.addr, c.hasKeys() || c.Testing); err != nil {
			return fmt.Errorf("api: %s address: %w", a.what, err)
		}
	}
	return nil
}

func (c *Config) hasKeys() bool { return len(c.Keys) > 0 || c.KeyFile != "" }

func (c *Config) tlsFiles() tlsFiles {
	return tlsFiles{cert: c.TLSCert, key: c.TLSKey, clientCA: c.ClientCA}
}

// readKeys returns the keys of the configuration and of its file.
func (c *Config) readKeys() (keyring, error) {
	ring := operatorKeys(c.Keys)
	if c.KeyFile == "" {
		return ring, nil
	}
	content, err := readFile(c.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	more, err := parseKeyFile(content)
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", c.KeyFile, err)
	}
	return append(ring, more...), nil
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
			return fmt.Errorf("%q can be reached from other machines and no key is configured; configure a key (--key-file or PEMBA_SERVE_KEY), or use a loopback address such as 127.0.0.1", addr)
		}
	}
	return nil
}

// A Server serves one node. Listen makes one; Serve and Close are called once
// each, the latter from any goroutine.
type Server struct {
	node    Node
	limits  Limits
	logger  *slog.Logger
	onFault func(error)

	gate    *gate
	rate    *rates
	metrics *metrics
	tracer  *tracer      // nil without a collector
	tls     *tlsIdentity // nil without TLS

	grpc         *grpc.Server
	grpcListener *boundedListener
	http         *http.Server // nil without HTTPAddr
	httpListener *boundedListener
	gateway      *gateway

	// files are those of the configuration; they are followed until stopFollowing
	// is called, and following ends with it.
	files         []*fileSet
	stopFollowing context.CancelFunc
	following     sync.WaitGroup

	// spoken are the dialects of the configuration, and dialects the same by the
	// full names of their services.
	spoken   []Dialect
	dialects map[string]Dialect

	// watches are the open watches, and streams all open streaming answers, those
	// among them.
	watches, streams slots

	// current says that caughtUp has succeeded.
	current atomic.Bool

	// makingStore is held by who makes the store of a key: it has room for one.
	makingStore chan struct{}

	// schemaTurns are the turns of those who write schemas.
	schemaTurns storeTurns

	// drainPatience is how long Close lets idle HTTP connections end by themselves.
	drainPatience time.Duration

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
		node: c.Node, limits: c.Limits.withDefaults(),
		logger: c.Logger, onFault: c.OnFault, makingStore: make(chan struct{}, 1), stopping: make(chan struct{}),
		drainPatience: drainPatience,
	}
	if s.logger == nil {
		s.logger = slog.Default()
	}
	if c.Testing && c.Limits.Stores == 0 {
		s.limits.Stores = testingStores
	}
	s.spoken, s.dialects = c.Dialects, make(map[string]Dialect)
	for _, d := range c.Dialects {
		for _, service := range d.Services() {
			s.dialects[service.ServiceName] = d
		}
	}
	s.watches = slots{what: "watches", reason: "TOO_MANY_WATCHES", limit: s.limits.Watches}
	s.streams = slots{what: "streaming answers", reason: "TOO_MANY_STREAMS", limit: s.limits.OpenStreams}
	s.metrics = newMetrics(s)
	s.rate = newRates(s.limits.CallsPerSecond, s.metrics.rateLimited)
	s.gate = &gate{testing: c.Testing, metrics: s.metrics, dialect: s.dialect}
	var ctx context.Context
	ctx, s.stopFollowing = context.WithCancel(context.Background())
	listening := false
	defer func() {
		if !listening {
			s.stopFollowing()
			s.following.Wait()
		}
	}()
	if err := s.load(ctx, c); err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	var err error
	if s.tracer, err = newTracer(c.OTLPEndpoint); err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	if s.grpcListener, err = s.listen("gRPC", c.GRPCAddr); err != nil {
		return nil, errors.Join(err, s.tracer.close(context.Background()))
	}
	var more []grpc.ServerOption
	if s.tls != nil {
		more = append(more, grpc.Creds(credentials.NewTLS(s.tls.config("h2"))))
	}
	s.grpc = s.newGRPC(more...)
	reflection.Register(s.grpc)
	if c.HTTPAddr != "" {
		if err := s.listenHTTP(c.HTTPAddr); err != nil {
			return nil, errors.Join(err, s.grpcListener.Close(), s.tracer.close(context.Background()))
		}
	}
	for _, l := range []*boundedListener{s.grpcListener, s.httpListener} {
		switch {
		case l == nil || isLoopback(l.Addr()):
		case c.Testing:
			s.logger.Warn("every key is let in on an address that other machines can reach", "addr", l.Addr().String())
		case s.tls == nil:
			s.logger.Warn("keys and answers cross the network in the clear: an address that other machines can reach has no TLS", "addr", l.Addr().String())
		}
	}
	s.following.Go(func() { follow(ctx, s.logger, s.files) })
	listening = true
	return s, nil
}

// load reads the files of the configuration, and remembers to do so again. What it
// leaves to the background ends with ctx.
func (s *Server) load(ctx context.Context, c Config) error {
	loadKeys := func() error {
		ring, err := c.readKeys()
		if err == nil {
			s.gate.use(ring)
			s.whenReady(ctx, func() { s.warnOfUnknownStores(c.KeyFile, ring) })
		}
		return err
	}
	if c.KeyFile == "" {
		if err := loadKeys(); err != nil {
			return err
		}
	} else {
		keys, err := newFileSet("keys", []string{c.KeyFile}, loadKeys)
		if err != nil {
			return err
		}
		s.files = append(s.files, keys)
	}
	if c.TLSCert == "" {
		return nil
	}
	files := c.tlsFiles()
	names := []string{files.cert, files.key}
	if files.clientCA != "" {
		names = append(names, files.clientCA)
	}
	s.tls = &tlsIdentity{}
	identity, err := newFileSet("TLS", names, func() error {
		config, err := files.load()
		if err == nil {
			s.tls.current.Store(config)
		}
		return err
	})
	if err != nil {
		return err
	}
	s.files = append(s.files, identity)
	return nil
}

// listen takes an address.
func (s *Server) listen(what, addr string) (*boundedListener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("api: listen for %s: %w", what, err)
	}
	return &boundedListener{Listener: l, max: int64(s.limits.Connections), refused: s.metrics.connectionsRefused}, nil
}

// whenReady calls f once the node is ready, at once when it is, else in the background
// unless ctx ends before.
func (s *Server) whenReady(ctx context.Context, f func()) {
	if s.node.Ready() == nil {
		f()
		return
	}
	s.following.Go(func() {
		ticker := time.NewTicker(healthPause)
		defer ticker.Stop()
		for s.node.Ready() != nil {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
		f()
	})
}

// warnOfUnknownStores tells of keys that are bound to stores that do not exist:
// the names may be misspelt, or the stores be created later.
func (s *Server) warnOfUnknownStores(file string, ring keyring) {
	for i := range ring {
		var unknown []string
		for name := range ring[i].stores {
			if _, exists := s.node.StoreNamed(name); !exists {
				unknown = append(unknown, name)
			}
		}
		if len(unknown) == 0 {
			continue
		}
		slices.Sort(unknown)
		s.logger.Warn("a key is bound to stores that do not exist; it can use them once they are created",
			"file", file, "line", ring[i].line, "count", len(unknown), "stores", strings.Join(unknown[:min(len(unknown), unknownStoresShown)], ","))
	}
}

// unknownStoresShown bounds how many stores of one key a warning names.
const unknownStoresShown = 8

func (s *Server) listenHTTP(addr string) error {
	var err error
	if s.httpListener, err = s.listen("HTTP", addr); err != nil {
		return err
	}
	if s.gateway, err = newGateway(s); err != nil {
		return errors.Join(err, s.httpListener.Close())
	}
	s.http = &http.Server{
		Handler: s.httpHandler(), MaxHeaderBytes: headerBytesMax,
		// The gateway has its own, since streams last longer.
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: httpSendTimeout, WriteTimeout: httpSendTimeout, IdleTimeout: time.Minute,
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: s.limits.Streams, SendPingTimeout: time.Minute},
		ErrorLog: slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
	}
	if s.tls != nil {
		s.http.TLSConfig = s.tls.config("h2", "http/1.1")
	}
	return nil
}

// TransportOptions returns how a Server with these limits, which must be valid,
// carries calls over gRPC: its codec, bounds, workers and keepalive. A program
// that wants to know what Pemba adds to a call can serve something else with the
// very same options. What looks at a call is not among them: keys, interceptors,
// traces and the answer to unknown methods; neither is TLS.
func TransportOptions(limits Limits) []grpc.ServerOption {
	limits = limits.withDefaults()
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(newMarkingCodec(limits.RequestBytes)),
		grpc.MaxRecvMsgSize(tooLargeFactor * limits.RequestBytes),
		grpc.MaxHeaderListSize(headerBytesMax),
		grpc.MaxConcurrentStreams(uint32(limits.Streams)),
		grpc.ConnectionTimeout(10 * time.Second),
		// A worker keeps the stack that a deep question has grown; with too few
		// of them every call begins with a small one and copies it several times.
		grpc.NumStreamWorkers(uint32(64 * runtime.GOMAXPROCS(0))),
		grpc.WaitForHandlers(true),
		// A client that is gone without a word is noticed, so that its streams
		// are let go; one that pings often is put up with.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
}

// newGRPC makes a gRPC server with all services. More options come last and win.
func (s *Server) newGRPC(more ...grpc.ServerOption) *grpc.Server {
	options := append(TransportOptions(s.limits),
		grpc.InTapHandle(s.gate.authenticate),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
		grpc.UnknownServiceHandler(refuseUnknown))
	options = append(options, s.tracer.serverOptions()...)
	g := grpc.NewServer(append(options, more...)...)
	pembav1.RegisterStoreServiceServer(g, &storeService{server: s})
	pembav1.RegisterSchemaServiceServer(g, &schemaService{server: s})
	pembav1.RegisterTupleServiceServer(g, &tupleService{server: s})
	pembav1.RegisterPermissionServiceServer(g, &permissionService{server: s})
	pembav1.RegisterWatchServiceServer(g, &watchService{server: s})
	pembav1.RegisterClusterServiceServer(g, &clusterService{server: s})
	host := &Host{s}
	for _, d := range s.spoken {
		d.Register(g, host)
	}
	grpc_health_v1.RegisterHealthServer(g, newHealthService(s))
	return g
}

// refuseUnknown answers a call of a method that there is not. It reads nothing of
// the call, whose key was looked at before as that of any other.
func refuseUnknown(_ any, stream grpc.ServerStream) error {
	given, _ := grpc.Method(stream.Context())
	// gRPC allows as much as all headers may have.
	given = given[:min(len(given), methodBytesShown)]
	e := &requestError{
		code: codes.Unimplemented, reason: "UNKNOWN_METHOD",
		message:  fmt.Sprintf("there is no method %q", given),
		metadata: map[string]string{"method": given},
	}
	if near := nearestMethod(given); near != "" {
		e.message += fmt.Sprintf("; did you mean %q?", near)
		e.metadata["suggestion"] = near
	}
	return e
}

// methodBytesShown bounds what an error repeats of the name of a method.
const methodBytesShown = 256

// nearestMethod returns the method of pemba.v1 that was probably meant by a full
// name, or "". It goes by the method's own name, so that the right method of the
// wrong service is found, and a service named wrongly does not matter.
func nearestMethod(given string) string {
	service, method := given[:strings.LastIndex(given, "/")+1], given[strings.LastIndex(given, "/")+1:]
	if strings.HasPrefix(service, "/grpc.") {
		return "" // Health and reflection have a Check of their own.
	}
	full := make(map[string]string)
	for _, service := range services {
		for _, m := range service.Methods {
			full[m.MethodName] = "/" + service.ServiceName + "/" + m.MethodName
		}
		for _, m := range service.Streams {
			full[m.StreamName] = "/" + service.ServiceName + "/" + m.StreamName
		}
	}
	if near, known := full[method]; known {
		return near
	}
	return full[schema.Nearest(method, slices.Collect(maps.Keys(full)))]
}

// isLoopback reports whether only this machine reaches an address.
func isLoopback(a net.Addr) bool {
	tcp, ok := a.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
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
	var serve []func() error
	serve = append(serve, func() error { return s.grpc.Serve(s.grpcListener) })
	if s.http != nil {
		serve = append(serve, s.gateway.serve, func() error {
			if s.tls != nil {
				return s.http.ServeTLS(s.httpListener, "", "")
			}
			return s.http.Serve(s.httpListener)
		})
	}
	done := make(chan error, len(serve))
	for _, f := range serve {
		go func() { done <- f() }()
	}
	for range serve {
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
// until ctx ends, and then cancels them. Watches end at once. A write that was
// acknowledged stays one; of a write that is cut off the caller knows nothing. It
// returns when no call is open any more.
func (s *Server) Close(ctx context.Context) error {
	s.closeOnce.Do(func() { s.closeErr = s.close(ctx) })
	return s.closeErr
}

func (s *Server) close(ctx context.Context) error {
	close(s.stopping)
	s.stopFollowing()
	s.following.Wait()
	graceful := make(chan struct{})
	go func() {
		defer close(graceful)
		s.grpc.GracefulStop()
	}()
	var errs []error
	if s.http != nil {
		s.drain(ctx)
		// A client that is too slow is cut off; that is what was asked for.
		if err := s.http.Shutdown(ctx); err != nil {
			s.logger.Info("canceling the calls over HTTP that are still open")
			errs = append(errs, s.http.Close())
		}
		// A server that was never served does not know its listener.
		if err := s.httpListener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
		errs = append(errs, s.gateway.close())
	}
	select {
	case <-graceful:
	case <-ctx.Done():
		s.logger.Info("canceling the calls that are still open")
		s.grpc.Stop()
		<-graceful
	}
	if err := s.grpcListener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		errs = append(errs, err)
	}
	// The last traces are worth a moment, also when the calls took all the time.
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), tracesPatience)
	defer cancel()
	if err := s.tracer.close(last); err != nil {
		s.logger.Warn("the last traces are lost", "error", err)
	}
	return errors.Join(errs...)
}

// drain lets HTTP connections end by themselves for a moment. HTTP/1 has no way
// to tell a client that an idle connection is about to be closed, so a request
// that is just then on its way would be lost; answers given meanwhile say that
// they are the last of their connection.
func (s *Server) drain(ctx context.Context) {
	patience := s.drainPatience
	if deadline, ok := ctx.Deadline(); ok {
		patience = min(patience, time.Until(deadline)/2)
	}
	for end := time.Now().Add(patience); s.httpListener.open.Load() > 0 && time.Now().Before(end); {
		time.Sleep(drainPause)
	}
}

// drainPatience is how long drain waits at most, drainPause how often it looks.
const (
	drainPatience = 300 * time.Millisecond
	drainPause    = 5 * time.Millisecond
)

// tracesPatience is how long Close waits for the collector of traces.
const tracesPatience = time.Second

// ready returns why no work should be sent here, or nil.
func (s *Server) ready() error {
	select {
	case <-s.stopping:
		return cluster.ErrShuttingDown
	default:
		return s.node.Ready()
	}
}

// unary and stream are the only interceptors: they catch panics, map errors and
// count.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	call := s.metrics.begin(info.FullMethod)
	consistency := s.consistencyOf(info.FullMethod, req)
	defer func() {
		if p := recover(); p != nil {
			resp, err = nil, s.panicked(info.FullMethod, p)
		}
		if err != nil {
			err = s.outward(info.FullMethod, err)
		}
		call.end(status.Code(err), consistency)
	}()
	if err := s.greet(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	if err := undecodable(req, s.limits.RequestBytes); err != nil {
		return nil, err
	}
	s.tracer.annotate(ctx, req, consistency)
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.limits.CallTimeout)
		defer cancel()
	}
	resp, err = handler(ctx, req)
	if err == nil {
		return resp, nil
	}
	// A stream is not begun again: what it said already was of the other store.
	if again, failed := s.madeAgain(ctx, err); failed != nil {
		return nil, failed
	} else if again {
		return handler(ctx, req)
	}
	return resp, err
}

func (s *Server) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	call := s.metrics.begin(info.FullMethod)
	counted := &countedStream{
		ServerStream: stream, server: s, ctx: stream.Context(), open: s.gate.enter(stream.Context()),
		method:  info.FullMethod,
		answers: info.IsServerStream && s.metrics.methods[info.FullMethod] != nil,
	}
	if counted.open != nil {
		if !info.IsClientStream {
			counted.ctx = counted.open.ctx
		}
		counted.ctx = context.WithValue(counted.ctx, openKey{}, counted.open)
	}
	counted.many = info.IsClientStream
	defer func() {
		if counted.entered {
			s.streams.leave(callerOf(stream.Context()))
		}
		if p := recover(); p != nil {
			err = s.panicked(info.FullMethod, p)
		}
		if counted.open != nil {
			err = because(err, counted.open.refused())
			s.gate.leave(counted.open)
		}
		s.leftBehind(stream.Context(), err)
		if err != nil {
			err = s.outward(info.FullMethod, err)
		}
		call.end(status.Code(err), counted.consistency)
	}()
	if err := s.greet(stream.Context(), info.FullMethod); err != nil {
		return err
	}
	return handler(srv, counted)
}

// A countedStream looks at the first request of a stream, takes a slot when the
// answer is one of the streams that are bounded, and ends when its key does.
type countedStream struct {
	grpc.ServerStream
	server *Server
	// ctx is that of the handler. It ends with the key where only reading is cut
	// off by that. A request that is a stream writes; it ends before its next
	// message, so that what became of the last one is known.
	ctx context.Context
	// open is nil where there is no key.
	open *openStream
	// method is the full name of the method.
	method string
	// many says that the request is a stream.
	many bool
	// answers says that the answer is such a stream, entered that it has its slot.
	answers     bool
	entered     bool
	seen        bool
	consistency consistencyLabel
}

// Context returns the context of the handler.
func (c *countedStream) Context() context.Context { return c.ctx }

// RecvMsg receives a request.
func (c *countedStream) RecvMsg(m any) error {
	err := c.receive(m)
	if err == nil {
		err = undecodable(m, c.server.limits.RequestBytes)
	}
	if err == nil && !c.seen {
		c.seen = true
		c.consistency = c.server.consistencyOf(c.method, m)
		c.server.tracer.annotate(c.Context(), m, c.consistency)
		if c.open != nil {
			if err := c.server.gate.about(c.open, m); err != nil {
				return err
			}
		}
		if c.answers {
			err = c.server.streams.enter(callerOf(c.Context()))
			c.entered = err == nil
		}
	}
	return err
}

// SendMsg sends an answer, unless the key has ended: nothing that is written after
// a key is gone is told to it. The one answer to a request that is a stream says
// what became of it, and is not held back.
func (c *countedStream) SendMsg(m any) error {
	if c.open != nil && !c.many {
		if refused := c.open.refused(); refused != nil {
			return refused
		}
	}
	return c.ServerStream.SendMsg(m)
}

// receive receives a request, unless the key ends first: a client may send
// nothing for as long as it likes.
func (c *countedStream) receive(m any) error {
	if c.open == nil || !c.many {
		return c.ServerStream.RecvMsg(m)
	}
	type outcome struct {
		err      error
		panicked any
	}
	received := make(chan outcome, 1)
	// It ends when the handler has, should it still be waiting by then.
	go func() {
		var o outcome
		defer func() {
			if p := recover(); p != nil {
				o.panicked = deliveryPanic{p, debug.Stack()}
			}
			received <- o
		}()
		o.err = c.ServerStream.RecvMsg(m)
	}()
	select {
	case o := <-received:
		if o.panicked != nil {
			panic(o.panicked)
		}
		if refused := c.open.refused(); refused != nil {
			return refused // Also in place of the end of the stream, which would commit it.
		}
		return o.err
	case <-c.open.ctx.Done():
		return context.Cause(c.open.ctx)
	}
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
	if d := s.dialect(method); d != nil {
		st = d.Status(err, st)
	}
	return st.Err()
}

// consistencyOf says which state a request of a method asks for.
func (s *Server) consistencyOf(fullMethod string, request any) consistencyLabel {
	d := s.dialect(fullMethod)
	if d == nil {
		return consistencyOf(request)
	}
	mode, cursor, reads := d.Asked(request)
	switch {
	case !reads:
		return noConsistency
	case cursor:
		return cursorConsistency
	}
	switch mode {
	case cluster.AtLeast:
		return atLeastConsistency
	case cluster.Exactly:
		return exactlyConsistency
	case cluster.Linearizable:
		return linearizableConsistency
	case cluster.AsOf:
		return asOfConsistency
	}
	return newestConsistency
}

// greet tells the dialect of a call that it begins.
func (s *Server) greet(ctx context.Context, fullMethod string) error {
	if d := s.dialect(fullMethod); d != nil {
		return d.Begin(ctx)
	}
	return nil
}

func (s *Server) fault(method string, err error) {
	err = graph.Damage(err)
	s.logger.Error("a call failed by a fault of this node", "method", method, "error", err)
	if graph.IsCorruptionError(err) && s.onFault != nil {
		s.onFault(err)
	}
}

// clusterID returns the id of the cluster, for zookies and cursors. It is asked of the
// node each time: one that joins a cluster learns it later than it begins to serve.
func (s *Server) clusterID() [16]byte { return s.node.ClusterID() }

// isAncestor reports whether a cluster had an id before it was recovered.
func (s *Server) isAncestor(id [16]byte) bool {
	return slices.ContainsFunc(s.node.Ancestors(), func(a graph.Ancestor) bool { return a.ClusterID == id })
}

// zookie returns the zookie of what a snapshot answers.
func (s *Server) zookie(snapshot *engine.Snapshot) zookie {
	return zookie{cluster: s.clusterID(), revision: snapshot.Revision(), instant: snapshot.Instant()}
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
	return zookie{cluster: s.clusterID(), revision: r.Revision, instant: r.Instant}.proto()
}
