package cluster

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestFirstStateIsLink: a node whose first state is on another disk, by a link, starts where
// a state was being sent when it was killed, and removes that one. The link was not seen:
// the state that had not come into force looked like the only one, and every start was
// refused.
func TestFirstStateIsLink(t *testing.T) {
	t.Parallel()
	config := testConfig(t, t.TempDir())
	n := open(t, config)
	writeSchema(t, n)
	write(t, n, create(viewer("0", "anna")))
	closeNode(t, n)
	first, elsewhere := filepath.Join(config.DataDir, stateFolder), filepath.Join(t.TempDir(), "large")
	if err := os.Rename(first, elsewhere); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, first); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(config.DataDir, sentFolder(7)), 0o700); err != nil {
		t.Fatal(err)
	}
	n = open(t, config)
	mustHave(t, n, 1, "anna")
	if left := folders(t, config.DataDir); !slices.Equal(left, nil) {
		t.Errorf("beside the link, the folders %q are left", left)
	}
}
