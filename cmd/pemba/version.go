package main

import (
	"runtime/debug"

	"github.com/spf13/cobra"
)

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this program",
		Example: "  pemba version",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return printf(cmd, "pemba %s\n", buildVersion())
		},
	}
}

// buildVersion says from what the program was built: the module's version, the
// commit where there is one, and the Go release.
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "of unknown build"
	}
	version := info.Main.Version
	if version == "" {
		version = "(devel)"
	}
	var commit, modified string
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			commit = " " + s.Value[:min(12, len(s.Value))]
		case "vcs.modified":
			if s.Value == "true" {
				modified = " (modified)"
			}
		}
	}
	return version + commit + modified + " " + info.GoVersion
}
