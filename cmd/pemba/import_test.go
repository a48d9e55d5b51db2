package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pembadb/pemba/api/client"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/graph"
)

// must runs a command that has to succeed, and returns its output.
func must(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	stdout, stderr, code := pemba(stdin, args...)
	if code != 0 {
		t.Fatalf("%v: %s", args, stderr)
	}
	return stdout
}

// fails runs a command that has to fail, and returns what it says.
func fails(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	stdout, stderr, code := pemba(stdin, args...)
	if code != 1 {
		t.Fatalf("%v: exit %d: %s", args, code, stdout)
	}
	return stderr
}

const importSchema = "definition user {} definition doc { relation viewer: user }"

// importLines is a file of n tuples.
func importLines(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "doc:%06d#viewer@user:%06d\n", i, i%997)
	}
	return b.String()
}

// longLines is a file of n tuples, of which a chunk takes some 500.
func longLines(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "doc:%01000d#viewer@user:a\n", i)
	}
	return b.String()
}

// staged reports whether a server has a part of an import.
func staged(r *running) func() bool {
	return func() bool {
		stages, err := r.node.Stages(graph.DefaultStore)
		return err != nil || len(stages) > 0 && stages[0].Tuples > 0
	}
}

// TestImportResumes: of an import that is cut off nothing can be seen, and it can
// be gone on with from where it was; but not with other tuples.
func TestImportResumes(t *testing.T) {
	r := testStart(t)
	t.Chdir(t.TempDir())
	const tuples = 22_222
	lines := importLines(tuples)
	if err := os.WriteFile("tuples.txt", []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, importSchema, "schema", "write", "-")
	way := startCutter(t, r.server.GRPCAddr().String())
	// What is on the way when a connection is cut may be lost, so that a slow server
	// may have seen nothing yet.
	way.due = staged(r)
	way.sent.cutEvery.Store(600 << 10)
	said := fails(t, "", "tuple", "import", "tuples.txt", "--addr", way.addr())
	found := regexp.MustCompile(`--import-id ([0-9a-f]+)`).FindStringSubmatch(said)
	if found == nil {
		t.Fatalf("no id to go on with: %s", said)
	}
	if got := must(t, "", "tuple", "count"); got != "0\n" {
		t.Errorf("%s tuples of an import that was cut off can be seen", got)
	}
	// The same lines but one: what is known would not be what is meant.
	_, rest, _ := strings.Cut(lines, "\n")
	if said := fails(t, rest[:len(rest)/22_221*3000], "tuple", "import", "-", "--import-id", found[1]); !strings.Contains(said, "began with") || !strings.Contains(said, "use another --import-id") {
		t.Errorf("going on with other tuples: %s", said)
	}
	other := strings.Replace(lines, "user:000003", "user:000004", 1)
	if said := fails(t, other, "tuple", "import", "-", "--import-id", found[1]); !strings.Contains(said, "began with") || strings.Contains(said, "go on with") {
		t.Errorf("going on with as many, one of them another: %s", said)
	}
	way.sent.cutEvery.Store(0)
	way.sent.bytes.Store(0)
	got := must(t, "", "tuple", "import", "tuples.txt", "--addr", way.addr(), "--import-id", found[1], "-o", "json")
	if !strings.Contains(got, fmt.Sprintf(`"imported":%d,"changed":%d`, tuples, tuples)) {
		t.Errorf("gone on with: %s", got)
	}
	// It is committed: the same is answered as before, anything else refused.
	if again := must(t, "", "tuple", "import", "tuples.txt", "--import-id", found[1], "-o", "json"); !strings.Contains(again, fmt.Sprintf(`"imported":%d,"changed":%d`, tuples, tuples)) {
		t.Errorf("once more: %s", again)
	}
	for _, args := range [][]string{{other}, {rest}, {lines + "doc:x#viewer@user:a\n"}, {lines, "--create"}} {
		said := fails(t, args[0], append([]string{"tuple", "import", "-", "--import-id", found[1]}, args[1:]...)...)
		if !strings.Contains(said, "STAGE_MISMATCH") || !strings.Contains(said, "use another --import-id") || strings.Contains(said, "go on with") {
			t.Errorf("%v with the id of another import: %s", args[1:], said)
		}
	}
	if exported := must(t, "", "tuple", "export"); sortLines(exported) != sortLines(lines) {
		t.Error("what was imported is not what is exported")
	}
	again := way.sent.bytes.Swap(0)
	got = must(t, "", "tuple", "import", "tuples.txt", "--addr", way.addr(), "-o", "json")
	if !strings.Contains(got, fmt.Sprintf(`"imported":%d,"changed":0`, tuples)) {
		t.Errorf("again: %s", got)
	}
	// At least one of five chunks was known.
	if whole := way.sent.bytes.Load(); again > whole*9/10 {
		t.Errorf("%d bytes of %d were sent again", again, whole)
	}
}

func sortLines(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// TestImportRefused: a tuple that is refused is named by its line, with nothing
// left behind, whatever the mode; but earlier batches.
func TestImportRefused(t *testing.T) {
	testStart(t)
	must(t, importSchema, "schema", "write", "-")
	lines := "# A comment, which has no number of its own.\n" + importLines(6000)
	bad := lines + "doc:x#owner@user:a\n"
	for _, args := range [][]string{{}, {"--import-id", "mine"}, {"--batches"}} {
		said := fails(t, bad, append([]string{"tuple", "import", "-", "-q"}, args...)...)
		if !strings.HasPrefix(said, "pemba: standard input:6002: ") || !strings.Contains(said, `"owner"`) {
			t.Errorf("%v: %s", args, said)
		}
		want := "0\n"
		if slices.Contains(args, "--batches") {
			want = "5000\n"
		}
		if slices.Contains(args, "--import-id") != strings.Contains(said, "go on with --import-id mine") {
			t.Errorf("%v: %s", args, said)
		}
		if got := must(t, "", "tuple", "count"); got != want {
			t.Errorf("%v: %s tuples are left, expected %s", args, got, want)
		}
	}
	// A line that is no tuple.
	said := fails(t, lines+"doc:x\n", "tuple", "import", "-", "-q")
	if !strings.HasPrefix(said, "pemba: standard input:6002: ") || !strings.Contains(said, "nothing was imported") {
		t.Errorf("%s", said)
	}
	// The same tuple twice.
	if said := fails(t, lines+"doc:000007#viewer@user:000007\n", "tuple", "import", "-", "-q"); !strings.Contains(said, "input:6002: ") || !strings.Contains(said, "DUPLICATE_UPDATE") {
		t.Errorf("%s", said)
	}
	// One that is there.
	if said := fails(t, "doc:000007#viewer@user:000007\n", "tuple", "import", "-", "-q", "--create"); !strings.Contains(said, "ALREADY_EXISTS") {
		t.Errorf("%s", said)
	}
	// What failed is forgotten: more imports can fail than may be staged.
	for range 17 {
		fails(t, longLines(600)+"doc:x\n", "tuple", "import", "-", "-q")
	}
	if got := must(t, "\n", "tuple", "import", "-", "-q"); got != "imported 0, there are no tuples in standard input\n" {
		t.Errorf("%s", got)
	}
	if said := fails(t, "", "tuple", "import", "-", "-q", "--batches", "--import-id", "x"); !strings.Contains(said, "exclude") {
		t.Errorf("%s", said)
	}
}

// TestImportForgets: an import that would fail again leaves nothing staged, so that
// any number may fail; one that the user named stays until he drops it.
func TestImportForgets(t *testing.T) {
	testStart(t, func(c *startConfig) { c.api.Limits.ImportTotal = 550 })
	must(t, importSchema, "schema", "write", "-")
	must(t, "", "store", "create", "small", "--tuples-max", "2")
	must(t, importSchema, "schema", "write", "-", "--store", "small")
	for range graph.StagesMax + 1 {
		if said := fails(t, importLines(3), "tuple", "import", "-", "-q", "--store", "small"); !strings.HasSuffix(said, "(STORE_FULL); nothing was imported\n") {
			t.Fatalf("a full store: %s", said)
		}
	}
	if got := must(t, importLines(2), "tuple", "import", "-", "-q", "--store", "small"); !strings.HasPrefix(got, "imported 2, changed 2") {
		t.Errorf("after many failed: %s", got)
	}
	tooMany := longLines(551)
	for range graph.StagesMax + 1 {
		said := fails(t, tooMany, "tuple", "import", "-", "-q")
		if !strings.HasSuffix(said, "; import it with --batches, or as several files (STAGE_TOO_LARGE); nothing was imported\n") || !strings.Contains(said, "more than the 550 tuples") {
			t.Fatalf("more than one import may have: %s", said)
		}
	}
	// Of the named ones the first chunk is there.
	for n := range graph.StagesMax {
		id := fmt.Sprintf("mine-%d", n)
		if said := fails(t, tooMany, "tuple", "import", "-", "-q", "--import-id", id); !strings.HasSuffix(said, "; go on with --import-id "+id+"\n") {
			t.Fatalf("%s", said)
		}
	}
	said := fails(t, importLines(1), "tuple", "import", "-", "-q", "--import-id", "more")
	if strings.Contains(said, "go on with --import-id") || !strings.Contains(said, "16 imports that were not committed") || !strings.Contains(said, "--abort --import-id ID\", or --all (STAGE_TOO_LARGE); nothing was imported") {
		t.Errorf("nothing is there to go on with: %s", said)
	}
	if got := must(t, "", "tuple", "import", "--abort", "--import-id", "mine-0"); got != "forgotten imports: 1\n" {
		t.Errorf("%s", got)
	}
	if got := must(t, "", "tuple", "import", "--abort", "--import-id", "mine-1", "-o", "json"); got != "{\"aborted\":1}\n" {
		t.Errorf("%s", got)
	}
	if said := fails(t, "", "tuple", "import", "--abort", "--import-id", "mine-0"); !strings.Contains(said, "STAGE_UNKNOWN") {
		t.Errorf("%s", said)
	}
	if got := must(t, importLines(1), "tuple", "import", "-", "-q", "--import-id", "more"); !strings.HasPrefix(got, "imported 1, changed 1") {
		t.Errorf("%s", got)
	}
	// What was staged under another schema cannot be gone on with.
	must(t, importSchema+" definition more {}", "schema", "write", "-")
	if said := fails(t, longLines(510), "tuple", "import", "-", "-q", "--import-id", "mine-2"); !strings.Contains(said, "begin again after \"pemba tuple import --addr ") || !strings.Contains(said, " --abort --import-id mine-2\"") {
		t.Errorf("%s", said)
	}
	if got := must(t, "", "tuple", "import", "--abort", "--all"); got != fmt.Sprintf("forgotten imports: %d\n", graph.StagesMax-2) {
		t.Errorf("%s", got)
	}
	for _, args := range []string{"--all", "--abort --all --import-id x", "--abort --all --create"} {
		fails(t, "", append([]string{"tuple", "import"}, strings.Fields(args)...)...)
	}
}

// TestImportEnds: what may succeed later is told from what may not by its reason, and
// after a commit what nobody knows from both.
func TestImportEnds(t *testing.T) {
	for _, test := range []struct {
		name             string
		err              error
		before, atCommit importEnd
	}{
		{"interrupted", context.Canceled, importHindered, importUncertain},
		{"too late", context.DeadlineExceeded, importHindered, importUncertain},
		{"a mistake in the file", errors.New("no tuple"), importRefused, importRefused},
		{"the connection is lost", status.Error(codes.Unavailable, "lost"), importHindered, importUncertain},
		{"the stream is reset", status.Error(codes.Internal, "reset"), importHindered, importUncertain},
		{"gRPC's own bound", status.Error(codes.ResourceExhausted, "message too large"), importRefused, importRefused},
		{"", refused(t, codes.ResourceExhausted, "STORE_FULL"), importRefused, importRefused},
		{"", refused(t, codes.ResourceExhausted, "STAGE_TOO_LARGE"), importRefused, importRefused},
		{"", refused(t, codes.ResourceExhausted, "NUMBERS_EXHAUSTED"), importRefused, importRefused},
		{"", refused(t, codes.ResourceExhausted, "REQUEST_TOO_LARGE"), importRefused, importRefused},
		{"", refused(t, codes.Aborted, "STAGE_STALE"), importRefused, importRefused},
		{"", refused(t, codes.NotFound, "UNKNOWN_STORE"), importRefused, importRefused},
		{"", refused(t, codes.ResourceExhausted, "RATE_LIMITED"), importHindered, importHindered},
		{"", refused(t, codes.ResourceExhausted, "TOO_BUSY"), importHindered, importHindered},
		{"", refused(t, codes.ResourceExhausted, "DISK_FULL"), importHindered, importHindered},
		{"", refused(t, codes.ResourceExhausted, "CLIENT_STALLED"), importHindered, importHindered},
		{"", refused(t, codes.Unauthenticated, "KEY_INVALID"), importHindered, importHindered},
		{"", refused(t, codes.Unavailable, "SHUTTING_DOWN"), importHindered, importUncertain},
		{"", refused(t, codes.DeadlineExceeded, "DEADLINE_EXCEEDED"), importHindered, importUncertain},
		{"", refused(t, codes.Unavailable, "OUTCOME_UNKNOWN"), importHindered, importUncertain},
		{"", refused(t, codes.Internal, "FAULT"), importRefused, importUncertain},
		{"", refused(t, codes.DataLoss, "CORRUPTION"), importRefused, importUncertain},
	} {
		if got := endOfImport(test.err, false); got != test.before {
			t.Errorf("%s %v: %d", test.name, test.err, got)
		}
		if got := endOfImport(test.err, true); got != test.atCommit {
			t.Errorf("%s %v at the commit: %d", test.name, test.err, got)
		}
	}
}

// A brokenImports takes chunks, and fails at their commit.
type brokenImports struct {
	pembav1.UnimplementedTupleServiceServer
	err error
	// aborted counts what was to be forgotten.
	aborted atomic.Int32
}

func (b *brokenImports) GetImport(context.Context, *pembav1.GetImportRequest) (*pembav1.GetImportResponse, error) {
	return &pembav1.GetImportResponse{}, nil
}

func (b *brokenImports) AbortImport(context.Context, *pembav1.AbortImportRequest) (*pembav1.AbortImportResponse, error) {
	b.aborted.Add(1)
	return &pembav1.AbortImportResponse{}, nil
}

func (b *brokenImports) ImportTuples(stream grpc.ClientStreamingServer[pembav1.ImportTuplesRequest, pembav1.ImportTuplesResponse]) error {
	for {
		if _, err := stream.Recv(); err != nil {
			return b.err
		}
	}
}

// TestImportUncertain: an import whose commit fails so that nobody knows what became
// of it is neither forgotten nor said to be without effect.
func TestImportUncertain(t *testing.T) {
	for _, name := range clientVariables {
		t.Setenv(name, "")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, broken := grpc.NewServer(), &brokenImports{}
	pembav1.RegisterTupleServiceServer(server, broken)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	defer func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	for _, test := range []struct {
		err     error
		want    string
		aborted int32
	}{
		{refused(t, codes.DataLoss, "CORRUPTION"), "whether it is visible is not known", 0},
		{refused(t, codes.Internal, "FAULT"), "whether it is visible is not known", 0},
		{refused(t, codes.Unavailable, "OUTCOME_UNKNOWN"), "whether it is visible is not known", 0},
		{refused(t, codes.ResourceExhausted, "DISK_FULL"), "nothing can be seen of it; go on with --import-id", 0},
		{refused(t, codes.ResourceExhausted, "STORE_FULL"), "nothing was imported", 1},
	} {
		broken.err = test.err
		broken.aborted.Store(0)
		said := fails(t, importLines(1), "tuple", "import", "-", "-q", "--addr", l.Addr().String())
		if !strings.Contains(said, test.want) || test.aborted == 0 && strings.Contains(said, "nothing was imported") || broken.aborted.Load() != test.aborted {
			t.Errorf("%v: aborted %d: %s", test.err, broken.aborted.Load(), said)
		}
	}
}

// TestImportInterrupted: a standard input that says nothing keeps nobody waiting.
func TestImportInterrupted(t *testing.T) {
	testStart(t)
	must(t, importSchema, "schema", "write", "-")
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int, 1)
	var stdout, stderr bytes.Buffer
	go func() { done <- execute(ctx, []string{"tuple", "import", "-", "-q"}, r, &stdout, &stderr) }()
	if _, err := io.WriteString(w, importLines(1000)); err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case code := <-done:
		if code != 1 || !strings.Contains(stderr.String(), "--import-id") {
			t.Errorf("exit %d: %s", code, stderr.String())
		}
	case <-time.After(time.Minute):
		t.Fatal("it did not end")
	}
	if err := errors.Join(w.Close(), r.Close()); err != nil {
		t.Error(err)
	}
}

// TestExport: a filter, a moment, and a failure that leaves no file.
func TestExport(t *testing.T) {
	testStart(t)
	t.Chdir(t.TempDir())
	must(t, importSchema, "schema", "write", "-")
	must(t, importLines(700), "tuple", "import", "-")
	then := time.Now().UTC().Format(time.RFC3339Nano)
	must(t, "", "tuple", "delete", "doc:000001#viewer@user:000001")
	must(t, "", "tuple", "export", "doc:00000%", "--out", "now.csv")
	now, err := os.ReadFile("now.csv")
	if err != nil || strings.Count(string(now), "\n") != 10 {
		t.Errorf("%s, %v", now, err)
	}
	if got := must(t, "", "tuple", "export", "doc:00000%", "--as-of", then, "-o", "json"); strings.Count(got, "\n") != 10 || !strings.Contains(got, "000001") {
		t.Errorf("%s", got)
	}
	fails(t, "", "tuple", "export", "--out", "gone.csv", "--as-of", "2999-01-01")
	if _, err := os.Stat("gone.csv"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a failed export left a file: %v", err)
	}
	if said := fails(t, "", "tuple", "export", "tuples.csv"); !strings.Contains(said, "--out") {
		t.Errorf("%s", said)
	}
}

// TestImportChunkBytes: against a server that takes small messages alone the refusal
// says by which --chunk-bytes an import gets through, and with it every line does that
// fits a message, whatever stands in it, in either mode and beside any metadata.
func TestImportChunkBytes(t *testing.T) {
	testStart(t, func(c *startConfig) { c.api.Limits.RequestBytes = 16 << 10 })
	must(t, `use expiration
		definition user {} caveat odd(xs list<any>) { xs.size() > 0 }
		definition doc { relation viewer: user | user with odd and expiration }`, "schema", "write", "-")
	var b strings.Builder
	odd := func(id, element string, n int) string {
		return fmt.Sprintf("doc:%s#viewer@user:b[odd:{\"xs\":[%s]}][expiration:2999-01-01T00:00:00.5Z]\n", id, strings.TrimSuffix(strings.Repeat(element+",", n), ","))
	}
	for n := range 16 {
		// In a message a context is several times as large as in the file.
		fmt.Fprintf(&b, "doc:%d#viewer@user:a\n%s", n, odd(strconv.Itoa(n), "1", 90*n))
	}
	b.WriteString(longLines(20))
	lines := b.String()
	const tuples = 52
	for _, mode := range []string{"--batches=false", "--batches"} {
		said := fails(t, lines, "tuple", "import", "-", "-q", mode)
		if !regexp.MustCompile(`^pemba: standard input: the request has \d+ bytes; at most 16384 are allowed; send smaller ones with --chunk-bytes 16384, or raise --limit-request-bytes of the server \(REQUEST_TOO_LARGE\); `).MatchString(said) {
			t.Errorf("%s: %s", mode, said)
		}
	}
	if got := must(t, "", "tuple", "count"); got != "0\n" {
		t.Errorf("%s tuples of imports that were refused at once", got)
	}
	metadata := `{"why":"` + strings.Repeat("x", 15<<10) + `"}`
	changed := tuples
	for _, args := range [][]string{
		{"--chunk-bytes", "16384"},
		{"--chunk-bytes", "16384", "--metadata", metadata, "--recorded-actor", "anne"},
		{"--chunk-bytes", "7777", "--batches", "--metadata", metadata},
		{"--chunk-bytes", "600"}, // Most lines alone.
	} {
		if got := must(t, lines, append([]string{"tuple", "import", "-", "-q"}, args...)...); !strings.HasPrefix(got, fmt.Sprintf("imported %d, changed %d,", tuples, changed)) {
			t.Errorf("%.60q: %s", args, got)
		}
		changed = 0
	}
	if exported := must(t, "", "tuple", "export"); sortLines(strings.ReplaceAll(exported, " ", "")) != sortLines(lines) {
		t.Error("what was imported is not what is exported")
	}
	// What cannot be cut: the first is refused by the server, the second by gRPC.
	for _, line := range []string{odd("x", "1", 2000), odd("x", "1", 8000)} {
		said := fails(t, line, "tuple", "import", "-", "-q", "--chunk-bytes", "16384")
		if !strings.Contains(said, "at most 16384 are allowed; it holds one tuple alone, or what an import begins with, and cannot be smaller; raise --limit-request-bytes of the server (REQUEST_TOO_LARGE); nothing was imported\n") {
			t.Errorf("%s", said)
		}
	}
	// Of metadata that is said at once, whatever it is too large by.
	for _, metadata := range []string{`{"why":"` + strings.Repeat("x", 16<<10) + `"}`, `{"n":[1` + strings.Repeat(",1", 2000) + `]}`, `{"why":"` + strings.Repeat("x", 60<<10) + `"}`} {
		for _, more := range [][]string{nil, {"--batches"}, {"--chunk-bytes", "16384"}, {"--import-id", "mine"}} {
			said := fails(t, lines, append([]string{"tuple", "import", "-", "-q", "--metadata", metadata}, more...)...)
			if !strings.Contains(said, "at most 16384 are allowed; it holds --metadata, which cannot be cut; make that smaller, or raise --limit-request-bytes of the server (REQUEST_TOO_LARGE); ") || strings.Contains(said, "--chunk-bytes") {
				t.Errorf("%q: %s", more, said)
			}
		}
	}
	for _, size := range []string{"-1", "524289"} {
		if said := fails(t, lines, "tuple", "import", "-", "--chunk-bytes", size); !strings.Contains(said, "--chunk-bytes "+size+": 1 to 524288 are allowed") {
			t.Errorf("%s", said)
		}
	}
	if said := fails(t, "", "tuple", "import", "--abort", "--all", "--chunk-bytes", "100"); !strings.Contains(said, "--abort and --chunk-bytes exclude each other") {
		t.Errorf("%s", said)
	}
}

// TestImportChunkBytesResumes: an import in small chunks is gone on with by the same
// --chunk-bytes, and by no others; one whose chunks are refused when some are staged
// says that it has to begin again.
func TestImportChunkBytesResumes(t *testing.T) {
	r := testStart(t, func(c *startConfig) { c.api.Limits.RequestBytes = 16 << 10 })
	must(t, importSchema, "schema", "write", "-")
	const tuples = 11_111
	lines := importLines(tuples)
	way := startCutter(t, r.server.GRPCAddr().String())
	way.due = staged(r)
	way.sent.cutEvery.Store(60 << 10)
	said := fails(t, lines, "tuple", "import", "-", "-q", "--addr", way.addr(), "--chunk-bytes", "9000")
	found := regexp.MustCompile(`; go on with --import-id ([0-9a-f]+) --chunk-bytes 9000\n$`).FindStringSubmatch(said)
	if found == nil {
		t.Fatalf("how to go on is not said: %s", said)
	}
	for _, other := range []string{"0", "10000", "400"} {
		said := fails(t, lines, "tuple", "import", "-", "-q", "--import-id", found[1], "--chunk-bytes", other)
		if !strings.Contains(said, "chunks of another size") || !strings.HasSuffix(said, "; nothing of this was imported; use another --import-id, or the file and the --chunk-bytes that it was begun with\n") {
			t.Errorf("gone on with by --chunk-bytes %s: %s", other, said)
		}
	}
	said = fails(t, importLines(10), "tuple", "import", "-", "-q", "--import-id", found[1], "--chunk-bytes", "9000")
	// Where one chunk alone was staged, it cannot be told from other tuples.
	if !regexp.MustCompile(`began with (more tuples: the server has \d+, and now there are only 10, as when what they are read from has become shorter|other tuples, .* in its first 1 chunks); nothing of this was imported; use another --import-id, or the file and `).MatchString(said) {
		t.Errorf("a file that became shorter: %s", said)
	}
	// Metadata that is too large takes nothing away.
	said = fails(t, lines, "tuple", "import", "-", "-q", "--import-id", found[1], "--chunk-bytes", "9000", "--metadata", `{"why":"`+strings.Repeat("x", 20<<10)+`"}`)
	if !strings.HasSuffix(said, "; nothing can be seen of it; go on with --import-id "+found[1]+" --chunk-bytes 9000\n") {
		t.Errorf("with large metadata: %s", said)
	}
	way.sent.cutEvery.Store(0)
	way.sent.bytes.Store(0)
	got := must(t, lines, "tuple", "import", "-", "-q", "--addr", way.addr(), "--import-id", found[1], "--chunk-bytes", "9000")
	if !strings.HasPrefix(got, fmt.Sprintf("imported %d, changed %d,", tuples, tuples)) {
		t.Errorf("gone on with: %s", got)
	}
	again := way.sent.bytes.Swap(0)
	must(t, lines, "tuple", "import", "-", "-q", "--addr", way.addr(), "--chunk-bytes", "9000")
	if whole := way.sent.bytes.Load(); again >= whole {
		t.Errorf("%d bytes of %d were sent again", again, whole)
	}
}

// TestImportChunkTooLarge: where a chunk is refused and some are staged already, with
// which smaller ones do not go, what is left is forgotten, or its user told to.
func TestImportChunkTooLarge(t *testing.T) {
	testStart(t, func(c *startConfig) { c.api.Limits.RequestBytes = 300 << 10 })
	must(t, importSchema, "schema", "write", "-")
	lines := importLines(5000) + longLines(600)
	const advice = "; send smaller ones with --chunk-bytes 307200, or raise --limit-request-bytes of the server (REQUEST_TOO_LARGE); "
	said := fails(t, lines, "tuple", "import", "-", "-q")
	if !strings.HasSuffix(said, advice+"nothing was imported\n") {
		t.Errorf("%s", said)
	}
	if got := must(t, "", "tuple", "import", "--abort", "--all"); got != "forgotten imports: 0\n" {
		t.Errorf("%s", got)
	}
	said = fails(t, lines, "tuple", "import", "-", "-q", "--import-id", "mine")
	if !strings.Contains(said, advice+"nothing can be seen of it; begin again after \"pemba tuple import --addr ") || !strings.HasSuffix(said, " --abort --import-id mine\"\n") {
		t.Errorf("%s", said)
	}
	must(t, "", "tuple", "import", "--abort", "--import-id", "mine")
	if got := must(t, lines, "tuple", "import", "-", "-q", "--import-id", "mine", "--chunk-bytes", "307200"); !strings.HasPrefix(got, "imported 5600, changed 5600,") {
		t.Errorf("%s", got)
	}
	said = fails(t, lines, "tuple", "import", "-", "-q", "--batches")
	if !strings.HasSuffix(said, advice+"earlier batches, if there were any, may have been written\n") {
		t.Errorf("%s", said)
	}
}

// TestImportDefaultChunks: messages have at most 512 KiB as encoded where nobody says
// how many, also with contexts that are many times as large as in the file, so that a
// server which takes so much takes any file; no size that is not allowed is advised.
func TestImportDefaultChunks(t *testing.T) {
	testStart(t, func(c *startConfig) { c.api.Limits.RequestBytes = client.ChunkBytesMax })
	must(t, `definition user {} caveat odd(xs list<any>) { xs.size() > 0 }
		definition doc { relation viewer: user with odd }`, "schema", "write", "-")
	var b strings.Builder
	context := "1" + strings.Repeat(",1", 5000) // Some 54 KiB each in a message.
	for n := range 15 {
		fmt.Fprintf(&b, "doc:%d#viewer@user:b[odd:{\"xs\":[%s]}]\n", n, context)
	}
	for _, mode := range []string{"--batches=false", "--batches"} {
		if got := must(t, b.String(), "tuple", "import", "-", "-q", mode); !strings.HasPrefix(got, "imported 15,") {
			t.Errorf("%s: %s", mode, got)
		}
	}
}

// TestSmallerChunks: a size is advised where it is allowed, and smaller than before.
func TestSmallerChunks(t *testing.T) {
	for _, test := range []struct {
		given, limit string
		want         int // 0 for none
	}{
		{"0", "16384", 16384},
		{"0", "524287", 524287},
		{"0", "524288", 0},
		{"0", "1048576", 0},
		{"20000", "16384", 16384},
		{"16384", "16384", 0},
		{"600", "16384", 0},
		{"0", "0", 0},
		{"0", "", 0},
		{"0", "many", 0},
	} {
		cmd := newTupleImport()
		if err := cmd.Flags().Set("chunk-bytes", test.given); err != nil {
			t.Fatal(err)
		}
		metadata := map[string]string{"limit": test.limit}
		size, ok := smallerChunks(cmd, metadata)
		if ok != (test.want > 0) || ok && size != test.want {
			t.Errorf("%+v: %d, %v", test, size, ok)
		}
		advised := strings.Contains(withSmallerChunks(cmd, "too large; "+raiseLimit, metadata), fmt.Sprintf("; send smaller ones with --chunk-bytes %d, or "+raiseLimit, test.want))
		if advised != ok {
			t.Errorf("%+v: advised: %v", test, advised)
		}
	}
}

// TestMigrateChunkBytes: a migration to a server that takes small messages alone is
// refused with nothing left behind, and gets through with the --chunk-bytes named.
func TestMigrateChunkBytes(t *testing.T) {
	source, _ := startMigration(t, func(c *startConfig) { c.api.Limits.RequestBytes = 16 << 10 })
	source.must(importSchema, "schema", "write", "-")
	source.must(importLines(3000), "tuple", "import", "-", "-q")
	said := fails(t, "", "migrate", "from-spicedb", "-q")
	if !strings.Contains(said, "at most 16384 are allowed; send smaller ones with --chunk-bytes 16384, or raise --limit-request-bytes of the server (REQUEST_TOO_LARGE); no relationships were copied\n") {
		t.Errorf("%s", said)
	}
	if got := must(t, "", "tuple", "import", "--abort", "--all"); got != "forgotten imports: 0\n" {
		t.Errorf("%s", got)
	}
	if got := migrated(t, "--chunk-bytes", "16384"); got.Relationships != 3000 || got.Changed != 3000 || got.Counted != 3000 {
		t.Errorf("%+v", got)
	}
	// The command line that goes on with batches is one that can.
	must(t, "", "store", "create", "batches")
	said = fails(t, "", "migrate", "from-spicedb", "-q", "--store", "batches", "--batches", "--chunk-bytes", "400000")
	line := goOn(t, said)
	if !strings.Contains(strings.Join(line, " "), "--chunk-bytes 16384 ") || strings.Contains(strings.Join(line, " "), "400000") {
		t.Errorf("%s", said)
	}
	must(t, "", line...)
	if got := must(t, "", "tuple", "count", "--store", "batches"); got != "3000\n" {
		t.Errorf("%s tuples", got)
	}
}

// TestMigrateOtherChunks: who goes on with a migration by another --chunk-bytes is told
// so before anything else, and with the same it goes on.
func TestMigrateOtherChunks(t *testing.T) {
	source, r := startMigration(t)
	source.must(importSchema, "schema", "write", "-")
	source.must(importLines(6000), "tuple", "import", "-", "-q")
	way := startCutter(t, r.server.GRPCAddr().String())
	way.due = staged(r)
	way.sent.cutEvery.Store(60 << 10)
	line := goOn(t, fails(t, "", "migrate", "from-spicedb", "-q", "--addr", way.addr(), "--chunk-bytes", "9000"))
	way.sent.cutEvery.Store(0)
	said := fails(t, "", append(slices.Clone(line), "--chunk-bytes", "10000")...)
	if !strings.Contains(said, "chunks of another size") || !strings.Contains(said, "; go on with it by the --chunk-bytes that it was begun with, if that was another; else ") {
		t.Errorf("%s", said)
	}
	if got := must(t, "", line...); !strings.HasPrefix(got, "copied 6000 relationships, changed 6000,") {
		t.Errorf("%s", got)
	}
}
