package api

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strconv"

	"google.golang.org/grpc/codes"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// store resolves the name of a store that a call is about; empty means the
// default store. It is the one way to a store: a name that does not exist and
// one that the caller's key may not see give the very same error, and every call
// counts against the store's rate, but for those of administered.
func (s *Server) store(ctx context.Context, name string) (graph.StoreInfo, error) {
	store, err := s.storeNamed(ctx, name)
	if err != nil {
		return graph.StoreInfo{}, err
	}
	if err := s.rate.allow(callerOf(ctx), store); err != nil {
		return graph.StoreInfo{}, err
	}
	return store, nil
}

// administered resolves the name of a store like store, for a call that is about
// the store itself and not about what is in it. It counts for the key alone when
// that is an operator's: a store that is over its rate must not keep its operator
// from raising the rate, nor an operator's care take from the store's callers.
func (s *Server) administered(ctx context.Context, name string) (graph.StoreInfo, error) {
	who := callerOf(ctx)
	if !who.operator {
		return s.store(ctx, name)
	}
	store, err := s.storeNamed(ctx, name)
	if err != nil {
		return graph.StoreInfo{}, err
	}
	if err := s.rate.allow(who, graph.StoreInfo{}); err != nil {
		return graph.StoreInfo{}, err
	}
	return store, nil
}

// storeNamed finds a store that the caller may see, and counts nothing.
func (s *Server) storeNamed(ctx context.Context, name string) (graph.StoreInfo, error) {
	who := callerOf(ctx)
	if name == "" && !who.maySee(who.storeName("")) {
		return graph.StoreInfo{}, storeNotNamed(who, "field store")
	}
	name = who.storeName(name)
	if err := checkText("store", name, storeBytesMax); err != nil {
		return graph.StoreInfo{}, err
	}
	switch {
	case who.maySee(name):
	case who.own != "":
		return graph.StoreInfo{}, notOwnStore(name)
	default:
		return graph.StoreInfo{}, unknownStore(name)
	}
	if err := s.caughtUp(ctx); err != nil {
		return graph.StoreInfo{}, err
	}
	store, found := s.node.StoreNamed(name)
	switch {
	case found:
		return store, nil
	case name == who.own:
		return s.ownStore(ctx, who)
	}
	// It may have been made through another node, and not be here yet.
	if err := s.node.Await(ctx, linearizable); err != nil {
		return graph.StoreInfo{}, err
	}
	if store, found = s.node.StoreNamed(name); found {
		return store, nil
	}
	return graph.StoreInfo{}, unknownStore(name)
}

// caughtUp waits until the node has caught up since its start: before that it may know
// the stores of long ago, and what was in them. A node that once had stays so, and
// then it costs nothing.
func (s *Server) caughtUp(ctx context.Context) error {
	if s.current.Load() {
		return nil
	}
	err := s.node.Await(ctx, cluster.Consistency{})
	if err == nil {
		s.current.Store(true)
	}
	return err
}

// linearizable asks for everything that was acknowledged through any node.
var linearizable = cluster.Consistency{Mode: cluster.Linearizable}

// unknownStore refuses a store that there is not, or that the caller may not see.
func unknownStore(name string) error {
	return &requestError{
		code: codes.NotFound, reason: engine.UnknownStore.String(), field: "store",
		message:  fmt.Sprintf("there is no store %q that the caller may see", name),
		metadata: map[string]string{"store": name},
	}
}

// storeNotNamed refuses a call that names no store, of a caller who may not see the
// one that is meant then; where says where a call names its store.
func storeNotNamed(who caller, where string) error {
	meant := who.storeName("")
	return &requestError{
		code: codes.NotFound, reason: engine.UnknownStore.String(), field: "store",
		message:  fmt.Sprintf("none is named, which means the store %q, and the key may not see that; name one in the %s", meant, where),
		metadata: map[string]string{"store": meant},
	}
}

// A droppedStore is the error of a call whose store was deleted since its name was
// resolved. On a node that is behind that may be long ago, and another store have the
// name by now: see madeAgain.
type droppedStore struct {
	error // Of a store that there is not.
	store graph.StoreInfo
}

func (d *droppedStore) Unwrap() error { return d.error }

// ofStore gives the error of a store that was deleted since it was resolved the
// form of one that never was there.
func ofStore(store graph.StoreInfo, err error) error {
	if err == nil {
		return nil // Here, so that what fails allocates alone.
	}
	return ofDroppedStore(store, err)
}

func ofDroppedStore(store graph.StoreInfo, err error) error {
	var refusal *engine.Refusal
	switch {
	case errors.Is(err, cluster.ErrOutcomeUnknown): // It may have been there for an earlier try.
	case errors.Is(err, graph.ErrUnknownStore), errors.As(err, &refusal) && refusal.Reason == engine.UnknownStore:
		return &droppedStore{unknownStore(store.Name), store}
	}
	return err
}

// madeAgain reports whether a call failed since its store was deleted, and there is
// another of the name: the one that the call was about, had this node not been behind
// when it resolved the name. Nothing was changed then, for there is no store under the
// old number, and the call can be answered anew.
func (s *Server) madeAgain(ctx context.Context, failed error) (bool, error) {
	var dropped *droppedStore
	if !errors.As(failed, &dropped) {
		return false, nil
	}
	if err := s.node.Await(ctx, linearizable); err != nil {
		return false, err
	}
	now, found := s.node.StoreNamed(dropped.store.Name)
	return found && now.ID != dropped.store.ID, nil
}

// roomForStore refuses to make one more store than are allowed.
func (s *Server) roomForStore(ctx context.Context) error {
	if err := s.caughtUp(ctx); err != nil {
		return err
	}
	n := len(s.node.Stores())
	if n < s.limits.Stores {
		return nil
	}
	return &requestError{
		code: codes.ResourceExhausted, reason: "TOO_MANY_STORES",
		message:  fmt.Sprintf("there are %d stores, and at most %d are allowed", n, s.limits.Stores),
		metadata: map[string]string{"limit": strconv.Itoa(s.limits.Stores)},
	}
}

// change makes a change to a store and returns its result, or the refusal as an
// error.
func (s *Server) change(ctx context.Context, store graph.StoreInfo, m *graph.Mutation) (engine.Result, error) {
	m.Store = store.ID
	result, err := s.write(ctx, m)
	return result, ofStore(store, err)
}

// snapshot gives the state that a read is answered from. A cursor decides it
// alone when there is one.
func (s *Server) snapshot(ctx context.Context, store graph.StoreInfo, c *pembav1.Consistency, from *cursor) (*engine.Snapshot, error) {
	var consistency cluster.Consistency
	var err error
	if from != nil {
		consistency = cluster.Consistency{Mode: cluster.Exactly, Revision: from.revision, Instant: from.instant, Pinned: true}
	} else if consistency, err = toConsistency(c, s.clusterID(), s.isAncestor); err != nil {
		return nil, err
	}
	snapshot, err := s.node.Snapshot(ctx, store.ID, consistency, graph.Overlay{})
	return snapshot, ofStore(store, err)
}

// operatorOnly refuses callers who may not administer stores, before anything is
// looked at.
func operatorOnly(ctx context.Context) error {
	who := callerOf(ctx)
	switch {
	case who.operator:
		return nil
	case who.own != "":
		return needsOperator("a server for tests makes a store for each key, at the first call with it; stores are not created, changed or deleted otherwise")
	}
	return needsOperator("the key is bound to stores; creating, changing and deleting stores needs an operator's key")
}

func needsOperator(message string) error {
	return &requestError{code: codes.PermissionDenied, reason: "OPERATOR_ONLY", message: message}
}

// storeService implements pemba.v1.StoreService.
type storeService struct {
	pembav1.UnimplementedStoreServiceServer
	server *Server
}

func (s *storeService) CreateStore(ctx context.Context, r *pembav1.CreateStoreRequest) (*pembav1.CreateStoreResponse, error) {
	if err := operatorOnly(ctx); err != nil {
		return nil, err
	}
	if err := checked("name", graph.ValidateStoreName(r.GetName())); err != nil {
		return nil, err
	}
	change, err := toStoreChange(r.GetSettings())
	if err != nil {
		return nil, within("settings", err)
	}
	if err := s.server.rate.allow(callerOf(ctx), graph.StoreInfo{}); err != nil {
		return nil, err
	}
	if err := s.server.roomForStore(ctx); err != nil {
		return nil, err
	}
	change.Operation, change.Name = graph.CreateStore, r.GetName()
	result, err := s.server.write(ctx, &graph.Mutation{StoreChange: change})
	if err != nil {
		return nil, err
	}
	// The store as it was made: it may have been changed since.
	made := graph.StoreInfo{
		ID: result.Store, Name: r.GetName(), Created: result.Revision, CreatedAt: result.Instant,
		Settings: graph.StoreSettings{History: graph.DefaultRetention, Log: graph.DefaultRetention},
	}
	setSettings(&made.Settings, change)
	return &pembav1.CreateStoreResponse{Store: fromStore(made), CreatedAt: s.server.writtenAt(result)}, nil
}

func (s *storeService) UpdateStore(ctx context.Context, r *pembav1.UpdateStoreRequest) (*pembav1.UpdateStoreResponse, error) {
	if err := operatorOnly(ctx); err != nil {
		return nil, err
	}
	store, err := s.server.administered(ctx, r.GetStore())
	if err != nil {
		return nil, err
	}
	change, err := toStoreChange(r.GetSettings())
	if err != nil {
		return nil, within("settings", err)
	}
	if *change == (graph.StoreChange{}) {
		return nil, malformed("settings", "none is set; at least one of history, log, tuples_max and calls_per_second must be")
	}
	change.Operation = graph.SetStore
	result, err := s.server.change(ctx, store, &graph.Mutation{StoreChange: change})
	if err != nil {
		return nil, err
	}
	// As it is now, where this node has the change; else as it was before, with it.
	if err := s.server.node.Await(ctx, cluster.Consistency{Mode: cluster.AtLeast, Revision: result.Revision}); err != nil {
		setSettings(&store.Settings, change)
		return &pembav1.UpdateStoreResponse{Store: fromStore(store), UpdatedAt: s.server.writtenAt(result)}, nil
	}
	now, found := s.server.node.StoreNamed(store.Name)
	if !found || now.ID != store.ID {
		return nil, unknownStore(store.Name)
	}
	return &pembav1.UpdateStoreResponse{Store: fromStore(now), UpdatedAt: s.server.writtenAt(result)}, nil
}

func (s *storeService) GetStore(ctx context.Context, r *pembav1.GetStoreRequest) (*pembav1.GetStoreResponse, error) {
	store, err := s.server.administered(ctx, r.GetStore())
	if err != nil {
		return nil, err
	}
	snapshot, err := s.server.snapshot(ctx, store, nil, nil)
	if err != nil {
		return nil, err
	}
	defer snapshot.Close()
	counters, err := snapshot.Graph().NamedCounters()
	if err != nil {
		return nil, ofStore(store, err)
	}
	response := &pembav1.GetStoreResponse{Store: fromStore(store)}
	for _, c := range counters {
		response.Counters = append(response.Counters, c.Name)
	}
	return response, nil
}

func (s *storeService) ListStores(ctx context.Context, r *pembav1.ListStoresRequest) (*pembav1.ListStoresResponse, error) {
	limit, err := toPageLimit(r.GetLimit())
	if err != nil {
		return nil, err
	}
	arguments := hashArguments(listStores).sum()
	after := ""
	if r.GetCursor() != "" {
		from, err := parseCursor(r.GetCursor(), s.server.clusterID(), listStores, arguments)
		if err != nil {
			return nil, err
		}
		after = string(from.position)
	}
	who := callerOf(ctx)
	// No store is asked about, so the key alone is counted.
	if err := s.server.rate.allow(who, graph.StoreInfo{}); err != nil {
		return nil, err
	}
	if who.own != "" { // It is made at the key's first call, which this may be.
		if _, err := s.server.storeNamed(ctx, who.own); err != nil {
			return nil, err
		}
	}
	if err := s.server.caughtUp(ctx); err != nil {
		return nil, err
	}
	stores := s.server.node.Stores()
	begin := sort.Search(len(stores), func(i int) bool { return stores[i].Name > after })
	response := new(pembav1.ListStoresResponse)
	for _, store := range stores[begin:] {
		if !who.maySee(store.Name) {
			continue
		}
		if len(response.Stores) == limit {
			last := response.Stores[limit-1].GetName()
			c := cursor{zookie: zookie{cluster: s.server.clusterID()}, kind: listStores, arguments: arguments, position: []byte(last)}
			response.Cursor = c.token()
			break
		}
		response.Stores = append(response.Stores, fromStore(store))
	}
	return response, nil
}

func (s *storeService) DeleteStore(ctx context.Context, r *pembav1.DeleteStoreRequest) (*pembav1.DeleteStoreResponse, error) {
	if err := operatorOnly(ctx); err != nil {
		return nil, err
	}
	if r.GetStore() == "" {
		return nil, malformed("store", "it is empty; the store to delete must be named")
	}
	store, err := s.server.administered(ctx, r.GetStore())
	if err != nil {
		return nil, err
	}
	result, err := s.server.change(ctx, store, &graph.Mutation{StoreChange: &graph.StoreChange{Operation: graph.DropStore}})
	if err != nil {
		return nil, err
	}
	return &pembav1.DeleteStoreResponse{DeletedAt: s.server.writtenAt(result)}, nil
}
