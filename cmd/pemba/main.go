// Command pemba is a permission graph database in one binary: the server, the
// commands that speak to it, and the tools that need none.
//
// The file main.go holds the root command and what all commands share; each
// verb has a file of its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/grpclog"
)

func main() {
	program = programName(os.Args[0])
	// gRPC and its gateway would write a line to standard error for mistakes of
	// callers. Who looks for a fault of theirs sets the variable.
	if os.Getenv("GRPC_GO_LOG_SEVERITY_LEVEL") == "" {
		grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
	}
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run executes one command line and returns the exit code: 0 when it did what
// was asked, which a denied check is, and 1 for everything that failed. Only
// "pemba check --exit-code" has others.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The first signal asks for an orderly end; the second one kills.
	context.AfterFunc(ctx, stop)
	ctx, release := followLifeline(ctx, stdin)
	defer release()
	return execute(ctx, args, stdin, stdout, stderr)
}

// untilHangup returns a context that also ends when the terminal is closed: for what
// would leave something behind, which a SIGHUP otherwise ends without a word. It comes
// twice, from the kernel and from the shell, and so only the first one counts. Who was
// started to outlive its terminal, as by nohup, still does.
func untilHangup(ctx context.Context) (context.Context, context.CancelFunc) {
	if signal.Ignored(syscall.SIGHUP) {
		return context.WithCancel(ctx)
	}
	return signal.NotifyContext(ctx, syscall.SIGHUP)
}

// execute is run without the signals.
func execute(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	// These two are made late; what is misspelt is told from what is there.
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	cmd, err := root, checkCommand(root, args)
	if err == nil {
		cmd, err = root.ExecuteContextC(ctx)
	}
	var decided exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &decided):
		return int(decided)
	}
	// Nothing can be done about a standard error that does not take it.
	_, _ = fmt.Fprintln(stderr, "pemba: "+printable(explainError(cmd, err)))
	return 1
}

// An exitCode is how a command ends that did what was asked, and says by its exit
// code what it found.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "pemba",
		Short: "A permission graph database",
		Long: `Pemba is a permission graph database: it stores who is related to what, takes a
schema that says which permissions follow, and answers who may do what.

Begin with "pemba demo", which needs nothing else.`,
		Example:       "  pemba demo\n  pemba serve\n  pemba check document:readme#view@user:anne",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noArguments,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for _, group := range []struct {
		id, title string
		commands  []*cobra.Command
	}{
		{"server", "Servers:", []*cobra.Command{newDemo(), newServe(), newCluster(), newKeygen()}},
		{"data", "What is stored:", []*cobra.Command{newSchema(), newTuple(), newStore(), newMigrate(), newWatch(), newChanges()}},
		{"question", "What follows from it:", []*cobra.Command{newCheck(), newExpand(), newLookup(), newTest()}},
	} {
		root.AddGroup(&cobra.Group{ID: group.id, Title: group.title})
		for _, c := range group.commands {
			c.GroupID = group.id
			root.AddCommand(c)
		}
	}
	root.AddGroup(&cobra.Group{ID: "tool", Title: "This program:"})
	root.SetHelpCommand(newHelp())
	root.SetHelpCommandGroupID("tool")
	root.SetCompletionCommandGroupID("tool")
	version := newVersion()
	version.GroupID = "tool"
	root.AddCommand(version)
	completeFileNames(root)
	root.Version = buildVersion()
	root.SetVersionTemplate("pemba {{.Version}}\n")
	root.Flags().Bool("version", false, "print the version of this program; \"pemba version\" does too")
	root.SetFlagErrorFunc(flagMistake)
	return root
}

// completeFileNames keeps a shell from offering the names of files where a
// command takes none.
func completeFileNames(cmd *cobra.Command) {
	if cmd.ValidArgsFunction == nil && !strings.Contains(cmd.Use, "FILE") && !cmd.HasSubCommands() {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	for _, c := range cmd.Commands() {
		completeFileNames(c)
	}
}

// newGroup makes a command that only holds others.
func newGroup(use, short string, commands ...*cobra.Command) *cobra.Command {
	group := &cobra.Command{
		Use: use, Short: short,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return unknownCommand(cmd, args[0])
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	group.Example = ""
	for _, c := range commands {
		first, _, _ := strings.Cut(c.Example, "\n")
		group.Example += first + "\n"
	}
	group.Example = strings.TrimRight(group.Example, "\n")
	group.AddCommand(commands...)
	return group
}

// before adds to what is done before a command runs.
func before(cmd *cobra.Command, check func() error) {
	earlier := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if earlier != nil {
			if err := earlier(cmd, args); err != nil {
				return err
			}
		}
		return check()
	}
}

func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.HasSubCommands() {
		return unknownCommand(cmd, args[0])
	}
	return fmt.Errorf("%s takes no arguments, and %q was given", cmd.CommandPath(), args[0])
}

// arguments checks the number of arguments; form shows the right one. A most
// below zero means any number.
func arguments(least, most int, form string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= least && (most < 0 || len(args) <= most) {
			return nil
		}
		return fmt.Errorf("%d arguments were given; the form is: %s %s", len(args), cmd.CommandPath(), form)
	}
}

// readInput returns the content of the named file, or of the standard input for
// "-", refusing more than bytesMax.
func readInput(cmd *cobra.Command, name string, bytesMax int64) (content []byte, err error) {
	r := cmd.InOrStdin()
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }() // It was only read.
		r = f
	}
	content, err = io.ReadAll(io.LimitReader(r, bytesMax+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if int64(len(content)) > bytesMax {
		return nil, fmt.Errorf("%s: it has more than %d bytes", name, bytesMax)
	}
	return content, nil
}
