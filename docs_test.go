package pemba_test

import (
	"bytes"
	"context"
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
)

// walkedDocs are the pages whose commands a reader types one after the other.
// The test types them too: fenced blocks of the language sh are run in bash, in
// order, in an empty folder. Output that a block of text right behind them shows
// must be what they print, but that "…" stands for anything. A block "sh server"
// starts what runs in a shell of its own until the end of the page.
var walkedDocs = []string{"docs/tutorial.md", "docs/http.md"}

// TestDocs holds that the pages work as they are written.
func TestDocs(t *testing.T) {
	for _, tool := range []string{"bash", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not on this machine, and the pages use it", tool)
		}
	}
	for _, page := range walkedDocs {
		t.Run(page, func(t *testing.T) { walk(t, page) })
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
// in the folder of the page, and Go works in that of the module.
const prelude = `set -euo pipefail
go() {
  local verb=$1
  shift
  if [ "$verb" = build ]; then command go build -C "$MODULE" -o "$PWD/pemba" "$@"
  else command go "$verb" -C "$MODULE" "$@"; fi
}
`

func walk(t *testing.T, name string) {
	source, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	module, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	grpcAddr, httpAddr := freeAddr(t), freeAddr(t)
	page := strings.NewReplacer("127.0.0.1:50051", grpcAddr, "127.0.0.1:8080", httpAddr).Replace(string(source))
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
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
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
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		select {
		case <-done:
			t.Fatalf("%s: the server ended: %v\n%s", at, ended, out.String())
		default:
		}
		response, err := http.Get("http://" + httpAddr + "/readyz")
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
