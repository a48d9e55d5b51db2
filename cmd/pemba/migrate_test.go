package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/api/authzed"
	"github.com/pembadb/pemba/graph"
	"github.com/pembadb/pemba/schema"
)

// A sourceServer is a Pemba that is copied from, with a key of its own.
type sourceServer struct {
	t    *testing.T
	addr string
}

const sourceKey = "theirs"

// startMigration starts a source and the server that is written to, and names both in
// the environment.
func startMigration(t *testing.T, change ...func(*startConfig)) (sourceServer, *running) {
	t.Helper()
	from := testStart(t, func(c *startConfig) {
		c.api.Keys, c.api.Dialects = []string{sourceKey}, []api.Dialect{authzed.Dialect{}}
	})
	r := testStart(t, change...)
	s := sourceServer{t, from.server.GRPCAddr().String()}
	t.Setenv("PEMBA_FROM", s.addr)
	t.Setenv("PEMBA_FROM_KEY", sourceKey)
	return s, r
}

// must runs a command at the source.
func (s sourceServer) must(stdin string, args ...string) string {
	s.t.Helper()
	return must(s.t, stdin, append(args, "--addr", s.addr, "--key", sourceKey)...)
}

// newest is the token of the newest revision, as the dialect tells it.
func (s sourceServer) newest() string {
	s.t.Helper()
	conn, err := grpc.NewClient(s.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() {
		if err := conn.Close(); err != nil {
			s.t.Error(err)
		}
	}()
	ctx := metadata.AppendToOutgoingContext(s.t.Context(), "authorization", "Bearer "+sourceKey)
	answer, err := v1.NewSchemaServiceClient(conn).ReadSchema(ctx, &v1.ReadSchemaRequest{})
	if err != nil {
		s.t.Fatal(err)
	}
	return answer.GetReadAt().GetToken()
}

const migrateSchema = `use expiration

caveat within(where map<any>, day string) {
	where.site.name == "hamburg" && day == "monday"
}

definition user {}

definition group {
	relation member: user | group#member
}

definition folder {
	relation viewer: user | user:* | group#member
}

definition document {
	relation parent: folder
	relation viewer: user | user:* | group#member | user with within | user with expiration | user with within and expiration
	relation blocked: user
	permission view = (viewer + parent->viewer) - blocked
}
`

// manyDocuments are n relationships without an end, in folders whose viewers are a
// group.
func manyDocuments(n int) string {
	var b strings.Builder
	for i := range 10 {
		fmt.Fprintf(&b, "group:g%d#member@user:%06d\nfolder:f%d#viewer@group:g%d#member\n", i, i, i, i)
	}
	for i := range n - 20 {
		if i%2 == 0 {
			fmt.Fprintf(&b, "document:%06d#parent@folder:f%d\n", i, i%7)
		} else {
			fmt.Fprintf(&b, "document:%06d#viewer@user:%06d\n", i, i%97)
		}
	}
	return b.String()
}

// everyKind has a relationship of every kind.
const everyKind = `document:kinds#viewer@group:g1#member
document:kinds#viewer@user:*
document:kinds#viewer@user:plain[within]
document:kinds#viewer@user:nested[within:{"where":{"site":{"floors":[1,2.5,{"deep":null}],"name":"hamburg"}}}]
document:kinds#viewer@user:ends[expiration:2100-01-01T00:00:00.123456Z]
document:kinds#viewer@user:both[within:{"day":"monday"}][expiration:2100-01-01T00:00:00Z]
document:kinds#blocked@user:000001
group:loop#member@group:loop#member
`

// migrated runs a migration that has to succeed.
func migrated(t *testing.T, args ...string) migrationJSON {
	t.Helper()
	var r migrationJSON
	text := must(t, "", append([]string{"migrate", "from-spicedb", "-o", "json", "-q"}, args...)...)
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return r
}

var againPattern = regexp.MustCompile(`this (?:goes on with it|finishes it, or says that it was|goes over it again, and on)(?:, with the same [a-z -]+)?: pemba (.*)\n`)

// goOn returns the command line that a failed migration says.
func goOn(t *testing.T, said string) []string {
	t.Helper()
	found := againPattern.FindStringSubmatch(said)
	if found == nil {
		t.Fatalf("no command goes on: %s", said)
	}
	return splitLine(found[1])
}

// TestMigrate: every kind of relationship arrives as it was, but for those that have
// expired; a store that has anything else is refused.
func TestMigrate(t *testing.T) {
	from, target := startMigration(t)
	from.must(migrateSchema, "schema", "write", "-")
	lines := manyDocuments(6000) + everyKind
	from.must(lines+"document:kinds#viewer@user:gone[expiration:2020-01-01T00:00:00Z]\n", "tuple", "import", "-", "-q")
	r := migrated(t, "--seed", "7")
	if r.Relationships != 6008 || r.Changed != 6008 || r.Counted != 6008 || r.Differing != 0 || r.RefusedAtSource != 0 || r.Checks != 1000 || r.Seed != 7 || r.Zookie == "" {
		t.Errorf("migrated: %+v", r)
	}
	if got := sortLines(must(t, "", "tuple", "export")); got != sortLines(lines) || got != sortLines(from.must("", "tuple", "export")) {
		t.Error("what was migrated is not what the source has")
	}
	for _, change := range schema.Diff(compiledSchema(t, migrateSchema), compiledSchema(t, must(t, "", "schema", "read"))) {
		t.Errorf("the schema that was migrated differs: %s", change)
	}
	// Once more, into what is there.
	if said := fails(t, "", "migrate", "from-spicedb"); !strings.Contains(said, "the default store at ") || !strings.Contains(said, "has 6008 tuples already; name an empty store by --store") {
		t.Errorf("into a store with tuples: %s", said)
	}
	must(t, "", "store", "create", "other")
	must(t, "definition user {}", "schema", "write", "-", "--store", "other")
	if said := fails(t, "", "migrate", "from-spicedb", "--store", "other"); !strings.Contains(said, "has a schema already, and that of the source differs in ") || !strings.Contains(said, "the first: ") {
		t.Errorf("into a store with another schema: %s", said)
	}
	// Another one, for people, into a store that has the same schema.
	must(t, "", "store", "create", "same")
	must(t, migrateSchema, "schema", "write", "-", "--store", "same")
	stdout, stderr, code := pemba("", "migrate", "from-spicedb", "--store", "same", "--verify", "50", "--seed", "8")
	if want := "checks compared: 50, differing: 0, refused at the source: 0, seed 8\n"; code != 0 || !strings.HasPrefix(stdout, "copied 6008 relationships, changed 6008, zookie ") || !strings.HasSuffix(stdout, want) {
		t.Errorf("exit %d: %s%s", code, stdout, stderr)
	}
	if !strings.Contains(stderr, "this goes on with it:\n  pemba migrate from-spicedb --addr "+target.server.GRPCAddr().String()+" --from "+from.addr+" --store same --verify 50 --import-id ") || strings.Contains(stderr, sourceKey) {
		t.Errorf("nobody who kills it knows how it goes on: %s", stderr)
	}
	// What was committed is gone on with without harm, and verified again.
	again := regexp.MustCompile(`pemba (migrate .*)`).FindStringSubmatch(stderr)
	first := regexp.MustCompile(`zookie (\S+)`).FindStringSubmatch(stdout)[1]
	if got, want := must(t, "", splitLine(again[1])...), "was done already: 6008 relationships, zookie "+first+"\n"; !strings.HasPrefix(got, want) ||
		!strings.HasSuffix(got, "checks compared: 50, differing: 0, refused at the source: 0, seed 8\n") {
		t.Errorf("again: %s, and not %s", got, want)
	}
	// The line is whole also where the environment has nothing.
	for _, name := range []string{"PEMBA_ADDR", "PEMBA_FROM"} {
		t.Setenv(name, "")
	}
	if got := must(t, "", splitLine(again[1])...); !strings.HasPrefix(got, "was done already: 6008 relationships") {
		t.Errorf("without the environment: %s", got)
	}
	// What is written since does not belong to it.
	must(t, "document:since#viewer@user:000001", "tuple", "import", "-", "--addr", target.server.GRPCAddr().String(), "--store", "same", "-q")
	if got := must(t, "", splitLine(again[1])...); !strings.Contains(got, "differing: 0") {
		t.Errorf("with something that was written since: %s", got)
	}
	// An id of a migration of another revision.
	from.must("document:since#viewer@user:000001", "tuple", "import", "-", "-q")
	line := regexp.MustCompile(`--from-revision \S+`).ReplaceAllString(again[1], "--from-revision "+from.newest())
	if said := fails(t, "", splitLine(line)...); !strings.Contains(said, "made 6008 tuples visible, and the source has 6009 at --from-revision") {
		t.Errorf("of another revision: %s", said)
	}
}

// TestMigrateUnreachableArrow: a schema in use may have an arrow to a name that there is
// not, which nobody could write anew; a schema that has a mistake besides is refused, and
// so is one without that mistake where the store has no API that takes it.
func TestMigrateUnreachableArrow(t *testing.T) {
	from, _ := startMigration(t, func(c *startConfig) { c.api.Dialects = []api.Dialect{authzed.Dialect{}} })
	const text = "definition folder {\n\trelation viewer: user\n}\n\ndefinition document {\n\trelation parent: folder\n\tpermission view = parent->viewer + parent->veiwer\n}\n\ndefinition user {}\n"
	conn, err := grpc.NewClient(from.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}()
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+sourceKey)
	if _, err := v1.NewSchemaServiceClient(conn).WriteSchema(ctx, &v1.WriteSchemaRequest{Schema: text}); err != nil {
		t.Fatal(err)
	}
	from.must("document:one#parent@folder:a\nfolder:a#viewer@user:anne\n", "tuple", "import", "-", "-q")
	const mistake = "`parent` leads to `folder`, which has no relation or permission `veiwer`"
	for _, store := range []string{"default", "other"} {
		if store != "default" {
			must(t, "", "store", "create", store)
		}
		r := migrated(t, "--store", store, "--seed", "7")
		if r.Relationships != 2 || r.Differing != 0 || r.RefusedAtSource != 0 || r.Checks == 0 {
			t.Errorf("%s: migrated: %+v", store, r)
		}
		stored := must(t, "", "schema", "read", "--store", store)
		if said := fails(t, stored, "schema", "write", "-", "--store", store); !strings.Contains(said, mistake) {
			t.Errorf("%s: written as it is stored: %s", store, said)
		}
		if stdout, stderr, code := pemba(stored, "schema", "lint", "-"); code == 0 || !strings.Contains(stdout, mistake+"; did you mean `viewer`? (arrow-references-unreachable-relation)") {
			t.Errorf("%s: lint: exit %d: %s%s", store, code, stdout, stderr)
		}
		// The filter is compared with that schema, and nothing is said of it.
		if stdout, stderr, code := pemba("", "changes", "--store", store, "--type", "folder"); code != 0 || stderr != "" || !strings.Contains(stdout, "folder:a#viewer@user:anne") {
			t.Errorf("%s: changes: exit %d: %s%s", store, code, stdout, stderr)
		}
		// A store that has that schema, and no tuples.
		must(t, "", "store", "create", store+"-same")
		migrated(t, "--store", store+"-same", "--seed", "7")
		must(t, "", "tuple", "delete", "document:one#parent@folder:a", "folder:a#viewer@user:anne", "--store", store+"-same")
		if r := migrated(t, "--store", store+"-same", "--seed", "7"); r.Differing != 0 {
			t.Errorf("%s: into a store with the same schema: %+v", store, r)
		}
	}
	// The target has no other API here.
	testStart(t)
	if said := fails(t, "", "migrate", "from-spicedb", "--from", from.addr, "--from-key", sourceKey); !strings.Contains(said, "the schema of the source is refused: ") || !strings.Contains(said, mistake) {
		t.Errorf("to a server without the dialect: %s", said)
	}
}

func compiledSchema(t *testing.T, text string) *schema.Schema {
	t.Helper()
	file, err := schema.Parse("schema", text)
	if err != nil {
		t.Fatal(err)
	}
	compiled, err := schema.Check(file)
	if err != nil {
		t.Fatal(err)
	}
	return compiled
}

// TestMigrateLosesSource: a source that is lost now and then is found again; one that
// stays away is gone on with, from what the store has, also when something expired.
func TestMigrateLosesSource(t *testing.T) {
	from, r := startMigration(t)
	from.must(migrateSchema, "schema", "write", "-")
	lines := manyDocuments(12_000) + everyKind
	from.must(lines, "tuple", "import", "-", "-q")
	way := startCutter(t, from.addr)
	must(t, "", "store", "create", "first")
	way.received.cutEvery.Store(250 << 10)
	target := startCutter(t, r.server.GRPCAddr().String())
	if got := migrated(t, "--from", way.addr(), "--addr", target.addr(), "--store", "first", "--verify", "0"); got.Relationships != 12_008 || way.cuts.Load() < 2 {
		t.Errorf("cut %d times: %+v", way.cuts.Load(), got)
	}
	if got := sortLines(must(t, "", "tuple", "export", "--store", "first")); got != sortLines(lines) {
		t.Error("what was migrated over lost connections is not what the source has")
	}

	// These expire before it is gone on with, and stand before all others.
	ends := time.Now().Add(4 * time.Second)
	var soon strings.Builder
	for i := range 100 {
		fmt.Fprintf(&soon, "document:%06d#viewer@user:soon[expiration:%s]\n", i, ends.UTC().Format(time.RFC3339Nano))
	}
	from.must(soon.String(), "tuple", "import", "-", "-q")
	way.gone.Store(true)
	way.received.bytes.Store(0)
	way.cuts.Store(0)
	way.due = staged(r)
	way.received.cutEvery.Store(500 << 10)
	said := fails(t, "", "migrate", "from-spicedb", "-q", "--from", way.addr(), "--from-patience", "200ms", "--verify", "100", "-o", "json")
	if !strings.Contains(said, "the source at "+way.addr()) || !strings.Contains(said, "nothing can be seen of it; this goes on with it: ") {
		t.Fatalf("a source that is gone: %s", said)
	}
	if got := must(t, "", "tuple", "count"); got != "0\n" {
		t.Errorf("%s tuples of a migration that was cut off can be seen", got)
	}
	way.gone.Store(false)
	way.received.cutEvery.Store(0)
	time.Sleep(time.Until(ends))
	whole := target.sent.bytes.Swap(0)
	var got migrationJSON
	text := must(t, "", append(goOn(t, said), "--addr", target.addr())...)
	if err := json.Unmarshal([]byte(text), &got); err != nil || got.Relationships != 12_008 || got.Counted != 12_008 || got.Differing != 0 || got.Checks != 100 {
		t.Errorf("gone on with: %s, %v", text, err)
	}
	if got := sortLines(must(t, "", "tuple", "export")); got != sortLines(lines) {
		t.Error("what was gone on with is not what the source has")
	}
	// Of the chunks at least one was known.
	if again := target.sent.bytes.Load(); again > whole*9/10 {
		t.Errorf("%d bytes of %d were sent again", again, whole)
	}
}

// TestMigrateLosesTarget: a migration whose server is lost can be gone on with, and
// what somebody else wrote there meanwhile is found.
func TestMigrateLosesTarget(t *testing.T) {
	from, r := startMigration(t)
	from.must(migrateSchema, "schema", "write", "-")
	from.must(manyDocuments(12_000), "tuple", "import", "-", "-q")
	way := startCutter(t, r.server.GRPCAddr().String())
	way.due = staged(r)
	way.sent.cutEvery.Store(300 << 10)
	said := fails(t, "", "migrate", "from-spicedb", "-q", "--addr", way.addr(), "--seed", "11")
	if !strings.HasPrefix(said, "pemba: the server at "+way.addr()+": ") {
		t.Errorf("nobody knows who was lost: %s", said)
	}
	way.sent.cutEvery.Store(0)
	line := goOn(t, said)
	if got := must(t, "", "tuple", "count"); got != "0\n" {
		t.Errorf("%s tuples of a migration that was cut off can be seen", got)
	}
	var beside strings.Builder
	for i := range 10 {
		fmt.Fprintf(&beside, "folder:f%d#viewer@user:*\n", i)
	}
	// Another store knows nothing of it.
	must(t, "", "store", "create", "other")
	if said := fails(t, "", append(slices.Clone(line), "--store", "other")...); !strings.Contains(said, "has no schema, so that no migration to it was begun") {
		t.Errorf("another store: %s", said)
	}
	must(t, migrateSchema, "schema", "write", "-", "--store", "other")
	must(t, beside.String(), "tuple", "import", "-", "--store", "other")
	if said := fails(t, "", append(slices.Clone(line), "--store", "other")...); !strings.Contains(said, "has 10 tuples already, and nothing of the import ") {
		t.Errorf("another store with tuples: %s", said)
	}
	must(t, beside.String(), "tuple", "import", "-")
	stdout, stderr, code := pemba("", line...)
	if code != 1 || !strings.Contains(stderr, "12000 relationships were copied, and the store has 12010 tuples; ") || !strings.Contains(stderr, " of 1000 checks have another answer than at the source") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if n := strings.Count(stdout, ": denied at the source, allowed here\n"); n != differencesMax || !strings.Contains(stdout, " more\n") || !strings.Contains(stdout, "seed 11\n") {
		t.Errorf("%d differences: %s", n, stdout)
	}
	// What was seen to differ once is seen to again.
	again, _, _ := pemba("", line...)
	_, a, _ := strings.Cut(again, "\n")
	if _, b, _ := strings.Cut(stdout, "\n"); a != b || !strings.HasPrefix(again, "was done already: 12000 relationships, ") {
		t.Errorf("again:\n%s\nfirst:\n%s", a, b)
	}
}

// TestMigrateHolds: relationships that expire are sent behind the others, also when
// they are too many to be held.
func TestMigrateHolds(t *testing.T) {
	from, r := startMigration(t)
	from.must(migrateSchema, "schema", "write", "-")
	var lines strings.Builder
	for i := range 1500 {
		fmt.Fprintf(&lines, "document:%06d#viewer@user:always\ndocument:%06d#viewer@user:ends[expiration:2100-01-01T00:00:00Z]\n", i, i)
	}
	from.must(lines.String(), "tuple", "import", "-", "-q")
	for i, heldMax := range []int{heldDefault, 10_000} {
		store := fmt.Sprintf("held%d", i)
		must(t, "", "store", "create", store)
		cmd := newMigrateFromSpiceDB()
		var stdout strings.Builder
		cmd.SetOut(&stdout)
		cmd.SetContext(t.Context())
		m := migration{heldMax: heldMax, verify: 100, quiet: true}
		m.connection = connection{addr: r.server.GRPCAddr().String(), key: "s3cret", store: store}
		m.from = sourceConnection{addr: from.addr, key: sourceKey, patience: time.Second}
		if err := m.run(cmd); err != nil {
			t.Fatal(err)
		}
		if m.overflowed != (i == 1) || m.added != 3000 {
			t.Errorf("of at most %d bytes: overflowed %v, %d added", heldMax, m.overflowed, m.added)
		}
		for n, tuple := range m.recent {
			if want := []string{"always", "ends"}[n/1500]; tuple.Subject.ID != want {
				t.Fatalf("of at most %d bytes: tuple %d is %s, expected one for %s", heldMax, n, tuple, want)
			}
		}
		if got := must(t, "", "tuple", "export", "--store", store); sortLines(got) != sortLines(lines.String()) {
			t.Error("what was migrated is not what the source has")
		}
	}
}

// TestMigrateInterrupted: who is interrupted is told how to go on.
func TestMigrateInterrupted(t *testing.T) {
	from, r := startMigration(t)
	from.must(migrateSchema, "schema", "write", "-")
	from.must(manyDocuments(12_000), "tuple", "import", "-", "-q")
	ctx, cancel := context.WithCancel(t.Context())
	way := startCutter(t, from.addr)
	way.due = func() bool {
		if staged(r)() {
			cancel()
			return true
		}
		return false
	}
	way.received.cutEvery.Store(500 << 10)
	var stdout, stderr strings.Builder
	if code := execute(ctx, []string{"migrate", "from-spicedb", "-q", "--from", way.addr()}, strings.NewReader(""), &stdout, &stderr); code != 1 {
		t.Fatalf("exit %d: %s", code, stdout.String())
	}
	way.received.cutEvery.Store(0)
	if got := must(t, "", goOn(t, stderr.String())...); !strings.HasPrefix(got, "copied 12000 relationships, changed 12000, ") {
		t.Errorf("gone on with: %s", got)
	}
}

// TestMigrateBatches: what is too large for one import is refused with a word of
// batches, which can be gone over again.
func TestMigrateBatches(t *testing.T) {
	from, _ := startMigration(t, func(c *startConfig) { c.api.Limits.ImportTotal = 550 })
	from.must(migrateSchema, "schema", "write", "-")
	lines := manyDocuments(1000) + everyKind
	from.must(lines, "tuple", "import", "-", "-q")
	said := fails(t, "", "migrate", "from-spicedb", "-q")
	if !strings.Contains(said, "the source has more than the 550 relationships that may become visible at once; migrate with --batches (STAGE_TOO_LARGE); no relationships were copied") {
		t.Errorf("too many: %s", said)
	}
	r := migrated(t, "--batches")
	if r.Relationships != 1008 || r.Changed != 1008 || r.Counted != 1008 || r.Differing != 0 || r.Zookie == "" {
		t.Errorf("in batches: %+v", r)
	}
	must(t, "", "tuple", "delete", "document:kinds#viewer@user:*")
	if r = migrated(t, "--batches", "--from-revision", r.FromRevision); r.Relationships != 1008 || r.Changed != 1 || r.Counted != 1008 || r.Differing != 0 {
		t.Errorf("over again: %+v", r)
	}
	if got := sortLines(must(t, "", "tuple", "export")); got != sortLines(lines) {
		t.Errorf("what was migrated is not what the source has:\n%s\n\n%s", got, sortLines(lines))
	}
}

// TestMigrateMistakes: what is wrong with the source is told from what is wrong with
// the server that is written to, with the flags of each.
func TestMigrateMistakes(t *testing.T) {
	from, r := startMigration(t)
	expect := func(want string, args ...string) {
		t.Helper()
		if said := fails(t, "", append([]string{"migrate", "from-spicedb"}, args...)...); !strings.Contains(said, want) {
			t.Errorf("%v: %s, expected %s", args, said, want)
		}
	}
	expect("there is nothing to copy, for the source has no schema")
	expect("invalid preshared key: invalid token; the key was given by --from-key", "--from-key", "wrong")
	expect("the key is not one of this server's; it was given by --key", "--key", "wrong", "--from-revision", "x", "--import-id", "y")
	// The server that is written to has no dialect.
	expect("it does not speak authzed.api.v1, or too old a version of it", "--from", r.server.GRPCAddr().String(), "--from-key", "s3cret")
	expect("speak TLS with --from-tls or --from-ca-cert, or allow it with --from-insecure-key", "--from", "192.0.2.1:50051", "--from-key", "x")
	expect("the server does not seem to encrypt; leave out --from-tls, --from-ca-cert and --from-client-cert (PEMBA_FROM_TLS, PEMBA_FROM_CA_CERT,", "--from-tls")
	expect("missing.pem", "--from-ca-cert", "missing.pem")
	expect("--from-revision goes on with a migration, and needs its --import-id or --batches", "--from-revision", "x")
	expect("--import-id needs the --from-revision", "--import-id", "x")
	expect("exclude each other", "--import-id", "x", "--batches")
	expect("--verify -1: 0 to 1000000 are allowed", "--verify", "-1")
	expect("--from-patience -1s: it is negative", "--from-patience", "-1s")
	expect("takes no arguments", "extra")
	must(t, "definition user {}", "schema", "write", "-")
	expect("the source has no schema", "--from-revision", "x", "--import-id", "y")
	expect(`--from-store: there is no such store: `, "--from-store", "nope")
	from.must("definition user {}", "schema", "write", "-")
	expect("the token is garbled, or was made by another server (InvalidArgument); nothing can be seen of it; this goes on with it, with the same --key: pemba migrate from-spicedb --addr "+r.server.GRPCAddr().String()+" --from "+from.addr+" --import-id y --from-revision x --seed ", "--from-revision", "x", "--import-id", "y", "--key", "s3cret")
	t.Setenv("PEMBA_FROM_KEY", "")
	expect("it wants a key; give it by --from-key or PEMBA_FROM_KEY")
	t.Setenv("PEMBA_FROM_TLS", "maybe")
	expect(`PEMBA_FROM_TLS is "maybe"; true and false are allowed`)
	t.Setenv("PEMBA_FROM_TLS", "")
	t.Setenv("PEMBA_FROM", "")
	expect("name the server to copy from by --from or PEMBA_FROM")
	// A schema and no relationships.
	from.must("definition user {}", "schema", "write", "-")
	if got := must(t, "", "migrate", "from-spicedb", "--from", from.addr, "--from-key", sourceKey, "--seed", "1"); !strings.HasPrefix(got, "copied the schema; there are no relationships\n") {
		t.Errorf("without relationships: %s", got)
	}
}

// A fakeSource answers as it is told.
type fakeSource struct {
	v1.UnimplementedSchemaServiceServer
	v1.UnimplementedPermissionsServiceServer
	schema    string
	revision  *v1.ZedToken
	export    func(*v1.ExportBulkRelationshipsRequest, grpc.ServerStreamingServer[v1.ExportBulkRelationshipsResponse]) error
	checkBulk func(*v1.CheckBulkPermissionsRequest) (*v1.CheckBulkPermissionsResponse, error)
	// read is called first by ReadSchema, if it is set.
	read func(context.Context) error
}

func (f *fakeSource) ReadSchema(ctx context.Context, _ *v1.ReadSchemaRequest) (*v1.ReadSchemaResponse, error) {
	if f.read != nil {
		if err := f.read(ctx); err != nil {
			return nil, err
		}
	}
	return &v1.ReadSchemaResponse{SchemaText: f.schema, ReadAt: f.revision}, nil
}

func (f *fakeSource) ExportBulkRelationships(r *v1.ExportBulkRelationshipsRequest, stream grpc.ServerStreamingServer[v1.ExportBulkRelationshipsResponse]) error {
	return f.export(r, stream)
}

func (f *fakeSource) CheckBulkPermissions(_ context.Context, r *v1.CheckBulkPermissionsRequest) (*v1.CheckBulkPermissionsResponse, error) {
	return f.checkBulk(r)
}

// startFakeSource serves f until the test ends, and names it in the environment.
func startFakeSource(t *testing.T, f *fakeSource) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.MaxSendMsgSize(128 << 20))
	v1.RegisterSchemaServiceServer(server, f)
	v1.RegisterPermissionsServiceServer(server, f)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Setenv("PEMBA_FROM", l.Addr().String())
}

// TestMigrateAnswers: what the source refuses is counted and not compared, item by
// item or as a whole; missing context is compared as a set.
func TestMigrateAnswers(t *testing.T) {
	testStart(t)
	relationship := func(id, subject string, caveat *v1.ContextualizedCaveat) *v1.Relationship {
		return &v1.Relationship{
			Resource: &v1.ObjectReference{ObjectType: "document", ObjectId: id}, Relation: "viewer", OptionalCaveat: caveat,
			Subject: &v1.SubjectReference{Object: &v1.ObjectReference{ObjectType: "user", ObjectId: subject}},
		}
	}
	calls := 0
	f := &fakeSource{
		schema:   `caveat both(first bool, second bool) { first && second } definition user {} definition document { relation viewer: user | user with both }`,
		revision: &v1.ZedToken{Token: "revision 1"},
	}
	f.export = func(r *v1.ExportBulkRelationshipsRequest, stream grpc.ServerStreamingServer[v1.ExportBulkRelationshipsResponse]) error {
		if got := r.GetConsistency().GetAtExactSnapshot().GetToken(); got != "revision 1" {
			return grpcstatus.Errorf(codes.InvalidArgument, "asked at %q", got)
		}
		calls++
		switch cursor := r.GetOptionalCursor().GetToken(); cursor {
		case "":
			first := []*v1.Relationship{relationship("free", "anne", nil), relationship("deep", "anne", nil)}
			return errors.Join(
				stream.Send(&v1.ExportBulkRelationshipsResponse{Relationships: first, AfterResultCursor: &v1.Cursor{Token: "second"}}),
				grpcstatus.Error(codes.DeadlineExceeded, "the stream was idle"))
		case "second":
			last := []*v1.Relationship{relationship("bound", "anne", &v1.ContextualizedCaveat{CaveatName: "both"})}
			return stream.Send(&v1.ExportBulkRelationshipsResponse{Relationships: last, AfterResultCursor: &v1.Cursor{Token: "end"}})
		default:
			return grpcstatus.Errorf(codes.InvalidArgument, "cursor %q", cursor)
		}
	}
	// A name that the source does not have is no refusal.
	unknown, err := grpcstatus.New(codes.FailedPrecondition, "relation not found").WithDetails(&errdetails.ErrorInfo{
		Reason: v1.ErrorReason_ERROR_REASON_UNKNOWN_RELATION_OR_PERMISSION.String(), Domain: "authzed.com",
	})
	if err != nil {
		t.Fatal(err)
	}
	answers := map[string]*v1.CheckBulkPermissionsResponseItem{
		"free":  {Permissionship: v1.CheckPermissionResponse_PERMISSIONSHIP_HAS_PERMISSION},
		"bound": {Permissionship: v1.CheckPermissionResponse_PERMISSIONSHIP_CONDITIONAL_PERMISSION, PartialCaveatInfo: &v1.PartialCaveatInfo{MissingRequiredContext: []string{"second", "first", "second"}}},
	}
	tooDeep := grpcstatus.New(codes.FailedPrecondition, "maximum depth exceeded")
	whole := false
	f.checkBulk = func(r *v1.CheckBulkPermissionsRequest) (*v1.CheckBulkPermissionsResponse, error) {
		answer := &v1.CheckBulkPermissionsResponse{}
		for _, item := range r.GetItems() {
			pair := &v1.CheckBulkPermissionsPair{Request: item}
			if item.GetResource().GetObjectId() == "deep" {
				if whole {
					return nil, tooDeep.Err()
				}
				pair.Response = &v1.CheckBulkPermissionsPair_Error{Error: &status.Status{Code: int32(tooDeep.Code()), Message: tooDeep.Message()}}
			} else {
				pair.Response = &v1.CheckBulkPermissionsPair_Item{Item: answers[item.GetResource().GetObjectId()]}
			}
			answer.Pairs = append(answer.Pairs, pair)
		}
		return answer, nil
	}
	startFakeSource(t, f)
	for i, asked := range []bool{false, true} {
		store := fmt.Sprintf("store%d", i)
		must(t, "", "store", "create", store)
		whole = asked
		got := migrated(t, "--store", store)
		if got.Relationships != 3 || got.Checks != 2 || got.RefusedAtSource != 1 || got.Differing != 0 {
			t.Errorf("refused as a whole %v: %+v", asked, got)
		}
	}
	if calls < 4 {
		t.Errorf("the export was asked for %d times, for two copies over a lost stream each", calls)
	}
	// The same source that answers otherwise.
	must(t, "", "store", "create", "differs")
	answers["bound"].PartialCaveatInfo.MissingRequiredContext = []string{"first"}
	stdout, stderr, code := pemba("", "migrate", "from-spicedb", "--store", "differs", "-q")
	if code != 1 || !strings.Contains(stdout, "  document:bound#viewer@user:anne: conditional on first at the source, conditional on first, second here\n") {
		t.Errorf("exit %d: %s%s", code, stdout, stderr)
	}
	must(t, "", "store", "create", "unknown")
	tooDeep = unknown
	stdout, stderr, code = pemba("", "migrate", "from-spicedb", "--store", "unknown", "-q")
	if code != 1 || !strings.Contains(stdout, "  document:deep#viewer@user:anne: no such type or name at the source, allowed here\n") {
		t.Errorf("exit %d: %s%s", code, stdout, stderr)
	}
	// A source that cannot be asked at all.
	must(t, "", "store", "create", "copied")
	f.checkBulk = func(*v1.CheckBulkPermissionsRequest) (*v1.CheckBulkPermissionsResponse, error) {
		return nil, grpcstatus.Error(codes.Unimplemented, "no bulk checks")
	}
	said := fails(t, "", "migrate", "from-spicedb", "--store", "copied", "-q")
	if !strings.Contains(said, "all is copied and visible at zookie ") || !strings.Contains(said, "could not be verified: ") || !strings.Contains(said, "no bulk checks") {
		t.Errorf("without checks: %s", said)
	}
}

// TestMigrateTooLate: a revision that the source does not have any more is said to be
// gone, with what forgets the import; so is a source that tells no revision.
func TestMigrateTooLate(t *testing.T) {
	testStart(t)
	f := &fakeSource{schema: "definition user {} definition document { relation viewer: user }", revision: &v1.ZedToken{Token: "old"}}
	fail := codes.Unavailable
	f.export = func(_ *v1.ExportBulkRelationshipsRequest, stream grpc.ServerStreamingServer[v1.ExportBulkRelationshipsResponse]) error {
		return grpcstatus.Error(fail, "no such state")
	}
	startFakeSource(t, f)
	said := fails(t, "", "migrate", "from-spicedb", "-q", "--from-patience", "10ms")
	line := goOn(t, said)
	fail = codes.OutOfRange
	said = fails(t, "", line...)
	if !strings.Contains(said, "no such state (OutOfRange); the source does not have the revision any more at which the migration began; begin anew, without --from-revision and --import-id, after: pemba tuple import --addr=") || !strings.Contains(said, " --abort --import-id ") {
		t.Errorf("too late: %s", said)
	}
	// Of a migration that has just begun there is nothing to forget, and one in batches
	// cannot be gone on with.
	if said = fails(t, "", "migrate", "from-spicedb", "-q"); !strings.HasSuffix(said, "no such state (OutOfRange); no relationships were copied\n") {
		t.Errorf("gone at once: %s", said)
	}
	if said = fails(t, "", "migrate", "from-spicedb", "-q", "--batches"); !strings.HasSuffix(said, "; the source does not have the revision any more at which the migration began; begin anew with an empty store\n") {
		t.Errorf("gone at once, with batches: %s", said)
	}
	// A page behind which nobody could go on, and a relationship that no server takes.
	page := &v1.ExportBulkRelationshipsResponse{Relationships: []*v1.Relationship{{
		Resource: &v1.ObjectReference{ObjectType: "document", ObjectId: "readme"}, Relation: "owner",
		Subject: &v1.SubjectReference{Object: &v1.ObjectReference{ObjectType: "user", ObjectId: "anne"}},
	}}}
	f.export = func(_ *v1.ExportBulkRelationshipsRequest, stream grpc.ServerStreamingServer[v1.ExportBulkRelationshipsResponse]) error {
		return stream.Send(page)
	}
	if said := fails(t, "", "migrate", "from-spicedb", "-q"); !strings.Contains(said, "a page of the export has no cursor") {
		t.Errorf("no cursor: %s", said)
	}
	page.AfterResultCursor = &v1.Cursor{Token: "end"}
	if said := fails(t, "", "migrate", "from-spicedb", "-q"); !strings.Contains(said, "document:readme#owner@user:anne: ") || !strings.Contains(said, `"owner"`) || !strings.Contains(said, "no relationships were copied") {
		t.Errorf("a relation that there is not: %s", said)
	}
	f.revision = nil
	if said := fails(t, "", "migrate", "from-spicedb", "-q"); !strings.Contains(said, "does not tell the revision of its schema") {
		t.Errorf("no revision: %s", said)
	}
}

// TestMigrateOtherStore: a migration is gone on with neither to a store whose schema
// is not that of the source, nor in batches over tuples that it did not write.
func TestMigrateOtherStore(t *testing.T) {
	from, _ := startMigration(t)
	from.must(migrateSchema, "schema", "write", "-")
	from.must(everyKind+"document:a#viewer@user:anne[expiration:2100-01-01T00:00:00Z]", "tuple", "import", "-", "-q")
	revision := from.newest()
	for name, text := range map[string]string{
		"renamed": strings.Replace(migrateSchema, "permission view = (viewer + parent->viewer) - blocked", "permission look = viewer + blocked", 1),
		"changed": strings.Replace(migrateSchema, "(viewer + parent->viewer) - blocked", "viewer", 1),
	} {
		must(t, "", "store", "create", name)
		must(t, text, "schema", "write", "-", "--store", name)
		for _, how := range [][]string{{"--import-id", "x"}, {"--batches"}} {
			said := fails(t, "", append([]string{"migrate", "from-spicedb", "-q", "--store", name, "--from-revision", revision}, how...)...)
			if !strings.Contains(said, "the schema of the source differs from that of the store \""+name+"\"") {
				t.Errorf("%s, %s: %s", name, how, said)
			}
		}
		if got := must(t, "", "tuple", "count", "--store", name); got != "0\n" {
			t.Errorf("%s: %s tuples were copied", name, got)
		}
	}
	must(t, "", "store", "create", "foreign")
	must(t, migrateSchema, "schema", "write", "-", "--store", "foreign")
	must(t, "document:a#viewer@user:anne", "tuple", "import", "-", "--store", "foreign", "-q")
	said := fails(t, "", "migrate", "from-spicedb", "-q", "--store", "foreign", "--batches", "--from-revision", revision)
	if !strings.Contains(said, "has 1 tuples already, and by its change log none of them are of this migration") {
		t.Errorf("over tuples of others: %s", said)
	}
	if got := must(t, "", "tuple", "export", "--store", "foreign"); got != "document:a#viewer@user:anne\n" {
		t.Errorf("the tuples of others became: %s", got)
	}
}

// TestMigrateToTesting: a server with --testing is migrated to like any other, into the
// store of the key, also with a schema that only its other API takes; what is said of a
// store names the means that there are.
func TestMigrateToTesting(t *testing.T) {
	from, _ := startMigration(t, func(c *startConfig) {
		c.cluster.DataDir, c.cluster.InMemory = "", true
		c.api.Testing, c.api.Keys, c.api.Dialects = true, nil, []api.Dialect{authzed.Dialect{}}
	})
	conn, err := grpc.NewClient(from.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}()
	const text = "definition document {\n\trelation viewer: user\n\tpermission view = viewer + viewer->unknown\n}\n\ndefinition user {}\n"
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+sourceKey)
	if _, err := v1.NewSchemaServiceClient(conn).WriteSchema(ctx, &v1.WriteSchemaRequest{Schema: text}); err != nil {
		t.Fatal(err)
	}
	from.must("document:a#viewer@user:anne", "tuple", "import", "-", "-q")
	for _, key := range []string{"one", "two", ""} {
		if r := migrated(t, "--key", key, "--seed", "7"); r.Relationships != 1 || r.Changed != 1 || r.Differing != 0 || r.Checks == 0 {
			t.Errorf("with the key %q: %+v", key, r)
		}
		t.Setenv("PEMBA_KEY", "") // An empty --key leaves it to this.
	}
	for _, test := range []struct {
		what, says string
		args       []string
	}{
		{"once more", "the key's store at ", []string{"--key", "one"}},
		{"once more", "has 1 tuples already; give another --key, which has a store of its own", []string{"--key", "one"}},
		{"another store", "--store or PEMBA_STORE: it is \"blog\", and a server for tests has one store for each key, which is meant where none is named; name none", []string{"--key", "one", "--store", "blog"}},
		{"another store, without a key", "name none, and give another key for another store (UNKNOWN_STORE)\n", []string{"--store", "blog"}},
		{"what was not begun", "the store of the migration by --key and --addr", []string{"--key", "three", "--import-id", "x", "--from-revision", "y"}},
		{"another import", "--key and --addr name the store of the migration", []string{"--key", "one", "--import-id", "x", "--from-revision", "y"}},
	} {
		said := fails(t, "", append([]string{"migrate", "from-spicedb", "-q"}, test.args...)...)
		if !strings.Contains(said, test.says) || strings.Contains(said, "store create") {
			t.Errorf("%s: %s, expected %s", test.what, said, test.says)
		}
	}
}

// TestMigrateVerifiesLate: a migration that was committed is verified again at the
// revision of the commit, also when relationships have expired since.
func TestMigrateVerifiesLate(t *testing.T) {
	from, _ := startMigration(t)
	from.must(migrateSchema, "schema", "write", "-")
	ends := time.Now().Add(6 * time.Second)
	from.must(everyKind+fmt.Sprintf("document:a#viewer@user:soon[expiration:%s]\n", ends.UTC().Format(time.RFC3339Nano)), "tuple", "import", "-", "-q")
	stdout, stderr, code := pemba("", "migrate", "from-spicedb")
	if code != 0 || !strings.HasPrefix(stdout, "copied 9 relationships, changed 9, ") {
		t.Fatalf("exit %d: %s%s", code, stdout, stderr)
	}
	line := splitLine(regexp.MustCompile(`pemba (migrate .*)`).FindStringSubmatch(stderr)[1])
	time.Sleep(time.Until(ends))
	if got := must(t, "", line...); !strings.HasPrefix(got, "was done already: 8 relationships, ") || !strings.Contains(got, "differing: 0, refused at the source: 0") {
		t.Errorf("behind the expiration: %s", got)
	}
	// The source has another schema by now.
	from.must(strings.Replace(migrateSchema, "(viewer + parent->viewer) - blocked", "viewer", 1), "schema", "write", "-")
	if said := fails(t, "", line...); !strings.Contains(said, "its schema is not the one that the source has now, they differ in 1 places") {
		t.Errorf("with another schema at the source: %s", said)
	}
}

// TestMigrateKeyRefused: a key that is refused in the middle keeps nobody from going
// on from what the store has.
func TestMigrateKeyRefused(t *testing.T) {
	r := testStart(t)
	var pages [][]*v1.Relationship
	for page := range 3 {
		var list []*v1.Relationship
		for i := range 4000 {
			list = append(list, &v1.Relationship{
				Resource: &v1.ObjectReference{ObjectType: "document", ObjectId: fmt.Sprintf("d%05d", page*4000+i)}, Relation: "viewer",
				Subject: &v1.SubjectReference{Object: &v1.ObjectReference{ObjectType: "user", ObjectId: "anne"}},
			})
		}
		pages = append(pages, list)
	}
	f := &fakeSource{schema: "definition user {} definition document { relation viewer: user }", revision: &v1.ZedToken{Token: "now"}}
	refused := true
	f.export = func(_ *v1.ExportBulkRelationshipsRequest, stream grpc.ServerStreamingServer[v1.ExportBulkRelationshipsResponse]) error {
		for i, page := range pages {
			if refused && i == 2 {
				for end := time.Now().Add(20 * time.Second); !staged(r)() && time.Now().Before(end); {
					time.Sleep(time.Millisecond)
				}
				return grpcstatus.Error(codes.Unauthenticated, "unknown key")
			}
			if err := stream.Send(&v1.ExportBulkRelationshipsResponse{Relationships: page, AfterResultCursor: &v1.Cursor{Token: fmt.Sprint(i)}}); err != nil {
				return err
			}
		}
		return nil
	}
	passing := codes.Unavailable
	f.checkBulk = func(r *v1.CheckBulkPermissionsRequest) (*v1.CheckBulkPermissionsResponse, error) {
		answer := &v1.CheckBulkPermissionsResponse{}
		for _, item := range r.GetItems() {
			answer.Pairs = append(answer.Pairs, &v1.CheckBulkPermissionsPair{Request: item, Response: &v1.CheckBulkPermissionsPair_Error{
				Error: grpcstatus.New(passing, "no answer").Proto(),
			}})
		}
		return answer, nil
	}
	startFakeSource(t, f)
	said := fails(t, "", "migrate", "from-spicedb", "-q", "--from-key", "old", "--from-patience", "100ms", "--verify", "10")
	if !strings.Contains(said, "unknown key; nothing can be seen of it; this goes on with it: pemba ") || !staged(r)() {
		t.Fatalf("with a key that was refused: %s", said)
	}
	refused = false
	line := goOn(t, said)
	// Items that fail by what passes are not questions that were refused.
	if said = fails(t, "", line...); !strings.Contains(said, "all is copied and visible at zookie ") || !strings.Contains(said, "no answer (Unavailable); it was tried again for --from-patience, 100ms; this verifies it again") {
		t.Errorf("checks that fail: %s", said)
	}
	// Nothing that was compared is no success.
	passing = codes.InvalidArgument
	if said = fails(t, "", line...); !strings.Contains(said, "all is copied, and the answers could not be compared: the source refused all 10 questions, the first: document:d") {
		t.Errorf("checks that are all refused: %s", said)
	}
}

// viewerOf is the relationship of a viewer of an object.
func viewerOf(typ, id string) *v1.Relationship {
	return &v1.Relationship{
		Resource: &v1.ObjectReference{ObjectType: typ, ObjectId: id}, Relation: "viewer",
		Subject: &v1.SubjectReference{Object: &v1.ObjectReference{ObjectType: "user", ObjectId: "anne"}},
	}
}

// pageOf is a page with a cursor.
func pageOf(cursor string, list ...*v1.Relationship) *v1.ExportBulkRelationshipsResponse {
	return &v1.ExportBulkRelationshipsResponse{Relationships: list, AfterResultCursor: &v1.Cursor{Token: cursor}}
}

const viewerSchema = "use expiration\ncaveat soon(n int) { n > 3 }\ndefinition user {}\ndefinition document { relation viewer: user | user with expiration | user with soon and expiration }"

type exportStream = grpc.ServerStreamingServer[v1.ExportBulkRelationshipsResponse]

// TestMigrateForeignNames: what the schema lacks is refused where it comes, also when it
// expires, so that an endless export of ever new types ends.
func TestMigrateForeignNames(t *testing.T) {
	testStart(t)
	f := &fakeSource{schema: viewerSchema, revision: &v1.ZedToken{Token: "now"}}
	startFakeSource(t, f)
	for i, test := range []struct {
		change func(*v1.Relationship)
		want   string
	}{
		{func(r *v1.Relationship) { r.Resource.ObjectType = "page" }, `page:a#viewer@user:anne: the schema has no type "page"`},
		{func(r *v1.Relationship) { r.Relation = "owner" }, `the schema has no relation "owner" of "document"`},
		{func(r *v1.Relationship) { r.Subject.Object.ObjectType = "robot" }, `the schema has no type "robot"`},
		{func(r *v1.Relationship) { r.Subject.OptionalRelation = "friend" }, `the schema has no relation or permission "friend" of "user"`},
		{func(r *v1.Relationship) { r.OptionalCaveat = &v1.ContextualizedCaveat{CaveatName: "late"} }, `the schema has no caveat "late"`},
	} {
		f.export = func(_ *v1.ExportBulkRelationshipsRequest, stream exportStream) error {
			for n := 0; stream.Context().Err() == nil; n++ {
				r := viewerOf("document", "a")
				r.OptionalExpiresAt = timestamppb.New(time.Now().Add(time.Hour))
				test.change(r)
				if err := stream.Send(pageOf(fmt.Sprint(n), r)); err != nil {
					return err
				}
			}
			return stream.Context().Err()
		}
		store := fmt.Sprintf("foreign%d", i)
		must(t, "", "store", "create", store)
		if said := fails(t, "", "migrate", "from-spicedb", "-q", "--store", store); !strings.Contains(said, test.want) || !strings.Contains(said, "no relationships were copied") {
			t.Errorf("%s: %s", test.want, said)
		}
	}
}

// TestMigrateSilentSource: a source that answers nothing any more, or nothing that goes
// on, ends the command, which says how to go on.
func TestMigrateSilentSource(t *testing.T) {
	r := testStart(t)
	hang := func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Minute):
			return grpcstatus.Error(codes.Aborted, "nobody hung up for a minute")
		}
	}
	whole := func(_ *v1.ExportBulkRelationshipsRequest, stream exportStream) error {
		return stream.Send(pageOf("end", viewerOf("document", "a")))
	}
	for _, test := range []struct {
		name  string
		set   func(*fakeSource)
		wants []string
	}{
		{"schema", func(f *fakeSource) { f.read = hang }, nil},
		{"export", func(f *fakeSource) {
			f.export = func(_ *v1.ExportBulkRelationshipsRequest, stream exportStream) error {
				return errors.Join(stream.Send(pageOf("1", viewerOf("document", "a"))), hang(stream.Context()))
			}
		}, []string{"nothing can be seen of it; this goes on with it: "}},
		{"empty", func(f *fakeSource) {
			f.export = func(_ *v1.ExportBulkRelationshipsRequest, stream exportStream) error {
				for stream.Context().Err() == nil {
					if err := stream.Send(pageOf("1")); err != nil {
						return err
					}
				}
				return stream.Context().Err()
			}
		}, []string{"nothing can be seen of it; this goes on with it: "}},
		{"checks", func(f *fakeSource) {
			f.checkBulk = func(*v1.CheckBulkPermissionsRequest) (*v1.CheckBulkPermissionsResponse, error) {
				return nil, hang(t.Context())
			}
		}, []string{"all is copied and visible at zookie ", "this verifies it again: "}},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := &fakeSource{schema: viewerSchema, revision: &v1.ZedToken{Token: "now"}, export: whole}
			test.set(f)
			startFakeSource(t, f)
			must(t, "", "store", "create", test.name)
			cmd := newMigrateFromSpiceDB()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			cmd.SetContext(ctx)
			m := migration{heldMax: heldDefault, verify: 10, quiet: true}
			m.connection = connection{addr: r.server.GRPCAddr().String(), key: "s3cret", store: test.name}
			m.from = sourceConnection{addr: os.Getenv("PEMBA_FROM"), patience: 500 * time.Millisecond}
			err := m.run(cmd)
			for _, want := range append(test.wants, "nothing that goes on came of it for 500ms; raise --from-patience to wait longer") {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%v, expected %s", err, want)
				}
			}
		})
	}
}

// TestMigrateCircle: an export that comes back to a cursor has an end, and the error
// by which it fails again and again is shown once.
func TestMigrateCircle(t *testing.T) {
	testStart(t)
	f := &fakeSource{schema: viewerSchema, revision: &v1.ZedToken{Token: "now"}}
	startFakeSource(t, f)
	for _, length := range []int{1, 2, 7} {
		f.export = func(_ *v1.ExportBulkRelationshipsRequest, stream exportStream) error {
			for n := range length {
				if err := stream.Send(pageOf(fmt.Sprint(n), viewerOf("document", fmt.Sprint(n)))); err != nil {
					return err
				}
			}
			return grpcstatus.Error(codes.Internal, "boom at the end")
		}
		store := fmt.Sprintf("circle%d", length)
		must(t, "", "store", "create", store)
		said := fails(t, "", "migrate", "from-spicedb", "--store", store)
		if !strings.Contains(said, "a page has the cursor of an earlier one (DataLoss)") || strings.Count(said, "boom at the end (Internal); trying again for 1m0s\n") != 1 {
			t.Errorf("a circle of %d pages: %s", length, said)
		}
	}
	// One that goes on once and then fails alone.
	f.export = func(r *v1.ExportBulkRelationshipsRequest, stream exportStream) error {
		if r.GetOptionalCursor() == nil {
			if err := stream.Send(pageOf("1", viewerOf("document", "a"))); err != nil {
				return err
			}
		}
		return grpcstatus.Error(codes.Internal, "boom at the end")
	}
	must(t, "", "store", "create", "alone")
	if said := fails(t, "", "migrate", "from-spicedb", "-q", "--store", "alone", "--from-patience", "300ms"); !strings.Contains(said, "boom at the end (Internal); it was tried again for --from-patience, 300ms; nothing can be seen of it; this goes on with it: ") {
		t.Errorf("one that fails alone: %s", said)
	}
}

// TestMigrateEmptyPages: an export of ever new cursors and no relationships has an end,
// also when it is cut off now and then; one that has some empty pages is copied.
func TestMigrateEmptyPages(t *testing.T) {
	testStart(t)
	f := &fakeSource{schema: viewerSchema, revision: &v1.ZedToken{Token: "now"}}
	startFakeSource(t, f)
	for _, test := range []struct {
		pages int
		want  string
	}{
		{emptyPagesMax - 1, ""},
		{emptyPagesMax, "the export comes to no end: 10000 pages in a row have cursors to go on from and no relationships (DataLoss); no relationships were copied"},
	} {
		sent := 0
		f.export = func(_ *v1.ExportBulkRelationshipsRequest, stream exportStream) error {
			for n := 0; sent < test.pages; n++ {
				if n == emptyPagesMax*2/3 {
					return grpcstatus.Error(codes.Unavailable, "cut off")
				}
				sent++
				if err := stream.Send(pageOf(fmt.Sprint(sent))); err != nil {
					return err
				}
			}
			return stream.Send(pageOf("end", viewerOf("document", "a")))
		}
		store := fmt.Sprintf("empty%d", test.pages)
		must(t, "", "store", "create", store)
		args := []string{"migrate", "from-spicedb", "-q", "--store", store, "--verify", "0"}
		if test.want == "" {
			if got := must(t, "", args...); !strings.HasPrefix(got, "copied 1 relationships, ") {
				t.Errorf("behind %d empty pages: %s", test.pages, got)
			}
		} else if said := fails(t, "", args...); !strings.Contains(said, test.want) {
			t.Errorf("%d empty pages: %s", test.pages, said)
		}
	}
}

// TestMigrateHostileTexts: what the source says reaches a terminal cut, on one line and
// without control characters; its token is refused where it has any.
func TestMigrateHostileTexts(t *testing.T) {
	testStart(t)
	f := &fakeSource{schema: viewerSchema}
	startFakeSource(t, f)
	judge := func(want, said string) {
		t.Helper()
		if !strings.Contains(said, want) || len(said) > 4<<10 || strings.ContainsAny(strings.TrimSuffix(said, "\n"), "\x1b\x07") || strings.Contains(said, "\nroot") {
			t.Errorf("%.8000q, expected %s", said, want)
		}
	}
	for _, token := range []string{"a\x1b[2J", "a\nroot@host", strings.Repeat("T", revisionBytesMax+1)} {
		f.revision = &v1.ZedToken{Token: token}
		judge(fmt.Sprintf("it has %d bytes and begins with ", len(token)), fails(t, "", "migrate", "from-spicedb"))
	}
	f.revision = &v1.ZedToken{Token: strings.Repeat("T", revisionBytesMax)}
	f.read = func(context.Context) error {
		return grpcstatus.Error(codes.InvalidArgument, "\x1b[31mred\x07\nroot@host# "+strings.Repeat("long ", 1000))
	}
	judge("␛[31mred␇␊root@host# long ", fails(t, "", "migrate", "from-spicedb"))
	f.read = nil
	f.revision = &v1.ZedToken{Token: "now"}
	f.export = func(_ *v1.ExportBulkRelationshipsRequest, stream exportStream) error {
		return stream.Send(pageOf("1", viewerOf("document", "a\x1b[31m\nroot@host# "+strings.Repeat("x", 900))))
	}
	must(t, "", "store", "create", "named")
	judge(`document:"a\x1b[31m\nroot@host# xxx`, fails(t, "", "migrate", "from-spicedb", "-q", "--store", "named"))
	f.export = func(_ *v1.ExportBulkRelationshipsRequest, stream exportStream) error {
		return stream.Send(pageOf("1", viewerOf("document", "a")))
	}
	f.checkBulk = func(r *v1.CheckBulkPermissionsRequest) (*v1.CheckBulkPermissionsResponse, error) {
		answer := &v1.CheckBulkPermissionsResponse{}
		for range r.GetItems() {
			answer.Pairs = append(answer.Pairs, &v1.CheckBulkPermissionsPair{Response: &v1.CheckBulkPermissionsPair_Item{Item: &v1.CheckBulkPermissionsResponseItem{
				Permissionship:    v1.CheckPermissionResponse_PERMISSIONSHIP_CONDITIONAL_PERMISSION,
				PartialCaveatInfo: &v1.PartialCaveatInfo{MissingRequiredContext: []string{"\nroot\x1b[31m" + strings.Repeat("x", 22<<10)}},
			}}})
		}
		return answer, nil
	}
	stdout, stderr, code := pemba("", "migrate", "from-spicedb", "-q")
	if judge("conditional on ␊root␛[31mxxx", stdout); code != 1 || !strings.Contains(stdout, "... (of ") {
		t.Errorf("exit %d: %s%s", code, stdout, stderr)
	}
}

// TestMigrateLargeSchema: a schema that is too large for a message is not asked for
// again, and the advice is one for schemas.
func TestMigrateLargeSchema(t *testing.T) {
	testStart(t)
	f := &fakeSource{revision: &v1.ZedToken{Token: "now"}}
	startFakeSource(t, f)
	for size, want := range map[int]string{
		10 << 20: "takes schemas of at most 786432 bytes unless its --limit-schema-bytes says otherwise, and requests of at most ",
		70 << 20: "the schema is too large to be read, and a server takes schemas of at most 786432 bytes unless its --limit-schema-bytes says otherwise",
	} {
		f.schema = viewerSchema + "\n//" + strings.Repeat("x", size)
		said := fails(t, "", "migrate", "from-spicedb")
		if !strings.Contains(said, want) || strings.Contains(said, "send several") || strings.Contains(said, "again") {
			t.Errorf("of %d bytes: %s", size, said)
		}
	}
}

// TestSample: a sample is repeated by its seed, asks for every name of every type, and
// never for a wildcard.
func TestSample(t *testing.T) {
	compiled := compiledSchema(t, migrateSchema)
	draw := func(seed uint64, size int) []question {
		s := newSample(seed, size)
		for line := range strings.Lines(manyDocuments(5000) + everyKind) {
			tuple, err := graph.ParseTuple(strings.TrimSpace(line))
			if err != nil {
				t.Fatal(err)
			}
			s.add(tuple)
		}
		return s.questions(compiled)
	}
	first := draw(3, 200)
	if again := draw(3, 200); !slices.Equal(first, again) {
		t.Error("the same seed draws other questions")
	}
	if other := draw(4, 200); slices.Equal(first, other) {
		t.Error("another seed draws the same questions")
	}
	if len(first) != 200 {
		t.Errorf("%d questions", len(first))
	}
	if none := draw(3, 0); len(none) != 0 {
		t.Errorf("%d questions of none", len(none))
	}
	// Also with fewer questions than names.
	for _, list := range [][]question{first, draw(3, 2)} {
		names := make(map[string]bool)
		for _, q := range list {
			names[q.object.Type+"#"+q.name] = true
			if q.subject.ID == graph.Wildcard {
				t.Errorf("%s cannot be asked", q)
			}
		}
		want := "document#blocked document#parent document#view document#viewer folder#viewer group#member"
		if got := strings.Join(slices.Sorted(maps.Keys(names)), " "); got != want {
			t.Errorf("asked for %s", got)
		}
	}
}

// TestExpirations: what may have expired between two moments is counted to the
// minute, and what ends long after a migration not at all.
func TestExpirations(t *testing.T) {
	began := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	e := newExpirations(began)
	for _, after := range []time.Duration{0, time.Minute, time.Hour, 2 * time.Hour, 24 * 365 * time.Hour} {
		e.add(began.Add(after))
	}
	for _, test := range []struct {
		from, to    time.Duration
		least, most uint64
	}{
		{-time.Hour, -30 * time.Minute, 0, 0},
		{0, 0, 0, 2},
		{30 * time.Minute, 31 * time.Minute, 2, 2},
		{30 * time.Minute, 90 * time.Minute, 2, 3},
		{3 * time.Hour, 24 * 400 * time.Hour, 4, 4},
	} {
		if least, most := e.between(began.Add(test.from), began.Add(test.to)); least != test.least || most != test.most {
			t.Errorf("between %v and %v: %d to %d, expected %d to %d", test.from, test.to, least, most, test.least, test.most)
		}
	}
}
