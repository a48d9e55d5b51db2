// Package api is the wire: it serves the questions and changes of pemba.v1 over
// gRPC and as JSON over HTTP, and says whether the node is well.
//
// Everything from outside comes in through here and is validated here. A
// request passes, in this order, TLS (tls.go), the key (auth.go), the interceptors
// (server.go: panics, errors, figures), the store's name and rate
// (store_service.go, rate.go), the conversion into the nouns of graph and engine
// (convert.go, the only place that knows both forms), the node, and on its way
// back the mapping of errors to status codes (status.go, the only place that knows
// both). Handlers are what is left, a file for each service. A request over HTTP
// becomes a gRPC call inside the process first (gateway.go), so that there is one
// path.
//
// Every answer is computed at one revision and one instant, and says which, by a
// zookie (zookie.go). A cursor is a zookie with a place in the results of one
// question; it continues at the revision and instant where it began, so that
// pages never overlap or leave gaps, whatever is written in between.
//
// Invariants:
//
//   - No request of any content crashes the process, and none makes it hold more
//     memory than Limits allow.
//
//   - An error of the caller's never has the code Unknown or Internal, and always
//     carries a google.rpc.ErrorInfo with a reason and the domain "pemba".
//
//   - Without keys the server listens on loopback addresses only.
//
//   - Nothing is logged for a request; a fault of the node is.
//
//   - Files of the configuration that cannot be used leave in force what was read
//     before.
//
//   - Counting a call neither allocates nor takes a lock; without a collector of
//     traces nothing of them is on its path.
//
//     server, err := api.Listen(api.Config{Node: node, GRPCAddr: "127.0.0.1:50051", HTTPAddr: "127.0.0.1:8080"})
//     ...
//     go func() { done <- server.Serve() }()
//     ...
//     err = server.Close(ctx)
package api
