package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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
	ended   chan struct{}
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
	if err := errors.Join(d.chooseAddrs(), d.start(ctx)); err != nil {
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
		example.Title, leader.id, definitions, tuples, d.nodes[1].id, program, leader.grpcAddr); err != nil {
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
`, program, survivor.grpcAddr, next.process.Process.Pid)
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
	n.process.Env = demoEnvironment()
	n.process.Stdout, n.process.Stderr = &n.log, &n.log
	// Ctrl-C is for this process, which ends them in order.
	n.process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := n.process.Start(); err != nil {
		return err
	}
	n.ended = make(chan struct{})
	go func(process *exec.Cmd, ended chan struct{}) {
		defer close(ended)
		_ = process.Wait() // That it was killed is what the demo is about.
	}(n.process, n.ended)
	return nil
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

// await waits until something is the case.
func (d *demoCluster) await(ctx context.Context, what string, holds func(context.Context) bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, demoPatience, fmt.Errorf("waited longer than %v for %s", demoPatience, what))
	defer cancel()
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

// cluster asks a node for the members, nil when it does not answer.
func (d *demoCluster) cluster(ctx context.Context, n *demoNode) *pembav1.GetClusterResponse {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := client.Dial(ctx, client.Config{Addr: n.grpcAddr})
	if err != nil {
		return nil
	}
	defer func() { _ = c.Close() }()
	answer, err := c.Cluster.GetCluster(ctx, &pembav1.GetClusterRequest{})
	if err != nil {
		return nil
	}
	return answer
}

// voters counts the nodes that have a vote and are ready, as one node sees them.
func (d *demoCluster) voters(ctx context.Context, n *demoNode) int {
	count := 0
	for _, m := range newClusterJSON(d.cluster(ctx, n)).Members {
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
			id := newClusterJSON(d.cluster(ctx, asked)).LeaderID
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
	var out, errs strings.Builder
	if execute(ctx, []string{"cluster", "status", "--addr", n.grpcAddr, "--key", ""}, strings.NewReader(""), &out, &errs) != 0 {
		return errors.New(strings.TrimSpace(errs.String()))
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
