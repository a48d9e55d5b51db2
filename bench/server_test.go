package main

import (
	"context"
	"reflect"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
)

// TestEchoCarriesAsPemba holds that the echo and the measured server have the same
// gRPC options but for those that look at a call: a ratio would otherwise compare
// the options. It reads what gRPC made of them, so that one set in either place
// alone is found whatever it is.
func TestEchoCarriesAsPemba(t *testing.T) {
	for _, name := range []string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"} {
		t.Setenv(name, "")
	}
	node, server, err := openPemba(serveSpec{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := server.Close(ctx); err != nil {
			t.Error(err)
		}
		if err := node.Close(ctx); err != nil {
			t.Error(err)
		}
	}()
	pemba := reflect.ValueOf(server).Elem().FieldByName("grpc")
	if pemba.Type() != reflect.TypeFor[*grpc.Server]() {
		t.Fatalf("the field grpc of api.Server is a %v; want a *grpc.Server", pemba.Type())
	}
	echo := newEcho()
	defer echo.Stop()
	plain := grpc.NewServer()
	defer plain.Stop()
	looking := []string{"inTapHandle", "unaryInt", "streamInt", "unknownStreamDesc"}
	if got := differences(pemba, reflect.ValueOf(echo)); !slices.Equal(sorted(got), sorted(looking)) {
		t.Errorf("the options of Pemba and of the echo differ in %q; want %q", got, looking)
	}
	// The comparison itself would see options that are missing.
	for _, want := range []string{"codec", "maxReceiveMessageSize", "maxHeaderListSize", "keepaliveParams", "numServerWorkers"} {
		if got := differences(pemba, reflect.ValueOf(plain)); !slices.Contains(got, want) {
			t.Errorf("the options of Pemba and of a plain server differ in %q; want %s among them", got, want)
		}
	}
}

func sorted(names []string) []string { return slices.Sorted(slices.Values(names)) }

// differences returns the names of the options in which two gRPC servers differ.
func differences(a, b reflect.Value) (names []string) {
	a, b = a.Elem().FieldByName("opts"), b.Elem().FieldByName("opts")
	for i := range a.NumField() {
		if !same(a.Field(i), b.Field(i)) {
			names = append(names, a.Type().Field(i).Name)
		}
	}
	return names
}

// same compares two options. Functions cannot be compared: they are the same only
// if there are none.
func same(a, b reflect.Value) bool {
	switch {
	case a.Kind() == reflect.Func || a.Kind() == reflect.Slice:
		return a.IsNil() && b.IsNil()
	case a.Kind() == reflect.Pointer && !a.IsNil() && !b.IsNil() && a.Elem().Comparable():
		return a.Elem().Equal(b.Elem())
	}
	return a.Equal(b)
}
