package main

import (
	"log/slog"
	"net"
	"strings"
	"testing"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/cluster"
)

// TestConnectionHints: what is advised fits what answered.
func TestConnectionHints(t *testing.T) {
	testStart(t)
	quiet := slog.New(slog.DiscardHandler)
	r, err := start(t.Context(), startConfig{
		cluster: cluster.Config{DataDir: t.TempDir(), Logger: quiet},
		api:     api.Config{GRPCAddr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0", Logger: quiet, Keys: []string{"s3cret"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.close(); err != nil {
			t.Error(err)
		}
	}()
	// Nobody listens where a connection goes out, and nobody else can meanwhile.
	outgoing, err := net.Dial("tcp", r.server.HTTPAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := outgoing.Close(); err != nil {
			t.Error(err)
		}
	}()
	nobody := outgoing.LocalAddr().String()
	grpcAddr, httpAddr := r.server.GRPCAddr().String(), r.server.HTTPAddr().String()
	const starts = "start a server"
	for _, test := range []struct{ args, want, without string }{
		{"tuple count --addr " + nobody, starts, "HTTP"},
		{"tuple count --addr " + httpAddr, "HTTP address; --addr and PEMBA_ADDR want the gRPC one", starts},
		{"tuple count --tls --addr " + grpcAddr, "does not seem to encrypt", starts},
		{"tuple count --addr https://" + grpcAddr, "host:port", starts},
		{"tuple count --ca-cert missing.pem --addr " + grpcAddr, "missing.pem", starts},
		{"tuple count --key wrong --addr " + grpcAddr, "given by --key", starts},
	} {
		if said := fails(t, "", strings.Fields(test.args)...); !strings.Contains(said, test.want) || strings.Contains(said, test.without) {
			t.Errorf("%s: %s", test.args, said)
		}
	}
	t.Setenv("PEMBA_KEY", "wrong")
	if said := fails(t, "", "tuple", "count", "--addr", grpcAddr); !strings.Contains(said, "given by PEMBA_KEY (KEY_INVALID)") {
		t.Errorf("%s", said)
	}
	t.Setenv("PEMBA_KEY", "")
	if said := fails(t, "", "tuple", "count", "--addr", grpcAddr); !strings.Contains(said, "give it by --key or PEMBA_KEY (KEY_MISSING)") {
		t.Errorf("%s", said)
	}
	if out := must(t, "", "version", "-o", "json"); !strings.HasPrefix(out, `{"version":`) || !strings.Contains(out, `"go":"go`) {
		t.Errorf("%s", out)
	}
	if out := must(t, "", "watch", "--help"); !strings.Contains(out, "behind the --cursor") || !strings.Contains(out, "behind a --from") {
		t.Errorf("%s", out)
	}
	if out := must(t, "", "tuple", "write", "--help"); !strings.Contains(out, "in any words; recorded, not judged") {
		t.Errorf("%s", out)
	}
}
