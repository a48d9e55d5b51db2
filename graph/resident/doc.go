// Package resident keeps the adjacency of a store in memory, with next to no pointers and in
// both directions, so that a step of an evaluation is some accesses to memory instead
// of a seek in Pebble. It knows numbers only, and of an edge only whether it is there
// and whether it carries more than its ends. What it cannot tell for the revision that
// is asked about it says so, and package graph, its one user, reads Pebble.
//
// Begin with [Graph], whose comment says how readers get answers of one revision
// without locks.
package resident
