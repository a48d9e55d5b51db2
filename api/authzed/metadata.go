package authzed

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"regexp"
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

// A call is one operation: the node that is asked answers it alone, and out of no
// cache of answers. gRPC copies them, so that they stand here once.
var (
	dispatchedOperations = []string{"1"}
	cachedOperations     = []string{"0"}
)

// Begin implements api.Dialect: it gives the answer the metadata that clients of
// the API look for.
func (Dialect) Begin(ctx context.Context) error {
	id := ""
	if given := metadata.ValueFromIncomingContext(ctx, requestIDKey); len(given) > 0 {
		id = given[0]
	}
	if id == "" {
		id = newRequestID()
	}
	if len(metadata.ValueFromIncomingContext(ctx, requestVersionKey)) > 0 {
		if version := serverVersion(); version != "" {
			if err := grpc.SetHeader(ctx, metadata.Pairs(serverVersionHeader, version)); err != nil {
				return fmt.Errorf("authzed: set the header: %w", err)
			}
		}
	}
	ids := []string{id}
	if err := grpc.SetTrailer(ctx, metadata.MD{
		requestIDKey: ids, requestIDTrailerLegacy: ids,
		dispatchedTrailer: dispatchedOperations, cachedTrailer: cachedOperations,
	}); err != nil {
		return fmt.Errorf("authzed: set the trailer: %w", err)
	}
	return nil
}

// newRequestID makes up a name for a call. It is for finding the call in a
// client's own log, and need not be hard to guess.
func newRequestID() string {
	var id [16]byte
	binary.BigEndian.PutUint64(id[:], rand.Uint64())
	binary.BigEndian.PutUint64(id[8:], rand.Uint64())
	var text [2 * len(id)]byte
	hex.Encode(text[:], id[:])
	return string(text[:])
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
