package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/pembadb/pemba/api"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/cluster/badgerlog"
	"github.com/pembadb/pemba/graph"
)

// beMain makes the test's own binary behave as pemba, for the tests that need a
// process.
const beMain = "PEMBA_TEST_BE_MAIN"

func TestMain(m *testing.M) {
	closeNodePatience = processWait / 2
	if os.Getenv(beMain) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// testStart starts a server in this process, which the commands then talk to.
func testStart(t *testing.T, change ...func(*startConfig)) *running {
	t.Helper()
	for _, name := range clientVariables {
		t.Setenv(name, "")
	}
	quiet := slog.New(slog.DiscardHandler)
	config := startConfig{
		// The ballast file would take far more of the disk than a test writes.
		cluster: cluster.Config{DataDir: t.TempDir(), Logger: quiet, Log: badgerlog.Config{BallastBytes: -1, StoreDeadline: processWait}},
		api:     api.Config{GRPCAddr: "127.0.0.1:0", Logger: quiet, Keys: []string{"s3cret"}},
	}
	for _, f := range change {
		f(&config)
	}
	r, err := start(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.close(); err != nil {
			t.Error(err)
		}
	})
	t.Setenv("PEMBA_ADDR", r.server.GRPCAddr().String())
	t.Setenv("PEMBA_KEY", "s3cret")
	return r
}

// pemba runs one command line and returns its output and exit code.
func pemba(stdin string, args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	code = execute(context.Background(), args, strings.NewReader(stdin), &out, &errs)
	return out.String(), errs.String(), code
}

// TestScripts runs the scripts in testdata/script, each with a server and an
// empty folder of its own:
//
//	pemba        runs the input as a command line, with '...' around what has blanks;
//	             after a line "<<" the rest of it is the standard input
//	file NAME    writes the input to a file
//	cat NAME     shows a file
//
// Lines of the standard error begin with "! ", and a failure ends in "exit 1".
// Zookies are shown as ZOOKIE, times of this century's first half as TIME, the
// server's address as ADDR.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/script", func(t *testing.T, path string) {
		path, err := filepath.Abs(path)
		if err != nil {
			t.Fatal(err)
		}
		r := testStart(t)
		t.Chdir(t.TempDir())
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "file":
				if err := os.WriteFile(d.CmdArgs[0].Key, []byte(d.Input+"\n"), 0o600); err != nil {
					d.Fatalf(t, "%v", err)
				}
				return ""
			case "cat":
				content, err := os.ReadFile(d.CmdArgs[0].Key)
				if err != nil {
					d.Fatalf(t, "%v", err)
				}
				return string(content)
			case "pemba":
				line, stdin, _ := strings.Cut(d.Input, "\n<<\n")
				stdout, stderr, code := pemba(stdin, splitLine(line)...)
				for l := range strings.Lines(stderr) {
					stdout += "! " + l
				}
				if code != 0 {
					stdout += fmt.Sprintf("exit %d\n", code)
				}
				stdout = strings.ReplaceAll(stdout, r.server.GRPCAddr().String(), "ADDR")
				stdout = timePattern.ReplaceAllString(stdout, "TIME$2")
				return zookiePattern.ReplaceAllString(stdout, "ZOOKIE")
			}
			d.Fatalf(t, "unknown command %s", d.Cmd)
			return ""
		})
	})
}

// timePattern takes in the blanks that fill a column up, for some times are
// shorter than others; of two or more, two are kept.
var timePattern = regexp.MustCompile(`\b20[0-4]\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z(?: *(  ))?`)

var zookiePattern = regexp.MustCompile(`\bA[A-Za-z0-9_-]{49}\b`)

// splitLine splits at blanks outside of single quotes.
func splitLine(line string) []string {
	var args []string
	var arg strings.Builder
	quoted, open := false, false
	for _, c := range strings.TrimSpace(line) {
		switch {
		case c == '\'':
			quoted, open = !quoted, true
		case (c == ' ' || c == '\n') && !quoted:
			if open {
				args = append(args, arg.String())
			}
			arg.Reset()
			open = false
		default:
			arg.WriteRune(c)
			open = true
		}
	}
	if open {
		args = append(args, arg.String())
	}
	return args
}

// TestRoundTrip: what is exported in any form is, imported again, what was there.
func TestRoundTrip(t *testing.T) {
	testStart(t)
	t.Chdir(t.TempDir())
	write := func(name, text string) {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	must := func(args ...string) string {
		t.Helper()
		stdout, stderr, code := pemba("", args...)
		if code != 0 {
			t.Fatalf("%v: %s", args, stderr)
		}
		return stdout
	}
	write("schema", `use expiration
		caveat c(text string, list list<int>) { text == "x" && list == [1] }
		definition user {}
		definition a/doc { relation public: user:*  relation viewer: user | a/doc#viewer | user with c | user with expiration | user with c and expiration }`)
	must("schema", "write", "schema")
	var tuples []string
	ids := []string{
		"plain", "with blank", "a@b#c:d[e]", `quote"back\slash`, "ü€😀", "comma,semi;", "#hash", "//slashes", "'", "=1+2", "%",
		" lead and trail ", "null", "tab-less", strings.Repeat("x", 1024), "\u00a0", "\u202e",
	}
	for i, id := range ids {
		subject := graph.Subject{Object: graph.Object{Type: "user", ID: ids[len(ids)-1-i]}}
		tuple := graph.Tuple{Object: graph.Object{Type: "a/doc", ID: id}, Relation: "viewer", Subject: subject}
		tuples = append(tuples, tuple.String())
		tuple.Subject.ID = "second"
		tuple.Caveat = "c"
		context, err := graph.CanonicalContext(map[string]any{"text": id + "<&>\n\t\u2028", "list": []any{1, -2.0, 9007199254740992.0}})
		if err != nil {
			t.Fatal(err)
		}
		tuple.Context = context
		tuples = append(tuples, tuple.String())
		tuple.Subject.ID = "third"
		tuple.ValidUntil = graph.InstantOf(time.Date(2100, 1, 2, 3, 4, 5, 1000*i, time.UTC))
		tuples = append(tuples, tuple.String())
	}
	tuples = append(tuples, "a/doc:w#public@user:*", "a/doc:w#viewer@a/doc:plain#viewer", "a/doc:w#viewer@user:e[expiration:2100-01-01T00:00:00Z]", "a/doc:w#viewer@user:c[c]")
	slices.Sort(tuples)
	write("tuples", strings.Join(tuples, "\n"))
	must("tuple", "import", "tuples")
	sorted := func(text string) string {
		lines := strings.Split(strings.TrimSpace(text), "\n")
		slices.Sort(lines)
		return strings.Join(lines, "\n")
	}
	want := strings.Join(tuples, "\n")
	if got := sorted(must("tuple", "export")); got != want {
		t.Fatalf("exported:\n%s\nimported:\n%s", got, want)
	}
	for _, name := range []string{"e.txt", "e.csv", "e.jsonl"} {
		must("tuple", "export", "--out", name)
		must("tuple", "delete", "--filter", "a/doc")
		if left := must("tuple", "export"); left != "" {
			t.Fatalf("left: %s", left)
		}
		args := []string{"tuple", "import", name, "--create"}
		if name == "e.csv" {
			args = append(args, "--batches")
		}
		must(args...)
		if got := sorted(must("tuple", "export")); got != want {
			t.Fatalf("%s:\n%s\nimported:\n%s", name, got, want)
		}
	}
}

// FuzzReadTupleLines: no file crashes the importer, and what it reads it can
// write and read again.
func FuzzReadTupleLines(f *testing.F) {
	f.Add("text", "doc:a#viewer@user:b\n# comment\n\ndoc:\"x y\"#viewer@user:*[c:{\"a\":1}]\n")
	f.Add("csv", strings.Join(tupleColumns, ",")+"\ndoc,a,viewer,user,b,,c,\"{\"\"a\"\":1}\",2100-01-01T00:00:00Z\n")
	f.Add("jsonl", `{"object_type":"doc","object_id":"a","relation":"viewer","subject_type":"user","subject_id":"b","context":null}`+"\n")
	f.Fuzz(func(t *testing.T, format, content string) {
		if format != "csv" && format != "jsonl" {
			format = "text"
		}
		var first []graph.Tuple
		for tuple, err := range readTupleLines(strings.NewReader(content), format) {
			if err != nil {
				return
			}
			first = append(first, tuple.Tuple)
		}
		for _, format := range []string{"text", "csv", "jsonl"} {
			var b bytes.Buffer
			w, err := newTupleWriter(&b, format)
			if err != nil {
				t.Fatal(err)
			}
			for _, tuple := range first {
				if err := errors.Join(w.write(tuple), w.flush()); err != nil {
					t.Fatal(err)
				}
			}
			i := 0
			for tuple, err := range readTupleLines(&b, format) {
				if err != nil {
					t.Fatalf("%s: %v", format, err)
				}
				want := first[i]
				if tuple.String() != want.String() {
					t.Fatalf("%s: %s came back as %s", format, want, tuple)
				}
				i++
			}
			if i != len(first) {
				t.Fatalf("%s: %d of %d came back", format, i, len(first))
			}
		}
	})
}

// TestFlagSources: the command line wins over the environment, and that over
// the file.
func TestFlagSources(t *testing.T) {
	t.Chdir(t.TempDir())
	config := "data-dir: from-file\ngrpc-addr: 127.0.0.1:1\nkey: [file1, file2]\nlimit-updates: 7\nbootstrap: true\n"
	if err := os.WriteFile("c.yaml", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	complete := func(args ...string) (*serveFlags, error) {
		cmd := newServe()
		if err := cmd.ParseFlags(args); err != nil {
			t.Fatal(err)
		}
		if err := completeFlags(cmd); err != nil {
			return nil, err
		}
		keys, err := cmd.Flags().GetStringArray("key")
		if err != nil {
			t.Fatal(err)
		}
		text := func(name string) string { return cmd.Flags().Lookup(name).Value.String() }
		return &serveFlags{dataDir: text("data-dir"), grpcAddr: text("grpc-addr"), nodeID: text("node-id"), keys: keys, config: text("limit-updates")}, nil
	}
	t.Setenv("PEMBA_GRPC_ADDR", "127.0.0.1:2")
	t.Setenv("PEMBA_NODE_ID", "env-node")
	t.Setenv("PEMBA_CONFIG", "c.yaml")
	f, err := complete("--node-id", "line-node")
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(f.dataDir, " ", f.grpcAddr, " ", f.nodeID, " ", f.keys, " ", f.config)
	if want := "from-file 127.0.0.1:2 line-node [file1 file2] 7"; got != want {
		t.Errorf("got %s, expected %s", got, want)
	}
	t.Setenv("PEMBA_SERVE_KEY", " one  two ")
	if f, err = complete(); err != nil || !slices.Equal(f.keys, []string{"one", "two"}) {
		t.Errorf("keys of the environment: %v, %v", f, err)
	}
	if f, err = complete("--key", "line"); err != nil || !slices.Equal(f.keys, []string{"line"}) {
		t.Errorf("keys of the command line: %v, %v", f, err)
	}
	for text, want := range map[string]string{
		"[1, 2]":                   "c.yaml:1",
		"unknown: 1":               "c.yaml:1: \"unknown\" is not a flag",
		"data-dir: a\ndata-dir: b": "stands twice",
		"data-dir:":                "needs a value",
		"data-dir: [a]":            "needs a value",
		"\nlimit-updates: many":    "c.yaml:2: limit-updates: \"many\": a whole number",
		"limit-updats: 1":          "did you mean \"limit-updates\"?",
		"key: [a, [b]]":            "list of texts",
		": :":                      "c.yaml",
	} {
		if err := os.WriteFile("c.yaml", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := complete(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, expected %s", text, err, want)
		}
	}
	t.Setenv("PEMBA_LIMIT_CHECKS", "few")
	if _, err := complete(); err == nil || !strings.Contains(err.Error(), "PEMBA_LIMIT_CHECKS: \"few\": a whole number") {
		t.Errorf("a variable that is no number: %v", err)
	}
	t.Setenv("PEMBA_LIMIT_CHECKS", "")
	if err := os.WriteFile("c.yaml", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := complete(); err != nil {
		t.Errorf("an empty file: %v", err)
	}
}

// A process is a pemba that runs beside the test.
type process struct {
	cmd    *exec.Cmd
	stdout *bufio.Scanner
	stderr bytes.Buffer
}

func startProcess(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.Command(self, args...)}
	p.cmd.Env = append(append(os.Environ(), beMain+"=1"), env...)
	p.cmd.Stderr = &p.stderr
	// A standard input that never says anything: nothing may wait for it.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdin = r
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdout = bufio.NewScanner(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // It has ended, if all went well.
		if err := errors.Join(r.Close(), w.Close()); err != nil {
			t.Error(err)
		}
	})
	return p
}

// processWait is how long a process may take for a line, and to end. Only failures
// take as long: the machine may be slow and busy with other things.
const processWait = time.Minute

// line reads up to a line that holds the text and returns it. It ends the process
// when that does not come.
func (p *process) line(t *testing.T, text string) string {
	t.Helper()
	defer p.endLater().Stop()
	for p.stdout.Scan() {
		if strings.Contains(p.stdout.Text(), text) {
			return p.stdout.Text()
		}
	}
	t.Fatalf("no line with %q came; standard error: %s", text, p.stderr.String())
	return ""
}

// endLater kills the process after processWait, unless it is stopped before.
func (p *process) endLater() *time.Timer {
	return time.AfterFunc(processWait, func() { _ = p.cmd.Process.Kill() }) // It may have ended.
}

// end sends a signal and waits; a process that takes longer than processWait is
// killed, which is a failure.
func (p *process) end(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	defer p.endLater().Stop()
	for p.stdout.Scan() {
	}
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("it ended with %v: %s", err, p.stderr.String())
	}
}

var addrPattern = regexp.MustCompile(`gRPC on (127\.0\.0\.1:\d+)`)

// TestServeProcess: serve makes its directory, says where it listens, ends in
// time with streams open, and resumes with everything it acknowledged.
func TestServeProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "data")
	env := []string{
		"PEMBA_DATA_DIR=" + dir, "PEMBA_SERVE_KEY=k", "PEMBA_GRPC_ADDR=127.0.0.1:0", "PEMBA_HTTP_ADDR=127.0.0.1:0",
		"PEMBA_RAFT_ADDR=" + freeAddrs(t, 1)[0],
		"PEMBA_LIMIT_STREAM_STALL=1h", // Nothing but the end of the process ends a stream.
	}
	p := startProcess(t, env, "serve", "--bootstrap")
	addr := addrPattern.FindStringSubmatch(p.line(t, "gRPC on"))[1]
	must := func(stdin string, args ...string) string {
		t.Helper()
		stdout, stderr, code := pemba(stdin, append(args, "--addr", addr, "--key", "k")...)
		if code != 0 {
			t.Fatalf("%v: %s", args, stderr)
		}
		return stdout
	}
	must("definition user {} definition doc { relation viewer: user }", "schema", "write", "-")
	var many strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&many, "doc:%d#viewer@user:anne\n", i)
	}
	must(many.String(), "tuple", "import", "-")
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithStaticStreamWindowSize(64<<10),
		grpc.WithPerRPCCredentials(testKey("k")))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}()
	stream, err := pembav1.NewTupleServiceClient(conn).ReadTuples(t.Context(), &pembav1.ReadTuplesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	p.end(t, syscall.SIGTERM)

	p = startProcess(t, env, "serve", "--bootstrap")
	addr = addrPattern.FindStringSubmatch(p.line(t, "gRPC on"))[1]
	if got := must("", "tuple", "export"); strings.Count(got, "\n") != 5000 {
		t.Errorf("after a restart there are %d tuples", strings.Count(got, "\n"))
	}
	// A second process on the same directory is refused.
	second := startProcess(t, env, "serve")
	late := second.endLater()
	for second.stdout.Scan() {
	}
	late.Stop()
	if err := second.cmd.Wait(); err == nil || second.stderr.Len() == 0 {
		t.Errorf("a second process on the directory: %v, %s", err, second.stderr.String())
	}
	p.end(t, syscall.SIGINT)
}

type testKey string

func (k testKey) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(k)}, nil
}

func (k testKey) RequireTransportSecurity() bool { return false }

// TestServeRefuses: what is wrong with the flags is said before anything is
// made.
func TestServeRefuses(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{"PEMBA_SERVE_KEY", "PEMBA_CONFIG", "PEMBA_GRPC_ADDR", "PEMBA_HTTP_ADDR", "PEMBA_DATA_DIR"} {
		t.Setenv(name, "")
	}
	for _, test := range []struct{ args, want string }{
		{"--grpc-addr :0", "no key is configured"},
		{"--http-addr 0.0.0.0:0", "no key is configured"},
		{"--grpc-addr nonsense", "host:port"},
		{"--limit-checks -1", "checks"},
		{"--limit-import-tuples -1", "import tuples"},
		{"--tls-cert missing.pem --tls-key missing.pem", "missing.pem"},
		{"--client-ca missing.pem", "certificate"},
		{"--key-file missing", "missing"},
		{"--otlp-endpoint nonsense", "nonsense"},
		{"--prune-pause 1us --grpc-addr 127.0.0.1:0 --http-addr none", "PrunePause"},
		{"--log-level loud", "--log-level"},
		{"--log-format xml", "--log-format"},
		{"--config missing.yaml", "missing.yaml"},
		{"--bootstrap --join 127.0.0.1:1", "leave one of them out"},
		{"--replica", "goes with --join"},
		{"--join nonsense", "host:port"},
		{"--join ,", "names no member"},
		{"--join 10.0.0.1:50051 --key k --raft-addr 127.0.0.1:7999", "unencrypted"},
		{"--raft-addr 0.0.0.0:7000", "--peer-cert"},
		{"--raft-addr nonsense", "host:port"},
		{"--peer-cert missing.pem", "--peer-key"},
		{"--peer-cert missing.pem --peer-key missing.pem --peer-ca missing.pem", "missing.pem"},
		{"--node-id ??? --grpc-addr 127.0.0.1:0 --http-addr none", "NodeID"},
		{"more", "takes no arguments"},
	} {
		_, stderr, code := pemba("", append([]string{"serve"}, strings.Fields(test.args)...)...)
		if code != 1 || !strings.Contains(stderr, test.want) {
			t.Errorf("serve %s: exit %d, %s", test.args, code, stderr)
		}
	}
	// Addresses that somebody has.
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := taken.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, test := range []struct{ grpc, http, want string }{
		{taken.Addr().String(), "none", "address already in use; --grpc-addr chooses another"},
		{"127.0.0.1:0", taken.Addr().String(), "address already in use; --http-addr chooses another"},
	} {
		if said := fails(t, "", "serve", "--grpc-addr", test.grpc, "--http-addr", test.http); !strings.Contains(said, test.want) {
			t.Errorf("serve on %s and %s: %s", test.grpc, test.http, said)
		}
	}
	if _, err := os.Stat("pemba-data"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a data directory was made: %v", err)
	}
}

// TestDemoProcess: the demo answers, stays up, takes free ports when the usual
// ones are taken (the second one always finds them so), and cleans up.
func TestDemoProcess(t *testing.T) {
	temp := t.TempDir()
	env := []string{"TMPDIR=" + temp, "PEMBA_KEY=none", "PEMBA_STORE=none"}
	first, second := startProcess(t, env, "demo"), startProcess(t, env, "demo", "--example", "securus")
	for _, p := range []*process{first, second} {
		addr := addrPattern.FindStringSubmatch(p.line(t, "gRPC on"))[1]
		named := ""
		if addr != defaultAddr {
			named = " --addr " + addr
		}
		line := p.line(t, "are written")
		if strings.HasSuffix(line, "is over,") && p.stdout.Scan() {
			line += " " + p.stdout.Text()
		}
		counts := regexp.MustCompile(`and (\d+) tuples are written. The lifetime of (\d+) of them is over, so that (\d+) can be read`).FindStringSubmatch(line)
		if stdout, stderr, _ := pemba("", "tuple", "count", "--addr", addr, "--key=", "--store="); counts == nil || stdout != counts[3]+"\n" || counts[1] == counts[3] {
			t.Errorf("there are %s%s, and it says: %s", stdout, stderr, line)
		}
		if asked := p.line(t, "$ "+shellQuote(os.Args[0])+" check person:nina#manage@person:hanna"); strings.Contains(asked, " --addr ") != (named != "") || !strings.HasSuffix(asked, named) {
			t.Errorf("at %s it shows: %s", addr, asked)
		}
		p.line(t, "allowed")
		p.line(t, "denied")
		p.line(t, "conditional")
		p.line(t, "depot:hamburg-yard")
		p.line(t, "from a second shell")
		command := strings.Fields(p.line(t, "--addr "+addr))
		p.line(t, "stays up")
		stdout, stderr, code := pemba("", command[1:]...)
		if code != 0 || !strings.HasPrefix(stdout, "allowed\n") {
			t.Errorf("the suggested command: exit %d, %s%s", code, stdout, stderr)
		}
	}
	first.end(t, syscall.SIGINT)
	second.end(t, syscall.SIGTERM)
	left, err := os.ReadDir(temp)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestElsewhere: a demo says which of the usual ports it does not have.
func TestElsewhere(t *testing.T) {
	r := testStart(t, func(c *startConfig) { c.api.HTTPAddr = "127.0.0.1:0" })
	if strings.Contains(r.where(), ":"+grpcPort) {
		t.Skip("the system gave out the usual port")
	}
	if got := r.elsewhere(); got != "Another program has 50051 and 8080, so this server listens elsewhere:\n" {
		t.Errorf("it says %q", got)
	}
}

// TestHelp: every command has an example and describes itself.
func TestHelp(t *testing.T) {
	var walk func(path []string)
	walk = func(path []string) {
		stdout, stderr, code := pemba("", append(path, "--help")...)
		if code != 0 || !strings.Contains(stdout, "Examples:\n  pemba") {
			t.Errorf("%v: exit %d, %s%s", path, code, stdout, stderr)
		}
		root, _, err := newRoot().Find(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range root.Commands() {
			if c.Name() != "help" && c.Name() != "completion" {
				walk(append(slices.Clone(path), c.Name()))
			}
		}
	}
	walk(nil)
}

// TestVersion: the version is to be had in both ways that people try.
func TestVersion(t *testing.T) {
	said := must(t, "", "version")
	if flag := must(t, "", "--version"); flag != said || !strings.HasPrefix(said, "pemba ") {
		t.Errorf("pemba --version says %q, and pemba version %q", flag, said)
	}
}

// TestReadInputLimit keeps a file that never ends from filling the memory.
func TestReadInputLimit(t *testing.T) {
	cmd := newVersion()
	cmd.SetIn(io.MultiReader(strings.NewReader("12345"), strings.NewReader("6789")))
	if _, err := readInput(cmd, "-", 8); err == nil {
		t.Error("nine bytes of eight were read")
	}
	cmd.SetIn(strings.NewReader("12345678"))
	if content, err := readInput(cmd, "-", 8); err != nil || len(content) != 8 {
		t.Errorf("%q, %v", content, err)
	}
}
