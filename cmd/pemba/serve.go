package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/cluster"
)

// How long an orderly end may take. Together they stay below the 10 seconds that
// process managers give.
const (
	openPatience        = time.Minute
	closeServerPatience = 3 * time.Second
	closeNodePatience   = 5 * time.Second
)

// The default ports.
const (
	grpcPort = "50051"
	httpPort = "8080"
)

// serveFlags are the flags of serve.
type serveFlags struct {
	dataDir, grpcAddr, httpAddr, nodeID, config string
	bootstrap                                   bool
	keys                                        []string
	limits                                      api.Limits
	log                                         logFlags
}

func newServe() *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run a server",
		Long: `Serve runs a server on a data directory. An empty directory becomes a cluster of
one; a used one is resumed, whatever the other flags say.

Without a key the server listens on this machine only, and refuses to start on
any other address. With keys, every call must present one of them.

Every flag is also an environment variable, PEMBA_ with the flag's name in
capitals and _ for -, as PEMBA_DATA_DIR, and a key of the YAML file that --config
names. The command line wins over the environment, and that over the file. The
keys of the server are PEMBA_SERVE_KEY, separated by blanks.

SIGTERM and SIGINT end it within 10 seconds; a second one kills it.`,
		Example: `  pemba serve
  PEMBA_SERVE_KEY=s3cret pemba serve --data-dir /var/lib/pemba --grpc-addr :50051`,
		Args: noArguments,
	}
	flags := cmd.Flags()
	flags.StringVar(&f.config, "config", "", "a YAML `file` with flags as keys")
	flags.StringVar(&f.dataDir, "data-dir", "pemba-data", "the `directory` of everything the server keeps; it is made when missing")
	flags.StringVar(&f.grpcAddr, "grpc-addr", "", "the `address` of gRPC; empty for port "+grpcPort+", on this machine only when there is no key")
	flags.StringVar(&f.httpAddr, "http-addr", "", "the `address` of /healthz and /readyz; empty for port "+httpPort+" likewise, \"none\" for none")
	flags.StringVar(&f.nodeID, "node-id", "", "the node's `id`; decided at the first start, made up when empty")
	flags.BoolVar(&f.bootstrap, "bootstrap", false, "make a cluster of one out of an empty directory, which is done without it too")
	flags.StringArrayVar(&f.keys, "key", nil, "a `key` that callers may present; may be repeated. Other users of this machine can see it: PEMBA_SERVE_KEY and --config are safer")
	addLimitFlags(flags, &f.limits)
	f.log.addFlags(flags)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := completeFlags(cmd); err != nil {
			return err
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
	flags.IntVar(&l.ContextBytes, "limit-context-bytes", d.ContextBytes, "how large the context of a question may be")
	flags.IntVar(&l.TupleContextBytes, "limit-tuple-context-bytes", d.TupleContextBytes, "how large the context of a tuple may be")
	flags.IntVar(&l.MetadataBytes, "limit-metadata-bytes", d.MetadataBytes, "how large the metadata of a change may be")
	flags.IntVar(&l.Steps, "limit-steps", 0, "how many steps a question may take; 0 for 10,000,000")
	flags.Int64Var(&l.MemoryBytes, "limit-memory-bytes", 0, "how much memory a question may take; 0 for 256 MiB")
	flags.IntVar(&l.Streams, "limit-streams", d.Streams, "how many calls a connection may have open")
	flags.DurationVar(&l.StreamStall, "limit-stream-stall", d.StreamStall, "how long an answer waits for a client that takes no results")
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

// defaultAddrs fills in the addresses that are not given.
func (f *serveFlags) defaultAddrs() {
	host := ""
	if len(f.keys) == 0 {
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
	running, err := start(cmd.Context(), startConfig{
		cluster: cluster.Config{DataDir: f.dataDir, NodeID: f.nodeID, Logger: logger},
		api:     api.Config{GRPCAddr: f.grpcAddr, HTTPAddr: f.httpAddr, Keys: f.keys, Limits: f.limits, Logger: logger},
	})
	if err != nil {
		return err
	}
	if err := printf(cmd, "%s\n", running.where()); err != nil {
		return errors.Join(err, running.close())
	}
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
	// anyPort takes free ports of this machine where those of api are taken.
	anyPort bool
}

// A running server is a node with the wire on it.
type running struct {
	node   *cluster.Node
	server *api.Server
	// failed gets the first fault of the node, and what ended Serve.
	failed chan error
}

// start opens the node and serves it.
func start(ctx context.Context, c startConfig) (*running, error) {
	// A mistake in the flags is better found before a directory is made.
	if err := c.api.Validate(); err != nil {
		return nil, err
	}
	r := &running{failed: make(chan error, 2)}
	fail := func(err error) {
		select {
		case r.failed <- err:
		default: // One reason to stop is enough.
		}
	}
	c.cluster.OnFatal = fail
	ctx, cancel := context.WithTimeoutCause(ctx, openPatience, fmt.Errorf("it took longer than %v", openPatience))
	defer cancel()
	node, err := cluster.Open(ctx, c.cluster)
	if err != nil {
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
		return nil, errors.Join(err, closeNode(node))
	}
	go func() {
		if err := r.server.Serve(); err != nil {
			fail(err)
		}
	}()
	return r, nil
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
	ctx, cancel := context.WithTimeout(context.Background(), closeServerPatience)
	defer cancel()
	return errors.Join(r.server.Close(ctx), closeNode(r.node))
}

func closeNode(node *cluster.Node) error {
	ctx, cancel := context.WithTimeout(context.Background(), closeNodePatience)
	defer cancel()
	return node.Close(ctx)
}
