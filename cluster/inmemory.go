package cluster

import (
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/pembadb/pemba/graph"
)

// memoryPath stands in messages for the data directory that a node in memory has
// not.
const memoryPath = "memory"

// newMemoryDir stands for openDataDir where there is no directory: the node is a
// new one each time.
func newMemoryDir(_, wantNodeID string) (*dataDir, error) {
	id, err := newNodeID(wantNodeID)
	if err != nil {
		return nil, err
	}
	return &dataDir{path: memoryPath, nodeID: id, graph: stateFolder}, nil
}

// How much of the log a node in memory has before it is cut, and what is left then.
const (
	memorySnapshotThreshold = 1024
	memorySnapshotBytes     = 4 << 20
	memoryTrailingLogs      = 64
)

// memoryCacheBytes is the size of the graph's cache in memory, unless another is
// configured. The files are there already; it only saves taking blocks apart again.
const memoryCacheBytes = 16 << 20

// inMemory puts a graph on a file system in memory.
func inMemory(config graph.Config, fs vfs.FS) graph.Config {
	config.FS = fs
	if config.CacheBytes == 0 {
		config.CacheBytes = memoryCacheBytes
	}
	return config
}

// stateBytes returns what the graph takes on the disk; zero where it is on none.
func (n *Node) stateBytes() (int64, error) {
	if n.config.InMemory {
		return 0, nil
	}
	return occupiedBytes(n.dir.folder(n.machine.Load().folder))
}

// removeFolder removes a folder of a graph, if it is there.
func (n *Node) removeFolder(name string) error {
	if n.config.InMemory {
		return n.memory.RemoveAll(n.dir.folder(name))
	}
	return os.RemoveAll(n.dir.folder(name))
}
