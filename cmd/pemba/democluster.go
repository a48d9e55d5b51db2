package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pembadb/pemba/api/client"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/examples"
	"github.com/pembadb/pemba/graph"
)

// demoNodes is how many nodes the demo of a cluster has.
const demoNodes = 3

// demoPatience is how long each step of it may take.
const demoPatience = time.Minute

// A demoNode is one of them, a process of its own.
type demoNode struct {
	id, dir, grpcAddr, raftAddr string

	process *exec.Cmd
	ended   chan struct{} // Closed when the process has.
	killed  bool          // The demo ended it, for all to see.
	log     lockedBuffer
}

// A lockedBuffer is written by one goroutine and read by another.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// A demoCluster is three servers of this program on this machine.
type demoCluster struct {
	cmd   *cobra.Command
	dir   string
	nodes []*demoNode
}

// demoOfCluster starts three nodes, kills the one that leads while tuples are written,
// and shows that the others go on and lack nothing.
func demoOfCluster(cmd *cobra.Command, example *examples.Example) (err error) {
	surviveBrokenPipes()
	dir, err := os.MkdirTemp("", "pemba-demo-")
	if err != nil {
		return err
	}
	d := &demoCluster{cmd: cmd, dir: dir}
	defer func() { err = errors.Join(err, d.close()) }()
	// Said before there is anything in it: who kills the demo is told nothing more.
	if err := d.say("Three servers are started. They keep their data in %s, which is removed\nwhen the demo ends; killed outright (SIGKILL) it leaves the data there, and no server.\n\n", dir); err != nil {
		return err
	}
	if err := d.play(cmd.Context(), example); err != nil {
		if cmd.Context().Err() != nil {
			return nil // It was interrupted.
		}
		return err
	}
	<-cmd.Context().Done()
	return nil
}

func (d *demoCluster) play(ctx context.Context, example *examples.Example) error {
	if err := d.chooseAddrs(); err != nil {
		return err
	}
	if err := d.start(ctx); err != nil {
		return err
	}
	leader, err := d.leader(ctx, nil)
	if err != nil {
		return err
	}
	definitions, tuples, _, err := fill(ctx, d.nodes[1].grpcAddr, example)
	if err != nil {
		return fmt.Errorf("example %s: %w", example.Name, err)
	}
	if err := d.say("%s\nThree nodes on this machine are one cluster, and %s leads it. A schema of %d definitions\nand %d tuples were written by way of %s.\n\n  $ %s cluster status --addr %s\n",
		example.Title, leader.id, definitions, tuples, d.nodes[1].id, program, leader.shownAddr()); err != nil {
		return err
	}
	if err := d.status(ctx, leader); err != nil {
		return err
	}
	survivor := d.others(leader)[0]
	if err := d.say("\nNow somebody writes to %s, a tuple at a time, and %s is killed (SIGKILL):\n\n", survivor.id, leader.id); err != nil {
		return err
	}
	longest, written, err := d.writeThroughKill(ctx, survivor, leader)
	if err != nil {
		return err
	}
	next, err := d.leader(ctx, leader)
	if err != nil {
		return err
	}
	found, err := d.count(ctx, survivor)
	if err != nil {
		return err
	}
	if err := d.say("  %s leads now. The longest that one write took was %d ms; %d of %d were acknowledged,\n  and %d are there when %s is asked for all that was acknowledged anywhere.\n",
		next.id, longest.Milliseconds(), written, written, found, survivor.id); err != nil {
		return err
	}
	if found != written {
		return fmt.Errorf("%d tuples were acknowledged and %d are there", written, found)
	}
	if err := d.run(leader); err != nil {
		return err
	}
	if err := d.await(ctx, "the node that was killed to be back", func(ctx context.Context) bool { return d.voters(ctx, survivor) == demoNodes }); err != nil {
		return err
	}
	if err := d.say("\n%s is started again and catches up:\n\n", leader.id); err != nil {
		return err
	}
	if err := d.status(ctx, leader); err != nil {
		return err
	}
	return d.say(`
Kill one yourself, and ask the others from a second shell:

  %s cluster status --addr %s
  kill -9 %d

The cluster stays up until you press Ctrl-C.
`, program, survivor.shownAddr(), next.process.Process.Pid)
}

// shownAddr is what follows --addr in a command that is shown for typing.
func (n *demoNode) shownAddr() string {
	return strings.Join(append([]string{n.grpcAddr}, withoutTLS()...), " ")
}

// chooseAddrs gives each node addresses that nobody has.
func (d *demoCluster) chooseAddrs() error {
	for i := range demoNodes {
		n := &demoNode{id: fmt.Sprintf("n%d", i+1)}
		n.dir = filepath.Join(d.dir, n.id)
		for _, addr := range []*string{&n.grpcAddr, &n.raftAddr} {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			*addr = l.Addr().String()
			// Held until all are chosen, so that no two are the same.
			defer func() { _ = l.Close() }()
		}
		d.nodes = append(d.nodes, n)
	}
	return nil
}

// start runs the nodes and waits until all have votes.
func (d *demoCluster) start(ctx context.Context) error {
	for i, n := range d.nodes {
		how := []string{"--bootstrap"}
		if i > 0 {
			how = []string{"--join", d.nodes[0].grpcAddr}
		}
		if err := d.run(n, how...); err != nil {
			return err
		}
		if i == 0 {
			if err := d.await(ctx, "the first node", func(ctx context.Context) bool { return d.voters(ctx, n) == 1 }); err != nil {
				return err
			}
		}
	}
	return d.await(ctx, "three nodes to be one cluster", func(ctx context.Context) bool { return d.voters(ctx, d.nodes[0]) == demoNodes })
}

// run starts a node.
func (d *demoCluster) run(n *demoNode, how ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := append([]string{
		"serve", "--data-dir", n.dir, "--node-id", n.id, "--grpc-addr", n.grpcAddr, "--http-addr", "none",
		"--raft-addr", n.raftAddr, "--log-level", "warn",
	}, how...)
	n.process = exec.Command(self, args...)
	n.process.Env = append(demoEnvironment(), lifelineVariable+"=1")
	if _, err := n.process.StdinPipe(); err != nil { // It is closed when either process ends.
		return err
	}
	n.process.Stdout, n.process.Stderr = &n.log, &n.log
	// Ctrl-C is for this process, which ends them in order.
	n.process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := n.process.Start(); err != nil {
		return err
	}
	n.ended, n.killed = make(chan struct{}), false
	go func(process *exec.Cmd, ended chan struct{}) {
		defer close(ended)
		_ = process.Wait() // That it was killed is what the demo is about.
	}(n.process, n.ended)
	return nil
}

// lifelineVariable is set for the servers that the demo starts. Each is held by a
// lifeline, which is a standard input on which nothing is ever said: its other end is the
// demo's alone, and is closed by the system however the demo ends. So the servers end
// with it also when it is killed and cannot tell them.
//
// Linux can send a signal when a parent dies (PR_SET_PDEATHSIG). It was turned down: no
// other system has it, and what it looks at is the thread that started the process, so
// that one goroutine would have to hold that thread for as long as the demo lasts. A flag
// of serve would be one for everybody to see and for nobody to use. The name has no
// PEMBA_ in front, of which a server would say that it knows none such.
const lifelineVariable = "_PEMBA_DEMO_LIFELINE"

// followLifeline returns a context that also ends with the demo that started this
// process, where one did.
func followLifeline(ctx context.Context, lifeline io.Reader) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	if os.Getenv(lifelineVariable) != "" {
		go func() {
			// That reading fails is an end like any other.
			_, _ = io.Copy(io.Discard, lifeline)
			cancel(errors.New("the demo that started this server is gone"))
		}()
	}
	return ctx, func() { cancel(nil) }
}

// demoEnvironment is this process's without what configures servers.
func demoEnvironment() []string {
	configuring := map[string]bool{}
	newServe().Flags().VisitAll(func(f *pflag.Flag) { configuring[envName(f.Name)] = true })
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return configuring[name]
	})
}

// await waits until something is the case, as long as no node ends that was not killed.
func (d *demoCluster) await(ctx context.Context, what string, holds func(context.Context) bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, demoPatience, fmt.Errorf("waited longer than %v for %s", demoPatience, what))
	defer cancel()
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	for _, n := range d.nodes {
		if n.process == nil || n.killed {
			continue
		}
		go func(process *exec.Cmd, ended <-chan struct{}) {
			select {
			case <-ended:
				fail(fmt.Errorf("%s ended (%v) while the demo waited for %s", n.id, process.ProcessState, what))
			case <-ctx.Done():
			}
		}(n.process, n.ended)
	}
	for !holds(ctx) {
		select {
		case <-ctx.Done():
			err := context.Cause(ctx)
			for _, n := range d.nodes {
				err = fmt.Errorf("%w\nlog of %s:\n%s", err, n.id, n.log.String())
			}
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

// ask asks a node for the members, by a connection that nothing of the environment is
// meant for.
func (d *demoCluster) ask(ctx context.Context, n *demoNode) (answer *pembav1.GetClusterResponse, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := client.Dial(ctx, client.Config{Addr: n.grpcAddr})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	return c.Cluster.GetCluster(ctx, &pembav1.GetClusterRequest{})
}

// cluster is the cluster as a node sees it, empty while that does not answer.
func (d *demoCluster) cluster(ctx context.Context, n *demoNode) clusterJSON {
	answer, err := d.ask(ctx, n)
	if err != nil {
		return clusterJSON{}
	}
	return newClusterJSON(answer)
}

// voters counts the nodes that have a vote and are ready, as one node sees them.
func (d *demoCluster) voters(ctx context.Context, n *demoNode) int {
	count := 0
	for _, m := range d.cluster(ctx, n).Members {
		if m.Suffrage == "voter" && m.Error == "" && m.NotReady == "" {
			count++
		}
	}
	return count
}

// leader waits for a node that leads, and is not a certain one.
func (d *demoCluster) leader(ctx context.Context, not *demoNode) (*demoNode, error) {
	var found *demoNode
	err := d.await(ctx, "a node to lead", func(ctx context.Context) bool {
		for _, asked := range d.nodes {
			if asked == not {
				continue
			}
			id := d.cluster(ctx, asked).LeaderID
			for _, n := range d.nodes {
				if n.id == id && n != not {
					found = n
				}
			}
			if found != nil {
				return true
			}
		}
		return false
	})
	return found, err
}

func (d *demoCluster) others(not *demoNode) []*demoNode {
	var others []*demoNode
	for _, n := range d.nodes {
		if n != not {
			others = append(others, n)
		}
	}
	return others
}

// status prints what the command of that name does.
func (d *demoCluster) status(ctx context.Context, n *demoNode) error {
	answer, err := d.ask(ctx, n)
	if err != nil {
		return fmt.Errorf("ask %s how the cluster is: %w", n.id, err)
	}
	var out strings.Builder
	shown := &cobra.Command{}
	shown.SetOut(&out)
	if err := printCluster(shown, answer); err != nil {
		return err
	}
	for line := range strings.Lines(out.String()) {
		if err := d.say("  %s", line); err != nil {
			return err
		}
	}
	return nil
}

// demoStore is where the demo writes while it kills.
const demoStore = "demo"

// demoWrites is how many tuples are written, and demoKillAt at which the leader is killed.
const (
	demoWrites = 200
	demoKillAt = 100
)

// writeThroughKill writes tuples one after the other by way of a node, and kills another
// in the middle. It returns the longest that one took, and how many were acknowledged.
func (d *demoCluster) writeThroughKill(ctx context.Context, by, victim *demoNode) (longest time.Duration, written int, err error) {
	c, err := client.Dial(ctx, client.Config{Addr: by.grpcAddr, Store: demoStore})
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if _, err := c.Stores.CreateStore(ctx, &pembav1.CreateStoreRequest{Name: demoStore}); err != nil {
		return 0, 0, err
	}
	const schema = "definition person {}\ndefinition document {\n    relation viewer: person\n}\n"
	if _, err := c.Schemas.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Store: demoStore, Schema: schema}); err != nil {
		return 0, 0, err
	}
	for i := range demoWrites {
		if i == demoKillAt {
			victim.killed = true
			if err := victim.process.Process.Kill(); err != nil {
				return 0, 0, err
			}
			if err := d.say("  $ kill -9 %d\n", victim.process.Process.Pid); err != nil {
				return 0, 0, err
			}
		}
		start := time.Now()
		_, err := c.WriteTuples(ctx, graph.Create, graph.Tuple{
			Object: graph.Object{Type: "document", ID: fmt.Sprint(i)}, Relation: "viewer",
			Subject: graph.Subject{Object: graph.Object{Type: "person", ID: "anna"}},
		})
		if err != nil {
			return 0, 0, fmt.Errorf("write %d: %w", i+1, err)
		}
		longest, written = max(longest, time.Since(start)), written+1
	}
	return longest, written, nil
}

// count counts what writeThroughKill wrote.
func (d *demoCluster) count(ctx context.Context, by *demoNode) (found int, err error) {
	c, err := client.Dial(ctx, client.Config{Addr: by.grpcAddr})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	answer, err := c.Tuples.CountTuples(ctx, &pembav1.CountTuplesRequest{
		Store: demoStore, Consistency: &pembav1.Consistency{Requirement: &pembav1.Consistency_Linearizable{Linearizable: true}},
	})
	if err != nil {
		return 0, err
	}
	return int(answer.GetCount()), nil
}

func (d *demoCluster) say(format string, args ...any) error { return printf(d.cmd, format, args...) }

// close ends the nodes and removes what they kept.
func (d *demoCluster) close() error {
	for _, n := range d.nodes {
		if n.process == nil {
			continue
		}
		_ = n.process.Process.Signal(syscall.SIGTERM) // It may have ended by itself.
	}
	for _, n := range d.nodes {
		if n.process == nil {
			continue
		}
		select {
		case <-n.ended:
		case <-time.After(8 * time.Second):
			_ = n.process.Process.Kill() // Likewise.
			<-n.ended
		}
	}
	return os.RemoveAll(d.dir)
}
