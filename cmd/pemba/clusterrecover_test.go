package main

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pembadb/pemba/cluster"
)

// TestRecoverAlone: the recovery of a node that was alone gives nobody up, and says so.
func TestRecoverAlone(t *testing.T) {
	t.Setenv("PEMBA_DATA_DIR", "") // Of whoever runs the test.
	dir := filepath.Join(t.TempDir(), "data")
	n, err := cluster.Open(t.Context(), cluster.Config{DataDir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code := pemba("", "cluster", "recover", "--data-dir", dir, "--yes")
	if code != 0 || !strings.HasSuffix(stdout, "\ngiven up: nobody\n") {
		t.Errorf("it ended with %d, said %q, and %q on standard error", code, stdout, stderr)
	}
}
