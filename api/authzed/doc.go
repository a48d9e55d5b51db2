// Package authzed speaks authzed.api.v1, the public API of SpiceDB, over the same
// engine and cluster as pemba.v1: a thin adapter that turns that API's messages
// into questions and mutations and answers back. It judges nothing that schema or
// engine judge already, and evaluates nothing by itself.
//
// What belongs to the dialect and not to Pemba stays here: the forms that names
// may have, the sizes and counts that a request may have, the reasons and texts of
// errors, the shapes of trees and traces. docs/spicedb.md lists every difference
// between the two servers.
//
// The protocol, with its field validation, is the Go module
// github.com/authzed/authzed-go.
package authzed
