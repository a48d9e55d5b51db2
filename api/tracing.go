package api

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
)

// The environment variables by which OpenTelemetry names a collector.
var collectorVariables = [...]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"}

// collectorEndpoint returns the collector to send traces to; empty for none.
func collectorEndpoint(configured string) string {
	if configured != "" {
		return configured
	}
	for _, name := range collectorVariables {
		if endpoint := os.Getenv(name); endpoint != "" {
			return endpoint
		}
	}
	return ""
}

// validateEndpoint says what is wrong with the address of a collector.
func validateEndpoint(endpoint string) error {
	if endpoint == "" {
		return nil
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("%q is not of the form http://HOST:PORT or, with TLS, https://HOST:PORT", endpoint)
	}
	return nil
}

// A tracer sends a span for every call to a collector, in the background; what it
// cannot send is lost, and no call waits for it. A nil tracer is one that is off,
// and costs nothing.
type tracer struct {
	provider *sdktrace.TracerProvider
}

// newTracer returns nil without a collector. It does not wait for it.
func newTracer(endpoint string) (*tracer, error) {
	if endpoint = collectorEndpoint(endpoint); endpoint == "" {
		return nil, nil
	}
	if err := validateEndpoint(endpoint); err != nil {
		return nil, fmt.Errorf("collector of traces: %w", err)
	}
	exporter, err := otlptracegrpc.New(context.Background(), otlptracegrpc.WithEndpointURL(endpoint))
	if err != nil {
		return nil, fmt.Errorf("collector of traces: %w", err)
	}
	// The environment may name the service otherwise.
	described, err := resource.New(context.Background(),
		resource.WithAttributes(attribute.String("service.name", "pemba")), resource.WithFromEnv(), resource.WithHost())
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, errors.Join(fmt.Errorf("collector of traces: %w", err), exporter.Shutdown(context.Background()))
	}
	return &tracer{provider: sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(described))}, nil
}

// serverOptions has gRPC make a span for each call, below the caller's if it
// names one.
func (t *tracer) serverOptions() []grpc.ServerOption {
	if t == nil {
		return nil
	}
	return []grpc.ServerOption{grpc.StatsHandler(otelgrpc.NewServerHandler(
		otelgrpc.WithTracerProvider(t.provider), otelgrpc.WithPropagators(propagation.TraceContext{}),
	))}
}

// annotate says in the span of a call what it asks.
func (t *tracer) annotate(ctx context.Context, request any, consistency consistencyLabel) {
	if t == nil {
		return
	}
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return
	}
	if r, ok := request.(interface{ GetStore() string }); ok {
		t.annotateStore(ctx, callerOf(ctx).storeName(r.GetStore()))
	}
	if consistency != noConsistency {
		span.SetAttributes(attribute.String("pemba.consistency", consistency.String()))
	}
}

// annotateStore says in the span of a call which store it is about.
func (t *tracer) annotateStore(ctx context.Context, store string) {
	if t != nil {
		trace.SpanFromContext(ctx).SetAttributes(attribute.String("pemba.store", validUTF8(store)))
	}
}

// close sends what is left, as long as ctx allows.
func (t *tracer) close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("api: send the last traces: %w", err)
	}
	return nil
}
