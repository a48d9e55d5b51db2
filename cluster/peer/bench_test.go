package peer

import (
	"testing"

	"github.com/hashicorp/raft"
)

// BenchmarkRPC measures a round trip of a small RPC, and BenchmarkHello what a
// connection costs.
func BenchmarkRPC(b *testing.B) { bench(b, false) }

// BenchmarkHello measures the beginning of a connection and one RPC on it.
func BenchmarkHello(b *testing.B) { bench(b, true) }

func bench(b *testing.B, anew bool) {
	ours := newAuthority(b)
	for _, secured := range []bool{false, true} {
		name := "plain"
		if secured {
			name = "TLS"
		}
		b.Run(name, func(b *testing.B) {
			node := func(id string) *Transport {
				config := Config{NodeID: id, Addr: "127.0.0.1:0", ClusterID: inCluster}
				if secured {
					withTLS(ours.config())(&config)
				}
				transport, err := Listen(config)
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(func() { _ = transport.Close() })
				return transport
			}
			from, to := node("a"), node("b")
			to.Raft().SetHeartbeatHandler(func(rpc raft.RPC) { rpc.Respond(&raft.AppendEntriesResponse{Success: true}, nil) })
			request := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{Addr: []byte("a")}, Term: 1}
			for b.Loop() {
				if anew {
					if err := from.Raft().(raft.WithClose).Close(); err != nil {
						b.Fatal(err)
					}
				}
				err := from.Raft().AppendEntries("b", raft.ServerAddress(addr(to)), request, &raft.AppendEntriesResponse{})
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
