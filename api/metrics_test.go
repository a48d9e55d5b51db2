package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
	"github.com/pembadb/pemba/cluster"
)

// A sample is one value of a metric.
type sample struct {
	name   string
	labels map[string]string
	value  float64
}

// gather reads the metrics as a scrape would.
func gather(t testing.TB, s *Server) []sample {
	t.Helper()
	families, err := s.metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var samples []sample
	for _, family := range families {
		samples = append(samples, samplesOf(family)...)
	}
	return samples
}

func samplesOf(family *dto.MetricFamily) []sample {
	var samples []sample
	for _, m := range family.GetMetric() {
		x := sample{name: family.GetName(), labels: make(map[string]string)}
		for _, l := range m.GetLabel() {
			x.labels[l.GetName()] = l.GetValue()
		}
		switch {
		case m.GetCounter() != nil:
			x.value = m.GetCounter().GetValue()
		case m.GetGauge() != nil:
			x.value = m.GetGauge().GetValue()
		case m.GetHistogram() != nil:
			x.value = float64(m.GetHistogram().GetSampleCount())
		}
		samples = append(samples, x)
	}
	return samples
}

// scrape reads /metrics and parses it.
func scrape(t testing.TB, s *Server) map[string]*dto.MetricFamily {
	t.Helper()
	a := send(t, "GET", httpURL(s, "/metrics"), "")
	if a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(a.body))
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// TestMetrics: what callers do shows in the figures, whichever way they come.
func TestMetrics(t *testing.T) {
	s := testServer(t, Config{})
	c := dial(t, s)
	writeDocs(t, c, 3)
	check := &pembav1.CheckRequest{Object: object("doc", "d00000"), Permission: "view", Subject: user("anne")}
	for range 3 {
		if _, err := c.Check(testContext(t), check); err != nil {
			t.Fatal(err)
		}
	}
	check.Consistency = &pembav1.Consistency{Requirement: &pembav1.Consistency_Linearizable{Linearizable: true}}
	if _, err := c.Check(testContext(t), check); err != nil {
		t.Fatal(err)
	}
	check.Object.Type = "none"
	_, err := c.Check(testContext(t), check)
	expectStatus(t, "an unknown type", err, codes.FailedPrecondition, "UNKNOWN_TYPE")
	if a := send(t, "POST", httpURL(s, "/pemba/v1/read-tuples"), "{}"); a.status != 200 {
		t.Fatal(a.body)
	}
	families := scrape(t, s)
	for _, test := range []struct {
		name, labels string
		want         float64
	}{
		{"pemba_requests_total", "code=OK,consistency=newest,method=Check", 3},
		{"pemba_requests_total", "code=OK,consistency=linearizable,method=Check", 1},
		{"pemba_requests_total", "code=FailedPrecondition,consistency=linearizable,method=Check", 1},
		{"pemba_requests_total", "code=OK,consistency=none,method=WriteSchema", 1},
		{"pemba_requests_total", "code=OK,consistency=newest,method=ReadTuples", 1},
		{"pemba_request_duration_seconds", "method=Check", 5},
		{"pemba_request_duration_seconds", "method=ReadTuples", 1},
		{"pemba_requests_in_flight", "method=Check", 0},
		{"pemba_engine_questions_total", "", 4},
		{"pemba_engine_budget_refusals_total", "", 0},
		{"pemba_stores", "", 1},
		{"pemba_tuples", "", 3},
		{"pemba_store_tuples", "store=default", 3},
		{"pemba_raft_leader", "", 1},
		{"pemba_ready", "", 1},
		{"pemba_node_up", "", 1},
		{"pemba_connections_open", "protocol=grpc", 1},
	} {
		found := false
		for _, x := range samplesOf(families[test.name]) {
			var labels []string
			for k, v := range x.labels {
				labels = append(labels, k+"="+v)
			}
			slices.Sort(labels)
			if strings.Join(labels, ",") != test.labels {
				continue
			}
			if found = true; x.value != test.want {
				t.Errorf("%s{%s} is %v, expected %v", test.name, test.labels, x.value, test.want)
			}
		}
		if !found {
			t.Errorf("%s{%s} is missing", test.name, test.labels)
		}
	}
	for _, name := range []string{"pemba_engine_steps_total", "pemba_raft_entries_applied_total", "pemba_log_disk_bytes", "pemba_graph_disk_bytes"} {
		if x := samplesOf(families[name]); len(x) != 1 || x[0].value <= 0 {
			t.Errorf("%s: %v", name, x)
		}
	}
}

// TestMetricsOfQuestions: caveats that were evaluated and budgets that were not
// enough show in the figures.
func TestMetricsOfQuestions(t *testing.T) {
	s := testServer(t, Config{Limits: Limits{Steps: 20}})
	c := dial(t, s)
	ctx := testContext(t)
	if _, err := c.WriteSchema(ctx, &pembav1.WriteSchemaRequest{Schema: `caveat c(n int) { n > 1 } definition user {}
		definition doc { relation viewer: user with c | doc#view permission view = viewer }`}); err != nil {
		t.Fatal(err)
	}
	var updates []*pembav1.TupleUpdate
	for i := range 30 { // A chain that costs more steps than are allowed.
		u := touch(i, i+1)
		u[0].Tuple.Subject = &pembav1.Subject{Object: object("doc", fmt.Sprintf("d%05d", i+1)), Relation: "view"}
		updates = append(updates, u...)
	}
	u := touch(30, 31)
	u[0].Tuple.Caveat = &pembav1.Caveat{Name: "c"}
	if _, err := c.WriteTuples(ctx, &pembav1.WriteTuplesRequest{Updates: append(updates, u...)}); err != nil {
		t.Fatal(err)
	}
	figures := func() (caveats, refusals float64) {
		families := scrape(t, s)
		for name, value := range map[string]*float64{"pemba_engine_caveat_evaluations_total": &caveats, "pemba_engine_budget_refusals_total": &refusals} {
			x := samplesOf(families[name])
			if len(x) != 1 {
				t.Fatalf("%s: %v", name, x)
			}
			*value = x[0].value
		}
		return caveats, refusals
	}
	if caveats, refusals := figures(); caveats != 0 || refusals != 0 {
		t.Errorf("%v caveats and %v refusals before there was a question", caveats, refusals)
	}
	check := &pembav1.CheckRequest{
		Object: object("doc", "d00030"), Permission: "view", Subject: user("anne"), Context: structOf(t, map[string]any{"n": 2.0}),
	}
	if answer, err := c.Check(ctx, check); err != nil || answer.GetDecision() != pembav1.Decision_DECISION_ALLOWED {
		t.Fatalf("%v, %v", answer, err)
	}
	if caveats, refusals := figures(); caveats == 0 || refusals != 0 {
		t.Errorf("%v caveats and %v refusals behind a question with a caveat", caveats, refusals)
	}
	check.Object.Id = "d00000"
	for range 2 {
		_, err := c.Check(ctx, check)
		expectStatus(t, "a long chain", err, codes.ResourceExhausted, "BUDGET_EXCEEDED")
	}
	if _, refusals := figures(); refusals != 2 {
		t.Errorf("%v refusals behind 2", refusals)
	}
}

// TestMetricsOfAFailedNode: the scrape says that the node has no figures, and
// gives the others.
func TestMetricsOfAFailedNode(t *testing.T) {
	s := testServer(t, Config{Node: &noFigures{testNode(t)}})
	families := scrape(t, s)
	if x := samplesOf(families["pemba_node_up"]); len(x) != 1 || x[0].value != 0 {
		t.Errorf("pemba_node_up: %v", x)
	}
	if families["pemba_tuples"] != nil || families["pemba_engine_steps_total"] == nil {
		t.Error("the wrong figures are left out")
	}
}

type noFigures struct{ *cluster.Node }

func (noFigures) Metrics() (cluster.Metrics, error) {
	return cluster.Metrics{}, cluster.ErrShuttingDown
}

// TestMetricsKey: where a key is configured only operators read the figures, on
// loopback as beyond this machine, wherever the keys come from; where none is,
// anybody on this machine does.
func TestMetricsKey(t *testing.T) {
	file := t.TempDir() + "/keys"
	writeFile(t, file, []byte("op\nbound store default\n"))
	node := testNode(t)
	for _, x := range []struct {
		what, host string
		config     Config
		want       map[string]int
	}{
		{"a key file, beyond this machine", "0.0.0.0:0", Config{KeyFile: file}, map[string]int{"op": 200, "bound": 403, "other": 401, "": 401}},
		{"a key file, on loopback", "127.0.0.1:0", Config{KeyFile: file}, map[string]int{"op": 200, "bound": 403, "other": 401, "": 401}},
		{"a key, on loopback", "127.0.0.1:0", Config{Keys: []string{"op"}}, map[string]int{"op": 200, "other": 401, "": 401}},
		{"no key, on loopback", "127.0.0.1:0", Config{}, map[string]int{"other": 200, "": 200}},
	} {
		t.Run(x.what, func(t *testing.T) {
			c := x.config
			c.Node, c.GRPCAddr, c.HTTPAddr, c.Logger = node, "127.0.0.1:0", x.host, testLogger()
			s, err := Listen(c)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- s.Serve() }()
			_, port, err := net.SplitHostPort(s.HTTPAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			for key, want := range x.want {
				header := ""
				if key != "" {
					header = "Bearer " + key
				}
				a := send(t, "GET", "http://127.0.0.1:"+port+"/metrics", "", "Authorization", header)
				if a.status != want {
					t.Errorf("key %q: %d, expected %d", key, a.status, want)
				}
				if want != 200 {
					httpError(t, key, a.body)
				} else if !strings.Contains(a.body, "pemba_ready 1") {
					t.Errorf("key %q: no figures: %.200s", key, a.body)
				}
			}
			if err := s.Close(testContext(t)); err != nil {
				t.Error(err)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// metricNames returns the names of all metrics of Pemba's own, with or without a
// value now.
func metricNames(t testing.TB, s *Server) map[string]bool {
	t.Helper()
	names := make(map[string]bool)
	for _, x := range gather(t, s) {
		if strings.HasPrefix(x.name, "pemba_") {
			names[x.name] = true
		}
	}
	return names
}

var metricName = regexp.MustCompile(`\bpemba_[a-z0-9_]+`)

// baseName takes off what Prometheus adds to the name of a histogram.
func baseName(name string) string {
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		if base, ok := strings.CutSuffix(name, suffix); ok && strings.HasSuffix(base, "_seconds") {
			return base
		}
	}
	return name
}

// serverWithPeer is a server whose node leads another one and has heard of it, so that
// it has figures of all kinds.
func serverWithPeer(t *testing.T) *Server {
	t.Helper()
	s := testServer(t, Config{Node: clusterNodes(t, 2)[0]})
	eventually(t, "a heartbeat is answered", func() bool { return metricNames(t, s)["pemba_peer_round_trip_seconds"] })
	return s
}

// TestPeerMetrics: the figures of another node have its id, and say what it was asked.
func TestPeerMetrics(t *testing.T) {
	s := serverWithPeer(t)
	found := make(map[string]float64)
	for _, x := range gather(t, s) {
		if strings.HasPrefix(x.name, "pemba_peer_") || strings.HasPrefix(x.name, "pemba_cluster_") {
			found[fmt.Sprint(x.name, x.labels)] = x.value
		}
	}
	for _, name := range []string{
		`pemba_cluster_membersmap[]`, `pemba_cluster_votersmap[]`,
		`pemba_peer_sent_bytes_totalmap[kind:raft peer:n2]`, `pemba_peer_received_bytes_totalmap[kind:raft peer:n2]`,
		`pemba_peer_rpcs_totalmap[peer:n2 rpc:AppendEntries]`, `pemba_peer_rpcs_totalmap[peer:n2 rpc:Heartbeat]`,
		`pemba_peer_round_trip_secondsmap[peer:n2]`, `pemba_peer_last_contact_timestamp_secondsmap[peer:n2]`,
		`pemba_peer_connections_openmap[kind:raft peer:n2]`,
	} {
		if found[name] <= 0 {
			t.Errorf("%s is %v of %v", name, found[name], found)
		}
	}
	if found["pemba_cluster_votersmap[]"] != 2 {
		t.Errorf("there are %v voters", found["pemba_cluster_votersmap[]"])
	}
}

// TestMetricsAreDocumented: docs/metrics.md lists what a scrape gives and nothing
// else.
func TestMetricsAreDocumented(t *testing.T) {
	s := serverWithPeer(t)
	if _, err := dial(t, s).ReadSchema(testContext(t), &pembav1.ReadSchemaRequest{}); err == nil {
		t.Fatal("there is a schema")
	}
	content, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := make(map[string]bool)
	for line := range strings.Lines(string(content)) {
		if strings.HasPrefix(line, "| `pemba_") {
			documented[metricName.FindString(line)] = true
		}
	}
	names := metricNames(t, s)
	for name := range names {
		if !documented[name] {
			t.Errorf("docs/metrics.md does not list %s", name)
		}
		if strings.HasSuffix(name, "_total") != isCounter(t, s, name) {
			t.Errorf("%s: a counter ends in _total, and nothing else does", name)
		}
	}
	for name := range documented {
		if !names[name] {
			t.Errorf("docs/metrics.md lists %s, which there is not", name)
		}
	}
}

func isCounter(t testing.TB, s *Server, name string) bool {
	t.Helper()
	families, err := s.metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetType() == dto.MetricType_COUNTER
		}
	}
	return false
}

// TestDashboard: the dashboard and the alerts name metrics that there are, and
// have the form that Grafana and Prometheus read.
func TestDashboard(t *testing.T) {
	s := serverWithPeer(t)
	if _, err := dial(t, s).ReadSchema(testContext(t), &pembav1.ReadSchemaRequest{}); err == nil {
		t.Fatal("there is a schema")
	}
	names := metricNames(t, s)
	expression := func(where, text string) {
		t.Helper()
		found := metricName.FindAllString(text, -1)
		if len(found) == 0 {
			t.Errorf("%s names no metric: %s", where, text)
		}
		for _, name := range found {
			if !names[baseName(name)] {
				t.Errorf("%s names %s, which there is not", where, name)
			}
		}
		if err := balanced(text); err != nil {
			t.Errorf("%s: %v: %s", where, err, text)
		}
	}
	content, err := os.ReadFile("../examples/deploy/grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Title         string
		UID           string
		SchemaVersion int
		Panels        []struct {
			ID      int
			Title   string
			Type    string
			GridPos struct{ H, W, X, Y int }
			Targets []struct{ Expr, RefID string }
		}
	}
	if err := json.Unmarshal(content, &dashboard); err != nil {
		t.Fatal(err)
	}
	if dashboard.Title == "" || dashboard.UID == "" || dashboard.SchemaVersion < 30 || len(dashboard.Panels) < 8 {
		t.Errorf("the dashboard: %q, uid %q, version %d, %d panels", dashboard.Title, dashboard.UID, dashboard.SchemaVersion, len(dashboard.Panels))
	}
	ids := make(map[int]bool)
	for _, p := range dashboard.Panels {
		if p.Title == "" || p.Type == "" || ids[p.ID] || p.GridPos.W == 0 || p.GridPos.X+p.GridPos.W > 24 || len(p.Targets) == 0 {
			t.Errorf("panel %d %q: %+v", p.ID, p.Title, p)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			expression("panel "+p.Title, target.Expr)
		}
	}
	if content, err = os.ReadFile("../examples/deploy/alerts.yaml"); err != nil {
		t.Fatal(err)
	}
	var rules struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(content, &rules); err != nil {
		t.Fatal(err)
	}
	alerts := 0
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			alerts++
			if g.Name == "" || r.Alert == "" || r.Labels["severity"] == "" || r.Annotations["summary"] == "" {
				t.Errorf("alert %q: %+v", r.Alert, r)
			}
			if _, err := model.ParseDuration(r.For); r.For != "" && err != nil {
				t.Errorf("alert %s: %v", r.Alert, err)
			}
			expression("alert "+r.Alert, r.Expr)
		}
	}
	if alerts < 8 {
		t.Errorf("%d alerts", alerts)
	}
}

// balanced says whether brackets and quotes of an expression match.
func balanced(text string) error {
	closing := map[rune]rune{'(': ')', '[': ']', '{': '}'}
	var open []rune
	quoted := false
	for i, c := range text {
		switch {
		case c == '"':
			quoted = !quoted
		case quoted:
		case closing[c] != 0:
			open = append(open, closing[c])
		case c == ')' || c == ']' || c == '}':
			if len(open) == 0 || open[len(open)-1] != c {
				return fmt.Errorf("%c at %d closes nothing", c, i)
			}
			open = open[:len(open)-1]
		}
	}
	if quoted || len(open) > 0 {
		return fmt.Errorf("%q is missing at the end", string(open))
	}
	return nil
}

// TestCountingAllocatesNothing: what every call pays for its figures is no
// garbage.
func TestCountingAllocatesNothing(t *testing.T) {
	s := testServer(t, Config{})
	request := &pembav1.CheckRequest{}
	n := testing.AllocsPerRun(1000, func() {
		s.metrics.begin(pembav1.PermissionService_Check_FullMethodName).end(codes.OK, consistencyOf(request))
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkInterceptor is what every call pays for its figures, its deadline and
// the guard against panics.
func BenchmarkInterceptor(b *testing.B) {
	s := testServer(b, Config{})
	info := &grpc.UnaryServerInfo{FullMethod: pembav1.PermissionService_Check_FullMethodName}
	request, answer := &pembav1.CheckRequest{}, &pembav1.CheckResponse{}
	handler := func(context.Context, any) (any, error) { return answer, nil }
	for name, ctx := range map[string]context.Context{"deadline": testContext(b), "none": context.Background()} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				if _, err := s.unary(ctx, request, info, handler); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
