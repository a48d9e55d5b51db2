package authzed

import (
	"fmt"
	"strings"
	"testing"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc/codes"

	"github.com/pembadb/pemba/api"
)

// TestLookupSubjectsFits: a wildcard with more exclusions than a client takes as one
// message is refused, in words that say what to ask for instead, and that is answered.
func TestLookupSubjectsFits(t *testing.T) {
	conn, _ := newServerWith(t, api.Config{Limits: api.Limits{AnswerBytes: 4000}})
	writeSchema(t, conn, lookupSchema)
	request := &v1.LookupSubjectsRequest{
		Consistency: fullyConsistent, Resource: &v1.ObjectReference{ObjectType: "document", ObjectId: "d1"}, Permission: "view", SubjectObjectType: "user",
	}
	banned := func(from, to int) {
		var relationships []string
		for i := from; i < to; i++ {
			relationships = append(relationships, fmt.Sprintf("document:d1#banned@user:%s%05d", strings.Repeat("x", 55), i))
		}
		touch(t, conn, relationships...)
	}
	touch(t, conn, "document:d1#viewer@user:*", "document:d1#viewer@user:anne")
	banned(0, 10)
	if found, _, err := subjects(t, conn, request); err != nil || len(found) != 2 || strings.Count(found[0]+found[1], "-x") != 10 {
		t.Fatalf("with few exclusions: %v, %v", found, err)
	}
	// 32 are refused for what is about them, 300 for their ids alone.
	for _, n := range []int{32, 300} {
		banned(0, n)
		_, _, err := subjects(t, conn, request)
		if code, reason, _ := reasonOf(err); code != codes.FailedPrecondition || reason != "ANSWER_TOO_LARGE" ||
			!strings.Contains(err.Error(), "WILDCARD_OPTION_EXCLUDE_WILDCARDS") || !strings.Contains(err.Error(), "CheckBulkPermissions") {
			t.Fatalf("with %d exclusions: %v", n, err)
		}
	}
	request.WildcardOption = v1.LookupSubjectsRequest_WILDCARD_OPTION_EXCLUDE_WILDCARDS
	if found, _, err := subjects(t, conn, request); err != nil || strings.Join(found, " ") != "anne" {
		t.Errorf("without wildcards: %v, %v", found, err)
	}
}
