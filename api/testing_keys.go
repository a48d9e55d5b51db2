package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"google.golang.org/grpc/codes"

	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// A server with Config.Testing knows no keys: it lets each one in, as if it stood in
// the key file, bound to a store of its own. Nothing is kept of a key but that store,
// whose name follows from it.

// ownStorePrefix begins the names of the stores of keys, and ownStoreBytes is how
// much of a key's digest stands behind it: enough that no two keys are the same.
const (
	ownStorePrefix = "key-"
	ownStoreBytes  = 16
)

// testingStores is how many stores there may be unless Limits.Stores says it: a key
// is cheap, and each test of an application may have its own. An empty store with a
// schema takes some 15 KiB.
const testingStores = 10_000

// keylessCaller is who calls a testing server without a key.
var keylessCaller = &caller{own: DefaultStoreName, stores: map[string]bool{DefaultStoreName: true}}

// testingCaller returns who the authorization headers of a call say it is, where
// every key is one.
func testingCaller(authorization []string) (*caller, error) {
	key, err := presentedKey(authorization)
	switch {
	case err != nil:
		return nil, err
	case key == "":
		return keylessCaller, nil
	}
	if err := validateKey(key); err != nil {
		return nil, &requestError{code: codes.Unauthenticated, reason: keyInvalid, message: fmt.Sprintf("the key cannot be one: %v", err)}
	}
	digest := keyDigest(sha256.Sum256([]byte(key)))
	own := ownStorePrefix + hex.EncodeToString(digest[:ownStoreBytes])
	return &caller{own: own, stores: map[string]bool{own: true}, digest: digest}, nil
}

// notOwnStore refuses a store other than that of a testing server's key. The caller's
// own is the only one that it may see.
func notOwnStore(name string) error {
	return &requestError{
		code: codes.NotFound, reason: engine.UnknownStore.String(), field: "store",
		message: fmt.Sprintf("it is %q, and a server for tests has one store for each key, which is meant where none is named; "+
			"name none, and give another key for another store", name),
		metadata: map[string]string{"store": name, "testing": "true"},
	}
}

// ownStore returns the caller's own store, which is made when it is not there yet.
// Stores are made one after the other: so each is made once, and there are never
// more than the limit.
func (s *Server) ownStore(ctx context.Context, who caller) (graph.StoreInfo, error) {
	select {
	case s.makingStore <- struct{}{}:
		defer func() { <-s.makingStore }()
	case <-ctx.Done():
		return graph.StoreInfo{}, fmt.Errorf("wait for the key's store to be made: %w", context.Cause(ctx))
	}
	if store, found := s.node.StoreNamed(who.own); found {
		return store, nil // By another call of the key.
	}
	if err := s.roomForStore(ctx); err != nil {
		return graph.StoreInfo{}, err
	}
	// A caller who goes away does not cut this off: the store might then be made after
	// the next call has counted them. It takes as long as any write in memory.
	_, err := s.write(context.WithoutCancel(ctx), &graph.Mutation{StoreChange: &graph.StoreChange{Operation: graph.CreateStore, Name: who.own}})
	if err != nil {
		return graph.StoreInfo{}, err
	}
	store, found := s.node.StoreNamed(who.own)
	if !found {
		return graph.StoreInfo{}, unknownStore(who.own)
	}
	return store, nil
}
