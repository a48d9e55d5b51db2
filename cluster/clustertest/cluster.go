package clustertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/cluster/badgerlog"
	"github.com/pembadb/pemba/graph"
)

// Deadline bounds what should happen soon. It is only met by failures, also where the
// machine is slow and busy with other things.
const Deadline = 2 * time.Minute

// ElectionTimeout is that of the nodes: short, for failures to be found soon, and
// long enough for a busy machine not to find any that are none.
const ElectionTimeout = electionTimeout

// A Cluster is hosts with a node on each, in one process and on one Network. What
// fails it tells the test. Its methods may be called by any number of goroutines,
// except that a host is started and stopped by one at a time.
type Cluster struct {
	Network *Network

	t     testing.TB
	dir   string
	clock *clock

	mu     sync.Mutex
	hosts  map[string]*Host
	waited string // What Wait last waited for.
}

// A Host is a place where a node can run: a name in the network, a clock and a data
// directory.
type Host struct {
	// Name is the host's, and NodeID that of its node, which is mostly the same.
	Name   string
	NodeID string
	// Addr is where the node is reached. It may be changed while the node is
	// stopped.
	Addr string
	// Configure is called with the configuration of the node before each start. It
	// may be nil.
	Configure func(*cluster.Config)

	cluster *Cluster
	dir     string
	copies  int // How often it was crashed.
	log     *logBuffer
	disk    disk

	mu    sync.Mutex
	node  *cluster.Node // Nil while it is stopped.
	fault chan error    // Has room for the one fault of a node.
}

// New returns a cluster without hosts. When the test ends all nodes are stopped, and
// where it failed, what they logged is shown. Connections outlive a cut link for
// patience, see NewNetwork.
func New(t testing.TB, patience time.Duration) *Cluster {
	c := &Cluster{Network: NewNetwork(patience), t: t, dir: t.TempDir(), clock: newClock(), hosts: map[string]*Host{}}
	t.Cleanup(func() {
		c.Network.Heal()
		for _, h := range c.Hosts() {
			h.SetDiskSlow(false)
			if h.Running() {
				h.Stop()
			}
		}
		if t.Failed() {
			for _, h := range c.Hosts() {
				t.Logf("log of %s:\n%s", h.Name, h.log)
			}
			// Where output is cut, its end is what is left.
			t.Logf("these were the logs of %s; the last wait was until %s", t.Name(), c.lastWait())
		}
	})
	return c
}

// Add adds a host whose node has its name as id, and does not start it.
func (c *Cluster) Add(name string) *Host {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hosts[name] != nil {
		c.t.Fatalf("there is a host %s already", name)
	}
	h := &Host{
		Name: name, NodeID: name, Addr: name + ":7000",
		cluster: c, dir: filepath.Join(c.dir, name), log: &logBuffer{},
	}
	c.hosts[name] = h
	return h
}

// Host returns a host by its name; nil for none.
func (c *Cluster) Host(name string) *Host {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hosts[name]
}

// Hosts returns all hosts, by name.
func (c *Cluster) Hosts() []*Host {
	c.mu.Lock()
	defer c.mu.Unlock()
	var hosts []*Host
	for _, h := range c.hosts {
		hosts = append(hosts, h)
	}
	slices.SortFunc(hosts, func(a, b *Host) int { return strings.Compare(a.Name, b.Name) })
	return hosts
}

// Form starts hosts n1, n2 and so on, whose nodes are voters of one cluster and ready
// when it returns. configure may be nil.
func (c *Cluster) Form(count int, configure func(*cluster.Config)) []*Host {
	c.t.Helper()
	var hosts []*Host
	for i := range count {
		h := c.Add(fmt.Sprintf("n%d", i+1))
		h.Configure = configure
		hosts = append(hosts, h)
		if i == 0 {
			h.MustStart()
			continue
		}
		if err := h.Join(false); err != nil {
			c.t.Fatal(err)
		}
	}
	c.WaitVoters(hosts...)
	return hosts
}

// WaitVoters waits until the hosts are ready, and each knows them all as voters.
func (c *Cluster) WaitVoters(hosts ...*Host) {
	c.t.Helper()
	for _, h := range hosts {
		c.Wait(h.Name+" is ready, and all have votes", func() bool {
			if h.Node().Ready() != nil {
				return false
			}
			s, err := h.Node().Status()
			return err == nil && s.Voters == len(hosts)
		})
	}
}

// Wait waits for a condition, and fails the test if it does not come.
func (c *Cluster) Wait(what string, reached func() bool) {
	c.t.Helper()
	c.mu.Lock()
	c.waited = what
	c.mu.Unlock()
	for end := time.Now().Add(Deadline); !reached(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("waited %v in vain until %s", Deadline, what)
		}
	}
}

// lastWait returns what Wait last waited for.
func (c *Cluster) lastWait() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.waited
}

// Clock sets the clocks of all hosts on, which they may notice.
func (c *Cluster) Clock(by time.Duration) { c.clock.move(by) }

// Isolate cuts a host off from all others, both ways.
func (c *Cluster) Isolate(name string) {
	for _, h := range c.Hosts() {
		if h.Name != name {
			c.Network.Cut(name, h.Name)
			c.Network.Cut(h.Name, name)
		}
	}
}

// Lead makes the node of a host the leader, whom all running hosts given follow when
// it returns.
func (c *Cluster) Lead(h *Host, followers ...*Host) {
	c.t.Helper()
	asked := time.Time{}
	c.Wait(h.Name+" leads", func() bool {
		s, err := h.Node().Status()
		if err != nil {
			return false
		}
		if s.Role == "leader" && s.NotReady == "" {
			return !slices.ContainsFunc(followers, func(f *Host) bool {
				s, err := f.Node().Status()
				return err != nil || s.LeaderID != h.NodeID || s.NotReady != ""
			})
		}
		if s.Role != "leader" && time.Since(asked) > ElectionTimeout {
			// It may be refused while another change is under way; then again.
			ctx, cancel := context.WithTimeout(context.Background(), 4*ElectionTimeout)
			_ = h.Node().TransferLeadership(ctx, h.NodeID)
			cancel()
			asked = time.Now()
		}
		return false
	})
}

// config is the configuration of the host's node: small, and with all faults told.
func (h *Host) config() cluster.Config {
	config := cluster.Config{
		DataDir: h.dir, NodeID: h.NodeID, RaftAddr: h.Addr, PeerNetwork: h.cluster.Network.Of(h.Name),
		ElectionTimeout: ElectionTimeout, MemberPause: 20 * time.Millisecond, ClockPause: 50 * time.Millisecond, WaitMax: 5 * time.Second,
		CollectPause: 10 * time.Millisecond, VerifyBytesPerSecond: -1, Version: "v0",
		Graph:  graph.Config{CacheBytes: 8 << 20, MemTableBytes: 4 << 20},
		Log:    badgerlog.Config{BallastBytes: -1, MemTableSize: 2 << 20, StoreDeadline: Deadline}.SlowedBy(h.disk.await),
		Logger: slog.New(slog.NewTextHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Now:    func() time.Time { return h.cluster.clock.of(h.Name) },
	}
	if h.Configure != nil {
		h.Configure(&config)
	}
	return config
}

// Start starts the host's node: in an empty directory as a cluster of one.
func (h *Host) Start() error { return h.start(nil, false) }

// MustStart is Start where it must succeed.
func (h *Host) MustStart() {
	h.cluster.t.Helper()
	if err := h.Start(); err != nil {
		h.cluster.t.Fatalf("start %s: %v", h.Name, err)
	}
}

// Join starts the host's node, which joins the cluster where its directory is empty;
// with replica it stays without a vote. The node asks each host that runs, until one
// can say yes or no.
func (h *Host) Join(replica bool) error {
	return h.start(func(ctx context.Context, j cluster.Joining) (cluster.Joined, error) {
		for {
			err := errors.New("no host runs")
			for _, other := range h.cluster.Hosts() {
				node := other.Node()
				if other == h || node == nil || node.ClusterID() == [16]byte{} {
					continue
				}
				var joined cluster.Joined
				if joined, err = node.AddMember(ctx, j); err == nil || errors.Is(err, cluster.ErrMember) {
					return joined, err
				}
			}
			if ctx.Err() != nil || !noLeader(err) {
				return cluster.Joined{}, err
			}
		}
	}, replica)
}

// noLeader reports whether an error goes by when there is a leader.
func noLeader(err error) bool {
	return errors.Is(err, cluster.ErrNotLeader) || errors.Is(err, cluster.ErrOutcomeUnknown)
}

func (h *Host) start(join func(context.Context, cluster.Joining) (cluster.Joined, error), replica bool) error {
	if h.Running() {
		return fmt.Errorf("%s runs already", h.Name)
	}
	fault := make(chan error, 1)
	config := h.config()
	config.Join, config.Replica = join, replica
	config.OnFatal = func(err error) { fault <- err }
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	defer cancel()
	node, err := cluster.Open(ctx, config)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.node, h.fault = node, fault
	return nil
}

// Node returns the node that runs on the host; nil for none.
func (h *Host) Node() *cluster.Node {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.node
}

// Running reports whether a node runs on the host, or did until it met a fault.
func (h *Host) Running() bool { return h.Node() != nil }

// Fault returns where the fault comes from that ends the node of the host.
func (h *Host) Fault() <-chan error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.fault
}

// Stop closes the node in good order. A fault that nobody took from Fault fails the
// test.
func (h *Host) Stop() {
	h.cluster.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	defer cancel()
	h.stop(ctx)
}

// stop is Stop, and says whether the node was closed before ctx ended.
func (h *Host) stop(ctx context.Context) (late bool) {
	h.cluster.t.Helper()
	h.mu.Lock()
	node, fault := h.node, h.fault
	h.node = nil
	h.mu.Unlock()
	err := node.Close(ctx)
	if late = ctx.Err() != nil; late {
		ctx, cancel := context.WithTimeout(context.Background(), Deadline)
		defer cancel()
		err = node.Close(ctx)
	}
	if err != nil {
		h.cluster.t.Errorf("close the node of %s: %v", h.Name, err)
	}
	select {
	case err := <-fault:
		h.cluster.t.Errorf("the node of %s stopped: %v", h.Name, err)
	default:
	}
	return late
}

// Recover makes the host's node, which must be stopped, a cluster of one.
func (h *Host) Recover() (cluster.Recovered, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	defer cancel()
	config := h.config()
	config.OnFatal = nil // What goes wrong is Recover's error.
	return cluster.Recover(ctx, config)
}

// Crash ends the node as kill -9 does: its connections break, and what it leaves is
// what was in files, but nothing that it would have written while it closed. The host
// goes on with a copy of the directory that was made before the node was closed.
func (h *Host) Crash() {
	h.cluster.t.Helper()
	// Nothing reaches it from now on, so that soon it has nothing to write.
	h.cluster.Network.SetDown(h.Name, true)
	defer h.cluster.Network.SetDown(h.Name, false)
	h.copies++
	to := filepath.Join(h.cluster.dir, fmt.Sprintf("%s-%d", h.Name, h.copies))
	h.cluster.Wait("the directory of "+h.Name+" rests", func() bool {
		before, err := digestTree(h.dir)
		if err == nil {
			err = os.RemoveAll(to)
		}
		if err == nil {
			err = copyTree(h.dir, to)
		}
		if err != nil {
			return false // A file was removed meanwhile.
		}
		after, err := digestTree(h.dir)
		return err == nil && bytes.Equal(before, after)
	})
	h.Stop()
	if err := os.RemoveAll(h.dir); err != nil {
		h.cluster.t.Fatal(err)
	}
	h.dir = to
}

// Forget removes all that the host keeps, as a disk that is replaced. The node must be
// stopped.
func (h *Host) Forget() {
	h.cluster.t.Helper()
	if err := os.RemoveAll(h.dir); err != nil {
		h.cluster.t.Fatal(err)
	}
}

// Logged reports whether the node logged a line with a text since the host was added.
func (h *Host) Logged(text string) bool { return h.log.has(text) }

// SetClock sets the clock of the host wrong by so much.
func (h *Host) SetClock(wrong time.Duration) { h.cluster.clock.set(h.Name, wrong) }

// A logBuffer keeps the last lines of a log.
type logBuffer struct {
	mu    sync.Mutex
	lines []string
	// gone counts those that were dropped.
	gone int
}

// logLinesMax bounds what is kept.
const logLinesMax = 2000

// Write implements io.Writer, for a whole line.
func (b *logBuffer) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.lines) == logLinesMax {
		copy(b.lines, b.lines[1:])
		b.lines = b.lines[:logLinesMax-1]
		b.gone++
	}
	b.lines = append(b.lines, string(line))
	return len(line), nil
}

// String returns the lines.
func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return fmt.Sprintf("(%d earlier lines were dropped)\n%s", b.gone, strings.Join(b.lines, ""))
}

func (b *logBuffer) has(text string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.ContainsFunc(b.lines, func(line string) bool { return strings.Contains(line, text) })
}
