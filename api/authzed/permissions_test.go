package authzed

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/authzed/authzed-go/pkg/requestmeta"
	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/pembadb/pemba/api"
)

// checksSchema has each operator, a caveat and an expiration.
const checksSchema = `use expiration

caveat at_least(level int, needed int) {
	level >= needed
}

definition user {}

definition team {
	relation member: user | team#member
	relation guest: user | user:*
}

definition folder {
	relation parent: folder
	relation viewer: user | team#member
	permission view = viewer + parent->view
}

definition document {
	relation parent: folder | team
	relation viewer: user | user with at_least | team#member with at_least
	relation editor: user with expiration
	relation banned: user | user with expiration
	permission edit = editor
	permission view = viewer + editor + parent->view
	permission read = view - banned - editor
	permission both = viewer & editor
}
`

// parseQuestion reads a check: type:id#permission@type:id[#relation], and behind
// a blank its context as JSON.
func parseQuestion(t testing.TB, text string) *v1.CheckPermissionRequest {
	t.Helper()
	text, given, _ := strings.Cut(text, " ")
	resource, rest, _ := strings.Cut(text, "#")
	permission, subject, ok := strings.Cut(rest, "@")
	if !ok {
		t.Fatalf("%q is no question", text)
	}
	subject, relation, _ := strings.Cut(subject, "#")
	object := func(s string) *v1.ObjectReference {
		kind, id, _ := strings.Cut(s, ":")
		return &v1.ObjectReference{ObjectType: kind, ObjectId: id}
	}
	r := &v1.CheckPermissionRequest{
		Consistency: fullyConsistent, Resource: object(resource), Permission: permission,
		Subject: &v1.SubjectReference{Object: object(subject), OptionalRelation: relation},
	}
	if given != "" {
		r.Context = &structpb.Struct{}
		if err := r.Context.UnmarshalJSON([]byte(given)); err != nil {
			t.Fatalf("%s: %v", given, err)
		}
	}
	return r
}

func permissionshipText(p v1.CheckPermissionResponse_Permissionship, partial *v1.PartialCaveatInfo) string {
	switch p {
	case v1.CheckPermissionResponse_PERMISSIONSHIP_HAS_PERMISSION:
		return "yes"
	case v1.CheckPermissionResponse_PERMISSIONSHIP_NO_PERMISSION:
		return "no"
	case v1.CheckPermissionResponse_PERMISSIONSHIP_CONDITIONAL_PERMISSION:
		return "needs " + strings.Join(partial.GetMissingRequiredContext(), ",")
	}
	return p.String()
}

// checksServer has checksSchema and relationships.
func checksServer(t testing.TB) (v1.PermissionsServiceClient, *grpc.ClientConn) {
	conn := newServer(t)
	writeSchema(t, conn, checksSchema)
	touch(
		t, conn,
		"team:eng#member@user:anne",
		"team:eng#member@team:core#member",
		"team:core#member@user:carl",
		"team:all#guest@user:*",
		"folder:top#viewer@user:root",
		"folder:sub#parent@folder:top",
		"document:plan#parent@folder:sub",
		"document:plan#parent@team:all",
		"document:plan#viewer@user:bob[at_least:{\"needed\":3}]",
		"document:plan#viewer@team:eng#member[at_least]",
	)
	return v1.NewPermissionsServiceClient(conn), conn
}

// checkAnswers is what each question is answered with.
var checkAnswers = []struct {
	question, want string
}{
	{"document:plan#view@user:root", "yes"},
	{"document:plan#view@user:nobody", "no"},
	{"document:plan#parent@folder:sub", "yes"}, // A relation serves as a permission.
	{"document:plan#view@user:bob", "needs level"},
	{`document:plan#view@user:bob {"level":3}`, "yes"},
	{`document:plan#view@user:bob {"level":"3","unknown":[1]}`, "yes"},
	{`document:plan#view@user:bob {"level":2}`, "no"},
	{`document:plan#view@user:bob {"level":2,"needed":1}`, "no"}, // What is stored wins.
	{"document:plan#view@user:carl", "needs level,needed"},
	{`document:plan#viewer@team:eng#member {"level":1,"needed":1}`, "yes"},
	{"team:eng#member@team:eng#member", "yes"}, // A userset is a member of itself.
	{"team:eng#member@team:core#member", "yes"},
	{"team:core#member@team:eng#member", "no"},
	{"team:all#guest@user:nobody", "yes"},
	{"team:all#guest@team:eng#member", "no"}, // A wildcard covers no usersets.
	{"document:none#view@user:root", "no"},
}

func TestCheckPermission(t *testing.T) {
	client, _ := checksServer(t)
	for _, x := range checkAnswers {
		r, err := client.CheckPermission(testContext(t), parseQuestion(t, x.question))
		if err != nil {
			t.Errorf("%s: %v", x.question, err)
			continue
		}
		if got := permissionshipText(r.GetPermissionship(), r.GetPartialCaveatInfo()); got != x.want {
			t.Errorf("%s: got %s, want %s", x.question, got, x.want)
		}
		if len(r.GetCheckedAt().GetToken()) < 24 || r.GetDebugTrace() != nil || r.GetOptionalExpiresAt() != nil {
			t.Errorf("%s: answered with %v", x.question, r)
		}
	}
}

// checkRefusals is what each question that has no answer is refused with.
var checkRefusals = []struct {
	question string
	code     codes.Code
	reason   string
}{
	{"paper:plan#view@user:bob", codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_DEFINITION"},
	{"document:plan#view@person:bob", codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_DEFINITION"},
	{"document:plan#sign@user:bob", codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_RELATION_OR_PERMISSION"},
	{"document:plan#@user:bob", codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_RELATION_OR_PERMISSION"},
	{"document:plan#view@team:eng#owner", codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_RELATION_OR_PERMISSION"},
	{"document:plan#view@user:*", codes.InvalidArgument, "ERROR_REASON_WILDCARD_NOT_ALLOWED"},
	{"document:plan#view@team:*#member", codes.InvalidArgument, ""},
	{`document:plan#view@user:bob {"level":"high"}`, codes.InvalidArgument, "ERROR_REASON_CAVEAT_PARAMETER_TYPE_ERROR"},
	{`document:plan#view@user:bob {"level":1.5}`, codes.InvalidArgument, "ERROR_REASON_CAVEAT_PARAMETER_TYPE_ERROR"},
	{`document:plan#view@user:bob {"pad":"` + strings.Repeat("x", questionContextMax) + `"}`, codes.InvalidArgument, ""},
}

func TestCheckPermissionRefusals(t *testing.T) {
	client, _ := checksServer(t)
	ctx := testContext(t)
	for _, x := range checkRefusals {
		_, err := client.CheckPermission(ctx, parseQuestion(t, x.question))
		if code, reason, _ := reasonOf(err); code != x.code || reason != x.reason {
			t.Errorf("%.80s: got %v %q (%v), want %v %q", x.question, code, reason, err, x.code, x.reason)
		}
	}
	for _, question := range []string{"document:*#view@user:bob", "do:plan#view@user:bob", "document:a.b#view@user:bob", "document:plan#VIEW@user:bob"} {
		_, err := client.CheckPermission(ctx, parseQuestion(t, question))
		wantRefusal(t, err, codes.InvalidArgument, "")
	}
	garbled := parseQuestion(t, "document:plan#view@user:bob")
	garbled.Consistency = &v1.Consistency{Requirement: &v1.Consistency_AtExactSnapshot{AtExactSnapshot: &v1.ZedToken{Token: "no token"}}}
	_, err := client.CheckPermission(ctx, garbled)
	wantRefusal(t, err, codes.InvalidArgument, "")
	_, err = v1.NewPermissionsServiceClient(newServer(t)).CheckPermission(ctx, parseQuestion(t, "document:plan#view@user:bob"))
	wantRefusal(t, err, codes.FailedPrecondition, "ERROR_REASON_UNKNOWN_DEFINITION")
}

// TestCheckBulkPermissions asks everything that TestCheckPermission and
// TestCheckPermissionRefusals ask in one request, and wants it answered alike.
func TestCheckBulkPermissions(t *testing.T) {
	client, _ := checksServer(t)
	request := &v1.CheckBulkPermissionsRequest{Consistency: fullyConsistent}
	add := func(text string) {
		q := parseQuestion(t, text)
		request.Items = append(request.Items, &v1.CheckBulkPermissionsRequestItem{
			Resource: q.GetResource(), Permission: q.GetPermission(), Subject: q.GetSubject(), Context: q.GetContext(),
		})
	}
	var want []string
	for i := range max(len(checkAnswers), len(checkRefusals)) {
		if i < len(checkAnswers) {
			add(checkAnswers[i].question)
			want = append(want, checkAnswers[i].want)
		}
		if i < len(checkRefusals) {
			add(checkRefusals[i].question)
			want = append(want, strings.TrimSpace(checkRefusals[i].code.String()+" "+checkRefusals[i].reason))
		}
	}
	for _, tracing := range []bool{false, true} {
		request.WithTracing = tracing
		r, err := client.CheckBulkPermissions(testContext(t), request)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.GetPairs()) != len(want) || r.GetCheckedAt().GetToken() == "" {
			t.Fatalf("got %d pairs at %v, want %d", len(r.GetPairs()), r.GetCheckedAt(), len(want))
		}
		ids := map[string]bool{}
		for i, pair := range r.GetPairs() {
			if !proto.Equal(pair.GetRequest(), request.GetItems()[i]) {
				t.Errorf("pair %d is for %v, want %v", i, pair.GetRequest(), request.GetItems()[i])
			}
			got := permissionshipText(pair.GetItem().GetPermissionship(), pair.GetItem().GetPartialCaveatInfo())
			if e := pair.GetError(); e != nil {
				_, reason, _ := reasonOf(statusProto(e))
				got = strings.TrimSpace(codes.Code(e.GetCode()).String() + " " + reason)
			} else if (pair.GetItem().GetDebugTrace() != nil) != tracing {
				t.Errorf("pair %d: traced is %v", i, !tracing)
			} else if tracing {
				sound(t, pair.GetItem().GetDebugTrace(), ids)
				if a, b := pair.GetItem().GetPermissionship().String(), pair.GetItem().GetDebugTrace().GetCheck().GetResult().String(); a != b {
					t.Errorf("%.80v: got %s, and %s in the trace", pair.GetRequest(), a, b)
				}
			}
			if got != want[i] {
				t.Errorf("%.80v: got %s, want %s", pair.GetRequest(), got, want[i])
			}
		}
	}
	empty, err := client.CheckBulkPermissions(testContext(t), &v1.CheckBulkPermissionsRequest{Consistency: fullyConsistent})
	if err != nil || len(empty.GetPairs()) != 0 {
		t.Errorf("no items: %v, %v", empty, err)
	}
	item := request.GetItems()[0]
	_, err = client.CheckBulkPermissions(testContext(t), &v1.CheckBulkPermissionsRequest{Items: slices.Repeat([]*v1.CheckBulkPermissionsRequestItem{item}, checksMax+1)})
	wantRefusal(t, err, codes.InvalidArgument, "ERROR_REASON_UNSPECIFIED")
	_, err = client.CheckBulkPermissions(testContext(t), &v1.CheckBulkPermissionsRequest{Items: []*v1.CheckBulkPermissionsRequestItem{{Resource: item.GetResource(), Permission: "view"}}})
	wantRefusal(t, err, codes.InvalidArgument, "")
}

// TestCheckExpiresAt holds that an answer names the moment at which it changes by
// itself: not that of an expiration which other relationships outlive.
func TestCheckExpiresAt(t *testing.T) {
	conn := newServer(t)
	writeSchema(t, conn, checksSchema)
	moment := func(hours int) time.Time { return time.Date(2090, 1, 1, hours, 0, 0, 0, time.UTC) }
	expiring := func(text string, hours int) string {
		return fmt.Sprintf("%s[expiration:%s]", text, moment(hours).Format(time.RFC3339))
	}
	touch(
		t, conn,
		expiring("document:plan#editor@user:ed", 3),
		"document:plan#viewer@user:ed",
		expiring("document:plan#editor@user:ann", 4),
		expiring("document:plan#banned@user:bob", 2),
		"document:plan#viewer@user:bob",
		"document:plan#viewer@user:vi",
		expiring("document:plan#editor@user:max", 5),
		expiring("document:plan#banned@user:max", 6),
	)
	client := v1.NewPermissionsServiceClient(conn)
	for _, x := range []struct {
		question, want string
		hours          int
	}{
		{"document:plan#edit@user:ann", "yes", 4},
		{"document:plan#edit@user:ed", "yes", 3},
		{"document:plan#editor@user:ed", "yes", 3},
		{"document:plan#view@user:ed", "yes", 0}, // It stays a viewer.
		{"document:plan#both@user:ed", "yes", 3},
		{"document:plan#view@user:vi", "yes", 0},
		{"document:plan#read@user:bob", "no", 2}, // It is read again when the ban ends.
		{"document:plan#read@user:ed", "no", 3},
		{"document:plan#read@user:max", "no", 0}, // Banned until it is no editor any more.
		{"document:plan#edit@user:vi", "no", 0},
	} {
		for _, tracing := range []bool{false, true} {
			q := parseQuestion(t, x.question)
			q.WithTracing = tracing
			r, err := client.CheckPermission(testContext(t), q)
			if err != nil {
				t.Fatalf("%s: %v", x.question, err)
			}
			want := ""
			if x.hours != 0 {
				want = moment(x.hours).String()
			}
			got := ""
			if e := r.GetOptionalExpiresAt(); e != nil {
				got = e.AsTime().String()
			}
			if answer := permissionshipText(r.GetPermissionship(), nil); answer != x.want || got != want {
				t.Errorf("%s: got %s until %q, want %s until %q", x.question, answer, got, x.want, want)
			}
			if tracing && !proto.Equal(r.GetDebugTrace().GetCheck().GetOptionalExpiresAt(), r.GetOptionalExpiresAt()) {
				t.Errorf("%s: the trace ends at %v", x.question, r.GetDebugTrace().GetCheck().GetOptionalExpiresAt())
			}
		}
	}
}

func TestTraceByHeader(t *testing.T) {
	client, _ := checksServer(t)
	ctx := requestmeta.AddRequestHeaders(testContext(t), requestmeta.RequestDebugInformation)
	r, err := client.CheckPermission(ctx, parseQuestion(t, "document:plan#view@user:root"))
	if err != nil {
		t.Fatal(err)
	}
	sound(t, r.GetDebugTrace(), map[string]bool{})
	if r, err = client.CheckPermission(context.WithoutCancel(testContext(t)), parseQuestion(t, "document:plan#view@user:root")); err != nil || r.GetDebugTrace() != nil {
		t.Errorf("without the header: %v, %v", r.GetDebugTrace(), err)
	}
}

// TestCheckExpiresAtBudget holds that finding the moment at which an answer changes
// never costs the answer.
func TestCheckExpiresAtBudget(t *testing.T) {
	ctx := testContext(t)
	answered, traced := 0, 0
	for steps := 1; traced == 0 && steps < 50; steps++ {
		conn, _ := newServerWith(t, api.Config{Limits: api.Limits{Steps: steps}})
		writeSchema(t, conn, checksSchema)
		touch(t, conn, "document:plan#editor@user:ed[expiration:2090-01-01T00:00:00Z]")
		client := v1.NewPermissionsServiceClient(conn)
		q := parseQuestion(t, "document:plan#edit@user:ed")
		plain, err := client.CheckPermission(ctx, q)
		if err != nil {
			continue
		}
		if answered++; permissionshipText(plain.GetPermissionship(), nil) != "yes" {
			t.Fatalf("with %d steps: %v", steps, plain)
		}
		q.WithTracing = true
		if _, err := client.CheckPermission(ctx, q); err == nil {
			traced++
			if plain.GetOptionalExpiresAt() == nil {
				t.Errorf("with %d steps, enough for a trace, no moment was found", steps)
			}
		} else if plain.GetOptionalExpiresAt() != nil {
			t.Errorf("with %d steps, too few for a trace, a moment was found", steps)
		}
	}
	if traced == 0 || answered < 2 {
		t.Errorf("%d budgets were enough for the answer, %d of them for a trace; want one more of the first", answered, traced)
	}
}
