package main

import (
	"fmt"

	"github.com/spf13/pflag"
)

// testingSentence is what a server with --testing says when it has started.
const testingSentence = "testing: everything is kept in memory and gone at the end; every key is accepted and has a store of its own"

// notTesting are the flags that say nothing to a server with --testing, or the
// opposite, with what it does instead.
var notTesting = [...]struct{ flag, why string }{
	{"data-dir", "everything is kept in memory"},
	{"node-id", "the node is a new one each time"},
	{"bootstrap", "nobody can join it"},
	{"join", "it is a cluster of its own"},
	{"join-ca", "it is a cluster of its own"},
	{"replica", "it is a cluster of its own"},
	{"raft-addr", "it is a cluster of its own"},
	{"raft-advertise", "it is a cluster of its own"},
	{"peer-cert", "it is a cluster of its own"},
	{"peer-key", "it is a cluster of its own"},
	{"peer-ca", "it is a cluster of its own"},
	{"verify-bytes-per-second", "nothing is on a disk"},
	{"key", "every key is accepted"},
	{"key-file", "every key is accepted"},
}

// checkTesting refuses the flags that do not go with --testing, wherever they were
// set.
func checkTesting(flags *pflag.FlagSet) error {
	for _, other := range notTesting {
		if flags.Changed(other.flag) {
			return fmt.Errorf("--%s (%s, or %q in the file of --config) does not go with --testing: %s; leave one of the two out",
				other.flag, envName(other.flag), other.flag, other.why)
		}
	}
	return nil
}
