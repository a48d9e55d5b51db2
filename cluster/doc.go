// Package cluster keeps the engines of several nodes at the same revision. In
// this version a cluster has one node; what is here is laid out for more.
//
// There are two nouns that matter to a caller, the [Node] and the
// [Consistency]. A Node is a graph, the engine over it and a Raft log in one
// data directory. It does three things: [Node.Write] brings a mutation into the
// one order of changes, [Node.Snapshot] holds the graph still at a revision
// that is new enough, or as old, as the Consistency asks for, and [Node.Watch]
// follows what is changed. Questions are asked of the snapshot, which is the
// engine's.
//
//	node, err := cluster.Open(ctx, cluster.Config{DataDir: "/var/lib/pemba"})
//	if err != nil {
//		return err
//	}
//	defer node.Close(context.Background())
//
//	result, err := node.Write(ctx, &graph.Mutation{Store: graph.DefaultStore, Updates: updates})
//	if err != nil {
//		return err // Not written; or, for ErrOutcomeUnknown, nobody knows.
//	}
//	if result.Refusal != nil {
//		return result.Refusal // The engine's no, the same on every node.
//	}
//	snapshot, err := node.Snapshot(ctx, graph.DefaultStore,
//		cluster.Consistency{Mode: cluster.AtLeast, Revision: result.Revision}, graph.Overlay{})
//
// # A write, as a walk
//
// Write encodes the mutation as a command with the leader's time in it
// (command.go) and hands it to Raft (write.go), which stores it in the log
// together with all others that wait: one batch, one sync (package badgerlog,
// below logstore.go). Once a majority has it, Raft gives it to the FSM
// (fsm.go) on every node, which decodes it and calls engine.Apply with the
// entry's index as the revision. Apply judges and commits one batch to the
// graph. The result travels back to Write.
//
// # A look at the past
//
// A snapshot as of a moment (read.go) is of the last revision whose stamp is the
// moment or before. So that it is the same whenever it is asked for, the leader
// first lets no more proposals have such a stamp, and waits for those that have
// one (stamp.go).
//
// # A change, as a watcher sees it
//
// A [Watcher] has a position, which is a revision and an offset within it, and
// nothing else: nothing is queued for it. For each store that is watched, one
// goroutine reads the change log as it grows and keeps its end in memory, some
// thousand changes and a MiB at most; this is the store's tail (tail.go), which
// all its watchers share. The FSM wakes it after each entry that changed the
// store, and it wakes them. A watcher whose position is before what the tail
// holds, because it is slow or has just come, reads the log by itself in pages,
// a few watchers at a time, until it has caught up. No one holds a snapshot while
// waiting.
//
// # What goes on by itself
//
// On the leader: lifetimes that are over are ended (collect.go), the past that is
// older than a store's retention is forgotten and staged changes that were left
// behind are dropped (prune.go). All of this changes what can be read, so it is
// done by entries of the log, and none is proposed where nothing would change. On
// every node, by itself: what was forgotten is taken from the disk (prune.go),
// and after each start all tables are read once, so that damage is found while
// it can be repaired (verify.go). How none of it holds up those who ask is said
// in pace.go.
//
// # Where the state is
//
// The log is the only thing that is synced for each write. The graph is synced
// now and then (cut.go), after which the log before it is not needed for a
// restart and is cut, save for some entries that other nodes may want. Raft
// thinks that a snapshot was taken; its snapshot store (snapshotstore.go) is a
// view of the graph. After a crash the graph is what it was at some revision at
// or after the last flush, and the entries from there on are applied again:
// those that were known to be agreed before Raft starts (start.go), the others
// as soon as there is a leader. The applied revision is part of every batch of
// the graph, and an entry at or below it is skipped, so nothing is applied
// twice.
//
// # What always holds
//
//	durable <= applied <= commit index <= last index of the log
//	first index of the log <= durable + 1
//	revision of a snapshot <= applied
//	stamp of the snapshot's revision <= instant of the snapshot, unless pinned
//	revision of an acknowledged write <= applied, before Write returns
//	stamp of what is written after an answer as of a moment > the moment
//	revision that a watcher was told is reached <= applied, and all its changes
//	were delivered before
//
// Over restarts: Open returns when everything in the log is applied, so the
// applied revision that readers see never falls. An entry that cannot be
// decoded or applied, a log that fails to store, a graph whose disk fails: each
// stops the node, which then answers [ErrFailed] to everything and tells
// Config.OnFatal. A node that goes on after any of these would acknowledge what
// it cannot keep, or differ from its peers.
//
// # The data directory
//
//	FORMAT   version of this layout; another version is refused
//	LOCK     locked by the process that has the directory, with its id
//	NODE     id of the node
//	state/   the graph, in Pebble
//	log/     the Raft log, in Badger
//
// A node with Config.InMemory has none: the graph is on a file system in memory, the
// log is in Badger's memory mode, and what is said here of writes holds as it is, but
// for a restart (inmemory.go).
//
// # What several nodes will add
//
// Each has its place: a transport with mutual TLS in startRaft, forwarding of
// writes in Write, the round that confirms leadership in readIndex, the stream
// that brings a state to a new node behind snapshotStore.Open, and changes of
// the configuration, which the FSM stores already. checkConfiguration refuses a
// log that names more than one node until then.
package cluster
