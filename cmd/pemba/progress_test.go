package main

import (
	"bytes"
	"os"
	"testing"
	"time"
)

func TestProgressLine(t *testing.T) {
	for _, test := range []struct {
		done, part, whole int64
		terminal          bool
		want              string
	}{
		{0, 0, 0, false, "0 tuples, 0/s"},
		{5000, 70_000, 0, true, "5000 tuples, 500/s"},
		{5000, 25, 100, false, " 25 %, 5000 tuples, 500/s, 30s left"},
		{5000, 25, 100, true, "[######------------------]  25 %, 5000 tuples, 500/s, 30s left"},
		{5000, 200, 100, true, "[########################] 100 %, 5000 tuples, 500/s, 0s left"},
	} {
		p := progress{terminal: test.terminal}
		p.done.Store(test.done)
		p.part.Store(test.part)
		p.whole.Store(test.whole)
		if got := p.line(10 * time.Second); got != test.want {
			t.Errorf("%+v: %q", test, got)
		}
	}
}

// TestProgressWaits: a wait is said once, no rate is counted meanwhile, and its time is
// none of the work's.
func TestProgressWaits(t *testing.T) {
	var b bytes.Buffer
	p := &progress{out: &b}
	p.done.Store(100)
	p.wait("the source", "it is lost")
	p.wait("the source", "it is lost")
	if got := b.String(); got != "it is lost\n" {
		t.Errorf("said %q", got)
	}
	if got := p.line(10 * time.Second); got != "100 tuples, waiting for the source" {
		t.Errorf("%q", got)
	}
	p.goOn()
	p.waited = 5 * time.Second
	if got := p.line(10 * time.Second); got != "100 tuples, 20/s" {
		t.Errorf("%q", got)
	}
}

// TestProgressEnds: after close nothing more is written, and a terminal's line is
// wiped.
func TestProgressEnds(t *testing.T) {
	var b bytes.Buffer
	p := &progress{out: &b, terminal: true, began: time.Now(), stop: make(chan struct{}), stopped: make(chan struct{})}
	p.done.Store(1)
	go p.tell(time.Millisecond)
	time.Sleep(20 * time.Millisecond) // Let it tick; how often does not matter.
	p.last.Store(true)
	if got := p.line(time.Second); got != "1 tuples are sent and become visible" {
		t.Errorf("%q", got)
	}
	p.close()
	got := b.String()
	if got != "" && !bytes.HasSuffix([]byte(got), []byte("\r\x1b[K")) {
		t.Errorf("the last line was left: %q", got)
	}
	if isTerminal(&b) {
		t.Error("a buffer is taken for a terminal")
	}
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}()
	if isTerminal(f) {
		t.Error("a file is taken for a terminal")
	}
}
