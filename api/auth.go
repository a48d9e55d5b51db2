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
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/tap"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
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
	// own is the store that an empty name means, of a caller who has one of its own;
	// empty where that is DefaultStoreName. It is one of stores.
	own string
	// digest is that of the key; zero without one.
	digest keyDigest
	// line is where the key stands in the key file; zero for one that is not of
	// it.
	line int
	// generation counts the rings up to the one that this is of.
	generation uint64
}

// maySee reports whether the caller may know of a store.
func (c caller) maySee(store string) bool { return c.operator || c.stores[store] }

// storeName returns the name of the store that the caller means by a name.
func (c caller) storeName(name string) string {
	switch {
	case name != "":
		return name
	case c.own != "":
		return c.own
	}
	return DefaultStoreName
}

// keyless reports whether the caller has shown no key.
func (c caller) keyless() bool { return c.digest == keyDigest{} }

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

// OperatorKey returns the first key of a Config.KeyFile that is an operator's, or "" if
// all are bound to stores. A server that joins a cluster presents it.
func OperatorKey(keyFile string) (string, error) {
	content, err := readFile(keyFile)
	if err != nil {
		return "", fmt.Errorf("api: key file: %w", err)
	}
	ring, err := parseKeyFile(content)
	if err != nil {
		return "", fmt.Errorf("api: key file %s: %w", keyFile, err)
	}
	i := slices.IndexFunc(ring, func(c caller) bool { return c.operator })
	if i < 0 {
		return "", nil
	}
	lines := strings.Split(string(content), "\n")
	return strings.Fields(lines[ring[i].line-1])[0], nil
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

// withDigest returns the caller of a key that was let in before, or nil. As with
// find, the last one counts.
func (k keyring) withDigest(digest keyDigest) *caller {
	for i := len(k) - 1; i >= 0; i-- {
		if k[i].digest == digest {
			return &k[i]
		}
	}
	return nil
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
	key, err := presentedKey(authorization)
	if err != nil {
		return nil, err
	}
	if key == "" {
		return nil, missingKey()
	}
	c := k.find(key)
	if c == nil {
		return nil, &requestError{code: codes.Unauthenticated, reason: keyInvalid, message: "the key is not one of this server's"}
	}
	return c, nil
}

// presentedKey returns the key in the authorization headers of a call, or "" where
// there is none.
func presentedKey(authorization []string) (string, error) {
	switch {
	case len(authorization) == 0:
		return "", nil
	case len(authorization) > 1:
		return "", &requestError{
			code: codes.Unauthenticated, reason: keyInvalid,
			message: "the call carries several authorization headers; send one",
		}
	}
	scheme, key, _ := strings.Cut(authorization[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", missingKey()
	}
	return strings.TrimSpace(key), nil
}

func missingKey() error {
	return &requestError{
		code: codes.Unauthenticated, reason: keyMissing,
		message: "the call carries no key; send the header \"authorization: Bearer KEY\"",
	}
}

// openServices lists the services that anybody may call: they say whether the server
// lives and what its protocol is, and nothing of what is stored.
var openServices = []string{
	"/grpc.health.v1.Health/",
	"/grpc.reflection.v1.ServerReflection/",
	"/grpc.reflection.v1alpha.ServerReflection/",
}

// A gate lets calls in. Its ring is swapped when the key file changes, and calls
// that are in stay in for as long as the keys would let them in again. Many
// goroutines may use it at once.
type gate struct {
	// testing lets every key in, as Config.Testing says; the ring is then empty and
	// stays so.
	testing bool
	ring    atomic.Pointer[keyring]
	metrics *metrics
	// dialect finds whose words a method's callers are refused in; nil for those of
	// pemba.v1 always.
	dialect func(fullMethod string) Dialect

	// mu is held while the ring is swapped, so that a stream is either in open by
	// then or entered by the new ring.
	mu sync.Mutex
	// open are the streams that are in with a key.
	open map[*openStream]struct{}
	// generation is that of the ring: a caller of the same needs no second look.
	generation uint64
}

// use puts other keys in force, and ends the streams that they would not let in.
// The ring must not be changed afterwards.
func (g *gate) use(ring keyring) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.generation++
	for i := range ring {
		ring[i].generation = g.generation
	}
	g.ring.Store(&ring)
	for o := range g.open {
		g.judge(o)
	}
}

// refusal returns why a call that is in may not go on by the keys that are in
// force now, or nil. It is what the same call would be told if it were made anew:
// about a store unless named is unset. It needs g.mu.
func (g *gate) refusal(c *caller, store string, named bool) error {
	if c.generation == g.generation {
		return nil
	}
	now := g.ring.Load().withDigest(c.digest)
	switch {
	case now == nil:
		return &requestError{
			code: codes.Unauthenticated, reason: keyInvalid,
			message: "the key is one of this server's no more: it was removed while the call was under way",
		}
	case named && !now.maySee(store):
		return unknownStore(store)
	}
	return nil
}

// storeOf returns the name of the store that a request is about; named is false
// for one that is about none, or not yet.
func storeOf(request any) (store string, named bool) {
	switch r := request.(type) {
	case interface{ GetStore() string }:
		store = r.GetStore()
	case *pembav1.ImportTuplesRequest:
		if r.GetHeader() == nil {
			return "", false
		}
		store = r.GetHeader().GetStore()
	default:
		return "", false
	}
	if store == "" {
		store = DefaultStoreName
	}
	return store, true
}

// An openStream is a call that may last. It ends when the keys change such that
// it would not be let in. A call with one answer is let end: its deadline is near,
// and what became of a write is worth knowing.
type openStream struct {
	caller *caller
	// store is that of its first message, and named says that there is one. The
	// gate's lock guards both.
	store string
	named bool
	// ctx ends with the call, or before, with the refusal as its cause.
	ctx context.Context
	end context.CancelCauseFunc
}

// enter lets a stream in whose context has been through authenticate. It is nil
// where there are no keys that may change, and for calls that need none. It must
// leave.
func (g *gate) enter(ctx context.Context) *openStream {
	c, ok := ctx.Value(callerKey{}).(*caller)
	if !ok || c == nobody || g.testing {
		return nil
	}
	o := &openStream{caller: c}
	o.ctx, o.end = context.WithCancelCause(ctx)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open == nil {
		g.open = make(map[*openStream]struct{})
	}
	g.open[o] = struct{}{}
	g.judge(o)
	return o
}

// about says what the stream is about, once its first message is in, and returns
// why it may not go on, or nil.
func (g *gate) about(o *openStream, request any) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	// Where only the handler knows the store, it may have said so before.
	if store, named := storeOf(request); named {
		o.store, o.named = store, true
	}
	g.judge(o)
	return o.refused()
}

// openKey is the key of the openStream of a call in the context of its handler.
type openKey struct{}

// aboutStore says of a call which store it is about, where only its handler knows,
// and returns why it may not go on, or nil.
func (g *gate) aboutStore(ctx context.Context, store string) error {
	o, ok := ctx.Value(openKey{}).(*openStream)
	if !ok {
		return nil // It has one answer, or there are no keys.
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	o.store, o.named = store, true
	g.judge(o)
	return o.refused()
}

// leave lets a stream go that has ended.
func (g *gate) leave(o *openStream) {
	g.mu.Lock()
	delete(g.open, o)
	g.mu.Unlock()
	o.end(nil)
}

// judge ends the stream if the keys are such. It needs g.mu.
func (g *gate) judge(o *openStream) {
	if err := g.refusal(o.caller, o.store, o.named); err != nil {
		o.end(err)
	}
}

// refused returns why the stream may not go on, or nil.
func (o *openStream) refused() error {
	var refusal *requestError
	if cause := context.Cause(o.ctx); errors.As(cause, &refusal) {
		return refusal
	}
	return nil
}

// because returns the error of a call that failed, or in its place the refusal
// that cut it off.
func because(err, refused error) error {
	if refused != nil && errors.Is(err, context.Canceled) && !errors.Is(err, cluster.ErrOutcomeUnknown) {
		return refused
	}
	return err
}

// admit returns who calls, or why the call is not let in.
func (g *gate) admit(authorization []string) (*caller, error) {
	var c *caller
	var err error
	if g.testing {
		c, err = testingCaller(authorization)
	} else {
		c, err = g.ring.Load().caller(authorization)
	}
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
		if g.dialect != nil {
			if d := g.dialect(info.FullMethodName); d != nil {
				st = d.Status(err, st)
			}
		}
		return ctx, st.Err()
	}
	ctx = context.WithValue(ctx, callerKey{}, c)
	if g.dialect != nil && g.dialect(info.FullMethodName) != nil {
		ctx = context.WithValue(ctx, headerKey{}, info.Header)
	}
	return ctx, nil
}
