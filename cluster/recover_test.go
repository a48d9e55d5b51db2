package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestJoinRecoveredInterrupted: a node that joined a recovered cluster and was stopped
// before it had come to the entry that brought the new id goes on. Its state said the id
// of before, so that it was refused by its leader, and refused it.
func TestJoinRecoveredInterrupted(t *testing.T) {
	t.Parallel()
	config := peerConfig(t, "n1")
	n1 := open(t, config)
	eventually(t, "n1 is ready", func() bool { return n1.Ready() == nil })
	writeSchema(t, n1)
	const count = 5
	for i := range count {
		write(t, n1, create(viewer(fmt.Sprint(i), "anna")))
	}
	was := n1.ClusterID()
	closeNode(t, n1)
	// What n2 will have when it is stopped: the log up to here, from its beginning.
	config2 := peerConfig(t, "n2")
	if err := os.CopyFS(config2.DataDir, os.DirFS(config.DataDir)); err != nil {
		t.Fatal(err)
	}
	recovered, err := Recover(testContext(t), config)
	if err != nil {
		t.Fatal(err)
	}
	n1 = open(t, config)
	eventually(t, "n1 is ready again", func() bool { return n1.Ready() == nil })
	joined, err := n1.AddMember(testContext(t), Joining{ID: "n2", RaftAddr: config2.RaftAddr, Empty: true})
	if err != nil {
		t.Fatal(err)
	}
	if joined.ClusterID != recovered.ClusterID {
		t.Fatalf("n2 is told of cluster %x, and it is %x", joined.ClusterID, recovered.ClusterID)
	}
	writeFile(t, config2.DataDir, nodeFile, "n2\n")
	writeFile(t, config2.DataDir, memberFile, membership{cluster: joined.ClusterID}.String())

	n2 := open(t, config2)
	if id := n2.ClusterID(); id != recovered.ClusterID {
		t.Errorf("n2 belongs to cluster %x, not %x; it was %x before", id, recovered.ClusterID, was)
	}
	eventually(t, "n2 is ready and votes", func() bool { return n2.Ready() == nil && n2.voters() == 2 })
	mustHave(t, n2, count, "anna")
	if id := n2.db().ClusterID(); id != recovered.ClusterID {
		t.Errorf("the state of n2 is of cluster %x, not %x", id, recovered.ClusterID)
	}
}

// TestRecoverTwice: a recovery that was cut short and is finished by another one tells of
// the cluster that was lost. It told of what the first try had made: of a cluster of one,
// under its new id.
func TestRecoverTwice(t *testing.T) {
	t.Parallel()
	var configs []Config
	nodes := openCluster(t, 3, func(c *Config) { configs = append(configs, *c) })
	writeSchema(t, nodes[0])
	last := write(t, nodes[0], create(viewer("0", "anna"))).Revision
	was := nodes[0].ClusterID()
	eventually(t, "n2 has the tuple", func() bool { return nodes[1].db().Applied().Revision >= last })
	for _, n := range nodes {
		closeNode(t, n)
	}
	config := configs[1]
	begin := func() *Node {
		c := config
		c.Join, c.RaftAddr, c.recovering = nil, "", true
		return open(t, c)
	}
	// It ends before it made another id.
	closeNode(t, begin())
	refusedWith(t, config, "was begun and not finished")
	// It ends behind that, but before it is finished: MEMBER cannot be removed.
	n := begin()
	member := filepath.Join(config.DataDir, memberFile)
	if err := os.Rename(member, member+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(member, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	var first Recovered
	if err := n.renew(testContext(t), &first); err == nil {
		t.Fatal("the recovery was finished")
	}
	if id := n.db().ClusterID(); id == was || id != first.ClusterID {
		t.Fatalf("the state is of cluster %x, which was %x and is to be %x", id, was, first.ClusterID)
	}
	closeNode(t, n)
	if err := os.RemoveAll(member); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, config, "was begun and not finished")

	// MEMBER is gone as after a crash behind its removal.
	recovered, err := Recover(testContext(t), config)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range []Recovered{first, recovered} {
		if !slices.Equal(r.Lost, []string{"n1", "n3"}) || r.Was != was {
			t.Errorf("try %d lost %q of cluster %x, and it was n1 and n3 of %x", i+2, r.Lost, r.Was, was)
		}
	}
	n = open(t, config)
	mustHave(t, n, 1, "anna")
	if id := n.ClusterID(); id != recovered.ClusterID || id == was || id == first.ClusterID {
		t.Errorf("the cluster is %x, was %x, then %x, and was to be %x", id, was, first.ClusterID, recovered.ClusterID)
	}
}

// TestRecoveryIsKept: what RECOVER says is read again, and what it does not say is no
// hindrance.
func TestRecoveryIsKept(t *testing.T) {
	t.Parallel()
	d := &dataDir{path: t.TempDir()}
	for _, want := range []recovery{{}, {was: [16]byte{1, 15: 255}}, {lost: []string{"n1"}}, {was: [16]byte{7}, lost: []string{"a.b", "n-1", "Z_9"}}} {
		if err := d.beginRecovery(want); err != nil {
			t.Fatal(err)
		}
		if got := d.recovery(); got.was != want.was || !slices.Equal(got.lost, want.lost) {
			t.Errorf("RECOVER is read as %v, and was %v", got, want)
		}
	}
	for _, content := range []string{"", "recovery was begun\n", "cluster xyz\nlost\n", "cluster 0102\n", "\x00\x00"} {
		writeFile(t, d.path, recoverFile, content)
		if got := d.recovery(); got.was != [16]byte{} || len(got.lost) > 0 {
			t.Errorf("RECOVER says %q and is read as %v", content, got)
		}
	}
}
