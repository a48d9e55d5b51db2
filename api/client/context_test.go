package client_test

import (
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/pembadb/pemba/api/client"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/graph"
)

// TestContext: Go values come in the forms that caveats read, and others are
// refused by the name of their parameter.
func TestContext(t *testing.T) {
	type level string
	type flags []bool
	type stamp time.Time
	type host netip.Addr
	type lease time.Duration
	number := 7
	var itself []any
	itself = append(itself, nil)
	itself[0] = itself
	at := time.Date(2030, 1, 2, 3, 4, 5, 600, time.FixedZone("", 3600))
	for _, test := range []struct {
		value any
		want  string // JSON, or the error
	}{
		{nil, `null`},
		{true, `true`},
		{"x", `"x"`},
		{level("high"), `"high"`},
		{1.5, `1.5`},
		{float32(0.5), `0.5`},
		{int8(-3), `-3`},
		{uint16(3), `3`},
		{int64(math.MinInt64), `"-9223372036854775808"`},
		{uint64(1<<53 + 1), `"9007199254740993"`},
		{json.Number("9007199254740993"), `"9007199254740993"`},
		{json.Number("0.25"), `0.25`},
		{json.Number("-9007199254740992"), `-9007199254740992`},
		{json.Number("9223372036854775809"), `"9223372036854775809"`},
		{uint64(9223372036854775809), `"9223372036854775809"`},
		{json.Number("100000000000000000000001"), `"100000000000000000000001"`},
		{json.Number("-1.5e3"), `-1500`},
		{json.RawMessage(`{"a":[1,9007199254740993,"x",null]}`), `{"a":[1,"9007199254740993","x",null]}`},
		{json.RawMessage(nil), `null`},
		{[]json.RawMessage{json.RawMessage(`true`)}, `[true]`},
		{stamp(at), `"2030-01-02T02:04:05.0000006Z"`},
		{map[string]*stamp{"a": (*stamp)(&at)}, `{"a":"2030-01-02T02:04:05.0000006Z"}`},
		{&at, `"2030-01-02T02:04:05.0000006Z"`},
		{host(netip.MustParseAddr("10.0.0.7")), `"10.0.0.7"`},
		{lease(time.Microsecond), `1000`},
		{&number, `7`},
		{(*int)(nil), `null`},
		{[]byte{1, 2, 255}, `"AQL/"`},
		{at, `"2030-01-02T02:04:05.0000006Z"`},
		{90 * time.Minute, `"1h30m0s"`},
		{-time.Second, `"-1s"`},
		{netip.MustParseAddr("10.0.0.7"), `"10.0.0.7"`},
		{net.ParseIP("10.0.0.7"), `"10.0.0.7"`},
		{[]string{"a", "b"}, `["a","b"]`},
		{flags{true}, `[true]`},
		{[2]int{1, 2}, `[1,2]`},
		{map[string]time.Duration{"a": time.Second}, `{"a":"1s"}`},
		{[]any{map[string]any{"t": at}}, `[{"t":"2030-01-02T02:04:05.0000006Z"}]`},

		{math.NaN(), "finite"},
		{json.Number("x"), "no number"},
		{json.Number("0x10"), "no number"},
		{json.Number("1_0"), "no number"},
		{json.Number("1e999"), "float64"},
		{json.RawMessage(`{"a":`), "no JSON"},
		{json.RawMessage("\"\xff\""), "no JSON"},
		{json.RawMessage(strings.Repeat("[", 50) + strings.Repeat("]", 50)), "32 deep"},
		{slog.LevelInfo, "slog.Level brings a form of its own"},
		{new(slog.LevelVar), "*slog.LevelVar brings a form of its own"},
		{stamp(time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)), "9999"},
		{"\xff", "not UTF-8"},
		{map[string]any{"\xff": 1}, "not UTF-8"},
		{map[int]string{1: "a"}, "keys must be text"},
		{make(chan int), "chan int is not allowed; allowed are nil"},
		{struct{ A int }{1}, "allowed are nil"},
		{[]any{1, map[string]any{"deep": func() {}}}, `[1]: ["deep"]: a value of type func()`},
		{netip.Addr{}, "no address"},
		{net.IP{1}, "4 and 16"},
		{time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), "9999"},
		{itself, "32 deep"},
	} {
		s, err := client.Context(map[string]any{"p": test.value})
		if err != nil {
			if text := err.Error(); !strings.Contains(text, `parameter "p": `) || !strings.Contains(text, test.want) {
				t.Errorf("%T: %v; expected %s", test.value, err, test.want)
			}
			continue
		}
		got, err := json.Marshal(s.GetFields()["p"].AsInterface())
		if err != nil || string(got) != test.want {
			t.Errorf("%T %v: %s, %v; expected %s", test.value, test.value, got, err, test.want)
		}
		want := &structpb.Value{}
		if err := want.UnmarshalJSON([]byte(test.want)); err != nil || !proto.Equal(want, s.GetFields()["p"]) {
			t.Errorf("%T %v: %v, %v", test.value, test.value, s, err)
		}
	}
	if s, err := client.Context(nil); s != nil || err != nil {
		t.Errorf("nothing: %v, %v", s, err)
	}
	if _, err := client.Context(map[string]any{"\xff": 1}); err == nil {
		t.Error("a name that is not UTF-8 was taken")
	}
}

// TestCheckWithGoValues: a caveat reads a time.Time and a time.Duration.
func TestCheckWithGoValues(t *testing.T) {
	c := dialed(t)
	schema := `caveat soon(now timestamp, slack duration) { now + slack < timestamp("2030-01-01T00:00:00Z") }
		definition user {} definition doc { relation viewer: user with soon }`
	if _, err := c.Schemas.WriteSchema(t.Context(), &pembav1.WriteSchemaRequest{Schema: schema}); err != nil {
		t.Fatal(err)
	}
	written := tuple(t, "doc:a#viewer@user:anne[soon]")
	if _, err := c.WriteTuples(t.Context(), graph.Touch, written); err != nil {
		t.Fatal(err)
	}
	q := client.Question{Object: written.Object, Permission: "viewer", Subject: written.Subject}
	for slack, want := range map[time.Duration]pembav1.Decision{
		time.Hour: pembav1.Decision_DECISION_ALLOWED, 3 * time.Hour: pembav1.Decision_DECISION_DENIED,
	} {
		q.Context = map[string]any{"now": time.Date(2029, 12, 31, 22, 0, 0, 0, time.UTC), "slack": slack}
		if answer, err := c.Check(t.Context(), q); err != nil || answer.GetDecision() != want {
			t.Errorf("%v: %v, %v", slack, answer, err)
		}
	}
	q.Context = map[string]any{"now": struct{}{}}
	if _, err := c.Check(t.Context(), q); err == nil || !strings.Contains(err.Error(), `parameter "now"`) {
		t.Errorf("%v", err)
	}
}

// TestDialError: whether somebody answered, and what, is told apart.
func TestDialError(t *testing.T) {
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	// Nobody listens where a connection goes out, and nobody else can meanwhile.
	outgoing, err := net.Dial("tcp", web.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := outgoing.Close(); err != nil {
			t.Error(err)
		}
	}()
	tls, err := client.LoadTLS("", "", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		config         client.Config
		answered, http bool
	}{
		{client.Config{Addr: outgoing.LocalAddr().String()}, false, false},
		{client.Config{Addr: web.Listener.Addr().String()}, true, true},
		{client.Config{Addr: web.Listener.Addr().String(), TLS: tls}, true, false},
	} {
		var failure *client.DialError
		c, err := client.Dial(t.Context(), test.config)
		if err == nil {
			t.Errorf("%+v: connected", test.config)
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			continue
		}
		if !errors.As(err, &failure) || failure.Answered != test.answered || failure.HTTP != test.http {
			t.Errorf("%+v: %v, %+v", test.config, err, failure)
		}
	}
	for _, addr := range []string{"https://127.0.0.1:50051", "https://db.example", "127.0.0.1", "127.0.0.1:", "db.example:1/x", "::1:2:3"} {
		config := client.Config{Addr: addr}
		if err := config.Validate(); err == nil || !strings.Contains(err.Error(), "host:port") {
			t.Errorf("%s: %v", addr, err)
		}
	}
}
