package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/graph"
)

func TestZookieRoundTrip(t *testing.T) {
	z := zookie{cluster: [16]byte{1, 15: 2}, revision: 1<<63 + 5, instant: graph.MaxInstant}
	token := z.token()
	if len(token) < 24 {
		t.Errorf("the token has %d characters", len(token))
	}
	got, err := parseZookie(&pembav1.Zookie{Token: token}, z.cluster)
	if err != nil || got != z {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := parseZookie(&pembav1.Zookie{Token: token}, [16]byte{9}); reasonOf(err) != "ZOOKIE_FOREIGN" {
		t.Errorf("a foreign zookie: %v", err)
	}
	// No single change of a character goes unnoticed.
	for i := range token {
		changed := []byte(token)
		changed[i] ^= 1
		if _, err := parseZookie(&pembav1.Zookie{Token: string(changed)}, z.cluster); reasonOf(err) != "ZOOKIE_INVALID" {
			t.Errorf("character %d changed: %v", i, err)
		}
	}
	for _, token := range []string{"", "x", token + "A", token[:len(token)-1], token + "\n", token + "="} {
		if _, err := parseZookie(&pembav1.Zookie{Token: token}, z.cluster); reasonOf(err) != "ZOOKIE_INVALID" {
			t.Errorf("%q: %v", token, err)
		}
	}
	if _, err := parseZookie(nil, z.cluster); reasonOf(err) != "ZOOKIE_INVALID" {
		t.Errorf("no zookie: %v", err)
	}
}

// A fixedCluster is a node that says nothing but the id of its cluster.
type fixedCluster struct {
	Node
	id [16]byte
}

func (c fixedCluster) ClusterID() [16]byte { return c.id }

// TestZookieOfDialect: a token that a dialect gave out says natively what it says
// there, also to a watch that goes on in the middle of a revision.
func TestZookieOfDialect(t *testing.T) {
	server := &Server{node: fixedCluster{id: [16]byte{0xfb, 0xff, 0xfe}}}
	host := &Host{server}
	want := zookie{cluster: server.clusterID(), revision: 1<<63 + 0xfbf, instant: 1<<40 + 0x3fffffff}
	for _, token := range []string{
		host.Zookie(want.revision, want.instant), host.ChangesZookie(want.revision, want.instant, 7), want.token(),
	} {
		if got, err := parseZookie(&pembav1.Zookie{Token: token}, server.clusterID()); err != nil || got != want {
			t.Errorf("%s: %v, %v", token, got, err)
		}
		if _, err := parseZookie(&pembav1.Zookie{Token: token}, [16]byte{9}); reasonOf(err) != "ZOOKIE_FOREIGN" {
			t.Errorf("%s of another cluster: %v", token, err)
		}
		native, err := server.behind("after", &pembav1.Zookie{Token: token})
		if dialect, ours := host.ParseChangesZookie(token); err != nil || !ours || native != dialect {
			t.Errorf("a watch behind %s begins at %v, %v, and in the dialect at %v", token, native, err, dialect)
		}
	}
	if token := host.Zookie(want.revision, want.instant); !strings.ContainsAny(token, "+/") || !strings.HasSuffix(token, "=") {
		t.Fatalf("%s is the same in both alphabets", token)
	}
	body := want.appendState(nil, changesVersion)
	for _, token := range []string{seal(body), seal(append(body, 0, 0, 0, 0)), seal(append(body, 0, 0, 0, 1, 1)), standardToken(want.token()) + "="} {
		if _, err := parseZookie(&pembav1.Zookie{Token: token}, server.clusterID()); reasonOf(err) != "ZOOKIE_INVALID" {
			t.Errorf("%s: %v", token, err)
		}
	}
}

func TestCursorRoundTrip(t *testing.T) {
	arguments := hashArguments(readTuples, "a", "b").sum()
	c := cursor{
		zookie: zookie{cluster: [16]byte{1}, revision: 7, instant: 8}, kind: readTuples, arguments: arguments,
		position: tuplePosition{after: []byte("somewhere"), skip: 3}.append(),
	}
	got, err := parseCursor(c.token(), c.cluster, readTuples, arguments)
	if err != nil {
		t.Fatal(err)
	}
	if got.zookie != c.zookie || !bytes.Equal(got.position, c.position) {
		t.Errorf("got %v", got)
	}
	if p, ok := parseTuplePosition(got.position); !ok || p.skip != 3 || string(p.after) != "somewhere" {
		t.Errorf("position %v, %v", p, ok)
	}
	if _, err := parseCursor(c.token(), [16]byte{2}, readTuples, arguments); reasonOf(err) != "ZOOKIE_FOREIGN" {
		t.Errorf("a foreign cursor: %v", err)
	}
	if _, err := parseCursor(c.token(), c.cluster, lookupSubjects, arguments); reasonOf(err) != "CURSOR_INVALID" {
		t.Errorf("another kind: %v", err)
	}
	if _, err := parseCursor(c.zookie.token(), c.cluster, readTuples, arguments); reasonOf(err) != "CURSOR_INVALID" {
		t.Errorf("a zookie: %v", err)
	}
	// Of some calls the store alone is an argument.
	for kind, want := range map[questionKind]string{
		readTuples: "only the limit and the consistency may change", exportTuples: "only the limit and the consistency may change",
		readChanges: "this cursor belongs to another store", listSchemaVersions: "this cursor belongs to another store",
	} {
		c := cursor{zookie: c.zookie, kind: kind, arguments: hashArguments(kind, "1").sum()}
		if _, err := parseCursor(c.token(), c.cluster, kind, hashArguments(kind, "2").sum()); reasonOf(err) != "CURSOR_INVALID" || !strings.Contains(err.Error(), want) {
			t.Errorf("other arguments of kind %d: %v, want %s", kind, err, want)
		}
	}
}

// TestArgumentHash keeps neighbouring arguments apart, and the hash itself the
// same for ever: cursors outlive the program that made them.
func TestArgumentHash(t *testing.T) {
	if hashArguments(readTuples, "ab", "").sum() == hashArguments(readTuples, "a", "b").sum() {
		t.Error("arguments run together")
	}
	const want = "\xa8\xcb\x9c\xbc"
	if got := hashArguments(readTuples, "default", "doc").sum(); string(got[:4]) != want {
		t.Errorf("the hash is now %x: cursors of earlier versions would be refused", got[:4])
	}
}

func reasonOf(err error) string {
	if e, ok := err.(*requestError); ok { //nolint:errorlint // The parsers return it as it is.
		return e.reason
	}
	return ""
}

// FuzzParseZookie: no text crashes the parser, and what it takes is one of ours.
func FuzzParseZookie(f *testing.F) {
	f.Add(zookie{cluster: [16]byte{1}, revision: 7, instant: 8}.token())
	f.Add((&cursor{zookie: zookie{revision: 7, instant: 8}, kind: readTuples}).token())
	f.Add("")
	f.Add(seal([]byte("short")))
	f.Add(standardToken(zookie{cluster: [16]byte{1}, revision: 0xfbefbe, instant: 8}.token()))
	f.Fuzz(func(t *testing.T, token string) {
		// A right checksum leads behind it.
		_, _ = parseZookie(&pembav1.Zookie{Token: seal([]byte(token))}, [16]byte{1})
		z, err := parseZookie(&pembav1.Zookie{Token: token}, [16]byte{1})
		if err == nil && z.token() != nativeToken(token) && len(open(nativeToken(token), changesVersion)) == 0 {
			t.Errorf("%q is taken and means %q", token, z.token())
		}
	})
}

// FuzzParseCursor: the same for cursors, and for the positions in them.
func FuzzParseCursor(f *testing.F) {
	arguments := hashArguments(readTuples).sum()
	seed := cursor{zookie: zookie{cluster: [16]byte{1}, revision: 7, instant: 8}, kind: readTuples, arguments: arguments}
	f.Add(seed.token(), []byte{3, 'x'})
	f.Add("", []byte{})
	f.Fuzz(func(t *testing.T, token string, position []byte) {
		_, _ = parseCursor(seal(position), [16]byte{1}, readTuples, arguments)
		c, err := parseCursor(token, [16]byte{1}, readTuples, arguments)
		if err == nil && c.token() != token {
			t.Errorf("%q is taken and means %q", token, c.token())
		}
		if p, ok := parseTuplePosition(position); ok && (p.skip < 0 || p.skip > pageTuples) {
			t.Errorf("position %v", p)
		}
	})
}

// A streaming read says at which state it found nothing.
func TestZookieOfNoResults(t *testing.T) {
	server := testServer(t, Config{})
	c := dial(t, server)
	written, err := c.WriteSchema(t.Context(), &pembav1.WriteSchemaRequest{
		Schema: "definition person {} definition document { relation viewer: person permission view = viewer }",
	})
	if err != nil {
		t.Fatal(err)
	}
	object := &pembav1.Object{Type: "document", Id: "none"}
	subject := &pembav1.Subject{Object: &pembav1.Object{Type: "person", Id: "nobody"}}
	at := &pembav1.Consistency{Requirement: &pembav1.Consistency_ExactlyAt{ExactlyAt: written.GetWrittenAt()}}
	want, err := parseZookie(written.GetWrittenAt(), server.clusterID())
	if err != nil {
		t.Fatal(err)
	}
	for what, open := range map[string]func() (grpc.ClientStream, error){
		"ReadTuples": func() (grpc.ClientStream, error) {
			return c.ReadTuples(t.Context(), &pembav1.ReadTuplesRequest{Consistency: at})
		},
		"ExportTuples": func() (grpc.ClientStream, error) {
			return c.ExportTuples(t.Context(), &pembav1.ExportTuplesRequest{Consistency: at})
		},
		"LookupResources": func() (grpc.ClientStream, error) {
			return c.LookupResources(t.Context(), &pembav1.LookupResourcesRequest{
				Consistency: at, Type: "document", Permission: "view", Subject: subject,
			})
		},
		"LookupSubjects": func() (grpc.ClientStream, error) {
			return c.LookupSubjects(t.Context(), &pembav1.LookupSubjectsRequest{
				Consistency: at, Object: object, Permission: "view", SubjectType: "person",
			})
		},
	} {
		stream, err := open()
		if err != nil {
			t.Fatal(err)
		}
		header, err := stream.Header()
		if err != nil {
			t.Fatal(err)
		}
		tokens := header.Get(ZookieHeader)
		if len(tokens) != 1 {
			t.Errorf("%s: the header %s has %d values, want 1", what, ZookieHeader, len(tokens))
			continue
		}
		z, err := parseZookie(&pembav1.Zookie{Token: tokens[0]}, server.clusterID())
		if err != nil || z.revision != want.revision || z.instant == 0 {
			t.Errorf("%s: the header holds revision %d at %d (%v), want revision %d", what, z.revision, z.instant, err, want.revision)
		}
		if err := stream.RecvMsg(&pembav1.ReadTuplesResponse{}); !errors.Is(err, io.EOF) {
			t.Errorf("%s: %v, want no result", what, err)
		}
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost,
		fmt.Sprintf("http://%s/pemba/v1/read-tuples", server.HTTPAddr()), strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	if err := response.Body.Close(); err != nil {
		t.Fatal(err)
	}
	if response.Header.Get(ZookieHeader) == "" {
		t.Errorf("over HTTP the header %s is missing: %v", ZookieHeader, response.Header)
	}
}
