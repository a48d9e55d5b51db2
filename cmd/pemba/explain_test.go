package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/api/client"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
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

// TestRequestTooLarge: a request that gRPC refuses for the server, since it is more than
// four times too large, is refused in the words that the server has for a smaller one.
func TestRequestTooLarge(t *testing.T) {
	testStart(t, func(c *startConfig) { c.api.Limits.RequestBytes = 4000 })
	must(t, importSchema, "schema", "write", "-")
	want := regexp.MustCompile(`^pemba: the request has (\d+) bytes; at most 4000 are allowed; send several, or raise --limit-request-bytes of the server; (.*) \(REQUEST_TOO_LARGE\)\n$`)
	for _, n := range []int{100, 300, 400, 900} {
		tuples := strings.Fields(importLines(n))
		for _, test := range []struct{ command, cure string }{
			{"write", `"pemba tuple import" writes any number`},
			{"delete", "delete them by several commands, or by --filter"},
		} {
			said := fails(t, "", append([]string{"tuple", test.command}, tuples...)...)
			match := want.FindStringSubmatch(said)
			if match == nil || match[2] != test.cure {
				t.Errorf("%s of %d tuples: %s", test.command, n, said)
			}
		}
	}
	// Of what cannot be several, what is large is named; of 5000 bytes the server says it,
	// of 20,000 gRPC.
	for _, size := range []int{5000, 20_000} {
		fill := strings.Repeat("x", size)
		object, schema := `{"why":"`+fill+`"}`, importSchema+"// "+fill
		numbers := `{"why":[1` + strings.Repeat(",1", size/10) + `]}` // Larger in a request.
		caveated := `doc:a#viewer@user:b[odd:` + object + `]`
		two := []string{"doc:a#viewer@user:b", "doc:c#viewer@user:d"}
		for _, test := range []struct {
			stdin, cure string
			args        []string
		}{
			{schema, "make the schema shorter, or ", []string{"schema", "write", "-"}},
			{schema, "make the schema shorter, or ", []string{"schema", "write", "-", "--dry-run"}},
			{schema, "make the schema shorter, or ", []string{"schema", "write", "-", "--dry-run", "--metadata", object + strings.Repeat(" ", size)}},
			{schema, "make the schema shorter, or ", []string{"schema", "diff", "-"}},
			{importSchema, "make --metadata smaller, or ", []string{"schema", "write", "-", "--metadata", object}},
			{"", "make --context smaller, or ", []string{"check", "doc:a#viewer@user:b", "--context", object}},
			{"", "make --context smaller, or ", []string{"check", "doc:a#viewer@user:b", "--context", numbers}},
			{"", "make --context smaller, or ", []string{"lookup", "resources", "doc", "viewer", "user:b", "--context", object}},
			{"", "make --metadata smaller, or ", []string{"tuple", "write", two[0], "--metadata", object}},
			{"", "make --metadata smaller, or ", []string{"tuple", "write", two[0], two[1], "--metadata", object}},
			{"", "make --metadata smaller, or ", []string{"tuple", "delete", two[0], "--metadata", numbers}},
			{"", "make --metadata smaller, or ", []string{"tuple", "delete", "--filter", "doc:a", "--metadata", object}},
			{"", "make the context of doc:a#viewer@user:b smaller, or ", []string{"tuple", "write", caveated}},
			{"", "make the context of doc:a#viewer@user:b smaller, or ", []string{"tuple", "write", two[1], caveated}},
			{"", "", []string{"tuple", "read", `doc:"` + fill + `"`}},
		} {
			want := regexp.MustCompile(`^pemba: the request has \d+ bytes; at most 4000 are allowed; ` + regexp.QuoteMeta(test.cure) + `raise --limit-request-bytes of the server \(REQUEST_TOO_LARGE\)\n$`)
			if said := fails(t, test.stdin, test.args...); !want.MatchString(said) {
				t.Errorf("%d bytes, %.80q: %s", size, test.args, said)
			}
		}
	}
	// Several would do where the metadata leaves room for some.
	many := append(strings.Fields(importLines(100)), "--metadata", `{"why":"`+strings.Repeat("x", 2500)+`"}`)
	if said := fails(t, "", append([]string{"tuple", "write"}, many...)...); !strings.Contains(said, "; send several, or raise ") || !strings.Contains(said, "pemba tuple import") {
		t.Errorf("%s", said)
	}
}

// A talkativeServer answers by more than a client takes.
type talkativeServer struct {
	pembav1.UnimplementedTupleServiceServer
}

func (talkativeServer) WriteTuples(context.Context, *pembav1.WriteTuplesRequest) (*pembav1.WriteTuplesResponse, error) {
	return &pembav1.WriteTuplesResponse{WrittenAt: &pembav1.Zookie{Token: strings.Repeat("z", client.ResponseBytesMax)}}, nil
}

// TestAnswerTooLarge: an answer that this program refuses by itself is not taken for a
// request that is too large, though gRPC has the same words for both.
func TestAnswerTooLarge(t *testing.T) {
	for _, name := range clientVariables {
		t.Setenv(name, "")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	pembav1.RegisterTupleServiceServer(server, talkativeServer{})
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	defer func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	said := fails(t, "", "tuple", "write", "doc:a#viewer@user:b", "--addr", l.Addr().String())
	if !strings.HasPrefix(said, "pemba: the answer has 671088") || !strings.Contains(said, "this command takes at most 67108864; or the request has so many, and the server's --limit-request-bytes is 16777216") || strings.Contains(said, requestTooLarge) {
		t.Errorf("%s", said)
	}
	// What gRPC says of other messages is left as it is.
	for _, text := range []string{
		"trying to send message larger than max (20000 vs. 16000)",
		"grpc: received message after decompression larger than max 16000",
		"grpc: message after decompression larger than max (20000 vs. 16000)",
		"grpc: received message larger than max length allowed on current machine (20000 vs. 16000)",
		"grpc: received message larger than max (20000 vs. 99999999999999999999)",
		"the tuple: grpc: received message larger than max (20000 vs. 16000)",
		"grpc: received message larger than max (20000 vs. 16001)",
	} {
		err := fmt.Errorf("somewhere: %w", status.Error(codes.ResourceExhausted, text))
		if reason, _ := reasonOf(err); reason != "" {
			t.Errorf("%s: %s", text, reason)
		}
		if got := explainError(newTupleImport(), err); got != text {
			t.Errorf("%s: %s", text, got)
		}
	}
	const refusal = "grpc: received message larger than max (20000 vs. 16000)"
	if reason, metadata := reasonOf(status.Error(codes.ResourceExhausted, refusal)); reason != requestTooLarge || metadata["limit"] != "4000" {
		t.Errorf("%s %v", reason, metadata)
	}
	if reason, _ := reasonOf(status.Error(codes.Unavailable, refusal)); reason != "" {
		t.Errorf("of another code: %s", reason)
	}
	if reason, _ := reasonOf(refused(t, codes.ResourceExhausted, "TOO_BUSY")); reason != "TOO_BUSY" {
		t.Errorf("%s", reason)
	}
}
