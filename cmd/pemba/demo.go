package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/api/authzed"
	"github.com/pembadb/pemba/api/client"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/examples"
	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

func newDemo() *cobra.Command {
	var name string
	var several bool
	var log logFlags
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Start a server with an example in it, and ask its questions",
		Long: `Demo starts a server on a temporary directory, writes an example into it, asks the
example's questions over gRPC and prints the answers. The server stays up, so
that you can ask more from a second shell, until it is interrupted; the directory
is then removed. Where the usual ports are taken it uses free ones.

With --cluster it starts three servers, which are one cluster, kills the one that
leads while tuples are written, and shows that the others go on and lack nothing.

There are these examples: ` + strings.Join(examples.Names(), ", ") + `.`,
		Example: "  pemba demo\n  pemba demo --cluster",
		Args:    noArguments,
	}
	cmd.Flags().StringVar(&name, "example", "securus", "the `name` of the example")
	cmd.Flags().BoolVar(&several, "cluster", false, "start three servers, and kill the leader")
	log.addFlags(cmd.Flags())
	// The demo is there to be read; what a server logs would stand in between.
	cmd.Flags().Lookup("log-level").DefValue, log.level = "warn", "warn"
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, stop := untilHangup(cmd.Context())
		defer stop()
		cmd.SetContext(ctx)
		example, err := examples.Get(name)
		if err != nil {
			return err
		}
		if several {
			return demoOfCluster(cmd, example)
		}
		logger, err := log.logger(cmd)
		if err != nil {
			return err
		}
		return demo(cmd, example, logger)
	}
	return cmd
}

func demo(cmd *cobra.Command, example *examples.Example, logger *slog.Logger) (err error) {
	started := time.Now()
	surviveBrokenPipes()
	dir, err := os.MkdirTemp("", "pemba-demo-")
	if err != nil {
		return err
	}
	defer func() {
		if removeErr := os.RemoveAll(dir); err == nil {
			err = removeErr
		}
	}()
	r, err := start(cmd.Context(), startConfig{
		cluster: cluster.Config{DataDir: dir, Logger: logger},
		api:     api.Config{GRPCAddr: freeAddr(grpcPort), HTTPAddr: freeAddr(httpPort), Logger: logger, Dialects: []api.Dialect{authzed.Dialect{}}},
		anyPort: true, // Somebody may be quicker.
	})
	if err != nil {
		return err
	}
	if err := r.ask(cmd, example, started); err != nil {
		return errors.Join(err, r.close())
	}
	return r.wait(cmd.Context(), logger)
}

// freeAddr returns the usual address when nobody has it, else one whose port the
// system chooses.
func freeAddr(port string) string {
	addr := "127.0.0.1:" + port
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return "127.0.0.1:0"
	}
	if err := l.Close(); err != nil {
		return "127.0.0.1:0"
	}
	return addr
}

// ask writes the example and puts its questions, by the same commands that a
// user types.
func (r *running) ask(cmd *cobra.Command, example *examples.Example, started time.Time) error {
	addr := r.server.GRPCAddr().String()
	definitions, tuples, over, err := fill(cmd.Context(), addr, example)
	if err != nil {
		return fmt.Errorf("example %s: %w", example.Name, err)
	}
	left := ""
	if over > 0 {
		left = fmt.Sprintf(" The lifetime of %d of them is over,\nso that %d can be read.", over, tuples-over)
	}
	if err := printf(cmd, "%s\n%s%s\n\nA schema of %d definitions and %d tuples are written.%s Questions:\n",
		example.Title, r.elsewhere(), r.where(), definitions, tuples, left); err != nil {
		return err
	}
	var first time.Duration
	var suggestion, to string
	if addr != fromEnv("PEMBA_ADDR", defaultAddr) {
		to = " --addr " + addr // Without it another server would be asked.
	}
	for _, flag := range withoutTLS() {
		to += " " + flag
	}
	for _, q := range example.Questions {
		if err := printf(cmd, "\n%s\n  $ %s %s%s\n", q.Sentence, program, quoteCommand(q.Command), to); err != nil {
			return err
		}
		var out, errs strings.Builder
		args := append(strings.Fields(q.Command), "--addr", addr, "--key", "", "--store", "")
		args = append(args, withoutTLS()...)
		if execute(cmd.Context(), args, strings.NewReader(""), &out, &errs) != 0 {
			return fmt.Errorf("example %s: %s", example.Name, strings.TrimPrefix(strings.TrimSpace(errs.String()), "pemba: "))
		}
		if first == 0 {
			first = time.Since(started)
		}
		for line := range strings.Lines(out.String() + errs.String()) {
			if err := printf(cmd, "  %s", line); err != nil {
				return err
			}
		}
		if suggestion == "" && strings.HasPrefix(q.Command, "check ") {
			suggestion = q.Command
		}
	}
	asked := strings.Join(append([]string{addr}, withoutTLS()...), " ")
	return printf(cmd, `
The first answer came %d ms after the start. Ask more from a second shell:

  %s %s --addr %s
  %s tuple read --addr %s

The server stays up until you press Ctrl-C.
`, first.Milliseconds(), program, quoteCommand(suggestion), asked, program, asked)
}

// withoutTLS are the flags by which a command reaches the servers of a demo, which speak
// no TLS, where the environment says that it is to be spoken.
func withoutTLS() []string {
	var flags []string
	if envIsTrue("PEMBA_TLS") {
		flags = append(flags, "--tls=false")
	}
	for _, name := range []string{"ca-cert", "client-cert", "client-key"} {
		if os.Getenv(envName(name)) != "" {
			flags = append(flags, "--"+name+"=")
		}
	}
	return flags
}

// elsewhere says which of the usual ports the server does not have, as a line.
func (r *running) elsewhere() string {
	var taken []string
	if r.server.GRPCAddr().String() != "127.0.0.1:"+grpcPort {
		taken = append(taken, grpcPort)
	}
	if addr := r.server.HTTPAddr(); addr != nil && addr.String() != "127.0.0.1:"+httpPort {
		taken = append(taken, httpPort)
	}
	if len(taken) == 0 {
		return ""
	}
	return "Another program has " + strings.Join(taken, " and ") + ", so this server listens elsewhere:\n"
}

// quoteCommand puts the arguments of a command into quotes that a shell needs.
func quoteCommand(command string) string {
	args := strings.Fields(command)
	for i, a := range args {
		args[i] = shellQuote(a)
	}
	return strings.Join(args, " ")
}

// fill writes the schema and the tuples of an example. over is how many of the
// tuples have outlived their lifetime, and are not to be read.
func fill(ctx context.Context, addr string, example *examples.Example) (definitions, tuples, over int, err error) {
	c, err := client.Dial(ctx, client.Config{Addr: addr})
	if err != nil {
		return 0, 0, 0, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if _, err := c.Schemas.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Schema: example.Schema, RecordedActor: "pemba demo"}); err != nil {
		return 0, 0, 0, err
	}
	var all []graph.Tuple
	started := time.Now()
	for t, err := range readTupleLines(strings.NewReader(example.Tuples), "text") {
		if err != nil {
			return 0, 0, 0, fmt.Errorf("%s:%w", examples.TuplesFile, err)
		}
		all = append(all, t.Tuple)
		if t.ValidUntil != 0 && t.ValidUntil <= graph.InstantOf(started) {
			over++
		}
	}
	if _, err := c.WriteTuples(ctx, graph.Touch, all...); err != nil {
		return 0, 0, 0, err
	}
	file, err := schema.Parse(examples.SchemaFile, example.Schema)
	if err != nil {
		return 0, 0, 0, err
	}
	compiled, err := schema.Compile(file)
	if err != nil {
		return 0, 0, 0, err
	}
	return len(compiled.Definitions), len(all), over, nil
}
