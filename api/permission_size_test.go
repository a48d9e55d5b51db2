package api

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/graph"
)

// TestLookupSubjectsFits: a wildcard with more exclusions than a client takes as one
// message is refused, in words that say what to ask for instead.
func TestLookupSubjectsFits(t *testing.T) {
	c := dial(t, testServer(t, Config{Node: memoryNode(t), Limits: Limits{AnswerBytes: 4000}}))
	ctx := testContext(t)
	if _, err := c.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Schema: `
		definition person {}
		definition doc {
			relation viewer: person | person:*
			relation banned: person
			permission view = viewer - banned
		}`}); err != nil {
		t.Fatal(err)
	}
	write := func(texts ...string) {
		t.Helper()
		r := &pembav1.WriteTuplesRequest{}
		for _, text := range texts {
			tuple, err := graph.ParseTuple(text)
			if err != nil {
				t.Fatal(err)
			}
			m, err := TupleMessage(tuple)
			if err != nil {
				t.Fatal(err)
			}
			r.Updates = append(r.Updates, &pembav1.TupleUpdate{Operation: pembav1.TupleUpdate_OPERATION_TOUCH, Tuple: m})
		}
		if _, err := c.WriteTuples(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	banned := func(n int) {
		var texts []string
		for i := range n {
			texts = append(texts, fmt.Sprintf("doc:a#banned@person:%s%05d", strings.Repeat("x", 55), i))
		}
		write(texts...)
	}
	lookup := func() (excluded int, err error) {
		stream, err := c.LookupSubjects(ctx, &pembav1.LookupSubjectsRequest{
			Object: &pembav1.Object{Type: "doc", Id: "a"}, Permission: "view", SubjectType: "person",
		})
		if err != nil {
			return 0, err
		}
		for {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return excluded, nil
			}
			if err != nil {
				return excluded, err
			}
			excluded += len(m.GetExcluded())
		}
	}
	write("doc:a#viewer@person:*")
	banned(10)
	if n, err := lookup(); n != 10 || err != nil {
		t.Fatalf("with few exclusions: %d, %v", n, err)
	}
	// 55 are refused for what is about them, 300 for their ids alone.
	for _, n := range []int{55, 300} {
		banned(n)
		_, err := lookup()
		expectStatus(t, fmt.Sprint(n, " exclusions"), err, codes.ResourceExhausted, "ANSWER_TOO_LARGE")
		if err != nil && !strings.Contains(err.Error(), "CheckBulk") {
			t.Errorf("%v does not say what to ask instead", err)
		}
	}
}
