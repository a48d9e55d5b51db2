package pemba_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

// walkedDocs are the pages whose commands a reader types one after the other.
// The test types them too: fenced blocks of the language sh are run in order, those
// of a page in one bash as a reader has it, in an empty folder. Output that a block of text right behind them shows
// must be what they print, but that "…" stands for anything. A block "sh server"
// starts what runs in a shell of its own until the end of the page.
//
// The page's ports of this machine stand for free ones.
//
// The longest come first: as many run at once as there are processors, and one that
// begins last is waited for alone.
var walkedDocs = []string{"docs/serving.md", "docs/tutorial.md", "docs/operations.md", "docs/http.md"}

// TestDocs holds that the pages work as they are written.
func TestDocs(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "pemba") // Once, for all pages.
	if out, err := exec.Command("go", "build", "-o", binary, "./cmd/pemba").CombinedOutput(); err != nil {
		t.Fatalf("go build ./cmd/pemba: %v\n%s", err, out)
	}
	for _, page := range walkedDocs {
		t.Run(page, func(t *testing.T) {
			t.Parallel() // They mostly wait.
			walk(t, page, binary)
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

// prelude is what the shell of a page has beside the reader's: it ends with the first
// command that fails, building pemba puts it into the folder of the page, and Go works
// in that of the module, also on a file that the page has written. What a page gives a
// second to happen has three: the machine may be slow and busy with other tests.
const prelude = `set -euo pipefail
sleep() { command sleep $((3 * $1)); }
go() {
  local verb=$1
  shift
  if [ "$verb $*" = "build ./cmd/pemba" ]; then cp "$BINARY" pemba
  elif [ -f "$1" ]; then command go "$verb" -C "$MODULE" "$PWD/$1"
  else command go "$verb" -C "$MODULE" "$@"; fi
}
`

// localAddr is an address with a port of this machine.
var localAddr = regexp.MustCompile(`127\.0\.0\.1:[1-9][0-9]+`)

func walk(t *testing.T, name, binary string) {
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
	addrs := map[string]string{"127.0.0.1:50051": grpcAddr, "127.0.0.1:8080": httpAddr}
	page := localAddr.ReplaceAllStringFunc(string(source), func(addr string) string {
		if addrs[addr] == "" {
			addrs[addr] = freeAddr(t)
		}
		return addrs[addr]
	})
	// A loop looks again, so that a short pause does what the reader's second does.
	page = strings.ReplaceAll(page, "; do sleep 1; done", "; do command sleep 0.2; done")
	folder := t.TempDir()
	env := append(os.Environ(), "MODULE="+module, "BINARY="+binary, "PEMBA_ADDR="+grpcAddr,
		"PEMBA_GRPC_ADDR="+grpcAddr, "PEMBA_HTTP_ADDR="+httpAddr)
	shell := openShell(t, folder, env)
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
		out, errs, err := shell.run(b.text)
		if err != nil {
			t.Fatalf("%s: %v\n%s\nprinted:\n%s%s", at, err, b.text, out, errs)
		}
		if i+1 < len(all) && all[i+1].info == "text" && !matches(all[i+1].text, out) {
			t.Errorf("%s: the commands print\n%s\nbut the page shows\n%s", at, out, all[i+1].text)
		}
	}
	if ran == 0 {
		t.Errorf("%s has no commands", name)
	}
}

// A shell is a bash that is given one block after the other, so that what a block
// leaves set is set for the next.
type shell struct {
	script    *os.File      // where it reads its commands, its standard input being another
	out, errs *os.File      // what it and its commands print, from the end of the last block on
	done      chan struct{} // gets something when a block is done
	ended     chan struct{} // closed when bash has ended, with result set before
	result    error
	patience  func() time.Duration
}

// openShell starts a shell. It and what it started end with the test.
func openShell(t *testing.T, folder string, env []string) *shell {
	s := &shell{done: make(chan struct{}), ended: make(chan struct{})}
	s.patience = func() time.Duration {
		// A block that takes so long is named before the whole test is given up.
		patience := 8 * time.Minute
		if deadline, ok := t.Deadline(); ok {
			patience = min(patience, time.Until(deadline)-30*time.Second)
		}
		return patience
	}
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	printed := t.TempDir()
	out, err := os.Create(filepath.Join(printed, "out"))
	must(err)
	errs, err := os.Create(filepath.Join(printed, "errs"))
	must(err)
	// What reads has a place in the file of its own.
	s.out, err = os.Open(out.Name())
	must(err)
	s.errs, err = os.Open(errs.Name())
	must(err)
	script, feed, err := os.Pipe()
	must(err)
	marks, mark, err := os.Pipe()
	must(err)
	s.script = feed
	cmd := exec.Command("bash", "/dev/fd/3")
	cmd.Dir, cmd.Env = folder, env
	cmd.Stdout, cmd.Stderr = out, errs
	cmd.ExtraFiles = []*os.File{script, mark}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must(cmd.Start())
	must(errors.Join(script.Close(), mark.Close(), out.Close(), errs.Close()))
	go func() {
		defer close(s.ended)
		s.result = cmd.Wait()
	}()
	go func() {
		var one [1]byte
		for {
			if _, err := marks.Read(one[:]); err != nil {
				return // Nobody is left that could mark anything.
			}
			select {
			case s.done <- struct{}{}:
			case <-s.ended:
				return
			}
		}
	}()
	t.Cleanup(func() {
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Error(err)
		}
		<-s.ended
		if err := errors.Join(feed.Close(), marks.Close(), s.out.Close(), s.errs.Close()); err != nil {
			t.Error(err)
		}
	})
	if _, err := feed.WriteString(prelude); err != nil {
		t.Fatal(err)
	}
	return s
}

// run gives the shell a block, waits for its end and returns what was printed.
func (s *shell) run(text string) (out, errs string, err error) {
	// A shell that does not read would be waited for here, but for its end.
	written := make(chan error, 1)
	go func() {
		_, err := s.script.WriteString(text + "\nprintf . >&4\n")
		written <- err
	}()
	patience := s.patience()
	select {
	case <-s.done:
		err = <-written
	case <-s.ended:
		err = fmt.Errorf("the shell ended: %w", s.result)
	case <-time.After(patience):
		err = fmt.Errorf("it is not done after %v", patience)
	}
	printed, outErr := io.ReadAll(s.out)
	wrong, errsErr := io.ReadAll(s.errs)
	return string(printed), string(wrong), errors.Join(err, outErr, errsErr)
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
		case <-time.After(time.Minute):
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
	for deadline := time.Now().Add(5 * time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
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

// freeAddr returns an address that nobody listens on. Its port is below those that
// systems give out by themselves, as one of them might be another's by the time
// that it is used.
func freeAddr(t *testing.T) string {
	var failed error
	for range 100 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(20_000)))
		if err != nil {
			failed = err
			continue
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		return l.Addr().String()
	}
	t.Fatal("no port is free: ", failed)
	return ""
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
