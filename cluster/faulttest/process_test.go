package faulttest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds everything that should happen at once, also where the machine
// is slow and busy with other things.
const patience = time.Minute

// A process is a child that runs.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	addr  string
	stdin io.Closer
	// opened is how long the node itself took to open, started how long until
	// the parent could speak to it.
	opened, started time.Duration
	stderr          *lockedBuffer
	exited          chan struct{}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// errExited is returned by try when the child ended before it listened.
var errExited = errors.New("the process ended instead of starting")

// try starts a child, under the command before it, if any. It returns errExited
// with the process, whose stderr says why, when the node does not open.
func try(t *testing.T, s settings, before ...string) (*process, error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	env, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	args := append(before, self)
	p := &process{t: t, cmd: exec.Command(args[0], args[1:]...), stderr: &lockedBuffer{}, exited: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), childEnv+"="+string(env))
	p.cmd.Stderr = p.stderr
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdin = stdin
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	// SIGQUIT makes a child that hangs say where.
	hangs := time.AfterFunc(patience, func() { _ = p.cmd.Process.Signal(syscall.SIGQUIT) })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	p.started = time.Since(start)
	hangs.Stop()
	go func() {
		_ = p.cmd.Wait() // The state says how it ended.
		close(p.exited)
	}()
	if err != nil {
		p.wait()
		return p, errExited
	}
	var micros int64
	if _, err := fmt.Sscan(line, &p.addr, &micros); err != nil {
		t.Fatalf("the child said %q: %v", line, err)
	}
	p.opened = time.Duration(micros) * time.Microsecond
	return p, nil
}

// start starts a child that must come up.
func start(t *testing.T, s settings, before ...string) *process {
	t.Helper()
	p, err := try(t, s, before...)
	if err != nil {
		t.Fatalf("%v:\n%s", err, p.stderr)
	}
	return p
}

func (p *process) wait() {
	select {
	case <-p.exited:
	case <-time.After(patience):
		p.t.Errorf("the process does not end:\n%s", p.stderr)
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
}

// kill is kill -9.
func (p *process) kill() {
	_ = p.cmd.Process.Signal(syscall.SIGKILL) // It may have ended.
	p.wait()
}

// stop closes the node and checks that it ends well.
func (p *process) stop() {
	p.t.Helper()
	if err := p.stdin.Close(); err != nil {
		p.t.Error(err)
	}
	p.wait()
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		p.t.Errorf("the process ended with %d:\n%s", code, p.stderr)
	}
}

// complaint returns the lines in which the process says what is wrong.
func (p *process) complaint() string {
	var lines []string
	for line := range strings.SplitSeq(p.stderr.String(), "\n") {
		if strings.HasPrefix(line, "fatal: ") || strings.HasPrefix(line, "start: ") || strings.HasPrefix(line, "panic: ") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}

// A wire is a connection to a child, which gets questions of one type and gives answers
// of another. It is used by one goroutine.
type wire[Q, A any] struct {
	conn net.Conn
	in   *json.Decoder
	out  *json.Encoder
}

func dialWire[Q, A any](network, addr string) (wire[Q, A], error) {
	conn, err := net.Dial(network, addr)
	if err != nil {
		return wire[Q, A]{}, err
	}
	return wire[Q, A]{conn, json.NewDecoder(bufio.NewReader(conn)), json.NewEncoder(conn)}, nil
}

// ask sends a question and waits for its answer. After an error the wire is of no use.
func (w *wire[Q, A]) ask(q Q, within time.Duration) (a A, err error) {
	if err := w.conn.SetDeadline(time.Now().Add(within)); err != nil {
		return a, err
	}
	if err := w.out.Encode(q); err != nil {
		return a, err
	}
	err = w.in.Decode(&a)
	return a, err
}

func (w *wire[Q, A]) close() { _ = w.conn.Close() } // Nothing is lost.

// A client is one connection to a child that is a node by itself.
type client struct{ wire[request, reply] }

func (p *process) dial() (*client, error) {
	w, err := dialWire[request, reply]("tcp", p.addr)
	return &client{w}, err
}

// ask sends a request and waits for its reply. An error means that the process
// is gone, or too slow to be alive.
func (c *client) ask(q request) (reply, error) { return c.wire.ask(q, patience) }

// must asks on a connection of its own and expects no error.
func (p *process) must(q request) reply {
	p.t.Helper()
	c, err := p.dial()
	if err != nil {
		p.t.Fatalf("%v\n%s", err, p.stderr)
	}
	defer c.close()
	r, err := c.ask(q)
	if err != nil || r.Error != "" || r.Refusal != "" {
		p.t.Fatalf("%s: %v %s %s\n%s", q.Op, err, r.Error, r.Refusal, p.stderr)
	}
	return r
}
