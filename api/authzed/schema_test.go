package authzed

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/engine"
)

// readSchema returns the text of the schema.
func readSchema(t *testing.T, conn *grpc.ClientConn) string {
	t.Helper()
	r, err := v1.NewSchemaServiceClient(conn).ReadSchema(testContext(t), &v1.ReadSchemaRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.GetReadAt().GetToken()) < 24 {
		t.Errorf("read_at is %q", r.GetReadAt().GetToken())
	}
	return r.GetSchemaText()
}

// refuseSchema writes a schema that must be refused.
func refuseSchema(t *testing.T, conn *grpc.ClientConn, text string, code codes.Code, reason v1.ErrorReason) (metadata map[string]string, message string) {
	t.Helper()
	_, err := v1.NewSchemaServiceClient(conn).WriteSchema(testContext(t), &v1.WriteSchemaRequest{Schema: text})
	return wantRefusal(t, err, code, reason.String()), status.Convert(err).Message()
}

// TestReadSchema holds the layout: caveats, then definitions, each sorted; members
// in source order; tabs; no line break at the end; canonical CEL; parentheses only
// where the meaning needs them; .any() where it was written. What is read can be
// written, and reads the same.
func TestReadSchema(t *testing.T) {
	conn := newServer(t)
	writeSchema(t, conn, `use expiration
		// Those who act.
		definition user {}
		definition tenant/team { relation member: user | tenant/team#member }
		definition document {
			permission early = viewer
			/** Who may look. */
			relation viewer: user | user:* | tenant/team#member with on_weekdays | user with expiration
			relation parent: document
			// Computed.
			permission view = ((viewer + early) - (parent->view)) & (viewer - (early - parent.all(view)))
			permission none = nil
			permission flat = ((viewer + early) + (view + parent.any(view))) + parent->view
			permission every = (viewer & (early & view)) & (none & parent.any(view))
		}
		caveat zoned(zone string) { 
			zone in ['a', 'b'] // ab
		}
		caveat on_weekdays(day string, allowed list<string>) {
			( (day == "sat") == false )&&allowed.exists(d, d == day)
		}`)
	want := `use expiration

caveat on_weekdays(allowed list<string>, day string) {
	day == "sat" == false && allowed.exists(d, d == day)
}

caveat zoned(zone string) {
	zone in ["a", "b"]
}

definition document {
	permission early = viewer

	/** Who may look. */
	relation viewer: user | user:* | tenant/team#member with on_weekdays | user with expiration
	relation parent: document

	// Computed.
	permission view = (viewer + early - parent->view) & (viewer - (early - parent.all(view)))
	permission none = nil
	permission flat = viewer + early + view + parent.any(view) + parent->view
	permission every = viewer & early & view & none & parent.any(view)
}

definition tenant/team {
	relation member: user | tenant/team#member
}

// Those who act.
definition user {}`
	got := readSchema(t, conn)
	if got != want {
		t.Fatalf("got\n%s\nwant\n%s", got, want)
	}
	writeSchema(t, conn, got)
	if again := readSchema(t, conn); again != got {
		t.Errorf("written as it was read, it reads\n%s", again)
	}
}

// TestNoSchema holds that a store without a schema, and one with an empty one, say
// so with NotFound, and take a schema.
func TestNoSchema(t *testing.T) {
	conn := newServer(t)
	client := v1.NewSchemaServiceClient(conn)
	none := func() {
		t.Helper()
		_, err := client.ReadSchema(testContext(t), &v1.ReadSchemaRequest{})
		if st := status.Convert(err); st.Code() != codes.NotFound || st.Message() != "no schema has been defined; please call WriteSchema to start" {
			t.Fatalf("ReadSchema: %v", err)
		}
		_, err = client.ComputablePermissions(testContext(t), &v1.ComputablePermissionsRequest{Consistency: fullyConsistent, DefinitionName: "user"})
		wantRefusal(t, err, codes.FailedPrecondition, v1.ErrorReason_ERROR_REASON_UNKNOWN_DEFINITION.String())
		r, err := client.ReflectSchema(testContext(t), &v1.ReflectSchemaRequest{Consistency: fullyConsistent})
		if err != nil || len(r.GetDefinitions())+len(r.GetCaveats()) > 0 {
			t.Fatalf("ReflectSchema: %v, %v", r, err)
		}
	}
	none()
	writeSchema(t, conn, "definition user {}")
	if got := readSchema(t, conn); got != "definition user {}" {
		t.Fatalf("got %q", got)
	}
	if token := writeSchema(t, conn, ""); len(token.GetToken()) < 24 {
		t.Errorf("written_at is %q", token)
	}
	none()
	writeSchema(t, conn, "definition user {}")
	readSchema(t, conn)
}

// TestSchemaParseErrors holds the code, reason, place and quoted source of texts
// that cannot be read in this API. Lines and columns count from 0.
func TestSchemaParseErrors(t *testing.T) {
	conn := newServer(t)
	for name, c := range map[string]struct{ text, place, source string }{
		"grammar":              {"definition user {}\ninvalid x {}", "1:0-1:7", "invalid"},
		"star":                 {"definition user {\n\tpermission * = nil\n}", "1:12-1:13", "*"},
		"defined twice":        {"definition user {}\ndefinition user {}", "1:11-1:15", "user"},
		"caveat twice":         {"caveat abc(x int) { x > 1 }\ncaveat abc(x int) { x > 1 }", "1:7-1:10", "abc"},
		"CEL syntax":           {"caveat abc(x int) { x > }", "", ""},
		"CEL type":             {"caveat abc(x int) { x + 1 }", "", ""},
		"parameter type":       {"caveat abc(x number) { x > 1 }", "0:13-0:19", "number"},
		"short definition":     {"definition ab {}", "0:11-0:13", "ab"},
		"upper-case type":      {"definition User {}", "0:11-0:15", "User"},
		"short relation":       {"definition user {\n\trelation r: user\n}", "1:10-1:11", "r"},
		"short permission":     {"definition user {\n\tpermission ab = nil\n}", "1:12-1:14", "ab"},
		"import without use":   {"import \"a.zed\"", "0:0-0:14", `import "a.zed"`},
		"import with use":      {"use import\nimport \"a.zed\"", "1:0-1:14", `import "a.zed"`},
		"a type error besides": {"definition user {\n\trelation one: nobody\n}\ninvalid", "3:0-3:7", "invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			m, message := refuseSchema(t, conn, c.text, codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_SCHEMA_PARSE_ERROR)
			place := m["start_line_number"] + ":" + m["start_column_position"] + "-" + m["end_line_number"] + ":" + m["end_column_position"]
			if c.place != "" && place != c.place || c.source != "" && m["source_code"] != c.source || m["source_code"] == "" || message == "" {
				t.Errorf("at %s %q: %s", place, m["source_code"], message)
			}
			// What cannot be written cannot be compared with either.
			_, err := v1.NewSchemaServiceClient(conn).DiffSchema(testContext(t), &v1.DiffSchemaRequest{Consistency: fullyConsistent, ComparisonSchema: c.text})
			wantRefusal(t, err, codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_SCHEMA_PARSE_ERROR.String())
		})
	}
	if _, err := v1.NewSchemaServiceClient(conn).ReadSchema(testContext(t), &v1.ReadSchemaRequest{}); status.Code(err) != codes.NotFound {
		t.Errorf("after refused schemas: %v", err)
	}
	// A bound on the length is told where the form of the name has none.
	for text, bounded := range map[string]bool{
		"definition Abc {}": true,
		"definition user {\n\trelation " + strings.Repeat("r", 65) + ": user\n}":   false,
		"definition user {\n\tpermission " + strings.Repeat("p", 65) + " = nil\n}": false,
	} {
		_, message := refuseSchema(t, conn, text, codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_SCHEMA_PARSE_ERROR)
		if !strings.Contains(message, "names match ^") || strings.Contains(message, "at most") != bounded {
			t.Errorf("%.30s: %s", text, message)
		}
	}
}

// TestSchemaTypeErrors holds what is said of schemas that can be read and do not
// hold together.
func TestSchemaTypeErrors(t *testing.T) {
	conn := newServer(t)
	for name, c := range map[string]struct{ text, key, value string }{
		"unknown type":     {"definition user {}\ndefinition doc {\n\trelation viewer: nobody\n}", "relation_name", "viewer"},
		"unknown relation": {"definition doc {\n\tpermission view = nothing\n}", "permission_name", "view"},
		"relation twice":   {"definition doc {\n\trelation one: doc\n\trelation one: doc\n}", "definition_name", "doc"},
		"cycle":            {"definition doc {\n\tpermission one = two\n\tpermission two = one\n}", "definition_name", "doc"},
		"unused parameter": {"caveat abc(x int, y int) { x > 1 }", "parameter_name", "y"},
	} {
		t.Run(name, func(t *testing.T) {
			m, message := refuseSchema(t, conn, c.text, codes.FailedPrecondition, v1.ErrorReason_ERROR_REASON_SCHEMA_TYPE_ERROR)
			if m[c.key] != c.value || m["start_line_number"] == "" || message == "" {
				t.Errorf("%v: %s", m, message)
			}
		})
	}
	// Chains of arrows are part of the language, and of this API with it.
	writeSchema(t, conn, "definition user {}\ndefinition doc {\n\trelation parent: doc\n\trelation owner: user\n\tpermission view = parent->parent->owner\n}")
	if got := readSchema(t, conn); !strings.Contains(got, "permission view = parent->parent->owner\n") {
		t.Errorf("got %s", got)
	}
}

// TestSchemaSizes holds the two limits on the text of a schema.
func TestSchemaSizes(t *testing.T) {
	conn, _ := newServerWith(t, api.Config{Limits: api.Limits{SchemaBytes: 1000}})
	client := v1.NewSchemaServiceClient(conn)
	long := "definition user {}\n//" + strings.Repeat("x", 1000)
	_, err := client.WriteSchema(testContext(t), &v1.WriteSchemaRequest{Schema: long})
	wantRefusal(t, err, codes.InvalidArgument, "")
	if !strings.Contains(status.Convert(err).Message(), "at most 1000") {
		t.Errorf("WriteSchema: %v", err)
	}
	_, err = client.DiffSchema(testContext(t), &v1.DiffSchemaRequest{ComparisonSchema: long})
	wantRefusal(t, err, codes.InvalidArgument, "")
}

// TestSchemaOrphans holds that no schema leaves stored relationships without a
// place, and what is said of it.
func TestSchemaOrphans(t *testing.T) {
	conn := newServer(t)
	schemaOf := func(parts ...string) string {
		return "use expiration\ndefinition user {}\n" + strings.Join(parts, "\n")
	}
	const odd = "caveat odd(n int) {\n\tn % 2 == 1\n}"
	writeSchema(t, conn, schemaOf(odd, `definition doc {
		relation open: user | user:*
		relation caveated: user | user with odd
		relation expiring: user | user with expiration
		relation unused: user
	}
	definition team {
		relation member: user
	}`))
	touch(t, conn, "doc:a#open@user:*", `doc:a#caveated@user:anne[odd:{"n":1}]`, "doc:a#expiring@user:anne[expiration:2300-01-01T00:00:00Z]", "team:x#member@user:anne")
	const doc = "definition doc {\nrelation open: user | user:*\nrelation caveated: user | user with odd\nrelation expiring: user | user with expiration\n}"
	const team = "definition team {\nrelation member: user\n}"
	for name, c := range map[string]struct {
		text, message string
		metadata      map[string]string
	}{
		"definition": {
			schemaOf(odd, doc), "cannot delete object definition `team`, as at least one relationship exists under it",
			map[string]string{"operation": "delete_object_definition", "resource_type": "team", "relationship": "team:x#member@user:anne"},
		},
		"relation": {
			schemaOf(odd, doc, "definition team {}"), "cannot delete relation `member` in object definition `team`, as at least one relationship exists under it",
			map[string]string{"operation": "delete_relation", "resource_type": "team", "relation": "member"},
		},
		"relation that becomes a permission": {
			schemaOf(odd, doc, "definition team {\npermission member = nil\n}"), "cannot delete relation `member`",
			map[string]string{"operation": "delete_relation", "resource_type": "team", "relation": "member"},
		},
		"wildcard": {
			schemaOf(odd, strings.Replace(doc, " | user:*", "", 1), team), "cannot remove allowed type `user:*` from relation `open` in object definition `doc`, as a relationship exists with it",
			map[string]string{"operation": "remove_allowed_type", "resource_type": "doc", "relation": "open", "allowed_type": "user:*"},
		},
		"caveat": {
			schemaOf(odd, strings.Replace(doc, " | user with odd", "", 1), team), "cannot remove allowed type `user with odd` from relation `caveated`",
			map[string]string{"operation": "remove_allowed_type", "relation": "caveated", "allowed_type": "user with odd"},
		},
		"expiration": {
			schemaOf(odd, strings.Replace(doc, " | user with expiration", "", 1), team), "cannot remove allowed type `user with expiration` from relation `expiring`",
			map[string]string{"operation": "remove_allowed_type", "relation": "expiring", "allowed_type": "user with expiration"},
		},
		"parameter": {
			schemaOf("caveat odd(m int) {\nm % 2 == 1\n}", doc, team), "cannot remove parameter `n` on caveat `odd`",
			map[string]string{"operation": "remove_parameter", "caveat_name": "odd", "parameter_name": "n"},
		},
		"type of a parameter": {
			schemaOf("caveat odd(n uint) {\nn % 2 == 1\n}", doc, team), "cannot change the type of parameter `n` on caveat `odd`",
			map[string]string{"operation": "change_parameter_type", "caveat_name": "odd", "parameter_name": "n"},
		},
		"everything": {"", "cannot delete object definition", map[string]string{"operation": "delete_object_definition"}},
	} {
		t.Run(name, func(t *testing.T) {
			m, message := refuseSchema(t, conn, c.text, codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_SCHEMA_TYPE_ERROR)
			for key, want := range c.metadata {
				if m[key] != want {
					t.Errorf("%s is %q, want %q", key, m[key], want)
				}
			}
			if !strings.HasPrefix(message, c.message) {
				t.Errorf("it says %s", message)
			}
		})
	}
	// What has no data can go.
	writeSchema(t, conn, schemaOf(odd, doc, team))
}

// TestParametersStay holds that a caveat keeps its parameters though no
// relationship carries it, may get more, and may go as a whole.
func TestParametersStay(t *testing.T) {
	conn := newServer(t)
	writeSchema(t, conn, "caveat odd(n int, m int) {\n\tn % m == 1\n}")
	refuseSchema(t, conn, "caveat odd(n int) {\n\tn % 2 == 1\n}", codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_SCHEMA_TYPE_ERROR)
	writeSchema(t, conn, "caveat odd(more bool, m int, n int) {\n\tmore || n % m == 1\n}")
	writeSchema(t, conn, "definition user {}")
	writeSchema(t, conn, "caveat odd(n int) {\n\tn % 2 == 1\n}")
}

// TestParametersStayAtOnce holds the same of schemas that are written at the same
// time: of several that each add a parameter of their own, none takes that of
// another away.
func TestParametersStayAtOnce(t *testing.T) {
	conn := newServer(t)
	client := v1.NewSchemaServiceClient(conn)
	const writers = 8
	for range 10 {
		writeSchema(t, conn, "definition user {}") // The caveat may go as a whole.
		writeSchema(t, conn, "caveat odd(n int) {\n\tn % 2 == 1\n}")
		ctx, failed := testContext(t), make(chan error, writers)
		for w := range writers {
			go func() {
				_, err := client.WriteSchema(ctx, &v1.WriteSchemaRequest{
					Schema: fmt.Sprintf("caveat odd(n int, more%d int) {\n\tn %% 2 == more%d\n}", w, w),
				})
				failed <- err
			}()
		}
		written := 0
		for range writers {
			if err := <-failed; err == nil {
				written++
			} else {
				wantRefusal(t, err, codes.InvalidArgument, v1.ErrorReason_ERROR_REASON_SCHEMA_TYPE_ERROR.String())
			}
		}
		if written != 1 {
			t.Fatalf("%d of %d schemas were written, each without the parameter of the others; want 1", written, writers)
		}
	}
}

// TestPrintedSchema holds that what is kept of a printed schema is that of the
// state that is asked about: of another schema, of none, and of the first again.
func TestPrintedSchema(t *testing.T) {
	conn := newServer(t)
	for _, text := range []string{
		"caveat odd(n int) {\n\tn % 2 == 1\n}", "definition user {}", "caveat odd(n int) {\n\tn % 2 == 0\n}", "caveat odd(n int) {\n\tn % 2 == 1\n}",
	} {
		writeSchema(t, conn, text)
		for range 2 {
			if got := readSchema(t, conn); got != text {
				t.Errorf("got %q, want %q", got, text)
			}
			r, err := v1.NewSchemaServiceClient(conn).ReflectSchema(testContext(t), &v1.ReflectSchemaRequest{Consistency: fullyConsistent})
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range r.GetCaveats() {
				if c.GetExpression() == "" || !strings.Contains(text, c.GetExpression()) {
					t.Errorf("%q has the expression %q", text, c.GetExpression())
				}
			}
		}
	}
}

// TestSchemaRefusedElsewhere: of a refusal that another node made there are only the
// words; what this API says besides is the same.
func TestSchemaRefusedElsewhere(t *testing.T) {
	for name, text := range map[string]string{
		"grammar":          "definition user {}\ninvalid x {}",
		"defined twice":    "definition user {}\ndefinition user {}",
		"unknown type":     "definition user {}\ndefinition doc {\n\trelation viewer: nobody\n}",
		"unknown relation": "definition doc {\n\tpermission view = nothing\n}",
		"CEL":              "caveat abc(x int) { x > }",
	} {
		_, err := engine.CompileStored(text)
		var refusal *engine.Refusal
		if !errors.As(err, &refusal) || refusal.Cause == nil {
			t.Fatalf("%s: %v", name, err)
		}
		here := status.Convert(schemaError(text, err))
		elsewhere := *refusal
		elsewhere.Cause = nil
		there, ok := status.FromError(schemaError(text, &elsewhere))
		same := slices.EqualFunc(there.Details(), here.Details(), func(a, b any) bool {
			x, ok := a.(proto.Message)
			y, also := b.(proto.Message)
			return ok && also && proto.Equal(x, y)
		})
		if !ok || there.Code() != here.Code() || there.Message() != here.Message() || !same || len(here.Details()) == 0 {
			t.Errorf("%s: refused elsewhere: %v\nrefused here: %v", name, there, here)
		}
	}
	// What no text explains stays as it came.
	odd := &engine.Refusal{Reason: engine.SchemaType, Message: "no"}
	if err := schemaError("definition user {}", odd); err != odd { //nolint:errorlint // It is the same error.
		t.Errorf("a text without a mistake: %v", err)
	}
}
