package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
)

// The defaults of the run with several nodes. The three settings are those that a node
// has by itself; they are given to it so that the report says what was measured.
const (
	electionTimeout     = cluster.DefaultElectionTimeout
	commitPause         = cluster.DefaultCommitPause
	stateBytesPerSecond = cluster.DefaultStateBytesPerSecond

	fullTuples, quickTuples = 5_000_000, 1_000_000
	fullKills, quickKills   = 10, 3
)

const (
	// clusterSize is how many tuples the clusters have whose calls are measured:
	// enough for different questions.
	clusterSize = 10_000
	// clusterNodes is how many nodes make a cluster.
	clusterNodes = 3
	// formPatience is how long nodes may take to find together again.
	formPatience = time.Minute
	formPause    = 20 * time.Millisecond
)

// errMoved says that the leadership moved while a slice ran, so that it is not known
// what it measured.
var errMoved = errors.New("the leadership moved meanwhile")

// movesMax is how often a slice is begun again for that reason.
const movesMax = 5

// A clusterRun measures one node beside several, and what becomes of them.
type clusterRun struct {
	*driver
	dir  string
	data *dataset
	// alone is a node without a port for others, port one that has one, and three
	// are a cluster; nil until they are needed.
	alone, port, three *group
}

// A group is a cluster.
type group struct {
	name    string
	members []*member
}

// A member is a node of a cluster, in a process of its own.
type member struct {
	// target is nil while the process does not run.
	*target
	id   string
	spec serveSpec
	// fresh is the number of the first tuple that is written by way of this node, so
	// that no other has it.
	fresh uint64
}

// freshPerMember is how many fresh tuples each member and each of its lives has.
const freshPerMember = 1 << 32

// runClusters is run with several nodes.
func runClusters(ctx context.Context, c *config) (err error) {
	begin := time.Now()
	r := &clusterRun{driver: &driver{config: c}, data: models["business"].generate(clusterSize, c.seed)}
	chosen := r.chosen()
	if len(chosen) == 0 {
		return fmt.Errorf("--run %s selects nothing of --cluster; --list shows the names", c.run)
	}
	if r.report, err = newReport(c); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.report.close()) }()
	if r.dir, err = os.MkdirTemp(c.dir, "pemba-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(r.dir)) }()
	defer func() { err = errors.Join(err, r.alone.stop(), r.port.stop(), r.three.stop()) }()
	for _, part := range chosen {
		if err := part.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return r.report.ended(time.Since(begin))
}

// A part is what --run selects of a run with several nodes.
type part struct {
	name string
	run  func(context.Context) error
}

// chosen returns the parts that the configuration selects.
func (r *clusterRun) chosen() []part {
	parts := r.parts()
	return slices.DeleteFunc(parts, func(p part) bool { return !r.config.run.MatchString(p.name) })
}

// freeAddr returns an address of this machine that nobody listens on.
func freeAddr() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

// open starts a cluster of so many nodes on empty directories, with the schema and
// without tuples. A cluster of one has a port for others where port is set.
func (r *clusterRun) open(ctx context.Context, name string, nodes int, port bool, data *dataset) (g *group, err error) {
	g = &group{name: name}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start %s: %w", name, err), g.stop())
		}
	}()
	for range nodes {
		if err := r.add(ctx, g, port, data); err != nil {
			return g, err
		}
	}
	_, err = g.members[0].schemas.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Schema: businessSchema})
	return g, err
}

// add starts one more node of a cluster and waits until it has its vote.
func (r *clusterRun) add(ctx context.Context, g *group, port bool, data *dataset) error {
	m, err := r.newMember(g, port, data)
	if err != nil {
		return err
	}
	g.members = append(g.members, m)
	if err := m.start(); err != nil {
		return err
	}
	return g.await(ctx, "all have votes", func(answer *pembav1.GetClusterResponse) bool {
		return len(answer.GetMembers()) == len(g.members) && voters(answer) == len(g.members)
	})
}

// newMember makes one more node of a cluster, which joins it, if there is one, when it
// is started.
func (r *clusterRun) newMember(g *group, port bool, data *dataset) (*member, error) {
	n := len(g.members)
	m := &member{id: id("n", n+1), fresh: uint64(n) << 40}
	m.spec.Dir = filepath.Join(r.dir, g.name+"-"+m.id)
	m.target = &target{data: data}
	if !port {
		return m, nil
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	m.spec.Peers = &peersSpec{
		ID: m.id, RaftAddr: addr,
		ElectionTimeout: r.config.election, CommitPause: r.config.commitPause, StateBytesPerSecond: r.config.stateRate,
	}
	if n > 0 {
		m.spec.Peers.Join = g.members[0].conn.CanonicalTarget()
		m.spec.Peers.Join = strings.TrimPrefix(m.spec.Peers.Join, "passthrough:///")
	}
	return m, nil
}

// start starts the process of a member. The first start of one that joins joins.
func (m *member) start() error {
	s, err := launch(m.spec)
	if err != nil {
		return err
	}
	data := m.data
	m.target = &target{server: s, data: data}
	m.target.fresh.Store(m.fresh)
	m.fresh += freshPerMember
	if m.spec.Peers != nil {
		m.spec.Peers.Join = ""
	}
	return nil
}

// running returns the members whose processes run.
func (g *group) running() []*member {
	return slices.DeleteFunc(slices.Clone(g.members), func(m *member) bool { return m.server == nil })
}

// servers returns the processes that run, that of first before the others.
func (g *group) servers(first *member) []*server {
	list := []*server{first.server}
	for _, m := range g.running() {
		if m != first {
			list = append(list, m.server)
		}
	}
	return list
}

// others returns the members that run, but for one.
func (g *group) others(but *member) []*member {
	return slices.DeleteFunc(g.running(), func(m *member) bool { return m == but })
}

// stop ends all processes; g may be nil.
func (g *group) stop() error {
	if g == nil {
		return nil
	}
	var errs []error
	// The last first, so that no leader looks for those who went.
	for _, m := range slices.Backward(g.members) {
		errs = append(errs, m.end())
	}
	return errors.Join(errs...)
}

// await asks a member that runs how the cluster is, until reached says so.
func (g *group) await(ctx context.Context, what string, reached func(*pembav1.GetClusterResponse) bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, formPatience, fmt.Errorf("%s: it did not come to that within %v: %s", g.name, formPatience, what))
	defer cancel()
	for {
		answer, err := g.running()[0].cluster.GetCluster(ctx, &pembav1.GetClusterRequest{})
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", g.name, err)
		}
		if reached(answer) {
			return nil
		}
		if err := pause(ctx, formPause); err != nil {
			return err
		}
	}
}

// voters counts the members whose votes count.
func voters(answer *pembav1.GetClusterResponse) (count int) {
	for _, m := range answer.GetMembers() {
		if m.GetSuffrage() == pembav1.Member_SUFFRAGE_VOTER {
			count++
		}
	}
	return count
}

// leader returns the member that leads, once all members that run are ready.
func (g *group) leader(ctx context.Context) (*member, error) {
	var leader *member
	running := g.running()
	err := g.await(ctx, "one leads and all are ready", func(answer *pembav1.GetClusterResponse) bool {
		ready := 0
		for _, m := range answer.GetMembers() {
			if m.GetStatus() != nil && m.GetStatus().GetNotReady() == "" {
				ready++
			}
		}
		i := slices.IndexFunc(running, func(m *member) bool { return m.leads(answer) })
		if i >= 0 {
			leader = running[i]
		}
		return i >= 0 && ready == len(running)
	})
	return leader, err
}

// leads reports whether a member leads, by an answer of any.
func (m *member) leads(answer *pembav1.GetClusterResponse) bool {
	if m.spec.Peers == nil {
		return true // It is alone, and made up its id.
	}
	return slices.ContainsFunc(answer.GetMembers(), func(other *pembav1.Member) bool {
		return other.GetId() == m.id && other.GetStatus().GetRole() == "leader"
	})
}

// fill imports the data by way of the leader, waits until all nodes have them, and
// returns how many tuples they have.
func (g *group) fill(ctx context.Context) (int, error) {
	leader, err := g.leader(ctx)
	if err != nil {
		return 0, err
	}
	count, err := leader.importAll(ctx)
	if err != nil {
		return 0, err
	}
	for _, m := range g.running() {
		if _, err := m.schemas.ReadSchema(ctx, &pembav1.ReadSchemaRequest{Consistency: linearizable()}); err != nil {
			return 0, fmt.Errorf("wait for %s to have the data: %w", m.id, err)
		}
	}
	return count, nil
}

// small returns the cluster of a name with the small data, and starts it at first.
func (r *clusterRun) small(ctx context.Context, at **group, name string, nodes int, port bool) (*group, error) {
	if *at == nil {
		g, err := r.open(ctx, name, nodes, port, r.data)
		if err != nil {
			return nil, err
		}
		*at = g
		if _, err := g.fill(ctx); err != nil {
			return nil, err
		}
	}
	return *at, nil
}

func (r *clusterRun) aloneNode(ctx context.Context) (*group, error) {
	return r.small(ctx, &r.alone, "alone", 1, false)
}

func (r *clusterRun) portNode(ctx context.Context) (*group, error) {
	return r.small(ctx, &r.port, "port", 1, true)
}

func (r *clusterRun) threeNodes(ctx context.Context) (*group, error) {
	return r.small(ctx, &r.three, "three", clusterNodes, true)
}

// A row is one way to do what a block measures.
type row struct {
	name       string
	parameters map[string]any
	// measure runs one slice. It fails with errMoved when it has to be run again.
	measure func(context.Context) (*slice, error)
	// group are the processes that are profiled.
	group func(context.Context) (*group, error)
}

// A block are rows that are measured in alternating rounds. The first is what the
// others are compared with.
type block struct {
	name string
	rows []row
}

// runBlock measures a block and reports it.
func (r *clusterRun) runBlock(ctx context.Context, b block) error {
	measured := make([][]round, len(b.rows))
	for n := range r.config.rounds {
		slices := make([]*slice, len(b.rows))
		for i := range b.rows {
			// Every other round goes the other way, so that none is always behind the same.
			if n%2 == 1 {
				i = len(b.rows) - 1 - i
			}
			var err error
			if slices[i], err = b.rows[i].again(ctx); err != nil {
				return fmt.Errorf("%s: %w", b.rows[i].name, err)
			}
		}
		for i, s := range slices {
			measured[i] = append(measured[i], round{base: slices[0], pemba: s})
		}
	}
	if err := r.report.rows(b, measured); err != nil {
		return err
	}
	if r.config.profile == "" {
		return nil
	}
	for i := range b.rows {
		if err := r.profileRow(ctx, b, &b.rows[i]); err != nil {
			return fmt.Errorf("%s: %w", b.rows[i].name, err)
		}
	}
	return nil
}

// again measures a row, once more where the leadership moved.
func (w *row) again(ctx context.Context) (*slice, error) {
	for try := 1; ; try++ {
		s, err := w.measure(ctx)
		if !errors.Is(err, errMoved) || try == movesMax {
			return s, err
		}
	}
}

// profileRow measures a row once more, beside what is reported, with a processor
// profile of each process.
func (r *clusterRun) profileRow(ctx context.Context, b block, w *row) error {
	g, err := w.group(ctx)
	if err != nil {
		return err
	}
	leader, err := g.leader(ctx)
	if err != nil {
		return err
	}
	for _, m := range g.running() {
		part := "follower"
		if m == leader {
			part = "leader"
		}
		file := fileName(b.name+"/"+w.name) + "-" + m.id + "-" + part + ".pprof"
		if _, err := m.tell(order{Do: startProfile, File: filepath.Join(r.config.profile, file)}); err != nil {
			return err
		}
	}
	_, err = w.again(ctx)
	for _, m := range g.running() {
		_, stopErr := m.tell(order{Do: stopProfile})
		err = errors.Join(err, stopErr)
	}
	return err
}

// whileLed runs a slice that means something only as long as the same member leads, and
// adds what the nodes counted.
func (g *group) whileLed(ctx context.Context, run func(leader *member) (*slice, error)) (*slice, error) {
	leader, err := g.leader(ctx)
	if err != nil {
		return nil, err
	}
	before, err := g.count(leader)
	if err != nil {
		return nil, err
	}
	s, err := run(leader)
	if err != nil {
		return nil, err
	}
	after, err := g.count(leader)
	if err != nil {
		return nil, err
	}
	now, err := g.leader(ctx)
	if err != nil {
		return nil, err
	}
	if now != leader {
		return nil, errMoved
	}
	s.syncs, s.entries, s.carried = after.Syncs-before.Syncs, after.Entries-before.Entries, after.Sent-before.Sent
	s.confirms, s.readers = after.Rounds-before.Rounds, after.Readers-before.Readers
	return s, nil
}

// count returns what the leader counted, but for Sent, which is of all nodes.
func (g *group) count(leader *member) (counts, error) {
	var sum counts
	for _, m := range g.running() {
		r, err := m.tell(order{Do: takeCounts})
		if err != nil {
			return sum, err
		}
		sum.Sent += r.Counts.Sent
		if m == leader {
			sent := sum.Sent
			sum = *r.Counts
			sum.Sent = sent
		}
	}
	return sum, nil
}

// spreadCalls makes a call that goes to one member after the other.
func spreadCalls(members []*member, call func(*member) callFunc) callFunc {
	list := make([]callFunc, len(members))
	for i, m := range members {
		list[i] = call(m)
	}
	var next atomic.Uint64
	return func(ctx context.Context, c *caller, i uint64) error {
		return list[next.Add(1)%uint64(len(list))](ctx, c, i)
	}
}
