//go:build race

package schema

// slow is set when the race detector makes everything ten times slower.
const slow = true
