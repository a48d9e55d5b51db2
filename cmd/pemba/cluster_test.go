package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A testMember is a server process of a cluster. It has the same addresses each time
// that it is started.
type testMember struct {
	*process
	id, dir, grpcAddr, raftAddr string
}

// testMembers makes n members named n1, n2 and so on, which are not started.
func testMembers(t *testing.T, n int) []*testMember {
	t.Helper()
	for _, name := range clientVariables {
		t.Setenv(name, "")
	}
	members := make([]*testMember, n)
	addrs := freeAddrs(t, 2*n)
	for i := range members {
		members[i] = &testMember{
			id: fmt.Sprintf("n%d", i+1), dir: filepath.Join(t.TempDir(), "data"), grpcAddr: addrs[2*i], raftAddr: addrs[2*i+1],
		}
	}
	return members
}

// freeAddrs returns addresses of this machine that nobody has.
func freeAddrs(t *testing.T, n int) []string {
	t.Helper()
	addrs := make([]string, n)
	for i := range addrs {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}()
		addrs[i] = l.Addr().String()
	}
	return addrs
}

// start runs the member, and returns when it serves.
func (m *testMember) start(t *testing.T, args ...string) {
	t.Helper()
	args = append([]string{
		"serve", "--data-dir", m.dir, "--node-id", m.id, "--grpc-addr", m.grpcAddr, "--http-addr", "none", "--raft-addr", m.raftAddr,
	}, args...)
	m.process = startProcess(t, []string{"PEMBA_SERVE_KEY=k"}, args...)
	m.line(t, "gRPC on")
}

// kill ends the process without a word.
func (m *testMember) kill(t *testing.T) {
	t.Helper()
	if err := m.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := m.cmd.Wait(); err == nil {
		t.Fatalf("%s ended well though it was killed", m.id)
	}
}

// must runs a command on the member.
func (m *testMember) must(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	return must(t, stdin, append(args, "--addr", m.grpcAddr, "--key", "k")...)
}

// await asks the member for the status of the cluster until it is as wanted.
func (m *testMember) await(t *testing.T, what string, wanted func(clusterJSON) bool) clusterJSON {
	t.Helper()
	var said, failed string
	for end := time.Now().Add(processWait); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var code int
		said, failed, code = pemba("", "cluster", "status", "-o", "json", "--addr", m.grpcAddr, "--key", "k")
		if code != 0 {
			continue
		}
		var status clusterJSON
		if err := json.Unmarshal([]byte(said), &status); err != nil {
			t.Fatalf("%v: %s", err, said)
		}
		if wanted(status) {
			return status
		}
	}
	t.Fatalf("%s never came: %s%s", what, said, failed)
	return clusterJSON{}
}

// hasVoters reports whether a cluster consists of those voters, and all of them are
// well and have what the leader has.
func hasVoters(ids ...string) func(clusterJSON) bool {
	return func(c clusterJSON) bool {
		var found []string
		for _, m := range c.Members {
			if m.Suffrage != "voter" || m.Error != "" || m.NotReady != "" || m.LagRevisions == nil || *m.LagRevisions > 0 {
				return false
			}
			found = append(found, m.ID)
		}
		return c.LeaderID != "" && slices.Equal(found, ids)
	}
}

// TestServeCluster: three processes become a cluster by --bootstrap and --join alone;
// each takes writes; the death of the leader costs nothing that was written, and a new
// node takes its place, under its name.
func TestServeCluster(t *testing.T) {
	members := testMembers(t, 3)
	first, second, third := members[0], members[1], members[2]
	first.start(t, "--bootstrap")
	join := "--join=" + first.grpcAddr
	// A key that is none of the cluster's joins nothing, and hears why.
	said := fails(t, "", "serve", "--data-dir", filepath.Join(t.TempDir(), "data"), "--grpc-addr", second.grpcAddr, "--http-addr", "none",
		"--raft-addr", second.raftAddr, "--key", "other", join)
	if !strings.Contains(said, "join the cluster: the member at "+first.grpcAddr+" refuses: the key is not one of this server's") || !strings.Contains(said, "(KEY_INVALID)") {
		t.Errorf("with another key: %s", said)
	}
	second.start(t, join)
	third.start(t, "--join", second.grpcAddr+","+first.grpcAddr)
	status := third.await(t, "a cluster of three", hasVoters("n1", "n2", "n3"))
	if status.LeaderID != "n1" || status.NodeID != "n3" || len(status.ClusterID) != 32 || status.Members[1].RaftAddr != second.raftAddr || status.Members[1].Version == "" {
		t.Errorf("the cluster is %+v", status)
	}
	if table := first.must(t, "", "cluster", "status"); !strings.HasPrefix(table, "ID  ROLE      SUFFRAGE  TERM") || strings.Count(table, "voter") != 3 || strings.Count(table, "\n") != 4 {
		t.Errorf("as a table:\n%s", table)
	}

	first.must(t, "definition user {} definition doc { relation viewer: user }", "schema", "write", "-")
	for i, m := range members {
		m.must(t, "", "tuple", "write", fmt.Sprintf("doc:%d#viewer@user:anne", i))
	}
	for _, m := range members {
		if got := m.must(t, "", "lookup", "resources", "doc", "viewer", "user:anne", "--linearizable"); got != "doc:0\ndoc:1\ndoc:2\n" {
			t.Errorf("%s finds %s", m.id, got)
		}
	}
	// A store that was made elsewhere just now is there.
	second.must(t, "", "store", "create", "team")
	third.must(t, "", "store", "get", "team")

	first.kill(t)
	third.must(t, "", "tuple", "write", "doc:3#viewer@user:anne")
	for _, m := range members[1:] {
		if got := m.must(t, "", "lookup", "resources", "doc", "viewer", "user:anne", "--linearizable"); got != "doc:0\ndoc:1\ndoc:2\ndoc:3\n" {
			t.Errorf("without the leader %s finds %s", m.id, got)
		}
	}
	status = second.await(t, "another leader", func(c clusterJSON) bool { return c.LeaderID == "n2" || c.LeaderID == "n3" })
	if dead := status.Members[0]; dead.ID != "n1" || dead.Error == "" || dead.Role != "" {
		t.Errorf("of the dead node it says %+v", dead)
	}
	if table := second.must(t, "", "cluster", "status"); !strings.Contains(table, "n1  unreachable  voter") || !strings.Contains(table, "n1 cannot be asked:") {
		t.Errorf("as a table:\n%s", table)
	}
	// Who has lost everything is not taken for who was there under the name.
	if err := os.RemoveAll(first.dir); err != nil {
		t.Fatal(err)
	}
	again := []string{
		"serve", "--data-dir", first.dir, "--node-id", "n1", "--grpc-addr", first.grpcAddr, "--http-addr", "none",
		"--raft-addr", first.raftAddr, "--key", "k", "--join", first.grpcAddr + "," + third.grpcAddr,
	}
	if said := fails(t, "", again...); !strings.Contains(said, "remove the old one first") || !strings.Contains(said, "(MEMBER)") {
		t.Errorf("as the voter that it was: %s", said)
	}
	if got := third.must(t, "", "cluster", "remove", "n1"); got != "removed n1\n" {
		t.Errorf("it says %q", got)
	}
	first.start(t, "--join", second.grpcAddr+","+third.grpcAddr)
	second.await(t, "the new node", hasVoters("n1", "n2", "n3"))
	if got := first.must(t, "", "lookup", "resources", "doc", "viewer", "user:anne"); got != "doc:0\ndoc:1\ndoc:2\ndoc:3\n" {
		t.Errorf("the new node finds %s", got)
	}
	if got := first.must(t, "", "cluster", "transfer", "n1"); got != "n1 leads now\n" {
		t.Errorf("it says %q", got)
	}
	second.await(t, "the leader that was asked for", func(c clusterJSON) bool { return c.LeaderID == "n1" })

	// What is used resumes, whatever the flags say, also its address.
	second.end(t, syscall.SIGTERM)
	second.start(t, "--join", "127.0.0.1:1")
	third.await(t, "the one that came back", hasVoters("n1", "n2", "n3"))
	// Without a quorum a node still ends well.
	first.kill(t)
	second.kill(t)
	third.await(t, "the loss of the leader", func(c clusterJSON) bool { return c.LeaderID == "" })
	third.end(t, syscall.SIGTERM)
}

// TestServeReplica: a replica answers, gets no vote by itself, and one when it is
// promoted.
func TestServeReplica(t *testing.T) {
	members := testMembers(t, 2)
	members[0].start(t, "--bootstrap")
	members[1].start(t, "--replica", "--join", members[0].grpcAddr)
	isReplica := func(c clusterJSON) bool {
		return len(c.Members) == 2 && c.Members[1].Suffrage == "nonvoter" && c.Members[1].NotReady == "" && c.Members[1].Error == ""
	}
	members[1].await(t, "the replica", isReplica)
	members[1].must(t, "definition user {} definition doc { relation viewer: user }", "schema", "write", "-")
	members[0].must(t, "", "tuple", "write", "doc:a#viewer@user:anne")
	if got := members[1].must(t, "", "check", "doc:a#viewer@user:anne", "--linearizable"); !strings.HasPrefix(got, "allowed") {
		t.Errorf("the replica says %s", got)
	}
	members[1].end(t, syscall.SIGTERM)
	members[1].start(t)
	members[1].await(t, "the replica after a restart", isReplica)
	if got := members[1].must(t, "", "cluster", "promote", "n2", "-o", "json"); got != "{\"id\":\"n2\",\"done\":\"promoted\"}\n" {
		t.Errorf("it says %s", got)
	}
	members[0].await(t, "the vote", hasVoters("n1", "n2"))
	members[1].end(t, syscall.SIGTERM)
	members[0].end(t, syscall.SIGTERM)
}

// A testAuthority signs certificates for 127.0.0.1.
type testAuthority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newTestAuthority(t *testing.T) *testAuthority {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	a := &testAuthority{}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return a
}

// issue writes a certificate and its key, and returns the flags that name them with the
// file of authorities.
func (a *testAuthority) issue(t *testing.T, caFile string) []string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "node"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writeFile(t, certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	writeFile(t, keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
	return []string{"--peer-cert", certFile, "--peer-key", keyFile, "--peer-ca", caFile}
}

func writeFile(t *testing.T, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestServePeerTLS: nodes speak with those alone whose certificates they trust, and
// trust others as soon as their files say so.
func TestServePeerTLS(t *testing.T) {
	members := testMembers(t, 3)
	old, next := newTestAuthority(t), newTestAuthority(t)
	oldCA, bothCA := filepath.Join(t.TempDir(), "ca.pem"), filepath.Join(t.TempDir(), "ca.pem")
	writeFile(t, oldCA, old.pem)
	writeFile(t, bothCA, append(slices.Clone(old.pem), next.pem...))

	members[0].start(t, append(old.issue(t, oldCA), "--bootstrap")...)
	join := "--join=" + members[0].grpcAddr
	members[1].start(t, append(old.issue(t, oldCA), join)...)
	members[0].await(t, "a cluster of two", hasVoters("n1", "n2"))
	// The third trusts the others, and they do not trust it.
	members[2].start(t, append(next.issue(t, bothCA), join, "--wait-max=100ms")...)
	members[0].await(t, "the refusal of the third", func(c clusterJSON) bool {
		return len(c.Members) == 3 && c.Members[2].Suffrage == "nonvoter" && strings.Contains(c.Members[2].Error, "certificate")
	})
	members[0].must(t, "", "store", "create", "team") // The other two are enough.
	if err := members[2].cmd.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the third has ended: %v", err)
	}
	said := fails(t, "", "store", "get", "team", "--addr", members[2].grpcAddr, "--key", "k")
	if !strings.Contains(said, "(NOT_READY)") {
		t.Errorf("a node that nobody speaks with says %s", said)
	}
	writeFile(t, oldCA, append(slices.Clone(old.pem), next.pem...))
	members[0].await(t, "the third", hasVoters("n1", "n2", "n3"))
	members[2].must(t, "", "store", "get", "team")
	for _, m := range members {
		m.end(t, syscall.SIGTERM)
	}
}

// TestJoinOverTLS: a server with TLS joins members with TLS, trusts the authorities of
// the nodes, and shows its own certificate where one is asked for.
func TestJoinOverTLS(t *testing.T) {
	members := testMembers(t, 2)
	authority := newTestAuthority(t)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	writeFile(t, ca, authority.pem)
	flags := func() []string {
		peer := authority.issue(t, ca)
		return append(peer, "--tls-cert", peer[1], "--tls-key", peer[3], "--client-ca", ca)
	}
	first, second := flags(), flags()
	t.Setenv("PEMBA_CA_CERT", ca)
	t.Setenv("PEMBA_CLIENT_CERT", first[1])
	t.Setenv("PEMBA_CLIENT_KEY", first[3])
	members[0].start(t, append(first, "--bootstrap")...)
	join := "--join=" + members[0].grpcAddr
	said := fails(t, "", "serve", "--data-dir", members[1].dir, "--node-id", "n2", "--grpc-addr", members[1].grpcAddr, "--http-addr", "none",
		"--raft-addr", members[1].raftAddr, "--key", "k", "--log-level", "error", join)
	if !strings.Contains(said, "the member seems to speak TLS, and this server has no --tls-cert") {
		t.Errorf("without TLS: %s", said)
	}
	members[1].start(t, append(second, join)...)
	members[1].await(t, "a cluster of two", hasVoters("n1", "n2"))
	for _, m := range members {
		m.end(t, syscall.SIGTERM)
	}
}

// TestJoinRefused: who cannot join says so, and why.
func TestJoinRefused(t *testing.T) {
	patience := joinPatience
	joinPatience = 300 * time.Millisecond
	defer func() { joinPatience = patience }()
	addrs := freeAddrs(t, 3)
	serve := func(args ...string) string {
		return fails(t, "", append([]string{
			"serve", "--data-dir", filepath.Join(t.TempDir(), "data"), "--grpc-addr", addrs[0], "--http-addr", "none", "--raft-addr", addrs[1], "--log-level", "error",
		}, args...)...)
	}
	if said := serve("--join", addrs[2]); !strings.Contains(said, "no member took this node in within 300ms") || !strings.Contains(said, "cannot reach a server at "+addrs[2]) {
		t.Errorf("nobody there: %s", said)
	}
	r := testStart(t)
	if said := serve("--join", r.server.GRPCAddr().String(), "--key", "s3cret"); !strings.Contains(said, "restart it with an address for Raft") {
		t.Errorf("a member that is alone: %s", said)
	}
	if said := serve("--join", r.server.GRPCAddr().String()); !strings.Contains(said, "(KEY_MISSING)") || !strings.Contains(said, "PEMBA_SERVE_KEY") {
		t.Errorf("without a key: %s", said)
	}
	// It need not know a file of keys by heart to find an operator's.
	keys := filepath.Join(t.TempDir(), "keys")
	writeFile(t, keys, []byte("bound store team\n\n# Ours.\n  s3cret # the first one\nother\n"))
	if said := serve("--join", r.server.GRPCAddr().String(), "--key-file", keys); !strings.Contains(said, "(MEMBER)") {
		t.Errorf("with a file of keys: %s", said)
	}
}

// TestRaftAddrs holds where a node listens for others, and where they reach it.
func TestRaftAddrs(t *testing.T) {
	hostname := func() (string, error) { return "box", nil }
	for _, c := range []struct {
		flags             peerFlags
		listen, advertise string
		mistake           string
	}{
		{peerFlags{}, "", "", ""},
		{peerFlags{bootstrap: true}, "127.0.0.1:7000", "127.0.0.1:7000", ""},
		{peerFlags{join: "x:1"}, "127.0.0.1:7000", "127.0.0.1:7000", ""},
		{peerFlags{bootstrap: true, cert: "c"}, ":7000", "box:7000", ""},
		{peerFlags{raftAddr: "0.0.0.0:7001", cert: "c"}, "0.0.0.0:7001", "box:7001", ""},
		{peerFlags{raftAddr: "[::]:7001", cert: "c", raftAdvertise: "a.example:9"}, "[::]:7001", "a.example:9", ""},
		{peerFlags{raftAddr: "10.0.0.1:7001", cert: "c"}, "10.0.0.1:7001", "10.0.0.1:7001", ""},
		{peerFlags{raftAddr: "[::1]:7001"}, "[::1]:7001", "[::1]:7001", ""},
		{peerFlags{raftAddr: "localhost:7001"}, "localhost:7001", "localhost:7001", ""},
		{peerFlags{raftAddr: ":7001"}, "", "", "--raft-addr :7001 is an address of other machines too"},
		{peerFlags{raftAddr: "10.0.0.1:7001"}, "", "", "--peer-cert"},
		{peerFlags{raftAddr: "127.0.0.1:7001", raftAdvertise: "box:7001"}, "", "", "--raft-advertise box:7001 is"},
		{peerFlags{raftAddr: "7001"}, "", "", "--raft-addr \"7001\" is not of the form host:port"},
		{peerFlags{raftAddr: "127.0.0.1:0"}, "", "", "host:port"},
		{peerFlags{raftAdvertise: ":7001", cert: "c"}, "", "", "--raft-advertise :7001 names no host"},
	} {
		listen, advertise, err := c.flags.addrs(hostname)
		switch {
		case c.mistake != "":
			if err == nil || !strings.Contains(err.Error(), c.mistake) {
				t.Errorf("%+v: %v, expected %s", c.flags, err, c.mistake)
			}
		case err != nil || listen != c.listen || advertise != c.advertise:
			t.Errorf("%+v: %q, %q, %v", c.flags, listen, advertise, err)
		}
	}
	for _, nameless := range []func() (string, error){
		func() (string, error) { return "", nil }, func() (string, error) { return "", errors.New("no name") },
	} {
		if _, _, err := (&peerFlags{bootstrap: true, cert: "c"}).addrs(nameless); err == nil || !strings.Contains(err.Error(), "--raft-advertise says") {
			t.Errorf("a machine without a name: %v", err)
		}
	}
}

// TestSizeText holds how sizes are shown.
func TestSizeText(t *testing.T) {
	for bytes, want := range map[int64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 KiB", 44 << 10: "44 KiB", 1 << 20: "1.0 MiB", 1500 << 20: "1.5 GiB", 1 << 60: "1048576 TiB",
	} {
		if got := sizeText(bytes); got != want {
			t.Errorf("%d: %s, expected %s", bytes, got, want)
		}
	}
}
