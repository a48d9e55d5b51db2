package main

import (
	"errors"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
)

// TestStopJoining: a server that waits for a member to take it in ends when it is told
// to, says why, and leaves nothing that keeps it from joining later; whether the members
// do not answer at all, or do and then say nothing to what they are asked.
func TestStopJoining(t *testing.T) {
	members := testMembers(t, 2)
	first, second := members[0], members[1]

	silent := make(chan struct{}, 100)
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mute.Close() })
	go func() {
		var conns []net.Conn // Open until the test is over.
		for {
			conn, err := mute.Accept()
			if err != nil {
				break
			}
			conns = append(conns, conn)
			silent <- struct{}{}
		}
		for _, conn := range conns {
			_ = conn.Close()
		}
	}()

	stuck := make(chan struct{}, 100)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	hangs := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		stuck <- struct{}{}
		<-stream.Context().Done()
		return nil
	}))
	go func() { _ = hangs.Serve(l) }() // It ends with Stop.
	t.Cleanup(hangs.Stop)

	second.dir = filepath.Join(t.TempDir(), "data")
	for _, c := range []struct {
		what, addr string
		asked      chan struct{}
	}{{"one that says nothing", mute.Addr().String(), silent}, {"one that hangs", l.Addr().String(), stuck}} {
		p := startProcess(t, []string{"PEMBA_SERVE_KEY=k"}, "serve", "--data-dir", second.dir, "--node-id", "n2",
			"--grpc-addr", second.grpcAddr, "--http-addr", "none", "--raft-addr", second.raftAddr, "--join", c.addr)
		select {
		case <-c.asked:
		case <-time.After(processWait):
			t.Fatalf("%s: it was not asked", c.what)
		}
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		killed := p.endLater()
		for p.stdout.Scan() {
			t.Errorf("%s: it says %s", c.what, p.stdout.Text())
		}
		err := p.cmd.Wait()
		killed.Stop()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("%s: it ended with %v", c.what, err)
		}
		lines := strings.Split(strings.TrimSpace(p.stderr.String()), "\n")
		if said := lines[len(lines)-1]; !strings.HasPrefix(said, "pemba: ") || !strings.Contains(said, "join the cluster: terminated signal received: ") || !strings.Contains(said, c.addr) {
			t.Errorf("%s: it ended with: %s", c.what, said)
		}
	}
	first.start(t, "--bootstrap")
	second.start(t, "--join", first.grpcAddr)
	second.await(t, "a cluster of two", hasVoters("n1", "n2"))
	second.end(t, syscall.SIGTERM)
	first.end(t, syscall.SIGTERM)
}
