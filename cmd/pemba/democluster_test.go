package main

import (
	"os"
	"regexp"
	"syscall"
	"testing"
)

// TestDemoCluster: the demo of a cluster kills the leader, lacks nothing, and leaves
// nothing behind.
func TestDemoCluster(t *testing.T) {
	temp := t.TempDir()
	p := startProcess(t, []string{"TMPDIR=" + temp, "PEMBA_KEY=none", "PEMBA_STORE=none", "PEMBA_SERVE_KEY=none"}, "demo", "--cluster")
	p.line(t, "are one cluster")
	p.line(t, "kill -9")
	line := p.line(t, "leads now")
	if !regexp.MustCompile(`n[123] leads now\. The longest that one write took was \d+ ms; 200 of 200 were acknowledged`).MatchString(line) {
		t.Errorf("it says: %s", line)
	}
	p.line(t, "catches up")
	p.line(t, "stays up")
	p.end(t, syscall.SIGTERM)
	left, err := os.ReadDir(temp)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
