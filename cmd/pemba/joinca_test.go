package main

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestJoinCA: the members' certificates for callers are of another authority than those
// for each other, which is told apart with --join-ca.
func TestJoinCA(t *testing.T) {
	members := testMembers(t, 2)
	folder := t.TempDir()
	authorityFile := func(name string, authority *testAuthority) string {
		file := filepath.Join(folder, name)
		writeFile(t, file, authority.pem)
		return file
	}
	nodes, callers := newTestAuthority(t), newTestAuthority(t)
	nodesCA, callersCA := authorityFile("nodes.pem", nodes), authorityFile("callers.pem", callers)
	flags := func() []string {
		shown := callers.issue(t, callersCA)
		return append(nodes.issue(t, nodesCA), "--tls-cert", shown[1], "--tls-key", shown[3])
	}
	first, second := flags(), flags()
	t.Setenv("PEMBA_CA_CERT", callersCA)
	members[0].start(t, append(first, "--bootstrap")...)

	patience := joinPatience
	joinPatience = 300 * time.Millisecond
	join := []string{"--join", members[0].grpcAddr}
	serve := func(more ...string) string {
		return fails(t, "", append(append([]string{
			"serve", "--data-dir", members[1].dir, "--node-id", "n2", "--grpc-addr", members[1].grpcAddr, "--http-addr", "none",
			"--raft-addr", members[1].raftAddr, "--key", "k", "--log-level", "error",
		}, join...), more...)...)
	}
	if said := serve(second...); !strings.Contains(said, "--join-ca names the authorities") {
		t.Errorf("with the authority of the nodes alone: %s", said)
	}
	if said := serve("--join-ca", callersCA); !strings.Contains(said, "this server has no --tls-cert") {
		t.Errorf("without a certificate: %s", said)
	}
	if said := fails(t, "", "serve", "--data-dir", members[1].dir, "--join-ca", callersCA); !strings.Contains(said, "--join-ca goes with --join") {
		t.Errorf("without --join: %s", said)
	}
	joinPatience = patience

	members[1].start(t, append(append(second, join...), "--join-ca", callersCA)...)
	members[1].await(t, "a cluster of two", hasVoters("n1", "n2"))
	for _, m := range members {
		m.end(t, syscall.SIGTERM)
	}
}
