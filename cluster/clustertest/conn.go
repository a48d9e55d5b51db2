package clustertest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// A conn is one end of a connection.
type conn struct {
	network         *Network
	sends, receives *pipe
	local, remote   address
	other           *conn
	// cutOff breaks the connection when a link stays cut; nil while none is. It
	// belongs to network.mu.
	cutOff *time.Timer
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.receives.read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &net.OpError{Op: "read", Net: c.local.Network(), Source: c.local, Addr: c.remote, Err: err}
	}
	return n, err
}

// Write implements net.Conn. It returns once there is room for all of b on the way.
func (c *conn) Write(b []byte) (int, error) {
	n, err := c.sends.write(b)
	if errors.Is(err, errBroken) {
		c.breakBoth(errBroken)
	}
	if err != nil {
		err = &net.OpError{Op: "write", Net: c.local.Network(), Source: c.local, Addr: c.remote, Err: err}
	}
	return n, err
}

// Close implements net.Conn. What is under way still arrives, and the end behind it.
func (c *conn) Close() error {
	c.sends.closeWriter()
	c.receives.closeReader()
	c.forget()
	return nil
}

// forget takes a connection out of the network, unless its other end still waits for
// what a cut link holds back.
func (c *conn) forget() {
	n := c.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if !c.sends.over() || !c.receives.over() {
		return
	}
	for _, end := range [...]*conn{c, c.other} {
		delete(n.conns, end)
		if end.cutOff != nil {
			end.cutOff.Stop()
			end.cutOff = nil
		}
	}
}

// breakBoth ends a connection for both ends, with an error.
func (c *conn) breakBoth(err error) {
	first := c.sends.breakWith(err)
	c.receives.breakWith(err)
	n := c.network
	n.mu.Lock()
	if first && errors.Is(err, errBroken) {
		n.broken++
	}
	n.mu.Unlock()
	c.forget()
}

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	c.receives.setReadDeadline(t)
	c.sends.setWriteDeadline(t)
	return nil
}

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.receives.setReadDeadline(t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.sends.setWriteDeadline(t)
	return nil
}

// A pipe is one direction of a connection.
type pipe struct {
	direction

	mu      sync.Mutex
	changed chan struct{} // Closed and replaced with each change of what follows.
	link    link
	// parts are the bytes that are under way, in order, and bytes how many.
	//
	// Invariant: bytes <= bufferBytes.
	parts []part
	bytes int
	// carried counts the bytes since the link was told to break, and last is when
	// the last of them arrives.
	carried int64
	last    time.Time
	// noWriter and noReader say that an end was closed, broken why both are.
	noWriter, noReader bool
	broken             error

	readDeadline, writeDeadline time.Time
}

// A part is what one Write sent.
type part struct {
	data []byte
	at   time.Time // When it arrives.
}

func newPipe(d direction) *pipe { return &pipe{direction: d, changed: make(chan struct{})} }

// wake tells those who wait that something changed. It needs p.mu.
func (p *pipe) wake() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// set says how the link is now.
func (p *pipe) set(l link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.breakAfter != p.link.breakAfter {
		p.carried = 0
	}
	p.link = l
	p.wake()
}

func (p *pipe) read(b []byte) (int, error) {
	for {
		p.mu.Lock()
		var until time.Time // When to look again by itself.
		switch now := time.Now(); {
		case p.noReader:
			p.mu.Unlock()
			return 0, net.ErrClosed
		case p.broken != nil:
			defer p.mu.Unlock()
			return 0, p.broken
		case len(b) == 0:
			p.mu.Unlock()
			return 0, nil
		case !p.readDeadline.IsZero() && !now.Before(p.readDeadline):
			p.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		case p.link.cut:
		case len(p.parts) > 0 && !now.Before(p.parts[0].at):
			defer p.mu.Unlock()
			return p.take(b, now), nil
		case len(p.parts) > 0:
			until = p.parts[0].at
		case p.noWriter:
			p.mu.Unlock()
			return 0, io.EOF
		}
		if !p.readDeadline.IsZero() && (until.IsZero() || p.readDeadline.Before(until)) {
			until = p.readDeadline
		}
		changed := p.changed
		p.mu.Unlock()
		wait(changed, until)
	}
}

// take moves bytes that have arrived to b. It needs p.mu.
func (p *pipe) take(b []byte, now time.Time) (n int) {
	for n < len(b) && len(p.parts) > 0 && !now.Before(p.parts[0].at) {
		first := &p.parts[0]
		moved := copy(b[n:], first.data)
		n += moved
		if first.data = first.data[moved:]; len(first.data) == 0 {
			p.parts[0] = part{}
			p.parts = p.parts[1:]
		}
	}
	p.bytes -= n
	p.wake()
	return n
}

func (p *pipe) write(b []byte) (n int, err error) {
	for {
		p.mu.Lock()
		switch now := time.Now(); {
		case p.noWriter:
			p.mu.Unlock()
			return n, net.ErrClosed
		case p.broken != nil:
			defer p.mu.Unlock()
			return n, p.broken
		case p.noReader && !p.link.cut:
			p.mu.Unlock()
			return n, syscall.EPIPE
		case !p.writeDeadline.IsZero() && !now.Before(p.writeDeadline):
			p.mu.Unlock()
			return n, os.ErrDeadlineExceeded
		case len(b) == 0:
			p.mu.Unlock()
			return n, nil
		case p.bytes < bufferBytes:
			sent := min(len(b), bufferBytes-p.bytes)
			if most := p.link.breakAfter; most > 0 && p.carried+int64(sent) > most {
				p.mu.Unlock()
				return n, errBroken
			}
			p.send(b[:sent], now)
			n += sent
			if b = b[sent:]; len(b) == 0 {
				p.mu.Unlock()
				return n, nil
			}
		}
		changed, until := p.changed, p.writeDeadline
		p.mu.Unlock()
		wait(changed, until)
	}
}

// send puts bytes on their way. It needs p.mu.
func (p *pipe) send(b []byte, now time.Time) {
	at := now.Add(p.link.delay)
	if at.Before(p.last) {
		at = p.last // Nothing overtakes.
	}
	if speed := p.link.bytesPerSecond; speed > 0 {
		at = at.Add(time.Duration(int64(len(b)) * int64(time.Second) / speed))
	}
	p.last = at
	p.parts = append(p.parts, part{data: append([]byte(nil), b...), at: at})
	p.bytes += len(b)
	p.carried += int64(len(b))
	p.wake()
}

// wait returns when changed is closed, or at a time, if it is not zero.
func wait(changed <-chan struct{}, until time.Time) {
	if until.IsZero() {
		<-changed
		return
	}
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	}
}

func (p *pipe) closeWriter() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.noWriter = true
	p.wake()
}

func (p *pipe) closeReader() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.noReader = true
	p.parts, p.bytes = nil, 0 // Nobody will read them.
	p.wake()
}

// breakWith breaks the pipe, and reports whether it was whole.
func (p *pipe) breakWith(err error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broken != nil {
		return false
	}
	p.broken = fmt.Errorf("%s to %s: %w", p.from, p.to, err)
	p.parts, p.bytes = nil, 0
	p.wake()
	return true
}

// over reports whether nothing more can be said on the pipe.
func (p *pipe) over() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.broken != nil || p.noWriter && p.noReader
}

func (p *pipe) setReadDeadline(t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.readDeadline = t
	p.wake()
}

func (p *pipe) setWriteDeadline(t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.writeDeadline = t
	p.wake()
}
