// Package peer carries what the nodes of a cluster say to each other over one
// port. It knows who speaks to whom and whether they may, and nothing of what is
// said.
//
// There is one noun, the [Transport]: one listener of one node, and all
// connections of that node to its peers. A connection is of one of two kinds.
// On a connection of the kind raft, hashicorp/raft speaks through its
// NetworkTransport ([Transport.Raft]); on one of the kind calls, gRPC does
// ([Transport.Calls] for the side that serves, [Transport.Conn] for the side that
// calls).
//
//	transport, err := peer.Listen(peer.Config{NodeID: "n1", Addr: "127.0.0.1:7000", ClusterID: id})
//	if err != nil {
//		return err
//	}
//	defer transport.Close()
//	go server.Serve(transport.Calls()) // a *grpc.Server
//	node, err := raft.NewRaft(config, fsm, logs, stable, snapshots, transport.Raft())
//
// # The bytes of a connection
//
// The node that dials speaks first, within TLS where there is TLS:
//
//	dialer                                               listener
//	  |                                                      |
//	  |  <- - - - - - TLS 1.3, both show certificates - - -> |
//	  |                                                      |
//	  |  hello                                               |
//	  |  +----------+---------+--------+                     |
//	  |  | magic  8 | version | length |  length of the rest |
//	  |  |          |    1    |   2    |                     |
//	  |  +------+---+---------+--------+-----------+         |
//	  |  | kind | cluster | 1+n sender | 1+n       |         |
//	  |  |   1  |    16   |            | recipient | ------> |
//	  |  +------+---------+------------+-----------+         |
//	  |                                                      |
//	  |  answer                                              |
//	  |           +----------+---------+------+-----------+  |
//	  |  <------- | magic  8 | version | code | 2+n       |  |
//	  |           |          |    1    |  1   | sentence  |  |
//	  |           +----------+---------+------+-----------+  |
//	  |                                                      |
//	  |  code 0: from here on Raft's frames, or HTTP/2       |
//	  |  else: the listener closes                           |
//
// Numbers are big-endian. The sender and the recipient are ids of nodes, each
// after one byte with its length. The first eleven bytes of a hello and all of an
// answer have this form in every version, so that nodes of different versions can
// tell each other that they are.
//
// # What always holds
//
//   - Whoever speaks on a connection was told by the listener that it is the node
//     that was meant, in the cluster that was meant. Addresses are reused, and
//     hashicorp/raft does not look at whom a request is for: without this, a node
//     that was started on the address of another would give votes in its name.
//   - A node that does not know its cluster (the id is zero) accepts no connection
//     and dials none.
//   - Until its hello is accepted, a connection costs a goroutine, a buffer of 1 KiB
//     (and TLS its own), and at most [Config.HelloTimeout] of time. There are at most
//     [Config.HellosMax] of these; of more, the oldest is closed, so that a flood of
//     silent connections does not keep out a peer, which is quick. At most
//     [Config.ConnsMax] accepted ones are open.
//   - With TLS, the id of a sender is what the sender says: any certificate of the
//     cluster's authority is good for any id. The certificates say who belongs to
//     the cluster, the hello prevents mistakes among those.
//   - After Raft has closed its transport, nothing that came over it is still being
//     handled: the stores below Raft may be exchanged, and a new Raft started on the
//     same Transport.
//   - Nothing here dials again by itself. Raft does, after its own pauses, and gRPC,
//     after 100 ms at first and 3 s at most.
//
// A connection whose other end is gone without a word (power, a cut cable) ends by
// itself after some 15 seconds on Linux, on other systems after some minutes while
// bytes are waiting to be sent; every RPC of Raft has a deadline of its own besides
// ([Config.Timeout]), and calls have their callers'.
package peer
