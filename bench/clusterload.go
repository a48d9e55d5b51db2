package main

import (
	"context"
	"fmt"
	"time"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

// spreadCallers is how many callers read through one node or several, afterWriteCallers
// how many read on another node what they wrote.
var (
	spreadCallers     = 48
	afterWriteCallers = []int{1, 16}
)

// parts returns all that a run with several nodes can do, in its order.
func (r *clusterRun) parts() []part {
	var parts []part
	add := func(b block) {
		parts = append(parts, part{b.name, func(ctx context.Context) error { return r.runBlock(ctx, b) }})
	}
	parts = append(parts, part{"cluster/idle", r.idle})
	for _, callers := range concurrency {
		add(r.writeBlock(callers))
	}
	add(r.spreadBlock())
	for _, callers := range concurrency {
		add(r.linearizableBlock(callers))
	}
	for _, callers := range afterWriteCallers {
		add(r.afterWriteBlock(callers))
	}
	tuples := r.config.tuples
	return append(parts,
		part{"cluster/failover", r.failover},
		part{"cluster/catchup/" + short(tuples), func(ctx context.Context) error { return r.catchup(ctx, tuples) }})
}

// An idleSum is what nodes take while nobody asks them anything.
type idleSum struct {
	name string
	// share is the part of one processor that a node takes, and carried how many bytes a
	// node sends in a second, of each round.
	share, carried []float64
}

// idle measures nodes that are asked nothing.
func (r *clusterRun) idle(ctx context.Context) error {
	var sums []*idleSum
	for _, open := range []func(context.Context) (*group, error){r.aloneNode, r.portNode, r.threeNodes} {
		g, err := open(ctx)
		if err != nil {
			return err
		}
		leader, err := g.leader(ctx)
		if err != nil {
			return err
		}
		for _, m := range g.members {
			if err := m.settle(ctx); err != nil {
				return err
			}
		}
		sum := &idleSum{name: g.name}
		nodes := float64(len(g.members))
		for range r.config.rounds {
			sent, err := g.count(leader)
			if err != nil {
				return err
			}
			before, err := processorOfAll(g.servers(leader))
			if err != nil {
				return err
			}
			begin := time.Now()
			if err := pause(ctx, idleLengths*r.config.length()); err != nil {
				return err
			}
			took := time.Since(begin).Seconds()
			after, err := processorOfAll(g.servers(leader))
			if err != nil {
				return err
			}
			now, err := g.count(leader)
			if err != nil {
				return err
			}
			sum.share = append(sum.share, 100*(after-before).Seconds()/took/nodes)
			sum.carried = append(sum.carried, float64(now.Sent-sent.Sent)/took/nodes)
		}
		sums = append(sums, sum)
	}
	return r.report.idle(sums)
}

// idleLengths is how much longer a slice without calls is than one with: what nodes do
// by themselves comes in seconds.
const idleLengths = 5

// writeBlock measures writes of one tuple: on one node, on one whose port for others
// is open, and on three, asked through the leader and through another.
func (r *clusterRun) writeBlock(callers int) block {
	type opener func(context.Context) (*group, error)
	through := func(name string, nodes int, open opener, choose func(*group, *member) *member) row {
		return row{
			name: name, parameters: map[string]any{"kind": string(write), "nodes": nodes, "callers": callers, "through": name}, group: open,
			measure: func(ctx context.Context) (*slice, error) {
				g, err := open(ctx)
				if err != nil {
					return nil, err
				}
				return g.whileLed(ctx, func(leader *member) (*slice, error) {
					m := choose(g, leader)
					s, made, err := runSliceOn(ctx, g.servers(leader), callers, 0, r.config.length(), m.write(1))
					if err != nil {
						return nil, err
					}
					// Each node is asked for what was written by way of one.
					for _, other := range g.running() {
						if err := r.verifyOn(ctx, other, m, made); err != nil {
							return nil, err
						}
					}
					return s, nil
				})
			},
		}
	}
	self := func(_ *group, leader *member) *member { return leader }
	other := func(g *group, leader *member) *member { return g.others(leader)[0] }
	return block{id("cluster/write/callers=", callers), []row{
		through("alone", 1, r.aloneNode, self), through("port", 1, r.portNode, self),
		through("leader", clusterNodes, r.threeNodes, self), through("follower", clusterNodes, r.threeNodes, other),
	}}
}

// verifyOn asks one node for what callers wrote last by way of another.
func (r *clusterRun) verifyOn(ctx context.Context, asked, writer *member, callers []*caller) error {
	t := &target{server: asked.server, data: r.data}
	t.fresh.Store(writer.target.fresh.Load()) // So that what nobody wrote is known.
	if err := t.verifyWrites(ctx, callers); err != nil {
		return fmt.Errorf("on %s, of what was written by way of %s: %w", asked.id, writer.id, err)
	}
	return nil
}

// checkAt makes calls that ask one question each, at a consistency; nil for the newest
// state of the node that is asked.
func (t *target) checkAt(ask *checks, next questions, at *pembav1.Consistency) callFunc {
	return func(ctx context.Context, c *caller, i uint64) error {
		q, err := next(i)
		if err != nil {
			return err
		}
		request := ask.request(q)
		request.Consistency = at
		answer, err := t.permissions.Check(ctx, request)
		if err != nil {
			return err
		}
		c.items++
		return ask.verify(q, answer.GetDecision())
	}
}

// checkRow asks checks of some members of three nodes.
func (r *clusterRun) checkRow(name string, callers int, open func(context.Context) (*group, error), at *pembav1.Consistency,
	parameters map[string]any, choose func(*group, *member) []*member,
) row {
	parameters["kind"], parameters["callers"], parameters["through"] = string(check), callers, name
	return row{
		name: name, parameters: parameters, group: open,
		measure: func(ctx context.Context) (*slice, error) {
			g, err := open(ctx)
			if err != nil {
				return nil, err
			}
			ask := r.data.checks["view"]
			next := ask.repeated(drawnQuestions, r.config.seed)
			return g.whileLed(ctx, func(leader *member) (*slice, error) {
				call := spreadCalls(choose(g, leader), func(m *member) callFunc { return m.checkAt(ask, next, at) })
				s, _, err := runSliceOn(ctx, g.servers(leader), callers, 0, r.config.length(), call)
				return s, err
			})
		},
	}
}

// spreadBlock measures checks of the newest state here, through one node of one and
// through one, two and three of three.
func (r *clusterRun) spreadBlock() block {
	rows := []row{r.checkRow("alone", spreadCallers, r.aloneNode, nil, map[string]any{"nodes": 1, "consistency": "newest"},
		func(_ *group, leader *member) []*member { return []*member{leader} })}
	for n := range clusterNodes {
		rows = append(rows, r.checkRow(id("nodes=", n+1), spreadCallers, r.threeNodes, nil, map[string]any{"nodes": clusterNodes, "consistency": "newest"},
			func(g *group, leader *member) []*member { return append(g.others(leader), leader)[:n+1] }))
	}
	return block{id("cluster/check/newest/callers=", spreadCallers), rows}
}

// linearizableBlock measures linearizable checks beside those of the newest state here.
func (r *clusterRun) linearizableBlock(callers int) block {
	self := func(_ *group, leader *member) []*member { return []*member{leader} }
	other := func(g *group, leader *member) []*member { return g.others(leader)[:1] }
	about := func(consistency string) map[string]any {
		return map[string]any{"nodes": clusterNodes, "consistency": consistency}
	}
	return block{id("cluster/check/linearizable/callers=", callers), []row{
		r.checkRow("newest", callers, r.threeNodes, nil, about("newest"), self),
		r.checkRow("leader", callers, r.threeNodes, linearizable(), about("linearizable"), self),
		r.checkRow("follower", callers, r.threeNodes, linearizable(), about("linearizable"), other),
	}}
}

// afterWriteBlock measures checks on one node right after a write by way of another, of
// the newest state there and of one that holds the write.
func (r *clusterRun) afterWriteBlock(callers int) block {
	through := func(name string, atLeast, writeFollower bool) row {
		return row{
			name: name, parameters: map[string]any{"kind": string(check), "nodes": clusterNodes, "callers": callers, "through": name}, group: r.threeNodes,
			measure: func(ctx context.Context) (*slice, error) {
				g, err := r.threeNodes(ctx)
				if err != nil {
					return nil, err
				}
				return g.whileLed(ctx, func(leader *member) (*slice, error) {
					others := g.others(leader)
					writer, reader := leader, others[0]
					if writeFollower {
						writer, reader = others[0], others[1]
					}
					s, _, err := runSliceOn(ctx, g.servers(leader), callers, 0, r.config.length(), writeThenCheck(writer, reader, atLeast))
					if err != nil {
						return nil, err
					}
					s.latency = s.first // What the write took is told by its own block.
					return s, nil
				})
			},
		}
	}
	return block{id("cluster/check/after-write/callers=", callers), []row{
		through("newest", false, false), through("at-least", true, false), through("at-least/forwarded", true, true),
	}}
}

// writeThenCheck writes by way of one member and asks another for it. The time of the
// check is counted as that to a first result.
func writeThenCheck(writer, reader *member, atLeast bool) callFunc {
	return func(ctx context.Context, c *caller, _ uint64) (err error) {
		if c.written, err = writer.touch(ctx, 1); err != nil {
			return err
		}
		c.items++
		request := writer.data.written(c.written.tuple)
		if atLeast {
			request.Consistency = &pembav1.Consistency{Requirement: &pembav1.Consistency_AtLeastAsFresh{AtLeastAsFresh: c.written.at}}
		}
		begin := time.Now()
		answer, err := reader.permissions.Check(ctx, request)
		if err != nil {
			return err
		}
		c.first.record(time.Since(begin))
		switch allowed := answer.GetDecision() == pembav1.Decision_DECISION_ALLOWED; {
		case allowed:
		case atLeast:
			return fmt.Errorf("wrong answer: after a write, %s is %s on %s; right is allowed", request, answer.GetDecision(), reader.id)
		default:
			c.behind++
		}
		return nil
	}
}
