package authzed

import (
	"strings"
	"sync"
	"testing"

	"github.com/authzed/authzed-go/pkg/requestmeta"
	"github.com/authzed/authzed-go/pkg/responsemeta"
	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// TestRequestID: an id that a caller gives is repeated while it is short and can be
// printed, and replaced by another where it is not.
func TestRequestID(t *testing.T) {
	conn := newServer(t)
	writeSchema(t, conn, documentSchema)
	longest := strings.Repeat("x", requestIDMax)
	for _, x := range []struct {
		what     string
		given    []string
		repeated bool
	}{
		{"none", nil, false},
		{"an empty one", []string{""}, false},
		{"a UUID", []string{"018f4c8e-9d5b-7c3a-8a7e-5d1f0b6c2e94"}, true},
		{"one of any printable characters", []string{"!~/+=:|\"{}"}, true},
		{"the longest", []string{longest}, true},
		{"one that is too long", []string{longest + "x"}, false},
		{"one that is far too long", []string{strings.Repeat("x", 12_000)}, false},
		{"one with a blank", []string{"call 7"}, false},
		{"two", []string{"call-7", "call-8"}, true},
	} {
		ctx := testContext(t)
		for _, id := range x.given {
			ctx = metadata.AppendToOutgoingContext(ctx, requestIDKey, id)
		}
		var trailer metadata.MD
		if _, err := v1.NewSchemaServiceClient(conn).ReadSchema(ctx, &v1.ReadSchemaRequest{}, grpc.Trailer(&trailer)); err != nil {
			t.Errorf("%s: %v", x.what, err)
			continue
		}
		id, err := responsemeta.GetResponseTrailerMetadata(trailer, responsemeta.RequestID)
		if err != nil || !isRequestID(id) {
			t.Errorf("%s: the id is %q: %v", x.what, id, err)
		}
		if legacy, err := responsemeta.GetResponseTrailerMetadata(trailer, responsemeta.RequestIDLegacy); err != nil || legacy != id {
			t.Errorf("%s: under its old name the id is %q, not %q: %v", x.what, legacy, id, err)
		}
		if repeated := len(x.given) > 0 && id == x.given[0]; repeated != x.repeated {
			t.Errorf("%s: the id of the answer is %.200q; repeated is %t, want %t", x.what, id, repeated, x.repeated)
		}
	}
	// Such bytes do not get through every client, and must not come back.
	for _, id := range []string{"call\t7", "\x7f", "é", "\xff", "a\x00"} {
		if got := requestID([]string{id}); got == id || !isRequestID(got) {
			t.Errorf("the id %q is answered with %q", id, got)
		}
	}
}

// TestRequestIDsOfManyCalls: of calls that are under way at once, each has its own id,
// and those that are made up are all different.
func TestRequestIDsOfManyCalls(t *testing.T) {
	conn := newServer(t)
	writeSchema(t, conn, documentSchema)
	const callers, calls = 8, 50
	var mu sync.Mutex
	made := make(map[string]bool)
	var wait sync.WaitGroup
	for range callers {
		wait.Go(func() {
			own := requestID(nil)
			for i := range calls {
				ctx := testContext(t)
				if i%2 == 0 {
					ctx = requestmeta.WithRequestID(ctx, own)
				}
				var trailer metadata.MD
				if _, err := v1.NewSchemaServiceClient(conn).ReadSchema(ctx, &v1.ReadSchemaRequest{}, grpc.Trailer(&trailer)); err != nil {
					t.Error(err)
					return
				}
				id, err := responsemeta.GetResponseTrailerMetadata(trailer, responsemeta.RequestID)
				if err != nil {
					t.Error(err)
					return
				}
				if i%2 == 0 && id != own {
					t.Errorf("the call %q has the id %q", own, id)
				}
				if i%2 == 1 {
					mu.Lock()
					if made[id] {
						t.Errorf("two calls have the id %q", id)
					}
					made[id] = true
					mu.Unlock()
				}
			}
		})
	}
	wait.Wait()
}
