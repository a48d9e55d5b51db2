package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// TestDemoCluster: the demo of a cluster kills the leader, lacks nothing, and leaves
// nothing behind, whatever the environment has for other servers and clients.
func TestDemoCluster(t *testing.T) {
	temp := t.TempDir()
	p := startProcess(t, []string{
		"TMPDIR=" + temp, "PEMBA_KEY=none", "PEMBA_STORE=none", "PEMBA_SERVE_KEY=none",
		"PEMBA_TLS=true", "PEMBA_CA_CERT=none", "PEMBA_CLIENT_CERT=none", "PEMBA_CLIENT_KEY=none",
	}, "demo", "--cluster")
	p.line(t, "are one cluster")
	if shown := p.line(t, "cluster status --addr"); !strings.HasSuffix(shown, " --tls=false --ca-cert= --client-cert= --client-key=") {
		t.Errorf("it shows a command that would speak TLS: %s", shown)
	}
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

// TestDemoDespiteTLS: the demo of one server answers, and shows commands that work, also
// where the environment says that TLS is to be spoken.
func TestDemoDespiteTLS(t *testing.T) {
	for name, value := range map[string]string{"PEMBA_TLS": "true", "PEMBA_CA_CERT": "none", "PEMBA_CLIENT_CERT": "none", "PEMBA_CLIENT_KEY": "none"} {
		t.Setenv(name, value)
	}
	p := startProcess(t, []string{"TMPDIR=" + t.TempDir()}, "demo")
	const flags = " --tls=false --ca-cert= --client-cert= --client-key="
	if shown := p.line(t, " check person:nina#manage@person:hanna"); !strings.HasSuffix(shown, flags) {
		t.Errorf("it shows a command that would speak TLS: %s", shown)
	}
	p.line(t, "allowed")
	p.line(t, "from a second shell")
	shown := p.line(t, " check ")
	p.line(t, "stays up")
	stdout, stderr, code := pemba("", strings.Fields(shown)[1:]...)
	if code != 0 || !strings.HasPrefix(stdout, "allowed\n") {
		t.Errorf("the suggested command %s: exit %d, %s%s", shown, code, stdout, stderr)
	}
	p.end(t, syscall.SIGTERM)
}

// demoLocks opens the locks of the servers of a demo in a temporary directory, and says
// in which folder they are.
func demoLocks(t *testing.T, temp string) (dir string, locks []*os.File) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(temp, "pemba-demo-*", "n*", "LOCK"))
	if err != nil || len(names) != demoNodes {
		t.Fatalf("the servers have %v, %v", names, err)
	}
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		if !locked(f) {
			t.Errorf("no server has %s", name)
		}
		locks = append(locks, f)
	}
	return filepath.Dir(filepath.Dir(names[0])), locks
}

// locked reports whether a process has the lock. The system gives it back when that ends.
func locked(f *os.File) bool {
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return errors.Is(err, syscall.EWOULDBLOCK)
	}
	_ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN) // It was had just now.
	return false
}

// endHolder ends the process that has the lock, which nobody else would.
func endHolder(t *testing.T, lock *os.File) {
	t.Helper()
	content, err := os.ReadFile(lock.Name())
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("end the server %d: %v", pid, err)
	}
}

// TestDemoClusterHangup: when the terminal is closed, the servers of the demo end, and
// nothing is left behind.
func TestDemoClusterHangup(t *testing.T) {
	if signal.Ignored(syscall.SIGHUP) {
		t.Skip("this test outlives its terminal, and so does what it starts")
	}
	temp := t.TempDir()
	p := startProcess(t, []string{"TMPDIR=" + temp}, "demo", "--cluster")
	p.line(t, "are one cluster")
	_, locks := demoLocks(t, temp)
	// Both the kernel and the shell may say so.
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	p.end(t, syscall.SIGHUP)
	for _, f := range locks {
		if locked(f) {
			endHolder(t, f)
			t.Errorf("the server that has %s goes on", f.Name())
		}
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestDemoClusterKilled: when the demo is killed, its servers end by themselves, and
// their data is where the demo said that it would be left.
func TestDemoClusterKilled(t *testing.T) {
	temp := t.TempDir()
	p := startProcess(t, []string{"TMPDIR=" + temp}, "demo", "--cluster")
	said := p.line(t, "They keep their data in")
	if next := p.line(t, "SIGKILL"); !strings.Contains(next, "leaves the data there, and no server") {
		t.Errorf("it says: %s", next)
	}
	p.line(t, "are one cluster")
	dir, locks := demoLocks(t, temp)
	if !strings.Contains(said, " "+dir+",") {
		t.Errorf("the data is in %s, and it says: %s", dir, said)
	}
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err == nil {
		t.Fatal("the demo ended well though it was killed")
	}
	for _, f := range locks {
		for end := time.Now().Add(processWait); locked(f); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				endHolder(t, f)
				t.Errorf("the server that has %s goes on", f.Name())
				break
			}
		}
		if _, err := os.Stat(f.Name()); err != nil {
			t.Errorf("the data is not left: %v", err)
		}
	}
}

// TestDemoServerEnds: a server of the demo that ends by itself ends the demo, with what
// it said. The demo once waited for it as long as for one that is slow.
func TestDemoServerEnds(t *testing.T) {
	t.Setenv(beMain, "1")
	var out bytes.Buffer
	cmd := &cobra.Command{}
	cmd.SetOut(&out)
	d := &demoCluster{cmd: cmd, dir: t.TempDir()}
	defer func() {
		if err := d.close(); err != nil {
			t.Error(err)
		}
	}()
	if err := d.chooseAddrs(); err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", d.nodes[1].grpcAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	err = d.start(t.Context())
	if err == nil {
		t.Fatal("it started")
	}
	for _, part := range []string{"n2 ended (exit status 1) while the demo waited for three nodes to be one cluster", "nothing can listen for gRPC"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("it does not say %q: %v", part, err)
		}
	}
	// The one that the demo killed is waited for by nobody.
	victim := d.nodes[0]
	victim.killed = true
	if err := victim.process.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-victim.ended
	<-d.nodes[1].ended
	d.nodes[1].killed = true
	looked := 0
	if err := d.await(t.Context(), "three looks", func(context.Context) bool { looked++; return looked == 3 }); err != nil {
		t.Errorf("though only what the demo killed has ended: %v", err)
	}
}

// TestFollowLifeline: what the demo starts ends when its standard input does, and what
// others start does not.
func TestFollowLifeline(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	free, release := followLifeline(t.Context(), strings.NewReader(""))
	defer release()
	t.Setenv(lifelineVariable, "1")
	held, release := followLifeline(t.Context(), r)
	defer release()
	if held.Err() != nil {
		t.Fatal("it ended while the demo was there")
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	<-held.Done()
	if cause := context.Cause(held); !strings.Contains(cause.Error(), "the demo that started this server is gone") {
		t.Errorf("it ended because: %v", cause)
	}
	if free.Err() != nil {
		t.Error("a command that no demo started ended with its input")
	}
}
