package authzed

import (
	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"

	"github.com/pembadb/pemba/graph"
)

// Tuple converts a relationship that another server has sent. It is refused, with a
// gRPC status, for a context or an expiration that no server of this API takes; what
// else may be wrong with it is left to whom it is written to.
func Tuple(r *v1.Relationship) (graph.Tuple, error) {
	return toTuple("relationship", r)
}
