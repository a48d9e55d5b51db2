// Package api is the wire: it serves the questions and changes of pemba.v1 over
// gRPC, and says over HTTP whether the node is well.
//
// Everything from outside comes in through here and is validated here. A
// request passes, in this order, the key (auth.go), the conversion into the
// nouns of graph and engine (convert.go, the only place that knows both forms),
// the node, and on its way back the mapping of errors to status codes
// (status.go, the only place that knows both). Handlers are what is left: the
// services in schema_service.go, tuple_service.go and permission_service.go.
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
//   - An error of the caller's never has the code Unknown or Internal, and always
//     carries a google.rpc.ErrorInfo with a reason and the domain "pemba".
//   - Without keys the server listens on loopback addresses only.
//   - Nothing is logged for a request; a fault of the node is.
//
// Traffic is not encrypted: a deployment beyond one machine puts a proxy that
// terminates TLS in front.
//
//	server, err := api.Listen(api.Config{Node: node, GRPCAddr: "127.0.0.1:50051", HTTPAddr: "127.0.0.1:8080"})
//	...
//	go func() { done <- server.Serve() }()
//	...
//	err = server.Close(ctx)
package api
