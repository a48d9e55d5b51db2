// Command pemba is a permission graph database in one binary: the server, the
// commands that speak to it, and the tools that need none.
//
// The file main.go holds the root command and what all commands share; each
// verb has a file of its own.
package main

import (
	"context"
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
	// gRPC and its gateway would write a line to standard error for mistakes of
	// callers. Who looks for a fault of theirs sets the variable.
	if os.Getenv("GRPC_GO_LOG_SEVERITY_LEVEL") == "" {
		grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
	}
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run executes one command line and returns the exit code: 0 when it did what
// was asked, which a denied check is, and 1 for everything that failed.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The first signal asks for an orderly end; the second one kills.
	context.AfterFunc(ctx, stop)
	return execute(ctx, args, stdin, stdout, stderr)
}

// execute is run without the signals.
func execute(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if cmd, err := root.ExecuteContextC(ctx); err != nil {
		// Nothing can be done about a standard error that does not take it.
		_, _ = fmt.Fprintln(stderr, "pemba: "+explainError(cmd, err))
		return 1
	}
	return 0
}

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
		{"server", "Servers:", []*cobra.Command{newDemo(), newServe(), newKeygen()}},
		{"data", "What is stored:", []*cobra.Command{newSchema(), newTuple(), newStore(), newWatch(), newChanges()}},
		{"question", "What follows from it:", []*cobra.Command{newCheck(), newExpand(), newLookup(), newTest()}},
	} {
		root.AddGroup(&cobra.Group{ID: group.id, Title: group.title})
		for _, c := range group.commands {
			c.GroupID = group.id
			root.AddCommand(c)
		}
	}
	root.AddGroup(&cobra.Group{ID: "tool", Title: "This program:"})
	root.SetHelpCommandGroupID("tool")
	root.SetCompletionCommandGroupID("tool")
	version := newVersion()
	version.GroupID = "tool"
	root.AddCommand(version)
	completeFileNames(root)
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
			return fmt.Errorf("%q is not a command of %q; there are %s", args[0], cmd.CommandPath(), names(cmd.Commands()))
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

func names(commands []*cobra.Command) string {
	var list []string
	for _, c := range commands {
		if !c.Hidden && c.Name() != "help" {
			list = append(list, c.Name())
		}
	}
	return strings.Join(list, ", ")
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
		return fmt.Errorf("%q is not a command; there are %s", args[0], names(cmd.Commands()))
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
