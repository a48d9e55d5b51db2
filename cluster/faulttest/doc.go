// Package faulttest holds a node to its promises in real processes: killed in
// the middle of everything, on a damaged disk, on a full one, and watched by a
// tracer. It has tests only.
//
//	go test ./cluster/faulttest -run Kill -kills 20 -v     kill -9 under load
//	go test ./cluster/faulttest -run Truncation -duration 1m -v
//	go test ./cluster/faulttest -run 'Trace|Damage|FullDisk' -v
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
package faulttest
