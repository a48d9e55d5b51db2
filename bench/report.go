package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"
)

// A round is one slice of a workload beside one of the echo right before it.
type round struct {
	echo, pemba *slice
	// without is the same between the two, without pruning beside; nil for
	// workloads that have none.
	without *slice
	// native is the same through pemba.v1, next to pemba; nil for workloads that
	// are of that API themselves.
	native *slice
	// base is the first row's slice of a block with several nodes, which then has no
	// echo; nil elsewhere.
	base *slice
}

// A measure is one figure of a workload, a line of the JSON output.
type measure struct {
	Workload   string         `json:"workload"`
	Parameters map[string]any `json:"parameters"`
	// Measure says what, Unit in what.
	Measure string `json:"measure"`
	Unit    string `json:"unit"`
	Rounds  int    `json:"rounds"`
	spread
	// Echo is the same of the echo, and Ratio what the rounds divided by their
	// echoes are; nil where the echo has no such figure.
	Echo  *spread `json:"echo,omitempty"`
	Ratio *spread `json:"ratio,omitempty"`
	// Without is the same without pruning beside, and Slowdown what the rounds
	// divided by that are; nil where there is no pruning.
	Without  *spread `json:"without,omitempty"`
	Slowdown *spread `json:"slowdown,omitempty"`
	// Native is the same through pemba.v1, and Overhead what the rounds divided by
	// that are; nil for workloads of that API.
	Native   *spread `json:"native,omitempty"`
	Overhead *spread `json:"overhead,omitempty"`
	// Base is the same of the first row of a block with several nodes, where Ratio is
	// what the rounds divided by that are; nil elsewhere.
	Base *spread `json:"base,omitempty"`
}

// A figure is how a measure is taken from a slice.
type figure struct {
	measure, unit string
	of            func(*slice) float64
	// base is what it is compared with in the slice of the echo; nil for
	// nothing.
	base func(*slice) float64
}

// The names of the measures that the table shows too.
const (
	measureCalls     = "calls"
	measureMedian    = "p50"
	measureSlow      = "p95"
	measureSlowest   = "p99"
	measureProcessor = "processor"
	measureFirst     = "first p50"
	measureItems     = "items"
	measureUnsent    = "unsent"
	measureBeside    = "beside"
	measurePruned    = "pruned"
)

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func quantileOf(q float64) func(*slice) float64 {
	return func(s *slice) float64 { return microseconds(s.latency.quantile(q)) }
}

func callsOf(s *slice) float64 { return float64(s.latency.count) / s.elapsed.Seconds() }

func processorOf(s *slice) float64 { return microseconds(s.processor) / float64(s.latency.count) }

// callFigures returns what is measured of calls, whatever they are.
func callFigures() []figure {
	median, slow, slowest := quantileOf(0.5), quantileOf(0.95), quantileOf(0.99)
	list := []figure{
		{measureCalls, "1/s", callsOf, callsOf},
		{measureMedian, "us", median, median},
		{measureSlow, "us", slow, slow},
		{measureSlowest, "us", slowest, slowest},
	}
	if runtime.GOOS == "linux" {
		list = append(list, figure{measureProcessor, "us/call", processorOf, processorOf})
	}
	return list
}

// figures returns what is measured of a workload.
func figures(w *workload) []figure {
	list := callFigures()
	if w.kind == resources || w.kind == subjects {
		list = append(list, figure{measureFirst, "us", func(s *slice) float64 { return microseconds(s.first.quantile(0.5)) }, quantileOf(0.5)})
	}
	if w.kind != check {
		list = append(list, figure{measureItems, itemsOf(w) + "/s", func(s *slice) float64 { return float64(s.items) / s.elapsed.Seconds() }, nil})
	}
	if w.rate > 0 {
		list = append(list, figure{measureUnsent, "calls", func(s *slice) float64 { return float64(s.unsent) }, nil})
	}
	if w.beside > 0 {
		list = append(list, figure{measureBeside, "writes/s", func(s *slice) float64 { return float64(s.beside) / s.elapsed.Seconds() }, nil})
	}
	if w.pruning {
		list = append(list, figure{measurePruned, "tuples/s", func(s *slice) float64 { return float64(s.pruned) / s.elapsed.Seconds() }, nil})
	}
	return list
}

// itemsOf names what the calls of a workload have many of.
func itemsOf(w *workload) string {
	switch w.kind {
	case check, bulk:
		return "checks"
	case write:
		return "tuples"
	}
	return "results"
}

// measuresOf sums up the rounds of a workload.
func measuresOf(w *workload, rounds []round) []measure {
	var list []measure
	for _, f := range figures(w) {
		m := measure{Workload: w.name(), Parameters: w.parameters(), Measure: f.measure, Unit: f.unit, Rounds: len(rounds)}
		m.spread = spreadOver(rounds, func(r round) float64 { return f.of(r.pemba) })
		if f.base != nil {
			m.Echo, m.Ratio = compared(rounds, f, func(r round) float64 { return f.base(r.echo) })
		}
		if w.pruning && f.base != nil {
			m.Without, m.Slowdown = compared(rounds, f, func(r round) float64 { return f.of(r.without) })
		}
		if w.authzed && f.base != nil {
			m.Native, m.Overhead = compared(rounds, f, func(r round) float64 { return f.of(r.native) })
		}
		list = append(list, m)
	}
	return list
}

// spreadOver sums up one figure of each round.
func spreadOver(rounds []round, of func(round) float64) spread {
	values := make([]float64, len(rounds))
	for i, r := range rounds {
		values[i] = of(r)
	}
	return spreadOf(values)
}

// compared returns what a figure is compared with, and the figure divided by it
// in each round where that is above 0; nil when it never is.
func compared(rounds []round, f figure, with func(round) float64) (base, ratio *spread) {
	var ratios []float64
	for _, r := range rounds {
		if b := with(r); b > 0 {
			ratios = append(ratios, f.of(r.pemba)/b)
		}
	}
	if len(ratios) == 0 {
		return nil, nil
	}
	bases, spreads := spreadOver(rounds, with), spreadOf(ratios)
	return &bases, &spreads
}

// A report writes results as they come: a table for people, and JSON lines for
// programs.
type report struct {
	table io.Writer
	// file and lines are nil without JSON.
	file  *os.File
	lines *bufio.Writer
	// headed is whether the head of the table stands.
	headed bool
}

func newReport(c *config) (*report, error) {
	r := &report{table: c.output}
	load, err := machineLoad()
	if err != nil {
		return nil, err
	}
	if c.json != "" {
		if r.file, err = os.Create(c.json); err != nil {
			return nil, err
		}
		r.lines = bufio.NewWriter(r.file)
	}
	divided := "in /echo columns, divided by an empty gRPC echo's of the same round"
	if c.cluster {
		divided = "in /base columns, divided by those of the first line of the block in the same round\n" + c.settings()
	}
	_, err = fmt.Fprintf(r.table, "%s/%s, %d processors, %s before, %s; %d rounds of %g s, seed %d\n"+
		"cells: the median of the rounds (least..most); %s\n"+
		"what lines and columns are: bench/README.md\n",
		runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), load, runtime.Version(), c.rounds, c.seconds, c.seed, divided)
	return r, err
}

// ended tells how long the run took, and how busy the machine was.
func (r *report) ended(took time.Duration) error {
	load, err := machineLoad()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(r.table, "\nthe run took %.1f s, %s\n", took.Seconds(), load)
	return err
}

// close writes out the JSON lines.
func (r *report) close() error {
	if r.file == nil {
		return nil
	}
	return errors.Join(r.lines.Flush(), r.file.Close())
}

// encode writes measures as JSON lines.
func (r *report) encode(list []measure) error {
	if r.lines == nil {
		return nil
	}
	encoder := json.NewEncoder(r.lines)
	for i := range list {
		if err := encoder.Encode(&list[i]); err != nil {
			return err
		}
	}
	return nil
}

// loaded is what loading the data took.
type loaded struct {
	tuples   int
	byWrites bool
	// took is the time of the load and processor that of the server's
	// processors; restart is the time to the first answer of a new process.
	took, processor, restart time.Duration
	// state and log are what the two folders of the node take on the disk.
	state, log int64
	// resident is the memory of the server after the load and quiet that after
	// the restart, both less that of an empty server.
	resident, quiet int64
}

// block writes figures that were measured once, a line each below a head.
func (r *report) block(head, name string, parameters map[string]any, list []measure) error {
	for i := range list {
		list[i].Workload, list[i].Parameters, list[i].Rounds = name, parameters, 1
	}
	if err := r.encode(list); err != nil {
		return err
	}
	var text strings.Builder
	text.WriteString("\n" + head + "\n")
	for _, m := range list {
		value, unit := m.Median, m.Unit
		if value < 0 {
			value, unit = 0, unit+" (less than the empty server has)"
		}
		fmt.Fprintf(&text, "    %-28s %8s %s\n", m.Measure, number(value), unit)
	}
	r.headed = false
	_, err := io.WriteString(r.table, text.String())
	return err
}

// once is a measure of one round.
func once(what, unit string, value float64) measure {
	return measure{Measure: what, Unit: unit, spread: spreadOf([]float64{value})}
}

// loaded reports the load of some data.
func (r *report) loaded(from source, l loaded) error {
	parameters := map[string]any{"model": from.model, "size": from.size, "tuples": l.tuples, "by": "import"}
	if l.byWrites {
		parameters["by"] = "writes"
	}
	count := float64(l.tuples)
	list := []measure{
		once("tuples", "1/s", count/l.took.Seconds()),
		once("state", "bytes/tuple", float64(l.state)/count),
		once("log", "MiB", float64(l.log)/(1<<20)),
		once("restart", "ms", float64(l.restart)/float64(time.Millisecond)),
	}
	if runtime.GOOS == "linux" {
		list = append(list,
			once("resident after load", "bytes/tuple", float64(l.resident)/count),
			once("resident after restart", "bytes/tuple", float64(l.quiet)/count),
			once(measureProcessor, "us/tuple", microseconds(l.processor)/count))
	}
	name := from.String() + "/load"
	return r.block(fmt.Sprintf("%s by %s: %d tuples", name, parameters["by"], l.tuples), name, parameters, list)
}

// asked reports the memory after all questions, less that of an empty server.
func (r *report) asked(from source, tuples int, resident int64) error {
	if runtime.GOOS != "linux" {
		return nil
	}
	name := from.String() + "/asked"
	parameters := map[string]any{"model": from.model, "size": from.size, "tuples": tuples}
	return r.block(name+": after all questions", name, parameters, []measure{
		once("resident after questions", "bytes/tuple", float64(resident)/float64(tuples)),
	})
}

// number writes a figure with three digits that count, one below 0.1 with two.
func number(f float64) string {
	switch {
	case f >= 999_500:
		return number(f/1e6) + "M"
	case f >= 9_995:
		return number(f/1e3) + "k"
	case f >= 99.95:
		return fmt.Sprintf("%.0f", f)
	case f >= 9.995:
		return fmt.Sprintf("%.1f", f)
	case f >= 0.0995 || f == 0:
		return fmt.Sprintf("%.2f", f)
	}
	return fmt.Sprintf("%.2g", f)
}

// text writes a spread as "median (min..max)".
func (s spread) text() string {
	return fmt.Sprintf("%s (%s..%s)", number(s.Median), number(s.Min), number(s.Max))
}

// columns are the columns of the table, each with its width. The JSON lines have
// the spread of all.
var columns = []struct {
	head    string
	width   int
	measure string
	// ratio tells to show the ratio to the echo instead of the figure, and wide
	// to show its spread.
	ratio, wide bool
}{
	{"calls/s", 21, measureCalls, false, true},
	{"p50 us", 21, measureMedian, false, true},
	{"p95 us", 6, measureSlow, false, false},
	{"p99 us", 21, measureSlowest, false, true},
	{"cpu us", 6, measureProcessor, false, false},
	{"p50/echo", 18, measureMedian, true, true},
	{"p99/echo", 8, measureSlowest, true, false},
	{"calls/echo", 10, measureCalls, true, false},
	{"cpu/echo", 8, measureProcessor, true, false},
}

const nameWidth = 58

// cell writes what a column shows of a measure.
func cell(m *measure, ratio, wide bool) string {
	s := &m.spread
	if ratio {
		s = m.Ratio
	}
	switch {
	case s == nil:
		return "-"
	case wide:
		return s.text()
	}
	return number(s.Median)
}

// appendRow writes a line of the table.
func appendRow(text *strings.Builder, name string, list []measure) {
	fmt.Fprintf(text, "%-*s", nameWidth, name)
	for _, c := range columns {
		shown := "-"
		for i := range list {
			if list[i].Measure == c.measure {
				shown = cell(&list[i], c.ratio, c.wide)
			}
		}
		fmt.Fprintf(text, "  %*s", c.width, shown)
	}
	text.WriteByte('\n')
}

// appendOther writes a line of what the calls of a workload were compared with in
// each round, called name, and one of what list is divided by that.
func appendOther(text *strings.Builder, w *workload, rounds []round, list []measure, name, quotient string,
	other func(round) *slice, ratio func(*measure) *spread,
) {
	plain, alone := *w, make([]round, len(rounds))
	plain.pruning, plain.authzed = false, false
	for i, r := range rounds {
		alone[i] = round{echo: r.echo, pemba: other(r)}
	}
	appendRow(text, "    "+name, measuresOf(&plain, alone))
	var ratios []string
	for i := range list {
		switch m := &list[i]; m.Measure {
		case measureMedian, measureSlow, measureSlowest, measureProcessor:
			if r := ratio(m); r != nil {
				ratios = append(ratios, m.Measure+" "+r.text())
			}
		}
	}
	text.WriteString("    " + quotient + ": " + strings.Join(ratios, ", ") + "\n")
}

// measured reports the rounds of a workload.
func (r *report) measured(w *workload, rounds []round) error {
	list := measuresOf(w, rounds)
	if err := r.encode(list); err != nil {
		return err
	}
	var text strings.Builder
	if !r.headed {
		fmt.Fprintf(&text, "\n%-*s", nameWidth, "")
		for _, c := range columns {
			fmt.Fprintf(&text, "  %*s", c.width, c.head)
		}
		text.WriteByte('\n')
		r.headed = true
	}
	appendRow(&text, w.name(), list)
	if w.pruning {
		appendOther(&text, w, rounds, list, "the same without pruning", "with/without",
			func(r round) *slice { return r.without }, func(m *measure) *spread { return m.Slowdown })
	}
	if w.authzed {
		appendOther(&text, w, rounds, list, "the same through pemba.v1", "authzed/pemba",
			func(r round) *slice { return r.native }, func(m *measure) *spread { return m.Overhead })
	}
	// What only some workloads have stands on a line of its own.
	for _, m := range list {
		switch {
		case m.Measure == measureUnsent && m.Max == 0:
		case m.Measure == measureFirst, m.Measure == measureItems, m.Measure == measureUnsent, m.Measure == measureBeside, m.Measure == measurePruned:
			fmt.Fprintf(&text, "    %s: %s %s\n", m.Measure, m.text(), m.Unit)
		}
	}
	_, err := io.WriteString(r.table, text.String())
	return err
}
