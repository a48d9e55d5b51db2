package main

import (
	"crypto/ed25519"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/cluster"
)

// TestTLSFlags: with TLS, a key of a file that is bound to a store sees that one.
func TestTLSFlags(t *testing.T) {
	for _, name := range []string{"PEMBA_ADDR", "PEMBA_KEY", "PEMBA_STORE", "PEMBA_TLS", "PEMBA_CA_CERT", "PEMBA_CLIENT_CERT", "PEMBA_CLIENT_KEY", "PEMBA_INSECURE_KEY"} {
		t.Setenv(name, "")
	}
	t.Chdir(t.TempDir())
	// A certificate for this machine that vouches for itself.
	donor := httptest.NewTLSServer(http.NotFoundHandler())
	own := donor.TLS.Certificates[0]
	donor.Close()
	secret, err := x509.MarshalPKCS8PrivateKey(own.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"cert.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: own.Certificate[0]}),
		"key.pem":  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}),
		"keys":     []byte("operator\nbound store staging # of a team\n"),
	} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	quiet := slog.New(slog.DiscardHandler)
	r, err := start(t.Context(), startConfig{
		cluster: cluster.Config{DataDir: "data", Logger: quiet},
		api:     api.Config{GRPCAddr: "127.0.0.1:0", Logger: quiet, KeyFile: "keys", TLSCert: "cert.pem", TLSKey: "key.pem"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.close(); err != nil {
			t.Error(err)
		}
	}()
	t.Setenv("PEMBA_ADDR", r.server.GRPCAddr().String())
	must(t, "", "store", "create", "staging", "--key", "operator", "--ca-cert", "cert.pem")
	t.Setenv("PEMBA_CA_CERT", "cert.pem")
	if got := must(t, "", "store", "list", "--key", "bound"); !strings.HasPrefix(got, "staging") || strings.Count(got, "\n") != 1 {
		t.Errorf("a bound key sees: %s", got)
	}
	for _, test := range []struct{ args, want string }{
		{"store create more --key bound", ""},
		{"tuple count --key bound", "name one with --store or PEMBA_STORE (UNKNOWN_STORE)"},
		{"tuple count --key bound --store other", "there is no store \"other\""},
		{"store list --key wrong", "KEY_INVALID"},
		{"store list --ca-cert missing.pem", "missing.pem"},
		{"store list --client-cert cert.pem", "belong together"},
		{"store list --addr db.example:1 --key k --ca-cert=", "--insecure-key"},
	} {
		if said := fails(t, "", strings.Fields(test.args)...); !strings.Contains(said, test.want) {
			t.Errorf("%s: %s", test.args, said)
		}
	}
	t.Setenv("PEMBA_CA_CERT", "")
	if said := fails(t, "", "store", "list", "--key", "operator"); !strings.Contains(said, "speak TLS with --tls, or with --ca-cert") {
		t.Errorf("without TLS: %s", said)
	}
	if said := fails(t, "", "store", "list", "--key", "operator", "--tls"); !strings.Contains(said, "unknown authority") || !strings.Contains(said, "by --ca-cert or PEMBA_CA_CERT") {
		t.Errorf("with the authorities of the system: %s", said)
	}
	t.Setenv("PEMBA_TLS", "perhaps")
	if said := fails(t, "", "store", "list"); !strings.Contains(said, "PEMBA_TLS") {
		t.Errorf("%s", said)
	}
}

// TestClientCertificateHints: a certificate of the client that is missing, or that
// the server does not take, is told by the flags that name another.
func TestClientCertificateHints(t *testing.T) {
	t.Chdir(t.TempDir())
	donor := httptest.NewTLSServer(http.NotFoundHandler())
	own := donor.TLS.Certificates[0]
	donor.Close()
	secret, err := x509.MarshalPKCS8PrivateKey(own.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	// An authority that signs nothing: no client has a certificate of it.
	other, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "another"}, IsCA: true, BasicConstraintsValid: true}
	authority, err := x509.CreateCertificate(nil, template, template, other, key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"cert.pem":  {Type: "CERTIFICATE", Bytes: own.Certificate[0]},
		"key.pem":   {Type: "PRIVATE KEY", Bytes: secret},
		"other.pem": {Type: "CERTIFICATE", Bytes: authority},
	} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	testStart(t, func(c *startConfig) { c.api.TLSCert, c.api.TLSKey, c.api.ClientCA = "cert.pem", "key.pem", "other.pem" })
	for _, test := range []struct{ args, want string }{
		{"store list --ca-cert cert.pem", "show one by --client-cert and --client-key"},
		{"store list --ca-cert cert.pem --client-cert cert.pem --client-key key.pem", "; --client-cert and --client-key name another"},
		{"store list", "speak TLS with --tls"},
	} {
		if said := fails(t, "", strings.Fields(test.args)...); !strings.Contains(said, test.want) {
			t.Errorf("%s: %s", test.args, said)
		}
	}
}

// TestKeygen: keys differ, and serve takes them.
func TestKeygen(t *testing.T) {
	first, second := must(t, "", "keygen"), must(t, "", "keygen")
	if first == second || len(first) != 44 {
		t.Errorf("%q, %q", first, second)
	}
	config := api.Config{GRPCAddr: "127.0.0.1:0", Keys: []string{strings.TrimSpace(first)}}
	if err := config.Validate(); err != nil {
		t.Error(err)
	}
}
