package client_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/api/client"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/graph"
)

// An authority signs certificates for a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T, dir string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if template, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return &authority{cert: template, key: key, file: writePEM(t, dir, "CERTIFICATE", der)}
}

// issue makes a certificate for this machine and returns the names of its files.
func (a *authority) issue(t *testing.T, dir string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &private.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return writePEM(t, dir, "CERTIFICATE", der), writePEM(t, dir, "PRIVATE KEY", secret)
}

func writePEM(t *testing.T, dir, typ string, der []byte) string {
	t.Helper()
	f, err := os.CreateTemp(dir, "*.pem")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(pem.Encode(f, &pem.Block{Type: typ, Bytes: der}), f.Close()); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// TestTLS: the server must show a certificate of a trusted authority, and the
// client one where the server asks for it; what is missing is told.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	ours, theirs := newAuthority(t, dir), newAuthority(t, dir)
	serverCert, serverKey := ours.issue(t, dir)
	cert, key := ours.issue(t, dir)
	otherCert, otherKey := theirs.issue(t, dir)
	clear := serve(t)
	addr := serve(t, func(c *api.Config) { c.TLSCert, c.TLSKey, c.ClientCA = serverCert, serverKey, ours.file })
	for _, test := range []struct {
		name, ca, cert, key string
		addr                string
		refused             bool
		want                string
		problem             client.TLSProblem
	}{
		{"all is well", ours.file, cert, key, addr, false, "", client.NoTLSProblem},
		{"another authority", theirs.file, cert, key, addr, true, "unknown authority", client.UnknownAuthority},
		// What is said depends on whether the alert comes before the end does.
		{"no certificate", ours.file, "", "", addr, true, "certificate", client.ClientCertificateMissing},
		{"certificate of another authority", ours.file, otherCert, otherKey, addr, true, "certificate", client.ClientCertificateRefused},
		{"another name", ours.file, cert, key, "localhost" + strings.TrimPrefix(addr, "127.0.0.1"), true, "localhost", client.OtherServer},
		{"no TLS", "", "", "", addr, true, "TLS", client.TLSMissing},
		{"TLS with a server that has none", ours.file, "", "", clear, true, "does not seem to encrypt", client.TLSUnwanted},
	} {
		config := client.Config{Addr: test.addr, Key: "k"}
		if test.ca != "" {
			tls, err := client.LoadTLS(test.ca, test.cert, test.key)
			if err != nil {
				t.Fatal(err)
			}
			config.TLS = tls
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		c, err := client.Dial(ctx, config)
		if err == nil {
			_, err = c.Schemas.ReadSchema(ctx, &pembav1.ReadSchemaRequest{})
			if reason, _ := client.Reason(err); reason == "NO_SCHEMA" {
				err = nil
			}
			if closeErr := c.Close(); closeErr != nil {
				t.Error(closeErr)
			}
		}
		cancel()
		if (err != nil) != test.refused || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v; expected %q", test.name, err, test.want)
		}
		var failure *client.DialError
		if test.refused && (!errors.As(err, &failure) || failure.TLS != test.problem) {
			t.Errorf("%s: %#v; expected the problem %d", test.name, err, test.problem)
		}
	}
	for _, files := range [][3]string{{"missing"}, {key}, {"", cert, ""}, {"", "", key}, {"", cert, cert}, {"", filepath.Join(dir, "none"), key}} {
		if _, err := client.LoadTLS(files[0], files[1], files[2]); err == nil {
			t.Errorf("loaded %v", files)
		}
	}
}

// TestKeyExposed: a key leaves the machine encrypted, or when that is allowed.
func TestKeyExposed(t *testing.T) {
	tls, err := client.LoadTLS("", "", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		config  client.Config
		exposed bool
	}{
		{client.Config{Addr: "127.0.0.1:1", Key: "k"}, false},
		{client.Config{Addr: "[::1]:1", Key: "k"}, false},
		{client.Config{Addr: "[::]:1", Key: "k"}, false},
		{client.Config{Addr: "LOCALHOST:1", Key: "k"}, false},
		{client.Config{Addr: "db.example:1"}, false},
		{client.Config{Addr: "db.example:1", Key: "k"}, true},
		{client.Config{Addr: "10.0.0.1:1", Key: "k"}, true},
		{client.Config{Addr: "localhost.evil.example:1", Key: "k"}, true},
		{client.Config{Addr: "127.0.0.1.evil.example:1", Key: "k"}, true},
		{client.Config{Addr: "127.0.0.1@evil.example:1", Key: "k"}, true},
		{client.Config{Addr: "db.example:1", Key: "k", TLS: tls}, false},
		{client.Config{Addr: "db.example:1", Key: "k", InsecureKey: true}, false},
	} {
		if err := test.config.Validate(); errors.Is(err, client.ErrKeyExposed) != test.exposed {
			t.Errorf("%+v: %v", test.config, err)
		}
	}
}

// An unsteady server is unavailable twice before it answers.
type unsteady struct {
	pembav1.UnimplementedPermissionServiceServer
	pembav1.UnimplementedTupleServiceServer
	checks, writes atomic.Int32
}

func (u *unsteady) Check(context.Context, *pembav1.CheckRequest) (*pembav1.CheckResponse, error) {
	if u.checks.Add(1) <= 2 {
		return nil, status.Error(codes.Unavailable, "not yet")
	}
	return &pembav1.CheckResponse{Decision: pembav1.Decision_DECISION_ALLOWED}, nil
}

func (u *unsteady) WriteTuples(context.Context, *pembav1.WriteTuplesRequest) (*pembav1.WriteTuplesResponse, error) {
	u.writes.Add(1)
	return nil, status.Error(codes.Unavailable, "not yet")
}

// TestRetries: a question is asked again, a write is not.
func TestRetries(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &unsteady{}
	server := grpc.NewServer()
	pembav1.RegisterPermissionServiceServer(server, u)
	pembav1.RegisterTupleServiceServer(server, u)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	defer func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	c, err := client.Dial(t.Context(), client.Config{Addr: l.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	tuple := tuple(t, "doc:a#viewer@user:anne")
	answer, err := c.Check(t.Context(), client.Question{Object: tuple.Object, Permission: "view", Subject: tuple.Subject})
	if err != nil || answer.GetDecision() != pembav1.Decision_DECISION_ALLOWED || u.checks.Load() != 3 {
		t.Errorf("%v, %v after %d calls", answer, err, u.checks.Load())
	}
	if _, err := c.WriteTuples(t.Context(), graph.Touch, tuple); err == nil || u.writes.Load() != 1 {
		t.Errorf("%v after %d writes", err, u.writes.Load())
	}
}
