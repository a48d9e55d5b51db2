package authzed

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pembadb/pemba/api"
)

const (
	nodeFolder = "testdata/node"
	// npmInstall and nodeRun are for how long the parts of TestNode may run. Without
	// a registry npm ends at once, or after the 5 s of its fetch-timeout.
	npmInstall = 30 * time.Second
	nodeRun    = 2 * time.Minute
)

// TestNode: a program of @authzed/authzed-node, the client of another language and
// of another implementation of gRPC, works with this server unchanged. It is skipped
// where Node.js, npm or the registry that npm is set to cannot be had.
func TestNode(t *testing.T) {
	if testing.Short() {
		t.Skip("it installs a package")
	}
	for _, program := range []string{"node", "npm"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed", program)
		}
	}
	t.Parallel() // It mostly waits for npm.
	// run runs a program in the folder of the package, and returns what it said.
	folder := t.TempDir()
	run := func(most time.Duration, name string, args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), most)
		defer cancel()
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Dir = folder
		cmd.WaitDelay = time.Second // What it started may keep its output open.
		said, err := cmd.CombinedOutput()
		return string(said), err
	}
	for _, name := range []string{"package.json", "client.js"} {
		content, err := os.ReadFile(filepath.Join(nodeFolder, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// What was installed before is in the cache of npm.
	if said, err := run(npmInstall, "npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts",
		"--prefer-offline", "--fetch-retries=0", "--fetch-timeout=5000", "--loglevel=error"); err != nil {
		t.Skipf("npm cannot install the packages of %s: %v: %s", nodeFolder, err, firstLine(said))
	}
	_, server := newServerWith(t, api.Config{})
	said, err := run(nodeRun, "node", "client.js", server.GRPCAddr().String(), testKey)
	if err != nil || strings.TrimSpace(said) != "ok" {
		t.Fatalf("the client ended with %v:\n%s", err, said)
	}
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return line
}
