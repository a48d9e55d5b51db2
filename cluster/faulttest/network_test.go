package faulttest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var proxiesFlag = flag.Bool("proxies", false, "put proxies between the nodes, also where network namespaces are allowed")

// A network lies between the nodes. Clients do not go through it: they stand beside
// each node, on its side of whatever happens here.
type network interface {
	// name says what kind it is.
	name() string
	// addr is where a node listens for the others.
	addr(node int) string
	// dials says for a node where it reaches the addresses of the others, where that
	// is not at the addresses themselves.
	dials(node int) map[string]string
	// start starts the process of a node, on its end of the network.
	start(node int, cmd *exec.Cmd) error
	// links are what the nemesis sets.
	links() *links
	close()
}

// newNetwork makes a network of network namespaces, where that is allowed, and else
// one of proxies on loopback.
func newNetwork(t *testing.T, nodes int) network {
	t.Helper()
	n, err := newNamespaces(nodes)
	if *proxiesFlag && err == nil {
		n.close()
		err = errors.New("-proxies asks for it")
	}
	if err != nil {
		t.Logf("no network namespaces, but a proxy between the nodes: %v", err)
		if n, err = newProxies(nodes); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(n.close)
	return n
}

// links say how each node's bytes fare on the way to each other.
type links struct {
	nodes int
	cut   []atomic.Bool
	late  []atomic.Int64
}

func newLinks(nodes int) *links {
	return &links{nodes: nodes, cut: make([]atomic.Bool, nodes*nodes), late: make([]atomic.Int64, nodes*nodes)}
}

// setCut cuts the way from one node to another, or mends it.
func (l *links) setCut(from, to int, cut bool) { l.cut[from*l.nodes+to].Store(cut) }

// setDelay makes everything take so long from one node to another.
func (l *links) setDelay(from, to int, by time.Duration) { l.late[from*l.nodes+to].Store(int64(by)) }

func (l *links) isCut(from, to int) bool { return l.cut[from*l.nodes+to].Load() }

func (l *links) delay(from, to int) time.Duration {
	return time.Duration(l.late[from*l.nodes+to].Load())
}

// delayAll delays everything between all nodes.
func (l *links) delayAll(by time.Duration) {
	for from := range l.nodes {
		for to := range l.nodes {
			l.setDelay(from, to, by)
		}
	}
}

// proxies is a network on loopback. Each node reaches each other by way of a proxy of
// its own. What is cut waits, as what TCP sends again does, and goes on later.
type proxies struct {
	addrs   []string
	proxied []map[string]string
	l       *links
	closed  chan struct{}
	open    sync.WaitGroup
	listens []net.Listener
}

func newProxies(nodes int) (_ network, err error) {
	p := &proxies{l: newLinks(nodes), closed: make(chan struct{})}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	listen := func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }
	for range nodes {
		// The port is free from here on until the node takes it.
		l, err := listen()
		if err != nil {
			return nil, err
		}
		p.addrs = append(p.addrs, l.Addr().String())
		if err := l.Close(); err != nil {
			return nil, err
		}
	}
	for from := range nodes {
		p.proxied = append(p.proxied, map[string]string{})
		for to := range nodes {
			if to == from {
				continue
			}
			l, err := listen()
			if err != nil {
				return nil, err
			}
			p.listens = append(p.listens, l)
			p.proxied[from][p.addrs[to]] = l.Addr().String()
			p.open.Go(func() { p.serve(l, from, to) })
		}
	}
	return p, nil
}

func (p *proxies) name() string                         { return "proxies on loopback" }
func (p *proxies) addr(node int) string                 { return p.addrs[node] }
func (p *proxies) dials(node int) map[string]string     { return p.proxied[node] }
func (p *proxies) start(_ int, command *exec.Cmd) error { return command.Start() }
func (p *proxies) links() *links                        { return p.l }

func (p *proxies) close() {
	close(p.closed)
	for _, l := range p.listens {
		_ = l.Close() // It only listened.
	}
	p.open.Wait()
}

// serve takes connections of one node to another.
func (p *proxies) serve(l net.Listener, from, to int) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		p.open.Go(func() {
			defer func() { _ = in.Close() }()
			if !p.passes(from, to) {
				return
			}
			out, err := net.Dial("tcp", p.addrs[to])
			if err != nil {
				return
			}
			ended := make(chan struct{}, 2)
			p.open.Go(func() { p.carry(out, in, from, to); ended <- struct{}{} })
			p.open.Go(func() { p.carry(in, out, to, from); ended <- struct{}{} })
			select {
			case <-ended:
			case <-p.closed:
			}
			_ = out.Close() // The other direction ends too.
		})
	}
}

// passes waits as long as the way is cut. It returns false when the network closes.
func (p *proxies) passes(from, to int) bool {
	for p.l.isCut(from, to) {
		select {
		case <-p.closed:
			return false
		case <-time.After(5 * time.Millisecond):
		}
	}
	return true
}

// carry copies one direction of a connection, with the delay of the way.
func (p *proxies) carry(out io.Writer, in io.Reader, from, to int) {
	type part struct {
		bytes []byte
		due   time.Time
	}
	parts := make(chan part, 64)
	gone := make(chan struct{})
	p.open.Go(func() {
		defer close(parts)
		for {
			buffer := make([]byte, 32<<10)
			count, err := in.Read(buffer)
			if count > 0 {
				select {
				case parts <- part{buffer[:count], time.Now().Add(p.l.delay(from, to))}:
				case <-gone:
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	defer close(gone)
	for next := range parts {
		time.Sleep(time.Until(next.due))
		if !p.passes(from, to) {
			return
		}
		if _, err := out.Write(next.bytes); err != nil {
			return
		}
	}
}

// A dialer is the end of a network inside of a node whose addresses are proxied.
type dialer map[string]string

// Listen implements peer.Network.
func (d dialer) Listen(addr string) (net.Listener, error) { return net.Listen("tcp", addr) }

// Dial implements peer.Network.
func (d dialer) Dial(ctx context.Context, addr string) (net.Conn, error) {
	to, known := d[addr]
	if !known {
		return nil, fmt.Errorf("%s is no address of a node", addr)
	}
	return new(net.Dialer).DialContext(ctx, "tcp", to)
}
