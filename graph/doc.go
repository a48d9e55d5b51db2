// Package graph stores tuples in Pebble and reads them back as of a revision.
package graph
