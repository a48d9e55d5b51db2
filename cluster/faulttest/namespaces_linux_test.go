package faulttest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// namespaces is a network of network namespaces without names, one for each node.
// Each has one device, whose other end is this process: it is the switch between
// them, and drops or delays packets as the links say. So it needs no netem, which
// many kernels lack, nor a packet filter, and nothing is left behind when the test is
// killed.
type namespaces struct {
	l      *links
	ends   []*end
	closed chan struct{}
	open   sync.WaitGroup
}

// An end is a namespace with its device.
type end struct {
	device *os.File
	do     chan func() // Runs on a thread in the namespace.
}

const (
	deviceName = "pemba0"
	subnet     = "10.93.7."
)

func newNamespaces(nodes int) (_ network, err error) {
	n := &namespaces{l: newLinks(nodes), closed: make(chan struct{})}
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	for node := range nodes {
		e := &end{do: make(chan func())}
		ready := make(chan error, 1)
		go n.stay(e, node, ready)
		if err := <-ready; err != nil {
			return nil, err
		}
		n.ends = append(n.ends, e)
	}
	for node := range nodes {
		n.open.Go(func() { n.carry(node) })
	}
	return n, nil
}

// stay makes a namespace and keeps a thread in it.
func (n *namespaces) stay(e *end, node int, ready chan<- error) {
	// Never unlocked: the thread ends with the goroutine.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		ready <- fmt.Errorf("make a network namespace: %w", err)
		return
	}
	var err error
	if e.device, err = openDevice(node); err != nil {
		ready <- err
		return
	}
	ready <- nil
	for {
		select {
		case f := <-e.do:
			f()
		case <-n.closed:
			return
		}
	}
}

// openDevice makes the device of the namespace that the thread is in.
func openDevice(node int) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	fail := func(err error) (*os.File, error) { return nil, errors.Join(err, unix.Close(fd)) }
	request, err := unix.NewIfreq(deviceName)
	if err != nil {
		return fail(err)
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return fail(fmt.Errorf("make a device: %w", err))
	}
	for _, args := range [][]string{
		{"addr", "add", fmt.Sprintf("%s%d/24", subnet, node+1), "dev", deviceName},
		{"link", "set", deviceName, "up"},
		{"link", "set", "lo", "up"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fail(fmt.Errorf("ip %v: %w: %s", args, err, out))
		}
	}
	// Only now, or it would be polled before it is a device.
	if err := unix.SetNonblock(fd, true); err != nil {
		return fail(err)
	}
	return os.NewFile(uintptr(fd), deviceName), nil
}

func (n *namespaces) name() string { return "network namespaces, with a switch of the test's own" }

func (n *namespaces) addr(node int) string        { return fmt.Sprintf("%s%d:7000", subnet, node+1) }
func (n *namespaces) dials(int) map[string]string { return nil }
func (n *namespaces) links() *links               { return n.l }

func (n *namespaces) start(node int, cmd *exec.Cmd) error {
	// One that is paused would outlive a test that is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	done := make(chan error, 1)
	n.ends[node].do <- func() { done <- cmd.Start() }
	return <-done
}

func (n *namespaces) close() {
	close(n.closed)
	for _, e := range n.ends {
		_ = e.device.Close() // What was under way is lost.
	}
	n.open.Wait()
}

// A packet is under way.
type packet struct {
	bytes []byte
	due   time.Time
}

// packetsMax bounds the packets that are under way between two nodes; what is beyond
// is lost, as in any switch.
const packetsMax = 4096

// carry hands the packets of one node on to the others.
func (n *namespaces) carry(from int) {
	lines := make([]chan packet, len(n.ends))
	for to := range lines {
		lines[to] = make(chan packet, packetsMax)
		defer close(lines[to])
		n.open.Go(func() {
			for p := range lines[to] {
				time.Sleep(time.Until(p.due))
				n.deliver(from, to, p.bytes)
			}
		})
	}
	buffer := make([]byte, 64<<10)
	for {
		count, err := n.ends[from].device.Read(buffer)
		if err != nil {
			return
		}
		to, ok := recipient(buffer[:count])
		if !ok || to >= len(lines) || to == from {
			continue
		}
		delay := n.l.delay(from, to)
		if delay == 0 && len(lines[to]) == 0 {
			n.deliver(from, to, buffer[:count])
			continue
		}
		select {
		case lines[to] <- packet{append([]byte(nil), buffer[:count]...), time.Now().Add(delay)}:
		default:
		}
	}
}

// deliver hands a packet over, unless it is cut off now.
func (n *namespaces) deliver(from, to int, packet []byte) {
	if !n.l.isCut(from, to) {
		_, _ = n.ends[to].device.Write(packet) // One that is lost is sent again.
	}
}

// recipient returns to which node a packet goes.
func recipient(packet []byte) (node int, ok bool) {
	const headerBytes, destination = 20, 16
	if len(packet) < headerBytes || packet[0]>>4 != 4 {
		return 0, false
	}
	return int(packet[destination+3]) - 1, packet[destination+3] != 0
}
