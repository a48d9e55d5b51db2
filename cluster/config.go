package cluster

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/pembadb/pemba/cluster/badgerlog"
	"github.com/pembadb/pemba/cluster/peer"
	"github.com/pembadb/pemba/engine"
	"github.com/pembadb/pemba/graph"
)

// A Config says how a Node runs. The zero value of each field but DataDir is a
// good default.
type Config struct {
	// DataDir is the directory of everything the node keeps. It is made with
	// mode 0700 when it is missing, and belongs to one process at a time. It is
	// empty where InMemory is set.
	DataDir string

	// InMemory keeps everything in memory, for tests: nothing is written to a
	// disk, nothing is synced, and all is gone after Close. Changes take the same
	// way through Raft, its log and the graph as they do with a DataDir. There is
	// no free space to run out of and there are no tables to verify. What bounds
	// the memory is what is stored, the state with its past, and some tens of MiB
	// for the log, of which little is kept unless SnapshotBytes and TrailingLogs say
	// otherwise: no node lags behind this one.
	InMemory bool

	// NodeID names the node within its cluster: 1 to 64 letters, digits, '-',
	// '_' and '.'. It is decided when the data directory is made and kept
	// there; empty means the kept one, or one that is made up. Another id than
	// the kept one is refused.
	NodeID string

	// RaftAddr is the host and port under which the other nodes of a cluster
	// reach this one, and RaftListenAddr where it listens for them; empty for
	// RaftAddr. A node that has neither RaftAddr nor Join nor peers in its data
	// directory opens no port, and nobody can join it. A used directory remembers
	// the address; when another one is given, the other nodes are told.
	RaftAddr       string
	RaftListenAddr string

	// PeerTLS returns the identity of this node and the authorities of the
	// others, for every connection in either direction, anew each time: its
	// Certificates, RootCAs and ClientCAs count. Nil means that peers are trusted
	// unseen; RaftListenAddr must then be a loopback address.
	PeerTLS func() *tls.Config

	// PeerNetwork connects the nodes. Nil means TCP.
	PeerNetwork peer.Network

	// Join asks a cluster to take this node in, when its data directory is empty.
	// It is given what the cluster must know, and returns what it answered. It is
	// called once by Open, and where an earlier start was cut short. Nil means that
	// an empty directory becomes a cluster of one.
	Join func(context.Context, Joining) (Joined, error)

	// NoBootstrap refuses an empty data directory that is not to join, instead of making
	// it a cluster of one: it may be that of a member, whose disk is not there.
	NoBootstrap bool

	// Replica lets the node that joins stay without a vote: it serves reads, and
	// its loss matters to nobody else.
	Replica bool

	// ElectionTimeout is how long a node waits for a leader before it offers
	// itself, at random up to twice as long. Zero means 400 ms where there is a port
	// for peers, and else 50 ms, since a node that is alone has no one to wait for.
	// The least allowed is 10 ms.
	ElectionTimeout time.Duration

	// CommitPause is how long a leader waits, at random up to twice as long, for
	// another entry before it tells the others by itself that the last one is
	// agreed. Zero means 2 ms.
	CommitPause time.Duration

	// MemberPause is the time between two looks of a node at its own place among
	// the members. Zero means 250 ms.
	MemberPause time.Duration

	// ClockPause is the time between two comparisons of this node's clock with those
	// of the others. Zero means 1 s.
	ClockPause time.Duration

	// ChecksumPause is the time between two comparisons of this node's state with
	// that of the others. Zero means 10 s.
	ChecksumPause time.Duration

	// StateBytesPerSecond bounds how fast a whole state is sent to another node,
	// so that checks here stay fast. Zero means 20 MiB; negative means no bound.
	StateBytesPerSecond int64

	// Version is what this program calls itself, for the status of the cluster.
	Version string

	// MaxAppendEntries bounds how many entries share one sync of the log: 1 to
	// 1024, zero for 512.
	MaxAppendEntries int

	// SnapshotThreshold and SnapshotBytes say after how many entries and bytes
	// of entries, whichever is first, the state is flushed and the log cut.
	// They bound the log's size, and how much is replayed after a crash. Zero
	// means 16,384 entries and 32 MiB.
	SnapshotThreshold uint64
	SnapshotBytes     int64

	// SnapshotChanges is how many tuples one entry changes for the state to be
	// flushed behind it, though the entry itself is small: the commit of a staged
	// import, a delete by filter. The node that proposed it answers only then; the
	// others flush within SnapshotInterval. To apply such an
	// entry again after a crash takes about three microseconds a tuple, and the
	// node answers nothing meanwhile. Zero means 20,000.
	SnapshotChanges int

	// SnapshotInterval is the least time between two such cuts. Zero means 1 s.
	SnapshotInterval time.Duration

	// TrailingLogs is how many entries a cut leaves in the log for nodes that
	// lag behind; fewer when they hold more than SnapshotBytes, and at least
	// one. Zero means 10,240.
	TrailingLogs uint64

	// EntryBytesMax bounds a mutation as it stands in the log. Zero means what
	// the log can take, some 900 KiB with its default settings; more than
	// that is refused by Open.
	EntryBytesMax int

	// ProposalsMax and ProposalBytesMax bound the writes that are under way at
	// once, by number and by bytes of their entries; what is beyond fails with
	// ErrTooBusy. Zero means 8,192 and 64 MiB.
	ProposalsMax     int
	ProposalBytesMax int64

	// WaitMax bounds how long a read waits for its revision, and for how long a write
	// is tried again while the leader changes, beside the caller's own deadline. A write
	// whose first try may have made it is tried again for half of graph.RequestLifetime
	// at most, however long WaitMax is. Zero means 5 s.
	WaitMax time.Duration

	// CollectPause is the least time between two rounds in which the leader
	// ends tuples whose lifetime is over, and CollectLimit how many one entry
	// ends. A round comes when the next lifetime ends, and at least every
	// hundred pauses, in case the clock was set. Zero means 100 ms and 1,000.
	CollectPause time.Duration
	CollectLimit int

	// PrunePause is the time between two rounds in which the leader looks for
	// stores that keep more of the past than their settings say, and for staged
	// changes that nobody goes on with. Zero means a minute.
	PrunePause time.Duration

	// WatchersMax bounds how many watchers follow stores at once; what is beyond
	// fails with ErrTooBusy. Zero means 10,000.
	WatchersMax int

	// VerifyBytesPerSecond is how fast the node reads all its tables after each
	// start, to find damage before it matters. Zero means 64 MiB; negative means
	// that it does not. A node in memory never does.
	VerifyBytesPerSecond int64

	// recovering opens the node for Recover.
	recovering bool
	// transferStuck is transferStuck, but for tests; zero for that.
	transferStuck time.Duration

	// Graph, Engine and Log configure the parts. Dir, InMemory, Logger, OnFatal,
	// FS and CommitIndex in them are set by Open and must be empty.
	Graph  graph.Config
	Engine engine.Config
	Log    badgerlog.Config

	// Logger receives a line for each change of state. Nil means slog.Default.
	Logger *slog.Logger

	// OnFatal is called once, on a goroutine of its own, with the fault after
	// which the node answers nothing more. The process should end then, with a
	// failure. Nil means that the node only logs the fault and stops. What goes
	// wrong while Open runs is Open's error instead.
	OnFatal func(error)

	// Now is the node's clock. Nil means time.Now.
	Now func() time.Time
}

// aloneAddr stands in the configuration of a node that has no port.
const aloneAddr = "127.0.0.1:7000"

// withDefaults returns c with each zero value replaced by its default.
func (c Config) withDefaults() Config {
	if c.CommitPause == 0 {
		c.CommitPause = DefaultCommitPause
	}
	if c.MemberPause == 0 {
		c.MemberPause = 250 * time.Millisecond
	}
	if c.ClockPause == 0 {
		c.ClockPause = time.Second
	}
	if c.ChecksumPause == 0 {
		c.ChecksumPause = checksumPauseDefault
	}
	if c.StateBytesPerSecond == 0 {
		c.StateBytesPerSecond = DefaultStateBytesPerSecond
	}
	if c.MaxAppendEntries == 0 {
		c.MaxAppendEntries = 512
	}
	if c.InMemory {
		c.SnapshotThreshold = cmp.Or(c.SnapshotThreshold, memorySnapshotThreshold)
		c.SnapshotBytes = cmp.Or(c.SnapshotBytes, memorySnapshotBytes)
		c.TrailingLogs = cmp.Or(c.TrailingLogs, memoryTrailingLogs)
	}
	if c.SnapshotThreshold == 0 {
		c.SnapshotThreshold = 16 << 10
	}
	if c.SnapshotBytes == 0 {
		c.SnapshotBytes = 32 << 20
	}
	if c.SnapshotChanges == 0 {
		c.SnapshotChanges = 20_000
	}
	if c.SnapshotInterval == 0 {
		c.SnapshotInterval = time.Second
	}
	if c.TrailingLogs == 0 {
		c.TrailingLogs = 10 << 10
	}
	if c.ProposalsMax == 0 {
		c.ProposalsMax = 8 << 10
	}
	if c.ProposalBytesMax == 0 {
		c.ProposalBytesMax = 64 << 20
	}
	if c.WaitMax == 0 {
		c.WaitMax = 5 * time.Second
	}
	if c.CollectPause == 0 {
		c.CollectPause = 100 * time.Millisecond
	}
	if c.CollectLimit == 0 {
		c.CollectLimit = 1000
	}
	if c.PrunePause == 0 {
		c.PrunePause = time.Minute
	}
	if c.WatchersMax == 0 {
		c.WatchersMax = 10_000
	}
	if c.VerifyBytesPerSecond == 0 {
		c.VerifyBytesPerSecond = 64 << 20
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// Validate says which field, if any, holds a value that is not allowed. Open
// calls it.
func (c Config) Validate() error {
	c = c.withDefaults()
	switch {
	case c.InMemory && c.DataDir != "":
		return fmt.Errorf("cluster: Config.InMemory is set and Config.DataDir is %q: a node in memory has no directory", c.DataDir)
	case !c.InMemory && c.DataDir == "":
		return errors.New("cluster: Config.DataDir is empty: name the directory for the node's data")
	}
	if c.NodeID != "" {
		if err := validateNodeID(c.NodeID); err != nil {
			return fmt.Errorf("cluster: Config.NodeID: %w", err)
		}
	}
	if c.RaftAddr != "" {
		if err := validateAddr(c.RaftAddr); err != nil {
			return fmt.Errorf("cluster: Config.RaftAddr: %w", err)
		}
	}
	if c.RaftListenAddr != "" {
		if _, _, err := net.SplitHostPort(c.RaftListenAddr); err != nil || c.RaftAddr == "" {
			return fmt.Errorf("cluster: Config.RaftListenAddr is %q: a host, which may be empty, and a port are allowed, beside a RaftAddr", c.RaftListenAddr)
		}
	}
	if c.Join != nil && c.RaftAddr == "" {
		return errors.New("cluster: Config.Join is set and Config.RaftAddr is empty: the cluster must know where to reach the node")
	}
	for _, field := range [...]struct {
		name            string
		value, from, to int64
	}{
		{"MaxAppendEntries", int64(c.MaxAppendEntries), 1, 1024},
		{"SnapshotBytes", c.SnapshotBytes, 1, 1 << 40},
		{"SnapshotChanges", int64(c.SnapshotChanges), 1, 1 << 40},
		{"EntryBytesMax", int64(c.EntryBytesMax), 0, 1 << 30},
		{"ProposalsMax", int64(c.ProposalsMax), 1, 1 << 20},
		{"ProposalBytesMax", c.ProposalBytesMax, max(1, int64(c.EntryBytesMax)), 1 << 40},
		{"CollectLimit", int64(c.CollectLimit), 1, 1 << 20},
		{"WatchersMax", int64(c.WatchersMax), 1, 1 << 20},
	} {
		if field.value < field.from || field.value > field.to {
			return fmt.Errorf("cluster: Config.%s is %d: %d to %d are allowed", field.name, field.value, field.from, field.to)
		}
	}
	for _, field := range [...]struct {
		name        string
		value, from time.Duration
	}{
		{"ElectionTimeout", cmp.Or(c.ElectionTimeout, aloneElectionTimeout), 10 * time.Millisecond},
		{"CommitPause", c.CommitPause, time.Millisecond},
		{"MemberPause", c.MemberPause, time.Millisecond},
		{"ChecksumPause", c.ChecksumPause, time.Millisecond},
		{"ClockPause", c.ClockPause, time.Millisecond},
		{"SnapshotInterval", c.SnapshotInterval, time.Millisecond},
		{"WaitMax", c.WaitMax, time.Millisecond},
		{"CollectPause", c.CollectPause, time.Millisecond},
		{"PrunePause", c.PrunePause, time.Millisecond},
	} {
		if field.value < field.from {
			return fmt.Errorf("cluster: Config.%s is %v: at least %v is allowed", field.name, field.value, field.from)
		}
	}
	if least := int64(64 << 10); c.StateBytesPerSecond > 0 && c.StateBytesPerSecond < least {
		return fmt.Errorf("cluster: Config.StateBytesPerSecond is %d: at least %d, or less than 0 for no bound, is allowed", c.StateBytesPerSecond, least)
	}
	switch {
	case c.Graph.Dir != "" || c.Graph.FS != nil || c.Graph.Logger != nil || c.Graph.OnFatal != nil:
		return errors.New("cluster: Config.Graph sets Dir, FS, Logger or OnFatal: these follow from the node's own fields")
	case c.Log.Dir != "" || c.Log.InMemory || c.Log.Logger != nil || c.Log.OnFatal != nil || c.Log.CommitIndex != nil:
		return errors.New("cluster: Config.Log sets Dir, InMemory, Logger, OnFatal or CommitIndex: these follow from the node's own fields")
	}
	return nil
}

// What a node has by itself where Config names nothing: with a port for peers the
// ElectionTimeout, the CommitPause and the StateBytesPerSecond.
const (
	DefaultElectionTimeout     = 400 * time.Millisecond
	DefaultCommitPause         = 2 * time.Millisecond
	DefaultStateBytesPerSecond = 20 << 20
)

// aloneElectionTimeout is that of a node without a port for peers.
const aloneElectionTimeout = 50 * time.Millisecond

// validateAddr says what is wrong with an address that others are to dial.
func validateAddr(addr string) error {
	if host, port, err := net.SplitHostPort(addr); err != nil || host == "" || port == "" || len(addr) > addrBytesMax {
		return fmt.Errorf("%.80q is not a host and a port, such as %q, of at most %d bytes", addr, aloneAddr, addrBytesMax)
	}
	return nil
}

const addrBytesMax = 512
