package api

import (
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc/codes"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

// A consistencyLabel says in metrics and traces which state a call asked for.
type consistencyLabel uint8

const (
	noConsistency consistencyLabel = iota // The call reads nothing, or not from a state.
	newestConsistency
	atLeastConsistency
	exactlyConsistency
	linearizableConsistency
	asOfConsistency
	cursorConsistency // The cursor decides.
	consistencyLabels // How many there are.
)

var consistencyNames = [consistencyLabels]string{
	"none", "newest", "at_least_as_fresh", "exactly_at", "linearizable", "as_of", "cursor",
}

// String returns the label as it stands in metrics.
func (c consistencyLabel) String() string { return consistencyNames[c] }

// consistencyOf looks at a request, which may be nil.
func consistencyOf(request any) consistencyLabel {
	r, ok := request.(interface {
		GetConsistency() *pembav1.Consistency
	})
	if !ok {
		return noConsistency
	}
	if c, ok := request.(interface{ GetCursor() string }); ok && c.GetCursor() != "" {
		return cursorConsistency
	}
	switch r.GetConsistency().GetRequirement().(type) {
	case *pembav1.Consistency_AtLeastAsFresh:
		return atLeastConsistency
	case *pembav1.Consistency_ExactlyAt:
		return exactlyConsistency
	case *pembav1.Consistency_Linearizable:
		return linearizableConsistency
	case *pembav1.Consistency_AsOf:
		return asOfConsistency
	}
	return newestConsistency
}

// codesMax is one more than the largest code of gRPC.
const codesMax = int(codes.Unauthenticated) + 1

// metrics are the figures of one server and its node. docs/metrics.md lists all of
// them, which a test holds.
type metrics struct {
	registry *prometheus.Registry

	requests *prometheus.CounterVec
	// methods are those of pemba.v1 and the dialects by their full names; all other
	// calls are other. It does not change, so that a call finds its place without a lock.
	methods map[string]*methodMetrics
	other   *methodMetrics

	unauthenticatedCalls *prometheus.CounterVec
	rateLimited          *prometheus.CounterVec
	connectionsRefused   prometheus.Counter
}

// methodMetrics are the figures of one method, found once.
type methodMetrics struct {
	name     string
	requests *prometheus.CounterVec
	inFlight prometheus.Gauge
	// seconds is nil for a method that lasts as long as its caller likes.
	seconds prometheus.Observer
	// ended holds the counters by code and consistency, each made when it is
	// first needed: most never are.
	ended [codesMax][consistencyLabels]atomic.Pointer[prometheus.Counter]
}

// isEndless reports whether a method has no end of its own, and so no latency.
func isEndless(name string) bool { return name == "Watch" || strings.HasSuffix(name, "/Watch") }

// latencyBuckets go from what a check from memory takes to what a caller may wait
// for.
var latencyBuckets = []float64{
	50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 0.5, 1, 2.5, 5, 10,
}

func newMetrics(s *Server) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pemba_requests_total", Help: "Calls that ended, by method, gRPC code and the consistency asked for.",
		}, []string{"method", "code", "consistency"}),
		methods: make(map[string]*methodMetrics),
		unauthenticatedCalls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pemba_unauthenticated_total", Help: "Calls that were turned away for want of a good key; they are in no other figure.",
		}, []string{"reason"}),
		rateLimited: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pemba_rate_limited_total", Help: "Calls refused because the key or the store had used its calls per second.",
		}, []string{"limited"}),
		connectionsRefused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "pemba_connections_refused_total", Help: "Connections closed at once because too many were open.",
		}),
	}
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "pemba_request_duration_seconds",
		Help:    "How long calls took on this node, from the request decoded to the last result handed over; without Watch.",
		Buckets: latencyBuckets,
	}, []string{"method"})
	inFlight := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "pemba_requests_in_flight", Help: "Calls under way, by method.",
	}, []string{"method"})
	method := func(name string) *methodMetrics {
		mm := &methodMetrics{name: name, requests: m.requests, inFlight: inFlight.WithLabelValues(name)}
		if !isEndless(name) {
			mm.seconds = seconds.WithLabelValues(name)
		}
		return mm
	}
	for _, service := range services {
		for _, x := range service.Methods {
			m.methods["/"+service.ServiceName+"/"+x.MethodName] = method(x.MethodName)
		}
		for _, x := range service.Streams {
			m.methods["/"+service.ServiceName+"/"+x.StreamName] = method(x.StreamName)
		}
	}
	for _, d := range s.spoken {
		for _, service := range d.Services() {
			for _, x := range service.Methods {
				m.methods["/"+service.ServiceName+"/"+x.MethodName] = method(service.ServiceName + "/" + x.MethodName)
			}
			for _, x := range service.Streams {
				m.methods["/"+service.ServiceName+"/"+x.StreamName] = method(service.ServiceName + "/" + x.StreamName)
			}
		}
	}
	m.other = &methodMetrics{name: "other", requests: m.requests, inFlight: inFlight.WithLabelValues("other")}
	for _, reason := range []string{keyMissing, keyInvalid} {
		m.unauthenticatedCalls.WithLabelValues(reason)
	}
	for _, limited := range []string{"key", "store"} {
		m.rateLimited.WithLabelValues(limited)
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "pemba_build_info", Help: "Always 1; the labels say what runs.",
		ConstLabels: prometheus.Labels{"version": buildVersion(), "go_version": runtime.Version()},
	})
	build.Set(1)
	m.registry.MustRegister(
		m.requests, seconds, inFlight, m.unauthenticatedCalls, m.rateLimited, m.connectionsRefused, build,
		&nodeCollector{server: s},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

// buildVersion returns the version of the module that was built.
func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

// A call is being counted. It is a value, so that counting allocates nothing.
type call struct {
	method  *methodMetrics
	started time.Time
}

func (m *metrics) begin(fullMethod string) call {
	method := m.methods[fullMethod]
	if method == nil {
		method = m.other
	}
	method.inFlight.Inc()
	return call{method: method, started: time.Now()}
}

func (c call) end(code codes.Code, consistency consistencyLabel) {
	c.method.inFlight.Dec()
	if c.method.seconds != nil {
		c.method.seconds.Observe(time.Since(c.started).Seconds())
	}
	if int(code) >= codesMax {
		code = codes.Unknown
	}
	place := &c.method.ended[code][consistency]
	counter := place.Load()
	if counter == nil {
		// Two that do this at once get the same counter.
		made := c.method.requests.WithLabelValues(c.method.name, code.String(), consistency.String())
		counter = &made
		place.Store(counter)
	}
	(*counter).Inc()
}

// unauthenticated counts a call that was turned away.
func (m *metrics) unauthenticated(err error) {
	reason := keyMissing
	if e, ok := err.(*requestError); ok { //nolint:errorlint // The keyring returns it as it is.
		reason = e.reason
	}
	m.unauthenticatedCalls.WithLabelValues(reason).Inc()
}

// metricsHandler serves the metrics. They need an operator's key, for they name
// stores; without keys, anybody on this machine may read them.
func (s *Server) metricsHandler() http.Handler {
	handler := promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{
		// Figures that cannot be had are left out; the others still tell something.
		ErrorHandling:       promhttp.ContinueOnError,
		ErrorLog:            metricsLog{s.logger},
		MaxRequestsInFlight: 4,
		Timeout:             httpSendTimeout / 2,
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := s.gate.admit(r.Header.Values("Authorization"))
		switch {
		case err != nil || c.operator:
		case c.own != "":
			err = needsOperator("a server for tests shows no metrics: they tell of the stores of all keys")
		default:
			err = needsOperator("the key is bound to stores; the metrics need an operator's key")
		}
		if err != nil {
			s.writeStatus(w, err, 0)
			return
		}
		handler.ServeHTTP(w, r)
	})
}

// metricsLog is how a scrape that fails gets into the log.
type metricsLog struct{ logger *slog.Logger }

// Println implements promhttp.Logger.
func (l metricsLog) Println(v ...any) {
	l.logger.Error("metrics cannot be gathered", "error", strings.TrimSuffix(fmt.Sprintln(v...), "\n"))
}
