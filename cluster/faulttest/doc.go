// Package faulttest holds nodes to their promises in real processes: killed in
// the middle of everything, on a damaged disk, on a full one, watched by a
// tracer; and several of them as a cluster, with a nemesis between them. It has
// tests only.
//
//	go test ./cluster/faulttest -run Kill -kills 20 -v     kill -9 under load
//	go test ./cluster/faulttest -run Truncation -duration 1m -v
//	go test ./cluster/faulttest -run 'Trace|Damage|FullDisk' -v
//	go test ./cluster/faulttest -run Nemesis -nodes 5 -duration 5m -v
//	go test ./cluster/faulttest -run Planted -planted -v   would it find a bug?
//	go test ./cluster/faulttest -run BadLeader -duration 1m -v
//	go test ./cluster/faulttest -run Failover -kills 10 -v
//
// Each test starts its own binary again as the child: a process that opens one
// node and serves a small protocol, JSON objects over a socket on loopback. The
// parent writes through it, keeps a history of what was asked and what was
// answered, and compares that with what the data directory holds. A seed is
// printed, and -seed runs the same requests again; when the process dies cannot
// be repeated exactly.
//
// What is judged, always:
//
//   - Each acknowledged request is in the change log once, at the revision that
//     was acknowledged, with all its changes.
//   - Each other change in the log is of a request that was never answered, and
//     is whole too. What was refused is not there.
//   - The changes are numbered densely, in the order of revisions, and the
//     stored tuples are what they add up to.
//   - No read after a restart is older than a read or an acknowledgement before.
//
// # A cluster
//
// TestNemesis starts the nodes as processes (ensemble_test.go, member_test.go)
// with a network between them (network_test.go): each in a network namespace of
// its own, or, where that is not allowed, behind proxies; the test says which.
// Clients stand beside the nodes, on whatever side of a partition they are, and
// use documents as registers (register_test.go): a register's value is the
// person that views the document. They swap it, clear it, and read it at every
// consistency, and watchers follow all changes. Meanwhile the nemesis
// (nemesis_test.go) kills, pauses, cuts and delays the network, fills and slows
// disks, sets clocks and moves the leadership. -seed gives it the same choices
// again, and -faults fewer of them. Disks are slow only in a program that is built with the tag
// pembafaults, which a run of 20 s or more takes the time to build.
//
// Beside what is said above, this is judged (judge_test.go):
//
//   - Writes and linearizable reads of each register can have happened one after
//     the other, each between its question and its answer (porcupine).
//   - A linearizable read has at least the revision of each write that was
//     acknowledged, and of each other linearizable read that ended, before it
//     began.
//   - A read with a zookie has at least its revision; one at a revision has that.
//   - The newest state of one node is never older than what it showed before, over
//     its restarts too.
//   - Each read of any kind shows what the change log says of its revision, or of
//     its moment, and the engine's check agrees with the tuples.
//   - Each watcher is told of every change, once and in order, over its breaks.
//   - In the end all nodes have the same change log and the same tuples, and
//     after each fault writes go on.
//
// TestPlanted shows that this is enough to find four bugs, which the same build
// plants (cluster/faults_on.go).
package faulttest
