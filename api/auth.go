package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/tap"

	"github.com/pembadb/pemba/graph"
)

// A keyDigest is what is kept of a key.
type keyDigest [sha256.Size]byte

// A caller is who makes a call, as far as its key says: an operator, who may do
// everything, or one that is bound to stores and may neither see nor administer
// any other.
type caller struct {
	operator bool
	// stores are the names of the stores that a bound key may use; nil for an
	// operator. It must not be changed.
	stores map[string]bool
	// digest is that of the key; zero without one.
	digest keyDigest
	// line is where the key stands in the key file; zero for one that is not of
	// it.
	line int
}

// maySee reports whether the caller may know of a store.
func (c caller) maySee(store string) bool { return c.operator || c.stores[store] }

// callerKey is the key of the caller in a call's context.
type callerKey struct{}

// nobody calls where no key is configured: whoever reaches this machine's
// loopback address is its operator.
var nobody = &caller{operator: true}

// callerOf returns who makes the call. It is the zero caller, who may see
// nothing, for a context that has not been through authenticate.
func callerOf(ctx context.Context) caller {
	if c, ok := ctx.Value(callerKey{}).(*caller); ok {
		return *c
	}
	return caller{}
}

// A keyring holds who may call. With no key in it every caller may do everything,
// and the server stays on loopback. It does not change; the ring that is in
// force is swapped as a whole.
type keyring []caller

// parseKeyFile reads the content of Config.KeyFile: a line for each key, as "KEY"
// for an operator's or "KEY store NAME,NAME" for one that is bound; what follows
// a # at the start of a word does not count. It must hold a key: a file that is
// being written is empty for a moment, and a server without keys is open to all.
//
// Errors name lines and repeat nothing of what they hold.
func parseKeyFile(content []byte) (keyring, error) {
	if len(content) > fileBytesMax {
		return nil, fmt.Errorf("it has more than %d bytes", fileBytesMax)
	}
	var ring keyring
	seen := make(map[keyDigest]int)
	number := 0
	for line := range bytes.Lines(content) {
		number++
		words := strings.Fields(string(line))
		if i := slices.IndexFunc(words, func(w string) bool { return strings.HasPrefix(w, "#") }); i >= 0 {
			words = words[:i]
		}
		if len(words) == 0 {
			continue
		}
		if err := validateKey(words[0]); err != nil {
			return nil, fmt.Errorf("line %d: the key: %w", number, err)
		}
		c := caller{operator: true, digest: sha256.Sum256([]byte(words[0])), line: number}
		if before := seen[c.digest]; before > 0 {
			return nil, fmt.Errorf("line %d: the key stands in line %d already", number, before)
		}
		seen[c.digest] = number
		if len(words) > 1 {
			if words[1] != "store" || len(words) != 3 {
				return nil, fmt.Errorf("line %d: behind the key stands nothing or \"store NAME,NAME\"", number)
			}
			c.operator, c.stores = false, make(map[string]bool)
			for name := range strings.SplitSeq(words[2], ",") {
				if len(name) == 0 || len(name) > graph.MaxStoreNameLength {
					return nil, fmt.Errorf("line %d: the name of a store has %d bytes; 1 to %d are allowed", number, len(name), graph.MaxStoreNameLength)
				}
				c.stores[name] = true
			}
		}
		if ring = append(ring, c); len(ring) > keysMax {
			return nil, fmt.Errorf("there are more than %d keys", keysMax)
		}
	}
	if len(ring) == 0 {
		return nil, errors.New("it holds no key")
	}
	return ring, nil
}

// operatorKeys makes a ring of keys that are an operator's.
func operatorKeys(keys []string) keyring {
	ring := make(keyring, len(keys))
	for i, key := range keys {
		ring[i] = caller{operator: true, digest: sha256.Sum256([]byte(key))}
	}
	return ring
}

// validateKey says what is wrong with a key, without repeating it.
func validateKey(key string) error {
	switch {
	case key == "":
		return fmt.Errorf("it is empty; 1 to %d bytes without blanks are allowed", keyBytesMax)
	case len(key) > keyBytesMax:
		return fmt.Errorf("it has %d bytes; 1 to %d are allowed", len(key), keyBytesMax)
	case strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }):
		// Headers of HTTP/2 carry nothing else.
		return errors.New("it holds a character that is no printable ASCII, or a blank")
	}
	return nil
}

// find returns whose key it is, or nil. It takes the same time whichever key is
// given: all digests are compared, each in constant time.
func (k keyring) find(key string) *caller {
	digest := keyDigest(sha256.Sum256([]byte(key)))
	found := 0
	for i := range k {
		equal := subtle.ConstantTimeCompare(digest[:], k[i].digest[:])
		found = subtle.ConstantTimeSelect(equal, i+1, found)
	}
	if found == 0 {
		return nil
	}
	return &k[found-1]
}

// Reasons of Unauthenticated, which metrics tell apart as well.
const (
	keyMissing = "KEY_MISSING"
	keyInvalid = "KEY_INVALID"
)

// caller returns who the authorization headers of a call say it is. Both a
// missing and a wrong key are Unauthenticated: who the caller is stays unknown
// either way.
func (k keyring) caller(authorization []string) (*caller, error) {
	if len(k) == 0 {
		return nobody, nil
	}
	missing := &requestError{
		code: codes.Unauthenticated, reason: keyMissing,
		message: "the call carries no key; send the header \"authorization: Bearer KEY\"",
	}
	if len(authorization) == 0 {
		return nil, missing
	}
	if len(authorization) > 1 {
		return nil, &requestError{
			code: codes.Unauthenticated, reason: keyInvalid,
			message: "the call carries several authorization headers; send one",
		}
	}
	scheme, key, _ := strings.Cut(authorization[0], " ")
	if key = strings.TrimSpace(key); !strings.EqualFold(scheme, "Bearer") || key == "" {
		return nil, missing
	}
	c := k.find(key)
	if c == nil {
		return nil, &requestError{code: codes.Unauthenticated, reason: keyInvalid, message: "the key is not one of this server's"}
	}
	return c, nil
}

// openServices lists the services that anybody may call: they say whether the server
// lives and what its protocol is, and nothing of what is stored.
var openServices = []string{
	"/grpc.health.v1.Health/",
	"/grpc.reflection.v1.ServerReflection/",
	"/grpc.reflection.v1alpha.ServerReflection/",
}

// A gate lets calls in. Its ring is swapped when the key file changes; a call
// that is in stays in.
type gate struct {
	ring    atomic.Pointer[keyring]
	metrics *metrics
}

// admit returns who calls, or why the call is not let in.
func (g *gate) admit(authorization []string) (*caller, error) {
	c, err := g.ring.Load().caller(authorization)
	if err != nil {
		g.metrics.unauthenticated(err)
	}
	return c, err
}

// authenticate lets a call through if it carries a key, as
// "authorization: Bearer KEY", and puts the caller into its context. It runs when
// a call's headers are in and before its message is read, so that strangers
// cannot make the server hold what they send.
func (g *gate) authenticate(ctx context.Context, info *tap.Info) (context.Context, error) {
	for _, service := range openServices {
		if strings.HasPrefix(info.FullMethodName, service) {
			return ctx, nil
		}
	}
	c, err := g.admit(info.Header.Get("authorization"))
	if err != nil {
		st, _ := toStatus(err)
		return ctx, st.Err()
	}
	return context.WithValue(ctx, callerKey{}, c), nil
}
