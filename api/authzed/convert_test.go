package authzed

import (
	"encoding/base64"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// What may be the token of another server is told from what is garbled.
func TestLooksLikeToken(t *testing.T) {
	inner := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "1.0")
	message := protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), inner)
	for token, want := range map[string]bool{
		base64.StdEncoding.EncodeToString(message):                  true,
		base64.RawURLEncoding.EncodeToString(message):               true,
		base64.StdEncoding.EncodeToString(append(message, 0x80)):    false,
		base64.StdEncoding.EncodeToString(message[:len(message)-1]): false,
		base64.StdEncoding.EncodeToString(message) + "\n":           false,
		base64.StdEncoding.EncodeToString([]byte{0x08, 0x01}):       false,
		"garbage": false, "invalid": false, "blah": false, "not-a-token": false, "bad token": false, "!!": false, "": false,
	} {
		if got := looksLikeToken(token); got != want {
			t.Errorf("%q: %v, want %v", token, got, want)
		}
	}
}
