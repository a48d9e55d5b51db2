package peer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/raft"
)

// words is a state machine: all that was said, in order.
type words struct {
	mu   sync.Mutex
	said []string
}

func (w *words) Apply(entry *raft.Log) any {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = append(w.said, string(entry.Data))
	return nil
}

func (w *words) Snapshot() (raft.FSMSnapshot, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return spoken(slices.Clone(w.said)), nil
}

func (w *words) Restore(r io.ReadCloser) error {
	defer func() { _ = r.Close() }()
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	return nil
}

func (w *words) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.said)
}

func (w *words) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.said)
}

type spoken []string

func (s spoken) Persist(sink raft.SnapshotSink) error {
	for _, word := range s {
		if _, err := io.WriteString(sink, word+"\n"); err != nil {
			return errors.Join(err, sink.Cancel())
		}
	}
	return sink.Close()
}

func (s spoken) Release() {}

// member is a node with a real Raft.
type member struct {
	t         *testing.T
	id        string
	transport *Transport
	logs      *raft.InmemStore
	snapshots raft.SnapshotStore
	words     *words
	raft      *raft.Raft
	pace      time.Duration // of elections
}

// calm is the pace for tests in which the leader is to stay, however busy the
// machine is.
const calm = 2 * time.Second

func newMember(t *testing.T, id string, change ...func(*Config)) *member {
	t.Helper()
	m := &member{
		t: t, id: id, transport: listen(t, id, change...),
		logs: raft.NewInmemStore(), snapshots: raft.NewInmemSnapshotStore(), words: &words{},
		pace: 400 * time.Millisecond,
	}
	t.Cleanup(func() { m.stop() })
	return m
}

func (m *member) config() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(m.id)
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = m.pace, m.pace, m.pace
	c.CommitTimeout = 5 * time.Millisecond
	c.Logger = hclog.NewNullLogger()
	return c
}

func (m *member) start() {
	m.t.Helper()
	var err error
	m.raft, err = raft.NewRaft(m.config(), m.words, m.logs, m.logs, m.snapshots, m.transport.Raft())
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *member) stop() {
	if m.raft == nil {
		return
	}
	if err := m.raft.Shutdown().Error(); err != nil {
		m.t.Error(err)
	}
	m.raft = nil
}

func (m *member) server() raft.Server {
	return raft.Server{ID: raft.ServerID(m.id), Address: raft.ServerAddress(addr(m.transport))}
}

// cluster starts members as one cluster of voters.
func cluster(t *testing.T, members ...*member) {
	t.Helper()
	var servers []raft.Server
	for _, m := range members {
		servers = append(servers, m.server())
	}
	for _, m := range members {
		err := raft.BootstrapCluster(m.config(), m.logs, m.logs, m.snapshots, m.transport.Raft(), raft.Configuration{Servers: servers})
		if err != nil {
			t.Fatal(err)
		}
		m.start()
	}
}

// leader waits for one of the members to lead.
func leader(t *testing.T, members ...*member) *member {
	t.Helper()
	var found *member
	eventually(t, "a leader", func() bool {
		for _, m := range members {
			if m.raft != nil && m.raft.State() == raft.Leader {
				found = m
				return true
			}
		}
		return false
	})
	return found
}

// say has the cluster agree on a word, whoever leads it. It may be said more than
// once.
func say(t *testing.T, word string, members ...*member) {
	t.Helper()
	eventually(t, "the cluster agrees on "+word, func() bool {
		return leader(t, members...).raft.Apply([]byte(word), patience).Error() == nil
	})
}

func heard(word string) func(*member) bool {
	return func(m *member) bool { return slices.Contains(m.words.all(), word) }
}

func all(members []*member, is func(*member) bool) func() bool {
	return func() bool {
		for _, m := range members {
			if !is(m) {
				return false
			}
		}
		return true
	}
}

// TestThreeNodes holds that three Rafts elect and replicate over Transports, go on
// when connections are cut and when the leader stops, and that one of them starts
// again on the same port.
func TestThreeNodes(t *testing.T) {
	noLeaks(t)
	ours := newAuthority(t)
	var members []*member
	for _, id := range []string{"a", "b", "c"} {
		members = append(members, newMember(t, id, withTLS(ours.config())))
	}
	cluster(t, members...)
	say(t, "one", members...)
	eventually(t, "all hear one", all(members, heard("one")))

	for _, m := range members {
		m.transport.killAll(func(*conn) bool { return true })
	}
	say(t, "two", members...)
	eventually(t, "all hear two", all(members, heard("two")))

	stopped := leader(t, members...)
	stopped.stop()
	others := slices.DeleteFunc(slices.Clone(members), func(m *member) bool { return m == stopped })
	say(t, "three", others...)
	eventually(t, "the others hear three", all(others, heard("three")))

	// A peer sees that it serves no Raft, while the port is open.
	err := others[0].transport.Raft().RequestVote(stopped.server().ID, stopped.server().Address, &raft.RequestVoteRequest{}, &raft.RequestVoteResponse{})
	if refused, ok := errors.AsType[*RefusedError](err); !ok || refused.Code != CodeNotServing {
		// The first finds the connection dead.
		err = others[0].transport.Raft().RequestVote(stopped.server().ID, stopped.server().Address, &raft.RequestVoteRequest{}, &raft.RequestVoteResponse{})
		if refused, ok := errors.AsType[*RefusedError](err); !ok || refused.Code != CodeNotServing {
			t.Errorf("a vote for a node whose Raft is stopped: %v", err)
		}
	}

	before := stopped.transport.Addr().String()
	stopped.start()
	say(t, "four", members...)
	eventually(t, "all hear four", all(members, heard("four")))
	if now := stopped.transport.Addr().String(); now != before {
		t.Errorf("the port moved from %s to %s", before, now)
	}

	l := leader(t, members...)
	eventually(t, "the leader's heartbeats are answered", func() bool {
		for _, s := range l.transport.Stats() {
			if s.HeartbeatRoundTrip == 0 {
				return false
			}
		}
		return true
	})
	for _, s := range l.transport.Stats() {
		appends, beats := s.RPCs[AppendEntries], s.RPCs[Heartbeat]
		if appends.Sent == 0 || beats.Sent == 0 || beats.Failed > beats.Sent || s.HeartbeatRoundTrip <= 0 || s.LastSuccess.IsZero() ||
			s.Raft.BytesSent == 0 || s.Raft.BytesReceived == 0 || s.Raft.ConnsOut == 0 || s.Calls != (Traffic{}) || s.Addr == "" {
			t.Errorf("of leader %s: %+v", l.id, s)
		}
	}
	if s := l.transport.Stats(); len(s) != 2 {
		t.Errorf("the leader has counters of %d peers", len(s))
	}
}

// TestRestartManyTimes holds that a Raft that was shut down is gone: its successor
// on the same Transport has the port to itself.
func TestRestartManyTimes(t *testing.T) {
	noLeaks(t)
	a, b, c := newMember(t, "a"), newMember(t, "b"), newMember(t, "c")
	members := []*member{a, b, c}
	cluster(t, members...)
	for i := range 5 {
		old := b.transport.Raft()
		if again := b.transport.Raft(); again != old {
			t.Fatal("an open transport of Raft is not the only one")
		}
		b.stop()
		if err := old.RequestVote("a", raft.ServerAddress(addr(a.transport)), &raft.RequestVoteRequest{}, &raft.RequestVoteResponse{}); !errors.Is(err, raft.ErrTransportShutdown) {
			t.Errorf("a vote through a closed transport: %v", err)
		}
		b.transport.mu.Lock()
		for c := range b.transport.conns {
			t.Errorf("a connection of the closed Raft is left: %+v", c.remote)
		}
		b.transport.mu.Unlock()
		b.start()
		if b.transport.Raft() == old {
			t.Fatal("a closed transport of Raft is given again")
		}
		word := fmt.Sprint("word ", i)
		say(t, word, members...)
		eventually(t, "all hear "+word, all(members, heard(word)))
	}
}

// TestSnapshot holds that a snapshot reaches a follower that the log has left
// behind.
func TestSnapshot(t *testing.T) {
	noLeaks(t)
	a, b := newMember(t, "a"), newMember(t, "b")
	a.pace, b.pace = calm, calm
	cluster(t, a)
	for i := range 10 {
		say(t, fmt.Sprint("word ", i), a)
	}
	config := a.raft.ReloadableConfig()
	config.TrailingLogs = 0
	if err := a.raft.ReloadConfig(config); err != nil {
		t.Fatal(err)
	}
	if err := a.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	b.start()
	if err := a.raft.AddVoter(b.server().ID, b.server().Address, 0, patience).Error(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "b has all", func() bool { return slices.Equal(a.words.all(), b.words.all()) })
	if got := a.transport.Stats()[0].RPCs[InstallSnapshot]; got.Sent == 0 {
		t.Errorf("%+v", got)
	}
}

// TestLeadershipTransfer holds that TimeoutNow and pre-votes pass.
func TestLeadershipTransfer(t *testing.T) {
	noLeaks(t)
	a, b := newMember(t, "a"), newMember(t, "b")
	a.pace, b.pace = calm, calm
	cluster(t, a, b)
	from, to := leader(t, a, b), b
	if from == b {
		to = a
	}
	say(t, "one", a, b)
	eventually(t, "leadership is transferred", func() bool {
		_ = from.raft.LeadershipTransferToServer(to.server().ID, to.server().Address).Error()
		return to.raft.State() == raft.Leader
	})
	votes := func(m *member, rpc RPC) uint64 { return m.transport.Stats()[0].RPCs[rpc].Sent }
	if votes(from, TimeoutNow) == 0 || votes(from, RequestPreVote) == 0 || votes(from, RequestVote) == 0 || votes(to, RequestVote) == 0 {
		t.Errorf("%+v\n%+v", from.transport.Stats(), to.transport.Stats())
	}
}

// TestAddressReuse holds that a node on the old address of another gets nothing
// that is meant for that one: neither on a new connection nor on a kept one.
func TestAddressReuse(t *testing.T) {
	noLeaks(t)
	z := listen(t, "z")
	x := listen(t, "x")
	at := raft.ServerAddress(addr(x))
	if err := vote(z, x, x.Raft()); err != nil {
		t.Fatal(err)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	y := listen(t, "y", func(c *Config) { c.Addr = string(at) })
	over := make(chan struct{})
	var got sync.WaitGroup
	var reached atomic.Int64
	y.Raft().SetHeartbeatHandler(func(raft.RPC) { reached.Add(1) })
	got.Go(func() {
		for {
			select {
			case rpc := <-y.Raft().Consumer():
				reached.Add(1)
				rpc.Respond(&raft.RequestVoteResponse{Granted: true}, nil)
			case <-over:
				return
			}
		}
	})
	for i, rpc := range []func() error{
		// The first finds the connection to x, and x is gone.
		func() error {
			return z.Raft().RequestVote("x", at, &raft.RequestVoteRequest{}, &raft.RequestVoteResponse{})
		},
		func() error {
			return z.Raft().RequestVote("x", at, &raft.RequestVoteRequest{}, &raft.RequestVoteResponse{})
		},
		func() error {
			return z.Raft().(raft.WithPreVote).RequestPreVote("x", at, &raft.RequestPreVoteRequest{}, &raft.RequestPreVoteResponse{})
		},
		func() error {
			return z.Raft().AppendEntries("x", at, &raft.AppendEntriesRequest{Term: 1, RPCHeader: from("z")}, &raft.AppendEntriesResponse{})
		},
		func() error {
			return z.Raft().AppendEntries("x", at, &raft.AppendEntriesRequest{Term: 1, PrevLogEntry: 1, PrevLogTerm: 1}, &raft.AppendEntriesResponse{})
		},
		func() error {
			return z.Raft().TimeoutNow("x", at, &raft.TimeoutNowRequest{}, &raft.TimeoutNowResponse{})
		},
		func() error {
			return z.Raft().InstallSnapshot("x", at, &raft.InstallSnapshotRequest{Size: 1}, &raft.InstallSnapshotResponse{}, strings.NewReader("1"))
		},
	} {
		err := rpc()
		refused, ok := errors.AsType[*RefusedError](err)
		if i == 0 {
			if err == nil {
				t.Error("x answers after its end")
			}
			continue
		}
		if !ok || refused.Code != CodeRecipient || refused.Peer != "x" || refused.Addr != string(at) ||
			refused.Message != "the hello is for node x, and this is node y" {
			t.Errorf("RPC %d: %v", i, err)
		}
	}
	// Who means y reaches it.
	if err := z.Raft().RequestVote("y", at, &raft.RequestVoteRequest{}, &raft.RequestVoteResponse{}); err != nil {
		t.Error(err)
	}
	close(over)
	got.Wait()
	if n := reached.Load(); n != 1 {
		t.Errorf("%d RPCs reached y, and one was meant for it", n)
	}
	// And y itself cannot mistake its own address for x.
	err := y.Raft().RequestVote("x", at, &raft.RequestVoteRequest{}, &raft.RequestVoteResponse{})
	if refused, ok := errors.AsType[*RefusedError](err); !ok || refused.Code != CodeRecipient {
		t.Errorf("y to x at its own address: %v", err)
	}
	wantError(t, y.Raft().RequestVote("y", at, &raft.RequestVoteRequest{}, &raft.RequestVoteResponse{}), "node y would speak to itself")
	wantError(t, y.Raft().RequestVote("x", "evil@"+at, &raft.RequestVoteRequest{}, &raft.RequestVoteResponse{}), "must be host:port")
}

// TestHeartbeats holds that heartbeats do not wait for Raft's main loop, and that
// the end of a Raft waits for them.
func TestHeartbeats(t *testing.T) {
	noLeaks(t)
	a, b := listen(t, "a"), listen(t, "b")
	at := raft.ServerAddress(addr(b))
	handled, release := make(chan struct{}), make(chan struct{})
	rafts := b.Raft()
	rafts.SetHeartbeatHandler(func(rpc raft.RPC) {
		if rpc.Command.(*raft.AppendEntriesRequest).Term == 2 {
			close(handled)
			<-release
		}
		rpc.Respond(&raft.AppendEntriesResponse{Success: true}, nil)
	})
	// Nobody reads the Consumer.
	var response raft.AppendEntriesResponse
	if err := a.Raft().AppendEntries("b", at, &raft.AppendEntriesRequest{Term: 1, RPCHeader: from("a")}, &response); err != nil || !response.Success {
		t.Fatal(err, response)
	}
	s := a.Stats()[0]
	if s.RPCs[Heartbeat] != (RPCStats{Sent: 1}) || s.RPCs[AppendEntries] != (RPCStats{}) || s.HeartbeatRoundTrip <= 0 {
		t.Errorf("%+v", s)
	}

	answered := make(chan error, 1)
	go func() {
		answered <- a.Raft().AppendEntries("b", at, &raft.AppendEntriesRequest{Term: 2, RPCHeader: from("a")}, &raft.AppendEntriesResponse{})
	}()
	<-handled
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		if err := rafts.(raft.WithClose).Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := <-answered; err == nil { // Close has closed the connection
		t.Error("a heartbeat was answered by a closed transport")
	}
	select {
	case <-closed:
		t.Error("Raft's transport is closed while a heartbeat is handled")
	case <-time.After(100 * time.Millisecond): // longer finds no more
	}
	close(release)
	<-closed
	// One that had been read, but not handled yet.
	rafts.(*raftTransport).untilClosed(func(raft.RPC) { t.Error("a heartbeat reaches a Raft that is gone") })(raft.RPC{})
}

// TestHeartbeatDeadline holds that a heartbeat gives up earlier than other RPCs.
func TestHeartbeatDeadline(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		most time.Duration
		set  time.Time
		want time.Duration
	}{
		{0, now.Add(time.Hour), time.Hour},
		{heartbeatTimeout, now.Add(time.Hour), heartbeatTimeout},
		{heartbeatTimeout, now.Add(time.Millisecond), time.Millisecond},
	} {
		probe := &deadlineProbe{}
		if err := (&conn{Conn: probe, deadlineMax: c.most}).SetDeadline(c.set); err != nil {
			t.Fatal(err)
		}
		if got := probe.at.Sub(now); got < c.want || got > c.want+time.Minute {
			t.Errorf("at most %s: a deadline in %s, want %s", c.most, got, c.want)
		}
	}
	for rpc := range RPC(RPCTypes) {
		for _, to := range []target{{"a", "h:1"}, {"a/b@c", "[fe80::1%eth0]:7000"}} {
			got, heartbeats, err := decodeTarget(encodeTarget(rpc, to))
			if err != nil || got != to || heartbeats != (rpc == Heartbeat) {
				t.Errorf("%s to %+v: %+v, %v, %v", rpc, to, got, heartbeats, err)
			}
		}
	}
}

// from is how Raft says who asks.
func from(addr string) raft.RPCHeader { return raft.RPCHeader{Addr: []byte(addr)} }

type deadlineProbe struct {
	conn
	at time.Time
}

func (p *deadlineProbe) SetDeadline(t time.Time) error { p.at = t; return nil }

// TestCut holds what is left of a request.
func TestCut(t *testing.T) {
	entries := func(sizes ...int) []*raft.Log {
		var e []*raft.Log
		for i, size := range sizes {
			e = append(e, &raft.Log{Index: uint64(11 + i), Data: make([]byte, size/2), Extensions: make([]byte, size-size/2)})
		}
		return e
	}
	for _, c := range []struct {
		name           string
		sizes          []int
		commit         uint64
		left           int
		commitExpected uint64
	}{
		{"all fit", []int{100, 100, 100}, 5, 3, 5},
		{"exactly", []int{872, 872, 872, 872}, 5, 4, 5},
		{"one byte too many", []int{872, 872, 872, 873}, 20, 3, 13},
		{"the first is too large", []int{9000, 1}, 12, 1, 11},
		{"the second is too large", []int{1, 9000, 1}, 3, 1, 3},
		{"only one", []int{9000}, 30, 1, 11},
		{"none", nil, 30, 0, 10},
		{"none, committed before", nil, 9, 0, 9},
	} {
		request := &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 10, PrevLogTerm: 2, Entries: entries(c.sizes...), LeaderCommitIndex: c.commit}
		whole := request.Entries
		cut(request, 4000)
		if len(request.Entries) != c.left || request.LeaderCommitIndex != c.commitExpected {
			t.Errorf("%s: %d entries, commit %d", c.name, len(request.Entries), request.LeaderCommitIndex)
		}
		for i, e := range request.Entries {
			if e.Index != uint64(11+i) || len(e.Data)+len(e.Extensions) != c.sizes[i] {
				t.Errorf("%s: entry %d is %+v", c.name, i, e)
			}
		}
		for _, e := range whole[len(request.Entries):] {
			if e != nil {
				t.Errorf("%s: an entry that was cut off is held", c.name)
			}
		}
	}
	first := &raft.AppendEntriesRequest{Term: 3, RPCHeader: from("a"), LeaderCommitIndex: 4}
	if cut(first, 4000); isHeartbeat(first) {
		t.Error("a request became a heartbeat")
	}
}

// TestEntryBytes holds that entries take no more on the wire than they are
// reckoned with.
func TestEntryBytes(t *testing.T) {
	entry := &raft.Log{
		Index: 1<<64 - 1, Term: 1<<64 - 1, Type: 255, AppendedAt: time.Now(),
		Data: make([]byte, 1<<17), Extensions: make([]byte, 1<<17),
	}
	var b bytes.Buffer
	handle := &codec.MsgpackHandle{}
	handle.TimeNotBuiltin = true // as NetworkTransport has it
	if err := codec.NewEncoder(&b, handle).Encode(entry); err != nil {
		t.Fatal(err)
	}
	if got := b.Len() - len(entry.Data) - len(entry.Extensions); got > entryBytes {
		t.Errorf("an entry takes %d bytes besides its data", got)
	} else {
		t.Logf("an entry takes %d bytes besides its data", got)
	}
}

// TestBytesOfRequests holds, with two real Rafts, that requests have at most as many
// bytes as allowed, that what was cut off comes with the next ones, each entry once,
// and that Raft never takes an entry as replicated that was not sent.
func TestBytesOfRequests(t *testing.T) {
	noLeaks(t)
	const entryMax, bytesMax = 40_000, 100_000
	var held atomic.Bool  // appends to b are held back
	var check atomic.Bool // both are voters: nothing is committed that b has not
	var a, b *member
	a = newMember(t, "a", func(c *Config) {
		c.RPCBytesMax = bytesMax
		c.Intercept = func(rpc RPC, _, _ string, send func() error) error {
			if rpc == AppendEntries && held.Load() {
				return errors.New("held back by a test")
			}
			if check.Load() {
				commit := a.raft.CommitIndex()
				if last, err := b.logs.LastIndex(); err != nil || commit > last {
					t.Errorf("the leader has committed %d, and its only follower has %d (%v)", commit, last, err)
				}
			}
			return send()
		}
	})
	b = newMember(t, "b")
	a.pace, b.pace = calm, calm
	cluster(t, a)
	say(t, "one", a)

	// What b stores is what came.
	var mu sync.Mutex
	var requests int
	seen := map[uint64]int{} // how often an entry came, by index
	store := &observedStore{InmemStore: b.logs, stored: func(logs []*raft.Log) {
		mu.Lock()
		defer mu.Unlock()
		requests++
		size := 0
		for _, l := range logs {
			size += len(l.Data)
			seen[l.Index]++
		}
		if len(logs) > 1 && size > bytesMax {
			t.Errorf("a request has %d entries with %d bytes", len(logs), size)
		}
	}}
	var err error
	b.raft, err = raft.NewRaft(b.config(), b.words, store, store, b.snapshots, b.transport.Raft())
	if err != nil {
		t.Fatal(err)
	}
	if err := a.raft.AddVoter(b.server().ID, b.server().Address, 0, patience).Error(); err != nil {
		t.Fatal(err)
	}
	// A single voter commits by itself the entry that makes it one of two.
	eventually(t, "b has what a has", func() bool {
		last, err := b.logs.LastIndex()
		return err == nil && last == a.raft.LastIndex()
	})
	check.Store(true)
	held.Store(true)
	want := []string{"one"}
	var futures []raft.ApplyFuture
	for i := range 60 {
		size := entryMax
		if i%10 == 9 {
			size = 3 * bytesMax // alone too large
		}
		word := fmt.Sprint(i) + strings.Repeat("x", size)
		want = append(want, word)
		futures = append(futures, a.raft.Apply([]byte(word), patience))
	}
	// All of them are to wait for b together.
	eventually(t, "the leader has all", func() bool { return a.raft.LastIndex() >= 60+3 })
	held.Store(false)
	for _, f := range futures {
		if err := f.Error(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "b has all", func() bool { return b.words.count() >= len(want) })
	if !slices.Equal(b.words.all(), want) {
		t.Error("b has something else than a")
	}
	mu.Lock()
	defer mu.Unlock()
	// 54 entries of 40 kB, two at a time at most, and 6 alone.
	if requests < 54/2+6 {
		t.Errorf("all entries came in %d requests", requests)
	}
	for index, n := range seen {
		if n != 1 {
			t.Errorf("entry %d came %d times", index, n)
		}
	}
}

// observedStore shows what is stored.
type observedStore struct {
	*raft.InmemStore
	stored func([]*raft.Log)
}

func (s *observedStore) StoreLogs(logs []*raft.Log) error {
	s.stored(logs)
	return s.InmemStore.StoreLogs(logs)
}

// TestIntercept holds that a cluster lives with RPCs that are dropped, late and
// repeated, and that the seam sees each with its peer.
func TestIntercept(t *testing.T) {
	noLeaks(t)
	errDropped := errors.New("dropped by a test")
	var n atomic.Uint64
	intercept := func(rpc RPC, id, addr string, send func() error) error {
		if id == "" || addr == "" {
			t.Errorf("%s to %q at %q", rpc, id, addr)
		}
		switch n.Add(1) % 7 {
		case 1:
			return errDropped
		case 3:
			time.Sleep(time.Millisecond)
		case 5:
			if err := send(); err != nil {
				return err
			}
		}
		return send()
	}
	var members []*member
	for _, id := range []string{"a", "b", "c"} {
		members = append(members, newMember(t, id, func(c *Config) { c.Intercept = intercept }))
	}
	cluster(t, members...)
	for i := range 20 {
		say(t, fmt.Sprint("word ", i), members...)
	}
	eventually(t, "all hear the last", all(members, heard("word 19")))
	if n.Load() < 20 {
		t.Errorf("%d RPCs were seen", n.Load())
	}
}

// TestRetain holds that the connections to those who left are closed and their
// counters dropped, and that others are left alone.
func TestRetain(t *testing.T) {
	noLeaks(t)
	a, b, c := listen(t, "a"), listen(t, "b"), listen(t, "c")
	if err := vote(a, b, b.Raft()); err != nil {
		t.Fatal(err)
	}
	if err := vote(a, c, c.Raft()); err != nil {
		t.Fatal(err)
	}
	a.Retain(map[string]string{"a": addr(a), "b": addr(b)})
	s := a.Stats()
	if len(s) != 1 || s[0].ID != "b" || s[0].Raft.ConnsOut != 1 || s[0].RPCs[RequestVote].Sent != 1 {
		t.Errorf("%+v", s)
	}
	eventually(t, "c has lost a", func() bool { return c.Totals().ConnsIn == 0 })
	if b.Totals().ConnsIn != 1 {
		t.Error("b has lost a")
	}
	a.Retain(map[string]string{"b": "elsewhere:1"})
	eventually(t, "b has lost a", func() bool { return b.Totals().ConnsIn == 0 })
	if s := a.Stats(); len(s) != 1 || s[0].Raft.ConnsOut != 0 {
		t.Errorf("%+v", s)
	}
}

// TestAdvertise holds that Raft tells others the address at which they reach this
// node.
func TestAdvertise(t *testing.T) {
	noLeaks(t)
	a := listen(t, "a", func(c *Config) { c.Advertise = "a.example:7000" })
	if got := a.Raft().LocalAddr(); got != "a.example:7000" {
		t.Error(got)
	}
	if got := a.Raft().DecodePeer(a.Raft().EncodePeer("b", "b.example:7000")); got != "b.example:7000" {
		t.Error(got)
	}
	if b := listen(t, "b"); string(b.Raft().LocalAddr()) != addr(b) {
		t.Error(b.Raft().LocalAddr())
	}
}

// TestClosed holds that nothing works after Close, and nothing panics.
func TestClosed(t *testing.T) {
	noLeaks(t)
	a, b := listen(t, "a"), listen(t, "b")
	for range 2 {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
	err := a.Raft().RequestVote("b", raft.ServerAddress(addr(b)), &raft.RequestVoteRequest{}, &raft.RequestVoteResponse{})
	if !errors.Is(err, raft.ErrTransportShutdown) {
		t.Error(err)
	}
	if _, err := a.Calls().Accept(); err == nil {
		t.Error("a call is accepted")
	}
	if _, err := a.Conn("b", addr(b)); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	a.Retain(nil)
	a.Stats()
	if s := a.Totals(); s.ConnsIn != 0 || s.HellosOpen != 0 {
		t.Errorf("%+v", s)
	}
}
