package clustertest

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/cluster/badgerlog"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// A console runs the commands of one script, see the package comment.
type console struct {
	t testing.TB
	*Cluster

	// configure is what the command cluster said of all nodes.
	configure func(*cluster.Config)
	// written are the results of writes by the name that a script gave them, and
	// last that of the newest.
	written map[string]engine.Result
	// requests counts the writes.
	requests int
	watches  map[string]*watch
	loads    map[string]*load
	// damaged are the names of the files that a script damaged.
	damaged map[string]bool
}

// Schema is what the clusters of scripts begin with.
const Schema = `use expiration

definition person {}

definition document {
    relation viewer: person
    relation guest: person with expiration
    permission view = viewer + guest
}
`

// Run runs the script at path with a Cluster of its own.
func Run(t testing.TB, path string) {
	t.Helper()
	last := ""
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("once more, behind the logs: %s", last)
		}
	})
	c := &console{
		t: t, written: map[string]engine.Result{}, watches: map[string]*watch{}, loads: map[string]*load{}, damaged: map[string]bool{},
	}
	defer func() {
		for _, l := range c.loads {
			close(l.abort)
			l.stop()
		}
		for _, w := range c.watches {
			w.close()
		}
	}()
	datadriven.RunTestAny(t, path, func(t testing.TB, d *datadriven.TestData) string {
		t.Helper()
		reply, err := c.handle(d)
		if err != nil {
			reply += c.errorText(err)
		}
		last = fmt.Sprintf("%s: %s: it wants\n%sand got\n%s", d.Pos, d.Cmd, d.Expected, reply)
		return reply
	})
}

// A usageError says that a script is wrong.
type usageError string

func (e usageError) Error() string { return "usage: " + string(e) }

// A call is one command, taken apart.
type call struct {
	words  []string            // Arguments without a value.
	values map[string][]string // Arguments with one.
	input  string
}

// flag takes a word out of the arguments, and reports whether it was there.
func (c *call) flag(name string) bool {
	i := slices.Index(c.words, name)
	if i >= 0 {
		c.words = slices.Delete(c.words, i, i+1)
	}
	return i >= 0
}

// value takes an argument out, "" where it is not there.
func (c *call) value(name string) string {
	v := c.list(name)
	if len(v) == 0 {
		return ""
	}
	return v[0]
}

func (c *call) list(name string) []string {
	v := c.values[name]
	delete(c.values, name)
	return v
}

func (c *call) number(name string, otherwise int) (int, error) {
	text := c.value(name)
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, usageError(fmt.Sprintf("%s=%s is no number", name, text))
	}
	return n, nil
}

func (c *call) duration(name string, otherwise time.Duration) (time.Duration, error) {
	text := c.value(name)
	if text == "" {
		return otherwise, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, usageError(fmt.Sprintf("%s=%s is no duration", name, text))
	}
	return d, nil
}

// next takes the first word out.
func (c *call) next() string {
	if len(c.words) == 0 {
		return ""
	}
	word := c.words[0]
	c.words = c.words[1:]
	return word
}

// lines returns the rest of the words that are no names, and the lines of the input.
func (c *call) lines() []string {
	var lines []string
	for len(c.words) > 0 && strings.Contains(c.words[0], "#") {
		lines = append(lines, c.next())
	}
	for line := range strings.SplitSeq(c.input, "\n") {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

// end says that everything was understood.
func (c *call) end() error {
	for name := range c.values {
		return usageError("unknown argument " + name)
	}
	if len(c.words) > 0 {
		return usageError("unknown argument " + c.words[0])
	}
	return nil
}

// command is what a name in a script does.
type command func(*console, *call) (string, error)

// commands are all that scripts can do.
var commands = map[string]command{
	"cluster":     (*console).form,
	"join":        (*console).join,
	"bootstrap":   (*console).bootstrap,
	"start":       (*console).start,
	"stop":        (*console).stop,
	"crash":       (*console).crash,
	"recover":     (*console).recover,
	"forget":      (*console).forget,
	"copy":        (*console).copyHost,
	"fault":       (*console).faultOf,
	"members":     (*console).members,
	"add":         (*console).add,
	"remove":      (*console).remove,
	"promote":     (*console).promote,
	"transfer":    (*console).transfer,
	"lead":        (*console).lead,
	"wait":        (*console).wait,
	"cut":         (*console).cut,
	"isolate":     (*console).isolate,
	"break":       (*console).breakLink,
	"interrupted": (*console).interrupted,
	"delay":       (*console).delay,
	"heal":        (*console).heal,
	"clock":       (*console).setClock,
	"disk":        (*console).disk,
	"damage":      (*console).damage,
	"write":       (*console).write,
	"fill":        (*console).fill,
	"check":       (*console).check,
	"changes":     (*console).changes,
	"agree":       (*console).agree,
	"watch":       (*console).watch,
	"watched":     (*console).watched,
	"load":        (*console).load,
	"loaded":      (*console).loaded,
	"logged":      (*console).logged,
	"hello":       (*console).hello,
}

func (c *console) handle(d *datadriven.TestData) (string, error) {
	run := commands[d.Cmd]
	if run == nil {
		return "", usageError("unknown command " + d.Cmd)
	}
	if c.Cluster == nil && d.Cmd != "cluster" {
		return "", usageError("the first command is cluster")
	}
	args := &call{values: map[string][]string{}, input: d.Input}
	for _, a := range d.CmdArgs {
		if len(a.Vals) == 0 {
			args.words = append(args.words, a.Key)
		} else {
			args.values[a.Key] = a.Vals
		}
	}
	reply, err := run(c, args)
	if err == nil {
		err = args.end()
	}
	if _, wrong := errors.AsType[usageError](err); wrong {
		c.t.Fatalf("%s: %v", d.Pos, err)
	}
	return reply, err
}

// kinds are the errors that scripts show by their own sentence, whatever else stands
// around it, in the order in which they are asked for.
var kinds = []error{
	cluster.ErrOutcomeUnknown, cluster.ErrRemoved, cluster.ErrClock, cluster.ErrNotReady, cluster.ErrRevisionUnknown,
	cluster.ErrRevisionAhead, cluster.ErrInstantAhead, cluster.ErrTooBusy, cluster.ErrDiskFull,
	cluster.ErrShuttingDown, cluster.ErrFailed, cluster.ErrNotLeader,
}

// around is what stands before an error and differs from run to run: the node that was
// asked by another, the directory of one that starts, and what a node was at when its log
// failed, which the log may tell before.
var around = regexp.MustCompile(`^(start the node in [^ ]+: )?(join the cluster: )?(node [^ :]+: )*(store [^:]+ in the log: )?`)

// errorText shows an error so that it is the same in each run.
func (c *console) errorText(err error) string {
	var refusal *engine.Refusal
	switch {
	case errors.As(err, &refusal):
		return fmt.Sprintf("refused: %s: %v\n", refusal.Reason, refusal)
	case errors.Is(err, cluster.ErrMember):
		return fmt.Sprintf("error: %s\n", around.ReplaceAllString(err.Error(), ""))
	}
	for _, kind := range kinds {
		if errors.Is(err, kind) {
			return fmt.Sprintf("error: %v\n", kind)
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "error: the deadline passed\n"
	}
	return fmt.Sprintf("error: %s\n", c.told(err))
}

// figures are what in words about a damaged log differs from run to run.
var figures = regexp.MustCompile(`\b[0-9]+\b`)

// told returns what a node says of an error, but for where a host keeps its data and the
// figures of damage. Of a damaged table it returns which it is: whoever meets the damage
// first has words of his own for it.
func (c *console) told(err error) string {
	err = graph.Damage(err)
	text := around.ReplaceAllString(err.Error(), "")
	for _, h := range c.Hosts() {
		text = strings.ReplaceAll(text, h.dir, h.Name)
	}
	switch {
	case graph.IsCorruptionError(err):
		for word := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ' ' || r == ':' || r == ',' }) {
			if file := filepath.Base(word); c.damaged[file] {
				return "the graph's data is damaged: " + strings.TrimSuffix(word, file) + "N.sst"
			}
		}
	case badgerlog.IsCorruptionError(err):
		return figures.ReplaceAllString(text, "…")
	}
	return text
}

// host returns the host that is named next.
func (c *console) host(args *call) (*Host, error) {
	name := args.next()
	if h := c.Host(name); h != nil {
		return h, nil
	}
	return nil, usageError(fmt.Sprintf("there is no host %q", name))
}

// running returns the host that is named next, whose node must run.
func (c *console) running(args *call) (*Host, error) {
	h, err := c.host(args)
	if err == nil && !h.Running() {
		return nil, usageError(h.Name + " does not run")
	}
	return h, err
}

// hosts returns all that are named.
func (c *console) hosts(args *call) ([]*Host, error) {
	var hosts []*Host
	for len(args.words) > 0 {
		h, err := c.host(args)
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, h)
	}
	if len(hosts) == 0 {
		return nil, usageError("no host is named")
	}
	return hosts, nil
}

// asked returns the host that at= names, else the first that runs.
func (c *console) asked(args *call) (*Host, error) {
	if name := args.value("at"); name != "" {
		return c.running(&call{words: []string{name}})
	}
	for _, h := range c.Hosts() {
		if h.Running() {
			return h, nil
		}
	}
	return nil, usageError("no host runs")
}

// within returns the context of a call: of the duration that a script gives, or
// Deadline.
func within(args *call) (context.Context, context.CancelFunc, error) {
	d, err := args.duration("within", Deadline)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), d)
	return ctx, cancel, nil
}

func names(hosts []*Host) string {
	var list []string
	for _, h := range hosts {
		list = append(list, h.Name)
	}
	return strings.Join(list, ", ")
}

func (c *console) form(args *call) (string, error) {
	if c.Cluster != nil {
		return "", usageError("there is a cluster already")
	}
	nodes, err := args.number("nodes", 1)
	if err != nil {
		return "", err
	}
	patience, err := args.duration("patience", 0)
	if err != nil {
		return "", err
	}
	rate, err := args.number("rate", 0)
	if err != nil {
		return "", err
	}
	wait, err := args.duration("wait", 5*time.Second)
	if err != nil {
		return "", err
	}
	deadline, err := args.duration("deadline", Deadline)
	if err != nil {
		return "", err
	}
	verify, err := args.number("verify", -1)
	if err != nil {
		return "", err
	}
	small, disk := args.flag("small-log"), args.flag("from-disk")
	c.Cluster = New(c.t, patience)
	c.configure = func(config *cluster.Config) {
		config.WaitMax = wait
		config.StateBytesPerSecond = int64(rate)
		config.Log.StoreDeadline, config.VerifyBytesPerSecond = deadline, int64(verify)
		if disk {
			config.Graph.ResidentBytes = -1
		}
		if small {
			config.SnapshotThreshold, config.TrailingLogs, config.SnapshotInterval = 16, 4, time.Millisecond
		}
	}
	hosts := c.Form(nodes, c.configure)
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	defer cancel()
	if _, err := c.make(ctx, hosts[0], "", true, &graph.Mutation{Schema: &graph.WriteSchema{Text: Schema}}); err != nil {
		return "", err
	}
	if nodes == 1 {
		return names(hosts) + " is a voter and ready\n", nil
	}
	return names(hosts) + " are voters and ready\n", nil
}

// placed waits until a host has the place in the cluster that it is to have.
func (c *console) placed(h *Host, replica bool) string {
	c.Wait(h.Name+" has its place", func() bool {
		if h.Node().Ready() != nil {
			return false
		}
		members, err := h.Node().Members(context.Background())
		return err == nil && slices.ContainsFunc(members, func(m cluster.Member) bool {
			return m.ID == h.NodeID && m.RaftAddr == h.Addr && m.Voter == !replica
		})
	})
	if replica {
		return h.Name + " is a replica and ready\n"
	}
	return h.Name + " is a voter and ready\n"
}

// place adds a host that is named next, or returns the one that was stopped, and
// takes in what a script says of it.
func (c *console) place(args *call) (*Host, error) {
	name := args.next()
	if name == "" {
		return nil, usageError("no host is named")
	}
	h := c.Host(name)
	if h == nil {
		h = c.Add(name)
		h.Configure = c.configure
	}
	if id := args.value("id"); id != "" {
		h.NodeID = id
	}
	if addr := args.value("addr"); addr != "" {
		h.Addr = addr + ":7000"
	}
	switch disk := args.value("disk"); disk {
	case "":
	case "full", "nearly-full":
		free, err := freeBytes(c.dir)
		if err != nil {
			return nil, err
		}
		// More than there is; or so much that a node starts, but takes no writes.
		least := free * 2
		if disk == "nearly-full" {
			least = free * 3 / 4
		}
		h.Configure = func(config *cluster.Config) {
			c.configure(config)
			config.Log.FreeBytesMin = least
		}
	case "healthy":
		h.Configure = c.configure
	default:
		return nil, usageError("disk is full, nearly-full or healthy, and not " + disk)
	}
	return h, nil
}

func freeBytes(dir string) (int64, error) {
	var stat syscall.Statfs_t
	if err := syscall.Statfs(dir, &stat); err != nil {
		return 0, fmt.Errorf("look at the free space of %s: %w", dir, err)
	}
	return int64(stat.Bavail) * stat.Bsize, nil
}

func (c *console) join(args *call) (string, error) {
	replica, nowait := args.flag("replica"), args.flag("no-wait")
	h, err := c.place(args)
	if err != nil {
		return "", err
	}
	if err := h.Join(replica); err != nil {
		return "", err
	}
	if nowait {
		return h.Name + " runs\n", nil
	}
	return c.placed(h, replica), nil
}

func (c *console) bootstrap(args *call) (string, error) {
	h, err := c.place(args)
	if err != nil {
		return "", err
	}
	if err := h.Start(); err != nil {
		return "", err
	}
	return h.Name + " is a cluster of its own\n", nil
}

func (c *console) start(args *call) (string, error) {
	if c.Host(slices.Concat(args.words, []string{""})[0]) == nil {
		return "", usageError("start is for hosts that were there; others join")
	}
	var hosts []*Host
	for len(args.words) > 0 {
		h, err := c.place(args)
		if err != nil {
			return "", err
		}
		if err := h.Start(); err != nil {
			return "", err
		}
		hosts = append(hosts, h)
	}
	return names(hosts) + verb(hosts, " runs\n", " run\n"), nil
}

func verb(hosts []*Host, one, several string) string {
	if len(hosts) == 1 {
		return one
	}
	return several
}

func (c *console) stop(args *call) (string, error) {
	removed := args.flag("removed")
	ctx, cancel, err := within(args)
	if err != nil {
		return "", err
	}
	defer cancel()
	hosts, err := c.hosts(args)
	if err != nil {
		return "", err
	}
	var late []*Host
	for _, h := range hosts {
		if removed {
			// It may have found that out, or not yet.
			select {
			case fault := <-h.Fault():
				if !errors.Is(fault, cluster.ErrRemoved) {
					return "", fault
				}
			default:
			}
		}
		if h.stop(ctx) {
			late = append(late, h)
		}
	}
	if len(late) > 0 {
		return names(late) + verb(late, " takes", " take") + " longer\n", nil
	}
	return "", nil
}

func (c *console) crash(args *call) (string, error) {
	hosts, err := c.hosts(args)
	if err != nil {
		return "", err
	}
	for _, h := range hosts {
		h.Crash()
	}
	return "", nil
}

func (c *console) recover(args *call) (string, error) {
	h, err := c.host(args)
	if err != nil {
		return "", err
	}
	recovered, err := h.Recover()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s is a cluster of its own, without %s\n", h.Name, strings.Join(recovered.Lost, ", ")), nil
}

func (c *console) forget(args *call) (string, error) {
	h, err := c.host(args)
	if err != nil {
		return "", err
	}
	if h.Running() {
		return "", usageError(h.Name + " runs")
	}
	h.Forget()
	return "", nil
}

// copyHost makes a host of the data of another that is stopped.
func (c *console) copyHost(args *call) (string, error) {
	from, err := c.host(args)
	if err != nil {
		return "", err
	}
	if from.Running() {
		return "", usageError(from.Name + " runs")
	}
	to := c.Add(args.next())
	to.NodeID, to.Configure = from.NodeID, c.configure
	return "", copyTree(from.dir, to.dir)
}

func (c *console) faultOf(args *call) (string, error) {
	h, err := c.running(args)
	if err != nil {
		return "", err
	}
	select {
	case fault := <-h.Fault():
		h.Stop()
		return fmt.Sprintf("%s stopped: %s\n", h.Name, c.told(fault)), nil
	case <-time.After(Deadline):
		c.t.Fatalf("%s met no fault within %v", h.Name, Deadline)
		return "", nil
	}
}

func (c *console) members(args *call) (string, error) {
	h, err := c.asked(args)
	if err != nil {
		return "", err
	}
	causes, until := args.flag("causes"), args.value("until")
	if err := args.end(); err != nil {
		return "", err
	}
	var reply string
	c.Wait(fmt.Sprintf("the members as %s sees them show %q", h.Name, until), func() bool {
		reply, err = showMembers(h, causes)
		return err != nil || strings.Contains(reply, until)
	})
	return reply, err
}

// showMembers shows the members as a node sees them, a line each.
func showMembers(h *Host, causes bool) (string, error) {
	members, err := h.Node().Members(context.Background())
	var b strings.Builder
	for _, m := range members {
		suffrage := "replica"
		if m.Voter {
			suffrage = "voter"
		}
		fmt.Fprintf(&b, "%s at %s, %s", m.ID, m.RaftAddr, suffrage)
		switch {
		case m.Err != nil && causes:
			fmt.Fprintf(&b, ", does not answer: %s", causeOf(m.Err))
		case m.Err != nil:
			b.WriteString(", does not answer")
		case m.Status.NotReady != "":
			b.WriteString(", not ready")
		}
		b.WriteString("\n")
	}
	return b.String(), err
}

// change changes the members. It tries again where it is not known what became of the
// change, since to ask for one twice is to ask for it once.
func (c *console) change(args *call, change func(ctx context.Context, node *cluster.Node, id string) error) (string, error) {
	h, err := c.asked(args)
	if err != nil {
		return "", err
	}
	ctx, cancel, err := within(args)
	if err != nil {
		return "", err
	}
	defer cancel()
	id, unsure := args.next(), args.flag("unsure")
	if err := args.end(); err != nil {
		return "", err
	}
	tried := false
	for {
		err := change(ctx, h.Node(), id)
		if tried && errors.Is(err, cluster.ErrMember) && strings.Contains(err.Error(), "no node has that id") {
			return "", nil // The try before removed it.
		}
		tried = true
		// What a transfer that took too long came to, the next try finds out.
		switch again := noLeader(err) || err != nil && strings.Contains(err.Error(), "leadership transfer timeout"); {
		case !again && ctx.Err() == nil:
			return "", err
		case ctx.Err() != nil && unsure:
			return "not done\n", nil
		case ctx.Err() != nil:
			return "", err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (c *console) add(args *call) (string, error) {
	addr, empty := args.value("addr"), args.flag("empty")
	return c.change(args, func(ctx context.Context, node *cluster.Node, id string) error {
		at := addr
		if at == "" {
			at = id
		}
		_, err := node.AddMember(ctx, cluster.Joining{ID: id, RaftAddr: at + ":7000", Empty: empty})
		return err
	})
}

func (c *console) remove(args *call) (string, error) {
	force := args.flag("force")
	return c.change(args, func(ctx context.Context, node *cluster.Node, id string) error {
		return node.RemoveMember(ctx, id, force)
	})
}

func (c *console) promote(args *call) (string, error) {
	return c.change(args, func(ctx context.Context, node *cluster.Node, id string) error {
		return node.PromoteMember(ctx, id)
	})
}

func (c *console) transfer(args *call) (string, error) {
	return c.change(args, func(ctx context.Context, node *cluster.Node, id string) error {
		return node.TransferLeadership(ctx, id)
	})
}

func (c *console) lead(args *call) (string, error) {
	h, err := c.running(args)
	if err != nil {
		return "", err
	}
	var followers []*Host
	if !args.flag("alone") {
		for _, other := range c.Hosts() {
			if other.Running() {
				followers = append(followers, other)
			}
		}
	}
	c.Lead(h, followers...)
	return "", nil
}

func (c *console) wait(args *call) (string, error) {
	what := args.next()
	hosts, err := c.hosts(&call{words: args.words})
	args.words = nil
	if err != nil {
		return "", err
	}
	for _, h := range hosts {
		var reached func(cluster.Status) bool
		switch what {
		case "ready":
			reached = func(s cluster.Status) bool { return s.NotReady == "" }
		case "wrong-clock":
			reached = func(s cluster.Status) bool { return errors.Is(h.Node().Ready(), cluster.ErrClock) }
		case "no-leader":
			reached = func(s cluster.Status) bool { return s.LeaderID == "" && s.Role != "leader" }
		case "other-leader":
			// Whom those who are named see, and who is none of those who are not.
			reached = func(s cluster.Status) bool {
				return s.NotReady == "" && slices.ContainsFunc(hosts, func(h *Host) bool { return h.NodeID == s.LeaderID })
			}
		default:
			count, ok := strings.CutPrefix(what, "voters-")
			n, err := strconv.Atoi(count)
			if !ok || err != nil {
				return "", usageError("wait for ready, wrong-clock, no-leader, other-leader or voters-N, and not for " + what)
			}
			reached = func(s cluster.Status) bool { return s.Voters == n && s.NotReady == "" }
		}
		c.Wait(h.Name+": "+what, func() bool {
			s, err := h.Node().Status()
			return err == nil && reached(s)
		})
	}
	return "", nil
}

// link takes the ends of a link out of the arguments.
func (c *console) link(args *call) (from, to []string, err error) {
	h, err := c.host(args)
	if err != nil {
		return nil, nil, err
	}
	to = args.list("to") // They may be added later.
	if len(to) == 0 {
		return nil, nil, usageError("to which host? (to=n2 or to=(n2,n3))")
	}
	return []string{h.Name}, to, nil
}

func (c *console) cut(args *call) (string, error) {
	oneWay := args.flag("one-way")
	froms, tos, err := c.link(args)
	if err != nil {
		return "", err
	}
	for _, from := range froms {
		for _, to := range tos {
			c.Network.Cut(from, to)
			if !oneWay {
				c.Network.Cut(to, from)
			}
		}
	}
	return "", nil
}

func (c *console) isolate(args *call) (string, error) {
	hosts, err := c.hosts(args)
	for _, h := range hosts {
		c.Isolate(h.Name)
	}
	return "", err
}

func (c *console) breakLink(args *call) (string, error) {
	froms, tos, err := c.link(args)
	if err != nil {
		return "", err
	}
	after, err := args.number("after", 0)
	if err != nil {
		return "", err
	}
	for _, from := range froms {
		for _, to := range tos {
			c.Network.Break(from, to, int64(after))
		}
	}
	return "", nil
}

func (c *console) interrupted(args *call) (string, error) {
	times, err := args.number("times", 1)
	if err != nil {
		return "", err
	}
	c.Wait("connections were broken often enough", func() bool { return c.Network.Broken() >= times })
	return "", nil
}

func (c *console) delay(args *call) (string, error) {
	froms, tos, err := c.link(args)
	if err != nil {
		return "", err
	}
	by, err := args.duration("by", 0)
	if err != nil {
		return "", err
	}
	for _, from := range froms {
		for _, to := range tos {
			c.Network.Delay(from, to, by)
			c.Network.Delay(to, from, by)
		}
	}
	return "", nil
}

func (c *console) heal(*call) (string, error) {
	c.Network.Heal()
	return "", nil
}

func (c *console) setClock(args *call) (string, error) {
	by, err := args.duration("by", 0)
	if err != nil {
		return "", err
	}
	if len(args.words) == 0 {
		c.Clock(by)
		return "", nil
	}
	h, err := c.host(args)
	if err != nil {
		return "", err
	}
	h.SetClock(by)
	return "", nil
}

func (c *console) logged(args *call) (string, error) {
	now := args.flag("now")
	h, err := c.host(args)
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(args.input)
	if now {
		if h.Logged(text) {
			return "yes\n", nil
		}
		return "no\n", nil
	}
	c.Wait(h.Name+" logged "+text, func() bool { return h.Logged(text) })
	return "yes\n", nil
}
