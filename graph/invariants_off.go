//go:build !invariants

package graph

// Invariants says whether checks that cost time are made; the build tag
// invariants turns them on.
const Invariants = false
