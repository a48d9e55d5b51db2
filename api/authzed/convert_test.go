package authzed

import (
	"encoding/base64"
	"strings"
	"testing"

	v1 "github.com/authzed/authzed-go/proto/authzed/api/v1"
	"google.golang.org/protobuf/encoding/protowire"
)

// What may be the token of another server is told from what is garbled.
func TestLooksLikeToken(t *testing.T) {
	inner := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "1.0")
	message := protowire.AppendBytes(protowire.AppendTag(nil, 3, protowire.BytesType), inner)
	for token, want := range map[string]bool{
		base64.StdEncoding.EncodeToString(message):                  true,
		base64.RawURLEncoding.EncodeToString(message):               true,
		base64.StdEncoding.EncodeToString(append(message, 0x80)):    false,
		base64.StdEncoding.EncodeToString(message[:len(message)-1]): false,
		base64.StdEncoding.EncodeToString(message) + "\n":           false,
		base64.StdEncoding.EncodeToString([]byte{0x08, 0x01}):       false,
		// Of both forms that tokens of that server had.
		"GhUKEzE2OTM1NDA5NDAzNzMwNDU3Mjc=": true, "CAESAwiLAg==": true,
		"garbage": false, "invalid": false, "blah": false, "not-a-token": false, "bad token": false, "!!": false, "": false,
	} {
		if got := looksLikeToken(token); got != want {
			t.Errorf("%q: %v, want %v", token, got, want)
		}
	}
}

// What is found plain is what the rules of the protocol let pass, in each place and
// up to the last byte of each length; ordinary names are plain.
func TestPlainQuestions(t *testing.T) {
	type place func(r *v1.CheckPermissionRequest, text string)
	places := map[string]place{
		"type":             func(r *v1.CheckPermissionRequest, text string) { r.Resource.ObjectType = text },
		"id":               func(r *v1.CheckPermissionRequest, text string) { r.Resource.ObjectId = text },
		"permission":       func(r *v1.CheckPermissionRequest, text string) { r.Permission = text },
		"subject type":     func(r *v1.CheckPermissionRequest, text string) { r.Subject.Object.ObjectType = text },
		"subject id":       func(r *v1.CheckPermissionRequest, text string) { r.Subject.Object.ObjectId = text },
		"subject relation": func(r *v1.CheckPermissionRequest, text string) { r.Subject.OptionalRelation = text },
	}
	texts := []string{"", "*", "**", "a/b", "tenant/team", "user\n", "userä", "a-b", "Anne|B=+"}
	for _, n := range []int{1, 2, 3, 4, 63, 64, 65, 127, 128, 129, 1023, 1024, 1025} {
		texts = append(texts, strings.Repeat("a", n))
	}
	for c := range 256 {
		b := string([]byte{byte(c)})
		texts = append(texts, b+"bc", "a"+b+"c", "ab"+b)
	}
	question := func() *v1.CheckPermissionRequest {
		return &v1.CheckPermissionRequest{
			Resource: &v1.ObjectReference{ObjectType: "document", ObjectId: "Readme-1/a|b=c+d_"}, Permission: "view_2",
			Subject: &v1.SubjectReference{Object: &v1.ObjectReference{ObjectType: "user", ObjectId: "1"}, OptionalRelation: "member"},
		}
	}
	if !isPlainQuestion(question()) {
		t.Fatal("an ordinary question is not plain")
	}
	plain := 0
	for name, put := range places {
		for _, text := range texts {
			r := question()
			put(r, text)
			if !isPlainQuestion(r) {
				continue
			}
			plain++
			if err := validate(r); err != nil {
				t.Errorf("%s %q is plain, and refused: %v", name, text, err)
			}
		}
	}
	if plain < 800 {
		t.Errorf("only %d questions are plain", plain)
	}
	for name, r := range map[string]*v1.CheckPermissionRequest{
		"nothing": {}, "no resource": {Permission: "view", Subject: question().GetSubject()},
		"no object": {Resource: question().GetResource(), Permission: "view", Subject: &v1.SubjectReference{}},
	} {
		if isPlainQuestion(r) {
			t.Errorf("%s is plain", name)
		}
	}
}
