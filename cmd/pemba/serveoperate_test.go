package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// logged ends a member and returns the lines of its log that hold a text.
func (m *testMember) logged(t *testing.T, text string) []string {
	t.Helper()
	m.end(t, syscall.SIGTERM)
	var found []string
	for line := range strings.Lines(m.stderr.String()) {
		if strings.Contains(line, text) {
			found = append(found, line)
		}
	}
	return found
}

// TestServeNoBootstrap: a server with an address for other nodes makes a new cluster when
// it is told to, and not because its directory is empty; one without makes one of its own.
func TestServeNoBootstrap(t *testing.T) {
	member := testMembers(t, 1)[0]
	serve := []string{"serve", "--data-dir", member.dir, "--grpc-addr", member.grpcAddr, "--http-addr", "none", "--key", "k", "--log-level", "error"}
	for _, flag := range []string{"--raft-addr", "--raft-advertise"} {
		said := fails(t, "", append(serve, flag, member.raftAddr)...)
		for _, part := range []string{member.dir + " is empty", "--join", "--bootstrap", "its disk may not be there"} {
			if !strings.Contains(said, part) {
				t.Errorf("%s: %s\ndoes not say %s", flag, said, part)
			}
		}
	}
	member.start(t, "--bootstrap")
	member.end(t, syscall.SIGTERM)
	member.start(t)
	member.await(t, "the cluster that it made", hasVoters("n1"))
	member.end(t, syscall.SIGTERM)

	alone := startProcess(t, []string{"PEMBA_SERVE_KEY=k"}, "serve", "--data-dir", filepath.Join(t.TempDir(), "data"), "--grpc-addr", member.grpcAddr, "--http-addr", "none")
	alone.line(t, "gRPC on")
	alone.end(t, syscall.SIGTERM)
}

// TestServeJoinUnused: who gives --join with the directory of another cluster, here one of
// its own, is told that it does nothing.
func TestServeJoinUnused(t *testing.T) {
	members := testMembers(t, 2)
	members[0].start(t, "--bootstrap")
	members[1].start(t, "--bootstrap")
	members[1].end(t, syscall.SIGTERM)
	members[1].start(t, "--join", members[0].grpcAddr)
	members[1].await(t, "it is alone", hasVoters("n2"))
	if lines := members[1].logged(t, "--join is not used"); len(lines) != 1 || !strings.Contains(lines[0], "level=WARN") || !strings.Contains(lines[0], "the only one of its cluster") {
		t.Errorf("it says %s", lines)
	}
	members[0].end(t, syscall.SIGTERM)
}

// TestPeerTLSLogged: a wrong certificate stands in the log of the node that has it and in
// that of the leader, and a node that never heard of the cluster says that, and where to
// ask.
func TestPeerTLSLogged(t *testing.T) {
	members := testMembers(t, 2)
	old, next := newTestAuthority(t), newTestAuthority(t)
	oldCA, bothCA := filepath.Join(t.TempDir(), "ca.pem"), filepath.Join(t.TempDir(), "ca.pem")
	writeFile(t, oldCA, old.pem)
	writeFile(t, bothCA, append(slices.Clone(old.pem), next.pem...))
	members[0].start(t, append(old.issue(t, oldCA), "--bootstrap")...)
	members[1].start(t, append(next.issue(t, bothCA), "--join", members[0].grpcAddr)...)
	members[0].await(t, "the refusal of the second", func(c clusterJSON) bool {
		return len(c.Members) == 2 && strings.Contains(c.Members[1].Error, "certificate")
	})
	const told = "n2 knows no node of the cluster yet: it joined, and no leader has reached it; ask a member, which has a line for it that says why\n"
	if got := members[1].must(t, "", "cluster", "status"); got != told {
		t.Errorf("it says %q", got)
	}
	var status clusterJSON
	if err := json.Unmarshal([]byte(members[1].must(t, "", "cluster", "status", "-o", "json")), &status); err != nil || status.NodeID != "n2" || len(status.Members) != 0 {
		t.Errorf("it says %+v, %v", status, err)
	}
	for i, m := range members {
		other := []string{"peer=n2", "from=127.0.0.1:"}[i]
		warned := m.logged(t, "level=WARN msg=\"TLS ")
		if !slices.ContainsFunc(warned, func(line string) bool { return strings.Contains(line, other) && strings.Contains(line, "certificate") }) {
			t.Errorf("%s warns of %s", m.id, warned)
		}
		if len(warned) > 2 { // As one who dials, and one who is dialed.
			t.Errorf("%s warns %d times", m.id, len(warned))
		}
	}
}

// TestChangeWithoutQuorum: who wants to change a cluster that has lost its majority hears
// that there is no leader, and what is left to do, and nothing of the node that was asked
// in vain.
func TestChangeWithoutQuorum(t *testing.T) {
	members := testMembers(t, 2)
	members[0].start(t, "--bootstrap")
	members[1].start(t, "--join", members[0].grpcAddr, "--wait-max=100ms")
	members[1].await(t, "a cluster of two", hasVoters("n1", "n2"))
	members[0].kill(t)
	members[1].await(t, "the loss of the leader", func(c clusterJSON) bool { return c.LeaderID == "" })
	for _, args := range [][]string{{"remove", "n1"}, {"remove", "n1", "--force"}, {"transfer", "n2"}} {
		said := fails(t, "", append([]string{"cluster", "--addr", members[1].grpcAddr, "--key", "k"}, args...)...)
		if !strings.Contains(said, "no leader is known here; there is one when more than half of the voters run") || !strings.Contains(said, "pemba cluster recover --help") ||
			strings.Contains(said, "rpc error") || strings.Contains(said, "node n1") {
			t.Errorf("%s: %s", args, said)
		}
	}
	members[1].end(t, syscall.SIGTERM)
}

// TestRecoverSays: without --yes the command says how far the node's data goes, which is
// what an operator chooses by, changes nothing, and says its warning also where the data
// cannot be read.
func TestRecoverSays(t *testing.T) {
	member := testMembers(t, 1)[0]
	member.start(t, "--bootstrap")
	status := member.await(t, "it leads", hasVoters("n1"))
	member.end(t, syscall.SIGTERM)
	var first string
	for range 2 {
		said := fails(t, "", "cluster", "recover", "--data-dir", member.dir)
		for _, part := range []string{
			"nothing was changed; --yes does it", member.dir + " is node n1 of cluster " + status.ClusterID + "\n",
			fmt.Sprintf("\nits last entry has term %d and index %d\n", status.Members[0].Term, status.Members[0].CommittedRevision),
			"\nits newest change is of 2", "\nTake the node whose last entry has the highest term",
		} {
			if !strings.Contains(said, part) {
				t.Errorf("%s\ndoes not say %q", said, part)
			}
		}
		if first == "" {
			first = said
		} else if said != first {
			t.Errorf("it says %s\nand then %s", first, said)
		}
	}
	missing := filepath.Join(t.TempDir(), "missing")
	if said := fails(t, "", "cluster", "recover", "--data-dir", missing); !strings.Contains(said, "How far "+missing+" goes cannot be told: ") || !strings.Contains(said, "Take the node") {
		t.Errorf("of no directory it says %s", said)
	}
	member.start(t)
	if said := member.await(t, "it leads again", hasVoters("n1")); said.ClusterID != status.ClusterID {
		t.Errorf("it is of cluster %s now", said.ClusterID)
	}
	member.end(t, syscall.SIGTERM)
}
