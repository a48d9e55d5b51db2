package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
)

// How often progress is told: on a terminal, where a line replaces the one
// before, and elsewhere, where all lines stay.
const (
	progressTerminal = 200 * time.Millisecond
	progressLines    = 5 * time.Second
)

// A progress tells on the standard error how far a long work is. Its counters
// are set by one goroutine; another one tells.
type progress struct {
	// done counts tuples. part of whole is how much of the work is done, in any
	// measure; a whole of zero means that nobody knows.
	done, part, whole atomic.Int64
	// last says that all is done but for a last step, of which nobody knows how
	// long it takes.
	last atomic.Bool

	// What is waited for. Invariant: waitsFor != "" while waiting since waits began,
	// which is not in waited yet.
	mu       sync.Mutex
	waitsFor string
	waits    time.Time
	waited   time.Duration

	out      io.Writer
	terminal bool
	began    time.Time
	stop     chan struct{}
	stopped  chan struct{}
}

// addQuiet adds the flag that asks for no progress.
func addQuiet(cmd *cobra.Command, quiet *bool) {
	cmd.Flags().BoolVarP(quiet, "quiet", "q", false, "do not tell on the standard error how far it is")
}

// startProgress begins to tell, unless quiet is set. The counters can be set
// either way.
func startProgress(cmd *cobra.Command, quiet bool) *progress {
	p := &progress{out: cmd.ErrOrStderr(), began: time.Now(), stop: make(chan struct{}), stopped: make(chan struct{})}
	if quiet {
		close(p.stopped)
		return p
	}
	every := progressLines
	if p.terminal = isTerminal(p.out); p.terminal {
		every = progressTerminal
	}
	go p.tell(every)
	return p
}

// isTerminal reports whether somebody may be looking on. That /dev/null is taken
// for a terminal does no harm.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func (p *progress) tell(every time.Duration) {
	defer close(p.stopped)
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	told := false
	for {
		select {
		case <-ticker.C:
			p.mu.Lock()
			line := p.line(time.Since(p.began))
			if p.terminal {
				line = "\r\x1b[K" + line
			} else {
				line += "\n"
			}
			// The work goes on whether or not anybody hears of it.
			_, _ = io.WriteString(p.out, line)
			p.mu.Unlock()
			told = true
		case <-p.stop:
			if told && p.terminal {
				_, _ = io.WriteString(p.out, "\r\x1b[K") // As above.
			}
			return
		}
	}
}

// wait says once why nothing goes on, and counts no rate until goOn is called.
func (p *progress) wait(what, why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waitsFor != "" {
		return
	}
	p.waitsFor, p.waits = what, time.Now()
	line := printable(why) + "\n"
	if p.terminal {
		line = "\r\x1b[K" + line
	}
	_, _ = io.WriteString(p.out, line) // As in tell.
}

// goOn ends a wait.
func (p *progress) goOn() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waitsFor != "" {
		p.waited += time.Since(p.waits)
		p.waitsFor = ""
	}
}

// close stops telling. It must be called once.
func (p *progress) close() {
	close(p.stop)
	<-p.stopped
}

// The width of the bar on a terminal.
const barWidth = 24

// line says how far it is after some time. It is called with mu held.
func (p *progress) line(after time.Duration) string {
	done, part, whole := p.done.Load(), p.part.Load(), p.whole.Load()
	if p.waitsFor != "" {
		return fmt.Sprintf("%d tuples, waiting for %s", done, p.waitsFor)
	}
	after -= p.waited
	rate := float64(done) / max(after.Seconds(), 1e-3)
	text := fmt.Sprintf("%d tuples, %.0f/s", done, rate)
	switch {
	case p.last.Load():
		return fmt.Sprintf("%d tuples are sent and become visible", done)
	case whole <= 0 || part <= 0:
		return text
	}
	share := min(float64(part)/float64(whole), 1)
	left := time.Duration(float64(after) * (1 - share) / share).Round(time.Second)
	text = fmt.Sprintf("%3.0f %%, %s, %v left", 100*share, text, left)
	if p.terminal {
		full := int(share * barWidth)
		text = "[" + strings.Repeat("#", full) + strings.Repeat("-", barWidth-full) + "] " + text
	}
	return text
}

// A countingReader counts what is read as progress.
type countingReader struct {
	io.Reader
	progress *progress
}

func (r countingReader) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	r.progress.part.Add(int64(n))
	return n, err
}
