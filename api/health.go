package api

import (
	"context"
	"maps"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	pembav1 "github.com/pembadb/pemba/api/pemba/v1"
)

// A healthService answers grpc.health.v1 from the state of the node itself, so
// that it is never out of date.
type healthService struct {
	grpc_health_v1.UnimplementedHealthServer
	server *Server
	// names are the services it knows: those of healthNames and of the dialects.
	names map[string]bool
}

func newHealthService(s *Server) *healthService {
	h := &healthService{server: s, names: maps.Clone(healthNames)}
	for name := range s.dialects {
		h.names[name] = true
	}
	return h
}

// healthPause is how often Watch looks.
const healthPause = 500 * time.Millisecond

// healthNames are pemba.v1's; the empty name is the whole server.
var healthNames = map[string]bool{
	"": true,
	pembav1.StoreService_ServiceDesc.ServiceName:      true,
	pembav1.SchemaService_ServiceDesc.ServiceName:     true,
	pembav1.TupleService_ServiceDesc.ServiceName:      true,
	pembav1.PermissionService_ServiceDesc.ServiceName: true,
	pembav1.WatchService_ServiceDesc.ServiceName:      true,
	pembav1.ClusterService_ServiceDesc.ServiceName:    true,
}

func (h *healthService) status() grpc_health_v1.HealthCheckResponse_ServingStatus {
	if h.server.ready() != nil {
		return grpc_health_v1.HealthCheckResponse_NOT_SERVING
	}
	return grpc_health_v1.HealthCheckResponse_SERVING
}

func (h *healthService) Check(_ context.Context, r *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	if !h.names[r.GetService()] {
		return nil, status.Errorf(codes.NotFound, "unknown service %q", validUTF8(r.GetService()))
	}
	return &grpc_health_v1.HealthCheckResponse{Status: h.status()}, nil
}

func (h *healthService) List(context.Context, *grpc_health_v1.HealthListRequest) (*grpc_health_v1.HealthListResponse, error) {
	statuses := make(map[string]*grpc_health_v1.HealthCheckResponse, len(h.names))
	for name := range h.names {
		statuses[name] = &grpc_health_v1.HealthCheckResponse{Status: h.status()}
	}
	return &grpc_health_v1.HealthListResponse{Statuses: statuses}, nil
}

// Watch sends the status now and whenever it has changed. A name that is
// unknown stays so.
func (h *healthService) Watch(r *grpc_health_v1.HealthCheckRequest, stream grpc_health_v1.Health_WatchServer) error {
	ticker := time.NewTicker(healthPause)
	defer ticker.Stop()
	var sent grpc_health_v1.HealthCheckResponse_ServingStatus
	for first := true; ; first = false {
		now := grpc_health_v1.HealthCheckResponse_SERVICE_UNKNOWN
		if h.names[r.GetService()] {
			now = h.status()
		}
		if first || now != sent {
			if err := stream.Send(&grpc_health_v1.HealthCheckResponse{Status: now}); err != nil {
				return err
			}
			sent = now
		}
		select {
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-h.server.stopping:
			return status.Error(codes.Unavailable, "the server is shutting down")
		case <-ticker.C:
		}
	}
}

// httpHandler serves /healthz, which says that the process lives, /readyz, which
// says whether it may be given work, both without a key; /metrics; and the HTTP
// forms of the protocol and the dialects.
func (s *Server) httpHandler() http.Handler {
	answer := func(w http.ResponseWriter, code int, text string) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.WriteHeader(code)
		// The prober has gone when this fails; there is no one to tell.
		_, _ = w.Write([]byte(text + "\n"))
	}
	metrics := s.metricsHandler()
	// http.ServeMux would answer some paths with redirections and errors of its own
	// form.
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-s.stopping:
			w.Header().Set("Connection", "close") // See drain.
		default:
		}
		read := r.Method == http.MethodGet || r.Method == http.MethodHead
		switch path := r.URL.Path; {
		case strings.HasPrefix(path, httpPrefix):
			s.gateway.ServeHTTP(w, r)
		case s.gateway.serveDialect(w, r):
		case path != "/healthz" && path != "/readyz" && path != "/metrics":
			s.refusePath(w, r)
		case !read:
			s.refuseMethod(w, r, "GET")
		case path == "/metrics":
			metrics.ServeHTTP(w, r)
		case path == "/healthz":
			answer(w, http.StatusOK, "ok")
		default:
			if err := s.ready(); err != nil {
				answer(w, http.StatusServiceUnavailable, "not ready: "+err.Error())
				return
			}
			answer(w, http.StatusOK, "ready")
		}
	})
}
