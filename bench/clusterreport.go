package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
)

// The names of the measures that only several nodes have.
const (
	measureEntries = "entries/sync"
	measureSyncs   = "syncs"
	measureReaders = "readers/round"
	measureCarried = "between nodes"
	measureBehind  = "behind"
)

// rowFigures returns what is measured of a row of a block.
func rowFigures(w *row) []figure {
	list := callFigures()
	perCall := func(of func(*slice) uint64) func(*slice) float64 {
		return func(s *slice) float64 { return float64(of(s)) / float64(s.latency.count) }
	}
	if w.parameters["kind"] == string(write) {
		list = append(list,
			figure{measureEntries, "entries", func(s *slice) float64 { return float64(s.entries) / float64(max(s.syncs, 1)) }, nil},
			figure{measureSyncs, "1/s", func(s *slice) float64 { return float64(s.syncs) / s.elapsed.Seconds() }, nil})
	}
	if w.parameters["consistency"] == "linearizable" {
		list = append(list, figure{measureReaders, "reads", func(s *slice) float64 { return float64(s.readers) / float64(max(s.confirms, 1)) }, nil})
	}
	if nodes, ok := w.parameters["nodes"].(int); ok && nodes > 1 {
		list = append(list, figure{measureCarried, "bytes/call", perCall(func(s *slice) uint64 { return s.carried }), nil})
	}
	return append(list, figure{measureBehind, "of 1", perCall(func(s *slice) uint64 { return s.behind }), nil})
}

// rowMeasures sums up the rounds of a row.
func rowMeasures(b block, w *row, rounds []round) []measure {
	var list []measure
	for _, f := range rowFigures(w) {
		m := measure{Workload: b.name + "/" + w.name, Parameters: w.parameters, Measure: f.measure, Unit: f.unit, Rounds: len(rounds)}
		m.spread = spreadOver(rounds, func(r round) float64 { return f.of(r.pemba) })
		if f.base != nil {
			m.Base, m.Ratio = compared(rounds, f, func(r round) float64 { return f.base(r.base) })
		}
		list = append(list, m)
	}
	return list
}

// rows reports a block.
func (r *report) rows(b block, measured [][]round) error {
	var text strings.Builder
	fmt.Fprintf(&text, "\n%-*s", nameWidth, "")
	for _, c := range columns {
		fmt.Fprintf(&text, "  %*s", c.width, strings.Replace(c.head, "echo", "base", 1))
	}
	text.WriteByte('\n')
	for i := range b.rows {
		list := rowMeasures(b, &b.rows[i], measured[i])
		if err := r.encode(list); err != nil {
			return err
		}
		appendRow(&text, b.name+"/"+b.rows[i].name, list)
		var more []string
		for _, m := range list {
			switch m.Measure {
			case measureEntries, measureSyncs, measureReaders, measureCarried:
				more = append(more, m.Measure+" "+m.text())
			case measureBehind:
				if m.Max > 0 {
					more = append(more, m.Measure+" "+m.text())
				}
			}
		}
		if len(more) > 0 {
			text.WriteString("    " + strings.Join(more, ", ") + "\n")
		}
	}
	_, err := io.WriteString(r.table, text.String())
	return err
}

// several is a measure of some rounds.
func several(what, unit string, values []float64) measure {
	return measure{Measure: what, Unit: unit, Rounds: len(values), spread: spreadOf(values)}
}

// list reports measures, a line each below a head.
func (r *report) list(head, name string, parameters map[string]any, list []measure) error {
	for i := range list {
		list[i].Workload, list[i].Parameters = name, parameters
	}
	if err := r.encode(list); err != nil {
		return err
	}
	var text strings.Builder
	text.WriteString("\n" + head + "\n")
	for _, m := range list {
		value := number(m.Median)
		if m.Rounds > 1 {
			value = m.text()
		}
		fmt.Fprintf(&text, "    %-36s %24s %s\n", m.Measure, value, m.Unit)
	}
	_, err := io.WriteString(r.table, text.String())
	return err
}

// idle reports what nodes take that are asked nothing.
func (r *report) idle(sums []*idleSum) error {
	var list []measure
	for _, sum := range sums {
		if runtime.GOOS == "linux" {
			list = append(list, several(sum.name+", processor of a node", "% of one", sum.share))
		}
		list = append(list, several(sum.name+", sent by a node", "bytes/s", sum.carried))
	}
	return r.list("cluster/idle: nodes that are asked nothing", "cluster/idle", map[string]any{"nodes": clusterNodes}, list)
}

// failedOver reports what became of the kills.
func (r *report) failedOver(c *config, sum *failoverSum) error {
	list := []measure{
		several("writes again, through one node", "ms", sum.first),
		several("writes again, through both", "ms", sum.all),
		several("the killed node answers again", "ms", sum.back),
		once("checks through the others", "calls", float64(sum.checks.count)),
		once("of these failed", "calls", float64(sum.failed)),
		once("checks p50", "us", microseconds(sum.checks.quantile(0.5))),
		once("checks p99", "us", microseconds(sum.checks.quantile(0.99))),
		once("checks, the longest", "us", microseconds(sum.longest)),
		once("acknowledged writes", "calls", float64(len(sum.written))),
		once("of these lost", "calls", float64(sum.lost)),
	}
	for _, code := range slices.SortedFunc(maps.Keys(sum.refused), func(a, b codes.Code) int { return cmp.Compare(a, b) }) {
		list = append(list, once("writes through the others: "+code.String(), "calls", float64(sum.refused[code])))
	}
	parameters := map[string]any{"nodes": clusterNodes, "kills": sum.kills, "election_timeout_ms": c.election.Milliseconds(), "away_ms": c.away.Milliseconds()}
	return r.list(fmt.Sprintf("cluster/failover: the leader of %d nodes killed %d times", clusterNodes, sum.kills), "cluster/failover", parameters, list)
}

// caughtUp reports what it took fresh nodes to catch up.
func (r *report) caughtUp(c *config, size, tuples int, all []*caughtUp) error {
	take := func(what, unit string, of func(*caughtUp) float64) measure {
		values := make([]float64, len(all))
		for i, one := range all {
			values[i] = of(one)
		}
		return several(what, unit, values)
	}
	seconds := func(of func(*caughtUp) time.Duration) func(*caughtUp) float64 {
		return func(c *caughtUp) float64 { return of(c).Seconds() }
	}
	list := []measure{
		take("member", "s", seconds(func(c *caughtUp) time.Duration { return c.joined })),
		take("answers", "s", seconds(func(c *caughtUp) time.Duration { return c.answered })),
		take("voter", "s", seconds(func(c *caughtUp) time.Duration { return c.voted })),
		take("sent", "MiB", func(c *caughtUp) float64 { return float64(c.bytes) / (1 << 20) }),
		take("of it the state", "MiB", func(c *caughtUp) float64 { return float64(c.stateBytes) / (1 << 20) }),
		take("sent for a tuple", "bytes", func(c *caughtUp) float64 { return float64(c.bytes) / float64(tuples) }),
		take("sent until it answers", "MiB/s", func(c *caughtUp) float64 { return float64(c.bytes) / (1 << 20) / c.answered.Seconds() }),
		take("states put into force", "states", func(c *caughtUp) float64 { return float64(c.installed) }),
		take("processor of the fresh node", "us/tuple", func(c *caughtUp) float64 { return microseconds(c.processor) / float64(tuples) }),
	}
	for _, q := range callFigures() {
		if q.measure == measureCalls {
			continue // They are begun at a rate.
		}
		list = append(list,
			take("checks before, "+q.measure, q.unit, func(c *caughtUp) float64 { return q.of(c.before) }),
			take("checks during, "+q.measure, q.unit, func(c *caughtUp) float64 { return q.of(c.during) }),
			take("checks during/before, "+q.measure, "", func(c *caughtUp) float64 { return q.of(c.during) / q.of(c.before) }),
			take("checks after/before, "+q.measure, "", func(c *caughtUp) float64 { return q.of(c.after) / q.of(c.before) }))
	}
	name := "cluster/catchup/" + short(size)
	parameters := map[string]any{"tuples": tuples, "state_bytes_per_second": c.stateRate}
	return r.list(fmt.Sprintf("%s: a fresh node joins one with %d tuples", name, tuples), name, parameters, list)
}
