package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// program is how the commands that are shown for typing begin, so that they work
// where this one did. Only main changes it, before anything else.
var program = "pemba"

// goRunFile is the folder in which "go run" finds a program in Go's cache of builds;
// where it has to build it first, it does so in a temporary one.
var goRunFile = regexp.MustCompile(`^[0-9a-f]{16,}-d$`)

// programName is how a program was called that was started as started, in the
// folder where it is now.
func programName(started string) string {
	folder := filepath.Dir(started)
	switch {
	case goRunFile.MatchString(filepath.Base(folder)),
		filepath.Base(folder) == "exe" && strings.Contains(folder, "go-build"):
		// The file is gone, or has another name, the next time.
		if info, err := os.Stat(filepath.Join("cmd", "pemba")); err == nil && info.IsDir() {
			return "go run ./cmd/pemba"
		}
		return "pemba"
	case strings.ContainsRune(filepath.ToSlash(started), '/'):
		return shellQuote(started)
	}
	return "pemba"
}

// typed is a command of this program as it is typed: path is that of the command,
// which begins with the name of the program.
func typed(path string) string { return program + strings.TrimPrefix(path, "pemba") }
