package faulttest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Each acknowledgement is preceded by a sync of the log that began after the
// request was read: only that makes it survive a power loss, which kill -9
// cannot show. Badger syncs its write-ahead file by msync, since it is mapped
// into memory.
func TestTrace(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed")
	}
	if out, err := exec.Command(strace, "-f", "-o", "/dev/null", "true").CombinedOutput(); err != nil {
		t.Skipf("strace may not trace here: %v\n%s", err, out)
	}
	file := filepath.Join(t.TempDir(), "trace")
	s := settings{DataDir: filepath.Join(t.TempDir(), "data"), LogMemTable: 1 << 20, GraphMemTable: 1 << 20}
	p := start(t, s, strace, "-f", "-y", "-s", "64", "-e", "trace=read,write,mmap,munmap,msync,fsync,fdatasync", "-o", file)
	p.must(request{Op: "schema"})
	c, err := p.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	const writes = 25
	for i := range writes {
		r, err := c.ask(request{Op: "write", Actor: fmt.Sprintf("trace-%d-", i), Updates: []update{{Document: fmt.Sprint(i), Person: "0"}}})
		if err != nil || r.Error != "" || r.Refusal != "" {
			t.Fatal(err, r)
		}
	}
	// The one that is traced goes first, or strace would detach from a zombie.
	p.stop()
	var content []byte
	for wait := time.Now().Add(patience); len(content) == 0 && time.Now().Before(wait); {
		if content, err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
	}
	calls := parseTrace(string(content))
	t.Logf("%d system calls", len(calls))

	logDir := filepath.Join(s.DataDir, "log") + string(filepath.Separator)
	mapped := map[uint64]string{} // File by the address it is mapped at.
	var synced []call             // Syncs of the log that ended well, in order of their end.
	read := map[string]call{}
	acknowledged := 0
	for _, call := range calls {
		switch call.name {
		case "mmap":
			if address, err := strconv.ParseUint(call.result, 0, 64); err == nil {
				mapped[address] = pathIn(call.args)
			}
		case "munmap":
			delete(mapped, address(call.args))
		case "msync":
			path := mapped[address(call.args)]
			if strings.HasPrefix(path, logDir) && strings.HasSuffix(path, ".mem") && strings.Contains(call.args, "MS_SYNC") && call.result == "0" {
				synced = append(synced, call)
			}
		case "fsync", "fdatasync":
			if path := pathIn(call.args); strings.HasPrefix(path, logDir) && strings.HasSuffix(path, ".mem") && call.result == "0" {
				synced = append(synced, call)
			}
		case "read":
			if actor := traced.FindString(call.args); actor != "" {
				read[actor] = call
			}
		case "write":
			actor := traced.FindString(call.args)
			asked, ok := read[actor]
			if actor == "" || !ok || !strings.Contains(call.args, "actor") {
				continue
			}
			acknowledged++
			last := len(synced) - 1
			if last < 0 || synced[last].begin < asked.end || synced[last].end > call.begin {
				t.Errorf("request %s, read in line %d, was acknowledged in line %d without a sync of the log between", actor, asked.end, call.begin)
			}
		}
	}
	t.Logf("%d acknowledgements, %d syncs of the log's write-ahead file", acknowledged, len(synced))
	if acknowledged != writes {
		t.Errorf("%d of %d acknowledgements are in the trace", acknowledged, writes)
	}
}

// A call is a system call: where in the trace it begins and ends, by line.
type call struct {
	name, args, result string
	begin, end         int
}

var (
	traced     = regexp.MustCompile(`trace-\d+-`)
	wholeCall  = regexp.MustCompile(`^(\d+) +(\w+)\((.*)\) += (\S+)`)
	beginsCall = regexp.MustCompile(`^(\d+) +(\w+)\((.*) <unfinished \.\.\.>$`)
	endsCall   = regexp.MustCompile(`^(\d+) +<\.\.\. (\w+) resumed>(.*)\) += (\S+)`)
	fileInArgs = regexp.MustCompile(`<(/[^>]*)>`)
)

// parseTrace returns the calls of all threads in the order in which they ended.
func parseTrace(trace string) (calls []call) {
	open := map[string]call{} // By thread.
	line := 0
	for text := range strings.SplitSeq(trace, "\n") {
		line++
		if m := wholeCall.FindStringSubmatch(text); m != nil {
			calls = append(calls, call{m[2], m[3], m[4], line, line})
		} else if m := beginsCall.FindStringSubmatch(text); m != nil {
			open[m[1]] = call{name: m[2], args: m[3], begin: line}
		} else if m := endsCall.FindStringSubmatch(text); m != nil {
			c := open[m[1]]
			c.args, c.result, c.end = c.args+m[3], m[4], line
			calls = append(calls, c)
		}
	}
	return calls
}

func pathIn(args string) string {
	if m := fileInArgs.FindStringSubmatch(args); m != nil {
		return m[1]
	}
	return ""
}

func address(args string) uint64 {
	first, _, _ := strings.Cut(args, ",")
	a, err := strconv.ParseUint(strings.TrimSpace(first), 0, 64)
	if err != nil {
		return 0
	}
	return a
}
