package authzed

import (
	"context"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/grpc"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// The sizes and counts that the API promises by default. They are the dialect's:
// Pemba's own limits are larger or settings.
const (
	updatesMax         = 1000
	preconditionsMax   = 1000
	readLimitMax       = 1000
	deleteLimitMax     = 1000
	exportLimitMax     = 10_000
	checksMax          = 10_000
	questionContextMax = 4096
	tupleContextMax    = 25_000
	metadataMax        = 65_000
	exportPage         = 1000
	lookupResourcesMax = 1000
	// filtersMax bounds what each change of a watch, or each name of a schema that is
	// reflected, is compared with.
	filtersMax = 1000
)

// A Dialect is authzed.api.v1 as an api.Dialect. The zero Dialect is ready.
type Dialect struct{}

var _ api.Dialect = Dialect{}

// Services returns the services of the API.
func (Dialect) Services() []*grpc.ServiceDesc {
	return []*grpc.ServiceDesc{
		&v1.PermissionsService_ServiceDesc, &v1.SchemaService_ServiceDesc,
		&v1.WatchService_ServiceDesc, &v1.ExperimentalService_ServiceDesc,
	}
}

// Register adds them.
func (Dialect) Register(services grpc.ServiceRegistrar, host *api.Host) {
	a := &adapter{host: host}
	permissions := &permissionsService{adapter: a}
	schemas := &schemaService{adapter: a}
	v1.RegisterPermissionsServiceServer(services, permissions)
	v1.RegisterSchemaServiceServer(services, schemas)
	v1.RegisterWatchServiceServer(services, &watchService{adapter: a})
	v1.RegisterExperimentalServiceServer(services, &experimentalService{adapter: a, permissions: permissions, schemas: schemas})
}

// The services, each in a file of its own name. What one does not offer is
// answered with Unimplemented.
type (
	permissionsService struct {
		v1.UnimplementedPermissionsServiceServer
		*adapter
	}
	schemaService struct {
		v1.UnimplementedSchemaServiceServer
		*adapter
	}
	watchService struct {
		v1.UnimplementedWatchServiceServer
		*adapter
	}
	experimentalService struct {
		v1.UnimplementedExperimentalServiceServer
		*adapter
		permissions *permissionsService
		schemas     *schemaService
	}
)

// An adapter holds what the services share.
type adapter struct {
	host *api.Host
}

// snapshot validates a request that asks something, resolves its store and gives
// the state that it is answered from, which must be closed.
func (a *adapter) snapshot(ctx context.Context, c *v1.Consistency) (graph.StoreInfo, *engine.Snapshot, error) {
	store, err := a.host.Store(ctx)
	if err != nil {
		return store, nil, err
	}
	consistency, err := a.consistency(c)
	if err != nil {
		return store, nil, err
	}
	snapshot, err := a.host.Snapshot(ctx, store, consistency)
	return store, snapshot, err
}

// newest gives the newest state of the store of a request, with every change that was
// acknowledged before the call. It must be closed.
func (a *adapter) newest(ctx context.Context) (*engine.Snapshot, error) {
	store, err := a.host.Store(ctx)
	if err != nil {
		return nil, err
	}
	return a.host.Snapshot(ctx, store, cluster.Consistency{Mode: cluster.Linearizable})
}

// consistency turns the API's words into the engine's. A token of another server
// asks, in an at-least-as-fresh read, for the newest state there is: clients keep
// tokens for days, also across a migration.
func (a *adapter) consistency(c *v1.Consistency) (cluster.Consistency, error) {
	switch r := c.GetRequirement().(type) {
	case *v1.Consistency_AtLeastAsFresh:
		revision, instant, ours := a.host.ParseZookie(r.AtLeastAsFresh.GetToken())
		if !ours {
			if token := r.AtLeastAsFresh.GetToken(); !a.host.IsZookie(token) && !looksLikeToken(token) {
				return cluster.Consistency{}, errInvalidToken
			}
			return cluster.Consistency{Mode: cluster.Linearizable}, nil
		}
		return cluster.Consistency{Mode: cluster.AtLeast, Revision: revision, Instant: instant}, nil
	case *v1.Consistency_AtExactSnapshot:
		revision, instant, ours := a.host.ParseZookie(r.AtExactSnapshot.GetToken())
		if !ours || revision == 0 {
			return cluster.Consistency{}, errInvalidToken
		}
		return cluster.Consistency{Mode: cluster.Exactly, Revision: revision, Instant: instant}, nil
	case *v1.Consistency_FullyConsistent:
		return cluster.Consistency{Mode: cluster.Linearizable}, nil
	}
	return cluster.Consistency{Mode: cluster.Newest}, nil
}

// token returns the token of what a snapshot answers.
func (a *adapter) token(s *engine.Snapshot) *v1.ZedToken {
	return &v1.ZedToken{Token: a.host.Zookie(s.Revision(), s.Instant())}
}

// writtenAt returns the token of a change.
func (a *adapter) writtenAt(r engine.Result) *v1.ZedToken {
	return &v1.ZedToken{Token: a.host.Zookie(r.Revision, r.Instant)}
}
