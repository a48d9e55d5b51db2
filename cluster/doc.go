// Package cluster keeps the engines of several nodes at the same revision.
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
// A node that does not lead sends the mutation to the one that does (peers.go), with
// an id that the state remembers. So it can ask again when the leader fails in between
// and nobody says what became of the first try: the mutation is made once.
//
// # A linearizable read, as a walk
//
// The reader joins the next round of confirmation of the leader (confirm.go), from
// another node by a call. The round notes what is agreed, and asks the
// voters for their terms. If a majority is in the leader's, nobody else can have
// acknowledged anything by then. The reader waits until its own node has applied what
// the round noted (read.go), and reads there.
//
// # Members
//
// A cluster begins with one node. Others are added without a vote (members.go), come
// up with the log or, where that is cut, are sent the state (sendstate.go,
// install.go), and ask for a vote when they have caught up. Each node looks after its
// own place: its vote, its address, and whether it was removed. Their ids never change;
// their connections say who speaks to whom (package peer), so that nobody answers for
// another who has his address now.
//
// # A look at the past
//
// A snapshot as of a moment (read.go) is of the last revision whose stamp is the
// moment or before. So that it is the same whenever it is asked for, the leader
// first lets no more proposals have such a stamp, and waits for those that have
// one (stamp.go); and where there is no entry of behind the moment yet, it makes one that
// changes nothing, for the leaders to come.
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
// # A state that is sent
//
// Raft's snapshot is a token that says who has the state. The follower fetches it from
// there, as a stream of checked chunks that may break and go on, into a folder of its
// own, and answers from what it has meanwhile. Then it stops its Raft, decides whether
// its log is still of use, writes down which folder is in force, wipes the log if it is
// not, and starts another Raft on the new state. Each of these steps can be the last
// before a crash (install.go). What comes behind the state follows by the log, which the
// leader holds back until then.
//
// # Trust
//
// Each node compares a checksum of all that it ever wrote with those of the others, at
// the same revisions, and stops when it is the odd one (checksums.go). Each compares its
// clock with theirs, and neither leads nor answers when it is far from most (clock.go).
//
// # What always holds
//
//	durable <= applied <= commit index <= last index of the log, or its beginning
//		where a state was installed
//	first index of the log <= durable + 1
//	revision of a snapshot <= applied
//	stamp of the snapshot's revision <= instant of the snapshot, unless pinned
//	revision of an acknowledged write <= applied, before Write returns
//	stamp of what is written after an answer as of a moment > the moment
//	revision that a watcher was told is reached <= applied, and all its changes
//	were delivered before
//
// Over restarts: a node answers when it has applied everything that was agreed, which
// on a node with peers a leader must tell, so the applied revision that readers see
// never falls. An entry that cannot be
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
//	MEMBER   of a node that joined: the id of the cluster, and voter or replica
//	STATE    which folder holds the graph, once one was sent by another node
//	RECOVER  there while a recovery is under way
//	state/   the graph, in Pebble; state-N when it was sent at revision N
//	log/     the Raft log, in Badger
//
// A node with Config.InMemory has none: the graph is on a file system in memory, the
// log is in Badger's memory mode, and what is said here of writes holds as it is, but
// for a restart (inmemory.go).
package cluster
