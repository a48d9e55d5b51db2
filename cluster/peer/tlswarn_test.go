package peer

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

// A testLog keeps what is logged.
type testLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// lines returns the lines that hold a text.
func (l *testLog) lines(text string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []string
	for line := range strings.Lines(l.text.String()) {
		if strings.Contains(line, text) {
			found = append(found, line)
		}
	}
	return found
}

func withLog(l *testLog) func(*Config) {
	return func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(l, nil)) }
}

// TestTLSWarned: what keeps two nodes from speaking TLS stands in the log of both, with
// the reason, whoever dials and whoever is to blame, and not each time that they try.
func TestTLSWarned(t *testing.T) {
	noLeaks(t)
	ours, theirs := newAuthority(t), newAuthority(t)
	trusting := theirs.config() // It believes ours, and is not believed.
	trusting.RootCAs, trusting.ClientCAs = ours.pool, ours.pool
	distrusting := ours.config()
	distrusting.RootCAs = theirs.pool
	for _, c := range []struct {
		what             string
		dialer           []func(*Config)
		atDialer, atDoor string // "" where there is nothing that could tell.
	}{
		{"the dialer has another authority", []func(*Config){withTLS(trusting)}, "remote error: tls: unknown certificate authority", "certificate signed by unknown authority"},
		{"the listener has another authority", []func(*Config){withTLS(distrusting)}, "certificate signed by unknown authority", "remote error: tls: bad certificate"},
		{"the dialer has no TLS", nil, "", "first record does not look like a TLS handshake"},
	} {
		t.Run(c.what, func(t *testing.T) {
			var atDialer, atDoor testLog
			b := listen(t, "b", withTLS(ours.config()), withLog(&atDoor))
			a := listen(t, "a", append(c.dialer, withLog(&atDialer))...)
			answers := b.Raft()
			for range 4 {
				if err := vote(a, b, answers); err == nil {
					t.Fatal("they speak")
				}
			}
			// The listener may come to its end of it later.
			eventually(t, "all tries are over", func() bool { return b.Totals().Dropped == 4 })
			warned := func(side string, log *testLog, want string, names ...string) {
				lines := log.lines("level=WARN")
				switch {
				case want == "" && len(lines) == 0:
				case len(lines) != 1 || want == "" || !strings.Contains(lines[0], want):
					t.Errorf("%s: %d warnings, expected one with %q: %s", side, len(lines), want, lines)
				default:
					for _, name := range names {
						if !strings.Contains(lines[0], name) {
							t.Errorf("%s: %s does not name %s", side, lines[0], name)
						}
					}
				}
			}
			warned("dialer", &atDialer, c.atDialer, "peer=b", "addr="+addr(b))
			warned("listener", &atDoor, c.atDoor, "from=127.0.0.1:")
		})
	}
	t.Run("who only looks", func(t *testing.T) {
		var log testLog
		b := listen(t, "b", withTLS(ours.config()), withLog(&log))
		if err := dialRaw(t, addr(b)).Close(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it is gone", func() bool { return b.Totals().Dropped == 1 })
		if lines := log.lines("level=WARN"); len(lines) > 0 {
			t.Errorf("it says %s", lines)
		}
	})
	t.Run("the listener has no TLS", func(t *testing.T) {
		var log testLog
		plain := listen(t, "p")
		a := listen(t, "a", withTLS(ours.config()), withLog(&log))
		if err := vote(a, plain, plain.Raft()); err == nil {
			t.Fatal("they speak")
		}
		if lines := log.lines("level=WARN"); len(lines) != 1 || !strings.Contains(lines[0], "peer=p") {
			t.Errorf("it says %s", lines)
		}
	})
}

// TestMayWarn: one address is told of once a minute, and many do not fill the log.
func TestMayWarn(t *testing.T) {
	b := listen(t, "b")
	start := time.Now()
	for _, c := range []struct {
		after time.Duration
		with  string
		want  bool
	}{
		{0, "x", true}, {0, "y", true}, {warnPause - 1, "x", false}, {warnPause, "x", true}, {warnPause, "x", false}, {2 * warnPause, "x", true},
	} {
		if got := b.mayWarn(c.with, start.Add(c.after)); got != c.want {
			t.Errorf("%s after %v: %v", c.with, c.after, got)
		}
	}
	told := 0
	for i := range 10 * warnedMax {
		if b.mayWarn(fmt.Sprint("many ", i), start.Add(2*warnPause)) {
			told++
		}
	}
	if told != warnedMax-1 { // One is x.
		t.Errorf("of many, %d are told of", told)
	}
	if !b.mayWarn("x", start.Add(3*warnPause)) || len(b.warned) != 1 {
		t.Errorf("%d are kept when all are old", len(b.warned))
	}
}
