package authzed

import (
	"errors"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/engine"
)

// TestLastingRefusals: of what pemba.v1 calls an exhausted resource, which clients of
// this API send again, only that keeps the code which may pass by itself; all else of
// the error stays as it is.
func TestLastingRefusals(t *testing.T) {
	for _, test := range []struct {
		name, domain, reason string
		metadata             map[string]string
		want                 codes.Code
	}{
		{"a large answer", api.ErrorDomain, "ANSWER_TOO_LARGE", map[string]string{"limit": "4194304"}, codes.FailedPrecondition},
		{"a question of many steps", api.ErrorDomain, "BUDGET_EXCEEDED", map[string]string{"budget_steps": "2000"}, codes.FailedPrecondition},
		{"a question that nests deep", api.ErrorDomain, "BUDGET_EXCEEDED", nil, codes.FailedPrecondition},
		{"a question beside large ones", api.ErrorDomain, "BUDGET_EXCEEDED", map[string]string{engine.SharedMemoryBytes: "1024"}, codes.ResourceExhausted},
		{"a counter too many", api.ErrorDomain, "TOO_MANY_COUNTERS", nil, codes.FailedPrecondition},
		{"a precondition that reads much", api.ErrorDomain, "TOO_MUCH_TO_READ", nil, codes.FailedPrecondition},
		{"a name too many", api.ErrorDomain, "NUMBERS_EXHAUSTED", nil, codes.FailedPrecondition},
		{"a busy node", api.ErrorDomain, "TOO_BUSY", nil, codes.ResourceExhausted},
		{"a key's rate", api.ErrorDomain, "RATE_LIMITED", nil, codes.ResourceExhausted},
		{"a full store", api.ErrorDomain, "STORE_FULL", nil, codes.FailedPrecondition},
		{"a store too many", api.ErrorDomain, "TOO_MANY_STORES", nil, codes.FailedPrecondition},
		{"a reason of another domain", errorDomain, "ANSWER_TOO_LARGE", nil, codes.ResourceExhausted},
	} {
		info := &errdetails.ErrorInfo{Domain: test.domain, Reason: test.reason, Metadata: test.metadata}
		native, err := status.New(codes.ResourceExhausted, "what was said").WithDetails(info)
		if err != nil {
			t.Fatal(err)
		}
		got := Dialect{}.Status(errors.New(test.reason), native)
		if got.Code() != test.want || got.Message() != "what was said" || len(got.Details()) != 1 || !proto.Equal(got.Details()[0].(proto.Message), info) {
			t.Errorf("%s: got %v with %v, want %v", test.name, got, got.Details(), test.want)
		}
		if native.Code() != codes.ResourceExhausted {
			t.Errorf("%s: the error of pemba.v1 became %v", test.name, native)
		}
	}
}
