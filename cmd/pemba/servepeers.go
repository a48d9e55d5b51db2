package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pembadb/pemba/api"
	"github.com/pembadb/pemba/api/client"
	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/cluster/peer"
)

// raftPort is the default port for the other nodes of a cluster.
const raftPort = "7000"

// peerFlags are the flags of serve that are about other nodes.
type peerFlags struct {
	bootstrap, replica            bool
	join, raftAddr, raftAdvertise string
	cert, key, ca                 string
	joinCA                        string
}

func (f *peerFlags) addFlags(flags *pflag.FlagSet) {
	flags.BoolVar(&f.bootstrap, "bootstrap", false, "make a cluster of one out of an empty directory, which others can join")
	flags.StringVar(&f.join, "join", "", "join a cluster with an empty directory: the gRPC `addresses` of members, separated by commas")
	flags.StringVar(&f.joinCA, "join-ca", "", "the authorities of the certificates that the members of --join show, a PEM `file`; empty for those of --peer-ca, or without that of this machine")
	flags.BoolVar(&f.replica, "replica", false, "join as a replica: it answers reads and has no vote")
	flags.StringVar(&f.raftAddr, "raft-addr", "", "the `address` for the other nodes; empty for port "+raftPort+" with --bootstrap or --join, on this machine only when there is no --peer-cert, and else for none")
	flags.StringVar(&f.raftAdvertise, "raft-advertise", "", "the `address` under which the other nodes reach this one; empty for --raft-addr, with the name of this machine where that has no host")
	flags.StringVar(&f.cert, "peer-cert", "", "speak mutual TLS with the other nodes, and show the certificate in this PEM `file`")
	flags.StringVar(&f.key, "peer-key", "", "the private key of --peer-cert, a PEM `file`")
	flags.StringVar(&f.ca, "peer-ca", "", "the authorities of the certificates of all nodes, a PEM `file`")
}

// configure fills in what the flags say of a node, and returns where its PeerTLS comes
// from, nil without TLS. Nothing is made before all of it is right.
func (f *peerFlags) configure(c *cluster.Config) (*api.PeerTLS, error) {
	switch {
	case f.bootstrap && f.join != "":
		return nil, errors.New("--bootstrap makes a new cluster and --join joins one that there is; leave one of them out")
	case f.joinCA != "" && f.join == "":
		return nil, errors.New("--join-ca goes with --join: it names the authorities of the members that are asked to take this node in")
	case f.replica && f.join == "":
		return nil, errors.New("--replica goes with --join: a cluster needs a node with a vote before it can have one without")
	}
	var identity *api.PeerTLS
	if f.cert+f.key+f.ca != "" {
		var err error
		if identity, err = api.LoadPeerTLS(f.cert, f.key, f.ca); err != nil {
			return nil, err
		}
		c.PeerTLS = identity.Config
	}
	c.Replica = f.replica
	listen, advertise, err := f.addrs(os.Hostname)
	if err != nil {
		return nil, err
	}
	c.NoBootstrap = advertise != "" && !f.bootstrap
	if c.RaftAddr = advertise; listen != advertise {
		c.RaftListenAddr = listen
	}
	return identity, nil
}

// addrs returns where to listen for other nodes, and where they reach this one; both
// are empty for a node that is to be alone.
func (f *peerFlags) addrs(hostname func() (string, error)) (listen, advertise string, err error) {
	host := "127.0.0.1"
	if f.cert != "" {
		host = ""
	}
	listen = f.raftAddr
	switch {
	case listen != "":
	case f.bootstrap || f.join != "" || f.raftAdvertise != "":
		listen = net.JoinHostPort(host, raftPort)
	default:
		return "", "", nil
	}
	listenHost, port, err := splitRaftAddr("--raft-addr", listen)
	if err != nil {
		return "", "", err
	}
	advertise = cmp.Or(f.raftAdvertise, listen)
	advertised, advertisedPort, err := splitRaftAddr("--raft-advertise", advertise)
	switch {
	case err != nil:
		return "", "", err
	case !isAnyHost(advertised):
	case f.raftAdvertise != "":
		return "", "", fmt.Errorf("--raft-advertise %s names no host; it is the address that other machines dial", f.raftAdvertise)
	default:
		if advertised, err = hostname(); err == nil && advertised == "" {
			err = errors.New("it is empty")
		}
		if err != nil {
			return "", "", fmt.Errorf("--raft-addr %s has no host, and the name of this machine is not known: %w; --raft-advertise says where others reach it", listen, err)
		}
		advertise = net.JoinHostPort(advertised, port)
	}
	if f.cert == "" {
		for _, a := range [...]struct{ flag, addr, host string }{{"--raft-addr", listen, listenHost}, {"--raft-advertise", advertise, advertised}} {
			if !peer.IsLoopback(a.host) {
				return "", "", fmt.Errorf("%s %s is an address of other machines too, and whoever reached it could change everything; "+
					"give the nodes certificates (--peer-cert, --peer-key and --peer-ca), or use a loopback address such as 127.0.0.1:%s", a.flag, a.addr, advertisedPort)
			}
		}
	}
	return listen, advertise, nil
}

// splitRaftAddr splits an address of a flag into its host, which may be empty, and its
// port, which may not be left to the system: the other nodes are told it.
func splitRaftAddr(flag, addr string) (host, port string, err error) {
	host, port, err = net.SplitHostPort(addr)
	if err != nil || port == "" || port == "0" {
		return "", "", fmt.Errorf("%s %q is not of the form host:port, as 127.0.0.1:%s", flag, addr, raftPort)
	}
	return host, port, nil
}

// isAnyHost reports whether a host means all addresses of this machine.
func isAnyHost(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

// joinPatience is how long a server that joins looks for a member that takes it in: the
// first node may still be starting. It is a variable for tests.
var joinPatience = time.Minute

// The pauses between two rounds through the members that were named, and how long one
// of them may take: as long as its leader may be looked for.
const (
	joinPauseMin = 100 * time.Millisecond
	joinPauseMax = 2 * time.Second
	joinTry      = 10 * time.Second
)

// A joiner asks the members of a cluster to take a node in.
type joiner struct {
	addrs  []string
	key    string
	tls    *tls.Config
	logger *slog.Logger
}

// joining returns what cluster.Config.Join is to be, nil without --join.
func (f *serveFlags) joining(logger *slog.Logger) (func(context.Context, cluster.Joining) (cluster.Joined, error), error) {
	if f.peers.join == "" {
		return nil, nil
	}
	j := &joiner{logger: logger}
	for addr := range strings.SplitSeq(f.peers.join, ",") {
		if addr = strings.TrimSpace(addr); addr == "" {
			continue
		}
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return nil, fmt.Errorf("--join %s: %q is not of the form host:port; the gRPC addresses of members are allowed, separated by commas", f.peers.join, addr)
		}
		j.addrs = append(j.addrs, addr)
	}
	if len(j.addrs) == 0 {
		return nil, fmt.Errorf("--join %q names no member; their gRPC addresses are allowed, separated by commas", f.peers.join)
	}
	var err error
	switch {
	case len(f.keys) > 0:
		j.key = f.keys[0]
	case f.keyFile != "":
		if j.key, err = api.OperatorKey(f.keyFile); err != nil {
			return nil, err
		}
		if j.key == "" {
			return nil, fmt.Errorf("--join needs an operator's key, and all keys of --key-file %s are bound to stores", f.keyFile)
		}
	}
	if f.peers.joinCA != "" && f.tlsCert == "" {
		return nil, errors.New("--join-ca is for members that speak TLS, and this server has no --tls-cert; all members have one or none has")
	}
	if f.tlsCert != "" {
		if j.tls, err = client.LoadTLS(cmp.Or(f.peers.joinCA, f.peers.ca), f.tlsCert, f.tlsKey); err != nil {
			return nil, err
		}
	}
	// What cannot be asked at all is a mistake in the flags.
	for _, addr := range j.addrs {
		config := j.client(addr)
		if err := config.Validate(); errors.Is(err, client.ErrKeyExposed) {
			return nil, fmt.Errorf("--join %s: the key of this server would go unencrypted to another machine; give it --tls-cert and --tls-key", addr)
		} else if err != nil {
			return nil, fmt.Errorf("--join: %w", err)
		}
	}
	return j.join, nil
}

func (j *joiner) client(addr string) client.Config {
	return client.Config{Addr: addr, Key: j.key, TLS: j.tls}
}

// join asks one member after the other until one takes the node in or refuses it.
func (j *joiner) join(ctx context.Context, node cluster.Joining) (cluster.Joined, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, joinPatience, fmt.Errorf("no member took this node in within %v", joinPatience))
	defer cancel()
	said := ""
	for pause := joinPauseMin; ; pause = min(2*pause, joinPauseMax) {
		var tried []error
		for _, addr := range j.addrs {
			joined, again, err := j.ask(ctx, addr, node)
			if err != nil && ctx.Err() != nil {
				// How the call ended says less than why: a signal, say.
				return cluster.Joined{}, fmt.Errorf("%w: %w", context.Cause(ctx), err)
			}
			if err == nil || !again {
				return joined, err
			}
			tried = append(tried, err)
		}
		err := errors.Join(tried...)
		if err.Error() != said {
			said = err.Error()
			j.logger.Info("waiting for a member of the cluster to take this node in", "node", node.ID, "members", strings.Join(j.addrs, ","), "reason", said)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return cluster.Joined{}, fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}

// ask asks one member; again says that it, or another, may do it later.
func (j *joiner) ask(ctx context.Context, addr string, node cluster.Joining) (joined cluster.Joined, again bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, joinTry)
	defer cancel()
	member, err := client.Dial(ctx, j.client(addr))
	if err != nil {
		var failure *client.DialError
		if errors.As(err, &failure) && failure.Answered {
			return joined, false, fmt.Errorf("--join: %w; %s", err, joinHint(failure))
		}
		return joined, true, err
	}
	defer func() { err = errors.Join(err, member.Close()) }()
	answer, err := member.Cluster.AddMember(ctx, &pembav1.AddMemberRequest{Id: node.ID, RaftAddr: node.RaftAddr, Empty: node.Empty})
	if err != nil {
		code := status.Code(err)
		again = code == codes.Unavailable || code == codes.DeadlineExceeded || code == codes.ResourceExhausted
		return joined, again, refusedBy(addr, err)
	}
	id, err := hex.DecodeString(answer.GetClusterId())
	if err != nil || len(id) != len(joined.ClusterID) {
		return joined, false, fmt.Errorf("the member at %s answers with the cluster id %q, which is none", addr, answer.GetClusterId())
	}
	copy(joined.ClusterID[:], id)
	return joined, false, nil
}

// refusedBy says what a member said, in a form that stands in other errors.
func refusedBy(addr string, err error) error {
	text := status.Convert(err).Message()
	reason, _ := client.Reason(err)
	if reason == "" {
		return fmt.Errorf("the member at %s cannot be asked: %s", addr, text)
	}
	if strings.HasPrefix(reason, "KEY_") || reason == "OPERATOR_ONLY" {
		text += "; a server presents the first of its own operators' keys, of --key, PEMBA_SERVE_KEY or --key-file"
	}
	return fmt.Errorf("the member at %s refuses: %s (%s)", addr, text, reason)
}

// joinHint says what may help where somebody answers with whom there is no speaking.
func joinHint(failure *client.DialError) string {
	switch {
	case failure.HTTP:
		return "--join wants the gRPC addresses of members"
	case failure.TLS == client.TLSMissing:
		return "the member seems to speak TLS, and this server has no --tls-cert; or it is the member's --raft-addr, and --join wants the gRPC address"
	case failure.TLS == client.TLSUnwanted:
		return "the member seems not to speak TLS, and this server has a --tls-cert"
	case failure.TLS == client.UnknownAuthority:
		return "--join-ca names the authorities that are trusted here; without it those of --peer-ca are, or those of this machine. " +
			"Whoever has a certificate of an authority of --peer-ca is a node, so no other belongs there"
	}
	return "--join wants the gRPC addresses of members, and members that speak TLS as this server does"
}
