package authzed

import (
	"fmt"
	"strings"
	"testing"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/status"
)

// statusProto is a status as an error.
func statusProto(p *spb.Status) error { return status.FromProto(p).Err() }

// sound fails unless debug information keeps what each trace promises. ids holds
// the ids seen in the same request.
func sound(t testing.TB, d *v1.DebugInformation, ids map[string]bool) {
	t.Helper()
	if d.GetCheck() == nil || !strings.Contains(d.GetSchemaUsed(), "definition user {}") {
		t.Fatalf("incomplete: %v", d)
	}
	var visit func(c *v1.CheckDebugTrace)
	visit = func(c *v1.CheckDebugTrace) {
		if c.GetResolution() == nil || c.GetDuration() == nil || c.GetSource() == "" || c.GetPermission() == "" ||
			c.GetResource() == nil || c.GetSubject().GetObject() == nil || c.GetPermissionType() == 0 {
			t.Errorf("incomplete step: %v", c)
		}
		if id := c.GetTraceOperationId(); id == "" || ids[id] {
			t.Errorf("step id %q is empty or seen before", id)
		}
		ids[c.GetTraceOperationId()] = true
		e := c.GetCaveatEvaluationInfo()
		// Clients look into these without asking whether they are there.
		if c.GetResult() == v1.CheckDebugTrace_PERMISSIONSHIP_CONDITIONAL_PERMISSION && e == nil ||
			e.GetResult() == v1.CaveatEvalInfo_RESULT_MISSING_SOME_CONTEXT && len(e.GetPartialCaveatInfo().GetMissingRequiredContext()) == 0 {
			t.Errorf("conditional step without what it needs: %v", c)
		}
		for _, s := range c.GetSubProblems().GetTraces() {
			visit(s)
		}
	}
	visit(d.GetCheck())
}

// debugText renders a trace, one step a line.
func debugText(c *v1.CheckDebugTrace, indent string) string {
	kind := strings.ToLower(strings.TrimPrefix(c.GetPermissionType().String(), "PERMISSION_TYPE_"))
	result := strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(c.GetResult().String(), "PERMISSIONSHIP_"), "_PERMISSION"))
	text := fmt.Sprintf("%s%s:%s#%s %s %s", indent, c.GetResource().GetObjectType(), c.GetResource().GetObjectId(), c.GetPermission(), kind, result)
	if e := c.GetCaveatEvaluationInfo(); e != nil {
		text += fmt.Sprintf(" [%s %s %s", e.GetCaveatName(), strings.ToLower(strings.TrimPrefix(e.GetResult().String(), "RESULT_")), e.GetExpression())
		if e.GetContext() != nil {
			text += " " + strings.ReplaceAll(fmt.Sprint(e.GetContext().AsMap()), "map", "")
		}
		if p := e.GetPartialCaveatInfo(); p != nil {
			text += fmt.Sprintf(" needs %v", p.GetMissingRequiredContext())
		}
		text += "]"
	}
	if c.GetWasCachedResult() {
		text += " (seen)"
	}
	text += "\n"
	for _, s := range c.GetSubProblems().GetTraces() {
		text += debugText(s, indent+"  ")
	}
	return text
}

// TestDebugTrace tells how traces look.
func TestDebugTrace(t *testing.T) {
	conn := newServer(t)
	writeSchema(t, conn, `caveat at_least(level int, needed int) {
	level >= needed
}
caveat in_office(office bool) {
	office
}
definition user {}
definition team {
	relation member: user | team#member
}
definition folder {
	relation viewer: user | user with at_least
	permission view = viewer
}
definition document {
	relation parent: folder | folder with in_office
	relation viewer: user with at_least | user with in_office | team#member with in_office | team#member
	relation banned: user with in_office
	relation owner: user
	permission view = viewer + parent->view
	permission read = view - banned
	permission sign = viewer & owner
}
`)
	touch(
		t, conn,
		"team:eng#member@user:anne", "team:eng#member@team:eng#member",
		"folder:top#viewer@user:fay",
		`folder:top#viewer@user:flo[at_least:{"needed":2}]`,
		"document:plan#parent@folder:top",
		"document:safe#parent@folder:top[in_office]",
		`document:plan#viewer@user:bob[at_least:{"needed":3}]`,
		"document:plan#banned@user:bob[in_office]",
		"document:plan#owner@user:bob",
		"document:plan#viewer@team:eng#member[in_office]",
	)
	client := v1.NewPermissionsServiceClient(conn)
	for _, x := range []struct{ question, want string }{
		{"document:plan#view@user:fay", `
document:plan#view permission has
  document:plan#viewer relation no [in_office missing_some_context office [] needs [office]]
    team:eng#member relation no
      team:eng#member relation no (seen)
  folder:top#view permission has
    folder:top#viewer relation has
`},
		{"document:plan#view@user:bob", `
document:plan#view permission conditional [at_least missing_some_context level >= needed [needed:3] needs [level]]
  document:plan#viewer relation conditional [at_least missing_some_context level >= needed [needed:3] needs [level]]
    document:plan#viewer relation conditional [at_least missing_some_context level >= needed [needed:3] needs [level]]
    document:plan#viewer relation no [in_office missing_some_context office [] needs [office]]
      team:eng#member relation no
        team:eng#member relation no (seen)
  folder:top#view permission no
    folder:top#viewer relation no
`},
		{`document:plan#view@user:bob {"level":3,"needed":9,"spare":1}`, `
document:plan#view permission has [at_least true level >= needed [level:3 needed:3]]
  document:plan#viewer relation has [at_least true level >= needed [level:3 needed:3]]
`},
		{`document:plan#view@user:bob {"level":2}`, `
document:plan#view permission no [at_least false level >= needed [level:2 needed:3]]
  document:plan#viewer relation no [at_least false level >= needed [level:2 needed:3]]
    document:plan#viewer relation no [at_least false level >= needed [level:2 needed:3]]
    document:plan#viewer relation no [in_office missing_some_context office [] needs [office]]
      team:eng#member relation no
        team:eng#member relation no (seen)
  folder:top#view permission no
    folder:top#viewer relation no
`},
		{`document:plan#read@user:bob {"level":3}`, `
document:plan#read permission conditional [ missing_some_context !(office) needs [office]]
  document:plan#view permission has [at_least true level >= needed [level:3 needed:3]]
    document:plan#viewer relation has [at_least true level >= needed [level:3 needed:3]]
  document:plan#banned relation conditional [in_office missing_some_context office [] needs [office]]
`},
		{`document:plan#read@user:bob {"level":3,"office":true}`, `
document:plan#read permission no
  document:plan#view permission has [at_least true level >= needed [level:3 needed:3]]
    document:plan#viewer relation has [at_least true level >= needed [level:3 needed:3]]
  document:plan#banned relation has [in_office true office [office:true]]
`},
		{"document:plan#sign@user:bob", `
document:plan#sign permission conditional [at_least missing_some_context level >= needed [needed:3] needs [level]]
  document:plan#owner relation has
  document:plan#viewer relation conditional [at_least missing_some_context level >= needed [needed:3] needs [level]]
    document:plan#viewer relation conditional [at_least missing_some_context level >= needed [needed:3] needs [level]]
    document:plan#viewer relation no [in_office missing_some_context office [] needs [office]]
      team:eng#member relation no
        team:eng#member relation no (seen)
`},
		{"document:plan#view@user:anne", `
document:plan#view permission conditional [in_office missing_some_context office [] needs [office]]
  document:plan#viewer relation conditional [in_office missing_some_context office [] needs [office]]
    team:eng#member relation has
  folder:top#view permission no
    folder:top#viewer relation no
`},
		{`document:plan#viewer@user:anne {"office":true}`, `
document:plan#viewer relation has [in_office true office [office:true]]
  team:eng#member relation has
`},
		{"document:safe#view@user:flo", `
document:safe#view permission conditional [ missing_some_context (office) && (level >= needed) needs [level office]]
  document:safe#viewer relation no
  document:safe#parent relation conditional [in_office missing_some_context office [] needs [office]]
    folder:top#view permission conditional [at_least missing_some_context level >= needed [needed:2] needs [level]]
      folder:top#viewer relation conditional [at_least missing_some_context level >= needed [needed:2] needs [level]]
`},
		{`document:safe#view@user:flo {"office":true}`, `
document:safe#view permission conditional [at_least missing_some_context level >= needed [needed:2] needs [level]]
  document:safe#viewer relation no
  document:safe#parent relation conditional [ missing_some_context (office) && (level >= needed) needs [level]]
    folder:top#view permission conditional [at_least missing_some_context level >= needed [needed:2] needs [level]]
      folder:top#viewer relation conditional [at_least missing_some_context level >= needed [needed:2] needs [level]]
`},
		{`document:safe#view@user:flo {"office":true,"level":1}`, `
document:safe#view permission no [at_least false level >= needed [level:1 needed:2]]
  document:safe#viewer relation no
  document:safe#parent relation no [in_office true office [office:true]]
    folder:top#view permission no [at_least false level >= needed [level:1 needed:2]]
      folder:top#viewer relation no [at_least false level >= needed [level:1 needed:2]]
`},
		{"team:eng#member@team:eng#member", `
team:eng#member relation has
`},
	} {
		q := parseQuestion(t, x.question)
		q.WithTracing = true
		r, err := client.CheckPermission(testContext(t), q)
		if err != nil {
			t.Fatalf("%s: %v", x.question, err)
		}
		sound(t, r.GetDebugTrace(), map[string]bool{})
		if got := "\n" + debugText(r.GetDebugTrace().GetCheck(), ""); got != x.want {
			t.Errorf("%s: got%swant%s", x.question, got, x.want)
		}
	}
}
