package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A tlsFiles names the PEM files of a server's identity.
type tlsFiles struct {
	cert, key string
	// clientCA holds the authorities of which every client must show a
	// certificate; empty when clients need none.
	clientCA string
}

// validate says what is missing.
func (f tlsFiles) validate() error {
	switch {
	case f.cert == "" && f.key == "" && f.clientCA == "":
		return nil
	case f.cert == "" && f.key == "":
		return errors.New("authorities of clients (--client-ca) go with TLS; give the server's certificate (--tls-cert) and its key (--tls-key) too")
	case f.cert == "":
		return errors.New("a key of TLS (--tls-key) is given without its certificate; give that too (--tls-cert)")
	case f.key == "":
		return errors.New("a certificate of TLS (--tls-cert) is given without its key; give that too (--tls-key)")
	}
	_, err := f.load()
	return err
}

// load reads the files into the configuration of a connection.
func (f tlsFiles) load() (*tls.Config, error) {
	certPEM, err := readFile(f.cert)
	if err != nil {
		return nil, fmt.Errorf("TLS certificate: %w", err)
	}
	keyPEM, err := readFile(f.key)
	if err != nil {
		return nil, fmt.Errorf("TLS key: %w", err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("TLS certificate %s with key %s: %w", f.cert, f.key, err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	if f.clientCA == "" {
		return config, nil
	}
	caPEM, err := readFile(f.clientCA)
	if err != nil {
		return nil, fmt.Errorf("TLS authorities: %w", err)
	}
	config.ClientCAs = x509.NewCertPool()
	if !config.ClientCAs.AppendCertsFromPEM(caPEM) {
		return nil, fmt.Errorf("TLS authorities: %s holds no certificate in PEM form", f.clientCA)
	}
	config.ClientAuth = tls.RequireAndVerifyClientCert
	// A resumed session would not be judged by authorities that were changed
	// meanwhile.
	config.SessionTicketsDisabled = true
	return config, nil
}

// readFile reads a small file of the configuration.
func readFile(name string) ([]byte, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(file, fileBytesMax+1))
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, err
	}
	if len(content) > fileBytesMax {
		return nil, fmt.Errorf("%s has more than %d bytes", name, fileBytesMax)
	}
	return content, nil
}

// A tlsIdentity is the configuration in force. Connections that are open keep
// the one they began with.
type tlsIdentity struct {
	current atomic.Pointer[tls.Config]
}

// config returns the configuration of a listener that speaks the protocols.
func (t *tlsIdentity) config(protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: protocols,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			config := t.current.Load().Clone()
			config.NextProtos = protocols
			return config, nil
		},
	}
}

// A PeerTLS is the identity that a node shows to the other nodes of its cluster, and
// the authorities that it expects them to be signed by, from PEM files. Connections are
// made with what the files say at the time. Many goroutines may use it at once.
type PeerTLS struct {
	identity tlsIdentity
	files    *fileSet
}

// LoadPeerTLS reads the certificate of a node with its chain, its key, and the
// authorities of all nodes. The certificate must be good for servers and for clients,
// and name the host under which the others reach the node. The errors name the flags
// of serve.
func LoadPeerTLS(cert, key, ca string) (*PeerTLS, error) {
	for _, f := range [...]struct{ name, flag, what string }{
		{cert, "--peer-cert", "the certificate that this node shows to others"},
		{key, "--peer-key", "the key of that certificate"},
		{ca, "--peer-ca", "the authorities that sign the certificates of the nodes"},
	} {
		if f.name == "" {
			return nil, fmt.Errorf("api: TLS between nodes needs three files, and %s (%s) is not given", f.what, f.flag)
		}
	}
	p := &PeerTLS{}
	files := tlsFiles{cert: cert, key: key, clientCA: ca}
	var err error
	p.files, err = newFileSet("TLS between nodes", []string{cert, key, ca}, func() error {
		config, err := files.load()
		if err == nil {
			config.RootCAs = config.ClientCAs
			p.identity.current.Store(config)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("api: between nodes: %w", err)
	}
	return p, nil
}

// Config returns the configuration in force, for cluster.Config.PeerTLS. It must not be
// changed.
func (p *PeerTLS) Config() *tls.Config { return p.identity.current.Load() }

// Follow reads the files again when they change, until ctx ends. What cannot be used
// is logged, and what was read before stays in force. It is called once.
func (p *PeerTLS) Follow(ctx context.Context, logger *slog.Logger) {
	follow(ctx, logger, []*fileSet{p.files})
}

// filesPause is how often files of the configuration are looked at. A change is
// taken up when the files have rested for one pause, so that none is read while
// it is being written.
const filesPause = 250 * time.Millisecond

// A fileSet is some files of the configuration that are loaded together.
type fileSet struct {
	// what names them in the log.
	what  string
	names []string
	// load takes them up; when it fails, what was loaded before stays in force.
	load func() error
	// loaded are the states that were loaded last, or failed to; seen those of
	// the last look. Only follow touches them.
	loaded, seen []fileState
}

// A fileState changes when a file is written or replaced.
type fileState struct {
	info os.FileInfo
	err  string
}

func (a fileState) equal(b fileState) bool {
	if a.info == nil || b.info == nil {
		return a.info == nil && b.info == nil && a.err == b.err
	}
	return a.info.ModTime().Equal(b.info.ModTime()) && a.info.Size() == b.info.Size() && os.SameFile(a.info, b.info)
}

func (s *fileSet) look() []fileState {
	states := make([]fileState, len(s.names))
	for i, name := range s.names {
		info, err := os.Stat(name)
		if err != nil {
			states[i].err = err.Error()
			continue
		}
		states[i].info = info
	}
	return states
}

// newFileSet loads the files for the first time. It looks before it reads, so
// that what is written in between counts as a change.
func newFileSet(what string, names []string, load func() error) (*fileSet, error) {
	s := &fileSet{what: what, names: names, load: load}
	s.loaded = s.look()
	s.seen = s.loaded
	return s, load()
}

// poll takes up a change that has rested.
func (s *fileSet) poll(logger *slog.Logger) {
	states := s.look()
	rested := slices.EqualFunc(states, s.seen, fileState.equal)
	s.seen = states
	if !rested || slices.EqualFunc(states, s.loaded, fileState.equal) {
		return
	}
	s.loaded = states
	if err := s.load(); err != nil {
		logger.Error("changed files cannot be used; what was read before stays in force", "what", s.what, "error", err)
		return
	}
	logger.Info("changed files are in force", "what", s.what)
}

// follow polls the sets until ctx ends.
func follow(ctx context.Context, logger *slog.Logger, sets []*fileSet) {
	ticker := time.NewTicker(filesPause)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			for _, s := range sets {
				s.poll(logger)
			}
		}
	}
}

// A boundedListener has at most so many connections open; one beyond is closed at
// once, so that its client learns of it instead of waiting.
type boundedListener struct {
	net.Listener
	max     int64
	open    atomic.Int64
	refused prometheus.Counter
}

// Accept returns the next connection that there is room for.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= l.max {
			return &boundedConn{Conn: conn, listener: l}, nil
		}
		l.open.Add(-1)
		l.refused.Inc()
		// Nothing was sent on it that closing could lose.
		_ = conn.Close()
	}
}

// A boundedConn gives its place back when it is closed.
type boundedConn struct {
	net.Conn
	listener *boundedListener
	once     sync.Once
	// stalled counts the streams over gRPC that ended since nobody took them: see
	// leftBehind.
	stalled atomic.Int64
}

// Close closes the connection; again is harmless.
func (c *boundedConn) Close() error {
	c.once.Do(func() { c.listener.open.Add(-1) })
	return c.Conn.Close()
}
