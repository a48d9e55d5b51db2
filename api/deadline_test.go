package api

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

// TestHeavyCheckIsStopped: a check that takes long is stopped in its midst by the
// server's timeout, by the deadline of its client and by one that leaves, and what
// it held is let go.
func TestHeavyCheckIsStopped(t *testing.T) {
	const groups, members, chunk = 600, 50, 10_000
	node := testNode(t)
	s := testServer(t, Config{Node: node})
	c := dial(t, s)
	if _, err := c.WriteSchema(testContext(t), &pembav1.WriteSchemaRequest{
		Schema: `definition user {} definition group { relation member: user | group#left relation banned: user permission left = member - banned }`,
	}); err != nil {
		t.Fatal(err)
	}
	// Whoever looks for a member that is none has to see every group, and in each
	// of them the others.
	imports, err := c.ImportTuples(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	message := &pembav1.ImportTuplesRequest{Header: &pembav1.ImportHeader{}}
	send := func() {
		if err := imports.Send(message); err != nil {
			t.Fatal(imports.RecvMsg(new(pembav1.ImportTuplesResponse)))
		}
		message = &pembav1.ImportTuplesRequest{Chunk: message.GetChunk() + 1}
	}
	name := func(i int) *pembav1.Object { return object("group", fmt.Sprint(i%groups)) }
	for i := range groups {
		for j := range members {
			message.Tuples = append(message.Tuples, &pembav1.Tuple{
				Object: name(i), Relation: "member", Subject: &pembav1.Subject{Object: name(i + 1 + j), Relation: "left"},
			})
			if len(message.GetTuples()) == chunk {
				send()
			}
		}
	}
	if len(message.GetTuples()) > 0 {
		send()
	}
	if _, err := imports.CloseAndRecv(); err != nil {
		t.Fatal(err)
	}
	check := &pembav1.CheckRequest{Object: name(0), Permission: "member", Subject: user("nobody")}
	steps := func() uint64 { return node.Engine().Stats().Steps }
	before := steps()
	answer, err := c.Check(testContext(t), check)
	whole := steps() - before
	if err != nil || answer.GetDecision() != pembav1.Decision_DECISION_DENIED || whole < groups*members {
		t.Fatalf("%v, %v after %d steps", answer, err, whole)
	}
	for _, test := range []struct {
		name string
		code codes.Code
		// ask makes the call such that it ends after a time.
		ask func(time.Duration) error
	}{
		{"the timeout of the server", codes.DeadlineExceeded, func(after time.Duration) error {
			s.limits.CallTimeout = after // No call is open.
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			_, err := c.Check(ctx, check)
			if err != nil {
				expectStatus(t, "the timeout of the server", err, codes.DeadlineExceeded, "DEADLINE_EXCEEDED")
			}
			return err
		}},
		{"the deadline of the client", codes.DeadlineExceeded, func(after time.Duration) error {
			ctx, cancel := context.WithTimeout(context.Background(), after)
			defer cancel()
			_, err := c.Check(ctx, check)
			return err
		}},
		{"a client that leaves", codes.Canceled, func(after time.Duration) error {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			defer time.AfterFunc(after, cancel).Stop()
			_, err := c.Check(ctx, check)
			return err
		}},
	} {
		// How long it takes to begin depends on the machine: the first time that the
		// check began and did not come to its end counts. One that did may have been
		// told too late, where the machine is busy, so that it begins anew.
		stopped := false
		end := time.Now().Add(patience)
		for after := time.Millisecond; !stopped && time.Now().Before(end); after += after/2 + 1 {
			before := steps()
			err := test.ask(after)
			eventually(t, "the call is let go", func() bool {
				m, err := node.Engine().DB().Metrics()
				if err != nil {
					t.Fatal(err)
				}
				return m.Snapshots == 0 && inFlight(t, s, "Check") == 0
			})
			if err == nil {
				after = time.Millisecond
				continue
			}
			if status.Code(err) != test.code {
				t.Fatalf("%s: %v", test.name, err)
			}
			took := steps() - before
			stopped = took > 0 && took < whole
		}
		if !stopped {
			t.Errorf("%s: no check was stopped in its midst", test.name)
		}
	}
}

// inFlight is how many calls of a method are under way.
func inFlight(t *testing.T, s *Server, method string) float64 {
	t.Helper()
	for _, x := range gather(t, s) {
		if x.name == "pemba_requests_in_flight" && x.labels["method"] == method {
			return x.value
		}
	}
	return 0
}
