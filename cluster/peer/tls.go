package peer

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
)

// protocol is what the two sides of TLS agree on (ALPN), so that a connection
// that was meant for another port with the same certificates ends there.
const protocol = "pemba-peer"

// baseTLS returns what both roles have in common.
func baseTLS(from *tls.Config) (*tls.Config, error) {
	if from == nil {
		return nil, errors.New("there is no configuration")
	}
	if len(from.Certificates) == 0 && (from.GetCertificate == nil || from.GetClientCertificate == nil) {
		return nil, errors.New("there is no certificate; a node shows one in both roles")
	}
	if from.RootCAs == nil && from.ClientCAs == nil {
		return nil, errors.New("RootCAs and ClientCAs are nil; the authority of the cluster must be named, for the system's would let anyone in")
	}
	c := from.Clone()
	if c.RootCAs == nil {
		c.RootCAs = c.ClientCAs
	}
	if c.ClientCAs == nil {
		c.ClientCAs = c.RootCAs
	}
	c.MinVersion = max(c.MinVersion, tls.VersionTLS13)
	c.NextProtos = []string{protocol}
	c.InsecureSkipVerify = false
	// It could replace all that is said here.
	c.GetConfigForClient = nil
	// A ticket would let in a peer on the word of an authority that was removed
	// since. Connections are few and last long.
	c.SessionTicketsDisabled = true
	c.ClientSessionCache = nil
	return c, nil
}

// serverTLS returns the configuration of the accepting side.
func serverTLS(from *tls.Config) (*tls.Config, error) {
	c, err := baseTLS(from)
	if err != nil {
		return nil, err
	}
	c.ClientAuth = tls.RequireAndVerifyClientCert
	return c, nil
}

// clientTLS returns the configuration of the dialing side.
func clientTLS(from *tls.Config, addr string) (*tls.Config, error) {
	c, err := baseTLS(from)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil || host == "" {
		return nil, fmt.Errorf("the address must be host:port, since the certificate is looked at for the host: %q", addr)
	}
	c.ServerName = host
	return c, nil
}
