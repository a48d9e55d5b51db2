package authzed

import (
	"context"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strconv"
	"sync"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/cluster"
)

// The metadata that the API knows beside its messages. What a request may say
// beyond it, as io.spicedb.requestoverlapkey, needs no answer here: every write
// and read of a store is in one order.
const (
	// requestIDKey names a call, in its request and in the trailer of its answer.
	requestIDKey = "x-request-id"
	// requestVersionKey asks for the version of the server.
	requestVersionKey = "io.spicedb.requestversion"

	requestIDTrailerLegacy = "io.spicedb.respmeta.requestid"
	dispatchedTrailer      = "io.spicedb.respmeta.dispatchedoperationscount"
	cachedTrailer          = "io.spicedb.respmeta.cachedoperationscount"
	serverVersionHeader    = "io.spicedb.debug.version"
)

// requestIDMax is how many bytes an id that a caller gives a call may have: the
// answer repeats it, twice, and gRPC keeps the last of a connection.
const requestIDMax = 128

// A trailer is the metadata that an answer ends with. gRPC copies it, so that it is
// filled in again for other calls.
type trailer struct {
	// id has the id of the call, and is in metadata under both of its names.
	id       []string
	metadata metadata.MD
}

// trailers are those that no call is filling in.
var trailers = sync.Pool{New: func() any {
	id := make([]string, 1)
	return &trailer{id, metadata.MD{
		requestIDKey: id, requestIDTrailerLegacy: id,
		// A call is one operation: the node that is asked answers it alone, and out
		// of no cache of answers.
		dispatchedTrailer: {"1"}, cachedTrailer: {"0"},
	}}
}}

// Begin implements api.Dialect: it gives the answer the metadata that clients of
// the API look for.
func (Dialect) Begin(ctx context.Context) error {
	if len(api.Header(ctx, requestVersionKey)) > 0 {
		if version := serverVersion(); version != "" {
			if err := grpc.SetHeader(ctx, metadata.Pairs(serverVersionHeader, version)); err != nil {
				return fmt.Errorf("authzed: set the header: %w", err)
			}
		}
	}
	t := trailers.Get().(*trailer) //nolint:forcetypeassert // Nothing else is in the pool.
	t.id[0] = requestID(api.Header(ctx, requestIDKey))
	err := grpc.SetTrailer(ctx, t.metadata)
	trailers.Put(t)
	if err != nil {
		return fmt.Errorf("authzed: set the trailer: %w", err)
	}
	return nil
}

// requestID returns the name of a call: the one that its caller gives it, if it can
// be repeated, or one that is made up. That is for finding the call in a client's own
// log, and need not be hard to guess; it is short, since an id is what costs most of
// the metadata, on both sides of the connection.
func requestID(given []string) string {
	if len(given) > 0 && isRequestID(given[0]) {
		return given[0]
	}
	return strconv.FormatUint(rand.Uint64(), 36)
}

// isRequestID reports whether an id has 1 to requestIDMax printable characters of
// ASCII, without blanks: there are clients that take nothing else in a trailer.
func isRequestID(id string) bool {
	for i := range len(id) {
		if id[i] <= ' ' || id[i] > '~' {
			return false
		}
	}
	return id != "" && len(id) <= requestIDMax
}

// serverVersion is what the API's tools are told of the version, or "" for a build
// that has none. They compare a version without a suffix with the newest one of
// another server.
var serverVersion = sync.OnceValue(func() string { return suffixed(api.Version()) })

var plainVersion = regexp.MustCompile(`^v[0-9]+\.[0-9]+\.[0-9]+`)

func suffixed(version string) string {
	plain := plainVersion.FindString(version)
	if plain == "" {
		return ""
	}
	return plain + "+pemba"
}

// Asked implements api.Dialect.
func (Dialect) Asked(request any) (mode cluster.Mode, cursor, reads bool) {
	r, ok := request.(interface{ GetConsistency() *v1.Consistency })
	if !ok {
		return 0, false, false
	}
	if c, ok := request.(interface{ GetOptionalCursor() *v1.Cursor }); ok && c.GetOptionalCursor() != nil {
		return 0, true, true
	}
	switch r.GetConsistency().GetRequirement().(type) {
	case *v1.Consistency_AtLeastAsFresh:
		return cluster.AtLeast, false, true
	case *v1.Consistency_AtExactSnapshot:
		return cluster.Exactly, false, true
	case *v1.Consistency_FullyConsistent:
		return cluster.Linearizable, false, true
	}
	return cluster.Newest, false, true
}
