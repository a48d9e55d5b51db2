package pemba_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

// walkedDocs are the pages whose commands a reader types one after the other.
// The test types them too: fenced blocks of the language sh are run in bash, in
// order, in an empty folder. Output that a block of text right behind them shows
// must be what they print, but that "…" stands for anything. A block "sh server"
// starts what runs in a shell of its own until the end of the page.
//
// The page's ports of this machine stand for free ones.
var walkedDocs = []string{"docs/tutorial.md", "docs/http.md", "docs/serving.md"}

// TestDocs holds that the pages work as they are written.
func TestDocs(t *testing.T) {
	for _, page := range walkedDocs {
		t.Run(page, func(t *testing.T) {
			t.Parallel() // They mostly wait.
			walk(t, page)
		})
	}
}

// A block is a fenced piece of a page.
type block struct {
	info string // what stands behind the opening fence
	text string
	line int // of the opening fence
}

var fence = regexp.MustCompile("(?ms)^```([^\n]*)\n(.*?)^```$")

func blocks(page string) []block {
	var all []block
	for _, m := range fence.FindAllStringSubmatchIndex(page, -1) {
		all = append(all, block{
			info: page[m[2]:m[3]], text: page[m[4]:m[5]],
			line: 1 + strings.Count(page[:m[0]], "\n"),
		})
	}
	return all
}

// prelude is what the shell of a page has beside the reader's: pemba is built
// in the folder of the page, and Go works in that of the module, also on a file
// that the page has written.
const prelude = `set -euo pipefail
go() {
  local verb=$1
  shift
  if [ "$verb" = build ]; then command go build -C "$MODULE" -o "$PWD/pemba" "$@"
  elif [ "$verb" != build ] && [ -f "$1" ]; then command go "$verb" -C "$MODULE" "$PWD/$1"
  else command go "$verb" -C "$MODULE" "$@"; fi
}
`

func walk(t *testing.T, name string) {
	source, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, tool := range []string{"bash", "curl", "openssl"} {
		used := tool == "bash" || strings.Contains(string(source), tool+" ")
		if _, err := exec.LookPath(tool); used && err != nil {
			t.Skipf("%s is not on this machine, and %s uses it", tool, name)
		}
	}
	module, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	grpcAddr, httpAddr := freeAddr(t), freeAddr(t)
	page := strings.NewReplacer(
		"127.0.0.1:50051", grpcAddr, "127.0.0.1:8080", httpAddr,
		"127.0.0.1:50061", freeAddr(t), "127.0.0.1:8081", freeAddr(t),
	).Replace(string(source))
	folder := t.TempDir()
	env := append(os.Environ(), "MODULE="+module, "PEMBA_ADDR="+grpcAddr,
		"PEMBA_GRPC_ADDR="+grpcAddr, "PEMBA_HTTP_ADDR="+httpAddr)
	all := blocks(page)
	ran := 0
	for i, b := range all {
		words := strings.Fields(b.info)
		if len(words) == 0 || words[0] != "sh" {
			continue
		}
		ran++
		at := fmt.Sprintf("%s:%d", name, b.line)
		if len(words) > 1 && words[1] == "server" {
			serve(t, at, folder, env, b.text, httpAddr)
			continue
		}
		ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
		cmd := exec.CommandContext(ctx, "bash", "-c", prelude+b.text)
		cmd.Dir, cmd.Env = folder, env
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		err := cmd.Run()
		cancel()
		if err != nil {
			t.Fatalf("%s: %v\n%s\nprinted:\n%s%s", at, err, b.text, out.String(), errs.String())
		}
		if i+1 < len(all) && all[i+1].info == "text" && !matches(all[i+1].text, out.String()) {
			t.Errorf("%s: the commands print\n%s\nbut the page shows\n%s", at, out.String(), all[i+1].text)
		}
	}
	if ran == 0 {
		t.Errorf("%s has no commands", name)
	}
}

// jsonBlanks are those that protobuf's JSON may or may not have, as it likes.
var jsonBlanks = regexp.MustCompile(`([,:])\s+`)

// matches compares an output with what a page shows, line by line, without
// blanks at the ends of lines and, in JSON, behind commas and colons.
func matches(shown, printed string) bool {
	want, got := strings.Split(strings.TrimSpace(shown), "\n"), strings.Split(strings.TrimSpace(printed), "\n")
	if len(want) != len(got) {
		return false
	}
	for i := range want {
		if strings.HasPrefix(want[i], "{") {
			want[i], got[i] = jsonBlanks.ReplaceAllString(want[i], "$1"), jsonBlanks.ReplaceAllString(got[i], "$1")
		}
		parts := strings.Split(strings.TrimRight(want[i], " "), "…")
		for j := range parts {
			parts[j] = regexp.QuoteMeta(parts[j])
		}
		pattern := "^" + strings.Join(parts, ".*") + "$"
		if !regexp.MustCompile(pattern).MatchString(strings.TrimRight(got[i], " ")) {
			return false
		}
	}
	return true
}

// serve starts a server's shell and waits until it is ready. It and what it
// started end with the test.
func serve(t *testing.T, at, folder string, env []string, text, httpAddr string) {
	cmd := exec.Command("bash", "-c", prelude+text)
	cmd.Dir, cmd.Env = folder, env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var ended error // set before done is closed
	go func() {
		defer close(done)
		ended = cmd.Wait()
	}()
	t.Cleanup(func() {
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Error(err)
		}
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Errorf("%s: the server did not end", at)
			if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil {
				t.Error(err)
			}
		}
	})
	probe, url := http.Client{}, "http://"+httpAddr+"/readyz"
	if strings.Contains(text, "--tls-cert") {
		// Whether the certificate is good is for the page's own commands to find out.
		transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
		defer transport.CloseIdleConnections()
		probe.Transport, url = transport, "https://"+httpAddr+"/readyz"
	}
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		select {
		case <-done:
			t.Fatalf("%s: the server ended: %v\n%s", at, ended, out.String())
		default:
		}
		response, err := probe.Get(url)
		if err != nil {
			continue
		}
		if err := response.Body.Close(); err != nil {
			t.Fatal(err)
		}
		if response.StatusCode == http.StatusOK {
			return
		}
	}
	t.Fatalf("%s: the server is not ready", at)
}

// freeAddr returns an address that nobody listens on.
func freeAddr(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	return l.Addr().String()
}

var (
	callRow   = regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\| ([^|]*) \\| ([^|]*) \\| ([^|]*) \\|$")
	callField = regexp.MustCompile("`([a-z_]+)`")
	nextWord  = regexp.MustCompile("(.)([A-Z])")
)

// TestCalls holds that docs/http.md lists every method of the protocol once and
// nothing else, that it calls streams streams, and that the fields it names are
// those of the messages.
func TestCalls(t *testing.T) {
	const name = "docs/http.md"
	source, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(source), "\n## The calls\n")
	if !found {
		t.Fatalf("%s has no section of the calls", name)
	}
	table, _, _ = strings.Cut(table, "\n## ")
	rows := map[string][]string{}
	for _, row := range callRow.FindAllStringSubmatch(table, -1) {
		if rows[row[1]] != nil {
			t.Errorf("%s lists %s twice", name, row[1])
		}
		rows[row[1]] = row
	}
	services := pembav1.File_pemba_v1_pemba_proto.Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			m := methods.Get(j)
			path := strings.ToLower(nextWord.ReplaceAllString(string(m.Name()), "$1-$2"))
			row := rows[path]
			delete(rows, path)
			if row == nil {
				t.Errorf("%s does not list %s, which is %s", name, path, m.FullName())
				continue
			}
			if strings.Contains(row[2], "**stream**") != m.IsStreamingServer() {
				t.Errorf("%s: whether %s answers a stream is %t", name, path, m.IsStreamingServer())
			}
			holdFields(t, name+": the request of "+path, row[3], m.Input())
			// A line of read-changes is described as the one of watch that it holds.
			holdFields(t, name+": the answer of "+path, strings.TrimSuffix(row[4], ", as a line of `watch`"), m.Output())
		}
	}
	for path := range rows {
		t.Errorf("%s lists %s, which the protocol does not have", name, path)
	}
}

// holdFields holds that what a cell has in backquotes are fields of a message,
// and that it names one if there is any.
func holdFields(t *testing.T, what, cell string, message protoreflect.MessageDescriptor) {
	named := callField.FindAllStringSubmatch(cell, -1)
	if len(named) == 0 && message.Fields().Len() > 0 {
		t.Errorf("%s names no field", what)
	}
	for _, field := range named {
		if message.Fields().ByName(protoreflect.Name(field[1])) == nil {
			t.Errorf("%s has no field %s", what, field[1])
		}
	}
}
