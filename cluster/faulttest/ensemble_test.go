package faulttest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/graph"
)

// An ensemble is the processes of a cluster, with the network between them.
type ensemble struct {
	t       *testing.T
	net     network
	members []*server
	// binary is the program of the nodes, and env what is added to their environment.
	binary string
	env    []string
}

// A server is the process of one node, from one start to the next.
type server struct {
	e        *ensemble
	index    int
	settings memberSettings

	mu     sync.Mutex
	cmd    *exec.Cmd
	stdin  io.Closer
	stderr *lockedBuffer
	exited chan struct{} // Closed when the process ended.
	// doomed says that it is to end: it was killed, or its disk is such that it may.
	doomed bool
	// said is what all its processes said.
	said []*lockedBuffer
}

// ensembleConfig is what differs from one test to another.
type ensembleConfig struct {
	nodes         int
	binary        string // Empty for the test's own.
	bug           string // The planted bug; empty for none.
	storeDeadline time.Duration
	// diskBytes is the size of each node's file system; 0 for none of its own.
	diskBytes int64
}

// newEnsemble starts a cluster and waits until all its nodes are voters and ready.
func newEnsemble(t *testing.T, c ensembleConfig) *ensemble {
	t.Helper()
	e := &ensemble{t: t, net: newNetwork(t, c.nodes), binary: c.binary}
	if e.binary == "" {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		e.binary = self
	}
	if c.bug != "" {
		e.env = append(e.env, bugVariable+"="+c.bug)
	}
	// Short, since the path of a socket may not be long.
	folder, err := os.MkdirTemp("", "pemba")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	})
	var addrs []string
	for i := range c.nodes {
		addrs = append(addrs, e.net.addr(i))
	}
	certify(t, folder, addrs)
	for i := range c.nodes {
		id := fmt.Sprintf("n%d", i+1)
		s := memberSettings{
			ID: id, Addr: addrs[i], DataDir: filepath.Join(folder, id, "data"), Socket: filepath.Join(folder, id+".sock"),
			Certificates: folder, Dials: e.net.dials(i), StoreDeadline: c.storeDeadline,
		}
		if err := os.Mkdir(filepath.Join(folder, id), 0o700); err != nil {
			t.Fatal(err)
		}
		if c.diskBytes > 0 {
			mountDisk(t, filepath.Join(folder, id), c.diskBytes)
		}
		if i > 0 {
			s.Join = e.members[0].settings.Socket
		}
		m := &server{e: e, index: i, settings: s}
		e.members = append(e.members, m)
		t.Cleanup(m.kill) // Before the folder goes.
		if err := m.start(); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.ready(); err != nil {
		t.Fatal(err)
	}
	var schema graph.Revision
	e.until("the schema is written", func() error {
		a, err := e.members[0].ask(question{Op: "schema"})
		schema = a.Revision
		return errors.Join(err, a.err())
	})
	for _, m := range e.members {
		e.until(m.settings.ID+" has the schema", func() error {
			a, err := m.ask(question{Op: "read", Key: "none", Mode: cluster.AtLeast, Revision: schema})
			return errors.Join(err, a.err())
		})
	}
	return e
}

// mountDisk makes a folder a small file system of its own.
func mountDisk(t *testing.T, folder string, size int64) {
	t.Helper()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%d", size), "tmpfs", folder).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", folder).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// canMount reports whether small file systems can be mounted here.
func canMount(t *testing.T) bool {
	folder := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder).CombinedOutput(); err != nil {
		t.Logf("disks are not filled: no small file system can be mounted: %v: %s", err, out)
		return false
	}
	if out, err := exec.Command("umount", folder).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return true
}

// until tries until it succeeds, which must be within patience.
func (e *ensemble) until(what string, try func() error) {
	e.t.Helper()
	if err := e.becomes(what, try); err != nil {
		e.t.Fatal(err)
	}
}

// becomes tries until it succeeds, or returns why it did not within patience, and logs
// what the nodes said last.
func (e *ensemble) becomes(what string, try func() error) error {
	e.t.Helper()
	var err error
	for begun := time.Now(); time.Since(begun) < patience; time.Sleep(10 * time.Millisecond) {
		if err = try(); err == nil {
			return nil
		}
	}
	for _, m := range e.members {
		e.t.Logf("%s says:\n%s", m.settings.ID, m.lastWords())
	}
	return fmt.Errorf("%s: not within %v: %w", what, patience, err)
}

// ready waits until all nodes are voters, and ready. One that was doomed and ended is
// started again. It returns why another ended by itself, or does not start, instead.
func (e *ensemble) ready() (ended error) {
	e.t.Helper()
	for _, m := range e.members {
		e.until(m.settings.ID+" is ready", func() error {
			gone, why := m.gone()
			if ended = why; gone && why == nil {
				ended = m.start()
			}
			if ended != nil {
				return nil
			}
			a, err := m.ask(question{Op: "status"})
			switch {
			case err != nil:
				return err
			case a.Status == nil || a.Error != "":
				return fmt.Errorf("status: %s", a.Error)
			case a.Status.NotReady != "":
				return errors.New(a.Status.NotReady)
			case a.Status.Voters != len(e.members):
				return fmt.Errorf("it knows of %d voters", a.Status.Voters)
			}
			return nil
		})
		if ended != nil {
			return ended
		}
	}
	return nil
}

// leader returns the node that leads, by its own word, in the highest term; -1 for
// none.
func (e *ensemble) leader() int {
	var mu sync.Mutex
	leader, term := -1, uint64(0)
	var asking sync.WaitGroup
	for i, m := range e.members {
		asking.Go(func() {
			a, err := m.askWithin(question{Op: "status"}, 300*time.Millisecond)
			if err != nil || a.Status == nil || a.Status.Role != "leader" {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if a.Status.Term > term {
				leader, term = i, a.Status.Term
			}
		})
	}
	asking.Wait()
	return leader
}

// awaitLeader waits until there is a leader.
func (e *ensemble) awaitLeader() int {
	e.t.Helper()
	leader := -1
	e.until("there is a leader", func() error {
		if leader = e.leader(); leader < 0 {
			return errors.New("nobody leads")
		}
		return nil
	})
	return leader
}

// start starts the process, and returns when it can be asked.
func (m *server) start() error {
	env, err := json.Marshal(m.settings)
	if err != nil {
		return err
	}
	cmd := exec.Command(m.e.binary)
	cmd.Env = append(append(os.Environ(), m.e.env...), memberEnv+"="+string(env))
	stderr := &lockedBuffer{}
	cmd.Stderr = stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := m.e.net.start(m.index, cmd); err != nil {
		return err
	}
	exited := make(chan struct{})
	m.mu.Lock()
	m.cmd, m.stdin, m.stderr, m.exited, m.doomed = cmd, stdin, stderr, exited, false
	m.said = append(m.said, stderr)
	m.mu.Unlock()
	hangs := time.AfterFunc(2*patience, func() { _ = cmd.Process.Signal(syscall.SIGQUIT) })
	defer hangs.Stop()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	go func() {
		_ = cmd.Wait() // The state says how it ended.
		close(exited)
	}()
	if err != nil || line != "ready\n" {
		<-exited
		return fmt.Errorf("%s did not start: %v:\n%s", m.settings.ID, cmd.ProcessState, m.lastWords())
	}
	return nil
}

// signal sends a signal; the process may have ended.
func (m *server) signal(s os.Signal) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd != nil {
		_ = m.cmd.Process.Signal(s)
	}
}

// kill is kill -9, and waits for the end.
func (m *server) kill() {
	m.killAtOnce()
	m.mu.Lock()
	exited := m.exited
	m.mu.Unlock()
	if exited != nil {
		<-exited
	}
}

// killAtOnce is kill -9, and does not wait.
func (m *server) killAtOnce() {
	m.doom()
	m.signal(syscall.SIGKILL)
}

// doom says that the process may end from now on.
func (m *server) doom() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.doomed = true
}

// pause stops the process where it is; resume lets it go on.
func (m *server) pause()  { m.signal(syscall.SIGSTOP) }
func (m *server) resume() { m.signal(syscall.SIGCONT) }

// gone reports whether the process ended, and why it should not have.
func (m *server) gone() (gone bool, why error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.exited:
	default:
		return false, nil
	}
	if m.doomed {
		return true, nil
	}
	return true, fmt.Errorf("%s ended by itself: %v:\n%s", m.settings.ID, m.cmd.ProcessState, tail(m.stderr.String()))
}

// count counts how often its processes said something.
func (m *server) count(what string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	count := 0
	for _, said := range m.said {
		count += strings.Count(said.String(), what)
	}
	return count
}

// lastWords are the last lines that the process said.
func (m *server) lastWords() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stderr == nil {
		return ""
	}
	return tail(m.stderr.String())
}

func tail(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// A line is a connection to a node. It is used by one goroutine.
type line struct{ wire[question, answered] }

func dialLine(socket string) (*line, error) {
	w, err := dialWire[question, answered]("unix", socket)
	return &line{w}, err
}

func (m *server) dial() (*line, error) { return dialLine(m.settings.Socket) }

// ask sends a question and waits for its answer. After an error the line is of no use.
func (l *line) ask(q question, within time.Duration) (answered, error) {
	q.Patience = within
	// The node has some time to say that its own is over.
	return l.wire.ask(q, within+within/2)
}

// ask asks on a line of its own.
func (m *server) ask(q question) (answered, error) { return m.askWithin(q, 5*time.Second) }

func (m *server) askWithin(q question, within time.Duration) (answered, error) {
	l, err := m.dial()
	if err != nil {
		return answered{}, err
	}
	defer l.close()
	return l.ask(q, within)
}

// err is the error of an answer.
func (a answered) err() error {
	if a.Error == "" {
		return nil
	}
	return errors.New(a.Error)
}

// bugVariable is cluster.PlantedBugVariable, which the ordinary build does not have.
const bugVariable = "PEMBA_PLANTED_BUG"
