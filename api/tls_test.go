package api

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
	"google.golang.org/grpc/status"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

// An authority signs certificates of tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// issue makes a certificate with its key for 127.0.0.1, as PEM.
func (a *authority) issue(t testing.TB, serial int64) (cert, key []byte) {
	t.Helper()
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "pemba"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &own.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// pool returns the authorities as a client trusts them.
func pool(authorities ...*authority) *x509.CertPool {
	p := x509.NewCertPool()
	for _, a := range authorities {
		p.AddCert(a.cert)
	}
	return p
}

func writeFile(t testing.TB, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A tlsSetup is a server's identity in files.
type tlsSetup struct {
	dir string
	ca  *authority
}

func newTLSSetup(t testing.TB) *tlsSetup {
	s := &tlsSetup{dir: t.TempDir(), ca: newAuthority(t, "first")}
	s.issue(t, 1)
	writeFile(t, s.file("ca.pem"), s.ca.pem)
	return s
}

func (s *tlsSetup) file(name string) string { return filepath.Join(s.dir, name) }

func (s *tlsSetup) issue(t testing.TB, serial int64) {
	cert, key := s.ca.issue(t, serial)
	writeFile(t, s.file("cert.pem"), cert)
	writeFile(t, s.file("key.pem"), key)
}

func (s *tlsSetup) config() Config {
	return Config{TLSCert: s.file("cert.pem"), TLSKey: s.file("key.pem")}
}

// serials asks both addresses which certificate they show.
func serials(t testing.TB, s *Server, config *tls.Config) (grpcSerial, httpSerial int64) {
	t.Helper()
	ask := func(addr net.Addr, protocol string) int64 {
		config := config.Clone()
		config.NextProtos = []string{protocol}
		conn, err := tls.Dial("tcp", addr.String(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }() // Nothing was said on it.
		state := conn.ConnectionState()
		if state.NegotiatedProtocol != protocol {
			t.Errorf("%s speaks %q", addr, state.NegotiatedProtocol)
		}
		return state.PeerCertificates[0].SerialNumber.Int64()
	}
	return ask(s.GRPCAddr(), "h2"), ask(s.HTTPAddr(), "http/1.1")
}

// eventually waits for something that happens in the background.
func eventually(t testing.TB, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !happened(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it did not happen: %s", what)
		}
	}
}

// load asks over gRPC and HTTP without a pause until stop is called, which
// returns how many calls there were of each, and fails the test with those that
// were not answered.
type load struct {
	stopped    atomic.Bool
	wait       sync.WaitGroup
	grpc, http atomic.Int64
	answered   []*atomic.Int64 // By each caller.
}

// turnOver waits until every call is over that is under way now.
func (l *load) turnOver(t testing.TB) {
	t.Helper()
	before := make([]int64, len(l.answered))
	for i, n := range l.answered {
		before[i] = n.Load()
	}
	eventually(t, "the calls under way are answered", func() bool {
		for i, n := range l.answered {
			if n.Load() == before[i] {
				return false
			}
		}
		return true
	})
}

func (l *load) stop() {
	l.stopped.Store(true)
	l.wait.Wait()
}

// startLoad has callers of both kinds; fresh makes a connection for each call
// where it is set, else all share one.
func startLoad(t testing.TB, fresh bool, key func() string, dialGRPC func() *grpc.ClientConn, client func() *http.Client, url string) *load {
	l := &load{}
	run := func(call func() error) {
		answered := new(atomic.Int64)
		l.answered = append(l.answered, answered)
		l.wait.Go(func() {
			for !l.stopped.Load() {
				if err := call(); err != nil {
					t.Error(err)
					return
				}
				answered.Add(1)
			}
		})
	}
	shared := dialGRPC()
	t.Cleanup(func() { _ = shared.Close() }) // The servers end first.
	sharedClient := client()
	for range 2 {
		run(func() error {
			conn := shared
			if fresh {
				conn = dialGRPC()
				defer func() { _ = conn.Close() }() // It has done its duty.
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+key())
			l.grpc.Add(1)
			_, err := pembav1.NewTupleServiceClient(conn).CountTuples(ctx, &pembav1.CountTuplesRequest{})
			if status.Code(err) == codes.FailedPrecondition {
				err = nil // There is no schema: that is an answer.
			}
			return err
		})
		run(func() error {
			client := sharedClient
			if fresh {
				client.CloseIdleConnections()
			}
			r, err := http.NewRequest("POST", url, strings.NewReader("{}"))
			if err != nil {
				return err
			}
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("Authorization", "Bearer "+key())
			l.http.Add(1)
			response, err := client.Do(r)
			if err != nil {
				return err
			}
			body, err := io.ReadAll(response.Body)
			if response.StatusCode != 200 && !strings.Contains(string(body), "NO_SCHEMA") {
				return fmt.Errorf("%d %s", response.StatusCode, body)
			}
			if err != nil {
				return err
			}
			return response.Body.Close()
		})
	}
	return l
}

// TestTLSReload: a new certificate is in force for new connections without a
// failed call; a broken one changes nothing and is logged.
func TestTLSReload(t *testing.T) {
	setup := newTLSSetup(t)
	var log lockedBuffer
	config := setup.config()
	config.Keys, config.Logger = []string{"k"}, slog.New(slog.NewTextHandler(&log, nil))
	s := testServer(t, config)
	trust := &tls.Config{RootCAs: pool(setup.ca)}
	if g, h := serials(t, s, trust); g != 1 || h != 1 {
		t.Fatalf("certificates %d and %d at first", g, h)
	}
	l := startLoad(t, true, func() string { return "k" }, func() *grpc.ClientConn {
		conn, err := grpc.NewClient("passthrough:///"+s.GRPCAddr().String(), grpc.WithTransportCredentials(credentials.NewTLS(trust.Clone())))
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}, func() *http.Client {
		return &http.Client{Transport: &http.Transport{TLSClientConfig: trust.Clone(), ForceAttemptHTTP2: true}}
	}, "https://"+s.HTTPAddr().String()+"/pemba/v1/count-tuples")
	defer l.stop()
	// A certificate without its key is broken; the old pair stays.
	cert, key := setup.ca.issue(t, 2)
	writeFile(t, setup.file("cert.pem"), cert)
	eventually(t, "the broken pair is noticed", func() bool { return strings.Contains(log.String(), "stays in force") })
	if g, h := serials(t, s, trust); g != 1 || h != 1 {
		t.Errorf("certificates %d and %d with a broken pair", g, h)
	}
	writeFile(t, setup.file("key.pem"), key)
	eventually(t, "the new certificate is shown", func() bool {
		g, h := serials(t, s, trust)
		return g == 2 && h == 2
	})
	l.stop()
	if l.grpc.Load() == 0 || l.http.Load() == 0 {
		t.Error("nothing was asked meanwhile")
	}
	// Old versions of TLS are refused, and so is no TLS at all.
	if _, err := tls.Dial("tcp", s.GRPCAddr().String(), &tls.Config{RootCAs: trust.RootCAs, NextProtos: []string{"h2"}, MaxVersion: tls.VersionTLS11}); err == nil { //nolint:gosec // That it is refused is the point.
		t.Error("TLS 1.1 is let in")
	}
	if response, err := http.Get(httpURL(s, "/healthz")); err == nil {
		if response.StatusCode == 200 {
			t.Error("HTTP without TLS is answered")
		}
		_ = response.Body.Close() // It is an error either way.
	}
}

// TestClientCertificates: with authorities every client must show a certificate,
// and changed authorities are in force for the next connection.
func TestClientCertificates(t *testing.T) {
	setup := newTLSSetup(t)
	config := setup.config()
	config.ClientCA = setup.file("ca.pem")
	s := testServer(t, config)
	other := newAuthority(t, "second")
	client := func(a *authority) *tls.Config {
		config := &tls.Config{RootCAs: pool(setup.ca)}
		if a != nil {
			pair, err := tls.X509KeyPair(a.issue(t, 7))
			if err != nil {
				t.Fatal(err)
			}
			config.Certificates = []tls.Certificate{pair}
		}
		return config
	}
	first, second := client(setup.ca), client(other)
	letIn := func(config *tls.Config) (overGRPC, overHTTP bool) {
		conn, err := grpc.NewClient("passthrough:///"+s.GRPCAddr().String(), grpc.WithTransportCredentials(credentials.NewTLS(config.Clone())))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }() // It may never have been open.
		_, err = pembav1.NewSchemaServiceClient(conn).ReadSchema(testContext(t), &pembav1.ReadSchemaRequest{})
		overGRPC = status.Code(err) == codes.FailedPrecondition
		transport := &http.Transport{TLSClientConfig: config.Clone()}
		defer transport.CloseIdleConnections()
		response, err := (&http.Client{Transport: transport}).Get("https://" + s.HTTPAddr().String() + "/healthz")
		if err == nil {
			overHTTP = response.StatusCode == 200
			_ = response.Body.Close() // It was answered.
		}
		return overGRPC, overHTTP
	}
	for what, test := range map[string]struct {
		config *tls.Config
		want   bool
	}{"none": {client(nil), false}, "the authority's": {first, true}, "another's": {second, false}} {
		if g, h := letIn(test.config); g != test.want || h != test.want {
			t.Errorf("certificate %s: gRPC %v, HTTP %v", what, g, h)
		}
	}
	writeFile(t, setup.file("ca.pem"), other.pem)
	eventually(t, "the other authority counts", func() bool { g, h := letIn(second); return g && h })
	if g, h := letIn(first); g || h {
		t.Errorf("the authority of before still counts: gRPC %v, HTTP %v", g, h)
	}
}

func TestTLSConfig(t *testing.T) {
	setup := newTLSSetup(t)
	writeFile(t, setup.file("empty.pem"), nil)
	for _, test := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"all", func(*Config) {}, ""},
		{"no key", func(c *Config) { c.TLSKey = "" }, "without its key"},
		{"no certificate", func(c *Config) { c.TLSCert = "" }, "without its certificate"},
		{"authorities alone", func(c *Config) { c.TLSCert, c.TLSKey, c.ClientCA = "", "", setup.file("ca.pem") }, "--client-ca"},
		{"a file that is not there", func(c *Config) { c.TLSCert = setup.file("none.pem") }, "none.pem"},
		{"a key that is none", func(c *Config) { c.TLSKey = setup.file("ca.pem") }, "TLS certificate"},
		{"no authority", func(c *Config) { c.ClientCA = setup.file("empty.pem") }, "no certificate"},
		{"a collector without a scheme", func(c *Config) { c.OTLPEndpoint = "localhost:4317" }, "http://HOST:PORT"},
	} {
		c := setup.config()
		c.GRPCAddr = "127.0.0.1:0"
		test.change(&c)
		if err := c.Validate(); (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// TestPlainWarning: keys that cross the network in the clear are worth a line.
func TestPlainWarning(t *testing.T) {
	for _, test := range []struct {
		addr string
		tls  bool
		want bool
	}{{"127.0.0.1:0", false, false}, {"0.0.0.0:0", false, true}, {"0.0.0.0:0", true, false}} {
		var log lockedBuffer
		c := Config{}
		if test.tls {
			c = newTLSSetup(t).config()
		}
		c.Node, c.GRPCAddr, c.Keys, c.Logger = testNode(t), test.addr, []string{"k"}, slog.New(slog.NewTextHandler(&log, nil))
		s, err := Listen(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(testContext(t)); err != nil {
			t.Error(err)
		}
		if got := strings.Contains(log.String(), "in the clear"); got != test.want {
			t.Errorf("%s, TLS %v: warned: %v", test.addr, test.tls, got)
		}
	}
}

// TestConnections: a connection beyond the limit is closed at once, and one that
// ends makes room.
func TestConnections(t *testing.T) {
	s := testServer(t, Config{Limits: Limits{Connections: 2}})
	open := func() net.Conn {
		conn, err := net.Dial("tcp", s.HTTPAddr().String())
		if err == nil {
			err = conn.SetDeadline(time.Now().Add(patience))
		}
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	answered := func(conn net.Conn) bool {
		_, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
		if err == nil {
			_, err = io.ReadFull(conn, make([]byte, 12))
		}
		return err == nil
	}
	first, second := open(), open()
	defer func() { _ = second.Close() }() // Nothing is lost by it.
	if !answered(first) || !answered(second) {
		t.Fatal("the first two are not answered")
	}
	third := open()
	if _, err := third.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the third is not closed: %v", err)
	}
	_ = third.Close() // The server closed it already.
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "there is room again", func() bool {
		conn := open()
		defer func() { _ = conn.Close() }() // The server may have closed it.
		return answered(conn)
	})
	// gRPC has room of its own.
	c := dial(t, s)
	_, err := c.ReadSchema(testContext(t), &pembav1.ReadSchemaRequest{})
	expectStatus(t, "gRPC", err, codes.FailedPrecondition, "NO_SCHEMA")
}

// TestGracefulClose: one of two servers of a node ends under load, and no call
// fails: what it has begun it answers, and what it has not begun goes to the
// other.
func TestGracefulClose(t *testing.T) {
	node := testNode(t)
	config := Config{Node: node, GRPCAddr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)}
	ending, err := Listen(config)
	if err != nil {
		t.Fatal(err)
	}
	// However slow the callers are, they learn in time that a connection ends.
	ending.drainPatience = patience
	served := make(chan error, 1)
	go func() { served <- ending.Serve() }()
	staying := testServer(t, Config{Node: node})
	both := manual.NewBuilderWithScheme("both")
	both.InitialState(resolver.State{Addresses: []resolver.Address{
		{Addr: ending.GRPCAddr().String()}, {Addr: staying.GRPCAddr().String()},
	}})
	// Whoever spreads the calls looks at /readyz; gRPC is told by the server.
	var turn atomic.Int64
	var dialing sync.RWMutex
	unready := false           // Guarded by dialing.
	var connected atomic.Int64 // To the server that ends, over HTTP.
	addrs := []string{ending.HTTPAddr().String(), staying.HTTPAddr().String()}
	l := startLoad(t, false, func() string { return "" }, func() *grpc.ClientConn {
		conn, err := grpc.NewClient("both:///", grpc.WithResolvers(both), grpc.WithTransportCredentials(plainCredentials()),
			grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`))
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}, func() *http.Client {
		dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
			dialing.RLock()
			defer dialing.RUnlock()
			if to := turn.Add(1) % 2; unready || to == 1 {
				return new(net.Dialer).DialContext(ctx, network, addrs[1])
			}
			conn, err := new(net.Dialer).DialContext(ctx, network, addrs[0])
			if err != nil {
				return nil, err
			}
			connected.Add(1)
			return &countedConn{Conn: conn, open: &connected}, nil
		}
		return &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2, IdleConnTimeout: 100 * time.Millisecond, DialContext: dial}}
	}, "http://pemba/pemba/v1/count-tuples")
	defer l.stop()
	eventually(t, "calls go to the server that ends", func() bool { return l.grpc.Load() > 50 && l.http.Load() > 50 })
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	dialing.Lock()
	unready = true
	dialing.Unlock()
	// What was dialled before must have arrived: the end of a listener cuts off those
	// that wait for it.
	eventually(t, "all connections are accepted", func() bool { return ending.httpListener.open.Load() == connected.Load() })
	if err := ending.Close(ctx); err != nil {
		t.Error(err)
	}
	if ctx.Err() != nil {
		t.Error("closing took all its time: calls were canceled")
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	after := l.grpc.Load()
	eventually(t, "calls go on", func() bool { return l.grpc.Load() > after+20 })
	l.stop()
	// Every call that the server began was answered.
	var text bytes.Buffer
	for _, sample := range gather(t, ending) {
		if sample.name == "pemba_requests_total" && sample.labels["code"] != "FailedPrecondition" && sample.labels["code"] != "OK" {
			fmt.Fprintln(&text, sample)
		}
		if sample.name == "pemba_requests_in_flight" && sample.value != 0 {
			fmt.Fprintln(&text, sample)
		}
	}
	if text.Len() > 0 {
		t.Errorf("calls of the server that ended:\n%s", text.String())
	}
}

// A countedConn counts itself among those open until it is closed.
type countedConn struct {
	net.Conn
	open *atomic.Int64
	once sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

// TestPeerTLS: the identity between nodes needs all of its files, and follows them.
func TestPeerTLS(t *testing.T) {
	dir := t.TempDir()
	cert, key, ca := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "ca.pem")
	old, next := newAuthority(t, "old"), newAuthority(t, "next")
	write := func(a *authority, serial int64) {
		certPEM, keyPEM := a.issue(t, serial)
		writeFile(t, cert, certPEM)
		writeFile(t, key, keyPEM)
		writeFile(t, ca, a.pem)
	}
	write(old, 2)
	for _, missing := range []struct {
		cert, key, ca, flag string
	}{{"", key, ca, "--peer-cert"}, {cert, "", ca, "--peer-key"}, {cert, key, "", "--peer-ca"}, {cert, cert, ca, "TLS certificate"}, {cert, key, dir, "between nodes"}} {
		if _, err := LoadPeerTLS(missing.cert, missing.key, missing.ca); err == nil || !strings.Contains(err.Error(), missing.flag) {
			t.Errorf("%+v: %v", missing, err)
		}
	}
	p, err := LoadPeerTLS(cert, key, ca)
	if err != nil {
		t.Fatal(err)
	}
	is := func(a *authority, serial int64) bool {
		c := p.Config()
		leaf, err := x509.ParseCertificate(c.Certificates[0].Certificate[0])
		return err == nil && leaf.SerialNumber.Int64() == serial && c.RootCAs.Equal(pool(a)) && c.ClientCAs.Equal(pool(a))
	}
	if !is(old, 2) {
		t.Error("it is not what the files say")
	}
	ctx, cancel := context.WithCancel(testContext(t))
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.Follow(ctx, slog.New(slog.DiscardHandler))
	}()
	write(next, 3)
	eventually(t, "the new files are in force", func() bool { return is(next, 3) })
	cancel()
	<-done
}

// TestOperatorKey finds the first key of a file that may do everything.
func TestOperatorKey(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	for content, want := range map[string]string{
		"one\ntwo\n": "one",
		"# ours\n\nbound store a,b\n \ttwo # it\nthree": "two",
		"bound store a\n": "",
	} {
		writeFile(t, file, []byte(content))
		if got, err := OperatorKey(file); err != nil || got != want {
			t.Errorf("%q: %q, %v", content, got, err)
		}
	}
	writeFile(t, file, []byte("one two\n"))
	if _, err := OperatorKey(file); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("a file with a mistake: %v", err)
	}
	if _, err := OperatorKey(file + ".none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}
