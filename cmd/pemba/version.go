package main

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func newVersion() *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this program",
		Example: "  pemba version\n  pemba version -o json",
		Args:    noArguments,
	}
	out.addFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if out.json() {
			return printJSON(cmd, readBuild())
		}
		return printf(cmd, "pemba %s\n", buildVersion())
	}
	return cmd
}

// A buildJSON says from what the program was built.
type buildJSON struct {
	Version string `json:"version"`
	// Commit is empty where nobody knows it, and Modified says that there is more
	// in the program than it.
	Commit   string `json:"commit,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
}

func readBuild() buildJSON {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return buildJSON{Version: "(unknown)", Go: runtime.Version()}
	}
	b := buildJSON{Version: info.Main.Version, Go: info.GoVersion}
	if b.Version == "" {
		b.Version = "(devel)"
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

// buildVersion is what readBuild says, as text.
func buildVersion() string {
	b := readBuild()
	text := b.Version
	if b.Commit != "" {
		text += " " + b.Commit[:min(12, len(b.Commit))]
	}
	if b.Modified {
		text += " (modified)"
	}
	return text + " " + b.Go
}
