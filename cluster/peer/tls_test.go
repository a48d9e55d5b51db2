package peer

import (
	"crypto/tls"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/raft"
)

// TestTLS holds that both sides must show a certificate of the authority, the
// listener one for the host that was dialed, and that the dialer's error says what
// was wrong.
func TestTLS(t *testing.T) {
	noLeaks(t)
	ours, theirs := newAuthority(t), newAuthority(t)
	b := listen(t, "b", withTLS(ours.config()))
	answers := b.Raft()

	t.Run("both right", func(t *testing.T) {
		a := listen(t, "a", withTLS(ours.config()))
		if err := vote(a, b, answers); err != nil {
			t.Error(err)
		}
	})
	t.Run("dialer of another authority", func(t *testing.T) {
		config := theirs.config()
		config.RootCAs = ours.pool // believes b
		config.ClientCAs = ours.pool
		a := listen(t, "a", withTLS(config))
		wantError(t, vote(a, b, answers), "connect to node b at "+addr(b)+" (raft): remote error: tls: unknown certificate authority")
	})
	t.Run("listener of another authority", func(t *testing.T) {
		config := ours.config()
		config.RootCAs = theirs.pool
		a := listen(t, "a", withTLS(config))
		wantError(t, vote(a, b, answers), "certificate signed by unknown authority")
	})
	t.Run("listener for another host", func(t *testing.T) {
		elsewhere := &tls.Config{RootCAs: ours.pool, Certificates: []tls.Certificate{ours.sign([]string{"node-c.example"}, net.IPv4(192, 0, 2, 3))}}
		// Whatever the config says.
		elsewhere.InsecureSkipVerify = true
		c := listen(t, "c", withTLS(elsewhere))
		config := ours.config()
		config.InsecureSkipVerify = true
		config.ServerName = "node-c.example"
		a := listen(t, "a", withTLS(config))
		wantError(t, vote(a, c, c.Raft()), "certificate is valid for 192.0.2.3, not 127.0.0.1")
	})
	t.Run("no certificate of the dialer", func(t *testing.T) {
		conn, err := tls.Dial("tcp", addr(b), &tls.Config{RootCAs: ours.pool, NextProtos: []string{protocol}})
		if err != nil {
			t.Fatal(err) // with TLS 1.3 the client learns it after the handshake
		}
		defer func() { _ = conn.Close() }()
		if _, err := conn.Write(goodHello().append(nil)); err != nil {
			t.Fatal(err)
		}
		_, err = readAnswer(conn)
		wantError(t, err, "certificate required")
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		config := ours.config()
		config.MaxVersion = tls.VersionTLS12
		config.NextProtos = []string{protocol}
		conn, err := tls.Dial("tcp", addr(b), config)
		if err == nil {
			_ = conn.Close()
		}
		wantError(t, err, "protocol version not supported")
	})
	t.Run("another protocol", func(t *testing.T) {
		config := ours.config()
		config.NextProtos = []string{"h2"}
		conn, err := tls.Dial("tcp", addr(b), config)
		if err == nil {
			_ = conn.Close()
		}
		wantError(t, err, "no application protocol")
		config.NextProtos = nil
		conn, err = tls.Dial("tcp", addr(b), config)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if _, err := conn.Write(goodHello().append(nil)); err != nil {
			t.Fatal(err)
		}
		ends(t, conn)
	})
	t.Run("dialer without TLS", func(t *testing.T) {
		a := listen(t, "a")
		if err := vote(a, b, answers); err == nil {
			t.Error("a dialer without TLS is let in")
		}
	})
	t.Run("listener without TLS", func(t *testing.T) {
		plain := listen(t, "p")
		a := listen(t, "a", withTLS(ours.config()))
		wantError(t, vote(a, plain, plain.Raft()), "closed by the other side before the hello was answered")
	})
	if totals := b.Totals(); totals.Accepted != 1 || totals.Refused != 0 {
		t.Errorf("%+v", totals)
	}
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v\nwant: %s", err, want)
	}
}

// TestTLSConfig holds that a configuration that would let in others, or nobody, is
// refused before the port is opened.
func TestTLSConfig(t *testing.T) {
	ours := newAuthority(t)
	for want, config := range map[string]*tls.Config{
		"TLS: there is no configuration":             nil,
		"TLS: there is no certificate":               {RootCAs: ours.pool},
		"TLS: RootCAs and ClientCAs are nil; the au": {Certificates: []tls.Certificate{ours.sign([]string{"a"})}},
	} {
		transport, err := Listen(Config{NodeID: "a", Addr: "127.0.0.1:0", ClusterID: inCluster, TLS: func() *tls.Config { return config }})
		if err == nil {
			_ = transport.Close()
		}
		wantError(t, err, want)
	}
	config := ours.config()
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return &tls.Config{}, nil }
	for role, made := range map[string]func() (*tls.Config, error){
		"server": func() (*tls.Config, error) { return serverTLS(config) },
		"client": func() (*tls.Config, error) { return clientTLS(config, "a:1") },
	} {
		c, err := made()
		if err != nil || !c.SessionTicketsDisabled || c.ClientSessionCache != nil || c.GetConfigForClient != nil {
			t.Errorf("%s: %v: tickets or another configuration could let in whom this one does not", role, err)
		}
	}
	for _, addr := range []string{"a", ":1", ""} {
		_, err := clientTLS(config, addr)
		wantError(t, err, "the address must be host:port")
	}
}

// TestTLSReload holds that certificates change between connections, while those
// that are open go on, and that nobody comes back with a ticket of the old
// authority.
func TestTLSReload(t *testing.T) {
	noLeaks(t)
	older, newer := newAuthority(t), newAuthority(t)
	var ofA, ofB atomic.Pointer[tls.Config]
	oldA := older.config()
	oldA.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	ofA.Store(oldA)
	ofB.Store(older.config())
	a := listen(t, "a", func(c *Config) { c.TLS = ofA.Load })
	b := listen(t, "b", func(c *Config) { c.TLS = ofB.Load })
	answers := b.Raft()
	if err := vote(a, b, answers); err != nil {
		t.Fatal(err)
	}
	ofB.Store(newer.config())
	if err := vote(a, b, answers); err != nil {
		t.Errorf("on the open connection: %v", err)
	}
	b.killAll(func(*conn) bool { return true })
	// The first finds the connection dead.
	_ = vote(a, b, answers)
	wantError(t, vote(a, b, answers), "certificate signed by unknown authority")

	// Now a believes both, and shows its old certificate.
	both := oldA.Clone()
	both.RootCAs = newer.pool.Clone()
	both.RootCAs.AddCert(older.cert)
	ofA.Store(both)
	wantError(t, vote(a, b, answers), "unknown certificate authority")

	ofA.Store(newer.config())
	if err := vote(a, b, answers); err != nil {
		t.Errorf("both renewed: %v", err)
	}
	if got := b.Totals().Accepted; got != 2 {
		t.Errorf("%d connections were accepted", got)
	}
}

// TestTLSOverPipes holds that a Network of one's own takes TLS as well, with names
// for addresses, and nothing that is written waits for a buffer.
func TestTLSOverPipes(t *testing.T) {
	noLeaks(t)
	ours := newAuthority(t)
	network := &pipes{}
	node := func(id string) *Transport {
		return listen(t, id, func(c *Config) {
			c.Network, c.Addr = network, id+".example:7000"
			config := &tls.Config{ClientCAs: ours.pool, Certificates: []tls.Certificate{ours.sign([]string{id + ".example"})}}
			c.TLS = func() *tls.Config { return config }
		})
	}
	a, b := node("a"), node("b")
	answers := b.Raft()
	if err := vote(a, b, answers); err != nil {
		t.Fatal(err)
	}
	var response raft.RequestVoteResponse
	err := a.Raft().RequestVote("x", "b.example:7000", &raft.RequestVoteRequest{}, &response)
	wantError(t, err, "the hello is for node x, and this is node b")
}
