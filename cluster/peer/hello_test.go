package peer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

func goodHello() hello {
	return hello{kind: kindRaft, cluster: testCluster, sender: "a", recipient: "b"}
}

// rawHello is a hello of any version with any body.
func rawHello(version byte, body []byte) []byte {
	b := append([]byte(magic), version)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	return append(b, body...)
}

// TestRefusals holds that each reason for a refusal has its code and a sentence
// that names what was given, and that the connection ends after it.
func TestRefusals(t *testing.T) {
	noLeaks(t)
	b := listen(t, "b")
	b.Raft()
	with := func(change func(*hello)) []byte {
		h := goodHello()
		change(&h)
		return h.append(nil)
	}
	body := goodHello().append(nil)[headBytes:]
	for _, c := range []struct {
		name string
		say  []byte
		code Code
		want string
	}{
		{"version", rawHello(2, []byte("of another form")), CodeVersion, "the hello has version 2, and this node speaks version 1"},
		{"version zero, nothing else", rawHello(0, nil), CodeVersion, "the hello has version 0"},
		{"cluster", with(func(h *hello) { h.cluster[3] = 7 }), CodeCluster, "the hello is for cluster c1000007000000000000000000000001, and this node, b, is part of cluster c1000000000000000000000000000001"},
		{"no cluster", with(func(h *hello) { h.cluster = [16]byte{} }), CodeCluster, "the hello is for cluster 00000000000000000000000000000000"},
		{"recipient", with(func(h *hello) { h.recipient = "x" }), CodeRecipient, "the hello is for node x, and this is node b"},
		{"self", with(func(h *hello) { h.sender = "b" }), CodeSelf, "the hello comes from node b, which is this node itself"},
		{"kind", with(func(h *hello) { h.kind = 9 }), CodeKind, "the hello is for kind 9, and this node knows 1 (raft) and 2 (calls)"},
		{"kind zero", with(func(h *hello) { h.kind = 0 }), CodeKind, "kind 0"},
		{"not serving", with(func(h *hello) { h.kind = kindCalls }), CodeNotServing, "node b serves no connections of kind calls at the moment"},
		{"too long", rawHello(1, make([]byte, bodyBytesMax+1))[:headBytes], CodeMalformed, "the hello has 1025 bytes after its beginning, and at most 1024 are allowed"},
		{"too short", rawHello(1, body[:bodyBytesMin-1]), CodeMalformed, "the hello has 20 bytes after its beginning, and at least 21 are needed"},
		{"more after the end", rawHello(1, append(bytes.Clone(body), 'x')), CodeMalformed, "the hello has 1 bytes after its end"},
		{"id cut off", rawHello(1, append(bytes.Clone(body[:17]), 200, 'a', 'b', 'c')), CodeMalformed, "the sender of the hello: the id is cut off"},
		{"empty id", with(func(h *hello) { h.sender, h.recipient = "", "bb" }), CodeMalformed, "the sender of the hello: an id of a node is empty"},
		{"id with a blank", with(func(h *hello) { h.sender = "a a" }), CodeMalformed, `id "a a" of a node holds ' '`},
		{"id with a line end", with(func(h *hello) { h.recipient = "b\n" }), CodeMalformed, `the recipient of the hello: id "b\n" of a node holds '\n'`},
		{"id not UTF-8", with(func(h *hello) { h.sender = "\xff" }), CodeMalformed, "is not UTF-8"},
		{"id too long", with(func(h *hello) { h.sender = strings.Repeat("a", 129) }), CodeMalformed, "has 129 bytes, and 128 are allowed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := b.Totals().Refused
			conn := dialRaw(t, addr(b))
			if _, err := conn.Write(c.say); err != nil {
				t.Fatal(err)
			}
			no, err := readAnswer(conn)
			if err != nil {
				t.Fatal(err)
			}
			if no == nil || no.code != c.code || !strings.Contains(no.sentence, c.want) {
				t.Fatalf("answer %+v; want %s: %s", no, c.code, c.want)
			}
			ends(t, conn)
			if got := b.Totals().Refused; got != before+1 {
				t.Errorf("%d refusals were counted", got-before)
			}
		})
	}
	if got := b.Totals(); got.Accepted != 0 || got.ConnsIn != 0 {
		t.Errorf("after refusals only: %+v", got)
	}
}

// TestNoClusterYet holds that a node without a cluster accepts nothing and dials
// nobody, and does both as soon as it has one.
func TestNoClusterYet(t *testing.T) {
	noLeaks(t)
	var cluster [16]byte
	joined := make(chan struct{})
	id := func() [16]byte {
		select {
		case <-joined:
			return testCluster
		default:
			return cluster
		}
	}
	a := listen(t, "a")
	b := listen(t, "b", func(c *Config) { c.ClusterID = id })
	a.Raft()
	var refused *RefusedError
	if err := vote(a, b, b.Raft()); !errors.As(err, &refused) || refused.Code != CodeNoCluster {
		t.Errorf("to a node without a cluster: %v", err)
	}
	want := "node b at " + addr(b) + " refuses the connection (no cluster): this node, b, is not part of a cluster yet"
	if err := vote(a, b, b.Raft()); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("to a node without a cluster: %v; want %s", err, want)
	}
	if err := vote(b, a, a.Raft()); !errors.Is(err, ErrNoCluster) {
		t.Errorf("from a node without a cluster: %v", err)
	}
	close(joined)
	if err := vote(a, b, b.Raft()); err != nil {
		t.Errorf("to a node that has joined: %v", err)
	}
	if s := a.Stats(); len(s) != 1 || s[0].RefusedOut != 2 {
		t.Errorf("%+v", s)
	}
}

// vote sends a vote from one node to another whose Raft answers it.
func vote(from, to *Transport, answers raft.Transport) error {
	done, answered := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(answered)
		select {
		case rpc := <-answers.Consumer():
			rpc.Respond(&raft.RequestVoteResponse{Granted: true, Term: 7}, nil)
		case <-done:
		}
	}()
	var response raft.RequestVoteResponse
	err := from.Raft().RequestVote(raft.ServerID(to.config.NodeID), raft.ServerAddress(addr(to)), &raft.RequestVoteRequest{Term: 7}, &response)
	close(done)
	<-answered
	if err == nil && !response.Granted {
		return errors.New("the answer is not the one that was given")
	}
	return err
}

// TestNotAHello holds that whoever speaks something else is closed without an
// answer and without harm to others.
func TestNotAHello(t *testing.T) {
	noLeaks(t)
	b := listen(t, "b", func(c *Config) { c.HelloTimeout = 200 * time.Millisecond })
	b.Raft()
	whole := goodHello().append(nil)
	cases := map[string][]byte{
		"silence":              nil,
		"HTTP":                 []byte("GET / HTTP/1.1\r\nHost: here\r\n\r\n"),
		"TLS":                  []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 and more of it"),
		"HTTP/2":               []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
		"half a magic":         []byte(magic[:4]),
		"a beginning":          whole[:headBytes],
		"all but the last":     whole[:len(whole)-1],
		"a magic with mistake": []byte("\xf5pemba\n\n\x01\x00\x15                     "),
	}
	for name, say := range cases {
		t.Run(name, func(t *testing.T) {
			before := b.Totals().Dropped
			conn := dialRaw(t, addr(b))
			if _, err := conn.Write(say); err != nil {
				t.Fatal(err)
			}
			ends(t, conn)
			eventually(t, "the connection is counted as dropped", func() bool { return b.Totals().Dropped == before+1 })
		})
	}
	// One that goes away by itself.
	before := b.Totals().Dropped
	if err := dialRaw(t, addr(b)).Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the connection is counted as dropped", func() bool { return b.Totals().Dropped == before+1 })

	a := listen(t, "a")
	eventually(t, "a peer after all these is accepted", func() bool { return vote(a, b, b.Raft()) == nil })
	accepted := b.Totals().Accepted
	time.Sleep(2 * b.config.HelloTimeout)
	if err := vote(a, b, b.Raft()); err != nil {
		t.Errorf("a connection ends with the time for its hello: %v", err)
	}
	if got := b.Totals().Accepted; got != accepted {
		t.Errorf("%d connections were accepted instead of %d", got, accepted)
	}
}

// TestSomethingElseAnswers holds that a dialer says what it met.
func TestSomethingElseAnswers(t *testing.T) {
	noLeaks(t)
	for name, c := range map[string]struct {
		answer string
		hold   bool
		want   string
	}{
		"HTTP":              {"HTTP/1.1 400 Bad Request\r\n\r\n", false, `something else than a node of Pemba answers, beginning with "HTTP/1.1 400`},
		"a few bytes":       {"SSH", false, `beginning with "SSH"`},
		"nothing":           {"", false, "closed by the other side before the hello was answered"},
		"half an answer":    {magic, false, "closed by the other side before the hello was answered"},
		"silence":           {"", true, "no answer to the hello within"},
		"a sentence to yes": {magic + "\x01\x00\x00\x01x", true, "the answer to the hello has code 0 and a sentence of 1 bytes"},
		"a long sentence":   {magic + "\x01\x05\xff\xff", true, "the answer to the hello has code 5 and a sentence of 65535 bytes"},
		"a foul sentence":   {magic + "\x01\xc8\x00\x05a\x1b[\xffm", true, "(code 200): a\ufffd[\ufffdm"},
	} {
		t.Run(name, func(t *testing.T) {
			a := listen(t, "a", func(config *Config) {
				config.HelloTimeout = patience
				if name == "silence" {
					config.HelloTimeout = 100 * time.Millisecond
				}
			})
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			over := make(chan struct{})
			go func() {
				defer close(over)
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer func() { _ = conn.Close() }()
				if _, _, err := readHello(conn); err != nil {
					t.Error(err)
				}
				if _, err := io.WriteString(conn, c.answer); err != nil {
					t.Error(err)
				}
				if c.hold {
					_, _ = io.Copy(io.Discard, conn)
				}
			}()
			err = a.Raft().RequestVote("b", raft.ServerAddress(l.Addr().String()), &raft.RequestVoteRequest{}, &raft.RequestVoteResponse{})
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "node b at "+l.Addr().String()) {
				t.Errorf("%v\nwant: %s", err, c.want)
			}
			<-over
		})
	}
	t.Run("nobody", func(t *testing.T) {
		a := listen(t, "a")
		err := a.Raft().RequestVote("b", "127.0.0.1:1", &raft.RequestVoteRequest{}, &raft.RequestVoteResponse{})
		if !errors.Is(err, syscall.ECONNREFUSED) || !strings.Contains(err.Error(), "connect to node b at 127.0.0.1:1 (raft): ") {
			t.Error(err)
		}
	})
}

// TestHellosBound holds that a flood of silent connections costs no more than is
// allowed, and does not keep out a peer.
func TestHellosBound(t *testing.T) {
	noLeaks(t)
	b := listen(t, "b", func(c *Config) { c.HellosMax = 4; c.HelloTimeout = patience })
	b.Raft()
	for range 20 {
		dialRaw(t, addr(b))
	}
	eventually(t, "all but four are dropped", func() bool {
		totals := b.Totals()
		return totals.Dropped == 16 && totals.HellosOpen == 4
	})
	a := listen(t, "a")
	if err := vote(a, b, b.Raft()); err != nil {
		t.Errorf("a peer beside a flood: %v", err)
	}
	if totals := b.Totals(); totals.Dropped != 17 || totals.Accepted != 1 {
		t.Errorf("%+v", totals)
	}
}

// TestConnsBound holds that a node with as many connections as it accepts says so,
// and accepts again when one ends.
func TestConnsBound(t *testing.T) {
	noLeaks(t)
	b := listen(t, "b", func(c *Config) { c.ConnsMax = 1 })
	answers := b.Raft()
	a, c := listen(t, "a"), listen(t, "c")
	if err := vote(a, b, answers); err != nil {
		t.Fatal(err)
	}
	err := vote(c, b, answers)
	refused, ok := errors.AsType[*RefusedError](err)
	if !ok || refused.Code != CodeBusy || refused.Peer != "b" || refused.Addr != addr(b) ||
		refused.Message != "node b has 1 connections, as many as it accepts" {
		t.Fatalf("one too many: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "there is room again", func() bool { return vote(c, b, answers) == nil })
}

// TestAcceptErrors holds that a listener that fails is asked again, and not at
// once.
func TestAcceptErrors(t *testing.T) {
	noLeaks(t)
	const failures = 6
	network := &faultyNetwork{err: syscall.EMFILE}
	network.fail.Store(failures)
	start := time.Now()
	b := listen(t, "b", func(c *Config) { c.Network = network })
	a := listen(t, "a")
	if err := vote(a, b, b.Raft()); err != nil {
		t.Fatal(err)
	}
	// 5, 10, 20, 40, 80 and 160 ms.
	if took := time.Since(start); took < 315*time.Millisecond {
		t.Errorf("%d failures of the listener took %s", failures, took)
	}
	if got := b.Totals().AcceptErrors; got != failures {
		t.Errorf("%d failures were counted", got)
	}
	if got := network.calls.Load(); got > failures+3 {
		t.Errorf("the listener was asked %d times", got)
	}
}

// TestConfig holds that a config that cannot work is refused, with a sentence that
// names the field.
func TestConfig(t *testing.T) {
	noLeaks(t)
	for want, change := range map[string]func(*Config){
		"NodeID: an id of a node is empty":                                      func(c *Config) { c.NodeID = "" },
		"NodeID: id \"a b\" of a node holds ' '":                                func(c *Config) { c.NodeID = "a b" },
		"ClusterID is nil":                                                      func(c *Config) { c.ClusterID = nil },
		"Addr is empty":                                                         func(c *Config) { c.Addr = "" },
		"Addr \"7000\" must be host:port":                                       func(c *Config) { c.Addr = "7000" },
		"Addr \":7000\" is not a loopback address, and there is no TLS":         func(c *Config) { c.Addr = ":7000" },
		"Addr \"192.0.2.1:7000\" is not a loopback address, and there is no TL": func(c *Config) { c.Addr = "192.0.2.1:7000" },
		"Timeout is -1":                                                         func(c *Config) { c.Timeout = -1 },
		"RPCBytesMax is -1":                                                     func(c *Config) { c.RPCBytesMax = -1 },
		"ConnsMax is -5":                                                        func(c *Config) { c.ConnsMax = -5 },
		"listen at 127.0.0.1:no-such-port: ":                                    func(c *Config) { c.Addr = "127.0.0.1:no-such-port" },
	} {
		config := Config{NodeID: "a", Addr: "127.0.0.1:0", ClusterID: inCluster}
		change(&config)
		transport, err := Listen(config)
		if err == nil {
			_ = transport.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nwant: %s", err, want)
		}
	}
}

// FuzzHello holds that any bytes are read without harm: what is read as a hello is
// said again with the same bytes, and no more is read than belongs to it.
func FuzzHello(f *testing.F) {
	f.Add(goodHello().append(nil))
	f.Add(hello{kind: kindCalls, cluster: testCluster, sender: strings.Repeat("s", IDBytesMax), recipient: "ß"}.append(nil))
	f.Add(rawHello(2, []byte("of another form")))
	f.Add(rawHello(1, []byte{1}))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		h, no, err := readHello(r)
		if err != nil || no != nil {
			if (h != hello{}) {
				t.Errorf("%+v beside %v, %v", h, no, err)
			}
			if err == nil && (no.code == 0 || no.sentence == "" || len(no.sentence) > sentenceBytes) {
				t.Errorf("refusal %+v", no)
			}
			return
		}
		if again := h.append(nil); !bytes.Equal(again, b[:len(b)-r.Len()]) {
			t.Errorf("%q was read as %+v, which is %q", b, h, again)
		}
		// The judgement has no opinion on form.
		if no := judge(h, h.recipient, h.cluster); no != nil && no.code == CodeMalformed {
			t.Errorf("%+v", no)
		}
	})
}

// FuzzAnswer is the same for answers.
func FuzzAnswer(f *testing.F) {
	f.Add(appendAnswer(nil, nil))
	f.Add(appendAnswer(nil, &refusal{CodeRecipient, "the hello is for node x, and this is node b"}))
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		no, err := readAnswer(bytes.NewReader(b))
		if err != nil {
			return
		}
		again, err := readAnswer(bytes.NewReader(appendAnswer(nil, no)))
		if err != nil || (no == nil) != (again == nil) {
			t.Fatalf("%+v, and again %+v, %v", no, again, err)
		}
		// What cannot be printed is replaced with more bytes than it had.
		if no != nil && len(no.sentence) <= sentenceBytes && *again != *no {
			t.Errorf("%+v, and again %+v", no, again)
		}
	})
}

// TestPlainStaysHere holds that without TLS nothing is sent to another machine,
// whatever a name resolves to.
func TestPlainStaysHere(t *testing.T) {
	for ip, here := range map[string]bool{"127.0.0.1": true, "127.9.9.9": true, "::1": true, "192.0.2.1": false, "2001:db8::1": false, "0.0.0.0": false, "::": false} {
		at := &net.TCPAddr{IP: net.ParseIP(ip), Port: 7000}
		if err := (tcp{plain: true}).check(at); (err == nil) != here {
			t.Errorf("without TLS, at %s: %v", ip, err)
		}
		if err := (tcp{}).check(at); err != nil {
			t.Errorf("with TLS, at %s: %v", ip, err)
		}
		if IsLoopback(ip) != here {
			t.Errorf("%s is loopback: %v", ip, !here)
		}
	}
}

// TestPeersBound holds that counters are kept for so many ids only.
func TestPeersBound(t *testing.T) {
	noLeaks(t)
	a := listen(t, "a")
	for i := range peersMax + 50 {
		a.peer(strings.Repeat("x", 1+i%50)+string(rune('a'+i/50))).seen("h:1", true)
	}
	s := a.Stats()
	if len(s) != peersMax+1 || s[0].ID != "" || s[1].Addr != "h:1" {
		t.Errorf("%d peers", len(s))
	}
	a.Retain(nil)
	if s := a.Stats(); len(s) != 0 {
		t.Errorf("%d peers are left", len(s))
	}
}

// lines is a log in memory.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestLog holds that a refusal is logged with all that an operator needs, and that
// one who comes again and again does not fill the log.
func TestLog(t *testing.T) {
	noLeaks(t)
	var log lines
	b := listen(t, "b", func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	a := listen(t, "a")
	knock := func() {
		t.Helper()
		err := a.Raft().RequestVote("x", raft.ServerAddress(addr(b)), &raft.RequestVoteRequest{}, &raft.RequestVoteResponse{})
		wantError(t, err, "this is node b")
	}
	knock()
	got := log.String()
	for _, want := range []string{"level=WARN", "peer=a", "from=127.0.0.1:", `reason="other recipient"`, `message="the hello is for node x, and this is node b"`} {
		if !strings.Contains(got, want) {
			t.Errorf("%s\nwant: %s", got, want)
		}
	}
	b.mu.Lock()
	b.logged = time.Now().Add(time.Hour) // just now, however slow the test is
	b.mu.Unlock()
	for range 5 {
		knock()
	}
	if again := log.String(); again != got {
		t.Errorf("logged more: %s", again[len(got):])
	}
}
