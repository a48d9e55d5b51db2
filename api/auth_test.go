package api

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/tap"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

func plainCredentials() credentials.TransportCredentials { return insecure.NewCredentials() }

func TestKeyFile(t *testing.T) {
	many := strings.Builder{}
	for i := range keysMax + 1 {
		fmt.Fprintf(&many, "k%d\n", i)
	}
	for _, test := range []struct {
		name, content, want string // want is what describe says, or a part of the error
	}{
		{"an operator", "secret\n", "secret: operator"},
		{"no newline", "secret", "secret: operator"},
		{"bound", "a store one\nb store one,two\n", "a: one; b: one,two"},
		{"comments", "# keys\n\n  a # old\nb store one # new\n", "a: operator; b: one"},
		{"blanks", "\ta \t store\tone\r\n", "a: one"},
		{"a # inside", "a#b\n", "a#b: operator"},
		{"nothing", "", "no key"},
		{"comments alone", "# a\n", "no key"},
		{"twice", "a\nb\na store one\n", "line 3: the key stands in line 1"},
		{"no store", "a store\n", "line 1: behind the key"},
		{"another word", "a stores one\n", "line 1: behind the key"},
		{"too many words", "a store one two\n", "line 1: behind the key"},
		{"an empty name", "a store one,,two\n", "line 1: the name"},
		{"a long name", "a store " + strings.Repeat("x", 65), "line 1: the name"},
		{"beyond ASCII", "b\nschlüssel\n", "line 2: the key"},
		{"too many", many.String(), "more than 1000 keys"},
		{"too large", strings.Repeat("#\n", fileBytesMax), "bytes"},
	} {
		ring, err := parseKeyFile([]byte(test.content))
		got := fmt.Sprint(err)
		if err == nil {
			got = describe(ring)
		}
		if err == nil && got != test.want || err != nil && !strings.Contains(got, test.want) {
			t.Errorf("%s: %s, expected %s", test.name, got, test.want)
		}
		if err != nil && strings.Contains(err.Error(), "schl") {
			t.Errorf("%s: the error tells a key: %v", test.name, err)
		}
	}
}

// describe names the callers of a ring whose keys are among a few.
func describe(ring keyring) string {
	var texts []string
	for _, c := range ring {
		for _, key := range []string{"secret", "a", "b", "a#b"} {
			if c.digest == sha256.Sum256([]byte(key)) {
				what := "operator"
				if !c.operator {
					var names []string
					for _, name := range []string{"one", "two"} {
						if c.maySee(name) {
							names = append(names, name)
						}
					}
					what = strings.Join(names, ",")
				}
				texts = append(texts, key+": "+what)
			}
		}
	}
	return strings.Join(texts, "; ")
}

// FuzzKeyFile: whatever a file holds, it gives keys that can be presented or an
// error that tells nothing of them.
func FuzzKeyFile(f *testing.F) {
	for _, seed := range []string{"a\n", "a store one,two # x\n", "\x00", "a store ,", "#", "k\r\nk2 store default"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		ring, err := parseKeyFile(content)
		if err != nil {
			if len(ring) > 0 {
				t.Fatal("keys beside an error")
			}
			return
		}
		if len(ring) == 0 || len(ring) > keysMax {
			t.Fatalf("%d keys", len(ring))
		}
		for _, c := range ring {
			if c.operator == (c.stores != nil) || c.maySee("") && !c.operator {
				t.Fatalf("a caller that is neither: %+v", c)
			}
		}
	})
}

// TestCallers: the context says who calls; without a key configured it is the
// operator of the machine.
func TestCallers(t *testing.T) {
	ring := keyring{
		{operator: true, digest: sha256.Sum256([]byte("op"))},
		{stores: map[string]bool{"one": true}, digest: sha256.Sum256([]byte("bound"))},
	}
	for _, test := range []struct {
		name                   string
		ring                   keyring
		key                    string
		operator, seesOne, see bool
	}{
		{"an operator", ring, "op", true, true, true},
		{"bound", ring, "bound", false, true, false},
		{"no keys", nil, "", true, true, true},
	} {
		g := &gate{}
		g.ring.Store(&test.ring)
		header := metadata.MD{}
		if test.key != "" {
			header.Set("authorization", "Bearer "+test.key)
		}
		ctx, err := g.authenticate(context.Background(), &tap.Info{FullMethodName: pembav1.PermissionService_Check_FullMethodName, Header: header})
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		c := callerOf(ctx)
		if c.operator != test.operator || c.maySee("one") != test.seesOne || c.maySee("default") != test.see {
			t.Errorf("%s: %+v", test.name, c)
		}
	}
	if c := callerOf(context.Background()); c.operator || c.maySee("default") {
		t.Error("a context that was not let in sees something")
	}
}

// TestKeyRotation: keys change without a failed call, over gRPC and HTTP; a
// broken file changes nothing.
func TestKeyRotation(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	writeFile(t, file, []byte("old\n"))
	var log lockedBuffer
	s := testServer(t, Config{KeyFile: file, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	c := dial(t, s)
	letIn := func(key string) bool {
		ctx := metadata.AppendToOutgoingContext(testContext(t), "authorization", "Bearer "+key)
		_, err := c.ReadSchema(ctx, &pembav1.ReadSchemaRequest{})
		return strings.Contains(printError(t, err), "NO_SCHEMA")
	}
	var key atomic.Value
	key.Store("old")
	l := startLoad(t, false, func() string { return key.Load().(string) }, func() *grpc.ClientConn {
		conn, err := grpc.NewClient("passthrough:///"+s.GRPCAddr().String(), grpc.WithTransportCredentials(plainCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}, func() *http.Client { return &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4}} }, httpURL(s, "/pemba/v1/count-tuples"))
	defer l.stop()
	writeFile(t, file, []byte("old\nnew store default\n"))
	eventually(t, "the new key counts", func() bool { return letIn("new") })
	key.Store("new")
	// Calls that have taken the old key may still be on their way.
	before, beforeHTTP := l.grpc.Load(), l.http.Load()
	eventually(t, "calls carry the new key", func() bool { return l.grpc.Load() > before+10 && l.http.Load() > beforeHTTP+10 })
	// A file that is empty for a moment does not open the server, and neither does
	// one that is gone.
	writeFile(t, file, nil)
	eventually(t, "the empty file is noticed", func() bool { return strings.Contains(log.String(), "stays in force") })
	if letIn("other") || !letIn("new") {
		t.Error("an empty file changed the keys")
	}
	writeFile(t, file, []byte("new store default\n"))
	eventually(t, "the old key counts no more", func() bool { return !letIn("old") })
	l.stop()
	_, err := c.ReadSchema(metadata.AppendToOutgoingContext(testContext(t), "authorization", "Bearer old"), &pembav1.ReadSchemaRequest{})
	expectStatus(t, "the old key", err, codes.Unauthenticated, "KEY_INVALID")
	// A store that is misspelt is told with the line, and no key.
	if text := log.String(); strings.Contains(text, "do not exist") {
		t.Errorf("a store that exists is missed: %s", text)
	}
	writeFile(t, file, []byte("# keys\nnew store default\nsecret store default,defautl,later\n"))
	eventually(t, "the new line is in force", func() bool { return letIn("secret") })
	want := fmt.Sprintf("file=%s line=3 count=2 stores=defautl,later\n", file)
	if text := log.String(); strings.Count(text, "level=WARN") != 1 || !strings.Contains(text, want) || strings.Contains(text, "secret") {
		t.Errorf("the log lacks %s: %s", want, text)
	}
	if strings.Contains(log.String(), "default\n") {
		t.Errorf("the log tells of keys: %s", log.String())
	}
}
