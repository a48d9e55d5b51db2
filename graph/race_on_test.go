//go:build race

package graph

// slow is set when Pebble's own checks, which come with the race detector, make
// everything a hundred times slower.
const slow = true
