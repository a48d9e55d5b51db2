package api

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/tap"
)

// A keyring holds the digests of the keys that callers may present. With none
// in it every caller may do everything, and the server stays on loopback.
type keyring [][sha256.Size]byte

func newKeyring(keys []string) keyring {
	ring := make(keyring, len(keys))
	for i, key := range keys {
		ring[i] = sha256.Sum256([]byte(key))
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

// holds reports whether key is one of the ring's. It takes the same time
// whichever key is given: all digests are compared, each in constant time.
func (k keyring) holds(key string) bool {
	digest := sha256.Sum256([]byte(key))
	found := 0
	for i := range k {
		found |= subtle.ConstantTimeCompare(digest[:], k[i][:])
	}
	return found == 1
}

// openServices lists the services that anybody may call: they say whether the server
// lives and what its protocol is, and nothing of what is stored.
var openServices = []string{
	"/grpc.health.v1.Health/",
	"/grpc.reflection.v1.ServerReflection/",
	"/grpc.reflection.v1alpha.ServerReflection/",
}

// authenticate lets a call through if it carries a key, as
// "authorization: Bearer KEY". Both a missing and a wrong key are
// Unauthenticated: who the caller is stays unknown either way. It runs when a
// call's headers are in and before its message is read, so that strangers
// cannot make the server hold what they send.
func (k keyring) authenticate(ctx context.Context, info *tap.Info) (context.Context, error) {
	if len(k) == 0 {
		return ctx, nil
	}
	for _, service := range openServices {
		if strings.HasPrefix(info.FullMethodName, service) {
			return ctx, nil
		}
	}
	if err := k.check(info.Header); err != nil {
		st, _ := toStatus(err)
		return ctx, st.Err()
	}
	return ctx, nil
}

func (k keyring) check(header metadata.MD) error {
	missing := &requestError{
		code: codes.Unauthenticated, reason: "KEY_MISSING",
		message: "the call carries no key; send the header \"authorization: Bearer KEY\"",
	}
	values := header.Get("authorization")
	if len(values) == 0 {
		return missing
	}
	if len(values) > 1 {
		return &requestError{
			code: codes.Unauthenticated, reason: "KEY_INVALID",
			message: "the call carries several authorization headers; send one",
		}
	}
	scheme, key, _ := strings.Cut(values[0], " ")
	if key = strings.TrimSpace(key); !strings.EqualFold(scheme, "Bearer") || key == "" {
		return missing
	}
	if !k.holds(key) {
		return &requestError{code: codes.Unauthenticated, reason: "KEY_INVALID", message: "the key is not one of this server's"}
	}
	return nil
}
