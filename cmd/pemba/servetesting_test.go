package main

import (
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

// TestServeTestingProcess: serve --testing says what it is, gives each key a store
// of its own, ends with a stream open that nobody takes, and writes no file.
func TestServeTestingProcess(t *testing.T) {
	t.Chdir(t.TempDir())
	p := startProcess(t, []string{
		"PEMBA_TESTING=true", "PEMBA_GRPC_ADDR=127.0.0.1:0", "PEMBA_HTTP_ADDR=127.0.0.1:0",
		"PEMBA_DATA_DIR=", "PEMBA_SERVE_KEY=", "PEMBA_KEY_FILE=", "PEMBA_CONFIG=", "PEMBA_LIMIT_STORES=4", "PEMBA_LIMIT_STREAM_STALL=1h",
	}, "serve")
	where := p.line(t, "gRPC on")
	addr := addrPattern.FindStringSubmatch(where)[1]
	if said := p.line(t, "testing:"); !strings.Contains(said, "in memory") || !strings.Contains(said, "every key is accepted") {
		t.Errorf("it says %q", said)
	}
	must := func(key, stdin string, args ...string) string {
		t.Helper()
		stdout, stderr, code := pemba(stdin, append(args, "--addr", addr, "--key="+key, "--store=")...)
		if code != 0 {
			t.Fatalf("%v: %s", args, stderr)
		}
		return stdout
	}
	var many strings.Builder
	for i := range 5000 {
		many.WriteString("doc:" + strings.Repeat("d", i%100+1) + "#viewer@user:u" + strings.Repeat("v", i/100) + "\n")
	}
	for key, tuples := range map[string]string{"one": many.String(), "two": "doc:a#viewer@user:anne\n", "": ""} {
		must(key, "definition user {} definition doc { relation viewer: user }", "schema", "write", "-")
		if tuples != "" {
			must(key, tuples, "tuple", "import", "-")
		}
	}
	for key, want := range map[string]string{"one": "5000\n", "two": "1\n", "": "0\n", "three": ""} {
		if want == "" {
			if _, stderr, code := pemba("", "schema", "read", "--addr", addr, "--key", key, "--store="); code == 0 || !strings.Contains(stderr, "no schema") {
				t.Errorf("key %q, which is new: %s", key, stderr)
			}
			continue
		}
		if got := must(key, "", "tuple", "count"); got != want {
			t.Errorf("key %q counts %s", key, got)
		}
	}
	if _, stderr, code := pemba("", "schema", "read", "--addr", addr, "--key=four", "--store="); code == 0 || !strings.Contains(stderr, "at most 4 are allowed") {
		t.Errorf("a fifth store: %s", stderr)
	}
	if _, stderr, code := pemba("", "store", "create", "more", "--addr", addr, "--key=one"); code == 0 || !strings.Contains(stderr, "OPERATOR_ONLY") {
		t.Errorf("a key makes a store: %s", stderr)
	}
	httpAddr := strings.TrimSpace(where[strings.Index(where, "HTTP on ")+len("HTTP on "):])
	response, err := http.Get("http://" + httpAddr + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	if err := response.Body.Close(); err != nil || response.StatusCode != http.StatusOK {
		t.Errorf("/readyz is %d (%v)", response.StatusCode, err)
	}
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithStaticStreamWindowSize(64<<10),
		grpc.WithPerRPCCredentials(testKey("one")))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}()
	stream, err := pembav1.NewTupleServiceClient(conn).ReadTuples(t.Context(), &pembav1.ReadTuplesRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	p.end(t, syscall.SIGTERM)
	if list, err := os.ReadDir("."); err != nil || len(list) > 0 {
		t.Errorf("there are files: %v (%v)", list, err)
	}
}

// TestServeTestingRefuses: a flag that does not go with --testing is refused, by
// both names, wherever the two are set.
func TestServeTestingRefuses(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{"PEMBA_SERVE_KEY", "PEMBA_KEY_FILE", "PEMBA_CONFIG", "PEMBA_DATA_DIR", "PEMBA_NODE_ID", "PEMBA_TESTING"} {
		t.Setenv(name, "")
	}
	refused := func(flag string, args ...string) {
		t.Helper()
		// It would fail for another reason should it get that far.
		said := fails(t, "", append([]string{"serve", "--grpc-addr", "nonsense"}, args...)...)
		for _, part := range []string{"--" + flag + " ", "--testing", envName(flag)} {
			if !strings.Contains(said, part) {
				t.Errorf("%v: %q is not in: %s", args, part, said)
			}
		}
		if strings.Contains(said, "s3cret") {
			t.Errorf("%v: it repeats the key: %s", args, said)
		}
	}
	values := map[string]string{
		"data-dir": "d", "node-id": "n", "bootstrap": "true", "verify-bytes-per-second": "1", "key": "s3cret", "key-file": "keys",
		"join": "127.0.0.1:1", "join-ca": "a", "replica": "true", "raft-addr": "127.0.0.1:7000", "raft-advertise": "127.0.0.1:7000", "peer-cert": "c", "peer-key": "k", "peer-ca": "a",
	}
	for _, other := range notTesting {
		value, ok := values[other.flag]
		if !ok {
			t.Fatalf("--%s has no value here", other.flag)
		}
		refused(other.flag, "--testing", "--"+other.flag+"="+value)
	}
	if len(values) != len(notTesting) {
		t.Errorf("%d flags are refused, want %d", len(notTesting), len(values))
	}
	t.Setenv("PEMBA_DATA_DIR", "d")
	refused("data-dir", "--testing")
	t.Setenv("PEMBA_DATA_DIR", "")
	if err := os.WriteFile("c.yaml", []byte("testing: true\nkey: [s3cret]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("key", "--config", "c.yaml")
	// Without it they are as they were.
	if said := fails(t, "", "serve", "--testing=false", "--grpc-addr", "nonsense", "--data-dir", "d"); !strings.Contains(said, "host:port") {
		t.Errorf("without --testing: %s", said)
	}
	f := serveFlags{testing: true}
	if f.defaultAddrs(); f.grpcAddr != "127.0.0.1:"+grpcPort || f.httpAddr != "127.0.0.1:"+httpPort {
		t.Errorf("it listens on %s and %s", f.grpcAddr, f.httpAddr)
	}
}
