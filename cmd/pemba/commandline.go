package main

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pembadb/pemba/schema"
)

// What may be wrong with a command line, and with the environment: each mistake
// says what is allowed, and what may have been meant.

// didYouMean suggests the nearest of what there is, if any is near.
func didYouMean(name string, there []string) string {
	near := schema.Nearest(name, there)
	if near == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", near)
}

func names(commands []*cobra.Command) []string {
	var list []string
	for _, c := range commands {
		if !c.Hidden && c.Name() != "help" {
			list = append(list, c.Name())
		}
	}
	return list
}

// unknownCommand is the error of a name that no command of a group has.
func unknownCommand(group *cobra.Command, name string) error {
	of := ""
	if group.HasParent() {
		of = fmt.Sprintf(" of %q", group.CommandPath())
	}
	there := names(group.Commands())
	hint := didYouMean(name, there)
	if hint == "" {
		hint = "; there are " + strings.Join(there, ", ")
	}
	return fmt.Errorf("%q is not a command%s%s", name, of, hint)
}

// checkCommand refuses a command line whose first words name no command, before
// its flags are taken for those of the group that was found.
func checkCommand(root *cobra.Command, args []string) error {
	// The shell asks for completions by commands that are made when they are called.
	if len(args) > 0 && strings.HasPrefix(args[0], cobra.ShellCompRequestCmd) {
		return nil
	}
	found, rest, err := root.Find(args)
	if err != nil {
		return err
	}
	if found.HasSubCommands() && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		return unknownCommand(found, rest[0])
	}
	return nil
}

// flagMistake gives what pflag finds wrong with a flag our words.
func flagMistake(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	var bare *pflag.ValueRequiredError
	var invalid *pflag.InvalidValueError
	switch {
	case errors.As(err, &unknown):
		return unknownFlag(cmd, unknown)
	case errors.As(err, &bare):
		return fmt.Errorf("--%s needs a value", bare.GetFlag().Name)
	case errors.As(err, &invalid):
		return fmt.Errorf("--%s %s: %s", invalid.GetFlag().Name, invalid.GetValue(), allowedValues(invalid.GetFlag()))
	}
	return err
}

func unknownFlag(cmd *cobra.Command, unknown *pflag.NotExistError) error {
	var there []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { there = append(there, f.Name) })
	name, given := unknown.GetSpecifiedName(), "--"+unknown.GetSpecifiedName()
	if letters := unknown.GetSpecifiedShortnames(); letters != "" {
		// A word behind one dash is as many flags as it has letters.
		name, given = letters, "-"+letters
		if word, _, _ := strings.Cut(letters, "="); cmd.Flags().Lookup(word) != nil {
			return fmt.Errorf("unknown flag: %s; did you mean --%s?", given, word)
		}
	}
	if near := schema.Nearest(name, there); near != "" {
		return fmt.Errorf("unknown flag: %s; did you mean --%s?", given, near)
	}
	if cmd.HasSubCommands() {
		return fmt.Errorf("unknown flag: %s; name a command before its flags: %s", given, strings.Join(names(cmd.Commands()), ", "))
	}
	return fmt.Errorf("unknown flag: %s; \"%s --help\" lists those that there are", given, cmd.CommandPath())
}

// allowedValues says which values the type of a flag allows.
func allowedValues(f *pflag.Flag) string {
	switch f.Value.Type() {
	case "int", "int64":
		return "a whole number of up to 18 digits is allowed"
	case "uint32":
		return fmt.Sprintf("a whole number from 0 to %d is allowed", uint32(math.MaxUint32))
	case "uint64":
		return fmt.Sprintf("a whole number from 0 to %d is allowed", uint64(math.MaxUint64))
	case "bool":
		return "true and false are allowed"
	case "duration":
		return "a duration such as 500ms, 30s or 5m is allowed"
	}
	return "a " + f.Value.Type() + " is allowed"
}

// clientVariables are the variables of the environment that commands have which
// speak to a server; those of serve follow from its flags.
var clientVariables = []string{
	"PEMBA_ADDR", "PEMBA_KEY", "PEMBA_STORE", "PEMBA_INSECURE_KEY",
	"PEMBA_TLS", "PEMBA_CA_CERT", "PEMBA_CLIENT_CERT", "PEMBA_CLIENT_KEY",
	"PEMBA_FROM", "PEMBA_FROM_KEY", "PEMBA_FROM_STORE", "PEMBA_FROM_INSECURE_KEY",
	"PEMBA_FROM_TLS", "PEMBA_FROM_CA_CERT", "PEMBA_FROM_CLIENT_CERT", "PEMBA_FROM_CLIENT_KEY",
}

// serviceVariable matches what Kubernetes puts into the environment for a service
// whose name begins with pemba.
var serviceVariable = regexp.MustCompile(`_SERVICE_HOST$|_SERVICE_PORT(_|$)|_PORT(_\d+_[A-Z]+(_PROTO|_PORT|_ADDR)?)?$`)

// An unknownVariable is one of the environment that no command has.
type unknownVariable struct{ name, near string }

// unknownVariables returns the variables of an environment, "NAME=VALUE" each, that
// look like ours and are not, with the nearest of those that are; each may be a
// setting that somebody believes to hold.
func unknownVariables(flags *pflag.FlagSet, environ []string) []unknownVariable {
	known := slices.Clone(clientVariables)
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Name != "help" {
			known = append(known, envName(f.Name))
		}
	})
	var unknown []unknownVariable
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, "PEMBA_") || slices.Contains(known, name) || serviceVariable.MatchString(name) {
			continue
		}
		unknown = append(unknown, unknownVariable{name, schema.Nearest(name, known)})
	}
	slices.SortFunc(unknown, func(a, b unknownVariable) int { return strings.Compare(a.name, b.name) })
	return unknown
}

// plainArgument matches what a shell takes as it stands.
var plainArgument = regexp.MustCompile(`^[A-Za-z0-9_@%+=:,./-][A-Za-z0-9_@%+=:,./#-]*$`)

// shellQuote quotes an argument where a shell would take it for anything else.
func shellQuote(arg string) string {
	if plainArgument.MatchString(arg) {
		return arg
	}
	return "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
}

// fromEnvironment reports whether the value of a flag of a command that speaks to
// a server came from its variable. The keys have no such values: see connection.dial.
func fromEnvironment(f *pflag.Flag) bool {
	name := envName(f.Name)
	return !f.Changed && slices.Contains(clientVariables, name) && f.Value.String() != "" && fromEnv(name, "") != ""
}

// commandAgain is the command line that gives a command the flags again that it
// was given, by flags or by the environment, but for those that are left out.
func commandAgain(cmd *cobra.Command, without ...string) string {
	line := typed(cmd.CommandPath())
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Changed && !fromEnvironment(f) || slices.Contains(without, f.Name) {
			return
		}
		values := []string{f.Value.String()}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			values = list.GetSlice()
		}
		for _, v := range values {
			switch {
			case f.Value.Type() != "bool":
				line += " --" + f.Name + " " + shellQuote(v)
			case v == "true":
				line += " --" + f.Name
			default:
				line += " --" + f.Name + "=" + v
			}
		}
	})
	return line
}

// newHelp makes the command that shows the help text of another one.
func newHelp() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "help [COMMAND]...",
		Short:   "Show the help text of a command",
		Example: "  pemba help check\n  pemba help tuple import",
	}
	find := func(cmd *cobra.Command, path []string) (*cobra.Command, error) {
		about := cmd.Root()
		for _, name := range path {
			i := slices.IndexFunc(about.Commands(), func(c *cobra.Command) bool { return c.Name() == name })
			switch {
			case i >= 0:
				about = about.Commands()[i]
			case about.HasSubCommands():
				return nil, unknownCommand(about, name)
			default:
				return nil, fmt.Errorf("%q has no commands, and %q was given", about.CommandPath(), name)
			}
		}
		return about, nil
	}
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, begin string) ([]cobra.Completion, cobra.ShellCompDirective) {
		about, err := find(cmd, args)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var fitting []cobra.Completion
		for _, c := range about.Commands() {
			if strings.HasPrefix(c.Name(), begin) && !c.Hidden {
				fitting = append(fitting, cobra.CompletionWithDesc(c.Name(), c.Short))
			}
		}
		return fitting, cobra.ShellCompDirectiveNoFileComp
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		about, err := find(cmd, args)
		if err != nil {
			return err
		}
		about.InitDefaultHelpFlag()
		return about.Help()
	}
	return cmd
}
