package badgerlog

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// childEnv makes the test binary a process that stores entries until it is
// killed. Its value is the directory.
const childEnv = "PEMBA_BADGERLOG_TEST_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		if err := storeUntilKilled(dir); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const crashEntryBytes = 300

// storeUntilKilled raises the term, replaces a few entries at the end, and
// appends. After each call it prints what was acknowledged, in one write.
func storeUntilKilled(dir string) error {
	l, err := Open(testConfig(dir))
	if err != nil {
		return err
	}
	last, err := l.LastIndex()
	if err != nil {
		return err
	}
	term, err := l.GetUint64([]byte("CurrentTerm"))
	if err != nil {
		return err
	}
	term++
	if err := l.SetUint64([]byte("CurrentTerm"), term); err != nil {
		return err
	}
	fmt.Println("term", term)
	if last > 20 {
		if term%2 == 0 {
			if err := l.DeleteRange(last-4, last); err != nil {
				return err
			}
			last -= 5
			fmt.Println("cut", last)
		} else {
			last -= 3 // The store below overlaps.
		}
	}
	for n := uint64(1); ; n++ {
		from, count := last+1, n%64+1
		if err := l.StoreLogs(entries(from, from+count-1, term, crashEntryBytes)); err != nil {
			return err
		}
		last += count
		fmt.Println("stored", from, last, term)
		if n%40 == 0 && last > 3000 {
			if err := l.DeleteRange(1, last-2000); err != nil {
				return err
			}
			fmt.Println("first", last-1999)
		}
	}
}

// TestKill kills a storing process with SIGKILL, several times over the same
// directory, and looks for each acknowledged change.
func TestKill(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("short: needs about two seconds")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var first, last, currentTerm uint64
	terms := map[uint64]uint64{} // Of the acknowledged entries.
	for round := range 8 {
		child := exec.Command(self)
		child.Env = append(os.Environ(), childEnv+"="+dir)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		// Every other kill waits for the first entry, however slow the machine is.
		alive := time.Duration(60+rand.IntN(120)) * time.Millisecond
		late := time.Minute
		if round%2 == 0 {
			late = alive
		}
		timer := time.AfterFunc(late, func() {
			if err := child.Process.Kill(); err != nil {
				t.Error(err)
			}
		})
		lines := 0
		stored := false
		for scan := bufio.NewScanner(out); scan.Scan(); lines++ {
			word := strings.Fields(scan.Text())
			var n [3]uint64
			for i := 1; i < len(word) && word[0] != "error"; i++ {
				if n[i-1], err = strconv.ParseUint(word[i], 10, 64); err != nil {
					t.Fatalf("child said %q", scan.Text())
				}
			}
			switch word[0] {
			case "term":
				currentTerm = n[0]
			case "cut":
				last = n[0]
			case "first":
				first = n[0]
			case "stored":
				if !stored && round%2 == 1 {
					timer.Reset(alive)
				}
				stored = true
				for i := n[0]; i <= n[1]; i++ {
					terms[i] = n[2]
				}
				last = n[1]
			default:
				t.Fatalf("child said %q", scan.Text())
			}
		}
		_ = child.Wait() // It was killed.
		timer.Stop()

		l := mustOpen(t, testConfig(dir))
		if n, err := l.GetUint64([]byte("CurrentTerm")); err != nil || n < currentTerm {
			t.Fatalf("round %d: term is %d (%v), %d was acknowledged", round, n, err, currentTerm)
		}
		f, err := l.FirstIndex()
		if err != nil || f < first {
			t.Fatalf("round %d: the log begins at %d (%v), %d was acknowledged", round, f, err, first)
		}
		g, err := l.LastIndex()
		// A cut whose acknowledgement was not heard may have taken five.
		if err != nil || g+5 < last || lines > 2 && g < last {
			t.Fatalf("round %d: the log ends at %d (%v), %d was acknowledged", round, g, err, last)
		}
		wantLog(t, l, f, g, func(i uint64) uint64 {
			if i <= last && lines > 2 {
				return terms[i]
			}
			return l.state.Load().termAt(i)
		}, crashEntryBytes)
		t.Logf("round %d: %d acknowledgements, log %d..%d, acknowledged up to %d, term %d", round, lines, f, g, last, currentTerm)
		if f > 0 {
			for i := f; i <= g; i++ {
				terms[i] = l.state.Load().termAt(i)
			}
		}
		first, last = f, g
		mustClose(t, l)
	}
	if len(terms) == 0 {
		t.Fatal("the child never stored anything")
	}
}
