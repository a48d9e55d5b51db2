package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/api/authzed"
	"github.com/pembadb/pemba/cluster"
)

// How long a start may take, and an orderly end. The parts of the end together stay
// below the 10 seconds that process managers give.
const (
	openPatience        = time.Minute
	closeServerPatience = 3 * time.Second
)

// closeNodePatience is a variable for tests, which may run where disks are slow.
var closeNodePatience = 5 * time.Second

// The default ports.
const (
	grpcPort = "50051"
	httpPort = "8080"
)

// serveFlags are the flags of serve.
type serveFlags struct {
	dataDir, grpcAddr, httpAddr, nodeID, config string
	testing                                     bool
	keys                                        []string
	keyFile, tlsCert, tlsKey, clientCA          string
	otlpEndpoint                                string
	peers                                       peerFlags
	limits                                      api.Limits
	node                                        cluster.Config
	log                                         logFlags
}

func newServe() *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run a server",
		Long: `Serve runs a server on a data directory. An empty directory becomes a cluster of
one: with --bootstrap one that others can join, without any flag about other nodes one
that stays alone. With --join it becomes a node of the cluster whose members are named.
With --raft-addr and neither of the two it is refused, for it may be that of a node whose
disk is not there. A used directory is resumed, whatever these flags say. Beyond this
machine the nodes of a cluster need certificates for each other.

Without a key the server listens on this machine only, and refuses to start on
any other address. With keys, every call must present one of them. The keys of
--key may do everything; those of --key-file too, or they are bound to stores: a
line each, "KEY" or "KEY store NAME,NAME". The files of keys and of TLS are read
again when they change.

With --testing the server keeps everything in memory and lets every key in; each
has a store of its own, which is empty at first and which no other key sees. It is
for the tests of applications: one server for all, and a new key for each test.

Every flag is also an environment variable, PEMBA_ with the flag's name in
capitals and _ for -, as PEMBA_TLS_CERT, and a key of the YAML file that --config
names. The command line wins over the environment, and that over the file. The
keys of the server are PEMBA_SERVE_KEY, separated by blanks.

SIGTERM and SIGINT end it within 10 seconds; a second one kills it.`,
		Example: `  pemba serve
  PEMBA_SERVE_KEY=$(pemba keygen) pemba serve --data-dir /var/lib/pemba --tls-cert cert.pem --tls-key key.pem
  pemba serve --bootstrap --raft-addr 127.0.0.1:7001
  pemba serve --join 127.0.0.1:50051 --raft-addr 127.0.0.1:7002 --data-dir n2 --grpc-addr 127.0.0.1:50052 --http-addr none
  pemba serve --testing`,
		Args: noArguments,
	}
	flags := cmd.Flags()
	flags.StringVar(&f.config, "config", "", "a YAML `file` with flags as keys")
	flags.StringVar(&f.dataDir, "data-dir", "pemba-data", "the `directory` of everything the server keeps; it is made when missing")
	flags.StringVar(&f.grpcAddr, "grpc-addr", "", "the `address` of gRPC; empty for port "+grpcPort+", on this machine only when there is no key")
	flags.StringVar(&f.httpAddr, "http-addr", "", "the `address` of HTTP: the protocol as JSON, /healthz, /readyz and /metrics; empty for port "+httpPort+" likewise, \"none\" for none")
	flags.StringVar(&f.nodeID, "node-id", "", "the node's `id`; decided at the first start, made up when empty")
	f.peers.addFlags(flags)
	flags.BoolVar(&f.testing, "testing", false, "keep everything in memory, let every key in and give each a store of its own")
	flags.StringArrayVar(&f.keys, "key", nil, "a `key` that callers may present; may be repeated. Other users of this machine can see it: PEMBA_SERVE_KEY and --config are safer")
	flags.StringVar(&f.keyFile, "key-file", "", "a `file` of further keys, a line each: KEY, or KEY store NAME,NAME")
	flags.StringVar(&f.tlsCert, "tls-cert", "", "speak TLS with the certificate in this PEM `file`")
	flags.StringVar(&f.tlsKey, "tls-key", "", "the private key of --tls-cert, a PEM `file`")
	flags.StringVar(&f.clientCA, "client-ca", "", "let in only clients that show a certificate of an authority in this PEM `file`")
	flags.StringVar(&f.otlpEndpoint, "otlp-endpoint", "", "send traces to the OpenTelemetry collector at this `url`, as http://localhost:4317")
	addLimitFlags(flags, &f.limits)
	addNodeFlags(flags, &f.node)
	f.log.addFlags(flags)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := completeFlags(cmd); err != nil {
			return err
		}
		if f.testing {
			if err := checkTesting(cmd.Flags()); err != nil {
				return err
			}
			if !cmd.Flags().Changed("limit-stores") {
				f.limits.Stores = 0 // It has another default then.
			}
		}
		return serve(cmd, &f)
	}
	return cmd
}

// addLimitFlags makes every limit a flag.
func addLimitFlags(flags *pflag.FlagSet, l *api.Limits) {
	d := api.DefaultLimits()
	flags.IntVar(&l.RequestBytes, "limit-request-bytes", d.RequestBytes, "how large a request may be")
	flags.IntVar(&l.SchemaBytes, "limit-schema-bytes", d.SchemaBytes, "how large a schema may be")
	flags.IntVar(&l.Updates, "limit-updates", d.Updates, "how many updates a write may have")
	flags.IntVar(&l.Preconditions, "limit-preconditions", d.Preconditions, "how many preconditions a change may have")
	flags.IntVar(&l.Deletes, "limit-deletes", d.Deletes, "how many tuples one delete by filter may end")
	flags.IntVar(&l.Checks, "limit-checks", d.Checks, "how many checks a bulk check may have")
	flags.IntVar(&l.ImportTuples, "limit-import-tuples", d.ImportTuples, "how many tuples a message of an import may have")
	flags.IntVar(&l.ImportTotal, "limit-import-total", d.ImportTotal, "how many tuples an atomic import may have")
	flags.IntVar(&l.ContextBytes, "limit-context-bytes", d.ContextBytes, "how large the context of a question may be")
	flags.IntVar(&l.TupleContextBytes, "limit-tuple-context-bytes", d.TupleContextBytes, "how large the context of a tuple may be")
	flags.IntVar(&l.MetadataBytes, "limit-metadata-bytes", d.MetadataBytes, "how large the metadata of a change may be")
	flags.IntVar(&l.AnswerBytes, "limit-answer-bytes", d.AnswerBytes, "how large an answer may be that is one message and grows with what is stored, as the tree of an expand")
	flags.IntVar(&l.Steps, "limit-steps", 0, "how many steps a question may take; 0 for 10,000,000")
	flags.Int64Var(&l.MemoryBytes, "limit-memory-bytes", 0, "how much memory a question may take; 0 for 256 MiB")
	flags.IntVar(&l.Stores, "limit-stores", d.Stores, "how many stores there may be; with --testing 10,000 unless it is set")
	flags.IntVar(&l.Watches, "limit-watches", d.Watches, "how many watches may be open")
	flags.IntVar(&l.OpenStreams, "limit-open-streams", d.OpenStreams, "how many streaming answers may be open")
	flags.DurationVar(&l.WatchHeartbeat, "limit-watch-heartbeat", d.WatchHeartbeat, "after how long without a change a watch says that it is alive")
	flags.IntVar(&l.Connections, "limit-connections", d.Connections, "how many connections each address may have open")
	flags.IntVar(&l.Streams, "limit-streams", d.Streams, "how many calls a connection may have open")
	flags.DurationVar(&l.StreamStall, "limit-stream-stall", d.StreamStall, "how long an answer waits for a client that takes no results")
	flags.DurationVar(&l.CallTimeout, "limit-call-timeout", d.CallTimeout, "the deadline of a call that names none and has one answer")
	flags.IntVar(&l.CallsPerSecond, "limit-calls-per-second", 0, "how many calls a second one key may make; 0 for any number")
}

// addNodeFlags makes what can be set of the node itself a flag.
func addNodeFlags(flags *pflag.FlagSet, c *cluster.Config) {
	flags.Int64Var(&c.Graph.ResidentBytes, "resident-bytes", 0, "how much memory holds tuples and names of the newest state, beside the cache; 0 for 1 GiB, -1 for none")
	flags.DurationVar(&c.ElectionTimeout, "election-timeout", 0, "how long a node waits for a leader before it offers itself, at random up to twice as long; 0 for 400ms, and for 50ms where there are no other nodes")
	flags.DurationVar(&c.WaitMax, "wait-max", 0, "how long a read waits for its revision; 0 for 5s")
	flags.DurationVar(&c.CollectPause, "collect-pause", 0, "the least time between two rounds that end tuples whose lifetime is over; 0 for 100ms")
	flags.DurationVar(&c.PrunePause, "prune-pause", 0, "the time between two rounds that forget what stores are set to keep no longer; 0 for 1m")
	flags.Int64Var(&c.VerifyBytesPerSecond, "verify-bytes-per-second", 0, "how fast all data is read after a start, to find damage early; 0 for 64 MiB, negative for not at all")
}

// A logFlags says how to log.
type logFlags struct{ format, level string }

func (l *logFlags) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&l.format, "log-format", "text", "the `form` of the log on standard error: text or json")
	flags.StringVar(&l.level, "log-level", "info", "the least `level` that is logged: debug, info, warn or error")
}

func (l *logFlags) logger(cmd *cobra.Command) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.level)); err != nil {
		return nil, fmt.Errorf("--log-level %s: debug, info, warn and error are allowed", l.level)
	}
	options := &slog.HandlerOptions{Level: level}
	switch l.format {
	case "text":
		return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), options)), nil
	}
	return nil, fmt.Errorf("--log-format %s: text and json are allowed", l.format)
}

func (f *serveFlags) hasKeys() bool { return len(f.keys) > 0 || f.keyFile != "" }

// defaultAddrs fills in the addresses that are not given.
func (f *serveFlags) defaultAddrs() {
	host := ""
	if !f.hasKeys() {
		host = "127.0.0.1"
	}
	if f.grpcAddr == "" {
		f.grpcAddr = host + ":" + grpcPort
	}
	switch f.httpAddr {
	case "":
		f.httpAddr = host + ":" + httpPort
	case "none":
		f.httpAddr = ""
	}
}

func serve(cmd *cobra.Command, f *serveFlags) error {
	surviveBrokenPipes()
	f.defaultAddrs()
	logger, err := f.log.logger(cmd)
	if err != nil {
		return err
	}
	for _, v := range unknownVariables(cmd.Flags(), os.Environ()) {
		attributes := []any{slog.String("name", v.name)}
		if v.near != "" {
			attributes = append(attributes, slog.String("did_you_mean", v.near))
		}
		logger.Warn("an unknown PEMBA_ variable of the environment does nothing", attributes...)
	}
	if !f.hasKeys() && !f.testing {
		logger.Info("there is no key, so that this machine alone can be served")
		if os.Getenv("PEMBA_KEY") != "" {
			logger.Warn("PEMBA_KEY is what callers send, and no key of this server; a server's own are in PEMBA_SERVE_KEY, --key-file or --key")
		}
	}
	node := f.node
	node.DataDir, node.NodeID, node.Logger = f.dataDir, f.nodeID, logger
	if f.testing {
		node.DataDir, node.InMemory = "", true
	}
	node.WatchersMax = f.limits.Watches // One limit is enough.
	node.Version = readBuild().Version
	peerTLS, err := f.peers.configure(&node)
	if err != nil {
		return err
	}
	if node.Join, err = f.joining(logger); err != nil {
		return err
	}
	running, err := start(cmd.Context(), startConfig{
		cluster: node, peerTLS: peerTLS,
		api: api.Config{
			GRPCAddr: f.grpcAddr, HTTPAddr: f.httpAddr, Keys: f.keys, KeyFile: f.keyFile, Testing: f.testing,
			TLSCert: f.tlsCert, TLSKey: f.tlsKey, ClientCA: f.clientCA, OTLPEndpoint: f.otlpEndpoint,
			Limits: f.limits, Logger: logger, Dialects: []api.Dialect{authzed.Dialect{}},
		},
	})
	if err != nil {
		return err
	}
	said := running.where() + "\n"
	if f.testing {
		said += testingSentence + "\n"
	}
	if err := printf(cmd, "%s", said); err != nil {
		return errors.Join(err, running.close())
	}
	running.background(func(ctx context.Context) { running.logReady(ctx, logger) })
	return running.wait(cmd.Context(), logger)
}

// surviveBrokenPipes keeps a reader of the output that goes away from ending the
// process without an orderly end. Writing then fails like any other writing.
func surviveBrokenPipes() { signal.Ignore(syscall.SIGPIPE) }

// A startConfig says what start starts; api.Node and the callbacks for faults
// are filled in there.
type startConfig struct {
	cluster cluster.Config
	api     api.Config
	// peerTLS is what cluster.PeerTLS comes from; nil where it is nil.
	peerTLS *api.PeerTLS
	// anyPort takes free ports of this machine where those of api are taken.
	anyPort bool
}

// A running server is a node with the wire on it.
type running struct {
	node   *cluster.Node
	server *api.Server
	// patience is how long calls that are open may go on when it is closed.
	patience time.Duration
	// failed gets the first fault of the node, and what ended Serve.
	failed chan error
	// What goes on in the background ends with stop, and then does working.
	ctx     context.Context
	stop    context.CancelFunc
	working sync.WaitGroup
}

// background runs f until the server is closed.
func (r *running) background(f func(ctx context.Context)) {
	r.working.Go(func() { f(r.ctx) })
}

// readyPause is how often logReady looks.
const readyPause = 100 * time.Millisecond

// logReady says when the node may be given work, and before why it may not.
func (r *running) logReady(ctx context.Context, logger *slog.Logger) {
	ticker := time.NewTicker(readyPause)
	defer ticker.Stop()
	said := ""
	for {
		err := r.node.Ready()
		if err == nil {
			logger.Info("ready")
			return
		}
		if err.Error() != said {
			said = err.Error()
			logger.Info("not ready yet", "reason", said)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// start opens the node and serves it.
func start(ctx context.Context, c startConfig) (*running, error) {
	// A mistake in the flags is better found before a directory is made, and so is
	// an address that cannot be had.
	if err := c.api.Validate(); err != nil {
		return nil, err
	}
	if !c.anyPort {
		if err := tryAddrs(c.api.GRPCAddr, c.api.HTTPAddr, cmp.Or(c.cluster.RaftListenAddr, c.cluster.RaftAddr)); err != nil {
			return nil, err
		}
	}
	r := &running{patience: closeServerPatience, failed: make(chan error, 2)}
	r.ctx, r.stop = context.WithCancel(context.Background())
	if c.api.Testing {
		r.patience = 0 // What they would change is gone anyway.
	}
	fail := func(err error) {
		select {
		case r.failed <- err:
		default: // One reason to stop is enough.
		}
	}
	c.cluster.OnFatal = fail
	patience := openPatience
	if c.cluster.Join != nil {
		patience += joinPatience
	}
	if c.peerTLS != nil {
		r.background(func(ctx context.Context) { c.peerTLS.Follow(ctx, c.api.Logger) })
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("it took longer than %v", patience))
	defer cancel()
	node, err := cluster.Open(ctx, c.cluster)
	if err != nil {
		r.end()
		return nil, err
	}
	r.node = node
	c.api.Node, c.api.OnFault = node, fail
	r.server, err = api.Listen(c.api)
	if c.anyPort && errors.Is(err, syscall.EADDRINUSE) {
		c.api.GRPCAddr, c.api.HTTPAddr = "127.0.0.1:0", "127.0.0.1:0"
		r.server, err = api.Listen(c.api)
	}
	if err != nil {
		r.end()
		return nil, errors.Join(err, closeNode(node))
	}
	go func() {
		if err := r.server.Serve(); err != nil {
			fail(err)
		}
	}()
	return r, nil
}

// tryAddrs listens where a server is to listen, and stops to: another process may
// be there, this one may not be allowed to, or the address be that of another
// machine. An empty address is none.
func tryAddrs(grpcAddr, httpAddr, raftAddr string) error {
	var errs []error
	for _, a := range [...]struct{ what, addr, flag string }{
		{"gRPC", grpcAddr, "--grpc-addr"}, {"HTTP", httpAddr, "--http-addr"}, {"the other nodes", raftAddr, "--raft-addr"},
	} {
		if a.addr == "" {
			continue
		}
		l, err := net.Listen("tcp", a.addr)
		if err != nil {
			errs = append(errs, fmt.Errorf("nothing can listen for %s: %w; %s chooses another address", a.what, err, a.flag))
			continue
		}
		// Both are held until the end, for they must not be the same.
		defer func() { _ = l.Close() }() // It served nobody.
	}
	return errors.Join(errs...)
}

// where says on which addresses the server listens.
func (r *running) where() string {
	text := "serving gRPC on " + r.server.GRPCAddr().String()
	if addr := r.server.HTTPAddr(); addr != nil {
		text += ", HTTP on " + addr.String()
	}
	return text
}

// wait returns when ctx ends, after an orderly end, or with the fault that ended
// the server before.
func (r *running) wait(ctx context.Context, logger *slog.Logger) error {
	select {
	case err := <-r.failed:
		return errors.Join(fmt.Errorf("the server stopped: %w", err), r.close())
	case <-ctx.Done():
		logger.Info("stopping")
		return r.close()
	}
}

// close stops the server, then the node: calls end before what answers them.
func (r *running) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), r.patience)
	defer cancel()
	err := errors.Join(r.server.Close(ctx), closeNode(r.node))
	r.end()
	return err
}

// end ends what goes on in the background.
func (r *running) end() {
	r.stop()
	r.working.Wait()
}

func closeNode(node *cluster.Node) error {
	ctx, cancel := context.WithTimeout(context.Background(), closeNodePatience)
	defer cancel()
	return node.Close(ctx)
}
