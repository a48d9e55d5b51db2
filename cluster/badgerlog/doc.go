// Package badgerlog keeps the Raft log, and what Raft must remember beside it
// (term and vote), in Badger.
//
// There is one noun, the [Log]. It is a raft.LogStore, a raft.StableStore and
// a raft.MonotonicLogStore. A log is a run of entries first..last without
// gaps, each with an index and a term. Raft appends at the end, overwrites a
// suffix that turned out not to be agreed, and drops a prefix that the state
// machine no longer needs.
//
// Badger is fast at this, but it does not guard its data. It silently drops
// what stands behind a damaged record of its write-ahead file, it can skip a
// damaged table and answer from an older one, and it dies of SIGBUS on a full
// disk. So the log guards itself, and these things always hold:
//
//   - Each change of any kind is one transaction with a sequence number, and
//     carries the record: first, last, the checksum of the last entry, and so
//     on. What is in the log is what the record says, never what an iterator
//     finds. Keys outside first..last are rubbish awaiting deletion, and are
//     never read.
//   - Each entry holds a checksum of its index and content and of the entry
//     before it. The entries are a chain whose end is in the record, so a lost,
//     reverted or damaged entry anywhere breaks a link, and [Open], which walks
//     the chain, refuses the log.
//   - The file "high" beside Badger's holds the sequence number of the newest
//     acknowledged change. A log whose record is older has lost acknowledged
//     changes (entries, or a vote) and is refused. See the type mark for why
//     no honest crash leads there.
//   - What Badger reads first (MANIFEST, KEYREGISTRY, the heads of its log files,
//     the ends of its tables) is read before it, and damage there is a
//     [CorruptionError] that names the file. A MANIFEST that lost its end looks
//     like what a crash leaves. Whether entries went with it, the chain tells, and
//     until then the tables that it does not name are set aside.
//   - Term and vote live in one value whose checksum is in the record too.
//   - Free space is looked at before each write, and a write that Badger might
//     not survive is refused with [ErrDiskFull]. The file "ballast" occupies
//     space that an operator can give back in an emergency.
//   - After any other failure of a write, or a write that outlasts its
//     deadline, nobody knows what the disk holds. The log is then poisoned: it
//     answers nothing but errors, and Config.OnFatal is told once.
//
// Files in the directory: Badger's own, "high" (the mark), "owner" (the lock,
// with the process id in it) and "ballast"; and, after a start that was refused or
// cut short, tables with ".unnamed" behind their names.
//
// With Config.InMemory there is no directory and none of these files: the log is
// Badger's memory, and ends with Close.
//
// A log is opened, handed to Raft, and closed after Raft has shut down:
//
//	log, err := badgerlog.Open(badgerlog.Config{
//		Dir:     filepath.Join(dataDir, "log"),
//		OnFatal: func(err error) { node.Stop(err) },
//	})
//	if err != nil {
//		return err
//	}
//	defer log.Close()
//	r, err := raft.NewRaft(config, fsm, log, log, snapshots, transport)
package badgerlog
