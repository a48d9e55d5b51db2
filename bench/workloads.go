package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A kind is what a workload does over and over.
type kind string

const (
	// check asks one question a call.
	check kind = "check"
	// bulk asks workload.batch questions a call.
	bulk kind = "bulk"
	// resources and subjects look up, and read all results.
	resources kind = "resources"
	subjects  kind = "subjects"
	// write touches workload.batch new tuples a call.
	write kind = "write"
)

// A source names the data of a workload.
type source struct {
	model string
	size  int
	// byWrites is whether the data are loaded by writes of importBatch tuples
	// instead of one import.
	byWrites bool
}

func (s source) String() string { return s.model + "/" + short(s.size) }

// short writes a size such as 10k or 1m.
func short(n int) string {
	switch {
	case n >= 1_000_000 && n%1_000_000 == 0:
		return strconv.Itoa(n/1_000_000) + "m"
	case n >= 1000 && n%1000 == 0:
		return strconv.Itoa(n/1000) + "k"
	}
	return strconv.Itoa(n)
}

// A workload is one line of the report.
type workload struct {
	source
	kind kind
	// ask is the name of the checks or lookups of the data; empty for writes.
	ask string
	// callers is how many calls are under way at once; in an open loop, at most.
	callers int
	// questions is how many different questions are repeated; 0 asks each
	// question once.
	questions int
	// batch is how many questions or tuples a call has; 0 means one.
	batch int
	// rate is how many calls are begun in a second, whatever the answers take;
	// 0 begins each when the one before is answered.
	rate float64
	// beside is how many writes of one tuple are made in a second beside.
	beside float64
	// pruning is whether, in each round, a past is made, the calls are made once,
	// and then once more while that past is removed beside.
	pruning bool
	// authzed is whether the checks are asked through authzed.api.v1, and in each
	// round as many through pemba.v1.
	authzed bool
	// quick workloads are part of the quick run, and vast ones of that alone which asks
	// for them: their data take a minute or more to load.
	quick, vast bool
}

// changes says whether it leaves the data other than it found them.
func (w *workload) changes() bool { return w.kind == write || w.pruning }

// name returns the name by which --run selects.
func (w *workload) name() string {
	parts := []string{w.String(), string(w.kind)}
	if w.ask != "" {
		parts = append(parts, w.ask)
	}
	if w.kind == check || w.kind == bulk {
		switch w.questions {
		case 0:
			parts = append(parts, "cold")
		case hotQuestions:
			parts = append(parts, "hot")
		}
	}
	if w.batch > 0 {
		parts = append(parts, fmt.Sprintf("batch=%d", w.batch))
	}
	if w.beside > 0 {
		parts = append(parts, fmt.Sprintf("beside=%g", w.beside))
	}
	if w.pruning {
		parts = append(parts, "pruning")
	}
	if w.authzed {
		parts = append(parts, "authzed")
	}
	if w.rate > 0 {
		parts = append(parts, fmt.Sprintf("rate=%g", w.rate))
	}
	return strings.Join(append(parts, fmt.Sprintf("callers=%d", w.callers)), "/")
}

// parameters returns what a program may want to know without taking the name
// apart.
func (w *workload) parameters() map[string]any {
	p := map[string]any{"model": w.model, "size": w.size, "kind": string(w.kind), "callers": w.callers}
	if w.kind == check || w.kind == bulk {
		p["questions"] = w.questions
	}
	if w.ask != "" {
		p["ask"] = w.ask
	}
	if w.pruning {
		p["pruning"] = true
	}
	if w.authzed {
		p["api"] = "authzed.api.v1"
	}
	for name, value := range map[string]float64{"batch": float64(w.batch), "rate": w.rate, "beside": w.beside} {
		if value > 0 {
			p[name] = value
		}
	}
	return p
}

const (
	// hotQuestions is how many questions are repeated where they are hot, and
	// drawnQuestions where the data has few that differ.
	hotQuestions   = 64
	drawnQuestions = 4096
	// bulkBatch is how many questions a bulk check has, writeBatch how many
	// tuples a large write.
	bulkBatch  = 100
	writeBatch = 100
)

// The data, and how many calls are under way at once.
var (
	small       = source{model: "business", size: 10_000, byWrites: true}
	middle      = source{model: "business", size: 100_000}
	large       = source{model: "business", size: 1_000_000}
	huge        = source{model: "business", size: 10_000_000}
	deep        = source{model: "depth", size: 20_000}
	wideQuick   = source{model: "width", size: 10_000}
	wide        = source{model: "width", size: 100_000}
	widest      = source{model: "width", size: 1_000_000}
	concurrency = []int{1, 16, 64}
)

// workloads returns all of them, those on the same data together and last those
// that change the data.
func workloads() []workload {
	var all []workload
	add := func(w workload) { all = append(all, w) }
	for _, s := range []source{small, middle, large} {
		for _, callers := range concurrency {
			for _, questions := range []int{hotQuestions, 0} {
				quick := s == middle || s == small && callers == 16
				add(workload{source: s, kind: check, ask: "view", callers: callers, questions: questions, quick: quick})
			}
		}
		if s == small {
			continue
		}
		quick := s == middle
		for _, beside := range []float64{200, 500} {
			add(workload{source: s, kind: check, ask: "view", callers: 16, beside: beside, quick: quick && beside == 200})
		}
		if s == middle { // What the words of an API cost does not depend on the data.
			for _, callers := range []int{1, 16} {
				for _, questions := range []int{hotQuestions, 0} {
					add(workload{source: s, kind: check, ask: "view", callers: callers, questions: questions, authzed: true, quick: callers == 16 && questions == 0})
				}
			}
		}
		for _, rate := range []float64{2000, 8000} {
			add(workload{source: s, kind: check, ask: "view", callers: 64, rate: rate, quick: quick && rate == 2000})
		}
		add(workload{source: s, kind: bulk, ask: "view", callers: 1, batch: bulkBatch, quick: quick})
		add(workload{source: s, kind: bulk, ask: "view", callers: 16, batch: bulkBatch})
		add(workload{source: s, kind: resources, ask: "few", callers: 1, quick: quick})
		if s != large { // One call of it takes seconds there.
			add(workload{source: s, kind: resources, ask: "all", callers: 1})
		}
		add(workload{source: s, kind: subjects, ask: "document", callers: 1, quick: quick})
		for _, batch := range []int{0, writeBatch} {
			for _, callers := range concurrency {
				add(workload{source: s, kind: write, callers: callers, batch: batch, quick: quick && (batch == 0 || callers < 64)})
			}
		}
		// The rate leaves processors free, so that the tail shows what pruning does
		// and not how long the queue is; with 16 callers there is always one.
		add(workload{source: s, kind: check, ask: "view", callers: 64, rate: 2000, pruning: true})
		add(workload{source: s, kind: check, ask: "view", callers: 16, pruning: true})
	}
	for _, depth := range depths {
		for _, through := range []string{"groups=", "folders="} {
			quick := depth == depths[0] || depth == depths[len(depths)-1]
			add(workload{source: deep, kind: check, ask: id(through, depth), callers: 16, questions: drawnQuestions, quick: quick})
		}
	}
	// The quick run has less data, of the same names below its size.
	for _, s := range []source{wideQuick, wide} {
		quick := s == wideQuick
		for _, width := range widths[:len(widths)-countAbove(widths, s.size)] {
			if end := width == widths[0] || width == s.size; end || !quick {
				add(workload{source: s, kind: check, ask: id("width=", width), callers: 16, questions: drawnQuestions, quick: quick})
			}
			if width == s.size {
				add(workload{source: s, kind: subjects, ask: id("width=", width), callers: 1, quick: quick})
			}
		}
		for _, fan := range fans {
			if end := fan == fans[0] || fan == 1000; end || !quick {
				add(workload{source: s, kind: check, ask: id("fan=", fan), callers: 16, questions: drawnQuestions, quick: quick})
			}
		}
	}
	// The rest is of vast data. Nothing is asked there twice, but by chance.
	for _, callers := range concurrency {
		add(workload{source: huge, kind: check, ask: "view", callers: callers, vast: true})
	}
	for _, beside := range []float64{200, 500} {
		add(workload{source: huge, kind: check, ask: "view", callers: 16, beside: beside, vast: true})
	}
	add(workload{source: huge, kind: bulk, ask: "view", callers: 1, batch: bulkBatch, vast: true})
	for _, callers := range concurrency {
		add(workload{source: huge, kind: write, callers: callers, vast: true})
	}
	for _, width := range widths {
		add(workload{source: widest, kind: check, ask: id("width=", width), callers: 16, questions: drawnQuestions, vast: true})
	}
	return all
}

// plan returns the workloads of a run, by their data and in the order of their
// first.
func plan(c *config) [][]workload {
	var order []source
	chosen := map[source][]workload{}
	for _, w := range workloads() {
		if c.vast != w.vast || c.quick && !w.quick || !c.quick && w.source == wideQuick {
			continue
		}
		listed := w.name() // With a rate of the command line it has another.
		if c.rate > 0 && (w.kind == check || w.kind == bulk) {
			w.rate = c.rate
		}
		if !c.run.MatchString(listed) && !c.run.MatchString(w.name()) || slices.ContainsFunc(chosen[w.source], func(other workload) bool { return other.name() == w.name() }) {
			continue
		}
		if !slices.Contains(order, w.source) {
			order = append(order, w.source)
		}
		chosen[w.source] = append(chosen[w.source], w)
	}
	var groups [][]workload
	for _, s := range order {
		groups = append(groups, chosen[s])
	}
	return groups
}
