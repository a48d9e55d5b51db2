package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestProgramName: a command that is shown begins as the one did that shows it.
func TestProgramName(t *testing.T) {
	const built, cached = "/tmp/go-build1459076614/b001/exe/pemba", "/home/anne/.cache/go-build/38/38cf3512a005f2d7e630d6fe22af8caa5bd17c8c690e2cb9980d7a9305352adf-d/pemba"
	hold := func(want string, all ...string) {
		t.Helper()
		for _, started := range all {
			if got := programName(started); got != want {
				t.Errorf("%s: %s, and it was called as %s", started, got, want)
			}
		}
	}
	t.Chdir(t.TempDir())
	hold("pemba", "pemba", built, cached)
	hold("./pemba", "./pemba")
	hold("/opt/pemba-d/pemba", "/opt/pemba-d/pemba")
	hold("'./my files/pemba'", "./my files/pemba")
	if err := os.MkdirAll(filepath.Join("cmd", "pemba"), 0o700); err != nil {
		t.Fatal(err)
	}
	hold("go run ./cmd/pemba", built, cached)
	hold("./pemba", "./pemba")
	if got := typed("pemba tuple import"); got != "pemba tuple import" {
		t.Errorf("typed: %s", got)
	}
}
