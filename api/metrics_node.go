package api

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/pembadb/pemba/cluster"
	"github.com/pembadb/pemba/cluster/peer"
	"github.com/pembadb/pemba/engine"
)

// storesShown bounds how many stores have a figure of their own, the first by
// name.
const storesShown = 100

// A nodeCollector gathers the figures of the engine, the stores, Raft and the two
// storage engines when somebody scrapes, so that they cost nothing otherwise.
type nodeCollector struct{ server *Server }

// A figure is one metric of the node, without labels.
type figure struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*nodeFigures) float64
}

// nodeFigures is what is gathered for one scrape.
type nodeFigures struct {
	engine engine.Stats
	node   cluster.Metrics
}

func number[N int | int32 | int64 | uint64](n N) float64 { return float64(n) }

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func counter(name, help string, value func(*nodeFigures) float64) figure {
	return figure{prometheus.NewDesc(name, help, nil, nil), prometheus.CounterValue, value}
}

func gauge(name, help string, value func(*nodeFigures) float64) figure {
	return figure{prometheus.NewDesc(name, help, nil, nil), prometheus.GaugeValue, value}
}

// engineFigures are there whatever state the node is in.
var engineFigures = []figure{
	counter("pemba_engine_questions_total", "Questions that were evaluated: checks, each of a bulk check, lookups, expansions.",
		func(f *nodeFigures) float64 { return number(f.engine.Questions) }),
	counter("pemba_engine_steps_total", "What questions looked at: names of objects, tuples, results.",
		func(f *nodeFigures) float64 { return number(f.engine.Steps) }),
	counter("pemba_engine_cycles_total", "Cycles of the data that had to be solved.",
		func(f *nodeFigures) float64 { return number(f.engine.Cycles) }),
	counter("pemba_engine_caveat_evaluations_total", "Evaluations of caveats.",
		func(f *nodeFigures) float64 { return number(f.engine.Caveats) }),
	counter("pemba_engine_budget_refusals_total", "Questions refused because they needed more than their budget.",
		func(f *nodeFigures) float64 { return number(f.engine.BudgetRefusals) }),
}

// figures are those of a node that answers.
var figures = []figure{
	gauge("pemba_stores", "Stores that exist.",
		func(f *nodeFigures) float64 { return number(f.node.Graph.Stores) }),
	gauge("pemba_tuples", "Current tuples of all stores.",
		func(f *nodeFigures) float64 { return number(f.node.Graph.Tuples) }),
	gauge("pemba_snapshots_open", "States held still for questions under way.",
		func(f *nodeFigures) float64 { return number(f.node.Graph.Snapshots) }),
	gauge("pemba_applied_revision", "The newest revision that can be read.",
		func(f *nodeFigures) float64 { return number(uint64(f.node.Applied)) }),
	gauge("pemba_durable_revision", "The revision that the graph has by itself after a crash; what follows comes from the log.",
		func(f *nodeFigures) float64 { return number(uint64(f.node.Graph.Durable)) }),

	gauge("pemba_raft_leader", "1 on the node that leads.",
		func(f *nodeFigures) float64 { return truth(f.node.Role == "leader") }),
	gauge("pemba_raft_term", "Raft's term.",
		func(f *nodeFigures) float64 { return number(f.node.Term) }),
	gauge("pemba_raft_commit_index", "The last entry that is agreed.",
		func(f *nodeFigures) float64 { return number(f.node.Commit) }),
	gauge("pemba_raft_last_index", "The last entry in the log.",
		func(f *nodeFigures) float64 { return number(f.node.LastIndex) }),
	gauge("pemba_raft_fsm_pending", "Batches of agreed entries that wait to be applied.",
		func(f *nodeFigures) float64 { return number(f.node.FSMPending) }),
	gauge("pemba_cluster_members", "Nodes of the cluster, as far as this one knows.",
		func(f *nodeFigures) float64 { return number(f.node.Members) }),
	gauge("pemba_cluster_voters", "Nodes whose votes count for majorities.",
		func(f *nodeFigures) float64 { return number(f.node.Voters) }),
	gauge("pemba_clock_trusted", "1 while the clock of the node is close enough to that of most others to judge lifetimes.",
		func(f *nodeFigures) float64 { return truth(f.node.ClockTrusted) }),
	counter("pemba_forwarded_writes_total", "Writes that this node handed to the one that leads.",
		func(f *nodeFigures) float64 { return number(f.node.Forwarded) }),
	counter("pemba_confirm_rounds_total", "How often this node had a majority confirm that it leads, for linearizable reads.",
		func(f *nodeFigures) float64 { return number(f.node.ConfirmRounds) }),
	counter("pemba_confirmed_reads_total", "Reads that waited for such a confirmation; many share one.",
		func(f *nodeFigures) float64 { return number(f.node.ConfirmReaders) }),
	gauge("pemba_states_sending", "Whole states that are being sent to nodes which are far behind.",
		func(f *nodeFigures) float64 { return number(f.node.StatesSending) }),
	counter("pemba_state_sent_bytes_total", "What was sent of whole states.",
		func(f *nodeFigures) float64 { return number(f.node.StateBytesSent) }),
	counter("pemba_state_received_bytes_total", "What was received of whole states.",
		func(f *nodeFigures) float64 { return number(f.node.StateBytesReceived) }),
	counter("pemba_states_installed_total", "Whole states that were received and came into force.",
		func(f *nodeFigures) float64 { return number(f.node.StatesInstalled) }),
	gauge("pemba_peer_port_connections_open", "Connections that other nodes opened to this one's port for nodes.",
		func(f *nodeFigures) float64 { return number(f.node.Port.ConnsIn) }),
	counter("pemba_peer_port_accepted_total", "Connections at that port that were taken.",
		func(f *nodeFigures) float64 { return number(f.node.Port.Accepted) }),
	counter("pemba_peer_port_refused_total", "Connections at that port that were refused with a reason: of another cluster, of a node that was removed.",
		func(f *nodeFigures) float64 { return number(f.node.Port.Refused) }),
	counter("pemba_peer_port_dropped_total", "Connections at that port that were closed without a word: no TLS or no good certificate, nothing said in time, too many.",
		func(f *nodeFigures) float64 { return number(f.node.Port.Dropped) }),
	counter("pemba_peer_port_errors_total", "Failures to take a connection at that port at all, as for want of file descriptors.",
		func(f *nodeFigures) float64 { return number(f.node.Port.AcceptErrors) }),
	counter("pemba_raft_entries_applied_total", "Entries that were applied.",
		func(f *nodeFigures) float64 { return number(f.node.EntriesApplied) }),
	gauge("pemba_proposals_in_flight", "Writes under way.",
		func(f *nodeFigures) float64 { return number(f.node.Proposals) }),
	gauge("pemba_proposals_in_flight_max", "How many writes may be under way.",
		func(f *nodeFigures) float64 { return number(f.node.ProposalsMax) }),
	gauge("pemba_proposals_in_flight_bytes", "The size of the writes under way.",
		func(f *nodeFigures) float64 { return number(f.node.ProposalBytes) }),
	counter("pemba_proposals_refused_total", "Writes that were not taken on: too busy, the disk too full, shutting down.",
		func(f *nodeFigures) float64 { return number(f.node.ProposalsRefused) }),

	gauge("pemba_watchers", "Watches that follow a store.",
		func(f *nodeFigures) float64 { return number(f.node.Watchers) }),
	gauge("pemba_watch_lag_revisions", "By how many revisions the slowest watch is behind its store's change log.",
		func(f *nodeFigures) float64 { return number(f.node.WatchLag) }),
	gauge("pemba_watch_bytes", "What is held in memory for watches.",
		func(f *nodeFigures) float64 { return number(f.node.WatchBytes) }),

	counter("pemba_tuples_expired_total", "Tuples that were collected because their lifetime was over.",
		func(f *nodeFigures) float64 { return number(f.node.LifetimesEnded) }),
	counter("pemba_prunes_total", "Entries that let a part of a store's past be forgotten.",
		func(f *nodeFigures) float64 { return number(f.node.Prunes) }),
	counter("pemba_stage_collections_total", "Entries that dropped imports which were left behind.",
		func(f *nodeFigures) float64 { return number(f.node.StageCollections) }),

	counter("pemba_log_batches_total", "Batches of entries that the log synced to the disk.",
		func(f *nodeFigures) float64 { return number(f.node.LogBatches) }),
	counter("pemba_log_entries_total", "Entries in those batches.",
		func(f *nodeFigures) float64 { return number(f.node.LogEntries) }),
	gauge("pemba_log_held_entries", "Entries that the log holds.",
		func(f *nodeFigures) float64 { return number(f.node.Log.Entries) }),
	gauge("pemba_log_disk_bytes", "What the files of the log take.",
		func(f *nodeFigures) float64 { return number(f.node.Log.DiskBytes) }),
	gauge("pemba_disk_free_bytes", "What is free on the file system of the log.",
		func(f *nodeFigures) float64 { return number(f.node.Log.FreeBytes) }),
	gauge("pemba_disk_free_needed_bytes", "What must be free for a write to be taken on.",
		func(f *nodeFigures) float64 { return number(f.node.Log.FreeBytesNeeded) }),
	gauge("pemba_log_refusing", "1 while the log refuses writes because the disk is too full.",
		func(f *nodeFigures) float64 { return truth(f.node.Log.Refusing) }),

	gauge("pemba_graph_disk_bytes", "What the files of the graph take.",
		func(f *nodeFigures) float64 { return number(f.node.Graph.DiskBytes) }),
	gauge("pemba_graph_memtable_bytes", "What the graph holds in memory before it is flushed.",
		func(f *nodeFigures) float64 { return number(f.node.Graph.Pebble.MemTable.Size) }),
	counter("pemba_graph_flushes_total", "Flushes of the graph.",
		func(f *nodeFigures) float64 { return number(f.node.Graph.Pebble.Flush.Count) }),
	counter("pemba_graph_compactions_total", "Compactions of the graph.",
		func(f *nodeFigures) float64 { return number(f.node.Graph.Pebble.Compact.Count) }),
	gauge("pemba_graph_compaction_debt_bytes", "What compactions have yet to rewrite, by estimate.",
		func(f *nodeFigures) float64 { return number(f.node.Graph.Pebble.Compact.EstimatedDebt) }),
	gauge("pemba_graph_read_amplification", "How many tables one look into the graph may have to ask.",
		func(f *nodeFigures) float64 { return number(f.node.Graph.Pebble.ReadAmp()) }),
	counter("pemba_graph_block_cache_hits_total", "Blocks of the graph that were found in memory.",
		func(f *nodeFigures) float64 { return number(f.node.Graph.Pebble.BlockCache.Hits) }),
	counter("pemba_graph_block_cache_misses_total", "Blocks of the graph that had to be read.",
		func(f *nodeFigures) float64 { return number(f.node.Graph.Pebble.BlockCache.Misses) }),
	gauge("pemba_graph_block_cache_bytes", "What the cache of blocks holds.",
		func(f *nodeFigures) float64 { return number(f.node.Graph.Pebble.BlockCache.Size) }),
	gauge("pemba_graph_resident_bytes", "What the adjacency and the names of tuples take in memory.",
		func(f *nodeFigures) float64 { return number(f.node.Graph.ResidentBytes) }),
	counter("pemba_graph_verified_bytes_total", "How much of the tables was read to find damage.",
		func(f *nodeFigures) float64 { return number(f.node.VerifiedBytes) }),
}

var (
	nodeReady = prometheus.NewDesc("pemba_ready", "1 while the node may be given work.", nil, nil)
	nodeUp    = prometheus.NewDesc("pemba_node_up", "1 while the node tells its figures; without them it is closed or has failed.", nil, nil)
	storeSize = prometheus.NewDesc("pemba_store_tuples", "Current tuples of a store; of the first 100 stores by name.", []string{"store"}, nil)
	openConns = prometheus.NewDesc("pemba_connections_open", "Open connections.", []string{"protocol"}, nil)
)

// The figures of each other node, with its id as the label peer. Those of calls and of
// Raft's connections have a label kind, those of Raft's RPCs one of that name.
var (
	peerOpen = prometheus.NewDesc("pemba_peer_connections_open", "Open connections between this node and another, in both directions.", []string{"peer", "kind"}, nil)
	peerSent = prometheus.NewDesc("pemba_peer_sent_bytes_total", "What was sent to the other node, without what TLS adds.", []string{"peer", "kind"}, nil)
	peerGot  = prometheus.NewDesc("pemba_peer_received_bytes_total", "What was received from the other node, without what TLS adds.", []string{"peer", "kind"}, nil)

	peerRPCs     = prometheus.NewDesc("pemba_peer_rpcs_total", "RPCs of Raft to the other node.", []string{"peer", "rpc"}, nil)
	peerFailures = prometheus.NewDesc("pemba_peer_rpc_failures_total", "Those of them that had no answer, or an error for one.", []string{"peer", "rpc"}, nil)
	peerInFlight = prometheus.NewDesc("pemba_peer_rpcs_in_flight", "Those of them that are waited for.", []string{"peer", "rpc"}, nil)

	peerRefusals  = prometheus.NewDesc("pemba_peer_refusals_total", "Connections that this node refused to the other (by this), or the other to this one (by other).", []string{"peer", "by"}, nil)
	peerRoundTrip = prometheus.NewDesc("pemba_peer_round_trip_seconds", "How long the other node takes to answer a heartbeat, smoothed; of a node that this one led.", []string{"peer"}, nil)
	peerContact   = prometheus.NewDesc("pemba_peer_last_contact_timestamp_seconds", "When the other node last answered an RPC of Raft.", []string{"peer"}, nil)

	peerDescs = []*prometheus.Desc{
		peerOpen, peerSent, peerGot, peerRPCs, peerFailures, peerInFlight, peerRefusals, peerRoundTrip, peerContact,
	}
)

// collectPeers tells the figures of the other nodes.
func collectPeers(peers []peer.Stats, tell func(desc *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string)) {
	for i := range peers {
		p := &peers[i]
		id := p.ID
		if id == "" {
			id = "others" // Beyond those that there are counters for.
		}
		for kind, traffic := range map[string]*peer.Traffic{"raft": &p.Raft, "calls": &p.Calls} {
			tell(peerOpen, prometheus.GaugeValue, number(traffic.ConnsIn+traffic.ConnsOut), id, kind)
			tell(peerSent, prometheus.CounterValue, number(traffic.BytesSent), id, kind)
			tell(peerGot, prometheus.CounterValue, number(traffic.BytesReceived), id, kind)
		}
		for rpc := range peer.RPCTypes {
			name, stats := peer.RPC(rpc).String(), &p.RPCs[rpc]
			tell(peerRPCs, prometheus.CounterValue, number(stats.Sent), id, name)
			tell(peerFailures, prometheus.CounterValue, number(stats.Failed), id, name)
			tell(peerInFlight, prometheus.GaugeValue, number(stats.InFlight), id, name)
		}
		tell(peerRefusals, prometheus.CounterValue, number(p.RefusedIn), id, "this")
		tell(peerRefusals, prometheus.CounterValue, number(p.RefusedOut), id, "other")
		if p.HeartbeatRoundTrip > 0 {
			tell(peerRoundTrip, prometheus.GaugeValue, p.HeartbeatRoundTrip.Seconds(), id)
		}
		if !p.LastSuccess.IsZero() {
			tell(peerContact, prometheus.GaugeValue, number(p.LastSuccess.UnixMilli())/1000, id)
		}
	}
}

// Describe implements prometheus.Collector.
func (c *nodeCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, list := range [][]figure{engineFigures, figures} {
		for _, f := range list {
			descs <- f.desc
		}
	}
	descs <- nodeReady
	descs <- nodeUp
	descs <- storeSize
	descs <- openConns
	for _, desc := range peerDescs {
		descs <- desc
	}
}

// Collect implements prometheus.Collector.
func (c *nodeCollector) Collect(out chan<- prometheus.Metric) {
	s := c.server
	tell := func(desc *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, kind, value, labels...)
	}
	gathered := nodeFigures{engine: s.node.Engine().Stats()}
	for _, f := range engineFigures {
		tell(f.desc, f.kind, f.value(&gathered))
	}
	tell(nodeReady, prometheus.GaugeValue, truth(s.ready() == nil))
	for protocol, l := range map[string]*boundedListener{"grpc": s.grpcListener, "http": s.httpListener} {
		if l != nil {
			tell(openConns, prometheus.GaugeValue, number(l.open.Load()), protocol)
		}
	}
	var err error
	gathered.node, err = s.node.Metrics()
	tell(nodeUp, prometheus.GaugeValue, truth(err == nil))
	if err != nil {
		// A node that is closing has none any more; the scrape says so and goes on.
		return
	}
	for _, f := range figures {
		tell(f.desc, f.kind, f.value(&gathered))
	}
	collectPeers(gathered.node.Peers, tell)
	for i, store := range s.node.Stores() {
		if i == storesShown {
			break
		}
		tell(storeSize, prometheus.GaugeValue, number(store.Tuples), store.Name)
	}
}
