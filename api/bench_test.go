package api

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

// The first figures: unary checks beside an empty echo, and writes. Client and
// server share the process and its processors, so only ratios within one run
// mean something:
//
//	go test ./api -run '^$' -bench 'Unary|Write' -count 5

// benchTuples is how many tuples the nested model has.
const benchTuples = 100_000

const benchSchema = `
definition person {}
definition group { relation member: person | group#member }
definition org {
	relation parent: org
	relation admin: person | group#member
	relation member: person
	permission manage = admin + parent->manage
}
definition account {
	relation org: org
	relation owner: person
	permission manage = owner + org->manage
}`

// A benchModel is a nested model of about benchTuples tuples: organisation trees
// to depth 8, groups to depth 6, accounts in organisations.
type benchModel struct {
	people int
	// trees holds the tree of organisations that each account is in, managers
	// the members of the groups that manage each tree, some six groups away.
	trees    []int
	managers [][]string
}

func (m *benchModel) tuples() []*pembav1.Tuple {
	r := rand.New(rand.NewPCG(1, 1))
	var tuples []*pembav1.Tuple
	add := func(ot, oid, relation, st, sid, srel string) {
		tuples = append(tuples, &pembav1.Tuple{
			Object: &pembav1.Object{Type: ot, Id: oid}, Relation: relation,
			Subject: &pembav1.Subject{Object: &pembav1.Object{Type: st, Id: sid}, Relation: srel},
		})
	}
	person := func() string { return fmt.Sprintf("p%d", r.IntN(m.people)) }
	const trees, perTree = 40, 127 // 127 organisations: depth 7 below the root
	m.managers = make([][]string, trees)
	for t := range trees {
		for g := range 6 {
			group := fmt.Sprintf("g%d-%d", t, g)
			if g > 0 {
				add("group", fmt.Sprintf("g%d-%d", t, g-1), "member", "group", group, "member")
			}
			for range 20 {
				p := person()
				add("group", group, "member", "person", p, "")
				m.managers[t] = append(m.managers[t], p)
			}
		}
		add("org", fmt.Sprintf("o%d-1", t), "admin", "group", fmt.Sprintf("g%d-0", t), "member")
		for o := 1; o <= perTree; o++ {
			org := fmt.Sprintf("o%d-%d", t, o)
			if o > 1 {
				add("org", org, "parent", "org", fmt.Sprintf("o%d-%d", t, o/2), "")
			}
			add("org", org, "admin", "person", person(), "")
			for range 3 {
				add("org", org, "member", "person", person(), "")
			}
		}
	}
	for len(tuples) < benchTuples {
		account, tree := fmt.Sprintf("a%d", len(m.trees)), r.IntN(trees)
		m.trees = append(m.trees, tree)
		add("account", account, "org", "org", fmt.Sprintf("o%d-%d", tree, 1+r.IntN(perTree)), "")
		add("account", account, "owner", "person", person(), "")
	}
	return tuples
}

// question asks about a random account; about half are denied.
func (m *benchModel) question(r *rand.Rand) *pembav1.CheckRequest {
	account, person := r.IntN(len(m.trees)), fmt.Sprintf("p%d", r.IntN(m.people))
	if r.IntN(2) == 0 {
		managers := m.managers[m.trees[account]]
		person = managers[r.IntN(len(managers))]
	}
	return &pembav1.CheckRequest{
		Object: &pembav1.Object{Type: "account", Id: fmt.Sprintf("a%d", account)}, Permission: "manage",
		Subject: &pembav1.Subject{Object: &pembav1.Object{Type: "person", Id: person}},
	}
}

// echo answers every check with the same answer, of the size of a real one.
type echo struct {
	pembav1.UnimplementedPermissionServiceServer
	answer *pembav1.CheckResponse
}

func (e echo) Check(context.Context, *pembav1.CheckRequest) (*pembav1.CheckResponse, error) {
	return e.answer, nil
}

func benchEcho(b *testing.B) pembav1.PermissionServiceClient {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := grpc.NewServer(grpc.NumStreamWorkers(uint32(8 * runtime.GOMAXPROCS(0))))
	pembav1.RegisterPermissionServiceServer(server, echo{answer: &pembav1.CheckResponse{
		Decision: pembav1.Decision_DECISION_ALLOWED, CheckedAt: zookie{revision: 1, instant: 1}.proto(),
	}})
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///"+listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := conn.Close(); err != nil {
			b.Error(err)
		}
		server.Stop()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	return pembav1.NewPermissionServiceClient(conn)
}

// BenchmarkUnary runs checks and echoes in turn at several concurrencies.
func BenchmarkUnary(b *testing.B) {
	m := &benchModel{people: 20_000}
	c := dial(b, testServer(b, Config{}))
	write(b, c, m.tuples())
	ask := map[string]pembav1.PermissionServiceClient{"echo": benchEcho(b), "check": c.PermissionServiceClient}
	for _, callers := range []int{1, 16, 64} {
		for _, what := range []string{"echo", "check"} {
			b.Run(fmt.Sprintf("%s/callers=%d", what, callers), func(b *testing.B) {
				var allowed atomic.Int64
				concurrently(b, callers, func(r *rand.Rand, _ int) error {
					answer, err := ask[what].Check(context.Background(), m.question(r))
					if answer.GetDecision() == pembav1.Decision_DECISION_ALLOWED {
						allowed.Add(1)
					}
					return err
				})
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
				if what == "check" {
					b.ReportMetric(100*float64(allowed.Load())/float64(b.N), "%allowed")
				}
			})
		}
	}
}

// BenchmarkWrite runs writes of one tuple and of a hundred.
func BenchmarkWrite(b *testing.B) {
	c := dial(b, testServer(b, Config{}))
	write(b, c, nil)
	var next atomic.Int64
	for _, size := range []int{1, 100} {
		for _, callers := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("tuples=%d/callers=%d", size, callers), func(b *testing.B) {
				concurrently(b, callers, func(r *rand.Rand, _ int) error {
					request := &pembav1.WriteTuplesRequest{}
					for range size {
						request.Updates = append(request.Updates, &pembav1.TupleUpdate{
							Operation: pembav1.TupleUpdate_OPERATION_TOUCH,
							Tuple: &pembav1.Tuple{
								Object: &pembav1.Object{Type: "account", Id: fmt.Sprintf("w%d", next.Add(1))}, Relation: "owner",
								Subject: &pembav1.Subject{Object: &pembav1.Object{Type: "person", Id: fmt.Sprintf("p%d", r.IntN(20_000))}},
							},
						})
					}
					_, err := c.WriteTuples(context.Background(), request)
					return err
				})
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
				b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "tuples/s")
			})
		}
	}
}

// concurrently makes b.N calls by so many callers.
func concurrently(b *testing.B, callers int, call func(r *rand.Rand, i int) error) {
	var next atomic.Int64
	var wait sync.WaitGroup
	b.ResetTimer()
	for caller := range callers {
		wait.Add(1)
		go func() {
			defer wait.Done()
			r := rand.New(rand.NewPCG(uint64(caller), 7))
			for {
				i := next.Add(1)
				if i > int64(b.N) {
					return
				}
				if err := call(r, int(i)); err != nil {
					b.Error(err)
					return
				}
			}
		}()
	}
	wait.Wait()
	b.StopTimer()
}

// write writes the schema of the benchmarks and the tuples.
func write(b *testing.B, c *testClient, tuples []*pembav1.Tuple) {
	b.Helper()
	ctx := context.Background()
	if _, err := c.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Schema: benchSchema}); err != nil {
		b.Fatal(err)
	}
	for len(tuples) > 0 {
		n := min(len(tuples), 1000)
		request := &pembav1.WriteTuplesRequest{}
		seen := map[string]bool{}
		for _, t := range tuples[:n] {
			if seen[t.String()] {
				continue
			}
			seen[t.String()] = true
			request.Updates = append(request.Updates, &pembav1.TupleUpdate{Operation: pembav1.TupleUpdate_OPERATION_TOUCH, Tuple: t})
		}
		if _, err := c.WriteTuples(ctx, request); err != nil {
			b.Fatal(err)
		}
		tuples = tuples[n:]
	}
}
