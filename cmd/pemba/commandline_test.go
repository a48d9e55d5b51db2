package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pembadb/pemba/api"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

// TestUnknownVariables: what looks like a setting and is none is told, with the
// nearest that is; what others put into the environment is not.
func TestUnknownVariables(t *testing.T) {
	environ := []string{
		"HOME=/", "PEMBA_LIMIT_UPDATS=1", "PEMBA_GRPC_ADDR=:1", "PEMBA_KEY=k", "PEMBA_SERVE_KEY=k", "PEMBA_CLIENT_CA=f", "PEMBA_HELP=1", "PEMBA_ADR=x=y",
		// Of services pemba and pemba-http in Kubernetes.
		"PEMBA_SERVICE_HOST=10.0.0.1", "PEMBA_SERVICE_PORT=50051", "PEMBA_SERVICE_PORT_GRPC=50051", "PEMBA_PORT=tcp://10.0.0.1:50051",
		"PEMBA_PORT_50051_TCP=tcp://10.0.0.1:50051", "PEMBA_PORT_50051_TCP_PROTO=tcp", "PEMBA_PORT_50051_TCP_ADDR=10.0.0.1", "PEMBA_HTTP_SERVICE_HOST=10.0.0.2",
	}
	got := fmt.Sprint(unknownVariables(newServe().Flags(), environ))
	if want := "[{PEMBA_ADR PEMBA_ADDR} {PEMBA_HELP PEMBA_KEY} {PEMBA_LIMIT_UPDATS PEMBA_LIMIT_UPDATES}]"; got != want {
		t.Errorf("got %s, expected %s", got, want)
	}
	// Serve says so when it starts, and goes on: here, to the next mistake.
	t.Chdir(t.TempDir())
	t.Setenv("PEMBA_LIMIT_UPDATS", "s3cret")
	said := fails(t, "", "serve", "--grpc-addr", "nonsense")
	if !strings.Contains(said, "name=PEMBA_LIMIT_UPDATS did_you_mean=PEMBA_LIMIT_UPDATES") || !strings.Contains(said, "host:port") || strings.Contains(said, "s3cret") {
		t.Errorf("%s", said)
	}
}

// TestServeWithoutKey: a server without a key says whom it serves, and that the key of
// callers is none of its own.
func TestServeWithoutKey(t *testing.T) {
	t.Chdir(t.TempDir())
	const alone, callers = "there is no key, so that this machine alone can be served", "PEMBA_KEY is what callers send"
	for _, test := range []struct {
		callerKey   string
		args        []string
		says, hides string
	}{
		{"", nil, alone, callers},
		{"s3cret", nil, callers, "s3cret"},
		{"s3cret", []string{"--key", "k"}, "host:port", alone},
		{"s3cret", []string{"--testing"}, "host:port", callers},
	} {
		t.Setenv("PEMBA_KEY", test.callerKey)
		said := fails(t, "", append([]string{"serve", "--grpc-addr", "nonsense"}, test.args...)...)
		if !strings.Contains(said, test.says) || strings.Contains(said, test.hides) {
			t.Errorf("with PEMBA_KEY=%s and %v: %s", test.callerKey, test.args, said)
		}
	}
}

// TestCommandAgain: a shell makes of the line the flags that the command was given,
// whatever is in them.
func TestCommandAgain(t *testing.T) {
	t.Setenv("PEMBA_ADDR", "[::1]:50051")
	t.Setenv("PEMBA_KEY", "s3cret")
	cmd, _, err := newRoot().Find([]string{"watch"})
	if err != nil {
		t.Fatal(err)
	}
	args := []string{
		"--store", "a b", "--type", "doc:it's", "--type", `doc:"$HOME"`, "--subject", "#x", "--schema", "--tls=false",
		"--key", "s3cret", "--from", "x", "-o", "json",
	}
	if err := cmd.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	line := commandAgain(cmd, "key", "from", "cursor")
	// Every word on a line of its own, as the shell has it.
	words, err := exec.Command("sh", "-c", "printf '%s\\n' "+line).Output()
	if err != nil {
		t.Fatal(err)
	}
	want := "pemba|watch --addr|[::1]:50051 --output json --schema --store|a b|--subject|#x|--tls=false --type|doc:it's|--type|doc:\"$HOME\""
	if got := strings.TrimSpace(string(words)); got != strings.NewReplacer(" --", "\n--", "|", "\n", "output json", "output\njson").Replace(want) {
		t.Errorf("%s\nbecame\n%s", line, got)
	}
}

// TestWatchAgain: what a watch says at its end is the whole command that goes on.
func TestWatchAgain(t *testing.T) {
	r := testStart(t)
	must(t, "", "store", "create", "clinic")
	must(t, watchSchema, "schema", "write", "-", "--store", "clinic")
	w := startBackground(t, "watch", "--store", "clinic", "--type", "doc:a b", "--type", "doc:c", "--heartbeats", "-o", "json", "--key", "s3cret")
	w.wait(t, 1)
	must(t, "", "tuple", "write", `doc:c#viewer@user:a`, "--store", "clinic")
	for lines := 2; !strings.Contains(w.stdout.String(), "created"); lines++ {
		w.wait(t, lines) // There may be more heartbeats.
	}
	w.end(t)
	said := w.stderr.String()
	want := "\nto go on from here, with the --key as before: pemba watch --addr " + r.server.GRPCAddr().String() + " --heartbeats --output json --store clinic --type 'doc:a b' --type doc:c --cursor "
	if !strings.Contains("\n"+said, want) || strings.Contains(said, "s3cret") {
		t.Fatalf("%s", said)
	}
	_, cursor, _ := strings.Cut(strings.TrimSpace(said), "--cursor ")
	next := startBackground(t, "watch", "--store", "clinic", "--cursor", cursor)
	must(t, "", "tuple", "delete", "doc:c#viewer@user:a", "--store", "clinic")
	if lines := next.wait(t, 1); len(lines) != 1 || !strings.Contains(lines[0], "deleted") {
		t.Errorf("%v", lines)
	}
	next.end(t)
}

// A fakeServer has a schema that cannot be had, or that this program does not
// understand, and a change log without changes.
type fakeServer struct {
	pembav1.UnimplementedSchemaServiceServer
	pembav1.UnimplementedWatchServiceServer
	schema string
	err    error
}

func (f *fakeServer) ReadSchema(context.Context, *pembav1.ReadSchemaRequest) (*pembav1.ReadSchemaResponse, error) {
	return &pembav1.ReadSchemaResponse{Schema: f.schema}, f.err
}

func (f *fakeServer) ReadChanges(*pembav1.ReadChangesRequest, grpc.ServerStreamingServer[pembav1.ReadChangesResponse]) error {
	return nil
}

// refused is an error as a server of ours gives it.
func refused(t *testing.T, code codes.Code, reason string) error {
	t.Helper()
	st, err := status.New(code, "no").WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: api.ErrorDomain})
	if err != nil {
		t.Fatal(err)
	}
	return st.Err()
}

// TestNamesNotCompared: that the names of filters cannot be compared with the
// schema stops nobody, unless the server does not know the caller.
func TestNamesNotCompared(t *testing.T) {
	for _, name := range clientVariables {
		t.Setenv(name, "")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, fake := grpc.NewServer(), &fakeServer{}
	pembav1.RegisterSchemaServiceServer(server, fake)
	pembav1.RegisterWatchServiceServer(server, fake)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	defer func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	changes := []string{"changes", "--type", "dok", "--addr", l.Addr().String()}
	for _, test := range []struct {
		schema string
		err    error
		code   int
		want   string
	}{
		{"definition doc {}", nil, 0, "warning: the schema has no definition \"dok\""},
		{"definition from a later version {}", nil, 0, "warning: the names are not compared"},
		{"", refused(t, codes.ResourceExhausted, "RATE_LIMITED"), 0, "RATE_LIMITED"},
		{"", status.Error(codes.Unavailable, "not now"), 0, "warning: the names are not compared with the store's schema: not now"},
		{"", refused(t, codes.FailedPrecondition, "NO_SCHEMA"), 0, ""},
		{"", refused(t, codes.NotFound, "UNKNOWN_STORE"), 1, "UNKNOWN_STORE"},
		{"", refused(t, codes.Unauthenticated, "KEY_INVALID"), 1, "KEY_INVALID"},
	} {
		fake.schema, fake.err = test.schema, test.err
		_, stderr, code := pemba("", changes...)
		if code != test.code || !strings.Contains(stderr, test.want) || test.want == "" && stderr != "" {
			t.Errorf("%q, %v: exit %d: %s", test.schema, test.err, code, stderr)
		}
	}
}

// TestPrintable: what a foreign file holds does not reach the terminal, and the mark
// below a line stands where the mistake is.
func TestPrintable(t *testing.T) {
	for text, want := range map[string]string{
		"a\x00b\x1b[2J\r\tc\n":  "a␀b␛[2J␍\tc\n",
		"\x7f\u0085\u202eé\xff": "␡\ufffd\ufffdé\ufffd",
	} {
		if got := printable(text); got != want {
			t.Errorf("%q became %q, expected %q", text, got, want)
		}
	}
	t.Chdir(t.TempDir())
	if err := os.WriteFile("binary", []byte("definition \x00\x1b user {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	said := fails(t, "", "schema", "check", "binary")
	if strings.ContainsFunc(said, func(r rune) bool { return r < ' ' && r != '\n' }) {
		t.Errorf("%q", said)
	}
	lines := strings.Split(said, "\n")
	source := slices.IndexFunc(lines, func(line string) bool { return line == "    definition ␀␛ user {}" })
	if source < 0 || strings.Index(lines[source+1], "^") != len("    definition ") {
		t.Errorf("%s", said)
	}
}

// TestCompletions: the shell is offered what there is, by the commands of the
// library and by ours.
func TestCompletions(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{cobra.ShellCompRequestCmd + " che", "check"},
		{cobra.ShellCompRequestCmd + " help tuple imp", "import"},
		{cobra.ShellCompRequestCmd + " completion ba", "bash"},
	} {
		if out := must(t, "", strings.Fields(test.args)...); !strings.HasPrefix(out, test.want+"\t") {
			t.Errorf("%s: %s", test.args, out)
		}
	}
	if out := must(t, "", "completion", "bash"); !strings.Contains(out, "pemba") {
		t.Error("there is no script for bash")
	}
	if out := must(t, "", "help", "tuple", "import"); !strings.Contains(out, "--import-id") || out != must(t, "", "tuple", "import", "--help") {
		t.Errorf("%s", out)
	}
}

// TestTooManyTuples: who writes more than goes at once hears of what takes them.
func TestTooManyTuples(t *testing.T) {
	testStart(t, func(c *startConfig) { c.api.Limits.Updates = 2 })
	must(t, importSchema, "schema", "write", "-")
	if said := fails(t, importLines(3), "tuple", "write", "-"); !strings.Contains(said, "there are more than the 2 tuples that one change may have; \"pemba tuple import\" writes any number") {
		t.Errorf("%s", said)
	}
	if said := fails(t, importLines(3), "tuple", "delete", "-"); !strings.Contains(said, "than the 2 tuples that one change may have; delete them by several commands, or by --filter") {
		t.Errorf("%s", said)
	}
}
