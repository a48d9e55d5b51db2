// Package clustertest runs several nodes in one process, over a network that a test
// can disturb, and is the script console of package cluster. The scripts in testdata
// are the manual of what a cluster does on good days and on bad ones; each begins with
// a sentence, gives a command, and shows the reply.
//
//	# The leader is cut off from the others.
//	cluster nodes=3
//	----
//	n1, n2, n3 are voters and ready
//
//	lead n1
//	----
//
//	isolate n1
//	----
//
//	# The others have a new leader and go on.
//	wait other-leader n2 n3
//	----
//
//	write n2 document:plan#viewer@person:anna
//	----
//	1 changed
//
// The nodes are real: each has its own data directory, Raft, log and graph. What is
// not is the [Network], which carries bytes as TCP does, also in how it fails; the
// clocks, which a test can set; and kill -9 ([Host.Crash]), of which the part that
// matters is kept: nothing is written that a node would write while it closes. Files are
// damaged as they lie, while their node is stopped. A disk is slow where the log is
// committed, under the log's own deadline; that of the graph, which is synced now and
// then, is not. Loss of power, disks that fill up while a node writes, and kill -9 at any
// instruction need processes of their own: see package faulttest.
//
// # Commands
//
// A host has a name, and its node the same id. at=HOST says of whom is asked; without
// it, the first that runs. All commands wait for what they are to bring about, and for
// no fixed time, so that replies do not depend on how fast the machine is. Where a
// reply is to be an error that comes with time, within=1s says when.
//
//	cluster [nodes=N] [small-log] [wait=5s] [patience=15s] [rate=BYTES] [deadline=2m]
//	        [verify=BYTES] [from-disk]
//	        begins, with the hosts n1, n2 and so on, all voters, and Schema. small-log
//	        cuts the log all the time, so that states are sent. wait is
//	        cluster.Config.WaitMax, patience that of NewNetwork, rate how fast states
//	        are sent, deadline how long a commit of the log may take, and verify how
//	        fast a node reads all its tables after a start, which else it does not.
//	        from-disk keeps no tuples in memory: a start does not read them all.
//	join HOST [id=ID] [addr=HOST] [replica] [no-wait] [disk=full|nearly-full|healthy]
//	        a node with an empty directory joins, and has its place
//	bootstrap HOST [addr=HOST]      a node begins a cluster of its own
//	start HOST... [addr=HOST] [disk=...]   starts nodes again, at another address
//	stop HOST... [removed] [within=D]   stops nodes; those may have met their removal
//	crash HOST...                   the same, as kill -9 does
//	recover HOST                    makes a stopped node a cluster of its own
//	forget HOST                     empties the directory of one that is stopped
//	copy HOST HOST                  makes a host with the directory of another
//	fault HOST                      waits until a node stops by itself, and says why
//
//	members [at=HOST] [causes] [until=TEXT]
//	add ID [addr=HOST] [empty]; remove ID [force]; promote ID; transfer ID
//	        each with [at=HOST] [within=D] [unsure]
//	lead HOST [alone]               makes a node lead, which all follow, or need not
//	wait ready|wrong-clock|no-leader|other-leader|voters-N HOST...
//	        other-leader: one of those named leads them all
//
//	cut HOST to=HOST [one-way]; isolate HOST...; heal
//	break HOST to=HOST after=BYTES  breaks each connection after so many bytes
//	interrupted times=N             waits until so many were broken
//	delay HOST to=HOST by=D         both ways
//	clock [HOST] [by=D]             sets all clocks on, or one of them wrong
//	disk HOST slow|healthy          what the log of a host stores while its disk is slow
//	                                is stored once the disk is healthy again
//	damage HOST log|table TEXT      inverts TEXT in the files of the log, or in the
//	                                tables of the graph, of one that is stopped; shows
//	                                the number of the file as N
//
//	write HOST [create|delete] [as=NAME] [request=ID] [within=D] [unsure] TUPLE...
//	fill HOST count=N [batch=N] [length=N]
//	check HOST [linearizable | at-least=NAME | exactly=NAME | as-of=NAME|now]
//	        [as=NAME] [within=D] [unsure] TUPLE...
//	        NAME is of a write, or last; or with at-least never, for a revision that
//	        nobody was given; as keeps the moment of as-of=now
//	changes HOST                    the change log
//	agree [HOST...]                 all have the same tuples and the same change log
//	watch HOST as=NAME              follows the changes from the last write on; the
//	                                same name again goes on there at another node
//	watched NAME                    what it was told up to the last write
//	load [at=HOST] as=NAME          writes one thing after the other
//	loaded NAME [more=N]            waits for so many more, or ends it
//	logged HOST [now]               waits until the node logged the input
//	hello HOST [version=N] [other-cluster] [to=ID] [silent]
//	        speaks to its port as a stranger; silent stays, and says no more
//
// unsure shows all answers alike that say only that something could not be done now:
// which of them it is may hang on who was quicker.
//
// # Random faults
//
// TestRandomFaults has clients write and read at every consistency while nodes are cut
// off, crash and hand the leadership on, and checks each answer:
//
//	go test ./cluster/clustertest -run RandomFaults -duration 5m -seed N
package clustertest
