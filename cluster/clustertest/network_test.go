package clustertest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// pair connects host a to host b, and returns their ends.
func pair(t *testing.T, n *Network) (a, b net.Conn) {
	t.Helper()
	l, err := n.Of("b").Listen("b:1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	if a, err = n.Of("a").Dial(t.Context(), "b:1"); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a, b
}

// send writes a text, and receive expects one.
func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if n, err := c.Write([]byte(text)); n != len(text) || err != nil {
		t.Fatalf("wrote %d bytes of %d: %v", n, len(text), err)
	}
}

func receive(t *testing.T, c net.Conn, text string) {
	t.Helper()
	got := make([]byte, len(text))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("read %q: %v", got[:n], err)
	}
}

// mustNotReceive expects nothing for a moment.
func mustNotReceive(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read %d bytes: %v", n, err)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
}

// TestConnection: bytes arrive in order, the end behind them, and closing is seen.
func TestConnection(t *testing.T) {
	a, b := pair(t, NewNetwork(0))
	send(t, a, "one")
	send(t, a, "two")
	receive(t, b, "onetwo")
	send(t, b, "three")
	receive(t, a, "three")
	if a.LocalAddr().String() != "a" || a.RemoteAddr().String() != "b:1" || b.RemoteAddr().String() != "a" {
		t.Errorf("the ends are %v and %v", a.LocalAddr(), a.RemoteAddr())
	}
	send(t, a, "last")
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	receive(t, b, "last")
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("behind the end: %v", err)
	}
	if _, err := b.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write to who closed: %v", err)
	}
	if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after close: %v", err)
	}
}

// TestBuffer: writing does not wait for who reads, up to a bound, and obeys its
// deadline then.
func TestBuffer(t *testing.T) {
	a, b := pair(t, NewNetwork(0))
	if _, err := a.Write(make([]byte, bufferBytes)); err != nil {
		t.Fatal(err)
	}
	if err := a.SetWriteDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := a.Write([]byte("x")); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("wrote %d bytes more: %v", n, err)
	}
	if err := a.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	large := bytes.Repeat([]byte("0123456789"), bufferBytes)
	wrote := make(chan error, 1)
	go func() {
		_, err := a.Write(large)
		wrote <- err
	}()
	got := make([]byte, bufferBytes+len(large))
	if _, err := io.ReadFull(b, got); err != nil || !bytes.Equal(got[bufferBytes:], large) {
		t.Errorf("what arrived is not what was sent: %v", err)
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}
}

// TestCut: a link that is cut delays what it carries until it is healed, one way only,
// and no connection is made meanwhile.
func TestCut(t *testing.T) {
	n := NewNetwork(0)
	a, b := pair(t, n)
	n.Cut("a", "b")
	send(t, a, "lost?")
	mustNotReceive(t, b)
	send(t, b, "heard")
	receive(t, a, "heard")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	for _, host := range [...]string{"a", "b"} {
		if _, err := n.Of(host).Listen(host + ":2"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := n.Of("a").Dial(ctx, "b:2"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial along the link that is cut: %v", err)
	}
	if _, err := n.Of("b").Dial(ctx, "a:2"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial along the other one: %v", err)
	}
	dialed := make(chan error, 1)
	go func() {
		_, err := n.Of("a").Dial(t.Context(), "b:2")
		dialed <- err
	}()
	n.Heal()
	receive(t, b, "lost?")
	if err := <-dialed; err != nil {
		t.Errorf("dial until it is healed: %v", err)
	}
}

// TestPatience: a connection ends, for both, when a link stays cut; not before.
func TestPatience(t *testing.T) {
	n := NewNetwork(50 * time.Millisecond)
	a, b := pair(t, n)
	n.Cut("a", "b")
	n.Heal()
	send(t, a, "still there")
	receive(t, b, "still there")
	n.Cut("a", "b")
	for _, c := range [...]net.Conn{a, b} {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ETIMEDOUT) {
			t.Errorf("read: %v", err)
		}
	}
	n.Heal()
	if _, err := a.Write([]byte("x")); !errors.Is(err, syscall.ETIMEDOUT) {
		t.Errorf("write after healing: %v", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.conns) != 0 {
		t.Errorf("%d ends are kept", len(n.conns))
	}
}

// TestBreak: connections break after so many bytes, each anew.
func TestBreak(t *testing.T) {
	n := NewNetwork(0)
	n.Break("a", "b", 10)
	a, b := pair(t, n)
	send(t, a, "0123456789")
	receive(t, b, "0123456789")
	if _, err := a.Write([]byte("x")); err == nil {
		t.Error("the eleventh byte was carried")
	}
	if _, err := b.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the other end: %v", err)
	}
	if n.Broken() != 1 {
		t.Errorf("%d were broken", n.Broken())
	}
}

// TestSlow: what is delayed or slow arrives later, and in order.
func TestSlow(t *testing.T) {
	n := NewNetwork(0)
	a, b := pair(t, n)
	start := time.Now()
	n.Delay("a", "b", 50*time.Millisecond)
	send(t, a, "late")
	n.Delay("a", "b", 0)
	send(t, a, "later")
	receive(t, b, "latelater")
	if took := time.Since(start); took < 50*time.Millisecond {
		t.Errorf("it took %v", took)
	}
	start = time.Now()
	n.Slow("a", "b", 1000)
	send(t, a, string(make([]byte, 50)))
	receive(t, b, string(make([]byte, 50)))
	if took := time.Since(start); took < 50*time.Millisecond {
		t.Errorf("50 bytes at 1000 a second took %v", took)
	}
}

// TestDown: a host that is down is not dialed and does not dial, at once, and its
// connections are broken.
func TestDown(t *testing.T) {
	n := NewNetwork(0)
	a, b := pair(t, n)
	n.SetDown("b", true)
	for _, c := range [...]net.Conn{a, b} {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read: %v", err)
		}
	}
	if _, err := n.Of("a").Dial(t.Context(), "b:1"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial: %v", err)
	}
	if _, err := n.Of("b").Dial(t.Context(), "b:1"); !errors.Is(err, syscall.ENETDOWN) {
		t.Errorf("dial from there: %v", err)
	}
	n.SetDown("b", false)
	if _, err := n.Of("a").Dial(t.Context(), "b:1"); err != nil {
		t.Errorf("dial when it is up again: %v", err)
	}
}

// TestListen: an address has one listener, and who is not there refuses.
func TestListen(t *testing.T) {
	n := NewNetwork(0)
	l, err := n.Of("b").Listen("b:1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Of("c").Listen("b:1"); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("listen where another listens: %v", err)
	}
	waiting, err := n.Of("a").Dial(t.Context(), "b:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
	if _, err := waiting.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("who was not accepted reads: %v", err)
	}
	if _, err := n.Of("a").Dial(t.Context(), "b:1"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial after close: %v", err)
	}
	if _, err := n.Of("a").Dial(t.Context(), "nowhere:1"); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("dial where never anybody was: %v", err)
	}
	if _, err := n.Of("c").Listen("b:1"); err != nil {
		t.Errorf("listen where nobody does any more: %v", err)
	}
}
